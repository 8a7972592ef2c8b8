//! What the agent sees of an etcd cluster: keys, revisions, leases; no protocol.

use std::fmt;

use crate::flannel::{KEY_OCTETS_MAX, LEASE_OCTETS_MAX, VALUE_OCTETS_MAX};

/// A key with its value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kv {
    /// The whole key, as [`kept`].
    pub key: Vec<u8>,
    /// The value.
    pub value: Value,
    /// The revision that made the key.
    pub create_revision: u64,
    /// The revision that last changed it.
    pub mod_revision: u64,
    /// The lease that it dies with; 0 when with none.
    pub lease: i64,
}

/// A value, or how large it was.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Value {
    /// The octets.
    Octets(Vec<u8>),
    /// More octets than are looked into.
    TooLarge,
}

impl Value {
    /// Keeps the value of `key` if its octets are few enough: for a lease, of which there may be
    /// very many, or for a network's configuration.
    #[must_use]
    pub fn of(key: &[u8], octets: Vec<u8>) -> Self {
        let most = if key.ends_with(b"/config") {
            VALUE_OCTETS_MAX
        } else {
            LEASE_OCTETS_MAX
        };
        if octets.len() > most {
            Self::TooLarge
        } else {
            Self::Octets(octets)
        }
    }
}

/// A key as it is kept: one that is longer than any that is looked into by its beginning, its
/// length and a hash, so that it can be counted and named.
#[must_use]
pub fn kept(mut key: Vec<u8>) -> Vec<u8> {
    if key.len() > KEY_OCTETS_MAX {
        let end = format!("...{}:{:016x}", key.len(), hash(&key));
        key.truncate(KEY_OCTETS_MAX - KEPT_END_OCTETS_MAX);
        key.extend_from_slice(end.as_bytes());
    }
    key
}

/// FNV-1a: not against malice, which gains nothing but to hide one of its own keys.
pub(super) fn hash(octets: &[u8]) -> u64 {
    octets.iter().fold(0xcbf2_9ce4_8422_2325, |hash, octet| {
        (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What every answer says of the store.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Header {
    /// The cluster.
    pub cluster: u64,
    /// The revision of the store.
    pub revision: u64,
}

/// Something that happened to a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WatchEvent {
    /// It has this value.
    Put(Kv),
    /// It was deleted.
    Delete {
        /// The key.
        key: Vec<u8>,
        /// The revision that deleted it.
        revision: u64,
    },
}

impl WatchEvent {
    /// The revision of the event.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// What a key must be for a write to happen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Condition {
    /// There is no key that begins with this subnet's IPv4 address.
    Absent,
    /// The key was last changed by this revision.
    Unchanged(u64),
}

/// What the agent wants of the store. One at a time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    /// Everything below the prefix. Answered by [`Answer::Listed`].
    List,
    /// A count of what is below the prefix. [`Answer::Counted`].
    Count,
    /// Whether it is there, and what the key is. [`Answer::Pong`].
    Ping {
        /// The key.
        key: String,
    },
    /// A lease. [`Answer::Granted`].
    Grant {
        /// How long it lasts without being renewed.
        ttl_s: i64,
    },
    /// Another life for a lease. [`Answer::Renewed`].
    Renew {
        /// The lease.
        lease: i64,
    },
    /// The end of a lease and its keys. [`Answer::Done`].
    Revoke {
        /// The lease.
        lease: i64,
    },
    /// A write under a condition. [`Answer::Written`].
    Put {
        /// The key.
        key: String,
        /// What must be.
        condition: Condition,
        /// The value.
        value: String,
        /// The lease; 0 for none.
        lease: i64,
    },
    /// A deletion under a condition. [`Answer::Written`].
    Delete {
        /// The key.
        key: String,
        /// The revision that it must have been changed by last.
        unchanged: u64,
    },
}

impl Request {
    /// Whether it would change something in the store.
    pub(super) const fn is_write(&self) -> bool {
        match self {
            Self::List | Self::Count | Self::Ping { .. } => false,
            Self::Grant { .. } | Self::Renew { .. } | Self::Revoke { .. } => true,
            Self::Put { .. } | Self::Delete { .. } => true,
        }
    }
}

/// What the store says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// Everything, as of one revision.
    Listed {
        /// Of the store.
        header: Header,
        /// Every key.
        kvs: Vec<Kv>,
    },
    /// How many keys there are.
    Counted {
        /// Of the store.
        header: Header,
        /// Keys.
        count: usize,
    },
    /// It is there.
    Pong {
        /// Of the store.
        header: Header,
        /// The revision that last changed the key, if there is the key.
        mod_revision: Option<u64>,
    },
    /// A lease.
    Granted {
        /// Its number.
        lease: i64,
        /// How long it lasts.
        ttl_s: i64,
    },
    /// The lease lives on, or is gone when the time is 0.
    Renewed {
        /// How long it lasts.
        ttl_s: i64,
    },
    /// Whether the condition held, and so whether the write happened.
    Written {
        /// Of the store, after it.
        header: Header,
        /// Whether it happened.
        succeeded: bool,
    },
    /// It is done.
    Done,
}

/// Why there is no answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Failure {
    /// No member answered: the connection, not the request. It may have been carried out.
    Unreachable(String),
    /// A member refused.
    Refused(String),
    /// There is no such lease.
    NoSuchLease,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) | Self::Refused(why) => f.write_str(why),
            Self::NoSuchLease => f.write_str("there is no such lease"),
        }
    }
}

/// Keys that are read and kept at most; as many as the table takes.
pub(super) const KEYS_MAX: usize = 262_144;
/// Dots, the digits of any length, a colon and those of a hash.
const KEPT_END_OCTETS_MAX: usize = 3 + 20 + 1 + 16;
