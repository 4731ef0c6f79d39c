//! What clients met, account by account: what was not as they had asked, and how long the rest took.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::quantiles::Quantiles;

#[derive(Default)]
pub struct Service(Mutex<BTreeMap<String, Met>>);

#[derive(Default)]
struct Met {
    errors: u64,
    took: Vec<Duration>,
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
    pub fn times_of(&self, accounts: &[String]) -> Quantiles {
        let met = self.lock();
        let took = accounts.iter().filter_map(|account| met.get(account)).flat_map(|met| met.took.iter().copied());
        Quantiles::of(took.collect())
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Service;

    #[test]
    fn accounts_are_told_apart() {
        let service = Service::default();
        service.failed("a@example.test");
        service.acknowledged("b@example.test", Duration::from_millis(5));
        let (a, b) = (["a@example.test".to_owned()], ["b@example.test".to_owned()]);
        assert_eq!((service.errors(), service.errors_of(&a), service.errors_of(&b)), (1, 1, 0));
        assert_eq!(service.times_of(&b).p50, Duration::from_millis(5));
        assert_eq!(service.times_of(&a).count, 0);
        service.forget();
        assert_eq!(service.errors(), 0);
    }
}
