//! The engine: batches of frames in, the same frames with headers and verdicts out.
//!
//! [`Engine::encap`] takes what the local device sent, [`Engine::decap`] what the underlay
//! brought. Both work in passes over a chunk of frames: read and check every packet, look all
//! addresses up at once, then decide and write headers frame by frame. What is decided lies in
//! pure functions of the tables (`Rules`), which [`Engine::explain`] asks too, so that an
//! explanation can not differ from what happens.
//!
//! The engine owns its counters, its rate limiter and its scratch space: no lock is taken and
//! nothing is allocated per packet. It asks the world for nothing; time enters as an argument.
//! The only room that knows the others.

mod check;
mod decap;
mod encap;
mod explain;
mod fit;
mod flows;
mod limiter;
mod lookups;
mod offers;
mod peers;
mod reply;
mod trail;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;

use zerocopy::FromBytes;

pub use explain::{Explanation, Route};
pub use offers::{DeliveryOffer, DepartureOffer, Offer, ShimOctets};
pub use peers::PeerCounters;
pub use reply::Answer;

use crate::batch::{Batch, Frame};
use crate::packet::Packet;
use crate::policy::Policy;
use crate::tables::Tables;
use crate::units::Time;
use crate::verdict::{Counters, Direction, DropReason, Verdict};
use crate::wire::{Ipv4Header, Ipv6Header};
use flows::{DecapKey, Delivery, Departure, EncapKey, Flows};
use limiter::Limiters;
use lookups::{CHUNK, Lookups};
use offers::Offers;

/// What an [`Engine`] is told once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EngineConfig {
    /// The seed of the flow hash: outer source ports and equal-cost choices follow from it. Random
    /// per node, so that nobody outside can choose flows that share a path; the same for all
    /// engines of a node, so that a flow keeps its port whichever worker carries it.
    pub seed: u64,
    /// Whether the node is a hop that counts: packets into a tunnel lose one from their TTL.
    pub decrement_ttl: bool,
    /// Whether the maximum segment size that TCP SYN segments announce is lowered, in both
    /// directions, to what fits the path. Has no effect where the device's MTU fits it already.
    pub clamp_mss: bool,
    /// Whether ICMP errors are sent as from the destination of the packet that they are about, in
    /// place of the node's own address. For a device whose other end is this same host: its IP layer
    /// takes no packet from an address of its own (RFC 1812 section 5.3.7), whoever it is for, and
    /// under reverse path filtering (RFC 3704) only one from where the packet was going. Linux's own
    /// tunnels do the same. The errors are matched by what they quote.
    pub icmp_from_destination: bool,
    /// ICMP errors per second, at most; zero for none. One sender gets at most half of them.
    pub icmp_per_second: u32,
    /// ICMP errors that may follow each other at once; half as many to one sender.
    pub icmp_burst: u32,
    /// Flows that are remembered in each direction, so that their packets need no lookup; rounded
    /// up to a power of two, zero for none. About 250 octets each.
    pub flows: usize,
    /// Packets of a known flow after which it is [offered](Engine::offers) to whoever may carry it
    /// in the engine's place; zero for never.
    pub offer_after: u32,
}

impl Default for EngineConfig {
    /// A routing node that sends up to 1000 ICMP errors a second, the limit that Linux has too,
    /// and 50 at once, and remembers 1024 flows.
    fn default() -> Self {
        Self {
            seed: 0,
            decrement_ttl: true,
            clamp_mss: true,
            icmp_from_destination: false,
            icmp_per_second: 1000,
            icmp_burst: 50,
            flows: 1024,
            offer_after: 0,
        }
    }
}

/// Encapsulates and decapsulates batches; one for each worker. See the [module](self).
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    tables: Arc<Tables>,
    policy: Policy,
    encap: Counters,
    decap: Counters,
    peers: Vec<PeerCounters>,
    limiters: Limiters,
    lookups: Lookups,
    departures: Flows<EncapKey, Departure>,
    deliveries: Flows<DecapKey, Delivery>,
    offers: Offers,
    admitted: [Option<Packet>; CHUNK],
    opened: [Option<decap::Admitted>; CHUNK],
}

impl Engine {
    /// Makes an engine that works by `tables`.
    #[must_use]
    pub fn new(config: EngineConfig, tables: Arc<Tables>) -> Self {
        Self {
            config,
            policy: Policy::AllowAll,
            encap: Counters::ZERO,
            decap: Counters::ZERO,
            peers: peers::carry_over(&[], &[], tables.peers()),
            limiters: Limiters::new(config.icmp_per_second, config.icmp_burst, config.seed),
            lookups: Lookups::new(&tables),
            departures: Flows::new(config.flows, config.seed, config.offer_after),
            deliveries: Flows::new(config.flows, config.seed, config.offer_after),
            offers: Offers::new(config.offer_after),
            admitted: [const { None }; CHUNK],
            opened: [const { None }; CHUNK],
            tables,
        }
    }

    /// Works by other tables from here on. Peers are known again by their names and keep their
    /// counters.
    ///
    /// To be called between batches; allocates.
    pub fn set_tables(&mut self, tables: Arc<Tables>) {
        self.peers = peers::carry_over(self.tables.peers(), &self.peers, tables.peers());
        self.departures.forget();
        self.deliveries.forget();
        self.offers.clear();
        self.lookups.follow(&tables);
        self.tables = tables;
    }

    /// Takes what was offered since the last call. It holds for the [tables](Self::tables) that it
    /// works by.
    pub fn offers(&mut self) -> impl Iterator<Item = Offer> + '_ {
        self.offers.drain()
    }

    /// The tables that it works by.
    #[must_use]
    pub const fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// What it was told.
    #[must_use]
    pub const fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The counts of one direction.
    #[must_use]
    pub const fn counters(&self, direction: Direction) -> &Counters {
        match direction {
            Direction::Encap => &self.encap,
            Direction::Decap => &self.decap,
        }
    }

    /// The counts of every peer, each at the [index](crate::tables::PeerId::index) of its number
    /// in [`tables`](Self::tables).
    #[must_use]
    pub fn peer_counters(&self) -> &[PeerCounters] {
        &self.peers
    }

    /// Packets of both directions whose flow was known, so that nothing was looked up for them.
    #[must_use]
    pub const fn flow_hits(&self) -> u64 {
        self.departures.hits() + self.deliveries.hits()
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            tables: &self.tables,
            config: &self.config,
            policy: self.policy,
        }
    }
}

/// The pure half of the engine: what is decided, and from what.
#[derive(Clone, Copy)]
struct Rules<'t> {
    tables: &'t Tables,
    config: &'t EngineConfig,
    policy: Policy,
}

/// A packet that does not pass: why, and what its sender is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Refusal {
    reason: DropReason,
    answer: Option<Answer>,
}

impl Refusal {
    const fn answered(reason: DropReason, answer: Answer) -> Self {
        Self {
            reason,
            answer: Some(answer),
        }
    }
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self {
            reason,
            answer: None,
        }
    }
}

impl Rules<'_> {
    /// The answer that a refusal of `packet` gets, and the address that it comes from; `None` for
    /// silence.
    fn answer_to(
        &self,
        refusal: &Refusal,
        packet: &Packet,
        bytes: &[u8],
    ) -> Option<(Answer, IpAddr)> {
        let answer = refusal.answer?;
        let local = self.tables.local();
        let from_destination = self.config.icmp_from_destination;
        let source = reply::source_of_error(packet, bytes, local, from_destination)?;
        Some((answer, source))
    }
}

/// The frame at `index` if the engine has to look at it.
fn undecided(batch: &mut Batch, index: usize) -> Option<Frame<'_>> {
    batch
        .frame_mut(index)
        .filter(|frame| frame.verdict() == Verdict::Undecided)
}

fn drop_frame(frame: &mut Frame<'_>, reason: DropReason, counters: &mut Counters) {
    counters.count_drop(reason);
    frame.set_verdict(Verdict::Drop(reason));
}

/// Puts an ICMP error in the place of a frame that was dropped, if the rate allows.
fn reply(
    frame: &mut Frame<'_>,
    packet: &Packet,
    (answer, source): (Answer, IpAddr),
    reason: DropReason,
    counters: &mut Counters,
    limiters: &mut Limiters,
    now: Time,
) {
    if !limiters.take(packet.flow.source, now) {
        counters.replies_suppressed += 1;
    } else if reply::write(frame, packet, source, answer).is_ok() {
        counters.replies += 1;
        frame.set_verdict(Verdict::Reply(reason));
    }
}

/// Writes the TTL or hop limit of the IP packet at the front of `packet`.
fn set_hop_limit(packet: &mut [u8], hop_limit: u8) {
    match packet.first().map(|octet| octet >> 4) {
        Some(4) => {
            if let Ok((header, _)) = Ipv4Header::mut_from_prefix(packet) {
                header.set_ttl(hop_limit);
            }
        }
        Some(6) => {
            if let Ok((header, _)) = Ipv6Header::mut_from_prefix(packet) {
                header.set_hop_limit(hop_limit);
            }
        }
        _ => {}
    }
}
