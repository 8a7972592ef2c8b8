//! The sections of sources: `[etcd]`, `[files]`, `[guard]`.

use std::path::PathBuf;

use super::{At, Problems, Section, value};
use crate::config::sources::{Etcd, Files, Guard};
use crate::flannel;

/// Reads `[etcd]`; `None` when something that it needs is missing or refused.
pub(super) fn etcd(table: &Section<'_, '_>, problems: &mut Problems) -> Option<Etcd> {
    table.refuse_unknown(
        &[
            "endpoints",
            "prefix",
            "ca",
            "certificate",
            "key",
            "user",
            "password-file",
            "lease-ttl-s",
            "leave",
        ],
        problems,
    );
    let endpoints = table.list("endpoints", problems, value::endpoint);
    if endpoints.is_none() {
        let hint = "list the members' client addresses, for example \"http://192.0.2.1:2379\"";
        table.missing("endpoints", hint, problems);
    }
    if let Some((content, at)) = table.get("endpoints")
        && content.as_array().is_some_and(|list| list.is_empty())
    {
        problems.push(at, "endpoints is empty; name at least one member");
    }
    let endpoints = endpoints.unwrap_or_default();
    let ca = table.parsed("ca", problems, value::file_path);
    let secure = endpoints
        .iter()
        .find(|one| one.value.starts_with("https://"));
    if let (Some(one), None) = (secure, table.get("ca")) {
        let sentence = "an https endpoint needs ca, a file of certificate authorities; add it";
        problems.push(one.at, sentence);
    }
    let certificate = pair(table, "certificate", "key", problems);
    let user = {
        let name = table.parsed("user", problems, value::reference);
        let file = table.parsed("password-file", problems, value::file_path);
        both(table, ("user", name), ("password-file", file), problems)
    };
    let prefix = table.parsed("prefix", problems, value::etcd_prefix);
    let ttl = table.number("lease-ttl-s", 5..=LEASE_TTL_S_MAX, problems);
    let leave = table.boolean("leave", problems);
    if endpoints.is_empty() {
        return None;
    }
    Some(Etcd {
        endpoints: endpoints.into_iter().map(|one| one.value).collect(),
        prefix: prefix.map_or_else(|| flannel::DEFAULT_PREFIX.to_owned(), |p| p.value),
        ca: ca.map(|path| path.value),
        certificate,
        user,
        lease_ttl_s: ttl.map_or(LEASE_TTL_S, |ttl| ttl.value),
        leave: leave.is_some_and(|leave| leave.value),
    })
}

/// Reads `[files]`.
pub(super) fn files(table: &Section<'_, '_>, problems: &mut Problems) -> Option<Files> {
    table.refuse_unknown(&["directory"], problems);
    if table.get("directory").is_none() {
        table.missing("directory", "write the directory of route files", problems);
    }
    let directory = table.parsed("directory", problems, value::file_path)?.value;
    Some(Files { directory })
}

/// Reads `[guard]`.
pub(super) fn guard(table: &Section<'_, '_>, problems: &mut Problems) -> Guard {
    table.refuse_unknown(&["percent", "hold-s"], problems);
    let default = Guard::default();
    let percent = table.number("percent", 0..=100, problems);
    let hold = table.number("hold-s", 0..=86_400, problems);
    Guard {
        percent: percent.map_or(default.percent, |percent| percent.value),
        hold_s: hold.map_or(default.hold_s, |hold| hold.value),
    }
}

fn pair(
    table: &Section<'_, '_>,
    first: &'static str,
    second: &'static str,
    problems: &mut Problems,
) -> Option<(PathBuf, PathBuf)> {
    let one = table.parsed(first, problems, value::file_path);
    let other = table.parsed(second, problems, value::file_path);
    both(table, (first, one), (second, other), problems)
}

/// Two keys that make sense together only.
fn both<A, B>(
    table: &Section<'_, '_>,
    (first, one): (&'static str, Option<At<A>>),
    (second, other): (&'static str, Option<At<B>>),
    problems: &mut Problems,
) -> Option<(A, B)> {
    for (key, missing) in [(first, second), (second, first)] {
        if let Some((_, at)) = table.get(key)
            && table.get(missing).is_none()
        {
            problems.push(at, format!("{key} needs {missing} beside it; add it"));
        }
    }
    Some((one?.value, other?.value))
}

/// A day, as flannel's.
const LEASE_TTL_S: u32 = 86_400;
/// What etcd grants at most is nine billion seconds; a month is longer than anybody waits.
const LEASE_TTL_S_MAX: u32 = 31 * 86_400;
