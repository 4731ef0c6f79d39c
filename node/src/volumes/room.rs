//! How much room a volume's disks have, and what is done about a half that has none.

use std::io;
use std::path::Path;

use storage::{HalfState, HalfStatus, Volume};
use types::{MailError, MailResult};

use super::NodeVolume;
use crate::space::{self, InUse};

impl NodeVolume {
    /// Looks how much room there is. A half whose disk is full is given up where mail can do without it, before any mail is
    /// refused. Blocks.
    pub fn measure(&self) -> io::Result<()> {
        let halves = self.halves_in_use();
        let disks = self.disks_in_use(&halves);
        let Some(full) = self.space.measure(&disks)? else { return Ok(()) };
        let full = halves.get(full).map(|half| half.name).zip(self.volume());
        let reason = format!("its disk is full: {} octets are left", self.space.free_octets());
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
        halves.retain(|half| matches!(half.state, HalfState::Current | HalfState::Damaged));
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
        let source = halves.iter().find(|half| matches!(half.state, HalfState::Current | HalfState::Damaged));
        let Some(source) = source else { return Ok(()) };
        let needed = space::used_in(&source.directory);
        let free = space::free_on(disk).map_err(|e| MailError::CannotDo(format!("{}: {e}", disk.display())))?;
        // What it held stays until the new half is whole.
        if free < needed {
            return Err(MailError::CannotDo(format!(
                "{} is too small: {free} octets are free, half {} holds {needed}",
                disk.display(),
                source.name
            )));
        }
        Ok(())
    }
}
