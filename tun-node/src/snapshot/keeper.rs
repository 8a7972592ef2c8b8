//! When the state is saved, and by whom: a thread of its own, so that a slow disk delays nothing.
//!
//! The control thread says that something changed and, when the time has come, hands over a
//! [`Saved`]; encoding and writing happen on the thread "keeper". A change is saved when it was
//! quiet for 200 ms, and after two seconds at the latest; without a change every five minutes, so
//! that the age of what is remembered stays true. A save that fails is tried again, with the newest
//! state there is, after a second, two, four and so on up to a minute, until it succeeds.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing::{info, warn};
use warren_core::units::Time;

use super::Saved;
use super::file::{StateFile, StateFileError};

/// Saves a node's state whenever it is due. Dropping it saves what was handed over last, once.
pub struct Keeper {
    schedule: Schedule,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// How saving goes, for people and metrics.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeeperReport {
    /// Generations on the disk since the start.
    pub saved: u64,
    /// Saves that failed since the start.
    pub failed: u64,
    /// Why the last one failed; `None` when it did not.
    pub alarm: Option<String>,
    /// When the last one succeeded.
    pub last: Option<Instant>,
}

impl Keeper {
    /// Starts the thread that writes `file`.
    ///
    /// # Errors
    ///
    /// The kernel's, when there can be no thread.
    pub fn start(file: StateFile) -> std::io::Result<Self> {
        Self::with_writer(move |saved| file.store(saved))
    }

    fn with_writer(
        store: impl FnMut(&Saved) -> Result<(), StateFileError> + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("keeper".to_owned());
        let its = Arc::clone(&shared);
        let thread = thread.spawn(move || its.run(store))?;
        Ok(Self {
            schedule: Schedule::default(),
            shared,
            thread: Some(thread),
        })
    }

    /// Something changed that is to be remembered.
    pub fn changed(&mut self, now: Time) {
        self.schedule.changed(now);
    }

    /// When the state is to be handed over next.
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        self.schedule.poll_timeout()
    }

    /// Takes the state to be saved, without waiting. One that was handed over before and is not
    /// written yet is forgotten.
    pub fn save(&mut self, saved: Saved, now: Time) {
        self.schedule.handed_over(now);
        self.shared.inbox.lock().newest = Some(saved);
        self.shared.arrived.notify_one();
    }

    /// How it goes.
    #[must_use]
    pub fn report(&self) -> KeeperReport {
        self.shared.report.lock().clone()
    }

    /// For another thread.
    #[must_use]
    pub fn reader(&self) -> KeeperReader {
        KeeperReader {
            shared: Arc::clone(&self.shared),
        }
    }
}

/// How saving goes, for another thread.
#[derive(Clone, Debug)]
pub struct KeeperReader {
    shared: Arc<Shared>,
}

impl KeeperReader {
    /// Why the last save failed; `None` when it did not.
    #[must_use]
    pub fn alarm(&self) -> Option<String> {
        self.shared.report.lock().alarm.clone()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.inbox.lock().ends = true;
        self.shared.arrived.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("schedule", &self.schedule)
            .finish_non_exhaustive()
    }
}

/// When the next save is due; a clock is an argument.
#[derive(Debug, Default)]
struct Schedule {
    /// The first and the last change that is not handed over.
    unsaved: Option<(Time, Time)>,
    saved: Time,
}

impl Schedule {
    fn changed(&mut self, now: Time) {
        let first = self.unsaved.map_or(now, |(first, _)| first);
        self.unsaved = Some((first, now));
    }

    const fn handed_over(&mut self, now: Time) {
        self.unsaved = None;
        self.saved = now;
    }

    fn poll_timeout(&self) -> Time {
        let refresh = self.saved.after(REFRESH);
        match self.unsaved {
            Some((first, last)) => first.after(WAIT_MOST).min(last.after(QUIET)).min(refresh),
            None => refresh,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    report: Mutex<KeeperReport>,
}

#[derive(Debug, Default)]
struct Inbox {
    newest: Option<Saved>,
    ends: bool,
}

impl Shared {
    fn run(&self, mut store: impl FnMut(&Saved) -> Result<(), StateFileError>) {
        // What could not be written, and when it is tried again.
        let mut owed: Option<(Saved, Instant)> = None;
        let mut patience = RETRY_LEAST;
        loop {
            let (saved, ends) = {
                let mut inbox = self.inbox.lock();
                let retry = owed.as_ref().map(|(_, at)| *at);
                while inbox.newest.is_none()
                    && !inbox.ends
                    && retry.is_none_or(|at| Instant::now() < at)
                {
                    match retry {
                        Some(at) => drop(self.arrived.wait_until(&mut inbox, at)),
                        None => self.arrived.wait(&mut inbox),
                    }
                }
                (inbox.newest.take(), inbox.ends)
            };
            // While the disk fails a newer state waits for the retry like the old one.
            let (saved, due) = match (saved, owed.take()) {
                (Some(new), Some((_, at))) => (new, at),
                (Some(new), None) => (new, Instant::now()),
                (None, Some((old, at))) => (old, at),
                (None, None) if ends => return,
                (None, None) => continue,
            };
            if !ends && Instant::now() < due {
                owed = Some((saved, due));
                continue;
            }
            match store(&saved) {
                Ok(()) => {
                    patience = RETRY_LEAST;
                    self.succeeded();
                }
                Err(error) => {
                    self.failed(&error);
                    owed = Some((saved, Instant::now() + patience));
                    patience = (patience * 2).min(RETRY_MOST);
                }
            }
            if ends {
                return;
            }
        }
    }

    fn succeeded(&self) {
        let mut report = self.report.lock();
        report.saved += 1;
        report.last = Some(Instant::now());
        if report.alarm.take().is_some() {
            info!("the state is saved again");
        }
    }

    fn failed(&self, error: &StateFileError) {
        let mut report = self.report.lock();
        report.failed += 1;
        let alarm = format!("the state is not saved: {error}");
        // Once for each reason, not for each try.
        if report.alarm.as_ref() != Some(&alarm) {
            warn!("{alarm}; it is tried again");
        }
        report.alarm = Some(alarm);
    }
}

const QUIET: Duration = Duration::from_millis(200);
const WAIT_MOST: Duration = Duration::from_secs(2);
const REFRESH: Duration = Duration::from_secs(300);
const RETRY_LEAST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn ms(n: u64) -> Time {
        Time::from_nanos(n * 1_000_000)
    }

    #[test]
    fn a_change_is_saved_when_it_is_quiet_and_a_storm_after_two_seconds() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.poll_timeout(), ms(300_000));
        schedule.changed(ms(1000));
        assert_eq!(schedule.poll_timeout(), ms(1200));
        schedule.changed(ms(1100));
        assert_eq!(schedule.poll_timeout(), ms(1300));
        for now in (1100..4000).step_by(50) {
            schedule.changed(ms(now));
        }
        assert_eq!(schedule.poll_timeout(), ms(3000));
        schedule.handed_over(ms(3000));
        assert_eq!(schedule.poll_timeout(), ms(303_000));
    }

    #[test]
    fn a_disk_that_fails_is_tried_again_with_the_newest_state() {
        let (tries, tried) = crossbeam_channel::unbounded();
        let mut full = 2;
        let mut keeper = Keeper::with_writer(move |saved: &Saved| {
            tries.send(saved.node.clone()).expect("the test listens");
            full -= 1;
            if full < 0 {
                return Ok(());
            }
            Err(StateFileError::Io {
                operation: "writing",
                path: PathBuf::from("state"),
                source: std::io::Error::from_raw_os_error(libc::ENOSPC),
            })
        })
        .expect("a thread");
        let named = |node: &str| Saved {
            node: node.to_owned(),
            ..Saved::default()
        };
        keeper.save(named("first"), ms(1));
        assert_eq!(tried.recv().as_deref(), Ok("first"));
        keeper.save(named("second"), ms(2));
        let until = |holds: &dyn Fn(&KeeperReport) -> bool| {
            crate::testing::eventually(|| holds(&keeper.report()));
            keeper.report().alarm
        };
        let alarm = until(&|report| report.failed == 1).expect("it failed");
        assert!(alarm.contains("not saved: writing state"), "{alarm}");
        // The third try, 1 s and 2 s later, is the one that succeeds.
        for _ in 0..2 {
            assert_eq!(tried.recv().as_deref(), Ok("second"));
        }
        assert_eq!(until(&|report| report.saved == 1), None);
        keeper.save(named("third"), ms(3));
        assert_eq!(tried.recv().as_deref(), Ok("third"));
        drop(keeper);
        assert!(tried.try_recv().is_err());
    }

    #[test]
    fn the_end_saves_what_was_handed_over() {
        let (tries, tried) = crossbeam_channel::unbounded();
        let mut keeper = Keeper::with_writer(move |saved: &Saved| {
            tries.send(saved.node.clone()).expect("the test listens");
            Ok(())
        })
        .expect("a thread");
        let node = "last".to_owned();
        let saved = Saved {
            node,
            ..Saved::default()
        };
        keeper.save(saved, ms(1));
        drop(keeper);
        assert_eq!(tried.try_iter().last().as_deref(), Some("last"));
    }
}
