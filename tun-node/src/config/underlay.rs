//! Underlay addresses that are not written but found: those of an interface, or those that this
//! host reaches the rest of the world from; without a default route, those that it reaches the
//! members of `[etcd]` from, which the other nodes reach too.
//!
//! They are found when the file is read, and again whenever the host's addresses change
//! ([`crate::hostroutes`]): a node on an address of DHCP keeps up with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket};

use nix::sys::socket::SockaddrStorage;
use toml::de::DeTable;

use super::error::{At, Problems, quoted};
use super::value;

/// An entry of `underlay`, as far as it can be told what it is.
#[derive(Clone, Debug)]
pub(super) enum Written {
    /// An address.
    Address(IpAddr),
    /// A name, and the addresses that it means at present: at most one of each family.
    Name(String, Vec<IpAddr>),
}

/// Reads an entry of `underlay`.
pub(super) fn written(text: &str, servers: &[String]) -> Result<Written, String> {
    let is_like_address = text.contains(['/', ':']) || !text.contains(|c: char| c.is_alphabetic());
    if is_like_address {
        return value::underlay_address(text).map(Written::Address);
    }
    let found = find(text, servers)?;
    Ok(Written::Name(text.to_owned(), found))
}

/// What a file with `[etcd]` or `[kubernetes]` means that says nothing of an underlay: "auto".
pub(super) fn by_default(
    at: usize,
    servers: &[String],
    problems: &mut Problems,
) -> Vec<At<Written>> {
    match written(AUTO, servers) {
        Ok(value) => vec![At { value, at }],
        Err(sentence) => {
            problems.push(at, format!("underlay is missing in [node], and {sentence}"));
            Vec::new()
        }
    }
}

/// The addresses of the entries of `underlay`, and the names among the entries.
pub(super) fn addresses(written: Vec<At<Written>>) -> (Vec<At<IpAddr>>, Vec<String>) {
    let (mut addresses, mut names) = (Vec::new(), Vec::new());
    for At { value, at } in written {
        match value {
            Written::Address(value) => addresses.push(At { value, at }),
            Written::Name(name, found) => {
                names.push(name);
                addresses.extend(found.into_iter().map(|value| At { value, at }));
            }
        }
    }
    (addresses, names)
}

/// Where the members of `[etcd]` are, as `host:port`, as far as it can be told before the section
/// is read: what is wrong with it is said there.
pub(super) fn servers(file: &DeTable<'_>) -> Vec<String> {
    let section = file.get("etcd").and_then(|etcd| etcd.get_ref().as_table());
    let endpoints = section.and_then(|etcd| etcd.get("endpoints"));
    let endpoints = endpoints.and_then(|list| list.get_ref().as_array());
    let endpoints = endpoints.into_iter().flatten();
    let texts = endpoints.filter_map(|endpoint| endpoint.get_ref().as_str());
    let servers = texts.filter_map(|url| {
        let (_, rest) = url.split_once("://")?;
        rest.split('/').next()
    });
    servers.map(str::to_owned).collect()
}

/// The addresses that names mean at present; `servers` are those that a node without a default
/// route finds its address by, as `host:port`.
///
/// # Errors
///
/// A sentence when one means none.
pub fn underlay_of(names: &[String], servers: &[String]) -> Result<Vec<IpAddr>, String> {
    let mut all = Vec::new();
    for name in names {
        all.extend(find(name, servers)?);
    }
    Ok(all)
}

fn find(name: &str, servers: &[String]) -> Result<Vec<IpAddr>, String> {
    let found = match name {
        AUTO => {
            let found = by_default_route();
            if found.is_empty() {
                toward(servers)
            } else {
                found
            }
        }
        interface => of_interface(interface)?,
    };
    if found.is_empty() {
        let what = match name {
            AUTO if servers.is_empty() => {
                "no default route of this host leads out by an address".to_owned()
            }
            AUTO => "neither a default route of this host nor the way to an endpoint of [etcd] \
                     leads out by an address"
                .to_owned(),
            interface => format!("the interface {} has no address", quoted(interface)),
        };
        return Err(format!("{what} that other nodes reach; write the address"));
    }
    Ok(found)
}

fn of_interface(name: &str) -> Result<Vec<IpAddr>, String> {
    let listed = nix::ifaddrs::getifaddrs();
    let listed = listed.map_err(|error| format!("the interfaces cannot be listed: {error}"))?;
    let mut is_there = false;
    let mut found = Vec::new();
    for one in listed.filter(|one| one.interface_name == name) {
        is_there = true;
        enter(&mut found, one.address.as_ref().and_then(ip));
    }
    if is_there {
        return Ok(found);
    }
    Err(format!(
        "{} is neither an address nor an interface of this host; write one such as \"192.0.2.1\", \
         the name of an interface, or \"{AUTO}\"",
        quoted(name)
    ))
}

/// The addresses that packets to the rest of the world leave by. Asking for the way sends nothing.
fn by_default_route() -> Vec<IpAddr> {
    let mut found = Vec::new();
    // Addresses for documentation: nobody has another route to them than the default one.
    let anywhere = [
        IpAddr::from([203, 0, 113, 1]),
        IpAddr::from([0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1]),
    ];
    for to in anywhere {
        enter(&mut found, source_toward(to));
    }
    found
}

/// The address that packets to the first of the servers leave by, and that of the other family at
/// the same interface.
fn toward(servers: &[String]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let resolved = servers
        .iter()
        .filter_map(|server| server.to_socket_addrs().ok());
    let mut sources = resolved.flatten().filter_map(|to| source_toward(to.ip()));
    // A member on this host says nothing of how others reach it.
    let source = sources.find(|source| !source.is_loopback());
    let Some(source) = source else { return found };
    enter(&mut found, Some(source));
    let listed = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut holders = listed.filter(|one| one.address.as_ref().and_then(ip) == Some(source));
    if let Some(holder) = holders.next()
        && let Ok(others) = of_interface(&holder.interface_name)
    {
        for other in others {
            enter(&mut found, Some(other));
        }
    }
    found
}

/// The source address of packets to an address.
fn source_toward(to: IpAddr) -> Option<IpAddr> {
    let from: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((from, 0)).ok()?;
    socket.connect((to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The IP address in a socket address.
pub(crate) fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
    v4.or(v6)
}

/// Takes the first address of each family that can be an outer one.
fn enter(found: &mut Vec<IpAddr>, address: Option<IpAddr>) {
    let usable = address.filter(|address| {
        let is_first = !found.iter().any(|one| one.is_ipv4() == address.is_ipv4());
        is_first && value::underlay_address(&address.to_string()).is_ok()
    });
    found.extend(usable);
}

/// Whatever the default routes, or else the ways to servers, lead out by.
const AUTO: &str = "auto";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_addresses() {
        for text in ["192.0.2.1", "2001:db8::1"] {
            assert!(
                matches!(written(text, &[]), Ok(Written::Address(_))),
                "{text}"
            );
        }
        for text in ["192.0.2.300", "192.0.2.1/24", "fe80::1%eth0", ""] {
            let why = written(text, &[]).unwrap_err();
            assert!(why.contains("address"), "{why}");
        }
        let why = written("no-such-link", &[]).unwrap_err();
        assert!(why.contains("neither an address nor an interface"), "{why}");
        let Ok(Written::Name(_, found)) = written("lo", &[]) else {
            panic!("every host has it");
        };
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
