//! The place where a half is made anew, before anything is written there.

use std::path::Path;
use std::thread;
use std::time::Duration;

use tracing::warn;

use crate::error::StorageError;
use crate::half_record::HalfRecord;
use crate::mark;

/// Between attempts to prepare a directory: the first time, and at most.
const PREPARE_WAIT: Duration = Duration::from_millis(50);
const PREPARE_WAIT_MAX: Duration = Duration::from_millis(400);

/// A disk that has just come, or that has just answered again, may not take the first attempt.
pub(crate) fn prepare_again(directory: &Path, record: &HalfRecord, is_live: bool) -> Result<u64, StorageError> {
    let mut wait = PREPARE_WAIT;
    loop {
        match prepare(directory, record, is_live) {
            Err(error @ StorageError::Io { .. }) if wait <= PREPARE_WAIT_MAX => {
                warn!(%error, "preparing a half is tried again");
                thread::sleep(wait);
                wait *= 2;
            }
            result => return result,
        }
    }
}

/// Sees that the directory is this half's or empty, and answers the number of the database to make there.
fn prepare(directory: &Path, record: &HalfRecord, is_live: bool) -> Result<u64, StorageError> {
    let doing = |error: std::io::Error| StorageError::io(format!("preparing {}", directory.display()), error);
    if !directory.exists() {
        // Not its parents: a disk that is not mounted is not made up for by a directory on another one.
        std::fs::create_dir(directory).map_err(doing)?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            crate::files::sync_directory(parent)?;
        }
    }
    let found = mark::generations(directory).map_err(doing)?;
    match HalfRecord::read(directory) {
        Ok(Some(own)) if (own.volume, own.name) != (record.volume, record.name) => {
            let reason = format!("{} is a half of another volume, or the other half", directory.display());
            return Err(StorageError::Refused(reason));
        }
        Ok(None) if !found.is_empty() && !is_live => {
            return Err(StorageError::Refused(format!("{} holds a volume of its own", directory.display())));
        }
        // One that cannot be read is replaced, as is the half.
        Ok(_) | Err(StorageError::Corrupt { .. }) => {}
        Err(error) => return Err(error),
    }
    let own = HalfRecord::read(directory).ok().flatten();
    // Whatever was not complete when a resilver ended with its process is newer than what was. What is in use, or was when
    // the half was dropped, stays, whatever an attempt that failed has left in the record.
    let complete = own.map(|own| own.generation).or(found.first().copied()).unwrap_or(record.generation);
    mark::remove_others(directory, &[complete, record.generation]).map_err(doing)?;
    let generation = found.last().map_or(0, |last| last + 1).max(record.generation + 1);
    if !is_live {
        HalfRecord { stale: true, closed: None, ..record.clone() }.write(directory)?;
    }
    Ok(generation)
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir, read_dir};

    use super::prepare;
    use crate::faults::HalfName;
    use crate::half_record::HalfRecord;

    #[test]
    fn what_was_in_use_stays_whatever_the_record_names() {
        let in_use = HalfRecord {
            volume: 1,
            name: HalfName::A,
            epoch: 3,
            opened: 2,
            partner_current: true,
            stale: false,
            generation: 1,
            offset: 0,
            closed: None,
        };
        for is_live in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path();
            // Left by an attempt whose database has gone, or not.
            HalfRecord { generation: 4, ..in_use.clone() }.write(root).unwrap();
            ["db", "db-1", "db-4", "db-5"].into_iter().for_each(|name| create_dir(root.join(name)).unwrap());
            assert_eq!(prepare(root, &in_use, is_live).unwrap(), 6);
            let names = read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort();
            assert_eq!(names, ["HALF", "db-1", "db-4"]);
        }
    }
}
