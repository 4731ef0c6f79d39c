//! Messages of one mailbox coming, going and changing flags: record, page, counters and change log kept in step.

use std::collections::BTreeMap;

use types::{AccountId, Flags, Keyword, MailError, MailboxId, SystemFlags, UidSet};

use super::edit::{Edit, Step};
use super::page::{self, Page};
use super::read;
use super::remains;
use crate::error::StorageError;
use crate::keys::{Kind, printable};
use crate::planted::{Bug, planted};
use crate::records::{MailboxRecord, MessageRecord, encode};
use crate::store::Family;

/// A mailbox that the command has read or changed.
pub(crate) struct MailboxEdit {
    pub record: MailboxRecord,
    /// To be written even if no message changed.
    pub dirty: bool,
    pub pages: BTreeMap<u32, Page>,
    pub changed: UidSet,
    pub vanished: UidSet,
}

impl MailboxEdit {
    /// A mailbox that is not on the disk yet.
    pub(crate) fn new(record: MailboxRecord) -> MailboxEdit {
        MailboxEdit { dirty: true, ..MailboxEdit::unchanged(record) }
    }

    fn unchanged(record: MailboxRecord) -> MailboxEdit {
        MailboxEdit { record, dirty: false, pages: BTreeMap::new(), changed: UidSet::new(), vanished: UidSet::new() }
    }

    /// The bits of keywords, which get a place in the mailbox's table if they have none.
    pub(crate) fn keyword_bits(&mut self, keywords: &[Keyword]) -> Step<u128> {
        let mut bits = 0;
        for keyword in keywords {
            let known = self.record.keywords.iter().position(|name| name.eq_ignore_ascii_case(keyword.as_str()));
            let place = match known {
                Some(place) => place,
                None => {
                    let place = self.record.keywords.len();
                    if place >= types::KEYWORDS_PER_MAILBOX_MAX {
                        let text = format!(
                            "too many keywords in a mailbox, at most {} are allowed",
                            types::KEYWORDS_PER_MAILBOX_MAX
                        );
                        return Err(MailError::Limit(text).into());
                    }
                    self.record.keywords.push(keyword.as_str().to_owned());
                    self.dirty = true;
                    place
                }
            };
            bits |= 1u128 << place;
        }
        Ok(bits)
    }

    /// The bits of those keywords that the table has.
    pub(crate) fn known_keyword_bits(&self, keywords: &[Keyword]) -> u128 {
        let places = keywords.iter().filter_map(|keyword| {
            self.record.keywords.iter().position(|name| name.eq_ignore_ascii_case(keyword.as_str()))
        });
        places.filter(|place| *place < 128).fold(0, |bits, place| bits | 1u128 << place)
    }

    pub(crate) fn count(&mut self, system: SystemFlags, up: bool) {
        let step = |counter: &mut u32| *counter = if up { *counter + 1 } else { counter.saturating_sub(1) };
        if !system.contains(SystemFlags::SEEN) {
            step(&mut self.record.unseen);
        }
        if system.contains(SystemFlags::DELETED) {
            step(&mut self.record.deleted);
        }
    }
}

impl Edit<'_> {
    /// The mailbox with this id, `MailboxGone` if there is none any more.
    pub(crate) fn mailbox(&mut self, account: AccountId, id: MailboxId) -> Step<&mut MailboxEdit> {
        if !self.mailboxes.contains_key(&(account, id)) {
            let key = self.key(Kind::Mailbox).mailbox(account, id).done();
            let Some(record) = self.record::<MailboxRecord>(&key)? else { return Err(MailError::MailboxGone.into()) };
            self.mailboxes.insert((account, id), MailboxEdit::unchanged(record));
        }
        self.mailboxes.get_mut(&(account, id)).ok_or_else(|| MailError::MailboxGone.into())
    }

    fn page(&mut self, account: AccountId, id: MailboxId, uid: u32) -> Step<&mut Page> {
        let number = page::number(uid);
        if !self.mailbox(account, id)?.pages.contains_key(&number) {
            let key = self.key(Kind::Page).mailbox(account, id).u32(number).done();
            let page = match self.get(&key)? {
                Some(value) => Page::decode(&key, &value)?,
                None => Page::default(),
            };
            self.mailbox(account, id)?.pages.insert(number, page);
        }
        self.mailbox(account, id)?.pages.get_mut(&number).ok_or_else(|| MailError::MailboxGone.into())
    }

    /// Adds a message and gives it its UID. Its body must exist; the keywords must be bits of this mailbox.
    pub(crate) fn add_message(&mut self, account: AccountId, id: MailboxId, mut message: MessageRecord) -> Step<u32> {
        let mailbox = self.mailbox(account, id)?;
        let Ok(uid) = u32::try_from(mailbox.record.uid_next) else {
            return Err(MailError::Limit("the mailbox has no UIDs left".to_owned()).into());
        };
        // Invariant: uid_next is greater than every UID ever given out in this mailbox (RFC 9051 §2.3.1.1).
        mailbox.record.uid_next += 1;
        mailbox.changed.insert(uid);
        self.account(account)?;
        message.mod_seq = self.mod_seq(account);
        self.put_in(account, id, uid, &message)?;
        Ok(uid)
    }

    /// Adds a message that has its UID and its modseq already.
    pub(crate) fn put_in(&mut self, account: AccountId, id: MailboxId, uid: u32, message: &MessageRecord) -> Step<()> {
        let system = system(message);
        let mailbox = self.mailbox(account, id)?;
        mailbox.record.messages += 1;
        mailbox.record.bytes += message.size;
        mailbox.count(system, true);
        mailbox.dirty = true;
        self.page(account, id, uid)?.set(uid, system);
        let totals = self.account(account)?;
        totals.messages += 1;
        totals.bytes += message.size;
        self.refer(message.body)?;
        self.put_message(account, id, uid, message);
        Ok(())
    }

    pub(crate) fn remove_message(
        &mut self,
        account: AccountId,
        id: MailboxId,
        uid: u32,
        message: &MessageRecord,
    ) -> Step<()> {
        let mailbox = self.mailbox(account, id)?;
        mailbox.vanished.insert(uid);
        if planted(Bug::ReuseUid) && mailbox.record.uid_next == u64::from(uid) + 1 {
            mailbox.record.uid_next = u64::from(uid);
        }
        self.take_out(account, id, uid, message)
    }

    /// Removes a message, and tells nobody.
    pub(crate) fn take_out(
        &mut self,
        account: AccountId,
        id: MailboxId,
        uid: u32,
        message: &MessageRecord,
    ) -> Step<()> {
        let mailbox = self.mailbox(account, id)?;
        mailbox.record.messages = mailbox.record.messages.saturating_sub(1);
        mailbox.record.bytes = mailbox.record.bytes.saturating_sub(message.size);
        mailbox.count(system(message), false);
        mailbox.dirty = true;
        self.page(account, id, uid)?.clear(uid);
        let totals = self.account(account)?;
        totals.messages = totals.messages.saturating_sub(1);
        totals.bytes = totals.bytes.saturating_sub(message.size);
        self.release(message.body)?;
        let key = self.key(Kind::Message).mailbox(account, id).u32(uid).done();
        self.puts.delete(Family::State, key);
        Ok(())
    }

    /// Gives a message other flags.
    pub(crate) fn flag_message(
        &mut self,
        account: AccountId,
        id: MailboxId,
        uid: u32,
        message: &mut MessageRecord,
        flags: (SystemFlags, u128),
    ) -> Step<()> {
        let before = system(message);
        self.mailbox(account, id)?.changed.insert(uid);
        message.system = u32::from(flags.0.bits());
        message.set_keywords(flags.1);
        message.mod_seq = self.mod_seq(account);
        self.put_over(account, id, uid, before, message)
    }

    /// Writes a message with other flags than it had before.
    pub(crate) fn put_over(
        &mut self,
        account: AccountId,
        id: MailboxId,
        uid: u32,
        before: SystemFlags,
        message: &MessageRecord,
    ) -> Step<()> {
        let mailbox = self.mailbox(account, id)?;
        mailbox.count(before, false);
        mailbox.count(system(message), true);
        mailbox.dirty = true;
        self.page(account, id, uid)?.set(uid, system(message));
        self.put_message(account, id, uid, message);
        Ok(())
    }

    fn put_message(&mut self, account: AccountId, id: MailboxId, uid: u32, message: &MessageRecord) {
        let key = self.key(Kind::Message).mailbox(account, id).u32(uid).done();
        self.puts.put(Family::State, key, encode(message));
    }

    /// The messages of a set as they were before this command.
    pub(crate) fn messages(
        &self,
        account: AccountId,
        id: MailboxId,
        uids: &UidSet,
    ) -> Result<Vec<(u32, MessageRecord)>, StorageError> {
        let mut found = Vec::new();
        read::scan_messages(&self.view, account, id, uids, |uid, message| {
            found.push((uid, message));
            true
        })?;
        Ok(found)
    }

    /// Removes a mailbox. Its messages are its remains, or go with it where the command is of an older format.
    pub(crate) fn remove_mailbox(&mut self, account: AccountId, id: MailboxId) -> Step<()> {
        let MailboxRecord { messages, bytes, .. } = self.mailbox(account, id)?.record;
        if !remains::are_left(&self.stamp) {
            for (_, message) in self.messages(account, id, &UidSet::from_range(1, u32::MAX))? {
                self.release(message.body)?;
            }
            self.delete_all(self.key(Kind::Message).mailbox(account, id));
        } else if messages > 0 {
            remains::leave(self, account, id)?;
        }
        let record = self.account(account)?;
        record.mailboxes = record.mailboxes.saturating_sub(1);
        record.messages = record.messages.saturating_sub(u64::from(messages));
        record.bytes = record.bytes.saturating_sub(bytes);
        for kind in [Kind::Page, Kind::Change] {
            self.delete_all(self.key(kind).mailbox(account, id));
        }
        let key = self.key(Kind::Mailbox).mailbox(account, id).done();
        self.delete(key);
        self.mailbox_gone(account, id);
        Ok(())
    }
}

pub(crate) fn system(message: &MessageRecord) -> SystemFlags {
    SystemFlags::from_bits(message.system as u8)
}

/// A message's flags by the keyword table of its mailbox.
pub(crate) fn flags_of(
    key: impl FnOnce() -> Vec<u8>,
    table: &[Keyword],
    message: &MessageRecord,
) -> Result<Flags, StorageError> {
    let mut bits = message.keywords();
    let mut flags = Flags::system(system(message));
    while bits != 0 {
        let place = bits.trailing_zeros() as usize;
        bits &= bits - 1;
        let Some(keyword) = table.get(place) else {
            return Err(StorageError::corrupt(printable(Family::State, &key()), "a keyword that the mailbox lacks"));
        };
        flags.keywords.push(keyword.clone());
    }
    Ok(flags)
}

/// A mailbox's keyword table.
pub(crate) fn keyword_table(key: &[u8], record: &MailboxRecord) -> Result<Vec<Keyword>, StorageError> {
    let parsed = record.keywords.iter().map(|name| Keyword::parse(name)).collect::<Result<_, _>>();
    parsed.map_err(|error| StorageError::corrupt(printable(Family::State, key), error))
}
