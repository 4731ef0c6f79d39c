//! The cluster as a router sees it: its nodes, its directory, its shards. Knows no mail protocol.

mod access;
mod fetch;
mod follow;
mod hub;
mod patience;
mod pool;
mod recipients;
mod replicas;
mod shards;
mod suspects;
mod view;

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use proto::{ClusterTls, GrpcNode, NodeApi};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};
use types::{AccountId, AccountName, MailError, NodeId, ShardId};

use self::suspects::{Suspects, Verdict};

pub use access::Access;
pub use fetch::FetchStream;
pub use hub::{Hub, Notice, Subscription};
pub use patience::Patience;
pub use pool::{Connector, NodePool};
pub use recipients::{ALIASES_EXPANDED_MAX, EXPANSION_RECIPIENTS_MAX, Refused, Resolution};
pub use shards::ShardClient;
pub use view::{Account, View};

/// Cloning shares.
#[derive(Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
    shards: ShardClient,
    hub: Hub,
}

struct Shared {
    pool: NodePool,
    suspects: Mutex<Suspects>,
    view: RwLock<View>,
    /// The revision that the view has reached; `None` until it is whole for the first time.
    revision: watch::Sender<Option<u64>>,
    /// Accounts may have ended: see [`Access`].
    endings: watch::Sender<()>,
    /// Accounts may be on other shards than before.
    moves: watch::Sender<()>,
    follower: Mutex<Option<AbortHandle>>,
}

/// A probe waits so long for its answer: longer than a connection to a node that does not answer is waited for, so that
/// each probe sees the end of one.
const PROBE_MAX: Duration = Duration::from_millis(2_500);
/// A node that works answers a probe within this, slow links and a busy machine included.
const PROBE_LATE: Duration = Duration::from_secs(1);
/// A timer that is late by this says that this process stood still itself: what it has not heard meanwhile says nothing of
/// others. More than a busy runtime makes of it, less than anybody is waited for.
const STOOD_STILL: Duration = Duration::from_millis(250);

impl Cluster {
    /// A cluster over the network. Nothing is sent until [`Cluster::follow`].
    pub fn connect(seeds: &[String], tls: &ClusterTls) -> Cluster {
        let client = tls.client.clone();
        Cluster::with_connector(
            seeds,
            Box::new(move |address| Ok(Arc::new(GrpcNode::connect(address, &client)?) as Arc<dyn NodeApi>)),
        )
    }

    /// The one node of this process.
    pub fn in_process(node: Arc<dyn NodeApi>) -> Cluster {
        Cluster::with_connector(&["in-process:0".to_owned()], Box::new(move |_| Ok(node.clone())))
    }

    /// A cluster whose nodes are found by `connector`.
    pub fn with_connector(seeds: &[String], connector: Connector) -> Cluster {
        let shared = Arc::new(Shared {
            pool: NodePool::new(seeds, connector),
            suspects: Mutex::default(),
            view: RwLock::default(),
            revision: watch::Sender::new(None),
            endings: watch::Sender::new(()),
            moves: watch::Sender::new(()),
            follower: Mutex::default(),
        });
        let shards = ShardClient::new(shared.clone(), Patience::default());
        Cluster { hub: Hub::new(shards.clone()), shards, shared }
    }

    pub fn with_patience(mut self, patience: Patience) -> Cluster {
        self.shards = ShardClient::new(self.shared.clone(), patience);
        self.hub = Hub::new(self.shards.clone());
        self
    }

    /// Begins to follow the directory, until the cluster's last clone is dropped or [`Cluster::stop`].
    pub fn follow(&self) {
        let mut follower = self.shared.follower.lock();
        if follower.is_none() {
            *follower = Some(tokio::spawn(follow::follow(Arc::downgrade(&self.shared))).abort_handle());
        }
    }

    pub fn stop(&self) {
        if let Some(follower) = self.shared.follower.lock().take() {
            follower.abort();
        }
    }

    pub fn shards(&self) -> &ShardClient {
        &self.shards
    }

    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The directory has been seen whole at least once.
    pub fn is_ready(&self) -> bool {
        self.shared.revision.borrow().is_some()
    }

    /// The directory's revision as known here, and each later one.
    pub fn revisions(&self) -> watch::Receiver<Option<u64>> {
        self.shared.revision.subscribe()
    }

    pub async fn wait_ready(&self) {
        // The sender lives as long as `self`.
        let _ = self.revisions().wait_for(Option::is_some).await;
    }

    pub fn account(&self, name: &AccountName) -> Option<Account> {
        self.shared.view.read().account(name).cloned()
    }

    /// For a session of an account that has logged in.
    pub fn access(&self, name: AccountName, account: AccountId) -> Access {
        Access::new(self.shared.clone(), name, account)
    }

    /// Looks at the directory. The lock is held meanwhile: no long work within.
    pub fn with_view<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.shared.view.read())
    }

    /// Who receives mail for `local`@`domain`.
    pub fn resolve(&self, name: &AccountName) -> Resolution {
        if !self.is_ready() {
            return Err(Refused::Unknowable);
        }
        recipients::resolve(&self.shared.view.read(), name)
    }

    /// No leader can be had: a majority of the shard's replicas has been silent for longer than an operation waits. A
    /// restart of nodes does not count.
    pub fn has_no_leader(&self, shard: ShardId) -> bool {
        let view = self.shared.view.read();
        let suspects = self.shared.suspects.lock();
        let (now, patience) = (Instant::now(), self.shards().patience().operation_max());
        let is_silent = |id: NodeId| suspects.silent_for(id, now).is_some_and(|silent| silent > patience);
        view.replicas(shard).lack_majority(is_silent)
    }

    /// Who receives mail for `<postmaster>` without a domain (RFC 5321 §4.5.1).
    pub fn resolve_postmaster(&self) -> Resolution {
        if !self.is_ready() {
            return Err(Refused::Unknowable);
        }
        recipients::resolve_postmaster(&self.shared.view.read())
    }

    /// Why nothing is taken for a name at a domain that no account can have.
    pub fn refusal(&self, domain: &str) -> Refused {
        if !self.is_ready() {
            return Refused::Unknowable;
        }
        recipients::refusal(&self.shared.view.read(), domain)
    }

    pub fn is_hosted(&self, domain: &str) -> bool {
        self.shared.view.read().is_hosted(domain)
    }
}

impl Shared {
    /// A node to speak to, if the directory knows its address.
    fn node(&self, id: NodeId) -> Option<Arc<dyn NodeApi>> {
        let address = self.view.read().node_address(id)?;
        self.pool.node(id, &address)
    }

    /// An operation had no answer from a node: it is not asked again before it answers a probe.
    fn doubt(self: &Arc<Shared>, id: NodeId) {
        if self.suspects.lock().doubt(id, Instant::now()) {
            tokio::spawn(probe(Arc::downgrade(self), id));
        }
    }

    /// An operation on the shard takes long at a node: perhaps because replicas do not answer it, or it does not answer.
    fn inquire(self: &Arc<Shared>, shard: ShardId, at: NodeId) {
        let mut nodes = self.view.read().replicas(shard).all().to_vec();
        if !nodes.contains(&at) {
            nodes.push(at);
        }
        for id in nodes {
            if self.suspects.lock().inquire(id, Instant::now()) {
                tokio::spawn(probe(Arc::downgrade(self), id));
            }
        }
    }

    /// A node that operations take long at, and that is inquired after.
    fn answers(&self, id: NodeId) -> bool {
        self.suspects.lock().answers(id, Instant::now())
    }

    /// An operation at a replica waits in vain: so many replicas do not answer that the others are no majority.
    /// `spared`: one that may be late for what it is sent right now.
    fn is_in_vain(&self, shard: ShardId, spared: Option<NodeId>) -> bool {
        let view = self.view.read();
        let replicas = view.replicas(shard);
        let suspects = self.suspects.lock();
        let some_answer = replicas.all().iter().any(|id| !suspects.is_late(*id));
        some_answer && replicas.lack_majority(|id| spared != Some(id) && suspects.is_late(id))
    }

    /// Some replica of the shard is not silent, but too few for a majority.
    fn is_in_minority(&self, shard: ShardId) -> bool {
        let view = self.view.read();
        let replicas = view.replicas(shard);
        let (suspects, now) = (self.suspects.lock(), Instant::now());
        let is_silent = |id: NodeId| suspects.silent_for(id, now).is_some();
        replicas.all().iter().any(|id| !is_silent(*id)) && replicas.lack_majority(is_silent)
    }

    fn is_suspected(&self, id: NodeId) -> bool {
        self.suspects.lock().is_suspected(id)
    }
}

/// Until the node answers, whatever it answers.
async fn probe(shared: Weak<Shared>, id: NodeId) {
    loop {
        let Some(node) = shared.upgrade().map(|shared| shared.node(id)) else { return };
        let answered = match &node {
            Some(node) => {
                let mut answer = node.identify();
                let answer = match await_fairly(PROBE_LATE, &mut answer).await {
                    Some(answer) => Some(answer),
                    None => {
                        let Some(shared) = shared.upgrade() else { return };
                        shared.suspects.lock().late(id);
                        drop(shared);
                        await_fairly(PROBE_MAX.saturating_sub(PROBE_LATE), &mut answer).await
                    }
                };
                match answer {
                    Some(Ok(_)) => true,
                    Some(Err(error)) => !matches!(error, MailError::Unavailable | MailError::Deadline),
                    None => false,
                }
            }
            None => false,
        };
        let Some(shared) = shared.upgrade() else { return };
        if node.is_none() {
            shared.suspects.lock().forget(id);
            return;
        }
        let verdict = shared.suspects.lock().probed(id, answered, Instant::now());
        drop(shared);
        match verdict {
            Verdict::Answers { silent_for } => {
                if let Some(silent_for) = silent_for {
                    info!(node = %id, ?silent_for, "node answers again");
                }
                return;
            }
            Verdict::Silent { first, again_after } => {
                if first {
                    warn!(node = %id, "node does not answer, others are asked");
                }
                sleep(again_after).await;
            }
        }
    }
}

/// As a timeout, but whoever is waited for has the whole time again, once, where this process stood still amid it.
async fn await_fairly<T>(max: Duration, mut answer: impl Future<Output = T> + Unpin) -> Option<T> {
    let began = Instant::now();
    if let Ok(answer) = timeout(max, &mut answer).await {
        return Some(answer);
    }
    match began.elapsed() > max + STOOD_STILL {
        true => timeout(max, answer).await.ok(),
        false => None,
    }
}

/// An account as delivery sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LocalRecipient {
    pub shard: ShardId,
    pub account: AccountId,
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;
    use tokio::time::{Instant, advance};

    use super::{PROBE_LATE, await_fairly};

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_its_time_again_where_this_process_stood_still() {
        let began = Instant::now();
        assert_eq!(await_fairly(PROBE_LATE, Box::pin(pending::<()>())).await, None);
        assert!(began.elapsed() < PROBE_LATE * 2);
        let (answer, answered) = oneshot::channel();
        let waiting = tokio::spawn(await_fairly(PROBE_LATE, answered));
        tokio::task::yield_now().await;
        advance(PROBE_LATE * 3).await;
        answer.send(7).unwrap();
        assert_eq!(waiting.await.unwrap(), Some(Ok(7)));
    }
}
