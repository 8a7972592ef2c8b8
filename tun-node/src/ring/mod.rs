//! Datagrams of the device by shared memory: no system call for each, which is half of what a small one
//! costs a worker.
//!
//! ```text
//!  sender ── IP ── egress of the device: program ──┬─ awake, datagram ──> ring ──────┐
//!                                                  │                                ├─> worker
//!                                                  └─ else ──> the device's queue ──┘
//! ```
//!
//! A program of BPF at the egress of our device copies a datagram to a ring ([`crate::sys::ring`]) and
//! ends it there. The worker reads the ring between two turns, and sleeps as ever, by the device's own
//! descriptor: while it does, the ring is closed, and the first packet takes the device's queue, which
//! wakes the worker, and opens the ring for those behind it. That is how datagrams stay in order: the ring
//! says which of its packets came before the one that wakes; these are carried before the queue, and the
//! others behind what the queue had then. For that the worker looks at the ring, asks whether the device
//! has something, and carries what it had seen in the ring once the queue is empty, in this order: what
//! else it finds there may be behind a packet that came to the queue after it asked.
//!
//! TCP, and with it nearly all super-packets, keeps to the queue; a datagram that is too long for the
//! ring, or a row of them that is to be cut, takes those of the next 20 ms with it, and may overtake what
//! came while the worker was being woken.
//!
//! What takes the ring has not reached the device: its counters (`ip -s link`), its queueing discipline
//! and captures there do not see it. So it is off unless `packet-ring = true`, and closed while
//! somebody captures ([`Watch`]). It needs `CAP_BPF` and `CAP_NET_ADMIN`, and Linux 6.6.

mod program;

use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bincode::{Decode, Encode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{debug, info};

use crate::sys::bpf;
use crate::sys::ring::{RingMemory, RingReader};

pub use crate::sys::ring::Next;

/// The worker's end of a ring. The program is attached for as long as it lives.
#[derive(Debug)]
pub struct Ring {
    reader: RingReader,
    shared: Arc<Shared>,
    #[allow(dead_code, reason = "while it is open the program is attached")]
    attached: OwnedFd,
}

#[derive(Debug)]
struct Shared {
    /// Whether packets may take the ring.
    is_on: AtomicBool,
    /// Why not.
    because: Mutex<String>,
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}{}", bpf::hint(source))]
pub struct RingError {
    what: &'static str,
    source: io::Error,
}

impl Ring {
    /// Attaches a ring to the device with that index in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`RingError`]: no privilege, no such device, or a kernel before 6.6.
    pub fn open(device: u32) -> Result<(Self, Watch), RingError> {
        let failed = |what| move |source| RingError { what, source };
        let memory = RingMemory::new().map_err(failed("memory of the ring"))?;
        let program = program::egress(memory.as_fd());
        let program = bpf::load_classifier(&program).map_err(failed("BPF program of the ring"))?;
        let attached = bpf::attach_egress(program.as_fd(), device);
        let attached = attached.map_err(failed("tcx attachment at the egress"))?;
        let shared = Arc::new(Shared {
            is_on: AtomicBool::new(true),
            because: Mutex::default(),
        });
        let watch = Watch {
            shared: Arc::clone(&shared),
            device,
        };
        let ring = Self {
            reader: RingReader::new(memory),
            shared,
            attached,
        };
        Ok((ring, watch))
    }

    /// Around a reader, with no program that writes.
    #[cfg(test)]
    pub(crate) fn of_a_reader(reader: RingReader) -> Self {
        Self {
            reader,
            shared: Arc::new(Shared {
                is_on: AtomicBool::new(true),
                because: Mutex::default(),
            }),
            attached: tempfile::tempfile().expect("a file").into(),
        }
    }

    /// As [`Watch::look`] does.
    #[cfg(test)]
    pub(crate) fn turn(&self, is_on: bool) {
        self.shared.is_on.store(is_on, Ordering::Relaxed);
    }

    /// Whether packets are to come no more, though they still may.
    #[must_use]
    pub fn is_to_be_shut(&self) -> bool {
        !self.shared.is_on.load(Ordering::Relaxed)
    }

    /// Packets that found no room.
    #[must_use]
    pub fn full(&self) -> u64 {
        self.reader.memory().full()
    }

    /// Who reads it.
    pub const fn reader(&mut self) -> &mut RingReader {
        &mut self.reader
    }
}

/// The node's end of a ring: closes it while somebody captures at the device.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    device: u32,
}

impl Watch {
    /// Looks after it; to be called now and then, in the network namespace of the device.
    pub fn look(&self) {
        let captures = is_captured(Path::new(PACKET_SOCKETS), self.device);
        let is_on = !captures.unwrap_or(false);
        if self.shared.is_on.swap(is_on, Ordering::Relaxed) != is_on {
            let because = if is_on { "" } else { CAPTURED };
            because.clone_into(&mut self.shared.because.lock());
            info!(on = is_on, because, "the ring of the device");
        }
    }

    /// How it is.
    #[must_use]
    pub fn report(&self) -> RingReport {
        RingReport {
            on: self.shared.is_on.load(Ordering::Relaxed),
            because: self.shared.because.lock().clone(),
        }
    }
}

/// How the ring of the device is.
#[derive(Clone, Debug, Decode, Default, Deserialize, Encode, Eq, PartialEq, Serialize)]
pub struct RingReport {
    /// Whether datagrams may take it.
    pub on: bool,
    /// Why not; empty when they may.
    pub because: String,
}

/// Whether a packet socket sees all that leaves by the device: one that is bound to it, or to none.
/// `file` is `/proc/net/packet`.
fn is_captured(file: &Path, device: u32) -> io::Result<bool> {
    let file = std::fs::File::open(file).inspect_err(|error| debug!(%error, "packet sockets"))?;
    for line in BufReader::new(file).lines().skip(1) {
        let line = line?;
        let mut words = line.split_ascii_whitespace().skip(3);
        let (protocol, bound) = (words.next(), words.next());
        let is_all = protocol.is_some_and(|it| u16::from_str_radix(it, 16) == Ok(EVERY_PROTOCOL));
        let bound = bound.and_then(|it| it.parse::<u32>().ok());
        if is_all && bound.is_some_and(|bound| bound == 0 || bound == device) {
            return Ok(true);
        }
    }
    Ok(false)
}

const PACKET_SOCKETS: &str = "/proc/thread-self/net/packet";

/// `ETH_P_ALL`: only such sockets see what leaves.
const EVERY_PROTOCOL: u16 = 3;

const CAPTURED: &str = "somebody captures packets at the device, which would not see them";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_at_the_device_or_at_all_is_found() {
        let head = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n";
        let line = |protocol: &str, device: u32| {
            format!("0000000012345678 3      3    {protocol}   {device}     1 0      0      4711\n")
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("packet");
        for (lines, is_found) in [
            (String::new(), false),
            (line("0003", 7), true),
            (line("0003", 0), true),
            (line("0003", 8), false),
            (line("0800", 7), false),
            (line("888e", 0) + &line("0003", 8) + &line("0003", 7), true),
            ("nonsense\n".to_owned(), false),
        ] {
            std::fs::write(&path, format!("{head}{lines}")).unwrap();
            assert_eq!(is_captured(&path, 7).unwrap(), is_found, "{lines}");
        }
        assert!(is_captured(&directory.path().join("none"), 7).is_err());
    }
}
