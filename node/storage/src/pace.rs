//! How fast a half is made anew, or a replica is read to be compared: as fast as the volume's own writes hardly notice,
//! between two bounds.
//!
//! ```text
//! rounds of the writer ──► RoundTimes ──► Pace: slower than when all was calm? halve the rate; else raise it
//! ```
//!
//! A fixed rate is too much for one disk and too little for another, and what it does to those who wait for their mail to
//! be synced depends on what they do. So that is what is looked at. Below the lower bound the rate never goes: a resilver
//! always ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Rounds that make a mean worth anything, and how long they are waited for.
const ROUNDS_MIN: u64 = 8;
const INTERVAL_MIN: Duration = Duration::from_millis(250);
const INTERVAL_MAX: Duration = Duration::from_secs(2);
/// A round takes so many times what it took in calm: too much. The slowest of a hundred is noticed twice as much as the
/// mean, and that is to stay below 2.
const SLOWER_MAX: f64 = 1.5;
/// The lower bound, as a share of the upper one: with 64 MiB/s 1 TiB takes a day and a half, and not a week.
const SHARE_MIN: f64 = 0.125;
/// The steps of the rate: down at once, up in some seconds.
const DOWN: f64 = 0.5;
const UP: f64 = 1.25;
/// Up where nobody writes.
const UP_IDLE: f64 = 2.0;
/// What weight a mean has against all before: one in calm, where rounds are many, and one below what was taken for calm.
const CALM_SHARE: f64 = 1.0 / 64.0;
const CALMER_SHARE: f64 = 0.125;
/// Rounds that are slow at the lowest rate too are not slow because of the resilver: its idea of calm gives way.
const GIVES_WAY: f64 = 1.05;
/// What weight a round has against all before, to tell what rounds take now, and for how long it tells that.
const RECENT_SHARE: f64 = 1.0 / 16.0;
const RECENT: Duration = Duration::from_secs(30);
/// Between two looks at the rate while a reader waits.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// A reader waits no longer for one piece, whatever the rate: somebody waits for it.
const PIECE_MAX: Duration = Duration::from_secs(5);

/// How long the rounds of a volume's writer take. Written by its thread alone.
#[derive(Default)]
pub(crate) struct RoundTimes {
    count: AtomicU64,
    nanos: AtomicU64,
    /// The mean over the last ones without any of those; 0 while there were none.
    calm_nanos: AtomicU64,
    /// Resilvers and comparisons under way.
    disturbers: AtomicU32,
    /// The mean over the last ones, in seconds, and when the very last one ended.
    recent: Mutex<Option<(f64, Instant)>>,
}

impl RoundTimes {
    pub(crate) fn note(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        if self.disturbers.load(Ordering::Relaxed) == 0 {
            let calm = match self.calm_nanos.load(Ordering::Relaxed) {
                0 => nanos as f64,
                calm => toward(calm as f64, nanos as f64, CALM_SHARE),
            };
            self.calm_nanos.store(calm as u64, Ordering::Relaxed);
        }
        let before = self.recent();
        let took = took.as_secs_f64();
        let recent = before.map_or(took, |before| toward(before.as_secs_f64(), took, RECENT_SHARE));
        *self.recent.lock() = Some((recent, Instant::now()));
    }

    /// What the last rounds took on average, the older ones counting ever less; `None` where none has ended lately.
    pub(crate) fn recent(&self) -> Option<Duration> {
        let recent = *self.recent.lock();
        recent.filter(|(_, at)| at.elapsed() < RECENT).map(|(mean, _)| Duration::from_secs_f64(mean))
    }

    fn so_far(&self) -> (u64, u64) {
        (self.count.load(Ordering::Relaxed), self.nanos.load(Ordering::Relaxed))
    }

    fn calm(&self) -> Option<f64> {
        Some(self.calm_nanos.load(Ordering::Relaxed) as f64).filter(|nanos| *nanos > 0.0)
    }
}

fn toward(from: f64, to: f64, share: f64) -> f64 {
    from + (to - from) * share
}

/// The rate of one resilver or comparison, and what it may write or read now.
pub(crate) struct Pace {
    times: Arc<RoundTimes>,
    rate: Rate,
    /// What may be written at once; below zero, what was written too early.
    allowed: f64,
    allowed_at: Instant,
    heard: (u64, u64),
    heard_at: Instant,
}

impl Pace {
    pub(crate) fn new(times: &Arc<RoundTimes>, bytes_per_s_max: u64, now: Instant) -> Pace {
        let rate = Rate::new(bytes_per_s_max as f64, times.calm());
        times.disturbers.fetch_add(1, Ordering::Relaxed);
        Pace { times: times.clone(), rate, allowed: 0.0, allowed_at: now, heard: times.so_far(), heard_at: now }
    }

    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.allowed -= bytes as f64;
    }

    /// How long to wait before the next write, as things are now: to be asked again then.
    pub(crate) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.hear(now);
        let passed = now.saturating_duration_since(self.allowed_at).as_secs_f64();
        (self.allowed, self.allowed_at) = ((self.allowed + passed * self.rate.bytes_per_s).min(0.0), now);
        let early = Duration::from_secs_f64(-self.allowed / self.rate.bytes_per_s);
        (!early.is_zero()).then_some(early)
    }

    fn hear(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.heard_at);
        let (count, nanos) = self.times.so_far();
        let rounds = count - self.heard.0;
        if passed < INTERVAL_MIN || (rounds < ROUNDS_MIN && passed < INTERVAL_MAX) {
            return;
        }
        self.rate.adapt((rounds > 0).then(|| (nanos - self.heard.1) as f64 / rounds as f64));
        (self.heard, self.heard_at) = ((count, nanos), now);
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.times.disturbers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How fast a replica is read that nobody waits for: see [`crate::Group::read_pace`].
pub struct ReadPace(Pace);

impl ReadPace {
    pub(crate) fn new(times: &Arc<RoundTimes>, bytes_per_s_max: u64) -> ReadPace {
        ReadPace(Pace::new(times, bytes_per_s_max, Instant::now()))
    }

    /// So many bytes were read: returns when more may be. Blocks its thread, for some seconds at most.
    pub fn read(&mut self, bytes: u64) {
        let end = Instant::now() + PIECE_MAX;
        self.0.wrote(bytes);
        while let Some(early) = self.0.wait(Instant::now()).filter(|_| Instant::now() < end) {
            thread::sleep(early.min(WAIT_MAX));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Rate {
    bytes_per_s: f64,
    min: f64,
    max: f64,
    /// What a round takes when nobody resilvers, in nanoseconds.
    calm: Option<f64>,
}

impl Rate {
    /// From the bottom: what it costs is not known yet.
    fn new(max: f64, calm: Option<f64>) -> Rate {
        let max = max.max(1.0);
        let min = max * SHARE_MIN;
        Rate { bytes_per_s: min, min, max, calm }
    }

    /// `mean`: of the rounds since the last time; `None` if there were none.
    fn adapt(&mut self, mean: Option<f64>) {
        let Some(mean) = mean else {
            self.bytes_per_s = (self.bytes_per_s * UP_IDLE).min(self.max);
            return;
        };
        let calm = *self.calm.get_or_insert(mean);
        if mean <= calm * SLOWER_MAX {
            self.bytes_per_s = (self.bytes_per_s * UP).min(self.max);
            if mean < calm {
                self.calm = Some(toward(calm, mean, CALMER_SHARE));
            }
            return;
        }
        if self.bytes_per_s <= self.min {
            self.calm = Some(calm * GIVES_WAY);
        }
        self.bytes_per_s = (self.bytes_per_s * DOWN).max(self.min);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{Pace, Rate, RoundTimes};

    const MIB: f64 = (1 << 20) as f64;

    fn after(rate: &mut Rate, means: &[Option<f64>]) -> f64 {
        means.iter().for_each(|mean| rate.adapt(*mean));
        rate.bytes_per_s / MIB
    }

    #[test]
    fn a_resilver_yields_to_writes_that_have_become_slower_and_not_below_its_minimum() {
        let mut rate = Rate::new(64.0 * MIB, Some(1000.0));
        assert_eq!(rate.bytes_per_s / MIB, 8.0);
        assert_eq!(after(&mut rate, &[Some(1400.0); 20]), 64.0, "as fast as it may where nobody minds");
        assert_eq!(after(&mut rate, &[Some(1600.0)]), 32.0);
        assert_eq!(after(&mut rate, &[Some(9000.0); 10]), 8.0);
        assert_eq!(after(&mut rate, &[Some(1000.0)]), 10.0);
    }

    #[test]
    fn a_resilver_takes_what_there_is_where_nobody_writes() {
        let mut rate = Rate::new(64.0 * MIB, None);
        assert_eq!(after(&mut rate, &[None; 3]), 64.0);
    }

    #[test]
    fn what_is_slow_without_it_too_does_not_hold_a_resilver_back_for_ever() {
        let mut rate = Rate::new(64.0 * MIB, Some(1000.0));
        assert_eq!(after(&mut rate, &[Some(3000.0); 10]), 8.0);
        assert_eq!(after(&mut rate, &[Some(3000.0); 30]), 64.0);
        // And calm is learnt again.
        assert_eq!(after(&mut rate, &[Some(1000.0); 40]), 64.0);
        assert_eq!(after(&mut rate, &[Some(1600.0)]), 32.0);
    }

    #[test]
    fn what_was_written_is_waited_for_at_the_rate_of_the_moment() {
        let times = Arc::new(RoundTimes::default());
        let start = Instant::now();
        let mut pace = Pace::new(&times, 64 << 20, start);
        assert_eq!(pace.wait(start), None);
        pace.wrote(1 << 20);
        assert_eq!(pace.wait(start), Some(Duration::from_millis(125)));
        assert_eq!(pace.wait(start + Duration::from_millis(100)), Some(Duration::from_millis(25)));
        assert_eq!(pace.wait(start + Duration::from_millis(125)), None);
        // Idle for a while does not allow a burst.
        let later = start + Duration::from_secs(9);
        assert_eq!(pace.wait(later), None);
        pace.wrote(2 << 20);
        assert_eq!(pace.wait(later), Some(Duration::from_millis(125)), "nobody writes: 16 MiB/s by now");
    }

    #[test]
    fn what_rounds_take_now_follows_a_disk_that_becomes_slow() {
        let times = RoundTimes::default();
        assert_eq!(times.recent(), None);
        let mean_after = |rounds: usize, millis| {
            (0..rounds).for_each(|_| times.note(Duration::from_millis(millis)));
            times.recent().map_or(0, |recent| recent.as_millis())
        };
        assert_eq!(mean_after(1, 4), 4);
        assert!(mean_after(1, 1_000) < 70, "one slow round is none of a slow disk");
        assert!(mean_after(30, 200) > 150);
        assert!(mean_after(60, 4) < 10);
    }

    #[test]
    fn rounds_during_a_resilver_are_not_taken_for_calm() {
        let times = Arc::new(RoundTimes::default());
        times.note(Duration::from_millis(2));
        let start = Instant::now();
        let mut pace = Pace::new(&times, 64 << 20, start);
        for _ in 0..8 {
            times.note(Duration::from_millis(50));
        }
        pace.rate.bytes_per_s = 64.0 * MIB;
        pace.wait(start + Duration::from_millis(250));
        assert_eq!(pace.rate.bytes_per_s, 32.0 * MIB);
        // A comparison beside it does not make calm of it when it ends.
        drop(Pace::new(&times, 1 << 20, start));
        times.note(Duration::from_millis(50));
        drop(pace);
        assert_eq!(times.calm(), Some(2e6));
        times.note(Duration::from_millis(2));
        assert_eq!(times.calm(), Some(2e6));
    }
}
