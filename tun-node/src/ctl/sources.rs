//! What is told about sources, their entries, what happened to them, and reloads.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Where routes come from, and how that goes.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct SourcesReport {
    /// Each source, the preferred first.
    pub sources: Vec<SourceReport>,
    /// The subnets that a source gave this node.
    pub claimed: Option<ClaimReport>,
    /// Entries that are not applied; the first 1000.
    pub quarantine: Vec<QuarantineReport>,
    /// How many there are in all.
    pub quarantined: u64,
    /// How often each thing happened since the start.
    pub happened: Vec<HappenedReport>,
}

/// How often something happened.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct HappenedReport {
    /// In which source.
    pub source: String,
    /// What, as in [`EventReport::what`].
    pub what: String,
    /// How often.
    pub count: u64,
}

/// The state of a source.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct SourceReport {
    /// `config`, `file`, `etcd`, `kube` or `bgp`.
    pub source: String,
    /// `synced`, `waiting` (for the first answer) or `lost`.
    pub state: String,
    /// Why it is lost.
    pub why: Option<String>,
    /// Entries, usable or not.
    pub entries: u64,
    /// Entries held against their withdrawal.
    pub held: u64,
    /// Milliseconds until they are withdrawn, or remembered ones age out.
    pub hold_left_ms: Option<u64>,
    /// Entries that are only remembered from before the start.
    pub remembered: u64,
    /// Entries in quarantine.
    pub quarantined: u64,
    /// Milliseconds since it last delivered everything.
    pub synced_ms_ago: Option<u64>,
    /// Milliseconds since it last answered: how far behind the node may be.
    pub lag_ms: Option<u64>,
    /// Where in its history it is; etcd: the revision.
    pub position: u64,
}

/// What a source gave this node.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct ClaimReport {
    /// The source.
    pub source: String,
    /// The subnets.
    pub subnets: Vec<String>,
    /// The networks that they are of.
    pub networks: Vec<String>,
    /// How packets of the network travel: `vxlan`, `ipip`, `host-gw`, `udp`.
    pub backend: String,
    /// The MTU of the device.
    pub mtu: u16,
}

/// An entry that is not applied.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct QuarantineReport {
    /// The source.
    pub source: String,
    /// The key; printable.
    pub key: String,
    /// The reason's name, which does not change.
    pub reason: String,
    /// What was seen; printable.
    pub detail: String,
}

/// An entry that has to do with a prefix.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct WhyReport {
    /// Its prefix.
    pub prefix: String,
    /// The node that it is about.
    pub node: String,
    /// The source.
    pub source: String,
    /// The key there.
    pub key: String,
    /// `accepted`, `rejected`, or `shadowed` by a preferred source.
    pub verdict: String,
    /// Who stands before it.
    pub because: String,
    /// `said` by the source, or only `kept` by this node.
    pub standing: String,
    /// Milliseconds until it goes if it is only kept.
    pub left_ms: Option<u64>,
}

/// Something that happened.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct EventReport {
    /// One more than that of the event before.
    pub number: u64,
    /// Milliseconds since 1970, by the wall clock at the time of asking.
    pub unix_ms: u64,
    /// In which source.
    pub source: String,
    /// What: `added`, `changed`, `withdrawn`, `held`, ...
    pub what: String,
    /// To which prefix or key.
    pub subject: String,
    /// More.
    pub detail: String,
}

/// What a reload came to.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct ReloadReport {
    /// Whether nothing was to be done but to look.
    pub dry_run: bool,
    /// Differences, each a line that begins with `+`, `-` or `~`.
    pub differences: Vec<String>,
    /// Sections that differ but take effect at the next start only.
    pub at_next_start: Vec<String>,
    /// The generation of the tables afterwards.
    pub epoch: u64,
}
