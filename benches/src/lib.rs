//! Fixtures of the benchmarks.

#[cfg(warren_dpdk)]
pub mod dpdk;
pub mod routes;
pub mod tables;
