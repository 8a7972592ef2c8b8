//! What the values of a file come to: every default filled in, and the [`Config`] made of them.
//!
//! `validate.rs` asks here what is in effect where nothing was written, so that what is checked and
//! what is built cannot differ.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use warren_core::tables::{EcnMode, Receive};
use warren_core::units::{Family, MacAddr, Mtu, Vni};

use super::encap::{Choice, Encap};
use super::error::At;
use super::format::{Draft, EncapDraft, PeerDraft};
use super::sources::{SUBNET_ENV, Sources};
use super::{Config, Device, Node, Peer, Probing, Route, RouteNext, StateFile, VtepMac, Worker};

/// Makes the values of a draft in which nothing was found wrong; `None` if something is missing.
pub(super) fn build(draft: &Draft, device_mtu: Option<Mtu>) -> Option<Config> {
    let index_of = peer_indices(draft);
    let node = build_node(draft)?;
    let peers: Option<Vec<Peer>> = draft.peers.iter().map(|p| build_peer(draft, p)).collect();
    let routes = draft.routes.iter().map(|route| {
        let next = match route.action {
            Some(action) => RouteNext::Action(action.value),
            None => {
                let via = route.via.iter();
                let via = via.map(|peer| index_of.get(peer.value.as_str()).copied());
                RouteNext::Via(via.collect::<Option<Vec<usize>>>()?)
            }
        };
        let prefix = route.prefix?.value;
        Some(Route { prefix, next })
    });
    let device = &draft.device;
    let worker = &draft.worker;
    Some(Config {
        node,
        device: Device {
            name: device
                .name
                .as_ref()
                .map_or_else(|| DEVICE_NAME.to_owned(), |name| name.value.clone()),
            addresses: device.addresses.iter().map(|a| a.value).collect(),
            mtu: device_mtu?,
            mtu_computed: device.mtu.is_none(),
            underlay_mtu: underlay_mtu(draft),
            clamp_mss: device.clamp_mss.is_none_or(|on| on.value),
            mode: device.mode.map(|mode| mode.value).unwrap_or_default(),
            routes: device.routes.is_none_or(|on| on.value),
        },
        receive: build_receive(draft)?,
        peers: peers?,
        routes: routes.collect::<Option<Vec<Route>>>()?,
        control_socket: draft.control_socket.as_ref().map(|path| path.value.clone()),
        metrics_listen: draft.metrics_listen.map(|listen| listen.value),
        log_level: draft.log_level.map(|level| level.value).unwrap_or_default(),
        worker: Worker {
            count: worker.count.map(|count| count.value).unwrap_or_default(),
            directions: worker.directions.map(|it| it.value).unwrap_or_default(),
            pin: worker.pin.is_some_and(|on| on.value),
            source_ports: worker.source_ports.map_or(SOURCE_PORTS, |n| n.value),
            batch: worker.batch.map_or(BATCH_FRAMES, |n| n.value),
            receive_buffer_octets: worker.receive_buffer_octets.map(|n| n.value),
            send_buffer_octets: worker.send_buffer_octets.map(|n| n.value),
            gso: worker.gso.is_none_or(|on| on.value),
            ipip_offload: worker.ipip_offload.is_some_and(|on| on.value),
            flow_offload: worker.flow_offload.is_some_and(|on| on.value),
            packet_ring: worker.packet_ring.is_some_and(|on| on.value),
            gro: worker.gro.is_none_or(|on| on.value),
            uso: worker.uso.is_none_or(|on| on.value),
            vnet_header: worker.vnet_header.is_none_or(|on| on.value),
            busy_poll_us: worker.busy_poll_us.map_or(0, |n| n.value),
        },
        probing: build_probing(draft),
        sources: build_sources(draft),
        state_file: match &draft.state_file {
            None => StateFile::Usual,
            Some(path) if path.value.as_os_str().is_empty() => StateFile::None,
            Some(path) => StateFile::At(path.value.clone()),
        },
    })
}

fn build_probing(draft: &Draft) -> Probing {
    let (written, default) = (&draft.probing, Probing::default());
    let millis = |n: At<u32>| Duration::from_millis(n.value.into());
    Probing {
        enabled: written.enabled.is_none_or(|on| on.value),
        interval: written.interval_ms.map_or(default.interval, millis),
        down_after: written.down_after.map_or(default.down_after, |n| n.value),
        up_after: written.up_after.map_or(default.up_after, |n| n.value),
        confirm_interval: written.confirm_ms.map_or(default.confirm_interval, millis),
        raise_interval: written.raise_s.map_or(default.raise_interval, |n| {
            Duration::from_secs(n.value.into())
        }),
    }
}

fn build_sources(draft: &Draft) -> Sources {
    let mut sources = Sources {
        etcd: draft.etcd.clone(),
        kubernetes: draft.kubernetes.clone(),
        files: draft.files.clone(),
        guard: draft.guard,
        subnet_env: None,
        ip_masq: draft.node.ip_masq.is_some_and(|masq| masq.value),
    };
    let written = draft.node.subnet_env.as_ref().map(|path| &path.value);
    sources.subnet_env = match written {
        Some(path) => Some(path.clone()).filter(|path| !path.as_os_str().is_empty()),
        None => sources.may_claim().then(|| SUBNET_ENV.into()),
    };
    sources
}

fn build_node(draft: &Draft) -> Option<Node> {
    let node = &draft.node;
    let mut underlay_v4 = None;
    let mut underlay_v6 = None;
    for address in &node.underlay {
        match address.value {
            IpAddr::V4(v4) => underlay_v4 = Some(v4),
            IpAddr::V6(v6) => underlay_v6 = Some(v6),
        }
    }
    Some(Node {
        name: node.name.as_ref()?.value.clone(),
        underlay_v4,
        underlay_v6,
        follows: node.follows.clone(),
        servers: node.servers.clone(),
        vtep_mac: own_vtep_mac(draft)?,
        prefixes: node.prefixes.iter().map(|net| net.value).collect(),
    })
}

fn build_receive(draft: &Draft) -> Option<Receive> {
    let received = |encap: &Encap| is_received(draft, *encap);
    let ports = |encaps: &[Encap]| -> Vec<u16> {
        let encaps = encaps.iter().filter(|encap| received(encap));
        let ports: BTreeSet<u16> = encaps
            .flat_map(|&encap| received_ports(draft, encap))
            .collect();
        ports.into_iter().collect()
    };
    let with_vni = Encap::ALL.into_iter().filter(|encap| encap.has_vni());
    let own_vnis = with_vni
        .filter(|encap| received(encap) && has_section_port(draft, *encap))
        .map(|encap| section_vni(draft, encap));
    let named = draft.node.receive.iter().map(|choice| choice.value);
    let named_vnis = named
        .filter(|choice| choice.encap.has_vni())
        .map(|choice| vni_of(draft, &choice, None));
    let peer_vnis = draft.peers.iter().flat_map(|peer| {
        let choices = peer_choices(peer).into_iter().enumerate();
        choices
            .filter(|(_, choice)| choice.encap.has_vni())
            .map(|(rank, choice)| vni_of(draft, &choice, first(rank, peer.vni)))
    });
    let vnis: Option<BTreeSet<Vni>> = own_vnis.chain(named_vnis).chain(peer_vnis).collect();
    Some(Receive {
        vxlan: ports(&[Encap::Vxlan]),
        vxlan_gpe: ports(&[Encap::VxlanGpe]),
        geneve: ports(&[Encap::Geneve]),
        fou_gue: ports(&[Encap::Fou, Encap::Gue]),
        ipip: received(&Encap::Ipip),
        vnis: vnis?.into_iter().collect(),
        strict_vxlan: draft
            .vxlan
            .strict_reserved_bits
            .is_some_and(|strict| strict.value),
    })
}

fn build_peer(draft: &Draft, peer: &PeerDraft) -> Option<Peer> {
    let (_, over) = encap_and_family(peer)?;
    let choices = peer_choices(peer);
    let mut encapsulations = Vec::with_capacity(choices.len());
    for (rank, choice) in choices.iter().enumerate() {
        let encap = choice.encap;
        let port = first(rank, peer.port)
            .map(|port| port.value)
            .or_else(|| port_of(draft, choice));
        let mac = if encap.has_vtep() {
            peer_vtep_mac(peer, choice)?
        } else {
            MacAddr::default()
        };
        let vni = vni_of(draft, choice, first(rank, peer.vni))?;
        encapsulations.push(encap.with(vni, port.unwrap_or_default(), mac));
    }
    let largest = encapsulations
        .iter()
        .map(|way| way.overhead_octets(over))
        .max();
    let mut alternatives = encapsulations.into_iter();
    let encapsulation = alternatives.next()?;
    Some(Peer {
        name: peer.name.as_ref()?.value.clone(),
        address: peer.address?.value,
        encapsulation,
        alternatives: alternatives.collect(),
        mode: peer.mode.map(|mode| mode.value).unwrap_or_default(),
        probe_address: peer.probe_address.map(|address| address.value),
        probe: peer.probe.is_none_or(|on| on.value),
        prefixes: peer.prefixes.iter().map(|net| net.value).collect(),
        mtu: peer.mtu.map_or_else(
            || underlay_mtu(draft).less(largest.unwrap_or_default()),
            |mtu| Mtu::new(mtu.value),
        ),
        dscp: peer.dscp.clone(),
        ecn: peer.ecn.map_or(EcnMode::Normal, |ecn| ecn.value),
    })
}

pub(super) fn peer_indices(draft: &Draft) -> HashMap<&str, usize> {
    let peers = draft.peers.iter().enumerate();
    peers
        .filter_map(|(index, peer)| Some((peer.name.as_ref()?.value.as_str(), index)))
        .collect()
}

/// What the peer may be sent, by preference; VXLAN if nothing was written.
pub(super) fn peer_choices(peer: &PeerDraft) -> Vec<Choice> {
    if peer.encap_absent {
        return Choice::ALL.into_iter().take(1).collect();
    }
    peer.encaps.iter().map(|choice| choice.value).collect()
}

/// What the peer is sent first.
pub(super) fn peer_encap(peer: &PeerDraft) -> Option<Encap> {
    peer_choices(peer).first().map(|choice| choice.encap)
}

/// The first of what the peer may be sent that has an Ethernet header inside.
pub(super) fn vtep_choice(peer: &PeerDraft) -> Option<Choice> {
    peer_choices(peer)
        .into_iter()
        .find(|choice| choice.encap.has_vtep())
}

/// Everything that is named: by peers, and under `receive`.
fn named(draft: &Draft) -> impl Iterator<Item = Choice> {
    let own = draft.node.receive.iter().map(|choice| choice.value);
    own.chain(draft.peers.iter().flat_map(peer_choices))
}

/// What is written at a peer is about the encapsulation that it prefers.
fn first<T>(rank: usize, written: Option<At<T>>) -> Option<At<T>> {
    written.filter(|_| rank == 0)
}

pub(super) fn encap_and_family(peer: &PeerDraft) -> Option<(Encap, Family)> {
    // The one with the largest overhead: what fits it fits all.
    let over = Family::of(peer.address?.value);
    let choices = peer_choices(peer).into_iter().map(|choice| choice.encap);
    // Of equals the first.
    let largest = choices
        .rev()
        .max_by_key(|encap| encap.overhead_octets(over))?;
    Some((largest, over))
}

pub(super) fn peer_vtep_mac(peer: &PeerDraft, choice: &Choice) -> Option<MacAddr> {
    let name = &peer.name.as_ref()?.value;
    let family = Family::of(peer.address?.value);
    let rule = peer.vtep_mac.map(|mac| mac.value).or(choice.mac)?;
    Some(rule.of(name, family))
}

pub(super) fn own_vtep_mac(draft: &Draft) -> Option<MacAddr> {
    let node = &draft.node;
    let rule = node.vtep_mac.map_or(VtepMac::Warren, |mac| mac.value);
    let only_v6 = !node.underlay.iter().any(|own| own.value.is_ipv4());
    let family = if only_v6 { Family::V6 } else { Family::V4 };
    Some(rule.of(&node.name.as_ref()?.value, family))
}

/// The VNI that a section has for the node and for peers without their own.
fn section_vni(draft: &Draft, encap: Encap) -> Option<Vni> {
    Vni::new(section(draft, encap).vni.map_or(VNI, |vni| vni.value))
}

/// The VNI of a choice: as written at the peer, by the profile, or by the section.
fn vni_of(draft: &Draft, choice: &Choice, written: Option<At<u32>>) -> Option<Vni> {
    match written.map(|vni| vni.value).or(choice.vni) {
        Some(vni) => Vni::new(vni),
        None => section_vni(draft, choice.encap),
    }
}

/// The UDP port of a choice where none is written at the peer.
fn port_of(draft: &Draft, choice: &Choice) -> Option<u16> {
    choice.port.or_else(|| received_port(draft, choice.encap))
}

pub(super) fn section(draft: &Draft, encap: Encap) -> &EncapDraft {
    match encap {
        Encap::Vxlan => &draft.vxlan,
        Encap::Geneve => &draft.geneve,
        Encap::Ipip => &draft.ipip,
        Encap::Fou => &draft.fou,
        Encap::Gue => &draft.gue,
        Encap::VxlanGpe => &draft.vxlan_gpe,
    }
}

/// Whether the node takes packets in this encapsulation: it has a section without
/// `enabled = false`, or a peer uses it, or, for VXLAN, nothing else was asked for.
pub(super) fn is_received(draft: &Draft, encap: Encap) -> bool {
    if let Some(enabled) = section(draft, encap).enabled {
        return enabled.value;
    }
    let nothing_else = draft.peers.is_empty()
        && draft.node.receive.is_empty()
        && Encap::ALL
            .iter()
            .all(|&other| !section(draft, other).present);
    section(draft, encap).present
        || named(draft).any(|choice| choice.encap == encap)
        || (encap == Encap::Vxlan && nothing_else)
}

/// Whether the port of the section is among those received at: not where only profiles with ports
/// of their own use the encapsulation.
fn has_section_port(draft: &Draft, encap: Encap) -> bool {
    let mut of_kind = named(draft)
        .filter(|choice| choice.encap == encap)
        .peekable();
    section(draft, encap).present
        || of_kind.peek().is_none()
        || of_kind.any(Choice::has_section_port)
}

/// All UDP ports that this node receives an encapsulation at.
pub(super) fn received_ports(draft: &Draft, encap: Encap) -> BTreeSet<u16> {
    let profiles = named(draft).filter(|choice| choice.encap == encap);
    let mut ports: BTreeSet<u16> = profiles.filter_map(|choice| choice.port).collect();
    if has_section_port(draft, encap) {
        ports.extend(received_port(draft, encap));
    }
    ports
}

/// The UDP port that this node receives at and expects its peers to; `None` for IP in IP.
pub(super) fn received_port(draft: &Draft, encap: Encap) -> Option<u16> {
    let default = encap.default_port()?;
    Some(
        section(draft, encap)
            .port
            .map_or(default, |port| port.value),
    )
}

pub(super) fn underlay_mtu(draft: &Draft) -> Mtu {
    let written = draft.device.underlay_mtu;
    written.map_or(Mtu::ETHERNET, |mtu| Mtu::new(mtu.value))
}

/// The encapsulation and underlay family with the largest overhead that a peer is reached by;
/// without peers, of those received over the node's own families.
pub(super) fn largest_overhead(draft: &Draft) -> Option<(Encap, Family)> {
    let by_peers = draft.peers.iter().filter_map(encap_and_family);
    let overhead = |&(encap, over): &(Encap, Family)| encap.overhead_octets(over);
    if !draft.peers.is_empty() {
        return by_peers.max_by_key(overhead);
    }
    let received = Encap::ALL
        .into_iter()
        .filter(|&encap| is_received(draft, encap));
    let families = draft.node.underlay.iter().map(|own| Family::of(own.value));
    received
        .flat_map(|encap| families.clone().map(move |over| (encap, over)))
        .max_by_key(overhead)
}

/// Whether any prefix, route or device address is IPv6.
pub(super) fn has_v6_inside(draft: &Draft) -> bool {
    let is_v6 = |net: &At<IpNet>| matches!(net.value, IpNet::V6(_));
    draft.node.prefixes.iter().any(is_v6)
        || draft.device.addresses.iter().any(is_v6)
        || draft.peers.iter().any(|p| p.prefixes.iter().any(is_v6))
        || draft
            .routes
            .iter()
            .any(|r| r.prefix.as_ref().is_some_and(is_v6))
}

const DEVICE_NAME: &str = "warren0";
/// flannel's.
const VNI: u32 = 1;
const SOURCE_PORTS: u16 = 64;
const BATCH_FRAMES: u16 = 64;
