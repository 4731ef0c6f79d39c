//! What an operator sees of the halves of a mirror.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::faults::HalfName;
use crate::mirror::{Mirror, Side};
use crate::store::Store;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HalfStatus {
    pub name: HalfName,
    pub directory: PathBuf,
    pub state: HalfState,
    /// Grows each time that the volume goes on without one of its halves.
    pub epoch: u64,
    /// Reads that found damage here, or no answer, and were served by the other half.
    pub damage_found: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HalfState {
    /// It holds all that was acknowledged.
    Current,
    /// As `Current`, but some of it cannot be read: it is rebuilt. Why the last attempt came to nothing, if there was one.
    Damaged { unmade: Option<String> },
    /// It is not written, and never read; and why.
    Stale { reason: String },
    /// It is made anew from the other half.
    /// `records`: about how many there are to copy; 0 while that is not known.
    Resilvering { copied_bytes: u64, copied_records: u64, records: u64 },
}

/// Whoever looks may be one that must not wait.
const LOOK_MAX: Duration = Duration::from_millis(20);

impl Store {
    pub(crate) fn halves(&self) -> Vec<HalfStatus> {
        self.mirror.as_ref().map_or_else(Vec::new, Mirror::status)
    }
}

impl Mirror {
    /// As it was a moment ago where something is being recorded on a disk that takes its time.
    fn status(&self) -> Vec<HalfStatus> {
        let Some(sides) = self.sides.try_lock_for(LOOK_MAX) else { return self.shown.lock().clone() };
        if let Some(status) = self.status_of(&sides) {
            *self.shown.lock() = status;
        }
        self.shown.lock().clone()
    }

    fn status_of(&self, sides: &[Side; 2]) -> Option<Vec<HalfStatus>> {
        let order = self.order.try_lock_for(LOOK_MAX)?;
        let halves = order.halves.clone();
        drop(order);
        let resilvering = *self.resilvering.lock();
        let status = sides
            .iter()
            .map(|side| {
                let half = halves.iter().find(|half| half.name == side.record.name);
                let state = match (half, &side.lost) {
                    _ if resilvering == Some(side.record.name) || (side.rebuild && side.lost.is_some()) => {
                        HalfState::Resilvering {
                            copied_bytes: self.copied_bytes.load(Ordering::Relaxed),
                            copied_records: self.copied_records.load(Ordering::Relaxed),
                            records: self.records.load(Ordering::Relaxed),
                        }
                    }
                    (Some(half), _) if half.damaged.load(Ordering::Relaxed) => {
                        HalfState::Damaged { unmade: side.unmade.clone() }
                    }
                    (Some(_), None) => HalfState::Current,
                    (_, reason) => HalfState::Stale { reason: reason.clone().unwrap_or_default() },
                };
                HalfStatus {
                    name: side.record.name,
                    directory: side.directory.clone(),
                    state,
                    epoch: side.record.epoch,
                    damage_found: half.map_or(0, |half| half.damage_found.load(Ordering::Relaxed)),
                }
            })
            .collect();
        Some(status)
    }
}
