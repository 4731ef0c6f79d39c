//! Mail operations on the shards that this node leads: [`proto::MailStore`] over commands and reads of
//! [`storage::ShardState`].

pub(crate) mod deliver;
mod fetch;
mod parts;
mod quota;
mod search;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use storage::{Command, MailboxInfo, Outcome, ShardState, StorageError, StoreAction};
use tokio::sync::Semaphore;
use types::{
    AccountId, Flags, MailError, MailResult, MailboxId, MailboxName, Quota, ShardId, SystemFlags, Uid, UidSet,
};

use crate::Node;
use crate::shard::Shard;

pub use fetch::Doubted;

/// Searches that read messages at once: each keeps a core and a disk busy.
const SEARCHES_MAX: usize = 4;
/// Searches at once that the index answers, among them the one of each CLOSE: they are short, and must not wait behind
/// those that read messages.
const INDEX_SEARCHES_MAX: usize = 32;
/// Large bodies parsed at once.
const PARSES_MAX: usize = 4;
/// The answer to a change with one of the other commands' outcomes: a fault of ours.
const WRONG_OUTCOME: &str = "another command's outcome";

/// What bounds the work that mail operations may cause at once.
pub struct Bounds {
    searches: Arc<Semaphore>,
    index_searches: Arc<Semaphore>,
    parses: Arc<Semaphore>,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            searches: Arc::new(Semaphore::new(SEARCHES_MAX)),
            index_searches: Arc::new(Semaphore::new(INDEX_SEARCHES_MAX)),
            parses: Arc::new(Semaphore::new(PARSES_MAX)),
        }
    }
}

impl Node {
    fn shard(&self, shard: u32) -> MailResult<Arc<Shard>> {
        let shard = self.groups().shard(ShardId(shard))?;
        shard.operations.fetch_add(1, Ordering::Relaxed);
        Ok(shard)
    }

    /// The state for a read that sees every acknowledged write.
    async fn read(&self, shard: u32) -> MailResult<ShardState> {
        self.shard(shard)?.read().await
    }

    /// The account's quota, none where this node has not heard of the account yet. Refuses one that the directory knows
    /// to be removed: nothing of it may come back by a late request.
    fn check_account(&self, account: AccountId) -> MailResult<Quota> {
        let directory = self.groups().directory_state.read();
        let given_out = directory.cluster().is_some_and(|cluster| account < cluster.next_account_id);
        match directory.account_by_id(account) {
            Some(account) => Ok(account.quota),
            None if given_out => Err(MailError::NoSuchAccount),
            None => Ok(Quota::NONE),
        }
    }

    /// What a read of a shard came to. One that met damage is to be asked of another replica, where there is one.
    pub(crate) async fn or_elsewhere<T>(&self, shard: u32, result: MailResult<T>) -> MailResult<T> {
        let Err(MailError::Corrupt { key }) = &result else { return result };
        self.met_damage(shard, key);
        match crate::scrub::leave(self, ShardId(shard), &[]).await {
            true => Err(MailError::NotLeader { hint: None }),
            false => result,
        }
    }

    /// A read of a shard's replica here has met damage, with no good copy on its disks: for the log, and for `status`.
    pub(crate) fn met_damage(&self, shard: u32, key: &str) {
        tracing::error!(shard, key, "record is damaged");
        // Without a key it is another node's: nothing else of it comes over the wire.
        if let (Ok(shard), false) = (self.groups().shard(ShardId(shard)), key.is_empty()) {
            shard.group.storage.note_unread(key);
        }
    }

    async fn change(&self, shard: u32, request: u128, command: Command) -> MailResult<Outcome> {
        let at = shard;
        let shard = self.shard(shard)?;
        let space = &shard.volume.space;
        let may_pass = space.takes_entries() || makes_room(&command) && space.takes_removals();
        if !may_pass {
            return Err(MailError::DiskFull);
        }
        let done = shard.propose_request(request, &command, None).await;
        self.or_elsewhere(at, done).await
    }
}

/// Whether a command is of use on a full disk: it removes messages, or says which are to go.
fn makes_room(command: &Command) -> bool {
    match command {
        Command::Expunge { .. } | Command::DeleteMailbox { .. } => true,
        Command::DropAccount { .. } | Command::ClearRemains { .. } => true,
        Command::Store { action: StoreAction::Add, flags, .. } => *flags == Flags::system(SystemFlags::DELETED),
        Command::Store { .. }
        | Command::Chunk { .. }
        | Command::DropUpload { .. }
        | Command::Mark { .. }
        | Command::MoveAccount { .. }
        | Command::Import { .. }
        | Command::CreateAccount { .. }
        | Command::Deliver { .. }
        | Command::Settle { .. }
        | Command::Append { .. }
        | Command::CreateMailbox { .. }
        | Command::RenameMailbox { .. }
        | Command::Subscribe { .. }
        | Command::Copy { .. } => false,
    }
}

/// Disk reads leave the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> MailResult<T> + Send + 'static,
) -> MailResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| MailError::Internal(e.to_string()))?
}

/// Tells long work that nobody waits for it any more.
struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    /// Errs once the caller has gone or its deadline has passed: the transport drops the call then.
    fn check(&self) -> MailResult<()> {
        if self.0.load(Ordering::Relaxed) { Err(MailError::Deadline) } else { Ok(()) }
    }
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// As [`blocking`], for work whose length is up to what a client has stored: it is told when to stop.
async fn cancellable<T: Send + 'static>(
    work: impl FnOnce(&Cancelled) -> MailResult<T> + Send + 'static,
) -> MailResult<T> {
    let flag = Arc::new(AtomicBool::new(false));
    let _cancel = CancelOnDrop(flag.clone());
    blocking(move || work(&Cancelled(flag))).await
}

/// The log has the whole story of a disk error; the caller learns its kind.
pub(crate) fn storage_error(error: StorageError) -> MailError {
    match error {
        // The process ends, or the replica has gone elsewhere: no fault of the disk.
        StorageError::Closed | StorageError::Dropped => tracing::debug!(%error, "storage read refused"),
        // What it means is told by `or_elsewhere`.
        StorageError::Io { .. } if error.is_unread() => tracing::warn!(%error, "the disk gives no answer to a read"),
        StorageError::Corrupt { .. } => tracing::debug!(%error, "storage read refused"),
        _ => tracing::error!(%error, "storage read failed"),
    }
    MailError::from(error)
}

/// A read of an account, as long as the account is served here after it: what has gone to another shard is not read as gone.
fn if_here<T>(
    state: &ShardState,
    account: AccountId,
    read: impl FnOnce(&ShardState) -> MailResult<T>,
) -> MailResult<T> {
    let read = read(state);
    state.check_here(account)?;
    read
}

/// The id under which a caller may ask again; 0 where it gave none.
pub fn request_id(id: &[u8]) -> MailResult<u128> {
    if id.is_empty() {
        return Ok(0);
    }
    let id = id.try_into().map_err(|_| MailError::Invalid("a request id has 16 octets".to_owned()))?;
    Ok(u128::from_be_bytes(id))
}

fn mailbox_name(name: &str) -> MailResult<MailboxName> {
    MailboxName::parse(name).map_err(|e| MailError::CannotDo(e.to_string()))
}

fn flags_from_wire(flags: Option<&proto::wire::Flags>) -> MailResult<Flags> {
    flags.map(Flags::try_from).transpose().map(Option::unwrap_or_default)
}

/// UIDNEXT. Once every UID has been given out it stays at the last, and APPEND is refused.
fn uid_next(info: &MailboxInfo) -> u32 {
    info.uid_next.unwrap_or(Uid::MAX).0
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
    use std::sync::Arc;
    use std::sync::mpsc;

    use tokio::sync::Semaphore;

    use super::cancellable;

    #[tokio::test]
    async fn work_for_a_client_that_has_gone_stops_and_holds_its_turn_until_then() {
        let turns = Arc::new(Semaphore::new(1));
        let turn = turns.clone().acquire_owned().await.unwrap();
        let (started, running) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let call = tokio::spawn(cancellable(move |cancelled| {
            let _turn = turn;
            started.send(()).unwrap();
            may_go_on.recv().unwrap();
            while cancelled.check().is_ok() {
                std::thread::yield_now();
            }
            cancelled.check()
        }));
        tokio::task::spawn_blocking(move || running.recv()).await.unwrap().unwrap();
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        assert_eq!(turns.available_permits(), 0, "the thread is still busy");
        go_on.send(()).unwrap();
        drop(turns.acquire().await.unwrap());
    }
}
