//! The steps that programs are made of: reading headers, finding a flow, keeping its order, counting.
//!
//! R6 is the program's context, R7 the octets of the inner packet, R8 the flow's entry from
//! [`find`](Program::find) on. A step that finds something amiss jumps to where the packet goes on as if there
//! were no program.

use std::mem::offset_of;

use warren_core::units::Family;

use super::{
    INNER, KEY, LAST, PLACE_OF_FLOW, Program, SEGMENT, TCP, UDP, header_octets, in_network_order,
    offset, offset_of_number, protocol_at, ttl_at,
};
use crate::assembler::Operation::{Add, And, ExclusiveOr, Modulo, ShiftLeft, ShiftRight, Subtract};
use crate::assembler::Width::{Byte, Double, Half, Word};
use crate::assembler::{R0, R1, R2, R3, R4, R6, R7, R8, R10, Register, When};
use crate::shortcut::layout::{Departure, Key, PLACE, global, of_flow};
use crate::sys::bpf::abi::{
    ADJUST_ROOM, BEHIND_MAC, COARSE_TIME, LOAD_BYTES, LOOKUP, SKB_GSO_SIZE,
};

impl Program<'_> {
    /// No options, no fragment, a TTL of at least that.
    pub(super) fn check_header(&mut self, at: i16, family: Family, least_ttl: i32) {
        let next = self.next;
        let a = &mut self.a;
        a.load(Byte, R1, R10, at);
        match family {
            Family::V4 => {
                a.jump_if(R1, When::NotEqual, 0x45, next);
                a.load(Half, R1, R10, at + 6);
                a.jump_if(R1, When::AnyBit, in_network_order(0xbfff), next);
            }
            Family::V6 => {
                a.by(ShiftRight, R1, 4);
                a.jump_if(R1, When::NotEqual, 6, next);
            }
        }
        a.load(Byte, R1, R10, at + ttl_at(family));
        a.jump_if(R1, When::Below, least_ttl, next);
    }

    /// Octets of the packet whose header is at `at`, as it says.
    pub(super) fn inner_octets(&mut self, at: i16, family: Family, to: Register) {
        let a = &mut self.a;
        match family {
            Family::V4 => {
                a.load(Half, to, R10, at + 2);
                a.network_order(to);
            }
            Family::V6 => {
                a.load(Half, to, R10, at + 4);
                a.network_order(to);
                a.by(Add, to, 40);
            }
        }
    }

    /// TCP that neither opens nor ends a connection, or UDP; `further` says what else is looked at.
    /// The packet begins at octet `start`.
    pub(super) fn transport(
        &mut self,
        at: i16,
        family: Family,
        start: i32,
        further: impl Fn(&mut Self, bool),
    ) {
        let next = self.next;
        let (udp, done) = (self.a.label(), self.a.label());
        let a = &mut self.a;
        a.load(Byte, R1, R10, at + protocol_at(family));
        a.jump_if(R1, When::Equal, UDP, udp);
        a.jump_if(R1, When::NotEqual, TCP_PROTOCOL, next);
        self.load_bytes(start + i32::from(header_octets(family)) + 12, TCP, 2);
        let a = &mut self.a;
        a.load(Byte, R1, R10, TCP + 1);
        a.jump_if(R1, When::AnyBit, FIN_SYN_RST_URG, next);
        a.by(And, R1, ACK);
        a.jump_if(R1, When::Equal, 0, next);
        further(self, true);
        self.a.jump(done);
        self.a.place(udp);
        further(self, false);
        self.a.place(done);
    }

    /// Sets R8 to the entry of the flow, if it is one of the tables that hold.
    pub(super) fn find(&mut self, at: i16, family: Family, generation: i16) {
        let next = self.next;
        let (flows, numbers) = (self.maps.flows, self.maps.numbers);
        let header = header_octets(family);
        let a = &mut self.a;
        let key = |of: usize| KEY + offset(of);
        match family {
            Family::V4 => {
                for (from, to) in [
                    (12, key(offset_of!(Key, source))),
                    (16, key(offset_of!(Key, destination))),
                ] {
                    a.load(Word, R1, R10, at + from);
                    a.store(Word, R10, to, R1);
                    a.store_number(Word, R10, to + 4, 0);
                    a.store_number(Double, R10, to + 8, 0);
                }
            }
            Family::V6 => {
                for word in (0..32).step_by(4) {
                    a.load(Word, R1, R10, at + 8 + word);
                    a.store(Word, R10, key(offset_of!(Key, source)) + word, R1);
                }
            }
        }
        a.load(Word, R1, R10, at + header);
        a.store(Word, R10, key(offset_of!(Key, ports)), R1);
        a.load(Byte, R1, R10, at + protocol_at(family));
        a.store(Byte, R10, key(offset_of!(Key, protocol)), R1);
        let version = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        a.store_number(Byte, R10, key(offset_of!(Key, version)), version);
        a.store_number(Half, R10, key(offset_of!(Key, zero)), 0);
        a.set_map(R1, flows);
        a.copy(R2, R10);
        a.by(Add, R2, i32::from(KEY));
        a.call(LOOKUP);
        a.jump_if(R0, When::Equal, 0, next);
        a.copy(R8, R0);
        a.set_value(R1, numbers, 0);
        a.load(Double, R1, R1, offset_of_number(global::GENERATION));
        a.load(Double, R2, R8, generation);
        a.jump_if_both(R1, When::NotEqual, R2, next);
    }

    pub(super) fn traffic_class(&mut self, at: i16, family: Family, to: Register) {
        let a = &mut self.a;
        match family {
            Family::V4 => a.load(Byte, to, R10, at + 1),
            Family::V6 => {
                a.load(Half, to, R10, at);
                a.network_order(to);
                a.by(ShiftRight, to, 4);
                a.by(And, to, 0xff);
            }
        }
    }

    /// Goes on if the DSCP of a traffic class is the entry's.
    pub(super) fn same_dscp(&mut self, traffic_class: Register, field: usize) {
        let next = self.next;
        let a = &mut self.a;
        a.copy(R1, traffic_class);
        a.by(And, R1, 0xfc);
        a.load(Byte, R2, R8, offset(field));
        a.jump_if_both(R1, When::NotEqual, R2, next);
    }

    /// Loads R3 with what is zero unless it is a super-packet.
    pub(super) fn load_segment_size(&mut self) -> Register {
        self.a.load(Word, R3, R6, SKB_GSO_SIZE);
        R3
    }

    /// Makes zero of the segment's octets unless the packet is to have an outer checksum, by which the receiver's
    /// kernel joins what came apart: a super-packet has one if all its segments are of one length, so that one
    /// checksum is right for each, and what closely follows such a super-packet has, so that it does not overtake
    /// what is being joined. All else has none, and comes as it is.
    pub(super) fn forget_segment_without_sum(&mut self) {
        let (single, none, done) = (self.a.label(), self.a.label(), self.a.label());
        let at = offset_of_number(of_flow::JOINED);
        let a = &mut self.a;
        a.load(Word, R3, R6, SKB_GSO_SIZE);
        a.jump_if(R3, When::Equal, 0, single);
        // What each segment has besides its payload.
        a.load(Double, R2, R10, SEGMENT);
        a.with(Subtract, R2, R3);
        a.copy(R1, R7);
        a.with(Subtract, R1, R2);
        a.with(Modulo, R1, R3);
        a.jump_if(R1, When::NotEqual, 0, none);
        a.call(COARSE_TIME);
        a.load(Double, R1, R10, PLACE_OF_FLOW);
        a.store(Double, R1, at, R0);
        a.jump(done);
        a.place(single);
        a.load(Double, R1, R10, PLACE_OF_FLOW);
        a.load(Double, R2, R1, at);
        a.jump_if(R2, When::Equal, 0, none);
        a.store(Double, R10, LAST, R2);
        a.call(COARSE_TIME);
        a.load(Double, R2, R10, LAST);
        a.with(Subtract, R0, R2);
        a.jump_if(R0, When::Below, CLOSE_NANOS, done);
        a.place(none);
        a.store_number(Double, R10, SEGMENT, 0);
        a.place(done);
    }

    /// Writes the outer UDP checksum of the packet, or of each segment that it is cut into, to `to`: the inner
    /// packet is summed nowhere, because its own checksums say what it comes to (its IPv4 header 0xffff, its TCP the
    /// complement of its pseudo-header). `around` are the octets of a UDP datagram beside the inner packet.
    pub(super) fn sum_of_udp(&mut self, family: Family, around: i32, to: i16) {
        let without = self.a.label();
        let a = &mut self.a;
        a.load(Double, R2, R10, SEGMENT);
        a.jump_if(R2, When::Equal, 0, without);
        // The length stands in the header and in the pseudo-header.
        a.copy(R1, R2);
        a.by(Add, R1, around);
        a.network_order(R1);
        a.by(ShiftLeft, R1, 1);
        match family {
            Family::V4 => {
                a.by(Subtract, R2, header_octets(family).into());
                a.network_order(R2);
                a.by(ExclusiveOr, R2, 0xffff);
                a.with(Add, R1, R2);
            }
            // Its length is that of its pseudo-header, and so are its addresses.
            Family::V6 => {
                for word in [0, 2, 6] {
                    a.load(Half, R2, R10, INNER + word);
                    a.with(Add, R1, R2);
                }
            }
        }
        a.load(Word, R2, R8, offset(offset_of!(Departure, sum_of_udp)));
        a.with(Add, R1, R2);
        self.fold(R1, R2);
        let right = self.a.label();
        let a = &mut self.a;
        a.by(ExclusiveOr, R1, 0xffff);
        a.jump_if(R1, When::NotEqual, 0, right);
        a.set(R1, 0xffff);
        a.place(right);
        a.store(Half, R10, to, R1);
        a.place(without);
    }

    /// Where a flow's super-packets take the long way, small packets behind one do, too, for a while:
    /// else they would overtake it.
    pub(super) fn keep_order(&mut self, slot: i16, takes_super: i16, is_super: Register) {
        let next = self.next;
        let (short, one) = (self.a.label(), self.a.label());
        self.place_of(slot);
        let a = &mut self.a;
        a.jump_if(is_super, When::Equal, 0, one);
        a.load(Byte, R1, R8, takes_super);
        a.jump_if(R1, When::NotEqual, 0, short);
        self.remember_long_way();
        let a = &mut self.a;
        a.place(one);
        a.load(Double, R1, R10, PLACE_OF_FLOW);
        a.load(Double, R2, R1, offset_of_number(of_flow::LONG_WAY));
        a.jump_if(R2, When::Equal, 0, short);
        a.store(Double, R10, LAST, R2);
        a.call(COARSE_TIME);
        a.load(Double, R2, R10, LAST);
        a.with(Subtract, R0, R2);
        a.jump_if(R0, When::Below, LONG_WAY_NANOS, next);
        a.place(short);
    }

    /// Datagrams that come thick and fast take the long way: user space joins them to trains. They are
    /// told by how many came in the moment before, so that a flow does not change its way often.
    pub(super) fn leave_dense(&mut self, family: Family) {
        let next = self.next;
        let (same, done) = (self.a.label(), self.a.label());
        let at = offset_of_number;
        let a = &mut self.a;
        a.load(Byte, R1, R10, INNER + protocol_at(family));
        a.jump_if(R1, When::NotEqual, UDP, done);
        a.call(COARSE_TIME);
        a.by(ShiftRight, R0, MOMENT_SHIFT);
        a.load(Double, R1, R10, PLACE_OF_FLOW);
        a.load(Double, R2, R1, at(of_flow::MOMENT));
        a.load(Double, R3, R1, at(of_flow::OF_MOMENT));
        a.jump_if_both(R2, When::Equal, R0, same);
        a.store(Double, R1, at(of_flow::MOMENT), R0);
        // After a pause of a moment the last one was empty.
        let last = a.label();
        a.by(Add, R2, 1);
        a.jump_if_both(R2, When::Equal, R0, last);
        a.set(R3, 0);
        a.place(last);
        a.store(Double, R1, at(of_flow::BEFORE), R3);
        a.set(R3, 0);
        a.place(same);
        a.by(Add, R3, 1);
        a.store(Double, R1, at(of_flow::OF_MOMENT), R3);
        a.load(Double, R2, R1, at(of_flow::BEFORE));
        a.jump_if(R2, When::Above, DENSE, next);
        a.place(done);
    }

    /// Keeps where the flow is counted on the stack, and in R2.
    pub(super) fn place_of(&mut self, slot: i16) {
        let (numbers, places) = (self.maps.numbers, self.maps.places);
        let a = &mut self.a;
        a.load(Word, R1, R8, slot);
        a.by(And, R1, (places - 1).cast_signed());
        a.by(ShiftLeft, R1, PLACE_OCTETS.trailing_zeros().cast_signed());
        a.set_value(R2, numbers, PLACE_OCTETS);
        a.with(Add, R2, R1);
        a.store(Double, R10, PLACE_OF_FLOW, R2);
    }

    /// Notes that a packet of the flow takes the long way, which it then does.
    pub(super) fn remember_long_way(&mut self) {
        let next = self.next;
        let a = &mut self.a;
        a.call(COARSE_TIME);
        a.load(Double, R1, R10, PLACE_OF_FLOW);
        a.store(Double, R1, offset_of_number(of_flow::LONG_WAY), R0);
        a.jump(next);
    }

    pub(super) fn count(&mut self) {
        let a = &mut self.a;
        a.load(Double, R1, R10, PLACE_OF_FLOW);
        a.set(R2, 1);
        a.add_shared(R1, offset_of_number(of_flow::PACKETS), R2);
        a.add_shared(R1, offset_of_number(of_flow::OCTETS), R7);
    }

    /// Goes on if the IPv4 header at `at` has the right checksum.
    pub(super) fn check_sum(&mut self, at: i16) {
        let next = self.next;
        let a = &mut self.a;
        a.load(Word, R1, R10, at);
        for word in (4..20).step_by(4) {
            a.load(Word, R2, R10, at + word);
            a.with(Add, R1, R2);
        }
        a.copy(R2, R1);
        a.by(ShiftRight, R2, 32);
        a.set_wide(R3, 0xffff_ffff);
        a.with(And, R1, R3);
        a.with(Add, R1, R2);
        self.fold(R1, R2);
        self.a.jump_if(R1, When::NotEqual, 0xffff, next);
    }

    /// Makes 16 bits of a sum of less than 2^33.
    pub(super) fn fold(&mut self, sum: Register, with: Register) {
        let a = &mut self.a;
        for _ in 0..3 {
            a.copy(with, sum);
            a.by(ShiftRight, with, 16);
            a.by(And, sum, 0xffff);
            a.with(Add, sum, with);
        }
    }

    /// Takes one off the TTL of the inner header, and says how many of its octets have to be
    /// written.
    pub(super) fn decrement_ttl(&mut self, family: Family) -> i16 {
        let ttl = INNER + ttl_at(family);
        let a = &mut self.a;
        a.load(Byte, R1, R10, ttl);
        a.by(Subtract, R1, 1);
        a.store(Byte, R10, ttl, R1);
        match family {
            Family::V4 => {
                // RFC 1624: the checksum grows by what the word of the TTL loses.
                let right = a.label();
                a.load(Half, R1, R10, INNER + 10);
                a.by(Add, R1, in_network_order(0x0100));
                a.jump_if(R1, When::Below, 0xffff, right);
                a.by(Add, R1, 1);
                a.place(right);
                a.store(Half, R10, INNER + 10, R1);
                12
            }
            Family::V6 => 8,
        }
    }

    pub(super) fn load_bytes(&mut self, from: i32, to: i16, octets: i32) {
        let next = self.next;
        let a = &mut self.a;
        a.copy(R1, R6);
        a.set(R2, from);
        a.copy(R3, R10);
        a.by(Add, R3, i32::from(to));
        a.set(R4, octets);
        a.call(LOAD_BYTES);
        a.jump_if(R0, When::NotEqual, 0, next);
    }

    pub(super) fn adjust_room(&mut self, octets: i32, flags: u64) {
        let a = &mut self.a;
        a.copy(R1, R6);
        a.set(R2, octets);
        a.set(R3, BEHIND_MAC);
        a.set_wide(R4, flags);
        a.call(ADJUST_ROOM);
    }
}

const TCP_PROTOCOL: i32 = 6;
const FIN_SYN_RST_URG: i32 = 0x27;
const ACK: i32 = 0x10;

/// Octets of a place among the numbers.
const PLACE_OCTETS: u32 = 64;

/// How long small packets of a flow follow its last super-packet the long way.
const LONG_WAY_NANOS: i32 = 20_000_000;

/// How closely a packet follows a super-packet that may still be being joined: some clock ticks.
const CLOSE_NANOS: i32 = 20_000_000;

/// Nanoseconds to moments.
const MOMENT_SHIFT: i32 = 22;

/// Datagrams in a moment with which a flow is dense: some 60,000 a second, which is the least with
/// which user space has several to join.
const DENSE: i32 = 256;

const _: () = assert!(PLACE_OCTETS as usize == PLACE * size_of::<u64>());
