//! DPDK's `rte_fib` and `rte_fib6` as peers of the lookup benchmark, through `dpdk/shim.c`.
//!
//! Compiled only when the build was asked for it (see `build.rs`). The tables live until the process ends.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "fixtures of known sizes"
)]

use std::cell::RefCell;
use std::ffi::c_void;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::tables::Table;

/// `rte_fib` with 2-octet next hops.
#[derive(Debug)]
pub struct RteFib {
    fib: *mut c_void,
    vector: bool,
    /// The trace that was looked up last (by its place in memory), in host order.
    turned: RefCell<(usize, Vec<u32>)>,
}

/// `rte_fib6` with 4-octet next hops.
#[derive(Debug)]
pub struct RteFib6 {
    fib: *mut c_void,
    vector: bool,
    /// The trace that was looked up last (by its place in memory), as octets.
    turned: RefCell<(usize, Vec<[u8; 16]>)>,
}

impl RteFib {
    /// Builds the table; `None` when DPDK does not start, as without huge pages or without memory.
    #[must_use]
    pub fn new(routes: &[(Ipv4Net, u16)]) -> Option<Self> {
        start()?;
        let max_routes = i32::try_from(routes.len()).ok()? * 2;
        // SAFETY: the environment layer has started; the result is checked.
        let fib = unsafe { warren_fib4_new(max_routes, 32_767) };
        if fib.is_null() {
            return None;
        }
        // SAFETY: `fib` is a table made above.
        let vector = unsafe { warren_fib4_vector(fib) } != 0;
        for (prefix, next_hop) in routes {
            let ip = prefix.network().to_bits();
            // SAFETY: `fib` is a table made above.
            let status =
                unsafe { warren_fib4_add(fib, ip, prefix.prefix_len(), u64::from(*next_hop) + 1) };
            if status != 0 {
                return None;
            }
        }
        Some(Self {
            fib,
            vector,
            turned: RefCell::default(),
        })
    }
}

impl Table<Ipv4Addr> for RteFib {
    fn name(&self) -> &'static str {
        if self.vector {
            "rte_fib avx512"
        } else {
            "rte_fib scalar"
        }
    }

    #[inline]
    fn single(&self, address: Ipv4Addr) -> u16 {
        let (mut ip, mut next_hop) = (address.to_bits(), 0);
        // SAFETY: the table is alive; one address, one answer.
        unsafe { warren_fib4_lookup(self.fib, &raw mut ip, &raw mut next_hop, 1) };
        next_hop as u16
    }

    fn batches(&self, trace: &[Ipv4Addr], size: usize) -> u64 {
        // DPDK takes addresses in host order: they are turned in the first pass over a trace, which the median drops.
        let mut turned = self.turned.borrow_mut();
        if turned.0 != trace.as_ptr().addr() {
            *turned = (
                trace.as_ptr().addr(),
                trace.iter().map(|address| address.to_bits()).collect(),
            );
        }
        let mut next_hops = vec![0_u64; size];
        let mut sum = 0;
        for ips in turned.1.chunks_mut(size) {
            // SAFETY: the table is alive; both arrays hold `size` items.
            unsafe {
                warren_fib4_lookup(
                    self.fib,
                    ips.as_mut_ptr(),
                    next_hops.as_mut_ptr(),
                    ips.len() as i32,
                )
            };
            sum += next_hops[0];
        }
        sum
    }
}

impl RteFib6 {
    /// Builds the table; `None` when DPDK does not start or the table does not fit.
    #[must_use]
    pub fn new(routes: &[(Ipv6Net, u16)]) -> Option<Self> {
        start()?;
        let max_routes = i32::try_from(routes.len()).ok()? * 2;
        // SAFETY: the environment layer has started; the result is checked.
        let fib = unsafe { warren_fib6_new(max_routes, 1 << 18) };
        if fib.is_null() {
            return None;
        }
        // SAFETY: `fib` is a table made above.
        let vector = unsafe { warren_fib6_vector(fib) } != 0;
        for (prefix, next_hop) in routes {
            let ip = prefix.network().octets();
            // SAFETY: `fib` is a table made above; `ip` is 16 octets.
            let status = unsafe {
                warren_fib6_add(
                    fib,
                    ip.as_ptr(),
                    prefix.prefix_len(),
                    u64::from(*next_hop) + 1,
                )
            };
            if status != 0 {
                return None;
            }
        }
        Some(Self {
            fib,
            vector,
            turned: RefCell::default(),
        })
    }
}

impl Table<Ipv6Addr> for RteFib6 {
    fn name(&self) -> &'static str {
        if self.vector {
            "rte_fib6 avx512"
        } else {
            "rte_fib6 scalar"
        }
    }

    #[inline]
    fn single(&self, address: Ipv6Addr) -> u16 {
        let (mut ip, mut next_hop) = (address.octets(), 0);
        // SAFETY: the table is alive; one address, one answer.
        unsafe { warren_fib6_lookup(self.fib, ip.as_mut_ptr(), &raw mut next_hop, 1) };
        next_hop as u16
    }

    fn batches(&self, trace: &[Ipv6Addr], size: usize) -> u64 {
        let mut turned = self.turned.borrow_mut();
        if turned.0 != trace.as_ptr().addr() {
            *turned = (
                trace.as_ptr().addr(),
                trace.iter().map(Ipv6Addr::octets).collect(),
            );
        }
        let mut next_hops = vec![0_u64; size];
        let mut sum = 0;
        for ips in turned.1.chunks_mut(size) {
            // SAFETY: the table is alive; both arrays hold `size` items of 16 and 8 octets.
            unsafe {
                warren_fib6_lookup(
                    self.fib,
                    ips.as_mut_ptr().cast(),
                    next_hops.as_mut_ptr(),
                    ips.len() as i32,
                )
            };
            sum += next_hops[0];
        }
        sum
    }
}

fn start() -> Option<()> {
    static STARTED: OnceLock<bool> = OnceLock::new();
    let huge = option_env!("WARREN_DPDK") != Some("no-huge");
    // SAFETY: called once in the process, with no argument but the choice of memory.
    STARTED
        .get_or_init(|| unsafe { warren_dpdk_start(i32::from(huge)) } == 0)
        .then_some(())
}

unsafe extern "C" {
    fn warren_dpdk_start(huge: i32) -> i32;
    fn warren_fib4_new(max_routes: i32, groups: u32) -> *mut c_void;
    fn warren_fib4_vector(fib: *mut c_void) -> i32;
    fn warren_fib4_add(fib: *mut c_void, ip: u32, depth: u8, next_hop: u64) -> i32;
    fn warren_fib4_lookup(fib: *mut c_void, ips: *mut u32, next_hops: *mut u64, n: i32) -> i32;
    fn warren_fib6_new(max_routes: i32, groups: u32) -> *mut c_void;
    fn warren_fib6_vector(fib: *mut c_void) -> i32;
    fn warren_fib6_add(fib: *mut c_void, ip: *const u8, depth: u8, next_hop: u64) -> i32;
    fn warren_fib6_lookup(fib: *mut c_void, ips: *mut u8, next_hops: *mut u64, n: i32) -> i32;
}
