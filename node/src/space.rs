//! How much room a volume's disks have, and what follows when it gets short. Below the reserve new mail is refused, while
//! reads, flags and expunges go on. Below the floor a replica takes no more log entries, so that its database never
//! meets a full disk; it catches up when there is room again.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use types::{MailError, MailResult};

/// The floor's share of the reserve: what stands between them is for expunges, flags, and the database's own needs.
const FLOOR_DIVISOR: u64 = 4;

pub struct Space {
    disks: Vec<PathBuf>,
    reserve_octets: u64,
    /// On the disk that has least, as last measured; 0 before that.
    free_octets: AtomicU64,
    /// Of mail that was admitted since then.
    admitted_octets: AtomicU64,
}

impl Space {
    /// Has looked, where a disk answers.
    pub fn new(disks: Vec<PathBuf>, reserve_octets: u64) -> Space {
        let space = Space {
            disks,
            reserve_octets,
            free_octets: AtomicU64::new(reserve_octets),
            admitted_octets: AtomicU64::new(0),
        };
        if let Err(error) = space.measure() {
            tracing::warn!(%error, "room on a disk cannot be told");
        }
        space
    }

    /// Looks anew. Asks the file system: to be called off the async threads. A disk that does not answer is the
    /// mirror's to drop, and counts only where it is the last.
    pub fn measure(&self) -> io::Result<()> {
        let mut least = Err(io::Error::other("no disk"));
        for disk in &self.disks {
            least = match (rustix::fs::statvfs(disk), least) {
                (Ok(found), before) => {
                    let free = found.f_bavail.saturating_mul(found.f_frsize);
                    Ok(before.map_or(free, |least: u64| least.min(free)))
                }
                (Err(_), Ok(least)) => Ok(least),
                (Err(error), Err(_)) => Err(error.into()),
            };
        }
        let least = least?;
        self.admitted_octets.store(0, Ordering::Relaxed);
        let before = self.free_octets.swap(least, Ordering::Relaxed);
        match (before < self.reserve_octets, least < self.reserve_octets) {
            (false, true) => tracing::warn!(free_octets = least, "disk is full, new mail is refused"),
            (true, false) => tracing::info!(free_octets = least, "disk has room"),
            (false, false) | (true, true) => {}
        }
        Ok(())
    }

    pub fn free_octets(&self) -> u64 {
        self.free_octets.load(Ordering::Relaxed).saturating_sub(self.admitted_octets.load(Ordering::Relaxed))
    }

    pub fn is_full(&self) -> bool {
        self.free_octets() < self.reserve_octets
    }

    /// Whether mail of so many octets may come.
    pub fn admit(&self, octets: u64) -> MailResult<()> {
        if self.free_octets() < self.reserve_octets.saturating_add(octets) {
            return Err(MailError::DiskFull);
        }
        self.admitted_octets.fetch_add(octets, Ordering::Relaxed);
        Ok(())
    }

    /// Whether this replica may append what its leader sends.
    pub fn takes_entries(&self) -> bool {
        self.free_octets() >= self.reserve_octets / FLOOR_DIVISOR
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use types::MailError;

    use super::Space;

    #[test]
    fn mail_is_refused_below_the_reserve_and_entries_below_the_floor() {
        let directory = tempfile::tempdir().unwrap();
        let space = Space::new(vec![directory.path().to_owned(), directory.path().join("gone")], 1_000);
        space.free_octets.store(1_500, Ordering::Relaxed);
        assert_eq!(space.admit(400), Ok(()));
        // What was admitted counts until the next look.
        assert_eq!(space.admit(400), Err(MailError::DiskFull));
        assert!(!space.is_full() && space.takes_entries());
        space.free_octets.store(700, Ordering::Relaxed);
        assert!(space.is_full() && space.takes_entries());
        space.free_octets.store(600, Ordering::Relaxed);
        assert!(!space.takes_entries());
        space.measure().unwrap();
        assert!(space.takes_entries());
    }
}
