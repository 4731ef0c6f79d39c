//! Makes what is be what the directory wants, one bounded step at a time: every node starts the replicas that it
//! should hold and hands leadership to the preferred replica; the directory's leader places new shards.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use directory::Command as DirectoryCommand;
use openraft::BasicNode;
use openraft::error::{InitializeError, RaftError};
use storage::Command;
use tokio::sync::watch;
use types::{AccountId, MailResult, NodeId, ShardId, format};

use crate::Node;
use crate::bootstrap::propose;
use crate::mail::blocking;
use crate::step_aside;

/// Between rounds when nothing changes in the directory.
const ROUND: Duration = Duration::from_secs(1);
/// Rounds that a leader and its better-placed peer must both have been steady before leadership moves.
const STEADY_ROUNDS: u32 = 5;
/// Rounds between looks for accounts that the directory no longer has.
const SWEEP_ROUNDS: u64 = 30;
/// Accounts looked at in one visit to the disk.
const SWEEP_ACCOUNTS: usize = 4_096;
/// Leaders handed over in one round.
const TRANSFERS_MAX: usize = 8;
/// sysexits.h EX_IOERR.
const EXIT_VOLUME_FAILED: i32 = 74;

pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    let mut revisions = node.groups().directory_state.revisions();
    let mut steady: HashMap<ShardId, u32> = HashMap::new();
    let mut round: u64 = 0;
    let (mut told, mut slow_since) = (false, None);
    let mut format_on_disks = 0;
    loop {
        check_volumes(&node);
        mark_format(&node, &mut format_on_disks).await;
        node.groups().stop_damaged().await;
        node.groups().begin_ended(Instant::now()).await;
        for shard in node.groups().shards() {
            shard.forget_old_mark();
            shard.group.stand_if_due();
        }
        step_aside::leave_poor_disk(&node, &mut slow_since).await;
        learn_addresses(&node);
        if !told && is_removed(&node) {
            told = true;
            tracing::warn!("this node was removed from the cluster, its process may be stopped");
        }
        if let Err(error) = start_replicas(&node).await {
            tracing::error!(%error, "replica does not start");
        }
        if node.groups().directory().leads()
            && let Err(error) = place_shards(&node).await
        {
            tracing::debug!(%error, "shards not placed yet");
        }
        lead_where_wanted(&node, &mut steady).await;
        if round.is_multiple_of(SWEEP_ROUNDS)
            && let Err(error) = sweep_accounts(&node).await
        {
            tracing::debug!(%error, "removed accounts not swept");
        }
        round += 1;
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            changed = revisions.changed() => if changed.is_err() { return },
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// Says on the disks which format they may hold, so that older programs refuse them.
async fn mark_format(node: &Node, format_on_disks: &mut u32) {
    let in_force = format::in_force();
    if *format_on_disks == in_force {
        return;
    }
    let groups = node.groups().clone();
    let marking = tokio::task::spawn_blocking(move || {
        groups.volumes.list().iter().try_for_each(|volume| volume.mark_format(in_force))
    });
    match marking.await {
        Ok(Ok(())) => *format_on_disks = in_force,
        Ok(Err(error)) => tracing::warn!(%error, format = in_force, "disks are not marked with their format"),
        Err(error) => tracing::error!(%error, "marking of disks broken off"),
    }
}

/// What a disk holds that has failed is unknown: nothing more may be promised, and others take over.
fn check_volumes(node: &Node) {
    for volume in node.groups().volumes.list() {
        let Some(Err(error)) = volume.volume().map(|opened| opened.check()) else { continue };
        if volume.number == 1 {
            tracing::error!(%error, "volume failed, process ends");
            std::process::exit(EXIT_VOLUME_FAILED);
        }
        tracing::error!(volume = volume.number, %error, "volume failed, its replicas are gone");
        node.groups().give_up_volume(volume, &error.to_string());
    }
}

fn is_removed(node: &Node) -> bool {
    let directory = node.groups().directory_state.read();
    directory.node(node.id()).is_some_and(|known| known.state == directory::NodeState::Removed)
}

fn learn_addresses(node: &Node) {
    let directory = node.groups().directory_state.read();
    for known in directory.nodes() {
        node.groups().peers.set_address(known.id.0, &known.address);
    }
}

/// Starts the replicas that this node should hold; a shard that never had any is founded by its first.
async fn start_replicas(node: &Node) -> std::io::Result<()> {
    let wanted: Vec<(ShardId, Vec<NodeId>, bool)> = {
        let directory = node.groups().directory_state.read();
        directory.placements_on(node.id()).map(|p| (p.shard, p.wanted.clone(), p.initialised)).collect()
    };
    let mut first_failure = Ok(());
    for (id, replicas, initialised) in wanted {
        let started = match node.groups().start_shard(id, !initialised).await {
            Ok(started) => started,
            // The others start all the same.
            Err(error) => {
                first_failure = first_failure.and(Err(error));
                continue;
            }
        };
        let Some(shard) = started else { continue };
        if initialised || replicas.first() != Some(&node.id()) {
            continue;
        }
        let members: BTreeMap<u64, BasicNode> = replicas
            .iter()
            .map(|replica| (replica.0, BasicNode::new(node.groups().peers.address(replica.0).unwrap_or_default())))
            .collect();
        match shard.group.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => first_failure = first_failure.and(Err(std::io::Error::other(error))),
        }
    }
    first_failure
}

/// On the directory's leader: places the shards of a new cluster once all founding nodes are known, and notes which
/// groups have come to life, so that none is ever founded twice.
async fn place_shards(node: &Node) -> MailResult<()> {
    let founders = node.settings().cluster.nodes.len();
    let (placed, proposal, unmarked) = {
        let directory = node.groups().directory_state.read();
        let Some(cluster) = directory.cluster() else { return Ok(()) };
        let placed = directory.placements().count() as u32 == cluster.shards;
        let ready = !placed && directory.nodes().count() >= founders;
        let unmarked: BTreeSet<ShardId> = directory
            .placements()
            .filter(|placement| !placement.initialised)
            .map(|placement| placement.shard)
            .collect();
        (placed, ready.then(|| directory.propose_placements()), unmarked)
    };
    if let Some(wanted) = proposal {
        return propose(node, &DirectoryCommand::SetPlacements { wanted }).await;
    }
    if !placed || unmarked.is_empty() {
        return Ok(());
    }
    for shard in living_shards(node, unmarked).await {
        propose(node, &DirectoryCommand::MarkShardInitialised { shard }).await?;
    }
    Ok(())
}

/// Which of these shards' groups somebody knows to be initialised: this node, or a node that it asks.
async fn living_shards(node: &Node, mut asked: BTreeSet<ShardId>) -> Vec<ShardId> {
    use proto::DirectoryStore;
    let peers: Vec<NodeId> = {
        let directory = node.groups().directory_state.read();
        directory.nodes().map(|known| known.id).filter(|id| *id != node.id()).collect()
    };
    let mut living = Vec::new();
    let mut take = |status: &proto::wire::GroupStatus| {
        if !status.voters.is_empty() && status.applied_index > 0 && asked.remove(&ShardId(status.group)) {
            living.push(ShardId(status.group));
        }
    };
    for shard in node.groups().shards() {
        take(&shard.group.status());
    }
    for peer in peers {
        let Some(address) = node.groups().peers.address(peer.0) else { continue };
        let Ok(channel) = node.groups().peers.channel(peer.0, &address) else { continue };
        if let Ok(status) = proto::GrpcNode::new(channel).node_status().await {
            status.groups.iter().for_each(&mut take);
        }
    }
    living
}

/// Hands a shard's leadership to the replica that should lead it, once that has caught up and all is steady.
async fn lead_where_wanted(node: &Node, steady: &mut HashMap<ShardId, u32>) {
    let mut transfers = 0;
    for shard in node.groups().shards() {
        let preferred = {
            let directory = node.groups().directory_state.read();
            directory.placement(shard.id).and_then(|placement| directory.home(placement))
        };
        let Some(preferred) = preferred.filter(|preferred| *preferred != node.id()) else { continue };
        // A copy that is under way would begin anew.
        let is_busy = shard.is_compared.load(Ordering::Relaxed) || shard.group.has_learners();
        if is_busy || !shard.group.has_caught_up(preferred) {
            steady.remove(&shard.id);
            continue;
        }
        let rounds = steady.entry(shard.id).or_default();
        *rounds += 1;
        if *rounds >= STEADY_ROUNDS && transfers < TRANSFERS_MAX {
            transfers += 1;
            steady.remove(&shard.id);
            // It would give it back.
            if step_aside::serves_no_worse(node, preferred).await {
                shard.group.hand_over(preferred).await;
            }
        }
    }
}

/// Before a stop: gives whatever this node leads to a replica that has caught up.
pub async fn hand_over(node: &Node) {
    for group in node.groups().all() {
        step_aside::give_away(std::slice::from_ref(&group), |id| group.has_caught_up(id)).await;
    }
}

/// Drops what is left of accounts that the directory has removed. Ids are given out in order and never again, so an
/// id below the next one that the directory does not know was removed, however far behind this replica is.
async fn sweep_accounts(node: &Node) -> MailResult<()> {
    for shard in node.groups().shards() {
        if !shard.group.leads() {
            continue;
        }
        let mut from = AccountId(0);
        loop {
            let state = shard.state();
            let page = blocking(move || Ok(state.accounts_from(from, SWEEP_ACCOUNTS)?)).await?;
            let Some(last) = page.last() else { break };
            from = AccountId(last.0.saturating_add(1));
            let is_last_page = page.len() < SWEEP_ACCOUNTS;
            let gone: Vec<AccountId> = {
                let directory = node.groups().directory_state.read();
                let Some(next) = directory.cluster().map(|cluster| cluster.next_account_id) else { return Ok(()) };
                page.into_iter().filter(|id| *id < next && directory.account_by_id(*id).is_none()).collect()
            };
            for account in gone {
                tracing::info!(shard = shard.id.0, account = account.0, "removed account dropped");
                shard.propose(&Command::DropAccount { account }, None).await?;
            }
            if is_last_page {
                break;
            }
        }
    }
    Ok(())
}
