//! The node: everything around `warren-core` that touches the host.

pub mod config;
pub mod datapath;
pub mod netlink;
pub mod raw;
pub mod sys;
pub mod tun;
pub mod udp;

#[cfg(test)]
mod testing;
