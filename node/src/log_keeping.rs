//! How much of each group's log stays. openraft drops what lies behind a snapshot, and more than is kept before it; a snapshot
//! is noted here when that may be dropped. While a replica is copied to more stays: it goes on from where its snapshot stood,
//! and without the entries since then it would have to begin anew, as often as not for ever.
//!
//! A full disk keeps what others need next, and nothing in store.

use std::time::Duration;

use storage::GroupId;
use tokio::sync::watch;
use types::ShardId;

use crate::Node;
use crate::group::Group;

/// Between looks at the groups' logs.
const LOOK: Duration = Duration::from_millis(250);
/// Of the entries that are kept anyway, so many times as many stay for a member that is behind. One that is further behind
/// gets another snapshot.
const KEPT_FOR_COPY: u64 = 50;

/// A group's log, in indexes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogExtent {
    pub applied: u64,
    /// Of the last snapshot that was noted.
    pub snapshot: u64,
    /// Up to here nothing is left.
    pub purged: u64,
    /// On a leader: what the member that is furthest behind has, of those that answer.
    pub last_of_all: Option<u64>,
}

pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    let kept = node.settings().log_entries_kept;
    loop {
        for group in node.groups().all() {
            let extent = group.log_extent();
            let is_full = is_full(&node, &group);
            // One whose disk stalls holds up no other.
            if let Some(index) = extent.purge_for_room(kept).filter(|_| is_full) {
                drop(tokio::time::timeout(LOOK, group.purge_to(index)).await);
            }
            if extent.is_purge_due(kept, is_full) {
                drop(tokio::time::timeout(LOOK, group.purge()).await);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

fn is_full(node: &Node, group: &Group) -> bool {
    match group.id {
        GroupId::DIRECTORY => node.groups().volumes.list().first().is_some_and(|volume| volume.space.is_short()),
        GroupId(shard) => node.groups().shard(ShardId(shard)).is_ok_and(|shard| shard.volume.space.is_short()),
    }
}

impl LogExtent {
    /// Whether a snapshot is to be noted now, behind which all but `kept` entries go; on a full disk, all that
    /// [`LogExtent::purge_for_room`] tells.
    fn is_purge_due(&self, kept: u64, is_full: bool) -> bool {
        if is_full {
            return self.dispensable(kept) > self.snapshot;
        }
        // openraft keeps more than is asked for between two snapshots: a quarter more at most.
        if self.applied.saturating_sub(self.snapshot) < (kept / 4).max(1) {
            return false;
        }
        let purged_then = self.applied.saturating_sub(kept);
        let is_needed = self.last_of_all.is_some_and(|last| last < purged_then);
        let is_long = self.applied.saturating_sub(self.purged) > kept.saturating_mul(KEPT_FOR_COPY);
        !is_needed || is_long
    }

    /// On a full disk: up to where the entries are to go now, if any are.
    fn purge_for_room(&self, kept: u64) -> Option<u64> {
        Some(self.dispensable(kept).min(self.snapshot)).filter(|index| *index > self.purged)
    }

    /// Up to where nobody needs them: the members that answer have them. One that lacks more than is kept anyway gets a snapshot.
    fn dispensable(&self, kept: u64) -> u64 {
        let needed = self.last_of_all.unwrap_or(self.applied);
        needed.max(self.applied.saturating_sub(kept)).min(self.applied)
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT_FOR_COPY, LogExtent};

    const KEPT: u64 = 100;

    fn log(applied: u64, snapshot: u64, purged: u64, last_of_all: Option<u64>) -> LogExtent {
        LogExtent { applied, snapshot, purged, last_of_all }
    }

    #[test]
    fn a_log_is_shortened_four_times_in_as_many_entries_as_are_kept() {
        assert!(!log(1_024, 1_000, 900, None).is_purge_due(KEPT, false));
        assert!(log(1_025, 1_000, 900, None).is_purge_due(KEPT, false));
        // Nothing is kept, and nothing new is there.
        assert!(!log(1_000, 1_000, 1_000, None).is_purge_due(0, false));
        assert!(log(1_001, 1_000, 1_000, None).is_purge_due(0, false));
    }

    #[test]
    fn what_a_replica_that_is_copied_to_needs_next_stays_up_to_a_bound() {
        // All have what would go.
        assert!(log(2_000, 1_000, 900, Some(1_900)).is_purge_due(KEPT, false));
        // One has less, or nothing yet.
        for last in [1_899, 1_000, 0] {
            assert!(!log(2_000, 1_000, 900, Some(last)).is_purge_due(KEPT, false), "{last}");
        }
        let longest = 900 + KEPT * KEPT_FOR_COPY;
        assert!(!log(longest, 1_000, 900, Some(0)).is_purge_due(KEPT, false));
        assert!(log(longest + 1, 1_000, 900, Some(0)).is_purge_due(KEPT, false));
    }

    #[test]
    fn a_full_disk_keeps_what_those_that_answer_lack_and_no_more() {
        // All of it goes, step by step: what a snapshot was noted behind, and a snapshot behind the rest.
        let full = log(2_000, 1_000, 900, None);
        assert_eq!((full.purge_for_room(KEPT), full.is_purge_due(KEPT, true)), (Some(1_000), true));
        assert!(log(1_001, 1_000, 900, None).is_purge_due(KEPT, true), "one entry is enough");
        let noted = log(2_000, 2_000, 1_000, None);
        assert_eq!((noted.purge_for_room(KEPT), noted.is_purge_due(KEPT, true)), (Some(2_000), false));
        let empty = log(2_000, 2_000, 2_000, None);
        assert_eq!((empty.purge_for_room(KEPT), empty.is_purge_due(KEPT, true)), (None, false));
        // One has all but some, and gets these from the log.
        let needed = log(2_000, 2_000, 900, Some(1_950));
        assert_eq!(needed.purge_for_room(KEPT), Some(1_950));
        assert!(!log(2_000, 1_950, 900, Some(1_950)).is_purge_due(KEPT, true));
        // One that lacks more than is kept with room enough gets a snapshot.
        for last in [0, 1_000, 1_899] {
            assert_eq!(log(2_000, 2_000, 900, Some(last)).purge_for_room(KEPT), Some(1_900), "{last}");
        }
        // It has entries that are not applied here yet.
        assert_eq!(log(2_000, 2_000, 900, Some(2_100)).purge_for_room(KEPT), Some(2_000));
        // With few entries nothing is kept for those that are further behind.
        assert_eq!(log(50, 50, 0, Some(0)).purge_for_room(KEPT), None);
        assert_eq!(log(50, 50, 0, Some(0)).purge_for_room(0), Some(50));
    }
}
