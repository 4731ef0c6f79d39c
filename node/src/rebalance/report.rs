//! What an administrator is told of a rebalance. Pure.

use std::collections::{BTreeMap, BTreeSet};

use directory::{Directory, NodeState, Placement, RebalanceState};
use proto::wire::{LostShard, NodeShare, RebalanceReply, ShardMove};
use types::{AccountId, NodeId, ShardId};

use super::lost::{self, Lost};
use super::{Observed, estimate, zones};

/// Shards that a warning names one by one.
const SHARDS_SHOWN_MAX: usize = 8;

/// Of a plan that nothing has been done about.
pub fn planned(directory: &Directory, observed: &Observed, targets: &BTreeMap<ShardId, Vec<NodeId>>) -> RebalanceReply {
    let lost = lost::of(directory, observed, None);
    let goes = |shard: &ShardId| !lost.contains_key(shard);
    let moves: Vec<ShardMove> = to_move(directory, observed, targets).filter(|one| goes(&ShardId(one.shard))).collect();
    let after = |shard: ShardId| targets.get(&shard).cloned().filter(|_| goes(&shard));
    RebalanceReply {
        state: "planned".to_owned(),
        started_unix_s: 0,
        shards_total: moves.len() as u32,
        octets_total: moves.iter().map(copies).sum(),
        estimate: estimate::of(observed, &moves),
        moves,
        shares: shares(directory, observed, after),
        warnings: warnings(directory, observed, targets, &lost),
        waits_because: String::new(),
        lost: told(&lost),
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
    let lost = lost::of(directory, observed, None);
    let mut moves: Vec<ShardMove> = moving(directory, observed).collect();
    if state == "aborted" {
        moves.iter_mut().for_each(|one| "undoing".clone_into(&mut one.phase));
    }
    moves.extend(
        directory
            .queued()
            .map(|placement| shard_move(observed, placement.shard, &placement.wanted, &placement.planned, "queued")),
    );
    let all = moves.len();
    moves.retain(|one| !lost.contains_key(&ShardId(one.shard)));
    let aside = (all - moves.len()) as u32;
    moves.sort_by_key(|one| one.shard);
    // Mail that came since it was planned is copied too.
    let left: u64 = moves.iter().map(|one| copies(one).saturating_sub(one.copied_octets)).sum();
    let planned_octets = rebalance.map_or(0, |rebalance| rebalance.octets);
    let queued: BTreeMap<ShardId, Vec<NodeId>> =
        directory.queued().map(|placement| (placement.shard, placement.planned.clone())).collect();
    let after = |shard: ShardId| queued.get(&shard).cloned().filter(|_| !lost.contains_key(&shard));
    // What is left aside may come back, and then goes on.
    let state = if state == "running" && moves.is_empty() && aside > 0 { "finished" } else { state };
    RebalanceReply {
        state: state.to_owned(),
        started_unix_s: rebalance.map_or(0, |rebalance| rebalance.started_unix_s),
        shards_total: rebalance.map_or(0, |rebalance| rebalance.moves).saturating_sub(aside),
        octets_total: planned_octets.max(left),
        estimate: None,
        moves,
        shares: shares(directory, observed, after),
        warnings: warnings(directory, observed, &queued, &lost)
            .into_iter()
            .chain(accounts(directory, observed))
            .collect(),
        waits_because: waits_because(directory, observed, &lost),
        lost: told(&lost),
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
    // While nobody leads it, there is no less of it.
    let octets = led.map_or_else(|| observed.octets_of(shard), |group| group.octets);
    let sent = |node: &u64| led.and_then(|group| group.copies.iter().find(|copy| copy.node == *node));
    // What goes are records or log entries, which may be more than the mail that is left of them: it is not all there yet.
    let unfinished = octets - octets.div_ceil(100);
    let copied = come.iter().map(|node| match led {
        // One that votes had all when it got its vote.
        Some(group) if group.current.contains(node) || group.voters.contains(node) => octets,
        // A leader that has just come has sent nothing of what is there.
        _ => sent(node).map_or(0, |copy| copy.octets).max(observed.octets_on(NodeId(*node), shard)).min(unfinished),
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

fn told(lost: &Lost) -> Vec<LostShard> {
    lost.iter().map(|(shard, because)| LostShard { shard: shard.0, because: because.clone() }).collect()
}

/// Why nothing goes on, or something does not; empty where all does.
fn waits_because(directory: &Directory, observed: &Observed, lost: &Lost) -> String {
    let goes_on = |placement: &&Placement| !lost.contains_key(&placement.shard);
    let moving = directory.moving().filter(goes_on);
    for (placement, target) in moving.flat_map(|one| one.targets().map(move |target| (one, target))) {
        let Some(known) = directory.node(target) else { continue };
        let why = match observed.statuses.get(&target) {
            None => "which does not answer",
            Some(status) if status.disk_full => "whose disk is full",
            Some(_) => continue,
        };
        return format!("shard {} is to go to node {}, {why}", placement.shard, known.name);
    }
    let left = directory.queued().chain(directory.moving()).filter(goes_on);
    let left: BTreeSet<ShardId> = left.map(|one| one.shard).collect();
    let degraded = observed.degraded(directory.placements().filter(goes_on));
    // Moves of such shards go on.
    if left.is_subset(&degraded) {
        return String::new();
    }
    match degraded.iter().find(|shard| !left.contains(shard)).or(degraded.first()) {
        Some(shard) => format!("shard {shard} lacks a replica or a leader"),
        None => String::new(),
    }
}

/// What the plan cannot mend, and what of the nodes would stand in its way.
fn warnings(
    directory: &Directory,
    observed: &Observed,
    targets: &BTreeMap<ShardId, Vec<NodeId>>,
    lost: &Lost,
) -> Vec<String> {
    let planned = directory.rebalance_warnings(targets, &observed.octets());
    let name = |id: NodeId| directory.node(id).map_or_else(|| id.to_string(), |known| known.name.clone());
    let mut warnings: Vec<String> = planned.iter().map(|warning| warning.said(name)).collect();
    warnings.extend(zones::shared(directory, targets));
    let coming = coming(directory, observed, targets);
    for known in directory.nodes().filter(|known| known.state == NodeState::Draining) {
        // As an abort leaves them, or a drain that nothing was planned for.
        let stays = |one: &&Placement| {
            let planned = targets.get(&one.shard).unwrap_or(&one.wanted);
            planned.contains(&known.id) && !lost.contains_key(&one.shard)
        };
        let (left, name) = (directory.placements().filter(stays).count(), &known.name);
        match (left, observed.statuses.contains_key(&known.id)) {
            (0, _) => {}
            (left, false) => warnings
                .push(format!("node {name} is drained and does not answer, and for {left} shards nothing is planned")),
            (left, true) => warnings.push(format!(
                "node {name} is draining and holds {left} replica{}, which nothing moves: `mailring rebalance apply` moves \
                 them away, `mailring node join {name}` keeps them there",
                if left == 1 { "" } else { "s" }
            )),
        }
    }
    let is_paused = directory.rebalance().is_some_and(|last| last.state == RebalanceState::Paused);
    let kept = if is_paused { ", and is not given up while the rebalance is paused" } else { "" };
    for known in directory.nodes().filter(|known| known.state == NodeState::Active) {
        match observed.statuses.get(&known.id) {
            None => {
                let away = away(directory, observed, known.id, lost);
                warnings.push(format!("node {} does not answer{kept}{away}", known.name));
            }
            Some(status) if status.disk_full => warnings.push(format!("node {}: the disk is full", known.name)),
            Some(status) => {
                let (coming, free) = (coming.get(&known.id).copied().unwrap_or(0), status.disk_free_octets);
                if coming > free {
                    let text = format!("node {}: {coming} octets are to come, but only {free} are free", known.name);
                    warnings.push(text);
                }
            }
        }
    }
    warnings
}

/// "; shards 6, 7 cannot be made anew without it, and come back with it": where there are any of which too few other replicas are
/// left.
fn away(directory: &Directory, observed: &Observed, id: NodeId, lost: &Lost) -> String {
    let without = lost::of(directory, observed, Some(id));
    let shards: Vec<String> =
        without.keys().filter(|shard| !lost.contains_key(*shard)).map(ToString::to_string).collect();
    let beyond = shards.len().saturating_sub(SHARDS_SHOWN_MAX);
    let and_more = if beyond == 0 { String::new() } else { format!(" and {beyond} more") };
    let shown = shards.iter().take(SHARDS_SHOWN_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match shards.len() {
        0 => String::new(),
        1 => format!("; shard {shown} cannot be made anew without it, and comes back with it"),
        _ => format!("; shards {shown}{and_more} cannot be made anew without it, and come back with it"),
    }
}

/// Accounts whose moves do not get on.
fn accounts<'a>(directory: &'a Directory, observed: &'a Observed) -> impl Iterator<Item = String> + 'a {
    observed.statuses.values().flat_map(|status| &status.account_move_waits).filter_map(move |wait| {
        let account = directory.account_by_id(AccountId(wait.account))?;
        let to = account.moving?.to;
        Some(format!("account {} does not get on to shard {to}: {}", account.name, wait.because))
    })
}

/// By node, the octets of the shards that are planned to come to it.
fn coming(
    directory: &Directory,
    observed: &Observed,
    targets: &BTreeMap<ShardId, Vec<NodeId>>,
) -> BTreeMap<NodeId, u64> {
    let octets = observed.octets();
    let mut coming: BTreeMap<NodeId, u64> = BTreeMap::new();
    for (shard, to) in targets {
        let Some(placement) = directory.placement(*shard) else { continue };
        for node in to.iter().filter(|node| !placement.wanted.contains(node)) {
            *coming.entry(*node).or_default() += octets.get(shard).copied().unwrap_or(0);
        }
    }
    coming
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use directory::{ClusterId, Command, Directory, NewNode};
    use proto::wire::{Copying, GroupStatus, NodeStatusReply};
    use types::{NodeId, ShardId};

    use super::super::Observed;
    use super::{planned, shard_move};

    /// Two nodes; the first has both shards, of 1,000 octets each.
    fn cluster() -> Directory {
        let node = |id: u64| NewNode {
            id: NodeId(id),
            name: format!("node{id}"),
            address: format!("h:{id}"),
            zone: format!("zone-{id}"),
            weight: 1,
            voter: true,
            format: 1,
            waits: false,
        };
        let commands = [
            Command::CreateCluster { id: ClusterId([7; 16]), shards: 2, replicas: 1, nodes: vec![node(1), node(2)] },
            Command::SetPlacements { wanted: (0..2).map(|shard| (ShardId(shard), vec![NodeId(1)])).collect() },
        ];
        let mut directory = Directory::default();
        for (revision, command) in (1..).zip(&commands) {
            directory.apply(revision, command).reply.unwrap();
        }
        directory
    }

    fn observed(free: u64) -> Observed {
        let group = |group: u32| GroupStatus {
            group,
            role: "leader".to_owned(),
            octets: 1_000,
            voters: vec![1],
            current: vec![1],
            ..GroupStatus::default()
        };
        let first = NodeStatusReply { groups: vec![group(0), group(1)], ..NodeStatusReply::default() };
        let second = NodeStatusReply { disk_free_octets: free, ..NodeStatusReply::default() };
        Observed { statuses: [(NodeId(1), first), (NodeId(2), second)].into() }
    }

    #[test]
    fn a_plan_warns_of_a_disk_that_is_too_small_for_it() {
        let directory = cluster();
        let one = BTreeMap::from([(ShardId(0), vec![NodeId(2)])]);
        let both = BTreeMap::from([(ShardId(0), vec![NodeId(2)]), (ShardId(1), vec![NodeId(2)])]);
        let warnings = |targets, free| planned(&directory, &observed(free), targets).warnings;
        assert_eq!(warnings(&one, 1_000), Vec::<String>::new());
        assert_eq!(warnings(&one, 999), ["node node2: 1000 octets are to come, but only 999 are free"]);
        assert_eq!(warnings(&both, 1_500), ["node node2: 2000 octets are to come, but only 1500 are free"]);
    }

    #[test]
    fn what_has_gone_to_a_replica_counts_as_all_only_once_it_is_there() {
        let copied = |voters: &[u64], current: &[u64], sent: Option<u64>| {
            let mut seen = observed(1_000);
            let group = &mut seen.statuses.get_mut(&NodeId(1)).unwrap().groups[0];
            (group.voters, group.current) = (voters.to_vec(), current.to_vec());
            group.copies = sent.into_iter().map(|octets| Copying { node: 2, octets }).collect();
            let moved = shard_move(&seen, ShardId(0), &[NodeId(1)], &[NodeId(2)], "copying");
            assert_eq!(moved.octets, 1_000);
            moved.copied_octets
        };
        assert_eq!(copied(&[1], &[1], None), 0);
        assert_eq!(copied(&[1], &[1], Some(400)), 400);
        // Much of what is in the log was expunged since.
        assert_eq!(copied(&[1], &[1], Some(7_000)), 990);
        assert_eq!(copied(&[1], &[1, 2], Some(400)), 1_000);
        // It votes, and is a little behind.
        assert_eq!(copied(&[1, 2], &[1], None), 1_000);
    }

    #[test]
    fn what_a_leader_before_has_sent_is_there() {
        let mut seen = observed(1_000);
        let learner = GroupStatus { octets: 600, role: "learner".to_owned(), ..GroupStatus::default() };
        seen.statuses.get_mut(&NodeId(2)).unwrap().groups.push(learner);
        let copied =
            |seen: &Observed| shard_move(seen, ShardId(0), &[NodeId(1)], &[NodeId(2)], "copying").copied_octets;
        assert_eq!(copied(&seen), 600);
        seen.statuses.get_mut(&NodeId(1)).unwrap().groups[0].copies = vec![Copying { node: 2, octets: 700 }];
        assert_eq!(copied(&seen), 700);
    }

    #[test]
    fn a_shard_that_nobody_leads_for_a_moment_has_not_arrived_by_that() {
        let mut seen = observed(1_000);
        seen.statuses.get_mut(&NodeId(1)).unwrap().groups[0].role = "follower".to_owned();
        let moved = shard_move(&seen, ShardId(0), &[NodeId(1)], &[NodeId(2)], "copying");
        assert_eq!((moved.octets, moved.copied_octets), (1_000, 0));
    }
}
