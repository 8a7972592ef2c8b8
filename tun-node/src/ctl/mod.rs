//! The control socket: how `tun-node status` and its like ask a running node.
//!
//! A Unix stream socket of mode 0600 in a directory of mode 0700. A client sends one request at a
//! time and reads one answer; [`message`] has both, [`frame`] the octets around them, [`server`]
//! the node's side and [`client`] the asker's. Who may ask: the user that the node runs as, and root;
//! the kernel says who it is (`SO_PEERCRED`).
//!
//! ```text
//!  tun-node status ──> client ──socket──> server thread ──> thread per client (at most 16)
//!                                                              │ crossbeam-channel + mio::Waker
//!                                                              └──> workers, between two batches
//! ```
//!
//! Nothing that arrives here is trusted: frames have a limit, decoding has a limit, clients are
//! counted, silence has a deadline. What a request may change (the way to a peer, held withdrawals, what
//! the files on disk say) harms nobody but who may change it anyway.

pub mod client;
pub mod frame;
pub mod message;
pub mod path;
pub mod server;
pub mod sources;
