//! The paths to the peers: which encapsulation passes, how large packets may be, how long they
//! take.
//!
//! ```text
//!  worker-N ── Verdict::Probe, first octets ──┐        ┌── probes, answers ──> underlay sockets
//!  control socket ── "prefer" ────────────────┼─ paths ┼── the way to each peer ──> plane
//!  plane ── peers that came and went ─────────┤        └── ICMP for inner senders ──> worker-N
//!  ICMP (raw socket, error queues) ───────────┘
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
//! way. One that quotes nothing that this node sends, or a size below the least of the family, is
//! counted and does nothing; so is a hint that is refuted by an answered probe: it was forged, or
//! stale. Other errors about data are relayed to the inner sender by the table of RFC 2003 section
//! 4, a hundred a second at most.
//!
//! A peer that answers no probe at all is left as it is configured.
//!
//! What arrives was sent by anybody, as much of it as they like: so a turn takes a part of it and
//! goes on to what is due, and of one peer no more questions are answered than it could have.
//!
//! Which peers there are the plane says, whatever source they are from. Many of them are probed
//! less often each: some five hundred small probes a second leave in each encapsulation. Those to
//! a peer that does not answer there are two in place of one, for it may answer either kind; the
//! probes of the path MTU come on top.

mod bucket;
mod icmp;
mod notice;
mod packet;
mod peer;
mod sockets;
mod way;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use ipnet::IpNet;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use tracing::{info, warn};
use warren_core::Tables;
use warren_core::batch::Link;
use warren_core::encap::Encapsulation;
use warren_core::probe::{Kind, Message};
use warren_core::tables::NextHop;
use warren_core::units::{MacAddr, Time};

use crate::config::{Config, Probing};
use crate::ctl::message::PathsReport;
use crate::plane::PlaneSender;
use crate::raw::rows::Rows;
use crate::rib::{PeerChange, TablesReader, Way};
use bucket::Bucket;
use icmp::IcmpError;
use notice::Notices;
pub(crate) use notice::some_of;
use packet::Carrier;
use peer::{Decision, PeerPaths};
use sockets::Sockets;

/// What worker threads and the control socket hand to the thread.
#[derive(Clone, Debug)]
pub struct PathsSender {
    arrivals: Sender<Arrival>,
    orders: Sender<Order>,
    waker: Arc<Waker>,
}

impl PathsSender {
    /// Hands over a frame that the engine called a probe. Never waits: one that finds no room is
    /// lost, as it might have been on the way.
    pub(crate) fn arrived(&self, inner: &[u8], link: &Link) {
        let head = inner
            .get(..inner.len().min(HEAD_OCTETS))
            .unwrap_or_default();
        let arrival = Arrival {
            inner: head.into(),
            remote: link.remote,
        };
        if self.arrivals.try_send(arrival).is_ok() {
            // A thread that has ended needs no waking.
            let _ = self.waker.wake();
        }
    }

    /// Prefers an encapsulation, by its name, to one peer or to all, from here on; `None` for the
    /// configured order. The answer says what went wrong, or for which peers it does not pass.
    pub(crate) fn prefer(
        &self,
        peer: Option<String>,
        encapsulation: Option<String>,
    ) -> Result<Vec<String>, String> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.tell(Order::Prefer {
            peer,
            encapsulation,
            answer: sender,
        });
        receiver
            .recv_timeout(Duration::from_secs(1))
            .map_err(|_| "the paths do not answer".to_owned())?
    }

    /// What is known about the paths.
    pub(crate) fn report(&self) -> Option<PathsReport> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.tell(Order::Report(sender));
        receiver.recv_timeout(Duration::from_secs(1)).ok()
    }

    /// Peers came, went or changed.
    pub(crate) fn peers(&self, changes: Vec<PeerChange>) {
        if !changes.is_empty() {
            self.tell(Order::Peers(changes));
        }
    }

    /// This node's own addresses inside the overlay, those of the device first.
    pub(crate) fn own(&self, addresses: Vec<IpAddr>) {
        self.tell(Order::Own(addresses));
    }

    /// This node has the underlay addresses of this configuration.
    pub(crate) fn underlay(&self, config: &Config) {
        self.tell(Order::Underlay(Box::new(config.clone())));
    }

    /// Hands over what must not be lost.
    fn tell(&self, order: Order) {
        // A thread that has ended needs to know nothing.
        if self.orders.send(order).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

/// Gives an ICMP message to the local device: a worker does. Whether one took it.
pub type Inject = Box<dyn Fn(Vec<u8>) -> bool + Send>;

/// What the thread is made of.
pub struct PathsParts {
    /// The node's configuration.
    pub config: Config,
    /// What the tables say.
    pub tables: TablesReader,
    /// Who is told the way to each peer.
    pub plane: PlaneSender,
    /// Makes tokens unguessable.
    pub seed: u64,
    /// Who takes datagrams in a row in IP.
    pub rows: Arc<Rows>,
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
    arrivals: Receiver<Arrival>,
    orders: Receiver<Order>,
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
        let (arrived, arrivals) = crossbeam_channel::bounded(ARRIVALS_MAX);
        let (told, orders) = crossbeam_channel::unbounded();
        Ok(Self {
            poll,
            sender: PathsSender {
                arrivals: arrived,
                orders: told,
                waker,
            },
            arrivals,
            orders,
        })
    }

    /// For workers and the control socket.
    #[must_use]
    pub fn sender(&self) -> PathsSender {
        self.sender.clone()
    }

    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn start(self, parts: PathsParts) -> io::Result<Paths> {
        let sender = self.sender.clone();
        let core = Core::new(self.poll, self.arrivals, self.orders, parts)?;
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
        self.sender.tell(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A probe that arrived, its first octets.
#[derive(Debug)]
struct Arrival {
    inner: Box<[u8]>,
    remote: IpAddr,
}

/// What must not be lost.
#[derive(Debug)]
enum Order {
    Peers(Vec<PeerChange>),
    Own(Vec<IpAddr>),
    Underlay(Box<Config>),
    Prefer {
        peer: Option<String>,
        encapsulation: Option<String>,
        answer: Sender<Result<Vec<String>, String>>,
    },
    Report(Sender<PathsReport>),
    Stop,
}

fn register(poll: &Poll, sockets: &Sockets) -> io::Result<()> {
    for (index, fd) in sockets.descriptors().enumerate() {
        let token = Token(FIRST_SOCKET.0 + index);
        let mut source = SourceFd(&fd);
        poll.registry()
            .register(&mut source, token, Interest::READABLE)?;
    }
    Ok(())
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
    arrivals: Receiver<Arrival>,
    orders: Receiver<Order>,
    tables: TablesReader,
    plane: PlaneSender,
    sockets: Sockets,
    vtep_mac: MacAddr,
    probing: Probing,
    /// Inner addresses of this node.
    own: Vec<IpAddr>,
    /// By number; a vacant one is used again.
    peers: Vec<Option<PeerPaths>>,
    by_address: HashMap<IpAddr, usize>,
    vacant: Vec<usize>,
    /// Peers that cannot be probed for want of an inner address of their family.
    waiting: HashMap<IpAddr, PeerChange>,
    /// When each peer has something to do. An entry that is not the peer's own time is old.
    due: BinaryHeap<Reverse<(Time, usize)>>,
    questions: HashMap<u64, Question>,
    forgotten_at: Time,
    tokens: u64,
    start: Instant,
    rows: Arc<Rows>,
    inject: Inject,
    relays: Bucket,
    relayed: u64,
    ignored: u64,
    notices: Notices,
}

impl Core {
    fn new(
        poll: Poll,
        arrivals: Receiver<Arrival>,
        orders: Receiver<Order>,
        parts: PathsParts,
    ) -> io::Result<Self> {
        let config = &parts.config;
        let sockets = Sockets::open(config, parts.seed)?;
        register(&poll, &sockets)?;
        let device = config.device.addresses.iter().map(IpNet::addr);
        let prefixes = config.node.prefixes.iter().map(IpNet::network);
        Ok(Self {
            poll,
            arrivals,
            orders,
            sockets,
            vtep_mac: config.node.vtep_mac,
            probing: config.probing,
            own: device.chain(prefixes).collect(),
            peers: Vec::new(),
            by_address: HashMap::new(),
            vacant: Vec::new(),
            waiting: HashMap::new(),
            due: BinaryHeap::new(),
            questions: HashMap::new(),
            forgotten_at: Time::ZERO,
            tokens: parts.seed,
            start: Instant::now(),
            tables: parts.tables,
            plane: parts.plane,
            rows: parts.rows,
            inject: parts.inject,
            relays: Bucket::new(RELAYS_PER_SECOND),
            relayed: 0,
            ignored: 0,
            notices: Notices::default(),
        })
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(64);
        let mut is_more = false;
        loop {
            let now = self.now();
            let next = self.due.peek().map(|Reverse((at, _))| *at);
            let wait = next.map_or(IDLE_MOST, |at| at.since(now));
            let wait = match is_more {
                // No event tells again of what was left.
                true => Duration::ZERO,
                false => wait.clamp(Duration::from_millis(1), IDLE_MOST),
            };
            if let Err(error) = self.poll.poll(&mut events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                warn!("paths: {error}: peers are not probed any more");
                return;
            }
            let mut touched = Vec::new();
            while let Ok(order) = self.orders.try_recv() {
                match order {
                    Order::Peers(changes) => changes.into_iter().for_each(|c| self.change(c)),
                    Order::Own(addresses) => self.set_own(addresses),
                    Order::Underlay(config) => {
                        if let Err(error) = self.open(&config) {
                            warn!("paths: {error}: probes leave by the old address");
                        }
                    }
                    Order::Prefer {
                        peer,
                        encapsulation,
                        answer,
                    } => {
                        let chosen = self.prefer(peer.as_deref(), encapsulation.as_deref());
                        let remarks = chosen.map(|chosen| {
                            let remarks = self.remarks(&chosen);
                            touched.extend(chosen);
                            remarks
                        });
                        drop(answer.try_send(remarks));
                    }
                    Order::Report(answer) => drop(answer.try_send(self.report())),
                    Order::Stop => return,
                }
            }
            is_more = self.hear(&mut touched);
            self.probe(&mut touched);
            self.decide(touched);
        }
    }

    /// Takes a part of what came from outside, and names the peers that it told something about;
    /// whether there may be more.
    fn hear(&mut self, touched: &mut Vec<usize>) -> bool {
        for _ in 0..ARRIVALS_PER_TURN {
            let Ok(Arrival { inner, remote }) = self.arrivals.try_recv() else {
                break;
            };
            touched.extend(self.arrived(&inner, remote));
        }
        let mut errors = Vec::new();
        let is_more = self.sockets.take_errors(ERRORS_PER_TURN, &mut errors);
        for error in &errors {
            touched.extend(self.network_error(error));
        }
        is_more || !self.arrivals.is_empty()
    }

    /// A peer came, went or changed.
    fn change(&mut self, change: PeerChange) {
        let address = match &change {
            PeerChange::Put(spec, _) => spec.address,
            PeerChange::Gone(address) => *address,
        };
        self.waiting.remove(&address);
        let known = self.by_address.get(&address).copied();
        let mut made = match &change {
            PeerChange::Gone(_) => {
                self.rows.are_said(address, false);
                None
            }
            PeerChange::Put(spec, prefixes) => {
                if let Some(peer) = known.and_then(|index| self.peers.get_mut(index)?.as_mut())
                    && peer.goes_on(spec, prefixes, &self.own)
                {
                    return;
                }
                let made = PeerPaths::new(spec, prefixes, &self.own, &self.probing);
                if made.is_none() {
                    self.waiting.insert(address, change.clone());
                }
                made
            }
        };
        if let (Some(peer), Some(Some(before))) =
            (&mut made, known.and_then(|index| self.peers.get(index)))
            && let Err(asked) = peer.succeed(before)
        {
            warn!(peer = %peer.name, "{asked} was asked for and is not in its `encap` any more: the configured order holds");
        }
        if let Some(index) = known {
            self.questions.retain(|_, question| question.peer != index);
        }
        match (made, known) {
            (None, None) => {}
            (None, Some(index)) => {
                self.by_address.remove(&address);
                if let Some(place) = self.peers.get_mut(index) {
                    *place = None;
                }
                self.vacant.push(index);
            }
            (Some(peer), Some(index)) => self.put(index, peer),
            (Some(peer), None) => {
                let index = self.vacant.pop().unwrap_or(self.peers.len());
                self.by_address.insert(address, index);
                self.put(index, peer);
            }
        }
    }

    fn put(&mut self, index: usize, peer: PeerPaths) {
        if index >= self.peers.len() {
            self.peers.resize_with(index + 1, || None);
        }
        if let Some(place) = self.peers.get_mut(index) {
            *place = Some(peer);
        }
        self.schedule(index);
    }

    /// Opens the sockets of another configuration in place of those that are open.
    fn open(&mut self, config: &Config) -> io::Result<()> {
        let sockets = Sockets::open(config, self.tokens)?;
        register(&self.poll, &sockets)?;
        self.sockets = sockets;
        Ok(())
    }

    /// Other addresses to probe from: for peers that had none.
    fn set_own(&mut self, addresses: Vec<IpAddr>) {
        self.own = addresses;
        for change in std::mem::take(&mut self.waiting).into_values() {
            self.change(change);
        }
        for index in 0..self.peers.len() {
            if let Some(Some(peer)) = self.peers.get_mut(index) {
                peer.set_own(&self.own);
            }
        }
    }

    /// Enters when a peer has something to do next.
    fn schedule(&mut self, index: usize) {
        let now = self.now();
        if let Some(Some(peer)) = self.peers.get_mut(index) {
            let at = peer.poll_timeout(now);
            // Never twice in a turn, or the turn would not end.
            peer.due = at.max(now.after(Duration::from_millis(1)));
            self.due.push(Reverse((peer.due, index)));
        }
    }

    /// How long between two probes of a way, so that all of them together are not too many.
    fn pace(&self) -> Duration {
        let peers = u32::try_from(self.by_address.len()).unwrap_or(u32::MAX);
        self.probing.interval.max(PROBE_SPACING * peers)
    }

    fn now(&self) -> Time {
        let nanos = self.start.elapsed().as_nanos();
        Time::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Sends the probes that are due, and names the peers that had something to do.
    fn probe(&mut self, touched: &mut Vec<usize>) {
        let now = self.now();
        let pace = self.pace();
        while let Some(Reverse((at, index))) = self.due.peek().copied() {
            if at > now {
                break;
            }
            self.due.pop();
            let Some(Some(peer)) = self.peers.get_mut(index) else {
                continue;
            };
            if peer.due != at {
                continue;
            }
            let mut due = Vec::new();
            peer.poll(now, pace, &mut due);
            for (way, octets, is_search, carrier) in due {
                self.ask(index, way, octets, is_search, carrier);
            }
            self.schedule(index);
            touched.push(index);
        }
        if now.since(self.forgotten_at) >= QUESTION_LIFE / 5 {
            self.forgotten_at = now;
            self.questions
                .retain(|_, question| now.since(question.sent) < QUESTION_LIFE);
        }
    }

    fn ask(&mut self, index: usize, way: usize, octets: u16, is_search: bool, carrier: Carrier) {
        let now = self.now();
        self.tokens = next_token(self.tokens);
        let token = self.tokens;
        let Some(Some(peer)) = self.peers.get_mut(index) else {
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
        let Some(encapsulation) = peer.encapsulation(way) else {
            return;
        };
        let overhead = encapsulation.overhead_octets(peer.underlay_family());
        let message = Message {
            kind: Kind::Question,
            encapsulation: encapsulation.kind() as u8,
            octets,
            token,
            takes_rows: false,
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
        let has_no_room = matches!(&sent, Some(Err(error)) if is_full(error));
        match (is_search, has_no_room) {
            (true, _) => {}
            (false, true) => peer.unsent(way, token, now),
            (false, false) => peer.sent(way, token, now),
        }
        match sent {
            Some(Ok(())) => {
                peer.probes_sent += 1;
                self.questions.insert(token, question);
            }
            Some(Err(error)) => peer.failed(error.to_string(), now),
            None => {}
        }
    }

    /// Takes a probe; names the peer that it told something about.
    fn arrived(&mut self, inner: &[u8], remote: IpAddr) -> Option<usize> {
        let (message, source, destination) = packet::read(inner)?;
        let index = *self.by_address.get(&remote)?;
        let now = self.now();
        if let Some(Some(peer)) = self.peers.get_mut(index) {
            peer.probes_heard += 1;
        }
        // An echo comes back as it was sent: as the question that only we could have asked.
        let question = self.questions.get(&message.token).copied();
        if let Some(question) = question.filter(|question| question.peer == index) {
            self.questions.remove(&message.token);
            // An echo is what was sent, and says nothing of who answers.
            if message.kind == Kind::Answer {
                self.rows.are_said(remote, message.takes_rows);
            }
            let peer = self.peers.get_mut(index)?.as_mut()?;
            peer.answered(message.token, &question, now);
            self.schedule(index);
            return Some(index);
        }
        if message.kind == Kind::Question {
            self.answer(index, message, source, destination);
        }
        None
    }

    /// Answers a question of a peer, in the encapsulation in which it came where that is one of
    /// the peer's ways.
    fn answer(&mut self, index: usize, question: Message, asker: IpAddr, asked: IpAddr) {
        let now = self.now();
        let Some(Some(peer)) = self.peers.get_mut(index) else {
            return;
        };
        if !peer.answers.take(now) {
            return;
        }
        let Some(encapsulation) = peer.encapsulation_of_kind(question.encapsulation) else {
            return;
        };
        let answer = Message {
            kind: Kind::Answer,
            takes_rows: self.rows.are_taken(),
            ..question
        };
        // An answer that does not leave is as good as lost.
        let sent = packet::inner(asked, asker, Carrier::Message, answer, 0).and_then(|inner| {
            let wrapped = packet::wrapped(&inner, encapsulation, self.vtep_mac)?;
            self.sockets
                .send(&inner, &wrapped, encapsulation, peer.remote)
                .ok()
        });
        peer.probes_sent += u64::from(sent.is_some());
    }

    fn prefer(
        &mut self,
        peer: Option<&str>,
        encapsulation: Option<&str>,
    ) -> Result<Vec<usize>, String> {
        let mut chosen = Vec::new();
        for (index, candidate) in self.peers.iter().enumerate() {
            let Some(candidate) = candidate else { continue };
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
        for (index, way) in &chosen {
            if let Some(Some(peer)) = self.peers.get_mut(*index) {
                peer.forced = *way;
            }
        }
        Ok(chosen.into_iter().map(|(index, _)| index).collect())
    }

    /// For which of these peers what was asked for does not pass, a sentence each.
    fn remarks(&self, chosen: &[usize]) -> Vec<String> {
        let peers = chosen
            .iter()
            .filter_map(|index| self.peers.get(*index)?.as_ref());
        let mut remarks: Vec<String> = peers.filter_map(PeerPaths::remark).collect();
        let rest = remarks.len().saturating_sub(REMARKS_MAX);
        if rest > 0 {
            remarks.truncate(REMARKS_MAX);
            remarks.push(format!("and {rest} more"));
        }
        remarks
    }

    /// An ICMP error about something that was sent: by the probes' own sockets or by the data
    /// path. Names the peer that it told something about.
    fn network_error(&mut self, error: &IcmpError) -> Option<usize> {
        let now = self.now();
        let Some(&index) = self.by_address.get(&error.destination) else {
            self.ignored += 1;
            return None;
        };
        let token = packet::token_in(&error.quoted);
        let question = token.and_then(|token| self.questions.get(&token)).copied();
        let question = question.filter(|question| question.peer == index);
        let peer = self.peers.get_mut(index)?.as_mut()?;
        let sent = SentTo {
            tables: self.tables.tables(),
            remote: peer.remote,
            ways: peer.encapsulations().collect(),
        };
        if question.is_none() && error.is_repeated(self.sockets.hear_all()) {
            return None;
        }
        // Only somebody on the way knows a probe's token; anybody can make up the rest.
        if question.is_none() && !error.matches(&sent) {
            peer.forged += u64::from(error.mtu.is_some());
            self.ignored += u64::from(error.mtu.is_none());
            return None;
        }
        peer.failed(error.to_string(), now);
        if let Some(mtu) = error.mtu {
            peer.too_big(mtu, question.as_ref(), now);
            self.schedule(index);
            return Some(index);
        }
        if question.is_some() {
            return None;
        }
        if let Some(message) = error.relay(&sent)
            && self.relays.take(now)
        {
            self.relayed += u64::from((self.inject)(message));
        }
        None
    }

    /// Tells the plane about those of these peers whose way is another now.
    fn decide(&mut self, mut touched: Vec<usize>) {
        touched.sort_unstable();
        touched.dedup();
        let now = self.now();
        let mut ways: Vec<(IpAddr, Way)> = Vec::new();
        for index in touched {
            let Some(Some(peer)) = self.peers.get_mut(index) else {
                continue;
            };
            if let Some(Decision { from, to, why }) = peer.decide() {
                if from.encapsulation != to.encapsulation {
                    info!(peer = %peer.name, "now by {}: {why}", to.encapsulation);
                }
                peer.published(now);
                ways.push((peer.remote, to));
            }
            match peer.turned() {
                Some(true) => self.notices.gone(&peer.name),
                Some(false) => self.notices.back(&peer.name),
                None => {}
            }
        }
        self.notices.say(now);
        if !ways.is_empty() {
            self.plane.ways(ways);
        }
    }

    fn report(&self) -> PathsReport {
        let now = self.now();
        let peers = self.peers.iter().flatten();
        PathsReport {
            peers: peers.map(|peer| peer.report(now)).collect(),
            relayed: self.relayed,
            ignored: self.ignored,
        }
    }
}

/// Whether a datagram did not leave because this host has no room for it at the moment, which says
/// nothing about the way.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// What this node sends to a peer, by its tables.
struct SentTo {
    tables: Arc<Tables>,
    remote: IpAddr,
    ways: Vec<Encapsulation>,
}

impl icmp::Sent for SentTo {
    fn is_from(&self, underlay: IpAddr) -> bool {
        self.tables.local().underlay.contains(&underlay)
    }

    fn leads(&self, source: IpAddr, destination: IpAddr) -> bool {
        let is_own = matches!(self.tables.lookup(source), Some(NextHop::Local));
        is_own
            && match self.tables.lookup(destination) {
                Some(NextHop::Tunnel(tunnel)) => tunnel.remote == self.remote,
                Some(NextHop::EqualCost(tunnels)) => {
                    tunnels.iter().any(|tunnel| tunnel.remote == self.remote)
                }
                Some(
                    NextHop::Direct { .. }
                    | NextHop::Blackhole
                    | NextHop::Prohibit
                    | NextHop::Local,
                )
                | None => false,
            }
    }

    fn ways(&self) -> impl Iterator<Item = Encapsulation> {
        self.ways.iter().copied()
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
/// Probes that may wait.
const ARRIVALS_MAX: usize = 1024;
/// Probes taken in one turn: a few milliseconds of work at most.
const ARRIVALS_PER_TURN: usize = 256;
/// Messages taken in one turn from each socket that tells of errors.
const ERRORS_PER_TURN: usize = 64;
/// Octets of an inner packet that are looked at: the longest headers and a message.
const HEAD_OCTETS: usize = 128;
/// How long an answer is waited for.
const QUESTION_LIFE: Duration = Duration::from_secs(5);
/// Peers that an answer names.
const REMARKS_MAX: usize = 100;
/// ICMP errors relayed to inner senders, at most.
const RELAYS_PER_SECOND: f64 = 100.0;
/// Times to probe in an encapsulation are this far apart over all peers, less the jitter, or further:
/// three quarters of it are two milliseconds.
const PROBE_SPACING: Duration = Duration::from_micros(2667);
/// How long the thread sleeps when nothing is due.
const IDLE_MOST: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests;
