//! Reading an account that goes to another shard. Each call sees one moment; a later pass carries what came after it.

use types::{AccountId, MailError, MailResult, MailboxId, ModSeq, SystemFlags, UidSet};

use super::ShardState;
use super::moved::{MovedAccount, MovedMailbox, MovedMessage, Place, Whereabouts};
use super::moving::whereabouts;
use super::outcome::BodyId;
use super::read;
use crate::error::StorageError;
use crate::group::Held;
use crate::keys::Kind;
use crate::records::{AccountRecord, MailboxRecord};

/// An account but for its messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outline {
    pub whereabouts: Whereabouts,
    pub account: MovedAccount,
    /// In the order of their ids, each with its highest modseq.
    pub mailboxes: Vec<(MovedMailbox, u64)>,
    pub subscriptions: Vec<String>,
}

/// What happened in a mailbox after a modseq.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MovedListing {
    pub mod_seq: u64,
    /// Every UID that there is.
    pub uids: UidSet,
    /// Of them, those that came or changed: all, where the history does not reach back so far.
    pub changed: UidSet,
    /// `None` where the history does not reach back so far: what is not among `uids`.
    pub vanished: Option<UidSet>,
}

impl ShardState {
    /// How the account stands between two shards.
    pub fn whereabouts(&self, account: AccountId) -> Result<Whereabouts, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let record: Option<AccountRecord> = view.record(&view.key(Kind::Account).account(account).done())?;
        whereabouts(|| view.key(Kind::Account).account(account), record.as_ref())
    }

    /// `NotHere` while the account is between two shards, or when it has gone to another. What was read before this is
    /// what the account has.
    pub fn check_here(&self, account: AccountId) -> MailResult<()> {
        match self.whereabouts(account)?.place {
            Place::Here => Ok(()),
            Place::Frozen | Place::Coming | Place::Whole | Place::Leaving | Place::Gone => Err(MailError::NotHere),
        }
    }

    pub fn outline(&self, account: AccountId) -> Result<Outline, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let key = view.key(Kind::Account).account(account).done();
        let record: Option<AccountRecord> = view.record(&key)?;
        let whereabouts = whereabouts(|| view.key(Kind::Account).account(account), record.as_ref())?;
        let record = record.unwrap_or_default();
        let AccountRecord { mailbox_next, uid_validity_last, .. } = record;
        let outlined = |(id, record): (MailboxId, MailboxRecord)| {
            let MailboxRecord { name, uid_validity, uid_next, mod_seq, keywords, special_use, .. } = record;
            (MovedMailbox { id: id.0, name, uid_validity, uid_next, keywords, special_use }, mod_seq)
        };
        let mailboxes = read::mailbox_records(&view, account)?.into_iter().map(outlined).collect();
        let mut subscriptions = Vec::new();
        view.scan(view.key(Kind::Subscription).account(account), |key, _| {
            subscriptions.push(read::name_in(key)?.to_string());
            Ok(true)
        })?;
        let account = MovedAccount { mailbox_next, uid_validity_last };
        Ok(Outline { whereabouts, account, mailboxes, subscriptions })
    }

    /// What happened in a mailbox after `since`, 0 for everything.
    pub fn moved_listing(&self, account: AccountId, id: MailboxId, since: u64) -> MailResult<MovedListing> {
        // In this order: what comes between is of a later pass, and does no harm in this one.
        let changes = self.changes(account, id, ModSeq(since))?;
        let uids = self.uids(account, id)?;
        let is_told = changes.complete && since > 0;
        Ok(MovedListing {
            mod_seq: changes.highest.0,
            changed: if is_told { changes.changed.intersection(&uids) } else { uids.clone() },
            vanished: is_told.then_some(changes.vanished),
            uids,
        })
    }

    /// Every UID of a mailbox.
    pub fn uids(&self, account: AccountId, id: MailboxId) -> Result<UidSet, StorageError> {
        let all = UidSet::from_range(1, u32::MAX);
        read::collect_pages(&self.view(&Held::default())?, account, id, &all, SystemFlags::NONE, SystemFlags::NONE)
    }

    /// Visits the messages of a set that exist, ascending, each with its body, until the visitor answers false.
    pub fn moved_messages(
        &self,
        account: AccountId,
        id: MailboxId,
        uids: &UidSet,
        mut visit: impl FnMut(MovedMessage, BodyId) -> bool,
    ) -> Result<(), StorageError> {
        read::scan_messages(&self.view(&Held::default())?, account, id, uids, |uid, message| {
            let moved = MovedMessage {
                mailbox: id.0,
                uid,
                system: message.system,
                keywords_low: message.keywords_low,
                keywords_high: message.keywords_high,
                mod_seq: message.mod_seq,
                internal_unix_s: message.internal_unix_s,
                internal_offset_min: message.internal_offset_min,
                save_unix_s: message.save_unix_s,
                body: None,
            };
            visit(moved, BodyId(message.body))
        })
    }
}
