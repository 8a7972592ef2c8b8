//! What is sent through the nodes: a stream of TCP, and datagrams of many sizes, whole super-packets
//! and fragments among them.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use crate::common::Lab;

/// That many octets, which do not repeat.
pub(crate) fn stream(octets: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    });
    words.flatten().take(octets).collect()
}

/// Sends a stream of `octets` by TCP, and a short answer back; both ends close.
pub(crate) fn transfer(lab: &Lab, from: u8, to: u8, address: IpAddr, octets: usize) {
    let listener = lab.within(to, || TcpListener::bind((address, 0)).expect("a port"));
    let target = listener.local_addr().expect("it is bound");
    let expected = stream(octets);
    let answer = stream(20_000);
    std::thread::scope(|scope| {
        let (expected, answer) = (&expected, &answer);
        let receiver = scope.spawn(move || {
            let (mut connection, _) = listener.accept().expect("a connection");
            connection.set_read_timeout(PATIENCE).expect("a timeout");
            let mut arrived = Vec::new();
            connection.read_to_end(&mut arrived).expect("the octets");
            assert!(arrived == *expected, "{} octets arrived", arrived.len());
            connection.write_all(answer).expect("sent");
        });
        let mut connection = lab.within(from, || TcpStream::connect(target).expect("a connection"));
        connection.set_read_timeout(PATIENCE).expect("a timeout");
        // Small writes first, each of which is a segment of its own.
        let (small, rest) = expected.split_at(2_000);
        connection.set_nodelay(true).expect("an option");
        for octets in small.chunks(100) {
            connection.write_all(octets).expect("sent");
        }
        connection.set_nodelay(false).expect("an option");
        connection.write_all(rest).expect("sent");
        connection.shutdown(Shutdown::Write).expect("sent");
        let mut arrived = Vec::new();
        connection.read_to_end(&mut arrived).expect("the octets");
        assert!(arrived == *answer, "{} octets arrived", arrived.len());
        receiver.join().expect("received");
    });
}

/// Sends datagrams of many sizes, a few at a time; all must arrive as they were, in order. A burst
/// of which something is lost on a busy machine is sent again. `mtu` is that of the tunnel.
pub(crate) fn exchange_datagrams(lab: &Lab, from: u8, to: u8, address: IpAddr, mtu: usize) {
    let receiver = lab.within(to, || UdpSocket::bind((address, 0)).expect("a port"));
    let timeout = Some(Duration::from_secs(3));
    receiver.set_read_timeout(timeout).expect("a timeout");
    let target = receiver.local_addr().expect("it is bound");
    let any: IpAddr = match address {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    let sender = lab.within(from, || {
        let sender = UdpSocket::bind(SocketAddr::new(any, 0)).expect("a port");
        sender.connect(target).expect("a route");
        sender
    });
    let header_octets = if address.is_ipv4() { 28 } else { 48 };
    let bursts = bursts(mtu - header_octets);
    for (number, burst) in bursts.iter().enumerate() {
        let passed = (0..5).any(|attempt| {
            let payload = |(index, &size): (usize, &usize)| {
                let mut octets = stream(size);
                let head = [number, index, attempt].map(|part| u8::try_from(part).expect("few"));
                octets[..3].copy_from_slice(&head);
                octets
            };
            let payloads: Vec<Vec<u8>> = burst.sizes.iter().enumerate().map(payload).collect();
            burst.send(&sender, &payloads);
            arrive(&receiver, &payloads)
        });
        assert!(passed, "burst {number} never arrived whole: {burst:?}");
    }
}

/// Datagrams that are sent at once.
#[derive(Debug)]
struct Burst {
    /// Of their payloads, octets.
    sizes: Vec<usize>,
    /// Whether they are given to the kernel as one super-packet: all of one size, the last one
    /// perhaps smaller.
    is_super: bool,
}

/// `largest` is what fits a packet.
fn bursts(largest: usize) -> Vec<Burst> {
    let mut bursts = Vec::new();
    let mut one = |sizes: Vec<usize>, is_super| bursts.push(Burst { sizes, is_super });
    // Equal ones, which a receiver joins; some end with one that is smaller, or larger.
    for size in (3..largest).step_by(101).chain([largest]) {
        one(vec![size; 12], false);
        one(
            [vec![size; 7], vec![size / 2 + 3], vec![size; 3]].concat(),
            false,
        );
    }
    // No two alike.
    one((0..20).map(|index| 3 + index * 69).collect(), false);
    one((0..20).rev().map(|index| 3 + index * 69).collect(), false);
    for size in [100, 900, largest] {
        one([vec![size; 20], vec![size / 3]].concat(), true);
        one(vec![size; 10], true);
    }
    // Fragments: more than the device's MTU, without DF. Alone, because what is joined may be overtaken
    // by what is not, as in the kernel's own GRO.
    one(vec![3000, 9000, largest + 1, 20_000], false);
    bursts
}

impl Burst {
    fn send(&self, sender: &UdpSocket, payloads: &[Vec<u8>]) {
        if self.is_super {
            let size = i32::try_from(self.sizes[0]).expect("small");
            setsockopt(sender, UdpGsoSegment, &size).expect("Linux 4.18");
            sender.send(&payloads.concat()).expect("sent");
            setsockopt(sender, UdpGsoSegment, &0).expect("Linux 4.18");
            return;
        }
        for payload in payloads {
            sender.send(payload).expect("sent");
        }
    }
}

/// Whether all of a burst arrive, in order. What is left of an earlier one is passed over.
fn arrive(receiver: &UdpSocket, payloads: &[Vec<u8>]) -> bool {
    let mut room = vec![0; 1 << 16];
    let mut next = 0;
    while next < payloads.len() {
        let Ok(octets) = receiver.recv(&mut room) else {
            return false;
        };
        let arrived = &room[..octets];
        if arrived == payloads[next] {
            next += 1;
        } else if arrived[2] == payloads[next][2] && arrived[0] == payloads[next][0] {
            // Of this very attempt: one or more before it are lost.
            let later = payloads[next..].iter().any(|payload| payload == arrived);
            assert!(later, "datagram {next} is changed, or out of order");
            return false;
        }
    }
    true
}

/// Long enough for a machine that does much else.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));
