//! How much room a volume's disks have, and what is done about a half that has none.

use std::io;
use std::path::Path;

use storage::{HalfState, HalfStatus, Volume, VolumeOptions, has_room_for};
use types::{MailError, MailResult};

use super::NodeVolume;
use crate::space::InUse;

/// The share of the reserve that memtables may have, which a start may write out at once, and the one of write-ahead logs.
const MEMTABLES_DIVISOR: u64 = 8;
const LOGS_DIVISOR: u64 = 4;
/// Less of either would have a database flush all the time.
const BUFFERED_BYTES_MIN: u64 = 4 << 20;

/// Bounds what the database of a full disk writes by itself by a part of its reserve: otherwise it would fill the disk up,
/// started again and again, with mail that is there already.
pub(super) fn within_reserve(options: &mut VolumeOptions, reserve_octets: u64) {
    let share = |divisor: u64| (reserve_octets / divisor).max(BUFFERED_BYTES_MIN);
    let memtables = usize::try_from(share(MEMTABLES_DIVISOR)).unwrap_or(usize::MAX);
    options.memtable_bytes = options.memtable_bytes.min(memtables);
    options.wal_bytes_max = options.wal_bytes_max.min(share(LOGS_DIVISOR));
}

impl NodeVolume {
    /// Looks how much room there is. A half whose disk is full is given up where mail can do without it, before any mail is
    /// refused. Blocks.
    pub fn measure(&self) -> io::Result<()> {
        let halves = self.halves_in_use();
        let disks = self.disks_in_use(&halves);
        let full = self.space.measure(&disks)?;
        if let Some(volume) = self.volume() {
            volume.rest_rewrites(self.space.spares_room());
        }
        let Some(full) = full else { return Ok(()) };
        let full = halves.get(full).map(|half| half.name).zip(self.volume());
        let reason = format!("its disk was full: {} octets were left", self.space.free_octets());
        let dropped = full.map_or(Ok(false), |(half, volume)| volume.drop_full(half, &reason));
        if let Err(error) = &dropped {
            tracing::error!(volume = self.number, %error, "a full half cannot be given up");
        }
        if !matches!(dropped, Ok(true)) {
            // The other one cannot go on by itself: not now, or never.
            self.space.keep_all();
            return Ok(());
        }
        let halves = self.halves_in_use();
        self.space.measure(&self.disks_in_use(&halves)).map(drop)
    }

    /// Those that acknowledged mail is on: not those that are stale, or not filled yet.
    fn halves_in_use(&self) -> Vec<HalfStatus> {
        let mut halves = self.volume().map(|volume| volume.halves()).unwrap_or_default();
        halves.retain(|half| matches!(half.state, HalfState::Current | HalfState::Damaged { .. }));
        halves
    }

    /// Where these halves are; all of its disks where there are none.
    fn disks_in_use(&self, halves: &[HalfStatus]) -> Vec<InUse> {
        if halves.is_empty() {
            return self.disks.iter().map(|disk| InUse { disk: disk.clone(), is_whole: false }).collect();
        }
        let in_use = |half: &HalfStatus| InUse {
            disk: half.directory.parent().unwrap_or(&half.directory).to_owned(),
            is_whole: half.state == HalfState::Current,
        };
        halves.iter().map(in_use).collect()
    }

    /// Refuses a disk that what the half in use holds does not fit on, beside what is there.
    pub(super) fn check_room(&self, volume: &Volume, disk: &Path) -> MailResult<()> {
        let halves = volume.halves();
        let source = halves.iter().find(|half| matches!(half.state, HalfState::Current | HalfState::Damaged { .. }));
        let Some(source) = source else { return Ok(()) };
        // What it held stays until the new half is whole.
        has_room_for(&source.directory, disk).map_err(|error| MailError::CannotDo(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use storage::VolumeOptions;

    use super::within_reserve;

    #[test]
    fn what_a_database_writes_by_itself_stays_far_below_the_reserve() {
        let bounded = |reserve_mib: u64| {
            let mut options = VolumeOptions::new("unused");
            within_reserve(&mut options, reserve_mib << 20);
            (options.memtable_bytes >> 20, options.wal_bytes_max >> 20)
        };
        assert_eq!(bounded(1024), (96, 256), "the usual reserve changes nothing");
        assert_eq!(bounded(64), (8, 16));
        assert_eq!(bounded(0), (4, 4));
        let mut small = VolumeOptions { memtable_bytes: 1, wal_bytes_max: 2, ..VolumeOptions::new("unused") };
        within_reserve(&mut small, u64::MAX);
        assert_eq!((small.memtable_bytes, small.wal_bytes_max), (1, 2), "nothing is raised");
    }
}
