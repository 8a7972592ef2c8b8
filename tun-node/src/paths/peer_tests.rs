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

    #[test]
    fn a_peer_that_is_configured_anew_tells_its_way_though_it_is_the_usual_one() {
        let mut before = peer();
        for at in 0..20 {
            let now = ms(at * 400);
            probe(&mut before, now, &[1]);
            before.poll(now, Duration::from_millis(400), &mut Vec::new());
        }
        let left = before.decide().expect("fou does not answer");
        assert_eq!(left.to.encapsulation.name(), "gue");
        // The tables have gue, which is a way of the new one, too.
        let mut after = peer();
        assert_eq!(after.succeed(&before), Ok(()));
        let told = after.decide().expect("it is not known what they have");
        assert_eq!(told.to.encapsulation.name(), "fou");
        assert!(after.decide().is_none());
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
    }
}
