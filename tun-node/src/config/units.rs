//! The number types of a configuration are those of the library.

pub use warren_core::units::{Family, MacAddr, MacAddrParseError, Mtu, Vni};
