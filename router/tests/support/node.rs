//! A node of the cluster in memory. Does what the router's tests need of a node, and refuses the rest.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use proto::wire::fetch_item::Item;
use proto::wire::{
    AccountRequest, AdminReply, AdminRequest, AppendReply, AppendRequest, BeginReplicaRequest, BodyChunk, BodyPlace,
    ChangeVolumeRequest, ChangesReply, ChangesRequest, CompareShardReply, CompareShardRequest, CopyReply, CopyRequest,
    CreateMailboxReply, CreateMailboxRequest, DeliverReply, DeliverRequest, DigestShardReply, DigestShardRequest,
    DirectoryEvent, DirectoryWatchRequest, Done, ErrorDetail, ExportAccountRequest, ExportedPart, ExpungeReply,
    ExpungeRequest, FetchItem, FetchRequest, FetchedMessage, FetchedSection, Flags, Identity, InternalDate, Mailbox,
    MailboxNameRequest, MailboxesReply, MoveAccountReply, MoveAccountRequest, NodeStart, NodeStatusReply,
    RebalanceReply, RebalanceRequest, RecipientReply, RegisterNodeRequest, RenameMailboxRequest, ScrubEvent,
    ScrubRequest, SearchReply, SearchRequest, SectionData, SelectReply, SelectRequest, SettleRequest,
    ShardMembersReply, ShardMembersRequest, StoreReply, StoreRequest, SubscribeRequest, UsageReply, WatchEvent,
    WatchRequest,
};
use proto::{Body, DirectoryStore, ItemStream, MailStore, uid_set_from_wire, uid_set_to_wire};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use types::{MailError, MailResult, NodeId, UidSet};

use super::cluster::{Fault, TestCluster};

pub const INBOX: u64 = 1;
pub const UID_VALIDITY: u32 = 77;
/// What [`proto::connect`] takes to find a peer silent, and to find that it cannot be connected to.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// What a leader waits for the others.
const HANGS: Duration = Duration::from_secs(10);
/// Sections larger than this follow their message in pieces.
pub const INLINE_OCTETS: usize = 16;

pub struct Node {
    pub id: u64,
    pub cluster: TestCluster,
}

impl Node {
    /// Counts the call, checks that this node is up and leads, and takes the fault that was planned.
    async fn enter(&self, operation: &'static str, shard: u32) -> MailResult<Option<Fault>> {
        *self.cluster.state.lock().asked.entry(self.id).or_default() += 1;
        self.awake().await?;
        match self.planned(operation, shard)? {
            Some(Fault::Before(error)) => Err(error),
            Some(Fault::Hangs) => {
                tokio::time::sleep(HANGS).await;
                Err(MailError::Deadline)
            }
            other => Ok(other),
        }
    }

    fn planned(&self, operation: &'static str, shard: u32) -> MailResult<Option<Fault>> {
        let mut state = self.cluster.state.lock();
        *state.calls.entry(operation).or_default() += 1;
        if state.down.contains(&self.id) {
            return Err(MailError::Unavailable);
        }
        match state.leaders.get(&shard) {
            Some(leader) if *leader == self.id => {}
            hint => return Err(MailError::NotLeader { hint: hint.map(|id| NodeId(*id)) }),
        }
        let planned = state.faults.entry(operation).or_default();
        Ok(match planned.front() {
            Some((on, _)) if *on == shard => planned.pop_front().map(|(_, fault)| fault),
            _ => None,
        })
    }

    /// A node that is paused does not answer; the connection to it is found dead after a while.
    async fn awake(&self) -> MailResult<()> {
        let Some(since) = self.cluster.state.lock().paused.get(&self.id).copied() else { return Ok(()) };
        if since.elapsed() < KEEP_ALIVE {
            tokio::time::sleep_until(since + KEEP_ALIVE).await;
            return Err(MailError::Deadline);
        }
        tokio::time::sleep(CONNECT_MAX).await;
        Err(MailError::Unavailable)
    }

    fn leave<T>(&self, fault: Option<Fault>, done: T) -> MailResult<T> {
        match fault {
            Some(Fault::After(error)) => Err(error),
            _ => Ok(done),
        }
    }

    /// Items until the shard's streams are broken, or the guard's owner is gone.
    fn follow<T: Clone + Send + 'static>(
        &self,
        shard: u32,
        first: T,
        mut more: Option<broadcast::Receiver<(u32, T)>>,
        at_end: impl FnOnce() + Send + 'static,
    ) -> ItemStream<T> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut breaks = self.cluster.breaks.subscribe();
        let _ = sender.send(Ok(first));
        tokio::spawn(async move {
            loop {
                let next = async {
                    match &mut more {
                        Some(more) => more.recv().await.ok(),
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = sender.closed() => break,
                    broken = breaks.recv() => if broken == Ok(shard) {
                        let _ = sender.send(Err(MailError::NotLeader { hint: None }));
                        break;
                    },
                    next = next => match next {
                        Some((on, item)) if on == shard => drop(sender.send(Ok(item))),
                        Some(_) => {}
                        None => break,
                    },
                }
            }
            at_end();
        });
        Box::pin(UnboundedReceiverStream::new(receiver))
    }
}

fn unsupported<T>() -> MailResult<T> {
    Err(MailError::CannotDo("not in the test's node".to_owned()))
}

#[async_trait]
impl MailStore for Node {
    async fn deliver(&self, request: DeliverRequest, body: Body) -> MailResult<DeliverReply> {
        let fault = self.enter("deliver", request.shard).await?;
        let bytes = body.collect(u64::MAX).await.map_err(|error| MailError::Internal(error.to_string()))?;
        assert_eq!(bytes.len() as u64, request.body_octets);
        let unix_s = request.date.unwrap_or_default().unix_s;
        let mut state = self.cluster.state.lock();
        state.settle(&request.settle);
        let recipients = request.recipients.iter().map(|recipient| {
            let known = state.accounts.contains_key(&recipient.account);
            let error = match known {
                false => Some(MailError::NoSuchAccount),
                true if state.check_here(recipient.account, request.shard).is_err() => Some(MailError::NotHere),
                true if state.over_quota.contains(&recipient.account) => Some(MailError::OverQuota),
                true => None,
            };
            if let Some(error) = error {
                return RecipientReply { error: Some(ErrorDetail::from(&error)), ..RecipientReply::default() };
            }
            let duplicate = !state.fingerprints.insert((recipient.account, recipient.fingerprint.to_vec()));
            let uid = if duplicate { 0 } else { state.store(recipient.account, bytes.to_vec(), unix_s) };
            RecipientReply { uid, duplicate, mailbox: INBOX, uid_validity: UID_VALIDITY, error: None }
        });
        let reply = DeliverReply { recipients: recipients.collect() };
        drop(state);
        self.leave(fault, reply)
    }

    async fn settle(&self, request: SettleRequest) -> MailResult<()> {
        let fault = self.enter("settle", request.shard).await?;
        let mut state = self.cluster.state.lock();
        state.settle(&request.fingerprints);
        drop(state);
        self.leave(fault, ())
    }

    async fn append(&self, _: AppendRequest, _: Body) -> MailResult<AppendReply> {
        unsupported()
    }

    async fn open_account(&self, request: AccountRequest) -> MailResult<()> {
        let fault = self.enter("open_account", request.shard).await?;
        self.leave(fault, ())
    }

    async fn usage(&self, _: AccountRequest) -> MailResult<UsageReply> {
        unsupported()
    }

    async fn mailboxes(&self, _: AccountRequest) -> MailResult<MailboxesReply> {
        unsupported()
    }

    async fn create_mailbox(&self, request: CreateMailboxRequest) -> MailResult<CreateMailboxReply> {
        let fault = self.enter("create_mailbox", request.shard).await?;
        self.cluster.state.lock().check_here(request.account, request.shard)?;
        self.leave(fault, CreateMailboxReply { id: 2 })
    }

    async fn delete_mailbox(&self, _: MailboxNameRequest) -> MailResult<()> {
        unsupported()
    }

    async fn rename_mailbox(&self, _: RenameMailboxRequest) -> MailResult<()> {
        unsupported()
    }

    async fn subscribe(&self, _: SubscribeRequest) -> MailResult<()> {
        unsupported()
    }

    async fn status(&self, request: MailboxNameRequest) -> MailResult<Mailbox> {
        let fault = self.enter("status", request.shard).await?;
        self.cluster.state.lock().check_here(request.account, request.shard)?;
        let reply = Mailbox { id: INBOX, name: request.name, ..Mailbox::default() };
        self.leave(fault, reply)
    }

    async fn select(&self, request: SelectRequest) -> MailResult<SelectReply> {
        let fault = self.enter("select", request.shard).await?;
        assert!(request.examine && request.name == "INBOX");
        let state = self.cluster.state.lock();
        let mailbox = &state.accounts[&request.account];
        let uids: UidSet = mailbox.messages.iter().map(|message| message.uid).collect();
        let reply = SelectReply {
            mailbox: Some(Mailbox { id: INBOX, uid_validity: UID_VALIDITY, ..Mailbox::default() }),
            uids: Some(uid_set_to_wire(&uids)),
            ..SelectReply::default()
        };
        drop(state);
        self.leave(fault, reply)
    }

    async fn fetch(&self, request: FetchRequest) -> MailResult<ItemStream<FetchItem>> {
        let fault = self.enter("fetch", request.shard).await?;
        let wanted = uid_set_from_wire(request.uids.as_ref())?;
        let (mut items, mut ended) = (Vec::new(), None);
        let mut state = self.cluster.state.lock();
        let mut messages = state.accounts[&request.account].messages.clone();
        messages.retain(|message| wanted.contains(message.uid));
        if messages.is_empty()
            && let Some((uid, rest)) = wanted.first().zip(request.rest.as_ref())
        {
            items.extend(state.rest_items(uid, rest));
        }
        for message in messages {
            if state.cannot_read(&state.unread, message.uid, self.id) {
                let (item, error) = state.unread_item(&request, message.uid, self.id);
                items.push(item);
                ended = error;
                if ended.is_some() {
                    break;
                }
                continue;
            }
            let mut follow = Vec::new();
            let sections = request.sections.iter().enumerate().map(|(index, section)| {
                let from = if section.has_partial { section.offset as usize } else { 0 };
                let body = message.body.get(from..).unwrap_or_default();
                let body =
                    if section.has_partial { &body[..body.len().min(section.octets_max as usize)] } else { body };
                let octets = body.len() as u64;
                let inline = if body.len() <= INLINE_OCTETS { body } else { &body[..INLINE_OCTETS / 2] };
                follow.extend(
                    body[inline.len()..]
                        .chunks(INLINE_OCTETS)
                        .map(|piece| SectionData { section: index as u32, data: Bytes::copy_from_slice(piece) }),
                );
                let data = Bytes::copy_from_slice(inline);
                FetchedSection { nil: false, octets, data, has_offset: true, offset: from as u64 }
            });
            let sections = sections.collect();
            let chunks = vec![BodyChunk { index: u64::from(message.uid), octets: message.body.len() as u64 }];
            let place = BodyPlace { shard: request.shard, body: u64::from(message.uid), chunks };
            items.push(Item::Message(FetchedMessage {
                uid: message.uid,
                flags: Some(Flags { system: message.flags, keywords: Vec::new() }),
                mod_seq: message.mod_seq,
                date: Some(InternalDate { unix_s: message.unix_s, offset_min: 0 }),
                octets: message.body.len() as u64,
                sections,
                place: (!follow.is_empty()).then_some(place),
                ..FetchedMessage::default()
            }));
            let is_cut = !follow.is_empty() && state.cannot_read(&state.unread_rest, message.uid, self.id);
            items.extend(follow.into_iter().map(Item::Data).take(if is_cut { 1 } else { usize::MAX }));
            if is_cut {
                let (item, error) = state.unread_item(&request, message.uid, self.id);
                items.push(item);
                ended = error;
                break;
            }
        }
        drop(state);
        let mut items: Vec<MailResult<FetchItem>> =
            items.into_iter().map(|item| Ok(FetchItem { item: Some(item) })).collect();
        items.extend(ended.map(Err));
        match fault {
            Some(Fault::Break(after)) => {
                items.truncate(after);
                items.push(Err(MailError::Deadline));
            }
            Some(Fault::After(error)) => return Err(error),
            _ => {}
        }
        Ok(stream::iter(items).boxed())
    }

    async fn search(&self, _: SearchRequest) -> MailResult<SearchReply> {
        unsupported()
    }

    async fn store(&self, _: StoreRequest) -> MailResult<StoreReply> {
        unsupported()
    }

    async fn copy(&self, _: CopyRequest) -> MailResult<CopyReply> {
        unsupported()
    }

    async fn expunge(&self, request: ExpungeRequest) -> MailResult<ExpungeReply> {
        let fault = self.enter("expunge", request.shard).await?;
        assert!(request.has_uids && !request.only_deleted);
        let uids = uid_set_from_wire(request.uids.as_ref())?;
        let mut state = self.cluster.state.lock();
        state.expunge(request.account, &uids)?;
        drop(state);
        self.leave(fault, ExpungeReply { uids: Some(uid_set_to_wire(&uids)), mod_seq: 1 })
    }

    async fn changes(&self, _: ChangesRequest) -> MailResult<ChangesReply> {
        unsupported()
    }

    async fn watch(&self, request: WatchRequest) -> MailResult<ItemStream<WatchEvent>> {
        self.enter("watch", request.shard).await?;
        let events = self.cluster.events.subscribe();
        let state = self.cluster.state.clone();
        *state.lock().calls.entry("watching").or_default() += 1;
        let at_end = move || *state.lock().calls.entry("watching").or_default() -= 1;
        Ok(self.follow(request.shard, WatchEvent::default(), Some(events), at_end))
    }

    async fn hold_maildrop(&self, request: AccountRequest) -> MailResult<ItemStream<Done>> {
        self.enter("hold_maildrop", request.shard).await?;
        let mut state = self.cluster.state.lock();
        state.mod_seq += 1;
        let token = state.mod_seq;
        if state.locks.contains_key(&request.account) {
            return Err(MailError::InUse);
        }
        state.locks.insert(request.account, token);
        drop(state);
        let state = self.cluster.state.clone();
        let at_end = move || {
            let mut state = state.lock();
            if state.locks.get(&request.account) == Some(&token) {
                state.locks.remove(&request.account);
            }
        };
        Ok(self.follow(request.shard, Done {}, None, at_end))
    }
}

#[async_trait]
impl DirectoryStore for Node {
    async fn watch_directory(&self, request: DirectoryWatchRequest) -> MailResult<ItemStream<DirectoryEvent>> {
        if self.cluster.state.lock().down.contains(&self.id) {
            return Err(MailError::Unavailable);
        }
        assert!(request.follow);
        let mut changes = self.cluster.changes.subscribe();
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = sender.send(Ok(self.cluster.directory()));
        let (cluster, id) = (self.cluster.clone(), self.id);
        tokio::spawn(async move {
            let mut look = tokio::time::interval(Duration::from_millis(20));
            loop {
                tokio::select! {
                    () = sender.closed() => return,
                    event = changes.recv() => match event {
                        Ok(event) => drop(sender.send(Ok(event))),
                        Err(_) => return,
                    },
                    _ = look.tick() => if cluster.state.lock().down.contains(&id) {
                        let _ = sender.send(Err(MailError::Unavailable));
                        return;
                    },
                }
            }
        });
        Ok(Box::pin(UnboundedReceiverStream::new(receiver)))
    }

    async fn administer(&self, _: AdminRequest) -> MailResult<AdminReply> {
        unsupported()
    }

    async fn register_node(&self, _: RegisterNodeRequest) -> MailResult<()> {
        unsupported()
    }

    async fn identify(&self) -> MailResult<Identity> {
        self.awake().await?;
        match self.cluster.state.lock().down.contains(&self.id) {
            true => Err(MailError::Unavailable),
            false => Ok(Identity { node_id: self.id, ..Identity::default() }),
        }
    }

    async fn note_start(&self, _: NodeStart) -> MailResult<NodeStart> {
        unsupported()
    }

    async fn node_status(&self) -> MailResult<NodeStatusReply> {
        unsupported()
    }

    async fn compare_shard(&self, _: CompareShardRequest) -> MailResult<CompareShardReply> {
        unsupported()
    }

    async fn scrub(&self, _: ScrubRequest) -> MailResult<ItemStream<ScrubEvent>> {
        unsupported()
    }

    async fn begin_replica(&self, _: BeginReplicaRequest) -> MailResult<()> {
        unsupported()
    }

    async fn change_volume(&self, _: ChangeVolumeRequest) -> MailResult<()> {
        unsupported()
    }

    async fn digest_shard(&self, _: DigestShardRequest) -> MailResult<DigestShardReply> {
        unsupported()
    }

    async fn shard_members(&self, _: ShardMembersRequest) -> MailResult<ShardMembersReply> {
        unsupported()
    }

    async fn rebalance(&self, _: RebalanceRequest) -> MailResult<RebalanceReply> {
        unsupported()
    }

    async fn move_account(&self, _: MoveAccountRequest) -> MailResult<MoveAccountReply> {
        unsupported()
    }

    async fn export_account(&self, _: ExportAccountRequest) -> MailResult<ItemStream<ExportedPart>> {
        unsupported()
    }
}
