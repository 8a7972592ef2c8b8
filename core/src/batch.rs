//! Frames in one arena, with room in front and behind, and a verdict each.
//!
//! A worker owns a [`Batch`] and fills it from a device ([`vacancy`](Batch::vacancy), then
//! [`commit`](Batch::commit)); the engine pushes and pulls headers in place and leaves a
//! [`Verdict`] on every frame; the worker sends what the verdicts say and clears the batch.
//! Nothing is allocated after [`Batch::new`], and no payload is moved but that of a packet that has
//! to be cut to fit its way: the pieces are copied into spare frames. Knows no protocol.
//!
//! ```text
//! arena  | HEADROOM |  frame 0  | TAILROOM | HEADROOM | frame 1 | TAILROOM | ...
//!                   ^ head      ^ head + len
//! ```

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};
use core::num::NonZeroU16;
use core::ops::Range;

use crate::gso::Offload;
use crate::verdict::Verdict;

/// Octets kept free in front of every frame: the largest stack of headers that encapsulation or an
/// ICMP error pushes, and space for what the shell puts there (a virtio header, a sealed tunnel).
pub const HEADROOM: usize = 128;

/// Octets kept free behind every frame: an authentication tag and its padding.
pub const TAILROOM: usize = 32;

/// Frames that a batch has room for beyond those that are read into it: a packet that is cut on
/// its way becomes several. As many as a row of datagrams of 65,535 octets in all, each just too big,
/// has fragments of 1280 octets, the least MTU of IPv6, or more.
pub const SPARE_FRAMES: usize = 128;

/// Frames and their verdicts; see the [module](self).
#[derive(Debug)]
pub struct Batch {
    arena: Box<[u8]>,
    frames: Vec<Meta>,
    max_frames: usize,
    max_frame_octets: usize,
    next: usize,
}

impl Batch {
    /// Makes an empty batch for `max_frames` frames, each of up to `max_frame_octets`.
    ///
    /// The arena holds all of them at their largest. A batch that sees mostly small frames costs
    /// only the memory that they touch.
    #[must_use]
    pub fn new(max_frames: usize, max_frame_octets: usize) -> Self {
        Self::with_largest(max_frames, max_frame_octets, max_frames)
    }

    /// Like [`new`](Self::new), with an arena for only `largest_frames` frames of the largest size:
    /// for devices that hand over either many small frames or a few large ones.
    #[must_use]
    pub fn with_largest(max_frames: usize, max_frame_octets: usize, largest_frames: usize) -> Self {
        let arena_octets = largest_frames * (HEADROOM + max_frame_octets + TAILROOM);
        Self {
            arena: vec![0; arena_octets].into_boxed_slice(),
            frames: Vec::with_capacity(max_frames + SPARE_FRAMES),
            max_frames,
            max_frame_octets,
            next: 0,
        }
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.next = 0;
    }

    /// Room for the next frame: `max_frame_octets` to read into, or `None` when the batch is full.
    pub fn vacancy(&mut self) -> Option<&mut [u8]> {
        if self.is_full() {
            return None;
        }
        let start = self.next + HEADROOM;
        self.arena
            .get_mut(start..start + self.max_frame_octets + TAILROOM)?
            .get_mut(..self.max_frame_octets)
    }

    /// Room for up to `count` reads in one call, in an empty batch; frames are made of them by
    /// [`commit_vacancy`](Self::commit_vacancy).
    pub fn vacancies(&mut self, count: usize) -> impl Iterator<Item = &mut [u8]> {
        self.clear();
        let octets = self.max_frame_octets;
        let stride = self.stride();
        self.arena
            .chunks_exact_mut(stride)
            .take(count)
            .filter_map(move |slot| slot.get_mut(HEADROOM..HEADROOM + octets))
    }

    /// Makes frames of the octets `range` of vacancy `index` among [`vacancies`](Self::vacancies):
    /// one frame, or with `segment_octets` a train of datagrams of that size each but for a shorter
    /// last one (what `UDP_GRO` gives). Returns how many.
    ///
    /// The frames of a train lie side by side without headroom or tailroom: enough for
    /// decapsulation, which only pulls. Datagrams that do not fit the batch are left out.
    pub fn commit_vacancy(
        &mut self,
        index: usize,
        range: Range<usize>,
        segment_octets: Option<NonZeroU16>,
        link: Link,
    ) -> usize {
        let stride = self.stride();
        let base = index * stride;
        if base + stride > self.arena.len() || range.end > self.max_frame_octets {
            return 0;
        }
        // No single vacancy follows until the batch is cleared.
        self.next = self.arena.len();
        let before = self.frames.len();
        let whole = range.len().max(1);
        let step = segment_octets.map_or(whole, |octets| usize::from(octets.get()));
        if step >= whole {
            if !self.is_full() {
                self.frames.push(Meta {
                    slot: base..base + stride,
                    head: HEADROOM + range.start,
                    ..Meta::new(range.len(), link)
                });
            }
            return self.frames.len() - before;
        }
        let end = base + HEADROOM + range.end;
        for start in (base + HEADROOM + range.start..end).step_by(step) {
            if self.is_full() {
                break;
            }
            let len = step.min(end - start);
            self.frames.push(Meta {
                slot: start..start + len,
                ..Meta::new(len, link)
            });
        }
        self.frames.len() - before
    }

    /// Makes a frame of the first `len_octets` of the last [`vacancy`](Self::vacancy).
    ///
    /// Returns the frame, or `None` when there was no room for it.
    pub fn commit(&mut self, len_octets: usize, link: Link) -> Option<Frame<'_>> {
        let slot = self.next..self.next + HEADROOM + len_octets + TAILROOM;
        if self.is_full() || len_octets > self.max_frame_octets || slot.end > self.arena.len() {
            return None;
        }
        self.next = slot.end;
        self.frames.push(Meta {
            slot,
            head: HEADROOM,
            ..Meta::new(len_octets, link)
        });
        self.frame_mut(self.frames.len() - 1)
    }

    /// Forgets all frames but the first `count`. Their room is not given back before
    /// [`clear`](Self::clear).
    pub fn truncate(&mut self, count: usize) {
        self.frames.truncate(count);
    }

    /// Copies `bytes` into a new frame: the convenient way in for tests and slow paths.
    pub fn push(&mut self, bytes: &[u8], link: Link) -> Option<Frame<'_>> {
        self.vacancy()?
            .get_mut(..bytes.len())?
            .copy_from_slice(bytes);
        self.commit(bytes.len(), link)
    }

    /// Whether `count` further frames of up to `len_octets` each can be made by
    /// [`append_beside`](Self::append_beside).
    #[must_use]
    pub fn has_room_beside(&self, count: usize, len_octets: usize) -> bool {
        let octets = (HEADROOM + TAILROOM).saturating_add(len_octets);
        let end = octets.saturating_mul(count).saturating_add(self.next);
        self.frames.len().saturating_add(count) <= self.max_frames + SPARE_FRAMES
            && end <= self.arena.len()
    }

    /// Makes a further frame of `len_octets` at the end of the batch, to be written, and shows the
    /// frame at `index` beside it: for a packet that becomes several. Such frames may exceed the
    /// number that is read into a batch by [`SPARE_FRAMES`].
    ///
    /// `None` when there is no such frame or no room.
    pub fn append_beside(
        &mut self,
        index: usize,
        len_octets: usize,
    ) -> Option<(FrameRef<'_>, Frame<'_>)> {
        if !self.has_room_beside(1, len_octets) {
            return None;
        }
        let known = self.frames.get(index)?;
        let link = known.link;
        let range = known.slot.start + known.range().start..known.slot.start + known.range().end;
        let slot = self.next..self.next + HEADROOM + len_octets + TAILROOM;
        if range.end > slot.start {
            return None;
        }
        self.next = slot.end;
        self.frames.push(Meta {
            slot: slot.clone(),
            head: HEADROOM,
            ..Meta::new(len_octets, link)
        });
        let (meta, frames) = self.frames.split_last_mut()?;
        let known = frames.get(index)?;
        let (front, back) = self.arena.split_at_mut_checked(slot.start)?;
        let whole = FrameRef {
            bytes: front.get(range)?,
            pushed: known.pushed,
            link: &known.link,
            offload: known.offload,
            verdict: known.verdict,
        };
        let slot = back.get_mut(..slot.len())?;
        Some((whole, Frame { slot, meta }))
    }

    /// The frame at `index`, to be changed.
    pub fn frame_mut(&mut self, index: usize) -> Option<Frame<'_>> {
        let meta = self.frames.get_mut(index)?;
        let slot = self.arena.get_mut(meta.slot.clone())?;
        Some(Frame { slot, meta })
    }

    /// The frame at `index`: its octets, its link endpoints, its verdict.
    #[must_use]
    pub fn frame(&self, index: usize) -> Option<FrameRef<'_>> {
        let meta = self.frames.get(index)?;
        let start = meta.slot.start + meta.head;
        let bytes = self.arena.get(start..start + meta.len)?;
        Some(FrameRef {
            bytes,
            pushed: meta.pushed,
            link: &meta.link,
            offload: meta.offload,
            verdict: meta.verdict,
        })
    }

    /// All frames in order.
    pub fn frames(&self) -> impl Iterator<Item = FrameRef<'_>> {
        (0..self.frames.len()).filter_map(|index| self.frame(index))
    }

    /// The number of frames.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is no frame.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether no further frame fits.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.frames.len() >= self.max_frames
    }

    const fn stride(&self) -> usize {
        HEADROOM + self.max_frame_octets + TAILROOM
    }
}

/// The underlay side of a frame: what the outer IP header says, or is to say.
///
/// For decapsulation the shell fills it in from the socket (or
/// [`outer::pull`](crate::encap::outer::pull) from octets); for encapsulation the engine fills it
/// in and the shell (or [`outer::push`](crate::encap::outer::push)) obeys.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Link {
    /// This node's underlay address.
    pub local: IpAddr,
    /// The peer's underlay address.
    pub remote: IpAddr,
    /// How the payload is carried.
    pub transport: Transport,
    /// DSCP and ECN of the outer header, the whole octet.
    pub traffic_class: u8,
    /// TTL or hop limit of the outer header.
    pub hop_limit: u8,
    /// Whether the outer packet may not be fragmented (IPv4; IPv6 routers never do).
    pub dont_fragment: bool,
}

impl Link {
    /// No underlay: a frame from the local device.
    pub const LOCAL: Self = Self {
        local: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        remote: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        transport: Transport::Ip { protocol: 0 },
        traffic_class: 0,
        hop_limit: 0,
        dont_fragment: false,
    };

    /// The same as the other end sees it: addresses and ports change places.
    #[must_use]
    pub const fn reversed(self) -> Self {
        let transport = match self.transport {
            Transport::Udp {
                local_port,
                remote_port,
            } => Transport::Udp {
                local_port: remote_port,
                remote_port: local_port,
            },
            Transport::Ip { protocol } => Transport::Ip { protocol },
        };
        Self {
            local: self.remote,
            remote: self.local,
            transport,
            ..self
        }
    }
}

/// What carries a frame over the underlay.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Transport {
    /// A UDP datagram.
    Udp {
        /// The port at this node's end: source when sending, destination when receiving.
        local_port: u16,
        /// The port at the peer's end.
        remote_port: u16,
    },
    /// IP directly.
    Ip {
        /// The protocol number: 4 or 41.
        protocol: u8,
    },
}

/// One frame of a [`Batch`], to be changed in place.
#[derive(Debug)]
pub struct Frame<'a> {
    slot: &'a mut [u8],
    meta: &'a mut Meta,
}

impl Frame<'_> {
    /// The octets of the frame.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.slot.get(self.meta.range()).unwrap_or_default()
    }

    /// The octets of the frame, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.slot.get_mut(self.meta.range()).unwrap_or_default()
    }

    /// Moves the front forward over `octets` and returns whether there were so many.
    #[must_use]
    pub const fn pull(&mut self, octets: usize) -> bool {
        if octets > self.meta.len {
            return false;
        }
        self.meta.head += octets;
        self.meta.len -= octets;
        self.meta.pushed = self.meta.pushed.saturating_sub(octets);
        true
    }

    /// Moves the front back and returns the `octets` gained, to be written; `None`, and no change,
    /// when the headroom is too small.
    pub fn push(&mut self, octets: usize) -> Option<&mut [u8]> {
        let head = self.meta.head.checked_sub(octets)?;
        let gained = self.slot.get_mut(head..self.meta.head)?;
        self.meta.head = head;
        self.meta.len += octets;
        self.meta.pushed += octets;
        Some(gained)
    }

    /// Moves the end back to `len_octets`; a longer frame than there is stays as it is.
    pub fn truncate(&mut self, len_octets: usize) {
        self.meta.len = self.meta.len.min(len_octets);
    }

    /// Moves the end forward and returns the `octets` gained, to be written; `None`, and no
    /// change, when the tailroom is too small.
    pub fn extend(&mut self, octets: usize) -> Option<&mut [u8]> {
        let end = self.meta.range().end;
        let gained = self.slot.get_mut(end..end + octets)?;
        self.meta.len += octets;
        Some(gained)
    }

    /// Octets that [`push`](Self::push) can gain.
    #[must_use]
    pub const fn headroom(&self) -> usize {
        self.meta.head
    }

    /// The underlay side.
    #[must_use]
    pub const fn link(&self) -> &Link {
        &self.meta.link
    }

    /// Sets the underlay side.
    pub const fn set_link(&mut self, link: Link) {
        self.meta.link = link;
    }

    /// What the device left to be done about the packet.
    #[must_use]
    pub const fn offload(&self) -> Offload {
        self.meta.offload
    }

    /// Says what the device left, or is, to do about the packet.
    pub const fn set_offload(&mut self, offload: Offload) {
        self.meta.offload = offload;
    }

    /// What was decided.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.meta.verdict
    }

    /// Decides.
    pub const fn set_verdict(&mut self, verdict: Verdict) {
        self.meta.verdict = verdict;
    }
}

/// One frame of a [`Batch`], to be read.
#[derive(Clone, Copy, Debug)]
pub struct FrameRef<'a> {
    /// The octets.
    pub bytes: &'a [u8],
    /// How many of them, at the front, were pushed: the headers in front of what the frame was
    /// when it came in.
    pub pushed: usize,
    /// The underlay side.
    pub link: &'a Link,
    /// What is left to be done about the packet by whoever takes it.
    pub offload: Offload,
    /// What was decided.
    pub verdict: Verdict,
}

#[derive(Clone, Debug)]
struct Meta {
    slot: Range<usize>,
    head: usize,
    len: usize,
    pushed: usize,
    link: Link,
    offload: Offload,
    verdict: Verdict,
}

impl Meta {
    const fn new(len: usize, link: Link) -> Self {
        Self {
            slot: 0..0,
            head: 0,
            len,
            pushed: 0,
            link,
            offload: Offload::NONE,
            verdict: Verdict::Undecided,
        }
    }

    const fn range(&self) -> Range<usize> {
        self.head..self.head + self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn push_and_pull_move_the_front_without_moving_the_payload() {
        let mut batch = Batch::new(2, 100);
        let mut frame = batch.push(b"payload", Link::LOCAL).unwrap();
        let payload = frame.bytes().as_ptr();
        frame.push(4).unwrap().copy_from_slice(b"head");
        assert_eq!(frame.bytes(), b"headpayload");
        assert!(frame.pull(4));
        assert_eq!(
            (frame.bytes(), frame.bytes().as_ptr()),
            (&b"payload"[..], payload)
        );
        assert!(!frame.pull(8), "a pull past the end changes nothing");
        assert!(frame.push(HEADROOM + 1).is_none());
        assert_eq!(frame.bytes(), b"payload");
    }

    #[test]
    fn every_frame_has_its_whole_headroom_and_tailroom() {
        let mut batch = Batch::new(3, 64);
        for octet in 0..3_u8 {
            batch.push(&[octet; 64], Link::LOCAL).unwrap();
        }
        for index in 0..3 {
            let mut frame = batch.frame_mut(index).unwrap();
            frame.push(HEADROOM).unwrap().fill(0xaa);
            frame.extend(TAILROOM).unwrap().fill(0xbb);
            assert!(frame.extend(1).is_none());
        }
        for (octet, frame) in (0..3_u8).zip(batch.frames()) {
            assert_eq!(frame.bytes[HEADROOM..HEADROOM + 64], [octet; 64]);
        }
        assert!(
            batch.is_full() && batch.vacancy().is_none() && batch.push(&[1], Link::LOCAL).is_none()
        );
        batch.clear();
        assert!(
            batch.is_empty() && batch.push(&[0; 65], Link::LOCAL).is_none() && batch.is_empty()
        );
    }

    #[test]
    fn a_train_becomes_frames_side_by_side() {
        let mut batch = Batch::with_largest(4, 100, 2);
        let mut vacancies = batch.vacancies(8);
        vacancies.next().unwrap()[..27].copy_from_slice(b"--aaaaaaaaaabbbbbbbbbbccccc");
        vacancies.next().unwrap()[..4].copy_from_slice(b"next");
        assert!(vacancies.next().is_none());
        drop(vacancies);
        assert_eq!(
            batch.commit_vacancy(0, 2..27, NonZeroU16::new(10), Link::LOCAL),
            3
        );
        assert_eq!(
            batch.commit_vacancy(1, 0..4, NonZeroU16::new(4), Link::LOCAL),
            1
        );
        let frames: Vec<_> = batch.frames().map(|frame| frame.bytes.to_vec()).collect();
        assert_eq!(
            frames,
            [&b"aaaaaaaaaa"[..], b"bbbbbbbbbb", b"ccccc", b"next"]
        );
        assert!(
            batch.frame_mut(1).unwrap().push(1).is_none(),
            "no headroom inside a train"
        );
        assert_eq!(batch.frame_mut(3).unwrap().headroom(), HEADROOM);
        assert_eq!(batch.commit_vacancy(1, 0..4, None, Link::LOCAL), 0, "full");
        assert_eq!(
            batch.commit_vacancy(2, 0..4, None, Link::LOCAL),
            0,
            "no such vacancy"
        );
        assert!(batch.vacancy().is_none());
        batch.clear();
        assert!(batch.vacancy().is_some());
    }

    #[test]
    fn a_batch_with_few_large_places_is_full_when_the_arena_is() {
        let mut batch = Batch::with_largest(100, 1000, 2);
        let mut frames = 0;
        while batch.push(&[7; 10], Link::LOCAL).is_some() {
            frames += 1;
        }
        // 2320 octets of arena, 170 a frame, and the last must leave room for a large one.
        assert_eq!(frames, 7);
        assert!(batch.frames().all(|frame| frame.bytes == [7; 10]));
    }

    #[test]
    fn a_frame_can_be_made_of_another_when_no_more_are_read() {
        let mut batch = Batch::new(2, 100);
        batch.push(b"first", Link::LOCAL).unwrap();
        batch.push(b"second", Link::LOCAL).unwrap();
        assert!(batch.is_full() && batch.vacancy().is_none());
        assert!(batch.has_room_beside(1, 5) && !batch.has_room_beside(2, 100));
        let (whole, mut part) = batch.append_beside(1, 4).unwrap();
        part.bytes_mut().copy_from_slice(&whole.bytes[2..]);
        assert!(part.push(HEADROOM).is_some() && part.pull(HEADROOM));
        assert!(batch.append_beside(3, 1).is_none(), "no such frame");
        assert!(batch.append_beside(0, 100).is_none(), "the arena is full");
        let frames: Vec<_> = batch.frames().map(|frame| frame.bytes).collect();
        assert_eq!(frames, [&b"first"[..], b"second", b"cond"]);

        let mut batch = Batch::new(1, 65_000);
        batch.push(b"whole", Link::LOCAL).unwrap();
        let made = (0..).take_while(|_| batch.append_beside(0, 1).is_some());
        assert_eq!(made.count(), SPARE_FRAMES);
    }

    #[test]
    fn knows_what_was_pushed() {
        let mut batch = Batch::new(1, 100);
        let mut frame = batch.push(b"vvpacket", Link::LOCAL).unwrap();
        assert!(frame.pull(2));
        frame.push(3).unwrap().copy_from_slice(b"hhh");
        let frame = batch.frame(0).unwrap();
        assert_eq!((frame.pushed, frame.bytes), (3, &b"hhhpacket"[..]));
    }
}
