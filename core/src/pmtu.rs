//! Path MTU discovery for one tunnel: a search by probes, as packetization-layer discovery for
//! datagrams does it (RFC 8899), pure and without a clock.
//!
//! The owner asks [`PathMtu::poll_probe`] when to send a probe and how large, sends it through the
//! tunnel in question, and reports [`handle_answer`](PathMtu::handle_answer) when the other end
//! saw it. An ICMP "too big" that was validated is reported by
//! [`handle_too_big`](PathMtu::handle_too_big). All sizes are octets of the *outer* IP packet, so
//! that one value serves every encapsulation on the path; what is left for the inner packet is
//! [`Encapsulation::inner_mtu`](crate::encap::Encapsulation::inner_mtu).
//!
//! States, RFC 8899 section 5.2: *searching* between the largest size confirmed and the smallest
//! refused; *complete*, when they are neighbours, until the raise timer; *base*, when nothing
//! larger than the base is confirmed any more.
//!
//! What is in use is confirmed all the time, also while larger sizes are tried: a path whose device
//! could carry more than the path does is searched upwards for seconds in every half minute, and
//! may shrink then as at any time. So two probes may be under way, one for each purpose.

use core::time::Duration;

use crate::units::{Family, Mtu, Time};

/// How long to wait, how often to try.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PmtuTimers {
    /// An unanswered probe is lost after this. RFC 8899 section 5.1.1, PROBE_TIMER.
    pub probe_timeout: Duration,
    /// A size is refused after so many lost probes. RFC 8899 section 5.1.2, MAX_PROBES.
    pub max_probes: u8,
    /// A found value is confirmed again this often; losing it is how a black hole shows. RFC 8899
    /// section 5.1.1, CONFIRMATION_TIMER.
    pub confirm_interval: Duration,
    /// A larger value is tried again this long after a search ended. RFC 8899 section 5.1.1,
    /// PMTU_RAISE_TIMER.
    pub raise_interval: Duration,
}

impl Default for PmtuTimers {
    /// A black hole is noticed within 2.2 s (a confirmation every second, three probes of 400 ms),
    /// before the fourth retransmission of a TCP that lost everything; a raised path within 30 s.
    fn default() -> Self {
        Self {
            probe_timeout: Duration::from_millis(400),
            max_probes: 3,
            confirm_interval: Duration::from_secs(1),
            raise_interval: Duration::from_secs(30),
        }
    }
}

/// How the current value was learned.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PmtuOrigin {
    /// Assumed: the MTU of the underlay device; nothing was confirmed.
    Assumed,
    /// A probe of that size was answered.
    Probe,
    /// A router on the path said so.
    Icmp,
    /// Probes at the former value were lost.
    BlackHole,
}

/// What the search knows about one path.
#[derive(Clone, Debug)]
pub struct PathMtu {
    timers: PmtuTimers,
    floor: u16,
    ceiling: u16,
    /// What senders may use.
    current: u16,
    origin: PmtuOrigin,
    /// The largest size that was answered in this search.
    confirmed: u16,
    /// The smallest size that was refused in this search; above the ceiling when none was.
    refused: u16,
    /// Whether the size in use still passes.
    confirmation: Question,
    /// Whether another size passes; while searching only.
    step: Question,
    phase: Phase,
    since_raise: Time,
    ignored_too_big: u64,
}

/// What is asked again and again until it is answered or lost, one size at a time.
#[derive(Clone, Copy, Debug)]
struct Question {
    probe: Option<Probe>,
    /// When the next one begins, if none is under way.
    next: Time,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    octets: u16,
    sent: u8,
    deadline: Time,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Searching,
    Complete,
}

/// What became of a reported "too big".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TooBig {
    /// It lowered the value.
    Lowered,
    /// It says nothing new.
    Unchanged,
    /// It names less than a path may have and was ignored; a forgery or a broken router.
    BelowMinimum,
}

/// What is used while a search after a black hole goes on, in octets. RFC 8899 section 5.1.2
/// recommends 1200; every IPv6 link carries 1280.
const BASE_OCTETS: u16 = 1280;

/// The search is over when the bounds are this close, in octets: one word of an IP header.
const GRANULARITY_OCTETS: u16 = 4;

impl PathMtu {
    /// Starts a search on a path whose first link has `device` octets, at the time `now`.
    ///
    /// Until something is known, `device` is assumed.
    #[must_use]
    pub fn new(underlay: Family, device: Mtu, timers: PmtuTimers, now: Time) -> Self {
        let floor = match underlay {
            Family::V4 => Mtu::MIN_V4.octets(),
            Family::V6 => Mtu::MIN_V6.octets(),
        };
        let ceiling = device.octets().max(floor);
        Self {
            timers,
            floor,
            ceiling,
            current: ceiling,
            origin: PmtuOrigin::Assumed,
            confirmed: floor,
            refused: ceiling.saturating_add(1),
            confirmation: Question::at(now),
            step: Question::at(now),
            phase: Phase::Searching,
            since_raise: now,
            ignored_too_big: 0,
        }
    }

    /// The largest outer packet that senders may use now.
    #[must_use]
    pub const fn current(&self) -> Mtu {
        Mtu::new(self.current)
    }

    /// How [`current`](Self::current) was learned.
    #[must_use]
    pub const fn origin(&self) -> PmtuOrigin {
        self.origin
    }

    /// How many "too big" messages were ignored because they named less than the minimum.
    #[must_use]
    pub const fn ignored_too_big(&self) -> u64 {
        self.ignored_too_big
    }

    /// Probes what is in use without waiting for its time: somebody says that it does not pass.
    pub const fn doubt(&mut self, now: Time) {
        if self.confirmation.probe.is_none() {
            self.confirmation.next = now;
        }
    }

    /// The size of the probe to send now, if one is due. Call again after
    /// [`poll_timeout`](Self::poll_timeout).
    pub fn poll_probe(&mut self, now: Time) -> Option<u16> {
        self.handle_timeout(now);
        let (size, timeout) = (self.next_size(), self.timers.probe_timeout);
        if self.is_step_next() {
            self.step.poll(size, now, timeout)
        } else {
            self.confirmation.poll(self.current, now, timeout)
        }
    }

    /// When [`poll_probe`](Self::poll_probe) has something to do next.
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        if self.is_step_next() {
            self.step.due()
        } else {
            self.confirmation.due()
        }
    }

    /// The other end answered a probe of `octets`. Returns whether the value changed.
    pub fn handle_answer(&mut self, octets: u16, now: Time) -> bool {
        let is_step = self.step.asks(octets);
        if !is_step && !self.confirmation.asks(octets) {
            return false;
        }
        let before = self.current;
        self.confirmed = self.confirmed.max(octets);
        if self.confirmed >= self.current
            || self.phase == Phase::Searching && self.origin == PmtuOrigin::BlackHole
        {
            self.current = self.confirmed;
            self.origin = PmtuOrigin::Probe;
        }
        // Whatever passes shows that less does.
        if octets >= self.current {
            self.confirmation = self.confirmation_after(now);
        }
        if is_step || self.phase == Phase::Complete {
            self.go_on(now);
        }
        self.current != before
    }

    /// A validated ICMP message says that outer packets above `octets` do not pass.
    ///
    /// Validation (that the message quotes something sent on this path) is the caller's. A value
    /// below 576 (IPv4) or 1280 (IPv6) is ignored and counted.
    pub fn handle_too_big(&mut self, octets: u16, now: Time) -> TooBig {
        if octets < self.floor {
            self.ignored_too_big += 1;
            return TooBig::BelowMinimum;
        }
        if octets >= self.current {
            // What is tried is too large; what is in use is not.
            if self.step.probe.is_some_and(|probe| probe.octets > octets) {
                self.refused = self.refused.min(octets + 1);
                self.go_on(now);
            }
            return TooBig::Unchanged;
        }
        self.current = octets;
        self.origin = PmtuOrigin::Icmp;
        self.refused = octets + 1;
        self.confirmed = self.floor;
        self.phase = Phase::Searching;
        self.confirmation = self.confirmation_after(now);
        // The router's word is tried at once: it is the likely answer.
        self.step = Question::at(now);
        TooBig::Lowered
    }

    /// Whether the search has the next word, and not the confirmation of what is in use.
    ///
    /// Of two that wait, the one that has waited longer: neither starves where the owner asks
    /// seldom.
    fn is_step_next(&self) -> bool {
        let is_earlier = || self.step.due() < self.confirmation.due();
        self.phase == Phase::Searching && (!self.is_confirming() || is_earlier())
    }

    /// Whether what is in use is asked for beside the search: when it was answered before. Until
    /// then the search asks for it itself.
    fn is_confirming(&self) -> bool {
        self.phase == Phase::Complete || self.origin == PmtuOrigin::Probe
    }

    fn confirmation_after(&self, now: Time) -> Question {
        Question::at(now.after(self.timers.confirm_interval))
    }

    fn handle_timeout(&mut self, now: Time) {
        let max_probes = self.timers.max_probes;
        if self.is_confirming()
            && let Some(octets) = self.confirmation.lost(now, max_probes)
        {
            self.handle_loss(octets, now);
        }
        if let Some(octets) = self.step.lost(now, max_probes) {
            self.handle_loss(octets, now);
        }
    }

    /// So many octets do not pass.
    fn handle_loss(&mut self, octets: u16, now: Time) {
        self.refused = self.refused.min(octets);
        if octets <= self.current && self.origin != PmtuOrigin::Assumed
            || self.refused <= self.current
        {
            // What was in use does not pass (any more): down to what is known to, and search.
            let lost_confirmed = octets <= self.confirmed;
            if lost_confirmed {
                self.confirmed = self.floor;
            }
            // RFC 8899 section 5.1.2, BASE_PLPMTU: what almost every path carries is tried before
            // the least that one may.
            self.current = if octets > BASE_OCTETS {
                self.confirmed.max(BASE_OCTETS.min(self.ceiling))
            } else {
                self.confirmed
            };
            self.origin = PmtuOrigin::BlackHole;
            self.phase = Phase::Searching;
            self.confirmation = self.confirmation_after(now);
        }
        self.go_on(now);
    }

    /// Chooses the phase, and when the next size is asked for.
    fn go_on(&mut self, now: Time) {
        self.step = Question::at(now);
        let open = self.refused.saturating_sub(self.confirmed) > GRANULARITY_OCTETS;
        if self.phase == Phase::Searching && open && self.confirmed < self.ceiling {
            return;
        }
        if self.phase == Phase::Searching {
            self.phase = Phase::Complete;
            self.since_raise = now;
            self.current = self.confirmed;
        }
        let raise = now.since(self.since_raise) >= self.timers.raise_interval;
        if raise && self.confirmed < self.ceiling {
            self.phase = Phase::Searching;
            self.refused = self.ceiling.saturating_add(1);
        }
    }

    /// The size that tells most: what is in use, then the ceiling, then halfway.
    const fn next_size(&self) -> u16 {
        match self.phase {
            Phase::Complete => self.current,
            Phase::Searching if self.refused > self.ceiling => self.ceiling,
            // An ICMP message named the size just below the refused one.
            // After a black hole, the base is what is hoped for.
            Phase::Searching
                if matches!(self.origin, PmtuOrigin::Icmp | PmtuOrigin::BlackHole)
                    && self.confirmed < self.current =>
            {
                self.current
            }
            Phase::Searching => self.confirmed + (self.refused - self.confirmed) / 2,
        }
    }
}

impl Question {
    /// Begins at that time.
    const fn at(next: Time) -> Self {
        Self { probe: None, next }
    }

    /// When it has something to do next.
    fn due(&self) -> Time {
        self.probe.map_or(self.next, |probe| probe.deadline)
    }

    /// Whether an answer for so many octets is awaited.
    fn asks(&self, octets: u16) -> bool {
        self.probe.is_some_and(|probe| probe.octets == octets)
    }

    /// The size of the probe to send now, if one is due: of that which is under way, otherwise of
    /// `octets`.
    fn poll(&mut self, octets: u16, now: Time, timeout: Duration) -> Option<u16> {
        if now < self.due() {
            return None;
        }
        let (octets, sent) = self
            .probe
            .map_or((octets, 0), |probe| (probe.octets, probe.sent));
        self.probe = Some(Probe {
            octets,
            sent: sent + 1,
            deadline: now.after(timeout),
        });
        Some(octets)
    }

    /// The size that was probed `max_probes` times without an answer; ends the question.
    fn lost(&mut self, now: Time, max_probes: u8) -> Option<u16> {
        let is_lost = |probe: &Probe| now >= probe.deadline && probe.sent >= max_probes;
        self.probe
            .take_if(|probe| is_lost(probe))
            .map(|probe| probe.octets)
    }
}

#[cfg(test)]
#[path = "pmtu_tests.rs"]
mod tests;
