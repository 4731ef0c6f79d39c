//! How much room a volume's disks have, and what follows when it gets short. Below the reserve new mail is refused, while
//! reads, flags and expunges go on. Below the floor a replica takes no more log entries, so that its database never
//! meets a full disk, and a leader takes only what makes room; it catches up when there is room again. When next to
//! nothing is left the ballast goes, and mail is expunged from its room.

mod ballast;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use types::{MailError, MailResult};

use crate::Node;

pub use ballast::NAME as BALLAST;

/// The floor's share of the reserve: what stands between them is for expunges, flags, and the database's own needs.
const FLOOR_DIVISOR: u64 = 4;
/// Of `st_blocks` (POSIX leaves it open, Linux does not).
const BLOCK_OCTETS: u64 = 512;
/// Between looks: other programs fill a disk at a gigabyte a second.
const LOOK: Duration = Duration::from_millis(200);

pub struct Space {
    reserve_octets: u64,
    /// On the disk that has least, as last measured; 0 before that.
    free_octets: AtomicU64,
    /// Of mail that was admitted since then.
    admitted_octets: AtomicU64,
}

/// Looks at the disks again and again.
pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    loop {
        for volume in node.groups().volumes.list().iter().filter(|volume| volume.id().is_some()) {
            let looking = volume.clone();
            let measured = tokio::task::spawn_blocking(move || looking.measure()).await;
            if let Err(error) = measured.map_err(io::Error::other).flatten() {
                tracing::error!(volume = volume.number, %error, "room on the disk cannot be told");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

impl Space {
    pub fn new(reserve_octets: u64) -> Space {
        let (free_octets, admitted_octets) = (AtomicU64::new(reserve_octets), AtomicU64::new(0));
        Space { reserve_octets, free_octets, admitted_octets }
    }

    /// Looks anew at the disks that are in use. Asks the file system: to be called off the async threads. A disk that
    /// does not answer is the mirror's to drop, and counts only where it is the last.
    pub fn measure(&self, disks: &[PathBuf]) -> io::Result<()> {
        let mut least = Err(io::Error::other("no disk"));
        for disk in disks {
            least = match (free_on(disk).map(|free| self.balance(disk, free)), least) {
                (Ok(free), before) => Ok(before.map_or(free, |least: u64| least.min(free))),
                (Err(_), Ok(least)) => Ok(least),
                (Err(error), Err(_)) => Err(error),
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

    /// Before anything is written: gives up the ballast of disks with nothing else left.
    pub fn relieve(&self, disks: &[PathBuf]) {
        for disk in disks {
            if free_on(disk).is_ok_and(|free| free < ballast::octets(self.reserve_octets)) {
                ballast::release(disk);
            }
        }
    }

    /// Makes the ballast where there is room for it, and gives it up where there is none; what is free then.
    fn balance(&self, disk: &Path, free: u64) -> u64 {
        let ballast = ballast::octets(self.reserve_octets);
        if free < ballast {
            if ballast::release(disk) {
                tracing::warn!(disk = %disk.display(), "no room is left, the ballast is given up");
                return free_on(disk).unwrap_or(free);
            }
        } else if free >= self.reserve_octets.saturating_add(ballast)
            && let Err(error) = ballast::make(disk, ballast)
        {
            tracing::debug!(disk = %disk.display(), %error, "ballast is not made");
        }
        free
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

    /// Whether this replica may append what its leader sends, and a leader what clients ask for.
    pub fn takes_entries(&self) -> bool {
        self.free_octets() >= self.reserve_octets / FLOOR_DIVISOR
    }

    /// Whether a leader may append what makes room.
    pub fn takes_removals(&self) -> bool {
        self.free_octets() >= ballast::octets(self.reserve_octets) / 4
    }
}

/// What a file system has for us.
pub fn free_on(disk: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(disk)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// What the files below a directory take; what goes meanwhile is left out.
pub fn used_in(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let used = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let data = entry.metadata().ok()?;
        Some(if data.is_dir() { used_in(&entry.path()) } else { data.blocks().saturating_mul(BLOCK_OCTETS) })
    });
    used.sum()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use types::MailError;

    use super::{BALLAST, Space, free_on, used_in};

    #[test]
    fn mail_is_refused_below_the_reserve_and_entries_below_the_floor() {
        let directory = tempfile::tempdir().unwrap();
        let space = Space::new(1_600);
        space.free_octets.store(2_400, Ordering::Relaxed);
        assert_eq!(space.admit(600), Ok(()));
        // What was admitted counts until the next look.
        assert_eq!(space.admit(600), Err(MailError::DiskFull));
        assert!(!space.is_full() && space.takes_entries());
        space.admitted_octets.store(0, Ordering::Relaxed);
        space.free_octets.store(500, Ordering::Relaxed);
        assert!(space.is_full() && space.takes_entries());
        space.free_octets.store(300, Ordering::Relaxed);
        assert!(!space.takes_entries() && space.takes_removals());
        space.free_octets.store(20, Ordering::Relaxed);
        assert!(!space.takes_removals());
        space.measure(&[directory.path().to_owned(), directory.path().join("gone")]).unwrap();
        assert!(space.takes_entries());
        assert!(directory.path().join(BALLAST).exists(), "there is room for it");
        assert!(space.measure(&[]).is_err());
    }

    #[test]
    fn what_files_take_is_counted_over_all_directories() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("below")).unwrap();
        std::fs::write(directory.path().join("below/file"), vec![1; 100_000]).unwrap();
        std::fs::write(directory.path().join("file"), vec![1; 100_000]).unwrap();
        assert!(used_in(directory.path()) >= 200_000);
        assert_eq!(used_in(&directory.path().join("gone")), 0);
    }

    #[test]
    fn the_ballast_goes_when_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let space = Space::new(1 << 20);
        space.measure(&[directory.path().to_owned()]).unwrap();
        assert!(directory.path().join(BALLAST).exists());
        space.balance(directory.path(), (1 << 16) - 1);
        assert!(!directory.path().join(BALLAST).exists());
        // Not made anew before there is room for more than it.
        space.balance(directory.path(), 1 << 20);
        assert!(!directory.path().join(BALLAST).exists());
        space.balance(directory.path(), free_on(directory.path()).unwrap());
        assert!(directory.path().join(BALLAST).exists());
    }
}
