//! Giving room back to a disk. What is deleted takes room until RocksDB comes to it by itself, which it does as more is
//! written: on a full disk that is never. So this has it done, in steps that each need less room than there is.
//!
//! ```text
//! bodies that nothing refers to ─► memtables into tables (write-ahead logs go) ─► tables without what was deleted (blob
//! files that hold nothing else go) ─► some of the oldest blob files, without it, anew; the next ones, …
//! ```

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rocksdb::{BottommostLevelCompaction, CompactOptions, FlushOptions, Range};
use tracing::debug;

use crate::error::StorageError;
use crate::faults::Operation;
use crate::group::Group;
use crate::half::Half;
use crate::keys::{GroupId, log_key};
use crate::mark;
use crate::mirror::Mirror;
use crate::options::BLOB_FILE_BYTES;
use crate::rewrites::Cutoff;
use crate::store::Family;
use crate::volume::Volume;

/// What is smaller than this is left as it is: write-ahead logs together, and what a column family has on the disk. A log
/// takes more than it holds in any case, and the next one does so again.
const BYTES_MIN: u64 = 4 << 20;
/// Of blob files, in percent: what is rewritten for less than this wins next to nothing.
const GARBAGE_PERCENT_MIN: u64 = 2;
/// Between two steps others have the disk for as long as the last step took, and for no longer than this.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What a reclaim asks again and again.
pub struct Reclaim<'a> {
    /// Octets that it may use at this moment on the disk of a directory.
    pub room: &'a (dyn Fn(&Path) -> u64 + Sync),
    /// Whether this directory's disk needs more room, and there is time.
    pub goes_on: &'a (dyn Fn(&Path) -> bool + Sync),
}

impl Volume {
    /// How much has gone from the volume since it was opened, in log entries, bodies and groups: while it stays the same, a
    /// reclaim has no more to win than the last one.
    pub fn removed(&self) -> u64 {
        self.shared().removed.load(Ordering::Relaxed)
    }

    /// Deletes the bodies that nothing refers to any more, of groups that are open. Blocks.
    pub fn collect(&self, goes_on: &dyn Fn() -> bool) -> Result<(), StorageError> {
        for group in self.opened() {
            let collected = || -> Result<(), StorageError> {
                while goes_on() && group.collect()? > 0 {}
                Ok(())
            };
            match collected() {
                // It left, or is opened anew, meanwhile.
                Ok(()) | Err(StorageError::Dropped) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives the room of what was deleted back to the disks: first of one half of a mirror, then of the other. Not while a
    /// half is made anew, of which nothing may go. Blocks, as long as that takes; the volume serves meanwhile.
    pub fn reclaim(&self, ask: &Reclaim<'_>) -> Result<(), StorageError> {
        let store = &self.shared().store;
        // A half that lacks what is only in the other one's log could not have it from there.
        store.sync()?;
        let is_busy = |mirror: &Mirror| mirror.resilvering.lock().is_some();
        let halves = match &store.mirror {
            Some(mirror) => mirror.halves(),
            None => vec![Arc::clone(&store.reader())],
        };
        for half in halves {
            if !store.mirror.as_ref().is_some_and(is_busy) {
                half.reclaim(&self.opened(), ask)?;
            }
        }
        Ok(())
    }
}

impl Half {
    fn reclaim(&self, groups: &[Group], ask: &Reclaim<'_>) -> Result<(), StorageError> {
        // Whoever is damaged is made anew, or holds the only good copies: compactions rest.
        let is_out = || self.failed().is_some() || self.damaged.load(Ordering::Relaxed);
        let goes_on = || !is_out() && (ask.goes_on)(&self.directory);
        let room = || (ask.room)(&self.directory);
        self.flush_within(&goes_on, &room)?;
        // Nothing of what is kept in blob files is written again here.
        let cutoff = Cutoff::set(self, 0.0)?;
        for family in Family::EVERY {
            if goes_on() {
                self.compact_within(family, groups, &room)?;
            }
        }
        self.rewrite_blob_files(&cutoff, &goes_on, &room)
    }

    /// The smallest first: a write-ahead log goes when the last one is in tables.
    fn flush_within(&self, goes_on: &dyn Fn() -> bool, room: &dyn Fn() -> u64) -> Result<(), StorageError> {
        if self.log_bytes() < BYTES_MIN {
            return Ok(());
        }
        let mut families =
            Family::EVERY.map(|family| (self.number_of(family, "rocksdb.cur-size-all-mem-tables"), family));
        families.sort_unstable();
        for (bytes, family) in families {
            if goes_on() && bytes <= room() {
                self.before(Operation::Sync)?;
                let flushed = self.db.flush_cf_opt(&self.family(family)?, &FlushOptions::default());
                flushed.map_err(|error| StorageError::io("flush", error))?;
            }
        }
        Ok(())
    }

    /// As a whole, or group by group where there is no room for that.
    fn compact_within(&self, family: Family, groups: &[Group], room: &dyn Fn() -> u64) -> Result<(), StorageError> {
        let handle = self.family(family)?;
        // RocksDB flushes what it compacts.
        let memtables = self.number_of(family, "rocksdb.cur-size-all-mem-tables");
        let tables = self.number_of(family, "rocksdb.live-sst-files-size");
        if tables.saturating_add(self.number_of(family, "rocksdb.live-blob-file-size")) < BYTES_MIN {
            return Ok(());
        }
        self.before(Operation::Write)?;
        if tables.saturating_add(memtables) <= room() {
            self.db.compact_range_cf_opt(&handle, None::<&[u8]>, None::<&[u8]>, &compaction());
            return Ok(());
        }
        // The keys of the others do not begin with the group.
        if !matches!(family, Family::Log | Family::Blob) {
            return Ok(());
        }
        for group in groups.iter().map(Group::id) {
            let (from, to) = range_of(group);
            let found = self.db.get_approximate_sizes_cf(&handle, &[Range::new(&from, &to)]);
            if found.first().is_some_and(|bytes| bytes.saturating_add(memtables) <= room()) {
                self.db.compact_range_cf_opt(&handle, Some(&from), Some(&to), &compaction());
            }
        }
        Ok(())
    }

    /// Each blob file that is there is written anew once at most, without what was deleted, the oldest first, and so many at a
    /// time as there is room for.
    fn rewrite_blob_files(
        &self,
        cutoff: &Cutoff<'_>,
        goes_on: &dyn Fn() -> bool,
        room: &dyn Fn() -> u64,
    ) -> Result<(), StorageError> {
        let number = |name: &str| self.number_of(Family::Blob, name);
        let mut left = number("rocksdb.num-blob-files");
        while left > 0 && goes_on() {
            let blobs = Blobs {
                files: number("rocksdb.num-blob-files"),
                bytes: number("rocksdb.live-blob-file-size"),
                garbage: number("rocksdb.live-blob-file-garbage-size"),
                largest: self.sizes_of("blob").max().unwrap_or(BLOB_FILE_BYTES),
            };
            let Some(files) = blobs.step(room().saturating_sub(number("rocksdb.live-sst-files-size"))) else { break };
            let begun = Instant::now();
            cutoff.change(blobs.share(files))?;
            let mut options = compaction();
            options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
            self.before(Operation::Write)?;
            self.db.compact_range_cf_opt(&self.family(Family::Blob)?, None::<&[u8]>, None::<&[u8]>, &options);
            cutoff.change(0.0)?;
            debug!(half = %self.name, files, of = blobs.files, "blob files written anew");
            left = left.saturating_sub(files);
            if left > 0 {
                pause(begun.elapsed().min(PAUSE_MAX), goes_on);
            }
        }
        Ok(())
    }

    /// What is in write-ahead logs, which hold all that the memtables hold, and more.
    fn log_bytes(&self) -> u64 {
        self.sizes_of("log").sum()
    }

    /// Of the database's files of one kind.
    fn sizes_of(&self, kind: &'static str) -> impl Iterator<Item = u64> {
        let entries = std::fs::read_dir(mark::database_path(&self.directory, self.generation));
        let paths = entries.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let files = paths.filter(move |path| path.extension().is_some_and(|extension| extension == kind));
        files.filter_map(|path| Some(path.metadata().ok()?.len()))
    }

    fn number_of(&self, family: Family, property: &str) -> u64 {
        let Ok(handle) = self.family(family) else { return 0 };
        self.db.property_int_value_cf(&handle, property).ok().flatten().unwrap_or(0)
    }
}

fn pause(time: Duration, goes_on: &dyn Fn() -> bool) {
    const LOOK: Duration = Duration::from_millis(100);
    let end = Instant::now() + time;
    while Instant::now() < end && goes_on() {
        std::thread::sleep(LOOK.min(time));
    }
}

/// Beside RocksDB's own compactions, not instead of them.
fn compaction() -> CompactOptions {
    let mut options = CompactOptions::default();
    options.set_exclusive_manual_compaction(false);
    options
}

fn range_of(group: GroupId) -> (Vec<u8>, Vec<u8>) {
    (log_key(group, 0), log_key(group, u64::MAX))
}

/// The blob files of a half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Blobs {
    files: u64,
    bytes: u64,
    garbage: u64,
    /// Octets of the largest one.
    largest: u64,
}

impl Blobs {
    /// How many of the oldest ones to write anew with this much room; `None` where that wins nothing, or has no room.
    fn step(&self, room: u64) -> Option<u64> {
        if self.files == 0 || self.garbage == 0 || self.garbage < self.bytes / 100 * GARBAGE_PERCENT_MIN {
            return None;
        }
        if self.bytes.saturating_sub(self.garbage) <= room {
            return Some(self.files);
        }
        // Of which files the garbage is does not tell: these may be without any.
        Some((room / self.largest.max(1)).min(self.files)).filter(|files| *files > 0)
    }

    /// As RocksDB counts: the part of all files, rounded down to a number of them.
    fn share(&self, files: u64) -> f64 {
        if files >= self.files { 1.0 } else { (files as f64 + 0.5) / self.files as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::Blobs;
    use crate::options::BLOB_FILE_BYTES;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_step_needs_no_more_room_than_there_is() {
        let blobs = Blobs { files: 10, bytes: 1000 * MIB, garbage: 600 * MIB, largest: BLOB_FILE_BYTES };
        assert_eq!(blobs.step(400 * MIB), Some(10), "all that is kept has room");
        assert_eq!(blobs.step(400 * MIB - 1), Some(3), "all of three files has");
        assert_eq!(blobs.step(BLOB_FILE_BYTES), Some(1));
        assert_eq!(blobs.step(BLOB_FILE_BYTES - 1), None);
        assert_eq!(Blobs { files: 2, ..blobs }.step(399 * MIB), Some(2), "there are no more");
        // Of a volume with small memtables.
        let small = Blobs { files: 40, bytes: 160 * MIB, garbage: 80 * MIB, largest: 5 * MIB };
        assert_eq!(small.step(46 * MIB), Some(9));
    }

    #[test]
    fn what_wins_next_to_nothing_is_left() {
        let blobs = Blobs { files: 10, bytes: 1000 * MIB, garbage: 20 * MIB, largest: 1 };
        assert_eq!(blobs.step(u64::MAX), Some(10));
        assert_eq!(Blobs { garbage: 20 * MIB - 1, ..blobs }.step(u64::MAX), None);
        assert_eq!(Blobs { files: 0, bytes: 0, garbage: 0, largest: 0 }.step(u64::MAX), None);
        assert_eq!(Blobs { files: 1, bytes: 50, garbage: 0, largest: 50 }.step(u64::MAX), None);
    }

    #[test]
    fn the_share_of_so_many_files_is_rounded_to_as_many() {
        for files in 1..=40u64 {
            let blobs = Blobs { files, bytes: files, garbage: 0, largest: 1 };
            for step in 1..=files {
                // As in CompactionIterator::ComputeBlobGarbageCollectionCutoffFileNumber.
                assert_eq!((blobs.share(step) * files as f64) as u64, step, "{step} of {files}");
            }
        }
    }
}
