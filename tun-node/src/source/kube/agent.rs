//! What to ask of the API server, and what its answers mean: a state machine without a socket.
//!
//! ```text
//!            poll_request                handle(Input)              poll_update
//!  driver <───────────────── Agent <────────────────────── driver   ─────────────> RIB
//! ```
//!
//! ```text
//!            listed                    watch broke, no answer
//!   Stale ───────────> Synced ─────────────────────────────────> Adrift
//!     ^                  │  ^                                      │
//!     │  410 Gone        │  └── an exact answer: watch goes on ────┤
//!     └──────────────────┴────── 410 Gone, an earlier version ─────┘
//! ```
//!
//! The agent keeps a copy of all Nodes. Once listed, a watch from the list's version on keeps it
//! true. When the watch breaks or the server does not answer, the copy stays as it is, the server
//! is asked for nothing but its version, and the watch goes on where it was: a cluster of
//! thousands of nodes does not list everything after each hiccup. Only when the server has
//! forgotten the version (410 Gone), or has an earlier one than was seen (a restored backup), is
//! everything listed and compared by value; nothing that is the same is withdrawn in between.
//!
//! What this node publishes is level-triggered: its own Node, as seen, is compared with what it
//! should say, and the one patch that brings them closer is the next request. Nothing depends on
//! remembering what was sent before.
//!
//! One request is out at a time. The driver gives each a time limit and says so when it ran out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use warren_core::units::Time;

use super::node::{Node, RANK_LAST, Reading, flannel_remote};
use crate::flannel::{
    ANNOTATION_PREFIX, Annotations, Backend, LeaseBackend, LeaseRules, NetConf, VxlanAttrs,
};
use crate::rib::{Change, Content, Continuity, Entry, SourceKind, SourceUpdate, UpdateKind};
use crate::source::Own;
use crate::source::alarms::Alarms;

/// What an agent is told once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AgentSettings {
    /// The name of this node's Node object.
    pub node: String,
    /// The network, which Kubernetes does not know: it is the same file on all nodes.
    pub network: NetConf,
    /// What flannel's annotations begin with, without a slash at the end.
    pub prefix: String,
    /// Whether nodes may be reached at loopback addresses.
    pub allow_loopback: bool,
    /// How often the server is asked whether it is there.
    pub ping_every: Duration,
}

impl AgentSettings {
    /// The usual settings of a node in a network.
    #[must_use]
    pub fn new(node: String, network: NetConf) -> Self {
        Self {
            node,
            network,
            prefix: ANNOTATION_PREFIX.to_owned(),
            allow_loopback: false,
            ping_every: Duration::from_secs(8),
        }
    }
}

/// What an agent asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    /// All Nodes.
    List,
    /// Where the store is.
    Ping {
        /// Whether the answer must be the store's own, not one that the server remembers.
        exact: bool,
    },
    /// Change annotations of this node's Node; `None` takes one away.
    Annotate(BTreeMap<String, Option<String>>),
    /// Set the condition `NetworkUnavailable` of this node's Node to the opposite of this.
    Available(bool),
}

/// What a server answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// To [`Request::List`].
    Listed {
        /// The version of the whole.
        version: String,
        /// All Nodes.
        nodes: Vec<Node>,
    },
    /// To [`Request::Ping`].
    Pong {
        /// The version of the whole.
        version: String,
    },
    /// To [`Request::Annotate`] and [`Request::Available`]: the Node as it is afterwards.
    Patched(Node),
}

/// Why there is no answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Failure {
    /// Nobody answered, or not in time.
    Unreachable(String),
    /// The server said no.
    Refused(String),
}

/// Something that happened to a Node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WatchEvent {
    /// It is so.
    Put(Node),
    /// It was deleted.
    Gone(Node),
    /// Nothing happened up to this version.
    Bookmark(String),
}

/// What happens to an agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Input {
    /// The answer to the request that is out.
    Answer(Result<Answer, Failure>),
    /// What the watch saw, oldest first.
    Watched(Vec<WatchEvent>),
    /// The watch is over and can go on where it was.
    WatchBroke {
        /// Why, for people.
        why: String,
    },
    /// The watch cannot go on: the server has forgotten the version.
    WatchExpired,
    /// The node's addresses are others.
    Own(Own),
    /// The node leaves the cluster's network.
    Leave,
}

/// What the rest of the node should know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Notice {
    /// The node has these subnets.
    Claimed(Vec<IpNet>),
    /// Someone should look at this.
    Alarm(String),
    /// The annotations were taken away.
    Left,
}

/// The watch that is wanted: another number wants another watch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WantedWatch {
    /// Counts the watches that were wanted.
    pub number: u64,
    /// The version to go on from.
    pub from: String,
}

/// The state machine of the Kubernetes source; see the [module](self).
#[derive(Debug)]
pub struct Agent {
    settings: AgentSettings,
    own: Own,
    phase: Phase,
    /// Whether a request is out, and which.
    asked: Option<Request>,
    nodes: BTreeMap<String, Node>,
    /// The last version of the whole that was seen.
    seen: String,
    watches: u64,
    /// Whether an answer was of an earlier version than [`Self::seen`].
    doubt: bool,
    /// What the RIB was told of each Node.
    told: BTreeMap<Arc<str>, Entry>,
    /// This node's subnets, which stay while its Node is gone.
    subnets: Vec<IpNet>,
    ping_at: Time,
    retry_at: Time,
    backoff: Duration,
    write_at: Time,
    write_pause: Duration,
    /// When the last writes were.
    writes: VecDeque<Time>,
    now: Time,
    alarms: Alarms,
    /// What the server was lost for, until it answers.
    lost: Option<String>,
    updates: VecDeque<SourceUpdate>,
    notices: VecDeque<Notice>,
    leaving: bool,
    left: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Phase {
    /// The copy is not known to be true and cannot be repaired.
    Stale,
    /// The copy was true; a watch can go on from where it was.
    Adrift,
    /// The copy is true, and this watch is wanted.
    Synced(WantedWatch),
}

impl Agent {
    /// Starts without having asked anything.
    #[must_use]
    pub const fn new(settings: AgentSettings, own: Own) -> Self {
        Self {
            settings,
            own,
            phase: Phase::Stale,
            asked: None,
            nodes: BTreeMap::new(),
            seen: String::new(),
            watches: 0,
            doubt: false,
            told: BTreeMap::new(),
            subnets: Vec::new(),
            ping_at: Time::ZERO,
            retry_at: Time::ZERO,
            backoff: BACKOFF_LEAST,
            write_at: Time::ZERO,
            write_pause: WRITE_PAUSE_LEAST,
            writes: VecDeque::new(),
            now: Time::ZERO,
            alarms: Alarms::new(),
            lost: None,
            updates: VecDeque::new(),
            notices: VecDeque::new(),
            leaving: false,
            left: false,
        }
    }

    /// Takes an input. `now` must not run backwards from call to call.
    pub fn handle(&mut self, input: Input, now: Time) {
        self.now = now;
        match input {
            Input::Answer(answer) => self.answered(answer),
            Input::Watched(events) => self.watched(events),
            Input::WatchBroke { why } => {
                if matches!(self.phase, Phase::Synced(_)) {
                    self.phase = Phase::Adrift;
                    self.wait();
                    self.alarm(format!("the watch broke: {why}"));
                }
            }
            Input::WatchExpired => {
                if matches!(self.phase, Phase::Synced(_)) {
                    self.phase = Phase::Stale;
                    self.wait();
                }
            }
            Input::Own(own) => {
                self.own = own;
                self.write_at = now;
                let name = self.settings.node.clone();
                self.tell([name]);
            }
            Input::Leave => {
                self.leaving = true;
                self.write_at = now;
            }
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
        let request = match &self.phase {
            Phase::Stale => Some(Request::List),
            Phase::Adrift => Some(Request::Ping { exact: true }),
            Phase::Synced(_) => self.next_request(),
        };
        self.asked.clone_from(&request);
        request
    }

    /// The watch that there should be.
    #[must_use]
    pub const fn wanted_watch(&self) -> Option<&WantedWatch> {
        match &self.phase {
            Phase::Stale | Phase::Adrift => None,
            Phase::Synced(watch) => Some(watch),
        }
    }

    /// When [`Agent::poll_request`] or [`Agent::poll_notice`] may have something though nothing
    /// happened.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.asked.is_some() {
            return None;
        }
        let request = if matches!(self.phase, Phase::Synced(_)) {
            let next = match self.write() {
                Some(_) => self.ping_at.min(self.write_at),
                None => self.ping_at,
            };
            next.max(self.retry_at)
        } else {
            self.retry_at
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

    fn next_request(&mut self) -> Option<Request> {
        if self.now >= self.write_at
            && let Some(write) = self.write()
        {
            self.writes.push_back(self.now);
            if self.writes.len() >= WRITES_AT_ONCE
                && let Some(first) = self.writes.pop_front()
            {
                // Somebody else writes otherwise each time.
                self.write_at = self.write_at.max(first.after(WRITES_TIME));
            }
            return Some(write);
        }
        if self.now >= self.ping_at {
            self.ping_at = self.now.after(self.settings.ping_every);
            return Some(Request::Ping { exact: self.doubt });
        }
        None
    }

    /// The patch that brings this node's Node closer to what it should be.
    fn write(&self) -> Option<Request> {
        let node = self.nodes.get(&self.settings.node)?;
        let desired = self.desired(node);
        let mut changes = BTreeMap::new();
        for name in PUBLISHED {
            let name = format!("{}/{name}", self.settings.prefix);
            let value = desired.as_ref().and_then(|desired| desired.get(&name));
            // Without a subnet nothing is known to be wrong; leaving takes everything away.
            let told = desired.is_some() || self.leaving;
            if told && node.annotations.get(&name) != value {
                changes.insert(name, value.cloned());
            }
        }
        if !changes.is_empty() {
            return Some(Request::Annotate(changes));
        }
        let available = !self.leaving;
        let due = desired.is_some() || (self.leaving && node.network_available == Some(true));
        (due && node.network_available != Some(available)).then_some(Request::Available(available))
    }

    /// The annotations that this node should have; `None` while it should have none.
    fn desired(&self, node: &Node) -> Option<BTreeMap<String, String>> {
        if self.leaving || self.subnets.is_empty() {
            return None;
        }
        let said = self.annotations(node)?;
        Some(said.to_map(&self.settings.prefix))
    }

    /// What this node says of itself; `None` when it has no address of any family that it needs.
    fn annotations(&self, node: &Node) -> Option<Annotations> {
        let network = &self.settings.network;
        let rules = LeaseRules::of(network, self.settings.allow_loopback);
        let overwrites = Annotations::overwrites(&node.annotations, &self.settings.prefix, &rules);
        // One that cannot be used was not meant.
        let (v4, v6) = overwrites.unwrap_or((None, None));
        let has = |v6: bool| self.subnets.iter().any(|one| one.addr().is_ipv6() == v6);
        let public_ip = v4.or(self.own.v4).filter(|_| has(false));
        let public_ipv6 = v6.or(self.own.v6).filter(|_| has(true));
        if public_ip.is_none() && public_ipv6.is_none() {
            return None;
        }
        let backend = match network.backend {
            Backend::Vxlan(vxlan) => {
                let attrs = VxlanAttrs {
                    vni: vxlan.vni,
                    mac: self.own.vtep_mac,
                };
                LeaseBackend::Vxlan {
                    v4: public_ip.map(|_| attrs),
                    v6: public_ipv6.map(|_| attrs),
                }
            }
            Backend::Ipip { .. } => LeaseBackend::Ipip,
            Backend::HostGw => LeaseBackend::HostGw,
            Backend::Udp { .. } => LeaseBackend::Udp,
        };
        Some(Annotations {
            public_ip,
            public_ipv6,
            backend,
        })
    }

    fn answered(&mut self, answer: Result<Answer, Failure>) {
        let Some(request) = self.asked.take() else {
            return;
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => return self.failed(&request, failure),
        };
        self.backoff = BACKOFF_LEAST;
        if let Some(why) = self.lost.take() {
            self.alarms.retract_this(&why);
        }
        self.ping_at = self.now.after(self.settings.ping_every);
        match (request, answer) {
            (Request::List, Answer::Listed { version, nodes }) => self.listed(version, nodes),
            (Request::Ping { exact }, Answer::Pong { version }) => self.ponged(exact, &version),
            (Request::Annotate(_) | Request::Available(_), Answer::Patched(node)) => {
                // The watch will say the same, after what happened before.
                self.write_pause = WRITE_PAUSE_LEAST;
                self.take_own(node);
            }
            (_, Answer::Listed { .. } | Answer::Pong { .. } | Answer::Patched(_)) => {
                self.alarm("the answer is to another question".to_owned());
                self.phase = Phase::Stale;
            }
        }
        self.look_at_leaving();
    }

    fn failed(&mut self, request: &Request, failure: Failure) {
        let is_write = matches!(request, Request::Annotate(_) | Request::Available(_));
        let (why, refused) = match failure {
            Failure::Unreachable(why) => (why, false),
            Failure::Refused(why) => (why, true),
        };
        if is_write && refused {
            // The server is there and routes are true; others do not learn of this node.
            self.alarm(format!("this node cannot be published: {why}"));
            self.write_at = self.now.after(self.write_pause);
            self.write_pause = (self.write_pause * 2).min(WRITE_PAUSE_MOST);
            return;
        }
        self.updates.push_back(SourceUpdate {
            source: SourceKind::Kube,
            kind: UpdateKind::Lost { why: why.clone() },
        });
        self.lost = Some(why.clone());
        self.alarm(why);
        if matches!(self.phase, Phase::Synced(_)) {
            self.phase = Phase::Adrift;
        }
        self.wait();
    }

    fn ponged(&mut self, exact: bool, version: &str) {
        let earlier = is_earlier(version, &self.seen);
        if earlier && exact {
            // A backup was restored: listed anew, as another history.
            self.phase = Phase::Stale;
            self.doubt = true;
            return;
        }
        // Another server may be behind; only the store itself is asked next.
        self.doubt = earlier;
        if earlier {
            self.ping_at = self.now;
            return;
        }
        if self.phase == Phase::Adrift {
            self.phase = self.watch_from(self.seen.clone());
            // What was wrong before is what is wrong still, and no longer that nobody answers.
            self.look_at_own();
        }
        if self.updates.is_empty() {
            self.updates.push_back(SourceUpdate {
                source: SourceKind::Kube,
                kind: UpdateKind::Contact,
            });
        }
    }

    /// Compares everything with the copy.
    fn listed(&mut self, version: String, nodes: Vec<Node>) {
        let broken = is_earlier(&version, &self.seen);
        self.doubt = false;
        self.nodes = nodes
            .into_iter()
            .map(|node| (node.name.clone(), node))
            .collect();
        self.seen.clone_from(&version);
        self.phase = self.watch_from(version);
        self.look_at_own();
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        let mut told: BTreeMap<Arc<str>, Entry> = BTreeMap::new();
        for name in names.iter().chain([&self.settings.node]) {
            if let Some(entry) = self.entry(name) {
                told.insert(Arc::clone(&entry.key), entry);
            }
        }
        let entries = told.values().cloned().collect();
        self.told = told;
        let continuity = if broken {
            Continuity::Reset
        } else {
            Continuity::Same
        };
        self.updates.push_back(SourceUpdate {
            source: SourceKind::Kube,
            kind: UpdateKind::Full {
                entries,
                position: number(&self.seen).unwrap_or(0),
                continuity,
            },
        });
    }

    fn watched(&mut self, events: Vec<WatchEvent>) {
        if !matches!(self.phase, Phase::Synced(_)) {
            return;
        }
        let mut touched = BTreeSet::new();
        for event in events {
            let version = match event {
                WatchEvent::Bookmark(version) => version,
                WatchEvent::Put(node) => {
                    let version = node.version.clone();
                    touched.insert(node.name.clone());
                    self.put(node);
                    version
                }
                WatchEvent::Gone(node) => {
                    touched.insert(node.name.clone());
                    self.nodes.remove(&node.name);
                    node.version
                }
            };
            if is_earlier(&version, &self.seen) {
                // Versions of one history only grow.
                self.phase = Phase::Stale;
            } else {
                self.seen = version;
            }
        }
        if touched.contains(&self.settings.node) {
            self.look_at_own();
        }
        self.tell(touched);
        self.look_at_leaving();
    }

    /// Keeps a Node unless a later one is known.
    fn put(&mut self, node: Node) {
        let known = self.nodes.get(&node.name);
        if known.is_none_or(|known| !is_earlier(&node.version, &known.version)) {
            self.nodes.insert(node.name.clone(), node);
        }
    }

    /// This node's Node as its patch left it, before the watch tells.
    fn take_own(&mut self, node: Node) {
        let name = node.name.clone();
        self.put(node);
        self.look_at_own();
        self.tell([name]);
    }

    /// Draws from this node's Node what the node is to do.
    fn look_at_own(&mut self) {
        let name = &self.settings.node;
        let Some(node) = self.nodes.get(name) else {
            self.alarm(format!("there is no Node called {name}"));
            return;
        };
        let subnets = match node.subnets(&self.settings.network) {
            Ok(subnets) if subnets.is_empty() => {
                let text = format!(
                    "the Node {name} has no podCIDR of this network's families; the controller \
                     manager gives them out when it is started with --allocate-node-cidrs"
                );
                return self.alarm(text);
            }
            Ok(subnets) => subnets,
            Err(refused) => return self.alarm(format!("the Node {name}: {refused}")),
        };
        let known = node.internal.is_empty()
            || [self.own.v4.map(Into::into), self.own.v6.map(Into::into)]
                .iter()
                .flatten()
                .any(|own| node.internal.contains(own));
        let stranger = (!known).then(|| {
            let internal = node.internal.iter().map(ToString::to_string);
            let internal = internal.collect::<Vec<_>>().join(", ");
            format!("the Node {name} is at {internal}, which is not where this node is")
        });
        if self.subnets != subnets && !self.leaving {
            self.subnets.clone_from(&subnets);
            self.notices.push_back(Notice::Claimed(subnets));
        }
        match stranger {
            Some(text) => self.alarm(text),
            None => self.alarms.retract(),
        }
    }

    /// Whether everything that leaving asks for is done.
    fn look_at_leaving(&mut self) {
        let synced = matches!(self.phase, Phase::Synced(_));
        if self.leaving && !self.left && synced && self.write().is_none() {
            self.left = true;
            self.notices.push_back(Notice::Left);
        }
    }

    /// Tells the RIB what became of some Nodes.
    fn tell(&mut self, names: impl IntoIterator<Item = String>) {
        let mut changes = Vec::new();
        for name in names {
            let key: Arc<str> = Arc::from(name.as_str());
            let entry = self.entry(&name);
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
        // Before the first list nothing was told, and a part is not the whole.
        if changes.is_empty() || self.seen.is_empty() {
            return;
        }
        self.updates.push_back(SourceUpdate {
            source: SourceKind::Kube,
            kind: UpdateKind::Delta {
                changes,
                position: number(&self.seen).unwrap_or(0),
            },
        });
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        if name == self.settings.node {
            return self.own_entry();
        }
        let reading = Reading {
            network: &self.settings.network,
            prefix: &self.settings.prefix,
            allow_loopback: self.settings.allow_loopback,
        };
        self.nodes.get(name)?.entry(&reading)
    }

    /// This node's own entry, which stays while its Node is gone: but then behind any other's.
    fn own_entry(&self) -> Option<Entry> {
        if self.subnets.is_empty() {
            return None;
        }
        let name = &self.settings.node;
        let empty = Node::default();
        let node = self.nodes.get(name);
        let said = self.annotations(node.unwrap_or(&empty))?;
        let remote = flannel_remote(name, &self.subnets, &said, &self.settings.network).ok()?;
        Some(Entry {
            key: Arc::from(name.as_str()),
            rank: node.map_or(RANK_LAST, Node::rank),
            content: Content::Own(Arc::new(remote)),
        })
    }

    const fn watch_from(&mut self, from: String) -> Phase {
        self.watches += 1;
        Phase::Synced(WantedWatch {
            number: self.watches,
            from,
        })
    }

    /// Asks again later, and later each time.
    fn wait(&mut self) {
        self.retry_at = self.now.after(self.backoff);
        self.backoff = (self.backoff * 2).min(BACKOFF_MOST);
    }

    /// Says something to people, when its time has come.
    fn alarm(&mut self, text: String) {
        let due = self.alarms.say(text, self.now);
        self.notices.extend(due.map(Notice::Alarm));
    }
}

/// The number that a version is. The API calls versions opaque, but they are etcd's revisions and
/// every informer compares them; one that is no number is compared with nothing.
fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

fn is_earlier(version: &str, than: &str) -> bool {
    match (number(version), number(than)) {
        (Some(version), Some(than)) => version < than,
        (None, _) | (_, None) => false,
    }
}

/// The annotations that flannel's agents write, behind the prefix.
const PUBLISHED: [&str; 6] = [
    "backend-data",
    "backend-type",
    "backend-v6-data",
    "kube-subnet-manager",
    "public-ip",
    "public-ipv6",
];
/// How long to wait after a failure, doubled from one to the next.
const BACKOFF_LEAST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(1);
/// So many writes are made in this time.
const WRITES_AT_ONCE: usize = 16;
const WRITES_TIME: Duration = Duration::from_secs(60);
/// How long to wait after a write that was refused, doubled from one to the next.
const WRITE_PAUSE_LEAST: Duration = Duration::from_secs(1);
const WRITE_PAUSE_MOST: Duration = Duration::from_secs(60);

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
