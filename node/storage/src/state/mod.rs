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
use edit::{Edit, Fault};

/// Mailboxes of one account.
pub const MAILBOXES_MAX: u32 = 10_000;
/// Subscriptions of one account.
pub const SUBSCRIPTIONS_MAX: u32 = 10_000;
/// Pieces of one upload: 2 GiB at 512 KiB each, beyond any message size that a router admits.
pub const UPLOAD_CHUNKS_MAX: usize = 4096;

/// Where to look for what is old: lower bounds, in memory only; and how far apply is.
#[derive(Default)]
pub(crate) struct Hints {
    pub fingerprints_from: u64,
    pub uploads_from: u64,
    pub requests_from: u64,
    /// The last entry that was applied here; `None` before the first since the group was opened.
    pub applied: Option<u64>,
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
        let storage = |fault| match fault {
            Fault::Storage(error) => error,
            Fault::Mail(error) => StorageError::corrupt("request", error),
        };
        let held = Held::default();
        let mut edit = Edit::new(self.group.latest(&held), index, stamp);
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
                let result = self.run((&mut edit, &held), hints, command, body_len)?;
                requests::remember(&mut edit, hints, request, command, &result).map_err(storage)?;
                result
            }
        };
        requests::forget_old(&mut edit, hints).map_err(storage)?;
        let (changes, events, grown) = edit.finish(marker)?;
        self.group.shared.store.write_changes(&changes)?;
        self.group.totals.lock().add(grown);
        Ok((result, events))
    }

    /// A refused command leaves nothing but the fate of its body.
    fn run<'a>(
        &'a self,
        (edit, held): (&mut Edit<'a>, &'a Held),
        hints: &mut Hints,
        command: &Command,
        body_len: Option<u64>,
    ) -> Result<Result<Outcome, MailError>, StorageError> {
        match apply::run(edit, hints, command, body_len) {
            Ok(outcome) => Ok(Ok(outcome)),
            Err(Fault::Storage(error)) => Err(error),
            Err(Fault::Mail(refused)) => {
                *edit = Edit::new(self.group.latest(held), edit.index, edit.stamp);
                match apply::discard_body(edit, command, body_len) {
                    Ok(()) => Ok(Err(refused)),
                    Err(Fault::Storage(error)) => Err(error),
                    Err(Fault::Mail(error)) => Ok(Err(error)),
                }
            }
        }
    }
}
