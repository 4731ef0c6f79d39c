//! Accounts that move from one shard to another: who may begin, and what follows what. Where the account's mail is, and
//! how far a move is within a stage, the shards know.

use types::{AccountId, AccountName, ShardId};

use super::{Decision, done};
use crate::change::ChangedRecord;
use crate::error::DirectoryError;
use crate::limits::ACCOUNT_MOVES_MAX;
use crate::state::Directory;
use crate::values::{Account, AccountMove, Cluster, MoveStage};

impl Directory {
    pub(super) fn start_account_move(
        &self,
        cluster: &Cluster,
        revision: u64,
        name: &AccountName,
        to: ShardId,
    ) -> Decision {
        let account = self.existing_account(name)?;
        if to.0 >= cluster.shards {
            return Err(DirectoryError::NotFound(format!("shard {to}")));
        }
        if let Some(moving) = &account.moving {
            let to = moving.to;
            return Err(DirectoryError::InUse(match moving.stage {
                MoveStage::Copying => format!("account {name} is moving to shard {to} already"),
                MoveStage::Switched => format!("account {name} has just moved to shard {to}, its old copy is dropped"),
                MoveStage::Undone => format!("the move of account {name} to shard {to} is being undone"),
            }));
        }
        if to == account.shard {
            return Err(DirectoryError::InUse(format!("account {name} is on shard {to} already")));
        }
        if self.moving_accounts().len() >= ACCOUNT_MOVES_MAX {
            return Err(DirectoryError::Limit(format!("no more than {ACCOUNT_MOVES_MAX} accounts can move at a time")));
        }
        let moving = AccountMove { id: revision, from: account.shard, to, stage: MoveStage::Copying };
        changed(account, Some(moving))
    }

    pub(super) fn abort_account_move(&self, name: &AccountName) -> Decision {
        let account = self.existing_account(name)?;
        let Some(moving) = account.moving else {
            return Err(DirectoryError::NotFound(format!("a move of account {name}")));
        };
        match moving.stage {
            MoveStage::Copying => changed(account, Some(AccountMove { stage: MoveStage::Undone, ..moving })),
            MoveStage::Undone => done(Vec::new()),
            MoveStage::Switched => {
                Err(DirectoryError::InUse(format!("account {name} is on shard {} already", moving.to)))
            }
        }
    }

    pub(super) fn step_account_move(&self, account: AccountId, id: u64, stage: Option<MoveStage>) -> Decision {
        let over = || DirectoryError::NotFound(format!("move {id} of account {account}"));
        let account = self.account_by_id(account).ok_or_else(over)?;
        let moving = account.moving.filter(|moving| moving.id == id).ok_or_else(over)?;
        let next = stage.map(|stage| AccountMove { stage, ..moving });
        match (moving.stage, stage) {
            (MoveStage::Copying, Some(MoveStage::Switched | MoveStage::Undone)) => changed(account, next),
            (MoveStage::Switched | MoveStage::Undone, None) => changed(account, None),
            _ => Err(DirectoryError::Invalid(format!("the move of account {} is at another stage", account.name))),
        }
    }
}

fn changed(account: &Account, moving: Option<AccountMove>) -> Decision {
    let shard = moving.map_or(account.shard, |moving| moving.shard());
    let account = Account { shard, moving, ..account.clone() };
    done(vec![ChangedRecord::Account(account.name.clone(), Some(account))])
}
