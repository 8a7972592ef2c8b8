//! What somebody should look at: said once in the log, and shown as long as it is so.
//!
//! The log gets ten lines a minute at most, whatever happens; what was left out is counted and said
//! with the next line.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tracing::warn;
use warren_core::units::Time;

use crate::rib::{Reconciler, SourceKind};

/// The alarms of the control plane.
#[derive(Debug)]
pub(super) struct Alarms {
    shown: Arc<RwLock<Vec<String>>>,
    lacks_subnet: Arc<AtomicBool>,
    /// What a source last complained of: why there is no subnet, while there is none.
    complaint: Option<String>,
    /// Lines that may be written, in thousandths.
    credit: u64,
    at: Time,
    left_out: u64,
}

impl Default for Alarms {
    fn default() -> Self {
        Self {
            shown: Arc::default(),
            lacks_subnet: Arc::default(),
            complaint: None,
            credit: LINES_PER_MINUTE * LINE,
            at: Time::ZERO,
            left_out: 0,
        }
    }
}

impl Alarms {
    /// Writes a line to the log, unless there are too many.
    pub(super) fn say(&mut self, now: Time, sentence: &str) {
        if !self.may_say(now) {
            self.left_out += 1;
            return;
        }
        match std::mem::take(&mut self.left_out) {
            0 => warn!("{sentence}"),
            left_out => warn!("{sentence} ({left_out} lines were left out before this one)"),
        }
    }

    /// A source complains; shown while this node lacks a subnet.
    pub(super) fn without_subnet(&mut self, complaint: String) {
        self.complaint = Some(complaint);
    }

    /// Shows what is so at present: what `others` say, and how the sources are. `lacks_subnet`: a source is to give this
    /// node one and has not.
    pub(super) fn show(
        &mut self,
        reconciler: &Reconciler,
        others: impl Iterator<Item = String>,
        lacks_subnet: bool,
    ) {
        self.lacks_subnet.store(lacks_subnet, Ordering::Relaxed);
        let mut alarms: Vec<String> = others.collect();
        if lacks_subnet {
            let why = self.complaint.iter().map(|why| format!(": {why}"));
            alarms.push(format!("no subnet claimed yet{}", why.collect::<String>()));
        } else {
            self.complaint = None;
        }
        for (kind, status) in reconciler.sources() {
            if let Some(why) = &status.lost {
                alarms.push(match kind {
                    SourceKind::Config | SourceKind::File => {
                        format!("files not taken; what was taken before holds: {why}")
                    }
                    SourceKind::Etcd | SourceKind::Kube | SourceKind::Bgp => {
                        format!("{kind} does not answer; routes stay as they are: {why}")
                    }
                });
            }
            if status.held > 0 {
                alarms.push(format!(
                    "{kind}: the withdrawal of {} entries is held; `tun-node confirm` applies it",
                    status.held
                ));
            }
            if status.quarantined > 0 {
                alarms.push(format!(
                    "{kind}: {} entries are not applied; `tun-node sources` says why",
                    status.quarantined
                ));
            }
        }
        if *self.shown.read() != alarms {
            *self.shown.write() = alarms;
        }
    }

    /// Where it is shown that this node lacks a subnet.
    pub(super) fn lacks_subnet(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.lacks_subnet)
    }

    /// Where the alarms are shown.
    pub(super) fn shown(&self) -> Arc<RwLock<Vec<String>>> {
        Arc::clone(&self.shown)
    }

    fn may_say(&mut self, now: Time) -> bool {
        let passed = now.since(self.at).min(Duration::from_secs(60));
        let gained = u64::try_from(passed.as_millis()).unwrap_or(0) * LINES_PER_MINUTE * LINE;
        // Only what makes a whole thousandth is taken, so that short steps lose nothing.
        let gained = gained / 60_000;
        if gained > 0 {
            self.at = now;
            self.credit = (self.credit + gained).min(LINES_PER_MINUTE * LINE);
        }
        let may = self.credit >= LINE;
        if may {
            self.credit -= LINE;
        }
        may
    }
}

const LINES_PER_MINUTE: u64 = 8;
const LINE: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_gets_a_few_lines_a_minute_and_then_more_again() {
        let mut alarms = Alarms::default();
        let second = |n: u64| Time::ZERO.after(Duration::from_millis(n * 100));
        let said = |alarms: &mut Alarms, from: u64, to: u64| {
            (from..to).filter(|n| alarms.may_say(second(*n))).count()
        };
        assert!((8..=10).contains(&said(&mut alarms, 0, 100)));
        let minute = said(&mut alarms, 100, 700);
        assert!((7..=9).contains(&minute), "{minute}");
    }
}
