//! Sources, why a prefix is routed as it is, what happened, reloads: in tables.

use std::fmt::Write as _;

use super::table::{Align, Table};
use super::{dash, duration};
use crate::ctl::sources::{EventReport, ReloadReport, SourcesReport, WhyReport};

/// Sources, one a line; then what this node was given, and the quarantine.
#[must_use]
pub fn sources(report: &SourcesReport) -> String {
    let mut table = Table::new([
        Align::Left,
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
    ]);
    table.head([
        "SOURCE",
        "STATE",
        "ENTRIES",
        "HELD",
        "REMEMBERED",
        "QUARANTINED",
        "SYNCED",
        "LAG",
        "POSITION",
    ]);
    let ago = |ms: Option<u64>| ms.map_or_else(dash, |ms| format!("{} ago", duration(ms)));
    for source in &report.sources {
        table.row([
            source.source.clone(),
            source.state.clone(),
            source.entries.to_string(),
            source.held.to_string(),
            source.remembered.to_string(),
            source.quarantined.to_string(),
            ago(source.synced_ms_ago),
            source.lag_ms.map_or_else(dash, |ms| format!("{ms} ms")),
            source.position.to_string(),
        ]);
    }
    let mut text = table.to_string();
    // Writing to a String cannot fail.
    for source in &report.sources {
        if let Some(why) = &source.why {
            let _ = match source.source.as_str() {
                "config" | "file" => writeln!(text, "files not taken: {why}"),
                name => writeln!(text, "{name} does not answer: {why}"),
            };
        }
        if let Some(left) = source.hold_left_ms {
            let left = duration(left);
            let _ = writeln!(
                text,
                "{}: what is held or remembered goes in {left}",
                source.source
            );
        }
    }
    if let Some(claim) = &report.claimed {
        let _ = writeln!(
            text,
            "this node has {} of {} from {} ({}, mtu {})",
            claim.subnets.join(", "),
            claim.networks.join(", "),
            claim.source,
            claim.backend,
            claim.mtu
        );
    }
    if report.quarantined > 0 {
        let mut table = Table::new([Align::Left; 4]);
        table.head(["QUARANTINE", "KEY", "REASON", "DETAIL"]);
        for one in &report.quarantine {
            table.row([
                one.source.clone(),
                one.key.clone(),
                one.reason.clone(),
                one.detail.clone(),
            ]);
        }
        let shown = report.quarantine.len() as u64;
        let _ = write!(text, "{table}");
        if shown < report.quarantined {
            let _ = writeln!(text, "and {} more", report.quarantined - shown);
        }
    }
    text
}

/// Entries, one a line.
#[must_use]
pub fn why(report: &[WhyReport]) -> String {
    if report.is_empty() {
        return "no source says anything about that\n".to_owned();
    }
    let mut table = Table::new([Align::Left; 7]);
    table.head([
        "PREFIX", "NODE", "SOURCE", "KEY", "VERDICT", "STANDING", "BECAUSE",
    ]);
    for row in report {
        let standing = match row.left_ms {
            None => row.standing.clone(),
            Some(left) => format!("{} {}", row.standing, duration(left)),
        };
        let because = Some(&row.because).filter(|because| !because.is_empty());
        table.row([
            row.prefix.clone(),
            row.node.clone(),
            row.source.clone(),
            row.key.clone(),
            row.verdict.clone(),
            standing,
            because.cloned().unwrap_or_else(dash),
        ]);
    }
    table.to_string()
}

/// What happened, one a line; fit to be followed.
#[must_use]
pub fn events(report: &[EventReport]) -> String {
    let mut text = String::new();
    for event in report {
        let _ = writeln!(
            text,
            "{} {}  {:<7} {:<11} {}  {}",
            event.number,
            utc(event.unix_ms),
            event.source,
            event.what,
            event.subject,
            event.detail
        );
    }
    text
}

/// Differences, one a line.
#[must_use]
pub fn reload(report: &ReloadReport) -> String {
    let mut text = String::new();
    for line in &report.differences {
        let _ = writeln!(text, "{line}");
    }
    let nothing_differs = report.differences.is_empty();
    if nothing_differs && report.at_next_start.is_empty() {
        text.push_str("nothing differs\n");
    }
    for section in &report.at_next_start {
        let _ = writeln!(text, "{section} differs and takes effect at the next start");
    }
    let word = match (report.dry_run, nothing_differs) {
        (true, true) => return text,
        (true, false) => "would be taken; the generation stays",
        (false, _) => "taken; generation",
    };
    let _ = writeln!(text, "{word} {}", report.epoch);
    text
}

/// A time as RFC 3339 writes it, UTC. The days are counted by Howard Hinnant's rule of eras.
fn utc(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let second = ms / 1000 % 60;
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
        ms % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_says_that_something_would_be_taken_only_where_it_would() {
        let dry = |differences: &[&str], at_next_start: &[&str]| {
            let list = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect();
            reload(&ReloadReport {
                dry_run: true,
                differences: list(differences),
                at_next_start: list(at_next_start),
                epoch: 7,
            })
        };
        assert_eq!(dry(&[], &[]), "nothing differs\n");
        let later = "[log] differs and takes effect at the next start\n";
        assert_eq!(dry(&[], &["[log]"]), later);
        let would = "+ peer b\nwould be taken; the generation stays 7\n";
        assert_eq!(dry(&["+ peer b"], &[]), would);
    }

    #[test]
    fn times_read_as_rfc_3339() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(951_827_696_123), "2000-02-29T12:34:56.123Z");
        assert_eq!(utc(1_798_761_599_999), "2026-12-31T23:59:59.999Z");
    }
}
