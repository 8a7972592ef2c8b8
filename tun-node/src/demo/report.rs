//! What a demo found: as numbers, as a verdict, as a table and as JSON.
//!
//! The demo fills a [`Report`] as it goes, so that one that was cut short still says what it
//! knows. [`Report::judge`] is the only place that decides whether a demo succeeded.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use super::Encap;
use super::order::{EchoTally, End};
use super::plan::Plan;

/// Everything that a demo found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// Whether every pair answered without loss and the transfer arrived unchanged.
    pub(super) ok: bool,
    /// What went wrong, in one sentence.
    pub(super) failure: Option<String>,
    /// `vxlan`, `fou`, `gue` or `geneve`.
    pub(super) encap: &'static str,
    /// The UDP port of the encapsulation.
    pub(super) port: u16,
    /// The nodes.
    pub(super) nodes: Vec<NodeReport>,
    /// Every ordered pair, in each family.
    pub(super) pairs: Vec<PairReport>,
    /// The TCP transfer.
    pub(super) transfer: Option<TransferReport>,
    /// The whole demo, from its start to this report.
    pub(super) seconds: f64,
}

/// A node and what it counted.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeReport {
    /// Its name.
    pub(super) name: String,
    /// Where the others reach it.
    pub(super) underlay: Ipv4Addr,
    /// In the overlay.
    pub(super) addresses: [IpAddr; 2],
    /// Packets by encapsulation; empty when its counters were not read.
    pub(super) packets: BTreeMap<String, Packets>,
    /// Packets dropped, by where and why; only what occurred.
    pub(super) drops: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Packets of one encapsulation at one node.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Packets {
    /// Encapsulated and sent.
    pub(super) encap: u64,
    /// Received and decapsulated.
    pub(super) decap: u64,
}

/// Echo requests from one node to another in one family.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PairReport {
    /// Who asked.
    pub(super) from: String,
    /// Who answered.
    pub(super) to: String,
    /// `ipv4` or `ipv6`.
    pub(super) family: &'static str,
    /// Requests.
    pub(super) sent: u32,
    /// Requests that were answered.
    pub(super) received: u32,
    /// The share that was not, in percent.
    pub(super) loss_percent: f64,
    /// Replies beyond the first.
    pub(super) duplicates: u32,
    /// Round-trip times in milliseconds, if anything was answered.
    pub(super) rtt_ms: Option<Rtt>,
    /// What the kernel said when it refused to send, if it did.
    pub(super) send_error: Option<String>,
    /// Every round-trip time, in nanoseconds, sorted.
    #[serde(skip)]
    pub(super) rtt_ns: Vec<u64>,
}

/// A summary of round-trip times, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Rtt {
    /// The shortest.
    pub(super) min: f64,
    /// The middle one.
    pub(super) median: f64,
    /// 99 of 100 are not longer (nearest rank: of ten, the longest).
    pub(super) p99: f64,
}

/// The TCP transfer as both ends saw it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct TransferReport {
    /// Who sent.
    pub(super) from: String,
    /// Who received.
    pub(super) to: String,
    /// `ipv4`.
    pub(super) family: &'static str,
    /// Octets that were to be sent.
    pub(super) octets: u64,
    /// Octets sent.
    pub(super) octets_sent: u64,
    /// Octets received.
    pub(super) octets_received: u64,
    /// XXH64 of the octets sent.
    pub(super) digest_sent: String,
    /// XXH64 of the octets received.
    pub(super) digest_received: String,
    /// From the first octet received to the end of the connection.
    pub(super) seconds: f64,
    /// Payload over that time.
    pub(super) gbit_per_second: f64,
}

impl Report {
    /// A report of nothing yet.
    pub(super) const fn new(encap: Encap) -> Self {
        Self {
            ok: false,
            failure: None,
            encap: encap.name(),
            port: 0,
            nodes: Vec::new(),
            pairs: Vec::new(),
            transfer: None,
            seconds: 0.0,
        }
    }

    /// Takes over who takes part.
    pub(super) fn add_plan(&mut self, plan: &Plan) {
        self.port = plan.port;
        let nodes = plan.nodes.iter();
        self.nodes = nodes
            .map(|node| NodeReport {
                name: node.name.clone(),
                underlay: node.underlay,
                addresses: node.addresses(),
                packets: BTreeMap::new(),
                drops: BTreeMap::new(),
            })
            .collect();
    }

    /// Takes over the tally of the requests from one node to another.
    pub(super) fn add_echoes(&mut self, from: &str, to: &str, tally: EchoTally) {
        let mut rtt_ns = tally.rtt_ns;
        rtt_ns.sort_unstable();
        let received = u32::try_from(rtt_ns.len()).unwrap_or(u32::MAX);
        self.pairs.push(PairReport {
            from: from.to_owned(),
            to: to.to_owned(),
            family: family_name(tally.target),
            sent: tally.sent,
            received,
            loss_percent: loss_percent(tally.sent, received),
            duplicates: tally.duplicates,
            rtt_ms: Rtt::of(&rtt_ns),
            send_error: tally.send_error,
            rtt_ns,
        });
    }

    /// Takes over both ends of the transfer of `octets` from one node to another.
    pub(super) fn add_transfer(
        &mut self,
        from: &str,
        to: &str,
        octets: u64,
        sent: End,
        received: End,
    ) {
        let seconds = received.elapsed_ns as f64 / 1e9;
        self.transfer = Some(TransferReport {
            from: from.to_owned(),
            to: to.to_owned(),
            family: "ipv4",
            octets,
            octets_sent: sent.octets,
            octets_received: received.octets,
            digest_sent: sent.digest,
            digest_received: received.digest,
            seconds,
            gbit_per_second: if seconds > 0.0 {
                received.octets as f64 * 8.0 / seconds / 1e9
            } else {
                0.0
            },
        });
    }

    /// Notes what went wrong; the first sentence stays.
    pub(super) fn fail(&mut self, sentence: String) {
        self.failure.get_or_insert(sentence);
    }

    /// Decides whether the demo succeeded, and if not, why.
    pub(super) fn judge(&mut self) {
        let nodes = self.nodes.len();
        let expected = nodes * nodes.saturating_sub(1) * 2;
        let bad: Vec<&PairReport> = self.pairs.iter().filter(|pair| !pair.is_good()).collect();
        let failure = if self.pairs.len() != expected || nodes < 2 {
            Some("not every pair of nodes was tried".to_owned())
        } else if let Some(first) = bad.first() {
            Some(format!(
                "{} of {expected} tries lost packets, the first from {} to {} over {}: {} of {} \
                 requests were answered{}",
                bad.len(),
                first.from,
                first.to,
                family_title(first.family),
                first.received,
                first.sent,
                first
                    .send_error
                    .as_ref()
                    .map(|error| format!(" ({error})"))
                    .unwrap_or_default(),
            ))
        } else {
            match &self.transfer {
                None => Some("the TCP transfer was not made".to_owned()),
                Some(transfer) => transfer.failure(),
            }
        };
        if let Some(sentence) = failure {
            self.fail(sentence);
        }
        self.ok = self.failure.is_none();
    }

    /// The report for people: tables and a last sentence.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        self.write_pairs(&mut text);
        if let Some(transfer) = &self.transfer {
            text.push_str(&transfer.line());
        }
        self.write_nodes(&mut text);
        text.push_str(&self.last_sentence());
        text
    }

    /// A row a pair while they fit a screen; beyond, a row a node, and the pairs that lost.
    fn write_pairs(&self, text: &mut String) {
        if self.pairs.is_empty() {
            return;
        }
        let _ = writeln!(
            text,
            "{:<24} {:>9} {:>8} {:>8} {:>8} {:>11} {:>8} {:>8} {:>8}",
            "pings, times in ms",
            "IPv4 loss",
            "min",
            "median",
            "p99",
            "IPv6 loss",
            "min",
            "median",
            "p99"
        );
        let each = self.nodes.len() <= ROWS_BY_PAIR_UP_TO;
        let mut rows: BTreeMap<(usize, usize), Row> = BTreeMap::new();
        for pair in &self.pairs {
            let index = |name: &str| self.nodes.iter().position(|node| node.name == name);
            let (Some(from), Some(to)) = (index(&pair.from), index(&pair.to)) else {
                continue;
            };
            if each || !pair.is_good() {
                let title = format!("{} -> {}", pair.from, pair.to);
                rows.entry((from, to + 1)).or_default().add(title, pair);
            }
            if !each {
                let title = format!("{} -> all {} others", pair.from, self.nodes.len() - 1);
                rows.entry((from, 0)).or_default().add(title, pair);
            }
        }
        for row in rows.values() {
            let _ = writeln!(
                text,
                "{:<24} {}   {}",
                row.title,
                row.v4.cells(),
                row.v6.cells()
            );
        }
    }

    fn write_nodes(&self, text: &mut String) {
        if self.nodes.iter().all(|node| node.packets.is_empty()) {
            return;
        }
        let _ = writeln!(
            text,
            "\n{:<8} {:<14} {:<14} {:<20} {:>14} {:>10} {:>8}",
            "node",
            "underlay",
            "overlay",
            "",
            format!("{} packets out", self.encap),
            "in",
            "dropped"
        );
        for node in &self.nodes {
            let [v4, v6] = node.addresses;
            let packets = node.packets.get(self.encap).copied().unwrap_or_default();
            let dropped: u64 = node.drops.values().flat_map(BTreeMap::values).sum();
            let _ = writeln!(
                text,
                "{:<8} {:<14} {:<14} {:<20} {:>14} {:>10} {:>8}",
                node.name,
                node.underlay.to_string(),
                v4.to_string(),
                v6.to_string(),
                packets.encap,
                packets.decap,
                dropped
            );
        }
        for node in &self.nodes {
            for (place, reasons) in &node.drops {
                for (reason, count) in reasons {
                    let _ = writeln!(text, "dropped at {}, {place}: {count} {reason}", node.name);
                }
            }
        }
        text.push('\n');
    }

    fn last_sentence(&self) -> String {
        if !self.ok {
            // The caller writes the failure where errors go.
            return String::new();
        }
        let moved = self.transfer.as_ref().map_or(0, |t| t.octets_received);
        format!(
            "Shown in {:.1} s: {} nodes, each with a user and network namespace of its own and \
             nothing but ordinary UDP sockets to the outside, reached each other through {}; every \
             pair answered over IPv4 and IPv6 without loss, and {} arrived unchanged.\n\
             Look further: `tun-node demo --keep` leaves the nodes running and says how to get \
             into them, `--encap vxlan|fou|gue|geneve` and `--nodes 2..16` change the overlay, `--json` \
             prints every number.\n",
            self.seconds,
            self.nodes.len(),
            // Geneve is a name, the others stand for words.
            if self.encap == "geneve" {
                "Geneve".to_owned()
            } else {
                self.encap.to_uppercase()
            },
            megabytes(moved),
        )
    }
}

impl PairReport {
    const fn is_good(&self) -> bool {
        self.received == self.sent && self.sent > 0
    }
}

impl Rtt {
    /// Summarises sorted nanoseconds; `None` of nothing.
    fn of(sorted_ns: &[u64]) -> Option<Self> {
        let rank = |hundredths: usize| {
            let at = (sorted_ns.len() * hundredths)
                .div_ceil(100)
                .saturating_sub(1);
            sorted_ns.get(at).map(|ns| *ns as f64 / 1e6)
        };
        Some(Self {
            min: rank(0)?,
            median: rank(50)?,
            p99: rank(99)?,
        })
    }
}

impl TransferReport {
    fn failure(&self) -> Option<String> {
        let arrived = self.octets_sent == self.octets
            && self.octets_received == self.octets
            && self.digest_sent == self.digest_received;
        (!arrived).then(|| {
            format!(
                "the transfer of {} octets from {} to {} did not arrive unchanged: {} octets \
                 sent with digest {}, {} received with digest {}",
                self.octets,
                self.from,
                self.to,
                self.octets_sent,
                self.digest_sent,
                self.octets_received,
                self.digest_received,
            )
        })
    }

    fn line(&self) -> String {
        format!(
            "\nTCP {} -> {} over {}: {} in {:.2} s, {:.2} Gbit/s, digests {}\n",
            self.from,
            self.to,
            family_title(self.family),
            megabytes(self.octets_received),
            self.seconds,
            self.gbit_per_second,
            if self.digest_sent == self.digest_received {
                format!("agree ({})", self.digest_sent)
            } else {
                "DISAGREE".to_owned()
            }
        )
    }
}

/// One row of the table of pings: one pair, or several together.
#[derive(Debug, Default)]
struct Row {
    title: String,
    v4: Cells,
    v6: Cells,
}

#[derive(Debug, Default)]
struct Cells {
    sent: u32,
    rtt_ns: Vec<u64>,
}

impl Row {
    fn add(&mut self, title: String, pair: &PairReport) {
        self.title = title;
        let cells = if pair.family == FAMILIES[0] {
            &mut self.v4
        } else {
            &mut self.v6
        };
        cells.sent += pair.sent;
        cells.rtt_ns.extend(&pair.rtt_ns);
    }
}

impl Cells {
    fn cells(&self) -> String {
        let mut sorted = self.rtt_ns.clone();
        sorted.sort_unstable();
        let received = u32::try_from(sorted.len()).unwrap_or(u32::MAX);
        let loss = loss_percent(self.sent, received);
        // No loss is exact; a little must not look like none.
        let digits = if loss > 0.0 && loss < 10.0 { 1 } else { 0 };
        let loss = format!("{loss:.digits$} %");
        match Rtt::of(&sorted) {
            Some(rtt) => format!(
                "{loss:>9} {:>8.3} {:>8.3} {:>8.3}",
                rtt.min, rtt.median, rtt.p99
            ),
            None => format!("{loss:>9} {:>8} {:>8} {:>8}", "-", "-", "-"),
        }
    }
}

fn loss_percent(sent: u32, received: u32) -> f64 {
    if sent == 0 {
        return 0.0;
    }
    f64::from(sent.saturating_sub(received)) * 100.0 / f64::from(sent)
}

const fn family_name(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => FAMILIES[0],
        IpAddr::V6(_) => FAMILIES[1],
    }
}

fn family_title(name: &str) -> &'static str {
    if name == FAMILIES[0] { "IPv4" } else { "IPv6" }
}

fn megabytes(octets: u64) -> String {
    format!("{:.1} MB", octets as f64 / 1e6)
}

const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];
/// With six nodes there are 30 pairs, about a screen.
const ROWS_BY_PAIR_UP_TO: usize = 6;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn end(octets: u64, digest: &str) -> End {
        End {
            octets,
            digest: digest.to_owned(),
            elapsed_ns: 500_000_000,
        }
    }

    /// A report of `count` nodes that lost nothing.
    fn good(count: u8) -> Report {
        let plan = Plan::new(count, Encap::Vxlan, Path::new("/nowhere"), 99).unwrap();
        let mut report = Report::new(Encap::Vxlan);
        report.add_plan(&plan);
        for (from, to) in plan.pairs() {
            for target in plan.nodes[to].addresses() {
                let tally = EchoTally {
                    target,
                    sent: 10,
                    rtt_ns: (1..=10).rev().map(|n| n * 100_000).collect(),
                    duplicates: 0,
                    send_error: None,
                };
                report.add_echoes(&plan.nodes[from].name, &plan.nodes[to].name, tally);
            }
        }
        report.add_transfer("node-1", "node-2", 1000, end(1000, "aa"), end(1000, "aa"));
        report
    }

    fn failure_of(mut report: Report) -> String {
        report.judge();
        assert!(!report.ok);
        report.failure.unwrap()
    }

    #[test]
    fn all_answered_and_unchanged_is_success() {
        let mut report = good(3);
        report.judge();
        assert!(report.ok, "{:?}", report.failure);
        assert!(report.last_sentence().contains("without loss"));
    }

    #[test]
    fn one_lost_reply_is_failure_and_named() {
        let mut report = good(3);
        let pair = &mut report.pairs[3];
        pair.received = 9;
        let sentence = failure_of(report);
        assert!(
            sentence.contains("from node-1 to node-3 over IPv6: 9 of 10"),
            "{sentence}"
        );
    }

    #[test]
    fn a_missing_pair_is_failure() {
        let mut report = good(3);
        report.pairs.pop();
        assert!(failure_of(report).contains("not every pair"));
        assert!(failure_of(Report::new(Encap::Fou)).contains("not every pair"));
    }

    #[test]
    fn a_short_or_changed_transfer_is_failure() {
        for (sent, received) in [
            (end(1000, "aa"), end(1000, "ab")),
            (end(1000, "aa"), end(999, "aa")),
            (end(999, "aa"), end(999, "aa")),
        ] {
            let mut report = good(2);
            report.add_transfer("node-1", "node-2", 1000, sent, received);
            assert!(failure_of(report).contains("did not arrive unchanged"));
        }
        let mut report = good(2);
        report.transfer = None;
        assert!(failure_of(report).contains("not made"));
    }

    #[test]
    fn round_trip_times_are_by_nearest_rank() {
        assert_eq!(Rtt::of(&[]), None);
        let ten: Vec<u64> = (1..=10).map(|n| n * 1_000_000).collect();
        let expected = Rtt {
            min: 1.0,
            median: 5.0,
            p99: 10.0,
        };
        assert_eq!(Rtt::of(&ten), Some(expected));
        let many: Vec<u64> = (1..=1000).map(|n| n * 1_000_000).collect();
        assert_eq!(Rtt::of(&many).unwrap().p99, 990.0);
    }

    #[test]
    fn few_nodes_have_a_row_a_pair_and_many_a_row_a_node() {
        let rows = |count| {
            let mut report = good(count);
            report.judge();
            let table = report.table();
            table
                .lines()
                .filter(|line| line.contains(" -> ") && !line.starts_with("TCP"))
                .count()
        };
        assert_eq!(rows(3), 6);
        assert_eq!(rows(6), 30);
        assert_eq!(rows(16), 16);
    }

    #[test]
    fn with_many_nodes_a_pair_that_lost_has_its_own_row() {
        let mut report = good(7);
        report.pairs[0].received = 0;
        report.pairs[0].rtt_ns.clear();
        let table = report.table();
        assert!(table.contains("node-1 -> node-2"), "{table}");
        assert!(table.contains("100 %"), "{table}");
        assert!(!table.contains("node-1 -> node-3"), "{table}");
    }
}
