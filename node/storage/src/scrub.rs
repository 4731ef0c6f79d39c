//! Reading everything that a volume holds, while it serves: what nobody reads may be damaged and nobody knows.
//!
//! ```text
//! slice: snapshots of the halves at one number ──► walk over both (`merge`) ──► judge each record (`verdict`, `check`)
//! ```
//!
//! A half with damage is made anew by the resilver; a record that RocksDB reads, but that is wrong or missing in one half,
//! is written to both (`repair`). What has no good copy here is reported by key and group: others may have one.
//! Does not see the write-ahead logs, nor what the disk has lost of a page or block that is cached.

mod check;
mod cursor;
mod merge;
mod remake;
mod repair;
mod report;
mod scrubbed;
mod verdict;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use rocksdb::Snapshot;

use crate::error::StorageError;
use crate::faults::HalfName;
use crate::group::Group;
use crate::half::Half;
use crate::keys::GroupId;
use crate::losses::Losses;
use crate::store::Family;
use crate::volume::Shared;

use cursor::View;

pub(crate) use check::holds;
pub(crate) use merge::{Item, Records, behind};
pub use scrubbed::{ScrubHistory, Scrubbed};
pub(crate) use scrubbed::{ScrubbedRecord, history, note};
pub(crate) use walk::referred;

/// Findings that a report lists; more are only counted.
pub const FINDINGS_MAX: usize = 1000;

#[derive(Clone, Debug)]
pub struct ScrubOptions {
    /// Only what belongs to this group.
    pub group: Option<GroupId>,
    /// What is read of each half at most.
    pub bytes_per_s: u64,
    /// After so many bytes what was read is let go, and the rest is read as it is then: a snapshot of hours would keep
    /// every file that compactions replace meanwhile.
    pub slice_bytes: u64,
    /// Up to which entry a group's log is applied: of those only messages need the bodies. Of a group that is not named
    /// here every entry needs its own.
    pub applied: BTreeMap<GroupId, u64>,
}

impl Default for ScrubOptions {
    fn default() -> ScrubOptions {
        // A quarter of what one spinning disk reads in sequence.
        ScrubOptions { group: None, bytes_per_s: 32 << 20, slice_bytes: 256 << 20, applied: BTreeMap::new() }
    }
}

/// How far a scrub is; and the way to end it. For any number of threads.
#[derive(Debug, Default)]
pub struct ScrubProgress {
    records: AtomicU64,
    bytes: AtomicU64,
    records_estimated: AtomicU64,
    findings: AtomicU64,
    family: AtomicU8,
    cancelled: AtomicBool,
}

impl ScrubProgress {
    /// Ends the scrub soon: its report then says that it is not complete.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Keys that were read, in however many halves.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Keys and values of them.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// About how many records there are in all. 0 until it begins.
    pub fn records_estimated(&self) -> u64 {
        self.records_estimated.load(Ordering::Relaxed)
    }

    pub fn findings(&self) -> u64 {
        self.findings.load(Ordering::Relaxed)
    }

    /// What is read at this moment: the name of a column family.
    pub fn family(&self) -> &'static str {
        let at = usize::from(self.family.load(Ordering::Relaxed));
        walk::ORDER.get(at).map_or("", |family| family.name())
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScrubReport {
    /// False if it was cancelled.
    pub complete: bool,
    /// Keys that were read, in however many halves, and the bytes of them and their values.
    pub records: u64,
    pub bytes: u64,
    /// The halves that were read; one for a volume of one disk.
    pub halves: Vec<HalfScrub>,
    /// At most `FINDINGS_MAX`, and how many more there were.
    pub findings: Vec<Finding>,
    pub findings_beyond: u64,
    /// Records of [`Verdict::Lost`], each once, as in `losses`; and findings of [`Verdict::Differs`].
    pub lost: u64,
    pub differing: u64,
    /// The records of [`Verdict::Lost`]; and those that were known before the scrub began.
    pub losses: Losses,
    pub losses_before: Losses,
    /// Groups with records that have no good copy here: their replica is to be fetched from another node.
    pub groups_lost: BTreeSet<GroupId>,
    /// Groups whose halves differ, and nothing here tells which is right: other replicas may.
    pub groups_undecided: BTreeSet<GroupId>,
    /// Records that were written anew from the good copy.
    pub rewritten: u64,
    /// Halves whose resilver has begun, or begins when that of the other one has ended.
    pub resilvers: Vec<HalfName>,
    /// Damaged halves that are not made anew, and why: their disks have no room for it, or they are out of use by now.
    pub unmade: Vec<(HalfName, String)>,
    /// What reads had met damage in before the scrub began.
    pub unread_before: u64,
}

impl ScrubReport {
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether there are places of a group, on a volume of one disk, that nothing is known to lie in.
    pub(crate) fn cannot_read(&self, group: GroupId) -> bool {
        let is_such = |found: &Finding| found.verdict == Verdict::Damaged && found.half.is_none();
        self.findings.iter().any(|found| is_such(found) && found.group == Some(group))
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HalfScrub {
    /// `None` for a volume of one disk.
    pub name: Option<HalfName>,
    pub records: u64,
    pub bytes: u64,
    /// Records or places that cannot be read here, or not decoded.
    pub damaged: u64,
    /// Records that only the other half has.
    pub missing: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Cannot be read in one half, or is not what its own checksum or format says; the other half's copy is good. Or a
    /// place without any record cannot be read.
    Damaged,
    /// Only the other half has it.
    Missing,
    /// Both halves' copies hold by themselves, and are not the same. Left as they are.
    Differs,
    /// No good copy here.
    Lost,
    /// A body without a good copy here, which no message has any more: it goes with the log. Or, on a volume of one disk, a
    /// place among bodies that cannot be read: those that a message has and that are not found are told by themselves.
    Unneeded,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub verdict: Verdict,
    pub family: &'static str,
    /// For people.
    pub key: String,
    /// Set where the records cannot be told: those behind `key` and before this one, if there are any.
    pub to: Option<String>,
    /// The half whose copy is not good; `None` where it is none or both, or on a volume of one disk.
    pub half: Option<HalfName>,
    /// `None` where the record, or a range, belongs to no group or to several.
    pub group: Option<GroupId>,
    pub reason: String,
    /// The good copy was written to both halves.
    pub rewritten: bool,
}

pub(crate) fn run(
    shared: &Shared,
    opened: Vec<Group>,
    options: &ScrubOptions,
    progress: &ScrubProgress,
) -> Result<ScrubReport, StorageError> {
    walk::Scrub::new(shared, opened, options, progress).run()
}

/// The least key behind `from` at which a half can be read again, or fails in another place. `None`: not before `end`.
pub(crate) fn behind_damage(
    half: &Half,
    snapshot: &Snapshot<'_>,
    family: Family,
    (from, end): (&[u8], &[u8]),
) -> Result<Option<Vec<u8>>, StorageError> {
    let mut cursor = View { half, snapshot, as_damage: false }.cursor(family, end.to_vec())?;
    cursor.seek(from);
    match cursor.item() {
        Ok(item) => Ok(item.map(|(key, _)| key.to_vec())),
        Err(error) => Ok(behind(&mut cursor, from, &error)),
    }
}

fn set_family(progress: &ScrubProgress, family: Family) {
    let at = walk::ORDER.iter().position(|one| *one == family).unwrap_or_default();
    progress.family.store(at as u8, Ordering::Relaxed);
}
