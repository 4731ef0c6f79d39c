//! What each command does. Deterministic: everything comes from the command, its stamp, its index and the state.

use bytes::Bytes;
use types::{
    AccountId, Flags, InternalDate, MailError, MailboxId, MailboxName, ModSeq, Quota, SpecialUse, SystemFlags, Uid,
    UidSet, UidValidity,
};

use super::Hints;
use super::command::{BodySource, Command, Recipient, StoreAction};
use super::edit::{Edit, Fault, Step};
use super::mailbox::{flags_of, keyword_table, system};
use super::moving;
use super::outcome::{Delivered, Outcome};
use super::quota::usage_of;
use super::read;
use super::remains;
use super::sweep;
use super::wire::special_use_number;
use crate::error::StorageError;
use crate::keys::{Kind, printable, u64_at};
use crate::planted::{Bug, planted};
use crate::records::{FingerprintRecord, MailboxRecord, MessageRecord, encode, encode_bytes};
use crate::store::Family;

pub(crate) fn run(edit: &mut Edit<'_>, hints: &mut Hints, command: &Command, body_len: Option<u64>) -> Step<Outcome> {
    match command {
        Command::Chunk { upload } => {
            edit.add_chunk(*upload, body_len)?;
            hints.uploads_from = hints.uploads_from.min(edit.unix_ms());
            sweep::uploads(edit, hints)?;
            return Ok(Outcome::Done);
        }
        Command::Deliver { recipients, body, digest, date, settle: earlier } => {
            settle(edit, earlier)?;
            let outcome = deliver(edit, hints, recipients, (body, body_len), digest, *date)?;
            sweep::fingerprints(edit, hints)?;
            sweep::uploads(edit, hints)?;
            return Ok(outcome);
        }
        Command::Append { account, mailbox, flags, date, body, digest, quota } => {
            let owner = (*account, *quota);
            let outcome = append(edit, owner, mailbox, flags, *date, (body, body_len), digest)?;
            sweep::uploads(edit, hints)?;
            return Ok(outcome);
        }
        Command::Import { account, id, bringer, parts, body, digest } => {
            let body = body.as_ref().map(|source| (source, digest));
            return moving::import(edit, hints, (*account, *id, *bringer), parts, body, body_len);
        }
        _ => {}
    }
    discard_own_body(edit, body_len);
    match command {
        Command::Chunk { .. } | Command::Deliver { .. } | Command::Append { .. } | Command::Import { .. } => {
            Ok(Outcome::Done)
        }
        Command::MoveAccount { account, id, step } => moving::step(edit, *account, *id, *step),
        Command::DropUpload { upload } => edit.drop_upload(*upload).map(|()| Outcome::Done),
        Command::Mark { .. } => Ok(Outcome::Done),
        Command::CreateAccount { account } => edit.account(*account).map(|_| Outcome::Done),
        Command::DropAccount { account } => drop_account(edit, *account),
        Command::ClearRemains { messages_max } => remains::clear(edit, *messages_max).map(|()| Outcome::Done),
        Command::Settle { fingerprints } => settle(edit, fingerprints),
        Command::CreateMailbox { account, name, special_use } => create(edit, *account, name, *special_use),
        Command::DeleteMailbox { account, name } => delete(edit, *account, name),
        Command::RenameMailbox { account, from, to } => rename(edit, *account, from, to),
        Command::Subscribe { account, name, on } => {
            edit.account(*account)?;
            edit.subscribe(*account, name, *on).map(|()| Outcome::Done)
        }
        Command::Store { account, mailbox, uids, action, flags, unchanged_since } => {
            edit.account(*account)?;
            store(edit, (*account, *mailbox), uids, *action, flags, *unchanged_since)
        }
        Command::Expunge { account, mailbox, uids, only_deleted } => {
            edit.account(*account)?;
            expunge(edit, (*account, *mailbox), uids.as_ref(), *only_deleted)
        }
        Command::Copy { account, from, uids, to, remove_source, messages_min, quota } => {
            edit.account(*account)?;
            let Some(to) = edit.mailbox_named(*account, to)? else { return Err(MailError::NoSuchMailbox.into()) };
            let source = if *remove_source { Source::Goes } else { Source::Stays(*quota) };
            copy(edit, *account, *from, to, (uids, *messages_min), source)
        }
    }
}

/// What is left of a command that was refused: its body belongs to nobody.
pub(crate) fn discard_body(edit: &mut Edit<'_>, command: &Command, body_len: Option<u64>) -> Step<()> {
    discard_own_body(edit, body_len);
    match command {
        Command::Deliver { body: BodySource::Upload(upload), .. }
        | Command::Import { body: Some(BodySource::Upload(upload)), .. }
        | Command::Append { body: BodySource::Upload(upload), .. } => edit.drop_upload(*upload),
        _ => Ok(()),
    }
}

pub(super) fn discard_own_body(edit: &mut Edit<'_>, body_len: Option<u64>) {
    if let Some(len) = body_len {
        edit.discard(&[crate::records::ChunkRecord { index: edit.index, len }]);
    }
}

fn new_message(edit: &mut Edit<'_>, body: u64, date: InternalDate) -> Step<MessageRecord> {
    let size = edit.body(body)?.size;
    Ok(MessageRecord {
        internal_unix_s: date.unix_s,
        internal_offset_min: i32::from(date.offset_min),
        save_unix_s: edit.stamp.unix_ms.div_euclid(1000),
        size,
        body,
        ..Default::default()
    })
}

fn deliver(
    edit: &mut Edit<'_>,
    hints: &mut Hints,
    recipients: &[Recipient],
    (source, body_len): (&BodySource, Option<u64>),
    digest: &Bytes,
    date: InternalDate,
) -> Step<Outcome> {
    let chunks = edit.take_body(source, body_len)?;
    let body = edit.create_body(chunks, digest);
    let mut delivered = Vec::with_capacity(recipients.len());
    for recipient in recipients {
        match deliver_to(edit, hints, recipient, body, date) {
            Ok(one) => delivered.push(Ok(one)),
            Err(Fault::Mail(refused)) => delivered.push(Err(refused)),
            Err(Fault::Storage(error)) => return Err(Fault::Storage(error)),
        }
    }
    Ok(Outcome::Delivered(delivered))
}

fn deliver_to(
    edit: &mut Edit<'_>,
    hints: &mut Hints,
    recipient: &Recipient,
    body: u64,
    date: InternalDate,
) -> Step<Delivered> {
    let account = recipient.account;
    edit.check_here(account)?;
    let stay = edit.known_account(account)?.map_or(0, |record| record.arrived_by);
    let key = edit.key(Kind::Fingerprint).bytes(&recipient.fingerprint).account(account).done();
    let seen = edit.record::<FingerprintRecord>(&key)?;
    if let Some(seen) = &seen
        && seen.stay == stay
        && !planted(Bug::SkipDuplicateCheck)
    {
        return Ok(Delivered {
            mailbox: MailboxId(seen.mailbox),
            uid: Uid(seen.uid),
            uid_validity: UidValidity(seen.uid_validity),
            duplicate: true,
        });
    }
    edit.account(account)?;
    let Some(mailbox) = edit.mailbox_named(account, &MailboxName::inbox())? else {
        return Err(MailError::NoSuchMailbox.into());
    };
    let message = new_message(edit, body, date)?;
    // Before anything of this recipient's is changed: a refusal leaves those of the others.
    edit.check_quota(account, recipient.quota, usage_of([&message]))?;
    let uid = edit.add_message(account, mailbox, message)?;
    let uid_validity = edit.mailbox(account, mailbox)?.record.uid_validity;
    let record = FingerprintRecord { mailbox: mailbox.0, uid, uid_validity, unix_ms: edit.unix_ms(), stay };
    put_fingerprint(edit, hints, (&recipient.fingerprint, account), &record, seen.as_ref());
    Ok(Delivered { mailbox, uid: Uid(uid), uid_validity: UidValidity(uid_validity), duplicate: false })
}

/// Remembers where a delivery went, in the place of what was remembered of it `before`.
pub(super) fn put_fingerprint(
    edit: &mut Edit<'_>,
    hints: &mut Hints,
    (fingerprint, account): (&[u8; 32], AccountId),
    record: &FingerprintRecord,
    before: Option<&FingerprintRecord>,
) {
    let time = |unix_ms: u64| edit.key(Kind::FingerprintTime).u64(unix_ms).bytes(fingerprint).account(account).done();
    let (old, new) = (before.map(|before| time(before.unix_ms)), time(record.unix_ms));
    let key = edit.key(Kind::Fingerprint).bytes(fingerprint).account(account).done();
    if let Some(old) = old {
        edit.delete(old);
    }
    edit.put(key, encode(record));
    edit.put(new, encode_bytes(b""));
    hints.fingerprints_from = hints.fingerprints_from.min(record.unix_ms);
}

fn settle(edit: &mut Edit<'_>, fingerprints: &[[u8; 32]]) -> Step<Outcome> {
    for fingerprint in fingerprints {
        let mut found = Vec::new();
        edit.view.scan(edit.key(Kind::Fingerprint).bytes(fingerprint), |key, value| {
            let record: FingerprintRecord = crate::records::decode(Family::State, key, value)?;
            found.push((key.to_vec(), record.unix_ms, u64_at(key, 37).unwrap_or(0)));
            Ok(true)
        })?;
        for (key, unix_ms, account) in found {
            edit.delete(key);
            let time = edit.key(Kind::FingerprintTime).u64(unix_ms).bytes(fingerprint).u64(account).done();
            edit.delete(time);
        }
    }
    Ok(Outcome::Done)
}

fn append(
    edit: &mut Edit<'_>,
    (account, quota): (AccountId, Quota),
    name: &MailboxName,
    flags: &Flags,
    date: InternalDate,
    (source, body_len): (&BodySource, Option<u64>),
    digest: &Bytes,
) -> Step<Outcome> {
    edit.account(account)?;
    let Some(mailbox) = edit.mailbox_named(account, name)? else { return Err(MailError::NoSuchMailbox.into()) };
    let keywords = edit.mailbox(account, mailbox)?.keyword_bits(&flags.keywords)?;
    let chunks = edit.take_body(source, body_len)?;
    let body = edit.create_body(chunks, digest);
    let mut message = new_message(edit, body, date)?;
    message.system = u32::from(flags.system.bits());
    message.set_keywords(keywords);
    edit.check_quota(account, quota, usage_of([&message]))?;
    let uid = edit.add_message(account, mailbox, message)?;
    let uid_validity = edit.mailbox(account, mailbox)?.record.uid_validity;
    let mod_seq = ModSeq(edit.mod_seq(account));
    Ok(Outcome::Appended { mailbox, uid: Uid(uid), uid_validity: UidValidity(uid_validity), mod_seq })
}

fn drop_account(edit: &mut Edit<'_>, account: AccountId) -> Step<Outcome> {
    if !edit.account_exists(account)? {
        return Ok(Outcome::Done);
    }
    edit.account(account)?;
    for (id, _) in read::mailbox_records(&edit.view, account)? {
        edit.remove_mailbox(account, id)?;
    }
    for kind in [Kind::Name, Kind::Mailbox, Kind::Subscription] {
        edit.delete_all(edit.key(kind).account(account));
    }
    edit.forget_account(account);
    Ok(Outcome::Done)
}

fn create(
    edit: &mut Edit<'_>,
    account: AccountId,
    name: &MailboxName,
    special_use: Option<SpecialUse>,
) -> Step<Outcome> {
    edit.account(account)?;
    if edit.mailbox_named(account, name)?.is_some() {
        return Err(MailError::MailboxExists.into());
    }
    if special_use.is_some() {
        // One mailbox a use, so that clients agree on where Sent is (RFC 6154 §3).
        let number = special_use_number(special_use);
        let on_disk = read::mailbox_records(&edit.view, account)?;
        let fresh = edit.mailboxes.iter().filter(|((owner, _), _)| *owner == account).map(|(_, one)| &one.record);
        if on_disk.iter().map(|(_, record)| record).chain(fresh).any(|record| record.special_use == number) {
            return Err(MailError::CannotDo("another mailbox has that special use".to_owned()).into());
        }
    }
    create_parents(edit, account, name)?;
    edit.create_mailbox(account, name, special_use).map(Outcome::MailboxCreated)
}

/// RFC 9051 §6.3.4: superior names come into being with the mailbox.
fn create_parents(edit: &mut Edit<'_>, account: AccountId, name: &MailboxName) -> Step<()> {
    let mut missing = Vec::new();
    let mut level = name.parent();
    while let Some(parent) = level {
        if edit.mailbox_named(account, &parent)?.is_some() {
            break;
        }
        level = parent.parent();
        missing.push(parent);
    }
    for parent in missing.into_iter().rev() {
        edit.create_mailbox(account, &parent, None)?;
    }
    Ok(())
}

/// RFC 9051 §6.3.5: inferior mailboxes stay, and their superior remains a name without a mailbox.
fn delete(edit: &mut Edit<'_>, account: AccountId, name: &MailboxName) -> Step<Outcome> {
    edit.account(account)?;
    if name.is_inbox() {
        return Err(MailError::CannotDo("INBOX cannot be deleted".to_owned()).into());
    }
    let Some(id) = edit.mailbox_named(account, name)? else {
        return Err(match read::names_under(&edit.view, account, name)?.as_slice() {
            [] => MailError::NoSuchMailbox.into(),
            _ => MailError::CannotDo("there is no mailbox of that name, only below it".to_owned()).into(),
        });
    };
    edit.remove_mailbox(account, id)?;
    edit.delete_name(account, name);
    Ok(Outcome::Done)
}

/// RFC 9051 §6.3.6. A renamed mailbox keeps its UIDVALIDITY, which no other mailbox of the account ever had. A name
/// that stands only above others, such as DELETE leaves, is renamed with them and stays without a mailbox.
fn rename(edit: &mut Edit<'_>, account: AccountId, from: &MailboxName, to: &MailboxName) -> Step<Outcome> {
    edit.account(account)?;
    let own = edit.mailbox_named(account, from)?;
    let below = read::names_under(&edit.view, account, from)?;
    if own.is_none() && below.is_empty() {
        return Err(MailError::NoSuchMailbox.into());
    }
    if edit.mailbox_named(account, to)?.is_some() {
        return Err(MailError::MailboxExists.into());
    }
    if let (true, Some(id)) = (from.is_inbox(), own) {
        // Its messages move to a new mailbox; INBOX stays, empty, and so do its inferiors.
        create_parents(edit, account, to)?;
        let new = edit.create_mailbox(account, to, None)?;
        copy(edit, account, id, new, (&UidSet::from_range(1, u32::MAX), 0), Source::Goes)?;
        return Ok(Outcome::Done);
    }
    if to.is_under(from) {
        return Err(MailError::CannotDo("a mailbox cannot be renamed into itself".to_owned()).into());
    }
    let mut renamed: Vec<_> = own.map(|id| (id, from.clone(), to.clone())).into_iter().collect();
    for (child, name) in below {
        let rest = name.as_str().strip_prefix(from.as_str()).unwrap_or_default();
        let new = MailboxName::parse(&format!("{to}{rest}"))
            .map_err(|error| MailError::CannotDo(format!("an inferior mailbox would get an invalid name: {error}")))?;
        renamed.push((child, name, new));
    }
    for (_, _, new) in &renamed {
        if edit.mailbox_named(account, new)?.is_some() {
            return Err(MailError::MailboxExists.into());
        }
    }
    create_parents(edit, account, to)?;
    for (id, old, new) in renamed {
        edit.delete_name(account, &old);
        edit.put_name(account, &new, id);
        let mailbox = edit.mailbox(account, id)?;
        mailbox.record.name = new.as_str().to_owned();
        mailbox.dirty = true;
    }
    Ok(Outcome::Done)
}

fn store(
    edit: &mut Edit<'_>,
    (account, id): (AccountId, MailboxId),
    uids: &UidSet,
    action: StoreAction,
    flags: &Flags,
    unchanged_since: Option<ModSeq>,
) -> Step<Outcome> {
    let mailbox = edit.mailbox(account, id)?;
    let bits = match action {
        StoreAction::Add | StoreAction::Replace => mailbox.keyword_bits(&flags.keywords)?,
        StoreAction::Remove => mailbox.known_keyword_bits(&flags.keywords),
    };
    let key = edit.key(Kind::Mailbox).mailbox(account, id).done();
    let table = keyword_table(&key, &edit.mailbox(account, id)?.record)?;
    let (mut changed, mut modified) = (Vec::new(), UidSet::new());
    for (uid, mut message) in edit.messages(account, id, uids)? {
        if unchanged_since.is_some_and(|since| message.mod_seq > since.0) {
            modified.insert(uid);
            continue;
        }
        let before = (system(&message), message.keywords());
        let after = match action {
            StoreAction::Add => (before.0.union(flags.system), before.1 | bits),
            StoreAction::Remove => (before.0.without(flags.system), before.1 & !bits),
            StoreAction::Replace => (flags.system, bits),
        };
        if after != before {
            edit.flag_message(account, id, uid, &mut message, after)?;
        }
        let key = || edit.key(Kind::Message).mailbox(account, id).u32(uid).done();
        changed.push((Uid(uid), flags_of(key, &table, &message)?, ModSeq(message.mod_seq)));
    }
    let mod_seq = current_mod_seq(edit, account, id)?;
    Ok(Outcome::Stored { changed, modified, mod_seq })
}

/// Of those of a set that are there: the flags and modseq that they have.
pub(crate) fn stored(
    edit: &mut Edit<'_>,
    account: AccountId,
    id: MailboxId,
    uids: &UidSet,
) -> Step<Vec<(Uid, Flags, ModSeq)>> {
    let key = edit.key(Kind::Mailbox).mailbox(account, id).done();
    let table = match edit.mailbox(account, id) {
        Ok(mailbox) => keyword_table(&key, &mailbox.record)?,
        // Deleted since.
        Err(Fault::Mail(_)) => return Ok(Vec::new()),
        Err(fault) => return Err(fault),
    };
    let mut found = Vec::new();
    for (uid, message) in edit.messages(account, id, uids)? {
        let key = || edit.key(Kind::Message).mailbox(account, id).u32(uid).done();
        found.push((Uid(uid), flags_of(key, &table, &message)?, ModSeq(message.mod_seq)));
    }
    Ok(found)
}

fn expunge(
    edit: &mut Edit<'_>,
    (account, id): (AccountId, MailboxId),
    uids: Option<&UidSet>,
    only_deleted: bool,
) -> Step<Outcome> {
    edit.mailbox(account, id)?;
    let with = if only_deleted { SystemFlags::DELETED } else { SystemFlags::NONE };
    let among = uids.cloned().unwrap_or_else(|| UidSet::from_range(1, u32::MAX));
    let target = read::collect_pages(&edit.view, account, id, &among, with, SystemFlags::NONE)?.intersection(&among);
    let mut gone = UidSet::new();
    for (uid, message) in edit.messages(account, id, &target)? {
        edit.remove_message(account, id, uid, &message)?;
        gone.insert(uid);
    }
    if gone != target {
        let key = edit.key(Kind::Page).mailbox(account, id).done();
        let reason = format!("pages and messages differ on {}", target.difference(&gone));
        return Err(StorageError::corrupt(printable(Family::State, &key), reason).into());
    }
    let mod_seq = current_mod_seq(edit, account, id)?;
    Ok(Outcome::Expunged { uids: gone, mod_seq })
}

/// What becomes of the messages that are copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The account holds more then, if its quota allows.
    Stays(Quota),
    /// They are moved: nothing is added.
    Goes,
}

/// Copies share the body. A moved message is a new one in the other mailbox, as RFC 6851 §3.3 has it.
fn copy(
    edit: &mut Edit<'_>,
    account: AccountId,
    from: MailboxId,
    to: MailboxId,
    (uids, messages_min): (&UidSet, u64),
    source: Source,
) -> Step<Outcome> {
    let source_key = edit.key(Kind::Mailbox).mailbox(account, from).done();
    let table = keyword_table(&source_key, &edit.mailbox(account, from)?.record)?;
    let save_unix_s = edit.stamp.unix_ms.div_euclid(1000);
    let (mut copied, mut new) = (UidSet::new(), UidSet::new());
    let messages = edit.messages(account, from, uids)?;
    if (messages.len() as u64) < messages_min {
        return Err(MailError::MessagesGone.into());
    }
    if let Source::Stays(quota) = source {
        // All or nothing (RFC 3501 §6.4.7).
        edit.check_quota(account, quota, usage_of(messages.iter().map(|(_, message)| message)))?;
    }
    for (uid, message) in messages {
        let key = || edit.key(Kind::Message).mailbox(account, from).u32(uid).done();
        let flags = flags_of(key, &table, &message)?;
        let mut copy = MessageRecord { save_unix_s, ..message.clone() };
        copy.set_keywords(edit.mailbox(account, to)?.keyword_bits(&flags.keywords)?);
        new.insert(edit.add_message(account, to, copy)?);
        if source == Source::Goes {
            edit.remove_message(account, from, uid, &message)?;
        }
        copied.insert(uid);
    }
    let target: &MailboxRecord = &edit.mailbox(account, to)?.record;
    let uid_validity = UidValidity(target.uid_validity);
    let mod_seq = current_mod_seq(edit, account, to)?;
    Ok(Outcome::Copied { from: copied, to: new, uid_validity, to_mailbox: to, mod_seq })
}

/// The mailbox's highest modseq when this command is done.
fn current_mod_seq(edit: &mut Edit<'_>, account: AccountId, id: MailboxId) -> Step<ModSeq> {
    let now = edit.mod_seq(account);
    let mailbox = edit.mailbox(account, id)?;
    let changed = !mailbox.changed.is_empty() || !mailbox.vanished.is_empty();
    Ok(ModSeq(if changed { now } else { mailbox.record.mod_seq }))
}
