//! Which directions a worker carries.
//!
//! One thread for both is best where packets are few or CPUs are: it wakes nobody but who waits for its packets. With
//! one for each, what comes in (acknowledgements of a stream that goes out, too) does not wait behind what goes out,
//! which pays where the kernel's part is long: on a wire, where it cuts and joins trains.

/// The directions of one worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Duty {
    /// Both: it reads the device and the sockets.
    Both,
    /// From the device to the underlay: it reads the device, and has sockets to send by only.
    Encap,
    /// From the underlay to the device: it reads the sockets, and sends nothing but probes.
    Decap,
}

impl Duty {
    /// Whether it carries packets from the device to the underlay.
    #[must_use]
    pub const fn encaps(self) -> bool {
        matches!(self, Self::Both | Self::Encap)
    }

    /// Whether it carries packets from the underlay to the device.
    #[must_use]
    pub const fn decaps(self) -> bool {
        matches!(self, Self::Both | Self::Decap)
    }
}
