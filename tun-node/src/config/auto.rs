//! The node's own addresses, where the file leaves them to the host.
//!
//! `underlay = "auto"`, and a file that names a source which claims and says nothing of an underlay,
//! mean what flannel means by no `--iface`: the source address of the default route, for each family
//! that has one. A host without a default route is known by the address that it reaches the first
//! endpoints of etcd from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use super::error::{At, Problems};
use super::format::Draft;
use super::value;

/// Addresses of nobody (RFC 5737, RFC 3849): only the default route leads
/// there.
const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// Fills in the underlay addresses and the name that the file leaves to the host.
pub(super) fn resolve(
    draft: &mut Draft,
    towards: &dyn Fn(IpAddr) -> Option<IpAddr>,
    problems: &mut Problems,
) {
    let Some(at) = draft.node.underlay_auto else {
        return;
    };
    let endpoints = draft.etcd.iter().flat_map(|etcd| &etcd.endpoints);
    let targets: Vec<IpAddr> = FAR
        .into_iter()
        .chain(endpoints.filter_map(|endpoint| host_of(endpoint)))
        .collect();
    for is_wanted in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        let found = targets
            .iter()
            .filter(|target| is_wanted(target))
            .filter_map(|target| towards(*target))
            // What other nodes cannot reach is no address of this one.
            .find(|own| !own.is_loopback() && value::underlay_address(&own.to_string()).is_ok());
        draft
            .node
            .underlay
            .extend(found.map(|value| At { value, at }));
    }
    let Some(first) = draft.node.underlay.first() else {
        problems.push(
            at,
            "this host has no default route that would tell its underlay address; write it, as in \
             underlay = [\"192.0.2.1\"]",
        );
        return;
    };
    if draft.node.name.is_none() {
        draft.node.name = Some(At {
            value: value::name_by_address(first.value),
            at,
        });
    }
}

/// The address in `http://192.0.2.9:2379` or `https://[2001:db8::9]:2379`; a name has none here.
fn host_of(endpoint: &str) -> Option<IpAddr> {
    let authority = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest);
    let authority = authority.split('/').next()?;
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next()?,
        None => authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host),
    };
    host.parse().ok()
}

/// The address that this host's kernel would send from to `target`. Nothing is sent.
pub(super) fn source_address(target: IpAddr) -> Option<IpAddr> {
    let any = match target {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Port 9 discards; connecting a datagram socket only looks the route up.
    socket.connect((target, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 7));

    fn parse(text: &str, towards: &dyn Fn(IpAddr) -> Option<IpAddr>) -> Result<Config, String> {
        Config::parse_on(text, "node.toml", towards).map_err(|error| error.to_string())
    }

    #[test]
    fn endpoints_alone_make_a_node() {
        let text = "[etcd]\nendpoints = [\"http://192.0.2.254:2379\"]\n";
        let both = |target: IpAddr| Some(if target.is_ipv4() { V4 } else { V6 });
        let config = parse(text, &both).unwrap();
        let addresses = (config.node.underlay_v4, config.node.underlay_v6);
        assert_eq!(
            (addresses.0.map(IpAddr::V4), addresses.1.map(IpAddr::V6)),
            (Some(V4), Some(V6))
        );
        assert_eq!(config.node.name, value::name_by_address(V4));
        let only_v6 = |target: IpAddr| target.is_ipv6().then_some(V6);
        assert_eq!(
            parse(text, &only_v6).unwrap().node.name,
            value::name_by_address(V6)
        );
    }

    #[test]
    fn without_a_default_route_the_way_to_etcd_counts() {
        let text = "[node]\nname = \"n\"\nunderlay = \"auto\"\n\
                    [etcd]\nendpoints = [\"http://name:2379\", \"http://192.0.2.254:2379/\"]\n";
        let etcd: IpAddr = "192.0.2.254".parse().unwrap();
        let config = parse(text, &|target| (target == etcd).then_some(V4)).unwrap();
        assert_eq!(config.node.underlay_v4.map(IpAddr::V4), Some(V4));
        assert_eq!(config.node.underlay_v6, None);
        assert_eq!(config.node.name, "n");
    }

    #[test]
    fn an_address_that_nobody_reaches_is_not_taken() {
        let text = "[node]\nname = \"n\"\nunderlay = \"auto\"\nprefixes = [\"10.1.0.0/16\"]\n";
        for address in ["127.0.0.1", "::1", "fe80::1", "0.0.0.0"] {
            let address: IpAddr = address.parse().unwrap();
            let refused = parse(text, &|_| Some(address)).unwrap_err();
            assert!(refused.contains("node.toml:3:"), "{refused}");
            assert!(refused.contains("no default route"), "{refused}");
        }
    }

    #[test]
    fn the_host_of_an_endpoint() {
        for (endpoint, host) in [
            ("http://192.0.2.9:2379", Some("192.0.2.9")),
            ("https://[2001:db8::9]:2379", Some("2001:db8::9")),
            ("https://etcd.example:2379", None),
        ] {
            assert_eq!(host_of(endpoint), host.map(|host| host.parse().unwrap()));
        }
    }
}
