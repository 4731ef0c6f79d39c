//! How much room the node's disks have, and what follows when it gets short. Below the reserve new mail is refused, while
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
    /// On the disk that has least, as last measured.
    free_octets: AtomicU64,
    /// Of mail that was admitted since then.
    admitted_octets: AtomicU64,
}

impl Space {
    pub fn new(disks: Vec<PathBuf>, reserve_octets: u64) -> io::Result<Space> {
        let (free_octets, admitted_octets) = (AtomicU64::new(0), AtomicU64::new(0));
        let space = Space { disks, reserve_octets, free_octets, admitted_octets };
        space.measure()?;
        Ok(space)
    }

    /// Looks anew. Asks the file system: to be called off the async threads.
    pub fn measure(&self) -> io::Result<()> {
        let mut least = u64::MAX;
        for disk in &self.disks {
            let found = rustix::fs::statvfs(disk)?;
            least = least.min(found.f_bavail.saturating_mul(found.f_frsize));
        }
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
        let space = Space::new(vec![directory.path().to_owned()], 1_000).unwrap();
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
