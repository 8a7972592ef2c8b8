//! Two whole nodes that take their routes from the API server, and packets between their Pods.

use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use tun_node::config::warren_vtep_mac;

use super::fleet::{Fleet, HUB, Node, SHORT, wait};
use super::manifest::Role;
use super::node;
use super::server::{Server, TOKEN};

/// Two hosts, 1 and 2, and a Pod of each, 3 and 4.
pub(crate) const NODES: u8 = 4;

/// The Node object of host 1 or 2, at its addresses on the link of the namespaces.
pub(crate) fn object(number: u16) -> Value {
    let mut node = node::object(number, true);
    let addresses = node["status"]["addresses"].as_array_mut().unwrap();
    for address in addresses {
        if address["address"] == format!("2001:db8::{number:x}") {
            address["address"] = json!(format!("2001:db8:99::{number:x}"));
        }
    }
    node
}

/// Gives each host a Pod: a namespace behind a link, with addresses of the host's podCIDRs.
fn pods(fleet: &Fleet) {
    for host in [1, 2] {
        let pod = host + 2;
        let namespace = fleet.namespace(pod);
        let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward; \
                       echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
        let output = Command::new("ip")
            .args(["netns", "exec", &fleet.namespace(host), "sh", "-c", forward])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        fleet.ip(
            host,
            &format!("link add pod type veth peer name eth0 netns {namespace}"),
        );
        for (node, link, number) in [(host, "pod", 1), (pod, "eth0", 5)] {
            fleet.ip(node, &format!("link set {link} addrgenmode none up"));
            let v4 = format!("10.244.{host}.{number}/24");
            fleet.ip(node, &format!("addr add {v4} dev {link}"));
            let v6 = format!("fd00:10:244:{host}::{number}/64");
            fleet.ip(node, &format!("addr add {v6} dev {link} nodad"));
            // What a host asks its Pod's link address from.
            let local = format!("fe80::{number}/64");
            fleet.ip(node, &format!("addr add {local} dev {link} nodad"));
        }
        fleet.ip(pod, &format!("route add 10.244.0.0/16 via 10.244.{host}.1"));
        let via = format!("fd00:10:244:{host}::1");
        fleet.ip(pod, &format!("-6 route add fd00:10:244::/48 via {via}"));
    }
}

/// Both families, both ways, between the Pods; none may be lost.
pub(crate) fn passes(fleet: &Fleet, count: u32) {
    for (from, to) in [(3, 2), (4, 1)] {
        for address in [format!("10.244.{to}.5"), format!("fd00:10:244:{to}::5")] {
            assert!(fleet.pings(from, &address, count), "{from} to {address}");
        }
    }
}

/// Starts the nodes of two hosts that know the API by `section` and what `before` prepares, and
/// has their Pods exchange packets. `seen` is a Node as the server has it. The first node is given
/// the name of its interface in place of addresses.
pub(crate) fn exchange(
    fleet: &Fleet,
    section: &str,
    before: impl Fn(u8) -> String,
    seen: impl Fn(&str) -> Value,
) -> Vec<Node> {
    pods(fleet);
    let began = Instant::now();
    let nodes: Vec<Node> = [1, 2]
        .into_iter()
        .map(|number| {
            let config = fleet.config(number, true, &[], section);
            let text = std::fs::read_to_string(&config).unwrap();
            let written = "[\"192.0.2.1\", \"2001:db8:99::1\"]";
            std::fs::write(&config, text.replace(written, "\"wire\"")).unwrap();
            fleet.spawn_after(number, &config, &before(number))
        })
        .collect();
    for (from, to) in [(3, 2), (4, 1)] {
        for address in [format!("10.244.{to}.5"), format!("fd00:10:244:{to}::5")] {
            wait(&format!("{from} to reach {address}"), SHORT, || {
                fleet.pings(from, &address, 1)
            });
        }
    }
    eprintln!(
        "two nodes know each other by the API and their Pods reach each other, both families: {:?}",
        began.elapsed()
    );
    passes(fleet, 100);
    for (number, node) in (1..).zip(&nodes) {
        let name = format!("n{number}");
        let mac = warren_vtep_mac(&format!("192.0.2.{number}"));
        let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
        // flannel's own, octet for octet, and what was there besides.
        let expected = json!({
            "node.alpha.kubernetes.io/ttl": "0",
            "flannel.alpha.coreos.com/backend-data": data,
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-v6-data": data,
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/public-ip": format!("192.0.2.{number}"),
            "flannel.alpha.coreos.com/public-ipv6": format!("2001:db8:99::{number}"),
        });
        wait("the annotations", SHORT, || {
            seen(&name)["metadata"]["annotations"] == expected
        });
        wait("the condition", SHORT, || {
            let node = seen(&name);
            let conditions = node["status"]["conditions"].as_array().unwrap().iter();
            let mut up = conditions.filter(|one| one["type"] == "NetworkUnavailable");
            up.any(|one| one["status"] == "False")
        });
        assert_eq!(
            node.subnets(),
            [
                format!("10.244.{number}.0/24"),
                format!("fd00:10:244:{number}::/64")
            ]
        );
        // Through the tunnel, and by routes of this node's making.
        let peer = 3 - number;
        let to = format!("10.244.{peer}.0/24");
        let route = fleet.ip(number, &format!("route show {to}"));
        assert!(route.contains("dev warren0 proto 87"), "{route}");
        let env = node.file("/run/flannel/subnet.env").unwrap();
        let subnet = format!("FLANNEL_SUBNET=10.244.{number}.1/24\n");
        assert!(env.contains(&subnet), "{env}");
    }
    nodes
}

#[test]
fn two_nodes_that_know_only_the_api_carry_packets_between_their_pods() {
    let Some(fleet) = Fleet::new(NODES) else {
        return;
    };
    let server = Server::at(HUB, Role::of_manifest());
    for number in [1, 2] {
        server.put(object(number));
    }
    let kubeconfig = fleet.directory().join("kubeconfig");
    let text = format!(
        "current-context: x\nclusters:\n- name: c\n  cluster: {{server: '{}'}}\n\
         users:\n- name: u\n  user: {{token: {TOKEN}}}\n\
         contexts:\n- name: x\n  context: {{cluster: c, user: u}}\n",
        server.url()
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let section = format!(
        "[kubernetes]\nkubeconfig = \"{}\"\nnetwork = \"10.244.0.0/16\"\n\
         ipv6-network = \"fd00:10:244::/48\"\nbackend = \"vxlan\"\n",
        kubeconfig.display()
    );
    let name = |number: u8| format!("export NODE_NAME=n{number}");
    let nodes = exchange(&fleet, &section, name, |name| server.node(name));
    let (used, denied) = server.rights();
    assert_eq!((used, denied), (Role::of_manifest().0, 0));
    // The host's addresses become others: the node takes them up, and everybody learns of it.
    let began = Instant::now();
    for (old, new) in [
        ("192.0.2.1/24", "192.0.2.11/24"),
        ("2001:db8:99::1/64", "2001:db8:99::11/64 nodad"),
    ] {
        fleet.ip(1, &format!("addr del {old} dev wire"));
        fleet.ip(1, &format!("addr add {new} dev wire"));
    }
    wait("the new addresses to be published", SHORT, || {
        let node = server.node("n1");
        let said = |name: &str| {
            let name = format!("flannel.alpha.coreos.com/{name}");
            node["metadata"]["annotations"][name].clone()
        };
        said("public-ip") == "192.0.2.11" && said("public-ipv6") == "2001:db8:99::11"
    });
    eprintln!(
        "the host's other addresses are published: {:?}",
        began.elapsed()
    );
    wait("the Pods to reach each other", SHORT, || {
        let to = |number: u8| {
            [
                format!("10.244.{number}.5"),
                format!("fd00:10:244:{number}::5"),
            ]
        };
        let mut pairs = to(2).into_iter().map(|to| (3, to));
        pairs.all(|(from, to)| fleet.pings(from, &to, 1))
    });
    eprintln!("and packets pass again: {:?}", began.elapsed());
    passes(&fleet, 50);
    // The server dies: what was learned carries on, and nobody notices it by a packet.
    server.stop();
    wait("the loss to be told", SHORT, || {
        nodes.iter().all(|node| node.source("kube").state == "lost")
    });
    passes(&fleet, 50);
    for node in nodes {
        node.stop();
    }
}
