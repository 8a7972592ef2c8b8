//! The books of what was published: which snapshots readers may have, and what waits for them.
//!
//! A node that is replaced while snapshots may reach it waits with the newest of them, and is free when that one and
//! all before it have no reader left. A snapshot without readers that has an older one before it is let go at once:
//! what waited with it is free if it is younger than the older one, and waits with that one otherwise. So a reader
//! that keeps an old snapshot keeps the nodes of that one, and none that came and went since.
//!
//! No call does more than a bounded part of the work, so that no change and no publication pays for what thousands
//! before it left behind: [`Books::share`] hands out a part at a time.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use super::arena::Arena;
use super::reader::Snapshot;
use super::spare::Spare;

/// A block that waits: its handle and its cells, 0 for none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Block {
    pub(super) handle: u32,
    pub(super) cells: u32,
}

/// The two blocks of a node, or one of a window or its page; and the number of snapshots made before it was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    pub(super) node: Block,
    pub(super) cold: Block,
    pub(super) lines: Block,
    pub(super) epoch: u64,
}

impl Blocks {
    /// Gives the cells back, each block to its arena.
    pub(super) fn free(self, arena: &mut Arena, cold: &mut Arena, lines: &mut Arena) {
        for (block, arena) in [(self.node, arena), (self.cold, cold), (self.lines, lines)] {
            if block.cells > 0 {
                arena.free(block.handle, block.cells as usize);
            }
        }
    }
}

/// Published snapshots, oldest first.
#[derive(Debug, Default)]
pub(super) struct Books {
    published: VecDeque<Published>,
    /// Blocks that no reader can reach any more.
    free: Pile,
    /// Blocks that have come to wait since the last publication.
    recent: usize,
    /// The snapshot to be looked at next.
    next: usize,
    /// What is left of the one that was let go last.
    spare: Spare,
}

#[derive(Debug)]
struct Published {
    snapshot: Arc<Snapshot>,
    /// The epoch of the youngest nodes that it reaches.
    epoch: u64,
    /// What was replaced while this snapshot was the newest.
    waiting: Pile,
}

impl Books {
    /// Notes a new snapshot.
    pub(super) fn publish(&mut self, snapshot: Arc<Snapshot>, epoch: u64) {
        self.published.push_back(Published {
            snapshot,
            epoch,
            waiting: Pile::default(),
        });
        self.recent = 0;
    }

    /// Lets the blocks of a node wait for the snapshots that may reach it. Gives them back when there are none.
    pub(super) fn retire(&mut self, blocks: Blocks) -> Option<Blocks> {
        match self.published.back_mut() {
            Some(newest) if blocks.epoch <= newest.epoch => newest.waiting.push(blocks),
            Some(_) | None => return Some(blocks),
        }
        self.recent += 1;
        None
    }

    /// Looks which snapshots have no reader any more: the oldest, the newest two, and of the others one a call.
    pub(super) fn look(&mut self) {
        while let Some(oldest) = self.published.front_mut() {
            if !is_unread(&mut oldest.snapshot) {
                break;
            }
            if let Some(oldest) = self.published.pop_front() {
                self.free.append(oldest.waiting);
                self.keep(oldest.snapshot, oldest.epoch);
            }
        }
        let count = self.published.len();
        self.next = if self.next + 1 < count {
            self.next + 1
        } else {
            1
        };
        for at in [count.wrapping_sub(1), count.wrapping_sub(2), self.next] {
            self.merge(at);
        }
    }

    /// Takes a share of the free blocks: twice what has come since the last publication, and some.
    pub(super) fn share(&mut self) -> impl Iterator<Item = Blocks> {
        let share = 2 * self.recent + LEAST_SHARE;
        let free = &mut self.free;
        (0..share).map_while(|_| free.pop())
    }

    /// Snapshots that are not let go yet.
    pub(super) fn snapshots(&self) -> usize {
        self.published.len()
    }

    /// Octets of the books themselves.
    pub(super) fn octets(&self) -> usize {
        let waiting = self.published.iter().map(|published| &published.waiting);
        let snapshots = self.published.iter().map(|published| &published.snapshot);
        self.published.capacity() * size_of::<Published>()
            + self.published.len() * size_of::<Snapshot>()
            + snapshots
                .filter_map(|snapshot| snapshot.few.as_deref())
                .map(size_of_val)
                .sum::<usize>()
            + waiting.chain([&self.free]).map(Pile::octets).sum::<usize>()
            + self.spare.octets()
    }

    /// Lets the snapshot at `at` go if it has no reader; what waits with it waits with the one before.
    fn merge(&mut self, at: usize) {
        let unread = self
            .published
            .get_mut(at)
            .is_some_and(|published| is_unread(&mut published.snapshot));
        if at == 0 || !unread {
            return;
        }
        if let Some(published) = self.published.remove(at)
            && let Some(before) = self.published.get_mut(at - 1)
        {
            for blocks in published.waiting.0.into_iter().flatten() {
                if blocks.epoch > before.epoch {
                    self.free.push(blocks);
                } else {
                    before.waiting.push(blocks);
                }
            }
            self.keep(published.snapshot, published.epoch);
        }
    }

    /// Keeps what can be used again of a snapshot that is let go.
    fn keep(&mut self, snapshot: Arc<Snapshot>, number: u64) {
        if let Some(snapshot) = Arc::into_inner(snapshot) {
            self.spare = Spare::of(snapshot, number);
        }
    }

    /// What is left of a snapshot that was let go, if there is any.
    pub(super) fn take_spare(&mut self) -> Spare {
        mem::take(&mut self.spare)
    }
}

/// Whether no reader has `snapshot` any more: what was replaced after it may then be written again.
fn is_unread(snapshot: &mut Arc<Snapshot>) -> bool {
    #[cfg(test)]
    if super::tests::hooks::careless() {
        return true;
    }
    Arc::get_mut(snapshot).is_some()
}

/// Blocks in pieces of at most [`PIECE`], so that none of them is ever copied to grow.
#[derive(Debug, Default)]
struct Pile(Vec<Vec<Blocks>>);

impl Pile {
    fn push(&mut self, blocks: Blocks) {
        match self.0.last_mut() {
            Some(piece) if piece.len() < PIECE => piece.push(blocks),
            Some(_) | None => self.0.push(Vec::from([blocks])),
        }
    }

    /// Small pieces are copied together, larger ones handed over.
    fn append(&mut self, other: Self) {
        for piece in other.0 {
            if piece.len() >= PIECE / 4 || self.0.is_empty() {
                self.0.push(piece);
            } else {
                for blocks in piece {
                    self.push(blocks);
                }
            }
        }
    }

    fn pop(&mut self) -> Option<Blocks> {
        loop {
            match self.0.last_mut()?.pop() {
                Some(blocks) => return Some(blocks),
                None => self.0.pop(),
            };
        }
    }

    fn octets(&self) -> usize {
        let pieces: usize = self.0.iter().map(Vec::capacity).sum();
        pieces * size_of::<Blocks>() + self.0.capacity() * size_of::<Vec<Blocks>>()
    }
}

/// Nodes in a piece: 16 KiB.
const PIECE: usize = 512;
/// Nodes to free beyond those that have come: some ten microseconds of work.
const LEAST_SHARE: usize = 256;
