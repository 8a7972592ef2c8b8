//! The configuration file: any text is refused with a place and a sentence for each problem, or it
//! gives a configuration that the tables accept.

use tun_node::config::{Config, ConfigError};
use tun_node::rib::Rib;

/// Reads octets as the text of a file. What is refused names line and column inside the text; what
/// is accepted keeps what [`Config`] promises; both are the same every time.
pub fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let parsed = Config::parse(text, "FILE");
    assert_eq!(Config::parse(text, "FILE"), parsed);
    match parsed {
        Err(error) => refused(&error, text),
        Ok(config) => accepted(&config),
    }
}

fn refused(error: &ConfigError, text: &str) {
    let lines: Vec<&str> = text.split('\n').collect();
    assert!(!error.problems.is_empty());
    for problem in &error.problems {
        assert!(!problem.sentence.is_empty());
        // One problem is one line on a terminal, and cannot drive the terminal.
        assert!(
            !problem.sentence.contains(char::is_control),
            "{:?}",
            problem.sentence
        );
        let line = problem.line.expect("only an unreadable file has no lines");
        let text = lines[line - 1];
        // A place at the end of a line is one behind its last character.
        assert!(
            (1..=text.chars().count() + 1).contains(&problem.column),
            "line {line} is {text:?}, column {}: {}",
            problem.column,
            problem.sentence
        );
    }
    let place = |problem: &tun_node::config::Problem| (problem.line, problem.column);
    assert!(error.problems.is_sorted_by_key(place));
    assert!(
        error
            .to_string()
            .lines()
            .all(|line| line.starts_with("FILE:"))
    );
}

fn accepted(config: &Config) {
    assert!((1..=63).contains(&config.node.name.len()));
    assert!((1..=15).contains(&config.device.name.len()));
    assert!(!config.summary().is_empty());
    assert!(!config.local().underlay.is_empty());
    let rib = Rib::of_config(config).expect("what the reader accepts, the tables accept");
    let snapshot = rib.reader().snapshot();
    for route in &snapshot.routes {
        let found = snapshot.tables.lookup(route.prefix.network());
        assert!(found.is_some(), "{} leads nowhere", route.prefix);
    }
}
