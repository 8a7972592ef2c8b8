//! Tests of the UDP sockets: over loopback, in a fresh network namespace where
//! the kernel's tables matter.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::num::NonZeroU16;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::*;
use crate::sys::allocations;
use crate::sys::process::{Capability, has_capability};
use crate::testing::{in_netns, ip};

const LOOPBACK: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

#[test]
fn a_batch_arrives_whole_and_in_order_with_peer_local_address_and_tos() {
    for bind in LOOPBACK {
        let (a, b) = pair(bind);
        let payloads: Vec<Vec<u8>> = (0..40u8).map(|i| vec![i; 20 + usize::from(i)]).collect();
        let mut ring = SendRing::new(64, 128);
        let mut counters = SocketCounters::default();
        let mut turn = a.turn(&mut ring);
        for (i, payload) in payloads.iter().enumerate() {
            // Header and payload apart, as the engine has them.
            let (header, rest) = payload.split_at(8);
            let tos = [0xb8, 0x03, 0x02, 0x00][i % 4];
            turn.push(&to(&b, Some(tos)), [header, rest]).unwrap();
        }
        a.send_batch(&mut turn, &mut counters, |i, error| panic!("{i}: {error}"));
        assert_eq!(
            counters,
            SocketCounters {
                sent: 40,
                ..SocketCounters::default()
            }
        );

        let mut receive = Receiver::new(64, 2048);
        receive.until(&b, 40);
        for (i, (datagram, octets)) in receive.taken.iter().enumerate() {
            let datagram = datagram.as_ref().unwrap();
            assert_eq!(octets, &payloads[i], "{bind} datagram {i}");
            assert_eq!(datagram.peer, a.local_addr());
            assert_eq!(datagram.local, Some(b.local_addr().ip()));
            assert_eq!(datagram.tos, [0xb8, 0x03, 0x02, 0x00][i % 4]);
            assert_eq!(datagram.segment_octets, None);
            assert_ne!(datagram.interface, 0);
        }
        assert_eq!(receive.ring.counters().messages, 40);
    }
}

#[test]
fn a_train_is_cut_by_the_kernel_and_joined_again() {
    for bind in LOOPBACK {
        let (a, b) = pair(bind);
        if !a.has_segmentation() || b.set_gro(true).is_err() {
            eprintln!("skipped: this kernel has no UDP_SEGMENT or UDP_GRO");
            return;
        }
        let payload: Vec<u8> = (0..10_000u32).map(|i| i.to_be_bytes()[3]).collect();
        let mut transmit = to(&b, Some(0x03));
        transmit.control.segment_octets = NonZeroU16::new(1200);
        let mut ring = SendRing::new(4, 64);
        let mut counters = SocketCounters::default();
        let mut turn = a.turn(&mut ring);
        turn.push(&transmit, payload.chunks(1000)).unwrap();
        a.send_batch(&mut turn, &mut counters, |_, error| panic!("{error}"));

        let mut receive = Receiver::new(4, 65536);
        receive.until(&b, 1);
        let (datagram, octets) = &receive.taken[0];
        let datagram = datagram.as_ref().unwrap();
        // Loopback hands the train over uncut; ECN must survive the control
        // messages of a train.
        assert_eq!(octets, &payload);
        assert_eq!(datagram.segment_octets, NonZeroU16::new(1200));
        assert_eq!(datagram.tos, 0x03);
        assert_eq!(datagram.local, Some(b.local_addr().ip()));

        // The same without joining: nine datagrams, the last one shorter.
        b.set_gro(false).unwrap();
        let mut turn = a.turn(&mut ring);
        turn.push(&transmit, [payload.as_slice()]).unwrap();
        a.send_batch(&mut turn, &mut counters, |_, error| panic!("{error}"));
        let mut receive = Receiver::new(16, 2048);
        receive.until(&b, 9);
        let lengths: Vec<_> = receive
            .taken
            .iter()
            .map(|(_, octets)| octets.len())
            .collect();
        assert_eq!(
            lengths,
            [1200, 1200, 1200, 1200, 1200, 1200, 1200, 1200, 400]
        );
    }
}

#[test]
fn a_datagram_longer_than_its_slice_is_damaged_and_counted() {
    let (a, b) = pair(LOOPBACK[0]);
    a.send_to(&[7; 100], b.local_addr()).unwrap();
    a.send_to(&[8; 50], b.local_addr()).unwrap();
    let mut receive = Receiver::new(4, 64);
    receive.until(&b, 2);
    assert_eq!(receive.taken[0].0, Err(Damage::Truncated));
    assert!(receive.taken[1].0.is_ok());
    assert_eq!(receive.ring.counters().truncated, 1);
    assert_eq!(receive.ring.counters().messages, 1);
    assert_eq!(receive.ring.counters().octets, 50);
}

#[test]
fn an_empty_socket_gives_zero_and_wakes_the_event_loop_once_filled() {
    let (a, b) = pair(LOOPBACK[0]);
    let mut receive = Receiver::new(4, 64);
    assert_eq!(receive.once(&b), 0);
    let mut poll = Poll::new().unwrap();
    let raw = b.as_raw_fd();
    poll.registry()
        .register(&mut SourceFd(&raw), Token(7), Interest::READABLE)
        .unwrap();
    a.send_to(b"x", b.local_addr()).unwrap();
    let mut events = Events::with_capacity(4);
    poll.poll(&mut events, Some(Duration::from_secs(10)))
        .unwrap();
    assert_eq!(
        events.iter().map(|e| e.token()).collect::<Vec<_>>(),
        [Token(7)]
    );
    assert_eq!(receive.once(&b), 1);
}

#[test]
fn no_slice_is_no_receive() {
    let (_, b) = pair(LOOPBACK[0]);
    let mut ring = ReceiveRing::new(4);
    let error = b
        .recv_batch(&mut ring, [], &mut SocketCounters::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn batches_are_sent_and_received_without_an_allocation() {
    for bind in LOOPBACK {
        let (a, b) = pair(bind);
        let mut ring = SendRing::new(64, 128);
        let mut receive_ring = ReceiveRing::new(64);
        let mut buffers = vec![[0; 2048]; 64];
        let mut counters = SocketCounters::default();
        let payload = [7; 1400];
        let allocations = allocations::count(|| {
            for _ in 0..100 {
                let mut turn = a.turn(&mut ring);
                for _ in 0..64 {
                    let (header, rest) = payload.split_at(50);
                    turn.push(&to(&b, Some(2)), [header, rest]).unwrap();
                }
                a.send_batch(&mut turn, &mut counters, |_, _| ());
                let slices = buffers.iter_mut().map(<[u8; 2048]>::as_mut_slice);
                let received = b.recv_batch(&mut receive_ring, slices, &mut counters);
                assert_eq!(received.unwrap(), 64);
            }
        });
        assert_eq!((counters.sent, allocations), (6400, 0));
    }
}

#[test]
fn a_full_ring_refuses_and_keeps_what_it_has() {
    let (a, b) = pair(LOOPBACK[0]);
    let mut ring = SendRing::new(2, 3);
    let mut turn = a.turn(&mut ring);
    turn.push(&to(&b, None), [b"a".as_slice(), b"b"]).unwrap();
    assert_eq!(
        turn.push(&to(&b, None), [b"c".as_slice(), b"d"]),
        Err(RingFull)
    );
    turn.push(&to(&b, None), [b"e".as_slice()]).unwrap();
    assert_eq!(turn.push(&to(&b, None), []), Err(RingFull));
    a.send_batch(&mut turn, &mut SocketCounters::default(), |_, _| ());
    let mut receive = Receiver::new(4, 64);
    receive.until(&b, 2);
    assert_eq!(receive.taken[0].1, b"ab");
    assert_eq!(receive.taken[1].1, b"e");
}

#[test]
fn a_reported_error_costs_no_datagram_in_either_direction() {
    for bind in LOOPBACK {
        let (a, b) = pair(bind);
        let closed = UdpSocket::bind(bind).unwrap().local_addr().unwrap();
        let mut counters = SocketCounters::default();

        // Loopback answers a datagram to a closed port within the send.
        a.send_to(b"nobody", closed).unwrap();
        let mut ring = SendRing::new(4, 4);
        let mut turn = a.turn(&mut ring);
        turn.push(&to(&b, None), [b"one".as_slice()]).unwrap();
        turn.push(&to(&b, None), [b"two".as_slice()]).unwrap();
        a.send_batch(&mut turn, &mut counters, |i, error| panic!("{i}: {error}"));
        assert_eq!(
            (counters.sent, counters.reported, counters.refused),
            (2, 1, 0)
        );
        let mut quoted = [0; 16];
        let error = a.next_error(&mut quoted).unwrap().unwrap();
        assert_eq!(
            (error.errno, error.destination),
            (libc::ECONNREFUSED, Some(closed))
        );
        assert_eq!(&quoted[..error.quoted_octets], b"nobody");

        b.send_to(b"nobody", closed).unwrap();
        let mut receive = Receiver::new(4, 64);
        receive.until(&b, 2);
        assert_eq!(receive.counters.reported, 1);
    }
}

#[test]
fn an_error_of_its_own_is_told_with_its_index_and_the_rest_leaves() {
    let (a, b) = pair(LOOPBACK[0]);
    // Longer than any IPv4 packet.
    let huge = vec![0; 65_508];
    let mut ring = SendRing::new(4, 4);
    let mut turn = a.turn(&mut ring);
    turn.push(&to(&b, None), [b"one".as_slice()]).unwrap();
    turn.push(&to(&b, None), [huge.as_slice()]).unwrap();
    turn.push(&to(&b, None), [b"two".as_slice()]).unwrap();
    let mut counters = SocketCounters::default();
    let mut told = Vec::new();
    a.send_batch(&mut turn, &mut counters, |i, error| {
        told.push((i, error.raw_os_error()))
    });
    assert_eq!(told, [(1, Some(libc::EMSGSIZE))]);
    assert_eq!(
        counters,
        SocketCounters {
            sent: 2,
            too_big: 1,
            ..SocketCounters::default()
        }
    );
    Receiver::new(4, 64).until(&b, 2);
}

#[test]
fn a_connected_socket_sends_without_an_address() {
    let (_, b) = pair(LOOPBACK[0]);
    let mut config = UdpConfig::new(LOOPBACK[0].parse().unwrap());
    config.connect = Some(b.local_addr());
    let a = Udp::bind(&config).unwrap();
    let mut ring = SendRing::new(1, 1);
    let mut turn = a.turn(&mut ring);
    turn.push(&Transmit::default(), [b"hello".as_slice()])
        .unwrap();
    a.send_batch(&mut turn, &mut SocketCounters::default(), |_, error| {
        panic!("{error}")
    });
    Receiver::new(1, 64).until(&b, 1);
}

#[test]
fn the_source_address_is_the_one_asked_for() {
    in_netns(|| {
        ip("addr add 127.9.9.9/8 dev lo");
        let (_, b) = pair(LOOPBACK[0]);
        let a = Udp::bind(&UdpConfig::new("0.0.0.0:0".parse().unwrap())).unwrap();
        let mut transmit = to(&b, None);
        transmit.control.source = Some("127.9.9.9".parse().unwrap());
        let mut ring = SendRing::new(1, 1);
        let mut turn = a.turn(&mut ring);
        turn.push(&transmit, [b"hello".as_slice()]).unwrap();
        a.send_batch(&mut turn, &mut SocketCounters::default(), |_, error| {
            panic!("{error}")
        });
        let mut receive = Receiver::new(1, 64);
        receive.until(&b, 1);
        let peer = receive.taken[0].0.as_ref().unwrap().peer;
        assert_eq!(
            peer,
            SocketAddr::new("127.9.9.9".parse().unwrap(), a.local_addr().port())
        );
    });
}

#[test]
fn too_big_for_the_device_is_refused_with_df_and_fragmented_without() {
    in_netns(|| {
        ip("link set lo mtu 1500");
        for bind in LOOPBACK {
            for (path_mtu, leaves) in [
                (PathMtu::Probe, false),
                (PathMtu::Kernel, false),
                (PathMtu::Fragment, true),
            ] {
                let config = UdpConfig {
                    path_mtu,
                    ..UdpConfig::new(bind.parse().unwrap())
                };
                let (a, b) = (Udp::bind(&config).unwrap(), Udp::bind(&config).unwrap());
                let mut ring = SendRing::new(1, 1);
                let mut turn = a.turn(&mut ring);
                let payload = [0; 2000];
                turn.push(&to(&b, None), [payload.as_slice()]).unwrap();
                let mut counters = SocketCounters::default();
                a.send_batch(&mut turn, &mut counters, |_, _| ());
                assert_eq!(
                    (counters.sent == 1, counters.too_big == 1),
                    (leaves, !leaves)
                );
            }
        }
    });
}

#[test]
fn an_ipv6_socket_leaves_the_port_of_ipv4_alone() {
    let v6 = Udp::bind(&UdpConfig::new("[::]:0".parse().unwrap())).unwrap();
    let port = v6.local_addr().port();
    let v4 = SocketAddr::new("0.0.0.0".parse().unwrap(), port);
    match Udp::bind(&UdpConfig::new(v4)) {
        Ok(socket) => assert_eq!(socket.local_addr(), v4),
        // Another process of the host may hold it; a dual-stack socket of ours
        // would hold it always.
        Err(error) => eprintln!("skipped: {error}"),
    }
}

#[test]
fn a_port_in_use_is_told_and_shared_only_on_wish() {
    let mut config = UdpConfig::new(LOOPBACK[0].parse().unwrap());
    config.reuse_port = true;
    let first = Udp::bind(&config).unwrap();
    config.bind = first.local_addr();
    Udp::bind(&config).unwrap();
    config.reuse_port = false;
    let error = Udp::bind(&config).unwrap_err();
    assert!(error.is_port_in_use());
    assert_eq!(
        error.to_string(),
        format!("UDP socket on {}: bind", first.local_addr())
    );
}

#[test]
fn a_foreign_address_is_told() {
    let config = UdpConfig::new("192.0.2.77:0".parse().unwrap());
    assert!(Udp::bind(&config).unwrap_err().is_foreign_address());
}

#[test]
fn buffers_are_as_big_as_asked_where_that_is_allowed() {
    let config = UdpConfig::new(LOOPBACK[0].parse().unwrap());
    let socket = Udp::bind(&config).unwrap();
    let receive = socket.receive_buffer_octets().unwrap();
    let send = socket.send_buffer_octets().unwrap();
    if has_capability(Capability::NetAdmin) {
        assert_eq!((receive, send), (32 << 20, 8 << 20));
    } else {
        assert!(receive > 65536 && send > 65536, "{receive} {send}");
    }
}

#[test]
fn zero_checksums_cross_ipv6_only_where_both_ends_allow_them() {
    let zero = UdpConfig {
        zero_checksum: true,
        ..UdpConfig::new("[::1]:0".parse().unwrap())
    };
    let (a, b) = (Udp::bind(&zero).unwrap(), Udp::bind(&zero).unwrap());
    a.send_to(b"x", b.local_addr()).unwrap();
    Receiver::new(1, 64).until(&b, 1);
}

#[test]
fn a_full_receive_buffer_is_told_as_a_count() {
    let (a, _) = pair(LOOPBACK[0]);
    let mut config = UdpConfig::new(LOOPBACK[0].parse().unwrap());
    config.receive_buffer_octets = 4096;
    let b = Udp::bind(&config).unwrap();
    for _ in 0..200 {
        a.send_to(&[0; 1000], b.local_addr()).unwrap();
    }
    let mut receive = Receiver::new(256, 2048);
    let queued = receive.once(&b);
    assert!(queued < 200);
    let dropped = sockopt::drops(b.as_fd()).unwrap();
    assert_eq!(dropped, 200 - u32::try_from(queued).unwrap());
    // It is that socket's: another one has dropped none.
    let c = Udp::bind(&UdpConfig::new(LOOPBACK[0].parse().unwrap())).unwrap();
    a.send_to(b"x", c.local_addr()).unwrap();
    assert_eq!(receive.once(&c), 1);
    assert_eq!(sockopt::drops(c.as_fd()).unwrap(), 0);
}

#[test]
fn a_pool_has_distinct_dynamic_ports_and_picks_evenly_and_steadily() {
    let config = UdpConfig::new(LOOPBACK[0].parse().unwrap());
    let pool = TransmitPool::bind(&config, 16, 0x1234_5678_9abc_def0).unwrap();
    let ports: HashSet<_> = pool
        .sockets()
        .iter()
        .map(|s| s.local_addr().port())
        .collect();
    assert_eq!(ports.len(), 16);
    assert!(ports.iter().all(|&port| port >= 49152));
    let mut picked = [0; 16];
    for i in 0..16_000u32 {
        let hash = i.wrapping_mul(0x9e37_79b1);
        picked[pool.index(hash)] += 1;
        assert_eq!(pool.pick(hash).local_addr(), pool.pick(hash).local_addr());
    }
    assert!(
        picked.iter().all(|&n| (900..1100).contains(&n)),
        "{picked:?}"
    );
    assert_eq!(pool.index(u32::MAX), 15);
    for (port, index) in [
        (49152, 0),
        (49152 + 1023, 0),
        (49152 + 1024, 1),
        (65535, 15),
    ] {
        let picked = pool.pick_by_port(port).local_addr();
        assert_eq!(picked, pool.sockets()[index].local_addr());
    }
}

#[test]
fn a_pool_passes_over_ports_in_use() {
    in_netns(|| {
        let config = UdpConfig::new(LOOPBACK[0].parse().unwrap());
        let first = TransmitPool::bind(&config, 8, 42).unwrap();
        // The same seed wants the same ports.
        let second = TransmitPool::bind(&config, 8, 42).unwrap();
        let port = |s: &Udp| s.local_addr().port();
        let ports: HashSet<_> = first
            .sockets()
            .iter()
            .chain(second.sockets())
            .map(port)
            .collect();
        assert_eq!(ports.len(), 16);
    });
}

#[test]
fn every_port_of_the_range_is_tried_once() {
    for seed in [0, 1, 42, u64::MAX, 0x5555_5555_5555_5555] {
        let ports: HashSet<_> = port_order(seed).collect();
        assert_eq!(ports.len(), 16384);
        assert!(ports.contains(&49152) && ports.contains(&65535));
    }
}

#[test]
fn a_pool_socket_hears_errors_but_no_datagrams() {
    let (a, _) = pair(LOOPBACK[0]);
    let config = UdpConfig::new(LOOPBACK[0].parse().unwrap());
    let pool = TransmitPool::bind(&config, 1, 7).unwrap();
    let socket = pool.pick(0);
    a.send_to(b"x", socket.local_addr()).unwrap();
    let mut receive = Receiver::new(1, 64);
    assert_eq!(receive.once(socket), 0);
    let closed = UdpSocket::bind(LOOPBACK[0]).unwrap().local_addr().unwrap();
    socket.send_to(b"x", closed).unwrap();
    assert!(socket.next_error(&mut []).unwrap().is_some());
}

fn pair(bind: &str) -> (Udp, Udp) {
    let config = UdpConfig::new(bind.parse().unwrap());
    (Udp::bind(&config).unwrap(), Udp::bind(&config).unwrap())
}

fn to(peer: &Udp, tos: Option<u8>) -> Transmit {
    Transmit {
        peer: Some(peer.local_addr()),
        control: SendControl {
            tos,
            ..SendControl::default()
        },
    }
}

/// A ring with its buffers, and what it has received so far.
struct Receiver {
    ring: ReceiveRing,
    buffers: Vec<Vec<u8>>,
    counters: SocketCounters,
    taken: Vec<(Result<Datagram, Damage>, Vec<u8>)>,
}

impl Receiver {
    fn new(messages: usize, octets: usize) -> Self {
        Self {
            ring: ReceiveRing::new(messages),
            buffers: vec![vec![0; octets]; messages],
            counters: SocketCounters::default(),
            taken: Vec::new(),
        }
    }

    fn once(&mut self, socket: &Udp) -> usize {
        let slices = self.buffers.iter_mut().map(Vec::as_mut_slice);
        let received = socket
            .recv_batch(&mut self.ring, slices, &mut self.counters)
            .unwrap();
        for (outcome, buffer) in self.ring.received().iter().zip(&self.buffers) {
            let octets = outcome
                .as_ref()
                .map_or(Vec::new(), |d| buffer[d.range.clone()].to_vec());
            self.taken.push((outcome.clone(), octets));
        }
        received
    }

    /// Receives until `messages` have come. Loopback delivers within the send,
    /// so there is nothing to wait for.
    fn until(&mut self, socket: &Udp, messages: usize) {
        while self.taken.len() < messages {
            let before = self.taken.len();
            assert_ne!(self.once(socket), 0, "only {before} of {messages} came");
        }
        assert_eq!(self.taken.len(), messages);
    }
}
