//! The demo as its users run it: an ordinary user, one command, nothing left behind.
//!
//! As root, the tests step down to an unprivileged user first. Each run has a directory of its
//! own for temporary files, which must be empty afterwards; every process of a run has that
//! directory's name in its arguments or environment, and none may be left.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "in a test, and in what a test calls, a panic is the message"
)]

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn two_and_five_nodes_answer_over_vxlan() {
    succeeds_over("vxlan");
}

#[test]
fn two_and_five_nodes_answer_over_fou() {
    succeeds_over("fou");
}

#[test]
fn two_and_five_nodes_answer_over_gue() {
    succeeds_over("gue");
}

fn succeeds_over(encap: &str) {
    if !nodes_can_be_made() {
        return;
    }
    for nodes in [2_usize, 5] {
        let run = Run::new();
        let count = nodes.to_string();
        let output = run.output(&[
            "--encap",
            encap,
            "--nodes",
            &count,
            "--megabytes",
            "5",
            "--json",
        ]);
        let report = one_json_object(&output);
        let told = format!("{encap}, {nodes} nodes: {report:#}");
        assert!(output.status.success(), "{told}");
        assert_eq!(report["ok"], true, "{told}");
        assert_eq!(report["failure"], Value::Null, "{told}");
        assert_eq!(report["encap"], encap, "{told}");

        let pairs = report["pairs"].as_array().unwrap();
        assert_eq!(pairs.len(), nodes * (nodes - 1) * 2, "{told}");
        for family in ["ipv4", "ipv6"] {
            let of_family = pairs.iter().filter(|pair| pair["family"] == family);
            assert_eq!(of_family.count(), nodes * (nodes - 1), "{told}");
        }
        for pair in pairs {
            assert_ne!(pair["from"], pair["to"], "{told}");
            assert_eq!(pair["sent"], 10, "{told}");
            assert_eq!(pair["received"], 10, "{told}");
            assert_eq!(pair["loss_percent"], 0.0, "{told}");
            assert_eq!(pair["duplicates"], 0, "{told}");
            let rtt = |name| pair["rtt_ms"][name].as_f64().unwrap();
            assert!(0.0 < rtt("min"), "{told}");
            assert!(
                rtt("min") <= rtt("median") && rtt("median") <= rtt("p99"),
                "{told}"
            );
        }

        let transfer = &report["transfer"];
        for octets in ["octets", "octets_sent", "octets_received"] {
            assert_eq!(transfer[octets], 5_000_000, "{told}");
        }
        assert_eq!(
            transfer["digest_sent"], transfer["digest_received"],
            "{told}"
        );
        assert!(
            transfer["gbit_per_second"].as_f64().unwrap() > 0.0,
            "{told}"
        );

        let reports = report["nodes"].as_array().unwrap();
        assert_eq!(reports.len(), nodes, "{told}");
        for node in reports {
            // 10 requests and 10 replies to and from each other node in two families.
            let least = 40 * (nodes as u64 - 1);
            for direction in ["encap", "decap"] {
                assert!(
                    node["packets"][encap][direction].as_u64().unwrap() >= least,
                    "{told}"
                );
            }
        }
        run.assert_nothing_left();
    }
}

#[test]
fn people_get_a_line_a_phase_a_table_and_a_last_sentence() {
    if !nodes_can_be_made() {
        return;
    }
    let run = Run::new();
    let output = run.output(&["--megabytes", "2"]);
    let (table, progress) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{table}{progress}");
    let phases: Vec<&str> = progress.lines().collect();
    assert_eq!(phases.len(), 3, "{progress}");
    assert!(
        phases[0].starts_with("starting 3 nodes: ready"),
        "{progress}"
    );
    assert!(phases[1].starts_with("pinging 6 pairs over IPv4 and IPv6: 120 of 120 answered"));
    assert!(phases[2].starts_with("moving 2 MB over TCP from node-1 to node-2: "));
    assert!(
        !progress.contains('\x1b') && !progress.contains('\r'),
        "{progress:?}"
    );
    for (from, to) in [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)] {
        let pair = format!("node-{from} -> node-{to} ");
        let row = table.lines().find(|line| line.starts_with(&pair));
        assert_eq!(row.unwrap().matches(" 0 % ").count(), 2, "{table}");
    }
    assert!(table.contains("2.0 MB in "), "{table}");
    assert!(table.contains("vxlan packets out"), "{table}");
    assert!(
        table.contains("every pair answered over IPv4 and IPv6 without loss"),
        "{table}"
    );
    run.assert_nothing_left();
}

#[test]
fn root_may_run_it_too() {
    if !geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    if !nodes_can_be_made() {
        return;
    }
    let run = Run::new();
    let output = run
        .prepared(Command::new(&run.program))
        .args(["demo", "--nodes", "2", "--megabytes", "1", "--json"])
        .output()
        .unwrap();
    let report = one_json_object(&output);
    assert_eq!(report["ok"], true, "{report:#}");
    run.assert_nothing_left();
}

#[test]
fn keep_says_how_to_get_in_and_ends_with_ctrl_c() {
    if !nodes_can_be_made() {
        return;
    }
    let run = Run::new();
    let mut demo = run.kept();
    let advice = demo.read_until("Stop all of them");
    let entries: Vec<&str> = advice
        .lines()
        .filter_map(|line| line.trim().split_once(": nsenter ")?.1.into())
        .collect();
    assert_eq!(entries.len(), 2, "{advice}");
    for (number, entry) in (1..).zip(entries) {
        let mut command = run.as_user("nsenter");
        command
            .args(entry.split(' '))
            .args(["cat", "/proc/net/if_inet6"]);
        let output = command.output().unwrap();
        let addresses = text(&output.stdout);
        let expected = format!("fd00001002440{number:03x}");
        assert!(
            addresses.contains(&expected),
            "{entry}: {addresses}{}",
            text(&output.stderr)
        );
    }
    let socket = run.find("node-1.sock");
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    demo.signal(Signal::SIGINT);
    assert_eq!(demo.wait(), Some(0));
    run.assert_nothing_left();
}

#[test]
fn nothing_is_left_when_the_demo_is_killed() {
    if !nodes_can_be_made() {
        return;
    }
    let run = Run::new();
    let mut demo = run.kept();
    demo.read_until("Stop all of them");
    assert!(run.processes().len() > 4, "{:?}", run.processes());
    demo.signal(Signal::SIGKILL);
    assert_eq!(demo.wait(), None);
    run.assert_nothing_left_within(Duration::from_secs(5));
}

#[test]
fn ctrl_c_while_it_works_ends_in_order_with_130() {
    if !nodes_can_be_made() {
        return;
    }
    let run = Run::new();
    let mut demo = run.spawned(&["--nodes", "2"]);
    let mut line = String::new();
    demo.errors.read_line(&mut line).unwrap();
    assert!(line.starts_with("starting 2 nodes: ready"), "{line}");
    demo.signal(Signal::SIGINT);
    assert_eq!(demo.wait(), Some(130));
    run.assert_nothing_left();
}

#[test]
fn a_node_that_dies_is_named() {
    if !nodes_can_be_made() {
        return;
    }
    let run = Run::new();
    let mut demo = run.kept();
    demo.read_until("Stop all of them");
    let victim = run
        .processes()
        .into_iter()
        .find(|(_, line)| line.contains(" run ") && line.contains("node-2.toml"));
    kill(Pid::from_raw(victim.unwrap().0), Signal::SIGKILL).unwrap();
    assert_eq!(demo.wait(), Some(2));
    let mut errors = String::new();
    demo.errors.read_to_string(&mut errors).unwrap();
    assert!(errors.contains("node-2 ended early: signal: 9"), "{errors}");
    run.assert_nothing_left();
}

#[test]
fn a_shell_runs_in_the_first_node_and_ends_the_demo() {
    if !nodes_can_be_made() {
        return;
    }
    let run = Run::new();
    let mut demo = run.spawned(&["--nodes", "2", "--megabytes", "1", "--shell"]);
    let mut input = demo.child.stdin.take().unwrap();
    input
        .write_all(b"echo in $TUN_NODE_DEMO; cat /proc/net/dev\n")
        .unwrap();
    drop(input);
    let output = demo.read_to_end();
    assert_eq!(demo.wait(), Some(0));
    assert!(output.contains("in node-1\n"), "{output}");
    assert!(output.contains("warren0:"), "{output}");
    run.assert_nothing_left();
}

#[test]
fn without_dev_net_tun_one_sentence_says_so() {
    let hide = "mount -t tmpfs none /dev/net";
    fails_with_one_sentence(hide, &["/dev/net/tun"]);
}

#[test]
fn without_user_namespaces_one_sentence_says_so() {
    let forbid = "echo 0 > /proc/sys/user/max_user_namespaces";
    fails_with_one_sentence(forbid, &["user namespaces", "max_user_namespaces"]);
}

/// Takes something away from the host with `how`, in namespaces where that is permitted, and
/// runs the demo there.
fn fails_with_one_sentence(how: &str, words: &[&str]) {
    if !nodes_can_be_made() {
        return;
    }
    for json in [false, true] {
        let run = Run::new();
        let program = run.program.display();
        let json_option = if json { "--json" } else { "" };
        let script = format!("{how} && exec {program} demo {json_option}");
        let output = run
            .as_user("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let sentence = text(&output.stderr);
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
        assert!(sentence.starts_with("tun-node demo: "), "{sentence}");
        for word in words {
            assert!(sentence.contains(word), "{sentence}");
        }
        if json {
            let report = one_json_object(&output);
            assert_eq!(report["ok"], false);
            let failure = report["failure"].as_str().unwrap();
            assert_eq!(sentence.trim_end(), format!("tun-node demo: {failure}"));
        } else {
            assert_eq!(text(&output.stdout), "");
        }
        run.assert_nothing_left();
    }
}

#[test]
fn nonsense_is_refused() {
    for arguments in [
        &["--nodes", "1"][..],
        &["--nodes", "17"],
        &["--encap", "ipip"],
        &["--megabytes", "0"],
        &["--keep", "--shell"],
        &["--json", "--keep"],
    ] {
        let run = Run::new();
        let output = run.output(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert_eq!(text(&output.stdout), "");
        run.assert_nothing_left();
    }
}

/// One run of the demo with its directory for temporary files.
struct Run {
    temporary: TempDir,
    /// Where every user can execute it.
    program: PathBuf,
    /// Of the program, where the checkout is root's alone.
    _copy: Option<TempDir>,
}

impl Run {
    fn new() -> Self {
        let temporary = tempfile::Builder::new()
            .prefix("demo-test-")
            .tempdir_in("/tmp")
            .unwrap();
        // Whoever the demo runs as may write there.
        fs::set_permissions(temporary.path(), Permissions::from_mode(0o777)).unwrap();
        let built = Path::new(env!("CARGO_BIN_EXE_tun-node"));
        let for_all =
            |at: &Path| fs::metadata(at).is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
        let mut run = Self {
            temporary,
            program: built.to_owned(),
            _copy: None,
        };
        if geteuid().is_root() && !built.ancestors().all(for_all) {
            let copy = tempfile::Builder::new()
                .prefix("tun-node-copy-")
                .tempdir_in("/tmp")
                .unwrap();
            fs::set_permissions(copy.path(), Permissions::from_mode(0o755)).unwrap();
            run.program = copy.path().join("tun-node");
            // By another process: a descriptor that writes it here would be inherited by what other
            // tests start, and the kernel starts no program that someone may write to.
            let copied = Command::new("cp").arg(built).arg(&run.program).status();
            assert!(copied.unwrap().success());
            run._copy = Some(copy);
        }
        run
    }

    /// `program` as an ordinary user.
    fn as_user(&self, program: &str) -> Command {
        if !geteuid().is_root() {
            return self.prepared(Command::new(program));
        }
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--",
            program,
        ]);
        self.prepared(command)
    }

    fn prepared(&self, mut command: Command) -> Command {
        command
            .env("TMPDIR", self.temporary.path())
            .env("SHELL", "/bin/sh")
            .env_remove("XDG_RUNTIME_DIR")
            .current_dir("/");
        command
    }

    fn demo(&self, arguments: &[&str]) -> Command {
        let mut command = self.as_user(self.program.to_str().unwrap());
        command.arg("demo").args(arguments);
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.demo(arguments).output().unwrap()
    }

    fn spawned(&self, arguments: &[&str]) -> Demo {
        let mut child = self
            .demo(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Demo {
            output: BufReader::new(child.stdout.take().unwrap()),
            errors: BufReader::new(child.stderr.take().unwrap()),
            child,
        }
    }

    /// A demo of two nodes that stay.
    fn kept(&self) -> Demo {
        self.spawned(&["--nodes", "2", "--megabytes", "1", "--keep"])
    }

    fn find(&self, name: &str) -> PathBuf {
        let demo = fs::read_dir(self.temporary.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        demo.path().join(name)
    }

    /// The processes of this run: number and arguments.
    fn processes(&self) -> Vec<(i32, String)> {
        let mark = self.temporary.path().to_str().unwrap();
        let read = |path: &Path, file| {
            let octets = fs::read(path.join(file)).unwrap_or_default();
            String::from_utf8_lossy(&octets).replace('\0', " ")
        };
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let pid = path.file_name()?.to_str()?.parse().ok()?;
                let line = read(&path, "cmdline");
                (line.contains(mark) || read(&path, "environ").contains(mark))
                    .then_some((pid, line))
            })
            .collect()
    }

    fn assert_nothing_left(&self) {
        self.assert_nothing_left_within(Duration::ZERO);
    }

    fn assert_nothing_left_within(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let processes = self.processes();
            let files: Vec<_> = fs::read_dir(self.temporary.path()).unwrap().collect();
            if processes.is_empty() && files.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left: {processes:?} {files:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A demo that runs.
struct Demo {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    errors: BufReader<std::process::ChildStderr>,
}

impl Demo {
    /// Its output up to and with the line that begins with `mark`.
    fn read_until(&mut self, mark: &str) -> String {
        let mut all = String::new();
        loop {
            let from = all.len();
            let length = self.output.read_line(&mut all).unwrap();
            if length == 0 {
                let mut errors = String::new();
                self.errors.read_to_string(&mut errors).unwrap();
                panic!("it ended: {all}{errors}");
            }
            if all[from..].starts_with(mark) {
                return all;
            }
        }
    }

    fn read_to_end(&mut self) -> String {
        let mut all = String::new();
        self.output.read_to_string(&mut all).unwrap();
        all
    }

    fn signal(&self, signal: Signal) {
        // setpriv executes the demo in its place: the number is the demo's.
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

/// Whether this host lets a user make what the demo needs; says so where it does not.
fn nodes_can_be_made() -> bool {
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        eprintln!("skipped: /dev/net/tun: {error}");
        return false;
    }
    let run = Run::new();
    let made = run
        .as_user("unshare")
        .args(["--user", "--net", "true"])
        .status();
    if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
        eprintln!("skipped: a user and network namespace cannot be made: {made:?}");
        return false;
    }
    true
}

fn one_json_object(output: &Output) -> Value {
    let stdout = text(&output.stdout);
    let value: Value = serde_json::from_str(&stdout)
        .unwrap_or_else(|error| panic!("{error}: {stdout}{}", text(&output.stderr)));
    assert!(value.is_object());
    value
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}
