//! What was deleted from a full disk gives its room back: see [`storage::Reclaim`]. Tried again only when more has gone since,
//! and ever more seldom while that wins nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use storage::{Reclaim, StorageError, Volume, free_on};
use tokio::sync::{oneshot, watch};

use super::{FLOOR_DIVISOR, LOOK, Space, ballast};
use crate::Node;
use crate::volumes::NodeVolume;

/// From the end of an attempt that has won something to the next one; at least as long as it took.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(300);
/// From the end of an attempt until a file system shows what it has won.
const SHOWN_MAX: Duration = Duration::from_secs(1);
/// An attempt that wins less than this part of the reserve has won nothing.
const WON_DIVISOR: u64 = 64;

/// The attempts on one volume.
#[derive(Default)]
struct Attempts {
    running: Option<oneshot::Receiver<Attempt>>,
    last: Option<Attempt>,
    /// How long to rest after it.
    rest: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Attempt {
    /// What had gone from the volume when it looked ([`Volume::removed`]); `None` where it ended before all of that had given
    /// its room, for there was enough.
    removed: Option<u64>,
    took: Duration,
    has_won: bool,
    ended: Instant,
}

/// Tries it on each volume that is full, by a thread of its own.
pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    let mut all: BTreeMap<u32, Attempts> = BTreeMap::new();
    loop {
        for own in node.groups().volumes.list() {
            let Some(volume) = own.volume() else { continue };
            let attempts = all.entry(own.number).or_default();
            attempts.look();
            if own.space.is_short() && attempts.is_due(volume.removed(), Instant::now()) {
                own.space.hold(true);
                attempts.running = begin(own.clone(), volume, stopped.clone());
            }
            own.space.hold(attempts.counts(Instant::now()));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
    }
    // So that the volume is closed by whoever waits for that, and not amid this.
    for running in all.into_values().filter_map(|attempts| attempts.running) {
        drop(running.await);
    }
}

impl Attempts {
    fn look(&mut self) {
        let Some(running) = &mut self.running else { return };
        match running.try_recv() {
            Ok(attempt) => self.end(attempt),
            Err(oneshot::error::TryRecvError::Empty) => return,
            // Its thread has ended in a panic, or the volume was closed.
            Err(oneshot::error::TryRecvError::Closed) => {}
        }
        self.running = None;
    }

    /// Whether one is under way, or has ended so lately that a disk need not show it yet.
    fn counts(&self, now: Instant) -> bool {
        let is_fresh = |last: &Attempt| now.saturating_duration_since(last.ended) < SHOWN_MAX;
        self.running.is_some() || self.last.as_ref().is_some_and(is_fresh)
    }

    fn end(&mut self, attempt: Attempt) {
        self.rest = match attempt.has_won {
            true => REST_MIN,
            false => (self.rest * 2).clamp(REST_MIN, REST_MAX),
        };
        self.last = Some(attempt);
    }

    /// Whether more has gone since the last one, and it has rested. What went before this process began is not known.
    fn is_due(&self, removed: u64, now: Instant) -> bool {
        let Some(last) = &self.last else { return self.running.is_none() };
        let rested = now.saturating_duration_since(last.ended) >= self.rest.max(last.took);
        self.running.is_none() && last.removed != Some(removed) && rested
    }
}

fn begin(full: Arc<NodeVolume>, volume: Volume, stopped: watch::Receiver<bool>) -> Option<oneshot::Receiver<Attempt>> {
    let (sender, receiver) = oneshot::channel();
    let number = full.number;
    let spawned = thread::Builder::new().name("volume-reclaim".to_owned()).spawn(move || {
        let attempt = attempt(&full, &volume, &stopped);
        // The handle goes first: it may be the last one.
        drop(volume);
        let _ = sender.send(attempt);
    });
    match spawned {
        Ok(_) => Some(receiver),
        Err(error) => {
            tracing::warn!(volume = number, %error, "room cannot be reclaimed");
            None
        }
    }
}

fn attempt(full: &NodeVolume, volume: &Volume, stopped: &watch::Receiver<bool>) -> Attempt {
    let (begun, before) = (Instant::now(), free_octets(full));
    let reserve_octets = full.space.reserve_octets;
    let ends = || *stopped.borrow();
    let mut result = volume.collect(&|| !ends());
    let removed = volume.removed();
    if result.is_ok() {
        let room = |disk: &Path| free_on(disk).map_or(0, |free| usable(reserve_octets, free));
        let enough = || {
            let asked = wanted(&full.space);
            // The halves of a mirror alike: the one that has much less would be given up for its room.
            full.disks.iter().filter_map(|disk| free_on(disk).ok()).fold(asked, u64::max)
        };
        let goes_on = |disk: &Path| !ends() && free_on(disk).is_ok_and(|free| free < enough());
        result = volume.reclaim(&Reclaim { room: &room, goes_on: &goes_on });
    }
    let (after, took) = (free_octets(full), begun.elapsed());
    let won_octets = after.saturating_sub(before);
    let has_won = won_octets > reserve_octets / WON_DIVISOR;
    match result {
        Ok(()) if has_won => {
            tracing::info!(volume = full.number, won_octets, ms = took.as_millis() as u64, "room reclaimed");
        }
        Ok(()) | Err(StorageError::Closed | StorageError::Dropped) => {
            tracing::debug!(volume = full.number, won_octets, "no room was to be reclaimed");
        }
        Err(error) => tracing::warn!(volume = full.number, %error, "room could not be reclaimed"),
    }
    let removed = Some(removed).filter(|_| wants_more(full));
    Attempt { removed, took, has_won, ended: Instant::now() }
}

/// Whether a disk of it wants more room.
fn wants_more(volume: &NodeVolume) -> bool {
    let wanted = wanted(&volume.space);
    volume.disks.iter().any(|disk| free_on(disk).is_ok_and(|free| free < wanted))
}

/// On all of its disks.
fn free_octets(volume: &NodeVolume) -> u64 {
    volume.disks.iter().filter_map(|disk| free_on(disk).ok()).sum()
}

/// Not only as much as lets the next message in.
fn wanted(space: &Space) -> u64 {
    space.reserve_octets.saturating_add(space.reserve_octets / 4).saturating_add(space.asked_octets())
}

/// What may be written to win more, where so much is free: the floor stays while there is as much again above it, and below
/// that what expunges need in any case.
fn usable(reserve_octets: u64, free_octets: u64) -> u64 {
    let floor = reserve_octets / FLOOR_DIVISOR;
    let kept = if free_octets >= floor.saturating_mul(2) { floor } else { ballast::octets(reserve_octets) };
    free_octets.saturating_sub(kept)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Attempt, Attempts, REST_MAX, REST_MIN, SHOWN_MAX, usable};

    #[test]
    fn it_is_tried_when_more_has_gone_and_ever_more_seldom_while_that_wins_nothing() {
        let mut attempts = Attempts::default();
        let begun = Instant::now();
        assert!(attempts.is_due(0, begun), "before this process more may have gone than it knows");
        let attempt = |removed, has_won, took| Attempt { removed: Some(removed), took, has_won, ended: begun };
        attempts.end(attempt(7, true, Duration::ZERO));
        assert!(!attempts.is_due(7, begun + REST_MAX), "nothing has gone since");
        assert!(attempts.counts(begun) && !attempts.counts(begun + SHOWN_MAX));
        assert!(!attempts.is_due(8, begun));
        assert!(attempts.is_due(8, begun + REST_MIN));
        attempts.end(Attempt { removed: None, ..attempt(7, true, Duration::ZERO) });
        assert!(attempts.is_due(7, begun + REST_MIN), "there was more to win than was wanted");
        let mut rests = Vec::new();
        for removed in 8..20 {
            attempts.end(attempt(removed, false, Duration::ZERO));
            rests.push(attempts.rest);
        }
        assert!(
            rests.is_sorted() && rests.first() == Some(&(REST_MIN * 2)) && rests.last() == Some(&REST_MAX),
            "{rests:?}"
        );
        attempts.end(attempt(20, true, REST_MIN * 10));
        assert!(!attempts.is_due(21, begun + REST_MIN * 9), "the disk has rest for as long as it was busy");
        assert!(attempts.is_due(21, begun + REST_MIN * 10));
    }

    #[test]
    fn what_is_written_to_win_room_leaves_some() {
        assert_eq!(usable(1_600, 1_600), 1_200);
        assert_eq!(usable(1_600, 800), 400);
        assert_eq!(usable(1_600, 799), 699);
        assert_eq!(usable(1_600, 99), 0);
        assert_eq!(usable(u64::MAX, 0), 0);
    }
}
