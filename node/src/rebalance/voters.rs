//! Which nodes vote in the directory: three, or five of many, on nodes that live, in distinct zones where possible. Pure.

use std::collections::BTreeSet;

use types::NodeId;

use crate::bootstrap::voter_count;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub id: NodeId,
    pub zone: String,
    /// Stays in the cluster: neither draining nor removed.
    pub stays: bool,
    /// Answers, or has not been silent for long.
    pub lives: bool,
    pub votes: bool,
}

/// The voters that there should be. Those that vote already stay where they can: each change is one fewer that knows all.
pub fn choose(candidates: &[Candidate]) -> BTreeSet<NodeId> {
    let count = voter_count(candidates.iter().filter(|candidate| candidate.stays).count());
    let mut chosen: Vec<&Candidate> = Vec::new();
    while chosen.len() < count {
        let free = candidates.iter().filter(|one| one.stays && !chosen.contains(one));
        let best = free.max_by_key(|one| {
            let new_zone = !chosen.iter().any(|other| other.zone == one.zone);
            (one.lives, new_zone, one.votes, std::cmp::Reverse(one.id))
        });
        let Some(best) = best else { break };
        chosen.push(best);
    }
    if chosen.is_empty() {
        return candidates.iter().filter(|one| one.votes).map(|one| one.id).collect();
    }
    chosen.into_iter().map(|one| one.id).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use types::NodeId;

    use super::{Candidate, choose};

    fn node(id: u64, zone: &str, votes: bool) -> Candidate {
        Candidate { id: NodeId(id), zone: zone.to_owned(), stays: true, lives: true, votes }
    }

    fn chosen(candidates: &[Candidate]) -> Vec<u64> {
        choose(candidates).into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn three_vote_and_stay_while_they_can() {
        let mut nodes: Vec<Candidate> = (1..=4).map(|id| node(id, "z", id >= 2)).collect();
        assert_eq!(chosen(&nodes), [2, 3, 4]);
        nodes[2].lives = false;
        assert_eq!(chosen(&nodes), [1, 2, 4]);
        nodes[2].lives = true;
        nodes[1].stays = false;
        assert_eq!(chosen(&nodes), [1, 3, 4]);
        // Of two nodes both vote.
        nodes[0].stays = false;
        assert_eq!(chosen(&nodes), [3, 4]);
    }

    #[test]
    fn voters_are_in_distinct_zones_where_possible() {
        let nodes = [node(1, "a", true), node(2, "a", true), node(3, "b", true), node(4, "c", false)];
        assert_eq!(chosen(&nodes), [1, 3, 4]);
        let dead = Candidate { lives: false, ..nodes[3].clone() };
        assert_eq!(chosen(&[nodes[0].clone(), nodes[1].clone(), nodes[2].clone(), dead]), [1, 2, 3]);
        assert_eq!(choose(&[]), BTreeSet::new());
    }
}
