//! What copies to replicas need of a group's log, and for how long that is kept. Pure.
//!
//! ```text
//! snapshot under way ──► installed, behind ──► has what all have
//!          needs all behind the snapshot
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::LogExtent;
use crate::raft::{SentSnapshot, copy_patience};

/// A member of a group, as its leader sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    pub node: u64,
    /// The last entry that it is known to have.
    pub matched: u64,
    pub is_learner: bool,
    /// That is on its way to it.
    pub snapshot: Option<SentSnapshot>,
}

/// The copies of one group, on its leader.
#[derive(Default)]
pub struct Copies(BTreeMap<u64, Copied>);

struct Copied {
    /// The last entry that it has, or will have once the snapshot is installed.
    last: u64,
    octets: u64,
    /// When one of these was seen to change.
    moved: Instant,
}

impl Copies {
    /// Notes how far the copies are, and answers behind which entry all is needed for those that get on.
    pub fn note(&mut self, members: &[Member], log: LogExtent, kept: u64, now: Instant) -> Option<u64> {
        self.0.retain(|node, _| members.iter().any(|member| member.node == *node));
        members.iter().for_each(|member| self.note_member(member, log.applied.saturating_sub(kept), now));
        // What is gone is needed by nobody: that one gets another snapshot.
        let needed = self.0.values().filter(|copied| copied.gets_on(now) && copied.last >= log.purged);
        needed.map(|copied| copied.last).min()
    }

    /// `kept_from`: what is behind this stays anyway.
    fn note_member(&mut self, member: &Member, kept_from: u64, now: Instant) {
        let before = self.0.get(&member.node);
        let (last, octets) = match (member.snapshot, before) {
            (Some(snapshot), _) => (snapshot.index.max(member.matched), snapshot.octets),
            // The leader learns a little later that it is installed.
            (None, Some(before)) => (before.last.max(member.matched), before.octets),
            (None, None) if member.is_learner => (member.matched, 0),
            (None, None) => return,
        };
        if member.snapshot.is_none() && !member.is_learner && member.matched >= kept_from {
            self.0.remove(&member.node);
            return;
        }
        let stood = before.filter(|before| (before.last, before.octets) == (last, octets));
        let moved = stood.map_or(now, |before| before.moved);
        self.0.insert(member.node, Copied { last, octets, moved });
    }
}

impl Copied {
    fn gets_on(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.moved) <= self.patience()
    }

    /// As long as the copy itself is waited for; nothing moves while it is installed.
    fn patience(&self) -> Duration {
        copy_patience(self.octets)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Copies, Member};
    use crate::log_keeping::LogExtent;
    use crate::raft::{SentSnapshot, copy_patience};

    const KEPT: u64 = 100;
    const SECOND: Duration = Duration::from_secs(1);

    fn log(applied: u64, purged: u64) -> LogExtent {
        LogExtent { applied, snapshot: applied, purged, last_of_all: None, has_learners: true }
    }

    fn voter(node: u64, matched: u64) -> Member {
        Member { node, matched, is_learner: false, snapshot: None }
    }

    fn learner(node: u64, matched: u64) -> Member {
        Member { is_learner: true, ..voter(node, matched) }
    }

    fn sent(member: Member, index: u64, octets: u64) -> Member {
        Member { snapshot: Some(SentSnapshot { index, octets }), ..member }
    }

    #[test]
    fn all_behind_a_snapshot_is_needed_until_its_replica_has_what_all_have() {
        let (mut copies, now) = (Copies::default(), Instant::now());
        for new in [learner(3, 0), voter(3, 400)] {
            let mut note = |member, applied| copies.note(&[voter(2, applied), member], log(applied, 900), KEPT, now);
            assert_eq!(note(sent(new, 1_000, 0), 1_001), Some(1_000));
            assert_eq!(note(sent(new, 1_000, 5_000), 9_000), Some(1_000));
            // It has come, and the leader does not know yet that it is installed.
            assert_eq!(note(new, 9_100), Some(1_000));
            assert_eq!(note(Member { matched: 1_000, ..new }, 9_200), Some(1_000));
            assert_eq!(note(Member { matched: 5_000, ..new }, 9_300), Some(5_000));
            let level = note(Member { matched: 9_300, ..new }, 9_400);
            assert_eq!(level, new.is_learner.then_some(9_300));
            assert_eq!(note(voter(3, 9_300), 9_400), None);
            // From then on it is one that is behind, as any other.
            assert_eq!(note(voter(3, 9_300), 19_400), None);
        }
    }

    #[test]
    fn nothing_is_needed_for_a_copy_that_does_not_get_on() {
        let (mut copies, start) = (Copies::default(), Instant::now());
        let mut note = |member, seconds| copies.note(&[member], log(9_000, 900), KEPT, start + SECOND * seconds);
        let patience = copy_patience(0).as_secs() as u32;
        let new = learner(3, 0);
        assert_eq!(note(sent(new, 1_000, 0), 0), Some(1_000));
        assert_eq!(note(sent(new, 1_000, 0), patience), Some(1_000));
        assert_eq!(note(sent(new, 1_000, 0), patience + 1), None);
        // It does again.
        assert_eq!(note(sent(new, 1_000, 1), 2 * patience), Some(1_000));
        // Its node is gone.
        assert_eq!(note(new, 3 * patience), Some(1_000));
        assert_eq!(note(new, 3 * patience + 1), None);
        // It is back, and begins anew.
        assert_eq!(note(sent(new, 8_000, 0), 9 * patience), Some(8_000));
        // What is installed takes its time, the longer the more it is.
        let large = sent(new, 8_000, 1 << 40);
        assert_eq!(note(large, 10 * patience), Some(8_000));
        let installed = 10 * patience + copy_patience(1 << 40).as_secs() as u32;
        assert!(installed > 12 * patience);
        assert_eq!((note(large, installed), note(large, installed + 1)), (Some(8_000), None));
    }

    #[test]
    fn the_copy_that_is_furthest_behind_counts_and_one_that_lacks_what_is_gone_does_not() {
        let (mut copies, now) = (Copies::default(), Instant::now());
        let mut note = |members: &[Member]| copies.note(members, log(9_000, 900), KEPT, now);
        assert_eq!(note(&[sent(learner(3, 0), 5_000, 1), sent(voter(4, 0), 4_000, 1), voter(5, 0)]), Some(4_000));
        assert_eq!(note(&[sent(learner(3, 0), 5_000, 1), sent(voter(4, 0), 899, 1)]), Some(5_000));
        assert_eq!(note(&[sent(learner(3, 0), 5_000, 1)]), Some(5_000));
        // One that needs its first snapshot.
        assert_eq!(note(&[learner(6, 0)]), None);
        // One that needs none.
        assert_eq!(note(&[learner(7, 900)]), Some(900));
        // This node leads no more.
        assert_eq!(note(&[]), None);
        assert_eq!(note(&[voter(7, 900)]), None);
    }
}
