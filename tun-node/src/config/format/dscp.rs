//! What becomes of a peer's DSCP: the three keys that say so together.

use super::{Problems, Section, integer, quoted, type_name};
use crate::config::{Dscp, DscpMap};

/// Reads `dscp` with the one of `dscp-value` and `dscp-map` that belongs to it.
pub(super) fn dscp(table: &Section<'_, '_>, problems: &mut Problems) -> Dscp {
    let mode = table.choice("dscp", &DSCP_MODES, problems);
    let mode = mode.map_or(DscpMode::Pipe, |mode| mode.value);
    let fixed = table.number("dscp-value", 0..=DSCP_MAX, problems);
    if let Some((_, at)) = table.get("dscp-value")
        && mode != DscpMode::Pipe
    {
        problems.push(
            at,
            "dscp-value is only for dscp = \"pipe\"; remove it or change dscp",
        );
    }
    let map = dscp_map(table, problems);
    if let Some((_, at)) = table.get("dscp-map")
        && mode != DscpMode::Map
    {
        problems.push(
            at,
            "dscp-map is only for dscp = \"map\"; remove it or change dscp",
        );
    }
    match mode {
        DscpMode::Pipe => Dscp::Pipe(fixed.map_or(0, |fixed| fixed.value)),
        DscpMode::Uniform => Dscp::Uniform,
        DscpMode::Map => {
            if table.get("dscp-map").is_none() {
                table.missing(
                    "dscp-map",
                    "dscp = \"map\" needs it, for example dscp-map = { 46 = 34 }",
                    problems,
                );
            }
            Dscp::Map(map)
        }
    }
}

fn dscp_map(table: &Section<'_, '_>, problems: &mut Problems) -> DscpMap {
    let mut map = DscpMap::default();
    let Some((content, at)) = table.get("dscp-map") else {
        return map;
    };
    let Some(entries) = content.as_table() else {
        let is = type_name(content);
        problems.push(
            at,
            format!("dscp-map must be a table, not {is}; write for example {{ 46 = 34 }}"),
        );
        return map;
    };
    for (from, to) in entries {
        let dscp = |number: u8| (number <= DSCP_MAX).then_some(number);
        let inner = from.get_ref().parse().ok().and_then(dscp);
        let outer = integer(to.get_ref()).and_then(|outer| u8::try_from(outer).ok());
        let outer = outer.and_then(dscp);
        if inner.is_none() {
            problems.push(
                from.span().start,
                format!(
                    "{} is no DSCP; write a number from 0 to {DSCP_MAX} for the inner one",
                    quoted(from.get_ref())
                ),
            );
        }
        if outer.is_none() {
            problems.push(
                to.span().start,
                format!("the outer DSCP must be a number from 0 to {DSCP_MAX}; change it"),
            );
        }
        if let (Some(inner), Some(outer)) = (inner, outer) {
            map.set(inner, outer);
        }
    }
    map
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DscpMode {
    Pipe,
    Uniform,
    Map,
}

const DSCP_MODES: [(&str, DscpMode); 3] = [
    ("pipe", DscpMode::Pipe),
    ("uniform", DscpMode::Uniform),
    ("map", DscpMode::Map),
];
/// Six bits, RFC 2474.
const DSCP_MAX: u8 = 63;
