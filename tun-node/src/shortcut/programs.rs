//! The two programs, and what is common to them: reading an inner header, finding its flow.
//!
//! Whatever is not as the flow's entry says goes on as if there were no program. A program changes
//! a packet only when all is decided; what then fails is dropped, and counted.

use std::mem::offset_of;
use std::os::fd::BorrowedFd;

use warren_core::units::Family;

use super::layout::{Arrival, Departure, Front, Key, OUTER_OCTETS, PLACE, global, of_flow};
use crate::assembler::Operation::{Add, And, ExclusiveOr, Or, ShiftLeft, ShiftRight, Subtract};
use crate::assembler::Width::{Byte, Double, Half, Word};
use crate::assembler::{
    Assembler, Label, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Register, When,
};
use crate::sys::bpf::Instruction;
use crate::sys::bpf::abi::{
    ADJUST_ROOM, BEHIND_MAC, CHANGE_HEAD, COARSE_TIME, DROP, LOAD_BYTES, LOOKUP, NEXT, REDIRECT,
    REDIRECT_NEIGH, SKB_GSO_SIZE, SKB_LEN, SKB_MARK, SKB_PACKET_TYPE, SKB_PROTOCOL,
    SKB_VLAN_PRESENT, STORE_BYTES,
};

/// The maps of a program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps<'m> {
    /// The flows of its direction.
    pub(super) flows: BorrowedFd<'m>,
    /// What is seen at once.
    pub(super) numbers: BorrowedFd<'m>,
    /// Places for flows among the numbers: a power of two.
    pub(super) places: u32,
}

/// The program at the egress of our device: puts the outer headers of its flow in front of a packet
/// and sends it by the underlay's device, where a neighbour's address is found by the kernel.
pub(super) fn egress(maps: Maps<'_>) -> Vec<Instruction> {
    let mut program = Program::new(maps);
    let failed = program.a.label();
    for family in [Family::V4, Family::V6] {
        let other = program.a.label();
        let a = &mut program.a;
        a.load(Word, R7, R6, SKB_PROTOCOL);
        a.jump_if(R7, When::NotEqual, ether_type(family), other);
        a.load(Word, R7, R6, SKB_LEN);
        program.egress_of(family, failed);
        program.a.place(other);
    }
    program.end();
    program.a.place(failed);
    program.count();
    let a = &mut program.a;
    let at = |number: usize| offset_of_number(number);
    a.set_value(R1, maps.numbers, 0);
    a.set(R2, 1);
    a.add_shared(R1, at(global::ENCAP_FAILED), R2);
    a.add_shared(R1, at(global::ENCAP_FAILED_OCTETS), R7);
    a.set(R0, DROP);
    a.exit();
    program.a.finish()
}

/// The program at the ingress of the underlay's device: takes the outer headers off a packet of a
/// known flow to one of `ports`, and hands it to `device`, ours.
pub(super) fn ingress(maps: Maps<'_>, device: u32, ports: &[u16]) -> Vec<Instruction> {
    let mut program = Program::new(maps);
    let next = program.next;
    let ours = program.a.label();
    let a = &mut program.a;
    // For this host, without a tag, IPv4.
    a.load(Word, R1, R6, SKB_PACKET_TYPE);
    a.jump_if(R1, When::NotEqual, 0, next);
    a.load(Word, R1, R6, SKB_PROTOCOL);
    a.jump_if(R1, When::NotEqual, ether_type(Family::V4), next);
    a.load(Word, R1, R6, SKB_VLAN_PRESENT);
    a.jump_if(R1, When::NotEqual, 0, next);
    program.load_bytes(ETHERNET_OCTETS, HEADERS, OUTER);
    let a = &mut program.a;
    a.load(Byte, R1, R10, HEADERS + 9);
    a.jump_if(R1, When::NotEqual, UDP, next);
    a.load(Half, R1, R10, HEADERS + PORT);
    for port in ports {
        a.jump_if(R1, When::Equal, in_network_order(*port), ours);
    }
    a.jump(next);
    a.place(ours);
    a.load(Byte, R1, R10, HEADERS);
    a.jump_if(R1, When::NotEqual, 0x45, next);
    a.load(Half, R1, R10, HEADERS + 6);
    a.jump_if(R1, When::AnyBit, in_network_order(0xbfff), next);
    program.check_sum(HEADERS);
    // The lengths of the frame, of the outer header and of UDP's agree.
    let a = &mut program.a;
    a.load(Word, R7, R6, SKB_LEN);
    a.by(Subtract, R7, ETHERNET_OCTETS);
    a.load(Half, R1, R10, HEADERS + 2);
    a.network_order(R1);
    a.jump_if_both(R1, When::NotEqual, R7, next);
    a.load(Half, R1, R10, HEADERS + 24);
    a.network_order(R1);
    a.by(Add, R1, 20);
    a.jump_if_both(R1, When::NotEqual, R7, next);
    a.by(Subtract, R7, OUTER);
    for family in [Family::V4, Family::V6] {
        let other = program.a.label();
        program.a.load(Half, R1, R10, HEADERS + ETHER_TYPE);
        program
            .a
            .jump_if(R1, When::NotEqual, ether_type(family), other);
        program.ingress_of(family, device);
        program.a.place(other);
    }
    program.end();
    program.a.finish()
}

/// A program that is being written. R6 is its context, R7 the octets of the inner packet.
struct Program<'m> {
    a: Assembler,
    maps: Maps<'m>,
    /// As if there were no program.
    next: Label,
}

impl<'m> Program<'m> {
    fn new(maps: Maps<'m>) -> Self {
        let mut a = Assembler::default();
        let next = a.label();
        a.copy(R6, R1);
        Self { a, maps, next }
    }

    fn end(&mut self) {
        self.a.place(self.next);
        self.a.set(R0, NEXT);
        self.a.exit();
    }

    fn egress_of(&mut self, family: Family, failed: Label) {
        let next = self.next;
        let header = header_octets(family);
        self.load_bytes(0, INNER, i32::from(header) + 4);
        self.check_header(INNER, family, 2);
        self.inner_octets(INNER, family, R1);
        self.a.jump_if_both(R1, When::NotEqual, R7, next);
        let whole = self.a.label();
        // R9: octets of the largest packet that it is cut into.
        self.a.copy(R9, R7);
        self.transport(INNER, family, 0, |program, is_tcp| {
            let a = &mut program.a;
            a.load(Word, R2, R6, SKB_GSO_SIZE);
            if !is_tcp {
                a.jump_if(R2, When::NotEqual, 0, next);
                return;
            }
            a.jump_if(R2, When::Equal, 0, whole);
            a.load(Byte, R1, R10, TCP);
            a.by(ShiftRight, R1, 4);
            a.by(ShiftLeft, R1, 2);
            a.with(Add, R1, R2);
            a.by(Add, R1, i32::from(header));
            a.copy(R9, R1);
        });
        self.a.place(whole);
        self.find(INNER, family, offset(offset_of!(Departure, generation)));
        let field = |of: usize| offset(of);
        let a = &mut self.a;
        a.load(Half, R1, R8, field(offset_of!(Departure, largest_octets)));
        a.jump_if_both(R9, When::Above, R1, next);
        a.copy(R1, R7);
        a.by(Add, R1, OUTER);
        a.jump_if(R1, When::Above, i32::from(u16::MAX), next);
        if matches!(family, Family::V4) {
            a.load(Byte, R1, R10, INNER + 6);
            a.by(And, R1, 0x40);
            a.load(Byte, R2, R8, field(offset_of!(Departure, dont_fragment)));
            a.jump_if_both(R1, When::NotEqual, R2, next);
        }
        self.traffic_class(INNER, family, R9);
        self.same_dscp(R9, offset_of!(Departure, dscp));
        let slot = field(offset_of!(Departure, slot));
        let takes_super = field(offset_of!(Departure, takes_super));
        let is_super = self.load_segment_size();
        self.keep_order(slot, takes_super, is_super);
        self.leave_dense(family);
        let a = &mut self.a;
        // R9: the outer traffic class.
        a.by(And, R9, 3);
        a.with(Add, R9, R8);
        a.load(Byte, R9, R9, field(offset_of!(Departure, traffic_classes)));
        let front = offset_of!(Departure, front);
        for at in (0..48).step_by(8) {
            a.load(Double, R1, R8, field(front + at));
            a.store(Double, R10, BLOCK + field(at), R1);
        }
        a.load(Word, R1, R8, field(front + 48));
        a.store(Word, R10, BLOCK + 48, R1);
        let ip = BLOCK + offset(offset_of!(Front, ip));
        a.store(Byte, R10, ip + 1, R9);
        a.copy(R1, R7);
        a.by(Add, R1, OUTER);
        a.network_order(R1);
        a.store(Half, R10, ip + 2, R1);
        a.load(Half, R2, R10, ip);
        a.with(Add, R1, R2);
        a.load(Word, R2, R8, field(offset_of!(Departure, sum)));
        a.with(Add, R1, R2);
        self.fold(R1, R2);
        let a = &mut self.a;
        a.by(ExclusiveOr, R1, 0xffff);
        a.store(Half, R10, ip + 10, R1);
        a.copy(R1, R7);
        a.by(Add, R1, OUTER - IPV4_OCTETS);
        a.network_order(R1);
        let udp = BLOCK + offset(offset_of!(Front, udp));
        a.store(Half, R10, udp + 4, R1);
        let changed = self.decrement_ttl(family);
        let flags = ENCAP | ENCAP_IPV4;
        self.adjust_room(OUTER, flags);
        self.a.jump_if(R0, When::NotEqual, 0, next);
        let a = &mut self.a;
        a.copy(R1, R6);
        a.set(R2, 0);
        a.copy(R3, R10);
        a.by(Add, R3, i32::from(BLOCK + offset(offset_of!(Front, ip))));
        a.set(R4, OUTER + i32::from(changed));
        a.set(R5, 0);
        a.call(STORE_BYTES);
        a.jump_if(R0, When::NotEqual, 0, failed);
        // The redirection takes an Ethernet header off, which our device has none of.
        a.copy(R1, R6);
        a.set(R2, ETHERNET_OCTETS);
        a.set(R3, 0);
        a.call(CHANGE_HEAD);
        a.jump_if(R0, When::NotEqual, 0, failed);
        // Routing rules are to see what they see of a socket's packets: no mark.
        a.store_number(Word, R6, SKB_MARK, 0);
        self.count();
        let a = &mut self.a;
        a.load(Word, R1, R8, field(offset_of!(Departure, device)));
        a.set(R2, 0);
        a.set(R3, 0);
        a.set(R4, 0);
        a.call(REDIRECT_NEIGH);
        a.exit();
    }

    fn ingress_of(&mut self, family: Family, device: u32) {
        let next = self.next;
        let header = header_octets(family);
        let start = ETHERNET_OCTETS + OUTER;
        self.load_bytes(start, ARRIVED, i32::from(header) + 8);
        self.check_header(ARRIVED, family, 1);
        self.transport(ARRIVED, family, start, |program, is_tcp| {
            if !is_tcp {
                // Such a packet relies on the outer checksum.
                let a = &mut program.a;
                a.load(Half, R1, R10, ARRIVED + header + 6);
                a.jump_if(R1, When::Equal, 0, next);
            }
        });
        if matches!(family, Family::V4) {
            self.check_sum(ARRIVED);
        }
        self.find(ARRIVED, family, offset(offset_of!(Arrival, generation)));
        let field = |of: usize| offset(of);
        let a = &mut self.a;
        for (width, here, there) in [
            (Word, 12, offset_of!(Arrival, remote)),
            (Word, 16, offset_of!(Arrival, local)),
            (Half, PORT, offset_of!(Arrival, port)),
        ] {
            a.load(width, R1, R10, HEADERS + here);
            a.load(width, R2, R8, field(there));
            a.jump_if_both(R1, When::NotEqual, R2, next);
        }
        let shim = offset_of!(Arrival, shim);
        for at in (0..20).step_by(4) {
            a.load(Word, R1, R10, HEADERS + 28 + offset(at));
            a.load(Word, R2, R8, field(shim + at));
            a.jump_if_both(R1, When::NotEqual, R2, next);
        }
        a.load(Half, R1, R10, HEADERS + 48);
        a.load(Half, R2, R8, field(shim + 20));
        a.jump_if_both(R1, When::NotEqual, R2, next);
        // R9: the traffic class.
        self.traffic_class(ARRIVED, family, R9);
        self.same_dscp(R9, offset_of!(Arrival, dscp));
        let a = &mut self.a;
        a.load(Byte, R3, R10, HEADERS + 1);
        a.copy(R1, R3);
        a.by(And, R1, 0xfc);
        a.load(Byte, R2, R8, field(offset_of!(Arrival, outer_dscp)));
        a.jump_if_both(R1, When::NotEqual, R2, next);
        a.by(And, R9, 3);
        a.by(ShiftLeft, R9, 2);
        a.by(And, R3, 3);
        a.with(Or, R9, R3);
        a.load(Half, R1, R8, field(offset_of!(Arrival, passes)));
        a.with(ShiftRight, R1, R9);
        a.by(And, R1, 1);
        a.jump_if(R1, When::Equal, 0, next);
        let slot = field(offset_of!(Arrival, slot));
        let takes_super = field(offset_of!(Arrival, takes_super));
        // What is longer than its first packet is a train of several: user space opens it.
        let (one, train) = (self.a.label(), self.a.label());
        self.inner_octets(ARRIVED, family, R1);
        self.a.jump_if_both(R1, When::NotEqual, R7, train);
        self.a.jump(one);
        self.a.place(train);
        self.place_of(slot);
        self.remember_long_way();
        self.a.place(one);
        let is_super = self.load_segment_size();
        self.keep_order(slot, takes_super, is_super);
        let flags = FIXED_GSO | if_v6(family, DECAP_IPV6, DECAP_IPV4);
        self.adjust_room(-OUTER, flags);
        self.a.jump_if(R0, When::NotEqual, 0, next);
        self.count();
        let a = &mut self.a;
        a.set(R1, i32::from_ne_bytes(device.to_ne_bytes()));
        a.set(R2, TO_INGRESS);
        a.call(REDIRECT);
        a.exit();
    }

    /// No options, no fragment, a TTL of at least that.
    fn check_header(&mut self, at: i16, family: Family, least_ttl: i32) {
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
    fn inner_octets(&mut self, at: i16, family: Family, to: Register) {
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
    fn transport(
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
    fn find(&mut self, at: i16, family: Family, generation: i16) {
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

    fn traffic_class(&mut self, at: i16, family: Family, to: Register) {
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
    fn same_dscp(&mut self, traffic_class: Register, field: usize) {
        let next = self.next;
        let a = &mut self.a;
        a.copy(R1, traffic_class);
        a.by(And, R1, 0xfc);
        a.load(Byte, R2, R8, offset(field));
        a.jump_if_both(R1, When::NotEqual, R2, next);
    }

    /// Loads R3 with what is zero unless it is a super-packet.
    fn load_segment_size(&mut self) -> Register {
        self.a.load(Word, R3, R6, SKB_GSO_SIZE);
        R3
    }

    /// Where a flow's super-packets take the long way, small packets behind one do, too, for a while:
    /// else they would overtake it.
    fn keep_order(&mut self, slot: i16, takes_super: i16, is_super: Register) {
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
    fn leave_dense(&mut self, family: Family) {
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
    fn place_of(&mut self, slot: i16) {
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
    fn remember_long_way(&mut self) {
        let next = self.next;
        let a = &mut self.a;
        a.call(COARSE_TIME);
        a.load(Double, R1, R10, PLACE_OF_FLOW);
        a.store(Double, R1, offset_of_number(of_flow::LONG_WAY), R0);
        a.jump(next);
    }

    fn count(&mut self) {
        let a = &mut self.a;
        a.load(Double, R1, R10, PLACE_OF_FLOW);
        a.set(R2, 1);
        a.add_shared(R1, offset_of_number(of_flow::PACKETS), R2);
        a.add_shared(R1, offset_of_number(of_flow::OCTETS), R7);
    }

    /// Goes on if the IPv4 header at `at` has the right checksum.
    fn check_sum(&mut self, at: i16) {
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
    fn fold(&mut self, sum: Register, with: Register) {
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
    fn decrement_ttl(&mut self, family: Family) -> i16 {
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

    fn load_bytes(&mut self, from: i32, to: i16, octets: i32) {
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

    fn adjust_room(&mut self, octets: i32, flags: u64) {
        let a = &mut self.a;
        a.copy(R1, R6);
        a.set(R2, octets);
        a.set(R3, BEHIND_MAC);
        a.set_wide(R4, flags);
        a.call(ADJUST_ROOM);
    }
}

const fn header_octets(family: Family) -> i16 {
    match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

const fn protocol_at(family: Family) -> i16 {
    match family {
        Family::V4 => 9,
        Family::V6 => 6,
    }
}

const fn ttl_at(family: Family) -> i16 {
    match family {
        Family::V4 => 8,
        Family::V6 => 7,
    }
}

const fn if_v6(family: Family, v6: u64, v4: u64) -> u64 {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

const fn ether_type(family: Family) -> i32 {
    match family {
        Family::V4 => in_network_order(0x0800),
        Family::V6 => in_network_order(0x86dd),
    }
}

/// What is loaded of a half word of the wire that has this value.
const fn in_network_order(value: u16) -> i32 {
    value.to_be() as i32
}

/// An offset in a layout or a block: all are short.
fn offset(of: usize) -> i16 {
    i16::try_from(of).expect("layouts are short")
}

fn offset_of_number(number: usize) -> i16 {
    offset(number * size_of::<u64>())
}

// The stack. At our device: what is written in front of a packet, with the packet's own header
// behind it, at a multiple of four.
const BLOCK: i16 = -104;
const INNER: i16 = BLOCK + 52;
/// Two octets of a TCP header: its length, and the flags.
const TCP: i16 = -8;
// At the underlay's device: the outer headers, and the inner one.
const HEADERS: i16 = -64;
const ARRIVED: i16 = -112;
// At both.
const KEY: i16 = -152;
const PLACE_OF_FLOW: i16 = -160;
const LAST: i16 = -168;

/// Where the outer headers have the destination port, and the shim its type of packet.
const PORT: i16 = 22;
const ETHER_TYPE: i16 = 48;

const ETHERNET_OCTETS: i32 = 14;
const IPV4_OCTETS: i32 = 20;
const OUTER: i32 = OUTER_OCTETS as i32;
const UDP: i32 = 17;
const TCP_PROTOCOL: i32 = 6;
const FIN_SYN_RST_URG: i32 = 0x27;
const ACK: i32 = 0x10;

/// Octets of a place among the numbers.
const PLACE_OCTETS: u32 = 64;

/// How long small packets of a flow follow its last super-packet the long way.
const LONG_WAY_NANOS: i32 = 20_000_000;

/// Nanoseconds to moments.
const MOMENT_SHIFT: i32 = 22;

/// Datagrams in a moment with which a flow is dense: some 60,000 a second, which is the least with
/// which user space has several to join.
const DENSE: i32 = 256;

// Flags of `bpf_skb_adjust_room`: the segment size stays; which headers come or go.
const FIXED_GSO: u64 = 1;
const ENCAP_IPV4: u64 = 1 << 1;
const ENCAP: u64 = FIXED_GSO | ENCAP_UDP | ENCAP_ETHERNET | ETHERNET << 56;
const ENCAP_UDP: u64 = 1 << 4;
const ENCAP_ETHERNET: u64 = 1 << 6;
const DECAP_IPV4: u64 = 1 << 7;
const DECAP_IPV6: u64 = 1 << 8;
const ETHERNET: u64 = 14;

/// A flag of `bpf_redirect`.
const TO_INGRESS: i32 = 1;

const _: () = assert!(PLACE_OCTETS as usize == PLACE * size_of::<u64>());
const _: () = assert!(52 == offset_of!(Front, ip) + OUTER_OCTETS as usize);
