//! Batches of IPv6 addresses by AVX2.

use super::super::NextHopId;
use super::super::address::Address;
use super::super::batch;
use super::super::walk::View;
use super::Native;

/// Looks up each of `addresses`.
#[target_feature(enable = "popcnt,lzcnt,bmi1,bmi2,movbe,avx2")]
pub(super) fn lookup<A: Address>(
    view: &View<'_>,
    addresses: &[A],
    next_hops: &mut [Option<NextHopId>],
) {
    batch::lookup(Native, view, addresses, next_hops);
}
