//! The agent on its own: events in, requests and updates out.

use super::*;
use crate::flannel::Fault;
use crate::rib::RemoteRoute;
use warren_core::encap::Encapsulation;
use warren_core::units::MacAddr;

const NETWORK: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,
    "IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;

fn own() -> Own {
    Own {
        v4: Some([192, 0, 2, 1].into()),
        v6: Some("2001:db8::1".parse().unwrap()),
        vtep_mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
    }
}

fn agent(network: &str) -> Agent {
    let network = NetConf::parse(network.as_bytes()).unwrap();
    Agent::new(AgentSettings::new("n1".to_owned(), network), own())
}

fn at(ms: u64) -> Time {
    Time::ZERO.after(Duration::from_millis(ms))
}

fn bare(number: u8, version: u64) -> Node {
    Node {
        name: format!("n{number}"),
        version: version.to_string(),
        created: format!("2026-01-01T00:00:{number:02}Z"),
        pod_cidrs: vec![
            format!("10.244.{number}.0/24"),
            format!("fd00:10:244:{number}::/64"),
        ],
        ..Node::default()
    }
}

fn flannel(number: u8, version: u64) -> Node {
    let mut node = bare(number, version);
    let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:{number:02x}"}}"#);
    for (name, value) in [
        ("kube-subnet-manager", "true".to_owned()),
        ("backend-type", "vxlan".to_owned()),
        ("public-ip", format!("192.0.2.{number}")),
        ("backend-data", data.clone()),
        ("public-ipv6", format!("2001:db8::{number:x}")),
        ("backend-v6-data", data),
    ] {
        let name = format!("{ANNOTATION_PREFIX}/{name}");
        node.annotations.insert(name, value);
    }
    node
}

/// The one's own Node with nothing left to do.
fn settled(version: u64) -> Node {
    Node {
        network_available: Some(true),
        ..flannel(1, version)
    }
}

fn listed(version: u64, nodes: Vec<Node>) -> Input {
    let version = version.to_string();
    Input::Answer(Ok(Answer::Listed { version, nodes }))
}

fn pong(version: u64) -> Input {
    let version = version.to_string();
    Input::Answer(Ok(Answer::Pong { version }))
}

fn unreachable() -> Input {
    Input::Answer(Err(Failure::Unreachable("nobody".to_owned())))
}

/// An agent that has listed these at version 100.
fn synced(nodes: Vec<Node>) -> Agent {
    let mut agent = agent(NETWORK);
    assert_eq!(agent.poll_request(at(0)), Some(Request::List));
    agent.handle(listed(100, nodes), at(0));
    agent
}

fn updates(agent: &mut Agent) -> Vec<UpdateKind> {
    std::iter::from_fn(|| agent.poll_update())
        .map(|update| update.kind)
        .collect()
}

fn watch_from(agent: &Agent) -> Option<&str> {
    agent.wanted_watch().map(|watch| watch.from.as_str())
}

fn routes(entry: &Entry) -> &[RemoteRoute] {
    match &entry.content {
        Content::Remote(remote) | Content::Own(remote) => &remote.routes,
        Content::Refused(refusal) => panic!("{refusal}"),
    }
}

#[test]
fn nothing_answered_delivers_nothing_and_asks_again() {
    let mut agent = agent(NETWORK);
    let mut waits = Vec::new();
    let mut now = 0;
    for _ in 0..6 {
        assert_eq!(agent.poll_request(at(now)), Some(Request::List));
        assert_eq!(agent.poll_request(at(now)), None, "one at a time");
        agent.handle(unreachable(), at(now));
        let due = agent.poll_timeout().unwrap().since(at(now));
        assert_eq!(agent.poll_request(at(now)), None);
        waits.push(due.as_millis());
        now += 1000;
    }
    assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
    let lost = |kind: &UpdateKind| matches!(kind, UpdateKind::Lost { .. });
    assert!(updates(&mut agent).iter().all(lost));
    assert_eq!(agent.wanted_watch(), None);
}

#[test]
fn both_families_of_a_node_are_told_with_its_own_entry() {
    let mut agent = synced(vec![bare(1, 50), flannel(2, 60), bare(3, 70)]);
    assert_eq!(watch_from(&agent), Some("100"));
    let [
        UpdateKind::Full {
            entries,
            position: 100,
            continuity: Continuity::Same,
        },
    ] = &updates(&mut agent)[..]
    else {
        panic!("everything once");
    };
    // The third is none of flannel's.
    let keys: Vec<&str> = entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!(keys, ["n1", "n2"]);
    assert!(matches!(entries[0].content, Content::Own(_)));
    assert_eq!(entries[1].rank, 20_260_101_000_002);
    let [v4, v6] = routes(&entries[1]) else {
        panic!("{entries:?}");
    };
    assert_eq!(v4.prefix, "10.244.2.0/24".parse().unwrap());
    assert_eq!(v6.prefix, "fd00:10:244:2::/64".parse().unwrap());
    assert_eq!(
        v6.via.remote,
        "2001:db8::2".parse::<std::net::IpAddr>().unwrap()
    );
    assert!(matches!(
        v6.via.encapsulation,
        Some(Encapsulation::Vxlan { port: 8472, .. })
    ));
    let subnets = routes(&entries[0])
        .iter()
        .map(|route| route.prefix)
        .collect();
    assert_eq!(agent.poll_notice(), Some(Notice::Claimed(subnets)));
}

#[test]
fn a_family_without_its_way_costs_the_other_nothing() {
    let mut one = flannel(2, 60);
    one.annotations
        .remove(&format!("{ANNOTATION_PREFIX}/public-ipv6"));
    let mut two = flannel(3, 60);
    two.annotations
        .remove(&format!("{ANNOTATION_PREFIX}/backend-data"));
    let mut agent = synced(vec![one, two]);
    let [UpdateKind::Full { entries, .. }] = &updates(&mut agent)[..] else {
        panic!("everything once");
    };
    let prefixes: Vec<String> = entries
        .iter()
        .flat_map(routes)
        .map(|route| route.prefix.to_string())
        .collect();
    assert_eq!(prefixes, ["10.244.2.0/24", "fd00:10:244:3::/64"]);
}

#[test]
fn what_is_published_is_all_of_it_in_one_patch_then_the_condition_then_nothing() {
    let mut agent = synced(vec![bare(1, 50)]);
    let Some(Request::Annotate(changes)) = agent.poll_request(at(0)) else {
        panic!("the annotations first");
    };
    let expected: BTreeMap<_, _> = settled(0)
        .annotations
        .into_iter()
        .map(|(name, value)| (name, Some(value)))
        .collect();
    assert_eq!(changes, expected);
    let mut node = flannel(1, 101);
    agent.handle(Input::Answer(Ok(Answer::Patched(node.clone()))), at(10));
    assert_eq!(agent.poll_request(at(10)), Some(Request::Available(true)));
    node.network_available = Some(true);
    node.version = "102".to_owned();
    agent.handle(Input::Answer(Ok(Answer::Patched(node))), at(20));
    assert_eq!(agent.poll_request(at(20)), None);
    // The watch comes later with what was before; nothing is written for it.
    agent.handle(
        Input::Watched(vec![WatchEvent::Put(flannel(1, 101))]),
        at(30),
    );
    assert_eq!(agent.poll_request(at(30)), None);
    // A family goes: its annotations are taken away.
    agent.handle(Input::Own(Own { v6: None, ..own() }), at(40));
    let Some(Request::Annotate(changes)) = agent.poll_request(at(40)) else {
        panic!("the annotations");
    };
    let gone: Vec<_> = changes.into_iter().collect();
    let name = |name| format!("{ANNOTATION_PREFIX}/{name}");
    assert_eq!(
        gone,
        [(name("backend-v6-data"), None), (name("public-ipv6"), None)]
    );
}

#[test]
fn a_fight_over_annotations_is_not_fought_for_ever() {
    let mut agent = synced(vec![settled(50)]);
    let mut writes = 0;
    for round in 0..1000 {
        let now = at(round * 50);
        let version = 200 + round * 2;
        if let Some(request) = agent.poll_request(now) {
            let is_write = matches!(request, Request::Annotate(_));
            writes += usize::from(is_write);
            let answer = match is_write {
                true => Answer::Patched(settled(version)),
                false => Answer::Pong {
                    version: version.to_string(),
                },
            };
            agent.handle(Input::Answer(Ok(answer)), now);
        }
        let mut other = settled(version + 1);
        other.annotations.clear();
        agent.handle(Input::Watched(vec![WatchEvent::Put(other)]), now);
    }
    assert_eq!(writes, WRITES_AT_ONCE, "in 50 s");
}

#[test]
fn broken_watches_go_on_from_the_last_version_without_a_list() {
    let mut agent = synced(vec![settled(50), flannel(2, 60)]);
    updates(&mut agent);
    agent.handle(
        Input::Watched(vec![WatchEvent::Put(flannel(3, 110))]),
        at(10),
    );
    agent.handle(
        Input::Watched(vec![WatchEvent::Bookmark("150".to_owned())]),
        at(20),
    );
    assert_eq!(watch_from(&agent), Some("100"), "the same watch");
    agent.handle(
        Input::WatchBroke {
            why: "gone".to_owned(),
        },
        at(30),
    );
    assert_eq!(agent.wanted_watch(), None);
    let due = agent.poll_timeout().unwrap();
    assert_eq!(agent.poll_request(due), Some(Request::Ping { exact: true }));
    agent.handle(unreachable(), due);
    let due = agent.poll_timeout().unwrap();
    assert_eq!(agent.poll_request(due), Some(Request::Ping { exact: true }));
    agent.handle(pong(180), due);
    assert_eq!(watch_from(&agent), Some("150"));
    let told = updates(&mut agent);
    let full = |kind: &UpdateKind| matches!(kind, UpdateKind::Full { .. });
    assert!(!told.iter().any(full), "{told:?}");
}

#[test]
fn forgotten_versions_and_earlier_ones_lead_to_a_list() {
    let mut agent = synced(vec![settled(50), flannel(2, 60)]);
    updates(&mut agent);
    agent.handle(Input::WatchExpired, at(10));
    let due = agent.poll_timeout().unwrap();
    assert_eq!(agent.poll_request(due), Some(Request::List));
    agent.handle(listed(300, vec![settled(50), flannel(2, 60)]), due);
    let continuity = |agent: &mut Agent| match updates(agent).pop() {
        Some(UpdateKind::Full { continuity, .. }) => continuity,
        other => panic!("{other:?}"),
    };
    assert_eq!(continuity(&mut agent), Continuity::Same);
    // A server that is behind is asked again, exactly; the store itself is believed.
    let now = at(20_000);
    assert_eq!(
        agent.poll_request(now),
        Some(Request::Ping { exact: false })
    );
    agent.handle(pong(250), now);
    assert_eq!(agent.poll_request(now), Some(Request::Ping { exact: true }));
    agent.handle(pong(310), now);
    assert_eq!(watch_from(&agent), Some("300"), "nothing happened");
    let now = at(40_000);
    assert_eq!(
        agent.poll_request(now),
        Some(Request::Ping { exact: false })
    );
    agent.handle(pong(250), now);
    assert_eq!(agent.poll_request(now), Some(Request::Ping { exact: true }));
    agent.handle(pong(250), now);
    assert_eq!(agent.poll_request(now), Some(Request::List));
    updates(&mut agent);
    agent.handle(listed(250, vec![settled(50)]), now);
    assert_eq!(continuity(&mut agent), Continuity::Reset);
}

#[test]
fn own_entry_stays_behind_all_others_while_the_node_is_gone() {
    let mut agent = synced(vec![settled(50)]);
    updates(&mut agent);
    agent.handle(Input::Watched(vec![WatchEvent::Gone(settled(101))]), at(10));
    let [UpdateKind::Delta { changes, .. }] = &updates(&mut agent)[..] else {
        panic!("one change");
    };
    let [Change::Put(entry)] = &changes[..] else {
        panic!("{changes:?}");
    };
    assert_eq!(entry.rank, RANK_LAST);
    // Nobody is there to be patched.
    assert_eq!(agent.poll_request(at(10)), None);
}

#[test]
fn refused_writes_wait_longer_each_time_and_cost_no_route() {
    let mut agent = synced(vec![bare(1, 50), flannel(2, 60)]);
    updates(&mut agent);
    let mut now = 0;
    for wait in [1, 2, 4] {
        assert!(matches!(
            agent.poll_request(at(now)),
            Some(Request::Annotate(_))
        ));
        let refused = Failure::Refused("forbidden".to_owned());
        agent.handle(Input::Answer(Err(refused)), at(now));
        assert_eq!(agent.poll_request(at(now + wait * 1000 - 1)), None);
        now += wait * 1000;
    }
    assert_eq!(updates(&mut agent), []);
    assert!(agent.wanted_watch().is_some());
}

#[test]
fn calicos_annotations_say_enough_only_where_its_tunnel_is_in_the_pod_cidr() {
    let calico = |tunnel: &str, name: &str| {
        let mut node = bare(2, 60);
        let put = |node: &mut Node, name: &str, value: &str| {
            let name = format!("projectcalico.org/{name}");
            node.annotations.insert(name, value.to_owned());
        };
        put(&mut node, "IPv4Address", "192.0.2.2/24");
        put(&mut node, name, tunnel);
        node.name = "node-1".to_owned();
        let mut agent = synced(vec![node]);
        match updates(&mut agent).pop() {
            Some(UpdateKind::Full { mut entries, .. }) => entries.pop().map(|entry| entry.content),
            other => panic!("{other:?}"),
        }
    };
    let Some(Content::Remote(remote)) = calico("10.244.2.0", "IPv4VXLANTunnelAddr") else {
        panic!("enough");
    };
    let [route] = &remote.routes[..] else {
        panic!("{remote:?}");
    };
    let vxlan = Encapsulation::Vxlan {
        vni: warren_core::units::Vni::new(4096).unwrap(),
        port: 4789,
        mac: MacAddr::new([0x66, 0xb3, 0x68, 0x28, 0x39, 0x8e]),
    };
    assert_eq!(route.via.encapsulation, Some(vxlan));
    let Some(Content::Remote(remote)) = calico("10.244.2.1", "IPv4IPIPTunnelAddr") else {
        panic!("enough");
    };
    assert_eq!(
        remote.routes[0].via.encapsulation,
        Some(Encapsulation::Ipip)
    );
    let Some(Content::Refused(refusal)) = calico("10.244.77.64", "IPv4IPIPTunnelAddr") else {
        panic!("its blocks are elsewhere");
    };
    assert_eq!(refusal.name, "calico-blocks");
    assert_eq!(calico("65001", "ASNumber"), None);
}

#[test]
fn what_no_calico_node_can_be_at_is_refused_by_its_name() {
    let refusal = |internal: &str, mac: Option<&str>| {
        let mut node = bare(2, 60);
        node.internal = vec![internal.parse().unwrap()];
        let mut put = |name: &str, value: &str| {
            let name = format!("projectcalico.org/{name}");
            node.annotations.insert(name, value.to_owned());
        };
        put("IPv4VXLANTunnelAddr", "10.244.2.0");
        if let Some(mac) = mac {
            put("VXLANTunnelMACAddr", mac);
        }
        let mut agent = synced(vec![node]);
        let Some(UpdateKind::Full { mut entries, .. }) = updates(&mut agent).pop() else {
            panic!("the list is told");
        };
        match entries.pop().unwrap().content {
            Content::Refused(refusal) => Some((refusal.name, refusal.detail)),
            Content::Remote(_) | Content::Own(_) => None,
        }
    };
    assert_eq!(refusal("192.0.2.2", None), None);
    for unusable in ["0.0.0.0", "224.0.0.1", "127.0.0.1", "169.254.0.1"] {
        let (name, detail) = refusal(unusable, None).unwrap();
        assert_eq!(name, Fault::UnusableAddress.name());
        assert_eq!(detail, format!("InternalIP {unusable}"));
    }
    for group in ["01:00:5e:00:00:01", "00:00:00:00:00:00", "?"] {
        let (name, detail) = refusal("192.0.2.2", Some(group)).unwrap();
        assert_eq!((name, detail.as_str()), (Fault::BadMac.name(), group));
    }
}

/// Whatever order events come in, what was told in steps is what a fresh list would tell.
#[test]
fn steps_come_to_the_same_as_a_list() {
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) % below
    };
    for _ in 0..200 {
        let mut agent = synced(vec![settled(50)]);
        let mut nodes = BTreeMap::from([("n1".to_owned(), settled(50))]);
        for version in 101..160 {
            let number = u8::try_from(random(6)).unwrap() + 2;
            let mut node = match random(3) {
                0 => bare(number, version),
                _ => flannel(number, version),
            };
            if random(5) == 0 {
                let name = format!("{ANNOTATION_PREFIX}/public-ip");
                node.annotations.insert(name, "nonsense".to_owned());
            }
            let event = if random(4) == 0 && nodes.remove(&node.name).is_some() {
                WatchEvent::Gone(node)
            } else {
                nodes.insert(node.name.clone(), node.clone());
                WatchEvent::Put(node)
            };
            agent.handle(Input::Watched(vec![event]), at(version));
        }
        let mut told: BTreeMap<Arc<str>, Entry> = BTreeMap::new();
        for update in updates(&mut agent) {
            match update {
                UpdateKind::Full { entries, .. } => {
                    told = entries
                        .into_iter()
                        .map(|e| (Arc::clone(&e.key), e))
                        .collect();
                }
                UpdateKind::Delta { changes, .. } => {
                    for change in changes {
                        match change {
                            Change::Put(entry) => told.insert(Arc::clone(&entry.key), entry),
                            Change::Gone(key) => told.remove(&key),
                        };
                    }
                }
                UpdateKind::Contact | UpdateKind::Lost { .. } => {}
            }
        }
        let mut fresh = synced(nodes.into_values().collect());
        let Some(UpdateKind::Full { entries, .. }) = updates(&mut fresh).pop() else {
            panic!("everything");
        };
        assert_eq!(told.into_values().collect::<Vec<_>>(), entries);
    }
}

#[test]
fn what_is_to_be_said_soon_after_something_else_is_said_later() {
    let mut agent = agent(NETWORK);
    let said = |agent: &mut Agent| -> Vec<String> {
        let notices = std::iter::from_fn(|| agent.poll_notice());
        let texts = notices.filter_map(|notice| match notice {
            Notice::Alarm(text) => Some(text),
            Notice::Claimed(_) | Notice::Left => None,
        });
        texts.collect()
    };
    assert_eq!(agent.poll_request(at(0)), Some(Request::List));
    agent.handle(unreachable(), at(0));
    assert_eq!(said(&mut agent), ["nobody"]);
    assert_eq!(agent.poll_request(at(4000)), Some(Request::List));
    agent.handle(listed(100, Vec::new()), at(4000));
    assert_eq!(said(&mut agent), Vec::<String>::new());
    assert_eq!(agent.poll_timeout(), Some(at(10_000)));
    agent.poll_request(at(10_000));
    assert_eq!(said(&mut agent), ["there is no Node called n1"]);
}

#[test]
fn a_failure_that_is_over_is_not_announced_any_more_and_what_was_wrong_before_is_again() {
    let alarms = |agent: &mut Agent| -> Vec<String> {
        let notices = std::iter::from_fn(|| agent.poll_notice());
        let alarms = notices.filter_map(|notice| match notice {
            Notice::Alarm(text) => Some(text),
            Notice::Claimed(_) | Notice::Left => None,
        });
        alarms.collect()
    };
    let ping = |agent: &mut Agent, ms, answer| {
        let asked = agent.poll_request(at(ms));
        assert!(matches!(asked, Some(Request::Ping { .. })), "{asked:?}");
        agent.handle(answer, at(ms));
    };
    // The node has what it needs: a failure that waits for its turn is over before.
    let mut agent = synced(vec![settled(50)]);
    ping(&mut agent, 8_000, unreachable());
    assert_eq!(alarms(&mut agent), ["nobody"]);
    let late = Input::Answer(Err(Failure::Unreachable("late".to_owned())));
    ping(&mut agent, 9_000, late);
    ping(&mut agent, 10_000, pong(100));
    agent.poll_request(at(60_000));
    assert_eq!(alarms(&mut agent), [""; 0]);

    // There is no Node: that is the reason again, after nobody answered for a while.
    let absent = "there is no Node called n1";
    let mut agent = synced(vec![]);
    assert_eq!(alarms(&mut agent), [absent]);
    ping(&mut agent, 20_000, unreachable());
    assert_eq!(alarms(&mut agent), ["nobody"]);
    ping(&mut agent, 21_000, pong(100));
    agent.poll_request(at(31_000));
    assert_eq!(alarms(&mut agent), [absent]);
}
