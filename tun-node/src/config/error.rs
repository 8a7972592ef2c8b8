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
        let unseen = self.problems.len().saturating_sub(PROBLEMS_SHOWN);
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
    found: Vec<(usize, String)>,
}

impl Problems {
    /// Notes `sentence` for the text that starts at octet `at`.
    pub(super) fn push(&mut self, at: usize, sentence: impl Into<String>) {
        self.found.push((at, sentence.into()));
    }

    pub(super) fn len(&self) -> usize {
        self.found.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Turns offsets into lines and columns of `text`.
    pub(super) fn into_error(mut self, file: &str, text: &str) -> ConfigError {
        self.found.sort();
        self.found.dedup();
        let lines = Lines::new(text);
        let problems = self
            .found
            .into_iter()
            .map(|(at, sentence)| {
                let (line, column) = lines.position(at);
                Problem {
                    line: Some(line),
                    column,
                    sentence,
                }
            })
            .collect();
        ConfigError {
            file: file.to_owned(),
            problems,
        }
    }
}

/// Where each line of a text starts.
#[derive(Debug)]
pub(super) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let after_newline = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            text,
            starts: std::iter::once(0).chain(after_newline).collect(),
        }
    }

    /// Line and column, both from 1; the column counts characters, as editors do.
    pub(super) fn position(&self, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|&start| start <= at);
        let start = line
            .checked_sub(1)
            .and_then(|index| self.starts.get(index))
            .copied()
            .unwrap_or(0);
        let before = self.text.get(start..at).unwrap_or("");
        (line.max(1), before.chars().count() + 1)
    }

    pub(super) fn line(&self, at: usize) -> usize {
        self.position(at).0
    }
}

/// The entry of `known` that `word` was probably meant to be, if one is close enough.
pub(super) fn did_you_mean<'k>(
    word: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
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

const PROBLEMS_SHOWN: usize = 1000;
const LONGEST_WORD_COMPARED: usize = 40;
const QUOTED_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_lines_start_at_one() {
        let lines = Lines::new("ab\nä = 1\n");
        assert_eq!(lines.position(0), (1, 1));
        assert_eq!(lines.position(1), (1, 2));
        assert_eq!(lines.position(3), (2, 1));
        assert_eq!(lines.position(6), (2, 3));
        assert_eq!(lines.position(10), (3, 1));
        assert_eq!(Lines::new("").position(0), (1, 1));
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
