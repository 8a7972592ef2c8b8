//! Asking a running node: every command in both outputs, who may ask, the metrics page and whether
//! it tells the truth.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use common::{Lab, PROGRAM, Underlay, tun_node, wait_until};
use serde_json::Value;
use tun_node::ctl::message::{Fault, Request};

#[test]
fn every_command_answers_people_and_machines() {
    let Some(lab) = Lab::new() else { return };
    let extra = "[[routes]]\nprefix = \"10.245.0.0/16\"\naction = \"prohibit\"\n";
    let node = lab.start(1, "vxlan", Underlay::V4, extra);
    let _peer = lab.start(2, "vxlan", Underlay::V4, "");
    lab.ping(1, "10.244.2.1", 3, 56);
    let socket = node.socket().to_string_lossy().into_owned();
    let text = |verb: &[&str]| {
        let mut arguments = verb.to_vec();
        arguments.extend(["--socket", &socket]);
        let output = tun_node(&arguments);
        assert!(output.status.success(), "{verb:?}: {output:?}");
        String::from_utf8(output.stdout).expect("it prints UTF-8")
    };
    let json = |verb: &[&str]| -> Value {
        let mut arguments = verb.to_vec();
        arguments.push("--json");
        serde_json::from_str(&text(&arguments)).expect("it prints JSON")
    };

    let status = text(&["status"]);
    for part in [
        "n1",
        "ready",
        "warren0",
        "mtu 1450",
        "192.0.2.1",
        "vxlan 8472",
    ] {
        assert!(status.contains(part), "{part}: {status}");
    }
    let status = json(&["status"]);
    assert_eq!(
        (&status["node"], &status["ready"]),
        (&"n1".into(), &true.into())
    );
    assert_eq!(status["device"]["mtu"], 1450);

    let routes = text(&["routes"]);
    assert!(routes.starts_with("PREFIX"), "{routes}");
    let prohibited = routes.lines().find(|line| line.contains("10.245.0.0/16"));
    assert!(
        prohibited.is_some_and(|line| line.contains("prohibit")),
        "{routes}"
    );
    let routes = json(&["routes"]);
    let prefixes: Vec<_> = routes
        .as_array()
        .expect("a list")
        .iter()
        .map(|route| route["prefix"].as_str().expect("a string"))
        .collect();
    assert_eq!(
        prefixes,
        [
            "10.244.1.0/24",
            "10.244.2.0/24",
            "10.245.0.0/16",
            "fd00:10:244:1::/64",
            "fd00:10:244:2::/64"
        ]
    );
    assert_eq!(routes[1]["tunnels"][0]["vni"], 1);

    let peers = text(&["peers"]);
    assert!(
        peers.contains("n2") && peers.contains("vxlan vni 1 to 192.0.2.2 port 8472"),
        "{peers}"
    );
    let peers = json(&["peers"]);
    assert!(
        peers[0]["tally"]["encap"]["packets"].as_u64() >= Some(3),
        "{peers}"
    );
    assert!(peers[0]["tally"]["by_encapsulation"]["vxlan"]["decap"]["packets"].as_u64() >= Some(3));

    let counters = text(&["counters"]);
    assert!(
        counters.contains("dropped") && !counters.contains("unaccounted"),
        "{counters}"
    );
    let counters = json(&["counters"]);
    let read = &counters["total"]["device"]["read"]["packets"];
    assert_eq!(read, &counters["total"]["encap"]["received"]["packets"]);
    assert_eq!(counters["workers"].as_array().map(Vec::len), Some(1));
}

#[test]
fn explain_says_route_owner_way_and_verdict() {
    let Some(lab) = Lab::new() else { return };
    let extra = "[[routes]]\nprefix = \"10.245.0.0/16\"\naction = \"prohibit\"\n";
    let node = lab.start(1, "gue", Underlay::V6, extra);
    let socket = node.socket().to_string_lossy().into_owned();
    let ask = |packet: &str| -> Value {
        let mut arguments = vec!["explain", "--socket", &socket, "--json"];
        arguments.extend(packet.split_whitespace());
        let output = tun_node(&arguments);
        assert!(output.status.success(), "{packet}: {output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let sent = ask("10.244.1.7 10.244.2.9 tcp 40000 443");
    assert_eq!(
        (&sent["direction"], &sent["verdict"]),
        (&"encap".into(), &"transmit".into())
    );
    assert_eq!(sent["route"]["prefix"], "10.244.2.0/24");
    assert_eq!(
        (&sent["peer"], &sent["tunnel"]["encapsulation"]),
        (&"n2".into(), &"gue".into())
    );
    assert_eq!(
        (&sent["mtu"], &sent["overhead_octets"]),
        (&1448.into(), &52.into())
    );
    assert!(sent["outer_source_port"].as_u64() >= Some(49152));

    let arrived = ask("fd00:10:244:2::9 fd00:10:244:1::1 udp 1 2");
    assert_eq!(
        (&arrived["direction"], &arrived["verdict"]),
        (&"decap".into(), &"deliver".into())
    );
    assert_eq!(arrived["peer"], "n2");

    for (packet, reason) in [
        ("10.244.1.7 203.0.113.1", "no_route"),
        ("10.244.1.7 10.245.0.1", "prohibited"),
        ("10.99.0.1 10.244.2.9", "source_not_local"),
        ("10.244.1.7 10.244.2.9 udp 1 2 --octets 1500", "too_big"),
        ("203.0.113.1 10.244.1.1", "source_not_owned_by_peer"),
    ] {
        let refused = ask(packet);
        assert_eq!(refused["verdict"], "drop", "{packet}");
        assert_eq!(refused["reason"], reason, "{packet}");
    }
    let output = tun_node(&["explain", "--socket", &socket, "10.244.1.7", "10.244.2.9"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("It would be encapsulated and sent."),
        "{text}"
    );
    let output = tun_node(&["explain", "--socket", &socket, "10.244.1.7", "fd00::1"]);
    assert_eq!(output.status.code(), Some(2));
    // Asking has changed nothing.
    let total = node.counters().total;
    assert_eq!(total.encap.drops.get("prohibited"), None, "{total:?}");
}

#[test]
fn only_the_nodes_user_and_root_are_answered() {
    let Some(lab) = Lab::new() else { return };
    let node = lab.start(1, "vxlan", Underlay::V4, "");
    // The program where everyone may read it, and a socket that everyone may open: what is left
    // is the check of the asker's user.
    let open = |path: &std::path::Path, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    let program = lab.directory().join("tun-node");
    // Copied by another process: a descriptor open for writing here would be inherited by what
    // other tests start, and the copy could not be run until they end.
    let copied = Command::new("cp").arg(PROGRAM).arg(&program).status();
    assert!(copied.expect("cp runs").success());
    open(lab.directory(), 0o755);
    open(&program, 0o755);
    let ask = || {
        let mut command = Command::new(&program);
        command.args(["status", "--socket"]).arg(node.socket());
        command.uid(65534).gid(65534).output().expect("it runs")
    };
    let refused = ask();
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("belongs to another user"), "{said}");
    let directory = node.socket().parent().expect("it has one").to_owned();
    assert_eq!(
        fs::metadata(&directory)
            .expect("there")
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
    assert_eq!(
        fs::metadata(node.socket())
            .expect("there")
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    open(&directory, 0o755);
    open(node.socket(), 0o666);
    let refused = ask();
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("hung up") || said.contains("control socket failed"),
        "{said}"
    );
    assert!(node.log().contains("user refused"), "{}", node.log());
    assert!(node.status().is_some(), "root is answered");
}

#[test]
fn metrics_are_prometheus_text_and_equal_the_counters() {
    let Some(lab) = Lab::new() else { return };
    let extra = "[metrics]\nlisten = \"127.0.0.1:9472\"\n";
    let node = lab.start(1, "vxlan", Underlay::V4, extra);
    let _peer = lab.start(2, "vxlan", Underlay::V4, "");
    lab.ping(1, "10.244.2.1", 5, 56);
    let before = node.counters().total;
    let (status, body) = lab.http(1, 9472, "/metrics").expect("answered");
    assert!(status.contains("200"), "{status}");
    let families = parse_metrics(&body);
    let total = |name: &str, label: &str| -> u64 {
        let lines = families
            .iter()
            .filter(|((n, labels), _)| n == name && labels.contains(label));
        lines.map(|(_, value)| *value).sum()
    };
    assert_eq!(total("warren_ready", ""), 1);
    let read = total("warren_device_read_packets_total", "");
    assert!(read >= before.device.read.packets && read > 0, "{body}");
    assert!(
        total("warren_engine_received_bytes_total", "direction=\"encap\"") > 0,
        "{body}"
    );
    assert!(
        total("warren_peer_encap_packets_total", "peer=\"n2\"") >= 5,
        "{body}"
    );
    assert!(
        total("warren_socket_sent_packets_total", "socket=\"udp4\"") >= 5,
        "{body}"
    );
    // Every reason is there, also where it never occurred.
    for reason in warren_core::DropReason::ALL {
        let label = format!("reason=\"{}\"", reason.name());
        let name = "warren_engine_drops_total";
        assert!(
            families
                .keys()
                .any(|(n, l)| n == name && l.contains(&label)),
            "{label}"
        );
    }
    for (path, code) in [("/healthz", "200"), ("/readyz", "200"), ("/nothing", "404")] {
        let (status, _) = lab.http(1, 9472, path).expect("answered");
        assert!(status.contains(code), "{path}: {status}");
    }
}

#[test]
fn readyz_tells_the_truth() {
    let Some(lab) = Lab::new() else { return };
    let extra = "[metrics]\nlisten = \"127.0.0.1:9472\"\n";
    let mut node = lab.start(1, "fou", Underlay::V4, extra);
    let is_ready = || {
        let (status, _) = lab.http(1, 9472, "/readyz").ok()?;
        Some(status.contains("200"))
    };
    assert_eq!(is_ready(), Some(true));
    // The own underlay address is gone: the probe does not come back.
    lab.ip(1, "addr del 192.0.2.1/24 dev wire");
    wait_until("not ready", || (is_ready() == Some(false)).then_some(())).expect("not ready");
    lab.ip(1, "addr add 192.0.2.1/24 dev wire");
    wait_until("ready again", || (is_ready() == Some(true)).then_some(())).expect("ready again");
    // The worker hangs: from here on the page never says ready again.
    if node.ask(&Request::Fault(Fault::Hang)).is_none() {
        eprintln!("skipped: the hang, because this build has no fault injection");
        return;
    }
    let mut answers = 0;
    while let Some(ready) = is_ready() {
        assert!(!ready, "a worker that hangs is not ready");
        answers += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(answers > 0, "it was asked before the end");
    assert!(!node.wait().0.success());
}

#[test]
fn without_a_node_the_commands_say_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory
        .path()
        .join("none.sock")
        .to_string_lossy()
        .into_owned();
    let output = tun_node(&["status", "--socket", &path]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("no node listens at") && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn help_teaches_and_usage_errors_exit_with_1() {
    let output = tun_node(&["--help"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("tun-node example-config"),
        "{text}"
    );
    assert_eq!(tun_node(&["status", "--frobnicate"]).status.code(), Some(1));
    assert_eq!(tun_node(&["run"]).status.code(), Some(1));
    assert!(tun_node(&["completions", "bash"]).status.success());
    let man = tun_node(&["man"]);
    assert!(
        String::from_utf8_lossy(&man.stdout).contains(".TH"),
        "{man:?}"
    );
    let output = tun_node(&["check", "--config", "/nonexistent.toml"]);
    assert_eq!(output.status.code(), Some(1));
}

/// Reads a page strictly: each sample belongs to a family that was described before it, values
/// are whole numbers, and the page ends as it must. Returns value by name and labels.
fn parse_metrics(page: &str) -> BTreeMap<(String, String), u64> {
    let mut families: Vec<(String, String)> = Vec::new();
    let mut samples = BTreeMap::new();
    let mut helped = Vec::new();
    assert!(page.ends_with("# EOF\n"), "{page}");
    for line in page.lines() {
        if line == "# EOF" {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("help");
            assert!(help.ends_with('.'), "{line}");
            helped.push(name.to_owned());
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            assert!(
                helped.iter().any(|helped| helped == name),
                "no help: {line}"
            );
            assert!(!families.iter().any(|(n, _)| n == name), "twice: {line}");
            families.push((name.to_owned(), kind.to_owned()));
            continue;
        }
        if let Some(rest) = line.strip_prefix("# UNIT ") {
            let (name, unit) = rest.split_once(' ').expect("a unit");
            assert!(name.ends_with(unit), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = match name.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').expect("closed")),
            None => (name, ""),
        };
        let (family, kind) = families.last().expect("described before");
        let expected = if kind == "counter" {
            format!("{family}_total")
        } else {
            family.clone()
        };
        assert_eq!(name, expected, "{line}");
        let value = value.parse().expect("a whole number");
        let twice = samples.insert((name.to_owned(), labels.to_owned()), value);
        assert_eq!(twice, None, "{line}");
    }
    samples
}

#[test]
fn check_refuses_what_run_refuses_for_a_file_that_a_source_needs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.toml");
    let node = "[node]\nname = \"a\"\nunderlay = [\"192.0.2.1\"]\n";
    let etcd = "[etcd]\nendpoints = [\"https://192.0.2.9:2379\"]\nca = \"/nope.pem\"\n";
    let kubeconfig = "[kubernetes]\nkubeconfig = \"/nope\"\nnetwork = \"10.0.0.0/8\"\n";
    for (sources, said) in [
        (etcd, "/nope.pem"),
        (kubeconfig, "kubernetes: /nope"),
        (
            "[kubernetes]\n",
            "no kubeconfig is given and this is no Pod",
        ),
    ] {
        fs::write(&path, format!("{node}{sources}")).unwrap();
        let output = tun_node(&["check", "--config", &path.display().to_string()]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(said), "{text}");
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_manual_that_cannot_be_written_is_told_with_its_directory() {
    let output = tun_node(&["man", "--dir", "/nonexistent"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("into /nonexistent: No such file"), "{text}");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_node_that_is_stopped_is_told_as_one_that_does_not_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("n.sock");
    // Nobody accepts: as a stopped process does not.
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let output = tun_node(&["status", "--socket", &path.display().to_string()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = format!(
        "the node at {} (process {}) does not answer within 5 s",
        path.display(),
        std::process::id()
    );
    assert!(text.contains(&told), "{text}");
    assert_eq!(output.status.code(), Some(2));
}
