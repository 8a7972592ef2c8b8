//! The node: everything around `warren-core` that touches the host.

pub mod netlink;
pub mod sys;
pub mod tun;
pub mod udp;

#[cfg(test)]
mod testing;
