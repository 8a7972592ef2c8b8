//! By which socket of a worker a frame leaves.

use std::net::{IpAddr, SocketAddr};

use warren_core::batch::{Link, Transport};
use warren_core::units::Family;

use super::wanted::{raw_config, sends_by_udp, udp_config};
use super::{Kind, Receiver, Socket, UnderlayError};
use crate::config::Config;
use crate::raw::{Inner, RawIp};
use crate::udp::{PathMtu, TransmitPool, Udp};

/// Where frames leave.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// The UDP pools by family, IPv4 first.
    pub(super) pools: [Option<TransmitPool>; 2],
    /// UDP sockets for outer packets that may be fragmented, by family.
    pub(super) fragmenting: [Option<TransmitPool>; 2],
    /// Raw sockets for outer packets that may be fragmented.
    pub(super) fragmenting_raw: Vec<RawIp>,
}

/// The socket by which a frame leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Way {
    pub(super) kind: Kind,
    /// The socket's number: in the pool, or among the receivers; or among those that fragment.
    pub(super) index: usize,
    /// Whether the outer packet may be fragmented.
    pub(super) fragments: bool,
}

impl Ways {
    /// Opens those sockets for what may be fragmented, beside those for what may not, that are not
    /// open. Every one is tried, whatever became of the others; gives what failed.
    pub(super) fn open_fragmenting(&mut self, config: &Config, seed: u64) -> Vec<UnderlayError> {
        let mut failed = Vec::new();
        let underlay = [Family::V4, Family::V6].map(|family| config.node.underlay(family));
        let addresses = underlay.into_iter().zip(&mut self.fragmenting);
        for (address, fragmenting) in addresses {
            let Some(address) = address else { continue };
            if sends_by_udp(config) && fragmenting.is_none() {
                let bind = SocketAddr::new(address, 0);
                let mut udp = udp_config(config, bind);
                udp.path_mtu = PathMtu::Fragment;
                let opened = TransmitPool::bind(&udp, 1, seed.rotate_left(32));
                match opened.map_err(UnderlayError::udp(bind)) {
                    Ok(opened) => *fragmenting = Some(opened),
                    Err(error) => failed.push(error),
                }
            }
            for inner in [Inner::Ipv4, Inner::Ipv6] {
                let mut raws = self.fragmenting_raw.iter();
                let is_open = raws.any(|raw| raw.local_addr() == address && raw.inner() == inner);
                if !config.uses_ipip() || is_open {
                    continue;
                }
                match open_raw(config, address, inner) {
                    Ok(raw) => self.fragmenting_raw.push(raw),
                    Err(error) => failed.push(error),
                }
            }
        }
        failed
    }

    pub(super) fn find(&self, receivers: &[Receiver], link: &Link) -> Option<Way> {
        let kind = Kind::of(link);
        let fragments = !link.dont_fragment;
        let index = match link.transport {
            Transport::Udp { .. } if fragments => 0,
            Transport::Ip { protocol } if fragments => {
                self.fragmenting_raw.iter().position(|raw| {
                    raw.local_addr() == link.local && raw.inner().protocol() == protocol
                })?
            }
            Transport::Udp { local_port, .. } => {
                let pool = self.pool(kind)?;
                // The engine's port is 14 bits of the flow's hash; the pool wants 32.
                pool.index(u32::from(local_port & 0x3fff) << 18)
            }
            Transport::Ip { protocol } => receivers.iter().position(|receiver| {
                receiver.local.ip() == link.local
                    && matches!(&receiver.socket, Socket::Raw(raw) if raw.inner().protocol() == protocol)
            })?,
        };
        Some(Way {
            kind,
            index,
            fragments,
        })
    }

    /// The sockets of a way: one of the two.
    pub(super) fn sockets<'s>(
        &'s self,
        way: Way,
        receivers: &'s [Receiver],
    ) -> (Option<&'s Udp>, Option<&'s RawIp>) {
        let pools = if way.fragments {
            &self.fragmenting
        } else {
            &self.pools
        };
        let [v4, v6] = pools;
        let pool = match way.kind {
            Kind::Udp4 => v4,
            Kind::Udp6 => v6,
            Kind::Ip4 | Kind::Ip6 if way.fragments => {
                return (None, self.fragmenting_raw.get(way.index));
            }
            Kind::Ip4 | Kind::Ip6 => {
                let raw = match receivers.get(way.index).map(|receiver| &receiver.socket) {
                    Some(Socket::Raw(raw)) => Some(raw),
                    Some(Socket::Udp(_)) | None => None,
                };
                return (None, raw);
            }
        };
        let udp = pool.as_ref().and_then(|pool| pool.sockets().get(way.index));
        (udp, None)
    }

    const fn pool(&self, kind: Kind) -> Option<&TransmitPool> {
        let [v4, v6] = &self.pools;
        match kind {
            Kind::Udp4 => v4.as_ref(),
            Kind::Udp6 => v6.as_ref(),
            Kind::Ip4 | Kind::Ip6 => None,
        }
    }
}

/// Opens a raw socket for outer packets that may be fragmented.
fn open_raw(config: &Config, address: IpAddr, inner: Inner) -> Result<RawIp, UnderlayError> {
    let mut raw = raw_config(config, address, inner);
    raw.path_mtu = PathMtu::Fragment;
    raw.receive_buffer_octets = 0;
    let raw = RawIp::open(&raw)?;
    raw.receive_nothing()?;
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::config::example_config;
    use crate::sys::process::{Capability, has_capability};

    #[test]
    fn of_two_raw_sockets_the_one_that_is_missing_is_opened_later() {
        if !has_capability(Capability::NetRaw) {
            eprintln!("skipped: raw sockets need CAP_NET_RAW");
            return;
        }
        let text = format!("{}\n[ipip]\nenabled = true\n", example_config());
        let mut config = Config::parse(&text, "example.toml").expect("it is valid");
        config.node.underlay_v4 = Some(Ipv4Addr::LOCALHOST);
        config.node.underlay_v6 = None;
        for missing in 0..2 {
            let mut ways = Ways::default();
            assert!(ways.open_fragmenting(&config, 7).is_empty());
            ways.fragmenting_raw.remove(missing);
            for _ in 0..2 {
                assert!(ways.open_fragmenting(&config, 7).is_empty());
                let raws = ways.fragmenting_raw.iter();
                let mut protocols: Vec<u8> = raws.map(|raw| raw.inner().protocol()).collect();
                protocols.sort_unstable();
                assert_eq!(protocols, [4, 41]);
            }
        }
    }

    #[test]
    fn each_family_is_tried_whatever_became_of_the_other() {
        let mut config = Config::parse(example_config(), "example.toml").expect("it is valid");
        config.node.underlay_v4 = Some(Ipv4Addr::new(192, 0, 2, 250));
        config.node.underlay_v6 = Some("2001:db8::250".parse().expect("an address"));
        let failed = Ways::default().open_fragmenting(&config, 7);
        assert_eq!(failed.len(), 2, "{failed:?}");
    }
}
