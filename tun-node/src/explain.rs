//! What would happen to a packet, in the words of people and of machines.
//!
//! The live engine answers ([`Engine::explain_flow`](warren_core::Engine::explain_flow)), between
//! two batches and by the very functions that decide about packets; here its answer only becomes
//! a report. Also the reports of routes and tunnels, which other answers share.

use std::fmt::Write as _;
use std::net::IpAddr;

use warren_core::batch::Transport;
use warren_core::encap::Encapsulation;
use warren_core::engine::{Explanation, Route};
use warren_core::packet::FlowKey;
use warren_core::tables::{NextHop, Tables, Tunnel};
use warren_core::verdict::{Direction, DropReason, Verdict};

use crate::ctl::message::{ExplainReport, Flow, PathReport, RouteReport, TunnelReport};
use crate::rib::{RibRoute, TablesReader};

/// The flow as the engine names it.
#[must_use]
pub const fn flow_key(flow: &Flow) -> FlowKey {
    FlowKey {
        source: flow.source,
        destination: flow.destination,
        protocol: flow.protocol,
        source_port: flow.source_port,
        destination_port: flow.destination_port,
    }
}

/// Which way a packet of `flow` goes: it comes from the underlay when its source is not this
/// node's own and its destination is.
#[must_use]
pub fn direction(flow: &Flow, tables: &Tables) -> Direction {
    let is_own = |address: IpAddr| matches!(tables.lookup(address), Some(NextHop::Local));
    if !is_own(flow.source) && is_own(flow.destination) {
        Direction::Decap
    } else {
        Direction::Encap
    }
}

/// The report of what the engine found about `flow`.
#[must_use]
pub fn report(flow: Flow, found: &Explanation, reader: &TablesReader) -> ExplainReport {
    let (verdict, reason) = match found.verdict {
        Verdict::Undecided => ("undecided", None),
        Verdict::Transmit => ("transmit", None),
        Verdict::Deliver => ("deliver", None),
        Verdict::Probe => ("probe", None),
        Verdict::Direct => ("direct", None),
        Verdict::Reply(reason) | Verdict::Drop(reason) => ("drop", Some(reason)),
    };
    let tables = &*reader.tables();
    let report = |route: &Option<Route>| {
        let route = route.as_ref()?;
        Some(route_report(route, reader))
    };
    let link = found.link.as_ref();
    let tunnel = found.tunnel.as_ref();
    ExplainReport {
        flow,
        direction: match found.direction {
            Direction::Encap => "encap",
            Direction::Decap => "decap",
        }
        .to_owned(),
        verdict: verdict.to_owned(),
        reason: reason.map(|reason| reason.name().to_owned()),
        source_route: report(&found.source_route),
        route: report(&found.route),
        peer: found.peer.as_ref().map(|(_, name)| name.clone()),
        encapsulation: found.encapsulation.map(|kind| kind.name().to_owned()),
        tunnel: tunnel.map(|tunnel| tunnel_report(tunnel, tables)),
        mtu: found.mtu.map(|mtu| mtu.octets()),
        outer_source_port: link.and_then(|link| match link.transport {
            Transport::Udp { local_port, .. } => Some(local_port),
            Transport::Ip { .. } => None,
        }),
        overhead_octets: tunnel.map(|tunnel| {
            tunnel
                .encapsulation
                .overhead_octets(tunnel.underlay_family())
        }),
        answer: found
            .answer
            .as_ref()
            .map(|(answer, source)| format!("{answer} from {source}")),
        too_big: found
            .too_big
            .as_ref()
            .map(|(answer, source)| format!("{answer} from {source}")),
        text: text(&flow, found),
    }
}

/// Adds what the probes of the path say against a packet that would be sent.
pub fn doubt(report: &mut ExplainReport, path: &PathReport) {
    let in_use = path.ways.iter().find(|way| way.in_use);
    let Some(way) = in_use.filter(|way| way.state == "down") else {
        return;
    };
    if report.verdict == "transmit" {
        // Writing to a String cannot fail.
        let _ = write!(
            report.text,
            " But {} does not answer in {} at present: it may never arrive.",
            path.peer, way.encapsulation
        );
    }
}

/// The report of a tunnel.
#[must_use]
pub fn tunnel_report(tunnel: &Tunnel, tables: &Tables) -> TunnelReport {
    let (port, vni, mac) = match tunnel.encapsulation {
        Encapsulation::Vxlan { vni, port, mac } | Encapsulation::Geneve { vni, port, mac } => {
            (Some(port), Some(vni.value()), Some(mac.to_string()))
        }
        Encapsulation::VxlanGpe { vni, port } => (Some(port), Some(vni.value()), None),
        Encapsulation::Fou { port } | Encapsulation::Gue { port } => (Some(port), None, None),
        Encapsulation::Ipip => (None, None, None),
    };
    TunnelReport {
        peer: tables
            .peer(tunnel.peer)
            .map(|peer| peer.name.clone())
            .unwrap_or_default(),
        local: tunnel.local,
        remote: tunnel.remote,
        encapsulation: tunnel.encapsulation.name().to_owned(),
        port,
        vni,
        vtep_mac: mac,
        mtu: tunnel.mtu.octets(),
    }
}

/// The report of a route of the rib.
#[must_use]
pub fn rib_route_report(route: &RibRoute, tables: &Tables) -> RouteReport {
    RouteReport {
        prefix: route.prefix.to_string(),
        origin: route.origin.name().to_owned(),
        action: action(&route.next_hop).to_owned(),
        tunnels: route
            .tunnels()
            .iter()
            .map(|tunnel| tunnel_report(tunnel, tables))
            .collect(),
    }
}

fn route_report(route: &Route, reader: &TablesReader) -> RouteReport {
    match reader.route(route.prefix) {
        Some(known) => rib_route_report(&known, &reader.tables()),
        // The tables are younger than the answer by a moment.
        None => RouteReport {
            prefix: route.prefix.to_string(),
            origin: String::new(),
            action: action(&route.next_hop).to_owned(),
            tunnels: Vec::new(),
        },
    }
}

const fn action(next_hop: &NextHop) -> &'static str {
    match next_hop {
        NextHop::Direct { .. } => "direct",
        NextHop::Tunnel(_) => "tunnel",
        NextHop::EqualCost(_) => "equal-cost",
        NextHop::Blackhole => "blackhole",
        NextHop::Prohibit => "prohibit",
        NextHop::Local => "local",
    }
}

/// Route, owner, encapsulation, MTU and verdict in sentences.
fn text(flow: &Flow, found: &Explanation) -> String {
    let (source, destination) = (flow.source, flow.destination);
    let mut text = match found.direction {
        Direction::Encap => format!("A packet that {source} sends from this node to {destination}"),
        Direction::Decap => format!("A packet that comes from {source} to {destination}"),
    };
    // Writing to a String cannot fail.
    match &found.route {
        Some(route) => {
            let _ = write!(
                text,
                " has the route {} ({})",
                route.prefix,
                action(&route.next_hop)
            );
        }
        None => text.push_str(" has no route"),
    }
    match (&found.peer, found.direction) {
        (Some((_, peer)), Direction::Encap) => {
            let _ = write!(text, ", which leads to peer {peer}");
        }
        (Some((_, peer)), Direction::Decap) => {
            let _ = write!(text, "; its source belongs to peer {peer}");
        }
        (None, Direction::Encap | Direction::Decap) => {}
    }
    text.push('.');
    if let Some(tunnel) = &found.tunnel {
        let overhead = tunnel
            .encapsulation
            .overhead_octets(tunnel.underlay_family());
        let _ = write!(
            text,
            " The way is {}, from {} to {}: {overhead} octets are added, and inner packets of up \
             to {} octets fit.",
            tunnel.encapsulation,
            tunnel.local,
            tunnel.remote,
            found.mtu.unwrap_or(tunnel.mtu),
        );
        if let (Some((answer, source)), None) = (&found.too_big, &found.answer) {
            let _ = write!(
                text,
                " The sender of a larger one is told: {answer} from {source}"
            );
            text.push_str(if source.is_ipv4() {
                "; without DF it is cut into fragments."
            } else {
                "."
            });
        }
    }
    let verdict = match found.verdict {
        Verdict::Transmit => " It would be encapsulated and sent.".to_owned(),
        Verdict::Deliver => {
            " It would be accepted from that peer and handed to the device.".to_owned()
        }
        Verdict::Probe => " It is a probe of the tunnel and is answered by the node.".to_owned(),
        Verdict::Direct => " It would not be encapsulated: the host's own routes are to carry it, \
                            and the node drops it if it comes through the device."
            .to_owned(),
        Verdict::Drop(reason) => format!(
            " It would be dropped ({}), and nobody is told.",
            words(reason)
        ),
        Verdict::Reply(reason) => {
            let answer = found.answer.as_ref().map_or_else(
                || "an ICMP error".to_owned(),
                |(answer, from)| format!("{answer} from {from}"),
            );
            format!(
                " It would be dropped ({}), and its sender told: {answer}.",
                words(reason)
            )
        }
        Verdict::Undecided => " The engine does not decide about it.".to_owned(),
    };
    text.push_str(&verdict);
    text
}

fn words(reason: DropReason) -> String {
    reason.name().replace('_', " ")
}
