//! A model of an etcd cluster: revisions, leases, transactions, watches, compaction, backups.
//!
//! One linearizable store; what it lacks of the real thing (members, elections) shows itself to a
//! client only as requests that fail or whose answers are lost, which the world does.

use std::collections::BTreeMap;
use std::time::Duration;

use tun_node::source::etcd::store::{
    Answer, Condition, Failure, Header, Kv, Request, Value, WatchEvent,
};
use warren_core::units::Time;

/// The store.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) cluster: u64,
    pub(crate) revision: u64,
    pub(crate) kvs: BTreeMap<String, Kv>,
    leases: BTreeMap<i64, Lease>,
    pub(crate) next_lease: i64,
    pub(crate) history: Vec<WatchEvent>,
    /// Events up to this revision are forgotten.
    pub(crate) compacted: u64,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: Duration,
    expires: Time,
}

pub(crate) const PREFIX: &str = "/coreos.com/network";

impl Model {
    pub(crate) fn new(cluster: u64) -> Self {
        Self {
            cluster,
            revision: 1,
            kvs: BTreeMap::new(),
            leases: BTreeMap::new(),
            next_lease: 1,
            history: Vec::new(),
            compacted: 0,
        }
    }

    pub(crate) fn header(&self) -> Header {
        Header {
            cluster: self.cluster,
            revision: self.revision,
        }
    }

    pub(crate) fn put(&mut self, key: &str, value: &str, lease: i64) {
        self.revision += 1;
        let create_revision = self
            .kvs
            .get(key)
            .map_or(self.revision, |kv| kv.create_revision);
        let kv = Kv {
            key: key.as_bytes().to_vec(),
            value: Value::of(key.as_bytes(), value.as_bytes().to_vec()),
            create_revision,
            mod_revision: self.revision,
            lease,
        };
        self.history.push(WatchEvent::Put(kv.clone()));
        self.kvs.insert(key.to_owned(), kv);
    }

    /// Deletes keys in one transaction.
    pub(crate) fn delete(&mut self, keys: &[String]) {
        self.revision += 1;
        for key in keys {
            if self.kvs.remove(key).is_some() {
                self.history.push(WatchEvent::Delete {
                    key: key.as_bytes().to_vec(),
                    revision: self.revision,
                });
            }
        }
    }

    /// Ends leases whose time is over; returns whether any did.
    pub(crate) fn expire(&mut self, now: Time) -> bool {
        let over: Vec<i64> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.expires <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in &over {
            self.end_lease(*number);
        }
        !over.is_empty()
    }

    /// Gives every lease its whole time again, as a new leader does.
    pub(crate) fn renew_all(&mut self, now: Time) {
        for lease in self.leases.values_mut() {
            lease.expires = now.after(lease.ttl);
        }
    }

    /// The cluster's clock runs ahead.
    pub(crate) fn jump(&mut self, by: Duration) {
        for lease in self.leases.values_mut() {
            let left = lease
                .expires
                .as_nanos()
                .saturating_sub(by.as_nanos() as u64);
            lease.expires = Time::from_nanos(left);
        }
    }

    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }

    /// Events after `revision`; `None` when they are forgotten.
    pub(crate) fn events_after(&self, revision: u64) -> Option<Vec<WatchEvent>> {
        if revision < self.compacted {
            return None;
        }
        let from = self
            .history
            .partition_point(|event| event.revision() <= revision);
        Some(self.history[from..].to_vec())
    }

    pub(crate) fn answer(&mut self, request: &Request, now: Time) -> Result<Answer, Failure> {
        Ok(match request {
            Request::List => Answer::Listed {
                header: self.header(),
                kvs: self.kvs.values().cloned().collect(),
            },
            Request::Count => Answer::Counted {
                header: self.header(),
                count: self.kvs.len(),
            },
            Request::Ping { key } => Answer::Pong {
                header: self.header(),
                mod_revision: self.kvs.get(key).map(|kv| kv.mod_revision),
            },
            Request::Grant { ttl_s } => {
                let ttl = Duration::from_secs(*ttl_s as u64);
                let lease = self.next_lease;
                self.next_lease += 1;
                let expires = now.after(ttl);
                self.leases.insert(lease, Lease { ttl, expires });
                Answer::Granted {
                    lease,
                    ttl_s: *ttl_s,
                }
            }
            Request::Renew { lease } => match self.leases.get_mut(lease) {
                Some(known) => {
                    known.expires = now.after(known.ttl);
                    let ttl_s = known.ttl.as_secs() as i64;
                    Answer::Renewed { ttl_s }
                }
                None => Answer::Renewed { ttl_s: 0 },
            },
            Request::Revoke { lease } => {
                if !self.leases.contains_key(lease) {
                    return Err(Failure::NoSuchLease);
                }
                self.end_lease(*lease);
                Answer::Done
            }
            Request::Put {
                key,
                condition,
                value,
                lease,
            } => {
                if *lease != 0 && !self.leases.contains_key(lease) {
                    return Err(Failure::NoSuchLease);
                }
                let succeeded = match condition {
                    Condition::Absent => {
                        let (_, name) = key.rsplit_once('/').unwrap();
                        let address = &name[..=name.find('-').unwrap()];
                        let begin = format!("{PREFIX}/subnets/{address}");
                        !self.kvs.keys().any(|key| key.starts_with(&begin))
                    }
                    Condition::Unchanged(revision) => {
                        let known = self.kvs.get(key);
                        known.is_some_and(|kv| kv.mod_revision == *revision)
                    }
                };
                if succeeded {
                    self.put(key, value, *lease);
                }
                self.written(succeeded)
            }
            Request::Delete { key, unchanged } => {
                let known = self.kvs.get(key);
                let succeeded = known.is_some_and(|kv| kv.mod_revision == *unchanged);
                if succeeded {
                    self.delete(std::slice::from_ref(key));
                }
                self.written(succeeded)
            }
        })
    }

    fn written(&self, succeeded: bool) -> Answer {
        Answer::Written {
            header: self.header(),
            succeeded,
        }
    }

    fn end_lease(&mut self, number: i64) {
        self.leases.remove(&number);
        let with_it = self.kvs.iter().filter(|(_, kv)| kv.lease == number);
        let keys: Vec<String> = with_it.map(|(key, _)| key.clone()).collect();
        if !keys.is_empty() {
            self.delete(&keys);
        }
    }
}
