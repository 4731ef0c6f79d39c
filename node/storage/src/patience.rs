//! Waiting for a disk, as the process itself has lived through it: what passes while the whole process stands still
//! (it is stopped, or its machine sleeps or moves) is no time in which a disk did not answer.

use std::time::{Duration, Instant};

use crate::half::Progress;

/// In so many short waits a limit is counted: a pause of any length is one of them.
const TICKS: u32 = 20;

pub(crate) fn tick(limit: Duration) -> Duration {
    limit / TICKS
}

/// Waits until it is no longer late, or that was so in every wait.
pub(crate) fn patiently(limit: Duration, mut wait: impl FnMut(Option<Instant>) -> Progress) -> Progress {
    for _ in 0..TICKS {
        match wait(Some(Instant::now() + tick(limit))) {
            Progress::Late => {}
            answered => return answered,
        }
    }
    Progress::Late
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{TICKS, patiently, tick};
    use crate::half::Progress;

    #[test]
    fn a_pause_of_the_process_is_one_short_wait_of_many() {
        let limit = Duration::from_millis(100);
        let mut waits = 0;
        let came = patiently(limit, |_| {
            waits += 1;
            if waits == 1 {
                std::thread::sleep(limit * 2); // as one that was stopped
            }
            if waits < 3 { Progress::Late } else { Progress::Made }
        });
        assert_eq!((came, waits), (Progress::Made, 3));
    }

    #[test]
    fn what_is_late_each_time_is_late() {
        let (mut waits, begun) = (0, Instant::now());
        let came = patiently(Duration::from_secs(600), |deadline| {
            waits += 1;
            assert!(deadline.unwrap() <= Instant::now() + tick(Duration::from_secs(600)));
            Progress::Late
        });
        assert_eq!((came, waits), (Progress::Late, TICKS));
        assert!(begun.elapsed() < Duration::from_secs(600));
    }
}
