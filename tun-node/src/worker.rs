//! The event loop: one thread that carries packets between the device and the underlay.
//!
//! ```text
//!              commands (crossbeam-channel, mio::Waker)      tables (epoch, once per turn)
//!                                 │                                │
//!            ┌────────────────────▼────────────────────────────────▼─────────────┐
//!  TUN ─────>│ encap turn: read <= batch ─> Engine::encap ─> send by verdict      │──> UDP pool, raw
//!   ▲        │                                     └─ Reply ─> back to the TUN    │
//!   └────────│ decap turn: write to TUN  <─ Engine::decap <─ receive <= batch     │<── UDP, raw
//!            └────────────────────────────────────────────────────────────────────┘
//!                                 thread "worker-N"
//! ```
//!
//! Run to completion: a packet that was read is sent or dropped, and counted, before the next turn.
//! Per packet there is no lock, no channel, no allocation. A turn of either direction takes at most
//! one batch, then the other one has its turn, so that neither starves. Whoever cannot take a
//! packet (a full socket buffer, a full or down device) loses it, counted; nobody waits.
//!
//! A worker carries both directions, or one of them beside another that carries the other ([`Duty`]).
//!
//! The event loop is edge triggered: an event sets a flag, and only an empty queue clears it. While
//! a flag is set, waiting takes no time.
//!
//! May touch the device, the sockets, the engine. Not the sources of routes, files or HTTP.

mod busy;
mod duty;
mod handle;
mod intake;
mod place;
mod probe;
mod steer;
mod underlay;

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use warren_core::batch::Batch;
use warren_core::engine::{Engine, EngineConfig, Offer};
use warren_core::tables::TableError;
use warren_core::units::Time;
use warren_core::verdict::{Direction, DropReason, Tally, Verdict};

use crate::config::Config;
use crate::counters::{DeviceCounters, ErrnoCounters, PeerTallyReport, WorkerReport};
use crate::ctl::message::Fault;
use crate::datapath::device::{DeviceWriter, ReadStop, WriteCounters, read_batch};
use crate::paths::PathsSender;
use crate::raw::rows::Rows;
use crate::rib::TablesReader;
use crate::ring::Ring;
use crate::shortcut::{OFFER_AFTER, OfferSender};
use crate::tun::Tun;
use crate::udp::share::Share;
use busy::BusyPoll;
pub use duty::Duty;
use handle::Shared;
pub use handle::{Buffers, Command, OpenWorker, WorkerHandle};
use intake::Intake;
pub use place::Placement;
use place::{Calls, Carried, Place};
use probe::Prober;
use underlay::Underlay;
pub use underlay::UnderlayError;

/// What a worker is made of, apart from its device.
#[derive(Clone, Debug)]
pub struct WorkerParts<'c> {
    /// Its number among the node's workers, from 0.
    pub number: u16,
    /// What it carries.
    pub duty: Duty,
    /// Its place among those that receive on the same ports, or send for one that does.
    pub share: Share,
    /// Where it runs.
    pub placement: Placement,
    /// The node's configuration.
    pub config: &'c Config,
    /// Where its tables come from.
    pub tables: TablesReader,
    /// The seed of the node's flow hash, the same for all its workers.
    pub seed: u64,
    /// Who measures the paths.
    pub paths: PathsSender,
    /// Who has the kernel carry known flows, where somebody does.
    pub shortcut: Option<OfferSender>,
    /// Who takes datagrams in a row in IP.
    pub rows: Arc<Rows>,
}

/// Why a worker could not be made, or ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The underlay sockets.
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
    /// The event loop.
    #[error("worker: {what}")]
    EventLoop {
        /// What it was doing.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The device was deleted while it was in use.
    #[error("the device is gone: somebody deleted it")]
    DeviceGone,
    /// The probe's tables.
    #[error("tables of the probe: {0}")]
    Probe(TableError),
}

/// The worker itself; lives on its thread.
#[derive(Debug)]
struct Worker {
    number: u32,
    duty: Duty,
    poll: Poll,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    tables: TablesReader,
    engine: Engine,
    device: Tun,
    device_readable: bool,
    intake: Intake,
    device_counters: DeviceCounters,
    underlay: Underlay,
    writer: DeviceWriter,
    encap_batch: Batch,
    decap_batch: Batch,
    batch_frames: usize,
    busy_poll: BusyPoll,
    prober: Option<Prober>,
    paths: PathsSender,
    shortcut: Option<OfferSender>,
    turns: u64,
}

/// Whether the event loop goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Flow {
    On,
    Ends,
}

impl Worker {
    fn new(
        parts: WorkerParts<'_>,
        (device, ring): (Tun, Option<Ring>),
        commands: Receiver<Command>,
        shared: Arc<Shared>,
    ) -> Result<Self, WorkerError> {
        let WorkerParts {
            number,
            duty,
            share,
            placement: _,
            config,
            tables,
            seed,
            paths,
            shortcut,
            rows,
        } = parts;
        // Each has ports of its own to send from.
        let pool_seed = seed.rotate_left(u32::from(number));
        let mut underlay = Underlay::open(config, share, duty, pool_seed, rows)?;
        underlay.offload_raw(config, device.name().as_str(), pool_seed);
        let poll = Poll::new().map_err(event_loop("poll"))?;
        let register = |fd, token| {
            poll.registry()
                .register(&mut SourceFd(&fd), token, Interest::READABLE)
                .map_err(event_loop("register"))
        };
        if duty.encaps() {
            register(device.as_raw_fd(), DEVICE)?;
        }
        for (index, fd) in underlay.descriptors().enumerate() {
            register(fd, Token(FIRST_SOCKET.0 + index))?;
        }
        let prober = match underlay.targets().next() {
            Some(target) => Prober::new(config, target, seed).map_err(WorkerError::Probe)?,
            None => None,
        };
        let batch_frames = usize::from(config.worker.batch);
        let encap_batch = match duty {
            Duty::Both | Duty::Encap => {
                Batch::with_largest(batch_frames, FRAME_OCTETS_MAX, ENCAP_LARGEST)
            }
            Duty::Decap => Batch::new(0, 0),
        };
        let writer = DeviceWriter::new(&device, config.device.mtu.octets(), config.worker.gro);
        let decap_batch = decap_batch(&underlay, duty);
        let usual = EngineConfig::default();
        let part_of = |rate: u32| rate.div_ceil(u32::from(share.workers));
        let engine_config = EngineConfig {
            clamp_mss: config.device.clamp_mss,
            // What the node may send of its own is for all workers together.
            icmp_per_second: part_of(usual.icmp_per_second),
            icmp_burst: part_of(usual.icmp_burst),
            // The device leads into this host's own IP layer.
            icmp_from_destination: true,
            seed,
            offer_after: shortcut.as_ref().map_or(0, |_| OFFER_AFTER),
            ..usual
        };
        let tables_at_start = tables.tables();
        shared
            .epoch
            .store(tables_at_start.epoch().0, Ordering::Relaxed);
        let busy_poll = Duration::from_micros(config.worker.busy_poll_us.into());
        Ok(Self {
            number: u32::from(number),
            duty,
            poll,
            commands,
            shared,
            engine: Engine::new(engine_config, tables_at_start),
            tables,
            device,
            device_readable: duty.encaps(),
            intake: Intake::new(ring),
            device_counters: DeviceCounters::default(),
            writer,
            underlay,
            encap_batch,
            decap_batch,
            batch_frames,
            busy_poll: BusyPoll::new(busy_poll, Instant::now()),
            prober,
            paths,
            shortcut,
            turns: 0,
        })
    }

    fn run(mut self, mut place: Place) -> Result<(), WorkerError> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        // Whether there was something to carry in the turn before, which may have carried all of it.
        let mut had_work = false;
        loop {
            let has_work = self.has_work();
            let polls = match self.busy_poll.is_off() {
                true => has_work,
                false => self
                    .busy_poll
                    .looks_on(has_work || had_work, Instant::now()),
            };
            self.intake.look();
            let polls = polls || !self.intake.may_sleep();
            if polls && !has_work {
                // Whoever waits for this CPU comes first: it may be who makes the next packet.
                thread::yield_now();
            }
            let timeout = polls.then_some(Duration::ZERO);
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    return Err(event_loop("poll")(error));
                }
                Ok(()) | Err(_) => {}
            }
            for event in &events {
                match event.token() {
                    WAKER => {}
                    DEVICE => self.device_readable = true,
                    Token(socket) => self.underlay.set_readable(socket - FIRST_SOCKET.0),
                }
            }
            if self.obey() == Flow::Ends {
                return Ok(());
            }
            had_work = self.has_work() || self.intake.has_work();
            self.turn()?;
            place.turn(self.busy_poll.spent(), || self.carried());
        }
    }

    /// What went through the device.
    const fn carried(&self) -> Carried {
        let DeviceCounters {
            read,
            written,
            write_calls,
            ..
        } = &self.device_counters;
        Carried {
            read: Calls {
                octets: read.octets,
                calls: read.packets,
            },
            written: Calls {
                octets: written.octets,
                calls: *write_calls,
            },
        }
    }

    /// Whether there is something to read, as far as it knows.
    fn has_work(&self) -> bool {
        self.device_readable || self.underlay.is_readable()
    }

    /// Does what the commands say.
    fn obey(&mut self) -> Flow {
        loop {
            // An asker that is gone does not want the answer any more.
            match self.commands.try_recv() {
                Ok(Command::Ping(answer)) => drop(answer.try_send(())),
                Ok(Command::Report(answer)) => {
                    self.underlay.count_overflows();
                    self.intake.count(&mut self.device_counters);
                    drop(answer.try_send(self.report()));
                }
                Ok(Command::Explain {
                    direction,
                    flow,
                    octets,
                    answer,
                }) => drop(answer.try_send(self.engine.explain_flow(direction, &flow, octets))),
                Ok(Command::Receive { config, answer }) => {
                    let done = self.receive(&config).map_err(|error| error.to_string());
                    drop(answer.try_send(done));
                }
                Ok(Command::Probe { seed }) => self.probe(seed),
                Ok(Command::Inject(packet)) => match self.device.send_plain(&packet) {
                    Ok(()) => self.device_counters.replies_written.count(packet.len()),
                    Err(error) => self.device_counters.reply_drops.count(&error, 1),
                },
                Ok(Command::Fault(fault)) => misbehave(fault),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Flow::Ends,
                Err(TryRecvError::Empty) => return Flow::On,
            }
        }
    }

    /// Opens the sockets that `config` asks for besides those that are open, as many as can be.
    fn receive(&mut self, config: &Config) -> Result<(), WorkerError> {
        let mtu = config.device.mtu.octets();
        self.writer = DeviceWriter::new(&self.device, mtu, config.worker.gro);
        let seed = self.engine.config().seed;
        if self.underlay.follow(config, seed)? {
            for (index, fd) in self.underlay.descriptors().enumerate() {
                let (mut source, token) = (SourceFd(&fd), Token(FIRST_SOCKET.0 + index));
                let registry = self.poll.registry();
                // Those that stayed have another number; the others are new.
                registry
                    .reregister(&mut source, token, Interest::READABLE)
                    .or_else(|_| registry.register(&mut source, token, Interest::READABLE))
                    .map_err(event_loop("register"))?;
            }
            let target = self.underlay.targets().next();
            let prober = target.map(|target| Prober::new(config, target, seed));
            self.prober = prober.transpose().map_err(WorkerError::Probe)?.flatten();
        }
        let known = self.underlay.sockets();
        let opened = self.underlay.extend(config, seed);
        for (index, fd) in self.underlay.descriptors().enumerate().skip(known) {
            self.poll
                .registry()
                .register(
                    &mut SourceFd(&fd),
                    Token(FIRST_SOCKET.0 + index),
                    Interest::READABLE,
                )
                .map_err(event_loop("register"))?;
        }
        let device = self.device.name();
        self.underlay.offload_raw(config, device.as_str(), seed);
        fit(&mut self.decap_batch, &self.underlay, self.duty);
        Ok(opened?)
    }

    /// One turn of each direction.
    fn turn(&mut self) -> Result<(), WorkerError> {
        self.turns += 1;
        if self.turns.is_multiple_of(COUNTED_TURNS) {
            self.underlay.count_overflows();
        }
        if let Some(tables) = self.tables.newer_than(self.engine.tables().epoch()) {
            self.shared.epoch.store(tables.epoch().0, Ordering::Relaxed);
            self.engine.set_tables(tables);
        }
        if self.intake.begin(self.device_readable) {
            self.ring_turn();
        } else {
            if self.device_readable {
                self.encap_turn()?;
            }
            if self.intake.is_next(self.device_readable) {
                self.ring_turn();
            }
        }
        for socket in 0..self.underlay.sockets() {
            self.decap_turn(socket);
        }
        let loops = [Direction::Encap, Direction::Decap].map(|direction| {
            self.engine
                .counters(direction)
                .drops(DropReason::TunnelLoop)
        });
        let loops = loops.into_iter().sum();
        self.shared.loops.store(loops, Ordering::Relaxed);
        Ok(())
    }

    /// From the device to the underlay.
    fn encap_turn(&mut self) -> Result<(), WorkerError> {
        let (batch, counters) = (&mut self.encap_batch, &mut self.device_counters);
        batch.clear();
        match read_batch(&self.device, batch, self.batch_frames, counters) {
            Ok(ReadStop::Empty) => self.device_readable = false,
            Ok(ReadStop::More) => {}
            Err(error) => {
                counters.read_errors.count(&error, 1);
                self.device_readable = false;
                if error.raw_os_error() == Some(libc::EBADFD) {
                    return Err(WorkerError::DeviceGone);
                }
            }
        }
        self.carry_out();
        Ok(())
    }

    /// From the ring to the underlay.
    fn ring_turn(&mut self) {
        let (batch, counters) = (&mut self.encap_batch, &mut self.device_counters);
        batch.clear();
        self.intake.read(batch, self.batch_frames, counters);
        self.carry_out();
    }

    /// Carries what was read.
    fn carry_out(&mut self) {
        let batch = &mut self.encap_batch;
        if batch.is_empty() {
            return;
        }
        let now = now(&self.shared);
        self.engine.encap(batch, now);
        self.underlay.transmit(batch);
        self.offer();
        let (batch, counters) = (&mut self.encap_batch, &mut self.device_counters);
        let mut replies = false;
        for frame in batch.frames() {
            match frame.verdict {
                Verdict::Reply(_) => replies = true,
                Verdict::Direct => counters.direct_drops += 1,
                // From this side nothing is delivered, and no frame is left undecided.
                Verdict::Deliver | Verdict::Probe | Verdict::Undecided => {
                    counters.misdirected += 1;
                }
                Verdict::Transmit | Verdict::Drop(_) => {}
            }
        }
        if replies {
            let mut to = WriteCounters {
                written: &mut counters.replies_written,
                calls: &mut counters.write_calls,
                drops: &mut counters.reply_drops,
            };
            let is_reply = |verdict| matches!(verdict, Verdict::Reply(_));
            self.writer
                .write_batch(&self.device, batch, is_reply, &mut to);
        }
    }

    /// From one underlay socket to the device.
    fn decap_turn(&mut self, socket: usize) {
        let (prober, batch) = (&mut self.prober, &mut self.decap_batch);
        self.underlay.receive(socket, batch, |octets, link| {
            prober
                .as_mut()
                .is_some_and(|prober| prober.takes(octets, link))
        });
        if batch.is_empty() {
            return;
        }
        let now = now(&self.shared);
        self.engine.decap(batch, now);
        self.offer();
        let batch = &mut self.decap_batch;
        let counters = &mut self.device_counters;
        for frame in batch.frames() {
            match frame.verdict {
                Verdict::Deliver | Verdict::Drop(_) => {}
                Verdict::Probe => {
                    counters.probes += 1;
                    self.paths.arrived(frame.bytes, frame.link);
                }
                // From this side nothing goes back, and no frame is left undecided.
                Verdict::Transmit | Verdict::Direct | Verdict::Reply(_) | Verdict::Undecided => {
                    counters.misdirected += 1;
                }
            }
        }
        let mut to = WriteCounters {
            written: &mut counters.written,
            calls: &mut counters.write_calls,
            drops: &mut counters.write_drops,
        };
        let is_delivered = |verdict| verdict == Verdict::Deliver;
        self.writer
            .write_batch(&self.device, batch, is_delivered, &mut to);
        self.finish_probe(now);
    }

    /// Passes on what the engine offers.
    fn offer(&mut self) {
        let Some(shortcut) = &self.shortcut else {
            return;
        };
        let epoch = self.engine.tables().epoch();
        for offer in self.engine.offers() {
            let source_port = match &offer {
                Offer::Departure(offer) => self.underlay.source_port(&offer.link),
                Offer::Delivery(_) => None,
            };
            shortcut.offer(offer, epoch, source_port);
        }
    }

    fn probe(&mut self, seed: u64) {
        let now = now(&self.shared);
        if let Some(prober) = &mut self.prober {
            self.underlay.transmit_probe(prober.send(seed, now));
        }
    }

    /// Hands a probe that came back to the device.
    fn finish_probe(&mut self, now: Time) {
        let Some(prober) = &mut self.prober else {
            return;
        };
        let Some(batch) = prober.arrived(now) else {
            return;
        };
        let (mut written, mut drops) = (Tally::default(), ErrnoCounters::default());
        let mut to = WriteCounters {
            written: &mut written,
            calls: &mut self.device_counters.write_calls,
            drops: &mut drops,
        };
        let is_delivered = |verdict| verdict == Verdict::Deliver;
        self.writer
            .write_batch(&self.device, batch, is_delivered, &mut to);
        if written.packets == 0 {
            return;
        }
        prober.count_passed();
        let ms = u64::try_from(self.shared.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.shared
            .last_probe_ms
            .store(ms.max(1), Ordering::Relaxed);
    }

    fn report(&self) -> WorkerReport {
        let tables = self.engine.tables();
        let (probes_sent, probes_passed) = self.prober.as_ref().map_or((0, 0), Prober::counts);
        WorkerReport {
            worker: self.number,
            epoch: tables.epoch().0,
            turns: self.turns,
            encap: self.engine.counters(Direction::Encap).into(),
            decap: self.engine.counters(Direction::Decap).into(),
            device: (&self.device_counters).into(),
            sockets: self.underlay.report(),
            peers: tables
                .peers()
                .iter()
                .zip(self.engine.peer_counters())
                .filter(|(peer, _)| !peer.is_vacant())
                .map(|(peer, counters)| PeerTallyReport::new(&peer.name, counters))
                .collect(),
            probes_sent,
            probes_passed,
        }
    }
}

/// The batch that the sockets are read into.
fn decap_batch(underlay: &Underlay, duty: Duty) -> Batch {
    // Who sends only has raw sockets that nothing comes from.
    if !duty.decaps() {
        return Batch::new(0, 0);
    }
    Batch::with_largest(DECAP_FRAMES, FRAME_OCTETS_MAX, underlay.receives())
}

/// Makes the batch anew where the sockets, which are others now, hand over more or less in one call
/// than it has room for: that is up to 4 MiB, and a port that is taken is tried every few seconds.
fn fit(batch: &mut Batch, underlay: &Underlay, duty: Duty) {
    if duty.decaps() && batch.vacancies(usize::MAX).count() != underlay.receives() {
        *batch = decap_batch(underlay, duty);
    }
}

/// The time since the worker was made.
fn now(shared: &Shared) -> Time {
    let nanos = shared.start.elapsed().as_nanos();
    Time::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Does what a test asked for. A release build has no test to ask.
fn misbehave(fault: Fault) {
    if !cfg!(any(debug_assertions, feature = "fault-injection")) {
        return;
    }
    match fault {
        Fault::Hang => loop {
            thread::park();
        },
        Fault::Panic => panic!("asked for by the control socket"),
    }
}

fn event_loop(what: &'static str) -> impl Fn(io::Error) -> WorkerError {
    move |source| WorkerError::EventLoop { what, source }
}

const WAKER: Token = Token(0);
const DEVICE: Token = Token(1);
const FIRST_SOCKET: Token = Token(2);

/// Turns after which the sockets' drops are counted even if nobody asks: the kernel's own count is of 32 bits.
const COUNTED_TURNS: u64 = 1 << 16;

/// Events taken at once; the sources are fewer.
const EVENTS_MAX: usize = 64;

/// The largest frame: an IP packet of 65,535 octets with its virtio header, or with its shim.
const FRAME_OCTETS_MAX: usize = 65_535 + 22;

/// Uncut packets that the batch of one encap turn has room for. Reading stops behind the first.
const ENCAP_LARGEST: usize = 4;

/// Datagrams of one decap turn: what a UDP socket brings in trains of 64 in one call, and more
/// where they are small.
const DECAP_FRAMES: usize = 1024;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::config::example_config;

    #[test]
    fn a_batch_that_fits_its_sockets_is_not_made_anew() {
        let mut config = Config::parse(example_config(), "example.toml").expect("it is valid");
        config.node.underlay_v4 = Some(Ipv4Addr::LOCALHOST);
        config.node.underlay_v6 = None;
        let duty = Duty::Both;
        // One that only sends takes no port.
        let underlay = Underlay::open(&config, Share::ALONE, Duty::Encap, 7, Arc::default())
            .expect("loopback");
        let arena = |batch: &mut Batch| batch.vacancies(1).next().map(|place| place.as_ptr());
        let mut batch = decap_batch(&underlay, duty);
        let before = arena(&mut batch);
        fit(&mut batch, &underlay, duty);
        assert_eq!(arena(&mut batch), before);
        // Raw sockets came, say.
        let mut narrow = Batch::with_largest(DECAP_FRAMES, FRAME_OCTETS_MAX, 1);
        fit(&mut narrow, &underlay, duty);
        assert_eq!(narrow.vacancies(usize::MAX).count(), underlay.receives());
    }
}
