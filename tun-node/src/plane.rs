//! The control plane: one thread that takes what all sources say and publishes what follows.
//!
//! ```text
//!  sources ── SourceUpdate, SourceNotice ──┐                  ┌──> tables ──> workers
//!  files   ── watch ── "look again" ───────┤                  ├──> peers ───> paths
//!  paths   ── the way to each peer ────────┼── plane ─────────┼──> "look" ──> host (kernel routes)
//!  control socket, SIGHUP ── orders ───────┘  Reconciler, Rib ├──> receive ─> workers
//!                                                             └──> subnet.env
//! ```
//!
//! The thread, "plane", owns the [`Reconciler`], which decides, and the [`Rib`], which makes tables
//! of what was decided. It takes what has come since it last looked as one step and publishes once,
//! so that ten thousand changes at once are one generation of the tables and one change is
//! published at once. No packet waits for it, and it waits for nobody: whoever measures ways or
//! programs the kernel is told by channels.
//!
//! What a source claims for this node ([`SourceNotice::Claimed`]) shapes the node itself: addresses and
//! MTU of the device, what it receives, and `subnet.env` (`claim.rs`). What the files say is read
//! again when it is asked for or when they change (`reload.rs`).

mod alarms;
mod claim;
mod reload;
mod reports;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};
use ipnet::IpNet;
use parking_lot::RwLock;
use tracing::{debug, info, warn};
use warren_core::units::{Family, Time};

use crate::config::{Config, Guard, Loaded};
use crate::ctl::sources::{EventReport, ReloadReport, SourcesReport, WhyReport};
use crate::flannel::NetConf;
use crate::hostroutes::HostSender;
use crate::node::on_link;
use crate::paths::PathsSender;
use crate::rib::{
    Event, Identity, LocalRoutes, Reconciler, Rib, Settings, SourceKind, SourceUpdate,
    TablesReader, Terms, Way, config_update,
};
use crate::snapshot::{KeeperReader, Memory, Remembered};
use crate::source::{self, Outlet, Own, Source, SourceCommand, SourceError, SourceNotice};
use alarms::Alarms;
use claim::{Claim, Unreceived};

/// What other threads tell and ask the plane.
#[derive(Clone, Debug)]
pub struct PlaneSender {
    orders: Sender<Order>,
}

impl PlaneSender {
    /// Peers are reached by these ways from here on.
    pub(crate) fn ways(&self, ways: Vec<(IpAddr, Way)>) {
        // A plane that has ended publishes nothing more.
        let _ = self.orders.send(Order::Ways(ways));
    }

    /// Reads the files again, and says so in the log.
    pub(crate) fn reload_soon(&self) {
        let _ = self.orders.send(Order::Reload {
            dry_run: false,
            answer: None,
        });
    }

    /// Reads the files again.
    ///
    /// # Errors
    ///
    /// Sentences that say what is wrong with them; nothing is changed then. Or one that says what
    /// the node cannot receive of what they say; the rest is taken then.
    pub fn reload(&self, dry_run: bool) -> Result<ReloadReport, String> {
        self.ask(|answer| Order::Reload {
            dry_run,
            answer: Some(answer),
        })?
    }

    /// How the sources are.
    ///
    /// # Errors
    ///
    /// A sentence when the plane does not answer.
    pub fn sources(&self) -> Result<SourcesReport, String> {
        self.ask(Order::Sources)
    }

    /// Every entry that has to do with `prefix`.
    ///
    /// # Errors
    ///
    /// As [`sources`](Self::sources).
    pub fn why(&self, prefix: IpNet) -> Result<Vec<WhyReport>, String> {
        self.ask(|answer| Order::Why(prefix, answer))
    }

    /// What happened after number `after`.
    ///
    /// # Errors
    ///
    /// As [`sources`](Self::sources).
    pub fn events(&self, after: u64) -> Result<Vec<EventReport>, String> {
        self.ask(|answer| Order::Events(after, answer))
    }

    /// Withdraws what is held, and says how many entries that were.
    ///
    /// # Errors
    ///
    /// As [`sources`](Self::sources).
    pub fn confirm(&self, source: Option<SourceKind>) -> Result<usize, String> {
        self.ask(|answer| Order::Confirm(source, answer))
    }

    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Result<T, String> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let unanswered = |_| "the control plane does not answer".to_owned();
        let ended = |_| "the node is ending".to_owned();
        self.orders.send(order(sender)).map_err(ended)?;
        receiver.recv_timeout(ANSWER_PATIENCE).map_err(unanswered)
    }
}

/// An order or a question.
enum Order {
    Ways(Vec<(IpAddr, Way)>),
    Sources(Sender<SourcesReport>),
    Why(IpNet, Sender<Vec<WhyReport>>),
    Events(u64, Sender<Vec<EventReport>>),
    Confirm(Option<SourceKind>, Sender<usize>),
    Reload {
        dry_run: bool,
        /// `None`: nobody waits, and the log tells.
        answer: Option<Sender<Result<ReloadReport, String>>>,
    },
    Stop,
}

/// Makes every worker receive what a configuration says, besides what it receives already.
pub type Receives = Box<dyn Fn(Arc<Config>) -> Result<(), String> + Send>;

/// What the thread needs besides what [`PlaneInlet`] has.
pub struct PlaneParts {
    /// Who measures the ways to the peers.
    pub paths: PathsSender,
    /// Who keeps the kernel's routes and the device, where this process does.
    pub host: Option<HostSender>,
    /// How workers are told what to receive.
    pub receives: Receives,
}

impl fmt::Debug for PlaneParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlaneParts").finish_non_exhaustive()
    }
}

/// What somebody should look at, for other threads.
#[derive(Clone, Debug)]
pub struct AlarmsReader {
    shown: Arc<RwLock<Vec<String>>>,
    lacks_subnet: Arc<AtomicBool>,
    memory: Option<KeeperReader>,
    forgets: Option<String>,
}

impl AlarmsReader {
    /// A sentence for each thing that is so at present.
    #[must_use]
    pub fn alarms(&self) -> Vec<String> {
        let mut alarms = self.shown.read().clone();
        alarms.extend(self.memory.as_ref().and_then(KeeperReader::alarm));
        alarms.extend(self.forgets.clone());
        alarms
    }

    /// Whether a source is to give this node a subnet, and it neither has nor remembers one: it
    /// has no place in the overlay.
    #[must_use]
    pub fn lacks_subnet(&self) -> bool {
        self.lacks_subnet.load(Ordering::Relaxed)
    }
}

/// A plane that has its tables but does not run yet, so that the workers have something to begin
/// with.
#[derive(Debug)]
pub struct PlaneInlet {
    core: Core,
    orders: Receiver<Order>,
    sender: PlaneSender,
}

impl PlaneInlet {
    /// Makes tables of what the files say and of what the node remembers of its sources. `path` is
    /// where the files were read from.
    #[must_use]
    pub fn new(loaded: Loaded, path: PathBuf, is_rootless: bool) -> Self {
        let (sender, orders) = crossbeam_channel::unbounded();
        Self {
            core: Core::new(loaded, path, is_rootless),
            orders,
            sender: PlaneSender { orders: sender },
        }
    }

    /// For the control socket, the paths and the supervisor.
    #[must_use]
    pub fn sender(&self) -> PlaneSender {
        self.sender.clone()
    }

    /// For the workers and reporters.
    #[must_use]
    pub fn reader(&self) -> TablesReader {
        self.core.rib.reader()
    }

    /// What somebody should look at, kept up to date.
    #[must_use]
    pub fn alarms(&self) -> AlarmsReader {
        AlarmsReader {
            shown: self.core.alarms.shown(),
            lacks_subnet: self.core.alarms.lacks_subnet(),
            memory: self.core.memory.as_ref().map(Memory::reader),
            forgets: self.core.forgets.clone(),
        }
    }

    /// The configuration with what was remembered of this node.
    #[must_use]
    pub fn effective(&self) -> Config {
        self.core.effective()
    }

    /// Starts the sources and the thread.
    ///
    /// # Errors
    ///
    /// [`PlaneError`].
    pub fn start(self, parts: PlaneParts) -> Result<Plane, PlaneError> {
        let Self {
            mut core,
            orders,
            sender,
        } = self;
        let (updates, updates_in) = crossbeam_channel::bounded(UPDATES_MAX);
        let (notices, notices_in) = crossbeam_channel::unbounded();
        let outlet = Outlet { updates, notices };
        let sources = source::start_all(&core.loaded.config, core.own(), &outlet)?;
        core.parts = Some(parts);
        // Their thread was started with the same configuration.
        core.probes_ipip = core.effective().receive.ipip;
        core.announce();
        if core.claim.is_some() {
            core.shape();
        }
        let watch = reload::Watch::start(&core.loaded.config, &core.path, sender.clone())?;
        let thread = std::thread::Builder::new().name("plane".to_owned());
        let running = Running {
            core,
            orders,
            updates: updates_in,
            notices: notices_in,
            sources,
            _outlet: outlet,
        };
        let thread = thread.spawn(move || running.run())?;
        Ok(Plane {
            sender,
            thread: Some(thread),
            _watch: watch,
        })
    }
}

/// Why the plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// A source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A thread.
    #[error("a thread of the control plane")]
    Thread(#[from] io::Error),
}

/// The running thread. Dropping it ends the sources, and then it.
#[derive(Debug)]
pub struct Plane {
    sender: PlaneSender,
    thread: Option<JoinHandle<()>>,
    _watch: reload::Watch,
}

impl Drop for Plane {
    fn drop(&mut self) {
        let _ = self.sender.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the plane knows.
#[derive(Debug)]
struct Core {
    loaded: Loaded,
    /// Where it was read from.
    path: PathBuf,
    local: LocalRoutes,
    /// How often the files were taken.
    reloads: u64,
    reconciler: Reconciler,
    rib: Rib,
    claim: Option<Claim>,
    /// The network of which it was said what has no effect.
    told_network: Option<NetConf>,
    /// Whether the tables differ from those that were published.
    is_dirty: bool,
    alarms: Alarms,
    start: Instant,
    is_rootless: bool,
    memory: Option<Memory>,
    /// Why there is no memory though there should be.
    forgets: Option<String>,
    /// What is remembered and routed, but not decided again yet.
    undecided: Option<Remembered>,
    parts: Option<PlaneParts>,
    /// Whether the sources have yet to be told of another address of this node.
    has_moved: bool,
    /// What workers do not receive though they were told to, as long as it is so.
    unreceived: Option<Unreceived>,
    /// When the files are taken again, whose underlay address could not be received at.
    move_again: Option<Time>,
    /// Whether the probes' sockets were opened for IP in IP, too.
    probes_ipip: bool,
}

impl Core {
    fn new(loaded: Loaded, path: PathBuf, is_rootless: bool) -> Self {
        let config = &loaded.config;
        let terms = Terms::of(config, on_link(config, is_rootless));
        let (memory, remembered) = Memory::open(config);
        let (memory, forgets) = match memory {
            Ok(memory) => (memory, None),
            Err(alarm) => (None, Some(alarm)),
        };
        let mut core = Self {
            reconciler: Reconciler::new(settings(config.sources.guard), identity(config)),
            rib: Rib::new(config.local(), terms),
            path,
            local: LocalRoutes::default(),
            reloads: 0,
            claim: None,
            told_network: None,
            is_dirty: true,
            alarms: Alarms::default(),
            start: Instant::now(),
            is_rootless,
            memory,
            forgets,
            undecided: None,
            parts: None,
            has_moved: false,
            unreceived: None,
            move_again: None,
            probes_ipip: false,
            loaded,
        };
        core.take_files();
        core.recall(&remembered.leases);
        core.recall_routes(remembered);
        core.publish();
        core
    }

    /// Routes what the node routed before it was started, where the files say the same as then. To
    /// decide it again takes ten times as long, and no packet waits for that.
    fn recall_routes(&mut self, mut remembered: Remembered) {
        let basis = self.reconciler.basis();
        let settings = settings(self.loaded.config.sources.guard);
        let recall = remembered.take_recall(basis, &settings);
        self.undecided = Some(remembered);
        match recall {
            Some(recall) => {
                self.rib.recall(&recall);
                self.is_dirty = true;
            }
            None => self.confirm_routes(),
        }
    }

    /// Decides what is remembered.
    fn confirm_routes(&mut self) {
        let Some(remembered) = self.undecided.take() else {
            return;
        };
        let now = self.now();
        let events = remembered.events().unwrap_or_else(|error| {
            self.alarms.say(now, &error.to_string());
            Vec::new()
        });
        let outcome = self.reconciler.handle_all(events, now);
        for alarm in outcome.alarms {
            self.alarms.say(now, &alarm);
        }
        if self.rib.confirm(&outcome.routes) {
            self.is_dirty = true;
            if let Some(memory) = &mut self.memory {
                memory.changed(now);
            }
        }
        let (routes, took) = (outcome.routes.len(), self.now().since(now));
        debug!(routes, ?took, "what was remembered is decided");
    }

    /// Makes what the files say what the sources of that name say.
    fn take_files(&mut self) {
        self.reloads += 1;
        self.local = reload::local_routes(&self.loaded);
        self.rib.set_local_routes(&self.local);
        self.is_dirty = true;
        let config = &self.loaded.config;
        let has_files = config.sources.files.is_some();
        let kinds = [SourceKind::Config, SourceKind::File];
        let kinds = kinds
            .into_iter()
            .filter(|kind| *kind == SourceKind::Config || has_files);
        let events =
            kinds.map(|kind| Event::Update(config_update(kind, config, &self.local, self.reloads)));
        let events = events.collect();
        self.handle(events);
    }

    /// Decides, and changes the tables, but publishes nothing.
    fn handle(&mut self, events: Vec<Event>) {
        let now = self.now();
        let outcome = self.reconciler.handle_all(events, now);
        for alarm in outcome.alarms {
            self.alarms.say(now, &alarm);
        }
        if !outcome.routes.is_empty() {
            self.is_dirty = true;
            self.rib.apply(&outcome.routes);
            if let Some(memory) = &mut self.memory {
                memory.changed(now);
            }
        }
    }

    /// Has what is to be remembered written, if that is due.
    fn remember(&mut self) {
        let now = self.now();
        let leases = self.leases();
        if let Some(memory) = &mut self.memory
            && memory.poll_timeout() <= now
        {
            memory.save(&self.reconciler, leases, Vec::new(), now);
        }
    }

    /// When something is due though nobody says anything.
    fn poll_timeout(&self) -> Option<Time> {
        let memory = self.memory.as_ref().map(Memory::poll_timeout);
        let due = self.reconciler.poll_timeout();
        let receiving = self.unreceived.as_ref().map(|unreceived| unreceived.again);
        let due_times = [memory, due, receiving, self.move_again];
        due_times.into_iter().flatten().min()
    }

    /// Shows everybody what changed since this was last called.
    fn publish(&mut self) {
        if self.is_dirty {
            self.is_dirty = false;
            self.rib.publish_tables();
            self.announce();
        }
        let unreceived = self.unreceived.iter().map(Unreceived::sentence);
        let lacks_subnet = self.loaded.config.sources.may_claim() && self.claim.is_none();
        self.alarms.show(&self.reconciler, unreceived, lacks_subnet);
    }

    /// Tells the other threads, when there are any, what follows from what was published.
    fn announce(&mut self) {
        if self.parts.is_none() {
            return;
        }
        let effects = self.rib.take_effects();
        let now = self.now();
        for sentence in &effects.refused {
            self.alarms.say(now, &format!("not routed: {sentence}"));
        }
        if let Some(parts) = &self.parts {
            parts.paths.peers(effects.peers);
            if let Some(host) = &parts.host {
                host.published();
            }
        }
    }

    /// This node, as sources describe it.
    fn own(&self) -> Own {
        Own::of(&self.loaded.config)
    }

    fn now(&self) -> Time {
        Time::ZERO.after(self.start.elapsed())
    }

    fn notice(&mut self, notice: SourceNotice) {
        match notice {
            SourceNotice::Claimed {
                source,
                subnets,
                network,
            } => self.claimed(Claim {
                source,
                subnets,
                network,
            }),
            SourceNotice::Alarm { source, text } => {
                let now = self.now();
                let text = format!("{source}: {text}");
                self.alarms.say(now, &text);
                self.alarms.without_subnet(text);
            }
            SourceNotice::Left { source } => info!(%source, "gave the node's subnet back"),
        }
    }

    /// Carries out an order; whether to go on.
    fn obey(&mut self, order: Order) -> bool {
        // An asker that is gone does not want the answer any more.
        match order {
            Order::Ways(ways) => {
                self.rib.set_ways(ways);
                self.is_dirty = true;
            }
            Order::Sources(answer) => drop(answer.try_send(self.sources_report())),
            Order::Why(prefix, answer) => drop(answer.try_send(self.why_report(prefix))),
            Order::Events(after, answer) => drop(answer.try_send(self.events_report(after))),
            Order::Confirm(source, answer) => {
                let mut sources = self.reconciler.sources().collect::<Vec<_>>();
                sources.retain(|(kind, _)| source.is_none_or(|source| source == *kind));
                let held = sources.iter().map(|(_, status)| status.held).sum();
                self.handle(vec![Event::Confirm(source)]);
                self.publish();
                let _ = answer.try_send(held);
            }
            Order::Reload { dry_run, answer } => {
                let report = self.reload(dry_run);
                match answer {
                    Some(answer) => drop(answer.try_send(self.reloaded(report))),
                    None => self.log_reload(report),
                }
            }
            Order::Stop => return false,
        }
        true
    }
}

/// The thread.
struct Running {
    core: Core,
    orders: Receiver<Order>,
    updates: Receiver<SourceUpdate>,
    notices: Receiver<SourceNotice>,
    sources: Vec<Box<dyn Source>>,
    /// Keeps the channels open where no source does: a closed one is always ready, and the thread
    /// would never sleep.
    _outlet: Outlet,
}

impl Running {
    fn run(mut self) {
        // Before anything that a source says, and before anything is saved.
        self.core.confirm_routes();
        self.core.publish();
        loop {
            let mut events = Vec::new();
            let due = self.core.reconciler.poll_timeout();
            let wait_for = self.core.poll_timeout();
            let wait = wait_for.map_or(IDLE_MOST, |at| at.since(self.core.now()).min(IDLE_MOST));
            let (updates, notices, orders) = (&self.updates, &self.notices, &self.orders);
            select! {
                recv(updates) -> update => events.extend(update.ok().map(Event::Update)),
                recv(notices) -> notice => {
                    if let Ok(notice) = notice {
                        self.core.notice(notice);
                    }
                }
                recv(orders) -> order => {
                    if !order.is_ok_and(|order| self.core.obey(order)) {
                        return self.end();
                    }
                }
                default(wait) => {}
            }
            // Whatever has come meanwhile is part of the same step.
            events.extend(self.updates.try_iter().take(UPDATES_MAX).map(Event::Update));
            if due.is_some_and(|due| due <= self.core.now()) {
                events.push(Event::Timeout);
            }
            if !events.is_empty() {
                self.core.handle(events);
            }
            while let Ok(notice) = self.notices.try_recv() {
                self.core.notice(notice);
            }
            while let Ok(order) = self.orders.try_recv() {
                if !self.core.obey(order) {
                    return self.end();
                }
            }
            self.core.move_if_due();
            if std::mem::take(&mut self.core.has_moved) {
                let own = self.core.own();
                for source in &self.sources {
                    source.tell(SourceCommand::Own(own));
                }
            }
            self.core.receive_what_is_due();
            self.core.publish();
            self.core.remember();
        }
    }

    /// Ends the sources. What they still say is heard, or they would wait for ever.
    fn end(self) {
        let sources = &self.core.loaded.config.sources;
        for source in &self.sources {
            let leaves = match source.kind() {
                SourceKind::Etcd => sources.etcd.as_ref().is_some_and(|etcd| etcd.leave),
                SourceKind::Kube => sources.kubernetes.as_ref().is_some_and(|kube| kube.leave),
                SourceKind::Config | SourceKind::File | SourceKind::Bgp => false,
            };
            source.tell(if leaves {
                SourceCommand::Leave
            } else {
                SourceCommand::Stop
            });
        }
        let (ended, all_ended) = crossbeam_channel::bounded::<()>(0);
        let sources = self.sources;
        let join = move || {
            let _ended = ended;
            sources.into_iter().for_each(Source::join);
        };
        let thread = std::thread::Builder::new().name("plane-end".to_owned());
        if thread.spawn(join).is_err() {
            return;
        }
        let (updates, notices) = (&self.updates, &self.notices);
        let deadline = crossbeam_channel::after(END_PATIENCE);
        loop {
            select! {
                recv(updates) -> update => if update.is_err() { return },
                recv(notices) -> notice => if notice.is_err() { return },
                recv(all_ended) -> _ => return,
                recv(deadline) -> _ => return warn!("a source does not end"),
            }
        }
    }
}

/// What the configuration says about the guard.
fn settings(guard: Guard) -> Settings {
    Settings {
        guard_percent: guard.percent,
        hold: Duration::from_secs(guard.hold_s.into()),
        ..Settings::default()
    }
}

/// What nobody else may say of themselves.
fn identity(config: &Config) -> Identity {
    let underlay = [Family::V4, Family::V6].map(|family| config.node.underlay(family));
    Identity {
        underlay: underlay.into_iter().flatten().collect(),
        vteps: vec![config.node.vtep_mac],
    }
}

/// Updates that may wait; a source waits beyond that.
const UPDATES_MAX: usize = 256;
/// How long the thread sleeps when nothing is due.
const IDLE_MOST: Duration = Duration::from_secs(60);
/// How long an asker waits.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);
/// How long the sources may take to end together.
const END_PATIENCE: Duration = Duration::from_secs(8);

#[cfg(test)]
#[path = "plane/warm_tests.rs"]
mod warm_tests;
