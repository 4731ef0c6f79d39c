//! A file on each disk that only takes room: it is removed when nothing else is left, so that mail can be expunged from a
//! disk that somebody has filled to the brim.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Below a disk's directory.
pub const NAME: &str = "BALLAST";
/// Some ten thousand expunges, and the files that a database needs to be opened.
const OCTETS_MAX: u64 = 16 * 1024 * 1024;
/// Its share of the reserve.
const DIVISOR: u64 = 16;
const BLOCK: usize = 64 * 1024;

/// What the ballast takes where new mail is refused below so much.
pub fn octets(reserve_octets: u64) -> u64 {
    (reserve_octets / DIVISOR).min(OCTETS_MAX)
}

/// True if there was one.
pub fn release(disk: &Path) -> bool {
    match fs::remove_file(disk.join(NAME)) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            tracing::warn!(disk = %disk.display(), %error, "ballast cannot be removed");
            false
        }
    }
}

/// Makes one unless it is there. Blocks.
pub fn make(disk: &Path, octets: u64) -> io::Result<()> {
    let path = disk.join(NAME);
    if octets == 0 || path.exists() {
        return Ok(());
    }
    let written = write(&path, octets);
    if written.is_err() {
        // Half of one would be taken for a whole one.
        drop(fs::remove_file(&path));
    }
    written
}

fn write(path: &Path, octets: u64) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    // A file system that compresses or leaves holes gives zeros no room.
    let mut state = octets | 1;
    let mut left = octets;
    let mut block = vec![0u8; BLOCK];
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let some = left.min(BLOCK as u64);
        file.write_all(block.get(..some as usize).unwrap_or(&block))?;
        left -= some;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::{NAME, make, octets, release};

    #[test]
    fn the_ballast_is_made_once_and_released() {
        let disk = tempfile::tempdir().unwrap();
        make(disk.path(), 100_000).unwrap();
        assert_eq!(disk.path().join(NAME).metadata().unwrap().len(), 100_000);
        make(disk.path(), 1).unwrap();
        assert_eq!(disk.path().join(NAME).metadata().unwrap().len(), 100_000);
        assert!(release(disk.path()) && !release(disk.path()));
        assert!(make(&disk.path().join("gone"), 1).is_err());
        assert_eq!((octets(1 << 30), octets(1 << 20), octets(0)), (16 << 20, 1 << 16, 0));
    }
}
