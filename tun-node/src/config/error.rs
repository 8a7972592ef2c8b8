//! What is wrong with a configuration file, and where.
//!
//! Every other file of this room reports through [`Problems`]: an octet offset and a sentence. Only
//! here do offsets become lines and columns, so that a complaint always reads
//! `file:line:column: sentence`, the form editors and people jump to. Nothing here knows TOML.

use std::fmt;

/// One thing wrong, at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, counted from 1; `None` when the file as a whole is meant (unreadable, too large).
    pub line: Option<usize>,
    /// Column in characters, counted from 1; 0 when `line` is `None`.
    pub column: usize,
    /// What is wrong and what to do about it.
    pub sentence: String,
}

/// All problems of one configuration file, in the order of its lines.
///
/// Prints one problem a line, each as `file:line:column: sentence`; after the first
/// 1000 only their number is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file name as the user gave it.
    pub file: String,
    /// Never empty; sorted by line, then column.
    pub problems: Vec<Problem>,
    /// How many more there are: only the first 10,000 are kept.
    pub not_noted: usize,
}

impl ConfigError {
    /// A problem of the file as a whole.
    pub(super) fn whole_file(file: &str, sentence: String) -> Self {
        Self {
            file: file.to_owned(),
            problems: vec![Problem {
                line: None,
                column: 0,
                sentence,
            }],
            not_noted: 0,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, problem) in self.problems.iter().take(PROBLEMS_SHOWN).enumerate() {
            if count > 0 {
                writeln!(f)?;
            }
            match problem.line {
                Some(line) => write!(f, "{}:{line}:{}: ", self.file, problem.column)?,
                None => write!(f, "{}: ", self.file)?,
            }
            f.write_str(&problem.sentence)?;
        }
        let unseen = self.problems.len().saturating_sub(PROBLEMS_SHOWN) + self.not_noted;
        if unseen > 0 {
            write!(f, "\n{}: and {unseen} more problems", self.file)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// A value and the octet offset in the file where it was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// Collects problems while a file is read, so that one run names all of them.
#[derive(Debug, Default)]
pub(super) struct Problems {
    noted: Vec<(usize, String)>,
    /// All, with those beyond [`PROBLEMS_NOTED`].
    found: usize,
}

impl Problems {
    /// Notes `sentence` for the text that starts at octet `at`.
    pub(super) fn push(&mut self, at: usize, sentence: impl Into<String>) {
        self.found += 1;
        if self.noted.len() < PROBLEMS_NOTED {
            self.noted.push((at, sentence.into()));
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.found
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.found == 0
    }

    /// Takes the problems of a part of the text out, with offsets into that part.
    pub(super) fn split_off(&mut self, part: std::ops::Range<usize>) -> Self {
        let (own, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.noted)
            .into_iter()
            .partition(|(at, _)| part.contains(at));
        self.found -= own.len();
        self.noted = rest;
        let noted = own.into_iter();
        let noted: Vec<_> = noted.map(|(at, text)| (at - part.start, text)).collect();
        Self {
            found: noted.len(),
            noted,
        }
    }

    /// The entry of `known` that `word` was probably meant to be.
    ///
    /// Only for the first problems, and only among so many entries: comparing every word with
    /// every other would take minutes for a file of the largest size.
    pub(super) fn did_you_mean<'k>(
        &self,
        word: &str,
        known: impl IntoIterator<Item = &'k str>,
    ) -> Option<&'k str> {
        if self.found >= PROBLEMS_WITH_SUGGESTION {
            return None;
        }
        did_you_mean(word, known.into_iter().take(WORDS_COMPARED))
    }

    /// Turns offsets into lines and columns of `text`.
    pub(super) fn into_error(mut self, file: &str, text: &str) -> ConfigError {
        let not_noted = self.found - self.noted.len();
        self.noted.sort();
        self.noted.dedup();
        let lines = Lines::new(text);
        // Offsets rise, so each column is counted on from the one before it in its line.
        let (mut counted_to, mut column) = (0, 1);
        let place = |(at, sentence)| {
            let (line, start) = lines.line_and_start(at);
            if start > counted_to {
                (counted_to, column) = (start, 1);
            }
            column += text
                .get(counted_to..at)
                .map_or(0, |between| between.chars().count());
            counted_to = at;
            Problem {
                line: Some(line),
                column,
                sentence,
            }
        };
        ConfigError {
            file: file.to_owned(),
            problems: self.noted.into_iter().map(place).collect(),
            not_noted,
        }
    }
}

/// Where each line of a text starts.
#[derive(Debug)]
pub(super) struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    pub(super) fn new(text: &str) -> Self {
        let after_newline = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            starts: std::iter::once(0).chain(after_newline).collect(),
        }
    }

    /// The line, counted from 1, that the octet `at` is in.
    pub(super) fn line(&self, at: usize) -> usize {
        self.line_and_start(at).0
    }

    fn line_and_start(&self, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|&start| start <= at);
        let start = line.checked_sub(1).and_then(|index| self.starts.get(index));
        (line, start.copied().unwrap_or(0))
    }
}

/// The entry of `known` that differs least from `word`, if the difference is small enough.
fn did_you_mean<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if word.len() > LONGEST_WORD_COMPARED {
        return None;
    }
    let simple = |text: &str| text.to_ascii_lowercase().replace('_', "-");
    let word = simple(word);
    known
        .into_iter()
        .map(|candidate| (edit_distance(&word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= 2 && distance * 2 < candidate.len())
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `from` into `to`.
fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    let mut last_char = None;
    for (row, from_char) in from.chars().enumerate() {
        let mut current = vec![row + 1];
        let mut left = row + 1;
        for (column, &to_char) in to.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX);
            let replace = at(&above, column) + usize::from(from_char != to_char);
            let mut best = replace.min(at(&above, column + 1) + 1).min(left + 1);
            let swapped =
                column > 0 && last_char == Some(to_char) && to.get(column - 1) == Some(&from_char);
            if swapped && !before.is_empty() {
                best = best.min(at(&before, column - 1) + 1);
            }
            current.push(best);
            left = best;
        }
        before = std::mem::replace(&mut above, current);
        last_char = Some(from_char);
    }
    above.last().copied().unwrap_or(usize::MAX)
}

/// The user's own text in quotes: escaped, so that it cannot drive a terminal, and cut to a
/// length that leaves the sentence readable.
pub(super) fn quoted(text: &str) -> String {
    if text.chars().count() <= QUOTED_CHARS {
        return format!("{text:?}");
    }
    let head: String = text.chars().take(QUOTED_CHARS).collect();
    format!("{:?}...", head)
}

/// What a person might still read.
const PROBLEMS_SHOWN: usize = 1000;
/// Bounds the memory that a hostile file can make its own error take.
const PROBLEMS_NOTED: usize = 10_000;
const PROBLEMS_WITH_SUGGESTION: usize = 100;
const WORDS_COMPARED: usize = 1000;
const LONGEST_WORD_COMPARED: usize = 40;
const QUOTED_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_lines_start_at_one() {
        let mut problems = Problems::default();
        for at in [10, 6, 3, 1, 0, 7] {
            problems.push(at, "x");
        }
        let error = problems.into_error("f", "ab\nä = 1\n");
        assert_eq!(
            error.to_string(),
            "f:1:1: x\nf:1:2: x\nf:2:1: x\nf:2:3: x\nf:2:4: x\nf:3:1: x"
        );
        let mut problems = Problems::default();
        problems.push(0, "x");
        assert_eq!(problems.into_error("f", "").to_string(), "f:1:1: x");
    }

    #[test]
    fn problems_beyond_the_bound_are_counted() {
        let mut problems = Problems::default();
        let text = "\n".repeat(PROBLEMS_NOTED + 7);
        for at in 0..text.len() {
            problems.push(at, "x");
        }
        let error = problems.into_error("f", &text);
        assert_eq!(error.problems.len(), PROBLEMS_NOTED);
        assert_eq!(error.not_noted, 7);
        let text = error.to_string();
        assert_eq!(text.lines().count(), PROBLEMS_SHOWN + 1);
        assert_eq!(text.lines().last(), Some("f: and 9007 more problems"));
    }

    #[test]
    fn close_words_are_suggested_and_distant_ones_are_not() {
        let known = ["address", "name", "vni", "mtu"];
        assert_eq!(did_you_mean("adress", known), Some("address"));
        assert_eq!(did_you_mean("nmae", known), Some("name"));
        assert_eq!(did_you_mean("VNI", known), Some("vni"));
        assert_eq!(did_you_mean("colour", known), None);
        assert_eq!(did_you_mean("x", known), None);
        assert_eq!(did_you_mean("mtu_", ["mtu-", "mtu"]), Some("mtu-"));
    }

    #[test]
    fn edit_distance_counts_a_swap_once() {
        assert_eq!(edit_distance("name", "name"), 0);
        assert_eq!(edit_distance("nmae", "name"), 1);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", ""), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }

    #[test]
    fn quoted_text_is_escaped_and_bounded() {
        assert_eq!(quoted("a\u{1b}[31m"), "\"a\\u{1b}[31m\"");
        assert_eq!(quoted(&"x".repeat(1000)).len(), QUOTED_CHARS + 2 + 3);
    }
}
