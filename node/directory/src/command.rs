//! What can be asked of the directory group. Commands are log entries: everything that would differ between replicas
//! (time, random ids, password salts) is decided by the proposer and travels in them.

mod form;

use std::collections::BTreeMap;

use types::{AccountId, AccountName, DomainName, NodeId, ShardId};

use crate::error::DirectoryError;
use crate::requests::Request;
use crate::values::{ClusterId, MoveStage, NodeState, PasswordHash, QuotaChange, RebalanceState, Start};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Once in a cluster's life. Placements come after it, by [`Command::SetPlacements`].
    CreateCluster {
        id: ClusterId,
        shards: u32,
        replicas: u32,
        nodes: Vec<NewNode>,
    },
    /// Repeated with the same content it changes nothing.
    RegisterNode(NewNode),
    UpdateNodeAddress {
        id: NodeId,
        address: String,
    },
    SetNodeState {
        id: NodeId,
        state: NodeState,
    },
    SetNodeVoter {
        id: NodeId,
        voter: bool,
    },
    /// Zone and weight of a node, as `node join` gives them.
    UpdateNode {
        id: NodeId,
        zone: String,
        weight: u32,
    },
    /// A process of a node says which start it is, and which one its disks knew of `before`. Refused if another process
    /// has started from newer disks: these are an old copy.
    NoteNodeStart {
        id: NodeId,
        before: Start,
        now: Start,
        /// The newest that its program knows; 0 where it does not say, and 1 is meant.
        format: u32,
    },
    /// What is written from now on may have the forms of this one. Refused while a node does not know it; never falls.
    SetFormat {
        format: u32,
    },
    CreateDomain {
        name: DomainName,
    },
    /// Refused while the domain has accounts or aliases.
    RemoveDomain {
        name: DomainName,
    },
    CreateAccount {
        account: NewAccount,
        unix_s: u64,
    },
    /// Each is answered for itself: one that fails does not hinder the others.
    CreateAccounts {
        accounts: Vec<NewAccount>,
        unix_s: u64,
    },
    /// Refused while an alias leads to the account or it is the cluster's postmaster.
    RemoveAccount {
        name: AccountName,
    },
    SetPassword {
        name: AccountName,
        password_hash: PasswordHash,
    },
    SetEnabled {
        name: AccountName,
        enabled: bool,
    },
    /// What an account may hold from now on. Mail that is there already stays, also above a limit.
    SetQuota {
        name: AccountName,
        change: QuotaChange,
    },
    /// Refused while the account moves, and for the shard that it is on.
    StartAccountMove {
        name: AccountName,
        to: ShardId,
    },
    /// Refused once the account is on the new shard.
    AbortAccountMove {
        name: AccountName,
    },
    /// The next stage of a move: from copying to switched, and from switched or undone to none. Refused of any other.
    StepAccountMove {
        account: AccountId,
        /// Of the move.
        id: u64,
        stage: Option<MoveStage>,
    },
    /// `*@domain` makes the domain's catch-all.
    CreateAlias {
        name: AccountName,
        targets: Vec<AccountName>,
    },
    /// Refused while another alias leads to it.
    RemoveAlias {
        name: AccountName,
    },
    /// The account that takes `postmaster@` of the hosted domains that have none of their own; `None` for no such
    /// account.
    SetPostmaster {
        account: Option<AccountName>,
    },
    /// All or nothing. A shard whose list is as it was keeps its revision.
    ///
    /// For shards that have no group yet. What it says of another takes effect at once, without a turn: a move is
    /// then under way, and what was planned for the shard is forgotten.
    SetPlacements {
        wanted: BTreeMap<ShardId, Vec<NodeId>>,
    },
    MarkShardInitialised {
        shard: ShardId,
    },
    /// Plans moves, all or nothing: `planned` of each shard given becomes the list, or empty where that is what is
    /// wanted already; with `replace`, what was planned for all other shards is forgotten. Moves under way go on.
    ///
    /// A list that only puts the wanted nodes in another order (another preferred leader) moves no data: it is wanted
    /// at once, waits for no turn and counts as no move.
    ///
    /// With `replace`, or where no rebalance is running or paused, a new one begins, running. Otherwise the moves join
    /// that one, and its state stays: one more shard moved by hand does not resume what somebody has paused. Nothing
    /// begins where nothing is to move. `octets`: what the moves of these targets copy, and with `replace` those under
    /// way, as far as is known.
    StartRebalance {
        targets: BTreeMap<ShardId, Vec<NodeId>>,
        replace: bool,
        unix_s: u64,
        octets: u64,
    },
    /// For a node that is gone for good: it drains, and what is planned without it begins as by
    /// [`Command::StartRebalance`] with `replace`. Both or nothing, so that who proposes it may die at any point. Refused
    /// while the rebalance is paused.
    GiveUpNode {
        id: NodeId,
        targets: BTreeMap<ShardId, Vec<NodeId>>,
        unix_s: u64,
        octets: u64,
    },
    /// Of a rebalance that is running or paused; refused of any other. `Running` resumes; `Paused` lets no further move
    /// begin; `Aborted` forgets what is planned and swaps `wanted` and `previous` of the moves under way, so that they
    /// are undone. `Finished` is refused: that it becomes by itself.
    SetRebalanceState {
        state: RebalanceState,
    },
    /// Turns come: `previous` becomes what was wanted, `wanted` what was planned, and nothing is planned any more.
    ///
    /// Shards with nothing planned or with a move under way are left as they are; so are those that are not marked
    /// as initialised, since their first replica might found the group a second time; and so are all of them unless
    /// the rebalance is running. A move under way to a node that is not active any more gives way: it may never end.
    BeginMoves {
        shards: Vec<ShardId>,
    },
    /// The groups are as wanted: `previous` becomes empty. A running rebalance with nothing left to move is finished.
    ///
    /// `seen`: the revision at which it was read what is wanted; a shard whose placement has changed since stays as it is.
    /// `None` in entries of the first version, which end whatever move there is.
    EndMoves {
        shards: Vec<ShardId>,
        seen: Option<u64>,
    },
    /// Puts a wanted node of each shard first in its list, so that it leads. Shards whose data moves, or is to move, are left
    /// as they are, and so are those that are not wanted on the node any more: who chose has seen an older placement.
    PreferLeaders {
        leaders: BTreeMap<ShardId, NodeId>,
    },
    /// What somebody asks for who asks again where the answer was lost: done at the first attempt that comes here, and
    /// answered so at each. Never within another one.
    Once {
        request: Request,
        command: Box<Command>,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewNode {
    pub id: NodeId,
    pub name: String,
    pub address: String,
    pub zone: String,
    pub weight: u32,
    pub voter: bool,
    /// As in [`Command::NoteNodeStart`].
    pub format: u32,
    /// It holds nothing until somebody has it join: it is draining. Only in commands of [`WAITS_FORMAT`] and later ones.
    pub waits: bool,
}

/// The format of the commands that register a node as one that waits.
pub const WAITS_FORMAT: u32 = 3;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewAccount {
    pub name: AccountName,
    pub password_hash: PasswordHash,
}

impl Command {
    /// The wanted nodes of one shard, the preferred leader first.
    pub fn set_placement(shard: ShardId, wanted: Vec<NodeId>) -> Command {
        Command::SetPlacements { wanted: BTreeMap::from([(shard, wanted)]) }
    }

    /// The form for the log: a format version octet and a protobuf message.
    ///
    /// `Invalid` for a command that could not be read back, so that such a thing is never committed.
    pub fn encode(&self) -> Result<Vec<u8>, DirectoryError> {
        let bytes = form::encode(self);
        match Command::decode(&bytes) {
            Ok(read) if read == *self => Ok(bytes),
            Ok(_) => Err(DirectoryError::Invalid("the command does not keep its meaning when written".to_owned())),
            Err(DirectoryError::Corrupt { reason, .. }) => Err(DirectoryError::Invalid(reason)),
            Err(error) => Err(error),
        }
    }

    /// `Corrupt` names no log index: that is the caller's to add.
    pub fn decode(bytes: &[u8]) -> Result<Command, DirectoryError> {
        form::decode(bytes)
            .map_err(|reason| DirectoryError::Corrupt { key: "directory command in the log".to_owned(), reason })
    }
}

#[cfg(test)]
mod tests {
    use types::{AccountName, DomainName, NodeId, ShardId};

    use super::Command;
    use crate::error::DirectoryError;

    #[test]
    fn damaged_commands_are_errors_and_never_panic() {
        let bytes = Command::set_placement(ShardId(3), vec![NodeId(1), NodeId(u64::MAX)]).encode().unwrap();
        for cut in 0..bytes.len() {
            if let Ok(command) = Command::decode(&bytes[..cut]) {
                assert_ne!(command.encode().unwrap(), bytes, "cut at {cut}");
            }
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let _ = Command::decode(&flipped);
            }
        }
        for bad in [&[][..], &[0], &[1], &[2, 10, 0], &[1, 255, 255]] {
            let error = Command::decode(bad).unwrap_err();
            assert!(matches!(error, DirectoryError::Corrupt { .. }), "{bad:?}: {error}");
        }
    }

    /// U+0130 takes more octets, and a combining mark, once it is lowered.
    #[test]
    fn a_name_that_could_not_be_read_back_is_never_proposed() {
        if let Ok(name) = DomainName::parse("\u{130}.test")
            && DomainName::parse(name.as_str()).is_err()
        {
            assert!(matches!(Command::CreateDomain { name }.encode(), Err(DirectoryError::Invalid(_))));
        }
        if let Ok(name) = AccountName::parse(&format!("{}@example.test", "\u{130}".repeat(32)))
            && AccountName::parse(name.as_str()).is_err()
        {
            assert!(matches!(Command::RemoveAlias { name }.encode(), Err(DirectoryError::Invalid(_))));
        }
    }
}
