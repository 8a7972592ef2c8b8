//! An allocator that keeps the largest blocks in transparent huge pages: `mmap` `mremap` `munmap`,
//! `madvise(MADV_HUGEPAGE)`.
//!
//! What a worker's copy of a large IPv4 table says to each /24 is 16 MiB, read at places that no two
//! packets share. In pages of 4 KiB it needs more entries than the processor keeps of its page tables:
//! batches of lookups take a fifth longer.
//!
//! Only blocks of at least [`LEAST_OCTETS`] are concerned: those of a few MiB gain nothing, and some of
//! them (room for packets) are mostly never written. Each is a mapping of its own that begins at a
//! multiple of [`HUGE_OCTETS`]: what does not fill a huge page at its end is in small ones, so that no
//! block takes more memory than it is long, and all of it goes back when the block does.
//!
//! Where the kernel has no huge pages, or is told not to give any
//! (`/sys/kernel/mm/transparent_hugepage/enabled`), all pages are small ones.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Result;
use std::ptr;

/// The size of a huge page.
pub const HUGE_OCTETS: usize = 2 << 20;
/// The size of the smallest block that is kept in some.
pub const LEAST_OCTETS: usize = 12 << 20;

/// The system's allocator, with large blocks in huge pages.
///
/// A program installs it: `#[global_allocator] static HUGE_PAGES: HugePages = HugePages;`.
#[derive(Clone, Copy, Debug)]
pub struct HugePages;

/// Leaves the process no huge pages from here on: `prctl(PR_SET_THP_DISABLE)`.
///
/// # Errors
///
/// The kernel's.
pub fn disable() -> Result<()> {
    Ok(nix::sys::prctl::set_thp_disable(true)?)
}

/// Whether a block is kept in a mapping of its own.
const fn is_large(layout: Layout) -> bool {
    layout.size() >= LEAST_OCTETS && layout.align() <= HUGE_OCTETS
}

// SAFETY: a large block is a mapping of its own, at least as long as its layout says and aligned to
// 2 MiB, which no large layout exceeds; it stays until it is given back. Every other block is the
// system allocator's, to which calls are handed on as they came. Which of the two a block is depends
// on its layout alone, and `dealloc` and `realloc` are given the layout that it has. Nothing here
// panics or allocates.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: the caller keeps the contract of `alloc`.
            return unsafe { System.alloc(layout) };
        }
        // What is new is zeroes.
        // SAFETY: as of this call.
        unsafe { self.alloc_zeroed(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: the caller keeps the contract of `alloc_zeroed`.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let block = map(layout.size());
        if !block.is_null() {
            // SAFETY: the mapping is new and at least as long. The call is a wish, which changes no
            // octet; it may be refused.
            unsafe { libc::madvise(block.cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !is_large(layout) {
            // SAFETY: the caller keeps the contract of `dealloc`, and a block of such a layout came
            // from the system's allocator.
            return unsafe { System.dealloc(block, layout) };
        }
        // SAFETY: a block of such a layout is a mapping of that length, which nobody uses any more.
        unsafe { libc::munmap(block.cast(), layout.size()) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, octets: usize) -> *mut u8 {
        // SAFETY: the caller promises that `octets`, rounded up to the alignment, is no more than
        // `isize::MAX`.
        let wanted = unsafe { Layout::from_size_align_unchecked(octets, layout.align()) };
        match (is_large(layout), is_large(wanted)) {
            // SAFETY: the caller keeps the contract of `realloc`, and a block of such a layout came
            // from the system's allocator.
            (false, false) => unsafe { System.realloc(block, layout, octets) },
            // SAFETY: a block of such a layout is a mapping of that length.
            (true, true) => unsafe {
                let new = remap(block, layout.size(), octets);
                if new.is_null() {
                    self.copy(block, layout, wanted)
                } else {
                    new
                }
            },
            // SAFETY: the block is of that layout, and `wanted` not empty: `octets` is not 0.
            (true, false) | (false, true) => unsafe { self.copy(block, layout, wanted) },
        }
    }
}

impl HugePages {
    /// A block of layout `wanted` with what is in `block`, which is given back; null, and nothing
    /// changed, where there is no room.
    ///
    /// # Safety
    ///
    /// `block` is one of this allocator's with that layout, and if the result is not null nobody uses
    /// it any more; `wanted` is not empty.
    unsafe fn copy(self, block: *mut u8, layout: Layout, wanted: Layout) -> *mut u8 {
        // SAFETY: the caller says that `wanted` is not empty.
        let new = unsafe { self.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: the blocks are two, each as long as its layout; the old one is the caller's to
            // give back, with the layout that it has.
            unsafe {
                ptr::copy_nonoverlapping(block, new, layout.size().min(wanted.size()));
                self.dealloc(block, layout);
            }
        }
        new
    }
}

/// A new mapping of `octets` zeroes, none of them in memory yet, aligned to a huge page; null where
/// there is no room.
fn map(octets: usize) -> *mut u8 {
    let Some(octets) = octets.checked_next_multiple_of(page_octets()) else {
        return ptr::null_mut();
    };
    // A huge page more than needed has an aligned place in it wherever it is.
    let Some(reserved) = octets.checked_add(HUGE_OCTETS) else {
        return ptr::null_mut();
    };
    // SAFETY: the kernel chooses a place where nothing is.
    let begin = unsafe {
        libc::mmap(
            ptr::null_mut(),
            reserved,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if begin == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    let before = begin.addr().wrapping_neg() & (HUGE_OCTETS - 1);
    let block = begin.wrapping_byte_add(before);
    // SAFETY: both are parts of the new mapping, before and behind the block, which is aligned to
    // pages and as long as whole ones, so that the calls reach nothing else. `before` is less than a
    // huge page: there is something behind. One that fails leaves addresses in use, and no memory.
    unsafe {
        if before > 0 {
            libc::munmap(begin, before);
        }
        libc::munmap(block.wrapping_byte_add(octets), HUGE_OCTETS - before);
    }
    block.cast()
}

/// Makes the mapping of `old` octets at `block` one of `new` octets, which may be elsewhere; null, and
/// nothing changed, where that cannot be. Its pages move as they are.
///
/// # Safety
///
/// `block` is a mapping by [`map`] of `old` octets, and if the result is not null nobody uses it any
/// more.
unsafe fn remap(block: *mut u8, old: usize, new: usize) -> *mut u8 {
    let page = page_octets();
    let mapped = old.next_multiple_of(page);
    if new <= mapped {
        let kept = new.next_multiple_of(page);
        if kept < mapped {
            // SAFETY: the mapping's end, behind what is left of the block.
            unsafe { libc::munmap(block.wrapping_add(kept).cast(), mapped - kept) };
        }
        return block;
    }
    let place = map(new);
    if place.is_null() {
        return place;
    }
    // SAFETY: the mapping at `block` is the caller's to move; the one at `place` is of `new` octets and
    // known to nobody, and the other is put in place of it at once.
    let moved = unsafe {
        libc::mremap(
            block.cast(),
            old,
            new,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            place,
        )
    };
    if moved == libc::MAP_FAILED {
        // `place` is left as it is: the kernel may have taken it away before it failed, and somebody
        // else have it by now. What may be lost are addresses, not memory.
        return ptr::null_mut();
    }
    moved.cast()
}

/// The size of a small page.
fn page_octets() -> usize {
    // SAFETY: the call reads a constant of the process.
    let octets = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(octets).unwrap_or(1 << 12)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What `/proc/self/smaps` says of the mapping that begins at or contains `address`.
    fn mapping(address: usize) -> String {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut found = String::new();
        let mut within = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|word| word.split_once('-'));
            if let Some((from, to)) = range {
                let number = |text| usize::from_str_radix(text, 16).unwrap_or(0);
                within = (number(from)..number(to)).contains(&address);
            }
            if within {
                found.push_str(line);
                found.push('\n');
            }
        }
        found
    }

    /// How many pages from `block` on are in memory.
    fn resident(block: &[u8]) -> usize {
        let mut pages = vec![0_u8; block.len().div_ceil(page_octets())];
        // SAFETY: the block begins at a page, and there is an octet for each page of it.
        let returned = unsafe {
            libc::mincore(
                block.as_ptr().cast_mut().cast(),
                block.len(),
                pages.as_mut_ptr(),
            )
        };
        assert_eq!(returned, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    fn is_wished_huge(block: &[u8]) -> bool {
        let mapping = mapping(block.as_ptr().addr());
        let flags = mapping.lines().find(|line| line.starts_with("VmFlags:"));
        flags.unwrap().split(' ').any(|flag| flag == "hg")
    }

    #[test]
    fn zeroes_are_not_in_memory_before_they_are_written() {
        let mut block = vec![0_u8; 16 << 20];
        assert_eq!(resident(&block), 0);
        block[5 << 20] = 1;
        // One page, of whichever size.
        let written = resident(&block);
        assert!(
            written == 1 || written == HUGE_OCTETS / page_octets(),
            "{written}"
        );
    }

    #[test]
    fn a_large_block_is_aligned_and_asks_for_huge_pages_where_it_fills_them() {
        let octets = LEAST_OCTETS + (1 << 20) + 4;
        let block = vec![7_u8; octets];
        assert_eq!(block.as_ptr().addr() % HUGE_OCTETS, 0);
        // A kernel without them knows no flag either.
        let known = fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap();
        assert_eq!(is_wished_huge(&block), known);
        assert_eq!(resident(&block), octets.div_ceil(page_octets()));
    }

    #[test]
    fn what_a_block_holds_outlasts_every_change_of_its_length() {
        let lengths = [
            100,
            LEAST_OCTETS - 1,
            LEAST_OCTETS,
            LEAST_OCTETS + 1,
            2 * LEAST_OCTETS,
            3 * LEAST_OCTETS + 12_345,
            LEAST_OCTETS + 4097,
            LEAST_OCTETS + 4095,
            LEAST_OCTETS,
            LEAST_OCTETS - 1,
            10,
        ];
        let octet = |at: usize| (at % 251).to_le_bytes()[0];
        let mut block: Vec<u8> = Vec::new();
        for length in lengths {
            if length > block.len() {
                block.reserve_exact(length - block.len());
                block.extend((block.len()..length).map(octet));
            } else {
                block.truncate(length);
                block.shrink_to_fit();
            }
            assert_eq!(block.capacity(), length);
            assert!(block.iter().enumerate().all(|(at, is)| *is == octet(at)));
            if length >= LEAST_OCTETS {
                assert_eq!(block.as_ptr().addr() % HUGE_OCTETS, 0);
            }
        }
    }

    #[test]
    fn a_block_that_is_given_back_leaves_no_mapping() {
        let block = vec![1_u8; 64 << 20];
        let begin = block.as_ptr().addr();
        assert!(!mapping(begin + (63 << 20)).is_empty());
        drop(block);
        // Other tests may map something there meanwhile, but nothing as long.
        let whole = mapping(begin) == mapping(begin + (63 << 20)) && !mapping(begin).is_empty();
        assert!(!whole);
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let mut block: Vec<u8> = vec![3; LEAST_OCTETS];
        assert!(block.try_reserve_exact(1 << 60).is_err());
        assert!(block.iter().all(|octet| *octet == 3));
        assert!(Vec::<u8>::new().try_reserve_exact(1 << 60).is_err());
    }
}
