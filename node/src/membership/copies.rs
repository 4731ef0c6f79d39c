//! Which replicas are copied to, and which of these copies wait. Pure.

use std::collections::BTreeSet;

use storage::GroupId;
use types::ShardId;

use super::step::View;

/// What goes to replicas that are to become voters, of the groups that a node leads.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Copies {
    /// Groups and the nodes of their learners.
    pub to: BTreeSet<(GroupId, u64)>,
    /// Those of them that wait: their rebalance is paused, or others need the disks and the network more.
    pub held: BTreeSet<(GroupId, u64)>,
}

/// While a shard lacks a replica only such shards are copied: nothing waits that mends one. `views`: of the groups that this node
/// leads, which it knows best. `short`: the shards of the cluster that lack one, as far as the directory's leader has told.
pub fn of(views: &[(GroupId, View)], short: &BTreeSet<ShardId>) -> Copies {
    let mut copies = Copies::default();
    let is_led = |shard: &ShardId| views.iter().any(|(group, _)| group.0 == shard.0);
    let is_any_short = views.iter().any(|(_, view)| view.is_short()) || short.iter().any(|shard| !is_led(shard));
    for (group, view) in views {
        let yields = is_any_short && !view.is_short();
        for learner in &view.learners {
            copies.to.insert((*group, learner.0));
            if yields || view.holds(*learner) {
                copies.held.insert((*group, learner.0));
            }
        }
    }
    copies
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use storage::GroupId;
    use types::{NodeId, ShardId};

    use super::super::step::{Replica, View};
    use super::of;

    /// Led by node 1, which hears these.
    fn view(wanted: &[u64], previous: &[u64], voters: &[u64], learners: &[u64], heard: &[u64]) -> View {
        let list = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let seen = |id: NodeId| (id, Replica { is_heard: heard.contains(&id.0), ..Replica::default() });
        View {
            own: NodeId(1),
            wanted: list(wanted),
            previous: list(previous),
            voters: vec![list(voters).into_iter().collect()],
            learners: list(learners).into_iter().collect(),
            is_settled: true,
            is_held: false,
            replicas: list(voters).into_iter().map(seen).collect(),
        }
    }

    fn held(views: &[View]) -> Vec<u32> {
        held_while(&[], views)
    }

    /// These shards lack a replica, as the directory's leader says.
    fn held_while(short: &[u32], views: &[View]) -> Vec<u32> {
        let numbered: Vec<(GroupId, View)> = (0..).map(GroupId).zip(views.iter().cloned()).collect();
        let copies = of(&numbered, &short.iter().copied().map(ShardId).collect());
        assert_eq!(copies.to.len(), views.iter().map(|view| view.learners.len()).sum::<usize>());
        copies.held.into_iter().map(|(group, _)| group.0).collect()
    }

    #[test]
    fn copies_wait_while_another_shard_lacks_a_replica_and_those_that_mend_do_not() {
        let moving = view(&[1, 2, 4], &[1, 2, 3], &[1, 2, 3], &[4], &[2, 3]);
        let whole = view(&[1, 2, 5], &[], &[1, 2, 5], &[], &[2, 5]);
        assert_eq!(held(&[moving.clone(), whole]), [0; 0]);
        let short = view(&[1, 2, 5], &[], &[1, 2, 5], &[], &[2]);
        assert_eq!(held(&[moving.clone(), short]), [0]);
        // A dead node's replica is made anew elsewhere, a lost one in its place.
        let mending = view(&[1, 2, 4], &[1, 2, 5], &[1, 2, 5], &[4], &[2]);
        let restored = view(&[1, 2, 5], &[], &[1, 2], &[5], &[2]);
        assert_eq!(held(&[moving.clone(), mending]), [0]);
        assert_eq!(held(&[restored, moving]), [1]);
    }

    #[test]
    fn copies_wait_while_a_shard_lacks_a_replica_that_another_node_leads() {
        let moving = view(&[1, 2, 4], &[1, 2, 3], &[1, 2, 3], &[4], &[2, 3]);
        let mending = view(&[1, 2, 4], &[1, 2, 5], &[1, 2, 5], &[4], &[2]);
        assert_eq!(held_while(&[7], std::slice::from_ref(&moving)), [0]);
        // Two shards that lack one, led by two nodes, do not wait for each other.
        assert_eq!(held_while(&[7], &[moving.clone(), mending.clone()]), [0]);
        assert_eq!(held_while(&[0, 7], std::slice::from_ref(&mending)), [0; 0]);
        // Of what it leads this node knows more than was told a while ago.
        assert_eq!(held_while(&[0], std::slice::from_ref(&moving)), [0; 0]);
        assert_eq!(held_while(&[], &[mending]), [0; 0]);
    }

    #[test]
    fn a_group_of_one_lacks_nothing_while_it_moves() {
        let moving = view(&[4], &[1], &[1], &[4], &[]);
        assert_eq!(held(&[moving, view(&[5], &[1], &[1], &[5], &[])]), [0; 0]);
        let paused = View { is_held: true, ..view(&[4], &[1], &[1], &[4], &[]) };
        let learners = BTreeSet::from([(GroupId(0), 4)]);
        assert_eq!(of(&[(GroupId(0), paused)], &BTreeSet::new()).held, learners);
    }
}
