//! The user-space tunnels of others that Debian packages, without a cipher where they can do without,
//! with their lightest where they can not.
//!
//! Each is set up as its manual says, with its defaults but for what a fair comparison needs: large
//! socket buffers where there is an option, no cipher, packets that fit the underlay. None is needed
//! to build or test anything here; one that is not installed is left out and named.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::contender::Tunnel;
use crate::topology::{End, Net, shell};

/// One of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Peer {
    /// wireguard-go: always encrypts.
    WireguardGo,
    /// OpenVPN with a static key, no cipher, no authentication.
    OpenVpn,
    /// tinc 1.0, no cipher, no digest.
    Tinc,
    /// fastd with the method "null".
    Fastd,
    /// nebula: always encrypts, with AES here.
    Nebula,
}

impl Peer {
    pub(crate) const ALL: [Self; 5] = [
        Self::WireguardGo,
        Self::OpenVpn,
        Self::Tinc,
        Self::Fastd,
        Self::Nebula,
    ];

    /// Its word on the command line.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::WireguardGo => "wireguard-go",
            Self::OpenVpn => "openvpn",
            Self::Tinc => "tinc",
            Self::Fastd => "fastd",
            Self::Nebula => "nebula",
        }
    }

    /// Its name in the table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::WireguardGo => "wireguard-go (encrypts)",
            Self::OpenVpn => "openvpn, no cipher",
            Self::Tinc => "tinc, no cipher",
            Self::Fastd => "fastd, null",
            Self::Nebula => "nebula (encrypts)",
        }
    }

    /// The first of its programs that this machine does not have.
    pub(crate) fn missing(self) -> Option<&'static str> {
        let programs: &[&str] = match self {
            Self::WireguardGo => &["wireguard-go", "wg"],
            Self::OpenVpn => &["openvpn"],
            Self::Tinc => &["tincd"],
            Self::Fastd => &["fastd"],
            Self::Nebula => &["nebula", "nebula-cert"],
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let has = |program: &str| {
            std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
        };
        programs.iter().copied().find(|program| !has(program))
    }

    /// Starts both ends in the namespaces of `net`; they are not yet connected when this returns.
    pub(crate) fn start(self, net: &Net, mtu: u16, tunnel: &mut Tunnel) -> Result<(), String> {
        match self {
            Self::WireguardGo => wireguard_go(net, mtu, tunnel),
            Self::OpenVpn => openvpn(net, mtu, tunnel),
            Self::Tinc => tinc(net, mtu, tunnel),
            Self::Fastd => fastd(net, mtu, tunnel),
            Self::Nebula => nebula(net, mtu, tunnel),
        }
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
    // From 2.7 on it has to be told that no cipher is meant; 2.6 does not know that option.
    const CONSENT: &str = "--allow-deprecated-insecure-static-crypto";
    let help = Command::new("openvpn").arg("--help").output();
    let wants_consent =
        help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains(CONSENT));
    let (key, tun_mtu) = (key.display().to_string(), (mtu - 60).to_string());
    for end in End::BOTH {
        let (mine, theirs) = (net.underlay(end), net.underlay(end.other()));
        let (own, peer) = (
            tunnel.address(end).to_owned(),
            tunnel.address(end.other()).to_owned(),
        );
        let mut arguments = vec![
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
            "--tun-mtu",
            &tun_mtu,
            "--mssfix",
            "0",
            "--sndbuf",
            "4194304",
            "--rcvbuf",
            "4194304",
            "--txqueuelen",
            "1000",
        ];
        if wants_consent {
            arguments.push(CONSENT);
        }
        tunnel.programs.push(net.spawn(end, "openvpn", &arguments)?);
    }
    Ok(())
}

fn tinc(net: &Net, mtu: u16, tunnel: &mut Tunnel) -> Result<(), String> {
    // Debian's build takes no frames beyond 1518 octets.
    let mtu = mtu.min(1500);
    let folder = tunnel.folder.0.clone();
    let home = |end: End| folder.join(format!("tinc{}", end.number()));
    for end in End::BOTH {
        let (n, other) = (end.number(), end.other().number());
        let hosts = home(end).join("hosts");
        std::fs::create_dir_all(&hosts).map_err(|error| error.to_string())?;
        let connect = if n == 1 {
            format!("ConnectTo = n{other}\n")
        } else {
            String::new()
        };
        write(
            &home(end).join("tinc.conf"),
            &format!(
                "Name = n{n}\nInterface = tinc0\nMode = router\nAddressFamily = ipv4\n\
                 UDPRcvBuf = 4194304\nUDPSndBuf = 4194304\n{connect}"
            ),
        )?;
        write(
            &hosts.join(format!("n{n}")),
            &format!(
                "Address = {}\nSubnet = 10.99.{n}.0/24\nCipher = none\nDigest = none\n\
                 MACLength = 0\nPMTU = {}\nClampMSS = no\n",
                net.underlay(end),
                mtu - 36
            ),
        )?;
        shell(&format!("tincd -c {} -K2048", home(end).display()))?;
    }
    for end in End::BOTH {
        let name = format!("n{}", end.number());
        let from = home(end).join("hosts").join(&name);
        std::fs::copy(from, home(end.other()).join("hosts").join(&name))
            .map_err(|error| error.to_string())?;
    }
    for end in End::BOTH {
        let pid = folder.join(format!("tinc{}.pid", end.number()));
        let (home, pid) = (home(end).display().to_string(), pid.display().to_string());
        let arguments = ["-D", "-c", &home, "--pidfile", &pid];
        tunnel.programs.push(net.spawn(end, "tincd", &arguments)?);
    }
    addresses(net, "tinc0", mtu - 50)
}

fn fastd(net: &Net, mtu: u16, tunnel: &mut Tunnel) -> Result<(), String> {
    let mut keys = Vec::new();
    for _ in End::BOTH {
        let output = shell("fastd --generate-key")?;
        let of = |word: &str| {
            let line = output.lines().find_map(|line| line.strip_prefix(word));
            line.map(|key| key.trim().to_owned())
        };
        keys.push(
            of("Secret:")
                .zip(of("Public:"))
                .ok_or("fastd gave no key")?,
        );
    }
    let [own, other] = keys.as_slice() else {
        return Err("two ends, two keys".into());
    };
    for (end, secret, public) in [(End::A, &own.0, &other.1), (End::B, &other.0, &own.1)] {
        let path = tunnel.folder.0.join(format!("fastd{}", end.number()));
        let text = format!(
            "log level warn;\nmethod \"null\";\nmode tun;\ninterface \"fastd0\";\nmtu {};\n\
             bind {}:10000;\nsecret \"{secret}\";\n\
             peer \"other\" {{ key \"{public}\"; remote {}:10000; }}\n",
            mtu - 60,
            net.underlay(end),
            net.underlay(end.other())
        );
        write(&path, &text)?;
        let arguments = ["--config", &path.display().to_string()];
        tunnel.programs.push(net.spawn(end, "fastd", &arguments)?);
    }
    addresses(net, "fastd0", mtu - 60)
}

fn nebula(net: &Net, mtu: u16, tunnel: &mut Tunnel) -> Result<(), String> {
    let folder = tunnel.folder.0.display().to_string();
    shell(&format!(
        "nebula-cert ca -name bench -out-crt {folder}/ca.crt -out-key {folder}/ca.key"
    ))?;
    for end in End::BOTH {
        let (n, other) = (end.number(), end.other().number());
        shell(&format!(
            "nebula-cert sign -name n{n} -ip 10.99.{n}.1/16 -ca-crt {folder}/ca.crt \
             -ca-key {folder}/ca.key -out-crt {folder}/n{n}.crt -out-key {folder}/n{n}.key"
        ))?;
        let mut text = String::new();
        let _ = write!(
            text,
            "pki: {{ca: {folder}/ca.crt, cert: {folder}/n{n}.crt, key: {folder}/n{n}.key}}\n\
             static_host_map: {{\"10.99.{other}.1\": [\"{}:4242\"]}}\n\
             lighthouse: {{am_lighthouse: false}}\n\
             listen: {{host: {}, port: 4242, read_buffer: 4194304, write_buffer: 4194304}}\n\
             cipher: aes\ntun: {{dev: nebula0, mtu: {}}}\nlogging: {{level: error}}\n\
             firewall: {{outbound: [{{port: any, proto: any, host: any}}], \
             inbound: [{{port: any, proto: any, host: any}}]}}\n",
            net.underlay(end.other()),
            net.underlay(end),
            mtu - 60
        );
        let path = tunnel.folder.0.join(format!("nebula{n}.yml"));
        write(&path, &text)?;
        let arguments = ["-config", &path.display().to_string()];
        tunnel.programs.push(net.spawn(end, "nebula", &arguments)?);
    }
    Ok(())
}

/// Gives the device `name`, as soon as it is there, its address at both ends, and sets it up.
fn addresses(net: &Net, name: &str, mtu: u16) -> Result<(), String> {
    for end in End::BOTH {
        let started = Instant::now();
        while let Err(error) = net.run(end, &format!("ip link set {name} mtu {mtu} up")) {
            if started.elapsed() > Duration::from_secs(5) {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        net.run(
            end,
            &format!("ip addr add 10.99.{}.1/16 dev {name}", end.number()),
        )?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
