//! One netlink socket that asks for changes and hears of those that others make.
//!
//! One, because the kernel does not tell a socket of the changes that it asked for itself: what is
//! heard is always somebody else. Changes leave many at a time in one `sendto`, which the kernel
//! carries out before it returns; refusals and the acknowledgement of the last one are then in the
//! socket, among the events. 100,000 routes take 0.2 s so, and several seconds one by one.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of rtnetlink mirror the kernel's, most of which is none of our business"
)]

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::plan::{Action, Refused, RouteEvent};
use crate::netlink::{self, Link};

/// The socket.
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
    buffer: Box<[u8]>,
    sequence: u32,
}

/// Something that the kernel tells.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Heard {
    /// A link was made or changed.
    Link(Link),
    /// A link is gone.
    LinkGone(u32),
    /// A link has an address, or has it no longer.
    Address {
        /// The link.
        device: u32,
        /// The address.
        address: IpAddr,
        /// Whether it is there.
        there: bool,
    },
    /// A route of the main table.
    Route(RouteEvent),
    /// Events were lost.
    Overrun,
}

impl Wire {
    /// Opens it in the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        // Above the usual limit where that is permitted; an overrun is repaired either way.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_OCTETS).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER_OCTETS);
        }
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV6_ROUTE;
        let groups = u32::try_from(groups).map_err(io::Error::other)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self {
            socket,
            // The kernel's largest datagram of events.
            buffer: vec![0; 32 << 10].into_boxed_slice(),
            sequence: 0,
        })
    }

    /// Has the kernel make these changes, and returns those that it refused. What was heard
    /// meanwhile is appended to `heard`.
    pub(super) fn change(
        &mut self,
        actions: &[Action],
        heard: &mut Vec<Heard>,
    ) -> io::Result<Vec<(Action, Refused)>> {
        let mut refused = Vec::new();
        for actions in actions.chunks(BATCH) {
            let first = self.sequence.wrapping_add(1);
            let mut request = Vec::with_capacity(actions.len() * 80);
            for (index, action) in actions.iter().enumerate() {
                self.sequence = self.sequence.wrapping_add(1);
                let is_last = index + 1 == actions.len();
                append(&mut request, action, self.sequence, is_last);
            }
            send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
            let mut answers = Vec::new();
            self.read(heard, &mut answers)?;
            for (sequence, errno) in answers {
                let index = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                let Some(action) = actions.get(index) else {
                    continue;
                };
                let why = match errno {
                    0 => continue,
                    libc::EEXIST => Refused::Exists,
                    libc::ESRCH | libc::ENOENT => Refused::NotFound,
                    _ => Refused::Otherwise,
                };
                refused.push((action.clone(), why));
            }
        }
        Ok(refused)
    }

    /// Takes whatever there is to hear, without waiting.
    pub(super) fn hear(&mut self, heard: &mut Vec<Heard>) -> io::Result<()> {
        self.read(heard, &mut Vec::new())
    }

    /// Reads until there is nothing: events, and answers as sequence number and errno.
    fn read(&mut self, heard: &mut Vec<Heard>, answers: &mut Vec<(u32, i32)>) -> io::Result<()> {
        loop {
            let octets = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(octets) => octets,
                Err(Errno::ENOBUFS) => {
                    heard.push(Heard::Overrun);
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    let error = io::Error::from(errno);
                    return match error.kind() {
                        ErrorKind::WouldBlock => Ok(()),
                        _ => Err(error),
                    };
                }
            };
            let mut rest = self.buffer.get(..octets).unwrap_or_default();
            while let Some((length, message)) = first_message(rest) {
                match message {
                    Some(message) => read_message(&message, heard, answers),
                    // What cannot be read may have been anything.
                    None => heard.push(Heard::Overrun),
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The first message of a datagram and the octets to its next one. RFC 3549 section 2.3.2:
/// lengths include the header, and messages are aligned to four octets.
fn first_message(rest: &[u8]) -> Option<(usize, Option<NetlinkMessage<RouteNetlinkMessage>>)> {
    let (length, _) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
    let octets = rest.get(..length).filter(|_| length >= 16)?;
    let message = NetlinkMessage::deserialize(octets).ok();
    Some((length.next_multiple_of(4), message))
}

fn read_message(
    message: &NetlinkMessage<RouteNetlinkMessage>,
    heard: &mut Vec<Heard>,
    answers: &mut Vec<(u32, i32)>,
) {
    let inner = match &message.payload {
        NetlinkPayload::Error(error) => {
            let errno = error.raw_code().checked_neg().unwrap_or(libc::EIO);
            return answers.push((message.header.sequence_number, errno));
        }
        NetlinkPayload::InnerMessage(inner) => inner,
        NetlinkPayload::Overrun(_) => return heard.push(Heard::Overrun),
        _ => return,
    };
    let was_replaced = message.header.flags & NLM_F_REPLACE != 0;
    let event = match inner {
        RouteNetlinkMessage::NewLink(link) => Some(Heard::Link(netlink::read_link(link))),
        RouteNetlinkMessage::DelLink(link) => Some(Heard::LinkGone(link.header.index)),
        RouteNetlinkMessage::NewAddress(address) => heard_address(address, true),
        RouteNetlinkMessage::DelAddress(address) => heard_address(address, false),
        RouteNetlinkMessage::NewRoute(route) => netlink::read_route(route).map(|listed| {
            Heard::Route(if was_replaced {
                RouteEvent::Replaced(listed)
            } else {
                RouteEvent::Added(listed)
            })
        }),
        RouteNetlinkMessage::DelRoute(route) => {
            netlink::read_route(route).map(|listed| Heard::Route(RouteEvent::Removed(listed)))
        }
        _ => None,
    };
    heard.extend(event);
}

fn heard_address(
    message: &rtnetlink::packet_route::address::AddressMessage,
    there: bool,
) -> Option<Heard> {
    netlink::read_address(message).map(|net| Heard::Address {
        device: message.header.index,
        address: net.addr(),
        there,
    })
}

/// Appends the request for a change.
fn append(request: &mut Vec<u8>, action: &Action, sequence: u32, acknowledge: bool) {
    let route = action.subject();
    let message = netlink::write_route(route.device, &route.route);
    let (inner, flags) = match action {
        Action::Add(_) => (
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
        ),
        Action::Replace(_) => (
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        ),
        Action::Delete(_) => (RouteNetlinkMessage::DelRoute(message), 0),
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags | if acknowledge { NLM_F_ACK } else { 0 };
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(inner));
    message.finalize();
    let start = request.len();
    let length = message.buffer_len();
    request.resize(start + length.next_multiple_of(4), 0);
    if let Some(room) = request.get_mut(start..start + length) {
        message.serialize(room);
    }
}

/// Changes in one call: well below the socket's send buffer, and few enough that the answers to
/// all of them, were they all refused, fit into its receive buffer.
const BATCH: usize = 256;

const BUFFER_OCTETS: usize = 4 << 20;
