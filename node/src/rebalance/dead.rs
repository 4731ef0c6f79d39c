//! What is done about nodes that have been away for too long. Pure.

use std::collections::{BTreeMap, BTreeSet};

use directory::{Command, Directory, Node, NodeState, RebalanceState};
use types::{NodeId, ShardId};

/// The node to give up now. None where too few live to hold all replicas, or while an administrator has paused the
/// rebalance: shards are not to be copied then.
pub fn next(directory: &Directory, is_dead: impl Fn(NodeId) -> bool) -> Option<&Node> {
    let replicas = directory.cluster()?.replicas as usize;
    let active = || directory.nodes().filter(|known| known.state == NodeState::Active);
    let is_paused = directory.rebalance().is_some_and(|last| last.state == RebalanceState::Paused);
    if is_paused || active().filter(|known| !is_dead(known.id)).count() < replicas {
        return None;
    }
    active().find(|known| is_dead(known.id))
}

/// One command, so that no node is given up whose replicas nobody plans anew: until it is committed whoever leads finds the
/// node as it was. `lost`: shards that nothing can be copied from once it is.
pub fn give_up(
    directory: &Directory,
    id: NodeId,
    octets: &BTreeMap<ShardId, u64>,
    lost: &BTreeSet<ShardId>,
    unix_s: u64,
) -> Command {
    let targets = directory.propose_rebalance_without(id, octets, lost);
    let copied = targets.keys().filter_map(|shard| octets.get(shard)).sum();
    Command::GiveUpNode { id, targets, unix_s, octets: copied }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use directory::{Command, NodeState, RebalanceState};
    use types::{NodeId, ShardId};

    use super::super::tests::{directory, start, told};
    use super::{give_up, next};

    #[test]
    fn a_dead_node_is_given_up_and_what_it_holds_is_planned_in_one() {
        let mut directory = directory();
        let is_dead = |id: NodeId| id.0 == 3;
        assert_eq!(next(&directory, |_| false), None);
        assert_eq!(next(&directory, |id| id.0 >= 3), None, "two of five cannot hold three replicas");
        let dead = next(&directory, is_dead).map(|known| known.id);
        assert_eq!(dead, Some(NodeId(3)));
        let command = give_up(&directory, NodeId(3), &BTreeMap::new(), &BTreeSet::new(), 7);
        // Nothing has come of it yet: the next leader finds the same.
        assert_eq!(next(&directory, is_dead).map(|known| known.id), dead);
        told(&mut directory, command);
        assert_eq!(next(&directory, is_dead), None);
        assert_eq!(directory.node(NodeId(3)).unwrap().state, NodeState::Draining);
        for placement in directory.placements() {
            assert!(placement.is_queued() && !placement.planned.contains(&NodeId(3)), "{placement:?}");
        }
        assert_eq!(directory.rebalance().unwrap().state, RebalanceState::Running);
    }

    #[test]
    fn a_pause_is_an_administrators_word_and_an_aborted_rebalance_of_before_is_none() {
        let mut directory = directory();
        let is_dead = |id: NodeId| id.0 == 3;
        told(&mut directory, start(&[(0, &[1, 2, 4])]));
        told(&mut directory, Command::SetRebalanceState { state: RebalanceState::Paused });
        assert_eq!(next(&directory, is_dead), None);
        told(&mut directory, Command::SetRebalanceState { state: RebalanceState::Aborted });
        assert!(next(&directory, is_dead).is_some());
        let command = give_up(&directory, NodeId(3), &BTreeMap::new(), &BTreeSet::new(), 7);
        told(&mut directory, command);
        assert!(directory.placement(ShardId(0)).unwrap().is_queued());
    }
}
