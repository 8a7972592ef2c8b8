//! Cells moved many at a time, for the writer: where lanes of 16 or 32 bits go from any place to any other, octets do.
//!
//! A change of a large table copies some kilooctet in three blocks, and in a loop over atomic cells each of them takes
//! several instructions, which the compiler must not join. `splice.rs` has the portable twin.

use core::sync::atomic::AtomicU64;

/// Moves `count` octets from octet `source` of a block to octet `target` of another or the same; nothing when either
/// place is not in its block. No snapshot may reach the cells that are written.
#[inline]
pub(in crate::fib) fn move_octets(
    from: &[AtomicU64],
    source: usize,
    to: &[AtomicU64],
    target: usize,
    count: usize,
) {
    if source + count > size_of_val(from) || target + count > size_of_val(to) {
        return;
    }
    let from = from.as_ptr().cast::<u8>();
    let to = to.as_ptr().cast_mut().cast::<u8>();
    // SAFETY: both stretches lie in their blocks, as was just asked, and may overlap. Cells may be written through a
    // shared reference. Only the writer writes cells, and it is here; what it writes no reader looks up, since no snapshot
    // reaches it; what it reads readers read, too.
    unsafe { core::ptr::copy(from.add(source), to.add(target), count) };
}
