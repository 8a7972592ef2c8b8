//! Load and its measurement: TCP streams, paced small datagrams, round trips.
//!
//! The ends are this executable again, one in each namespace: a server in B, a client in A. A child
//! prints one line of figures at its end.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use tun_node::udp::{SendRing, SocketCounters, Transmit, Udp, UdpConfig};

use crate::contender::Tunnel;
use crate::iperf;
use crate::topology::{End, Net, Running, Wire};

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Measure {
    Tcp1,
    Tcp4,
    Tcp1Reverse,
    Udp64,
    Udp1400,
    RoundTrip,
    Loaded,
    Idle,
}

impl Measure {
    pub(crate) const ALL: [Self; 8] = [
        Self::Tcp1,
        Self::Tcp4,
        Self::Tcp1Reverse,
        Self::Udp64,
        Self::Udp1400,
        Self::RoundTrip,
        Self::Loaded,
        Self::Idle,
    ];

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|measure| measure.word() == word)
    }

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp4 => "tcp4",
            Self::Tcp1Reverse => "tcp1r",
            Self::Udp64 => "udp64",
            Self::Udp1400 => "udp1400",
            Self::RoundTrip => "rtt",
            Self::Loaded => "loaded",
            Self::Idle => "idle",
        }
    }

    /// The columns of the table: a head, and the figures below it; the first of them is set against
    /// the kernel's.
    pub(crate) const fn columns(self) -> &'static [(&'static str, &'static [usize])] {
        match self {
            Self::Tcp1 => &[("TCP1 Gb/s", &[0]), ("CPU s/GB", &[1])],
            Self::Tcp4 => &[("TCP4 Gb/s", &[0])],
            Self::Tcp1Reverse => &[("TCP1 back Gb/s", &[0])],
            Self::Udp64 => &[("64 B kpps <0.1 %", &[0])],
            Self::Udp1400 => &[("1400 B kpps <0.1 %", &[0])],
            Self::RoundTrip => &[("RTT p50 / p99 us", &[0, 1])],
            Self::Loaded => &[("loaded p50 / p99 us", &[0, 1])],
            Self::Idle => &[("idle CPU %", &[0]), ("resident MiB", &[1])],
        }
    }

    /// Names of the figures of one measurement.
    pub(crate) const fn figures(self) -> &'static [&'static str] {
        match self {
            Self::Tcp1 => &["TCP1 Gb/s", "CPU s/GB", "tunnel s/GB"],
            Self::Tcp4 => &["TCP4 Gb/s", "CPU s/GB", "tunnel s/GB"],
            Self::Tcp1Reverse => &["TCP1 back Gb/s", "CPU s/GB", "tunnel s/GB"],
            Self::Udp64 => &["64 B kpps <0.1 %"],
            Self::Udp1400 => &["1400 B kpps <0.1 %"],
            Self::RoundTrip => &["RTT p50 us", "p99 us"],
            Self::Loaded => &["loaded p50 us", "p99 us"],
            Self::Idle => &["idle CPU %", "resident MiB"],
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One measurement.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) wire: Wire,
    pub(crate) round: usize,
    pub(crate) contender: String,
    pub(crate) measure: Measure,
    pub(crate) value: Vec<f64>,
    /// What a cache line took from one CPU to another before the contender began, ns.
    pub(crate) line: Option<f64>,
}

const PORT: u16 = 7000;

/// After the last datagram of a short load, so that the sink knows that it was the last one.
const PATIENCE: Duration = Duration::from_millis(150);

/// Who makes TCP streams and paced datagrams.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Generator {
    Own,
    Iperf3,
}

impl Generator {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        match word {
            "own" => Some(Self::Own),
            "iperf3" => Some(Self::Iperf3),
            _ => None,
        }
    }
}

/// Takes one measurement. `near` is the first figure of the same one in an earlier round, if there
/// was one: a search begins there.
pub(crate) fn measure(
    net: &Net,
    tunnel: &Tunnel,
    measure: Measure,
    length: Duration,
    near: Option<f64>,
    by: Generator,
) -> Result<Vec<f64>, String> {
    match measure {
        Measure::Tcp1 => tcp(net, tunnel, 1, End::A, length, by),
        Measure::Tcp4 => tcp(net, tunnel, 4, End::A, length, by),
        Measure::Tcp1Reverse => tcp(net, tunnel, 1, End::B, length, by),
        Measure::Udp64 => highest_rate(net, tunnel, 64, length, near, by),
        Measure::Udp1400 => highest_rate(net, tunnel, 1400, length, near, by),
        Measure::RoundTrip => round_trip(net, tunnel, length / 2),
        Measure::Loaded => {
            let (sink, source) = start_tcp(
                net,
                tunnel,
                1,
                End::A,
                length / 2 + Duration::from_millis(600),
            )?;
            std::thread::sleep(Duration::from_millis(400));
            let figures = round_trip(net, tunnel, length / 2);
            drop((sink.finish(), source.finish()));
            figures
        }
        Measure::Idle => {
            let before = tunnel.cpu_seconds();
            let length = length.max(Duration::from_secs(3));
            std::thread::sleep(length);
            let share = (tunnel.cpu_seconds() - before) / 2.0 / length.as_secs_f64();
            Ok(vec![share * 100.0, tunnel.resident_mib()])
        }
    }
}

fn own() -> Result<String, String> {
    std::env::current_exe()
        .map(|path| path.display().to_string())
        .map_err(|error| error.to_string())
}

pub(crate) fn spawn(net: &Net, end: End, words: &[&str]) -> Result<Running, String> {
    let mut arguments = vec!["load"];
    arguments.extend(words);
    net.spawn(end, &own()?, &arguments)
}

fn start_tcp(
    net: &Net,
    tunnel: &Tunnel,
    streams: usize,
    from: End,
    length: Duration,
) -> Result<(Running, Running), String> {
    let to = tunnel.address(from.other());
    let sink = spawn(net, from.other(), &["tcp-sink", to, &streams.to_string()])?;
    let source = spawn(
        net,
        from,
        &[
            "tcp-source",
            to,
            &streams.to_string(),
            &length.as_millis().to_string(),
        ],
    )?;
    Ok((sink, source))
}

/// Gb/s of payload received; CPU seconds of the whole machine and of the tunnel for each GB.
fn tcp(
    net: &Net,
    tunnel: &Tunnel,
    streams: usize,
    from: End,
    length: Duration,
    by: Generator,
) -> Result<Vec<f64>, String> {
    let (machine, own) = (machine_cpu_seconds(), tunnel.cpu_seconds());
    let (rate, octets) = match by {
        Generator::Own => own_tcp(net, tunnel, streams, from, length)?,
        Generator::Iperf3 => iperf::tcp(net, tunnel, streams, from, length)?,
    };
    let (machine, own) = (machine_cpu_seconds() - machine, tunnel.cpu_seconds() - own);
    let gigabytes = octets / 1e9;
    Ok(vec![rate, machine / gigabytes, own / gigabytes])
}

/// Gb/s received, and octets.
fn own_tcp(
    net: &Net,
    tunnel: &Tunnel,
    streams: usize,
    from: End,
    length: Duration,
) -> Result<(f64, f64), String> {
    let (sink, source) = start_tcp(net, tunnel, streams, from, length)?;
    source.finish()?;
    let figures = numbers(&sink.finish()?)?;
    let [octets, seconds] = figures[..] else {
        return Err("the sink said nothing".into());
    };
    Ok((octets * 8.0 / 1e9 / seconds, octets))
}

/// The highest rate, in thousands a second, at which less than 0.1 % is lost: growing from below,
/// or from just below what was found before (`near`), then halving the gap, each step on a fresh
/// socket for a quarter of `length`.
pub(crate) fn highest_rate(
    net: &Net,
    tunnel: &Tunnel,
    octets: usize,
    length: Duration,
    near: Option<f64>,
    by: Generator,
) -> Result<Vec<f64>, String> {
    let step = (length / 4).max(Duration::from_millis(400));
    let mut good = 0.0_f64;
    let mut bad = f64::INFINITY;
    let (mut rate, mut factor) = match near.filter(|near| *near > 0.0) {
        Some(near) => (near * 950.0, 1.08_f64),
        None => (100_000.0, 2.0),
    };
    for _ in 0..12 {
        let (sent, lost) = match by {
            Generator::Own => rate_step(net, tunnel, octets, rate, step)?,
            Generator::Iperf3 => iperf::datagrams(net, tunnel, octets, rate, step)?,
        };
        let passes = lost < 0.001;
        if passes {
            good = good.max(sent);
        } else {
            bad = bad.min(rate);
        }
        // The generator itself is the limit: it sent clearly less than it was asked to.
        if passes && sent < rate * 0.95 {
            break;
        }
        rate = if bad.is_infinite() {
            rate * factor
        } else if good > 0.0 {
            f64::midpoint(good, bad)
        } else {
            bad / factor
        };
        factor = f64::min(factor * factor, 2.0);
        if bad - good < bad * 0.05 {
            break;
        }
    }
    Ok(vec![good / 1e3])
}

/// Sends at `rate` for a while; gives the rate reached and the share lost.
fn rate_step(
    net: &Net,
    tunnel: &Tunnel,
    octets: usize,
    rate: f64,
    length: Duration,
) -> Result<(f64, f64), String> {
    let to = tunnel.address(End::B);
    let sink = spawn(net, End::B, &["udp-sink", to])?;
    std::thread::sleep(Duration::from_millis(60));
    let source = spawn(
        net,
        End::A,
        &[
            "udp-source",
            to,
            &octets.to_string(),
            &rate.to_string(),
            &length.as_millis().to_string(),
        ],
    )?;
    let sent = numbers(&source.finish()?)?;
    let received = numbers(&sink.finish()?)?;
    let ([sent, seconds], [received, _]) = (&sent[..], &received[..]) else {
        return Err("no figures".into());
    };
    Ok((sent / seconds, 1.0 - received / sent.max(1.0)))
}

fn round_trip(net: &Net, tunnel: &Tunnel, length: Duration) -> Result<Vec<f64>, String> {
    let to = tunnel.address(End::B);
    let _echo = spawn(net, End::B, &["echo", to])?;
    std::thread::sleep(Duration::from_millis(60));
    let probe = spawn(
        net,
        End::A,
        &["round-trip", to, &length.as_millis().to_string()],
    )?;
    numbers(&probe.finish()?)
}

pub(crate) fn numbers(line: &str) -> Result<Vec<f64>, String> {
    line.split_whitespace()
        .map(|word| {
            let value = word.parse().ok().filter(|value: &f64| value.is_finite());
            value.ok_or_else(|| format!("{word} is no figure"))
        })
        .collect()
}

/// CPU seconds that the machine has spent not idle.
pub(crate) fn machine_cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1);
    let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let busy = |index: usize| ticks.get(index).copied().unwrap_or_default();
    (busy(0) + busy(1) + busy(2) + busy(5) + busy(6)) / 100.0
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "rates and shares are small and not negative"
)]
const fn whole(value: f64) -> u64 {
    value as u64
}

/// One end of a load, as a process of its own.
pub(crate) fn child(words: &[&str]) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    match words {
        ["tcp-sink", address, streams] => {
            tcp_sink(address, streams.parse().unwrap_or(1)).map_err(text)
        }
        ["tcp-source", address, streams, ms] => {
            tcp_source(address, streams.parse().unwrap_or(1), millis(ms)).map_err(text)
        }
        ["udp-sink", address] => udp_sink(address, PATIENCE).map_err(text),
        ["udp-sink", address, patience_ms] => udp_sink(address, millis(patience_ms)).map_err(text),
        ["udp-source", address, octets, rate, ms] => udp_source(
            address,
            octets.parse().unwrap_or(64),
            rate.parse().unwrap_or(1000.0),
            millis(ms),
        ),
        ["echo", address] => echo(address).map_err(text),
        ["round-trip", address, ms] => probe(address, millis(ms)).map_err(text),
        _ => Err("unknown load".into()),
    }
}

fn millis(word: &str) -> Duration {
    Duration::from_millis(word.parse().unwrap_or(1000))
}

fn socket_address(address: &str) -> SocketAddr {
    SocketAddr::new(
        address
            .parse()
            .unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
        PORT,
    )
}

fn tcp_sink(address: &str, streams: usize) -> std::io::Result<()> {
    let listener = TcpListener::bind(socket_address(address))?;
    let accepted: Vec<TcpStream> = (0..streams)
        .map(|_| listener.accept().map(|(stream, _)| stream))
        .collect::<Result<_, _>>()?;
    let started = Instant::now();
    let counts: Vec<_> = accepted
        .into_iter()
        .map(|mut stream| {
            std::thread::spawn(move || {
                let mut room = vec![0; 256 << 10];
                let mut octets = 0;
                while let Ok(count @ 1..) = stream.read(&mut room) {
                    octets += count;
                }
                octets
            })
        })
        .collect();
    let octets: usize = counts
        .into_iter()
        .map(|thread| thread.join().unwrap_or_default())
        .sum();
    crate::report::print(&format!("{octets} {}", started.elapsed().as_secs_f64()));
    Ok(())
}

fn tcp_source(address: &str, streams: usize, length: Duration) -> std::io::Result<()> {
    let threads: Vec<_> = (0..streams)
        .map(|_| {
            let to = socket_address(address);
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut stream = connect(to)?;
                // A tunnel that has ended is an error, not a bench without an end.
                stream.set_write_timeout(Some(STALLED))?;
                let octets = vec![0x5a; 128 << 10];
                let started = Instant::now();
                while started.elapsed() < length {
                    stream.write_all(&octets)?;
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap_or(Ok(()))?;
    }
    Ok(())
}

/// For how long nothing may go out before a stream is given up.
const STALLED: Duration = Duration::from_secs(10);

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let started = Instant::now();
    loop {
        match TcpStream::connect(to) {
            Err(error)
                if error.kind() == ErrorKind::ConnectionRefused
                    && started.elapsed() < Duration::from_secs(3) =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            outcome => return outcome,
        }
    }
}

/// Counts datagrams until none has come for as long as `patience`.
fn udp_sink(address: &str, patience: Duration) -> std::io::Result<()> {
    let socket = Udp::bind(&UdpConfig {
        receive_buffer_octets: 16 << 20,
        ..UdpConfig::new(socket_address(address))
    })
    .map_err(|error| std::io::Error::other(error.to_string()))?;
    let mut ring = tun_node::udp::ReceiveRing::new(64);
    let mut rooms = vec![[0_u8; 2048]; 64];
    let mut counters = SocketCounters::default();
    let mut packets = 0_u64;
    let mut last = Instant::now();
    let started = last;
    let wait = |packets: u64| {
        if packets == 0 {
            Duration::from_secs(3)
        } else {
            patience
        }
    };
    while last.elapsed() < wait(packets) {
        match socket.recv_batch(
            &mut ring,
            rooms.iter_mut().map(<[u8; 2048]>::as_mut_slice),
            &mut counters,
        )? {
            0 => std::thread::sleep(Duration::from_micros(200)),
            count => {
                packets += count as u64;
                last = Instant::now();
            }
        }
    }
    crate::report::print(&format!("{packets} {}", (last - started).as_secs_f64()));
    Ok(())
}

/// Sends datagrams of `octets` (IP packet) at `rate` a second, in bursts of at most 32.
fn udp_source(address: &str, octets: usize, rate: f64, length: Duration) -> Result<(), String> {
    let to = socket_address(address);
    let any = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0);
    let socket = Udp::bind(&UdpConfig {
        connect: Some(to),
        ..UdpConfig::new(any)
    })
    .map_err(|error| error.to_string())?;
    let payload = vec![0x5a_u8; octets.saturating_sub(28)];
    let mut ring = SendRing::new(32, 32);
    let mut counters = SocketCounters::default();
    let started = Instant::now();
    let mut due = 0.0;
    let mut offered = 0_u64;
    while started.elapsed() < length {
        due = f64::max(due, started.elapsed().as_secs_f64() * rate);
        let behind = whole(due - offered as f64);
        if behind == 0 {
            std::hint::spin_loop();
            continue;
        }
        let mut turn = socket.turn(&mut ring);
        for _ in 0..behind.min(32) {
            let _ = turn.push(&Transmit::default(), [payload.as_slice()]);
        }
        offered += behind.min(32);
        socket.send_batch(&mut turn, &mut counters, |_, _| ());
    }
    let sent = counters.sent;
    crate::report::print(&format!("{sent} {}", started.elapsed().as_secs_f64()));
    Ok(())
}

fn echo(address: &str) -> std::io::Result<()> {
    let socket = UdpSocket::bind(socket_address(address))?;
    let mut room = [0; 2048];
    loop {
        let (octets, from) = socket.recv_from(&mut room)?;
        socket.send_to(room.get(..octets).unwrap_or_default(), from)?;
    }
}

fn probe(address: &str, length: Duration) -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(socket_address(address))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut times = Vec::new();
    let mut room = [0; 64];
    let started = Instant::now();
    let mut number = 0_u64;
    while started.elapsed() < length {
        number += 1;
        let sent = Instant::now();
        socket.send(&number.to_be_bytes())?;
        while socket.recv(&mut room).is_ok() {
            if room.starts_with(&number.to_be_bytes()) {
                times.push(sent.elapsed().as_secs_f64() * 1e6);
                break;
            }
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        times
            .get(usize::try_from(whole((times.len() as f64 - 1.0) * share)).unwrap_or(0))
            .copied()
            .unwrap_or(f64::NAN)
    };
    crate::report::print(&format!("{} {}", at(0.5), at(0.99)));
    Ok(())
}
