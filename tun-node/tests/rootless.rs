//! The rootless overlay with the real program as the child, as an ordinary user:
//! `nobody` where the tests run as root, with a device file of its own.

#![allow(
    clippy::unwrap_used,
    reason = "clippy spares test functions, not the helpers of an integration test"
)]

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use tun_node::netlink::Route;
use tun_node::rootless::{ChildSpec, Launch, Rootless, RootlessError, exit_code};
use tun_node::sys::process::effective_capabilities;
use tun_node::tun::{Offload, Tun, TunError};

#[test]
fn a_command_talks_over_the_overlay_and_its_exit_code_is_ours() {
    as_ordinary_user(DeviceFile::Open, |program| {
        let ours = fs::read_link("/proc/thread-self/ns/net").unwrap();
        for (remote, code) in [("10.77.0.9", 7), ("2001:db8::9", 0)] {
            // Asks in one datagram, wants "back" in another.
            let script = format!(
                "exec 3<>/dev/udp/{remote}/6000; echo ask >&3; line=$(timeout 20 dd bs=64 count=1 status=none <&3); \
                 [ \"$line\" = back ] && exit {code}; exit 99"
            );
            let launch = launch(program, &["bash", "-c", &script]);
            let mut rootless = Rootless::start(&spec(), Offload::NONE, &launch).unwrap();
            let tun = rootless.take_tuns().pop().unwrap();
            assert_eq!(tun.name().as_str(), "ov0");
            rootless.go().unwrap();
            let asked = next_udp(&tun, b"ask\n");
            tun.send(&answer(&asked, b"back\n")).unwrap();
            assert_eq!(exit_code(rootless.wait().unwrap()), code, "{remote}");
        }
        // The daemon stays what and where it was.
        assert_eq!(effective_capabilities().unwrap(), 0);
        assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), ours);
    });
}

#[test]
fn the_namespace_is_as_specified() {
    as_ordinary_user(DeviceFile::Open, |program| {
        let script = "ip -o addr show; ip -o link show; ip route show; ip -6 route show; id -u";
        let output = run_and_read(program, script);
        for part in [
            "inet 127.0.0.1/8",
            "inet 10.77.0.1/24",
            "inet 10.78.0.1/32",
            "inet6 2001:db8::1/64",
            "mtu 1400",
            "10.200.0.0/16 dev ov0 proto 87",
            "2001:db8:200::/48 dev ov0 proto 87",
            "\n0\n",
        ] {
            assert!(output.contains(part), "{part} in {output}");
        }
        assert!(!output.contains("tentative"), "{output}");
    });
}

#[test]
fn several_queues_with_virtio_headers_come_over() {
    as_ordinary_user(DeviceFile::Open, |program| {
        let mut spec = spec();
        spec.queues = 2;
        spec.vnet_header = true;
        let launch = launch(program, &[]);
        let mut rootless = Rootless::start(&spec, Offload::TCP_UDP, &launch).unwrap();
        let tuns = rootless.take_tuns();
        assert_eq!(tuns.len(), 2);
        for tun in &tuns {
            assert!(tun.is_multi_queue());
            assert_eq!(tun.vnet_header_octets(), 10);
            // Offloads are granted to the holder of the descriptor, without any
            // capability.
            assert_ne!(tun.offload(), Offload::NONE);
        }
    });
}

#[test]
fn without_a_command_the_namespace_lasts_until_the_parent_lets_go() {
    as_ordinary_user(DeviceFile::Open, |program| {
        let mut rootless = Rootless::start(&spec(), Offload::NONE, &launch(program, &[])).unwrap();
        rootless.go().unwrap();
        assert_eq!(rootless.try_wait().unwrap(), None);
        let pid = rootless.pid();
        let before = fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_ne!(
            fs::read_link(format!("/proc/{pid}/ns/net")).unwrap(),
            before
        );
        drop(rootless);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    });
}

#[test]
fn a_parent_that_vanishes_takes_the_command_with_it() {
    as_ordinary_user(DeviceFile::Open, |program| {
        for command in [&["sleep", "1000"][..], &[]] {
            let launch = launch(program, command);
            // The child belongs to the thread that started it.
            let mut rootless = thread::spawn(move || {
                let mut rootless = Rootless::start(&spec(), Offload::NONE, &launch).unwrap();
                rootless.go().unwrap();
                rootless
            })
            .join()
            .unwrap();
            assert!(readable(rootless.as_raw_fd()), "{command:?} lives on");
            assert_eq!(
                rootless.wait().unwrap().signal(),
                Some(Signal::SIGKILL as i32)
            );
        }
    });
}

#[test]
fn a_parent_that_closes_before_go_leaves_nothing_running() {
    as_ordinary_user(DeviceFile::Open, |program| {
        let launch = launch(program, &["sleep", "1000"]);
        let rootless = Rootless::start(&spec(), Offload::NONE, &launch).unwrap();
        let pid = rootless.pid();
        drop(rootless);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    });
}

#[test]
fn signals_reach_the_command() {
    as_ordinary_user(DeviceFile::Open, |program| {
        let launch = launch(program, &["sleep", "1000"]);
        let mut rootless = Rootless::start(&spec(), Offload::NONE, &launch).unwrap();
        rootless.go().unwrap();
        rootless.signal(Signal::SIGTERM).unwrap();
        assert!(readable(rootless.as_raw_fd()));
        assert_eq!(exit_code(rootless.wait().unwrap()), 128 + 15);
        rootless.signal(Signal::SIGTERM).unwrap();
    });
}

#[test]
fn a_command_that_is_not_there_is_told() {
    as_ordinary_user(DeviceFile::Open, |program| {
        for (command, code) in [("/none/at/all", 127), ("/etc/passwd", 126)] {
            let launch = launch(program, &[command]);
            let mut rootless = Rootless::start(&spec(), Offload::NONE, &launch).unwrap();
            let error = rootless.go().unwrap_err();
            let sentence = error.to_string();
            assert!(sentence.starts_with(command), "{sentence}");
            let RootlessError::Command {
                exit_code: told, ..
            } = error
            else {
                panic!("{sentence}");
            };
            assert_eq!(told, code);
            assert_eq!(exit_code(rootless.wait().unwrap()), code);
        }
    });
}

#[test]
fn a_device_file_that_is_closed_or_missing_is_told_in_one_sentence() {
    for (file, part) in [
        (
            DeviceFile::Closed,
            "/dev/net/tun is not accessible to this user",
        ),
        (DeviceFile::Missing, "/dev/net/tun does not exist"),
    ] {
        as_ordinary_user(file, move |program| {
            let error = Rootless::start(&spec(), Offload::NONE, &launch(program, &[])).unwrap_err();
            assert!(error.to_string().starts_with(part), "{error}");
        });
    }
}

#[test]
fn user_namespaces_that_are_forbidden_are_told_with_the_switch() {
    as_ordinary_user(DeviceFile::Open, |program| {
        // A namespace in which no further one may be made.
        let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$@\"";
        let launch = Launch {
            program: PathBuf::from("unshare"),
            arguments: ["-Ur", "sh", "-c", script]
                .iter()
                .map(OsString::from)
                .chain([program.as_os_str().to_owned()])
                .collect(),
            command: Vec::new(),
            socket: None,
        };
        let sentence = Rootless::start(&spec(), Offload::NONE, &launch)
            .unwrap_err()
            .to_string();
        assert!(
            sentence.starts_with("this user may not make user namespaces"),
            "{sentence}"
        );
        assert!(
            sentence.contains("user.max_user_namespaces is 0"),
            "{sentence}"
        );
    });
}

#[test]
fn a_specification_that_cannot_be_obeyed_is_told() {
    as_ordinary_user(DeviceFile::Open, |program| {
        let refused = |change: fn(&mut ChildSpec)| {
            let mut spec = spec();
            change(&mut spec);
            let launch = launch(program, &[]);
            Rootless::start(&spec, Offload::NONE, &launch)
                .unwrap_err()
                .to_string()
        };
        let name = refused(|spec| spec.device = "sixteen-octets-x".into());
        assert!(name.contains("1 to 15 octets"), "{name}");
        let mtu = refused(|spec| spec.mtu = 20);
        assert!(mtu.contains("MTU refused"), "{mtu}");
        let route = refused(|spec| {
            let mut route = Route::new("10.1.0.0/16".parse().unwrap());
            route.gateway = Some("203.0.113.1".parse().unwrap());
            spec.routes.push(route);
        });
        assert!(route.contains("adding route 10.1.0.0/16"), "{route}");
    });
}

#[test]
fn ten_thousand_routes_are_no_trouble() {
    as_ordinary_user(DeviceFile::Open, |program| {
        let mut spec = spec();
        spec.routes = (0..10_000u32)
            .map(|i| {
                let [_, _, high, low] = i.to_be_bytes();
                Route::new(format!("11.{high}.{low}.0/24").parse().unwrap())
            })
            .collect();
        Rootless::start(&spec, Offload::NONE, &launch(program, &[])).unwrap();
    });
}

#[test]
fn a_device_that_the_user_owns_is_attached_to_without_a_capability() {
    let made = |_: &Path| {
        for arguments in [
            "tuntap add dev own0 mode tun user 65534",
            "tuntap add dev root0 mode tun user 0",
            "addr add 10.78.0.1/24 dev own0",
            "link set own0 up",
        ] {
            let status = Command::new("ip")
                .args(arguments.split_whitespace())
                .status()
                .unwrap();
            assert!(status.success(), "ip {arguments}");
        }
    };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a persistent device for a user needs root");
        return;
    }
    as_ordinary_user_after(DeviceFile::Open, made, |_| {
        let tun = Tun::attach("own0".parse().unwrap(), false, Offload::NONE).unwrap();
        let socket = std::net::UdpSocket::bind("10.78.0.1:0").unwrap();
        // The device had no carrier until we came, and the kernel drops what is
        // sent on it until it has noticed.
        let asked = next_udp_after(&tun, b"ask", || {
            socket.send_to(b"ask", "10.78.0.9:6000").unwrap();
        });
        tun.send(&answer(&asked, b"back")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 4);
        let with_header = Tun::attach("own0".parse().unwrap(), true, Offload::TCP);
        assert!(with_header.unwrap_err().to_string().contains("in use"));
        drop(tun);
        // Another test may hold a duplicate from fork to exec.
        let deadline = Instant::now() + Duration::from_secs(10);
        let tun = loop {
            match Tun::attach("own0".parse().unwrap(), true, Offload::TCP) {
                Err(TunError::Busy { .. }) if Instant::now() < deadline => thread::yield_now(),
                outcome => break outcome.unwrap(),
            }
        };
        assert_eq!(
            (tun.vnet_header_octets(), tun.offload()),
            (10, Offload::TCP)
        );
        let error = Tun::attach("root0".parse().unwrap(), false, Offload::NONE).unwrap_err();
        assert!(
            error.to_string().contains("does not belong to this user"),
            "{error}"
        );
    });
}

/// What `/dev/net/tun` is to be.
#[derive(Clone, Copy)]
enum DeviceFile {
    Open,
    Closed,
    Missing,
}

/// Runs `test` on a thread of an ordinary user, in a network namespace of its own
/// where the tests run as root. The path is the program under test.
fn as_ordinary_user(file: DeviceFile, test: impl FnOnce(&Path) + Send + 'static) {
    as_ordinary_user_after(file, |_| (), test);
}

fn as_ordinary_user_after(
    file: DeviceFile,
    prepare: impl FnOnce(&Path) + Send + 'static,
    test: impl FnOnce(&Path) + Send + 'static,
) {
    let root = nix::unistd::geteuid().is_root();
    if !root && !matches!(file, DeviceFile::Open) {
        eprintln!("skipped: another /dev/net/tun needs root");
        return;
    }
    let room = tempfile::tempdir().unwrap();
    fs::set_permissions(room.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Where the build lies may be closed to other users.
    let program = room.path().join("tun-node");
    // By another process: a descriptor that writes it here would be inherited by what other tests
    // start at the same moment, and the kernel starts no program that someone may write to.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_tun-node"))
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    let path = room.path().to_owned();
    let outcome = thread::spawn(move || {
        if root {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET) {
                eprintln!("skipped: namespaces need CAP_SYS_ADMIN ({error})");
                return;
            }
            provide_device_file(&path, file);
            prepare(&path);
            become_nobody();
        } else if let Err(error) = tun_node::sys::tun::open() {
            eprintln!("skipped: /dev/net/tun: {error}");
            return;
        }
        if !user_namespaces_work() {
            eprintln!("skipped: this user may not make user namespaces");
            return;
        }
        test(&program);
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Puts a device file over `/dev/net/tun` in the mount namespace of this thread.
fn provide_device_file(room: &Path, file: DeviceFile) {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let dev = room.join("dev");
    fs::create_dir(&dev).unwrap();
    mount(Some("tmpfs"), &dev, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    fs::set_permissions(&dev, fs::Permissions::from_mode(0o755)).unwrap();
    if !matches!(file, DeviceFile::Missing) {
        umask(Mode::empty());
        let mode = match file {
            DeviceFile::Closed => 0o600,
            DeviceFile::Open | DeviceFile::Missing => 0o666,
        };
        let mode = Mode::from_bits_truncate(mode);
        mknod(&dev.join("tun"), SFlag::S_IFCHR, mode, makedev(10, 200)).unwrap();
    }
    mount(Some(&dev), "/dev/net", none, MsFlags::MS_BIND, none).unwrap();
}

/// Makes this thread `nobody`; the C library's functions would change every
/// thread.
fn become_nobody() {
    tun_node::sys::process::become_user_on_this_thread(65534).unwrap();
    // A change of user makes the process undumpable, and its /proc files root's.
    nix::sys::prctl::set_dumpable(true).unwrap();
}

fn user_namespaces_work() -> bool {
    let status = Command::new("unshare").args(["-Urn", "true"]).status();
    status.is_ok_and(|status| status.success())
}

fn spec() -> ChildSpec {
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
    ChildSpec {
        device: "ov0".into(),
        mtu: 1400,
        addresses: nets(&["10.77.0.1/24", "10.78.0.1/32", "2001:db8::1/64"]),
        routes: ["10.77.0.0/24", "10.200.0.0/16", "2001:db8:200::/48"]
            .iter()
            .map(|prefix| Route::new(prefix.parse().unwrap()))
            .collect(),
        queues: 1,
        vnet_header: false,
    }
}

fn launch(program: &Path, command: &[&str]) -> Launch {
    Launch {
        program: program.to_owned(),
        arguments: Vec::new(),
        command: command.iter().map(OsString::from).collect(),
        socket: None,
    }
}

/// Runs a shell script in the namespace and returns what it wrote.
fn run_and_read(program: &Path, script: &str) -> String {
    let out = tempfile::NamedTempFile::new().unwrap();
    let script = format!("({script}) > {} 2>&1", out.path().display());
    let launch = launch(program, &["sh", "-c", &script]);
    let mut rootless = Rootless::start(&spec(), Offload::NONE, &launch).unwrap();
    let _tuns = rootless.take_tuns();
    rootless.go().unwrap();
    assert!(rootless.wait().unwrap().success());
    fs::read_to_string(out.path()).unwrap()
}

/// The next UDP packet with this payload.
fn next_udp(tun: &Tun, payload: &[u8]) -> Vec<u8> {
    next_udp_after(tun, payload, || ())
}

/// The next UDP packet with this payload, asking for it again and again. The
/// kernel sends of its own accord, too (group membership).
fn next_udp_after(tun: &Tun, payload: &[u8], ask: impl Fn()) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut buffer = [0; 2000];
    loop {
        match tun.recv(&mut buffer) {
            Ok(length) => {
                let packet = buffer.get(..length).unwrap();
                let parsed = SlicedPacket::from_ip(packet).unwrap();
                if let Some(TransportSlice::Udp(udp)) = parsed.transport
                    && udp.payload() == payload
                {
                    return packet.to_vec();
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(Instant::now() < deadline, "no packet came");
                ask();
                readable_within(tun.as_raw_fd(), Duration::from_millis(20));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn answer(packet: &[u8], payload: &[u8]) -> Vec<u8> {
    let parsed = SlicedPacket::from_ip(packet).unwrap();
    let Some(TransportSlice::Udp(udp)) = parsed.transport else {
        panic!("no UDP")
    };
    let builder = match parsed.net.unwrap() {
        NetSlice::Ipv4(v4) => {
            PacketBuilder::ipv4(v4.header().destination(), v4.header().source(), 64)
        }
        NetSlice::Ipv6(v6) => {
            PacketBuilder::ipv6(v6.header().destination(), v6.header().source(), 64)
        }
        NetSlice::Arp(_) => panic!("a TUN has no ARP"),
    };
    let mut reply = Vec::new();
    builder
        .udp(udp.destination_port(), udp.source_port())
        .write(&mut reply, payload)
        .unwrap();
    reply
}

/// Waits up to 20 s until the descriptor is readable.
fn readable(fd: i32) -> bool {
    readable_within(fd, Duration::from_secs(20))
}

fn readable_within(fd: i32, timeout: Duration) -> bool {
    let mut poll = Poll::new().unwrap();
    poll.registry()
        .register(&mut SourceFd(&fd), Token(0), Interest::READABLE)
        .unwrap();
    let mut events = Events::with_capacity(1);
    poll.poll(&mut events, Some(timeout)).unwrap();
    !events.is_empty()
}
