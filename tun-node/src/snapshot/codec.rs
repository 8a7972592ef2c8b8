//! The octets of a state file.
//!
//! | octet | 0..8          | 8..12   | 12..20            | 20..28   | 28..     |
//! |-------|---------------|---------|-------------------|----------|----------|
//! | field | `warren` 0 10 | version | octets of payload | checksum | payload  |
//!
//! Numbers are little-endian. The checksum covers everything before and behind it. The payload is
//! a row of sections, each a kind (one octet) and its length (eight octets) and a bincode 2 value
//! (variable-length integers); a section of an unknown kind is passed over, so that a later node
//! may remember more without a new version. Sections: 1 the file itself, 2 a source's head, 3
//! entries of the source named last, 4 leases, 5 paths, 7 what followed from the entries. (6 is kept
//! for the FDB and its bindings.)
//!
//! Reading trusts nothing: a checksum is no signature, so every value is made by the constructor
//! that a source would use, and a value that cannot be makes the file a damaged one.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bincode::{BorrowDecode, Encode};
use ipnet::IpNet;
use warren_core::encap::Encapsulation;
use warren_core::units::{Family, MacAddr, Mtu, Vni};

use super::checksum::checksum;
use super::{Saved, SavedLease, SavedPath, SavedSource};
use crate::rib::{Content, Entry, Recall, RecallWay, Remote, RemoteRoute, SourceKind, Via};

/// When a file was written, by two clocks.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Moment {
    /// Identifies the boot of the host; empty where it is not known.
    pub(super) boot: String,
    /// Since that boot, sleep included.
    pub(super) since_boot: Duration,
    /// Since 1970 by the wall clock.
    pub(super) wall: Duration,
}

impl Moment {
    /// How long ago it was. A wall clock that ran backwards tells nothing: no time at all, then,
    /// for forgetting is the greater harm.
    fn elapsed(&self, now: &Self) -> Duration {
        if !self.boot.is_empty() && self.boot == now.boot {
            return now.since_boot.saturating_sub(self.since_boot);
        }
        now.wall.saturating_sub(self.wall)
    }
}

/// Why octets are no state.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Damage {
    /// It is not a state file, or one of another program.
    #[error("it is no state file")]
    Foreign,
    /// It ends early or goes on behind its end.
    #[error("it has {found} octets and should have {expected}")]
    Length {
        /// Octets that it has.
        found: u64,
        /// Octets that it says.
        expected: u64,
    },
    /// Its octets are not those that were written.
    #[error("its checksum does not match")]
    Checksum,
    /// A newer program wrote it.
    #[error("it has version {version}, this program knows version {VERSION}")]
    Version {
        /// Its version.
        version: u32,
    },
    /// A value in it cannot be.
    #[error("a value in it is impossible: {what}")]
    Value {
        /// Which.
        what: &'static str,
    },
}

/// Makes a file of a state.
pub(super) fn encode(saved: &Saved, now: &Moment) -> Vec<u8> {
    let mut out = vec![0; HEADER_OCTETS];
    section(&mut out, SECTION_FILE, |out| {
        let Moment {
            boot,
            since_boot,
            wall,
        } = now;
        let node = saved.node.as_str();
        put(
            FileWire {
                node,
                boot,
                since_boot: nanos(*since_boot),
                wall: nanos(*wall),
            },
            out,
        );
    });
    for source in &saved.sources {
        section(&mut out, SECTION_SOURCE, |out| {
            put(
                SourceWire {
                    source: source.source.name(),
                    scope: &source.scope,
                    position: source.position,
                    age: nanos(source.age),
                },
                out,
            );
        });
        section(&mut out, SECTION_ENTRIES, |out| {
            for entry in &source.entries {
                let (own, remote) = match &entry.content {
                    Content::Remote(remote) => (false, remote),
                    Content::Own(remote) => (true, remote),
                    // Nothing usable is nothing to remember.
                    Content::Refused(_) => continue,
                };
                // Nor is what would be refused when it is read: it would take the rest along.
                let mut routes = remote.routes.iter().map(RouteWire::of);
                if remote.routes.is_empty() || routes.any(|route| route.read().is_err()) {
                    continue;
                }
                let count = u32::try_from(remote.routes.len());
                put(
                    EntryWire {
                        key: &entry.key,
                        rank: entry.rank,
                        own,
                        node: &remote.node,
                        routes: count.expect("a source's entry is shorter than a file"),
                    },
                    out,
                );
                for route in &remote.routes {
                    put(RouteWire::of(route), out);
                }
            }
        });
    }
    if let Some(recall) = &saved.recall {
        section(&mut out, SECTION_RECALL, |out| recall_wire(recall, out));
    }
    section(&mut out, SECTION_LEASES, |out| {
        for lease in &saved.leases {
            put(
                LeaseWire {
                    source: lease.source.name(),
                    scope: &lease.scope,
                    prefixes: lease.prefixes.iter().map(PrefixWire::of).collect(),
                    vteps: lease
                        .vteps
                        .iter()
                        .map(|(family, mac)| (*family == Family::V6, mac.octets()))
                        .collect(),
                    network: &lease.network,
                },
                out,
            );
        }
    });
    section(&mut out, SECTION_PATHS, |out| {
        for path in &saved.paths {
            put(
                PathWire {
                    peer: &path.peer,
                    underlay_mtu: path.underlay_mtu.octets(),
                },
                out,
            );
        }
    });
    seal(&mut out);
    out
}

/// Writes the header of a file whose payload stands behind its place.
pub(super) fn seal(file: &mut [u8]) {
    let payload = (file.len().saturating_sub(HEADER_OCTETS)) as u64;
    if let Some((header, rest)) = file.split_first_chunk_mut::<HEADER_OCTETS>() {
        let mut head = [0; CHECKSUM_AT];
        let fields = MAGIC
            .into_iter()
            .chain(VERSION.to_le_bytes())
            .chain(payload.to_le_bytes());
        for (octet, field) in head.iter_mut().zip(fields) {
            *octet = field;
        }
        let sum = checksum(&[&head, rest]).to_le_bytes();
        for (octet, field) in header.iter_mut().zip(head.into_iter().chain(sum)) {
            *octet = field;
        }
    }
}

/// Whether a file is whole, whatever its version.
pub(super) fn verify(file: &[u8]) -> Result<(u32, &[u8]), Damage> {
    let short = || Damage::Length {
        found: file.len() as u64,
        expected: HEADER_OCTETS as u64,
    };
    let (magic, rest) = file.split_first_chunk::<8>().ok_or_else(short)?;
    if *magic != MAGIC {
        return Err(Damage::Foreign);
    }
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (sum, payload) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let expected = u64::from_le_bytes(*length);
    if payload.len() as u64 != expected {
        return Err(Damage::Length {
            found: file.len() as u64,
            expected: expected.saturating_add(HEADER_OCTETS as u64),
        });
    }
    let head = file.get(..CHECKSUM_AT).unwrap_or_default();
    if checksum(&[head, payload]) != u64::from_le_bytes(*sum) {
        return Err(Damage::Checksum);
    }
    Ok((u32::from_le_bytes(*version), payload))
}

/// Reads a file; the ages in it are those of `now`.
///
/// # Errors
///
/// [`Damage`]; never a part of a state.
pub(super) fn decode(file: &[u8], now: &Moment) -> Result<Saved, Damage> {
    read(file, now, true)
}

/// The same without the entries, which are most of a file. That they can be is not known then.
///
/// # Errors
///
/// As [`decode`].
pub(super) fn decode_head(file: &[u8], now: &Moment) -> Result<Saved, Damage> {
    read(file, now, false)
}

fn read(file: &[u8], now: &Moment, is_whole: bool) -> Result<Saved, Damage> {
    let (version, mut payload) = verify(file)?;
    if version != VERSION {
        return Err(Damage::Version { version });
    }
    let mut saved = Saved::default();
    let mut elapsed = None;
    while let Some((kind, rest)) = payload.split_first() {
        let impossible = || Damage::Value { what: "a section" };
        let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(impossible)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| impossible())?;
        let (mut section, rest) = rest.split_at_checked(length).ok_or_else(impossible)?;
        payload = rest;
        match *kind {
            SECTION_FILE => {
                let file: FileWire<'_> = take(&mut section)?;
                file.node.clone_into(&mut saved.node);
                let written = Moment {
                    boot: file.boot.to_owned(),
                    since_boot: Duration::from_nanos(file.since_boot),
                    wall: Duration::from_nanos(file.wall),
                };
                elapsed = Some(written.elapsed(now));
            }
            SECTION_SOURCE => {
                let wire: SourceWire<'_> = take(&mut section)?;
                let elapsed = elapsed.ok_or_else(impossible)?;
                saved.sources.push(SavedSource {
                    source: source_kind(wire.source)?,
                    scope: wire.scope.to_owned(),
                    position: wire.position,
                    age: Duration::from_nanos(wire.age).saturating_add(elapsed),
                    entries: Vec::new(),
                });
            }
            SECTION_ENTRIES => {
                let source = saved.sources.last_mut().ok_or_else(impossible)?;
                if !is_whole {
                    continue;
                }
                // The shortest entry has more than this; so no length in a file makes room.
                source.entries.reserve(section.len() / 32);
                while !section.is_empty() {
                    source.entries.push(entry(&mut section)?);
                }
            }
            SECTION_RECALL => saved.recall = Some(recall(&mut section)?),
            SECTION_LEASES => {
                while !section.is_empty() {
                    saved.leases.push(lease(take(&mut section)?)?);
                }
            }
            SECTION_PATHS => {
                while !section.is_empty() {
                    let wire: PathWire<'_> = take(&mut section)?;
                    saved.paths.push(SavedPath {
                        peer: wire.peer.to_owned(),
                        underlay_mtu: mtu(wire.underlay_mtu)?,
                    });
                }
            }
            _ => {}
        }
    }
    elapsed.ok_or(Damage::Value {
        what: "the section of the file is missing",
    })?;
    Ok(saved)
}

#[derive(BorrowDecode, Encode)]
struct FileWire<'f> {
    node: &'f str,
    boot: &'f str,
    since_boot: u64,
    wall: u64,
}

#[derive(BorrowDecode, Encode)]
struct SourceWire<'f> {
    source: &'f str,
    scope: &'f str,
    position: u64,
    age: u64,
}

/// The head of an entry; its [`RouteWire`]s follow it.
#[derive(BorrowDecode, Encode)]
struct EntryWire<'f> {
    key: &'f str,
    rank: u64,
    own: bool,
    node: &'f str,
    routes: u32,
}

/// The head of what followed; its [`WayWire`]s and then its routes follow it.
///
/// | octet | 0                | 1      | 2..6 or 2..18 | 4 more          |
/// |-------|------------------|--------|---------------|-----------------|
/// | field | family: 4 or 6   | length | address       | place of its way |
///
/// Plain octets, because reading them is what the first packet waits for: a hundred thousand take
/// 1 ms, and as values of bincode 20 ms.
#[derive(BorrowDecode, Encode)]
struct RecallWire {
    basis: u64,
    ways: u32,
}

#[derive(BorrowDecode, Encode)]
struct WayWire<'f> {
    source: &'f str,
    node: &'f str,
    /// `None`: this node.
    via: Option<ViaWire>,
}

#[derive(BorrowDecode, Encode)]
struct LeaseWire<'f> {
    source: &'f str,
    scope: &'f str,
    prefixes: Vec<PrefixWire>,
    /// Whether over IPv6, and the address.
    vteps: Vec<(bool, [u8; 6])>,
    network: &'f str,
}

#[derive(BorrowDecode, Encode)]
struct PathWire<'f> {
    peer: &'f str,
    underlay_mtu: u16,
}

#[derive(BorrowDecode, Clone, Copy, Encode)]
struct PrefixWire {
    address: IpAddr,
    length: u8,
}

impl PrefixWire {
    fn of(prefix: &IpNet) -> Self {
        Self {
            address: prefix.addr(),
            length: prefix.prefix_len(),
        }
    }

    fn read(self) -> Result<IpNet, Damage> {
        let prefix = IpNet::new(self.address, self.length).ok();
        let prefix = prefix.filter(|prefix| prefix.trunc() == *prefix);
        prefix.ok_or(Damage::Value { what: "a prefix" })
    }
}

#[derive(BorrowDecode, Encode)]
struct RouteWire {
    prefix: PrefixWire,
    via: ViaWire,
}

impl RouteWire {
    fn of(route: &RemoteRoute) -> Self {
        Self {
            prefix: PrefixWire::of(&route.prefix),
            via: ViaWire::of(&route.via),
        }
    }

    fn read(self) -> Result<RemoteRoute, Damage> {
        Ok(RemoteRoute {
            prefix: self.prefix.read()?,
            via: self.via.read()?,
        })
    }
}

#[derive(BorrowDecode, Encode)]
struct ViaWire {
    remote: IpAddr,
    encapsulation: Option<EncapsulationWire>,
    underlay_mtu: Option<u16>,
}

impl ViaWire {
    fn of(via: &Via) -> Self {
        Self {
            remote: via.remote,
            encapsulation: via.encapsulation.map(EncapsulationWire::of),
            underlay_mtu: via.underlay_mtu.map(Mtu::octets),
        }
    }

    fn read(self) -> Result<Via, Damage> {
        let encapsulation = self.encapsulation.map(EncapsulationWire::read);
        Ok(Via {
            remote: remote(self.remote)?,
            encapsulation: encapsulation.transpose()?,
            underlay_mtu: self.underlay_mtu.map(mtu).transpose()?,
        })
    }
}

/// [`Encapsulation`] with numbers of its own, which stay when the library's order does not.
#[derive(BorrowDecode, Encode)]
enum EncapsulationWire {
    Vxlan { vni: u32, port: u16, mac: [u8; 6] },
    VxlanGpe { vni: u32, port: u16 },
    Geneve { vni: u32, port: u16, mac: [u8; 6] },
    Ipip,
    Fou { port: u16 },
    Gue { port: u16 },
}

impl EncapsulationWire {
    const fn of(encapsulation: Encapsulation) -> Self {
        match encapsulation {
            Encapsulation::Vxlan { vni, port, mac } => Self::Vxlan {
                vni: vni.value(),
                port,
                mac: mac.octets(),
            },
            Encapsulation::VxlanGpe { vni, port } => Self::VxlanGpe {
                vni: vni.value(),
                port,
            },
            Encapsulation::Geneve { vni, port, mac } => Self::Geneve {
                vni: vni.value(),
                port,
                mac: mac.octets(),
            },
            Encapsulation::Ipip => Self::Ipip,
            Encapsulation::Fou { port } => Self::Fou { port },
            Encapsulation::Gue { port } => Self::Gue { port },
        }
    }

    fn read(self) -> Result<Encapsulation, Damage> {
        Ok(match self {
            Self::Vxlan { vni, port, mac } => Encapsulation::Vxlan {
                vni: read_vni(vni)?,
                port: read_port(port)?,
                mac: read_mac(mac)?,
            },
            Self::VxlanGpe { vni, port } => Encapsulation::VxlanGpe {
                vni: read_vni(vni)?,
                port: read_port(port)?,
            },
            Self::Geneve { vni, port, mac } => Encapsulation::Geneve {
                vni: read_vni(vni)?,
                port: read_port(port)?,
                mac: read_mac(mac)?,
            },
            Self::Ipip => Encapsulation::Ipip,
            Self::Fou { port } => Encapsulation::Fou {
                port: read_port(port)?,
            },
            Self::Gue { port } => Encapsulation::Gue {
                port: read_port(port)?,
            },
        })
    }
}

/// Takes an entry and its routes off the front.
fn entry(section: &mut &[u8]) -> Result<Entry, Damage> {
    let wire: EntryWire<'_> = take(section)?;
    // The shortest route has more octets than this; so no number in a file makes room.
    let count = usize::try_from(wire.routes).unwrap_or(usize::MAX);
    if count == 0 || count > section.len() / 8 {
        return Err(Damage::Value {
            what: "how many routes an entry has",
        });
    }
    let mut routes = Vec::with_capacity(count);
    for _ in 0..count {
        routes.push(take::<RouteWire>(section)?.read()?);
    }
    let remote = Arc::new(Remote {
        node: Arc::from(wire.node),
        routes,
    });
    Ok(Entry {
        key: Arc::from(wire.key),
        rank: wire.rank,
        content: if wire.own {
            Content::Own(remote)
        } else {
            Content::Remote(remote)
        },
    })
}

fn recall_wire(recall: &Recall, out: &mut Vec<u8>) {
    // What would be refused when it is read is left out: it would take the rest along.
    let would_be_read = |way: &&RecallWay| {
        let via = way.via.as_ref();
        via.is_none_or(|via| ViaWire::of(via).read().is_ok())
    };
    let mut count = 0;
    let mut places = Vec::with_capacity(recall.ways.len());
    for way in &recall.ways {
        let place = Some(count).filter(|_| would_be_read(&way));
        count += u32::from(place.is_some());
        places.push(place);
    }
    put(
        RecallWire {
            basis: recall.basis,
            ways: count,
        },
        out,
    );
    for way in recall.ways.iter().filter(would_be_read) {
        put(
            WayWire {
                source: way.source.name(),
                node: &way.node,
                via: way.via.as_ref().map(ViaWire::of),
            },
            out,
        );
    }
    for (prefix, way) in &recall.routes {
        let index = usize::try_from(*way).ok();
        let place = match index.and_then(|index| places.get(index)) {
            Some(Some(place)) => place,
            Some(None) => continue,
            // That is no recall, and will not be read as one.
            None => way,
        };
        let length = prefix.prefix_len();
        match prefix.addr() {
            IpAddr::V4(address) => {
                out.extend([4, length]);
                out.extend(address.octets());
            }
            IpAddr::V6(address) => {
                out.extend([6, length]);
                out.extend(address.octets());
            }
        }
        out.extend(place.to_le_bytes());
    }
}

/// Takes a route and the place of its way off the front.
fn recalled(section: &mut &[u8]) -> Option<(PrefixWire, u32)> {
    let ([family, length], rest) = section.split_first_chunk()?;
    let (address, rest) = match *family {
        4 => {
            let (address, rest) = rest.split_first_chunk::<4>()?;
            (IpAddr::from(*address), rest)
        }
        6 => {
            let (address, rest) = rest.split_first_chunk::<16>()?;
            (IpAddr::from(*address), rest)
        }
        _ => return None,
    };
    let (way, rest) = rest.split_first_chunk()?;
    *section = rest;
    let length = *length;
    Some((PrefixWire { address, length }, u32::from_le_bytes(*way)))
}

fn recall(section: &mut &[u8]) -> Result<Recall, Damage> {
    let wire: RecallWire = take(section)?;
    let mut ways = Vec::new();
    for _ in 0..wire.ways {
        let wire: WayWire<'_> = take(section)?;
        ways.push(RecallWay {
            source: source_kind(wire.source)?,
            node: Arc::from(wire.node),
            via: wire.via.map(ViaWire::read).transpose()?,
        });
    }
    // The shortest route has so many octets.
    let mut routes = Vec::with_capacity(section.len() / 10);
    while !section.is_empty() {
        let what = "a route";
        let (prefix, way) = recalled(section).ok_or(Damage::Value { what })?;
        if usize::try_from(way).is_ok_and(|way| way >= ways.len()) {
            let what = "the way of a route";
            return Err(Damage::Value { what });
        }
        routes.push((prefix.read()?, way));
    }
    Ok(Recall {
        basis: wire.basis,
        ways,
        routes,
    })
}

fn lease(wire: LeaseWire<'_>) -> Result<SavedLease, Damage> {
    let prefixes = wire.prefixes.into_iter().map(PrefixWire::read);
    let vteps = wire.vteps.into_iter().map(|(is_v6, octets)| {
        let family = if is_v6 { Family::V6 } else { Family::V4 };
        read_mac(octets).map(|mac| (family, mac))
    });
    Ok(SavedLease {
        source: source_kind(wire.source)?,
        scope: wire.scope.to_owned(),
        prefixes: prefixes.collect::<Result<_, _>>()?,
        vteps: vteps.collect::<Result<_, _>>()?,
        network: wire.network.to_owned(),
    })
}

fn source_kind(name: &str) -> Result<SourceKind, Damage> {
    let mut kinds = SourceKind::ALL.into_iter();
    let kind = kinds.find(|kind| kind.name() == name);
    kind.ok_or(Damage::Value { what: "a source" })
}

fn remote(address: IpAddr) -> Result<IpAddr, Damage> {
    if address.is_unspecified() || address.is_multicast() {
        return Err(Damage::Value {
            what: "an underlay address",
        });
    }
    Ok(address)
}

fn mtu(octets: u16) -> Result<Mtu, Damage> {
    if octets < Mtu::MIN_V4.octets() {
        return Err(Damage::Value { what: "an MTU" });
    }
    Ok(Mtu::new(octets))
}

fn read_vni(value: u32) -> Result<Vni, Damage> {
    Vni::new(value).ok_or(Damage::Value { what: "a VNI" })
}

fn read_port(port: u16) -> Result<u16, Damage> {
    if port == 0 {
        return Err(Damage::Value { what: "a port" });
    }
    Ok(port)
}

fn read_mac(octets: [u8; 6]) -> Result<MacAddr, Damage> {
    let mac = MacAddr::new(octets);
    if !mac.is_unicast() {
        return Err(Damage::Value {
            what: "a MAC address",
        });
    }
    Ok(mac)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Appends a section.
fn section(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    let length_at = out.len();
    out.extend([0; 8]);
    let start = out.len();
    fill(out);
    let length = (out.len() - start) as u64;
    let room = out.get_mut(length_at..start).into_iter().flatten();
    for (octet, value) in room.zip(length.to_le_bytes()) {
        *octet = value;
    }
}

/// Appends a value.
fn put(value: impl Encode, out: &mut Vec<u8>) {
    let mut out: &mut dyn io::Write = out;
    bincode::encode_into_std_write(value, &mut out, bincode::config::standard())
        .expect("plain values are written to memory, which takes all");
}

/// Takes a value off the front.
fn take<'f, T: BorrowDecode<'f, ()>>(section: &mut &'f [u8]) -> Result<T, Damage> {
    let config = bincode::config::standard().with_limit::<VALUE_OCTETS_MAX>();
    let (value, octets) =
        bincode::borrow_decode_from_slice(section, config).map_err(|_| Damage::Value {
            what: "its encoding",
        })?;
    *section = section.get(octets..).unwrap_or_default();
    Ok(value)
}

const MAGIC: [u8; 8] = *b"warren\0\n";
/// Raised when a program that knows the version before must not read the file.
const VERSION: u32 = 1;
pub(super) const CHECKSUM_AT: usize = 8 + 4 + 8;
pub(super) const HEADER_OCTETS: usize = CHECKSUM_AT + 8;
const SECTION_FILE: u8 = 1;
const SECTION_SOURCE: u8 = 2;
const SECTION_ENTRIES: u8 = 3;
const SECTION_LEASES: u8 = 4;
const SECTION_PATHS: u8 = 5;
const SECTION_RECALL: u8 = 7;
/// Octets that one value may take in memory; the text of a network is the longest.
const VALUE_OCTETS_MAX: usize = 16 << 20;
