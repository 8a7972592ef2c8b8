//! A worker as other threads see it: how it is made and started, what it is asked, what it tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use mio::Waker;
use warren_core::engine::Explanation;
use warren_core::packet::FlowKey;
use warren_core::verdict::Direction;

use super::place::{Place, Placement};
use super::steer::Steering;
use super::{WAKER, Worker, WorkerError, WorkerParts, event_loop};
use crate::config::Config;
use crate::counters::WorkerReport;
use crate::ctl::message::Fault;
use crate::ring::Ring;
use crate::sys;
use crate::tun::Tun;

/// A question or an order to a worker; answered between two batches.
#[derive(Debug)]
pub enum Command {
    /// "Are you there?"
    Ping(Sender<()>),
    /// "What have you counted?"
    Report(Sender<WorkerReport>),
    /// "What would happen to this packet?"
    Explain {
        /// Which way it goes.
        direction: Direction,
        /// The packet's flow.
        flow: FlowKey,
        /// Octets of the packet.
        octets: u16,
        /// Where the answer goes.
        answer: Sender<Explanation>,
    },
    /// "Send a probe through the data path." Its passing shows in [`WorkerHandle::last_probe`].
    Probe {
        /// Makes its token unguessable.
        seed: u64,
    },
    /// "Receive what this configuration says, besides what is received." The device has its MTU.
    Receive {
        /// The configuration.
        config: Arc<Config>,
        /// What went wrong.
        answer: Sender<Result<(), String>>,
    },
    /// "Give this ICMP message to the device."
    Inject(Vec<u8>),
    /// "End."
    Stop,
    /// "Misbehave", for tests.
    Fault(Fault),
}

/// A worker with all that it needs, whose thread has not been started.
#[derive(Debug)]
pub struct OpenWorker {
    worker: Worker,
    handle: Handle,
    placement: Placement,
}

/// What becomes a [`WorkerHandle`] with the thread.
#[derive(Debug)]
struct Handle {
    number: u32,
    commands: Sender<Command>,
    waker: Waker,
    shared: Arc<Shared>,
    buffers: Buffers,
    probes: bool,
}

impl OpenWorker {
    /// Opens the sockets of a worker, which owns `device`, and its ring if it has one, from then on.
    /// Workers that share their
    /// ports are to be opened in the order of their numbers, and all of them before the first is
    /// started: a port's datagrams are spread over the sockets that are there.
    ///
    /// # Errors
    ///
    /// [`WorkerError`].
    pub fn open(parts: WorkerParts<'_>, device: (Tun, Option<Ring>)) -> Result<Self, WorkerError> {
        let (number, placement) = (u32::from(parts.number), parts.placement.clone());
        let is_first = parts.share.number == 0 && parts.duty.decaps();
        let (commands, receiver) = crossbeam_channel::bounded(COMMANDS_MAX);
        let shared = Arc::new(Shared::default());
        let worker = Worker::new(parts, device, receiver, Arc::clone(&shared))?;
        let waker = Waker::new(worker.poll.registry(), WAKER).map_err(event_loop("waker"))?;
        let (receive_octets, send_octets) = worker.underlay.buffers();
        let handle = Handle {
            number,
            commands,
            waker,
            shared,
            buffers: Buffers {
                receive_octets,
                send_octets,
            },
            probes: is_first || worker.prober.is_some(),
        };
        Ok(Self {
            worker,
            handle,
            placement,
        })
    }

    /// Starts the thread. It says so on `ended` when it ends, however it does.
    ///
    /// # Errors
    ///
    /// [`WorkerError`].
    pub fn start(self, ended: Sender<()>) -> Result<WorkerHandle, WorkerError> {
        let Self {
            worker,
            handle,
            placement,
        } = self;
        let number = handle.number;
        let thread = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                let _ended = AtEnd(ended);
                if let Err(error) = sys::schedule::set_slice(SLICE) {
                    tracing::debug!("slices of a worker: {error}");
                }
                let device = worker.device.name();
                let steering = |cpus: &[usize]| Steering::of(device, number, cpus);
                worker.run(Place::new(placement, number, steering))
            })
            .map_err(event_loop("thread"))?;
        Ok(WorkerHandle {
            number,
            commands: handle.commands,
            waker: handle.waker,
            shared: handle.shared,
            buffers: handle.buffers,
            probes: handle.probes,
            thread,
        })
    }
}

/// Says on a channel when it is dropped, also by a panic.
struct AtEnd(Sender<()>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        // Where one end has been told, nobody needs to hear of the next.
        let _ = self.0.try_send(());
    }
}

/// The smallest buffers among the sockets of a worker, as the kernel accounts them: twice what was
/// asked for, or less where its limits are in the way.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Buffers {
    /// Of those that receive, octets.
    pub receive_octets: Option<usize>,
    /// Of those that send, octets.
    pub send_octets: Option<usize>,
}

/// A running worker, seen from other threads.
#[derive(Debug)]
pub struct WorkerHandle {
    number: u32,
    commands: Sender<Command>,
    waker: Waker,
    shared: Arc<Shared>,
    buffers: Buffers,
    probes: bool,
    thread: JoinHandle<Result<(), WorkerError>>,
}

impl WorkerHandle {
    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// Gives it a command, without waiting; `false` when it does not take any: it has ended, or
    /// has not looked for a while.
    pub fn command(&self, command: Command) -> bool {
        self.commands.try_send(command).is_ok() && self.waker.wake().is_ok()
    }

    /// Asks it something and waits for the answer for as long as `timeout`.
    pub fn ask<A>(
        &self,
        question: impl FnOnce(Sender<A>) -> Command,
        timeout: Duration,
    ) -> Option<A> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.command(question(sender)).then_some(())?;
        receiver.recv_timeout(timeout).ok()
    }

    /// The generation of the tables that it works with, up to the last turn.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::Relaxed)
    }

    /// The buffers of its sockets.
    #[must_use]
    pub const fn buffers(&self) -> Buffers {
        self.buffers
    }

    /// Whether it is to be probed. Where all that is received is IP in IP, the first worker
    /// receives for all, and a probe of another one would not come back to it.
    #[must_use]
    pub const fn probes(&self) -> bool {
        self.probes
    }

    /// When a probe last passed; `None` when none has yet.
    #[must_use]
    pub fn last_probe(&self) -> Option<Instant> {
        match self.shared.last_probe_ms.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(self.shared.start + Duration::from_millis(ms)),
        }
    }

    /// Packets that were in a routing loop, up to the last turn.
    #[must_use]
    pub fn loops(&self) -> u64 {
        self.shared.loops.load(Ordering::Relaxed)
    }

    /// Whether its thread has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the thread to end and says how it did.
    ///
    /// # Errors
    ///
    /// Its error, or the message of its panic, as a sentence.
    pub fn join(self) -> Result<(), String> {
        match self.thread.join() {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(panic) => {
                let message = panic
                    .downcast_ref::<&str>()
                    .map(|message| (*message).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned());
                Err(format!(
                    "it panicked: {}",
                    message.as_deref().unwrap_or("without a message")
                ))
            }
        }
    }
}

/// What the worker tells without being asked.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) start: Instant,
    /// Milliseconds from `start` to the last probe that passed; 0 for none.
    pub(super) last_probe_ms: AtomicU64,
    /// The generation of the tables that it works with.
    pub(super) epoch: AtomicU64,
    /// Packets dropped because they went round in a loop.
    pub(super) loops: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            last_probe_ms: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            loops: AtomicU64::new(0),
        }
    }
}

/// The slice that a worker asks the scheduler for, the shortest there is: a worker that has
/// packets is to run soon, before its queues are full, and does little at a time.
const SLICE: Duration = Duration::from_micros(100);

/// Commands that may wait. The supervisor asks twice a second.
const COMMANDS_MAX: usize = 64;
