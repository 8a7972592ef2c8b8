//! What others do to the host while the daemon runs: to its device, its routes, its underlay, its
//! clock and its own process.

mod common;
#[path = "faults/disk.rs"]
mod disk;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Lab, Node, PROGRAM, Underlay, wait_until};
use nix::sys::signal::Signal;
use tun_node::node::EXIT_INTERNAL;

/// Within this everything that can be set right is.
const IN_TIME: Duration = Duration::from_secs(1);

/// Waits until `holds`, and demands that it took less than [`IN_TIME`].
fn in_time(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    wait_until(what, || holds().then_some(())).unwrap_or_else(|| panic!("{what}: never"));
    let took = start.elapsed();
    eprintln!("{what}: {took:?}");
    assert!(took < IN_TIME, "{what}: {took:?}");
}

fn pings(lab: &Lab, destination: &str) -> bool {
    let ping = ["ping", "-n", "-c", "1", "-W", "1", destination];
    lab.exec(1, &ping).status.success()
}

fn both(lab: &Lab, extra: &str) -> [Node; 2] {
    [1, 2].map(|node| {
        lab.start(
            node,
            "vxlan",
            Underlay::V4,
            if node == 1 { extra } else { "" },
        )
    })
}

/// Rewrites the configuration of node 1 before it starts.
fn start_with(lab: &Lab, change: impl Fn(String) -> String) -> Node {
    let path = lab.config(1, "vxlan", Underlay::V4, "");
    let text = fs::read_to_string(&path).expect("it was written");
    fs::write(&path, change(text)).expect("it can be written again");
    let node = lab.spawn(1, &path);
    node.wait_ready();
    node
}

#[test]
fn a_device_set_down_or_given_another_mtu_or_robbed_of_an_address_is_set_right() {
    let Some(lab) = Lab::new() else { return };
    let _nodes = both(&lab, "");
    let device = || lab.ip(1, "-o link show warren0");
    let routes = || lab.ip(1, "route show") + &lab.ip(1, "-6 route show");
    lab.ping(1, "10.244.2.1", 1, 56);
    lab.ping(1, "fd00:10:244:2::1", 1, 56);
    // The last digits of IPv6 lines count down or differ in nothing else here.
    let before = routes();

    lab.ip(1, "link set warren0 down");
    in_time("up again", || device().contains(",UP"));
    in_time("routes again", || routes() == before);
    in_time("IPv4 passes again", || pings(&lab, "10.244.2.1"));
    in_time("IPv6 passes again", || pings(&lab, "fd00:10:244:2::1"));

    for mtu in [1000, 9000] {
        lab.ip(1, &format!("link set warren0 mtu {mtu}"));
        in_time("the MTU again", || device().contains("mtu 1450"));
        in_time("routes again", || routes() == before);
    }
    for address in ["10.244.1.1/24", "fd00:10:244:1::1/64"] {
        lab.ip(1, &format!("addr del {address} dev warren0"));
        in_time("the address again", || {
            lab.ip(1, "-o addr show dev warren0").contains(address)
        });
    }
    in_time("routes again", || routes() == before);
    in_time("IPv4 passes again", || pings(&lab, "10.244.2.1"));
    in_time("IPv6 passes again", || pings(&lab, "fd00:10:244:2::1"));
}

#[test]
fn a_device_deleted_or_moved_away_ends_the_node_with_one_line() {
    let Some(lab) = Lab::new() else { return };
    let second = lab.namespace(2);
    for fault in [
        "link del warren0".to_owned(),
        format!("link set warren0 netns {second} name away"),
    ] {
        let mut node = lab.start(1, "vxlan", Underlay::V4, "");
        lab.ip(1, &fault);
        let (status, took) = node.wait();
        assert_eq!(status.code(), Some(EXIT_INTERNAL.into()), "{fault}");
        assert!(took < IN_TIME, "{fault}: {took:?}");
        let log = node.log();
        let said: Vec<&str> = log
            .lines()
            .filter(|line| line.starts_with("tun-node: "))
            .collect();
        assert_eq!(said.len(), 1, "{fault}: {log}");
        assert!(said[0].contains("gone"), "{fault}: {log}");
    }
}

#[test]
fn routes_that_somebody_deletes_come_back_and_his_own_are_not_touched() {
    let Some(lab) = Lab::new() else { return };
    lab.ip(1, "link add other type veth peer name otherend");
    lab.ip(1, "link set otherend up");
    lab.ip(1, "link set other addrgenmode none up");
    // Above, beside and inside of ours.
    lab.ip(1, "route add 10.244.0.0/16 dev other proto static");
    lab.ip(
        1,
        "route add 10.244.2.0/24 dev other proto static metric 50",
    );
    lab.ip(1, "route add 10.244.2.128/25 dev other proto static");
    let foreign = || lab.ip(1, "route show dev other");
    let his = foreign();
    let nodes = both(&lab, "");
    let routes = |family: &str| lab.ip(1, &format!("{family} route show dev warren0"));
    let before = [routes("-4"), routes("-6")];
    assert!(before[0].contains("10.244.2.0/24 proto 87"), "{before:?}");
    for flush in [
        "route del 10.244.2.0/24 dev warren0",
        "route flush dev warren0 proto 87",
        "-6 route flush dev warren0 proto 87",
    ] {
        lab.ip(1, flush);
        in_time(flush, || [routes("-4"), routes("-6")] == before);
    }
    assert_eq!(foreign(), his);
    // Somebody puts his own in the place of ours: he has it, it is said, and it is ours again
    // when he leaves.
    lab.ip(1, "route replace 10.244.2.0/24 dev other proto static");
    in_time("the alarm", || {
        let status = nodes[0].status().expect("it runs");
        let mut alarms = status.alarms.iter();
        alarms.any(|alarm| alarm.contains("leads 10.244.2.0/24 elsewhere"))
    });
    assert!(
        foreign().contains("10.244.2.0/24 proto static scope link \n"),
        "{}",
        foreign()
    );
    lab.ip(1, "route del 10.244.2.0/24 dev other proto static metric 0");
    in_time("ours again", || [routes("-4"), routes("-6")] == before);
    in_time("no alarm", || {
        nodes[0]
            .status()
            .is_some_and(|status| status.alarms.is_empty())
    });
    assert_eq!(foreign(), his);
    for node in nodes {
        node.stop();
    }
    assert_eq!(foreign(), his);
}

#[test]
fn without_routes_in_the_configuration_none_are_made_and_stale_ones_go() {
    let Some(lab) = Lab::new() else { return };
    let persistent = |text: String| text.replace("[device]", "[device]\nmode = \"persistent\"");
    let mut node = start_with(&lab, persistent);
    assert!(lab.ip(1, "route show").contains("10.244.2.0/24"));
    node.signal(Signal::SIGKILL);
    node.wait();
    assert!(lab.ip(1, "route show").contains("10.244.2.0/24"));
    let node = start_with(&lab, |text| {
        persistent(text).replace("[device]", "[device]\nroutes = false")
    });
    assert!(!lab.ip(1, "route show").contains("10.244.2.0/24"));
    node.stop();
    lab.ip(1, "link del warren0");
}

#[test]
fn what_a_dead_predecessor_left_on_a_device_that_stays_is_kept_where_it_is_right() {
    let Some(lab) = Lab::new() else { return };
    let persistent = |text: String| text.replace("[device]", "[device]\nmode = \"persistent\"");
    let mut node = start_with(&lab, persistent);
    node.signal(Signal::SIGKILL);
    node.wait();
    // Stale: the configuration does not have it.
    lab.ip(1, "route add 10.99.0.0/16 dev warren0 proto 87");
    lab.ip(1, "addr add 10.98.0.1/32 dev warren0");
    let monitor = Command::new("ip")
        .args(["-n", &lab.namespace(1), "monitor", "route"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("ip is installed");
    let node = start_with(&lab, persistent);
    let routes = lab.ip(1, "route show dev warren0");
    assert!(!routes.contains("10.99.0.0/16"), "{routes}");
    assert!(routes.contains("10.244.2.0/24 proto 87"), "{routes}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(monitor.id()).expect("a pid"));
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it runs");
    let output = monitor.wait_with_output().expect("a child of ours");
    let seen = String::from_utf8_lossy(&output.stdout);
    assert!(seen.contains("Deleted 10.99.0.0/16"), "{seen}");
    assert!(!seen.contains("10.244.2.0/24"), "never gone: {seen}");
    node.stop();
    let routes = lab.ip(1, "route show dev warren0");
    assert!(!routes.contains("proto 87"), "{routes}");
    lab.ip(1, "link del warren0");
}

#[test]
fn an_underlay_that_flaps_or_loses_its_address_or_comes_back_under_another_name_is_followed() {
    let Some(lab) = Lab::new() else { return };
    // One prefix goes through the tunnel, one over the underlay as it is.
    let direct = "[[peers]]\nname = \"n3\"\naddress = \"192.0.2.3\"\nencap = \"fou\"\n\
                  mode = \"direct\"\nprefixes = [\"10.244.3.0/24\"]\n";
    let nodes = both(&lab, direct);
    lab.ip(2, "addr add 192.0.2.3/24 dev wire");
    lab.ip(2, "addr add 10.244.3.1/24 dev wire");
    let reaches = || pings(&lab, "10.244.2.1") && pings(&lab, "10.244.3.1");
    let routes = || lab.ip(1, "route show proto 87");
    in_time("both pass", reaches);
    let before = routes();
    assert!(
        before.contains("10.244.3.0/24 via 192.0.2.3 dev wire"),
        "{before}"
    );

    // The link flaps; the kernel takes the routes over it along, without a word.
    lab.ip(1, "link set wire down");
    wait_until("routes gone", || (routes() != before).then_some(()));
    lab.ip(1, "link set wire up");
    lab.ip(1, "addr add 2001:db8:99::1/64 dev wire nodad");
    in_time("routes after a flap", || routes() == before);
    in_time("both pass after a flap", reaches);

    // The address goes and comes back.
    lab.ip(1, "addr del 192.0.2.1/24 dev wire");
    let alarms = || nodes[0].status().expect("it runs").alarms;
    in_time("the alarm", || {
        alarms()
            .iter()
            .any(|alarm| alarm.contains("192.0.2.1 is on no interface"))
    });
    lab.ip(1, "addr add 192.0.2.1/24 dev wire");
    in_time("no alarm", || alarms().is_empty());
    in_time("routes after the address", || routes() == before);
    in_time("both pass after the address", reaches);

    // The interface is renamed.
    lab.ip(1, "link set wire down");
    lab.ip(1, "link set wire name cable");
    lab.ip(1, "link set cable up");
    lab.ip(1, "addr add 2001:db8:99::1/64 dev cable nodad");
    let renamed = before.replace("dev wire", "dev cable");
    in_time("routes after a new name", || routes() == renamed);
    in_time("both pass after a new name", reaches);

    // It is taken out and another one put in, with an index of its own.
    let (one, two) = (lab.namespace(1), lab.namespace(2));
    lab.ip(1, "link del cable");
    common::run(
        "ip",
        &[
            "-n", &one, "link", "add", "fresh", "type", "veth", "peer", "name", "wire", "netns",
            &two,
        ],
    );
    for (node, name) in [(1, "fresh"), (2, "wire")] {
        lab.ip(node, &format!("link set {name} addrgenmode none up"));
        lab.ip(node, &format!("addr add 192.0.2.{node}/24 dev {name}"));
        lab.ip(
            node,
            &format!("addr add 2001:db8:99::{node}/64 dev {name} nodad"),
        );
    }
    lab.ip(2, "addr add 192.0.2.3/24 dev wire");
    lab.ip(2, "addr add 10.244.3.1/24 dev wire");
    let fresh = before.replace("dev wire", "dev fresh");
    in_time("routes after a new interface", || routes() == fresh);
    in_time("both pass after a new interface", reaches);
    for node in nodes {
        node.stop();
    }
    assert_eq!(routes(), "");
}

#[test]
fn an_underlay_address_that_is_changed_for_another_one_is_named_and_taken_up_by_a_reload() {
    let Some(lab) = Lab::new() else { return };
    let nodes = both(&lab, "");
    let alarms = || nodes[0].status().expect("it runs").alarms;
    let file = |node: u8| lab.directory().join(format!("{node}.toml"));
    let change = |node: u8, from: &str, to: &str| {
        let text = fs::read_to_string(file(node)).expect("it was written");
        let other = file(node).with_extension("new");
        fs::write(&other, text.replace(from, to)).expect("it can be written");
        fs::rename(&other, file(node)).expect("on one file system");
        nodes[usize::from(node) - 1].signal(Signal::SIGHUP);
    };
    lab.ping(1, "10.244.2.1", 3, 56);
    lab.ip(1, "addr del 192.0.2.1/24 dev wire");
    lab.ip(1, "addr add 192.0.2.11/24 dev wire");
    in_time("the alarm", || {
        let alarms = alarms();
        let mut alarms = alarms.iter();
        alarms.any(|alarm| alarm.contains("192.0.2.1 is on no interface"))
    });
    // What this host does not have is refused, and the node is as it was.
    let before = nodes[0].status().expect("it runs").epoch;
    change(1, "\"192.0.2.1\"", "\"192.0.2.12\"");
    let refused = wait_until("the refusal", || {
        let log = nodes[0].log();
        let is_named = log.contains("does not have the underlay address 192.0.2.12");
        is_named.then_some(())
    });
    assert!(refused.is_some(), "{}", nodes[0].log());
    assert_eq!(nodes[0].status().expect("it runs").epoch, before);
    // The address that it does have is taken up, by it and by its peer.
    change(1, "\"192.0.2.12\"", "\"192.0.2.11\"");
    change(2, "address = \"192.0.2.1\"", "address = \"192.0.2.11\"");
    let passes = wait_until("passes again", || pings(&lab, "10.244.2.1").then_some(()));
    assert!(passes.is_some(), "{} {}", nodes[0].log(), nodes[1].log());
    in_time("no alarm", || alarms().is_empty());
    let status = nodes[0].status().expect("it runs");
    assert!(
        status
            .underlay
            .iter()
            .any(|one| one.to_string() == "192.0.2.11"),
        "{status:?}"
    );
    in_time("ready", || {
        nodes[0].status().is_some_and(|status| status.ready)
    });
    lab.ping(1, "10.244.2.1", 20, 56);
    lab.ping(2, "fd00:10:244:1::1", 20, 56);
    for node in nodes {
        node.stop();
    }
}

/// Stops the daemon for so long; then it goes on as if nothing had been.
fn stopped_for(pause: Duration) {
    let Some(lab) = Lab::new() else { return };
    let nodes = both(&lab, "");
    lab.ping(1, "10.244.2.1", 3, 56);
    nodes[0].signal(Signal::SIGSTOP);
    // Not waiting for an event: the length of the pause is what is tested.
    std::thread::sleep(pause);
    nodes[0].signal(Signal::SIGCONT);
    in_time("passes again", || pings(&lab, "10.244.2.1"));
    in_time("ready", || {
        nodes[0].status().is_some_and(|status| status.ready)
    });
    lab.ping(1, "10.244.2.1", 20, 56);
    lab.ping(2, "10.244.1.1", 20, 56);
    for node in nodes {
        node.stop();
    }
}

#[test]
fn a_daemon_that_is_stopped_for_a_few_seconds_goes_on() {
    stopped_for(Duration::from_secs(4));
}

#[test]
#[ignore = "takes a minute: cargo test -p tun-node --test faults -- --ignored stopped_for_a_minute"]
fn a_daemon_that_is_stopped_for_a_minute_goes_on() {
    stopped_for(Duration::from_secs(60));
}

/// In a kernel of its own, for the wall clock is the whole machine's: user-mode Linux, with the
/// host's files read-only under it.
#[test]
fn a_wall_clock_that_is_set_a_year_forward_or_two_back_is_not_noticed() {
    let Some(lab) = Lab::new() else { return };
    for program in ["/usr/bin/linux.uml", "/usr/bin/busybox"] {
        if !Path::new(program).exists() {
            eprintln!(
                "skipped: there is no {program} (Debian packages user-mode-linux, busybox-static)"
            );
            return;
        }
    }
    let directory = lab.directory().display();
    for node in [1, 2] {
        let path = lab.config(node, "vxlan", Underlay::V4, "");
        let text = fs::read_to_string(&path).expect("it was written");
        // Sockets cannot be made on the host's files.
        let text = text.replace(
            &format!("{directory}/run{node}"),
            &format!("/run/run{node}"),
        );
        fs::write(&path, text).expect("it can be written again");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/clock.sh");
    let init = lab.directory().join("init");
    let text = format!(
        "#!/bin/bash\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /run\n\
         mkdir -p /run/m/lib /run/netns; ln -s /usr/lib/uml/modules /run/m/lib/modules\n\
         mount -t devtmpfs dev /dev; for m in ipv6 tun veth; do modprobe -d /run/m $m; done\n\
         PROGRAM={PROGRAM}\nCONFIGS={directory}\n. {}\npoweroff -f\nhalt -f\n",
        script.display()
    );
    fs::write(&init, text).expect("it can be written");
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).expect("ours");
    // Its processes are processes of the host that outlive their kernel when that is killed: a process namespace of their
    // own ends them all.
    let mut guest = Command::new("unshare")
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
            "mem=256M",
            "umid=c",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
        ])
        .args(["quiet", "con=null", "con0=fd:0,fd:1", "ssl=null"])
        .arg(format!("uml_dir={directory}/"))
        .arg(format!("init={}", init.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it is installed");
    let mut said = Vec::new();
    let output = BufReader::new(guest.stdout.take().expect("it is piped"));
    for line in output.lines().map_while(Result::ok) {
        let line = line.trim().to_owned();
        let ends = line == "@@END";
        said.push(line);
        if ends {
            break;
        }
    }
    let _ = guest.kill();
    let _ = guest.wait();
    let all = said.join("\n");
    let found = |start: &str| said.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!(said.last().map(String::as_str), Some("@@END"), "{all}");
    assert_eq!(found("@@READY"), 4, "{all}");
    let pings: Vec<&String> = said
        .iter()
        .filter(|line| line.starts_with("@@PING"))
        .collect();
    assert_eq!(pings.len(), 3, "{all}");
    for ping in pings {
        assert!(
            ping.contains("12 packets received, 0% packet loss"),
            "{ping}\n{all}"
        );
    }
    assert_eq!(found("@@ROUTES 1"), 3, "{all}");
    // A daemon that minds says so.
    for word in ["WARN", "ERROR", "now by"] {
        let minds = |line: &&String| line.starts_with("@@LOG") && line.contains(word);
        assert_eq!(said.iter().filter(minds).count(), 0, "{word}: {all}");
    }
}
