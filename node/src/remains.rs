//! Clears away what deleted mailboxes and dropped accounts have left behind, on the shards that this node leads: a step at a
//! time, so that mail comes first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use storage::Command;
use tokio::sync::watch;
use tokio::time::Instant;
use types::{MailError, ShardId};

use crate::Node;
use crate::mail::blocking;
use crate::shard::Shard;

/// Between looks for remains.
const ROUND: Duration = Duration::from_secs(1);
/// Between two steps.
const PAUSE: Duration = Duration::from_millis(20);
/// Messages that one step clears: some milliseconds of work.
const STEP_MESSAGES: u32 = 1_000;
/// A shard whose remains cannot be read, neither here nor elsewhere, is left alone for so long.
const DAMAGED_REST: Duration = Duration::from_secs(600);

pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    let mut damaged = HashMap::new();
    loop {
        let next = Instant::now() + ROUND;
        damaged.retain(|_, met: &mut Instant| met.elapsed() < DAMAGED_REST);
        let shards = node.groups().shards().into_iter().filter(|shard| !damaged.contains_key(&shard.id));
        let mut left = with_remains(shards.collect()).await;
        while !left.is_empty() && Instant::now() < next {
            left = with_remains(step(&node, left, &mut damaged).await).await;
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
async fn step(node: &Node, shards: Vec<Arc<Shard>>, damaged: &mut HashMap<ShardId, Instant>) -> Vec<Arc<Shard>> {
    let mut done = Vec::new();
    for shard in shards {
        let cleared = shard.propose(&Command::ClearRemains { messages_max: STEP_MESSAGES }, None).await;
        match node.or_elsewhere(shard.id.0, cleared).await {
            Ok(_) => done.push(shard),
            Err(error) => {
                if let MailError::Corrupt { .. } = error {
                    tracing::error!(shard = shard.id.0, %error, "remains are damaged");
                    damaged.insert(shard.id, Instant::now());
                }
                tracing::debug!(shard = shard.id.0, %error, "remains are not cleared yet");
            }
        }
    }
    done
}
