//! The thread under a flood.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use warren_core::units::{Mtu, Vni};

use super::*;
use crate::config::Loaded;
use crate::plane::PlaneInlet;
use crate::rib::PeerSpec;

const OWN: [u8; 4] = [127, 0, 0, 1];
const PEER: [u8; 4] = [127, 0, 0, 2];

fn started() -> Paths {
    let text = "[node]\nname = \"alpha\"\nunderlay = [\"127.0.0.1\"]\n\
                allow-loopback-underlay = true\nprefixes = [\"10.244.1.0/24\"]\n\
                [device]\naddresses = [\"10.244.1.1/24\"]\n";
    let loaded = Loaded {
        config: Config::parse(text, "node.toml").expect("valid"),
        files: Vec::new(),
    };
    let config = loaded.config.clone();
    let plane = PlaneInlet::new(loaded, PathBuf::from("node.toml"), true);
    let inlet = PathsInlet::new().expect("a poll");
    let parts = PathsParts {
        config,
        tables: plane.reader(),
        plane: plane.sender(),
        seed: 7,
        rows: Arc::default(),
        inject: Box::new(|_| true),
    };
    let paths = inlet.start(parts).expect("a thread");
    let beta = PeerSpec {
        name: "beta".to_owned(),
        address: PEER.into(),
        ways: vec![Encapsulation::Vxlan {
            vni: Vni::new(1).expect("24 bits"),
            port: 8472,
            mac: MacAddr::default(),
        }],
        mtu: Mtu::new(1450),
        underlay_mtu: Mtu::ETHERNET,
        probe_address: None,
        probe: true,
    };
    let prefixes = vec!["10.244.2.0/24".parse().expect("a prefix")];
    let put = PeerChange::Put(beta, prefixes);
    paths.sender.peers(vec![put]);
    paths
}

/// What a worker hands over for a question that somebody sent in the peer's name.
fn question() -> (Vec<u8>, Link) {
    let message = Message {
        kind: Kind::Question,
        encapsulation: 0,
        octets: 100,
        token: 1,
        takes_rows: false,
    };
    let (asker, asked) = ([10, 244, 2, 0].into(), [10, 244, 1, 1].into());
    let inner = packet::inner(asker, asked, Carrier::Message, message, 0);
    let link = Link {
        local: OWN.into(),
        remote: PEER.into(),
        ..Link::LOCAL
    };
    (inner.expect("one family"), link)
}

#[test]
fn a_flood_of_questions_keeps_nothing_else_from_being_done() {
    let paths = started();
    let is_over = Arc::new(AtomicBool::new(false));
    let flood = {
        let (sender, is_over) = (paths.sender.clone(), Arc::clone(&is_over));
        let (inner, link) = question();
        std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                sender.arrived(&inner, &link);
            }
        })
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let report = paths.sender.report().expect("an answer in time");
        // Nobody is there: probes leave, and what does not come back is found missing.
        if report.peers.iter().any(|peer| peer.ways[0].state == "down") {
            break;
        }
        assert!(Instant::now() < deadline, "{report:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let preferred = paths.sender.prefer(None, Some("vxlan".to_owned()));
    assert!(preferred.is_ok(), "{preferred:?}");
    let stopping = Instant::now();
    drop(paths);
    assert!(stopping.elapsed() < Duration::from_secs(1));
    is_over.store(true, Ordering::Relaxed);
    flood.join().expect("it ends");
}
