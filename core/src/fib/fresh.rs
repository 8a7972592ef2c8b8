//! The cache lines that a publication has made anew, for readers to ask for all at once.
//!
//! What a change writes a reader on another core has in none of its caches. Where the two cores have no cache in common,
//! a line takes a fifth of a microsecond, and a lookup that comes upon one waits for it: of a hundred changes there are
//! some eight hundred such lines, met one by one. Asked for in a row they come side by side. So the writer notes what
//! lookups will read of what it has written, a snapshot has the list, and whoever takes the snapshot up asks for it
//! ([`FibReader::ask_for_changes`](super::FibReader::ask_for_changes)).
//!
//! It is a hint and no more: what is not in the list, or has gone since, costs nothing but the time that it was to save.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Lines that were written since the last publication.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// The address of a line each, and in the bits below how many lines follow each other from there on.
    runs: Vec<u64>,
    /// How many lines there are in all.
    lines: usize,
}

impl Fresh {
    /// Notes the lines of `octets` octets at `address`, if lookups ask for lines on this machine.
    pub(super) fn note(&mut self, address: usize, octets: usize) {
        if !cfg!(target_arch = "x86_64") || octets == 0 || self.lines > MOST {
            return;
        }
        let mut line = (address & !(LINE - 1)) as u64;
        let mut lines = (address % LINE + octets).div_ceil(LINE);
        self.lines += lines;
        while lines > 0 {
            let run = lines.min(LINE - 1);
            self.runs.push(line | run as u64);
            line = line.wrapping_add((run * LINE) as u64);
            lines -= run;
        }
    }

    /// What was noted, for a snapshot; nothing when it was more than is worth to be asked for at once.
    pub(super) fn take(&mut self) -> Box<[u64]> {
        let known = self.lines <= MOST;
        let runs = if known {
            self.runs.as_slice().into()
        } else {
            Box::default()
        };
        self.runs.clear();
        self.lines = 0;
        runs
    }

    pub(super) fn octets(&self) -> usize {
        self.runs.capacity() * size_of::<u64>()
    }
}

/// The lines of a list: address and count of each run.
#[cfg(target_arch = "x86_64")]
#[expect(clippy::cast_possible_truncation, reason = "x86-64 has 64 bits")]
pub(super) fn runs(fresh: &[u64]) -> impl Iterator<Item = (usize, usize)> {
    let below = LINE - 1;
    fresh
        .iter()
        .map(move |run| (*run as usize & !below, *run as usize & below))
}

/// Octets of a cache line.
pub(super) const LINE: usize = 64;
/// Lines that are asked for at most: as many as some thousand changes make anew.
const MOST: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_line_of_what_was_noted_is_in_the_list() {
        let mut fresh = Fresh::default();
        for (address, octets) in [(128, 64), (200, 1), (255, 2), (0, 64 * 200), (640, 0)] {
            fresh.note(address, octets);
        }
        let list = fresh.take();
        let lines: Vec<usize> = runs(&list)
            .flat_map(|(line, count)| (0..count).map(move |at| line + at * LINE))
            .collect();
        let expected = [128, 192, 192, 256]
            .into_iter()
            .chain((0..200).map(|at| at * LINE));
        assert!(lines.into_iter().eq(expected));
        assert!(fresh.take().is_empty(), "taken");
    }

    #[test]
    fn more_lines_than_are_worth_it_are_none() {
        let mut fresh = Fresh::default();
        for at in 0..2 * MOST {
            fresh.note(at * LINE, LINE);
        }
        assert!(fresh.runs.len() <= MOST + 1);
        assert!(fresh.take().is_empty());
        fresh.note(0, 1);
        assert_eq!(
            fresh.take().len(),
            usize::from(cfg!(target_arch = "x86_64"))
        );
    }
}
