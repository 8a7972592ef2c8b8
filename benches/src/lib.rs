//! Fixtures of the benchmarks.

pub mod allocations;
pub mod cpus;
#[cfg(warren_dpdk)]
pub mod dpdk;
pub mod overlay;
pub mod routes;
pub mod tables;
