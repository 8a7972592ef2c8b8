//! What the demo's overlay looks like: names, addresses, ports and the files of its nodes.
//!
//! Each node's configuration is the TOML that a user would write, and is checked by the same
//! parser; `--keep` says where the files are. Node N of a demo has underlay address 127.0.x.N
//! (x is the demo's own, so that two demos on a host do not meet) and owns 10.244.N.0/24 and
//! fd00:10:244:N::/64.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};

use super::Encap;

/// The overlay of one demo.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// What every node sends in.
    pub(super) encap: Encap,
    /// The UDP port of that encapsulation, at every node.
    pub(super) port: u16,
    /// At least two.
    pub(super) nodes: Vec<Node>,
}

/// One node of it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// `node-1` and so on.
    pub(super) name: String,
    /// Where the other nodes reach it.
    pub(super) underlay: Ipv4Addr,
    /// Its overlay addresses.
    pub(super) v4: Ipv4Addr,
    /// The same.
    pub(super) v6: Ipv6Addr,
    /// Its configuration file.
    pub(super) config: PathBuf,
    /// Its control socket.
    pub(super) socket: PathBuf,
    /// What it writes to standard error.
    pub(super) log: PathBuf,
}

impl Plan {
    /// Plans `count` nodes with their files in `directory`.
    ///
    /// The underlay network and port are the first, from `start` on, where every node could bind
    /// its socket.
    ///
    /// # Errors
    ///
    /// No such network was found; carries the last refusal.
    pub(super) fn new(count: u8, encap: Encap, directory: &Path, start: u32) -> io::Result<Self> {
        let mut refusal = io::ErrorKind::AddrInUse.into();
        for attempt in 0..ATTEMPTS {
            let [.., network] = (start.wrapping_add(attempt) % 254 + 1).to_be_bytes();
            // A socket at the wildcard address, as the kernel's VXLAN has, takes the port of all
            // networks; so the port moves too.
            let [_, _, high, low] = attempt.to_be_bytes();
            let port = encap.port() + u16::from_be_bytes([high, low]);
            let plan = Self::at(count, encap, directory, network, port);
            match plan.probe() {
                Ok(()) => return Ok(plan),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    fn at(count: u8, encap: Encap, directory: &Path, network: u8, port: u16) -> Self {
        let node = |number: u8| {
            let name = format!("node-{number}");
            let file = |suffix| directory.join(format!("{name}.{suffix}"));
            Node {
                underlay: Ipv4Addr::new(127, 0, network, number),
                v4: Ipv4Addr::new(10, 244, number, 1),
                v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(number), 0, 0, 0, 1),
                config: file("toml"),
                socket: file("sock"),
                log: file("log"),
                name,
            }
        };
        Self {
            encap,
            port,
            nodes: (1..=count).map(node).collect(),
        }
    }

    /// Binds and releases what the nodes will bind.
    fn probe(&self) -> io::Result<()> {
        for node in &self.nodes {
            UdpSocket::bind((node.underlay, self.port))?;
        }
        Ok(())
    }

    /// Writes every node's configuration file.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub(super) fn write_files(&self) -> io::Result<()> {
        for (index, node) in self.nodes.iter().enumerate() {
            std::fs::write(&node.config, self.config_text(index))?;
        }
        Ok(())
    }

    /// The configuration of the node at `index`.
    pub(super) fn config_text(&self, index: usize) -> String {
        let mut text = String::new();
        let (encap, port) = (self.encap.name(), self.port);
        for (at, node) in self.nodes.iter().enumerate() {
            if at == index {
                continue;
            }
            let _ = write!(
                text,
                "\n[[peers]]\nname = \"{}\"\naddress = \"{}\"\nencap = \"{encap}\"\n{}prefixes = {}\n",
                node.name,
                node.underlay,
                if matches!(self.encap, Encap::Vxlan | Encap::Geneve) {
                    "vtep-mac = \"auto\"\n"
                } else {
                    ""
                },
                node.prefixes(),
            );
        }
        let Some(node) = self.nodes.get(index) else {
            return text;
        };
        format!(
            "# One node of `tun-node demo`. Run it with\n\
             #   tun-node run --rootless --config {config} -- COMMAND\n\
             \n\
             [node]\n\
             name = \"{name}\"\n\
             underlay = [\"{underlay}\"]\n\
             prefixes = {prefixes}\n\
             # All nodes are on this host.\n\
             allow-loopback-underlay = true\n\
             \n\
             [device]\n\
             addresses = [\"{v4}/24\", \"{v6}/64\"]\n\
             # As on Ethernet; the loopback device would carry more.\n\
             underlay-mtu = 1500\n\
             \n\
             [{encap}]\n\
             port = {port}\n\
             {text}\n\
             [control]\n\
             socket = {socket:?}\n",
            config = node.config.display(),
            name = node.name,
            underlay = node.underlay,
            prefixes = node.prefixes(),
            v4 = node.v4,
            v6 = node.v6,
            socket = node.socket.display().to_string(),
        )
    }

    /// Every ordered pair of indices.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let count = self.nodes.len();
        (0..count).flat_map(move |from| {
            (0..count)
                .filter(move |to| *to != from)
                .map(move |to| (from, to))
        })
    }
}

impl Node {
    /// Its overlay addresses, IPv4 first.
    pub(super) const fn addresses(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }

    fn prefixes(&self) -> String {
        let [.., v4, _] = self.v4.octets();
        let v6 = Ipv6Addr::from_bits(self.v6.to_bits() & !u128::from(u64::MAX));
        format!("[\"10.244.{v4}.0/24\", \"{v6}/64\"]")
    }
}

/// Networks and ports tried before giving up.
const ATTEMPTS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_file_is_a_valid_configuration() {
        for encap in [Encap::Vxlan, Encap::Fou, Encap::Gue, Encap::Geneve] {
            for count in [2, 3, 16] {
                let plan = Plan::at(count, encap, Path::new("/tmp/a \"b\""), 7, 4000);
                for (index, node) in plan.nodes.iter().enumerate() {
                    let text = plan.config_text(index);
                    let config = Config::parse(&text, "demo").unwrap();
                    assert_eq!(config.node.name, node.name);
                    assert_eq!(config.peers.len(), usize::from(count) - 1);
                    assert_eq!(config.control_socket.as_ref(), Some(&node.socket));
                    assert!(text.contains("port = 4000"));
                    let addresses: Vec<IpAddr> = config
                        .device
                        .addresses
                        .iter()
                        .map(|net| net.addr())
                        .collect();
                    assert_eq!(addresses, node.addresses());
                }
            }
        }
    }

    #[test]
    fn a_taken_port_is_stepped_around() {
        let taken = UdpSocket::bind("127.0.201.2:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let directory = Path::new("/nowhere");
        assert!(
            Plan::at(2, Encap::Fou, directory, 201, port)
                .probe()
                .is_err()
        );
        assert!(Plan::new(2, Encap::Fou, directory, 200).is_ok());
    }

    #[test]
    fn pairs_are_ordered_and_complete() {
        let plan = Plan::at(3, Encap::Gue, Path::new("/nowhere"), 1, 1);
        let pairs: Vec<_> = plan.pairs().collect();
        assert_eq!(pairs, [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]);
    }
}
