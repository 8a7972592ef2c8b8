//! A peer on simulated ways.

use std::collections::VecDeque;

use warren_core::units::{MacAddr, Vni};

use super::*;

/// Who is at the other end, by what it answers.
#[derive(Clone, Copy, PartialEq)]
enum Other {
    /// This program: messages.
    Warren,
    /// Whoever has the address that is probed: echoes.
    Foreign,
    Nobody,
}

struct Simulation {
    peer: PeerPaths,
    /// Milliseconds.
    now: u64,
    token: u64,
    under_way: VecDeque<(u64, u64, Question)>,
}

impl Simulation {
    fn new() -> Self {
        let spec = PeerSpec {
            name: "beta".to_owned(),
            address: [192, 0, 2, 2].into(),
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
        let prefixes = ["10.244.2.0/24".parse().expect("a prefix")];
        let own = [[10, 244, 1, 1].into()];
        let peer = PeerPaths::new(&spec, &prefixes, &own, &Probing::default());
        Self {
            peer: peer.expect("one family"),
            now: 1,
            token: 0,
            under_way: VecDeque::new(),
        }
    }

    /// Lets time pass until the way is in `state`, at most until `most_ms` later; gives how long it
    /// took.
    fn until(&mut self, state: State, other: Other, most_ms: u64) -> u64 {
        let start = self.now;
        while self.state() != state {
            assert!(self.now - start < most_ms, "not {state:?} in {most_ms} ms");
            self.tick(other);
        }
        self.now - start
    }

    fn tick(&mut self, other: Other) {
        let now = Time::from_nanos(self.now * 1_000_000);
        let mut due = Vec::new();
        self.peer.poll(now, Probing::default().interval, &mut due);
        for (way, octets, is_search, carrier) in due {
            self.token += 1;
            if !is_search {
                self.peer.sent(way, self.token, now);
            }
            let question = Question {
                peer: 0,
                way,
                octets,
                is_search,
                carrier,
                sent: now,
            };
            self.under_way
                .push_back((self.now + 3, self.token, question));
        }
        while let Some((at, token, question)) = self.under_way.front().copied()
            && at <= self.now
        {
            self.under_way.pop_front();
            let answers = match other {
                Other::Warren => question.carrier == Carrier::Message,
                Other::Foreign => question.carrier == Carrier::Echo,
                Other::Nobody => false,
            };
            if answers {
                self.peer.answered(token, &question, now);
            }
        }
        self.now += 1;
    }

    fn state(&self) -> State {
        self.peer.ways[0].live.state()
    }

    fn carrier(&self) -> Option<Carrier> {
        self.peer.ways[0].carrier
    }
}

#[test]
fn who_takes_the_place_of_another_at_a_peer_s_address_is_found_out_anew() {
    for (first, then, carrier) in [
        (Other::Warren, Other::Foreign, Carrier::Echo),
        (Other::Foreign, Other::Warren, Carrier::Message),
    ] {
        let mut simulation = Simulation::new();
        simulation.until(State::Up, first, 100);
        for _ in 0..5000 {
            simulation.tick(first);
        }
        assert_eq!(simulation.state(), State::Up);
        simulation.until(State::Down, then, 2500);
        simulation.until(State::Up, then, 3000);
        assert_eq!(simulation.carrier(), Some(carrier));
        for _ in 0..5000 {
            simulation.tick(then);
        }
        assert_eq!(simulation.state(), State::Up);
    }
}

#[test]
fn who_returns_is_up_in_the_same_time_however_it_answers() {
    for other in [Other::Warren, Other::Foreign] {
        let mut simulation = Simulation::new();
        simulation.until(State::Up, other, 100);
        simulation.until(State::Down, Other::Nobody, 2500);
        assert_eq!(simulation.carrier(), None);
        for _ in 0..5000 {
            simulation.tick(Other::Nobody);
        }
        // Up to one interval until a probe leaves, and four between five of them.
        let took = simulation.until(State::Up, other, 3000);
        assert!((1200..=2010).contains(&took), "{took} ms");
    }
}

/// What is decided and shown of a peer whose ways are polled by hand.
mod by_hand {
    use super::super::*;

    fn ms(n: u64) -> Time {
        Time::ZERO.after(Duration::from_millis(n))
    }

    fn peer() -> PeerPaths {
        let spec = PeerSpec {
            name: "beta".to_owned(),
            address: [192, 0, 2, 2].into(),
            ways: vec![
                Encapsulation::Fou { port: 5555 },
                Encapsulation::Gue { port: 5555 },
            ],
            mtu: Mtu::ETHERNET,
            underlay_mtu: Mtu::ETHERNET,
            probe_address: None,
            probe: true,
        };
        let prefixes = ["10.244.2.0/24".parse().expect("a prefix")];
        let own = [[10, 244, 1, 1].into()];
        PeerPaths::new(&spec, &prefixes, &own, &Probing::default()).expect("it can be probed")
    }

    /// Probes all ways; those in `answered` answer.
    fn probe(peer: &mut PeerPaths, now: Time, answered: &[usize]) {
        for way in 0..2 {
            let token = now.as_nanos() + u64::try_from(way).expect("small");
            peer.sent(way, token, now);
            let question = Question {
                peer: 0,
                way,
                octets: 100,
                is_search: false,
                carrier: Carrier::Message,
                sent: now,
            };
            if answered.contains(&way) {
                peer.answered(token, &question, now);
            }
        }
    }

    /// Lets both ways be probed every 400 ms, `times` from `start` on, gives when that ends.
    fn go_on(peer: &mut PeerPaths, start: u64, times: u64, answered: &[usize]) -> u64 {
        let interval = Probing::default().interval;
        for turn in 0..times {
            let now = ms(start + turn * 400);
            probe(peer, now, answered);
            peer.poll(now, interval, &mut Vec::new());
        }
        start + times * 400
    }

    /// A peer whose preferred way, fou, is dead: the tables have gue.
    fn failed_over() -> (PeerPaths, u64) {
        let mut peer = peer();
        let now = go_on(&mut peer, 0, 20, &[1]);
        let left = peer.decide().expect("fou does not answer");
        assert_eq!(left.to.encapsulation.name(), "gue");
        (peer, now)
    }

    #[test]
    fn a_peer_that_is_configured_anew_stays_on_the_way_that_passes_until_the_usual_one_does() {
        let (before, now) = failed_over();
        let mut after = peer();
        assert_eq!(after.succeed(&before), Ok(()));
        let told = after.decide().expect("it is not known what they have");
        assert_eq!(told.to.encapsulation.name(), "gue");
        assert!(after.decide().is_none());
        let answers = u64::from(Probing::default().up_after);
        let now = go_on(&mut after, now, answers - 1, &[0, 1]);
        // Nobody answers the search: it may say that less passes.
        let told = after.decide();
        assert!(told.is_none_or(|told| told.to.encapsulation.name() == "gue"));
        let now = go_on(&mut after, now, 1, &[0, 1]);
        let told = after.decide().expect("it answers");
        assert_eq!(told.to.encapsulation.name(), "fou");
        assert_eq!(after.report(ms(now)).changes, 2);
    }

    #[test]
    fn a_peer_that_is_probed_elsewhere_keeps_its_way_until_one_is_known() {
        let (before, now) = failed_over();
        let mut after = peer();
        after.target = [10, 244, 2, 9].into();
        assert_eq!(after.succeed(&before), Ok(()));
        assert!(after.decide().is_none(), "nothing is known");
        let used = |peer: &PeerPaths| peer.report(ms(now)).ways[1].in_use;
        assert!(used(&after), "the tables have it");
        let mut other = peer();
        other.target = after.target;
        assert_eq!(other.succeed(&before), Ok(()));
        go_on(&mut after, now, 20, &[1]);
        let told = after.decide().expect("fou does not answer here either");
        assert_eq!(told.to.encapsulation.name(), "gue");
        go_on(&mut other, now, 1, &[0, 1]);
        let told = other.decide().expect("fou answers here");
        assert_eq!(told.to.encapsulation.name(), "fou");
    }

    #[test]
    fn a_peer_that_is_configured_anew_keeps_the_size_that_passes() {
        let mut before = peer();
        let now = go_on(&mut before, 0, 1, &[0, 1]);
        let wide = before.decide().expect("less the headers").to.mtu;
        let probe = Question {
            peer: 0,
            way: 0,
            octets: 1500,
            is_search: true,
            carrier: Carrier::Message,
            sent: ms(now),
        };
        before.too_big(1400, Some(&probe), ms(now));
        let narrow = before.decide().expect("the path is narrow").to.mtu;
        assert!(narrow < wide);
        let mut spec = before.spec.clone();
        let renewed = |spec: &PeerSpec| {
            let own = [before.source];
            let after = PeerPaths::new(spec, &before.prefixes, &own, &Probing::default());
            let mut after = after.expect("it can be probed");
            assert_eq!(after.succeed(&before), Ok(()));
            after.decide().expect("it is not known what they have").to
        };
        spec.name = "gamma".to_owned();
        assert_eq!(renewed(&spec).mtu, narrow);
        spec.ways.reverse();
        assert!(renewed(&spec).mtu <= narrow);
        // Another device: another path.
        spec.underlay_mtu = Mtu::new(9000);
        assert!(renewed(&spec).mtu > narrow);
        // Nobody would ever find that it has widened.
        spec.underlay_mtu = Mtu::ETHERNET;
        spec.probe = false;
        assert!(renewed(&spec).mtu > narrow);
    }

    #[test]
    fn a_peer_that_is_configured_anew_while_it_is_down_is_so_until_it_answers() {
        let mut before = peer();
        let now = go_on(&mut before, 0, 20, &[]);
        assert_eq!(before.turned(), Some(true));
        for target in [before.target, [10, 244, 2, 9].into()] {
            let mut after = peer();
            after.target = target;
            assert_eq!(after.succeed(&before), Ok(()));
            assert_eq!(after.turned(), None, "known, and said");
            let now = go_on(&mut after, now, 20, &[]);
            assert_eq!(after.turned(), None);
            go_on(&mut after, now, 20, &[1]);
            assert_eq!(after.turned(), Some(false));
        }
    }

    #[test]
    fn the_last_error_has_an_age_and_goes_after_a_minute_of_health() {
        let mut peer = peer();
        assert_eq!(peer.report(ms(0)).last_error, None);
        peer.failed("host unreachable".to_owned(), ms(1000));
        let shown = |peer: &PeerPaths, now: u64| peer.report(ms(now)).last_error;
        let said = |age: u64| Some(format!("host unreachable, {age} s ago"));
        assert_eq!(shown(&peer, 42_000), said(41));
        // Nobody answers: it may still be the reason.
        assert_eq!(shown(&peer, 90_000), said(89));
        probe(&mut peer, ms(90_000), &[0]);
        assert_eq!(shown(&peer, 90_100), None);
        peer.failed("host unreachable".to_owned(), ms(90_200));
        assert_eq!(shown(&peer, 90_300), said(0));
        // One that is not probed never answers.
        peer.is_probed = false;
        assert_eq!(shown(&peer, 150_100), said(59));
        assert_eq!(shown(&peer, 150_200), None);
    }
}
