//! Small files written whole or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::StorageError;

const TEMPORARIES: u64 = 64;
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// Writes a file so that after a crash it holds either what it held before or all of the new bytes: a temporary
/// file, fsync, rename, fsync of the directory.
pub(crate) fn create_whole(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let doing = |error: io::Error| StorageError::io(format!("writing {}", path.display()), error);
    // Of this call alone: another one may write the same file at this moment. A crash leaves few of them.
    let number = TEMPORARY.fetch_add(1, Ordering::Relaxed) % TEMPORARIES;
    let temporary = path.with_extension(format!("{number}.tmp"));
    let mut file = File::create(&temporary).map_err(doing)?;
    file.write_all(bytes).map_err(doing)?;
    file.sync_all().map_err(doing)?;
    std::fs::rename(&temporary, path).map_err(doing)?;
    match path.parent() {
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), StorageError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| StorageError::io(format!("syncing {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::create_whole;

    #[test]
    fn a_file_that_two_write_at_once_is_whole_and_neither_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("HALF");
        std::thread::scope(|scope| {
            for byte in [b'a', b'b', b'c'] {
                let path = &path;
                scope.spawn(move || (0..50).for_each(|_| create_whole(path, &[byte; 100]).unwrap()));
            }
        });
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() == 100 && bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:?}");
    }
}
