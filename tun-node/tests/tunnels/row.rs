//! Three namespaces in a row, the nodes in them, and a transfer that runs between two of them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tun_node::counters::WorkerReport;
use tun_node::ctl::client::Client;
use tun_node::ctl::message::{PathReport, PeerReport, Request, Response, StatusReport};

use crate::common::{PROGRAM, run};

/// Three namespaces in a row and the nodes in them. Dropping it ends and removes all, whatever the
/// test did.
pub(crate) struct Row {
    prefix: String,
    pub(crate) directory: tempfile::TempDir,
    nodes: Vec<Child>,
}

/// Nodes that are peers of each other.
pub(crate) struct Plan<'a> {
    pub(crate) nodes: &'a [u8],
    /// The underlay's family: 4 or 6.
    pub(crate) over: u8,
    /// As the configuration has it, in quotes.
    pub(crate) encap: &'a str,
    /// Further keys of `[device]`.
    pub(crate) device: &'a str,
    /// Further keys of every peer.
    pub(crate) peer: &'a str,
    /// Further sections, for each node.
    pub(crate) sections: fn(u8) -> &'static str,
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Self {
            nodes: &[1, 2],
            over: 4,
            encap: r#""vxlan""#,
            device: "",
            peer: "",
            sections: |_| "",
        }
    }
}

impl Row {
    pub(crate) fn new() -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if !geteuid().is_root() {
            eprintln!("skipped: network namespaces and devices need root");
            return None;
        }
        if let Err(error) = File::open("/dev/net/tun") {
            eprintln!("skipped: /dev/net/tun: {error}");
            return None;
        }
        for (program, package) in [("nft", "nftables"), ("setpriv", "util-linux")] {
            if Command::new(program).arg("--version").output().is_err() {
                eprintln!("skipped: {program} is not installed (package {package})");
                return None;
            }
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let row = Self {
            prefix: format!("wr{}-{number}-", std::process::id()),
            directory: tempfile::tempdir().unwrap(),
            nodes: Vec::new(),
        };
        for node in [1, 2, 3] {
            run("ip", &["netns", "add", &row.namespace(node)]);
            row.ip(node, "link set lo up");
        }
        for (node, v4) in [(1, "192.0.2"), (2, "198.51.100")] {
            let peer = row.namespace(node);
            row.ip(
                3,
                &format!("link add to{node} type veth peer name wire netns {peer}"),
            );
            let v6 = format!("2001:db8:{node}:");
            for (at, device, last4, last6) in [
                (3, format!("to{node}"), 254, "fe".to_owned()),
                (node, "wire".to_owned(), node, node.to_string()),
            ] {
                row.ip(at, &format!("link set {device} addrgenmode none"));
                row.ip(at, &format!("addr add {v4}.{last4}/24 dev {device}"));
                row.ip(at, &format!("addr add {v6}:{last6}/64 dev {device} nodad"));
                row.ip(at, &format!("link set {device} up"));
            }
            row.ip(node, &format!("route add default via {v4}.254"));
            row.ip(node, &format!("-6 route add default via {v6}:fe"));
        }
        row.exec(
            3,
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        );
        Some(row)
    }

    pub(crate) fn namespace(&self, node: u8) -> String {
        format!("{}{node}", self.prefix)
    }

    pub(crate) fn ip(&self, node: u8, arguments: &str) -> String {
        let namespace = self.namespace(node);
        let mut all = vec!["-n", &namespace];
        all.extend(arguments.split_whitespace());
        run("ip", &all)
    }

    /// Runs a command that must succeed.
    pub(crate) fn exec(&self, node: u8, command: &str) -> String {
        let namespace = self.namespace(node);
        let mut all = vec!["netns", "exec", &namespace];
        all.extend(command.split_whitespace());
        run("ip", &all)
    }

    /// Runs a command, however it ends, and returns what it prints.
    pub(crate) fn try_exec(&self, node: u8, command: &str) -> String {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.namespace(node)])
            .args(command.split_whitespace())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }

    /// Runs `action` on a thread of its own in the namespace of a node.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        node: u8,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = File::open(format!("/run/netns/{}", self.namespace(node))).unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            action()
        })
    }

    /// The underlay address of a node.
    pub(crate) const fn underlay(node: u8, over: u8) -> &'static str {
        match (node, over) {
            (1, 4) => "192.0.2.1",
            (2, 4) => "198.51.100.2",
            (_, 4) => "192.0.2.254",
            (1, _) => "2001:db8:1::1",
            (2, _) => "2001:db8:2::2",
            _ => "2001:db8:1::fe",
        }
    }

    /// Starts nodes 1, 2 and so on with these ways and waits until each hears the others.
    pub(crate) fn start(&mut self, nodes: &[u8], encap: &str) {
        self.start_plan(&Plan {
            nodes,
            encap,
            ..Plan::default()
        });
    }

    /// Starts nodes and waits until each hears the others.
    pub(crate) fn start_plan(&mut self, plan: &Plan<'_>) {
        for &node in plan.nodes {
            let config = self.config(node, plan);
            self.spawn_node(node, &config);
        }
        self.await_paths(plan.nodes);
    }

    /// Waits until each node hears the others in every encapsulation, and knows the path MTU.
    pub(crate) fn await_paths(&self, nodes: &[u8]) {
        for &node in nodes {
            self.await_true("all peers answer", Duration::from_secs(30), || {
                let paths = self.paths(node);
                paths.len() + 1 == nodes.len()
                    && paths.iter().all(|path| {
                        path.path_mtu_by == "probe" && path.ways.iter().all(|way| way.state == "up")
                    })
            });
        }
    }

    /// Writes the configuration of a node.
    pub(crate) fn config(&self, node: u8, plan: &Plan<'_>) -> PathBuf {
        let mut text = format!(
            r#"
[node]
name = "n{node}"
underlay = ["{underlay}"]
prefixes = ["10.244.{node}.0/24", "fd00:10:244:{node}::/64"]
[device]
addresses = ["10.244.{node}.1/24", "fd00:10:244:{node}::1/64"]
{device}
[control]
socket = "{socket}"
"#,
            underlay = Self::underlay(node, plan.over),
            device = plan.device,
            socket = self.socket(node).display(),
        );
        for &peer in plan.nodes.iter().filter(|peer| **peer != node) {
            let has_mac = plan.encap.contains("vxlan\"") || plan.encap.contains("geneve");
            let mac = if has_mac { "vtep-mac = \"auto\"" } else { "" };
            text.push_str(&format!(
                r#"
[[peers]]
name = "n{peer}"
address = "{address}"
encap = {encap}
{mac}
{keys}
prefixes = ["10.244.{peer}.0/24", "fd00:10:244:{peer}::/64"]
"#,
                encap = plan.encap,
                keys = plan.peer,
                address = Self::underlay(peer, plan.over),
            ));
        }
        text.push_str((plan.sections)(node));
        let path = self.directory.path().join(format!("{node}.toml"));
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts the program in the namespace of a node. It ends with the thread that started it.
    pub(crate) fn spawn_node(&mut self, node: u8, config: &std::path::Path) {
        let log = File::create(self.directory.path().join(format!("{node}.log"))).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespace(node)])
            .args(["setpriv", "--pdeathsig", "KILL", PROGRAM])
            .args(["run", "--log", "info", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.nodes.push(child);
    }

    /// Ends all nodes and waits until they have.
    pub(crate) fn stop(&mut self) {
        for node in &self.nodes {
            let pid = Pid::from_raw(i32::try_from(node.id()).unwrap());
            let _ = kill(pid, Signal::SIGTERM);
        }
        for mut node in self.nodes.drain(..) {
            let deadline = Instant::now() + Duration::from_secs(10);
            while matches!(node.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    let _ = node.kill();
                    let _ = node.wait();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    fn socket(&self, node: u8) -> PathBuf {
        self.directory.path().join(format!("n{node}.sock"))
    }

    pub(crate) fn ask(&self, node: u8, request: &Request) -> Option<Response> {
        Client::connect(&self.socket(node)).ok()?.ask(request).ok()
    }

    /// The same as people see it.
    pub(crate) fn command(&self, node: u8, arguments: &str) -> String {
        let output = Command::new(PROGRAM)
            .args(arguments.split_whitespace())
            .arg("--socket")
            .arg(self.socket(node))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{output:?}");
        text
    }

    pub(crate) fn peers(&self, node: u8) -> Vec<PeerReport> {
        match self.ask(node, &Request::Peers) {
            Some(Response::Peers(peers)) => peers,
            _ => Vec::new(),
        }
    }

    pub(crate) fn paths(&self, node: u8) -> Vec<PathReport> {
        let peers = self.peers(node).into_iter();
        peers.filter_map(|peer| peer.path).collect()
    }

    /// What node `node` knows about its first peer.
    pub(crate) fn path(&self, node: u8) -> PathReport {
        self.paths(node).into_iter().next().expect("a peer")
    }

    pub(crate) fn in_use(&self, node: u8) -> String {
        let path = self.path(node);
        let way = path.ways.iter().find(|way| way.in_use);
        way.map(|way| way.encapsulation.clone()).unwrap_or_default()
    }

    pub(crate) fn status(&self, node: u8) -> StatusReport {
        match self.ask(node, &Request::Status) {
            Some(Response::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the node's data path works.
    pub(crate) fn is_ready(&self, node: u8) -> bool {
        let status = self.ask(node, &Request::Status);
        matches!(status, Some(Response::Status(status)) if status.ready)
    }

    pub(crate) fn total(&self, node: u8) -> WorkerReport {
        match self.ask(node, &Request::Counters) {
            Some(Response::Counters(counters)) => counters.total,
            other => panic!("{other:?}"),
        }
    }

    /// Looks until it is true and says how long that took.
    pub(crate) fn await_true(
        &self,
        what: &str,
        limit: Duration,
        look: impl Fn() -> bool,
    ) -> Duration {
        let start = Instant::now();
        while !look() {
            if start.elapsed() > limit {
                let logs = [1, 2, 3].map(|node| {
                    let log = self.directory.path().join(format!("{node}.log"));
                    fs::read_to_string(log).unwrap_or_default()
                });
                panic!(
                    "not within {limit:?}: {what}\n{:#?}\n{}",
                    self.paths(1),
                    logs.concat()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        start.elapsed()
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        self.stop();
        for node in [1, 2, 3] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(node)])
                .output();
        }
    }
}

/// A TCP transfer from node 1 to node 2 that goes on until it is dropped; counts what arrives.
pub(crate) struct Transfer {
    arrived: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Transfer {
    pub(crate) fn start(row: &Row) -> Self {
        let (arrived, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (count, ends) = (Arc::clone(&arrived), Arc::clone(&stop));
        row.spawn(2, move || {
            let listener = TcpListener::bind("10.244.2.1:5001").unwrap();
            ready.send(()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 1 << 16];
            while !ends.load(Ordering::Relaxed) {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => return,
                    Ok(octets) => count.fetch_add(octets as u64, Ordering::Relaxed),
                };
            }
        });
        is_ready.recv().unwrap();
        let ends = Arc::clone(&stop);
        row.spawn(1, move || {
            let mut stream = TcpStream::connect("10.244.2.1:5001").unwrap();
            let data = vec![7; 1 << 14];
            // Paced, so that a test machine has time for the rest.
            while !ends.load(Ordering::Relaxed) && stream.write_all(&data).is_ok() {
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self { arrived, stop }
    }

    fn octets(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Waits until a further 500,000 octets have arrived and says how long the longest pause was.
    pub(crate) fn longest_pause(&self, row: &Row) -> Duration {
        let goal = self.octets() + 500_000;
        let (mut last, mut seen, mut longest) = (Instant::now(), self.octets(), Duration::ZERO);
        while seen < goal {
            let now = self.octets();
            if now != seen {
                seen = now;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            if last.elapsed() > Duration::from_secs(30) {
                panic!("the transfer stands still: {:#?}", row.paths(1));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        longest
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
