//! One process for each host: the Warren overlay over a TUN device and UDP sockets.

pub mod flannel;
pub mod rib;
pub mod source;
