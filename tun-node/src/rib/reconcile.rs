//! From what sources say to what is routed: the state machine of the routing table.
//!
//! ```text
//!  SourceUpdate ─> slots of the source ──> Resolver ──> RouteChange
//!                    │        ▲                │
//!                    ▼        │ confirm, time  └─ loses: quarantine
//!                  guard: held withdrawals
//! ```
//!
//! [`Reconciler::handle`] takes an event and the time and returns what changed. It has no thread,
//! file, socket or clock, and the same events at the same times give the same result, octet for
//! octet.
//!
//! - *Reconciled by value.* A full delivery and any number of deltas that come to the same entries
//!   come to the same routes; a route whose value is the same is not touched.
//! - *Fail-static.* A source that does not answer changes nothing.
//! - *Guard.* Where more than half of a source's remote routes would go at once (this host's own
//!   files excepted, whose author asked for it) they are held for
//!   a minute, and kept, unless someone confirms. After a break in the source's history
//!   ([`Continuity::Reset`]) whatever is missing is held, however little it is. What a held route
//!   says is remembered only: an entry of any source that contradicts it wins at once.
//! - *Poison.* An entry that cannot be used is quarantined under its name, and is alone in that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use warren_core::units::Time;

use super::event::{Event, Identity, Outcome, Quarantined, Settings, SourceStatus, Why};
use super::journal::{Journal, What};
use super::resolve::{LiveRoute, Offer, Order, Resolver, RouteChange, Verdict, Whose};
use super::update::{
    Change, Content, Continuity, Entry, Refusal, SourceKind, SourceUpdate, UpdateKind,
};

/// The routing table's state machine; see the module.
#[derive(Debug)]
pub struct Reconciler {
    settings: Settings,
    identity: Identity,
    sources: BTreeMap<SourceKind, Source>,
    resolver: Resolver,
    journal: Journal,
    /// Those listed as quarantined at the last look, to say what is new.
    listed: BTreeSet<(SourceKind, Arc<str>)>,
}

#[derive(Debug, Default)]
struct Source {
    slots: BTreeMap<Arc<str>, Slot>,
    /// Those of the slots that nothing can be made of, and those that feign to be this node.
    refused: BTreeMap<Arc<str>, Refusal>,
    status: SourceStatus,
    /// Withdrawals of the last moments.
    withdrawn: VecDeque<(Time, IpNet)>,
    /// Whether the limit was reached since everything was delivered.
    full: bool,
}

#[derive(Debug)]
struct Slot {
    rank: u64,
    content: Content,
    keep: Keep,
    whose: Whose,
    /// Its place in the resolver, if it is there.
    order: Option<Order>,
}

/// Why a slot is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Keep {
    /// The source says so.
    Said,
    /// Its withdrawal is held until then.
    Held(Time),
    /// It is remembered until then.
    Remembered(Time),
}

impl Keep {
    const fn until(self) -> Option<Time> {
        match self {
            Self::Said => None,
            Self::Held(until) | Self::Remembered(until) => Some(until),
        }
    }
}

impl Reconciler {
    /// Starts with nothing.
    #[must_use]
    pub fn new(settings: Settings, identity: Identity) -> Self {
        Self {
            settings,
            identity,
            sources: BTreeMap::new(),
            resolver: Resolver::default(),
            journal: Journal::new(),
            listed: BTreeSet::new(),
        }
    }

    /// Takes an event. `now` must not run backwards from call to call.
    pub fn handle(&mut self, event: Event, now: Time) -> Outcome {
        self.handle_all([event], now)
    }

    /// Takes events that came together, and decides once.
    pub fn handle_all(&mut self, events: impl IntoIterator<Item = Event>, now: Time) -> Outcome {
        let mut step = Step {
            now,
            alarms: Vec::new(),
        };
        for event in events {
            match event {
                Event::Update(update) => self.update(update, &mut step),
                Event::Confirm(source) => self.confirm(source, &mut step),
                Event::Restore {
                    source,
                    entries,
                    age,
                } => self.restore(source, entries, age, &mut step),
                Event::Timeout => {}
                Event::Identity(identity) => self.set_identity(identity),
            }
        }
        self.expire(&mut step);
        let routes = self.resolver.settle();
        self.list_quarantine(&mut step);
        self.log(&routes, &step);
        Outcome {
            routes,
            alarms: step.alarms,
        }
    }

    /// The operator chose otherwise; what is held already is held as long as it was to be.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// When [`Event::Timeout`] is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let sources = self.sources.values();
        sources.filter_map(|source| source.status.hold_until).min()
    }

    /// Every route, in order of the prefixes.
    pub fn routes(&self) -> impl Iterator<Item = &LiveRoute> {
        self.resolver.routes()
    }

    /// The state of each source that ever said something.
    pub fn sources(&self) -> impl Iterator<Item = (SourceKind, &SourceStatus)> {
        let sources = self.sources.iter();
        sources.map(|(kind, source)| (*kind, &source.status))
    }

    /// Every entry of a source that is usable, to be remembered across a restart.
    pub fn entries(&self, source: SourceKind) -> impl Iterator<Item = Entry> {
        let source = self.sources.get(&source).into_iter();
        source.flat_map(|source| {
            source.slots.iter().filter_map(|(key, slot)| {
                let content = match &slot.content {
                    Content::Remote(_) | Content::Own(_) => slot.content.clone(),
                    Content::Refused(_) => return None,
                };
                Some(Entry {
                    key: Arc::clone(key),
                    rank: slot.rank,
                    content,
                })
            })
        })
    }

    /// A number for what this host's own files say and for what it is itself. What was decided by
    /// another one may not hold. Another build of the program may give another number.
    #[must_use]
    pub fn basis(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.identity.hash(&mut hasher);
        for (kind, source) in self.sources.iter().filter(|(kind, _)| kind.is_local()) {
            for (key, slot) in &source.slots {
                (kind, key, slot.rank, &slot.content).hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// Every entry that is not applied because something is wrong with it.
    pub fn quarantine(&self) -> impl Iterator<Item = Quarantined> {
        let refused = self.sources.iter().flat_map(|(kind, source)| {
            source.refused.iter().map(|(key, refusal)| Quarantined {
                source: *kind,
                key: Arc::clone(key),
                refusal: refusal.clone(),
            })
        });
        // What is only remembered, or stands behind a preferred source, is not wrong.
        let lost = self.resolver.rejected().filter(|order| {
            let source = self.sources.get(&order.source);
            let is_listed = source.is_some_and(|source| source.refused.contains_key(&order.key));
            !order.remembered && !is_listed
        });
        refused.chain(
            lost.filter_map(|order| match self.resolver.verdict(order)? {
                Verdict::Rejected {
                    refusal,
                    shadowed: false,
                } => Some(Quarantined {
                    source: order.source,
                    key: Arc::clone(&order.key),
                    refusal,
                }),
                Verdict::Rejected { shadowed: true, .. } | Verdict::Accepted => None,
            }),
        )
    }

    /// Every entry that says something of a prefix that overlaps `prefix`, the winner first.
    #[must_use]
    pub fn why(&self, prefix: IpNet) -> Vec<Why> {
        let mut all = Vec::new();
        let slots = self.sources.values().flat_map(|source| {
            let slots = source.slots.iter();
            slots.map(|(key, slot)| (slot, source.refused.get(key)))
        });
        for (slot, refusal) in slots {
            let (Some(order), Content::Remote(remote) | Content::Own(remote)) =
                (&slot.order, &slot.content)
            else {
                continue;
            };
            let Some(verdict) = self.resolver.verdict(order) else {
                continue;
            };
            let verdict = refusal.map_or(verdict, |refusal| Verdict::Rejected {
                refusal: refusal.clone(),
                shadowed: false,
            });
            for route in &remote.routes {
                if route.prefix.contains(&prefix) || prefix.contains(&route.prefix) {
                    all.push(Why {
                        order: order.clone(),
                        prefix: route.prefix,
                        node: Arc::clone(&remote.node),
                        verdict: verdict.clone(),
                        until: slot.keep.until(),
                    });
                }
            }
        }
        all.sort_by(|a, b| (&a.order, a.prefix).cmp(&(&b.order, b.prefix)));
        all
    }

    /// What happened lately.
    #[must_use]
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    fn update(&mut self, update: SourceUpdate, step: &mut Step) {
        let kind = update.source;
        let status = &mut self.sources.entry(kind).or_default().status;
        if !matches!(update.kind, UpdateKind::Lost { .. }) {
            status.contact = Some(step.now);
        }
        match update.kind {
            UpdateKind::Contact => status.lost = None,
            UpdateKind::Lost { why } => {
                if status.lost.is_none() {
                    let subject = Arc::from(kind.name());
                    let detail = || why.clone();
                    let journal = &mut self.journal;
                    journal.push(step.now, kind, What::Lost, &subject, detail);
                }
                status.lost = Some(why);
            }
            UpdateKind::Full {
                entries,
                position,
                continuity,
            } => {
                status.position = position;
                self.full(kind, entries, continuity, step);
            }
            UpdateKind::Delta { changes, position } => {
                status.lost = None;
                status.position = position;
                let mut puts = BTreeMap::new();
                let mut gone = BTreeSet::new();
                for change in changes {
                    match change {
                        Change::Put(entry) => {
                            gone.remove(&entry.key);
                            puts.insert(Arc::clone(&entry.key), entry);
                        }
                        Change::Gone(key) => {
                            puts.remove(&key);
                            gone.insert(key);
                        }
                    }
                }
                self.apply(kind, puts, gone, Continuity::Same, step);
            }
        }
    }

    fn full(
        &mut self,
        kind: SourceKind,
        entries: Vec<Entry>,
        continuity: Continuity,
        step: &mut Step,
    ) {
        let source = self.sources.entry(kind).or_default();
        source.status.lost = None;
        source.status.synced = Some(step.now);
        source.full = false;
        let count = entries.len();
        let entries = entries.into_iter();
        let puts: BTreeMap<_, _> = entries.map(|e| (Arc::clone(&e.key), e)).collect();
        let slots = source.slots.keys();
        let gone = slots.filter(|key| !puts.contains_key(*key)).cloned();
        let gone = gone.collect();
        let subject = Arc::from(kind.name());
        self.journal
            .push(step.now, kind, What::Synced, &subject, || {
                format!("{count} entries")
            });
        self.apply(kind, puts, gone, continuity, step);
    }

    /// Brings a source's slots to what it says, but for what the guard holds.
    fn apply(
        &mut self,
        kind: SourceKind,
        puts: BTreeMap<Arc<str>, Entry>,
        gone: BTreeSet<Arc<str>>,
        continuity: Continuity,
        step: &mut Step,
    ) {
        let live = self.resolver.remote_routes(kind);
        let poisoned: Vec<Arc<str>> = puts
            .values()
            .filter(|entry| matches!(entry.content, Content::Refused(_)))
            .map(|entry| Arc::clone(&entry.key))
            .collect();
        // A prefix that another key takes over is not lost.
        let kept: BTreeSet<IpNet> = if gone.is_empty() && poisoned.is_empty() {
            BTreeSet::new()
        } else {
            puts.values().flat_map(prefixes).collect()
        };
        // Held now or before: an unusable value does not take their place.
        let mut holding: BTreeSet<Arc<str>> = BTreeSet::new();
        // What turned unusable is withdrawn like what was taken away, and guarded like it.
        let mut withdrawals: Vec<(Arc<str>, Vec<IpNet>)> = Vec::new();
        let source = self.sources.entry(kind).or_default();
        for key in gone.iter().chain(&poisoned) {
            let Some(slot) = source.slots.get(key) else {
                continue;
            };
            if matches!(slot.keep, Keep::Held(_)) {
                holding.insert(Arc::clone(key));
                continue;
            }
            let accepted = slot.order.as_ref();
            let accepted = accepted.is_some_and(|order| self.resolver.is_accepted(order));
            let lost: Vec<IpNet> = match &slot.content {
                Content::Remote(remote) if accepted => {
                    let routes = remote.routes.iter().map(|route| route.prefix);
                    routes.filter(|prefix| !kept.contains(prefix)).collect()
                }
                Content::Remote(_) | Content::Own(_) | Content::Refused(_) => Vec::new(),
            };
            withdrawals.push((Arc::clone(key), lost));
        }
        let lost: usize = withdrawals.iter().map(|(_, lost)| lost.len()).sum();
        let resolver = &self.resolver;
        let held = lost > 0
            && !kind.is_local()
            && match continuity {
                Continuity::Reset => true,
                Continuity::Same => {
                    let lately = source.lately(&self.settings, step.now, resolver);
                    is_mass(lost + lately, live + lately, &self.settings)
                }
            };
        let until = step.now.after(self.settings.hold);
        let mut held_entries = 0_usize;
        for (key, lost) in withdrawals {
            if !held {
                let source = self.sources.entry(kind).or_default();
                let times = lost.iter().map(|prefix| (step.now, *prefix));
                source.withdrawn.extend(times);
            }
            if held && !lost.is_empty() {
                held_entries += 1;
                self.keep(kind, &key, Keep::Held(until));
                holding.insert(key);
            } else if gone.contains(&key) {
                self.drop_slot(kind, &key);
            }
        }
        // Entries that nobody ever accepted, and held ones, are dealt with; now what is said.
        for (key, entry) in puts {
            if !(holding.contains(&key) && matches!(entry.content, Content::Refused(_))) {
                self.put(kind, entry, Keep::Said, step);
            }
        }
        if held {
            let seconds = self.settings.hold.as_secs();
            let alarm = format!(
                "{kind}: {lost} of {live} remote routes would go at once; they are kept for \
                 {seconds} s; `tun-node confirm` withdraws them now"
            );
            let subject = Arc::from(kind.name());
            let detail = || format!("{lost} routes of {held_entries} entries");
            let journal = &mut self.journal;
            journal.push(step.now, kind, What::Held, &subject, detail);
            step.alarms.push(alarm);
        }
    }

    /// Sets one slot to what is said of it.
    fn put(&mut self, kind: SourceKind, entry: Entry, keep: Keep, step: &mut Step) {
        let Entry { key, rank, content } = entry;
        let content = checked(content);
        let feigned = self.feigned(&content);
        let whose = match &content {
            Content::Own(_) => Whose::Own,
            Content::Remote(_) if feigned.is_some() => Whose::Feigned,
            Content::Remote(_) | Content::Refused(_) => Whose::Another,
        };
        let source = self.sources.entry(kind).or_default();
        if let Some(slot) = source.slots.get_mut(&key) {
            // Held by the guard against an unusable value that is still there.
            let same = slot.rank == rank && slot.content == content && slot.whose == whose;
            if same && slot.keep == keep {
                return;
            }
        } else if source.slots.len() >= self.settings.entries_max {
            if !source.full {
                source.full = true;
                let most = self.settings.entries_max;
                let alarm = format!("{kind}: more than {most} entries; the rest is refused");
                step.alarms.push(alarm);
            }
            return;
        }
        self.drop_slot(kind, &key);
        let refusal = match &content {
            Content::Refused(refusal) => Some(refusal.clone()),
            Content::Remote(_) | Content::Own(_) => feigned,
        };
        if let Some(refusal) = refusal {
            let source = self.sources.entry(kind).or_default();
            source.refused.insert(Arc::clone(&key), refusal);
        }
        let order = match &content {
            Content::Refused(_) => None,
            Content::Remote(remote) | Content::Own(remote) => {
                let order = Order {
                    remembered: keep != Keep::Said,
                    preference: kind as u8,
                    rank,
                    source: kind,
                    key: Arc::clone(&key),
                };
                let offer = Offer {
                    remote: Arc::clone(remote),
                    whose,
                };
                self.resolver.insert(order.clone(), offer);
                Some(order)
            }
        };
        let slot = Slot {
            rank,
            content,
            keep,
            whose,
            order,
        };
        let source = self.sources.entry(kind).or_default();
        source.slots.insert(key, slot);
    }

    /// Keeps a slot for another reason than before.
    fn keep(&mut self, kind: SourceKind, key: &Arc<str>, keep: Keep) {
        let Some(source) = self.sources.get_mut(&kind) else {
            return;
        };
        let Some(slot) = source.slots.get_mut(key) else {
            return;
        };
        slot.keep = keep;
        if let Some(until) = keep.until() {
            let hold = &mut source.status.hold_until;
            *hold = Some(hold.map_or(until, |known| known.min(until)));
        }
        let (Some(order), Content::Remote(remote) | Content::Own(remote)) =
            (&mut slot.order, &slot.content)
        else {
            return;
        };
        let remembered = keep != Keep::Said;
        if order.remembered != remembered {
            self.resolver.remove(order);
            order.remembered = remembered;
            let offer = Offer {
                remote: Arc::clone(remote),
                whose: slot.whose,
            };
            self.resolver.insert(order.clone(), offer);
        }
    }

    fn drop_slot(&mut self, kind: SourceKind, key: &Arc<str>) {
        let source = self.sources.entry(kind).or_default();
        source.refused.remove(key);
        if let Some(slot) = source.slots.remove(key)
            && let Some(order) = slot.order
        {
            self.resolver.remove(&order);
        }
    }

    fn confirm(&mut self, source: Option<SourceKind>, step: &mut Step) {
        let kinds: Vec<SourceKind> = self.sources.keys().copied().collect();
        for kind in kinds {
            if source.is_none_or(|wanted| wanted == kind) {
                let due = |keep| matches!(keep, Keep::Held(_));
                self.release(kind, due, "confirmed", step);
            }
        }
    }

    /// Withdraws what is held or remembered and due.
    fn expire(&mut self, step: &mut Step) {
        let now = step.now;
        let kinds: Vec<SourceKind> = self.sources.keys().copied().collect();
        for kind in kinds {
            let until = self.sources.get(&kind).and_then(|s| s.status.hold_until);
            if until.is_none_or(|until| until > now) {
                continue;
            }
            let due = |keep| matches!(keep, Keep::Held(until) if until <= now);
            self.release(kind, due, "held long enough", step);
            let due = |keep| matches!(keep, Keep::Remembered(until) if until <= now);
            self.release(kind, due, "not confirmed in time", step);
        }
    }

    fn release(
        &mut self,
        kind: SourceKind,
        due: impl Fn(Keep) -> bool,
        why: &str,
        step: &mut Step,
    ) {
        let Some(source) = self.sources.get_mut(&kind) else {
            return;
        };
        let slots = source.slots.iter().filter(|(_, slot)| due(slot.keep));
        let keys: Vec<Arc<str>> = slots.map(|(key, _)| Arc::clone(key)).collect();
        for key in &keys {
            self.drop_slot(kind, key);
        }
        let source = self.sources.entry(kind).or_default();
        let untils = source.slots.values().filter_map(|slot| slot.keep.until());
        source.status.hold_until = untils.min();
        if !keys.is_empty() {
            let count = keys.len();
            let subject = Arc::from(kind.name());
            let detail = || format!("{count} entries, {why}");
            let journal = &mut self.journal;
            journal.push(step.now, kind, What::Released, &subject, detail);
            step.alarms
                .push(format!("{kind}: {count} entries withdrawn: {why}"));
        }
    }

    fn restore(&mut self, kind: SourceKind, entries: Vec<Entry>, age: Duration, step: &mut Step) {
        let Some(left) = self.settings.remember.checked_sub(age) else {
            return;
        };
        let keep = Keep::Remembered(step.now.after(left));
        let mut count = 0_usize;
        for entry in entries {
            let source = self.sources.entry(kind).or_default();
            // What the source itself said since the start is newer.
            if !source.slots.contains_key(&entry.key) {
                let key = Arc::clone(&entry.key);
                self.put(kind, entry, keep, step);
                self.keep(kind, &key, keep);
                count += 1;
            }
        }
        let subject = Arc::from(kind.name());
        let journal = &mut self.journal;
        journal.push(step.now, kind, What::Restored, &subject, || {
            format!("{count} entries")
        });
    }

    /// Looks at every entry again with another identity.
    fn set_identity(&mut self, identity: Identity) {
        if identity == self.identity {
            return;
        }
        self.identity = identity;
        let mut step = Step::default();
        let kinds: Vec<SourceKind> = self.sources.keys().copied().collect();
        for kind in kinds {
            let slots = self.sources.get(&kind).map(|source| &source.slots);
            let entries = slots.into_iter().flatten().map(|(key, slot)| {
                let entry = Entry {
                    key: Arc::clone(key),
                    rank: slot.rank,
                    content: slot.content.clone(),
                };
                (entry, slot.keep)
            });
            for (entry, keep) in entries.collect::<Vec<_>>() {
                self.put(kind, entry, keep, &mut step);
            }
        }
    }

    /// Why what another node says would make it this one, if it does.
    fn feigned(&self, content: &Content) -> Option<Refusal> {
        let Content::Remote(remote) = content else {
            return None;
        };
        let refusal = |name, detail| Some(Refusal { name, detail });
        for route in &remote.routes {
            if self.identity.underlay.contains(&route.via.remote) {
                return refusal("own-address", route.via.remote.to_string());
            }
            if let Some((mac, _)) = route.via.vtep()
                && self.identity.vteps.contains(&mac)
            {
                return refusal("own-vtep-mac", mac.to_string());
            }
        }
        None
    }

    /// Counts, and says what entered or left the quarantine.
    fn list_quarantine(&mut self, step: &mut Step) {
        let all: Vec<Quarantined> = self.quarantine().collect();
        let mut entered = Vec::new();
        let mut listed = BTreeSet::new();
        let mut counts: BTreeMap<SourceKind, usize> = BTreeMap::new();
        for one in all {
            *counts.entry(one.source).or_default() += 1;
            let place = (one.source, Arc::clone(&one.key));
            if !self.listed.contains(&place) {
                entered.push((one.source, one.key, one.refusal));
            }
            listed.insert(place);
        }
        for (kind, source) in &mut self.sources {
            source.count();
            source.status.quarantined = counts.get(kind).copied().unwrap_or(0);
        }
        for (kind, key, refusal) in &entered {
            let detail = || refusal.to_string();
            let journal = &mut self.journal;
            journal.push(step.now, *kind, What::Quarantined, key, detail);
        }
        if let Some((kind, key, refusal)) = entered.first() {
            let more = entered.len() - 1;
            let alarm = match more {
                0 => format!("{kind}: {key} is quarantined: {refusal}"),
                _ => format!("{kind}: {key} is quarantined: {refusal}; and {more} more"),
            };
            step.alarms.push(alarm);
        }
        for (kind, key) in self.listed.difference(&listed) {
            let journal = &mut self.journal;
            journal.push(step.now, *kind, What::Cleared, key, String::new);
        }
        self.listed = listed;
    }

    fn log(&mut self, routes: &[RouteChange], step: &Step) {
        let mut last = SourceKind::Config;
        for change in routes {
            let (what, route) = match (&change.before, &change.after) {
                (None, Some(after)) => (What::Added, after),
                (Some(_), Some(after)) => (What::Changed, after),
                (Some(before), None) => (What::Withdrawn, before),
                (None, None) => continue,
            };
            last = route.source;
            let subject = Arc::from(change.prefix.to_string());
            let detail = || match route.via {
                Some(via) => format!("{} at {}", route.node, via.remote),
                None => format!("{}, this node", route.node),
            };
            let journal = &mut self.journal;
            journal.push(step.now, route.source, what, &subject, detail);
        }
        self.journal.end_step(step.now, last);
    }
}

/// Refuses what nothing can be made of.
fn checked(content: Content) -> Content {
    match &content {
        Content::Remote(remote) if remote.routes.is_empty() => Content::Refused(Refusal {
            name: "no-routes",
            detail: "nothing is routed to it".to_owned(),
        }),
        Content::Remote(_) | Content::Own(_) | Content::Refused(_) => content,
    }
}

/// What an entry wants routed.
fn prefixes(entry: &Entry) -> impl Iterator<Item = IpNet> {
    let remote = match &entry.content {
        Content::Remote(remote) | Content::Own(remote) => Some(remote),
        Content::Refused(_) => None,
    };
    let routes = remote.into_iter().flat_map(|remote| &remote.routes);
    routes.map(|route| route.prefix)
}

/// What one call is about.
#[derive(Debug, Default)]
struct Step {
    now: Time,
    alarms: Vec<String>,
}

impl Source {
    /// Brings the counts of the status up to date.
    fn count(&mut self) {
        let status = &mut self.status;
        status.entries = self.slots.len();
        (status.held, status.remembered) = (0, 0);
        if status.hold_until.is_none() {
            return;
        }
        for slot in self.slots.values() {
            match slot.keep {
                Keep::Said => {}
                Keep::Held(_) => status.held += 1,
                Keep::Remembered(_) => status.remembered += 1,
            }
        }
        if status.held + status.remembered == 0 {
            status.hold_until = None;
        }
    }

    /// How many prefixes were withdrawn in the last moments and did not come back.
    fn lately(&mut self, settings: &Settings, now: Time, resolver: &Resolver) -> usize {
        while let Some((at, _)) = self.withdrawn.front()
            && now.since(*at) > settings.guard_window
        {
            self.withdrawn.pop_front();
        }
        let prefixes = self.withdrawn.iter().map(|(_, prefix)| *prefix);
        let gone = prefixes.filter(|prefix| !resolver.is_routed(prefix));
        gone.collect::<BTreeSet<IpNet>>().len()
    }
}

/// Whether `lost` of `all` routes are too many to go at once.
fn is_mass(lost: usize, all: usize, settings: &Settings) -> bool {
    let percent = usize::from(settings.guard_percent);
    lost >= settings.guard_least && lost * 100 > all * percent
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
