//! Where a shard's replicas should be, as far as the directory says. Pure.

use types::NodeId;

/// The nodes of a shard's replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replicas {
    /// Each once, the preferred leader first.
    all: Vec<NodeId>,
    /// The memberships that the group may have: what is wanted, and amid a move what was wanted before.
    memberships: Vec<Vec<NodeId>>,
}

impl Replicas {
    pub const NONE: Replicas = Replicas { all: Vec::new(), memberships: Vec::new() };

    /// `previous` is empty unless the shard moves: then those that had it may lead it still.
    pub fn new(wanted: Vec<u64>, previous: Vec<u64>) -> Replicas {
        let memberships: Vec<Vec<NodeId>> = [wanted, previous]
            .into_iter()
            .filter(|ids| !ids.is_empty())
            .map(|ids| ids.into_iter().map(NodeId).collect())
            .collect();
        let mut all: Vec<NodeId> = Vec::new();
        for id in memberships.iter().flatten() {
            if !all.contains(id) {
                all.push(*id);
            }
        }
        Replicas { all, memberships }
    }

    pub fn all(&self) -> &[NodeId] {
        &self.all
    }

    /// Whether so many are away that nobody can lead, whichever membership is in force.
    pub fn lack_majority(&self, is_away: impl Fn(NodeId) -> bool) -> bool {
        let lacks = |ids: &Vec<NodeId>| ids.iter().filter(|id| is_away(**id)).count() * 2 >= ids.len();
        !self.memberships.is_empty() && self.memberships.iter().all(lacks)
    }
}

#[cfg(test)]
mod tests {
    use types::NodeId;

    use super::Replicas;

    fn lack(replicas: &Replicas, away: &[u64]) -> bool {
        replicas.lack_majority(|id| away.contains(&id.0))
    }

    #[test]
    fn a_majority_is_one_of_a_membership_that_may_be_in_force() {
        let settled = Replicas::new(vec![1, 2, 3], Vec::new());
        assert!(!lack(&settled, &[1]) && lack(&settled, &[1, 3]) && lack(&settled, &[1, 2, 3]));
        // One replica moves: while its new node is away, the old one leads.
        let moves = Replicas::new(vec![2], vec![1]);
        assert_eq!(moves.all(), [NodeId(2), NodeId(1)]);
        assert!(!lack(&moves, &[2]) && !lack(&moves, &[1]) && lack(&moves, &[1, 2]));
        // A node that stays counts once.
        let moves = Replicas::new(vec![1, 2, 4], vec![1, 2, 3]);
        assert_eq!(moves.all(), [1, 2, 4, 3].map(NodeId));
        assert!(!lack(&moves, &[2, 4]) && !lack(&moves, &[4]) && !lack(&moves, &[1, 3]));
        assert!(lack(&moves, &[1, 2]) && lack(&moves, &[3, 4, 1]));
        assert!(!lack(&Replicas::NONE, &[]), "nothing is known of it");
    }
}
