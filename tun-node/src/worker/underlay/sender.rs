//! Sending what leaves by one socket: as trains, and super-packets in IP by the offload.

use std::io;

use tracing::warn;
use warren_core::batch::{Batch, Link};
use warren_core::gso::Offload;
use warren_core::gso::merge::{Merge, MergeRun, Offer};
use warren_core::verdict::Tally;
use warren_core::wire::ip_protocol;

use super::ways::{Way, Ways};
use super::{Kind, Receiver, forget_errors};
use crate::counters::UnderlayCounters;
use crate::datapath::train::Trains;
use crate::raw::offload::{self, Outcome, ROW_MAX, RawOffload};
use crate::udp::{self, SocketCounters};

/// What sending needs besides sockets; made once.
#[derive(Debug)]
pub(super) struct Sender {
    trains: Trains,
    /// For super-packets in IP, where the kernel can cut them.
    pub(super) offload: Option<RawOffload>,
    /// Frames still to be sent: by which socket, and which frame.
    pub(super) pending: Vec<(Way, usize)>,
    /// The frames of one socket.
    order: Vec<usize>,
}

impl Sender {
    pub(super) fn new(frames: usize, segmentation: bool) -> Self {
        Self {
            trains: Trains::new(segmentation),
            offload: None,
            pending: Vec::with_capacity(frames),
            order: Vec::with_capacity(frames),
        }
    }

    /// Sends all pending frames that leave by `way`, in order.
    pub(super) fn all_of(
        &mut self,
        way: Way,
        batch: &Batch,
        receivers: &[Receiver],
        ways: &Ways,
        counters: &mut UnderlayCounters,
    ) {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        self.pending.retain(|(by, index)| {
            if *by == way {
                order.push(*index);
            }
            *by != way
        });
        if self.offload.is_some() && matches!(way.kind, Kind::Ip4 | Kind::Ip6) {
            self.by_offload(way, batch, &order, receivers, ways, counters);
        } else {
            self.as_messages(way, batch, &order, receivers, ways, counters);
        }
        self.order = order;
    }

    /// Sends the frames `order`, which leave by a raw socket, in that order: super-packets and datagrams in
    /// a row by the offload, what is none for it as messages.
    fn by_offload(
        &mut self,
        way: Way,
        batch: &Batch,
        order: &[usize],
        receivers: &[Receiver],
        ways: &Ways,
        counters: &mut UnderlayCounters,
    ) {
        let mut merge = Merge::new();
        // The first frame that has not left, and the first of the run in progress.
        let (mut next, mut first) = (0, 0);
        let mut octets = 0;
        let mut asked: Option<(&Link, bool)> = None;
        for at in 0..=order.len() {
            let frame = order.get(at).and_then(|&index| batch.frame(index));
            let is_super = frame.is_some_and(|frame| frame.offload.segments.is_some());
            let may_join = frame.as_ref().is_some_and(|frame| {
                // Most leave on the link of the one before.
                let known = asked.filter(|(link, _)| *link == frame.link);
                let (_, takes) = known.unwrap_or_else(|| (frame.link, self.takes_rows(frame.link)));
                asked = Some((frame.link, takes));
                takes && frame.offload == Offload::NONE && is_datagram(frame.bytes)
            });
            let offer = match frame {
                Some(frame) if may_join => {
                    let begun = order.get(first).and_then(|&index| batch.frame(index));
                    let goes_on = at - first < ROW_MAX
                        && octets + frame.bytes.len() < ROW_OCTETS
                        && begun.is_some_and(|begun| begun.link == frame.link);
                    let ended = if goes_on { None } else { merge.finish() };
                    match (ended, merge.offer(frame.bytes)) {
                        (Some(run), Offer::Began(_)) => Offer::Began(Some(run)),
                        (Some(run), _) => Offer::Unmergeable(Some(run)),
                        (None, offer) => offer,
                    }
                }
                _ => Offer::Unmergeable(merge.finish()),
            };
            let (Offer::Began(run) | Offer::Unmergeable(run)) = offer else {
                octets += frame.map_or(0, |frame| frame.bytes.len());
                continue;
            };
            if let Some(run) = run.filter(|run| run.count > 1) {
                let row = order.get(first..at).unwrap_or_default();
                let before = order.get(next..first).unwrap_or_default();
                self.as_messages(way, batch, before, receivers, ways, counters);
                if !self.in_a_row(batch, &run, row, counters) {
                    self.as_messages(way, batch, row, receivers, ways, counters);
                }
                next = at;
            }
            first = at;
            octets = frame.map_or(0, |frame| frame.bytes.len());
            if is_super {
                let before = order.get(next..at).unwrap_or_default();
                let whole = order.get(at..=at).unwrap_or_default();
                self.as_messages(way, batch, before, receivers, ways, counters);
                if !self.offloaded(batch, whole, counters) {
                    self.as_messages(way, batch, whole, receivers, ways, counters);
                }
                next = at + 1;
            }
        }
        let rest = order.get(next..).unwrap_or_default();
        self.as_messages(way, batch, rest, receivers, ways, counters);
    }

    /// Whether datagrams may leave on that link in a row.
    fn takes_rows(&mut self, link: &Link) -> bool {
        let offload = self.offload.as_mut();
        offload.is_some_and(|offload| offload.takes_rows(link))
    }

    /// Sends datagrams in a row that are to leave by a raw socket as one, if the kernel cuts it there.
    fn in_a_row(
        &mut self,
        batch: &Batch,
        run: &MergeRun,
        row: &[usize],
        counters: &mut UnderlayCounters,
    ) -> bool {
        let Some(offload) = &mut self.offload else {
            return false;
        };
        let frames = row.iter().filter_map(|&index| batch.frame(index));
        let outcome = offload.send_row(run, frames);
        let octets = row.iter().filter_map(|&index| batch.frame(index));
        let octets: usize = octets.map(|frame| frame.bytes.len()).sum();
        self.handed_over(outcome, row.len() as u64, octets as u64, counters)
    }

    /// Sends a super-packet that is to leave by a raw socket, if the kernel cuts it there.
    fn offloaded(
        &mut self,
        batch: &Batch,
        whole: &[usize],
        counters: &mut UnderlayCounters,
    ) -> bool {
        let frame = whole.first().and_then(|&index| batch.frame(index));
        let (Some(frame), Some(offload)) = (frame, &mut self.offload) else {
            return false;
        };
        let outcome = offload.send(&frame);
        self.handed_over(outcome, 1, frame.bytes.len() as u64, counters)
    }

    /// Counts what the offload made of frames; whether they are done with.
    fn handed_over(
        &mut self,
        outcome: Outcome,
        packets: u64,
        octets: u64,
        counters: &mut UnderlayCounters,
    ) -> bool {
        match outcome {
            Outcome::Declined => return false,
            Outcome::Sent => counters.sent.add(Tally { packets, octets }),
            Outcome::Failed(error) => {
                counters.send_drops.count(&error, packets);
                if !offload::is_passing(&error) {
                    warn!(%error, "no segmentation offload for IP-in-IP any more");
                    self.offload = None;
                }
            }
        }
        counters.send_messages += 1;
        true
    }

    /// Sends the frames `order`, which leave by `way`, as messages of its socket.
    fn as_messages(
        &mut self,
        way: Way,
        batch: &Batch,
        order: &[usize],
        receivers: &[Receiver],
        ways: &Ways,
        counters: &mut UnderlayCounters,
    ) {
        let (udp, raw) = ways.sockets(way, receivers);
        let family = match way.kind {
            Kind::Udp4 | Kind::Ip4 => udp::Family::Ipv4,
            Kind::Udp6 | Kind::Ip6 => udp::Family::Ipv6,
        };
        // A raw socket can not cut a message, and what is cut is not fragmented too.
        let segmentation = udp.is_some() && !way.fragments;
        let mut no_segmentation = false;
        let malformed = self
            .trains
            .send(family, segmentation, batch, order, |mut turn| {
                let mut sent = turn
                    .carried
                    .iter()
                    .fold(Tally::default(), |mut sum, carried| {
                        sum.packets += carried.frames;
                        sum.octets += carried.octets;
                        sum
                    });
                counters.send_messages += turn.carried.len() as u64;
                let mut network = SocketCounters::default();
                let carried = turn.carried;
                let refused = |index: usize, error: &io::Error| {
                    // The device under the socket can not do it, whatever the kernel can.
                    no_segmentation |= error.raw_os_error() == Some(libc::EIO);
                    let carried = carried.get(index).copied().unwrap_or_default();
                    if carried.frames == 0 {
                        counters.sent_partly += 1;
                    }
                    counters.send_drops.count(error, carried.frames);
                    sent.packets -= carried.frames;
                    sent.octets -= carried.octets;
                };
                match (udp, raw) {
                    (Some(udp), _) => udp.send_batch(&mut turn.turn, &mut network, refused),
                    (None, Some(raw)) => raw.send_batch(&mut turn.turn, &mut network, refused),
                    (None, None) => {}
                }
                counters.sent.add(sent);
                counters.network_errors += network.reported;
                if network.reported > 0 {
                    match (udp, raw) {
                        (Some(udp), _) => forget_errors(|| udp.next_error(&mut [])),
                        (None, Some(raw)) => forget_errors(|| raw.next_error(&mut [])),
                        (None, None) => {}
                    }
                }
            });
        counters.send_malformed += malformed;
        if no_segmentation {
            self.trains.disable_segmentation();
        }
    }
}

/// Whether an inner packet is of UDP, without options or extension headers: of what else there is no row.
const fn is_datagram(packet: &[u8]) -> bool {
    match packet {
        [0x45, _, _, _, _, _, _, _, _, protocol, ..] => *protocol == ip_protocol::UDP,
        [0x60..=0x6f, _, _, _, _, _, protocol, ..] => *protocol == ip_protocol::UDP,
        _ => false,
    }
}

/// Octets of a row, with room for what is in front of it in an IP packet.
const ROW_OCTETS: usize = 65_000;
