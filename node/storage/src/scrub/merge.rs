//! One walk over all copies of a key range, which goes on behind what cannot be read. Knows no disk.

use std::borrow::Cow;

use bytes::Bytes;

use super::verdict::Reading;
use crate::error::StorageError;

/// Keys are stepped through as numbers of at least so many bytes.
const NUMBER_BYTES_MIN: usize = 64;

/// Key and value.
pub(crate) type Item<'a> = (&'a [u8], &'a [u8]);

/// One copy of the records, in the order of their keys.
pub(crate) trait Records {
    /// To the first record whose key is not less.
    fn seek(&mut self, key: &[u8]);

    fn advance(&mut self);

    /// The record that it is at; `None` behind the last one; an error where it cannot go on.
    fn item(&self) -> Result<Option<Item<'_>>, StorageError>;

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError>;
}

pub(crate) enum Step<'a> {
    /// A key that at least one copy has, and what each of them answers for it.
    Record {
        key: &'a [u8],
        readings: Vec<Reading<'a>>,
    },
    /// A copy cannot be read on from here. The keys that it does not tell come from the other one.
    Broken {
        at: usize,
        from: &'a [u8],
        error: StorageError,
    },
    /// From `from` on and before `to`, or the end of the range, a copy tells no keys. `unknown`: nor does any other.
    Gap {
        from: Vec<u8>,
        to: Option<Vec<u8>>,
        unknown: bool,
        error: StorageError,
    },
    End,
}

pub(crate) struct Merge<R> {
    copies: Vec<Place<R>>,
    /// What was given out last.
    key: Vec<u8>,
    /// Nothing below this is still to come.
    low: Vec<u8>,
    ended: bool,
}

struct Place<R> {
    records: R,
    /// Whether it is at the key that was given out last.
    given: bool,
    /// Why it cannot go on by itself.
    broken: Option<StorageError>,
}

impl<R: Records> Merge<R> {
    pub(crate) fn new(copies: Vec<R>, from: &[u8]) -> Merge<R> {
        let place = |mut records: R| {
            records.seek(from);
            Place { records, given: false, broken: None }
        };
        Merge { copies: copies.into_iter().map(place).collect(), key: Vec::new(), low: from.to_vec(), ended: false }
    }

    pub(crate) fn step(&mut self) -> Step<'_> {
        if self.ended {
            return Step::End;
        }
        for copy in &mut self.copies {
            if std::mem::take(&mut copy.given) {
                copy.records.advance();
            }
        }
        for (at, copy) in self.copies.iter_mut().enumerate() {
            if copy.broken.is_none()
                && let Err(error) = copy.records.item()
            {
                copy.broken = Some(error.clone());
                return Step::Broken { at, from: &self.low, error };
            }
        }
        let whole = self.copies.iter().filter(|copy| copy.broken.is_none());
        let least = whole.filter_map(|copy| copy.records.item().ok().flatten().map(|(key, _)| key)).min();
        match least {
            Some(least) => {
                let least = least.to_vec();
                self.record(least)
            }
            None => self.gap(),
        }
    }

    fn record(&mut self, key: Vec<u8>) -> Step<'_> {
        self.low.clone_from(&key);
        self.low.push(0);
        self.key = key;
        for copy in &mut self.copies {
            if copy.broken.is_some() {
                copy.records.seek(&self.key);
                copy.broken = copy.records.item().err();
            }
            copy.given = matches!(copy.records.item(), Ok(Some((key, _))) if key == self.key);
        }
        let readings = self.copies.iter().map(|copy| copy.read(&self.key)).collect();
        Step::Record { key: &self.key, readings }
    }

    /// What each copy answers for a key, wherever the walk is.
    pub(crate) fn read(&self, key: &[u8]) -> Vec<Reading<'static>> {
        let answer = |value: Option<Bytes>| value.map(|bytes| Cow::Owned(bytes.into()));
        self.copies.iter().map(|copy| copy.records.get(key).map(answer)).collect()
    }

    /// No copy that can be read has any more: behind what the broken ones cannot read there may be.
    fn gap(&mut self) -> Step<'_> {
        let from = self.low.clone();
        let unknown = self.copies.iter().all(|copy| copy.broken.is_some());
        let (mut to, mut reason): (Option<Option<Vec<u8>>>, _) = (None, None);
        for copy in &mut self.copies {
            let Some(error) = &copy.broken else { continue };
            let resume = behind(&mut copy.records, &from, error);
            reason.get_or_insert_with(|| error.clone());
            to = Some(match (to, resume) {
                (None, resume) => resume,
                (Some(None), Some(resume)) | (Some(Some(resume)), None) => Some(resume),
                (Some(Some(one)), Some(other)) => Some(one.min(other)),
                (Some(None), None) => None,
            });
        }
        let (Some(to), Some(error)) = (to, reason) else { return Step::End };
        for copy in &mut self.copies {
            match &to {
                Some(to) if copy.broken.is_some() => {
                    copy.records.seek(to);
                    copy.broken = copy.records.item().err();
                }
                Some(_) | None => {}
            }
        }
        match &to {
            Some(to) => self.low.clone_from(to),
            None => self.ended = true,
        }
        Step::Gap { from, to, unknown, error }
    }
}

impl<R: Records> Place<R> {
    fn read(&self, key: &[u8]) -> Reading<'_> {
        match (&self.broken, self.records.item()) {
            (None, Ok(Some((own, value)))) if own == key => Ok(Some(Cow::Borrowed(value))),
            (None, Ok(_)) => Ok(None),
            // A single record may still be found where a walk meets damage.
            _ => self.records.get(key).map(|value| value.map(|bytes| Cow::Owned(bytes.into()))),
        }
    }
}

/// The least key above `from` at which a copy can be read again, or fails in another place: that is damage of its own.
/// `None` if that is so nowhere in the range. The keys between are unknown, so they are taken as numbers: first in steps
/// that double, then by halves.
pub(crate) fn behind(records: &mut impl Records, from: &[u8], error: &StorageError) -> Option<Vec<u8>> {
    let mut low = from.to_vec();
    low.resize((from.len() + 1).max(NUMBER_BYTES_MIN), 0);
    let mut fails = |key: &[u8]| {
        records.seek(key);
        matches!(records.item(), Err(found) if reason(&found) == reason(error))
    };
    let bits = low.len() * 8;
    let mut step = 0;
    loop {
        match plus(&low, step) {
            Some(key) if fails(&key) && step < bits - 1 => step += 1,
            Some(_) => break,
            None => break,
        }
    }
    for bit in (0..step).rev() {
        if let Some(key) = plus(&low, bit).filter(|key| fails(key)) {
            low = key;
        }
    }
    let end = plus(&low, 0)?;
    records.seek(&end);
    match records.item() {
        Ok(None) => None,
        _ => Some(end),
    }
}

/// What distinguishes one place from another: RocksDB names the file and the offset of a block.
fn reason(error: &StorageError) -> &str {
    match error {
        StorageError::Corrupt { reason, .. } | StorageError::Io { reason, .. } => reason,
        _ => "",
    }
}

/// A number and a power of two; `None` beyond the greatest.
fn plus(number: &[u8], bit: usize) -> Option<Vec<u8>> {
    let mut sum = number.to_vec();
    let mut carry = 1u16 << (bit % 8);
    for byte in sum.iter_mut().rev().skip(bit / 8) {
        carry += u16::from(*byte);
        *byte = carry as u8;
        carry >>= 8;
        if carry == 0 {
            return Some(sum);
        }
    }
    None
}

#[cfg(test)]
mod tests;
