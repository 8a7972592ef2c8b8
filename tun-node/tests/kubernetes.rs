//! The Kubernetes source against a small API server in this process, which refuses whatever the
//! manifest's role does not permit; and, on request, against a real one.

#![allow(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test ends where its own assumption is wrong"
)]

#[path = "kubernetes/certificates.rs"]
mod certificates;
#[allow(dead_code, reason = "the tests of whole nodes need more of it")]
#[path = "join/fleet.rs"]
mod fleet;
#[path = "kubernetes/manifest.rs"]
mod manifest;
#[path = "kubernetes/node.rs"]
mod node;
#[path = "kubernetes/real.rs"]
mod real;
#[path = "kubernetes/server.rs"]
mod server;
#[path = "support/tls.rs"]
mod tls;
#[path = "kubernetes/traffic.rs"]
mod traffic;

use std::time::{Duration, Instant};

use manifest::{Role, documents, of_kind, texts};
use node::{DUAL, NETWORK, Node, flannel, object};
use serde_json::json;
use server::{Server, TOKEN};
use tun_node::source::{SourceCommand, SourceNotice};

const SHORT: Duration = Duration::from_secs(20);

fn server() -> Server {
    Server::start(Role::of_manifest())
}

/// A server with the Node `n1`, and 50 flannel nodes besides it.
fn cluster() -> Server {
    let server = server();
    server.put(object(1, false));
    for number in 100..150 {
        server.put(flannel(number));
    }
    server
}

fn all_know(nodes: &mut [Node], routes: usize) {
    for node in nodes {
        let seen = node.wait_for(SHORT, |node| node.table.routes().count() == routes);
        let found = node.table.routes().count();
        assert!(seen.is_some(), "{found} routes, {:?}", node.alarms());
    }
}

/// Waits until a Node is as it should be.
fn until(nodes: &mut [Node], mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + SHORT;
    while !done() {
        if Instant::now() >= end {
            return false;
        }
        for node in &mut *nodes {
            node.run(Duration::from_millis(10));
        }
    }
    true
}

#[test]
fn two_nodes_publish_what_flannel_would_and_find_each_other() {
    for (network, dual, families) in [(NETWORK, false, 1), (DUAL, true, 2)] {
        let server = server();
        server.put(object(1, dual));
        server.put(object(2, dual));
        // More than half of all gone at once would be held.
        for number in 100..103 {
            server.put(flannel(number));
        }
        let mut nodes = vec![Node::of(&server, 1, network), Node::of(&server, 2, network)];
        all_know(&mut nodes, 2 * families + 3);
        let up = || {
            ["n1", "n2"].iter().all(|name| {
                let node = server.node(name);
                let conditions = node["status"]["conditions"].as_array().unwrap();
                conditions
                    .iter()
                    .any(|one| one["type"] == "NetworkUnavailable" && one["status"] == "False")
            })
        };
        assert!(until(&mut nodes, up), "{}", server.node("n1"));
        let node = server.node("n2");
        // flannel's own, octet for octet, and what was there besides.
        let mut expected = json!({
            "node.alpha.kubernetes.io/ttl": "0",
            "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:01:02\"}",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/public-ip": "192.0.2.2",
        });
        if dual {
            expected["flannel.alpha.coreos.com/backend-v6-data"] =
                json!("{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:01:02\"}");
            expected["flannel.alpha.coreos.com/public-ipv6"] = json!("2001:db8::2");
        }
        assert_eq!(node["metadata"]["annotations"], expected);
        // Ready was not touched, and the time is one.
        let conditions = node["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 2);
        let time = conditions[1]["lastTransitionTime"].as_str().unwrap();
        assert!(
            time.starts_with("20") && time.ends_with('Z') && time.len() == 20,
            "{time}"
        );
        for node in &mut nodes {
            // The server may know before the node has heard its answer.
            node.wait_for(SHORT, |node| node.subnets().len() == families);
            assert_eq!(node.subnets().len(), families);
            assert_eq!(node.remote(), families + 3);
        }
        // All that was done was permitted, and all that is permitted was needed.
        let (used, denied) = server.rights();
        assert_eq!((used, denied), (Role::of_manifest().0, 0));
        // Nothing more is written once it is right.
        let patches = server.asked("PATCH");
        assert_eq!(patches, 4);
        for node in &mut nodes {
            node.run(Duration::from_millis(700));
        }
        assert_eq!(server.asked("PATCH"), patches);
        // One leaves; the other one sees it go, and its Node is as before.
        let mut leaver = nodes.pop().unwrap();
        leaver.tell(SourceCommand::Leave);
        let left = |note: &SourceNotice| matches!(note, SourceNotice::Left { .. });
        leaver
            .wait_for(SHORT, |node| node.notes.iter().any(left))
            .unwrap();
        all_know(&mut nodes, families + 3);
        let annotations = &server.node("n2")["metadata"]["annotations"];
        assert_eq!(*annotations, json!({ "node.alpha.kubernetes.io/ttl": "0" }));
    }
}

#[test]
fn changes_are_seen_at_once_and_one_at_a_time() {
    let server = cluster();
    let mut node = Node::of(&server, 1, NETWORK);
    all_know(std::slice::from_mut(&mut node), 51);
    let mut times = Vec::new();
    for number in 200..220 {
        let start = Instant::now();
        server.put(flannel(number));
        node.wait_for(SHORT, |node| node.remote() == 51).unwrap();
        times.push(start.elapsed());
        let start = Instant::now();
        server.delete(&format!("n{number}"));
        node.wait_for(SHORT, |node| node.remote() == 50).unwrap();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("40 changes: half within {median:?}, all within {slowest:?}");
    // One of them may have waited for its processor; half of them have not.
    assert!(median < Duration::from_millis(200) && slowest < Duration::from_secs(2));
    assert_eq!((node.fulls, node.withdrawn()), (1, 20));
}

#[test]
fn broken_watches_go_on_where_they_were() {
    let server = cluster();
    let mut node = Node::of(&server, 1, NETWORK);
    all_know(std::slice::from_mut(&mut node), 51);
    for (round, in_line) in (0..).zip([true, false, true, true, false]) {
        server.cut(in_line);
        // Between two watches something happens.
        server.put(flannel(200 + round));
        let most = Duration::from_secs(10);
        let took = node.wait_for(most, |node| node.remote() == 51 + usize::from(round));
        eprintln!("cut, in a line {in_line}: change seen after {took:?}");
        assert!(took.is_some(), "{:?}", node.alarms());
        node.run(Duration::from_millis(300));
    }
    // The list was asked for once; nothing went away.
    assert_eq!((node.fulls, node.withdrawn()), (1, 0));
    assert_eq!(server.asked("GET /api/v1/nodes?limit"), 1);
}

#[test]
fn forgotten_versions_lead_to_a_new_list_and_withdraw_nothing() {
    for in_stream in [false, true] {
        let server = cluster();
        server.gone_in_stream(in_stream);
        let mut node = Node::of(&server, 1, NETWORK);
        all_know(std::slice::from_mut(&mut node), 51);
        node.wait_for(SHORT, |_| server.asked("PATCH") == 2)
            .unwrap();
        node.run(Duration::from_millis(200));
        // What happens while it is away, of which the history is then forgotten.
        server.stop();
        server.put(flannel(200));
        server.delete("n149");
        server.forget();
        node.wait_for(SHORT, Node::is_lost).unwrap();
        server.start_again();
        let known = |node: &Node| node.fulls == 2 && node.remote() == 50;
        let took = node.wait_for(SHORT, known);
        eprintln!("410 in the stream {in_stream}: listed again after {took:?}");
        assert!(took.is_some(), "{} routes", node.remote());
        // One was deleted, and nothing else was ever withdrawn.
        assert_eq!(node.withdrawn(), 1);
    }
}

#[test]
fn restored_backup_withdraws_nothing() {
    let server = cluster();
    let mut node = Node::of(&server, 1, NETWORK);
    all_know(std::slice::from_mut(&mut node), 51);
    node.wait_for(SHORT, |_| server.asked("PATCH") == 2)
        .unwrap();
    server.stop();
    server.restore(|name| name == "n1" || name < "n110");
    node.wait_for(SHORT, Node::is_lost).unwrap();
    server.start_again();
    node.wait_for(SHORT, |node| node.fulls == 2).unwrap();
    node.run(Duration::from_millis(300));
    // What is not there may not have been written again yet: the table holds it.
    assert_eq!((node.remote(), node.withdrawn()), (50, 0));
    assert_eq!(node.status().held, 40);
}

#[test]
fn pages_are_put_together_and_begun_again_when_they_take_too_long() {
    let server = cluster();
    server.page_most(7);
    let mut node = Node::of(&server, 1, NETWORK);
    all_know(std::slice::from_mut(&mut node), 51);
    assert_eq!(server.asked("GET /api/v1/nodes?continue"), 7);
    assert_eq!(node.fulls, 1);
}

#[test]
fn killed_server_loses_nothing_and_its_return_is_noticed() {
    let server = cluster();
    let mut node = Node::of(&server, 1, NETWORK);
    all_know(std::slice::from_mut(&mut node), 51);
    node.wait_for(SHORT, |_| server.asked("PATCH") == 2)
        .unwrap();
    server.stop();
    let took = node.wait_for(SHORT, Node::is_lost);
    eprintln!("killed: noticed after {took:?}");
    assert!(took.is_some());
    let before = node.notes.len();
    node.run(Duration::from_secs(5));
    assert_eq!((node.remote(), node.withdrawn()), (50, 0));
    assert!(node.notes.len() - before <= 1, "{:?}", node.alarms());
    server.put(flannel(200));
    server.start_again();
    let took = node.wait_for(SHORT, |node| node.remote() == 51);
    eprintln!("change made meanwhile: seen {took:?} after its return");
    assert!(took.unwrap() < Duration::from_secs(2));
    assert_eq!((node.fulls, node.withdrawn()), (1, 0));
}

#[test]
fn silent_server_is_noticed_within_15_s() {
    let server = cluster();
    let mut node = Node::of(&server, 1, NETWORK);
    all_know(std::slice::from_mut(&mut node), 51);
    node.wait_for(SHORT, |_| server.asked("PATCH") == 2)
        .unwrap();
    server.freeze(true);
    let took = node.wait_for(Duration::from_secs(15), Node::is_lost);
    eprintln!("silence noticed after {took:?}");
    assert!(took.is_some());
    server.put(flannel(200));
    server.freeze(false);
    let took = node.wait_for(SHORT, |node| node.remote() == 51);
    eprintln!("and its end after {took:?}");
    assert!(took.is_some());
    assert_eq!(node.withdrawn(), 0);
}

#[test]
fn annotations_are_repaired_and_the_token_is_read_again() {
    let server = server();
    server.put(object(1, false));
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    let node = Node::with_token_file(&server, 1, &token);
    let mut nodes = [node];
    let right = |server: &Server| {
        let node = server.node("n1");
        let ip = &node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"];
        let conditions = node["status"]["conditions"].as_array().unwrap();
        let up = |one: &serde_json::Value| one["status"] == "False";
        *ip == "192.0.2.1" && conditions.iter().any(up)
    };
    assert!(until(&mut nodes, || right(&server)));
    // Someone takes them away, with the condition.
    server.put(object(1, false));
    assert!(until(&mut nodes, || right(&server)));
    // A cloud's controller says otherwise.
    let mut node = server.node("n1");
    node["status"]["conditions"][1]["status"] = json!("True");
    server.put(node);
    assert!(until(&mut nodes, || right(&server)));
    // The administrator wants another address published.
    let mut node = server.node("n1");
    node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip-overwrite"] =
        json!("203.0.113.9");
    server.put(node);
    let overwritten = || {
        let node = server.node("n1");
        node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"] == "203.0.113.9"
    };
    assert!(until(&mut nodes, overwritten));
    // The token becomes another: a wrong one is refused, a right one is taken without a restart.
    std::fs::write(&token, "expired").unwrap();
    server.cut(false);
    let node = &mut nodes[0];
    node.wait_for(Duration::from_secs(15), Node::is_lost)
        .unwrap();
    std::fs::write(&token, TOKEN).unwrap();
    node.wait_for(SHORT, |node| !node.is_lost()).unwrap();
    assert_eq!(node.withdrawn(), 0);
}

#[test]
fn without_the_right_to_publish_routes_are_learned_all_the_same() {
    let mut role = Role::of_manifest();
    role.0.retain(|(verb, _)| verb != "patch");
    let server = Server::start(role);
    server.put(object(1, false));
    server.put(flannel(100));
    let mut node = Node::of(&server, 1, NETWORK);
    all_know(std::slice::from_mut(&mut node), 2);
    let said = |node: &Node| {
        node.alarms()
            .iter()
            .any(|alarm| alarm.contains("forbidden"))
    };
    node.wait_for(SHORT, said).unwrap();
    // Not more often than somebody can read.
    node.run(Duration::from_secs(3));
    let (_, denied) = server.rights();
    assert!(denied <= 4, "{denied}");
    assert_eq!((node.remote(), node.is_lost()), (1, false));
}

#[test]
fn hostile_nodes_are_quarantined_and_harm_nothing() {
    let server = server();
    server.put(object(1, false));
    let with = |number: u16, name: &str, value: &str| {
        let mut node = flannel(number);
        node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{name}")] = json!(value);
        node
    };
    let cidr = |number: u16, cidr: &str| {
        let mut node = flannel(number);
        node["spec"] = json!({ "podCIDR": cidr, "podCIDRs": [cidr] });
        node
    };
    let calico = |number: u16, tunnel: &str| {
        let mut node = object(number, false);
        let annotations = &mut node["metadata"]["annotations"];
        annotations["projectcalico.org/IPv4Address"] = json!(format!("192.0.2.{number}/24"));
        annotations["projectcalico.org/IPv4VXLANTunnelAddr"] = json!(tunnel);
        node
    };
    let deep = "[".repeat(5000);
    let hostile = [
        with(100, "backend-data", "$(reboot)"),
        with(101, "backend-data", &deep),
        with(
            102,
            "backend-data",
            r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#,
        ),
        with(
            103,
            "backend-data",
            r#"{"VNI":77777777,"VtepMAC":"02:00:00:00:00:01"}"#,
        ),
        with(104, "backend-data", "null"),
        with(105, "backend-type", "wireguard"),
        with(106, "public-ip", "127.0.0.1"),
        with(107, "public-ip", "224.0.0.1"),
        with(108, "public-ip", "\u{0}"),
        with(109, "public-ip", "192.0.2.1"),
        cidr(110, "0.0.0.0/0"),
        cidr(111, "172.16.0.0/24"),
        cidr(112, "10.244.112.7/24"),
        cidr(113, "10.244.113.0-24"),
        calico(114, "10.244.99.0"),
    ];
    for node in &hostile {
        server.put(node.clone());
    }
    for number in 150..160 {
        server.put(flannel(number));
    }
    // Nobody's business: no podCIDR, no annotations, not flannel's any more, and one that
    // Calico gives addresses by podCIDR.
    let mut none = flannel(120);
    none["spec"] = json!({});
    server.put(none);
    server.put(object(121, false));
    server.put(with(122, "kube-subnet-manager", "false"));
    server.put(calico(123, "10.244.123.0"));
    let mut node = Node::of(&server, 1, NETWORK);
    let all = |node: &Node| node.remote() == 11 && node.status().quarantined == hostile.len();
    let seen = node.wait_for(SHORT, all);
    let list: Vec<String> = node
        .table
        .quarantine()
        .map(|q| format!("{} {}", q.key, q.refusal))
        .collect();
    assert!(seen.is_some(), "{} {list:#?}", node.remote());
}

#[test]
fn ten_thousand_nodes_are_listed_and_watched() {
    let server = server();
    server.put(object(1, false));
    let network = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;
    let wide = |number: u16| {
        let mut node = flannel(number);
        let [high, low] = number.to_be_bytes();
        let cidr = format!("10.{high}.{low}.0/24");
        node["spec"] = json!({ "podCIDR": cidr, "podCIDRs": [cidr] });
        node["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"] =
            json!(format!("198.18.{high}.{low}"));
        node
    };
    for number in 1000..11_000 {
        server.put(wide(number));
    }
    let start = Instant::now();
    let mut node = Node::of(&server, 1, network);
    let most = Duration::from_secs(60);
    node.wait_for(most, |node| node.remote() == 10_000).unwrap();
    eprintln!("10,000 Nodes listed in {:?}", start.elapsed());
    let start = Instant::now();
    for number in 11_000..21_000 {
        server.put(wide(number));
    }
    node.wait_for(most, |node| node.remote() == 20_000).unwrap();
    eprintln!("10,000 more while watched: {:?}", start.elapsed());
}

#[test]
fn manifests_fit_each_other_and_the_program() {
    let rbac = documents("rbac.yaml");
    let account = of_kind(&rbac, "ServiceAccount");
    let binding = of_kind(&rbac, "ClusterRoleBinding");
    assert_eq!(binding["subjects"][0]["name"], account["metadata"]["name"]);
    let namespace = &account["metadata"]["namespace"];
    assert_eq!(binding["subjects"][0]["namespace"], *namespace);
    assert_eq!(
        binding["roleRef"]["name"],
        of_kind(&rbac, "ClusterRole")["metadata"]["name"]
    );
    let daemon = documents("daemonset.yaml");
    let daemon = of_kind(&daemon, "DaemonSet");
    let pod = &daemon["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], account["metadata"]["name"]);
    assert_eq!(daemon["metadata"]["namespace"], *namespace);
    assert_eq!(pod["hostNetwork"].as_bool(), Some(true));
    let security = &pod["containers"][0]["securityContext"]["capabilities"];
    assert_eq!(texts(&security["drop"]), ["ALL"]);
    let config = documents("configmap.yaml");
    let config = of_kind(&config, "ConfigMap");
    let mut volumes = pod["volumes"].as_vec().unwrap().iter();
    assert!(volumes.any(|one| one["configMap"]["name"] == config["metadata"]["name"]));
    // The files in it are ones that the program takes, with the command of the DaemonSet.
    let network = config["data"]["net-conf.json"].as_str().unwrap();
    tun_node::flannel::NetConf::parse(network.as_bytes()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(
        path("node.toml"),
        config["data"]["node.toml"].as_str().unwrap(),
    )
    .unwrap();
    let command = texts(&pod["containers"][0]["command"]);
    let script = command[2]
        .replace("/etc/warren/node.toml", &path("node.toml"))
        .replace("/run/warren/node.toml", &path("written.toml"))
        .replace("exec /usr/local/bin/tun-node", "echo tun-node");
    for (addresses, underlay) in [("192.0.2.7", 1), ("192.0.2.7,2001:db8::7", 2)] {
        let mut shell = std::process::Command::new(&command[0]);
        let shell = shell
            .args([&command[1], &script])
            .env("HOST_IPS", addresses);
        let output = shell.output().unwrap();
        let said = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(
            output.status.success() && said.starts_with("tun-node run"),
            "{output:?}"
        );
        let text = std::fs::read_to_string(path("written.toml")).unwrap();
        let config = tun_node::config::Config::parse(&text, "node.toml").unwrap();
        assert_eq!(config.local().underlay.len(), underlay);
        assert!(config.sources.kubernetes.is_some());
        let probe = &pod["containers"][0]["readinessProbe"]["httpGet"];
        let (host, port) = (probe["host"].as_str(), probe["port"].as_i64());
        let asked = format!("{}:{}", host.unwrap(), port.unwrap());
        assert_eq!(config.metrics_listen, asked.parse().ok());
        assert_eq!(probe["path"].as_str(), Some("/readyz"));
    }
}
