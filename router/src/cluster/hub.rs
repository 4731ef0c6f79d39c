//! Changes as they happen: one watch stream a shard, shared by all sessions that look at an account of it. Opened
//! when the first subscribes, closed when the last leaves.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use proto::wire::{WatchEvent, WatchRequest};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tracing::debug;
use types::{AccountId, MailResult, MailboxId, ModSeq, ShardId};

use super::patience::{Backoff, pause};
use super::shards::ShardClient;

/// Mailboxes with changes that a session has not asked for yet; beyond it the session looks at everything.
const CHANGES_MAX: usize = 16;
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The mailbox has changes up to `mod_seq` at least.
    Mailbox { mailbox: MailboxId, mod_seq: ModSeq },
    /// Mailboxes were made, deleted or renamed.
    List { mod_seq: ModSeq },
    /// Changes may have been missed: ask for what came since.
    Resync,
}

/// Cloning shares.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    client: ShardClient,
    shards: Mutex<HashMap<ShardId, Shard>>,
    /// The task that listens for accounts that move, once somebody has subscribed.
    mover: OnceLock<AbortOnDrop>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Shard {
    accounts: HashMap<AccountId, Vec<Arc<Slot>>>,
    task: AbortHandle,
}

struct Slot {
    /// Changed only while [`Shared::shards`] is locked.
    shard: AtomicU32,
    pending: Mutex<Pending>,
    notify: Notify,
}

#[derive(Default)]
struct Pending {
    /// By mailbox, 0 for the list.
    changes: Vec<(u64, u64)>,
    resync: bool,
}

/// One session's ear. Dropping it unsubscribes.
pub struct Subscription {
    shared: Arc<Shared>,
    account: AccountId,
    slot: Arc<Slot>,
}

impl Hub {
    pub(super) fn new(client: ShardClient) -> Hub {
        Hub { shared: Arc::new(Shared { client, shards: Mutex::default(), mover: OnceLock::new() }) }
    }

    /// Changes from here on, wherever the account goes. Subscribe before selecting: then nothing falls between.
    pub fn subscribe(&self, shard: ShardId, account: AccountId) -> Subscription {
        let moves = self.shared.client.moves();
        self.shared.mover.get_or_init(|| {
            AbortOnDrop(tokio::spawn(listen_elsewhere(Arc::downgrade(&self.shared), moves)).abort_handle())
        });
        let mut shards = self.shared.shards.lock();
        let shard = self.shared.client.shard_of(account).unwrap_or(shard);
        let (pending, notify) = (Mutex::default(), Notify::new());
        let slot = Arc::new(Slot { shard: AtomicU32::new(shard.0), pending, notify });
        self.shared.listen(&mut shards, shard, account, [slot.clone()]);
        Subscription { shared: self.shared.clone(), account, slot }
    }

    /// Shards with a watch stream.
    pub fn shards_watched(&self) -> usize {
        self.shared.shards.lock().len()
    }
}

impl Subscription {
    /// The next notice; waits for one. Cancel safe: a notice is taken only when it is returned.
    pub async fn next(&mut self) -> Notice {
        loop {
            if let Some(notice) = self.try_next() {
                return notice;
            }
            self.slot.notify.notified().await;
        }
    }

    /// The next notice, if there is one.
    pub fn try_next(&mut self) -> Option<Notice> {
        let mut pending = self.slot.pending.lock();
        if std::mem::take(&mut pending.resync) {
            pending.changes = Vec::new();
            return Some(Notice::Resync);
        }
        let (mailbox, mod_seq) = pending.changes.pop()?;
        if pending.changes.is_empty() {
            // An idle session keeps no buffer.
            pending.changes = Vec::new();
        }
        let mod_seq = ModSeq(mod_seq);
        Some(match mailbox {
            0 => Notice::List { mod_seq },
            mailbox => Notice::Mailbox { mailbox: MailboxId(mailbox), mod_seq },
        })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut shards = self.shared.shards.lock();
        let shard = ShardId(self.slot.shard.load(Ordering::Relaxed));
        let Entry::Occupied(mut shard) = shards.entry(shard) else { return };
        let accounts = &mut shard.get_mut().accounts;
        if let Entry::Occupied(mut slots) = accounts.entry(self.account) {
            slots.get_mut().retain(|slot| !Arc::ptr_eq(slot, &self.slot));
            if slots.get().is_empty() {
                slots.remove();
            }
        }
        if accounts.is_empty() {
            shard.remove().task.abort();
        }
    }
}

impl Slot {
    fn change(&self, mailbox: u64, mod_seq: u64) {
        let mut pending = self.pending.lock();
        if let Some((_, known)) = pending.changes.iter_mut().find(|(known, _)| *known == mailbox) {
            *known = (*known).max(mod_seq);
        } else if pending.changes.len() < CHANGES_MAX {
            pending.changes.push((mailbox, mod_seq));
        } else {
            pending.resync = true;
        }
        drop(pending);
        self.notify.notify_one();
    }

    fn resync(&self) {
        self.pending.lock().resync = true;
        self.notify.notify_one();
    }
}

impl Shared {
    fn listen(
        self: &Arc<Shared>,
        shards: &mut HashMap<ShardId, Shard>,
        shard: ShardId,
        account: AccountId,
        slots: impl IntoIterator<Item = Arc<Slot>>,
    ) {
        let entry = shards.entry(shard).or_insert_with(|| {
            let task = tokio::spawn(watch(Arc::downgrade(self), shard)).abort_handle();
            Shard { accounts: HashMap::new(), task }
        });
        entry.accounts.entry(account).or_default().extend(slots);
    }

    /// Sessions of accounts that are on other shards now listen there, and ask for what they have missed.
    fn listen_elsewhere(self: &Arc<Shared>) {
        let mut shards = self.shards.lock();
        let mut moved = Vec::new();
        for (shard, listening) in shards.iter_mut() {
            let elsewhere = |account: &AccountId| self.client.shard_of(*account).is_some_and(|now| now != *shard);
            moved.extend(listening.accounts.extract_if(|account, _| elsewhere(account)));
        }
        shards.retain(|_, listening| {
            let goes_on = !listening.accounts.is_empty();
            if !goes_on {
                listening.task.abort();
            }
            goes_on
        });
        for (account, slots) in moved {
            let Some(shard) = self.client.shard_of(account) else { continue };
            for slot in &slots {
                slot.shard.store(shard.0, Ordering::Relaxed);
                slot.resync();
            }
            self.listen(&mut shards, shard, account, slots);
        }
    }

    fn event(&self, shard: ShardId, event: &WatchEvent) {
        let shards = self.shards.lock();
        let slots = shards.get(&shard).and_then(|shard| shard.accounts.get(&AccountId(event.account)));
        slots.into_iter().flatten().for_each(|slot| slot.change(event.mailbox, event.mod_seq));
    }

    fn resync(&self, shard: ShardId) {
        let shards = self.shards.lock();
        let accounts = shards.get(&shard).into_iter().flat_map(|shard| shard.accounts.values());
        accounts.flatten().for_each(|slot| slot.resync());
    }
}

async fn listen_elsewhere(shared: Weak<Shared>, mut moves: watch::Receiver<()>) {
    while moves.changed().await.is_ok() {
        let Some(shared) = shared.upgrade() else { return };
        shared.listen_elsewhere();
    }
}

/// Until aborted, or the hub is gone.
async fn watch(shared: Weak<Shared>, shard: ShardId) {
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        let mut heard = false;
        if let Err(error) = watch_once(&shared, shard, &mut heard).await {
            debug!(%shard, %error, "shard watch failed");
        }
        if shared.strong_count() == 0 {
            return;
        }
        if heard {
            backoff.reset();
        }
        pause(backoff.next()).await;
    }
}

async fn watch_once(shared: &Weak<Shared>, shard: ShardId, heard: &mut bool) -> MailResult<()> {
    let Some(client) = shared.upgrade().map(|shared| shared.client.clone()) else { return Ok(()) };
    let mut events = client.watch(WatchRequest { shard: shard.0 }).await?;
    while let Some(event) = events.next().await {
        let event = event?;
        let Some(shared) = shared.upgrade() else { return Ok(()) };
        if !std::mem::replace(heard, true) {
            // The watch is on: what happened before it is for the sessions to ask for.
            shared.resync(shard);
        }
        if event.account != 0 {
            shared.event(shard, &event);
        }
    }
    Ok(())
}
