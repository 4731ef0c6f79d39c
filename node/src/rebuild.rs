//! Replicas whose volume was lost are made anew from the others, by each shard's leader, one step a round:
//!
//! ```text
//! lost, still a voter ──► no voter ──► begun, empty ──► learner ──► caught up ──► voter
//! ```
//!
//! Invariant: a replica that has lost its votes says nothing in its group until a membership without it is committed, so
//! that no entry counts it among the majority that holds it, and no election does (docs/decisions/0008).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::{BasicNode, ChangeMembers, Instant};
use proto::wire::{BeginReplicaRequest, NodeStatusReply};
use proto::{DirectoryStore, GrpcNode};
use tokio::sync::watch;
use types::{MailError, MailResult, NodeId, ShardId};

use crate::Node;
use crate::shard::Shard;

/// How far behind its leader a learner may be when it becomes a voter.
const LAG_ENTRIES_MAX: u64 = 100;
const ROUND: Duration = Duration::from_secs(1);
/// A node that does not say within this how it is will be asked again.
const STATUS_MAX: Duration = Duration::from_secs(2);
/// Steps of one round: each may wait for a majority.
const STEPS_MAX: usize = 8;
/// A replica that was heard from within this is not asked after.
const HEARD_MAX: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Take the lost replica out of the group.
    Remove,
    /// Tell its node that it may begin an empty one.
    Begin,
    AddLearner,
    Promote,
}

/// A replica of a shard as the shard's leader and the replica's node see it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    is_voter: bool,
    is_learner: bool,
    other_voters: usize,
    /// The membership in force is committed and applied.
    is_settled: bool,
    /// Its node says that it is lost, or that it runs; neither where it does not answer.
    is_lost: bool,
    runs: bool,
    has_caught_up: bool,
}

fn step(seen: Seen) -> Option<Step> {
    let is_member = seen.is_voter || seen.is_learner;
    if !seen.is_settled {
        return None;
    }
    match seen {
        // Of two voters one cannot be removed without its own consent; it holds no majority either way.
        Seen { is_lost: true, is_voter: true, other_voters, .. } => (other_voters >= 2).then_some(Step::Remove),
        Seen { is_lost: true, is_learner: true, .. } => Some(Step::Remove),
        Seen { is_lost: true, .. } => Some(Step::Begin),
        Seen { runs: true, .. } if !is_member => Some(Step::AddLearner),
        Seen { runs: true, is_voter: false, has_caught_up: true, .. } => Some(Step::Promote),
        _ => None,
    }
}

pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        round(&node).await;
    }
}

/// One round over the shards that this node leads.
async fn round(node: &Node) {
    let mut asked: BTreeMap<NodeId, Option<NodeStatusReply>> = BTreeMap::new();
    let mut steps = 0;
    for shard in node.groups().shards().into_iter().filter(|shard| shard.group.leads()) {
        let wanted: Vec<NodeId> = {
            let directory = node.groups().directory_state.read();
            directory.placement(shard.id).map(|placement| placement.wanted.clone()).unwrap_or_default()
        };
        for replica in wanted.into_iter().filter(|replica| *replica != node.id() && !is_well(&shard, *replica)) {
            if let std::collections::btree_map::Entry::Vacant(entry) = asked.entry(replica) {
                entry.insert(status(node, replica).await);
            }
            let Some(Some(status)) = asked.get(&replica) else { continue };
            let Some(step) = step(seen(&shard, replica, status)) else { continue };
            if steps >= STEPS_MAX {
                return;
            }
            steps += 1;
            match take(node, &shard, replica, step).await {
                Ok(()) => tracing::info!(shard = shard.id.0, node = replica.0, ?step, "lost replica rebuilt a step"),
                Err(error) => tracing::debug!(shard = shard.id.0, node = replica.0, ?step, %error, "step not taken"),
            }
        }
    }
}

/// A voter that answers its leader.
fn is_well(shard: &Shard, replica: NodeId) -> bool {
    let metrics = shard.group.metrics();
    let is_voter = metrics.membership_config.membership().voter_ids().any(|voter| voter == replica.0);
    let heard = metrics.heartbeat.as_ref().and_then(|heartbeat| heartbeat.get(&replica.0).copied().flatten());
    is_voter && heard.is_some_and(|at| at.elapsed() < HEARD_MAX)
}

pub fn at(node: &Node, replica: NodeId) -> Option<GrpcNode> {
    let peers = &node.groups().peers;
    let address = peers.address(replica.0)?;
    peers.channel(replica.0, &address).ok().map(GrpcNode::new)
}

async fn status(node: &Node, replica: NodeId) -> Option<NodeStatusReply> {
    let status = tokio::time::timeout(STATUS_MAX, at(node, replica)?.node_status()).await.ok()?.ok()?;
    // Another node may have its address by now.
    status.identity.as_ref().is_some_and(|identity| identity.node_id == replica.0).then_some(status)
}

fn seen(shard: &Shard, replica: NodeId, status: &NodeStatusReply) -> Seen {
    let metrics = shard.group.metrics();
    let membership = &metrics.membership_config;
    let applied = metrics.last_applied.map(|id| id.index);
    let last = metrics.last_log_index.unwrap_or(0);
    let matched = metrics.replication.as_ref().and_then(|replication| replication.get(&replica.0).copied().flatten());
    let is_voter = membership.membership().voter_ids().any(|voter| voter == replica.0);
    Seen {
        is_voter,
        is_learner: membership.membership().learner_ids().any(|learner| learner == replica.0),
        other_voters: membership.membership().voter_ids().filter(|voter| *voter != replica.0).count(),
        is_settled: membership.log_id().as_ref().map(|id| id.index) <= applied
            && membership.membership().get_joint_config().len() == 1,
        is_lost: status.lost_shards.contains(&shard.id.0),
        runs: status.groups.iter().any(|group| group.group == shard.id.0 && group.role != "stopped"),
        has_caught_up: matched.is_some_and(|matched| matched.index + LAG_ENTRIES_MAX >= last),
    }
}

async fn take(node: &Node, shard: &Arc<Shard>, replica: NodeId, step: Step) -> MailResult<()> {
    let raft = &shard.group.raft;
    let refused = |error: String| MailError::CannotDo(error);
    match step {
        Step::Remove => {
            let is_voter = seen_voter(shard, replica);
            let change = match is_voter {
                true => ChangeMembers::RemoveVoters([replica.0].into()),
                false => ChangeMembers::RemoveNodes([replica.0].into()),
            };
            raft.change_membership(change, false).await.map_err(|e| refused(e.to_string()))?;
        }
        Step::Begin => {
            // So that it is no leader of long ago that says so.
            shard.group.read_barrier().await?;
            if seen_voter(shard, replica) {
                return Err(MailError::Unavailable);
            }
            let peer = at(node, replica).ok_or(MailError::Unavailable)?;
            peer.begin_replica(BeginReplicaRequest { shard: shard.id.0, discard: false }).await?;
        }
        Step::AddLearner => {
            let address = node.groups().peers.address(replica.0).ok_or(MailError::Unavailable)?;
            raft.add_learner(replica.0, BasicNode::new(address), false).await.map_err(|e| refused(e.to_string()))?;
        }
        Step::Promote => {
            let change = ChangeMembers::AddVoterIds([replica.0].into());
            raft.change_membership(change, false).await.map_err(|e| refused(e.to_string()))?;
        }
    }
    Ok(())
}

fn seen_voter(shard: &Shard, replica: NodeId) -> bool {
    shard.group.metrics().membership_config.membership().voter_ids().any(|voter| voter == replica.0)
}

/// On the replica's node: begins an empty replica in the place of one that was lost, or that is damaged and to be
/// discarded. Only the leader of its group may say so, once the group goes on without it.
pub async fn begin(node: &Node, request: BeginReplicaRequest) -> MailResult<()> {
    let shard = ShardId(request.shard);
    let internal = |error: std::io::Error| MailError::Internal(error.to_string());
    match node.groups().begin_replica(shard, request.discard).await.map_err(internal)? {
        Some(volume) => {
            tracing::info!(shard = shard.0, volume, "replica begun in the place of a lost one");
            Ok(())
        }
        None => Err(MailError::CannotDo("no such replica is lost, or no volume has room".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::{Seen, Step, step};

    const WELL: Seen = Seen {
        is_voter: true,
        is_learner: false,
        other_voters: 2,
        is_settled: true,
        is_lost: false,
        runs: true,
        has_caught_up: true,
    };

    #[test]
    fn a_lost_replica_goes_and_comes_back_step_by_step() {
        let lost = Seen { is_lost: true, runs: false, has_caught_up: false, ..WELL };
        assert_eq!(step(lost), Some(Step::Remove));
        let removed = Seen { is_voter: false, ..lost };
        assert_eq!(step(removed), Some(Step::Begin));
        let begun = Seen { is_lost: false, runs: true, ..removed };
        assert_eq!(step(begun), Some(Step::AddLearner));
        let learner = Seen { is_learner: true, ..begun };
        assert_eq!(step(learner), None);
        assert_eq!(step(Seen { has_caught_up: true, ..learner }), Some(Step::Promote));
        assert_eq!(step(WELL), None);
    }

    #[test]
    fn nothing_is_done_while_a_membership_is_under_way_or_without_a_majority_of_others() {
        let lost = Seen { is_lost: true, runs: false, ..WELL };
        assert_eq!(step(Seen { is_settled: false, ..lost }), None);
        assert_eq!(step(Seen { is_settled: false, is_voter: false, ..lost }), None);
        assert_eq!(step(Seen { other_voters: 1, ..lost }), None);
        // A node that is only away is not given up.
        assert_eq!(step(Seen { runs: false, ..WELL }), None);
        assert_eq!(step(Seen { is_learner: true, is_voter: false, ..lost }), Some(Step::Remove));
    }
}
