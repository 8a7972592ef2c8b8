//! Between batches and descriptors: super-packets from and to the device, trains of datagrams to
//! the underlay.
//!
//! [`device`] reads packets with their virtio header into a batch and writes a batch back, merging
//! what may be merged so that the kernel takes up to 64 KiB in one call. [`train`] turns the frames
//! of a batch that leave by one socket into as few messages as possible: runs of equal size, and
//! super-packets cut into segments whose payload the kernel gathers from where it was read.
//!
//! Called by the worker only. Nothing here allocates per packet, decides about a packet, or knows
//! which socket is whose.

pub mod device;
pub mod train;
