//! A shard's mailboxes: commands applied one after the other, each as one batch with its marker, and reads. Batches are
//! not synced, for the log is: after a crash the commands behind the marker are applied again.

mod apply;
mod body;
mod check;
mod command;
mod edit;
mod leaving;
mod mailbox;
mod moved;
mod moving;
mod outcome;
mod page;
mod quota;
mod read;
mod remains;
mod remembered;
mod requests;
mod sweep;
mod totals;
mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use types::MailError;

pub use body::{BodyChunk, PinnedBody};
pub(crate) use check::check_record;
pub use command::{BodySource, Command, Recipient, Stamp, StoreAction};
pub use leaving::{MovedListing, Outline};
pub use moved::{
    BodyOf, MoveStep, Moved, MovedAccount, MovedFingerprint, MovedMailbox, MovedMessage, MovedPart, MovedPass,
    MovedRequest, MovedSubscription, Place, Whereabouts,
};
pub use outcome::{
    AccountTotals, BodyId, Changes, Delivered, MailboxInfo, MessageMeta, Outcome, Selection, ShardEvent,
    ShardEventKind, ShardTotals,
};
pub use remembered::{Remembered, RememberedFrom};
pub(crate) use totals::Totals;

use crate::error::StorageError;
use crate::group::{Held, Inner, View};
use crate::store;
use edit::{Edit, Fault};
use totals::Grown;

/// Mailboxes of one account.
pub const MAILBOXES_MAX: u32 = 10_000;
/// Subscriptions of one account.
pub const SUBSCRIPTIONS_MAX: u32 = 10_000;
/// Pieces of one upload: 2 GiB at 512 KiB each, beyond any message size that a router admits.
pub const UPLOAD_CHUNKS_MAX: usize = 4096;

/// The index of an entry that is never written: no log comes so far.
const REHEARSED_INDEX: u64 = 1 << 62;

/// Where to look for what is old: lower bounds, in memory only; and how far apply is.
#[derive(Clone, Copy, Default)]
pub(crate) struct Hints {
    pub fingerprints_from: u64,
    pub uploads_from: u64,
    pub requests_from: u64,
    /// The last entry that was applied here; `None` before the first since the group was opened.
    pub applied: Option<u64>,
}

impl Hints {
    /// That nothing is old.
    const NOTHING_OLD: Hints =
        Hints { fingerprints_from: u64::MAX, uploads_from: u64::MAX, requests_from: u64::MAX, applied: None };
}

/// How the state is looked at.
type Sight = for<'v> fn(&'v Inner, &'v Held) -> View<'v>;

/// What a command does, not written yet.
struct Done {
    result: Result<Outcome, MailError>,
    changes: store::Changes,
    events: Vec<ShardEvent>,
    grown: Grown,
}

/// Cheap to clone. One caller applies, any number read.
#[derive(Clone)]
pub struct ShardState {
    group: Arc<Inner>,
}

impl ShardState {
    pub(crate) fn new(group: Arc<Inner>) -> ShardState {
        ShardState { group }
    }

    fn view<'a>(&'a self, held: &'a Held) -> Result<View<'a>, StorageError> {
        let view = self.group.view(held);
        // Looked at behind the snapshot: a replica that is dropped amid this would be taken for an empty one.
        self.group.check()?;
        Ok(view)
    }

    /// Applies the command of log entry `index`. `body_len` is the length of the body that came with the entry.
    ///
    /// All or nothing with the marker, which is written also when the command is refused. An outer error means that
    /// nothing was applied and that the replica cannot go on. Not synced.
    #[allow(clippy::type_complexity)]
    pub fn apply(
        &self,
        index: u64,
        stamp: Stamp,
        command: Command,
        body_len: Option<u64>,
        marker: Bytes,
    ) -> Result<(Result<Outcome, MailError>, Vec<ShardEvent>), StorageError> {
        self.apply_request(index, (stamp, 0), command, body_len, marker)
    }

    /// The same for a command that came under a request id. One that was done under this id before changes nothing
    /// and is answered as it was then.
    #[allow(clippy::type_complexity)]
    pub fn apply_request(
        &self,
        index: u64,
        (stamp, request): (Stamp, u128),
        command: Command,
        body_len: Option<u64>,
        marker: Bytes,
    ) -> Result<(Result<Outcome, MailError>, Vec<ShardEvent>), StorageError> {
        let mut hints = self.group.apply.lock();
        self.group.check()?;
        if let Some(applied) = hints.applied.filter(|applied| index <= *applied) {
            // Two work on one group.
            return Err(StorageError::Misuse(format!("entry {index} comes again, entry {applied} was applied last")));
        }
        let applied = self.apply_locked(&mut hints, index, (stamp, request), &command, body_len, &marker);
        match &applied {
            Ok(_) => hints.applied = Some(index),
            Err(_) => *hints = Hints { applied: hints.applied, ..Hints::default() },
        }
        applied
    }

    /// Says whether no other replica has this one's state. Then nothing can be read elsewhere, and no replica takes this one's place:
    /// what is only to be forgotten, and cannot be read, is left.
    pub fn set_alone(&self, alone: bool) {
        self.group.alone.store(alone, Ordering::Relaxed);
    }

    /// Whether this replica can read all that a command would read that is proposed now, writing nothing: an error says what it
    /// cannot. Once committed, such a command ends every replica that has the same damage. What changes until it is applied is
    /// in memory, and sound.
    pub fn rehearse(
        &self,
        (stamp, request): (Stamp, u128),
        command: &Command,
        body_len: Option<u64>,
    ) -> Result<(), StorageError> {
        // Whoever applies has it for as long as a command takes, and this is not to wait for that.
        let mut hints = self.group.apply.try_lock().map_or(Hints::NOTHING_OLD, |hints| *hints);
        let entry = (REHEARSED_INDEX, stamp, request);
        let done = self.work(Inner::view, &mut hints, entry, (command, body_len), &[]);
        match done {
            Err(error) if error.is_unread() => Err(error),
            _ => Ok(()),
        }
    }

    #[allow(clippy::type_complexity)]
    fn apply_locked(
        &self,
        hints: &mut Hints,
        index: u64,
        (stamp, request): (Stamp, u128),
        command: &Command,
        body_len: Option<u64>,
        marker: &[u8],
    ) -> Result<(Result<Outcome, MailError>, Vec<ShardEvent>), StorageError> {
        let entry = (index, stamp, request);
        let done = self.work(Inner::latest, hints, entry, (command, body_len), marker)?;
        self.group.shared.store.write_changes(&done.changes)?;
        self.group.totals.lock().add(done.grown);
        Ok((done.result, done.events))
    }

    /// The same for an entry that is applied and for one that is rehearsed, but for how the state is looked at.
    fn work(
        &self,
        sight: Sight,
        hints: &mut Hints,
        (index, stamp, request): (u64, Stamp, u128),
        (command, body_len): (&Command, Option<u64>),
        marker: &[u8],
    ) -> Result<Done, StorageError> {
        let storage = |fault| match fault {
            Fault::Storage(error) => error,
            Fault::Mail(error) => StorageError::corrupt("request", error),
        };
        let held = Held::default();
        let alone = self.group.alone.load(Ordering::Relaxed);
        let edit_of = || {
            let mut edit = Edit::new(sight(&self.group, &held), index, stamp);
            edit.alone = alone;
            edit
        };
        let mut edit = edit_of();
        let answer = match command.needs_here().map_or(Ok(()), |account| edit.check_here(account)) {
            Ok(()) => requests::known(&mut edit, request, command).map_err(storage)?,
            Err(Fault::Mail(refused)) => Some(Err(refused)),
            Err(Fault::Storage(error)) => return Err(error),
        };
        let result = match answer {
            Some(answer) => {
                apply::discard_body(&mut edit, command, body_len).map_err(storage)?;
                answer
            }
            None => {
                let result = match apply::run(&mut edit, hints, command, body_len) {
                    Ok(outcome) => Ok(outcome),
                    Err(Fault::Storage(error)) => return Err(error),
                    // A refused command leaves nothing but the fate of its body.
                    Err(Fault::Mail(refused)) => {
                        edit = edit_of();
                        match apply::discard_body(&mut edit, command, body_len) {
                            Ok(()) => Err(refused),
                            Err(Fault::Storage(error)) => return Err(error),
                            Err(Fault::Mail(error)) => Err(error),
                        }
                    }
                };
                requests::remember(&mut edit, hints, request, command, &result).map_err(storage)?;
                result
            }
        };
        requests::forget_old(&mut edit, hints).map_err(storage)?;
        let (changes, events, grown) = edit.finish(marker)?;
        Ok(Done { result, changes, events, grown })
    }
}
