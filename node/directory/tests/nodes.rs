//! What happens to nodes and shards: birth of a cluster, joining, draining, removal, placement.

mod common;

use std::collections::BTreeMap;

use common::{Story, new_node};
use directory::{ClusterId, Command, DirectoryError, NewNode, NodeState, Start, moves};
use types::{NodeId, ShardId};

/// What the reconciler does once everything has moved.
fn settle(story: &mut Story) -> usize {
    let wanted = story.directory.propose_placements();
    let count = wanted.len();
    story.must(Command::SetPlacements { wanted });
    count
}

fn placements(story: &Story) -> BTreeMap<ShardId, Vec<NodeId>> {
    story.directory.placements().map(|it| (it.shard, it.wanted.clone())).collect()
}

#[test]
fn a_cluster_is_born_once() {
    let mut story = Story::empty();
    let create = |shards, replicas, nodes: Vec<NewNode>| Command::CreateCluster {
        id: ClusterId([1; 16]),
        shards,
        replicas,
        nodes,
    };
    let no_voter = NewNode { voter: false, ..new_node(1) };
    let twin = NewNode { id: NodeId(9), ..new_node(1) };
    for bad in [
        create(0, 3, vec![new_node(1)]),
        create(4097, 3, vec![new_node(1)]),
        create(16, 0, vec![new_node(1)]),
        create(16, 6, vec![new_node(1)]),
        create(16, 3, vec![]),
        create(16, 3, vec![no_voter]),
    ] {
        assert!(matches!(story.apply(bad.clone()), Err(DirectoryError::Invalid(_))), "{bad:?}");
    }
    for bad in [vec![new_node(1), twin], vec![new_node(1), new_node(1)]] {
        assert!(matches!(story.apply(create(16, 3, bad)), Err(DirectoryError::AlreadyExists(_))));
    }
    story.must(create(16, 3, vec![new_node(2), new_node(1)]));
    assert_eq!(story.directory.nodes().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["node1", "node2"]);
    let again = story.apply(create(16, 3, vec![new_node(1)]));
    assert_eq!(again, Err(DirectoryError::AlreadyExists("the cluster".to_owned())));
    assert_eq!(story.directory.cluster().unwrap().cluster_id.to_string(), "01".repeat(16));
}

#[test]
fn every_shard_is_placed_and_told_once_that_its_group_was_born() {
    let mut story = Story::begin();
    assert_eq!(settle(&mut story), 16);
    assert_eq!(settle(&mut story), 0, "what is well placed is left alone");
    assert!(story.last.is_empty());
    let placed_at = story.directory.placement(ShardId(3)).unwrap().revision;

    story.must(Command::MarkShardInitialised { shard: ShardId(3) });
    let placement = story.directory.placement(ShardId(3)).unwrap();
    assert!(placement.initialised && placement.revision > placed_at);
    story.must(Command::MarkShardInitialised { shard: ShardId(3) });
    assert!(story.last.is_empty());
    story.must(Command::set_placement(ShardId(3), vec![NodeId(2)]));
    assert!(story.directory.placement(ShardId(3)).unwrap().initialised, "a moved shard is not born again");
    let unplaced = Command::MarkShardInitialised { shard: ShardId(16) };
    assert!(matches!(story.apply(unplaced), Err(DirectoryError::NotFound(_))));
    assert_eq!(story.reload().unwrap(), story.directory);
}

#[test]
fn placements_are_taken_whole_or_not_at_all() {
    let mut story = Story::begin();
    settle(&mut story);
    let six = (1..=6).map(NodeId).collect::<Vec<_>>();
    for bad in [vec![], vec![NodeId(1), NodeId(1)], vec![NodeId(99)], six] {
        let wanted = BTreeMap::from([(ShardId(0), vec![NodeId(1)]), (ShardId(1), bad.clone())]);
        assert!(story.apply(Command::SetPlacements { wanted }).is_err(), "{bad:?}");
    }
    let beyond = Command::set_placement(ShardId(16), vec![NodeId(1)]);
    assert!(matches!(story.apply(beyond), Err(DirectoryError::NotFound(_))));
}

#[test]
fn a_node_joins_and_takes_its_share() {
    let mut story = Story::begin();
    settle(&mut story);
    let before = placements(&story);
    story.must(Command::RegisterNode(new_node(4)));
    story.must(Command::RegisterNode(new_node(5)));
    story.must(Command::RegisterNode(new_node(6)));
    settle(&mut story);
    let moved = moves(&before, &placements(&story));
    assert!(moved.iter().all(|it| it.to.is_some_and(|node| node.0 > 3)));
    assert_eq!(moved.len(), 24, "half of 48 replicas");
    assert_eq!(story.directory.placements_on(NodeId(5)).count(), 8);
}

#[test]
fn a_node_that_waits_holds_nothing_until_it_joins() {
    let mut story = Story::begin();
    settle(&mut story);
    let before = placements(&story);
    story.must(Command::RegisterNode(NewNode { waits: true, ..new_node(4) }));
    assert_eq!(story.directory.node(NodeId(4)).unwrap().state, NodeState::Draining);
    settle(&mut story);
    assert_eq!(placements(&story), before);
    // It says so again after a restart, and once it has joined.
    story.must(Command::RegisterNode(NewNode { waits: true, ..new_node(4) }));
    story.must(Command::SetNodeState { id: NodeId(4), state: NodeState::Active });
    story.must(Command::RegisterNode(NewNode { waits: true, ..new_node(4) }));
    settle(&mut story);
    assert_eq!(story.directory.placements_on(NodeId(4)).count(), 8);
}

#[test]
fn joining_again_with_the_same_words_is_no_change() {
    let mut story = Story::begin();
    story.must(Command::SetNodeVoter { id: NodeId(3), voter: false });
    story.must(Command::RegisterNode(new_node(3)));
    assert!(story.last.is_empty());
    let moved = NewNode { address: "10.0.0.1:1".to_owned(), ..new_node(3) };
    assert!(matches!(story.apply(Command::RegisterNode(moved)), Err(DirectoryError::AlreadyExists(_))));
    story.must(Command::UpdateNodeAddress { id: NodeId(3), address: "10.0.0.1:1".to_owned() });
    assert_eq!(story.directory.node(NodeId(3)).unwrap().address, "10.0.0.1:1");
    let nonsense = Command::UpdateNodeAddress { id: NodeId(3), address: "nowhere".to_owned() };
    assert!(matches!(story.apply(nonsense), Err(DirectoryError::Invalid(_))));
}

#[test]
fn bad_nodes_are_refused() {
    let mut story = Story::begin();
    let good = new_node(4);
    for bad in [
        NewNode { name: "../x".to_owned(), ..good.clone() },
        NewNode { name: String::new(), ..good.clone() },
        NewNode { zone: "a b".to_owned(), ..good.clone() },
        NewNode { address: "host".to_owned(), ..good.clone() },
        NewNode { weight: 0, ..good.clone() },
        NewNode { weight: 65, ..good.clone() },
    ] {
        assert!(matches!(story.apply(Command::RegisterNode(bad.clone())), Err(DirectoryError::Invalid(_))), "{bad:?}");
    }
    let namesake = NewNode { name: "node1".to_owned(), ..good };
    assert!(matches!(story.apply(Command::RegisterNode(namesake)), Err(DirectoryError::AlreadyExists(_))));
}

#[test]
fn a_node_is_drained_removed_and_replaced_under_its_old_name() {
    let mut story = Story::begin();
    story.must(Command::RegisterNode(new_node(4)));
    settle(&mut story);
    let state = |id, state| Command::SetNodeState { id: NodeId(id), state };
    let refused = story.apply(state(2, NodeState::Removed)).unwrap_err();
    assert!(matches!(&refused, DirectoryError::InUse(text) if text.contains("shards are still wanted")), "{refused}");

    story.must(state(2, NodeState::Draining));
    settle(&mut story);
    assert_eq!(story.directory.placements_on(NodeId(2)).count(), 0);
    story.must(state(2, NodeState::Removed));
    assert!(!story.directory.node(NodeId(2)).unwrap().directory_voter);
    assert_eq!(story.directory.node_by_name("node2"), None);

    let back = story.apply(Command::RegisterNode(new_node(2))).unwrap_err();
    assert!(matches!(&back, DirectoryError::Invalid(text) if text.contains("fresh id")), "{back}");
    for never in [
        state(2, NodeState::Active),
        Command::UpdateNodeAddress { id: NodeId(2), address: "a:1".to_owned() },
        Command::SetNodeVoter { id: NodeId(2), voter: true },
        Command::set_placement(ShardId(0), vec![NodeId(2)]),
    ] {
        assert!(matches!(story.apply(never.clone()), Err(DirectoryError::Invalid(_))), "{never:?}");
    }
    story.must(Command::RegisterNode(NewNode { id: NodeId(22), ..new_node(2) }));
    assert_eq!(story.directory.node_by_name("node2").unwrap().id, NodeId(22));
    assert_eq!(story.reload().unwrap(), story.directory);
}

#[test]
fn a_drain_can_be_called_off() {
    let mut story = Story::begin();
    settle(&mut story);
    let before = placements(&story);
    story.must(Command::SetNodeState { id: NodeId(1), state: NodeState::Draining });
    story.must(Command::SetNodeState { id: NodeId(1), state: NodeState::Active });
    settle(&mut story);
    assert_eq!(placements(&story), before);
}

#[test]
fn the_last_active_node_and_the_last_voter_stay() {
    let mut story = Story::begin();
    for id in [1, 2] {
        story.must(Command::SetNodeVoter { id: NodeId(id), voter: false });
    }
    let last_voter = Command::SetNodeVoter { id: NodeId(3), voter: false };
    assert!(matches!(story.apply(last_voter), Err(DirectoryError::InUse(_))));
    let remove = Command::SetNodeState { id: NodeId(3), state: NodeState::Removed };
    assert!(matches!(story.apply(remove), Err(DirectoryError::InUse(_))));
    for id in [1, 3] {
        story.must(Command::SetNodeState { id: NodeId(id), state: NodeState::Draining });
    }
    let last_active = Command::SetNodeState { id: NodeId(2), state: NodeState::Draining };
    assert!(matches!(story.apply(last_active), Err(DirectoryError::InUse(_))));
}

#[test]
fn the_format_rises_when_every_node_knows_it_and_never_falls() {
    let mut story = Story::begin();
    let format_of = |story: &Story| story.directory.cluster().unwrap().format;
    let starts = |id: u64, format: u32| {
        let start = Start { starts: 1, run: format.into() };
        Command::NoteNodeStart { id: NodeId(id), before: Start::default(), now: start, format }
    };
    assert_eq!(format_of(&story), 1);
    // One version at a time.
    assert!(matches!(story.apply(starts(1, 3)), Err(DirectoryError::Invalid(_))));
    let set = |format| Command::SetFormat { format };
    let ids: Vec<u64> = story.directory.nodes().map(|node| node.id.0).collect();
    for id in &ids {
        assert!(matches!(story.apply(set(2)), Err(DirectoryError::InUse(_))));
        story.must(starts(*id, 2));
    }
    // Back down, while nothing is written in it.
    story.must(Command::NoteNodeStart {
        id: NodeId(1),
        before: Start { starts: 1, run: 2 },
        now: Start { starts: 2, run: 9 },
        format: 1,
    });
    assert!(matches!(story.apply(set(2)), Err(DirectoryError::InUse(_))));
    story.must(Command::NoteNodeStart {
        id: NodeId(1),
        before: Start { starts: 2, run: 9 },
        now: Start { starts: 3, run: 10 },
        format: 2,
    });
    story.must(set(2));
    assert_eq!(format_of(&story), 2);
    story.must(set(1));
    assert_eq!((format_of(&story), story.last.len()), (2, 0));
    let older = Command::NoteNodeStart {
        id: NodeId(1),
        before: Start { starts: 3, run: 10 },
        now: Start { starts: 4, run: 11 },
        format: 1,
    };
    let Err(DirectoryError::Invalid(text)) = story.apply(older) else { panic!("an older program takes part") };
    assert!(text.contains("knows formats up to 1, and the cluster writes format 2"), "{text}");
    let fresh = |format| Command::RegisterNode(NewNode { format, ..new_node(9) });
    assert!(matches!(story.apply(fresh(1)), Err(DirectoryError::Invalid(_))));
    assert!(matches!(story.apply(fresh(4)), Err(DirectoryError::Invalid(_))));
    story.must(fresh(3));
    assert_eq!(story.reload().unwrap(), story.directory);
}
