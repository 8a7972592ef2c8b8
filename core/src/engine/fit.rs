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
//! super-packet has: its sender chose the size of the datagrams and is told.
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
use crate::gso::{ChecksumState, Offload, transport_checksum};
use crate::packet::Packet;
use crate::policy::Permit;
use crate::tables::Tunnel;
use crate::units::{Family, Mtu};
use crate::verdict::{DropReason, Verdict};
use crate::wire::Ipv4Header;

/// A packet that is to be cut, and the tunnel that its fragments take.
#[derive(Debug)]
pub(super) struct Cut<'t> {
    pub(super) tunnel: &'t Tunnel,
    pub(super) link: Link,
    /// The largest fragment.
    pub(super) mtu: Mtu,
    pub(super) permit: Permit,
}

impl Rules<'_> {
    /// Whether the batch has room for the fragments of a packet.
    pub(super) fn has_room_for_fragments(batch: &Batch, packet: &Packet, mtu: Mtu) -> bool {
        let mtu = usize::from(mtu.octets());
        let Some(step) = mtu
            .checked_sub(packet.transport_offset)
            .map(|octets| octets & !7)
            .filter(|step| *step > 0)
        else {
            return false;
        };
        let payload = packet.total_octets.saturating_sub(packet.transport_offset);
        let further = payload.div_ceil(step).saturating_sub(1);
        batch.has_room_beside(further, packet.transport_offset + step)
    }

    /// Cuts the packet that frame `index` holds, wraps all fragments and decides to transmit them.
    ///
    /// Returns how many frames there are, and their octets.
    ///
    /// # Errors
    ///
    /// [`DropReason::TooBig`] when it can not be cut or there is no room;
    /// [`DropReason::NoHeadroom`].
    pub(super) fn send_fragments(
        &self,
        batch: &mut Batch,
        index: usize,
        packet: &Packet,
        cut: &Cut<'_>,
    ) -> Result<(u64, usize), DropReason> {
        const TOO_BIG: DropReason = DropReason::TooBig;
        if !Self::has_room_for_fragments(batch, packet, cut.mtu) {
            return Err(TOO_BIG);
        }
        let mut frame = batch.frame_mut(index).ok_or(TOO_BIG)?;
        if frame.headroom() < usize::from(cut.tunnel.encapsulation.shim_octets()) {
            return Err(DropReason::NoHeadroom);
        }
        self.prepare(&mut frame, packet);
        let cutter = Fragmenter::new(frame.bytes(), cut.mtu).ok_or(TOO_BIG)?;
        let count = cutter.count();
        let header_octets = cutter.header_octets();
        let mut first_header = [0; Ipv4Header::MAX_OCTETS];
        cutter.write_header(0, &mut first_header).ok_or(TOO_BIG)?;
        let first_octets = cutter.payload(0).end;
        let mut octets = 0;
        for number in 1..count {
            // The length of fragment `number`; the headers are equally long.
            let (_, length) = batch
                .frame(index)
                .and_then(|whole| Fragmenter::new(whole.bytes, cut.mtu))
                .map(|cutter| (number, header_octets + cutter.payload(number).len()))
                .ok_or(TOO_BIG)?;
            let (whole, mut part) = batch.append_beside(index, length).ok_or(TOO_BIG)?;
            let cutter = Fragmenter::new(whole.bytes, cut.mtu).ok_or(TOO_BIG)?;
            let bytes = part.bytes_mut();
            cutter.write_header(number, bytes).ok_or(TOO_BIG)?;
            let payload = whole.bytes.get(cutter.payload(number)).ok_or(TOO_BIG)?;
            bytes
                .get_mut(header_octets..)
                .filter(|to| to.len() == payload.len())
                .ok_or(TOO_BIG)?
                .copy_from_slice(payload);
            octets += self.wrap(&mut part, cut)?;
        }
        let mut frame = batch.frame_mut(index).ok_or(TOO_BIG)?;
        frame.truncate(first_octets);
        for (to, from) in frame
            .bytes_mut()
            .iter_mut()
            .zip(&first_header)
            .take(header_octets)
        {
            *to = *from;
        }
        octets += self.wrap(&mut frame, cut)?;
        Ok((count as u64, octets))
    }

    /// Completes what would be wrong on every fragment: checksum and TTL.
    fn prepare(&self, frame: &mut Frame<'_>, packet: &Packet) {
        frame.truncate(packet.total_octets);
        if let Some(partial) = frame.offload().partial_checksum {
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
