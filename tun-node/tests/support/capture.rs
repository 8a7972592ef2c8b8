//! Captures of the underlay, read by a dissector that is not ours.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::agent::{self, TRANSFER_PORT};
use super::netns::{Netns, succeed};

/// What has to be installed.
pub(crate) const PROGRAMS: &[&str] = &["dumpcap", "tshark"];

/// A running capture of the UDP datagrams on one interface.
#[derive(Debug)]
pub(crate) struct Capture {
    dumpcap: Child,
    file: PathBuf,
}

impl Capture {
    /// Starts; returns when the interface is being listened on.
    pub(crate) fn start(netns: &Netns, interface: &str, file: &Path) -> Self {
        let mut dumpcap = netns
            .command("dumpcap")
            .args(["-p", "-P", "-B", "64", "-f", "udp", "-i", interface, "-w"])
            .arg(file)
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter is installed");
        let mut stderr = BufReader::new(dumpcap.stderr.take().expect("it is piped"));
        let mut said = String::new();
        // It names the file once the interface is open and the filter is set.
        while !said.contains("File: ") {
            let read = stderr.read_line(&mut said).expect("text");
            assert!(read > 0, "dumpcap: {said}");
        }
        dumpcap.stderr = Some(stderr.into_inner());
        Self {
            dumpcap,
            file: file.to_owned(),
        }
    }

    /// Stops, with everything written out, and has it read. `from` and `to` are addresses on the
    /// two sides of the interface.
    pub(crate) fn stop(
        mut self,
        from: (&Netns, IpAddr),
        to: IpAddr,
        vxlan_port: u16,
    ) -> Vec<Dissected> {
        // What the kernel still holds when the capture is told to end is lost, so a last datagram
        // is sent, and waited for.
        agent::send_datagram(from.0, from.1, SocketAddr::new(to, DISCARD), MARKER);
        let began = Instant::now();
        while !self.has_marker() {
            assert!(began.elapsed() < PATIENCE, "the last datagram is not there");
            thread::sleep(Duration::from_millis(20));
        }
        let pid = i32::try_from(self.dumpcap.id()).expect("a process number");
        kill(Pid::from_raw(pid), Signal::SIGINT).expect("a child of ours");
        let mut said = String::new();
        if let Some(mut stderr) = self.dumpcap.stderr.take() {
            stderr.read_to_string(&mut said).expect("text");
        }
        self.dumpcap.wait().expect("a child of ours");
        // "Packets received/dropped on interface 'vb': 17000/0 (...)"
        assert!(said.contains("/0 ("), "the capture is incomplete: {said}");
        dissect(&self.file, vxlan_port)
    }

    fn has_marker(&self) -> bool {
        let octets = fs::read(&self.file).expect("a file of ours");
        let mut tail = octets.rchunks(1 << 16).next().unwrap_or_default();
        while let Some(at) = tail.iter().position(|octet| *octet == MARKER[0]) {
            if tail[at..].starts_with(MARKER) {
                return true;
            }
            tail = &tail[at + 1..];
        }
        false
    }
}

/// What the dissector says about one frame. Where headers nest, the outer one comes first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dissected {
    /// What it finds wrong: malformed packets, warnings, errors. Notes and chats (a connection
    /// opens) are left out.
    pub(crate) complaint: Option<String>,
    /// The VXLAN network.
    pub(crate) vni: Option<u32>,
    /// The outer UDP source port, and an inner one.
    pub(crate) udp_sources: Vec<u16>,
    /// Ethernet sources.
    pub(crate) macs_from: Vec<String>,
    /// Ethernet destinations.
    pub(crate) macs_to: Vec<String>,
    /// IPv4 and IPv6 sources: all of IPv4, then all of IPv6.
    pub(crate) addresses_from: Vec<String>,
    /// The type of an ICMP message.
    pub(crate) icmp: Option<u8>,
    /// The type of an ICMPv6 message.
    pub(crate) icmpv6: Option<u8>,
    /// Octets in a TCP segment.
    pub(crate) tcp_octets: Option<u32>,
}

fn dissect(file: &Path, vxlan_port: u16) -> Vec<Dissected> {
    let output = succeed(
        Command::new("tshark")
            .arg("-r")
            .arg(file)
            .args(["-d", &format!("udp.port=={vxlan_port},vxlan")])
            // What the transfers carry is no protocol, whatever their ports stand for elsewhere.
            .args(["-d", &format!("tcp.port=={TRANSFER_PORT},data")])
            .args(["-o", "ip.check_checksum:TRUE"])
            .args(["-o", "udp.check_checksum:TRUE"])
            .args(["-o", "tcp.check_checksum:TRUE"])
            .args(["-o", "tcp.analyze_sequence_numbers:FALSE"])
            .args(["-T", "fields", "-E", "separator=|"])
            .args(FIELDS.iter().flat_map(|field| ["-e", field])),
    );
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(read_line).collect()
}

fn read_line(line: &str) -> Dissected {
    let fields: Vec<&str> = line.split('|').collect();
    assert_eq!(fields.len(), FIELDS.len(), "{line}");
    let list = |at: usize| -> Vec<String> {
        let values = fields[at].split(',').filter(|value| !value.is_empty());
        values.map(str::to_owned).collect()
    };
    let number = |at: usize| list(at).first().map(|value| parse(value));
    let groups = list(12);
    let severe = list(1)
        .iter()
        .zip(&groups)
        .any(|(severity, group)| parse(severity) >= WARNING && parse(group) != SEQUENCE);
    let malformed = !fields[0].is_empty();
    Dissected {
        complaint: (severe || malformed).then(|| line.to_owned()),
        vni: number(3),
        udp_sources: list(4).iter().map(|port| to_u16(parse(port))).collect(),
        macs_from: list(5),
        macs_to: list(6),
        addresses_from: [list(7), list(8)].concat(),
        icmp: number(9).and_then(|kind| kind.try_into().ok()),
        icmpv6: number(10).and_then(|kind| kind.try_into().ok()),
        tcp_octets: number(11),
    }
}

fn parse(text: &str) -> u32 {
    text.parse()
        .unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn to_u16(number: u32) -> u16 {
    number.try_into().expect("a port")
}

const FIELDS: &[&str] = &[
    "_ws.malformed",
    "_ws.expert.severity",
    "_ws.expert.message",
    "vxlan.vni",
    "udp.srcport",
    "eth.src",
    "eth.dst",
    "ip.src",
    "ipv6.src",
    "icmp.type",
    "icmpv6.type",
    "tcp.len",
    "_ws.expert.group",
];

/// The least severity of Wireshark's that is a complaint.
const WARNING: u32 = 0x0060_0000;

/// The group of remarks about the order of events (a segment came twice, a connection was reset):
/// they are about the ends, not about octets.
const SEQUENCE: u32 = 0x0200_0000;

const MARKER: &[u8] = b"#the capture ends here#";
const DISCARD: u16 = 9;
const PATIENCE: Duration = Duration::from_secs(10);
