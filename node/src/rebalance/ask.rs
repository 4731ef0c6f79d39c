//! What an administrator asks of the directory's leader.

use std::collections::BTreeMap;

use directory::{Command, Directory, NodeState, RebalanceState, RequestId};
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
    let directory = node.groups().directory_state.read();
    let known = directory.node_by_name(name).map(|known| known.id);
    known.ok_or_else(|| MailError::CannotDo(format!("no node {} is known", name.escape_debug())))
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
    let (from, to, shard) = (named(node, &one.from)?, named(node, &one.to)?, ShardId(one.shard));
    let target = {
        let directory = node.groups().directory_state.read();
        let placement = directory.placement(shard);
        let placement = placement.ok_or_else(|| MailError::CannotDo(format!("no shard {shard}")))?;
        let mut target = placement.wanted.clone();
        if target.contains(&to) {
            return Err(MailError::CannotDo(format!("shard {shard} is on node {} already", one.to)));
        }
        let Some(place) = target.iter_mut().find(|place| **place == from) else {
            return Err(MailError::CannotDo(format!("shard {shard} is not on node {}", one.from)));
        };
        if directory.node(to).is_none_or(|known| known.state != NodeState::Active) {
            return Err(MailError::CannotDo(format!("node {} is not active", one.to)));
        }
        *place = to;
        target
    };
    let targets = BTreeMap::from([(shard, target)]);
    let octets = observed.octets().get(&shard).copied().unwrap_or(0);
    propose_once(node, id, Command::StartRebalance { targets, replace: false, unix_s: unix_s(), octets }).await?;
    come_by(Failpoint::Planned, &[shard]);
    Ok(())
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
