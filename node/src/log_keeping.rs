//! How much of each group's log stays. openraft drops what lies behind a snapshot, as far as it is told here; noting one costs
//! nothing. What a member lacks that answers stays for a while. For one that is copied to everything stays that it needs behind
//! its snapshot, as long as its copy gets on and the disk has ample room: without these entries it would need a snapshot again.
//!
//! A full disk keeps what others need next, and nothing in store.

mod copies;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage::GroupId;
use tokio::sync::watch;
use types::ShardId;

use self::copies::Copies;
pub use self::copies::Member;
use crate::Node;
use crate::group::Group;
use crate::volumes::NodeVolume;

/// Between looks at the groups' logs.
const LOOK: Duration = Duration::from_millis(250);
/// Of the entries that are kept anyway, so many times as many stay for a member that is behind. One that is further behind
/// gets another snapshot.
const KEPT_FOR_MEMBER: u64 = 50;
/// In so many parts goes what is kept anyway, one after the other: each purge is a synced write.
const PURGE_PARTS: u64 = 4;

/// A group's log, in indexes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogExtent {
    pub applied: u64,
    /// Of the last snapshot that was noted.
    pub snapshot: u64,
    /// Up to here nothing is left.
    pub purged: u64,
    /// On a leader: what the member that is furthest behind has, or gets by a snapshot under way, of those that answer.
    pub last_of_all: Option<u64>,
    /// Whoever leads next is to go on with copies to them.
    pub has_learners: bool,
}

/// What is done with a log now.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Shortening {
    /// A snapshot is noted, behind which entries can go.
    notes: bool,
    /// The entries up to here go.
    purges_to: Option<u64>,
}

pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    let kept = node.settings().log_entries_kept;
    let mut copies: HashMap<GroupId, Copies> = HashMap::new();
    loop {
        let groups = node.groups().all();
        copies.retain(|id, _| groups.iter().any(|group| group.id == *id));
        for group in groups {
            let Some(volume) = volume(&node, &group) else { continue };
            let extent = group.log_extent();
            let needed = copies.entry(group.id).or_default().note(&group.members(), extent, kept, Instant::now());
            let shortening = match volume.space.is_short() {
                true => extent.on_full_disk(kept),
                false => extent.usual(kept, needed.filter(|_| volume.space.is_ample())),
            };
            // One whose disk stalls holds up no other.
            if let Some(index) = shortening.purges_to {
                drop(tokio::time::timeout(LOOK, group.purge_to(index)).await);
            }
            if shortening.notes {
                drop(tokio::time::timeout(LOOK, group.note_snapshot()).await);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// Where the group is.
fn volume(node: &Node, group: &Group) -> Option<Arc<NodeVolume>> {
    match group.id {
        GroupId::DIRECTORY => node.groups().volumes.list().first().cloned(),
        GroupId(shard) => node.groups().shard(ShardId(shard)).ok().map(|shard| shard.volume.clone()),
    }
}

impl LogExtent {
    /// `copied_from`: the entries behind this stay for copies.
    fn usual(&self, kept: u64, copied_from: Option<u64>) -> Shortening {
        let longest = self.applied.saturating_sub(kept.saturating_mul(KEPT_FOR_MEMBER));
        // One that follows is not told how far the learners are.
        let unknown = if self.has_learners { self.purged } else { u64::MAX };
        let needed = self.last_of_all.unwrap_or(unknown).max(longest);
        let dispensable = self.applied.saturating_sub(kept).min(needed).min(copied_from.unwrap_or(u64::MAX));
        self.shortened_to(dispensable, (kept / PURGE_PARTS).max(1))
    }

    /// All goes that nobody needs: the members that answer have it. One that lacks more than is kept anyway gets a snapshot.
    fn on_full_disk(&self, kept: u64) -> Shortening {
        let needed = self.last_of_all.unwrap_or(self.applied);
        self.shortened_to(needed.max(self.applied.saturating_sub(kept)).min(self.applied), 1)
    }

    /// At least so many entries go at once.
    fn shortened_to(&self, dispensable: u64, least: u64) -> Shortening {
        let upto = dispensable.min(self.snapshot);
        Shortening {
            notes: dispensable > self.snapshot,
            purges_to: (upto >= self.purged.saturating_add(least)).then_some(upto),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT_FOR_MEMBER, LogExtent, Shortening};

    const KEPT: u64 = 100;

    fn log(applied: u64, snapshot: u64, purged: u64, last_of_all: Option<u64>) -> LogExtent {
        LogExtent { applied, snapshot, purged, last_of_all, has_learners: false }
    }

    fn shortening(notes: bool, purges_to: impl Into<Option<u64>>) -> Shortening {
        Shortening { notes, purges_to: purges_to.into() }
    }

    #[test]
    fn a_log_is_shortened_four_times_in_as_many_entries_as_are_kept() {
        assert_eq!(log(1_024, 1_000, 900, None).usual(KEPT, None), shortening(false, None));
        assert_eq!(log(1_025, 1_000, 900, None).usual(KEPT, None), shortening(false, 925));
        // Nothing goes that no snapshot was noted behind.
        assert_eq!(log(1_125, 1_000, 975, None).usual(KEPT, None), shortening(true, 1_000));
        assert_eq!(log(1_125, 1_000, 1_000, None).usual(KEPT, None), shortening(true, None));
        assert_eq!(log(1_125, 1_125, 1_000, None).usual(KEPT, None), shortening(false, 1_025));
        assert_eq!(log(100, 0, 0, None).usual(KEPT, None), shortening(false, None));
        // Nothing is kept, and nothing new is there.
        assert_eq!(log(1_000, 1_000, 1_000, None).usual(0, None), shortening(false, None));
        assert_eq!(log(1_001, 1_000, 1_000, None).usual(0, None), shortening(true, None));
        assert_eq!(log(1_001, 1_001, 1_000, None).usual(0, None), shortening(false, 1_001));
    }

    #[test]
    fn what_a_member_lacks_that_answers_stays_up_to_a_bound() {
        // All have what would go.
        assert_eq!(log(2_000, 2_000, 900, Some(1_900)).usual(KEPT, None), shortening(false, 1_900));
        // One has less, or nothing yet.
        assert_eq!(log(2_000, 2_000, 900, Some(1_899)).usual(KEPT, None), shortening(false, 1_899));
        for last in [900, 0] {
            assert_eq!(log(2_000, 2_000, 900, Some(last)).usual(KEPT, None), shortening(false, None), "{last}");
        }
        let longest = 900 + KEPT * KEPT_FOR_MEMBER;
        assert_eq!(log(longest + 24, longest, 900, Some(0)).usual(KEPT, None), shortening(false, None));
        assert_eq!(log(longest + 25, longest, 900, Some(0)).usual(KEPT, None), shortening(false, 925));
    }

    #[test]
    fn what_a_replica_that_is_copied_to_needs_next_stays_however_long_it_takes() {
        let later = 1_000 + KEPT * KEPT_FOR_MEMBER * 10;
        for last in [None, Some(later), Some(1_000)] {
            let extent = log(later, later, 1_000, last);
            assert_eq!(extent.usual(KEPT, Some(1_000)), shortening(false, None), "{last:?}");
            // What came before goes.
            assert_eq!(extent.usual(KEPT, Some(1_025)), shortening(false, 1_025), "{last:?}");
            // The disk lacks the room, or it does not get on any more.
            assert!(extent.usual(KEPT, None).purges_to > Some(1_025), "{last:?}");
            assert!(extent.on_full_disk(KEPT).purges_to > Some(1_025), "{last:?}");
        }
        // It is kept no less than without copies.
        assert_eq!(log(2_000, 2_000, 900, None).usual(KEPT, Some(1_950)), shortening(false, 1_900));
    }

    #[test]
    fn one_that_follows_keeps_what_learners_may_need_of_it_up_to_a_bound() {
        let following = LogExtent { has_learners: true, ..log(2_000, 2_000, 900, None) };
        assert_eq!(following.usual(KEPT, None), shortening(false, None));
        let long = 900 + KEPT * KEPT_FOR_MEMBER + 25;
        let following = LogExtent { has_learners: true, ..log(long, long, 900, None) };
        assert_eq!(following.usual(KEPT, None), shortening(false, 925));
        assert_eq!(following.on_full_disk(KEPT), shortening(false, long));
    }

    #[test]
    fn a_full_disk_keeps_what_those_that_answer_lack_and_no_more() {
        // All of it goes, step by step: what a snapshot was noted behind, and a snapshot behind the rest.
        assert_eq!(log(2_000, 1_000, 900, None).on_full_disk(KEPT), shortening(true, 1_000));
        assert_eq!(log(1_001, 1_000, 999, None).on_full_disk(KEPT), shortening(true, 1_000), "one entry is enough");
        assert_eq!(log(2_000, 2_000, 1_000, None).on_full_disk(KEPT), shortening(false, 2_000));
        assert_eq!(log(2_000, 2_000, 2_000, None).on_full_disk(KEPT), shortening(false, None));
        // One has all but some, and gets these from the log.
        assert_eq!(log(2_000, 2_000, 900, Some(1_950)).on_full_disk(KEPT), shortening(false, 1_950));
        assert_eq!(log(2_000, 1_950, 900, Some(1_950)).on_full_disk(KEPT), shortening(false, 1_950));
        // One that lacks more than is kept with room enough gets a snapshot.
        for last in [0, 1_000, 1_899] {
            assert_eq!(log(2_000, 2_000, 900, Some(last)).on_full_disk(KEPT), shortening(false, 1_900), "{last}");
        }
        // It has entries that are not applied here yet.
        assert_eq!(log(2_000, 2_000, 900, Some(2_100)).on_full_disk(KEPT), shortening(false, 2_000));
        // With few entries nothing is kept for those that are further behind.
        assert_eq!(log(50, 50, 0, Some(0)).on_full_disk(KEPT), shortening(false, None));
        assert_eq!(log(50, 50, 0, Some(0)).on_full_disk(0), shortening(false, 50));
    }
}
