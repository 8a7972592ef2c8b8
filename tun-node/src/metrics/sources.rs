//! The metrics of sources.

use std::fmt;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Labels, Lines, Page};
use crate::ctl::sources::SourceReport;

impl Page {
    pub(super) fn sources(&self, lines: &mut Lines<'_>) -> fmt::Result {
        let Some(report) = &self.sources else {
            return Ok(());
        };
        type Pick = fn(&SourceReport) -> Option<u64>;
        let gauges: [(&str, &str, Pick); 9] = [
            ("source_up", "Whether the source answers.", |s| {
                Some(u64::from(s.state == "synced"))
            }),
            ("source_entries", "Entries, usable or not.", |s| {
                Some(s.entries)
            }),
            (
                "source_held",
                "Entries held against their withdrawal.",
                |s| Some(s.held),
            ),
            (
                "source_remembered",
                "Entries that are only remembered from before the start.",
                |s| Some(s.remembered),
            ),
            ("source_quarantined", "Entries that are not applied.", |s| {
                Some(s.quarantined)
            }),
            (
                "source_position",
                "Where in the source's history the node is; etcd: the revision.",
                |s| Some(s.position),
            ),
            (
                "source_lag_milliseconds",
                "Time since the source last answered.",
                |s| s.lag_ms,
            ),
            (
                "source_synced_ago_milliseconds",
                "Time since the source last delivered everything.",
                |s| s.synced_ms_ago,
            ),
            (
                "source_hold_left_milliseconds",
                "Time until what is held is withdrawn, or what is remembered ages out.",
                |s| s.hold_left_ms,
            ),
        ];
        for (name, help, pick) in gauges {
            let values = report.sources.iter().filter_map(|source| {
                let labels = vec![("source", source.source.clone())];
                Some((labels, pick(source)?))
            });
            lines.gauges(name, help, values)?;
        }
        lines.counters(
            "source_events",
            "What happened to the routes of a source, by what.",
            None,
            report.happened.iter().map(|happened| {
                let labels = vec![
                    ("source", happened.source.clone()),
                    ("what", happened.what.clone()),
                ];
                (labels, happened.count)
            }),
        )?;
        let alarms = i64::try_from(self.status.alarms.len()).unwrap_or(i64::MAX);
        lines.gauge("alarms", "What somebody should look at.", alarms)
    }
}

impl Lines<'_> {
    pub(super) fn gauges(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
