//! What an account holds, against what it may hold. The counters are those of the account's record, kept in the same
//! batch as each change; the quota is the command's own, so that all replicas come to the same answer.

use types::{AccountId, MailError, Quota, Usage};

use super::edit::{Edit, Step};
use crate::records::MessageRecord;

impl Edit<'_> {
    /// `OverQuota` if the account may not hold so much more.
    ///
    /// Invariant: asked before messages are added, by every command that adds any but those that take as much away.
    pub(crate) fn check_quota(&mut self, account: AccountId, quota: Quota, more: Usage) -> Step<()> {
        let record = self.account(account)?;
        let used = Usage { octets: record.bytes, messages: record.messages };
        if quota.has_room(used, more) { Ok(()) } else { Err(MailError::OverQuota.into()) }
    }
}

/// What messages count for.
pub(crate) fn usage_of<'a>(messages: impl IntoIterator<Item = &'a MessageRecord>) -> Usage {
    messages.into_iter().fold(Usage::default(), |sum, message| Usage {
        octets: sum.octets.saturating_add(message.size),
        messages: sum.messages.saturating_add(1),
    })
}
