//! Which records there may be in a place of a group's state that cannot be read, by what the rest of it says: what a mailbox had
//! that is no more is no loss.
//!
//! Invariants: no page or change is of a mailbox without a record, and a message of one is its remains. A mailbox counts its
//! changes, an account its subscriptions.

use super::cursor::View;
use super::merge::Records;
use crate::group::SpaceRecord;
use crate::keys::{Key, Kind, META_SPACE, prefix_range, u32_at, u64_at};
use crate::piecemeal::{self, KEYS_MAX};
use crate::records::{AccountRecord, MailboxRecord, decode};
use crate::state::page_number;
use crate::store::Family;

/// Records that are looked at to tell what there is.
const RECORDS_MAX: usize = 20_000;
/// Of a mailbox's records, space, kind, account and mailbox.
const PREFIX: usize = 21;

type Range = (Vec<u8>, Vec<u8>);

/// Whether the messages of a mailbox that is no more count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Remains {
    Count,
    /// Nobody reads them again.
    Left,
}

/// Every key that a record may have from `from` on and before `to`. `None` where that cannot be told.
pub(crate) fn keys_between(views: &[View<'_>], (from, to): (&[u8], &[u8]), remains: Remains) -> Option<Vec<Vec<u8>>> {
    let place = Place { views, space: u32_at(from, 0)?, gap: (from, to) };
    let (first, last) = (*from.get(4)?, *to.get(4)?);
    if u32_at(to, 0)? != place.space || !place.is_of_state()? {
        return None;
    }
    let mut keys = Vec::new();
    for byte in first..=last {
        let kind = Kind::from_byte(byte)?;
        let (begin, end) = prefix_range(&Key::state(place.space, kind).done());
        let range = (begin.max(from.to_vec()), end.min(to.to_vec()));
        if range.0 >= range.1 {
            continue;
        }
        if kind == Kind::Message && remains == Remains::Count && !place.of_kind(Kind::Remains, &range)?.is_empty() {
            return None;
        }
        keys.extend(match kind {
            Kind::Message | Kind::Page | Kind::Change => place.of_mailboxes(kind, &range)?,
            Kind::Subscription => place.no_subscriptions(&range)?,
            _ => piecemeal::keys_between(Family::State, &range.0, &range.1)?,
        });
        if keys.len() as u64 > KEYS_MAX {
            return None;
        }
    }
    Some(keys)
}

struct Place<'a> {
    views: &'a [View<'a>],
    space: u32,
    gap: (&'a [u8], &'a [u8]),
}

impl Place<'_> {
    /// Whether the space is a group's state, and not one that a snapshot is being written to.
    fn is_of_state(&self) -> Option<bool> {
        let spaces = self.records(Family::Meta, (vec![META_SPACE], vec![META_SPACE + 1]))?;
        let own = |(key, value): &(Vec<u8>, Vec<u8>)| decode::<SpaceRecord>(Family::Meta, key, value).ok();
        Some(spaces.iter().filter_map(own).any(|record| record.space == self.space))
    }

    fn of_mailboxes(&self, kind: Kind, (from, to): &Range) -> Option<Vec<Vec<u8>>> {
        let mut keys = Vec::new();
        for (key, value) in self.of_kind(Kind::Mailbox, &(from.clone(), to.clone()))? {
            let record: MailboxRecord = decode(Family::State, &key, &value).ok()?;
            let prefix = Key::state(self.space, kind).bytes(key.get(5..PREFIX)?);
            let whole = prefix_range(&prefix.clone().done());
            let is_apart = || whole.1 <= *from || whole.0 >= *to;
            let is_found = || match kind {
                Kind::Change => self.has(&whole) == Some(u64::from(record.changes)),
                _ => record.messages == 0,
            };
            if is_apart() || is_found() {
                continue;
            }
            let uid_last = u32::try_from(record.uid_next.saturating_sub(1)).unwrap_or(u32::MAX);
            let (first, last) = match kind {
                Kind::Change => {
                    (prefix.clone().u64(record.changes_after.saturating_add(1)), prefix.u64(record.mod_seq))
                }
                Kind::Page => (prefix.clone().u32(0), prefix.u32(page_number(uid_last))),
                _ => (prefix.clone().u32(1), prefix.u32(uid_last)),
            };
            let (first, behind) = (first.done().max(from.clone()), last.bytes(&[0]).done().min(to.clone()));
            if first < behind {
                keys.extend(piecemeal::keys_between(Family::State, &first, &behind)?);
            }
            if keys.len() as u64 > KEYS_MAX {
                return None;
            }
        }
        Some(keys)
    }

    /// The records of this kind of those mailboxes that may have others there.
    fn of_kind(&self, kind: Kind, (from, to): &Range) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let key = |place: &[u8]| {
            let mut ids = place.get(5..place.len().min(PREFIX)).unwrap_or_default().to_vec();
            ids.resize(PREFIX - 5, 0);
            Key::state(self.space, kind).bytes(&ids).done()
        };
        // Where it ends among other kinds' records every mailbox may have some.
        let is_within = to.get(4) == from.get(4);
        let end = if is_within { [&key(to)[..], &[0]].concat() } else { prefix_range(&key(from)[..5]).1 };
        self.records(Family::State, (key(from), end))
    }

    /// How many records can be read around the gap.
    fn has(&self, (from, to): &Range) -> Option<u64> {
        let before = (from.clone(), to.clone().min(self.gap.0.to_vec()));
        let behind = (from.clone().max(self.gap.1.to_vec()), to.clone());
        let count = |range: Range| {
            if range.0 < range.1 { Some(self.records(Family::State, range)?.len() as u64) } else { Some(0) }
        };
        Some(count(before)? + count(behind)?)
    }

    /// Where all accounts have as many as they count.
    fn no_subscriptions(&self, (from, to): &Range) -> Option<Vec<Vec<u8>>> {
        let first = u64_at(from, 5)?;
        let accounts =
            (Key::state(self.space, Kind::Account).u64(first).done(), Key::state(self.space, Kind::Name).done());
        for (key, value) in self.records(Family::State, accounts)? {
            let record: AccountRecord = decode(Family::State, &key, &value).ok()?;
            let own = prefix_range(&Key::state(self.space, Kind::Subscription).bytes(key.get(5..)?).done());
            if own.0 >= *to {
                break;
            }
            if self.has(&own)? != u64::from(record.subscriptions) {
                return None;
            }
        }
        Some(Vec::new())
    }

    /// Of a range, from the first copy that all of it can be read of.
    fn records(&self, family: Family, (from, to): Range) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        self.views.iter().find_map(|view| {
            let mut cursor = view.cursor(family, to.clone()).ok()?;
            let mut found: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            cursor.seek(&from);
            loop {
                match cursor.item() {
                    Ok(Some((key, value))) if found.len() < RECORDS_MAX => found.push((key.to_vec(), value.to_vec())),
                    Ok(Some(_)) => return None,
                    Ok(None) => return Some(found),
                    // The gap begins right behind the last of them: the walk has met it, too.
                    Err(_) if found.last().is_some_and(|(key, _)| is_right_behind(&to, key)) => return Some(found),
                    Err(_) => return None,
                }
                cursor.advance();
            }
        })
    }
}

/// Whether no key lies between.
fn is_right_behind(place: &[u8], key: &[u8]) -> bool {
    place.strip_prefix(key) == Some(&[0])
}
