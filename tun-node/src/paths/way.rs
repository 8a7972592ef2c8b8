//! Whether one way to a peer (one encapsulation) works: a state machine over probes and answers,
//! without clock or socket.
//!
//! Like BFD in its asynchronous mode (RFC 5880 section 6.8.4) a way is down when nothing was heard
//! for the interval times the multiplier, and each probe follows the one before after three quarters
//! of the interval to the whole of it, at random, so that the probes of many nodes do not fall into
//! step (section 6.8.7). Unlike BFD each probe has a token of its own, so that loss and round-trip
//! time are measured. A way that was down is up again only after several answers in
//! a row, so that a flapping one is not used.

use std::collections::VecDeque;
use std::time::Duration;

use warren_core::units::Time;

use crate::config::Probing;

/// How often, and how patient.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timers {
    /// Between two probes, at most; three quarters of it at least.
    pub(super) interval: Duration,
    /// A way is down when nothing was heard for so many intervals.
    pub(super) multiplier: u32,
    /// A way that was down is up after so many answers in a row.
    pub(super) answers_to_return: u32,
}

impl From<&Probing> for Timers {
    fn from(probing: &Probing) -> Self {
        Self {
            interval: probing.interval,
            multiplier: probing.down_after,
            answers_to_return: probing.up_after,
        }
    }
}

/// What is known about a way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    /// Nothing yet.
    Unknown,
    /// Probes are answered.
    Up,
    /// They were, or should have been.
    Down,
}

/// One way.
#[derive(Clone, Debug)]
pub(super) struct Way {
    timers: Timers,
    state: State,
    next: Time,
    /// Since when answers are missing: the last one, or the first probe.
    heard: Option<Time>,
    in_a_row: u32,
    /// Probes that left since an answer came, or since the first.
    unanswered: u32,
    history: VecDeque<Sent>,
    rtt: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Sent {
    token: u64,
    at: Time,
    answered: bool,
}

impl Way {
    pub(super) const fn new(timers: Timers) -> Self {
        Self {
            timers,
            state: State::Unknown,
            next: Time::ZERO,
            heard: None,
            in_a_row: 0,
            unanswered: 0,
            history: VecDeque::new(),
            rtt: None,
        }
    }

    /// Probes leave so far apart from here on, less the jitter.
    pub(super) const fn set_interval(&mut self, interval: Duration) {
        self.timers.interval = interval;
    }

    pub(super) const fn state(&self) -> State {
        self.state
    }

    /// Whether the last probes were answered: nothing is lost at present.
    pub(super) fn is_heard(&self, now: Time) -> bool {
        let patience = self.timers.interval * 3 / 2;
        self.state == State::Up && self.heard.is_some_and(|heard| now.since(heard) < patience)
    }

    /// Whether it is down, and the last probe was not answered either.
    pub(super) fn is_silent(&self) -> bool {
        self.state == State::Down && self.in_a_row == 0
    }

    /// The smoothed round-trip time. RFC 6298 section 2.
    pub(super) const fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Lost probes among the last ones, in thousandths; `None` before the first is decided.
    pub(super) fn loss_per_mille(&self, now: Time) -> Option<u32> {
        let decided = |sent: &&Sent| sent.answered || now.since(sent.at) >= self.timers.interval;
        let all = self.history.iter().filter(decided).count();
        let lost = self
            .history
            .iter()
            .filter(decided)
            .filter(|sent| !sent.answered)
            .count();
        u32::try_from(lost * 1000)
            .ok()?
            .checked_div(u32::try_from(all).ok()?)
    }

    /// Whether a probe is due; the caller sends it and says so by [`sent`](Self::sent). Also lets
    /// time pass: returns `Some(true)` when due, and may change the state.
    pub(super) fn poll(&mut self, now: Time) -> bool {
        let patience = self.timers.interval * self.timers.multiplier;
        let is_silent = self.heard.is_some_and(|heard| now.since(heard) >= patience);
        // Silence is of the peer only where it was asked.
        let asked = self.timers.multiplier.saturating_sub(1).max(1);
        if is_silent && self.unanswered >= asked {
            self.state = State::Down;
            self.in_a_row = 0;
        }
        now >= self.next
    }

    /// When [`poll`](Self::poll) has something to do next.
    pub(super) const fn poll_timeout(&self) -> Time {
        self.next
    }

    pub(super) fn sent(&mut self, token: u64, now: Time) {
        self.next = now.after(jittered(self.timers.interval, token));
        self.heard.get_or_insert(now);
        self.unanswered = self.unanswered.saturating_add(1);
        self.history.push_back(Sent {
            token,
            at: now,
            answered: false,
        });
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        // A probe is missed when the next one leaves without its answer.
        let before = self.history.len().checked_sub(2);
        if before
            .and_then(|index| self.history.get(index))
            .is_some_and(|sent| !sent.answered)
        {
            self.in_a_row = 0;
        }
    }

    /// A probe that was due found no room in this host: it is no loss of the way, and is due again
    /// a little later. `random` as [`jittered`] has it.
    pub(super) fn unsent(&mut self, random: u64, now: Time) {
        self.next = now.after(jittered(self.timers.interval / 4, random));
    }

    /// The probe with `token` was answered. Returns whether it was one of this way.
    pub(super) fn answered(&mut self, token: u64, now: Time) -> bool {
        let mut awaited = self.history.iter_mut().rev();
        let Some(sent) = awaited.find(|sent| sent.token == token && !sent.answered) else {
            return false;
        };
        sent.answered = true;
        let rtt = now.since(sent.at);
        self.rtt = Some(self.rtt.map_or(rtt, |smooth| (smooth * 7 + rtt) / 8));
        self.heard = Some(now);
        self.unanswered = 0;
        self.in_a_row += 1;
        if self.state != State::Down || self.in_a_row >= self.timers.answers_to_return {
            self.state = State::Up;
        }
        true
    }
}

/// The interval less 0 to 25 per cent: RFC 5880 section 6.8.7. `random` are octets that nobody
/// chooses.
fn jittered(interval: Duration, random: u64) -> Duration {
    let [octet, ..] = random.to_le_bytes();
    interval - interval / 1024 * u32::from(octet)
}

/// The way to use: the one asked for or the first by preference that is not down; when all are, the
/// first.
pub(super) fn choose(states: &[State], forced: Option<usize>) -> usize {
    let is_usable = |index: &usize| states.get(*index).is_some_and(|s| *s != State::Down);
    forced
        .filter(is_usable)
        .or_else(|| (0..states.len()).find(is_usable))
        .or(forced)
        .unwrap_or(0)
}

/// Probes that loss is measured over.
const HISTORY: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Time {
        Time::from_nanos(n * 1_000_000)
    }

    /// Runs a way from `start` to `end`; `passes` says which probes are answered, by their numbers.
    /// Gives the time of each change of state.
    fn run(way: &mut Way, start: u64, end: u64, passes: impl Fn(u64) -> bool) -> Vec<(u64, State)> {
        let mut changes = Vec::new();
        let mut under_way = VecDeque::new();
        let mut sent = 0;
        for now in start..end {
            let before = way.state();
            if way.poll(ms(now)) {
                way.sent(now, ms(now));
                under_way.push_back((now, sent));
                sent += 1;
            }
            if let Some((token, number)) = under_way.front().copied()
                && token + 3 <= now
            {
                under_way.pop_front();
                if passes(number) {
                    way.answered(token, ms(now));
                }
            }
            if way.state() != before {
                changes.push((now, way.state()));
            }
        }
        changes
    }

    #[test]
    fn probes_leave_three_quarters_of_the_interval_apart_to_the_whole_of_it() {
        let timers = Timers::from(&Probing::default());
        let mut way = Way::new(timers);
        let mut random = 1_u64;
        let mut last = Time::ZERO;
        let mut gaps = Vec::new();
        for _ in 0..1000 {
            assert!(way.poll(last));
            random = crate::paths::next_token(random);
            way.sent(random, last);
            let next = way.poll_timeout();
            gaps.push(next.since(last));
            last = next;
        }
        let (least, most) = (gaps.iter().min(), gaps.iter().max());
        assert!(least >= Some(&(timers.interval * 3 / 4)), "{least:?}");
        assert!(least < Some(&(timers.interval * 77 / 100)), "{least:?}");
        assert!(most <= Some(&timers.interval), "{most:?}");
        assert!(most > Some(&(timers.interval * 98 / 100)), "{most:?}");
        let mean = gaps.iter().sum::<Duration>() / 1000;
        assert!((340..=360).contains(&mean.as_millis()), "{mean:?}");
    }

    #[test]
    fn a_way_goes_down_within_its_time_and_returns_after_answers_in_a_row() {
        let mut way = Way::new(Timers::from(&Probing::default()));
        assert_eq!(run(&mut way, 1, 5000, |_| true), [(4, State::Up)]);
        assert_eq!(way.rtt(), Some(Duration::from_millis(3)));
        let down = run(&mut way, 5000, 10_000, |_| false);
        let [(at, State::Down)] = down[..] else {
            panic!("{down:?}");
        };
        // Four intervals after the last answer.
        assert!((6200..=6700).contains(&at), "{at}");
        let loss = way.loss_per_mille(ms(10_000)).expect("decided");
        assert!((400..=550).contains(&loss), "{loss}");
        let up = run(&mut way, 10_000, 15_000, |_| true);
        let [(at, State::Up)] = up[..] else {
            panic!("{up:?}");
        };
        // Four times 300 to 400 ms after the first one that passes.
        assert!((11_200..=12_100).contains(&at), "{at}");
    }

    #[test]
    fn every_second_probe_lost_is_loss_and_not_an_outage() {
        let mut way = Way::new(Timers::from(&Probing::default()));
        let changes = run(&mut way, 1, 30_000, |number| number % 2 == 0);
        assert_eq!(changes, [(4, State::Up)]);
        let loss = way.loss_per_mille(ms(30_000)).expect("decided");
        assert!((450..=550).contains(&loss), "{loss}");
        // But from down it does not come back like that.
        run(&mut way, 30_000, 35_000, |_| false);
        assert_eq!(way.state(), State::Down);
        run(&mut way, 35_000, 60_000, |number| number % 2 == 0);
        assert_eq!(way.state(), State::Down);
    }

    #[test]
    fn probes_that_never_left_are_no_loss_and_no_silence_of_the_peer() {
        let mut way = Way::new(Timers::from(&Probing::default()));
        assert_eq!(run(&mut way, 1, 5000, |_| true), [(4, State::Up)]);
        for now in 5000..10_000 {
            if way.poll(ms(now)) {
                way.unsent(now, ms(now));
                assert!(
                    way.poll_timeout() > ms(now),
                    "it would be due at once for ever"
                );
            }
        }
        assert_eq!(way.state(), State::Up);
        assert_eq!(way.loss_per_mille(ms(10_000)), Some(0));
        // Whether it is there is found out as soon as they leave.
        let [(at, State::Down)] = run(&mut way, 10_000, 15_000, |_| false)[..] else {
            panic!("{way:?}");
        };
        assert!((10_600..=11_000).contains(&at), "{at}");
    }

    #[test]
    fn a_peer_that_never_answers_is_down_and_stays_on_the_first_way() {
        let mut way = Way::new(Timers::from(&Probing::default()));
        assert_eq!(way.loss_per_mille(ms(0)), None);
        run(&mut way, 1, 5000, |_| false);
        assert_eq!(way.state(), State::Down);
        assert_eq!(choose(&[State::Down, State::Down], None), 0);
    }

    #[test]
    fn the_first_usable_way_is_chosen_and_a_forced_one_while_it_is_usable() {
        use State::{Down, Unknown, Up};
        assert_eq!(choose(&[Up, Up], None), 0);
        assert_eq!(choose(&[Down, Unknown], None), 1);
        assert_eq!(choose(&[Unknown, Up], None), 0);
        assert_eq!(choose(&[Up, Up], Some(1)), 1);
        assert_eq!(choose(&[Up, Down], Some(1)), 0);
        assert_eq!(choose(&[Down, Down], Some(1)), 1);
    }

    #[test]
    fn foreign_tokens_and_replays_count_nothing() {
        let mut way = Way::new(Timers::from(&Probing::default()));
        way.sent(7, ms(1));
        assert!(!way.answered(8, ms(2)));
        assert!(way.answered(7, ms(2)));
        assert!(!way.answered(7, ms(3)));
    }
}
