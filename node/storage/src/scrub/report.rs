//! The report while it is written.

use std::collections::{BTreeMap, BTreeSet};

use super::cursor::View;
use super::merge::Records;
use super::verdict::{Judgement, Reading};
use super::{FINDINGS_MAX, Finding, HalfScrub, ScrubReport, Verdict};
use crate::error::StorageError;
use crate::faults::HalfName;
use crate::group::{Group, SpaceRecord};
use crate::keys::{
    GroupId, Kind, META_BEGUN, META_INSTALL, META_PURGED, META_SPACE, META_VOTE, log_key, meta_key, printable,
    space_range, u32_at, u64_at,
};
use crate::piecemeal::keys_between;
use crate::records::decode;
use crate::store::Family;

/// Bodies that are asked for one by one where the keys cannot be told.
const GAP_KEYS_MAX: u64 = 4096;

/// A half and its database's number.
pub(crate) type Name = (HalfName, u64);

pub(crate) struct Book {
    pub report: ScrubReport,
    /// Halves to be made anew, with how many places of theirs cannot be read.
    pub bad: BTreeMap<Name, u64>,
    groups: Vec<GroupId>,
    /// Groups in use: their logs' bounds are known.
    opened: Vec<Group>,
    only: Option<GroupId>,
    mirrored: bool,
    /// Whose a space is, and whether it is the group's state or one that a snapshot is being written to.
    spaces: BTreeMap<u32, (GroupId, bool)>,
    /// Places that cannot be read, while no record is known that lies there.
    places: BTreeMap<Name, (Vec<u8>, StorageError)>,
    /// Bodies without a good copy that nothing has been found to need so far, and their findings' places in the report.
    unneeded: BTreeMap<Vec<u8>, Option<usize>>,
    /// Groups with records that cannot be read, and that may need a body.
    blind: BTreeSet<GroupId>,
}

impl Book {
    pub(crate) fn new(opened: Vec<Group>, only: Option<GroupId>, mirrored: bool) -> Book {
        let (report, bad, spaces, places, unneeded, blind) = Default::default();
        let groups = opened.iter().map(Group::id).collect();
        Book { report, bad, groups, opened, only, mirrored, spaces, places, unneeded, blind }
    }

    /// Learns of groups and their spaces, from whichever half tells.
    pub(crate) fn read_spaces(&mut self, views: &[View<'_>]) {
        for (view, (name, current)) in
            views.iter().flat_map(|view| [(META_INSTALL, false), (META_SPACE, true)].map(|kind| (view, kind)))
        {
            let Ok(mut cursor) = view.cursor(Family::Meta, vec![name + 1]) else { continue };
            cursor.seek(&[name]);
            while let Ok(Some((key, value))) = cursor.item() {
                if let (Some(group), Ok(record)) = (u32_at(key, 1), decode::<SpaceRecord>(Family::Meta, key, value)) {
                    self.spaces.insert(record.space, (GroupId(group), current));
                    if !self.groups.contains(&GroupId(group)) {
                        self.groups.push(GroupId(group));
                    }
                }
                cursor.advance();
            }
        }
    }

    pub(crate) fn finished(mut self) -> ScrubReport {
        let is_clear = |group: &GroupId| self.report.complete && !self.blind.contains(group);
        let groups = self.unneeded.keys().filter_map(|body| Some((body.clone(), GroupId(u32_at(body, 0)?))));
        let doubtful: Vec<(Vec<u8>, GroupId)> = groups.filter(|(_, group)| !is_clear(group)).collect();
        doubtful.into_iter().for_each(|(body, group)| self.needs(&body, group));
        self.report.lost = self.report.losses.records();
        self.report.groups_lost = self.report.losses.by_group().into_keys().flatten().collect();
        for (space, (group, _)) in self.spaces.into_iter().filter(|(_, (_, current))| *current) {
            self.report.losses.found_in(group, space);
        }
        self.report
    }

    pub(crate) fn findings(&self) -> u64 {
        self.report.findings.len() as u64 + self.report.findings_beyond
    }

    pub(crate) fn count(&mut self, key: &[u8], readings: &[Reading<'_>], names: &[Name]) {
        let mut most = None;
        for (reading, name) in readings.iter().zip(names) {
            let Ok(Some(value)) = reading else { continue };
            let bytes = (key.len() + value.len()) as u64;
            let half = self.half(*name);
            half.records += 1;
            half.bytes += bytes;
            most = most.max(Some(bytes));
        }
        if let Some(bytes) = most {
            self.report.records += 1;
            self.report.bytes += bytes;
        }
    }

    fn half(&mut self, name: Name) -> &mut HalfScrub {
        let name = self.mirrored.then_some(name.0);
        let at = self.report.halves.iter().position(|half| half.name == name).unwrap_or(self.report.halves.len());
        if at == self.report.halves.len() {
            self.report.halves.push(HalfScrub { name, records: 0, bytes: 0, damaged: 0, missing: 0 });
        }
        &mut self.report.halves[at]
    }

    /// A half cannot be read on from here.
    pub(crate) fn broken(&mut self, name: Name, from: &[u8], error: StorageError) {
        *self.bad.entry(name).or_default() += 1;
        self.places.insert(name, (from.to_vec(), error));
    }

    pub(crate) fn judged(
        &mut self,
        family: Family,
        key: &[u8],
        readings: &[Reading<'_>],
        judgement: Judgement,
        names: &[Name],
        rewritten: bool,
    ) {
        for (reading, name) in readings.iter().zip(names) {
            if reading.is_err() {
                *self.bad.entry(*name).or_default() += 1;
                self.places.remove(name);
            }
        }
        self.report.rewritten += u64::from(rewritten);
        let (verdict, at, reason) = match judgement {
            Judgement::Good => return,
            Judgement::Damaged { at, reason } => (Verdict::Damaged, Some(at), reason),
            Judgement::Missing { at } => (Verdict::Missing, Some(at), "only the other half has it".to_owned()),
            Judgement::Differs => (Verdict::Differs, None, "both copies hold by themselves".to_owned()),
            // Until something turns out to need it.
            Judgement::Lost { reason } if family == Family::Blob => (Verdict::Unneeded, None, reason),
            Judgement::Lost { reason } => (Verdict::Lost, None, reason),
        };
        let name = at.and_then(|at| names.get(at)).copied();
        match (verdict, name) {
            (Verdict::Missing, Some(name)) => self.half(name).missing += 1,
            (Verdict::Damaged, Some(name)) => self.half(name).damaged += 1,
            (Verdict::Lost | Verdict::Unneeded, _) => names.iter().for_each(|name| self.half(*name).damaged += 1),
            _ => {}
        }
        let group = self.group_of(family, key);
        if verdict == Verdict::Lost {
            self.report.losses.add(group, printable(family, key));
            self.blind.extend(group);
        }
        let at = self.add(Finding {
            verdict,
            family: family.name(),
            key: printable(family, key),
            to: None,
            half: name.filter(|_| self.mirrored).map(|(name, _)| name),
            group,
            reason,
            rewritten,
        });
        if verdict == Verdict::Unneeded {
            self.unneeded.insert(key.to_vec(), at);
        }
    }

    /// Before a record that was come to: what the halves that have it could not read before it has ended.
    pub(crate) fn reached(&mut self, family: Family, key: &[u8], readings: &[Reading<'_>], names: &[Name]) {
        for (_, name) in readings.iter().zip(names).filter(|(reading, _)| reading.is_ok()) {
            self.place_told(family, Some(key), *name);
        }
    }

    /// What could not be read has ended before this key; nothing is known that lay there.
    fn place_told(&mut self, family: Family, to: Option<&[u8]>, name: Name) {
        let Some((from, error)) = self.places.remove(&name) else { return };
        self.half(name).damaged += 1;
        let half = self.mirrored.then_some(name.0);
        // A half is made anew.
        let is_unneeded = family == Family::Blob && half.is_none();
        self.add(Finding {
            verdict: if is_unneeded { Verdict::Unneeded } else { Verdict::Damaged },
            family: family.name(),
            key: place(family, &from),
            to: Some(to.map_or_else(|| "the end".to_owned(), |to| place(family, to))),
            half,
            group: self.group_of(family, &from),
            reason: error.to_string(),
            rewritten: false,
        });
    }

    pub(crate) fn place_ended(&mut self, family: Family, to: Option<&[u8]>, names: &[Name]) {
        names.iter().for_each(|name| self.place_told(family, to, *name));
    }

    /// No half tells what lies here.
    pub(crate) fn lost_place(
        &mut self,
        family: Family,
        from: &[u8],
        to: Option<&[u8]>,
        error: &StorageError,
        names: &[Name],
    ) {
        for name in names {
            self.places.remove(name);
            self.half(*name).damaged += 1;
        }
        let groups = self.groups_between(family, from, to);
        let key = format!("{} and behind it", place(family, from));
        if groups.is_empty() {
            self.report.losses.add(None, key.clone());
        }
        for group in &groups {
            self.report.losses.add(Some(*group), key.clone());
        }
        self.blind.extend(&groups);
        let finding = Finding {
            verdict: Verdict::Lost,
            family: family.name(),
            key: place(family, from),
            to: Some(to.map_or_else(|| "the end".to_owned(), |to| place(family, to))),
            half: None,
            group: groups.first().copied().filter(|_| groups.len() == 1),
            reason: error.to_string(),
            rewritten: false,
        };
        self.add(finding);
    }

    /// A record needs a body, of which there may be no good copy.
    pub(crate) fn needs(&mut self, body: &[u8], group: GroupId) {
        let Some(at) = self.unneeded.remove(body) else { return };
        if let Some(finding) = at.and_then(|at| self.report.findings.get_mut(at)) {
            finding.verdict = Verdict::Lost;
        }
        self.report.losses.add(Some(group), printable(Family::Blob, body));
    }

    /// A record needs a body that no half has.
    pub(crate) fn lost_body(&mut self, body: &[u8], group: GroupId, (family, key): (Family, &[u8])) {
        if !self.report.losses.add(Some(group), printable(Family::Blob, body)) {
            return;
        }
        self.add(Finding {
            verdict: Verdict::Lost,
            family: Family::Blob.name(),
            key: printable(Family::Blob, body),
            to: None,
            half: None,
            group: Some(group),
            reason: format!("{} refers to it, and it is not there", printable(family, key)),
            rewritten: false,
        });
    }

    /// Its place in the report, if it has one.
    fn add(&mut self, finding: Finding) -> Option<usize> {
        match finding.verdict {
            Verdict::Damaged | Verdict::Missing | Verdict::Lost | Verdict::Unneeded => {}
            Verdict::Differs => {
                self.report.differing += 1;
                self.report.groups_undecided.extend(finding.group);
            }
        }
        if self.report.findings.len() == FINDINGS_MAX {
            self.report.findings_beyond += 1;
            return None;
        }
        self.report.findings.push(finding);
        Some(self.report.findings.len() - 1)
    }
}

/// Whose a record is.
impl Book {
    fn group_of(&self, family: Family, key: &[u8]) -> Option<GroupId> {
        match family {
            Family::Log | Family::Blob => u32_at(key, 0).map(GroupId),
            Family::State => self.spaces.get(&u32_at(key, 0)?).map(|(group, _)| *group),
            Family::Meta => u32_at(key, 1).map(GroupId),
        }
    }

    /// The group in which a record refers to bodies that must be there.
    pub(crate) fn refers_to_bodies(&self, family: Family, key: &[u8]) -> Option<GroupId> {
        match family {
            Family::Log => self.group_of(family, key),
            Family::State => {
                let kind = key.get(4).copied().and_then(Kind::from_byte);
                // What a snapshot is writing may come before its bodies.
                let (group, current) = self.spaces.get(&u32_at(key, 0)?)?;
                (*current && matches!(kind, Some(Kind::Body | Kind::Upload))).then_some(*group)
            }
            Family::Blob | Family::Meta => None,
        }
    }

    /// What may lie from one key on and before another: for log entries by the bounds of the logs, for others if they end in
    /// a number and are few. `None` where nobody knows.
    pub(crate) fn keys_between(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Option<Vec<Vec<u8>>> {
        match family {
            Family::Blob => {
                let (group, end) = (u32_at(from, 0)?, to?);
                let (first, last) = (u64_at(from, 4)?, u64_at(end, 4)?);
                let few = u32_at(end, 0) == Some(group) && last.saturating_sub(first) <= GAP_KEYS_MAX;
                let keys = (first..=last).map(|index| log_key(GroupId(group), index));
                few.then(|| keys.filter(|key| key[..] >= *from && key[..] < *end).collect())
            }
            Family::Log => {
                let mut keys = Vec::new();
                for group in self.groups_between(family, from, to) {
                    let opened = self.opened.iter().find(|one| one.id() == group)?;
                    let Some((first, last)) = opened.inner.log.lock().range else { continue };
                    let own = (first..=last).map(|index| log_key(group, index));
                    keys.extend(own.filter(|key| key[..] >= *from && to.is_none_or(|to| key[..] < *to)));
                }
                Some(keys)
            }
            Family::State | Family::Meta => keys_between(family, from, to?),
        }
    }

    fn groups_between(&self, family: Family, from: &[u8], to: Option<&[u8]>) -> Vec<GroupId> {
        let meets = |(first, last): (Vec<u8>, Vec<u8>)| last[..] > *from && to.is_none_or(|to| first[..] < *to);
        let of_group = |group: &GroupId| match family {
            Family::Log | Family::Blob => meets((log_key(*group, 0), log_key(*group, u64::MAX))),
            Family::State => {
                let mut own = self.spaces.iter().filter(|(_, (owner, _))| owner == group);
                own.any(|(space, _)| meets(space_range(*space)))
            }
            Family::Meta => [META_VOTE, META_PURGED, META_SPACE, META_INSTALL, META_BEGUN].iter().any(|name| {
                let key = meta_key(*name, *group);
                let behind = [&key[..], &[0]].concat();
                meets((key, behind))
            }),
        };
        let wanted = |group: &GroupId| self.only.is_none_or(|only| only == *group);
        self.groups.iter().filter(|group| wanted(group) && of_group(group)).copied().collect()
    }
}

/// A place between keys, for people.
fn place(family: Family, key: &[u8]) -> String {
    match family {
        Family::Log | Family::Blob => printable(family, key.get(..12).unwrap_or(key)),
        Family::State | Family::Meta => {
            let end = key.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            printable(family, &key[..end])
        }
    }
}
