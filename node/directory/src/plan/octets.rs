//! Octets: which shards are exchanged for which, so that a heavy shard does not make a heavy node.
//!
//! Counts come first: nothing here takes a node out of its band. Fills are compared as floating-point numbers, which
//! is no matter of replicated state: one planner plans, and what it found travels in a command.

use std::collections::BTreeMap;

use types::{NodeId, ShardId};

use super::balance::Step;
use super::{Candidate, Plan, shares};
use crate::share::Band;

/// What a node may have above its share of octets, in percent of the share. Shards grow at their own pace, so that a
/// lower bound would have data move for ever.
const ABOVE_SHARE_PERCENT: u64 = 20;

/// What a node may have above its share however small that is, in octets: so little is on no disk worth a move.
const ABOVE_SHARE_OCTETS: u64 = 256 << 20;

/// What a node may have above its share, in percent, where an exchange of shards that move anyway mends it.
const ABOVE_SHARE_PERCENT_MOVING: u64 = 5;

/// The part of its share up to which a node gets new replicas as the ring prefers, and not because it has least. Were it
/// always the one with least, the same few nodes would share all their shards, and only these could take over from
/// each other.
pub(super) const RING_FILL: f64 = 0.9;

/// The most exchanges that relieve one node in one plan. An exchange that takes less than the same part of what a
/// node has above its share is not worth the data that it moves.
const EXCHANGES_MAX: u32 = 16;

/// What a shard counts at most, 256 TiB, so that the sums of [`SHARDS_MAX`](crate::limits::SHARDS_MAX) such shards with
/// all their replicas are numbers of 64 bits.
const SHARD_OCTETS_MAX: u64 = 1 << 48;

/// Parts of a shard in which shares are told.
const SHARE_SCALE: u32 = 1024;

/// What the shards weigh and what that makes of the nodes.
pub(super) struct Weights {
    /// False where all shards are equally heavy, as far as is known: then `octets` are all 0, and to even out the
    /// counts is all that can be done.
    pub matter: bool,
    /// By shard: what one replica has.
    pub octets: Vec<u64>,
    /// By node: what its replicas have.
    pub load: Vec<u64>,
    /// By node: its share of all octets, at least 1.
    pub due: Vec<f64>,
    /// By node: its share, with the count rounded up to whole shards of mean size.
    pub due_rounded: Vec<u64>,
}

impl Weights {
    pub fn new(shards: &[ShardId], replicas: usize, nodes: &[Candidate], octets: &BTreeMap<ShardId, u64>) -> Weights {
        let octets_of = |shard| octets.get(shard).map_or(0, |octets| (*octets).min(SHARD_OCTETS_MAX));
        let mut octets: Vec<u64> = shards.iter().map(octets_of).collect();
        let matter = octets.windows(2).any(|pair| pair[0] != pair[1]);
        if !matter {
            octets.fill(0);
        }
        let total: u64 = octets.iter().sum();
        let mean = total as f64 / shards.len().max(1) as f64;
        let share = |scale| shares(shards.len(), replicas, nodes, scale).into_iter();
        let due = |share: Band| f64::from(share.low) / f64::from(SHARE_SCALE) * mean;
        Weights {
            matter,
            load: vec![0; nodes.len()],
            due: share(SHARE_SCALE).map(|share| due(share).max(1.0)).collect(),
            due_rounded: share(1).map(|share| (f64::from(share.high) * mean).ceil() as u64).collect(),
            octets,
        }
    }

    /// What a node has of its share, 1 being all of it, once it has so many octets more.
    pub fn fill(&self, node: usize, more: u64) -> f64 {
        (self.load[node] + more) as f64 / self.due[node]
    }

    /// Whether the node has more than its share and so many percent of it.
    fn is_above(&self, node: usize, percent: u64) -> bool {
        let (load, due) = (u128::from(self.load[node]), u128::from(self.due_rounded[node]));
        load * 100 > due * u128::from(100 + percent)
    }

    /// Whether it has so much that a shard is to move for no other reason.
    fn is_heavy(&self, node: usize) -> bool {
        let above = self.load[node].saturating_sub(self.due_rounded[node]);
        above > ABOVE_SHARE_OCTETS && self.is_above(node, ABOVE_SHARE_PERCENT)
    }

    /// All shards.
    pub fn heaviest_first(&self) -> Vec<usize> {
        let mut shards: Vec<usize> = (0..self.octets.len()).collect();
        shards.sort_by_key(|shard| std::cmp::Reverse(self.octets[*shard]));
        shards
    }
}

/// `shard` goes from a heavy node to another one, which may give it `back` a lighter one.
struct Exchange {
    there: Step,
    back: Option<Step>,
}

impl Plan {
    /// Gives a node that is below its share shards by some of these steps: of the fullest giver first, and from each
    /// what fits best into what it has too much and the node too little.
    pub(super) fn take_octets(&mut self, needy: usize, giver: &impl Fn(&Plan, usize) -> bool, steps: &[Step]) {
        let mut offered: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        steps.iter().for_each(|step| offered.entry(step.from).or_default().push(step.shard));
        offered.values_mut().for_each(|shards| shards.sort_by_key(|shard| self.weights.octets[*shard]));
        while self.counts[needy] < self.bands[needy].low {
            let fill = |node: usize| self.weights.fill(node, 0);
            let givers = offered.iter().filter(|(from, shards)| giver(self, **from) && !shards.is_empty());
            let Some(from) = givers.map(|(from, _)| *from).max_by(|a, b| fill(*a).total_cmp(&fill(*b))) else { break };
            let Some(shards) = offered.get_mut(&from) else { break };
            let ideal = (self.octets_spare(from) + self.octets_lacking(needy)) / 2.0;
            let shard = shards.remove(self.nearest(shards, ideal));
            if self.fits(shard, needy, Some(from)) {
                self.perform(Step { shard, from, to: needy });
            }
        }
    }

    /// What each of the shards should have that the node has too many.
    fn octets_spare(&self, node: usize) -> f64 {
        let shards = f64::from(self.counts[node]) - self.bands[node].middle();
        (self.weights.load[node] as f64 - self.weights.due[node]) / shards.max(1.0)
    }

    /// What each of the shards should have that the node lacks.
    fn octets_lacking(&self, node: usize) -> f64 {
        let shards = self.bands[node].middle() - f64::from(self.counts[node]);
        (self.weights.due[node] - self.weights.load[node] as f64) / shards.max(1.0)
    }

    /// Where in this list, which ascends by octets and is not empty, the shard stands that is nearest to so many.
    fn nearest(&self, shards: &[usize], octets: f64) -> usize {
        let distance = |at: usize| (self.weights.octets[shards[at]] as f64 - octets).abs();
        let above = shards.partition_point(|shard| (self.weights.octets[*shard] as f64) < octets);
        let below = above.saturating_sub(1);
        let above = above.min(shards.len() - 1);
        if distance(below) <= distance(above) { below } else { above }
    }

    /// Makes nodes lighter that have too much: by exchanges that cost no further move, then by any.
    pub(super) fn relieve(&mut self) {
        self.exchange(|weights, node| weights.is_above(node, ABOVE_SHARE_PERCENT_MOVING), 0);
        self.exchange(Weights::is_heavy, i8::MAX);
    }

    /// Exchanges shards of nodes that are `above` their share, while that makes them lighter. An exchange costs at most
    /// `moves_max` more moves.
    fn exchange(&mut self, above: impl Fn(&Weights, usize) -> bool, moves_max: i8) {
        let mut exchanges = vec![0; self.nodes.len()];
        loop {
            let fill = |node: usize| self.weights.fill(node, 0);
            let mut heavy: Vec<usize> = (0..self.nodes.len()).filter(|node| above(&self.weights, *node)).collect();
            heavy.sort_by(|a, b| fill(*b).total_cmp(&fill(*a)));
            let before = exchanges.clone();
            for node in heavy {
                if exchanges[node] == EXCHANGES_MAX || !above(&self.weights, node) {
                    continue;
                }
                if let Some(Exchange { there, back }) = self.best_exchange(node, moves_max) {
                    self.perform(there);
                    back.into_iter().for_each(|back| self.perform(back));
                    exchanges[node] += 1;
                }
            }
            if exchanges == before {
                break;
            }
        }
    }

    /// The one that costs the fewest moves, and of these the one that brings both nodes nearest to their shares.
    fn best_exchange(&self, from: usize, moves_max: i8) -> Option<Exchange> {
        let mut owned: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (shard, owners) in self.owners.iter().enumerate() {
            owners.iter().for_each(|owner| owned[*owner].push(shard));
        }
        owned.iter_mut().for_each(|shards| shards.sort_by_key(|shard| self.weights.octets[*shard]));

        let least = (self.weights.load[from] as f64 - self.weights.due[from]) / f64::from(EXCHANGES_MAX);
        let mut best: Option<((i8, f64), Exchange)> = None;
        // The lighter ones first: of equally good exchanges the one that moves less data is taken.
        for &shard in owned[from].iter().filter(|shard| self.weights.octets[**shard] as f64 >= least) {
            for to in (0..self.nodes.len()).filter(|to| *to != from && self.fits(shard, *to, Some(from))) {
                let there = Step { shard, from, to };
                for back in self.partners(there, &owned[to], moves_max) {
                    let Some(gain) = self.gain(there, back, least) else { continue };
                    let cost = self.moves(there) + back.map_or(0, |back| self.moves(back));
                    let better = |(best_cost, best_gain): (i8, f64)| (cost, best_gain) < (best_cost, gain);
                    if best.as_ref().is_none_or(|(best, _)| better(*best)) {
                        best = Some(((cost, gain), Exchange { there, back }));
                    }
                }
            }
        }
        best.map(|(_, exchange)| exchange)
    }

    /// What could go back for a step: nothing, if the counts allow it, and the shards on both sides of the ideal one.
    fn partners(&self, there: Step, owned: &[usize], moves_max: i8) -> Vec<Option<Step>> {
        let Step { shard, from, to } = there;
        let mut partners = Vec::new();
        let moves_left = moves_max.saturating_sub(self.moves(there));
        let uneven = self.counts[from] > self.bands[from].low && self.counts[to] < self.bands[to].high;
        if uneven && moves_left >= 0 {
            partners.push(None);
        }
        let ideal = self.weights.octets[shard] as f64 - self.ideal_shift(from, to);
        let at = owned.partition_point(|other| (self.weights.octets[*other] as f64) < ideal);
        let (below, above) = owned.split_at(at);
        let back = |other: &usize| Step { shard: *other, from: to, to: from };
        let possible = |back: &Step| {
            back.shard != shard && self.fits(back.shard, from, Some(to)) && self.moves(*back) <= moves_left
        };
        partners.extend(below.iter().rev().map(back).find(possible).map(Some));
        partners.extend(above.iter().map(back).find(possible).map(Some));
        partners
    }

    /// The octets that would have to pass from one node to the other to make them equally full.
    fn ideal_shift(&self, from: usize, to: usize) -> f64 {
        let (due_from, due_to) = (self.weights.due[from], self.weights.due[to]);
        let (load_from, load_to) = (self.weights.load[from] as f64, self.weights.load[to] as f64);
        (load_from * due_to - load_to * due_from) / (due_from + due_to)
    }

    /// By how much the exchange lowers the sum over the nodes of load²/due, which is least where all are equally full.
    /// `None` if it shifts less than `least` octets, or so many that the other node would come as near as that to what
    /// this one had.
    fn gain(&self, there: Step, back: Option<Step>, least: f64) -> Option<f64> {
        let returned = back.map_or(0, |back| self.weights.octets[back.shard]);
        let shift = self.weights.octets[there.shard] as f64 - returned as f64;
        let beyond = 2.0 * self.ideal_shift(there.from, there.to) - shift;
        let slope = 1.0 / self.weights.due[there.from] + 1.0 / self.weights.due[there.to];
        (shift >= least && beyond >= least).then_some(shift * beyond * slope)
    }

    /// How many more replicas move because of a step: it may also bring back one that was to go.
    fn moves(&self, step: Step) -> i8 {
        let was_on = |node: usize| i8::from(self.before[step.shard].contains(&node));
        was_on(step.from) - was_on(step.to)
    }
}

/// What is to be said of a node that has too much of this placement.
pub(super) struct HeavyNode {
    pub node: NodeId,
    pub percent_of_share: u64,
    /// Its heaviest shard, if that alone is more than the node's share.
    pub shard: Option<ShardId>,
}

/// Ascending by node.
pub(super) fn heavy_nodes(
    shards: u32,
    replicas: usize,
    nodes: &[Candidate],
    wanted: &BTreeMap<ShardId, Vec<NodeId>>,
    octets: &BTreeMap<ShardId, u64>,
) -> Vec<HeavyNode> {
    let shards: Vec<ShardId> = (0..shards).map(ShardId).collect();
    let mut weights = Weights::new(&shards, replicas, nodes, octets);
    let mut heaviest: Vec<Option<usize>> = vec![None; nodes.len()];
    for shard in weights.heaviest_first() {
        for id in wanted.get(&ShardId(shard as u32)).into_iter().flatten() {
            let Ok(node) = nodes.binary_search_by_key(id, |node| node.id) else { continue };
            weights.load[node] += weights.octets[shard];
            heaviest[node].get_or_insert(shard);
        }
    }
    let describe = |node: usize| HeavyNode {
        node: nodes[node].id,
        percent_of_share: weights.load[node].saturating_mul(100) / weights.due_rounded[node].max(1),
        shard: heaviest[node]
            .filter(|shard| weights.octets[*shard] > weights.due_rounded[node])
            .map(|shard| ShardId(shard as u32)),
    };
    (0..nodes.len()).filter(|node| weights.is_heavy(*node)).map(describe).collect()
}
