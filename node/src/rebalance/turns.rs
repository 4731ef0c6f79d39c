//! Whose turn it is to move. Pure.

use std::collections::{BTreeMap, BTreeSet};

use types::{NodeId, ShardId};

/// Moves that one node takes part in at once: as the one that gives, or that gets. A node that does not answer gives nothing,
/// the others have what it had.
pub const MOVES_PER_NODE_MAX: usize = 2;

/// A shard that changes replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    pub shard: ShardId,
    pub from: Vec<NodeId>,
    pub to: Vec<NodeId>,
    /// The shard's move under way goes to a node that is gone: this one takes its place.
    pub replaces: bool,
}

impl Turn {
    fn nodes(&self, answering: &BTreeSet<NodeId>) -> impl Iterator<Item = NodeId> {
        let gives = self.from.iter().filter(|node| !self.to.contains(node) && answering.contains(node));
        let gets = self.to.iter().filter(|node| !self.from.contains(node));
        gives.chain(gets).copied()
    }
}

/// Which of the moves that wait begin now. While a shard lacks a replica only moves of such shards begin: they may be what
/// mends it, and no other gets worse meanwhile. So may a move that takes the place of one that goes nowhere.
pub fn next(
    waiting: &[Turn],
    under_way: &[Turn],
    degraded: &BTreeSet<ShardId>,
    answering: &BTreeSet<NodeId>,
) -> Vec<ShardId> {
    let mut busy: BTreeMap<NodeId, usize> = BTreeMap::new();
    let replaced: BTreeSet<ShardId> = waiting.iter().filter(|turn| turn.replaces).map(|turn| turn.shard).collect();
    let counted = under_way.iter().filter(|turn| !replaced.contains(&turn.shard));
    for node in counted.flat_map(|turn| turn.nodes(answering)) {
        *busy.entry(node).or_default() += 1;
    }
    let mut begin = Vec::new();
    let mends = |turn: &&Turn| turn.replaces || degraded.contains(&turn.shard);
    for turn in waiting.iter().filter(|turn| degraded.is_empty() || mends(turn)) {
        let moving = !turn.replaces && under_way.iter().any(|other| other.shard == turn.shard);
        if moving || turn.nodes(answering).any(|node| busy.get(&node).copied().unwrap_or(0) >= MOVES_PER_NODE_MAX) {
            continue;
        }
        for node in turn.nodes(answering) {
            *busy.entry(node).or_default() += 1;
        }
        begin.push(turn.shard);
    }
    begin
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use types::{NodeId, ShardId};

    use super::Turn;

    /// All answer.
    fn next(waiting: &[Turn], under_way: &[Turn], degraded: &BTreeSet<ShardId>) -> Vec<ShardId> {
        super::next(waiting, under_way, degraded, &(1..10).map(NodeId).collect())
    }

    fn turn(shard: u32, from: &[u64], to: &[u64]) -> Turn {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
        Turn { shard: ShardId(shard), from: ids(from), to: ids(to), replaces: false }
    }

    #[test]
    fn replicas_of_a_dead_node_are_made_anew_by_all_others_at_once() {
        let waiting: Vec<Turn> = (0..6u32)
            .map(|shard| turn(shard, &[1, 2, 3], &[1, 2, 4 + u64::from(shard) / 2]))
            .chain([turn(6, &[1, 2, 3], &[1, 2, 4])])
            .collect();
        let all: BTreeSet<ShardId> = (0..7).map(ShardId).collect();
        let answering = BTreeSet::from([1, 2, 4, 5, 6].map(NodeId));
        let begun = super::next(&waiting, &[], &all, &answering);
        assert_eq!(begun, (0..6).map(ShardId).collect::<Vec<_>>());
        assert_eq!(super::next(&waiting[4..], &waiting[..4], &all, &answering), [ShardId(4), ShardId(5)]);
    }

    #[test]
    fn a_move_that_goes_nowhere_gives_way_and_keeps_nobody_busy() {
        // Two shards of node 3 are on their way to node 4, which is gone, and so is a replica of another.
        let stuck = [turn(0, &[1, 2, 3], &[1, 2, 4]), turn(1, &[1, 2, 3], &[1, 2, 4])];
        let instead = |shard, to: &[u64]| Turn { replaces: true, ..turn(shard, &[1, 2, 3], to) };
        let degraded = BTreeSet::from([ShardId(9)]);
        let waiting = [instead(0, &[1, 2, 5]), instead(1, &[1, 2, 3]), turn(2, &[1, 2, 3], &[1, 2, 5])];
        assert_eq!(next(&waiting, &stuck, &degraded), [ShardId(0), ShardId(1)]);
        assert_eq!(next(&waiting, &stuck, &BTreeSet::new()), [ShardId(0), ShardId(1), ShardId(2)]);
        assert_eq!(next(&waiting[2..], &stuck, &BTreeSet::new()), []);
    }

    #[test]
    fn a_node_takes_part_in_two_moves_at_once() {
        let waiting: Vec<Turn> = (0..6).map(|shard| turn(shard, &[1, 2, 3], &[1, 2, 4])).collect();
        assert_eq!(next(&waiting, &[], &BTreeSet::new()), [ShardId(0), ShardId(1)]);
        assert_eq!(next(&waiting[1..], &waiting[..1], &BTreeSet::new()), [ShardId(1)]);
        assert_eq!(next(&waiting[2..], &waiting[..2], &BTreeSet::new()), []);
        let apart = [turn(7, &[5, 6, 7], &[5, 6, 8]), turn(0, &[1, 2, 4], &[1, 2, 9])];
        // Another pair of nodes goes on meanwhile; a shard that moves waits for its next move.
        assert_eq!(next(&apart, &waiting[..1], &BTreeSet::new()), [ShardId(7)]);
    }

    #[test]
    fn while_a_shard_lacks_a_replica_only_such_shards_move() {
        let waiting = [turn(0, &[1, 2, 3], &[1, 2, 4]), turn(1, &[1, 2, 3], &[1, 2, 4])];
        assert_eq!(next(&waiting, &[], &BTreeSet::from([ShardId(1)])), [ShardId(1)]);
        assert_eq!(next(&waiting, &[], &BTreeSet::from([ShardId(9)])), []);
    }
}
