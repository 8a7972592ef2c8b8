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
    Arrival, Departure, FRONT_PADDING, Front, Key, OUTER_OCTETS, PLACE, SHIM_OCTETS, global,
    of_flow,
};
use super::number;
use super::paths::Path;
use crate::counters::{
    DeviceReport, DirectionReport, PeerTallyReport, SocketReport, TallyReport, WorkerReport,
};
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
    encap: TallyReport,
    decap: TallyReport,
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
            encap: TallyReport::default(),
            decap: TallyReport::default(),
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

    /// Lets the packets of a flow leave by the short way, from `source_port`.
    pub(super) fn depart(
        &mut self,
        offer: &DepartureOffer,
        tables: &Tables,
        source_port: u16,
        path: Path,
    ) {
        let Some(Tunnel {
            local,
            remote,
            remote_port,
            shim,
            ..
        }) = Tunnel::of(&offer.link, offer.shim.octets())
        else {
            return;
        };
        let room = path.mtu.saturating_sub(u32::from(OUTER_OCTETS));
        let largest = offer.largest_octets.min(usize::try_from(room).unwrap_or(0));
        let Ok(largest_octets) = u16::try_from(largest) else {
            return;
        };
        if !offer.link.dont_fragment {
            return;
        }
        let key = Key::of(&offer.flow);
        let link = &offer.link;
        let Some(place) = self.place(
            Way::Encap,
            key,
            (link.local, link.remote),
            offer.peer,
            offer.kind.name(),
            tables,
        ) else {
            return;
        };
        let front = front(
            local,
            remote,
            source_port,
            remote_port,
            link.hop_limit,
            shim,
        );
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
            takes_super: u8::from(path.takes_super),
            padding: [0; 3],
            sum: sum(&front.ip),
            front,
        };
        if let Err(error) = self.departures.insert(&key, &departure) {
            debug!(%error, "no entry for a flow");
            self.remove(Way::Encap, &key);
        }
    }

    /// Lets the packets of a flow be delivered by the short way.
    pub(super) fn arrive(&mut self, offer: &DeliveryOffer, tables: &Tables) {
        let Some(Tunnel {
            local,
            remote,
            local_port,
            shim,
            ..
        }) = Tunnel::of(&offer.link, offer.shim.octets())
        else {
            return;
        };
        let key = Key::of(&offer.flow);
        let link = &offer.link;
        let Some(place) = self.place(
            Way::Decap,
            key,
            (link.local, link.remote),
            offer.peer,
            offer.kind.name(),
            tables,
        ) else {
            return;
        };
        // What goes on to another host may have to be cut again, for which a super-packet would have
        // to lose the kernel's mark of the tunnel that it came through.
        let ends_here = tables.local().addresses.contains(&offer.flow.destination);
        let arrival = Arrival {
            generation: number(tables.epoch()),
            slot: place,
            remote: remote.octets(),
            local: local.octets(),
            dscp: offer.dscp,
            outer_dscp: offer.outer_dscp,
            passes: offer.passes,
            port: local_port.to_be_bytes(),
            takes_super: u8::from(ends_here),
            padding: 0,
            shim,
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
        let failed = |at: usize| self.number(at);
        let (failed, failed_octets) = (
            failed(global::ENCAP_FAILED),
            failed(global::ENCAP_FAILED_OCTETS),
        );
        let direction = |received, forwarded| DirectionReport {
            received,
            forwarded,
            ..DirectionReport::default()
        };
        let (read, written) = (self.encap, self.decap);
        let left = with_shims(read.packets, read.octets);
        let received = with_shims(written.packets, written.octets);
        let send_drops = (failed > 0).then(|| (FAILED.to_owned(), failed));
        let failed = with_shims(failed, failed_octets);
        WorkerReport {
            device: DeviceReport {
                read,
                written,
                ..DeviceReport::default()
            },
            sockets: vec![SocketReport {
                socket: "udp4".to_owned(),
                received,
                sent: TallyReport {
                    packets: left.packets.saturating_sub(failed.packets),
                    octets: left.octets.saturating_sub(failed.octets),
                },
                send_drops: send_drops.into_iter().collect(),
                ..SocketReport::default()
            }],
            encap: direction(read, left),
            decap: direction(received, written),
            peers: self.peers.values().cloned().collect(),
            ..WorkerReport::default()
        }
    }

    /// The place of a flow, a new one if it had none; `None` when all are taken.
    fn place(
        &mut self,
        way: Way,
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
        match counted.way {
            Way::Encap => {
                self.encap.add(new);
                let sent = with_shims(new.packets, new.octets);
                peer.encap.add(sent);
                by.encap.add(sent);
            }
            Way::Decap => {
                self.decap.add(new);
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

/// Packets of so many octets with their shims.
const fn with_shims(packets: u64, octets: u64) -> TallyReport {
    TallyReport {
        packets,
        octets: octets + packets * SHIM_OCTETS as u64,
    }
}

/// Where number `at` of a place is.
fn at_place(place: u32, at: usize) -> usize {
    PLACE * (place as usize + 1) + at
}

/// The ends of a tunnel that the programs can carry, and its shim.
struct Tunnel {
    local: Ipv4Addr,
    remote: Ipv4Addr,
    local_port: u16,
    remote_port: u16,
    shim: [u8; SHIM_OCTETS],
}

impl Tunnel {
    fn of(link: &Link, shim: &[u8]) -> Option<Self> {
        let (IpAddr::V4(local), IpAddr::V4(remote)) = (link.local, link.remote) else {
            return None;
        };
        let Transport::Udp {
            local_port,
            remote_port,
            ..
        } = link.transport
        else {
            return None;
        };
        Some(Self {
            local,
            remote,
            local_port,
            remote_port,
            shim: shim.try_into().ok()?,
        })
    }
}

fn front(
    local: Ipv4Addr,
    remote: Ipv4Addr,
    source_port: u16,
    port: u16,
    ttl: u8,
    shim: [u8; SHIM_OCTETS],
) -> Front {
    let mut header = Ipv4Header::new(local, remote, ip_protocol::UDP, 0);
    header.set_ttl(ttl);
    header.set_fragment_word(Ipv4Header::DONT_FRAGMENT);
    let mut ip = [0; 20];
    ip.copy_from_slice(header.as_bytes());
    ip[10..12].fill(0);
    let [[a, b], [c, d]] = [source_port, port].map(u16::to_be_bytes);
    Front {
        padding: [0; FRONT_PADDING],
        ip,
        udp: [a, b, c, d, 0, 0, 0, 0],
        shim,
        rest: [0; 4],
    }
}

/// The sum of a header's words without the first two, as they lie in memory.
fn sum(ip: &[u8; 20]) -> u32 {
    let words = ip.as_chunks::<2>().0.iter().skip(2);
    words.map(|word| u32::from(u16::from_ne_bytes(*word))).sum()
}

/// What packets that a program dropped halfway are called among the drops.
pub(super) const FAILED: &str = "flow_offload";

/// Sweeps after which an idle flow is ended: usually, and where places are wanted.
const IDLE_LONG: u32 = 60;
const IDLE_SHORT: u32 = 2;
