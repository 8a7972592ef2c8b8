//! The section `[worker]`.

use super::{At, Problems, Section, integer, quoted, type_name};
use crate::config::{Directions, WorkerCount};

#[derive(Debug, Default)]
pub(in crate::config) struct WorkerDraft {
    pub(in crate::config) count: Option<At<WorkerCount>>,
    pub(in crate::config) directions: Option<At<Directions>>,
    pub(in crate::config) pin: Option<At<bool>>,
    pub(in crate::config) source_ports: Option<At<u16>>,
    pub(in crate::config) batch: Option<At<u16>>,
    pub(in crate::config) receive_buffer_octets: Option<At<u32>>,
    pub(in crate::config) send_buffer_octets: Option<At<u32>>,
    pub(in crate::config) gso: Option<At<bool>>,
    pub(in crate::config) ipip_offload: Option<At<bool>>,
    pub(in crate::config) flow_offload: Option<At<bool>>,
    pub(in crate::config) packet_ring: Option<At<bool>>,
    pub(in crate::config) gro: Option<At<bool>>,
    pub(in crate::config) uso: Option<At<bool>>,
    pub(in crate::config) vnet_header: Option<At<bool>>,
    pub(in crate::config) busy_poll_us: Option<At<u32>>,
}

/// Reads `[worker]`.
pub(super) fn worker(table: &Section<'_, '_>, problems: &mut Problems) -> WorkerDraft {
    table.refuse_unknown(
        &[
            "count",
            "directions",
            "pin",
            "source-ports",
            "batch",
            "receive-buffer",
            "send-buffer",
            "gso",
            "ipip-offload",
            "flow-offload",
            "packet-ring",
            "gro",
            "uso",
            "vnet-header",
            "busy-poll-us",
        ],
        problems,
    );
    WorkerDraft {
        count: count(table, problems),
        directions: table.choice("directions", &DIRECTIONS, problems),
        pin: table.boolean("pin", problems),
        source_ports: table.number("source-ports", 1..=1024, problems),
        batch: table.number("batch", 1..=1024, problems),
        receive_buffer_octets: table.number("receive-buffer", BUFFER_OCTETS, problems),
        send_buffer_octets: table.number("send-buffer", BUFFER_OCTETS, problems),
        gso: table.boolean("gso", problems),
        ipip_offload: table.boolean("ipip-offload", problems),
        flow_offload: table.boolean("flow-offload", problems),
        packet_ring: table.boolean("packet-ring", problems),
        gro: table.boolean("gro", problems),
        uso: table.boolean("uso", problems),
        vnet_header: table.boolean("vnet-header", problems),
        busy_poll_us: table.number("busy-poll-us", 0..=1_000_000, problems),
    }
}

/// A number, or the word "auto".
fn count(table: &Section<'_, '_>, problems: &mut Problems) -> Option<At<WorkerCount>> {
    let (content, at) = table.get("count")?;
    let value = if content.as_str() == Some("auto") {
        Some(WorkerCount::Auto)
    } else {
        integer(content)
            .and_then(|count| u16::try_from(count).ok())
            .filter(|count| (1..=WorkerCount::MAX).contains(count))
            .map(WorkerCount::Fixed)
    };
    if value.is_none() {
        let is = if let Some(word) = content.as_str() {
            quoted(word)
        } else if let Some(count) = content.as_integer() {
            count.to_string()
        } else {
            type_name(content).to_owned()
        };
        let most = WorkerCount::MAX;
        let sentence =
            format!("count in [worker] is {is}; write a number from 1 to {most}, or \"auto\"");
        problems.push(at, sentence);
    }
    value.map(|value| At { value, at })
}

const DIRECTIONS: [(&str, Directions); 3] = [
    ("auto", Directions::Auto),
    ("together", Directions::Together),
    ("apart", Directions::Apart),
];
const BUFFER_OCTETS: std::ops::RangeInclusive<u32> = 4096..=1 << 30;
