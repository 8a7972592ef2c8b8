//! The API's JSON: as much of Node, of lists and of watches as is looked at, and the patches that
//! this node sends. Members that are not named here are skipped while reading.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::node::{Node, is_calico};
use crate::flannel::VALUE_OCTETS_MAX;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeList {
    pub(super) metadata: ListMeta,
    /// `null` where there is none.
    pub(super) items: Option<Vec<WireNode>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
    /// Where the next page begins; empty on the last.
    #[serde(rename = "continue")]
    pub(super) next: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WireNode {
    metadata: ObjectMeta,
    spec: NodeSpec,
    status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ObjectMeta {
    name: String,
    resource_version: String,
    creation_timestamp: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<NodeAddress>>,
    conditions: Option<Vec<NodeCondition>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    r#type: String,
    address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeCondition {
    r#type: String,
    status: String,
}

impl WireNode {
    /// What is kept of it; `prefix` is that of flannel's annotations.
    pub(super) fn read(self, prefix: &str) -> Node {
        let ours = |key: &str| {
            let rest = key.strip_prefix(prefix);
            rest.is_some_and(|rest| rest.starts_with('/')) || is_calico(key)
        };
        let mut annotations = self.metadata.annotations.unwrap_or_default();
        annotations.retain(|key, value| ours(key) && value.len() <= VALUE_OCTETS_MAX);
        let mut pod_cidrs = self.spec.pod_cidrs.unwrap_or_default();
        if pod_cidrs.is_empty() && !self.spec.pod_cidr.is_empty() {
            pod_cidrs.push(self.spec.pod_cidr);
        }
        let addresses = self.status.addresses.unwrap_or_default();
        let internal = addresses.iter().filter(|one| one.r#type == "InternalIP");
        let conditions = self.status.conditions.unwrap_or_default();
        let mut conditions = conditions.iter();
        let network = conditions.find(|one| one.r#type == NETWORK_UNAVAILABLE);
        Node {
            name: self.metadata.name,
            version: self.metadata.resource_version,
            created: self.metadata.creation_timestamp.unwrap_or_default(),
            pod_cidrs,
            internal: internal
                .filter_map(|one| one.address.parse().ok())
                .collect(),
            annotations,
            network_available: network.map(|one| one.status == "False"),
        }
    }
}

/// A line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct WatchLine {
    pub(super) r#type: String,
    /// A Node, or a [`Status`] when the type is `ERROR`.
    pub(super) object: Value,
}

/// How the API says no.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) message: String,
    pub(super) reason: String,
    pub(super) code: u16,
}

/// The strategic merge patch that makes the annotations so; `None` takes one away.
pub(super) fn annotations_patch(annotations: &BTreeMap<String, Option<String>>) -> Value {
    json!({ "metadata": { "annotations": annotations } })
}

/// The strategic merge patch that sets the condition; conditions are merged by their type. `now`
/// is in RFC 3339.
pub(super) fn condition_patch(available: bool, now: &str) -> Value {
    let (status, reason, message) = if available {
        ("False", "WarrenIsUp", "Warren is running on this node")
    } else {
        ("True", "WarrenLeft", "Warren was taken off this node")
    };
    json!({ "status": { "conditions": [{
        "type": NETWORK_UNAVAILABLE,
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }] } })
}

/// The seconds since 1970 as the API writes times: RFC 3339, UTC, whole seconds.
pub(super) fn rfc3339(unix_s: u64) -> String {
    let (days, rest) = (unix_s / 86_400, unix_s % 86_400);
    // Days of eras of 400 years that begin with March, so that the leap day comes last.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_api_does() {
        for (unix_s, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_432_207, "2026-11-23T11:10:07Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(unix_s), text);
        }
    }

    #[test]
    fn nodes_are_read_with_nulls_and_without_what_nobody_asked_for() {
        let text = r#"{"metadata":{"resourceVersion":"7","continue":""},"items":[
            {"metadata":{"name":"a","resourceVersion":"5","creationTimestamp":null,
              "annotations":{"flannel.alpha.coreos.com/x":"1","flannel.alpha.coreos.community/x":"2",
                "projectcalico.org/IPv4Address":"192.0.2.1/24","node.alpha/ttl":"0"}},
             "spec":{"podCIDR":"10.1.0.0/24","taints":[{"key":"k"}]},
             "status":{"addresses":[{"type":"Hostname","address":"a"},{"type":"InternalIP","address":"192.0.2.1"}],
               "conditions":[{"type":"Ready","status":"False"},{"type":"NetworkUnavailable","status":"True"}]}},
            {"metadata":{"name":"b","annotations":null},"spec":{},"status":{"addresses":null}}]}"#;
        let list: NodeList = serde_json::from_str(text).unwrap();
        let nodes: Vec<Node> = list
            .items
            .unwrap()
            .into_iter()
            .map(|node| node.read("flannel.alpha.coreos.com"))
            .collect();
        let keys: Vec<_> = nodes[0].annotations.keys().collect();
        assert_eq!(
            keys,
            [
                "flannel.alpha.coreos.com/x",
                "projectcalico.org/IPv4Address"
            ]
        );
        assert_eq!(nodes[0].pod_cidrs, ["10.1.0.0/24"]);
        assert_eq!(
            nodes[0].internal,
            ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]
        );
        assert_eq!(nodes[0].network_available, Some(false));
        assert_eq!(nodes[1].network_available, None);
    }
}
