//! What becomes of a frame, why, and how often.
//!
//! A bad packet is not an exception: every frame that enters the engine leaves with a [`Verdict`],
//! and a drop names its [`DropReason`], which is also the index of its counter. So
//! `received = forwarded + dropped` holds exactly, for each direction; see [`Counters`].

use core::fmt;

/// What is to be done with a frame.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Verdict {
    /// The engine has not seen the frame yet.
    Undecided,
    /// Send it over the underlay, as its [`Link`](crate::batch::Link) says.
    Transmit,
    /// Give it to the local device.
    Deliver,
    /// It is a probe of a tunnel, or the answer to one: for whoever measures the paths
    /// ([`probe`](crate::probe)), not for the device.
    Probe,
    /// Send it without encapsulation: the next hop is on the underlay's own link.
    Direct,
    /// The frame was dropped for this reason and now holds an ICMP error, to be sent back to where
    /// the frame came from.
    Reply(DropReason),
    /// Forget it.
    Drop(DropReason),
}

/// Declares the reasons once: variant, name for machines, sentence for people.
macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a frame was dropped.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// All reasons in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in metrics and machine output: lower case with underscores.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// The inner packet could not be read: truncated, wrong version, impossible lengths.
    MalformedPacket = "malformed_packet",
    /// The IPv4 header checksum of the inner packet is wrong.
    BadHeaderChecksum = "bad_header_checksum",
    /// The encapsulation header could not be read, or says what is not understood.
    MalformedEncapsulation = "malformed_encapsulation",
    /// The inner Ethernet frame carries neither IPv4 nor IPv6.
    NotIp = "not_ip",
    /// The inner Ethernet frame carries a VLAN tag.
    VlanTagged = "vlan_tagged",
    /// The inner Ethernet destination is not this node's VTEP.
    WrongVtepMac = "wrong_vtep_mac",
    /// The inner Ethernet source is this node's own VTEP: a loop.
    OwnVtepMac = "own_vtep_mac",
    /// No network of this node has that VNI.
    UnknownVni = "unknown_vni",
    /// The outer source is not the address of a configured peer.
    UnknownPeer = "unknown_peer",
    /// The encapsulation is not one that this node receives.
    EncapsulationNotEnabled = "encapsulation_not_enabled",
    /// The inner source does not lie in a prefix that the peer owns.
    SourceNotOwnedByPeer = "source_not_owned_by_peer",
    /// The inner source is one of this node's own prefixes, seen from outside.
    SourceIsLocal = "source_is_local",
    /// The inner source does not lie in this node's own prefixes, seen from the device.
    SourceNotLocal = "source_not_local",
    /// The inner source is a loopback address.
    SourceLoopback = "source_loopback",
    /// The inner source is a multicast or broadcast address.
    SourceMulticast = "source_multicast",
    /// The inner source is unspecified.
    SourceUnspecified = "source_unspecified",
    /// The inner source is an address that no packet comes from: in 0.0.0.0/8, or an IPv6 address
    /// that spells an IPv4 one (mapped, RFC 4291 section 2.5.5.2, or compatible).
    SourceReserved = "source_reserved",
    /// The inner source or destination is link-local.
    LinkLocal = "link_local",
    /// The inner destination is a multicast or broadcast address.
    DestinationMulticast = "destination_multicast",
    /// The inner destination is loopback, unspecified or an address that no packet goes to.
    DestinationInvalid = "destination_invalid",
    /// The inner destination does not lie in this node's own prefixes, seen from outside.
    DestinationNotLocal = "destination_not_local",
    /// The destination lies in this node's own prefixes, but nothing there has it.
    DestinationUnassigned = "destination_unassigned",
    /// The inner packet names further hops (an IPv4 source route, an IPv6 routing header with
    /// segments left), so that its destination is not where it would go. RFC 5095, RFC 7126.
    SourceRouted = "source_routed",
    /// The inner packet is itself a tunnel packet that this node would open, or IP in IP to an
    /// address of its host, which might.
    NestedTunnel = "nested_tunnel",
    /// The packet would enter the tunnel that carries it, or go back into the tunnel that brought
    /// it: a routing loop.
    TunnelLoop = "tunnel_loop",
    /// The TTL or hop limit has run out.
    TtlExpired = "ttl_expired",
    /// No route leads to the destination.
    NoRoute = "no_route",
    /// A blackhole route leads to the destination.
    Blackhole = "blackhole",
    /// A prohibit route leads to the destination.
    Prohibited = "prohibited",
    /// A policy denies the packet.
    PolicyDeny = "policy_deny",
    /// The packet does not fit the path and may not be fragmented.
    TooBig = "too_big",
    /// Not ECN-capable inside, congestion experienced outside. RFC 6040 section 4.2.
    EcnCongestionNotCapable = "ecn_congestion_not_capable",
    /// The frame had no room for the headers.
    NoHeadroom = "no_headroom",
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A direction through the engine.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Direction {
    /// From the local device to the underlay.
    Encap,
    /// From the underlay to the local device.
    Decap,
}

/// The counts of one [`Direction`].
///
/// `received.packets == forwarded.packets + dropped()` after every batch. Replies are packets of
/// the engine's own and count apart; so do the frames that a packet which was cut became beyond
/// the first: `forwarded.packets + fragments` frames leave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counters {
    /// Frames that entered, and their octets as they entered.
    pub received: Tally,
    /// Frames that left by [`Verdict::Transmit`], [`Verdict::Deliver`], [`Verdict::Probe`] or
    /// [`Verdict::Direct`], and
    /// their octets as they left.
    pub forwarded: Tally,
    /// Packets that were cut to fit the path (inner IPv4 fragmentation, RFC 791 section 3.2); each
    /// is one of those forwarded, its octets those of all its fragments.
    pub fragmented: u64,
    /// Frames that these packets became, the first of each not counted.
    pub fragments: u64,
    /// TCP SYN segments whose maximum segment size was lowered to what fits the path.
    pub mss_clamped: u64,
    /// ICMP errors made.
    pub replies: u64,
    /// ICMP errors not made because their rate was used up.
    pub replies_suppressed: u64,
    /// ECN combinations that RFC 6040 section 4.2 asks to report (passed on, not dropped).
    pub ecn_anomalies: u64,
    drops: [u64; DropReason::COUNT],
}

impl Counters {
    /// All zero.
    pub const ZERO: Self = Self {
        received: Tally {
            packets: 0,
            octets: 0,
        },
        forwarded: Tally {
            packets: 0,
            octets: 0,
        },
        fragmented: 0,
        fragments: 0,
        mss_clamped: 0,
        replies: 0,
        replies_suppressed: 0,
        ecn_anomalies: 0,
        drops: [0; DropReason::COUNT],
    };

    /// Counts one drop.
    pub fn count_drop(&mut self, reason: DropReason) {
        if let Some(count) = self.drops.get_mut(reason as usize) {
            *count += 1;
        }
    }

    /// Drops for one reason.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or_default()
    }

    /// Drops for all reasons.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// The reasons that occurred, with their counts.
    pub fn drops_by_reason(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL
            .iter()
            .copied()
            .map(|reason| (reason, self.drops(reason)))
            .filter(|(_, count)| *count > 0)
    }

    /// Adds the counts of another worker.
    pub fn add(&mut self, other: &Self) {
        self.received.add(other.received);
        self.forwarded.add(other.forwarded);
        self.fragmented += other.fragmented;
        self.fragments += other.fragments;
        self.mss_clamped += other.mss_clamped;
        self.replies += other.replies;
        self.replies_suppressed += other.replies_suppressed;
        self.ecn_anomalies += other.ecn_anomalies;
        for (mine, theirs) in self.drops.iter_mut().zip(other.drops) {
            *mine += theirs;
        }
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::ZERO
    }
}

/// Packets and octets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Octets of those packets.
    pub octets: u64,
}

impl Tally {
    /// Counts one packet of `octets`.
    pub const fn count(&mut self, octets: usize) {
        self.packets += 1;
        self.octets += octets as u64;
    }

    /// Adds another tally.
    pub const fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.octets += other.octets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let mut counters = Counters::ZERO;
        for (index, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert!(
                DropReason::ALL
                    .iter()
                    .filter(|other| other.name() == reason.name())
                    .count()
                    == 1
            );
            counters.count_drop(reason);
        }
        assert_eq!(usize::try_from(counters.dropped()), Ok(DropReason::COUNT));
        assert!(counters.drops_by_reason().all(|(_, count)| count == 1));
    }
}
