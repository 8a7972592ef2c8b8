//! What the control plane asks of this module: what to begin with, and to remember what there is.
//!
//! Only what sources outside of this host say is remembered; the host's own files are read again
//! at every start. A source is known again by its *scope*: the path in the cluster (of Kubernetes
//! what the annotations begin with), and one member at least by which it was reached before. Entries
//! of another scope are another network's.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use tracing::{info, warn};
use warren_core::units::Time;

use super::file::{Loaded, Rest, StateFile, StateFileError};
use super::keeper::{Keeper, KeeperReader, KeeperReport};
use super::{Generation, Saved, SavedLease, SavedPath, SavedSource};
use crate::config::{self, Config};
use crate::rib::{Event, Recall, RecallWay, Reconciler, Settings, SourceKind};
use crate::source::kubernetes_server;

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
    /// Which sources said something, without what.
    pub sources: Vec<SavedSource>,
    /// What followed from it.
    recall: Option<Recall>,
    rest: Option<Rest>,
    /// What the node had claimed.
    pub leases: Vec<SavedLease>,
    /// What was known about ways.
    pub paths: Vec<SavedPath>,
}

impl Remembered {
    /// The routes that there were, where what they were decided by holds still; `basis` is
    /// [`Reconciler::basis`].
    pub fn take_recall(&mut self, basis: u64, settings: &Settings) -> Option<Recall> {
        let mut recall = self.recall.take()?;
        if recall.basis != basis {
            return None;
        }
        // What has aged is not restored either, and then what was decided is not what will be.
        let is_fresh = |source: &SavedSource| source.age <= settings.remember;
        if !self.sources.iter().all(is_fresh) {
            return None;
        }
        let sources = self.sources.iter().map(|source| source.source);
        let sources: Vec<SourceKind> = sources.collect();
        let is_asked = |way: &RecallWay| sources.contains(&way.source);
        if !recall.ways.iter().all(is_asked) {
            let ways = &recall.ways;
            let is_kept = |way: u32| {
                let way = usize::try_from(way).ok().and_then(|way| ways.get(way));
                way.is_some_and(is_asked)
            };
            recall.routes.retain(|(_, way)| is_kept(*way));
        }
        Some(recall)
    }

    /// Reads what the sources said, for the reconciler: [`Event::Restore`] for each.
    ///
    /// # Errors
    ///
    /// [`StateFileError::Damaged`] where it says what no source could have said.
    pub fn events(self) -> Result<Vec<Event>, StateFileError> {
        let Some(rest) = self.rest else {
            return Ok(Vec::new());
        };
        let saved = rest.read()?.sources.into_iter();
        // The head named the same, of which some are not asked any more.
        let is_asked = |source: &SavedSource| {
            let mut asked = self.sources.iter();
            asked.any(|asked| asked.source == source.source && asked.scope == source.scope)
        };
        let events = saved.filter(is_asked).map(|source| Event::Restore {
            source: source.source,
            entries: source.entries,
            age: source.age,
        });
        Ok(events.collect())
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
    /// the configuration wants none or the host has no place for it; where it cannot be had that
    /// costs a line in the log and the sentence of an alarm, which is the error.
    pub fn open(config: &Config) -> (Result<Option<Self>, String>, Remembered) {
        let mut scopes = scopes(config);
        let Some(path) = place(config, &scopes) else {
            return (Ok(None), Remembered::default());
        };
        let file = StateFile::new(path);
        let remembered = recall(file.load_head(), &config.node.name, &mut scopes);
        let keeper = file.make_directory().map_err(|error| error.to_string());
        let keeper = keeper.and_then(|()| Keeper::start(file).map_err(|error| error.to_string()));
        let memory = keeper.map_err(|error| {
            let alarm = format!("what this node learns is not kept across a restart: {error}");
            warn!("{alarm}");
            alarm
        });
        let memory = memory.map(|keeper| {
            Some(Self {
                node: config.node.name.clone(),
                scopes,
                keeper,
            })
        });
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
        let sources: Vec<SavedSource> = sources.collect();
        let is_saved = |kind| sources.iter().any(|source| source.source == kind);
        let saved = Saved {
            node: self.node.clone(),
            recall: Some(Recall::of(reconciler, is_saved)),
            sources,
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

    /// How saving goes, for another thread.
    #[must_use]
    pub fn reader(&self) -> KeeperReader {
        self.keeper.reader()
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
        Some(SavedSource {
            source: self.source,
            scope: self.name.clone(),
            position: status.position,
            age,
            entries: reconciler.entries(self.source).collect(),
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
fn recall((loaded, rest): (Loaded, Option<Rest>), node: &str, scopes: &mut [Scope]) -> Remembered {
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
        recall: saved.recall,
        rest,
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
    let kube = config.sources.kubernetes.iter();
    let kube = kube.map(|kube| {
        // Without a server the source does not start, and what it said is of no use.
        let server = kubernetes_server(kube).unwrap_or_default();
        Scope {
            source: SourceKind::Kube,
            name: format!("{}\n{server}", kube.annotation_prefix),
            age: None,
        }
    });
    etcd.chain(kube).collect()
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

    #[test]
    fn what_kubernetes_said_is_remembered_of_the_same_server_and_annotations() {
        use crate::rib::{Continuity, SourceUpdate, UpdateKind};
        let directory = tempfile::tempdir().expect("a directory");
        let config_of = |server: &str, more: &str| {
            let kubeconfig = directory.path().join("kubeconfig");
            let text = format!(
                "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
                 clusters: [{{name: k, cluster: {{server: \"{server}\"}}}}]\n\
                 users: [{{name: u, user: {{}}}}]\n"
            );
            std::fs::write(&kubeconfig, text).expect("a directory of ours");
            let text = format!(
                "[node]\nname = \"alpha\"\nunderlay = [\"192.0.2.1\"]\n\
                 [kubernetes]\nnetwork = \"10.5.0.0/16\"\nkubeconfig = \"{}\"\n{more}\n\
                 [state]\nfile = \"{}/state\"\n",
                kubeconfig.display(),
                directory.path().display()
            );
            Config::parse(&text, "node.toml").expect("valid")
        };
        let config = config_of("http://127.0.0.1:8001", "");
        let (memory, _) = Memory::open(&config);
        let mut memory = memory.expect("no error").expect("a directory of ours");
        let mut before = reconciler();
        let full = Event::Update(SourceUpdate {
            source: SourceKind::Kube,
            kind: UpdateKind::Full {
                entries: entries(3),
                position: 7,
                continuity: Continuity::Same,
            },
        });
        before.handle(full, seconds(10));
        memory.save(&before, Vec::new(), Vec::new(), seconds(20));
        drop(memory);
        let other = "annotation-prefix = \"other.example\"";
        for (server, more, known) in [
            ("http://127.0.0.1:8001", "", true),
            ("http://127.0.0.1:8002", "", false),
            ("http://127.0.0.1:8001", other, false),
        ] {
            let (_memory, remembered) = Memory::open(&config_of(server, more));
            assert_eq!(!remembered.sources.is_empty(), known, "{server} {more}");
            let mut after = reconciler();
            after.handle_all(remembered.events().expect("whole"), Time::ZERO);
            assert_eq!(after.routes().count(), if known { 3 } else { 0 });
        }
    }

    fn entries(count: u8) -> Vec<crate::rib::Entry> {
        use crate::rib::{Content, Entry, Remote, RemoteRoute, Via};
        use std::sync::Arc;
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
                content: Content::Remote(Arc::new(Remote {
                    node: format!("n{number}").into(),
                    routes: vec![RemoteRoute { prefix, via }],
                })),
            }
        };
        (2..2 + count).map(entry).collect()
    }

    fn reconciler() -> Reconciler {
        Reconciler::new(Settings::default(), crate::rib::Identity::default())
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
        let mut memory = memory.expect("a directory of ours").expect("wanted");
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
        after.handle_all(remembered.events().expect("whole"), Time::ZERO);
        let table = |of: &Reconciler| of.routes().cloned().collect::<Vec<_>>();
        assert_eq!(table(&after), table(&before));
        assert_eq!(table(&after).len(), 3);
        let mut memory = memory.expect("as before").expect("wanted");
        memory.save(&after, Vec::new(), Vec::new(), seconds(3600));
        drop(memory);

        // And the one after that: an hour and an hour are two of the day.
        let (_memory, remembered) = Memory::open(&config_of(etcd));
        let mut third = reconciler();
        third.handle_all(remembered.events().expect("whole"), Time::ZERO);
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
