//! What the node in memory holds: one account's mailboxes with their history, as plainly as it can be said.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use proto::wire::search_key::Key;
use proto::wire::search_key::day::Compare;
use proto::wire::{Mailbox, SearchKey, StoredMessage};
use proto::{uid_set_from_wire, wire};
use types::{Flags, InternalDate, MailError, MailResult, SystemFlags, UidSet};

#[derive(Clone, Debug)]
pub struct Message {
    pub flags: Flags,
    pub mod_seq: u64,
    pub date: InternalDate,
    pub body: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct TestMailbox {
    pub name: String,
    pub special_use: String,
    pub uid_validity: u32,
    pub uid_next: u32,
    pub mod_seq: u64,
    pub messages: BTreeMap<u32, Message>,
    pub vanished: Vec<(u64, u32)>,
    /// UIDs from here on have been told of as recent to nobody.
    pub recent_from: u32,
}

#[derive(Default)]
pub struct State {
    pub boxes: BTreeMap<u64, TestMailbox>,
    pub subscriptions: BTreeSet<String>,
    pub mod_seq: u64,
    pub next_box: u64,
    /// The next calls of an operation fail so.
    pub faults: HashMap<&'static str, VecDeque<MailError>>,
    /// By operation and the number of the call.
    pub later_faults: HashMap<(&'static str, usize), MailError>,
    pub calls: HashMap<&'static str, usize>,
    /// `changes` does not reach back.
    pub forgetful: bool,
    /// A fetch stream breaks after so many items, once.
    pub break_fetch_after: Option<usize>,
    pub keyword_order: Vec<String>,
    /// UIDs of messages that cannot be read, and of those of which all but the beginning cannot.
    pub unread: BTreeSet<u32>,
    pub unread_rest: BTreeSet<u32>,
}

impl State {
    pub fn tick(&mut self) -> u64 {
        self.mod_seq += 1;
        self.mod_seq
    }

    pub fn create(&mut self, name: &str, special_use: &str) -> u64 {
        let mod_seq = self.tick();
        self.next_box += 1;
        let made = TestMailbox {
            name: name.to_owned(),
            special_use: special_use.to_owned(),
            uid_validity: 1_000 + mod_seq as u32,
            uid_next: 1,
            mod_seq,
            messages: BTreeMap::new(),
            vanished: Vec::new(),
            recent_from: 1,
        };
        self.boxes.insert(self.next_box, made);
        self.next_box
    }

    pub fn id(&self, name: &str) -> MailResult<u64> {
        let found = self.boxes.iter().find(|(_, known)| known.name == name);
        found.map(|(id, _)| *id).ok_or(MailError::NoSuchMailbox)
    }

    pub fn by_id(&mut self, id: u64) -> MailResult<&mut TestMailbox> {
        self.boxes.get_mut(&id).ok_or(MailError::MailboxGone)
    }

    pub fn put(&mut self, id: u64, flags: Flags, date: InternalDate, body: Vec<u8>) -> MailResult<(u32, u64)> {
        let mod_seq = self.tick();
        self.note_keywords(&flags);
        let into = self.by_id(id)?;
        let uid = into.uid_next;
        into.uid_next += 1;
        into.mod_seq = mod_seq;
        into.messages.insert(uid, Message { flags, mod_seq, date, body });
        Ok((uid, mod_seq))
    }

    pub fn note_keywords(&mut self, flags: &Flags) {
        for keyword in &flags.keywords {
            if !self.keyword_order.iter().any(|known| known == keyword.as_str()) {
                self.keyword_order.push(keyword.as_str().to_owned());
            }
        }
    }

    pub fn remove(&mut self, id: u64, uids: &UidSet) -> MailResult<u64> {
        let mod_seq = if uids.is_empty() { self.by_id(id)?.mod_seq } else { self.tick() };
        let from = self.by_id(id)?;
        for uid in uids.iter() {
            from.messages.remove(&uid);
            from.vanished.push((mod_seq, uid));
        }
        from.mod_seq = mod_seq;
        Ok(mod_seq)
    }
}

impl TestMailbox {
    pub fn uids(&self) -> UidSet {
        self.messages.keys().copied().collect()
    }

    pub fn take_recent(&mut self, take: bool) -> UidSet {
        let recent: UidSet = self.messages.keys().copied().filter(|uid| *uid >= self.recent_from).collect();
        if take {
            self.recent_from = self.uid_next;
        }
        recent
    }

    pub fn with(&self, flag: SystemFlags, set: bool) -> UidSet {
        let has = |message: &Message| message.flags.system.contains(flag) == set;
        self.messages.iter().filter(|(_, message)| has(message)).map(|(uid, _)| *uid).collect()
    }

    pub fn to_wire(&self, id: u64) -> Mailbox {
        Mailbox {
            id,
            name: self.name.clone(),
            special_use: self.special_use.clone(),
            uid_validity: self.uid_validity,
            uid_next: self.uid_next,
            mod_seq: self.mod_seq,
            messages: self.messages.len() as u64,
            unseen: self.with(SystemFlags::SEEN, false).len(),
            deleted: self.with(SystemFlags::DELETED, true).len(),
            octets: self.messages.values().map(|message| message.body.len() as u64).sum(),
            recent: self.messages.keys().filter(|uid| **uid >= self.recent_from).count() as u64,
        }
    }
}

pub fn stored(uid: u32, message: &Message) -> StoredMessage {
    StoredMessage { uid, flags: Some(wire::Flags::from(&message.flags)), mod_seq: message.mod_seq }
}

pub fn matches(key: &SearchKey, uid: u32, message: &Message, recent: &UidSet) -> bool {
    let text = String::from_utf8_lossy(&message.body).to_lowercase();
    let (head, rest) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let also = |key: &SearchKey| matches(key, uid, message, recent);
    match key.key.as_ref().unwrap() {
        Key::All(_) => true,
        Key::And(keys) => keys.keys.iter().all(also),
        Key::Or(or) => also(or.left.as_ref().unwrap()) || also(or.right.as_ref().unwrap()),
        Key::Not(key) => !also(key),
        Key::Uids(uids) => uid_set_from_wire(Some(uids)).unwrap().contains(uid),
        Key::Flag(flag) => message.flags.system.contains(SystemFlags::from_bits(flag.bit as u8)) == flag.set,
        Key::Keyword(keyword) => {
            message.flags.keywords.iter().any(|known| known.as_str() == keyword.keyword) == keyword.set
        }
        Key::Recent(_) => recent.contains(uid),
        Key::Day(day) => match day.compare() {
            Compare::Before => message.date.day() < day.day,
            Compare::On => message.date.day() == day.day,
            Compare::Since => message.date.day() >= day.day,
        },
        Key::Larger(octets) => message.body.len() as u64 > *octets,
        Key::Smaller(octets) => (message.body.len() as u64) < *octets,
        Key::Header(header) => {
            let name = format!("{}:", header.name.to_lowercase());
            head.lines().any(|line| line.starts_with(&name) && line.contains(&header.value.to_lowercase()))
        }
        Key::Body(wanted) => rest.contains(&wanted.to_lowercase()),
        Key::Text(wanted) => text.contains(&wanted.to_lowercase()),
        Key::ModSeq(least) => message.mod_seq >= *least,
    }
}
