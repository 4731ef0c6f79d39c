//! What an operator sees of a volume.

use proto::wire;
use storage::{GroupId, HalfState, HalfStatus, Lost, Scrubbed};

use super::{NodeVolume, State};

/// Records of a group, lost or unread, that its volume's status names; a scrub names more.
const LOST_KEYS_MAX: usize = 20;

impl NodeVolume {
    pub fn status(&self, replicas: u32) -> wire::VolumeStatus {
        let mut status = wire::VolumeStatus {
            number: self.number,
            disks: self.disks.iter().map(|disk| disk.display().to_string()).collect(),
            free_octets: self.space.free_octets(),
            full: self.space.is_full(),
            replicas,
            ..Default::default()
        };
        match &*self.state.read() {
            State::Down { reason } => {
                status.down_because.clone_from(reason);
                (status.free_octets, status.full) = (0, false);
            }
            State::Open { volume, .. } => {
                let statistics = volume.statistics();
                status.synced_writes = statistics.synced_writes;
                status.halves_dropped = statistics.halves_dropped;
                status.reads_elsewhere = statistics.reads_elsewhere;
                status.resilvers = statistics.resilvers;
                status.halves = volume.halves().iter().map(|half| self.half_status(half)).collect();
                let history = volume.scrub_history();
                status.last_scrub = history.last.map(scrubbed);
                status.lost = history.losses.by_group().into_iter().map(lost).collect();
                let unread = volume.unread().into_iter().map(|(group, unread)| lost((Some(group), unread)));
                status.unread = unread.collect();
            }
        }
        status
    }

    fn half_status(&self, half: &HalfStatus) -> wire::HalfStatus {
        let mut status = wire::HalfStatus {
            name: half.name.to_string(),
            directory: half.directory.display().to_string(),
            damage_found: half.damage_found,
            free_octets: self.free_on(half.directory.parent().unwrap_or(&half.directory)),
            ..Default::default()
        };
        status.state = match &half.state {
            HalfState::Current => "current",
            HalfState::Damaged { unmade } => {
                status.reason = unmade.clone().unwrap_or_default();
                "damaged"
            }
            HalfState::Stale { reason } => {
                status.reason.clone_from(reason);
                "stale"
            }
            HalfState::Resilvering { copied_bytes, copied_records, records } => {
                status.copied_octets = *copied_bytes;
                status.copied_records = *copied_records;
                status.records = *records;
                "resilvering"
            }
        }
        .to_owned();
        status
    }
}

fn scrubbed(last: Scrubbed) -> wire::LastScrub {
    let Scrubbed { unix_s, records, bytes, findings, lost, differing, rewritten } = last;
    wire::LastScrub { unix_s, records, octets: bytes, findings, lost, differing, rewritten }
}

fn lost((group, Lost { records, mut keys }): (Option<GroupId>, Lost)) -> wire::LostRecords {
    keys.truncate(LOST_KEYS_MAX);
    wire::LostRecords { group: group.map(|group| group.0), records, keys }
}
