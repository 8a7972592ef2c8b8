//! What goes wrong in the world, and how it is healed.

use super::*;

impl World {
    pub(super) fn fault(&mut self) -> Result<(), String> {
        let nodes = self.nodes.len() as u64;
        let at = self.numbers.below(nodes) as usize;
        let kind = self.numbers.below(18);
        let number = self.nodes[at].number;
        self.say(|| format!("fault {kind}, node {number}"));
        if kind < 8 {
            self.nodes[at].quiet_since = self.now;
        }
        match kind {
            0 => self.nodes[at].reach = Reach::Hole,
            1 => self.nodes[at].reach = Reach::Refused,
            2 | 3 => self.mend(at)?,
            4 => self.crash(at),
            5 => self.nodes[at].paused = true,
            6 => self.resume(at)?,
            7 => {
                let ms = self.numbers.below(20_000);
                self.nodes[at].ahead += Duration::from_millis(ms);
                self.serve_if_awake(at)?;
            }
            8 => {
                self.etcd_up = false;
                self.end_watches("connection reset");
            }
            9 => self.start_etcd(),
            10 => {
                self.etcd.compact();
                if self.numbers.one_in(2) {
                    self.end_watches("leader lost");
                }
            }
            11 => {
                let backup = self.etcd.clone();
                self.backups.push(backup);
            }
            12 => {
                if let Some(backup) = self.backups.pop() {
                    self.replace_store(backup, "restored");
                }
            }
            13 => {
                let cluster = if self.numbers.one_in(2) {
                    self.etcd.cluster
                } else {
                    self.numbers.next()
                };
                self.replace_store(Model::new(cluster), "wiped");
                if self.numbers.one_in(2) {
                    self.put_config();
                }
            }
            14 => {
                let jump = self.numbers.below(30);
                self.etcd.jump(Duration::from_secs(jump));
            }
            15 => {
                // The operator deletes what some nodes have.
                let some = 1 + self.numbers.below(3);
                for _ in 0..some {
                    let keys: Vec<String> = self.subnet_keys();
                    if keys.is_empty() {
                        break;
                    }
                    let key = keys[self.numbers.below(keys.len() as u64) as usize].clone();
                    self.etcd.delete(&[key]);
                    self.changed();
                }
            }
            _ => self.hostile(),
        }
        Ok(())
    }

    pub(super) fn hostile(&mut self) {
        let n = self.numbers.below(250);
        let net = format!("{PREFIX}/subnets/10.244.{n}.0-24");
        let six = if self.dual {
            format!("&fc00:5:0:{n:x}::-64")
        } else {
            String::new()
        };
        let key = format!("{net}{six}");
        let other = own(self.numbers.below(self.nodes.len() as u64) as u16, 0);
        let (key, value) = match self.numbers.below(6) {
            0 => (key, "$(reboot)".to_owned()),
            1 => (
                format!("{PREFIX}/subnets/0.0.0.0-0"),
                lease(own(900, 0), self.dual),
            ),
            2 => (
                format!("{PREFIX}/subnets/10.244.0.0-17"),
                lease(own(901, 0), self.dual),
            ),
            // Someone else's MAC address at another address.
            3 => {
                let thief = OwnNode {
                    public_ip: Ipv4Addr::new(198, 51, 100, 7),
                    ..other
                };
                (key, lease(thief, self.dual))
            }
            // A flannel node.
            4 => (key, lease(own(1000 + n as u16, 0), self.dual)),
            // What no node writes but can stand in the way of one that does.
            _ => match n % 4 {
                // Of before the network's subnets were longer, or had IPv6.
                0 => (
                    format!("{PREFIX}/subnets/10.244.{n}.0-25"),
                    lease(own(902, 0), false),
                ),
                1 => (net, lease(own(1000 + n as u16, 0), false)),
                // A second name for what one of the nodes may have.
                2 => (
                    format!("{PREFIX}/subnets/10.244.{n}.0-024{six}"),
                    lease(other, self.dual),
                ),
                _ => (format!("{PREFIX}/subnets/nonsense"), "{}".to_owned()),
            },
        };
        if !self.etcd.kvs.contains_key(&key) {
            let taken = key.split_once('&').map_or(&*key, |(v4, _)| v4);
            if !self.etcd.kvs.keys().any(|known| known.starts_with(taken)) {
                self.etcd.put(&key, &value, 0);
                self.changed();
            }
        }
    }

    pub(super) fn subnet_keys(&self) -> Vec<String> {
        let begin = format!("{PREFIX}/subnets/");
        let keys = self.etcd.kvs.keys();
        keys.filter(|key| key.starts_with(&begin))
            .cloned()
            .collect()
    }

    pub(super) fn start_etcd(&mut self) {
        if !self.etcd_up {
            self.etcd_up = true;
            self.etcd.renew_all(self.now);
        }
    }

    pub(super) fn replace_store(&mut self, store: Model, why: &'static str) {
        // What the backup has is as it was; the leases begin anew.
        let next_lease = self.etcd.next_lease;
        self.etcd = store;
        // Numbers of leases are made of time and never come again.
        self.etcd.next_lease = next_lease;
        self.etcd.renew_all(self.now);
        self.end_watches(why);
        let deliberately = self.taken.clone();
        self.changed();
        // Nobody took these away.
        self.taken = deliberately;
    }

    pub(super) fn mend(&mut self, at: usize) -> Result<(), String> {
        if self.nodes[at].reach != Reach::Whole {
            self.nodes[at].reach = Reach::Whole;
            self.nodes[at].quiet_since = self.now;
            if let Some(Watch { number, dead, .. }) = self.nodes[at].watch {
                if dead {
                    let (when, life) = (self.soon(PROBE_EVERY_MS), self.nodes[at].life);
                    let why = "connection reset";
                    self.push(when, at, life, What::WatchEnded { number, why });
                } else {
                    self.feed(at, number);
                }
            }
        }
        Ok(())
    }

    pub(super) fn crash(&mut self, at: usize) {
        let ms = self.numbers.below(5000);
        let when = self.after(ms);
        let node = &mut self.nodes[at];
        if node.up {
            node.up = false;
            node.life += 1;
            let life = node.life;
            self.push(when, at, life, What::Restart);
        }
    }

    pub(super) fn restart(&mut self, at: usize) -> Result<(), String> {
        if self.nodes[at].up {
            return Ok(());
        }
        let node = &self.nodes[at];
        let (number, life, salt) = (node.number, node.life, node.mac_salt);
        let previous = node.agent.subnet();
        let ahead = node.ahead;
        let remembered: Vec<_> = node.table.entries(SourceKind::Etcd).collect();
        let kept = self.numbers.one_in(2);
        let salt = if self.numbers.one_in(2) {
            salt + 1
        } else {
            salt
        };
        let ttl_s = [15, 40, 86_400][self.numbers.below(3) as usize];
        let mut fresh = self.node(number, life, ttl_s, previous.filter(|_| kept), salt);
        fresh.ahead = ahead;
        fresh.reach = self.nodes[at].reach;
        if kept {
            let local = self.now.after(ahead);
            let event = Event::Restore {
                source: SourceKind::Etcd,
                entries: remembered,
                age: Duration::from_secs(3),
            };
            for change in fresh.table.handle(event, local).routes {
                fresh.installed.insert(change.prefix, Time::ZERO);
            }
        }
        self.nodes[at] = fresh;
        self.serve(at)
    }

    pub(super) fn resume(&mut self, at: usize) -> Result<(), String> {
        let node = &mut self.nodes[at];
        if !node.paused {
            return Ok(());
        }
        node.paused = false;
        node.quiet_since = self.now;
        let (waiting, life) = (std::mem::take(&mut node.waiting), node.life);
        for what in waiting {
            self.happen(at, life, what)?;
        }
        self.serve_if_awake(at)
    }

    pub(super) fn serve_if_awake(&mut self, at: usize) -> Result<(), String> {
        if self.nodes[at].up && !self.nodes[at].paused {
            self.serve(at)?;
        }
        Ok(())
    }

    pub(super) fn heal(&mut self) -> Result<(), String> {
        self.say(|| "healed".to_owned());
        self.healed = true;
        self.start_etcd();
        if !self.etcd.kvs.contains_key(&format!("{PREFIX}/config")) {
            self.put_config();
        }
        // Who claims another's MAC address first, while that one is away, has it until the
        // operator, whom the quarantine tells, takes it away.
        let values = self.since.iter();
        let thieves = values.filter(|(_, (_, value))| value.contains("198.51.100.7"));
        let thieves: Vec<String> = thieves.map(|(key, _)| key.clone()).collect();
        if !thieves.is_empty() {
            self.etcd.delete(&thieves);
            self.changed();
        }
        for at in 0..self.nodes.len() {
            self.mend(at)?;
            self.resume(at)?;
            if !self.nodes[at].up {
                self.restart(at)?;
            }
        }
        Ok(())
    }
}
