//! Nodes that find each other by the Kubernetes API, in flannel's annotations.
//!
//! ```text
//!                requests               ┌──────────┐ updates
//!  API server <────────── thread kube ──┤  Agent   ├─────────> RIB
//!     │                      ▲          │ (pure)   │ notices
//!     └── watch thread ──────┘          └──────────┘─────────> node
//! ```
//!
//! [`agent`] decides and has no socket; `api.rs` has the sockets and decides nothing; `driver.rs`,
//! which the sources share, carries between them. The thread that waits at the watch opens it
//! again where it ended as long as nothing but its time was over.
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
use std::time::{Duration, Instant};

use warren_core::units::Time;

use super::driver::{Clock, Dialog, Mouth, Order, Running, WatcherOf};
use super::{Outlet, Own, Source, SourceCommand, SourceNotice};
use crate::flannel::NetConf;
use crate::rib::{SourceKind, SourceUpdate};
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
    running: Running<Input>,
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
        let network = agent.network.clone();
        let agent = Agent::new(agent, own);
        let dialog = KubeDialog {
            agent,
            api,
            network,
        };
        Ok(Self {
            running: Running::start(dialog, outlet),
        })
    }
}

/// Whether certificates and keys are such.
///
/// # Errors
///
/// Those of [`KubeSource::start`].
pub(super) fn check(settings: &KubeSettings) -> Result<(), AccessError> {
    let KubeSettings { access, agent, .. } = settings;
    Api::new(access, &agent.node, &agent.prefix).map(drop)
}

impl Source for KubeSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Kube
    }

    fn tell(&self, command: SourceCommand) {
        self.running.tell(match command {
            SourceCommand::Own(own) => Order::Take(Input::Own(own)),
            SourceCommand::Leave => Order::Leave(Input::Leave),
            SourceCommand::Stop => Order::Stop,
        });
    }

    fn join(mut self: Box<Self>) {
        self.running.wait();
    }
}

/// The agent and the client that asks for it.
struct KubeDialog {
    agent: Agent,
    api: Arc<Api>,
    network: NetConf,
}

impl Dialog for KubeDialog {
    type Input = Input;
    type Wanted = WantedWatch;

    const NAME: &'static str = "kube";

    fn handle(&mut self, input: Input, now: Time) {
        self.agent.handle(input, now);
    }

    fn ask(&mut self, clock: Clock) -> bool {
        let Some(request) = self.agent.poll_request(clock.now()) else {
            return false;
        };
        let answer = self.api.carry_out(&request);
        self.agent.handle(Input::Answer(answer), clock.now());
        true
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.agent.poll_timeout()
    }

    fn poll_update(&mut self) -> Option<SourceUpdate> {
        self.agent.poll_update()
    }

    fn poll_notice(&mut self) -> Option<SourceNotice> {
        let source = SourceKind::Kube;
        Some(match self.agent.poll_notice()? {
            Notice::Claimed(subnets) => SourceNotice::Claimed {
                source,
                subnets,
                network: self.network.clone(),
            },
            Notice::Alarm(text) => SourceNotice::Alarm { source, text },
            Notice::Left => SourceNotice::Left { source },
        })
    }

    fn wanted_watch(&mut self, _now: Time) -> Option<WantedWatch> {
        self.agent.wanted_watch().cloned()
    }

    fn watcher(&mut self, wanted: WantedWatch) -> WatcherOf<Input> {
        let api = Arc::clone(&self.api);
        Box::new(move |mouth| {
            let mut watcher = Watcher {
                api,
                mouth,
                next: wanted.from,
            };
            watcher.run();
        })
    }

    fn watch_broke(why: String) -> Input {
        Input::WatchBroke { why }
    }
}

/// What waits at a watch.
struct Watcher<'m> {
    api: Arc<Api>,
    mouth: &'m Mouth<Input>,
    /// The version to go on from.
    next: String,
}

impl Watcher<'_> {
    fn run(&mut self) {
        let end = loop {
            let opened = Instant::now();
            match self.watch() {
                WatchEnd::Over => {}
                WatchEnd::Expired => break Input::WatchExpired,
                WatchEnd::Broken(why) => break Input::WatchBroke { why },
            }
            if !self.mouth.is_wanted() {
                return;
            }
            if opened.elapsed() < WATCH_LEAST {
                // The agent waits, and longer each time.
                let why = "the server closed it at once".to_owned();
                break Input::WatchBroke { why };
            }
        };
        self.mouth.say(end);
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
                if !self.mouth.say(Input::Watched(events)) {
                    return WatchEnd::Over;
                }
            }
            if let Some(end) = end {
                return end;
            }
            if !self.mouth.is_wanted() {
                return WatchEnd::Over;
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

/// Events that are handed over in one message.
const EVENTS_AT_ONCE: usize = 4096;
/// A watch that lived shorter did not end because its time was over.
const WATCH_LEAST: Duration = Duration::from_secs(1);
