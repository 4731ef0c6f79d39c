//! What the commands of an account's move do. At most one of its two shards serves the account:
//!
//! ```text
//! source   here ── Freeze ──► frozen ── Leave ──► leaving ──► gone      the directory has it at the target
//!                                │
//!                                └───── Thaw ──► here                   the move is undone
//! target   nothing, gone ── Begin ──► coming ── Complete ──► whole ── Admit ──► here
//!                                        └──────── Leave ──────┴──► leaving ──► gone
//! ```
//!
//! Each step names its move, and the record keeps the number of the last one: so steps may be repeated, and what comes late
//! of a move that is over does nothing.

use bytes::Bytes;
use types::{AccountId, MailError, MailboxId, MailboxName, UidSet};

use super::command::BodySource;
use super::edit::{CHANGES_KEPT, Edit, Fault, Step};
use super::mailbox::{MailboxEdit, system};
use super::moved::{MoveStep, MovedFingerprint, MovedMailbox, MovedMessage, MovedPart, MovedPass, Place, Whereabouts};
use super::outcome::Outcome;
use super::wire::{flat, special_use_of};
use super::{Hints, apply, read, remains, requests};
use crate::error::StorageError;
use crate::keys::{Key, Kind, printable};
use crate::records::{AccountRecord, ChangeRecord, FingerprintRecord, MailboxRecord, MessageRecord, encode};
use crate::store::Family;

/// Messages that one step drops: some milliseconds of work.
const LEAVING_MESSAGES: usize = 1_000;

pub(crate) fn has_gone(record: &AccountRecord) -> bool {
    record.place == Place::Gone as u32
}

pub(super) fn whereabouts(
    key: impl FnOnce() -> Key,
    record: Option<&AccountRecord>,
) -> Result<Whereabouts, StorageError> {
    let Some(record) = record else { return Ok(Whereabouts::default()) };
    let damaged = || StorageError::corrupt(printable(Family::State, &key().done()), "unknown place");
    let place = Place::of(record.place).ok_or_else(damaged)?;
    Ok(Whereabouts { place, move_id: record.move_id, mod_seq_last: record.mod_seq_last })
}

fn stands(edit: &Edit<'_>, account: AccountId) -> Step<Whereabouts> {
    let record = edit.known_account(account)?;
    Ok(whereabouts(|| edit.key(Kind::Account).account(account), record.as_ref())?)
}

pub(crate) fn step(edit: &mut Edit<'_>, account: AccountId, id: u64, step: MoveStep) -> Step<Outcome> {
    let exists = edit.account_exists(account)?;
    let Whereabouts { place, move_id, .. } = stands(edit, account)?;
    let (is_this, is_new) = (move_id == id, move_id < id);
    match (step, place) {
        (MoveStep::Freeze, Place::Here) if is_new => {
            edit.account(account)?;
            let mod_seq_last = edit.mod_seq(account);
            let record = edit.account(account)?;
            (record.place, record.move_id, record.mod_seq_last) = (Place::Frozen as u32, id, mod_seq_last);
        }
        (MoveStep::Thaw, Place::Frozen) if is_this => edit.account(account)?.place = Place::Here as u32,
        // It was never frozen, and is not to be any more.
        (MoveStep::Thaw, Place::Here) if is_new => edit.account(account)?.move_id = id,
        (MoveStep::Leave, Place::Frozen | Place::Coming | Place::Whole | Place::Leaving) if is_this => {
            leave(edit, account, id)?;
        }
        // Nothing has come, and nothing is to come any more.
        (MoveStep::Leave, Place::Here | Place::Gone) if is_new && (place == Place::Gone || !exists) => {
            edit.put_account(account, gone(id))?;
        }
        (MoveStep::Begin { bringer }, Place::Here | Place::Gone) if is_new && (place == Place::Gone || !exists) => {
            let place = Place::Coming as u32;
            edit.put_account(account, AccountRecord { place, move_id: id, bringer, ..AccountRecord::default() })?;
        }
        (MoveStep::Begin { bringer }, Place::Coming) if is_this => edit.account(account)?.bringer = bringer,
        (MoveStep::Complete { bringer, mod_seq_last }, Place::Coming) if is_this => {
            let record = edit.account(account)?;
            if record.bringer == bringer {
                (record.place, record.mod_seq_last) = (Place::Whole as u32, mod_seq_last);
            }
        }
        (MoveStep::Admit, Place::Whole) if is_this => {
            let index = edit.index;
            let record = edit.account(account)?;
            (record.place, record.arrived_by, record.bringer) = (Place::Here as u32, id, 0);
            // Invariant: what changes from now on has a greater modseq than all that came.
            record.mod_seq_base = record.mod_seq_last.saturating_sub(index);
            edit.list_changed(account);
        }
        // It has come about already, or is not to any more.
        (
            MoveStep::Freeze
            | MoveStep::Thaw
            | MoveStep::Leave
            | MoveStep::Begin { .. }
            | MoveStep::Complete { .. }
            | MoveStep::Admit,
            _,
        ) => {}
    }
    stands(edit, account).map(Outcome::Placed)
}

fn gone(id: u64) -> AccountRecord {
    AccountRecord { place: Place::Gone as u32, move_id: id, ..AccountRecord::default() }
}

/// Drops some of an account's messages; once none is left, all but the number of the move.
fn leave(edit: &mut Edit<'_>, account: AccountId, id: u64) -> Step<()> {
    let record = edit.account(account)?;
    record.place = Place::Leaving as u32;
    // From behind what went before: its tombstones would have to be stepped over.
    let (left_mailbox, left_uid) = (MailboxId(record.left_mailbox), record.left_uid);
    let mut room = LEAVING_MESSAGES;
    for (mailbox, _) in read::mailbox_records(&edit.view, account)? {
        let first = match mailbox == left_mailbox {
            _ if mailbox < left_mailbox => continue,
            true => left_uid.saturating_add(1),
            false => 1,
        };
        let mut some = Vec::new();
        read::scan_messages(&edit.view, account, mailbox, &UidSet::from_range(first, u32::MAX), |uid, message| {
            some.push((uid, message));
            some.len() < room
        })?;
        room -= some.len();
        let last = some.last().map_or(left_uid, |(uid, _)| *uid);
        for (uid, message) in some {
            edit.release(message.body)?;
            let totals = edit.account(account)?;
            totals.messages = totals.messages.saturating_sub(1);
            totals.bytes = totals.bytes.saturating_sub(message.size);
            let key = edit.key(Kind::Message).mailbox(account, mailbox).u32(uid).done();
            edit.puts.delete(Family::State, key);
        }
        if room == 0 {
            let record = edit.account(account)?;
            (record.left_mailbox, record.left_uid) = (mailbox.0, last);
            return Ok(());
        }
    }
    for kind in [Kind::Name, Kind::Mailbox, Kind::Subscription, Kind::Page, Kind::Change] {
        edit.delete_all(edit.key(kind).account(account));
    }
    edit.put_account(account, gone(id))
}

pub(crate) fn import(
    edit: &mut Edit<'_>,
    hints: &mut Hints,
    (account, id, bringer): (AccountId, u64, u64),
    parts: &[MovedPart],
    body: Option<(&BodySource, &Bytes)>,
    body_len: Option<u64>,
) -> Step<Outcome> {
    let is_expected =
        |record: &AccountRecord| (record.place, record.move_id, record.bringer) == (Place::Coming as u32, id, bringer);
    if !edit.known_account(account)?.is_some_and(|record| is_expected(&record)) {
        return Err(MailError::CannotDo("the account is not brought by this move any more".to_owned()).into());
    }
    let own = match body {
        Some((source, digest)) => {
            let chunks = edit.take_body(source, body_len)?;
            Some(edit.create_body(chunks, digest))
        }
        None => {
            apply::discard_own_body(edit, body_len);
            None
        }
    };
    for part in parts {
        match part {
            MovedPart::Account(part) => {
                let record = edit.account(account)?;
                record.mailbox_next = record.mailbox_next.max(part.mailbox_next);
                record.uid_validity_last = record.uid_validity_last.max(part.uid_validity_last);
            }
            MovedPart::Mailbox(part) => mailbox(edit, account, part)?,
            MovedPart::Message(part) => message(edit, account, part, own)?,
            MovedPart::Pass(part) => pass(edit, account, part)?,
            MovedPart::Gone(mailbox) => mailbox_gone(edit, account, MailboxId(*mailbox))?,
            MovedPart::Subscription(part) => edit.subscribe(account, &name(&part.name)?, part.on)?,
            MovedPart::Request(part) => requests::bring(edit, hints, part)?,
            MovedPart::Fingerprint(part) => fingerprint(edit, hints, (account, id), part)?,
        }
    }
    Ok(Outcome::Done)
}

fn invalid(what: &str) -> Fault {
    MailError::Invalid(what.to_owned()).into()
}

fn name(text: &str) -> Step<MailboxName> {
    MailboxName::parse(text).map_err(|error| invalid(&error.to_string()))
}

fn mailbox(edit: &mut Edit<'_>, account: AccountId, part: &MovedMailbox) -> Step<()> {
    let (id, new) = (MailboxId(part.id), name(&part.name)?);
    special_use_of(part.special_use).ok_or_else(|| invalid("unknown special use"))?;
    let before = match edit.mailbox(account, id) {
        Ok(mailbox) => Some(mailbox.record.clone()),
        Err(Fault::Mail(MailError::MailboxGone)) => None,
        Err(fault) => return Err(fault),
    };
    match &before {
        Some(before) if before.name != part.name => release_name(edit, account, id, &name(&before.name)?)?,
        Some(_) => {}
        // It has been here before: what is left of it has to go first.
        None if remains::are_of(edit, account, id)? => return Err(MailError::Busy.into()),
        None => {
            edit.account(account)?.mailboxes += 1;
            edit.mailboxes.insert((account, id), MailboxEdit::new(MailboxRecord::default()));
        }
    }
    let mailbox = edit.mailbox(account, id)?;
    mailbox.dirty = true;
    mailbox.record = MailboxRecord {
        name: part.name.clone(),
        uid_validity: part.uid_validity,
        uid_next: part.uid_next,
        keywords: part.keywords.clone(),
        special_use: part.special_use,
        ..std::mem::take(&mut mailbox.record)
    };
    edit.put_name(account, &new, id);
    Ok(())
}

/// Another mailbox may have got the name before this one gives it up: they come one after the other.
fn release_name(edit: &mut Edit<'_>, account: AccountId, id: MailboxId, old: &MailboxName) -> Step<()> {
    if edit.mailbox_named(account, old)? == Some(id) {
        edit.delete_name(account, old);
    }
    Ok(())
}

fn mailbox_gone(edit: &mut Edit<'_>, account: AccountId, id: MailboxId) -> Step<()> {
    let old = match edit.mailbox(account, id) {
        Ok(mailbox) => name(&mailbox.record.name)?,
        Err(Fault::Mail(MailError::MailboxGone)) => return Ok(()),
        Err(fault) => return Err(fault),
    };
    release_name(edit, account, id, &old)?;
    edit.remove_mailbox(account, id)
}

fn message(edit: &mut Edit<'_>, account: AccountId, part: &MovedMessage, own: Option<u64>) -> Step<()> {
    let id = MailboxId(part.mailbox);
    let found = |edit: &Edit<'_>, id: MailboxId, uid: u32| {
        edit.record::<MessageRecord>(&edit.key(Kind::Message).mailbox(account, id).u32(uid).done())
    };
    let before = found(edit, id, part.uid)?;
    let body = match (&before, part.body) {
        (Some(before), _) => before.body,
        (None, Some(body)) if body.uid != 0 => match found(edit, MailboxId(body.mailbox), body.uid)? {
            Some(other) => other.body,
            None => return Err(MailError::MessagesGone.into()),
        },
        (None, Some(_)) => own.ok_or_else(|| invalid("a message without its body"))?,
        (None, None) => return Err(MailError::MessagesGone.into()),
    };
    let new = MessageRecord {
        system: part.system,
        keywords_low: part.keywords_low,
        keywords_high: part.keywords_high,
        mod_seq: part.mod_seq,
        internal_unix_s: part.internal_unix_s,
        internal_offset_min: part.internal_offset_min,
        save_unix_s: part.save_unix_s,
        size: edit.body(body)?.size,
        body,
    };
    match before {
        None => edit.put_in(account, id, part.uid, &new),
        Some(before) if before == new => Ok(()),
        Some(before) => edit.put_over(account, id, part.uid, system(&before), &new),
    }
}

fn pass(edit: &mut Edit<'_>, account: AccountId, part: &MovedPass) -> Step<()> {
    let id = MailboxId(part.mailbox);
    let (changed, vanished) = part.sets().ok_or_else(|| invalid("not a set of UIDs"))?;
    for (uid, message) in edit.messages(account, id, &vanished)? {
        edit.take_out(account, id, uid, &message)?;
    }
    let mod_seq = part.mod_seq;
    let record = &mut edit.mailbox(account, id)?.record;
    if part.follows && record.changes < CHANGES_KEPT && record.mod_seq < mod_seq {
        record.changes += 1;
        let change = ChangeRecord { changed: flat(&changed), vanished: flat(&vanished) };
        let key = edit.key(Kind::Change).mailbox(account, id).u64(mod_seq).done();
        edit.put(key, encode(&change));
    } else if record.mod_seq < mod_seq {
        (record.changes, record.changes_after) = (0, mod_seq);
        edit.delete_all(edit.key(Kind::Change).mailbox(account, id));
    }
    let mailbox = edit.mailbox(account, id)?;
    mailbox.record.mod_seq = mod_seq;
    mailbox.dirty = true;
    Ok(())
}

fn fingerprint(
    edit: &mut Edit<'_>,
    hints: &mut Hints,
    (account, stay): (AccountId, u64),
    part: &MovedFingerprint,
) -> Step<()> {
    let fingerprint: &[u8; 32] = part.fingerprint[..].try_into().map_err(|_| invalid("not a fingerprint"))?;
    let key = edit.key(Kind::Fingerprint).bytes(fingerprint).account(account).done();
    let before = edit.record::<FingerprintRecord>(&key)?;
    let MovedFingerprint { mailbox, uid, uid_validity, .. } = *part;
    // By the clock of this shard, as it forgets.
    let unix_ms = edit.unix_ms();
    let record = FingerprintRecord { mailbox, uid, uid_validity, unix_ms, stay };
    apply::put_fingerprint(edit, hints, (fingerprint, account), &record, before.as_ref());
    Ok(())
}
