//! Segmentation offload for IP-in-IP: a TCP super-packet, or a row of datagrams, leaves whole, and the kernel, or
//! the device of the underlay, cuts it.
//!
//! A raw socket sends packet by packet, 43 of them for a super-packet of 61 KB, and costs so much
//! that it moves a third of what UDP does. The kernel can cut TCP behind an outer IP header
//! (`SKB_GSO_IPXIP4`, `SKB_GSO_IPXIP6`), but takes such a packet from its own tunnel devices only:
//! from a socket with a virtio header it refuses one. A program of BPF may make one, though, by
//! `bpf_skb_adjust_room`. So:
//!
//! ```text
//! AF_PACKET ── mark, [virtio | device | outer | inner] ──> egress of our own TUN device
//!                                                               │  a program of 50 instructions
//!                                    the route's device <───────┘  outer off, on again as a tunnel's,
//!                                    neighbour by the kernel       bpf_redirect_neigh
//! ```
//!
//! The program is attached to our device, never to one of the host; it leaves alone what does not
//! have the mark, which is 32 random bits, and ends with the worker. The packet itself says by
//! which device of the underlay it is to leave.
//!
//! Datagrams of one flow and one length that leave in a row, as a run of
//! [`Merge`](warren_core::gso::merge::Merge), take the same way as one super-packet, to a peer that says that it
//! takes them ([`super::rows`]).
//!
//! Such packets leave behind the host's output rules (netfilter `output` and `postrouting`), and
//! behind IPsec. So the offload is used only where `ipip-offload = true` or `flow-offload = true` says so, and
//! not while the host has an outbound IPsec policy. Nor for IPv4 packets that may be fragmented, for single
//! super-packets of other protocols than TCP, and where a segment does not fit the route: then the socket refuses
//! it with an error that is counted, or has it fragmented.
//!
//! Needs kernel 6.6, `CAP_BPF` and `CAP_NET_ADMIN` over the host. Without, the raw socket does it.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use warren_core::batch::{FrameRef, Link, Transport};
use warren_core::gso::merge::MergeRun;
use warren_core::gso::{Offload, PartialChecksum, SegmentKind, Splitter};
use warren_core::units::Family;
use warren_core::wire::{Ipv4Header, Ipv6Header, VirtioNetHeader};
use zerocopy::IntoBytes;

use crate::netlink::Netlink;
use crate::netlink::ipsec::has_ipsec_policy;
use crate::raw::rows::Rows;
use crate::sys::bpf::abi::{
    ADJUST_ROOM, BEHIND_MAC, CHANGE_HEAD, DROP, LOAD_BYTES, NEXT, REDIRECT_NEIGH, SKB_MARK,
    STORE_BYTES,
};
use crate::sys::bpf::{self, Instruction};
use crate::sys::packet;
use crate::sys::sockopt::{self, IntOption};
use crate::udp;

/// Sends TCP super-packets in IP.
#[derive(Debug)]
pub struct RawOffload {
    socket: Socket,
    /// Our device, where the program is.
    device: u32,
    /// While it is open the program is attached.
    _attached: OwnedFd,
    netlink: Netlink,
    routes: Vec<Route>,
    rows: Arc<Rows>,
    /// The next identification of an outer packet that may be fragmented.
    next_number: u16,
}

/// What became of a packet.
#[derive(Debug)]
pub enum Outcome {
    /// The kernel took it.
    Sent,
    /// It is none for the offload, and was not touched.
    Declined,
    /// The kernel did not take it.
    Failed(io::Error),
}

/// What is known about the way to a peer.
#[derive(Clone, Copy, Debug)]
struct Route {
    local: IpAddr,
    remote: IpAddr,
    /// The device and the largest outer packet; `None` where the offload must not be used.
    way: Option<(u32, usize)>,
    /// Whether the peer takes datagrams in a row.
    takes_rows: bool,
    until: Instant,
}

impl RawOffload {
    /// Attaches the program to the device named `device` in the network namespace of the calling
    /// thread, which is to be the underlay's. `mark` tells our packets apart there.
    ///
    /// # Errors
    ///
    /// Which step is not possible here, and why; the raw sockets do without.
    pub fn open(
        device: &str,
        mark: u32,
        send_buffer_octets: u32,
        rows: Arc<Rows>,
    ) -> Result<Self, OffloadError> {
        let failed = |what| move |source| OffloadError { what, source };
        let mut netlink = Netlink::open().map_err(|e| failed("netlink")(io::Error::other(e)))?;
        let device = netlink
            .link_index(device)
            .map_err(|e| failed("device")(io::Error::other(e)))?;
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)
            .map_err(failed("AF_PACKET socket"))?;
        // The kernel's type of the mark is unsigned; its octets are what counts.
        let as_set = i32::from_ne_bytes(mark.to_ne_bytes());
        for (what, option, value) in [
            ("PACKET_VNET_HDR", IntOption::PACKET_VIRTIO_HEADER, 1),
            ("SO_MARK", IntOption::MARK, as_set),
        ] {
            sockopt::set(socket.as_fd(), option, value).map_err(failed(what))?;
        }
        udp::grow_buffers(&socket, 0, send_buffer_octets).map_err(failed("buffer size"))?;
        let program = bpf::load_classifier(&program(mark)).map_err(failed("BPF program"))?;
        let attached =
            bpf::attach_egress(program.as_fd(), device).map_err(failed("tcx attachment"))?;
        // Whoever sees no packet of ours is not to know it.
        let [low, high, ..] = RandomState::new().hash_one(device).to_ne_bytes();
        let random = u16::from_ne_bytes([low, high]);
        Ok(Self {
            socket,
            device,
            _attached: attached,
            netlink,
            routes: Vec::with_capacity(ROUTES_MAX),
            rows,
            next_number: random,
        })
    }

    /// Sends a frame that the engine gave an IP-in-IP [`Link`], if it is one for the offload.
    pub fn send(&mut self, frame: &FrameRef<'_>) -> Outcome {
        let link = frame.link;
        let (Transport::Ip { protocol }, Some((SegmentKind::Tcp, size)), true) =
            (link.transport, frame.offload.segments, leaves_whole(link))
        else {
            return Outcome::Declined;
        };
        let inner = frame.bytes.get(frame.pushed..).unwrap_or_default();
        let Ok(splitter) = Splitter::new(inner, SegmentKind::Tcp, size) else {
            return Outcome::Declined;
        };
        let Some(partial) = frame.offload.partial_checksum.filter(|_| frame.pushed == 0) else {
            return Outcome::Declined;
        };
        // One segment is none to cut; octets behind the packet would be cut along; the mark of a
        // window that was reduced belongs into the first segment only, which not every device knows.
        let is_whole = splitter.payload(splitter.count() - 1).end == inner.len();
        let flags = inner.get(usize::from(partial.start) + TCP_FLAGS);
        let is_reduced = flags.is_none_or(|flags| flags & TCP_CWR != 0);
        if splitter.count() < 2 || !is_whole || is_reduced {
            return Outcome::Declined;
        }
        let number = self.numbers(splitter.count());
        let Some((family, outer)) = Outer::new(link, protocol, inner.len(), number) else {
            return Outcome::Declined;
        };
        let Some((device, room)) = self.route(link).way else {
            return Outcome::Declined;
        };
        let outer = outer.octets();
        if outer.len() + splitter.largest_octets() > room {
            return Outcome::Declined;
        }
        let headers = splitter.header_octets();
        self.hand_over(family, (device, outer), frame.offload, headers, [inner])
    }

    /// Whether datagrams may leave on that link in a row: the peer takes them, over IPv4.
    pub fn takes_rows(&mut self, link: &Link) -> bool {
        link.remote.is_ipv4() && leaves_whole(link) && self.route(link).takes_rows
    }

    /// Sends datagrams in a row, of which [`Merge`](warren_core::gso::merge::Merge) made `run`, as one
    /// super-packet, if they are some for the offload. `frames` are those of the run, at most
    /// [`ROW_MAX`], and have one [`Link`].
    pub fn send_row<'f>(
        &mut self,
        run: &MergeRun,
        mut frames: impl Iterator<Item = FrameRef<'f>>,
    ) -> Outcome {
        let Some(first) = frames.next() else {
            return Outcome::Declined;
        };
        let link = first.link;
        let is_one = run.kind == SegmentKind::Udp && first.pushed == 0 && self.takes_rows(link);
        let Transport::Ip { protocol } = link.transport else {
            return Outcome::Declined;
        };
        let Some((device, room)) = self.route(link).way.filter(|_| is_one) else {
            return Outcome::Declined;
        };
        let number = self.numbers(run.count);
        let Some((family, outer)) = Outer::new(link, protocol, run.total_octets, number) else {
            return Outcome::Declined;
        };
        let outer = outer.octets();
        if outer.len() + first.bytes.len() > room {
            return Outcome::Declined;
        }
        let mut head = [0; ROW_HEADERS_MAX];
        let (Some(head), Some((headers, payload))) = (
            head.get_mut(..run.header_octets),
            first.bytes.split_at_checked(run.header_octets),
        ) else {
            return Outcome::Declined;
        };
        head.copy_from_slice(headers);
        let Some(offload) = run.write_header(head) else {
            return Outcome::Declined;
        };
        let behind = frames.map(|frame| frame.bytes.get(run.header_octets..).unwrap_or_default());
        let inner = [&*head, payload].into_iter().chain(behind);
        self.hand_over(family, (device, outer), offload, run.header_octets, inner)
    }

    /// The first of so many numbers in a row, each of which comes again only after all others (RFC 6864 section 4.2).
    fn numbers(&mut self, count: usize) -> u16 {
        let first = self.next_number;
        self.next_number = first.wrapping_add(u16::try_from(count).unwrap_or(u16::MAX));
        first
    }

    /// Hands a super-packet to our device, for the program there: `inner` without the outer header, with
    /// headers of `header_octets`, of which `offload` speaks, to leave by a device behind an outer header.
    fn hand_over<'s>(
        &self,
        family: Family,
        (device, outer): (u32, &[u8]),
        offload: Offload,
        header_octets: usize,
        inner: impl IntoIterator<Item = &'s [u8]>,
    ) -> Outcome {
        let device = device.to_ne_bytes();
        // What stands before the inner packet: at most 44 octets.
        let before = u16::try_from(device.len() + outer.len()).unwrap_or_default();
        let headers = u16::try_from(header_octets).unwrap_or_default();
        let partial_checksum = offload.partial_checksum.map(|partial| PartialChecksum {
            start: partial.start.saturating_add(before),
            offset: partial.offset,
        });
        let offload = Offload {
            partial_checksum,
            segments: offload.segments,
        };
        let virtio = VirtioNetHeader::new(&offload, family, before.saturating_add(headers));
        let ether_type = match family {
            Family::V4 => ETHER_IPV4,
            Family::V6 => ETHER_IPV6,
        };
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut used = 0;
        let inner = inner.into_iter().map(|slice| -> &[u8] { slice });
        for slice in [virtio.as_bytes(), &device, outer].into_iter().chain(inner) {
            let Some(place) = slices.get_mut(used) else {
                return Outcome::Declined;
            };
            *place = IoSlice::new(slice);
            used += 1;
        }
        let slices = slices.get(..used).unwrap_or_default();
        match packet::send(self.socket.as_fd(), self.device, ether_type, slices) {
            Ok(_) => Outcome::Sent,
            Err(error) => Outcome::Failed(error),
        }
    }

    /// The device that leads to a link's remote end and the largest packet there, asked for once a
    /// second.
    fn route(&mut self, link: &Link) -> Route {
        let now = Instant::now();
        let is_of = |route: &Route| route.local == link.local && route.remote == link.remote;
        let known = self.routes.iter().position(is_of);
        let known_route = known.and_then(|at| self.routes.get(at));
        if let Some(route) = known_route.filter(|route| now < route.until) {
            return *route;
        }
        let route = Route {
            local: link.local,
            remote: link.remote,
            way: self.ask(link),
            takes_rows: self.rows.are_taken_by(link.remote),
            until: now + ROUTE_LIFE,
        };
        match known.and_then(|at| self.routes.get_mut(at)) {
            Some(place) => *place = route,
            None => {
                if self.routes.len() >= ROUTES_MAX {
                    self.routes.clear();
                }
                self.routes.push(route);
            }
        }
        route
    }

    fn ask(&mut self, link: &Link) -> Option<(u32, usize)> {
        if has_ipsec_policy() {
            return None;
        }
        let path = self
            .netlink
            .path_between(Some(link.local), link.remote)
            .ok()??;
        let room = self.netlink.link_at(path.device).ok()?.mtu;
        let room = path.mtu.map_or(room, |mtu| mtu.min(room));
        Some((path.device, usize::try_from(room).ok()?))
    }
}

/// Whether packets on `link` may be made here: those that are not fragmented, and those of IPv6 in IPv4, which
/// may be (RFC 4213 section 3.2.1) and are not where they fit the route.
const fn leaves_whole(link: &Link) -> bool {
    link.dont_fragment || matches!(link.transport, Transport::Ip { protocol: 41 })
}

/// A mark for [`RawOffload::open`] that nothing else on the host has, made of a random seed; never
/// zero, which is no mark.
#[must_use]
pub fn mark(seed: u64) -> u32 {
    let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    u32::try_from(mixed).map_or(1, |mark| mark | 1)
}

/// Whether an error of [`Outcome::Failed`] may pass: buffers are full, or the device is down.
#[must_use]
pub fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::ENETDOWN)
    )
}

/// Why there is no offload for IP-in-IP here.
#[derive(Debug, thiserror::Error)]
#[error("segmentation offload for IP-in-IP: {what}")]
pub struct OffloadError {
    what: &'static str,
    source: io::Error,
}

/// An outer header.
enum Outer {
    V4(Ipv4Header),
    V6(Ipv6Header),
}

impl Outer {
    /// The header for `inner_octets` on `link`, and the family inside; `None` when they are too
    /// many for one IP packet, or the link is none of IP-in-IP. A packet that may be fragmented has an
    /// identification: `number`, and its segments those that follow.
    fn new(link: &Link, protocol: u8, inner_octets: usize, number: u16) -> Option<(Family, Self)> {
        let family = match protocol {
            4 => Family::V4,
            41 => Family::V6,
            _ => return None,
        };
        let outer = match (link.local, link.remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                let total = u16::try_from(size_of::<Ipv4Header>() + inner_octets).ok()?;
                let mut header = Ipv4Header::new(local, remote, protocol, total);
                header.set_tos(link.traffic_class);
                header.set_ttl(link.hop_limit);
                if link.dont_fragment {
                    header.set_fragment_word(Ipv4Header::DONT_FRAGMENT);
                } else {
                    header.set_identification(number);
                }
                header.fill_checksum(&[]);
                Self::V4(header)
            }
            (IpAddr::V6(local), IpAddr::V6(remote)) => {
                let payload = u16::try_from(inner_octets).ok()?;
                let mut header = Ipv6Header::new(local, remote, protocol, payload);
                header.set_traffic_class(link.traffic_class);
                header.set_hop_limit(link.hop_limit);
                Self::V6(header)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        Some((family, outer))
    }

    fn octets(&self) -> &[u8] {
        match self {
            Self::V4(header) => header.as_bytes(),
            Self::V6(header) => header.as_bytes(),
        }
    }
}

/// The program at our device's egress: turns `[device | outer | inner]` of a packet with `mark`
/// into a packet in a tunnel, and sends it by that device. A packet with which a step fails is
/// dropped, so that no half-made one leaves.
fn program(mark: u32) -> Vec<Instruction> {
    let op = Instruction::new;
    let set = |to, value| op(0xb7, to, 0, 0, value);
    let copy = |to, from| op(0xbf, to, from, 0, 0);
    let add = |to, value| op(0x07, to, 0, 0, value);
    let call = |function| op(0x85, 0, 0, 0, function);
    let exit = op(0x95, 0, 0, 0, 0);
    let parts: [&[Instruction]; 7] = [
        &[
            copy(6, 1),
            // Without the mark it is not ours: for the device, or another program.
            op(0x61, 2, 6, SKB_MARK, 0),
            op(0xb4, 3, 0, 0, i32::from_ne_bytes(mark.to_ne_bytes())),
            op(0x1d, 2, 3, 2, 0),
            set(0, NEXT),
            exit,
            // Routing rules are to see what they see of a raw socket's packets: no mark.
            set(2, 0),
            op(0x63, 6, 2, SKB_MARK, 0),
        ],
        // What stands before, to the stack. An inner packet has more octets than an outer IPv4
        // header is shorter.
        &[
            copy(1, 6),
            set(2, 0),
            copy(3, 10),
            add(3, HEAD),
            set(4, HEAD_OCTETS),
            call(LOAD_BYTES),
        ],
        // The outer header's length, and the kind of tunnel, by its version. Then it goes ...
        &[
            set(8, 20),
            set(9, FIXED_GSO | ENCAP_IPV4),
            op(0x71, 1, 10, OUTER, 0),
            op(0x77, 1, 0, 0, 4),
            op(0x15, 1, 0, 2, 4),
            set(8, 40),
            set(9, FIXED_GSO | ENCAP_IPV6),
            copy(1, 6),
            set(2, -DEVICE_OCTETS),
            op(0x1f, 2, 8, 0, 0),
            set(3, BEHIND_MAC),
            set(4, FIXED_GSO),
            call(ADJUST_ROOM),
        ],
        // ... and comes again as that of a tunnel.
        &[
            copy(1, 6),
            copy(2, 8),
            set(3, BEHIND_MAC),
            copy(4, 9),
            call(ADJUST_ROOM),
        ],
        &[
            copy(1, 6),
            set(2, 0),
            copy(3, 10),
            add(3, HEAD + DEVICE_OCTETS),
            copy(4, 8),
            set(5, 0),
            call(STORE_BYTES),
        ],
        // The next function takes an Ethernet header off, which our device has none of.
        &[
            copy(1, 6),
            set(2, ETHERNET_OCTETS),
            set(3, 0),
            call(CHANGE_HEAD),
        ],
        &[
            op(0x61, 1, 10, DEVICE, 0),
            set(2, 0),
            set(3, 0),
            set(4, 0),
            call(REDIRECT_NEIGH),
            exit,
        ],
    ];
    let drop = [set(0, DROP), exit];
    let [first, steps @ .., last] = parts;
    let mut program = first.to_vec();
    let checked: usize = steps.iter().map(|step| step.len() + 1).sum();
    let end = first.len() + checked + last.len();
    for step in steps {
        program.extend_from_slice(step);
        // To the end, if the step's function has failed.
        let distance = end - (program.len() + 1);
        let distance = i16::try_from(distance).expect("the program has fewer instructions");
        program.push(op(0x55, 0, 0, distance, 0));
    }
    program.extend_from_slice(last);
    program.extend(drop);
    program
}

/// Octets before the outer header: the index of the device to leave by.
const DEVICE_OCTETS: i32 = 4;
/// Where the stack has it.
const DEVICE: i16 = -48;
/// Where the stack has the outer header's first octet.
const OUTER: i16 = -44;
/// Where the stack has what stands before the inner packet.
const HEAD: i32 = -48;
const HEAD_OCTETS: i32 = 44;
const ETHERNET_OCTETS: i32 = 14;

// Flags of `bpf_skb_adjust_room`: the segment size stays; which header comes.
const FIXED_GSO: i32 = 1;
const ENCAP_IPV4: i32 = 1 << 1;
const ENCAP_IPV6: i32 = 1 << 2;

/// Where a TCP header has its flags, and one of them.
const TCP_FLAGS: usize = 13;
const TCP_CWR: u8 = 0x80;

const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86dd;

/// Datagrams in a row that leave as one, at most.
pub const ROW_MAX: usize = 64;

/// The longest headers of a datagram in a row: IPv6's and UDP's.
const ROW_HEADERS_MAX: usize = 48;

/// What one packet is gathered of: three slices before it, its headers, and the payloads.
const SLICES_MAX: usize = 3 + 1 + ROW_MAX;

/// How long an answer about a route is believed.
const ROUTE_LIFE: Duration = Duration::from_secs(1);

/// Peers whose routes are remembered.
const ROUTES_MAX: usize = 256;

#[cfg(test)]
#[path = "offload_tests.rs"]
mod tests;
