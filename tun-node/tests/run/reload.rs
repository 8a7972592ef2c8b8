//! The configuration taken again while packets pass, and refused while packets pass.

use std::collections::HashSet;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use tun_node::ctl::message::{Request, Response};

use super::common::{Lab, Node, Underlay, tun_node, wait_until};

/// Packets a second, where the machine carries them.
const PER_SECOND: u64 = 50_000;
/// Packets that are sent at once, at most.
const BURST: u64 = 500;
/// Packets on the way at most: what a busy machine cannot carry is not sent, and no queue is
/// filled because somebody waits for a processor. So only a reload may lose something.
const WINDOW: u64 = 8_000;
const RELOADS: usize = 100;

/// Numbered packets from node 1 to node 2.
struct Load {
    stop: AtomicBool,
    sent: AtomicU64,
    arrived: AtomicU64,
}

/// What came of it.
#[derive(Debug)]
struct Outcome {
    sent: u64,
    arrived: u64,
    again: u64,
    took: Duration,
}

impl Load {
    const fn new() -> Self {
        Self {
            stop: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
        }
    }

    /// Sends and receives while `action` runs.
    fn during(&self, lab: &Lab, action: impl FnOnce()) -> Outcome {
        let receiver = lab.within(2, || UdpSocket::bind("10.244.2.1:6000").unwrap());
        let sender = lab.within(1, || UdpSocket::bind("10.244.1.1:0").unwrap());
        sender.connect("10.244.2.1:6000").unwrap();
        // Beyond the host's limit where this process may.
        let _ = setsockopt(&receiver, RcvBufForce, &(64 << 20));
        receiver
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let receive = scope.spawn(|| self.receive(&receiver, &is_over));
            let send = scope.spawn(|| self.send(&sender));
            {
                // Whatever happens in it, both threads end.
                let _stop = Raised(&self.stop);
                let _over = panicking(&is_over);
                action();
            }
            let took = send.join().unwrap();
            is_over.store(true, Ordering::Relaxed);
            let (arrived, again) = receive.join().unwrap();
            let sent = self.sent.load(Ordering::Relaxed);
            Outcome {
                sent,
                arrived,
                again,
                took,
            }
        })
    }

    fn receive(&self, socket: &UdpSocket, is_over: &AtomicBool) -> (u64, u64) {
        let (mut seen, mut again) = (HashSet::new(), 0);
        let mut octets = [0; 64];
        while !is_over.load(Ordering::Relaxed) {
            let Ok(length) = socket.recv(&mut octets) else {
                continue;
            };
            let number = u64::from_be_bytes(octets[..length].try_into().unwrap());
            again += u64::from(!seen.insert(number));
            self.arrived.store(seen.len() as u64, Ordering::Relaxed);
        }
        (seen.len() as u64, again)
    }

    fn send(&self, socket: &UdpSocket) -> Duration {
        let start = Instant::now();
        let mut number = 0_u64;
        while !self.stop.load(Ordering::Relaxed) {
            let elapsed = u64::try_from(start.elapsed().as_micros()).unwrap();
            let due = elapsed * PER_SECOND / 1_000_000;
            let room = WINDOW.saturating_sub(number - self.arrived.load(Ordering::Relaxed));
            for _ in 0..due.saturating_sub(number).min(BURST).min(room) {
                number += u64::from(socket.send(&number.to_be_bytes()).is_ok());
            }
            self.sent.store(number, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(500));
        }
        let took = start.elapsed();
        // What is on the way has its time.
        let _ = wait_until("the last packets", || {
            (self.arrived.load(Ordering::Relaxed) == number).then_some(())
        });
        took
    }

    /// Waits for as many further packets at the other side.
    fn flows_on(&self, further: u64) {
        let goal = self.arrived.load(Ordering::Relaxed) + further;
        let flowed = wait_until("packets arrive", || {
            (self.arrived.load(Ordering::Relaxed) >= goal).then_some(())
        });
        assert!(flowed.is_some(), "packets arrive no more");
    }
}

/// Raises a flag when it goes.
struct Raised<'f>(&'f AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Raises a flag when it goes in a panic.
fn panicking(flag: &AtomicBool) -> impl Drop + '_ {
    struct OnPanic<'f>(&'f AtomicBool);
    impl Drop for OnPanic<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.store(true, Ordering::Relaxed);
            }
        }
    }
    OnPanic(flag)
}

/// Puts a file in the place of another at once, as an administrator should.
fn replace(path: &Path, text: &str) {
    let other = path.with_extension("new");
    fs::write(&other, text).unwrap();
    fs::rename(&other, path).unwrap();
}

fn epoch(node: &Node) -> u64 {
    node.status().unwrap().epoch
}

fn source_is(node: &Node, state: &str) -> bool {
    let Some(Response::Sources(report)) = node.ask(&Request::Sources) else {
        return false;
    };
    let mut sources = report.sources.iter();
    sources.any(|source| source.source == "config" && source.state == state)
}

#[test]
fn a_hundred_reloads_under_load_lose_nothing_and_a_file_with_a_mistake_changes_nothing() {
    let Some(lab) = Lab::new() else { return };
    let nodes = [1, 2].map(|node| lab.start(node, "vxlan", Underlay::V4, ""));
    for node in [1, 2] {
        lab.ip(node, "link set warren0 txqueuelen 20000");
    }
    lab.ping(1, "10.244.2.1", 3, 56);
    let path = lab.directory().join("1.toml");
    let first = fs::read_to_string(&path).unwrap();
    let second = format!(
        "{first}[[peers]]\nname = \"n9\"\naddress = \"192.0.2.9\"\nencap = \"fou\"\n\
         prefixes = [\"10.244.9.0/24\"]\n\
         [[routes]]\nprefix = \"198.51.100.0/24\"\naction = \"blackhole\"\n"
    );
    let is_second = || lab.ip(1, "route show").contains("10.244.9.0/24");
    let load = Load::new();
    let outcome = load.during(&lab, || {
        load.flows_on(WINDOW);
        for number in 0..RELOADS {
            let before = epoch(&nodes[0]);
            replace(&path, [&second, &first][number % 2]);
            // By the signal and by order; what is slow is overtaken by the watch over the file.
            if number % 2 == 0 {
                nodes[0].signal(Signal::SIGHUP);
            } else {
                let answer = nodes[0].ask(&Request::Reload { dry_run: false });
                assert!(matches!(answer, Some(Response::Reload(_))), "{answer:?}");
            }
            let taken = wait_until("the file is taken", || {
                (is_second() == (number % 2 == 0)).then_some(())
            });
            assert!(taken.is_some(), "{}", nodes[0].log());
            assert!(epoch(&nodes[0]) > before);
            load.flows_on(PER_SECOND / 200);
        }
    });
    let rate = outcome.sent as f64 / outcome.took.as_secs_f64();
    eprintln!(
        "{RELOADS} reloads under {rate:.0} packets a second: {} sent, {} lost, {} twice",
        outcome.sent,
        outcome.sent - outcome.arrived,
        outcome.again
    );
    let lost = outcome.sent - outcome.arrived;
    assert_eq!(
        (lost, outcome.again),
        (0, 0),
        "{:#?}",
        nodes[0].counters().total
    );

    refused(&lab, &nodes[0], &path, &first, &second);
    for node in nodes {
        node.stop();
    }
}

/// The file with a mistake, by each way that a file is taken.
fn refused(lab: &Lab, node: &Node, path: &Path, first: &str, second: &str) {
    let socket = node.socket().display().to_string();
    let reload = |dry: bool| {
        let mut arguments = vec!["reload", "--socket", &socket];
        arguments.extend(dry.then_some("--dry-run"));
        let output = tun_node(&arguments);
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    // A valid one: a dry run says what would be, and nothing is. The watch over the files takes the
    // change too, half a second later; where the machine let it be first, once more.
    let said = wait_until("a dry run before the watch", || {
        replace(path, first);
        assert!(reload(false).0);
        let before = epoch(node);
        replace(path, second);
        let (went, said, why) = reload(true);
        assert!(went, "{why}");
        (epoch(node) == before).then_some(said)
    });
    let said = said.unwrap();
    for line in [
        "+ peer n9: ",
        "+ route 198.51.100.0/24 ",
        "would be taken; the generation stays",
    ] {
        assert!(said.contains(line), "{said}");
    }
    // What needs a new start is named.
    replace(
        path,
        &format!("{first}[probing]\nraise-s = 9\n[state]\nfile = \"\"\n"),
    );
    let (went, said, _) = reload(true);
    for section in ["[probing]", "[state]"] {
        let line = format!("{section} differs and takes effect at the next start");
        assert!(went && said.contains(&line), "{said}");
    }
    replace(path, first);
    assert!(reload(false).0);

    let wrong = first.replace("address = \"192.0.2.2\"", "address = \"192.0.2.300\"");
    let (line, column) = (
        1 + wrong.lines().position(|l| l.contains("300")).unwrap(),
        "address = ".len() + 1,
    );
    let place = format!("1.toml:{line}:{column}: ");
    let before = epoch(node);
    let routes = lab.ip(1, "route show");
    let load = Load::new();
    let outcome = load.during(lab, || {
        load.flows_on(1000);
        // By the change of the file alone.
        replace(path, &wrong);
        let told = wait_until("the refusal", || source_is(node, "lost").then_some(()));
        assert!(told.is_some(), "{}", node.log());
        let alarms = node.status().expect("it runs").alarms;
        let not_taken =
            |alarm: &String| alarm.starts_with("files not taken; ") && alarm.contains(&place);
        assert!(alarms.iter().any(not_taken), "{alarms:?}");
        load.flows_on(1000);
        // By order: the sentence comes back.
        for dry in [false, true] {
            let (went, said, why) = reload(dry);
            assert!(!went && why.contains(&place), "{said} {why}");
        }
        load.flows_on(1000);
        // By the signal: the log tells, once more.
        let lines = || node.log().matches("not reloaded").count();
        let said = lines();
        assert!(said > 0 && node.log().contains(&place), "{}", node.log());
        node.signal(Signal::SIGHUP);
        let told = wait_until("the refusal", || (lines() > said).then_some(()));
        assert!(told.is_some(), "{}", node.log());
        load.flows_on(1000);
    });
    assert_eq!((outcome.sent - outcome.arrived, outcome.again), (0, 0));
    assert_eq!(epoch(node), before, "the generation is what it was");
    assert_eq!(lab.ip(1, "route show"), routes);
    replace(path, first);
    let told = wait_until("the file is right", || {
        source_is(node, "synced").then_some(())
    });
    assert!(told.is_some());
}

#[test]
fn a_port_in_use_fails_the_reload_is_shown_and_is_received_once_it_is_free() {
    let Some(lab) = Lab::new() else { return };
    let workers = "[worker]\ncount = 2\n";
    let node = lab.start(1, "vxlan", Underlay::V4, workers);
    let _peer = lab.start(2, "vxlan", Underlay::V4, "");
    let there = lab.within(1, || UdpSocket::bind("192.0.2.1:5555").unwrap());
    let path = lab.directory().join("1.toml");
    let more = "[fou]\nport = 5555\n[geneve]\nport = 6081\n";
    replace(&path, &(fs::read_to_string(&path).unwrap() + more));
    let socket = node.socket().display().to_string();
    // The second time nothing differs, and still it is not received.
    for _ in 0..2 {
        let output = tun_node(&["reload", "--socket", &socket]);
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{output:?}");
        assert!(
            why.contains("UDP port 5555 of 192.0.2.1 is in use"),
            "{why}"
        );
    }
    let receives = |what: &str| {
        let status = node.status().unwrap();
        let is_received = status.receives.iter().any(|received| received == what);
        let mut alarms = status.alarms.iter();
        (
            is_received,
            alarms.any(|alarm| alarm.contains("UDP port 5555")),
        )
    };
    assert_eq!(receives("fou/gue 5555"), (false, true));
    // What nobody else has is received at once.
    let ports = lab.exec(1, &["ss", "-Hlun"]).stdout;
    let ports = String::from_utf8(ports).unwrap();
    assert!(ports.contains("192.0.2.1:6081"), "{ports}");
    assert!(ports.contains("[2001:db8:99::1]:5555"), "{ports}");
    lab.ping(1, "10.244.2.1", 3, 56);

    drop(there);
    let received = wait_until("the port that is free", || {
        (receives("fou/gue 5555") == (true, false)).then_some(())
    });
    assert!(received.is_some(), "{}", node.log());
    let output = tun_node(&["reload", "--socket", &socket]);
    assert!(output.status.success(), "{output:?}");
    node.stop();
}

#[test]
fn a_peer_that_a_reload_reaches_by_ip_in_ip_is_probed_and_up() {
    let Some(lab) = Lab::new() else { return };
    let nodes = [1, 2].map(|node| lab.start(node, "vxlan", Underlay::V4, ""));
    for (node, number) in nodes.iter().zip(1_u8..) {
        let path = lab.directory().join(format!("{number}.toml"));
        let text = fs::read_to_string(&path).unwrap();
        let text = text.replace("\"vxlan\"", "\"ipip\"");
        replace(&path, &text.replace("vtep-mac = \"auto\"", ""));
        let answer = node.ask(&Request::Reload { dry_run: false });
        assert!(matches!(answer, Some(Response::Reload(_))), "{answer:?}");
    }
    for node in &nodes {
        let up = wait_until("the peer is up", || {
            let Some(Response::Peers(peers)) = node.ask(&Request::Peers) else {
                return None;
            };
            let path = peers.first()?.path.as_ref()?;
            let way = path.ways.first()?;
            let is_answered = way.state == "up" && way.answered_by == "peer";
            (way.encapsulation == "ipip" && is_answered).then_some(())
        });
        assert!(up.is_some(), "{}", node.log());
    }
    for node in nodes {
        node.stop();
    }
}
