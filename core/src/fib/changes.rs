//! Which routes of a table with windows changed last, for a worker's copy of it that follows (`strides/`).
//!
//! The writer notes each change in a ring; a snapshot says how many had been noted when it was made. Whoever follows from
//! one snapshot to another reads what was noted in between, while the writer may already note over it: it counts a note
//! before it writes it, so that a reader who asks for the count afterwards learns whether what he read was still there.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use super::address::prefix_mask;
use super::hashed::halves;

/// The last changes of a table, some sixteenth as many as it has routes.
#[derive(Debug)]
pub(super) struct Changes {
    /// How many changes were noted, or are about to be.
    count: AtomicU64,
    /// How many the last snapshot has.
    published: AtomicU64,
    ring: Box<[[AtomicU64; 2]]>,
}

/// The changes up to a snapshot.
#[derive(Clone, Debug)]
pub(super) struct Noted {
    changes: Arc<Changes>,
    count: u64,
}

/// A change of the route for one prefix.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Change {
    /// The first 48 bits, and the length in the lowest eight; all lengths above 48 are one.
    prefix: u64,
    /// What the change made of the slots of the prefix (`strides/follow.rs`), if bit 16 says that that is known.
    says: u64,
}

impl Change {
    pub(super) fn new(key: u128, len: u8, says: Option<u16>) -> Self {
        let len = len.min(LONG);
        let (high, _) = halves(key & prefix_mask(len.min(48)));
        Self {
            prefix: high | u64::from(len),
            says: says.map_or(0, |says| KNOWN | u64::from(says)),
        }
    }

    /// The prefix, as much of it as is noted.
    pub(super) const fn key(self) -> u128 {
        ((self.prefix & !0xffff) as u128) << 64
    }

    /// Its length, at most 49.
    pub(super) const fn len(self) -> u8 {
        (self.prefix & 0xff) as u8
    }

    pub(super) fn says(self) -> Option<u16> {
        (self.says & KNOWN != 0).then_some((self.says & 0xffff) as u16)
    }
}

impl Changes {
    /// For a table of so many routes.
    pub(super) fn of(routes: usize) -> Self {
        let room = (routes / ROUTES_A_CHANGE).next_power_of_two();
        Self {
            count: AtomicU64::new(0),
            published: AtomicU64::new(0),
            ring: (0..room.clamp(LEAST, MOST))
                .map(|_| [const { AtomicU64::new(0) }; 2])
                .collect(),
        }
    }

    /// Whether a table of so many routes should have four times the room.
    pub(super) fn are_few_for(&self, routes: usize) -> bool {
        let room = self.ring.len();
        room < MOST && routes / ROUTES_A_CHANGE > 2 * room
    }

    /// The place of a number in the ring.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "below the length of a list"
    )]
    fn place(&self, number: u64) -> Option<&[AtomicU64; 2]> {
        self.ring
            .get((number & (self.ring.len() as u64 - 1)) as usize)
    }

    /// Notes one more; only the writer does. One that is of the same prefix as the last takes its place, if no snapshot
    /// has that.
    pub(super) fn note(&self, change: Change) {
        let count = self.count.load(Ordering::Relaxed);
        let last = self.place(count.wrapping_sub(1));
        let again = count > self.published.load(Ordering::Relaxed)
            && last.is_some_and(|[prefix, _]| prefix.load(Ordering::Relaxed) == change.prefix);
        let number = if again { count - 1 } else { count };
        self.count.store(number + 1, Ordering::Relaxed);
        // Who reads the note below has the count above, too.
        fence(Ordering::Release);
        if let Some([prefix, says]) = self.place(number) {
            prefix.store(change.prefix, Ordering::Relaxed);
            says.store(change.says, Ordering::Relaxed);
        }
    }

    /// What a snapshot gets.
    pub(super) fn noted(self: &Arc<Self>) -> Noted {
        let count = self.count.load(Ordering::Relaxed);
        self.published.store(count, Ordering::Relaxed);
        Noted {
            changes: Arc::clone(self),
            count,
        }
    }

    pub(super) fn octets(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.ring)
    }
}

impl Noted {
    /// Gives `each` in turn what changed since `before`; whether that was all: not if `before` is of another table or of
    /// a later time, or if too much has changed since.
    pub(super) fn since(&self, before: &Self, mut each: impl FnMut(&[Change])) -> bool {
        let many = self.count.wrapping_sub(before.count);
        let kept = self.changes.ring.len() as u64;
        if !Arc::ptr_eq(&self.changes, &before.changes) || many > kept {
            return false;
        }
        let mut at = before.count;
        while at < self.count {
            let mut some = [Change::default(); AT_ONCE];
            let mut count = 0;
            for (change, number) in some.iter_mut().zip(at..self.count) {
                if let Some([prefix, says]) = self.changes.place(number) {
                    change.prefix = prefix.load(Ordering::Relaxed);
                    change.says = says.load(Ordering::Relaxed);
                }
                count += 1;
            }
            each(some.get(..count).unwrap_or_default());
            at += count as u64;
        }
        fence(Ordering::Acquire);
        let now = self.changes.count.load(Ordering::Relaxed);
        now.wrapping_sub(before.count) <= kept
    }
}

/// The bit of what a change says that says that it is known.
const KNOWN: u64 = 1 << 16;
/// What is noted of a length that is above 48.
pub(super) const LONG: u8 = 49;
/// Routes for each change that is kept: to follow more of them takes as long as a new copy.
const ROUTES_A_CHANGE: usize = 16;
/// How many are kept, at least and at most; powers of two.
const LEAST: usize = 256;
const MOST: usize = 1 << 13;
/// Changes that are handed over at once.
pub(super) const AT_ONCE: usize = 32;

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::vec::Vec;
    use core::sync::atomic::AtomicBool;

    use super::*;

    const ROUTES: usize = 1 << 14;
    const NOTED: usize = ROUTES / ROUTES_A_CHANGE;

    fn change(number: u64) -> Change {
        Change::new(u128::from(number) << 80, 48, Some((number & 0x7fff) as u16))
    }

    #[test]
    fn a_change_is_its_prefix_up_to_48_bits() {
        let key = 0x2001_0db8_1234_5678_9abc_u128 << 48;
        let noted = Change::new(key, 40, None);
        assert_eq!(
            (noted.key(), noted.len()),
            (0x0020_010d_b812_u128 << 88, 40)
        );
        let noted = Change::new(key, 64, Some(0));
        assert_eq!(
            (noted.key(), noted.len()),
            (0x2001_0db8_1234_u128 << 80, LONG)
        );
        assert_eq!(noted.says(), Some(0));
        let noted = Change::new(u128::MAX, 0, None);
        assert_eq!((noted.key(), noted.len(), noted.says()), (0, 0, None));
    }

    #[test]
    fn a_small_table_keeps_few_and_a_growing_one_more() {
        for (routes, room) in [
            (0, 256),
            (1_024, 256),
            (5_000, 512),
            (16_384, 1_024),
            (1 << 20, 8_192),
        ] {
            let changes = Changes::of(routes);
            assert_eq!(changes.ring.len(), room);
            assert!(!changes.are_few_for(routes));
            assert_eq!(changes.are_few_for(usize::MAX), room < MOST);
        }
        assert!(!Changes::of(0).are_few_for(8_192));
        assert!(Changes::of(0).are_few_for(8_208));
    }

    #[test]
    fn all_that_was_noted_in_between_is_given_or_it_is_said_that_it_is_not() {
        let changes = Arc::new(Changes::of(ROUTES));
        let mut noted = alloc::vec![changes.noted()];
        for number in 0..3 * NOTED as u64 {
            changes.note(change(number));
            if number % 100 == 99 {
                noted.push(changes.noted());
            }
        }
        let newest = noted.last().unwrap();
        for before in &noted {
            let mut given = Vec::new();
            let whole = newest.since(before, |some| given.extend(some.iter().copied()));
            let kept = newest.count - before.count <= NOTED as u64;
            // What has been noted after the newest snapshot may have taken the place of the oldest.
            let there = 3 * NOTED as u64 - before.count <= NOTED as u64;
            assert_eq!(whole, kept && there);
            if whole {
                assert!(
                    given
                        .into_iter()
                        .eq((before.count..newest.count).map(change))
                );
            }
            assert!(before.count == newest.count || !before.since(newest, |_| ()));
        }
        assert!(
            !Arc::new(Changes::of(ROUTES))
                .noted()
                .since(&noted[0], |_| ())
        );
    }

    #[test]
    fn a_reader_knows_when_the_writer_has_been_round() {
        let changes = Arc::new(Changes::of(ROUTES));
        let done = AtomicBool::new(false);
        let (mut whole, mut given_up) = (0, 0);
        std::thread::scope(|scope| {
            let writer = Arc::clone(&changes);
            scope.spawn(|| {
                let writer = writer;
                for number in 0..40 * NOTED as u64 {
                    writer.note(change(number));
                }
                done.store(true, Ordering::Release);
            });
            let mut before = changes.noted();
            while !done.load(Ordering::Acquire) || given_up == 0 {
                // All up to this count was written before it: only the last one may not be.
                let mut now = changes.noted();
                now.count = now.count.saturating_sub(1).max(before.count);
                let mut right = true;
                let mut next = before.count;
                let all = now.since(&before, |some| {
                    for given in some {
                        right &= *given == change(next);
                        next += 1;
                    }
                });
                assert!(!all || right, "from {} to {}", before.count, now.count);
                whole += u32::from(all);
                given_up += u32::from(!all);
                if done.load(Ordering::Acquire) {
                    // From the very first on there is too much by now.
                    before = Noted {
                        changes: Arc::clone(&changes),
                        count: 0,
                    };
                } else {
                    before = now;
                }
            }
        });
        assert!(whole > 0 && given_up > 0, "{whole} {given_up}");
    }
}
