//! The agent's copy of what is below the prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Bound;
use std::sync::Arc;

use super::agent::AgentSettings;
use super::claim::{Holding, Holdings};
use super::store::{Header, Kv, Value, WatchEvent, hash};
use crate::flannel::{
    Fault, LEASE_OCTETS_MAX, LeaseAttrs, LeaseRules, NetConf, Refused, SubnetKey,
};

/// The copy of what is below the prefix.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) header: Header,
    /// The newest event that was seen.
    pub(super) seen: u64,
    pub(super) config: Option<Kv>,
    /// What lies below `subnets/`, by what stands behind the slash: each without its key, and
    /// without its value where the name is no subnet's.
    pub(super) subnets: BTreeMap<Vec<u8>, Kv>,
    /// The other keys, which only count.
    pub(super) others: BTreeSet<Vec<u8>>,
    /// The subnets that keys name, whatever their values.
    pub(super) holdings: Holdings,
}

/// Which of flannel's keys a key is.
pub(super) enum Part<'a> {
    Config,
    Subnet(&'a [u8]),
    Other,
}

pub(super) fn part<'a>(key: &'a [u8], prefix: &str) -> Part<'a> {
    let below = key.strip_prefix(prefix.as_bytes());
    let Some(below) = below.and_then(|below| below.strip_prefix(b"/")) else {
        return Part::Other;
    };
    match below.strip_prefix(b"subnets/") {
        Some(name) => Part::Subnet(name),
        None if below == b"config" => Part::Config,
        None => Part::Other,
    }
}

impl Store {
    pub(super) fn put(&mut self, mut kv: Kv, prefix: &str) {
        match part(&kv.key, prefix) {
            Part::Config => self.config = Some(kv),
            Part::Subnet(name) => {
                let name = name.to_vec();
                kv.key = Vec::new();
                if SubnetKey::parse(&name).is_err() {
                    kv.value = Value::Octets(Vec::new());
                }
                self.subnets.insert(name, kv);
            }
            Part::Other => {
                self.others.insert(kv.key);
            }
        }
    }

    pub(super) fn delete(&mut self, key: &[u8], prefix: &str) {
        match part(key, prefix) {
            Part::Config => self.config = None,
            Part::Subnet(name) => {
                self.subnets.remove(name);
            }
            Part::Other => {
                self.others.remove(key);
            }
        }
    }

    /// Whether there is a key.
    pub(super) fn has(&self, key: &[u8], prefix: &str) -> bool {
        match part(key, prefix) {
            Part::Config => self.config.is_some(),
            Part::Subnet(name) => self.subnets.contains_key(name),
            Part::Other => self.others.contains(key),
        }
    }

    /// The revision that last changed a key, if there is the key.
    pub(super) fn mod_revision(&self, key: &[u8], prefix: &str) -> Option<u64> {
        let known = match part(key, prefix) {
            Part::Config => self.config.as_ref(),
            Part::Subnet(name) => self.subnets.get(name),
            Part::Other => None,
        };
        known.map(|kv| kv.mod_revision)
    }

    /// Whether a key below `subnets/` begins with this address, whatever stands behind it: while
    /// it does, no subnet of the address can be claimed
    /// ([`Condition::Absent`](super::store::Condition::Absent)).
    pub(super) fn names(&self, address: Ipv4Addr) -> bool {
        let begin = format!("{address}-").into_bytes();
        let from = (Bound::Included(begin.as_slice()), Bound::Unbounded);
        let first = self.subnets.range::<[u8], _>(from).next();
        first.is_some_and(|(name, _)| name.starts_with(&begin))
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.subnets.len() + self.others.len() + usize::from(self.config.is_some())
    }

    /// Whether an event is old.
    pub(super) fn has_seen(&self, event: &WatchEvent, prefix: &str) -> bool {
        let (key, revision) = match event {
            WatchEvent::Put(kv) => (&kv.key, kv.mod_revision),
            WatchEvent::Delete { key, revision } => (key, *revision),
        };
        let known = match part(key, prefix) {
            Part::Config => self.config.as_ref(),
            Part::Subnet(name) => self.subnets.get(name),
            Part::Other => None,
        };
        // What this node wrote is known before the watch tells.
        revision < self.seen || known.is_some_and(|kv| kv.mod_revision >= revision)
    }

    /// Whether a key is older than it was known to be: its history was replaced.
    pub(super) fn contradicts(&self, before: &Self) -> bool {
        self.subnets.iter().any(|(name, kv)| {
            let known = before.subnets.get(name);
            known.is_some_and(|known| kv.mod_revision < known.mod_revision)
        })
    }

    pub(super) fn drop_lease(&mut self, lease: i64) {
        self.subnets.retain(|_, kv| kv.lease != lease);
        self.holdings.retain(|_, holding| holding.lease != lease);
    }

    pub(super) fn read_holdings(&mut self, network: Option<&NetConf>, settings: &AgentSettings) {
        self.holdings.clear();
        let names: Vec<Vec<u8>> = self.subnets.keys().cloned().collect();
        for name in names {
            self.read_holding(&name, network, settings);
        }
    }

    pub(super) fn read_holding(
        &mut self,
        name: &[u8],
        network: Option<&NetConf>,
        settings: &AgentSettings,
    ) {
        let Ok(key) = SubnetKey::parse(name) else {
            return;
        };
        let Some(kv) = self.subnets.get(name) else {
            self.holdings.remove(&key);
            return;
        };
        let attrs = network.and_then(|network| {
            let rules = LeaseRules::of(network, settings.allow_loopback);
            read_value(&kv.value, &rules).ok()
        });
        let holding = Holding {
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            lease: kv.lease,
            attrs,
        };
        self.holdings.insert(key, holding);
    }
}

pub(super) fn read_value(value: &Value, rules: &LeaseRules) -> Result<LeaseAttrs, Refused> {
    match value {
        Value::Octets(octets) => LeaseAttrs::parse(octets, rules),
        Value::TooLarge => {
            Err(Fault::TooLarge.with(format!("more than {LEASE_OCTETS_MAX} octets")))
        }
    }
}

/// A key's name as text, one for each name.
pub(super) fn shown(name: &[u8]) -> Arc<str> {
    const OCTETS_MAX: usize = 256;
    let head = name.get(..OCTETS_MAX).unwrap_or(name);
    let mut text = head.escape_ascii().to_string();
    if head.len() < name.len() {
        text.push_str(&format!("...{}:{:016x}", name.len(), hash(name)));
    }
    Arc::from(text)
}
