//! The two programs; the steps that are common to them are in [`steps`].
//!
//! Whatever is not as the flow's entry says goes on as if there were no program. A program changes
//! a packet only when all is decided; what then fails is dropped, and counted.

mod steps;

use std::mem::offset_of;
use std::os::fd::BorrowedFd;

use warren_core::units::Family;

use super::layout::{Arrival, Carrier, Departure, FRONT_OCTETS, global};
use crate::assembler::Operation::{Add, And, ExclusiveOr, Or, ShiftLeft, ShiftRight, Subtract};
use crate::assembler::Width::{self, Byte, Double, Half, Word};
use crate::assembler::{Assembler, Label, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, When};
use crate::sys::bpf::Instruction;
use crate::sys::bpf::abi::{
    CHANGE_HEAD, DROP, NEXT, RANDOM, REDIRECT, REDIRECT_NEIGH, SKB_GSO_SIZE, SKB_LEN, SKB_MARK,
    SKB_PACKET_TYPE, SKB_PROTOCOL, SKB_VLAN_PRESENT, STORE_BYTES,
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

/// The UDP ports that tunnels' packets come to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Ports {
    /// VXLAN and Geneve.
    pub(super) ethernet: Vec<u16>,
    pub(super) gpe: Vec<u16>,
    pub(super) fou_gue: Vec<u16>,
}

impl Ports {
    pub(super) fn are_none(&self) -> bool {
        let Self {
            ethernet,
            gpe,
            fou_gue,
        } = self;
        [ethernet, gpe, fou_gue].into_iter().all(Vec::is_empty)
    }
}

/// The program at the egress of our device: puts the outer headers of its flow in front of a packet
/// and sends it by the underlay's device, where a neighbour's address is found by the kernel.
pub(super) fn egress(maps: Maps<'_>) -> Vec<Instruction> {
    let mut program = Program::new(maps);
    for family in [Family::V4, Family::V6] {
        let other = program.a.label();
        let a = &mut program.a;
        a.load(Word, R7, R6, SKB_PROTOCOL);
        a.jump_if(R7, When::NotEqual, ether_type(family), other);
        a.load(Word, R7, R6, SKB_LEN);
        program.egress_of(family);
        program.a.place(other);
    }
    program.end();
    program.a.finish()
}

/// The program at the ingress of the underlay's device: takes the outer headers off a packet of a
/// known flow to one of `ports`, and hands it to `device`, ours.
pub(super) fn ingress(maps: Maps<'_>, device: u32, ports: &Ports) -> Vec<Instruction> {
    let mut program = Program::new(maps);
    let next = program.next;
    let a = &mut program.a;
    // For this host, without a tag, IPv4.
    a.load(Word, R1, R6, SKB_PACKET_TYPE);
    a.jump_if(R1, When::NotEqual, 0, next);
    a.load(Word, R1, R6, SKB_PROTOCOL);
    a.jump_if(R1, When::NotEqual, ether_type(Family::V4), next);
    a.load(Word, R1, R6, SKB_VLAN_PRESENT);
    a.jump_if(R1, When::NotEqual, 0, next);
    program.load_bytes(ETHERNET_OCTETS, HEADERS, HEADERS_OCTETS);
    let a = &mut program.a;
    a.load(Byte, R1, R10, HEADERS);
    a.jump_if(R1, When::NotEqual, 0x45, next);
    a.load(Half, R1, R10, HEADERS + 6);
    a.jump_if(R1, When::AnyBit, in_network_order(0xbfff), next);
    program.check_sum(HEADERS);
    // The lengths of the frame and of the outer header agree.
    let a = &mut program.a;
    a.load(Word, R7, R6, SKB_LEN);
    a.by(Subtract, R7, ETHERNET_OCTETS);
    a.load(Half, R1, R10, HEADERS + 2);
    a.network_order(R1);
    a.jump_if_both(R1, When::NotEqual, R7, next);
    for family in [Family::V4, Family::V6] {
        let other = program.a.label();
        let a = &mut program.a;
        a.load(Byte, R1, R10, HEADERS + PROTOCOL);
        a.jump_if(R1, When::NotEqual, ip_in_ip(family), other);
        program.ingress_of(family, Carrier::Ip, device);
        program.a.place(other);
    }
    if !ports.are_none() {
        program.ingress_of_udp(device, ports);
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

    fn egress_of(&mut self, family: Family) {
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
        self.a.store(Double, R10, SEGMENT, R9);
        self.find(INNER, family, offset(offset_of!(Departure, generation)));
        let field = |of: usize| offset(of);
        let a = &mut self.a;
        a.load(Half, R1, R8, field(offset_of!(Departure, largest_octets)));
        a.jump_if_both(R9, When::Above, R1, next);
        a.copy(R1, R7);
        a.by(Add, R1, outer(Carrier::Ethernet));
        a.jump_if(R1, When::Above, i32::from(u16::MAX), next);
        if matches!(family, Family::V4) {
            a.load(Byte, R1, R10, INNER + 6);
            a.by(And, R1, 0x40);
            a.load(Byte, R2, R8, field(offset_of!(Departure, dont_fragment)));
            a.jump_if_both(R1, When::NotEqual, R2, next);
        }
        self.traffic_class(INNER, family, R9);
        self.same_dscp(R9, offset_of!(Departure, dscp));
        self.place_of(field(offset_of!(Departure, slot)));
        let alone = self.a.label();
        self.a
            .load(Byte, R1, R8, field(offset_of!(Departure, joins)));
        self.a.jump_if(R1, When::Equal, 0, alone);
        self.leave_dense(family);
        self.a.place(alone);
        let in_udp = self.a.label();
        self.unless_in(Carrier::Ip, offset_of!(Departure, outer_octets), in_udp);
        self.leave(family, Carrier::Ip);
        self.a.place(in_udp);
        self.forget_segment_without_sum();
        for carrier in Carrier::ALL.into_iter().filter(|one| one.is_udp()) {
            let other = self.a.label();
            self.unless_in(carrier, offset_of!(Departure, outer_octets), other);
            self.leave(family, carrier);
            self.a.place(other);
        }
        self.a.jump(next);
    }

    /// Jumps if the entry at R8, which has its octets in front at `field`, is of another carrier.
    fn unless_in(&mut self, carrier: Carrier, field: usize, other: Label) {
        self.a.load(Byte, R1, R8, offset(field));
        self.a.jump_if(R1, When::NotEqual, outer(carrier), other);
    }

    /// Sends the packet by the entry at R8; R9 is its traffic class.
    fn leave(&mut self, family: Family, carrier: Carrier) {
        let (next, failed) = (self.next, self.a.label());
        let field = |of: usize| offset(of);
        let outer = outer(carrier);
        let a = &mut self.a;
        // R9: the outer traffic class.
        a.by(And, R9, 3);
        a.with(Add, R9, R8);
        a.load(Byte, R9, R9, field(offset_of!(Departure, traffic_classes)));
        let front = offset_of!(Departure, front);
        let begin = FRONT_OCTETS - usize::from(carrier.outer_octets());
        for at in (begin / 8 * 8..48).step_by(8) {
            a.load(Double, R1, R8, field(front + at));
            a.store(Double, R10, BLOCK + field(at), R1);
        }
        a.load(Word, R1, R8, field(front + 48));
        a.store(Word, R10, BLOCK + 48, R1);
        let ip = BLOCK + offset(begin);
        a.store(Byte, R10, ip + 1, R9);
        if matches!(carrier, Carrier::Ip) {
            // RFC 6864 section 4: what may be fragmented has a number of its own.
            let whole = a.label();
            a.load(Half, R1, R10, ip + 6);
            a.jump_if(R1, When::NotEqual, 0, whole);
            a.call(RANDOM);
            a.store(Half, R10, ip + 4, R0);
            a.place(whole);
        }
        a.copy(R1, R7);
        a.by(Add, R1, outer);
        a.network_order(R1);
        a.store(Half, R10, ip + 2, R1);
        for word in [ip, ip + 4] {
            a.load(Half, R2, R10, word);
            a.with(Add, R1, R2);
        }
        a.load(Word, R2, R8, field(offset_of!(Departure, sum)));
        a.with(Add, R1, R2);
        self.fold(R1, R2);
        let a = &mut self.a;
        a.by(ExclusiveOr, R1, 0xffff);
        a.store(Half, R10, ip + 10, R1);
        let changed = self.decrement_ttl(family);
        if carrier.is_udp() {
            let a = &mut self.a;
            a.copy(R1, R7);
            a.by(Add, R1, outer - IPV4_OCTETS);
            a.network_order(R1);
            a.store(Half, R10, ip + 24, R1);
            self.sum_of_udp(family, outer - IPV4_OCTETS, ip + 26);
        }
        let flags = match carrier {
            Carrier::Ethernet => ENCAP_UDP | ENCAP_ETHERNET | ETHERNET << 56,
            Carrier::Gpe | Carrier::Gue | Carrier::Fou => ENCAP_UDP,
            Carrier::Ip => 0,
        };
        self.adjust_room(outer, FIXED_GSO | ENCAP_IPV4 | flags);
        self.a.jump_if(R0, When::NotEqual, 0, next);
        let a = &mut self.a;
        a.copy(R1, R6);
        a.set(R2, 0);
        a.copy(R3, R10);
        a.by(Add, R3, i32::from(ip));
        a.set(R4, outer + i32::from(changed));
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
        self.a.place(failed);
        self.count();
        let numbers = self.maps.numbers;
        let failed = match carrier.is_udp() {
            true => global::ENCAP_FAILED_UDP,
            false => global::ENCAP_FAILED_IP,
        };
        let a = &mut self.a;
        a.by(Add, R7, carrier.shim_octets().into());
        a.set_value(R1, numbers, 0);
        a.set(R2, 1);
        a.add_shared(R1, offset_of_number(failed), R2);
        a.add_shared(R1, offset_of_number(failed + 1), R7);
        a.set(R0, DROP);
        a.exit();
    }

    fn ingress_of_udp(&mut self, device: u32, ports: &Ports) {
        let next = self.next;
        let a = &mut self.a;
        a.load(Byte, R1, R10, HEADERS + PROTOCOL);
        a.jump_if(R1, When::NotEqual, UDP, next);
        // The length of UDP's agrees, too.
        a.load(Half, R1, R10, HEADERS + 24);
        a.network_order(R1);
        a.by(Add, R1, IPV4_OCTETS);
        a.jump_if_both(R1, When::NotEqual, R7, next);
        let shim = HEADERS + SHIM;
        let ether_types = [Family::V4, Family::V6].map(ether_type);
        self.ingress_at(&ports.ethernet, |program| {
            program.by_family(Half, shim + 20, ether_types, Carrier::Ethernet, device);
        });
        self.ingress_at(&ports.gpe, |program| {
            program.by_family(Byte, shim + 3, [1, 2], Carrier::Gpe, device);
        });
        self.ingress_at(&ports.fou_gue, |program| {
            // By the first half octet: versions of IP, or of GUE with a header of its own.
            let a = &mut program.a;
            let not_gue = a.label();
            a.load(Byte, R1, R10, shim);
            a.by(ShiftRight, R1, 4);
            a.jump_if(R1, When::NotEqual, 0, not_gue);
            let protocols = [Family::V4, Family::V6].map(ip_in_ip);
            program.by_family(Byte, shim + 1, protocols, Carrier::Gue, device);
            let a = &mut program.a;
            a.jump(next);
            a.place(not_gue);
            for (family, version) in [(Family::V4, 4), (Family::V6, 6)] {
                let other = program.a.label();
                program.a.load(Byte, R1, R10, shim);
                program.a.by(ShiftRight, R1, 4);
                program.a.jump_if(R1, When::NotEqual, version, other);
                program.ingress_of(family, Carrier::Fou, device);
                program.a.place(other);
            }
        });
    }

    /// What comes to one of `ports`.
    fn ingress_at(&mut self, ports: &[u16], deliver: impl FnOnce(&mut Self)) {
        if ports.is_empty() {
            return;
        }
        let next = self.next;
        let (ours, others) = (self.a.label(), self.a.label());
        let a = &mut self.a;
        a.load(Half, R1, R10, HEADERS + PORT);
        for port in ports {
            a.jump_if(R1, When::Equal, in_network_order(*port), ours);
        }
        a.jump(others);
        a.place(ours);
        deliver(self);
        self.a.jump(next);
        self.a.place(others);
    }

    /// By what stands at `at` for IPv4 and for IPv6.
    fn by_family(
        &mut self,
        width: Width,
        at: i16,
        values: [i32; 2],
        carrier: Carrier,
        device: u32,
    ) {
        for (family, value) in [Family::V4, Family::V6].into_iter().zip(values) {
            let other = self.a.label();
            self.a.load(width, R1, R10, at);
            self.a.jump_if(R1, When::NotEqual, value, other);
            self.ingress_of(family, carrier, device);
            self.a.place(other);
        }
    }

    /// Delivers a packet of that family in an outer one of R7 octets.
    fn ingress_of(&mut self, family: Family, carrier: Carrier, device: u32) {
        let next = self.next;
        let header = header_octets(family);
        let outer = outer(carrier);
        let start = ETHERNET_OCTETS + outer;
        self.a.by(Subtract, R7, outer);
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
        self.unless_in(carrier, offset_of!(Arrival, outer_octets), next);
        let mut same = vec![
            (Word, 12, offset_of!(Arrival, remote)),
            (Word, 16, offset_of!(Arrival, local)),
        ];
        if carrier.is_udp() {
            same.push((Half, PORT, offset_of!(Arrival, port)));
            let octets = usize::from(carrier.shim_octets());
            let there = offset_of!(Arrival, shim);
            same.extend(
                (0..octets / 4).map(|word| (Word, SHIM + offset(4 * word), there + 4 * word)),
            );
            if octets % 4 != 0 {
                let at = octets / 4 * 4;
                same.push((Half, SHIM + offset(at), there + at));
            }
        }
        let a = &mut self.a;
        for (width, here, there) in same {
            a.load(width, R1, R10, HEADERS + here);
            a.load(width, R2, R8, field(there));
            a.jump_if_both(R1, When::NotEqual, R2, next);
        }
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
        self.adjust_room(-outer, flags);
        self.a.jump_if(R0, When::NotEqual, 0, next);
        self.count();
        let a = &mut self.a;
        a.set(R1, i32::from_ne_bytes(device.to_ne_bytes()));
        a.set(R2, TO_INGRESS);
        a.call(REDIRECT);
        a.exit();
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

/// The protocol of a packet of that family in an outer IPv4 one.
const fn ip_in_ip(family: Family) -> i32 {
    match family {
        Family::V4 => 4,
        Family::V6 => 41,
    }
}

fn outer(carrier: Carrier) -> i32 {
    carrier.outer_octets().into()
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
const HEADERS_OCTETS: i32 = 50;
const ARRIVED: i16 = -112;
// At both.
const KEY: i16 = -152;
const PLACE_OF_FLOW: i16 = -160;
const LAST: i16 = -168;
/// At our device: octets of the largest packet that one is cut into.
const SEGMENT: i16 = -176;

/// Where the outer headers have the protocol, the destination port, and the shim.
const PROTOCOL: i16 = 9;
const PORT: i16 = 22;
const SHIM: i16 = 28;

const ETHERNET_OCTETS: i32 = 14;
const IPV4_OCTETS: i32 = 20;
const UDP: i32 = 17;

// Flags of `bpf_skb_adjust_room`: the segment size stays; which headers come or go.
const FIXED_GSO: u64 = 1;
const ENCAP_IPV4: u64 = 1 << 1;
const ENCAP_UDP: u64 = 1 << 4;
const ENCAP_ETHERNET: u64 = 1 << 6;
const DECAP_IPV4: u64 = 1 << 7;
const DECAP_IPV6: u64 = 1 << 8;
const ETHERNET: u64 = 14;

/// A flag of `bpf_redirect`.
const TO_INGRESS: i32 = 1;

const _: () = assert!(FRONT_OCTETS == 52);
