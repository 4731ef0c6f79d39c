//! The mark: a lower bound of what was acknowledged, kept beside the database.
//!
//! RocksDB opens an empty database without a word when its live write-ahead log was deleted. The mark notices: it
//! holds a sequence number that was durable and a write-ahead log that was live. It is written in place after each
//! sync without a sync of its own, for a mark that lags is still a lower bound, and made durable now and then. Two
//! slots take turns, so that a torn write leaves the other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{error, warn};

use crate::error::StorageError;
use crate::files::{self, sync_directory};
use crate::half_record::HalfRecord;
use crate::keys::{u32_at, u64_at};

const NAME: &str = "MARK";
const MAGIC: u64 = u64::from_be_bytes(*b"MRMARK01");
const SLOT_BYTES: usize = 36;
/// A slot to a disk block, so that one torn write cannot reach both.
const SLOT_DISTANCE: u64 = 4096;
/// How often the mark itself is synced, and the live write-ahead log looked up.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Slot {
    turn: u64,
    sequence: u64,
    wal: u64,
}

impl Slot {
    fn encode(self) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        for (place, number) in bytes.chunks_exact_mut(8).zip([MAGIC, self.turn, self.sequence, self.wal]) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        let (body, crc) = bytes.split_at_mut(32);
        crc.copy_from_slice(&crc32c::crc32c(body).to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Slot> {
        let crc = u32_at(bytes, 32)?;
        if u64_at(bytes, 0)? != MAGIC || crc32c::crc32c(bytes.get(..32)?) != crc {
            return None;
        }
        Some(Slot { turn: u64_at(bytes, 8)?, sequence: u64_at(bytes, 16)?, wal: u64_at(bytes, 24)? })
    }
}

pub(crate) struct Mark {
    path: PathBuf,
    database: PathBuf,
    file: File,
    /// Of the file: another one in its place means that the directory was swapped.
    inode: (u64, u64),
    slot: Slot,
    synced_at: Option<Instant>,
}

impl Mark {
    /// Opens the mark of a volume, or makes the first one where there is no database yet, and refuses files that
    /// lack what was acknowledged. Touches nothing of the database.
    pub(crate) fn open(directory: &Path, generation: u64, create: bool) -> Result<Mark, StorageError> {
        let path = file_name(directory, generation);
        let database = database_path(directory, generation);
        let database_exists = database.join("CURRENT").exists();
        if !path.exists() {
            if database_exists {
                let reason = format!("{} has a database but no mark; was {NAME} removed?", directory.display());
                return Err(StorageError::Refused(reason));
            }
            if !create {
                let reason = format!("{} is empty, but a volume was expected there", directory.display());
                return Err(StorageError::Refused(reason));
            }
            let both = [Slot::default().encode(), Slot::default().encode()];
            let mut bytes = vec![0; SLOT_DISTANCE as usize + SLOT_BYTES];
            bytes[..SLOT_BYTES].copy_from_slice(&both[0]);
            bytes[SLOT_DISTANCE as usize..].copy_from_slice(&both[1]);
            files::create_whole(&path, &bytes)?;
        }
        let doing = |error: io::Error| StorageError::io(format!("reading {}", path.display()), error);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(doing)?;
        let data = file.metadata().map_err(doing)?;
        let slot = newest_slot(&file, &path)?;
        let mark = Mark { path, database, file, inode: (data.dev(), data.ino()), slot, synced_at: None };
        if slot.sequence > 0 && (!database_exists || live_wal(&mark.database)? < slot.wal) {
            // The live log is never older than one that was live before.
            return Err(mark.behind(0));
        }
        Ok(mark)
    }

    /// Refuses a database that holds less than what was acknowledged.
    pub(crate) fn check(&self, found: u64) -> Result<(), StorageError> {
        if found < self.slot.sequence { Err(self.behind(found)) } else { Ok(()) }
    }

    fn behind(&self, found: u64) -> StorageError {
        let directory = self.path.parent().unwrap_or(&self.path).display().to_string();
        StorageError::Behind { directory, found, acknowledged: self.slot.sequence }
    }

    /// Refuses a directory that has gone, or that another one was put in the place of: what is written to open files
    /// of the old one is lost with it.
    pub(crate) fn check_in_place(&self) -> Result<(), StorageError> {
        let gone = |reason: String| StorageError::io(format!("looking for {}", self.path.display()), reason);
        let data = std::fs::metadata(&self.path).map_err(|error| gone(error.to_string()))?;
        if (data.dev(), data.ino()) != self.inode {
            return Err(gone("it is another file now".to_owned()));
        }
        // The entry that a database cannot be opened without.
        std::fs::metadata(self.database.join("CURRENT")).map_err(|error| gone(error.to_string()))?;
        Ok(())
    }

    /// As [`Mark::check_in_place`]; and that the write-ahead log is there too. Lists the directory.
    pub(crate) fn check_whole(&self) -> Result<(), StorageError> {
        self.check_in_place()?;
        // Twice: files come and go while they are listed.
        for _ in 0..2 {
            match list_logs(&self.database) {
                Ok(wal) if wal < self.slot.wal => {}
                Ok(_) => return Ok(()),
                // The disk is well.
                Err(error) if is_want(&error) => return Ok(()),
                Err(error) => return Err(listing(&self.database, &error)),
            }
        }
        Err(self.log_has_gone())
    }

    fn log_has_gone(&self) -> StorageError {
        StorageError::io(format!("looking for {}", self.database.display()), "its write-ahead log has gone")
    }

    /// Notes that everything up to this sequence number is durable.
    pub(crate) fn note(&mut self, sequence: u64) -> Result<(), StorageError> {
        let due = self.synced_at.is_none_or(|at| at.elapsed() >= SYNC_INTERVAL);
        let wal = match if due { list_logs(&self.database) } else { Ok(self.slot.wal) } {
            // The disk is well: one that was live before is a lower bound, too.
            Err(error) if is_want(&error) => self.slot.wal,
            found => found.map_err(|error| listing(&self.database, &error))?,
        };
        if wal < self.slot.wal {
            return Err(self.log_has_gone());
        }
        self.slot = Slot { turn: self.slot.turn + 1, sequence: sequence.max(self.slot.sequence), wal };
        let doing = |error: io::Error| StorageError::io("writing the mark", error);
        self.file.write_all_at(&self.slot.encode(), self.slot.turn % 2 * SLOT_DISTANCE).map_err(doing)?;
        if due {
            self.sync()?;
        }
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> Result<(), StorageError> {
        self.file.sync_data().map_err(|error| StorageError::io("syncing the mark", error))?;
        self.synced_at = Some(Instant::now());
        Ok(())
    }
}

fn newest_slot(file: &File, path: &Path) -> Result<Slot, StorageError> {
    let slots = [0, SLOT_DISTANCE].into_iter().filter_map(|at| {
        let mut bytes = [0; SLOT_BYTES];
        file.read_exact_at(&mut bytes, at).ok()?;
        Slot::decode(&bytes)
    });
    slots.max_by_key(|slot| slot.turn).ok_or_else(|| StorageError::corrupt(path.display().to_string(), "no valid slot"))
}

/// The volume's number up to which what a directory holds was acknowledged, at least, whatever has become of its databases.
pub(crate) fn acknowledged(directory: &Path) -> Result<u64, StorageError> {
    let mut acknowledged = 0;
    for generation in generations(directory).map_err(|error| listing(directory, &error))? {
        let path = file_name(directory, generation);
        match File::open(&path) {
            Ok(file) => acknowledged = newest_slot(&file, &path)?.sequence.max(acknowledged),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StorageError::io(format!("reading {}", path.display()), error)),
        }
    }
    Ok(acknowledged)
}

/// The mark of a database. The first database of a directory has no number.
fn file_name(directory: &Path, generation: u64) -> PathBuf {
    directory.join(if generation == 0 { NAME.to_owned() } else { format!("{NAME}-{generation}") })
}

/// Where a database lies below the directory of a volume.
pub(crate) fn database_path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(if generation == 0 { "db".to_owned() } else { format!("db-{generation}") })
}

/// The databases and marks in a directory, by their generations.
pub(crate) fn generations(directory: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        found.extend(match name {
            "db" | NAME => Some(0),
            _ => name.strip_prefix("db-").or(name.strip_prefix("MARK-")).and_then(|number| number.parse().ok()),
        });
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// How often the removal of a database is begun that changes meanwhile.
const REMOVALS_MAX: usize = 100;

/// Removes databases that are not open, and their marks: all but some.
pub(crate) fn remove_others(directory: &Path, keep: &[u64]) -> io::Result<()> {
    generations(directory)?.into_iter().filter(|one| !keep.contains(one)).try_for_each(|one| remove(directory, one))
}

/// What a database is named that may have what is nowhere else, and that could not be read. Nothing removes it.
const ASIDE: &str = "kept-db";

/// Gives a database another name, where there is none that has it already.
pub(crate) fn set_aside(directory: &Path, generation: u64) {
    let (path, aside) = (database_path(directory, generation), directory.join(ASIDE));
    if !path.exists() || aside.exists() {
        return;
    }
    match std::fs::rename(&path, &aside) {
        Ok(()) => error!(path = %aside.display(), "bodies that have no good copy may be in a database that is kept"),
        Err(error) => warn!(%error, path = %path.display(), "a database could not be set aside"),
    }
}

/// Removes a database that is not open, and its mark.
pub(crate) fn remove(directory: &Path, generation: u64) -> io::Result<()> {
    for removed in
        [remove_database(&database_path(directory, generation)), std::fs::remove_file(file_name(directory, generation))]
    {
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// One that is being closed at this moment may still make files, or remove some itself.
fn remove_database(path: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => return Ok(()),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty)
                    && tries < REMOVALS_MAX => {}
            result => return result,
        }
    }
}

/// The number of the newest write-ahead log, 0 if there is none.
fn live_wal(path: &Path) -> Result<u64, StorageError> {
    list_logs(path).map_err(|error| listing(path, &error))
}

fn listing(path: &Path, error: &io::Error) -> StorageError {
    StorageError::io(format!("listing {}", path.display()), error)
}

/// Out of descriptors or memory: the process' want, not the disk's.
fn is_want(error: &io::Error) -> bool {
    // EMFILE, ENFILE and ENOMEM of Linux, which have no `ErrorKind` that is stable but the last.
    error.kind() == io::ErrorKind::OutOfMemory || matches!(error.raw_os_error(), Some(23 | 24))
}

fn list_logs(path: &Path) -> io::Result<u64> {
    let mut newest = 0;
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|stem| stem.parse().ok());
        newest = newest.max(number.unwrap_or(0));
    }
    Ok(newest)
}

/// Makes the directory of a volume and its entry durable.
pub(crate) fn create_directory(directory: &Path) -> Result<(), StorageError> {
    let doing = |error: io::Error| StorageError::io(format!("creating {}", directory.display()), error);
    std::fs::create_dir_all(directory).map_err(doing)?;
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_directory(parent)?;
    }
    Ok(())
}

/// Whether a volume lives in this directory.
pub(crate) fn is_volume(directory: &Path) -> bool {
    directory.join(NAME).exists() || HalfRecord::exists(directory)
}

#[cfg(test)]
mod tests {
    use super::{Mark, SLOT_BYTES, Slot};
    use crate::error::StorageError;

    #[test]
    fn a_torn_slot_leaves_the_other_one() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("db")).unwrap();
        let mut mark = Mark::open(directory.path(), 0, true).unwrap();
        std::fs::write(directory.path().join("db/CURRENT"), "").unwrap();
        mark.note(5).unwrap();
        mark.note(9).unwrap();
        drop(mark);
        let path = directory.path().join("MARK");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1; // in the slot of turn 2
        std::fs::write(&path, &bytes).unwrap();
        let mark = Mark::open(directory.path(), 0, true).unwrap();
        assert_eq!(mark.slot.sequence, 5);
        assert!(mark.check(5).is_ok());
        assert!(matches!(mark.check(4), Err(StorageError::Behind { found: 4, acknowledged: 5, .. })));
    }

    #[test]
    fn slots_are_read_back_and_damage_is_seen() {
        let slot = Slot { turn: 7, sequence: 1 << 40, wal: 12 };
        let mut bytes = slot.encode();
        assert_eq!(Slot::decode(&bytes), Some(slot));
        for at in 0..SLOT_BYTES {
            bytes[at] ^= 4;
            assert_eq!(Slot::decode(&bytes), None);
            bytes[at] ^= 4;
        }
    }

    #[test]
    fn a_lost_volume_is_not_made_anew_where_one_is_expected() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Mark::open(directory.path(), 0, false), Err(StorageError::Refused(_))));
    }
}
