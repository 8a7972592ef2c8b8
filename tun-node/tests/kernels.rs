//! A node against kernels that nobody here wrote: user-mode Linux and Debian's cloud kernel under
//! QEMU, each with its own tunnel devices.
//!
//! ```text
//!  namespace: tun-node, 192.0.2.1 ── tap0 ══ eth0 or vec0, 192.0.2.2: guest kernel
//!             10.244.1.1, fd00:10:244:1::1     10.244.2.1, fd00:10:244:2::1
//! ```
//!
//! The guest obeys shell commands on its console. For every encapsulation it knows: echoes of all
//! sizes, echoes from its side, a megabyte over TCP each way, IPv4 and IPv6 inside.
//!
//! Needs root, and the packages that the skip messages name. `WARREN_KERNEL_DIR` is where
//! linux-image-cloud-amd64 was unpacked, if it is not installed. With `WARREN_GOLDEN=DIRECTORY` the
//! guests' packets are left there as captures.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "clippy spares test functions, not their helpers; what is measured is printed"
)]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use common::{PROGRAM, run};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tun_node::ctl::client::Client;
use tun_node::ctl::message::{CountersReport, Request, Response};
use tun_node::shortcut::ShortcutReport;

/// What a guest is told to set up for an encapsulation, and the node's side of it.
struct Case {
    name: &'static str,
    /// The `encap` of the configuration, and further sections.
    encap: &'static str,
    sections: &'static str,
    setup: &'static str,
    teardown: &'static str,
    mtu: u16,
    v6_inside: bool,
    /// Whether flows take the node's short way through its kernel (`flow-offload`).
    is_short: bool,
}

const IPIP: Case = Case {
    name: "ipip",
    encap: "ipip",
    sections: "",
    setup: "$IP link add t4 type ipip local 192.0.2.2 remote 192.0.2.1 ttl 64 && \
            $IP link add t6 type sit local 192.0.2.2 remote 192.0.2.1 ttl 64 && \
            $IP link set t6 up && via t4 t6",
    teardown: "$IP link del t4; $IP link del t6",
    mtu: 1480,
    v6_inside: true,
    is_short: false,
};
const IPIP_SHORT: Case = short("ipip-flow-offload", IPIP);
const VXLAN_SHORT: Case = short("vxlan-flow-offload", VXLAN);
const GENEVE: Case = Case {
    name: "geneve",
    encap: "geneve",
    sections: "",
    setup: "$IP link add t5 type geneve id 1 remote 192.0.2.1 && $IP link set t5 mtu 1450 && via_ethernet t5",
    teardown: "$IP link del t5",
    mtu: 1450,
    v6_inside: true,
    is_short: false,
};
const VXLAN: Case = Case {
    name: "vxlan",
    encap: "vxlan",
    sections: "",
    setup: "$IP link add t7 type vxlan id 1 dstport 8472 local 192.0.2.2 remote 192.0.2.1 dev $LINK nolearning && \
            via_ethernet t7",
    teardown: "$IP link del t7",
    mtu: 1450,
    v6_inside: true,
    is_short: false,
};
/// Into the guest by FOU, back by plain IP in IP: its kernel can not send FOU.
const FOU_RECEIVE: Case = Case {
    name: "fou-receive",
    encap: "fou",
    sections: "[ipip]\n",
    setup: "$IP fou add port 5555 ipproto 4 && \
            $IP link add t4 type ipip local 192.0.2.2 remote 192.0.2.1 ttl 64 && via t4 lo",
    teardown: "$IP link del t4; $IP fou del port 5555",
    mtu: 1472,
    v6_inside: false,
    is_short: false,
};
const FOU: Case = Case {
    name: "fou",
    encap: "fou",
    sections: "",
    setup: "$IP fou add port 5555 ipproto 4 && \
            $IP link add t8 type ipip local 192.0.2.2 remote 192.0.2.1 ttl 64 encap fou \
            encap-sport auto encap-dport 5555 && via t8 lo",
    teardown: "$IP link del t8; $IP fou del port 5555",
    mtu: 1472,
    v6_inside: false,
    is_short: false,
};
const GUE: Case = Case {
    name: "gue",
    encap: "gue",
    sections: "",
    setup: "$IP fou add port 6080 gue && \
            $IP link add t9 type ipip local 192.0.2.2 remote 192.0.2.1 ttl 64 encap gue \
            encap-sport auto encap-dport 6080 && \
            $IP link add t10 type sit local 192.0.2.2 remote 192.0.2.1 ttl 64 encap gue \
            encap-sport auto encap-dport 6080 && $IP link set t10 up && via t9 t10",
    teardown: "$IP link del t9; $IP link del t10; $IP fou del port 6080",
    mtu: 1468,
    v6_inside: true,
    is_short: false,
};
const FOU_SHORT: Case = short("fou-flow-offload", FOU);
const GUE_SHORT: Case = short("gue-flow-offload", GUE);

/// The same with the short way.
const fn short(name: &'static str, case: Case) -> Case {
    Case {
        name,
        is_short: true,
        ..case
    }
}

#[test]
fn user_mode_linux() {
    let Some(lab) = Lab::new(
        &["linux.uml", "busybox"],
        "user-mode-linux and busybox-static",
    ) else {
        return;
    };
    let mut guest = lab.user_mode_linux();
    for case in [
        &IPIP,
        &IPIP_SHORT,
        &GENEVE,
        &VXLAN,
        &VXLAN_SHORT,
        &FOU_RECEIVE,
    ] {
        lab.meet(&mut guest, case);
    }
}

#[test]
fn debian_cloud_kernel() {
    let packages = "qemu-system-x86, busybox-static, cpio and kmod";
    let Some(lab) = Lab::new(
        &["qemu-system-x86_64", "busybox", "cpio", "depmod"],
        packages,
    ) else {
        return;
    };
    let directory = std::env::var_os("WARREN_KERNEL_DIR").map_or_else(|| "/".into(), PathBuf::from);
    let has_kernel = fs::read_dir(directory.join("boot")).is_ok_and(|files| {
        files.flatten().any(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            name.starts_with("vmlinuz-") && name.ends_with("-cloud-amd64")
        })
    });
    if !has_kernel {
        eprintln!(
            "skipped: no Debian cloud kernel below {} (package linux-image-cloud-amd64, installed or unpacked to WARREN_KERNEL_DIR)",
            directory.display()
        );
        return;
    }
    let mut guest = lab.qemu(&directory);
    for case in [
        &IPIP,
        &IPIP_SHORT,
        &FOU,
        &FOU_SHORT,
        &GUE,
        &GUE_SHORT,
        &GENEVE,
        &VXLAN,
        &VXLAN_SHORT,
    ] {
        lab.meet(&mut guest, case);
    }
}

/// Packets took the short way, both ways: of the guest's files at least half, and of those to it.
fn assert_short(node: &Node, case: &Case) {
    let name = case.name;
    let short = node.short();
    if !short.on {
        let is_foreseen = short.because.contains("CAP_BPF") || short.because.contains("6.6");
        assert!(is_foreseen, "{short:?}");
        eprintln!(
            "skipped: the host has no short way for {name}: {}",
            short.because
        );
        return;
    }
    println!(
        "{name}: {:?} out and {:?} in by the short way",
        short.encap, short.decap
    );
    assert!(short.encap.packets > 100, "{name}: {short:?}");
    assert!(short.decap.octets > 1 << 19, "{name}: {short:?}");
    assert!(short.encap.octets > 1 << 19, "{name}: {short:?}");
    assert_eq!(short.failed, 0, "{name}: {short:?}");
}

/// A namespace with a tap device for one guest.
struct Lab {
    namespace: String,
    directory: tempfile::TempDir,
}

impl Lab {
    fn new(programs: &[&str], packages: &str) -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("skipped: network namespaces and devices need root");
            return None;
        }
        for program in programs {
            let found = std::env::var_os("PATH").is_some_and(|path| {
                std::env::split_paths(&path)
                    .chain(["/usr/sbin".into(), "/sbin".into()])
                    .any(|directory| directory.join(program).exists())
            });
            if !found {
                eprintln!("skipped: {program} is not installed (Debian packages {packages})");
                return None;
            }
        }
        if let Err(error) = File::open("/dev/net/tun") {
            eprintln!("skipped: /dev/net/tun: {error}");
            return None;
        }
        let lab = Self {
            namespace: format!("wk{}-{}", std::process::id(), programs[0].replace('_', "")),
            directory: tempfile::tempdir().unwrap(),
        };
        run("ip", &["netns", "add", &lab.namespace]);
        for arguments in [
            "link set lo up",
            "tuntap add mode tap name tap0",
            "addr add 192.0.2.1/24 dev tap0",
            "link set tap0 up",
        ] {
            lab.ip(arguments);
        }
        Some(lab)
    }

    fn ip(&self, arguments: &str) {
        let mut all = vec!["-n", &self.namespace];
        all.extend(arguments.split_whitespace());
        run("ip", &all);
    }

    fn within<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.namespace)).unwrap();
        std::thread::scope(|scope| {
            let entered = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                action()
            });
            entered.join().unwrap()
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        // It ends with the thread that started it, whatever becomes of that.
        command.args(["netns", "exec", &self.namespace]);
        command.args(["setpriv", "--pdeathsig", "KILL", program]);
        command
    }

    fn user_mode_linux(&self) -> Guest {
        let init = self.directory.path().join("init");
        let obey = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/obey.sh");
        let script = format!(
            "#!/bin/bash\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin\n\
             mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /run\n\
             mkdir -p /run/m/lib; ln -s /usr/lib/uml/modules /run/m/lib/modules\n\
             for m in ipip sit fou geneve vxlan; do modprobe -d /run/m $m; done\n\
             stty -echo\nLINK=vec0\n. {}\n",
            obey.display()
        );
        fs::write(&init, script).unwrap();
        run("chmod", &["+x", &init.display().to_string()]);
        // Its processes are processes of the host that outlive their kernel when that is killed: a process namespace of
        // their own ends them all.
        let mut command = self.command("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "linux.uml"])
            .env(
                "TMPDIR",
                if Path::new("/dev/shm").is_dir() {
                    "/dev/shm"
                } else {
                    "/tmp"
                },
            )
            .args([
                "mem=128M",
                "umid=w",
                "root=/dev/root",
                "rootfstype=hostfs",
                "rootflags=/",
                "ro",
                "quiet",
            ])
            .arg(format!("uml_dir={}/", self.directory.path().display()))
            .arg(format!("init={}", init.display()))
            .args([
                "vec0:transport=tap,ifname=tap0,depth=64,gro=0",
                "con=null",
                "con0=fd:0,fd:1",
                "ssl=null",
            ]);
        Guest::start(command, self.directory.path())
    }

    fn qemu(&self, kernel: &Path) -> Guest {
        let initrd = self.directory.path().join("initrd.gz");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/initrd.sh");
        let arguments = [script.as_path(), kernel, &initrd].map(|path| path.display().to_string());
        let image = run("bash", &arguments.each_ref().map(String::as_str));
        let mut command = self.command("qemu-system-x86_64");
        command
            .args([
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-m",
                "256",
                "-smp",
                "1",
                "-nographic",
            ])
            .args(["-nodefaults", "-serial", "stdio", "-no-reboot"])
            .args(["-kernel", image.trim(), "-initrd"])
            .arg(&initrd)
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 tsc=unstable mitigations=off",
            ])
            .args(["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"])
            .args(["-device", "virtio-net-pci,netdev=n0,romfile="]);
        Guest::start(command, self.directory.path())
    }

    /// Starts a node for the case and sends everything there is to send.
    fn meet(&self, guest: &mut Guest, case: &Case) {
        let start = Instant::now();
        guest.run(case.setup);
        let node = self.node(case);
        let capture = self.capture(case);
        let (mut v4, mut v6) = (0, 0);
        let here: [IpAddr; 2] = [
            "10.244.1.1".parse().unwrap(),
            "fd00:10:244:1::1".parse().unwrap(),
        ];
        let there: [IpAddr; 2] = [
            "10.244.2.1".parse().unwrap(),
            "fd00:10:244:2::1".parse().unwrap(),
        ];
        // The first packets make the guest's neighbours and routes.
        guest.run("ping -c 1 -W 3 192.0.2.1 >/run/o");
        v4 += self.within(|| echo_all_sizes(here[0], there[0], case.mtu));
        let mut families = vec![(here[0], there[0])];
        if case.v6_inside {
            v6 += self.within(|| echo_all_sizes(here[1], there[1], case.mtu));
            families.push((here[1], there[1]));
        }
        for (here, there) in families {
            let headers = if here.is_ipv4() { 28 } else { 48 };
            let ping = if here.is_ipv4() { "ping" } else { "ping6" };
            for size in [0, 1, 56, 1000, case.mtu - headers] {
                guest.run(&format!(
                    "busybox {ping} -c 2 -W 3 -s {size} {here} >/run/o"
                ));
            }
            // The guest's file comes here, and goes back.
            let port = if there.is_ipv4() { 80 } else { 81 };
            let file = self.within(|| fetch(SocketAddr::new(there, port)));
            assert_eq!(file.len(), 1 << 20, "{}", case.name);
            guest.run("busybox nc -l -p 5001 >/run/back </dev/null & sleep 0.3");
            self.within(|| send(SocketAddr::new(there, 5001), &file));
            guest.run("wait; cmp_sum() { busybox sha1sum <$1; }; [ \"$(cmp_sum /run/back)\" = \"$(cmp_sum /run/www/file)\" ]");
        }
        if case.is_short {
            assert_short(&node, case);
        }
        let total = node.counters().total;
        // A kernel's Ethernet device announces itself to multicast groups, which a routed overlay
        // does not carry.
        let mut drops = total.decap.drops.clone();
        drops.remove("wrong_vtep_mac");
        assert!(drops.is_empty(), "{}: {:#?}", case.name, total.decap);
        node.stop();
        drop(capture);
        guest.run(case.teardown);
        println!(
            "{} by {}: {v4} sizes over IPv4, {v6} over IPv6, 1 MiB of TCP each way; {:.1} s",
            guest.version,
            case.name,
            start.elapsed().as_secs_f64()
        );
    }

    fn node(&self, case: &Case) -> Node {
        let directory = self.directory.path().display();
        let text = format!(
            r#"
[node]
name = "host"
underlay = ["192.0.2.1"]
vtep-mac = "02:00:00:00:00:01"
prefixes = ["10.244.1.0/24", "fd00:10:244:1::/64"]
[device]
addresses = ["10.244.1.1/24", "fd00:10:244:1::1/64"]
[control]
socket = "{directory}/n.sock"
{sections}
[[peers]]
name = "guest"
address = "192.0.2.2"
encap = "{encap}"
{mac}
probe-address = "10.244.2.1"
prefixes = ["10.244.2.0/24", "fd00:10:244:2::/64"]
"#,
            sections = match case.is_short {
                true => format!("[worker]\nflow-offload = true\n{}", case.sections),
                false => case.sections.to_owned(),
            },
            encap = case.encap,
            mac = if matches!(case.encap, "vxlan" | "geneve") {
                "vtep-mac = \"02:00:00:00:00:02\""
            } else {
                ""
            },
        );
        let path = self.directory.path().join("n.toml");
        fs::write(&path, text).unwrap();
        let child = self
            .command(PROGRAM)
            .args(["run", "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let node = Node {
            child,
            socket: self.directory.path().join("n.sock"),
        };
        let ready = common::wait_until("the node is ready", || {
            match Client::connect(&node.socket)
                .ok()?
                .ask(&Request::Status)
                .ok()?
            {
                Response::Status(status) if status.ready => Some(()),
                _ => None,
            }
        });
        assert!(ready.is_some(), "the node did not come up");
        node
    }

    /// Keeps the first packets from the guest where `WARREN_GOLDEN` says.
    fn capture(&self, case: &Case) -> Option<Killed> {
        let directory = PathBuf::from(std::env::var_os("WARREN_GOLDEN")?);
        let file = directory.join(format!(
            "{}-{}.pcap",
            self.namespace.rsplit('-').next()?,
            case.name
        ));
        let child = self
            .command("tcpdump")
            .args(["-i", "tap0", "-n", "-U", "-c", "24", "-w"])
            .arg(file)
            .args([
                "src",
                "192.0.2.2",
                "and",
                "not",
                "icmp",
                "and",
                "not",
                "arp",
            ])
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        std::thread::sleep(Duration::from_millis(500));
        Some(Killed(child))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.namespace])
            .output();
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = kill(
            Pid::from_raw(i32::try_from(self.0.id()).unwrap()),
            Signal::SIGINT,
        );
        let _ = self.0.wait();
    }
}

struct Node {
    child: Child,
    socket: PathBuf,
}

impl Node {
    fn counters(&self) -> CountersReport {
        match Client::connect(&self.socket)
            .unwrap()
            .ask(&Request::Counters)
            .unwrap()
        {
            Response::Counters(report) => *report,
            other => panic!("{other:?}"),
        }
    }

    fn short(&self) -> ShortcutReport {
        match Client::connect(&self.socket)
            .unwrap()
            .ask(&Request::Status)
            .unwrap()
        {
            Response::Status(status) => status.flow_offload.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn stop(mut self) {
        let _ = kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            Signal::SIGTERM,
        );
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A guest kernel with a shell on its console.
struct Guest {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    version: String,
    /// A directory that stands in the arguments of everything started here and nowhere else:
    /// user-mode Linux makes processes that outlive their parent.
    directory: PathBuf,
}

impl Guest {
    fn start(mut command: Command, directory: &Path) -> Self {
        let start = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut console = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while console
                .read_until(b'\n', &mut line)
                .is_ok_and(|octets| octets > 0)
            {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let mut guest = Self {
            child,
            input,
            lines,
            version: String::new(),
            directory: directory.to_owned(),
        };
        let (_, ready) = guest.read_until("@@READY ", Duration::from_secs(90));
        guest.version = ready
            .split("@@READY ")
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        println!(
            "{} boots in {:.1} s",
            guest.version,
            start.elapsed().as_secs_f64()
        );
        guest
    }

    /// Runs a shell command, which must succeed, and returns what it printed.
    fn run(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").unwrap();
        let (said, end) = self.read_until("@@DONE ", Duration::from_secs(60));
        assert!(end.ends_with("@@DONE 0"), "{command}: {end}\n{said}");
        said
    }

    /// What is said up to the line with `mark`, and that line.
    fn read_until(&mut self, mark: &str, limit: Duration) -> (String, String) {
        let deadline = Instant::now() + limit;
        let mut said = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("the guest says no {mark:?}:\n{said}");
            };
            let is_mark = line
                .split(mark)
                .nth(1)
                .is_some_and(|rest| !rest.starts_with('$'));
            if is_mark {
                return (said, line);
            }
            said.push_str(&line);
            said.push('\n');
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Processes that were made while others were ended are met in the next round.
        for _ in 0..20 {
            let left = processes_with(&self.directory);
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!(
            "the guest does not end: {:?}",
            processes_with(&self.directory)
        );
    }
}

/// The processes that have `directory` in their arguments, but for the dead.
fn processes_with(directory: &Path) -> Vec<Pid> {
    let directory = directory.display().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| {
            let pid: i32 = process.file_name().to_str()?.parse().ok()?;
            let arguments = fs::read(process.path().join("cmdline")).ok()?;
            let is_one = String::from_utf8_lossy(&arguments).contains(&directory);
            is_one.then(|| Pid::from_raw(pid))
        })
        .collect()
}

/// Sends echoes of every size from the empty payload to the MTU, one after the other, and wants
/// each back unchanged. Returns how many.
fn echo_all_sizes(here: IpAddr, there: IpAddr, mtu: u16) -> u16 {
    let (domain, protocol, request, reply, headers) = match there {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0, 20),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129, 40),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
    socket
        .bind(&SockAddr::from(SocketAddr::new(here, 0)))
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let largest = mtu - headers - 8;
    for size in 0..=largest {
        let mut message = vec![request, 0, 0, 0, 0x4b, 0x45];
        message.extend(size.to_be_bytes());
        message.extend((0..size).map(|n| n.to_le_bytes()[0]));
        if there.is_ipv4() {
            let sum: u32 = message
                .chunks(2)
                .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
                .sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let mut is_back = false;
        // A neighbour that is only just found may cost the first packets.
        for _ in 0..if size == 0 { 10 } else { 3 } {
            socket
                .send_to(&message, &SockAddr::from(SocketAddr::new(there, 0)))
                .unwrap();
            while let Some(octets) = receive(&socket) {
                let icmp = if there.is_ipv4() {
                    octets.get(20..)
                } else {
                    Some(&octets[..])
                };
                let icmp = icmp.unwrap_or_default();
                if icmp.first() == Some(&reply) && icmp.get(4..) == message.get(4..) {
                    is_back = true;
                    break;
                }
            }
            if is_back {
                break;
            }
        }
        assert!(is_back, "{there}: no echo with {size} octets of {largest}");
    }
    largest + 1
}

fn receive(mut socket: &Socket) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 2048];
    let octets = socket.read(&mut buffer).ok()?;
    buffer.truncate(octets);
    Some(buffer)
}

/// Gets a file by HTTP.
fn fetch(address: SocketAddr) -> Vec<u8> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream.write_all(b"GET /file HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    answer.split_off(head + 4)
}

fn send(address: SocketAddr, octets: &[u8]) {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream.write_all(octets).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
}
