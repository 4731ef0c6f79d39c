//! What mailboxes leave behind that are no more: their messages. A mailbox goes in one step, whatever it holds, and counts for
//! nothing from then on; its remains are cleared away a little at a time, so that no command is long and none needs much
//! memory. How far that is stands in the state: whoever leads goes on from there.
//!
//! Invariant: no mailbox has the id of one that has remains.

use prost::Message;
use types::{AccountId, MailboxId, UidSet};

use super::ShardState;
use super::command::Stamp;
use super::edit::{Edit, Step};
use super::read;
use crate::error::StorageError;
use crate::group::Held;
use crate::keys::{Kind, printable, u64_at};
use crate::records::{decode, encode};
use crate::store::Family;

/// The format of the commands that leave remains. By those before, the messages go with their mailbox.
const FORMAT: u32 = 2;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RemainsRecord {
    /// Nothing is left up to this UID.
    #[prost(uint32, tag = "1")]
    pub uid: u32,
    /// Invariant: not less than any UIDVALIDITY that the account had given out by then.
    #[prost(uint32, tag = "2")]
    pub uid_validity_last: u32,
}

pub(crate) fn are_left(stamp: &Stamp) -> bool {
    stamp.format >= FORMAT
}

/// A mailbox with messages goes.
pub(crate) fn leave(edit: &mut Edit<'_>, account: AccountId, id: MailboxId) -> Step<()> {
    let uid_validity_last = edit.account(account)?.uid_validity_last;
    let key = edit.key(Kind::Remains).mailbox(account, id).done();
    edit.put(key, encode(&RemainsRecord { uid: 0, uid_validity_last }));
    Ok(())
}

pub(crate) fn are_of(edit: &Edit<'_>, account: AccountId, id: MailboxId) -> Step<bool> {
    Ok(edit.get(&edit.key(Kind::Remains).mailbox(account, id).done())?.is_some())
}

/// For an account that is made anew: the first mailbox id, and the last UIDVALIDITY.
pub(crate) fn behind(edit: &Edit<'_>, account: AccountId) -> Step<(u64, u32)> {
    let (mut mailbox_next, mut uid_validity_last) = (1, 0);
    edit.view.scan(edit.key(Kind::Remains).account(account), |key, value| {
        let (_, id, record) = remains(key, value)?;
        mailbox_next = mailbox_next.max(id.0.saturating_add(1));
        uid_validity_last = uid_validity_last.max(record.uid_validity_last);
        Ok(true)
    })?;
    Ok((mailbox_next, uid_validity_last))
}

/// Removes some of the messages, in the order of their accounts and mailboxes.
pub(crate) fn clear(edit: &mut Edit<'_>, messages_max: u32) -> Step<()> {
    let mut room = messages_max as usize;
    if room == 0 {
        return Ok(());
    }
    let mut all = Vec::new();
    edit.view.scan(edit.key(Kind::Remains), |key, value| {
        all.push(remains(key, value)?);
        Ok(all.len() < room)
    })?;
    for (account, id, record) in all {
        let mut some = Vec::new();
        // From behind what went before: its tombstones would have to be stepped over.
        let left = UidSet::from_range(record.uid.saturating_add(1), u32::MAX);
        read::scan_messages(&edit.view, account, id, &left, |uid, message| {
            some.push((uid, message.body));
            some.len() < room
        })?;
        for (uid, body) in &some {
            edit.release(*body)?;
            let key = edit.key(Kind::Message).mailbox(account, id).u32(*uid).done();
            edit.puts.delete(Family::State, key);
        }
        let key = edit.key(Kind::Remains).mailbox(account, id).done();
        match some.last() {
            Some((uid, _)) if some.len() >= room => {
                edit.put(key, encode(&RemainsRecord { uid: *uid, ..record }));
                break;
            }
            _ => edit.delete(key),
        }
        room -= some.len();
    }
    Ok(())
}

fn remains(key: &[u8], value: &[u8]) -> Result<(AccountId, MailboxId, RemainsRecord), StorageError> {
    let ids = u64_at(key, 5).zip(u64_at(key, 13));
    let (account, id) = ids.ok_or_else(|| StorageError::corrupt(printable(Family::State, key), "short key"))?;
    Ok((AccountId(account), MailboxId(id), decode(Family::State, key, value)?))
}

impl ShardState {
    /// Whether [`Command::ClearRemains`](super::Command::ClearRemains) has anything to do.
    pub fn has_remains(&self) -> Result<bool, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let mut found = false;
        view.scan(view.key(Kind::Remains), |_, _| {
            found = true;
            Ok(false)
        })?;
        Ok(found)
    }
}
