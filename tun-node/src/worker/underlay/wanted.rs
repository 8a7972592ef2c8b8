//! Which sockets a configuration asks for, and what each is to be like.

use std::net::{IpAddr, SocketAddr};

use crate::config::Config;
use crate::raw::{Inner, RawConfig};
use crate::udp::UdpConfig;

/// The UDP ports that the node receives on, each once.
pub(super) fn udp_ports(config: &Config) -> Vec<u16> {
    let receive = &config.receive;
    let mut ports: Vec<u16> = [
        &receive.vxlan,
        &receive.vxlan_gpe,
        &receive.geneve,
        &receive.fou_gue,
    ]
    .into_iter()
    .flatten()
    .copied()
    .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

pub(super) fn sends_by_udp(config: &Config) -> bool {
    !udp_ports(config).is_empty() || config.peers.iter().any(|peer| !peer.is_in_ip())
}

pub(super) fn udp_config(config: &Config, bind: SocketAddr) -> UdpConfig {
    let mut udp = UdpConfig::new(bind);
    udp.gro = config.worker.gro;
    if let Some(octets) = config.worker.receive_buffer_octets {
        udp.receive_buffer_octets = octets;
    }
    if let Some(octets) = config.worker.send_buffer_octets {
        udp.send_buffer_octets = octets;
    }
    udp
}

pub(super) fn raw_config(config: &Config, bind: IpAddr, inner: Inner) -> RawConfig {
    let mut raw = RawConfig::new(bind, inner);
    if let Some(octets) = config.worker.receive_buffer_octets {
        raw.receive_buffer_octets = octets;
    }
    if let Some(octets) = config.worker.send_buffer_octets {
        raw.send_buffer_octets = octets;
    }
    raw
}
