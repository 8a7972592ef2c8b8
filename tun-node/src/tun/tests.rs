//! Tests of the TUN device, each in a fresh network namespace.

use std::net::UdpSocket;
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::*;
use crate::testing::{eventually, in_netns, ip, tun_is_usable};

#[test]
fn a_device_has_the_name_mtu_and_addresses_asked_for() {
    in_tun_netns(|| {
        let tun = Tun::create(&config("wov%d")).unwrap();
        assert_eq!(tun.name().as_str(), "wov0");
        let shown = ip("addr show dev wov0");
        for part in [
            "mtu 1400",
            "UP",
            "inet 10.77.0.1/24",
            "inet 10.78.0.1/32",
            "inet6 2001:db8::1/64",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        let ipv6 = shown
            .lines()
            .find(|line| line.contains("2001:db8::1"))
            .unwrap();
        assert!(!ipv6.contains("tentative"), "{shown}");
        let routes = ip("route show");
        // Only the prefix asked for, no class A one.
        assert!(routes.contains("10.77.0.0/24 dev wov0"), "{routes}");
        assert!(!routes.contains("10.0.0.0/8"), "{routes}");
        drop(tun);
        eventually(|| !ip("link show").contains("wov0"));
    });
}

#[test]
fn packets_cross_both_ways_through_the_event_loop() {
    in_tun_netns(|| {
        let tun = Tun::create(&config("wov0")).unwrap();
        let mut poll = Poll::new().unwrap();
        let raw = tun.as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&raw), Token(1), Interest::READABLE)
            .unwrap();
        for (local, remote) in [
            ("10.77.0.1:5000", "10.77.0.9:6000"),
            ("[2001:db8::1]:5000", "[2001:db8::9]:6000"),
        ] {
            let socket = UdpSocket::bind(local).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            socket.send_to(b"out", remote).unwrap();
            let (packet, from, to) = next_udp(&tun, &mut poll, b"out");
            assert_eq!((from, to), (5000, 6000));
            tun.send(&answer(&packet)).unwrap();
            let mut buffer = [0; 16];
            let (length, peer) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(
                (&buffer[..length], peer),
                (b"back".as_slice(), remote.parse().unwrap())
            );
        }
        let empty = loop {
            if let Err(error) = tun.recv(&mut [0; 2000]) {
                break error;
            }
        };
        assert_eq!(empty.kind(), ErrorKind::WouldBlock);
        poll.registry().deregister(&mut SourceFd(&raw)).unwrap();
    });
}

#[test]
fn what_is_no_packet_is_refused() {
    in_tun_netns(|| {
        let tun = Tun::create(&config("wov0")).unwrap();
        let error = tun.send(&[0xff; 40]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        ip("link set wov0 down");
        let error = tun.send(&[0x45; 40]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    });
}

#[test]
fn a_virtio_header_comes_and_goes_with_every_packet() {
    in_tun_netns(|| {
        let mut config = config("wov0");
        config.vnet_header = true;
        config.offload = Offload::TCP_UDP;
        let tun = Tun::create(&config).unwrap();
        assert_eq!(tun.vnet_header_octets(), 10);
        assert_ne!(tun.offload(), Offload::NONE);
        let socket = UdpSocket::bind("10.77.0.1:5000").unwrap();
        socket.send_to(&[1; 100], "10.77.0.9:6000").unwrap();
        tun.set_nonblocking(false).unwrap();
        let (mut header, mut packet) = ([0; 10], [0; 2000]);
        loop {
            let mut slices = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut packet)];
            let length = tun.recv_vectored(&mut slices).unwrap() - 10;
            if packet[0] >> 4 == 4 {
                assert_eq!(length, 128);
                break;
            }
        }
        // VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum was left to us.
        assert_eq!(header[0], 1);
        let again = {
            let mut slices = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut packet)];
            loop {
                match tun.recv_vectored_nowait(&mut slices) {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            }
        };
        assert_eq!(again.kind(), ErrorKind::WouldBlock);
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let builder = PacketBuilder::ipv4([10, 77, 0, 9], [10, 77, 0, 1], 64).udp(6000, 5000);
        let mut reply = Vec::new();
        builder.write(&mut reply, b"back").unwrap();
        tun.send_vectored(&[IoSlice::new(&[0; 10]), IoSlice::new(&reply)])
            .unwrap();
        assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 4);
    });
}

#[test]
fn queues_share_a_device_when_it_was_made_for_that() {
    in_tun_netns(|| {
        let mut config = config("wov0");
        config.multi_queue = true;
        let first = Tun::create(&config).unwrap();
        let second = first.queue().unwrap();
        assert!(first.is_multi_queue() && second.is_multi_queue());
        drop(first);
        assert!(ip("link show").contains("wov0"));
        drop(second);
        eventually(|| !ip("link show").contains("wov0"));

        config.multi_queue = false;
        let single = Tun::create(&config).unwrap();
        assert!(matches!(single.queue(), Err(TunError::Busy { .. })));
    });
}

#[test]
fn a_name_in_use_is_told() {
    in_tun_netns(|| {
        let _first = Tun::create(&config("wov0")).unwrap();
        let error = Tun::create(&config("wov0")).unwrap_err();
        assert!(matches!(error, TunError::Exists { .. }), "{error}");
        ip("tuntap add dev kept0 mode tun");
        let error = Tun::create(&config("kept0")).unwrap_err();
        assert!(matches!(error, TunError::Exists { .. }), "{error}");
    });
}

#[test]
fn a_persistent_device_is_attached_to_and_left_as_it_was() {
    in_tun_netns(|| {
        ip("tuntap add dev one mode tun");
        ip("tuntap add dev many mode tun multi_queue");
        ip("link set one mtu 1300 up");
        for (name, multi_queue) in [("one", false), ("many", true)] {
            let name = name.parse().unwrap();
            // Somebody before us wanted offloads.
            drop(Tun::attach(name, true, Offload::TCP).unwrap());
            let mut attached = None;
            eventually(|| {
                attached = Tun::attach(name, false, Offload::TCP).ok();
                attached.is_some()
            });
            let tun = attached.unwrap();
            assert_eq!(tun.is_multi_queue(), multi_queue);
            assert_eq!(
                (tun.offload(), tun.vnet_header_octets()),
                (Offload::NONE, 0)
            );
        }
        assert!(ip("link show dev one").contains("mtu 1300"));
    });
}

#[test]
fn a_device_with_another_size_of_header_is_given_ours() {
    in_tun_netns(|| {
        ip("tuntap add dev kept0 mode tun");
        ip("addr add 10.77.0.1/24 dev kept0");
        ip("link set kept0 up");
        let name = "kept0".parse().unwrap();
        // Somebody before us was a virtual machine.
        let before = Tun::attach(name, true, Offload::NONE).unwrap();
        sys::tun::set_vnet_header_octets(before.as_fd(), 12).unwrap();
        drop(before);
        let mut attached = None;
        eventually(|| {
            attached = Tun::attach(name, true, Offload::NONE).ok();
            attached.is_some()
        });
        let tun = attached.unwrap();
        assert_eq!(tun.vnet_header_octets(), 10);
        let socket = UdpSocket::bind("10.77.0.1:5000").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 77, 0, 9], [10, 77, 0, 1], 64)
            .udp(6000, 5000)
            .write(&mut packet, b"back")
            .unwrap();
        tun.send_plain(&packet).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(socket.recv(&mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"back");
    });
}

#[test]
fn attaching_to_what_is_not_ours_is_refused_with_the_reason() {
    in_tun_netns(|| {
        let attach = |name: &str| Tun::attach(name.parse().unwrap(), false, Offload::NONE);
        assert!(matches!(
            attach("none0"),
            Err(TunError::NoSuchDevice { .. })
        ));
        assert!(!ip("link show").contains("none0"));
        ip("tuntap add dev tap0 mode tap");
        assert!(matches!(attach("tap0"), Err(TunError::NotTun { .. })));
        assert!(matches!(attach("lo"), Err(TunError::NotTun { .. })));
        let _running = Tun::create(&config("wov0")).unwrap();
        assert!(matches!(attach("wov0"), Err(TunError::Busy { .. })));
        let mut queues = config("wov1");
        queues.multi_queue = true;
        let _running = Tun::create(&queues).unwrap();
        assert!(matches!(
            attach("wov1"),
            Err(TunError::NotPersistent { .. })
        ));
    });
}

#[test]
fn an_adopted_descriptor_knows_its_device() {
    in_tun_netns(|| {
        let mut config = config("wov0");
        config.vnet_header = true;
        let tun = Tun::create(&config).unwrap();
        let fd = tun.as_fd().try_clone_to_owned().unwrap();
        // Elsewhere the interface has no name, the descriptor works all the same.
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let tun = Tun::adopt(fd, Offload::NONE).unwrap();
            assert_eq!(tun.name().as_str(), "wov0");
            assert_eq!(tun.vnet_header_octets(), 10);
        })
        .join()
        .unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(
            Tun::adopt(file.into(), Offload::NONE),
            Err(TunError::Setting { .. })
        ));
    });
}

#[test]
fn a_refused_setting_leaves_no_device() {
    in_tun_netns(|| {
        let mut config = config("wov0");
        config.mtu = Some(20);
        let error = Tun::create(&config).unwrap_err();
        assert!(
            matches!(error, TunError::Setting { what: "MTU", .. }),
            "{error}"
        );
        eventually(|| !ip("link show").contains("wov0"));
    });
}

fn in_tun_netns(test: impl FnOnce() + Send + 'static) {
    if tun_is_usable() {
        in_netns(test);
    }
}

fn config(name: &str) -> TunConfig {
    let mut config = TunConfig::new(name.parse().unwrap());
    config.mtu = Some(1400);
    config.addresses = ["10.77.0.1/24", "2001:db8::1/64", "10.78.0.1/32"]
        .iter()
        .map(|net| net.parse().unwrap())
        .collect();
    config
}

/// The next UDP packet with this payload and its ports; the kernel sends of its
/// own accord, too (router solicitations).
fn next_udp(tun: &Tun, poll: &mut Poll, payload: &[u8]) -> (Vec<u8>, u16, u16) {
    let mut buffer = [0; 2000];
    let mut events = Events::with_capacity(4);
    loop {
        match tun.recv(&mut buffer) {
            Ok(length) => {
                let packet = &buffer[..length];
                let parsed = SlicedPacket::from_ip(packet).unwrap();
                if let Some(TransportSlice::Udp(udp)) = parsed.transport
                    && udp.payload() == payload
                {
                    return (packet.to_vec(), udp.source_port(), udp.destination_port());
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll.poll(&mut events, Some(Duration::from_secs(10)))
                    .unwrap();
                assert!(!events.is_empty(), "no packet came");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// "back" the way the packet came.
fn answer(packet: &[u8]) -> Vec<u8> {
    let parsed = SlicedPacket::from_ip(packet).unwrap();
    let Some(TransportSlice::Udp(udp)) = parsed.transport else {
        unreachable!("checked")
    };
    let ports = (udp.destination_port(), udp.source_port());
    let builder = match parsed.net.unwrap() {
        NetSlice::Ipv4(v4) => {
            PacketBuilder::ipv4(v4.header().destination(), v4.header().source(), 64)
        }
        NetSlice::Ipv6(v6) => {
            PacketBuilder::ipv6(v6.header().destination(), v6.header().source(), 64)
        }
        NetSlice::Arp(_) => unreachable!("a TUN has no ARP"),
    };
    let mut reply = Vec::new();
    builder
        .udp(ports.0, ports.1)
        .write(&mut reply, b"back")
        .unwrap();
    reply
}
