//! How long operations wait for what does not come.

use std::time::Duration;

/// By which an operation is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    operation_max: Duration,
    minority_max: Duration,
}

impl Patience {
    /// `operation_max`: of an operation that finds no leader, or is at a node that answers nothing. `minority_max`: where
    /// some replica answers but most are known not to; no longer than the other.
    pub fn new(operation_max: Duration, minority_max: Duration) -> Patience {
        Patience { operation_max, minority_max: minority_max.min(operation_max) }
    }

    pub fn operation_max(self) -> Duration {
        self.operation_max
    }

    pub fn minority_max(self) -> Duration {
        self.minority_max
    }
}

impl Default for Patience {
    fn default() -> Patience {
        crate::settings::Limits::default().patience()
    }
}

/// Waits that double, each shortened by up to a half at random so that sessions do not come back in step.
pub(super) struct Backoff {
    first: Duration,
    max: Duration,
    now: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, max: Duration) -> Backoff {
        Backoff { first, max, now: first }
    }

    pub(super) fn next(&mut self) -> Duration {
        let wait = self.now;
        self.now = (self.now * 2).min(self.max);
        wait.mul_f64(1.0 - jitter() / 2.0)
    }

    pub(super) fn is_long(&self) -> bool {
        self.now >= self.max
    }

    pub(super) fn reset(&mut self) {
        self.now = self.first;
    }
}

/// 0 to 1. Need not be good, only different from one session to the next.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    f64::from(RandomState::new().hash_one(0u8) as u32) / f64::from(u32::MAX)
}

pub(super) async fn pause(wait: Duration) {
    tokio::time::sleep(wait).await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Backoff, Patience};

    #[test]
    fn a_minority_is_given_no_more_time_than_an_operation_has() {
        let second = Duration::from_secs(1);
        for (operation, minority, given) in [(10, 2, 2), (10, 10, 10), (3, 10, 3)] {
            let patience = Patience::new(second * operation, second * minority);
            assert_eq!((patience.operation_max(), patience.minority_max()), (second * operation, second * given));
        }
    }

    #[test]
    fn waits_double_up_to_their_limit_and_differ() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
        for full in [50, 100, 200, 400, 500, 500] {
            let wait = backoff.next().as_millis();
            assert!((full / 2..=full).contains(&wait), "{wait} of {full}");
        }
    }
}
