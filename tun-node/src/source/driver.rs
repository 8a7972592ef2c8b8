//! The threads between a source's state machine and its server.
//!
//! ```text
//!           orders                    ┌───────────┐ updates
//!  node ───────────> thread of the  ──┤  Dialog   ├──────────> RIB
//!           answers  source, one      │ (agent and│ notices
//!  server <────────> request at a time│  client)  ├──────────> node
//!     │                  ▲            └───────────┘
//!     └── watch thread ──┘
//! ```
//!
//! A source has an agent, which decides and has no socket, and a client, which has the sockets and
//! decides nothing. Together they are a [`Dialog`]; this file carries between them and the node.
//! One thread asks, one request at a time, each with its time limit; a second one waits at the
//! watch, which is opened again wherever the agent wants it. The thread of a watch that is no
//! longer wanted ends when its connection says something or its silence is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TryRecvError};
use warren_core::units::Time;

use super::{Outlet, SourceNotice};
use crate::rib::SourceUpdate;

/// An agent and its client.
pub(super) trait Dialog: Send + 'static {
    /// What happens to the agent.
    type Input: Send + 'static;
    /// What a watch is to begin with; another one wants another watch.
    type Wanted: Clone + PartialEq + Send;

    /// Names the threads.
    const NAME: &'static str;

    /// Takes an input.
    fn handle(&mut self, input: Self::Input, now: Time);

    /// Carries out the request that is due and takes in its answer; whether one was due.
    fn ask(&mut self, clock: Clock) -> bool;

    /// When [`Dialog::ask`] may have something to do though nothing happened.
    fn poll_timeout(&self) -> Option<Time>;

    /// What the RIB should be told next.
    fn poll_update(&mut self) -> Option<SourceUpdate>;

    /// What the node should know next.
    fn poll_notice(&mut self) -> Option<SourceNotice>;

    /// The watch that should be open.
    fn wanted_watch(&mut self, now: Time) -> Option<Self::Wanted>;

    /// What waits at a watch, in a thread of its own, until it ends or [`Mouth::is_wanted`] says
    /// no more.
    fn watcher(&mut self, wanted: Self::Wanted) -> WatcherOf<Self::Input>;

    /// That a watch could not be opened.
    fn watch_broke(why: String) -> Self::Input;
}

/// What waits at a watch and says what happens there.
pub(super) type WatcherOf<I> = Box<dyn FnOnce(&Mouth<I>) + Send>;

/// The time since a source was started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn now(self) -> Time {
        Time::ZERO.after(self.0.elapsed())
    }
}

/// What a source is told.
#[derive(Debug)]
pub(super) enum Order<I> {
    /// Something happened.
    Take(I),
    /// Something happened after which the source has a little time to end.
    Leave(I),
    /// End.
    Stop,
}

/// A source in its thread; ends when it is told to or is dropped.
#[derive(Debug)]
pub(super) struct Running<I> {
    orders: Sender<Order<I>>,
    thread: Option<JoinHandle<()>>,
}

impl<I: Send + 'static> Running<I> {
    /// Starts the thread, which delivers to `outlet`.
    pub(super) fn start<D: Dialog<Input = I>>(dialog: D, outlet: Outlet) -> Self {
        let (orders, receiver) = crossbeam_channel::unbounded();
        let thread = std::thread::Builder::new().name(D::NAME.to_owned());
        let thread = thread.spawn(move || {
            Driver {
                dialog,
                outlet,
                clock: Clock(Instant::now()),
                watch: None,
                watches: crossbeam_channel::bounded(WATCH_MESSAGES),
                leave_by: None,
            }
            .run(&receiver);
        });
        Self {
            orders,
            // Without a thread nothing is learned and nothing withdrawn; the caller sees no update.
            thread: thread.ok(),
        }
    }

    pub(super) fn tell(&self, order: Order<I>) {
        // It ends by itself only after it was told to.
        let _ = self.orders.send(order);
    }

    /// Waits for the end, which [`Order::Leave`] or [`Order::Stop`] brings.
    pub(super) fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<I> Drop for Running<I> {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Driver<D: Dialog> {
    dialog: D,
    outlet: Outlet,
    clock: Clock,
    watch: Option<Watch<D::Wanted>>,
    watches: Watches<D::Input>,
    leave_by: Option<Instant>,
}

type Watches<I> = (Sender<WatchMessage<I>>, Receiver<WatchMessage<I>>);

/// The watch that is wanted.
struct Watch<W> {
    wanted: W,
    cancelled: Arc<AtomicBool>,
}

/// What a watch thread says.
#[derive(Debug)]
struct WatchMessage<I> {
    /// Whose it is: that of a watch that is no longer wanted is dropped.
    cancelled: Arc<AtomicBool>,
    input: I,
}

impl<D: Dialog> Driver<D> {
    fn run(mut self, orders: &Receiver<Order<D::Input>>) {
        loop {
            match orders.try_recv() {
                Ok(order) => {
                    if !self.obey(order) {
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
            if self.dialog.ask(self.clock) {
                continue;
            }
            let left = self.leave_by.is_some_and(|by| Instant::now() >= by);
            // The agent may have something to say because it found nothing to ask.
            if left || !self.deliver() || !self.wait(orders) {
                break;
            }
        }
        self.cancel_watch();
    }

    /// Waits for something to happen; whether to go on.
    fn wait(&mut self, orders: &Receiver<Order<D::Input>>) -> bool {
        let due = self.dialog.poll_timeout();
        let wait = due.map_or(IDLE_MOST, |due| due.since(self.clock.now()).min(IDLE_MOST));
        let wait = match self.leave_by {
            Some(by) => wait.min(by.saturating_duration_since(Instant::now())),
            None => wait,
        };
        let watches = self.watches.1.clone();
        crossbeam_channel::select! {
            recv(orders) -> order => match order {
                Ok(order) => self.obey(order),
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

    fn obey(&mut self, order: Order<D::Input>) -> bool {
        let now = self.clock.now();
        match order {
            Order::Stop => return false,
            Order::Take(input) => self.dialog.handle(input, now),
            Order::Leave(input) => {
                self.leave_by = Some(Instant::now() + LEAVE_MOST);
                self.dialog.handle(input, now);
            }
        }
        true
    }

    fn watched(&mut self, message: WatchMessage<D::Input>) {
        let current = self.watch.as_ref();
        let current =
            current.is_some_and(|watch| Arc::ptr_eq(&watch.cancelled, &message.cancelled));
        if current {
            self.dialog.handle(message.input, self.clock.now());
        }
    }

    /// Hands over what the agent has to say; whether to go on.
    fn deliver(&mut self) -> bool {
        while let Some(update) = self.dialog.poll_update() {
            if !self.outlet.update(update) {
                return false;
            }
        }
        while let Some(notice) = self.dialog.poll_notice() {
            let left = matches!(notice, SourceNotice::Left { .. });
            if !self.outlet.notice(notice) || left {
                return false;
            }
        }
        true
    }

    /// Opens the watch that the agent wants and lets go of the one that it does not.
    fn keep_watch(&mut self) {
        let wanted = self.dialog.wanted_watch(self.clock.now());
        if self.watch.as_ref().map(|watch| &watch.wanted) == wanted.as_ref() {
            return;
        }
        self.cancel_watch();
        let Some(wanted) = wanted else {
            return;
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        let mouth = Mouth {
            messages: self.watches.0.clone(),
            cancelled: Arc::clone(&cancelled),
        };
        let watcher = self.dialog.watcher(wanted.clone());
        self.watch = Some(Watch { wanted, cancelled });
        let thread = std::thread::Builder::new().name(format!("{}-watch", D::NAME));
        if let Err(error) = thread.spawn(move || watcher(&mouth)) {
            let input = D::watch_broke(format!("no thread for it: {error}"));
            self.dialog.handle(input, self.clock.now());
        }
    }

    fn cancel_watch(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.cancelled.store(true, Ordering::Relaxed);
        }
    }
}

/// What the thread of a watch speaks by.
#[derive(Debug)]
pub(super) struct Mouth<I> {
    messages: Sender<WatchMessage<I>>,
    cancelled: Arc<AtomicBool>,
}

impl<I> Mouth<I> {
    /// Whether the watch is still wanted.
    pub(super) fn is_wanted(&self) -> bool {
        !self.cancelled.load(Ordering::Relaxed)
    }

    /// Says what happened; whether the watch is still wanted.
    pub(super) fn say(&self, input: I) -> bool {
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
            if !self.is_wanted() {
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
