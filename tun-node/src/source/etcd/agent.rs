//! What to ask of the cluster, and what its answers mean: a state machine without a socket.
//!
//! ```text
//!            poll_request                handle(Input)              poll_update
//!  driver <───────────────── Agent <────────────────────── driver   ─────────────> RIB
//! ```
//!
//! The agent keeps a copy of everything below the prefix. Once listed, a watch from the next
//! revision on keeps it true. Whatever goes wrong (no answer, a compaction, a revision that is
//! smaller than it was, a count that differs) ends in the same step: list again, compare by value,
//! deliver the whole. Nothing is withdrawn because the cluster cannot be reached, and what is
//! missing after a break in its history is delivered as [`Continuity::Reset`].
//!
//! One request is out at a time. The driver gives each a time limit and says so when it ran out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use warren_core::encap::Encapsulation;
use warren_core::units::{Mtu, Time};

use super::claim::{Claim, OwnNode};
use super::copy::{Part, Store, part, read_value, shown};
use super::store::{Answer, Condition, Failure, Header, KEYS_MAX, Kv, Request, Value, WatchEvent};
use crate::flannel::{
    Backend, Fault, LEASE_TTL_S, LeaseAttrs, LeaseBackend, LeaseRules, NetConf, Refused, SubnetKey,
};
use crate::rib::{
    Change, Content, Continuity, Entry, Refusal, Remote, RemoteRoute, SourceKind, SourceUpdate,
    UpdateKind, Via,
};
use crate::source::alarms::Alarms;

/// What an agent is told once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AgentSettings {
    /// Where flannel's keys are, without a slash at the end.
    pub prefix: String,
    /// How long a lease lives without being renewed.
    pub lease_ttl_s: i64,
    /// Whether nodes may be reached at loopback addresses.
    pub allow_loopback: bool,
    /// How often the cluster is asked at least whether it is there. Where nodes are few, they ask
    /// more often: so that all of them together ask 200 times a second, and none more than once.
    pub ping_every: Duration,
    /// How often the copy is held against the cluster's count.
    pub count_every: Duration,
    /// How many keys below the prefix are kept. Of more, which nobody means well by, any may be
    /// those that are not seen.
    pub keys_max: usize,
    /// The first of the random numbers.
    pub seed: u64,
    /// The subnet that the node had before.
    pub previous: Option<SubnetKey>,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            prefix: crate::flannel::DEFAULT_PREFIX.to_owned(),
            lease_ttl_s: LEASE_TTL_S,
            allow_loopback: false,
            ping_every: Duration::from_secs(5),
            count_every: Duration::from_secs(60),
            keys_max: KEYS_MAX,
            seed: 0,
            previous: None,
        }
    }
}

/// What happens to an agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Input {
    /// The answer to the request that is out.
    Answer(Result<Answer, Failure>),
    /// What the watch saw, all of one or more revisions.
    Watched {
        /// Of the store.
        header: Header,
        /// The events, oldest first.
        events: Vec<WatchEvent>,
    },
    /// The watch is over.
    WatchEnded {
        /// Why, for people.
        why: String,
    },
    /// The node's addresses are others.
    Own(OwnNode),
    /// The node leaves and gives its subnet back.
    Leave,
}

/// What the rest of the node should know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Notice {
    /// The node has this subnet of this network.
    Claimed {
        /// The subnet.
        subnet: SubnetKey,
        /// The network.
        network: NetConf,
    },
    /// Someone should look at this.
    Alarm(String),
    /// The subnet was given back.
    Left,
}

/// The state machine of the etcd source; see the [module](self).
#[derive(Debug)]
pub struct Agent {
    settings: AgentSettings,
    claim: Claim,
    phase: Phase,
    /// Whether a request is out, and which.
    asked: Option<Request>,
    copy: Store,
    network: Option<NetConf>,
    /// What the RIB was told of each key.
    told: BTreeMap<Arc<str>, Entry>,
    /// The own entry, which is told whatever the store says.
    own_key: Option<(SubnetKey, u64)>,
    ping_at: Time,
    count_at: Time,
    retry_at: Time,
    backoff: Duration,
    watch_backoff: Duration,
    /// What had been seen when the count last differed.
    differed: Option<u64>,
    now: Time,
    alarms: Alarms,
    /// What the cluster was lost for, until it answers.
    lost: Option<String>,
    updates: VecDeque<SourceUpdate>,
    notices: VecDeque<Notice>,
    /// What the node was told that it has.
    claimed: Option<(SubnetKey, NetConf)>,
    left: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// The copy is not known to be true.
    Stale,
    /// It is, and a watch from this revision on is wanted.
    Synced { watch_from: u64 },
}

impl Agent {
    /// Starts without having asked anything.
    #[must_use]
    pub fn new(settings: AgentSettings, own: OwnNode) -> Self {
        let claim = Claim::new(own, settings.lease_ttl_s, settings.seed, settings.previous);
        Self {
            settings,
            claim,
            phase: Phase::Stale,
            asked: None,
            copy: Store::default(),
            network: None,
            told: BTreeMap::new(),
            own_key: None,
            ping_at: Time::ZERO,
            count_at: Time::ZERO,
            retry_at: Time::ZERO,
            backoff: BACKOFF_LEAST,
            watch_backoff: BACKOFF_LEAST,
            differed: None,
            now: Time::ZERO,
            alarms: Alarms::new(),
            lost: None,
            updates: VecDeque::new(),
            notices: VecDeque::new(),
            claimed: None,
            left: false,
        }
    }

    /// Takes an input. `now` must not run backwards from call to call.
    pub fn handle(&mut self, input: Input, now: Time) {
        self.now = now;
        match input {
            Input::Answer(answer) => self.answered(answer, now),
            Input::Watched { header, events } => self.watched(header, events),
            Input::WatchEnded { why } => {
                if matches!(self.phase, Phase::Synced { .. }) {
                    self.phase = Phase::Stale;
                    self.retry_at = now.after(self.watch_backoff);
                    self.watch_backoff = (self.watch_backoff * 2).min(BACKOFF_MOST);
                    self.alarm(format!("the watch ended: {why}"));
                }
            }
            Input::Own(own) => {
                self.claim.set_own(own);
                self.tell_all(Continuity::Same);
            }
            Input::Leave => self.claim.leave(),
        }
    }

    /// The request to make now; its answer or failure must come back as [`Input::Answer`].
    pub fn poll_request(&mut self, now: Time) -> Option<Request> {
        self.now = now;
        let due = self.alarms.poll(now);
        self.notices.extend(due.map(Notice::Alarm));
        if self.asked.is_some() || now < self.retry_at {
            return None;
        }
        let request = match self.phase {
            Phase::Stale => Some(Request::List),
            Phase::Synced { .. } => self.next_request(now),
        };
        self.settle_claim();
        self.asked.clone_from(&request);
        request
    }

    /// The revision to watch from; `None` when no watch is wanted. Another revision than before
    /// wants another watch.
    #[must_use]
    pub const fn wanted_watch(&self) -> Option<u64> {
        match self.phase {
            Phase::Stale => None,
            Phase::Synced { watch_from } => Some(watch_from),
        }
    }

    /// When [`Agent::poll_request`] or [`Agent::poll_notice`] may have something though nothing
    /// happened.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.asked.is_some() {
            return None;
        }
        let request = if self.phase == Phase::Stale {
            self.retry_at
        } else {
            let claim = self.claim.poll_timeout(self.now);
            let next = claim.map_or(self.ping_at, |at| at.min(self.ping_at));
            next.max(self.retry_at)
        };
        let alarm = self.alarms.poll_timeout();
        Some(alarm.map_or(request, |at| at.min(request)))
    }

    /// What the RIB should be told next.
    pub fn poll_update(&mut self) -> Option<SourceUpdate> {
        self.updates.pop_front()
    }

    /// What the node should know next.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// The subnet that this node has.
    #[must_use]
    pub fn subnet(&self) -> Option<SubnetKey> {
        self.own_key.map(|(key, _)| key)
    }

    /// The lease that the subnet lives with.
    #[must_use]
    pub fn lease(&self) -> Option<i64> {
        self.claim.lease()
    }

    /// The network's configuration, the last that was usable.
    #[must_use]
    pub const fn network(&self) -> Option<&NetConf> {
        self.network.as_ref()
    }

    fn next_request(&mut self, now: Time) -> Option<Request> {
        let (prefix, copy) = (&self.settings.prefix, &self.copy);
        let network = self.network.as_ref();
        let is_named = |address| copy.names(address);
        let claim = &mut self.claim;
        let write = claim.next(network, &copy.holdings, is_named, prefix, now);
        if let Some(alarm) = self.claim.poll_alarm() {
            self.alarm(alarm);
        }
        if self.claim.has_left(&self.copy.holdings) && !self.left {
            self.left = true;
            self.notices.push_back(Notice::Left);
        }
        if write.is_some() {
            return write;
        }
        if now >= self.count_at {
            self.count_at = now.after(self.settings.count_every);
            return Some(Request::Count);
        }
        if now >= self.ping_at {
            self.ping_at = now.after(self.ping_every());
            let key = match self.claim.held() {
                Some(held) => held.under(&self.settings.prefix),
                None => format!("{}/config", self.settings.prefix),
            };
            return Some(Request::Ping { key });
        }
        None
    }

    /// How long until the next ping: what goes on behind the watch (a store that was wiped while
    /// nothing passed) shows by it alone.
    fn ping_every(&self) -> Duration {
        let nodes = u32::try_from(self.copy.holdings.len()).unwrap_or(u32::MAX);
        let every = PING_SHARE.saturating_mul(nodes).max(PING_LEAST);
        every.min(self.settings.ping_every)
    }

    fn answered(&mut self, answer: Result<Answer, Failure>, now: Time) {
        let Some(request) = self.asked.take() else {
            return;
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => return self.failed(&request, failure, now),
        };
        self.backoff = BACKOFF_LEAST;
        if let Some(why) = self.lost.take() {
            self.alarms.retract_this(&why);
        }
        self.ping_at = now.after(self.ping_every());
        match (request, answer) {
            (Request::List, Answer::Listed { header, kvs }) => {
                self.count_at = now.after(self.settings.count_every);
                self.listed(header, kvs);
            }
            (Request::Count, Answer::Counted { header, count }) => {
                // Events that are under way explain a difference, but not twice; and beyond what is
                // kept there is nothing to compare.
                let [there, here] = [count, self.copy.len()].map(|n| n.min(self.settings.keys_max));
                let differs = (there != here).then_some(self.copy.seen);
                if self.is_of_before(header) || (differs.is_some() && differs == self.differed) {
                    self.phase = Phase::Stale;
                }
                self.differed = differs;
                if differs.is_some() {
                    self.count_at = now.after(self.settings.ping_every);
                }
                self.heard(header);
            }
            (
                Request::Ping { key },
                Answer::Pong {
                    header,
                    mod_revision,
                },
            ) => {
                // A store that was wiped may have been written to until it is as far as it was; a
                // watch that is behind costs a list that was not needed.
                let known = self
                    .copy
                    .mod_revision(key.as_bytes(), &self.settings.prefix);
                if self.is_of_before(header) || known != mod_revision {
                    self.phase = Phase::Stale;
                }
                self.watch_backoff = BACKOFF_LEAST;
                self.heard(header);
            }
            (Request::Grant { .. }, Answer::Granted { lease, ttl_s }) => {
                self.claim.leased(lease, ttl_s, now);
            }
            (Request::Renew { lease }, Answer::Renewed { ttl_s }) => {
                self.claim.leased(lease, ttl_s, now);
            }
            (Request::Revoke { lease }, Answer::Done) => {
                self.claim.lease_lost();
                self.copy.drop_lease(lease);
            }
            (
                Request::Put {
                    key,
                    condition,
                    value,
                    lease,
                },
                Answer::Written { header, succeeded },
            ) => {
                if succeeded {
                    self.claim.written();
                    self.put_by_us(key, condition, value, lease, header);
                } else {
                    self.not_written(now);
                }
            }
            (Request::Delete { key, .. }, Answer::Written { header, succeeded }) => {
                if succeeded {
                    self.claim.written();
                    let key = key.into_bytes();
                    let revision = header.revision;
                    self.take_own(WatchEvent::Delete { key, revision });
                } else {
                    self.not_written(now);
                }
            }
            (_, Answer::Listed { .. } | Answer::Counted { .. } | Answer::Pong { .. })
            | (_, Answer::Granted { .. } | Answer::Renewed { .. })
            | (_, Answer::Written { .. } | Answer::Done) => {
                self.alarm("the answer is to another question".to_owned());
                self.phase = Phase::Stale;
            }
        }
        self.settle_claim();
    }

    /// Someone was faster; the watch will say who, unless it is behind.
    fn not_written(&mut self, now: Time) {
        self.claim.not_written(now);
        // With more keys than are kept a list says no more than is known, and this would go on.
        if !self.is_full() {
            self.phase = Phase::Stale;
        }
    }

    fn failed(&mut self, request: &Request, failure: Failure, now: Time) {
        let is_refused = matches!(failure, Failure::Refused(_));
        match failure {
            Failure::NoSuchLease => {
                self.claim.lease_lost();
                return;
            }
            Failure::Unreachable(why) | Failure::Refused(why) => {
                self.updates.push_back(SourceUpdate {
                    source: SourceKind::Etcd,
                    kind: UpdateKind::Lost { why: why.clone() },
                });
                // That a list is answered says nothing of a write that was refused.
                self.lost = (!is_refused || !request.is_write()).then(|| why.clone());
                self.alarm(why);
            }
        }
        if let Request::Revoke { .. } = request
            && matches!(self.phase, Phase::Stale)
        {
            self.claim.lease_lost();
        }
        self.phase = Phase::Stale;
        self.retry_at = now.after(self.backoff);
        self.backoff = (self.backoff * 2).min(BACKOFF_MOST);
    }

    /// Compares everything with the copy.
    fn listed(&mut self, header: Header, kvs: Vec<Kv>) {
        let mut fresh = Store {
            header,
            seen: header.revision,
            ..Store::default()
        };
        for kv in kvs.into_iter().take(self.settings.keys_max) {
            fresh.put(kv, &self.settings.prefix);
        }
        let broken = self.is_of_before(header) || fresh.contradicts(&self.copy);
        if broken {
            // The lease is one of another history.
            self.claim.lease_lost();
        }
        let before = std::mem::replace(&mut self.copy, fresh);
        self.phase = Phase::Synced {
            watch_from: header.revision + 1,
        };
        if before.config != self.copy.config || self.network.is_none() {
            self.read_network();
        }
        self.copy
            .read_holdings(self.network.as_ref(), &self.settings);
        self.look_at_claim();
        if self.is_full() {
            self.alarm_of_many();
        }
        if self.network.is_none() {
            return self.heard(header);
        }
        let continuity = if broken {
            Continuity::Reset
        } else {
            Continuity::Same
        };
        self.tell_all(continuity);
    }

    fn watched(&mut self, header: Header, events: Vec<WatchEvent>) {
        if self.phase == Phase::Stale {
            return;
        }
        if header.cluster != self.copy.header.cluster && self.copy.header.cluster != 0 {
            self.phase = Phase::Stale;
            return;
        }
        self.take_events(events);
    }

    /// Applies events, of which some may have been seen.
    fn take_events(&mut self, events: impl IntoIterator<Item = WatchEvent>) {
        let mut touched: BTreeSet<Vec<u8>> = BTreeSet::new();
        let mut config_changed = false;
        for event in events {
            let revision = event.revision();
            if self.copy.has_seen(&event, &self.settings.prefix) {
                continue;
            }
            self.copy.seen = self.copy.seen.max(revision);
            // What the node cannot do without has room when the watch tells of it: the configuration,
            // what is its own. Of a list only the beginning has.
            if let WatchEvent::Put(kv) = &event
                && self.is_full()
                && !self.copy.has(&kv.key, &self.settings.prefix)
                && !matches!(part(&kv.key, &self.settings.prefix), Part::Config)
                && self.claim.lease() != Some(kv.lease)
            {
                self.alarm_of_many();
                continue;
            }
            let key = match &event {
                WatchEvent::Put(kv) => kv.key.clone(),
                WatchEvent::Delete { key, .. } => key.clone(),
            };
            match part(&key, &self.settings.prefix) {
                Part::Config => config_changed = true,
                Part::Subnet(name) => {
                    touched.insert(name.to_vec());
                }
                Part::Other => {}
            }
            match event {
                WatchEvent::Put(kv) => self.copy.put(kv, &self.settings.prefix),
                WatchEvent::Delete { key, .. } => self.copy.delete(&key, &self.settings.prefix),
            }
        }
        if config_changed {
            self.read_network();
            self.copy
                .read_holdings(self.network.as_ref(), &self.settings);
            self.look_at_claim();
            self.tell_all(Continuity::Same);
            return;
        }
        let network = self.network.as_ref();
        for name in &touched {
            self.copy.read_holding(name, network, &self.settings);
        }
        self.look_at_claim();
        self.tell(touched);
    }

    fn put_by_us(
        &mut self,
        key: String,
        condition: Condition,
        value: String,
        lease: i64,
        header: Header,
    ) {
        let key = key.into_bytes();
        let revision = header.revision;
        let create_revision = match condition {
            Condition::Absent => revision,
            Condition::Unchanged(_) => match part(&key, &self.settings.prefix) {
                Part::Subnet(name) => {
                    let known = self.copy.subnets.get(name);
                    known.map_or(revision, |kv| kv.create_revision)
                }
                Part::Config | Part::Other => revision,
            },
        };
        self.take_own(WatchEvent::Put(Kv {
            key,
            value: Value::Octets(value.into_bytes()),
            create_revision,
            mod_revision: revision,
            lease,
        }));
    }

    /// Applies what this node did, before the watch tells.
    fn take_own(&mut self, event: WatchEvent) {
        // Earlier events may still be under way, so what was seen stays what it was.
        let seen = self.copy.seen;
        self.take_events([event]);
        self.copy.seen = seen;
    }

    /// Whether no further key is kept.
    fn is_full(&self) -> bool {
        self.copy.len() >= self.settings.keys_max
    }

    fn alarm_of_many(&mut self) {
        let (prefix, most) = (&self.settings.prefix, self.settings.keys_max);
        self.alarm(format!(
            "there are {most} keys or more below {prefix}; beyond these none is seen"
        ));
    }

    /// Whether the store is not the one of before, or one of an earlier time.
    fn is_of_before(&self, header: Header) -> bool {
        let known = self.copy.header;
        known.revision != 0
            && (header.cluster != known.cluster
                || header.revision < self.copy.seen.max(known.revision))
    }

    fn read_network(&mut self) {
        let read = match &self.copy.config {
            None => Err("there is no network configuration yet".to_owned()),
            Some(Kv {
                value: Value::Octets(octets),
                ..
            }) => NetConf::parse(octets).map_err(|error| error.to_string()),
            Some(_) => Err("the network configuration is too large".to_owned()),
        };
        match read {
            Ok(network) => {
                self.network = Some(network);
                self.alarms.retract();
            }
            // The last usable one stays in force.
            Err(why) => self.alarm(why),
        }
    }

    /// Lets the claim look at the copy, so that what is own is told as own.
    fn look_at_claim(&mut self) {
        let Some(network) = &self.network else {
            return;
        };
        self.claim.look(network, &self.copy.holdings);
        if let Some(held) = self.claim.held()
            && let Some(holding) = self.copy.holdings.get(&held)
        {
            self.own_key = Some((held, holding.create_revision));
        } else if let Some((known, _)) = self.own_key
            && (self.claim.is_given_up(&known) || !known.conforms(network))
        {
            self.own_key = None;
        }
    }

    /// Tells the RIB and the node what became of the claim, the subnet or the network it is of.
    fn settle_claim(&mut self) {
        let own = self.own_key.map(|(subnet, _)| subnet);
        let own = own.zip(self.network.as_ref());
        let known = self.claimed.as_ref();
        if own == known.map(|(subnet, network)| (*subnet, network)) {
            return;
        }
        let claimed = own.map(|(subnet, network)| (subnet, network.clone()));
        let before = std::mem::replace(&mut self.claimed, claimed.clone());
        let both = [before.as_ref(), claimed.as_ref()].into_iter().flatten();
        let names = both.map(|(subnet, _)| subnet.to_string().into_bytes());
        self.tell(names.collect());
        if let Some((subnet, network)) = claimed {
            self.notices.push_back(Notice::Claimed { subnet, network });
        }
    }

    /// Tells the RIB everything; nothing before there is a network. Then nobody can say what the
    /// keys mean, and that they mean nothing would take remembered routes away.
    fn tell_all(&mut self, continuity: Continuity) {
        if self.network.is_none() {
            return;
        }
        let names: Vec<Vec<u8>> = self.copy.subnets.keys().cloned().collect();
        let mut told: BTreeMap<Arc<str>, Entry> = BTreeMap::new();
        for name in &names {
            if let Some(entry) = self.entry(name) {
                told.insert(Arc::clone(&entry.key), entry);
            }
        }
        if let Some(entry) = self.own_entry() {
            told.insert(Arc::clone(&entry.key), entry);
        }
        let entries = told.values().cloned().collect();
        self.told = told;
        self.updates.push_back(SourceUpdate {
            source: SourceKind::Etcd,
            kind: UpdateKind::Full {
                entries,
                position: self.copy.seen,
                continuity,
            },
        });
    }

    /// Tells the RIB what became of some keys.
    fn tell(&mut self, names: BTreeSet<Vec<u8>>) {
        let mut changes = Vec::new();
        for name in names {
            let key = shown(&name);
            let entry = match self.own_entry().filter(|own| own.key == key) {
                Some(own) => Some(own),
                None => self.entry(&name),
            };
            if self.told.get(&key) == entry.as_ref() {
                continue;
            }
            changes.push(match entry {
                Some(entry) => {
                    self.told.insert(key, entry.clone());
                    Change::Put(entry)
                }
                None => {
                    self.told.remove(&key);
                    Change::Gone(key)
                }
            });
        }
        if changes.is_empty() {
            return;
        }
        self.updates.push_back(SourceUpdate {
            source: SourceKind::Etcd,
            kind: UpdateKind::Delta {
                changes,
                position: self.copy.seen,
            },
        });
    }

    /// What a key below `subnets/` says; `None` without a network, or when it is this node's.
    fn entry(&self, name: &[u8]) -> Option<Entry> {
        let network = self.network.as_ref()?;
        let kv = self.copy.subnets.get(name)?;
        let key = SubnetKey::parse(name);
        if let (Ok(key), Some((own, _))) = (&key, &self.own_key)
            && key == own
        {
            return self.own_entry();
        }
        let read = key.and_then(|key| {
            key.fits(network)?;
            let rules = LeaseRules::of(network, self.settings.allow_loopback);
            let attrs = read_value(&kv.value, &rules)?;
            Ok((key, attrs))
        });
        let read = read.and_then(|(key, attrs)| Ok((key, remote(&key, &attrs, network)?)));
        let (rank, content) = match read {
            Ok((key, remote)) => (
                rank(&key, kv.create_revision, network),
                Content::Remote(Arc::new(remote)),
            ),
            Err(Refused { fault, detail }) => {
                let name = fault.name();
                (u64::MAX, Content::Refused(Refusal { name, detail }))
            }
        };
        Some(Entry {
            key: shown(name),
            rank,
            content,
        })
    }

    /// This node's own entry, which stays while the store is being repaired.
    fn own_entry(&self) -> Option<Entry> {
        let network = self.network.as_ref()?;
        let (key, create_revision) = self.own_key?;
        let attrs = self.claim.own().attrs(network);
        let remote = remote(&key, &attrs, network).ok()?;
        Some(Entry {
            key: shown(key.to_string().as_bytes()),
            rank: rank(&key, create_revision, network),
            content: Content::Own(Arc::new(remote)),
        })
    }

    /// The cluster answered; where it is in its history is remembered.
    fn heard(&mut self, header: Header) {
        let known = &mut self.copy.header;
        if self.phase != Phase::Stale {
            known.revision = known.revision.max(header.revision);
        }
        if self.updates.is_empty() {
            self.updates.push_back(SourceUpdate {
                source: SourceKind::Etcd,
                kind: UpdateKind::Contact,
            });
        }
    }

    /// Says something to people, when its time has come.
    fn alarm(&mut self, text: String) {
        let due = self.alarms.say(text, self.now);
        self.notices.extend(due.map(Notice::Alarm));
    }
}

/// First the subnets that the configuration hands out, then the others; each by age.
fn rank(key: &SubnetKey, create_revision: u64, network: &NetConf) -> u64 {
    let age = create_revision & (u64::MAX >> 1);
    if key.conforms(network) {
        age
    } else {
        age | (1 << 63)
    }
}

/// The node that a lease describes.
fn remote(key: &SubnetKey, attrs: &LeaseAttrs, network: &NetConf) -> Result<Remote, Refused> {
    let (vxlan_v4, vxlan_v6) = match attrs.backend {
        LeaseBackend::Vxlan { v4, v6 } => (v4, v6),
        LeaseBackend::Ipip | LeaseBackend::HostGw | LeaseBackend::Udp => (None, None),
    };
    let underlay_mtu = match network.backend {
        Backend::Vxlan(vxlan) => vxlan.mtu.map(Mtu::new),
        Backend::Ipip { .. } | Backend::HostGw | Backend::Udp { .. } => None,
    };
    let missing = |member: &str| Fault::MissingMember.with(member);
    let mut routes = Vec::with_capacity(2);
    for prefix in key.prefixes() {
        let (remote, vxlan, member) = match prefix {
            IpNet::V4(_) => (attrs.public_ip.into(), vxlan_v4, "BackendData"),
            IpNet::V6(_) => {
                let address = attrs.public_ipv6.ok_or_else(|| missing("PublicIPv6"))?;
                (address.into(), vxlan_v6, "BackendV6Data")
            }
        };
        let encapsulation = match network.backend {
            Backend::Vxlan(backend) => {
                let vxlan = vxlan.ok_or_else(|| missing(member))?;
                Some(Encapsulation::Vxlan {
                    vni: vxlan.vni,
                    port: backend.port,
                    mac: vxlan.mac,
                })
            }
            Backend::Ipip { .. } => Some(Encapsulation::Ipip),
            Backend::Udp { port } => Some(Encapsulation::Fou { port }),
            Backend::HostGw => None,
        };
        routes.push(RemoteRoute {
            prefix,
            via: Via {
                remote,
                encapsulation,
                underlay_mtu,
            },
        });
    }
    Ok(Remote {
        node: Arc::from(attrs.public_ip.to_string()),
        routes,
    })
}

/// How long to wait after a failure, doubled from one to the next.
const BACKOFF_LEAST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_millis(500);
/// The least time between two pings, and each node's share of the time between them.
const PING_LEAST: Duration = Duration::from_secs(1);
const PING_SHARE: Duration = Duration::from_millis(5);

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
