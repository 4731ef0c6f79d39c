//! What the last scrub of everything found, kept on the volume: a weekly scrub must not begin anew with every start of the
//! process, and what it found must not be forgotten with it.

use prost::Message;
use tracing::warn;

use super::ScrubReport;
use crate::error::StorageError;
use crate::keys::{GroupId, META_SCRUBBED};
use crate::losses::{Losses, LossesRecord};
use crate::records;
use crate::store::{Changes, Family, Store};
use crate::volume::Shared;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scrubbed {
    /// When it ended.
    pub unix_s: i64,
    pub records: u64,
    pub bytes: u64,
    pub findings: u64,
    /// Records and findings, as in [`ScrubReport`].
    pub lost: u64,
    pub differing: u64,
    pub rewritten: u64,
}

impl Scrubbed {
    pub fn new(report: &ScrubReport, unix_s: i64) -> Scrubbed {
        Scrubbed {
            unix_s,
            records: report.records,
            bytes: report.bytes,
            findings: report.findings.len() as u64 + report.findings_beyond,
            lost: report.lost,
            differing: report.differing,
            rewritten: report.rewritten,
        }
    }
}

/// What a volume knows of its scrubs, and of what it has lost.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ScrubHistory {
    /// From when on the time to the next one counts.
    pub since_unix_s: Option<i64>,
    pub last: Option<Scrubbed>,
    pub losses: Losses,
}

impl ScrubHistory {
    /// After a scrub of everything that ended then, or of one group.
    pub(crate) fn after(self, group: Option<GroupId>, report: &ScrubReport, unix_s: i64) -> ScrubHistory {
        // What resilvers found meanwhile may lie where the scrub had been.
        let meanwhile = self.losses.clone().since(&report.losses_before);
        match group {
            Some(group) => {
                let losses = self.losses.without(group).with(report.losses.clone()).with(meanwhile);
                ScrubHistory { losses, ..self }
            }
            None => ScrubHistory {
                since_unix_s: Some(unix_s),
                last: Some(Scrubbed::new(report, unix_s)),
                losses: report.losses.clone().with(meanwhile),
            },
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ScrubbedRecord {
    #[prost(sint64, tag = "1")]
    pub since_unix_s: i64,
    #[prost(message, optional, tag = "2")]
    pub last: Option<LastRecord>,
    #[prost(message, optional, tag = "3")]
    pub losses: Option<LossesRecord>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct LastRecord {
    #[prost(sint64, tag = "1")]
    pub unix_s: i64,
    #[prost(uint64, tag = "2")]
    pub records: u64,
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
    #[prost(uint64, tag = "4")]
    pub findings: u64,
    #[prost(uint64, tag = "5")]
    pub lost: u64,
    #[prost(uint64, tag = "6")]
    pub differing: u64,
    #[prost(uint64, tag = "7")]
    pub rewritten: u64,
}

/// As it is on the disk.
pub(crate) fn history(store: &Store) -> ScrubHistory {
    read(store).unwrap_or_else(|error| {
        // A scrub tells of it too, and writes it anew.
        warn!(%error, "what the last scrub found cannot be read");
        ScrubHistory::default()
    })
}

fn read(store: &Store) -> Result<ScrubHistory, StorageError> {
    let key = [META_SCRUBBED];
    let Some(value) = store.get(Family::Meta, &key)? else { return Ok(ScrubHistory::default()) };
    let ScrubbedRecord { since_unix_s, last, losses } = records::decode(Family::Meta, &key, &value)?;
    let last = last.map(|LastRecord { unix_s, records, bytes, findings, lost, differing, rewritten }| Scrubbed {
        unix_s,
        records,
        bytes,
        findings,
        lost,
        differing,
        rewritten,
    });
    // 0 where something was lost before anybody counted.
    let since_unix_s = Some(since_unix_s).filter(|since| *since != 0);
    Ok(ScrubHistory { since_unix_s, last, losses: losses.unwrap_or_default().into() })
}

/// Durable on return. One at a time: each is made of the one before.
pub(crate) fn note(
    shared: &Shared,
    change: impl FnOnce(ScrubHistory) -> Result<ScrubHistory, StorageError>,
) -> Result<(), StorageError> {
    let _noting = shared.noting.lock();
    let before = shared.scrubs.lock().clone();
    let history = change(before.clone())?;
    if history == before {
        return Ok(());
    }
    let last = history.last.map(|Scrubbed { unix_s, records, bytes, findings, lost, differing, rewritten }| {
        LastRecord { unix_s, records, bytes, findings, lost, differing, rewritten }
    });
    let losses = (!history.losses.is_empty()).then(|| LossesRecord::from(&history.losses));
    let record = ScrubbedRecord { since_unix_s: history.since_unix_s.unwrap_or_default(), last, losses };
    let mut changes = Changes::default();
    changes.put(Family::Meta, vec![META_SCRUBBED], records::encode(&record));
    shared.writer.write_and_wait(changes)?;
    *shared.scrubs.lock() = history;
    Ok(())
}
