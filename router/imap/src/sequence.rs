//! Sequence sets as clients write them: numbers, ranges and `*`, and what they mean in a given mailbox.

use std::fmt;

use types::UidSet;

/// Stands for `*`; 0 is not a sequence number or UID.
const STAR: u32 = 0;

/// `sequence-set = (seq-number / seq-range) *("," sequence-set)`, as written: unsorted, with `*`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SequenceSet {
    /// Never empty. Ends in either order.
    ranges: Vec<(u32, u32)>,
}

/// A message sequence number above the number of messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no message with that sequence number")]
pub struct OutOfRange;

impl SequenceSet {
    /// `1*DIGIT` without leading zero, `*`, `:` and `,` as RFC 3501 §9 has them; None for all else, also for 0 and
    /// numbers from 2^32.
    pub fn parse(text: &[u8]) -> Option<SequenceSet> {
        let mut ranges = Vec::new();
        for item in text.split(|b| *b == b',') {
            let mut ends = item.splitn(2, |b| *b == b':');
            let first = number(ends.next()?)?;
            ranges.push((first, ends.next().map_or(Some(first), number)?));
        }
        Some(SequenceSet { ranges })
    }

    /// The members of `existing` that this set names as UIDs; numbers without a message are left out
    /// (RFC 3501 §6.4.8). `*` is the highest UID; in an empty mailbox nothing is named.
    pub fn resolve_uids(&self, existing: &UidSet) -> UidSet {
        let Some(last) = existing.last() else { return UidSet::new() };
        self.numbers(last).intersection(existing)
    }

    /// The UIDs of the messages that this set names by sequence number, where `existing` is what the session has
    /// been told of.
    pub fn resolve_seqs(&self, existing: &UidSet) -> Result<UidSet, OutOfRange> {
        let count = existing.len();
        if count == 0 || self.ranges.iter().any(|&(a, b)| u64::from(a.max(b)) > count) {
            return Err(OutOfRange);
        }
        Ok(self.resolve_seqs_present(existing))
    }

    /// As [`SequenceSet::resolve_seqs`], but numbers without a message are left out: what SEARCH needs.
    pub fn resolve_seqs_present(&self, existing: &UidSet) -> UidSet {
        let Ok(count) = u32::try_from(existing.len()) else { return UidSet::new() };
        if count == 0 {
            return UidSet::new();
        }
        members_at(existing, &self.numbers(count))
    }

    /// The numbers themselves, `*` being `last`, which is not 0.
    fn numbers(&self, last: u32) -> UidSet {
        let number = |end: u32| if end == STAR { last } else { end };
        let mut ranges: Vec<(u32, u32)> =
            self.ranges.iter().map(|&(a, b)| (number(a), number(b))).map(|(a, b)| (a.min(b), a.max(b))).collect();
        // In order, each range goes in at the end of the set, which is cheap.
        ranges.sort_unstable();
        ranges.into_iter().collect()
    }
}

/// The members of `existing` at the 1-based `positions`; positions past the end are left out. Linear in the ranges.
pub(crate) fn members_at(existing: &UidSet, positions: &UidSet) -> UidSet {
    let mut found: Vec<(u32, u32)> = Vec::new();
    let mut wanted = positions.ranges().iter().copied().peekable();
    let mut before = 0u32;
    for &(first, last) in existing.ranges() {
        let (low, high) = (before + 1, before + (last - first) + 1);
        while let Some(&(a, b)) = wanted.peek() {
            if a > high {
                break;
            }
            if b >= low {
                found.push((first + (a.max(low) - low), first + (b.min(high) - low)));
            }
            if b > high {
                break;
            }
            wanted.next();
        }
        before = high;
    }
    found.into_iter().collect()
}

fn number(text: &[u8]) -> Option<u32> {
    match text {
        b"*" => Some(STAR),
        [b'1'..=b'9', rest @ ..] if rest.len() < 10 && rest.iter().all(u8::is_ascii_digit) => {
            std::str::from_utf8(text).ok()?.parse().ok()
        }
        _ => None,
    }
}

impl fmt::Display for SequenceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |f: &mut fmt::Formatter<'_>, n: u32| if n == STAR { f.write_str("*") } else { n.fmt(f) };
        for (i, &(first, last)) in self.ranges.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            end(f, first)?;
            if first != last {
                f.write_str(":")?;
                end(f, last)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use types::UidSet;

    use super::{OutOfRange, SequenceSet};

    fn set(text: &str) -> SequenceSet {
        SequenceSet::parse(text.as_bytes()).unwrap()
    }

    fn uids(numbers: &[u32]) -> UidSet {
        numbers.iter().copied().collect()
    }

    #[test]
    fn zero_too_large_and_malformed_numbers_are_refused() {
        let bad = [
            "",
            "0",
            "0:3",
            "1:",
            ":1",
            "1,",
            ",1",
            "4294967296",
            "1:4294967296",
            "01",
            "1:2:3",
            "-1",
            "1 2",
            "**",
            "99999999999999999999",
            "a",
        ];
        for bad in bad {
            assert!(SequenceSet::parse(bad.as_bytes()).is_none(), "{bad}");
        }
        for good in ["1", "*", "1:*", "*:1", "4294967295", "5:2,9,*:*"] {
            assert!(SequenceSet::parse(good.as_bytes()).is_some(), "{good}");
        }
    }

    #[test]
    fn star_is_the_highest_uid_even_when_the_range_starts_above_it() {
        let existing = uids(&[3, 4, 9]);
        assert_eq!(set("*").resolve_uids(&existing), uids(&[9]));
        assert_eq!(set("100:*").resolve_uids(&existing), uids(&[9]));
        assert_eq!(set("*:4").resolve_uids(&existing), uids(&[4, 9]));
        assert_eq!(set("1:3,7").resolve_uids(&existing), uids(&[3]));
        assert_eq!(set("1:*").resolve_uids(&UidSet::new()), UidSet::new());
    }

    #[test]
    fn sequence_numbers_past_the_end_are_out_of_range() {
        let existing = uids(&[3, 4, 9]);
        assert_eq!(set("2:3").resolve_seqs(&existing), Ok(uids(&[4, 9])));
        assert_eq!(set("*:1").resolve_seqs(&existing), Ok(existing.clone()));
        assert_eq!(set("4").resolve_seqs(&existing), Err(OutOfRange));
        assert_eq!(set("4:*").resolve_seqs(&existing), Err(OutOfRange));
        assert_eq!(set("*").resolve_seqs(&UidSet::new()), Err(OutOfRange));
        assert_eq!(set("2:7").resolve_seqs_present(&existing), uids(&[4, 9]));
        assert_eq!(set("1:*").resolve_seqs_present(&UidSet::new()), UidSet::new());
    }

    #[test]
    fn thousands_of_scattered_items_resolve_in_one_pass() {
        let text: Vec<String> = (1..=9_000u32).rev().map(|n| (n * 2).to_string()).collect();
        let existing = UidSet::from_range(1, 20_000);
        assert_eq!(set(&text.join(",")).resolve_seqs(&existing).unwrap().len(), 9_000);
    }

    proptest! {
        #[test]
        fn resolving_agrees_with_looking_at_each_number(
            members in proptest::collection::btree_set(1u32..60, 0..30),
            ranges in proptest::collection::vec((0u32..40, 0u32..40), 1..6),
            swap in any::<bool>(),
        ) {
            let end = |n: u32| if n == 0 { "*".to_owned() } else { n.to_string() };
            let text: Vec<String> = ranges
                .iter()
                .map(|&(a, b)| if a == b { end(a) } else if swap { format!("{}:{}", end(b), end(a)) } else { format!("{}:{}", end(a), end(b)) })
                .collect();
            let parsed = set(&text.join(","));
            assert_eq!(parsed.to_string(), text.join(","));
            let members: Vec<u32> = members.into_iter().collect();
            let named = |number: u32, last: u32| {
                let n = |x: u32| if x == 0 { last } else { x };
                ranges.iter().any(|&(a, b)| (n(a).min(n(b))..=n(a).max(n(b))).contains(&number))
            };
            let existing: UidSet = members.iter().copied().collect();
            let last = members.last().copied().unwrap_or(0);
            let by_uid: UidSet = members.iter().copied().filter(|&uid| named(uid, last)).collect();
            assert_eq!(parsed.resolve_uids(&existing), by_uid);
            let count = members.len() as u32;
            let by_seq: UidSet =
                (1..=count).filter(|&seq| named(seq, count)).map(|seq| members[seq as usize - 1]).collect();
            assert_eq!(parsed.resolve_seqs_present(&existing), by_seq);
        }
    }
}
