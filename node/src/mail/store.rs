//! [`MailStore`] as this node answers it.

use async_trait::async_trait;
use futures_util::StreamExt;
use proto::wire::{
    AccountRequest, AppendReply, AppendRequest, ChangesReply, ChangesRequest, CopyReply, CopyRequest,
    CreateMailboxReply, CreateMailboxRequest, DeliverReply, DeliverRequest, Done, ExpungeReply, ExpungeRequest,
    FetchItem, FetchRequest, Mailbox, MailboxNameRequest, MailboxesReply, RenameMailboxRequest, SearchReply,
    SearchRequest, SelectReply, SelectRequest, SettleRequest, StoreReply, StoreRequest, StoredMessage,
    SubscribeRequest, UsageReply, WatchEvent, WatchRequest, store_request,
};
use proto::{Body, ItemStream, MailStore, uid_set_from_wire, uid_set_to_wire};
use storage::{Command, MailboxInfo, Outcome, ShardState, StoreAction};
use tokio::sync::broadcast;
use types::{AccountId, Flags, MailError, MailResult, MailboxId, ModSeq, Quota, SpecialUse, UidSet};

use super::parts::{COPY_MESSAGES_MAX, check_copy, expunge_commands, in_commands, nth_request};
use super::{
    Cancelled, WRONG_OUTCOME, blocking, cancellable, deliver, flags_from_wire, if_here, mailbox_name, request_id,
    storage_error, uid_next,
};
use crate::Node;
use crate::shard::Shard;

#[async_trait]
impl MailStore for Node {
    async fn deliver(&self, request: DeliverRequest, body: Body) -> MailResult<DeliverReply> {
        self.deliver_body(request, body).await
    }

    async fn settle(&self, request: SettleRequest) -> MailResult<()> {
        let fingerprints: Vec<_> =
            request.fingerprints.iter().map(|bytes| deliver::fingerprint(bytes)).collect::<MailResult<_>>()?;
        for some in fingerprints.chunks(deliver::RECIPIENTS_MAX) {
            self.change(request.shard, 0, Command::Settle { fingerprints: some.to_vec() }).await?;
        }
        Ok(())
    }

    async fn append(&self, request: AppendRequest, body: Body) -> MailResult<AppendReply> {
        self.append_body(request, body).await
    }

    async fn open_account(&self, request: AccountRequest) -> MailResult<()> {
        let account = AccountId(request.account);
        self.check_account(account)?;
        let state = self.read(request.shard).await?;
        let exists =
            blocking(move || if_here(&state, account, |state| state.account_exists(account).map_err(storage_error)))
                .await;
        if self.or_elsewhere(request.shard, exists).await? {
            return Ok(());
        }
        self.change(request.shard, 0, Command::CreateAccount { account }).await.map(|_| ())
    }

    async fn usage(&self, request: AccountRequest) -> MailResult<UsageReply> {
        self.account_usage(request).await
    }

    async fn mailboxes(&self, request: AccountRequest) -> MailResult<MailboxesReply> {
        let shard = self.shard(request.shard)?;
        let state = shard.read().await?;
        let at = request.shard;
        let account = AccountId(request.account);
        let mailboxes = move |state: &ShardState| {
            let mailboxes = state.mailboxes(account).map_err(storage_error)?;
            let subscriptions = state.subscriptions(account).map_err(storage_error)?;
            Ok(MailboxesReply {
                mailboxes: mailboxes.iter().map(|info| mailbox_to_wire(info, 0)).collect(),
                subscriptions: subscriptions.iter().map(ToString::to_string).collect(),
            })
        };
        let read = blocking(move || if_here(&state, account, mailboxes));
        self.or_elsewhere(at, read.await).await
    }

    async fn create_mailbox(&self, request: CreateMailboxRequest) -> MailResult<CreateMailboxReply> {
        let command = Command::CreateMailbox {
            account: AccountId(request.account),
            name: mailbox_name(&request.name)?,
            special_use: special_use(&request.special_use)?,
        };
        match self.change(request.shard, request_id(&request.request_id)?, command).await? {
            Outcome::MailboxCreated(id) => Ok(CreateMailboxReply { id: id.0 }),
            _ => Err(MailError::Internal(WRONG_OUTCOME.to_owned())),
        }
    }

    async fn delete_mailbox(&self, request: MailboxNameRequest) -> MailResult<()> {
        let (account, name) = (AccountId(request.account), mailbox_name(&request.name)?);
        let id = request_id(&request.request_id)?;
        self.change(request.shard, id, Command::DeleteMailbox { account, name }).await.map(|_| ())
    }

    async fn rename_mailbox(&self, request: RenameMailboxRequest) -> MailResult<()> {
        let account = AccountId(request.account);
        let (from, to) = (mailbox_name(&request.from)?, mailbox_name(&request.to)?);
        if from.is_inbox() {
            let (state, inbox) = (self.read(request.shard).await?, from.clone());
            let look = move |state: &ShardState| state.mailbox(account, &inbox).map_err(storage_error);
            let looked = blocking(move || if_here(&state, account, look)).await;
            let inbox = self.or_elsewhere(request.shard, looked).await?;
            check_copy(inbox.map_or(0, |inbox| u64::from(inbox.messages)))?;
        }
        let command = Command::RenameMailbox { account, from, to };
        self.change(request.shard, request_id(&request.request_id)?, command).await.map(|_| ())
    }

    async fn subscribe(&self, request: SubscribeRequest) -> MailResult<()> {
        let command = Command::Subscribe {
            account: AccountId(request.account),
            name: mailbox_name(&request.name)?,
            on: request.subscribed,
        };
        self.change(request.shard, request_id(&request.request_id)?, command).await.map(|_| ())
    }

    async fn status(&self, request: MailboxNameRequest) -> MailResult<Mailbox> {
        let shard = self.shard(request.shard)?;
        let state = shard.read().await?;
        let name = mailbox_name(&request.name)?;
        let at = request.shard;
        let account = AccountId(request.account);
        let status = move |state: &ShardState| {
            let info = state.mailbox(account, &name).map_err(storage_error)?.ok_or(MailError::NoSuchMailbox)?;
            let selection = state.select(account, info.id).map_err(selected_by_name)?;
            let recent = shard.recent(account, info.id, &selection.uids, uid_next(&info), false);
            Ok(mailbox_to_wire(&selection.info, recent.len()))
        };
        let read = blocking(move || if_here(&state, account, status));
        self.or_elsewhere(at, read.await).await
    }

    async fn select(&self, request: SelectRequest) -> MailResult<SelectReply> {
        let shard = self.shard(request.shard)?;
        let state = shard.read().await?;
        let name = mailbox_name(&request.name)?;
        let at = request.shard;
        let account = AccountId(request.account);
        let select = move |state: &ShardState| {
            let info = state.mailbox(account, &name).map_err(storage_error)?.ok_or(MailError::NoSuchMailbox)?;
            let selection = state.select(account, info.id).map_err(selected_by_name)?;
            let info = &selection.info;
            let recent = shard.recent(account, info.id, &selection.uids, uid_next(info), !request.examine);
            Ok(SelectReply {
                mailbox: Some(mailbox_to_wire(info, recent.len())),
                uids: Some(uid_set_to_wire(&selection.uids)),
                first_unseen: selection.first_unseen.map_or(0, |uid| uid.0),
                recent: Some(uid_set_to_wire(&recent)),
                keywords: info.keywords.iter().map(ToString::to_string).collect(),
            })
        };
        let read = blocking(move || if_here(&state, account, select));
        self.or_elsewhere(at, read.await).await
    }

    async fn fetch(&self, request: FetchRequest) -> MailResult<ItemStream<FetchItem>> {
        self.fetch_stream(request).await
    }

    async fn search(&self, request: SearchRequest) -> MailResult<SearchReply> {
        self.search_mailbox(request).await
    }

    async fn store(&self, request: StoreRequest) -> MailResult<StoreReply> {
        let action = match request.action() {
            store_request::Action::Add => StoreAction::Add,
            store_request::Action::Remove => StoreAction::Remove,
            store_request::Action::Replace => StoreAction::Replace,
        };
        let flags = flags_from_wire(request.flags.as_ref())?;
        let mut reply = StoreReply::default();
        let mut left_alone = UidSet::new();
        let id = request_id(&request.request_id)?;
        for (n, uids) in in_commands(&uid_set_from_wire(request.uids.as_ref())?)?.into_iter().enumerate() {
            let command = Command::Store {
                account: AccountId(request.account),
                mailbox: MailboxId(request.mailbox),
                uids,
                action,
                flags: flags.clone(),
                unchanged_since: Some(ModSeq(request.unchanged_since)).filter(|_| request.has_unchanged_since),
            };
            let Outcome::Stored { changed, modified, mod_seq } =
                self.change(request.shard, nth_request(id, n), command).await?
            else {
                return Err(MailError::Internal(WRONG_OUTCOME.to_owned()));
            };
            reply.messages.extend(changed.iter().map(|(uid, flags, at)| stored_message(uid.0, flags, *at)));
            left_alone = left_alone.union(&modified);
            reply.mod_seq = mod_seq.0;
        }
        reply.modified = Some(uid_set_to_wire(&left_alone));
        Ok(reply)
    }

    async fn copy(&self, request: CopyRequest) -> MailResult<CopyReply> {
        let (account, from) = (AccountId(request.account), MailboxId(request.mailbox));
        let mut uids = uid_set_from_wire(request.uids.as_ref())?;
        // Counted as asked for: what is left out below because it is gone is missed then.
        let messages_min = if request.all { uids.len() } else { 0 };
        if uids.len() > COPY_MESSAGES_MAX {
            let state = self.read(request.shard).await?;
            let select = move |state: &ShardState| Ok(state.select(account, from)?.uids.intersection(&uids));
            let selected = blocking(move || if_here(&state, account, select)).await;
            uids = self.or_elsewhere(request.shard, selected).await?;
            check_copy(uids.len())?;
        }
        let (to, remove_source) = (mailbox_name(&request.to)?, request.remove_source);
        let quota = if remove_source { Quota::NONE } else { self.check_account(account)? };
        let command = Command::Copy { account, from, uids, to, remove_source, messages_min, quota };
        match self.change(request.shard, request_id(&request.request_id)?, command).await? {
            Outcome::Copied { from, to, uid_validity, to_mailbox, mod_seq } => Ok(CopyReply {
                from: Some(uid_set_to_wire(&from)),
                to: Some(uid_set_to_wire(&to)),
                uid_validity: uid_validity.0,
                to_mailbox: to_mailbox.0,
                mod_seq: mod_seq.0,
            }),
            _ => Err(MailError::Internal(WRONG_OUTCOME.to_owned())),
        }
    }

    async fn expunge(&self, request: ExpungeRequest) -> MailResult<ExpungeReply> {
        let mut reply = ExpungeReply::default();
        let mut gone = UidSet::new();
        let id = request_id(&request.request_id)?;
        for (n, command) in expunge_commands(&request)?.into_iter().enumerate() {
            let Outcome::Expunged { uids, mod_seq } = self.change(request.shard, nth_request(id, n), command).await?
            else {
                return Err(MailError::Internal(WRONG_OUTCOME.to_owned()));
            };
            gone = gone.union(&uids);
            reply.mod_seq = mod_seq.0;
        }
        reply.uids = Some(uid_set_to_wire(&gone));
        Ok(reply)
    }

    async fn changes(&self, request: ChangesRequest) -> MailResult<ChangesReply> {
        let shard = self.shard(request.shard)?;
        let state = shard.read().await?;
        let at = request.shard;
        let account = AccountId(request.account);
        let read =
            cancellable(move |cancelled| if_here(&state, account, |state| changes(&shard, state, &request, cancelled)));
        let read = read.await;
        self.or_elsewhere(at, read).await
    }

    async fn watch(&self, request: WatchRequest) -> MailResult<ItemStream<WatchEvent>> {
        let shard = self.shard(request.shard)?;
        // Subscribed before the barrier: no change after the first event can be missed.
        let events = shard.watch();
        shard.group.read_barrier().await?;
        let first = futures_util::stream::iter([Ok(WatchEvent::default())]);
        let rest = futures_util::stream::unfold((events, shard.group.clone()), |(mut events, group)| async move {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => Some((Ok(event), (events, group))),
                    // Too far behind: the router reconnects and looks for itself.
                    Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => None,
                },
                () = group.leads_no_more() => None,
                () = group.stepping_aside() => None,
            }
        });
        Ok(Box::pin(first.chain(rest)))
    }

    async fn hold_maildrop(&self, request: AccountRequest) -> MailResult<ItemStream<Done>> {
        let shard = self.shard(request.shard)?;
        let account = AccountId(request.account);
        let state = shard.read().await?;
        blocking(move || state.check_here(account)).await?;
        let guard = shard.hold_maildrop(account)?;
        let first = futures_util::stream::iter([Ok(Done {})]);
        // Holds the lock until the caller drops the stream, or until another node leads and has its own locks.
        let rest = futures_util::stream::once(async move {
            let lost = tokio::select! {
                () = shard.group.leads_no_more() => MailError::NotLeader { hint: None },
                () = shard.group.stepping_aside() => MailError::NotLeader { hint: None },
                () = shard.leaves(account) => MailError::NotHere,
            };
            drop(guard);
            Err(lost)
        });
        Ok(Box::pin(first.chain(rest)))
    }
}

fn stored_message(uid: u32, flags: &Flags, mod_seq: ModSeq) -> StoredMessage {
    StoredMessage { uid, flags: Some(flags.into()), mod_seq: mod_seq.0 }
}

fn changes(
    shard: &Shard,
    state: &ShardState,
    request: &ChangesRequest,
    cancelled: &Cancelled,
) -> MailResult<ChangesReply> {
    let (account, mailbox) = (AccountId(request.account), MailboxId(request.mailbox));
    let selection = state.select(account, mailbox)?;
    let changes = state.changes(account, mailbox, ModSeq(request.since))?;
    let changed = if changes.complete { changes.changed.intersection(&selection.uids) } else { selection.uids.clone() };
    let mut messages = Vec::new();
    state.messages(account, mailbox, &changed, |meta| {
        messages.push(stored_message(meta.uid.0, &meta.flags, meta.mod_seq));
        cancelled.check().is_ok()
    })?;
    cancelled.check()?;
    let recent = shard.recent(account, mailbox, &selection.uids, uid_next(&selection.info), request.take_recent);
    Ok(ChangesReply {
        mailbox: Some(mailbox_to_wire(&selection.info, recent.len())),
        changed: messages,
        vanished: Some(uid_set_to_wire(&changes.vanished)),
        complete: changes.complete,
        uids: (!changes.complete).then(|| uid_set_to_wire(&selection.uids)),
        recent: Some(uid_set_to_wire(&recent)),
    })
}

/// A mailbox that goes between the look-up of its name and its selection was not there.
fn selected_by_name(error: MailError) -> MailError {
    match error {
        MailError::MailboxGone => MailError::NoSuchMailbox,
        other => other,
    }
}

fn special_use(attribute: &str) -> MailResult<Option<SpecialUse>> {
    if attribute.is_empty() {
        return Ok(None);
    }
    let known = SpecialUse::parse(attribute);
    known.map(Some).ok_or_else(|| MailError::CannotDo("special use is not supported".to_owned()))
}

fn mailbox_to_wire(info: &MailboxInfo, recent: u64) -> Mailbox {
    Mailbox {
        id: info.id.0,
        name: info.name.to_string(),
        special_use: info.special_use.map(|special| special.attribute().to_owned()).unwrap_or_default(),
        uid_validity: info.uid_validity.0,
        uid_next: uid_next(info),
        mod_seq: info.highest_mod_seq.0,
        messages: u64::from(info.messages),
        unseen: u64::from(info.unseen),
        deleted: u64::from(info.deleted),
        octets: info.bytes,
        recent,
    }
}
