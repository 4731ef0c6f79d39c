//! Makes each shard's group the one that the directory wants: its leader changes the membership, one step a round
//! ([`step`]); nodes begin the replicas that it tells them to, and drop those that their group goes on without.

mod catch_up;
mod copies;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use directory::RebalanceState;
use futures_util::future::join_all;
use openraft::{BasicNode, ChangeMembers};
use proto::wire::{BeginReplicaRequest, NodeStatusReply, ShardMembersReply, ShardMembersRequest};
use proto::{DirectoryStore, GrpcNode};
use storage::{Failpoint, GroupId, reach};
use tokio::sync::watch;
use tokio::task::JoinSet;
use types::{MailError, MailResult, NodeId, ShardId};

use self::catch_up::{Behind, CatchUps};
use self::copies::Copies;
use self::step::{Replica, Step, View};
use crate::Node;
use crate::shard::Shard;
use crate::step_aside;

const ROUND: Duration = Duration::from_millis(500);
/// A node that does not say within this how it is will be asked again.
const STATUS_MAX: Duration = Duration::from_secs(2);
/// Between questions to the directory's leader which shards lack a replica.
const SHORT_ASKED: Duration = Duration::from_secs(1);
/// Steps under way at once: each waits for a majority.
const STEPS_MAX: usize = 8;
/// A step whose majority does not answer is given up, and looked at again; what it has proposed may still come about.
const STEP_MAX: Duration = Duration::from_secs(15);

/// Four things go on side by side, since three of them wait for nodes that may not answer: a pause is to take effect at once,
/// and no step waits for a replica that is to be dropped.
pub async fn run(node: Node, stopped: watch::Receiver<bool>) {
    let rounds = || Rounds { revisions: node.groups().directory_state.revisions(), stopped: stopped.clone() };
    let (mut of_copies, mut of_short, mut of_steps, mut of_drops) = (rounds(), rounds(), rounds(), rounds());
    let copies = async {
        let mut catch_ups = CatchUps::default();
        while of_copies.next().await {
            let copies = note_copies(&node);
            let late = catch_ups.note(&behind(&node, &copies));
            node.groups().peers.set_late(late.let_by, late.by_entries);
        }
    };
    let short = async {
        let mut asked: Option<Instant> = None;
        while of_short.next().await {
            if asked.is_none_or(|last| last.elapsed() >= SHORT_ASKED) {
                asked = Some(Instant::now());
                ask_for_short(&node).await;
            }
        }
    };
    let steps = async {
        let mut steps = Steps::default();
        while of_steps.next().await {
            steps.end();
            round(&node, &mut steps).await;
        }
    };
    let drops = async {
        while of_drops.next().await {
            drop_unwanted(&node).await;
        }
    };
    tokio::join!(copies, short, steps, drops);
}

struct Rounds {
    revisions: watch::Receiver<u64>,
    stopped: watch::Receiver<bool>,
}

impl Rounds {
    /// True at every change of the directory, and at a steady pace; false when the node stops.
    async fn next(&mut self) -> bool {
        tokio::select! {
            () = tokio::time::sleep(ROUND) => true,
            changed = self.revisions.changed() => changed.is_ok(),
            _ = self.stopped.wait_for(|stop| *stop) => false,
        }
    }
}

/// Says which replicas of the shards that this node leads are copied to.
fn note_copies(node: &Node) -> Copies {
    let led = node.groups().shards().into_iter().filter(|shard| shard.group.leads_majority());
    let views: Vec<(GroupId, View)> = led.map(|shard| (shard.group.id, view(node, &shard))).collect();
    let short = node.short_shards().known(Instant::now()).map(|(shards, _)| shards).unwrap_or_default();
    let copies = copies::of(&views, &short);
    node.groups().peers.set_copying(copies.to.clone(), copies.held.clone());
    copies
}

/// How far the learners are that are copied to just now.
fn behind(node: &Node, copies: &Copies) -> BTreeMap<(GroupId, u64), Behind> {
    let extent = |(group, learner): (GroupId, u64)| {
        let shard = node.groups().shard(ShardId(group.0)).ok()?;
        let (matched, last) = shard.group.extent_of(NodeId(learner));
        Some(((group, learner), Behind { matched, last, is_near: shard.group.is_level(NodeId(learner)) }))
    };
    copies.to.difference(&copies.held).copied().filter_map(extent).collect()
}

/// Asks the directory's leader which shards lack a replica, where copies may have to wait for them. Whoever leads it, knows.
async fn ask_for_short(node: &Node) {
    if !node.groups().peers.is_copying() {
        return;
    }
    let leader = node.groups().directory().metrics().current_leader.map(NodeId);
    let Some(leader) = leader.filter(|leader| *leader != node.id()) else { return };
    // A node of the version before does not tell.
    let told = status(node, leader).await.and_then(|status| status.short_shards);
    if let Some(told) = told {
        node.short_shards().note_told(told, Instant::now());
    }
}

/// The steps that are under way: one of a shard, and none waits for that of another.
#[derive(Default)]
struct Steps {
    tasks: JoinSet<ShardId>,
    shards: BTreeSet<ShardId>,
}

impl Steps {
    /// Lets those go that have ended.
    fn end(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            match ended {
                Ok(shard) => drop(self.shards.remove(&shard)),
                Err(error) => tracing::error!(%error, "step broken off"),
            }
        }
        if self.tasks.is_empty() {
            self.shards.clear();
        }
    }

    fn begin(&mut self, id: ShardId, taking: impl Future<Output = ()> + Send + 'static) {
        self.shards.insert(id);
        self.tasks.spawn(async move {
            if tokio::time::timeout(STEP_MAX, taking).await.is_err() {
                tracing::info!(shard = id.0, "step not taken in time");
            }
            id
        });
    }

    fn takes(&self, shard: ShardId) -> bool {
        self.tasks.len() < STEPS_MAX && !self.shards.contains(&shard)
    }
}

/// One round over the shards that this node leads.
async fn round(node: &Node, steps: &mut Steps) {
    let mut views = Vec::new();
    let mut unsure = BTreeSet::new();
    for shard in node.groups().shards().into_iter().filter(|shard| shard.group.leads_majority()) {
        let view = view(node, &shard);
        if view.is_well() || !steps.takes(shard.id) {
            continue;
        }
        unsure.extend(unheard(node, &view));
        views.push((shard, view));
    }
    let asked: Vec<NodeId> = unsure.into_iter().collect();
    let answers = join_all(asked.iter().map(|id| status(node, *id))).await;
    let statuses: BTreeMap<NodeId, NodeStatusReply> =
        asked.into_iter().zip(answers).filter_map(|(id, status)| Some((id, status?))).collect();
    for (shard, mut view) in views {
        for replica in unheard(node, &view) {
            let Some(status) = statuses.get(&replica) else { continue };
            let seen = view.replicas.entry(replica).or_default();
            seen.is_lost = status.lost_shards.contains(&shard.id.0);
            seen.is_absent = status.absent_shards.contains(&shard.id.0);
            seen.runs = status.groups.iter().any(|group| group.group == shard.id.0 && group.role != "stopped");
        }
        let Some(step) = step::next(&view).filter(|_| steps.takes(shard.id)) else { continue };
        let node = node.clone();
        steps.begin(shard.id, async move {
            // A scrub has this very group go on without a replica, and that one made anew.
            let Ok(_alone) = shard.membership.try_lock() else { return };
            match take(&node, &shard, step.clone()).await {
                Ok(()) => {
                    // A copy begins slowly.
                    drop(note_copies(&node));
                    tracing::info!(shard = shard.id.0, ?step, "membership changed a step");
                }
                Err(error) => tracing::debug!(shard = shard.id.0, ?step, %error, "step not taken"),
            }
        });
    }
}

/// The nodes of a shard that its leader has not heard of lately: their nodes are asked.
fn unheard(node: &Node, view: &View) -> Vec<NodeId> {
    let unsure = |id: &NodeId| *id != node.id() && !view.replicas.get(id).is_some_and(|replica| replica.is_heard);
    let members: BTreeSet<NodeId> =
        view.wanted.iter().chain(view.voters.iter().flatten()).chain(&view.learners).copied().collect();
    members.into_iter().filter(unsure).collect()
}

fn view(node: &Node, shard: &Shard) -> View {
    let metrics = shard.group.metrics();
    let membership = metrics.membership_config.membership();
    let (wanted, previous, is_paused) = {
        let directory = node.groups().directory_state.read();
        let placement = directory.placement(shard.id);
        let is_paused = directory.rebalance().is_some_and(|rebalance| rebalance.state == RebalanceState::Paused);
        let lists = placement.map(|placement| (placement.wanted.clone(), placement.previous.clone()));
        let (wanted, previous) = lists.unwrap_or_default();
        (wanted, previous, is_paused)
    };
    let applied = metrics.last_applied.map(|id| id.index);
    let members = membership.voter_ids().chain(membership.learner_ids()).map(NodeId);
    let seen = |id: NodeId| Replica {
        is_heard: shard.group.hears(id),
        has_caught_up: shard.group.is_level(id),
        ..Replica::default()
    };
    View {
        own: node.id(),
        is_held: is_paused && !previous.is_empty(),
        wanted,
        previous,
        voters: membership.get_joint_config().iter().map(|set| set.iter().copied().map(NodeId).collect()).collect(),
        learners: membership.learner_ids().map(NodeId).collect(),
        is_settled: metrics.membership_config.log_id().as_ref().map(|id| id.index) <= applied,
        replicas: members.map(|id| (id, seen(id))).collect(),
    }
}

pub fn at(node: &Node, replica: NodeId) -> Option<GrpcNode> {
    let peers = &node.groups().peers;
    let address = peers.address(replica.0)?;
    peers.channel(replica.0, &address).ok().map(GrpcNode::new)
}

pub async fn status(node: &Node, replica: NodeId) -> Option<NodeStatusReply> {
    let status = tokio::time::timeout(STATUS_MAX, at(node, replica)?.node_status()).await.ok()?.ok()?;
    // Another node may have its address by now.
    status.identity.as_ref().is_some_and(|identity| identity.node_id == replica.0).then_some(status)
}

async fn take(node: &Node, shard: &Arc<Shard>, step: Step) -> MailResult<()> {
    let voters_are =
        |voters: BTreeSet<NodeId>| ChangeMembers::ReplaceAllVoters(voters.into_iter().map(|voter| voter.0).collect());
    let (before, change, after) = match step {
        Step::Begin(replica) => return begin_at(node, shard, replica, false).await,
        Step::AddLearner(replica) => {
            let address = node.groups().peers.address(replica.0).ok_or(MailError::Unavailable)?;
            let learner = BasicNode::new(address);
            reach(Failpoint::LearnerProposed, shard.group.id);
            // Before anything goes to it: what is not known as a copy yields to nothing.
            node.groups().peers.begin_copying(shard.group.id, replica.0);
            let added = shard.group.raft.add_learner(replica.0, learner, false).await;
            added.map_err(|e| MailError::CannotDo(e.to_string()))?;
            may_lose_its_log(shard, replica, true).await;
            reach(Failpoint::LearnerAdded, shard.group.id);
            return Ok(());
        }
        Step::HandOver(heir) => {
            if !step_aside::serves_well(node, heir).await {
                return Err(MailError::CannotDo("the heir's disk is full or stalls".to_owned()));
            }
            reach(Failpoint::HandOverAsked, shard.group.id);
            shard.group.hand_over(heir).await;
            reach(Failpoint::HandedOver, shard.group.id);
            return Ok(());
        }
        Step::Remove(replica) => {
            let change = match has_vote(shard, replica) {
                true => ChangeMembers::RemoveVoters([replica.0].into()),
                false => ChangeMembers::RemoveNodes([replica.0].into()),
            };
            (Failpoint::RemoveProposed, change, Failpoint::Removed)
        }
        Step::Settle(voters) => (Failpoint::SettleProposed, voters_are(voters), Failpoint::Settled),
        Step::Change(voters) => {
            for voter in voters.iter().filter(|voter| !has_vote(shard, **voter)) {
                may_lose_its_log(shard, *voter, false).await;
            }
            (Failpoint::ChangeProposed, voters_are(voters), Failpoint::Changed)
        }
    };
    reach(before, shard.group.id);
    let changed = shard.group.raft.change_membership(change, false).await;
    changed.map(|_| reach(after, shard.group.id)).map_err(|e| MailError::CannotDo(e.to_string()))
}

/// A learner may be begun anew by a call that comes late, after it has said what it has: its leader would send what is behind that
/// for ever. It asks again where this is allowed. A voter never may.
async fn may_lose_its_log(shard: &Shard, replica: NodeId, may: bool) {
    // A group that has stopped, or another that leads, does not matter here.
    drop(shard.group.raft.trigger().allow_next_revert(&replica.0, may).await);
}

fn has_vote(shard: &Shard, replica: NodeId) -> bool {
    shard.group.metrics().membership_config.membership().voter_ids().any(|voter| voter == replica.0)
}

/// As the shard's leader: tells a node that it may begin an empty replica. `discard`: what it has is damaged, and no member.
pub async fn begin_at(node: &Node, shard: &Arc<Shard>, replica: NodeId, discard: bool) -> MailResult<()> {
    // So that it is no leader of long ago that says so, and what it has applied is all that was ever acknowledged.
    shard.group.read_barrier().await?;
    let (vote, votes_from) = shard.group.standing()?;
    let membership = shard.group.membership_index();
    let peer = at(node, replica).ok_or(MailError::Unavailable)?;
    reach(Failpoint::BeginAsked, shard.group.id);
    let request = BeginReplicaRequest { shard: shard.id.0, discard, vote: Some(vote), votes_from, membership };
    peer.begin_replica(request).await.inspect(|()| reach(Failpoint::BeginAnswered, shard.group.id))
}

/// On the replica's node: begins an empty replica where there is none, or in the place of one that was lost, or that is
/// damaged and to be discarded. Only the leader of its group may say so.
pub async fn begin(node: &Node, request: BeginReplicaRequest) -> MailResult<()> {
    let shard = ShardId(request.shard);
    let vote = crate::raft::vote_from_wire(request.vote).map_err(|e| MailError::Invalid(e.to_string()))?;
    let discard = request.discard.then_some(request.membership);
    let begun = node.groups().begin_replica(shard, discard, vote, request.votes_from).await;
    match begun.map_err(|error| MailError::Internal(error.to_string()))? {
        Some(volume) => {
            tracing::info!(shard = shard.0, volume, "replica begun");
            Ok(())
        }
        None => Err(MailError::CannotDo("no replica is to begin here, or no volume has room".to_owned())),
    }
}

/// As a shard's leader.
pub async fn members(node: &Node, shard: ShardId) -> MailResult<ShardMembersReply> {
    let shard = node.groups().shard(shard)?;
    shard.group.read_barrier().await?;
    let metrics = shard.group.metrics();
    let membership = metrics.membership_config.membership();
    Ok(ShardMembersReply { voters: membership.voter_ids().collect(), learners: membership.learner_ids().collect() })
}

/// Drops replicas that are not wanted here any more, once their groups have gone on without them.
async fn drop_unwanted(node: &Node) {
    let unwanted: Vec<(ShardId, Vec<NodeId>)> = {
        let directory = node.groups().directory_state.read();
        let shards = node.groups().shards();
        let placed = shards.iter().filter_map(|shard| directory.placement(shard.id));
        let named = |list: &[NodeId]| list.contains(&node.id());
        placed
            .filter(|placement| placement.initialised && !named(&placement.wanted) && !named(&placement.previous))
            .map(|placement| (placement.shard, placement.wanted.clone()))
            .collect()
    };
    for (shard, others) in unwanted {
        if is_member(node, shard, &others).await != Some(false) {
            continue;
        }
        reach(Failpoint::DropTold, GroupId(shard.0));
        // Asked again once it says nothing any more: nobody has counted on it between.
        let left = node.groups().leave(shard, || async { is_member(node, shard, &others).await }).await;
        match left {
            Ok(true) => tracing::info!(shard = shard.0, "replica that is not wanted here any more dropped"),
            Ok(false) => {}
            Err(error) => tracing::error!(shard = shard.0, %error, "replica cannot be dropped"),
        }
    }
}

/// Whether this node is a member of a shard's group; `None` where no leader says so.
async fn is_member(node: &Node, shard: ShardId, others: &[NodeId]) -> Option<bool> {
    for other in others {
        let Some(peer) = at(node, *other) else { continue };
        let asked = tokio::time::timeout(STATUS_MAX, peer.shard_members(ShardMembersRequest { shard: shard.0 })).await;
        if let Ok(Ok(members)) = asked {
            return Some(members.voters.iter().chain(&members.learners).any(|member| *member == node.id().0));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tokio::time::Instant;
    use types::ShardId;

    use super::{ROUND, Rounds, STEP_MAX, STEPS_MAX, Steps};

    #[tokio::test(start_paused = true)]
    async fn a_round_begins_with_every_change_of_the_directory() {
        let (revision, revisions) = watch::channel(1);
        let (stop, stopped) = watch::channel(false);
        let mut rounds = Rounds { revisions, stopped };
        let began = Instant::now();
        assert!(rounds.next().await);
        assert_eq!(began.elapsed(), ROUND);
        // While a round lasts, too.
        revision.send_replace(2);
        assert!(rounds.next().await);
        assert_eq!(began.elapsed(), ROUND);
        stop.send_replace(true);
        assert!(!rounds.next().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_does_not_end_holds_up_neither_others_nor_its_own_shard_for_ever() {
        let mut steps = Steps::default();
        steps.begin(ShardId(1), std::future::pending());
        steps.begin(ShardId(2), async {});
        assert!(!steps.takes(ShardId(1)) && steps.takes(ShardId(3)));
        tokio::time::sleep(STEP_MAX / 2).await;
        steps.end();
        assert!(!steps.takes(ShardId(1)) && steps.takes(ShardId(2)));
        tokio::time::sleep(STEP_MAX).await;
        steps.end();
        assert!(steps.takes(ShardId(1)));
        for shard in 0..STEPS_MAX as u32 {
            steps.begin(ShardId(shard), std::future::pending());
        }
        assert!(!steps.takes(ShardId(99)));
    }
}
