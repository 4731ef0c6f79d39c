//! What the directory's leader makes of what the nodes say.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use directory::{ClusterId, Command, Directory, NewNode, NodeState, RebalanceState};
use proto::wire::{GroupStatus, NodeStatusReply};
use types::{NodeId, ShardId};

use super::{Observed, note_heard, report};

/// Five nodes, and shards on nodes 1, 2 and 3.
pub fn directory() -> Directory {
    let mut directory = placed();
    for shard in (0..3).map(ShardId) {
        told(&mut directory, Command::MarkShardInitialised { shard });
    }
    directory
}

/// The same, before any of them is known to have begun.
fn placed() -> Directory {
    let mut directory = Directory::default();
    let nodes = (1..=5).map(new_node).collect();
    told(&mut directory, Command::CreateCluster { id: ClusterId([7; 16]), shards: 3, replicas: 3, nodes });
    let wanted = (0..3).map(|shard| (ShardId(shard), nodes_of(&[1, 2, 3]))).collect();
    told(&mut directory, Command::SetPlacements { wanted });
    directory
}

pub fn new_node(id: u64) -> NewNode {
    let (name, address, zone) = (format!("node{id}"), format!("host{id}:1"), format!("zone-{id}"));
    NewNode { id: NodeId(id), name, address, zone, weight: 1, voter: id <= 3, format: 1, waits: false }
}

pub fn nodes_of(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

pub fn told(directory: &mut Directory, command: Command) {
    let revision = directory.revision() + 1;
    directory.apply(revision, &command).reply.unwrap();
}

pub fn start(targets: &[(u32, &[u64])]) -> Command {
    let targets: BTreeMap<_, _> = targets.iter().map(|(shard, ids)| (ShardId(*shard), nodes_of(ids))).collect();
    Command::StartRebalance { targets, replace: true, unix_s: 1, octets: 0 }
}

/// A group as its leader has it, everybody current.
fn led(shard: u32, voters: &[u64]) -> GroupStatus {
    let (role, voters) = ("leader".to_owned(), voters.to_vec());
    GroupStatus { group: shard, role, current: voters.clone(), voters, ..GroupStatus::default() }
}

/// Node 1 leads all that is led; of the others these answer.
fn observed(groups: Vec<GroupStatus>, others: &[u64]) -> Observed {
    let first = NodeStatusReply { groups, ..NodeStatusReply::default() };
    let others = others.iter().map(|id| (NodeId(*id), NodeStatusReply::default()));
    Observed { statuses: others.chain([(NodeId(1), first)]).collect() }
}

/// The directory would not begin the move, and be asked again at once.
#[test]
fn a_shard_that_is_not_known_to_have_begun_does_not_begin_to_move() {
    let mut directory = placed();
    told(&mut directory, start(&[(1, &[1, 2, 4])]));
    let seen = observed((0..3).map(|shard| led(shard, &[1, 2, 3])).collect(), &[2, 3, 4]);
    assert_eq!(seen.turns(&directory, &[]), []);
    told(&mut directory, Command::MarkShardInitialised { shard: ShardId(1) });
    assert_eq!(seen.turns(&directory, &[]), [ShardId(1)]);
}

#[test]
fn a_move_that_cannot_arrive_says_why() {
    let mut directory = directory();
    told(&mut directory, start(&[(1, &[1, 2, 4])]));
    told(&mut directory, Command::BeginMoves { shards: vec![ShardId(1)] });
    let groups = || (0..3).map(|shard| led(shard, &[1, 2, 3])).collect();
    let because = |observed: &Observed| report::status(&directory, observed).waits_because;
    assert_eq!(because(&observed(groups(), &[2, 3, 4, 5])), "");
    assert_eq!(because(&observed(groups(), &[2, 3, 5])), "shard 1 is to go to node node4, which does not answer");
    let mut full = observed(groups(), &[2, 3, 5]);
    full.statuses.insert(NodeId(4), NodeStatusReply { disk_full: true, ..NodeStatusReply::default() });
    assert_eq!(because(&full), "shard 1 is to go to node node4, whose disk is full");
    assert_eq!(directory.node(NodeId(4)).unwrap().state, NodeState::Active);
}

#[test]
fn a_node_is_not_removed_while_a_shard_has_a_replica_there_or_cannot_say() {
    let directory = directory();
    let why = |groups, id| observed(groups, &[]).why_held(&directory, NodeId(id));
    assert_eq!(why((0..3).map(|shard| led(shard, &[1, 2, 3])).collect(), 4), None);
    let learning = GroupStatus { learners: vec![4], ..led(2, &[1, 2, 3]) };
    let groups = vec![led(0, &[1, 2, 3]), led(1, &[1, 2, 3]), learning];
    assert_eq!(why(groups, 4), Some("shard 2 still has a replica there".to_owned()));
    assert_eq!(why(vec![led(0, &[4])], 4), Some("shard 0 still has a replica there".to_owned()));
    let silent = vec![led(0, &[1, 2, 3]), led(2, &[1, 2, 3])];
    assert_eq!(why(silent, 4), Some("shard 1 has no leader to say where its replicas are".to_owned()));
}

#[test]
fn a_shard_whose_lost_replica_was_taken_out_is_degraded_until_another_is_there() {
    let directory = directory();
    let degraded = |first: GroupStatus| {
        let groups = vec![first, led(1, &[1, 2, 3]), led(2, &[1, 2, 3])];
        observed(groups, &[]).degraded(directory.placements()).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(degraded(led(0, &[1, 2, 3])), []);
    assert_eq!(degraded(led(0, &[1, 2])), [ShardId(0)]);
    assert_eq!(degraded(GroupStatus { learners: vec![3], ..led(0, &[1, 2]) }), [ShardId(0)]);
    assert_eq!(degraded(GroupStatus { current: vec![1, 2], ..led(0, &[1, 2, 3]) }), [ShardId(0)]);
    assert_eq!(degraded(GroupStatus { role: "follower".to_owned(), ..led(0, &[1, 2, 3]) }), [ShardId(0)]);
}

#[test]
fn who_was_cut_off_gives_everybody_the_whole_time_again() {
    let began = Instant::now();
    let after = |s: u64| began + Duration::from_secs(s);
    let mut heard = HashMap::new();
    let nodes = |answering: &[u64]| [1, 2, 3].map(|id| (NodeId(id), answering.contains(&id))).into_iter();
    note_heard(&mut heard, Some(nodes(&[1, 2, 3])), began);
    note_heard(&mut heard, Some(nodes(&[1, 2])), after(10));
    assert_eq!((heard[&NodeId(2)], heard[&NodeId(3)]), (after(10), began));
    // Without a majority, then one that comes back before the other.
    note_heard(&mut heard, None::<std::iter::Empty<_>>, after(20));
    note_heard(&mut heard, Some(nodes(&[1, 2])), after(3600));
    assert_eq!((heard[&NodeId(2)], heard[&NodeId(3)]), (after(3600), after(3600)));
}

#[test]
fn a_shard_that_lacks_a_replica_while_it_moves_is_degraded_too() {
    let mut directory = directory();
    told(&mut directory, start(&[(0, &[1, 2, 4]), (1, &[1, 2, 5])]));
    told(&mut directory, Command::BeginMoves { shards: vec![ShardId(0)] });
    let said = |first: GroupStatus| {
        let seen = observed(vec![first, led(1, &[1, 2, 3]), led(2, &[1, 2, 3])], &[2, 3, 4, 5]);
        let degraded: Vec<ShardId> = seen.degraded(directory.placements()).into_iter().collect();
        (degraded, report::status(&directory, &seen).waits_because)
    };
    // Here or there, or both.
    for voters in [&[1, 2, 3][..], &[1, 2, 4], &[1, 2, 3, 4]] {
        assert_eq!(said(led(0, voters)), (vec![], String::new()));
    }
    let waits = "shard 0 lacks a replica or a leader".to_owned();
    assert_eq!(said(GroupStatus { current: vec![1, 2], ..led(0, &[1, 2, 3]) }), (vec![ShardId(0)], waits.clone()));
    assert_eq!(said(GroupStatus { learners: vec![4], ..led(0, &[1, 2]) }), (vec![ShardId(0)], waits));
}

#[test]
fn a_dead_node_that_nobody_replaces_is_warned_of() {
    let mut directory = directory();
    let seen = observed((0..3).map(|shard| led(shard, &[1, 2, 3])).collect(), &[2, 4, 5]);
    let warned = |directory: &Directory| report::status(directory, &seen).warnings;
    assert_eq!(warned(&directory), ["node node3 does not answer"]);
    told(&mut directory, start(&[(0, &[1, 2, 4])]));
    told(&mut directory, Command::SetRebalanceState { state: RebalanceState::Paused });
    let paused = "node node3 does not answer, and is not given up while the rebalance is paused";
    assert_eq!(warned(&directory), [paused]);
    // Given up, and then called off.
    told(&mut directory, Command::SetRebalanceState { state: RebalanceState::Running });
    let targets = (0..3).map(|shard| (ShardId(shard), nodes_of(&[1, 2, 4]))).collect();
    told(&mut directory, Command::GiveUpNode { id: NodeId(3), targets, unix_s: 1, octets: 0 });
    assert_eq!(warned(&directory), Vec::<String>::new());
    told(&mut directory, Command::SetRebalanceState { state: RebalanceState::Aborted });
    let left = "node node3 is drained and does not answer, and for 3 shards nothing is planned";
    assert_eq!(warned(&directory), [left]);
}

#[test]
fn a_drain_that_was_called_off_says_what_stays_on_the_node_and_the_ways_on() {
    let mut directory = directory();
    let seen = observed((0..3).map(|shard| led(shard, &[1, 2, 3])).collect(), &[2, 3, 4, 5]);
    let warned = |directory: &Directory| report::status(directory, &seen).warnings;
    let left = |replicas: &str| {
        format!(
            "node node3 is draining and holds {replicas}, which nothing moves: `mailring rebalance apply` moves them away, \
             `mailring node join node3` keeps them there"
        )
    };
    told(&mut directory, Command::SetNodeState { id: NodeId(3), state: NodeState::Draining });
    assert_eq!(warned(&directory), [left("3 replicas")], "nothing was planned");
    told(&mut directory, start(&[(0, &[1, 2, 4]), (1, &[1, 2, 5]), (2, &[1, 2, 4])]));
    told(&mut directory, Command::BeginMoves { shards: vec![ShardId(0), ShardId(1)] });
    assert_eq!(warned(&directory), Vec::<String>::new());
    told(&mut directory, Command::EndMoves { shards: vec![ShardId(0)], seen: None });
    // One has moved, one goes back, one has not begun.
    told(&mut directory, Command::SetRebalanceState { state: RebalanceState::Aborted });
    assert_eq!(warned(&directory), [left("2 replicas")]);
    told(&mut directory, Command::SetNodeState { id: NodeId(3), state: NodeState::Active });
    assert_eq!(warned(&directory), Vec::<String>::new());
}
