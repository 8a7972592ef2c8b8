//! The sections of sources: `[etcd]`, `[kubernetes]`, `[files]`, `[guard]`.

use std::path::PathBuf;

use super::{At, Problems, Section, value};
use crate::config::sources::{Etcd, Files, Guard, Kubernetes, KubernetesNetwork, NET_CONF};
use crate::flannel::{self, NetConf};

/// Reads `[etcd]`; `None` when something that it needs is missing or refused.
pub(super) fn etcd(table: &Section<'_, '_>, problems: &mut Problems) -> Option<Etcd> {
    table.refuse_unknown(
        &[
            "endpoints",
            "prefix",
            "ca",
            "certificate",
            "key",
            "user",
            "password-file",
            "lease-ttl-s",
            "leave",
        ],
        problems,
    );
    let endpoints = table.list("endpoints", problems, value::endpoint);
    if endpoints.is_none() {
        let hint = "list the members' client addresses, for example \"http://192.0.2.1:2379\"";
        table.missing("endpoints", hint, problems);
    }
    if let Some((content, at)) = table.get("endpoints")
        && content.as_array().is_some_and(|list| list.is_empty())
    {
        problems.push(at, "endpoints is empty; name at least one member");
    }
    let endpoints = endpoints.unwrap_or_default();
    let ca = table.parsed("ca", problems, value::file_path);
    let secure = endpoints
        .iter()
        .find(|one| one.value.starts_with("https://"));
    if let (Some(one), None) = (secure, table.get("ca")) {
        let sentence = "an https endpoint needs ca, a file of certificate authorities; add it";
        problems.push(one.at, sentence);
    }
    let certificate = pair(table, "certificate", "key", problems);
    let user = {
        let name = table.parsed("user", problems, value::reference);
        let file = table.parsed("password-file", problems, value::file_path);
        both(table, ("user", name), ("password-file", file), problems)
    };
    let prefix = table.parsed("prefix", problems, value::etcd_prefix);
    let ttl = table.number("lease-ttl-s", 5..=LEASE_TTL_S_MAX, problems);
    let leave = table.boolean("leave", problems);
    if endpoints.is_empty() {
        return None;
    }
    Some(Etcd {
        endpoints: endpoints.into_iter().map(|one| one.value).collect(),
        prefix: prefix.map_or_else(|| flannel::DEFAULT_PREFIX.to_owned(), |p| p.value),
        ca: ca.map(|path| path.value),
        certificate,
        user,
        lease_ttl_s: ttl.map_or(LEASE_TTL_S, |ttl| ttl.value),
        leave: leave.is_some_and(|leave| leave.value),
    })
}

/// Reads `[kubernetes]`; `None` when something was refused.
pub(super) fn kubernetes(table: &Section<'_, '_>, problems: &mut Problems) -> Option<Kubernetes> {
    let refused_before = problems.len();
    table.refuse_unknown(
        &[
            "node",
            "kubeconfig",
            "net-conf",
            "network",
            "ipv6-network",
            "backend",
            "vni",
            "port",
            "annotation-prefix",
            "leave",
        ],
        problems,
    );
    let node = table.parsed("node", problems, value::kubernetes_node);
    let kubeconfig = table.parsed("kubeconfig", problems, value::file_path);
    let network = kubernetes_network(table, problems);
    let prefix = table.parsed("annotation-prefix", problems, value::annotation_prefix);
    let leave = table.boolean("leave", problems);
    if problems.len() > refused_before {
        return None;
    }
    Some(Kubernetes {
        node: node.map(|node| node.value),
        kubeconfig: kubeconfig.map(|path| path.value),
        network: network?,
        annotation_prefix: prefix.map_or_else(
            || flannel::ANNOTATION_PREFIX.to_owned(),
            |prefix| prefix.value,
        ),
        leave: leave.is_some_and(|leave| leave.value),
    })
}

/// The network: in a file, or in keys that come to the same.
fn kubernetes_network(
    table: &Section<'_, '_>,
    problems: &mut Problems,
) -> Option<KubernetesNetwork> {
    let file = table.parsed("net-conf", problems, value::file_path);
    let mut first = None;
    for key in NETWORK_KEYS {
        let Some((_, at)) = table.get(key) else {
            continue;
        };
        if table.get("net-conf").is_some() {
            let sentence = format!("{key} stands in the file of net-conf; remove one of the two");
            problems.push(at, sentence);
        }
        first = first.or(Some((key, at)));
    }
    let refused_before = problems.len();
    let v4 = table.parsed("network", problems, value::prefix);
    let v6 = table.parsed("ipv6-network", problems, value::prefix);
    let backend = table.choice("backend", &BACKENDS, problems);
    let vni = table.number("vni", 0..=(1_u32 << 24) - 1, problems);
    let port = table.number("port", 1..=u16::MAX, problems);
    if table.get("net-conf").is_some() {
        return Some(KubernetesNetwork::File(file?.value));
    }
    let Some((key, at)) = first else {
        return Some(KubernetesNetwork::File(PathBuf::from(NET_CONF)));
    };
    if problems.len() > refused_before {
        return None;
    }
    if v4.is_none() && v6.is_none() {
        let sentence = format!("{key} needs network or ipv6-network beside it; add it");
        problems.push(at, sentence);
        return None;
    }
    let backend = backend.map_or("vxlan", |backend| backend.value);
    for (written, key, backends) in [
        (vni.map(|vni| vni.at), "vni", &["vxlan"][..]),
        (port.map(|port| port.at), "port", &["vxlan", "udp"]),
    ] {
        if let Some(at) = written
            && !backends.contains(&backend)
        {
            problems.push(at, format!("the backend {backend} has no {key}; remove it"));
            return None;
        }
    }
    // The same checks as for flannel's file, by being it.
    let json = serde_json::json!({
        "EnableIPv4": v4.is_some(),
        "Network": v4.map(|v4| v4.value.to_string()),
        "EnableIPv6": v6.is_some(),
        "IPv6Network": v6.map(|v6| v6.value.to_string()),
        "Backend": {
            "Type": backend,
            "VNI": vni.map(|vni| vni.value),
            "Port": port.map(|port| port.value),
        },
    });
    match NetConf::parse(json.to_string().as_bytes()) {
        Ok(network) => Some(KubernetesNetwork::Keys(network)),
        Err(error) => {
            problems.push(at, format!("{error}; correct it"));
            None
        }
    }
}

/// Reads `[files]`.
pub(super) fn files(table: &Section<'_, '_>, problems: &mut Problems) -> Option<Files> {
    table.refuse_unknown(&["directory"], problems);
    if table.get("directory").is_none() {
        table.missing("directory", "write the directory of route files", problems);
    }
    let directory = table.parsed("directory", problems, value::file_path)?.value;
    Some(Files { directory })
}

/// Reads `[guard]`.
pub(super) fn guard(table: &Section<'_, '_>, problems: &mut Problems) -> Guard {
    table.refuse_unknown(&["percent", "hold-s"], problems);
    let default = Guard::default();
    let percent = table.number("percent", 0..=100, problems);
    let hold = table.number("hold-s", 0..=86_400, problems);
    Guard {
        percent: percent.map_or(default.percent, |percent| percent.value),
        hold_s: hold.map_or(default.hold_s, |hold| hold.value),
    }
}

fn pair(
    table: &Section<'_, '_>,
    first: &'static str,
    second: &'static str,
    problems: &mut Problems,
) -> Option<(PathBuf, PathBuf)> {
    let one = table.parsed(first, problems, value::file_path);
    let other = table.parsed(second, problems, value::file_path);
    both(table, (first, one), (second, other), problems)
}

/// Two keys that make sense together only.
fn both<A, B>(
    table: &Section<'_, '_>,
    (first, one): (&'static str, Option<At<A>>),
    (second, other): (&'static str, Option<At<B>>),
    problems: &mut Problems,
) -> Option<(A, B)> {
    for (key, missing) in [(first, second), (second, first)] {
        if let Some((_, at)) = table.get(key)
            && table.get(missing).is_none()
        {
            problems.push(at, format!("{key} needs {missing} beside it; add it"));
        }
    }
    Some((one?.value, other?.value))
}

/// The keys that say what flannel's file would.
const NETWORK_KEYS: [&str; 5] = ["network", "ipv6-network", "backend", "vni", "port"];
const BACKENDS: [(&str, &str); 4] = [
    ("vxlan", "vxlan"),
    ("ipip", "ipip"),
    ("host-gw", "host-gw"),
    ("udp", "udp"),
];
/// A day, as flannel's.
const LEASE_TTL_S: u32 = 86_400;
/// What etcd grants at most is nine billion seconds; a month is longer than anybody waits.
const LEASE_TTL_S_MAX: u32 = 31 * 86_400;
