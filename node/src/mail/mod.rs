//! Mail operations on the shards that this node leads: [`MailStore`] over commands and reads of
//! [`storage::ShardState`].

mod deliver;
mod fetch;
mod search;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use proto::wire::{
    AccountRequest, AppendReply, AppendRequest, ChangesReply, ChangesRequest, CopyReply, CopyRequest,
    CreateMailboxReply, CreateMailboxRequest, DeliverReply, DeliverRequest, Done, ExpungeReply, ExpungeRequest,
    FetchItem, FetchRequest, Mailbox, MailboxNameRequest, MailboxesReply, RenameMailboxRequest, SearchReply,
    SearchRequest, SelectReply, SelectRequest, SettleRequest, StoreReply, StoreRequest, StoredMessage,
    SubscribeRequest, WatchEvent, WatchRequest, store_request,
};
use proto::{Body, ItemStream, MailStore, uid_set_from_wire, uid_set_to_wire};
use storage::{Command, MailboxInfo, Outcome, ShardState, StorageError, StoreAction};
use tokio::sync::{Semaphore, broadcast};
use types::{
    AccountId, Flags, MailError, MailResult, MailboxId, MailboxName, ModSeq, ShardId, SpecialUse, SystemFlags, Uid,
    UidSet,
};

use crate::Node;
use crate::shard::Shard;

/// Searches that read messages at once: each keeps a core and a disk busy.
const SEARCHES_MAX: usize = 4;
/// Large bodies parsed at once.
const PARSES_MAX: usize = 4;
/// The answer to a change with one of the other commands' outcomes: a fault of ours.
const WRONG_OUTCOME: &str = "another command's outcome";

/// What bounds the work that mail operations may cause at once.
pub struct Bounds {
    searches: Semaphore,
    parses: Semaphore,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { searches: Semaphore::new(SEARCHES_MAX), parses: Semaphore::new(PARSES_MAX) }
    }
}

impl Node {
    fn shard(&self, shard: u32) -> MailResult<Arc<Shard>> {
        self.groups().shard(ShardId(shard))
    }

    /// The state for a read that sees every acknowledged write.
    async fn read(&self, shard: u32) -> MailResult<ShardState> {
        self.shard(shard)?.read().await
    }

    /// Refuses an account that the directory knows to be removed: nothing of it may come back by a late request.
    fn check_account(&self, account: AccountId) -> MailResult<()> {
        let directory = self.groups().directory_state.read();
        let given_out = directory.cluster().is_some_and(|cluster| account < cluster.next_account_id);
        if given_out && directory.account_by_id(account).is_none() {
            return Err(MailError::NoSuchAccount);
        }
        Ok(())
    }

    async fn change(&self, shard: u32, command: Command) -> MailResult<Outcome> {
        self.shard(shard)?.propose(&command, None).await
    }
}

/// Disk reads leave the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> MailResult<T> + Send + 'static) -> MailResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| MailError::Internal(e.to_string()))?
}

/// The log has the whole story of a disk error; the caller learns its kind.
fn storage_error(error: StorageError) -> MailError {
    tracing::error!(%error, "storage read failed");
    MailError::from(error)
}

/// A mailbox that goes between the look-up of its name and its selection was not there.
fn selected_by_name(error: MailError) -> MailError {
    match error {
        MailError::MailboxGone => MailError::NoSuchMailbox,
        other => other,
    }
}

fn mailbox_name(name: &str) -> MailResult<MailboxName> {
    MailboxName::parse(name).map_err(|e| MailError::CannotDo(e.to_string()))
}

fn special_use(attribute: &str) -> MailResult<Option<SpecialUse>> {
    if attribute.is_empty() {
        return Ok(None);
    }
    let known = SpecialUse::parse(attribute);
    known.map(Some).ok_or_else(|| MailError::CannotDo("special use is not supported".to_owned()))
}

fn flags_from_wire(flags: Option<&proto::wire::Flags>) -> MailResult<Flags> {
    flags.map(Flags::try_from).transpose().map(Option::unwrap_or_default)
}

/// UIDNEXT. Once every UID has been given out it stays at the last, and APPEND is refused.
fn uid_next(info: &MailboxInfo) -> u32 {
    info.uid_next.unwrap_or(Uid::MAX).0
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

#[async_trait]
impl MailStore for Node {
    async fn deliver(&self, request: DeliverRequest, body: Body) -> MailResult<DeliverReply> {
        self.deliver_body(request, body).await
    }

    async fn settle(&self, request: SettleRequest) -> MailResult<()> {
        let fingerprints =
            request.fingerprints.iter().map(|bytes| deliver::fingerprint(bytes)).collect::<MailResult<_>>()?;
        self.change(request.shard, Command::Settle { fingerprints }).await.map(|_| ())
    }

    async fn append(&self, request: AppendRequest, body: Body) -> MailResult<AppendReply> {
        self.append_body(request, body).await
    }

    async fn open_account(&self, request: AccountRequest) -> MailResult<()> {
        let account = AccountId(request.account);
        self.check_account(account)?;
        let state = self.read(request.shard).await?;
        if state.account_exists(account).map_err(storage_error)? {
            return Ok(());
        }
        self.change(request.shard, Command::CreateAccount { account }).await.map(|_| ())
    }

    async fn mailboxes(&self, request: AccountRequest) -> MailResult<MailboxesReply> {
        let shard = self.shard(request.shard)?;
        let state = shard.read().await?;
        blocking(move || {
            let account = AccountId(request.account);
            let mailboxes = state.mailboxes(account).map_err(storage_error)?;
            let subscriptions = state.subscriptions(account).map_err(storage_error)?;
            Ok(MailboxesReply {
                mailboxes: mailboxes.iter().map(|info| mailbox_to_wire(info, 0)).collect(),
                subscriptions: subscriptions.iter().map(ToString::to_string).collect(),
            })
        })
        .await
    }

    async fn create_mailbox(&self, request: CreateMailboxRequest) -> MailResult<CreateMailboxReply> {
        let command = Command::CreateMailbox {
            account: AccountId(request.account),
            name: mailbox_name(&request.name)?,
            special_use: special_use(&request.special_use)?,
        };
        match self.change(request.shard, command).await? {
            Outcome::MailboxCreated(id) => Ok(CreateMailboxReply { id: id.0 }),
            _ => Err(MailError::Internal(WRONG_OUTCOME.to_owned())),
        }
    }

    async fn delete_mailbox(&self, request: MailboxNameRequest) -> MailResult<()> {
        let (account, name) = (AccountId(request.account), mailbox_name(&request.name)?);
        self.change(request.shard, Command::DeleteMailbox { account, name }).await.map(|_| ())
    }

    async fn rename_mailbox(&self, request: RenameMailboxRequest) -> MailResult<()> {
        let command = Command::RenameMailbox {
            account: AccountId(request.account),
            from: mailbox_name(&request.from)?,
            to: mailbox_name(&request.to)?,
        };
        self.change(request.shard, command).await.map(|_| ())
    }

    async fn subscribe(&self, request: SubscribeRequest) -> MailResult<()> {
        let command = Command::Subscribe {
            account: AccountId(request.account),
            name: mailbox_name(&request.name)?,
            on: request.subscribed,
        };
        self.change(request.shard, command).await.map(|_| ())
    }

    async fn status(&self, request: MailboxNameRequest) -> MailResult<Mailbox> {
        let shard = self.shard(request.shard)?;
        let state = shard.read().await?;
        let name = mailbox_name(&request.name)?;
        blocking(move || {
            let account = AccountId(request.account);
            let info = state.mailbox(account, &name).map_err(storage_error)?.ok_or(MailError::NoSuchMailbox)?;
            let selection = state.select(account, info.id).map_err(selected_by_name)?;
            let recent = shard.recent(account, info.id, &selection.uids, uid_next(&info), false);
            Ok(mailbox_to_wire(&selection.info, recent.len()))
        })
        .await
    }

    async fn select(&self, request: SelectRequest) -> MailResult<SelectReply> {
        let shard = self.shard(request.shard)?;
        let state = shard.read().await?;
        let name = mailbox_name(&request.name)?;
        blocking(move || {
            let account = AccountId(request.account);
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
        })
        .await
    }

    async fn fetch(&self, request: FetchRequest) -> MailResult<ItemStream<FetchItem>> {
        self.fetch_stream(request).await
    }

    async fn search(&self, request: SearchRequest) -> MailResult<SearchReply> {
        self.search_mailbox(request).await
    }

    async fn store(&self, request: StoreRequest) -> MailResult<StoreReply> {
        let uids = uid_set_from_wire(request.uids.as_ref())?;
        let command = Command::Store {
            account: AccountId(request.account),
            mailbox: MailboxId(request.mailbox),
            uids,
            action: match request.action() {
                store_request::Action::Add => StoreAction::Add,
                store_request::Action::Remove => StoreAction::Remove,
                store_request::Action::Replace => StoreAction::Replace,
            },
            flags: flags_from_wire(request.flags.as_ref())?,
            unchanged_since: Some(ModSeq(request.unchanged_since)).filter(|_| request.has_unchanged_since),
        };
        match self.change(request.shard, command).await? {
            Outcome::Stored { changed, modified, mod_seq } => Ok(StoreReply {
                messages: changed.iter().map(|(uid, flags, mod_seq)| stored_message(uid.0, flags, *mod_seq)).collect(),
                modified: Some(uid_set_to_wire(&modified)),
                mod_seq: mod_seq.0,
            }),
            _ => Err(MailError::Internal(WRONG_OUTCOME.to_owned())),
        }
    }

    async fn copy(&self, request: CopyRequest) -> MailResult<CopyReply> {
        let command = Command::Copy {
            account: AccountId(request.account),
            from: MailboxId(request.mailbox),
            uids: uid_set_from_wire(request.uids.as_ref())?,
            to: mailbox_name(&request.to)?,
            remove_source: request.remove_source,
        };
        match self.change(request.shard, command).await? {
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
        match self.change(request.shard, expunge_command(&request)?).await? {
            Outcome::Expunged { uids, mod_seq } => {
                Ok(ExpungeReply { uids: Some(uid_set_to_wire(&uids)), mod_seq: mod_seq.0 })
            }
            _ => Err(MailError::Internal(WRONG_OUTCOME.to_owned())),
        }
    }

    async fn changes(&self, request: ChangesRequest) -> MailResult<ChangesReply> {
        let shard = self.shard(request.shard)?;
        let state = shard.read().await?;
        blocking(move || changes(&shard, &state, &request)).await
    }

    async fn watch(&self, request: WatchRequest) -> MailResult<ItemStream<WatchEvent>> {
        let shard = self.shard(request.shard)?;
        // Subscribed before the barrier: no change after the first event can be missed.
        let events = shard.watch();
        shard.group.read_barrier().await?;
        let leadership = shard.group.raft.metrics();
        let own = self.groups().own.0;
        let first = futures_util::stream::iter([Ok(WatchEvent::default())]);
        let rest = futures_util::stream::unfold((events, leadership), move |(mut events, mut leadership)| async move {
            use openraft::async_runtime::WatchReceiver;
            loop {
                tokio::select! {
                    event = events.recv() => return match event {
                        Ok(event) => Some((Ok(event), (events, leadership))),
                        // Too far behind: the router reconnects and looks for itself.
                        Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => None,
                    },
                    changed = leadership.changed() => {
                        if changed.is_err() || leadership.borrow_watched().current_leader != Some(own) {
                            return None;
                        }
                    }
                }
            }
        });
        Ok(Box::pin(first.chain(rest)))
    }

    async fn hold_maildrop(&self, request: AccountRequest) -> MailResult<ItemStream<Done>> {
        let shard = self.shard(request.shard)?;
        shard.group.read_barrier().await?;
        let guard = shard.hold_maildrop(AccountId(request.account))?;
        let leadership = shard.group.raft.metrics();
        let own = self.groups().own.0;
        let first = futures_util::stream::iter([Ok(Done {})]);
        // Holds the lock until the caller drops the stream, or until another node leads and has its own locks.
        let rest = futures_util::stream::once(async move {
            use openraft::async_runtime::WatchReceiver;
            let mut leadership = leadership;
            while leadership.borrow_watched().current_leader == Some(own) && leadership.changed().await.is_ok() {}
            drop(guard);
            Err(MailError::NotLeader { hint: None })
        });
        Ok(Box::pin(first.chain(rest)))
    }
}

/// Without a set only what is marked \Deleted may go (RFC 3501 §6.4.3), whatever the caller says: no request takes
/// the whole mailbox.
fn expunge_command(request: &ExpungeRequest) -> MailResult<Command> {
    let uids = uid_set_from_wire(request.uids.as_ref())?;
    Ok(Command::Expunge {
        account: AccountId(request.account),
        mailbox: MailboxId(request.mailbox),
        uids: Some(uids).filter(|_| request.has_uids),
        only_deleted: request.only_deleted || !request.has_uids,
    })
}

fn stored_message(uid: u32, flags: &Flags, mod_seq: ModSeq) -> StoredMessage {
    StoredMessage { uid, flags: Some(flags.into()), mod_seq: mod_seq.0 }
}

fn changes(shard: &Shard, state: &ShardState, request: &ChangesRequest) -> MailResult<ChangesReply> {
    let (account, mailbox) = (AccountId(request.account), MailboxId(request.mailbox));
    let selection = state.select(account, mailbox)?;
    let changes = state.changes(account, mailbox, ModSeq(request.since))?;
    let changed = if changes.complete { changes.changed.intersection(&selection.uids) } else { selection.uids.clone() };
    let mut messages = Vec::new();
    state.messages(account, mailbox, &changed, |meta| {
        messages.push(stored_message(meta.uid.0, &meta.flags, meta.mod_seq));
        true
    })?;
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

/// All of a mailbox's UIDs with one system flag set, or with it unset.
fn flagged(
    state: &ShardState,
    account: AccountId,
    mailbox: MailboxId,
    flag: SystemFlags,
    set: bool,
    all: &UidSet,
) -> MailResult<UidSet> {
    let (with, without) = if set { (flag, SystemFlags::NONE) } else { (SystemFlags::NONE, flag) };
    Ok(state.flagged(account, mailbox, with, without)?.intersection(all))
}

#[cfg(test)]
mod tests {
    use proto::wire::ExpungeRequest;
    use storage::Command;

    use super::expunge_command;

    #[test]
    fn an_expunge_without_a_set_takes_only_what_is_marked() {
        for (has_uids, only_deleted, expected) in
            [(false, false, true), (false, true, true), (true, true, true), (true, false, false)]
        {
            let request = ExpungeRequest { has_uids, only_deleted, ..ExpungeRequest::default() };
            let Ok(Command::Expunge { uids, only_deleted, .. }) = expunge_command(&request) else {
                panic!("no command")
            };
            assert_eq!((uids.is_some(), only_deleted), (has_uids, expected));
        }
    }
}
