//! Writes and syncs that the disk has not answered yet, by when they began.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

#[derive(Default)]
pub(crate) struct UnderWay {
    next: AtomicU64,
    /// In the order in which they began, by and large: good enough for a time in seconds.
    began: Mutex<BTreeMap<u64, Instant>>,
}

/// One that is under way; dropping it says that it was answered.
pub(crate) struct Awaited<'a> {
    under_way: &'a UnderWay,
    number: u64,
}

impl UnderWay {
    pub(crate) fn begin(&self) -> Awaited<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.began.lock().insert(number, Instant::now());
        Awaited { under_way: self, number }
    }

    /// How long the oldest has been waiting; zero when there is none.
    pub(crate) fn oldest(&self) -> Duration {
        self.began.lock().values().next().map(Instant::elapsed).unwrap_or_default()
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.under_way.began.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::UnderWay;

    #[test]
    fn the_oldest_counts_until_it_is_answered() {
        let under_way = UnderWay::default();
        assert_eq!(under_way.oldest(), Duration::ZERO);
        let first = under_way.begin();
        while under_way.oldest() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        let second = under_way.begin();
        assert!(under_way.oldest() >= Duration::from_millis(20));
        drop(first);
        let _ = under_way.oldest();
        assert_eq!(under_way.began.lock().len(), 1);
        drop(second);
        assert_eq!(under_way.oldest(), Duration::ZERO);
    }
}
