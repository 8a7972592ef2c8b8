//! The agent on its own: answers and events in, requests, updates and notices out.

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
    Kv {
        key: format!("{PREFIX}/{name}").into_bytes(),
        value: Value::of(value.as_bytes().to_vec()),
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
    assert!(matches!(
        agent.poll_request(at(0)),
        Some(Request::Grant { .. })
    ));
    let granted = Answer::Granted {
        lease: 9,
        ttl_s: 86_400,
    };
    agent.handle(Input::Answer(Ok(granted)), at(0));
    agent
}

fn notices(agent: &mut Agent) -> Vec<Notice> {
    std::iter::from_fn(|| agent.poll_notice()).collect()
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
