//! Nodes that find each other in an etcd cluster, in flannel's layout.
//!
//! ```text
//!             requests               ┌──────────┐ updates
//!  cluster <─────────── thread etcd ─┤  Agent   ├─────────> RIB
//!     │                     ▲        │ (pure)   │ notices
//!     └── watch thread ─────┘        └──────────┘─────────> node
//! ```
//!
//! [`agent`] decides and has no socket; [`gateway`] has the sockets and decides nothing; this file
//! carries between them. One thread asks, one request at a time, each with its time limit; a
//! second one waits at the watch, which is opened again wherever the agent wants it. A thread of a
//! watch that is no longer wanted ends when its connection says something, and after 30 s at the
//! latest.

pub mod agent;
mod claim;
mod copy;
pub mod gateway;
pub mod store;
mod wire;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use warren_core::units::Time;

use super::{Outlet, Own, Source, SourceCommand, SourceNotice};

pub use claim::OwnNode;

use crate::flannel::{SubnetEnv, SubnetKey};
use crate::rib::SourceKind;
use agent::{Agent, AgentSettings, Input, Notice};
use gateway::{Cluster, ClusterError, Gateway, StreamEnd};
use store::{Header, WatchEvent};

/// What the source is told at its start.
#[derive(Clone, Debug)]
pub struct EtcdSettings {
    /// Where the cluster is.
    pub cluster: Cluster,
    /// How the agent behaves.
    pub agent: AgentSettings,
    /// This node.
    pub own: OwnNode,
}

/// What the source is told later.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// The node's addresses are others.
    Own(OwnNode),
    /// Give the subnet back, then end.
    Leave,
    /// End, and keep the subnet.
    Stop,
}

/// The source, running in its thread; ends when it is told to or is dropped.
#[derive(Debug)]
pub struct EtcdSource {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl EtcdSource {
    /// Starts the source, which delivers to `outlet`.
    ///
    /// # Errors
    ///
    /// [`ClusterError`] when the description of the cluster is unusable. That no member answers is
    /// no error: it will be asked until one does.
    pub fn start(settings: EtcdSettings, outlet: Outlet) -> Result<Self, ClusterError> {
        let gateway = Arc::new(Gateway::new(&settings.cluster, &settings.agent.prefix)?);
        let (commands, orders) = crossbeam_channel::unbounded();
        let agent = Agent::new(settings.agent, settings.own);
        let thread = std::thread::Builder::new().name("etcd".to_owned());
        let thread = thread.spawn(move || {
            Driver {
                agent,
                gateway,
                outlet,
                start: Instant::now(),
                watch: None,
                watches: crossbeam_channel::bounded(WATCH_MESSAGES),
                leave_by: None,
            }
            .run(&orders);
        });
        Ok(Self {
            commands,
            // Without a thread nothing is learned and nothing withdrawn; the caller sees no update.
            thread: thread.ok(),
        })
    }

    /// Tells the source something.
    pub fn tell(&self, command: Command) {
        // It ends by itself only after it was told to.
        let _ = self.commands.send(command);
    }

    /// Waits for its end, which [`Command::Leave`] or [`Command::Stop`] brings.
    pub fn join(mut self) {
        self.wait();
    }

    fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Source for EtcdSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Etcd
    }

    fn tell(&self, command: SourceCommand) {
        let command = match command {
            SourceCommand::Leave => Command::Leave,
            SourceCommand::Stop => Command::Stop,
            SourceCommand::Own(own) => match own_node(own) {
                Some(own) => Command::Own(own),
                // Without an IPv4 address there is nothing to be known by; the claim stays.
                None => return,
            },
        };
        Self::tell(self, command);
    }

    fn join(self: Box<Self>) {
        Self::join(*self);
    }
}

/// This node as its lease describes it; `None` without an IPv4 address, which flannel's layout
/// knows nodes by.
#[must_use]
pub fn own_node(own: Own) -> Option<OwnNode> {
    Some(OwnNode {
        public_ip: own.v4?,
        public_ipv6: own.v6,
        vtep_mac_v4: own.vtep_mac,
        vtep_mac_v6: own.vtep_mac,
    })
}

impl Drop for EtcdSource {
    fn drop(&mut self) {
        self.tell(Command::Stop);
        self.wait();
    }
}

/// The subnet that an earlier `subnet.env` speaks of, if it can be read.
#[must_use]
pub fn previous_subnet(path: &Path) -> Option<SubnetKey> {
    let text = std::fs::read_to_string(path).ok()?;
    SubnetEnv::parse(&text).ok()?.subnet_key()
}

/// What carries between the agent and the world.
struct Driver {
    agent: Agent,
    gateway: Arc<Gateway>,
    outlet: Outlet,
    start: Instant,
    watch: Option<Watch>,
    watches: (Sender<WatchMessage>, Receiver<WatchMessage>),
    leave_by: Option<Instant>,
}

/// The watch that is wanted.
#[derive(Debug)]
struct Watch {
    from: u64,
    /// The member that was asked when it was opened.
    member: usize,
    cancelled: Arc<AtomicBool>,
}

/// What a watch thread says.
#[derive(Debug)]
struct WatchMessage {
    /// Whose it is: that of a watch that is no longer wanted is dropped.
    cancelled: Arc<AtomicBool>,
    input: Input,
}

impl Driver {
    fn run(mut self, orders: &Receiver<Command>) {
        loop {
            match orders.try_recv() {
                Ok(command) => {
                    if !self.obey(command) {
                        break;
                    }
                }
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {}
            }
            while let Ok(message) = self.watches.1.try_recv() {
                self.watched(message);
            }
            let now = self.now();
            if let Some(request) = self.agent.poll_request(now) {
                let answer = self.gateway.carry_out(&request);
                let now = self.now();
                self.agent.handle(Input::Answer(answer), now);
            } else {
                if !self.deliver() {
                    break;
                }
                self.keep_watch();
                let left = self.leave_by.is_some_and(|by| Instant::now() >= by);
                if left || !self.wait(orders) {
                    break;
                }
            }
            if !self.deliver() {
                break;
            }
            self.keep_watch();
        }
        if let Some(watch) = self.watch.take() {
            watch.cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Waits for something to happen; whether to go on.
    fn wait(&mut self, orders: &Receiver<Command>) -> bool {
        let due = self.agent.poll_timeout();
        let wait = due.map_or(IDLE_MOST, |due| due.since(self.now()).min(IDLE_MOST));
        let wait = match self.leave_by {
            Some(by) => wait.min(by.saturating_duration_since(Instant::now())),
            None => wait,
        };
        let watches = self.watches.1.clone();
        crossbeam_channel::select! {
            recv(orders) -> command => match command {
                Ok(command) => self.obey(command),
                Err(_) => false,
            },
            recv(watches) -> message => {
                if let Ok(message) = message {
                    self.watched(message);
                }
                true
            }
            default(wait) => true,
        }
    }

    fn obey(&mut self, command: Command) -> bool {
        let now = self.now();
        match command {
            Command::Stop => return false,
            Command::Own(own) => self.agent.handle(Input::Own(own), now),
            Command::Leave => {
                self.leave_by = Some(Instant::now() + LEAVE_MOST);
                self.agent.handle(Input::Leave, now);
            }
        }
        true
    }

    fn watched(&mut self, message: WatchMessage) {
        let current = self.watch.as_ref();
        let current =
            current.is_some_and(|watch| Arc::ptr_eq(&watch.cancelled, &message.cancelled));
        if current {
            let now = self.now();
            self.agent.handle(message.input, now);
        }
    }

    /// Hands over what the agent has to say; whether someone still listens.
    fn deliver(&mut self) -> bool {
        while let Some(update) = self.agent.poll_update() {
            if !self.outlet.update(update) {
                return false;
            }
        }
        while let Some(notice) = self.agent.poll_notice() {
            let source = SourceKind::Etcd;
            let (notice, left) = match notice {
                Notice::Claimed { subnet, network } => {
                    let subnets = subnet.prefixes().collect();
                    let claimed = SourceNotice::Claimed {
                        source,
                        subnets,
                        network,
                    };
                    (claimed, false)
                }
                Notice::Alarm(text) => (SourceNotice::Alarm { source, text }, false),
                Notice::Left => (SourceNotice::Left { source }, true),
            };
            if !self.outlet.notice(notice) || left {
                return false;
            }
        }
        true
    }

    /// Opens the watch that the agent wants and lets go of the one that it does not.
    fn keep_watch(&mut self) {
        if let Some(watch) = &self.watch
            && watch.member != self.gateway.member()
        {
            // Its member did not answer something else; a silent watch would not tell.
            let now = self.now();
            let why = "its member does not answer".to_owned();
            self.agent.handle(Input::WatchEnded { why }, now);
        }
        let wanted = self.agent.wanted_watch();
        if self.watch.as_ref().map(|watch| watch.from) == wanted {
            return;
        }
        if let Some(watch) = self.watch.take() {
            watch.cancelled.store(true, Ordering::Relaxed);
        }
        let Some(from) = wanted else {
            return;
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            gateway: Arc::clone(&self.gateway),
            messages: self.watches.0.clone(),
            cancelled: Arc::clone(&cancelled),
            next: from,
        };
        self.watch = Some(Watch {
            from,
            member: self.gateway.member(),
            cancelled,
        });
        let thread = std::thread::Builder::new().name("etcd-watch".to_owned());
        if let Err(error) = thread.spawn(move || watcher.run()) {
            let now = self.now();
            let why = format!("no thread for it: {error}");
            self.agent.handle(Input::WatchEnded { why }, now);
        }
    }

    fn now(&self) -> Time {
        Time::ZERO.after(self.start.elapsed())
    }
}

/// The thread that waits at a watch.
struct Watcher {
    gateway: Arc<Gateway>,
    messages: Sender<WatchMessage>,
    cancelled: Arc<AtomicBool>,
    /// The revision to go on from.
    next: u64,
}

impl Watcher {
    fn run(mut self) {
        let why = loop {
            match self.watch() {
                StreamEnd::Idle => {}
                StreamEnd::Broken(why) => break why,
            }
            if self.cancelled.load(Ordering::Relaxed) {
                return;
            }
        };
        self.say(Input::WatchEnded { why });
    }

    /// Reads one stream to its end.
    fn watch(&mut self) -> StreamEnd {
        let mut stream = match self.gateway.watch(self.next) {
            Ok(stream) => stream,
            Err(failure) => return StreamEnd::Broken(failure.to_string()),
        };
        let mut events: Vec<WatchEvent> = Vec::new();
        loop {
            let message = match stream.next() {
                Ok(message) => message,
                // The pieces of one revision come together or not at all.
                Err(StreamEnd::Idle) if !events.is_empty() => {
                    return StreamEnd::Broken("cut off between two pieces".to_owned());
                }
                Err(end) => return end,
            };
            if self.cancelled.load(Ordering::Relaxed) {
                return StreamEnd::Broken("not wanted".to_owned());
            }
            if message.canceled {
                let compacted = message.compact_revision.unsigned();
                return StreamEnd::Broken(match compacted {
                    0 => crate::flannel::printable(message.cancel_reason.as_bytes()),
                    _ => format!("compacted up to revision {compacted}"),
                });
            }
            let header: Header = message.header.into();
            for event in message.events {
                let Some(event) = event.read() else {
                    return StreamEnd::Broken("a key is not base64".to_owned());
                };
                events.push(event);
            }
            if events.len() > PIECES_EVENTS_MAX {
                return StreamEnd::Broken("too much at once".to_owned());
            }
            if message.fragment {
                continue;
            }
            let last = events.iter().map(WatchEvent::revision).max();
            // Silence up to there, as the member says, or what was just read.
            let silent = (!message.created && last.is_none()).then_some(header.revision);
            self.next = self.next.max(last.or(silent).map_or(0, |seen| seen + 1));
            let events = std::mem::take(&mut events);
            if !self.say(Input::Watched { header, events }) {
                return StreamEnd::Broken("not wanted".to_owned());
            }
        }
    }

    fn say(&self, input: Input) -> bool {
        let mut message = WatchMessage {
            cancelled: Arc::clone(&self.cancelled),
            input,
        };
        loop {
            match self.messages.send_timeout(message, SEND_PATIENCE) {
                Ok(()) => return true,
                Err(crossbeam_channel::SendTimeoutError::Timeout(back)) => message = back,
                Err(crossbeam_channel::SendTimeoutError::Disconnected(_)) => return false,
            }
            if self.cancelled.load(Ordering::Relaxed) {
                return false;
            }
        }
    }
}

/// Messages of a watch that wait while a request is out.
const WATCH_MESSAGES: usize = 64;
/// How long the thread sleeps when nothing is due.
const IDLE_MOST: Duration = Duration::from_secs(60);
/// How long leaving may take.
const LEAVE_MOST: Duration = Duration::from_secs(5);
/// How often a watch thread that cannot hand over looks whether it is still wanted.
const SEND_PATIENCE: Duration = Duration::from_millis(200);
/// Events of one revision.
const PIECES_EVENTS_MAX: usize = 1 << 20;
