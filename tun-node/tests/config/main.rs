//! The configuration as users meet it: what is refused and with which words, what is accepted and
//! what it comes to, and that no text at all can make the reader panic or contradict itself.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "in a test, both are assertions; clippy exempts only the #[test] functions themselves"
)]

use std::fmt::Write as _;
use std::path::Path;

use tun_node::config::{Config, ConfigError};

mod accepted;
mod kubernetes;
mod twins;

/// A small valid file; the cases in `refused.txt` replace lines of it by number.
const BASE: &str = r#"[node]
name = "alpha"
underlay = ["192.0.2.1"]
prefixes = ["10.244.1.0/24"]

[device]
addresses = ["10.244.1.1/24"]

[[peers]]
name = "beta"
address = "192.0.2.2"
vtep-mac = "02:00:00:00:00:0b"
prefixes = ["10.244.2.0/24"]

"#;

/// [`BASE`] with the text of some lines replaced; line 15 and those like it are appended.
fn edited(edits: &[(usize, &str)]) -> String {
    let mut text = String::new();
    let lines = BASE.lines().chain(std::iter::once(""));
    for (line, original) in (1..).zip(lines) {
        let new: Vec<&str> = edits
            .iter()
            .filter(|(number, _)| *number == line)
            .map(|(_, new)| *new)
            .collect();
        let new = if new.is_empty() {
            original.to_owned()
        } else {
            new.join("\n")
        };
        writeln!(text, "{new}").unwrap();
    }
    text
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "node.toml")
}

#[test]
fn every_bad_file_is_refused_with_exactly_its_messages() {
    let mut failures = String::new();
    let mut cases = 0;
    let mut sentences = std::collections::BTreeSet::new();
    for case in include_str!("refused.txt").split("\n\n") {
        let mut edits = Vec::new();
        let mut expected = Vec::new();
        for line in case.lines().filter(|line| !line.starts_with('#')) {
            if let Some(message) = line.strip_prefix("=> ") {
                expected.push(format!("node.toml:{message}"));
                sentences.insert(message.split_once(": ").unwrap().1);
            } else if let Some((number, text)) = line.split_once('|') {
                edits.push((
                    number.parse().unwrap(),
                    text.strip_prefix(' ').unwrap_or(text),
                ));
            }
        }
        if edits.is_empty() {
            continue;
        }
        cases += 1;
        let expected = expected.join("\n");
        let found = match parse(&edited(&edits)) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        if found != expected {
            writeln!(
                failures,
                "{edits:?}\nexpected:\n{expected}\nfound:\n{found}\n"
            )
            .unwrap();
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(cases >= 160, "only {cases} cases were read");
    assert!(sentences.len() >= 140, "only {} sentences", sentences.len());
}

#[test]
fn the_file_that_the_cases_change_is_valid() {
    parse(BASE).unwrap();
    assert_eq!(edited(&[]), BASE.to_owned() + "\n");
}

#[test]
fn all_problems_of_a_file_come_in_one_run_sorted_by_line() {
    let text = edited(&[
        (2, "nmae = \"alpha\""),
        (4, "prefixes = [\"10.244.1.5/24\"]"),
        (8, "mtu = true"),
        (11, "address = \"224.0.0.1\""),
        (12, "vtep-mac = \"00:00:00:00:00:00\""),
        (13, "prefixes = [\"10.244.2.0/24\", \"10.244.2.0/24\"]"),
        (15, "[[routes]]"),
        (15, "via = \"delta\""),
    ]);
    let error = parse(&text).unwrap_err();
    let lines: Vec<usize> = error.problems.iter().filter_map(|p| p.line).collect();
    assert_eq!(lines, [1, 2, 4, 8, 11, 12, 13, 15, 16]);
}

#[test]
fn problems_of_the_whole_file_name_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.toml");
    let name = path.display();
    let load = |path: &Path| Config::load(path).unwrap_err().to_string();

    assert_eq!(
        load(&path),
        format!(
            "{name}: cannot be read: No such file or directory (os error 2); \
             check the path and its permissions"
        )
    );
    assert!(load(directory.path()).contains(": cannot be read: "));

    let too_large =
        format!("{name}: is larger than 4 MiB; a configuration is smaller, check the path");
    let comments = "# \n".repeat((4 << 20) / 3 + 1);
    std::fs::write(&path, &comments).unwrap();
    assert_eq!(load(&path), too_large);
    let error = Config::parse(&comments, &name.to_string()).unwrap_err();
    assert_eq!(error.to_string(), too_large);
    // A file that never ends is read no further than the limit.
    assert!(load(Path::new("/dev/zero")).contains(": is larger than 4 MiB;"));

    std::fs::write(&path, b"[node]\nname = \"\xff\"\n").unwrap();
    assert_eq!(
        load(&path),
        format!("{name}:2:9: this is not UTF-8; save the file as UTF-8 text")
    );

    std::fs::write(&path, BASE).unwrap();
    assert_eq!(Config::load(&path), parse(BASE));
}
