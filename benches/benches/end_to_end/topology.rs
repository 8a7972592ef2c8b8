//! Two namespaces joined by a veth pair, gone when dropped.

use std::fmt;
use std::process::{Child, Command, Stdio};

/// What the veth pair is like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wire {
    /// As it is: packets of 64 KiB cross it by reference.
    Plain,
    /// Segmentation and checksums done before it, as a wire has it; joined again on receipt.
    Wire,
}

impl Wire {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        match word {
            "plain" => Some(Self::Plain),
            "wire" => Some(Self::Wire),
            _ => None,
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Wire => "wire",
        })
    }
}

/// The two ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    A,
    B,
}

impl End {
    pub(crate) const BOTH: [Self; 2] = [Self::A, Self::B];

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// 1 and 2, the last octet of its addresses.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }
}

/// The namespaces.
#[derive(Debug)]
pub(crate) struct Net {
    prefix: String,
}

impl Net {
    pub(crate) fn build(wire: Wire, mtu: u16) -> Result<Self, String> {
        let net = Self {
            prefix: format!("wb{}", std::process::id()),
        };
        for end in End::BOTH {
            let _ = Command::new("ip")
                .args(["netns", "del", &net.name(end)])
                .stderr(Stdio::null())
                .status();
            shell(&format!("ip netns add {}", net.name(end)))?;
        }
        let (a, b) = (net.name(End::A), net.name(End::B));
        shell(&format!(
            "ip link add u0 netns {a} mtu {mtu} type veth peer name u0 netns {b} mtu {mtu}"
        ))?;
        for end in End::BOTH {
            net.run(end, "ip link set lo up")?;
            net.run(end, &format!("ip addr add {}/24 dev u0", net.underlay(end)))?;
            net.run(end, "ip link set u0 up")?;
            if wire == Wire::Wire {
                net.run(end, "ethtool -K u0 tx off tso off gso off")?;
                net.run(end, "ethtool -K u0 gro on")?;
            }
        }
        Ok(net)
    }

    pub(crate) fn name(&self, end: End) -> String {
        format!("{}{}", self.prefix, if end == End::A { "a" } else { "b" })
    }

    pub(crate) fn underlay(&self, end: End) -> String {
        format!("192.0.2.{}", end.number())
    }

    /// Runs a command in the namespace of `end` to its end.
    pub(crate) fn run(&self, end: End, command: &str) -> Result<String, String> {
        shell(&format!("ip netns exec {} {command}", self.name(end)))
    }

    /// Starts a program in the namespace of `end`.
    pub(crate) fn spawn(
        &self,
        end: End,
        program: &str,
        arguments: &[&str],
    ) -> Result<Running, String> {
        let child = Command::new("ip")
            .args(["netns", "exec", &self.name(end), program])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        Ok(Running {
            child: Some(child),
            program: program.into(),
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for end in End::BOTH {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name(end)])
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// Removes what benches left that were killed: namespaces named after a process that is gone, and
/// the programs in them.
pub(crate) fn remove_orphans() {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for name in names.filter(|name| owner(name).is_some_and(|id| !lives(id))) {
        let inside = shell(&format!("ip netns pids {name}")).unwrap_or_default();
        for id in inside.split_whitespace() {
            let _ = shell(&format!("kill -KILL {id}"));
        }
        let _ = shell(&format!("ip netns del {name}"));
    }
}

/// The process that a namespace of a bench is named after.
fn owner(name: &str) -> Option<u32> {
    let id = name.strip_prefix("wb")?.strip_suffix(['a', 'b'])?;
    let is_number = id.bytes().all(|octet| octet.is_ascii_digit());
    id.parse().ok().filter(|_| is_number)
}

fn lives(process: u32) -> bool {
    std::path::Path::new(&format!("/proc/{process}")).exists()
}

/// A program that is ended when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Option<Child>,
    program: String,
}

impl Running {
    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// Waits for its end and gives what it printed.
    pub(crate) fn finish(mut self) -> Result<String, String> {
        let Some(child) = self.child.take() else {
            return Ok(String::new());
        };
        let output = child
            .wait_with_output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = [output.stdout, output.stderr].concat();
        Err(format!(
            "{}: {}",
            self.program,
            String::from_utf8_lossy(&said).trim()
        ))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = Command::new("kill")
                .args(["-TERM", &child.id().to_string()])
                .status();
            for _ in 0..100 {
                if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a command line without quoting.
pub(crate) fn shell(line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    let output = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}
