//! Nodes, a store, a network between them, and everything that goes wrong, in virtual time.

mod checks;
mod faults;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::IpNet;
use tun_node::flannel::{LeaseAttrs, LeaseRules, NetConf, SubnetKey};
use tun_node::rib::{Event, Identity, LiveRoute, Reconciler, Settings, SourceKind};
use tun_node::source::etcd::OwnNode;
use tun_node::source::etcd::agent::{Agent, AgentSettings, Input};
use tun_node::source::etcd::store::{Answer, Failure, Kv, Request, Value, WatchEvent};
use warren_core::units::{MacAddr, Time};

use super::model::{Model, PREFIX};

const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
const CONFIG_DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fc00:5::/48","Backend":{"Type":"vxlan"}}"#;
/// How long a request waits for its answer, as in the real client.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1200);
/// How often a silent watch's connection is probed, as in the real client.
const PROBE_EVERY_MS: u64 = 1000;

/// Numbers that follow from a seed: splitmix64.
#[derive(Debug)]
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Debug)]
struct Node {
    number: u16,
    agent: Agent,
    table: Reconciler,
    /// Raised by a crash; what was under way to the one before is dropped.
    life: u32,
    up: bool,
    reach: Reach,
    paused: bool,
    /// How far its clock is ahead.
    ahead: Duration,
    /// What arrived while it was paused.
    waiting: Vec<What>,
    watch: Option<Watch>,
    next_watch: u32,
    request: u32,
    wakes_at: Option<Time>,
    mac_salt: u8,
    /// Since when nothing was done to it.
    quiet_since: Time,
    /// When that was true which each of its routes was installed for.
    installed: BTreeMap<IpNet, Time>,
    /// When what it is told of the store was true.
    read: Time,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reach {
    Whole,
    /// Nothing passes and nothing says so.
    Hole,
    /// The connection is refused.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Watch {
    number: u32,
    from: u64,
    /// The revision up to which events were sent.
    sent: u64,
    open: bool,
    /// The store forgot it while nothing passed: nothing comes any more, until a probe of the
    /// connection is answered by a reset.
    dead: bool,
}

#[derive(Clone, Debug)]
enum What {
    Wake,
    Arrive {
        request: u32,
        wanted: Box<Request>,
    },
    Reply {
        read: Time,
        request: u32,
        answer: Box<Result<Answer, Failure>>,
    },
    OpenWatch {
        number: u32,
    },
    Watched {
        read: Time,
        number: u32,
        events: Vec<WatchEvent>,
    },
    WatchEnded {
        number: u32,
        why: &'static str,
    },
    Restart,
}

/// When, which number, which node, which life, what.
#[derive(Debug)]
struct Item(Time, u64, usize, u32, What);

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.1 == other.1
    }
}
impl Eq for Item {}
impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Item {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// Everything; see the [module](self).
#[derive(Debug)]
pub(crate) struct World {
    now: Time,
    numbers: Numbers,
    queue: BinaryHeap<Reverse<Item>>,
    count: u64,
    etcd: Model,
    etcd_up: bool,
    healed: bool,
    backups: Vec<Model>,
    nodes: Vec<Node>,
    /// Since when each subnet has been in the store with one value.
    since: BTreeMap<String, (Time, String)>,
    /// Until when each subnet lost to another one.
    lost: BTreeMap<String, Time>,
    /// The subnets that last lost.
    losers: BTreeSet<String>,
    /// When a key was taken away by one who may, or by its lease.
    taken: BTreeMap<String, Time>,
    dual: bool,
    trace: DefaultHasher,
    pub(crate) steps: u64,
    pub(crate) log: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(seed: u64, nodes: u16) -> Self {
        let mut numbers = Numbers(seed);
        let dual = numbers.one_in(4);
        let mut world = Self {
            now: Time::from_nanos(1_000_000_000),
            queue: BinaryHeap::new(),
            count: 0,
            etcd: Model::new(numbers.next()),
            etcd_up: true,
            healed: false,
            backups: Vec::new(),
            nodes: Vec::new(),
            since: BTreeMap::new(),
            lost: BTreeMap::new(),
            losers: BTreeSet::new(),
            taken: BTreeMap::new(),
            dual,
            trace: DefaultHasher::new(),
            steps: 0,
            log: None,
            numbers,
        };
        world.put_config();
        let ttl_s = [15, 40, 86_400][world.numbers.below(3) as usize];
        for number in 0..nodes {
            let node = world.node(number, 0, ttl_s, None, 0);
            world.nodes.push(node);
            let at = world.soon(200);
            world.push(at, usize::from(number), 0, What::Wake);
        }
        world
    }

    /// Lets things go wrong for a while, heals, and checks that everything comes right.
    pub(crate) fn run(&mut self) -> Result<u64, String> {
        self.until(self.after(2000))?;
        let faults = 4 + self.numbers.below(14);
        for _ in 0..faults {
            self.fault()?;
            let pause = self.numbers.below(4000);
            self.until(self.after(pause))?;
        }
        self.heal()?;
        self.until(self.after(2000))?;
        self.check_converged(false)?;
        self.until(self.after(65_000))?;
        self.check_converged(true)?;
        Ok(self.trace.finish())
    }

    fn node(
        &mut self,
        number: u16,
        life: u32,
        ttl_s: i64,
        previous: Option<SubnetKey>,
        mac_salt: u8,
    ) -> Node {
        let own = own(number, mac_salt);
        let settings = AgentSettings {
            prefix: PREFIX.to_owned(),
            lease_ttl_s: ttl_s,
            seed: self.numbers.next(),
            previous,
            ..AgentSettings::default()
        };
        let identity = Identity {
            underlay: vec![own.public_ip.into(), own.public_ipv6.unwrap().into()],
            vteps: vec![own.vtep_mac_v4],
        };
        Node {
            number,
            agent: Agent::new(settings, own),
            table: Reconciler::new(Settings::default(), identity),
            life,
            up: true,
            reach: Reach::Whole,
            paused: false,
            ahead: Duration::ZERO,
            waiting: Vec::new(),
            watch: None,
            next_watch: 1,
            request: 0,
            wakes_at: None,
            mac_salt,
            quiet_since: self.now,
            installed: BTreeMap::new(),
            read: Time::ZERO,
        }
    }

    fn put_config(&mut self) {
        let config = if self.dual { CONFIG_DUAL } else { CONFIG };
        self.etcd.put(&format!("{PREFIX}/config"), config, 0);
        self.changed();
    }

    fn after(&self, ms: u64) -> Time {
        self.now.after(Duration::from_millis(ms))
    }

    fn soon(&mut self, ms: u64) -> Time {
        let nanos = self.numbers.below(ms * 1_000_000);
        self.now.after(Duration::from_nanos(100_000 + nanos))
    }

    fn push(&mut self, at: Time, node: usize, life: u32, what: What) {
        self.count += 1;
        self.queue
            .push(Reverse(Item(at, self.count, node, life, what)));
    }

    fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            let now = self.now.as_nanos() / 1_000;
            log.push(format!(
                "{:>6}.{:06} {}",
                now / 1_000_000,
                now % 1_000_000,
                line()
            ));
        }
    }

    fn until(&mut self, end: Time) -> Result<(), String> {
        while let Some(Reverse(item)) = self.queue.peek()
            && item.0 <= end
        {
            let Some(Reverse(Item(at, _, node, life, what))) = self.queue.pop() else {
                break;
            };
            self.now = at.max(self.now);
            self.steps += 1;
            if self.etcd_up && self.etcd.expire(self.now) {
                self.changed();
            }
            self.happen(node, life, what)?;
        }
        self.now = end;
        if self.etcd_up && self.etcd.expire(self.now) {
            self.changed();
        }
        Ok(())
    }

    fn happen(&mut self, at: usize, life: u32, what: What) -> Result<(), String> {
        let now = self.now;
        let node = &mut self.nodes[at];
        if matches!(what, What::Restart) {
            return self.restart(at);
        }
        if node.life != life || !node.up {
            return Ok(());
        }
        // What the store does goes on while the node is paused.
        match what {
            What::Arrive { request, wanted } => return self.arrive(at, request, &wanted),
            What::OpenWatch { number } => {
                self.feed(at, number);
                return Ok(());
            }
            _ if node.paused => {
                node.waiting.push(what);
                return Ok(());
            }
            What::Wake => {
                if node.wakes_at.is_some_and(|at| at <= now) {
                    node.wakes_at = None;
                }
            }
            What::Reply {
                read,
                request,
                answer,
            } => {
                if node.request == request {
                    node.request += 1;
                    node.read = read;
                    let local = now.after(node.ahead);
                    node.agent.handle(Input::Answer(*answer), local);
                }
            }
            What::Watched {
                read,
                number,
                events,
            } => {
                if node.watch.is_some_and(|watch| watch.number == number) {
                    let header = self.etcd.header();
                    node.read = read;
                    let local = now.after(node.ahead);
                    node.agent.handle(Input::Watched { header, events }, local);
                }
            }
            What::WatchEnded { number, why } => {
                if node.watch.is_some_and(|watch| watch.number == number) {
                    node.watch = None;
                    let local = now.after(node.ahead);
                    let why = why.to_owned();
                    node.agent.handle(Input::WatchEnded { why }, local);
                }
            }
            What::Restart => {}
        }
        self.serve(at)
    }

    /// Does what a node wants done.
    fn serve(&mut self, at: usize) -> Result<(), String> {
        let now = self.now;
        let local = now.after(self.nodes[at].ahead);
        loop {
            let node = &mut self.nodes[at];
            let life = node.life;
            let request = node.agent.poll_request(local);
            if let Some(wanted) = request {
                let request = node.request;
                let sent = self.soon(2);
                let wanted = Box::new(wanted);
                self.push(sent, at, life, What::Arrive { request, wanted });
            }
            let node = &mut self.nodes[at];
            let mut events = Vec::new();
            while let Some(update) = node.agent.poll_update() {
                events.push(Event::Update(update));
            }
            while let Some(notice) = self.nodes[at].agent.poll_notice() {
                format!("{notice:?}").hash(&mut self.trace);
                if self.log.is_some() {
                    let number = self.nodes[at].number;
                    self.say(|| format!("node {number}: {notice:?}"));
                }
            }
            let node = &mut self.nodes[at];
            let due = node.table.poll_timeout().is_some_and(|at| at <= local);
            if events.is_empty() && !due {
                break;
            }
            let outcome = node.table.handle_all(events, local);
            for change in outcome.routes {
                change.prefix.hash(&mut self.trace);
                now.hash(&mut self.trace);
                let node = &mut self.nodes[at];
                match (&change.before, &change.after) {
                    (_, Some(_)) => {
                        node.installed.insert(change.prefix, node.read);
                    }
                    (Some(before), None) => {
                        let since = node.installed.remove(&change.prefix);
                        let before = before.clone();
                        self.check_withdrawal(at, &before, since)?;
                    }
                    (None, None) => {}
                }
                if self.log.is_some() {
                    let number = self.nodes[at].number;
                    self.say(|| format!("node {number}: {change:?}"));
                }
            }
        }
        // The watch.
        let wanted = self.nodes[at].agent.wanted_watch();
        let node = &mut self.nodes[at];
        if node.watch.map(|watch| watch.from) != wanted {
            node.watch = wanted.map(|from| {
                node.next_watch += 1;
                Watch {
                    number: node.next_watch,
                    from,
                    sent: from - 1,
                    open: false,
                    dead: false,
                }
            });
            if let Some(watch) = node.watch {
                let (life, number) = (node.life, watch.number);
                let opened = self.soon(2);
                self.push(opened, at, life, What::OpenWatch { number });
            }
        }
        // The next time it has something to do by itself.
        let node = &mut self.nodes[at];
        let wake = [node.agent.poll_timeout(), node.table.poll_timeout()];
        let wake = wake.into_iter().flatten().min();
        if let Some(wake) = wake {
            let ahead = u64::try_from(node.ahead.as_nanos()).unwrap_or(u64::MAX);
            let wake = Time::from_nanos(wake.as_nanos().saturating_sub(ahead)).max(now);
            // Timers of a real thread are a little late.
            let wake = wake.after(Duration::from_micros(100));
            if node.wakes_at.is_none_or(|at| wake < at) {
                node.wakes_at = Some(wake);
                let life = node.life;
                self.push(wake, at, life, What::Wake);
            }
        }
        Ok(())
    }

    fn arrive(&mut self, at: usize, request: u32, wanted: &Request) -> Result<(), String> {
        let reach = self.reach(at);
        let life = self.nodes[at].life;
        let fail = |why: &str| Box::new(Err(Failure::Unreachable(why.to_owned())));
        let (when, answer) = match reach {
            Reach::Refused => (self.soon(1), fail("connection refused")),
            Reach::Hole => (self.now.after(REQUEST_TIMEOUT), fail("timed out")),
            Reach::Whole => {
                let before = self.etcd.revision;
                let answer = self.etcd.answer(wanted, self.now);
                let number = self.nodes[at].number;
                self.say(|| format!("node {number}: {wanted:?} -> {answer:?}"));
                if self.etcd.revision != before {
                    self.changed();
                    self.check_store()?;
                }
                if !self.healed && self.numbers.one_in(100) {
                    // Done, and nobody hears of it.
                    (self.now.after(REQUEST_TIMEOUT), fail("timed out"))
                } else {
                    (self.soon(2), Box::new(answer))
                }
            }
        };
        let read = self.now;
        let reply = What::Reply {
            read,
            request,
            answer,
        };
        self.push(when, at, life, reply);
        Ok(())
    }

    fn reach(&self, at: usize) -> Reach {
        match self.nodes[at].reach {
            Reach::Whole if self.etcd_up => Reach::Whole,
            Reach::Whole => Reach::Refused,
            Reach::Hole => Reach::Hole,
            Reach::Refused => Reach::Refused,
        }
    }

    /// The store may have changed: events go to whoever watches.
    fn changed(&mut self) {
        let present: BTreeMap<&String, &Kv> = self.etcd.kvs.iter().collect();
        for (key, kv) in present {
            let Value::Octets(octets) = &kv.value else {
                continue;
            };
            let value = String::from_utf8_lossy(octets);
            let known = self.since.get(key);
            if known.is_none_or(|(_, known)| *known != value) {
                self.since
                    .insert(key.clone(), (self.now, value.into_owned()));
            }
        }
        let kvs = &self.etcd.kvs;
        let (now, taken) = (self.now, &mut self.taken);
        self.since.retain(|key, _| {
            let there = kvs.contains_key(key);
            if !there {
                taken.insert(key.clone(), now);
            }
            there
        });
        self.note_losers();
        for at in 0..self.nodes.len() {
            if let Some(watch) = self.nodes[at].watch
                && watch.open
            {
                self.feed(at, watch.number);
            }
        }
    }

    /// Sends a watch what it has not seen.
    fn feed(&mut self, at: usize, number: u32) {
        if self.reach(at) == Reach::Hole {
            return;
        }
        let refused = self.reach(at) == Reach::Refused;
        let node = &mut self.nodes[at];
        let life = node.life;
        let Some(watch) = node.watch.as_mut().filter(|watch| watch.number == number) else {
            return;
        };
        if watch.dead {
            return;
        }
        if refused {
            let when = self.soon(1);
            let why = "connection refused";
            self.push(when, at, life, What::WatchEnded { number, why });
            return;
        }
        watch.open = true;
        let Some(events) = self.etcd.events_after(watch.sent) else {
            let when = self.soon(1);
            let why = "compacted";
            self.push(when, at, life, What::WatchEnded { number, why });
            return;
        };
        let Some(last) = events.last() else {
            return;
        };
        let before = watch.sent;
        watch.sent = last.revision();
        // A stream keeps its order: later pieces never come before earlier ones.
        let delay = Duration::from_micros(1000);
        let read = self.now;
        let when = self.now.after(delay);
        if self.numbers.one_in(10) {
            // Told twice, after a reconnection that nobody noticed.
            let earlier = self
                .etcd
                .events_after(before.saturating_sub(2))
                .unwrap_or_default();
            let again = earlier
                .into_iter()
                .filter(|e| e.revision() <= before)
                .collect();
            self.push(
                when,
                at,
                life,
                What::Watched {
                    read,
                    number,
                    events: again,
                },
            );
        }
        self.push(
            when,
            at,
            life,
            What::Watched {
                read,
                number,
                events,
            },
        );
    }

    fn end_watches(&mut self, why: &'static str) {
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            let Some(watch) = node.watch.as_mut() else {
                continue;
            };
            match node.reach {
                Reach::Whole => {
                    let (number, life) = (watch.number, node.life);
                    let when = self.soon(2);
                    self.push(when, at, life, What::WatchEnded { number, why });
                }
                Reach::Hole => watch.dead |= watch.open,
                Reach::Refused => {}
            }
        }
    }
}

fn own(number: u16, salt: u8) -> OwnNode {
    let [high, low] = number.to_be_bytes();
    OwnNode {
        public_ip: Ipv4Addr::new(192, 0, 10 + high, low),
        public_ipv6: Some(format!("fd99::{:x}", number + 1).parse().unwrap()),
        vtep_mac_v4: MacAddr::new([2, salt, 0, 4, high, low]),
        vtep_mac_v6: MacAddr::new([2, salt, 0, 6, high, low]),
    }
}

fn lease(node: OwnNode, dual: bool) -> String {
    let config = if dual { CONFIG_DUAL } else { CONFIG };
    let network = NetConf::parse(config.as_bytes()).unwrap();
    node.attrs(&network).to_json()
}
