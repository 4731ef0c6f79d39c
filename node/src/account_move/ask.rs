//! Whom the conductor of a move asks: the leaders of the account's old shard and of the directory.

use std::collections::VecDeque;
use std::future::Future;

use proto::DirectoryStore;
use proto::ItemStream;
use proto::wire::{ExportAccountRequest, ExportedPart, MoveAccountReply, MoveAccountRequest};
use types::{MailError, MailResult, NodeId, ShardId};

use crate::Node;
use crate::membership::at;

/// Nodes that are asked until one leads.
const ASKED_MAX: usize = 12;

pub async fn source(node: &Node, request: MoveAccountRequest) -> MailResult<MoveAccountReply> {
    let nodes = holders(node, ShardId(request.shard));
    leader(node, nodes, |one| async move { one.move_account(request).await }).await
}

pub async fn directory(node: &Node, request: MoveAccountRequest) -> MailResult<MoveAccountReply> {
    let metrics = node.groups().directory().metrics();
    let voters = metrics.membership_config.membership().voter_ids();
    let nodes = metrics.current_leader.into_iter().chain(voters).map(NodeId).collect();
    leader(node, nodes, |one| async move { one.move_account(request).await }).await
}

pub async fn export(node: &Node, request: &ExportAccountRequest) -> MailResult<ItemStream<ExportedPart>> {
    let nodes = holders(node, ShardId(request.shard));
    leader(node, nodes, |one| async move { one.export_account(request.clone()).await }).await
}

/// Where the shard is, was or should be: the preferred leader first.
fn holders(node: &Node, shard: ShardId) -> VecDeque<NodeId> {
    let directory = node.groups().directory_state.read();
    let placement = directory.placement(shard);
    placement.map(|one| one.wanted.iter().chain(&one.previous).copied().collect()).unwrap_or_default()
}

async fn leader<T, F: Future<Output = MailResult<T>>>(
    node: &Node,
    mut nodes: VecDeque<NodeId>,
    ask: impl Fn(Box<dyn DirectoryStore>) -> F,
) -> MailResult<T> {
    let mut last = MailError::Unavailable;
    for _ in 0..ASKED_MAX {
        let Some(id) = nodes.pop_front() else { break };
        let one: Box<dyn DirectoryStore> = match id == node.id() {
            true => Box::new(node.clone()),
            false => match at(node, id) {
                Some(peer) => Box::new(peer),
                None => continue,
            },
        };
        match ask(one).await {
            Err(error @ MailError::NotLeader { hint }) => {
                hint.into_iter().for_each(|hint| nodes.push_front(hint));
                last = error;
            }
            Err(error @ MailError::Unavailable) => last = error,
            other => return other,
        }
    }
    Err(last)
}
