//! Putting right one record that a half holds otherwise than it should, though RocksDB reads it.

use std::borrow::Cow;
use std::sync::Arc;

use super::check::holds;
use super::verdict::{Judgement, Reading, judge};
use crate::error::StorageError;
use crate::half::{Half, Progress};
use crate::log::{BodyCheck, check_entry};
use crate::mirror::{Mirror, hand_out};
use crate::patience::patiently;
use crate::store::{Changes, Family, Store};

/// Writes the good copy of a record to both halves. No other write comes between the look at the copies and that: what
/// a record is by then decides, not what it was when it was found. False where there is nothing to write.
pub(crate) fn rewrite(store: &Store, mirror: &Mirror, family: Family, key: &[u8]) -> Result<bool, StorageError> {
    store.check()?;
    let number = {
        let mut order = mirror.order.lock();
        let [first, second] = &order.halves[..] else { return Ok(false) };
        let halves = [first.clone(), second.clone()];
        let written =
            |half: &Arc<Half>| patiently(mirror.hang_max, |deadline| half.wait_written(order.number, deadline));
        if halves.iter().any(|half| written(half) != Progress::Made) {
            return Ok(false);
        }
        let read = |half: &Half| half.get(None, family, key).map(|value| value.map(|bytes| Cow::Owned(bytes.into())));
        let readings: [Reading<'_>; 2] = [read(&halves[0]), read(&halves[1])];
        let log = || halves.iter().find_map(|half| logged(half.get(None, Family::Log, key), key)).flatten();
        let at = match judge(&readings, |value| holds(family, key, value, log)) {
            Judgement::Damaged { at, .. } | Judgement::Missing { at } => at,
            Judgement::Good | Judgement::Differs | Judgement::Lost { .. } => return Ok(false),
        };
        // A block that cannot be read stays so, whatever is written.
        let (Some(Ok(_)), Some(Ok(Some(good)))) = (readings.get(at), readings.get(1 - at)) else { return Ok(false) };
        let mut changes = Changes::default();
        changes.put(family, key.to_vec(), good.to_vec());
        hand_out(mirror, &mut order, store.batch(&[&changes])?)
    };
    store.await_readable(mirror, number)?;
    Ok(true)
}

/// What a log entry says of its body; `None` where it cannot say.
pub(crate) fn logged(entry: Result<Option<bytes::Bytes>, StorageError>, key: &[u8]) -> Option<Option<BodyCheck>> {
    let value = entry.ok().flatten()?;
    check_entry(key, &value).ok()
}
