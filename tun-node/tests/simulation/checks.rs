//! What must hold in the world, whatever goes wrong.

use super::*;

impl World {
    /// No two nodes hold one IPv4 address, at any time.
    pub(super) fn check_store(&self) -> Result<(), String> {
        let mut last: Option<SubnetKey> = None;
        let mut all: Vec<SubnetKey> = self
            .subnet_keys()
            .iter()
            .filter_map(|key| SubnetKey::parse(key.rsplit_once('/')?.1.as_bytes()).ok())
            .filter(|key| key.v4.prefix_len() == 24)
            .collect();
        all.sort();
        for key in all {
            if last.is_some_and(|last| last.v4 == key.v4) {
                return Err(format!("two claims of {key}"));
            }
            last = Some(key);
        }
        Ok(())
    }

    /// A route may go only when its key went or changed since the route came.
    pub(super) fn check_withdrawal(
        &self,
        at: usize,
        route: &LiveRoute,
        installed: Option<Time>,
    ) -> Result<(), String> {
        let Some(via) = route.via else {
            return Ok(());
        };
        let key = format!("{PREFIX}/subnets/{}", route.key);
        let number = self.nodes[at].number;
        if let (Some((since, value)), Some(installed)) = (self.since.get(&key), installed)
            && *since <= installed
            && value.contains(&format!("\"{}\"", via.remote))
            && self.is_winner(&key)
            && !self.may_have_lost(at, &key, installed)
        {
            return Err(format!(
                "node {number} withdrew {route:?}, which did not change"
            ));
        }
        // After a wipe or a restored backup: the owner is well and claims it again.
        let owner = self.nodes.iter().find(|node| {
            let own = own(node.number, 0);
            via.remote == own.public_ip || Some(via.remote) == own.public_ipv6.map(Into::into)
        });
        let Some(owner) = owner else {
            return Ok(());
        };
        let well = owner.up
            && !owner.paused
            && owner.reach == Reach::Whole
            && self.now.since(owner.quiet_since) > Duration::from_secs(70);
        let same = owner
            .agent
            .subnet()
            .is_some_and(|own| own.to_string() == *route.key);
        let taken = self.taken.get(&key);
        let taken = taken.is_some_and(|at| self.now.since(*at) < Duration::from_secs(65));
        if well && same && !taken && self.etcd_up {
            return Err(format!(
                "node {number} withdrew {route:?} of node {}, which is well and has it",
                owner.number
            ));
        }
        Ok(())
    }

    /// Whether the subnet lost to another one since then, in what the node has seen: two changes in
    /// one instant are seen one after the other.
    fn may_have_lost(&self, at: usize, key: &str, installed: Time) -> bool {
        let until = self.lost.get(key);
        until.is_some_and(|until| *until > installed && self.nodes[at].read <= *until)
    }

    /// Remembers which subnets lose to others before and after a change of the store.
    pub(super) fn note_losers(&mut self) {
        let winners = self.winners();
        let winners: BTreeSet<&String> = winners.iter().map(|(key, _)| key).collect();
        let keys = self.subnet_keys().into_iter();
        let losers = keys.filter(|key| !winners.contains(key)).collect();
        let before = std::mem::replace(&mut self.losers, losers);
        for key in before.iter().chain(&self.losers) {
            self.lost.insert(key.clone(), self.now);
        }
    }

    pub(super) fn is_winner(&self, key: &str) -> bool {
        self.winners().iter().any(|(winner, _)| winner == key)
    }

    /// Who should be routed, by comparing everything with everything.
    pub(super) fn winners(&self) -> Vec<(String, LeaseAttrs)> {
        let config = self.etcd.kvs.get(&format!("{PREFIX}/config"));
        let Some(Kv {
            value: Value::Octets(config),
            ..
        }) = config
        else {
            return Vec::new();
        };
        let network = NetConf::parse(config).unwrap();
        let rules = LeaseRules::of(&network, false);
        let mut all: Vec<(bool, u64, String, SubnetKey, LeaseAttrs)> = Vec::new();
        for key in self.subnet_keys() {
            let kv = &self.etcd.kvs[&key];
            let Value::Octets(octets) = &kv.value else {
                continue;
            };
            let (_, name) = key.rsplit_once('/').unwrap();
            let Ok(subnet) = SubnetKey::parse(name.as_bytes()) else {
                continue;
            };
            let Ok(attrs) = LeaseAttrs::parse(octets, &rules) else {
                continue;
            };
            if subnet.fits(&network).is_ok() {
                let odd = !subnet.conforms(&network);
                all.push((odd, kv.create_revision, key, subnet, attrs));
            }
        }
        all.sort_by(|a, b| (a.0, a.1, &a.2).cmp(&(b.0, b.1, &b.2)));
        let mut winners: Vec<(String, SubnetKey, LeaseAttrs)> = Vec::new();
        for (_, _, key, subnet, attrs) in all {
            let clash = winners.iter().any(|(_, other, taken)| {
                let one_address = taken.public_ip == attrs.public_ip;
                let one_mac = taken.backend == attrs.backend;
                other.overlaps(&subnet) || one_address != one_mac
            });
            if !clash {
                winners.push((key, subnet, attrs));
            }
        }
        winners
            .into_iter()
            .map(|(key, _, attrs)| (key, attrs))
            .collect()
    }

    pub(super) fn check_converged(&self, exactly: bool) -> Result<(), String> {
        let winners = self.winners();
        let mut owners = BTreeSet::new();
        for (key, attrs) in &winners {
            if !owners.insert(attrs.public_ip) {
                return Err(format!(
                    "{} has two subnets, {key} one of them",
                    attrs.public_ip
                ));
            }
        }
        for node in &self.nodes {
            let number = node.number;
            let own = own(number, node.mac_salt);
            let Some(subnet) = node.agent.subnet() else {
                return Err(format!(
                    "node {number} has no subnet: {:?}",
                    node.agent.poll_timeout()
                ));
            };
            let own_key = subnet.under(PREFIX);
            if !winners
                .iter()
                .any(|(key, a)| *key == own_key && a.public_ip == own.public_ip)
            {
                return Err(format!("node {number} believes in {subnet}"));
            }
            let mut wanted: BTreeMap<IpNet, Option<std::net::IpAddr>> = BTreeMap::new();
            for (key, attrs) in &winners {
                let (_, name) = key.rsplit_once('/').unwrap();
                for prefix in SubnetKey::parse(name.as_bytes()).unwrap().prefixes() {
                    let via = match prefix {
                        IpNet::V4(_) => attrs.public_ip.into(),
                        IpNet::V6(_) => attrs.public_ipv6.unwrap().into(),
                    };
                    wanted.insert(prefix, (*key != own_key).then_some(via));
                }
            }
            let has: BTreeMap<IpNet, Option<std::net::IpAddr>> = node
                .table
                .routes()
                .map(|route| (route.prefix, route.via.map(|via| via.remote)))
                .collect();
            for (prefix, via) in &wanted {
                if has.get(prefix) != Some(via) {
                    let found = has.get(prefix);
                    return Err(format!(
                        "node {number}: {prefix} via {found:?}, not {via:?}"
                    ));
                }
            }
            let held: usize = node
                .table
                .sources()
                .map(|(_, s)| s.held + s.remembered)
                .sum();
            if has.len() != wanted.len() && (exactly || held == 0) {
                return Err(format!(
                    "node {number} has {} of {} routes",
                    has.len(),
                    wanted.len()
                ));
            }
        }
        Ok(())
    }
}
