//! A node in memory with one account, `alice@example.test`, that does what IMAP asks of a shard.

use std::sync::Arc;

use argon2::password_hash::PasswordHasher;
use argon2::{Algorithm, Argon2, Params, Version};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::{Mutex, MutexGuard};
use proto::wire::directory_change::Change;
use proto::wire::fetch_item::Item;
use proto::wire::section::Text;
use proto::wire::store_request::Action;
use proto::wire::{
    AccountRecord, AccountRequest, AdminReply, AdminRequest, AppendReply, AppendRequest, BeginReplicaRequest,
    ChangeVolumeRequest, ChangesReply, ChangesRequest, ClusterRecord, CompareShardReply, CompareShardRequest,
    CopyReply, CopyRequest, CreateMailboxReply, CreateMailboxRequest, DeliverReply, DeliverRequest, DigestShardReply,
    DigestShardRequest, DirectoryChange, DirectoryEvent, DirectoryWatchRequest, DomainRecord, Done,
    ExportAccountRequest, ExportedPart, ExpungeReply, ExpungeRequest, FetchItem, FetchRequest, FetchedMessage,
    FetchedSection, Identity, Mailbox, MailboxNameRequest, MailboxesReply, MoveAccountReply, MoveAccountRequest,
    NodeRecord, NodeStart, NodeStatusReply, PlacementRecord, RebalanceReply, RebalanceRequest, RegisterNodeRequest,
    RenameMailboxRequest, ScrubEvent, ScrubRequest, SearchReply, SearchRequest, Section, SectionData, SelectReply,
    SelectRequest, SettleRequest, ShardMembersReply, ShardMembersRequest, StoreReply, StoreRequest, SubscribeRequest,
    UnreadMessage, UsageReply, WatchEvent, WatchRequest,
};
use proto::{Body, DirectoryStore, ItemStream, MailStore, uid_set_from_wire, uid_set_to_wire, wire};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use types::{Flags, MailError, MailResult, SystemFlags, UidSet};

use super::state::{Message, State, matches, stored};

pub const ACCOUNT: u64 = 7;
pub const PASSWORD: &str = "mailring-demo";
/// Sections larger than this come in pieces.
const INLINE_OCTETS: usize = 16;

#[derive(Clone)]
pub struct MemoryNode {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<WatchEvent>,
    directory: broadcast::Sender<DirectoryEvent>,
}

impl MemoryNode {
    pub fn new() -> MemoryNode {
        let mut state = State::default();
        state.create("INBOX", "");
        for special_use in ["Drafts", "Sent", "Trash"] {
            state.create(special_use, &format!("\\{special_use}"));
        }
        let (events, directory) = (broadcast::channel(1_000).0, broadcast::channel(100).0);
        MemoryNode { state: Arc::new(Mutex::new(state)), events, directory }
    }

    /// As if administered.
    pub fn administered(&self, revision: u64, change: Change) {
        let changes = vec![DirectoryChange { change: Some(change) }];
        let _ = self.directory.send(DirectoryEvent { revision, reset: false, changes, complete: true });
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The next call of `operation` fails.
    pub fn fail(&self, operation: &'static str, error: MailError) {
        self.state().faults.entry(operation).or_default().push_back(error);
    }

    /// The call of `operation` after so many others fails.
    pub fn fail_later(&self, operation: &'static str, others: usize, error: MailError) {
        let call = self.calls(operation) + others + 1;
        self.state().later_faults.insert((operation, call), error);
    }

    pub fn calls(&self, operation: &'static str) -> usize {
        self.state().calls.get(operation).copied().unwrap_or(0)
    }

    fn enter(&self, operation: &'static str) -> MailResult<MutexGuard<'_, State>> {
        let mut state = self.state();
        let calls = state.calls.entry(operation).or_default();
        *calls += 1;
        let call = (operation, *calls);
        if let Some(error) = state.later_faults.remove(&call) {
            return Err(error);
        }
        match state.faults.get_mut(operation).and_then(|faults| faults.pop_front()) {
            Some(error) => Err(error),
            None => Ok(state),
        }
    }

    pub fn tell(&self, mailbox: u64, mod_seq: u64) {
        let _ = self.events.send(WatchEvent { account: ACCOUNT, mailbox, mod_seq });
    }

    /// As if delivered.
    pub fn deliver_text(&self, body: &str) -> u32 {
        let date = types::InternalDate { unix_s: 1_700_000_000, offset_min: 60 };
        let (uid, mod_seq) = self.state().put(1, Flags::default(), date, body.as_bytes().to_vec()).unwrap();
        self.tell(1, mod_seq);
        uid
    }
}

pub fn account_record(id: u64, name: &str, enabled: bool) -> AccountRecord {
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).unwrap());
    let password_hash = argon2.hash_password_with_salt(PASSWORD.as_bytes(), b"some salt").unwrap().to_string();
    AccountRecord { id, name: name.to_owned(), password_hash, shard: 0, enabled, created_unix_s: 0, moving: None }
}

fn unsupported<T>() -> MailResult<T> {
    Err(MailError::CannotDo("not in the test's node".to_owned()))
}

/// What a section holds; `None` for one that does not exist.
fn section_of(section: &Section, body: &[u8]) -> Option<Vec<u8>> {
    let at = body.windows(4).position(|four| four == b"\r\n\r\n").map_or(body.len(), |at| at + 4);
    let (head, rest) = body.split_at(at);
    let whole = match (section.part.as_slice(), section.text()) {
        ([], Text::Full) => body.to_vec(),
        ([], Text::Header) => head.to_vec(),
        ([], Text::Text) | ([1], Text::Full) => rest.to_vec(),
        ([1], Text::Mime) => b"Content-Type: text/plain\r\n\r\n".to_vec(),
        ([], Text::HeaderFields | Text::HeaderFieldsNot) => {
            let wanted = section.text() == Text::HeaderFields;
            let named = |line: &&str| {
                let name = line.split(':').next().unwrap_or_default();
                section.fields.iter().any(|field| field.eq_ignore_ascii_case(name)) == wanted
            };
            let text = String::from_utf8_lossy(head).into_owned();
            let lines = text.split_inclusive("\r\n").filter(|line| *line != "\r\n").filter(named);
            format!("{}\r\n", lines.collect::<String>()).into_bytes()
        }
        _ => return None,
    };
    if !section.has_partial {
        return Some(whole);
    }
    let from = (section.offset as usize).min(whole.len());
    let to = from.saturating_add(section.octets_max as usize).min(whole.len());
    Some(whole[from..to].to_vec())
}

fn fetched(request: &FetchRequest, uid: u32, message: &Message, items: &mut Vec<FetchItem>) {
    let mut pieces = Vec::new();
    let mut sections = Vec::new();
    for (index, section) in request.sections.iter().enumerate() {
        let Some(octets) = section_of(section, &message.body) else {
            sections.push(FetchedSection { nil: true, ..FetchedSection::default() });
            continue;
        };
        let inline = if octets.len() > INLINE_OCTETS { INLINE_OCTETS / 2 } else { octets.len() };
        let rest = octets[inline..].chunks(INLINE_OCTETS).map(Bytes::copy_from_slice);
        pieces.extend(rest.map(|data| SectionData { section: index as u32, data }));
        let data = Bytes::copy_from_slice(&octets[..inline]);
        sections.push(FetchedSection { octets: octets.len() as u64, data, ..FetchedSection::default() });
    }
    let rendered = |wanted: bool, text: &'static str| Bytes::from_static(if wanted { text.as_bytes() } else { b"" });
    let message = FetchedMessage {
        uid,
        flags: Some(wire::Flags::from(&message.flags)),
        mod_seq: message.mod_seq,
        date: Some(message.date.into()),
        octets: message.body.len() as u64,
        envelope: rendered(request.envelope, "(\"date\" \"subject\" NIL NIL NIL NIL NIL NIL NIL NIL)"),
        body: rendered(request.body, "(\"text\" \"plain\" NIL NIL NIL \"7bit\" 5 1)"),
        body_structure: rendered(
            request.body_structure,
            "(\"text\" \"plain\" NIL NIL NIL \"7bit\" 5 1 NIL NIL NIL NIL)",
        ),
        sections,
        ..FetchedMessage::default()
    };
    items.push(FetchItem { item: Some(Item::Message(message)) });
    items.extend(pieces.into_iter().map(|data| FetchItem { item: Some(Item::Data(data)) }));
}

#[async_trait]
impl MailStore for MemoryNode {
    async fn deliver(&self, _: DeliverRequest, _: Body) -> MailResult<DeliverReply> {
        unsupported()
    }

    async fn settle(&self, _: SettleRequest) -> MailResult<()> {
        unsupported()
    }

    async fn append(&self, request: AppendRequest, body: Body) -> MailResult<AppendReply> {
        let bytes = body.collect(u64::MAX).await.unwrap();
        assert_eq!(bytes.len() as u64, request.body_octets);
        let mut state = self.enter("append")?;
        let mailbox = state.id(&request.mailbox)?;
        let flags = Flags::try_from(request.flags.as_ref().unwrap())?;
        let (uid, mod_seq) = state.put(mailbox, flags, request.date.unwrap().into(), bytes.to_vec())?;
        let uid_validity = state.by_id(mailbox)?.uid_validity;
        self.tell(mailbox, mod_seq);
        Ok(AppendReply { mailbox, uid, uid_validity, mod_seq })
    }

    async fn open_account(&self, request: AccountRequest) -> MailResult<()> {
        assert_eq!(request.account, ACCOUNT);
        self.enter("open_account").map(|_| ())
    }

    async fn usage(&self, _: AccountRequest) -> MailResult<UsageReply> {
        unsupported()
    }

    async fn mailboxes(&self, _: AccountRequest) -> MailResult<MailboxesReply> {
        let state = self.enter("mailboxes")?;
        Ok(MailboxesReply {
            mailboxes: state.boxes.iter().map(|(id, known)| known.to_wire(*id)).collect(),
            subscriptions: state.subscriptions.iter().cloned().collect(),
        })
    }

    async fn create_mailbox(&self, request: CreateMailboxRequest) -> MailResult<CreateMailboxReply> {
        let mut state = self.enter("create_mailbox")?;
        if state.id(&request.name).is_ok() {
            return Err(MailError::MailboxExists);
        }
        Ok(CreateMailboxReply { id: state.create(&request.name, &request.special_use) })
    }

    async fn delete_mailbox(&self, request: MailboxNameRequest) -> MailResult<()> {
        let mut state = self.enter("delete_mailbox")?;
        if request.name == "INBOX" {
            return Err(MailError::CannotDo("INBOX stays".to_owned()));
        }
        let id = state.id(&request.name)?;
        state.boxes.remove(&id);
        let mod_seq = state.tick();
        self.tell(id, mod_seq);
        Ok(())
    }

    async fn rename_mailbox(&self, request: RenameMailboxRequest) -> MailResult<()> {
        let mut state = self.enter("rename_mailbox")?;
        let id = state.id(&request.from)?;
        if state.id(&request.to).is_ok() {
            return Err(MailError::MailboxExists);
        }
        state.by_id(id)?.name = request.to;
        Ok(())
    }

    async fn subscribe(&self, request: SubscribeRequest) -> MailResult<()> {
        let mut state = self.enter("subscribe")?;
        match request.subscribed {
            true => state.subscriptions.insert(request.name),
            false => state.subscriptions.remove(&request.name),
        };
        Ok(())
    }

    async fn status(&self, request: MailboxNameRequest) -> MailResult<Mailbox> {
        let mut state = self.enter("status")?;
        let id = state.id(&request.name)?;
        Ok(state.by_id(id)?.to_wire(id))
    }

    async fn select(&self, request: SelectRequest) -> MailResult<SelectReply> {
        let mut state = self.enter("select")?;
        let id = state.id(&request.name)?;
        let keywords = state.keyword_order.clone();
        let selected = state.by_id(id)?;
        Ok(SelectReply {
            mailbox: Some(selected.to_wire(id)),
            uids: Some(uid_set_to_wire(&selected.uids())),
            first_unseen: selected.with(SystemFlags::SEEN, false).first().unwrap_or(0),
            recent: Some(uid_set_to_wire(&selected.take_recent(!request.examine))),
            keywords,
        })
    }

    async fn fetch(&self, request: FetchRequest) -> MailResult<ItemStream<FetchItem>> {
        let mut state = self.enter("fetch")?;
        let wanted = uid_set_from_wire(request.uids.as_ref())?;
        let (unreadable, unreadable_rest) = (state.unread.clone(), state.unread_rest.clone());
        let mut items = Vec::new();
        for (uid, message) in &state.by_id(request.mailbox)?.messages {
            if !wanted.contains(*uid) || message.mod_seq <= request.changed_since {
                continue;
            }
            assert!(request.tells_unread);
            let unread = UnreadMessage { uid: *uid, node: 1, elsewhere: false };
            let unread = FetchItem { item: Some(Item::Unread(unread)) };
            if unreadable.contains(uid) {
                items.push(unread);
                continue;
            }
            fetched(&request, *uid, message, &mut items);
            if unreadable_rest.contains(uid) {
                items.pop();
                items.push(unread);
            }
        }
        let mut items: Vec<MailResult<FetchItem>> = items.into_iter().map(Ok).collect();
        if let Some(after) = state.break_fetch_after.take() {
            items.truncate(after);
            items.push(Err(MailError::NotLeader { hint: None }));
        }
        Ok(stream::iter(items).boxed())
    }

    async fn search(&self, request: SearchRequest) -> MailResult<SearchReply> {
        let mut state = self.enter("search")?;
        let key = request.key.unwrap();
        let recent = uid_set_from_wire(request.recent.as_ref())?;
        let messages = &state.by_id(request.mailbox)?.messages;
        let found = messages.iter().filter(|(uid, message)| matches(&key, **uid, message, &recent));
        let found: Vec<(u32, u64)> = found.map(|(uid, message)| (*uid, message.mod_seq)).collect();
        let uids: UidSet = found.iter().map(|(uid, _)| *uid).collect();
        let mod_seq = found.iter().map(|(_, mod_seq)| *mod_seq).max().unwrap_or(0);
        Ok(SearchReply { uids: Some(uid_set_to_wire(&uids)), mod_seq })
    }

    async fn store(&self, request: StoreRequest) -> MailResult<StoreReply> {
        let mut state = self.enter("store")?;
        let uids = uid_set_from_wire(request.uids.as_ref())?;
        let flags = Flags::try_from(request.flags.as_ref().unwrap())?;
        if request.action() != Action::Remove {
            state.note_keywords(&flags);
        }
        let mod_seq = state.tick();
        let (mut messages, mut modified) = (Vec::new(), UidSet::new());
        let mailbox = state.by_id(request.mailbox)?;
        for (uid, message) in mailbox.messages.iter_mut().filter(|(uid, _)| uids.contains(**uid)) {
            if request.has_unchanged_since && message.mod_seq > request.unchanged_since {
                modified.insert(*uid);
                continue;
            }
            let mut after = message.flags.clone();
            match request.action() {
                Action::Replace => after = flags.clone(),
                Action::Add => {
                    after.system = after.system.union(flags.system);
                    flags.keywords.iter().for_each(|keyword| after.insert_keyword(keyword.clone()));
                }
                Action::Remove => {
                    after.system = after.system.without(flags.system);
                    after.keywords.retain(|keyword| !flags.keywords.contains(keyword));
                }
            }
            if after != message.flags {
                message.flags = after;
                message.mod_seq = mod_seq;
                mailbox.mod_seq = mod_seq;
            }
            messages.push(stored(*uid, message));
        }
        let mod_seq = mailbox.mod_seq;
        self.tell(request.mailbox, mod_seq);
        Ok(StoreReply { messages, modified: Some(uid_set_to_wire(&modified)), mod_seq })
    }

    async fn copy(&self, request: CopyRequest) -> MailResult<CopyReply> {
        let mut state = self.enter("copy")?;
        let to_mailbox = state.id(&request.to)?;
        let wanted = uid_set_from_wire(request.uids.as_ref())?;
        let all = state.by_id(request.mailbox)?.messages.clone();
        if request.all && wanted.iter().any(|uid| !all.contains_key(&uid)) {
            return Err(MailError::MessagesGone);
        }
        let (mut from, mut to) = (UidSet::new(), UidSet::new());
        for (uid, message) in all.into_iter().filter(|(uid, _)| wanted.contains(*uid)) {
            from.insert(uid);
            to.insert(state.put(to_mailbox, message.flags, message.date, message.body)?.0);
        }
        if request.remove_source {
            let mod_seq = state.remove(request.mailbox, &from)?;
            self.tell(request.mailbox, mod_seq);
        }
        let target = state.by_id(to_mailbox)?;
        let (uid_validity, mod_seq) = (target.uid_validity, target.mod_seq);
        self.tell(to_mailbox, mod_seq);
        let (from, to) = (Some(uid_set_to_wire(&from)), Some(uid_set_to_wire(&to)));
        Ok(CopyReply { from, to, uid_validity, to_mailbox, mod_seq })
    }

    async fn expunge(&self, request: ExpungeRequest) -> MailResult<ExpungeReply> {
        let mut state = self.enter("expunge")?;
        assert!(request.has_uids && request.only_deleted);
        let deleted = state.by_id(request.mailbox)?.with(SystemFlags::DELETED, true);
        let uids = deleted.intersection(&uid_set_from_wire(request.uids.as_ref())?);
        let mod_seq = state.remove(request.mailbox, &uids)?;
        self.tell(request.mailbox, mod_seq);
        Ok(ExpungeReply { uids: Some(uid_set_to_wire(&uids)), mod_seq })
    }

    async fn changes(&self, request: ChangesRequest) -> MailResult<ChangesReply> {
        let mut state = self.enter("changes")?;
        let complete = !std::mem::take(&mut state.forgetful);
        let mailbox = state.by_id(request.mailbox)?;
        let changed = mailbox.messages.iter().filter(|(_, message)| message.mod_seq > request.since || !complete);
        let vanished = mailbox.vanished.iter().filter(|(mod_seq, _)| *mod_seq > request.since && complete);
        Ok(ChangesReply {
            changed: changed.map(|(uid, message)| stored(*uid, message)).collect(),
            vanished: Some(uid_set_to_wire(&vanished.map(|(_, uid)| *uid).collect())),
            complete,
            uids: (!complete).then(|| uid_set_to_wire(&mailbox.uids())),
            mailbox: Some(mailbox.to_wire(request.mailbox)),
            recent: Some(uid_set_to_wire(&mailbox.take_recent(request.take_recent))),
        })
    }

    async fn watch(&self, _: WatchRequest) -> MailResult<ItemStream<WatchEvent>> {
        drop(self.enter("watch")?);
        let events = BroadcastStream::new(self.events.subscribe());
        let first = stream::iter([Ok(WatchEvent::default())]);
        Ok(first.chain(events.map(|event| event.map_err(|_| MailError::Unavailable))).boxed())
    }

    async fn hold_maildrop(&self, _: AccountRequest) -> MailResult<ItemStream<Done>> {
        unsupported()
    }
}

#[async_trait]
impl DirectoryStore for MemoryNode {
    async fn watch_directory(&self, _: DirectoryWatchRequest) -> MailResult<ItemStream<DirectoryEvent>> {
        let later = BroadcastStream::new(self.directory.subscribe());
        let changes = [
            Change::Cluster(ClusterRecord { shards: 1, replicas: 1, ..ClusterRecord::default() }),
            Change::Node(NodeRecord { id: 1, address: "in-process:0".to_owned(), ..NodeRecord::default() }),
            Change::Placement(PlacementRecord { shard: 0, wanted: vec![1], ..Default::default() }),
            Change::Domain(DomainRecord { name: "example.test".to_owned() }),
            Change::Account(account_record(ACCOUNT, "alice@example.test", true)),
        ];
        let changes = changes.map(|change| DirectoryChange { change: Some(change) }).to_vec();
        let event = DirectoryEvent { revision: 1, reset: true, changes, complete: true };
        Ok(stream::iter([Ok(event)]).chain(later.map(|event| event.map_err(|_| MailError::Unavailable))).boxed())
    }

    async fn administer(&self, _: AdminRequest) -> MailResult<AdminReply> {
        unsupported()
    }

    async fn register_node(&self, _: RegisterNodeRequest) -> MailResult<()> {
        unsupported()
    }

    async fn note_start(&self, _: NodeStart) -> MailResult<NodeStart> {
        unsupported()
    }

    async fn identify(&self) -> MailResult<Identity> {
        Ok(Identity { node_id: 1, ..Identity::default() })
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
