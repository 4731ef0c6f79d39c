//! Commands that change messages: STORE, EXPUNGE, COPY, MOVE (RFC 3501 §6.4, RFC 4315, RFC 6851, RFC 7162 §3.1.3).
//! What they change is told from the shard's reply; the watch's echo of it is not told again.

use imap::command::{Store, StoreAction};
use imap::encode::{self, Code, FetchWriter, Status};
use imap::{MailboxArg, SequenceSet};
use proto::wire::store_request::Action;
use proto::wire::{CopyReply, CopyRequest, ExpungeRequest, StoreReply, StoreRequest, StoredMessage};
use proto::{fetched_flags, uid_set_from_wire, uid_set_to_wire};
use types::{MailError, MailResult, ModSeq, Uid, UidSet, UidValidity};

use super::reply::{Reply, ReplyCode};
use super::updates::Timing;
use super::{Conversation, Owner, Selected, Step};

/// What a COPY or MOVE came to.
struct Copied {
    from: UidSet,
    to: UidSet,
    validity: UidValidity,
}

impl Conversation {
    pub(super) async fn store(&mut self, owner: Owner, store: Store) -> Step<Reply> {
        let uids = match self.named(&store.set, store.uid) {
            Ok(uids) => uids,
            Err(reply) => return Ok(reply),
        };
        // A client that asks for silence computes the flags by itself: it must start from the true ones.
        if store.silent && store.action != StoreAction::Replace {
            Box::pin(self.update(Timing { updates: true, expunges: false, ask: false, uid: store.uid })).await?;
        }
        // RFC 7162 §3.1: a conditional STORE shows that the client knows MODSEQ.
        self.condstore |= store.unchanged_since.is_some();
        let Some(selected) = self.selected.as_ref().filter(|_| !uids.is_empty()) else {
            return Ok(Reply::ok("no messages"));
        };
        let request = StoreRequest {
            shard: owner.shard,
            account: owner.account,
            mailbox: selected.mailbox,
            uids: Some(uid_set_to_wire(&uids)),
            action: match store.action {
                StoreAction::Add => Action::Add,
                StoreAction::Remove => Action::Remove,
                StoreAction::Replace => Action::Replace,
            }
            .into(),
            flags: Some((&store.flags).into()),
            has_unchanged_since: store.unchanged_since.is_some(),
            unchanged_since: store.unchanged_since.map_or(0, |mod_seq| mod_seq.0),
        };
        match self.shards().store(request).await {
            Ok(reply) => self.stored(&store, reply).await,
            Err(error) => Ok(self.failed(&error)),
        }
    }

    async fn stored(&mut self, store: &Store, reply: StoreReply) -> Step<Reply> {
        for message in &reply.messages {
            self.tell_stored(store, message);
            self.connection.flush_if_full().await?;
        }
        let modified = match uid_set_from_wire(reply.modified.as_ref()) {
            Ok(modified) => modified,
            Err(error) => return Ok(self.failed(&error)),
        };
        let Some(selected) = self.selected.as_ref() else { return Ok(Reply::ok("STORE done")) };
        let modified = if store.uid { modified } else { selected.view.seqs(&modified) };
        if modified.is_empty() {
            return Ok(Reply::ok("STORE done"));
        }
        Ok(Reply::ok("some messages had changed").with_code(ReplyCode::Modified(modified)))
    }

    /// With .SILENT nothing is told but the new MODSEQ, to clients that know it (RFC 7162 §3.1.3).
    fn tell_stored(&mut self, store: &Store, message: &StoredMessage) {
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
        selected.tell(message.uid, message.mod_seq);
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
        let request = ExpungeRequest {
            shard: owner.shard,
            account: owner.account,
            mailbox: selected.mailbox,
            has_uids: uids.is_some(),
            only_deleted: uids.is_some(),
            uids: uids.as_ref().map(uid_set_to_wire),
        };
        let expunged = match self.shards().expunge(request).await {
            Ok(reply) => uid_set_from_wire(reply.uids.as_ref()),
            Err(error) => Err(error),
        };
        match expunged {
            Ok(uids) => {
                self.tell_expunged(&uids).await?;
                Ok(Reply::ok("EXPUNGE done"))
            }
            Err(error) => Ok(self.failed(&error)),
        }
    }

    async fn tell_expunged(&mut self, uids: &UidSet) -> Step {
        let Some(selected) = &mut self.selected else { return Ok(()) };
        let expunged = selected.expunge(uids);
        self.write_expunged(&expunged).await
    }

    /// RFC 3501 §6.4.7, RFC 4315 §3.
    pub(super) async fn copy(&mut self, owner: Owner, uid: bool, set: &SequenceSet, to: &MailboxArg) -> Reply {
        match self.copy_messages(owner, uid, set, to, false).await {
            Ok(Copied { from, .. }) if from.is_empty() => Reply::ok("no messages"),
            Ok(Copied { from, to, validity }) => {
                Reply::ok("COPY done").with_code(ReplyCode::CopyUid { validity, from, to })
            }
            Err(reply) => reply,
        }
    }

    /// RFC 6851 §3.1: COPYUID comes untagged, before EXPUNGE.
    pub(super) async fn move_messages(
        &mut self,
        owner: Owner,
        uid: bool,
        set: &SequenceSet,
        to: &MailboxArg,
    ) -> Step<Reply> {
        let Copied { from, to, validity } = match self.copy_messages(owner, uid, set, to, true).await {
            Ok(copied) => copied,
            Err(reply) => return Ok(reply),
        };
        if from.is_empty() {
            return Ok(Reply::ok("no messages"));
        }
        let code = Code::CopyUid { validity, from: &from, to: &to };
        encode::untagged(self.connection.output(), Status::Ok, Some(code), "messages moved");
        self.tell_expunged(&from).await?;
        Ok(Reply::ok("MOVE done"))
    }

    async fn copy_messages(
        &mut self,
        owner: Owner,
        uid: bool,
        set: &SequenceSet,
        to: &MailboxArg,
        remove_source: bool,
    ) -> Result<Copied, Reply> {
        let uids = self.named(set, uid)?;
        let to = to.name().map_err(Reply::invalid_name)?;
        let Some(selected) = self.selected.as_ref().filter(|_| !uids.is_empty()) else {
            return Ok(Copied { from: UidSet::new(), to: UidSet::new(), validity: UidValidity(0) });
        };
        let request = CopyRequest {
            shard: owner.shard,
            account: owner.account,
            mailbox: selected.mailbox,
            uids: Some(uid_set_to_wire(&uids)),
            to: to.as_str().to_owned(),
            remove_source,
        };
        let copied = match self.shards().copy(request).await {
            Ok(reply) => read_copied(&reply).map(|copied| (copied, reply.to_mailbox)),
            Err(error) => Err(error),
        };
        let (copied, to_mailbox) = copied.map_err(|error| self.failed_into(&error))?;
        if copied.from.is_empty() {
            // Expunged by another session, of which the client has not been told (RFC 5530 §3).
            return Err(Reply::no(ReplyCode::Named("EXPUNGEISSUED"), "the messages have been expunged"));
        }
        if let Some(selected) = self.selected.as_mut().filter(|selected| selected.mailbox == to_mailbox) {
            selected.news = true;
        }
        Ok(copied)
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
