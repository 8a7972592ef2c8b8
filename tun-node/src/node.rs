//! A whole node: opening what it needs, in order, watching over it, taking it down.
//!
//! ```text
//!  main thread: signals, heartbeats, COMMAND ──┬── worker-N   the data path
//!                                              ├── plane      sources, routes, tables
//!                                              ├── control    tunnel for `tun-node status`, ...
//!                                              ├── metrics    HTTP, if configured
//!                                              └── signals    SIGTERM, SIGINT, SIGHUP
//! ```
//!
//! `[worker] count` says how many workers there are. Each has a queue of the device and sockets of
//! its own, and they share nothing but the tables. The kernel gives a packet of the device to the
//! queue that its flow's answers were last written to, and to one that follows from its hash while
//! there are none; a datagram to the worker that its source says ([`crate::udp::share`]). A device
//! that has one queue has one worker. In place of each there are two, one for either direction, where
//! the configuration says so, or leaves it to the node and the underlay has frames cut ([`Spread`]).
//!
//! The main thread asks every worker four times a second whether it is there. One that has not
//! answered for 1.5 s, has panicked or failed ends the process, within 2 s of the fault, with exit
//! code [`EXIT_INTERNAL`] and one line that says why: a node whose data path is dead must not look
//! alive.
//!
//! Everything opened is held by a value whose end undoes it, so that an error halfway leaves as
//! little behind as a clean end. Packets pass as soon as there are tables and a device: what was
//! routed before a restart needs no source, no kernel route that is still to be made, and not even
//! that the control plane has looked at it again ([`crate::plane`]).

mod device;
mod directions;
mod pulse;
mod state;

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, never, select, tick};
use mio::unix::SourceFd;
use nix::sys::signal::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use tracing::{info, warn};

use crate::config::{Config, Loaded};
use crate::ctl::path::default_path;
use crate::ctl::server::{Server, ServerError};
use crate::hostroutes::{Host, HostError, HostParts};
use crate::metrics::{MetricsError, MetricsServer};
use crate::paths::{PathsInlet, PathsParts};
use crate::plane::{PlaneError, PlaneInlet, PlaneParts};
use crate::ring::Ring;
use crate::rootless::{self, Launch, Rootless};
use crate::sys;
use crate::tun::Tun;
use crate::udp::share::Share;
use crate::worker::{Command, Duty, OpenWorker, Placement, WorkerError, WorkerHandle, WorkerParts};
use device::Undo;
use pulse::Pulse;

pub use device::DeviceError;
pub(crate) use device::on_link;
pub use directions::Spread;
pub use state::NodeState;

/// What a node is to be, apart from its configuration file.
#[derive(Debug)]
pub struct RunOptions {
    /// The configuration and its route files.
    pub loaded: Loaded,
    /// Where it was read from, to be read again.
    pub path: PathBuf,
    /// Whether the device is made in a namespace of this user's own.
    pub rootless: bool,
    /// What to run in that namespace; the node ends with it. Empty for nothing.
    pub command: Vec<OsString>,
    /// The control socket, where it is not the configuration's or the default one.
    pub socket: Option<PathBuf>,
}

/// Runs a node until a signal or COMMAND ends it, and returns the code to exit with.
///
/// To be called on the main thread. The process is to exit with that code at once: a thread that
/// hangs is not waited for.
///
/// # Errors
///
/// [`NodeError`] when the node does not come up; nothing is left behind then.
pub fn run(options: RunOptions) -> Result<u8, NodeError> {
    let signals = SignalThread::start()?;
    let inlet = PathsInlet::new().map_err(paths_failed)?;
    let config = options.loaded.config.clone();
    let plane = PlaneInlet::new(options.loaded, options.path, options.rootless);
    let reader = plane.reader();
    let path = options
        .socket
        .or_else(|| config.control_socket.clone())
        .unwrap_or_else(|| default_path(&config.node.name));
    let effective = plane.effective();
    // By this thread, which is in the namespace that the underlay's sockets will be in.
    let spread = Spread::of(&effective);
    let state = Arc::new(NodeState::new(
        effective,
        spread.clone(),
        options.rootless,
        reader.clone(),
        inlet.sender(),
        plane.sender(),
        plane.alarms(),
    ));
    let config = Config::clone(&state.config());
    // First, because a node of this name that runs is found out here.
    let control = Server::start(&path, Arc::<NodeState>::clone(&state))?;
    let (failed, failures) = crossbeam_channel::bounded(1);
    let mut host = None;
    let ends_with_command = !options.command.is_empty();
    let cpus = sys::schedule::cpus().unwrap_or_default();
    let count = config.worker.count.on(cpus.len());
    let (queues, mut child, undo): (Vec<Tun>, Option<Rootless>, Undo) = if options.rootless {
        let socket = std::path::absolute(&path).ok();
        let launch = Launch::this_program(options.command, socket);
        let (rootless, queues) = device::open_rootless(&config, count, &reader.tables(), &launch)?;
        (queues, Some(rootless), Undo::default())
    } else {
        let opened = device::open(&config, count)?;
        (opened.queues, None, opened.undo)
    };
    let (ending, ended) = crossbeam_channel::bounded(1);
    state.open_shortcut();
    // Behind it, too: what it carries nobody has to cut.
    state.look_after_rows();
    // Behind the short way, which is asked first so.
    let ring = state.open_ring(undo.index(), queues.len());
    let parts = WorkerParts {
        number: 0,
        duty: Duty::Both,
        share: Share::ALONE,
        placement: Placement::Anywhere,
        config: &config,
        tables: reader.clone(),
        seed: random(),
        paths: inlet.sender(),
        shortcut: state.offers(),
        rows: state.rows(),
    };
    info!(directions = spread.name(), because = %spread.because, "workers");
    // Before the kernel's routes, which may be many and may be there already.
    for worker in open_workers(&parts, &spread, (queues, ring), &cpus)? {
        state.add_worker(worker.start(ending.clone())?);
    }
    drop(ending);
    if !options.rootless {
        let parts = HostParts {
            config: config.clone(),
            tables: reader.clone(),
            device: undo.index(),
            configures: undo.configures(),
            stays: undo.stays(),
            failed,
            plane: plane.sender(),
        };
        host = Some(Host::start(parts, Arc::clone(&state.host_report))?);
    }
    let injector = Arc::clone(&state);
    let paths_sender = inlet.sender();
    let parts = PathsParts {
        config: config.clone(),
        tables: reader,
        plane: plane.sender(),
        seed: random(),
        rows: state.rows(),
        inject: Box::new(move |packet| {
            let workers = injector.workers();
            let first = workers.first();
            first.is_some_and(|worker| worker.command(Command::Inject(packet)))
        }),
    };
    let paths = inlet.start(parts).map_err(paths_failed)?;
    let receiving = Arc::clone(&state);
    let plane = plane.start(PlaneParts {
        paths: paths_sender,
        host: host.as_ref().map(Host::sender),
        receives: Box::new(move |config| receiving.receive(config)),
    })?;
    let metrics = match config.metrics_listen {
        Some(listen) => Some(MetricsServer::start(listen, Arc::clone(&state))?),
        None => None,
    };
    let child_ended = match &mut child {
        Some(child) => {
            child.go().map_err(DeviceError::Rootless)?;
            watch(child)?
        }
        None => never(),
    };
    info!(node = %config.node.name, device = %config.device.name, "running");
    let mut supervisor = Supervisor {
        state: &state,
        child: child.as_mut(),
        ends_with_command,
        heartbeats: Vec::new(),
        ticks: 0,
        loops: 0,
        was_ready: false,
    };
    let end = supervisor.watch(&signals.received, &ended, &child_ended, &failures);
    // The sources first: while they leave, packets still pass.
    drop(plane);
    drop(paths);
    drop(metrics);
    drop(control);
    let code = match end {
        End::Signal => finish(&state, child.as_mut(), 0),
        End::Child(status) => finish(&state, None, rootless::exit_code(status)),
        End::Worker(sentence) => {
            eprintln_line(&sentence);
            EXIT_INTERNAL
        }
    };
    // After the last packet, and before the process ends.
    drop(child);
    drop(host);
    drop(undo);
    drop(signals);
    Ok(code)
}

/// Opens a worker for each queue of the device, or one for each of its directions. The ring goes to
/// the first that reads the device.
fn open_workers(
    usual: &WorkerParts<'_>,
    spread: &Spread,
    (queues, mut ring): (Vec<Tun>, Option<Ring>),
    cpus: &[usize],
) -> Result<Vec<OpenWorker>, NodeError> {
    let workers = u16::try_from(queues.len()).unwrap_or(u16::MAX);
    let mut wanted = Vec::new();
    for (number, queue) in (0..workers).zip(queues) {
        let share = Share { number, workers };
        if spread.is_apart {
            let same = queue.share().map_err(DeviceError::from)?;
            wanted.push((Duty::Encap, share, queue));
            wanted.push((Duty::Decap, share, same));
        } else {
            wanted.push((Duty::Both, share, queue));
        }
    }
    let duties: Vec<Duty> = wanted.iter().map(|(duty, ..)| *duty).collect();
    let places = spread.places(&duties, usual.config.worker.pin, cpus);
    let opened = (0..).zip(wanted).zip(places);
    let opened = opened.map(|((number, (duty, share, queue)), placement)| {
        let parts = WorkerParts {
            number,
            duty,
            share,
            placement,
            ..usual.clone()
        };
        // There is one only where there is one queue.
        let ring = ring.take_if(|_| duty.encaps());
        Ok(OpenWorker::open(parts, (queue, ring))?)
    });
    opened.collect()
}

/// The exit code of a node whose inside failed: a worker hung, panicked or lost its device.
/// `EX_SOFTWARE` of sysexits.h.
pub const EXIT_INTERNAL: u8 = 70;

/// Why a node did not come up.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The control plane.
    #[error(transparent)]
    Plane(#[from] PlaneError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ServerError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel's routes.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The underlay or the event loop.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The metrics page.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The signals could not be taken over.
    #[error("taking over {what}")]
    Process {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Why a running node ends.
enum End {
    Signal,
    Child(ExitStatus),
    /// A worker failed; the sentence says how.
    Worker(String),
}

/// Watches over workers and COMMAND.
struct Supervisor<'n> {
    state: &'n NodeState,
    child: Option<&'n mut Rootless>,
    ends_with_command: bool,
    heartbeats: Vec<Heartbeat>,
    ticks: u64,
    loops: u64,
    was_ready: bool,
}

/// A worker that is asked whether it is there.
struct Heartbeat {
    worker: Arc<WorkerHandle>,
    pulse: Pulse,
}

impl Supervisor<'_> {
    fn watch(
        &mut self,
        signals: &Receiver<i32>,
        ended: &Receiver<()>,
        child_ended: &Receiver<()>,
        failures: &Receiver<String>,
    ) -> End {
        let ticker = tick(TICK);
        let unheard = never();
        let mut failures = failures;
        self.heartbeats = self
            .state
            .workers()
            .into_iter()
            .map(Heartbeat::new)
            .collect();
        self.probe();
        loop {
            select! {
                recv(signals) -> signal => {
                    if signal == Ok(SIGHUP) {
                        self.state.reload();
                    } else if self.ends_by(signal.unwrap_or(SIGTERM)) {
                        return End::Signal;
                    }
                }
                recv(ended) -> _ => return End::Worker(self.how_worker_ended()),
                recv(failures) -> sentence => match sentence {
                    // The device goes with a worker that has ended, who knows why.
                    Ok(sentence) => match ended.recv_timeout(TICK) {
                        Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                            return End::Worker(self.how_worker_ended());
                        }
                        Err(RecvTimeoutError::Timeout) => return End::Worker(sentence),
                    },
                    // Nobody watches the host.
                    Err(_) => failures = &unheard,
                },
                recv(child_ended) -> _ => {
                    if let Some(status) = self.child_status() {
                        return End::Child(status);
                    }
                }
                recv(ticker) -> _ => {
                    if let Some(sentence) = self.tick() {
                        return End::Worker(sentence);
                    }
                }
            }
        }
    }

    /// Whether the node ends by this signal itself. With COMMAND it ends with it: SIGINT comes
    /// from the terminal to both, SIGTERM is passed on.
    fn ends_by(&self, signal: i32) -> bool {
        let Some(child) = self.child.as_ref().filter(|_| self.ends_with_command) else {
            return true;
        };
        if signal == SIGINT {
            return false;
        }
        if let Err(error) = child.signal(Signal::SIGTERM) {
            warn!("passing SIGTERM on: {error}");
        }
        false
    }

    /// Asks after every worker; the sentence when one is to be given up.
    fn tick(&mut self) -> Option<String> {
        self.ticks += 1;
        for heartbeat in &mut self.heartbeats {
            if heartbeat.beat() > TICKS_UNANSWERED_MAX {
                return Some(format!(
                    "worker {} has not answered for 1.5 s: the node ends rather than look alive",
                    heartbeat.worker.number()
                ));
            }
        }
        self.watch_loops();
        self.state.look_after_ring();
        if self.ticks.is_multiple_of(TICKS_PER_PROBE) {
            self.state.look_after_rows();
        }
        let is_ready = self.probe_is_fresh();
        if is_ready != self.was_ready {
            self.was_ready = is_ready;
            info!(ready = is_ready, "data path");
        }
        if !is_ready || self.ticks.is_multiple_of(TICKS_PER_PROBE) {
            self.probe();
        }
        None
    }

    /// Raises the alarm when packets go round.
    fn watch_loops(&mut self) {
        let workers = self.heartbeats.iter();
        let loops = workers.map(|heartbeat| heartbeat.worker.loops()).sum();
        if loops > self.loops {
            let mut seen = self.state.loops.write();
            let is_new = seen.is_none_or(|(at, _)| at.elapsed() > LOOP_QUIET);
            *seen = Some((Instant::now(), loops));
            drop(seen);
            if is_new {
                warn!(
                    packets = loops,
                    "routing loop: packets of the tunnel would enter it again"
                );
            }
        }
        self.loops = loops;
    }

    fn probe(&self) {
        for heartbeat in &self.heartbeats {
            let _ = heartbeat.worker.command(Command::Probe { seed: random() });
        }
    }

    fn probe_is_fresh(&self) -> bool {
        let workers = self.heartbeats.iter().map(|heartbeat| &heartbeat.worker);
        let workers = workers.filter(|worker| worker.probes());
        let mut probes = workers.map(|worker| worker.last_probe());
        probes.all(|passed| passed.is_some_and(|at| at.elapsed() < state::PROBE_FRESH / 2))
    }

    /// What those workers that have ended say of it. The others go on until the process ends.
    fn how_worker_ended(&mut self) -> String {
        self.heartbeats.clear();
        let workers = self.state.take_workers();
        // A thread that says that it ends is not yet one that has ended.
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline && !workers.iter().any(|worker| worker.has_ended()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut sentences = Vec::new();
        for worker in workers.into_iter().filter(|worker| worker.has_ended()) {
            let number = worker.number();
            match Arc::into_inner(worker).map(WorkerHandle::join) {
                Some(Ok(())) => {}
                Some(Err(error)) => sentences.push(format!("worker {number} ended: {error}")),
                // A client of the control socket still holds it.
                None => sentences.push(format!("worker {number} ended")),
            }
        }
        sentences.join("; ")
    }

    fn child_status(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        child.try_wait().ok().flatten()
    }
}

impl Heartbeat {
    const fn new(worker: Arc<WorkerHandle>) -> Self {
        Self {
            worker,
            pulse: Pulse::NEW,
        }
    }

    /// As [`Pulse::beat`].
    fn beat(&mut self) -> u32 {
        let worker = &self.worker;
        self.pulse
            .beat(|answer| worker.command(Command::Ping(answer)))
    }
}

/// Ends the workers and COMMAND and returns `code`, or [`EXIT_INTERNAL`] where a worker fails at
/// the last moment.
fn finish(state: &NodeState, child: Option<&mut Rootless>, code: u8) -> u8 {
    if let Some(child) = child {
        let _ = child.signal(Signal::SIGTERM);
    }
    let mut code = code;
    let workers = state.take_workers();
    for worker in &workers {
        let _ = worker.command(Command::Stop);
    }
    let deadline = Instant::now() + END_TIMEOUT;
    for worker in workers {
        let number = worker.number();
        while !worker.has_ended() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !worker.has_ended() {
            eprintln_line(&format!("worker {number} does not end"));
            code = EXIT_INTERNAL;
        } else if let Some(Err(sentence)) = Arc::into_inner(worker).map(WorkerHandle::join) {
            eprintln_line(&format!("worker {number} ended: {sentence}"));
            code = EXIT_INTERNAL;
        }
    }
    code
}

/// A channel that hears when the child ends.
fn watch(child: &Rootless) -> Result<Receiver<()>, NodeError> {
    let failed = |source| NodeError::Process {
        what: "the child's end",
        source,
    };
    let pidfd = child.as_fd().try_clone_to_owned().map_err(failed)?;
    let mut poll = mio::Poll::new().map_err(failed)?;
    let raw = pidfd.as_raw_fd();
    poll.registry()
        .register(&mut SourceFd(&raw), mio::Token(0), mio::Interest::READABLE)
        .map_err(failed)?;
    let (sender, receiver) = crossbeam_channel::bounded(1);
    std::thread::Builder::new()
        .name("child".to_owned())
        .spawn(move || {
            let _open = pidfd;
            let mut events = mio::Events::with_capacity(1);
            while events.is_empty() {
                if poll.poll(&mut events, None).is_err() && events.is_empty() {
                    continue;
                }
            }
            let _ = sender.send(());
        })
        .map_err(failed)?;
    Ok(receiver)
}

/// SIGTERM, SIGINT and SIGHUP as messages.
struct SignalThread {
    received: Receiver<i32>,
    handle: Handle,
}

impl SignalThread {
    fn start() -> Result<Self, NodeError> {
        let failed = |source| NodeError::Process {
            what: "SIGTERM, SIGINT and SIGHUP",
            source,
        };
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
        let handle = signals.handle();
        let (sender, received) = crossbeam_channel::bounded(8);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    // Further ones than the node has looked at change nothing.
                    let _ = sender.try_send(signal);
                }
            })
            .map_err(failed)?;
        Ok(Self { received, handle })
    }
}

impl Drop for SignalThread {
    fn drop(&mut self) {
        self.handle.close();
    }
}

/// Sixty-four bits that nobody outside can guess: the standard library seeds its hash maps from
/// the kernel.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// The one line that a failing node says.
fn eprintln_line(sentence: &str) {
    use std::io::Write;
    let _ = writeln!(io::stderr().lock(), "tun-node: {sentence}");
}

fn paths_failed(source: io::Error) -> NodeError {
    NodeError::Process {
        what: "the sockets of path probes",
        source,
    }
}

/// A loop is said again when none was seen for so long.
const LOOP_QUIET: Duration = Duration::from_secs(10);

/// How often workers are asked.
const TICK: Duration = Duration::from_millis(250);

/// Ticks without an answer that are borne: 1.5 s.
const TICKS_UNANSWERED_MAX: u32 = 5;

/// A probe every 2 s while the data path works; at every tick while it does not.
const TICKS_PER_PROBE: u64 = 8;

/// How long a worker may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(1);
