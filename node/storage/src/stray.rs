//! What a volume holds and nothing on it owns. For tests that moves, installs and crashes leave nothing behind.

use std::collections::BTreeMap;

use crate::error::StorageError;
use crate::group::SpaceRecord;
use crate::keys::{
    GroupId, Kind, META_BEGUN, META_INSTALL, META_PURGED, META_SPACE, META_VOTE, printable, u32_at, u64_at,
};
use crate::records::{BodyRecord, UploadRecord, decode};
use crate::snapshot::IndexSet;
use crate::store::{Family, Store};

/// Behind every key.
const END: [u8; 64] = [0xff; 64];

pub(crate) fn find(store: &Store) -> Result<Vec<String>, StorageError> {
    let all = || (Vec::new(), END.to_vec());
    let mut strays = Vec::new();
    // Of each group, the log indices of the bodies that something refers to.
    let mut owned: BTreeMap<GroupId, IndexSet> = BTreeMap::new();
    let mut spaces: BTreeMap<u32, GroupId> = BTreeMap::new();
    store.scan(Family::Meta, (vec![META_SPACE], vec![META_SPACE + 1]), |key, value| {
        let record: SpaceRecord = decode(Family::Meta, key, value)?;
        if let Some(group) = u32_at(key, 1).map(GroupId) {
            owned.insert(group, IndexSet::default());
            spaces.insert(record.space, group);
        }
        Ok(true)
    })?;
    store.scan(Family::Meta, all(), |key, _| {
        let is_known = u32_at(key, 1).is_some_and(|group| owned.contains_key(&GroupId(group)));
        let is_stray = match key.first().copied() {
            Some(META_INSTALL) => true,
            Some(META_VOTE | META_PURGED | META_BEGUN) => !is_known,
            _ => false,
        };
        if is_stray {
            strays.push(printable(Family::Meta, key));
        }
        Ok(true)
    })?;
    store.scan(Family::Log, all(), |key, _| {
        match u32_at(key, 0).and_then(|group| owned.get_mut(&GroupId(group))).zip(u64_at(key, 4)) {
            Some((bodies, index)) => bodies.insert(index),
            None => strays.push(printable(Family::Log, key)),
        }
        Ok(true)
    })?;
    store.scan(Family::State, all(), |key, value| {
        let group = u32_at(key, 0).and_then(|space| spaces.get(&space));
        let Some(bodies) = group.and_then(|group| owned.get_mut(group)) else {
            strays.push(printable(Family::State, key));
            return Ok(true);
        };
        match key.get(4).copied().and_then(Kind::from_byte) {
            Some(Kind::Body) => {
                let record: BodyRecord = decode(Family::State, key, value)?;
                record.chunks.iter().for_each(|chunk| bodies.insert(chunk.index));
            }
            Some(Kind::Upload) => {
                let record: UploadRecord = decode(Family::State, key, value)?;
                record.chunks.iter().for_each(|chunk| bodies.insert(chunk.index));
            }
            Some(Kind::Garbage) => u64_at(key, 5).into_iter().for_each(|index| bodies.insert(index)),
            _ => {}
        }
        Ok(true)
    })?;
    store.scan(Family::Blob, all(), |key, _| {
        let bodies = u32_at(key, 0).and_then(|group| owned.get(&GroupId(group)));
        if !bodies.zip(u64_at(key, 4)).is_some_and(|(bodies, index)| bodies.contains(index)) {
            strays.push(printable(Family::Blob, key));
        }
        Ok(true)
    })?;
    Ok(strays)
}
