//! The agent on its own: answers and events in, requests, updates and notices out.

use super::super::store::kept;
use super::*;
use warren_core::units::MacAddr;

const PREFIX: &str = crate::flannel::DEFAULT_PREFIX;
const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn own() -> OwnNode {
    OwnNode {
        public_ip: [192, 0, 2, 1].into(),
        public_ipv6: Some("2001:db8::1".parse().unwrap()),
        vtep_mac_v4: MacAddr::new([2, 0, 0, 0, 0, 1]),
        vtep_mac_v6: MacAddr::new([2, 0, 0, 0, 0, 1]),
    }
}

fn at(ms: u64) -> Time {
    Time::ZERO.after(Duration::from_millis(ms))
}

fn header(revision: u64) -> Header {
    Header {
        cluster: 7,
        revision,
    }
}

/// A key below the prefix, made and last changed by one revision.
fn kv(name: &str, value: &str, revision: u64, lease: i64) -> Kv {
    let key = kept(format!("{PREFIX}/{name}").into_bytes());
    Kv {
        value: Value::of(&key, value.as_bytes().to_vec()),
        key,
        create_revision: revision,
        mod_revision: revision,
        lease,
    }
}

/// The value of the node's own lease.
fn own_lease(network: &str) -> String {
    own()
        .attrs(&NetConf::parse(network.as_bytes()).unwrap())
        .to_json()
}

fn agent() -> Agent {
    Agent::new(AgentSettings::default(), own())
}

/// Answers the list that the agent asks for.
fn list(agent: &mut Agent, revision: u64, kvs: Vec<Kv>, now: Time) {
    assert_eq!(agent.poll_request(now), Some(Request::List));
    let header = header(revision);
    agent.handle(Input::Answer(Ok(Answer::Listed { header, kvs })), now);
}

/// Grants the lease that the agent asks for.
fn grant(agent: &mut Agent, now: Time) {
    assert!(matches!(
        agent.poll_request(now),
        Some(Request::Grant { .. })
    ));
    let granted = Answer::Granted {
        lease: 9,
        ttl_s: 86_400,
    };
    agent.handle(Input::Answer(Ok(granted)), now);
}

/// An agent that has 10.5.1.0/24 with lease 9, and nothing left to write.
fn settled() -> Agent {
    let mut agent = agent();
    let own_key = kv("subnets/10.5.1.0-24", &own_lease(NETWORK), 3, 9);
    list(
        &mut agent,
        5,
        vec![kv("config", NETWORK, 2, 0), own_key],
        at(0),
    );
    grant(&mut agent, at(0));
    agent
}

fn notices(agent: &mut Agent) -> Vec<Notice> {
    std::iter::from_fn(|| agent.poll_notice()).collect()
}

fn updates(agent: &mut Agent) -> Vec<UpdateKind> {
    let all = std::iter::from_fn(|| agent.poll_update());
    all.map(|update| update.kind).collect()
}

#[test]
fn without_a_network_there_is_contact_and_nothing_is_withdrawn() {
    for config in [None, Some("{"), Some(r#"{"Network":"10.5.0.0/33"}"#)] {
        let mut agent = agent();
        agent.handle(Input::Own(own()), at(0));
        assert_eq!(updates(&mut agent), [], "before the first list");
        let lease = kv("subnets/10.5.7.0-24", &own_lease(NETWORK), 3, 8);
        let config = config.map(|text| kv("config", text, 2, 0));
        let kvs: Vec<Kv> = config.into_iter().chain([lease]).collect();
        list(&mut agent, 5, kvs, at(0));
        assert_eq!(updates(&mut agent), [UpdateKind::Contact]);
        agent.handle(Input::Own(own()), at(5));
        let watch = |agent: &mut Agent, config, revision| {
            let events = vec![WatchEvent::Put(kv("config", config, revision, 0))];
            let header = header(revision);
            agent.handle(Input::Watched { header, events }, at(10));
        };
        watch(&mut agent, "[]", 6);
        assert_eq!(updates(&mut agent), []);
        watch(&mut agent, NETWORK, 7);
        let told = updates(&mut agent);
        let [UpdateKind::Full { entries, .. }] = &told[..] else {
            panic!("{told:?}");
        };
        assert_eq!(entries.len(), 1);
    }
}

#[test]
fn another_configuration_of_the_network_is_claimed_anew() {
    let mut agent = settled();
    let ports = |agent: &mut Agent| -> Vec<u16> {
        let claims = notices(agent).into_iter();
        let claims = claims.filter_map(|notice| match notice {
            Notice::Claimed { network, .. } => Some(network),
            Notice::Alarm(_) | Notice::Left => None,
        });
        claims
            .map(|network| match network.backend {
                Backend::Vxlan(vxlan) => vxlan.port,
                Backend::Ipip { .. } | Backend::HostGw | Backend::Udp { .. } => 0,
            })
            .collect()
    };
    assert_eq!(ports(&mut agent), [8472]);
    let other = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":4789}}"#;
    let events = vec![WatchEvent::Put(kv("config", other, 6, 0))];
    let header = header(6);
    agent.handle(Input::Watched { header, events }, at(10));
    agent.poll_request(at(10));
    assert_eq!(ports(&mut agent), [4789]);
}

#[test]
fn a_write_that_never_happens_is_tried_less_and_less() {
    let mut agent = agent();
    list(&mut agent, 5, vec![kv("config", NETWORK, 2, 0)], at(0));
    let (mut now, mut puts, mut lists, mut last) = (0, 0, 0, 0);
    let mut pauses = Vec::new();
    while now < 60_000 {
        let Some(request) = agent.poll_request(at(now)) else {
            let next = agent.poll_timeout().expect("pings go on");
            assert!(next > at(now), "turns without end at {now} ms");
            now = next.since(Time::ZERO).as_millis().try_into().unwrap();
            continue;
        };
        let header = header(5);
        let answer = match request {
            Request::List => {
                lists += 1;
                let kvs = vec![kv("config", NETWORK, 2, 0)];
                Answer::Listed { header, kvs }
            }
            Request::Count => Answer::Counted { header, count: 1 },
            Request::Ping { .. } => Answer::Pong {
                header,
                mod_revision: Some(2),
            },
            Request::Grant { ttl_s } => Answer::Granted { lease: 9, ttl_s },
            Request::Put { .. } => {
                puts += 1;
                pauses.push(now - last);
                last = now;
                let succeeded = false;
                Answer::Written { header, succeeded }
            }
            Request::Renew { .. } | Request::Revoke { .. } | Request::Delete { .. } => {
                panic!("{request:?}")
            }
        };
        agent.handle(Input::Answer(Ok(answer)), at(now));
    }
    assert_eq!(pauses[..5], [0, 100, 200, 400, 800]);
    assert_eq!(*pauses.last().unwrap(), 10_000);
    assert_eq!(lists, puts);
}

#[test]
fn a_write_that_happens_ends_the_pauses() {
    let mut agent = agent();
    let now = at(0);
    list(&mut agent, 5, vec![kv("config", NETWORK, 2, 0)], now);
    grant(&mut agent, now);
    let put = agent.poll_request(now);
    assert!(matches!(put, Some(Request::Put { .. })), "{put:?}");
    let written = |revision, succeeded| {
        let header = header(revision);
        Input::Answer(Ok(Answer::Written { header, succeeded }))
    };
    agent.handle(written(5, false), now);
    list(&mut agent, 6, vec![kv("config", NETWORK, 2, 0)], now);
    assert_eq!(agent.poll_request(now), None);
    assert_eq!(agent.poll_timeout(), Some(at(100)));
    let put = agent.poll_request(at(100));
    assert!(matches!(put, Some(Request::Put { .. })), "{put:?}");
    agent.handle(written(7, true), at(100));
    assert_eq!(agent.poll_request(at(100)), None);
    assert!(agent.subnet().is_some());
    // The next one that does not happen is again the first: the node is at another address.
    let public_ip = [192, 0, 2, 2].into();
    agent.handle(Input::Own(OwnNode { public_ip, ..own() }), at(1000));
    let put = agent.poll_request(at(1000));
    assert!(matches!(put, Some(Request::Put { .. })), "{put:?}");
    agent.handle(written(8, false), at(1000));
    assert_eq!(agent.claim.poll_timeout(at(1000)), Some(at(1100)));
}

/// The subnet that a node asks for in a network where three are handed out.
fn asked_for(network: &str, keys: &[&str]) -> Option<String> {
    let mut agent = agent();
    let mut kvs = vec![kv("config", network, 2, 0)];
    kvs.extend(keys.iter().map(|key| kv(key, "of somebody", 3, 8)));
    list(&mut agent, 5, kvs, at(0));
    grant(&mut agent, at(0));
    let Some(Request::Put { key, .. }) = agent.poll_request(at(0)) else {
        return None;
    };
    Some(key.rsplit_once('/')?.1.to_owned())
}

#[test]
fn an_address_that_any_key_begins_with_is_not_asked_for() {
    let single = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0",
        "Backend":{"Type":"vxlan"}}"#;
    let strays = ["subnets/10.5.1.0-31", "subnets/10.5.2.0-024"];
    assert_eq!(asked_for(single, &strays).as_deref(), Some("10.5.3.0-24"));
    let all = [strays[0], strays[1], "subnets/10.5.3.0-$(reboot)"];
    assert_eq!(asked_for(single, &all), None);
    // The nodes of before the network had IPv6 keep their addresses until they are new, too.
    let dual = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0",
        "EnableIPv6":true,"IPv6Network":"fc00:5::/48","Backend":{"Type":"vxlan"}}"#;
    let old = ["subnets/10.5.1.0-24", "subnets/10.5.3.0-24"];
    let key = asked_for(dual, &old).expect("there is room");
    assert!(key.starts_with("10.5.2.0-24&fc00:5:"), "{key}");
}

#[test]
fn a_second_name_of_a_subnet_is_no_subnet() {
    let mut agent = settled();
    let twin = kv("subnets/10.5.99.0-024", &own_lease(NETWORK), 6, 8);
    let (header, events) = (header(6), vec![WatchEvent::Put(twin)]);
    agent.handle(Input::Watched { header, events }, at(10));
    assert_eq!(agent.poll_request(at(10)), None);
}

#[test]
fn a_lease_is_renewed_while_nothing_is_written() {
    let mut agent = settled();
    let kvs = vec![
        kv("config", NETWORK, 2, 0),
        kv("subnets/10.5.1.0-24", &own_lease(NETWORK), 3, 9),
        kv("subnets/10.5.99.0-24", &own_lease(NETWORK), 6, 8),
    ];
    let (header, events) = (header(6), vec![WatchEvent::Put(kvs[2].clone())]);
    let before = at(3_599_950);
    agent.handle(Input::Watched { header, events }, before);
    let deletion = agent.poll_request(before);
    assert!(matches!(deletion, Some(Request::Delete { .. })));
    let succeeded = false;
    agent.handle(
        Input::Answer(Ok(Answer::Written { header, succeeded })),
        before,
    );
    list(&mut agent, 6, kvs, before);
    assert_eq!(agent.poll_request(before), None);
    let due = agent.poll_request(at(3_600_000));
    assert_eq!(due, Some(Request::Renew { lease: 9 }));
}

#[test]
fn what_is_to_be_said_soon_after_something_else_is_said_later() {
    let mut agent = agent();
    assert_eq!(agent.poll_request(at(0)), Some(Request::List));
    let nobody = Failure::Unreachable("nobody".to_owned());
    agent.handle(Input::Answer(Err(nobody)), at(0));
    assert_eq!(notices(&mut agent), [Notice::Alarm("nobody".to_owned())]);
    list(&mut agent, 5, Vec::new(), at(1000));
    assert_eq!(notices(&mut agent), []);
    let mut now = at(1000);
    while now < at(10_000) {
        match agent.poll_request(now) {
            Some(Request::Ping { .. }) => {
                let (header, mod_revision) = (header(5), None);
                let pong = Answer::Pong {
                    header,
                    mod_revision,
                };
                agent.handle(Input::Answer(Ok(pong)), now);
            }
            Some(request) => panic!("{request:?}"),
            None => now = agent.poll_timeout().expect("pings go on"),
        }
    }
    assert_eq!(now, at(10_000));
    agent.poll_request(now);
    let text = "there is no network configuration yet".to_owned();
    assert_eq!(notices(&mut agent), [Notice::Alarm(text)]);
}

#[test]
fn of_what_is_refused_little_is_kept_and_all_is_named() {
    let mut agent = agent();
    let padded = |spaces| format!("{}{}", own_lease(NETWORK), " ".repeat(spaces));
    let long = "x".repeat(1 << 20);
    let kvs = vec![
        kv("config", &format!("{NETWORK}{}", " ".repeat(8 << 10)), 2, 0),
        kv("subnets/10.5.7.0-24", &padded(3 << 10), 3, 8),
        kv("subnets/10.5.8.0-24", &padded(4 << 10), 3, 8),
        kv("subnets/odd", &padded(0), 3, 8),
        kv(&format!("subnets/{long}1"), &padded(0), 3, 8),
        kv(&format!("subnets/{long}2"), &padded(0), 3, 8),
    ];
    let octets = |agent: &Agent| -> usize {
        let subnets = agent.copy.subnets.iter();
        let octets = subnets.map(|(name, kv)| {
            let value = match &kv.value {
                Value::Octets(octets) => octets.len(),
                Value::TooLarge => 0,
            };
            name.len() + kv.key.len() + value
        });
        octets.sum()
    };
    list(&mut agent, 5, kvs, at(0));
    let all = octets(&agent);
    assert!(all < (4 << 10) + 3 * 512, "{all}");
    let told = updates(&mut agent);
    let [UpdateKind::Full { entries, .. }] = &told[..] else {
        panic!("{told:?}");
    };
    let mut faults: Vec<&str> = entries
        .iter()
        .filter_map(|entry| match &entry.content {
            Content::Refused(refusal) => Some(refusal.name),
            Content::Remote(_) | Content::Own(_) => None,
        })
        .collect();
    faults.sort_unstable();
    assert_eq!(entries.len(), 5);
    let syntax = "key-syntax";
    assert_eq!(faults, [syntax, syntax, syntax, "too-large"]);
    let key = kv(&format!("subnets/{long}1"), "", 6, 0).key;
    let (header, events) = (header(6), vec![WatchEvent::Delete { key, revision: 6 }]);
    agent.handle(Input::Watched { header, events }, at(10));
    assert_eq!(agent.copy.len(), 5);
}

#[test]
fn beyond_what_is_kept_nothing_is_compared_but_everything_is_when_there_is_room() {
    let keys_max = 4;
    let settings = AgentSettings {
        keys_max,
        ..AgentSettings::default()
    };
    let mut agent = Agent::new(settings, own());
    let strange = |n: u64| kv(&format!("subnets/10.5.{n}.0-24"), "of somebody", n, 0);
    list(&mut agent, 9, (2..10).map(strange).collect(), at(0));
    let put = strange(10);
    let (now, events) = (at(10), vec![WatchEvent::Put(put)]);
    let watched = |revision, events| {
        let header = header(revision);
        Input::Watched { header, events }
    };
    agent.handle(watched(10, events), now);
    assert_eq!(agent.copy.len(), keys_max);
    // What is asked besides pings, when there are so many keys.
    let asked = |agent: &mut Agent, count, revision, now| loop {
        let header = header(revision);
        let mod_revision = None;
        let answer = match agent.poll_request(now) {
            Some(Request::Count) => Answer::Counted { header, count },
            Some(Request::Ping { .. }) => Answer::Pong {
                header,
                mod_revision,
            },
            other => break other,
        };
        agent.handle(Input::Answer(Ok(answer)), now);
    };
    for minute in 1..10 {
        assert_eq!(asked(&mut agent, 9, 10, at(minute * 61_000)), None);
    }
    let text = format!("there are 4 keys or more below {PREFIX}; beyond these none is seen");
    assert!(notices(&mut agent).contains(&Notice::Alarm(text)));
    // One that was kept is gone: there is room for one that was not.
    let (key, revision) = (strange(2).key, 11);
    let events = vec![WatchEvent::Delete { key, revision }];
    agent.handle(watched(11, events), at(610_000));
    assert_eq!(agent.copy.len(), 3);
    assert_eq!(asked(&mut agent, 8, 11, at(620_000)), None);
    assert_eq!(asked(&mut agent, 8, 11, at(630_000)), Some(Request::List));
    let header = header(11);
    let kvs = (3..12).map(strange).collect();
    agent.handle(
        Input::Answer(Ok(Answer::Listed { header, kvs })),
        at(630_000),
    );
    assert_eq!(agent.copy.len(), keys_max);
    // The configuration has room always.
    let config = vec![WatchEvent::Put(kv("config", NETWORK, 12, 0))];
    agent.handle(watched(12, config), at(640_000));
    assert!(agent.network().is_some());
}

#[test]
fn a_failure_that_is_over_is_not_announced_any_more() {
    let mut agent = agent();
    let alarm = |text: &str| Notice::Alarm(text.to_owned());
    let fail = |agent: &mut Agent, failure, ms| {
        assert_eq!(agent.poll_request(at(ms)), Some(Request::List));
        agent.handle(Input::Answer(Err(failure)), at(ms));
    };
    let unreachable = |why: &str| Failure::Unreachable(why.to_owned());
    fail(&mut agent, unreachable("nobody"), 0);
    assert_eq!(notices(&mut agent), [alarm("nobody")]);
    fail(&mut agent, unreachable("timeout"), 1_000);
    list(&mut agent, 5, vec![kv("config", NETWORK, 2, 0)], at(2_000));
    let granted = |agent: &mut Agent, now| {
        let asked = agent.poll_request(now);
        assert!(matches!(asked, Some(Request::Grant { .. })), "{asked:?}");
    };
    granted(&mut agent, at(11_000));
    assert_eq!(notices(&mut agent), [], "it was over before its time came");

    // A write that is refused while lists are answered is said, and once.
    let refused = || Failure::Refused("no permission".to_owned());
    agent.handle(Input::Answer(Err(refused())), at(11_000));
    assert_eq!(notices(&mut agent), [alarm("no permission")]);
    for s in [30, 60] {
        list(
            &mut agent,
            5,
            vec![kv("config", NETWORK, 2, 0)],
            at(s * 1000),
        );
        granted(&mut agent, at(s * 1000));
        agent.handle(Input::Answer(Err(refused())), at(s * 1000));
    }
    assert_eq!(notices(&mut agent), []);

    // What nobody answered is news when it comes back.
    fail(&mut agent, unreachable("nobody"), 70_000);
    list(&mut agent, 5, vec![kv("config", NETWORK, 2, 0)], at(71_000));
    agent.handle(
        Input::WatchEnded {
            why: "it fell".to_owned(),
        },
        at(81_000),
    );
    fail(&mut agent, unreachable("nobody"), 92_000);
    let told = ["nobody", "the watch ended: it fell", "nobody"];
    assert_eq!(notices(&mut agent), told.map(alarm));
}

#[test]
fn a_network_without_ipv4_is_the_reason_that_there_is_no_subnet() {
    let network = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48",
        "Backend":{"Type":"vxlan"}}"#;
    let mut agent = agent();
    list(&mut agent, 5, vec![kv("config", network, 2, 0)], at(0));
    let asked = agent.poll_request(at(0));
    assert!(!matches!(asked, Some(Request::Grant { .. })), "{asked:?}");
    let why = "the network has no IPv4, without which etcd's keys name no subnet";
    assert_eq!(notices(&mut agent), [Notice::Alarm(why.to_owned())]);
}

#[test]
fn where_not_all_is_kept_a_write_that_does_not_happen_costs_no_list() {
    for (keys_max, lists) in [(4, false), (5, true)] {
        let settings = AgentSettings {
            keys_max,
            ..AgentSettings::default()
        };
        let mut agent = Agent::new(settings, own());
        let others = (2..5).map(|n| kv(&format!("subnets/10.5.{n}.0-24"), "of somebody", n, 0));
        let kvs = std::iter::once(kv("config", NETWORK, 2, 0)).chain(others);
        list(&mut agent, 9, kvs.collect(), at(0));
        grant(&mut agent, at(0));
        let asked = agent.poll_request(at(0));
        assert!(matches!(asked, Some(Request::Put { .. })), "{asked:?}");
        let (header, succeeded) = (header(10), false);
        let answer = Answer::Written { header, succeeded };
        agent.handle(Input::Answer(Ok(answer)), at(0));
        let asked = agent.poll_request(at(200));
        assert_eq!(asked == Some(Request::List), lists, "{asked:?}");
    }
}
