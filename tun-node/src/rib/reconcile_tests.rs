//! What sources say, and what comes of it.

use std::net::IpAddr;

use warren_core::encap::Encapsulation;
use warren_core::units::{MacAddr, Vni};

use super::*;
use crate::rib::update::{Remote, RemoteRoute, Via};

const ETCD: SourceKind = SourceKind::Etcd;

fn entry(number: u16, mac: u8) -> Entry {
    let [high, low] = number.to_be_bytes();
    let via = Via {
        remote: IpAddr::from([192, 0, high, low]),
        encapsulation: Some(Encapsulation::Vxlan {
            vni: Vni::new(1).unwrap(),
            port: 8472,
            mac: MacAddr::new([2, 0, 0, high, low, mac]),
        }),
        underlay_mtu: None,
    };
    let prefix = IpNet::new(IpAddr::from([10, high, low, 0]), 24).unwrap();
    let remote = Remote {
        node: Arc::from(format!("node-{number}")),
        routes: vec![RemoteRoute { prefix, via }],
    };
    Entry {
        key: key(number),
        rank: u64::from(number),
        content: Content::Remote(Arc::new(remote)),
    }
}

fn poison(number: u16) -> Entry {
    let refusal = Refusal {
        name: "bad-mac",
        detail: "?".to_owned(),
    };
    Entry {
        content: Content::Refused(refusal),
        ..entry(number, 0)
    }
}

fn key(number: u16) -> Arc<str> {
    Arc::from(format!("{number:05}"))
}

fn full(entries: Vec<Entry>) -> Event {
    reset_or_not(entries, Continuity::Same)
}

fn reset_or_not(entries: Vec<Entry>, continuity: Continuity) -> Event {
    Event::Update(SourceUpdate {
        source: ETCD,
        kind: UpdateKind::Full {
            entries,
            position: 1,
            continuity,
        },
    })
}

fn delta(changes: Vec<Change>) -> Event {
    Event::Update(SourceUpdate {
        source: ETCD,
        kind: UpdateKind::Delta {
            changes,
            position: 2,
        },
    })
}

fn gone(numbers: impl IntoIterator<Item = u16>) -> Event {
    delta(numbers.into_iter().map(|n| Change::Gone(key(n))).collect())
}

fn at(seconds: u64) -> Time {
    Time::ZERO.after(Duration::from_secs(seconds))
}

fn with(numbers: std::ops::Range<u16>) -> Reconciler {
    let mut table = Reconciler::new(Settings::default(), Identity::default());
    let entries: Vec<Entry> = numbers.map(|n| entry(n, 0)).collect();
    let count = entries.len();
    assert_eq!(table.handle(full(entries), at(0)).routes.len(), count);
    table
}

fn status(table: &Reconciler) -> SourceStatus {
    table.sources().next().unwrap().1.clone()
}

#[test]
fn same_state_again_changes_nothing() {
    let mut table = with(0..100);
    let again = (0..100).rev().map(|n| entry(n, 0)).collect();
    assert_eq!(table.handle(full(again), at(9)), Outcome::default());
    let one = table.handle(delta(vec![Change::Put(entry(7, 1))]), at(10));
    assert_eq!(one.routes.len(), 1);
    assert!(one.routes[0].before.is_some() && one.routes[0].after.is_some());
}

#[test]
fn half_may_go_at_once_and_more_is_held_until_confirmed() {
    let mut table = with(0..1000);
    let outcome = table.handle(gone(0..500), at(10));
    assert_eq!((outcome.routes.len(), outcome.alarms.len()), (500, 0));
    let mut table = with(0..1000);
    let outcome = table.handle(gone(0..600), at(10));
    assert!(outcome.routes.is_empty());
    assert!(
        outcome.alarms[0].contains("600 of 1000"),
        "{:?}",
        outcome.alarms
    );
    assert_eq!(table.routes().count(), 1000);
    assert_eq!(
        (status(&table).held, table.poll_timeout()),
        (600, Some(at(70)))
    );
    // A wrong source confirms nothing.
    let none = table.handle(Event::Confirm(Some(SourceKind::Kube)), at(11));
    assert!(none.routes.is_empty());
    let outcome = table.handle(Event::Confirm(None), at(12));
    assert_eq!(outcome.routes.len(), 600);
    assert_eq!((table.routes().count(), table.poll_timeout()), (400, None));
}

#[test]
fn held_routes_go_after_a_minute_but_not_those_that_came_back() {
    let mut table = with(0..10);
    assert!(table.handle(full(Vec::new()), at(10)).routes.is_empty());
    let back = (0..4).map(|n| Change::Put(entry(n, 0))).collect();
    assert!(table.handle(delta(back), at(20)).routes.is_empty());
    assert!(table.handle(Event::Timeout, at(69)).routes.is_empty());
    let outcome = table.handle(Event::Timeout, at(70));
    assert_eq!(outcome.routes.len(), 6);
    assert_eq!(outcome.alarms.len(), 1);
    assert_eq!(status(&table).held, 0);
}

#[test]
fn withdrawals_in_quick_succession_count_together() {
    let mut table = with(0..10);
    assert_eq!(table.handle(gone(0..4), at(10)).routes.len(), 4);
    assert_eq!(table.handle(gone(4..8), at(10)).routes.len(), 0);
    let mut table = with(0..10);
    assert_eq!(table.handle(gone(0..4), at(10)).routes.len(), 4);
    assert_eq!(table.handle(gone(4..7), at(12)).routes.len(), 3);
}

#[test]
fn prefix_that_comes_and_goes_does_not_count_up() {
    let mut table = with(0..10);
    for _ in 0..50 {
        assert_eq!(table.handle(gone(3..4), at(10)).routes.len(), 1);
        let back = delta(vec![Change::Put(entry(3, 0))]);
        assert_eq!(table.handle(back, at(10)).routes.len(), 1);
    }
}

#[test]
fn single_withdrawal_is_never_held() {
    let mut table = with(0..1);
    assert_eq!(table.handle(gone(0..1), at(1)).routes.len(), 1);
}

#[test]
fn after_a_reset_everything_missing_is_held() {
    let mut table = with(0..10);
    let entries = (1..10).map(|n| entry(n, 0)).collect();
    let outcome = table.handle(reset_or_not(entries, Continuity::Reset), at(5));
    assert!(outcome.routes.is_empty());
    assert_eq!(status(&table).held, 1);
    assert_eq!(table.handle(Event::Timeout, at(65)).routes.len(), 1);
}

#[test]
fn held_route_yields_to_whoever_has_the_prefix_now() {
    let mut table = with(0..10);
    table.handle(full(Vec::new()), at(1));
    let mut heir = entry(77, 0);
    let Content::Remote(remote) = &mut heir.content else {
        panic!();
    };
    Arc::make_mut(remote).routes[0].prefix = "10.0.3.0/24".parse().unwrap();
    let outcome = table.handle(delta(vec![Change::Put(heir)]), at(2));
    assert_eq!(outcome.routes.len(), 1);
    assert_eq!(&*outcome.routes[0].after.as_ref().unwrap().node, "node-77");
    assert!(table.quarantine().next().is_none());
}

#[test]
fn poison_is_quarantined_by_name_and_harms_nothing_else() {
    let mut table = with(0..10);
    let hostile = (100..160).map(|n| Change::Put(poison(n))).collect();
    let outcome = table.handle(delta(hostile), at(1));
    assert!(outcome.routes.is_empty());
    assert_eq!(outcome.alarms.len(), 1, "one line, not sixty");
    assert_eq!(table.quarantine().count(), 60);
    assert_eq!(status(&table).quarantined, 60);
    let quarantined = |what| {
        table
            .journal()
            .since(0)
            .filter(move |e| e.what == what)
            .count()
    };
    assert_eq!(quarantined(What::Quarantined), 60);
    // Told again: no further alarm. Repaired: out of the quarantine.
    assert!(
        table
            .handle(delta(vec![Change::Put(poison(100))]), at(2))
            .alarms
            .is_empty()
    );
    table.handle(delta(vec![Change::Put(entry(100, 0))]), at(3));
    assert_eq!(table.quarantine().count(), 59);
    assert_eq!(table.routes().count(), 11);
}

#[test]
fn values_that_turn_to_poison_are_guarded_like_withdrawals() {
    let mut table = with(0..10);
    let one = table.handle(delta(vec![Change::Put(poison(3))]), at(1));
    assert_eq!(one.routes.len(), 1);
    let mut table = with(0..10);
    let all = |table: &mut Reconciler, t| {
        let all = (0..8).map(|n| Change::Put(poison(n))).collect();
        table.handle(delta(all), at(t))
    };
    assert!(all(&mut table, 1).routes.is_empty());
    assert!(all(&mut table, 2).routes.is_empty(), "told twice");
    assert_eq!(table.routes().count(), 10);
    assert_eq!(table.handle(Event::Timeout, at(61)).routes.len(), 8);
}

#[test]
fn others_cannot_have_what_is_this_nodes() {
    let mut table = Reconciler::new(Settings::default(), Identity::default());
    let identity = Identity {
        underlay: vec!["192.0.0.1".parse().unwrap()],
        vteps: vec![MacAddr::new([2, 0, 0, 0, 2, 0])],
    };
    table.handle(Event::Identity(identity), at(0));
    let mut own = entry(3, 0);
    if let Content::Remote(remote) = own.content {
        own.content = Content::Own(remote);
    }
    let mut inside = entry(9, 0);
    if let Content::Remote(remote) = &mut inside.content {
        Arc::make_mut(remote).routes[0].prefix = "10.0.3.128/25".parse().unwrap();
    }
    table.handle(
        full(vec![entry(1, 0), entry(2, 0), own, entry(4, 0), inside]),
        at(1),
    );
    let names: Vec<&str> = table.quarantine().map(|q| q.refusal.name).collect();
    assert_eq!(names, ["own-address", "own-vtep-mac", "overlap"]);
    let routes: Vec<bool> = table.routes().map(|route| route.via.is_none()).collect();
    assert_eq!(routes, [true, false]);
}

#[test]
fn what_feigned_to_be_this_node_is_routed_when_this_node_is_another_one() {
    let mut table = Reconciler::new(Settings::default(), Identity::default());
    let own = |address: &str| {
        Event::Identity(Identity {
            underlay: vec![address.parse().unwrap()],
            vteps: Vec::new(),
        })
    };
    table.handle(own("192.0.0.1"), at(0));
    table.handle(full(vec![entry(1, 0), entry(2, 0)]), at(1));
    assert_eq!((table.quarantine().count(), table.routes().count()), (1, 1));
    let outcome = table.handle(own("192.0.0.2"), at(2));
    assert_eq!(outcome.routes.len(), 2, "{:?}", outcome.routes);
    let refused: Vec<_> = table.quarantine().collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].refusal.name, "own-address");
    let routes = table.routes().map(|route| route.via.unwrap().remote);
    assert_eq!(
        routes.collect::<Vec<_>>(),
        ["192.0.0.1".parse::<IpAddr>().unwrap()]
    );
}

#[test]
fn source_that_is_lost_changes_nothing() {
    let mut table = with(0..5);
    let lost = Event::Update(SourceUpdate {
        source: ETCD,
        kind: UpdateKind::Lost {
            why: "connection refused".to_owned(),
        },
    });
    let outcome = table.handle(lost, at(1000));
    assert!(outcome.routes.is_empty());
    assert_eq!(table.routes().count(), 5);
    assert_eq!(status(&table).lost.as_deref(), Some("connection refused"));
}

#[test]
fn remembered_entries_route_until_confirmed_contradicted_or_too_old() {
    let before = with(0..10);
    let entries: Vec<Entry> = before.entries(ETCD).collect();
    let restore = |age: u64| Event::Restore {
        source: ETCD,
        entries: entries.clone(),
        age: Duration::from_secs(age),
    };
    let fresh = || Reconciler::new(Settings::default(), Identity::default());
    let mut table = fresh();
    assert_eq!(table.handle(restore(100), at(0)).routes.len(), 10);
    assert_eq!(status(&table).remembered, 10);
    // Confirmed: nothing moves; one is gone, one leads elsewhere.
    let now = (1..9).map(|n| entry(n, 0)).chain([entry(9, 7)]).collect();
    let outcome = table.handle(full(now), at(1));
    assert_eq!(outcome.routes.len(), 2);
    assert_eq!((status(&table).remembered, table.poll_timeout()), (0, None));
    // Never confirmed.
    let mut table = fresh();
    table.handle(restore(86_300), at(0));
    assert_eq!(table.poll_timeout(), Some(at(100)));
    assert_eq!(table.handle(Event::Timeout, at(100)).routes.len(), 10);
    let mut table = fresh();
    assert!(table.handle(restore(90_000), at(0)).routes.is_empty());
}

#[test]
fn why_names_the_winner_first() {
    let mut table = with(0..3);
    let mut thief = entry(50, 0);
    if let Content::Remote(remote) = &mut thief.content {
        Arc::make_mut(remote).routes[0].prefix = "10.0.2.0/24".parse().unwrap();
    }
    table.handle(delta(vec![Change::Put(thief)]), at(1));
    let why = table.why("10.0.2.7/32".parse().unwrap());
    assert_eq!(why.len(), 2);
    assert_eq!(
        (&*why[0].node, &why[0].verdict),
        ("node-2", &Verdict::Accepted)
    );
    let Verdict::Rejected { refusal, .. } = &why[1].verdict else {
        panic!("{why:?}");
    };
    assert_eq!(refusal.name, "duplicate-prefix");
}

#[test]
fn any_order_of_deltas_comes_to_the_same_routes() {
    let entries: Vec<Entry> = (0..60)
        .map(|n| {
            let mut made = entry(n, 0);
            made.rank = u64::from(n * 7 % 60);
            if let Content::Remote(remote) = &mut made.content {
                let net = format!("10.0.{}.0/24", n % 25);
                Arc::make_mut(remote).routes[0].prefix = net.parse().unwrap();
            }
            made
        })
        .collect();
    let mut reference: Option<Vec<LiveRoute>> = None;
    for stride in [1, 7, 11, 13, 59] {
        let mut table = Reconciler::new(Settings::default(), Identity::default());
        for step in 0..60 {
            let put = Change::Put(entries[step * stride % 60].clone());
            table.handle(delta(vec![put]), at(step as u64));
        }
        let routes: Vec<LiveRoute> = table.routes().cloned().collect();
        assert_eq!(routes.len(), 25);
        assert_eq!(*reference.get_or_insert_with(|| routes.clone()), routes);
    }
}

#[test]
fn entries_and_the_journal_are_bounded() {
    let settings = Settings {
        entries_max: 100,
        ..Settings::default()
    };
    let mut table = Reconciler::new(settings, Identity::default());
    let outcome = table.handle(full((0..10_000).map(|n| entry(n, 0)).collect()), at(0));
    assert_eq!((outcome.routes.len(), outcome.alarms.len()), (100, 1));
    for n in 0..100 {
        let changes = (0..100).map(|k| Change::Put(entry(k, n))).collect();
        table.handle(delta(changes), at(u64::from(n)));
    }
    assert!(table.journal().since(0).count() <= Journal::LEN);
    let last = table.journal().since(0).last().unwrap().number;
    assert_eq!(table.journal().since(last).count(), 0);
}

#[test]
fn ten_thousand_entries_are_cheap() {
    let entries: Vec<Entry> = (0..10_000).map(|n| entry(n, 0)).collect();
    let mut table = Reconciler::new(Settings::default(), Identity::default());
    let start = std::time::Instant::now();
    let outcome = table.handle(full(entries.clone()), at(0));
    let first = start.elapsed();
    assert_eq!(outcome.routes.len(), 10_000);
    assert!(table.handle(full(entries), at(1)).routes.is_empty());
    let again = start.elapsed() - first;
    for n in 0..100 {
        table.handle(delta(vec![Change::Put(entry(n, 1))]), at(2));
    }
    let single = (start.elapsed() - first - again) / 100;
    eprintln!("10,000 entries: first {first:?}, the same again {again:?}, one change {single:?}");
    // Far above what an unoptimised build on a busy machine takes.
    assert!(first + again < Duration::from_secs(5));
}
