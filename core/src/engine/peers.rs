//! What each peer sent and was sent.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::encap::EncapsulationKind;
use crate::tables::Peer;
use crate::verdict::Tally;

/// The counts of one peer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PeerCounters {
    /// Packets that were encapsulated for the peer, with the shim, by encapsulation.
    sent: [Tally; EncapsulationKind::ALL.len()],
    /// Packets of the peer that were delivered, as delivered, by encapsulation.
    received: [Tally; EncapsulationKind::ALL.len()],
    /// Packets of the peer that were dropped, for whatever reason.
    pub refused: u64,
}

impl PeerCounters {
    /// Packets that were encapsulated for the peer with `kind`; octets include the shim and not
    /// the outer headers.
    #[must_use]
    pub fn sent_by(&self, kind: EncapsulationKind) -> Tally {
        self.sent.get(kind as usize).copied().unwrap_or_default()
    }

    /// Packets of the peer that came with `kind` and were delivered; octets are those of the inner
    /// packets.
    #[must_use]
    pub fn received_by(&self, kind: EncapsulationKind) -> Tally {
        self.received
            .get(kind as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Packets that were encapsulated for the peer.
    #[must_use]
    pub fn sent(&self) -> Tally {
        total(&self.sent)
    }

    /// Packets of the peer that were delivered.
    #[must_use]
    pub fn received(&self) -> Tally {
        total(&self.received)
    }

    /// Adds the counts of another worker.
    pub fn add(&mut self, other: &Self) {
        let mine = self.sent.iter_mut().chain(&mut self.received);
        let theirs = other.sent.iter().chain(&other.received);
        for (mine, theirs) in mine.zip(theirs) {
            mine.add(*theirs);
        }
        self.refused += other.refused;
    }

    pub(super) fn count_sent(&mut self, kind: EncapsulationKind, octets: usize) {
        if let Some(tally) = self.sent.get_mut(kind as usize) {
            tally.count(octets);
        }
    }

    /// Counts `packets` of `octets` together.
    pub(super) fn count_sent_many(&mut self, kind: EncapsulationKind, packets: u64, octets: usize) {
        if let Some(tally) = self.sent.get_mut(kind as usize) {
            tally.add(Tally {
                packets,
                octets: octets as u64,
            });
        }
    }

    pub(super) fn count_received(&mut self, kind: EncapsulationKind, octets: usize) {
        if let Some(tally) = self.received.get_mut(kind as usize) {
            tally.count(octets);
        }
    }
}

/// The counters for `new` peers: those of the `old` one of the same name, or zero.
///
/// Peers mostly stay under their numbers, so that is where the old one is looked for first.
pub(super) fn carry_over(
    old: &[Arc<Peer>],
    counters: &[PeerCounters],
    new: &[Arc<Peer>],
) -> Vec<PeerCounters> {
    let stays = |old: &Arc<Peer>, new: &Arc<Peer>| Arc::ptr_eq(old, new) || old.name == new.name;
    let mut moved: Option<BTreeMap<&str, PeerCounters>> = None;
    let carried = new.iter().enumerate().map(|(index, peer)| {
        let counted = counters.get(index).copied().unwrap_or_default();
        match old.get(index) {
            Some(before) if stays(before, peer) => counted,
            Some(_) | None => {
                let moved = moved.get_or_insert_with(|| by_name(old, counters, new));
                moved.get(peer.name.as_str()).copied().unwrap_or_default()
            }
        }
    });
    carried.collect()
}

/// The counters of those of `old` that are not under the same number in `new`.
fn by_name<'p>(
    old: &'p [Arc<Peer>],
    counters: &[PeerCounters],
    new: &[Arc<Peer>],
) -> BTreeMap<&'p str, PeerCounters> {
    let gone = old.iter().zip(counters).enumerate();
    let gone = gone.filter(|(index, (peer, _))| {
        let still = new.get(*index).is_some_and(|now| now.name == peer.name);
        !still && !peer.is_vacant()
    });
    gone.map(|(_, (peer, counters))| (peer.name.as_str(), *counters))
        .collect()
}

fn total(tallies: &[Tally]) -> Tally {
    let mut total = Tally::default();
    for tally in tallies {
        total.add(*tally);
    }
    total
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use super::*;
    use crate::tables::DscpMode;

    fn peers(names: &[&str]) -> Vec<Arc<Peer>> {
        let peer = |name: &&str| {
            Arc::new(Peer {
                name: name.to_string(),
                underlay: Vec::new(),
                dscp: DscpMode::Pipe(0),
            })
        };
        names.iter().map(peer).collect()
    }

    #[test]
    fn counts_follow_the_name_whatever_number_the_peer_has() {
        let old = peers(&["a", "b", "", "c"]);
        let counted = |n: u64| PeerCounters {
            refused: n,
            ..PeerCounters::default()
        };
        let counters = [counted(1), counted(2), counted(0), counted(3)];
        let now = |names: &[&str]| -> Vec<u64> {
            let carried = carry_over(&old, &counters, &peers(names));
            carried.iter().map(|counters| counters.refused).collect()
        };
        assert_eq!(now(&["a", "b", "", "c"]), [1, 2, 0, 3]);
        assert_eq!(now(&["c", "b", "a"]), [3, 2, 1]);
        assert_eq!(now(&["", "b", "d", "", "a"]), [0, 2, 0, 0, 1]);
        assert_eq!(now(&[]), vec![0; 0]);
    }
}
