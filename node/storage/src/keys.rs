//! The keys of every column family, big-endian so that they sort as their numbers do.
//!
//! ```text
//! log    group be32 | index be64                      entry without its body
//! blob   group be32 | index be64                      a body, or a chunk of one
//! meta   name byte  | group be32                      vote, purge mark, space, unfinished install, home, begun, starts
//! meta   name byte                                    what the last scrub found
//! state  space be32 | kind u8 | ...                   see `Kind`
//! ```

use std::fmt::Write;

use types::{AccountId, MailboxId};

use crate::store::Family;

/// A Raft group's number: a shard's, or the directory's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The directory's group.
    pub const DIRECTORY: GroupId = GroupId(u32::MAX);
}

pub(crate) const META_VOTE: u8 = b'v';
pub(crate) const META_PURGED: u8 = b'p';
pub(crate) const META_SPACE: u8 = b's';
pub(crate) const META_INSTALL: u8 = b'i';
/// The entry before which a replica takes part in no election.
pub(crate) const META_BEGUN: u8 = b'b';
/// How often the node had started when the volume was last open.
pub(crate) const META_STARTS: u8 = b'n';
/// The same of the node's other volumes, by their ids: kept in its first volume.
pub(crate) const META_VOLUME_STARTS: u8 = b'o';
/// Which volume a shard's replica is on: kept in the node's first volume, for all of them.
pub(crate) const META_HOME: u8 = b'h';

/// When the volume was last scrubbed: no group's.
pub(crate) const META_SCRUBBED: u8 = b'r';

/// Kinds of state records. The numbers are the disk format and the order of an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The marker of the last applied command. Not exported with the rest.
    Applied = 1,
    /// account
    Account = 2,
    /// account | name → mailbox id
    Name = 3,
    /// account | mailbox
    Mailbox = 4,
    /// account | name
    Subscription = 5,
    /// account | mailbox | uid be32
    Message = 6,
    /// account | mailbox | page be32
    Page = 7,
    /// account | mailbox | modseq
    Change = 8,
    /// body id
    Body = 9,
    /// body id
    Digest = 10,
    /// upload be128
    Upload = 11,
    /// time | upload
    UploadTime = 12,
    /// fingerprint | account
    Fingerprint = 13,
    /// time | fingerprint | account
    FingerprintTime = 14,
    /// log index of a blob that nothing refers to. Depends on purges, so it differs between replicas: not exported.
    Garbage = 15,
    /// The directory's plain records.
    Table = 16,
    /// request be128
    Request = 17,
    /// time | request
    RequestTime = 18,
    /// account | mailbox that is no more
    Remains = 19,
}

impl Kind {
    const NAMES: [(Kind, &'static str); 19] = [
        (Kind::Applied, "applied"),
        (Kind::Account, "account"),
        (Kind::Name, "name"),
        (Kind::Mailbox, "mailbox"),
        (Kind::Subscription, "subscription"),
        (Kind::Message, "message"),
        (Kind::Page, "page"),
        (Kind::Change, "change"),
        (Kind::Body, "body"),
        (Kind::Digest, "digest"),
        (Kind::Upload, "upload"),
        (Kind::UploadTime, "upload-time"),
        (Kind::Fingerprint, "fingerprint"),
        (Kind::FingerprintTime, "fingerprint-time"),
        (Kind::Garbage, "garbage"),
        (Kind::Table, "table"),
        (Kind::Request, "request"),
        (Kind::RequestTime, "request-time"),
        (Kind::Remains, "remains"),
    ];

    pub(crate) fn from_byte(byte: u8) -> Option<Kind> {
        Self::NAMES.iter().find(|(kind, _)| *kind as u8 == byte).map(|(kind, _)| *kind)
    }

    fn name(byte: u8) -> &'static str {
        Self::NAMES.iter().find(|(kind, _)| *kind as u8 == byte).map_or("unknown", |(_, name)| *name)
    }
}

pub(crate) fn log_key(group: GroupId, index: u64) -> Vec<u8> {
    Key::group(group).u64(index).done()
}

pub(crate) fn meta_key(name: u8, group: GroupId) -> Vec<u8> {
    let mut key = vec![name];
    key.extend_from_slice(&group.0.to_be_bytes());
    key
}

/// Builds a key piece by piece.
#[derive(Clone)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    fn group(group: GroupId) -> Key {
        Key(group.0.to_be_bytes().to_vec())
    }

    pub(crate) fn state(space: u32, kind: Kind) -> Key {
        let mut key = Vec::with_capacity(48);
        key.extend_from_slice(&space.to_be_bytes());
        key.push(kind as u8);
        Key(key)
    }

    pub(crate) fn account(self, account: AccountId) -> Key {
        self.u64(account.0)
    }

    pub(crate) fn mailbox(self, account: AccountId, mailbox: MailboxId) -> Key {
        self.u64(account.0).u64(mailbox.0)
    }

    pub(crate) fn u32(self, number: u32) -> Key {
        self.bytes(&number.to_be_bytes())
    }

    pub(crate) fn u64(self, number: u64) -> Key {
        self.bytes(&number.to_be_bytes())
    }

    pub(crate) fn u128(self, number: u128) -> Key {
        self.bytes(&number.to_be_bytes())
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Key {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// The range that holds every key with this prefix. The prefix must have a byte below 255, as all of ours have.
pub(crate) fn prefix_range(prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut end = prefix.to_vec();
    while end.last() == Some(&u8::MAX) {
        end.pop();
    }
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (prefix.to_vec(), end)
}

/// All of a space.
pub(crate) fn space_range(space: u32) -> (Vec<u8>, Vec<u8>) {
    prefix_range(&space.to_be_bytes())
}

/// The big-endian number at an offset of a key.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

pub(crate) fn u128_at(bytes: &[u8], at: usize) -> Option<u128> {
    Some(u128::from_be_bytes(bytes.get(at..at.checked_add(16)?)?.try_into().ok()?))
}

/// A key for people: `state/3/message/00..`, `log/7/42`.
pub(crate) fn printable(family: Family, key: &[u8]) -> String {
    let mut text = format!("{}/", family.name());
    match (family, u32_at(key, 0), u64_at(key, 4)) {
        (Family::Log | Family::Blob, Some(group), Some(index)) if key.len() == 12 => {
            let _ = write!(text, "{group}/{index}");
        }
        (Family::State, Some(space), _) if key.len() > 4 => {
            let _ = write!(text, "{space}/{}/", Kind::name(key.get(4).copied().unwrap_or(0)));
            push_hex(&mut text, key.get(5..).unwrap_or_default());
        }
        _ => push_hex(&mut text, key),
    }
    text
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::{GroupId, Key, Kind, log_key, prefix_range, printable};
    use crate::store::Family;

    #[test]
    fn keys_are_printed_with_their_parts() {
        assert_eq!(printable(Family::Log, &log_key(GroupId(7), 42)), "log/7/42");
        let key = Key::state(3, Kind::Page).u32(1).done();
        assert_eq!(printable(Family::State, &key), "state/3/page/00000001");
        assert_eq!(printable(Family::State, b"x"), "state/78");
    }

    #[test]
    fn a_prefix_range_ends_after_the_last_key_with_the_prefix() {
        assert_eq!(prefix_range(&[1, 255, 255]), (vec![1, 255, 255], vec![2]));
        assert_eq!(prefix_range(&[0, 4]), (vec![0, 4], vec![0, 5]));
    }
}
