//! One running Raft group of this node: propose, read, look.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use directory::Start;
use futures_util::FutureExt;
use openraft::async_runtime::WatchReceiver;
use openraft::error::{ClientWriteError, Fatal, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{Instant, RaftMetrics, ReadPolicy, ServerState};
use proto::wire::{self, GroupStatus};
use storage::{GroupId, StorageError};
use types::{MailError, MailResult, NodeId};

use crate::log_keeping::{LogExtent, Member};
use crate::raft::{
    Applier, Damage, GroupLog, LogId, Machine, Peers, PeersFactory, Proposal, RECENT_ENTRIES_MAX, Raft, Recent, Reply,
    Types, config, fatal, vote_to_wire,
};
use crate::step_aside::Stall;
use crate::vetting::Vetting;

/// From proposal to applied. Longer than an election, so that a leader without a majority is found out first.
const PROPOSE_MAX: Duration = Duration::from_secs(10);
/// A read waits this long for the leader to be sure that it leads.
const READ_MAX: Duration = Duration::from_secs(2);
/// How far behind a replica may be when leadership is to move to it, or it is to get a vote.
const LAG_ENTRIES_MAX: u64 = RECENT_ENTRIES_MAX;
/// How many octets a learner may lack when it is to get its vote. Nothing throttles a voter, and writers may wait for it: these
/// are 80 ms at 100 Mbit/s. Two of the largest entries: one may always be on its way.
const LAG_OCTETS_MAX: u64 = 1024 * 1024;
/// Four heartbeats.
const HEARD_LATELY: Duration = Duration::from_secs(2);
/// A leader that no majority has answered for so long has none: several heartbeats, and the longest election.
const QUORUM_LATELY: Duration = Duration::from_secs(5);
/// How soon that is noticed where nothing else happens.
const QUORUM_LOOK: Duration = Duration::from_secs(1);
/// No log entry is larger, so that heartbeats and small mail never wait long behind a large one.
const ENTRY_OCTETS_MAX: usize = 512 * 1024;
/// What the log adds to a command: term, index, length and checksum of the body.
const ENTRY_OVERHEAD_OCTETS: usize = 1024;
/// A command's head and body together. Whoever proposes splits what may be more.
pub const PROPOSAL_OCTETS_MAX: usize = ENTRY_OCTETS_MAX - ENTRY_OVERHEAD_OCTETS;

/// What all groups of a node have in common.
#[derive(Clone)]
pub struct GroupContext {
    pub own: NodeId,
    pub peers: Arc<Peers>,
    pub stall: Stall,
    pub start: StartCount,
    pub vetting: Arc<Vetting>,
}

/// Of this process: what tells it from one on an old copy of its disks.
#[derive(Clone, Copy, Debug)]
pub struct StartCount {
    /// As the disks had it.
    pub before: Start,
    pub now: Start,
}

/// How long a proposal waits to be applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// Somebody has asked for it, and waits: [`PROPOSE_MAX`].
    Asked,
    /// A part of a copy: as long as this node leads a majority. Over narrow links it waits for what goes before it.
    Copy,
}

#[derive(Clone)]
pub struct Group {
    pub id: GroupId,
    pub raft: Raft,
    pub storage: storage::Group,
    own: NodeId,
    peers: Arc<Peers>,
    stall: Stall,
    damage: Damage,
    recent: Recent,
    /// As [`storage::Group::votes_from`] has it.
    votes_from: Option<u64>,
    /// As in [`GroupContext`].
    vetting: Arc<Vetting>,
}

impl Group {
    pub async fn start(
        storage: storage::Group,
        applier: Arc<dyn Applier>,
        context: &GroupContext,
    ) -> io::Result<Group> {
        let id = storage.id();
        let opened = storage.clone();
        let damage = Damage::default();
        let noted = damage.clone();
        let opening = tokio::task::spawn_blocking(move || {
            let log = GroupLog::open(opened.clone(), noted.clone())?;
            let votes_from = opened.votes_from().map_err(|e| noted.note(e))?;
            let machine = Machine::new(opened, applier, log.synced(), noted)?;
            io::Result::Ok((log, machine, votes_from))
        });
        let (log, machine, votes_from) = opening.await.map_err(io::Error::other)??;
        let network = PeersFactory { peers: context.peers.clone(), group: id };
        let recent = log.recent();
        let raft = Raft::new(context.own.0, config(), network, log, machine)
            .await
            .map_err(|error| damage.found().map_or_else(|| io::Error::other(error), io::Error::other))?;
        let (peers, stall, vetting) = (context.peers.clone(), context.stall.clone(), context.vetting.clone());
        let group = Group { id, raft, storage, own: context.own, peers, stall, damage, recent, votes_from, vetting };
        if !group.takes_part() {
            group.raft.runtime_config().elect(false);
        }
        Ok(group)
    }

    /// Returns the reply and the entry's index once a majority has synced the command and this node has applied it.
    /// `NotLeader`, `Unavailable`: certainly not done. `Deadline`: the outcome is unknown. `Limit`: more than [`PROPOSAL_OCTETS_MAX`].
    pub async fn propose(&self, head: Vec<u8>, body: Option<Bytes>) -> MailResult<(Reply, u64)> {
        self.propose_with(Patience::Asked, head, body).await
    }

    /// The same, with more patience than somebody has who waits for it.
    pub async fn propose_with(
        &self,
        patience: Patience,
        head: Vec<u8>,
        body: Option<Bytes>,
    ) -> MailResult<(Reply, u64)> {
        let proposal = Proposal { head: head.into(), body };
        if proposal.head.len() + proposal.body.as_ref().map_or(0, Bytes::len) > PROPOSAL_OCTETS_MAX {
            return Err(MailError::Limit(format!("too much for one change, at most {PROPOSAL_OCTETS_MAX} octets")));
        }
        if self.metrics().running_state.is_err() {
            return Err(MailError::Unavailable);
        }
        if self.stands_aside() {
            return Err(MailError::NotLeader { hint: None });
        }
        let began = std::time::Instant::now();
        let given_up = async {
            match patience {
                Patience::Asked => tokio::time::sleep(PROPOSE_MAX).await,
                Patience::Copy => self.leads_no_more().await,
            }
        };
        let written = tokio::select! {
            // What has been done is told, however late this is looked at.
            biased;
            written = self.raft.client_write(proposal) => written,
            () = given_up => return Err(MailError::Deadline),
            // Others have it or not, and go on without this node.
            () = self.stepping_aside() => return Err(MailError::Deadline),
        };
        match written {
            Ok(response) => {
                if self.id != GroupId::DIRECTORY {
                    self.peers.throttle.latencies.add(began.elapsed());
                }
                Ok((response.data, response.log_id.index))
            }
            Err(RaftError::APIError(error)) => Err(match error {
                ClientWriteError::ForwardToLeader(forward) => not_leader(&forward),
                ClientWriteError::LogEntryDiscarded(_) => MailError::Deadline,
                ClientWriteError::ChangeMembershipError(error) => fatal(error),
                ClientWriteError::PreconditionFailed(error) => fatal(error),
            }),
            // The disk failed or the node stops: others may have the entry by now, and commit it.
            Err(RaftError::Fatal(_)) => Err(MailError::Deadline),
        }
    }

    /// After this, a read of the local state sees every write acknowledged before the call.
    ///
    /// Asks a majority each time: docs/decisions/0003 says why the leader's lease is not trusted.
    pub async fn read_barrier(&self) -> MailResult<()> {
        if self.stands_aside() {
            return Err(MailError::NotLeader { hint: None });
        }
        let barrier = async {
            let linearizer = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.map_err(|e| match e {
                RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => not_leader(&forward),
                RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => MailError::Unavailable,
                // Another replica may lead by now.
                RaftError::Fatal(_) => MailError::Unavailable,
            })?;
            linearizer.await_ready(&self.raft).await.map_err(|_| MailError::Unavailable).map(|_| ())
        };
        tokio::time::timeout(READ_MAX, barrier).await.unwrap_or(Err(MailError::Unavailable))
    }

    /// It has stopped, since a record of its own cannot be read.
    pub fn stopped_by_damage(&self) -> Option<StorageError> {
        self.damage.found().filter(|_| self.metrics().running_state.is_err())
    }

    /// The disk stalls and another replica may lead: this node answers as one that does not, whatever its group still
    /// believes, which waits for the disk.
    fn stands_aside(&self) -> bool {
        self.stall.is_on() && self.has_others()
    }

    /// Returns when that begins.
    pub async fn stepping_aside(&self) {
        self.stall.begins().await;
        if !self.has_others() {
            std::future::pending::<()>().await;
        }
    }

    /// Others vote, too.
    pub fn has_others(&self) -> bool {
        self.metrics().membership_config.membership().voter_ids().any(|voter| voter != self.own.0)
    }

    /// The best voter to lead in this node's place: it answered lately, and has more of the log than the others.
    pub fn heir(&self, fit: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let metrics = self.metrics();
        let voters = metrics.membership_config.membership().voter_ids();
        let others =
            voters.filter(|voter| *voter != self.own.0 && fit(NodeId(*voter)) && heard_lately(&metrics, *voter));
        others.max_by_key(|voter| matched(&metrics, *voter)).map(NodeId)
    }

    /// This node leads, and the other is a voter that has all but the last entries and answered lately.
    pub fn has_caught_up(&self, other: NodeId) -> bool {
        let metrics = self.metrics();
        let last = metrics.last_log_index.unwrap_or(0);
        let is_voter = metrics.membership_config.membership().voter_ids().any(|voter| voter == other.0);
        let near = matched(&metrics, other.0).is_some_and(|matched| matched + LAG_ENTRIES_MAX >= last);
        is_voter && near && heard_lately(&metrics, other.0)
    }

    /// This node leads, and the other answered lately; true of itself.
    pub fn hears(&self, other: NodeId) -> bool {
        other == self.own || heard_lately(&self.metrics(), other.0)
    }

    /// This node leads, and the other has all but the last entries, if it is a learner the last octets, too; true of itself.
    pub fn is_level(&self, other: NodeId) -> bool {
        let metrics = self.metrics();
        let is_learner = metrics.membership_config.membership().learner_ids().any(|learner| learner == other.0);
        let by_octets = is_learner && !self.peers.counts_entries_alone(self.id, other.0);
        let last = metrics.last_log_index.unwrap_or(0);
        let lacks = |matched| by_octets.then(|| self.recent.octets_behind(matched));
        other == self.own || matched(&metrics, other.0).is_some_and(|matched| is_near(matched, last, lacks(matched)))
    }

    /// Of a learner: the last entry that it has, and the last one of this leader.
    pub fn extent_of(&self, learner: NodeId) -> (u64, u64) {
        let metrics = self.metrics();
        (matched(&metrics, learner.0).unwrap_or(0), metrics.last_log_index.unwrap_or(0))
    }

    /// How far its log reaches, and what others still need of it.
    pub fn log_extent(&self) -> LogExtent {
        let sent = self.peers.copies_of(self.id);
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<LogId>| id.map_or(0, |id| id.index);
        let followers = metrics.replication.iter().flatten().filter(|(id, _)| heard_lately(&metrics, **id));
        let last = |(id, matched): (&u64, &Option<LogId>)| {
            index(matched).max(sent.get(id).map_or(0, |snapshot| snapshot.index))
        };
        LogExtent {
            applied: index(&metrics.last_applied),
            snapshot: index(&metrics.snapshot),
            purged: index(&metrics.purged),
            last_of_all: followers.map(last).min(),
            // The directory's stay learners.
            has_learners: self.id != GroupId::DIRECTORY
                && metrics.membership_config.membership().learner_ids().next().is_some(),
        }
    }

    /// The other members of a group that this node leads.
    pub fn members(&self) -> Vec<Member> {
        let sent = self.peers.copies_of(self.id);
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let others = metrics.replication.iter().flatten().filter(|(id, _)| **id != self.own.0);
        let member = |(id, matched): (&u64, &Option<LogId>)| Member {
            node: *id,
            matched: matched.map_or(0, |id| id.index),
            is_learner: membership.learner_ids().any(|learner| learner == *id),
            snapshot: sent.get(id).copied(),
        };
        others.map(member).collect()
    }

    /// Notes a snapshot, behind which entries can be dropped; none is by this alone.
    pub async fn note_snapshot(&self) {
        // A group that has stopped drops nothing.
        drop(self.raft.trigger().snapshot().await);
    }

    /// Drops the entries up to this index, as far as a snapshot was noted behind them.
    pub async fn purge_to(&self, index: u64) {
        drop(self.raft.trigger().purge_log(index).await);
    }

    /// As the leader, after a read barrier: its vote, and the last entry that it has applied.
    pub fn standing(&self) -> MailResult<(wire::Vote, u64)> {
        let metrics = self.metrics();
        if metrics.state != ServerState::Leader {
            return Err(MailError::NotLeader { hint: metrics.current_leader.map(NodeId) });
        }
        Ok((vote_to_wire(&metrics.vote), metrics.last_applied.map_or(0, |id| id.index)))
    }

    /// Whether this replica, begun empty, is still without the entries that were there before it.
    fn is_before(&self, votes_from: u64) -> bool {
        self.metrics().last_log_index.unwrap_or(0) < votes_from
    }

    /// Whether it may grant votes; a replica that was begun empty must not until it has what others acknowledged without it,
    /// and none until its node's disks are known not to be an old copy.
    pub fn takes_part(&self) -> bool {
        self.vetting.allows(|| self.is_alone()) && self.votes_from.is_none_or(|from| !self.is_before(from))
    }

    /// Whether it is the only voter.
    fn is_alone(&self) -> bool {
        let metrics = self.metrics();
        metrics.membership_config.membership().voter_ids().eq([self.own.0])
    }

    /// Lets it stand for election once it may vote.
    pub fn stand_if_due(&self) {
        if self.takes_part() {
            self.raft.runtime_config().elect(true);
        }
    }

    /// Gives leadership to another voter, unless this node does not lead. Returns before it has it.
    pub async fn hand_over(&self, to: NodeId) {
        tracing::info!(group = self.id.0, to = to.0, "leadership handed over");
        drop(self.raft.trigger().transfer_leader(to.0).await);
    }

    pub fn metrics(&self) -> RaftMetrics<Types> {
        let mut watched = self.raft.metrics();
        let mut metrics = watched.borrow_and_update().clone();
        // A panic leaves them as they were, with nobody to change them.
        if metrics.running_state.is_ok() && matches!(watched.changed().now_or_never(), Some(Err(_))) {
            (metrics.running_state, metrics.state) = (Err(Fatal::Panicked), ServerState::Shutdown);
            (metrics.replication, metrics.heartbeat) = (None, None);
        }
        metrics
    }

    /// Why its core has ended, if it has, for another reason than damage.
    pub fn ended(&self) -> Option<String> {
        if self.damage.found().is_some() {
            return None;
        }
        self.metrics().running_state.err().map(|reason| reason.to_string())
    }

    pub fn leads(&self) -> bool {
        self.metrics().state == ServerState::Leader
    }

    /// Whether another leads, or nobody, within this time.
    pub async fn ends_to_lead(&self, max: Duration) -> bool {
        let mut metrics = self.raft.metrics();
        let ended = async {
            while self.leads() {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        drop(tokio::time::timeout(max, ended).await);
        !self.leads()
    }

    /// The log index of the newest membership that it knows, committed or not.
    pub fn membership_index(&self) -> u64 {
        self.metrics().membership_config.log_id().as_ref().map_or(0, |id| id.index)
    }

    /// The newest that it has heard of.
    pub fn term(&self) -> u64 {
        self.metrics().current_term
    }

    /// Some of its members are copied to, and do not vote yet.
    pub fn has_learners(&self) -> bool {
        self.metrics().membership_config.membership().learner_ids().next().is_some()
    }

    /// It leads, and a majority has answered it lately.
    pub fn leads_majority(&self) -> bool {
        let metrics = self.metrics();
        metrics.state == ServerState::Leader && has_majority(&metrics)
    }

    /// Returns once this replica does not lead any more, or no majority has answered it lately: another may lead then, and
    /// this one need not know.
    pub async fn leads_no_more(&self) {
        use openraft::async_runtime::WatchReceiver;
        let mut metrics = self.raft.metrics();
        while self.leads_majority() {
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(QUORUM_LOOK) => {}
            }
        }
    }

    pub fn status(&self) -> GroupStatus {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let leads = metrics.state == ServerState::Leader;
        let members = || membership.voter_ids().chain(membership.learner_ids());
        GroupStatus {
            group: self.id.0,
            role: match (&metrics.running_state, metrics.state) {
                (Err(_), _) => "stopped",
                // Without a majority it may not know yet that another leads, and can do nothing.
                (Ok(()), ServerState::Leader) if !has_majority(&metrics) => "candidate",
                (Ok(()), ServerState::Leader) => "leader",
                (Ok(()), ServerState::Follower) => "follower",
                (Ok(()), ServerState::Candidate) => "candidate",
                (Ok(()), ServerState::Learner) => "learner",
                (Ok(()), ServerState::Shutdown) => "stopped",
            }
            .to_owned(),
            leader: metrics.current_leader.unwrap_or(0),
            term: metrics.current_term,
            last_index: metrics.last_log_index.unwrap_or(0),
            applied_index: metrics.last_applied.map_or(0, |id| id.index),
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            joint: membership.get_joint_config().len() > 1,
            heard: members().filter(|id| leads && self.hears(NodeId(*id))).collect(),
            current: members().filter(|id| leads && self.hears(NodeId(*id)) && self.is_level(NodeId(*id))).collect(),
            copies: (self.peers.copied_of(self.id).into_iter())
                .map(|(node, octets)| wire::Copying { node, octets })
                .collect(),
            accounts: 0,
            messages: 0,
            octets: 0,
            operations: 0,
        }
    }
}

/// A leader's: a majority has answered it lately, or it needs nobody else.
fn has_majority(metrics: &RaftMetrics<Types>) -> bool {
    let is_alone = metrics.membership_config.membership().voter_ids().nth(1).is_none();
    is_alone || metrics.last_quorum_acked.is_none_or(|at| at.elapsed() < QUORUM_LATELY)
}

/// The last entry that a leader knows the other to have.
fn matched(metrics: &RaftMetrics<Types>, other: u64) -> Option<u64> {
    metrics.replication.as_ref()?.get(&other).copied().flatten().map(|id| id.index)
}

/// Whether a replica that has all up to `matched` has all but the last of it. `lacks`: the octets that it lacks, where these count;
/// they are not known of one that is far behind.
fn is_near(matched: u64, last: u64, lacks: Option<Option<u64>>) -> bool {
    let by_octets = lacks.is_none_or(|octets| octets.is_some_and(|octets| octets <= LAG_OCTETS_MAX));
    matched >= last || matched + LAG_ENTRIES_MAX >= last && by_octets
}

fn heard_lately(metrics: &RaftMetrics<Types>, other: u64) -> bool {
    let heard = metrics.heartbeat.as_ref().and_then(|heartbeat| heartbeat.get(&other).copied().flatten());
    heard.is_some_and(|at| at.elapsed() < HEARD_LATELY)
}

fn not_leader(forward: &ForwardToLeader<Types>) -> MailError {
    MailError::NotLeader { hint: forward.leader_id.map(NodeId) }
}

#[cfg(test)]
mod tests {
    use super::{LAG_ENTRIES_MAX, LAG_OCTETS_MAX, is_near};

    #[test]
    fn a_learner_is_near_when_it_lacks_few_entries_and_few_octets() {
        let near = |entries: u64, lacks| is_near(1_000, 1_000 + entries, lacks);
        assert!(near(LAG_ENTRIES_MAX, Some(Some(LAG_OCTETS_MAX))));
        assert!(!near(LAG_ENTRIES_MAX + 1, Some(Some(1))));
        assert!(!near(3, Some(Some(LAG_OCTETS_MAX + 1))), "large mail");
        assert!(!near(3, Some(None)), "nobody knows how large");
        assert!(near(0, Some(None)));
        // A voter, or a learner that never gets nearer.
        assert!(near(LAG_ENTRIES_MAX, None) && !near(LAG_ENTRIES_MAX + 1, None));
    }
}
