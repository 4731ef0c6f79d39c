//! Shards that nothing can be copied from any more: of those that vote in their groups too few are left for a majority. They
//! are left aside by what moves others. Nothing is done to them: whoever comes back after all goes on with its shards. Pure.

use std::collections::BTreeMap;

use directory::{Directory, NodeState, Placement};
use types::{NodeId, ShardId};

use super::Observed;

/// The shards, and why each is lost.
pub type Lost = BTreeMap<ShardId, String>;

/// A node that is active and says nothing may come back, and is waited for. `given_up`: one that is not, whatever it is.
pub fn of(directory: &Directory, observed: &Observed, given_up: Option<NodeId>) -> Lost {
    let seen = Seen { directory, observed, given_up };
    let begun = directory.placements().filter(|placement| placement.initialised);
    begun.filter_map(|placement| Some((placement.shard, seen.why_lost(placement)?))).collect()
}

struct Seen<'a> {
    directory: &'a Directory,
    observed: &'a Observed,
    given_up: Option<NodeId>,
}

impl Seen<'_> {
    fn why_lost(&self, placement: &Placement) -> Option<String> {
        if self.observed.led(placement.shard).is_some() {
            return None;
        }
        let voters = self.voters(placement);
        let without: Vec<String> =
            voters.iter().filter_map(|voter| self.why_without(placement.shard, *voter)).collect();
        let is_lost = voters.len() - without.len() <= voters.len() / 2;
        is_lost.then(|| without.join(", "))
    }

    /// As the replica says that knows most; where none says anything, as the directory has them.
    fn voters(&self, placement: &Placement) -> Vec<NodeId> {
        let groups = self.observed.statuses.values().flat_map(|status| &status.groups);
        let replicas = groups.filter(|group| group.group == placement.shard.0 && !group.voters.is_empty());
        match replicas.max_by_key(|group| (group.term, group.last_index)) {
            Some(group) => group.voters.iter().copied().map(NodeId).collect(),
            None if placement.is_moving() => placement.previous.clone(),
            None => placement.wanted.clone(),
        }
    }

    /// Why a voter has nothing to say any more.
    fn why_without(&self, shard: ShardId, voter: NodeId) -> Option<String> {
        let known = self.directory.node(voter);
        let name = known.map_or_else(|| voter.to_string(), |known| known.name.clone());
        let Some(status) = self.observed.statuses.get(&voter) else {
            let stays = known.is_some_and(|known| known.state == NodeState::Active) && self.given_up != Some(voter);
            return (!stays).then(|| format!("node {name} is drained and does not answer"));
        };
        if status.damaged_shards.iter().any(|damaged| damaged.shard == shard.0) {
            return Some(format!("node {name} cannot read it"));
        }
        let is_without = status.lost_shards.contains(&shard.0) || status.absent_shards.contains(&shard.0);
        is_without.then(|| format!("node {name} has lost it"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use directory::{ClusterId, Command, Directory, NodeState};
    use proto::wire::{DamagedShard, GroupStatus, NodeStatusReply};
    use types::{NodeId, ShardId};

    use super::super::tests::{new_node, nodes_of, told};
    use super::super::{Observed, dead, report};
    use super::of;

    /// Four nodes and eight shards: R = 1, two on each, in order.
    fn single() -> Directory {
        cluster(1, |shard| vec![u64::from(shard) / 2 + 1])
    }

    fn cluster(replicas: u32, on: impl Fn(u32) -> Vec<u64>) -> Directory {
        let mut directory = Directory::default();
        let nodes = (1..=4).map(new_node).collect();
        told(&mut directory, Command::CreateCluster { id: ClusterId([7; 16]), shards: 8, replicas, nodes });
        let wanted = (0..8).map(|shard| (ShardId(shard), nodes_of(&on(shard)))).collect();
        told(&mut directory, Command::SetPlacements { wanted });
        (0..8).map(ShardId).for_each(|shard| told(&mut directory, Command::MarkShardInitialised { shard }));
        directory
    }

    fn replica(shard: u32, role: &str, voters: &[u64]) -> GroupStatus {
        let (role, voters) = (role.to_owned(), voters.to_vec());
        GroupStatus { group: shard, role, current: voters.clone(), voters, octets: 1_000, ..GroupStatus::default() }
    }

    /// These answer, and each leads what is on it alone, or was before it began to move.
    fn answering(directory: &Directory, nodes: &[u64]) -> Observed {
        let led = |id: u64| {
            let on = directory.placements().filter(move |one| {
                let on = if one.is_moving() { &one.previous } else { &one.wanted };
                *on == [NodeId(id)]
            });
            on.map(move |one| replica(one.shard.0, "leader", &[id])).collect()
        };
        let status = |id: u64| NodeStatusReply { groups: led(id), ..NodeStatusReply::default() };
        Observed { statuses: nodes.iter().map(|id| (NodeId(*id), status(*id))).collect() }
    }

    fn shards(lost: &super::Lost) -> Vec<u32> {
        lost.keys().map(|shard| shard.0).collect()
    }

    #[test]
    fn an_only_replica_is_lost_with_its_node_once_that_is_given_up() {
        let mut directory = single();
        let seen = answering(&directory, &[1, 2, 3]);
        assert_eq!(shards(&of(&directory, &seen, None)), [0; 0], "it may come back");
        assert_eq!(shards(&of(&directory, &seen, Some(NodeId(4)))), [6, 7]);
        told(&mut directory, Command::SetNodeState { id: NodeId(4), state: NodeState::Draining });
        assert_eq!(of(&directory, &seen, None)[&ShardId(6)], "node node4 is drained and does not answer");
        let all = answering(&directory, &[1, 2, 3, 4]);
        assert_eq!(shards(&of(&directory, &all, None)), [0; 0], "it is back");
        // It answers, and is without.
        let mut empty = answering(&directory, &[1, 2, 3]);
        let status = NodeStatusReply { lost_shards: vec![6], absent_shards: vec![7], ..NodeStatusReply::default() };
        empty.statuses.insert(NodeId(4), status);
        assert_eq!(of(&directory, &empty, None)[&ShardId(7)], "node node4 has lost it");
        let damaged = vec![DamagedShard { shard: 6, reason: "checksum".to_owned() }];
        empty.statuses.insert(NodeId(4), NodeStatusReply { damaged_shards: damaged, ..NodeStatusReply::default() });
        assert_eq!(
            of(&directory, &empty, None),
            BTreeMap::from([(ShardId(6), "node node4 cannot read it".to_owned())])
        );
    }

    #[test]
    fn a_dead_node_with_only_replicas_is_waited_for_and_what_is_away_with_it_is_told() {
        let directory = single();
        let seen = answering(&directory, &[1, 2, 3]);
        assert!(!dead::is_worth_it(&directory, NodeId(4), &of(&directory, &seen, Some(NodeId(4)))));
        let away = "node node4 does not answer; shards 6, 7 cannot be made anew without it, and come back with it";
        assert_eq!(report::status(&directory, &seen).warnings, [away]);
        // Two of three that are left make it anew.
        let directory = cluster(3, |_| vec![1, 2, 3]);
        let led = (0..8).map(|shard| replica(shard, "leader", &[1, 2, 3])).collect();
        let first = NodeStatusReply { groups: led, ..NodeStatusReply::default() };
        let others = [2, 4].map(|id| (NodeId(id), NodeStatusReply::default()));
        let seen = Observed { statuses: others.into_iter().chain([(NodeId(1), first)]).collect() };
        assert!(dead::is_worth_it(&directory, NodeId(3), &of(&directory, &seen, Some(NodeId(3)))));
        assert_eq!(report::status(&directory, &seen).warnings, ["node node3 does not answer"]);
    }

    #[test]
    fn three_replicas_are_lost_with_two_of_their_nodes() {
        let mut directory = cluster(3, |_| vec![1, 2, 3]);
        let follows = |voters: &[u64]| (0..8).map(|shard| replica(shard, "candidate", voters)).collect();
        let seen = |voters: &[u64]| {
            let first = NodeStatusReply { groups: follows(voters), ..NodeStatusReply::default() };
            Observed { statuses: [(NodeId(1), first), (NodeId(4), NodeStatusReply::default())].into() }
        };
        told(&mut directory, Command::SetNodeState { id: NodeId(3), state: NodeState::Draining });
        assert_eq!(shards(&of(&directory, &seen(&[1, 2, 3]), None)), [0; 0]);
        let lost = of(&directory, &seen(&[1, 2, 3]), Some(NodeId(2)));
        assert_eq!(
            (lost.len(), &*lost[&ShardId(0)]),
            (8, "node node2 is drained and does not answer, node node3 is drained and does not answer")
        );
        // As the group has it, not the directory.
        assert_eq!(shards(&of(&directory, &seen(&[1, 4, 3]), Some(NodeId(2)))), [0; 0]);
        // On its way from one to another it needs both.
        assert_eq!(of(&directory, &seen(&[1, 3]), None).len(), 8);
    }

    #[test]
    fn what_is_lost_is_told_apart_in_a_plan_and_counts_nowhere() {
        let mut directory = single();
        told(&mut directory, Command::SetNodeState { id: NodeId(4), state: NodeState::Draining });
        told(&mut directory, Command::SetNodeState { id: NodeId(3), state: NodeState::Draining });
        let seen = answering(&directory, &[1, 2, 3]);
        let lost = of(&directory, &seen, None);
        let targets = directory.propose_rebalance(&seen.octets(), &lost.keys().copied().collect());
        let plan = report::planned(&directory, &seen, &targets);
        assert_eq!(plan.moves.iter().map(|one| one.shard).collect::<Vec<_>>(), [4, 5]);
        let mut to: Vec<u64> = plan.moves.iter().flat_map(|one| one.to.clone()).collect();
        to.sort_unstable();
        assert_eq!(to, [1, 2], "six are evenly on two");
        assert_eq!(plan.shares.iter().map(|share| share.replicas_after).collect::<Vec<_>>(), [3, 3, 0, 2]);
        let told = plan.lost;
        assert_eq!(told.iter().map(|one| one.shard).collect::<Vec<_>>(), [6, 7]);
        assert_eq!(told[0].because, "node node4 is drained and does not answer");
    }

    #[test]
    fn moves_of_lost_shards_hold_up_nothing_and_are_told_apart() {
        let mut directory = single();
        let targets = [(4, &[1][..]), (6, &[1][..]), (7, &[2][..])];
        told(&mut directory, super::super::tests::start(&targets));
        told(&mut directory, Command::BeginMoves { shards: vec![ShardId(6)] });
        told(&mut directory, Command::SetNodeState { id: NodeId(4), state: NodeState::Draining });
        let seen = answering(&directory, &[1, 2, 3]);
        assert_eq!(seen.turns(&directory, &[]), [ShardId(4)]);
        let status = report::status(&directory, &seen);
        assert_eq!(status.moves.iter().map(|one| one.shard).collect::<Vec<_>>(), [4]);
        assert_eq!((status.shards_total, &*status.waits_because), (1, ""));
        assert_eq!(status.lost.iter().map(|one| one.shard).collect::<Vec<_>>(), [6, 7]);
        told(&mut directory, super::super::tests::start(&[(7, &[2])]));
        let only_lost = report::status(&directory, &seen);
        assert_eq!((only_lost.moves.len(), &*only_lost.state), (0, "finished"));
        // It comes back, and goes on.
        assert_eq!(answering(&directory, &[1, 2, 3, 4]).turns(&directory, &[]), [ShardId(7)]);
        // A node that is active may come back: while it is away nothing else begins.
        told(&mut directory, Command::SetNodeState { id: NodeId(4), state: NodeState::Active });
        assert_eq!(seen.turns(&directory, &[]), [ShardId(7)]);
    }

    #[test]
    fn a_lost_shard_keeps_its_own_nodes_from_being_removed_and_no_others() {
        let mut directory = single();
        told(&mut directory, Command::SetNodeState { id: NodeId(4), state: NodeState::Draining });
        let mut seen = answering(&directory, &[1, 2, 3]);
        seen.statuses.get_mut(&NodeId(2)).unwrap().groups =
            vec![replica(2, "leader", &[1]), replica(3, "leader", &[1])];
        assert_eq!(seen.why_held(&directory, NodeId(2)), None);
        assert_eq!(
            seen.why_held(&directory, NodeId(4)).unwrap(),
            "shard 6 is lost, and what is left of it may be there"
        );
        assert_eq!(seen.why_held(&directory, NodeId(1)).unwrap(), "shard 0 still has a replica there");
    }
}
