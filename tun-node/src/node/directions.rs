//! Whether the two directions of a worker share a thread, where the configuration leaves it to the
//! node (`directions = "auto"`).
//!
//! A second thread pays where the first is kept busy with single frames, and only costs where it
//! is not. What leaves a node is trains of datagrams, each one message of up to 64 KB
//! (`UDP_SEGMENT`). The kernel carries such a super-packet whole as far as it can, and cuts it at the
//! last moment, before a device that does not take it: within the `sendmmsg` of the sending thread,
//! which then also carries frame by frame whatever follows (on a veth up to the peer's socket).
//! Whether a device takes it is one of its features, `tx-udp-segmentation`; no other that is
//! commonly set decides it:
//!
//! - Without checksum offload (`tx-checksumming`) a device does not take it either, but then the
//!   kernel turns `tx-udp-segmentation` off, too (since 6.11; earlier ones refuse `UDP_SEGMENT` there,
//!   and the node sends packet by packet).
//! - `generic-segmentation-offload` decides whether TCP sockets make super-packets for a device
//!   that does not take them. Those of `UDP_SEGMENT` are made, and cut or not, regardless of it, of
//!   `tcp-segmentation-offload` and of `scatter-gather`.
//!
//! Counted on a veth of Linux 6.18, for a message of ten datagrams: one packet with every feature
//! on, and with any of `gso`, `tso` and `sg` off; ten with `tx-udp-segmentation` or `tx` off. What the
//! node itself does not send in trains is not asked about: with `gso = false` a second thread made no
//! difference, and IP in IP, which gains by it, is seldom all that a node sends.
//!
//! How many frames there are to cut decides, too: 44 of a super-packet at an MTU of 1500, 7 at 9000, where
//! one thread carries a third more by itself. From [`LARGE_FRAMES`] on it does.
//!
//! The devices that are asked are those that have the node's underlay addresses; one that has frames
//! cut is enough. Of a device above others (a bridge, a bond, a VLAN, a tunnel) its own features
//! count. A bridge has what its ports have; a macvlan takes everything and says nothing of the device
//! below. An address on the loopback device that is no loopback address says nothing of the device
//! that packets leave by. Where it cannot be found out, one thread has both.
//!
//! Directions that are parted so also get CPUs of their own while they are busy
//! ([`Placement::WhileBusy`]), and those that are not keep to every second CPU while they carry bulk
//! ([`Placement::WhileBulk`]), where there are two CPUs for each worker. Those that the configuration
//! parts, or puts together, do not.
//!
//! It is found out once, at start. Features that are changed later, and addresses that move to
//! another device, count at the next start.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use nix::ifaddrs::InterfaceAddress;
use nix::net::if_::InterfaceFlags;
use warren_core::units::Family;

use crate::config::{Config, Directions, ip};
use crate::sys::ethtool;
use crate::tun::DeviceName;
use crate::worker::{Duty, Placement};

/// How a node spreads its directions, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Spread {
    /// Whether each has a thread of its own.
    pub is_apart: bool,
    /// Whether each has CPUs of its own, too, while it is busy, or both while they carry bulk.
    pub keeps: bool,
    /// Why, as half a sentence.
    pub because: String,
}

impl Spread {
    /// What `config` means on this host, in the network namespace of the calling thread.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let configured = |is_apart| Self {
            is_apart,
            keeps: false,
            because: "as configured".to_owned(),
        };
        match config.worker.directions {
            Directions::Together => configured(false),
            Directions::Apart => configured(true),
            Directions::Auto => {
                // Less than the CPUs of the mask where a control group has a quota.
                let cpus = std::thread::available_parallelism().map_or(1, usize::from);
                let workers = config.worker.count.on(cpus);
                decide(
                    &carriers(config),
                    cpus,
                    workers.into(),
                    config.device.underlay_mtu.octets(),
                )
            }
        }
    }

    /// Where workers with these duties run, of the CPUs that the process may use: on one each, round
    /// and round, where workers are pinned; where they have CPUs of their own, on every second one while
    /// they are busy.
    #[must_use]
    pub fn places(&self, workers: &[Duty], pins: bool, cpus: &[usize]) -> Vec<Placement> {
        let every_second = |first| {
            let own = cpus.iter().skip(first).step_by(2);
            own.copied().collect()
        };
        let pinned = |number| {
            let own = cpus.iter().cycle().nth(number);
            own.copied().map_or(Placement::Anywhere, Placement::Pinned)
        };
        let of = |(number, duty): (usize, &Duty)| match (pins, duty) {
            (true, _) => pinned(number),
            (false, Duty::Encap) if self.keeps => Placement::WhileBusy(every_second(0)),
            (false, Duty::Decap) if self.keeps => Placement::WhileBusy(every_second(1)),
            (false, Duty::Both) if self.keeps => Placement::WhileBulk(every_second(0)),
            (false, _) => Placement::Anywhere,
        };
        workers.iter().enumerate().map(of).collect()
    }

    /// The value of `directions` that asks for it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        if self.is_apart { "apart" } else { "together" }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name(), self.because)
    }
}

/// Who carries super-packets away, and what becomes of them.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Carrier {
    /// This device takes them whole.
    Whole(String),
    /// They are cut before this device.
    Cut(String),
    /// Why that is not known.
    Unknown(String),
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(device) => {
                write!(f, "{FEATURE} of {device} is on, so that trains leave uncut")
            }
            Self::Cut(device) => {
                write!(
                    f,
                    "{FEATURE} of {device} is off, so that frames are cut to the MTU"
                )
            }
            Self::Unknown(why) => f.write_str(why),
        }
    }
}

/// Apart if frames are cut, to no more than `frame` octets and less than [`LARGE_FRAMES`], and there are two
/// CPUs for each worker; kept to CPUs where there are.
fn decide(carriers: &[Carrier], cpus: usize, workers: usize, frame: u16) -> Spread {
    let first = |is_it: fn(&Carrier) -> bool| carriers.iter().find(|carrier| is_it(carrier));
    let cut = first(|carrier| matches!(carrier, Carrier::Cut(_)));
    let threads = workers.saturating_mul(2);
    let are_enough = threads <= cpus;
    if let Some(cut) = cut {
        let are_many = frame < LARGE_FRAMES;
        let but = match cpus {
            _ if !are_many => format!(", but to few, of up to {frame} octets"),
            _ if are_enough => String::new(),
            0 | 1 => ", but there is one CPU only".to_owned(),
            _ => format!(", but {threads} threads would share {cpus} CPUs"),
        };
        return Spread {
            is_apart: are_enough && are_many,
            keeps: are_enough,
            because: format!("{cut}{but}"),
        };
    }
    let unknown = first(|carrier| matches!(carrier, Carrier::Unknown(_)));
    let why = unknown.or_else(|| carriers.first());
    Spread {
        is_apart: false,
        keeps: are_enough,
        because: why.map_or_else(
            || "the node has no underlay address".to_owned(),
            Carrier::to_string,
        ),
    }
}

/// What the devices that have the node's underlay addresses do.
fn carriers(config: &Config) -> Vec<Carrier> {
    let families = [Family::V4, Family::V6];
    let addresses = families
        .into_iter()
        .filter_map(|family| config.node.underlay(family));
    let listed = match nix::ifaddrs::getifaddrs() {
        Ok(listed) => listed.collect::<Vec<_>>(),
        Err(error) => {
            return vec![Carrier::Unknown(format!(
                "the interfaces cannot be listed: {error}"
            ))];
        }
    };
    addresses.map(|address| carrier(address, &listed)).collect()
}

fn carrier(address: IpAddr, listed: &[InterfaceAddress]) -> Carrier {
    let holders = listed
        .iter()
        .filter(|one| one.address.as_ref().and_then(ip) == Some(address));
    let is_loopback = |one: &&InterfaceAddress| one.flags.contains(InterfaceFlags::IFF_LOOPBACK);
    // Another device before the loopback device.
    let Some(holder) = holders.min_by_key(is_loopback) else {
        return Carrier::Unknown(format!("no device has {address}"));
    };
    // An IPv4 address may have a label, which is the device's name and more behind a colon.
    let name = holder.interface_name.split(':').next().unwrap_or_default();
    if is_loopback(&holder) && !address.is_loopback() {
        return Carrier::Unknown(format!(
            "{address} is on {name}, which does not say by which device packets leave"
        ));
    }
    match takes_super_packets(name) {
        Ok(true) => Carrier::Whole(name.to_owned()),
        Ok(false) => Carrier::Cut(name.to_owned()),
        Err(error) => Carrier::Unknown(format!("{FEATURE} of {name} is not known: {error}")),
    }
}

fn takes_super_packets(device: &str) -> std::io::Result<bool> {
    let invalid = |error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error);
    let device: DeviceName = device.parse().map_err(invalid)?;
    // Any socket of this namespace will do; this one needs no address.
    let socket = UnixDatagram::unbound()?;
    let socket = socket.as_fd();
    let count = ethtool::feature_count(socket, device)?;
    let number = ethtool::feature_number(socket, device, count, FEATURE)?;
    ethtool::has_feature(socket, device, number)
}

/// The MTU from which on so few frames are cut that one thread carries more than two.
const LARGE_FRAMES: u16 = 2048;

/// The feature that says whether a device takes a super-packet of UDP whole.
const FEATURE: &str = "tx-udp-segmentation";

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Carrier {
        Carrier::Whole("whole0".into())
    }

    fn cut() -> Carrier {
        Carrier::Cut("cut0".into())
    }

    fn unknown() -> Carrier {
        Carrier::Unknown("nobody knows".into())
    }

    #[test]
    fn directions_are_apart_where_many_frames_are_cut_and_each_worker_has_two_cpus() {
        for (cpus, workers, are_enough) in [
            (0, 1, false),
            (1, 1, false),
            (2, 1, true),
            (3, 1, true),
            (2, 2, false),
            (3, 2, false),
            (4, 2, true),
            (64, 32, true),
            (64, 33, false),
        ] {
            for (carriers, is_cut) in [
                (vec![], false),
                (vec![whole()], false),
                (vec![unknown()], false),
                (vec![whole(), unknown()], false),
                (vec![whole(), whole()], false),
                (vec![cut()], true),
                // One family by the one device, one by the other.
                (vec![whole(), cut()], true),
                (vec![cut(), unknown()], true),
            ] {
                for (frame, are_many) in [(1280, true), (1500, true), (2048, false), (9000, false)]
                {
                    let spread = decide(&carriers, cpus, workers, frame);
                    let expected = is_cut && are_enough && are_many;
                    let of = format!("{carriers:?}, {cpus} CPUs, {frame} octets");
                    assert_eq!(spread.is_apart, expected, "{of}");
                    assert_eq!(spread.keeps, are_enough, "{of}");
                }
            }
        }
    }

    #[test]
    fn the_reason_is_the_one_that_decided() {
        for (carriers, cpus, workers, frame, because) in [
            (
                vec![],
                2,
                1,
                1500,
                "together: the node has no underlay address",
            ),
            (
                vec![whole()],
                2,
                1,
                1500,
                "together: tx-udp-segmentation of whole0 is on, so that trains leave uncut",
            ),
            (
                vec![whole(), cut()],
                2,
                1,
                1500,
                "apart: tx-udp-segmentation of cut0 is off, so that frames are cut to the MTU",
            ),
            (
                vec![cut()],
                1,
                1,
                1500,
                "together: tx-udp-segmentation of cut0 is off, so that frames are cut to the MTU, but there is one CPU only",
            ),
            (
                vec![cut()],
                3,
                2,
                1500,
                "together: tx-udp-segmentation of cut0 is off, so that frames are cut to the MTU, but 4 threads would share 3 CPUs",
            ),
            (
                vec![cut()],
                2,
                1,
                9000,
                "together: tx-udp-segmentation of cut0 is off, so that frames are cut to the MTU, but to few, of up to 9000 octets",
            ),
            (
                vec![whole(), unknown()],
                2,
                1,
                1500,
                "together: nobody knows",
            ),
        ] {
            assert_eq!(decide(&carriers, cpus, workers, frame).to_string(), because);
        }
    }

    #[test]
    fn directions_that_the_node_spreads_have_cpus_of_their_own() {
        let kept = decide(&[cut()], 4, 2, 1500);
        let free = Spread {
            keeps: false,
            ..kept.clone()
        };
        let pair = [Duty::Encap, Duty::Decap];
        let four = [Duty::Encap, Duty::Decap, Duty::Encap, Duty::Decap];
        let busy = |cpus: &[usize]| Placement::WhileBusy(cpus.to_vec());
        let places = kept.places(&pair, false, &[0, 1]);
        assert_eq!(places, [busy(&[0]), busy(&[1])]);
        let places = kept.places(&pair, false, &[2, 3, 5, 8]);
        assert_eq!(places, [busy(&[2, 5]), busy(&[3, 8])]);
        let (even, odd) = (busy(&[0, 2]), busy(&[1, 3]));
        let places = kept.places(&four, false, &[0, 1, 2, 3]);
        assert_eq!(places, [even.clone(), odd.clone(), even, odd]);
        let anywhere = [const { Placement::Anywhere }; 4];
        assert_eq!(free.places(&four, false, &[0, 1]), anywhere);
        let bulk = [Placement::WhileBulk(vec![0, 2])];
        assert_eq!(kept.places(&[Duty::Both], false, &[0, 1, 2]), bulk);
        assert_eq!(free.places(&[Duty::Both], false, &[0, 1]), anywhere[..1]);
        assert_eq!(kept.places(&pair, true, &[]), anywhere[..2]);
        let pinned = [4, 6, 4, 6].map(Placement::Pinned);
        assert_eq!(free.places(&four, true, &[4, 6]), pinned);
    }

    #[test]
    fn the_loopback_device_takes_trains_whole_and_nobody_has_a_foreign_address() {
        let listed: Vec<_> = nix::ifaddrs::getifaddrs().unwrap().collect();
        let of = |address: &str| carrier(address.parse().unwrap(), &listed);
        assert_eq!(of("127.0.0.1"), Carrier::Whole("lo".into()));
        let Carrier::Unknown(why) = of("198.51.100.77") else {
            panic!("this host has an address for documentation");
        };
        assert_eq!(why, "no device has 198.51.100.77");
    }
}
