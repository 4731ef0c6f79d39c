//! What an administrator asks of the directory's leader.

use std::collections::BTreeMap;

use directory::{Command, Directory, NodeState, Placement, RebalanceState, RequestId};
use proto::wire::rebalance_request::Action;
use proto::wire::{JoinNode, MoveShard, RebalanceReply, RebalanceRequest};
use storage::Failpoint;
use types::{MailError, MailResult, NodeId, ShardId};

use super::{Observed, come_by, lost, report, unix_s};
use crate::Node;
use crate::admin::directory_error;
use crate::bootstrap::{propose, propose_once};
use crate::mail::request_id;

/// What an administrator asks for, on the directory's leader.
pub async fn ask(node: &Node, request: RebalanceRequest) -> MailResult<RebalanceReply> {
    let action = request.action.ok_or_else(|| MailError::Invalid("nothing asked for".to_owned()))?;
    let group = node.groups().directory();
    if !group.leads() {
        return Err(MailError::NotLeader { hint: group.metrics().current_leader.map(NodeId) });
    }
    group.read_barrier().await?;
    let observed = Observed::take(node).await;
    let (id, plans) = (request_id(&request.request_id)?, !request.no_rebalance);
    let decided = node.groups().directory_state.read().answered(RequestId(id)).map(|known| known.answer.clone());
    match (decided, action) {
        (_, Action::Plan(_)) => {
            let directory = node.groups().directory_state.read();
            let targets = targets(&directory, &observed);
            return Ok(report::planned(&directory, &observed, &targets));
        }
        (Some(Err(refused)), _) => return Err(directory_error(&refused)),
        (Some(Ok(_)), _) => {}
        (None, action) => act(node, action, (id, plans), &observed).await?,
    }
    let directory = node.groups().directory_state.read();
    Ok(report::status(&directory, &observed))
}

/// Whoever paused it is to know of more.
const PAUSED: &str = "a rebalance is paused: resume or abort it first, or ask with --no-rebalance and apply one later";

/// Of each action the last command is under the request's id: with it the action is done, and until then all is done anew.
async fn act(node: &Node, action: Action, (id, plans): (u128, bool), observed: &Observed) -> MailResult<()> {
    let state = |state| Command::SetRebalanceState { state };
    match action {
        Action::Plan(_) | Action::Status(_) => Ok(()),
        Action::Apply(_) => start(node, id, observed).await,
        Action::Pause(_) => propose_once(node, id, state(RebalanceState::Paused)).await,
        Action::Resume(_) => propose_once(node, id, state(RebalanceState::Running)).await,
        Action::Abort(_) => propose_once(node, id, state(RebalanceState::Aborted)).await,
        Action::Join(_) | Action::Drain(_) if plans && is_paused(node) => Err(MailError::CannotDo(PAUSED.to_owned())),
        Action::Join(join) => {
            let known = named(node, &join.name)?;
            update_node(node, known, join).await?;
            set_state(node, (known, NodeState::Active), (id, plans), observed).await
        }
        Action::Drain(name) => set_state(node, (named(node, &name)?, NodeState::Draining), (id, plans), observed).await,
        Action::Remove(name) => remove_node(node, id, &name, observed).await,
        Action::MoveShard(one) => move_shard(node, id, &one, observed).await,
    }
}

fn is_paused(node: &Node) -> bool {
    node.groups().directory_state.read().rebalance().is_some_and(|last| last.state == RebalanceState::Paused)
}

/// What a node is to be, and what is to move since.
async fn set_state(
    node: &Node,
    (of, state): (NodeId, NodeState),
    (id, plans): (u128, bool),
    observed: &Observed,
) -> MailResult<()> {
    let command = Command::SetNodeState { id: of, state };
    if !plans {
        return propose_once(node, id, command).await;
    }
    propose(node, &command).await?;
    start(node, id, observed).await
}

fn named(node: &Node, name: &str) -> MailResult<NodeId> {
    known(&node.groups().directory_state.read(), name).map_err(MailError::CannotDo)
}

fn known(directory: &Directory, name: &str) -> Result<NodeId, String> {
    let known = directory.node_by_name(name).map(|known| known.id);
    known.ok_or_else(|| format!("no node {} is known", name.escape_debug()))
}

async fn update_node(node: &Node, id: NodeId, join: JoinNode) -> MailResult<()> {
    let (zone, weight) = {
        let directory = node.groups().directory_state.read();
        directory.node(id).map(|known| (known.zone.clone(), known.weight)).unwrap_or_default()
    };
    let zone = if join.zone.is_empty() { zone } else { join.zone };
    let weight = if join.weight == 0 { weight } else { join.weight };
    propose(node, &Command::UpdateNode { id, zone, weight }).await
}

/// Only a node that holds nothing any more goes: what is wanted elsewhere must have arrived there.
async fn remove_node(node: &Node, request: u128, name: &str, observed: &Observed) -> MailResult<()> {
    let id = named(node, name)?;
    let votes =
        node.groups().directory().metrics().membership_config.membership().voter_ids().any(|voter| voter == id.0);
    let state = node.groups().directory_state.read().node(id).map(|known| known.state);
    if state == Some(NodeState::Active) {
        return Err(MailError::CannotDo(format!("node {name} is active: drain it first")));
    }
    if votes {
        return Err(MailError::CannotDo(format!("node {name} still votes in the directory: its drain is not done")));
    }
    let held = observed.why_held(&node.groups().directory_state.read(), id);
    if let Some(why) = held {
        return Err(MailError::CannotDo(format!("node {name} cannot be removed: {why}")));
    }
    propose_once(node, request, Command::SetNodeState { id, state: NodeState::Removed }).await
}

async fn move_shard(node: &Node, id: u128, one: &MoveShard, observed: &Observed) -> MailResult<()> {
    let shard = ShardId(one.shard);
    let target = moved(&node.groups().directory_state.read(), one).map_err(MailError::CannotDo)?;
    // Asked for before, and on its way.
    let Some(target) = target else { return Ok(()) };
    let targets = BTreeMap::from([(shard, target)]);
    let octets = observed.octets().get(&shard).copied().unwrap_or(0);
    propose_once(node, id, Command::StartRebalance { targets, replace: false, unix_s: unix_s(), octets }).await?;
    come_by(Failpoint::Planned, &[shard]);
    Ok(())
}

/// Where the shard's replicas are to be after the move, or why there can be none. None where this very move waits for its turn or
/// is under way. Another one in the queue does not give way: whoever asked for it need not know.
fn moved(directory: &Directory, one: &MoveShard) -> Result<Option<Vec<NodeId>>, String> {
    let (from, to, shard) = (known(directory, &one.from)?, known(directory, &one.to)?, ShardId(one.shard));
    let placement = directory.placement(shard).ok_or_else(|| format!("no shard {shard}"))?;
    let with =
        |nodes: &[NodeId]| -> Vec<NodeId> { nodes.iter().map(|node| if *node == from { to } else { *node }).collect() };
    let is_this = |before: &[NodeId], after: &[NodeId]| {
        before.contains(&from) && !before.contains(&to) && same_nodes(&with(before), after)
    };
    let is_undone = directory.rebalance().is_some_and(|last| last.state == RebalanceState::Aborted);
    if placement.is_queued() {
        return match is_this(&placement.wanted, &placement.planned) {
            true => Ok(None),
            false => Err(queued(directory, placement)),
        };
    }
    if placement.is_moving() && !is_undone && is_this(&placement.previous, &placement.wanted) {
        return Ok(None);
    }
    if placement.wanted.contains(&to) {
        return Err(format!("shard {shard} is on node {} already", one.to));
    }
    if !placement.wanted.contains(&from) {
        return Err(format!("shard {shard} is not on node {}", one.from));
    }
    if directory.node(to).is_none_or(|known| known.state != NodeState::Active) {
        return Err(format!("node {} is not active", one.to));
    }
    Ok(Some(with(&placement.wanted)))
}

/// "shard 3 waits for its turn to go from node1 to node4 already: …".
fn queued(directory: &Directory, placement: &Placement) -> String {
    let name = |id: &NodeId| directory.node(*id).map_or_else(|| id.to_string(), |known| known.name.clone());
    let without = |list: &[NodeId], other: &[NodeId]| -> String {
        let names: Vec<String> = list.iter().filter(|node| !other.contains(node)).map(name).collect();
        if names.is_empty() { "nowhere".to_owned() } else { names.join(",") }
    };
    let (from, to) = (without(&placement.wanted, &placement.planned), without(&placement.planned, &placement.wanted));
    format!(
        "shard {} waits for its turn to go from {from} to {to} already: ask again once it has moved, or call off what is under way \
         with `mailring rebalance abort`",
        placement.shard
    )
}

/// Whether the two lists differ in their order at most. Each names a node once.
fn same_nodes(one: &[NodeId], other: &[NodeId]) -> bool {
    one.len() == other.len() && one.iter().all(|node| other.contains(node))
}

/// Plans from what the nodes are, and has it begun. `id`: of the request.
async fn start(node: &Node, id: u128, observed: &Observed) -> MailResult<()> {
    let (targets, octets) = {
        let directory = node.groups().directory_state.read();
        let targets = targets(&directory, observed);
        let under_way = report::moving(&directory, observed);
        let all = under_way.chain(report::to_move(&directory, observed, &targets));
        let octets = all.map(|one| report::copies(&one)).sum();
        (targets, octets)
    };
    propose_once(node, id, Command::StartRebalance { targets, replace: true, unix_s: unix_s(), octets }).await
}

/// What the plan makes of the nodes as they are; what is lost stays as it is.
fn targets(directory: &Directory, observed: &Observed) -> BTreeMap<ShardId, Vec<NodeId>> {
    let aside = lost::of(directory, observed, None).into_keys().collect();
    directory.propose_rebalance(&observed.octets(), &aside)
}

#[cfg(test)]
mod tests {
    use directory::{Command, Directory, NodeState, RebalanceState};
    use proto::wire::MoveShard;
    use types::{NodeId, ShardId};

    use super::super::tests::{directory, nodes_of, start, told};
    use super::moved;

    fn ask(directory: &Directory, shard: u32, from: u64, to: u64) -> Result<Option<Vec<NodeId>>, String> {
        moved(directory, &MoveShard { shard, from: format!("node{from}"), to: format!("node{to}") })
    }

    #[test]
    fn a_shard_that_waits_for_its_turn_is_not_sent_elsewhere_unasked() {
        let mut directory = directory();
        assert_eq!(ask(&directory, 0, 3, 4), Ok(Some(nodes_of(&[1, 2, 4]))));
        told(&mut directory, start(&[(0, &[1, 2, 4])]));
        // Asked for again.
        assert_eq!(ask(&directory, 0, 3, 4), Ok(None));
        let refused = "shard 0 waits for its turn to go from node3 to node4 already: ask again once it has moved, or call off \
                       what is under way with `mailring rebalance abort`";
        assert_eq!(ask(&directory, 0, 3, 5), Err(refused.to_owned()));
        assert_eq!(ask(&directory, 0, 2, 4), Err(refused.to_owned()));
        assert_eq!(ask(&directory, 1, 3, 5), Ok(Some(nodes_of(&[1, 2, 5]))), "another shard");
        told(&mut directory, Command::SetRebalanceState { state: RebalanceState::Aborted });
        assert_eq!(ask(&directory, 0, 3, 5), Ok(Some(nodes_of(&[1, 2, 5]))));
    }

    #[test]
    fn the_same_move_is_done_while_it_is_under_way_and_another_waits_behind_it() {
        let mut directory = directory();
        told(&mut directory, start(&[(0, &[1, 2, 4])]));
        told(&mut directory, Command::BeginMoves { shards: vec![ShardId(0)] });
        assert_eq!(ask(&directory, 0, 3, 4), Ok(None));
        assert_eq!(ask(&directory, 0, 2, 5), Ok(Some(nodes_of(&[1, 5, 4]))));
        assert_eq!(ask(&directory, 0, 2, 4), Err("shard 0 is on node node4 already".to_owned()));
        // On its way back it is not the same move any more.
        told(&mut directory, Command::SetRebalanceState { state: RebalanceState::Aborted });
        assert_eq!(ask(&directory, 0, 4, 3), Err("shard 0 is on node node3 already".to_owned()));
        assert_eq!(ask(&directory, 0, 3, 4), Ok(Some(nodes_of(&[1, 2, 4]))));
    }

    #[test]
    fn what_cannot_move_is_refused_by_name() {
        let mut directory = directory();
        told(&mut directory, Command::SetNodeState { id: NodeId(5), state: NodeState::Draining });
        let refused = |shard, from, to| ask(&directory, shard, from, to).unwrap_err();
        assert_eq!(refused(9, 1, 4), "no shard 9");
        assert_eq!(refused(0, 4, 4), "shard 0 is not on node node4");
        assert_eq!(refused(0, 1, 2), "shard 0 is on node node2 already");
        assert_eq!(refused(0, 1, 5), "node node5 is not active");
        assert_eq!(refused(0, 1, 7), "no node node7 is known");
    }
}
