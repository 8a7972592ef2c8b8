//! A packet socket that says of each packet what the kernel knows of it and its octets do not: whether
//! it is still to be cut, and whether its checksum is still to be filled in.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::GetStruct;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, getsockopt, recvmsg,
    setsockopt, socket, sockopt,
};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

use crate::common::Lab;

/// What passes the device and the wire of one node, both ways.
///
/// Nothing reads while the packets pass: the socket's buffer holds all of them ([`ROOM`]), and a
/// capture from which a packet is missing fails the test.
pub(crate) struct Tap {
    socket: OwnedFd,
    node: u8,
    device: usize,
    wire: usize,
    packets: Vec<Captured>,
}

/// A packet as the kernel has it at an interface, which may be a super-packet.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    pub(crate) point: Point,
    /// Whether the host sent it out through the interface; what came in, otherwise.
    pub(crate) outgoing: bool,
    /// The virtio header, in the order of this machine.
    pub(crate) offload: [u8; HEADER_OCTETS],
    /// What follows: an Ethernet frame, or an IP packet from a device without a link layer.
    pub(crate) octets: Vec<u8>,
}

/// Where.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Point {
    /// The TUN device: what goes out there is what the host's stack hands to the node.
    Device,
    /// The underlay.
    Wire,
}

impl Tap {
    /// Listens at a node that runs.
    pub(crate) fn open(lab: &Lab, node: u8) -> Self {
        lab.within(node, || {
            let index = |name| if_nametoindex(name).expect("it is there");
            let (device, wire) = (index("warren0"), index("wire"));
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .expect("root may");
            setsockopt(&socket, sockopt::RcvBufForce, &ROOM).expect("root may");
            setsockopt(&socket, VnetHeader, &true).expect("Linux 2.6.27");
            Self {
                socket,
                node,
                device: usize::try_from(device).expect("small"),
                wire: usize::try_from(wire).expect("small"),
                packets: Vec::new(),
            }
        })
    }

    /// What has been taken over so far, in its order.
    pub(crate) fn packets(&self) -> &[Captured] {
        &self.packets
    }

    /// Takes over what the kernel holds, and says how many packets there are then.
    pub(crate) fn drain(&mut self) -> usize {
        let mut room = vec![0; HEADER_OCTETS + PACKET_OCTETS_MAX];
        loop {
            let mut parts = [IoSliceMut::new(&mut room)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let (octets, from) =
                match recvmsg::<LinkAddr>(self.socket.as_raw_fd(), &mut parts, None, flags) {
                    Ok(message) => {
                        assert!(!message.flags.contains(MsgFlags::MSG_TRUNC), "room for all");
                        (message.bytes, message.address.expect("an interface"))
                    }
                    Err(Errno::EAGAIN) => break,
                    // EINVAL: what a virtio header cannot say, which was a UDP super-packet before
                    // Linux 6.2.
                    Err(error) => panic!("capture at node {}: {error}", self.node),
                };
            let point = match from.ifindex() {
                index if index == self.device => Point::Device,
                index if index == self.wire => Point::Wire,
                _ => continue,
            };
            let (header, octets) = room[..octets].split_at(HEADER_OCTETS);
            self.packets.push(Captured {
                point,
                outgoing: from.pkttype() == PACKET_OUTGOING,
                offload: header.try_into().expect("it was split there"),
                octets: octets.to_vec(),
            });
        }
        let lost = getsockopt(&self.socket, Statistics).expect("a packet socket");
        let node = self.node;
        assert_eq!(lost.tp_drops, 0, "the capture at node {node} has gaps");
        self.packets.len()
    }
}

sockopt_impl!(
    /// `PACKET_VNET_HDR`: a virtio header before each packet. packet(7).
    VnetHeader,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool
);

sockopt_impl!(
    /// `PACKET_STATISTICS`: packets taken and missed since the last look. packet(7).
    Statistics,
    GetOnly,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats,
    GetStruct<libc::tpacket_stats>
);

const PACKET_OUTGOING: u8 = libc::PACKET_OUTGOING;

/// Octets of the virtio header.
pub(crate) const HEADER_OCTETS: usize = 10;

/// More than the largest super-packet and its Ethernet header.
const PACKET_OCTETS_MAX: usize = 1 << 17;

/// Room for all packets of a test with what the kernel counts beside their octets, octets.
const ROOM: usize = 256 << 20;
