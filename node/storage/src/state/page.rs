//! A page: which of 1,024 consecutive UIDs exist, and their system flags, as bitmaps. Thirty small records say all that
//! SELECT, EXPUNGE and a SEARCH for system flags want to know of 30,000 messages.

use types::{SystemFlags, UidSet};

use crate::error::StorageError;
use crate::keys::printable;
use crate::records::VERSION;
use crate::store::Family;

const UIDS_SHIFT: u32 = 10;
const WORDS: usize = 16;
const BITMAPS: usize = 6;
const BITMAP_BYTES: usize = WORDS * 8;

/// The flags of bitmaps 1 to 5; bitmap 0 tells which UIDs exist.
const FLAGS: [SystemFlags; BITMAPS - 1] =
    [SystemFlags::SEEN, SystemFlags::DELETED, SystemFlags::FLAGGED, SystemFlags::ANSWERED, SystemFlags::DRAFT];

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Page {
    bitmaps: [[u64; WORDS]; BITMAPS],
}

/// The page of a UID.
pub(crate) fn number(uid: u32) -> u32 {
    uid >> UIDS_SHIFT
}

fn place(uid: u32) -> (usize, u64) {
    let bit = uid & ((1 << UIDS_SHIFT) - 1);
    ((bit / 64) as usize, 1 << (bit % 64))
}

impl Page {
    /// Sets a UID's bits: present, with these flags.
    pub(crate) fn set(&mut self, uid: u32, flags: SystemFlags) {
        let (word, bit) = place(uid);
        self.bitmaps[0][word] |= bit;
        for (flag, bitmap) in FLAGS.into_iter().zip(&mut self.bitmaps[1..]) {
            if flags.contains(flag) {
                bitmap[word] |= bit;
            } else {
                bitmap[word] &= !bit;
            }
        }
    }

    pub(crate) fn clear(&mut self, uid: u32) {
        let (word, bit) = place(uid);
        for bitmap in &mut self.bitmaps {
            bitmap[word] &= !bit;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bitmaps[0].iter().all(|word| *word == 0)
    }

    /// Adds the UIDs that exist, have all of `with` and none of `without`.
    pub(crate) fn collect(&self, page: u32, with: SystemFlags, without: SystemFlags, into: &mut UidSet) {
        for word in 0..WORDS {
            let mut bits = self.bitmaps[0][word];
            for (flag, bitmap) in FLAGS.into_iter().zip(&self.bitmaps[1..]) {
                if with.contains(flag) {
                    bits &= bitmap[word];
                }
                if without.contains(flag) {
                    bits &= !bitmap[word];
                }
            }
            let base = (page << UIDS_SHIFT) + word as u32 * 64;
            // Run by run: a mailbox has few gaps.
            while bits != 0 {
                let first = bits.trailing_zeros();
                let run = (bits >> first).trailing_ones();
                into.insert_range(base + first, base + (first + run - 1));
                let through = first + run;
                bits = if through == 64 { 0 } else { bits >> through << through };
            }
        }
    }

    /// A version byte, a byte that tells which bitmaps are not empty, and those.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 + 3 * BITMAP_BYTES);
        bytes.extend_from_slice(&[VERSION, 0]);
        let mut mask = 0;
        for (i, bitmap) in self.bitmaps.iter().enumerate() {
            if bitmap.iter().any(|word| *word != 0) {
                mask |= 1 << i;
                bytes.extend(bitmap.iter().flat_map(|word| word.to_be_bytes()));
            }
        }
        bytes[1] = mask;
        bytes
    }

    pub(crate) fn decode(key: &[u8], value: &[u8]) -> Result<Page, StorageError> {
        let damaged = || StorageError::corrupt(printable(Family::State, key), "not a page");
        let (&[version, mask], mut rest) = value.split_first_chunk::<2>().ok_or_else(damaged)?;
        if version != VERSION || u32::from(mask) >> BITMAPS != 0 {
            return Err(damaged());
        }
        let mut page = Page::default();
        for (i, bitmap) in page.bitmaps.iter_mut().enumerate() {
            if mask & (1 << i) == 0 {
                continue;
            }
            for word in bitmap.iter_mut() {
                let (bytes, after) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
                *word = u64::from_be_bytes(*bytes);
                rest = after;
            }
        }
        if rest.is_empty() { Ok(page) } else { Err(damaged()) }
    }
}

#[cfg(test)]
mod tests {
    use types::{SystemFlags, UidSet};

    use super::{Page, number};

    fn uids(page: &Page, number: u32, with: SystemFlags, without: SystemFlags) -> String {
        let mut set = UidSet::new();
        page.collect(number, with, without, &mut set);
        set.to_string()
    }

    #[test]
    fn a_page_answers_by_flags_and_survives_its_encoding() {
        let mut page = Page::default();
        for uid in 1024..2048 {
            page.set(uid, SystemFlags::NONE);
        }
        page.set(1030, SystemFlags::SEEN.union(SystemFlags::DELETED));
        page.set(2047, SystemFlags::SEEN);
        page.clear(1024);
        assert!((1024..2048).all(|uid| number(uid) == 1));
        let page = Page::decode(b"", &page.encode()).unwrap();
        assert_eq!(uids(&page, 1, SystemFlags::NONE, SystemFlags::NONE), "1025:2047");
        assert_eq!(uids(&page, 1, SystemFlags::NONE, SystemFlags::SEEN), "1025:1029,1031:2046");
        assert_eq!(uids(&page, 1, SystemFlags::SEEN, SystemFlags::DELETED), "2047");
        assert!(!page.is_empty());
    }

    #[test]
    fn the_last_page_reaches_the_greatest_uid() {
        let mut page = Page::default();
        page.set(u32::MAX, SystemFlags::DRAFT);
        assert_eq!(uids(&page, number(u32::MAX), SystemFlags::DRAFT, SystemFlags::NONE), u32::MAX.to_string());
    }

    #[test]
    fn a_cut_or_long_page_is_refused() {
        let mut page = Page::default();
        page.set(1, SystemFlags::SEEN);
        let mut bytes = page.encode();
        assert!(Page::decode(b"", &bytes[..bytes.len() - 1]).is_err());
        bytes.push(0);
        assert!(Page::decode(b"", &bytes).is_err());
        assert!(Page::decode(b"", &[1, 64]).is_err());
        assert!(Page::decode(b"", &[]).is_err());
    }
}
