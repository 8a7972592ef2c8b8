//! Whose turn it is at the device: its queue, or the ring beside it.
//!
//! While the ring is open datagrams come by it alone, and those in the device's queue were there before:
//! the queue comes first, until it is empty, and then what the ring had before that. Where bulk fills the
//! queue that may take long, so that after [`PATIENCE`] turns both are served. What was in the ring when
//! a packet came to the queue to wake the worker comes before the queue.

use warren_core::batch::{Batch, Frame, Link};
use warren_core::gso::pending_checksum;
use warren_core::packet::Packet;

use crate::counters::DeviceCounters;
use crate::ring::{Next, Ring};

/// What a worker has of the ring of its device, if there is one.
#[derive(Debug)]
pub(super) struct Intake {
    ring: Option<Ring>,
    /// Whether what the ring had comes before the device's queue.
    first: bool,
    /// Whether the ring was closed because packets are not to come by it at present, or was never there.
    is_shut: bool,
    /// Turns since the device's queue was last empty.
    turns: u32,
}

impl Intake {
    pub(super) const fn new(ring: Option<Ring>) -> Self {
        let is_shut = ring.is_none();
        Self {
            ring,
            first: false,
            is_shut,
            turns: 0,
        }
    }

    /// Whether the ring has something, as far as can be seen.
    pub(super) fn has_work(&mut self) -> bool {
        self.first || self.ring.as_mut().is_some_and(|ring| ring.reader().look())
    }

    /// Whether the worker may sleep: the ring has nothing, and is closed then.
    pub(super) fn may_sleep(&mut self) -> bool {
        // To close it has those who write it wake the worker, so it is looked at before.
        !self.has_work() && !self.ring.as_mut().is_some_and(Ring::close)
    }

    /// Begins a turn, and says whether the ring comes first.
    pub(super) fn begin(&mut self) -> bool {
        let Some(ring) = &mut self.ring else {
            return false;
        };
        if self.first {
            return true;
        }
        if ring.is_to_be_shut() {
            if !self.is_shut {
                self.is_shut = true;
                self.first = ring.close();
            }
            return self.first;
        }
        self.is_shut = false;
        let reader = ring.reader();
        if let Some(position) = reader.open() {
            self.first = reader.look_before(position);
        }
        if !self.first {
            // What has come so far: what came to the queue before that is found there now.
            reader.look();
        }
        self.first
    }

    /// Whether the ring comes next, where the device's queue may have more or is empty: with what had
    /// come when the turn began.
    pub(super) fn is_next(&mut self, has_more: bool) -> bool {
        self.turns = if has_more { self.turns + 1 } else { 0 };
        let has_work = self
            .ring
            .as_mut()
            .is_some_and(|ring| !ring.reader().is_done());
        has_work && (!has_more || self.turns > PATIENCE)
    }

    /// Reads up to `limit` packets into `batch`, which must have room for them.
    pub(super) fn read(&mut self, batch: &mut Batch, limit: usize, counters: &mut DeviceCounters) {
        let Some(ring) = &mut self.ring else { return };
        let reader = ring.reader();
        for _ in 0..limit {
            let Some(room) = batch.vacancy() else { break };
            let octets = match reader.take(room) {
                Next::Packet(octets) => octets,
                Next::Void => continue,
                Next::Nothing => break,
            };
            let Some(mut frame) = batch.commit(octets, Link::LOCAL) else {
                break;
            };
            finish_checksum(&mut frame);
            counters.read.count(octets);
            counters.read_ring += 1;
        }
        reader.give_back();
        self.first &= !reader.is_done();
    }

    /// Counts what found no room.
    pub(super) fn count(&self, counters: &mut DeviceCounters) {
        counters.ring_full = self.ring.as_ref().map_or(0, Ring::full);
    }
}

/// Finishes a checksum that was left to the device, which a program is not told.
fn finish_checksum(frame: &mut Frame<'_>) {
    if let Ok(read) = Packet::parse(frame.bytes())
        && let Some(pending) = pending_checksum(frame.bytes(), &read)
    {
        // It was found within the packet.
        let _ = pending.complete(frame.bytes_mut());
    }
}

/// Turns of the device's queue, each a super-packet or a batch, before the ring is served beside it.
const PATIENCE: u32 = 64;
