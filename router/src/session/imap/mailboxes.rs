//! Commands on mailboxes by name: CREATE, DELETE, RENAME, SUBSCRIBE, UNSUBSCRIBE, STATUS (RFC 3501 §6.3).

use imap::MailboxArg;
use imap::command::{StatusItem, UnknownUse};
use imap::encode;
use proto::wire::{CreateMailboxRequest, MailboxNameRequest, RenameMailboxRequest, SubscribeRequest};
use types::{MailError, MailResult, MailboxName, SpecialUse};

use super::reply::{Reply, ReplyCode};
use super::{Conversation, Owner};

impl Conversation {
    /// RFC 3501 §6.3.3, RFC 6154 §3.
    pub(super) async fn create(
        &mut self,
        owner: Owner,
        mailbox: &MailboxArg,
        special_uses: Result<Vec<SpecialUse>, UnknownUse>,
    ) -> Reply {
        let name = match mailbox.name_to_create() {
            Ok(name) => name,
            Err(error) => return Reply::invalid_name(error),
        };
        let special_use = match special_uses.as_deref() {
            Ok([]) => None,
            Ok([one]) => Some(*one),
            Ok(_) => return Reply::no(ReplyCode::UseAttr, "a mailbox has one special use at most"),
            Err(UnknownUse) => return Reply::no(ReplyCode::UseAttr, "unknown special use"),
        };
        let request = CreateMailboxRequest {
            shard: owner.shard,
            account: owner.account,
            name: name.as_str().to_owned(),
            special_use: special_use.map_or_else(String::new, |special_use| special_use.attribute().to_owned()),
            ..CreateMailboxRequest::default()
        };
        let done = self.shards().create_mailbox(request).await.map(|_| ());
        // RFC 6154 §3. A name that cannot be made has been refused above, so what is refused here is the use.
        if let (Some(_), Err(MailError::CannotDo(_))) = (special_use, &done) {
            return Reply::no(ReplyCode::UseAttr, "the special use cannot be given");
        }
        self.done(done, "mailbox created")
    }

    pub(super) async fn delete(&mut self, owner: Owner, mailbox: &MailboxArg) -> Reply {
        let name = match mailbox.name() {
            Ok(name) => name,
            Err(error) => return Reply::invalid_name(error),
        };
        let done = self.shards().delete_mailbox(name_request(owner, &name)).await;
        // If it was the selected one, the next update finds out.
        if let (Ok(()), Some(selected)) = (&done, &mut self.selected) {
            selected.news = true;
        }
        self.done(done, "mailbox deleted")
    }

    pub(super) async fn rename(&mut self, owner: Owner, from: &MailboxArg, to: &MailboxArg) -> Reply {
        let (from, to) = match (from.name(), to.name_to_create()) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(error), _) | (_, Err(error)) => return Reply::invalid_name(error),
        };
        let request = RenameMailboxRequest {
            shard: owner.shard,
            account: owner.account,
            from: from.as_str().to_owned(),
            to: to.as_str().to_owned(),
            ..RenameMailboxRequest::default()
        };
        let done = self.shards().rename_mailbox(request).await;
        // Renaming INBOX moves its messages away (RFC 3501 §6.3.5).
        if let (Ok(()), true, Some(selected)) = (&done, from.is_inbox(), &mut self.selected) {
            selected.news = true;
        }
        self.done(done, "mailbox renamed")
    }

    pub(super) async fn subscribe(&mut self, owner: Owner, mailbox: &MailboxArg, subscribed: bool) -> Reply {
        let name = match mailbox.name() {
            Ok(name) => name,
            Err(error) => return Reply::invalid_name(error),
        };
        let request = SubscribeRequest {
            shard: owner.shard,
            account: owner.account,
            name: name.as_str().to_owned(),
            subscribed,
            ..SubscribeRequest::default()
        };
        let done = self.shards().subscribe(request).await;
        self.done(done, if subscribed { "subscribed" } else { "unsubscribed" })
    }

    /// RFC 3501 §6.3.10. HIGHESTMODSEQ tells that the client knows CONDSTORE (RFC 7162 §3.1).
    pub(super) async fn status(&mut self, owner: Owner, mailbox: &MailboxArg, items: &[StatusItem]) -> Reply {
        let name = match mailbox.name() {
            Ok(name) => name,
            Err(error) => return Reply::invalid_name(error),
        };
        if items.contains(&StatusItem::HighestModSeq) {
            self.knows_condstore();
        }
        let mailbox = match self.shards().status(name_request(owner, &name)).await {
            Ok(mailbox) => mailbox,
            Err(error) => return self.failed(&error),
        };
        let value = |item: &StatusItem| match item {
            StatusItem::Messages => mailbox.messages,
            StatusItem::Recent => mailbox.recent,
            StatusItem::UidNext => u64::from(mailbox.uid_next),
            StatusItem::UidValidity => u64::from(mailbox.uid_validity),
            StatusItem::Unseen => mailbox.unseen,
            StatusItem::HighestModSeq => mailbox.mod_seq.max(1),
        };
        let values: Vec<(StatusItem, u64)> = items.iter().map(|item| (*item, value(item))).collect();
        encode::status_of_mailbox(self.connection.output(), name.as_str(), &values);
        Reply::ok("STATUS done")
    }

    fn done(&mut self, done: MailResult<()>, text: &'static str) -> Reply {
        match done {
            Ok(()) => Reply::ok(text),
            Err(error) => self.failed(&error),
        }
    }
}

pub(super) fn name_request(owner: Owner, name: &MailboxName) -> MailboxNameRequest {
    MailboxNameRequest {
        shard: owner.shard,
        account: owner.account,
        name: name.as_str().to_owned(),
        ..MailboxNameRequest::default()
    }
}
