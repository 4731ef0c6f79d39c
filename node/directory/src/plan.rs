//! The plan: which nodes should hold each shard, given the nodes there are and where the shards are now.
//!
//! Rules, the first ones first:
//! 1. a shard has min(R, eligible nodes) replicas, on distinct eligible nodes;
//! 2. they are in as many zones as can be, and as evenly over these as can be;
//! 3. each node holds its share by weight, rounded down or up: closer than the 10 % above the mean that the design
//!    allows;
//! 4. a replica stays where it is unless a rule above makes it go, so that little data moves;
//! 5. octets are even, too: of the shards that could move as well as others those do that even them out. A node with
//!    more than its share of octets and 20 %, and 256 MiB, changes a few shards for lighter ones even if nothing else
//!    moves;
//! 6. a new replica goes where the ring prefers it;
//! 7. each node is the preferred leader (the first in the list) of its share of shards, as far as its replicas allow.
//!
//! Rules 1 to 3 can always be kept together: fair shares solve the assignment in fractions, and a flow problem with
//! whole bounds that has a solution in fractions has one in whole numbers. The planner starts from what is and
//! repairs it along shortest augmenting paths, which find that solution.
//!
//! The outcome is recorded by a command; apply never plans, so planners of different versions do no harm.

mod balance;
mod leaders;
mod octets;
mod warnings;

pub use warnings::{Warning, warnings};

use std::collections::{BTreeMap, BTreeSet};

use types::{NodeId, ShardId};

use crate::ring::Ring;
use crate::share::{Band, Claim, bands};
use octets::{RING_FILL, Weights};

/// A node as the plan sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlacementNode {
    pub id: NodeId,
    pub zone: String,
    /// Relative capacity; 0 counts as 1.
    pub weight: u32,
    /// May hold replicas. False for a node that is draining.
    pub eligible: bool,
}

/// One replica of a shard that changes its node; `None` where the shard gets a replica more or less.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Move {
    pub shard: ShardId,
    pub from: Option<NodeId>,
    pub to: Option<NodeId>,
}

/// The wanted nodes of shards 0 to `shards`-1, the preferred leader first.
///
/// `current` is the placement wanted so far; what it says of other nodes, or of shards that are not, is dropped.
/// `octets` is what one replica of each shard has; a shard that is missing has none. Where all shards have the same,
/// they play no part.
///
/// Depends on nothing but its arguments, and given its own outcome proposes the same again, unless it left nodes too
/// heavy because it allows itself few exchanges for each. Where no node is eligible, `current` is left as it is.
pub fn propose(
    shards: u32,
    replicas: u32,
    nodes: &[PlacementNode],
    current: &BTreeMap<ShardId, Vec<NodeId>>,
    octets: &BTreeMap<ShardId, u64>,
) -> BTreeMap<ShardId, Vec<NodeId>> {
    propose_of((0..shards).map(ShardId).collect(), replicas, nodes, current, octets)
}

/// The same of these shards alone, as if there were no others. Each is to be named once.
pub(crate) fn propose_of(
    shards: Vec<ShardId>,
    replicas: u32,
    nodes: &[PlacementNode],
    current: &BTreeMap<ShardId, Vec<NodeId>>,
    octets: &BTreeMap<ShardId, u64>,
) -> BTreeMap<ShardId, Vec<NodeId>> {
    let now = |shard: ShardId| current.get(&shard).cloned().unwrap_or_default();
    let candidates = candidates(nodes);
    if candidates.is_empty() || replicas == 0 {
        return shards.into_iter().map(|shard| (shard, now(shard))).collect();
    }
    let mut plan = Plan::new(&shards, replicas, candidates, current, octets);
    plan.drop_surplus();
    plan.fill_vacancies();
    plan.balance();
    plan.relieve();
    let leaders = plan.leaders();
    shards.into_iter().zip(plan.ordered(&leaders)).collect()
}

/// What lies between two placements, ascending by shard. Only a change of the order in a list is no move.
pub fn moves(current: &BTreeMap<ShardId, Vec<NodeId>>, wanted: &BTreeMap<ShardId, Vec<NodeId>>) -> Vec<Move> {
    let mut moves = Vec::new();
    for (&shard, after) in wanted {
        let before = current.get(&shard).map(Vec::as_slice).unwrap_or_default();
        let mut gone = before.iter().copied().filter(|node| !after.contains(node));
        let mut come = after.iter().copied().filter(|node| !before.contains(node));
        loop {
            match (gone.next(), come.next()) {
                (None, None) => break,
                (from, to) => moves.push(Move { shard, from, to }),
            }
        }
    }
    moves
}

/// An eligible node; its index in [`Plan::nodes`] stands for it below.
struct Candidate {
    id: NodeId,
    zone: usize,
    weight: u32,
}

/// Ascending by id, so that the order of the input does not matter.
fn candidates(nodes: &[PlacementNode]) -> Vec<Candidate> {
    let eligible: BTreeMap<NodeId, &PlacementNode> =
        nodes.iter().filter(|node| node.eligible).map(|node| (node.id, node)).collect();
    let zones: BTreeSet<&str> = eligible.values().map(|node| node.zone.as_str()).collect();
    let zones: BTreeMap<&str, usize> = zones.into_iter().enumerate().map(|(index, zone)| (zone, index)).collect();
    let candidate = |node: &PlacementNode| Candidate {
        id: node.id,
        zone: zones.get(node.zone.as_str()).copied().unwrap_or_default(),
        weight: node.weight.max(1),
    };
    eligible.into_values().map(candidate).collect()
}

/// The least bound on a shard's replicas in one zone that lets it have `replicas` at all.
fn zone_bound(nodes: &[Candidate], replicas: usize) -> usize {
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    for node in nodes {
        *sizes.entry(node.zone).or_default() += 1;
    }
    (1..replicas)
        .find(|bound| sizes.values().map(|size| size.min(bound)).sum::<usize>() >= replicas)
        .unwrap_or(replicas)
}

/// What each node is due of `shards` shards with `replicas` replicas each, in units of 1/`scale` of a shard.
fn shares(shards: usize, replicas: usize, nodes: &[Candidate], scale: u32) -> Vec<Band> {
    // No more than SHARDS_MAX shards.
    let most = (shards as u32).saturating_mul(scale);
    let claim = |node: &Candidate| Claim { weight: node.weight, zone: node.zone, most };
    let claims: Vec<Claim> = nodes.iter().map(claim).collect();
    let zone_most = u64::from(most) * zone_bound(nodes, replicas) as u64;
    bands(u64::from(most) * replicas as u64, &claims, Some(zone_most))
}

/// Shards are told by their places in the list of those that are planned.
struct Plan {
    nodes: Vec<Candidate>,
    /// Replicas of each shard.
    replicas: usize,
    /// Replicas of one shard that a zone may have.
    zone_bound: usize,
    bands: Vec<Band>,
    /// By shard: the eligible nodes that had it, in the order of the current list.
    before: Vec<Vec<usize>>,
    /// By shard: who has it now. Invariant once the surplus is dropped: distinct, and no zone has more than
    /// `zone_bound`.
    owners: Vec<Vec<usize>>,
    /// By node: how many shards it owns.
    counts: Vec<u32>,
    weights: Weights,
    /// By shard: all nodes, the ring's favourite first.
    preference: Vec<Vec<usize>>,
    /// By shard and node: the node's place in `preference`.
    rank: Vec<Vec<usize>>,
}

impl Plan {
    fn new(
        shards: &[ShardId],
        replicas: u32,
        nodes: Vec<Candidate>,
        current: &BTreeMap<ShardId, Vec<NodeId>>,
        octets: &BTreeMap<ShardId, u64>,
    ) -> Plan {
        let replicas = (replicas as usize).min(nodes.len());
        let zone_bound = zone_bound(&nodes, replicas);
        let index: BTreeMap<NodeId, usize> = nodes.iter().enumerate().map(|(index, node)| (node.id, index)).collect();
        let indexes = |ids: &[NodeId]| -> Vec<usize> { ids.iter().filter_map(|id| index.get(id).copied()).collect() };
        let before = |shard: &ShardId| current.get(shard).map(|ids| indexes(ids)).unwrap_or_default();
        let ring = Ring::new(nodes.iter().map(|node| (node.id, node.weight)));
        let preference: Vec<Vec<usize>> = shards.iter().map(|shard| indexes(&ring.preference(*shard))).collect();
        let rank = preference.iter().map(|order| {
            let mut rank = vec![0; order.len()];
            order.iter().enumerate().for_each(|(at, node)| rank[*node] = at);
            rank
        });
        Plan {
            replicas,
            zone_bound,
            bands: shares(shards.len(), replicas, &nodes, 1),
            weights: Weights::new(shards, replicas, &nodes, octets),
            before: shards.iter().map(before).collect(),
            owners: vec![Vec::new(); shards.len()],
            counts: vec![0; nodes.len()],
            rank: rank.collect(),
            preference,
            nodes,
        }
    }

    /// Whether the node can get the shard, if `without` gives it away.
    fn fits(&self, shard: usize, node: usize, without: Option<usize>) -> bool {
        let zone = self.nodes[node].zone;
        let owners = &self.owners[shard];
        let in_zone = owners.iter().filter(|owner| Some(**owner) != without && self.nodes[**owner].zone == zone);
        !owners.contains(&node) && in_zone.count() < self.zone_bound
    }

    fn add(&mut self, shard: usize, node: usize) {
        self.owners[shard].push(node);
        self.counts[node] += 1;
        self.weights.load[node] += self.weights.octets[shard];
    }

    fn remove(&mut self, shard: usize, node: usize) {
        let owners = self.owners[shard].len();
        self.owners[shard].retain(|owner| *owner != node);
        if self.owners[shard].len() < owners {
            self.counts[node] -= 1;
            self.weights.load[node] -= self.weights.octets[shard];
        }
    }

    /// Keeps the owners that may stay. Of replicas beyond the number wanted, in all or in a zone, those go that are
    /// on the fullest nodes.
    fn drop_surplus(&mut self) {
        for shard in 0..self.owners.len() {
            for node in self.before[shard].clone() {
                if !self.owners[shard].contains(&node) {
                    self.add(shard, node);
                }
            }
        }
        for shard in 0..self.owners.len() {
            while let Some(surplus) = self.surplus(shard) {
                self.remove(shard, surplus);
            }
        }
    }

    /// The owner that the shard can best do without, if it has too many.
    fn surplus(&self, shard: usize) -> Option<usize> {
        let owners = &self.owners[shard];
        let crowded = |node: &usize| {
            let zone = self.nodes[*node].zone;
            owners.iter().filter(|owner| self.nodes[**owner].zone == zone).count() > self.zone_bound
        };
        let too_many = owners.len() > self.replicas;
        let any_crowded = owners.iter().any(crowded);
        let candidates = owners.iter().filter(|node| if any_crowded { crowded(node) } else { too_many });
        let above = |node: usize| i64::from(self.counts[node]) - i64::from(self.bands[node].high);
        let fill = |node: usize| self.weights.fill(node, 0);
        // Of equally full ones the last, since the first in the list leads.
        candidates.copied().max_by(|a, b| above(*a).cmp(&above(*b)).then(fill(*a).total_cmp(&fill(*b))))
    }

    /// Gives each shard the replicas that it lacks, the heaviest first, to nodes below their share: as the ring prefers
    /// them while they have few octets, then to the one that has least.
    fn fill_vacancies(&mut self) {
        for shard in self.weights.heaviest_first() {
            let octets = self.weights.octets[shard];
            while self.owners[shard].len() < self.replicas {
                let below = |bound: fn(&Band) -> u32| {
                    let fits = |node: &&usize| {
                        self.counts[**node] < bound(&self.bands[**node]) && self.fits(shard, **node, None)
                    };
                    let fill = |node: usize| self.weights.fill(node, octets).max(RING_FILL);
                    let fitting = self.preference[shard].iter().filter(fits).copied();
                    fitting.min_by(|a, b| fill(*a).total_cmp(&fill(*b)))
                };
                let chosen = below(|band| band.low).or_else(|| below(|band| band.high)).or_else(|| below(|_| u32::MAX));
                // By the choice of `zone_bound` some node always fits.
                let Some(chosen) = chosen else { break };
                self.add(shard, chosen);
            }
        }
    }

    /// By shard the owners' ids: the leader, those that stay in the order they had, the new ones as the ring
    /// prefers them.
    fn ordered(&self, leaders: &[usize]) -> Vec<Vec<NodeId>> {
        let list = |shard: usize| {
            let place = |node: usize| {
                let stays = self.before[shard].iter().position(|before| *before == node);
                (leaders.get(shard) != Some(&node), stays.is_none(), stays.unwrap_or(self.rank[shard][node]))
            };
            let mut owners = self.owners[shard].clone();
            owners.sort_by_key(|node| place(*node));
            owners.into_iter().map(|node| self.nodes[node].id).collect()
        };
        (0..self.owners.len()).map(list).collect()
    }
}
