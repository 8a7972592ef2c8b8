//! A network of namespaces around a hub, where etcd runs, and nodes in them that know nothing but
//! where it is.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tun_node::ctl::client::Client;
use tun_node::ctl::message::{Flow, Request, Response, RouteReport, StatusReport};
use tun_node::ctl::sources::{EventReport, SourceReport, SourcesReport};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tun-node");

/// Where etcd is: the hub.
pub(crate) const HUB: &str = "192.0.2.254";

/// Namespaces 1 to N around a hub, all on one link: 192.0.2.N and 2001:db8:99::N. The thread that
/// makes it is in the hub from then on, and what it starts too.
pub(crate) struct Fleet {
    prefix: String,
    nodes: u8,
    directory: tempfile::TempDir,
}

impl Fleet {
    /// Makes the namespaces; `None`, after saying why, where that is not permitted.
    pub(crate) fn new(nodes: u8) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !geteuid().is_root() {
            eprintln!("skipped: network namespaces and devices need root");
            return None;
        }
        if let Err(error) = File::open("/dev/net/tun") {
            eprintln!("skipped: /dev/net/tun: {error}");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let fleet = Self {
            prefix: format!("wj{}-{number}-", std::process::id()),
            nodes,
            directory: tempfile::tempdir().unwrap(),
        };
        for node in 0..=nodes {
            run("ip", &["netns", "add", &fleet.namespace(node)]);
            fleet.ip(node, "link set lo up");
        }
        fleet.ip(0, "link add hub type bridge");
        fleet.ip(0, "link set hub addrgenmode none");
        fleet.ip(0, "link set hub up");
        fleet.ip(0, &format!("addr add {HUB}/24 dev hub"));
        for node in 1..=nodes {
            let namespace = fleet.namespace(node);
            fleet.ip(
                0,
                &format!("link add p{node} type veth peer name wire netns {namespace}"),
            );
            fleet.ip(0, &format!("link set p{node} master hub up"));
            // No link-local addresses: they come a while after the link, and are not ours.
            fleet.ip(node, "link set wire addrgenmode none");
            fleet.ip(node, "link set wire up");
            fleet.ip(node, &format!("addr add 192.0.2.{node}/24 dev wire"));
            fleet.ip(
                node,
                &format!("addr add 2001:db8:99::{node}/64 dev wire nodad"),
            );
            fleet.ip(node, &format!("route add default via {HUB}"));
        }
        let hub = File::open(format!("/run/netns/{}", fleet.namespace(0))).unwrap();
        setns(hub, CloneFlags::CLONE_NEWNET).unwrap();
        Some(fleet)
    }

    /// The namespace of a node; 0 is the hub.
    pub(crate) fn namespace(&self, node: u8) -> String {
        format!("{}{node}", self.prefix)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs `ip` in the namespace of a node and returns what it prints.
    pub(crate) fn ip(&self, node: u8, arguments: &str) -> String {
        let namespace = self.namespace(node);
        let mut all = vec!["-n", &namespace];
        all.extend(arguments.split_whitespace());
        run("ip", &all)
    }

    /// Runs a command in the namespace of a node, as it comes out.
    pub(crate) fn exec(&self, node: u8, command: &str) -> Output {
        Command::new("ip")
            .args(["netns", "exec", &self.namespace(node)])
            .args(command.split_whitespace())
            .output()
            .unwrap()
    }

    /// Whether `count` pings are all answered.
    pub(crate) fn pings(&self, node: u8, destination: &str, count: u32) -> bool {
        let command = format!("ping -n -c {count} -i 0.02 -W 1 {destination}");
        let output = self.exec(node, &command);
        String::from_utf8_lossy(&output.stdout).contains(" 0% packet loss")
    }

    /// A ping that goes on until its output is waited for.
    pub(crate) fn ping_on(&self, node: u8, destination: &str, seconds: u64) -> Child {
        // By count: at a deadline the last echo would still be on its way, and be called lost.
        let count = (seconds * 50).to_string();
        Command::new("ip")
            .args(["netns", "exec", &self.namespace(node)])
            .args([
                "ping",
                "-n",
                "-i",
                "0.02",
                "-c",
                &count,
                "-W",
                "2",
                destination,
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// The configuration of a node that knows nothing but the endpoints: its addresses are those of
    /// its default routes, of which `dual` makes a second one. Without endpoints it knows its
    /// addresses alone.
    pub(crate) fn config(
        &self,
        node: u8,
        dual: bool,
        endpoints: &[String],
        extra: &str,
    ) -> PathBuf {
        let path = self.directory().join(format!("{node}.toml"));
        let mut text = String::new();
        if dual {
            self.ip(
                node,
                "-6 route replace default via 2001:db8:99::fe dev wire",
            );
        }
        if endpoints.is_empty() {
            let v6 = format!(", \"2001:db8:99::{node}\"");
            let v6 = if dual { &v6 } else { "" };
            writeln!(text, "[node]\nunderlay = [\"192.0.2.{node}\"{v6}]").unwrap();
        } else {
            writeln!(text, "[etcd]\nendpoints = {endpoints:?}").unwrap();
        }
        text.push_str(extra);
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts a node with `/run/flannel` and `/var/lib` of its own.
    pub(crate) fn spawn(&self, node: u8, config: &Path) -> Node {
        self.spawn_after(node, config, "true")
    }

    /// The same after some shell commands, which see the node's own `/run`.
    pub(crate) fn spawn_after(&self, node: u8, config: &Path, before: &str) -> Node {
        let log = self.directory().join(format!("{node}.log"));
        let socket = self.directory().join(format!("{node}.sock"));
        let state = self.directory().join(format!("state{node}"));
        fs::create_dir_all(&state).unwrap();
        let script = format!(
            "mount --bind {} /var/lib && mount -t tmpfs none /run && {before} && \
             exec {PROGRAM} run --config {} --socket {}",
            state.display(),
            config.display(),
            socket.display()
        );
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespace(node), "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(
                File::options()
                    .create(true)
                    .append(true)
                    .open(&log)
                    .unwrap(),
            )
            .spawn()
            .unwrap();
        Node { child, socket, log }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for node in 0..=self.nodes {
            let name = self.namespace(node);
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

/// A running node; killed when dropped.
pub(crate) struct Node {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Node {
    pub(crate) fn ask(&self, request: &Request) -> Option<Response> {
        Client::connect(&self.socket).ok()?.ask(request).ok()
    }

    /// As [`ask`](Self::ask), with the sentence of the node when it refuses.
    pub(crate) fn ask_all(&self, request: &Request) -> Result<Response, String> {
        let mut client = Client::connect(&self.socket).map_err(|error| error.to_string())?;
        client.ask(request).map_err(|error| error.to_string())
    }

    pub(crate) fn status(&self) -> Option<StatusReport> {
        let answer = self.ask(&Request::Status)?;
        let Response::Status(report) = answer else {
            panic!("{answer:?}");
        };
        Some(*report)
    }

    pub(crate) fn wait_ready(&self) {
        wait("the data path", SHORT, || {
            self.status().is_some_and(|status| status.ready)
        });
    }

    pub(crate) fn sources(&self) -> SourcesReport {
        match self.ask(&Request::Sources) {
            Some(Response::Sources(report)) => *report,
            other => panic!("{other:?}: {}", self.log()),
        }
    }

    pub(crate) fn source(&self, name: &str) -> SourceReport {
        let mut found = self.sources().sources.into_iter();
        found
            .find(|source| source.source == name)
            .unwrap_or_default()
    }

    /// The subnets that a source gave it.
    pub(crate) fn subnets(&self) -> Vec<String> {
        if self.status().is_none() {
            return Vec::new();
        }
        self.sources().claimed.unwrap_or_default().subnets
    }

    pub(crate) fn routes(&self) -> Vec<RouteReport> {
        Client::connect(&self.socket).unwrap().routes().unwrap()
    }

    pub(crate) fn events(&self, after: u64) -> Vec<EventReport> {
        match self.ask(&Request::Events { after }) {
            Some(Response::Events(events)) => events,
            other => panic!("{other:?}"),
        }
    }

    /// How many routes it has, by the cheapest question.
    pub(crate) fn route_count(&self) -> usize {
        self.status().map_or(0, |status| status.routes as usize)
    }

    /// Whether the engine would send a packet to `destination` through a tunnel.
    pub(crate) fn would_send(&self, source: &str, destination: &str) -> bool {
        let flow = Flow {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: 1,
            source_port: 0,
            destination_port: 0,
            octets: 84,
        };
        match self.ask(&Request::Explain(flow)) {
            Some(Response::Explain(report)) => report.verdict == "transmit",
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A file as the node sees it.
    pub(crate) fn file(&self, path: &str) -> Option<String> {
        fs::read_to_string(format!("/proc/{}/root{path}", self.child.id())).ok()
    }

    /// The time that the process has spent on a processor.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Ends it as an administrator would.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

pub(crate) const SHORT: Duration = Duration::from_secs(20);

/// Waits until something is so, at most `most`; how long that took.
pub(crate) fn wait(what: &str, most: Duration, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < most, "waited {most:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
