//! What the directory holds, as values. Their disk form is in `record`; their wire form is the node's business.

use std::fmt;

use types::{AccountId, AccountName, DomainName, NodeId, Quota, ShardId};

use crate::error::DirectoryError;
use crate::limits::PASSWORD_HASH_OCTETS_MAX;

/// Drawn once when the cluster is created; a node of another cluster is refused by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cluster {
    pub cluster_id: ClusterId,
    /// S: never changes, because accounts are bound to shards.
    pub shards: u32,
    /// R, 1 to 5: the replicas that each shard should have.
    pub replicas: u32,
    /// Invariant: greater than the id of every account that ever was.
    pub next_account_id: AccountId,
    /// Takes `postmaster@domain` of every hosted domain that does not say otherwise (RFC 5321 §4.5.1).
    pub postmaster: Option<AccountName>,
    /// The format in force (`types::format`). Invariant: every node knows it, and it never falls.
    pub format: u32,
}

/// A domain whose mail is delivered here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Domain {
    pub name: DomainName,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    pub id: AccountId,
    pub name: AccountName,
    pub password_hash: PasswordHash,
    pub shard: ShardId,
    /// A disabled account cannot log in. Mail for it is still accepted, so that suspending a customer loses none.
    pub enabled: bool,
    /// Seconds since 1970, as the command that created the account said.
    pub created_unix_s: u64,
    /// Enforced by the leader of the account's shard, which takes it from its node's replica of the directory.
    pub quota: Quota,
    /// The move to another shard that is under way.
    pub moving: Option<AccountMove>,
}

/// An account's way from one shard to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccountMove {
    /// The revision that it began at.
    pub id: u64,
    pub from: ShardId,
    pub to: ShardId,
    pub stage: MoveStage,
}

impl AccountMove {
    /// Invariant: the account is on this one.
    pub fn shard(&self) -> ShardId {
        match self.stage {
            MoveStage::Copying | MoveStage::Undone => self.from,
            MoveStage::Switched => self.to,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum MoveStage {
    /// The account is on the old shard, and is copied to the new one.
    Copying,
    /// It is on the new shard; what is left on the old one is dropped.
    Switched,
    /// It stays on the old shard; what has come to the new one is dropped.
    Undone,
}

/// Other limits for an account: `None` leaves one as it is, `Some(None)` takes it away.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct QuotaChange {
    pub octets: Option<Option<u64>>,
    pub messages: Option<Option<u64>>,
}

impl QuotaChange {
    pub(crate) fn of(self, quota: Quota) -> Quota {
        Quota { octets: self.octets.unwrap_or(quota.octets), messages: self.messages.unwrap_or(quota.messages) }
    }
}

/// A name that stands for accounts. `*@domain` catches what the domain has no other name for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alias {
    pub name: AccountName,
    /// Local accounts or aliases, in the order given, each once.
    pub targets: Vec<AccountName>,
}

impl Alias {
    /// The local part of a domain's catch-all.
    pub const CATCH_ALL: &'static str = "*";
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum NodeState {
    Active,
    /// Gives its replicas away and gets no new ones.
    Draining,
    /// For ever: a node that comes back does so under a fresh id.
    Removed,
}

/// How often a node has started, and what the last process drew at random: disks that know of an earlier start, or of
/// another one, are an old copy.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Start {
    pub starts: u64,
    pub run: u64,
}

impl Start {
    /// Whether disks that know of this start are older than those that another process has started from.
    pub fn is_before(self, other: Start) -> bool {
        self.starts < other.starts || self.starts == other.starts && self.run != other.run
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub id: NodeId,
    /// `[a-z0-9-]{1,63}`, unique among the nodes that are not removed.
    pub name: String,
    /// `host:port` of the node's gRPC.
    pub address: String,
    /// What fails together: a rack, a room, a site. `[a-z0-9-]{1,63}`.
    pub zone: String,
    /// Capacity relative to the other nodes, from 1.
    pub weight: u32,
    pub state: NodeState,
    /// Wanted as a voter of the directory group.
    pub directory_voter: bool,
    pub start: Start,
    /// The newest format that its program knew when it started last.
    pub format: u32,
}

/// Where a shard's replicas should be. Where they are is known by the shard's Raft group alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    pub shard: ShardId,
    /// Distinct; the first is the preferred leader. What the shard's group is to become now.
    pub wanted: Vec<NodeId>,
    /// Where the rebalance under way will have it once its turn comes; empty where it stays.
    ///
    /// Invariant: not empty only while the rebalance is running or paused.
    pub planned: Vec<NodeId>,
    /// What was wanted before the move that is under way; empty where none is. Until the move has ended, replicas may
    /// be on these nodes, too.
    pub previous: Vec<NodeId>,
    /// The shard's group was bootstrapped. Invariant: once true it stays so, since a second bootstrap would lose
    /// the shard.
    pub initialised: bool,
    /// The revision of this record's last change.
    pub revision: u64,
}

impl Placement {
    /// Whether a move is under way.
    pub fn is_moving(&self) -> bool {
        !self.previous.is_empty()
    }

    /// Whether a move is yet to begin. Another one may be under way before it.
    pub fn is_queued(&self) -> bool {
        !self.planned.is_empty()
    }

    /// The nodes that the move under way is to.
    pub fn targets(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.wanted.iter().copied().filter(|node| self.is_moving() && !self.previous.contains(node))
    }

    /// Whether the shard is, was or will be wanted on the node.
    pub fn names(&self, node: NodeId) -> bool {
        [&self.wanted, &self.planned, &self.previous].into_iter().any(|nodes| nodes.contains(&node))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RebalanceState {
    Running,
    /// Moves under way may end, no other begins.
    Paused,
    /// All that was to move has moved.
    Finished,
    /// What had moved stays; what was moving goes back.
    Aborted,
}

impl RebalanceState {
    /// Whether it has moves to make, now or once it is resumed.
    pub fn is_open(self) -> bool {
        match self {
            RebalanceState::Running | RebalanceState::Paused => true,
            RebalanceState::Finished | RebalanceState::Aborted => false,
        }
    }
}

/// The last rebalance; what is left of it is in the placements.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rebalance {
    /// The revision that it began at.
    pub id: u64,
    pub state: RebalanceState,
    /// Seconds since 1970, as the command that began it said.
    pub started_unix_s: u64,
    /// Shards that were to change replicas (not only the preferred leader) in all, those done included. Done are all
    /// but those that [`Directory::moving`](crate::Directory::moving) and [`Directory::queued`](crate::Directory::queued)
    /// name; a shard that both of them name counts twice. An aborted one keeps the number that it had.
    pub moves: u32,
    /// What these moves copy in all, as far as was known when they were planned.
    pub octets: u64,
}

/// A password as a PHC string of Argon2id. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// Checks the shape only; whether a password matches is for the caller who owns Argon2.
    pub fn parse(text: &str) -> Result<PasswordHash, DirectoryError> {
        if text.len() > PASSWORD_HASH_OCTETS_MAX {
            return Err(DirectoryError::Limit(format!(
                "password hash is longer than {PASSWORD_HASH_OCTETS_MAX} octets"
            )));
        }
        if !text.starts_with("$argon2id$") || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(DirectoryError::Invalid("password hash is not a PHC string of Argon2id".to_owned()));
        }
        Ok(PasswordHash(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::PasswordHash;

    #[test]
    fn a_password_hash_is_argon2id_in_phc_form_and_is_not_shown() {
        let good = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g";
        let hash = PasswordHash::parse(good).unwrap();
        assert_eq!(hash.as_str(), good);
        assert!(!format!("{hash:?}").contains("argon2id"));
        let long = format!("$argon2id${}", "x".repeat(300));
        for bad in ["", "secret", "$argon2i$v=19$x", "$argon2id$ space", "$argon2id$\0", "$argon2id$é", &long] {
            assert!(PasswordHash::parse(bad).is_err(), "{bad}");
        }
    }
}
