//! What the commands print: tables for people, JSON for machines.
//!
//! The JSON is the control socket's answer as it is; the tables choose from it. Numbers are
//! right-aligned, everything else left-aligned, two spaces between columns, no lines drawn, so that
//! `awk` and eyes both find the columns.

mod sources;
mod table;

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Serialize;

use crate::counters::{
    Balance, DirectionReport, PeerTallyReport, SocketReport, TallyReport, WorkerReport,
};
use crate::ctl::message::{
    CountersReport, ExplainReport, PathReport, PeerReport, RouteReport, StatusReport, TunnelReport,
};
use crate::paths::some_of;
pub use sources::{events, reload, sources, why};
use table::{Align, Table};

/// Writes `text` to the standard output.
///
/// # Errors
///
/// Those of the standard output, but for a reader that has gone (`| head`), who has what he wants.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// `report` as JSON, with a line feed.
///
/// # Errors
///
/// None that a report has: its keys are strings.
pub fn json(report: &impl Serialize) -> serde_json::Result<String> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    Ok(text)
}

/// How a node is, in lines.
#[must_use]
pub fn status(report: &StatusReport) -> String {
    let mut table = Table::new([Align::Left, Align::Left]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("node", report.node.clone());
    let ready = if report.ready {
        "ready".to_owned()
    } else {
        format!("not ready: {}", report.not_ready_because)
    };
    row("state", ready);
    let device = &report.device;
    row(
        "device",
        format!("{} ({}), mtu {}", device.name, device.mode, device.mtu),
    );
    row("addresses", device.addresses.join(", "));
    let underlay = report.underlay.iter().map(ToString::to_string);
    row("underlay", underlay.collect::<Vec<_>>().join(", "));
    row("receives", report.receives.join(", "));
    for alarm in &report.alarms {
        row("ALARM", alarm.clone());
    }
    let down = report.peers_down.len();
    let down = some_of(&report.peers_down).map(|names| format!(" ({down} down: {names})"));
    row(
        "peers",
        format!("{}{}", report.peers, down.unwrap_or_default()),
    );
    row(
        "routes",
        format!("{} (generation {})", report.routes, report.epoch),
    );
    let workers = match report.workers_epoch < report.epoch {
        true => format!("{} (generation {})", report.workers, report.workers_epoch),
        false => report.workers.to_string(),
    };
    row("workers", workers);
    row(
        "directions",
        format!("{}: {}", report.directions, report.directions_because),
    );
    if let (Some(receive), Some(send)) = (report.receive_buffer, report.send_buffer) {
        row(
            "buffers",
            format!("{receive} octets to receive, {send} to send"),
        );
    }
    if let (Some(packets), Some(drops)) = (device.queue_packets, device.queue_drops) {
        let drops = match drops {
            0 => String::new(),
            drops => format!(", {drops} dropped"),
        };
        row("queue", format!("{packets} packets{drops}"));
    }
    if let Some(offload) = &report.flow_offload {
        let value = if offload.on {
            format!(
                "on: {} flows, {} packets out, {} in",
                offload.flows, offload.encap.packets, offload.decap.packets
            )
        } else {
            format!("off: {}", offload.because)
        };
        row("flow offload", value);
    }
    if let Some(ring) = &report.packet_ring {
        let value = match ring.on {
            true => "on".to_owned(),
            false => format!("off: {}", ring.because),
        };
        row("packet ring", value);
    }
    if let Some(rows) = &report.ipip_rows {
        let value = match rows.on {
            true => format!("on: {} peers take them, too", rows.peers),
            false => format!("off: {}", rows.because),
        };
        row("ipip rows", value);
    }
    if report.rootless {
        row("rootless", "yes".to_owned());
    }
    if let Some(metrics) = &report.metrics {
        row("metrics", format!("http://{metrics}/metrics"));
    }
    row("up", duration(report.uptime_ms));
    row(
        "process",
        format!("{}, version {}", report.pid, report.version),
    );
    table.to_string()
}

/// Routes, one a line; an equal-cost set has one line for each tunnel.
#[must_use]
pub fn routes(report: &[RouteReport]) -> String {
    let mut table = Table::new([Align::Left; 6]);
    table.head(["PREFIX", "ORIGIN", "ACTION", "PEER", "WAY", "MTU"]);
    for route in report {
        let mut front = [
            route.prefix.clone(),
            route.origin.clone(),
            route.action.clone(),
        ];
        if route.tunnels.is_empty() {
            let [prefix, origin, action] = front.clone();
            table.row([prefix, origin, action, dash(), dash(), dash()]);
        }
        for tunnel in &route.tunnels {
            let [prefix, origin, action] = std::mem::take(&mut front);
            table.row([
                prefix,
                origin,
                action,
                tunnel.peer.clone(),
                way(tunnel),
                tunnel.mtu.to_string(),
            ]);
        }
    }
    table.to_string()
}

/// Peers, one a line, with what passed.
#[must_use]
pub fn peers(report: &[PeerReport]) -> String {
    let mut table = Table::new([
        Align::Left,
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Left,
    ]);
    table.head([
        "PEER", "WAY", "MTU", "SENT", "OCTETS", "ACCEPTED", "OCTETS", "REFUSED", "PREFIXES",
    ]);
    for peer in report {
        let tally = &peer.tally;
        table.row([
            peer.name.clone(),
            way(&peer.tunnel),
            peer.tunnel.mtu.to_string(),
            tally.encap.packets.to_string(),
            tally.encap.octets.to_string(),
            tally.decap.packets.to_string(),
            tally.decap.octets.to_string(),
            tally.refused.to_string(),
            peer.prefixes.join(", "),
        ]);
    }
    let mut text = table.to_string();
    for peer in report {
        if let Some(path) = &peer.path {
            text.push('\n');
            text.push_str(&self::path(path, &peer.tally));
        }
    }
    text
}

/// What is known about the paths to a peer, in lines: one for each encapsulation that it may be
/// sent or was heard in.
fn path(path: &PathReport, tally: &PeerTallyReport) -> String {
    let passed = |encapsulation: &str| {
        let tally = tally.by_encapsulation.get(encapsulation).copied();
        let tally = tally.unwrap_or_default();
        format!(
            "sent {}, heard {}",
            tally.encap.packets, tally.decap.packets
        )
    };
    let mut text = format!(
        "{}: path MTU {} (by {})",
        path.peer, path.path_mtu, path.path_mtu_by
    );
    // Those heard are among the accepted packets, and would look like traffic of one direction.
    let (sent, heard) = (path.probes_sent, path.probes_heard);
    let _ = write!(text, ", probes {sent} sent and {heard} accepted");
    if path.forged > 0 {
        let _ = write!(text, ", {} ICMP errors not believed", path.forged);
    }
    if let Some(change) = &path.last_change {
        let _ = write!(text, "; now {change}");
    }
    if let Some(asked) = &path.asked_for {
        let _ = write!(text, "; asked for: {asked}");
    }
    if let Some(error) = &path.last_error {
        let _ = write!(text, "; last error: {error}");
    }
    text.push('\n');
    for way in &path.ways {
        let mark = if way.in_use { '*' } else { ' ' };
        let rtt = way.rtt_us.map_or_else(dash, |us| format!("{us} us"));
        let loss = way
            .loss_per_mille
            .map_or_else(dash, |lost| format!("{}.{} %", lost / 10, lost % 10));
        let _ = writeln!(
            text,
            "  {mark} {:<10} {:<8} rtt {rtt}, loss {loss}, answered by {}; {}",
            way.encapsulation,
            way.state,
            way.answered_by,
            passed(&way.encapsulation)
        );
    }
    for encapsulation in tally.by_encapsulation.keys() {
        let is_listed = path.ways.iter().any(|w| w.encapsulation == *encapsulation);
        if !is_listed {
            let state = "not sent";
            let _ = writeln!(
                text,
                "    {encapsulation:<10} {state:<8} {}",
                passed(encapsulation)
            );
        }
    }
    text
}

/// What was counted, over all workers; what never occurred is left out.
#[must_use]
pub fn counters(report: &CountersReport) -> String {
    let total = &report.total;
    let mut table = Table::new([Align::Left, Align::Right, Align::Right]);
    table.head(["COUNTER", "PACKETS", "OCTETS"]);
    direction(&mut table, "encap", &total.encap);
    direction(&mut table, "decap", &total.decap);
    let device = &total.device;
    tally(&mut table, "device read", device.read);
    count(&mut table, "device read uncut", device.read_super);
    count(&mut table, "device read by ring", device.read_ring);
    count(&mut table, "device ring full", device.ring_full);
    count(&mut table, "device read damaged", device.read_damaged);
    kinds(&mut table, "device read error", &device.read_errors);
    tally(&mut table, "device written", device.written);
    count(&mut table, "device write calls", device.write_calls);
    kinds(&mut table, "device drop", &device.write_drops);
    if device.replies_written.packets > 0 {
        tally(&mut table, "device replies written", device.replies_written);
    }
    kinds(&mut table, "device reply drop", &device.reply_drops);
    count(&mut table, "direct drop", device.direct_drops);
    count(&mut table, "path probes", device.probes);
    count(&mut table, "misdirected", device.misdirected);
    for socket in &total.sockets {
        self::socket(&mut table, socket);
    }
    let mut text = table.to_string();
    text.push_str(&balance(total));
    text
}

/// What would happen to a packet.
#[must_use]
pub fn explain(report: &ExplainReport) -> String {
    let mut table = Table::new([Align::Left, Align::Left]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    let flow = &report.flow;
    row(
        "packet",
        format!(
            "{} -> {}, protocol {}, ports {} -> {}, {} octets",
            flow.source,
            flow.destination,
            flow.protocol,
            flow.source_port,
            flow.destination_port,
            flow.octets
        ),
    );
    row("direction", report.direction.clone());
    for (name, route) in [
        ("source route", &report.source_route),
        ("route", &report.route),
    ] {
        let route = route.as_ref();
        row(
            name,
            route.map_or_else(
                || "none".to_owned(),
                |route| format!("{} {} ({})", route.prefix, route.action, route.origin),
            ),
        );
    }
    if let Some(peer) = &report.peer {
        row("peer", peer.clone());
    }
    match (&report.tunnel, &report.encapsulation) {
        (Some(tunnel), _) => row("way", way(tunnel)),
        (None, Some(encapsulation)) => row("way", encapsulation.clone()),
        (None, None) => {}
    }
    if let Some(mtu) = report.mtu {
        row("mtu", mtu.to_string());
    }
    if let Some(answer) = &report.answer {
        row("answer", answer.clone());
    } else if let Some(answer) = &report.too_big {
        row("if too big", answer.clone());
    }
    let reason = report.reason.as_ref();
    row(
        "verdict",
        reason.map_or_else(
            || report.verdict.clone(),
            |reason| format!("{}: {reason}", report.verdict),
        ),
    );
    format!("{table}\n{}\n", report.text)
}

fn direction(table: &mut Table<3>, name: &str, report: &DirectionReport) {
    tally(table, &format!("{name} received"), report.received);
    tally(table, &format!("{name} forwarded"), report.forwarded);
    kinds(table, &format!("{name} drop"), &report.drops);
    count(table, &format!("{name} cut"), report.fragmented);
    count(table, &format!("{name} fragments"), report.fragments);
    count(table, &format!("{name} mss clamped"), report.mss_clamped);
    count(table, &format!("{name} replies"), report.replies);
    count(
        table,
        &format!("{name} replies suppressed"),
        report.replies_suppressed,
    );
    count(
        table,
        &format!("{name} ecn anomalies"),
        report.ecn_anomalies,
    );
}

fn socket(table: &mut Table<3>, report: &SocketReport) {
    let name = |what: &str| format!("{} {what}", report.socket);
    tally(table, &name("received"), report.received);
    count(table, &name("damaged"), report.receive_damaged);
    kinds(table, &name("receive error"), &report.receive_errors);
    count(table, &name("receive overflow"), report.receive_overflows);
    tally(table, &name("sent"), report.sent);
    count(table, &name("messages"), report.send_messages);
    count(table, &name("sent partly"), report.sent_partly);
    count(table, &name("malformed"), report.send_malformed);
    kinds(table, &name("drop"), &report.send_drops);
    count(table, &name("without socket"), report.no_socket);
    count(table, &name("network error"), report.network_errors);
}

fn tally(table: &mut Table<3>, name: &str, tally: TallyReport) {
    table.row([
        name.to_owned(),
        tally.packets.to_string(),
        tally.octets.to_string(),
    ]);
}

fn count(table: &mut Table<3>, name: &str, count: u64) {
    if count > 0 {
        table.row([name.to_owned(), count.to_string(), String::new()]);
    }
}

fn kinds(table: &mut Table<3>, name: &str, counts: &std::collections::BTreeMap<String, u64>) {
    for (kind, count) in counts {
        self::count(table, &format!("{name}: {kind}"), *count);
    }
}

fn balance(total: &WorkerReport) -> String {
    let Balance {
        received,
        left,
        dropped,
    } = total.balance();
    let mut text = format!("\n{received} taken in = {left} passed on + {dropped} dropped");
    if received != left + dropped {
        let missing = i128::from(received) - i128::from(left) - i128::from(dropped);
        // Writing to a String cannot fail.
        let _ = write!(text, " + {missing} unaccounted for");
    }
    text.push('\n');
    text
}

/// `vxlan vni 1 to 192.0.2.2 port 8472`.
fn way(tunnel: &TunnelReport) -> String {
    let mut way = tunnel.encapsulation.clone();
    // Writing to a String cannot fail.
    if let Some(vni) = tunnel.vni {
        let _ = write!(way, " vni {vni}");
    }
    let _ = write!(way, " to {}", tunnel.remote);
    if let Some(port) = tunnel.port {
        let _ = write!(way, " port {port}");
    }
    way
}

fn dash() -> String {
    "-".to_owned()
}

/// `3 d 04:05:06`, or `04:05:06` within the first day.
fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    let clock = format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
    if days > 0 {
        format!("{days} d {clock}")
    } else {
        clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_a_clock() {
        assert_eq!(duration(999), "00:00:00");
        assert_eq!(duration(86_399_999), "23:59:59");
        assert_eq!(duration(3 * 86_400_000 + 3_661_000), "3 d 01:01:01");
    }

    #[test]
    fn an_equal_cost_route_has_a_line_for_each_tunnel() {
        let tunnel = |peer: &str| TunnelReport {
            peer: peer.to_owned(),
            local: [192, 0, 2, 1].into(),
            remote: [192, 0, 2, 2].into(),
            encapsulation: "fou".to_owned(),
            port: Some(5555),
            vni: None,
            vtep_mac: None,
            mtu: 1472,
        };
        let report = [
            RouteReport {
                prefix: "10.0.0.0/8".to_owned(),
                origin: "static".to_owned(),
                action: "equal-cost".to_owned(),
                tunnels: vec![tunnel("beta"), tunnel("gamma")],
            },
            RouteReport {
                prefix: "10.1.0.0/16".to_owned(),
                origin: "static".to_owned(),
                action: "blackhole".to_owned(),
                tunnels: Vec::new(),
            },
        ];
        assert_eq!(
            routes(&report),
            "PREFIX       ORIGIN  ACTION      PEER   WAY                         MTU\n\
             10.0.0.0/8   static  equal-cost  beta   fou to 192.0.2.2 port 5555  1472\n\
             \x20                                gamma  fou to 192.0.2.2 port 5555  1472\n\
             10.1.0.0/16  static  blackhole   -      -                           -\n"
        );
    }
}
