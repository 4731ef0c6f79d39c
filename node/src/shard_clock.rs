//! The time in a shard's commands. What a shard remembers for a while, requests and fingerprints, it forgets by the
//! stamps of its commands; a machine whose clock is set ahead must not make it forget all at once, or what is asked for
//! again is done again. So time goes on from the newest stamp in the log, and no faster than [`RATE`].
//!
//! Pure: both clocks are passed in.

use std::time::Instant;

use parking_lot::Mutex;

/// How much faster than real time: ten minutes of memory are half a minute at least, a week is eight hours, and a shard
/// whose newest memory is old when its process starts is in step again within a twentieth of that.
const RATE: i64 = 20;

pub struct ShardClock(Mutex<Option<(i64, Instant)>>);

impl ShardClock {
    /// `newest`: the stamp of the newest thing that the shard remembers. Without any there is nothing to forget.
    pub fn new(newest: Option<i64>, now: Instant) -> ShardClock {
        ShardClock(Mutex::new(newest.map(|newest| (newest, now))))
    }

    /// A command was applied, or a state installed whose newest memory is of then.
    pub fn seen(&self, unix_ms: i64, now: Instant) {
        let mut newest = self.0.lock();
        if newest.is_none_or(|(known, _)| unix_ms > known) {
            *newest = Some((unix_ms, now));
        }
    }

    /// What the next command is stamped with, where the machine's clock says `unix_ms`. A clock that was set back is
    /// followed: then things are remembered for longer.
    pub fn stamp(&self, unix_ms: i64, now: Instant) -> i64 {
        let Some((newest, at)) = *self.0.lock() else { return unix_ms };
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
        let (clock, start) = (ShardClock::new(None, Instant::now()), Instant::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        // Nothing to forget: the machine's clock is believed.
        assert_eq!(clock.stamp(500_000, start), 500_000);
        clock.seen(500_000, start);
        assert_eq!(clock.stamp(501_000, later(1)), 501_000);
        // An hour ahead.
        assert_eq!(clock.stamp(4_101_000, later(1)), 520_000);
        clock.seen(520_000, later(1));
        assert_eq!(clock.stamp(4_101_000, later(1)), 520_000);
        assert_eq!(clock.stamp(4_111_000, later(11)), 720_000);
        assert_eq!(clock.stamp(4_401_000, later(301)), 4_401_000);
        assert_eq!(clock.stamp(100_000, later(2)), 100_000);
        // Back where it was: no faster for having been away.
        clock.seen(100_000, later(2));
        assert_eq!(clock.stamp(521_000, later(2)), 521_000);
    }

    #[test]
    fn a_process_that_starts_with_a_clock_ahead_forgets_no_faster() {
        let start = Instant::now();
        let clock = ShardClock::new(Some(1_000), start);
        assert_eq!(clock.stamp(86_400_000, start), 1_000);
        assert_eq!(clock.stamp(86_400_000, start + Duration::from_secs(3)), 61_000);
        // A snapshot brings newer memories.
        clock.seen(70_000, start + Duration::from_secs(3));
        assert_eq!(clock.stamp(86_400_000, start + Duration::from_secs(4)), 90_000);
    }
}
