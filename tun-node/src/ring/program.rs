//! The program at the egress of the device, which fills the ring.

use std::os::fd::BorrowedFd;

use crate::assembler::Operation::{Add, And, Or, Subtract};
use crate::assembler::Width::{Byte, Double, Half, Word};
use crate::assembler::{Assembler, Label, R0, R1, R2, R3, R4, R6, R7, R8, R9, When};
use crate::sys::bpf::Instruction;
use crate::sys::bpf::abi::{
    COARSE_TIME, LOAD_BYTES, NEXT, REDIRECT, SKB_DATA, SKB_DATA_END, SKB_GSO_SIZE, SKB_LEN,
    SKB_PROTOCOL,
};
use crate::sys::ring;

/// Puts datagrams into the ring in `memory` while it is open. All else, and what comes while it is
/// closed, goes on to the device.
///
/// R6 is the context, R7 the octets of the packet; R8 the start of the value, then the record; R9 the
/// record's position.
pub(super) fn egress(memory: BorrowedFd<'_>) -> Vec<Instruction> {
    let mut a = Assembler::default();
    let next = a.label();
    a.copy(R6, R1);
    datagrams_only(&mut a, next);
    a.load(Word, R7, R6, SKB_LEN);
    a.set_value(R8, memory, 0);
    keep_order(&mut a, next);

    let (full, gone, claimed, void) = (a.label(), a.label(), a.label(), a.label());
    let (open, wakes) = (a.label(), a.label());
    state(&mut a);
    a.jump_if(R1, When::Equal, ring::AWAKE, open);
    a.jump_if(R1, When::Equal, ring::ASLEEP, wakes);
    a.jump_if(R1, When::NotEqual, ring::WAKING, next);
    // A packet that was to wake the reader may have been lost on its way.
    a.call(COARSE_TIME);
    a.load(Double, R1, R8, at(ring::WOKEN));
    a.with(Subtract, R0, R1);
    a.jump_if(R0, When::Below, WAKING_NANOS, open);
    a.call(COARSE_TIME);
    a.store(Double, R8, at(ring::WOKEN), R0);
    a.jump(next);
    a.place(wakes);
    wake(&mut a);
    a.jump_if(R0, When::Equal, ring::ASLEEP, next);
    a.jump_if(R0, When::Equal, ring::SHUT, next);
    // Somebody else wakes it, or it was awake.
    a.place(open);
    claim(&mut a, claimed, full);

    a.place(claimed);
    state(&mut a);
    a.copy(R2, R9);
    a.by(
        And,
        R2,
        (ring::RING_OCTETS - ring::RECORD_STEP).cast_signed(),
    );
    a.set_value(R8, memory, ring::DATA);
    a.with(Add, R8, R2);
    a.jump_if(R1, When::Equal, ring::ASLEEP, void);
    a.jump_if(R1, When::Equal, ring::SHUT, void);
    a.copy(R1, R6);
    a.set(R2, 0);
    a.copy(R3, R8);
    a.by(Add, R3, ring::RECORD_HEADER.cast_signed());
    a.copy(R4, R7);
    a.call(LOAD_BYTES);
    a.jump_if(R0, When::NotEqual, 0, void);
    publish(&mut a);
    a.jump(gone);

    a.place(full);
    a.set(R1, 1);
    a.add_shared(R8, at(ring::FULL), R1);
    // To a device that there is not: the packet ends here, and its sender is not told that it was lost.
    a.place(gone);
    a.set(R1, 0);
    a.set(R2, 0);
    a.call(REDIRECT);
    a.exit();

    a.place(void);
    a.set_wide(R1, ring::VOID.into());
    a.with(Or, R7, R1);
    publish(&mut a);
    a.set_value(R8, memory, 0);
    wake(&mut a);
    // The reader is awake again: it is to know that the queue has one before what comes now.
    a.jump_if(R0, When::NotEqual, ring::AWAKE, next);
    waking_from_here(&mut a);
    a.place(next);
    a.set(R0, NEXT);
    a.exit();
    a.finish()
}

/// Goes on if the packet is one of UDP, over IPv4 or, without extension headers, IPv6. What is for another program
/// at the device ([`crate::raw::offload`]) begins with something else, and so has other lengths.
fn datagrams_only(a: &mut Assembler, next: Label) {
    let (datagram, other) = (a.label(), a.label());
    a.load(Word, R2, R6, SKB_DATA);
    a.load(Word, R3, R6, SKB_DATA_END);
    a.load(Word, R4, R6, SKB_PROTOCOL);
    a.copy(R1, R2);
    a.by(Add, R1, 20);
    a.jump_if_both(R1, When::Above, R3, next);
    a.jump_if(R4, When::NotEqual, ether_type(0x0800), other);
    a.load(Byte, R1, R2, 9);
    a.jump_if(R1, When::NotEqual, UDP, next);
    a.load(Half, R1, R2, 2);
    a.network_order(R1);
    a.jump(datagram);
    a.place(other);
    a.jump_if(R4, When::NotEqual, ether_type(0x86dd), next);
    a.load(Byte, R1, R2, 6);
    a.jump_if(R1, When::NotEqual, UDP, next);
    a.load(Half, R1, R2, 4);
    a.network_order(R1);
    a.by(Add, R1, 40);
    a.place(datagram);
    a.load(Word, R2, R6, SKB_LEN);
    a.jump_if_both(R1, When::NotEqual, R2, next);
}

/// Goes on if the packet fits a record. Those that follow one that does not keep to the device's queue
/// with it for a while, so that they do not overtake it.
fn keep_order(a: &mut Assembler, next: Label) {
    let (long, fits) = (a.label(), a.label());
    a.load(Word, R1, R6, SKB_GSO_SIZE);
    a.jump_if(R1, When::NotEqual, 0, long);
    a.jump_if(R7, When::Below, 20, next);
    a.jump_if(R7, When::Above, ring::PACKET_MAX.cast_signed(), long);
    a.load(Double, R9, R8, at(ring::SUPER));
    a.jump_if(R9, When::Equal, 0, fits);
    a.call(COARSE_TIME);
    a.with(Subtract, R0, R9);
    a.jump_if(R0, When::Above, SUPER_NANOS, fits);
    a.jump(next);
    a.place(long);
    a.call(COARSE_TIME);
    a.store(Double, R8, at(ring::SUPER), R0);
    // What is in the ring comes before it.
    a.store(Double, R8, at(ring::WOKEN), R0);
    a.set(R0, ring::AWAKE);
    waking_from_here(a);
    a.jump(next);
    a.place(fits);
}

/// Loads R1 with what may come.
fn state(a: &mut Assembler) {
    a.load(Double, R1, R8, at(ring::STATE));
    a.by(And, R1, ring::STATE_BITS);
}

/// Notes that the packet at hand, which is to take the device's queue, wakes the reader if it sleeps. R0
/// is the state that was found.
fn wake(a: &mut Assembler) {
    // Before the state, by which others find it.
    a.call(COARSE_TIME);
    a.store(Double, R8, at(ring::WOKEN), R0);
    a.set(R0, ring::ASLEEP);
    waking_from_here(a);
}

/// Says that the packet at hand came behind all that is in the ring, if the state is as R0 has it; R0 is
/// then what it was.
fn waking_from_here(a: &mut Assembler) {
    a.load(Double, R1, R8, at(ring::HEAD));
    a.by(Or, R1, ring::WAKING);
    a.compare_exchange(R8, at(ring::STATE), R1);
}

/// Claims room for a record: R9 is its position then.
fn claim(a: &mut Assembler, claimed: Label, full: Label) {
    let step = ring::RECORD_STEP.cast_signed();
    a.copy(R4, R7);
    a.by(Add, R4, ring::RECORD_HEADER.cast_signed() + step - 1);
    a.by(And, R4, -step);
    // As often as others may come between, each of whom has then made a claim.
    for _ in 0..CLAIMS {
        a.load(Double, R9, R8, at(ring::HEAD));
        a.copy(R3, R9);
        a.with(Add, R3, R4);
        a.load(Double, R1, R8, at(ring::TAIL));
        a.copy(R2, R3);
        a.with(Subtract, R2, R1);
        a.jump_if(R2, When::Above, ring::RING_OCTETS.cast_signed(), full);
        a.copy(R0, R9);
        a.compare_exchange(R8, at(ring::HEAD), R3);
        a.jump_if_both(R0, When::Equal, R9, claimed);
    }
    a.jump(full);
}

/// Writes length and mark of the record in R8, behind all that was written to it.
fn publish(a: &mut Assembler) {
    a.store(Word, R8, at(ring::LENGTH), R7);
    a.by(Add, R9, 1);
    if cfg!(target_arch = "x86_64") {
        // Stores are seen in their order there, and a barrier would wait for all of them.
        a.store(Double, R8, 0, R9);
    } else {
        a.exchange(R8, 0, R9);
    }
}

fn at(offset: u32) -> i16 {
    i16::try_from(offset).expect("the lines are short")
}

/// What is loaded of `protocol` for an Ethernet type.
const fn ether_type(value: u16) -> i32 {
    value.to_be() as i32
}

const UDP: i32 = 17;

/// How often room is claimed before the ring counts as full.
const CLAIMS: usize = 16;

/// How long packets follow one that is too long for the ring by the device's queue.
const SUPER_NANOS: i32 = 20_000_000;

/// After how long a reader that was woken and has not looked is sent another packet. That packet overtakes
/// what is in the ring if the first was not lost but the reader waits for a CPU, so this is longer than one
/// waits for that; the heartbeat of the node wakes a worker sooner.
const WAKING_NANOS: i32 = 1_000_000_000;
