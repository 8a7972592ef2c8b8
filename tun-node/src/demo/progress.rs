//! One line a phase on standard error: what goes on, how far it is, how it ended.
//!
//! On a terminal the line is rewritten while the phase runs; elsewhere (a pipe, a log) it is
//! written once, at the phase's end. In silence (`--json`) nothing is written.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Where progress goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Progress {
    /// Lines that are rewritten.
    Terminal,
    /// A line at each phase's end.
    Lines,
    /// Nothing.
    Silent,
}

impl Progress {
    /// To standard error, unless `silent`.
    pub(super) fn new(silent: bool) -> Self {
        if silent {
            Self::Silent
        } else if std::io::stderr().is_terminal() {
            Self::Terminal
        } else {
            Self::Lines
        }
    }

    /// Begins a phase.
    pub(super) fn phase(self, title: impl Into<String>) -> Phase {
        let phase = Phase {
            to: self,
            title: title.into(),
            start: Instant::now(),
            open: true,
        };
        phase.update("");
        phase
    }
}

/// A phase that runs.
#[derive(Debug)]
pub(super) struct Phase {
    to: Progress,
    title: String,
    start: Instant,
    open: bool,
}

impl Phase {
    /// Shows how far it is.
    pub(super) fn update(&self, state: &str) {
        if let Progress::Terminal = self.to {
            write(&format!("\r{} ... {state}\x1b[K", self.title));
        }
    }

    /// Ends it well.
    pub(super) fn done(mut self, outcome: &str) {
        self.open = false;
        let line = format!(
            "{}: {outcome} ({:.2} s)\n",
            self.title,
            self.elapsed().as_secs_f64()
        );
        match self.to {
            Progress::Terminal => write(&format!("\r{}\x1b[K", line.trim_end())),
            Progress::Lines => return write(&line),
            Progress::Silent => return,
        }
        write("\n");
    }

    /// Since it began.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A phase that ends badly leaves its line as it stands; the error's sentence goes below it.
impl Drop for Phase {
    fn drop(&mut self) {
        if let (Progress::Terminal, true) = (self.to, self.open) {
            write("\n");
        }
    }
}

/// Progress that nobody can read is no reason to stop.
fn write(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
