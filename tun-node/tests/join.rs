//! Whole nodes that find each other by Debian's etcd and by files, in namespaces around a hub.
//!
//! The long outage and the restart with 100,000 routes run on request:
//!
//! ```text
//! cargo test --release -p tun-node --test join -- --ignored --nocapture --test-threads=1
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test ends where its own assumption is wrong"
)]

#[allow(dead_code, reason = "the tests of the source alone need more of it")]
#[path = "etcd/cluster.rs"]
mod cluster;
#[path = "join/files.rs"]
mod files;
#[path = "join/fleet.rs"]
mod fleet;
#[path = "join/harm.rs"]
mod harm;
#[path = "join/warm.rs"]
mod warm;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use cluster::{Etcd, PREFIX};
use fleet::{Fleet, HUB, Node, SHORT, wait};

const V4: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;
const DUAL: &str = r#"{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fc00:5::/48","Backend":{"Type":"vxlan"}}"#;

/// The lease of a node that is not there, as flannel writes it.
fn lease(number: u16) -> (Vec<u8>, Vec<u8>) {
    let [high, low] = number.to_be_bytes();
    let key = format!("{PREFIX}/subnets/10.{}.{low}.0-24", 100 + high);
    let value = format!(
        r#"{{"PublicIP":"198.18.{high}.{low}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:ff:00:00:{high:02x}:{low:02x}"}}}}"#
    );
    (key.into_bytes(), value.into_bytes())
}

fn leases(numbers: std::ops::Range<u16>) -> Vec<(Vec<u8>, Vec<u8>)> {
    numbers.map(lease).collect()
}

/// The address of a node's device in each family.
fn addresses(node: &Node) -> Vec<String> {
    let subnets = node.subnets();
    let first = subnets.iter().filter_map(|subnet| subnet.split_once('/'));
    first.map(|(address, _)| address.to_owned()).collect()
}

/// Starts nodes 1 to N and waits until each reaches each; how long that took.
fn start(fleet: &Fleet, etcd: &Etcd, nodes: u8, dual: bool) -> (Vec<Node>, Duration) {
    let start = Instant::now();
    let nodes: Vec<Node> = (1..=nodes)
        .map(|node| {
            let config = fleet.config(node, dual, &etcd.endpoints(), "");
            if node == 2 {
                // Without a default route it is the way to etcd that tells its address.
                fleet.ip(node, "route del default");
                if dual {
                    fleet.ip(node, "-6 route del default");
                }
            }
            fleet.spawn(node, &config)
        })
        .collect();
    let families = if dual { 2 } else { 1 };
    wait("every subnet", SHORT, || {
        nodes.iter().all(|node| node.subnets().len() == families)
    });
    let all: Vec<Vec<String>> = nodes.iter().map(addresses).collect();
    for (from, _) in (1..).zip(&nodes) {
        for (to, addresses) in (1..).zip(&all) {
            for address in addresses.iter().filter(|_| from != to) {
                wait(&format!("{from} to reach {to} at {address}"), SHORT, || {
                    fleet.pings(from, address, 1)
                });
            }
        }
    }
    let took = start.elapsed();
    (nodes, took)
}

/// What a strict reader makes of a key and its value: flannel's own shape, octet for octet.
fn is_strict(key: &str, value: &str, node: u8, mac: &str, dual: bool) -> bool {
    let name = key.strip_prefix(&format!("{PREFIX}/subnets/")).unwrap();
    let (v4, v6) = match name.split_once('&') {
        Some((v4, v6)) => (v4, Some(v6)),
        None => (name, None),
    };
    let shaped = v4.starts_with("10.") && v4.ends_with(".0-24");
    let shaped_v6 = v6.is_none_or(|v6| v6.starts_with("fc00:5:") && v6.ends_with("-64"));
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    let expected = if dual {
        format!(
            r#"{{"PublicIP":"192.0.2.{node}","PublicIPv6":"2001:db8:99::{node}","BackendType":"vxlan","BackendData":{data},"BackendV6Data":{data}}}"#
        )
    } else {
        format!(
            r#"{{"PublicIP":"192.0.2.{node}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#
        )
    };
    shaped && shaped_v6 && (v6.is_some() == dual) && value == expected
}

#[test]
fn nodes_that_know_only_the_endpoint_reach_each_other_and_a_kernel_that_is_configured_by_hand() {
    for (members, dual) in [(1, false), (3, true)] {
        let Some(fleet) = Fleet::new(4) else { return };
        let Some(etcd) = Etcd::start_at(HUB, members, &[]) else {
            return;
        };
        etcd.put_config(if dual { DUAL } else { V4 });
        let (nodes, took) = start(&fleet, &etcd, 3, dual);
        eprintln!(
            "{members} members, dual stack {dual}: every node reached every other after {took:?}"
        );
        assert!(took < Duration::from_secs(5) * if cfg!(debug_assertions) { 2 } else { 1 });
        let values = etcd.values();
        assert_eq!(values.len(), 3);
        for (number, node) in (1..).zip(&nodes) {
            let subnets = node.subnets();
            let (address, _) = subnets[0].split_once('/').unwrap();
            let (key, value) = values
                .iter()
                .find(|(key, _)| key.contains(&format!("/{address}-24")))
                .unwrap();
            let mac = tun_node::config::warren_vtep_mac(&format!("192.0.2.{number}")).to_string();
            assert!(is_strict(key, value, number, &mac, dual), "{key} {value}");
            let device = fleet.ip(number, "-o addr show dev warren0");
            assert!(device.contains(&format!("{address}/32")), "{device}");
            let link = fleet.ip(number, "-o link show dev warren0");
            let mtu = if dual { 1430 } else { 1450 };
            assert!(link.contains(&format!("mtu {mtu} ")), "{link}");
            let env = node.file("/run/flannel/subnet.env").unwrap();
            let bridge = address.replace(".0", ".1");
            assert!(env.contains("FLANNEL_NETWORK=10.0.0.0/8\n"), "{env}");
            assert!(
                env.contains(&format!("{}/24\n", &bridge[bridge.len() - 2..])),
                "{env}"
            );
            assert!(
                env.ends_with(&format!("FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n")),
                "{env}"
            );
        }
        if !dual {
            by_hand(&fleet, &etcd, &nodes);
        }
        for node in nodes {
            node.stop();
        }
        // Nobody asked for the subnets to be given back.
        assert!(etcd.values().len() >= 3);
    }
}

/// A fourth node: the kernel's VXLAN device and the key, as flannel would make both.
fn by_hand(fleet: &Fleet, etcd: &Etcd, nodes: &[Node]) {
    let mac = "02:f1:00:00:00:04";
    fleet.ip(
        4,
        &format!("link add flannel.1 address {mac} type vxlan id 1 local 192.0.2.4 dev wire dstport 8472 nolearning"),
    );
    fleet.ip(4, "link set flannel.1 mtu 1450 up");
    fleet.ip(4, "addr add 10.77.4.0/32 dev flannel.1");
    for (number, node) in (1..).zip(nodes) {
        let subnet = &node.subnets()[0];
        let (address, _) = subnet.split_once('/').unwrap();
        let peer = tun_node::config::warren_vtep_mac(&format!("192.0.2.{number}"));
        fleet.ip(
            4,
            &format!("neigh add {address} lladdr {peer} dev flannel.1 nud permanent"),
        );
        fleet.ip(
            4,
            &format!("route add {subnet} via {address} dev flannel.1 onlink"),
        );
        let fdb =
            format!("bridge fdb add {peer} dev flannel.1 dst 192.0.2.{number} self permanent");
        assert!(fleet.exec(4, &fdb).status.success(), "{fdb}");
    }
    let value = format!(
        r#"{{"PublicIP":"192.0.2.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    etcd.put(
        format!("{PREFIX}/subnets/10.77.4.0-24").as_bytes(),
        value.as_bytes(),
    );
    for (number, node) in (1..).zip(nodes) {
        let took = wait("the kernel to be reached", SHORT, || {
            fleet.pings(number, "10.77.4.0", 1)
        });
        eprintln!("node {number} reached the kernel's device after {took:?}");
        let (address, _) = node.subnets()[0]
            .split_once('/')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        assert!(
            fleet.pings(4, &address, 5),
            "the kernel reaches node {number}"
        );
    }
}

#[test]
fn an_outage_of_etcd_costs_no_packet_and_its_return_is_noticed() {
    outage(Duration::from_secs(6));
}

#[test]
#[ignore = "a minute; the head of the file has the command"]
fn a_minute_without_etcd_costs_no_packet() {
    outage(Duration::from_secs(60));
}

fn outage(length: Duration) {
    let Some(fleet) = Fleet::new(2) else { return };
    let Some(mut etcd) = Etcd::start_at(HUB, 1, &[]) else {
        return;
    };
    etcd.put_config(V4);
    let (nodes, _) = start(&fleet, &etcd, 2, false);
    let destination = addresses(&nodes[1]).remove(0);
    let before: Vec<_> = nodes
        .iter()
        .map(|node| (node.cpu(), node.log().lines().count()))
        .collect();
    let events = nodes[0].events(0).last().map_or(0, |event| event.number);
    let ping = fleet.ping_on(1, &destination, length.as_secs() + 3);
    let begin = Instant::now();
    etcd.kill(0);
    wait("the loss to be noticed", Duration::from_secs(15), || {
        nodes[0].source("etcd").state == "lost"
    });
    eprintln!("noticed after {:?}", begin.elapsed());
    std::thread::sleep(length.saturating_sub(begin.elapsed()));
    let took = begin.elapsed();
    for (node, (cpu, lines)) in nodes.iter().zip(&before) {
        let cpu = node.cpu().saturating_sub(*cpu);
        let share = cpu.as_secs_f64() / took.as_secs_f64() * 100.0;
        let lines = node.log().lines().count() - lines;
        eprintln!("in {took:?}: {share:.2} % of a processor, {lines} lines in the log");
        assert!(lines <= 10, "{}", node.log());
        if !cfg!(debug_assertions) {
            assert!(share < 1.0, "{share} %");
        }
    }
    etcd.start_member(0);
    etcd.wait_until_writable();
    let (key, value) = lease(7);
    etcd.put(&key, &value);
    let own = addresses(&nodes[0]).remove(0);
    let took = wait("the change to be live", Duration::from_secs(5), || {
        nodes[0].would_send(&own, "10.100.7.1")
    });
    eprintln!("a change after the return was live after {took:?}");
    assert!(took < Duration::from_secs(2));
    let output = ping.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");
    let withdrawn = nodes[0].events(events);
    assert!(
        withdrawn.iter().all(|event| event.what != "withdrawn"),
        "{withdrawn:?}"
    );
}

#[test]
fn the_leader_killed_or_a_black_hole_costs_nothing() {
    let Some(fleet) = Fleet::new(2) else { return };
    let Some(mut etcd) = Etcd::start_at(HUB, 3, &[]) else {
        return;
    };
    etcd.put_config(V4);
    let (nodes, _) = start(&fleet, &etcd, 2, false);
    let own = addresses(&nodes[0]).remove(0);
    let destination = addresses(&nodes[1]).remove(0);
    let ping = fleet.ping_on(1, &destination, 25);
    etcd.kill(etcd.leader());
    let (key, value) = lease(1);
    wait("a new leader", SHORT, || {
        etcd.ask("kv/range", &serde_json::json!({ "key": "AA==" }))
            .is_some()
    });
    etcd.put(&key, &value);
    let took = wait("the change", SHORT, || {
        nodes[0].would_send(&own, "10.100.1.1")
    });
    eprintln!("a change under the new leader was live after {took:?}");
    // Nothing comes back from the hub any more, and nobody says so.
    let drop = "nft add table ip hole; add chain ip hole in { type filter hook input priority 0 ; }; add rule ip hole in ip saddr 192.0.2.254 drop";
    let output = std::process::Command::new("ip")
        .args(["netns", "exec", &fleet.namespace(1), "nft"])
        .arg(drop.trim_start_matches("nft "))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let took = wait(
        "the black hole to be noticed",
        Duration::from_secs(20),
        || nodes[0].source("etcd").state == "lost",
    );
    eprintln!("the black hole was noticed after {took:?}");
    assert!(took < Duration::from_secs(15));
    assert!(fleet.exec(1, "nft delete table ip hole").status.success());
    wait("the return", SHORT, || {
        nodes[0].source("etcd").state == "synced"
    });
    let output = ping.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");
}

#[test]
fn a_wiped_store_withdraws_nothing_that_is_written_again() {
    let Some(fleet) = Fleet::new(2) else { return };
    let Some(mut etcd) = Etcd::start_at(HUB, 1, &[]) else {
        return;
    };
    etcd.put_config(V4);
    let (nodes, _) = start(&fleet, &etcd, 2, false);
    let before = (nodes[0].subnets(), nodes[1].subnets());
    let events = nodes[0].events(0).last().map_or(0, |event| event.number);
    let ping = fleet.ping_on(1, &addresses(&nodes[1])[0], 8);
    etcd.wipe(0);
    etcd.start_member(0);
    etcd.wait_until_writable();
    etcd.put_config(V4);
    wait("both claims to be written again", SHORT, || {
        etcd.values().len() == 2
    });
    wait("the routes to be confirmed", SHORT, || {
        nodes[0].source("etcd").held == 0
    });
    assert_eq!((nodes[0].subnets(), nodes[1].subnets()), before);
    let output = ping.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");
    let happened = nodes[0].events(events);
    assert!(
        happened.iter().all(|event| event.what != "withdrawn"),
        "{happened:?}"
    );
}

#[test]
fn what_remembers_forwards_before_etcd_answers() {
    let Some(fleet) = Fleet::new(2) else { return };
    let Some(mut etcd) = Etcd::start_at(HUB, 1, &[]) else {
        return;
    };
    etcd.put_config(V4);
    let (mut nodes, _) = start(&fleet, &etcd, 2, false);
    let destination = addresses(&nodes[1]).remove(0);
    let own = nodes[0].subnets();
    std::thread::sleep(Duration::from_secs(3));
    etcd.kill(0);
    drop(nodes.remove(0));
    let again = fleet.spawn(1, &fleet.config(1, false, &etcd.endpoints(), ""));
    let took = wait("a packet", SHORT, || fleet.pings(1, &destination, 1));
    eprintln!("restarted without etcd: a packet was answered after {took:?}");
    assert_eq!(again.subnets(), own);
    assert_eq!(again.source("etcd").remembered, 2);
}

#[test]
fn leaving_gives_the_subnet_back() {
    let Some(fleet) = Fleet::new(1) else { return };
    let Some(etcd) = Etcd::start_at(HUB, 1, &[]) else {
        return;
    };
    etcd.put_config(V4);
    let node = fleet.spawn(
        1,
        &fleet.config(1, false, &etcd.endpoints(), "leave = true\n"),
    );
    wait("a subnet", SHORT, || node.subnets().len() == 1);
    assert_eq!(etcd.values().len(), 1);
    let begin = Instant::now();
    node.stop();
    eprintln!("left after {:?}", begin.elapsed());
    assert_eq!(etcd.values().len(), 0);
}

#[test]
fn ten_thousand_keys_at_once_are_live_and_one_change_is_quick() {
    let Some(fleet) = Fleet::new(1) else { return };
    let Some(etcd) = Etcd::start_at(HUB, 1, &[]) else {
        return;
    };
    etcd.put_config(V4);
    let node = fleet.spawn(1, &fleet.config(1, false, &etcd.endpoints(), ""));
    wait("a subnet", SHORT, || node.subnets().len() == 1);
    let own = addresses(&node).remove(0);
    let all = leases(0..10_000);
    let slow = if cfg!(debug_assertions) { 10 } else { 1 };
    let begin = Instant::now();
    etcd.put_all(&all);
    let written = begin.elapsed();
    wait("all routes", SHORT, || node.route_count() == 10_001);
    let (last, _) = lease(9_999);
    assert!(String::from_utf8(last).unwrap().contains("10.139.15.0"));
    let took = begin.elapsed();
    wait("the kernel's routes", SHORT, || {
        let found = fleet.exec(1, "ip route get 10.139.15.1");
        String::from_utf8_lossy(&found.stdout).contains("warren0")
    });
    eprintln!(
        "10,000 keys: written in {written:?}, all routes after {took:?}, the kernel's after {:?}",
        begin.elapsed()
    );
    assert!(took < Duration::from_secs(2) * slow);
    let mut slowest = [Duration::ZERO; 2];
    for number in 20_000..20_010 {
        let (key, value) = lease(number);
        let [high, low] = number.to_be_bytes();
        let address = format!("10.{}.{low}.1", 100 + high);
        let begin = Instant::now();
        etcd.put(&key, &value);
        wait("the new one", SHORT, || node.would_send(&own, &address));
        slowest[0] = slowest[0].max(begin.elapsed());
        let key = String::from_utf8(key).unwrap();
        let begin = Instant::now();
        etcd.delete(&key, &format!("{key}\0"));
        wait("its end", SHORT, || !node.would_send(&own, &address));
        slowest[1] = slowest[1].max(begin.elapsed());
    }
    eprintln!(
        "beside 10,000 routes: slowest addition {:?}, deletion {:?}",
        slowest[0], slowest[1]
    );
    assert!(
        slowest
            .iter()
            .all(|took| *took < Duration::from_millis(200) * slow)
    );
    let begin = node.cpu();
    std::thread::sleep(Duration::from_secs(5));
    let share = (node.cpu() - begin).as_secs_f64() / 5.0 * 100.0;
    let mut text = String::new();
    write!(text, "idle with 10,000 peers: {share:.1} % of a processor").unwrap();
    eprintln!("{text}");
}

#[test]
fn a_node_is_not_ready_before_it_has_a_subnet_and_says_why() {
    let Some(fleet) = Fleet::new(1) else { return };
    let Some(etcd) = Etcd::start_at(HUB, 1, &[]) else {
        return;
    };
    // Where etcd answers, and nobody has told it what the network is.
    let node = fleet.spawn(1, &fleet.config(1, false, &etcd.endpoints(), ""));
    let alarm = "no subnet claimed yet: etcd: there is no network configuration yet";
    wait("the alarm", SHORT, || {
        let status = node.status();
        status.is_some_and(|status| status.alarms.iter().any(|shown| shown == alarm))
    });
    let because = || node.status().map(|status| status.not_ready_because);
    wait("the data path", SHORT, || {
        because().as_deref() == Some("no subnet claimed yet")
    });
    etcd.put(format!("{PREFIX}/config").as_bytes(), V4.as_bytes());
    node.wait_ready();
    assert_eq!(node.subnets().len(), 1);
    wait("no alarm", SHORT, || {
        node.status().is_some_and(|status| status.alarms.is_empty())
    });
}
