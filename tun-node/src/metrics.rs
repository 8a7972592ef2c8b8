//! The metrics page: `/metrics` for Prometheus, `/healthz`, `/readyz`.
//!
//! A small HTTP/1.1 server of our own: one request a connection, GET only, at most
//! [`CLIENTS_MAX`] at once, 8 KiB of request, two seconds for everything. It reads worker reports,
//! never the packet path.
//!
//! `/healthz` says that the process lives and its workers answer; `/readyz` that, besides, a probe
//! packet has passed the data path lately and the node has a subnet, where a source is to give it one
//! ([`NodeState::readiness`]). The text is OpenMetrics 1.0,
//! which Prometheus reads; each counter of the engine, the workers and the sockets is there with
//! its help and, where it has one, its unit.

mod paths;
mod sources;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tracing::debug;
use warren_core::verdict::DropReason;

use crate::counters::{DeviceReport, DirectionReport, SocketReport, TallyReport, WorkerReport};
use crate::ctl::message::{CountersReport, PathsReport, StatusReport};
use crate::ctl::sources::SourcesReport;
use crate::node::NodeState;

/// A metrics page that is served. Ends when dropped.
#[derive(Debug)]
pub struct MetricsServer {
    local: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Serves the page of `state` at `listen`.
    ///
    /// # Errors
    ///
    /// [`MetricsError`] when the address cannot be listened at.
    pub fn start(listen: SocketAddr, state: Arc<NodeState>) -> Result<Self, MetricsError> {
        let failed = |source| MetricsError { listen, source };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new()
            .name("metrics".to_owned())
            .spawn({
                let stop = Arc::clone(&stop);
                move || accept_until(&listener, &state, &stop)
            })
            .map_err(failed)?;
        Ok(Self {
            local,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread out of `accept`.
        if TcpStream::connect_timeout(&self.local, CLIENT_TIMEOUT).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// The metrics page cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("metrics page at {listen}: choose another `metrics.listen`")]
pub struct MetricsError {
    listen: SocketAddr,
    source: io::Error,
}

/// The page for Prometheus.
#[must_use]
pub fn page(
    status: StatusReport,
    counters: CountersReport,
    sources: Option<SourcesReport>,
    paths: Option<PathsReport>,
) -> String {
    let mut registry = Registry::with_prefix("warren");
    registry.register_collector(Box::new(Page {
        status,
        counters,
        sources,
        paths,
    }));
    let mut text = String::new();
    // Writing to a String cannot fail, and the encoder has no other error.
    let _ = encode(&mut text, &registry);
    text
}

fn accept_until(listener: &TcpListener, state: &Arc<NodeState>, stop: &AtomicBool) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, for example: it passes.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        if clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS_MAX {
            clients.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (state, count) = (Arc::clone(state), Arc::clone(&clients));
        let client = move || {
            if let Err(error) = serve(stream, &state) {
                debug!(%error, "metrics page: client");
            }
            count.fetch_sub(1, Ordering::Relaxed);
        };
        let spawned = thread::Builder::new().name("metrics-client".to_owned());
        if spawned.spawn(client).is_err() {
            clients.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(mut stream: TcpStream, state: &NodeState) -> io::Result<()> {
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let response = match read_request(&mut stream)? {
        Ok(path) => respond(&path, state),
        Err(response) => response,
    };
    let Response {
        status,
        content_type,
        body,
    } = response;
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()
}

struct Response {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

impl Response {
    fn text(status: &'static str, body: impl fmt::Display) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: format!("{body}\n"),
        }
    }
}

/// Reads a request up to the empty line and returns its path, or the response that it deserves.
fn read_request(stream: &mut TcpStream) -> io::Result<Result<String, Response>> {
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    let mut request = Vec::new();
    let mut octets = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err(Response::text("408 Request Timeout", "too slow")));
        }
        stream.set_read_timeout(Some(left))?;
        let read = stream.read(&mut octets)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        request.extend(octets.iter().take(read));
        if request.len() > REQUEST_OCTETS_MAX {
            return Ok(Err(Response::text(
                "431 Request Header Fields Too Large",
                "too long",
            )));
        }
    }
    Ok(parse_request(&request))
}

fn parse_request(request: &[u8]) -> Result<String, Response> {
    let bad = || Response::text("400 Bad Request", "not an HTTP/1.1 request");
    let line = request.split(|octet| *octet == b'\r').next();
    let line = line.and_then(|line| std::str::from_utf8(line).ok());
    let mut words = line.ok_or_else(bad)?.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad());
    };
    if !version.starts_with("HTTP/1.") {
        return Err(bad());
    }
    if method != "GET" {
        return Err(Response::text("405 Method Not Allowed", "GET only"));
    }
    let path = target.split('?').next().unwrap_or(target);
    Ok(path.to_owned())
}

fn respond(path: &str, state: &NodeState) -> Response {
    const UNAVAILABLE: &str = "503 Service Unavailable";
    match path {
        "/metrics" => match state.counters() {
            Ok(counters) => Response {
                status: "200 OK",
                content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
                body: page(state.status(), counters, state.sources(), state.paths()),
            },
            Err(sentence) => Response::text(UNAVAILABLE, sentence),
        },
        "/healthz" => match state.counters() {
            Ok(_) => Response::text("200 OK", "ok"),
            Err(sentence) => Response::text(UNAVAILABLE, sentence),
        },
        "/readyz" => match state.readiness() {
            Ok(()) => Response::text("200 OK", "ready"),
            Err(sentence) => Response::text(UNAVAILABLE, sentence),
        },
        _ => Response::text("404 Not Found", "try /metrics, /healthz or /readyz"),
    }
}

/// One scrape.
#[derive(Debug)]
struct Page {
    status: StatusReport,
    counters: CountersReport,
    sources: Option<SourcesReport>,
    paths: Option<PathsReport>,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut lines = Lines { encoder };
        self.node(&mut lines)?;
        self.engine(&mut lines)?;
        self.device(&mut lines)?;
        self.sockets(&mut lines)?;
        self.peers(&mut lines)?;
        self.paths(&mut lines)?;
        self.sources(&mut lines)
    }
}

impl Page {
    fn node(&self, lines: &mut Lines<'_>) -> fmt::Result {
        let status = &self.status;
        lines.gauge(
            "ready",
            "Whether the node can carry packets: workers answer, a probe has passed lately, and it has the \
             subnet that a source is to give it.",
            i64::from(status.ready),
        )?;
        lines.gauge("routes", "Routes in the tables.", i64::from(status.routes))?;
        lines.gauge(
            "peers",
            "Peers, of whatever source.",
            i64::from(status.peers),
        )?;
        lines.gauge(
            "peers_down",
            "Peers that are probed and answer in no encapsulation.",
            i64::try_from(status.peers_down.len()).unwrap_or(i64::MAX),
        )?;
        if let Some(offload) = &status.flow_offload {
            lines.gauge(
                "flow_offload",
                "Whether known flows may pass through the kernel.",
                i64::from(offload.on),
            )?;
            lines.gauge(
                "flow_offload_flows",
                "Flows that pass through the kernel, one for each direction.",
                i64::from(offload.flows),
            )?;
        }
        if let Some(ring) = &status.packet_ring {
            lines.gauge(
                "packet_ring",
                "Whether datagrams may come by the ring beside the device's queue.",
                i64::from(ring.on),
            )?;
        }
        let epoch = i64::try_from(status.epoch).unwrap_or(i64::MAX);
        lines.gauge("tables_epoch", "Generation of the tables.", epoch)?;
        let workers = &self.counters.workers;
        lines.counters(
            "worker_turns",
            "Turns of the event loop.",
            None,
            workers.iter().map(|w| (worker_label(w), w.turns)),
        )?;
        lines.counters(
            "probes_sent",
            "Probe packets sent through the data path.",
            None,
            workers.iter().map(|w| (worker_label(w), w.probes_sent)),
        )?;
        lines.counters(
            "probes_passed",
            "Probe packets that came back and were taken by the device.",
            None,
            workers.iter().map(|w| (worker_label(w), w.probes_passed)),
        )
    }

    fn engine(&self, lines: &mut Lines<'_>) -> fmt::Result {
        let directions = || self.parts().flat_map(directions);
        lines.tallies(
            "engine_received",
            "frames that entered the engine",
            directions().map(|(labels, direction)| (labels, direction.received)),
        )?;
        lines.tallies(
            "engine_forwarded",
            "frames that left the engine",
            directions().map(|(labels, direction)| (labels, direction.forwarded)),
        )?;
        lines.counters(
            "engine_drops",
            "Frames dropped by the engine, by reason.",
            None,
            directions().flat_map(|(labels, direction)| {
                DropReason::ALL.iter().map(move |reason| {
                    let mut labels = labels.clone();
                    labels.push(("reason", reason.name().to_owned()));
                    let count = direction.drops.get(reason.name());
                    (labels, count.copied().unwrap_or_default())
                })
            }),
        )?;
        type Pick = fn(&DirectionReport) -> u64;
        let rest: [(&str, &str, Pick); 6] = [
            ("engine_fragmented", "Packets cut to fit the path.", |d| {
                d.fragmented
            }),
            (
                "engine_fragments",
                "Frames that cut packets became beyond the first.",
                |d| d.fragments,
            ),
            (
                "engine_mss_clamped",
                "TCP SYN segments whose maximum segment size was lowered.",
                |d| d.mss_clamped,
            ),
            ("engine_replies", "ICMP errors made.", |d| d.replies),
            (
                "engine_replies_suppressed",
                "ICMP errors not made because their rate was used up.",
                |d| d.replies_suppressed,
            ),
            (
                "engine_ecn_anomalies",
                "ECN combinations that RFC 6040 section 4.2 asks to report.",
                |d| d.ecn_anomalies,
            ),
        ];
        for (name, help, pick) in rest {
            let counts = directions().map(|(labels, direction)| (labels, pick(direction)));
            lines.counters(name, help, None, counts)?;
        }
        Ok(())
    }

    fn device(&self, lines: &mut Lines<'_>) -> fmt::Result {
        let devices = || self.parts().map(|(labels, part)| (labels, &part.device));
        lines.tallies(
            "device_read",
            "packets read from the device",
            devices().map(|(labels, device)| (labels, device.read)),
        )?;
        lines.tallies(
            "device_written",
            "packets of peers written to the device",
            devices().map(|(labels, device)| (labels, device.written)),
        )?;
        lines.tallies(
            "device_replies_written",
            "ICMP errors written to the device",
            devices().map(|(labels, device)| (labels, device.replies_written)),
        )?;
        lines.by_kind(
            "device_read_errors",
            "Reads of the device that failed, by kind of error.",
            devices().map(|(labels, device)| (labels, &device.read_errors)),
        )?;
        lines.by_kind(
            "device_write_drops",
            "Packets of peers that the device did not take, by kind of error.",
            devices().map(|(labels, device)| (labels, &device.write_drops)),
        )?;
        lines.by_kind(
            "device_reply_drops",
            "ICMP errors that the device did not take, by kind of error.",
            devices().map(|(labels, device)| (labels, &device.reply_drops)),
        )?;
        type Pick = fn(&DeviceReport) -> u64;
        let rest: [(&str, &str, Pick); 8] = [
            (
                "device_read_super",
                "Packets read that the device left uncut.",
                |d| d.read_super,
            ),
            (
                "device_read_ring",
                "Packets read that came by the ring beside the device's queue.",
                |d| d.read_ring,
            ),
            (
                "device_ring_full",
                "Packets that the ring beside the device's queue had no room for.",
                |d| d.ring_full,
            ),
            (
                "device_read_damaged",
                "Packets read and dropped because their offload is impossible.",
                |d| d.read_damaged,
            ),
            (
                "device_write_calls",
                "Calls that wrote packets to the device: packets that were joined share one.",
                |d| d.write_calls,
            ),
            (
                "direct_drops",
                "Packets dropped because their route leads to no tunnel.",
                |d| d.direct_drops,
            ),
            (
                "path_probes",
                "Packets from peers that were probes of the path.",
                |d| d.probes,
            ),
            (
                "misdirected",
                "Frames that the engine left without a decision the worker can follow.",
                |d| d.misdirected,
            ),
        ];
        for (name, help, pick) in rest {
            let counts = devices().map(|(labels, device)| (labels, pick(device)));
            lines.counters(name, help, None, counts)?;
        }
        Ok(())
    }

    fn sockets(&self, lines: &mut Lines<'_>) -> fmt::Result {
        let sockets = || {
            self.parts().flat_map(|(labels, part)| {
                part.sockets.iter().map(move |socket| {
                    let mut labels = labels.clone();
                    labels.push(("socket", socket.socket.clone()));
                    (labels, socket)
                })
            })
        };
        lines.tallies(
            "socket_received",
            "datagrams received from the underlay",
            sockets().map(|(labels, socket)| (labels, socket.received)),
        )?;
        lines.tallies(
            "socket_sent",
            "datagrams sent over the underlay",
            sockets().map(|(labels, socket)| (labels, socket.sent)),
        )?;
        lines.by_kind(
            "socket_receive_errors",
            "Receive calls that failed, by kind of error.",
            sockets().map(|(labels, socket)| (labels, &socket.receive_errors)),
        )?;
        lines.by_kind(
            "socket_send_drops",
            "Frames that the kernel did not take, by kind of error.",
            sockets().map(|(labels, socket)| (labels, &socket.send_drops)),
        )?;
        type Pick = fn(&SocketReport) -> u64;
        let rest: [(&str, &str, Pick); 7] = [
            (
                "socket_receive_damaged",
                "Datagrams received cut short or without an address.",
                |s| s.receive_damaged,
            ),
            (
                "socket_receive_overflows",
                "Datagrams that the kernel dropped because the receive buffer was full.",
                |s| s.receive_overflows,
            ),
            (
                "socket_send_messages",
                "Messages that carried the frames sent: frames of one size share one.",
                |s| s.send_messages,
            ),
            (
                "socket_sent_partly",
                "Frames of which the kernel did not take all segments.",
                |s| s.sent_partly,
            ),
            (
                "socket_send_malformed",
                "Frames dropped because they could not be cut into segments.",
                |s| s.send_malformed,
            ),
            (
                "socket_missing_drops",
                "Packets dropped because there is no socket to send them by.",
                |s| s.no_socket,
            ),
            (
                "socket_network_errors",
                "Errors that the network reported for datagrams sent before.",
                |s| s.network_errors,
            ),
        ];
        for (name, help, pick) in rest {
            let counts = sockets().map(|(labels, socket)| (labels, pick(socket)));
            lines.counters(name, help, None, counts)?;
        }
        Ok(())
    }

    fn peers(&self, lines: &mut Lines<'_>) -> fmt::Result {
        let peers = || {
            let peers = self.counters.total.peers.iter();
            peers.map(|peer| (vec![("peer", peer.peer.clone())], peer))
        };
        let tallies = || {
            peers().flat_map(|(labels, peer)| {
                peer.by_encapsulation.iter().map(move |(name, tally)| {
                    let mut labels = labels.clone();
                    labels.push(("encapsulation", name.clone()));
                    (labels, tally)
                })
            })
        };
        lines.tallies(
            "peer_encap",
            "packets encapsulated for the peer",
            tallies().map(|(labels, tally)| (labels, tally.encap)),
        )?;
        lines.tallies(
            "peer_decap",
            "packets accepted from the peer",
            tallies().map(|(labels, tally)| (labels, tally.decap)),
        )?;
        lines.counters(
            "peer_refused",
            "Packets of the peer that were dropped.",
            None,
            peers().map(|(labels, peer)| (labels, peer.refused)),
        )
    }
}

impl Page {
    /// The workers, and the kernel where it carries packets in their place.
    fn parts(&self) -> impl Iterator<Item = (Labels, &WorkerReport)> + Clone {
        let workers = self.counters.workers.iter();
        let workers = workers.map(|worker| (worker_label(worker), worker));
        let kernel = self.counters.offloaded.iter();
        workers.chain(kernel.map(|part| (vec![("worker", "kernel".to_owned())], part)))
    }
}

type Labels = Vec<(&'static str, String)>;

fn worker_label(worker: &WorkerReport) -> Labels {
    vec![("worker", worker.worker.to_string())]
}

fn directions((labels, part): (Labels, &WorkerReport)) -> [(Labels, &DirectionReport); 2] {
    [("encap", &part.encap), ("decap", &part.decap)].map(|(name, direction)| {
        let mut labels = labels.clone();
        labels.push(("direction", name.to_owned()));
        (labels, direction)
    })
}

/// Writes families of metrics.
struct Lines<'e> {
    encoder: DescriptorEncoder<'e>,
}

impl Lines<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: i64) -> fmt::Result {
        let metric = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    fn counter(&mut self, name: &str, help: &str, count: u64) -> fmt::Result {
        let metric = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(count).encode(metric)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        counts: impl Iterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, count) in counts {
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Packets and octets of one thing, as two families.
    fn tallies(
        &mut self,
        name: &str,
        what: &str,
        tallies: impl Iterator<Item = (Labels, TallyReport)> + Clone,
    ) -> fmt::Result {
        let packets = Unit::Other("packets".to_owned());
        for (unit, help, pick) in [
            (
                &packets,
                format!("Number of {what}."),
                (|tally| tally.packets) as fn(TallyReport) -> u64,
            ),
            (&Unit::Bytes, format!("Octets of {what}."), |tally| {
                tally.octets
            }),
        ] {
            let counts = tallies.clone().map(|(labels, tally)| (labels, pick(tally)));
            self.counters(name, &help, Some(unit), counts)?;
        }
        Ok(())
    }

    /// Counts by kind of error; a family without any is still described.
    fn by_kind<'c>(
        &mut self,
        name: &str,
        help: &str,
        counts: impl Iterator<Item = (Labels, &'c std::collections::BTreeMap<String, u64>)>,
    ) -> fmt::Result {
        let counts = counts.flat_map(|(labels, kinds)| {
            kinds.iter().map(move |(kind, count)| {
                let mut labels = labels.clone();
                labels.push(("kind", kind.clone()));
                (labels, *count)
            })
        });
        self.counters(name, help, None, counts)
    }
}

/// Requests served at once; further connections are closed.
pub const CLIENTS_MAX: usize = 8;

/// How long a request may take to arrive, and a response to leave.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest request. Nothing of it but the first line matters.
const REQUEST_OCTETS_MAX: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::counters::{EncapsulationTally, PeerTallyReport};
    use crate::ctl::message::{DeviceStatus, PathReport, WayReport};

    /// Gives every number of a report a value of its own, from 1000 on.
    fn number(value: &mut Value, path: &str, numbered: &mut Vec<(String, u64)>) {
        match value {
            Value::Number(_) => {
                let next = 1000 + numbered.len() as u64;
                *value = next.into();
                numbered.push((path.to_owned(), next));
            }
            Value::Object(fields) => {
                for (name, field) in fields {
                    number(field, &format!("{path}.{name}"), numbered);
                }
            }
            Value::Array(items) => {
                for item in items {
                    number(item, path, numbered);
                }
            }
            Value::Null | Value::Bool(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn every_count_of_a_worker_and_of_a_path_is_on_the_page() {
        let mut report = WorkerReport {
            sockets: vec![SocketReport::default()],
            peers: vec![PeerTallyReport {
                by_encapsulation: [("fou".to_owned(), EncapsulationTally::default())].into(),
                ..PeerTallyReport::default()
            }],
            ..WorkerReport::default()
        };
        let some = |kind: &str| [(kind.to_owned(), 0)].into();
        report.encap.drops = some("no_route");
        report.decap.drops = some("no_route");
        let (device, socket) = (&mut report.device, &mut report.sockets[0]);
        device.read_errors = some("other");
        device.write_drops = some("other");
        device.reply_drops = some("other");
        socket.receive_errors = some("other");
        socket.send_drops = some("other");
        let mut value = json!(report);
        let mut numbered = Vec::new();
        number(&mut value, "", &mut numbered);
        let report: WorkerReport = serde_json::from_value(value).unwrap();
        let way = WayReport {
            rtt_us: Some(0),
            loss_per_mille: Some(0),
            ..WayReport::default()
        };
        let paths = PathsReport {
            peers: vec![PathReport {
                ways: vec![way],
                ..PathReport::default()
            }],
            ..PathsReport::default()
        };
        let mut value = json!(paths);
        number(&mut value, "paths", &mut numbered);
        let paths: PathsReport = serde_json::from_value(value).unwrap();
        let status = StatusReport {
            node: String::new(),
            version: String::new(),
            pid: 0,
            uptime_ms: 0,
            ready: true,
            not_ready_because: String::new(),
            alarms: Vec::new(),
            device: DeviceStatus {
                name: String::new(),
                mtu: 0,
                addresses: Vec::new(),
                mode: String::new(),
                queue_packets: None,
                queue_drops: None,
            },
            underlay: Vec::new(),
            receives: Vec::new(),
            epoch: 0,
            routes: 0,
            peers: 0,
            peers_down: Vec::new(),
            workers: 1,
            directions: String::new(),
            directions_because: String::new(),
            workers_epoch: 0,
            receive_buffer: None,
            send_buffer: None,
            rootless: false,
            metrics: None,
            flow_offload: None,
            packet_ring: None,
            ipip_rows: None,
        };
        let counters = CountersReport {
            total: report.clone(),
            workers: vec![report],
            offloaded: None,
        };
        let page = page(
            status,
            counters,
            Some(SourcesReport::default()),
            Some(paths),
        );
        // The worker's number is a label, its generation the node's, and sums are left to whoever
        // reads the parts.
        let elsewhere = [
            ".worker",
            ".epoch",
            ".encap.dropped",
            ".decap.dropped",
            ".peers.encap.packets",
            ".peers.encap.octets",
            ".peers.decap.packets",
            ".peers.decap.octets",
        ];
        for (path, value) in numbered {
            let is_there = page
                .lines()
                .any(|line| line.ends_with(&format!(" {value}")));
            assert!(
                is_there != elsewhere.contains(&path.as_str()),
                "{path}: {page}"
            );
        }
    }

    #[test]
    fn requests_are_read_by_their_first_line() {
        let path = |request: &str| parse_request(request.as_bytes()).map_err(|r| r.status);
        assert_eq!(
            path("GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n").as_deref(),
            Ok("/metrics")
        );
        assert_eq!(
            path("POST / HTTP/1.1\r\n\r\n"),
            Err("405 Method Not Allowed")
        );
        for bad in [
            "",
            "GET /\r\n\r\n",
            "GET / SPDY/3\r\n\r\n",
            "GET  / HTTP/1.1\r\n",
        ] {
            assert_eq!(path(bad), Err("400 Bad Request"), "{bad:?}");
        }
        assert_eq!(
            parse_request(b"GET /\xff HTTP/1.1\r\n").map_err(|r| r.status),
            Err("400 Bad Request")
        );
    }
}
