//! The files again: when somebody asks, or when they changed.
//!
//! What can be taken while the node runs is taken: peers, routes, the node's own prefixes, its
//! addresses on the underlay, what it receives, the guard. The rest is named and takes effect at the
//! next start. A file with a mistake anywhere changes nothing.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender};
use tracing::{info, warn};
use warren_core::units::Family;

use super::claim::RECEIVE_AGAIN;
use super::{Core, PlaneSender, identity, settings};
use crate::config::{Config, Loaded, route_files};
use crate::ctl::sources::ReloadReport;
use crate::node::on_link;
use crate::rib::{Event, LocalRoutes, SourceKind, SourceUpdate, StaticNext, Terms, UpdateKind};

/// Peers and routes of the configuration and of its route files.
pub(super) fn local_routes(loaded: &Loaded) -> LocalRoutes {
    let config = &loaded.config;
    let mut routes = LocalRoutes::default();
    routes.add(&config.peers, &config.routes, |index| {
        let mut files = loaded.files.iter();
        match files.find(|file| file.peers.contains(&index)) {
            Some(file) => (SourceKind::File, format!("{}:", file.name)),
            None => (SourceKind::Config, String::new()),
        }
    });
    routes
}

impl Core {
    /// Reads the files, and takes what they say unless it is a dry run.
    pub(super) fn reload(&mut self, dry_run: bool) -> Result<ReloadReport, String> {
        let read = Loaded::read(&self.path);
        let loaded = match read {
            Ok(loaded) => loaded,
            Err(errors) => {
                let why = errors.to_string();
                if !dry_run {
                    // The next change of the files is seen.
                    self.move_again = None;
                    self.files_are_lost(&why);
                }
                return Err(why);
            }
        };
        let at_next_start = not_reloadable(&self.loaded.config, &loaded.config);
        let taken = taken(&self.loaded.config, loaded);
        let differences = differences(&self.loaded, &taken);
        let is_changed = taken != self.loaded;
        if !dry_run {
            self.move_again = None;
            if is_changed && let Err(why) = self.take(taken) {
                self.move_again = Some(self.now().after(RECEIVE_AGAIN));
                self.files_are_lost(&why);
                return Err(why);
            }
            if !is_changed {
                self.receive_again();
            }
            self.files_are_found();
            self.publish();
        }
        Ok(ReloadReport {
            dry_run,
            differences,
            at_next_start,
            epoch: self.rib.reader().tables().epoch().0,
        })
    }

    /// Takes the files again that could not be taken, if it is time: whoever has a port at the new
    /// address may have left it, and no file changes by that.
    pub(super) fn move_if_due(&mut self) {
        if self.move_again.is_some_and(|again| again <= self.now()) {
            let report = self.reload(false);
            // That it failed was said when it first did, and is shown as long as it does.
            if report.is_ok() {
                self.log_reload(report);
            }
        }
    }

    /// What a reload came to, where nobody waits for an answer.
    pub(super) fn log_reload(&mut self, report: Result<ReloadReport, String>) {
        let now = self.now();
        match report {
            Ok(report) => {
                if !report.differences.is_empty() {
                    info!("reloaded: {} differences", report.differences.len());
                }
                if !report.at_next_start.is_empty() {
                    let sections = report.at_next_start.join(", ");
                    let text = format!("reloaded, but {sections} takes effect at the next start");
                    self.alarms.say(now, &text);
                }
            }
            Err(why) => {
                let first = why.lines().next().unwrap_or_default();
                self.alarms.say(now, &format!("not reloaded: {first}"));
            }
        }
    }

    /// The answer to who asked for a reload: that all is as the files say, or what is not.
    pub(super) fn reloaded(
        &self,
        report: Result<ReloadReport, String>,
    ) -> Result<ReloadReport, String> {
        let report = report?;
        match &self.unreceived {
            Some(unreceived) if !report.dry_run => Err(format!(
                "the files are taken, but {}",
                unreceived.sentence()
            )),
            Some(_) | None => Ok(report),
        }
    }

    fn take(&mut self, loaded: Loaded) -> Result<(), String> {
        let moves = underlay(&loaded.config) != underlay(&self.loaded.config);
        if moves {
            self.receive_at(&loaded)?;
        }
        let guard = loaded.config.sources.guard;
        self.reconciler.set_settings(settings(guard));
        let is_shape_new = (&loaded.config.receive, loaded.config.device.mtu)
            != (&self.loaded.config.receive, self.loaded.config.device.mtu);
        self.loaded = loaded;
        let config = &self.loaded.config;
        if moves {
            self.has_moved = true;
            let effective = self.effective();
            if let Some(parts) = &self.parts {
                self.probes_ipip = effective.receive.ipip;
                parts.paths.underlay(&effective);
                if let Some(host) = &parts.host {
                    host.set_underlay(config.node.underlay_v4, config.node.underlay_v6);
                }
            }
            let event = Event::Identity(identity(config));
            self.handle(vec![event]);
        }
        let config = &self.loaded.config;
        self.rib
            .set_terms(Terms::of(config, on_link(config, self.is_rootless)));
        self.take_files();
        if is_shape_new || moves {
            self.shape();
        }
        Ok(())
    }

    /// Has the workers receive at the underlay addresses of another configuration: nothing else
    /// of it may be taken before they do.
    fn receive_at(&mut self, loaded: &Loaded) -> Result<(), String> {
        let before = std::mem::replace(&mut self.loaded, loaded.clone());
        let after = Arc::new(self.effective());
        self.loaded = before;
        let Some(parts) = &self.parts else {
            return Ok(());
        };
        (parts.receives)(after).inspect_err(|_| {
            // What was shown meanwhile is not what is.
            let _ = (parts.receives)(Arc::new(self.effective()));
        })
    }

    /// Shows that the files cannot be read as they are.
    fn files_are_lost(&mut self, why: &str) {
        let why = why.lines().next().unwrap_or_default().to_owned();
        self.contact(UpdateKind::Lost { why });
    }

    fn files_are_found(&mut self) {
        self.contact(UpdateKind::Contact);
    }

    fn contact(&mut self, kind: UpdateKind) {
        self.handle(vec![Event::Update(SourceUpdate {
            source: SourceKind::Config,
            kind,
        })]);
    }
}

/// What of `new` can be taken while the node runs by `old`.
fn taken(old: &Config, new: Loaded) -> Loaded {
    let mut config = old.clone();
    // An address is changed for another one. One that a name has no more is kept: it may return.
    let is_followed = !new.config.node.follows.is_empty();
    if is_followed || underlay_families(&new.config) == underlay_families(old) {
        let node = &mut config.node;
        node.underlay_v4 = new.config.node.underlay_v4.or(node.underlay_v4);
        node.underlay_v6 = new.config.node.underlay_v6.or(node.underlay_v6);
        node.follows = new.config.node.follows;
    }
    config.node.prefixes = new.config.node.prefixes;
    config.peers = new.config.peers;
    config.routes = new.config.routes;
    config.receive = new.config.receive;
    config.sources.guard = new.config.sources.guard;
    if old.device.mtu_computed {
        config.device.mtu = new.config.device.mtu;
    }
    Loaded {
        config,
        files: new.files,
    }
}

/// The sections that differ but cannot be taken.
fn not_reloadable(old: &Config, new: &Config) -> Vec<String> {
    // What follows from a name that is an address stays as it was at the start.
    let is_renamed = !(old.node.is_named_by_address() && new.node.is_named_by_address());
    let node = |config: &Config| {
        let node = &config.node;
        let name = (node.name.clone(), node.vtep_mac);
        let families = underlay_families(config);
        let is_followed = !new.node.follows.is_empty();
        (
            is_renamed.then_some(name),
            (!is_followed).then_some(families),
        )
    };
    let device = |config: &Config| {
        let mut device = config.device.clone();
        if device.mtu_computed {
            device.mtu = old.device.mtu;
        }
        device
    };
    let sources = |config: &Config| {
        let mut sources = config.sources.clone();
        sources.guard = old.sources.guard;
        sources
    };
    let mut sections = Vec::new();
    for (section, differs) in [
        ("[node]", node(old) != node(new)),
        ("[device]", device(old) != device(new)),
        (
            "[control]",
            is_renamed && old.control_socket != new.control_socket,
        ),
        ("[metrics]", old.metrics_listen != new.metrics_listen),
        ("[log]", old.log_level != new.log_level),
        ("[worker]", old.worker != new.worker),
        ("[probing]", old.probing != new.probing),
        ("[state]", old.state_file != new.state_file),
        (
            "[etcd], [kubernetes], [files]",
            sources(old) != sources(new),
        ),
    ] {
        if differs {
            sections.push(section.to_owned());
        }
    }
    sections
}

fn underlay(config: &Config) -> [Option<IpAddr>; 2] {
    [Family::V4, Family::V6].map(|family| config.node.underlay(family))
}

fn underlay_families(config: &Config) -> [bool; 2] {
    underlay(config).map(|address| address.is_some())
}

/// What differs, a line each.
fn differences(old: &Loaded, new: &Loaded) -> Vec<String> {
    let (before, after) = (rows(old), rows(new));
    let mut lines = Vec::new();
    for (key, row) in &before {
        match after.get(key) {
            None => lines.push(format!("- {row}")),
            Some(now) if now != row => lines.push(format!("~ {now}")),
            Some(_) => {}
        }
    }
    for (key, row) in &after {
        if !before.contains_key(key) {
            lines.push(format!("+ {row}"));
        }
    }
    for (before, after) in underlay(&old.config).into_iter().zip(underlay(&new.config)) {
        if let (Some(before), Some(after)) = (before, after)
            && before != after
        {
            lines.push(format!("~ underlay {after} in place of {before}"));
        }
    }
    if old.config.sources.guard != new.config.sources.guard {
        let guard = new.config.sources.guard;
        lines.push(format!("~ guard {} %, {} s", guard.percent, guard.hold_s));
    }
    lines
}

/// Peers, routes, own prefixes, what is received and the device's MTU as lines, by what tells them
/// apart.
fn rows(loaded: &Loaded) -> BTreeMap<(u8, String), String> {
    let routes = local_routes(loaded);
    let mut rows = BTreeMap::new();
    for (source, key, peer) in &routes.peers {
        rows.insert(
            (1, format!("{source} {key}")),
            format!("peer {key}: {}", peer.line()),
        );
    }
    for route in &routes.statics {
        let next = match &route.next {
            StaticNext::Peers(peers) => {
                let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
                format!("via {}", peers.join(", "))
            }
            StaticNext::Action(action) => action.to_string(),
        };
        rows.insert(
            (2, route.prefix.to_string()),
            format!("route {} {next}", route.prefix),
        );
    }
    for prefix in &loaded.config.node.prefixes {
        let row = format!("own prefix {prefix}");
        rows.insert((0, prefix.to_string()), row);
    }
    let vnis = &loaded.config.receive.vnis;
    let vnis = vnis.iter().map(|vni| format!("VNI {vni}"));
    for received in loaded.config.received().into_iter().chain(vnis) {
        let row = format!("receive {received}");
        rows.insert((3, received), row);
    }
    let mtu = format!("device mtu {}", loaded.config.device.mtu);
    rows.insert((4, String::new()), mtu);
    rows
}

/// The thread that looks at the files twice a second. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches the configuration at `path`, and its route files.
    pub(super) fn start(config: &Config, path: &Path, plane: PlaneSender) -> io::Result<Self> {
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        let directory = config.sources.files.as_ref();
        let directory = directory.map(|files| files.directory.clone());
        let path = path.to_owned();
        let mut taken = look(&path, directory.as_deref());
        let thread = std::thread::Builder::new().name("files".to_owned());
        let thread = thread.spawn(move || {
            let mut seen = Arc::clone(&taken);
            while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                let now = look(&path, directory.as_deref());
                // A file that is being written is another one at the next look.
                if now == seen && now != taken {
                    taken = Arc::clone(&now);
                    plane.reload_soon();
                }
                seen = now;
            }
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the watch over the files had panicked");
        }
    }
}

/// What tells one state of the files from another.
type State = Arc<Vec<(PathBuf, Option<Stamp>)>>;

/// Device, inode, size, and the times of the last changes of content and of the inode.
#[derive(Debug, Eq, PartialEq)]
struct Stamp(u64, u64, u64, (i64, i64), (i64, i64));

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self(
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            (metadata.mtime(), metadata.mtime_nsec()),
            (metadata.ctime(), metadata.ctime_nsec()),
        )
    }
}

fn look(path: &Path, directory: Option<&Path>) -> State {
    let listed = directory.map(|directory| route_files(directory).unwrap_or_default());
    let paths = std::iter::once(path.to_owned()).chain(listed.into_iter().flatten());
    let stamped = paths.map(|path| {
        let stamp = std::fs::metadata(&path).ok();
        let stamp = stamp.as_ref().map(Stamp::of);
        (path, stamp)
    });
    Arc::new(stamped.collect())
}

/// How often the files are looked at. A change is taken at the second look that finds it.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(more: &str) -> Loaded {
        let text = format!("[node]\nname = \"alpha\"\nunderlay = [\"192.0.2.1\"]\n{more}");
        Loaded {
            config: Config::parse(&text, "node.toml").expect("valid"),
            files: Vec::new(),
        }
    }

    #[test]
    fn what_is_received_and_the_mtu_that_follows_are_among_the_differences() {
        let (ipip, vxlan) = (loaded("[ipip]\n"), loaded("[vxlan]\nvni = 7\n"));
        assert!(differences(&ipip, &ipip.clone()).is_empty());
        assert_eq!(
            differences(&ipip, &vxlan),
            [
                "- receive ipip",
                "~ device mtu 1450",
                "+ receive VNI 7",
                "+ receive vxlan on UDP 8472",
            ]
        );
    }

    #[test]
    fn an_address_that_cannot_be_received_at_is_tried_again_until_it_can() {
        use crate::paths::PathsInlet;
        use crate::plane::PlaneParts;
        use parking_lot::Mutex;
        use warren_core::units::Time;

        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("node.toml");
        let write = |address: &str| {
            let text = format!("[node]\nname = \"alpha\"\nunderlay = [\"{address}\"]\n");
            std::fs::write(&path, text).expect("a directory of ours");
        };
        write("192.0.2.1");
        let loaded = Loaded::read(&path).expect("valid");
        let mut core = Core::new(loaded, path.clone(), true);
        let in_the_way = Arc::new(Mutex::new(true));
        let is_in_the_way = Arc::clone(&in_the_way);
        core.parts = Some(PlaneParts {
            paths: PathsInlet::new().expect("a few descriptors").sender(),
            host: None,
            receives: Box::new(move |config| {
                let is_old = config.node.underlay_v4 == Some([192, 0, 2, 1].into());
                let fails = *is_in_the_way.lock() && !is_old;
                if fails {
                    return Err("UDP port 8472 is in use".to_owned());
                }
                Ok(())
            }),
        });
        let address = |core: &Core| core.loaded.config.node.underlay_v4;
        write("192.0.2.2");
        core.reload(false).expect_err("somebody has the port");
        assert_eq!(address(&core), Some([192, 0, 2, 1].into()));
        let due = core.poll_timeout().expect("it is tried again");
        assert!(due <= core.now().after(RECEIVE_AGAIN));
        // It goes on for as long as the port is in use, and not before it is time.
        core.move_again = Some(Time::ZERO);
        core.move_if_due();
        assert!(core.move_again.is_some_and(|again| again > core.now()));
        *in_the_way.lock() = false;
        core.move_if_due();
        assert_eq!(address(&core), Some([192, 0, 2, 1].into()));
        core.move_again = Some(Time::ZERO);
        core.move_if_due();
        assert_eq!(address(&core), Some([192, 0, 2, 2].into()));
        assert!(core.has_moved);
        assert_eq!(core.move_again, None);
    }
}
