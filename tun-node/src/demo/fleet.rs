//! The nodes of a demo as processes: starting them, hearing from them, ending them.
//!
//! ```text
//!  demo ──spawn──> tun-node run --rootless ──spawn──> tun-node demo agent   (one pair a node)
//!   │ ▲                 (wait thread: Ended)              │ ▲
//!   │ └── events ◄── reader thread ◄── answers, a line each┘ │
//!   └─────────────────────────────────── orders, a line each ┘
//! ```
//!
//! Each node is what a user runs: `tun-node run --rootless --config FILE -- COMMAND`. Everything
//! that happens arrives as an [`Event`] on one channel, signals too.
//!
//! No node outlives the demo, by three independent ties: the demo ends them ([`Fleet::stop`],
//! also on drop); the kernel sends them SIGTERM when the demo is gone; and an agent ends at the
//! end of its input, which the demo alone holds open, and a node ends with its command.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::DemoError;
use super::order::{Answer, Order, read_line, write_line};
use super::plan::Node;
use crate::sys::process;

/// The nodes that were started.
#[derive(Debug)]
pub(super) struct Fleet {
    members: Vec<Member>,
    events: Receiver<Event>,
    sender: Sender<Event>,
}

/// One node's processes.
#[derive(Debug)]
struct Member {
    name: String,
    log: PathBuf,
    /// `tun-node run`.
    pid: Pid,
    /// To the agent; `None` once it is closed.
    orders: Option<ChildStdin>,
    status: Option<ExitStatus>,
}

/// Something happened.
#[derive(Debug)]
enum Event {
    /// The agent of a node answered.
    Answer(usize, Answer),
    /// The agent of a node closed its output, or wrote what is no answer.
    Silent(usize),
    /// `tun-node run` of a node ended.
    Ended(usize, ExitStatus),
    /// The demo was asked to stop.
    Signal(i32),
    /// The command that had the terminal ended.
    ForegroundEnded,
}

impl Fleet {
    /// An empty fleet that listens to SIGINT, SIGTERM and SIGHUP from here on.
    ///
    /// # Errors
    ///
    /// The signal handlers could not be set up.
    pub(super) fn new() -> io::Result<Self> {
        let (sender, events) = crossbeam_channel::unbounded();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let to = sender.clone();
        thread::Builder::new()
            .name("demo-signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    if to.send(Event::Signal(signal)).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            members: Vec::new(),
            events,
            sender,
        })
    }

    /// Starts the next node, with an agent inside.
    ///
    /// To be called on the main thread: the kernel ties the node to the thread that starts it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn start(&mut self, program: &Path, node: &Node) -> io::Result<()> {
        let mut command = Command::new(program);
        command
            .args(["run", "--rootless", "--config"])
            .arg(&node.config)
            .arg("--")
            .arg(program)
            .args(["demo", "agent"])
            // Ctrl-C is for the demo, which ends its nodes in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&node.log)?);
        process::die_with_parent(&mut command, Signal::SIGTERM);
        let mut child = command.spawn()?;
        let index = self.members.len();
        let orders = child.stdin.take();
        let answers = child.stdout.take();
        self.members.push(Member {
            name: node.name.clone(),
            log: node.log.clone(),
            pid: Pid::from_raw(child.id().cast_signed()),
            orders,
            status: None,
        });
        if let Some(answers) = answers {
            self.listen(index, answers)?;
        }
        self.wait_for(index, child)
    }

    /// Gives an order to the agent of the node at `index`.
    ///
    /// # Errors
    ///
    /// [`DemoError::NodeEnded`] when it is not there to take it.
    pub(super) fn order(&mut self, index: usize, order: &Order) -> Result<(), DemoError> {
        let orders = self
            .members
            .get_mut(index)
            .and_then(|member| member.orders.as_mut());
        match orders.map(|orders| write_line(orders, order)) {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => Err(self.ended(index)),
        }
    }

    /// The next answer of any agent; `None` when there is none until `deadline`.
    ///
    /// # Errors
    ///
    /// [`DemoError::NodeEnded`] when a node is gone, [`DemoError::Interrupted`].
    pub(super) fn next_answer(
        &mut self,
        deadline: Instant,
    ) -> Result<Option<(usize, Answer)>, DemoError> {
        match self.events.recv_deadline(deadline) {
            Ok(Event::Answer(index, answer)) => Ok(Some((index, answer))),
            Ok(Event::Silent(index)) => Err(self.ended(index)),
            Ok(Event::Ended(index, status)) => {
                self.note_end(index, status);
                Err(self.ended(index))
            }
            Ok(Event::Signal(signal)) => Err(DemoError::Interrupted { signal }),
            Ok(Event::ForegroundEnded) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("the fleet itself holds a sender")
            }
        }
    }

    /// Waits for a signal, or until a node is gone.
    pub(super) fn wait_for_signal(&mut self) -> DemoError {
        loop {
            match self.next_answer(Instant::now() + Duration::from_secs(3600)) {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    /// Runs `command` with this terminal until it ends, or the demo is told to.
    ///
    /// Ctrl-C is the command's while it runs.
    ///
    /// # Errors
    ///
    /// [`DemoError::Start`], [`DemoError::Interrupted`] by SIGTERM or SIGHUP.
    pub(super) fn run_in_foreground(&mut self, mut command: Command) -> Result<(), DemoError> {
        process::die_with_parent(&mut command, Signal::SIGHUP);
        let failed = |source| DemoError::Start {
            what: "a shell".to_owned(),
            source,
        };
        let mut child = command.spawn().map_err(failed)?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let to = self.sender.clone();
        thread::Builder::new()
            .name("demo-shell".to_owned())
            .spawn(move || {
                let _ = child.wait();
                let _ = to.send(Event::ForegroundEnded);
            })
            .map_err(failed)?;
        loop {
            match self.events.recv() {
                Ok(Event::ForegroundEnded) => return Ok(()),
                Ok(Event::Signal(SIGINT)) => {}
                Ok(Event::Signal(signal)) => {
                    let _ = kill(pid, Signal::SIGHUP);
                    return Err(DemoError::Interrupted { signal });
                }
                // The user may end nodes from the shell.
                Ok(Event::Ended(index, status)) => self.note_end(index, status),
                Ok(Event::Answer(..) | Event::Silent(_)) => {}
                Err(_) => unreachable!("the fleet itself holds a sender"),
            }
        }
    }

    /// Ends every node and returns when all are gone: the end of their input first, which is
    /// enough for nodes that work; then SIGTERM; then SIGKILL.
    pub(super) fn stop(&mut self) {
        for member in &mut self.members {
            member.orders = None;
        }
        for (signal, patience) in [
            (None, Duration::from_secs(1)),
            (Some(Signal::SIGTERM), Duration::from_secs(2)),
            (Some(Signal::SIGKILL), Duration::from_secs(2)),
        ] {
            let running = self.members.iter().filter(|member| member.status.is_none());
            if let Some(signal) = signal {
                for member in running {
                    // Its end was not heard of, so the number is still its own but for a race
                    // of microseconds. The agent is in its group.
                    let group = if signal == Signal::SIGKILL { -1 } else { 1 };
                    let _ = kill(Pid::from_raw(member.pid.as_raw() * group), signal);
                }
            }
            let deadline = Instant::now() + patience;
            while self.members.iter().any(|member| member.status.is_none()) {
                match self.events.recv_deadline(deadline) {
                    Ok(Event::Ended(index, status)) => self.note_end(index, status),
                    Ok(
                        Event::Answer(..)
                        | Event::Silent(_)
                        | Event::Signal(_)
                        | Event::ForegroundEnded,
                    ) => {}
                    Err(_) => break,
                }
            }
        }
    }

    fn note_end(&mut self, index: usize, status: ExitStatus) {
        if let Some(member) = self.members.get_mut(index) {
            member.status = Some(status);
            member.orders = None;
        }
    }

    /// What to say of a node that is gone, or whose agent is: its status and last words.
    ///
    /// The end of an agent's output comes a moment before the end of its node.
    fn ended(&mut self, index: usize) -> DemoError {
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.members.get(index).is_some_and(|m| m.status.is_none()) {
            match self.events.recv_deadline(deadline) {
                Ok(Event::Ended(index, status)) => self.note_end(index, status),
                Ok(Event::Answer(..) | Event::Silent(_) | Event::ForegroundEnded) => {}
                Ok(Event::Signal(signal)) => return DemoError::Interrupted { signal },
                Err(_) => break,
            }
        }
        let Some(member) = self.members.get(index) else {
            return DemoError::Unexpected;
        };
        DemoError::NodeEnded {
            name: member.name.clone(),
            how: member
                .status
                .map_or_else(|| "its agent ended".to_owned(), |status| status.to_string()),
            last_words: last_words(&member.log),
        }
    }

    /// Reads the agent's answers until they end.
    fn listen(&self, index: usize, answers: impl Read + Send + 'static) -> io::Result<()> {
        let to = self.sender.clone();
        thread::Builder::new()
            .name(format!("demo-hear-{index}"))
            .spawn(move || {
                let mut answers = BufReader::new(answers);
                while let Ok(Some(answer)) = read_line(&mut answers) {
                    if to.send(Event::Answer(index, answer)).is_err() {
                        return;
                    }
                }
                let _ = to.send(Event::Silent(index));
            })?;
        Ok(())
    }

    /// Reaps the node.
    fn wait_for(&self, index: usize, mut child: Child) -> io::Result<()> {
        let to = self.sender.clone();
        thread::Builder::new()
            .name(format!("demo-wait-{index}"))
            .spawn(move || {
                let status = child.wait().unwrap_or_default();
                let _ = to.send(Event::Ended(index, status));
            })?;
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The last line that a node wrote to its log; empty when it wrote none.
fn last_words(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_OCTETS)))?;
        let mut tail = Vec::new();
        file.take(TAIL_OCTETS).read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).into_owned())
    };
    let tail = read().unwrap_or_default();
    let last = tail.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or_default().trim().to_owned()
}

const TAIL_OCTETS: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_the_last_line_that_is_not_empty() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(last_words(file.path()), "");
        std::fs::write(
            file.path(),
            format!("{}\nfirst\n the last \n\n", "x".repeat(9000)),
        )
        .unwrap();
        assert_eq!(last_words(file.path()), "the last");
        assert_eq!(last_words(Path::new("/nowhere/at/all")), "");
    }
}
