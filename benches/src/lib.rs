//! Fixtures of the benchmarks.

pub mod allocations;
#[cfg(warren_dpdk)]
pub mod dpdk;
pub mod overlay;
pub mod routes;
pub mod tables;
