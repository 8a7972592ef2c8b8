//! The entries of the maps: making them of offers, counting what they carried, ending them.
//!
//! Which flows there are is also remembered here, because a map of the kernel is slow to walk. An
//! entry has a place among the shared numbers, where its packets are counted; the counts are taken
//! into those of its peer by and by. A place is given to another flow a second at the earliest after
//! its entry was taken out, when no program that found it runs any more.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::debug;
use warren_core::batch::{Link, Transport};
use warren_core::engine::{DeliveryOffer, DepartureOffer};
use warren_core::tables::{PeerId, Tables};
use warren_core::wire::{Ipv4Header, ip_protocol};
use zerocopy::IntoBytes;

use super::layout::{
    Arrival, Carrier, Departure, FRONT_OCTETS, Front, Key, PLACE, SHIM_OCTETS_MAX, global, of_flow,
};
use super::number;
use super::paths::Path;
use crate::counters::{PeerTallyReport, SocketReport, TallyReport, WorkerReport};
use crate::sys::bpf::{self, SharedNumbers};

/// Flows that have an entry at a time, both directions together: a power of two.
pub(super) const PLACES: u32 = 4096;

/// All entries.
#[derive(Debug)]
pub(super) struct Entries {
    numbers: Arc<SharedNumbers>,
    departures: bpf::HashMap<Key, Departure>,
    arrivals: bpf::HashMap<Key, Arrival>,
    flows: HashMap<(Way, Key), Flow>,
    free: Vec<u32>,
    /// Places whose flows were taken out since the last sweep, and before.
    leaving: Vec<Counted>,
    left: Vec<Counted>,
    peers: HashMap<String, PeerTallyReport>,
    carried: HashMap<(Way, Carrier), TallyReport>,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Way {
    Encap,
    Decap,
}

#[derive(Debug)]
struct Flow {
    counted: Counted,
    local: IpAddr,
    remote: IpAddr,
    /// Sweeps in which no packet of it was seen.
    idle: u32,
}

/// What is counted in a place, and for whom.
#[derive(Clone, Debug)]
struct Counted {
    way: Way,
    carrier: Carrier,
    place: u32,
    peer: Arc<str>,
    kind: &'static str,
    /// What was taken into the sums.
    packets: u64,
    octets: u64,
}

impl Entries {
    pub(super) fn new(numbers: Arc<SharedNumbers>) -> io::Result<Self> {
        Ok(Self {
            numbers,
            departures: bpf::HashMap::new(PLACES)?,
            arrivals: bpf::HashMap::new(PLACES)?,
            flows: HashMap::new(),
            free: (0..PLACES).rev().collect(),
            leaving: Vec::new(),
            left: Vec::new(),
            peers: HashMap::new(),
            carried: HashMap::new(),
        })
    }

    pub(super) fn departures(&self) -> BorrowedFd<'_> {
        self.departures.as_fd()
    }

    pub(super) fn arrivals(&self) -> BorrowedFd<'_> {
        self.arrivals.as_fd()
    }

    pub(super) fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Lets the packets of a flow leave by the short way, in UDP from `source_port`.
    pub(super) fn depart(
        &mut self,
        offer: &DepartureOffer,
        tables: &Tables,
        source_port: Option<u16>,
        path: Path,
    ) {
        let Some(tunnel) = Tunnel::of(&offer.link, offer.shim.octets()) else {
            return;
        };
        let Some(outer) = tunnel.outer(source_port, &offer.link) else {
            return;
        };
        let carrier = tunnel.carrier;
        let room = path.mtu.saturating_sub(u32::from(carrier.outer_octets()));
        let largest = offer.largest_octets.min(usize::try_from(room).unwrap_or(0));
        let Ok(largest_octets) = u16::try_from(largest) else {
            return;
        };
        let key = Key::of(&offer.flow);
        let link = &offer.link;
        let Some(place) = self.place(
            (Way::Encap, carrier),
            key,
            (link.local, link.remote),
            offer.peer,
            offer.kind.name(),
            tables,
        ) else {
            return;
        };
        let departure = Departure {
            generation: number(tables.epoch()),
            device: path.device,
            slot: place,
            largest_octets,
            dscp: offer.dscp,
            dont_fragment: if key.version == 4 && offer.dont_fragment {
                0x40
            } else {
                0
            },
            traffic_classes: offer.traffic_classes,
            outer_octets: carrier.outer_octets(),
            joins: u8::from(carrier.is_udp() || path.takes_rows),
            padding: [0; 2],
            sum: sum(&outer),
            sum_of_udp: sum_of_udp(&outer, &key),
            rest: [0; 4],
            front: front(&outer),
        };
        if let Err(error) = self.departures.insert(&key, &departure) {
            debug!(%error, "no entry for a flow");
            self.remove(Way::Encap, &key);
        }
    }

    /// Lets the packets of a flow be delivered by the short way.
    pub(super) fn arrive(&mut self, offer: &DeliveryOffer, tables: &Tables) {
        let Some(tunnel) = Tunnel::of(&offer.link, offer.shim.octets()) else {
            return;
        };
        let key = Key::of(&offer.flow);
        let link = &offer.link;
        let Some(place) = self.place(
            (Way::Decap, tunnel.carrier),
            key,
            (link.local, link.remote),
            offer.peer,
            offer.kind.name(),
            tables,
        ) else {
            return;
        };
        // What goes on to another host may have to be cut again, as datagrams have for a socket here, too:
        // for that a super-packet would have to lose the kernel's mark of the tunnel that it came through.
        let ends_here = tables.local().addresses.contains(&offer.flow.destination);
        let takes_super = ends_here && offer.flow.protocol == ip_protocol::TCP;
        let arrival = Arrival {
            generation: number(tables.epoch()),
            slot: place,
            remote: tunnel.remote.octets(),
            local: tunnel.local.octets(),
            dscp: offer.dscp,
            outer_dscp: offer.outer_dscp,
            passes: offer.passes,
            port: tunnel.ports.map_or(0, |(local, _)| local).to_be_bytes(),
            takes_super: u8::from(takes_super),
            outer_octets: tunnel.carrier.outer_octets(),
            shim: tunnel.shim,
            rest: [0; 6],
        };
        if let Err(error) = self.arrivals.insert(&key, &arrival) {
            debug!(%error, "no entry for a flow");
            self.remove(Way::Decap, &key);
        }
    }

    /// From where to where packets take the short way.
    pub(super) fn ends(&self) -> HashSet<(IpAddr, IpAddr)> {
        let leaving = self.flows.iter().filter(|((way, _), _)| *way == Way::Encap);
        leaving.map(|(_, flow)| (flow.local, flow.remote)).collect()
    }

    /// Ends what leaves between any of these.
    pub(super) fn leave(&mut self, ends: &HashSet<(IpAddr, IpAddr)>) {
        self.remove_where(|(way, _), flow| {
            *way == Way::Encap && ends.contains(&(flow.local, flow.remote))
        });
    }

    /// Takes the counts, ends what has been idle for long, frees the places of what ended in the
    /// last sweep but one.
    pub(super) fn sweep(&mut self) {
        self.count();
        let is_full = self.free.is_empty();
        self.remove_where(|_, flow| flow.idle >= if is_full { IDLE_SHORT } else { IDLE_LONG });
        for counted in std::mem::take(&mut self.left) {
            self.free_place(&counted);
        }
        self.left = std::mem::take(&mut self.leaving);
    }

    /// What was carried so far.
    pub(super) fn report(&mut self) -> WorkerReport {
        self.count_only();
        let mut report = WorkerReport::default();
        for (is_udp, name, failed) in [
            (true, "udp4", global::ENCAP_FAILED_UDP),
            (false, "ip4", global::ENCAP_FAILED_IP),
        ] {
            let mut sum = [TallyReport::default(); 4];
            let carriers = Carrier::ALL.into_iter();
            for carrier in carriers.filter(|carrier| carrier.is_udp() == is_udp) {
                let carried = |way| self.carried.get(&(way, carrier)).copied();
                let carried = |way| carried(way).unwrap_or_default();
                let (read, written) = (carried(Way::Encap), carried(Way::Decap));
                let both = [
                    read,
                    with_shims(carrier, read),
                    with_shims(carrier, written),
                    written,
                ];
                for (sum, of) in sum.iter_mut().zip(both) {
                    sum.add(of);
                }
            }
            let [read, left, received, written] = sum;
            let failed = TallyReport {
                packets: self.number(failed),
                octets: self.number(failed + 1),
            };
            let send_drops = (failed.packets > 0).then(|| (FAILED.to_owned(), failed.packets));
            report.device.read.add(read);
            report.device.written.add(written);
            report.encap.received.add(read);
            report.encap.forwarded.add(left);
            report.decap.received.add(received);
            report.decap.forwarded.add(written);
            report.sockets.push(SocketReport {
                socket: name.to_owned(),
                received,
                sent: TallyReport {
                    packets: left.packets.saturating_sub(failed.packets),
                    octets: left.octets.saturating_sub(failed.octets),
                },
                send_drops: send_drops.into_iter().collect(),
                ..SocketReport::default()
            });
        }
        report.peers = self.peers.values().cloned().collect();
        report
    }

    /// The place of a flow, a new one if it had none; `None` when all are taken.
    fn place(
        &mut self,
        (way, carrier): (Way, Carrier),
        key: Key,
        (local, remote): (IpAddr, IpAddr),
        peer: PeerId,
        kind: &'static str,
        tables: &Tables,
    ) -> Option<u32> {
        let peer = &tables.peer(peer)?.name;
        if let Some(flow) = self.flows.get(&(way, key)) {
            let same = *flow.counted.peer == **peer && flow.counted.kind == kind;
            if same && flow.local == local && flow.remote == remote {
                return Some(flow.counted.place);
            }
            // It is another's now.
            self.remove(way, &key);
        }
        let place = self.free.pop()?;
        let counted = Counted {
            way,
            carrier,
            place,
            peer: peer.as_str().into(),
            kind,
            packets: 0,
            octets: 0,
        };
        let flow = Flow {
            counted,
            local,
            remote,
            idle: 0,
        };
        self.flows.insert((way, key), flow);
        Some(place)
    }

    fn remove(&mut self, way: Way, key: &Key) {
        let Some(flow) = self.flows.remove(&(way, *key)) else {
            return;
        };
        // Where there is no entry, none is in the way.
        let _ = match way {
            Way::Encap => self.departures.remove(key),
            Way::Decap => self.arrivals.remove(key),
        };
        self.leaving.push(flow.counted);
    }

    fn remove_where(&mut self, which: impl Fn(&(Way, Key), &Flow) -> bool) {
        let gone = self.flows.iter().filter(|(key, flow)| which(key, flow));
        let gone: Vec<(Way, Key)> = gone.map(|(key, _)| *key).collect();
        for (way, key) in gone {
            self.remove(way, &key);
        }
    }

    fn free_place(&mut self, counted: &Counted) {
        let mut counted = counted.clone();
        self.take(&mut counted);
        let start = at_place(counted.place, 0);
        let place = self.numbers.numbers().get(start..start + PLACE);
        for number in place.unwrap_or_default() {
            number.store(0, Ordering::Relaxed);
        }
        self.free.push(counted.place);
    }

    fn count(&mut self) {
        let mut flows = std::mem::take(&mut self.flows);
        for flow in flows.values_mut() {
            let moved = self.take(&mut flow.counted);
            flow.idle = if moved { 0 } else { flow.idle + 1 };
        }
        self.flows = flows;
    }

    fn count_only(&mut self) {
        let mut flows = std::mem::take(&mut self.flows);
        for flow in flows.values_mut() {
            if self.take(&mut flow.counted) {
                flow.idle = 0;
            }
        }
        self.flows = flows;
        let mut leaving = std::mem::take(&mut self.leaving);
        let mut left = std::mem::take(&mut self.left);
        for counted in leaving.iter_mut().chain(&mut left) {
            self.take(counted);
        }
        (self.leaving, self.left) = (leaving, left);
    }

    /// Takes into the sums what was counted since the last time; says whether there was something.
    fn take(&mut self, counted: &mut Counted) -> bool {
        let packets = self.number(at_place(counted.place, of_flow::PACKETS));
        let octets = self.number(at_place(counted.place, of_flow::OCTETS));
        let new = TallyReport {
            packets: packets - counted.packets,
            octets: octets - counted.octets,
        };
        if new == TallyReport::default() {
            return false;
        }
        (counted.packets, counted.octets) = (packets, octets);
        let name = counted.peer.to_string();
        let peer = self
            .peers
            .entry(name)
            .or_insert_with_key(|name| PeerTallyReport {
                peer: name.clone(),
                ..PeerTallyReport::default()
            });
        let by = peer.by_encapsulation.entry(counted.kind.to_owned());
        let by = by.or_default();
        let carried = self.carried.entry((counted.way, counted.carrier));
        carried.or_default().add(new);
        match counted.way {
            Way::Encap => {
                let sent = with_shims(counted.carrier, new);
                peer.encap.add(sent);
                by.encap.add(sent);
            }
            Way::Decap => {
                peer.decap.add(new);
                by.decap.add(new);
            }
        }
        true
    }

    fn number(&self, at: usize) -> u64 {
        let number = self.numbers.numbers().get(at);
        number.map_or(0, |number| number.load(Ordering::Relaxed))
    }
}

/// Packets with their shims.
const fn with_shims(carrier: Carrier, of: TallyReport) -> TallyReport {
    TallyReport {
        packets: of.packets,
        octets: of.octets + of.packets * carrier.shim_octets() as u64,
    }
}

/// Where number `at` of a place is.
fn at_place(place: u32, at: usize) -> usize {
    PLACE * (place as usize + 1) + at
}

/// A tunnel that the programs can carry.
struct Tunnel {
    carrier: Carrier,
    local: Ipv4Addr,
    remote: Ipv4Addr,
    /// Of the outer header.
    protocol: u8,
    /// Of this node and the other, in UDP.
    ports: Option<(u16, u16)>,
    /// Filled up with zeros.
    shim: [u8; SHIM_OCTETS_MAX],
}

impl Tunnel {
    fn of(link: &Link, shim: &[u8]) -> Option<Self> {
        let (IpAddr::V4(local), IpAddr::V4(remote)) = (link.local, link.remote) else {
            return None;
        };
        let (protocol, ports) = match link.transport {
            Transport::Udp {
                local_port,
                remote_port,
                ..
            } => (ip_protocol::UDP, Some((local_port, remote_port))),
            Transport::Ip { protocol } => (protocol, None),
        };
        let carrier = Carrier::ALL.into_iter().find(|carrier| {
            let octets = usize::from(carrier.shim_octets());
            carrier.is_udp() == ports.is_some() && octets == shim.len()
        })?;
        let mut filled = [0; SHIM_OCTETS_MAX];
        for (octet, of_shim) in filled.iter_mut().zip(shim) {
            *octet = *of_shim;
        }
        Some(Self {
            carrier,
            local,
            remote,
            protocol,
            ports,
            shim: filled,
        })
    }

    /// What stands in front of a packet, with lengths, traffic class, identification and checksum left out;
    /// `None` for what does not go this way.
    fn outer(&self, source_port: Option<u16>, link: &Link) -> Option<Vec<u8>> {
        let mut header = Ipv4Header::new(self.local, self.remote, self.protocol, 0);
        header.set_ttl(link.hop_limit);
        if link.dont_fragment {
            header.set_fragment_word(Ipv4Header::DONT_FRAGMENT);
        } else if self.ports.is_some() {
            // All that is carried in UDP has it; what has not is a packet that is cut already.
            return None;
        }
        let mut octets = header.as_bytes().to_vec();
        if let Some(checksum) = octets.get_mut(10..12) {
            checksum.fill(0);
        }
        if let Some((_, port)) = self.ports {
            octets.extend(source_port?.to_be_bytes());
            octets.extend(port.to_be_bytes());
            octets.extend([0; 4]);
        }
        let shim = usize::from(self.carrier.shim_octets());
        octets.extend(self.shim.iter().take(shim));
        Some(octets)
    }
}

fn front(outer: &[u8]) -> Front {
    let mut octets = [0; FRONT_OCTETS];
    for (octet, of_outer) in octets.iter_mut().rev().zip(outer.iter().rev()) {
        *octet = *of_outer;
    }
    Front {
        octets,
        rest: [0; 4],
    }
}

/// The sum of the words of the IPv4 header at the front without the first two and the identification, which
/// is zero, as they lie in memory.
fn sum(outer: &[u8]) -> u32 {
    words(outer).take(10).skip(2).map(u32::from).sum()
}

/// What the outer UDP checksum sums of packets with these in front and of that flow, whatever they are: all but
/// lengths, and what an IPv6 header has besides its addresses. Of the inner packet there remains the complement of
/// the pseudo-header of its TCP (RFC 9293 section 3.1), which the addresses of an IPv6 header undo.
fn sum_of_udp(outer: &[u8], key: &Key) -> u32 {
    let of_outer = |range| words(outer.get(range).unwrap_or_default());
    let pseudo = [0, ip_protocol::UDP];
    let outer = of_outer(12..24).chain(of_outer(28..outer.len()));
    let outer = outer.chain(words(&pseudo)).map(u32::from);
    let address_octets = if key.version == 4 { 4 } else { 0 };
    let of_inner = |address: &[u8]| {
        address
            .iter()
            .copied()
            .take(address_octets)
            .collect::<Vec<_>>()
    };
    let (source, destination) = (of_inner(&key.source), of_inner(&key.destination));
    let pseudo = [source, destination, vec![0, key.protocol]].concat();
    let inner = words(&pseudo).map(|word| u32::from(!word));
    outer.sum::<u32>() + inner.sum::<u32>()
}

/// Words as they lie in memory.
fn words(octets: &[u8]) -> impl Iterator<Item = u16> {
    let words = octets.as_chunks::<2>().0.iter();
    words.map(|word| u16::from_ne_bytes(*word))
}

/// What packets that a program dropped halfway are called among the drops.
pub(super) const FAILED: &str = "flow_offload";

/// Sweeps after which an idle flow is ended: usually, and where places are wanted.
const IDLE_LONG: u32 = 60;
const IDLE_SHORT: u32 = 2;
