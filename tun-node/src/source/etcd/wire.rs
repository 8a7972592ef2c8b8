//! The bodies of etcd's JSON gateway: 64-bit numbers are strings, octets are base64, and what is
//! zero stays away.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use super::store::{Header, Kv, Value, WatchEvent, kept};

/// Octets as base64.
pub(super) fn base64(octets: &[u8]) -> String {
    STANDARD.encode(octets)
}

/// The end of the range of all keys that begin with `prefix`.
pub(super) fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    // Nothing is behind it: to the end of all keys.
    vec![0]
}

#[derive(Debug, Default, Serialize)]
pub(super) struct RangeRequest {
    pub(super) key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) range_end: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) limit: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) revision: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) keys_only: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) count_only: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WireHeader {
    cluster_id: Number,
    revision: Number,
}

impl From<WireHeader> for Header {
    fn from(header: WireHeader) -> Self {
        Self {
            cluster: header.cluster_id.unsigned(),
            revision: header.revision.unsigned(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RangeResponse {
    pub(super) header: WireHeader,
    pub(super) kvs: Vec<WireKv>,
    pub(super) more: bool,
    pub(super) count: Number,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WireKv {
    key: String,
    value: String,
    create_revision: Number,
    mod_revision: Number,
    lease: Number,
}

impl WireKv {
    pub(super) fn mod_revision(&self) -> u64 {
        self.mod_revision.unsigned()
    }

    /// The key as it is in the store, however long; `None` when it is not base64.
    pub(super) fn whole_key(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.key).ok()
    }

    /// The key with its value, as they are kept; `None` when it is not base64.
    pub(super) fn read(self) -> Option<Kv> {
        let key = kept(self.whole_key()?);
        Some(Kv {
            value: Value::of(&key, STANDARD.decode(&self.value).ok()?),
            key,
            create_revision: self.create_revision.unsigned(),
            mod_revision: self.mod_revision.unsigned(),
            lease: self.lease.0,
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LeaseResponse {
    #[serde(rename = "ID")]
    pub(super) id: Number,
    #[serde(rename = "TTL")]
    pub(super) ttl: Number,
}

/// What a streamed method answers with, wrapped.
#[derive(Debug, Deserialize)]
pub(super) struct Streamed<T> {
    pub(super) result: Option<T>,
    pub(super) error: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TxnResponse {
    pub(super) header: WireHeader,
    pub(super) succeeded: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AuthResponse {
    pub(super) token: String,
}

/// How the gateway says no.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ErrorResponse {
    pub(super) error: serde_json::Value,
    pub(super) message: String,
    code: serde_json::Value,
}

impl ErrorResponse {
    /// Whether etcd itself says no, and not something in its place: with a code of gRPC, which
    /// streamed methods wrap.
    pub(super) fn is_of_etcd(&self) -> bool {
        let codes = [
            &self.code,
            self.error.get("grpc_code").unwrap_or(&self.code),
        ];
        let mut codes = codes.iter().filter_map(|code| code.as_u64());
        codes.any(|code| (1..=GRPC_CODE_MAX).contains(&code))
    }
}

/// The last of gRPC's status codes, UNAUTHENTICATED.
const GRPC_CODE_MAX: u64 = 16;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WatchResponse {
    pub(super) header: WireHeader,
    pub(super) created: bool,
    pub(super) canceled: bool,
    pub(super) cancel_reason: String,
    pub(super) compact_revision: Number,
    pub(super) fragment: bool,
    pub(super) events: Vec<WireEvent>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WireEvent {
    #[serde(rename = "type")]
    kind: String,
    kv: WireKv,
}

impl WireEvent {
    /// The event; `None` when its key is not base64.
    pub(super) fn read(self) -> Option<WatchEvent> {
        let kv = self.kv.read()?;
        Some(if self.kind == "DELETE" {
            WatchEvent::Delete {
                key: kv.key,
                revision: kv.mod_revision,
            }
        } else {
            WatchEvent::Put(kv)
        })
    }
}

/// A 64-bit number, written as a string or as a number.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Number(pub(super) i64);

impl Number {
    /// The same 64 bits without a sign: cluster numbers use them all.
    pub(super) const fn unsigned(self) -> u64 {
        self.0.cast_unsigned()
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of 64 bits")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                let signed = text.parse::<i64>().ok();
                let number = signed.or_else(|| Some(text.parse::<u64>().ok()?.cast_signed()));
                number
                    .map(Number)
                    .ok_or_else(|| E::custom("not a number of 64 bits"))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Number, E> {
                Ok(Number(number))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number.cast_signed()))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_of_a_real_gateway_are_read() {
        let range: RangeResponse = serde_json::from_str(
            r#"{"header":{"cluster_id":"14841639068965178418","member_id":"1","revision":"7","raft_term":"2"},
                "kvs":[{"key":"L3Vw","create_revision":"2","mod_revision":"7","version":"3","value":"MQ==","lease":"7587"}],
                "count":"1"}"#,
        )
        .unwrap();
        let header = Header::from(range.header);
        assert_eq!(
            (header.cluster, header.revision),
            (14_841_639_068_965_178_418, 7)
        );
        let kv = range.kvs.into_iter().next().unwrap().read().unwrap();
        assert_eq!(kv.key, b"/up");
        assert_eq!(kv.value, Value::Octets(b"1".to_vec()));
        assert_eq!(
            (kv.create_revision, kv.mod_revision, kv.lease),
            (2, 7, 7587)
        );
        let watch: Streamed<WatchResponse> = serde_json::from_str(
            r#"{"result":{"header":{"revision":"8"},"events":[{"type":"DELETE","kv":{"key":"L3Vw","mod_revision":"8"}},{"kv":{"key":"L3Vw"}}]}}"#,
        )
        .unwrap();
        let events: Vec<_> = watch.result.unwrap().events;
        let events: Vec<_> = events.into_iter().filter_map(WireEvent::read).collect();
        assert!(matches!(&events[0], WatchEvent::Delete { revision: 8, .. }));
        assert!(matches!(&events[1], WatchEvent::Put(_)));
    }

    #[test]
    fn range_ends_behind_everything_with_the_prefix() {
        assert_eq!(range_end(b"/a/"), b"/a0");
        assert_eq!(range_end(b"a\xff"), b"b");
        assert_eq!(range_end(b"\xff\xff"), [0]);
    }
}
