//! Whose turn it is at the device: its queue, or the ring beside it.
//!
//! While the ring is open datagrams come by it alone, and those in the device's queue were there before:
//! the queue comes first, until it is empty, and then what the ring had before the worker asked for that.
//! Where bulk fills the queue that may take long, so that after [`PATIENCE`] turns both are served. What
//! was in the ring when a packet came to the queue to wake the worker comes before the queue.

use std::time::{Duration, Instant};

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
    /// Since when it waits for the packet that wakes it, if it does.
    waits_since: Option<Instant>,
}

impl Intake {
    pub(super) const fn new(ring: Option<Ring>) -> Self {
        let is_shut = ring.is_none();
        Self {
            ring,
            first: false,
            is_shut,
            turns: 0,
            waits_since: None,
        }
    }

    /// Looks what has come by the ring, which goes out in this turn or a later one. Only before the worker
    /// asks whether the device has something: what went to the queue before that is found there then.
    pub(super) fn look(&mut self) {
        if let Some(ring) = &mut self.ring
            && !self.first
        {
            ring.reader().look();
        }
    }

    /// Whether the last look saw something.
    pub(super) fn has_work(&mut self) -> bool {
        let ring = self.ring.as_mut();
        self.first || ring.is_some_and(|ring| !ring.reader().is_done())
    }

    /// Whether the worker may sleep: the ring has nothing, and is closed then.
    pub(super) fn may_sleep(&mut self) -> bool {
        // To close it has those who write it wake the worker.
        !self.has_work() && self.close()
    }

    /// Closes the ring, and says whether that was done and it has nothing.
    fn close(&mut self) -> bool {
        let Some(ring) = &mut self.ring else {
            return true;
        };
        let shuts = ring.is_to_be_shut();
        let Some(has_some) = ring.reader().close(!shuts) else {
            return false;
        };
        self.is_shut = shuts;
        // From now on all take the queue, behind what is in the ring.
        self.first = shuts && has_some;
        !has_some
    }

    /// Begins a turn, and says whether the ring comes first. `has_more` is whether the device's queue may
    /// have something.
    pub(super) fn begin(&mut self, has_more: bool) -> bool {
        if self.first {
            return true;
        }
        if self.ring.as_ref().is_none_or(Ring::is_to_be_shut) {
            // Not while the queue may have what came before the ring's.
            if !self.is_shut && (!has_more || self.turns > PATIENCE) {
                self.close();
            }
            if self.is_shut {
                return self.first;
            }
        }
        self.is_shut = false;
        let Some(ring) = &mut self.ring else {
            return false;
        };
        let reader = ring.reader();
        if !has_more {
            if reader.open_unless_woken() {
                self.waits_since = None;
                return false;
            }
            // Something else woke the worker, and the packet that does is on its way to the queue. Until it
            // is there the ring stays as it is: closed and opened again, it would tell of a later packet,
            // with what is behind this one before that.
            let since = *self.waits_since.get_or_insert_with(Instant::now);
            if since.elapsed() < WAKING_MAX {
                return false;
            }
        }
        self.waits_since = None;
        if let Some(position) = reader.open() {
            // What came behind that is for the next look.
            self.first = reader.look_before(position);
        }
        self.first
    }

    /// Whether the ring comes next, where the device's queue may have more or is empty: with what the last
    /// look saw.
    pub(super) fn is_next(&mut self, has_more: bool) -> bool {
        self.turns = if has_more { self.turns + 1 } else { 0 };
        self.has_work() && (!has_more || self.turns > PATIENCE)
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

/// For how long the packet that wakes a worker may be on its way; then it was lost. It takes a microsecond,
/// during which the worker looks again and again.
const WAKING_MAX: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ring::tests::{Writer, Wrote, ring};

    const BY_QUEUE: Wrote = Wrote::Queue { wakes: true };

    /// The intake of a worker that sleeps.
    fn asleep() -> (Intake, Writer) {
        let (reader, writer) = ring();
        let mut intake = Intake::new(Some(Ring::of_a_reader(reader)));
        assert!(!intake.begin(false));
        intake.look();
        assert!(intake.may_sleep());
        (intake, writer)
    }

    /// How many octets each packet has that the ring hands over in this turn.
    fn read(intake: &mut Intake) -> Vec<usize> {
        let mut batch = Batch::new(8, 2048);
        intake.read(&mut batch, 8, &mut DeviceCounters::default());
        batch.frames().map(|frame| frame.bytes.len()).collect()
    }

    #[test]
    fn a_worker_that_a_command_woke_does_not_carry_what_follows_a_packet_before_it() {
        let (mut intake, writer) = asleep();
        // The device had nothing when the worker asked; now both come, before its turn begins.
        assert_eq!(writer.write(&[0; 21]), BY_QUEUE);
        assert_eq!(writer.write(&[0; 22]), Wrote::Ring);
        assert!(!intake.begin(false));
        assert!(!intake.is_next(false), "the queue has one before it");
        // So the worker asks again, and finds that, while more come.
        intake.look();
        assert!(!intake.may_sleep());
        assert_eq!(writer.write(&[0; 23]), Wrote::Ring);
        assert!(!intake.begin(true));
        assert!(!intake.is_next(true), "the queue has more");
        assert!(intake.is_next(false));
        assert_eq!(read(&mut intake), [22]);
        intake.look();
        assert!(!intake.begin(false));
        assert!(intake.is_next(false));
        assert_eq!(read(&mut intake), [23]);
    }

    #[test]
    fn a_worker_that_a_command_woke_keeps_the_ring_open_until_what_wakes_it_is_there() {
        let (mut intake, writer) = asleep();
        assert_eq!(writer.write(&[0; 21]), BY_QUEUE);
        assert!(!intake.begin(false));
        intake.look();
        assert_eq!(writer.write(&[0; 22]), Wrote::Ring);
        assert!(!intake.may_sleep());
        // By the queue it would be behind the first, and nothing would say that another is between them.
        assert_eq!(writer.write(&[0; 23]), Wrote::Ring);
        assert!(!intake.begin(true));
        intake.look();
        assert!(!intake.begin(false));
        assert!(intake.is_next(false));
        assert_eq!(read(&mut intake), [22, 23]);
    }

    #[test]
    fn a_worker_does_not_wait_for_ever_for_a_packet_that_was_lost() {
        let (mut intake, writer) = asleep();
        assert_eq!(writer.write(&[0; 21]), BY_QUEUE);
        assert_eq!(writer.write(&[0; 22]), Wrote::Ring);
        assert!(!intake.begin(false));
        assert!(!intake.may_sleep());
        std::thread::sleep(WAKING_MAX);
        intake.look();
        assert!(!intake.begin(false));
        assert!(intake.is_next(false));
        assert_eq!(read(&mut intake), [22]);
        intake.look();
        assert!(intake.may_sleep());
    }

    #[test]
    fn what_the_ring_had_before_a_packet_woke_the_worker_comes_first() {
        let (mut intake, writer) = asleep();
        assert!(!intake.begin(false));
        assert_eq!(writer.write(&[0; 21]), Wrote::Ring);
        // It comes between the worker's look and the end of the ring.
        assert!(!intake.may_sleep());
        assert_eq!(writer.write(&[0; 22]), BY_QUEUE);
        assert_eq!(writer.write(&[0; 23]), Wrote::Ring);
        assert!(intake.begin(true));
        assert_eq!(read(&mut intake), [21]);
        intake.look();
        assert!(!intake.begin(true), "now the queue");
        assert!(intake.is_next(false));
        assert_eq!(read(&mut intake), [23]);
    }

    #[test]
    fn a_ring_is_not_shut_before_the_queue_has_what_wakes_the_worker() {
        let (mut intake, writer) = asleep();
        assert_eq!(writer.write(&[0; 21]), BY_QUEUE);
        assert_eq!(writer.write(&[0; 22]), Wrote::Ring);
        intake.ring.as_ref().unwrap().turn(false);
        assert!(!intake.begin(false));
        assert!(!intake.is_next(false));
        intake.look();
        assert!(!intake.begin(true), "the queue has one before it");
        assert!(intake.is_next(false));
        assert_eq!(read(&mut intake), [22]);
        assert_eq!(writer.write(&[0; 23]), Wrote::Ring);
        assert!(intake.begin(false), "the queue is empty: it is shut");
        assert_eq!(writer.write(&[0; 24]), Wrote::Queue { wakes: false });
        assert_eq!(read(&mut intake), [23]);
        intake.look();
        assert!(intake.may_sleep());
        intake.ring.as_ref().unwrap().turn(true);
        assert!(!intake.begin(true));
        assert_eq!(writer.write(&[0; 25]), Wrote::Ring);
    }
}
