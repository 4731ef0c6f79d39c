//! What happens to a rebalance: it is planned, its moves take turns, it is paused, resumed, joined, replaced, aborted.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Story, new_node};
use directory::{Command, DirectoryError, NodeState, Placement, Rebalance, RebalanceState, Reply, Start};
use types::{NodeId, ShardId};

const START: u64 = 1_800_000_000;
/// Of each start.
const OCTETS: u64 = 1_000;

/// Five nodes, every shard on nodes 1, 2 and 3, all groups alive.
fn settled() -> Story {
    let mut story = Story::begin();
    for number in [4, 5] {
        story.must(Command::RegisterNode(new_node(number)));
    }
    let wanted = (0..16).map(|shard| (ShardId(shard), nodes(&[1, 2, 3]))).collect();
    story.must(Command::SetPlacements { wanted });
    for shard in (0..16).map(ShardId) {
        story.must(Command::MarkShardInitialised { shard });
    }
    story
}

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

fn start(targets: &[(u32, &[u64])], replace: bool) -> Command {
    let targets = targets.iter().map(|(shard, ids)| (ShardId(*shard), nodes(ids))).collect();
    Command::StartRebalance { targets, replace, unix_s: START, octets: OCTETS }
}

fn begin(shards: &[u32]) -> Command {
    Command::BeginMoves { shards: shards.iter().copied().map(ShardId).collect() }
}

fn end(shards: &[u32]) -> Command {
    Command::EndMoves { shards: shards.iter().copied().map(ShardId).collect(), seen: None }
}

fn set(state: RebalanceState) -> Command {
    Command::SetRebalanceState { state }
}

fn rebalance(story: &Story) -> Rebalance {
    story.directory.rebalance().unwrap().clone()
}

fn placement(story: &Story, shard: u32) -> Placement {
    story.directory.placement(ShardId(shard)).unwrap().clone()
}

/// Wanted, planned and previous nodes of a shard.
fn lists(story: &Story, shard: u32) -> [Vec<u64>; 3] {
    let Placement { wanted, planned, previous, .. } = placement(story, shard);
    [wanted, planned, previous].map(|nodes| nodes.into_iter().map(|node| node.0).collect())
}

/// Shards moving and shards queued.
fn left(story: &Story) -> (usize, usize) {
    (story.directory.moving().count(), story.directory.queued().count())
}

#[test]
fn moves_are_planned_take_turns_and_end() {
    let mut story = settled();
    assert_eq!(story.directory.rebalance(), None);
    story.must(start(&[(0, &[4, 2, 3]), (1, &[1, 5, 3]), (2, &[1, 2, 3])], true));
    let began = story.directory.revision();
    let expected =
        Rebalance { id: began, state: RebalanceState::Running, started_unix_s: START, moves: 2, octets: OCTETS };
    assert_eq!(rebalance(&story), expected);
    assert_eq!(lists(&story, 0), [vec![1, 2, 3], vec![4, 2, 3], vec![]]);
    assert_eq!(lists(&story, 2), [vec![1, 2, 3], vec![], vec![]], "it is there already");
    assert_eq!(left(&story), (0, 2));

    story.must(begin(&[0]));
    assert_eq!(lists(&story, 0), [vec![4, 2, 3], vec![], vec![1, 2, 3]]);
    assert_eq!(placement(&story, 0).revision, story.directory.revision());
    assert_eq!(left(&story), (1, 1));
    story.must(begin(&[0, 2]));
    assert!(story.last.is_empty(), "one has its turn already, one has nothing to move");

    story.must(end(&[0]));
    assert_eq!(lists(&story, 0), [vec![4, 2, 3], vec![], vec![]]);
    assert_eq!(rebalance(&story).state, RebalanceState::Running);
    story.must(begin(&[1]));
    story.must(end(&[1]));
    assert_eq!(rebalance(&story), Rebalance { state: RebalanceState::Finished, ..expected });
    story.must(end(&[1]));
    assert!(story.last.is_empty());
    assert_eq!(story.reload().unwrap(), story.directory);
}

#[test]
fn another_preferred_leader_is_wanted_at_once_and_is_no_move() {
    let mut story = settled();
    story.must(start(&[(0, &[2, 1, 3])], true));
    assert_eq!(lists(&story, 0), [vec![2, 1, 3], vec![], vec![]]);
    assert_eq!(story.directory.rebalance(), None, "nothing is to move");

    story.must(start(&[(0, &[4, 1, 3]), (1, &[3, 2, 1])], true));
    assert_eq!(rebalance(&story).moves, 1);
    assert_eq!(lists(&story, 1), [vec![3, 2, 1], vec![], vec![]]);
    story.must(start(&[(0, &[1, 2, 3])], false));
    assert_eq!(lists(&story, 0), [vec![1, 2, 3], vec![], vec![]], "what was planned is called off");
    assert_eq!(rebalance(&story).state, RebalanceState::Finished);
    assert_eq!(rebalance(&story).moves, 0);
}

#[test]
fn leaders_are_preferred_where_nothing_moves() {
    let mut story = settled();
    story.must(start(&[(0, &[4, 2, 3]), (1, &[1, 5, 3])], true));
    story.must(begin(&[0]));
    let prefer = |shards: &[(u32, u64)]| Command::PreferLeaders {
        leaders: shards.iter().map(|(shard, node)| (ShardId(*shard), NodeId(*node))).collect(),
    };
    let before = rebalance(&story);
    // One moves, one is to move, one has no replica on the node any more: they stay as they are.
    story.must(prefer(&[(0, 3), (1, 3), (2, 3), (3, 4)]));
    assert_eq!(lists(&story, 0), [vec![4, 2, 3], vec![], vec![1, 2, 3]]);
    assert_eq!(lists(&story, 1), [vec![1, 2, 3], vec![1, 5, 3], vec![]]);
    assert_eq!(lists(&story, 2), [vec![3, 1, 2], vec![], vec![]]);
    assert_eq!(lists(&story, 3), [vec![1, 2, 3], vec![], vec![]]);
    assert_eq!(rebalance(&story), before);
    let refused = story.apply(prefer(&[(99, 1)]));
    assert!(matches!(refused, Err(DirectoryError::NotFound(_))), "{refused:?}");
}

#[test]
fn a_node_that_is_drained_leads_nothing_that_another_could_lead() {
    let mut story = settled();
    let home = |story: &Story, shard| story.directory.home(&placement(story, shard)).map(|node| node.0);
    assert_eq!(home(&story, 0), Some(1));
    story.must(Command::SetNodeState { id: NodeId(1), state: NodeState::Draining });
    assert_eq!(home(&story, 0), Some(2));
    // Not to one that goes with the same plan, unless nobody else is left.
    story.must(start(&[(0, &[4, 5, 3]), (1, &[4, 5, 1])], true));
    assert_eq!([0, 1].map(|shard| home(&story, shard)), [Some(3), Some(2)]);
    for id in [2, 3].map(NodeId) {
        story.must(Command::SetNodeState { id, state: NodeState::Draining });
    }
    assert_eq!(home(&story, 0), Some(1), "somebody has to");
    story.must(Command::SetNodeState { id: NodeId(1), state: NodeState::Active });
    assert_eq!(home(&story, 0), Some(1));
}

#[test]
fn a_paused_rebalance_begins_no_moves_until_it_is_resumed() {
    let mut story = settled();
    story.must(start(&[(0, &[4, 2, 3]), (1, &[4, 2, 3])], true));
    story.must(begin(&[0]));
    story.must(set(RebalanceState::Paused));
    story.must(begin(&[1]));
    assert!(story.last.is_empty());
    story.must(end(&[0]));
    assert_eq!(left(&story), (0, 1));

    // One more by hand joins it, and does not resume it.
    story.must(start(&[(2, &[5, 2, 3])], false));
    assert_eq!((rebalance(&story).state, rebalance(&story).moves), (RebalanceState::Paused, 3));
    story.must(set(RebalanceState::Paused));
    assert!(story.last.is_empty(), "said twice it is the same");

    story.must(set(RebalanceState::Running));
    story.must(begin(&[1, 2]));
    story.must(end(&[1, 2]));
    assert_eq!((rebalance(&story).state, rebalance(&story).moves), (RebalanceState::Finished, 3));
}

#[test]
fn a_rebalance_whose_last_move_ends_while_it_is_paused_is_finished_when_resumed() {
    let mut story = settled();
    story.must(start(&[(0, &[4, 2, 3])], true));
    story.must(begin(&[0]));
    story.must(set(RebalanceState::Paused));
    story.must(end(&[0]));
    assert_eq!(rebalance(&story).state, RebalanceState::Paused);
    story.must(set(RebalanceState::Running));
    assert_eq!(rebalance(&story).state, RebalanceState::Finished);
}

#[test]
fn a_new_plan_replaces_what_was_queued_and_runs() {
    let mut story = settled();
    story.must(start(&[(0, &[4, 2, 3]), (1, &[4, 2, 3]), (2, &[4, 2, 3])], true));
    story.must(begin(&[0]));
    story.must(set(RebalanceState::Paused));
    story.must(start(&[(1, &[5, 2, 3])], true));
    let revision = story.directory.revision();
    assert_eq!(lists(&story, 0), [vec![4, 2, 3], vec![], vec![1, 2, 3]], "a move under way goes on");
    assert_eq!(lists(&story, 1), [vec![1, 2, 3], vec![5, 2, 3], vec![]]);
    assert_eq!(lists(&story, 2), [vec![1, 2, 3], vec![], vec![]]);
    let expected =
        Rebalance { id: revision, state: RebalanceState::Running, started_unix_s: START, moves: 2, octets: OCTETS };
    assert_eq!(rebalance(&story), expected);

    story.must(start(&[(1, &[5, 2, 3])], true));
    assert!(story.last.is_empty(), "the same plan again changes nothing");
    // A shard that is moving can be planned to move on: that takes two turns.
    story.must(start(&[(0, &[4, 5, 3])], false));
    assert_eq!(lists(&story, 0), [vec![4, 2, 3], vec![4, 5, 3], vec![1, 2, 3]]);
    assert_eq!(rebalance(&story), Rebalance { moves: 3, octets: 2 * OCTETS, ..expected });
    story.must(begin(&[0]));
    assert!(story.last.is_empty());
    story.must(end(&[0]));
    story.must(begin(&[0, 1]));
    story.must(end(&[0, 1]));
    assert_eq!(lists(&story, 0), [vec![4, 5, 3], vec![], vec![]]);
    assert_eq!(rebalance(&story).state, RebalanceState::Finished);
    // After the end one more by hand is a rebalance of its own.
    story.must(start(&[(7, &[4, 2, 3])], false));
    assert_eq!((rebalance(&story).id, rebalance(&story).moves), (story.directory.revision(), 1));
}

#[test]
fn a_move_to_a_node_that_is_gone_gives_way_to_what_is_planned() {
    let mut story = settled();
    story.must(start(&[(0, &[4, 2, 3]), (1, &[4, 2, 3]), (2, &[1, 2, 5])], true));
    story.must(begin(&[0, 1, 2]));
    let state = |id, state| Command::SetNodeState { id: NodeId(id), state };
    story.must(state(4, NodeState::Draining));
    story.must(start(&[(0, &[5, 2, 3]), (1, &[3, 1, 2]), (2, &[1, 4, 5])], true));
    assert_eq!(rebalance(&story).moves, 6);
    story.must(begin(&[0, 1, 2]));
    assert_eq!(lists(&story, 0), [vec![5, 2, 3], vec![], vec![1, 2, 3]], "elsewhere");
    assert_eq!(lists(&story, 1), [vec![3, 1, 2], vec![], vec![4, 2, 3]], "back");
    assert_eq!(lists(&story, 2), [vec![1, 2, 5], vec![1, 4, 5], vec![1, 2, 3]], "its target is well");
    assert_eq!((left(&story), rebalance(&story).moves), ((3, 1), 4));
    assert_eq!(story.reload().unwrap(), story.directory);

    // The way back is one, too: from a node that is given up while it was on it.
    story.must(state(4, NodeState::Active));
    story.must(set(RebalanceState::Aborted));
    assert_eq!(lists(&story, 0), [vec![1, 2, 3], vec![], vec![5, 2, 3]]);
    story.must(state(1, NodeState::Draining));
    story.must(start(&[(0, &[4, 2, 3])], true));
    story.must(begin(&[0]));
    assert_eq!(lists(&story, 0), [vec![4, 2, 3], vec![], vec![5, 2, 3]]);
    story.must(end(&[0]));
    assert_eq!(lists(&story, 0), [vec![4, 2, 3], vec![], vec![]]);
}

#[test]
fn a_node_is_given_up_with_a_plan_for_what_it_holds_or_not_at_all() {
    let mut story = settled();
    let give_up = |id, targets: &[(u32, &[u64])]| match start(targets, true) {
        Command::StartRebalance { targets, unix_s, octets, .. } => {
            Command::GiveUpNode { id: NodeId(id), targets, unix_s, octets }
        }
        other => panic!("{other:?}"),
    };
    let state = |story: &Story, id| story.directory.node(NodeId(id)).unwrap().state;
    assert!(story.apply(give_up(3, &[(0, &[1, 2, 99])])).is_err());
    assert_eq!(state(&story, 3), NodeState::Active);
    story.must(give_up(3, &[(0, &[1, 2, 4]), (1, &[1, 2, 5])]));
    assert_eq!((state(&story, 3), left(&story)), (NodeState::Draining, (0, 2)));
    assert_eq!((rebalance(&story).state, rebalance(&story).moves), (RebalanceState::Running, 2));
    story.must(give_up(3, &[(0, &[1, 2, 4]), (1, &[1, 2, 5])]));
    assert!(story.last.is_empty(), "said twice it is the same");

    story.must(set(RebalanceState::Paused));
    let refused = story.apply(give_up(2, &[(0, &[1, 4, 5])]));
    assert!(matches!(refused, Err(DirectoryError::InUse(_))), "{refused:?}");
    assert_eq!(state(&story, 2), NodeState::Active);
}

#[test]
fn an_empty_plan_that_replaces_one_ends_it() {
    let mut story = settled();
    story.must(start(&[(0, &[4, 2, 3])], true));
    story.must(start(&[], true));
    assert_eq!(left(&story), (0, 0));
    assert_eq!(rebalance(&story).state, RebalanceState::Finished);
    story.must(start(&[], true));
    assert!(story.last.is_empty());
}

#[test]
fn an_aborted_rebalance_goes_back_where_it_was_moving() {
    let mut story = settled();
    story.must(start(&[(0, &[4, 2, 3]), (1, &[4, 2, 3]), (2, &[4, 2, 3])], true));
    story.must(begin(&[0, 1]));
    story.must(end(&[0]));
    story.must(set(RebalanceState::Aborted));
    assert_eq!(lists(&story, 0), [vec![4, 2, 3], vec![], vec![]], "what has moved stays");
    assert_eq!(lists(&story, 1), [vec![1, 2, 3], vec![], vec![4, 2, 3]], "what was moving goes back");
    assert_eq!(lists(&story, 2), [vec![1, 2, 3], vec![], vec![]], "what waited stays");
    story.must(begin(&[2]));
    assert!(story.last.is_empty());
    story.must(end(&[1]));
    assert_eq!((rebalance(&story).state, rebalance(&story).moves), (RebalanceState::Aborted, 3));
    assert_eq!(story.reload().unwrap(), story.directory);
}

/// Who says that a move has ended has looked at the groups before, and may know an older directory.
#[test]
fn only_the_move_that_was_seen_to_arrive_is_ended() {
    let mut story = settled();
    story.must(start(&[(0, &[4, 2, 3]), (1, &[4, 2, 3])], true));
    story.must(begin(&[0, 1]));
    let seen = Some(story.directory.revision());
    let end_seen = |shards: &[u32]| match end(shards) {
        Command::EndMoves { shards, .. } => Command::EndMoves { shards, seen },
        other => panic!("{other:?}"),
    };
    story.must(end_seen(&[1]));
    assert_eq!(lists(&story, 1), [vec![4, 2, 3], vec![], vec![]]);
    story.must(set(RebalanceState::Aborted));
    story.must(end_seen(&[0]));
    assert_eq!(lists(&story, 0), [vec![1, 2, 3], vec![], vec![4, 2, 3]], "it goes back, and is not there yet");
}

#[test]
fn a_state_that_makes_no_sense_is_refused_with_the_reason() {
    let mut story = settled();
    let refused = |story: &mut Story, state, reason: &str| match story.apply(set(state)) {
        Err(DirectoryError::Invalid(text)) => assert!(text.contains(reason), "{text}"),
        other => panic!("{state:?}: {other:?}"),
    };
    for state in [RebalanceState::Running, RebalanceState::Paused, RebalanceState::Aborted] {
        refused(&mut story, state, "there is no rebalance");
    }
    story.must(start(&[(0, &[4, 2, 3])], true));
    refused(&mut story, RebalanceState::Finished, "once all has moved");
    story.must(begin(&[0]));
    story.must(end(&[0]));
    for state in [RebalanceState::Running, RebalanceState::Paused, RebalanceState::Aborted] {
        refused(&mut story, state, "is finished");
    }
    story.must(start(&[(0, &[1, 2, 3])], true));
    story.must(set(RebalanceState::Aborted));
    for state in [RebalanceState::Running, RebalanceState::Paused, RebalanceState::Aborted] {
        refused(&mut story, state, "was aborted");
    }
}

#[test]
fn a_plan_is_taken_whole_or_not_at_all() {
    let mut story = settled();
    for bad in [&[][..], &[1, 1], &[99], &[1, 2, 3, 4, 5, 6]] {
        assert!(story.apply(start(&[(0, &[4, 2, 3]), (1, bad)], true)).is_err(), "{bad:?}");
    }
    for beyond in [start(&[(16, &[1])], true), begin(&[16]), end(&[16])] {
        assert!(matches!(story.apply(beyond), Err(DirectoryError::NotFound(_))));
    }
    let mut unplaced = Story::begin();
    assert!(matches!(unplaced.apply(start(&[(0, &[1])], true)), Err(DirectoryError::NotFound(_))));
}

#[test]
fn a_shard_whose_group_is_not_known_to_live_does_not_move() {
    let mut story = Story::begin();
    story.must(Command::set_placement(ShardId(0), nodes(&[1, 2])));
    story.must(start(&[(0, &[3, 2])], true));
    story.must(begin(&[0]));
    assert!(story.last.is_empty());
    story.must(Command::MarkShardInitialised { shard: ShardId(0) });
    assert_eq!(lists(&story, 0), [vec![1, 2], vec![3, 2], vec![]]);
    story.must(begin(&[0]));
    assert_eq!(lists(&story, 0), [vec![3, 2], vec![], vec![1, 2]]);
}

#[test]
fn a_placement_set_by_hand_is_a_move_at_once_and_forgets_the_plan() {
    let mut story = settled();
    story.must(Command::set_placement(ShardId(3), nodes(&[4, 2, 3])));
    assert_eq!(lists(&story, 3), [vec![4, 2, 3], vec![], vec![1, 2, 3]]);
    story.must(start(&[(0, &[4, 2, 3]), (1, &[4, 2, 3])], true));
    assert_eq!(rebalance(&story).moves, 3);
    story.must(begin(&[0]));
    for shard in [0, 1] {
        story.must(Command::set_placement(ShardId(shard), nodes(&[5, 2, 3])));
        assert_eq!(lists(&story, shard), [vec![5, 2, 3], vec![], vec![1, 2, 3]]);
    }
    story.must(Command::set_placement(ShardId(1), nodes(&[2, 5, 3])));
    assert_eq!(lists(&story, 1), [vec![2, 5, 3], vec![], vec![1, 2, 3]]);
    assert_eq!(rebalance(&story).moves, 3);
    story.must(end(&[0, 1, 3]));
    assert_eq!(rebalance(&story).state, RebalanceState::Finished);
}

#[test]
fn a_node_that_any_list_names_cannot_be_removed() {
    let mut story = settled();
    let remove = |id| Command::SetNodeState { id: NodeId(id), state: NodeState::Removed };
    let named = |story: &Story, id| story.directory.placements_naming(NodeId(id)).count();
    story.must(start(&[(0, &[4, 2, 3])], true));
    assert_eq!((named(&story, 4), named(&story, 5)), (1, 0));
    assert!(matches!(story.apply(remove(4)), Err(DirectoryError::InUse(_))), "planned");
    story.must(begin(&[0]));
    for shard in 1..16 {
        story.must(Command::set_placement(ShardId(shard), nodes(&[5, 2, 3])));
    }
    assert_eq!(story.directory.placements_on(NodeId(1)).count(), 0);
    assert!(matches!(story.apply(remove(1)), Err(DirectoryError::InUse(_))), "moves away are under way");
    story.must(end(&(0..16).collect::<Vec<_>>()));
    assert_eq!(named(&story, 1), 0);
    assert_eq!(story.must(remove(1)), Reply::Done);
    let gone = story.apply(start(&[(0, &[1, 2, 3])], true));
    assert!(matches!(gone, Err(DirectoryError::Invalid(_))), "{gone:?}");
}

#[test]
fn zone_and_weight_of_a_node_can_change() {
    let mut story = settled();
    let update = |zone: &str, weight| Command::UpdateNode { id: NodeId(4), zone: zone.to_owned(), weight };
    story.must(update("attic", 7));
    let node = story.directory.node(NodeId(4)).unwrap();
    assert_eq!((node.zone.as_str(), node.weight, node.name.as_str()), ("attic", 7, "node4"));
    story.must(update("attic", 7));
    assert!(story.last.is_empty());
    for bad in [update("a b", 1), update("attic", 0), update("attic", 65)] {
        assert!(matches!(story.apply(bad), Err(DirectoryError::Invalid(_))));
    }
    let unknown = Command::UpdateNode { id: NodeId(99), zone: "attic".to_owned(), weight: 1 };
    assert!(matches!(story.apply(unknown), Err(DirectoryError::NotFound(_))));
}

#[test]
fn a_process_on_an_old_copy_of_a_nodes_disks_cannot_say_that_it_starts() {
    let mut story = settled();
    let at = |starts, run| Start { starts, run };
    let start = |before, now| Command::NoteNodeStart { id: NodeId(4), before, now, format: 1 };
    story.must(start(at(2, 70), at(3, 71)));
    assert_eq!(story.directory.node(NodeId(4)).unwrap().start, at(3, 71));
    // The same process says it again.
    story.must(start(at(2, 70), at(3, 71)));
    assert!(story.last.is_empty());
    // An old copy, and one that has started as often since.
    for old in [start(at(2, 70), at(3, 72)), start(at(1, 69), at(2, 72)), start(at(3, 72), at(4, 73))] {
        assert!(matches!(story.apply(old), Err(DirectoryError::Invalid(_))));
    }
    story.must(start(at(3, 71), at(4, 74)));
    // A start of which the directory never heard lies between.
    story.must(start(at(5, 75), at(6, 76)));
    assert_eq!(story.reload().unwrap(), story.directory);
}

/// Moves that were planned are nothing without the rebalance that they are of.
#[test]
fn a_lost_rebalance_is_noticed() {
    let mut story = settled();
    story.must(start(&[(0, &[4, 2, 3])], true));
    let mut disk: BTreeMap<_, _> = story.disk.clone();
    disk.remove(&b"r"[..]);
    let loaded = directory::Directory::load(disk.into_iter());
    assert!(matches!(loaded, Err(DirectoryError::Corrupt { .. })), "{loaded:?}");
}

#[test]
fn shards_that_are_set_aside_count_nowhere() {
    let story = settled();
    let aside: BTreeSet<ShardId> = (0..8).map(ShardId).collect();
    let planned = story.directory.propose_rebalance(&BTreeMap::new(), &aside);
    let mut counts: BTreeMap<NodeId, u32> = BTreeMap::new();
    for shard in (8..16).map(ShardId) {
        let wanted = || story.directory.placement(shard).unwrap().wanted.clone();
        let after = planned.get(&shard).cloned().unwrap_or_else(wanted);
        after.into_iter().for_each(|node| *counts.entry(node).or_default() += 1);
    }
    // Node 3 is alone in its zone; the others share the rest.
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [4, 4, 8, 4, 4]);
    // What comes back goes where it would have gone.
    let all = story.directory.propose_rebalance(&BTreeMap::new(), &BTreeSet::new());
    assert!(aside.iter().all(|shard| planned.get(shard) == all.get(shard)), "{planned:?}");
}
