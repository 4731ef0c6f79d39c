//! Which blob files compactions write anew, without what was deleted: a part of them, the oldest.
//!
//! By itself RocksDB does so whenever it compacts, and needs as much room meanwhile as what it keeps of them: a disk that
//! has little is filled up by that. There it rests, and [`crate::Reclaim`] does it in steps that there is room for.

use std::sync::Arc;

use parking_lot::Mutex;
use tracing::warn;

use crate::error::StorageError;
use crate::half::Half;
use crate::options::BLOB_GC_AGE_CUTOFF;
use crate::store::Family;
use crate::volume::Volume;

const AGE_CUTOFF: &str = "blob_garbage_collection_age_cutoff";

/// Of a half.
#[derive(Default)]
pub(crate) struct Rewrites(Mutex<State>);

#[derive(Default)]
struct State {
    rests: bool,
    /// Somebody has the share in hand.
    held: bool,
}

impl State {
    fn share(&self) -> f64 {
        if self.rests { 0.0 } else { BLOB_GC_AGE_CUTOFF }
    }
}

impl Volume {
    /// Whether compactions leave blob files as they are, for want of room. Blocks.
    pub fn rest_rewrites(&self, rests: bool) {
        let store = &self.shared().store;
        let halves = match &store.mirror {
            Some(mirror) => mirror.halves(),
            None => vec![Arc::clone(&store.reader())],
        };
        for half in halves {
            let mut state = half.rewrites.0.lock();
            if state.rests == rests {
                continue;
            }
            state.rests = rests;
            if !state.held {
                change_or_warn(&half, state.share());
            }
        }
    }
}

/// The share in hand; as it was before once this is dropped.
pub(crate) struct Cutoff<'a> {
    half: &'a Half,
}

impl Cutoff<'_> {
    pub(crate) fn set(half: &Half, share: f64) -> Result<Cutoff<'_>, StorageError> {
        half.rewrites.0.lock().held = true;
        let cutoff = Cutoff { half };
        cutoff.change(share)?;
        Ok(cutoff)
    }

    pub(crate) fn change(&self, share: f64) -> Result<(), StorageError> {
        change(self.half, share)
    }
}

impl Drop for Cutoff<'_> {
    fn drop(&mut self) {
        let mut state = self.half.rewrites.0.lock();
        state.held = false;
        change_or_warn(self.half, state.share());
    }
}

fn change(half: &Half, share: f64) -> Result<(), StorageError> {
    let value = share.to_string();
    let changed = half.db.set_options_cf(&half.family(Family::Blob)?, &[(AGE_CUTOFF, &value)]);
    changed.map_err(|error| StorageError::io("setting options", error))
}

fn change_or_warn(half: &Half, share: f64) {
    if let Err(error) = change(half, share) {
        warn!(half = %half.name, %error, share, "which blob files compactions write anew is not changed");
    }
}
