//! flannel's own data formats, read and written octet for octet.
//!
//! | file | what | where it lives |
//! |---|---|---|
//! | `lease.rs` | subnet keys and lease attributes | etcd, below `<prefix>/subnets/` |
//! | `net_conf.rs` | the network's configuration | etcd `<prefix>/config`, or a file |
//! | `annotations.rs` | a node's attributes | a Kubernetes Node object |
//! | `subnet_env.rs` | what the CNI plugin reads | `/run/flannel/subnet.env` |
//!
//! A Warren node and a flannel node must read the same thing out of the same octets, so the
//! decoders take what Go's decoders take (member names in any case, unknown members, `null` for
//! "nothing") and the encoders write what Go's encoders write (order, spacing, which members stay
//! away). They are stricter in one way: an address, a MAC or a subnet that no working node could
//! have is refused with its reason, where flannel would program it into the kernel.
//!
//! Pure: no file, socket or clock. Every decoder is bounded ([`VALUE_OCTETS_MAX`],
//! [`JSON_DEPTH_MAX`]) and none panics whatever it is given.

mod annotations;
mod fault;
mod json;
mod lease;
mod net_conf;
mod subnet_env;

#[cfg(test)]
mod tests;

pub use annotations::{ANNOTATION_PREFIX, Annotations};
pub use fault::{Fault, Refused, printable};
pub(crate) use lease::underlay_address;
pub use lease::{LeaseAttrs, LeaseBackend, LeaseRules, SubnetKey, VxlanAttrs};
pub use net_conf::{Backend, NetConf, NetConfError, Prefix, Stack, VxlanBackend};
pub use subnet_env::{SubnetEnv, SubnetEnvError};

/// Where flannel keeps its keys unless told otherwise.
pub const DEFAULT_PREFIX: &str = "/coreos.com/network";

/// The seconds that a lease is granted for.
pub const LEASE_TTL_S: i64 = 86_400;

/// The largest value that is looked into; a lease has about 200 octets.
pub const VALUE_OCTETS_MAX: usize = 64 << 10;

/// The largest value of a lease that is kept where there may be very many.
pub const LEASE_OCTETS_MAX: usize = 4 << 10;

/// The largest key that is looked into.
pub const KEY_OCTETS_MAX: usize = 512;

/// How deep JSON may be nested; flannel's own has three levels.
pub const JSON_DEPTH_MAX: usize = 16;

/// The UDP port that a Linux VXLAN device has when its configuration names none.
pub const VXLAN_PORT: u16 = 8472;
