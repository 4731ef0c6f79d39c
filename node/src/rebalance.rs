//! Conducts rebalances, on the directory's leader: plans them, lets shards move in turn, notes which have arrived, gives up
//! nodes that are gone, and chooses who votes in the directory. What is wanted is in the directory, what is in the groups
//! ([`crate::membership`] brings the one to the other): whoever leads next goes on from there.

mod ask;
mod dead;
mod estimate;
mod leadership;
mod lost;
mod report;
mod short;
#[cfg(test)]
mod tests;
mod turns;
mod voters;
mod zones;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use directory::{Command, Directory, NodeState, Placement, RebalanceState};
use futures_util::future::join_all;
use openraft::ChangeMembers;
use proto::DirectoryStore;
use proto::wire::{GroupStatus, NodeStatusReply};
use storage::{Failpoint, GroupId, reach};
use tokio::sync::watch;
use types::{MailError, MailResult, NodeId, ShardId};

pub use self::ask::ask;
use self::leadership::{Led, Rates};
use self::short::Leaderless;
pub use self::short::{ShortShards, told_short};
use self::turns::Turn;
use self::voters::Candidate;
use crate::Node;
use crate::bootstrap::propose;
use crate::membership::status;
use crate::shard::unix_ms;
use crate::step_aside;

const ROUND: Duration = Duration::from_millis(500);
/// Between looks at dead nodes of which nothing can be made anew.
const WAITED_FOR_LOOK: Duration = Duration::from_secs(10);
/// A directory voter that says nothing for so long is replaced by one that does, if there is one.
const SILENT_VOTER: Duration = Duration::from_secs(30);

/// What every node says of its groups, and which node leads each shard.
struct Observed {
    statuses: BTreeMap<NodeId, NodeStatusReply>,
}

impl Observed {
    /// Asks every node that is not removed.
    async fn take(node: &Node) -> Observed {
        let nodes: Vec<NodeId> = {
            let directory = node.groups().directory_state.read();
            let present = directory.nodes().filter(|known| known.state != NodeState::Removed);
            present.map(|known| known.id).collect()
        };
        let asked = join_all(nodes.iter().map(async |id| match *id == node.id() {
            true => node.node_status().await.ok(),
            false => status(node, *id).await,
        }));
        let statuses = nodes.iter().copied().zip(asked.await);
        Observed { statuses: statuses.filter_map(|(id, status)| Some((id, status?))).collect() }
    }

    /// A shard's group as its leader sees it; the newest, where two believe that they lead.
    fn led(&self, shard: ShardId) -> Option<&GroupStatus> {
        let groups = self.statuses.values().flat_map(|status| &status.groups);
        groups.filter(|group| group.group == shard.0 && group.role == "leader").max_by_key(|group| group.term)
    }

    /// What a node's copy of a shard has, in octets.
    fn octets_on(&self, node: NodeId, shard: ShardId) -> u64 {
        let groups = self.statuses.get(&node).map(|status| &*status.groups).unwrap_or_default();
        groups.iter().find(|group| group.group == shard.0).map_or(0, |group| group.octets)
    }

    /// What the fullest copy of a shard has, in octets.
    fn octets_of(&self, shard: ShardId) -> u64 {
        let groups = self.statuses.values().flat_map(|status| &status.groups);
        groups.filter(|group| group.group == shard.0).map(|group| group.octets).max().unwrap_or(0)
    }

    /// What a copy of each shard has, in octets.
    fn octets(&self) -> BTreeMap<ShardId, u64> {
        let mut octets: BTreeMap<ShardId, u64> = BTreeMap::new();
        for group in self.statuses.values().flat_map(|status| &status.groups).filter(|one| one.group != u32::MAX) {
            let most = octets.entry(ShardId(group.group)).or_default();
            *most = group.octets.max(*most);
        }
        octets
    }

    /// The shards that lack a replica where they are wanted, or a leader. One that was taken out of its group since it was lost
    /// is still missing.
    fn degraded<'a>(&self, placements: impl Iterator<Item = &'a Placement>) -> BTreeSet<ShardId> {
        let is_whole = |placement: &&Placement| {
            self.led(placement.shard).is_some_and(|group| {
                let is_there = |node: &NodeId| group.voters.contains(&node.0) && group.current.contains(&node.0);
                if !placement.is_moving() {
                    return placement.wanted.iter().all(is_there);
                }
                // On its way it may have them here or there.
                let copies = group.voters.iter().filter(|voter| group.current.contains(voter)).count();
                copies >= placement.wanted.len().min(placement.previous.len())
            })
        };
        placements.filter(|placement| !is_whole(placement)).map(|placement| placement.shard).collect()
    }

    /// Why a node may still hold something that counts; `None` where every shard's leader says that it does not. What is
    /// wanted tells only where replicas should be.
    fn why_held(&self, directory: &Directory, id: NodeId) -> Option<String> {
        let lost = lost::of(directory, self, None);
        directory.placements().filter(|placement| placement.initialised).find_map(|placement| {
            let shard = placement.shard;
            match self.led(shard) {
                None if lost.contains_key(&shard) => {
                    let is_named = placement.wanted.contains(&id) || placement.previous.contains(&id);
                    is_named.then(|| format!("shard {shard} is lost, and what is left of it may be there"))
                }
                None => Some(format!("shard {shard} has no leader to say where its replicas are")),
                Some(group) if group.voters.contains(&id.0) || group.learners.contains(&id.0) => {
                    Some(format!("shard {shard} still has a replica there"))
                }
                Some(_) => None,
            }
        })
    }

    /// The moves that begin now. These have `arrived`.
    fn turns(&self, directory: &Directory, arrived: &[ShardId]) -> Vec<ShardId> {
        // What is lost goes nowhere, and keeps nobody busy.
        let lost = lost::of(directory, self, None);
        let moves =
            |placement: &&Placement| !arrived.contains(&placement.shard) && !lost.contains_key(&placement.shard);
        let moving: Vec<Turn> = directory
            .moving()
            .filter(moves)
            .map(|placement| turn(placement, &placement.previous, &placement.wanted))
            .collect();
        let waiting_turn = |placement: &Placement| match directory.goes_astray(placement) {
            true => Turn { replaces: true, ..turn(placement, &placement.previous, &placement.planned) },
            false => turn(placement, &placement.wanted, &placement.planned),
        };
        // A group that nobody has seen alive has nothing to move, and may be founded yet where it is.
        let queued = directory.queued().filter(moves).filter(|placement| placement.initialised);
        let waiting: Vec<Turn> = queued.map(waiting_turn).collect();
        let mut degraded = self.degraded(directory.placements());
        degraded.retain(|shard| !lost.contains_key(shard));
        turns::next(&waiting, &moving, &degraded, &self.statuses.keys().copied().collect())
    }

    fn has_arrived(&self, placement: &Placement) -> bool {
        let wanted: BTreeSet<u64> = placement.wanted.iter().map(|node| node.0).collect();
        self.led(placement.shard).is_some_and(|group| {
            !group.joint && group.learners.is_empty() && group.voters.iter().copied().collect::<BTreeSet<_>>() == wanted
        })
    }
}

pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    let mut revisions = node.groups().directory_state.revisions();
    let mut heard: HashMap<NodeId, Instant> = HashMap::new();
    let mut looks = Looks::default();
    let mut waited_for: Option<Instant> = None;
    let mut leaderless = Leaderless::default();
    loop {
        if listen(&node, &mut heard) {
            if let Err(error) = give_up_dead_nodes(&node, &heard, &mut waited_for).await {
                tracing::debug!(%error, "dead node not given up");
            }
            if let Err(error) = choose_voters(&node, &heard).await {
                tracing::debug!(%error, "directory voters not changed");
            }
            if let Err(error) = raise_format(&node).await {
                tracing::debug!(%error, "format not raised");
            }
            if let Err(error) = conduct(&node, &mut leaderless).await {
                tracing::debug!(%error, "rebalance not conducted");
            }
            if let Err(error) = lead_by_load(&node, &mut looks).await {
                tracing::debug!(%error, "leaders not chosen by load");
            }
        } else {
            (looks, leaderless) = (Looks::default(), Leaderless::default());
        }
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            changed = revisions.changed() => if changed.is_err() { return },
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// Whether this node leads the directory, and a majority follows; notes then who answered.
fn listen(node: &Node, heard: &mut HashMap<NodeId, Instant>) -> bool {
    let group = node.groups().directory();
    let leads = group.leads_majority();
    let directory = node.groups().directory_state.read();
    let nodes = directory.nodes().map(|known| (known.id, group.hears(known.id)));
    note_heard(heard, leads.then_some(nodes), Instant::now());
    leads
}

/// `nodes`: of a leader that a majority follows, and whether it hears them now. A new one gives everybody the whole time again,
/// and so does one that was cut off: it heard nobody.
fn note_heard(heard: &mut HashMap<NodeId, Instant>, nodes: Option<impl Iterator<Item = (NodeId, bool)>>, now: Instant) {
    let Some(nodes) = nodes else { return heard.clear() };
    for (id, answers) in nodes {
        let last = heard.entry(id).or_insert(now);
        if answers {
            *last = now;
        }
    }
}

fn silent_for(heard: &HashMap<NodeId, Instant>, id: NodeId) -> Duration {
    heard.get(&id).map_or(Duration::ZERO, Instant::elapsed)
}

/// A node that has been away for too long loses its replicas to others, as long as there are enough others and something to make
/// them of. `waited_for`: when there was last nothing to be done about those that are dead.
async fn give_up_dead_nodes(
    node: &Node,
    heard: &HashMap<NodeId, Instant>,
    waited_for: &mut Option<Instant>,
) -> MailResult<()> {
    let limit = Duration::from_secs(node.settings().dead_node_s);
    if limit.is_zero() || waited_for.is_some_and(|last| last.elapsed() < WAITED_FOR_LOOK) {
        return Ok(());
    }
    let dead = dead::all(&node.groups().directory_state.read(), |id| silent_for(heard, id) >= limit);
    let Some(first) = dead.first() else {
        *waited_for = None;
        return Ok(());
    };
    let observed = Observed::take(node).await;
    let found = {
        let directory = node.groups().directory_state.read();
        let lost = dead.iter().map(|id| (*id, lost::of(&directory, &observed, Some(*id))));
        let mut worth_it = lost.filter(|(id, lost)| dead::is_worth_it(&directory, *id, lost));
        worth_it.next().map(|(id, lost)| {
            let aside: BTreeSet<ShardId> = lost.keys().copied().collect();
            let name = directory.node(id).map(|known| known.name.clone()).unwrap_or_default();
            (id, name, dead::give_up(&directory, id, &observed.octets(), &aside, unix_s()), lost)
        })
    };
    let Some((id, name, command, lost)) = found else {
        if waited_for.replace(Instant::now()).is_none() {
            tracing::info!(node = first.0, "dead node is waited for, nothing that it holds can be made anew");
        }
        return Ok(());
    };
    propose(node, &command).await?;
    if !lost.is_empty() {
        tracing::error!(node = id.0, name, shards = ?lost.keys().map(|shard| shard.0).collect::<Vec<_>>(), "shards are lost");
    }
    tracing::warn!(
        node = id.0,
        name,
        limit_s = limit.as_secs(),
        "node has been away for too long, its replicas are made anew"
    );
    Ok(())
}

/// Puts the newest format in force that every node knows.
async fn raise_format(node: &Node) -> MailResult<()> {
    let (in_force, known) = {
        let directory = node.groups().directory_state.read();
        // While a cluster is being founded its nodes come one by one.
        if directory.nodes().count() < node.settings().cluster.nodes.len() {
            return Ok(());
        }
        let present = directory.nodes().filter(|known| known.state != NodeState::Removed);
        let known = present.map(|known| known.format).min().unwrap_or(1);
        (directory.cluster().map_or(known, |cluster| cluster.format), known)
    };
    if known <= in_force {
        return Ok(());
    }
    propose(node, &Command::SetFormat { format: known }).await?;
    tracing::info!(format = known, "every node knows a newer format, which is in force now");
    Ok(())
}

/// Brings the directory's voters to those that should vote, one step a round.
async fn choose_voters(node: &Node, heard: &HashMap<NodeId, Instant>) -> MailResult<()> {
    let group = node.groups().directory();
    let metrics = group.metrics();
    let membership = metrics.membership_config.membership();
    let applied = metrics.last_applied.map(|id| id.index);
    if metrics.membership_config.log_id().as_ref().map(|id| id.index) > applied {
        return Ok(());
    }
    let voters: BTreeSet<NodeId> = membership.voter_ids().map(NodeId).collect();
    let is_member = |id: NodeId| membership.get_node(&id.0).is_some();
    let (wanted, records, removed) = {
        let directory = node.groups().directory_state.read();
        // While a cluster is being founded its nodes come one by one.
        if directory.nodes().count() < node.settings().cluster.nodes.len() {
            return Ok(());
        }
        let candidates: Vec<Candidate> = directory
            .nodes()
            .map(|known| Candidate {
                id: known.id,
                zone: known.zone.clone(),
                stays: known.state == NodeState::Active && is_member(known.id),
                lives: silent_for(heard, known.id) < SILENT_VOTER,
                votes: voters.contains(&known.id),
            })
            .collect();
        let removed: Vec<NodeId> = directory
            .nodes()
            .filter(|known| known.state == NodeState::Removed && is_member(known.id) && !voters.contains(&known.id))
            .map(|known| known.id)
            .collect();
        let records: Vec<(NodeId, bool)> = directory
            .nodes()
            .filter(|known| known.state != NodeState::Removed && known.directory_voter != voters.contains(&known.id))
            .map(|known| (known.id, voters.contains(&known.id)))
            .collect();
        (voters::choose(&candidates), records, removed)
    };
    let refused = |error: String| MailError::CannotDo(error);
    if membership.get_joint_config().len() > 1 || wanted != voters {
        let joint = membership.get_joint_config().len() > 1;
        let target = match joint {
            true => membership.get_joint_config().last().cloned().unwrap_or_default(),
            false => wanted.iter().map(|id| id.0).collect(),
        };
        let ready = target.iter().filter(|id| group.hears(NodeId(**id)) && group.is_level(NodeId(**id))).count();
        if !joint && (ready <= target.len() / 2 || wanted.iter().any(|id| !voters.contains(id) && !group.is_level(*id)))
        {
            return Ok(());
        }
        if !target.contains(&node.id().0) {
            let stays = |id: &&NodeId| target.contains(&id.0) && group.has_caught_up(**id);
            if let Some(heir) = voters.iter().find(stays)
                && step_aside::serves_well(node, *heir).await
            {
                group.hand_over(*heir).await;
            }
            return Ok(());
        }
        tracing::info!(?wanted, "directory voters change");
        // Every node follows the directory, whether it votes or not.
        let change = ChangeMembers::ReplaceAllVoters(target);
        group.raft.change_membership(change, true).await.map_err(|e| refused(e.to_string()))?;
        return Ok(());
    }
    if let Some((id, voter)) = records.first().copied() {
        return propose(node, &Command::SetNodeVoter { id, voter }).await;
    }
    if let Some(gone) = removed.first() {
        let change = ChangeMembers::RemoveNodes([gone.0].into());
        group.raft.change_membership(change, true).await.map_err(|e| refused(e.to_string()))?;
    }
    Ok(())
}

/// Notes which moves have ended and which shards are short, and begins the moves whose turn it is.
async fn conduct(node: &Node, leaderless: &mut Leaderless) -> MailResult<()> {
    if !is_under_way(node) {
        *leaderless = Leaderless::default();
        return Ok(());
    }
    // What has arrived is where it was to be before anybody was asked: meanwhile it may be wanted elsewhere.
    let (seen, under_way): (u64, Vec<Placement>) = {
        let directory = node.groups().directory_state.read();
        (directory.revision(), directory.moving().cloned().collect())
    };
    let asked = Instant::now();
    let observed = Observed::take(node).await;
    let short = leaderless.short(&node.groups().directory_state.read(), &observed, asked);
    node.short_shards().note(short, asked);
    let arrived: Vec<ShardId> =
        under_way.iter().filter(|one| observed.has_arrived(one)).map(|placement| placement.shard).collect();
    let begin = {
        let directory = node.groups().directory_state.read();
        let is_running = directory.rebalance().is_some_and(|rebalance| rebalance.state == RebalanceState::Running);
        if is_running { observed.turns(&directory, &arrived) } else { Vec::new() }
    };
    if !arrived.is_empty() {
        tracing::info!(shards = ?arrived, "shards have moved");
        come_by(Failpoint::Arrived, &arrived);
        propose(node, &Command::EndMoves { shards: arrived.clone(), seen: Some(seen) }).await?;
        come_by(Failpoint::Ended, &arrived);
    }
    if !begin.is_empty() {
        tracing::info!(shards = ?begin, "shards begin to move");
        come_by(Failpoint::TurnChosen, &begin);
        propose(node, &Command::BeginMoves { shards: begin.clone() }).await?;
        come_by(Failpoint::TurnGiven, &begin);
    }
    Ok(())
}

/// What the looks at the load of the shards have come to.
#[derive(Default)]
struct Looks {
    last: Option<Instant>,
    rates: Rates,
}

/// Lets leadership follow the load, where nothing moves and every shard is whole and led from where it should be.
async fn lead_by_load(node: &Node, looks: &mut Looks) -> MailResult<()> {
    let pause = Duration::from_secs(node.settings().leaders_look_s);
    if pause.is_zero() || looks.last.is_some_and(|last| last.elapsed() < pause) {
        return Ok(());
    }
    looks.last = Some(Instant::now());
    let observed = Observed::take(node).await;
    let mut settled = true;
    let leaders = {
        let directory = node.groups().directory_state.read();
        let lost = lost::of(&directory, &observed, None);
        let mut led = Vec::new();
        for placement in directory.placements().filter(|placement| !lost.contains_key(&placement.shard)) {
            settled &= !placement.is_moving() && !placement.is_queued();
            let seen = observed.led(placement.shard);
            if let Some(seen) = seen {
                looks.rates.note(placement.shard, NodeId(seen.leader), seen.operations, Instant::now());
            }
            let rate = looks.rates.of(placement.shard);
            let at_home = seen.is_some_and(|seen| placement.wanted.first() == Some(&NodeId(seen.leader)));
            settled &= at_home && rate.is_some();
            let owners = placement.wanted.clone();
            led.push(Led { shard: placement.shard, owners, rate: rate.unwrap_or_default() });
        }
        let whole = directory.placements().filter(|placement| !lost.contains_key(&placement.shard));
        if !settled || !observed.degraded(whole).is_empty() {
            return Ok(());
        }
        let active = directory.nodes().filter(|known| known.state == NodeState::Active);
        let weights = active.map(|known| (known.id, known.weight)).collect();
        leadership::choose(&led, &weights).into_iter().collect::<BTreeMap<ShardId, NodeId>>()
    };
    if leaders.is_empty() {
        return Ok(());
    }
    tracing::info!(?leaders, "leadership follows the load");
    propose(node, &Command::PreferLeaders { leaders }).await
}

fn come_by(point: Failpoint, shards: &[ShardId]) {
    shards.iter().for_each(|shard| reach(point, GroupId(shard.0)));
}

fn turn(placement: &Placement, from: &[NodeId], to: &[NodeId]) -> Turn {
    Turn { shard: placement.shard, from: from.to_vec(), to: to.to_vec(), replaces: false }
}

fn is_under_way(node: &Node) -> bool {
    let directory = node.groups().directory_state.read();
    directory.placements().any(|placement| !placement.previous.is_empty() || !placement.planned.is_empty())
}

fn unix_s() -> u64 {
    unix_ms().div_euclid(1000).unsigned_abs()
}
