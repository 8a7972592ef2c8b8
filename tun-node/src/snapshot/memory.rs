//! What the control plane asks of this module: what to begin with, and to remember what there is.
//!
//! Only what sources outside of this host say is remembered; the host's own files are read again
//! at every start. A source is known again by its *scope*: the path in the cluster, and one member
//! at least by which it was reached before. Entries of another scope are another network's.

use std::collections::HashSet;
use std::env;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};
use warren_core::units::Time;

use super::file::{Loaded, StateFile};
use super::keeper::{Keeper, KeeperReport};
use super::{Decided, Generation, Saved, SavedLease, SavedPath, SavedSource};
use crate::config::{self, Config};
use crate::rib::{Content, Entry, Event, LiveRoute, Reconciler, Settings, SourceKind};

/// The memory of a running node.
#[derive(Debug)]
pub struct Memory {
    node: String,
    scopes: Vec<Scope>,
    keeper: Keeper,
}

/// What a start begins with.
#[derive(Debug, Default)]
pub struct Remembered {
    /// What the sources said.
    pub sources: Vec<SavedSource>,
    /// What the node had claimed.
    pub leases: Vec<SavedLease>,
    /// What was known about ways.
    pub paths: Vec<SavedPath>,
}

impl Remembered {
    /// The routes that were in force, where what they were decided by holds still; `basis` is
    /// [`Reconciler::basis`]. What [`events`](Self::events) come to may differ, for reasons that
    /// are as rare as two entries that cannot both be true.
    #[must_use]
    pub fn routes(&self, basis: u64, settings: &Settings) -> Option<Vec<LiveRoute>> {
        let mut routes = Vec::new();
        for source in &self.sources {
            let decided = source.decided.as_ref()?;
            if decided.basis != basis || source.entries.len() > settings.entries_max {
                return None;
            }
            if source.age > settings.remember {
                continue;
            }
            routes.reserve(source.entries.len());
            let mut rejected = decided.rejected.iter().copied().peekable();
            for (place, entry) in (0_u32..).zip(&source.entries) {
                if rejected.next_if_eq(&place).is_some() {
                    continue;
                }
                let (remote, is_own) = match &entry.content {
                    Content::Remote(remote) => (remote, false),
                    Content::Own(remote) => (remote, true),
                    Content::Refused(_) => continue,
                };
                routes.extend(remote.routes.iter().map(|route| LiveRoute {
                    prefix: route.prefix,
                    node: Arc::clone(&remote.node),
                    source: source.source,
                    key: Arc::clone(&entry.key),
                    via: (!is_own).then_some(route.via),
                }));
            }
        }
        Some(routes)
    }

    /// What the sources said, for the reconciler: [`Event::Restore`] for each.
    #[must_use]
    pub fn events(self) -> Vec<Event> {
        let sources = self.sources.into_iter();
        let events = sources.map(|source| Event::Restore {
            source: source.source,
            entries: source.entries,
            age: source.age,
        });
        events.collect()
    }
}

/// A source that this node is configured to ask.
#[derive(Clone, Debug)]
struct Scope {
    source: SourceKind,
    name: String,
    /// How old what it said was at the start; `None` where nothing was remembered.
    age: Option<Duration>,
}

impl Memory {
    /// Reads what a node of this configuration remembers, and begins to keep it. No memory where
    /// the configuration wants none or the host has no place for it; that costs a line in the log
    /// and nothing else.
    #[must_use]
    pub fn open(config: &Config) -> (Option<Self>, Remembered) {
        let mut scopes = scopes(config);
        let Some(path) = place(config, &scopes) else {
            return (None, Remembered::default());
        };
        let file = StateFile::new(path);
        let remembered = recall(file.load(), &config.node.name, &mut scopes);
        let keeper = file.make_directory().map_err(|error| error.to_string());
        let keeper = keeper.and_then(|()| Keeper::start(file).map_err(|error| error.to_string()));
        let memory = match keeper {
            Ok(keeper) => Some(Self {
                node: config.node.name.clone(),
                scopes,
                keeper,
            }),
            Err(error) => {
                warn!("what this node learns is not kept across a restart: {error}");
                None
            }
        };
        (memory, remembered)
    }

    /// Something changed that is to be remembered. Time counts from the start of the plane.
    pub fn changed(&mut self, now: Time) {
        self.keeper.changed(now);
    }

    /// When [`save`](Self::save) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        self.keeper.poll_timeout()
    }

    /// Has the state written, without waiting for the disk.
    pub fn save(
        &mut self,
        reconciler: &Reconciler,
        leases: Vec<SavedLease>,
        paths: Vec<SavedPath>,
        now: Time,
    ) {
        let sources = self.scopes.iter();
        let sources = sources.filter_map(|scope| scope.saved(reconciler, now));
        let saved = Saved {
            node: self.node.clone(),
            sources: sources.collect(),
            leases,
            paths,
        };
        self.keeper.save(saved, now);
    }

    /// The scope of a source, for [`SavedLease::scope`].
    #[must_use]
    pub fn scope(&self, source: SourceKind) -> Option<&str> {
        let mut scopes = self.scopes.iter();
        let scope = scopes.find(|scope| scope.source == source)?;
        Some(&scope.name)
    }

    /// How saving goes.
    #[must_use]
    pub fn report(&self) -> KeeperReport {
        self.keeper.report()
    }
}

impl Scope {
    /// What the source says at present; `None` where nothing is known of it.
    fn saved(&self, reconciler: &Reconciler, now: Time) -> Option<SavedSource> {
        let mut statuses = reconciler.sources();
        let (_, status) = statuses.find(|(kind, _)| *kind == self.source)?;
        // Not heard of since the start: as old as it was then, and the time since.
        let age = match status.contact {
            Some(contact) => now.since(contact),
            None => self.age?.saturating_add(now.since(Time::ZERO)),
        };
        let entries: Vec<Entry> = reconciler.entries(self.source).collect();
        let rejected: HashSet<&Arc<str>> = reconciler.rejected(self.source).collect();
        let places = (0_u32..).zip(&entries);
        let rejected = places.filter(|(_, entry)| rejected.contains(&entry.key));
        let decided = Decided {
            basis: reconciler.basis(),
            rejected: rejected.map(|(place, _)| place).collect(),
        };
        Some(SavedSource {
            source: self.source,
            scope: self.name.clone(),
            position: status.position,
            age,
            entries,
            decided: Some(decided),
        })
    }

    /// Whether a saved scope is this one: the same first line, and a further one in common.
    fn is(&self, saved: &str) -> bool {
        let (mut ours, mut theirs) = (self.name.lines(), saved.lines());
        let members: Vec<&str> = theirs.by_ref().collect();
        let Some((first, members)) = members.split_first() else {
            return false;
        };
        ours.next() == Some(first) && ours.any(|member| members.contains(&member))
    }
}

/// Takes of a state what belongs to this node and to its sources.
fn recall(loaded: Loaded, node: &str, scopes: &mut [Scope]) -> Remembered {
    for refused in &loaded.refused {
        warn!("{refused}");
    }
    let Some((saved, generation)) = loaded.state else {
        return Remembered::default();
    };
    if saved.node != node {
        warn!("the state is of another node and not used");
        return Remembered::default();
    }
    if generation == Generation::Previous {
        warn!("the state of before the last change is used");
    }
    let mut remembered = Remembered {
        paths: saved.paths,
        ..Remembered::default()
    };
    for source in saved.sources {
        let mut scopes = scopes.iter_mut();
        let scope = scopes.find(|scope| scope.source == source.source && scope.is(&source.scope));
        let Some(scope) = scope else {
            info!(source = %source.source, "remembered, but not configured: not used");
            continue;
        };
        scope.age = Some(source.age);
        remembered.sources.push(source);
    }
    for lease in saved.leases {
        let mut scopes = scopes.iter();
        if scopes.any(|scope| scope.source == lease.source && scope.is(&lease.scope)) {
            remembered.leases.push(lease);
        }
    }
    remembered
}

/// The sources outside of this host.
fn scopes(config: &Config) -> Vec<Scope> {
    let etcd = config.sources.etcd.iter().map(|etcd| Scope {
        source: SourceKind::Etcd,
        name: format!("{}\n{}", etcd.prefix, etcd.endpoints.join("\n")),
        age: None,
    });
    etcd.collect()
}

/// Where the state is kept: `/var/lib/tun-node/NAME.state` as root, below `$XDG_STATE_HOME` or
/// `~/.local/state` as an ordinary user.
fn place(config: &Config, scopes: &[Scope]) -> Option<PathBuf> {
    match &config.state_file {
        config::StateFile::None => None,
        config::StateFile::At(path) => Some(path.clone()),
        // What is in the configuration alone needs no memory.
        config::StateFile::Usual if scopes.is_empty() => None,
        config::StateFile::Usual => {
            let directory = if nix::unistd::geteuid().is_root() {
                PathBuf::from("/var/lib")
            } else if let Some(state) = env::var_os("XDG_STATE_HOME").filter(|d| !d.is_empty()) {
                PathBuf::from(state)
            } else {
                PathBuf::from(env::var_os("HOME")?).join(".local/state")
            };
            let name = format!("{}.state", config.node.name);
            Some(directory.join("tun-node").join(name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &std::path::Path, etcd: &str) -> Config {
        let text = format!(
            "[node]\nname = \"alpha\"\nunderlay = [\"192.0.2.1\"]\n[etcd]\n{etcd}\n\
             [state]\nfile = \"{}/state\"\n",
            directory.display()
        );
        Config::parse(&text, "node.toml").expect("valid")
    }

    fn entries(count: u8) -> Vec<crate::rib::Entry> {
        use crate::rib::{Content, Entry, Remote, RemoteRoute, Via};
        let entry = |number: u8| {
            let prefix = format!("10.5.{number}.0/24").parse().expect("a prefix");
            let via = Via {
                remote: [192, 0, 2, number].into(),
                encapsulation: Some(warren_core::encap::Encapsulation::Ipip),
                underlay_mtu: None,
            };
            Entry {
                key: format!("10.5.{number}.0-24").into(),
                rank: number.into(),
                content: Content::Remote(std::sync::Arc::new(Remote {
                    node: format!("n{number}").into(),
                    routes: vec![RemoteRoute { prefix, via }],
                })),
            }
        };
        (2..2 + count).map(entry).collect()
    }

    fn reconciler() -> Reconciler {
        Reconciler::new(
            crate::rib::Settings::default(),
            crate::rib::Identity::default(),
        )
    }

    fn seconds(n: u64) -> Time {
        Time::from_nanos(n * 1_000_000_000)
    }

    #[test]
    fn a_node_begins_with_the_routes_that_it_had_and_forgets_them_a_day_after_the_last_word() {
        use crate::rib::{Continuity, SourceUpdate, UpdateKind};
        let directory = tempfile::tempdir().expect("a directory");
        let etcd = "endpoints = [\"http://192.0.2.9:2379\", \"http://192.0.2.8:2379\"]";
        let config_of = |etcd| config(directory.path(), etcd);
        let (memory, remembered) = Memory::open(&config_of(etcd));
        assert!(remembered.sources.is_empty());
        let mut memory = memory.expect("a directory of ours");
        let mut before = reconciler();
        let full = Event::Update(SourceUpdate {
            source: SourceKind::Etcd,
            kind: UpdateKind::Full {
                entries: entries(3),
                position: 7,
                continuity: Continuity::Same,
            },
        });
        before.handle(full, seconds(10));
        memory.save(&before, Vec::new(), Vec::new(), seconds(3610));
        drop(memory);

        // The next life: nobody answers.
        let (memory, remembered) = Memory::open(&config_of(etcd));
        let mut after = reconciler();
        after.handle_all(remembered.events(), Time::ZERO);
        let table = |of: &Reconciler| of.routes().cloned().collect::<Vec<_>>();
        assert_eq!(table(&after), table(&before));
        assert_eq!(table(&after).len(), 3);
        let mut memory = memory.expect("as before");
        memory.save(&after, Vec::new(), Vec::new(), seconds(3600));
        drop(memory);

        // And the one after that: an hour and an hour are two of the day.
        let (_memory, remembered) = Memory::open(&config_of(etcd));
        let mut third = reconciler();
        third.handle_all(remembered.events(), Time::ZERO);
        assert_eq!(table(&third).len(), 3);
        third.handle(Event::Timeout, seconds(22 * 3600 - 60));
        assert_eq!(table(&third).len(), 3);
        third.handle(Event::Timeout, seconds(22 * 3600 + 60));
        assert_eq!(table(&third).len(), 0);

        // One member in common is the same cluster; another path or none is not.
        for (etcd, known) in [
            (
                "endpoints = [\"http://192.0.2.8:2379\", \"http://192.0.2.7:2379\"]",
                true,
            ),
            ("endpoints = [\"http://192.0.2.7:2379\"]", false),
            (
                "endpoints = [\"http://192.0.2.8:2379\"]\nprefix = \"/other\"",
                false,
            ),
        ] {
            let (_memory, remembered) = Memory::open(&config_of(etcd));
            assert_eq!(!remembered.sources.is_empty(), known, "{etcd}");
        }
    }
}
