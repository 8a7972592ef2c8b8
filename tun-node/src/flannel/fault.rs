//! Why something is refused: a name for machines, a sentence for people.

use std::fmt;

/// What is wrong with a key or a value.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Fault {
    /// The key is not `A.B.C.D-LEN`, with or without `&v6-LEN`.
    KeySyntax,
    /// The subnet has bits set behind its length.
    HostBits,
    /// No configuration of this network could hand out a subnet of that length.
    SubnetLength,
    /// The subnet is not inside the network.
    OutsideNetwork,
    /// The key has a subnet of a family that the network does not have, or lacks one.
    OtherFamily,
    /// The value has more than [`VALUE_OCTETS_MAX`](super::VALUE_OCTETS_MAX) octets, or a lease in
    /// etcd more than [`LEASE_OCTETS_MAX`](super::LEASE_OCTETS_MAX).
    TooLarge,
    /// The octets are not UTF-8.
    NotUtf8,
    /// The text is not JSON.
    NotJson,
    /// The JSON is nested deeper than [`JSON_DEPTH_MAX`](super::JSON_DEPTH_MAX).
    TooDeep,
    /// The JSON is not an object.
    NotAnObject,
    /// Two members differ in nothing but case.
    AmbiguousMember,
    /// A member that must be there is not, or is `null`.
    MissingMember,
    /// A member has a value of another type.
    WrongType,
    /// The text is not an address.
    BadAddress,
    /// No node can be reached at the address: unspecified, loopback, multicast, broadcast,
    /// link-local, IPv4-mapped or reserved.
    UnusableAddress,
    /// The text is not a MAC address.
    BadMac,
    /// No node can own the MAC address: a group address or all zeros.
    UnusableMac,
    /// The VNI needs more than 24 bits.
    BadVni,
    /// The VNI is not the network's.
    OtherVni,
    /// The backend is one that this node does not speak.
    UnknownBackend,
    /// The backend is not the network's.
    OtherBackend,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 21] = [
        Self::KeySyntax,
        Self::HostBits,
        Self::SubnetLength,
        Self::OutsideNetwork,
        Self::OtherFamily,
        Self::TooLarge,
        Self::NotUtf8,
        Self::NotJson,
        Self::TooDeep,
        Self::NotAnObject,
        Self::AmbiguousMember,
        Self::MissingMember,
        Self::WrongType,
        Self::BadAddress,
        Self::UnusableAddress,
        Self::BadMac,
        Self::UnusableMac,
        Self::BadVni,
        Self::OtherVni,
        Self::UnknownBackend,
        Self::OtherBackend,
    ];

    /// The name that quarantine lists and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KeySyntax => "key-syntax",
            Self::HostBits => "host-bits",
            Self::SubnetLength => "subnet-length",
            Self::OutsideNetwork => "outside-network",
            Self::OtherFamily => "other-family",
            Self::TooLarge => "too-large",
            Self::NotUtf8 => "not-utf8",
            Self::NotJson => "not-json",
            Self::TooDeep => "too-deep",
            Self::NotAnObject => "not-an-object",
            Self::AmbiguousMember => "ambiguous-member",
            Self::MissingMember => "missing-member",
            Self::WrongType => "wrong-type",
            Self::BadAddress => "bad-address",
            Self::UnusableAddress => "unusable-address",
            Self::BadMac => "bad-mac",
            Self::UnusableMac => "unusable-mac",
            Self::BadVni => "bad-vni",
            Self::OtherVni => "other-vni",
            Self::UnknownBackend => "unknown-backend",
            Self::OtherBackend => "other-backend",
        }
    }

    /// The refusal with this fault; `detail` says what was seen and is made [`printable`].
    #[must_use]
    pub fn with(self, detail: impl AsRef<str>) -> Refused {
        Refused {
            fault: self,
            detail: printable(detail.as_ref().as_bytes()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{fault}: {detail}")]
pub struct Refused {
    /// What is wrong.
    pub fault: Fault,
    /// What was seen; harmless to print.
    pub detail: String,
}

/// Foreign octets as text that can go to a terminal or a log: escaped, and cut to 160 octets.
#[must_use]
pub fn printable(octets: &[u8]) -> String {
    let head = octets.get(..PRINTED_OCTETS_MAX).unwrap_or(octets);
    let text = String::from_utf8_lossy(head);
    let mut shown = String::new();
    for character in text.chars() {
        let plain = matches!(character, ' '..='~') && character != '\\';
        if plain {
            shown.push(character);
        } else {
            shown.extend(character.escape_default());
        }
        if shown.len() >= PRINTED_OCTETS_MAX {
            break;
        }
    }
    if head.len() < octets.len() {
        shown.push_str("...");
    }
    shown
}

const PRINTED_OCTETS_MAX: usize = 160;
