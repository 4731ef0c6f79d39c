//! All accounts of a shard at once.

use types::AccountId;

use super::ShardState;
use super::outcome::AccountTotals;
use crate::error::StorageError;
use crate::keys::{Kind, printable, u64_at};
use crate::records::{AccountRecord, decode};
use crate::store::Family;

impl ShardState {
    /// Every account that has state here, ascending, with its totals: one small record each.
    pub fn accounts(&self) -> Result<Vec<(AccountId, AccountTotals)>, StorageError> {
        let view = self.view()?;
        let mut all = Vec::new();
        view.scan(view.key(Kind::Account), |key, value| {
            let record: AccountRecord = decode(Family::State, key, value)?;
            let id =
                u64_at(key, 5).ok_or_else(|| StorageError::corrupt(printable(Family::State, key), "a short key"))?;
            let totals = AccountTotals { mailboxes: record.mailboxes, messages: record.messages, bytes: record.bytes };
            all.push((AccountId(id), totals));
            Ok(true)
        })?;
        Ok(all)
    }
}
