//! Making packets fit the tunnel: inner fragments, and the segment size that TCP announces.
//!
//! RFC 4459 names four choices for a packet that is too big once it is wrapped. Taken here:
//!
//! | RFC 4459 | choice | here |
//! |----------|--------|------|
//! | 3.1 | fragment the outer packet, reassemble at the tunnel's end | only IPv6 of up to 1280 octets, which no path may refuse, where the path carries less |
//! | 3.2 | tell the sender | where it may not be fragmented: DF, or IPv6 |
//! | 3.3 | make the path carry it | by the administrator: `underlay-mtu`; the device's MTU then hides the tunnel |
//! | 3.4 | fragment the inner packet | IPv4 with DF clear, so that its destination reassembles it and not the tunnel's end, whose memory and port an outer fragment would cost |
//!
//! TCP is told beforehand by the clamp, where that is on. Where it is off and the sender does no path
//! MTU discovery (DF clear), a TCP super-packet is cut into smaller segments than it asked for: it is
//! a row of segments that nobody has cut yet, and a stream has no borders to keep. A UDP
//! super-packet has: it becomes the datagrams that its sender meant, and each of them is cut as if it
//! had come alone.
//!
//! A packet that is cut stays one packet in the counters: received once, forwarded once; what it
//! became beyond the first frame is counted as fragments. Where the batch has no room for them the
//! packet is too big, and its sender is told although it allowed fragments: that helps, silence
//! does not.

use super::encap::path_mtu;
use super::{Rules, set_hop_limit};
use crate::batch::{Batch, Frame, Link};
use crate::encap::shim;
use crate::fragment::{Fragmenter, clamp_mss, is_tcp_syn};
use crate::gso::{
    ChecksumState, MAX_HEADER_OCTETS, Offload, SegmentKind, Splitter, transport_checksum,
};
use crate::packet::Packet;
use crate::policy::Permit;
use crate::tables::Tunnel;
use crate::units::{Family, Mtu};
use crate::verdict::{DropReason, Verdict};
use crate::wire::{Ipv4Header, UdpHeader};

/// A packet that is to be cut, and the tunnel that its fragments take.
#[derive(Debug)]
pub(super) struct Cut<'t> {
    pub(super) tunnel: &'t Tunnel,
    pub(super) link: Link,
    /// The largest fragment.
    pub(super) mtu: Mtu,
    pub(super) permit: Permit,
    /// The octets of data in each datagram, where the packet is a row of them.
    pub(super) datagram_octets: Option<u16>,
}

impl Rules<'_> {
    /// Whether the batch has room for all that a packet becomes.
    pub(super) fn has_room_for_pieces(batch: &Batch, packet: &Packet, cut: &Cut<'_>) -> bool {
        const UDP: usize = size_of::<UdpHeader>();
        let mtu = usize::from(cut.mtu.octets());
        let header = packet.transport_offset;
        let Some(step) = mtu
            .checked_sub(header)
            .map(|octets| octets & !7)
            .filter(|step| *step > 0)
        else {
            return false;
        };
        let pieces_of = |octets: usize| {
            if header + octets <= mtu {
                1
            } else {
                octets.div_ceil(step)
            }
        };
        let payload = packet.total_octets.saturating_sub(header);
        // How many frames in all, and how many of them are made before any is cut.
        let (pieces, datagrams, largest) = match cut.datagram_octets.map(usize::from) {
            None => (pieces_of(payload), 1, 0),
            Some(0) => return false,
            Some(each) => {
                let data = payload.saturating_sub(UDP);
                let (whole, last) = (data / each, data % each);
                let rest = if last > 0 { pieces_of(UDP + last) } else { 0 };
                let pieces = whole * pieces_of(UDP + each) + rest;
                (pieces, data.div_ceil(each), UDP + each)
            }
        };
        let further = pieces.saturating_sub(1);
        let octets = datagrams.saturating_sub(1) * (header + largest)
            + pieces.saturating_sub(datagrams) * (header + step);
        batch.has_room_beside(further, octets.div_ceil(further.max(1)))
    }

    /// Cuts the packet that frame `index` holds, wraps all that it becomes and decides to transmit
    /// it.
    ///
    /// Returns how many frames there are, and their octets.
    ///
    /// # Errors
    ///
    /// [`DropReason::TooBig`] when it can not be cut or there is no room;
    /// [`DropReason::NoHeadroom`]. Frame `index` is the only one then.
    pub(super) fn send_pieces(
        &self,
        batch: &mut Batch,
        index: usize,
        packet: &Packet,
        cut: &Cut<'_>,
    ) -> Result<(u64, usize), DropReason> {
        const TOO_BIG: DropReason = DropReason::TooBig;
        if !Self::has_room_for_pieces(batch, packet, cut) {
            return Err(TOO_BIG);
        }
        let mut frame = batch.frame_mut(index).ok_or(TOO_BIG)?;
        if frame.headroom() < usize::from(cut.tunnel.encapsulation.shim_octets()) {
            return Err(DropReason::NoHeadroom);
        }
        self.prepare(&mut frame, packet, cut.datagram_octets.is_some());
        let before = batch.len();
        let sent = match cut.datagram_octets {
            None => self.send_fragments(batch, index, cut),
            Some(octets) => self.send_datagrams(batch, index, octets, cut),
        };
        if sent.is_err() {
            batch.truncate(before);
        }
        sent
    }

    /// Makes the datagrams of a row of them, each with `data_octets` of data, and cuts each.
    ///
    /// The first fragments leave in a row, then the others: the datagrams are whole again in their
    /// order.
    fn send_datagrams(
        &self,
        batch: &mut Batch,
        index: usize,
        data_octets: u16,
        cut: &Cut<'_>,
    ) -> Result<(u64, usize), DropReason> {
        const TOO_BIG: DropReason = DropReason::TooBig;
        let frame = batch.frame_mut(index).ok_or(TOO_BIG)?;
        let splitter = row(frame.bytes(), data_octets).ok_or(TOO_BIG)?;
        let count = splitter.count();
        let header_octets = splitter.header_octets();
        let mut first_header = [0; MAX_HEADER_OCTETS];
        splitter.write_header(0, &mut first_header).ok_or(TOO_BIG)?;
        let first_octets = splitter.payload(0).end;
        let first_made = batch.len();
        for number in 1..count {
            let length = batch
                .frame(index)
                .and_then(|whole| Some(row(whole.bytes, data_octets)?.payload(number).len()))
                .ok_or(TOO_BIG)?;
            let (whole, mut part) = batch
                .append_beside(index, header_octets + length)
                .ok_or(TOO_BIG)?;
            let splitter = row(whole.bytes, data_octets).ok_or(TOO_BIG)?;
            let payload = whole.bytes.get(splitter.payload(number)).ok_or(TOO_BIG)?;
            let bytes = part.bytes_mut();
            splitter.write_header(number, bytes).ok_or(TOO_BIG)?;
            write_behind(bytes, header_octets, payload).ok_or(TOO_BIG)?;
        }
        let made = first_made..batch.len();
        let mut frame = batch.frame_mut(index).ok_or(TOO_BIG)?;
        frame.truncate(first_octets);
        write_front(&mut frame, &first_header, header_octets);
        let (mut frames, mut octets) = (0, 0);
        for datagram in core::iter::once(index).chain(made) {
            let (cut_frames, cut_octets) = self.send_fragments(batch, datagram, cut)?;
            frames += cut_frames;
            octets += cut_octets;
        }
        Ok((frames, octets))
    }

    /// Cuts the one packet that frame `index` holds, if it has to be.
    fn send_fragments(
        &self,
        batch: &mut Batch,
        index: usize,
        cut: &Cut<'_>,
    ) -> Result<(u64, usize), DropReason> {
        const TOO_BIG: DropReason = DropReason::TooBig;
        let mut frame = batch.frame_mut(index).ok_or(TOO_BIG)?;
        if frame.bytes().len() <= usize::from(cut.mtu.octets()) {
            return Ok((1, self.wrap(&mut frame, cut)?));
        }
        let cutter = Fragmenter::new(frame.bytes(), cut.mtu).ok_or(TOO_BIG)?;
        let count = cutter.count();
        let header_octets = cutter.header_octets();
        let mut first_header = [0; Ipv4Header::MAX_OCTETS];
        cutter.write_header(0, &mut first_header).ok_or(TOO_BIG)?;
        let first_octets = cutter.payload(0).end;
        let mut octets = 0;
        for number in 1..count {
            // The length of fragment `number`; the headers are equally long.
            let length = batch
                .frame(index)
                .and_then(|whole| Fragmenter::new(whole.bytes, cut.mtu))
                .map(|cutter| header_octets + cutter.payload(number).len())
                .ok_or(TOO_BIG)?;
            let (whole, mut part) = batch.append_beside(index, length).ok_or(TOO_BIG)?;
            let cutter = Fragmenter::new(whole.bytes, cut.mtu).ok_or(TOO_BIG)?;
            let bytes = part.bytes_mut();
            cutter.write_header(number, bytes).ok_or(TOO_BIG)?;
            let payload = whole.bytes.get(cutter.payload(number)).ok_or(TOO_BIG)?;
            write_behind(bytes, header_octets, payload).ok_or(TOO_BIG)?;
            octets += self.wrap(&mut part, cut)?;
        }
        let mut frame = batch.frame_mut(index).ok_or(TOO_BIG)?;
        frame.truncate(first_octets);
        write_front(&mut frame, &first_header, header_octets);
        octets += self.wrap(&mut frame, cut)?;
        Ok((count as u64, octets))
    }

    /// Completes what would be wrong on every fragment: TTL and checksum, which the datagrams of a
    /// row get one by one.
    fn prepare(&self, frame: &mut Frame<'_>, packet: &Packet, is_row: bool) {
        frame.truncate(packet.total_octets);
        if let Some(partial) = frame.offload().partial_checksum
            && !is_row
        {
            // Its range was checked by whoever set it; a checksum elsewhere stays as it is.
            let _ = partial.complete(frame.bytes_mut());
        }
        frame.set_offload(Offload::NONE);
        if self.config.decrement_ttl {
            set_hop_limit(frame.bytes_mut(), packet.hop_limit.saturating_sub(1));
        }
    }

    /// Wraps one fragment and returns its octets.
    fn wrap(&self, frame: &mut Frame<'_>, cut: &Cut<'_>) -> Result<usize, DropReason> {
        let vtep_mac = self.tables.local().vtep_mac;
        let permit = cut.permit.again();
        shim::push(
            frame,
            Family::V4,
            cut.tunnel.encapsulation,
            vtep_mac,
            permit,
        )?;
        frame.set_link(cut.link);
        frame.set_verdict(Verdict::Transmit);
        Ok(frame.bytes().len())
    }

    /// Lowers the segment size that a TCP SYN in `bytes` announces to what fits `tunnel`; returns
    /// whether it did.
    pub(super) fn clamp(
        &self,
        bytes: &mut [u8],
        packet: &Packet,
        offload: Offload,
        tunnel: &Tunnel,
    ) -> bool {
        if !self.config.clamp_mss || !is_tcp_syn(bytes, packet) {
            return false;
        }
        let partial = offload.partial_checksum.is_some()
            || matches!(transport_checksum(bytes, packet), ChecksumState::Partial(_));
        clamp_mss(bytes, packet, path_mtu(tunnel, packet.family()), partial)
    }
}

/// The datagrams in a row of them.
fn row(bytes: &[u8], data_octets: u16) -> Option<Splitter<'_>> {
    Splitter::new(bytes, SegmentKind::Udp, data_octets).ok()
}

/// Writes `payload` behind the header of a frame that has just room for both.
fn write_behind(bytes: &mut [u8], header_octets: usize, payload: &[u8]) -> Option<()> {
    bytes
        .get_mut(header_octets..)
        .filter(|to| to.len() == payload.len())?
        .copy_from_slice(payload);
    Some(())
}

/// Writes the first octets of `header` over those of the frame.
fn write_front(frame: &mut Frame<'_>, header: &[u8], header_octets: usize) {
    let front = frame.bytes_mut().iter_mut().zip(header);
    for (to, from) in front.take(header_octets) {
        *to = *from;
    }
}
