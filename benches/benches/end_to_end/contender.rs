//! What carries the packets: each contender starts its two ends and says at which addresses they
//! reach each other.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::topology::{End, Net, Running, shell};

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
    /// wireguard-go.
    WireguardGo,
    /// OpenVPN with a static key and no cipher.
    OpenVpn,
}

const ENCAPSULATIONS: [&str; 5] = ["vxlan", "fou", "gue", "geneve", "ipip"];

impl Contender {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        match word {
            "none" => Some(Self::None),
            "kernel" => Some(Self::Kernel),
            "wireguard-go" => Some(Self::WireguardGo),
            "openvpn" => Some(Self::OpenVpn),
            "warren" => Some(Self::Warren {
                encapsulation: "vxlan".into(),
                options: Vec::new(),
            }),
            _ => {
                let rest = word.strip_prefix("warren-")?;
                if ENCAPSULATIONS.contains(&rest) {
                    return Some(Self::Warren {
                        encapsulation: rest.into(),
                        options: Vec::new(),
                    });
                }
                let options = rest.split('+').map(str::to_owned).collect();
                Some(Self::Warren {
                    encapsulation: "vxlan".into(),
                    options,
                })
            }
        }
    }

    /// Those that can run on this machine.
    pub(crate) fn installed() -> Vec<Self> {
        let mut all = vec![Self::None, Self::Kernel];
        all.extend(
            [
                "warren",
                "warren-fou",
                "warren-gue",
                "warren-geneve",
                "warren-ipip",
            ]
            .iter()
            .filter_map(|word| Self::parse(word)),
        );
        let present = |program: &str| shell(&format!("which {program}")).is_ok();
        if present("wireguard-go") && present("wg") {
            all.push(Self::WireguardGo);
        }
        if present("openvpn") {
            all.push(Self::OpenVpn);
        }
        all
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
            Self::WireguardGo => wireguard_go(net, mtu, &mut tunnel)?,
            Self::OpenVpn => openvpn(net, mtu, &mut tunnel)?,
        }
        let started = Instant::now();
        loop {
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
            Self::Warren { options, .. } => write!(f, "warren {}", options.join("+")),
            Self::WireguardGo => f.write_str("wireguard-go"),
            Self::OpenVpn => f.write_str("openvpn plain"),
        }
    }
}

/// A running contender.
#[derive(Debug)]
pub(crate) struct Tunnel {
    addresses: [String; 2],
    programs: Vec<Running>,
    folder: Folder,
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

fn worker_option(option: &str) -> Result<String, String> {
    Ok(match option {
        "no-gso" => "gso = false\n".into(),
        "no-gro" => "gro = false\n".into(),
        "no-uso" => "uso = false\n".into(),
        "no-vnet" => "vnet-header = false\n".into(),
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

fn wireguard_go(net: &Net, mtu: u16, tunnel: &mut Tunnel) -> Result<(), String> {
    let id = std::process::id();
    let folder = &tunnel.folder.0;
    let mut public = Vec::new();
    for end in End::BOTH {
        let key = shell("wg genkey")?;
        let path = folder.join(format!("key{}", end.number()));
        std::fs::write(&path, &key).map_err(|error| error.to_string())?;
        let output = Command::new("sh")
            .args(["-c", &format!("wg pubkey <{}", path.display())])
            .output()
            .map_err(|error| error.to_string())?;
        public.push(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    for end in End::BOTH {
        let (n, other) = (end.number(), end.other().number());
        let name = format!("wg{}{n}", id % 10_000);
        let program = net.spawn(end, "wireguard-go", &["-f", &name])?;
        tunnel.programs.push(program);
        let socket = PathBuf::from(format!("/var/run/wireguard/{name}.sock"));
        let started = Instant::now();
        while !socket.exists() && started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let key = folder.join(format!("key{n}"));
        let peer = public
            .get(usize::from(other) - 1)
            .cloned()
            .unwrap_or_default();
        net.run(end, &format!("wg set {name} listen-port 51820 private-key {} peer {peer} endpoint {}:51820 allowed-ips 10.99.{other}.0/24", key.display(), net.underlay(end.other())))?;
        net.run(end, &format!("ip addr add 10.99.{n}.1/24 dev {name}"))?;
        net.run(end, &format!("ip link set {name} mtu {} up", mtu - 80))?;
        net.run(end, &format!("ip route add 10.99.{other}.0/24 dev {name}"))?;
    }
    Ok(())
}

fn openvpn(net: &Net, mtu: u16, tunnel: &mut Tunnel) -> Result<(), String> {
    let key = tunnel.folder.0.join("static.key");
    shell(&format!("openvpn --genkey secret {}", key.display()))?;
    let (key, tun_mtu) = (key.display().to_string(), (mtu - 60).to_string());
    for end in End::BOTH {
        let (mine, theirs) = (net.underlay(end), net.underlay(end.other()));
        let (own, peer) = (
            tunnel.address(end).to_owned(),
            tunnel.address(end.other()).to_owned(),
        );
        let program = net.spawn(
            end,
            "openvpn",
            &[
                "--dev",
                "ovpn0",
                "--dev-type",
                "tun",
                "--proto",
                "udp",
                "--local",
                &mine,
                "--remote",
                &theirs,
                "--port",
                "1194",
                "--ifconfig",
                &own,
                &peer,
                "--secret",
                &key,
                "--cipher",
                "none",
                "--auth",
                "none",
                "--allow-deprecated-insecure-static-crypto",
                "--tun-mtu",
                &tun_mtu,
                "--fragment",
                "0",
                "--mssfix",
                "0",
                "--sndbuf",
                "4194304",
                "--rcvbuf",
                "4194304",
                "--txqueuelen",
                "1000",
            ],
        )?;
        tunnel.programs.push(program);
    }
    Ok(())
}

/// A folder that is removed when dropped.
#[derive(Debug)]
struct Folder(PathBuf);

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
