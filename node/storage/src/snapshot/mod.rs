//! Snapshots of a group: out as checksummed blocks, in through a spool file.
//!
//! What travels is one stream of items, cut into blocks of at most 1 MiB:
//!
//! ```text
//! item   kind u8 | key length be32 | value length be32 | key | value
//!        kind 1: a state record, its key without the space; kind 2: a blob, its key the log index
//! block  "MRSB" | version u8 | last u8 | group be32 | number be32 | length be32 | payload | crc32c be32
//! ```
//!
//! Blobs follow the record that refers to them. The last block's payload is the totals. Garbage records and the marker
//! of the last apply stay behind: they are the replica's own.

mod block;
mod export;
mod install;

use std::io;
use std::path::Path;

use crate::error::StorageError;

pub use export::{Blocks, Export};
pub(crate) use install::IndexSet;
pub use install::Installer;

/// Empties the spool directory: what lies there belongs to installs that never ended.
pub(crate) fn clear_spool(spool: &Path) -> Result<(), StorageError> {
    let doing = |error: io::Error| StorageError::io(format!("clearing {}", spool.display()), error);
    match std::fs::remove_dir_all(spool) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(doing(error)),
        _ => {}
    }
    std::fs::create_dir_all(spool).map_err(doing)
}
