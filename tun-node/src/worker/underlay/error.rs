//! Why the underlay cannot be opened, and what to do about it.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use crate::raw::RawError;
use crate::udp::UdpError;

/// Why the underlay could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum UnderlayError {
    /// The address is not this host's.
    #[error(
        "this host does not have the underlay address {address}: correct `node.underlay`, or give \
         an interface that address"
    )]
    ForeignAddress {
        /// The address.
        address: IpAddr,
        /// What the kernel said.
        source: UdpError,
    },
    /// The encapsulation's port is taken.
    #[error(
        "UDP port {port} of {address} is in use: another tunnel or node receives there; stop it, \
         or choose another port"
    )]
    PortInUse {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// What the kernel said.
        source: UdpError,
    },
    /// A UDP socket could not be made for another reason.
    #[error(transparent)]
    Udp(UdpError),
    /// A raw socket could not be made.
    #[error(transparent)]
    Raw(#[from] RawError),
    /// More than one of these.
    #[error("{}", sentences(.0))]
    Several(Vec<Self>),
}

impl UnderlayError {
    /// All that failed as one error; none where nothing did.
    pub(super) fn all(mut failed: Vec<Self>) -> Result<(), Self> {
        match failed.len() {
            0 => Ok(()),
            1 => failed.pop().map_or(Ok(()), Err),
            _ => Err(Self::Several(failed)),
        }
    }

    pub(super) fn udp(bind: SocketAddr) -> impl Fn(UdpError) -> Self {
        move |source| {
            if source.is_foreign_address() {
                Self::ForeignAddress {
                    address: bind.ip(),
                    source,
                }
            } else if source.is_port_in_use() {
                Self::PortInUse {
                    address: bind.ip(),
                    port: bind.port(),
                    source,
                }
            } else {
                Self::Udp(source)
            }
        }
    }
}

/// Each sentence once: a foreign address is one for all its ports.
fn sentences(errors: &[UnderlayError]) -> String {
    let mut sentences: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let mut seen = HashSet::new();
    sentences.retain(|sentence| seen.insert(sentence.clone()));
    sentences.join("; ")
}
