//! By which device of the underlay packets to a peer leave, asked again once a second.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::netlink::Netlink;
use crate::raw::rows::Rows;

/// How packets leave for a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Path {
    pub(super) device: u32,
    /// The largest outer packet.
    pub(super) mtu: u32,
    /// Whether the peer takes datagrams in a row in IP.
    pub(super) takes_rows: bool,
}

/// The paths that are known.
pub(super) struct Paths {
    netlink: Netlink,
    rows: Arc<Rows>,
    known: HashMap<(IpAddr, IpAddr), Option<Path>>,
}

impl std::fmt::Debug for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paths")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

impl Paths {
    pub(super) fn new(netlink: Netlink, rows: Arc<Rows>) -> Self {
        Self {
            netlink,
            rows,
            known: HashMap::new(),
        }
    }

    /// The path from `local` to `remote`; `None` where there is none for the short way.
    pub(super) fn path(&mut self, local: IpAddr, remote: IpAddr) -> Option<Path> {
        if let Some(known) = self.known.get(&(local, remote)) {
            return *known;
        }
        let path = self.ask(local, remote);
        self.known.insert((local, remote), path);
        path
    }

    /// Asks again about the paths that are used, and forgets the others. Says which are others than
    /// before.
    pub(super) fn refresh(
        &mut self,
        used: &HashSet<(IpAddr, IpAddr)>,
    ) -> HashSet<(IpAddr, IpAddr)> {
        let mut changed = HashSet::new();
        for ((local, remote), path) in std::mem::take(&mut self.known) {
            if !used.contains(&(local, remote)) {
                continue;
            }
            let now = self.ask(local, remote);
            if now != path {
                changed.insert((local, remote));
            }
            self.known.insert((local, remote), now);
        }
        changed
    }

    fn ask(&mut self, local: IpAddr, remote: IpAddr) -> Option<Path> {
        let path = self.netlink.path_between(Some(local), remote).ok()??;
        let device = self.netlink.link_at(path.device).ok()?;
        Some(Path {
            device: path.device,
            mtu: path.mtu.map_or(device.mtu, |mtu| mtu.min(device.mtu)),
            takes_rows: self.rows.are_taken_by(remote),
        })
    }
}
