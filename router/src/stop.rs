//! How a router ends: first everybody is asked to finish, then whoever is left is cut off.

use tokio::sync::watch;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    Running,
    /// Sessions end after the command that is under way.
    Stopping,
    /// Sessions end where they are.
    Killed,
}

/// The end that says when.
pub struct Stopper(watch::Sender<Phase>);

/// The end that listens. Cheap to clone.
#[derive(Clone)]
pub struct Stop(watch::Receiver<Phase>);

impl Stopper {
    pub fn new() -> Stopper {
        Stopper(watch::Sender::new(Phase::Running))
    }

    pub fn stop(&self) -> Stop {
        Stop(self.0.subscribe())
    }

    pub fn begin(&self) {
        self.0.send_replace(Phase::Stopping);
    }

    pub fn kill(&self) {
        self.0.send_replace(Phase::Killed);
    }

    /// Every [`Stop`] is dropped.
    pub async fn all_gone(&self) {
        self.0.closed().await;
    }
}

impl Stop {
    /// The session is to end after the command that is under way.
    pub fn is_stopping(&self) -> bool {
        *self.0.borrow() >= Phase::Stopping
    }

    pub async fn stopping(&mut self) {
        self.reached(Phase::Stopping).await;
    }

    pub async fn killed(&mut self) {
        self.reached(Phase::Killed).await;
    }

    async fn reached(&mut self, phase: Phase) {
        // A stopper that is gone kills.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}
