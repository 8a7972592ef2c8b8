//! Other underlay addresses while the worker runs.

use std::net::IpAddr;
use std::sync::Arc;

use warren_core::units::Family;

use super::{CountersByKind, Receiver, Sender, Underlay, UnderlayError, Ways};
use crate::config::Config;
use crate::udp::{ReceiveRing, TransmitPool};

impl Underlay {
    /// Leaves the addresses that `config` does not have for those that it has. Whether anything
    /// changed: the order of [`descriptors`](Self::descriptors) is another one then.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); then nothing is changed.
    pub(in crate::worker) fn follow(
        &mut self,
        config: &Config,
        seed: u64,
    ) -> Result<bool, UnderlayError> {
        let is_own = |address: IpAddr| config.node.underlay(Family::of(address)) == Some(address);
        let is_kept = |receiver: &Receiver| is_own(receiver.local.ip());
        let left: Vec<bool> = [Family::V4, Family::V6]
            .into_iter()
            .map(|family| {
                let mut receivers = self.receivers.iter();
                receivers.any(|one| Family::of(one.local.ip()) == family && !is_kept(one))
                    || self.pool_at(family).is_some_and(|at| !is_own(at))
            })
            .collect();
        let [left_v4, left_v6] = *left.as_slice() else {
            return Ok(false);
        };
        if !left_v4 && !left_v6 {
            return Ok(false);
        }
        // What is new is there before what is old goes.
        let mut only = config.clone();
        only.node.underlay_v4 = only.node.underlay_v4.filter(|_| left_v4);
        only.node.underlay_v6 = only.node.underlay_v6.filter(|_| left_v6);
        let mut fresh = Self {
            receivers: Vec::new(),
            ways: Ways::default(),
            share: self.share,
            duty: self.duty,
            receive_ring: ReceiveRing::new(1),
            send: Sender::new(1, false),
            rows: Arc::clone(&self.rows),
            counters: CountersByKind::default(),
        };
        fresh.extend(&only, seed)?;
        self.receivers.retain(is_kept);
        self.receivers.append(&mut fresh.receivers);
        let ways = &mut self.ways;
        ways.fragmenting_raw.retain(|raw| is_own(raw.local_addr()));
        ways.fragmenting_raw.append(&mut fresh.ways.fragmenting_raw);
        let pools = ways.pools.iter_mut().chain(&mut ways.fragmenting);
        let opened = fresh.ways.pools.into_iter().chain(fresh.ways.fragmenting);
        for (pool, opened) in pools.zip(opened) {
            if let Some(opened) = opened {
                *pool = Some(opened);
            }
        }
        Ok(true)
    }

    /// The address that packets of a family leave by.
    fn pool_at(&self, family: Family) -> Option<IpAddr> {
        let pools = self.ways.pools.iter().flatten();
        let mut sockets = pools.flat_map(TransmitPool::sockets);
        let own = sockets.find(|socket| Family::of(socket.local_addr().ip()) == family);
        own.map(|socket| socket.local_addr().ip())
    }
}
