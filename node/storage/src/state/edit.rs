//! One command's changes to the state, gathered before any of them is written: accounts, mailboxes and bodies decoded
//! once, other records as bytes. A command that fails drops its edit, so nothing of it remains.

mod bodies;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use types::{AccountId, MailError, MailboxId, MailboxName, ModSeq, SpecialUse};

use super::command::Stamp;
use super::mailbox::MailboxEdit;
use super::outcome::{ShardEvent, ShardEventKind};
use super::remains;
use super::totals::Grown;
use super::wire::{flat, special_use_number};
use super::{MAILBOXES_MAX, SUBSCRIPTIONS_MAX};
use crate::error::StorageError;
use crate::group::{View, put_marker};
use crate::keys::{Key, Kind, prefix_range, printable, u64_at};
use crate::records::{AccountRecord, BodyRecord, ChangeRecord, MailboxRecord, decode, encode, encode_bytes, payload};
use crate::store::{Changes, Family};

/// Changes kept for each mailbox; a client that was away for longer resynchronises in full.
pub(crate) const CHANGES_KEPT: u32 = 8192;
/// They are trimmed this many at a time, so that not every command looks for the oldest one.
pub(crate) const CHANGES_TRIMMED: u32 = 256;

/// UIDVALIDITY is taken from no clock beyond this, in seconds since 1970: one that is set so far ahead would use up all that
/// are left, for good.
const UID_VALIDITY_CLOCK_MAX: u32 = u32::MAX - (1 << 24);

/// Why a command stops: refused by rule, or the storage itself is at fault.
#[derive(Debug)]
pub(crate) enum Fault {
    Mail(MailError),
    Storage(StorageError),
}

impl From<MailError> for Fault {
    fn from(error: MailError) -> Fault {
        Fault::Mail(error)
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Fault {
        Fault::Storage(error)
    }
}

pub(crate) type Step<T> = Result<T, Fault>;

pub(crate) struct Edit<'a> {
    pub view: View<'a>,
    /// Of the entry: the modseq of all that changes, and the id of a body that it completes.
    pub index: u64,
    pub stamp: Stamp,
    /// No other replica has what this one cannot read.
    pub alone: bool,
    /// Ranges that are deleted before anything is put.
    gone: Changes,
    /// Records that are written once and not read again by this command.
    pub puts: Changes,
    /// Records that the command may read again.
    records: BTreeMap<Vec<u8>, Option<Bytes>>,
    accounts: BTreeMap<AccountId, AccountRecord>,
    /// Of the accounts that were there before: what they held then.
    accounts_before: BTreeMap<AccountId, AccountRecord>,
    pub mailboxes: BTreeMap<(AccountId, MailboxId), MailboxEdit>,
    bodies: BTreeMap<u64, BodyRecord>,
    lists: BTreeSet<AccountId>,
    events: Vec<ShardEvent>,
}

impl<'a> Edit<'a> {
    pub(crate) fn new(view: View<'a>, index: u64, stamp: Stamp) -> Edit<'a> {
        Edit {
            view,
            index,
            stamp,
            alone: false,
            gone: Changes::default(),
            puts: Changes::default(),
            records: BTreeMap::new(),
            accounts: BTreeMap::new(),
            accounts_before: BTreeMap::new(),
            mailboxes: BTreeMap::new(),
            bodies: BTreeMap::new(),
            lists: BTreeSet::new(),
            events: Vec::new(),
        }
    }

    /// Milliseconds since 1970, never negative, as keys want them.
    pub(crate) fn unix_ms(&self) -> u64 {
        u64::try_from(self.stamp.unix_ms).unwrap_or(0)
    }

    pub(crate) fn key(&self, kind: Kind) -> Key {
        self.view.key(kind)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        match self.records.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.view.get(key),
        }
    }

    pub(crate) fn record<R: Message + Default>(&self, key: &[u8]) -> Result<Option<R>, StorageError> {
        self.get(key)?.map(|value| decode(Family::State, key, &value)).transpose()
    }

    pub(crate) fn put(&mut self, key: Vec<u8>, value: Bytes) {
        self.records.insert(key, Some(value));
    }

    pub(crate) fn delete(&mut self, key: Vec<u8>) {
        self.records.insert(key, None);
    }

    /// The modseq of what this command changes in an account that it has looked at.
    pub(crate) fn mod_seq(&self, account: AccountId) -> u64 {
        self.index.saturating_add(self.accounts.get(&account).map_or(0, |record| record.mod_seq_base))
    }

    /// Deletes every record with a prefix. None of them may have been put by this command.
    pub(crate) fn delete_all(&mut self, prefix: Key) {
        self.gone.delete_range(Family::State, prefix_range(&prefix.done()));
    }

    // Accounts.

    pub(crate) fn account_exists(&self, account: AccountId) -> Result<bool, StorageError> {
        Ok(self.accounts.contains_key(&account)
            || self.get(&self.key(Kind::Account).account(account).done())?.is_some())
    }

    /// `NotHere` while the account is between two shards, or when it has gone to another.
    pub(crate) fn check_here(&self, account: AccountId) -> Step<()> {
        match self.known_account(account)? {
            Some(record) if record.place != 0 => Err(MailError::NotHere.into()),
            _ => Ok(()),
        }
    }

    /// The account's record if there is one.
    pub(crate) fn known_account(&self, account: AccountId) -> Result<Option<AccountRecord>, StorageError> {
        match self.accounts.get(&account) {
            Some(record) => Ok(Some(record.clone())),
            None => self.record(&self.key(Kind::Account).account(account).done()),
        }
    }

    /// An account that was not there, or nothing of which is left.
    pub(crate) fn put_account(&mut self, account: AccountId, record: AccountRecord) -> Step<()> {
        if let Some(before) = self.known_account(account)? {
            self.accounts_before.entry(account).or_insert(before);
        }
        self.accounts.insert(account, record);
        Ok(())
    }

    /// The account's record. An account's first command creates it, with the mailboxes that clients expect.
    pub(crate) fn account(&mut self, account: AccountId) -> Step<&mut AccountRecord> {
        if !self.accounts.contains_key(&account) {
            let key = self.key(Kind::Account).account(account).done();
            match self.record(&key)? {
                Some(record) => {
                    self.accounts_before.insert(account, AccountRecord::clone(&record));
                    self.accounts.insert(account, record);
                }
                None => self.create_account(account)?,
            }
        }
        self.accounts.get_mut(&account).ok_or(Fault::Mail(MailError::NoSuchAccount))
    }

    fn create_account(&mut self, account: AccountId) -> Step<()> {
        let (mailbox_next, uid_validity_last) = remains::behind(self, account)?;
        self.accounts.insert(account, AccountRecord { mailbox_next, uid_validity_last, ..Default::default() });
        let mailboxes = [
            ("INBOX", None),
            ("Drafts", Some(SpecialUse::Drafts)),
            ("Sent", Some(SpecialUse::Sent)),
            ("Junk", Some(SpecialUse::Junk)),
            ("Trash", Some(SpecialUse::Trash)),
            ("Archive", Some(SpecialUse::Archive)),
        ];
        for (name, special_use) in mailboxes {
            let name = MailboxName::parse(name).map_err(|error| MailError::Internal(error.to_string()))?;
            self.create_mailbox(account, &name, special_use)?;
            self.subscribe(account, &name, true)?;
        }
        Ok(())
    }

    /// Removes the account's record, once all that it counts is gone.
    pub(crate) fn forget_account(&mut self, account: AccountId) {
        self.accounts.remove(&account);
        self.mailboxes.retain(|(owner, _), _| *owner != account);
        let key = self.key(Kind::Account).account(account).done();
        self.delete(key);
        self.list_changed(account);
    }

    pub(crate) fn list_changed(&mut self, account: AccountId) {
        self.lists.insert(account);
    }

    // Names.

    pub(crate) fn mailbox_named(&self, account: AccountId, name: &MailboxName) -> Step<Option<MailboxId>> {
        let key = self.key(Kind::Name).account(account).bytes(name.as_str().as_bytes()).done();
        let Some(value) = self.get(&key)? else { return Ok(None) };
        Ok(Some(mailbox_id(&key, &value)?))
    }

    /// Adds a mailbox whose name is free.
    pub(crate) fn create_mailbox(
        &mut self,
        account: AccountId,
        name: &MailboxName,
        special_use: Option<SpecialUse>,
    ) -> Step<MailboxId> {
        // Invariant: greater than any earlier UIDVALIDITY of the account, so that a name never comes back with a
        // UIDVALIDITY that it had before (RFC 9051 §2.3.1.1).
        let now = uid_validity_at(self.stamp.unix_ms);
        let record = self.account(account)?;
        if record.mailboxes >= MAILBOXES_MAX {
            return Err(MailError::Limit(format!("too many mailboxes, at most {MAILBOXES_MAX} are allowed")).into());
        }
        let Some(after_last) = record.uid_validity_last.checked_add(1) else {
            return Err(MailError::Limit("no UIDVALIDITY is left".to_owned()).into());
        };
        record.uid_validity_last = now.max(after_last);
        let id = MailboxId(record.mailbox_next);
        record.mailbox_next += 1;
        record.mailboxes += 1;
        let mailbox = MailboxRecord {
            name: name.as_str().to_owned(),
            uid_validity: record.uid_validity_last,
            uid_next: 1,
            mod_seq: self.mod_seq(account),
            special_use: special_use_number(special_use),
            ..Default::default()
        };
        self.mailboxes.insert((account, id), MailboxEdit::new(mailbox));
        self.put_name(account, name, id);
        Ok(id)
    }

    pub(crate) fn put_name(&mut self, account: AccountId, name: &MailboxName, id: MailboxId) {
        let key = self.key(Kind::Name).account(account).bytes(name.as_str().as_bytes()).done();
        self.put(key, encode_bytes(&id.0.to_be_bytes()));
        self.list_changed(account);
    }

    pub(crate) fn delete_name(&mut self, account: AccountId, name: &MailboxName) {
        let key = self.key(Kind::Name).account(account).bytes(name.as_str().as_bytes()).done();
        self.delete(key);
        self.list_changed(account);
    }

    pub(crate) fn subscribe(&mut self, account: AccountId, name: &MailboxName, on: bool) -> Step<()> {
        let key = self.key(Kind::Subscription).account(account).bytes(name.as_str().as_bytes()).done();
        if self.get(&key)?.is_some() == on {
            return Ok(());
        }
        let record = self.account(account)?;
        if on && record.subscriptions >= SUBSCRIPTIONS_MAX {
            let text = format!("too many subscriptions, at most {SUBSCRIPTIONS_MAX} are allowed");
            return Err(MailError::Limit(text).into());
        }
        if on {
            record.subscriptions += 1;
            self.put(key, encode_bytes(b""));
        } else {
            record.subscriptions = record.subscriptions.saturating_sub(1);
            self.delete(key);
        }
        self.list_changed(account);
        Ok(())
    }

    /// Says that a mailbox is no more, to those who have it selected.
    pub(crate) fn mailbox_gone(&mut self, account: AccountId, mailbox: MailboxId) {
        self.mailboxes.remove(&(account, mailbox));
        let kind = ShardEventKind::Mailbox { id: mailbox, mod_seq: ModSeq(self.mod_seq(account)) };
        self.events.push(ShardEvent { account, kind });
    }

    // The end.

    /// Everything as one batch, with the marker; who is to be told; and what the shard's totals grow by.
    pub(crate) fn finish(mut self, marker: &[u8]) -> Result<(Changes, Vec<ShardEvent>, Grown), StorageError> {
        let mut grown = Grown::default();
        self.accounts.values().for_each(|record| grown.came(record));
        self.accounts_before.values().for_each(|record| grown.went(record));
        let mut events = std::mem::take(&mut self.events);
        let bodies = std::mem::take(&mut self.bodies);
        for (body, record) in bodies {
            let key = self.key(Kind::Body).u64(body).done();
            if record.references > 0 {
                self.put(key, encode(&record));
            } else {
                self.delete(key);
                let digest = self.key(Kind::Digest).u64(body).done();
                self.delete(digest);
                self.discard(&record.chunks);
            }
        }
        for ((account, id), mailbox) in std::mem::take(&mut self.mailboxes) {
            if let Some(kind) = self.finish_mailbox(account, id, mailbox)? {
                events.push(ShardEvent { account, kind });
            }
        }
        for (account, record) in std::mem::take(&mut self.accounts) {
            let key = self.key(Kind::Account).account(account).done();
            self.put(key, encode(&record));
        }
        let lists =
            self.lists.iter().map(|account| ShardEvent { account: *account, kind: ShardEventKind::MailboxList });
        events.extend(lists);
        let mut changes = self.gone;
        changes.append(self.puts);
        for (key, value) in self.records {
            match value {
                Some(value) => changes.put(Family::State, key, value),
                None => changes.delete(Family::State, key),
            }
        }
        put_marker(&mut changes, self.view.space, marker);
        Ok((changes, events, grown))
    }

    fn finish_mailbox(
        &mut self,
        account: AccountId,
        id: MailboxId,
        mut mailbox: MailboxEdit,
    ) -> Result<Option<ShardEventKind>, StorageError> {
        for (page, bitmaps) in &mailbox.pages {
            let key = self.key(Kind::Page).mailbox(account, id).u32(*page).done();
            if bitmaps.is_empty() {
                self.delete(key);
            } else {
                self.put(key, bitmaps.encode().into());
            }
        }
        let changed = !mailbox.changed.is_empty() || !mailbox.vanished.is_empty();
        let mod_seq = self.mod_seq(account);
        if changed {
            let change = ChangeRecord { changed: flat(&mailbox.changed), vanished: flat(&mailbox.vanished) };
            let key = self.key(Kind::Change).mailbox(account, id).u64(mod_seq).done();
            self.put(key, encode(&change));
            mailbox.record.mod_seq = mod_seq;
            mailbox.record.changes += 1;
            if mailbox.record.changes >= CHANGES_KEPT + CHANGES_TRIMMED {
                self.trim_changes(account, id, &mut mailbox.record)?;
            }
        }
        if changed || mailbox.dirty {
            let key = self.key(Kind::Mailbox).mailbox(account, id).done();
            self.put(key, encode(&mailbox.record));
        }
        Ok(changed.then_some(ShardEventKind::Mailbox { id, mod_seq: ModSeq(mod_seq) }))
    }

    fn trim_changes(
        &mut self,
        account: AccountId,
        id: MailboxId,
        record: &mut MailboxRecord,
    ) -> Result<(), StorageError> {
        let prefix = self.key(Kind::Change).mailbox(account, id);
        // From behind those that were trimmed before: their tombstones would have to be stepped over.
        let from = prefix.clone().u64(record.changes_after.saturating_add(1)).done();
        let (_, to) = prefix_range(&prefix.done());
        let mut oldest = Vec::new();
        self.view.scan_range((from, to), |key, _| {
            oldest.push(key.to_vec());
            Ok(oldest.len() < CHANGES_TRIMMED as usize)
        })?;
        for key in oldest {
            record.changes_after =
                u64_at(&key, 21).ok_or_else(|| StorageError::corrupt(printable(Family::State, &key), "short key"))?;
            record.changes = record.changes.saturating_sub(1);
            self.delete(key);
        }
        Ok(())
    }
}

/// The value of a name record.
pub(crate) fn mailbox_id(key: &[u8], value: &[u8]) -> Result<MailboxId, StorageError> {
    let id = u64_at(payload(Family::State, key, value)?, 0);
    id.map(MailboxId).ok_or_else(|| StorageError::corrupt(printable(Family::State, key), "not a mailbox id"))
}

/// What a new mailbox may have for UIDVALIDITY at this time at least, in milliseconds since 1970.
fn uid_validity_at(unix_ms: i64) -> u32 {
    let seconds = u32::try_from(unix_ms.max(0) / 1000).unwrap_or(u32::MAX);
    if seconds > UID_VALIDITY_CLOCK_MAX { 1 } else { seconds.max(1) }
}

#[cfg(test)]
mod tests {
    use super::{UID_VALIDITY_CLOCK_MAX, uid_validity_at};

    #[test]
    fn a_clock_that_is_far_off_uses_up_no_uidvalidity() {
        assert_eq!(uid_validity_at(-5), 1);
        assert_eq!(uid_validity_at(1_800_000_000_000), 1_800_000_000);
        let last = i64::from(UID_VALIDITY_CLOCK_MAX) * 1000;
        assert_eq!(uid_validity_at(last), UID_VALIDITY_CLOCK_MAX);
        assert_eq!([last + 1000, i64::MAX].map(uid_validity_at), [1, 1]);
    }
}
