//! How much room a volume's disks have, and what follows when it gets short. Below the reserve new mail is refused, while
//! reads, flags and expunges go on. Below the floor a replica takes no more log entries, so that its database never
//! meets a full disk, and a leader takes only what makes room; it catches up when there is room again. When next to
//! nothing is left the ballast goes, and mail is expunged from its room, which the disk is given back then (`reclaim`).
//!
//! Of a mirror the half with less room counts, unless mail can do without it: then it is given up rather than that mail is
//! refused.

mod ballast;
pub mod reclaim;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use storage::free_on;
use tokio::sync::watch;
use types::{MailError, MailResult};

use crate::Node;

pub use ballast::NAME as BALLAST;

/// The floor's share of the reserve: what stands between them is for expunges, flags, and the database's own needs.
const FLOOR_DIVISOR: u64 = 4;
/// A half is given up for its room where the other one's disk has at least so many times the reserve: it is to take mail by
/// itself until somebody has seen to the full one. And where there is less, nothing is kept for copies alone.
const AMPLE_RESERVES: u64 = 2;
/// Mail that was refused for its size has others make room for so long, and for it: its sender comes again.
const ASKED_FOR: Duration = Duration::from_secs(120);
/// Between looks: other programs fill a disk at a gigabyte a second.
const LOOK: Duration = Duration::from_millis(200);

pub struct Space {
    reserve_octets: u64,
    /// On the disk that has least, as last measured; the reserve before that.
    free_octets: AtomicU64,
    /// The same without a half that mail can do without.
    room_octets: AtomicU64,
    /// Of mail that was admitted since then.
    admitted_octets: AtomicU64,
    /// Of mail that was refused, the largest, and when.
    refused: Mutex<Option<(u64, Instant)>>,
    /// The disks get room back one after the other: none is given up meanwhile because it is not its turn yet.
    reclaiming: AtomicBool,
    /// A database writes nothing anew by itself that takes much room meanwhile.
    spares_room: AtomicBool,
}

/// A disk that mail goes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InUse {
    pub disk: PathBuf,
    /// Whether what the other half lacks or has damaged can be had here.
    pub is_whole: bool,
}

/// How much room it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Room {
    free_octets: u64,
    is_whole: bool,
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
        let new = AtomicU64::new;
        Space {
            reserve_octets,
            free_octets: new(reserve_octets),
            room_octets: new(reserve_octets),
            admitted_octets: new(0),
            refused: Mutex::default(),
            reclaiming: AtomicBool::new(false),
            spares_room: AtomicBool::new(false),
        }
    }

    /// Looks anew at the disks that are in use, and answers which of them is full and to be given up; until then mail is taken
    /// as if that was done. Asks the file system: to be called off the async threads. A disk that does not answer is the
    /// mirror's to drop, and counts only where it is the last.
    pub fn measure(&self, disks: &[InUse]) -> io::Result<Option<usize>> {
        // Before what is measured: what is measured behind the end counts.
        let reclaiming = self.reclaiming.load(Ordering::Relaxed);
        let (mut rooms, mut failed) = (Vec::new(), io::Error::other("no disk"));
        for (place, InUse { disk, is_whole }) in disks.iter().enumerate() {
            match free_on(disk) {
                Ok(free) => {
                    rooms.push((place, Room { free_octets: self.balance(disk, free), is_whole: *is_whole }));
                }
                Err(error) => failed = error,
            }
        }
        let Some(least) = rooms.iter().map(|(_, room)| room.free_octets).min() else { return Err(failed) };
        let spare = match rooms[..] {
            [(_, first), (_, second)] if !reclaiming => dispensable(self.reserve_octets, [first, second]),
            _ => None,
        };
        let counted = rooms.iter().enumerate().filter(|(nth, _)| Some(*nth) != spare);
        let counted = counted.map(|(_, (_, room))| room.free_octets).min().unwrap_or(least);
        self.free_octets.store(least, Ordering::Relaxed);
        self.count(counted);
        let full = spare.and_then(|nth| rooms.get(nth)).filter(|(_, room)| room.free_octets < self.reserve_octets);
        Ok(full.map(|(place, _)| *place))
    }

    fn hold(&self, reclaiming: bool) {
        self.reclaiming.store(reclaiming, Ordering::Relaxed);
    }

    /// Mail cannot do without the fullest disk after all.
    pub fn keep_all(&self) {
        self.count(self.free_octets.load(Ordering::Relaxed));
    }

    fn count(&self, room_octets: u64) {
        self.admitted_octets.store(0, Ordering::Relaxed);
        let before = self.room_octets.swap(room_octets, Ordering::Relaxed);
        match (before < self.reserve_octets, room_octets < self.reserve_octets) {
            (false, true) => tracing::warn!(free_octets = room_octets, "disk is full, new mail is refused"),
            (true, false) => tracing::info!(free_octets = room_octets, "disk has room"),
            (false, false) | (true, true) => {}
        }
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

    /// On the disk that has least.
    pub fn free_octets(&self) -> u64 {
        self.free_octets.load(Ordering::Relaxed).saturating_sub(self.admitted_octets.load(Ordering::Relaxed))
    }

    /// That mail may use.
    fn room_octets(&self) -> u64 {
        self.room_octets.load(Ordering::Relaxed).saturating_sub(self.admitted_octets.load(Ordering::Relaxed))
    }

    pub fn is_full(&self) -> bool {
        self.room_octets() < self.reserve_octets
    }

    /// Whether there is less room than mail was refused for lately: what was deleted is to give its own back.
    pub fn is_short(&self) -> bool {
        self.room_octets() < self.reserve_octets.saturating_add(self.asked_octets())
    }

    /// Whether there is room for what could be done without.
    pub fn is_ample(&self) -> bool {
        self.room_octets() >= self.reserve_octets.saturating_add(self.asked_octets()).saturating_mul(AMPLE_RESERVES)
    }

    /// What the largest mail needs beside the reserve that was refused lately.
    fn asked_octets(&self) -> u64 {
        let refused = *self.refused.lock();
        refused.filter(|(_, at)| at.elapsed() < ASKED_FOR).map_or(0, |(octets, _)| octets)
    }

    /// Whether mail of so many octets may come.
    pub fn admit(&self, octets: u64) -> MailResult<()> {
        if self.room_octets() < self.reserve_octets.saturating_add(octets) {
            let asked = self.asked_octets().max(octets);
            *self.refused.lock() = Some((asked, Instant::now()));
            return Err(MailError::DiskFull);
        }
        self.admitted_octets.fetch_add(octets, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a database is to spare what room there is; looked at after each measurement.
    pub fn spares_room(&self) -> bool {
        let before = self.spares_room.load(Ordering::Relaxed);
        let spares = self.free_octets.load(Ordering::Relaxed) < spared_below(self.reserve_octets, before);
        self.spares_room.store(spares, Ordering::Relaxed);
        spares
    }

    /// Whether this replica may append what its leader sends, and a leader what clients ask for.
    pub fn takes_entries(&self) -> bool {
        self.room_octets() >= self.reserve_octets / FLOOR_DIVISOR
    }

    /// Whether a leader may append what makes room.
    pub fn takes_removals(&self) -> bool {
        self.room_octets() >= ballast::octets(self.reserve_octets) / 4
    }
}

/// From where on room is spared, and until when: not back and forth with each file that comes and goes.
fn spared_below(reserve_octets: u64, spares: bool) -> u64 {
    let more = if spares { reserve_octets / 2 } else { 0 };
    reserve_octets.saturating_mul(AMPLE_RESERVES).saturating_add(more)
}

/// Which of two halves mail can do without: the one with less room, where the other one is whole and has ample room.
fn dispensable(reserve_octets: u64, halves: [Room; 2]) -> Option<usize> {
    let [first, second] = halves.map(|half| half.free_octets);
    let (fuller, other) = match first.cmp(&second) {
        std::cmp::Ordering::Less => (0, halves[1]),
        std::cmp::Ordering::Greater => (1, halves[0]),
        std::cmp::Ordering::Equal => return None,
    };
    let is_ample = other.free_octets >= reserve_octets.saturating_mul(AMPLE_RESERVES);
    (other.is_whole && is_ample).then_some(fuller)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::Ordering;

    use types::MailError;

    use super::{BALLAST, InUse, Room, Space, dispensable, free_on};

    fn in_use(disk: &Path) -> InUse {
        InUse { disk: disk.to_owned(), is_whole: true }
    }

    /// As if it had been measured.
    fn set(space: &Space, octets: u64) {
        space.free_octets.store(octets, Ordering::Relaxed);
        space.keep_all();
    }

    #[test]
    fn a_half_is_dispensable_where_the_other_one_is_whole_and_has_ample_room() {
        let whole = |free_octets| Room { free_octets, is_whole: true };
        let damaged = |free_octets| Room { free_octets, is_whole: false };
        assert_eq!(dispensable(100, [whole(99), whole(200)]), Some(0));
        assert_eq!(dispensable(100, [whole(200), whole(0)]), Some(1));
        assert_eq!(dispensable(100, [whole(99), whole(199)]), None, "soon both would be full");
        assert_eq!(dispensable(100, [whole(99), damaged(1_000)]), None, "it may lack what the full one has");
        assert_eq!(dispensable(100, [damaged(99), whole(1_000)]), Some(0));
        assert_eq!(dispensable(100, [whole(50), whole(50)]), None);
        assert_eq!(dispensable(u64::MAX, [whole(50), whole(u64::MAX)]), Some(0), "the sum stays a number");
    }

    #[test]
    fn room_is_spared_until_there_is_clearly_more() {
        let space = Space::new(1_000);
        let spares_at = |octets| {
            set(&space, octets);
            space.spares_room()
        };
        assert!(!spares_at(2_000) && spares_at(1_999) && spares_at(2_499) && !spares_at(2_500) && !spares_at(2_000));
    }

    #[test]
    fn what_a_dispensable_half_lacks_in_room_refuses_no_mail() {
        let disks = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let space = Space::new(1_600);
        let both = disks.each_ref().map(|disk| in_use(disk.path()));
        // On one file system neither is to go.
        assert_eq!(space.measure(&both).unwrap(), None);
        assert!(!space.is_full());
        space.free_octets.store(300, Ordering::Relaxed);
        space.count(10_000);
        assert!(!space.is_full() && space.takes_entries());
        assert_eq!((space.admit(8_000), space.free_octets()), (Ok(()), 0));
        space.count(10_000);
        // It could not be given up.
        space.keep_all();
        assert_eq!((space.is_full(), space.admit(1)), (true, Err(MailError::DiskFull)));
    }

    #[test]
    fn mail_is_refused_below_the_reserve_and_entries_below_the_floor() {
        let directory = tempfile::tempdir().unwrap();
        let space = Space::new(1_600);
        set(&space, 2_400);
        assert_eq!(space.admit(600), Ok(()));
        // What was admitted counts until the next look.
        assert!(!space.is_short());
        assert_eq!(space.admit(600), Err(MailError::DiskFull));
        assert!(!space.is_full() && space.takes_entries());
        // It may come again, and is to have room then.
        set(&space, 2_199);
        assert!(space.is_short() && space.admit(500).is_ok());
        set(&space, 2_200);
        assert!(!space.is_short() && !space.is_ample());
        set(&space, 4_399);
        assert!(!space.is_ample());
        set(&space, 4_400);
        assert!(space.is_ample());
        set(&space, 500);
        assert!(space.is_full() && space.takes_entries());
        set(&space, 300);
        assert!(!space.takes_entries() && space.takes_removals());
        set(&space, 20);
        assert!(!space.takes_removals());
        space.measure(&[in_use(directory.path()), in_use(&directory.path().join("gone"))]).unwrap();
        assert!(space.takes_entries());
        assert!(directory.path().join(BALLAST).exists(), "there is room for it");
        assert!(space.measure(&[]).is_err());
    }

    #[test]
    fn the_ballast_goes_when_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let space = Space::new(1 << 20);
        space.measure(&[in_use(directory.path())]).unwrap();
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
