//! A node whose disk stalls or is full leads nothing that another can lead.
//!
//! Raft alone does not see this: heartbeats go on while the disk owes an answer, so the leader stays and its shards
//! stand still. A node that waits for its disk therefore gives its leaders away and answers as one that does not lead;
//! one whose disk is full gives them to replicas with room. Both end by themselves.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use proto::DirectoryStore;
use proto::wire::NodeStatusReply;
use tokio::sync::watch;
use types::NodeId;

use crate::Node;
use crate::group::Group;

/// A write or sync that takes longer is no busy disk: with the election after it, others serve within ten seconds.
const STALL_MAX: Duration = Duration::from_secs(3);
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
        groups.peers.throttle.adapt();
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

/// While this node's disk is full: leaders go to replicas with room that have caught up.
pub async fn leave_full_disk(node: &Node) {
    if !node.groups().is_full() {
        return;
    }
    let led: Vec<Group> = node.groups().all().into_iter().filter(|group| group.leads()).collect();
    let others: Vec<NodeId> = {
        let directory = node.groups().directory_state.read();
        directory.nodes().map(|known| known.id).filter(|id| *id != node.id()).collect()
    };
    if led.is_empty() || others.is_empty() {
        return;
    }
    let asked = join_all(others.iter().map(|other| serves_well(node, *other))).await;
    let fit: Vec<NodeId> = others.into_iter().zip(asked).filter_map(|(id, well)| well.then_some(id)).collect();
    for group in &led {
        give_away(std::slice::from_ref(group), |id| fit.contains(&id) && group.has_caught_up(id)).await;
    }
}

/// Whether another node answers, has room and a disk that keeps up.
pub async fn serves_well(node: &Node, other: NodeId) -> bool {
    let Some(address) = node.groups().peers.address(other.0) else { return false };
    let Ok(channel) = node.groups().peers.channel(other.0, &address) else { return false };
    let asked = proto::GrpcNode::new(channel);
    let status = tokio::time::timeout(ASK_MAX, asked.node_status()).await;
    status.is_ok_and(|status| status.is_ok_and(|status| is_well(&status)))
}

fn is_well(status: &NodeStatusReply) -> bool {
    !status.disk_full && !status.disk_stalled
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Stall;

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
}
