//! Mistakes and malice in the shared store.

use std::time::Duration;

use nix::sys::signal::Signal;
use tun_node::ctl::message::{Request, Response};

use super::cluster::{Etcd, PREFIX};
use super::fleet::{Fleet, HUB, SHORT, wait};
use super::{V4, lease, leases};

#[test]
fn a_mass_deletion_is_held_until_somebody_confirms() {
    let Some(fleet) = Fleet::new(1) else { return };
    let Some(etcd) = Etcd::start_at(HUB, 1, &[]) else {
        return;
    };
    etcd.put_config(V4);
    etcd.put_all(&leases(0..1000));
    let node = fleet.spawn(1, &fleet.config(1, false, &etcd.endpoints(), ""));
    wait("all routes", SHORT, || node.route_count() == 1001);
    // 600 in one transaction: a range of keys.
    let mut names: Vec<String> = leases(0..1000)
        .into_iter()
        .map(|(key, _)| String::from_utf8(key).unwrap())
        .collect();
    names.sort();
    etcd.delete(&names[0], &names[600]);
    assert_eq!(etcd.values().len(), 401);
    wait("the alarm", SHORT, || node.source("etcd").held == 600);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(node.route_count(), 1001);
    let alarms = node.status().unwrap().alarms;
    assert!(
        alarms
            .iter()
            .any(|alarm| alarm.contains("600 entries is held")),
        "{alarms:?}"
    );
    assert!(node.log().contains("would go at once"), "{}", node.log());
    let source = Some("etcd".to_owned());
    assert_eq!(node.ask(&Request::Confirm { source }), Some(Response::Done));
    wait("the withdrawal", SHORT, || node.route_count() == 401);
    assert!(node.status().unwrap().alarms.is_empty());
    for name in [None, Some("etcd"), Some("kubernetes")] {
        let source = name.map(str::to_owned);
        let nothing = Response::Remarks(vec!["nothing is held".to_owned()]);
        assert_eq!(node.ask(&Request::Confirm { source }), Some(nothing));
    }
    let source = Some("bgp".to_owned());
    let refused = node.ask_all(&Request::Confirm { source }).unwrap_err();
    assert!(refused.contains("it is etcd or kube"), "{refused}");
}

/// Sixty entries that nobody may apply.
fn hostile(own: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let value = |ip: &str, mac: &str| {
        format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
        .into_bytes()
    };
    let good = |n: usize| value(&format!("198.19.1.{n}"), &format!("02:ee:00:00:01:{n:02x}"));
    let key = |name: &str| format!("{PREFIX}/subnets/{name}").into_bytes();
    let mut bad: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let names = [
        "$(touch /tmp/warren-harmed)",
        "`reboot`",
        "10.50.1.0-24; rm -rf /",
        "|id",
        "../../etc/passwd",
        "10.50.2.0-24\n10.50.3.0-24",
        "10.50.4.0",
        "10.50.5.0-99",
        "10.50.6.0--1",
        "0.0.0.0-0",
        "10.0.0.0-8",
        "10.50.7.1-24",
        "127.0.0.0-24",
        "224.1.1.0-24",
        "11.0.0.0-24",
        "10.50.8.0-24&fc00:5:1::-64",
        "fc00:5:1::-64",
        "10.50.9.0-31",
        "10.50.10.0-24-24",
        "",
        "-",
        "10.50.11.0-024x",
        "١٠.50.1.0-24",
        "10.50.12.0-24/",
        "10.50.13.0-24 ",
    ];
    for (n, name) in names.iter().enumerate() {
        bad.push((key(name), good(n + 1)));
    }
    bad.push(([key("").as_slice(), &[0xff, 0xfe, 0]].concat(), good(30)));
    bad.push(([key("10.51.1.0-24").as_slice(), &[0]].concat(), good(31)));
    let subnet = |n: usize| key(&format!("10.60.{n}.0-24"));
    let values: Vec<Vec<u8>> = vec![
        b"".to_vec(), b"null".to_vec(), b"[]".to_vec(), b"{".to_vec(), b"\0\0\0".to_vec(), vec![0xff; 64],
        b"$(id)".to_vec(), "[".repeat(100_000).into_bytes(), vec![b'a'; 1_400_000],
        format!("{}1{}", "{\"a\":".repeat(5000), "}".repeat(5000)).into_bytes(),
        value(own, "02:ee:00:00:00:01"),
        value("127.0.0.1", "02:ee:00:00:00:02"),
        value("224.0.0.1", "02:ee:00:00:00:03"),
        value("0.0.0.0", "02:ee:00:00:00:04"),
        value("255.255.255.255", "02:ee:00:00:00:05"),
        value("198.19.2.1", "00:00:00:00:00:00"),
        value("198.19.2.2", "ff:ff:ff:ff:ff:ff"),
        value("198.19.2.3", "01:00:5e:00:00:01"),
        value("198.19.2.4", "no"),
        value("198.19.2.5; id", "02:ee:00:00:00:06"),
        value("::1", "02:ee:00:00:00:07"),
        value("198.19.2.6", "02:ee:00:00:00:08\\u0000"),
        br#"{"PublicIP":"198.19.2.7","BackendType":"wireguard","BackendData":{"PublicKey":"x"}}"#.to_vec(),
        br#"{"PublicIP":"198.19.2.8","BackendType":"vxlan"}"#.to_vec(),
        br#"{"PublicIP":"198.19.2.9","BackendType":"vxlan","BackendData":{"VNI":99999999,"VtepMAC":"02:ee:00:00:00:09"}}"#.to_vec(),
        br#"{"PublicIP":"198.19.2.10","BackendType":"vxlan","BackendData":{"VNI":-1,"VtepMAC":"02:ee:00:00:00:0a"}}"#.to_vec(),
        br#"{"PublicIP":"198.19.2.11","BackendType":"$(id)","BackendData":{"VNI":1,"VtepMAC":"02:ee:00:00:00:0b"}}"#.to_vec(),
        br#"{"PublicIP":true,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:ee:00:00:00:0c"}}"#.to_vec(),
        br#"{"PublicIP":"198.19.2.12","BackendType":"vxlan","BackendData":"x"}"#.to_vec(),
        br#"{"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:ee:00:00:00:0d"}}"#.to_vec(),
    ];
    for (n, value) in values.into_iter().enumerate() {
        bad.push((subnet(n), value));
    }
    // They overlap or repeat what the good ones have.
    bad.push((key("10.100.0.0-23"), good(40)));
    bad.push((key("10.100.1.0-25"), good(41)));
    bad.push((
        key("10.61.0.0-24"),
        value("198.18.0.1", "02:ee:00:00:00:0e"),
    ));
    while bad.len() < 60 {
        let n = bad.len();
        bad.push((
            key(&format!("10.62.{n}.0-24")),
            value(&format!("198.19.3.{n}"), "02:ff:00:00:00:01"),
        ));
    }
    bad
}

#[test]
fn sixty_hostile_keys_harm_none_of_ten_good_ones() {
    let Some(fleet) = Fleet::new(1) else { return };
    // What is larger than a request of etcd may be by default.
    let Some(etcd) = Etcd::start_at(HUB, 1, &["--max-request-bytes=16777216"]) else {
        return;
    };
    etcd.put_config(V4);
    let node = fleet.spawn(1, &fleet.config(1, false, &etcd.endpoints(), ""));
    wait("a subnet", SHORT, || node.subnets().len() == 1);
    let tasks =
        |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let bad = hostile("192.0.2.1");
    assert!(bad.len() >= 60, "{}", bad.len());
    // The good ones the conflicts are with come first, the others between.
    for number in 0..3 {
        let (key, value) = lease(number);
        etcd.put(&key, &value);
    }
    for (n, (key, value)) in bad.iter().enumerate() {
        etcd.put(key, value);
        if n % 8 == 7 {
            let (key, value) = lease(2 + u16::try_from(n / 8).unwrap() + 1);
            etcd.put(&key, &value);
        }
    }
    let huge = (
        format!("{PREFIX}/subnets/10.63.0.0-24").into_bytes(),
        vec![b'{'; 10 << 20],
    );
    etcd.put(&huge.0, &huge.1);
    wait("the good ones", SHORT, || node.route_count() == 11);
    let total = bad.len() as u64 + 1;
    wait("the quarantine", SHORT, || {
        let report = node.sources();
        assert!(report.quarantined <= total, "{:?}", report.quarantine);
        report.quarantined == total
    });
    assert_eq!(node.route_count(), 11);
    let report = node.sources();
    for one in &report.quarantine {
        assert!(!one.reason.is_empty() && one.key.is_ascii(), "{one:?}");
        assert!(!one.detail.contains(['\0', '\n', '\u{1b}']), "{one:?}");
    }
    for route in node.routes().iter().filter(|route| route.origin == "etcd") {
        assert!(route.prefix.starts_with("10.100."), "{route:?}");
    }
    assert_eq!(tasks(node.pid()), "", "no process was started");
    assert!(!std::path::Path::new("/tmp/warren-harmed").exists());
    node.wait_ready();
    let lines = node.log().lines().count();
    assert!(lines <= 20, "{}", node.log());
    node.signal(Signal::SIGTERM);
}
