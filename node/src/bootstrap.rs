//! How a node comes to its cluster: the first of the founding nodes makes the directory once all of them answer;
//! every other node makes itself known to the directory's leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use openraft::BasicNode;
use openraft::error::{InitializeError, RaftError};
use proto::wire::{Identity, RegisterNodeRequest};
use proto::{DirectoryStore, GrpcNode, connect};
use storage::GroupId;
use tokio::sync::watch;
use types::{MailError, MailResult, NodeId};

use crate::Node;
use crate::directory_group::DirectoryState;
use crate::group::GroupContext;
use crate::groups::unreadable;
use crate::raft::Reply;
use crate::volumes::NodeVolume;

/// Between attempts to reach the others.
const RETRY: Duration = Duration::from_millis(300);
/// Voters of a directory with fewer nodes than [`MANY_NODES`].
const VOTERS: usize = 3;
const MANY_NODES: usize = 5;

/// A node that runs answers within this.
const COPY_ANSWERS_MAX: Duration = Duration::from_secs(2);

/// Before any group starts: an error if the node whose data this is runs elsewhere, where the directory last saw it.
/// Two voters of one id could promise two things.
pub async fn refuse_copy(first: &NodeVolume, context: &GroupContext, advertise: &str) -> Result<()> {
    let (own, volume) = (context.own, first.volume().context("the first volume")?);
    let opening = tokio::task::spawn_blocking(move || DirectoryState::open(volume.group(GroupId::DIRECTORY)?));
    let state = opening.await?.map_err(|e| unreadable(&first.shown(), e))?;
    let seen_at = state.read().node(own).map(|known| known.address.clone());
    match seen_at {
        Some(address) if address != advertise && runs_at(context, own, &address).await => {
            bail!("node {own} is running at {address}: is this a copy of its data?")
        }
        Some(_) | None => Ok(()),
    }
}

/// Whether that very node answers at an address.
pub async fn runs_at(context: &GroupContext, id: NodeId, address: &str) -> bool {
    let Ok(channel) = connect(address, context.peers.tls()) else { return false };
    let asked = GrpcNode::new(channel);
    let answered = tokio::time::timeout(COPY_ANSWERS_MAX, asked.identify()).await;
    answered.is_ok_and(|answer| answer.is_ok_and(|identity| identity.node_id == id.0))
}

pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    tokio::select! {
        () = find_cluster(&node) => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
}

async fn find_cluster(node: &Node) {
    loop {
        match step(node).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "cluster not found yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// True once the directory knows this node as it is now.
async fn step(node: &Node) -> MailResult<bool> {
    let settings = node.settings();
    if known_as_is(node) {
        return Ok(true);
    }
    let initialised = node.groups().directory.raft.is_initialized().await.unwrap_or(false);
    let founder = settings.cluster.nodes.first().is_some_and(|first| first == settings.advertise());
    if founder && !initialised {
        let others = identify_all(node).await?;
        // A founder whose disk was lost is a new node to a cluster that exists.
        if others.iter().all(|other| other.cluster_id.is_empty()) {
            found(node, &others).await?;
            return Ok(false);
        }
    }
    if founder && initialised && node.groups().directory.leads() {
        create_cluster(node).await?;
    }
    register(node).await?;
    Ok(known_as_is(node))
}

fn known_as_is(node: &Node) -> bool {
    let directory = node.groups().directory_state.read();
    directory.node(node.id()).is_some_and(|known| known.address == node.settings().advertise())
}

/// All founding nodes, this one among them, in the settings' order.
async fn identify_all(node: &Node) -> MailResult<Vec<Identity>> {
    let mut all = Vec::new();
    for address in &node.settings().cluster.nodes {
        if address == node.settings().advertise() {
            all.push(node.identify().await?);
        } else {
            all.push(client(node, address)?.identify().await?);
        }
    }
    let ids: BTreeSet<u64> = all.iter().map(|identity| identity.node_id).collect();
    if ids.len() != all.len() {
        return Err(MailError::Invalid("two of cluster.nodes are the same node".to_owned()));
    }
    Ok(all)
}

fn client(node: &Node, address: &str) -> MailResult<GrpcNode> {
    let channel = connect(address, node.groups().peers.tls()).map_err(|e| MailError::Invalid(e.to_string()))?;
    Ok(GrpcNode::new(channel))
}

/// How many of `nodes` vote in the directory: 3, or 5 of many, and never more than there are.
pub fn voter_count(nodes: usize) -> usize {
    if nodes >= MANY_NODES { MANY_NODES } else { nodes.min(VOTERS) }
}

/// Makes the directory's group. Harmless if it was made before.
async fn found(node: &Node, all: &[Identity]) -> MailResult<()> {
    let addresses = &node.settings().cluster.nodes;
    let voters: BTreeMap<u64, BasicNode> = all
        .iter()
        .zip(addresses)
        .take(voter_count(all.len()))
        .map(|(identity, address)| (identity.node_id, BasicNode::new(address)))
        .collect();
    tracing::info!(voters = voters.len(), "directory founded");
    match node.groups().directory.raft.initialize(voters).await {
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(MailError::Internal(error.to_string())),
    }
}

/// The first command of a new directory.
async fn create_cluster(node: &Node) -> MailResult<()> {
    if node.groups().directory_state.read().cluster().is_some() {
        return Ok(());
    }
    let settings = node.settings();
    let own = new_node(&own_registration(node), true);
    let command = directory::Command::CreateCluster {
        id: settings.cluster_id().map_err(MailError::Invalid)?,
        shards: settings.cluster.shards,
        replicas: settings.cluster.replicas,
        nodes: vec![own],
    };
    propose(node, &command).await
}

pub fn new_node(request: &RegisterNodeRequest, voter: bool) -> directory::NewNode {
    directory::NewNode {
        id: NodeId(request.id),
        name: request.name.clone(),
        address: request.address.clone(),
        zone: request.zone.clone(),
        weight: request.weight,
        voter,
    }
}

/// Proposes a command to the directory; its own refusal is an error too.
pub async fn propose(node: &Node, command: &directory::Command) -> MailResult<()> {
    let head = command.encode().map_err(|e| crate::admin::directory_error(&e))?;
    match node.groups().directory.propose(head, None).await?.0 {
        Reply::Directory(Ok(_)) => Ok(()),
        Reply::Directory(Err(error)) => Err(crate::admin::directory_error(&error)),
        Reply::None | Reply::Shard(_) => Err(MailError::Internal("another group's reply".to_owned())),
    }
}

fn own_registration(node: &Node) -> RegisterNodeRequest {
    let settings = node.settings();
    RegisterNodeRequest {
        id: node.id().0,
        name: settings.name.clone(),
        address: settings.advertise().to_owned(),
        zone: settings.zone.clone(),
        weight: settings.weight,
        cluster_id: settings.cluster.id.clone(),
    }
}

/// Asks whoever answers, until one is the directory's leader.
async fn register(node: &Node) -> MailResult<()> {
    let request = own_registration(node);
    if node.groups().directory.leads() {
        return node.register_node(request).await;
    }
    let mut last = MailError::Unavailable;
    for address in &node.settings().cluster.nodes {
        if address == node.settings().advertise() {
            continue;
        }
        match client(node, address)?.register_node(request.clone()).await {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}
