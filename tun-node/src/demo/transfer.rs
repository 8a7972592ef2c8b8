//! The two ends of a TCP transfer: one makes octets and sends them, one reads them to the end;
//! both count and digest what they saw, the demo compares.
//!
//! Runs in the agents. Every wait is bounded by [`STALL`]: an overlay that carries nothing ends
//! in an error with a sentence and not in silence.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::order::End;
use super::stream::{Digest, SeededOctets};

/// A listener at `address`, on a port that the kernel picks.
///
/// # Errors
///
/// The kernel's.
pub(super) fn listen(address: IpAddr) -> io::Result<(TcpListener, u16)> {
    let listener = TcpListener::bind(SocketAddr::new(address, 0))?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// Accepts one connection and reads it to its end.
///
/// # Errors
///
/// Nobody connected, or nothing came, for [`STALL`]; the kernel's.
pub(super) fn receive(listener: TcpListener) -> io::Result<End> {
    let mut stream = accept(listener)?;
    stream.set_read_timeout(Some(STALL))?;
    let mut buffer = vec![0; CHUNK];
    let mut digest = Digest::new();
    let mut first = None;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                first.get_or_insert_with(Instant::now);
                digest.update(buffer.get(..length).unwrap_or_default());
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(in_words(error, "receiving")),
        }
    }
    Ok(end(&digest, first))
}

/// Connects to `to`, sends `octets` octets of the sequence `seed` and waits until the other end
/// has closed the connection, which it does when it has read everything.
///
/// `progress` is told the octets handed to the kernel, now and then.
///
/// # Errors
///
/// No connection, or no progress, for [`STALL`]; the kernel's.
pub(super) fn send(
    to: SocketAddr,
    octets: u64,
    seed: u64,
    mut progress: impl FnMut(u64),
) -> io::Result<End> {
    let mut stream =
        TcpStream::connect_timeout(&to, STALL).map_err(|error| in_words(error, "connecting"))?;
    stream.set_write_timeout(Some(STALL))?;
    stream.set_read_timeout(Some(STALL))?;
    let mut source = SeededOctets::new(seed);
    let mut digest = Digest::new();
    let mut buffer = vec![0; CHUNK];
    let start = Instant::now();
    let mut told = start;
    while digest.octets() < octets {
        let left = usize::try_from(octets - digest.octets()).unwrap_or(usize::MAX);
        let chunk = buffer.get_mut(..left.min(CHUNK)).unwrap_or_default();
        source.fill(chunk);
        stream
            .write_all(chunk)
            .map_err(|error| in_words(error, "sending"))?;
        digest.update(chunk);
        if told.elapsed() >= PROGRESS_EVERY {
            progress(digest.octets());
            told = Instant::now();
        }
    }
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0]) {
        Ok(0) => Ok(end(&digest, Some(start))),
        Ok(_) => Err(io::Error::other("the receiver sent something back")),
        Err(error) => Err(in_words(error, "waiting for the receiver to finish")),
    }
}

/// Waits [`STALL`] for one connection; `TcpListener` alone would wait for ever.
fn accept(listener: TcpListener) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let mut listener = mio::net::TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, Token(0), Interest::READABLE)?;
    let deadline = Instant::now() + STALL;
    let mut events = Events::with_capacity(1);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let stream = TcpStream::from(stream);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(in_words(
                ErrorKind::TimedOut.into(),
                "waiting for the sender",
            ));
        }
        match poll.poll(&mut events, Some(left)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => other?,
        }
    }
}

fn end(digest: &Digest, start: Option<Instant>) -> End {
    let elapsed = start.map_or(Duration::ZERO, |start| start.elapsed());
    End {
        octets: digest.octets(),
        digest: format!("{:016x}", digest.finish()),
        elapsed_ns: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
    }
}

fn in_words(error: io::Error, doing: &str) -> io::Error {
    let stalled = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let what = if stalled {
        format!("{doing}: nothing moved for {} s", STALL.as_secs())
    } else {
        format!("{doing}: {error}")
    };
    io::Error::new(error.kind(), what)
}

/// Octets a system call. 64 KiB keeps the buffer and the digest in the second-level cache.
const CHUNK: usize = 1 << 16;
/// How long nothing may move.
const STALL: Duration = Duration::from_secs(5);
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::thread;

    use super::*;

    fn transfer(octets: u64) -> (End, End) {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (listener, port) = listen(address).unwrap();
        let receiver = thread::spawn(move || receive(listener).unwrap());
        let sent = send(SocketAddr::new(address, port), octets, 42, |_| ()).unwrap();
        (sent, receiver.join().unwrap())
    }

    #[test]
    fn both_ends_see_the_same_octets() {
        for octets in [0, 1, 65_536, 1_000_003] {
            let (sent, received) = transfer(octets);
            assert_eq!(sent.octets, octets);
            assert_eq!(received.octets, octets);
            assert_eq!(sent.digest, received.digest);
        }
    }

    #[test]
    fn a_refused_connection_is_an_error_in_words() {
        let (listener, port) = listen(IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
        drop(listener);
        let to = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let error = send(to, 10, 1, |_| ()).unwrap_err();
        assert!(error.to_string().starts_with("connecting: "), "{error}");
    }
}
