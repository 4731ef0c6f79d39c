//! What an administrator is told of a rebalance. Pure.

use std::collections::{BTreeMap, BTreeSet};

use directory::{Directory, NodeState, RebalanceState};
use proto::wire::{NodeShare, RebalanceReply, ShardMove};
use types::{NodeId, ShardId};

use super::Observed;

/// Of a plan that nothing has been done about.
pub fn planned(directory: &Directory, observed: &Observed, targets: &BTreeMap<ShardId, Vec<NodeId>>) -> RebalanceReply {
    let moves: Vec<ShardMove> = to_move(directory, observed, targets).collect();
    let after = |shard: ShardId| targets.get(&shard).cloned();
    RebalanceReply {
        state: "planned".to_owned(),
        started_unix_s: 0,
        shards_total: moves.len() as u32,
        octets_total: moves.iter().map(copies).sum(),
        moves,
        shares: shares(directory, observed, after),
        warnings: warnings(directory, observed, targets),
        waits_because: String::new(),
    }
}

/// The moves that have not begun, were these the targets.
pub fn to_move<'a>(
    directory: &'a Directory,
    observed: &'a Observed,
    targets: &'a BTreeMap<ShardId, Vec<NodeId>>,
) -> impl Iterator<Item = ShardMove> + 'a {
    targets.iter().filter_map(move |(shard, to)| {
        let from = &directory.placement(*shard)?.wanted;
        moves_data(from, to).then(|| shard_move(observed, *shard, from, to, "planned"))
    })
}

/// The moves under way.
pub fn moving<'a>(directory: &'a Directory, observed: &'a Observed) -> impl Iterator<Item = ShardMove> + 'a {
    directory.placements().filter(|placement| placement.is_moving()).map(move |placement| {
        let phase = match observed.led(placement.shard) {
            Some(group) if placement.wanted.iter().all(|node| group.current.contains(&node.0)) => "switching",
            _ => "copying",
        };
        shard_move(observed, placement.shard, &placement.previous, &placement.wanted, phase)
    })
}

/// What a move copies in all.
pub fn copies(one: &ShardMove) -> u64 {
    one.octets.saturating_mul(one.to.len() as u64)
}

pub fn status(directory: &Directory, observed: &Observed) -> RebalanceReply {
    let rebalance = directory.rebalance();
    let state = match rebalance.map(|rebalance| rebalance.state) {
        None => "none",
        Some(RebalanceState::Running) => "running",
        Some(RebalanceState::Paused) => "paused",
        Some(RebalanceState::Finished) => "finished",
        Some(RebalanceState::Aborted) => "aborted",
    };
    let mut moves: Vec<ShardMove> = moving(directory, observed).collect();
    if state == "aborted" {
        moves.iter_mut().for_each(|one| "undoing".clone_into(&mut one.phase));
    }
    moves.extend(
        directory
            .queued()
            .map(|placement| shard_move(observed, placement.shard, &placement.wanted, &placement.planned, "queued")),
    );
    moves.sort_by_key(|one| one.shard);
    // Mail that came since it was planned is copied too.
    let left: u64 = moves.iter().map(|one| copies(one).saturating_sub(one.copied_octets)).sum();
    let planned_octets = rebalance.map_or(0, |rebalance| rebalance.octets);
    let queued: BTreeMap<ShardId, Vec<NodeId>> =
        directory.queued().map(|placement| (placement.shard, placement.planned.clone())).collect();
    let after = |shard: ShardId| queued.get(&shard).cloned();
    RebalanceReply {
        state: state.to_owned(),
        started_unix_s: rebalance.map_or(0, |rebalance| rebalance.started_unix_s),
        shards_total: rebalance.map_or(0, |rebalance| rebalance.moves),
        octets_total: planned_octets.max(left),
        moves,
        shares: shares(directory, observed, after),
        warnings: warnings(directory, observed, &queued),
        waits_because: waits_because(directory, observed),
    }
}

/// More than the order of the list differs.
fn moves_data(from: &[NodeId], to: &[NodeId]) -> bool {
    from.iter().collect::<BTreeSet<_>>() != to.iter().collect::<BTreeSet<_>>()
}

fn shard_move(observed: &Observed, shard: ShardId, from: &[NodeId], to: &[NodeId], phase: &str) -> ShardMove {
    let without = |list: &[NodeId], other: &[NodeId]| -> Vec<u64> {
        list.iter().filter(|node| !other.contains(node)).map(|node| node.0).collect()
    };
    let (gone, come) = (without(from, to), without(to, from));
    let led = observed.led(shard);
    let octets = led.map_or(0, |group| group.octets);
    // A snapshot's octets are those of its records, which may be some more than those of the mail in it.
    let sent = |node: &u64| led.and_then(|group| group.copies.iter().find(|copy| copy.node == *node));
    let copied = come.iter().map(|node| match led {
        Some(group) if group.current.contains(node) => octets,
        _ => sent(node).map_or(0, |copy| copy.octets.min(octets)),
    });
    ShardMove {
        shard: shard.0,
        accounts: led.map_or(0, |group| group.accounts),
        messages: led.map_or(0, |group| group.messages),
        octets,
        phase: phase.to_owned(),
        copied_octets: copied.sum(),
        from: gone,
        to: come,
    }
}

fn shares(
    directory: &Directory,
    observed: &Observed,
    after: impl Fn(ShardId) -> Option<Vec<NodeId>>,
) -> Vec<NodeShare> {
    let octets = observed.octets();
    let mut shares: BTreeMap<NodeId, NodeShare> = directory
        .nodes()
        .filter(|known| known.state != NodeState::Removed)
        .map(|known| {
            let (node, weight, eligible) = (known.id.0, known.weight, known.state == NodeState::Active);
            (known.id, NodeShare { node, weight, eligible, ..NodeShare::default() })
        })
        .collect();
    for placement in directory.placements() {
        let own = octets.get(&placement.shard).copied().unwrap_or(0);
        // Where it is, as far as its leader says.
        let voters = observed.led(placement.shard).map(|group| group.voters.iter().copied().map(NodeId).collect());
        let now: Vec<NodeId> = voters.unwrap_or_else(|| placement.wanted.clone());
        for node in now {
            if let Some(share) = shares.get_mut(&node) {
                share.replicas += 1;
                share.octets += own;
            }
        }
        for node in after(placement.shard).unwrap_or_else(|| placement.wanted.clone()) {
            if let Some(share) = shares.get_mut(&node) {
                share.replicas_after += 1;
                share.octets_after += own;
            }
        }
    }
    shares.into_values().collect()
}

fn waits_because(directory: &Directory, observed: &Observed) -> String {
    let waiting: BTreeSet<ShardId> =
        directory.placements().filter(|one| !one.planned.is_empty()).map(|placement| placement.shard).collect();
    if waiting.is_empty() {
        return String::new();
    }
    let settled = directory.placements().filter(|placement| placement.previous.is_empty());
    let degraded = observed.degraded(settled);
    match degraded.iter().find(|shard| !waiting.contains(shard)).or(degraded.iter().next()) {
        Some(shard) => format!("shard {shard} lacks a replica or a leader"),
        None => String::new(),
    }
}

/// What the plan cannot mend, and what of the nodes would stand in its way.
fn warnings(directory: &Directory, observed: &Observed, targets: &BTreeMap<ShardId, Vec<NodeId>>) -> Vec<String> {
    let planned = directory.rebalance_warnings(targets, &observed.octets());
    let mut warnings: Vec<String> = planned.iter().map(ToString::to_string).collect();
    for known in directory.nodes().filter(|known| known.state == NodeState::Active) {
        match observed.statuses.get(&known.id) {
            None => warnings.push(format!("node {} does not answer", known.name)),
            Some(status) if status.disk_full => warnings.push(format!("node {}: the disk is full", known.name)),
            Some(_) => {}
        }
    }
    warnings
}
