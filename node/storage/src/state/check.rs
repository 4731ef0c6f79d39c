//! Whether a state record can be read, be it never asked for by anybody.

use super::page::Page;
use super::remains::RemainsRecord;
use super::requests;
use crate::error::StorageError;
use crate::keys::{Kind, printable, u64_at};
use crate::records::{
    AccountRecord, BodyRecord, ChangeRecord, ChunkRecord, FingerprintRecord, MailboxRecord, MessageRecord,
    UploadRecord, decode, payload,
};
use crate::store::Family;

const FAMILY: Family = Family::State;

/// Checks a record by its kind. Answers the pieces of bodies that it refers to.
pub(crate) fn check_record(key: &[u8], value: &[u8]) -> Result<Vec<ChunkRecord>, StorageError> {
    let damaged = |reason: &str| StorageError::corrupt(printable(FAMILY, key), reason);
    let kind = key.get(4).copied().and_then(Kind::from_byte).ok_or_else(|| damaged("unknown kind of record"))?;
    match kind {
        Kind::Account => decode::<AccountRecord>(FAMILY, key, value).map(drop)?,
        Kind::Mailbox => decode::<MailboxRecord>(FAMILY, key, value).map(drop)?,
        Kind::Message => decode::<MessageRecord>(FAMILY, key, value).map(drop)?,
        Kind::Page => Page::decode(key, value).map(drop)?,
        Kind::Change => decode::<ChangeRecord>(FAMILY, key, value).map(drop)?,
        Kind::Body => return Ok(decode::<BodyRecord>(FAMILY, key, value)?.chunks),
        Kind::Upload => return Ok(decode::<UploadRecord>(FAMILY, key, value)?.chunks),
        Kind::Fingerprint => decode::<FingerprintRecord>(FAMILY, key, value).map(drop)?,
        Kind::Request => requests::check(key, value)?,
        Kind::Remains => decode::<RemainsRecord>(FAMILY, key, value).map(drop)?,
        Kind::Name => {
            u64_at(payload(FAMILY, key, value)?, 0).ok_or_else(|| damaged("not a mailbox id"))?;
        }
        Kind::Applied
        | Kind::Subscription
        | Kind::Digest
        | Kind::UploadTime
        | Kind::FingerprintTime
        | Kind::Garbage
        | Kind::Table
        | Kind::RequestTime => payload(FAMILY, key, value).map(drop)?,
    }
    Ok(Vec::new())
}
