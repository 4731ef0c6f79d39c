//! Commands that change messages: STORE, EXPUNGE, COPY, MOVE (RFC 3501 §6.4, RFC 4315, RFC 6851, RFC 7162 §3.1.3).
//! What they change is told from the shard's reply; the watch's echo of it is not told again.
//!
//! What is about many messages is done in parts, each of them told before the next one is begun: so it takes bounded memory
//! here and on the nodes, and no shard is kept from other mail by it. RFC 7162 §3.1 lets messages of one STORE have different
//! MODSEQs, RFC 6851 §3.3 a MOVE fail partway. COPY may not, and is one change.

use imap::command::{Store, StoreAction};
use imap::encode::{self, Code, FetchWriter, Status};
use imap::{MailboxArg, SequenceSet};
use proto::wire::search_key::{Key, Keys, SystemFlag};
use proto::wire::store_request::Action;
use proto::wire::{CopyReply, CopyRequest, ExpungeRequest, SearchKey, SearchRequest, StoreRequest, StoredMessage};
use proto::{MESSAGES_PER_CHANGE_MAX, fetched_flags, uid_set_from_wire, uid_set_to_wire};
use types::{MailError, MailResult, MailboxName, ModSeq, SystemFlags, Uid, UidSet, UidValidity};

use super::reply::{Reply, ReplyCode};
use super::updates::Timing;
use super::{Conversation, Owner, Selected, Step};

/// How messages are copied.
#[derive(Clone, Copy)]
struct How {
    /// Or none, if one is not there any more.
    all: bool,
    remove_source: bool,
}

/// What a COPY or MOVE came to.
struct Copied {
    from: UidSet,
    to: UidSet,
    validity: UidValidity,
}

impl Conversation {
    pub(super) async fn store(&mut self, owner: Owner, store: Store) -> Step<Reply> {
        let mut uids = match self.named(&store.set, store.uid) {
            Ok(uids) => uids,
            Err(reply) => return Ok(reply),
        };
        if store.unchanged_since.is_some() {
            self.knows_condstore();
        }
        let computes = store.silent && store.action != StoreAction::Replace && store.unchanged_since.is_none();
        if computes {
            // Silence means that the client computes the flags by itself, from what it knows. Messages that others
            // have changed since then are left for a second request, and told of by the next update.
            Box::pin(self.update(Timing { updates: true, expunges: false, ask: false, uid: store.uid })).await?;
            let known = self.selected.as_ref().map(|selected| ModSeq(selected.known));
            uids = match self.store_in_parts(owner, &store, &uids, known, true).await? {
                Ok(changed_by_others) => changed_by_others,
                Err(error) => return Ok(self.failed_on_selected(&error)),
            };
        }
        let modified = match self.store_in_parts(owner, &store, &uids, store.unchanged_since, !computes).await? {
            Ok(modified) => modified,
            Err(error) => return Ok(self.failed_on_selected(&error)),
        };
        let numbers = match &self.selected {
            Some(selected) if !store.uid => selected.view.seqs(&modified),
            _ => modified,
        };
        if numbers.is_empty() {
            return Ok(Reply::ok("STORE done"));
        }
        Ok(Reply::ok("some messages had changed").with_code(ReplyCode::Modified(numbers)))
    }

    /// As many requests as it needs; what they left alone. `is_known`: afterwards the client knows the flags of what was
    /// changed. After an error the client has been told of what was done before.
    async fn store_in_parts(
        &mut self,
        owner: Owner,
        store: &Store,
        uids: &UidSet,
        unchanged_since: Option<ModSeq>,
        is_known: bool,
    ) -> Step<MailResult<UidSet>> {
        let mut left_alone = UidSet::new();
        for (n, part) in uids.parts(MESSAGES_PER_CHANGE_MAX).enumerate() {
            if n > 0 {
                // The shard is not to name at the end all at once what has been changed and told.
                Box::pin(self.update(Timing { updates: true, expunges: false, ask: true, uid: store.uid })).await?;
            }
            match self.store_once(owner, store, &part, unchanged_since, is_known).await? {
                Ok(modified) => left_alone = left_alone.union(&modified),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(left_alone))
    }

    /// One request, told as the client wants it; what it left alone.
    async fn store_once(
        &mut self,
        owner: Owner,
        store: &Store,
        uids: &UidSet,
        unchanged_since: Option<ModSeq>,
        is_known: bool,
    ) -> Step<MailResult<UidSet>> {
        let Some(selected) = &self.selected else { return Ok(Ok(UidSet::new())) };
        if selected.gone {
            return Ok(Err(MailError::MailboxGone));
        }
        let request = StoreRequest {
            shard: owner.shard,
            account: owner.account,
            mailbox: selected.mailbox,
            uids: Some(uid_set_to_wire(uids)),
            action: match store.action {
                StoreAction::Add => Action::Add,
                StoreAction::Remove => Action::Remove,
                StoreAction::Replace => Action::Replace,
            }
            .into(),
            flags: Some((&store.flags).into()),
            has_unchanged_since: unchanged_since.is_some(),
            unchanged_since: unchanged_since.map_or(0, |mod_seq| mod_seq.0),
            ..StoreRequest::default()
        };
        let reply = match self.shards().store(request).await {
            Ok(reply) => reply,
            Err(error) => return Ok(Err(error)),
        };
        for message in &reply.messages {
            self.tell_stored(store, message, is_known);
            self.connection.flush_if_full().await?;
        }
        Ok(uid_set_from_wire(reply.modified.as_ref()))
    }

    /// With .SILENT nothing is told but the new MODSEQ, to clients that know it (RFC 7162 §3.1.3).
    fn tell_stored(&mut self, store: &Store, message: &StoredMessage, is_known: bool) {
        let (condstore, uid) = (self.condstore, Uid(message.uid));
        let Some(selected) = &mut self.selected else { return };
        let Some(seq) = selected.view.seq(uid) else { return };
        let flags = fetched_flags(message.flags.as_ref());
        let out = self.connection.output();
        if selected.learn_keywords(&flags) {
            selected.announce_flags(out);
        }
        if !store.silent || condstore {
            let mut writer = FetchWriter::new(out, seq);
            if store.uid {
                writer.uid(out, uid);
            }
            if !store.silent {
                writer.flags(out, &flags, selected.view.is_recent(uid));
            }
            if condstore {
                writer.modseq(out, ModSeq(message.mod_seq));
            }
            writer.finish(out);
        }
        if is_known {
            selected.tell(message.uid, message.mod_seq);
        }
    }

    /// RFC 3501 §6.4.3; with a set, RFC 4315 §2.1.
    pub(super) async fn expunge(&mut self, owner: Owner, set: Option<&SequenceSet>) -> Step<Reply> {
        let uids = match set.map(|set| self.named(set, true)).transpose() {
            Ok(uids) => uids,
            Err(reply) => return Ok(reply),
        };
        let Some(selected) = &self.selected else { return Ok(Reply::bad("select a mailbox first")) };
        if selected.gone {
            return Ok(Reply::gone());
        }
        let mailbox = selected.mailbox;
        let deleted = match self.deleted(owner, mailbox, uids.as_ref()).await {
            Ok(deleted) => deleted,
            Err(error) => return Ok(self.failed_on_selected(&error)),
        };
        for part in deleted.parts(MESSAGES_PER_CHANGE_MAX) {
            match self.expunge_deleted(owner, mailbox, &part).await {
                Ok(uids) => self.tell_expunged(&uids).await?,
                Err(error) => return Ok(self.failed_on_selected(&error)),
            }
        }
        Ok(Reply::ok("EXPUNGE done"))
    }

    /// What has \Deleted, among `uids` or in all. Nearly every CLOSE finds nothing, and a write costs more than a look.
    pub(super) async fn deleted(&self, owner: Owner, mailbox: u64, uids: Option<&UidSet>) -> MailResult<UidSet> {
        let key = |key| SearchKey { key: Some(key) };
        let deleted = SystemFlag { bit: u32::from(SystemFlags::DELETED.bits()), set: true };
        let mut keys = vec![key(Key::Flag(deleted))];
        keys.extend(uids.map(|uids| key(Key::Uids(uid_set_to_wire(uids)))));
        let search = SearchRequest {
            shard: owner.shard,
            account: owner.account,
            mailbox,
            key: Some(key(Key::And(Keys { keys }))),
            recent: None,
        };
        uid_set_from_wire(self.shards().search(search).await?.uids.as_ref())
    }

    /// Expunges those of a part that still have \Deleted, and returns them.
    pub(super) async fn expunge_deleted(&self, owner: Owner, mailbox: u64, part: &UidSet) -> MailResult<UidSet> {
        let request = ExpungeRequest {
            shard: owner.shard,
            account: owner.account,
            mailbox,
            has_uids: true,
            only_deleted: true,
            uids: Some(uid_set_to_wire(part)),
            ..ExpungeRequest::default()
        };
        uid_set_from_wire(self.shards().expunge(request).await?.uids.as_ref())
    }

    async fn tell_expunged(&mut self, uids: &UidSet) -> Step {
        let Some(selected) = &mut self.selected else { return Ok(()) };
        let expunged = selected.expunge(uids);
        self.write_expunged(&expunged).await
    }

    /// RFC 3501 §6.4.7, RFC 4315 §3. By sequence number it is all or nothing, also where another session has expunged
    /// a message, and whether or not this one has heard of it (RFC 2180 §4.4.1). UIDs that are not there are ignored
    /// (RFC 3501 §6.4.8). More than a node copies at once is refused by it.
    pub(super) async fn copy(&mut self, owner: Owner, uid: bool, set: &SequenceSet, to: &MailboxArg) -> Reply {
        let (uids, to) = match self.to_copy(uid, set, to) {
            Ok(named) => named,
            Err(reply) => return reply,
        };
        if uids.is_empty() {
            return Reply::ok("no messages");
        }
        match self.copy_messages(owner, &uids, &to, How { all: !uid, remove_source: false }).await {
            Ok(Copied { from, .. }) if from.is_empty() => Reply::ok("no messages"),
            Ok(Copied { from, to, validity }) => {
                Reply::ok("COPY done").with_code(ReplyCode::CopyUid { validity, from, to })
            }
            Err(reply) => reply,
        }
    }

    /// RFC 6851 §3.1: COPYUID comes untagged, before EXPUNGE; one for each part.
    pub(super) async fn move_messages(
        &mut self,
        owner: Owner,
        uid: bool,
        set: &SequenceSet,
        to: &MailboxArg,
    ) -> Step<Reply> {
        let (uids, to) = match self.to_copy(uid, set, to) {
            Ok(named) => named,
            Err(reply) => return Ok(reply),
        };
        let mut moved = false;
        for part in uids.parts(MESSAGES_PER_CHANGE_MAX) {
            let how = How { all: !uid, remove_source: true };
            let Copied { from, to, validity } = match self.copy_messages(owner, &part, &to, how).await {
                Ok(copied) => copied,
                Err(reply) => return Ok(reply),
            };
            if from.is_empty() {
                continue;
            }
            moved = true;
            let code = Code::CopyUid { validity, from: &from, to: &to };
            encode::untagged(self.connection.output(), Status::Ok, Some(code), "messages moved");
            self.tell_expunged(&from).await?;
        }
        Ok(Reply::ok(if moved { "MOVE done" } else { "no messages" }))
    }

    /// Which messages are meant, and where to.
    fn to_copy(&self, uid: bool, set: &SequenceSet, to: &MailboxArg) -> Result<(UidSet, MailboxName), Reply> {
        let uids = self.named(set, uid)?;
        let to = to.name().map_err(Reply::invalid_name)?;
        if !uid && self.names_expunged(set) {
            return Err(Reply::failed(&MailError::MessagesGone));
        }
        Ok((uids, to))
    }

    async fn copy_messages(
        &mut self,
        owner: Owner,
        uids: &UidSet,
        to: &MailboxName,
        How { all, remove_source }: How,
    ) -> Result<Copied, Reply> {
        let Some(selected) = &self.selected else { return Err(Reply::bad("select a mailbox first")) };
        let request = CopyRequest {
            shard: owner.shard,
            account: owner.account,
            mailbox: selected.mailbox,
            uids: Some(uid_set_to_wire(uids)),
            to: to.as_str().to_owned(),
            remove_source,
            all,
            ..CopyRequest::default()
        };
        let copied = match self.shards().copy(request).await {
            Ok(reply) => read_copied(&reply).map(|copied| (copied, reply.to_mailbox)),
            Err(error) => Err(error),
        };
        let (copied, to_mailbox) = copied.map_err(|error| self.failed_on_selected(&error).or_try_create(&error))?;
        if let Some(selected) = self.selected.as_mut().filter(|selected| selected.mailbox == to_mailbox) {
            selected.news = true;
        }
        Ok(copied)
    }

    /// Whether sequence numbers stand for messages that are known to be gone, though the client is yet to be told.
    fn names_expunged(&self, set: &SequenceSet) -> bool {
        let resolved = self.selected.as_ref().map(|selected| (selected, selected.view.resolve(set, false)));
        resolved.is_some_and(|(selected, uids)| {
            uids.is_ok_and(|uids| !uids.intersection(selected.view.held_back()).is_empty())
        })
    }

    /// The messages that a command names, those left out that are known to be gone.
    pub(super) fn named(&self, set: &SequenceSet, uid: bool) -> Result<UidSet, Reply> {
        let Some(selected) = &self.selected else { return Err(Reply::bad("select a mailbox first")) };
        if selected.gone {
            return Err(Reply::gone());
        }
        match selected.view.resolve(set, uid) {
            Ok(uids) => Ok(present(selected, &uids)),
            Err(_) => Err(Reply::bad("no message with that sequence number")),
        }
    }
}

fn present(selected: &Selected, uids: &UidSet) -> UidSet {
    uids.difference(selected.view.held_back())
}

fn read_copied(reply: &CopyReply) -> MailResult<Copied> {
    let from = uid_set_from_wire(reply.from.as_ref())?;
    let to = uid_set_from_wire(reply.to.as_ref())?;
    if from.len() != to.len() {
        return Err(MailError::Internal("COPY with unequal sets of UIDs".to_owned()));
    }
    Ok(Copied { from, to, validity: UidValidity(reply.uid_validity) })
}
