//! What the plane tells about itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use warren_core::units::Time;

use super::Core;
use crate::ctl::sources::{
    EventReport, HappenedReport, QuarantineReport, SourceReport, SourcesReport, WhyReport,
};
use crate::rib::{SourceKind, SourceStatus, Verdict};

impl Core {
    pub(super) fn sources_report(&self) -> SourcesReport {
        let now = self.now();
        let mut sources: Vec<SourceReport> = Vec::new();
        let wanted = self.wanted_sources();
        for (kind, status) in self.reconciler.sources() {
            sources.push(source_report(kind, status, now));
        }
        for kind in wanted {
            if !sources.iter().any(|source| source.source == kind.name()) {
                sources.push(source_report(kind, &SourceStatus::default(), now));
            }
        }
        let mut quarantined = 0;
        let mut quarantine = Vec::new();
        for one in self.reconciler.quarantine() {
            quarantined += 1;
            if quarantine.len() < QUARANTINE_SHOWN {
                quarantine.push(QuarantineReport {
                    source: one.source.name().to_owned(),
                    key: one.key.to_string(),
                    reason: one.refusal.name.to_owned(),
                    detail: one.refusal.detail,
                });
            }
        }
        let mtu = self.effective().device.mtu;
        let counts = self.reconciler.journal().counts();
        let mut happened: Vec<HappenedReport> = counts
            .map(|(source, what, count)| HappenedReport {
                source: source.name().to_owned(),
                what: what.name().to_owned(),
                count,
            })
            .collect();
        happened.sort_by(|a, b| (&a.source, &a.what).cmp(&(&b.source, &b.what)));
        SourcesReport {
            sources,
            claimed: self.claim.as_ref().map(|claim| claim.report(mtu)),
            quarantine,
            quarantined,
            happened,
        }
    }

    pub(super) fn why_report(&self, prefix: IpNet) -> Vec<WhyReport> {
        let now = self.now();
        let found = self.reconciler.why(prefix).into_iter();
        let rows = found.take(WHY_SHOWN).map(|why| {
            let (verdict, because) = match why.verdict {
                Verdict::Accepted => ("accepted", String::new()),
                Verdict::Rejected { refusal, shadowed } => {
                    let word = if shadowed { "shadowed" } else { "rejected" };
                    (word, refusal.to_string())
                }
            };
            WhyReport {
                prefix: why.prefix.to_string(),
                node: why.node.to_string(),
                source: why.order.source.name().to_owned(),
                key: why.order.key.to_string(),
                verdict: verdict.to_owned(),
                because,
                standing: if why.until.is_some() { "kept" } else { "said" }.to_owned(),
                left_ms: why.until.map(|until| ms(until.since(now))),
            }
        });
        rows.collect()
    }

    pub(super) fn events_report(&self, after: u64) -> Vec<EventReport> {
        let now = self.now();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let wall = ms(wall.unwrap_or_default());
        let entries = self.reconciler.journal().since(after);
        let events = entries.take(EVENTS_SHOWN).map(|entry| EventReport {
            number: entry.number,
            unix_ms: wall.saturating_sub(ms(now.since(entry.at))),
            source: entry.source.name().to_owned(),
            what: entry.what.name().to_owned(),
            subject: entry.subject.to_string(),
            detail: entry.detail.clone(),
        });
        events.collect()
    }

    /// The sources that the configuration names, whether or not they ever said something.
    fn wanted_sources(&self) -> Vec<SourceKind> {
        let sources = &self.loaded.config.sources;
        let etcd = sources.etcd.is_some().then_some(SourceKind::Etcd);
        let kube = sources.kubernetes.is_some().then_some(SourceKind::Kube);
        etcd.into_iter().chain(kube).collect()
    }
}

fn source_report(kind: SourceKind, status: &SourceStatus, now: Time) -> SourceReport {
    let count = |count: usize| count as u64;
    let state = match (&status.lost, status.synced) {
        (Some(_), _) => "lost",
        (None, Some(_)) => "synced",
        (None, None) => "waiting",
    };
    SourceReport {
        source: kind.name().to_owned(),
        state: state.to_owned(),
        why: status.lost.clone(),
        entries: count(status.entries),
        held: count(status.held),
        hold_left_ms: status.hold_until.map(|until| ms(until.since(now))),
        remembered: count(status.remembered),
        quarantined: count(status.quarantined),
        synced_ms_ago: status.synced.map(|at| ms(now.since(at))),
        // The files are never behind: they are read when they change.
        lag_ms: match kind {
            SourceKind::Config | SourceKind::File => None,
            SourceKind::Etcd | SourceKind::Kube | SourceKind::Bgp => {
                status.contact.map(|at| ms(now.since(at)))
            }
        },
        position: status.position,
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What fits an answer with room to spare.
const QUARANTINE_SHOWN: usize = 1000;
const WHY_SHOWN: usize = 1000;
const EVENTS_SHOWN: usize = 1000;
