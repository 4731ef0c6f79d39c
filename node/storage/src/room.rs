//! Room on disks.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use crate::error::StorageError;
use crate::faults::{Faults, HalfName, Operation};

/// What a database takes that holds nothing.
const DATABASE_OCTETS: u64 = 16 << 20;
/// Of `st_blocks` (POSIX leaves it open, Linux does not).
const BLOCK_OCTETS: u64 = 512;

/// What a file system has for us, in octets.
pub fn free_on(disk: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(disk)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Whether a disk has room for a database with what a directory holds, beside what is on it already: refused by name where it has not.
pub fn has_room_for(directory: &Path, disk: &Path) -> Result<(), StorageError> {
    let free = free_on(disk).map_err(|error| StorageError::io(disk.display().to_string(), error))?;
    let needed = used_in(directory).saturating_add(DATABASE_OCTETS);
    if free < needed {
        return Err(StorageError::Refused(format!(
            "{} is too small: {free} octets are free, a copy of {} takes {needed}",
            disk.display(),
            directory.display()
        )));
    }
    Ok(())
}

/// The same for a half of a mirror, made anew where it is, from the other one.
pub(crate) fn room_for_copy(
    faults: Option<&Arc<dyn Faults>>,
    name: HalfName,
    (half, other): (&Path, &Path),
) -> Result<(), StorageError> {
    let Some(disk) = half.parent().filter(|disk| disk.is_dir()) else { return Ok(()) };
    if let Some(Err(error)) = faults.map(|faults| faults.before(name, Operation::Room)) {
        return Err(StorageError::Refused(format!("{} is too small: {error}", disk.display())));
    }
    has_room_for(other, disk)
}

/// What the files below a directory take, in octets; what goes meanwhile is left out.
fn used_in(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let used = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let data = entry.metadata().ok()?;
        Some(if data.is_dir() { used_in(&entry.path()) } else { data.blocks().saturating_mul(BLOCK_OCTETS) })
    });
    used.sum()
}

#[cfg(test)]
mod tests {
    use super::{free_on, has_room_for, used_in};

    #[test]
    fn what_files_take_is_counted_over_all_directories() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("below")).unwrap();
        std::fs::write(directory.path().join("below/file"), vec![1; 100_000]).unwrap();
        std::fs::write(directory.path().join("file"), vec![1; 100_000]).unwrap();
        assert!(used_in(directory.path()) >= 200_000);
        assert_eq!(used_in(&directory.path().join("gone")), 0);
        assert!(free_on(&directory.path().join("gone")).is_err());
        has_room_for(directory.path(), directory.path()).unwrap();
    }
}
