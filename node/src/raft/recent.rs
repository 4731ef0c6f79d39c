//! How large the last entries of a log are, for whoever asks how much a replica lacks that lacks only these. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

/// Of so many entries it is known, in each of hundreds of groups.
pub const RECENT_ENTRIES_MAX: u64 = 100;

/// Cloning shares it.
#[derive(Clone)]
pub struct Recent(Arc<Mutex<Sums>>);

struct Sums {
    first: u64,
    /// Octets up to and including the entry `first`, the one behind it, and so on, counted from anywhere. Never empty.
    sums: VecDeque<u64>,
}

impl Recent {
    /// Of a log whose last entry this is, 0 for an empty one.
    pub fn behind(last: u64) -> Recent {
        Recent(Arc::new(Mutex::new(Sums::behind(last))))
    }

    pub fn append(&self, entries: impl Iterator<Item = (u64, usize)>) {
        let mut sums = self.0.lock();
        entries.for_each(|(index, octets)| sums.push(index, octets as u64));
    }

    pub fn truncate_after(&self, keep: Option<u64>) {
        self.0.lock().truncate_after(keep.unwrap_or(0));
    }

    /// Octets of the entries behind this one; `None` where it is too far from the end to know.
    pub fn octets_behind(&self, index: u64) -> Option<u64> {
        self.0.lock().octets_behind(index)
    }
}

impl Sums {
    fn behind(last: u64) -> Sums {
        Sums { first: last, sums: VecDeque::from([0]) }
    }

    fn next(&self) -> u64 {
        self.first + self.sums.len() as u64
    }

    fn push(&mut self, index: u64, octets: u64) {
        // The first of all, or behind a snapshot.
        if index != self.next() {
            *self = Sums::behind(index.saturating_sub(1));
        }
        if index == 0 {
            *self = Sums::behind(0);
            return;
        }
        let before = self.sums.back().copied().unwrap_or(0);
        self.sums.push_back(before.wrapping_add(octets));
        if self.sums.len() as u64 > RECENT_ENTRIES_MAX + 1 {
            self.sums.pop_front();
            self.first += 1;
        }
    }

    fn truncate_after(&mut self, keep: u64) {
        if keep < self.first {
            *self = Sums::behind(keep);
        }
        self.sums.truncate((keep - self.first + 1).try_into().unwrap_or(usize::MAX));
    }

    fn octets_behind(&self, index: u64) -> Option<u64> {
        let last = self.sums.back()?;
        if index >= self.next() {
            return Some(0);
        }
        let place = index.checked_sub(self.first)?;
        Some(last.wrapping_sub(*self.sums.get(place as usize)?))
    }
}

#[cfg(test)]
mod tests {
    use super::{RECENT_ENTRIES_MAX, Recent};

    #[test]
    fn what_is_behind_an_entry_is_the_sum_of_the_entries_behind_it() {
        let recent = Recent::behind(0);
        recent.append([(0, 9), (1, 100), (2, 20)].into_iter());
        recent.append([(3, 5)].into_iter());
        let behind = |index| recent.octets_behind(index);
        assert_eq!([0, 1, 2, 3, 4].map(behind), [Some(125), Some(25), Some(5), Some(0), Some(0)]);
        recent.truncate_after(Some(1));
        assert_eq!([0, 1, 2].map(behind), [Some(100), Some(0), Some(0)]);
        recent.append([(2, 7)].into_iter());
        assert_eq!([0, 1, 2].map(behind), [Some(107), Some(7), Some(0)]);
        recent.truncate_after(None);
        assert_eq!(behind(0), Some(0));
    }

    #[test]
    fn of_entries_from_before_a_start_or_a_snapshot_nothing_is_known() {
        let recent = Recent::behind(70);
        assert_eq!([69, 70].map(|index| recent.octets_behind(index)), [None, Some(0)]);
        recent.append([(71, 3)].into_iter());
        assert_eq!([69, 70, 71].map(|index| recent.octets_behind(index)), [None, Some(3), Some(0)]);
        recent.append([(501, 4), (502, 5)].into_iter());
        assert_eq!([499, 500, 501].map(|index| recent.octets_behind(index)), [None, Some(9), Some(5)]);
        recent.truncate_after(Some(300));
        assert_eq!([299, 300].map(|index| recent.octets_behind(index)), [None, Some(0)]);
    }

    #[test]
    fn it_is_known_of_so_many_entries_and_no_more() {
        let recent = Recent::behind(0);
        let last = 10 * RECENT_ENTRIES_MAX;
        recent.append((1..=last).map(|index| (index, 1)));
        assert_eq!(recent.octets_behind(last - RECENT_ENTRIES_MAX), Some(RECENT_ENTRIES_MAX));
        assert_eq!(recent.octets_behind(last - RECENT_ENTRIES_MAX - 1), None);
        assert_eq!(recent.0.lock().sums.len() as u64, RECENT_ENTRIES_MAX + 1);
    }
}
