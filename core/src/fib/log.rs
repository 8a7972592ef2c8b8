//! Which places of a list have changed since each of the last publications, so that an older copy of it can be made the
//! newest without a look at all places.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::fresh::Fresh;
use super::spare::{copy_over, put_over};

/// The changes after the last publications, which have numbers one after the other.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The first publication since which all changes are known.
    first: u64,
    /// The number of the last publication.
    last: u64,
    /// The places that changed after the last publication, between that and the one before, and so on; none before the
    /// first publication.
    changed: Vec<Vec<u16>>,
}

impl Log {
    pub(super) fn note(&mut self, place: usize) {
        if let Some(changed) = self.changed.first_mut()
            && changed.len() <= MOST_LOGGED
            && changed.last().copied().map(usize::from) != Some(place)
        {
            changed.extend(u16::try_from(place));
        }
    }

    /// Notes publication `number`. After one that was not noted nothing is known of what came before.
    pub(super) fn publish(&mut self, number: u64) {
        if self.changed.is_empty() || number != self.last + 1 {
            self.changed = alloc::vec![Vec::new(); LOGGED];
            self.first = number;
        }
        self.last = number;
        self.changed.rotate_right(1);
        if let Some(changed) = self.changed.first_mut() {
            changed.clear();
        }
    }

    /// The number of the last publication.
    pub(super) const fn number(&self) -> u64 {
        self.last
    }

    /// The places that changed between the last publication and the one before, if that is known.
    pub(super) fn latest(&self) -> Option<&[u16]> {
        let changed = self.changed.get(1).filter(|_| self.first < self.last)?;
        (changed.len() <= MOST_LOGGED).then_some(changed)
    }

    /// Forgets everything.
    pub(super) fn end(&mut self) {
        if !self.changed.is_empty() {
            *self = Self::default();
        }
    }

    /// A copy of `from` as it is published now, over `old`, what publication `number` had of it.
    pub(super) fn follow<T: Copy + Eq>(
        &self,
        old: Option<Box<[T]>>,
        number: u64,
        from: &[T],
        mut fresh: Option<&mut Fresh>,
    ) -> Box<[T]> {
        let Some(mut old) = old.filter(|old| old.len() == from.len()) else {
            return from.into();
        };
        let Some(changed) = self.since(number) else {
            return copy_over(Some(old), from, fresh);
        };
        for place in changed {
            put_over(&mut old, from, place, fresh.as_deref_mut());
        }
        debug_assert!(*old == *from, "a place has changed that was not noted");
        old
    }

    /// The places in which what is published now differs from publication `number`, if that is known.
    fn since(&self, number: u64) -> Option<impl Iterator<Item = usize>> {
        if number < self.first {
            return None;
        }
        let publications = usize::try_from(self.last.checked_sub(number)?).ok()?;
        let lists = self.changed.get(1..=publications)?;
        let known = lists.iter().all(|list| list.len() <= MOST_LOGGED);
        known.then(|| lists.iter().flatten().map(|place| usize::from(*place)))
    }

    pub(super) fn octets(&self) -> usize {
        self.changed.capacity() * size_of::<Vec<u16>>()
            + self.changed.iter().map(Vec::capacity).sum::<usize>() * size_of::<u16>()
    }
}

/// Publications whose changes are kept.
const LOGGED: usize = 4;
/// Changes that are kept of each; with more of them all places are looked at.
const MOST_LOGGED: usize = 1024;

#[cfg(test)]
mod tests {
    use alloc::collections::VecDeque;

    use super::super::tests::rng::Rng;
    use super::*;

    #[test]
    fn a_copy_is_the_newest_over_whatever_publication_it_is_made() {
        let mut rng = Rng(61);
        let mut below = |bound: u64| usize::try_from(rng.below(bound)).unwrap();
        let mut list = [0_u64; 2_048];
        let mut log = Log::default();
        let mut copies: VecDeque<(u64, Box<[u64]>)> = VecDeque::new();
        for number in 1..600 {
            for _ in 0..[1, 0, 30, 1_500][below(4)] {
                let place = below(2_048);
                list[place] += 1;
                log.note(place);
            }
            match below(40) {
                0 => log.end(),
                // Not every publication need have the list.
                1 => continue,
                _ => {}
            }
            log.publish(number);
            let (old, copy) = copies.pop_front().unwrap_or_else(|| (0, [1; 2_048].into()));
            let copy = log.follow(Some(copy), old, &list, None);
            assert_eq!(*copy, list, "publication {number} over {old}");
            copies.push_back((number, copy));
            if copies.len() < 1 + below(7) {
                copies.push_back((number, list.into()));
            }
            while copies.len() > 6 {
                copies.pop_front();
            }
        }
    }
}
