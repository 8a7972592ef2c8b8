//! A restart: packets are forwarded by what is remembered before it is decided again, and what is
//! decided is the same.

use std::path::Path;
use std::sync::Arc;

use warren_core::encap::Encapsulation;
use warren_core::tables::{NextHop, Tables};
use warren_core::units::{MacAddr, Vni};

use super::*;
use crate::rib::{Content, Continuity, Entry, Remote, RemoteRoute, UpdateKind, Via};
use crate::snapshot::StateFile;

fn loaded(directory: &Path, more: &str) -> Loaded {
    let text = format!(
        "[node]\nname = \"alpha\"\nunderlay = [\"192.0.2.1\"]\n\
         [etcd]\nendpoints = [\"http://192.0.2.9:2379\"]\n[state]\nfile = \"{}/state\"\n{more}",
        directory.display()
    );
    Loaded {
        config: Config::parse(&text, "node.toml").expect("valid"),
        files: Vec::new(),
    }
}

fn core(directory: &Path, more: &str) -> Core {
    Core::new(loaded(directory, more), directory.join("node.toml"), true)
}

/// One of `count` leases; every tenth node has more than one, and one is this node's own.
fn entry(number: u32) -> Entry {
    let [_, _, high, low] = (number - number % 10 / 9).to_be_bytes();
    let via = Via {
        remote: [198, 18, high, low].into(),
        encapsulation: Some(Encapsulation::Vxlan {
            vni: Vni::new(1).expect("a small number"),
            port: 8472,
            mac: MacAddr::new([2, 0, 0, 0, high, low]),
        }),
        underlay_mtu: None,
    };
    let address = (0x0a40_0000 + number * 64).to_be_bytes();
    let prefix = IpNet::new(address.into(), 26).expect("a length");
    let remote = Arc::new(Remote {
        node: Arc::from(via.remote.to_string()),
        routes: vec![RemoteRoute { prefix, via }],
    });
    Entry {
        key: Arc::from(prefix.to_string()),
        rank: number.into(),
        content: if number == 1 {
            Content::Own(remote)
        } else {
            Content::Remote(remote)
        },
    }
}

fn learn(core: &mut Core, entries: Vec<Entry>) {
    core.handle(vec![Event::Update(SourceUpdate {
        source: SourceKind::Etcd,
        kind: UpdateKind::Full {
            entries,
            position: 5,
            continuity: Continuity::Same,
        },
    })]);
    core.publish();
}

/// Has the state written and ends the node without another word.
fn kill(mut core: Core) {
    let (now, leases) = (core.now(), core.leases());
    let memory = core.memory.as_mut().expect("a directory of ours");
    memory.save(&core.reconciler, leases, Vec::new(), now);
}

/// Every route with where it leads, by names and not by numbers.
fn table(tables: &Tables) -> Vec<String> {
    let line = |prefix: IpNet, next_hop: Option<&NextHop>| match next_hop {
        Some(NextHop::Tunnel(tunnel)) => {
            let name = &tables.peer(tunnel.peer).expect("it is there").name;
            let (remote, encapsulation, mtu) = (tunnel.remote, tunnel.encapsulation, tunnel.mtu);
            format!("{prefix} {name} {remote} {encapsulation:?} {mtu:?}")
        }
        other => format!("{prefix} {other:?}"),
    };
    let v4 = tables.fib_v4().iter();
    let v4 = v4.map(|(prefix, hop)| line(prefix.into(), tables.next_hop(hop)));
    let v6 = tables.fib_v6().iter();
    v4.chain(v6.map(|(prefix, hop)| line(prefix.into(), tables.next_hop(hop))))
        .collect()
}

fn tables(core: &Core) -> Arc<Tables> {
    core.rib.reader().tables()
}

#[test]
fn ten_thousand_routes_are_in_the_tables_before_they_are_decided_and_stay_as_they_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut before = core(directory.path(), "");
    let mut entries: Vec<Entry> = (0..10_000).map(entry).collect();
    // One that stands behind another is not routed, neither before nor after.
    let mut behind = entry(77);
    behind.key = Arc::from("zz");
    behind.rank = 1_000_000;
    entries.push(behind);
    learn(&mut before, entries);
    let then = table(&tables(&before));
    assert_eq!(then.len(), 10_000);
    kill(before);

    let mut after = core(directory.path(), "");
    let recalled = tables(&after);
    assert_eq!(after.reconciler.routes().count(), 0, "nothing is decided");
    assert_eq!(table(&recalled), then);
    // The book follows when it is decided, and what workers have is not touched.
    assert_eq!(after.rib.reader().counts().0, 0);
    after.confirm_routes();
    after.publish();
    assert_eq!(after.reconciler.routes().count(), 10_000);
    assert_eq!(after.rib.reader().counts(), (10_000, 8999));
    assert!(Arc::ptr_eq(&tables(&after), &recalled));
    // And what the source says in the end, changes nothing but what it changes.
    learn(
        &mut after,
        (0..10_000).filter(|n| *n != 4711).map(entry).collect(),
    );
    let mut less = then;
    less.remove(4711);
    assert_eq!(table(&tables(&after)), less);
}

#[test]
fn a_file_that_says_otherwise_is_asked_before_a_packet_is_forwarded() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut before = core(directory.path(), "");
    learn(&mut before, (0..20).map(entry).collect());
    kill(before);
    let peer = "[[peers]]\nname = \"beta\"\naddress = \"192.0.2.2\"\nencap = \"ipip\"\n\
                prefixes = [\"10.64.0.128/26\"]\n";
    let mut after = core(directory.path(), peer);
    assert_eq!(after.reconciler.routes().count(), 20, "all is decided");
    let lines = table(&tables(&after));
    assert!(
        lines[2].starts_with("10.64.0.128/26 beta 192.0.2.2"),
        "{lines:?}"
    );
    let epoch = tables(&after).epoch();
    after.confirm_routes();
    after.publish();
    assert_eq!(tables(&after).epoch(), epoch);
}

#[test]
fn what_was_routed_but_does_not_follow_any_more_is_set_right() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut before = core(directory.path(), "");
    learn(&mut before, (0..20).map(entry).collect());
    kill(before);
    // As another version of the program would have decided.
    let file = StateFile::new(directory.path().join("state"));
    let (mut saved, _) = file.load().state.expect("it was saved");
    let recall = saved.recall.as_mut().expect("what was routed is there");
    assert_eq!(recall.routes.len(), 20);
    let foreign: IpNet = "10.99.0.0/24".parse().expect("a prefix");
    recall.routes.push((foreign, recall.routes[5].1));
    recall.routes[7].1 = recall.routes[6].1;
    recall.routes.remove(3);
    file.store(&saved).expect("there is room");

    let mut twin = core(tempfile::tempdir().expect("a directory").path(), "");
    learn(&mut twin, (0..20).map(entry).collect());
    let mut after = core(directory.path(), "");
    let lookup = |core: &Core| tables(core).lookup([10, 99, 0, 1].into()).is_some();
    assert!(lookup(&after));
    let epoch = tables(&after).epoch();
    after.confirm_routes();
    after.publish();
    assert!(tables(&after).epoch() > epoch && !lookup(&after));
    assert_eq!(table(&tables(&after)), table(&tables(&twin)));
    assert_eq!(after.rib.reader().counts(), twin.rib.reader().counts());
}

#[test]
fn a_node_lacks_a_subnet_until_it_has_or_remembers_one_where_a_source_gives_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let inlet = |loaded: Loaded| PlaneInlet::new(loaded, directory.path().join("node.toml"), true);
    let waiting = inlet(loaded(directory.path(), ""));
    assert!(waiting.alarms().lacks_subnet());
    assert_eq!(waiting.alarms().alarms(), ["no subnet claimed yet"]);
    let mut alone = loaded(directory.path(), "");
    alone.config.sources.etcd = None;
    assert!(!inlet(alone).alarms().lacks_subnet());
}

#[test]
fn a_state_that_has_no_place_is_an_alarm() {
    let directory = tempfile::tempdir().expect("a directory");
    // A file stands where the directory of the state should be.
    let file = directory.path().join("file");
    std::fs::write(&file, "").expect("written");
    let mut loaded = loaded(&file, "");
    loaded.config.sources.etcd = None;
    let inlet = PlaneInlet::new(loaded, directory.path().join("node.toml"), true);
    let alarms = inlet.alarms().alarms();
    let is_told = |alarm: &String| alarm.contains("is not kept across a restart");
    assert!(
        alarms.len() == 1 && alarms.iter().all(is_told),
        "{alarms:?}"
    );
}
