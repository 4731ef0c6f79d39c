//! The next change of a shard's group, from what its leader sees. Pure.
//!
//! ```text
//! wanted, no replica ──► begun, empty ──► learner ──► caught up ──► voter, in the place of one that is not wanted
//! lost, still a voter ──► no voter ──► begun, empty ──► ...
//! ```
//!
//! Invariant: a replica that has lost its votes says nothing in its group until a membership without it is committed, so
//! that no entry counts it among the majority that holds it, and no election does (docs/decisions/0008).

use std::collections::{BTreeMap, BTreeSet};

use types::NodeId;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Bring a change of membership to its end that a leader before this one began.
    Settle(BTreeSet<NodeId>),
    /// Take a lost replica out of the group, or a learner that is not wanted.
    Remove(NodeId),
    /// Tell a node that it may begin an empty replica.
    Begin(NodeId),
    AddLearner(NodeId),
    /// These are to be the voters.
    Change(BTreeSet<NodeId>),
    /// To a voter that stays, since this leader is to go.
    HandOver(NodeId),
}

/// A replica as the leader, and its node if that was asked, see it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Replica {
    /// It answered its leader lately.
    pub is_heard: bool,
    pub has_caught_up: bool,
    /// Its node says so: its volume is lost.
    pub is_lost: bool,
    /// Its node says so: it never had one, or has dropped it.
    pub is_absent: bool,
    /// Its node says so.
    pub runs: bool,
}

/// A group as its leader sees it.
#[derive(Clone, Debug)]
pub struct View {
    pub own: NodeId,
    pub wanted: Vec<NodeId>,
    /// Where it was wanted before the move that is under way; empty where none is.
    pub previous: Vec<NodeId>,
    /// The memberships in force: two while one gives way to the other.
    pub voters: Vec<BTreeSet<NodeId>>,
    pub learners: BTreeSet<NodeId>,
    /// The newest membership is committed and applied.
    pub is_settled: bool,
    /// The rebalance that asks for another membership is paused: nothing is copied for it. What is broken is mended, and what
    /// has been copied already takes its place.
    pub is_held: bool,
    pub replicas: BTreeMap<NodeId, Replica>,
}

impl View {
    fn replica(&self, id: NodeId) -> Replica {
        if id == self.own {
            return Replica { is_heard: true, has_caught_up: true, runs: true, ..Replica::default() };
        }
        self.replicas.get(&id).copied().unwrap_or_default()
    }

    fn current_voters(&self) -> BTreeSet<NodeId> {
        self.voters.last().cloned().unwrap_or_default()
    }

    /// Wanted, whether the move under way is done or not.
    fn stays(&self, id: NodeId) -> bool {
        self.wanted.contains(&id) && (self.previous.is_empty() || self.previous.contains(&id))
    }

    /// Fewer voters answer than it should have copies, whether the move under way is done or not.
    pub fn is_short(&self) -> bool {
        let answering = self.current_voters().into_iter().filter(|voter| self.replica(*voter).is_heard).count();
        let before = if self.previous.is_empty() { self.wanted.len() } else { self.previous.len() };
        answering < self.wanted.len().min(before)
    }

    /// Nothing is to be copied to it now.
    pub fn holds(&self, learner: NodeId) -> bool {
        self.is_held && !self.stays(learner)
    }

    /// Most of these answer.
    fn has_majority(&self, voters: &BTreeSet<NodeId>) -> bool {
        voters.iter().filter(|voter| self.replica(**voter).is_heard).count() > voters.len() / 2
    }

    /// The group is as wanted and everybody answers: nothing has to be asked.
    pub fn is_well(&self) -> bool {
        let wanted: BTreeSet<NodeId> = self.wanted.iter().copied().collect();
        self.voters.len() == 1
            && self.current_voters() == wanted
            && self.learners.is_empty()
            && wanted.iter().all(|id| self.replica(*id).is_heard)
    }
}

pub fn next(view: &View) -> Option<Step> {
    if !view.is_settled || view.wanted.is_empty() {
        return None;
    }
    if view.voters.len() > 1 {
        return Some(Step::Settle(view.current_voters()));
    }
    let voters = view.current_voters();
    let has_all = view.wanted.iter().all(|id| voters.contains(id));
    // Where nothing is left to copy it ends in spite of a pause: of two voters in a group of one, either would stop it.
    mend(view, &voters).or_else(|| match view.is_held && !has_all {
        true => restore(view, &voters),
        false => approach(view, &voters),
    })
}

/// What a lost replica asks for.
fn mend(view: &View, voters: &BTreeSet<NodeId>) -> Option<Step> {
    let members = voters.iter().chain(&view.learners);
    for id in members.copied().filter(|id| view.replica(*id).is_lost) {
        let others = voters.iter().filter(|voter| **voter != id).count();
        // Of two voters one cannot be removed without its own consent; it holds no majority either way. While the rebalance
        // is paused one that is to go, or has just come, would not be put back.
        if !voters.contains(&id) || others >= 2 && !view.holds(id) {
            return Some(Step::Remove(id));
        }
    }
    // A learner that was dropped while it was taken in would be waited for in vain.
    if let Some(dropped) = view.learners.iter().find(|id| view.replica(**id).is_absent) {
        return Some(Step::Remove(*dropped));
    }
    let is_member = |id: &NodeId| voters.contains(id) || view.learners.contains(id);
    // A voter that never began has promised nothing: its node was away when the group was founded.
    let begins = |id: &NodeId| {
        let replica = view.replica(*id);
        replica.is_absent && voters.contains(id) || replica.is_lost && !is_member(id)
    };
    view.wanted.iter().copied().find(begins).map(Step::Begin)
}

/// Brings in the first of these that is no member and can be one.
fn invite(view: &View, voters: &BTreeSet<NodeId>, ids: impl Iterator<Item = NodeId>) -> Option<Step> {
    let is_member = |id: &NodeId| voters.contains(id) || view.learners.contains(id);
    ids.filter(|id| !is_member(id)).find_map(|id| match view.replica(id) {
        Replica { is_absent: true, .. } => Some(Step::Begin(id)),
        Replica { runs: true, .. } => Some(Step::AddLearner(id)),
        _ => None,
    })
}

/// While the rebalance is paused: only what stays anyway, and was lost, is put back.
fn restore(view: &View, voters: &BTreeSet<NodeId>) -> Option<Step> {
    let staying = || view.wanted.iter().copied().filter(|id| view.stays(*id));
    if let Some(step) = invite(view, voters, staying()) {
        return Some(step);
    }
    let ready = |id: &NodeId| {
        let replica = view.replica(*id);
        view.learners.contains(id) && replica.is_heard && replica.has_caught_up
    };
    let target: BTreeSet<NodeId> = voters.iter().copied().chain(staying().filter(ready)).collect();
    (target != *voters && view.has_majority(&target)).then_some(Step::Change(target))
}

/// From the voters that there are to those that are wanted.
fn approach(view: &View, voters: &BTreeSet<NodeId>) -> Option<Step> {
    if let Some(step) = invite(view, voters, view.wanted.iter().copied()) {
        return Some(step);
    }
    let target = target(view, voters);
    if target == *voters {
        let unwanted = view.learners.iter().copied().find(|learner| !view.wanted.contains(learner));
        return unwanted.map(Step::Remove);
    }
    if !view.has_majority(&target) {
        return None;
    }
    if target.contains(&view.own) {
        return Some(Step::Change(target));
    }
    let stays = |id: &&NodeId| target.contains(id) && view.replica(**id).has_caught_up && view.replica(**id).is_heard;
    match voters.iter().find(stays) {
        Some(heir) => Some(Step::HandOver(*heir)),
        // None that votes already stays: for a moment the new one votes beside the old.
        None => {
            let both: BTreeSet<NodeId> = voters.union(&target).copied().collect();
            (both != *voters).then_some(Step::Change(both))
        }
    }
}

/// The voters that the group can have now: the wanted ones that are ready, and of the others as many as are still needed
/// for as many copies as are wanted.
fn target(view: &View, voters: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let ready = |id: &NodeId| {
        let replica = view.replica(*id);
        voters.contains(id) || view.learners.contains(id) && replica.is_heard && replica.has_caught_up
    };
    let mut target: BTreeSet<NodeId> = view.wanted.iter().copied().filter(ready).collect();
    let missing = view.wanted.len().saturating_sub(target.len());
    let mut others: Vec<NodeId> = voters.iter().copied().filter(|id| !view.wanted.contains(id)).collect();
    // This leader last to go, those that do not answer first.
    others.sort_by_key(|id| (*id != view.own, !view.replica(*id).is_heard));
    target.extend(others.into_iter().take(missing));
    target
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use types::NodeId;

    use super::{Replica, Step, View, next};

    const WELL: Replica = Replica { is_heard: true, has_caught_up: true, is_lost: false, is_absent: false, runs: true };
    const LOST: Replica =
        Replica { is_heard: false, has_caught_up: false, is_lost: true, is_absent: false, runs: false };
    const ABSENT: Replica = Replica { is_absent: true, is_lost: false, ..LOST };
    const SILENT: Replica = Replica { is_lost: false, ..LOST };

    fn set(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// Led by the first voter.
    fn view(wanted: &[u64], voters: &[u64], learners: &[u64], others: &[(u64, Replica)]) -> View {
        let mut replicas: BTreeMap<NodeId, Replica> = voters.iter().map(|id| (NodeId(*id), WELL)).collect();
        replicas.extend(others.iter().map(|(id, replica)| (NodeId(*id), *replica)));
        View {
            own: NodeId(voters[0]),
            wanted: wanted.iter().copied().map(NodeId).collect(),
            previous: Vec::new(),
            voters: vec![set(voters)],
            learners: set(learners),
            is_settled: true,
            is_held: false,
            replicas,
        }
    }

    #[test]
    fn a_lost_replica_goes_and_comes_back_step_by_step() {
        assert_eq!(next(&view(&[1, 2, 3], &[1, 2, 3], &[], &[(3, LOST)])), Some(Step::Remove(NodeId(3))));
        assert_eq!(next(&view(&[1, 2, 3], &[1, 2], &[], &[(3, LOST)])), Some(Step::Begin(NodeId(3))));
        assert_eq!(next(&view(&[1, 2, 3], &[1, 2], &[], &[(3, WELL)])), Some(Step::AddLearner(NodeId(3))));
        let behind = Replica { has_caught_up: false, ..WELL };
        assert_eq!(next(&view(&[1, 2, 3], &[1, 2], &[3], &[(3, behind)])), None);
        assert_eq!(next(&view(&[1, 2, 3], &[1, 2], &[3], &[(3, WELL)])), Some(Step::Change(set(&[1, 2, 3]))));
        assert_eq!(next(&view(&[1, 2, 3], &[1, 2, 3], &[], &[])), None);
        assert_eq!(next(&view(&[1, 2, 3], &[1, 2], &[3], &[(3, LOST)])), Some(Step::Remove(NodeId(3))));
    }

    #[test]
    fn nothing_is_done_while_a_membership_is_under_way_or_without_a_majority_of_others() {
        let lost = view(&[1, 2, 3], &[1, 2, 3], &[], &[(3, LOST)]);
        assert_eq!(next(&View { is_settled: false, ..lost }), None);
        assert_eq!(next(&view(&[1, 2], &[1, 2], &[], &[(2, LOST)])), None);
        // A node that is only away is not given up.
        assert_eq!(next(&view(&[1, 2, 3], &[1, 2, 3], &[], &[(3, SILENT)])), None);
        // A voter that was away when its group was founded has promised nothing.
        assert_eq!(next(&view(&[1, 2, 3], &[1, 2, 3], &[], &[(3, ABSENT)])), Some(Step::Begin(NodeId(3))));
    }

    #[test]
    fn a_replica_moves_from_one_node_to_another() {
        assert_eq!(next(&view(&[1, 2, 4], &[1, 2, 3], &[], &[(4, ABSENT)])), Some(Step::Begin(NodeId(4))));
        assert_eq!(next(&view(&[1, 2, 4], &[1, 2, 3], &[], &[(4, WELL)])), Some(Step::AddLearner(NodeId(4))));
        assert_eq!(next(&view(&[1, 2, 4], &[1, 2, 3], &[4], &[(4, WELL)])), Some(Step::Change(set(&[1, 2, 4]))));
        assert_eq!(next(&view(&[1, 2, 4], &[1, 2, 4], &[], &[])), None);
        // The leader itself is to go: another that stays leads first.
        assert_eq!(next(&view(&[2, 3, 4], &[1, 2, 3], &[4], &[(4, WELL)])), Some(Step::HandOver(NodeId(2))));
        // The old place of a dead node.
        let dead = view(&[1, 2, 4], &[1, 2, 3], &[4], &[(3, SILENT), (4, WELL)]);
        assert_eq!(next(&dead), Some(Step::Change(set(&[1, 2, 4]))));
    }

    #[test]
    fn the_only_replica_moves_through_two_voters() {
        assert_eq!(next(&view(&[2], &[1], &[2], &[(2, WELL)])), Some(Step::Change(set(&[1, 2]))));
        assert_eq!(next(&view(&[2], &[1, 2], &[], &[])), Some(Step::HandOver(NodeId(2))));
        assert_eq!(next(&view(&[2], &[2, 1], &[], &[])), Some(Step::Change(set(&[2]))));
        let behind = Replica { has_caught_up: false, ..WELL };
        assert_eq!(next(&view(&[2], &[1], &[2], &[(2, behind)])), None);
    }

    #[test]
    fn no_copy_is_given_up_before_another_is_there() {
        // Of two that come one is ready: one of two that go does.
        let half = view(&[1, 4, 5], &[1, 2, 3], &[4, 5], &[(4, WELL), (5, SILENT), (3, SILENT)]);
        assert_eq!(next(&half), Some(Step::Change(set(&[1, 2, 4]))));
        // More copies than are wanted: one goes, and the leader only once another leads.
        assert_eq!(next(&view(&[1], &[1, 2, 3], &[], &[])), Some(Step::Change(set(&[1]))));
        assert_eq!(next(&view(&[2], &[1, 2, 3], &[], &[])), Some(Step::HandOver(NodeId(2))));
        // What would have no majority is not changed to.
        assert_eq!(next(&view(&[1, 2], &[1, 2, 3], &[], &[(2, SILENT)])), None);
    }

    #[test]
    fn a_pause_holds_moves_and_mends_what_is_broken() {
        let held = |view: View| held(&[1, 2, 3], view);
        assert_eq!(next(&held(view(&[1, 2, 4], &[1, 2, 3], &[4], &[(4, WELL)]))), None);
        assert_eq!(next(&held(view(&[1, 2, 3], &[1, 2, 3], &[], &[(3, LOST)]))), Some(Step::Remove(NodeId(3))));
        let joint = View { voters: vec![set(&[1, 2, 3]), set(&[1, 2, 4])], ..view(&[1, 2, 4], &[1, 2, 3], &[], &[]) };
        assert_eq!(next(&held(joint)), Some(Step::Settle(set(&[1, 2, 4]))));
    }

    fn held(previous: &[u64], view: View) -> View {
        View { is_held: true, previous: previous.iter().copied().map(NodeId).collect(), ..view }
    }

    #[test]
    fn a_pause_leaves_no_group_of_one_with_two_voters() {
        assert_eq!(next(&held(&[1], view(&[2], &[1], &[2], &[(2, WELL)]))), None);
        assert_eq!(next(&held(&[1], view(&[2], &[1, 2], &[], &[]))), Some(Step::HandOver(NodeId(2))));
        assert_eq!(next(&held(&[1], view(&[2], &[2, 1], &[], &[]))), Some(Step::Change(set(&[2]))));
    }

    #[test]
    fn a_replica_that_stays_and_is_lost_while_the_rebalance_is_paused_comes_back() {
        let moving = |voters: &[u64], learners: &[u64], second: Replica, third: Replica| {
            let others = [(2, second), (3, third), (4, WELL)];
            held(&[1, 2, 3], view(&[1, 2, 4], voters, learners, &others))
        };
        assert_eq!(next(&moving(&[1, 2, 3], &[4], LOST, WELL)), Some(Step::Remove(NodeId(2))));
        assert_eq!(next(&moving(&[1, 3], &[4], LOST, WELL)), Some(Step::Begin(NodeId(2))));
        assert_eq!(next(&moving(&[1, 3], &[4], WELL, WELL)), Some(Step::AddLearner(NodeId(2))));
        let behind = Replica { has_caught_up: false, ..WELL };
        assert_eq!(next(&moving(&[1, 3], &[2, 4], behind, WELL)), None);
        // The target waits, though it is there.
        assert_eq!(next(&moving(&[1, 3], &[2, 4], WELL, WELL)), Some(Step::Change(set(&[1, 2, 3]))));
        assert_eq!(next(&moving(&[1, 2, 3], &[4], WELL, WELL)), None);
        // One that is to go anyway would not be put back: it stays a voter until then.
        assert_eq!(next(&moving(&[1, 2, 3], &[4], WELL, LOST)), None);
        let copied = moving(&[1, 3], &[2, 4], behind, WELL);
        assert!(copied.holds(NodeId(4)) && !copied.holds(NodeId(2)));
    }

    #[test]
    fn a_learner_that_was_dropped_goes_and_is_begun_again() {
        assert_eq!(next(&view(&[1, 2, 4], &[1, 2, 3], &[4], &[(4, ABSENT)])), Some(Step::Remove(NodeId(4))));
        assert_eq!(next(&view(&[1, 2, 4], &[1, 2, 3], &[], &[(4, ABSENT)])), Some(Step::Begin(NodeId(4))));
    }

    #[test]
    fn an_aborted_move_leaves_no_learner() {
        assert_eq!(next(&view(&[1, 2, 3], &[1, 2, 3], &[4], &[(4, SILENT)])), Some(Step::Remove(NodeId(4))));
    }

    /// From every start, with every leader: the steps end at what is wanted, and at every point as many copies are there as at
    /// the start or the end, and each membership shares a voter that has caught up with the one before.
    #[test]
    fn steps_end_where_they_should() {
        let subsets: Vec<Vec<u64>> = (1u32..32)
            .map(|bits| (0..5u64).filter(|bit| bits & (1 << bit) != 0).map(|bit| bit + 1).collect())
            .collect();
        for from in &subsets {
            for to in &subsets {
                let mut now = view(to, from, &[], &[]);
                let mut running: BTreeSet<NodeId> = set(from);
                for _ in 0..40 {
                    now.replicas =
                        (1..=5).map(NodeId).map(|id| (id, if running.contains(&id) { WELL } else { ABSENT })).collect();
                    let Some(step) = next(&now) else { break };
                    let before = now.voters[0].clone();
                    match step {
                        Step::Begin(id) => drop(running.insert(id)),
                        Step::AddLearner(id) => drop(now.learners.insert(id)),
                        Step::Remove(id) => drop(now.learners.remove(&id)),
                        Step::HandOver(id) => {
                            assert!(before.contains(&id));
                            now.own = id;
                        }
                        Step::Change(voters) => {
                            assert!(voters.contains(&now.own) && !voters.is_disjoint(&before));
                            assert!(voters.len() >= from.len().min(to.len()), "{from:?} {to:?} {voters:?}");
                            now.learners.retain(|learner| !voters.contains(learner));
                            now.voters = vec![voters];
                        }
                        Step::Settle(_) => unreachable!(),
                    }
                }
                assert_eq!((now.voters[0].clone(), now.learners.len()), (set(to), 0), "{from:?} to {to:?}");
            }
        }
    }
}
