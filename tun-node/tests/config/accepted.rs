//! What is accepted, and the values that come of it.

use std::net::IpAddr;
use std::time::Duration;

use tun_node::config::{
    Config, DeviceMode, Directions, Dscp, Guard, LogLevel, PeerMode, Probing, RouteAction,
    RouteNext, WorkerCount, calico_vtep_mac, example_config, warren_vtep_mac,
};
use warren_core::encap::Encapsulation;
use warren_core::tables::{EcnMode, Receive};
use warren_core::units::{MacAddr, Mtu, Vni};

use super::{edited, parse};

fn accepted(text: &str) -> Config {
    match parse(text) {
        Ok(config) => config,
        Err(error) => panic!("refused:\n{error}\nin:\n{text}"),
    }
}

fn vni(value: u32) -> Vni {
    Vni::new(value).unwrap()
}

#[test]
fn the_least_file_takes_every_default() {
    let config = accepted("[node]\nname = \"a\"\nunderlay = \"192.0.2.1\"\n");
    assert_eq!(config.node.vtep_mac, warren_vtep_mac("a"));
    assert_eq!(config.node.prefixes, []);
    assert_eq!(config.device.name, "warren0");
    assert_eq!(config.device.mtu, Mtu::new(1450));
    assert!(config.device.mtu_computed);
    assert_eq!(config.device.mode, DeviceMode::Create);
    let receive = Receive {
        vxlan_gpe: Vec::new(),
        vxlan: vec![8472],
        vnis: vec![vni(1)],
        ..Receive::default()
    };
    assert_eq!(config.receive, receive);
    assert_eq!((config.peers.len(), config.routes.len()), (0, 0));
    assert_eq!(config.control_socket, None);
    assert_eq!(config.metrics_listen, None);
    assert_eq!(config.log_level, LogLevel::Warn);
    assert_eq!((config.worker.source_ports, config.worker.batch), (64, 64));
    assert_eq!(config.worker.receive_buffer_octets, None);
}

#[test]
fn the_example_validates_as_printed() {
    let config = accepted(example_config());
    assert_eq!(config.peers.len(), 3);
    assert_eq!(config.device.mtu, Mtu::new(1430));
    assert_eq!(
        config.peers[0].encapsulation,
        Encapsulation::Vxlan {
            vni: vni(1),
            port: 8472,
            mac: "02:f1:00:00:00:0b".parse().unwrap(),
        }
    );
    assert_eq!(
        config.peers[2].encapsulation,
        Encapsulation::Fou { port: 5555 }
    );
    assert_eq!(config.routes[0].next, RouteNext::Via(vec![0, 2]));
    assert_eq!(
        config.routes[1].next,
        RouteNext::Action(RouteAction::Blackhole)
    );
}

/// Takes the comment sign off every line of the example that shows a key or a section.
#[test]
fn what_the_example_shows_as_defaults_are_the_defaults() {
    let is_shown = |line: &str| {
        let name = |c: char| c.is_ascii_lowercase() || c == '-';
        line.starts_with('[') || line.trim_start_matches(name).starts_with(" = ")
    };
    let lines = example_config().lines().map(|line| {
        // dscp-map contradicts the default of dscp, which stands beside it.
        let shown = line.strip_prefix("# ").filter(|line| is_shown(line));
        shown
            .filter(|line| !line.starts_with("dscp-map"))
            .unwrap_or(line)
    });
    let uncommented = lines.collect::<Vec<&str>>().join("\n");
    assert!(uncommented.lines().filter(|l| l.starts_with('#')).count() < 114);
    let all = accepted(&uncommented);
    let example = accepted(example_config());
    assert_eq!(all.node, example.node);
    assert_eq!(all.peers, example.peers);
    assert_eq!(all.log_level, example.log_level);
    assert_eq!(all.device.mtu, example.device.mtu);
    assert_eq!(all.device.mode, example.device.mode);
    assert_eq!(all.device.name, example.device.name);
    assert_eq!(all.worker.source_ports, example.worker.source_ports);
    assert_eq!(all.worker.batch, example.worker.batch);
    assert_eq!(all.probing, example.probing);
    assert_eq!(all.sources.guard, Guard::default());
    let (etcd, kubernetes) = (all.sources.etcd.unwrap(), all.sources.kubernetes.unwrap());
    assert_eq!(
        (&*etcd.prefix, etcd.lease_ttl_s, etcd.leave),
        ("/coreos.com/network", 86_400, false)
    );
    let by_default = accepted("[node]\nunderlay = \"192.0.2.1\"\n[kubernetes]\n");
    let by_default = by_default.sources.kubernetes.unwrap();
    assert_eq!(kubernetes.network, by_default.network);
    assert_eq!(kubernetes.annotation_prefix, by_default.annotation_prefix);
    assert_eq!(kubernetes.leave, by_default.leave);
    assert_eq!(
        all.sources.subnet_env.unwrap().to_str(),
        Some("/run/flannel/subnet.env")
    );
    assert!(!all.sources.ip_masq);
    assert_eq!(all.receive.vxlan, example.receive.vxlan);
    assert_eq!(all.receive.fou_gue, [5555, 6080]);
    assert_eq!(all.receive.geneve, [6081]);
    assert!(all.receive.ipip);
}

#[test]
fn every_key_arrives_where_it_belongs() {
    let config = accepted(&edited(&[
        (3, r#"underlay = ["192.0.2.1", "2001:db8::1"]"#),
        (4, r#"prefixes = ["10.244.1.0/24", "fd00:1::/64"]"#),
        (5, r#"vtep-mac = "02:00:00:00:00:0a""#),
        (8, "name = \"wr0\""),
        (
            8,
            "mtu = 1400\nunderlay-mtu = 9000\nclamp-mss = false\nmode = \"attach\"",
        ),
        (
            14,
            "vni = 0x1000\nport = 4_789\nmtu = 1300\nencap = \"vxlan\"",
        ),
        (
            14,
            "dscp = \"map\"\ndscp-map = { 46 = 34, 0 = 8 }\necn = \"compatibility\"",
        ),
        (
            15,
            "[vxlan]\nvni = 7\nport = 4789\nstrict-reserved-bits = true",
        ),
        (15, "[ipip]\n[fou]\nport = 5000\n[gue]\nport = 5000"),
        (
            15,
            "[control]\nsocket = \"/run/a.sock\"\n[metrics]\nlisten = \"[::1]:9\"",
        ),
        (
            15,
            "[log]\nlevel = \"trace\"\n[worker]\ncount = 3\ndirections = \"apart\"\npin = true\nsource-ports = 3\nbatch = 5",
        ),
        (15, "receive-buffer = 8192\nsend-buffer = 4096"),
        (14, "probe = false"),
        (15, "[probing]\nenabled = false\ninterval-ms = 50"),
        (
            15,
            "down-after = 2\nup-after = 3\nconfirm-ms = 200\nraise-s = 6",
        ),
    ]));
    let mac: MacAddr = "02:00:00:00:00:0b".parse().unwrap();
    assert_eq!(config.node.vtep_mac.to_string(), "02:00:00:00:00:0a");
    assert_eq!(config.device.name, "wr0");
    assert_eq!(config.device.mtu, Mtu::new(1400));
    assert!(!config.device.mtu_computed);
    assert_eq!(config.device.underlay_mtu, Mtu::new(9000));
    assert_eq!(config.device.mode, DeviceMode::Attach);
    assert!(!config.device.clamp_mss);
    let peer = &config.peers[0];
    assert_eq!(
        peer.encapsulation,
        Encapsulation::Vxlan {
            vni: vni(4096),
            port: 4789,
            mac,
        }
    );
    assert_eq!(peer.mtu, Mtu::new(1300));
    assert_eq!(peer.ecn, EcnMode::Compatibility);
    let Dscp::Map(map) = &peer.dscp else {
        panic!("{:?}", peer.dscp);
    };
    let table = map.table();
    assert_eq!((table[46], table[0], table[10]), (34, 8, 0));
    let receive = Receive {
        vxlan_gpe: Vec::new(),
        vxlan: vec![4789],
        geneve: Vec::new(),
        fou_gue: vec![5000],
        ipip: true,
        vnis: vec![vni(7), vni(4096)],
        strict_vxlan: true,
    };
    assert_eq!(config.receive, receive);
    assert_eq!(config.control_socket, Some("/run/a.sock".into()));
    assert_eq!(config.metrics_listen, Some("[::1]:9".parse().unwrap()));
    assert_eq!(config.log_level, LogLevel::Trace);
    let worker = config.worker;
    assert_eq!((worker.count, worker.pin), (WorkerCount::Fixed(3), true));
    assert_eq!(worker.directions, Directions::Apart);
    assert_eq!((worker.source_ports, worker.batch), (3, 5));
    assert_eq!(worker.receive_buffer_octets, Some(8192));
    assert_eq!(worker.send_buffer_octets, Some(4096));
    let probing = Probing {
        enabled: false,
        interval: Duration::from_millis(50),
        down_after: 2,
        up_after: 3,
        confirm_interval: Duration::from_millis(200),
        raise_interval: Duration::from_secs(6),
    };
    assert_eq!(config.probing, probing);
    assert!(!peer.probe);

    let local = config.local();
    let address = |text: &str| -> IpAddr { text.parse().unwrap() };
    assert_eq!(local.addresses, [address("10.244.1.1")]);
    assert_eq!(
        local.underlay,
        [address("192.0.2.1"), address("2001:db8::1")]
    );
    assert_eq!(local.vtep_mac, config.node.vtep_mac);
    assert_eq!(local.receive, config.receive);
}

#[test]
fn the_computed_mtu_leaves_room_for_the_largest_overhead_in_use() {
    let table = [
        ("ipip", "192.0.2.2", 1480),
        ("fou", "192.0.2.2", 1472),
        ("gue", "192.0.2.2", 1468),
        ("vxlan", "192.0.2.2", 1450),
        ("geneve", "192.0.2.2", 1450),
        ("ipip", "2001:db8::2", 1460),
        ("fou", "2001:db8::2", 1452),
        ("gue", "2001:db8::2", 1448),
        ("vxlan", "2001:db8::2", 1430),
        ("geneve", "2001:db8::2", 1430),
    ];
    let file = |encap: &str, address: &str, more: &str| {
        edited(&[
            (3, r#"underlay = ["192.0.2.1", "2001:db8::1"]"#),
            (11, &format!("address = {address:?}")),
            (14, &format!("encap = {encap:?}")),
            (15, more),
        ])
    };
    for (encap, address, mtu) in table {
        let config = accepted(&file(encap, address, ""));
        assert_eq!(config.device.mtu.octets(), mtu, "{encap} to {address}");
        assert_eq!(config.peers[0].mtu.octets(), mtu, "{encap} to {address}");

        // Sections that no peer uses cost nothing; a peer that needs more does.
        let gamma = "[[peers]]\nname = \"gamma\"\naddress = \"2001:db8::3\"\nencap = \"fou\"\n\
                     prefixes = \"10.244.3.0/24\"\n[vxlan]\n[geneve]";
        let config = accepted(&file(encap, address, gamma));
        assert_eq!(config.device.mtu.octets(), mtu.min(1452));
        assert_eq!(config.peers[0].mtu.octets(), mtu);
        assert_eq!(config.peers[1].mtu.octets(), 1452);
    }
}

#[test]
fn the_mtu_without_peers_follows_from_what_is_received() {
    let node = "[node]\nname = \"a\"\nunderlay = [\"192.0.2.1\", \"2001:db8::1\"]\n";
    let mtu = |more: &str| accepted(&format!("{node}{more}")).device.mtu.octets();
    assert_eq!(mtu(""), 1430);
    assert_eq!(mtu("[ipip]\n"), 1460);
    assert_eq!(mtu("[ipip]\n[gue]\n"), 1448);
    assert_eq!(mtu("[device]\nunderlay-mtu = 9000\n"), 8930);
}

#[test]
fn an_encapsulation_is_received_if_it_has_a_section_or_a_peer() {
    let receive = |edits: &[(usize, &str)]| accepted(&edited(edits)).receive;
    let fou = receive(&[(14, "encap = \"fou\"")]);
    assert_eq!(
        (fou.vxlan.len(), fou.fou_gue.as_slice()),
        (0, [5555].as_slice())
    );
    assert_eq!(fou.vnis, []);
    let both = receive(&[(15, "[gue]")]);
    assert_eq!((both.vxlan, both.fou_gue), (vec![8472], vec![6080]));
    let off = receive(&[(15, "[gue]\nenabled = false\n[ipip]\nenabled = true")]);
    assert_eq!((off.fou_gue.len(), off.ipip), (0, true));
    let port = accepted(&edited(&[
        (14, "encap = \"gue\"\nport = 5555"),
        (15, "[gue]\nport = 9"),
    ]));
    assert_eq!(port.receive.fou_gue, [9]);
    assert_eq!(
        port.peers[0].encapsulation,
        Encapsulation::Gue { port: 5555 }
    );
}

#[test]
fn vtep_mac_addresses_follow_from_names_by_either_rule() {
    let mac = |edits: &[(usize, &str)]| {
        let config = accepted(&edited(edits));
        let Encapsulation::Vxlan { mac, .. } = config.peers[0].encapsulation else {
            panic!("{:?}", config.peers[0]);
        };
        (config.node.vtep_mac, mac)
    };
    // What one node says of itself is what the other says of it as a peer.
    let (own, peer) = mac(&[(12, "vtep-mac = \"auto\"")]);
    assert_eq!(
        (own, peer),
        (warren_vtep_mac("alpha"), warren_vtep_mac("beta"))
    );
    let calico = [(5, "vtep-mac = \"calico\""), (12, "vtep-mac = \"calico\"")];
    let (own, peer) = mac(&calico);
    let by_rule = |over_v6| {
        (
            calico_vtep_mac("alpha", over_v6),
            calico_vtep_mac("beta", over_v6),
        )
    };
    assert_eq!((own, peer), by_rule(false));
    let over_v6 = [
        (3, "underlay = \"2001:db8::1\""),
        (11, "address = \"2001:db8::2\""),
    ];
    assert_eq!(mac(&[calico, over_v6].concat()), by_rule(true));
}

#[test]
fn overlaps_are_accepted_where_they_are_meant() {
    // Asked for: Calico lends single addresses of one node's block to another.
    accepted(&edited(&[
        (5, "allow-overlap = true"),
        (13, r#"prefixes = ["10.244.2.0/24", "10.244.1.77/32"]"#),
    ]));
    // Of one owner.
    accepted(&edited(&[(
        13,
        r#"prefixes = ["10.1.0.0/16", "10.1.2.0/24"]"#,
    )]));
    // A route inside, or around, an owner's prefix.
    accepted(&edited(&[
        (
            15,
            "[[routes]]\nprefix = \"10.244.2.128/25\"\naction = \"prohibit\"",
        ),
        (15, "[[routes]]\nprefix = \"10.0.0.0/8\"\nvia = \"beta\""),
    ]));
}

#[test]
fn a_default_route_is_accepted_with_exceptions_for_the_underlay() {
    let direct = "[[routes]]\nprefix = \"192.0.2.0/24\"\naction = \"direct\"";
    let owner = accepted(&edited(&[(13, "prefixes = \"0.0.0.0/0\""), (15, direct)]));
    assert_eq!(owner.peers[0].prefixes[0].to_string(), "0.0.0.0/0");
    let default = "[[routes]]\nprefix = \"0.0.0.0/0\"\nvia = \"beta\"";
    accepted(&edited(&[(15, default), (15, direct)]));
    // Of the other family it swallows nothing.
    accepted(&edited(&[(
        15,
        "[[routes]]\nprefix = \"::/0\"\nvia = \"beta\"",
    )]));
}

#[test]
fn loopback_is_accepted_where_it_is_asked_for() {
    let config = accepted(&edited(&[
        (3, r#"underlay = ["127.0.0.1"]"#),
        (5, "allow-loopback-underlay = true"),
        (11, "address = \"127.0.0.2\""),
    ]));
    assert_eq!(config.peers[0].address.to_string(), "127.0.0.2");
}

#[test]
fn the_summary_says_what_is_in_effect() {
    let config = accepted(&edited(&[
        (5, "vtep-mac = \"02:00:00:00:00:0a\""),
        (14, "dscp-value = 46"),
        (15, "[[routes]]\nprefix = \"10.9.0.0/16\"\nvia = \"beta\""),
        (
            15,
            "[[routes]]\nprefix = \"10.8.0.0/16\"\naction = \"prohibit\"",
        ),
        (15, "[ipip]\n[fou]"),
        (
            15,
            "[control]\nsocket = \"/run/a.sock\"\n[metrics]\nlisten = \"127.0.0.1:9472\"",
        ),
    ]));
    let expected = "\
node      alpha
underlay  192.0.2.1
vtep mac  02:00:00:00:00:0a
prefixes  10.244.1.0/24
device    warren0 (create)
addresses 10.244.1.1/24
mtu       1450 (computed from underlay-mtu 1500)
receives  vxlan on UDP 8472; fou and gue on UDP 5555; ipip; VNI 1
peer      beta 192.0.2.2 by vxlan vni 1 port 8472 to 02:00:00:00:00:0b, mtu 1450, dscp 46: 10.244.2.0/24
route     10.9.0.0/16 via beta
route     10.8.0.0/16 prohibit
control   /run/a.sock
metrics   127.0.0.1:9472
log       warn
workers   1, directions auto
probing   every 400 ms, down after 4, up after 5
";
    assert_eq!(config.summary(), expected);
}

#[test]
fn the_summary_says_where_routes_come_from() {
    let config = accepted(
        r#"
[node]
name = "a"
underlay = ["192.0.2.1"]
[probing]
enabled = false
[etcd]
endpoints = ["http://192.0.2.9:2379", "http://192.0.2.10:2379"]
[kubernetes]
kubeconfig = "/etc/kubeconfig"
network = "10.244.0.0/16"
backend = "host-gw"
[files]
directory = "/etc/routes.d"
[guard]
percent = 40
[state]
file = "/var/lib/a.state"
"#,
    );
    let summary = config.summary();
    let (_, sources) = summary.split_once("directions auto\n").unwrap();
    let expected = "\
probing   off
etcd      http://192.0.2.9:2379, http://192.0.2.10:2379, keys below /coreos.com/network
kube      by /etc/kubeconfig, network 10.244.0.0/16 by host-gw
files     /etc/routes.d
guard     above 40 %, for 60 s
state     /var/lib/a.state
";
    assert_eq!(sources, expected);
}

#[test]
fn a_peer_may_have_several_encapsulations_and_profiles_bring_their_numbers() {
    let encap = |names: &str| {
        let text = edited(&[
            (12, ""),
            (14, &format!("encap = {names}\nvtep-mac = \"auto\"")),
        ]);
        parse(&text).unwrap()
    };
    let config = encap(r#"["vxlan", "ipip", "flannel-udp", "kube-router-fou"]"#);
    let peer = &config.peers[0];
    assert!(matches!(
        peer.encapsulation,
        Encapsulation::Vxlan { port: 8472, .. }
    ));
    assert_eq!(
        peer.alternatives,
        [
            Encapsulation::Ipip,
            Encapsulation::Fou { port: 8285 },
            Encapsulation::Gue { port: 5555 }
        ]
    );
    // The largest overhead of the four: whichever is used, the device's packets fit.
    assert_eq!(peer.mtu.octets(), 1450);
    assert_eq!(config.receive.vxlan, [8472]);
    assert_eq!(config.receive.fou_gue, [5555, 8285]);
    assert!(config.receive.ipip);

    let config = encap(r#""calico-vxlan""#);
    let Encapsulation::Vxlan { vni, port, .. } = config.peers[0].encapsulation else {
        panic!("not VXLAN");
    };
    assert_eq!((vni.value(), port), (4096, 4789));
    assert_eq!(config.receive.vxlan, [4789], "and not the default port");
    assert_eq!(config.receive.vnis.len(), 1);

    // Calico's rule gives the VTEP address where none is written.
    let text = edited(&[(12, ""), (14, "encap = \"calico-vxlan\"")]);
    let config = parse(&text).unwrap();
    let Encapsulation::Vxlan { mac, .. } = config.peers[0].encapsulation else {
        panic!("not VXLAN");
    };
    assert_eq!(mac, calico_vtep_mac("beta", false));

    let config = encap(r#"["calico-ipip", "vxlan-gpe"]"#);
    assert_eq!(config.peers[0].encapsulation, Encapsulation::Ipip);
    assert_eq!(config.receive.vxlan_gpe, [4790]);
}

#[test]
fn a_node_receives_what_it_names_and_a_peer_has_a_mode() {
    let text = edited(&[
        (
            4,
            "prefixes = [\"10.244.1.0/24\"]\nreceive = [\"flannel-vxlan\", \"ipip\"]",
        ),
        (
            12,
            "encap = \"gue\"\nmode = \"cross-subnet\"\nprobe-address = \"10.244.2.1\"",
        ),
    ]);
    let config = parse(&text).unwrap();
    assert_eq!(config.receive.vxlan, [8472]);
    assert_eq!(config.receive.fou_gue, [6080]);
    assert!(config.receive.ipip);
    assert_eq!(config.peers[0].mode, PeerMode::CrossSubnet);
    assert_eq!(
        config.peers[0].probe_address,
        Some("10.244.2.1".parse().unwrap())
    );
}

#[test]
fn a_node_that_is_given_its_subnet_needs_no_name() {
    let config = accepted(
        "[node]\nunderlay = \"192.0.2.1\"\n[etcd]\nendpoints = \"http://192.0.2.9:2379/\"\n",
    );
    assert_eq!(config.node.name, "192.0.2.1");
    assert_eq!(config.node.vtep_mac, warren_vtep_mac("192.0.2.1"));
    let etcd = config.sources.etcd.unwrap();
    assert_eq!(etcd.endpoints, ["http://192.0.2.9:2379"]);
    assert_eq!(
        (etcd.prefix.as_str(), etcd.leave),
        ("/coreos.com/network", false)
    );
    let written = config.sources.subnet_env.unwrap();
    assert_eq!(written.to_str(), Some("/run/flannel/subnet.env"));
    assert_eq!(
        (config.sources.guard.percent, config.sources.guard.hold_s),
        (50, 60)
    );
    let config = accepted(
        "[node]\nunderlay = \"2001:db8::1\"\nsubnet-env = \"\"\n[etcd]\nendpoints = \"http://[2001:db8::9]:2379\"\n",
    );
    assert_eq!(config.node.name, "v6-2001-db8--1");
    assert_eq!(config.sources.subnet_env, None);
}
