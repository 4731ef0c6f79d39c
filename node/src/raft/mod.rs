//! Raft, by openraft: the only place that names it. What a group stores is in `storage`; what its commands mean is
//! behind [`Applier`].

mod codec;
mod damage;
mod log;
mod machine;
mod network;
mod peers;
mod progress;
mod recent;
mod service;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::impls::leader_id_std::LeaderId;
use openraft::{BasicNode, Config, SnapshotPolicy};
use openraft_rt_tokio::TokioRuntime;
use storage::Failpoint;
use types::{MailError, MailResult};

pub use codec::{Marker, encode_vote, vote_from_wire, vote_to_wire};
pub use damage::{Damage, damage_in};
pub use log::{GroupLog, Synced};
pub use machine::{Applier, Machine};
pub use network::PeersFactory;
pub use peers::{Peers, SentSnapshot};
pub use recent::{RECENT_ENTRIES_MAX, Recent};
pub use service::{RaftGroups, RaftService};

openraft::declare_raft_types!(
    /// One configuration for every group: the directory's and the shards'.
    pub Types:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = BasicNode,
        Term = u64,
        LeaderId = LeaderId<u64, u64>,
        AsyncRuntime = TokioRuntime,
);

pub type Raft = openraft::Raft<Types, Machine>;
pub type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub type Vote = openraft::type_config::alias::VoteOf<Types>;
pub type Entry = openraft::type_config::alias::EntryOf<Types>;
pub type Membership = openraft::Membership<u64, BasicNode>;
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;

/// Heartbeats are slow so that hundreds of groups a node are cheap.
const HEARTBEAT_MS: u64 = 500;
/// A follower that hears nothing waits out the leader's lease, which is the upper bound, and between these on top of
/// it: it asks for votes after 2.3 to 3 s.
const ELECTION_MIN_MS: u64 = 800;
const ELECTION_MAX_MS: u64 = 1500;
/// A snapshot of which nothing goes for so long, though nothing holds it, is given up. A block of 1 MiB takes two minutes at
/// 64 kbit/s, and several groups' share the link; a receiver that has its hands full lets others wait.
const SNAPSHOT_STALLED_MAX: Duration = Duration::from_secs(600);
/// Entries in one append call; the log reader bounds its bytes.
const APPEND_ENTRIES_MAX: u64 = 512;
/// Waiting proposals of one group; openraft's default of 65,536 slots costs memory in each of hundreds of groups.
const PROPOSALS_MAX: u64 = 4_096;

/// A command on its way through the log: its encoded head, and the body that it carries, if any.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal {
    pub head: Bytes,
    pub body: Option<Bytes>,
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} + {} octets)", self.head.len(), self.body.as_ref().map_or(0, Bytes::len))
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying a command answered.
pub enum Reply {
    /// A blank or membership entry.
    None,
    Shard(MailResult<storage::Outcome>),
    Directory(Result<directory::Reply, directory::DirectoryError>),
}

/// How long a copy of which so many octets have gone is waited for though nothing is seen to move: it may be installed.
pub fn copy_patience(octets: u64) -> Duration {
    SNAPSHOT_STALLED_MAX.saturating_add(progress::installing_max(octets))
}

/// The settings of every group: constant, so validation cannot fail.
pub fn config() -> Arc<Config> {
    let config = Config {
        cluster_name: "mailring".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: ELECTION_MAX_MS,
        install_snapshot_timeout: SNAPSHOT_STALLED_MAX.as_millis() as u64,
        max_payload_entries: APPEND_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::Never,
        // Nothing is purged that `log_keeping` did not say: a snapshot may be noted later than it was asked for, and be behind
        // what a follower needs next.
        max_in_snapshot_log_to_keep: u64::MAX,
        api_channel_size: Some(PROPOSALS_MAX),
        notification_channel_size: Some(PROPOSALS_MAX),
        // Statistics that we do not compile in would reserve a thousand places for each of six stages.
        log_stage_capacity: Some(1),
        // A leader that comes back within its own term could give out a log id that followers have for another entry.
        enable_leader_restore: Some(false),
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    Arc::new(config.validate().expect("constant settings are valid: a unit test calls this"))
}

/// The steps of a move that are done once such a membership is in the log, and once it is applied.
fn membership_steps(membership: &Membership) -> (Failpoint, Failpoint) {
    if membership.get_joint_config().len() > 1 {
        (Failpoint::JointAppended, Failpoint::JointApplied)
    } else if membership.learner_ids().next().is_some() {
        (Failpoint::LearnerAppended, Failpoint::LearnerApplied)
    } else {
        (Failpoint::FinalAppended, Failpoint::FinalApplied)
    }
}

/// A broken group of our own is no fault of the caller's request.
pub fn fatal(error: impl fmt::Display) -> MailError {
    MailError::Internal(format!("raft group stopped: {error}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_settings_are_valid() {
        assert_eq!(super::config().heartbeat_interval, super::HEARTBEAT_MS);
    }
}
