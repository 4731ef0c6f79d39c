//! What clients met, account by account: what was not as they had asked, and how long the rest took.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Default)]
pub struct Service(Mutex<BTreeMap<String, Met>>);

#[derive(Default)]
struct Met {
    errors: u64,
    took: Times,
}

impl Service {
    /// A refusal, a lost session, an attempt that failed.
    pub fn failed(&self, account: &str) {
        self.lock().entry(account.to_owned()).or_default().errors += 1;
    }

    /// A change was acknowledged so long after it was first asked for.
    pub fn acknowledged(&self, account: &str, took: Duration) {
        self.lock().entry(account.to_owned()).or_default().took.push(took);
    }

    pub fn errors(&self) -> u64 {
        self.lock().values().map(|met| met.errors).sum()
    }

    pub fn errors_of(&self, accounts: &[String]) -> u64 {
        let met = self.lock();
        accounts.iter().filter_map(|account| met.get(account)).map(|met| met.errors).sum()
    }

    /// Of the changes of these accounts that were acknowledged.
    pub fn times_of(&self, accounts: &[String]) -> Times {
        let met = self.lock();
        let took = accounts.iter().filter_map(|account| met.get(account)).flat_map(|met| met.took.0.clone());
        Times(took.collect())
    }

    /// Begins anew, so that what is counted later came later.
    pub fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Met>> {
        // A worker that panicked fails the test anyway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long something took, each time.
#[derive(Clone, Default, Debug)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// The shortest time that so many of a hundred did not exceed; none without any.
    pub fn percentile(&self, of_hundred: usize) -> Option<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (sorted.len() * of_hundred).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [Some(median), Some(p99), Some(longest)] = [50, 99, 100].map(|rank| self.percentile(rank)) else {
            return f.write_str("never");
        };
        write!(f, "median {median:.1?}, p99 {p99:.1?}, longest {longest:.1?}, of {}", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Service, Times};

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let mut times = Times::default();
        assert_eq!((times.percentile(50), times.to_string().as_str()), (None, "never"));
        (1..=200).rev().for_each(|ms| times.push(Duration::from_millis(ms)));
        let ms = |of_hundred| times.percentile(of_hundred).map(|time| time.as_millis());
        assert_eq!([ms(0), ms(50), ms(99), ms(100)], [Some(1), Some(100), Some(198), Some(200)]);
    }

    #[test]
    fn accounts_are_told_apart() {
        let service = Service::default();
        service.failed("a@example.test");
        service.acknowledged("b@example.test", Duration::from_millis(5));
        let (a, b) = (["a@example.test".to_owned()], ["b@example.test".to_owned()]);
        assert_eq!((service.errors(), service.errors_of(&a), service.errors_of(&b)), (1, 1, 0));
        assert_eq!(service.times_of(&b).percentile(50), Some(Duration::from_millis(5)));
        assert_eq!(service.times_of(&a).percentile(50), None);
        service.forget();
        assert_eq!(service.errors(), 0);
    }
}
