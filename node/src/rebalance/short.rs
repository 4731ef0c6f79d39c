//! Which shards of the cluster lack a replica. While shards move the directory's leader sees it, and every node that copies
//! something asks that one: it knows by itself only of the shards that it leads.
//!
//! ```text
//! leader of a shard ──(who it hears)──► leader of the directory ──(which are short)──► whoever copies another shard
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use directory::{Directory, Placement};
use parking_lot::Mutex;
use proto::wire;
use types::ShardId;

use super::{Observed, lost};
use crate::Node;

/// What was seen longer ago is not known any more: copies do not wait for ever because nobody tells of the others. Longer than
/// the directory takes to elect a leader, and that one to ask every node though some do not answer.
const SEEN_MAX: Duration = Duration::from_secs(10);
/// A shard that has had no leader for so long is mended by no copy, only by whoever comes back: no other waits for it any more.
/// Longer than an election takes, and a node that starts again.
const LEADERLESS_MAX: Duration = Duration::from_secs(30);

/// What is known of it, and as of when.
#[derive(Default)]
pub struct ShortShards(Mutex<Option<(Instant, BTreeSet<ShardId>)>>);

impl ShortShards {
    pub fn note(&self, shards: BTreeSet<ShardId>, seen: Instant) {
        let mut known = self.0.lock();
        if known.as_ref().is_none_or(|(before, _)| *before <= seen) {
            *known = Some((seen, shards));
        }
    }

    /// With its age; `None` once that is above [`SEEN_MAX`].
    pub fn known(&self, now: Instant) -> Option<(BTreeSet<ShardId>, Duration)> {
        let known = self.0.lock();
        let (seen, shards) = known.as_ref()?;
        let age = now.saturating_duration_since(*seen);
        (age <= SEEN_MAX).then(|| (shards.clone(), age))
    }

    /// Notes what the directory's leader told.
    pub fn note_told(&self, told: wire::ShortShards, now: Instant) {
        let Some(seen) = now.checked_sub(Duration::from_millis(told.age_ms)) else { return };
        self.note(told.shards.into_iter().map(ShardId).collect(), seen);
    }
}

/// On the directory's leader, what it tells of it.
pub fn told_short(node: &Node) -> Option<wire::ShortShards> {
    if !node.groups().directory().leads() {
        return None;
    }
    let (shards, age) = node.short_shards().known(Instant::now())?;
    Some(wire::ShortShards {
        shards: shards.into_iter().map(|shard| shard.0).collect(),
        age_ms: age.as_millis() as u64,
    })
}

/// The shards that have no leader, and since when.
#[derive(Default)]
pub struct Leaderless(BTreeMap<ShardId, Instant>);

impl Leaderless {
    /// The shards of which fewer voters answer than there should be copies, whether a move under way is done or not. Not those
    /// that are lost, or have had no leader for too long: they may never be mended. Pure.
    pub(super) fn short(&mut self, directory: &Directory, observed: &Observed, now: Instant) -> BTreeSet<ShardId> {
        let lost = lost::of(directory, observed, None);
        let placements = directory.placements().filter(|placement| placement.initialised);
        let is_led = |shard: ShardId| observed.led(shard).is_some();
        self.0.retain(|shard, _| !is_led(*shard) && !lost.contains_key(shard));
        let mut is_short = |placement: &Placement| {
            if lost.contains_key(&placement.shard) {
                return false;
            }
            let Some(group) = observed.led(placement.shard) else {
                let since = *self.0.entry(placement.shard).or_insert(now);
                return now.saturating_duration_since(since) <= LEADERLESS_MAX;
            };
            let answering = group.voters.iter().filter(|voter| group.heard.contains(voter)).count();
            let before = if placement.previous.is_empty() { &placement.wanted } else { &placement.previous };
            answering < placement.wanted.len().min(before.len())
        };
        placements.filter(|placement| is_short(placement)).map(|placement| placement.shard).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    use directory::{Command, Directory, NodeState};
    use proto::wire::{self, GroupStatus, NodeStatusReply};
    use types::{NodeId, ShardId};

    use super::super::Observed;
    use super::super::tests::{directory, start, told};
    use super::{LEADERLESS_MAX, Leaderless, SEEN_MAX, ShortShards};

    fn led(shard: u32, voters: &[u64], heard: &[u64]) -> GroupStatus {
        let (role, voters, heard) = ("leader".to_owned(), voters.to_vec(), heard.to_vec());
        GroupStatus { group: shard, role, voters, heard, ..GroupStatus::default() }
    }

    /// Node 1 says this of the three shards; of the others these answer.
    fn observed(groups: Vec<GroupStatus>, others: &[u64]) -> Observed {
        let first = NodeStatusReply { groups, ..NodeStatusReply::default() };
        let others = others.iter().map(|id| (NodeId(*id), NodeStatusReply::default()));
        Observed { statuses: others.chain([(NodeId(1), first)]).collect() }
    }

    fn ids(shards: &[u32]) -> BTreeSet<ShardId> {
        shards.iter().copied().map(ShardId).collect()
    }

    #[test]
    fn a_shard_is_short_while_fewer_voters_answer_than_there_should_be_copies() {
        let mut directory = directory();
        let all = |shard| led(shard, &[1, 2, 3], &[1, 2, 3]);
        let short = |directory: &Directory, first: GroupStatus| {
            let seen = observed(vec![first, all(1), all(2)], &[2, 3, 4, 5]);
            Leaderless::default().short(directory, &seen, Instant::now())
        };
        assert_eq!(short(&directory, all(0)), ids(&[]));
        assert_eq!(short(&directory, led(0, &[1, 2, 3], &[1, 2])), ids(&[0]));
        // A lost replica was taken out, and the one that takes its place has no vote yet.
        assert_eq!(short(&directory, led(0, &[1, 2], &[1, 2, 3])), ids(&[0]));
        told(&mut directory, start(&[(0, &[1, 2, 4])]));
        told(&mut directory, Command::BeginMoves { shards: vec![ShardId(0)] });
        assert_eq!(short(&directory, led(0, &[1, 2, 3, 4], &[1, 2, 4])), ids(&[]), "it has been copied");
        assert_eq!(short(&directory, led(0, &[1, 2, 3], &[1, 2, 4])), ids(&[0]));
    }

    #[test]
    fn what_has_no_leader_is_waited_for_for_a_while_and_what_is_lost_is_not() {
        let mut directory = directory();
        let (mut leaderless, began) = (Leaderless::default(), Instant::now());
        let led_by_one = |shard| led(shard, &[1, 2, 3], &[1, 2, 3]);
        let without = || {
            let stands = GroupStatus { role: "candidate".to_owned(), ..led(0, &[1, 2, 3], &[]) };
            observed(vec![stands, led_by_one(1), led_by_one(2)], &[4, 5])
        };
        assert_eq!(leaderless.short(&directory, &without(), began), ids(&[0]));
        assert_eq!(leaderless.short(&directory, &without(), began + LEADERLESS_MAX), ids(&[0]));
        let later = began + LEADERLESS_MAX + Duration::from_secs(1);
        assert_eq!(leaderless.short(&directory, &without(), later), ids(&[]));
        // It had one between.
        let back = observed((0..3).map(led_by_one).collect(), &[2, 3, 4, 5]);
        assert_eq!(leaderless.short(&directory, &back, later), ids(&[]));
        assert_eq!(leaderless.short(&directory, &without(), later), ids(&[0]));
        for id in [2, 3] {
            told(&mut directory, Command::SetNodeState { id: NodeId(id), state: NodeState::Draining });
        }
        assert_eq!(leaderless.short(&directory, &without(), later), ids(&[]), "two of three are gone");
    }

    #[test]
    fn what_was_seen_long_ago_is_not_known_and_does_not_replace_what_is_newer() {
        let (short, now) = (ShortShards::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(short.known(now), None);
        short.note(ids(&[3]), now);
        let told = |age_ms| wire::ShortShards { shards: vec![], age_ms };
        short.note_told(told(2_000), now + second);
        assert_eq!(short.known(now + second), Some((ids(&[3]), second)));
        assert_eq!(short.known(now + SEEN_MAX).map(|(shards, _)| shards), Some(ids(&[3])));
        assert_eq!(short.known(now + SEEN_MAX + second), None);
        short.note_told(told(500), now + second);
        assert_eq!(short.known(now + second), Some((ids(&[]), second / 2)));
        // Whatever a node says.
        short.note_told(told(u64::MAX), now + second);
    }
}
