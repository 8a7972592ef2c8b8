//! What the log says of peers that go and come back: a line a second at most, however many there
//! are.

use std::time::Duration;

use tracing::warn;
use warren_core::units::Time;

/// Peers that went or came back and were not named yet.
#[derive(Debug, Default)]
pub(super) struct Notices {
    gone: Vec<String>,
    back: Vec<String>,
    said: Option<Time>,
}

impl Notices {
    /// No encapsulation of `peer` is answered any more.
    pub(super) fn gone(&mut self, peer: &str) {
        enter(peer, &mut self.gone, &mut self.back);
    }

    /// One of them is answered again.
    pub(super) fn back(&mut self, peer: &str) {
        enter(peer, &mut self.back, &mut self.gone);
    }

    /// Writes to the log what was not said yet, where the last line is a while ago.
    pub(super) fn say(&mut self, now: Time) {
        for sentence in self.sentences(now) {
            warn!("{sentence}");
        }
    }

    fn sentences(&mut self, now: Time) -> Vec<String> {
        let is_soon = self.said.is_some_and(|said| now.since(said) < SPACING);
        if is_soon || (self.gone.is_empty() && self.back.is_empty()) {
            return Vec::new();
        }
        self.said = Some(now);
        let what = [
            ("down, no encapsulation is answered", &mut self.gone),
            ("up again", &mut self.back),
        ];
        let sentences = what.into_iter().filter_map(|(what, peers)| {
            let names = some_of(&std::mem::take(peers))?;
            Some(format!("{what}: {names}"))
        });
        sentences.collect()
    }
}

/// Enters `peer`, unless that takes back what was not said yet.
fn enter(peer: &str, list: &mut Vec<String>, other: &mut Vec<String>) {
    match other.iter().position(|name| name == peer) {
        Some(index) => drop(other.remove(index)),
        None => list.push(peer.to_owned()),
    }
}

/// The first of some names, and how many there are besides; `None` when there are none.
pub(crate) fn some_of(names: &[String]) -> Option<String> {
    let first = names.get(..names.len().min(NAMES_MAX))?;
    let rest = names.len() - first.len();
    let first = first.join(", ");
    match (names.is_empty(), rest) {
        (true, _) => None,
        (false, 0) => Some(first),
        (false, rest) => Some(format!("{first} and {rest} more")),
    }
}

/// Between two lines.
const SPACING: Duration = Duration::from_secs(1);
/// Names in a line.
const NAMES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_peers_make_one_line_and_one_that_flaps_none() {
        let second = |n: u64| Time::ZERO.after(Duration::from_secs(n));
        let mut notices = Notices::default();
        assert!(notices.sentences(second(0)).is_empty());
        notices.gone("alpha");
        let down = "down, no encapsulation is answered";
        assert_eq!(notices.sentences(second(0)), [format!("{down}: alpha")]);
        for number in 0..20 {
            notices.gone(&format!("n{number}"));
        }
        notices.back("n7");
        notices.back("alpha");
        assert!(
            notices.sentences(second(0)).is_empty(),
            "a second has not passed"
        );
        assert_eq!(
            notices.sentences(second(1)),
            [
                format!("{down}: n0, n1, n2, n3, n4, n5, n6, n8 and 11 more"),
                "up again: alpha".to_owned(),
            ]
        );
        assert!(notices.sentences(second(9)).is_empty());
    }
}
