//! Operations on a shard, wherever its leader is at the moment: asks the leader last known, follows hints, tries the
//! other replicas, and gives up when the operation's time is over. Nodes that do not answer are left out until they
//! answer a probe: no operation waits for one again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use proto::wire::{
    AccountRequest, AppendReply, AppendRequest, ChangesReply, ChangesRequest, CopyReply, CopyRequest,
    CreateMailboxReply, CreateMailboxRequest, DeliverReply, DeliverRequest, Done, ExpungeReply, ExpungeRequest,
    FetchRequest, Mailbox, MailboxNameRequest, MailboxesReply, RenameMailboxRequest, SearchReply, SearchRequest,
    SelectReply, SelectRequest, SettleRequest, StoreReply, StoreRequest, SubscribeRequest, WatchEvent, WatchRequest,
};
use proto::{Body, ItemStream, NodeApi, fresh_request_id};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;
use types::{AccountId, MailError, MailResult, NodeId, ShardId};

use super::fetch::FetchStream;
use super::patience::{Backoff, Patience, pause};
use super::{STOOD_STILL, Shared};

/// The pause after all replicas were asked in vain.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// How often one looks for an account that is between two shards, unless the directory tells.
const MOVE_LOOK: Duration = Duration::from_millis(50);
/// How often an attempt that takes long looks whether it waits in vain. Most take less, and never look.
const LOOK: Duration = Duration::from_millis(250);
/// What a node that works needs to answer somebody who looks: an attempt that began late has as long.
const HEARD_WITHIN: Duration = Duration::from_millis(1_250);

/// Cloning shares.
#[derive(Clone)]
pub struct ShardClient {
    shared: Arc<Shared>,
    leaders: Arc<Mutex<HashMap<ShardId, NodeId>>>,
    patience: Patience,
}

/// What an attempt without an answer leaves open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing: the next answer is as good.
    Read,
    /// Whether it was done.
    Change,
}

/// Operations that are a request and a reply, by the shard in the request. Reads and what is done twice without harm go
/// as they are; a change gets an id, by which nodes know its attempts from each other.
macro_rules! operations {
    ($(read $name:ident($request:ty) -> $reply:ty;)* $(change $changes:ident($change:ty) -> $changed:ty;)*) => {
        $(pub async fn $name(&self, request: $request) -> MailResult<$reply> {
            let place = Place::of_account(request.shard, request.account);
            let read = |node: Arc<dyn NodeApi>, shard: ShardId| {
                let mut request = request.clone();
                request.shard = shard.0;
                async move { node.$name(request).await }
            };
            self.call(Kind::Read, place, read).await
        })*
        $(pub async fn $changes(&self, mut request: $change) -> MailResult<$changed> {
            request.request_id = fresh_request_id()?;
            let place = Place::of_account(request.shard, request.account);
            let change = |node: Arc<dyn NodeApi>, shard: ShardId| {
                let mut request = request.clone();
                request.shard = shard.0;
                async move { node.$changes(request).await }
            };
            self.call(Kind::Change, place, change).await
        })*
    };
}

/// Where an operation is asked for.
#[derive(Clone, Copy)]
pub(super) struct Place {
    shard: ShardId,
    account: Option<AccountId>,
}

impl Place {
    /// On that shard, or wherever the account has gone since.
    pub(super) fn of_account(shard: u32, account: u64) -> Place {
        Place { shard: ShardId(shard), account: Some(AccountId(account)) }
    }

    fn of_shard(shard: u32) -> Place {
        Place { shard: ShardId(shard), account: None }
    }
}

impl ShardClient {
    pub(super) fn new(shared: Arc<Shared>, patience: Patience) -> ShardClient {
        ShardClient { shared, leaders: Arc::default(), patience }
    }

    pub fn patience(&self) -> Patience {
        self.patience
    }

    operations! {
        read open_account(AccountRequest) -> ();
        read mailboxes(AccountRequest) -> MailboxesReply;
        read status(MailboxNameRequest) -> Mailbox;
        read select(SelectRequest) -> SelectReply;
        read search(SearchRequest) -> SearchReply;
        read changes(ChangesRequest) -> ChangesReply;
        change create_mailbox(CreateMailboxRequest) -> CreateMailboxReply;
        change delete_mailbox(MailboxNameRequest) -> ();
        change rename_mailbox(RenameMailboxRequest) -> ();
        change subscribe(SubscribeRequest) -> ();
        change store(StoreRequest) -> StoreReply;
        change copy(CopyRequest) -> CopyReply;
        change expunge(ExpungeRequest) -> ExpungeReply;
    }

    pub async fn settle(&self, request: SettleRequest) -> MailResult<()> {
        let request = &request;
        let settle = |node: Arc<dyn NodeApi>, _| async move { node.settle(request.clone()).await };
        self.call(Kind::Read, Place::of_shard(request.shard), settle).await
    }

    pub async fn watch(&self, request: WatchRequest) -> MailResult<ItemStream<WatchEvent>> {
        self.open(Place::of_shard(request.shard), |node, _| async move { node.watch(request).await }).await
    }

    /// The shard that an account is on, as far as is known here.
    pub fn shard_of(&self, account: AccountId) -> Option<ShardId> {
        self.shared.view.read().shard_of(account)
    }

    /// Changes when accounts may be on other shards than before.
    pub(super) fn moves(&self) -> watch::Receiver<()> {
        self.shared.moves.subscribe()
    }

    /// An account is between two shards: waits until there may be news of it.
    pub async fn await_move(&self) {
        let mut moves = self.moves();
        drop(tokio::time::timeout(MOVE_LOOK, moves.changed()).await);
    }

    /// The lock's stream; its first item, which says that the lock was granted, has come. A lock that was granted
    /// unheard is freed with its stream.
    pub async fn hold_maildrop(&self, request: AccountRequest) -> MailResult<ItemStream<Done>> {
        let hold = |node: Arc<dyn NodeApi>, shard: ShardId| async move {
            let request = AccountRequest { shard: shard.0, ..request };
            let mut lock = node.hold_maildrop(request).await?;
            match lock.next().await {
                Some(Ok(Done {})) => Ok(lock),
                Some(Err(error)) => Err(error),
                None => Err(MailError::Unavailable),
            }
        };
        self.open(Place::of_account(request.shard, request.account), hold).await
    }

    /// Recipients that have gone to another shard are answered so.
    pub async fn deliver(&self, request: DeliverRequest, body: Body) -> MailResult<DeliverReply> {
        let (request, body) = (&request, &body);
        let deliver = |node: Arc<dyn NodeApi>, _| async move { node.deliver(request.clone(), body.clone()).await };
        self.call(Kind::Change, Place::of_shard(request.shard), deliver).await
    }

    pub async fn append(&self, mut request: AppendRequest, body: Body) -> MailResult<AppendReply> {
        request.request_id = fresh_request_id()?;
        let place = Place::of_account(request.shard, request.account);
        let append = |node: Arc<dyn NodeApi>, shard: ShardId| {
            let (request, body) = (AppendRequest { shard: shard.0, ..request.clone() }, body.clone());
            async move { node.append(request, body).await }
        };
        self.call(Kind::Change, place, append).await
    }

    /// Messages in ascending UID order. Goes on after a change of leader, even within a section.
    pub fn fetch(&self, request: FetchRequest) -> FetchStream {
        FetchStream::new(self.clone(), request)
    }

    /// Opens a stream at the shard's leader. Where it breaks, the next call looks for the leader anew.
    pub(super) async fn open<T, F, A>(&self, place: Place, attempt: A) -> MailResult<ItemStream<T>>
    where
        T: Send + 'static,
        A: Fn(Arc<dyn NodeApi>, ShardId) -> F,
        F: Future<Output = MailResult<ItemStream<T>>>,
    {
        let (id, shard, stream) = self.call_leader(Kind::Read, place, attempt).await?;
        let client = self.clone();
        Ok(Box::pin(stream.inspect(move |item| match item {
            Err(MailError::Unavailable | MailError::Deadline) => client.no_answer(shard, id),
            Err(MailError::NotLeader { .. }) => client.forget(shard, id),
            Ok(_) | Err(_) => {}
        })))
    }

    /// Calls the shard's leader. No attempt begins after the operation's time; one that is under way is awaited, as
    /// the node bounds it, unless it waits in vain or the node does not answer. [`MailError::Unavailable`]: certainly not done.
    /// [`MailError::Deadline`]: nobody knows.
    async fn call<T, F, A>(&self, kind: Kind, place: Place, attempt: A) -> MailResult<T>
    where
        A: Fn(Arc<dyn NodeApi>, ShardId) -> F,
        F: Future<Output = MailResult<T>>,
    {
        self.call_leader(kind, place, attempt).await.map(|(.., done)| done)
    }

    async fn call_leader<T, F, A>(&self, kind: Kind, place: Place, attempt: A) -> MailResult<(NodeId, ShardId, T)>
    where
        A: Fn(Arc<dyn NodeApi>, ShardId) -> F,
        F: Future<Output = MailResult<T>>,
    {
        let shard_now = || place.account.and_then(|account| self.shard_of(account)).unwrap_or(place.shard);
        let mut shard = shard_now();
        let began = Instant::now();
        let deadline = began + self.patience.operation_max();
        let minority_deadline = began + self.patience.minority_max();
        let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
        let mut unknown = false;
        let mut tour = Tour::new(self.leaders.lock().get(&shard).copied());
        loop {
            let suspected = |id| self.shared.is_suspected(id);
            let leader = tour.first;
            let Some(id) = tour.next(|| self.replicas(shard), suspected) else {
                let wait = backoff.next();
                let until = if self.shared.is_in_minority(shard) { minority_deadline } else { deadline };
                if Instant::now() + wait >= until {
                    return Err(gave_up(unknown));
                }
                pause(wait).await;
                tour.again();
                continue;
            };
            let Some(node) = self.shared.node(id) else { continue };
            // It may be late for what it is sent, which its leader takes in.
            let spared = leader.filter(|leader| *leader == id);
            let answer = tokio::select! {
                biased;
                answer = attempt(node, shard) => answer,
                () = self.minority_waits(shard, (id, spared), minority_deadline) => return Err(MailError::Deadline),
                () = self.nobody_answers(id, deadline) => return Err(MailError::Deadline),
            };
            match answer {
                Ok(done) => {
                    self.leaders.lock().insert(shard, id);
                    return Ok((id, shard, done));
                }
                Err(MailError::NotHere) if place.account.is_some() && Instant::now() + MOVE_LOOK < deadline => {
                    self.leaders.lock().insert(shard, id);
                    debug!(%shard, node = %id, "account is between two shards, or has gone to another");
                    self.await_move().await;
                    shard = shard_now();
                    tour = Tour::new(self.leaders.lock().get(&shard).copied());
                    continue;
                }
                // It is not here, whatever became of an attempt before.
                Err(MailError::NotHere) if place.account.is_some() => return Err(gave_up(unknown)),
                Err(MailError::NotLeader { hint }) => {
                    self.forget(shard, id);
                    tour.hint(hint);
                }
                Err(MailError::Unavailable) => self.no_answer(shard, id),
                // Whether it was done is open: the next attempt finds out, by fingerprint or request id.
                Err(MailError::Deadline) => {
                    self.no_answer(shard, id);
                    unknown = true;
                }
                Err(error) if unknown && kind == Kind::Change && !is_of_all_attempts(&error) => {
                    debug!(%shard, node = %id, %error, "refused after an attempt of unknown outcome");
                    return Err(MailError::Deadline);
                }
                Err(error) => return Err(error),
            }
            debug!(%shard, node = %id, "replica did not answer as leader");
            if Instant::now() >= deadline {
                return Err(gave_up(unknown));
            }
        }
    }

    /// Returns once an attempt has lasted until `at`, and the shard has no majority that could answer it. Has its nodes
    /// inquired after meanwhile.
    async fn minority_waits(&self, shard: ShardId, (id, spared): (NodeId, Option<NodeId>), at: Instant) {
        loop {
            let hears = look_later().await;
            self.shared.inquire(shard, id);
            if hears && Instant::now() >= at && self.shared.is_in_vain(shard, spared) {
                debug!(%shard, "given up: most replicas do not answer");
                return;
            }
        }
    }

    /// Returns once an attempt has lasted until `at`, and the node that it is at, which is inquired after, says nothing at
    /// all. One that answers may be about to take in a large message, however long that takes.
    async fn nobody_answers(&self, id: NodeId, at: Instant) {
        let at = at.max(Instant::now() + HEARD_WITHIN);
        loop {
            let hears = look_later().await;
            if hears && Instant::now() >= at && !self.shared.answers(id) {
                debug!(node = %id, "given up: it does not answer");
                return;
            }
        }
    }

    fn forget(&self, shard: ShardId, id: NodeId) {
        let mut leaders = self.leaders.lock();
        if leaders.get(&shard) == Some(&id) {
            leaders.remove(&shard);
        }
    }

    fn no_answer(&self, shard: ShardId, id: NodeId) {
        self.forget(shard, id);
        self.shared.doubt(id);
    }

    /// The wanted replicas, then all other nodes: amid a move the actual ones may be others.
    fn replicas(&self, shard: ShardId) -> Vec<NodeId> {
        let view = self.shared.view.read();
        let mut all = view.replicas(shard).all().to_vec();
        let others: Vec<NodeId> = view.nodes().filter(|id| !all.contains(id)).collect();
        all.extend(others);
        all
    }
}

/// False: this process stood still itself, and has yet to hear what others have said meanwhile.
async fn look_later() -> bool {
    let began = Instant::now();
    tokio::time::sleep(LOOK).await;
    began.elapsed() <= LOOK + STOOD_STILL
}

/// A refusal that says of every attempt of a change that it was not done: one that the request's own words call for, or
/// that replicas remember with its id, so that an attempt that was done is not answered with it. Others may come of the
/// moment: a full disk says nothing of the attempt before, nor does a mailbox that has gone since.
fn is_of_all_attempts(error: &MailError) -> bool {
    match error {
        MailError::MailboxExists
        | MailError::MessagesGone
        | MailError::OverQuota
        | MailError::Invalid(_)
        | MailError::CannotDo(_) => true,
        MailError::NotLeader { .. }
        | MailError::NotHere
        | MailError::Unavailable
        | MailError::Deadline
        | MailError::Busy
        | MailError::NoSuchAccount
        | MailError::NoSuchMailbox
        | MailError::MailboxGone
        | MailError::DiskFull
        | MailError::Limit(_)
        | MailError::InUse
        | MailError::Corrupt { .. }
        | MailError::Denied
        | MailError::Internal(_) => false,
    }
}

fn gave_up(unknown: bool) -> MailError {
    if unknown { MailError::Deadline } else { MailError::Unavailable }
}

/// In which order replicas are asked. Each once a round, hints first; but a hint may send us back to one that was
/// asked before it became the leader. Suspected nodes are passed over, also where hints point at them: followers name
/// a leader that is gone until they have elected another.
struct Tour {
    first: Option<NodeId>,
    left: Option<Vec<NodeId>>,
    /// Hints that may still be followed in this round: replicas that point at each other must not keep us.
    hints: u32,
}

const HINTS_A_ROUND: u32 = 3;

impl Tour {
    fn new(first: Option<NodeId>) -> Tour {
        Tour { first, left: None, hints: HINTS_A_ROUND }
    }

    fn next(&mut self, replicas: impl FnOnce() -> Vec<NodeId>, suspected: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        if let Some(id) = self.first.take().filter(|id| !suspected(*id)) {
            if let Some(left) = &mut self.left {
                left.retain(|other| *other != id);
            }
            return Some(id);
        }
        let left = self.left.get_or_insert_with(|| {
            let mut all = replicas();
            all.reverse();
            all
        });
        loop {
            let id = left.pop()?;
            if !suspected(id) {
                return Some(id);
            }
        }
    }

    fn hint(&mut self, hint: Option<NodeId>) {
        if self.hints > 0 && hint.is_some() {
            self.hints -= 1;
            self.first = hint;
        }
    }

    fn again(&mut self) {
        *self = Tour::new(None);
    }
}

#[cfg(test)]
mod tests {
    use types::NodeId;

    use super::Tour;

    #[test]
    fn a_tour_asks_the_known_leader_then_hints_then_each_replica_once() {
        let mut tour = Tour::new(Some(NodeId(2)));
        let next = |tour: &mut Tour| tour.next(|| vec![NodeId(1), NodeId(2), NodeId(3)], |_| false);
        assert_eq!(next(&mut tour), Some(NodeId(2)));
        assert_eq!(next(&mut tour), Some(NodeId(1)));
        tour.hint(Some(NodeId(3)));
        assert_eq!(next(&mut tour), Some(NodeId(3)));
        assert_eq!(next(&mut tour), Some(NodeId(2)));
        assert_eq!(next(&mut tour), None);
        for _ in 0..100 {
            tour.hint(Some(NodeId(1)));
        }
        assert_eq!(next(&mut tour), Some(NodeId(1)));
        tour.hint(Some(NodeId(1)));
        assert_eq!(next(&mut tour), None);
    }

    #[test]
    fn a_tour_passes_suspected_nodes_over_whoever_points_at_them() {
        let mut tour = Tour::new(Some(NodeId(1)));
        let next = |tour: &mut Tour, suspected: &[u64]| {
            tour.next(|| vec![NodeId(1), NodeId(2), NodeId(3)], |id| suspected.contains(&id.0))
        };
        assert_eq!(next(&mut tour, &[1]), Some(NodeId(2)));
        tour.hint(Some(NodeId(1)));
        assert_eq!(next(&mut tour, &[1]), Some(NodeId(3)));
        tour.hint(Some(NodeId(1)));
        assert_eq!(next(&mut tour, &[1]), None);
        // It has answered a probe.
        tour.again();
        assert_eq!(next(&mut tour, &[]), Some(NodeId(1)));
        tour.again();
        assert_eq!(next(&mut tour, &[1, 2, 3]), None);
    }
}
