//! The device side of a worker: one TUN queue, in batches.
//!
//! With a virtio header the kernel leaves two things to us and we to it: a transport checksum that
//! holds the pseudo-header sum only, and the cutting of a packet of up to 64 KiB. Reading: partial
//! checksums of single packets are completed at once, those of super-packets when they are cut.
//! Writing: packets in a row that were one stream become one super-packet (`gso`); the payload is
//! gathered by the kernel from where the socket put it. A packet that arrived with an unfinished
//! checksum (from a tunnel device of this same host) is handed over as unfinished, so that it is
//! finished or trusted where the kernel knows better.

use std::io::{self, ErrorKind, IoSlice};

use warren_core::batch::{Batch, Frame, Link};
use warren_core::gso::merge::{Merge, MergeRun, Offer};
use warren_core::gso::split::{MAX_HEADER_OCTETS, Splitter};
use warren_core::gso::{ChecksumState, Offload, PartialChecksum, SegmentKind, transport_checksum};
use warren_core::packet::{Fragment, Packet};
use warren_core::units::Family;
use warren_core::verdict::{Tally, Verdict};
use warren_core::wire::checksum::Sum;
use warren_core::wire::{UdpHeader, VirtioNetHeader, ip_protocol};
use zerocopy::IntoBytes;

use crate::counters::{DeviceCounters, ErrnoCounters};
use crate::tun::Tun;

/// Why reading stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReadStop {
    /// The queue is empty: wait for the next event.
    Empty,
    /// The batch is full, the limit is reached, or a super-packet wants to leave: there may be more.
    More,
}

/// Reads up to `limit` packets into `batch`, which must have room for a super-packet and the
/// virtio header.
///
/// # Errors
///
/// The kernel's, `WouldBlock` aside: the device is gone.
pub fn read_batch(
    tun: &Tun,
    batch: &mut Batch,
    limit: usize,
    counters: &mut DeviceCounters,
) -> io::Result<ReadStop> {
    let header_octets = tun.vnet_header_octets();
    for _ in 0..limit {
        let Some(room) = batch.vacancy() else { break };
        let octets = match tun.recv(room) {
            Ok(octets) => octets,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(ReadStop::Empty),
            Err(error) => return Err(error),
        };
        let read = room.get(..octets).unwrap_or_default();
        let offload = match header_octets {
            0 => Offload::NONE,
            _ => match VirtioNetHeader::parse(read) {
                Ok((offload, _)) => offload,
                Err(_) => {
                    counters.read_damaged += 1;
                    continue;
                }
            },
        };
        let Some(mut frame) = batch.commit(octets, Link::LOCAL) else {
            break;
        };
        if header_octets > 0 && !frame.pull(header_octets) {
            // A header was parsed, so at least its octets are there.
            continue;
        }
        counters.read.count(frame.bytes().len());
        match (offload.segments, offload.partial_checksum) {
            (None, None) => {}
            (None, Some(partial)) => {
                // The range was checked with the header.
                let _ = partial.complete(frame.bytes_mut());
            }
            (Some(_), _) => {
                frame.set_offload(offload);
                counters.read_super += 1;
                return Ok(ReadStop::More);
            }
        }
    }
    Ok(ReadStop::More)
}

/// Writes batches to the device.
#[derive(Debug)]
pub struct DeviceWriter {
    merge_tcp: bool,
    merge_udp: bool,
    /// The device's MTU: a longer packet was joined on the way and is handed over as uncut.
    mtu: usize,
    /// Indices of the frames of the run in progress.
    members: Vec<usize>,
}

/// Where the outcome of writing is counted.
#[derive(Debug)]
pub struct WriteCounters<'c> {
    /// Frames that the kernel took.
    pub written: &'c mut Tally,
    /// Calls that took them.
    pub calls: &'c mut u64,
    /// Frames that it did not take.
    pub drops: &'c mut ErrnoCounters,
}

/// Packets merged into one at most: one system call takes 1024 slices, and 64 already save almost
/// all of the calls.
const MAX_RUN: usize = 64;

impl DeviceWriter {
    /// For a device with that MTU; packets are merged only where it has a virtio header and
    /// `merge` allows it.
    #[must_use]
    pub fn new(tun: &Tun, mtu: u16, merge: bool) -> Self {
        let merge = merge && tun.vnet_header_octets() > 0;
        Self {
            merge_tcp: merge,
            merge_udp: merge,
            mtu: usize::from(mtu),
            members: Vec::with_capacity(MAX_RUN),
        }
    }

    /// Writes the frames of `batch` whose verdict is `wanted`, in order.
    pub fn write_batch(
        &mut self,
        tun: &Tun,
        batch: &mut Batch,
        wanted: fn(Verdict) -> bool,
        counters: &mut WriteCounters<'_>,
    ) {
        let mut merge = Merge::new();
        for index in 0..batch.len() {
            let Some(frame) = batch.frame(index).filter(|frame| wanted(frame.verdict)) else {
                continue;
            };
            let offer = if self.merge_tcp
                && frame.offload == Offload::NONE
                && frame.bytes.len() <= self.mtu
            {
                merge.offer(frame.bytes)
            } else {
                Offer::Unmergeable(merge.finish())
            };
            match offer {
                Offer::Joined => self.members.push(index),
                Offer::Began(finished) => {
                    self.write_run(tun, batch, finished, counters);
                    self.members.push(index);
                }
                Offer::Unmergeable(finished) => {
                    self.write_run(tun, batch, finished, counters);
                    self.write_single(tun, batch, index, counters);
                }
            }
            if self.members.len() >= MAX_RUN {
                let run = merge.finish();
                self.write_run(tun, batch, run, counters);
            }
        }
        let run = merge.finish();
        self.write_run(tun, batch, run, counters);
    }

    fn write_run(
        &mut self,
        tun: &Tun,
        batch: &mut Batch,
        run: Option<MergeRun>,
        counters: &mut WriteCounters<'_>,
    ) {
        let Some(run) = run else { return };
        let apart = run.count == 1 || (run.kind == SegmentKind::Udp && !self.merge_udp);
        if apart {
            for &index in &self.members {
                if let Some(frame) = batch.frame(index) {
                    let outcome = write_packet(tun, frame.bytes, &frame.offload);
                    counters.count(outcome, frame.bytes.len());
                }
            }
        } else {
            match write_merged(tun, batch, &run, &self.members) {
                Ok(()) => {
                    *counters.calls += 1;
                    for frame in self.members.iter().filter_map(|&index| batch.frame(index)) {
                        counters.written.count(frame.bytes.len());
                    }
                }
                Err(error) => {
                    if error.raw_os_error() == Some(libc::EINVAL) && run.kind == SegmentKind::Udp {
                        // Kernels before 6.2 do not take UDP super-packets; this run is lost, the
                        // next ones go apart.
                        self.merge_udp = false;
                    }
                    counters.drops.count(&error, self.members.len() as u64);
                }
            }
        }
        self.members.clear();
    }

    /// Writes one frame that is no candidate for merging: its checksum has not been looked at.
    fn write_single(
        &self,
        tun: &Tun,
        batch: &mut Batch,
        index: usize,
        counters: &mut WriteCounters<'_>,
    ) {
        let Some(mut frame) = batch.frame_mut(index) else {
            return;
        };
        if let Ok(read) = Packet::parse(frame.bytes()) {
            self.finish_offload(&mut frame, &read);
            let partial = frame.offload().partial_checksum;
            if let Some(partial) = partial.filter(|_| tun.vnet_header_octets() == 0)
                && frame.offload().segments.is_none()
            {
                let _ = partial.complete(frame.bytes_mut());
                frame.set_offload(Offload::NONE);
            }
        }
        let Some(frame) = batch.frame(index) else {
            return;
        };
        let outcome = match frame.offload.segments {
            Some((kind, size)) if tun.vnet_header_octets() == 0 => {
                write_segments(tun, frame.bytes, kind, size)
            }
            _ => write_packet(tun, frame.bytes, &frame.offload),
        };
        counters.count(outcome, frame.bytes.len());
    }

    /// Completes what is known about a packet that did not come cut and finished: one that the
    /// underlay joined, or whose checksum a device of this host was to finish.
    fn finish_offload(&self, frame: &mut Frame<'_>, read: &Packet) {
        let mut offload = frame.offload();
        let header_octets = usize::from(header_octets(frame.bytes(), read));
        let joined = offload.segments.is_none()
            && read.total_octets > self.mtu
            && read.flow.protocol == ip_protocol::TCP
            && read.fragment == Fragment::Whole;
        if joined {
            // A raw socket does not say how the packet was cut; what fits the device is right.
            let size = self.mtu.saturating_sub(header_octets);
            offload.segments = u16::try_from(size)
                .ok()
                .filter(|size| *size > 0)
                .map(|size| (SegmentKind::Tcp, size));
        }
        if offload.segments.is_some() {
            offload.partial_checksum = set_pseudo_checksum(frame.bytes_mut(), read);
        } else if let ChecksumState::Partial(partial) = transport_checksum(frame.bytes(), read) {
            offload.partial_checksum = Some(partial);
        }
        frame.set_offload(offload);
    }
}

impl WriteCounters<'_> {
    fn count(&mut self, outcome: io::Result<()>, octets: usize) {
        match outcome {
            Ok(()) => {
                *self.calls += 1;
                self.written.count(octets);
            }
            Err(error) => self.drops.count(&error, 1),
        }
    }
}

/// Writes the run of `members` as one super-packet.
fn write_merged(tun: &Tun, batch: &mut Batch, run: &MergeRun, members: &[usize]) -> io::Result<()> {
    let first = members.first().copied().unwrap_or_default();
    let mut frame = batch.frame_mut(first).ok_or(ErrorKind::InvalidInput)?;
    let offload = run
        .write_header(frame.bytes_mut())
        .ok_or(ErrorKind::InvalidInput)?;
    let family = family_of(frame.bytes());
    let headers = u16::try_from(run.header_octets).map_err(|_| ErrorKind::InvalidInput)?;
    let header = VirtioNetHeader::new(&offload, family, headers);
    let mut slices = [IoSlice::new(&[]); MAX_RUN + 1];
    let mut used = 0;
    let mut push = |slice| {
        if let Some(place) = slices.get_mut(used) {
            *place = IoSlice::new(slice);
            used += 1;
        }
    };
    push(header.as_bytes());
    let frames = members.iter().filter_map(|&index| batch.frame(index));
    for (position, frame) in frames.enumerate() {
        let from = if position == 0 { 0 } else { run.header_octets };
        push(frame.bytes.get(from..).unwrap_or_default());
    }
    tun.send_vectored(slices.get(..used).unwrap_or_default())
}

/// Writes one whole packet, with the virtio header that the device wants before it.
///
/// # Errors
///
/// The kernel's; the packet is lost then.
fn write_packet(tun: &Tun, packet: &[u8], offload: &Offload) -> io::Result<()> {
    if tun.vnet_header_octets() == 0 {
        return tun.send(packet);
    }
    let headers = match offload.segments {
        Some(_) => Packet::parse(packet).map_or(0, |read| header_octets(packet, &read)),
        None => 0,
    };
    let header = VirtioNetHeader::new(offload, family_of(packet), headers);
    tun.send_vectored(&[IoSlice::new(header.as_bytes()), IoSlice::new(packet)])
}

/// Cuts a super-packet for a device that takes none.
fn write_segments(tun: &Tun, packet: &[u8], kind: SegmentKind, size: u16) -> io::Result<()> {
    let splitter = Splitter::new(packet, kind, size).map_err(|_| ErrorKind::InvalidInput)?;
    let mut room = [0; MAX_HEADER_OCTETS];
    for index in 0..splitter.count() {
        let header = room
            .get_mut(..splitter.header_octets())
            .ok_or(ErrorKind::InvalidInput)?;
        splitter
            .write_header(index, header)
            .ok_or(ErrorKind::InvalidInput)?;
        let payload = packet.get(splitter.payload(index)).unwrap_or_default();
        tun.send_vectored(&[IoSlice::new(header), IoSlice::new(payload)])?;
    }
    Ok(())
}

/// Writes the pseudo-header sum, which is what a packet that is still to be cut carries.
fn set_pseudo_checksum(packet: &mut [u8], read: &Packet) -> Option<PartialChecksum> {
    let offset = match read.flow.protocol {
        ip_protocol::TCP => 16,
        ip_protocol::UDP => 6,
        _ => return None,
    };
    let addresses = match read.family() {
        Family::V4 => packet.get(12..20)?,
        Family::V6 => packet.get(8..40)?,
    };
    let octets = u16::try_from(read.total_octets.checked_sub(read.transport_offset)?).ok()?;
    let sum = Sum::ZERO
        .octets(addresses)
        .word(u16::from(read.flow.protocol))
        .word(octets);
    let place = read.transport_offset + usize::from(offset);
    packet
        .get_mut(place..place + 2)?
        .copy_from_slice(&sum.partial().to_be_bytes());
    Some(PartialChecksum {
        start: u16::try_from(read.transport_offset).ok()?,
        offset,
    })
}

/// Octets of the network and transport headers of a TCP or UDP packet.
fn header_octets(packet: &[u8], read: &Packet) -> u16 {
    let transport = packet.get(read.transport_offset..).unwrap_or_default();
    let octets = match transport.get(12) {
        Some(offset) if read.flow.protocol == ip_protocol::TCP => usize::from(offset >> 4) * 4,
        _ => size_of::<UdpHeader>(),
    };
    u16::try_from(read.transport_offset + octets).unwrap_or_default()
}

fn family_of(packet: &[u8]) -> Family {
    match packet.first() {
        Some(octet) if octet >> 4 == 6 => Family::V6,
        _ => Family::V4,
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
