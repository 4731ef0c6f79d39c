//! A set of UIDs (or of sequence numbers) as sorted ranges: small for the mailboxes that people have.

use std::fmt;

/// Sorted, disjoint, non-adjacent inclusive ranges of numbers from 1 to 2^32-1.
#[derive(Clone, PartialEq, Eq, Default, Hash)]
pub struct UidSet {
    ranges: Vec<(u32, u32)>,
}

impl UidSet {
    pub fn new() -> UidSet {
        UidSet::default()
    }

    pub fn from_range(first: u32, last: u32) -> UidSet {
        let mut set = UidSet::new();
        set.insert_range(first, last);
        set
    }

    /// The ranges in ascending order, both ends included.
    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.ranges
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many numbers the set holds.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(first, last)| u64::from(last - first) + 1).sum()
    }

    pub fn first(&self) -> Option<u32> {
        self.ranges.first().map(|range| range.0)
    }

    pub fn last(&self) -> Option<u32> {
        self.ranges.last().map(|range| range.1)
    }

    pub fn contains(&self, number: u32) -> bool {
        let at = self.ranges.partition_point(|range| range.1 < number);
        self.ranges.get(at).is_some_and(|range| range.0 <= number)
    }

    /// Cheap at the end of the set, where new UIDs go. 0 is not a UID and is left out.
    pub fn insert(&mut self, number: u32) {
        self.insert_range(number, number);
    }

    /// Adds `first..=last`; the ends may come in either order (RFC 9051 §9, seq-range). 0 is left out.
    pub fn insert_range(&mut self, first: u32, last: u32) {
        let (first, last) = (first.min(last).max(1), first.max(last));
        if last == 0 {
            return;
        }
        // Ranges that touch the new one, adjacency included, are at..end.
        let at = self.ranges.partition_point(|range| range.1 < first - 1);
        let end = at + self.ranges[at..].partition_point(|range| range.0 <= last.saturating_add(1));
        if at == end {
            self.ranges.insert(at, (first, last));
            return;
        }
        let merged = (first.min(self.ranges[at].0), last.max(self.ranges[end - 1].1));
        self.ranges[at] = merged;
        self.ranges.drain(at + 1..end);
    }

    /// Returns whether the number was there.
    pub fn remove(&mut self, number: u32) -> bool {
        let at = self.ranges.partition_point(|range| range.1 < number);
        let Some(&(first, last)) = self.ranges.get(at) else { return false };
        if first > number {
            return false;
        }
        match (first == number, last == number) {
            (true, true) => {
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at].0 = number + 1,
            (false, true) => self.ranges[at].1 = number - 1,
            (false, false) => {
                self.ranges[at].1 = number - 1;
                self.ranges.insert(at + 1, (number + 1, last));
            }
        }
        true
    }

    /// The set in ascending order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.ranges.iter().flat_map(|&(first, last)| first..=last)
    }

    /// The 1-based position of a member: a UID's message sequence number. Linear in the ranges.
    pub fn position(&self, number: u32) -> Option<u32> {
        let mut before = 0u32;
        for &(first, last) in &self.ranges {
            if number < first {
                return None;
            }
            if number <= last {
                return Some(before + (number - first) + 1);
            }
            before += last - first + 1;
        }
        None
    }

    /// The member at a 1-based position: a message sequence number's UID. Linear in the ranges.
    pub fn at_position(&self, position: u32) -> Option<u32> {
        let mut left = position.checked_sub(1)?;
        for &(first, last) in &self.ranges {
            let count = last - first + 1;
            if left < count {
                return Some(first + left);
            }
            left -= count;
        }
        None
    }

    /// The set cut into parts of at most `max` numbers each, ascending; none for the empty set. `max` is not 0.
    pub fn parts(&self, max: u32) -> impl Iterator<Item = UidSet> + '_ {
        let mut ranges = self.ranges.iter().copied();
        let mut rest = ranges.next();
        std::iter::from_fn(move || {
            let (mut part, mut room) = (UidSet::new(), max.max(1));
            while let Some((first, last)) = rest {
                let Some(more) = room.checked_sub(1) else { break };
                let end = last.min(first.saturating_add(more));
                part.ranges.push((first, end));
                room = more - (end - first);
                rest = if end < last { Some((end + 1, last)) } else { ranges.next() };
            }
            (!part.is_empty()).then_some(part)
        })
    }

    pub fn union(&self, other: &UidSet) -> UidSet {
        let mut all: Vec<(u32, u32)> = self.ranges.iter().chain(&other.ranges).copied().collect();
        all.sort_unstable();
        all.into_iter().collect()
    }

    pub fn intersection(&self, other: &UidSet) -> UidSet {
        let (mut a, mut b) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        let mut ranges = Vec::new();
        while let (Some(&&(a0, a1)), Some(&&(b0, b1))) = (a.peek(), b.peek()) {
            if a0.max(b0) <= a1.min(b1) {
                ranges.push((a0.max(b0), a1.min(b1)));
            }
            if a1 < b1 {
                a.next();
            } else {
                b.next();
            }
        }
        UidSet { ranges }
    }

    /// Members of this set that are not in the other.
    pub fn difference(&self, other: &UidSet) -> UidSet {
        let mut ranges = Vec::new();
        let mut others = other.ranges.as_slice();
        for &(mut first, last) in &self.ranges {
            others = &others[others.partition_point(|range| range.1 < first)..];
            let mut done = false;
            for &(o0, o1) in others {
                if o0 > last {
                    break;
                }
                if o0 > first {
                    ranges.push((first, o0 - 1));
                }
                if o1 >= last {
                    done = true;
                    break;
                }
                first = first.max(o1 + 1);
            }
            if !done {
                ranges.push((first, last));
            }
        }
        UidSet { ranges }
    }
}

impl FromIterator<u32> for UidSet {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let mut set = UidSet::new();
        for number in numbers {
            set.insert(number);
        }
        set
    }
}

impl FromIterator<(u32, u32)> for UidSet {
    fn from_iter<I: IntoIterator<Item = (u32, u32)>>(ranges: I) -> Self {
        let mut set = UidSet::new();
        for (first, last) in ranges {
            set.insert_range(first, last);
        }
        set
    }
}

/// As IMAP writes it: `1:3,5` (RFC 9051 §9, sequence-set without `*`). Empty for the empty set.
impl fmt::Display for UidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, &(first, last)) in self.ranges.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}:{last}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for UidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UidSet({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::UidSet;

    /// A small repeatable generator, so that this crate needs no dependency for its tests.
    fn numbers(seed: u64) -> impl Iterator<Item = u32> {
        let mut state = seed;
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32 % 60 + 1
        })
    }

    #[test]
    fn set_operations_agree_with_a_plain_set() {
        for seed in 0..200 {
            let mut source = numbers(seed);
            let (mut set, mut model) = (UidSet::new(), BTreeSet::new());
            for _ in 0..40 {
                let n = source.next().unwrap();
                if n.is_multiple_of(3) {
                    assert_eq!(set.remove(n), model.remove(&n));
                } else {
                    set.insert(n);
                    model.insert(n);
                }
            }
            let other: BTreeSet<u32> = source.take(20).collect();
            let other_set: UidSet = other.iter().copied().collect();
            assert_eq!(set.iter().collect::<BTreeSet<_>>(), model);
            assert_eq!(set.len() as usize, model.len());
            assert_eq!(
                set.union(&other_set).iter().collect::<Vec<_>>(),
                model.union(&other).copied().collect::<Vec<_>>()
            );
            assert_eq!(
                set.intersection(&other_set).iter().collect::<Vec<_>>(),
                model.intersection(&other).copied().collect::<Vec<_>>()
            );
            assert_eq!(
                set.difference(&other_set).iter().collect::<Vec<_>>(),
                model.difference(&other).copied().collect::<Vec<_>>()
            );
            for (i, &n) in model.iter().enumerate() {
                assert_eq!(set.position(n), Some(i as u32 + 1));
                assert_eq!(set.at_position(i as u32 + 1), Some(n));
                assert!(set.contains(n));
            }
            assert_eq!(set.at_position(model.len() as u32 + 1), None);
        }
    }

    #[test]
    fn parts_are_full_but_for_the_last_and_make_up_the_set() {
        for seed in 0..100 {
            let set: UidSet = numbers(seed).take(40).collect();
            for max in [1, 2, 7, 60] {
                let parts: Vec<UidSet> = set.parts(max).collect();
                assert!(parts.iter().rev().skip(1).all(|part| part.len() == u64::from(max)));
                assert!(parts.iter().all(|part| (1..=u64::from(max)).contains(&part.len())));
                assert_eq!(parts.iter().flat_map(UidSet::iter).collect::<Vec<_>>(), set.iter().collect::<Vec<_>>());
            }
        }
        assert_eq!(UidSet::new().parts(5).count(), 0);
        let whole = UidSet::from_range(1, u32::MAX);
        assert_eq!(whole.parts(u32::MAX).collect::<Vec<_>>(), std::slice::from_ref(&whole));
        let ends: Vec<UidSet> = UidSet::from_range(u32::MAX - 2, u32::MAX).parts(2).collect();
        assert_eq!(ends, [UidSet::from_range(u32::MAX - 2, u32::MAX - 1), UidSet::from_range(u32::MAX, u32::MAX)]);
    }

    #[test]
    fn ranges_merge_and_print_as_imap_writes_them() {
        let set: UidSet = [(5, 3), (1, 1), (6, 6), (9, u32::MAX)].into_iter().collect();
        assert_eq!(set.to_string(), "1,3:6,9:4294967295");
        assert_eq!(set.position(0), None);
        assert_eq!(set.at_position(0), None);
    }

    #[test]
    fn zero_never_gets_in() {
        let mut set = UidSet::new();
        set.insert(0);
        assert!(set.is_empty());
        set.insert_range(0, 2);
        assert_eq!(set.to_string(), "1:2");
    }
}
