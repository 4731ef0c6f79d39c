//! The messages of one session, as they were when it logged in, and its deletion marks (RFC 1939 §5). Numbers here
//! are message numbers, from 1; indices outside this crate are positions in the listing, from 0.

/// RFC 1939 §7.
pub const UIDL_OCTETS_MAX: usize = 70;

/// A unique-id is 1 to 70 characters of 0x21 to 0x7E (RFC 1939 §7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a unique-id of 1 to 70 printable characters")]
pub struct InvalidUidl;

/// Some 20 octets a message, and its unique-id.
#[derive(Clone, Debug, Default)]
pub struct Maildrop {
    octets: Vec<u64>,
    /// The unique-ids, one after the other.
    uidls: String,
    /// Where each unique-id ends in `uidls`.
    uidl_ends: Vec<usize>,
    deleted: Vec<bool>,
    live: usize,
    live_octets: u64,
    /// Highest message number accessed (LAST).
    last: usize,
}

impl Maildrop {
    pub fn new() -> Maildrop {
        Maildrop::default()
    }

    /// Adds the next message. `octets` is its stored size, which RETR must transfer.
    pub fn push(&mut self, octets: u64, uidl: &str) -> Result<(), InvalidUidl> {
        if uidl.is_empty() || uidl.len() > UIDL_OCTETS_MAX || !uidl.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(InvalidUidl);
        }
        self.octets.push(octets);
        self.uidls.push_str(uidl);
        self.uidl_ends.push(self.uidls.len());
        self.deleted.push(false);
        self.live += 1;
        self.live_octets = self.live_octets.saturating_add(octets);
        Ok(())
    }

    /// Messages in the listing, deleted ones included.
    pub fn len(&self) -> usize {
        self.octets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    /// Messages that are not marked as deleted.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    pub(crate) fn live_octets(&self) -> u64 {
        self.live_octets
    }

    pub(crate) fn last(&self) -> usize {
        self.last
    }

    pub(crate) fn touch(&mut self, number: usize) {
        self.last = self.last.max(number);
    }

    /// The size of a message that exists and is not marked as deleted.
    pub(crate) fn octets(&self, number: usize) -> Option<u64> {
        let index = number.checked_sub(1)?;
        if *self.deleted.get(index)? { None } else { self.octets.get(index).copied() }
    }

    /// The unique-id of a message that exists and is not marked as deleted.
    pub(crate) fn uidl(&self, number: usize) -> Option<&str> {
        let index = number.checked_sub(1)?;
        if *self.deleted.get(index)? {
            return None;
        }
        let start = match index.checked_sub(1) {
            Some(before) => *self.uidl_ends.get(before)?,
            None => 0,
        };
        self.uidls.get(start..*self.uidl_ends.get(index)?)
    }

    /// False where there is no such message, or not any more.
    pub(crate) fn delete(&mut self, number: usize) -> bool {
        let Some(octets) = self.octets(number) else { return false };
        if let Some(deleted) = self.deleted.get_mut(number - 1) {
            *deleted = true;
        }
        self.live -= 1;
        self.live_octets = self.live_octets.saturating_sub(octets);
        self.touch(number);
        true
    }

    /// Takes all marks back.
    pub(crate) fn reset(&mut self) {
        self.deleted.fill(false);
        self.live = self.octets.len();
        self.live_octets = self.octets.iter().fold(0, |sum, octets| sum.saturating_add(*octets));
        self.last = 0;
    }

    /// Indices of the messages marked as deleted, ascending.
    pub(crate) fn deleted(&self) -> Vec<usize> {
        self.deleted.iter().enumerate().filter(|(_, deleted)| **deleted).map(|(index, _)| index).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{InvalidUidl, Maildrop};

    #[test]
    fn deleted_messages_are_not_there_until_reset() {
        let mut maildrop = Maildrop::new();
        for (octets, uidl) in [(10, "a"), (20, "bb"), (30, "ccc")] {
            maildrop.push(octets, uidl).unwrap();
        }
        assert!(maildrop.delete(2) && !maildrop.delete(2) && !maildrop.delete(0) && !maildrop.delete(4));
        assert_eq!((maildrop.live(), maildrop.live_octets(), maildrop.last()), (2, 40, 2));
        assert_eq!((maildrop.octets(2), maildrop.uidl(2), maildrop.uidl(3)), (None, None, Some("ccc")));
        assert_eq!(maildrop.deleted(), [1]);
        maildrop.reset();
        assert_eq!(
            (maildrop.live(), maildrop.live_octets(), maildrop.last(), maildrop.uidl(2)),
            (3, 60, 0, Some("bb"))
        );
    }

    #[test]
    fn unique_ids_are_1_to_70_printable_characters() {
        let mut maildrop = Maildrop::new();
        assert_eq!(maildrop.push(1, &"x".repeat(70)), Ok(()));
        for bad in ["", " ", "a b", "\u{e9}", "a\u{7f}", &"x".repeat(71)] {
            assert_eq!(maildrop.push(1, bad), Err(InvalidUidl));
        }
        assert_eq!(maildrop.len(), 1);
    }
}
