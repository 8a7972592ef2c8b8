//! Network namespaces that end with the test.
//!
//! A namespace is held by a child process that waits for the end of its standard input, so it ends
//! when the test does, whatever way that is: there are no names to clean up. An ordinary user gets
//! one user namespace around all of them, where that is permitted.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// The namespaces of one test.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// The process whose user namespace the others share; `None` for root, who needs none.
    user: Option<Netns>,
}

impl Sandbox {
    /// Opens a sandbox, or says why there can be none and returns `None`.
    ///
    /// `programs` are what the test will run in it.
    pub(crate) fn open(programs: &[&str]) -> Option<Self> {
        for program in programs.iter().chain(&["ip", "nsenter", "unshare"]) {
            if !in_path(program) {
                eprintln!("skipped: {program} is not installed");
                return None;
            }
        }
        if !Path::new("/dev/net/tun").exists() {
            eprintln!("skipped: there is no /dev/net/tun");
            return None;
        }
        let root = nix::unistd::geteuid().is_root();
        let flags: &[&str] = if root {
            &["--net"]
        } else {
            &["--user", "--map-root-user", "--net"]
        };
        match Netns::start(Command::new("unshare").args(flags), !root) {
            Ok(_) if root => Some(Self { user: None }),
            Ok(first) => Some(Self { user: Some(first) }),
            Err(error) => {
                eprintln!("skipped: no network namespace without privilege ({error})");
                None
            }
        }
    }

    /// A fresh network with its loopback device up.
    pub(crate) fn netns(&self) -> Netns {
        let mut command = match &self.user {
            None => Command::new("unshare"),
            Some(user) => user.command("unshare"),
        };
        let netns = Netns::start(command.arg("--net"), self.user.is_some())
            .expect("a further namespace where one was made already");
        netns.ip(&["link set lo up"]);
        netns
    }
}

/// One network namespace.
#[derive(Debug)]
pub(crate) struct Netns {
    holder: Child,
    in_user_namespace: bool,
}

impl Netns {
    fn start(unshare: &mut Command, in_user_namespace: bool) -> Result<Self, String> {
        let mut holder = unshare
            .args(["sh", "-c", "echo held; exec cat >/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut line = String::new();
        let stdout = holder.stdout.take().expect("it is piped");
        // The line comes when the namespace is there; the end of the output when it is not.
        if BufReader::new(stdout).read_line(&mut line).is_ok() && line == "held\n" {
            return Ok(Self {
                holder,
                in_user_namespace,
            });
        }
        let output = holder
            .wait_with_output()
            .map_err(|error| error.to_string())?;
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// A command that is to run inside.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--net").arg(format!("--target={}", self.pid()));
        if self.in_user_namespace {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg("--").arg(program);
        command
    }

    /// Runs these lines of `ip -batch` inside.
    pub(crate) fn ip(&self, lines: &[impl AsRef<str>]) {
        self.batch("ip", lines);
    }

    /// Runs these lines of `bridge -batch` inside.
    pub(crate) fn bridge(&self, lines: &[impl AsRef<str>]) {
        self.batch("bridge", lines);
    }

    /// What a command prints that must succeed; arguments are split at spaces.
    pub(crate) fn read(&self, program: &str, arguments: &str) -> String {
        let mut command = self.command(program);
        let output = succeed(command.args(arguments.split_whitespace()));
        String::from_utf8(output.stdout).expect("text")
    }

    /// The process that holds the namespace, for `ip link ... netns PID`.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    fn batch(&self, program: &str, lines: &[impl AsRef<str>]) {
        let mut child = self
            .command(program)
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter is installed");
        let mut stdin = child.stdin.take().expect("it is piped");
        for line in lines {
            writeln!(stdin, "{}", line.as_ref()).expect("it reads its input");
        }
        drop(stdin);
        let output = child.wait_with_output().expect("a child of ours");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {error}");
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Its input ends; `cat` follows.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Joins two namespaces by a pair of interfaces.
pub(crate) fn veth(a: (&Netns, &str), b: (&Netns, &str)) {
    let add = format!(
        "link add {} type veth peer name {} netns {}",
        a.1,
        b.1,
        b.0.pid()
    );
    a.0.ip(&[add]);
    for (netns, name) in [a, b] {
        netns.ip(&[format!("link set {name} up")]);
    }
}

/// Runs a command to its end, which must be a good one.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
