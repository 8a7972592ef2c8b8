//! The search on simulated paths.

use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

/// A path that passes packets up to `limit`, answers after `rtt`, and says so when too big if it
/// `speaks`.
struct Path {
    limit: u16,
    speaks: bool,
    rtt: Duration,
}

/// Plays the search until `end`; gives the time at which the value last changed.
fn play(search: &mut PathMtu, path: &Path, start: Time, end: Time) -> Time {
    let mut now = start;
    let mut changed = start;
    let mut probes = 0;
    while now < end {
        let before = search.current();
        if let Some(octets) = search.poll_probe(now) {
            probes += 1;
            if octets <= path.limit {
                now = now.after(path.rtt);
                search.handle_answer(octets, now);
            } else if path.speaks {
                now = now.after(path.rtt);
                search.handle_too_big(path.limit, now);
            }
        } else {
            now = search
                .poll_timeout()
                .max(now.after(Duration::from_millis(1)));
        }
        if search.current() != before {
            changed = now;
        }
    }
    let seconds = end.since(start).as_secs() + 1;
    assert!(probes < 60 + seconds * 3, "{probes} probes in {seconds} s");
    changed
}

const RTT: Duration = Duration::from_millis(5);

fn second(n: u64) -> Time {
    Time::from_nanos(n * 1_000_000_000)
}

fn search() -> PathMtu {
    PathMtu::new(Family::V4, Mtu::ETHERNET, PmtuTimers::default(), Time::ZERO)
}

#[test]
fn a_good_path_is_confirmed_with_one_probe() {
    let mut search = search();
    assert_eq!(search.poll_probe(Time::ZERO), Some(1500));
    search.handle_answer(1500, second(0).after(RTT));
    assert_eq!(
        (search.current().octets(), search.origin()),
        (1500, PmtuOrigin::Probe)
    );
    assert_eq!(search.poll_probe(second(1)), None);
    assert_eq!(search.poll_probe(second(3)), Some(1500), "confirmed again");
}

#[test]
fn a_silent_black_hole_is_noticed_in_four_seconds_and_its_size_found() {
    let mut search = search();
    play(
        &mut search,
        &Path {
            limit: 1500,
            speaks: false,
            rtt: RTT,
        },
        Time::ZERO,
        second(30),
    );
    let mut lowered = None;
    let hole = Path {
        limit: 1400,
        speaks: false,
        rtt: RTT,
    };
    for tick in 0..400 {
        let now = second(30).after(Duration::from_millis(tick * 100));
        play(
            &mut search,
            &hole,
            now,
            now.after(Duration::from_millis(100)),
        );
        if search.current().octets() <= 1400 && lowered.is_none() {
            lowered = Some(tick * 100);
        }
    }
    assert!(lowered.is_some_and(|ms| ms <= 4000), "{lowered:?}");
    assert!(
        (1397..=1400).contains(&search.current().octets()),
        "{:?}",
        search.current()
    );
}

/// How long a silent shrink from `limit` to `shrunk` octets stays unnoticed when it happens `after`
/// the start of a search with that `ceiling`; `hinted`: a router says so, without proof.
fn unnoticed(ceiling: u16, limit: u16, shrunk: u16, after: Duration, hinted: bool) -> Duration {
    let device = Mtu::new(ceiling);
    let mut search = PathMtu::new(Family::V4, device, PmtuTimers::default(), Time::ZERO);
    let path = |limit| Path {
        limit,
        speaks: false,
        rtt: RTT,
    };
    let shrinks = Time::ZERO.after(after);
    play(&mut search, &path(limit), Time::ZERO, shrinks);
    if hinted {
        search.doubt(shrinks);
    }
    let mut now = shrinks;
    while search.current().octets() > shrunk {
        let end = now.after(Duration::from_millis(1));
        play(&mut search, &path(shrunk), now, end);
        now = end;
    }
    now.since(shrinks)
}

#[test]
fn a_shrink_is_noticed_in_its_time_also_while_larger_sizes_are_tried() {
    for (ceiling, limit) in [(1500, 1450), (9000, 1500)] {
        // From a search that has come to an end through the next raise of it and the end of that.
        for tenth in 150..650 {
            let after = Duration::from_millis(tenth * 100);
            let silent = unnoticed(ceiling, limit, 1400, after, false);
            assert!(
                silent <= Duration::from_millis(2210),
                "{after:?}: {silent:?}"
            );
            let hinted = unnoticed(ceiling, limit, 1400, after, true);
            assert!(
                hinted <= Duration::from_millis(1210),
                "{after:?}: {hinted:?}"
            );
        }
    }
}

#[test]
fn a_router_that_speaks_of_what_is_tried_shortens_the_search() {
    let mut search = search();
    let path = Path {
        limit: 1450,
        speaks: true,
        rtt: RTT,
    };
    play(&mut search, &path, Time::ZERO, second(10));
    assert_eq!(search.current().octets(), 1450);
    // The raise: a second after the half minute at most, and one question of the ceiling.
    let mut tried = Vec::new();
    let mut now = second(10);
    while now < second(34) {
        match search.poll_probe(now) {
            Some(octets) if octets > 1450 => {
                tried.push(octets);
                now = now.after(RTT);
                assert_eq!(search.handle_too_big(1450, now), TooBig::Unchanged);
            }
            Some(octets) => drop(search.handle_answer(octets, now.after(RTT))),
            None => now = search.poll_timeout(),
        }
    }
    assert_eq!(tried, [1500]);
    assert_eq!(search.current().octets(), 1450);
}

#[test]
fn a_confirmation_does_not_starve_the_search_where_the_owner_asks_seldom() {
    let mut search = search();
    let (mut now, mut steps) = (Time::ZERO, 0);
    while now < second(120) {
        if let Some(octets) = search.poll_probe(now) {
            steps += u32::from(octets > 1450);
            if octets <= 1450 {
                search.handle_answer(octets, now.after(RTT));
            }
        }
        now = now.after(Duration::from_secs(3));
    }
    assert!(steps >= 15, "{steps}");
    assert!((1446..=1450).contains(&search.current().octets()));
}

#[test]
fn a_router_that_speaks_is_believed_at_once_and_a_forger_is_not() {
    let mut search = search();
    play(
        &mut search,
        &Path {
            limit: 1500,
            speaks: true,
            rtt: RTT,
        },
        Time::ZERO,
        second(10),
    );
    assert_eq!(search.handle_too_big(68, second(10)), TooBig::BelowMinimum);
    assert_eq!(search.handle_too_big(1500, second(10)), TooBig::Unchanged);
    assert_eq!(
        (search.current().octets(), search.ignored_too_big()),
        (1500, 1)
    );
    assert_eq!(search.handle_too_big(1400, second(10)), TooBig::Lowered);
    assert_eq!(
        (search.current().octets(), search.origin()),
        (1400, PmtuOrigin::Icmp)
    );
    assert_eq!(search.poll_probe(second(10)), Some(1400));
}

#[test]
fn a_raised_path_is_found_within_the_raise_interval() {
    let mut search = search();
    play(
        &mut search,
        &Path {
            limit: 1400,
            speaks: true,
            rtt: RTT,
        },
        Time::ZERO,
        second(10),
    );
    assert!((1397..=1400).contains(&search.current().octets()));
    let changed = play(
        &mut search,
        &Path {
            limit: 1500,
            speaks: true,
            rtt: RTT,
        },
        second(10),
        second(90),
    );
    assert_eq!(search.current().octets(), 1500);
    assert!(changed.since(second(10)) <= Duration::from_secs(63));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_limit_is_found_and_never_exceeded(limit in 576_u16..=1500, speaks: bool, rtt_ms in 1_u64..200) {
        let mut search = search();
        let path = Path { limit, speaks, rtt: Duration::from_millis(rtt_ms) };
        play(&mut search, &path, Time::ZERO, second(50));
        let found = search.current().octets();
        prop_assert!(found <= limit && found + GRANULARITY_OCTETS >= limit, "{} for {}", found, limit);
    }

    #[test]
    fn random_events_keep_the_value_in_bounds(events in proptest::collection::vec((0_u8..4, any::<u16>(), 0_u64..5000), 0..200)) {
        let mut search = PathMtu::new(Family::V6, Mtu::new(9000), PmtuTimers::default(), Time::ZERO);
        let mut now = Time::ZERO;
        for (event, value, ms) in events {
            now = now.after(Duration::from_millis(ms));
            match event {
                0 => drop(search.handle_too_big(value, now)),
                1 => drop(search.handle_answer(value, now)),
                2 => if let Some(octets) = search.poll_probe(now) { search.handle_answer(octets, now); },
                _ => drop(search.poll_probe(now)),
            }
            prop_assert!((1280..=9000).contains(&search.current().octets()));
            for probe in [search.step.probe, search.confirmation.probe].into_iter().flatten() {
                prop_assert!((1280..=9000).contains(&probe.octets));
            }
        }
    }
}
