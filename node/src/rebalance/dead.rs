//! What is done about nodes that have been away for too long. Pure.

use std::collections::{BTreeMap, BTreeSet};

use directory::{Command, Directory, NodeState, RebalanceState};
use types::{NodeId, ShardId};

use super::lost::Lost;

/// The nodes that may be given up now. None where too few live to hold all replicas, or while an administrator has paused the
/// rebalance: shards are not to be copied then.
pub fn all(directory: &Directory, is_dead: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
    let Some(replicas) = directory.cluster().map(|cluster| cluster.replicas as usize) else { return Vec::new() };
    let active = || directory.nodes().filter(|known| known.state == NodeState::Active);
    let is_paused = directory.rebalance().is_some_and(|last| last.state == RebalanceState::Paused);
    if is_paused || active().filter(|known| !is_dead(known.id)).count() < replicas {
        return Vec::new();
    }
    active().map(|known| known.id).filter(|id| is_dead(*id)).collect()
}

/// Whether something can be made anew of what the node holds, or it holds nothing. Otherwise it is waited for: to give it up would
/// bring nothing back, and all that it has once it is there again would only move. `lost`: once it is given up.
pub fn is_worth_it(directory: &Directory, id: NodeId, lost: &Lost) -> bool {
    let mut held = directory.placements().filter(|placement| placement.names(id)).peekable();
    held.peek().is_none() || held.any(|placement| !lost.contains_key(&placement.shard))
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
    use super::{all, give_up, is_worth_it};

    #[test]
    fn a_dead_node_is_given_up_and_what_it_holds_is_planned_in_one() {
        let mut directory = directory();
        let is_dead = |id: NodeId| id.0 == 3;
        assert_eq!(all(&directory, |_| false), []);
        assert_eq!(all(&directory, |id| id.0 >= 3), [], "two of five cannot hold three replicas");
        assert_eq!(all(&directory, |id| id.0 >= 4), [NodeId(4), NodeId(5)]);
        assert_eq!(all(&directory, is_dead), [NodeId(3)]);
        let command = give_up(&directory, NodeId(3), &BTreeMap::new(), &BTreeSet::new(), 7);
        // Nothing has come of it yet: the next leader finds the same.
        assert_eq!(all(&directory, is_dead), [NodeId(3)]);
        told(&mut directory, command);
        assert_eq!(all(&directory, is_dead), []);
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
        assert_eq!(all(&directory, is_dead), []);
        told(&mut directory, Command::SetRebalanceState { state: RebalanceState::Aborted });
        assert_eq!(all(&directory, is_dead), [NodeId(3)]);
        let command = give_up(&directory, NodeId(3), &BTreeMap::new(), &BTreeSet::new(), 7);
        told(&mut directory, command);
        assert!(directory.placement(ShardId(0)).unwrap().is_queued());
    }

    #[test]
    fn a_node_is_waited_for_where_nothing_of_what_it_holds_can_be_made_anew() {
        let directory = directory();
        let lost = |shards: &[u32]| shards.iter().map(|shard| (ShardId(*shard), String::new())).collect();
        assert!(is_worth_it(&directory, NodeId(3), &lost(&[])));
        assert!(is_worth_it(&directory, NodeId(3), &lost(&[0, 2])), "shard 1 can be");
        assert!(!is_worth_it(&directory, NodeId(3), &lost(&[0, 1, 2])));
        assert!(is_worth_it(&directory, NodeId(4), &lost(&[0, 1, 2])), "it holds nothing");
    }
}
