//! Nodes under a path that changes: three namespaces in a row, the middle one a router.
//!
//! ```text
//!  node 1 (192.0.2.1) ── router, node 3 (192.0.2.254, 198.51.100.254) ── node 2 (198.51.100.2)
//!      2001:db8:1::1             2001:db8:1::fe, 2001:db8:2::fe               2001:db8:2::2
//! ```
//!
//! What is measured is printed; the bounds asserted are those that the documentation promises.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "clippy spares test functions, not their helpers; what is measured is printed"
)]

#[path = "../common/mod.rs"]
mod common;

mod change;
mod errors;
mod fragments;
mod loops;
mod modes;
mod paths;
mod peers;
mod row;
mod sizes;
