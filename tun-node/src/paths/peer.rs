//! What is known about the paths to one peer, and what follows from it.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use warren_core::encap::Encapsulation;
use warren_core::pmtu::{PathMtu, PmtuOrigin, PmtuTimers, TooBig};
use warren_core::units::{Family, Mtu, Time};

use super::Question;
use super::bucket::Bucket;
use super::packet::Carrier;
use super::way::{self, State, Timers};
use crate::config::Probing;
use crate::ctl::message::{PathReport, WayReport};
use crate::rib::{PeerSpec, Way};

/// One peer.
#[derive(Debug)]
pub(super) struct PeerPaths {
    pub(super) name: String,
    pub(super) remote: IpAddr,
    /// What it was made of.
    spec: PeerSpec,
    prefixes: Vec<IpNet>,
    /// When it has something to do next.
    pub(super) due: Time,
    /// No search for the path MTU before this: there are many peers.
    search_after: Time,
    /// The inner addresses of probes.
    pub(super) source: IpAddr,
    pub(super) target: IpAddr,
    /// The way that somebody asked for.
    pub(super) forced: Option<usize>,
    /// What the network or this host last said against a packet, and when.
    last_error: Option<(Time, String)>,
    /// Probes and answers that left for the peer, and those that came from it.
    pub(super) probes_sent: u64,
    pub(super) probes_heard: u64,
    /// Whether anything is sent to find out.
    is_probed: bool,
    ways: Vec<OneWay>,
    in_use: usize,
    /// Whether no way is answered, as it was last asked.
    is_down: bool,
    /// What the tables have; not known of those that had another peer in this place.
    told: Way,
    is_told: bool,
    configured_mtu: Mtu,
    search: PathMtu,
    /// A reported size that no probe has confirmed or refuted.
    hint: Option<u16>,
    /// ICMP errors about size that were not believed.
    pub(super) forged: u64,
    /// Its questions that are answered.
    pub(super) answers: Bucket,
    changes: u64,
    last_change: Option<(Time, String)>,
}

#[derive(Clone, Debug)]
struct OneWay {
    encapsulation: Encapsulation,
    live: way::Way,
    /// What an answer came to; `None` before the first, and again while nothing is heard of a way
    /// that is down: whoever is there when it returns may be another.
    carrier: Option<Carrier>,
    /// What the last answer came to.
    last_carrier: Carrier,
}

/// What the tables are to say about a peer.
pub(super) struct Decision {
    pub(super) from: Way,
    pub(super) to: Way,
    pub(super) why: String,
}

/// A probe to send: way, octets of the outer packet, whether it searches, carrier.
pub(super) type Due = (usize, u16, bool, Carrier);

impl PeerPaths {
    /// `None` where there is no pair of inner addresses of one family to probe between.
    pub(super) fn new(
        spec: &PeerSpec,
        prefixes: &[IpNet],
        own: &[IpAddr],
        probing: &Probing,
    ) -> Option<Self> {
        let (source, target) = inner_addresses(spec, prefixes, own)?;
        let first = *spec.ways.first()?;
        let ways = spec.ways.iter().map(|encapsulation| OneWay {
            encapsulation: *encapsulation,
            live: way::Way::new(Timers::from(probing)),
            carrier: None,
            // Its answer tells more.
            last_carrier: Carrier::Message,
        });
        Some(Self {
            name: spec.name.clone(),
            remote: spec.address,
            spec: spec.clone(),
            prefixes: prefixes.to_vec(),
            due: Time::ZERO,
            search_after: Time::ZERO,
            source,
            target,
            forced: None,
            last_error: None,
            probes_sent: 0,
            probes_heard: 0,
            is_probed: probing.enabled && spec.probe,
            ways: ways.collect(),
            in_use: 0,
            is_down: false,
            told: Way {
                encapsulation: first,
                mtu: spec.mtu,
            },
            is_told: true,
            configured_mtu: spec.mtu,
            search: PathMtu::new(
                Family::of(spec.address),
                spec.underlay_mtu,
                PmtuTimers {
                    probe_timeout: probing.interval,
                    confirm_interval: probing.confirm_interval,
                    raise_interval: probing.raise_interval,
                    ..PmtuTimers::default()
                },
                Time::ZERO,
            ),
            hint: None,
            forged: 0,
            answers: Bucket::new(ANSWERS_PER_SECOND),
            changes: 0,
            last_change: None,
        })
    }

    /// Goes on as the same peer with other prefixes; `false` when it is another in more than that.
    pub(super) fn goes_on(&mut self, spec: &PeerSpec, prefixes: &[IpNet], own: &[IpAddr]) -> bool {
        if self.spec != *spec {
            return false;
        }
        self.prefixes = prefixes.to_vec();
        self.set_own(own);
        true
    }

    /// This node has other inner addresses.
    pub(super) fn set_own(&mut self, own: &[IpAddr]) {
        if let Some((source, target)) = inner_addresses(&self.spec, &self.prefixes, own) {
            (self.source, self.target) = (source, target);
        }
    }

    pub(super) const fn underlay_family(&self) -> Family {
        Family::of(self.remote)
    }

    pub(super) fn encapsulation(&self, way: usize) -> Option<Encapsulation> {
        self.ways.get(way).map(|way| way.encapsulation)
    }

    /// All ways, the one in use first.
    pub(super) fn encapsulations(&self) -> impl Iterator<Item = Encapsulation> {
        let all = self.ways.iter().map(|way| way.encapsulation);
        let in_use = self.told.encapsulation;
        std::iter::once(in_use).chain(all.filter(move |way| *way != in_use))
    }

    /// The way of an [`EncapsulationKind`](warren_core::encap::EncapsulationKind) by its number.
    pub(super) fn encapsulation_of_kind(&self, kind: u8) -> Option<Encapsulation> {
        let mut ways = self.ways.iter().map(|way| way.encapsulation);
        ways.find(|way| way.kind() as u8 == kind)
            .or_else(|| self.encapsulation(self.in_use))
    }

    pub(super) fn way_named(&self, name: &str) -> Option<usize> {
        self.ways
            .iter()
            .position(|way| way.encapsulation.name() == name)
    }

    fn way_of(&self, encapsulation: Encapsulation) -> Option<usize> {
        self.ways
            .iter()
            .position(|way| way.encapsulation == encapsulation)
    }

    pub(super) fn names(&self) -> String {
        let names = self.ways.iter().map(|way| way.encapsulation.name());
        names.collect::<Vec<_>>().join(", ")
    }

    /// Lets time pass and gathers the probes that are due.
    ///
    /// `pace` is how far apart the probes of a way leave.
    pub(super) fn poll(&mut self, now: Time, pace: Duration, due: &mut Vec<Due>) {
        if !self.is_probed {
            return;
        }
        let over = self.underlay_family();
        let small = usize::from(Family::of(self.source).header_octets()) + 8 + 16;
        for (index, way) in self.ways.iter_mut().enumerate() {
            way.live.set_interval(pace);
            let is_due = way.live.poll(now);
            if way.live.is_silent() {
                way.carrier = None;
            }
            if !is_due {
                continue;
            }
            let octets = way.encapsulation.overhead_octets(over);
            let octets = octets.saturating_add(u16::try_from(small).unwrap_or(u16::MAX));
            match way.carrier {
                Some(carrier) => due.push((index, octets, false, carrier)),
                // Who is it? The likelier one is asked last: answers in a row are told by the last.
                None => due.extend([
                    (index, octets, false, way.last_carrier.other()),
                    (index, octets, false, way.last_carrier),
                ]),
            }
        }
        // A peer that answers nothing is not searched for: silence would look like a black hole.
        let Some(way) = self.ways.get(self.in_use) else {
            return;
        };
        // Nor is one that answers small probes no better at present: it is slow or gone.
        if way.live.is_heard(now)
            && let Some(carrier) = way.carrier
            && now >= self.search_after
            && let Some(octets) = self.search.poll_probe(now)
        {
            if pace > SEARCH_PACE {
                self.search_after = now.after(pace);
            }
            due.push((self.in_use, octets, true, carrier));
        }
    }

    pub(super) fn poll_timeout(&self, now: Time) -> Time {
        if !self.is_probed {
            return now.after(Duration::from_secs(1));
        }
        let ways = self.ways.iter().map(|way| way.live.poll_timeout());
        let search = self.ways.get(self.in_use);
        let search = search.filter(|way| way.live.is_heard(now) && way.carrier.is_some());
        let search = search.map(|_| self.search.poll_timeout().max(self.search_after));
        ways.chain(search).min().unwrap_or(Time::ZERO)
    }

    /// A small probe leaves.
    pub(super) fn sent(&mut self, way: usize, token: u64, now: Time) {
        if let Some(way) = self.ways.get_mut(way) {
            way.live.sent(token, now);
        }
    }

    /// A small probe finds no room in this host.
    pub(super) fn unsent(&mut self, way: usize, token: u64, now: Time) {
        if let Some(way) = self.ways.get_mut(way) {
            way.live.unsent(token, now);
        }
    }

    pub(super) fn answered(&mut self, token: u64, question: &Question, now: Time) {
        let Some(way) = self.ways.get_mut(question.way) else {
            return;
        };
        if way.carrier != Some(Carrier::Message) {
            way.carrier = Some(question.carrier);
            way.last_carrier = question.carrier;
        }
        if !question.is_search {
            way.live.answered(token, now);
            return;
        }
        // What was said not to pass has passed.
        if self.hint.is_some_and(|hint| question.octets > hint) {
            self.hint = None;
            self.forged += 1;
        }
        self.search.handle_answer(question.octets, now);
    }

    /// A router says that outer packets above `mtu` do not pass; `proven` is the probe that it
    /// quotes.
    pub(super) fn too_big(&mut self, mtu: u16, proven: Option<&Question>, now: Time) {
        if proven.is_some_and(|question| question.octets > mtu) {
            self.hint = None;
            if self.search.handle_too_big(mtu, now) == TooBig::BelowMinimum {
                self.forged += 1;
            }
            return;
        }
        let floor = match self.underlay_family() {
            Family::V4 => Mtu::MIN_V4,
            Family::V6 => Mtu::MIN_V6,
        };
        if mtu < floor.octets() {
            self.forged += 1;
        } else if mtu < self.search.current().octets() {
            if self.hint.is_some() {
                // A second one before the first is decided says nothing new.
                self.forged += 1;
            }
            self.hint = Some(mtu);
            self.search.doubt(now);
        }
    }

    /// What the tables have to say now, if that differs from what they say.
    pub(super) fn decide(&mut self) -> Option<Decision> {
        let states: Vec<State> = self.ways.iter().map(|way| way.live.state()).collect();
        let chosen = way::choose(&states, self.forced);
        // What the tables have may be what passes: it stays until more is known of another way.
        if !self.is_told && self.is_probed && states.get(chosen) == Some(&State::Unknown) {
            return None;
        }
        let why = self.why(&states, chosen);
        let encapsulation = self.encapsulation(chosen)?;
        let path = encapsulation.inner_mtu(self.underlay_family(), self.search.current());
        let to = Way {
            encapsulation,
            mtu: path.min(self.configured_mtu),
        };
        if to == self.told && self.is_told {
            return None;
        }
        let from = self.told;
        self.is_told = true;
        if from.encapsulation != to.encapsulation {
            self.changes += 1;
            self.last_change = Some((Time::ZERO, format!("{}: {why}", to.encapsulation.name())));
        }
        self.in_use = chosen;
        self.told = to;
        Some(Decision { from, to, why })
    }

    /// Why the chosen way is in use.
    fn why(&self, states: &[State], chosen: usize) -> String {
        let name = |way| self.encapsulation(way).map_or("none", Encapsulation::name);
        match self.forced {
            Some(forced) if forced == chosen => "asked for".to_owned(),
            Some(forced) => format!("{} is asked for and does not answer", name(forced)),
            None if chosen > 0 => format!("{} does not answer", name(0)),
            None => match states.first() {
                Some(State::Up) => "it is preferred and answers",
                Some(State::Unknown) | None => "it is preferred",
                Some(State::Down) => "it is preferred, and none answers",
            }
            .to_owned(),
        }
    }

    /// The encapsulation that somebody asked for.
    pub(super) fn asked_for(&self) -> Option<&'static str> {
        Some(self.encapsulation(self.forced?)?.name())
    }

    /// What somebody should know who asked for an encapsulation.
    pub(super) fn remark(&self) -> Option<String> {
        let forced = self.forced?;
        let states: Vec<State> = self.ways.iter().map(|way| way.live.state()).collect();
        if *states.get(forced)? != State::Down {
            return None;
        }
        let (peer, asked) = (&self.name, self.asked_for()?);
        let chosen = way::choose(&states, self.forced);
        let used = self.encapsulation(chosen)?.name();
        Some(if chosen == forced {
            format!("{peer}: {asked} does not answer, nor does any other; it is used")
        } else {
            format!("{peer}: {asked} does not answer; {used} stays in use")
        })
    }

    /// Comes in the place of the same peer as it was configured before, whose way the tables may
    /// still have, and goes on with what was measured and asked for of it: what is known to be dead
    /// or too large is not tried again on traffic.
    ///
    /// # Errors
    ///
    /// The encapsulation that was asked for, when this peer does not have it.
    pub(super) fn succeed(&mut self, before: &Self) -> Result<(), &'static str> {
        self.is_told = false;
        if let Some(way) = self.way_of(before.told.encapsulation) {
            (self.in_use, self.told) = (way, before.told);
        }
        if self.is_probed && before.is_probed {
            // Who is probed from or at another address may answer where nobody did.
            if (self.source, self.target) == (before.source, before.target) {
                for way in &mut self.ways {
                    let known = before.way_of(way.encapsulation);
                    if let Some(known) = known.and_then(|known| before.ways.get(known)) {
                        way.clone_from(known);
                    }
                }
            }
            // Sizes are of the path outside, whoever answers inside.
            if self.spec.underlay_mtu == before.spec.underlay_mtu {
                self.search = before.search.clone();
                self.search_after = before.search_after;
                self.hint = before.hint;
            }
            self.is_down = before.is_down;
        }
        (self.probes_sent, self.probes_heard) = (before.probes_sent, before.probes_heard);
        (self.changes, self.forged) = (before.changes, before.forged);
        self.last_change.clone_from(&before.last_change);
        self.last_error.clone_from(&before.last_error);
        let Some(name) = before.asked_for() else {
            return Ok(());
        };
        self.forced = self.way_named(name);
        self.forced.map(drop).ok_or(name)
    }

    /// Whether the peer is down, if that is news: it is when no way to it is answered, until one is
    /// again.
    pub(super) fn turned(&mut self) -> Option<bool> {
        let was_down = self.is_down;
        let mut states = self.ways.iter().map(|way| way.live.state());
        self.is_down = match was_down {
            true => states.all(|state| state != State::Up),
            false => states.all(|state| state == State::Down),
        };
        (self.is_down != was_down).then_some(self.is_down)
    }

    /// The decision took effect.
    pub(super) fn published(&mut self, now: Time) {
        if let Some((at, _)) = &mut self.last_change
            && *at == Time::ZERO
        {
            *at = now;
        }
    }

    /// The network or this host said something against a packet.
    pub(super) fn failed(&mut self, error: String, now: Time) {
        self.last_error = Some((now, error));
    }

    /// The last error and its age; `None` when it is old and the way in use is well, as far as
    /// anybody asks.
    fn shown_error(&self, now: Time) -> Option<String> {
        let (at, error) = self.last_error.as_ref()?;
        let age = now.since(*at);
        let mut in_use = self.ways.get(self.in_use).into_iter();
        let is_well = !self.is_probed || in_use.any(|way| way.live.is_heard(now));
        if age >= ERROR_LIFE && is_well {
            return None;
        }
        Some(format!("{error}, {} s ago", age.as_secs()))
    }

    pub(super) fn report(&self, now: Time) -> PathReport {
        let micros = |rtt: Duration| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
        PathReport {
            peer: self.name.clone(),
            path_mtu: self.search.current().octets(),
            path_mtu_by: match self.search.origin() {
                PmtuOrigin::Assumed => "assumed",
                PmtuOrigin::Probe => "probe",
                PmtuOrigin::Icmp => "icmp",
                PmtuOrigin::BlackHole => "black hole",
            }
            .to_owned(),
            forged: self.forged + self.search.ignored_too_big(),
            changes: self.changes,
            last_change: self
                .last_change
                .as_ref()
                .map(|(at, why)| format!("{why}, {:.1} s ago", now.since(*at).as_secs_f64())),
            last_error: self.shown_error(now),
            probes_sent: self.probes_sent,
            probes_heard: self.probes_heard,
            asked_for: self.asked_for().map(str::to_owned),
            ways: (0..)
                .zip(&self.ways)
                .map(|(index, way)| WayReport {
                    encapsulation: way.encapsulation.name().to_owned(),
                    in_use: index == self.in_use,
                    state: match way.live.state() {
                        State::Unknown => "unknown",
                        State::Up => "up",
                        State::Down => "down",
                    }
                    .to_owned(),
                    answered_by: match way.carrier {
                        None => "nobody",
                        Some(Carrier::Message) => "peer",
                        Some(Carrier::Echo) => "echo",
                    }
                    .to_owned(),
                    rtt_us: way.live.rtt().map(micros),
                    loss_per_mille: way.live.loss_per_mille(now),
                })
                .collect(),
        }
    }
}

/// Where probes come from and go to inside: from the first of this node's own addresses of the
/// family, to the configured address or the first of the peer's prefixes, which is the tunnel
/// device of a flannel node.
fn inner_addresses(
    spec: &PeerSpec,
    prefixes: &[IpNet],
    own: &[IpAddr],
) -> Option<(IpAddr, IpAddr)> {
    let targets = spec
        .probe_address
        .into_iter()
        .chain(prefixes.iter().map(IpNet::network));
    targets.into_iter().find_map(|target| {
        let mut sources = own.iter().filter(|own| own.is_ipv4() == target.is_ipv4());
        sources.next().map(|source| (*source, target))
    })
}

/// How long the last error is shown at least.
const ERROR_LIFE: Duration = Duration::from_secs(60);
/// Questions of one peer answered, at most. It asks 160 a second where everything is set to the
/// most that can be; the rest is there so that its own get through beside forged ones.
const ANSWERS_PER_SECOND: f64 = 5000.0;

/// Where probes leave further apart than this there are so many peers that the searches for the
/// path MTU wait too.
const SEARCH_PACE: Duration = Duration::from_millis(2000);

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
