//! Forgetting what nobody came back for, a little with each delivery: unsettled fingerprints and abandoned uploads.
//! Deterministic: what is old is judged by the command's stamp. But for what the only replica cannot read: no command is refused
//! for what it would only forget.

use std::sync::atomic::Ordering;

use tracing::error;

use super::edit::{Edit, Fault, Step};
use super::{Hints, ShardState};
use crate::error::StorageError;
use crate::group::{Held, View};
use crate::keys::{Kind, prefix_range, u64_at, u128_at};

/// A sender retries for five days at most (RFC 5321 §4.5.4.1); then a fingerprint serves nobody.
pub(crate) const FINGERPRINT_AGE_MS: u64 = 7 * 24 * 3600 * 1000;
/// A router that has not closed an upload by then is gone.
pub(crate) const UPLOAD_AGE_MS: u64 = 3600 * 1000;
/// More than the one fingerprint that a delivery adds for each recipient, so that they cannot pile up.
const FINGERPRINTS_PER_COMMAND: usize = 32;
const UPLOADS_PER_COMMAND: usize = 4;

/// Keys of a time-ordered kind that are older than `cutoff`, oldest first.
pub(crate) fn older(edit: &Edit<'_>, kind: Kind, from: &mut u64, cutoff: u64, limit: usize) -> Step<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    if *from >= cutoff {
        return Ok(found);
    }
    let range = (edit.key(kind).u64(*from).done(), edit.key(kind).u64(cutoff).done());
    let scanned = edit.view.scan_range(range, |key, _| {
        found.push(key.to_vec());
        Ok(found.len() < limit)
    });
    match scanned {
        Err(error) if edit.alone && error.is_unread() => {
            // What is behind it is left as well, until the group is opened again.
            error!(space = edit.view.space, %error, "what is old cannot be read, and stays");
            *from = cutoff;
            return Ok(found);
        }
        scanned => scanned?,
    }
    // Nothing is older than the last one found, or than the cutoff when all were found: the next scan does not step
    // over the tombstones of this one. Only a hint: it changes what is read, never what is found.
    *from = match found.last().and_then(|key| u64_at(key, 5)) {
        Some(time) if found.len() >= limit => time,
        _ => cutoff,
    };
    Ok(found)
}

/// The greatest time in a time-ordered kind. By halving: how many are remembered does not matter.
fn newest(view: &View<'_>, kind: Kind) -> Result<Option<u64>, StorageError> {
    let from = |time: u64| {
        let mut found = None;
        let range = (view.key(kind).u64(time).done(), prefix_range(&view.key(kind).done()).1);
        view.scan_range(range, |key, _| {
            found = u64_at(key, 5);
            Ok(false)
        })?;
        Ok::<_, StorageError>(found)
    };
    let Some(mut newest) = from(0)? else { return Ok(None) };
    // Invariant: something is of `newest`, nothing of `beyond` or later.
    let mut beyond = u64::MAX;
    while newest + 1 < beyond {
        let middle = newest + (beyond - newest) / 2;
        match from(middle)? {
            Some(found) => newest = found,
            None => beyond = middle,
        }
    }
    Ok(Some(newest))
}

impl ShardState {
    /// The stamp, in milliseconds since 1970, of the newest thing that is remembered for a while: a request, a
    /// fingerprint or an upload. Of the only replica, among those that can be read.
    pub fn newest_remembered(&self) -> Result<Option<i64>, StorageError> {
        self.group.check()?;
        let held = Held::default();
        let view = self.group.view(&held);
        let mut found = None;
        for kind in [Kind::RequestTime, Kind::FingerprintTime, Kind::UploadTime] {
            found = found.max(match newest(&view, kind) {
                Err(error) if error.is_unread() && self.group.alone.load(Ordering::Relaxed) => {
                    error!(%error, "the newest that is remembered cannot be read");
                    None
                }
                newest => newest?,
            });
        }
        Ok(found.map(|found| i64::try_from(found).unwrap_or(i64::MAX)))
    }
}

pub(crate) fn fingerprints(edit: &mut Edit<'_>, hints: &mut Hints) -> Step<()> {
    let cutoff = edit.unix_ms().saturating_sub(FINGERPRINT_AGE_MS);
    let from = &mut hints.fingerprints_from;
    for key in older(edit, Kind::FingerprintTime, from, cutoff, FINGERPRINTS_PER_COMMAND)? {
        let rest = key.get(13..).unwrap_or_default();
        let fingerprint = edit.key(Kind::Fingerprint).bytes(rest).done();
        edit.delete(fingerprint);
        edit.delete(key);
    }
    Ok(())
}

pub(crate) fn uploads(edit: &mut Edit<'_>, hints: &mut Hints) -> Step<()> {
    let cutoff = edit.unix_ms().saturating_sub(UPLOAD_AGE_MS);
    for key in older(edit, Kind::UploadTime, &mut hints.uploads_from, cutoff, UPLOADS_PER_COMMAND)? {
        if let Some(upload) = u128_at(&key, 13) {
            match edit.drop_upload(upload) {
                // Its pieces stay where they are.
                Err(Fault::Storage(error)) if edit.alone && error.is_unread() => {
                    error!(%error, "an old upload cannot be read")
                }
                dropped => dropped?,
            }
        }
        edit.delete(key);
    }
    Ok(())
}
