//! The promises, checked against a [`crate::History`]: pure, and near-linear but for the readings.
//!
//! For each mailbox and message there is a least and a greatest number of copies that a reading may show, by which
//! changes were acknowledged before it began and which were asked for before it ended. An operation without an answer
//! may have happened or not, but not twice.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Change, Entries, Operation, Outcome, Place, Reading, Seen, Status};

/// What is wrong, in words; empty: nothing.
pub fn check(entries: &Entries) -> Vec<String> {
    let mut faults = Vec::new();
    let index = Index::new(&entries.operations);
    for reading in &entries.readings {
        index.copies(reading, &mut faults);
        index.removed(reading, &mut faults);
        index.flags(reading, &mut faults);
        shape(reading, &mut faults);
    }
    identities(entries, &mut faults);
    counters(&entries.readings, &mut faults);
    order(entries, &mut faults);
    totals(entries, &mut faults);
    faults.sort();
    faults.dedup();
    faults
}

/// Operations by the mailbox that they touch.
struct Index<'a> {
    by_place: BTreeMap<&'a str, Vec<Effect<'a>>>,
}

#[derive(Clone, Copy)]
struct Effect<'a> {
    operation: &'a Operation,
    kind: Kind<'a>,
}

#[derive(Clone, Copy)]
enum Kind<'a> {
    /// `uid` and `value` where they are known.
    Adds {
        marker: &'a str,
        uid: Option<u32>,
        value: Option<u32>,
    },
    Removes {
        marker: &'a str,
        uid: u32,
    },
    Flags {
        uid: u32,
        value: u32,
    },
}

impl<'a> Index<'a> {
    fn new(operations: &'a [Operation]) -> Index<'a> {
        let mut by_place: BTreeMap<&str, Vec<Effect<'_>>> = BTreeMap::new();
        for operation in operations {
            let mut add = |place: &'a Place, kind| by_place.entry(place).or_default().push(Effect { operation, kind });
            match &operation.change {
                Change::Create { to, marker, uid } => add(to, Kind::Adds { marker, uid: *uid, value: Some(0) }),
                Change::Copy { to, marker, uid, value } => {
                    add(to, Kind::Adds { marker, uid: *uid, value: *value });
                }
                Change::Move { from, from_uid, to, marker, uid, value } => {
                    add(from, Kind::Removes { marker, uid: *from_uid });
                    add(to, Kind::Adds { marker, uid: *uid, value: *value });
                }
                Change::Expunge { from, uid, marker } => add(from, Kind::Removes { marker, uid: *uid }),
                Change::Flag { at, uid, value, .. } => add(at, Kind::Flags { uid: *uid, value: *value }),
            }
        }
        Index { by_place }
    }

    fn effects(&self, reading: &Reading) -> &[Effect<'a>] {
        self.by_place.get(reading.place.as_str()).map(Vec::as_slice).unwrap_or_default()
    }

    /// Acknowledged exactly once, unknown at most once, refused never, nothing that nobody sent.
    fn copies(&self, reading: &Reading, faults: &mut Vec<String>) {
        let mut bounds: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
        for Effect { operation, kind } in self.effects(reading) {
            let certain = operation.outcome == Outcome::Ok && operation.ended < reading.began;
            let possible = operation.outcome != Outcome::Refused && operation.began < reading.ended;
            match kind {
                Kind::Adds { marker, .. } => {
                    let (least, greatest) = bounds.entry(marker).or_default();
                    *least += i64::from(certain);
                    *greatest += i64::from(possible);
                }
                Kind::Removes { marker, .. } => {
                    let (least, greatest) = bounds.entry(marker).or_default();
                    *least -= i64::from(possible);
                    *greatest -= i64::from(certain);
                }
                Kind::Flags { .. } => {}
            }
        }
        let mut found: BTreeMap<&str, i64> = BTreeMap::new();
        for seen in reading.messages.values() {
            *found.entry(&seen.marker).or_default() += 1;
        }
        for marker in bounds.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
            let (least, greatest) = bounds.get(marker).copied().unwrap_or_default();
            let count = found.get(marker).copied().unwrap_or_default();
            let place = &reading.place;
            if count < least {
                faults.push(format!("lost: {marker} is in {place} {count} times, acknowledged {least}"));
            }
            if count > greatest {
                let what = if bounds.contains_key(marker) { "too often" } else { "never sent" };
                faults.push(format!("{what}: {marker} is in {place} {count} times, at most {greatest} were asked for"));
            }
        }
    }

    /// What was expunged or moved away is never seen again.
    fn removed(&self, reading: &Reading, faults: &mut Vec<String>) {
        for Effect { operation, kind } in self.effects(reading) {
            if let Kind::Removes { marker, uid } = kind
                && operation.outcome == Outcome::Ok
                && operation.ended < reading.began
                && reading.messages.contains_key(uid)
            {
                faults.push(format!("came back: {marker}, UID {uid} of {}, had been removed", reading.place));
            }
        }
    }

    /// The flags are those of the last acknowledged write, or of one whose outcome is open.
    fn flags(&self, reading: &Reading, faults: &mut Vec<String>) {
        let mut writes: BTreeMap<u32, Vec<(&Operation, u32)>> = BTreeMap::new();
        // Of what came with flags that were uncertain, nothing can be said before the first write.
        let mut at_first: BTreeMap<u32, Option<u32>> = BTreeMap::new();
        for Effect { operation, kind } in self.effects(reading) {
            match kind {
                Kind::Flags { uid, value } => writes.entry(*uid).or_default().push((operation, *value)),
                Kind::Adds { uid: Some(uid), value, .. } => {
                    at_first.insert(*uid, *value);
                    writes.entry(*uid).or_default();
                }
                Kind::Adds { uid: None, .. } | Kind::Removes { .. } => {}
            }
        }
        for (uid, writes) in writes {
            let Some(Seen { marker, value, .. }) = reading.messages.get(&uid) else { continue };
            let last = writes
                .iter()
                .filter(|(write, _)| write.outcome == Outcome::Ok && write.ended < reading.began)
                .max_by_key(|(write, _)| write.ended);
            let first = at_first.get(&uid).copied().flatten();
            let Some(wanted) = last.map(|(_, value)| *value).or(first) else { continue };
            let is_last = wanted == *value;
            let is_open = writes.iter().any(|(write, written)| {
                let done_before = write.outcome == Outcome::Ok && write.ended < reading.began;
                written == value && write.outcome != Outcome::Refused && write.began < reading.ended && !done_before
            });
            if !is_last && !is_open {
                faults.push(format!(
                    "flags: {marker}, UID {uid} of {}, has value {value}, {wanted} was acknowledged",
                    reading.place
                ));
            }
        }
    }
}

/// One reading by itself.
fn shape(reading: &Reading, faults: &mut Vec<String>) {
    let Reading { place, uid_validity, uid_next, highest_mod_seq, exists, status, messages, .. } = reading;
    for (uid, Seen { marker, intact, mod_seq, octets, size, .. }) in messages {
        if !intact {
            faults.push(format!("changed bytes: {marker}, UID {uid} of {place}"));
        }
        if octets != size {
            faults.push(format!("size: {marker}, UID {uid} of {place}, has {octets} octets and says {size}"));
        }
        if uid >= uid_next {
            faults.push(format!("UIDNEXT {uid_next} of {place} is not above UID {uid}"));
        }
        if mod_seq > highest_mod_seq {
            faults.push(format!("HIGHESTMODSEQ {highest_mod_seq} of {place} is below that of UID {uid}, {mod_seq}"));
        }
    }
    if messages.len() as u64 != u64::from(*exists) {
        faults.push(format!("counters: {place} says {exists} messages and shows {}", messages.len()));
    }
    let Some(said) = status else { return };
    let counted = Status {
        messages: messages.len() as u64,
        unseen: messages.values().filter(|message| !message.seen).count() as u64,
        uid_next: u64::from(*uid_next),
        uid_validity: u64::from(*uid_validity),
        highest_mod_seq: *highest_mod_seq,
    };
    if *said != counted {
        faults.push(format!("counters: STATUS of {place} says {said:?}, it is {counted:?}"));
    }
}

/// A UID is one message for ever, and answers agree with readings.
fn identities(entries: &Entries, faults: &mut Vec<String>) {
    let mut known: BTreeMap<(&str, u32), &str> = BTreeMap::new();
    let mut same = |place, uid, marker, faults: &mut Vec<String>| {
        let before = *known.entry((place, uid)).or_insert(marker);
        if before != marker {
            faults.push(format!("UID reused: {uid} of {place} was {before} and is {marker}"));
        }
    };
    for operation in entries.operations.iter().filter(|operation| operation.outcome == Outcome::Ok) {
        match &operation.change {
            Change::Create { to, marker, uid: Some(uid) }
            | Change::Copy { to, marker, uid: Some(uid), .. }
            | Change::Move { to, marker, uid: Some(uid), .. } => same(to.as_str(), *uid, marker.as_str(), faults),
            Change::Create { .. }
            | Change::Copy { .. }
            | Change::Move { .. }
            | Change::Expunge { .. }
            | Change::Flag { .. } => {}
        }
    }
    for reading in &entries.readings {
        for (uid, seen) in &reading.messages {
            same(&reading.place, *uid, &seen.marker, faults);
        }
    }
}

/// UIDVALIDITY stays; UIDNEXT and HIGHESTMODSEQ never go back, nor a message's MODSEQ.
fn counters(readings: &[Reading], faults: &mut Vec<String>) {
    let mut by_place: BTreeMap<&str, Vec<&Reading>> = BTreeMap::new();
    for reading in readings {
        by_place.entry(&reading.place).or_default().push(reading);
    }
    for (place, mut readings) in by_place {
        if readings.iter().any(|reading| reading.uid_validity != readings[0].uid_validity) {
            faults.push(format!("UIDVALIDITY of {place} has changed"));
        }
        // Against every reading that had ended before the other began: the greatest of them suffices.
        readings.sort_by_key(|reading| reading.began);
        let mut ended: Vec<&Reading> = readings.clone();
        ended.sort_by_key(|reading| reading.ended);
        let mut earlier = ended.into_iter().peekable();
        let (mut uid_next, mut mod_seq) = (0, 0);
        let mut of_message: BTreeMap<u32, u64> = BTreeMap::new();
        for reading in readings {
            while let Some(before) = earlier.next_if(|before| before.ended < reading.began) {
                uid_next = uid_next.max(before.uid_next);
                mod_seq = mod_seq.max(before.highest_mod_seq);
                for (uid, seen) in &before.messages {
                    let known = of_message.entry(*uid).or_default();
                    *known = seen.mod_seq.max(*known);
                }
            }
            if reading.uid_next < uid_next {
                faults.push(format!("UIDNEXT of {place} went back from {uid_next} to {}", reading.uid_next));
            }
            if reading.highest_mod_seq < mod_seq {
                faults.push(format!("HIGHESTMODSEQ of {place} went back from {mod_seq}"));
            }
            for (uid, seen) in &reading.messages {
                if of_message.get(uid).is_some_and(|before| seen.mod_seq < *before) {
                    faults.push(format!("MODSEQ of UID {uid} of {place} went back"));
                }
            }
        }
    }
}

/// Acknowledged before the other was asked for means the smaller UID.
fn order(entries: &Entries, faults: &mut Vec<String>) {
    // Where an answer told no UID, readings do, if the marker is in that mailbox under one UID alone.
    let mut read: BTreeMap<(&str, &str), BTreeSet<u32>> = BTreeMap::new();
    for reading in &entries.readings {
        for (uid, seen) in &reading.messages {
            read.entry((&reading.place, &seen.marker)).or_default().insert(*uid);
        }
    }
    let mut by_place: BTreeMap<&str, Vec<(u32, &Operation, &str)>> = BTreeMap::new();
    for operation in entries.operations.iter().filter(|operation| operation.outcome == Outcome::Ok) {
        let (to, marker, uid) = match &operation.change {
            Change::Create { to, marker, uid }
            | Change::Copy { to, marker, uid, .. }
            | Change::Move { to, marker, uid, .. } => (to, marker, uid),
            Change::Expunge { .. } | Change::Flag { .. } => continue,
        };
        let only = || {
            let uids = read.get(&(to.as_str(), marker.as_str()))?;
            uids.first().copied().filter(|_| uids.len() == 1)
        };
        if let Some(uid) = uid.or_else(only) {
            by_place.entry(to).or_default().push((uid, operation, marker));
        }
    }
    for (place, mut created) in by_place {
        created.sort_by_key(|(uid, ..)| *uid);
        let mut latest: Option<(u64, &str)> = None;
        for (uid, operation, marker) in created {
            if let Some((began, before)) = latest
                && operation.ended < began
            {
                faults.push(format!("order: {marker} of {place} was acknowledged before {before} was sent, and has the greater UID {uid}"));
            }
            if latest.is_none_or(|(began, _)| operation.began > began) {
                latest = Some((operation.began, marker));
            }
        }
    }
}

/// After a last reading of every mailbox: a message that was moved is in one of the two, counted over all mailboxes.
fn totals(entries: &Entries, faults: &mut Vec<String>) {
    let mut last: BTreeMap<&str, &Reading> = BTreeMap::new();
    for reading in &entries.readings {
        let newest = last.entry(&reading.place).or_insert(reading);
        if reading.began > newest.began {
            *newest = reading;
        }
    }
    let quiet = entries.operations.iter().map(|operation| operation.ended).max().unwrap_or(0);
    if last.values().any(|reading| reading.began < quiet) {
        return;
    }
    let mut bounds: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for operation in &entries.operations {
        let (certain, possible) =
            (i64::from(operation.outcome == Outcome::Ok), i64::from(operation.outcome != Outcome::Refused));
        match &operation.change {
            Change::Create { marker, .. } | Change::Copy { marker, .. } => {
                let (least, greatest) = bounds.entry(marker).or_default();
                *least += certain;
                *greatest += possible;
            }
            Change::Expunge { marker, .. } => {
                let (least, greatest) = bounds.entry(marker).or_default();
                *least -= possible;
                *greatest -= certain;
            }
            Change::Move { .. } | Change::Flag { .. } => {}
        }
    }
    let mut found: BTreeMap<&str, i64> = BTreeMap::new();
    for reading in last.values() {
        for seen in reading.messages.values() {
            *found.entry(&seen.marker).or_default() += 1;
        }
    }
    for (marker, (least, greatest)) in bounds {
        let count = found.get(marker).copied().unwrap_or_default();
        if count < least || count > greatest {
            faults.push(format!("over all mailboxes {marker} is there {count} times, {least} to {greatest} expected"));
        }
    }
}

#[cfg(test)]
mod tests;
