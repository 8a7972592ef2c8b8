//! A packet that the node sends to itself, to find out whether the data path works.
//!
//! A probe takes the way of real packets but for the far end: it is encapsulated by an engine,
//! leaves through a socket of the transmit pool, is received by the socket that peers send to,
//! is decapsulated and checked by an engine, and is written to the device. What it does not show
//! is the path to any peer, and reading from the device.
//!
//! The engine's rules must hold for it, and a node is not a peer of its own. So the probe has
//! engines of its own, the same code over tables of two made-up nodes that share this node's
//! underlay address; the worker's engine, tables and counters know nothing of it. A datagram is
//! taken for a probe only while one is awaited, only from the own address, and only with the
//! awaited token at its end.
//!
//! The packet is an ICMP echo reply that nobody asked for: the kernel takes it from the device
//! and forgets it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use etherparse::PacketBuilder;
use ipnet::IpNet;
use warren_core::batch::{Batch, Link, Transport};
use warren_core::encap::Encapsulation;
use warren_core::engine::{Engine, EngineConfig};
use warren_core::tables::{
    DscpMode, EcnMode, Local, NextHop, Peer, TableError, TableWriter, Tables, Tunnel,
};
use warren_core::units::{Family, MacAddr, Mtu, Time, Vni};
use warren_core::verdict::Verdict;

use crate::config::Config;

/// Sends and recognises the probes of one worker.
#[derive(Debug)]
pub(super) struct Prober {
    sender: Engine,
    receiver: Engine,
    batch: Batch,
    source: IpAddr,
    destination: IpAddr,
    underlay: IpAddr,
    token: [u8; TOKEN_OCTETS],
    awaited: bool,
    taken: bool,
    sent: u64,
    passed: u64,
}

impl Prober {
    /// Makes a prober for a node that receives at `target`; `None` when the node receives nothing
    /// that this can try.
    ///
    /// `seed` makes the tokens; nobody outside should be able to guess it.
    ///
    /// # Errors
    ///
    /// [`TableError`], which cannot happen with two nodes and two routes.
    pub(super) fn new(
        config: &Config,
        target: (IpAddr, Transport),
        seed: u64,
    ) -> Result<Option<Self>, TableError> {
        let (underlay, transport) = target;
        let Some(encapsulation) = encapsulation(config, transport) else {
            return Ok(None);
        };
        let (source, destination) = inner_addresses(config);
        let tunnel = |peer| Tunnel {
            peer,
            local: underlay,
            remote: underlay,
            encapsulation,
            mtu: Mtu::MIN_V6,
            hop_limit: 64,
            dscp: DscpMode::Pipe(0),
            ecn: EcnMode::Normal,
        };
        let node = |own: IpAddr, other: IpAddr, vtep_mac| -> Result<Arc<Tables>, TableError> {
            let mut writer = TableWriter::new(Local {
                addresses: vec![own],
                underlay: Vec::new(),
                vtep_mac,
                ..config.local()
            });
            let peer = writer.add_peer(Peer {
                name: "probe".to_owned(),
                underlay: vec![underlay],
                dscp: DscpMode::Pipe(0),
            })?;
            let local = writer.next_hop(NextHop::Local)?;
            let remote = writer.next_hop(NextHop::Tunnel(tunnel(peer)))?;
            writer.insert(IpNet::from(own), local)?;
            writer.insert(IpNet::from(other), remote)?;
            Ok(writer.publish())
        };
        let own_mac = config.node.vtep_mac;
        // A packet that has the own address for its source is taken for a loop.
        let [a, b, c, d, e, last] = own_mac.octets();
        let other_mac = MacAddr::new([a, b, c, d, e, last ^ 1]);
        let engine_config = EngineConfig {
            seed,
            flows: 0,
            ..EngineConfig::default()
        };
        Ok(Some(Self {
            sender: Engine::new(engine_config, node(source, destination, other_mac)?),
            receiver: Engine::new(engine_config, node(destination, source, own_mac)?),
            batch: Batch::new(1, PROBE_OCTETS_MAX),
            source,
            destination,
            underlay,
            token: next_token([0; TOKEN_OCTETS], seed),
            awaited: false,
            taken: false,
            sent: 0,
            passed: 0,
        }))
    }

    /// Makes the next probe, ready to be transmitted. One that is still awaited is given up.
    pub(super) fn send(&mut self, seed: u64, now: Time) -> &Batch {
        self.token = next_token(self.token, seed);
        self.batch.clear();
        let mut packet = Vec::with_capacity(PROBE_OCTETS_MAX);
        let written = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
                    .icmpv4_echo_reply(PROBE_IDENTIFIER, 0)
                    .write(&mut packet, &self.token)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
                    .icmpv6_echo_reply(PROBE_IDENTIFIER, 0)
                    .write(&mut packet, &self.token)
            }
            // `inner_addresses` gives a pair of one family.
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Ok(()),
        };
        if written.is_ok() && self.batch.push(&packet, Link::LOCAL).is_some() {
            self.sender.encap(&mut self.batch, now);
            self.awaited = true;
            self.sent += 1;
        }
        &self.batch
    }

    /// Whether a datagram is the awaited probe; keeps it if it is.
    pub(super) fn takes(&mut self, octets: &[u8], link: &Link) -> bool {
        let is_awaited =
            self.awaited && link.remote == self.underlay && octets.ends_with(&self.token);
        if !is_awaited {
            return false;
        }
        self.awaited = false;
        self.batch.clear();
        self.taken = self.batch.push(octets, *link).is_some();
        true
    }

    /// A probe that was taken, once, as a batch of one frame to be delivered, if the engine says
    /// so; it passes if the device takes it.
    pub(super) fn arrived(&mut self, now: Time) -> Option<&mut Batch> {
        if !std::mem::take(&mut self.taken) {
            return None;
        }
        self.receiver.decap(&mut self.batch, now);
        let verdict = self.batch.frame(0)?.verdict;
        (verdict == Verdict::Deliver).then_some(&mut self.batch)
    }

    /// Counts a probe that the device took.
    pub(super) const fn count_passed(&mut self) {
        self.passed += 1;
    }

    /// Probes sent, and probes that passed.
    #[must_use]
    pub(super) const fn counts(&self) -> (u64, u64) {
        (self.sent, self.passed)
    }
}

/// What a packet to this node's own `transport` is wrapped in.
fn encapsulation(config: &Config, transport: Transport) -> Option<Encapsulation> {
    let receive = &config.receive;
    let mac = config.node.vtep_mac;
    let vni = receive.vnis.first().copied().or_else(|| Vni::new(1))?;
    let Transport::Udp { local_port, .. } = transport else {
        return receive.ipip.then_some(Encapsulation::Ipip);
    };
    let port = local_port;
    if receive.vxlan.contains(&port) {
        Some(Encapsulation::Vxlan { vni, port, mac })
    } else if receive.vxlan_gpe.contains(&port) {
        Some(Encapsulation::VxlanGpe { vni, port })
    } else if receive.geneve.contains(&port) {
        Some(Encapsulation::Geneve { vni, port, mac })
    } else if receive.fou_gue.contains(&port) {
        Some(Encapsulation::Fou { port })
    } else {
        None
    }
}

/// Source and destination of the probe, of one family: from where a peer could send, to the
/// device's first address. A node without address or peers probes with addresses of
/// documentation, RFC 5737 and RFC 3849, which must not be those of the underlay.
fn inner_addresses(config: &Config) -> (IpAddr, IpAddr) {
    let own = config.device.addresses.first().map(IpNet::addr);
    let prefix = config.node.prefixes.first();
    let destination = own.or_else(|| prefix.and_then(|prefix| prefix.hosts().next()));
    let destination = destination.unwrap_or(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)));
    let family = Family::of(destination);
    let source = config
        .peers
        .iter()
        .flat_map(|peer| &peer.prefixes)
        .filter(|prefix| Family::of(prefix.addr()) == family && prefix.prefix_len() > 0)
        .find_map(|prefix| prefix.hosts().next())
        .unwrap_or(match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2)),
            Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
        });
    (source, destination)
}

/// A token that differs from the last one and that nobody guesses who does not know `seed`.
fn next_token(last: [u8; TOKEN_OCTETS], seed: u64) -> [u8; TOKEN_OCTETS] {
    let [low, high] = [seed, seed.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15];
    let mut key = [0; TOKEN_OCTETS];
    let (front, back) = key.split_at_mut(TOKEN_OCTETS / 2);
    front.copy_from_slice(&low.to_ne_bytes());
    back.copy_from_slice(&high.to_ne_bytes());
    let mixed = u128::from_ne_bytes(last)
        .wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645)
        .wrapping_add(u128::from_ne_bytes(key) | 1);
    (mixed ^ (mixed >> 61)).to_ne_bytes()
}

const TOKEN_OCTETS: usize = 16;

/// The identifier of the echo reply: nobody has a ping with it under way, or it does not matter.
const PROBE_IDENTIFIER: u16 = 0x5750;

/// Inner packet and shim: 40 + 8 + 16 + 22 octets, with room to spare.
const PROBE_OCTETS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::example_config;

    #[allow(
        clippy::unwrap_in_result,
        reason = "a test: what is not there fails it"
    )]
    fn prober(transport: Transport) -> Option<Prober> {
        let text = format!("{}\n[ipip]\nenabled = true\n", example_config());
        let config = Config::parse(&text, "example.toml").unwrap();
        let underlay = config.node.underlay(Family::V4).unwrap();
        Prober::new(&config, (underlay, transport), 7).unwrap()
    }

    fn udp(local_port: u16) -> Transport {
        Transport::Udp {
            local_port,
            remote_port: 0,
        }
    }

    /// What the socket makes of a frame that was transmitted to the own address.
    fn looped(batch: &Batch) -> (Vec<u8>, Link) {
        let frame = batch.frame(0).expect("one probe");
        assert_eq!(frame.verdict, Verdict::Transmit);
        let transport = match frame.link.transport {
            Transport::Udp {
                local_port,
                remote_port,
            } => Transport::Udp {
                local_port: remote_port,
                remote_port: local_port,
            },
            Transport::Ip { protocol } => Transport::Ip { protocol },
        };
        let link = Link {
            transport,
            ..*frame.link
        };
        (frame.bytes.to_vec(), link)
    }

    #[test]
    fn a_probe_that_comes_back_is_delivered_once() {
        for transport in [udp(8472), udp(5555), Transport::Ip { protocol: 4 }] {
            let mut prober = prober(transport).expect("it is received");
            let (octets, link) = looped(prober.send(7, Time::ZERO));
            assert!(prober.takes(&octets, &link), "{transport:?}");
            let arrived = prober.arrived(Time::ZERO).expect("delivered");
            let octets_inside = arrived.frame(0).expect("one frame").bytes.len();
            assert_eq!(octets_inside, 20 + 8 + TOKEN_OCTETS);
            assert!(prober.arrived(Time::ZERO).is_none());
            assert!(!prober.takes(&octets, &link), "a replay is no probe");
        }
    }

    #[test]
    fn other_packets_other_senders_and_old_probes_are_not_taken() {
        let mut prober = prober(udp(8472)).expect("it is received");
        let (old, link) = looped(prober.send(7, Time::ZERO));
        let (octets, _) = looped(prober.send(7, Time::ZERO));
        assert_ne!(old, octets);
        assert!(!prober.takes(&old, &link));
        assert!(!prober.takes(b"something else", &link));
        let stranger = Link {
            remote: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
            ..link
        };
        assert!(!prober.takes(&octets, &stranger));
        assert!(prober.takes(&octets, &link));
    }

    #[test]
    fn a_port_that_nothing_is_received_on_has_no_prober() {
        assert!(prober(udp(1)).is_none());
    }
}
