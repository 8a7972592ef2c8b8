//! The metrics of paths: how large, how far and how good the way to each peer is.

use std::fmt;

use super::{Labels, Lines, Page};
use crate::ctl::message::{PathReport, WayReport};

impl Page {
    pub(super) fn paths(&self, lines: &mut Lines<'_>) -> fmt::Result {
        let Some(report) = &self.paths else {
            return Ok(());
        };
        let label = |path: &PathReport| -> Labels { vec![("peer", path.peer.clone())] };
        lines.gauges(
            "path_mtu_octets",
            "The largest outer packet that the path carries.",
            report
                .peers
                .iter()
                .map(|path| (label(path), u64::from(path.path_mtu))),
        )?;
        lines.counters(
            "path_errors_not_believed",
            "ICMP errors about size that were not believed.",
            None,
            report.peers.iter().map(|path| (label(path), path.forged)),
        )?;
        lines.counters(
            "path_encapsulation_changes",
            "Changes of the encapsulation that is sent to the peer.",
            None,
            report.peers.iter().map(|path| (label(path), path.changes)),
        )?;
        lines.counters(
            "path_probes_sent",
            "Probes and answers that left for the peer, besides the packets that are counted as sent.",
            None,
            report
                .peers
                .iter()
                .map(|path| (label(path), path.probes_sent)),
        )?;
        lines.counters(
            "path_probes_heard",
            "Probes and answers that came from the peer, counted among the accepted packets too.",
            None,
            report
                .peers
                .iter()
                .map(|path| (label(path), path.probes_heard)),
        )?;
        type Pick = fn(&WayReport) -> Option<u64>;
        let gauges: [(&str, &str, Pick); 4] = [
            (
                "path_up",
                "Whether probes in this encapsulation are answered; nothing where it is not known.",
                |way| (way.state != "unknown").then_some(u64::from(way.state == "up")),
            ),
            (
                "path_in_use",
                "Whether packets are sent to the peer in this encapsulation.",
                |way| Some(u64::from(way.in_use)),
            ),
            (
                "path_rtt_microseconds",
                "Smoothed round-trip time of probes.",
                |way| way.rtt_us,
            ),
            (
                "path_loss_per_mille",
                "Lost probes among the last 64, in thousandths.",
                |way| way.loss_per_mille.map(u64::from),
            ),
        ];
        for (name, help, pick) in gauges {
            let values = report.peers.iter().flat_map(|path| {
                path.ways.iter().filter_map(move |way| {
                    let mut labels = label(path);
                    labels.push(("encapsulation", way.encapsulation.clone()));
                    Some((labels, pick(way)?))
                })
            });
            lines.gauges(name, help, values)?;
        }
        lines.counter(
            "path_errors_relayed",
            "ICMP errors of the underlay relayed to inner senders.",
            report.relayed,
        )?;
        lines.counter(
            "path_errors_ignored",
            "ICMP errors about packets that this node does not send.",
            report.ignored,
        )
    }
}
