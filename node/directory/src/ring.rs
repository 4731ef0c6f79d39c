//! The consistent-hash ring: for each shard all nodes in an order of preference that changes little when nodes come
//! and go.
//!
//! The ring knows neither load nor zones nor what was before; the plan does.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};

use hashring::HashRing;
use types::{NodeId, ShardId};

use crate::hash::StableHash;

/// Points on the ring for each unit of a node's weight. With some hundred shards their own number limits how even
/// shares can be; more points than this gain nothing that could be measured.
const POINTS_PER_WEIGHT: u32 = 128;

pub struct Ring {
    ring: HashRing<Point, StableHash>,
    /// Ascending.
    nodes: Vec<NodeId>,
    /// The nodes of the points, once round the ring, as indexes into `nodes`.
    order: Vec<usize>,
    /// Where each point stands in `order`.
    positions: HashMap<Point, usize>,
}

/// A virtual node. Equal points have equal places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Point {
    node: NodeId,
    number: u32,
}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut bytes = *b"point\0\0\0\0\0\0\0\0\0\0\0\0";
        bytes[5..13].copy_from_slice(&self.node.0.to_le_bytes());
        bytes[13..].copy_from_slice(&self.number.to_le_bytes());
        state.write(&bytes);
    }
}

struct Key(ShardId);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut bytes = *b"shard\0\0\0\0";
        bytes[5..].copy_from_slice(&self.0.0.to_le_bytes());
        state.write(&bytes);
    }
}

impl Ring {
    /// Nodes with their weights. A node of weight 0 is not on the ring; of a node given twice the last weight counts.
    pub fn new(nodes: impl IntoIterator<Item = (NodeId, u32)>) -> Ring {
        // By id, so that two points on the same place, however unlikely, always stand in the same order.
        let weights: BTreeMap<NodeId, u32> = nodes.into_iter().filter(|(_, weight)| *weight > 0).collect();
        let points = weights.iter().flat_map(|(&node, weight)| {
            (0..weight.saturating_mul(POINTS_PER_WEIGHT)).map(move |number| Point { node, number })
        });
        let mut ring = HashRing::with_hasher(StableHash);
        ring.batch_add(points.collect());
        // Once round, wherever it begins. With n asked for come n + 1, except beyond the length.
        let in_order = ring.get_with_replicas(&Key(ShardId(0)), ring.len().saturating_sub(1)).unwrap_or_default();
        let positions = in_order.iter().enumerate().map(|(at, point)| (*point, at)).collect();
        let nodes: Vec<NodeId> = weights.into_keys().collect();
        let order = in_order.iter().filter_map(|point| nodes.binary_search(&point.node).ok()).collect();
        Ring { ring, nodes, order, positions }
    }

    /// Every node once, in the order in which the ring meets them from the shard's place on.
    ///
    /// Not by `HashRing::get_with_replicas`: that yields points, many of them of one node, and copies the ring each
    /// time.
    pub fn preference(&self, shard: ShardId) -> Vec<NodeId> {
        let mut distinct = Vec::with_capacity(self.nodes.len());
        let mut met = vec![false; self.nodes.len()];
        let start = self.ring.get(&Key(shard)).and_then(|point| self.positions.get(point));
        let (before, from) = self.order.split_at(start.copied().unwrap_or_default());
        for &node in from.iter().chain(before) {
            if distinct.len() == self.nodes.len() {
                break;
            }
            if !std::mem::replace(&mut met[node], true) {
                distinct.push(self.nodes[node]);
            }
        }
        distinct
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use types::{NodeId, ShardId};

    use super::Ring;

    fn equal(nodes: u64) -> Ring {
        Ring::new((1..=nodes).map(|id| (NodeId(id), 1)))
    }

    /// A change here would move shards when a cluster is upgraded.
    #[test]
    fn the_ring_stays_what_it_always_was() {
        let ring = equal(5);
        let orders: Vec<Vec<u64>> =
            (0..4).map(|shard| ring.preference(ShardId(shard)).iter().map(|node| node.0).collect()).collect();
        assert_eq!(orders, GOLDEN);
    }

    // Computed by a second implementation of SipHash-2-4 and of the walk.
    const GOLDEN: [[u64; 5]; 4] = [[1, 3, 2, 4, 5], [3, 4, 5, 1, 2], [4, 5, 2, 3, 1], [3, 1, 2, 4, 5]];

    #[test]
    fn every_node_is_met_once() {
        let ring = equal(40);
        for shard in 0..100 {
            let mut nodes = ring.preference(ShardId(shard));
            assert_eq!(nodes.len(), 40);
            nodes.sort_unstable();
            nodes.dedup();
            assert_eq!(nodes.len(), 40);
        }
        assert!(Ring::new([]).preference(ShardId(1)).is_empty());
    }

    #[test]
    fn a_new_node_only_steps_in_between() {
        let (before, after) = (equal(9), equal(10));
        let mut first = 0;
        for shard in (0..1000).map(ShardId) {
            let mut order = after.preference(shard);
            first += u32::from(order[0] == NodeId(10));
            order.retain(|node| *node != NodeId(10));
            assert_eq!(order, before.preference(shard));
        }
        assert!((60..150).contains(&first), "{first}");
    }

    #[test]
    fn twice_the_weight_is_first_about_twice_as_often() {
        let ring = Ring::new([(NodeId(1), 1), (NodeId(2), 2), (NodeId(3), 1), (NodeId(4), 0)]);
        let mut firsts: BTreeMap<NodeId, u32> = BTreeMap::new();
        for shard in (0..4000).map(ShardId) {
            *firsts.entry(ring.preference(shard)[0]).or_default() += 1;
        }
        assert_eq!(firsts.len(), 3);
        assert!((1600..2400).contains(&firsts[&NodeId(2)]), "{firsts:?}");
    }
}
