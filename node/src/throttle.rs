//! How fast copies of shards may go to other nodes: as fast as mail allows. The rate falls while changes of mail take longer
//! than they do without copies, and rises while they do not.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Slower than this a copy would never catch up.
const RATE_MIN: u64 = 1024 * 1024;
/// What copies begin with.
pub const RATE_FIRST: u64 = 8 * 1024 * 1024;
/// Without copies a change takes less than this however it is counted; nothing is slowed down for less.
const LATENCY_MIN: Duration = Duration::from_millis(20);
/// How much longer changes may take than without copies.
const LATENCY_RATIO: f64 = 1.5;
/// Fewer changes than this are waited for, the rate as it is: mail that is slow brings few.
const SAMPLES_MIN: u32 = 8;
/// Looks after which fewer have to do.
const LOOKS_MAX: u32 = 8;
/// How much the last look counts in the rate that was seen.
const SEEN_LAST_LOOK: f64 = 0.2;
/// Buckets a factor of the square root of two apart, from a tenth of a millisecond to ten minutes.
const BUCKETS: usize = 48;
const BUCKET_FIRST_S: f64 = 0.0001;

/// Latencies of changes since they were last looked at.
pub struct Latencies([AtomicU32; BUCKETS]);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

impl Latencies {
    pub fn add(&self, latency: Duration) {
        let bucket = (latency.as_secs_f64() / BUCKET_FIRST_S).max(1.0).log2() * 2.0;
        self.0[(bucket as usize).min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// The 99th percentile, rounded up to its bucket; and begins anew. `None` where there were none.
    fn take(&self) -> Option<Duration> {
        let counts: Vec<u32> = self.0.iter().map(|bucket| bucket.swap(0, Ordering::Relaxed)).collect();
        let all: u32 = counts.iter().sum();
        let (mut beyond, share) = (0, all / 100);
        let bucket = (0..BUCKETS).rev().find(|bucket| {
            beyond += counts[*bucket];
            beyond > share
        });
        bucket.map(|bucket| Duration::from_secs_f64(BUCKET_FIRST_S * 2f64.powf((bucket + 1) as f64 / 2.0)))
    }
}

pub struct Throttle {
    rate: AtomicU64,
    rate_max: u64,
    /// Octets that have gone ahead of their time, as of then.
    debt: Mutex<(Instant, f64)>,
    used: AtomicBool,
    /// Looks since latencies were taken.
    looks: AtomicU32,
    /// Of changes without copies, in microseconds; 0 while nothing is known.
    usual_us: AtomicU64,
    pub latencies: Latencies,
    passed_octets: AtomicU64,
    waits: AtomicU64,
    slowed: AtomicU64,
    seen: Mutex<Seen>,
}

/// How fast copies went, as far as there were any.
struct Seen {
    looked: Instant,
    passed_octets: u64,
    /// Copies were under way at the last look: since then they went all the time.
    under_way: bool,
    octets_per_s: f64,
}

impl Seen {
    fn look(&mut self, passed_octets: u64, now: Instant) {
        let passed = passed_octets.saturating_sub(self.passed_octets) as f64;
        let seconds = now.saturating_duration_since(self.looked).as_secs_f64();
        if passed > 0.0 && self.under_way && seconds > 0.0 {
            let last = passed / seconds;
            let is_first = self.octets_per_s <= 0.0;
            let before = if is_first { last } else { self.octets_per_s };
            self.octets_per_s = before * (1.0 - SEEN_LAST_LOOK) + last * SEEN_LAST_LOOK;
        }
        (self.looked, self.passed_octets, self.under_way) = (now, passed_octets, passed > 0.0);
    }
}

/// What copies did since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyFigures {
    pub octets: u64,
    /// How often one was told to wait.
    pub waits: u64,
    /// How often the rate fell since mail took longer.
    pub slowed: u64,
    /// What may go now.
    pub octets_per_s: u64,
    /// What went while copies were under way, lately; 0 before the first one.
    pub octets_per_s_seen: u64,
    /// What the settings allow.
    pub octets_per_s_max: u64,
}

impl Throttle {
    pub fn new(rate_max: u64) -> Throttle {
        Throttle {
            rate: AtomicU64::new(RATE_FIRST.min(rate_max)),
            rate_max,
            debt: Mutex::new((Instant::now(), 0.0)),
            used: AtomicBool::new(false),
            looks: AtomicU32::new(0),
            usual_us: AtomicU64::new(0),
            latencies: Latencies::default(),
            passed_octets: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            slowed: AtomicU64::new(0),
            seen: Mutex::new(Seen { looked: Instant::now(), passed_octets: 0, under_way: false, octets_per_s: 0.0 }),
        }
    }

    pub fn figures(&self) -> CopyFigures {
        CopyFigures {
            octets: self.passed_octets.load(Ordering::Relaxed),
            waits: self.waits.load(Ordering::Relaxed),
            slowed: self.slowed.load(Ordering::Relaxed),
            octets_per_s: self.rate.load(Ordering::Relaxed),
            octets_per_s_seen: self.seen.lock().octets_per_s.round() as u64,
            octets_per_s_max: self.rate_max,
        }
    }

    /// Whether these octets may go now; else how long until it is worth asking again.
    pub fn pass(&self, octets: usize, now: Instant) -> Result<(), Duration> {
        self.used.store(true, Ordering::Relaxed);
        let rate = self.rate.load(Ordering::Relaxed) as f64;
        let mut debt = self.debt.lock();
        let left = (debt.1 - now.saturating_duration_since(debt.0).as_secs_f64() * rate).max(0.0);
        if left > 0.0 {
            *debt = (now, left);
            self.waits.fetch_add(1, Ordering::Relaxed);
            return Err(Duration::from_secs_f64(left / rate));
        }
        *debt = (now, octets as f64);
        self.passed_octets.fetch_add(octets as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Counts octets of a copy that go whatever the rate is.
    pub fn let_by(&self, octets: usize) {
        self.used.store(true, Ordering::Relaxed);
        self.passed_octets.fetch_add(octets as u64, Ordering::Relaxed);
    }

    /// To be called at a steady pace: sets the rate by what changes of mail took since the last time.
    pub fn adapt(&self, now: Instant) {
        self.seen.lock().look(self.passed_octets.load(Ordering::Relaxed), now);
        let looks = self.looks.fetch_add(1, Ordering::Relaxed) + 1;
        if (1..SAMPLES_MIN).contains(&self.latencies.count()) && looks < LOOKS_MAX {
            return;
        }
        self.looks.store(0, Ordering::Relaxed);
        let latency = self.latencies.take();
        let usual = Duration::from_micros(self.usual_us.load(Ordering::Relaxed));
        if !self.used.swap(false, Ordering::Relaxed) {
            if let Some(latency) = latency {
                let next = if usual.is_zero() { latency } else { usual.mul_f64(0.8) + latency.mul_f64(0.2) };
                self.usual_us.store(next.as_micros() as u64, Ordering::Relaxed);
            }
            self.rate.store(RATE_FIRST.min(self.rate_max), Ordering::Relaxed);
            return;
        }
        let rate = self.rate.load(Ordering::Relaxed);
        let next = match latency {
            Some(latency) if latency > usual.mul_f64(LATENCY_RATIO).max(LATENCY_MIN) => {
                self.slowed.fetch_add(1, Ordering::Relaxed);
                rate / 2
            }
            _ => rate + rate / 4,
        };
        self.rate.store(next.clamp(RATE_MIN.min(self.rate_max), self.rate_max), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Latencies, RATE_MIN, Throttle};

    #[test]
    fn the_99th_percentile_is_that_of_the_slowest_hundredth() {
        let latencies = Latencies::default();
        assert_eq!(latencies.take(), None);
        (0..980).for_each(|_| latencies.add(Duration::from_millis(2)));
        (0..20).for_each(|_| latencies.add(Duration::from_millis(200)));
        let p99 = latencies.take().unwrap();
        assert!(p99 >= Duration::from_millis(200) && p99 < Duration::from_millis(400), "{p99:?}");
        (0..1000).for_each(|_| latencies.add(Duration::from_millis(2)));
        (0..5).for_each(|_| latencies.add(Duration::from_millis(200)));
        assert!(latencies.take().unwrap() < Duration::from_millis(4));
    }

    #[test]
    fn octets_pass_at_the_rate() {
        let throttle = Throttle::new(1_000_000);
        let start = Instant::now();
        assert_eq!(throttle.pass(500_000, start), Ok(()));
        let wait = throttle.pass(1, start).unwrap_err();
        assert!((wait.as_secs_f64() - 0.5).abs() < 0.01, "{wait:?}");
        assert_eq!(throttle.pass(1, start + Duration::from_millis(501)), Ok(()));
        assert_eq!((throttle.figures().octets, throttle.figures().waits), (500_001, 1));
    }

    #[test]
    fn the_rate_that_was_seen_is_that_of_copies_and_not_of_the_time_without_any() {
        let throttle = Throttle::new(1 << 30);
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let seen = |now| {
            throttle.adapt(now);
            throttle.figures().octets_per_s_seen
        };
        assert_eq!(seen(after(1)), 0, "there was no copy");
        throttle.pass(500_000, after(2)).unwrap();
        assert_eq!(seen(after(2)), 0, "it has just begun");
        throttle.pass(500_000, after(3)).unwrap();
        assert_eq!(seen(after(3)), 500_000);
        throttle.pass(1_000_000, after(4)).unwrap();
        assert_eq!(seen(after(4)), 600_000);
        // An hour without copies says nothing of how fast they go.
        assert_eq!(seen(after(3600)), 600_000);
        assert_eq!(throttle.figures().octets_per_s_max, 1 << 30);
    }

    fn window_of(throttle: &Throttle, changes: u32, ms: u64, copies: bool) {
        (0..changes).for_each(|_| throttle.latencies.add(Duration::from_millis(ms)));
        if copies {
            let _ = throttle.pass(1, Instant::now());
        }
        throttle.adapt(Instant::now());
    }

    #[test]
    fn copies_yield_to_mail_that_is_so_slow_that_little_of_it_comes_and_not_to_none() {
        let throttle = Throttle::new(1 << 30);
        (0..20).for_each(|_| window_of(&throttle, 100, 30, false));
        (0..60).for_each(|_| window_of(&throttle, 1, 300, true));
        let slow = throttle.figures();
        assert!(slow.octets_per_s == RATE_MIN && slow.slowed > 0, "{slow:?}");
        (0..60).for_each(|_| window_of(&throttle, 0, 0, true));
        assert_eq!(throttle.figures().octets_per_s, 1 << 30);
    }

    #[test]
    fn copies_yield_to_mail_and_come_back() {
        let throttle = Throttle::new(1 << 30);
        let window = |throttle: &Throttle, ms: u64, copies: bool| window_of(throttle, 100, ms, copies);
        (0..20).for_each(|_| window(&throttle, 30, false));
        let first = throttle.figures().octets_per_s;
        (0..8).for_each(|_| window(&throttle, 30, true));
        assert!(throttle.figures().octets_per_s > first * 4);
        (0..20).for_each(|_| window(&throttle, 300, true));
        assert_eq!(throttle.figures().octets_per_s, RATE_MIN);
        (0..60).for_each(|_| window(&throttle, 30, true));
        assert_eq!(throttle.figures().octets_per_s, 1 << 30);
    }
}
