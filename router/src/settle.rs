//! Which deliveries are under way here, by fingerprint, and the settling of those whose sender knows: their shards are
//! told to forget the fingerprints, so that the same mail sent again on purpose is stored again.
//!
//! ```text
//! claimed ──► stored, 250 written ──► waiting ──► handed along with a Deliver, or in a Settle ──► free
//!    │                 │
//!    └─ failed: free   └─ the 250 did not arrive: free, but not settled; a retry finds what is stored
//! ```
//!
//! Settling is best effort, and safe to leave out: what is not settled keeps the same mail from being stored twice
//! until the node forgets it in time. So a router that dies, or that cannot reach a shard, leaves fingerprints behind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use proto::wire::SettleRequest;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::debug;
use types::{MailError, MailResult, ShardId};

use crate::cluster::ShardClient;
use crate::metrics::Metrics;

/// Fingerprints to settle; more are left to the nodes, which forget them in time. Some 20 MiB.
const SETTLES_MAX: usize = 200_000;
/// Fingerprints that one log entry settles.
const SETTLE_BATCH: usize = 1_000;
/// Of them, those that a delivery settles beside: what has gathered since the one before it.
const ALONG_MAX: usize = 250;
/// A fingerprint waits so long for others of its shard to share a log entry with, unless somebody waits to use it
/// again. Short, because another router that is given the same mail on purpose meanwhile takes it for a retry.
const SETTLE_LINGER: Duration = Duration::from_millis(500);
const SETTLE_TRIES: u32 = 5;
const SETTLE_RETRY: Duration = Duration::from_millis(500);
/// The same mail sent again waits so long for the one before it: longer than it takes to find out whether a sender
/// that has gone had its 250.
const CLAIM_WAIT: Duration = Duration::from_secs(10);

pub type Fingerprint = [u8; 32];

/// By shard.
pub type Fingerprints = BTreeMap<ShardId, Vec<Fingerprint>>;

type Sending = Pin<Box<dyn Future<Output = MailResult<()>> + Send>>;
type Send1 = Box<dyn Fn(SettleRequest) -> Sending + Send + Sync>;

/// Cloning shares.
#[derive(Clone)]
pub struct Settler {
    shared: Arc<Settling>,
}

struct Settling {
    send: Send1,
    metrics: Arc<Metrics>,
    queue: Mutex<Queue>,
    /// Some fingerprints have become free.
    freed: Notify,
}

#[derive(Default)]
struct Queue {
    /// Being delivered, stored but not yet known to the sender, or to be settled.
    claimed: HashSet<Fingerprint>,
    /// By how many deliveries each is waited for.
    wanted: HashMap<Fingerprint, usize>,
    /// A shard that is here has a task.
    waiting: HashMap<ShardId, Waiting>,
    /// Waiting, or on their way to their shard.
    unsettled: usize,
    /// The router ends: nothing lingers.
    finishing: bool,
}

struct Waiting {
    fingerprints: Vec<Fingerprint>,
    due: Instant,
    /// Not to wait any longer.
    wake: Arc<Notify>,
}

/// Fingerprints that no other delivery of this router uses meanwhile. Freed, unsettled, when dropped.
pub struct Claim {
    settler: Settler,
    fingerprints: Fingerprints,
}

impl Claim {
    /// An account has gone to another shard: what is stored for it is settled there.
    pub fn follow(&mut self, fingerprint: &Fingerprint, to: ShardId) {
        self.fingerprints.values_mut().for_each(|all| all.retain(|one| one != fingerprint));
        self.fingerprints.retain(|_, all| !all.is_empty());
        self.fingerprints.entry(to).or_default().push(*fingerprint);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.settler.shared.free(self.fingerprints.values().flatten());
    }
}

/// Fingerprints of a shard that travel with a delivery to it. They wait again when dropped.
pub struct HandedAlong {
    settler: Settler,
    shard: ShardId,
    fingerprints: Vec<Fingerprint>,
}

impl HandedAlong {
    pub fn to_wire(&self) -> Vec<Bytes> {
        to_wire(&self.fingerprints)
    }

    /// The shard has forgotten them.
    pub fn settled(mut self) {
        self.settler.shared.settled(&std::mem::take(&mut self.fingerprints));
    }
}

impl Drop for HandedAlong {
    fn drop(&mut self) {
        // Without a runtime the process ends, and nobody would settle them.
        if !self.fingerprints.is_empty() && Handle::try_current().is_ok() {
            let fingerprints = std::mem::take(&mut self.fingerprints);
            self.settler.shared.wait(&mut self.settler.shared.queue.lock(), self.shard, fingerprints);
        }
    }
}

impl Settler {
    pub fn new(shards: ShardClient, metrics: Arc<Metrics>) -> Settler {
        let send = move |request: SettleRequest| {
            let shards = shards.clone();
            Box::pin(async move { shards.settle(request).await }) as Sending
        };
        Settler::with(Box::new(send), metrics)
    }

    fn with(send: Send1, metrics: Arc<Metrics>) -> Settler {
        Settler { shared: Arc::new(Settling { send, metrics, queue: Mutex::default(), freed: Notify::new() }) }
    }

    /// The same mail sent again on purpose, or on two connections at once, is to be stored again: each waits until the
    /// one before it is settled, or its sender is gone. Not for ever: a sender that is told to try later loses
    /// nothing, where one that is told that its mail is there, which is the other's, would.
    pub async fn claim(&self, fingerprints: Fingerprints) -> MailResult<Claim> {
        let free = async {
            let mut wanted = None;
            loop {
                let freed = self.shared.freed.notified();
                tokio::pin!(freed);
                // Enabled before the look, so that nothing falls between.
                freed.as_mut().enable();
                if self.shared.take(&fingerprints) {
                    return;
                }
                wanted.get_or_insert_with(|| Wanted::new(&self.shared, &fingerprints));
                freed.await;
            }
        };
        match tokio::time::timeout(CLAIM_WAIT, free).await {
            Ok(()) => Ok(Claim { settler: self.clone(), fingerprints }),
            Err(_) => {
                debug!("the same mail is still under way elsewhere");
                Err(MailError::Unavailable)
            }
        }
    }

    /// The sender has its 250.
    pub fn settle(&self, mut claim: Claim) {
        for (shard, fingerprints) in std::mem::take(&mut claim.fingerprints) {
            let mut queue = self.shared.queue.lock();
            if queue.unsettled + fingerprints.len() > SETTLES_MAX {
                drop(queue);
                self.shared.metrics.settles_lost.inc_by(fingerprints.len() as u64);
                self.shared.free(&fingerprints);
                continue;
            }
            queue.unsettled += fingerprints.len();
            self.shared.wait(&mut queue, shard, fingerprints);
        }
    }

    /// What waits for a shard, to go along with a delivery to it.
    pub fn hand_along(&self, shard: ShardId) -> HandedAlong {
        let mut queue = self.shared.queue.lock();
        let fingerprints = queue.waiting.get_mut(&shard).map(|waiting| waiting.take(ALONG_MAX)).unwrap_or_default();
        HandedAlong { settler: self.clone(), shard, fingerprints }
    }

    /// Settles what waits without lingering. Returns when nothing is left.
    pub async fn finish(&self) {
        {
            let mut queue = self.shared.queue.lock();
            queue.finishing = true;
            queue.waiting.values().for_each(|waiting| waiting.wake.notify_one());
        }
        loop {
            let freed = self.shared.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.shared.queue.lock().unsettled == 0 {
                return;
            }
            freed.await;
        }
    }
}

impl Waiting {
    fn take(&mut self, max: usize) -> Vec<Fingerprint> {
        let keep = self.fingerprints.len().saturating_sub(max);
        self.fingerprints.split_off(keep)
    }
}

impl Settling {
    /// Claims all, or none.
    fn take(&self, fingerprints: &Fingerprints) -> bool {
        let mut queue = self.queue.lock();
        if fingerprints.values().flatten().any(|fingerprint| queue.claimed.contains(fingerprint)) {
            return false;
        }
        queue.claimed.extend(fingerprints.values().flatten());
        true
    }

    /// Puts fingerprints that are counted as unsettled into their shard's queue.
    fn wait(self: &Arc<Settling>, queue: &mut Queue, shard: ShardId, fingerprints: Vec<Fingerprint>) {
        let urgent = queue.finishing || fingerprints.iter().any(|fingerprint| queue.wanted.contains_key(fingerprint));
        let waiting = queue.waiting.entry(shard).or_insert_with(|| {
            tokio::spawn(settle_shard(self.clone(), shard));
            Waiting { fingerprints: Vec::new(), due: Instant::now(), wake: Arc::default() }
        });
        if waiting.fingerprints.is_empty() {
            waiting.due = Instant::now() + SETTLE_LINGER;
        }
        waiting.fingerprints.extend(fingerprints);
        if urgent || waiting.fingerprints.len() >= SETTLE_BATCH {
            waiting.wake.notify_one();
        }
    }

    fn settled(&self, fingerprints: &[Fingerprint]) {
        self.queue.lock().unsettled -= fingerprints.len();
        self.free(fingerprints);
    }

    fn free<'a>(&self, fingerprints: impl IntoIterator<Item = &'a Fingerprint>) {
        let mut queue = self.queue.lock();
        for fingerprint in fingerprints {
            queue.claimed.remove(fingerprint);
        }
        drop(queue);
        self.freed.notify_waiters();
    }
}

/// Says that somebody waits for fingerprints: those that only linger go at once.
struct Wanted<'a> {
    settling: &'a Settling,
    fingerprints: &'a Fingerprints,
}

impl<'a> Wanted<'a> {
    fn new(settling: &'a Settling, fingerprints: &'a Fingerprints) -> Wanted<'a> {
        let mut queue = settling.queue.lock();
        for (shard, wanted) in fingerprints {
            for fingerprint in wanted {
                *queue.wanted.entry(*fingerprint).or_default() += 1;
            }
            if let Some(waiting) = queue.waiting.get(shard)
                && waiting.fingerprints.iter().any(|fingerprint| wanted.contains(fingerprint))
            {
                waiting.wake.notify_one();
            }
        }
        drop(queue);
        Wanted { settling, fingerprints }
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut queue = self.settling.queue.lock();
        for fingerprint in self.fingerprints.values().flatten() {
            if let Some(count) = queue.wanted.get_mut(fingerprint) {
                *count -= 1;
                if *count == 0 {
                    queue.wanted.remove(fingerprint);
                }
            }
        }
    }
}

/// Until nothing waits for the shard.
async fn settle_shard(shared: Arc<Settling>, shard: ShardId) {
    loop {
        let (due, wake) = {
            let mut queue = shared.queue.lock();
            let Some(waiting) = queue.waiting.get(&shard) else { return };
            if waiting.fingerprints.is_empty() {
                queue.waiting.remove(&shard);
                return;
            }
            (waiting.due, waiting.wake.clone())
        };
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = wake.notified() => {}
        }
        let batch = match shared.queue.lock().waiting.get_mut(&shard) {
            Some(waiting) => waiting.take(SETTLE_BATCH),
            None => return,
        };
        // All may have gone along with a delivery.
        if !batch.is_empty() {
            settle_batch(&shared, shard, &batch).await;
            shared.settled(&batch);
        }
    }
}

async fn settle_batch(shared: &Settling, shard: ShardId, batch: &[Fingerprint]) {
    let request = SettleRequest { shard: shard.0, fingerprints: to_wire(batch) };
    for _ in 1..SETTLE_TRIES {
        match (shared.send)(request.clone()).await {
            Ok(()) => return,
            Err(error) => debug!(%shard, %error, "fingerprints not settled yet"),
        }
        tokio::time::sleep(SETTLE_RETRY).await;
    }
    if let Err(error) = (shared.send)(request).await {
        debug!(%shard, %error, "fingerprints not settled");
        shared.metrics.settles_lost.inc_by(batch.len() as u64);
    }
}

fn to_wire(fingerprints: &[Fingerprint]) -> Vec<Bytes> {
    fingerprints.iter().map(|fingerprint| Bytes::copy_from_slice(fingerprint)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use parking_lot::Mutex;
    use tokio::time::{Instant, sleep};
    use types::{MailError, ShardId};

    use super::{CLAIM_WAIT, Claim, Fingerprint, Fingerprints, SETTLE_BATCH, SETTLE_LINGER, Settler};

    /// What was settled: when, in which shard, and how many.
    type Sent = Arc<Mutex<Vec<(Instant, u32, usize)>>>;

    fn settler() -> (Settler, Sent) {
        let sent = Sent::default();
        let send = {
            let sent = sent.clone();
            move |request: proto::wire::SettleRequest| {
                sent.lock().push((Instant::now(), request.shard, request.fingerprints.len()));
                Box::pin(async { Ok(()) }) as super::Sending
            }
        };
        (Settler::with(Box::new(send), Arc::default()), sent)
    }

    fn fingerprint(number: u32) -> Fingerprint {
        let mut fingerprint = [0; 32];
        fingerprint[..4].copy_from_slice(&number.to_le_bytes());
        fingerprint
    }

    fn of(shard: u32, numbers: impl IntoIterator<Item = u32>) -> Fingerprints {
        Fingerprints::from([(ShardId(shard), numbers.into_iter().map(fingerprint).collect())])
    }

    async fn claim(settler: &Settler, shard: u32, numbers: impl IntoIterator<Item = u32>) -> Claim {
        settler.claim(of(shard, numbers)).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn deliveries_of_one_shard_share_an_entry_and_none_waits_longer_than_the_linger() {
        let (settler, sent) = settler();
        let start = Instant::now();
        for number in 0..10 {
            settler.settle(claim(&settler, number % 2, [number]).await);
            sleep(SETTLE_LINGER / 20).await;
        }
        settler.finish().await;
        assert!(sent.lock().iter().all(|(at, ..)| at.duration_since(start) <= SETTLE_LINGER));
        let mut shards: Vec<_> = sent.lock().iter().map(|(_, shard, count)| (*shard, *count)).collect();
        shards.sort_unstable();
        assert_eq!(shards, [(0, 5), (1, 5)]);
        sent.lock().clear();
        // One that nobody joins.
        let (settler, sent) = self::settler();
        let start = Instant::now();
        settler.settle(claim(&settler, 3, [1]).await);
        sleep(SETTLE_LINGER * 2).await;
        assert_eq!(*sent.lock(), [(start + SETTLE_LINGER, 3, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_mail_again_does_not_wait_for_the_linger() {
        let (settler, sent) = settler();
        let start = Instant::now();
        settler.settle(claim(&settler, 1, [1, 2]).await);
        let again = claim(&settler, 1, [2]).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(sent.lock().len(), 1);
        // Also where the wait began before the first was to be settled.
        let waiting = tokio::spawn({
            let settler = settler.clone();
            async move { settler.claim(of(1, [2])).await.map(|_| Instant::now()) }
        });
        sleep(Duration::from_secs(3)).await;
        settler.settle(again);
        assert_eq!(waiting.await.unwrap().unwrap().duration_since(start), Duration::from_secs(3));
        assert!(settler.shared.queue.lock().wanted.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_is_dropped_is_free_and_not_settled() {
        let (settler, sent) = settler();
        drop(claim(&settler, 1, [1]).await);
        drop(claim(&settler, 1, [1]).await);
        sleep(SETTLE_LINGER * 2).await;
        assert!(sent.lock().is_empty() && settler.shared.queue.lock().claimed.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_mail_that_stays_under_way_is_deferred_and_not_taken_for_the_other() {
        let (settler, _) = settler();
        let _first = claim(&settler, 1, [1]).await;
        let start = Instant::now();
        assert_eq!(settler.claim(of(1, [1, 2])).await.err(), Some(MailError::Unavailable));
        assert_eq!(start.elapsed(), CLAIM_WAIT);
        // Nothing of it stays claimed.
        claim(&settler, 1, [2]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_batch_goes_at_once_and_the_rest_lingers() {
        let (settler, sent) = settler();
        let start = Instant::now();
        settler.settle(claim(&settler, 1, 0..SETTLE_BATCH as u32 + 1).await);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(*sent.lock(), [(start, 1, SETTLE_BATCH)]);
        settler.finish().await;
        assert_eq!(sent.lock().len(), 2);
        assert!(settler.shared.queue.lock().claimed.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_along_with_a_delivery_is_not_sent_again_unless_that_failed() {
        let (settler, sent) = settler();
        settler.settle(claim(&settler, 1, [1, 2]).await);
        assert!(settler.hand_along(ShardId(2)).to_wire().is_empty());
        let along = settler.hand_along(ShardId(1));
        assert_eq!(along.to_wire().len(), 2);
        // Not free yet, whatever becomes of it.
        assert!(!settler.shared.take(&of(1, [1])));
        drop(along);
        let along = settler.hand_along(ShardId(1));
        assert_eq!(along.to_wire().len(), 2);
        along.settled();
        sleep(SETTLE_LINGER * 2).await;
        assert!(sent.lock().is_empty());
        assert!(settler.shared.queue.lock().waiting.is_empty());

        settler.settle(claim(&settler, 1, [1, 2]).await);
        drop(settler.hand_along(ShardId(1)));
        settler.finish().await;
        assert_eq!(sent.lock().len(), 1);
    }
}
