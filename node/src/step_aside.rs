//! A node whose disk stalls, is full or slow leads nothing that another can lead.
//!
//! Raft alone does not see this: heartbeats go on while the disk owes an answer, so the leader stays and its shards
//! stand still. A node that waits for its disk therefore gives its leaders away and answers as one that does not lead;
//! one whose disk is full gives them to replicas with room, and one whose disk is far slower than others to those: a
//! majority of replicas without the slow one makes the pace then. All of it ends by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use proto::DirectoryStore;
use proto::wire::NodeStatusReply;
use tokio::sync::watch;
use types::NodeId;

use crate::Node;
use crate::group::Group;

/// A write or sync that takes longer is no busy disk: with the election after it, others serve within ten seconds.
const STALL_MAX: Duration = Duration::from_secs(3);
/// A disk is slow whose synced writes take longer than this on average, and so many times what they take another node's, for so
/// long.
const SLOW_MS: u32 = 100;
const SLOW_TIMES: u32 = 4;
const SLOW_FOR: Duration = Duration::from_secs(3);
/// Between looks.
const LOOK: Duration = Duration::from_millis(250);
/// Others are asked whether they have room.
const ASK_MAX: Duration = Duration::from_secs(1);
/// A group whose task itself waits for the disk is not waited for: it sends no heartbeats, so others elect.
const HAND_OVER_MAX: Duration = Duration::from_millis(100);

/// Whether the disk has owed an answer for too long. Cloning shares it.
#[derive(Clone, Default)]
pub struct Stall(Arc<watch::Sender<bool>>);

impl Stall {
    pub fn is_on(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when the disk stalls, at once while it does.
    pub async fn begins(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|on| *on).await;
    }

    /// True if that is news.
    fn set(&self, on: bool) -> bool {
        self.0.send_if_modified(|before| std::mem::replace(before, on) != on)
    }
}

pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    let groups = node.groups();
    loop {
        let stalls = groups.volumes.unanswered_for() >= STALL_MAX;
        match (groups.stall.set(stalls), stalls) {
            (true, true) => {
                let all = groups.all();
                match all.iter().any(|group| group.leads() && group.has_others()) {
                    true => tracing::warn!("disk does not answer, leaders are handed over"),
                    false => tracing::warn!("disk does not answer, nobody else has what is on it"),
                }
                give_away(&all, |_| true).await;
            }
            (true, false) => tracing::info!("disk answers again"),
            (false, _) => {}
        }
        groups.peers.throttle.adapt(Instant::now());
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// Gives whatever this node leads to replicas on nodes that are fit for it; what has none stays.
pub async fn give_away(groups: &[Group], fit: impl Fn(NodeId) -> bool) {
    for group in groups.iter().filter(|group| group.leads()) {
        if let Some(heir) = group.heir(&fit) {
            drop(tokio::time::timeout(HAND_OVER_MAX, group.hand_over(heir)).await);
        }
    }
}

/// While this node's disk is full, or has been slow since then: leaders go to replicas that have caught up on nodes where it is
/// better.
pub async fn leave_poor_disk(node: &Node, slow_since: &mut Option<Instant>) {
    let (is_full, own_ms) = (node.groups().is_full(), node.groups().volumes.recent_round_ms());
    match own_ms >= SLOW_MS {
        true => drop(slow_since.get_or_insert_with(Instant::now)),
        false => *slow_since = None,
    }
    let is_slow = slow_since.is_some_and(|since| since.elapsed() >= SLOW_FOR);
    if !is_full && !is_slow {
        return;
    }
    let led: Vec<Group> = node.groups().all().into_iter().filter(|group| group.leads() && group.has_others()).collect();
    let others: Vec<NodeId> = {
        let directory = node.groups().directory_state.read();
        directory.nodes().map(|known| known.id).filter(|id| *id != node.id()).collect()
    };
    if led.is_empty() || others.is_empty() {
        return;
    }
    let asked = join_all(others.iter().map(|other| status_of(node, *other))).await;
    let is_better =
        |status: &NodeStatusReply| is_well(status) && (is_full || is_slower(own_ms, status.recent_round_ms));
    let fit: Vec<NodeId> = others
        .into_iter()
        .zip(asked)
        .filter_map(|(id, status)| status.is_some_and(|one| is_better(&one)).then_some(id))
        .collect();
    if fit.is_empty() {
        return;
    }
    if !is_full {
        tracing::info!(ms = own_ms, "disk is slower than others, leaders are handed over");
    }
    for group in &led {
        give_away(std::slice::from_ref(group), |id| fit.contains(&id) && group.has_caught_up(id)).await;
    }
}

/// Whether another node answers, has room and a disk that keeps up.
pub async fn serves_well(node: &Node, other: NodeId) -> bool {
    status_of(node, other).await.is_some_and(|status| is_well(&status))
}

/// The same of one that leaders go back to: it would give them away again if its disk was slow yet.
pub async fn serves_no_worse(node: &Node, other: NodeId) -> bool {
    let own_ms = node.groups().volumes.recent_round_ms();
    let no_worse = |status: &NodeStatusReply| is_well(status) && !is_slow_yet(status.recent_round_ms, own_ms);
    status_of(node, other).await.is_some_and(|status| no_worse(&status))
}

/// Nothing where it does not answer.
async fn status_of(node: &Node, other: NodeId) -> Option<NodeStatusReply> {
    let address = node.groups().peers.address(other.0)?;
    let asked = proto::GrpcNode::new(node.groups().peers.channel(other.0, &address).ok()?);
    tokio::time::timeout(ASK_MAX, asked.node_status()).await.ok()?.ok()
}

/// By what synced writes take, in milliseconds; 0 where there were none.
fn is_slower(ms: u32, other_ms: u32) -> bool {
    ms >= SLOW_MS && ms / SLOW_TIMES >= other_ms
}

/// What was slow is so until it is clearly better: leaders go back and forth by no chance.
fn is_slow_yet(ms: u32, other_ms: u32) -> bool {
    ms >= SLOW_MS / 2 && ms / (SLOW_TIMES / 2) >= other_ms
}

fn is_well(status: &NodeStatusReply) -> bool {
    !status.disk_full && !status.disk_stalled
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Stall, is_slow_yet, is_slower};

    #[tokio::test]
    async fn whoever_waits_for_a_stall_is_told_and_so_is_whoever_comes_while_it_lasts() {
        let stall = Stall::default();
        assert!(!stall.is_on() && !stall.set(false));
        let waiting = tokio::spawn({
            let stall = stall.clone();
            async move { stall.begins().await }
        });
        assert!(stall.set(true) && !stall.set(true) && stall.is_on());
        waiting.await.unwrap();
        stall.begins().await;
        assert!(stall.set(false));
        assert!(tokio::time::timeout(Duration::from_millis(20), stall.begins()).await.is_err());
    }

    #[test]
    fn a_disk_is_slow_beside_another_that_is_not() {
        assert!(is_slower(200, 5) && is_slower(200, 50) && is_slower(100, 0));
        assert!(!is_slower(200, 51), "all of them are slow");
        assert!(!is_slower(99, 1), "fast enough");
        assert!(is_slow_yet(60, 5) && is_slow_yet(50, 25) && !is_slow_yet(49, 1) && !is_slow_yet(50, 26));
        for (ms, other_ms) in [(100, 0), (200, 50), (1_000, 250)] {
            assert!(is_slow_yet(ms, other_ms), "it would come back at once");
        }
    }
}
