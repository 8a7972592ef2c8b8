//! Frames that leave by one socket, as few messages as possible.
//!
//! The kernel cuts a message into datagrams of equal size (`UDP_SEGMENT`): one call, one route
//! lookup, one pass through the stack for up to 64 of them, worth almost four times the throughput.
//! Two things make such a message: a run of frames of one size to one peer, gathered one slice
//! each; and a super-packet, whose segments are gathered two slices each, a header made here (the
//! encapsulation and the inner headers) and the payload where the device put it.
//!
//! Where the kernel can not cut, or is told not to, each datagram is a message of its own.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use warren_core::batch::{Batch, FrameRef, Link, Transport};
use warren_core::gso::split::{MAX_HEADER_OCTETS, Splitter};

use crate::udp::{Family, SendControl, SendRing, SendTurn, Transmit};

/// Builds messages from frames; owns the arrays that it takes.
#[derive(Debug)]
pub struct Trains {
    ring: SendRing,
    headers: Box<[u8]>,
    /// What each message of the turn carries.
    carried: Vec<Carried>,
    max_segments: usize,
}

/// What one turn hands over.
#[derive(Debug)]
pub struct TrainTurn<'t, 'b> {
    /// The messages.
    pub turn: SendTurn<'t, 'b>,
    /// What each message carries, in the order of the messages.
    pub carried: &'t [Carried],
}

/// The frames of one message.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Carried {
    /// Frames; a super-packet counts in its first message only.
    pub frames: u64,
    /// Octets of those frames.
    pub octets: u64,
}

/// The most datagrams in one message that every kernel with `UDP_SEGMENT` takes.
pub const MAX_SEGMENTS: usize = 64;

/// The most octets of payload in one message: an IPv4 packet without its headers.
const MAX_MESSAGE_OCTETS: usize = 65_507;

/// Messages and slices of one turn. A super-packet of 64 KiB at the smallest usual segment (536) is
/// 122 segments, two slices each.
const MESSAGES: usize = 256;
const SLICES: usize = 1024;
const HEADER_OCTETS: usize = 512 * 96;

impl Trains {
    /// With `segmentation` the kernel cuts; without, each datagram is a message.
    #[must_use]
    pub fn new(segmentation: bool) -> Self {
        Self {
            ring: SendRing::new(MESSAGES, SLICES),
            headers: vec![0; HEADER_OCTETS].into(),
            carried: Vec::with_capacity(MESSAGES),
            max_segments: if segmentation { MAX_SEGMENTS } else { 1 },
        }
    }

    /// Stops the use of segmentation: the device under the socket can not do it.
    pub const fn disable_segmentation(&mut self) {
        self.max_segments = 1;
    }

    /// Whether the kernel is asked to cut.
    #[must_use]
    pub const fn has_segmentation(&self) -> bool {
        self.max_segments > 1
    }

    /// Sends the frames `order` of `batch`, which all leave by one socket of `family`, in that
    /// order; without `segmentation`, which only UDP sockets have, each datagram is a message.
    /// `send` is called for each turn of the ring. Returns how many frames could not be
    /// made into messages: super-packets that are not what their mark says.
    pub fn send(
        &mut self,
        family: Family,
        segmentation: bool,
        batch: &Batch,
        order: &[usize],
        mut send: impl FnMut(TrainTurn<'_, '_>),
    ) -> u64 {
        let mut malformed = 0;
        let mut cursor = Cursor::default();
        while cursor.frame < order.len() {
            self.carried.clear();
            let mut turn = self.ring.turn(family);
            let mut filling = Filling {
                turn: &mut turn,
                carried: &mut self.carried,
                headers: &mut self.headers,
                max_segments: if segmentation { self.max_segments } else { 1 },
            };
            let before = cursor;
            while let Some(&index) = order.get(cursor.frame) {
                let Some(frame) = batch.frame(index) else {
                    cursor.next_frame();
                    continue;
                };
                let full = match frame.offload.segments {
                    None => filling.run(batch, order, &mut cursor),
                    Some((kind, size)) => {
                        let inner = frame.bytes.get(frame.pushed..).unwrap_or_default();
                        match Splitter::new(inner, kind, size) {
                            Ok(splitter) => {
                                filling.super_packet(&frame, inner, &splitter, &mut cursor)
                            }
                            Err(_) => {
                                malformed += 1;
                                cursor.next_frame();
                                false
                            }
                        }
                    }
                };
                if full {
                    break;
                }
            }
            if turn.pending() > 0 {
                send(TrainTurn {
                    turn,
                    carried: &self.carried,
                });
            } else if before == cursor {
                // An empty ring takes any single message; never loop without progress.
                malformed += 1;
                cursor.next_frame();
            }
        }
        malformed
    }
}

/// Where building has got to: the frame in the order, and the segment of a super-packet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Cursor {
    frame: usize,
    segment: usize,
}

impl Cursor {
    const fn next_frame(&mut self) {
        self.frame += 1;
        self.segment = 0;
    }
}

/// One turn of the ring being filled.
struct Filling<'f, 'r, 'b> {
    turn: &'f mut SendTurn<'r, 'b>,
    carried: &'f mut Vec<Carried>,
    headers: &'b mut [u8],
    max_segments: usize,
}

impl<'b> Filling<'_, '_, 'b> {
    /// Adds the run of frames at the cursor that make one message. Returns whether the ring is
    /// full and nothing was added.
    fn run(&mut self, batch: &'b Batch, order: &[usize], cursor: &mut Cursor) -> bool {
        let at = |position: usize| {
            let frame = order.get(position).and_then(|&index| batch.frame(index))?;
            frame.offload.segments.is_none().then_some(frame)
        };
        let Some(first) = at(cursor.frame) else {
            return false;
        };
        let size = first.bytes.len();
        let mut count = 1;
        let mut octets = size;
        while count < self.max_segments && size > 0 {
            let Some(next) = at(cursor.frame + count) else {
                break;
            };
            let fits = next.bytes.len() <= size && octets + next.bytes.len() <= MAX_MESSAGE_OCTETS;
            if !fits || !same_way(first.link, next.link) {
                break;
            }
            count += 1;
            octets += next.bytes.len();
            if next.bytes.len() < size {
                // Only the last datagram may be shorter.
                break;
            }
        }
        let transmit = transmit(first.link, if count > 1 { size } else { 0 });
        let slices = (0..count)
            .filter_map(|n| at(cursor.frame + n))
            .map(|frame| frame.bytes);
        if self.turn.push(&transmit, slices).is_err() {
            return true;
        }
        self.carried.push(Carried {
            frames: count as u64,
            octets: octets as u64,
        });
        cursor.frame += count;
        false
    }

    /// Adds the messages of a super-packet from the cursor's segment on. Returns whether the ring
    /// or the headers are full.
    fn super_packet(
        &mut self,
        frame: &FrameRef<'b>,
        inner: &'b [u8],
        splitter: &Splitter<'_>,
        cursor: &mut Cursor,
    ) -> bool {
        let shim = frame.bytes.get(..frame.pushed).unwrap_or_default();
        let head_octets = shim.len() + splitter.header_octets();
        let largest = shim.len() + splitter.largest_octets();
        let per_message = (MAX_MESSAGE_OCTETS / largest.max(1)).clamp(1, self.max_segments);
        while cursor.segment < splitter.count() {
            let count = per_message.min(splitter.count() - cursor.segment);
            let headers = std::mem::take(&mut self.headers);
            let Some((mine, rest)) = headers.split_at_mut_checked(count * head_octets) else {
                return true;
            };
            self.headers = rest;
            for (n, head) in mine.chunks_exact_mut(head_octets).enumerate() {
                let (front, back) = head.split_at_mut(shim.len());
                front.copy_from_slice(shim);
                // The segment exists and the slice has the octets that the splitter asks for.
                let _ = splitter.write_header(cursor.segment + n, back);
            }
            let mine: &'b [u8] = mine;
            let transmit = transmit(frame.link, if count > 1 { largest } else { 0 });
            let slices = mine
                .chunks_exact(head_octets)
                .enumerate()
                .flat_map(|(n, head)| {
                    let payload = inner
                        .get(splitter.payload(cursor.segment + n))
                        .unwrap_or_default();
                    [head, payload]
                });
            if self.turn.push(&transmit, slices).is_err() {
                return true;
            }
            self.carried.push(match cursor.segment {
                0 => Carried {
                    frames: 1,
                    octets: frame.bytes.len() as u64,
                },
                _ => Carried::default(),
            });
            cursor.segment += count;
        }
        cursor.next_frame();
        false
    }
}

/// Whether two frames may travel in one message: same peer, same traffic class, same TTL.
fn same_way(a: &Link, b: &Link) -> bool {
    let port = |link: &Link| match link.transport {
        Transport::Udp { remote_port, .. } => remote_port,
        Transport::Ip { .. } => 0,
    };
    a.remote == b.remote
        && a.traffic_class == b.traffic_class
        && a.hop_limit == b.hop_limit
        && port(a) == port(b)
}

fn transmit(link: &Link, segment_octets: usize) -> Transmit {
    let port = match link.transport {
        Transport::Udp { remote_port, .. } => remote_port,
        Transport::Ip { .. } => 0,
    };
    Transmit {
        peer: Some(SocketAddr::new(link.remote, port)),
        control: SendControl {
            source: None,
            interface: 0,
            tos: Some(link.traffic_class).filter(|tos| *tos > 0),
            ttl: Some(link.hop_limit).filter(|ttl| *ttl > 0),
            segment_octets: u16::try_from(segment_octets).ok().and_then(NonZeroU16::new),
        },
    }
}

const _: () = assert!(HEADER_OCTETS > MAX_SEGMENTS * (MAX_HEADER_OCTETS + 22));

#[cfg(test)]
#[path = "train_tests.rs"]
mod tests;
