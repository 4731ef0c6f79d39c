//! Requests that were done already: a caller that lost the answer asks again under the same id, and is told what it was
//! told then, refusals included. Kept for a while by the commands' own stamps, so all replicas agree.

use bytes::Bytes;
use prost::Message;
use types::{AccountId, MailError, MailboxId, ModSeq, Uid, UidSet, UidValidity};

use super::Hints;
use super::apply;
use super::command::Command;
use super::edit::{Edit, Step};
use super::moved::MovedRequest;
use super::outcome::Outcome;
use super::sweep;
use super::wire::{flat, ranges, u128_of};
use crate::error::StorageError;
use crate::group::View;
use crate::keys::{Key, Kind, printable, u128_at};
use crate::planted::{Bug, planted};
use crate::records::{decode, encode, encode_bytes};
use crate::store::Family;

/// Callers ask again for some seconds; then nobody does.
pub(crate) const REQUEST_AGE_MS: u64 = 10 * 60 * 1000;
/// More than the one that a command adds, so that they cannot pile up.
const REQUESTS_PER_COMMAND: usize = 4;

/// What a command answered. Flags of messages are not kept: they are read again.
#[derive(Clone, PartialEq, Message)]
struct RequestRecord {
    #[prost(uint64, tag = "1")]
    account: u64,
    /// Which command it was, by [`number`].
    #[prost(uint32, tag = "2")]
    command: u32,
    #[prost(message, optional, tag = "3")]
    refused: Option<RefusedRecord>,
    #[prost(uint64, tag = "4")]
    mailbox: u64,
    #[prost(uint32, tag = "5")]
    uid: u32,
    #[prost(uint32, tag = "6")]
    uid_validity: u32,
    #[prost(uint64, tag = "7")]
    mod_seq: u64,
    /// Stored: changed and left alone. Expunged: the gone. Copied: from and to. Flat pairs of first and last.
    #[prost(uint32, repeated, tag = "8")]
    uids: Vec<u32>,
    #[prost(uint32, repeated, tag = "9")]
    others: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct RefusedRecord {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    text: String,
}

/// That a record can be read.
pub(crate) fn check(key: &[u8], value: &[u8]) -> Result<(), StorageError> {
    decode::<RequestRecord>(Family::State, key, value).map(drop)
}

/// The commands that callers repeat; 0 for the others. The numbers are the disk format.
fn number(command: &Command) -> u32 {
    match command {
        Command::Append { .. } => 1,
        Command::CreateMailbox { .. } => 2,
        Command::DeleteMailbox { .. } => 3,
        Command::RenameMailbox { .. } => 4,
        Command::Subscribe { .. } => 5,
        Command::Store { .. } => 6,
        Command::Expunge { .. } => 7,
        Command::Copy { .. } => 8,
        Command::Chunk { .. }
        | Command::DropUpload { .. }
        | Command::Mark { .. }
        | Command::MoveAccount { .. }
        | Command::Import { .. }
        | Command::CreateAccount { .. }
        | Command::DropAccount { .. }
        | Command::ClearRemains { .. }
        | Command::Deliver { .. }
        | Command::Settle { .. } => 0,
    }
}

fn key(edit: &Edit<'_>, request: u128) -> Key {
    edit.key(Kind::Request).u128(request)
}

/// What the request was answered when it was done; None if it is new. 0 is no id.
pub(crate) fn known(edit: &mut Edit<'_>, request: u128, command: &Command) -> Step<Option<Result<Outcome, MailError>>> {
    if request == 0 || number(command) == 0 || planted(Bug::SkipDuplicateCheck) {
        return Ok(None);
    }
    let key = key(edit, request).done();
    let Some(record) = edit.record::<RequestRecord>(&key)? else { return Ok(None) };
    let owner = command.account().map_or(0, |account| account.0);
    if (record.account, record.command) != (owner, number(command)) {
        return Ok(Some(Err(MailError::Invalid("the request id belongs to another request".to_owned()))));
    }
    if let Some(refused) = &record.refused {
        return Ok(Some(Err(refused.error())));
    }
    let damaged = || StorageError::corrupt(printable(Family::State, &key), "not a set of UIDs");
    let set = |ends: &[u32]| -> Result<UidSet, StorageError> {
        let mut set = UidSet::new();
        for (first, last) in ranges(ends).ok_or_else(damaged)? {
            set.insert_range(first, last);
        }
        Ok(set)
    };
    let (uids, others) = (set(&record.uids)?, set(&record.others)?);
    let (mailbox, mod_seq) = (MailboxId(record.mailbox), ModSeq(record.mod_seq));
    let uid_validity = UidValidity(record.uid_validity);
    let outcome = match command {
        Command::Append { .. } => Outcome::Appended { mailbox, uid: Uid(record.uid), uid_validity, mod_seq },
        Command::CreateMailbox { .. } => Outcome::MailboxCreated(mailbox),
        Command::Store { account, mailbox, .. } => {
            let changed = apply::stored(edit, *account, *mailbox, &uids)?;
            Outcome::Stored { changed, modified: others, mod_seq }
        }
        Command::Expunge { .. } => Outcome::Expunged { uids, mod_seq },
        Command::Copy { .. } => Outcome::Copied { from: uids, to: others, uid_validity, to_mailbox: mailbox, mod_seq },
        Command::DeleteMailbox { .. }
        | Command::RenameMailbox { .. }
        | Command::Subscribe { .. }
        | Command::Chunk { .. }
        | Command::DropUpload { .. }
        | Command::Mark { .. }
        | Command::MoveAccount { .. }
        | Command::Import { .. }
        | Command::CreateAccount { .. }
        | Command::DropAccount { .. }
        | Command::ClearRemains { .. }
        | Command::Deliver { .. }
        | Command::Settle { .. } => Outcome::Done,
    };
    Ok(Some(Ok(outcome)))
}

/// Keeps what a new request is answered.
pub(crate) fn remember(
    edit: &mut Edit<'_>,
    hints: &mut Hints,
    request: u128,
    command: &Command,
    answer: &Result<Outcome, MailError>,
) -> Step<()> {
    if request == 0 || number(command) == 0 {
        return Ok(());
    }
    let account = command.account().unwrap_or(AccountId(0)).0;
    let mut record = RequestRecord { account, command: number(command), ..RequestRecord::default() };
    match answer {
        Err(error) => match RefusedRecord::of(error) {
            Some(refused) => record.refused = Some(refused),
            None => return Ok(()),
        },
        Ok(Outcome::Appended { mailbox, uid, uid_validity, mod_seq }) => {
            (record.mailbox, record.uid) = (mailbox.0, uid.0);
            (record.uid_validity, record.mod_seq) = (uid_validity.0, mod_seq.0);
        }
        Ok(Outcome::MailboxCreated(mailbox)) => record.mailbox = mailbox.0,
        Ok(Outcome::Stored { changed, modified, mod_seq }) => {
            let mut uids = UidSet::new();
            changed.iter().for_each(|(uid, ..)| uids.insert(uid.0));
            (record.uids, record.others, record.mod_seq) = (flat(&uids), flat(modified), mod_seq.0);
        }
        Ok(Outcome::Expunged { uids, mod_seq }) => (record.uids, record.mod_seq) = (flat(uids), mod_seq.0),
        Ok(Outcome::Copied { from, to, uid_validity, to_mailbox, mod_seq }) => {
            (record.uids, record.others) = (flat(from), flat(to));
            (record.mailbox, record.uid_validity, record.mod_seq) = (to_mailbox.0, uid_validity.0, mod_seq.0);
        }
        Ok(Outcome::Done | Outcome::Delivered(_) | Outcome::Placed(_)) => {}
    }
    put(edit, hints, (request, edit.unix_ms()), encode(&record));
    Ok(())
}

fn put(edit: &mut Edit<'_>, hints: &mut Hints, (request, unix_ms): (u128, u64), record: Bytes) {
    let (own, time) = (key(edit, request).done(), edit.key(Kind::RequestTime).u64(unix_ms).u128(request).done());
    edit.put(own, record);
    edit.put(time, encode_bytes(b""));
    hints.requests_from = hints.requests_from.min(unix_ms);
}

/// Remembers what another shard was asked for, of an account that comes from there.
pub(super) fn bring(edit: &mut Edit<'_>, hints: &mut Hints, part: &MovedRequest) -> Step<()> {
    let request = u128_of(&part.request).ok_or_else(|| MailError::Invalid("not a request id".to_owned()))?;
    let record = RequestRecord::decode(&part.record[..]).map_err(|error| MailError::Invalid(error.to_string()))?;
    // It is known here where the account has been here before. Each shard has a clock of its own, and forgets by that.
    if edit.get(&key(edit, request).done())?.is_none() {
        let now = edit.unix_ms();
        put(edit, hints, (request, now), encode(&record));
    }
    Ok(())
}

/// What is kept of a request, if it is the account's.
pub(super) fn record_of(view: &View<'_>, account: AccountId, request: u128) -> Result<Option<Bytes>, StorageError> {
    let key = view.key(Kind::Request).u128(request).done();
    let Some(value) = view.get(&key)? else { return Ok(None) };
    let record: RequestRecord = decode(Family::State, &key, &value)?;
    Ok((record.account == account.0).then(|| record.encode_to_vec().into()))
}

/// With every command, so that they end also where deliveries are all that comes.
pub(crate) fn forget_old(edit: &mut Edit<'_>, hints: &mut Hints) -> Step<()> {
    let cutoff = edit.unix_ms().saturating_sub(REQUEST_AGE_MS);
    for time in sweep::older(edit, Kind::RequestTime, &mut hints.requests_from, cutoff, REQUESTS_PER_COMMAND)? {
        if let Some(request) = u128_at(&time, 13) {
            let own = key(edit, request).done();
            edit.delete(own);
        }
        edit.delete(time);
    }
    Ok(())
}

impl RefusedRecord {
    /// None for what may be otherwise at the next attempt, such as an upload that was lost.
    fn of(error: &MailError) -> Option<RefusedRecord> {
        let (kind, text) = match error {
            MailError::NoSuchAccount => (1, ""),
            MailError::NoSuchMailbox => (2, ""),
            MailError::MailboxExists => (3, ""),
            MailError::MailboxGone => (4, ""),
            MailError::OverQuota => (5, ""),
            MailError::Limit(text) => (6, text.as_str()),
            MailError::Invalid(text) => (7, text.as_str()),
            MailError::CannotDo(text) => (8, text.as_str()),
            MailError::MessagesGone => (9, ""),
            MailError::NotLeader { .. }
            | MailError::NotHere
            | MailError::Unavailable
            | MailError::Deadline
            | MailError::Busy
            | MailError::DiskFull
            | MailError::InUse
            | MailError::Corrupt { .. }
            | MailError::Denied
            | MailError::Internal(_) => return None,
        };
        Some(RefusedRecord { kind, text: text.to_owned() })
    }

    fn error(&self) -> MailError {
        match self.kind {
            1 => MailError::NoSuchAccount,
            2 => MailError::NoSuchMailbox,
            3 => MailError::MailboxExists,
            4 => MailError::MailboxGone,
            5 => MailError::OverQuota,
            6 => MailError::Limit(self.text.clone()),
            7 => MailError::Invalid(self.text.clone()),
            8 => MailError::CannotDo(self.text.clone()),
            9 => MailError::MessagesGone,
            kind => MailError::Internal(format!("a request was refused for reason {kind}, which is not known")),
        }
    }
}
