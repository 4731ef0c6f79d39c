//! What an operator may expect of the plan: even shares, few moves, distinct zones, no surprises.

use std::collections::{BTreeMap, BTreeSet};

use directory::{PlacementNode, moves};
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::{collection, test_runner::Config};
use types::{NodeId, ShardId};

type Wanted = BTreeMap<ShardId, Vec<NodeId>>;

fn node(id: u64, zone: &str, weight: u32) -> PlacementNode {
    PlacementNode { id: NodeId(id), zone: zone.to_owned(), weight, eligible: true }
}

/// The plan for shards that are equally heavy.
fn propose(shards: u32, replicas: u32, nodes: &[PlacementNode], current: &Wanted) -> Wanted {
    directory::propose(shards, replicas, nodes, current, &BTreeMap::new())
}

/// Equal nodes in one zone, with ids as scattered as real ones.
fn equal(count: u64) -> Vec<PlacementNode> {
    (1..=count).map(|number| node(number.wrapping_mul(0x9e37_79b9_7f4a_7c15), "here", 1)).collect()
}

fn in_zones(zones: u64, nodes_each: u64) -> Vec<PlacementNode> {
    let ids = (0..zones).flat_map(|zone| (0..nodes_each).map(move |number| (zone, number)));
    ids.map(|(zone, number)| node(1 + zone * 1000 + number, &format!("zone-{zone}"), 1)).collect()
}

fn fresh(shards: u32, replicas: u32, nodes: &[PlacementNode]) -> Wanted {
    propose(shards, replicas, nodes, &BTreeMap::new())
}

fn replicas_by_node(wanted: &Wanted) -> BTreeMap<NodeId, u32> {
    count(wanted.values().flatten())
}

fn leaders_by_node(wanted: &Wanted) -> BTreeMap<NodeId, u32> {
    count(wanted.values().filter_map(|nodes| nodes.first()))
}

fn count<'a>(nodes: impl Iterator<Item = &'a NodeId>) -> BTreeMap<NodeId, u32> {
    let mut counts = BTreeMap::new();
    nodes.for_each(|node| *counts.entry(*node).or_default() += 1);
    counts
}

/// Every node's count is the mean, rounded down or up.
fn assert_even(counts: &BTreeMap<NodeId, u32>, total: u32, nodes: usize, what: &str) {
    let nodes = nodes as u32;
    assert_eq!(counts.values().sum::<u32>(), total, "{what}");
    let low = total / nodes;
    assert!(low == 0 || counts.len() == nodes as usize, "{what}: {counts:?}");
    assert!(counts.values().all(|count| (low..=total.div_ceil(nodes)).contains(count)), "{what}: {counts:?}");
}

#[test]
fn fresh_clusters_of_all_sizes_are_even_in_replicas_and_in_leaders() {
    for (shards, counts) in [(16, [1, 3, 4, 5, 16, 40]), (256, [3, 4, 7, 12, 31, 100]), (4096, [3, 4, 5, 9, 30, 100])] {
        for nodes in counts.map(equal) {
            for replicas in [1, 2, 3, 5] {
                let what = format!("{shards} shards, {replicas} replicas, {} nodes", nodes.len());
                let wanted = fresh(shards, replicas, &nodes);
                let held = replicas.min(nodes.len() as u32);
                assert_eq!(wanted.len(), shards as usize, "{what}");
                assert!(wanted.values().all(|nodes| nodes.len() == held as usize), "{what}");
                assert_even(&replicas_by_node(&wanted), shards * held, nodes.len(), &what);
                assert_even(&leaders_by_node(&wanted), shards, nodes.len(), &what);
            }
        }
    }
}

#[test]
fn a_fourth_node_takes_a_quarter_and_nothing_else_moves() {
    for shards in [16, 64, 256, 1000, 4096] {
        for replicas in [1, 2, 3] {
            let before = fresh(shards, replicas, &equal(3));
            let nodes = equal(4);
            let after = propose(shards, replicas, &nodes, &before);
            let moved = moves(&before, &after);
            let newcomer = nodes[3].id;
            assert!(moved.iter().all(|it| it.to == Some(newcomer) && it.from.is_some()), "{moved:?}");
            assert!(moved.len() as u32 <= (shards * replicas).div_ceil(4), "{shards}: {}", moved.len());
            assert_even(&replicas_by_node(&after), shards * replicas, 4, "replicas");
            assert_even(&leaders_by_node(&after), shards, 4, "leaders");
        }
    }
}

#[test]
fn growing_node_by_node_never_moves_more_than_the_newcomers_share() {
    let (shards, replicas) = (512, 3);
    let mut wanted = fresh(shards, replicas, &equal(3));
    for count in 4..=40 {
        let nodes = equal(count);
        let after = propose(shards, replicas, &nodes, &wanted);
        let moved = moves(&wanted, &after);
        let newcomer = nodes[nodes.len() - 1].id;
        assert!(moved.iter().all(|it| it.to == Some(newcomer)), "{count} nodes");
        assert!(moved.len() as u32 <= (shards * replicas).div_ceil(count as u32), "{count} nodes: {}", moved.len());
        wanted = after;
    }
    assert_even(&replicas_by_node(&wanted), shards * replicas, 40, "at last");
}

#[test]
fn a_drained_node_gives_all_away_and_nothing_else_moves() {
    for (shards, replicas, count) in [(16, 3, 4), (256, 3, 5), (256, 1, 7), (4096, 3, 20)] {
        let mut nodes = equal(count);
        let before = fresh(shards, replicas, &nodes);
        let leaving = nodes[1].id;
        nodes[1].eligible = false;
        let after = propose(shards, replicas, &nodes, &before);
        let moved = moves(&before, &after);
        assert!(!after.values().flatten().any(|node| *node == leaving));
        let held = replicas_by_node(&before)[&leaving] as usize;
        // Where a vacancy fits no node with room, another replica must make way for it: that may happen a few times.
        let others = moved.iter().filter(|it| it.from != Some(leaving)).count();
        assert!(moved.len() - others == held && others <= held / 20, "{others} of {held}");
        assert_even(&replicas_by_node(&after), shards * replicas, count as usize - 1, "drained");

        nodes.remove(1);
        assert_eq!(propose(shards, replicas, &nodes, &after), after, "removing what was drained changes nothing");
    }
}

#[test]
fn a_node_that_is_lost_without_warning_is_planned_for_like_a_drained_one() {
    let mut nodes = equal(6);
    let before = fresh(128, 3, &nodes);
    let gone = nodes.remove(2);
    let mut draining = nodes.clone();
    draining.push(PlacementNode { eligible: false, ..gone });
    assert_eq!(propose(128, 3, &nodes, &before), propose(128, 3, &draining, &before));
}

#[test]
fn one_zone_lost_leaves_every_shard_a_majority() {
    let wanted = fresh(256, 3, &in_zones(3, 4));
    for nodes in wanted.values() {
        let zones: BTreeSet<u64> = nodes.iter().map(|node| node.0 / 1000).collect();
        assert_eq!(zones.len(), 3, "{nodes:?}");
    }
    assert_even(&replicas_by_node(&wanted), 256 * 3, 12, "zones");
    // Two zones: two replicas in one of them, never three.
    for nodes in fresh(256, 3, &in_zones(2, 4)).values() {
        let zones: BTreeSet<u64> = nodes.iter().map(|node| node.0 / 1000).collect();
        assert_eq!(zones.len(), 2, "{nodes:?}");
    }
}

#[test]
fn a_third_zone_makes_shards_that_huddled_spread_out() {
    let nodes = in_zones(3, 3);
    let before = fresh(64, 3, &nodes[..6]);
    let after = propose(64, 3, &nodes, &before);
    assert!(after.values().all(|nodes| nodes.iter().map(|node| node.0 / 1000).collect::<BTreeSet<_>>().len() == 3));
    assert_eq!(moves(&before, &after).len(), 64, "one replica of each shard goes to the new zone");
}

#[test]
fn distinct_zones_weigh_more_than_even_nodes() {
    // Zone a has one node: it must hold a replica of each shard, or some shard would have two in one zone.
    let nodes = [node(1, "a", 1), node(2, "b", 1), node(3, "b", 1), node(4, "c", 1), node(5, "c", 1), node(6, "c", 1)];
    let counts = replicas_by_node(&fresh(60, 3, &nodes));
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [60, 30, 30, 20, 20, 20]);
}

#[test]
fn twice_the_weight_holds_and_leads_twice_as_much() {
    let nodes = [node(1, "x", 2), node(2, "x", 1), node(3, "x", 1), node(4, "x", 4), node(5, "x", 2)];
    let wanted = fresh(1000, 2, &nodes);
    assert_eq!(replicas_by_node(&wanted).into_values().collect::<Vec<_>>(), [400, 200, 200, 800, 400]);
    assert_eq!(leaders_by_node(&wanted).into_values().collect::<Vec<_>>(), [200, 100, 100, 400, 200]);
}

#[test]
fn a_cluster_of_one_grows_to_three_without_moving_what_it_has() {
    let one = fresh(16, 3, &equal(1));
    assert!(one.values().all(|nodes| nodes.len() == 1));
    let two = propose(16, 3, &equal(2), &one);
    let three = propose(16, 3, &equal(3), &two);
    assert!(moves(&one, &two).iter().all(|it| it.from.is_none()));
    assert!(moves(&two, &three).iter().all(|it| it.from.is_none()));
    assert!(three.values().all(|nodes| nodes.len() == 3));
    assert_even(&leaders_by_node(&three), 16, 3, "leaders");
}

#[test]
fn without_an_eligible_node_all_stays_as_it_is() {
    let mut nodes = equal(3);
    let before = fresh(16, 2, &nodes);
    nodes.iter_mut().for_each(|node| node.eligible = false);
    assert_eq!(propose(16, 2, &nodes, &before), before);
    assert!(fresh(4, 3, &[]).values().all(Vec::is_empty));
    assert!(propose(0, 3, &equal(3), &BTreeMap::new()).is_empty());
}

#[test]
fn shards_that_are_not_and_nodes_named_twice_are_forgotten() {
    let nodes = equal(3);
    let twice = vec![nodes[0].id, nodes[0].id, NodeId(5), nodes[1].id];
    let current = BTreeMap::from([(ShardId(0), twice), (ShardId(99), vec![nodes[0].id])]);
    let wanted = propose(1, 2, &nodes, &current);
    assert_eq!(wanted.len(), 1);
    assert_eq!(wanted[&ShardId(0)].iter().collect::<BTreeSet<_>>().len(), 2);
}

/// Any nodes in few zones, some draining, and a placement that may have been made for quite other nodes.
fn situation() -> impl Strategy<Value = (u32, u32, Vec<PlacementNode>, Wanted)> {
    let one = (0u64..30, 0u8..4, 1u32..5, any::<bool>(), any::<bool>());
    let nodes = collection::vec(one, 1..20).prop_map(|nodes| {
        let distinct: BTreeMap<u64, _> = nodes.into_iter().map(|node| (node.0, node)).collect();
        let build = |(id, zone, weight, a, b): (u64, u8, u32, bool, bool)| PlacementNode {
            eligible: a || b,
            ..node(id, &format!("z{zone}"), weight)
        };
        distinct.into_values().map(build).collect::<Vec<_>>()
    });
    (1u32..80, 1u32..=5, nodes).prop_flat_map(|(shards, replicas, nodes)| {
        let owners = collection::vec(0u64..30, 0..6).prop_map(|ids| ids.into_iter().map(NodeId).collect());
        let current = collection::btree_map((0..shards + 3).prop_map(ShardId), owners, 0..80);
        (Just(shards), Just(replicas), Just(nodes), current)
    })
}

/// The most replicas in one zone that a shard of so many replicas can be held to.
fn zone_bound(nodes: &[&PlacementNode], replicas: usize) -> usize {
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    nodes.iter().for_each(|node| *sizes.entry(&node.zone).or_default() += 1);
    (1..=replicas).find(|bound| sizes.values().map(|size| size.min(bound)).sum::<usize>() >= replicas).unwrap()
}

proptest! {
    #![proptest_config(Config { cases: 400, failure_persistence: None, ..Config::default() })]

    #[test]
    fn every_plan_keeps_the_rules_and_is_content_with_itself((shards, replicas, nodes, current) in situation()) {
        let wanted = propose(shards, replicas, &nodes, &current);
        prop_assert_eq!(&propose(shards, replicas, &nodes, &current), &wanted, "not deterministic");
        let mut shuffled = nodes.clone();
        shuffled.reverse();
        prop_assert_eq!(&propose(shards, replicas, &shuffled, &current), &wanted, "depends on the order of nodes");
        prop_assert_eq!(&propose(shards, replicas, &nodes, &wanted), &wanted, "not content with itself");

        let eligible: Vec<&PlacementNode> = nodes.iter().filter(|node| node.eligible).collect();
        if eligible.is_empty() {
            return Ok(());
        }
        let held = (replicas as usize).min(eligible.len());
        let bound = zone_bound(&eligible, held);
        let zones: BTreeMap<NodeId, &str> = eligible.iter().map(|node| (node.id, node.zone.as_str())).collect();
        for (shard, nodes) in &wanted {
            prop_assert_eq!(nodes.iter().collect::<BTreeSet<_>>().len(), held, "{:?} {:?}", shard, nodes);
            prop_assert!(nodes.iter().all(|node| zones.contains_key(node)));
            let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
            nodes.iter().for_each(|node| *in_zone.entry(zones[node]).or_default() += 1);
            prop_assert!(in_zone.values().all(|count| *count <= bound), "{:?} {:?}", shard, nodes);
        }

        // Nobody could be given less without giving more to somebody who has at least as much for their weight: so
        // no node is above its share by more than rounding unless zones or a lack of nodes leave no choice.
        let counts = replicas_by_node(&wanted);
        let level = |node: &PlacementNode, more: u32| {
            f64::from(counts.get(&node.id).copied().unwrap_or(0) + more) / f64::from(node.weight)
        };
        for giver in &eligible {
            for taker in eligible.iter().filter(|taker| taker.zone == giver.zone && taker.id != giver.id) {
                let full = counts.get(&taker.id).copied().unwrap_or(0) >= shards;
                let one_each = 1.0 / f64::from(giver.weight) + 1.0 / f64::from(taker.weight);
                prop_assert!(full || level(giver, 0) <= level(taker, 0) + one_each, "{counts:?}");
            }
        }
    }

    #[test]
    fn with_equal_nodes_shares_are_even_whatever_was_before(
        shards in 1u32..300, replicas in 1u32..=5, count in 1u64..25, other in 1u64..25,
    ) {
        let before = fresh(shards, replicas, &equal(other));
        let nodes = equal(count);
        let after = propose(shards, replicas, &nodes, &before);
        let held = u64::from(replicas).min(count) as u32;
        assert_even(&replicas_by_node(&after), shards * held, nodes.len(), "replicas");
        assert_even(&leaders_by_node(&after), shards, nodes.len(), "leaders");
        // Only newcomers receive when nodes are added to at least R.
        if count >= other && other >= u64::from(replicas) {
            let old: BTreeSet<NodeId> = equal(other).iter().map(|node| node.id).collect();
            let moved = moves(&before, &after);
            prop_assert!(moved.iter().all(|it| it.to.is_some_and(|to| !old.contains(&to))), "{moved:?}");
        }
    }
}
