use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Item, Merge, Records, Step};
use crate::error::StorageError;

/// Records with places that cannot be read: ranges of keys, both ends included.
#[derive(Clone, Default)]
struct Copy {
    all: BTreeMap<Vec<u8>, Bytes>,
    bad: Vec<(u64, u64)>,
    at: Option<Vec<u8>>,
    sought: Vec<u8>,
}

fn key(number: u64) -> Vec<u8> {
    [&7u32.to_be_bytes()[..], &number.to_be_bytes()].concat()
}

impl Copy {
    fn new(keys: impl IntoIterator<Item = u64>) -> Copy {
        let all = keys.into_iter().map(|number| (key(number), Bytes::from(number.to_string())));
        Copy { all: all.collect(), ..Copy::default() }
    }

    fn damaged(mut self, from: u64, to: u64) -> Copy {
        self.bad.push((from, to));
        self
    }

    fn broken(&self, at: &[u8]) -> Option<StorageError> {
        let place = self.bad.iter().find(|(from, to)| *at >= key(*from)[..] && *at <= key(*to)[..])?;
        Some(StorageError::corrupt("k", format!("block {place:?}")))
    }

    /// A block is met where a key of it is sought or where the next record would be in it.
    fn error(&self) -> Option<StorageError> {
        let next = self.at.as_deref();
        let skipped = self.bad.iter().find(|(from, _)| {
            let from = key(*from);
            from >= self.sought && next.is_none_or(|next| from[..] <= *next)
        });
        let skipped = skipped.map(|place| StorageError::corrupt("k", format!("block {place:?}")));
        self.broken(&self.sought).or(skipped)
    }
}

impl Records for Copy {
    fn seek(&mut self, key: &[u8]) {
        self.sought = key.to_vec();
        self.at = self.all.range(key.to_vec()..).next().map(|(key, _)| key.clone());
    }

    fn advance(&mut self) {
        let mut next = self.at.clone().unwrap_or_default();
        next.push(0);
        self.seek(&next);
    }

    fn item(&self) -> Result<Option<Item<'_>>, StorageError> {
        match self.error() {
            Some(error) => Err(error),
            None => Ok(self
                .at
                .as_ref()
                .and_then(|at| self.all.get_key_value(at))
                .map(|(key, value)| (&key[..], &value[..]))),
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.broken(key).map_or_else(|| Ok(self.all.get(key).cloned()), Err)
    }
}

/// Each step as text: the number with a letter for each copy, or the ends of a gap.
fn told(copies: Vec<Copy>) -> Vec<String> {
    let mut merge = Merge::new(copies, &key(0));
    let mut told = Vec::new();
    let number = |key: &[u8]| u64::from_be_bytes(key[4..12].try_into().unwrap());
    loop {
        match merge.step() {
            Step::Record { key, readings } => {
                let letters = readings.iter().map(|reading| match reading {
                    Ok(Some(value)) if **value == *number(key).to_string().as_bytes() => 'v',
                    Ok(Some(_)) => 'x',
                    Ok(None) => '-',
                    Err(_) => '!',
                });
                told.push(format!("{}{}", number(key), letters.collect::<String>()));
            }
            Step::Broken { .. } => {}
            Step::Gap { unknown: false, .. } => {}
            Step::Gap { from, to, .. } => {
                told.push(format!("{}..{:?}", number(&from), to.map(|to| number(&to))));
            }
            Step::End => return told,
        }
        assert!(told.len() < 10_000);
    }
}

#[test]
fn what_one_copy_lacks_or_has_otherwise_is_seen() {
    let a = Copy::new([1, 2, 3, 5]);
    let mut b = Copy::new([1, 3, 4, 5, 6]);
    b.all.insert(key(5), Bytes::from("other"));
    assert_eq!(told(vec![a, b]), ["1vv", "2v-", "3vv", "4-v", "5vx", "6-v"]);
}

#[test]
fn damage_in_one_copy_is_told_key_by_key_and_the_walk_goes_on_behind_it() {
    let a = Copy::new(1..=9).damaged(2, 3).damaged(6, 6);
    let b = Copy::new(1..=9).damaged(8, 9);
    let expected = ["1vv", "2!v", "3!v", "4vv", "5vv", "6!v", "7vv", "8v!", "9v!"];
    assert_eq!(told(vec![a.clone(), b.clone()]), expected);
    let mirrored: Vec<String> =
        expected.iter().map(|one| one[..1].chars().chain(one[1..].chars().rev()).collect()).collect();
    assert_eq!(told(vec![b, a]), mirrored);
}

#[test]
fn what_no_copy_can_read_is_a_gap_of_known_ends() {
    let one = Copy::new(1..=20).damaged(3, 5).damaged(6, 9).damaged(19, 20);
    let told_of_one = told(vec![one]);
    assert_eq!(
        told_of_one,
        [
            "1v",
            "2v",
            "2..Some(5)",
            "5..Some(9)",
            "10v",
            "11v",
            "12v",
            "13v",
            "14v",
            "15v",
            "16v",
            "17v",
            "18v",
            "18..None"
        ]
    );
    let a = Copy::new(1..=8).damaged(3, 6);
    let b = Copy::new(1..=8).damaged(5, 5);
    assert_eq!(told(vec![a, b]), ["1vv", "2vv", "3!v", "4!v", "4..Some(5)", "6!v", "7vv", "8vv"]);
}

#[test]
fn every_record_outside_of_damage_is_visited_wherever_it_lies() {
    for from in 1..40u64 {
        for len in [0, 1, 5, 11] {
            let copy = Copy::new((1..60).map(|number| number * 3)).damaged(from * 3, (from + len) * 3);
            let found = told(vec![copy]);
            let good = (1..60).filter(|number| *number < from || *number > from + len).count();
            assert_eq!(found.iter().filter(|one| one.ends_with('v')).count(), good, "{from} {len} {found:?}");
        }
    }
}
