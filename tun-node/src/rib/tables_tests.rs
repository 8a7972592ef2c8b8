use std::time::Duration;

use warren_core::units::{Epoch, Time};

use super::*;
use crate::config::example_config;
use crate::rib::{
    Change, Content, Entry, Event, Identity, Reconciler, Remote, RemoteRoute, Settings,
    SourceUpdate, UpdateKind, config_update,
};

/// A table with the decisions before it.
struct Node {
    rib: Rib,
    reconciler: Reconciler,
    now: Time,
}

impl Node {
    fn of(config: &Config) -> Self {
        let terms = Terms::of(config, HashSet::new());
        let mut node = Self {
            rib: Rib::new(config.local(), terms),
            reconciler: Reconciler::new(Settings::default(), Identity::default()),
            now: Time::ZERO,
        };
        node.load(config);
        node
    }

    fn load(&mut self, config: &Config) -> Effects {
        let local = LocalRoutes::of(config);
        self.rib.set_local_routes(&local);
        self.take(config_update(SourceKind::Config, config, &local, 1))
    }

    fn take(&mut self, update: SourceUpdate) -> Effects {
        self.now = self.now.after(Duration::from_secs(5));
        let outcome = self.reconciler.handle(Event::Update(update), self.now);
        self.rib.apply(&outcome.routes);
        self.rib.publish()
    }

    fn delta(&mut self, changes: Vec<Change>) -> Effects {
        self.take(SourceUpdate {
            source: SourceKind::Etcd,
            kind: UpdateKind::Delta {
                changes,
                position: 1,
            },
        })
    }
}

fn example() -> Config {
    Config::parse(example_config(), "example.toml").expect("the example is valid")
}

fn node(number: u16, mac: u8) -> Change {
    let [high, low] = number.to_be_bytes();
    let via = Via {
        remote: [198, 18, high, low].into(),
        encapsulation: Some(Encapsulation::Vxlan {
            vni: warren_core::units::Vni::new(1).expect("a small number"),
            port: 8472,
            mac: warren_core::units::MacAddr::new([2, 0, mac, 0, high, low]),
        }),
        underlay_mtu: None,
    };
    let prefix = IpNet::new([10, high, low, 0].into(), 24).expect("a length");
    Change::Put(Entry {
        key: Arc::from(prefix.to_string()),
        rank: number.into(),
        content: Content::Remote(Arc::new(Remote {
            node: Arc::from(via.remote.to_string()),
            routes: vec![RemoteRoute { prefix, via }],
        })),
    })
}

fn gone(number: u16) -> Change {
    let [high, low] = number.to_be_bytes();
    Change::Gone(Arc::from(format!("10.{high}.{low}.0/24")))
}

#[test]
fn the_example_becomes_tables_that_lead_where_it_says() {
    let snapshot = Node::of(&example()).rib.reader().snapshot();
    let lookup = |address: &str| {
        let address = address.parse().expect("an address");
        snapshot.tables.lookup_prefix(address)
    };
    let (prefix, next_hop) = lookup("10.244.2.7").expect("beta owns it");
    assert_eq!(prefix.to_string(), "10.244.2.0/24");
    let NextHop::Tunnel(tunnel) = next_hop else {
        panic!("{next_hop:?}");
    };
    let peer = snapshot.tables.peer(tunnel.peer).expect("it was added");
    assert_eq!(peer.name, "beta");
    assert_eq!(tunnel.local.to_string(), "192.0.2.1");
    assert_eq!(lookup("10.244.1.9").map(|r| r.1), Some(&NextHop::Local));
    assert_eq!(
        lookup("10.244.200.1").map(|r| r.1),
        Some(&NextHop::Blackhole)
    );
    let Some((_, NextHop::EqualCost(tunnels))) = lookup("198.51.100.1") else {
        panic!("two peers share this route");
    };
    assert_eq!(tunnels.len(), 2);
    assert!(lookup("203.0.113.1").is_none());
}

#[test]
fn a_reader_takes_tables_only_when_they_are_new() {
    let reader = Node::of(&example()).rib.reader();
    let tables = reader.newer_than(Epoch::default()).expect("the first");
    assert!(reader.newer_than(tables.epoch()).is_none());
}

#[test]
fn what_is_direct_stays_out_of_the_device() {
    let text = example_config().replace("action = \"blackhole\"", "action = \"direct\"");
    let config = Config::parse(&text, "example.toml").expect("valid too");
    let snapshot = Node::of(&config).rib.reader().snapshot();
    let outside: Vec<_> = snapshot
        .routes
        .iter()
        .filter(|route| !route.leads_to_device())
        .map(|route| route.prefix.to_string())
        .collect();
    assert_eq!(outside, ["10.244.0.0/16"]);
}

#[test]
fn a_change_of_the_way_reaches_every_route_and_every_set() {
    let mut node = Node::of(&example());
    let beta: IpAddr = "192.0.2.2".parse().expect("an address");
    let known = node.rib.peers[&beta].spec.ways[0];
    let way = Way {
        encapsulation: known,
        mtu: Mtu::new(1300),
    };
    node.rib.set_ways([(beta, way)]);
    node.rib.publish();
    let lowered: Vec<String> = node
        .rib
        .reader()
        .snapshot()
        .routes
        .iter()
        .filter(|route| route.tunnels().iter().any(|one| one.mtu == Mtu::new(1300)))
        .map(|route| route.prefix.to_string())
        .collect();
    assert_eq!(
        lowered,
        ["10.244.2.0/24", "198.51.100.0/24", "fd00:10:244:2::/64"]
    );
    let tables = node.rib.reader().tables();
    let Some(NextHop::EqualCost(tunnels)) = tables.lookup([198, 51, 100, 1].into()) else {
        panic!("two peers share this route");
    };
    assert!(tunnels.iter().any(|tunnel| tunnel.mtu == Mtu::new(1300)));
}

#[test]
fn numbers_of_what_went_are_used_again_and_a_reload_changes_only_what_differs() {
    let mut node_ = Node::of(&example());
    let before = node_.rib.reader().snapshot();
    for round in 0..50_u8 {
        node_.delta((0..100).map(|n| node(n, round)).collect());
        assert_eq!(node_.rib.reader().counts().1, 103);
        node_.delta((0..100).map(gone).collect());
    }
    node_.reconciler.handle(Event::Confirm(None), node_.now);
    let outcome = node_.reconciler.handle(Event::Confirm(None), node_.now);
    node_.rib.apply(&outcome.routes);
    assert!(node_.rib.writer_peers() <= 103);
    let effects = node_.load(&example());
    assert_eq!(effects, Effects::default());
    assert_eq!(before.peers.len(), 3);
}

#[test]
fn random_changes_come_to_what_a_fresh_table_has() {
    let config = example();
    let mut node_ = Node::of(&config);
    let mut random = 7_u64;
    for _ in 0..300 {
        let mut changes = Vec::new();
        for _ in 0..8 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let number = u16::try_from(random >> 33 & 31).expect("five bits");
            let mac = u8::try_from(random >> 50 & 3).expect("two bits");
            changes.push(if random >> 60 & 1 == 0 {
                gone(number)
            } else {
                node(number, mac)
            });
        }
        node_.delta(changes);
        // The twin learns everything at once.
        let mut twin = Node::of(&config);
        let entries = node_.reconciler.entries(SourceKind::Etcd).collect();
        twin.take(SourceUpdate {
            source: SourceKind::Etcd,
            kind: UpdateKind::Full {
                entries,
                position: 1,
                continuity: crate::rib::Continuity::Same,
            },
        });
        let shown = |node: &Node| {
            let snapshot = node.rib.reader().snapshot();
            let routes = snapshot.routes.iter().map(|route| {
                let found = snapshot.tables.lookup(route.prefix.network());
                assert_eq!(found, Some(&route.next_hop), "{}", route.prefix);
                let tunnels = route.tunnels().iter().map(|tunnel| {
                    let peer = snapshot.tables.peer(tunnel.peer).expect("it is there");
                    assert_eq!(peer.underlay, [tunnel.remote]);
                    (peer.name.clone(), tunnel.encapsulation)
                });
                (route.prefix, tunnels.collect::<Vec<_>>())
            });
            routes.collect::<Vec<_>>()
        };
        assert_eq!(shown(&node_), shown(&twin));
    }
}

/// Where packets to an address go as they are, or the largest inner packet of its tunnel.
fn way(node: &Node, address: &str) -> (Option<IpAddr>, Option<Mtu>) {
    let address = address.parse().expect("an address");
    match node.rib.reader().tables().lookup(address) {
        Some(NextHop::Direct { gateway: Some(to) }) => (Some(*to), None),
        Some(NextHop::Tunnel(tunnel)) => (None, Some(tunnel.mtu)),
        other => panic!("{other:?}"),
    }
}

/// The example with beta's mode, and further text.
fn with_mode(mode: &str, more: &str) -> Config {
    let text = example_config().replacen("# mode = \"always\"", &format!("mode = {mode:?}"), 1);
    let text = text.replace("via = [\"beta\", \"delta\"]", "via = \"beta\"");
    Config::parse(&(text + more), "example.toml").expect("valid too")
}

#[test]
fn a_static_route_by_a_direct_peer_leads_to_it_as_packets_are() {
    let beta: IpAddr = "192.0.2.2".parse().expect("an address");
    let v6 = "[[routes]]\nprefix = \"2001:db8:1::/48\"\nvia = \"beta\"\n";
    let mut node = Node::of(&with_mode("direct", v6));
    assert_eq!(way(&node, "198.51.100.1"), (Some(beta), None));
    // The other family has no way over that gateway.
    let tunnel = (None, Some(Mtu::new(1450)));
    assert_eq!(way(&node, "2001:db8:1::1"), tunnel);
    node.load(&with_mode("cross-subnet", ""));
    assert_eq!(way(&node, "198.51.100.1"), tunnel);
}

#[test]
fn another_mode_and_another_link_reach_the_routes_that_are_there() {
    let mut node_ = Node::of(&with_mode("always", ""));
    let beta: IpAddr = "192.0.2.2".parse().expect("an address");
    // A source has a route to the same peer.
    let prefix: IpNet = "10.77.0.0/24".parse().expect("a prefix");
    let via = Via {
        remote: beta,
        encapsulation: Some(with_mode("always", "").peers[0].encapsulation),
        underlay_mtu: None,
    };
    node_.delta(vec![Change::Put(Entry {
        key: Arc::from("a"),
        rank: 1,
        content: Content::Remote(Arc::new(Remote {
            node: Arc::from("b"),
            routes: vec![RemoteRoute { prefix, via }],
        })),
    })]);
    let everywhere = ["10.244.2.7", "10.77.0.1", "198.51.100.1"];
    let terms =
        |config: &Config, on_link: &[IpAddr]| Terms::of(config, on_link.iter().copied().collect());
    let (tunnel, direct) = ((None, Some(Mtu::new(1450))), (Some(beta), None));
    for (mode, on_link, expected) in [
        ("always", &[beta][..], tunnel),
        ("cross-subnet", &[beta], direct),
        ("cross-subnet", &[], tunnel),
        ("cross-subnet", &[beta], direct),
        ("always", &[beta], tunnel),
    ] {
        let config = with_mode(mode, "");
        node_.rib.set_terms(terms(&config, on_link));
        node_.load(&config);
        for address in everywhere {
            assert_eq!(way(&node_, address), expected, "{mode} {address}");
        }
    }
}

#[test]
fn a_peer_of_a_file_that_goes_leaves_the_one_that_a_source_described() {
    let text = "[node]\nname = \"alpha\"\nunderlay = [\"192.0.2.1\"]\n";
    let without = Config::parse(text, "node.toml").expect("valid");
    let peer = "[[peers]]\nname = \"beta\"\naddress = \"198.18.0.5\"\nencap = [\"vxlan\", \"fou\"]\nvtep-mac = \"02:00:01:00:00:05\"\n\
                prefixes = [\"10.250.0.0/24\"]\nmtu = 1300\nprobe = false\ndscp = \"uniform\"\n";
    let with = Config::parse(&format!("{text}{peer}"), "node.toml").expect("valid");
    let mut twin = Node::of(&without);
    twin.delta(vec![node(5, 1)]);
    let mut node_ = Node::of(&with);
    node_.delta(vec![node(5, 1)]);
    let effects = node_.load(&without);
    let spec = |node: &Node| {
        let address: IpAddr = "198.18.0.5".parse().expect("an address");
        let peer = &node.rib.peers[&address];
        (peer.spec.clone(), peer.tunnel.dscp, peer.is_local)
    };
    assert_eq!(spec(&node_), spec(&twin));
    assert_eq!(way(&node_, "10.0.5.1"), way(&twin, "10.0.5.1"));
    let told = effects
        .peers
        .iter()
        .any(|change| matches!(change, PeerChange::Put(told, _) if *told == spec(&twin).0));
    assert!(told, "{effects:?}");
}
