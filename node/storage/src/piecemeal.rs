//! Records one by one, where a walk meets damage.
//!
//! A walk needs a block of every table that spans a place; a single record needs only those that may hold it, and a table's
//! filter tells which do. So where both halves are damaged, in different tables, a record can be had that no walk comes
//! to. Its key must be known: many kinds of records end in a number, and between two of them all can be counted.

use crate::keys::{Kind, META_SCRUBBED, u32_at, u64_at};
use crate::store::Family;

/// Keys that are asked for between two places.
pub(crate) const KEYS_MAX: u64 = 4096;

/// Every key that a record may have from `from` on and before `to`, ascending. `None` where they cannot be counted, or are
/// more than [`KEYS_MAX`].
pub(crate) fn keys_between(family: Family, from: &[u8], to: &[u8]) -> Option<Vec<Vec<u8>>> {
    let shape = shape(family, from)?;
    let prefix = padded(from, shape.prefix);
    if to.get(..shape.prefix)? != prefix {
        return None;
    }
    let (first, last) = (bound(from, &shape)?, bound(to, &shape)?);
    if last.saturating_sub(first) > u128::from(KEYS_MAX) {
        return None;
    }
    let key = |number: u128| {
        let bytes = number.to_be_bytes();
        let own = bytes.get(bytes.len() - shape.number..).unwrap_or_default();
        [&prefix[..], own].concat()
    };
    Some((first..last).map(key).collect())
}

/// Octets before the number that a key ends in, and octets of that.
struct Shape {
    prefix: usize,
    number: usize,
}

fn shape(family: Family, key: &[u8]) -> Option<Shape> {
    let (prefix, number) = match family {
        Family::Log | Family::Blob => (4, 8),
        Family::Meta if key.first() == Some(&META_SCRUBBED) => return None,
        Family::Meta => (1, 4),
        Family::State => match Kind::from_byte(*key.get(4)?)? {
            Kind::Account | Kind::Body | Kind::Digest | Kind::Garbage => (5, 8),
            Kind::Mailbox | Kind::Remains => (13, 8),
            Kind::Message | Kind::Page => (21, 4),
            Kind::Change => (21, 8),
            Kind::Applied
            | Kind::Name
            | Kind::Subscription
            | Kind::Upload
            | Kind::UploadTime
            | Kind::Fingerprint
            | Kind::FingerprintTime
            | Kind::Table
            | Kind::Request
            | Kind::RequestTime => return None,
        },
    };
    Some(Shape { prefix, number })
}

fn padded(key: &[u8], len: usize) -> Vec<u8> {
    let mut key = key.to_vec();
    key.resize(len, 0);
    key
}

/// The least number whose key is not less than this place.
fn bound(place: &[u8], shape: &Shape) -> Option<u128> {
    let len = shape.prefix + shape.number;
    let whole = padded(place, len);
    let number = match shape.number {
        4 => u128::from(u32_at(&whole, shape.prefix)?),
        _ => u128::from(u64_at(&whole, shape.prefix)?),
    };
    Some(number + u128::from(place.len() > len))
}

#[cfg(test)]
mod tests {
    use types::{AccountId, MailboxId};

    use super::{KEYS_MAX, keys_between};
    use crate::keys::{GroupId, Key, Kind, META_VOTE, log_key, meta_key};
    use crate::store::Family;

    fn behind(mut key: Vec<u8>) -> Vec<u8> {
        key.push(0);
        key
    }

    #[test]
    fn every_key_between_two_places_is_counted() {
        let log = |index| log_key(GroupId(7), index);
        let between = |from: &[u8], to: &[u8]| keys_between(Family::Log, from, to);
        assert_eq!(between(&log(3), &log(6)), Some(vec![log(3), log(4), log(5)]));
        assert_eq!(between(&behind(log(3)), &behind(log(5))), Some(vec![log(4), log(5)]));
        assert_eq!(between(&log(6), &log(6)), Some(vec![]));
        assert_eq!(between(&log(0), &log(KEYS_MAX)).map(|keys| keys.len() as u64), Some(KEYS_MAX));
        assert_eq!(between(&log(0), &log(KEYS_MAX + 1)), None, "too many");
        assert_eq!(between(&log(3), &log_key(GroupId(8), 1)), None, "how many another group has is not known");
        assert_eq!(between(&7u32.to_be_bytes(), &log(2)), Some(vec![log(0), log(1)]));
        assert_eq!(between(&[], &log(2)), None);
        let end = [u8::MAX; 64];
        assert_eq!(between(&log(u64::MAX - 1), &end), None);
        let vote = |group| meta_key(META_VOTE, GroupId(group));
        assert_eq!(keys_between(Family::Meta, &vote(7), &vote(9)), Some(vec![vote(7), vote(8)]));
    }

    #[test]
    fn kinds_of_state_that_end_in_no_number_are_not_counted() {
        let key = |kind| Key::state(3, kind).mailbox(AccountId(1), MailboxId(2));
        let message = |uid| key(Kind::Message).u32(uid).done();
        let found = keys_between(Family::State, &behind(message(4)), &message(7));
        assert_eq!(found, Some(vec![message(5), message(6)]));
        let mailbox = |id| Key::state(3, Kind::Mailbox).mailbox(AccountId(1), MailboxId(id)).done();
        assert_eq!(keys_between(Family::State, &mailbox(4), &mailbox(5)), Some(vec![mailbox(4)]));
        let name = |text: &[u8]| Key::state(3, Kind::Name).account(AccountId(1)).bytes(text).done();
        assert_eq!(keys_between(Family::State, &name(b"a"), &name(b"c")), None);
        assert_eq!(keys_between(Family::State, &message(4), &key(Kind::Page).u32(0).done()), None);
    }
}
