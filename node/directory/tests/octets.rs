//! What an operator may expect of the plan where shards are not equally heavy: even counts come first, and octets even
//! out within them.

use std::collections::{BTreeMap, BTreeSet};

use directory::{PlacementNode, Warning, moves, propose, warnings};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use proptest::{collection, test_runner::Config};
use types::{NodeId, ShardId};

type Wanted = BTreeMap<ShardId, Vec<NodeId>>;
type Octets = BTreeMap<ShardId, u64>;

const MIB: u64 = 1 << 20;

fn equal(count: u64) -> Vec<PlacementNode> {
    let node = |id| PlacementNode { id: NodeId(id), zone: "here".to_owned(), weight: 1, eligible: true };
    (1..=count).map(node).collect()
}

fn fresh(shards: u32, replicas: u32, nodes: &[PlacementNode]) -> Wanted {
    propose(shards, replicas, nodes, &BTreeMap::new(), &BTreeMap::new())
}

/// As users are: the heaviest shard has twice what the second has, three times what the third has, and so on; shards of
/// all sizes stand side by side.
fn uneven(shards: u32) -> Octets {
    let place = |shard: u32| u64::from(shard.wrapping_mul(2_654_435_761) % shards);
    (0..shards).map(|shard| (ShardId(shard), u64::from(shards) * 64 * MIB / (1 + place(shard)))).collect()
}

fn by_node(wanted: &Wanted, octets: impl Fn(&ShardId) -> u64) -> BTreeMap<NodeId, u64> {
    let mut sums = BTreeMap::new();
    for (shard, nodes) in wanted {
        nodes.iter().for_each(|node| *sums.entry(*node).or_default() += octets(shard));
    }
    sums
}

fn loads(wanted: &Wanted, octets: &Octets) -> BTreeMap<NodeId, u64> {
    by_node(wanted, |shard| octets.get(shard).copied().unwrap_or_default())
}

fn counts(wanted: &Wanted) -> BTreeMap<NodeId, u64> {
    by_node(wanted, |_| 1)
}

/// The largest load in percent of the mean.
fn largest_percent(loads: &BTreeMap<NodeId, u64>) -> u64 {
    loads.values().max().unwrap() * 100 * loads.len() as u64 / loads.values().sum::<u64>()
}

#[test]
fn equally_heavy_shards_are_planned_for_like_weightless_ones() {
    for (shards, replicas) in [(16, 1), (64, 3), (1000, 2)] {
        let before = fresh(shards, replicas, &equal(3));
        let nodes = equal(4);
        let plan = |octets: &Octets| propose(shards, replicas, &nodes, &before, octets);
        let same = (0..shards).map(|shard| (ShardId(shard), 5 * MIB)).collect();
        assert_eq!(plan(&same), plan(&BTreeMap::new()));
        let moved = moves(&before, &plan(&same));
        assert!(moved.iter().all(|it| it.to == Some(NodeId(4)) && it.from.is_some()), "{moved:?}");
        assert_eq!(moved.len() as u32, shards * replicas / 4);
    }
}

#[test]
fn a_fourth_node_takes_a_quarter_of_the_shards_and_of_the_octets() {
    for (shards, replicas) in [(64, 1), (64, 3), (256, 1), (256, 3), (1000, 2)] {
        let octets = uneven(shards);
        // Even in octets before, so that nothing but the join calls for a move.
        let before = propose(shards, replicas, &equal(3), &BTreeMap::new(), &octets);
        let percent = largest_percent(&loads(&before, &octets));
        assert!(percent <= 112, "{shards} shards of {replicas} replicas: {percent} %");
        let after = propose(shards, replicas, &equal(4), &before, &octets);
        let moved = moves(&before, &after);
        assert!(moved.iter().all(|it| it.to == Some(NodeId(4)) && it.from.is_some()), "{moved:?}");
        assert_eq!(moved.len() as u32, shards * replicas / 4);
        let percent = largest_percent(&loads(&after, &octets));
        assert!(percent <= 120, "{shards} shards of {replicas} replicas: {percent} %");
    }
}

#[test]
fn a_drained_node_leaves_even_octets_behind() {
    for (shards, replicas, count) in [(64, 1, 5), (256, 3, 6), (1000, 2, 8)] {
        let octets = uneven(shards);
        let mut nodes = equal(count);
        let before = propose(shards, replicas, &nodes, &BTreeMap::new(), &octets);
        nodes[1].eligible = false;
        let after = propose(shards, replicas, &nodes, &before, &octets);
        let held = counts(&before)[&NodeId(2)] as usize;
        // Now and then one must make way for another.
        let others = moves(&before, &after).len() - held;
        assert!(others <= held / 20, "{others} moves beside the {held} of the node");
        let percent = largest_percent(&loads(&after, &octets));
        assert!(percent <= 120, "{shards} shards of {replicas} replicas: {percent} %");
    }
}

#[test]
fn a_heavy_node_changes_heavy_shards_for_light_ones() {
    let nodes = equal(4);
    let wanted = fresh(64, 1, &nodes);
    // Node 1 is unlucky: four of its shards have grown.
    let grown: Vec<ShardId> = wanted.iter().filter(|(_, on)| on[0] == NodeId(1)).map(|(it, _)| *it).take(4).collect();
    let octets: Octets =
        (0..64).map(ShardId).map(|it| (it, if grown.contains(&it) { 500 * MIB } else { 50 * MIB })).collect();
    assert!(largest_percent(&loads(&wanted, &octets)) > 200);
    let after = propose(64, 1, &nodes, &wanted, &octets);
    assert_eq!(counts(&after), counts(&wanted));
    assert!(largest_percent(&loads(&after, &octets)) <= 120);
    assert_eq!(moves(&wanted, &after).len(), 6, "three heavy ones go, and as many light ones come");
    assert!(warnings(64, 1, &nodes, &after, &octets).is_empty());
}

#[test]
fn up_to_a_fifth_above_the_share_nothing_moves() {
    let nodes = equal(4);
    let wanted = fresh(64, 1, &nodes);
    let on_first = |shard: &ShardId| wanted[shard][0] == NodeId(1);
    let octets: Octets = (0..64).map(ShardId).map(|it| (it, if on_first(&it) { 60 * MIB } else { 50 * MIB })).collect();
    assert_eq!(propose(64, 1, &nodes, &wanted, &octets), wanted);
    assert!(warnings(64, 1, &nodes, &wanted, &octets).is_empty());
}

#[test]
fn a_little_mail_on_one_node_moves_nothing() {
    let nodes = equal(4);
    let wanted = fresh(16, 3, &nodes);
    let octets = BTreeMap::from([(ShardId(3), 100 * MIB), (ShardId(4), MIB)]);
    assert_eq!(propose(16, 3, &nodes, &wanted, &octets), wanted);
    let zones_only = warnings(16, 3, &nodes, &wanted, &octets);
    assert_eq!(zones_only, [Warning::FewZones { zones: 1, replicas: 3 }]);
}

#[test]
fn a_shard_that_is_more_than_a_nodes_share_is_named() {
    let nodes = equal(4);
    let wanted = fresh(16, 1, &nodes);
    let octets = BTreeMap::from([(ShardId(3), 900 * MIB), (ShardId(4), 100 * MIB)]);
    let after = propose(16, 1, &nodes, &wanted, &octets);
    let told = warnings(16, 1, &nodes, &after, &octets);
    let node = after[&ShardId(3)][0];
    assert_eq!(told, [Warning::HeavyNode { node, percent_of_share: 360, shard: Some(ShardId(3)) }]);
    let text = told[0].said(|id| format!("of-id-{id}"));
    let expected =
        format!("node of-id-{node} comes to 360 % of its share of octets; shard 3 alone is more than the share");
    assert_eq!(text, expected);
    assert_ne!(after[&ShardId(4)], [node]);
    assert_eq!(after[&ShardId(3)], wanted[&ShardId(3)], "wherever it went, it would be too much");
}

#[test]
fn too_few_nodes_and_too_few_zones_are_told() {
    let told = |replicas, nodes: &[PlacementNode]| -> Vec<String> {
        let wanted = fresh(16, replicas, nodes);
        let told = warnings(16, replicas, nodes, &wanted, &BTreeMap::new());
        told.iter().map(|warning| warning.said(|node| node.to_string())).collect()
    };
    assert_eq!(told(1, &equal(1)), [""; 0]);
    assert_eq!(told(3, &[]), ["no node can take replicas, so that nothing moves"]);
    assert_eq!(
        told(3, &equal(2)),
        [
            "2 nodes can take replicas, fewer than the 3 replicas that each shard should have",
            "replicas of a shard share a zone: there is 1 zone for 2 replicas",
        ]
    );
    let mut nodes = equal(4);
    for (number, node) in nodes.iter_mut().enumerate() {
        node.zone = format!("zone-{}", number % 3);
    }
    assert_eq!(told(3, &nodes), [""; 0]);
    nodes[2].eligible = false;
    assert_eq!(told(3, &nodes), ["replicas of a shard share a zone: there are 2 zones for 3 replicas"]);
}

#[test]
fn no_number_of_octets_is_too_much() {
    let nodes = equal(5);
    let octets: Octets = (0..64).map(|shard| (ShardId(shard), u64::MAX - u64::from(shard))).collect();
    let wanted = propose(64, 3, &nodes, &BTreeMap::new(), &octets);
    let heavy = |wanted: &Wanted, octets: &Octets| {
        let told = warnings(64, 3, &nodes, wanted, octets).into_iter();
        told.filter(|warning| matches!(warning, Warning::HeavyNode { shard: Some(ShardId(1)), .. })).count()
    };
    assert_eq!(heavy(&wanted, &octets), 0);
    let octets = BTreeMap::from([(ShardId(1), u64::MAX), (ShardId(2), 1)]);
    let wanted = propose(64, 3, &nodes, &wanted, &octets);
    assert_eq!(heavy(&wanted, &octets), 3);
}

proptest! {
    #![proptest_config(Config { cases: 300, failure_persistence: None, ..Config::default() })]

    #[test]
    fn octets_never_cost_even_counts_and_never_make_the_heaviest_heavier(
        shards in 1u32..80, replicas in 1u32..=4, other in 1u64..12, nodes in collection::vec((0u8..3, any::<bool>()), 1..12),
        octets in collection::vec(0u32..12, 80),
    ) {
        let octets: Octets = (0..shards).map(ShardId).zip(octets.iter().map(|power| 3u64.pow(*power) * MIB)).collect();
        let nodes: Vec<PlacementNode> = equal(nodes.len() as u64)
            .into_iter()
            .zip(nodes)
            .map(|(node, (zone, even))| PlacementNode {
                zone: if even { "here".to_owned() } else { format!("zone-{zone}") },
                ..node
            })
            .collect();
        let before = fresh(shards, replicas, &equal(other));
        let plain = propose(shards, replicas, &nodes, &before, &BTreeMap::new());
        let wanted = propose(shards, replicas, &nodes, &before, &octets);
        prop_assert_eq!(&propose(shards, replicas, &nodes, &before, &octets), &wanted, "not deterministic");
        prop_assert_eq!(&propose(shards, replicas, &nodes, &wanted, &octets), &wanted, "not content with itself");

        // Bands are the same with and without octets: within one of each other, whichever node got the odd one.
        let (plain, even) = (counts(&plain), counts(&wanted));
        prop_assert_eq!(plain.values().sum::<u64>(), even.values().sum::<u64>());
        let of = |counts: &BTreeMap<NodeId, u64>, node: &NodeId| counts.get(node).copied().unwrap_or_default();
        for node in nodes.iter().map(|node| &node.id) {
            prop_assert!(of(&plain, node).abs_diff(of(&even, node)) <= 1, "{:?} {:?}", plain, even);
        }
        for on in wanted.values() {
            prop_assert_eq!(on.len(), on.iter().collect::<BTreeSet<_>>().len());
        }

        // From a placement that is even in counts, more octets on a node than the heaviest had are never proposed. (Where
        // zones make the shares unlike, a node with a greater share may come to have more.)
        if nodes.iter().any(|node| node.zone != "here") {
            return Ok(());
        }
        let again: Octets = octets.iter().map(|(shard, octets)| (ShardId(shards - 1 - shard.0), *octets)).collect();
        let after = propose(shards, replicas, &nodes, &wanted, &again);
        prop_assert!(loads(&after, &again).values().max() <= loads(&wanted, &again).values().max());
    }
}
