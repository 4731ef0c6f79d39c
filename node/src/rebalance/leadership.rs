//! Which replica leads, by load: where a node's shards are asked for far more than its share, it hands leadership of some to
//! replicas whose nodes have less to do. No data moves. Counts stay even: [`directory`]'s plan sees to those. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use types::{NodeId, ShardId};

/// Below so many operations a second of the whole cluster it is no matter who leads.
const LOAD_MIN: f64 = 20.0;
/// A node is relieved that leads more than this multiple of its share of the load.
const HOT: f64 = 1.25;
/// An exchange must take at least this part of what the hottest node has above its share.
const GAIN_MIN: f64 = 0.2;
/// Exchanges of one look: the next one sees what they came to.
const EXCHANGES_MAX: usize = 4;
/// What the newest look counts against all earlier ones.
const NEWEST: f64 = 0.5;

/// A shard, the nodes of its replicas and what its leader is asked for.
#[derive(Clone, PartialEq, Debug)]
pub struct Led {
    pub shard: ShardId,
    /// The leader first.
    pub owners: Vec<NodeId>,
    /// Operations a second.
    pub rate: f64,
}

/// Operations a second of each shard, smoothed over several looks.
#[derive(Default)]
pub struct Rates {
    seen: HashMap<ShardId, (NodeId, u64, Instant)>,
    rates: HashMap<ShardId, f64>,
}

impl Rates {
    /// `operations` is what the leader has counted since its process started.
    pub fn note(&mut self, shard: ShardId, leader: NodeId, operations: u64, now: Instant) {
        let before = self.seen.insert(shard, (leader, operations, now));
        let Some((led, counted, at)) = before else { return };
        let elapsed = now.saturating_duration_since(at).as_secs_f64();
        // Another process counts from another beginning.
        if led != leader || operations < counted || elapsed <= 0.0 {
            return;
        }
        let newest = (operations - counted) as f64 / elapsed;
        let rate = self.rates.entry(shard).or_insert(newest);
        *rate += (newest - *rate) * NEWEST;
    }

    /// `None` until a leader was looked at twice.
    pub fn of(&self, shard: ShardId) -> Option<f64> {
        self.rates.get(&shard).copied()
    }
}

/// New leaders for some shards, in the order in which they were chosen. `weights` has the nodes that may lead.
pub fn choose(led: &[Led], weights: &BTreeMap<NodeId, u32>) -> Vec<(ShardId, NodeId)> {
    let Some(mut leading) = Leading::of(led, weights) else { return Vec::new() };
    let mut chosen = Vec::new();
    for _ in 0..EXCHANGES_MAX {
        let Some(exchange) = leading.best_exchange() else { break };
        chosen.extend(leading.perform(exchange));
    }
    chosen
}

struct Leading<'a> {
    led: &'a [Led],
    /// By place in `led`.
    leaders: Vec<NodeId>,
    nodes: BTreeMap<NodeId, Share>,
}

#[derive(Clone, Copy)]
struct Share {
    /// Operations a second that it leads, and those that it should.
    load: f64,
    due: f64,
    /// Shards that it leads, and the least and the most of its share.
    count: usize,
    low: usize,
    high: usize,
}

impl Share {
    fn fill(self, more: f64) -> f64 {
        (self.load + more) / self.due
    }
}

/// The shard at the place `there` goes to another leader, and `back` comes from it.
struct Exchange {
    from: NodeId,
    to: NodeId,
    there: usize,
    back: Option<usize>,
}

impl<'a> Leading<'a> {
    /// `None` where there is nothing to choose.
    fn of(led: &'a [Led], weights: &BTreeMap<NodeId, u32>) -> Option<Leading<'a>> {
        let total: f64 = led.iter().map(|one| one.rate).sum();
        let weight: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
        if total < LOAD_MIN || weight == 0 {
            return None;
        }
        let share = |of: u32| {
            let (part, shards) = (u64::from(of), led.len() as u64);
            let whole = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
            Share {
                load: 0.0,
                due: (total * part as f64 / weight as f64).max(f64::MIN_POSITIVE),
                count: 0,
                low: whole(shards.saturating_mul(part) / weight),
                high: whole(shards.saturating_mul(part).div_ceil(weight)),
            }
        };
        let mut nodes: BTreeMap<NodeId, Share> = weights.iter().map(|(id, weight)| (*id, share(*weight))).collect();
        let mut leaders = Vec::with_capacity(led.len());
        for one in led {
            let leader = *one.owners.first()?;
            if let Some(node) = nodes.get_mut(&leader) {
                node.load += one.rate;
                node.count += 1;
            }
            leaders.push(leader);
        }
        Some(Leading { led, leaders, nodes })
    }

    /// The one after which the fuller of the two nodes has least of its share.
    fn best_exchange(&self) -> Option<Exchange> {
        let fullest = self.nodes.iter().max_by(|a, b| a.1.fill(0.0).total_cmp(&b.1.fill(0.0)));
        let (&from, hot) = fullest.filter(|(_, share)| share.fill(0.0) > HOT)?;
        let enough = hot.fill(0.0) - (hot.fill(0.0) - 1.0) * GAIN_MIN;
        let mut best: Option<(f64, Exchange)> = None;
        let led_by = |node: NodeId| (0..self.led.len()).filter(move |at| self.leaders[*at] == node);
        for there in led_by(from) {
            for &to in self.led[there].owners.iter().filter(|to| **to != from) {
                let Some(cool) = self.nodes.get(&to) else { continue };
                let alone = hot.count > hot.low && cool.count < cool.high;
                let back = led_by(to).filter(|back| self.led[*back].owners.contains(&from)).map(Some);
                for back in alone.then_some(None).into_iter().chain(back) {
                    let shift = self.led[there].rate - back.map_or(0.0, |back| self.led[back].rate);
                    let fuller = hot.fill(-shift).max(cool.fill(shift));
                    if fuller <= enough && best.as_ref().is_none_or(|(least, _)| fuller < *least) {
                        best = Some((fuller, Exchange { from, to, there, back }));
                    }
                }
            }
        }
        best.map(|(_, exchange)| exchange)
    }

    fn perform(&mut self, exchange: Exchange) -> Vec<(ShardId, NodeId)> {
        let Exchange { from, to, there, back } = exchange;
        let mut passed = vec![(there, from, to)];
        passed.extend(back.map(|back| (back, to, from)));
        for &(at, giver, taker) in &passed {
            self.leaders[at] = taker;
            for (node, sign) in [(giver, -1.0), (taker, 1.0)] {
                if let Some(share) = self.nodes.get_mut(&node) {
                    share.load += sign * self.led[at].rate;
                    share.count = if sign > 0.0 { share.count + 1 } else { share.count.saturating_sub(1) };
                }
            }
        }
        passed.into_iter().map(|(at, _, taker)| (self.led[at].shard, taker)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use types::{NodeId, ShardId};

    use super::{Led, Rates, choose};

    fn led(shard: u32, owners: &[u64], rate: f64) -> Led {
        Led { shard: ShardId(shard), owners: owners.iter().copied().map(NodeId).collect(), rate }
    }

    fn weights(weights: &[u32]) -> BTreeMap<NodeId, u32> {
        (1..).map(NodeId).zip(weights.iter().copied()).collect()
    }

    #[test]
    fn busy_shards_of_one_node_are_exchanged_for_idle_ones() {
        let shards = [
            led(0, &[1, 2, 3], 100.0),
            led(1, &[1, 2, 3], 100.0),
            led(2, &[1, 2, 3], 100.0),
            led(3, &[2, 1, 3], 1.0),
            led(4, &[2, 1, 3], 1.0),
            led(5, &[2, 1, 3], 1.0),
            led(6, &[3, 1, 2], 1.0),
            led(7, &[3, 1, 2], 1.0),
            led(8, &[3, 1, 2], 1.0),
        ];
        let chosen = choose(&shards, &weights(&[1, 1, 1]));
        let mut leaders: BTreeMap<ShardId, NodeId> = shards.iter().map(|one| (one.shard, one.owners[0])).collect();
        leaders.extend(chosen.iter().copied());
        for node in 1..=3 {
            let busy = shards.iter().filter(|one| one.rate > 1.0 && leaders[&one.shard] == NodeId(node)).count();
            let all = leaders.values().filter(|leader| **leader == NodeId(node)).count();
            assert_eq!((busy, all), (1, 3), "node {node}: {chosen:?}");
        }
    }

    #[test]
    fn what_is_near_its_share_or_cannot_be_helped_stays() {
        let even = [led(0, &[1, 2], 60.0), led(1, &[2, 1], 50.0)];
        assert_eq!(choose(&even, &weights(&[1, 1])), []);
        // One shard alone is the load: whoever leads it has it all.
        let single = [led(0, &[1, 2], 500.0), led(1, &[2, 1], 0.0)];
        assert_eq!(choose(&single, &weights(&[1, 1])), []);
        // Nobody else has a replica.
        let alone = [led(0, &[1], 500.0), led(1, &[1], 500.0), led(2, &[2], 1.0), led(3, &[2], 1.0)];
        assert_eq!(choose(&alone, &weights(&[1, 1])), []);
        // Hardly anybody asks for anything.
        let quiet = [led(0, &[1, 2], 5.0), led(1, &[1, 2], 5.0), led(2, &[2, 1], 0.0), led(3, &[2, 1], 0.0)];
        assert_eq!(choose(&quiet, &weights(&[1, 1])), []);
    }

    #[test]
    fn a_node_that_may_not_lead_gets_nothing_and_weights_count() {
        let shards = [led(0, &[1, 3], 100.0), led(1, &[1, 3], 100.0), led(2, &[2, 1], 1.0)];
        assert_eq!(choose(&shards, &weights(&[1, 1])), [], "node 3 drains");
        // Twice the weight, twice the load: that is its share.
        let shards = [led(0, &[1, 2], 100.0), led(1, &[1, 2], 100.0), led(2, &[2, 1], 100.0)];
        assert_eq!(choose(&shards, &weights(&[2, 1])), []);
    }

    #[test]
    fn what_was_chosen_is_left_alone_next_time() {
        let shards: Vec<Led> = (0..30)
            .map(|n| {
                led(
                    n,
                    &[u64::from(n % 3) + 1, u64::from((n + 1) % 3) + 1, u64::from((n + 2) % 3) + 1],
                    f64::from((n * 37) % 101),
                )
            })
            .collect();
        let mut now = shards;
        for _ in 0..20 {
            let chosen = choose(&now, &weights(&[1, 1, 1]));
            if chosen.is_empty() {
                return;
            }
            for (shard, leader) in chosen {
                let one = now.iter_mut().find(|one| one.shard == shard).unwrap();
                one.owners.sort_by_key(|owner| *owner != leader);
            }
        }
        panic!("it never ends");
    }

    #[test]
    fn rates_are_of_one_leader_and_smooth() {
        let (mut rates, began, shard) = (Rates::default(), Instant::now(), ShardId(1));
        let second = |n: u64| began + Duration::from_secs(n);
        rates.note(shard, NodeId(1), 1_000, second(0));
        assert_eq!(rates.of(shard), None);
        rates.note(shard, NodeId(1), 1_100, second(10));
        assert_eq!(rates.of(shard), Some(10.0));
        rates.note(shard, NodeId(1), 1_400, second(20));
        assert_eq!(rates.of(shard), Some(20.0));
        // Another leader counts for itself; a process that started anew, too.
        rates.note(shard, NodeId(2), 9_000_000, second(30));
        rates.note(shard, NodeId(2), 5, second(40));
        assert_eq!(rates.of(shard), Some(20.0));
        rates.note(shard, NodeId(2), 205, second(50));
        assert_eq!(rates.of(shard), Some(20.0));
    }
}
