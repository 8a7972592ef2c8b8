//! Nodes that find each other in an etcd cluster, in flannel's layout.
//!
//! ```text
//!             requests               ┌──────────┐ updates
//!  cluster <─────────── thread etcd ─┤  Agent   ├─────────> RIB
//!     │                     ▲        │ (pure)   │ notices
//!     └── watch thread ─────┘        └──────────┘─────────> node
//! ```
//!
//! [`agent`] decides and has no socket; [`gateway`] has the sockets and decides nothing;
//! `driver.rs`, which the sources share, carries between them. The thread of a watch that is no
//! longer wanted ends when its connection says something, and after 30 s at the latest.

pub mod agent;
mod claim;
mod copy;
pub mod gateway;
pub mod store;
mod wire;

use std::path::Path;
use std::sync::Arc;

use warren_core::units::Time;

use super::driver::{Clock, Dialog, Mouth, Order, Running, WatcherOf};
use super::{Outlet, Own, Source, SourceCommand, SourceNotice};

pub use claim::OwnNode;

use crate::flannel::{SubnetEnv, SubnetKey};
use crate::rib::{SourceKind, SourceUpdate};
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
    running: Running<Input>,
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
        let dialog = EtcdDialog {
            agent: Agent::new(settings.agent, settings.own),
            gateway,
            member: None,
        };
        Ok(Self {
            running: Running::start(dialog, outlet),
        })
    }

    /// Tells the source something.
    pub fn tell(&self, command: Command) {
        self.running.tell(match command {
            Command::Own(own) => Order::Take(Input::Own(own)),
            Command::Leave => Order::Leave(Input::Leave),
            Command::Stop => Order::Stop,
        });
    }

    /// Waits for its end, which [`Command::Leave`] or [`Command::Stop`] brings.
    pub fn join(mut self) {
        self.running.wait();
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

/// The subnet that an earlier `subnet.env` speaks of, if it can be read.
#[must_use]
pub fn previous_subnet(path: &Path) -> Option<SubnetKey> {
    let text = std::fs::read_to_string(path).ok()?;
    SubnetEnv::parse(&text).ok()?.subnet_key()
}

/// The agent and the client that asks for it.
struct EtcdDialog {
    agent: Agent,
    gateway: Arc<Gateway>,
    /// The member that was asked when the watch was opened.
    member: Option<usize>,
}

impl Dialog for EtcdDialog {
    type Input = Input;
    /// The revision to begin with.
    type Wanted = u64;

    const NAME: &'static str = "etcd";

    fn handle(&mut self, input: Input, now: Time) {
        self.agent.handle(input, now);
    }

    fn ask(&mut self, clock: Clock) -> bool {
        let Some(request) = self.agent.poll_request(clock.now()) else {
            return false;
        };
        let answer = self.gateway.carry_out(&request);
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
        let source = SourceKind::Etcd;
        Some(match self.agent.poll_notice()? {
            Notice::Claimed { subnet, network } => SourceNotice::Claimed {
                source,
                subnets: subnet.prefixes().collect(),
                network,
            },
            Notice::Alarm(text) => SourceNotice::Alarm { source, text },
            Notice::Left => SourceNotice::Left { source },
        })
    }

    fn wanted_watch(&mut self, now: Time) -> Option<u64> {
        if self.member.is_some_and(|was| was != self.gateway.member()) {
            // Its member did not answer something else; a silent watch would not tell.
            self.member = None;
            self.agent.handle(
                Self::watch_broke("its member does not answer".to_owned()),
                now,
            );
        }
        let wanted = self.agent.wanted_watch();
        if wanted.is_none() {
            self.member = None;
        }
        wanted
    }

    fn watcher(&mut self, from: u64) -> WatcherOf<Input> {
        self.member = Some(self.gateway.member());
        let gateway = Arc::clone(&self.gateway);
        Box::new(move |mouth| {
            let mut watcher = Watcher {
                gateway,
                mouth,
                next: from,
            };
            watcher.run();
        })
    }

    fn watch_broke(why: String) -> Input {
        Input::WatchEnded { why }
    }
}

/// What waits at a watch.
struct Watcher<'m> {
    gateway: Arc<Gateway>,
    mouth: &'m Mouth<Input>,
    /// The revision to go on from.
    next: u64,
}

impl Watcher<'_> {
    fn run(&mut self) {
        let why = loop {
            match self.watch() {
                StreamEnd::Idle => {}
                StreamEnd::Broken(why) => break why,
            }
            if !self.mouth.is_wanted() {
                return;
            }
        };
        self.mouth.say(Input::WatchEnded { why });
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
            if !self.mouth.is_wanted() {
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
            if !self.mouth.say(Input::Watched { header, events }) {
                return StreamEnd::Broken("not wanted".to_owned());
            }
        }
    }
}

/// Events of one revision.
const PIECES_EVENTS_MAX: usize = 1 << 20;
