//! What a node does for a router and for the administrator, as traits: implemented by the node itself, by the gRPC
//! client, and by doubles in tests.

use std::pin::Pin;

use async_trait::async_trait;
use futures_util::Stream;
use types::MailResult;

use crate::body::Body;
use crate::wire::{
    AccountRequest, AdminReply, AdminRequest, AppendReply, AppendRequest, BeginReplicaRequest, ChangeVolumeRequest,
    ChangesReply, ChangesRequest, CompareShardReply, CompareShardRequest, CopyReply, CopyRequest, CreateMailboxReply,
    CreateMailboxRequest, DeliverReply, DeliverRequest, DigestShardReply, DigestShardRequest, DirectoryEvent,
    DirectoryWatchRequest, Done, ExportAccountRequest, ExportedPart, ExpungeReply, ExpungeRequest, FetchItem,
    FetchRequest, Identity, Mailbox, MailboxNameRequest, MailboxesReply, MoveAccountReply, MoveAccountRequest,
    NodeStart, NodeStatusReply, RebalanceReply, RebalanceRequest, RegisterNodeRequest, RenameMailboxRequest,
    ScrubEvent, ScrubRequest, SearchReply, SearchRequest, SelectReply, SelectRequest, SettleRequest, ShardMembersReply,
    ShardMembersRequest, StoreReply, StoreRequest, SubscribeRequest, UsageReply, WatchEvent, WatchRequest,
};

pub type ItemStream<T> = Pin<Box<dyn Stream<Item = MailResult<T>> + Send>>;

/// Mail operations on the shards that a node leads (`mail.proto` says what each does). A change that returns `Ok` is
/// synced by a majority of the shard's replicas and applied. [`types::MailError::Deadline`] means that the outcome is unknown.
#[async_trait]
pub trait MailStore: Send + Sync + 'static {
    async fn deliver(&self, request: DeliverRequest, body: Body) -> MailResult<DeliverReply>;
    async fn settle(&self, request: SettleRequest) -> MailResult<()>;
    async fn append(&self, request: AppendRequest, body: Body) -> MailResult<AppendReply>;
    async fn open_account(&self, request: AccountRequest) -> MailResult<()>;
    async fn usage(&self, request: AccountRequest) -> MailResult<UsageReply>;
    async fn mailboxes(&self, request: AccountRequest) -> MailResult<MailboxesReply>;
    async fn create_mailbox(&self, request: CreateMailboxRequest) -> MailResult<CreateMailboxReply>;
    async fn delete_mailbox(&self, request: MailboxNameRequest) -> MailResult<()>;
    async fn rename_mailbox(&self, request: RenameMailboxRequest) -> MailResult<()>;
    async fn subscribe(&self, request: SubscribeRequest) -> MailResult<()>;
    async fn status(&self, request: MailboxNameRequest) -> MailResult<Mailbox>;
    async fn select(&self, request: SelectRequest) -> MailResult<SelectReply>;
    async fn fetch(&self, request: FetchRequest) -> MailResult<ItemStream<FetchItem>>;
    async fn search(&self, request: SearchRequest) -> MailResult<SearchReply>;
    async fn store(&self, request: StoreRequest) -> MailResult<StoreReply>;
    async fn copy(&self, request: CopyRequest) -> MailResult<CopyReply>;
    async fn expunge(&self, request: ExpungeRequest) -> MailResult<ExpungeReply>;
    async fn changes(&self, request: ChangesRequest) -> MailResult<ChangesReply>;
    async fn watch(&self, request: WatchRequest) -> MailResult<ItemStream<WatchEvent>>;
    async fn hold_maildrop(&self, request: AccountRequest) -> MailResult<ItemStream<Done>>;
}

/// The directory as a node's replica has it (`directory.proto`).
#[async_trait]
pub trait DirectoryStore: Send + Sync + 'static {
    async fn watch_directory(&self, request: DirectoryWatchRequest) -> MailResult<ItemStream<DirectoryEvent>>;
    async fn administer(&self, request: AdminRequest) -> MailResult<AdminReply>;
    async fn register_node(&self, request: RegisterNodeRequest) -> MailResult<()>;
    async fn note_start(&self, request: NodeStart) -> MailResult<NodeStart>;
    async fn identify(&self) -> MailResult<Identity>;
    async fn node_status(&self) -> MailResult<NodeStatusReply>;
    async fn compare_shard(&self, request: CompareShardRequest) -> MailResult<CompareShardReply>;
    async fn scrub(&self, request: ScrubRequest) -> MailResult<ItemStream<ScrubEvent>>;
    async fn begin_replica(&self, request: BeginReplicaRequest) -> MailResult<()>;
    async fn change_volume(&self, request: ChangeVolumeRequest) -> MailResult<()>;
    async fn digest_shard(&self, request: DigestShardRequest) -> MailResult<DigestShardReply>;
    async fn shard_members(&self, request: ShardMembersRequest) -> MailResult<ShardMembersReply>;
    async fn rebalance(&self, request: RebalanceRequest) -> MailResult<RebalanceReply>;
    async fn move_account(&self, request: MoveAccountRequest) -> MailResult<MoveAccountReply>;
    async fn export_account(&self, request: ExportAccountRequest) -> MailResult<ItemStream<ExportedPart>>;
}

/// A node as a router sees it.
pub trait NodeApi: MailStore + DirectoryStore {}

impl<T: MailStore + DirectoryStore> NodeApi for T {}
