//! A copy of a shard is given up once it does not get on, however long it takes in all. Knows nothing of what is copied.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;

/// What a receiver installs at least in a second, once it has everything.
const INSTALLED_OCTETS_PER_S: u64 = 1024 * 1024;

/// How long so many octets take to be installed at most, once they have all come.
pub fn installing_max(octets: u64) -> Duration {
    Duration::from_secs(octets / INSTALLED_OCTETS_PER_S)
}

/// For whoever sends: octets that have gone. Dropped once all have, or none will follow.
pub struct Sent(watch::Sender<u64>);

/// For whoever waits.
pub struct Progress(watch::Receiver<u64>);

pub fn progress() -> (Sent, Progress) {
    let (sent, progress) = watch::channel(0);
    (Sent(sent), Progress(progress))
}

impl Sent {
    pub fn count(&self, octets: usize) {
        self.0.send_modify(|sent| *sent += octets as u64);
    }

    /// It waits, and not for the receiver: it is held, or yields to mail.
    pub fn holds(&self) {
        self.0.send_modify(|_| {});
    }
}

impl Progress {
    /// What the copy comes to; `None` once nothing has gone for `stalled_max` though nothing held it, or the receiver has taken
    /// too long with all of it.
    pub async fn watched<T>(mut self, copy: impl Future<Output = T>, stalled_max: Duration) -> Option<T> {
        tokio::pin!(copy);
        loop {
            tokio::select! {
                outcome = &mut copy => return Some(outcome),
                moved = tokio::time::timeout(stalled_max, self.0.changed()) => match moved {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => break,
                    Err(_) => return None,
                },
            }
        }
        let installing = installing_max(*self.0.borrow());
        tokio::time::timeout(stalled_max + installing, copy).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::{INSTALLED_OCTETS_PER_S, progress};

    const STALLED_MAX: Duration = Duration::from_secs(600);
    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_copy_takes_as_long_as_it_takes_while_it_gets_on_or_is_held() {
        let (sent, progress) = progress();
        let copy = async move {
            for _ in 0..100 {
                sleep(STALLED_MAX / 2).await;
                sent.count(INSTALLED_OCTETS_PER_S as usize * 40);
            }
            // A pause over the week-end.
            for _ in 0..48 * 3600 {
                sleep(Duration::from_secs(1)).await;
                sent.holds();
            }
            drop(sent);
            // 4,000 MiB are installed.
            sleep(HOUR).await;
            "arrived"
        };
        assert_eq!(progress.watched(copy, STALLED_MAX).await, Some("arrived"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_does_not_get_on_is_given_up() {
        let (sent, moving) = progress();
        let began = Instant::now();
        let stuck = async {
            sleep(HOUR / 60).await;
            sent.count(1);
            std::future::pending::<()>().await
        };
        assert_eq!(moving.watched(stuck, STALLED_MAX).await, None);
        assert_eq!(began.elapsed(), HOUR / 60 + STALLED_MAX);
        // All has gone, and the receiver does not answer.
        let (sent, moving) = progress();
        sent.count(INSTALLED_OCTETS_PER_S as usize * 30);
        drop(sent);
        let began = Instant::now();
        assert_eq!(moving.watched(std::future::pending::<()>(), STALLED_MAX).await, None);
        assert_eq!(began.elapsed(), STALLED_MAX + Duration::from_secs(30));
    }
}
