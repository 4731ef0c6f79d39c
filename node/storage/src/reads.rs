//! Reads that a disk has not answered yet. No clock is asked and no lock taken for a read: whoever looks now and then sees
//! which ones are the same as before.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Reads that are seen at once: more than a node has threads. Those beyond are not seen, and come after others that are.
const PLACES: usize = 1024;
/// Between the places that threads begin with: a cache line.
const APART: usize = 8;

pub(crate) struct Reads {
    /// Odd while a read is under way there.
    places: Box<[AtomicU64]>,
    by_time: Mutex<Vec<Option<Seen<Instant>>>>,
    by_looks: Mutex<Vec<Option<Seen<u32>>>>,
}

/// A read by the number at its place, and what was said of it.
#[derive(Clone, Copy)]
struct Seen<T> {
    found: u64,
    said: T,
}

/// One that is under way; dropping it says that it was answered.
pub(crate) struct Read<'a> {
    place: Option<&'a AtomicU64>,
}

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static FIRST: usize = NEXT.fetch_add(APART, Ordering::Relaxed) % PLACES;
}

impl Default for Reads {
    fn default() -> Reads {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Reads { places, by_time: Mutex::new(vec![None; PLACES]), by_looks: Mutex::new(vec![None; PLACES]) }
    }
}

impl Reads {
    pub(crate) fn begin(&self) -> Read<'_> {
        // A thread that ends still reads, perhaps.
        let first = FIRST.try_with(|first| *first).unwrap_or(0);
        let (before, behind) = self.places.split_at(first);
        let place = behind.iter().chain(before).find(|place| {
            let found = place.load(Ordering::Relaxed);
            let free = found.is_multiple_of(2);
            free && place.compare_exchange(found, found + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
        });
        Read { place }
    }

    /// How long the oldest has been under way, from the first call on that has seen it.
    pub(crate) fn oldest(&self) -> Duration {
        let now = Instant::now();
        let since = self.look(&mut self.by_time.lock(), |seen| seen.unwrap_or(now)).into_iter().min();
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// How many calls, with this one, have seen the one that most of them have seen.
    pub(crate) fn looks(&self) -> u32 {
        let looks = self.look(&mut self.by_looks.lock(), |seen| seen.unwrap_or(0).saturating_add(1));
        looks.into_iter().max().unwrap_or(0)
    }

    /// What is now to be said of each read that is under way, by what was said of it before, if it was.
    fn look<T: Copy>(&self, seen: &mut [Option<Seen<T>>], say: impl Fn(Option<T>) -> T) -> Vec<T> {
        let mut said = Vec::new();
        for (place, seen) in self.places.iter().zip(seen) {
            let found = place.load(Ordering::Relaxed);
            let before = seen.filter(|seen| seen.found == found).map(|seen| seen.said);
            *seen = (!found.is_multiple_of(2)).then(|| Seen { found, said: say(before) });
            said.extend(seen.map(|seen| seen.said));
        }
        said
    }
}

impl Drop for Read<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            place.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{PLACES, Reads};

    #[test]
    fn a_read_is_seen_look_by_look_until_it_is_answered() {
        let reads = Reads::default();
        assert_eq!((reads.looks(), reads.oldest()), (0, Duration::ZERO));
        let first = reads.begin();
        assert_eq!([reads.looks(), reads.looks()], [1, 2]);
        let second = reads.begin();
        assert_eq!(reads.looks(), 3);
        drop(first);
        assert_eq!(reads.looks(), 2);
        drop(second);
        assert_eq!(reads.looks(), 0);
        // Another one in the same place is another one.
        for _ in 0..3 {
            let _next = reads.begin();
            assert_eq!(reads.looks(), 1);
        }
    }

    #[test]
    fn the_oldest_counts_in_time_too() {
        let reads = Reads::default();
        let first = reads.begin();
        while reads.oldest() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        let _second = reads.begin();
        assert!(reads.oldest() >= Duration::from_millis(20));
        drop(first);
        assert!(reads.oldest() < Duration::from_secs(1000));
    }

    #[test]
    fn more_reads_than_there_are_places_are_not_refused() {
        let reads = Reads::default();
        let all: Vec<_> = (0..PLACES + 3).map(|_| reads.begin()).collect();
        assert_eq!(reads.looks(), 1);
        drop(all);
        assert_eq!(reads.looks(), 0);
    }
}
