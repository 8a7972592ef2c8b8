//! One netlink socket that asks for changes and hears of those that others make.
//!
//! One, because an event carries the port of the socket that asked for the change: what carries our
//! own is passed over, and what is heard is always somebody else. Changes leave many at a time in
//! one `sendto`, which the kernel carries out before it returns; refusals and the acknowledgement of
//! the last one are then in the socket, among the events.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of rtnetlink mirror the kernel's, most of which is none of our business"
)]

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    recv, send, setsockopt, socket, sockopt,
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
    /// Its port: what events of its own changes carry.
    port: u32,
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
        let port = getsockname::<NetlinkAddr>(socket.as_raw_fd())?.pid();
        Ok(Self {
            socket,
            port,
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
            while let Some(octets) = first_message(rest) {
                if !is_own_event(octets, self.port) {
                    match NetlinkMessage::deserialize(octets) {
                        Ok(message) => read_message(&message, heard, answers),
                        // What cannot be read may have been anything.
                        Err(_) => heard.push(Heard::Overrun),
                    }
                }
                let length = octets.len().next_multiple_of(4);
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

/// The octets of the first message of a datagram. RFC 3549 section 2.3.2: lengths include the
/// header, and messages are aligned to four octets.
fn first_message(rest: &[u8]) -> Option<&[u8]> {
    let (length, _) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
    rest.get(..length).filter(|_| length >= HEADER_OCTETS)
}

/// Whether a message tells of a route that the socket with `port` changed. Of 100,000 routes there
/// are as many, so they are told apart before they are read.
fn is_own_event(message: &[u8], port: u32) -> bool {
    let Some((header, _)) = message.split_first_chunk::<HEADER_OCTETS>() else {
        return false;
    };
    let [_, _, _, _, kind @ .., _, _, _, _, _, _, a, b, c, d] = *header;
    let kind = u16::from_ne_bytes(kind);
    u32::from_ne_bytes([a, b, c, d]) == port
        && [libc::RTM_NEWROUTE, libc::RTM_DELROUTE].contains(&kind)
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

/// `struct nlmsghdr`: length, kind, flags, sequence number, port.
const HEADER_OCTETS: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::netlink::{ListedRoute, Netlink, Route};
    use crate::testing::{in_netns, ip};

    fn route(number: u32, device: u32) -> ListedRoute {
        let [_, high, middle, low] = number.to_be_bytes();
        let prefix = format!("10.{high}.{middle}.{low}/32").parse();
        let route = Route::new(prefix.expect("a prefix"));
        ListedRoute { route, device }
    }

    #[test]
    fn many_routes_go_at_once_refusals_are_told_apart_and_only_others_are_heard() {
        in_netns(|| {
            ip("link add d0 type veth peer name d1");
            ip("link set d0 up");
            let mut netlink = Netlink::open().expect("a socket");
            let device = netlink.link_index("d0").expect("it was made");
            let mut wire = Wire::open().expect("a socket");
            let mut heard = Vec::new();
            let all: Vec<ListedRoute> = (0..10_000).map(|number| route(number, device)).collect();
            let adds: Vec<Action> = all.iter().cloned().map(Action::Add).collect();
            let start = Instant::now();
            let refused = wire.change(&adds, &mut heard).expect("it answers");
            eprintln!("10,000 routes: {:?}", start.elapsed());
            assert_eq!(refused, []);
            assert_eq!(heard.len(), 0, "of its own changes it hears nothing");
            assert!(netlink.routes(Some(device), None).expect("listed") == all);
            // Every one is refused, and each is known by its own answer.
            let refused = wire.change(&adds, &mut heard).expect("it answers");
            let again = adds.iter().cloned().map(|add| (add, Refused::Exists));
            assert!(refused == again.collect::<Vec<_>>());
            // Somebody else.
            let changed = route(9, device).route;
            netlink.delete_route(device, &changed).expect("deleted");
            netlink.add_route(device, &changed).expect("added");
            let changed = Route {
                mtu: Some(1300),
                ..changed
            };
            netlink.replace_route(device, &changed).expect("replaced");
            wire.hear(&mut heard).expect("it tells");
            let events: Vec<Heard> = std::mem::take(&mut heard);
            let (nine, changed) = (
                route(9, device),
                ListedRoute {
                    route: changed,
                    device,
                },
            );
            let expected = [
                RouteEvent::Removed(nine.clone()),
                RouteEvent::Added(nine),
                RouteEvent::Replaced(changed),
            ];
            assert_eq!(events, expected.map(Heard::Route));
            // Somebody else and much: what finds no room is said to be missing.
            let mut other = Wire::open().expect("a socket");
            let dels: Vec<Action> = all.iter().cloned().map(Action::Delete).collect();
            let refused = other.change(&dels, &mut Vec::new()).expect("it answers");
            assert_eq!(refused, []);
            wire.hear(&mut heard).expect("it tells");
            let lost = heard.contains(&Heard::Overrun);
            assert!(lost || heard.len() == 10_000, "{}", heard.len());
            // Links and addresses.
            heard.clear();
            ip("link set d0 mtu 1400");
            ip("addr add 192.0.2.7/24 dev d0");
            ip("link del d1");
            wire.hear(&mut heard).expect("it tells");
            let has = |wanted: &dyn Fn(&Heard) -> bool| heard.iter().any(wanted);
            assert!(has(
                &|one| matches!(one, Heard::Link(link) if link.index == device && link.mtu == 1400)
            ));
            assert!(has(&|one| matches!(
                one,
                Heard::Address { address, there: true, .. } if address.to_string() == "192.0.2.7"
            )));
            assert!(has(&|one| *one == Heard::LinkGone(device)));
        });
    }
}
