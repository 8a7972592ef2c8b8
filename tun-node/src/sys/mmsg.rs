//! Many datagrams per call: `recvmmsg(2)` and `sendmmsg(2)` over rings that the
//! caller owns and reuses.
//!
//! A ring holds every array that the kernel wants (headers, vectors, addresses,
//! control buffers), made once with a fixed capacity; a turn of it allocates
//! nothing. Payload is never copied: received octets land in the caller's
//! slices, sent octets are gathered from them, several slices per message, so an
//! outer header built elsewhere joins its payload in the kernel.
//!
//! Each message has its own address and its own control messages, so a train
//! (`UDP_SEGMENT`), a marked packet (ECN) and a plain one leave in one call.
//!
//! A turn ([`ReceiveTurn`], [`SendTurn`]) borrows the ring and, by its lifetime,
//! the caller's slices, for as long as pointers to them may be followed.

use std::fmt;
use std::io::{Error, ErrorKind, Result};
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::address::{Family, RawAddress};
use super::control::{Control, SendControl};

/// One received datagram, or a train of equal ones that the kernel joined.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Datagram {
    /// Octets of the caller's slice that hold the payload. Starts at 0 except
    /// where a raw socket has stripped the IP header before it.
    pub range: Range<usize>,
    /// Who sent it: outer source address and port (port 0 on raw sockets).
    pub peer: SocketAddr,
    /// Outer destination address, the local one that was hit.
    pub local: Option<IpAddr>,
    /// Interface it came in by, 0 when the socket does not ask for it.
    pub interface: u32,
    /// TOS octet or traffic class of the outer header: DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit of the outer header, where the socket asks for it.
    pub ttl: Option<u8>,
    /// Octets per datagram when this is a train, the last may be shorter; `None`
    /// for a single datagram.
    pub segment_octets: Option<NonZeroU16>,
}

/// Why a received message is not usable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Damage {
    /// The datagram was longer than the slice (`MSG_TRUNC`), or shorter than the
    /// IP header before it.
    Truncated,
    /// The control buffer was too small (`MSG_CTRUNC`): ECN or segment size may
    /// be missing, and a train without its segment size cannot be taken apart.
    ControlTruncated,
    /// The source address is of no known family.
    NoAddress,
}

/// Counts of what a ring has received.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ReceiveCounters {
    /// Messages received whole; a train counts once.
    pub messages: u64,
    /// Their payload octets.
    pub octets: u64,
    /// Calls made, also those that found nothing.
    pub calls: u64,
    /// Messages damaged by [`Damage::Truncated`].
    pub truncated: u64,
    /// Messages damaged by [`Damage::ControlTruncated`].
    pub control_truncated: u64,
    /// Messages damaged by [`Damage::NoAddress`].
    pub no_address: u64,
}

/// What one message is sent with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Transmit {
    /// Where to; `None` on a connected socket.
    pub peer: Option<SocketAddr>,
    /// Source address, TOS, TTL, segment size.
    pub control: SendControl,
}

/// A ring for receiving, with room for a fixed number of messages.
pub struct ReceiveRing {
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[[libc::iovec; 2]]>,
    prefixes: Box<[Prefix]>,
    addresses: Box<[RawAddress]>,
    controls: Box<[Control]>,
    outcomes: Box<[std::result::Result<Datagram, Damage>]>,
    received: usize,
    counters: ReceiveCounters,
}

impl ReceiveRing {
    /// A ring for at most `messages` messages a turn (1 to 1024; the kernel
    /// takes no more at once).
    #[must_use]
    pub fn new(messages: usize) -> Self {
        let messages = messages.clamp(1, MESSAGES_MAX);
        Self {
            headers: vec![EMPTY_HEADER; messages].into(),
            vectors: vec![[EMPTY_VECTOR; 2]; messages].into(),
            prefixes: vec![[0; PREFIX_OCTETS]; messages].into(),
            addresses: vec![RawAddress::EMPTY; messages].into(),
            controls: vec![Control::EMPTY; messages].into(),
            outcomes: vec![Err(Damage::NoAddress); messages].into(),
            received: 0,
            counters: ReceiveCounters::default(),
        }
    }

    /// Messages it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.outcomes.len()
    }

    /// Begins a turn that offers `slices`, as many as the ring has room for.
    pub fn turn<'b>(
        &mut self,
        slices: impl IntoIterator<Item = &'b mut [u8]>,
    ) -> ReceiveTurn<'_, 'b> {
        let mut offered = 0;
        for ([_, vector], slice) in self.vectors.iter_mut().zip(slices) {
            vector.iov_base = slice.as_mut_ptr().cast();
            vector.iov_len = slice.len();
            offered += 1;
        }
        self.received = 0;
        ReceiveTurn {
            ring: self,
            offered,
            prefixed: false,
            buffers: PhantomData,
        }
    }

    /// What the last turn received, one entry per slice filled, in the order of
    /// the slices.
    pub fn received(&self) -> &[std::result::Result<Datagram, Damage>] {
        self.outcomes.get(..self.received).unwrap_or(&[])
    }

    /// Counts since the ring was made.
    #[must_use]
    pub const fn counters(&self) -> &ReceiveCounters {
        &self.counters
    }

    /// The outcomes of the last turn with the prefix of each, for a raw socket to
    /// look at and correct.
    pub(crate) fn received_prefixed(
        &mut self,
    ) -> impl Iterator<Item = (&mut std::result::Result<Datagram, Damage>, &Prefix)> {
        self.outcomes
            .iter_mut()
            .zip(&self.prefixes)
            .take(self.received)
    }

    /// Reads header `index` back into its outcome.
    fn settle(&mut self, index: usize, prefix_octets: usize) {
        let (Some(header), Some(address), Some(control), Some(outcome)) = (
            self.headers.get(index),
            self.addresses.get(index),
            self.controls.get(index),
            self.outcomes.get_mut(index),
        ) else {
            return;
        };
        let flags = header.msg_hdr.msg_flags;
        if flags & libc::MSG_TRUNC != 0 {
            self.counters.truncated += 1;
            *outcome = Err(Damage::Truncated);
            return;
        }
        if flags & libc::MSG_CTRUNC != 0 {
            self.counters.control_truncated += 1;
            *outcome = Err(Damage::ControlTruncated);
            return;
        }
        let Some(peer) = address.read(header.msg_hdr.msg_namelen) else {
            self.counters.no_address += 1;
            *outcome = Err(Damage::NoAddress);
            return;
        };
        let Some(length) = (header.msg_len as usize).checked_sub(prefix_octets) else {
            self.counters.truncated += 1;
            *outcome = Err(Damage::Truncated);
            return;
        };
        let told = control.read(control_octets(header));
        self.counters.messages += 1;
        self.counters.octets += length as u64;
        *outcome = Ok(Datagram {
            range: 0..length,
            peer,
            local: told.local,
            interface: told.interface,
            tos: told.tos,
            ttl: told.ttl,
            // The kernel tells the size for a lone datagram of a GRO socket too.
            segment_octets: told
                .segment_octets
                .filter(|s| usize::from(s.get()) < length),
        });
    }
}

impl fmt::Debug for ReceiveRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveRing")
            .field("capacity", &self.capacity())
            .field("received", &self.received())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

// SAFETY: the pointers in `headers` and `vectors` are followed only through a
// `ReceiveTurn`, which holds the ring exclusively and whose lifetime keeps the
// slices behind them borrowed; between turns they are never followed. Everything
// else in the ring is owned.
unsafe impl Send for ReceiveRing {}

/// Slices offered to the kernel for one or more calls. `'b` is how long they stay
/// borrowed.
pub struct ReceiveTurn<'r, 'b> {
    ring: &'r mut ReceiveRing,
    offered: usize,
    prefixed: bool,
    buffers: PhantomData<&'b mut [u8]>,
}

impl ReceiveTurn<'_, '_> {
    /// Keeps the first 20 octets of each message, an IPv4 header, out of the
    /// slices: the ring keeps them for the caller.
    #[must_use]
    pub const fn prefixed(mut self) -> Self {
        self.prefixed = true;
        self
    }

    /// Slices offered: the most messages that a call can receive.
    #[must_use]
    pub const fn offered(&self) -> usize {
        self.offered
    }

    /// Receives messages into the slices, one each and from the first on,
    /// without waiting (`recvmmsg(2)`), and returns their number, at least 1.
    /// What they are is in [`ReceiveRing::received`]; a further call overwrites
    /// them.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when nothing is queued, or an error that the network reported
    /// earlier for this socket (`ECONNREFUSED`, `EHOSTUNREACH`, `EMSGSIZE`): the
    /// call consumes it. `InvalidInput` when no slice was offered.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<usize> {
        self.link();
        let ring = &mut *self.ring;
        ring.received = 0;
        ring.counters.calls += 1;
        let offered = libc::c_uint::try_from(self.offered).unwrap_or(0);
        if offered == 0 {
            return Err(ErrorKind::InvalidInput.into());
        }
        let flags = libc::MSG_DONTWAIT;
        let received = loop {
            // SAFETY: the first `offered` headers were linked above, each to an
            // address, a control buffer and one or two vectors of this ring, none
            // shared between headers, with their true capacities; the ring is
            // borrowed exclusively and its boxes do not move. The vectors cover a
            // prefix of the ring and one `&'b mut [u8]`, still exclusively ours
            // because the turn carries 'b. No time limit is passed.
            let received = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    ring.headers.as_mut_ptr(),
                    offered,
                    flags as _,
                    ptr::null_mut(),
                )
            };
            match usize::try_from(received) {
                Ok(received) => break received,
                Err(_) => {
                    let error = Error::last_os_error();
                    if error.kind() != ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        };
        ring.received = received;
        let prefix_octets = if self.prefixed { PREFIX_OCTETS } else { 0 };
        for index in 0..received {
            ring.settle(index, prefix_octets);
        }
        Ok(received)
    }

    /// Points the headers of the offered slices at their parts.
    fn link(&mut self) {
        let ring = &mut *self.ring;
        let rooms = ring.headers.iter_mut().zip(&mut ring.vectors);
        let parts = ring.addresses.iter_mut().zip(&mut ring.controls);
        let rooms = rooms.zip(parts).zip(&mut ring.prefixes);
        for (((header, vectors), (address, control)), prefix) in rooms.take(self.offered) {
            *header = EMPTY_HEADER;
            let message = &mut header.msg_hdr;
            message.msg_name = address.as_mut_ptr();
            message.msg_namelen = RawAddress::CAPACITY;
            vectors[0] = libc::iovec {
                iov_base: prefix.as_mut_ptr().cast(),
                iov_len: PREFIX_OCTETS,
            };
            // Both vectors, or the second one alone.
            let skipped = usize::from(!self.prefixed);
            message.msg_iov = vectors.as_mut_ptr().wrapping_add(skipped);
            message.msg_iovlen = (vectors.len() - skipped) as _;
            message.msg_control = control.as_mut_ptr();
            message.msg_controllen = Control::CAPACITY;
        }
    }
}

impl fmt::Debug for ReceiveTurn<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveTurn")
            .field("offered", &self.offered)
            .finish_non_exhaustive()
    }
}

/// A ring for sending: room for a fixed number of messages and of slices.
pub struct SendRing {
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    addresses: Box<[RawAddress]>,
    controls: Box<[Control]>,
    entries: Box<[Entry]>,
}

impl SendRing {
    /// A ring for at most `messages` messages (1 to 1024) made of at most
    /// `slices` slices in all.
    #[must_use]
    pub fn new(messages: usize, slices: usize) -> Self {
        let messages = messages.clamp(1, MESSAGES_MAX);
        Self {
            headers: vec![EMPTY_HEADER; messages].into(),
            vectors: vec![EMPTY_VECTOR; slices.max(1)].into(),
            addresses: vec![RawAddress::EMPTY; messages].into(),
            controls: vec![Control::EMPTY; messages].into(),
            entries: vec![Entry::default(); messages].into(),
        }
    }

    /// Messages it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Begins a turn for a socket of this family. Messages of an earlier turn
    /// that were not sent are gone.
    pub fn turn<'b>(&mut self, family: Family) -> SendTurn<'_, 'b> {
        SendTurn {
            ring: self,
            family,
            pushed: 0,
            slices: 0,
            sent: 0,
            buffers: PhantomData,
        }
    }
}

impl fmt::Debug for SendRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendRing")
            .field("messages", &self.entries.len())
            .field("slices", &self.vectors.len())
            .finish_non_exhaustive()
    }
}

// SAFETY: as for `ReceiveRing`; the vectors are followed only through a
// `SendTurn`, whose lifetime keeps the slices behind them borrowed.
unsafe impl Send for SendRing {}

/// Messages being gathered for one or more calls. `'b` is how long the payload
/// slices stay borrowed.
pub struct SendTurn<'r, 'b> {
    ring: &'r mut SendRing,
    family: Family,
    pushed: usize,
    slices: usize,
    sent: usize,
    buffers: PhantomData<&'b [u8]>,
}

impl<'b> SendTurn<'_, 'b> {
    /// Adds a message made of `slices`, one after the other (at most 1024).
    ///
    /// # Errors
    ///
    /// [`RingFull`] when the ring has no room for the message or its slices; the
    /// turn is then as it was.
    pub fn push(
        &mut self,
        transmit: &Transmit,
        slices: impl IntoIterator<Item = &'b [u8]>,
    ) -> std::result::Result<(), RingFull> {
        let ring = &mut *self.ring;
        let (Some(entry), Some(address), Some(control)) = (
            ring.entries.get_mut(self.pushed),
            ring.addresses.get_mut(self.pushed),
            ring.controls.get_mut(self.pushed),
        ) else {
            return Err(RingFull);
        };
        let first = self.slices;
        let mut end = first;
        for slice in slices {
            let Some(vector) = ring.vectors.get_mut(end) else {
                return Err(RingFull);
            };
            vector.iov_base = slice.as_ptr().cast_mut().cast();
            vector.iov_len = slice.len();
            end += 1;
        }
        *entry = Entry {
            first,
            slices: end - first,
            address_octets: transmit.peer.map_or(0, |peer| address.write(peer)),
            control_octets: control.write(self.family, &transmit.control),
        };
        self.slices = end;
        self.pushed += 1;
        Ok(())
    }

    /// Messages pushed and neither sent nor skipped.
    #[must_use]
    pub const fn pending(&self) -> usize {
        self.pushed - self.sent
    }

    /// Index of the message that the next call begins with.
    #[must_use]
    pub const fn next(&self) -> usize {
        self.sent
    }

    /// Gives up the message that the next call would begin with.
    pub const fn skip(&mut self) {
        if self.sent < self.pushed {
            self.sent += 1;
        }
    }

    /// Hands all pending messages to the kernel without waiting (`sendmmsg(2)`)
    /// and returns how many it took, at least 1 when any was pending.
    ///
    /// # Errors
    ///
    /// The error is about the first pending message and none was taken.
    /// `WouldBlock` when the socket's buffer is full; an error that the network
    /// reported for an earlier message is reported here once, too.
    pub fn send(&mut self, socket: BorrowedFd<'_>) -> Result<usize> {
        let pending = self.sent..self.pushed;
        if pending.is_empty() {
            return Ok(0);
        }
        self.link();
        let Some(headers) = self.ring.headers.get_mut(pending) else {
            return Ok(0);
        };
        let count = libc::c_uint::try_from(headers.len()).unwrap_or(libc::c_uint::MAX);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let sent = loop {
            // SAFETY: every header in the slice was linked above to an address, a
            // control buffer and vectors of this ring, with the lengths that
            // were written; the ring is borrowed exclusively and its boxes do
            // not move. Each vector covers a `&'b [u8]`, still borrowed because
            // the turn carries 'b. The kernel only reads all of these, and
            // writes `msg_len` in the headers.
            let sent = unsafe {
                libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, flags as _)
            };
            match usize::try_from(sent) {
                Ok(sent) => break sent,
                Err(_) => {
                    let error = Error::last_os_error();
                    if error.kind() != ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        };
        self.sent += sent;
        Ok(sent)
    }

    /// Points the headers of the pending messages at their parts.
    fn link(&mut self) {
        let pending = self.sent..self.pushed;
        let ring = &mut *self.ring;
        let (headers, entries) = (&mut ring.headers, &ring.entries);
        let parts = ring.addresses.iter_mut().zip(&mut ring.controls);
        let all = headers.iter_mut().zip(entries.iter()).zip(parts);
        let vectors = ring.vectors.as_mut_ptr();
        for ((header, entry), (address, control)) in all.take(pending.end).skip(pending.start) {
            *header = EMPTY_HEADER;
            let message = &mut header.msg_hdr;
            if entry.address_octets > 0 {
                message.msg_name = address.as_mut_ptr();
                message.msg_namelen = entry.address_octets;
            }
            message.msg_iov = vectors.wrapping_add(entry.first);
            message.msg_iovlen = entry.slices;
            if entry.control_octets > 0 {
                message.msg_control = control.as_mut_ptr();
                message.msg_controllen = entry.control_octets;
            }
        }
    }
}

impl fmt::Debug for SendTurn<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendTurn")
            .field("family", &self.family)
            .field("pushed", &self.pushed)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

/// The ring has no room for a further message or its slices.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the send ring is full")]
pub struct RingFull;

/// Where the parts of a pushed message are.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    first: usize,
    slices: usize,
    address_octets: libc::socklen_t,
    control_octets: usize,
}

/// Octets of control messages that the kernel wrote. The field is a `size_t` in
/// glibc and a `socklen_t` in musl.
#[allow(
    clippy::unnecessary_cast,
    reason = "the type of the field differs between C libraries"
)]
const fn control_octets(header: &libc::mmsghdr) -> usize {
    header.msg_hdr.msg_controllen as usize
}

/// A header that points at nothing.
// SAFETY: `mmsghdr` holds integers and raw pointers, for which all zeros is a
// valid value.
const EMPTY_HEADER: libc::mmsghdr = unsafe { std::mem::zeroed() };

/// A vector over nothing.
const EMPTY_VECTOR: libc::iovec = libc::iovec {
    iov_base: ptr::null_mut(),
    iov_len: 0,
};

/// The front of a message that stays out of the caller's slice.
pub(crate) type Prefix = [u8; PREFIX_OCTETS];

/// Octets of an IPv4 header without options.
const PREFIX_OCTETS: usize = 20;

/// `UIO_MAXIOV`: the kernel takes no more messages per call.
const MESSAGES_MAX: usize = 1024;
