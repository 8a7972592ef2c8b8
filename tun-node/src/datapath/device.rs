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

use warren_core::batch::{Batch, Link};
use warren_core::gso::merge::{Merge, MergeRun, Offer};
use warren_core::gso::{ChecksumState, Offload, SegmentKind, transport_checksum};
use warren_core::packet::Packet;
use warren_core::units::Family;
use warren_core::verdict::Verdict;
use warren_core::wire::VirtioNetHeader;
use zerocopy::IntoBytes;

use crate::tun::Tun;

/// What a device read and wrote, and what was lost at it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DeviceCounters {
    /// Packets read, a super-packet once.
    pub read: u64,
    /// Super-packets among them.
    pub read_super: u64,
    /// Packets read and dropped because their virtio header was impossible.
    pub bad_offload: u64,
    /// Frames handed to the kernel.
    pub written: u64,
    /// System calls that took them: a merged run is one.
    pub writes: u64,
    /// Frames lost because the kernel had no room.
    pub write_full: u64,
    /// Frames that the kernel refused as invalid.
    pub write_invalid: u64,
    /// Frames lost for another reason: the device is down or gone.
    pub write_failed: u64,
}

/// Why reading stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReadStop {
    /// The queue is empty: wait for the next event.
    Empty,
    /// The batch is full, the limit is reached, or a super-packet wants to leave: there may be more.
    More,
}

/// Reads up to `limit` packets into `batch`.
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
        counters.read += 1;
        let read = room.get(..octets).unwrap_or_default();
        let offload = match header_octets {
            0 => Offload::NONE,
            _ => match VirtioNetHeader::parse(read) {
                Ok((offload, _)) => offload,
                Err(_) => {
                    counters.bad_offload += 1;
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
    /// Indices of the frames of the run in progress.
    members: Vec<usize>,
}

/// Packets merged into one at most: one system call takes 1024 slices, and 64 already save almost
/// all of the calls.
const MAX_RUN: usize = 64;

impl DeviceWriter {
    /// For a device; packets are merged only where it has a virtio header and `merge` allows it.
    #[must_use]
    pub fn new(tun: &Tun, merge: bool) -> Self {
        let merge = merge && tun.vnet_header_octets() > 0;
        Self {
            merge_tcp: merge,
            merge_udp: merge,
            members: Vec::with_capacity(MAX_RUN),
        }
    }

    /// Writes the frames of `batch` for which `wanted` says so, in order.
    pub fn write_batch(
        &mut self,
        tun: &Tun,
        batch: &mut Batch,
        wanted: fn(Verdict) -> bool,
        counters: &mut DeviceCounters,
    ) {
        let mut merge = Merge::new();
        for index in 0..batch.len() {
            let Some(frame) = batch.frame(index).filter(|frame| wanted(frame.verdict)) else {
                continue;
            };
            if !self.merge_tcp || frame.offload != Offload::NONE {
                let run = merge.finish();
                self.write_run(tun, batch, run, counters);
                write_single(tun, batch, index, counters);
                continue;
            }
            let offer = merge.offer(frame.bytes);
            match offer {
                Offer::Joined => self.members.push(index),
                Offer::Began(finished) => {
                    self.write_run(tun, batch, finished, counters);
                    self.members.push(index);
                }
                Offer::Unmergeable(finished) => {
                    self.write_run(tun, batch, finished, counters);
                    write_single(tun, batch, index, counters);
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
        counters: &mut DeviceCounters,
    ) {
        let Some(run) = run else { return };
        let apart = run.count == 1 || (run.kind == SegmentKind::Udp && !self.merge_udp);
        if apart {
            for &index in &self.members {
                write_plain(tun, batch, index, counters);
            }
        } else if let Err(error) = write_merged(tun, batch, &run, &self.members) {
            if error.raw_os_error() == Some(libc::EINVAL) && run.kind == SegmentKind::Udp {
                // Kernels before 6.2 do not take UDP super-packets; this run is lost, the next
                // ones go apart.
                self.merge_udp = false;
            }
            count_failure(counters, &error, self.members.len());
        } else {
            counters.writes += 1;
            counters.written += self.members.len() as u64;
        }
        self.members.clear();
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
    for (position, frame) in members
        .iter()
        .filter_map(|&index| batch.frame(index))
        .enumerate()
    {
        let from = if position == 0 { 0 } else { run.header_octets };
        push(frame.bytes.get(from..).unwrap_or_default());
    }
    tun.send_vectored(slices.get(..used).unwrap_or_default())
}

/// Writes one frame that is no candidate for merging: its checksum has not been looked at.
fn write_single(tun: &Tun, batch: &mut Batch, index: usize, counters: &mut DeviceCounters) {
    let Some(mut frame) = batch.frame_mut(index) else {
        return;
    };
    if frame.offload() == Offload::NONE
        && let Ok(read) = Packet::parse(frame.bytes())
        && let ChecksumState::Partial(partial) = transport_checksum(frame.bytes(), &read)
    {
        if tun.vnet_header_octets() == 0 {
            let _ = partial.complete(frame.bytes_mut());
        } else {
            frame.set_offload(Offload {
                partial_checksum: Some(partial),
                segments: None,
            });
        }
    }
    write_plain(tun, batch, index, counters);
}

/// Writes one frame as its offload marks say.
fn write_plain(tun: &Tun, batch: &Batch, index: usize, counters: &mut DeviceCounters) {
    let Some(frame) = batch.frame(index) else {
        return;
    };
    let outcome = if tun.vnet_header_octets() == 0 {
        tun.send(frame.bytes)
    } else {
        let headers = if frame.offload.segments.is_some() {
            header_octets(frame.bytes)
        } else {
            0
        };
        let header = VirtioNetHeader::new(&frame.offload, family_of(frame.bytes), headers);
        tun.send_vectored(&[IoSlice::new(header.as_bytes()), IoSlice::new(frame.bytes)])
    };
    match outcome {
        Ok(()) => {
            counters.writes += 1;
            counters.written += 1;
        }
        Err(error) => count_failure(counters, &error, 1),
    }
}

fn count_failure(counters: &mut DeviceCounters, error: &io::Error, frames: usize) {
    let frames = frames as u64;
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::WouldBlock, _) | (_, Some(libc::ENOBUFS | libc::ENOMEM)) => {
            counters.write_full += frames
        }
        (ErrorKind::InvalidInput, _) | (_, Some(libc::EINVAL)) => counters.write_invalid += frames,
        _ => counters.write_failed += frames,
    }
}

/// Octets of the network and transport headers of a TCP or UDP packet.
fn header_octets(packet: &[u8]) -> u16 {
    let Ok(read) = Packet::parse(packet) else {
        return 0;
    };
    let transport = packet.get(read.transport_offset..).unwrap_or_default();
    let octets = match transport.get(12) {
        Some(offset) if read.flow.protocol == 6 => usize::from(offset >> 4) * 4,
        _ => 8,
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
