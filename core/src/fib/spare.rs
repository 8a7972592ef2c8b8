//! What is left of a snapshot that no reader has any more, for the next one to be made over it.
//!
//! A publication copies the root of a large table, and the directory of windows. Readers on other cores have the lines
//! of earlier copies in their caches. Where a copy is made over one of these, and only what differs is written, it is
//! only that which they have to fetch again: a hundred changes are a tenth of the lines.

use alloc::boxed::Box;

use super::fresh::{Fresh, LINE};
use super::pushed::PushedRoot;
use super::reader::{Root, Snapshot};

/// The parts of a snapshot that are large and mostly the same in the next; of a large table only, since small ones are
/// many.
#[derive(Debug, Default)]
pub(super) struct Spare {
    /// The number of the publication.
    pub(super) number: u64,
    pub(super) slots: Option<Box<[u64]>>,
    pub(super) pushed: Option<Box<PushedRoot>>,
    /// The directory of windows.
    pub(super) pages: Option<Box<[u64]>>,
}

impl Spare {
    pub(super) fn of(snapshot: Snapshot, number: u64) -> Self {
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
            number,
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

/// A copy of `from`, over `old` where that is as long: what is equal there is not written, and what is written, and
/// lookups read, `fresh` notes.
pub(super) fn copy_over<T: Copy + Eq>(
    old: Option<Box<[T]>>,
    from: &[T],
    mut fresh: Option<&mut Fresh>,
) -> Box<[T]> {
    let Some(mut copy) = old.filter(|old| old.len() == from.len()) else {
        return from.into();
    };
    let line = (LINE / size_of::<T>()).max(1);
    for (to, from) in copy.chunks_mut(line).zip(from.chunks(line)) {
        if to != from {
            to.copy_from_slice(from);
            if let Some(fresh) = &mut fresh {
                fresh.note(to.as_ptr().addr(), size_of_val(to));
            }
        }
    }
    copy
}

/// Writes element `at` of `from` to that of `to`, where they differ.
pub(super) fn put_over<T: Copy + Eq>(
    to: &mut [T],
    from: &[T],
    at: usize,
    fresh: Option<&mut Fresh>,
) {
    if let (Some(to), Some(from)) = (to.get_mut(at), from.get(at))
        && to != from
    {
        *to = *from;
        if let Some(fresh) = fresh {
            fresh.note(core::ptr::from_ref(to).addr(), size_of::<T>());
        }
    }
}

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
                assert_eq!(*copy_over(old, &from, Some(&mut Fresh::default())), *from);
            }
        }
    }
}
