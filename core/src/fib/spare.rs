//! What is left of a snapshot that no reader has any more, for the next one to be made over it.
//!
//! A publication copies the root of a large table, and the directory of windows. Readers on other cores have the lines
//! of earlier copies in their caches. Where a copy is made over one of these, and only what differs is written, it is
//! only that which they have to fetch again: a hundred changes are a tenth of the lines.

use alloc::boxed::Box;

use super::pushed::PushedRoot;
use super::reader::{Root, Snapshot};

/// The parts of a snapshot that are large and mostly the same in the next; of a large table only, since small ones are
/// many.
#[derive(Debug, Default)]
pub(super) struct Spare {
    pub(super) slots: Option<Box<[u64]>>,
    pub(super) pushed: Option<Box<PushedRoot>>,
    /// The directory of windows.
    pub(super) pages: Option<Box<[u64]>>,
}

impl Spare {
    pub(super) fn of(snapshot: Snapshot) -> Self {
        let Snapshot {
            root,
            pushed,
            windowed,
            ..
        } = snapshot;
        let slots = match root {
            Root::Slots { slots, .. } if pushed.is_some() || windowed.is_some() => Some(slots),
            Root::Slots { .. } | Root::Node(_) => None,
        };
        Self {
            slots,
            pushed,
            pages: windowed.map(|windowed| windowed.pages),
        }
    }

    pub(super) fn octets(&self) -> usize {
        let list = |list: &Option<Box<[u64]>>| list.as_deref().map_or(0, size_of_val);
        let pushed = self.pushed.as_deref().map_or(0, PushedRoot::octets);
        list(&self.slots) + pushed + list(&self.pages)
    }
}

/// A copy of `from`, over `old` where that is as long: what is equal there is not written.
pub(super) fn copy_over<T: Copy + Eq>(old: Option<Box<[T]>>, from: &[T]) -> Box<[T]> {
    let Some(mut copy) = old.filter(|old| old.len() == from.len()) else {
        return from.into();
    };
    let line = (LINE_OCTETS / size_of::<T>()).max(1);
    for (to, from) in copy.chunks_mut(line).zip(from.chunks(line)) {
        if to != from {
            to.copy_from_slice(from);
        }
    }
    copy
}

/// Octets of a cache line.
const LINE_OCTETS: usize = 64;

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn a_copy_is_the_same_over_whatever_it_is_made() {
        for len in [0, 1, 7, 8, 9, 64, 100] {
            let from: Vec<u64> = (0..len).collect();
            let mut nearly = from.clone();
            if let Some(last) = nearly.last_mut() {
                *last = u64::MAX;
            }
            let others = [from.clone(), nearly, Vec::from([3; 64]), Vec::new()];
            for old in others.map(|old| Some(old.into())).into_iter().chain([None]) {
                assert_eq!(*copy_over(old, &from), *from);
            }
        }
    }
}
