//! The mailboxes of a shard as plain maps: what `ShardState` must agree with.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use storage::{BodySource, Command, Delivered, Outcome, StoreAction};
use types::{
    AccountId, Flags, MailError, MailboxId, MailboxName, ModSeq, Quota, SystemFlags, Uid, UidSet, UidValidity,
};

use crate::common::name;

#[derive(Clone, Debug, Default)]
pub struct Message {
    pub system: SystemFlags,
    pub keywords: BTreeSet<String>,
    pub mod_seq: u64,
    pub body: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Mailbox {
    pub id: u64,
    pub uid_validity: u32,
    pub uid_next: u32,
    pub mod_seq: u64,
    pub messages: BTreeMap<u32, Message>,
    /// What happened, oldest first.
    pub history: Vec<(u64, u32, bool)>,
}

#[derive(Clone, Debug, Default)]
pub struct Account {
    pub mailboxes: BTreeMap<String, Mailbox>,
    pub subscriptions: BTreeSet<String>,
    pub id_next: u64,
    pub uid_validity_last: u32,
}

#[derive(Default)]
pub struct Model {
    /// In force.
    pub format: u32,
    /// By account and mailbox: messages of what is no more, and the account's last UIDVALIDITY of then.
    pub remains: BTreeMap<(u64, u64), (usize, u32)>,
    pub accounts: BTreeMap<u64, Account>,
    pub bodies: BTreeMap<u64, Vec<u8>>,
    pub uploads: BTreeMap<u128, Vec<u8>>,
    pub fingerprints: BTreeMap<([u8; 32], u64), Delivered>,
}

pub type Answer = Result<Outcome, MailError>;

impl Account {
    fn create(&mut self, index: u64, now: u32, text: &str) -> u64 {
        self.uid_validity_last = now.max(self.uid_validity_last + 1);
        self.id_next += 1;
        let mailbox = Mailbox {
            id: self.id_next,
            uid_validity: self.uid_validity_last,
            uid_next: 1,
            mod_seq: index,
            ..Default::default()
        };
        self.mailboxes.insert(text.to_owned(), mailbox);
        self.id_next
    }

    fn create_with_parents(&mut self, index: u64, now: u32, text: &str) -> u64 {
        let above: Vec<&str> = text.match_indices('/').map(|(at, _)| &text[..at]).collect();
        // Above the nearest one that is there a name may be without a mailbox, as DELETE leaves it.
        let there = above.iter().rposition(|name| self.mailboxes.contains_key(*name));
        for name in &above[there.map_or(0, |nearest| nearest + 1)..] {
            self.create(index, now, name);
        }
        self.create(index, now, text)
    }

    fn by_id(&mut self, id: MailboxId) -> Result<&mut Mailbox, MailError> {
        self.mailboxes.values_mut().find(|one| one.id == id.0).ok_or(MailError::MailboxGone)
    }
}

impl Mailbox {
    fn add(&mut self, index: u64, message: Message) -> u32 {
        let uid = self.uid_next;
        self.uid_next += 1;
        self.mod_seq = index;
        self.messages.insert(uid, Message { mod_seq: index, ..message });
        self.history.push((index, uid, false));
        uid
    }

    fn remove(&mut self, index: u64, uid: u32) {
        self.messages.remove(&uid);
        self.mod_seq = index;
        self.history.push((index, uid, true));
    }

    fn wanted(&self, uids: &UidSet) -> Vec<u32> {
        self.messages.keys().copied().filter(|uid| uids.contains(*uid)).collect()
    }
}

pub fn keywords(flags: &Flags) -> BTreeSet<String> {
    flags.keywords.iter().map(|keyword| keyword.as_str().to_owned()).collect()
}

impl Model {
    fn account(&mut self, index: u64, now: u32, id: AccountId) -> &mut Account {
        self.accounts.entry(id.0).or_insert_with(|| {
            let mut account = Account::default();
            for ((_, mailbox), (_, uid_validity)) in self.remains.range((id.0, 0)..=(id.0, u64::MAX)) {
                account.id_next = account.id_next.max(*mailbox);
                account.uid_validity_last = account.uid_validity_last.max(*uid_validity);
            }
            for text in ["INBOX", "Drafts", "Sent", "Junk", "Trash", "Archive"] {
                account.create(index, now, text);
                account.subscriptions.insert(text.to_owned());
            }
            account
        })
    }

    fn body(&mut self, source: &BodySource, own: Option<&Bytes>) -> Result<Vec<u8>, MailError> {
        match source {
            BodySource::Inline => own.map(|own| own.to_vec()).ok_or_else(|| MailError::Invalid(String::new())),
            BodySource::Upload(upload) => {
                let mut bytes = self.uploads.remove(upload).ok_or(MailError::Busy)?;
                bytes.extend(own.into_iter().flatten());
                Ok(bytes)
            }
        }
    }

    /// Counts anew what the account holds, each time.
    fn admit(&self, account: AccountId, quota: Quota, bodies: &[u64]) -> Result<(), MailError> {
        let octets = |bodies: &[u64]| bodies.iter().map(|body| self.bodies[body].len() as u64).sum::<u64>();
        let messages = self.accounts[&account.0].mailboxes.values().flat_map(|one| one.messages.values());
        let held: Vec<u64> = messages.map(|message| message.body).collect();
        let (used, more) = (octets(&held), octets(bodies));
        let too_much = more > 0 && quota.octets.is_some_and(|max| used + more > max);
        let too_many = !bodies.is_empty() && quota.messages.is_some_and(|max| (held.len() + bodies.len()) as u64 > max);
        if too_much || too_many { Err(MailError::OverQuota) } else { Ok(()) }
    }

    fn leave(&mut self, account: AccountId, gone: &Mailbox, uid_validity_last: u32) {
        if self.format >= 2 && !gone.messages.is_empty() {
            self.remains.insert((account.0, gone.id), (gone.messages.len(), uid_validity_last));
        }
    }

    pub fn apply(&mut self, index: u64, now: u32, command: &Command, own: Option<&Bytes>) -> Answer {
        // A refused command leaves no account behind that it would have created.
        let before = self.accounts.clone();
        let answer = self.run(index, now, command, own);
        if answer.is_err() {
            self.accounts = before;
            if let Command::Append { body: BodySource::Upload(upload), .. } = command {
                self.uploads.remove(upload);
            }
        }
        answer
    }

    fn run(&mut self, index: u64, now: u32, command: &Command, own: Option<&Bytes>) -> Answer {
        match command {
            Command::Chunk { upload } => {
                self.uploads.entry(*upload).or_default().extend(own.unwrap());
                Ok(Outcome::Done)
            }
            Command::DropUpload { upload } => {
                self.uploads.remove(upload);
                Ok(Outcome::Done)
            }
            Command::Mark { .. } => Ok(Outcome::Done),
            Command::MoveAccount { .. } | Command::Import { .. } => panic!("the model knows one shard"),
            Command::CreateAccount { account } => {
                self.account(index, now, *account);
                Ok(Outcome::Done)
            }
            Command::DropAccount { account } => {
                let gone = self.accounts.remove(&account.0).unwrap_or_default();
                for mailbox in gone.mailboxes.values() {
                    self.leave(*account, mailbox, gone.uid_validity_last);
                }
                Ok(Outcome::Done)
            }
            Command::ClearRemains { messages_max } => {
                let mut room = *messages_max as usize;
                let keys: Vec<(u64, u64)> = self.remains.keys().copied().take(room).collect();
                for key in keys {
                    let messages = &mut self.remains.get_mut(&key).unwrap().0;
                    if *messages >= room {
                        *messages -= room;
                        break;
                    }
                    room -= *messages;
                    self.remains.remove(&key);
                }
                Ok(Outcome::Done)
            }
            Command::Deliver { recipients, body, settle, .. } => {
                let bytes = self.body(body, own)?;
                self.fingerprints.retain(|(fingerprint, _), _| !settle.contains(fingerprint));
                self.bodies.insert(index, bytes);
                let mut all = Vec::new();
                for recipient in recipients {
                    let key = (recipient.fingerprint, recipient.account.0);
                    if let Some(seen) = self.fingerprints.get(&key) {
                        all.push(Ok(Delivered { duplicate: true, ..*seen }));
                        continue;
                    }
                    self.account(index, now, recipient.account);
                    if let Err(refused) = self.admit(recipient.account, recipient.quota, &[index]) {
                        all.push(Err(refused));
                        continue;
                    }
                    let account = self.account(index, now, recipient.account);
                    let inbox = account.mailboxes.get_mut("INBOX").unwrap();
                    let uid = inbox.add(index, Message { body: index, ..Default::default() });
                    let one = Delivered {
                        mailbox: MailboxId(inbox.id),
                        uid: Uid(uid),
                        uid_validity: UidValidity(inbox.uid_validity),
                        duplicate: false,
                    };
                    self.fingerprints.insert(key, one);
                    all.push(Ok(one));
                }
                Ok(Outcome::Delivered(all))
            }
            Command::Settle { fingerprints } => {
                self.fingerprints.retain(|(fingerprint, _), _| !fingerprints.contains(fingerprint));
                Ok(Outcome::Done)
            }
            Command::Append { account, mailbox, flags, body, quota, .. } => {
                self.account(index, now, *account);
                if !self.accounts[&account.0].mailboxes.contains_key(mailbox.as_str()) {
                    return Err(MailError::NoSuchMailbox);
                }
                let bytes = self.body(body, own)?;
                self.bodies.insert(index, bytes);
                self.admit(*account, *quota, &[index])?;
                let mailbox = self.accounts.get_mut(&account.0).unwrap().mailboxes.get_mut(mailbox.as_str()).unwrap();
                let message = Message { system: flags.system, keywords: keywords(flags), mod_seq: index, body: index };
                let uid = mailbox.add(index, message);
                Ok(Outcome::Appended {
                    mailbox: MailboxId(mailbox.id),
                    uid: Uid(uid),
                    uid_validity: UidValidity(mailbox.uid_validity),
                    mod_seq: ModSeq(index),
                })
            }
            Command::CreateMailbox { account, name, .. } => {
                let account = self.account(index, now, *account);
                if account.mailboxes.contains_key(name.as_str()) {
                    return Err(MailError::MailboxExists);
                }
                Ok(Outcome::MailboxCreated(MailboxId(account.create_with_parents(index, now, name.as_str()))))
            }
            Command::DeleteMailbox { account, name } => {
                let owner = *account;
                let account = self.account(index, now, owner);
                if name.is_inbox() {
                    return Err(MailError::CannotDo(String::new()));
                }
                let is_above = account.has_below(name);
                let missing = || if is_above { MailError::CannotDo(String::new()) } else { MailError::NoSuchMailbox };
                let (gone, uid_validity) = (account.mailboxes.remove(name.as_str()), account.uid_validity_last);
                let gone = gone.ok_or_else(missing)?;
                self.leave(owner, &gone, uid_validity);
                Ok(Outcome::Done)
            }
            Command::RenameMailbox { account, from, to } => {
                self.account(index, now, *account).rename(index, now, from, to)
            }
            Command::Subscribe { account, name, on } => {
                let subscriptions = &mut self.account(index, now, *account).subscriptions;
                if *on {
                    subscriptions.insert(name.as_str().to_owned());
                } else {
                    subscriptions.remove(name.as_str());
                }
                Ok(Outcome::Done)
            }
            Command::Store { account, mailbox, uids, action, flags, unchanged_since } => {
                let mailbox = self.account(index, now, *account).by_id(*mailbox)?;
                let (mut changed, mut modified) = (Vec::new(), UidSet::new());
                for uid in mailbox.wanted(uids) {
                    let message = mailbox.messages.get_mut(&uid).unwrap();
                    if unchanged_since.is_some_and(|since| message.mod_seq > since.0) {
                        modified.insert(uid);
                        continue;
                    }
                    let before = (message.system, message.keywords.clone());
                    match action {
                        StoreAction::Add => {
                            message.system = message.system.union(flags.system);
                            message.keywords.extend(keywords(flags));
                        }
                        StoreAction::Remove => {
                            message.system = message.system.without(flags.system);
                            message.keywords.retain(|keyword| !keywords(flags).contains(keyword));
                        }
                        StoreAction::Replace => (message.system, message.keywords) = (flags.system, keywords(flags)),
                    }
                    if before != (message.system, message.keywords.clone()) {
                        message.mod_seq = index;
                        mailbox.mod_seq = index;
                        mailbox.history.push((index, uid, false));
                    }
                    changed.push((Uid(uid), Flags::default(), ModSeq(mailbox.messages[&uid].mod_seq)));
                }
                Ok(Outcome::Stored { changed, modified, mod_seq: ModSeq(mailbox.mod_seq) })
            }
            Command::Expunge { account, mailbox, uids, only_deleted } => {
                let mailbox = self.account(index, now, *account).by_id(*mailbox)?;
                let all = UidSet::from_range(1, u32::MAX);
                let mut gone = UidSet::new();
                for uid in mailbox.wanted(uids.as_ref().unwrap_or(&all)) {
                    if !only_deleted || mailbox.messages[&uid].system.contains(SystemFlags::DELETED) {
                        mailbox.remove(index, uid);
                        gone.insert(uid);
                    }
                }
                Ok(Outcome::Expunged { uids: gone, mod_seq: ModSeq(mailbox.mod_seq) })
            }
            Command::Copy { account: owner, from, uids, to, remove_source, messages_min, quota } => {
                let account = self.account(index, now, *owner);
                let Some(to) = account.mailboxes.get(to.as_str()).map(|one| one.id) else {
                    return Err(MailError::NoSuchMailbox);
                };
                let source = account.by_id(*from)?;
                let wanted = source.wanted(uids);
                if (wanted.len() as u64) < *messages_min {
                    return Err(MailError::MessagesGone);
                }
                let bodies: Vec<u64> = wanted.iter().map(|uid| source.messages[uid].body).collect();
                if !remove_source {
                    self.admit(*owner, *quota, &bodies)?;
                }
                let account = self.account(index, now, *owner);
                account.copy(index, *from, MailboxId(to), uids, *remove_source)
            }
        }
    }
}

impl Account {
    fn copy(&mut self, index: u64, from: MailboxId, to: MailboxId, uids: &UidSet, remove: bool) -> Answer {
        let (mut old, mut new) = (UidSet::new(), UidSet::new());
        for uid in self.by_id(from)?.wanted(uids) {
            let message = self.by_id(from)?.messages[&uid].clone();
            new.insert(self.by_id(to)?.add(index, message));
            old.insert(uid);
            if remove {
                self.by_id(from)?.remove(index, uid);
            }
        }
        let target = self.by_id(to)?;
        let uid_validity = UidValidity(target.uid_validity);
        Ok(Outcome::Copied { from: old, to: new, uid_validity, to_mailbox: to, mod_seq: ModSeq(target.mod_seq) })
    }

    fn has_below(&self, above: &MailboxName) -> bool {
        self.mailboxes.keys().any(|text| name(text).is_under(above))
    }

    fn rename(&mut self, index: u64, now: u32, from: &MailboxName, to: &MailboxName) -> Answer {
        if !self.mailboxes.contains_key(from.as_str()) && !self.has_below(from) {
            return Err(MailError::NoSuchMailbox);
        }
        if self.mailboxes.contains_key(to.as_str()) {
            return Err(MailError::MailboxExists);
        }
        if from.is_inbox() {
            let inbox = MailboxId(self.mailboxes["INBOX"].id);
            let new = MailboxId(self.create_with_parents(index, now, to.as_str()));
            self.copy(index, inbox, new, &UidSet::from_range(1, u32::MAX), true)?;
            return Ok(Outcome::Done);
        }
        if to.is_under(from) {
            return Err(MailError::CannotDo(String::new()));
        }
        let moved: Vec<(String, String)> = self
            .mailboxes
            .keys()
            .filter(|text| *text == from.as_str() || name(text).is_under(from))
            .map(|text| (text.clone(), text.replacen(from.as_str(), to.as_str(), 1)))
            .collect();
        if moved.iter().any(|(_, new)| self.mailboxes.contains_key(new)) {
            return Err(MailError::MailboxExists);
        }
        if let Some(parent) = to.parent().filter(|parent| !self.mailboxes.contains_key(parent.as_str())) {
            self.create_with_parents(index, now, parent.as_str());
        }
        for (old, new) in moved {
            let mailbox = self.mailboxes.remove(&old).unwrap();
            self.mailboxes.insert(new, mailbox);
        }
        Ok(Outcome::Done)
    }
}
