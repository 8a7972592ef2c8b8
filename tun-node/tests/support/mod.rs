//! What the tests in namespaces share: fresh networks, programs that run inside them, and kernel
//! VXLAN devices in the shapes that other overlays give them.
#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test may panic, and talks to itself over its standard output"
)]

pub(crate) mod agent;
pub(crate) mod capture;
pub(crate) mod kernel;
pub(crate) mod netns;
