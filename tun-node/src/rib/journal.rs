//! The last things that happened, for people; bounded whatever happens.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use warren_core::units::Time;

use super::update::SourceKind;

/// Something that happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JournalEntry {
    /// One more than that of the entry before; a gap was dropped.
    pub number: u64,
    /// When.
    pub at: Time,
    /// In which source.
    pub source: SourceKind,
    /// What.
    pub what: What,
    /// To which prefix or key; printable.
    pub subject: Arc<str>,
    /// More; may be empty.
    pub detail: String,
}

/// What happened.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum What {
    /// A route is new.
    Added,
    /// A route leads elsewhere.
    Changed,
    /// A route is gone.
    Withdrawn,
    /// Withdrawals were held back.
    Held,
    /// Held withdrawals were applied.
    Released,
    /// An entry was quarantined.
    Quarantined,
    /// An entry left the quarantine.
    Cleared,
    /// Remembered entries were restored.
    Restored,
    /// A remembered entry was not confirmed in time.
    AgedOut,
    /// The source delivered everything that it has.
    Synced,
    /// The source does not answer.
    Lost,
    /// More of the same in one step than is listed.
    More,
}

impl What {
    /// The word in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Withdrawn => "withdrawn",
            Self::Held => "held",
            Self::Released => "released",
            Self::Quarantined => "quarantined",
            Self::Cleared => "cleared",
            Self::Restored => "restored",
            Self::AgedOut => "aged-out",
            Self::Synced => "synced",
            Self::Lost => "lost",
            Self::More => "more",
        }
    }
}

/// A ring of the last entries.
#[derive(Debug)]
pub struct Journal {
    entries: VecDeque<JournalEntry>,
    next: u64,
    /// How many were written in the present step.
    in_step: usize,
    left_out: usize,
    /// How often each thing happened, listed or not.
    counts: HashMap<(SourceKind, What), u64>,
}

impl Journal {
    /// Entries kept.
    pub const LEN: usize = 2048;
    /// Entries written in one step; the rest become one line.
    pub const STEP_LEN: usize = 256;

    pub(super) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            next: 1,
            in_step: 0,
            left_out: 0,
            counts: HashMap::new(),
        }
    }

    /// Writes an entry; `detail` is asked for only if it is kept.
    pub(super) fn push(
        &mut self,
        at: Time,
        source: SourceKind,
        what: What,
        subject: &Arc<str>,
        detail: impl FnOnce() -> String,
    ) {
        *self.counts.entry((source, what)).or_default() += 1;
        if self.in_step >= Self::STEP_LEN {
            self.left_out += 1;
            return;
        }
        self.in_step += 1;
        self.keep(at, source, what, Arc::clone(subject), detail());
    }

    /// Ends a step.
    pub(super) fn end_step(&mut self, at: Time, source: SourceKind) {
        self.in_step = 0;
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            let detail = format!("{left_out} more changes in this step");
            self.keep(at, source, What::More, Arc::from(""), detail);
        }
    }

    /// The entries with a number above `after`, oldest first.
    pub fn since(&self, after: u64) -> impl Iterator<Item = &JournalEntry> {
        let entries = self.entries.iter();
        entries.skip_while(move |entry| entry.number <= after)
    }

    /// How often each thing happened in each source since the start.
    pub fn counts(&self) -> impl Iterator<Item = (SourceKind, What, u64)> {
        let counts = self.counts.iter();
        counts.map(|((source, what), count)| (*source, *what, *count))
    }

    fn keep(
        &mut self,
        at: Time,
        source: SourceKind,
        what: What,
        subject: Arc<str>,
        detail: String,
    ) {
        if self.entries.len() >= Self::LEN {
            self.entries.pop_front();
        }
        self.entries.push_back(JournalEntry {
            number: self.next,
            at,
            source,
            what,
            subject,
            detail,
        });
        self.next += 1;
    }
}
