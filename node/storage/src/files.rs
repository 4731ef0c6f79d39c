//! Small files written whole or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::error::StorageError;

/// Writes a file so that after a crash it holds either what it held before or all of the new bytes: a temporary
/// file, fsync, rename, fsync of the directory.
pub(crate) fn create_whole(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let doing = |error: io::Error| StorageError::io(format!("writing {}", path.display()), error);
    let temporary = path.with_extension("tmp");
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
