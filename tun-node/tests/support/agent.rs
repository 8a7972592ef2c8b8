//! A small program that tests run inside namespaces: it sends echo requests of every size, and
//! moves octets over TCP with a digest at both ends.
//!
//! It is the test program itself, started again with [`ORDER`] in its environment; what it has to
//! say it prints on lines that begin with [`MARK`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::netns::Netns;

/// The environment variable that holds what the agent is to do.
const ORDER: &str = "WARREN_TEST_AGENT";
/// The TCP port of transfers.
pub(crate) const TRANSFER_PORT: u16 = 5201;
const MARK: &str = "AGENT ";
const FAILED: &str = "failed: ";

/// The test that turns into the agent when it is started by one; call it in a test of that name.
pub(crate) fn entry() {
    let Ok(order) = std::env::var(ORDER) else {
        return;
    };
    let words: Vec<&str> = order.split_whitespace().collect();
    let answer = match words[..] {
        ["sweep", from, to, min, max] => {
            sweep(parse(from), parse(to), parse(min), parse(max)).map(|lost| format!("{lost:?}"))
        }
        ["serve", at] => serve(parse(at)),
        ["datagram", from, to, ref text @ ..] => datagram(parse(from), parse(to), &text.join(" ")),
        ["send", from, to, octets] => send(parse(from), parse(to), parse(octets)),
        _ => panic!("the agent does not know {order:?}"),
    };
    say(&answer.unwrap_or_else(|error| format!("{FAILED}{error}")));
}

/// The sizes of IP packets from `min` to `max` octets for which an echo request from `from` to `to`
/// was not answered with the same octets.
pub(crate) fn lost_sizes(
    netns: &Netns,
    from: IpAddr,
    to: IpAddr,
    min: usize,
    max: usize,
) -> Vec<usize> {
    let agent = Agent::start(netns, &format!("sweep {from} {to} {min} {max}"));
    let answer = agent.finish();
    let list = answer.trim_matches(['[', ']']);
    list.split(", ")
        .filter(|size| !size.is_empty())
        .map(parse)
        .collect()
}

/// Moves `octets` over TCP from one namespace to another, and panics unless all of them arrive as
/// they were; returns how long it took.
pub(crate) fn transfer(from: (&Netns, IpAddr), to: (&Netns, IpAddr), octets: u64) -> Duration {
    let listen = SocketAddr::new(to.1, TRANSFER_PORT);
    let mut server = Agent::start(to.0, &format!("serve {listen}"));
    assert_eq!(server.line(), "listening");
    let began = Instant::now();
    let client = Agent::start(from.0, &format!("send {} {listen} {octets}", from.1));
    let (sent, received) = (client.finish(), server.finish());
    assert_eq!(sent, received, "octets and digest at both ends");
    began.elapsed()
}

/// Sends one UDP datagram with this text.
pub(crate) fn send_datagram(netns: &Netns, from: IpAddr, to: SocketAddr, text: &[u8]) {
    let text = str::from_utf8(text).expect("text");
    Agent::start(netns, &format!("datagram {from} {to} {text}")).finish();
}

struct Agent {
    order: String,
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Agent {
    fn start(netns: &Netns, order: &str) -> Self {
        let this = std::env::current_exe().expect("a running program has a file");
        let mut command: Command = netns.command(this);
        let mut child = command
            .args(["--exact", "agent", "--nocapture"])
            .env(ORDER, order)
            .stdout(Stdio::piped())
            .spawn()
            .expect("nsenter is installed");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Self {
            order: order.to_owned(),
            child,
            stdout,
        }
    }

    /// The next line that is the agent's own.
    fn line(&mut self) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).expect("text");
            assert!(read > 0, "the agent ended: {all}");
            // The harness may have begun the line.
            if let Some((_, own)) = line.split_once(MARK) {
                let failed = own.starts_with(FAILED);
                assert!(!failed, "the agent, told to {}: {own}", self.order);
                return own.trim_end().to_owned();
            }
            all.push_str(&line);
        }
    }

    fn finish(mut self) -> String {
        let line = self.line();
        let mut rest = String::new();
        let _ = self.stdout.read_to_string(&mut rest);
        let status = self.child.wait().expect("a child of ours");
        assert!(status.success(), "the agent: {status}\n{rest}");
        line
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(line: &str) {
    println!("\n{MARK}{line}");
}

fn parse<T: std::str::FromStr<Err: std::fmt::Debug>>(word: &str) -> T {
    word.parse()
        .unwrap_or_else(|error| panic!("{word:?}: {error:?}"))
}

/// Sends one echo request of each size and waits for all the answers, a few on the way at a time.
fn sweep(from: IpAddr, to: IpAddr, min: usize, max: usize) -> io::Result<Vec<usize>> {
    let socket = echo_socket(from, to)?;
    let header = if to.is_ipv4() { 20 } else { 40 };
    let (min, mut unanswered) = (min.max(header + 8), Vec::new());
    let (mut next, mut on_the_way) = (min, Vec::new());
    let mut buffer = vec![0; 1 << 16];
    while next <= max || !on_the_way.is_empty() {
        while next <= max && on_the_way.len() < WINDOW {
            socket.send(&echo_request(to, next - header))?;
            on_the_way.push(next);
            next += 1;
        }
        match (&socket).read(&mut buffer) {
            Ok(octets) => {
                // A raw socket hands over the IPv4 header too.
                let start = if to.is_ipv4() { 20 } else { 0 };
                let message = &buffer[start..octets];
                on_the_way.retain(|size| !answers(to, message, size - header));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                unanswered.append(&mut on_the_way);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(unanswered)
}

fn echo_socket(from: IpAddr, to: IpAddr) -> io::Result<Socket> {
    let socket = if to.is_ipv4() {
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?
    } else {
        Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?
    };
    socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    socket.connect(&SockAddr::from(SocketAddr::new(to, 0)))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.set_recv_buffer_size(1 << 20)?;
    Ok(socket)
}

/// An echo request of `octets`; identifier and sequence number are the size.
fn echo_request(to: IpAddr, octets: usize) -> Vec<u8> {
    let size = u16::try_from(octets)
        .expect("a size of a packet")
        .to_be_bytes();
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let mut message = vec![kind, 0, 0, 0, size[0], size[1], size[0], size[1]];
    let pattern = (0..=255_u8).cycle().skip(octets % 251);
    message.extend(pattern.take(octets - 8));
    if to.is_ipv4() {
        // In IPv6 the kernel fills it in: it knows the source address. RFC 3542 section 3.1.
        let checksum = warren_core::wire::checksum::of(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    message
}

fn answers(to: IpAddr, message: &[u8], octets: usize) -> bool {
    let mut expected = echo_request(to, octets);
    expected[0] = if to.is_ipv4() { 0 } else { 129 };
    message.len() == octets && message[..1] == expected[..1] && message[4..] == expected[4..]
}

fn serve(at: SocketAddr) -> io::Result<String> {
    let listener = TcpListener::bind(at)?;
    say("listening");
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut buffer, mut octets, mut digest) = (vec![0; 1 << 16], 0_u64, Digest::new());
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => {
                digest.add(&buffer[..read]);
                octets += read as u64;
            }
        }
    }
    // The sender waits for this before it closes, so that a lost end shows.
    stream.write_all(&octets.to_be_bytes())?;
    Ok(format!("{octets} {:016x}", digest.0))
}

fn send(from: IpAddr, to: SocketAddr, octets: u64) -> io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    socket.connect_timeout(&SockAddr::from(to), PATIENCE)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = TcpStream::from(socket);
    let (mut state, mut left, mut digest) = (1_u64, octets, Digest::new());
    while left > 0 {
        let mut block = Vec::with_capacity(1 << 16);
        while block.len() < 1 << 16 {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            block.extend_from_slice(&state.to_be_bytes());
        }
        block.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        stream.write_all(&block)?;
        digest.add(&block);
        left -= block.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    assert_eq!(u64::from_be_bytes(answer), octets, "what arrived");
    Ok(format!("{octets} {:016x}", digest.0))
}

fn datagram(from: IpAddr, to: SocketAddr, text: &str) -> io::Result<String> {
    UdpSocket::bind(SocketAddr::new(from, 0))?.send_to(text.as_bytes(), to)?;
    Ok("sent".to_owned())
}

/// FNV-1a, 64 bits: not for enemies, but a changed, lost or moved octet shows.
struct Digest(u64);

impl Digest {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

const WINDOW: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);
