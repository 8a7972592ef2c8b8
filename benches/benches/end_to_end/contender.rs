//! What carries the packets: each contender starts its two ends and says at which addresses they
//! reach each other.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::load::Measure;
use crate::peer::Peer;
use crate::topology::{End, Net, Running, Wire};

/// One way from A to B.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Contender {
    /// The veth itself.
    None,
    /// The kernel's VXLAN device as flannel sets it up.
    Kernel,
    /// Warren, with an encapsulation and options for the node.
    Warren {
        encapsulation: String,
        options: Vec<String>,
    },
    /// The least that a process can do: see [`forwarder`](crate::forwarder).
    Forwarder,
    /// Another user-space tunnel.
    Peer(Peer),
}

const ENCAPSULATIONS: [&str; 5] = ["vxlan", "fou", "gue", "geneve", "ipip"];

impl Contender {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        match word {
            "none" => Some(Self::None),
            "kernel" => Some(Self::Kernel),
            "forwarder" => Some(Self::Forwarder),
            "warren" => Some(Self::Warren {
                encapsulation: "vxlan".into(),
                options: Vec::new(),
            }),
            _ => {
                if let Some(peer) = Peer::ALL.into_iter().find(|peer| peer.word() == word) {
                    return Some(Self::Peer(peer));
                }
                let rest = word.strip_prefix("warren-")?;
                let mut options: Vec<String> = rest.split('+').map(str::to_owned).collect();
                let first = options.first().map(String::as_str);
                let encapsulation = ENCAPSULATIONS.into_iter().find(|one| Some(*one) == first);
                if encapsulation.is_some() {
                    options.remove(0);
                }
                Some(Self::Warren {
                    encapsulation: encapsulation.unwrap_or("vxlan").into(),
                    options,
                })
            }
        }
    }

    /// All that a run without a choice measures.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::None, Self::Kernel];
        all.extend(
            [
                "warren",
                "warren-pin=true",
                "warren-together",
                "warren-together+pin=true",
                "warren-apart",
                "warren-apart+pin=true",
                "warren-busy-poll-us=1000",
                "warren-flow-offload=true",
                "warren-packet-ring=true",
                "warren-fou",
                "warren-gue",
                "warren-geneve",
                "warren-ipip",
                "warren-ipip+ipip-offload=true",
                "forwarder",
            ]
            .iter()
            .filter_map(|word| Self::parse(word)),
        );
        all.extend(Peer::ALL.map(Self::Peer));
        all
    }

    /// The kernel's, and Warren without each thing that it can do without. The plain one has one
    /// worker, which is one queue of the device.
    pub(crate) fn fallbacks() -> Vec<Self> {
        [
            "kernel",
            "warren",
            "warren-no-gso",
            "warren-no-gro",
            "warren-no-uso",
            "warren-no-vnet",
            "warren-no-gso+no-gro+no-uso+no-vnet",
            "warren-count=2",
        ]
        .iter()
        .filter_map(|word| Self::parse(word))
        .collect()
    }

    /// What is missing on this machine to run it.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        match self {
            Self::Peer(peer) => peer.missing(),
            Self::None | Self::Kernel | Self::Warren { .. } | Self::Forwarder => None,
        }
    }

    /// Whether a run without a choice of contenders has it on such a wire. Left to itself a node has
    /// its directions together where trains cross the veth whole, on one CPU while they carry bulk,
    /// and apart where they are cut, on CPUs of their own while they are busy; with the words for it
    /// the other ways are beside that, and nothing is measured twice.
    pub(crate) fn is_usual_on(&self, wire: Wire) -> bool {
        let Self::Warren { options, .. } = self else {
            return true;
        };
        let has = |word: &str| options.iter().any(|one| one == word);
        match wire {
            Wire::Plain => !(has("together") && has("pin=true")),
            Wire::Wire => !(has("apart") && has("pin=true")),
        }
    }

    /// Whether a run without a choice of measures takes all of them, at their full length; of the
    /// others it takes what they are there to be compared in.
    pub(crate) fn is_main(&self) -> bool {
        match self {
            Self::None | Self::Kernel => true,
            Self::Warren {
                encapsulation,
                options,
            } => encapsulation == "vxlan" && options.is_empty(),
            Self::Forwarder | Self::Peer(_) => false,
        }
    }

    /// The measures of a run without a choice.
    pub(crate) fn usual_measures(&self) -> &'static [Measure] {
        match self {
            Self::None | Self::Kernel => &Measure::ALL[..7],
            Self::Warren { .. } if self.is_main() => &Measure::ALL,
            // Which threads there are, and where, decides what streams get on two CPUs.
            Self::Warren {
                encapsulation,
                options,
            } if encapsulation == "vxlan"
                && options
                    .iter()
                    .all(|one| matches!(one.as_str(), "pin=true" | "together" | "apart")) =>
            {
                &[Measure::Tcp1, Measure::Tcp4, Measure::Udp64]
            }
            Self::Warren { options, .. }
                if options.iter().any(|one| {
                    matches!(one.as_str(), "flow-offload=true" | "packet-ring=true")
                }) =>
            {
                &Measure::ALL[..7]
            }
            Self::Warren { options, .. }
                if options.iter().any(|one| one.starts_with("busy-poll-us")) =>
            {
                &[
                    Measure::Tcp1,
                    Measure::Udp64,
                    Measure::RoundTrip,
                    Measure::Loaded,
                ]
            }
            Self::Warren { .. } => &[Measure::Tcp1, Measure::Udp64],
            Self::Forwarder => &[Measure::RoundTrip],
            Self::Peer(_) => &[
                Measure::Tcp1,
                Measure::Udp64,
                Measure::RoundTrip,
                Measure::Loaded,
            ],
        }
    }

    /// Starts both ends and waits until a ping crosses.
    pub(crate) fn start(&self, net: &Net, mtu: u16) -> Result<Tunnel, String> {
        let mut tunnel = Tunnel {
            addresses: ["10.99.1.1", "10.99.2.1"].map(str::to_owned),
            programs: Vec::new(),
            folder: Folder::make()?,
        };
        match self {
            Self::None => tunnel.addresses = End::BOTH.map(|end| net.underlay(end)),
            Self::Kernel => kernel(net, mtu)?,
            Self::Warren {
                encapsulation,
                options,
            } => warren(net, mtu, encapsulation, options, &mut tunnel)?,
            Self::Forwarder => forwarder(net, mtu, &mut tunnel)?,
            Self::Peer(peer) => peer.start(net, mtu, &mut tunnel)?,
        }
        let started = Instant::now();
        loop {
            if let Some(place) = tunnel.programs.iter_mut().position(Running::has_ended) {
                let why = tunnel.programs.swap_remove(place).finish();
                return Err(format!(
                    "it has ended by itself: {}",
                    why.unwrap_or_else(|e| e)
                ));
            }
            let pinged = net.run(
                End::A,
                &format!("ping -c 1 -W 1 {}", tunnel.address(End::B)),
            );
            match pinged {
                Ok(_) => return Ok(tunnel),
                Err(error) if started.elapsed() > Duration::from_secs(15) => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no tunnel"),
            Self::Kernel => f.write_str("kernel vxlan"),
            Self::Warren {
                encapsulation,
                options,
            } if options.is_empty() => write!(f, "warren {encapsulation}"),
            Self::Warren {
                encapsulation,
                options,
            } if encapsulation == "vxlan" => write!(f, "warren {}", options.join("+")),
            Self::Warren {
                encapsulation,
                options,
            } => write!(f, "warren {encapsulation} {}", options.join("+")),
            Self::Forwarder => f.write_str("bare forwarder"),
            Self::Peer(peer) => f.write_str(peer.name()),
        }
    }
}

/// A running contender.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) addresses: [String; 2],
    pub(crate) programs: Vec<Running>,
    pub(crate) folder: Folder,
}

impl Tunnel {
    /// The address of an end inside the tunnel.
    pub(crate) fn address(&self, end: End) -> &str {
        match end {
            End::A => &self.addresses[0],
            End::B => &self.addresses[1],
        }
    }

    /// CPU seconds that the contender's own processes have used.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.programs
            .iter()
            .filter_map(|program| process_cpu_seconds(program.id()))
            .sum()
    }
}

impl Tunnel {
    /// The largest resident memory of its processes, MiB.
    pub(crate) fn resident_mib(&self) -> f64 {
        let of = |program: &Running| resident_kib(program.id()).unwrap_or_default();
        self.programs.iter().map(of).max().unwrap_or_default() as f64 / 1024.0
    }

    /// The processes: one for each end, A's first.
    pub(crate) fn processes(&self) -> impl Iterator<Item = u32> {
        self.programs.iter().map(Running::id)
    }

    /// Where Warren's node of an end is asked.
    pub(crate) fn control_socket(&self, end: End) -> PathBuf {
        self.folder.0.join(format!("n{}.sock", end.number()))
    }
}

/// Resident memory of a process, KiB.
pub(crate) fn resident_kib(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn process_cpu_seconds(id: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / 100.0)
}

fn kernel(net: &Net, mtu: u16) -> Result<(), String> {
    for end in End::BOTH {
        let (n, other) = (end.number(), end.other().number());
        let commands = [
            format!(
                "ip link add f0 address 02:00:00:00:01:0{n} type vxlan id 1 dstport 8472 local {} dev u0 nolearning",
                net.underlay(end)
            ),
            format!("ip addr add 10.99.{n}.0/32 dev f0"),
            format!("ip link set f0 mtu {} up", mtu - 50),
            format!("ip addr add 10.99.{n}.1/32 dev lo"),
            format!(
                "ip neigh replace 10.99.{other}.0 lladdr 02:00:00:00:01:0{other} dev f0 nud permanent"
            ),
            format!(
                "bridge fdb replace 02:00:00:00:01:0{other} dev f0 dst {} self permanent",
                net.underlay(end.other())
            ),
            format!(
                "ip route replace 10.99.{other}.0/24 via 10.99.{other}.0 dev f0 onlink src 10.99.{n}.1"
            ),
        ];
        for command in commands {
            net.run(end, &command)?;
        }
    }
    Ok(())
}

fn warren(
    net: &Net,
    mtu: u16,
    encapsulation: &str,
    options: &[String],
    tunnel: &mut Tunnel,
) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    for end in End::BOTH {
        let (n, other) = (end.number(), end.other().number());
        let mac = if matches!(encapsulation, "vxlan" | "geneve") {
            "vtep-mac = \"auto\"\n"
        } else {
            ""
        };
        let worker: String = options
            .iter()
            .map(|option| worker_option(option))
            .collect::<Result<_, _>>()?;
        let config = format!(
            "[node]\nname = \"n{n}\"\nunderlay = [\"{}\"]\nprefixes = [\"10.99.{n}.0/24\"]\n\
             [device]\naddresses = [\"10.99.{n}.1/24\"]\nunderlay-mtu = {mtu}\n\
             [control]\nsocket = \"{}/n{n}.sock\"\n\
             [worker]\n{worker}\
             [[peers]]\nname = \"n{other}\"\naddress = \"{}\"\nencap = \"{encapsulation}\"\n{mac}prefixes = [\"10.99.{other}.0/24\"]\n",
            net.underlay(end),
            tunnel.folder.0.display(),
            net.underlay(end.other()),
        );
        let path = tunnel.folder.0.join(format!("n{n}.toml"));
        std::fs::write(&path, config).map_err(|error| error.to_string())?;
        let running = net.spawn(
            end,
            &own.display().to_string(),
            &["node", &path.display().to_string()],
        )?;
        tunnel.programs.push(running);
    }
    Ok(())
}

fn forwarder(net: &Net, mtu: u16, tunnel: &mut Tunnel) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    for end in End::BOTH {
        let address = format!("10.99.{}.1/16", end.number());
        let (local, remote) = (net.underlay(end), net.underlay(end.other()));
        let mtu = (mtu - 28).to_string();
        let running = net.spawn(
            end,
            &own.display().to_string(),
            &["forward", &address, &mtu, &local, &remote],
        )?;
        tunnel.programs.push(running);
    }
    Ok(())
}

fn worker_option(option: &str) -> Result<String, String> {
    Ok(match option {
        "no-gso" => "gso = false\n".into(),
        "no-gro" => "gro = false\n".into(),
        "no-uso" => "uso = false\n".into(),
        "no-vnet" => "vnet-header = false\n".into(),
        "together" | "apart" => format!("directions = \"{option}\"\n"),
        "spin" => "busy-poll-us = 50\n".into(),
        other => match other.split_once('=') {
            Some((key, value)) => format!("{key} = {value}\n"),
            None => return Err(format!("{other} is no option of a worker")),
        },
    })
}

/// Runs a node until it is asked to end: what `tun-node run` does, in this executable.
pub(crate) fn run_node(config: &str) -> Result<(), String> {
    let path = PathBuf::from(config);
    let loaded = tun_node::config::Loaded::read(&path).map_err(|error| error.to_string())?;
    let options = tun_node::node::RunOptions {
        loaded,
        path,
        rootless: false,
        command: Vec::new(),
        socket: None,
    };
    match tun_node::node::run(options) {
        Ok(0) => Ok(()),
        Ok(code) => Err(format!("the node ended with code {code}")),
        Err(error) => Err(format!("{error}: {:?}", std::error::Error::source(&error))),
    }
}

/// A folder that is removed when dropped.
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    fn make() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("warren-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
