//! Whether the directory lacks a majority, which no patience helps against, or only a leader, which an election brings. Pure.

use proto::wire::GroupStatus;

/// Who votes in the directory, and which of them said nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Voters {
    pub all: Vec<u64>,
    pub silent: Vec<u64>,
}

impl Voters {
    /// `groups`: the directory's on each node that answered, by the node's id. None where nobody knows who votes, or while
    /// voters change: there are two majorities then.
    pub fn of(groups: &[(u64, &GroupStatus)]) -> Option<Voters> {
        let (_, newest) = groups.iter().max_by_key(|(_, group)| group.last_index)?;
        if newest.voters.is_empty() || newest.joint {
            return None;
        }
        let answered = |voter: &u64| groups.iter().any(|(node, _)| node == voter);
        let silent = newest.voters.iter().copied().filter(|voter| !answered(voter)).collect();
        Some(Voters { all: newest.voters.clone(), silent })
    }

    /// Those that do not answer are too many.
    pub fn lack_majority(&self) -> bool {
        (self.all.len() - self.silent.len()) * 2 <= self.all.len()
    }

    /// `names`: of those that are silent.
    pub fn refusal(&self, names: &[String]) -> String {
        let (silent, all) = (self.silent.len(), self.all.len());
        let said = match all {
            1 => format!("the directory's only voter does not answer ({})", names.join(", ")),
            _ => format!("{silent} of the directory's {all} voters do not answer ({})", names.join(", ")),
        };
        format!("{said}, so that it has no majority: nothing was changed")
    }
}

#[cfg(test)]
mod tests {
    use proto::wire::GroupStatus;

    use super::Voters;

    fn group(last_index: u64, voters: &[u64]) -> GroupStatus {
        GroupStatus { last_index, voters: voters.to_vec(), ..GroupStatus::default() }
    }

    #[test]
    fn a_majority_is_lacking_only_where_too_few_voters_answer() {
        let told = group(7, &[1, 2, 3]);
        let lacking = |nodes: &[u64]| {
            let groups: Vec<(u64, &GroupStatus)> = nodes.iter().map(|node| (*node, &told)).collect();
            Voters::of(&groups).map(|voters| (voters.lack_majority(), voters.silent))
        };
        // An election is under way, or soon will be.
        assert_eq!(lacking(&[1, 2, 3]), Some((false, vec![])));
        assert_eq!(lacking(&[3, 1]), Some((false, vec![2])));
        assert_eq!(lacking(&[2]), Some((true, vec![1, 3])));
        // Nodes that do not vote help nobody.
        assert_eq!(lacking(&[2, 4, 5]), Some((true, vec![1, 3])));
        assert_eq!(lacking(&[]), None);
        let even = group(7, &[1, 2]);
        assert!(Voters::of(&[(1, &even)]).unwrap().lack_majority());
    }

    #[test]
    fn who_votes_is_as_the_replica_says_that_has_most() {
        let (before, now) = (group(7, &[1, 2, 3]), group(9, &[1, 4, 5]));
        let voters = Voters::of(&[(1, &before), (4, &now)]).unwrap();
        assert_eq!((voters.lack_majority(), voters.silent), (false, vec![5]));
        let joint = GroupStatus { joint: true, ..group(10, &[1, 2, 3, 4]) };
        assert_eq!(Voters::of(&[(1, &before), (4, &joint)]), None);
        assert_eq!(Voters::of(&[(1, &group(0, &[]))]), None, "it has not begun");
    }

    #[test]
    fn a_refusal_names_who_does_not_answer() {
        let voters = Voters { all: vec![1, 2, 3], silent: vec![2, 3] };
        assert_eq!(
            voters.refusal(&["node2".to_owned(), "node3".to_owned()]),
            "2 of the directory's 3 voters do not answer (node2, node3), so that it has no majority: nothing was changed"
        );
    }
}
