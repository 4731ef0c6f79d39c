//! Reading mailboxes. Each call sees one moment; what spans calls is held together by MODSEQ.

use std::sync::Arc;

use bytes::Bytes;
use types::{
    AccountId, InternalDate, Keyword, MailError, MailResult, MailboxId, MailboxName, ModSeq, SystemFlags, Uid, UidSet,
    UidValidity,
};

use super::ShardState;
use super::edit::mailbox_id;
use super::mailbox::{flags_of, keyword_table};
use super::outcome::{AccountTotals, BodyId, Changes, MailboxInfo, MessageMeta, Selection};
use super::page::{self, Page};
use super::wire::{ranges, special_use_of};
use crate::error::StorageError;
use crate::group::{Held, View};
use crate::half::Half;
use crate::keys::{Kind, log_key, prefix_range, printable, u32_at, u64_at};
use crate::reading::Iter;
use crate::records::{
    AccountRecord, BodyRecord, ChangeRecord, ChunkRecord, MailboxRecord, MessageRecord, decode, payload,
};
use crate::store::Family;

/// Between two wanted messages that are this near, stepping over the others is cheaper than a seek.
const STEPS_PER_SEEK: u32 = 16;

impl ShardState {
    pub fn account_exists(&self, account: AccountId) -> Result<bool, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        Ok(view.get(&view.key(Kind::Account).account(account).done())?.is_some())
    }

    /// Zero for an account that does not exist.
    pub fn account_totals(&self, account: AccountId) -> Result<AccountTotals, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let record: Option<AccountRecord> = view.record(&view.key(Kind::Account).account(account).done())?;
        Ok(record.map_or_else(AccountTotals::default, |record| AccountTotals {
            mailboxes: record.mailboxes,
            messages: record.messages,
            bytes: record.bytes,
        }))
    }

    /// In the order of their names.
    pub fn mailboxes(&self, account: AccountId) -> Result<Vec<MailboxInfo>, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let mut all = mailbox_records(&view, account)?
            .into_iter()
            .map(|(id, record)| info(&view, account, id, record))
            .collect::<Result<Vec<_>, _>>()?;
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// In the order of the names; mailboxes that do not exist are among them (RFC 9051 §6.3.7).
    pub fn subscriptions(&self, account: AccountId) -> Result<Vec<MailboxName>, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let mut names = Vec::new();
        view.scan(view.key(Kind::Subscription).account(account), |key, _| {
            names.push(name_in(key)?);
            Ok(true)
        })?;
        Ok(names)
    }

    pub fn mailbox(&self, account: AccountId, name: &MailboxName) -> Result<Option<MailboxInfo>, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let key = view.key(Kind::Name).account(account).bytes(name.as_str().as_bytes()).done();
        let Some(value) = view.get(&key)? else { return Ok(None) };
        let id = mailbox_id(&key, &value)?;
        match mailbox_record(&view, account, id)? {
            Some(record) => info(&view, account, id, record).map(Some),
            None => Err(StorageError::corrupt(printable(Family::State, &key), "names a mailbox that is not there")),
        }
    }

    pub fn mailbox_by_id(&self, account: AccountId, id: MailboxId) -> Result<Option<MailboxInfo>, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let record = mailbox_record(&view, account, id)?;
        record.map(|record| info(&view, account, id, record)).transpose()
    }

    /// All that SELECT tells, from the mailbox's record and its pages: one small record for each 1,024 UIDs.
    pub fn select(&self, account: AccountId, id: MailboxId) -> MailResult<Selection> {
        if let Ok(selection) = self.select_once(account, id)? {
            return Ok(selection);
        }
        // One of the two may have been read elsewhere, as of a later moment, for it is damaged here.
        Ok(self.select_once(account, id)??)
    }

    /// The inner error: they do not agree.
    fn select_once(&self, account: AccountId, id: MailboxId) -> MailResult<Result<Selection, StorageError>> {
        let held = Held::default();
        let view = self.view(&held)?;
        let record = mailbox_record(&view, account, id)?.ok_or(MailError::MailboxGone)?;
        let last = uid_last(&record);
        let info = info(&view, account, id, record)?;
        let mut uids = UidSet::new();
        let mut unseen = UidSet::new();
        each_page(&view, account, id, (0, last), |number, page| {
            page.collect(number, SystemFlags::NONE, SystemFlags::NONE, &mut uids);
            if unseen.is_empty() {
                page.collect(number, SystemFlags::NONE, SystemFlags::SEEN, &mut unseen);
            }
        })?;
        if uids.len() != u64::from(info.messages) {
            let key = view.key(Kind::Mailbox).mailbox(account, id).done();
            let reason = format!("counts {} messages, its pages {}", info.messages, uids.len());
            return Ok(Err(StorageError::corrupt(printable(Family::State, &key), reason)));
        }
        Ok(Ok(Selection { info, uids, first_unseen: unseen.first().map(Uid) }))
    }

    /// Messages that have all of `with` and none of `without`, from the pages alone.
    pub fn flagged(
        &self,
        account: AccountId,
        id: MailboxId,
        with: SystemFlags,
        without: SystemFlags,
    ) -> MailResult<UidSet> {
        let held = Held::default();
        let view = self.view(&held)?;
        let record = mailbox_record(&view, account, id)?.ok_or(MailError::MailboxGone)?;
        let last = uid_last(&record);
        if last == 0 {
            return Ok(UidSet::new());
        }
        Ok(collect_pages(&view, account, id, &UidSet::from_range(1, last), with, without)?)
    }

    /// Visits the messages of a set that exist, in ascending order, until the visitor answers false.
    pub fn messages(
        &self,
        account: AccountId,
        id: MailboxId,
        uids: &UidSet,
        mut visit: impl FnMut(MessageMeta) -> bool,
    ) -> MailResult<()> {
        let held = Held::default();
        let view = self.view(&held)?;
        let record = mailbox_record(&view, account, id)?.ok_or(MailError::MailboxGone)?;
        let table = keyword_table(&view.key(Kind::Mailbox).mailbox(account, id).done(), &record)?;
        let mut failed = None;
        scan_messages(&view, account, id, uids, |uid, message| {
            let key = || view.key(Kind::Message).mailbox(account, id).u32(uid).done();
            match meta(key, &table, uid, &message) {
                Ok(meta) => visit(meta),
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        })?;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// What happened in a mailbox after a modseq.
    pub fn changes(&self, account: AccountId, id: MailboxId, since: ModSeq) -> MailResult<Changes> {
        let held = Held::default();
        let view = self.view(&held)?;
        let record = mailbox_record(&view, account, id)?.ok_or(MailError::MailboxGone)?;
        let highest = ModSeq(record.mod_seq);
        if since.0 < record.changes_after {
            return Ok(Changes { changed: UidSet::new(), vanished: UidSet::new(), complete: false, highest });
        }
        let prefix = view.key(Kind::Change).mailbox(account, id);
        let from = prefix.clone().u64(since.0.saturating_add(1)).done();
        let (_, to) = prefix_range(&prefix.done());
        let (mut changed, mut vanished) = (Vec::new(), Vec::new());
        view.scan_range((from, to), |key, value| {
            let record: ChangeRecord = decode(Family::State, key, value)?;
            let damaged = || StorageError::corrupt(printable(Family::State, key), "not a set of UIDs");
            changed.extend(ranges(&record.changed).ok_or_else(damaged)?);
            vanished.extend(ranges(&record.vanished).ok_or_else(damaged)?);
            Ok(true)
        })?;
        let vanished = sorted(vanished);
        let changed = sorted(changed).difference(&vanished);
        Ok(Changes { changed, vanished, complete: true, highest })
    }

    /// What was computed of a body when it came. `None` when no message refers to it any more.
    pub fn digest(&self, body: BodyId) -> Result<Option<Bytes>, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let key = view.key(Kind::Digest).u64(body.0).done();
        match view.get(&key)? {
            Some(value) => Ok(Some(Bytes::copy_from_slice(payload(Family::State, &key, &value)?))),
            None if body_record(&view, body)?.is_none() => Ok(None),
            None => Err(StorageError::corrupt(printable(Family::State, &key), "missing")),
        }
    }

    /// The pieces of a body in order: log index and length. `None` when no message refers to it any more.
    pub fn body_chunks(&self, body: BodyId) -> Result<Option<Vec<(u64, u64)>>, StorageError> {
        let record = body_record(&self.view(&Held::default())?, body)?;
        Ok(record.map(|record| record.chunks.iter().map(|chunk| (chunk.index, chunk.len)).collect()))
    }

    /// The bytes of a body from `offset`, at most `len` of them, read from the chunks that hold them. `None` when no
    /// message refers to the body any more.
    pub fn body_range(&self, body: BodyId, offset: u64, len: u64) -> Result<Option<Vec<Bytes>>, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let Some(record) = body_record(&view, body)? else { return Ok(None) };
        let found = chunks_in(&record.chunks, record.size, offset, len, |index| {
            let key = log_key(self.group.id, index);
            let bytes = view.get_in(Family::Blob, &key)?;
            bytes.ok_or_else(|| StorageError::corrupt(printable(Family::Blob, &key), "missing"))
        });
        found.map(Some)
    }
}

/// The bytes of a body of `size` from `offset`, at most `len` of them, by its chunks.
pub(crate) fn chunks_in(
    chunks: &[ChunkRecord],
    size: u64,
    offset: u64,
    len: u64,
    read: impl Fn(u64) -> Result<Bytes, StorageError>,
) -> Result<Vec<Bytes>, StorageError> {
    let end = offset.saturating_add(len).min(size);
    let (mut start, mut found) = (0u64, Vec::new());
    if end <= offset {
        return Ok(found);
    }
    for chunk in chunks {
        let next = start.saturating_add(chunk.len);
        if next > offset && start < end {
            let bytes = read(chunk.index)?;
            if bytes.len() as u64 != chunk.len {
                return Err(StorageError::corrupt(format!("blob at log index {}", chunk.index), "wrong length"));
            }
            let from = offset.saturating_sub(start) as usize;
            let to = (end.min(next) - start) as usize;
            found.push(bytes.slice(from..to));
        }
        start = next;
    }
    Ok(found)
}

pub(crate) fn body_record(view: &View<'_>, body: BodyId) -> Result<Option<BodyRecord>, StorageError> {
    view.record(&view.key(Kind::Body).u64(body.0).done())
}

fn sorted(mut ranges: Vec<(u32, u32)>) -> UidSet {
    ranges.sort_unstable();
    ranges.into_iter().collect()
}

fn mailbox_record(view: &View<'_>, account: AccountId, id: MailboxId) -> Result<Option<MailboxRecord>, StorageError> {
    view.record(&view.key(Kind::Mailbox).mailbox(account, id).done())
}

/// Every mailbox of an account, in the order of their ids.
pub(crate) fn mailbox_records(
    view: &View<'_>,
    account: AccountId,
) -> Result<Vec<(MailboxId, MailboxRecord)>, StorageError> {
    let mut all = Vec::new();
    view.scan(view.key(Kind::Mailbox).account(account), |key, value| {
        let id = u64_at(key, 13).ok_or_else(|| StorageError::corrupt(printable(Family::State, key), "short key"))?;
        all.push((MailboxId(id), decode(Family::State, key, value)?));
        Ok(true)
    })?;
    Ok(all)
}

/// The mailboxes below a name.
pub(crate) fn names_under(
    view: &View<'_>,
    account: AccountId,
    name: &MailboxName,
) -> Result<Vec<(MailboxId, MailboxName)>, StorageError> {
    let mut all = Vec::new();
    let prefix = format!("{name}{}", MailboxName::SEPARATOR);
    view.scan(view.key(Kind::Name).account(account).bytes(prefix.as_bytes()), |key, value| {
        all.push((mailbox_id(key, value)?, name_in(key)?));
        Ok(true)
    })?;
    Ok(all)
}

/// The name in the key of a name or a subscription.
pub(super) fn name_in(key: &[u8]) -> Result<MailboxName, StorageError> {
    let text = std::str::from_utf8(key.get(13..).unwrap_or_default()).ok();
    let name = text.and_then(|text| MailboxName::parse(text).ok());
    name.ok_or_else(|| StorageError::corrupt(printable(Family::State, key), "not a mailbox name"))
}

fn info(
    view: &View<'_>,
    account: AccountId,
    id: MailboxId,
    record: MailboxRecord,
) -> Result<MailboxInfo, StorageError> {
    let key = view.key(Kind::Mailbox).mailbox(account, id).done();
    let damaged = |reason: &str| StorageError::corrupt(printable(Family::State, &key), reason);
    Ok(MailboxInfo {
        id,
        name: MailboxName::parse(&record.name).map_err(|_| damaged("not a mailbox name"))?,
        special_use: special_use_of(record.special_use).ok_or_else(|| damaged("unknown special use"))?,
        uid_validity: UidValidity(record.uid_validity),
        uid_next: u32::try_from(record.uid_next).ok().map(Uid),
        highest_mod_seq: ModSeq(record.mod_seq),
        messages: record.messages,
        unseen: record.unseen,
        deleted: record.deleted,
        bytes: record.bytes,
        keywords: keyword_table(&key, &record)?,
    })
}

fn meta(
    key: impl FnOnce() -> Vec<u8>,
    table: &[Keyword],
    uid: u32,
    message: &MessageRecord,
) -> Result<MessageMeta, StorageError> {
    Ok(MessageMeta {
        uid: Uid(uid),
        flags: flags_of(key, table, message)?,
        mod_seq: ModSeq(message.mod_seq),
        internal_date: InternalDate {
            unix_s: message.internal_unix_s,
            offset_min: i16::try_from(message.internal_offset_min).unwrap_or(0),
        },
        save_date: InternalDate::utc(message.save_unix_s),
        size: message.size,
        body: BodyId(message.body),
    })
}

/// The greatest UID that was given out, 0 if none: no page lies behind it.
fn uid_last(record: &MailboxRecord) -> u32 {
    u32::try_from(record.uid_next.saturating_sub(1)).unwrap_or(u32::MAX)
}

fn each_page(
    view: &View<'_>,
    account: AccountId,
    id: MailboxId,
    (first, last): (u32, u32),
    mut visit: impl FnMut(u32, &Page),
) -> Result<(), StorageError> {
    let prefix = view.key(Kind::Page).mailbox(account, id);
    let from = prefix.clone().u32(page::number(first)).done();
    let to = match page::number(last).checked_add(1) {
        Some(next) => prefix.u32(next).done(),
        None => prefix_range(&prefix.done()).1,
    };
    view.scan_range((from, to), |key, value| {
        let number =
            u32_at(key, 21).ok_or_else(|| StorageError::corrupt(printable(Family::State, key), "short key"))?;
        visit(number, &Page::decode(key, value)?);
        Ok(true)
    })
}

/// UIDs by the pages that a set touches. The set only bounds the pages.
pub(crate) fn collect_pages(
    view: &View<'_>,
    account: AccountId,
    id: MailboxId,
    among: &UidSet,
    with: SystemFlags,
    without: SystemFlags,
) -> Result<UidSet, StorageError> {
    let mut found = UidSet::new();
    let Some((first, last)) = among.first().zip(among.last()) else { return Ok(found) };
    each_page(view, account, id, (first, last), |number, page| page.collect(number, with, without, &mut found))?;
    Ok(found)
}

/// Message records of a set in ascending order: one scan where the set is dense, seeks where it is sparse.
pub(crate) fn scan_messages(
    view: &View<'_>,
    account: AccountId,
    id: MailboxId,
    uids: &UidSet,
    mut visit: impl FnMut(u32, MessageRecord) -> bool,
) -> Result<(), StorageError> {
    let prefix = view.key(Kind::Message).mailbox(account, id);
    let seek_key = |uid: u32| prefix.clone().u32(uid).done();
    let (_, end) = prefix_range(&prefix.clone().done());
    let mut at: Option<u32> = None;
    let mut other: Option<Arc<Half>> = None;
    loop {
        let before = at;
        let half = other.clone();
        let iterator = match &half {
            None => view.iterator(end.clone()),
            Some(half) => half.iterator(None, Family::State, end.clone()),
        };
        let broken = match iterator {
            Ok(iterator) => walk_messages(iterator, seek_key, uids, &mut at, &mut visit)?,
            Err(error) => Some(error),
        };
        let Some(error) = broken else { return Ok(()) };
        // The rest from the other half of a mirror, or back from the first, if there is any progress.
        let next = view.elsewhere_than(half.as_deref(), &error);
        match next {
            Some(next) if other.is_none() || at > before => other = Some(next),
            _ => {
                // Neither can be walked on from here: a single record may be read all the same.
                let Some(uid) = next_uid(uids, at) else { return Ok(()) };
                let key = seek_key(uid);
                // What was met first tells the place.
                let record: Option<MessageRecord> = view.record(&key).map_err(|_| error)?;
                (at, other) = (Some(uid), None);
                if record.is_some_and(|record| !visit(uid, record)) {
                    return Ok(());
                }
            }
        }
    }
}

/// The first UID of a set behind one.
fn next_uid(uids: &UidSet, behind: Option<u32>) -> Option<u32> {
    let least = behind.map_or(Some(0), |uid| uid.checked_add(1))?;
    uids.ranges().iter().find(|(_, last)| *last >= least).map(|(first, _)| least.max(*first))
}

/// From behind the UID that it was at. Answers the error that broke it off.
fn walk_messages(
    mut iterator: Iter<'_>,
    seek_key: impl Fn(u32) -> Vec<u8>,
    uids: &UidSet,
    at: &mut Option<u32>,
    mut visit: impl FnMut(u32, MessageRecord) -> bool,
) -> Result<Option<StorageError>, StorageError> {
    let visited = *at;
    let mut here: Option<u32> = None;
    let broken = |iterator: &Iter<'_>, uid: u32| {
        let error = iterator.status().err();
        error.map(|error| StorageError::read(|| printable(Family::State, &seek_key(uid)), &error))
    };
    for &(first, last) in uids.ranges() {
        let first = visited.map_or(first, |uid| first.max(uid.saturating_add(1)));
        if first > last || visited == Some(u32::MAX) {
            continue;
        }
        match here {
            Some(uid) if uid >= first => {}
            Some(uid) if first - uid <= STEPS_PER_SEEK => {
                while iterator.valid() && iterator.key().and_then(|key| u32_at(key, 21)).is_some_and(|uid| uid < first)
                {
                    iterator.next();
                }
            }
            _ => iterator.seek(seek_key(first)),
        }
        loop {
            let Some((key, value)) = iterator.item() else {
                return Ok(broken(&iterator, first));
            };
            let uid =
                u32_at(key, 21).ok_or_else(|| StorageError::corrupt(printable(Family::State, key), "short key"))?;
            here = Some(uid);
            if uid > last {
                break;
            }
            if !visit(uid, decode(Family::State, key, value)?) {
                return Ok(None);
            }
            *at = Some(uid);
            iterator.next();
        }
    }
    Ok(broken(&iterator, here.unwrap_or(0)))
}

/// How many state records of the current space are of one kind; for tests of the design.
#[doc(hidden)]
impl ShardState {
    pub fn page_count(&self, account: AccountId, id: MailboxId) -> Result<usize, StorageError> {
        let mut pages = 0;
        each_page(&self.view(&Held::default())?, account, id, (0, u32::MAX), |_, _| pages += 1)?;
        Ok(pages)
    }
}
