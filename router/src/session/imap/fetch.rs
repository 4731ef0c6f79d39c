//! FETCH (RFC 3501 §6.4.5, RFC 7162 §3.1.4). Responses are written as the shard's items arrive, large sections piece
//! by piece, so that a session holds little of a message at a time. When the shard changes its leader amid a section,
//! the stream behind this goes on where it broke.
//!
//! A message that another session has expunged meanwhile has no response, and the command is answered OK (RFC 2180
//! §4.1.2): EXPUNGE will tell why.
//!
//! \Seen is set on messages that have come, just before they are written, or behind one whose sections come piece by piece:
//! one that is left out, or breaks off, stays unseen.

use std::collections::BTreeMap;

use bytes::Bytes;
use imap::command::{BodySection, Fetch, FetchItem, SectionText};
use imap::encode::FetchWriter;
use proto::wire::fetch_item::Item;
use proto::wire::section::Text;
use proto::wire::store_request::Action;
use proto::wire::{FetchRequest, FetchedMessage, Section, StoreRequest};
use proto::{fetched_flags, uid_set_to_wire};
use types::{Flags, MailError, MailResult, ModSeq, SystemFlags, Uid, UidSet};

use super::reply::Reply;
use super::{Conversation, Ended, Owner, Step};
use crate::cluster::FetchStream;

/// Gathered at most before it is written.
const PIECE_OCTETS: usize = 64 * 1024;
/// Messages on which \Seen is set at once, and octets of their sections that wait for it: each time costs a sync.
const SEEN_MESSAGES_MAX: usize = 256;
const SEEN_OCTETS_MAX: usize = 256 * 1024;
/// Messages that are left out are named by so many runs of UIDs at most: the answer stays a line that people can read.
const UNREAD_RANGES_MAX: usize = 20;

/// What the client asked for, in the order in which it is answered: sections last, as they may be large.
#[derive(Default)]
struct Plan {
    uid: bool,
    flags: bool,
    internal_date: bool,
    size: bool,
    mod_seq: bool,
    envelope: bool,
    body: bool,
    body_structure: bool,
    sections: Vec<BodySection>,
    changed_since: Option<ModSeq>,
}

impl Plan {
    fn of(fetch: &Fetch) -> Plan {
        // CHANGEDSINCE asks for MODSEQ, too (RFC 7162 §3.1.4.1).
        let changed_since = fetch.changed_since;
        let mut plan = Plan { uid: fetch.uid, mod_seq: changed_since.is_some(), changed_since, ..Plan::default() };
        for item in &fetch.items {
            match item {
                FetchItem::Flags => plan.flags = true,
                FetchItem::InternalDate => plan.internal_date = true,
                FetchItem::Rfc822Size => plan.size = true,
                FetchItem::Uid => plan.uid = true,
                FetchItem::ModSeq => plan.mod_seq = true,
                FetchItem::Envelope => plan.envelope = true,
                FetchItem::Body => plan.body = true,
                FetchItem::BodyStructure => plan.body_structure = true,
                FetchItem::Section(section) => plan.add_section(section),
            }
        }
        plan
    }

    /// With and without PEEK, a section is answered once: the answer is the same.
    fn add_section(&mut self, section: &BodySection) {
        let same = |known: &BodySection| BodySection { peek: section.peek, ..known.clone() } == *section;
        match self.sections.iter_mut().find(|known| same(known)) {
            Some(known) => known.peek &= section.peek,
            None => self.sections.push(section.clone()),
        }
    }

    fn sets_seen(&self) -> bool {
        self.sections.iter().any(|section| !section.peek)
    }

    /// Whether the view alone can answer.
    fn is_only_uid(&self) -> bool {
        self.uid
            && self.sections.is_empty()
            && !(self.flags
                || self.internal_date
                || self.size
                || self.mod_seq
                || self.envelope
                || self.body
                || self.body_structure)
    }

    fn request(&self, owner: Owner, mailbox: u64, uids: &UidSet) -> FetchRequest {
        FetchRequest {
            shard: owner.shard,
            account: owner.account,
            mailbox,
            uids: Some(uid_set_to_wire(uids)),
            envelope: self.envelope,
            body: self.body,
            body_structure: self.body_structure,
            sections: self.sections.iter().map(wire_section).collect(),
            changed_since: self.changed_since.map_or(0, |mod_seq| mod_seq.0),
            tells_unread: true,
            ..FetchRequest::default()
        }
    }
}

/// What a client is told of messages that cannot be read anywhere; nothing where there are none.
fn left_out(unread: &UidSet) -> Option<String> {
    let named: UidSet = unread.ranges().iter().copied().take(UNREAD_RANGES_MAX).collect();
    let more = if named.len() < unread.len() { " and others" } else { "" };
    match unread.len() {
        0 => None,
        1 => Some(format!("stored data is damaged: 1 message was left out, UID {named}")),
        count => Some(format!("stored data is damaged: {count} messages were left out, UIDs {named}{more}")),
    }
}

fn wire_section(section: &BodySection) -> Section {
    let (text, fields) = match &section.text {
        SectionText::All => (Text::Full, Vec::new()),
        SectionText::Header => (Text::Header, Vec::new()),
        SectionText::HeaderFields(fields) => (Text::HeaderFields, fields.clone()),
        SectionText::HeaderFieldsNot(fields) => (Text::HeaderFieldsNot, fields.clone()),
        SectionText::Text => (Text::Text, Vec::new()),
        SectionText::Mime => (Text::Mime, Vec::new()),
    };
    Section {
        part: section.part.clone(),
        text: text.into(),
        fields,
        has_partial: section.partial.is_some(),
        offset: section.partial.map_or(0, |partial| partial.offset),
        octets_max: section.partial.map_or(0, |partial| partial.octets_max),
    }
}

/// Whether nothing of it follows piece by piece.
fn is_whole(message: &FetchedMessage) -> bool {
    message.sections.iter().all(|section| section.nil || section.octets == section.data.len() as u64)
}

/// The next message; or some, where they are changed before they are written. And whether more may come. Only the last of
/// them may be less than whole.
async fn next_messages(items: &mut FetchStream, some: bool) -> (Vec<FetchedMessage>, MailResult<bool>) {
    let (mut messages, mut octets) = (Vec::new(), 0);
    while let Some(item) = items.next().await {
        match item.map(|item| item.item) {
            Ok(Some(Item::Message(message))) => {
                let is_whole = is_whole(&message);
                octets += message.sections.iter().map(|section| section.data.len()).sum::<usize>();
                messages.push(message);
                if !some || !is_whole || messages.len() == SEEN_MESSAGES_MAX || octets >= SEEN_OCTETS_MAX {
                    return (messages, Ok(true));
                }
            }
            // Of a message that is not in view.
            Ok(Some(Item::Data(_) | Item::Unread(_)) | None) => {}
            Err(error) => return (messages, Err(error)),
        }
    }
    (messages, Ok(false))
}

impl Conversation {
    pub(super) async fn fetch(&mut self, owner: Owner, fetch: Fetch) -> Step<Reply> {
        let plan = Plan::of(&fetch);
        let uids = match self.named(&fetch.set, fetch.uid) {
            Ok(uids) => uids,
            Err(reply) => return Ok(reply),
        };
        if plan.mod_seq {
            self.knows_condstore();
        }
        if plan.is_only_uid() {
            return self.fetch_uids(&uids).await;
        }
        let Some(selected) = self.selected.as_ref().filter(|_| !uids.is_empty()) else {
            return Ok(Reply::ok("FETCH done"));
        };
        let (mailbox, sets_seen) = (selected.mailbox, plan.sets_seen() && !selected.read_only);
        let mut items = self.shards().fetch(plan.request(owner, mailbox, &uids));
        loop {
            let (messages, more) = next_messages(&mut items, sets_seen).await;
            let written = match sets_seen {
                true => self.write_seen((owner, mailbox), &plan, messages, &mut items).await?,
                false => self.write_messages(&plan, &UidSet::new(), messages, &mut items).await.map(Ok)?,
            };
            match written.and(more) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Ok(self.failed_on_selected(&error)),
            }
        }
        match left_out(items.unread()) {
            None => Ok(Reply::ok("FETCH done")),
            Some(text) => {
                let error = MailError::Corrupt { key: String::new() };
                Ok(self.failed_on_selected(&error).with_text(text))
            }
        }
    }

    async fn fetch_uids(&mut self, uids: &UidSet) -> Step<Reply> {
        for uid in uids.iter() {
            let Some(seq) = self.selected.as_ref().and_then(|selected| selected.view.seq(Uid(uid))) else { continue };
            let out = self.connection.output();
            let mut writer = FetchWriter::new(out, seq);
            writer.uid(out, Uid(uid));
            writer.finish(out);
            self.connection.flush_if_full().await?;
        }
        Ok(Reply::ok("FETCH done"))
    }

    /// Sets \Seen and writes, as [`next_messages`] gives them.
    async fn write_seen(
        &mut self,
        (owner, mailbox): (Owner, u64),
        plan: &Plan,
        mut messages: Vec<FetchedMessage>,
        items: &mut FetchStream,
    ) -> Step<MailResult<()>> {
        let last = messages.pop_if(|message| !is_whole(message));
        match self.set_seen(owner, mailbox, &mut messages).await {
            Ok(seen) => self.write_messages(plan, &seen, messages, items).await?,
            Err(error) => return Ok(Err(error)),
        }
        let Some(last) = last else { return Ok(Ok(())) };
        let mut head = FetchedMessage { uid: last.uid, flags: last.flags.clone(), ..FetchedMessage::default() };
        self.write_messages(plan, &UidSet::new(), vec![last], items).await?;
        let seen = match self.set_seen(owner, mailbox, std::slice::from_mut(&mut head)).await {
            Ok(seen) => seen,
            Err(error) => return Ok(Err(error)),
        };
        if !seen.is_empty() {
            self.tell_flags(head.uid, head.flags.as_ref(), head.mod_seq, plan.uid);
            self.selected.iter_mut().for_each(|selected| selected.tell(head.uid, head.mod_seq));
        }
        Ok(Ok(()))
    }

    async fn write_messages(
        &mut self,
        plan: &Plan,
        seen: &UidSet,
        messages: Vec<FetchedMessage>,
        items: &mut FetchStream,
    ) -> Step {
        for message in messages {
            self.write_message(plan, seen, message, items).await?;
            self.connection.flush_if_full().await?;
        }
        Ok(())
    }

    /// Sets \Seen on those that lack it, and returns their UIDs. On a full disk there is no room for it: mail is served all
    /// the same, and stays unseen.
    async fn set_seen(&self, owner: Owner, mailbox: u64, messages: &mut [FetchedMessage]) -> MailResult<UidSet> {
        let lacks = |message: &&FetchedMessage| {
            let flags = fetched_flags(message.flags.as_ref());
            !flags.system.contains(SystemFlags::SEEN)
        };
        let unseen: UidSet = messages.iter().filter(lacks).map(|message| message.uid).collect();
        if unseen.is_empty() {
            return Ok(unseen);
        }
        let store = StoreRequest {
            shard: owner.shard,
            account: owner.account,
            mailbox,
            uids: Some(uid_set_to_wire(&unseen)),
            action: Action::Add.into(),
            flags: Some((&Flags::system(SystemFlags::SEEN)).into()),
            ..StoreRequest::default()
        };
        let stored = match self.shards().store(store).await {
            Err(MailError::DiskFull) => return Ok(UidSet::new()),
            stored => stored?.messages,
        };
        let mut by_uid: BTreeMap<u32, &mut FetchedMessage> =
            messages.iter_mut().map(|message| (message.uid, message)).collect();
        for now in &stored {
            if let Some(message) = by_uid.get_mut(&now.uid) {
                (message.flags, message.mod_seq) = (now.flags.clone(), now.mod_seq);
            }
        }
        Ok(stored.iter().map(|message| message.uid).collect())
    }

    async fn write_message(
        &mut self,
        plan: &Plan,
        seen: &UidSet,
        message: FetchedMessage,
        items: &mut FetchStream,
    ) -> Step {
        let (uid, condstore) = (Uid(message.uid), self.condstore);
        let Some(selected) = &mut self.selected else { return Ok(()) };
        let Some(seq) = selected.view.seq(uid) else { return Ok(()) };
        let with_flags = plan.flags || seen.contains(uid.0);
        let flags = fetched_flags(message.flags.as_ref());
        let recent = selected.view.is_recent(uid);
        let out = self.connection.output();
        if with_flags {
            if selected.learn_keywords(&flags) {
                selected.announce_flags(out);
            }
            selected.tell(uid.0, message.mod_seq);
        }
        let mut writer = FetchWriter::new(out, seq);
        if plan.uid {
            writer.uid(out, uid);
        }
        if with_flags {
            writer.flags(out, &flags, recent);
        }
        if plan.mod_seq || (condstore && with_flags) {
            writer.modseq(out, ModSeq(message.mod_seq));
        }
        if plan.internal_date {
            writer.internal_date(out, message.date.unwrap_or_default().into());
        }
        if plan.size {
            writer.rfc822_size(out, message.octets);
        }
        if plan.envelope {
            writer.envelope(out, &message.envelope);
        }
        if plan.body {
            writer.body(out, &message.body);
        }
        if plan.body_structure {
            writer.body_structure(out, &message.body_structure);
        }
        self.write_sections(plan, &mut writer, message, items).await?;
        writer.finish(self.connection.output());
        Ok(())
    }

    /// A literal that has begun must be completed: if its octets cannot be had, all that is left is to end the
    /// connection, as anything else written would be taken for the message.
    async fn write_sections(
        &mut self,
        plan: &Plan,
        writer: &mut FetchWriter,
        message: FetchedMessage,
        items: &mut FetchStream,
    ) -> Step {
        let mut fetched = message.sections.into_iter();
        for (index, section) in plan.sections.iter().enumerate() {
            let Some(data) = fetched.next().filter(|data| !data.nil) else {
                writer.section_nil(self.connection.output(), section);
                continue;
            };
            writer.section_literal(self.connection.output(), section, data.octets);
            let mut missing = data.octets;
            let mut piece = data.data;
            loop {
                missing = missing.checked_sub(piece.len() as u64).ok_or(Ended)?;
                self.write_octets(piece).await?;
                if missing == 0 {
                    break;
                }
                piece = match items.next().await {
                    Some(Ok(item)) => match item.item {
                        Some(Item::Data(data)) if data.section as usize == index => data.data,
                        _ => return Err(Ended),
                    },
                    Some(Err(error)) => {
                        tracing::debug!(%error, "section broken off");
                        return Err(Ended);
                    }
                    None => return Err(Ended),
                };
            }
        }
        Ok(())
    }

    async fn write_octets(&mut self, octets: Bytes) -> Step {
        // As they came, NUL too, though CHAR8 has none (RFC 3501 §9): a length stands before them, and a message that
        // is given back changed would be worse.
        for piece in octets.chunks(PIECE_OCTETS) {
            self.connection.output().extend_from_slice(piece);
            self.connection.flush_if_full().await?;
        }
        Ok(())
    }
}
