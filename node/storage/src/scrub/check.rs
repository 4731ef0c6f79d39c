//! Whether a record is what its own format and checksum say: a block that RocksDB takes for good may hold one that nobody
//! can read.

use prost::Message;

use crate::error::StorageError;
use crate::group::SpaceRecord;
use crate::keys::{
    META_BEGUN, META_HOME, META_INSTALL, META_PURGED, META_SCRUBBED, META_SPACE, META_STARTS, META_VOLUME_STARTS,
    META_VOTE, printable,
};
use crate::log::{BodyCheck, check_entry};
use crate::records::{decode, payload};
use crate::scrub::ScrubbedRecord;
use crate::state::check_record;
use crate::store::Family;
use crate::tail::PurgedRecord;

/// `log` is what the log says of a body: that it has none, where its entry is purged or is without one.
pub(crate) fn holds(
    family: Family,
    key: &[u8],
    value: &[u8],
    log: impl Fn() -> Option<BodyCheck>,
) -> Result<(), StorageError> {
    match family {
        Family::Log => check_entry(key, value).map(drop),
        Family::Blob => match log() {
            Some(check) if check != BodyCheck::of(value) => {
                Err(StorageError::corrupt(printable(family, key), "wrong length or checksum"))
            }
            Some(_) | None => Ok(()),
        },
        Family::State => check_record(key, value).map(drop),
        Family::Meta => meta(key, value),
    }
}

fn meta(key: &[u8], value: &[u8]) -> Result<(), StorageError> {
    fn record<R: Message + Default>(key: &[u8], value: &[u8]) -> Result<(), StorageError> {
        decode::<R>(Family::Meta, key, value).map(drop)
    }
    match key.first() {
        Some(&META_VOTE) => payload(Family::Meta, key, value).map(drop),
        Some(&META_PURGED) => record::<PurgedRecord>(key, value),
        Some(&META_SPACE | &META_INSTALL) => record::<SpaceRecord>(key, value),
        Some(&META_SCRUBBED) => record::<ScrubbedRecord>(key, value),
        Some(&META_HOME | &META_BEGUN) if payload(Family::Meta, key, value)?.len() == 8 => Ok(()),
        Some(&META_STARTS) if payload(Family::Meta, key, value)?.len() == 16 => Ok(()),
        Some(&META_VOLUME_STARTS) if payload(Family::Meta, key, value)?.len().is_multiple_of(24) => Ok(()),
        Some(&META_HOME | &META_BEGUN | &META_STARTS | &META_VOLUME_STARTS) => {
            Err(StorageError::corrupt(printable(Family::Meta, key), "wrong length"))
        }
        _ => Err(StorageError::corrupt(printable(Family::Meta, key), "unknown kind of record")),
    }
}
