//! Clears away what deleted mailboxes and dropped accounts have left behind, on the shards that this node leads: a step at a
//! time, so that mail comes first.

use std::sync::Arc;
use std::time::Duration;

use storage::Command;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Node;
use crate::mail::blocking;
use crate::shard::Shard;

/// Between looks for remains.
const ROUND: Duration = Duration::from_secs(1);
/// Between two steps.
const PAUSE: Duration = Duration::from_millis(20);
/// Messages that one step clears: some milliseconds of work.
const STEP_MESSAGES: u32 = 1_000;

pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    loop {
        let next = Instant::now() + ROUND;
        let mut left = with_remains(node.groups().shards()).await;
        while !left.is_empty() && Instant::now() < next {
            left = with_remains(step(left).await).await;
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                _ = stopped.wait_for(|stop| *stop) => return,
            }
        }
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

async fn with_remains(shards: Vec<Arc<Shard>>) -> Vec<Arc<Shard>> {
    let led: Vec<_> = shards.into_iter().filter(|shard| shard.group.leads()).collect();
    // A replica that cannot be read is seen to elsewhere.
    let has_remains = |shard: &Arc<Shard>| shard.state().has_remains().unwrap_or(false);
    let look = move || Ok(led.into_iter().filter(has_remains).collect());
    blocking(look).await.unwrap_or_default()
}

/// One on each; those where it was done.
async fn step(shards: Vec<Arc<Shard>>) -> Vec<Arc<Shard>> {
    let mut done = Vec::new();
    for shard in shards {
        match shard.propose(&Command::ClearRemains { messages_max: STEP_MESSAGES }, None).await {
            Ok(_) => done.push(shard),
            Err(error) => tracing::debug!(shard = shard.id.0, %error, "remains are not cleared yet"),
        }
    }
    done
}
