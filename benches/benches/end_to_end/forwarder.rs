//! The least that a tunnel in user space does, as a floor to compare with.
//!
//! One thread reads packets of a TUN device and sends each as a datagram, another receives datagrams
//! and writes each to the device. Both sleep in the read itself: no event loop, no header, no
//! lookup, no offload, no batch. What a round trip costs here is what the system calls and the waking
//! of threads cost on this machine, for any tunnel that does not look for packets without sleeping.

use std::net::UdpSocket;

use tun_node::tun::{DeviceName, Tun, TunConfig};

/// Carries packets until it is ended: the device's own address with its prefix length, its MTU,
/// and the underlay addresses of both ends.
pub(crate) fn run(address: &str, mtu: &str, local: &str, remote: &str) -> Result<(), String> {
    let name: DeviceName = "fwd0".parse().map_err(|_| "no device name")?;
    let config = TunConfig {
        mtu: Some(mtu.parse().map_err(|_| "no MTU")?),
        addresses: vec![address.parse().map_err(|_| "no address")?],
        ..TunConfig::new(name)
    };
    let tun = Tun::create(&config).map_err(|error| error.to_string())?;
    tun.set_nonblocking(false)
        .map_err(|error| error.to_string())?;
    let socket = UdpSocket::bind((local, PORT)).map_err(|error| error.to_string())?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut room = [0; ROOM];
            while let Ok(octets) = tun.recv(&mut room) {
                // What can not be sent is lost.
                let _ = socket.send_to(room.get(..octets).unwrap_or_default(), (remote, PORT));
            }
        });
        let mut room = [0; ROOM];
        while let Ok(octets) = socket.recv(&mut room) {
            let _ = tun.send(room.get(..octets).unwrap_or_default());
        }
    });
    Ok(())
}

const PORT: u16 = 9999;

/// The largest packet.
const ROOM: usize = 10_000;
