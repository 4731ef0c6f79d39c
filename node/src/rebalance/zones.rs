//! Shards whose replicas would share a zone that they need not share: an administrator may move one there, a plan never does. Pure.

use std::collections::{BTreeMap, BTreeSet};

use directory::{Directory, NodeState};
use types::{NodeId, ShardId};

/// What is to be said of these targets, and of the moves under way.
pub fn shared<'a>(
    directory: &'a Directory,
    targets: &'a BTreeMap<ShardId, Vec<NodeId>>,
) -> impl Iterator<Item = String> + 'a {
    let active = directory.nodes().filter(|known| known.state == NodeState::Active);
    let zones = active.map(|known| &known.zone).collect::<BTreeSet<_>>().len();
    let moving = directory.moving().filter(|placement| !targets.contains_key(&placement.shard));
    let all = targets.iter().map(|(shard, nodes)| (*shard, nodes)).chain(moving.map(|one| (one.shard, &one.wanted)));
    all.filter_map(move |(shard, nodes)| sharing(directory, shard, nodes, zones))
}

/// `zones`: how many there are.
fn sharing(directory: &Directory, shard: ShardId, nodes: &[NodeId], zones: usize) -> Option<String> {
    let mut by_zone: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for known in nodes.iter().filter_map(|node| directory.node(*node)) {
        by_zone.entry(&known.zone).or_default().push(&known.name);
    }
    if by_zone.len() >= nodes.len().min(zones) {
        return None;
    }
    let (zone, names) = by_zone.into_iter().find(|(_, names)| names.len() > 1)?;
    Some(format!("shard {shard}: replicas on {} share zone {zone}, and need not", names.join(" and ")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use directory::{Command, Directory};
    use types::{NodeId, ShardId};

    use super::super::tests::{directory, nodes_of, start, told};
    use super::shared;

    fn warned(directory: &Directory, targets: &[(u32, &[u64])]) -> Vec<String> {
        let targets: BTreeMap<_, _> = targets.iter().map(|(shard, ids)| (ShardId(*shard), nodes_of(ids))).collect();
        shared(directory, &targets).collect()
    }

    fn in_zone(directory: &mut Directory, id: u64, zone: &str) {
        told(directory, Command::UpdateNode { id: NodeId(id), zone: zone.to_owned(), weight: 1 });
    }

    #[test]
    fn a_move_that_brings_two_replicas_into_one_zone_is_warned_of_while_it_waits_and_while_it_goes() {
        let mut directory = directory();
        in_zone(&mut directory, 4, "zone-1");
        let said = ["shard 1: replicas on node1 and node4 share zone zone-1, and need not"];
        assert_eq!(warned(&directory, &[(0, &[1, 2, 5]), (1, &[1, 2, 4])]), said);
        told(&mut directory, start(&[(1, &[1, 2, 4])]));
        told(&mut directory, Command::BeginMoves { shards: vec![ShardId(1)] });
        assert_eq!(warned(&directory, &[]), said);
        told(&mut directory, Command::EndMoves { shards: vec![ShardId(1)], seen: None });
        assert_eq!(warned(&directory, &[]), Vec::<String>::new());
    }

    #[test]
    fn replicas_that_must_share_a_zone_are_told_of_by_the_plan_alone() {
        let mut directory = directory();
        [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "b")]
            .iter()
            .for_each(|(id, zone)| in_zone(&mut directory, *id, zone));
        assert_eq!(warned(&directory, &[(0, &[1, 4, 3])]), Vec::<String>::new(), "two zones for three replicas");
        let said = ["shard 0: replicas on node1 and node2 and node4 share zone a, and need not"];
        assert_eq!(warned(&directory, &[(0, &[1, 2, 4])]), said);
    }
}
