//! The replicated state of the directory group: the cluster's settings, domains, accounts, aliases, nodes and the
//! placement of shards; and the ring and the plan that propose placements.
//!
//! Pure: [`Directory::apply`] turns a committed [`Command`] into a [`Reply`] and the record [`Change`]s to persist, and
//! nothing else. It knows no Raft library, no disk, no network, no clock and no randomness: time, ids and hashes of
//! passwords travel in the commands, so that every replica comes to the same state.

mod apply;
mod change;
mod command;
mod error;
mod hash;
pub mod limits;
mod plan;
mod record;
mod requests;
mod resolve;
mod ring;
mod share;
mod state;
mod values;

pub use apply::{AccountPlace, Applied, Reply};
pub use change::{Change, ChangedRecord};
pub use command::{Command, NewAccount, NewNode, WAITS_FORMAT};
pub use error::{DirectoryError, RecipientError};
pub use hash::shard_of;
pub use plan::{Move, PlacementNode, Warning, moves, propose, warnings};
pub use requests::{Answered, Request, RequestId};
pub use ring::Ring;
pub use state::{AccountPage, Directory};
pub use values::{
    Account, AccountMove, Alias, Cluster, ClusterId, Domain, MoveStage, Node, NodeState, PasswordHash, Placement,
    QuotaChange, Rebalance, RebalanceState, Start,
};
