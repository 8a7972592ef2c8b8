//! Two namespaces with a wire between them, and nodes to run in them.
//!
//! Everything made here has a name of its own and is gone when the [`Lab`] is dropped, whatever
//! the test did.

#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "clippy spares test functions, not the helpers of an integration test, and no test file uses all of them"
)]

pub(crate) mod opposite;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tun_node::ctl::client::Client;
use tun_node::ctl::message::{CountersReport, Request, Response, StatusReport};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tun-node");

/// Two namespaces, 1 and 2, joined by a wire with 192.0.2.N and 2001:db8:99::N.
pub(crate) struct Lab {
    prefix: String,
    directory: tempfile::TempDir,
}

impl Lab {
    /// Makes the namespaces; `None`, after saying why, where that is not permitted.
    pub(crate) fn new() -> Option<Self> {
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
        let lab = Self {
            prefix: format!("wt{}-{number}-", std::process::id()),
            directory: tempfile::tempdir().unwrap(),
        };
        for node in [1, 2] {
            run("ip", &["netns", "add", &lab.namespace(node)]);
        }
        let (one, two) = (lab.namespace(1), lab.namespace(2));
        run(
            "ip",
            &[
                "-n", &one, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns",
                &two,
            ],
        );
        for node in [1, 2] {
            lab.ip(node, "link set lo up");
            // No link-local addresses: they come a while after the link, and are not ours.
            lab.ip(node, "link set wire addrgenmode none");
            lab.ip(node, "link set wire up");
            lab.ip(node, &format!("addr add 192.0.2.{node}/24 dev wire"));
            lab.ip(
                node,
                &format!("addr add 2001:db8:99::{node}/64 dev wire nodad"),
            );
        }
        for node in [1, 2] {
            // The kernel's own routes come when both ends are up, which takes a moment.
            let own = format!("local 2001:db8:99::{node} ");
            wait_until("the address to be in use", || {
                let routes = lab.ip(node, "-6 route show table local");
                routes.contains(&own).then_some(())
            });
        }
        Some(lab)
    }

    /// The namespace of a node.
    pub(crate) fn namespace(&self, node: u8) -> String {
        format!("{}{node}", self.prefix)
    }

    /// A directory for the test's files.
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
    pub(crate) fn exec(&self, node: u8, command: &[&str]) -> Output {
        Command::new("ip")
            .args(["netns", "exec", &self.namespace(node)])
            .args(command)
            .output()
            .unwrap()
    }

    /// Sends `count` pings of `size` payload octets that may not be fragmented; all must be
    /// answered.
    pub(crate) fn ping(&self, node: u8, destination: &str, count: u32, size: u32) {
        let (count, size) = (count.to_string(), size.to_string());
        let output = self.exec(
            node,
            &[
                "ping",
                "-n",
                "-c",
                &count,
                "-i",
                "0.05",
                "-W",
                "2",
                "-M",
                "do",
                "-s",
                &size,
                destination,
            ],
        );
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains(" 0% packet loss"),
            "ping {destination} with {size} octets: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// What a node could leave behind in its namespace: links, addresses, routes, sockets.
    pub(crate) fn traces(&self, node: u8) -> String {
        let mut traces = String::new();
        for arguments in [
            "-o link show",
            "-o addr show",
            "route show table all",
            "-6 route show table all",
        ] {
            traces.push_str(&self.ip(node, arguments));
        }
        for file in ["udp", "udp6", "raw", "raw6", "tcp"] {
            let output = self.exec(node, &["cat", &format!("/proc/net/{file}")]);
            for line in String::from_utf8(output.stdout).unwrap().lines() {
                // Slot, local and remote address, state; the rest are counters. A connection that
                // was closed waits for a minute (06) whether its owner is there or not.
                let words: Vec<&str> = line.split_whitespace().take(4).collect();
                if words.last() != Some(&"06") {
                    traces.push_str(&format!("{file} {}\n", words.join(" ")));
                }
            }
        }
        traces
    }

    /// The configuration of node 1 or 2, whose peer is the other one.
    pub(crate) fn config(&self, node: u8, encap: &str, underlay: Underlay, extra: &str) -> PathBuf {
        let peer = 3 - node;
        let path = self.directory().join(format!("{node}.toml"));
        let vtep_mac = match encap {
            "vxlan" | "geneve" => "vtep-mac = \"auto\"",
            _ => "",
        };
        let text = format!(
            r#"
[node]
name = "n{node}"
underlay = ["192.0.2.{node}", "2001:db8:99::{node}"]
prefixes = ["10.244.{node}.0/24", "fd00:10:244:{node}::/64"]

[device]
addresses = ["10.244.{node}.1/24", "fd00:10:244:{node}::1/64"]

[control]
socket = "{directory}/run{node}/n{node}.sock"

[[peers]]
name = "n{peer}"
address = "{address}"
encap = "{encap}"
{vtep_mac}
prefixes = ["10.244.{peer}.0/24", "fd00:10:244:{peer}::/64"]
{extra}
"#,
            directory = self.directory().display(),
            address = underlay.address(peer),
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// The control socket of [`Self::config`].
    pub(crate) fn socket(&self, node: u8) -> PathBuf {
        self.directory().join(format!("run{node}/n{node}.sock"))
    }

    /// Starts a node and waits until it says that its data path works.
    pub(crate) fn start(&self, node: u8, encap: &str, underlay: Underlay, extra: &str) -> Node {
        let config = self.config(node, encap, underlay, extra);
        let started = self.spawn(node, &config);
        started.wait_ready();
        started
    }

    /// Starts a node and does not wait.
    pub(crate) fn spawn(&self, node: u8, config: &Path) -> Node {
        let log = self.directory().join(format!("{node}.log"));
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespace(node), PROGRAM])
            .args(["run", "--log", "info", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Node {
            child,
            socket: self.socket(node),
            log,
        }
    }

    /// Runs `action` on a thread in the namespace of a node.
    pub(crate) fn within<T: Send>(&self, node: u8, action: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.namespace(node))).unwrap();
        std::thread::scope(|scope| {
            let entered = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                action()
            });
            entered.join().unwrap()
        })
    }

    /// Asks the metrics page of a node for a path and returns status line and body.
    pub(crate) fn http(
        &self,
        node: u8,
        port: u16,
        path: &str,
    ) -> std::io::Result<(String, String)> {
        self.within(node, || {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
            let status = head.lines().next().unwrap_or_default().to_owned();
            Ok((status, body.to_owned()))
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in [1, 2] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(node)])
                .output();
        }
    }
}

/// The family of the underlay.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Underlay {
    V4,
    V6,
}

impl Underlay {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn address(self, node: u8) -> String {
        match self {
            Self::V4 => format!("192.0.2.{node}"),
            Self::V6 => format!("2001:db8:99::{node}"),
        }
    }

    /// Octets of its header.
    pub(crate) const fn header_octets(self) -> u32 {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
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
    /// Waits until its data path works.
    pub(crate) fn wait_ready(&self) {
        wait_until("the node is ready", || {
            matches!(self.status(), Some(status) if status.ready).then_some(())
        })
        .unwrap_or_else(|| panic!("not ready: {}\n{:?}", self.log(), self.status()));
    }

    /// How it is, if it answers.
    pub(crate) fn status(&self) -> Option<StatusReport> {
        let response = self.ask(&Request::Status)?;
        let Response::Status(report) = response else {
            panic!("{response:?}");
        };
        Some(*report)
    }

    /// What it counted.
    pub(crate) fn counters(&self) -> CountersReport {
        let response = self.ask(&Request::Counters).unwrap();
        let Response::Counters(report) = response else {
            panic!("{response:?}");
        };
        *report
    }

    /// Asks it something.
    pub(crate) fn ask(&self, request: &Request) -> Option<Response> {
        Client::connect(&self.socket).ok()?.ask(request).ok()
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it wrote to standard error.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits for its end and says how long that took.
    pub(crate) fn wait(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        let status = wait_until("the node ends", || self.child.try_wait().unwrap());
        let status = status.unwrap_or_else(|| panic!("it does not end: {}", self.log()));
        (status, start.elapsed())
    }

    /// Ends it as an administrator would; that must succeed.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let (status, _) = self.wait();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.log.display(), self.log());
        }
    }
}

/// Looks every 10 ms whether `look` finds something, for at most 20 s.
pub(crate) fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > deadline {
            eprintln!("waited 20 s in vain: {what}");
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a command that must succeed and returns what it prints.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program under test, as in no Pod, and returns how it ended and what it printed.
pub(crate) fn tun_node(arguments: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(arguments)
        // Whoever runs the tests may be one.
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env_remove("KUBERNETES_SERVICE_PORT")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}
