//! What is done about nodes that have been away for too long. Pure.

use directory::{Directory, NodeState, RebalanceState};
use types::NodeId;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is drained from now on, and what it holds is planned elsewhere.
    GiveUp { id: NodeId, name: String },
    /// A node was given up, and nothing planned for what it holds: who led the directory then went between the two.
    Plan,
}

/// Nothing is done where too few nodes live to hold all replicas, or while an administrator has paused or aborted.
pub fn next(directory: &Directory, is_dead: impl Fn(NodeId) -> bool) -> Option<Verdict> {
    let replicas = directory.cluster()?.replicas as usize;
    let active = || directory.nodes().filter(|known| known.state == NodeState::Active);
    if active().filter(|known| !is_dead(known.id)).count() < replicas {
        return None;
    }
    if let Some(known) = active().find(|known| is_dead(known.id)) {
        return Some(Verdict::GiveUp { id: known.id, name: known.name.clone() });
    }
    if directory.rebalance().is_some_and(|last| last.state != RebalanceState::Finished) {
        return None;
    }
    let holds = |id: NodeId| directory.placements().any(|placement| placement.wanted.contains(&id));
    let mut given_up = directory.nodes().filter(|known| known.state == NodeState::Draining);
    given_up.any(|known| is_dead(known.id) && holds(known.id)).then_some(Verdict::Plan)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use directory::{ClusterId, Command, Directory, NewNode, NodeState, RebalanceState};
    use types::{NodeId, ShardId};

    use super::{Verdict, next};

    fn new_node(id: u64) -> NewNode {
        let (name, address) = (format!("node{id}"), format!("host{id}:1"));
        NewNode { id: NodeId(id), name, address, zone: "a".to_owned(), weight: 1, voter: id == 1, format: 1 }
    }

    fn told(directory: &mut Directory, command: Command) {
        let revision = directory.revision() + 1;
        directory.apply(revision, &command).reply.unwrap();
    }

    #[test]
    fn a_dead_node_is_given_up_once_and_what_it_holds_is_planned_whoever_leads() {
        let mut directory = Directory::default();
        let nodes = (1..=4).map(new_node).collect();
        told(&mut directory, Command::CreateCluster { id: ClusterId([1; 16]), shards: 1, replicas: 3, nodes });
        told(&mut directory, Command::set_placement(ShardId(0), [4, 2, 3].map(NodeId).to_vec()));
        told(&mut directory, Command::MarkShardInitialised { shard: ShardId(0) });
        assert_eq!(next(&directory, |_| false), None);
        // Two of four: the others could not hold three copies.
        assert_eq!(next(&directory, |id| id.0 >= 3), None);
        let is_dead = |id: NodeId| id.0 == 4;
        assert_eq!(next(&directory, is_dead), Some(Verdict::GiveUp { id: NodeId(4), name: "node4".to_owned() }));
        told(&mut directory, Command::SetNodeState { id: NodeId(4), state: NodeState::Draining });
        // Whoever did that is gone.
        assert_eq!(next(&directory, is_dead), Some(Verdict::Plan));
        assert_eq!(next(&directory, |_| false), None, "it only drains");
        let targets = BTreeMap::from([(ShardId(0), [1, 2, 3].map(NodeId).to_vec())]);
        told(&mut directory, Command::StartRebalance { targets, replace: true, unix_s: 1, octets: 0 });
        assert_eq!(next(&directory, is_dead), None);
        // An administrator's word counts.
        told(&mut directory, Command::SetRebalanceState { state: RebalanceState::Aborted });
        assert_eq!(next(&directory, is_dead), None);
    }
}
