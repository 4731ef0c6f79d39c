//! What an account holds, and what it may hold, as the leader of its shard decides by it.

use proto::wire::{AccountRequest, UsageReply};
use storage::ShardState;
use types::{AccountId, MailResult};

use super::{blocking, if_here, storage_error};
use crate::Node;

impl Node {
    pub(super) async fn account_usage(&self, request: AccountRequest) -> MailResult<UsageReply> {
        let account = AccountId(request.account);
        let quota = self.check_account(account)?;
        let state = self.read(request.shard).await?;
        let totals = move |state: &ShardState| state.account_totals(account).map_err(storage_error);
        let read = blocking(move || if_here(&state, account, totals)).await;
        let totals = self.or_elsewhere(request.shard, read).await?;
        Ok(UsageReply {
            octets: totals.bytes,
            messages: totals.messages,
            octets_max: quota.octets,
            messages_max: quota.messages,
        })
    }
}
