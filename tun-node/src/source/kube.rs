//! Nodes that find each other by the Kubernetes API, in flannel's annotations.
//!
//! ```text
//!                requests               ┌──────────┐ updates
//!  API server <────────── thread kube ──┤  Agent   ├─────────> RIB
//!     │                      ▲          │ (pure)   │ notices
//!     └── watch thread ──────┘          └──────────┘─────────> node
//! ```
//!
//! [`agent`] decides and has no socket; `api.rs` has the sockets and decides nothing; this file
//! carries between them, as with the etcd source. One thread asks, one request at a time, each
//! with its time limit; a second one waits at the watch and opens it again where it ended as long
//! as nothing but its time was over.
//!
//! Why not the `kube` crate: with the features that this needs it brings 64 crates that the node
//! has no other use for, measured at 145 s of CPU in a release build (a third of it the types of
//! every Kubernetes object, of which one is read here), before a line of it is linked; and an
//! executor between every step. What is left without it is four calls over the HTTP client that
//! the etcd source has, and the types in `wire.rs`.
//!
//! A black hole is noticed in two ways: a server that does not answer by the ping every 8 s, which
//! may take 4 s; a watch whose connection alone is gone by the kernel's probes after 14 s.
//! Whatever happens, routes stay until the API says otherwise.
//!
//! Tokens, certificate authorities and client certificates are read again before each request, and
//! a kubeconfig with all that it names: others renew them while the node runs.

pub mod access;
pub mod agent;
mod api;
pub mod node;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TryRecvError};
use warren_core::units::Time;

use super::{Outlet, Own, Source, SourceCommand, SourceNotice};
use crate::flannel::NetConf;
use crate::rib::SourceKind;
use access::{Access, AccessError};
use agent::{Agent, AgentSettings, Input, Notice, WantedWatch, WatchEvent};
use api::{Api, WatchEnd};

/// What the source is told at its start.
#[derive(Clone, Debug)]
pub struct KubeSettings {
    /// Where the API is and who asks.
    pub access: Access,
    /// How the agent behaves.
    pub agent: AgentSettings,
    /// This node.
    pub own: Own,
}

/// The source, running in its thread; ends when it is told to or is dropped.
#[derive(Debug)]
pub struct KubeSource {
    commands: Sender<SourceCommand>,
    thread: Option<JoinHandle<()>>,
}

impl KubeSource {
    /// Starts the source, which delivers to `outlet`.
    ///
    /// # Errors
    ///
    /// [`AccessError`] when a certificate or key is none. That no server answers is no error: it
    /// will be asked until it does.
    pub fn start(settings: KubeSettings, outlet: Outlet) -> Result<Self, AccessError> {
        let KubeSettings { access, agent, own } = settings;
        let api = Arc::new(Api::new(&access, &agent.node, &agent.prefix)?);
        let (commands, orders) = crossbeam_channel::unbounded();
        let network = agent.network.clone();
        let agent = Agent::new(agent, own);
        let thread = std::thread::Builder::new().name("kube".to_owned());
        let thread = thread.spawn(move || {
            Driver {
                agent,
                api,
                outlet,
                network,
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

    fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Source for KubeSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Kube
    }

    fn tell(&self, command: SourceCommand) {
        // It ends by itself only after it was told to.
        let _ = self.commands.send(command);
    }

    fn join(mut self: Box<Self>) {
        self.wait();
    }
}

impl Drop for KubeSource {
    fn drop(&mut self) {
        self.tell(SourceCommand::Stop);
        self.wait();
    }
}

/// What carries between the agent and the world.
struct Driver {
    agent: Agent,
    api: Arc<Api>,
    outlet: Outlet,
    network: NetConf,
    start: Instant,
    watch: Option<Watch>,
    watches: (Sender<WatchMessage>, Receiver<WatchMessage>),
    leave_by: Option<Instant>,
}

/// The watch that is wanted.
#[derive(Debug)]
struct Watch {
    wanted: WantedWatch,
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
    fn run(mut self, orders: &Receiver<SourceCommand>) {
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
            // What is known is told before more is asked.
            if !self.deliver() {
                break;
            }
            self.keep_watch();
            let now = self.now();
            if let Some(request) = self.agent.poll_request(now) {
                let answer = self.api.carry_out(&request);
                let now = self.now();
                self.agent.handle(Input::Answer(answer), now);
                continue;
            }
            let left = self.leave_by.is_some_and(|by| Instant::now() >= by);
            if left || !self.wait(orders) {
                break;
            }
        }
        self.cancel_watch();
    }

    /// Waits for something to happen; whether to go on.
    fn wait(&mut self, orders: &Receiver<SourceCommand>) -> bool {
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

    fn obey(&mut self, command: SourceCommand) -> bool {
        let now = self.now();
        match command {
            SourceCommand::Stop => return false,
            SourceCommand::Own(own) => self.agent.handle(Input::Own(own), now),
            SourceCommand::Leave => {
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

    /// Hands over what the agent has to say; whether to go on.
    fn deliver(&mut self) -> bool {
        while let Some(update) = self.agent.poll_update() {
            if !self.outlet.update(update) {
                return false;
            }
        }
        while let Some(notice) = self.agent.poll_notice() {
            let source = SourceKind::Kube;
            let (notice, left) = match notice {
                Notice::Claimed(subnets) => {
                    let claimed = SourceNotice::Claimed {
                        source,
                        subnets,
                        network: self.network.clone(),
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
        let wanted = self.agent.wanted_watch();
        if self.watch.as_ref().map(|watch| &watch.wanted) == wanted {
            return;
        }
        let wanted = wanted.cloned();
        self.cancel_watch();
        let Some(wanted) = wanted else {
            return;
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            api: Arc::clone(&self.api),
            messages: self.watches.0.clone(),
            cancelled: Arc::clone(&cancelled),
            next: wanted.from.clone(),
        };
        self.watch = Some(Watch { wanted, cancelled });
        let thread = std::thread::Builder::new().name("kube-watch".to_owned());
        if let Err(error) = thread.spawn(move || watcher.run()) {
            let now = self.now();
            let why = format!("no thread for it: {error}");
            self.agent.handle(Input::WatchBroke { why }, now);
        }
    }

    fn cancel_watch(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.cancelled.store(true, Ordering::Relaxed);
        }
    }

    fn now(&self) -> Time {
        Time::ZERO.after(self.start.elapsed())
    }
}

/// The thread that waits at a watch.
struct Watcher {
    api: Arc<Api>,
    messages: Sender<WatchMessage>,
    cancelled: Arc<AtomicBool>,
    /// The version to go on from.
    next: String,
}

impl Watcher {
    fn run(mut self) {
        let end = loop {
            let opened = Instant::now();
            match self.watch() {
                WatchEnd::Over => {}
                WatchEnd::Expired => break Input::WatchExpired,
                WatchEnd::Broken(why) => break Input::WatchBroke { why },
            }
            if self.cancelled.load(Ordering::Relaxed) {
                return;
            }
            if opened.elapsed() < WATCH_LEAST {
                // The agent waits, and longer each time.
                let why = "the server closed it at once".to_owned();
                break Input::WatchBroke { why };
            }
        };
        self.say(end);
    }

    /// Reads one stream to its end.
    fn watch(&mut self) -> WatchEnd {
        let mut stream = match self.api.watch(&self.next) {
            Ok(stream) => stream,
            Err(end) => return end,
        };
        let mut events = Vec::new();
        loop {
            let end = match stream.next() {
                Ok(event) => {
                    if let Some(event) = event {
                        self.next = version(&event).to_owned();
                        events.push(event);
                    }
                    None
                }
                Err(end) => Some(end),
            };
            // Events that came together are applied together.
            let more = end.is_none() && stream.has_more() && events.len() < EVENTS_AT_ONCE;
            if !more && !events.is_empty() {
                let events = std::mem::take(&mut events);
                if !self.say(Input::Watched(events)) {
                    return WatchEnd::Over;
                }
            }
            if let Some(end) = end {
                return end;
            }
            if self.cancelled.load(Ordering::Relaxed) {
                return WatchEnd::Over;
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
                Err(SendTimeoutError::Timeout(back)) => message = back,
                Err(SendTimeoutError::Disconnected(_)) => return false,
            }
            if self.cancelled.load(Ordering::Relaxed) {
                return false;
            }
        }
    }
}

fn version(event: &WatchEvent) -> &str {
    match event {
        WatchEvent::Put(node) | WatchEvent::Gone(node) => &node.version,
        WatchEvent::Bookmark(version) => version,
    }
}

/// Messages of a watch that wait while a request is out.
const WATCH_MESSAGES: usize = 64;
/// Events that are handed over in one message.
const EVENTS_AT_ONCE: usize = 4096;
/// A watch that lived shorter did not end because its time was over.
const WATCH_LEAST: Duration = Duration::from_secs(1);
/// How long the thread sleeps when nothing is due.
const IDLE_MOST: Duration = Duration::from_secs(60);
/// How long leaving may take.
const LEAVE_MOST: Duration = Duration::from_secs(5);
/// How often a watch thread that cannot hand over looks whether it is still wanted.
const SEND_PATIENCE: Duration = Duration::from_millis(200);
