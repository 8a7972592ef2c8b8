//! The ways to a peer: which encapsulations by preference, and how they are watched.

use toml::de::DeValue;

use super::{At, Problems, Section, one_of, quoted, value};
use crate::config::encap::Choice;

/// Reads a key that names one encapsulation or profile, or a list of them by preference.
pub(super) fn choices(
    table: &Section<'_, '_>,
    key: &str,
    problems: &mut Problems,
) -> Vec<At<Choice>> {
    let Some((content, at)) = table.get(key) else {
        return Vec::new();
    };
    let Some(list) = content.as_array() else {
        return choice(table, key, (content, at), problems)
            .into_iter()
            .collect();
    };
    if list.is_empty() {
        problems.push(
            at,
            format!("{key} is empty; name at least one encapsulation"),
        );
    }
    let mut read: Vec<At<Choice>> = Vec::new();
    for item in list.iter() {
        let item = (item.get_ref(), item.span().start);
        let Some(next) = choice(table, key, item, problems) else {
            continue;
        };
        if read.iter().any(|before| before.value == next.value) {
            problems.push(
                next.at,
                format!("{key} names {:?} twice; remove one", next.value.name),
            );
        } else {
            read.push(next);
        }
    }
    read
}

/// `[probing]`.
#[derive(Debug, Default)]
pub(in crate::config) struct ProbingDraft {
    pub(in crate::config) enabled: Option<At<bool>>,
    pub(in crate::config) interval_ms: Option<At<u32>>,
    pub(in crate::config) down_after: Option<At<u32>>,
    pub(in crate::config) up_after: Option<At<u32>>,
    pub(in crate::config) confirm_ms: Option<At<u32>>,
    pub(in crate::config) raise_s: Option<At<u32>>,
}

/// Reads the section of that name.
pub(super) fn probing(table: &Section<'_, '_>, problems: &mut Problems) -> ProbingDraft {
    table.refuse_unknown(
        &[
            "enabled",
            "interval-ms",
            "down-after",
            "up-after",
            "confirm-ms",
            "raise-s",
        ],
        problems,
    );
    ProbingDraft {
        enabled: table.boolean("enabled", problems),
        interval_ms: table.number("interval-ms", 50..=60_000, problems),
        // With one, a single lost probe would end a way. RFC 5880 section 6.8.4.
        down_after: table.number("down-after", 2..=100, problems),
        up_after: table.number("up-after", 1..=100, problems),
        confirm_ms: table.number("confirm-ms", 100..=600_000, problems),
        raise_s: table.number("raise-s", 1..=86_400, problems),
    }
}

fn choice(
    table: &Section<'_, '_>,
    key: &str,
    (content, at): (&DeValue<'_>, usize),
    problems: &mut Problems,
) -> Option<At<Choice>> {
    let word = table
        .element(key, content, at, problems, &value::reference)?
        .value;
    if let Some(choice) = Choice::ALL.iter().find(|choice| choice.name == word) {
        return Some(At { value: *choice, at });
    }
    let names = Choice::ALL.map(|choice| choice.name);
    let advice = match problems.did_you_mean(&word, names) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None => format!("write {}", one_of(&names)),
    };
    problems.push(at, format!("{key} cannot be {}; {advice}", quoted(&word)));
    None
}
