//! Choosing each shard's preferred leader among its owners, so that each node leads its share by weight.

use super::Plan;
use super::balance::{Step, shortest_path};
use crate::share::{Band, Claim, bands};

impl Plan {
    /// By shard the leader. One that led before goes on unless it would lead more than its share, or another less.
    ///
    /// With equal weights every node comes to its share, rounded down or up. With unequal ones the replicas may not
    /// allow it; then the outcome is as near as can be.
    pub(super) fn leaders(&self) -> Vec<usize> {
        let mut leading = Leading {
            leaders: (0..self.owners.len()).map(|shard| self.natural_leader(shard)).collect(),
            counts: vec![0; self.nodes.len()],
            bands: self.leader_bands(),
            plan: self,
        };
        for leader in &leading.leaders {
            leading.counts[*leader] += 1;
        }
        leading.balance();
        leading.leaders
    }

    /// The owner that stands first in the current list; if none of them was there before, the ring's favourite.
    fn natural_leader(&self, shard: usize) -> usize {
        let owners = &self.owners[shard];
        let stays = self.before[shard].iter().find(|node| owners.contains(node));
        let favourite = || self.preference[shard].iter().find(|node| owners.contains(node));
        // A shard has an owner, since there is at least one node and one replica.
        stays.or_else(favourite).copied().unwrap_or_default()
    }

    fn leader_bands(&self) -> Vec<Band> {
        let claim = |(node, count): (&super::Candidate, &u32)| Claim { weight: node.weight, zone: 0, most: *count };
        let claims: Vec<Claim> = self.nodes.iter().zip(&self.counts).map(claim).collect();
        bands(self.owners.len() as u64, &claims, None)
    }
}

struct Leading<'a> {
    leaders: Vec<usize>,
    /// By node: how many shards it leads.
    counts: Vec<u32>,
    bands: Vec<Band>,
    plan: &'a Plan,
}

impl Leading<'_> {
    fn balance(&mut self) {
        for node in 0..self.counts.len() {
            while self.counts[node] > self.bands[node].high {
                let needy = |leading: &Leading<'_>, to: usize| leading.counts[to] < leading.bands[to].low;
                let roomy = |leading: &Leading<'_>, to: usize| leading.counts[to] < leading.bands[to].high;
                if !self.pass_on(node, needy) && !self.pass_on(node, roomy) {
                    break;
                }
            }
        }
        for needy in 0..self.counts.len() {
            while self.counts[needy] < self.bands[needy].low {
                let spare = |node: &usize| self.counts[*node] > self.bands[*node].low;
                let givers: Vec<usize> = (0..self.counts.len()).filter(spare).collect();
                if !givers.into_iter().any(|giver| self.pass_on(giver, |_, to| to == needy)) {
                    break;
                }
            }
        }
    }

    fn pass_on(&mut self, start: usize, goal: impl Fn(&Leading<'_>, usize) -> bool) -> bool {
        let nodes = self.counts.len();
        let mut led: Vec<Vec<usize>> = vec![Vec::new(); nodes];
        for (shard, leader) in self.leaders.iter().enumerate() {
            led[*leader].push(shard);
        }
        let steps = |from: usize| {
            let mut best: Vec<Option<Step>> = vec![None; nodes];
            for &shard in &led[from] {
                for &to in self.plan.owners[shard].iter().filter(|to| **to != from) {
                    let better = best[to].is_none_or(|step| self.cost(shard, to) < self.cost(step.shard, to));
                    if better {
                        best[to] = Some(Step { shard, from, to });
                    }
                }
            }
            best
        };
        let path = shortest_path(nodes, start, |node| goal(self, node), steps);
        let Some(path) = path else { return false };
        for step in path {
            self.leaders[step.shard] = step.to;
            self.counts[step.from] -= 1;
            self.counts[step.to] += 1;
        }
        true
    }

    /// A shard whose first owner is new changes its leader anyway; then as the ring prefers it.
    fn cost(&self, shard: usize, to: usize) -> (bool, usize, usize) {
        let leader_stays = self.plan.before[shard].first() == Some(&self.leaders[shard]);
        (leader_stays, self.plan.rank[shard][to], shard)
    }
}
