//! Records as they lie on the disk: a version byte, then protobuf. An undecodable record is an error that names its
//! key. Records never reach the wire.

use bytes::Bytes;
use prost::Message;

use crate::error::StorageError;
use crate::keys::printable;
use crate::store::Family;

pub(crate) const VERSION: u8 = 1;

pub(crate) fn encode(record: &impl Message) -> Bytes {
    let mut bytes = Vec::with_capacity(record.encoded_len() + 1);
    bytes.push(VERSION);
    record.encode_raw(&mut bytes);
    bytes.into()
}

pub(crate) fn decode<R: Message + Default>(family: Family, key: &[u8], value: &[u8]) -> Result<R, StorageError> {
    R::decode(payload(family, key, value)?).map_err(|error| StorageError::corrupt(printable(family, key), error))
}

/// A record that is nothing but bytes.
pub(crate) fn encode_bytes(payload: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(payload.len() + 1);
    bytes.push(VERSION);
    bytes.extend_from_slice(payload);
    bytes.into()
}

/// What follows the version byte.
pub(crate) fn payload<'a>(family: Family, key: &[u8], value: &'a [u8]) -> Result<&'a [u8], StorageError> {
    match value.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some((version, _)) => {
            Err(StorageError::corrupt(printable(family, key), format!("unknown record version {version}")))
        }
        None => Err(StorageError::corrupt(printable(family, key), "empty record")),
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AccountRecord {
    /// Invariant: greater than every mailbox id ever given out in this account.
    #[prost(uint64, tag = "1")]
    pub mailbox_next: u64,
    /// Invariant: not less than any UIDVALIDITY ever given out in this account.
    #[prost(uint32, tag = "2")]
    pub uid_validity_last: u32,
    #[prost(uint32, tag = "3")]
    pub mailboxes: u32,
    #[prost(uint32, tag = "4")]
    pub subscriptions: u32,
    #[prost(uint64, tag = "5")]
    pub messages: u64,
    #[prost(uint64, tag = "6")]
    pub bytes: u64,
    /// How the account stands between two shards, as `moving::place` reads it.
    #[prost(uint32, tag = "7")]
    pub place: u32,
    /// The last move that this shard has had a part in. Invariant: never falls; nothing of an earlier one is done any more.
    #[prost(uint64, tag = "8")]
    pub move_id: u64,
    /// The move by which the account came here; 0 where it was made here. What is remembered of an earlier stay is void.
    #[prost(uint64, tag = "9")]
    pub arrived_by: u64,
    /// While the account comes: who brings it.
    #[prost(uint64, tag = "10")]
    pub bringer: u64,
    /// A modseq is a log index and this: so it does not fall when the account comes to a group with a shorter log.
    #[prost(uint64, tag = "11")]
    pub mod_seq_base: u64,
    /// Of an account that is frozen, or that has come whole: no modseq of it is greater.
    #[prost(uint64, tag = "12")]
    pub mod_seq_last: u64,
    /// Of an account that is leaving: nothing is left before this message of this mailbox.
    #[prost(uint64, tag = "13")]
    pub left_mailbox: u64,
    #[prost(uint32, tag = "14")]
    pub left_uid: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MailboxRecord {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    pub uid_validity: u32,
    /// Invariant: greater than every UID ever given out in this mailbox (RFC 9051 §2.3.1.1). 2^32 when all are used.
    #[prost(uint64, tag = "3")]
    pub uid_next: u64,
    #[prost(uint64, tag = "4")]
    pub mod_seq: u64,
    #[prost(uint32, tag = "5")]
    pub messages: u32,
    #[prost(uint32, tag = "6")]
    pub unseen: u32,
    #[prost(uint32, tag = "7")]
    pub deleted: u32,
    #[prost(uint64, tag = "8")]
    pub bytes: u64,
    /// A keyword's place is its bit in the messages.
    #[prost(string, repeated, tag = "9")]
    pub keywords: Vec<String>,
    /// See `special_use_number`.
    #[prost(uint32, tag = "10")]
    pub special_use: u32,
    /// Records in the change log.
    #[prost(uint32, tag = "11")]
    pub changes: u32,
    /// The change log is complete for whoever has seen this modseq.
    #[prost(uint64, tag = "12")]
    pub changes_after: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MessageRecord {
    #[prost(uint32, tag = "1")]
    pub system: u32,
    #[prost(uint64, tag = "2")]
    pub keywords_low: u64,
    #[prost(uint64, tag = "3")]
    pub keywords_high: u64,
    #[prost(uint64, tag = "4")]
    pub mod_seq: u64,
    #[prost(sint64, tag = "5")]
    pub internal_unix_s: i64,
    #[prost(sint32, tag = "6")]
    pub internal_offset_min: i32,
    #[prost(sint64, tag = "7")]
    pub save_unix_s: i64,
    #[prost(uint64, tag = "8")]
    pub size: u64,
    #[prost(uint64, tag = "9")]
    pub body: u64,
}

impl MessageRecord {
    pub(crate) fn keywords(&self) -> u128 {
        u128::from(self.keywords_high) << 64 | u128::from(self.keywords_low)
    }

    pub(crate) fn set_keywords(&mut self, bits: u128) {
        self.keywords_low = bits as u64;
        self.keywords_high = (bits >> 64) as u64;
    }
}

/// What changed in a mailbox at one modseq: sets of UIDs as flat pairs of first and last.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ChangeRecord {
    #[prost(uint32, repeated, tag = "1")]
    pub changed: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    pub vanished: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct ChunkRecord {
    /// The log index, which is the blob's key.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    #[prost(uint64, tag = "2")]
    pub len: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct BodyRecord {
    /// Messages that refer to it. Never 0 on the disk.
    #[prost(uint64, tag = "1")]
    pub references: u64,
    #[prost(uint64, tag = "2")]
    pub size: u64,
    #[prost(message, repeated, tag = "3")]
    pub chunks: Vec<ChunkRecord>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct UploadRecord {
    /// Of its first chunk.
    #[prost(uint64, tag = "1")]
    pub unix_ms: u64,
    #[prost(message, repeated, tag = "2")]
    pub chunks: Vec<ChunkRecord>,
}

/// Where a delivery went.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FingerprintRecord {
    #[prost(uint64, tag = "1")]
    pub mailbox: u64,
    #[prost(uint32, tag = "2")]
    pub uid: u32,
    #[prost(uint32, tag = "3")]
    pub uid_validity: u32,
    #[prost(uint64, tag = "4")]
    pub unix_ms: u64,
    /// The account's `arrived_by` of then.
    #[prost(uint64, tag = "5")]
    pub stay: u64,
}

#[cfg(test)]
mod tests {
    use super::{AccountRecord, VERSION, decode, encode};
    use crate::error::StorageError;
    use crate::store::Family;

    #[test]
    fn a_record_that_cannot_be_read_is_an_error_with_its_key() {
        let record = AccountRecord { mailbox_next: 7, ..Default::default() };
        assert_eq!(decode::<AccountRecord>(Family::State, b"k", &encode(&record)).unwrap(), record);
        for bad in [&[][..], &[VERSION + 1, 8, 7], &[VERSION, 0xff], &[VERSION, 0x08]] {
            let error = decode::<AccountRecord>(Family::State, b"k", bad).unwrap_err();
            assert!(matches!(error, StorageError::Corrupt { key, .. } if key == "state/6b"), "{bad:?}");
        }
    }
}
