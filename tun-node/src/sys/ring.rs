//! A ring of packets in memory that a program of BPF writes and one thread of this process reads.
//!
//! ```text
//! value of the map   | writers' line           | reader's line | data: RING_OCTETS, then room for one record |
//!                      HEAD FULL SUPER WOKEN     TAIL  STATE
//! record             | MARK u64 | LENGTH u32 | .. | packet | up to a multiple of RECORD_STEP octets
//! ```
//!
//! Positions count octets and never wrap; a record lies at its position modulo [`RING_OCTETS`], whole:
//! the last one of a round may end behind the data. Who writes claims room by a compare-and-exchange of
//! HEAD, looks at STATE *behind* that, writes the record, and says that it is there by writing its
//! position plus one to MARK. Where STATE has become one in which nothing may come, the record is left
//! [void](VOID) instead. The reader gives room back by TAIL.
//!
//! So after [`RingReader::close`], which writes STATE and then looks at HEAD, the reader sees all that
//! came; and a packet that comes while it sleeps finds that, and takes another way, which wakes it. The
//! state says from then on what HEAD was at that moment: records before it came before that packet.

use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::bpf::SharedMemory;

/// The position behind the last record that was claimed.
pub const HEAD: u32 = 0;
/// How many packets found no room.
pub const FULL: u32 = 8;
/// When a packet last kept to the device's queue because it is too long for the ring: nanoseconds of
/// the kernel's coarse monotonic time; zero for never.
pub const SUPER: u32 = 16;
/// When a packet was last sent by the device's queue to wake the reader, in the same time.
pub const WOKEN: u32 = 24;
/// The position before which all room was given back.
pub const TAIL: u32 = 64;
/// What may come: by its last bits ([`STATE_BITS`]) one of the next four.
pub const STATE: u32 = 72;
/// Which bits of the state say what may come. The others are a position.
pub const STATE_BITS: i32 = RECORD_STEP.cast_signed() - 1;
/// Nothing.
pub const SHUT: i32 = 0;
/// Packets: the reader looks.
pub const AWAKE: i32 = 1;
/// Packets: one that takes another way is waking the reader, from the position of the state on.
pub const WAKING: i32 = 2;
/// Nothing, until one packet was sent to wake the reader.
pub const ASLEEP: i32 = 3;
/// Where the data begin.
pub const DATA: u32 = 128;
/// Octets of the data: a power of two. While a worker waits for a CPU, which takes it up to some 20 ms,
/// the packets of that time are to have room.
pub const RING_OCTETS: u32 = 1 << 24;
/// Octets of a record before its packet.
pub const RECORD_HEADER: u32 = 16;
/// Where a record has its length, whose top bit is [`VOID`].
pub const LENGTH: u32 = 8;
/// Records begin at multiples of this, which is a line of the caches.
pub const RECORD_STEP: u32 = 64;
/// Octets of the longest packet.
pub const PACKET_MAX: u32 = 9216;
/// Of a length: the record has no packet.
pub const VOID: u32 = 1 << 31;
/// Octets behind the data for the end of a record.
const BEHIND: u32 = (RECORD_HEADER + PACKET_MAX).next_multiple_of(RECORD_STEP);
/// Octets of the value.
const VALUE_OCTETS: u32 = DATA + RING_OCTETS + BEHIND;

const _: () = assert!(RING_OCTETS.is_power_of_two());
const _: () = assert!(DATA.is_multiple_of(RECORD_STEP));

/// The memory, mapped for as long as it lives.
#[derive(Debug)]
pub struct RingMemory(SharedMemory);

// SAFETY: what it points to is mapped for as long as it lives, wherever that is; what is shared of it
// is only seen as atomic numbers, and octets of packets are copied out by the one reader, to whom they
// belong from their MARK on until he gives them back.
unsafe impl Send for RingMemory {}
// SAFETY: as above.
unsafe impl Sync for RingMemory {}

impl RingMemory {
    /// Makes an empty ring, which is shut.
    ///
    /// # Errors
    ///
    /// The kernel's: `EPERM` without `CAP_BPF`, `ENOMEM`.
    pub fn new() -> Result<Self> {
        Ok(Self(SharedMemory::new(VALUE_OCTETS)?))
    }

    /// Packets that found no room since the ring was made.
    #[must_use]
    pub fn full(&self) -> u64 {
        self.number(FULL).load(Ordering::Relaxed)
    }

    fn number(&self, at: u32) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at < DATA);
        // SAFETY: the place is a multiple of eight within the first `DATA` octets of a mapping that
        // begins with a page and lives as long as `self`; whoever else writes there does so with
        // aligned stores or atomic operations of 64 bits.
        unsafe { self.0.base().add(at as usize).cast().as_ref() }
    }

    /// Where the record of a position is, from the start of the mapping.
    const fn record(position: u64) -> usize {
        // What a mask of 24 bits leaves fits anything.
        #[allow(clippy::cast_possible_truncation, reason = "a mask of 24 bits")]
        let offset = position as u32 & (RING_OCTETS - RECORD_STEP);
        (DATA + offset) as usize
    }

    /// MARK and LENGTH of the record at a position.
    fn header(&self, position: u64) -> (&AtomicU64, &AtomicU32) {
        // SAFETY: a record begins at a multiple of `RECORD_STEP` within the data, more than
        // `RECORD_HEADER` octets before the end of the mapping, which lives as long as `self`; whoever
        // else writes there does so with aligned stores or atomic operations of these widths.
        unsafe {
            let record = self.0.base().add(Self::record(position));
            (
                record.cast().as_ref(),
                record.add(LENGTH as usize).cast().as_ref(),
            )
        }
    }
}

impl AsFd for RingMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The one who reads a ring.
#[derive(Debug)]
pub struct RingReader {
    memory: Arc<RingMemory>,
    tail: u64,
    /// HEAD as it was last seen.
    head: u64,
}

/// What is next in a ring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Next {
    /// A packet of so many octets, at the front of the room.
    Packet(usize),
    /// A record without a packet.
    Void,
    /// Nothing, or nothing that is finished.
    Nothing,
}

impl RingReader {
    /// The reader of a new ring.
    #[must_use]
    pub fn new(memory: RingMemory) -> Self {
        Self {
            memory: Arc::new(memory),
            tail: 0,
            head: 0,
        }
    }

    /// The memory.
    #[must_use]
    pub const fn memory(&self) -> &Arc<RingMemory> {
        &self.memory
    }

    /// Lets packets come, unless one has woken the reader since it last did so: whether it is open so.
    pub fn open_unless_woken(&mut self) -> bool {
        self.become_state(AWAKE).is_ok()
    }

    /// Lets packets come, and says before which position they came before the one that woke the reader,
    /// if one did.
    pub fn open(&mut self) -> Option<u64> {
        let state = self.memory.number(STATE);
        let mut woken = None;
        while let Err(seen) = self.become_state(AWAKE) {
            woken = Some(seen & !word(STATE_BITS));
            let order = (Ordering::SeqCst, Ordering::Relaxed);
            if state
                .compare_exchange(seen, word(AWAKE), order.0, order.1)
                .is_ok()
            {
                break;
            }
        }
        woken
    }

    /// Makes the state another one, unless a packet is waking the reader; the state then.
    fn become_state(&self, wanted: i32) -> std::result::Result<(), u64> {
        let state = self.memory.number(STATE);
        let mut seen = state.load(Ordering::Acquire);
        // Writing it takes the line from those who read it.
        while seen != word(wanted) {
            if seen & word(STATE_BITS) == word(WAKING) {
                return Err(seen);
            }
            let order = (Ordering::SeqCst, Ordering::Acquire);
            match state.compare_exchange(seen, word(wanted), order.0, order.1) {
                Ok(_) => break,
                Err(other) => seen = other,
            }
        }
        Ok(())
    }

    /// Lets no more packets come and says whether there are some. With `wakes` one that comes opens the
    /// ring again, and wakes the reader. `None`, and nothing is changed, where one is waking it already:
    /// only [`open`](Self::open) says what comes before that.
    pub fn close(&mut self, wakes: bool) -> Option<bool> {
        let closed = if wakes { ASLEEP } else { SHUT };
        self.become_state(closed).ok()?;
        // Before the look at HEAD: who has claimed room and not seen this is seen by it.
        fence(Ordering::SeqCst);
        Some(self.look())
    }

    /// Says whether there is something before a position, and looks no further than to that then. Where
    /// there is nothing, what the last look saw stays.
    pub fn look_before(&mut self, position: u64) -> bool {
        if position <= self.tail {
            return false;
        }
        // A position of the future would be an error of the program.
        self.look();
        self.head = self.head.min(position);
        !self.is_done()
    }

    /// Looks what has come, and says whether there is something.
    pub fn look(&mut self) -> bool {
        self.head = self.memory.number(HEAD).load(Ordering::Acquire);
        !self.is_done()
    }

    /// Whether all that the last look saw was taken.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.head == self.tail
    }

    /// Copies the next packet of those that the last look saw to the front of `room`, which is to have
    /// [`PACKET_MAX`] octets: of a longer packet the rest is lost.
    pub fn take(&mut self, room: &mut [u8]) -> Next {
        if self.is_done() {
            return Next::Nothing;
        }
        let (mark, length) = self.memory.header(self.tail);
        if mark.load(Ordering::Acquire) != self.tail.wrapping_add(1) {
            return Next::Nothing;
        }
        let length = length.load(Ordering::Relaxed);
        let octets = (length & !VOID).min(PACKET_MAX);
        let record = (RECORD_HEADER + octets).next_multiple_of(RECORD_STEP);
        let from = RingMemory::record(self.tail) + RECORD_HEADER as usize;
        self.tail = self.tail.wrapping_add(u64::from(record));
        if length & VOID != 0 {
            return Next::Void;
        }
        self.ask_for_next(record);
        let octets = (octets as usize).min(room.len());
        // SAFETY: from `from` on the mapping has `PACKET_MAX` octets, since a record begins within the
        // data and `BEHIND` octets follow them; the room has `octets`. They do not overlap, one is the
        // map's memory and the other ours, and nobody writes the record before its room is given back.
        unsafe {
            let from = self.memory.0.base().add(from).as_ptr();
            std::ptr::copy_nonoverlapping(from, room.as_mut_ptr(), octets);
        }
        Next::Packet(octets)
    }

    /// Asks for the lines of the next record, if it is as long as the one before. They come from the
    /// cache of another CPU, all at once in place of one after the other.
    fn ask_for_next(&self, octets: u32) {
        if self.is_done() {
            return;
        }
        let record = RingMemory::record(self.tail);
        for line in (0..octets as usize).step_by(RECORD_STEP as usize) {
            prefetch(self.memory.0.base().as_ptr().wrapping_add(record + line));
        }
    }

    /// Gives the room of all that was taken back.
    pub fn give_back(&self) {
        self.memory.number(TAIL).store(self.tail, Ordering::Release);
    }
}

#[cfg(target_arch = "x86_64")]
fn prefetch(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: SSE is part of the architecture; a prefetch of any address has no effect but on caches.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[cfg(not(target_arch = "x86_64"))]
const fn prefetch(_: *const u8) {}

fn word(state: i32) -> u64 {
    u64::from(state.unsigned_abs())
}

#[cfg(test)]
#[path = "ring_tests.rs"]
pub mod tests;
