//! What the demo and its agents say to each other: one JSON object a line, over the agent's
//! standard input and output.
//!
//! The demo orders, the agent answers; an agent does one order at a time. A line is bounded
//! ([`LINE_OCTETS_MAX`]) on both sides, so that neither can make the other hold more.

use std::io::{self, BufRead, Read, Write};
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What an agent is to do.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "order")]
pub(super) enum Order {
    /// Send echo requests; answered by [`Answer::Pinged`].
    Ping(Ping),
    /// Listen for one TCP connection and read it to its end; answered by [`Answer::Listening`],
    /// then [`Answer::Received`].
    Receive {
        /// The address to listen at.
        address: IpAddr,
    },
    /// Connect and send octets; answered by [`Answer::Sent`].
    Send {
        /// Where to.
        address: IpAddr,
        /// The TCP port there.
        port: u16,
        /// How much.
        octets: u64,
        /// Which sequence.
        seed: u64,
    },
}

/// A round of echo requests to several targets.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Ping {
    /// The addresses, of either family.
    pub(super) targets: Vec<IpAddr>,
    /// Requests to each.
    pub(super) count: u16,
    /// From one request to a target to the next request to it, in microseconds.
    pub(super) interval_us: u64,
    /// When to send the first, in microseconds: agents that start at different phases do not
    /// burst together.
    pub(super) phase_us: u64,
    /// How long to wait for replies after the last request, in microseconds.
    pub(super) wait_us: u64,
}

/// What an agent says.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub(super) enum Answer {
    /// The first line: the agent runs and waits for orders.
    Ready {
        /// Its process id as it sees it.
        pid: u32,
    },
    /// How far the order has come: requests sent, or octets sent.
    Progress {
        /// Since the order began.
        done: u64,
    },
    /// The outcome of [`Order::Ping`], one tally a target, in the order's sequence.
    Pinged {
        /// Per target.
        tallies: Vec<EchoTally>,
    },
    /// [`Order::Receive`] listens here.
    Listening {
        /// The TCP port.
        port: u16,
    },
    /// The outcome of [`Order::Receive`].
    Received(End),
    /// The outcome of [`Order::Send`].
    Sent(End),
    /// The order could not be carried out.
    Failed {
        /// Why.
        sentence: String,
    },
}

/// What came of the echo requests to one target.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct EchoTally {
    /// The address.
    pub(super) target: IpAddr,
    /// Requests, also those that the kernel refused to send.
    pub(super) sent: u32,
    /// The round-trip time of each request that was answered, in nanoseconds.
    pub(super) rtt_ns: Vec<u64>,
    /// Replies beyond the first to a request.
    pub(super) duplicates: u32,
    /// What the kernel said when it refused one, if it did.
    pub(super) send_error: Option<String>,
}

/// One end's view of a transfer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct End {
    /// Octets sent or received.
    pub(super) octets: u64,
    /// Their XXH64 digest in hexadecimal.
    pub(super) digest: String,
    /// From the first octet to the end of the connection, in nanoseconds.
    pub(super) elapsed_ns: u64,
}

/// Writes one line and flushes it.
pub(super) fn write_line(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads one line; `None` at the end of the stream.
///
/// # Errors
///
/// `InvalidData` for a line that is too long, cut off, or not a message.
pub(super) fn read_line<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(LINE_OCTETS_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// The longest line: 15 targets in two families with 10 round-trip times each need 6 KiB.
const LINE_OCTETS_MAX: u64 = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_its_line() {
        let order = Order::Ping(Ping {
            targets: vec!["10.244.2.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            count: 10,
            interval_us: 50_000,
            phase_us: 7,
            wait_us: 1_000_000,
        });
        let mut line = Vec::new();
        write_line(&mut line, &order).unwrap();
        let mut from = line.as_slice();
        assert_eq!(read_line(&mut from).unwrap(), Some(order));
        assert_eq!(read_line::<Order>(&mut from).unwrap(), None);
    }

    #[test]
    fn the_largest_answer_fits_a_line() {
        let tally = EchoTally {
            target: "fd00:10:244:10::1".parse().unwrap(),
            sent: 10,
            rtt_ns: vec![u64::MAX; 10],
            duplicates: u32::MAX,
            send_error: Some("x".repeat(200)),
        };
        let mut line = Vec::new();
        write_line(
            &mut line,
            &Answer::Pinged {
                tallies: vec![tally; 30],
            },
        )
        .unwrap();
        assert!((line.len() as u64) < LINE_OCTETS_MAX / 8);
    }

    #[test]
    fn long_cut_and_foreign_lines_are_refused() {
        let endless = vec![b' '; 1 << 19];
        for octets in [endless.as_slice(), b"{\"order\":\"ping\"", b"hello\n"] {
            let mut from = octets;
            let error = read_line::<Order>(&mut from).unwrap_err();
            assert!(
                matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ),
                "{error}"
            );
        }
    }
}
