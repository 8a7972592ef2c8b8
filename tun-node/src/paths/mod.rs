//! The paths to the peers: which encapsulation passes, how large packets may be, how long they
//! take.
//!
//! ```text
//!  worker-N ── Verdict::Probe, first octets ──┐        ┌── probes, answers ──> underlay sockets
//!  control socket ── "prefer" ────────────────┼─ paths ┼── tables (Rib), MTU of kernel routes
//!  ICMP (raw socket, error queues) ───────────┘        └── ICMP for inner senders ──> worker-N
//! ```
//!
//! One thread, "paths"; no packet waits for it. Every encapsulation of a peer is probed by small
//! packets inside it ([`warren_core::probe`]); what is used is the first by preference that is not
//! down (`way.rs`). In the one that is used, [`PathMtu`](warren_core::pmtu::PathMtu) searches for the largest outer packet. A
//! change of either becomes new tables, and so takes effect for the next batch of every worker,
//! without a packet lost: all encapsulations are received all the time.
//!
//! An ICMP error about an outer packet is a hint, no more, for anybody can send one: it makes the
//! size in use be probed at once. Believed is only what quotes the random token of a probe under
//! way. A hint that is refuted by an answered probe was forged (or stale) and is counted. Other
//! errors about data are relayed to the inner sender by the table of RFC 2003 section 4, a hundred
//! a second at most.
//!
//! A peer that answers no probe at all is left as it is configured.

mod icmp;
mod packet;
mod peer;
mod sockets;
mod way;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use parking_lot::RwLock;
use tracing::{info, warn};
use warren_core::batch::Link;
use warren_core::probe::{Kind, Message};
use warren_core::units::{MacAddr, Time};

use crate::config::Config;
use crate::ctl::message::{PathReport, PathsReport};
use crate::hostroutes::HostSender;
use crate::rib::{Rib, Way};
use icmp::IcmpError;
use packet::Carrier;
use peer::{Decision, PeerPaths};
use sockets::Sockets;

/// What worker threads and the control socket hand to the thread.
#[derive(Clone, Debug)]
pub struct PathsSender {
    sender: Sender<Input>,
    waker: Arc<Waker>,
}

impl PathsSender {
    /// Hands over a frame that the engine called a probe. Never waits: one that finds no room is
    /// lost, as it might have been on the way.
    pub(crate) fn arrived(&self, inner: &[u8], link: &Link) {
        let head = inner
            .get(..inner.len().min(HEAD_OCTETS))
            .unwrap_or_default();
        self.send(Input::Arrived {
            inner: head.into(),
            remote: link.remote,
        });
    }

    /// Prefers an encapsulation, by its name, to one peer or to all, from here on; `None` for the
    /// configured order. The answer says what went wrong.
    pub(crate) fn prefer(
        &self,
        peer: Option<String>,
        encapsulation: Option<String>,
    ) -> Result<(), String> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.send(Input::Prefer {
            peer,
            encapsulation,
            answer: sender,
        });
        receiver
            .recv_timeout(Duration::from_secs(1))
            .map_err(|_| "the paths do not answer".to_owned())?
    }

    fn send(&self, input: Input) {
        if self.sender.try_send(input).is_ok() {
            // A thread that has ended needs no waking.
            let _ = self.waker.wake();
        }
    }
}

/// Gives an ICMP message to the local device: a worker does.
pub type Inject = Box<dyn Fn(Vec<u8>) + Send>;

/// What the thread is made of.
pub struct PathsParts {
    /// The node's configuration.
    pub config: Config,
    /// The writer of the tables.
    pub rib: Rib,
    /// Who keeps the kernel's routes to the device, where this process does.
    pub host: Option<HostSender>,
    /// Makes tokens unguessable.
    pub seed: u64,
    /// How inner senders are told.
    pub inject: Inject,
}

impl fmt::Debug for PathsParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PathsParts").finish_non_exhaustive()
    }
}

/// The running thread. Dropping it ends it.
#[derive(Debug)]
pub struct Paths {
    sender: PathsSender,
    thread: Option<JoinHandle<()>>,
}

/// A thread that is not running yet, so that workers can be given its sender first.
#[derive(Debug)]
pub struct PathsInlet {
    poll: Poll,
    sender: PathsSender,
    receiver: Receiver<Input>,
}

impl PathsInlet {
    /// Makes the channel.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (sender, receiver) = crossbeam_channel::bounded(INPUTS_MAX);
        Ok(Self {
            poll,
            sender: PathsSender { sender, waker },
            receiver,
        })
    }

    /// For workers and the control socket.
    #[must_use]
    pub fn sender(&self) -> PathsSender {
        self.sender.clone()
    }

    /// Starts the thread; `published` shows what it knows.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn start(
        self,
        parts: PathsParts,
        published: Arc<RwLock<PathsReport>>,
    ) -> io::Result<Paths> {
        let sender = self.sender.clone();
        let core = Core::new(self.poll, self.receiver, parts, published)?;
        let thread = std::thread::Builder::new()
            .name("paths".to_owned())
            .spawn(move || core.run())?;
        Ok(Paths {
            sender,
            thread: Some(thread),
        })
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        self.sender.send(Input::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
enum Input {
    Arrived {
        inner: Box<[u8]>,
        remote: IpAddr,
    },
    Prefer {
        peer: Option<String>,
        encapsulation: Option<String>,
        answer: Sender<Result<(), String>>,
    },
    Stop,
}

/// A question under way.
#[derive(Clone, Copy, Debug)]
struct Question {
    peer: usize,
    way: usize,
    octets: u16,
    /// Whether it is one of the search for the path MTU.
    is_search: bool,
    carrier: Carrier,
    sent: Time,
}

struct Core {
    poll: Poll,
    inputs: Receiver<Input>,
    rib: Rib,
    sockets: Sockets,
    vtep_mac: MacAddr,
    peers: Vec<PeerPaths>,
    by_address: HashMap<IpAddr, usize>,
    questions: HashMap<u64, Question>,
    tokens: u64,
    start: Instant,
    host: Option<HostSender>,
    inject: Inject,
    relay_credit: f64,
    relayed_at: Time,
    relayed: u64,
    ignored: u64,
    published: Arc<RwLock<PathsReport>>,
    published_at: Time,
}

impl Core {
    fn new(
        poll: Poll,
        inputs: Receiver<Input>,
        parts: PathsParts,
        published: Arc<RwLock<PathsReport>>,
    ) -> io::Result<Self> {
        let config = &parts.config;
        let sockets = Sockets::open(config, parts.seed)?;
        for (index, fd) in sockets.descriptors().enumerate() {
            poll.registry().register(
                &mut SourceFd(&fd.as_raw_fd()),
                Token(FIRST_SOCKET.0 + index),
                Interest::READABLE,
            )?;
        }
        let peers: Vec<PeerPaths> = config
            .peers
            .iter()
            .filter_map(|peer| PeerPaths::new(config, peer))
            .collect();
        let by_address = (0..).zip(&peers);
        Ok(Self {
            poll,
            inputs,
            sockets,
            vtep_mac: config.node.vtep_mac,
            by_address: by_address
                .map(|(index, peer)| (peer.remote, index))
                .collect(),
            peers,
            questions: HashMap::new(),
            tokens: parts.seed,
            start: Instant::now(),
            host: parts.host,
            rib: parts.rib,
            inject: parts.inject,
            relay_credit: RELAYS_PER_SECOND,
            relayed_at: Time::ZERO,
            relayed: 0,
            ignored: 0,
            published,
            published_at: Time::ZERO,
        })
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(64);
        loop {
            let now = self.now();
            let next = self.peers.iter().map(|peer| peer.poll_timeout(now)).min();
            let wait = next.map_or(Duration::from_secs(1), |at| at.since(now));
            let wait = wait.clamp(Duration::from_millis(1), Duration::from_millis(250));
            if let Err(error) = self.poll.poll(&mut events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                warn!("paths: {error}: peers are not probed any more");
                return;
            }
            while let Ok(input) = self.inputs.try_recv() {
                match input {
                    Input::Arrived { inner, remote } => self.arrived(&inner, remote),
                    Input::Prefer {
                        peer,
                        encapsulation,
                        answer,
                    } => drop(
                        answer.try_send(self.prefer(peer.as_deref(), encapsulation.as_deref())),
                    ),
                    Input::Stop => return,
                }
            }
            while let Some(error) = self.sockets.next_error() {
                self.network_error(&error);
            }
            self.probe();
            self.decide();
            self.publish();
        }
    }

    fn now(&self) -> Time {
        let nanos = self.start.elapsed().as_nanos();
        Time::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Sends the probes that are due.
    fn probe(&mut self) {
        let now = self.now();
        for index in 0..self.peers.len() {
            let Some(peer) = self.peers.get_mut(index) else {
                continue;
            };
            let mut due = Vec::new();
            peer.poll(now, &mut due);
            for (way, octets, is_search, carrier) in due {
                self.ask(index, way, octets, is_search, carrier);
            }
        }
        self.questions
            .retain(|_, question| now.since(question.sent) < QUESTION_LIFE);
    }

    fn ask(&mut self, index: usize, way: usize, octets: u16, is_search: bool, carrier: Carrier) {
        let now = self.now();
        self.tokens = next_token(self.tokens);
        let token = self.tokens;
        let Some(peer) = self.peers.get_mut(index) else {
            return;
        };
        let question = Question {
            peer: index,
            way,
            octets,
            is_search,
            carrier,
            sent: now,
        };
        if !is_search {
            peer.sent(way, token, now);
        }
        let Some(encapsulation) = peer.encapsulation(way) else {
            return;
        };
        let overhead = encapsulation.overhead_octets(peer.underlay_family());
        let message = Message {
            kind: Kind::Question,
            encapsulation: encapsulation.kind() as u8,
            octets,
            token,
        };
        let inner_octets = usize::from(octets.saturating_sub(overhead));
        let sent = packet::inner(peer.source, peer.target, carrier, message, inner_octets)
            .and_then(|inner| {
                let wrapped = packet::wrapped(&inner, encapsulation, self.vtep_mac)?;
                Some(
                    self.sockets
                        .send(&inner, &wrapped, encapsulation, peer.remote),
                )
            });
        match sent {
            Some(Ok(())) => drop(self.questions.insert(token, question)),
            Some(Err(error)) => peer.last_error = Some(error.to_string()),
            None => {}
        }
    }

    fn arrived(&mut self, inner: &[u8], remote: IpAddr) {
        let Some((message, source, destination)) = packet::read(inner) else {
            return;
        };
        let Some(&index) = self.by_address.get(&remote) else {
            return;
        };
        let now = self.now();
        // An echo comes back as it was sent: as the question that only we could have asked.
        let question = self.questions.get(&message.token).copied();
        if let Some(question) = question.filter(|question| question.peer == index) {
            self.questions.remove(&message.token);
            if let Some(peer) = self.peers.get_mut(index) {
                peer.answered(message.token, &question, now);
            }
        } else if message.kind == Kind::Question {
            self.answer(index, message, source, destination);
        }
    }

    /// Answers a question of a peer, in the encapsulation in which it came where that is one of
    /// the peer's ways.
    fn answer(&mut self, index: usize, question: Message, asker: IpAddr, asked: IpAddr) {
        let Some(peer) = self.peers.get(index) else {
            return;
        };
        let Some(encapsulation) = peer.encapsulation_of_kind(question.encapsulation) else {
            return;
        };
        let answer = Message {
            kind: Kind::Answer,
            ..question
        };
        // An answer that does not leave is as good as lost.
        let _ = packet::inner(asked, asker, Carrier::Message, answer, 0).and_then(|inner| {
            let wrapped = packet::wrapped(&inner, encapsulation, self.vtep_mac)?;
            self.sockets
                .send(&inner, &wrapped, encapsulation, peer.remote)
                .ok()
        });
    }

    fn prefer(&mut self, peer: Option<&str>, encapsulation: Option<&str>) -> Result<(), String> {
        let mut chosen = Vec::new();
        for (index, candidate) in self.peers.iter().enumerate() {
            if peer.is_some_and(|name| name != candidate.name) {
                continue;
            }
            let way = match encapsulation {
                None => None,
                Some(name) => Some(candidate.way_named(name).ok_or_else(|| {
                    format!(
                        "peer {} has no encapsulation {name}; its `encap` lists {}",
                        candidate.name,
                        candidate.names()
                    )
                })?),
            };
            chosen.push((index, way));
        }
        if chosen.is_empty() {
            return Err("there is no such peer".to_owned());
        }
        for (index, way) in chosen {
            if let Some(peer) = self.peers.get_mut(index) {
                peer.forced = way;
            }
        }
        Ok(())
    }

    /// An ICMP error about something that was sent: by the probes' own sockets or by the data
    /// path.
    fn network_error(&mut self, error: &IcmpError) {
        let now = self.now();
        let Some(&index) = self.by_address.get(&error.destination) else {
            self.ignored += 1;
            return;
        };
        let token = packet::token_in(&error.quoted);
        let question = token.and_then(|token| self.questions.get(&token)).copied();
        let Some(peer) = self.peers.get_mut(index) else {
            return;
        };
        peer.last_error = Some(error.to_string());
        if let Some(mtu) = error.mtu {
            let proven = question.filter(|question| question.peer == index);
            peer.too_big(mtu, proven.as_ref(), now);
            return;
        }
        if question.is_some() || !error.is_whole_view {
            return;
        }
        let told = error.relay(peer, &self.rib);
        if let Some(message) = told
            && self.may_relay(now)
        {
            self.relayed += 1;
            (self.inject)(message);
        }
    }

    fn may_relay(&mut self, now: Time) -> bool {
        let gained = now.since(self.relayed_at).as_secs_f64() * RELAYS_PER_SECOND;
        self.relayed_at = now;
        self.relay_credit = (self.relay_credit + gained).min(RELAYS_PER_SECOND);
        let may = self.relay_credit >= 1.0;
        if may {
            self.relay_credit -= 1.0;
        }
        may
    }

    /// Publishes what has changed.
    fn decide(&mut self) {
        let mut changed = false;
        for peer in &mut self.peers {
            if let Some(Decision { from, to, why }) = peer.decide() {
                if from.encapsulation != to.encapsulation {
                    info!(peer = %peer.name, "now by {}: {why}", to.encapsulation);
                }
                changed = true;
            }
        }
        if !changed {
            return;
        }
        let now = self.now();
        for peer in &mut self.peers {
            peer.published(now);
        }
        let ways = self
            .peers
            .iter()
            .map(|peer| (peer.name.clone(), peer.in_use()));
        let ways: HashMap<String, Way> = ways.collect();
        if let Err(error) = self.rib.set_ways(ways) {
            warn!("the tables stay as they were: {error}");
            return;
        }
        // The kernel's routes carry the path MTU, so that this host's own senders know it before
        // their first packet, and again when it rises.
        if let Some(host) = &self.host {
            host.published();
        }
    }

    fn publish(&mut self) {
        let now = self.now();
        if now.since(self.published_at) < PUBLISH_INTERVAL && self.published_at != Time::ZERO {
            return;
        }
        self.published_at = now;
        let peers: Vec<PathReport> = self.peers.iter().map(|peer| peer.report(now)).collect();
        *self.published.write() = PathsReport {
            peers,
            relayed: self.relayed,
            ignored: self.ignored,
        };
    }
}

/// The next of a row of numbers that nobody guesses who does not know the first: splitmix64.
const fn next_token(last: u64) -> u64 {
    let mut z = last.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const WAKER: Token = Token(0);
const FIRST_SOCKET: Token = Token(1);
/// Probes and orders that may wait.
const INPUTS_MAX: usize = 1024;
/// Octets of an inner packet that are looked at: the longest headers and a message.
const HEAD_OCTETS: usize = 128;
/// How long an answer is waited for.
const QUESTION_LIFE: Duration = Duration::from_secs(5);
/// ICMP errors relayed to inner senders, at most.
const RELAYS_PER_SECOND: f64 = 100.0;
/// How often what is known is shown.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);
