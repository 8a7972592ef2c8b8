//! Literal octets, as flannel writes them, and everything that must not pass.

use std::collections::BTreeMap;

use ipnet::IpNet;
use warren_core::units::{MacAddr, Mtu, Vni};

use super::*;

const MAC: &str = "c6:d2:32:6f:8f:44";
const V4: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
const DUAL: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":"fd99::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
const NET: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
const NET_DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fc00:5::/48","Backend":{"Type":"vxlan"}}"#;

fn network(json: &str) -> NetConf {
    NetConf::parse(json.as_bytes()).unwrap()
}

fn rules() -> LeaseRules {
    LeaseRules::of(&network(NET), false)
}

#[allow(clippy::unwrap_in_result, reason = "a literal of this file")]
fn vxlan() -> Option<VxlanAttrs> {
    Some(VxlanAttrs {
        vni: Vni::new(1).unwrap(),
        mac: MAC.parse().unwrap(),
    })
}

fn attrs() -> LeaseAttrs {
    LeaseAttrs {
        public_ip: "192.168.64.3".parse().unwrap(),
        public_ipv6: None,
        backend: LeaseBackend::Vxlan {
            v4: vxlan(),
            v6: None,
        },
    }
}

fn dual() -> LeaseAttrs {
    LeaseAttrs {
        public_ipv6: Some("fd99::3".parse().unwrap()),
        backend: LeaseBackend::Vxlan {
            v4: vxlan(),
            v6: vxlan(),
        },
        ..attrs()
    }
}

#[test]
fn lease_is_written_and_read_octet_for_octet() {
    assert_eq!(attrs().to_json(), V4);
    assert_eq!(dual().to_json(), DUAL);
    assert_eq!(LeaseAttrs::parse(V4.as_bytes(), &rules()), Ok(attrs()));
    assert_eq!(LeaseAttrs::parse(DUAL.as_bytes(), &rules()), Ok(dual()));
}

#[test]
fn other_backends_write_no_data_and_udp_no_type() {
    for (backend, kind, json) in [
        (
            LeaseBackend::HostGw,
            "host-gw",
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}"#,
        ),
        (
            LeaseBackend::Ipip,
            "ipip",
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"ipip"}"#,
        ),
        (
            LeaseBackend::Udp,
            "udp",
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":null}"#,
        ),
    ] {
        let lease = LeaseAttrs { backend, ..attrs() };
        assert_eq!(lease.to_json(), json);
        let net = network(&NET.replace("vxlan", kind));
        let rules = LeaseRules::of(&net, false);
        assert_eq!(LeaseAttrs::parse(json.as_bytes(), &rules), Ok(lease));
        assert!(net.backend.writes(&backend));
    }
}

#[test]
fn lease_is_read_as_go_reads_it() {
    for json in [
        // No PublicIPv6: written by a release before dual stack.
        r#"{"PublicIP":"192.168.64.3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
        // No VNI; other case, spaces, order; unknown members; nulls.
        r#"{"publicip":"192.168.64.3","BACKENDTYPE":"vxlan","BackendData":{"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
        r#" { "BackendData" : {"VtepMAC":"C6:D2:32:6F:8F:44", "VNI":1, "New":[1]}, "BackendV6Data":null,
            "BackendType":"vxlan", "PublicIP":"192.168.64.3", "Expiration": {"a":{}} } "#,
    ] {
        assert_eq!(
            LeaseAttrs::parse(json.as_bytes(), &rules()),
            Ok(attrs()),
            "{json}"
        );
    }
}

#[test]
fn lease_that_no_node_can_have_is_refused_by_name() {
    let with = |from: &str, to: &str| V4.replace(from, to).into_bytes();
    let ip = |to: &str| with("192.168.64.3", to);
    let mac = |to: &str| with(MAC, to);
    let nested = |levels: usize| {
        format!(r#"{{"A":{}{}}}"#, "[".repeat(levels), "]".repeat(levels)).into_bytes()
    };
    for (octets, fault) in [
        (Vec::new(), Fault::NotJson),
        (b"$(reboot)".to_vec(), Fault::NotJson),
        (
            b"{\"PublicIP\":\"192.168.64.3\0\"}".to_vec(),
            Fault::NotJson,
        ),
        (b"{\"PublicIP\":\"\xff\xfe\"}".to_vec(), Fault::NotUtf8),
        (vec![b' '; 10 << 20], Fault::TooLarge),
        (nested(JSON_DEPTH_MAX), Fault::TooDeep),
        (nested(30_000), Fault::TooDeep),
        (b"[]".to_vec(), Fault::NotAnObject),
        (b"null".to_vec(), Fault::NotAnObject),
        (b"{}".to_vec(), Fault::MissingMember),
        (with("\"192.168.64.3\"", "null"), Fault::MissingMember),
        (with("\"192.168.64.3\"", "7"), Fault::WrongType),
        (
            with("\"PublicIPv6\"", "\"publicip\""),
            Fault::AmbiguousMember,
        ),
        (ip("10.0.0"), Fault::BadAddress),
        (ip("010.0.0.1"), Fault::BadAddress),
        (ip("fd99::1"), Fault::BadAddress),
        (ip("$(touch x)"), Fault::BadAddress),
        (ip("0.0.0.0"), Fault::UnusableAddress),
        (ip("0.1.2.3"), Fault::UnusableAddress),
        (ip("127.0.0.1"), Fault::UnusableAddress),
        (ip("224.0.0.1"), Fault::UnusableAddress),
        (ip("255.255.255.255"), Fault::UnusableAddress),
        (ip("240.0.0.1"), Fault::UnusableAddress),
        (ip("169.254.1.1"), Fault::UnusableAddress),
        (with("null", "\"::\""), Fault::UnusableAddress),
        (with("null", "\"::1\""), Fault::UnusableAddress),
        (with("null", "\"ff02::1\""), Fault::UnusableAddress),
        (with("null", "\"fe80::1\""), Fault::UnusableAddress),
        (with("null", "\"::ffff:10.0.0.1\""), Fault::UnusableAddress),
        (with("null", "\"::10.0.0.1\""), Fault::UnusableAddress),
        (with("null", "\"10.0.0.1\""), Fault::BadAddress),
        (mac(""), Fault::BadMac),
        (mac("c6:d2:32:6f:8f"), Fault::BadMac),
        (mac("c6d2.326f.8f44"), Fault::BadMac),
        (mac("00:00:00:00:00:00"), Fault::UnusableMac),
        (mac("ff:ff:ff:ff:ff:ff"), Fault::UnusableMac),
        (mac("01:00:5e:00:00:01"), Fault::UnusableMac),
        (with("\"VNI\":1", "\"VNI\":2"), Fault::OtherVni),
        (with("\"VNI\":1", "\"VNI\":16777216"), Fault::BadVni),
        (
            with("\"VNI\":1", "\"VNI\":99999999999999999999"),
            Fault::WrongType,
        ),
        (with("\"VNI\":1", "\"VNI\":-1"), Fault::WrongType),
        (with("\"VNI\":1", "\"VNI\":1.0"), Fault::WrongType),
        (with("\"VtepMAC\"", "\"Mac\""), Fault::MissingMember),
        (
            with("{\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:44\"}", "[]"),
            Fault::NotAnObject,
        ),
        (with("\"vxlan\"", "\"host-gw\""), Fault::OtherBackend),
        (with("\"vxlan\"", "\"\""), Fault::OtherBackend),
        (with("\"vxlan\"", "\"`id`\""), Fault::UnknownBackend),
        (with("\"vxlan\"", "3"), Fault::WrongType),
    ] {
        let read = LeaseAttrs::parse(&octets, &rules());
        let shown = printable(&octets);
        assert_eq!(read.map_err(|refused| refused.fault), Err(fault), "{shown}");
    }
}

#[test]
fn loopback_is_let_in_only_when_asked_for() {
    let json = V4.replace("192.168.64.3", "127.0.0.2");
    let mut rules = rules();
    rules.allow_loopback = true;
    assert!(LeaseAttrs::parse(json.as_bytes(), &rules).is_ok());
}

#[test]
fn refusals_print_harmlessly() {
    let octets = b"a\x1b[31m\n\0\xff\\".repeat(100);
    let shown = printable(&octets);
    assert!(
        shown.bytes().all(|octet| (b' '..=b'~').contains(&octet)),
        "{shown}"
    );
    assert!(shown.len() < 200);
    let names: std::collections::BTreeSet<_> = Fault::ALL.iter().map(|f| f.name()).collect();
    assert_eq!(names.len(), Fault::ALL.len());
}

#[test]
fn key_is_written_and_read_octet_for_octet() {
    for text in ["10.5.52.0-24", "10.5.52.0-24&fc00:5:52::-64", "10.0.0.0-8"] {
        let key = SubnetKey::parse(text.as_bytes()).unwrap();
        assert_eq!(key.to_string(), text);
    }
    let key = SubnetKey::parse(b"10.5.52.0-24&fc00:5:52::-64").unwrap();
    let prefixes: Vec<IpNet> = key.prefixes().collect();
    assert_eq!(
        prefixes,
        [
            "10.5.52.0/24".parse().unwrap(),
            "fc00:5:52::/64".parse().unwrap()
        ]
    );
    assert_eq!(
        key.under(DEFAULT_PREFIX),
        "/coreos.com/network/subnets/10.5.52.0-24&fc00:5:52::-64"
    );
}

#[test]
fn key_that_is_no_subnet_is_refused_by_name() {
    for (text, fault) in [
        (&b""[..], Fault::KeySyntax),
        (b"10.5.52.0", Fault::KeySyntax),
        (b"10.5.52.0-", Fault::KeySyntax),
        (b"10.5.52.0/24", Fault::KeySyntax),
        (b"10.5.52.0-24 ", Fault::KeySyntax),
        (b"10.5.52.0-+4", Fault::KeySyntax),
        (b"10.5.52.0-0024", Fault::KeySyntax),
        (b"10x5y52.0-24", Fault::KeySyntax),
        (b"010.5.52.0-24", Fault::KeySyntax),
        (b"extra/10.5.52.0-24", Fault::KeySyntax),
        (b"fc00:5:52::-64", Fault::KeySyntax),
        (b"10.5.52.0-24&", Fault::KeySyntax),
        (b"10.5.52.0-024", Fault::KeySyntax),
        (b"10.5.52.0-24&fc00:5:52::-064", Fault::KeySyntax),
        (b"10.5.52.0-24&fc00:05:52::-64", Fault::KeySyntax),
        (b"10.5.52.0-24&fc00:5:52:0::-64", Fault::KeySyntax),
        (b"10.5.52.0-24&10.5.53.0-24", Fault::KeySyntax),
        (b"10.5.52.0-24&FC00:5:52::-64", Fault::KeySyntax),
        (
            b"10.5.52.0-24&fc00:5:52::-64&fc00:5:53::-64",
            Fault::KeySyntax,
        ),
        (b"10.5.52.0-24\0", Fault::KeySyntax),
        (b"\xff\xfe", Fault::KeySyntax),
        (b"$(reboot)", Fault::KeySyntax),
        (&[b'1'; 10_000], Fault::KeySyntax),
        (b"10.5.52.0-33", Fault::SubnetLength),
        (b"10.5.52.0-999", Fault::SubnetLength),
        (b"10.5.52.0-24&fc00:5:52::-129", Fault::SubnetLength),
        (b"10.5.52.1-24", Fault::HostBits),
        (b"10.5.52.0-24&fc00:5:52::1-64", Fault::HostBits),
    ] {
        let read = SubnetKey::parse(text).map_err(|refused| refused.fault);
        assert_eq!(read, Err(fault), "{}", printable(text));
    }
}

#[test]
fn subnet_must_be_one_of_the_network() {
    let fits = |text: &str, net: &str| {
        let key = SubnetKey::parse(text.as_bytes()).unwrap();
        key.fits(&network(net)).map_err(|refused| refused.fault)
    };
    assert_eq!(fits("10.244.7.0-24", NET), Ok(()));
    // Of a configuration before or after this one.
    assert_eq!(fits("10.244.7.64-26", NET), Ok(()));
    assert_eq!(fits("10.245.7.0-24", NET), Err(Fault::OutsideNetwork));
    assert_eq!(fits("0.0.0.0-0", NET), Err(Fault::OutsideNetwork));
    assert_eq!(fits("127.0.0.0-8", NET), Err(Fault::OutsideNetwork));
    assert_eq!(fits("10.244.0.0-16", NET), Err(Fault::SubnetLength));
    assert_eq!(fits("10.244.7.1-32", NET), Err(Fault::SubnetLength));
    assert_eq!(
        fits("10.244.7.0-24&fc00:5:7::-64", NET),
        Err(Fault::OtherFamily)
    );
    assert_eq!(fits("10.244.7.0-24", NET_DUAL), Err(Fault::OtherFamily));
    assert_eq!(fits("10.244.7.0-24&fc00:5:0:7::-64", NET_DUAL), Ok(()));
    assert_eq!(
        fits("10.244.7.0-24&fc00:6:0:7::-64", NET_DUAL),
        Err(Fault::OutsideNetwork)
    );
    let conforms = |text: &str| {
        SubnetKey::parse(text.as_bytes())
            .unwrap()
            .conforms(&network(NET))
    };
    assert!(conforms("10.244.255.0-24"));
    assert!(!conforms("10.244.7.64-26"));
    // Before SubnetMin.
    assert!(!conforms("10.244.0.0-24"));
}

#[test]
fn network_gets_flannels_defaults() {
    let net = network(r#"{"network":"10.1.2.3/8"}"#);
    let v4 = net.v4.unwrap();
    assert_eq!(v4.network.to_string(), "10.0.0.0/8");
    assert_eq!(v4.subnet_len, 24);
    assert_eq!(v4.subnet_min.to_string(), "10.0.1.0");
    assert_eq!(v4.subnet_max.to_string(), "10.255.255.0");
    assert_eq!(net.backend, Backend::Udp { port: 8285 });
    assert!(net.v6.is_none());
    for (network_len, subnet_len) in [(22, 24), (23, 25), (24, 26), (28, 30)] {
        let net = network(&format!(r#"{{"Network":"10.1.0.0/{network_len}"}}"#));
        assert_eq!(net.v4.unwrap().subnet_len, subnet_len);
    }
    let v6 = network(NET_DUAL).v6.unwrap();
    assert_eq!(v6.subnet_len, 64);
    assert_eq!(v6.subnet_min.to_string(), "fc00:5:0:1::");
    assert_eq!(v6.subnet_max.to_string(), "fc00:5:0:ffff::");
    let all = network(
        r#"{"Network":"10.9.0.0/16","SubnetLen":26,"SubnetMin":"10.9.0.64","SubnetMax":"10.9.9.192",
            "EnableNFTables":true,"Backend":{"type":"VXLAN","vni":7,"PORT":4789,"MTU":9000,
            "GBP":true,"Learning":false,"DirectRouting":true}}"#,
    );
    let Backend::Vxlan(vxlan) = all.backend else {
        panic!("{all:?}");
    };
    assert!(all.nftables && vxlan.gbp && !vxlan.learning && vxlan.direct_routing);
    let members = |network: &NetConf| network.without_effect().map(|it| it.0).collect::<Vec<_>>();
    assert_eq!(members(&all), ["DirectRouting", "GBP"]);
    let backend = r#"{"Type":"ipip","DirectRouting":true}"#;
    let ipip = network(&format!(
        r#"{{"Network":"10.0.0.0/8","Backend":{backend}}}"#
    ));
    assert_eq!(members(&ipip), ["DirectRouting"]);
    let usual = network(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#);
    assert_eq!(members(&usual), [""; 0]);
    assert_eq!(
        (vxlan.vni.value(), vxlan.port, vxlan.mtu),
        (7, 4789, Some(9000))
    );
    let Backend::Vxlan(plain) = network(NET).backend else {
        panic!();
    };
    assert_eq!(
        (plain.vni.value(), plain.port, plain.mtu),
        (1, VXLAN_PORT, None)
    );
    let only_v6 = network(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}"#);
    assert!(only_v6.v4.is_none() && only_v6.v6.is_some());
}

#[test]
fn network_that_flannel_refuses_is_refused_and_the_member_named() {
    for (json, member) in [
        ("{}", "Network"),
        (r#"{"Network":"10.0.0.0"}"#, "Network"),
        (r#"{"Network":"fc00::/48"}"#, "Network"),
        (r#"{"Network":"10.0.0.0/29"}"#, "Network"),
        (r#"{"Network":"127.0.0.0/8"}"#, "Network"),
        (r#"{"Network":"224.0.0.0/8"}"#, "Network"),
        (r#"{"Network":"10.0.0.0/16","SubnetLen":17}"#, "SubnetLen"),
        (r#"{"Network":"10.0.0.0/16","SubnetLen":31}"#, "SubnetLen"),
        (r#"{"Network":"10.0.0.0/16","SubnetLen":300}"#, "SubnetLen"),
        (
            r#"{"Network":"10.0.0.0/16","SubnetMin":"10.1.0.0"}"#,
            "SubnetMin",
        ),
        (
            r#"{"Network":"10.0.0.0/16","SubnetMin":"10.0.1.1"}"#,
            "SubnetMin",
        ),
        (
            r#"{"Network":"10.0.0.0/16","SubnetMax":"10.0.1.128"}"#,
            "SubnetMax",
        ),
        (r#"{"Network":"10.0.0.0/16","SubnetMax":"no"}"#, "SubnetMax"),
        (
            r#"{"Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.8.0"}"#,
            "SubnetMin",
        ),
        (
            r#"{"Network":"10.0.0.0/16","EnableIPv6":true}"#,
            "IPv6Network",
        ),
        (
            r#"{"Network":"10.0.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/125"}"#,
            "IPv6Network",
        ),
        (
            r#"{"Network":"10.0.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":127}"#,
            "IPv6SubnetLen",
        ),
        (r#"{"EnableIPv4":false}"#, "EnableIPv4"),
        (r#"{"Network":"10.0.0.0/16","Backend":{}}"#, "Backend"),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"wireguard"}}"#,
            "Backend",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"no"}}"#,
            "Backend",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#,
            "VNI",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","Port":65536}}"#,
            "Port",
        ),
        (
            r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","MTU":100}}"#,
            "MTU",
        ),
    ] {
        match NetConf::parse(json.as_bytes()) {
            Err(NetConfError::Member { member: found, .. }) => assert_eq!(found, member, "{json}"),
            other => panic!("{json}: {other:?}"),
        }
    }
    for json in ["", "[]", "{", r#"{"Network":7}"#, r#"{"EnableIPv4":"yes"}"#] {
        let read = NetConf::parse(json.as_bytes());
        assert!(
            matches!(read, Err(NetConfError::Json(_))),
            "{json}: {read:?}"
        );
    }
}

#[test]
fn annotations_are_flannels_octet_for_octet() {
    let map = Annotations::from(dual()).to_map(ANNOTATION_PREFIX);
    let expected: BTreeMap<String, String> = [
        ("backend-data", r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#),
        ("backend-type", "vxlan"),
        (
            "backend-v6-data",
            r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#,
        ),
        ("kube-subnet-manager", "true"),
        ("public-ip", "192.168.64.3"),
        ("public-ipv6", "fd99::3"),
    ]
    .into_iter()
    .map(|(name, value)| (format!("flannel.alpha.coreos.com/{name}"), value.to_owned()))
    .collect();
    assert_eq!(map, expected);
    let read = Annotations::parse(&map, ANNOTATION_PREFIX, &rules()).unwrap();
    assert_eq!(read, Some(dual().into()));
    // How flannel finds its own MAC address again.
    let data = map.get("flannel.alpha.coreos.com/backend-data").unwrap();
    let mac = data.split(":\"").nth(1).unwrap().trim_end_matches("\"}");
    assert_eq!(mac, MAC);
}

#[test]
fn annotations_follow_the_families_and_the_backend() {
    let lone = Annotations::from(attrs()).to_map("x");
    let names: Vec<&str> = lone.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "x/backend-data",
            "x/backend-type",
            "x/kube-subnet-manager",
            "x/public-ip"
        ]
    );
    let host_gw = LeaseAttrs {
        backend: LeaseBackend::HostGw,
        ..attrs()
    };
    let map = Annotations::from(host_gw).to_map("x");
    assert_eq!(map.get("x/backend-data").map(String::as_str), Some("null"));
    let rules = LeaseRules::of(&network(&NET.replace("vxlan", "host-gw")), false);
    let read = Annotations::parse(&map, "x", &rules).unwrap();
    assert_eq!(read, Some(host_gw.into()));
    // Not looked after by flannel, or by another flannel.
    assert_eq!(Annotations::parse(&map, "y", &rules), Ok(None));
    let mut bad = map;
    bad.insert("x/public-ip".to_owned(), "127.0.0.1".to_owned());
    let refused = Annotations::parse(&bad, "x", &rules).unwrap_err();
    assert_eq!(refused.fault, Fault::UnusableAddress);
    bad.remove("x/public-ip");
    let refused = Annotations::parse(&bad, "x", &rules).unwrap_err();
    assert_eq!(refused.fault, Fault::MissingMember);
    bad.insert("x/public-ip-overwrite".to_owned(), "203.0.113.7".to_owned());
    let overwrite = Annotations::overwrites(&bad, "x", &rules).unwrap();
    assert_eq!(overwrite, (Some("203.0.113.7".parse().unwrap()), None));
}

#[test]
fn subnet_env_is_flannels_octet_for_octet() {
    let text = "FLANNEL_NETWORK=10.42.0.0/16\n\
                FLANNEL_SUBNET=10.42.0.1/24\n\
                FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\n\
                FLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\n\
                FLANNEL_MTU=1450\n\
                FLANNEL_IPMASQ=true\n";
    let env = SubnetEnv::parse(text).unwrap();
    assert_eq!(env.to_text(), text);
    assert_eq!(env.mtu, Mtu::new(1450));
    let key = env.subnet_key().unwrap();
    assert_eq!(key.to_string(), "10.42.0.0-24&2001:cafe:42::-64");
    let only_v4 = SubnetEnv { v6: None, ..env };
    assert!(!only_v4.to_text().contains("IPV6"));
    assert_eq!(SubnetEnv::parse(&only_v4.to_text()), Ok(only_v4));
    for bad in [
        "",
        "FLANNEL_MTU=x",
        "FLANNEL_MTU=1450\nFLANNEL_SUBNET=10.0.0.1/24",
    ] {
        assert!(SubnetEnv::parse(bad).is_err(), "{bad}");
    }
    assert!(SubnetEnv::parse(&"#".repeat(5000)).is_err());
}

#[test]
fn nothing_that_is_fed_to_the_decoders_makes_them_panic() {
    // Every truncation and every single-bit flip of what is good, and of the other formats.
    let rules = rules();
    for good in [V4, DUAL, NET, NET_DUAL, "10.5.52.0-24&fc00:5:52::-64"] {
        let octets = good.as_bytes();
        let mut cases: Vec<Vec<u8>> = (0..=octets.len()).map(|n| octets[..n].to_vec()).collect();
        for at in 0..octets.len() {
            for bit in 0..8 {
                let mut flipped = octets.to_vec();
                flipped[at] ^= 1 << bit;
                cases.push(flipped);
            }
        }
        for case in cases {
            let _ = LeaseAttrs::parse(&case, &rules);
            let _ = NetConf::parse(&case);
            let _ = SubnetKey::parse(&case);
            let _ = SubnetEnv::parse(&String::from_utf8_lossy(&case));
        }
    }
    let _ = MacAddr::BROADCAST;
}
