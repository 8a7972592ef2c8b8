//! The ring against writers in Rust that do what the program does, on several threads at once.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;

use super::*;

const BITS: u64 = RECORD_STEP as u64 - 1;

/// A reader of fresh memory, as no privilege is needed for.
pub(crate) fn ring() -> (RingReader, Writer) {
    let reader = RingReader::new(RingMemory(
        SharedMemory::of_a_file(VALUE_OCTETS).expect("a file"),
    ));
    let writer = Writer(Arc::clone(reader.memory()));
    (reader, writer)
}

/// Writes to a ring as the program does; another of its kind may write at the same time.
#[derive(Clone, Debug)]
pub(crate) struct Writer(Arc<RingMemory>);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wrote {
    Ring,
    /// By the device's queue; whether it wakes the reader.
    Queue {
        wakes: bool,
    },
    Full,
}

impl Writer {
    pub(crate) fn write(&self, packet: &[u8]) -> Wrote {
        let state = |order| self.0.number(STATE).load(order);
        match state(Ordering::Relaxed) & BITS {
            it if it == word(AWAKE) || it == word(WAKING) => {}
            it if it == word(ASLEEP) => match self.wake() {
                it if it == word(ASLEEP) => return Wrote::Queue { wakes: true },
                it if it == word(SHUT) => return Wrote::Queue { wakes: false },
                _ => {}
            },
            _ => return Wrote::Queue { wakes: false },
        }
        let length = u32::try_from(packet.len()).expect("short");
        let octets = (RECORD_HEADER + length).next_multiple_of(RECORD_STEP);
        let position = loop {
            let head = self.0.number(HEAD).load(Ordering::Relaxed);
            let end = head + u64::from(octets);
            let tail = self.0.number(TAIL).load(Ordering::Relaxed);
            if end.wrapping_sub(tail) > RING_OCTETS.into() {
                self.0.number(FULL).fetch_add(1, Ordering::Relaxed);
                return Wrote::Full;
            }
            let order = (Ordering::SeqCst, Ordering::Relaxed);
            let claimed = self.0.number(HEAD);
            if claimed
                .compare_exchange(head, end, order.0, order.1)
                .is_ok()
            {
                break head;
            }
        };
        let (mark, of_record) = self.0.header(position);
        let now = state(Ordering::SeqCst) & BITS;
        let comes = now == word(AWAKE) || now == word(WAKING);
        if comes {
            let at = RingMemory::record(position) + RECORD_HEADER as usize;
            // SAFETY: the record was claimed, and has room for the packet.
            unsafe {
                let to = self.0.0.base().add(at).as_ptr();
                std::ptr::copy_nonoverlapping(packet.as_ptr(), to, packet.len());
            }
        }
        let void = if comes { 0 } else { VOID };
        of_record.store(length | void, Ordering::Relaxed);
        mark.store(position + 1, Ordering::Release);
        match comes {
            true => Wrote::Ring,
            false => {
                let found = self.wake();
                if found == word(AWAKE) {
                    self.waking_from_here(found);
                }
                let wakes = found == word(ASLEEP);
                Wrote::Queue { wakes }
            }
        }
    }

    /// The state that was found.
    fn wake(&self) -> u64 {
        self.waking_from_here(word(ASLEEP))
    }

    fn waking_from_here(&self, from: u64) -> u64 {
        let head = self.0.number(HEAD).load(Ordering::Relaxed);
        let to = head | word(WAKING);
        let order = (Ordering::SeqCst, Ordering::Relaxed);
        let state = self.0.number(STATE);
        let found = state.compare_exchange(from, to, order.0, order.1);
        found.unwrap_or_else(|other| other)
    }
}

/// What the last look saw in the ring, in order.
fn all(reader: &mut RingReader) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut room = vec![0; PACKET_MAX as usize];
    while !reader.is_done() {
        match reader.take(&mut room) {
            Next::Packet(octets) => packets.push(room[..octets].to_vec()),
            Next::Void => {}
            Next::Nothing => break,
        }
    }
    reader.give_back();
    packets
}

#[test]
fn packets_of_all_lengths_come_out_as_they_went_in_round_after_round() {
    let (mut reader, writer) = ring();
    reader.open();
    let longest = PACKET_MAX as usize;
    let mut octets: u64 = 0;
    let mut length = 20;
    // More than three rounds, with records across the end of each.
    while octets < 3 * u64::from(RING_OCTETS) + 12345 {
        let packets: Vec<Vec<u8>> = (0..9)
            .map(|number| {
                length = (length * 7 + 13 * number) % (longest - 20) + 20;
                vec![u8::try_from(length % 251).unwrap(); length]
            })
            .collect();
        for packet in &packets {
            assert_eq!(writer.write(packet), Wrote::Ring);
            octets += packet.len() as u64;
        }
        assert!(reader.look());
        assert_eq!(all(&mut reader), packets);
    }
}

#[test]
fn a_full_ring_loses_what_comes_and_nothing_that_is_in_it() {
    let (mut reader, writer) = ring();
    reader.open();
    let mut written = 0_u32;
    while writer.write(&written.to_be_bytes()) == Wrote::Ring {
        written += 1;
    }
    assert_eq!(written, RING_OCTETS / RECORD_STEP);
    assert_eq!(writer.write(&[0; 100]), Wrote::Full);
    assert_eq!(reader.memory().full(), 2);
    let expected: Vec<Vec<u8>> = (0..written).map(|n| n.to_be_bytes().to_vec()).collect();
    assert!(reader.look());
    assert_eq!(all(&mut reader), expected);
    assert_eq!(writer.write(&[7; 100]), Wrote::Ring);
    assert!(reader.look());
    assert_eq!(all(&mut reader), [vec![7; 100]]);
}

#[test]
fn of_those_that_find_a_sleeping_reader_the_first_alone_takes_the_queue() {
    let (mut reader, writer) = ring();
    assert_eq!(writer.write(&[1]), Wrote::Queue { wakes: false }, "shut");
    reader.open();
    assert_eq!(writer.write(&[2]), Wrote::Ring);
    assert_eq!(reader.close(true), Some(true), "one is in it");
    assert_eq!(reader.open(), None);
    assert_eq!(all(&mut reader), [[2]]);
    assert_eq!(reader.close(true), Some(false));
    assert_eq!(writer.write(&[3]), Wrote::Queue { wakes: true });
    assert_eq!(writer.write(&[4]), Wrote::Ring);
    assert_eq!(writer.write(&[5]), Wrote::Ring);
    assert_eq!(reader.close(true), None, "one wakes it");
    let position = reader.open().expect("one woke it");
    assert!(!reader.look_before(position), "nothing came before that");
    assert!(reader.look());
    assert_eq!(all(&mut reader), [[4], [5]]);
    assert_eq!(reader.close(false), Some(false));
    assert_eq!(writer.write(&[6]), Wrote::Queue { wakes: false }, "shut");
    assert!(!reader.look());
}

#[test]
fn a_length_that_is_none_harms_nothing() {
    let (mut reader, _) = ring();
    let (mark, length) = reader.memory().header(0);
    length.store(VOID - 1, Ordering::Relaxed);
    mark.store(1, Ordering::Release);
    let claimed = u64::from((RECORD_HEADER + PACKET_MAX).next_multiple_of(RECORD_STEP));
    reader
        .memory()
        .number(HEAD)
        .store(claimed, Ordering::Release);
    assert!(reader.look());
    let mut room = [0; 128];
    assert_eq!(reader.take(&mut room), Next::Packet(128));
    assert!(reader.is_done());
}

/// A worker that sleeps whenever it finds nothing, and writers that never wait: nothing is lost, nothing
/// is left behind by a sleeping reader, and each writer's packets are carried in their order.
#[test]
fn nothing_stays_behind_and_order_is_kept_while_the_reader_comes_and_goes() {
    let (mut reader, writer) = ring();
    // The device's queue, whose packets wake the reader.
    let (queue, queued) = crossbeam_channel::unbounded::<Vec<u8>>();
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let (writer, queue) = (writer.clone(), queue.clone());
            thread::spawn(move || write_all(&writer, number, &queue))
        })
        .collect();
    drop(queue);
    let mut carried = Carried::default();
    let (mut slept, mut woken_late) = (0_u32, 0_u32);
    let mut in_hand = None;
    loop {
        // As a worker's turn begins: what came before the packet that woke it, then the queue until it
        // is empty, then what the ring had before that.
        if let Some(position) = reader.open() {
            while reader.look_before(position) {
                woken_late += 1;
                carried.all(all(&mut reader));
            }
        }
        reader.look();
        carried.all(in_hand.take());
        carried.all(queued.try_iter());
        carried.all(all(&mut reader));
        if reader.look() || reader.close(true) != Some(false) {
            continue;
        }
        slept += 1;
        match queued.recv_timeout(Duration::from_secs(20)) {
            Ok(packet) => in_hand = Some(packet),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("nobody wakes the reader"),
        }
    }
    for writer in writers {
        writer.join().unwrap();
    }
    reader.look();
    carried.all(all(&mut reader));
    assert_eq!(carried.next, [PACKETS; WRITERS]);
    assert!(slept > 0, "{woken_late}");
}

const WRITERS: usize = 2;
const PACKETS: u32 = 60_000;

fn write_all(writer: &Writer, number: usize, queue: &crossbeam_channel::Sender<Vec<u8>>) {
    for count in 0..PACKETS {
        let mut packet = vec![u8::try_from(number).unwrap()];
        packet.extend(count.to_be_bytes());
        packet.resize(5 + (count as usize * 37) % 1400, 0);
        loop {
            match writer.write(&packet) {
                Wrote::Ring => break,
                Wrote::Queue { .. } => {
                    queue.send(packet).unwrap();
                    break;
                }
                Wrote::Full => thread::yield_now(),
            }
        }
        if count % 1000 == 0 {
            thread::sleep(Duration::from_micros(100));
        }
    }
}

#[derive(Default)]
struct Carried {
    /// The number of the next packet of each writer.
    next: [u32; WRITERS],
}

impl Carried {
    fn all(&mut self, packets: impl IntoIterator<Item = Vec<u8>>) {
        for packet in packets {
            let writer = usize::from(packet[0]);
            let next = &mut self.next[writer];
            assert_eq!(packet[1..5], next.to_be_bytes(), "of writer {writer}");
            *next += 1;
        }
    }
}
