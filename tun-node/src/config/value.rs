//! Rules for one value alone: is this text an address, a prefix, a name that can be used?
//!
//! Each function takes the text as written and gives the value, or the sentence for the user.
//! What depends on other values of the file is in `validate.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_core::units::MacAddr;

use super::VtepMac;
use super::error::quoted;

/// A node's or peer's name: it appears in tables, metrics and file names.
pub(super) fn node_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() {
        return Err("a name must not be empty; give the node a name of its own".to_owned());
    }
    if text.len() > NODE_NAME_OCTETS {
        return Err(format!(
            "the name {} has {} characters; use at most {NODE_NAME_OCTETS}",
            quoted(text),
            text.len()
        ));
    }
    if !text.chars().all(plain) || text.starts_with(['.', '-']) {
        return Err(format!(
            "the name {} cannot be used; use letters, digits, '.', '_' and '-', \
             beginning with a letter, a digit or '_'",
            quoted(text)
        ));
    }
    Ok(text.to_owned())
}

/// A network interface's name, by the rules of the Linux kernel.
pub(super) fn device_name(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("the device name must not be empty; write for example \"warren0\"".to_owned());
    }
    if text.len() > DEVICE_NAME_OCTETS {
        return Err(format!(
            "the device name {} has {} octets; the kernel takes at most {DEVICE_NAME_OCTETS}",
            quoted(text),
            text.len()
        ));
    }
    // '%' is legal for the kernel, which takes "x%d" as a template and chooses a number itself.
    let refused = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    if text.contains(refused) || text == "." || text == ".." {
        return Err(format!(
            "the device name {} cannot be used; \
             leave out spaces, '/', ':' and '%', and do not use \".\" or \"..\"",
            quoted(text)
        ));
    }
    Ok(text.to_owned())
}

/// An inner address.
pub(super) fn overlay_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| not_an_address(text))
}

/// An outer address: one that a tunnel packet can come from and go to.
///
/// Loopback passes here; whether it may be used is a question to the whole file.
pub(super) fn underlay_address(text: &str) -> Result<IpAddr, String> {
    let address = match text.parse() {
        Ok(address) => address,
        Err(_) if text.contains('/') => {
            return Err(format!(
                "{} is not an address; leave out the '/' and what follows it",
                quoted(text)
            ));
        }
        Err(_) => return Err(not_an_address(text)),
    };
    let (is, instead) = match address {
        IpAddr::V4(v4) if v4.is_unspecified() => ("the unspecified address", ONE_HOST),
        IpAddr::V6(v6) if v6.is_unspecified() => ("the unspecified address", ONE_HOST),
        IpAddr::V4(v4) if v4.is_broadcast() => ("the broadcast address", ONE_HOST),
        _ if address.is_multicast() => ("a multicast address", ONE_HOST),
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240 => {
            ("a reserved address", ONE_HOST)
        }
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => (
            "an IPv4 address in IPv6 form",
            "write it with four decimal numbers",
        ),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => (
            "a link-local address, which means nothing without its interface",
            "use a global or unique-local address",
        ),
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(address),
    };
    Err(format!(
        "{address} is {is} and cannot be an underlay address; {instead}"
    ))
}

/// An overlay prefix without host bits.
pub(super) fn prefix(text: &str) -> Result<IpNet, String> {
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(address) => format!(
                "{} is an address, not a prefix; add its length, for example {}",
                quoted(text),
                IpNet::from(address)
            ),
            Err(_) => format!(
                "{} is not a prefix; write ADDRESS/LENGTH, for example \"10.244.1.0/24\"",
                quoted(text)
            ),
        });
    };
    if net != net.trunc() {
        return Err(format!(
            "{net} has host bits set; write {} for the prefix or {} for the one address",
            net.trunc(),
            IpNet::from(net.addr())
        ));
    }
    for (range, is) in NOT_OVERLAY {
        if range.contains(&net) {
            return Err(format!(
                "{net} is {is} and cannot be an overlay prefix; \
                 take one that the overlay's nodes may use"
            ));
        }
    }
    Ok(net)
}

/// An address of the overlay device with the length of the network it is in.
pub(super) fn device_address(text: &str) -> Result<IpNet, String> {
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(address) => format!(
                "{} has no prefix length; add one, for example {}",
                quoted(text),
                IpNet::from(address)
            ),
            Err(_) => format!(
                "{} is not a device address; write ADDRESS/LENGTH, for example \"10.244.1.1/24\"",
                quoted(text)
            ),
        });
    };
    let address = net.addr();
    if address.is_unspecified()
        || NOT_OVERLAY
            .iter()
            .any(|(range, _)| range.contains(&address))
    {
        return Err(format!(
            "{address} cannot be a device address; take one out of the node's own prefixes"
        ));
    }
    Ok(net)
}

/// A VTEP MAC address or the rule that makes one.
pub(super) fn vtep_mac(text: &str) -> Result<VtepMac, String> {
    match text {
        "auto" => return Ok(VtepMac::Warren),
        "calico" => return Ok(VtepMac::Calico),
        _ => {}
    }
    let Ok(mac) = text.parse::<MacAddr>() else {
        return Err(format!(
            "{} is not a MAC address; write six pairs of hexadecimal digits, \
             as in \"02:00:5e:10:00:01\", or \"auto\" or \"calico\"",
            quoted(text)
        ));
    };
    if mac.is_multicast() {
        return Err(format!(
            "{mac} is a multicast MAC address; a VTEP's is unicast: its first octet is even"
        ));
    }
    if !mac.is_unicast() {
        return Err(format!(
            "{mac} is no station's MAC address; write the VTEP's own"
        ));
    }
    Ok(VtepMac::Given(mac))
}

/// The path of a Unix socket.
pub(super) fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err(format!(
            "the socket path {} is not absolute; begin it with '/'",
            quoted(text)
        ));
    }
    if text.len() > SOCKET_PATH_OCTETS {
        return Err(format!(
            "the socket path {} has {} octets; the kernel takes at most {SOCKET_PATH_OCTETS}",
            quoted(text),
            text.len()
        ));
    }
    if text.contains('\0') || text.ends_with('/') {
        return Err(format!(
            "the socket path {} names no file; end it with a file name",
            quoted(text)
        ));
    }
    Ok(path)
}

/// An address and TCP port to listen on.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(listen) if listen.port() == 0 => Err(format!(
            "{} has port 0; write the port to listen on",
            quoted(text)
        )),
        Ok(listen) => Ok(listen),
        Err(_) => Err(format!(
            "{} is not a listen address; \
             write ADDRESS:PORT, for example \"127.0.0.1:9472\" or \"[::1]:9472\"",
            quoted(text)
        )),
    }
}

/// The name of another node, as a reference; whether it exists is checked later.
pub(super) fn reference(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// The name of a node that has none, by its first underlay address.
pub(super) fn name_by_address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("v6-{}", v6.to_string().replace(':', "-")),
    }
}

/// The URL of an etcd member.
pub(super) fn endpoint(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://");
    let rest = rest.or_else(|| text.strip_prefix("https://"));
    let plain = |rest: &str| {
        let rest = rest.trim_end_matches('/');
        !rest.is_empty() && !rest.contains(|c: char| c.is_whitespace() || "/@?#".contains(c))
    };
    if rest.is_some_and(plain) {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    Err(format!(
        "{} is not an endpoint; write for example \"http://192.0.2.1:2379\"",
        quoted(text)
    ))
}

/// Where in etcd flannel's keys are.
pub(super) fn etcd_prefix(text: &str) -> Result<String, String> {
    let prefix = text.trim_end_matches('/');
    if prefix.starts_with('/') && prefix.len() <= ETCD_PREFIX_OCTETS {
        return Ok(prefix.to_owned());
    }
    Err(format!(
        "the prefix {} is none; begin it with '/', as in \"/coreos.com/network\"",
        quoted(text)
    ))
}

/// The name of a Node object: a DNS subdomain. RFC 1123 section 2.1.
pub(super) fn kubernetes_node(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty()
            && label.chars().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= DNS_NAME_OCTETS && text.split('.').all(label) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "the node {} cannot be a Node of Kubernetes; write a DNS name in lower case",
        quoted(text)
    ))
}

/// What annotations begin with: a DNS name that may have a path.
pub(super) fn annotation_prefix(text: &str) -> Result<String, String> {
    let prefix = text.trim_end_matches('/');
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
    if !prefix.is_empty() && prefix.len() <= DNS_NAME_OCTETS && prefix.chars().all(plain) {
        return Ok(prefix.to_owned());
    }
    Err(format!(
        "the annotation prefix {} is none; write for example \"flannel.alpha.coreos.com\"",
        quoted(text)
    ))
}

/// The path of a file or directory.
pub(super) fn file_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() && !text.contains('\0') {
        return Ok(path);
    }
    Err(format!(
        "the path {} is not absolute; begin it with '/'",
        quoted(text)
    ))
}

/// As [`file_path`]; empty text is an empty path.
pub(super) fn file_path_or_none(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Ok(PathBuf::new());
    }
    file_path(text)
}

fn not_an_address(text: &str) -> String {
    format!(
        "{} is not an IP address; write one such as \"192.0.2.1\" or \"2001:db8::1\", \
         without a port and not a host name",
        quoted(text)
    )
}

const ONE_HOST: &str = "write one host's own address";
const DNS_NAME_OCTETS: usize = 253;
const ETCD_PREFIX_OCTETS: usize = 256;
const NODE_NAME_OCTETS: usize = 63;
/// `IFNAMSIZ` less the final NUL.
const DEVICE_NAME_OCTETS: usize = 15;
/// `sun_path` less the final NUL.
const SOCKET_PATH_OCTETS: usize = 107;

/// What no overlay prefix may lie in. A wider prefix, such as the default route, may contain it.
const NOT_OVERLAY: [(IpNet, &str); 7] = [
    (v4(0, 8), "in the range that means \"this network\""),
    (v4(127, 8), "in the loopback range"),
    (v4(224, 4), "in the multicast range"),
    (v4(240, 4), "in the reserved range"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "the loopback address"),
    (
        v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
        "in the link-local range",
    ),
    (
        v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
        "in the multicast range",
    ),
];

const fn v4(first_octet: u8, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(
        Ipv4Addr::new(first_octet, 0, 0, 0),
        length,
    ))
}

const fn v6(segments: [u16; 8], length: u8) -> IpNet {
    let [a, b, c, d, e, f, g, h] = segments;
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(a, b, c, d, e, f, g, h),
        length,
    ))
}
