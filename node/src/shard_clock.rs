//! The time in a shard's commands, and in the directory's requests. What a shard remembers for a while, requests and fingerprints, it forgets by the
//! stamps of its commands, whoever leads: a machine whose clock is ahead must not make it forget all at once, nor one whose
//! clock is behind stamp what it does so old that the next leader forgets it, or what is asked for again is done again.
//! So time goes on from the newest stamp in the log, never backwards, at a pace between [`SLOWEST`] and [`FASTEST`].
//!
//! Pure: both clocks are passed in.

use std::time::Instant;

use parking_lot::Mutex;

/// How much faster than real time: ten minutes of memory are half a minute at least, a week is eight hours, and a shard
/// whose newest memory is old when its process starts is in step again within a twentieth of that.
const FASTEST: i64 = 20;
/// Real time over the time of a shard that is ahead of the machine's clock: things are still forgotten, if later.
const SLOWEST: i64 = 2;

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

    /// What the next command is stamped with, where the machine's clock says `unix_ms`.
    pub fn stamp(&self, unix_ms: i64, now: Instant) -> i64 {
        let Some((newest, at)) = *self.0.lock() else { return unix_ms };
        let elapsed = i64::try_from(now.duration_since(at).as_millis()).unwrap_or(i64::MAX);
        let least = newest.saturating_add(elapsed / SLOWEST);
        unix_ms.clamp(least, newest.saturating_add(elapsed.saturating_mul(FASTEST)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::ShardClock;

    const START: i64 = 500_000;

    fn clock(newest: Option<i64>) -> (ShardClock, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        (ShardClock::new(newest, start), move |seconds| start + Duration::from_secs(seconds))
    }

    #[test]
    fn a_clock_that_is_set_ahead_is_followed_slowly() {
        let (clock, after) = clock(None);
        // Nothing to forget: the machine's clock is believed.
        assert_eq!(clock.stamp(START, after(0)), START);
        clock.seen(START, after(0));
        assert_eq!(clock.stamp(START + 1_000, after(1)), START + 1_000);
        // An hour ahead.
        assert_eq!(clock.stamp(START + 3_601_000, after(1)), START + 20_000);
        clock.seen(START + 20_000, after(1));
        assert_eq!(clock.stamp(START + 3_601_000, after(1)), START + 20_000);
        assert_eq!(clock.stamp(START + 3_611_000, after(11)), START + 220_000);
        assert_eq!(clock.stamp(START + 3_901_000, after(301)), START + 3_901_000);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_what_is_done_now_look_old() {
        let (clock, after) = clock(Some(START));
        assert_eq!(clock.stamp(START - 86_400_000, after(0)), START);
        assert_eq!(clock.stamp(START - 86_400_000, after(10)), START + 5_000);
        clock.seen(START + 5_000, after(10));
        // Another leads, whose clock is right.
        assert_eq!(clock.stamp(START + 12_000, after(12)), START + 12_000);
        // Something from before comes late.
        clock.seen(START, after(12));
        assert_eq!(clock.stamp(START + 12_000, after(12)), START + 12_000);
    }

    #[test]
    fn a_process_that_starts_with_a_clock_ahead_forgets_no_faster() {
        let (clock, after) = clock(Some(1_000));
        assert_eq!(clock.stamp(86_400_000, after(0)), 1_000);
        assert_eq!(clock.stamp(86_400_000, after(3)), 61_000);
        // A snapshot brings newer memories.
        clock.seen(70_000, after(3));
        assert_eq!(clock.stamp(86_400_000, after(4)), 90_000);
    }
}
