//! Bringing every node's count into its band with few moves: directly where one move does, else along a path of moves.

use std::collections::VecDeque;

use super::Plan;

/// A shard passes from one node to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Step {
    pub shard: usize,
    pub from: usize,
    pub to: usize,
}

/// The shortest chain of steps from `start` to a node that is a `goal`, in order; `None` if there is none.
///
/// `steps` gives the best step from a node to each other node that it can pass a shard to. No two steps of a
/// shortest chain are of the same shard in a way that would hinder one another: the chain could be cut short there.
pub(super) fn shortest_path(
    nodes: usize,
    start: usize,
    goal: impl Fn(usize) -> bool,
    steps: impl Fn(usize) -> Vec<Option<Step>>,
) -> Option<Vec<Step>> {
    let mut reached: Vec<Option<Step>> = vec![None; nodes];
    let mut waiting = VecDeque::from([start]);
    while let Some(from) = waiting.pop_front() {
        for step in steps(from).into_iter().flatten() {
            if step.to == start || reached[step.to].is_some() {
                continue;
            }
            reached[step.to] = Some(step);
            if goal(step.to) {
                return Some(trace(&reached, start, step));
            }
            waiting.push_back(step.to);
        }
    }
    None
}

fn trace(reached: &[Option<Step>], start: usize, last: Step) -> Vec<Step> {
    let mut path = vec![last];
    let mut at = last.from;
    while at != start
        && let Some(step) = reached[at]
    {
        path.push(step);
        at = step.from;
    }
    path.reverse();
    path
}

impl Plan {
    /// Invariant on return: every count is within its band.
    pub(super) fn balance(&mut self) {
        // Those that lack take from those that have too much, then from those that have any to spare.
        for needy in 0..self.nodes.len() {
            self.take(needy, |plan, giver| plan.counts[giver] > plan.bands[giver].high);
            self.take(needy, |plan, giver| plan.counts[giver] > plan.bands[giver].low);
        }
        for node in 0..self.nodes.len() {
            while self.counts[node] > self.bands[node].high {
                let needy = |plan: &Plan, to: usize| plan.counts[to] < plan.bands[to].low;
                let roomy = |plan: &Plan, to: usize| plan.counts[to] < plan.bands[to].high;
                if !self.pass_on(node, needy) && !self.pass_on(node, roomy) {
                    break;
                }
            }
        }
        for needy in 0..self.nodes.len() {
            while self.counts[needy] < self.bands[needy].low {
                let spare = |node: &usize| self.counts[*node] > self.bands[*node].low;
                let givers: Vec<usize> = (0..self.nodes.len()).filter(spare).collect();
                if !givers.into_iter().any(|giver| self.pass_on(giver, |_, to| to == needy)) {
                    break;
                }
            }
        }
    }

    /// Gives a node that is below its share shards of nodes that are `givers`, those first that cost least.
    fn take(&mut self, needy: usize, giver: impl Fn(&Plan, usize) -> bool) {
        if self.counts[needy] >= self.bands[needy].low {
            return;
        }
        let mut offers = Vec::new();
        for (shard, owners) in self.owners.iter().enumerate() {
            let offered = owners.iter().filter(|from| giver(self, **from) && self.fits(shard, needy, Some(**from)));
            offers.extend(offered.map(|&from| (self.cost(shard, from, needy), Step { shard, from, to: needy })));
        }
        offers.sort_by_key(|(cost, step)| (*cost, step.shard, step.from));
        if self.weights.matter {
            let anyway = offers.partition_point(|((data, _), _)| *data == 0);
            let steps: Vec<Step> = offers.into_iter().map(|(_, step)| step).collect();
            self.take_octets(needy, &giver, &steps[..anyway]);
            self.take_octets(needy, &giver, &steps[anyway..]);
            return;
        }
        for (_, step) in offers {
            if self.counts[needy] >= self.bands[needy].low {
                break;
            }
            if giver(self, step.from) && self.fits(step.shard, needy, Some(step.from)) {
                self.perform(step);
            }
        }
    }

    /// A replica that is new anyway costs nothing to put elsewhere; moving the leader's costs a change of leader too.
    /// Then as the ring prefers it.
    fn cost(&self, shard: usize, from: usize, to: usize) -> (u8, usize) {
        let data = match self.before[shard].iter().position(|node| *node == from) {
            None => 0,
            Some(0) => 2,
            Some(_) => 1,
        };
        (data, self.rank[shard][to])
    }

    pub(super) fn perform(&mut self, step: Step) {
        self.remove(step.shard, step.from);
        self.add(step.shard, step.to);
    }

    /// Makes `start` one shard lighter and a goal one heavier; the nodes between keep their counts. False if that
    /// cannot be.
    fn pass_on(&mut self, start: usize, goal: impl Fn(&Plan, usize) -> bool) -> bool {
        let mut owned: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (shard, owners) in self.owners.iter().enumerate() {
            owners.iter().for_each(|owner| owned[*owner].push(shard));
        }
        let steps = |from: usize| {
            let best = |to: usize| {
                let fitting = owned[from].iter().filter(|shard| self.fits(**shard, to, Some(from)));
                let shard = fitting.min_by_key(|shard| (self.cost(**shard, from, to), **shard));
                shard.map(|&shard| Step { shard, from, to })
            };
            (0..self.nodes.len()).map(|to| if to == from { None } else { best(to) }).collect()
        };
        let path = shortest_path(self.nodes.len(), start, |node| goal(self, node), steps);
        let Some(path) = path else { return false };
        path.into_iter().for_each(|step| self.perform(step));
        true
    }
}
