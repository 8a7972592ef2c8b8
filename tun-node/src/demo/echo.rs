//! Echo requests over raw ICMP sockets, and what comes back.
//!
//! Runs in the agent, which is root in its node's user namespace and may therefore open raw
//! sockets in the node's network namespace. The kernel of the target node answers: nothing of
//! Warren is at either end, only between them. Each reply is held against its request: source,
//! identifier, sequence number, payload and (IPv4; the kernel does it for IPv6) checksum.
//! Round-trip times are those of the monotonic clock around the two system calls.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};
use warren_core::wire::{checksum, icmp, icmpv6, ip_protocol};

use super::order::{EchoTally, Ping};
use super::stream::SeededOctets;

/// Sends the requests of `order` and collects the replies.
///
/// Returns as soon as every request is answered, at the latest `wait_us` after the last one was
/// sent. `progress` is told the number of requests sent, now and then.
///
/// # Errors
///
/// A raw socket could not be opened, or the order asks for more than [`REQUESTS_MAX`] requests.
pub(super) fn ping(order: &Ping, mut progress: impl FnMut(u64)) -> io::Result<Vec<EchoTally>> {
    let requests = order.targets.len() * usize::from(order.count);
    if requests > REQUESTS_MAX {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "too many echo requests in one order",
        ));
    }
    let sockets = Sockets::open(&order.targets)?;
    let mut round = Round::new(order);
    let mut poll = Poll::new()?;
    for (token, socket) in sockets.all() {
        let fd = socket.as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), token, Interest::READABLE)?;
    }
    let mut events = Events::with_capacity(8);
    let mut told = Instant::now();
    loop {
        let now = Instant::now();
        round.send_due(&sockets, now);
        if told.elapsed() >= PROGRESS_EVERY {
            progress(round.next as u64);
            told = now;
        }
        let Some(deadline) = round.deadline() else {
            return Ok(round.tallies());
        };
        let timeout = deadline.saturating_duration_since(Instant::now());
        if timeout.is_zero() && round.next == requests {
            return Ok(round.tallies());
        }
        match poll.poll(&mut events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => other?,
        }
        // Both are drained whatever was readable: the edge of one can hide behind the other's.
        for (_, socket) in sockets.all() {
            round.receive(socket);
        }
    }
}

/// The requests of one order, sent and unsent, by sequence number.
#[derive(Debug)]
struct Round<'o> {
    order: &'o Ping,
    start: Instant,
    /// How many have been sent; the next one's sequence number.
    next: usize,
    last_sent: Instant,
    unanswered: usize,
    requests: Vec<Request>,
    duplicates: Vec<u32>,
    send_errors: Vec<Option<String>>,
    identifier: u16,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    sent: Option<Instant>,
    rtt: Option<Duration>,
}

impl<'o> Round<'o> {
    fn new(order: &'o Ping) -> Self {
        let start = Instant::now() + Duration::from_micros(order.phase_us);
        let requests = order.targets.len() * usize::from(order.count);
        let unsent = Request {
            sent: None,
            rtt: None,
        };
        Self {
            order,
            start,
            next: 0,
            last_sent: start,
            unanswered: requests,
            requests: vec![unsent; requests],
            duplicates: vec![0; order.targets.len()],
            send_errors: vec![None; order.targets.len()],
            // The low half tells agents apart well enough: each has its own namespace anyway.
            identifier: u16::from_be_bytes(low_half(std::process::id())),
        }
    }

    /// Sends every request whose time has come.
    fn send_due(&mut self, sockets: &Sockets, now: Instant) {
        while self.next < self.requests.len() && self.due(self.next) <= now {
            let sequence = self.next;
            self.next += 1;
            let Some((index, target)) = self.target(sequence) else {
                continue;
            };
            let message = self.message(target, sequence);
            let sent = Instant::now();
            self.last_sent = sent;
            match sockets
                .of(target)
                .send_to(&message, SocketAddr::new(target, 0))
            {
                Ok(_) => {
                    if let Some(request) = self.requests.get_mut(sequence) {
                        request.sent = Some(sent);
                    }
                }
                Err(error) => {
                    self.unanswered -= 1;
                    if let Some(slot) = self.send_errors.get_mut(index) {
                        *slot = Some(error.to_string());
                    }
                }
            }
        }
    }

    /// When something must be done again; `None` when everything is answered.
    fn deadline(&self) -> Option<Instant> {
        if self.next < self.requests.len() {
            return Some(self.due(self.next));
        }
        (self.unanswered > 0).then(|| self.last_sent + Duration::from_micros(self.order.wait_us))
    }

    /// Takes whatever is in `socket`.
    fn receive(&mut self, socket: &UdpSocket) {
        let mut buffer = [0; 2048];
        loop {
            match socket.recv_from(&mut buffer) {
                Ok((length, source)) => {
                    let now = Instant::now();
                    let octets = buffer.get(..length).unwrap_or_default();
                    self.handle(octets, source.ip(), now);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // An ICMP error that the kernel reports here; the request stays unanswered.
                Err(_) => {}
            }
        }
    }

    /// Holds a datagram of a raw socket against the request that it may answer.
    fn handle(&mut self, octets: &[u8], source: IpAddr, now: Instant) {
        let Some(reply) = Reply::parse(octets, source) else {
            return;
        };
        let sequence = usize::from(reply.sequence);
        let Some((index, target)) = self.target(sequence) else {
            return;
        };
        if reply.identifier != self.identifier
            || source != target
            || reply.payload != payload(sequence)
        {
            return;
        }
        let Some(request) = self.requests.get_mut(sequence) else {
            return;
        };
        let Some(sent) = request.sent else { return };
        if request.rtt.is_some() {
            if let Some(count) = self.duplicates.get_mut(index) {
                *count += 1;
            }
            return;
        }
        request.rtt = Some(now.saturating_duration_since(sent));
        self.unanswered -= 1;
    }

    /// When the request `sequence` is due: rounds an interval apart, and the targets of a round
    /// spread evenly over it.
    fn due(&self, sequence: usize) -> Instant {
        let targets = self.order.targets.len() as u64;
        let steps = sequence as u64 * self.order.interval_us / targets.max(1);
        self.start + Duration::from_micros(steps)
    }

    fn target(&self, sequence: usize) -> Option<(usize, IpAddr)> {
        let index = sequence.checked_rem(self.order.targets.len())?;
        Some((index, *self.order.targets.get(index)?))
    }

    fn message(&self, target: IpAddr, sequence: usize) -> Vec<u8> {
        // REQUESTS_MAX keeps every sequence number within 16 bits.
        let sequence_field = low_half(u32::try_from(sequence).unwrap_or_default());
        let kind = match target {
            IpAddr::V4(_) => icmp::kind::ECHO_REQUEST,
            IpAddr::V6(_) => icmpv6::kind::ECHO_REQUEST,
        };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.identifier.to_be_bytes());
        message.extend(sequence_field);
        message.extend(payload(sequence));
        if target.is_ipv4() {
            // The kernel fills it in for ICMPv6 (RFC 3542 section 3.1).
            let sum = checksum::of(&message).to_be_bytes();
            for (to, from) in message.iter_mut().skip(2).zip(sum) {
                *to = from;
            }
        }
        message
    }

    fn tallies(&self) -> Vec<EchoTally> {
        let targets = self.order.targets.iter().enumerate();
        targets
            .map(|(index, target)| EchoTally {
                target: *target,
                sent: u32::from(self.order.count),
                rtt_ns: self
                    .requests
                    .iter()
                    .skip(index)
                    .step_by(self.order.targets.len())
                    .filter_map(|request| request.rtt)
                    .map(|rtt| u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX))
                    .collect(),
                duplicates: self.duplicates.get(index).copied().unwrap_or_default(),
                send_error: self.send_errors.get(index).cloned().flatten(),
            })
            .collect()
    }
}

/// An echo reply as a raw socket delivers it.
#[derive(Debug, PartialEq)]
struct Reply<'b> {
    identifier: u16,
    sequence: u16,
    payload: &'b [u8],
}

impl<'b> Reply<'b> {
    /// Reads a datagram; `None` for whatever is not an echo reply with a good checksum.
    ///
    /// A raw IPv4 socket delivers the IP header too, a raw IPv6 socket does not.
    fn parse(octets: &'b [u8], source: IpAddr) -> Option<Self> {
        let (message, reply) = match source {
            IpAddr::V4(_) => {
                let header_octets = usize::from(octets.first()? & 0x0f) * 4;
                if *octets.get(9)? != ip_protocol::ICMP {
                    return None;
                }
                let message = octets.get(header_octets..)?;
                if checksum::of(message) != 0 {
                    return None;
                }
                (message, icmp::kind::ECHO_REPLY)
            }
            IpAddr::V6(_) => (octets, icmpv6::kind::ECHO_REPLY),
        };
        let ([kind, 0, _, _, i1, i2, s1, s2], payload) = message.split_first_chunk::<8>()? else {
            return None;
        };
        (*kind == reply).then_some(Self {
            identifier: u16::from_be_bytes([*i1, *i2]),
            sequence: u16::from_be_bytes([*s1, *s2]),
            payload,
        })
    }
}

/// A raw socket for each family.
///
/// As `UdpSocket`s, because their calls (`recvfrom`, `sendto`) are the same and take initialised
/// buffers; the kernel knows what they are.
#[derive(Debug)]
struct Sockets {
    v4: UdpSocket,
    v6: UdpSocket,
}

impl Sockets {
    fn open(targets: &[IpAddr]) -> io::Result<Self> {
        let open = |domain, protocol| {
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            // Requests of the other nodes arrive here too, all at once in the worst case.
            let room = REQUESTS_MAX.min(targets.len() * 64) * 1024;
            socket.set_recv_buffer_size(room.max(1 << 18))?;
            Ok::<_, io::Error>(UdpSocket::from(socket))
        };
        Ok(Self {
            v4: open(Domain::IPV4, Protocol::ICMPV4)?,
            v6: open(Domain::IPV6, Protocol::ICMPV6)?,
        })
    }

    const fn of(&self, target: IpAddr) -> &UdpSocket {
        match target {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        }
    }

    const fn all(&self) -> [(Token, &UdpSocket); 2] {
        [(Token(0), &self.v4), (Token(1), &self.v6)]
    }
}

/// What the request `sequence` carries: different for each, as much as ping(8) sends.
fn payload(sequence: usize) -> [u8; 56] {
    let mut octets = [0; 56];
    SeededOctets::new(sequence as u64).fill(&mut octets);
    octets
}

const fn low_half(value: u32) -> [u8; 2] {
    let [_, _, high, low] = value.to_be_bytes();
    [high, low]
}

/// The most requests of one order; their number is the ICMP sequence number, 16 bits.
const REQUESTS_MAX: usize = 1 << 12;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const TARGETS: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];

    fn order(count: u16) -> Ping {
        Ping {
            targets: TARGETS.to_vec(),
            count,
            interval_us: 1000,
            phase_us: 0,
            wait_us: 1_000_000,
        }
    }

    /// The reply that a kernel would give to `message`, as a raw socket delivers it.
    fn reply_to(message: &[u8]) -> Vec<u8> {
        let mut reply = message.to_vec();
        if reply[0] == icmp::kind::ECHO_REQUEST {
            reply[0] = icmp::kind::ECHO_REPLY;
            reply[2..4].fill(0);
            let sum = checksum::of(&reply);
            reply[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut header = vec![0x45; 20];
            header[9] = ip_protocol::ICMP;
            header.extend(reply);
            return header;
        }
        reply[0] = icmpv6::kind::ECHO_REPLY;
        reply
    }

    /// A round whose two requests count as sent.
    fn sent(order: &Ping) -> Round<'_> {
        let mut round = Round::new(order);
        for request in &mut round.requests {
            request.sent = Some(round.start);
        }
        round.next = round.requests.len();
        round
    }

    #[test]
    fn requests_spread_evenly_over_the_interval() {
        let order = order(2);
        let round = Round::new(&order);
        let offsets: Vec<u128> = (0..4)
            .map(|sequence| (round.due(sequence) - round.start).as_micros())
            .collect();
        assert_eq!(offsets, [0, 500, 1000, 1500]);
    }

    #[test]
    fn a_right_reply_counts_once_and_then_as_duplicate() {
        let order = order(1);
        let mut round = sent(&order);
        let now = round.start + Duration::from_millis(3);
        for (sequence, target) in TARGETS.into_iter().enumerate() {
            let reply = reply_to(&round.message(target, sequence));
            round.handle(&reply, target, now);
        }
        assert_eq!(round.deadline(), None);
        let reply = reply_to(&round.message(TARGETS[0], 0));
        round.handle(&reply, TARGETS[0], now);
        let tallies = round.tallies();
        assert_eq!(tallies[0].rtt_ns, [3_000_000]);
        assert_eq!(tallies[1].rtt_ns, [3_000_000]);
        assert_eq!((tallies[0].duplicates, tallies[1].duplicates), (1, 0));
    }

    #[test]
    fn nothing_but_the_right_reply_counts() {
        let order = order(1);
        let mut round = sent(&order);
        let now = Instant::now();
        let good = reply_to(&round.message(TARGETS[0], 0));
        let foreign = "127.0.0.9".parse().unwrap();
        round.handle(&good, foreign, now);
        for at in [9, 20, 21, 22, 24, 26, 28, 83] {
            let mut wrong = good.clone();
            wrong[at] ^= 1;
            round.handle(&wrong, TARGETS[0], now);
        }
        for length in 0..good.len() {
            round.handle(&good[..length], TARGETS[0], now);
        }
        let request = round.message(TARGETS[1], 1);
        round.handle(&request, TARGETS[1], now);
        assert_eq!(round.unanswered, 2);
        round.handle(&good, TARGETS[0], now);
        assert_eq!(round.unanswered, 1);
    }

    #[test]
    fn the_kernel_answers_on_the_loopback_device() {
        let tallies = match ping(&order(5), |_| ()) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                eprintln!("skipped: raw sockets need CAP_NET_RAW ({error})");
                return;
            }
            other => other.unwrap(),
        };
        let v4 = &tallies[0];
        assert_eq!((v4.sent, v4.rtt_ns.len(), v4.duplicates), (5, 5, 0));
        // ::1 is missing where IPv6 is switched off; then every request is a send error.
        let v6 = &tallies[1];
        assert!(v6.rtt_ns.len() == 5 || v6.send_error.is_some(), "{v6:?}");
    }
}
