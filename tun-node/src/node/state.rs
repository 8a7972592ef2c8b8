//! What every thread of a running node may look at, and the answers to its control socket.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use parking_lot::{Mutex, RwLock};
use tracing::warn;
use warren_core::units::Family;
use warren_core::verdict::Direction;

use super::directions::Spread;
use crate::config::Config;
use crate::counters::{PeerTallyReport, WorkerReport};
use crate::ctl::message::{
    CountersReport, DeviceStatus, Fault, Flow, PathReport, PathsReport, PeerReport, Request,
    Response, StatusReport,
};
use crate::ctl::server::Handler;
use crate::ctl::sources::SourcesReport;
use crate::explain;
use crate::hostroutes::HostReport;
use crate::netlink::Netlink;
use crate::paths::PathsSender;
use crate::plane::{AlarmsReader, PlaneSender};
use crate::raw::rows::{RowMarker, Rows, RowsReport};
use crate::rib::{SourceKind, TablesReader};
use crate::ring::{Ring, RingReport, Watch};
use crate::shortcut::{OfferSender, Shortcut, ShortcutReport};
use crate::worker::{Buffers, Command, WorkerHandle};

/// A running node, as its control socket and its metrics page see it.
#[derive(Debug)]
pub struct NodeState {
    /// With what sources gave this node, and what all workers receive of it.
    config: RwLock<Arc<Config>>,
    /// Whether a worker may receive something else than `config` says.
    is_unsettled: AtomicBool,
    spread: Spread,
    rootless: bool,
    tables: TablesReader,
    started: Instant,
    workers: RwLock<Vec<Arc<WorkerHandle>>>,
    paths: PathsSender,
    plane: PlaneSender,
    /// What somebody should look at in the control plane.
    plane_alarms: AlarmsReader,
    /// What the thread that keeps the kernel's routes last said.
    pub(super) host_report: Arc<RwLock<HostReport>>,
    /// When the last packet in a loop was seen, and how many there were.
    pub(super) loops: RwLock<Option<(Instant, u64)>>,
    /// The short way through the kernel, or why there is none.
    shortcut: RwLock<Result<Shortcut, String>>,
    ring: RwLock<Result<Watch, String>>,
    rows: Arc<Rows>,
    row_marker: Mutex<RowMarker>,
}

impl NodeState {
    pub(super) fn new(
        config: Config,
        spread: Spread,
        rootless: bool,
        tables: TablesReader,
        paths: PathsSender,
        plane: PlaneSender,
        plane_alarms: AlarmsReader,
    ) -> Self {
        let rows = Arc::<Rows>::default();
        Self {
            row_marker: Mutex::new(RowMarker::new(Arc::clone(&rows))),
            rows,
            config: RwLock::new(Arc::new(config)),
            is_unsettled: AtomicBool::new(false),
            spread,
            rootless,
            tables,
            started: Instant::now(),
            workers: RwLock::default(),
            paths,
            plane,
            plane_alarms,
            host_report: Arc::default(),
            loops: RwLock::default(),
            shortcut: RwLock::new(Err("as configured".to_owned())),
            ring: RwLock::new(Err("as configured".to_owned())),
        }
    }

    pub(super) fn add_worker(&self, worker: WorkerHandle) {
        self.workers.write().push(Arc::new(worker));
    }

    pub(super) fn take_workers(&self) -> Vec<Arc<WorkerHandle>> {
        std::mem::take(&mut *self.workers.write())
    }

    pub(super) fn workers(&self) -> Vec<Arc<WorkerHandle>> {
        self.workers.read().clone()
    }

    /// Opens the short way through the kernel, if the configuration asks for it and the host has it.
    pub(super) fn open_shortcut(&self) {
        let config = self.config();
        if !config.worker.flow_offload {
            return;
        }
        let opened = if self.rootless {
            Err("the device is in another network namespace than the underlay".to_owned())
        } else {
            let name = config.device.name.as_str();
            let opened = Shortcut::open(name, &config, self.tables.clone(), self.rows());
            opened.map_err(|error| error.to_string())
        };
        match &opened {
            Ok(shortcut) => self.tables.tell(shortcut.generation()),
            Err(because) => warn!(because, "known flows take the usual way"),
        }
        *self.shortcut.write() = opened;
    }

    /// Opens the ring beside the queue of the device with that index, if the configuration asks for it
    /// and the host has it.
    pub(super) fn open_ring(&self, device: u32, queues: usize) -> Option<Ring> {
        if !self.config().worker.packet_ring {
            return None;
        }
        let opened = if self.rootless {
            Err("the device is in another network namespace".to_owned())
        } else if queues > 1 {
            Err("the device has several queues".to_owned())
        } else {
            Ring::open(device).map_err(|error| error.to_string())
        };
        let (watch, ring) = match opened {
            Ok((ring, watch)) => (Ok(watch), Some(ring)),
            Err(because) => {
                warn!(because, "datagrams take the device's queue");
                (Err(because), None)
            }
        };
        *self.ring.write() = watch;
        self.look_after_ring();
        ring
    }

    /// Closes the ring beside the device's queue, or opens it, as who else uses the device demands.
    pub(super) fn look_after_ring(&self) {
        if let Ok(watch) = &*self.ring.read() {
            watch.look();
        }
    }

    /// Who takes datagrams in a row in IP.
    pub(super) fn rows(&self) -> Arc<Rows> {
        Arc::clone(&self.rows)
    }

    /// Lets peers send datagrams in a row in IP, where that is wanted and possible.
    pub(super) fn look_after_rows(&self) {
        let config = self.config();
        let address = match config.node.underlay(Family::V4) {
            _ if !config.uses_ipip() || !config.worker.gro => Err("as configured"),
            _ if self.rootless => {
                Err("the device is in another network namespace than the underlay")
            }
            Some(IpAddr::V4(address)) => Ok(address),
            Some(IpAddr::V6(_)) | None => Err("the underlay has no IPv4 address"),
        };
        self.row_marker.lock().look(address);
    }

    /// Who takes what the engines offer.
    pub(super) fn offers(&self) -> Option<OfferSender> {
        self.shortcut.read().as_ref().ok().map(Shortcut::sender)
    }

    /// What the node is at present.
    pub(super) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read())
    }

    /// Has the files read again.
    pub(super) fn reload(&self) {
        self.plane.reload_soon();
    }

    /// The sources, for the metrics page; `None` when the plane does not answer.
    #[must_use]
    pub fn sources(&self) -> Option<SourcesReport> {
        self.plane.sources().ok()
    }

    /// Has every worker receive what `config` says. What was received before is shown on where one
    /// does not, and the next call asks them all again.
    ///
    /// The workers of one queue are all asked, but those of the next queues only then: where the
    /// first cannot have a port, another could take it from whoever shares it
    /// ([`crate::udp::share`]).
    pub(super) fn receive(&self, config: Arc<Config>) -> Result<(), String> {
        let before = self.config();
        let shape = |config: &Config| {
            let node = &config.node;
            (node.underlay_v4, node.underlay_v6, config.device.mtu)
        };
        let is_new = before.receive != config.receive || shape(&before) != shape(&config);
        let is_unsettled = self.is_unsettled.load(Ordering::Relaxed);
        let outcome = if is_new || is_unsettled {
            self.have_received(&config)
        } else {
            Ok(())
        };
        self.is_unsettled.store(outcome.is_err(), Ordering::Relaxed);
        if is_new && let Ok(shortcut) = &*self.shortcut.read() {
            shortcut.follow(&config);
        }
        *self.config.write() = match &outcome {
            Ok(()) => config,
            Err(_) => Arc::new(Config {
                receive: before.receive.clone(),
                ..Config::clone(&config)
            }),
        };
        outcome
    }

    fn have_received(&self, config: &Arc<Config>) -> Result<(), String> {
        let per_queue = if self.spread.is_apart { 2 } else { 1 };
        for of_queue in self.workers().chunks(per_queue) {
            let mut failed: Vec<String> = Vec::new();
            for worker in of_queue {
                let config = Arc::clone(config);
                let ask = |answer| Command::Receive { config, answer };
                let done = worker.ask(ask, REPORT_TIMEOUT);
                let done =
                    done.ok_or_else(|| format!("worker {} does not answer", worker.number()));
                // Two directions may say the same of one address.
                if let Err(why) = done.flatten()
                    && !failed.contains(&why)
                {
                    failed.push(why);
                }
            }
            if !failed.is_empty() {
                return Err(failed.join("; "));
            }
        }
        Ok(())
    }

    /// Whether the node can carry packets at this moment.
    ///
    /// # Errors
    ///
    /// A sentence that says why not: a worker does not answer, no probe has passed the data path
    /// lately, or the node has no subnet yet from the source that is to give it one.
    pub fn readiness(&self) -> Result<(), String> {
        let workers = self.workers();
        if workers.is_empty() {
            return Err("the node is starting or ending".to_owned());
        }
        for worker in workers {
            let number = worker.number();
            if worker.ask(Command::Ping, PING_TIMEOUT).is_none() {
                return Err(format!("worker {number} does not answer"));
            }
            if !worker.probes() {
                continue;
            }
            let Some(passed) = worker.last_probe() else {
                return Err(format!(
                    "no probe has passed the data path of worker {number} yet"
                ));
            };
            let ago = passed.elapsed();
            if ago > PROBE_FRESH {
                return Err(format!(
                    "no probe has passed the data path of worker {number} for {} s",
                    ago.as_secs()
                ));
            }
        }
        if self.plane_alarms.lacks_subnet() {
            return Err("no subnet claimed yet".to_owned());
        }
        Ok(())
    }

    /// What all workers counted.
    ///
    /// # Errors
    ///
    /// A sentence when a worker does not answer within a second.
    pub fn counters(&self) -> Result<CountersReport, String> {
        let mut workers = Vec::new();
        for worker in self.workers() {
            let report = worker.ask(Command::Report, REPORT_TIMEOUT);
            workers
                .push(report.ok_or_else(|| format!("worker {} does not answer", worker.number()))?);
        }
        let offloaded = self.shortcut.read().as_ref().ok().map(Shortcut::counted);
        let offloaded = offloaded.map(|report| WorkerReport {
            epoch: self.tables.tables().epoch().0,
            ..report
        });
        let mut parts = workers.clone();
        parts.extend(offloaded.clone());
        Ok(CountersReport {
            total: WorkerReport::total(&parts),
            workers,
            offloaded,
        })
    }

    /// What somebody should look at.
    fn alarms(&self) -> Vec<String> {
        let seen = self
            .loops
            .read()
            .filter(|(at, _)| at.elapsed() < LOOP_ALARM_LIFE);
        let sentence = |(_, count)| {
            format!(
                "routing loop: {count} packets came back or would have; look for a route that leads a \
                 peer's underlay address to the device, or a prefix that two nodes point at each other"
            )
        };
        let mut alarms: Vec<String> = seen.map(sentence).into_iter().collect();
        alarms.extend(self.plane_alarms.alarms());
        alarms.extend(self.host_report.read().alarms.iter().cloned());
        alarms
    }

    /// How the node is.
    #[must_use]
    pub fn status(&self) -> StatusReport {
        let (routes, peers) = self.tables.counts();
        let readiness = self.readiness();
        let config = self.config();
        let receive = &config.receive;
        let mut receives = Vec::new();
        for (name, ports) in [
            ("vxlan", &receive.vxlan),
            ("vxlan-gpe", &receive.vxlan_gpe),
            ("geneve", &receive.geneve),
            ("fou/gue", &receive.fou_gue),
        ] {
            receives.extend(ports.iter().map(|port| format!("{name} {port}")));
        }
        if receive.ipip {
            receives.push("ipip".to_owned());
        }
        let queue = self.device_queue(&config.device.name);
        let workers = self.workers();
        let epochs = workers.iter().map(|worker| worker.epoch());
        let smallest = |of: fn(Buffers) -> Option<usize>| {
            let octets = workers.iter().filter_map(|worker| of(worker.buffers()));
            octets.min().and_then(|octets| u64::try_from(octets).ok())
        };
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let paths = self.paths.report().unwrap_or_default();
        let down = paths.peers.into_iter().filter(PathReport::is_down);
        StatusReport {
            node: config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ready: readiness.is_ok(),
            alarms: self.alarms(),
            not_ready_because: readiness.err().unwrap_or_default(),
            device: DeviceStatus {
                name: config.device.name.clone(),
                mtu: config.device.mtu.octets(),
                addresses: config
                    .device
                    .addresses
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                mode: config.device.mode.to_string(),
                queue_packets: queue.map(|(packets, _)| packets),
                queue_drops: queue.map(|(_, drops)| drops),
            },
            underlay: config.local().underlay,
            receives,
            epoch: self.tables.tables().epoch().0,
            routes: count(routes),
            peers: count(peers),
            peers_down: down.map(|path| path.peer).collect(),
            workers: count(workers.len()),
            directions: self.spread.name().to_owned(),
            directions_because: self.spread.because.clone(),
            workers_epoch: epochs.min().unwrap_or_default(),
            receive_buffer: smallest(|buffers| buffers.receive_octets),
            send_buffer: smallest(|buffers| buffers.send_octets),
            rootless: self.rootless,
            metrics: config.metrics_listen.map(|listen| listen.to_string()),
            flow_offload: self.flow_offload(&config),
            packet_ring: self.packet_ring(&config),
            ipip_rows: self.ipip_rows(&config),
        }
    }

    /// How the ring beside the device's queue is, where it is asked for.
    fn packet_ring(&self, config: &Config) -> Option<RingReport> {
        let report = match &*self.ring.read() {
            Ok(watch) => watch.report(),
            Err(because) => RingReport {
                on: false,
                because: because.clone(),
            },
        };
        config.worker.packet_ring.then_some(report)
    }

    /// Who takes datagrams in a row in IP, where there is IP-in-IP.
    fn ipip_rows(&self, config: &Config) -> Option<RowsReport> {
        config.uses_ipip().then(|| self.row_marker.lock().report())
    }

    /// How the short way is, where it is asked for.
    fn flow_offload(&self, config: &Config) -> Option<ShortcutReport> {
        let report = match &*self.shortcut.read() {
            Ok(shortcut) => shortcut.report(),
            Err(because) => ShortcutReport {
                because: because.clone(),
                ..ShortcutReport::default()
            },
        };
        config.worker.flow_offload.then_some(report)
    }

    /// Room and drops of the device's queues; `None` where it is in another namespace.
    fn device_queue(&self, name: &str) -> Option<(u64, u64)> {
        if self.rootless {
            return None;
        }
        Netlink::open().ok()?.queue(name).ok()
    }

    fn routes(&self, first: u32) -> Response {
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        let (tables, total, routes) = self.tables.routes(first, ROUTES_PER_ANSWER);
        Response::Routes {
            routes: routes
                .iter()
                .map(|route| explain::rib_route_report(route, &tables))
                .collect(),
            epoch: tables.epoch().0,
            total: u32::try_from(total).unwrap_or(u32::MAX),
        }
    }

    /// What is known about the paths; none when their thread does not answer.
    #[must_use]
    pub fn paths(&self) -> Option<PathsReport> {
        self.paths.report()
    }

    fn peers(&self) -> Result<Vec<PeerReport>, String> {
        let snapshot = self.tables.snapshot();
        let counted = self.counters()?.total.peers;
        let mut counted: HashMap<String, PeerTallyReport> = counted
            .into_iter()
            .map(|tally| (tally.peer.clone(), tally))
            .collect();
        let paths = self.paths.report().unwrap_or_default().peers.into_iter();
        let mut paths: HashMap<String, PathReport> =
            paths.map(|path| (path.peer.clone(), path)).collect();
        let peers = snapshot.peers.iter().map(|peer| PeerReport {
            name: peer.name.clone(),
            tunnel: explain::tunnel_report(&peer.tunnel, &snapshot.tables),
            prefixes: peer.prefixes.iter().map(ToString::to_string).collect(),
            path: paths.remove(&peer.name),
            tally: counted
                .remove(&peer.name)
                .unwrap_or_else(|| PeerTallyReport {
                    peer: peer.name.clone(),
                    ..PeerTallyReport::default()
                }),
        });
        Ok(peers.collect())
    }

    fn why(&self, prefix: &str) -> Result<Response, String> {
        let prefix = match (prefix.parse::<IpNet>(), prefix.parse::<IpAddr>()) {
            (Ok(prefix), _) => prefix.trunc(),
            (_, Ok(address)) => IpNet::from(address),
            (Err(_), Err(_)) => return Err("that is neither a prefix nor an address".to_owned()),
        };
        self.plane.why(prefix).map(Response::Why)
    }

    fn confirm(&self, source: Option<String>) -> Result<Response, String> {
        let source = match source.as_deref() {
            None => None,
            Some("etcd") => Some(SourceKind::Etcd),
            // As `tun-node sources` and the configuration call it.
            Some("kube" | "kubernetes") => Some(SourceKind::Kube),
            Some(_) => return Err("there is no such source: it is etcd or kube".to_owned()),
        };
        let held = self.plane.confirm(source)?;
        let nothing = (held == 0).then(|| "nothing is held".to_owned());
        Ok(Response::remarks(nothing.into_iter().collect()))
    }

    fn explain(&self, flow: Flow) -> Result<Response, String> {
        if flow.source.is_ipv4() != flow.destination.is_ipv4() {
            return Err("source and destination are of different families".to_owned());
        }
        let direction: Direction = explain::direction(&flow, &self.tables.tables());
        let workers = self.workers();
        let worker = workers.first().ok_or("the node is starting or ending")?;
        let found = worker.ask(
            |answer| Command::Explain {
                direction,
                flow: explain::flow_key(&flow),
                octets: flow.octets,
                answer,
            },
            REPORT_TIMEOUT,
        );
        let found = found.ok_or("the worker does not answer")?;
        let mut report = explain::report(flow, &found, &self.tables);
        if let Some(peer) = &report.peer {
            let paths = self.paths.report().unwrap_or_default().peers;
            if let Some(path) = paths.iter().find(|path| path.peer == *peer) {
                explain::doubt(&mut report, path);
            }
        }
        Ok(Response::Explain(Box::new(report)))
    }

    fn fault(&self, fault: Fault) -> Result<Response, String> {
        if !cfg!(any(debug_assertions, feature = "fault-injection")) {
            return Err("this node was built without fault injection".to_owned());
        }
        // One that is not the first: the harder case, where there are several.
        let workers = self.workers();
        let worker = workers.last().ok_or("the node is starting or ending")?;
        if worker.command(Command::Fault(fault)) {
            Ok(Response::Done)
        } else {
            Err("the worker takes no command".to_owned())
        }
    }
}

impl Handler for NodeState {
    fn answer(&self, request: Request) -> Response {
        let answer = match request {
            Request::Status => Ok(Response::Status(Box::new(self.status()))),
            Request::Routes { first } => Ok(self.routes(first)),
            Request::Peers => self.peers().map(Response::Peers),
            Request::Counters => self
                .counters()
                .map(|report| Response::Counters(Box::new(report))),
            Request::Explain(flow) => self.explain(flow),
            Request::Prefer {
                peer,
                encapsulation,
            } => self
                .paths
                .prefer(peer, encapsulation)
                .map(Response::remarks),
            Request::Fault(fault) => self.fault(fault),
            Request::Sources => {
                let report = self.plane.sources();
                report.map(|report| Response::Sources(Box::new(report)))
            }
            Request::Why { prefix } => self.why(&prefix),
            Request::Events { after } => self.plane.events(after).map(Response::Events),
            Request::Confirm { source } => self.confirm(source),
            Request::Reload { dry_run } => {
                let report = self.plane.reload(dry_run);
                report.map(|report| Response::Reload(Box::new(report)))
            }
        };
        answer.unwrap_or_else(Response::Error)
    }
}

/// How long a worker may take to say that it is there, where someone asks about readiness.
const PING_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a routing loop is shown after its last packet.
const LOOP_ALARM_LIFE: Duration = Duration::from_secs(60);

/// How long a worker may take to report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a probe that passed proves the data path: two may be lost, as any packet may.
pub(super) const PROBE_FRESH: Duration = Duration::from_secs(5);

/// Routes in one answer: with eight tunnels each well below a frame's limit.
const ROUTES_PER_ANSWER: usize = 2048;
