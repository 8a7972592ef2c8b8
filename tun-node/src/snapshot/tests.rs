//! Whatever happens to a state file: the state before it, or none, and never another one.

use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::sync::Arc;

use warren_core::encap::Encapsulation;
use warren_core::units::{Time, Vni};

use super::codec::{CHECKSUM_AT, HEADER_OCTETS, Moment, decode, decode_head, encode, seal};
use super::file::{FILE_OCTETS_MAX, moment};
use super::*;
use crate::rib::{
    Content, Event, Identity, RecallWay, Reconciler, Refusal, Remote, RemoteRoute, Settings, Via,
};

fn entry(number: u32) -> Entry {
    let [_, high, middle, low] = number.to_be_bytes();
    let mac = MacAddr::new([2, 0, 0, high, middle, low]);
    let vni = Vni::new(1).expect("in range");
    let encapsulation = match number % 7 {
        0 => Some(Encapsulation::Geneve {
            vni,
            port: 6081,
            mac,
        }),
        1 => Some(Encapsulation::Ipip),
        2 => Some(Encapsulation::Fou { port: 5555 }),
        3 => Some(Encapsulation::Gue { port: 6080 }),
        4 => Some(Encapsulation::VxlanGpe { vni, port: 4790 }),
        5 => None,
        _ => Some(Encapsulation::Vxlan {
            vni,
            port: 8472,
            mac,
        }),
    };
    let via = Via {
        remote: IpAddr::from([192, high, middle, low]),
        encapsulation,
        underlay_mtu: number.is_multiple_of(2).then(|| Mtu::new(1500)),
    };
    let prefix = IpNet::new(IpAddr::from([10, high, middle, low]), 32).expect("a prefix");
    let mut routes = vec![RemoteRoute { prefix, via }];
    if number.is_multiple_of(3) {
        let address = IpAddr::from([
            0xfd00,
            0,
            0,
            0,
            u16::from(high),
            u16::from(middle),
            u16::from(low),
            0,
        ]);
        let prefix = IpNet::new(address, 112).expect("a prefix");
        routes.push(RemoteRoute { prefix, via });
    }
    let remote = Arc::new(Remote {
        node: Arc::from(format!("node-{number}")),
        routes,
    });
    Entry {
        key: Arc::from(format!("10.{high}.{middle}.{low}-32")),
        rank: u64::from(number),
        content: if number == 11 {
            Content::Own(remote)
        } else {
            Content::Remote(remote)
        },
    }
}

/// A way for every two routes; the first is this node's own.
fn recalled(entries: u32) -> Recall {
    let routed = (1..=entries).flat_map(|number| match entry(number).content {
        Content::Remote(remote) | Content::Own(remote) => remote.routes.clone(),
        Content::Refused(_) => Vec::new(),
    });
    let mut recall = Recall {
        basis: 0x1234_5678_9abc_def0,
        ..Recall::default()
    };
    for (place, route) in (0..).zip(routed) {
        if place % 2 == 0 {
            recall.ways.push(RecallWay {
                source: SourceKind::Etcd,
                node: Arc::from(format!("node-{place}")),
                via: (place > 0).then_some(route.via),
            });
        }
        recall.routes.push((route.prefix, place / 2));
    }
    recall
}

fn state(entries: u32) -> Saved {
    let scope = "http://127.0.0.1:2379 /coreos.com/network".to_owned();
    Saved {
        node: "alpha".to_owned(),
        sources: vec![
            SavedSource {
                source: SourceKind::Etcd,
                scope: scope.clone(),
                position: 1234,
                age: Duration::from_secs(7),
                entries: (1..=entries).map(entry).collect(),
            },
            SavedSource {
                source: SourceKind::File,
                scope: String::new(),
                position: 0,
                age: Duration::ZERO,
                entries: vec![entry(900_000)],
            },
        ],
        recall: Some(recalled(entries)),
        leases: vec![SavedLease {
            source: SourceKind::Etcd,
            scope,
            prefixes: vec!["10.9.0.0/24".parse().expect("a prefix")],
            vteps: vec![(Family::V4, MacAddr::new([2, 0, 0, 0, 0, 9]))],
            network: r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#.to_owned(),
        }],
        paths: vec![SavedPath {
            peer: "beta".to_owned(),
            underlay_mtu: Mtu::new(1400),
        }],
    }
}

/// A state whose file has exactly 4096 octets.
fn state_of_4_kib() -> Saved {
    let mut saved = state(1);
    let now = moment();
    let mut number = 1;
    while encode(&saved, &now).len() + 400 < 4096 {
        number += 1;
        saved.sources[0].entries.push(entry(number));
    }
    while encode(&saved, &now).len() < 4096 {
        saved.leases[0].network.push(' ');
    }
    assert_eq!(encode(&saved, &now).len(), 4096);
    saved
}

fn directory() -> (tempfile::TempDir, StateFile) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = StateFile::new(directory.path().join("state"));
    (directory, file)
}

fn at_boot(seconds: u64) -> Moment {
    Moment {
        boot: "a".to_owned(),
        since_boot: Duration::from_secs(seconds),
        wall: Duration::from_secs(1_000_000 + seconds),
    }
}

#[test]
fn what_was_saved_is_loaded_with_its_age() {
    let saved = state(500);
    let octets = encode(&saved, &at_boot(100));
    let mut loaded = decode(&octets, &at_boot(130)).expect("it is whole");
    for source in &mut loaded.sources {
        source.age -= Duration::from_secs(30);
    }
    assert_eq!(loaded, saved);
}

#[test]
fn the_age_follows_the_boot_clock_and_across_boots_the_wall_clock_unless_that_went_back() {
    let octets = encode(&state(1), &at_boot(100));
    let age = |now: &Moment| {
        decode(&octets, now).expect("whole").sources[0]
            .age
            .as_secs()
    };
    let year = Duration::from_secs(31_536_000);
    // Somebody set the wall clock, forwards or backwards, while the host ran.
    let mut stepped = at_boot(130);
    stepped.wall += year;
    assert_eq!(age(&stepped), 37);
    stepped.wall = Duration::ZERO;
    assert_eq!(age(&stepped), 37);
    // Another boot.
    let mut other = at_boot(130);
    other.boot = "b".to_owned();
    other.since_boot = Duration::from_secs(1);
    assert_eq!(age(&other), 37);
    other.wall = Duration::ZERO;
    assert_eq!(age(&other), 7);
    other.wall = Duration::from_secs(1_000_100) + year;
    assert_eq!(age(&other), 31_536_007);
}

#[test]
fn refused_entries_and_impossible_ones_are_not_saved() {
    let mut saved = state(3);
    let entries = &mut saved.sources[0].entries;
    let refusal = Refusal {
        name: "bad-mac",
        detail: "?".to_owned(),
    };
    let refused = Entry {
        content: Content::Refused(refusal),
        ..entry(4)
    };
    entries.insert(1, refused);
    let via = Via {
        remote: IpAddr::from([0, 0, 0, 0]),
        encapsulation: None,
        underlay_mtu: None,
    };
    let prefix = "10.77.0.0/24".parse().expect("a prefix");
    entries.push(Entry {
        content: Content::Remote(Arc::new(Remote {
            node: Arc::from("nowhere"),
            routes: vec![RemoteRoute { prefix, via }],
        })),
        ..entry(5)
    });
    let recall = saved.recall.as_mut().expect("it has one");
    let sound = recall.clone();
    let nowhere = RecallWay {
        source: SourceKind::Etcd,
        node: Arc::from("nowhere"),
        via: Some(via),
    };
    // In the middle, so that those behind it have other places.
    recall.ways.insert(1, nowhere);
    for (_, way) in &mut recall.routes {
        *way += u32::from(*way > 0);
    }
    recall.routes.insert(1, (prefix, 1));
    let now = at_boot(1);
    let loaded = decode(&encode(&saved, &now), &now).expect("whole");
    saved.sources[0].entries.remove(1);
    saved.sources[0].entries.truncate(3);
    saved.recall = Some(sound);
    assert_eq!(loaded, saved);
}

#[test]
fn a_route_without_a_way_is_no_state_and_the_head_of_a_file_is_all_but_the_entries() {
    let now = at_boot(1);
    let mut saved = state(3);
    let octets = encode(&saved, &now);
    let head = decode_head(&octets, &now).expect("whole");
    assert!(head.sources.iter().all(|source| source.entries.is_empty()));
    assert_eq!(head.recall, saved.recall);
    assert_eq!(head.leases, saved.leases);
    let recall = saved.recall.as_mut().expect("it has one");
    recall.routes[1].1 = u32::try_from(recall.ways.len()).expect("a few");
    let what = "the way of a route";
    let damaged = encode(&saved, &now);
    for decode in [decode, decode_head] {
        assert_eq!(decode(&damaged, &now), Err(Damage::Value { what }));
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_of_4_kib_gives_the_generation_before() {
    let (_directory, file) = directory();
    let (before, newest) = (state(2), state_of_4_kib());
    file.store(&before).expect("stored");
    file.store(&newest).expect("stored");
    let path = file.path();
    let whole = fs::read(path).expect("it is there");
    assert_eq!(whole.len(), 4096);
    let mut damaged = 0;
    let mut check = |octets: &[u8], what: &dyn Fn() -> String| {
        // In place: a new file each time would measure the file system.
        fs::write(path, octets).expect("written");
        let loaded = file.load();
        let Some((saved, generation)) = loaded.state else {
            panic!("{}: nothing left, {:?}", what(), loaded.refused);
        };
        assert_eq!(generation, Generation::Previous, "{}", what());
        assert_eq!(saved.leases, before.leases, "{}", what());
        let entries = |saved: &Saved| saved.sources[0].entries.clone();
        assert_eq!(entries(&saved), entries(&before), "{}", what());
        assert_eq!(loaded.refused.len(), 1, "{}", what());
        damaged += 1;
    };
    for length in 0..whole.len() {
        check(&whole[..length], &|| format!("cut at {length}"));
    }
    let mut octets = whole.clone();
    for bit in 0..whole.len() * 8 {
        octets[bit / 8] ^= 1 << (bit % 8);
        check(&octets, &|| format!("bit {bit}"));
        octets[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(damaged, 4096 + 32_768);
    fs::write(path, &whole).expect("written");
    assert!(matches!(file.load().state, Some((_, Generation::Newest))));
}

#[test]
fn a_flipped_bit_under_a_right_checksum_is_a_possible_state_or_none() {
    let now = at_boot(1);
    let whole = encode(&state_of_4_kib(), &now);
    let mut refused = 0;
    for bit in HEADER_OCTETS * 8..whole.len() * 8 {
        let mut octets = whole.clone();
        octets[bit / 8] ^= 1 << (bit % 8);
        seal(&mut octets);
        let Ok(saved) = decode(&octets, &now) else {
            refused += 1;
            continue;
        };
        for entry in saved.sources.iter().flat_map(|source| &source.entries) {
            let (Content::Remote(remote) | Content::Own(remote)) = &entry.content else {
                panic!("bit {bit}: {entry:?}");
            };
            assert!(!remote.routes.is_empty(), "bit {bit}");
            for route in &remote.routes {
                assert_eq!(route.prefix, route.prefix.trunc(), "bit {bit}");
                assert!(!route.via.remote.is_unspecified(), "bit {bit}");
                assert!(!route.via.remote.is_multicast(), "bit {bit}");
            }
        }
    }
    assert!(refused > 3000, "{refused}");
}

#[test]
fn octets_without_sense_are_refused_whatever_they_are() {
    let now = at_boot(1);
    let mut seed = 1_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize
    };
    let whole = encode(&state(40), &now);
    for _ in 0..20_000 {
        let mut octets = whole.clone();
        octets.truncate(HEADER_OCTETS + random() % whole.len());
        for _ in 0..random() % 30 {
            let at = random() % octets.len();
            octets[at] = random().to_le_bytes()[0];
        }
        let _ = decode(&octets, &now);
        seal(&mut octets);
        // Not to panic, and not to make room for what is not there, is all that can be asked.
        let _ = decode(&octets, &now);
    }
}

#[test]
fn a_newer_version_is_named_and_a_later_section_is_passed_over() {
    let now = at_boot(1);
    let saved = state(3);
    let whole = encode(&saved, &now);
    let mut octets = whole.clone();
    octets.push(200);
    octets.extend(3_u64.to_le_bytes());
    octets.extend([1, 2, 3]);
    seal(&mut octets);
    assert_eq!(decode(&octets, &now).as_ref(), Ok(&saved));
    // A whole file of version 2 has a checksum over that number.
    let mut octets = whole;
    octets[8] = 2;
    assert_eq!(decode(&octets, &now), Err(Damage::Checksum));
    let sum = checksum::checksum(&[&octets[..CHECKSUM_AT], &octets[HEADER_OCTETS..]]);
    octets[CHECKSUM_AT..HEADER_OCTETS].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(decode(&octets, &now), Err(Damage::Version { version: 2 }));

    let (_directory, file) = directory();
    file.store(&saved).expect("stored");
    fs::write(file.path(), &octets).expect("written");
    let loaded = file.load();
    assert!(loaded.state.is_none());
    assert!(loaded.refused[0].to_string().contains("has version 2"));
}

#[test]
fn the_old_generation_is_the_last_whole_one() {
    let (_directory, file) = directory();
    assert!(file.load().state.is_none() && file.load().refused.is_empty());
    let named = |node: &str| Saved {
        node: node.to_owned(),
        ..Saved::default()
    };
    let loaded = || file.load().state.map(|(saved, _)| saved.node);
    file.store(&named("1")).expect("stored");
    file.store(&named("2")).expect("stored");
    fs::write(file.path(), "torn").expect("written");
    assert_eq!(loaded().as_deref(), Some("1"));
    // The torn one does not become the old one.
    file.store(&named("3")).expect("stored");
    fs::write(file.path(), "torn").expect("written");
    assert_eq!(loaded().as_deref(), Some("1"));
    // A crash between the two renames.
    file.store(&named("4")).expect("stored");
    fs::rename(file.path(), file.path().with_extension("old")).expect("renamed");
    assert_eq!(loaded().as_deref(), Some("4"));
    // And one in the middle of writing.
    fs::write(file.path().with_extension("new"), "half").expect("written");
    file.store(&named("5")).expect("stored");
    assert_eq!(loaded().as_deref(), Some("5"));
    let mode = fs::metadata(file.path())
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    file.remove().expect("removed");
    assert!(file.load().state.is_none());
}

#[test]
fn what_others_may_have_written_is_not_believed() {
    let (directory, file) = directory();
    file.store(&state(1)).expect("stored");
    let why = || {
        let loaded = file.load();
        assert!(loaded.state.is_none());
        loaded.refused[0].to_string()
    };
    fs::set_permissions(file.path(), Permissions::from_mode(0o620)).expect("changed");
    assert!(why().contains("other users may write it"));
    fs::set_permissions(file.path(), Permissions::from_mode(0o600)).expect("changed");
    assert!(file.load().state.is_some());
    if nix::unistd::geteuid().is_root() {
        chown(file.path(), Some(65_534), None).expect("changed");
        assert!(why().contains("belongs to another user"));
        chown(file.path(), Some(0), None).expect("changed");
    } else {
        eprintln!("skipped: giving a file away needs root");
    }
    let elsewhere = directory.path().join("elsewhere");
    fs::rename(file.path(), &elsewhere).expect("renamed");
    symlink(&elsewhere, file.path()).expect("linked");
    assert!(why().contains("opening"));
    fs::remove_file(file.path()).expect("removed");
    nix::unistd::mkfifo(file.path(), nix::sys::stat::Mode::S_IRWXU).expect("made");
    assert!(why().contains("no ordinary file"));
    fs::remove_file(file.path()).expect("removed");
    let large = fs::File::create(file.path()).expect("made");
    large.set_len(FILE_OCTETS_MAX + 1).expect("a hole");
    assert!(why().contains("more than a state file can have"));
}

#[test]
fn a_full_disk_keeps_what_was_there() {
    let (directory, file) = directory();
    file.store(&state(1)).expect("stored");
    // A directory in place of the new file cannot be written, whoever tries.
    let fresh = file.path().with_extension("new");
    fs::create_dir(&fresh).expect("made");
    let error = file.store(&state(2)).expect_err("there is no room");
    assert!(matches!(error, StateFileError::Io { .. }), "{error}");
    let (saved, generation) = file.load().state.expect("what was there");
    assert_eq!(generation, Generation::Newest);
    assert_eq!(saved.sources[0].entries.len(), 1);
    fs::remove_dir(&fresh).expect("removed");
    file.store(&state(2)).expect("there is room again");
    drop(directory);
}

#[test]
#[ignore = "a measurement: run it in a quiet machine with --release"]
fn a_hundred_thousand_routes_load_fast() {
    let (_directory, file) = directory();
    let saved = state(100_000);
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let start = std::time::Instant::now();
            work();
            best = best.min(start.elapsed());
        }
        eprintln!("{what}: {best:?}");
        best
    };
    let now = at_boot(1);
    let octets = encode(&saved, &now);
    eprintln!("{} octets", octets.len());
    timed("encode", &mut || drop(encode(&saved, &now)));
    timed("store", &mut || file.store(&saved).expect("stored"));
    timed("verify", &mut || drop(codec::verify(&octets)));
    timed("decode", &mut || drop(decode(&octets, &now)));
    let load = timed("load", &mut || assert!(file.load().state.is_some()));
    let mut routes = 0;
    timed("restore", &mut || {
        let (loaded, _) = file.load().state.expect("it is there");
        let start = std::time::Instant::now();
        let mut reconciler = Reconciler::new(Settings::default(), Identity::default());
        for source in loaded.sources {
            let event = Event::Restore {
                source: source.source,
                entries: source.entries,
                age: source.age,
            };
            routes += reconciler.handle(event, Time::ZERO).routes.len();
        }
        eprintln!("of it the reconciler: {:?}", start.elapsed());
    });
    eprintln!("{routes} changes of routes in five rounds");
    assert!(load < Duration::from_millis(100), "{load:?}");
}
