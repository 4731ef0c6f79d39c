//! The time in a shard's commands. What a shard remembers for a while, requests and fingerprints, it forgets by the
//! stamps of its commands; a machine whose clock is set ahead must not make it forget all at once, or what is asked for
//! again is done again. So time goes on from the newest stamp in the log, and no faster than [`RATE`].
//!
//! Pure: both clocks are passed in.

use std::time::Instant;

use parking_lot::Mutex;

/// How much faster than real time: ten minutes of memory are half a minute at least, a week is eight hours, and a shard
/// whose last command was long before this process started is in step again within a twentieth of that.
const RATE: i64 = 20;

pub struct ShardClock {
    /// Commands up to this index were there when the process started, and tell nothing of what time it is now.
    before: u64,
    newest: Mutex<Option<(i64, Instant)>>,
}

impl ShardClock {
    pub fn new(before: u64) -> ShardClock {
        ShardClock { before, newest: Mutex::default() }
    }

    /// A command was applied.
    pub fn seen(&self, index: u64, unix_ms: i64, now: Instant) {
        let mut newest = self.newest.lock();
        if index > self.before && newest.is_none_or(|(known, _)| unix_ms > known) {
            *newest = Some((unix_ms, now));
        }
    }

    /// What the next command is stamped with, where the machine's clock says `unix_ms`. A clock that was set back is
    /// followed: then things are remembered for longer.
    pub fn stamp(&self, unix_ms: i64, now: Instant) -> i64 {
        let Some((newest, at)) = *self.newest.lock() else { return unix_ms };
        let elapsed = i64::try_from(now.duration_since(at).as_millis()).unwrap_or(i64::MAX);
        unix_ms.min(newest.saturating_add(elapsed.saturating_mul(RATE)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::ShardClock;

    #[test]
    fn a_clock_that_is_set_ahead_is_followed_slowly_and_one_that_is_set_back_at_once() {
        let (clock, start) = (ShardClock::new(7), Instant::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        // Nothing new in the log: the machine's clock is believed.
        clock.seen(7, 1_000, start);
        assert_eq!(clock.stamp(500_000, start), 500_000);
        clock.seen(8, 500_000, start);
        assert_eq!(clock.stamp(501_000, later(1)), 501_000);
        // An hour ahead.
        assert_eq!(clock.stamp(4_101_000, later(1)), 520_000);
        clock.seen(9, 520_000, later(1));
        assert_eq!(clock.stamp(4_101_000, later(1)), 520_000);
        assert_eq!(clock.stamp(4_111_000, later(11)), 720_000);
        assert_eq!(clock.stamp(4_401_000, later(301)), 4_401_000);
        assert_eq!(clock.stamp(100_000, later(2)), 100_000);
        // Back where it was: no faster for having been away.
        clock.seen(10, 100_000, later(2));
        assert_eq!(clock.stamp(521_000, later(2)), 521_000);
    }
}
