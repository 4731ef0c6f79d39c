//! How a node comes to its cluster: the first of the founding nodes makes the directory once all of them answer;
//! every other node makes itself known to the directory's leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use directory::{NodeState, Start};
use futures_util::future::join_all;
use openraft::BasicNode;
use openraft::error::{InitializeError, RaftError};
use proto::wire::{Identity, NodeStart, RegisterNodeRequest};
use proto::{DirectoryStore, GrpcNode, connect};
use storage::{GroupId, StorageError};
use tokio::sync::watch;
use types::{MailError, MailResult, NodeId, format};

use crate::Node;
use crate::directory_group::DirectoryState;
use crate::group::StartCount;
use crate::groups::unreadable;
use crate::raft::{Peers, Reply};
use crate::settings::NodeSettings;
use crate::vetting::Vetting;
use crate::volumes::NodeVolume;

/// Between attempts to reach the others.
const RETRY: Duration = Duration::from_millis(300);
/// Voters of a directory with fewer nodes than [`MANY_NODES`].
const VOTERS: usize = 3;
const MANY_NODES: usize = 5;

/// A node that runs answers within this.
const COPY_ANSWERS_MAX: Duration = Duration::from_secs(2);
/// For so long nodes that are started at once are waited for: less than until an election would begin.
const VETTING_MAX: Duration = Duration::from_millis(1500);
const VETTING_RETRY: Duration = Duration::from_millis(50);
/// For an old copy to note that it has not been started.
const RESTORE_MAX: Duration = Duration::from_secs(3);
/// As any start that is refused.
const EXIT_REFUSED: i32 = 1;

/// Before any group starts and anything is said to others: an error if these disks are not the node's newest. Counts the
/// start, and lets others know of it. [`vet`] asks those that were not there.
pub async fn count_start(first: &NodeVolume, peers: &Peers, settings: &NodeSettings) -> Result<(StartCount, Vetting)> {
    let (own, volume) = (NodeId(peers.own_id()), first.volume().context("the first volume")?);
    let opened = volume.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let (starts, run) = opened.starts()?;
        Ok::<_, StorageError>((DirectoryState::open(&opened.group(GroupId::DIRECTORY)?)?, Start { starts, run }))
    });
    let (state, before) = opening.await?.map_err(|e| unreadable(&first.shown(), e))?;
    if let Some(cluster) = state.read().cluster()
        && !format::reads(cluster.format)
    {
        bail!("the cluster writes format {}; this program knows formats up to {}", cluster.format, format::known());
    }
    let nodes: Vec<(NodeId, String)> = state.read().nodes().map(|node| (node.id, node.address.clone())).collect();
    let has_others = state.read().nodes().any(|node| node.id != own && node.state != NodeState::Removed);
    refuse_copy(own, &nodes, peers, settings.advertise()).await?;
    let mut others = addresses(settings, &nodes, own);
    if before.starts == 0 {
        // Empty disks are a copy of nothing.
        others.clear();
    }
    let asked = NodeStart { node: own.0, ..Default::default() };
    let answers = join_all(others.iter().map(async |address| (address, note_start(peers, address, asked).await))).await;
    let known = || answers.iter().filter_map(|(_, known)| *known);
    if known().any(|known| known.removed) {
        bail!("{}", was_removed(&first.shown(), own));
    }
    let newer = known().map(start_of).find(|known| before.is_before(*known));
    if let Some(newer) = newer {
        bail!("{}", old_copy(&first.shown(), before, newer));
    }
    let now = Start { starts: before.starts + 1, run: getrandom::u64().map_err(|e| anyhow!("{e}"))? };
    let counting = tokio::task::spawn_blocking(move || volume.set_starts(now.starts, now.run));
    counting.await?.context("count the start")?;
    let told = NodeStart { node: own.0, starts: now.starts, run: now.run, ..Default::default() };
    let there: Vec<_> = answers.iter().filter(|(_, known)| known.is_some()).collect();
    join_all(there.iter().map(|(address, _)| note_start(peers, address, told))).await;
    let is_heard = !there.is_empty() || !has_others || others.is_empty();
    Ok((StartCount { before, now }, Vetting::new(there.len() == others.len(), is_heard)))
}

/// Of all nodes but this one: those that founded the cluster, and those that the directory knows.
fn addresses(settings: &NodeSettings, nodes: &[(NodeId, String)], own: NodeId) -> BTreeSet<String> {
    let mut others: BTreeSet<String> = settings.cluster.nodes.iter().cloned().collect();
    others.extend(nodes.iter().filter(|(id, _)| *id != own).map(|(_, address)| address.clone()));
    others.remove(settings.advertise());
    others
}

/// Asks those that were not there before: nodes that are started together answer when each of them serves. Then its replicas
/// may vote, be all others there or not; but those that are their groups' only voters once one other has answered.
async fn vet(node: &Node) {
    let mut others = others(node);
    let deadline = Instant::now() + VETTING_MAX;
    loop {
        ask(node, &mut others, deadline).await;
        if others.is_empty() || Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(VETTING_RETRY).await;
    }
    node.groups().context.vetting.note_asked();
    node.groups().stand();
    if !node.groups().context.vetting.is_heard() {
        tracing::info!("no other node answers, what has no other replica is not served before one does");
    }
}

/// As [`vet`], once, for as long as nobody has answered.
async fn vet_late(node: &Node) {
    let vetting = &node.groups().context.vetting;
    if vetting.is_heard() {
        return;
    }
    ask(node, &mut others(node), Instant::now() + COPY_ANSWERS_MAX).await;
    if vetting.is_heard() {
        node.groups().stand();
    }
}

/// Of all nodes but this one.
fn others(node: &Node) -> BTreeSet<String> {
    let nodes: Vec<(NodeId, String)> = {
        let directory = node.groups().directory_state.read();
        directory.nodes().map(|node| (node.id, node.address.clone())).collect()
    };
    addresses(node.settings(), &nodes, node.id())
}

/// Tells these of this start, and leaves over those that do not answer. Ends the process if one of them knows newer disks of
/// this node.
async fn ask(node: &Node, others: &mut BTreeSet<String>, deadline: Instant) {
    let StartCount { before, now } = node.groups().context.start;
    let told = NodeStart { node: node.id().0, starts: now.starts, run: now.run, ..Default::default() };
    let asked = others.iter().map(async |address| {
        let answer = tokio::time::timeout_at(deadline.into(), note_start(&node.groups().peers, address, told)).await;
        (address.clone(), answer.ok().flatten())
    });
    let answers = join_all(asked).await;
    let mut is_heard = false;
    for (address, known) in answers {
        let Some(known) = known.map(start_of) else { continue };
        if known != now && before.is_before(known) {
            end_as_old_copy(node, known).await;
        }
        is_heard = true;
        others.remove(&address);
    }
    if is_heard {
        node.groups().context.vetting.note_heard();
    }
}

fn old_copy(disks: &str, before: Start, known: Start) -> String {
    let (before, known) = (before.starts, known.starts);
    format!(
        "{disks}: an old copy of this node's disks: they know of its start number {before}, other nodes of number {known} \
         from newer ones, and what was acknowledged since is not on them; put the newest disks back, or remove the node \
         with `mailring node remove` and let it join again with empty disks"
    )
}

fn was_removed(disks: &str, own: NodeId) -> String {
    format!(
        "{disks}: node {own} was removed from the cluster, which goes on without it and what is on its disks; empty them, \
         and it joins as a new node"
    )
}

async fn note_start(peers: &Peers, address: &str, start: NodeStart) -> Option<NodeStart> {
    let asked = GrpcNode::new(connect(address, peers.tls()).ok()?);
    let answer = tokio::time::timeout(COPY_ANSWERS_MAX, asked.note_start(start)).await;
    answer.ok()?.ok()
}

fn start_of(wire: NodeStart) -> Start {
    Start { starts: wire.starts, run: wire.run }
}

/// An error if the node whose data this is runs elsewhere, where the directory last saw it. Two voters of one id could
/// promise two things.
async fn refuse_copy(own: NodeId, nodes: &[(NodeId, String)], peers: &Peers, advertise: &str) -> Result<()> {
    match nodes.iter().find(|(id, _)| *id == own) {
        Some((_, address)) if address != advertise && runs_at(peers, own, address).await => {
            bail!("node {own} is running at {address}: is this a copy of its data?")
        }
        Some(_) | None => Ok(()),
    }
}

/// Whether that very node answers at an address.
pub async fn runs_at(peers: &Peers, id: NodeId, address: &str) -> bool {
    let Ok(channel) = connect(address, peers.tls()) else { return false };
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
    if !node.groups().context.vetting.is_asked() {
        vet(node).await;
    }
    let mut refused = String::new();
    loop {
        vet_late(node).await;
        match step(node).await {
            Ok(true) => return,
            Ok(false) => {}
            // Somebody must act; told once.
            Err(error @ (MailError::CannotDo(_) | MailError::Invalid(_))) if refused != error.to_string() => {
                tracing::warn!(%error, "cluster does not take this node");
                refused = error.to_string();
            }
            Err(error) => tracing::debug!(%error, "cluster not found yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// True once the directory knows this node as it is now.
async fn step(node: &Node) -> MailResult<bool> {
    let settings = node.settings();
    refuse_old_copy(node).await;
    if known_as_is(node) {
        return Ok(true);
    }
    let initialised = node.groups().directory().raft.is_initialized().await.unwrap_or(false);
    let founder = settings.cluster.nodes.first().is_some_and(|first| first == settings.advertise());
    if founder && !initialised {
        let others = identify_all(node).await?;
        // A founder whose disk was lost is a new node to a cluster that exists.
        if others.iter().all(|other| other.cluster_id.is_empty()) {
            found(node, &others).await?;
            return Ok(false);
        }
    }
    if founder && initialised && node.groups().directory().leads() {
        create_cluster(node).await?;
    }
    if let Err(error) = register(node).await {
        refuse_removed(node).await;
        return Err(error);
    }
    Ok(known_as_is(node))
}

/// Ends the process if another node says that this one was removed. Nobody who knew was there to ask before.
async fn refuse_removed(node: &Node) {
    let (own, settings) = (node.id(), node.settings());
    let others = settings.cluster.nodes.iter().filter(|address| *address != settings.advertise());
    let asked = NodeStart { node: own.0, ..Default::default() };
    let answers = join_all(others.map(|address| note_start(&node.groups().peers, address, asked))).await;
    if !answers.iter().flatten().any(|known| known.removed) {
        return;
    }
    let disks = node.groups().volumes.list().first().map(|first| first.shown()).unwrap_or_default();
    tracing::error!(reason = was_removed(&disks, own), "process ends");
    std::process::exit(EXIT_REFUSED);
}

/// One that was removed is known for ever, and has nothing more to say.
fn known_as_is(node: &Node) -> bool {
    let (directory, start) = (node.groups().directory_state.read(), node.groups().context.start);
    directory.node(node.id()).is_some_and(|known| {
        let is_as_known = known.address == node.settings().advertise() && known.start == start.now;
        is_as_known || known.state == NodeState::Removed
    })
}

/// Another process of this node has started later on its disks: nothing more may be promised from these. Nobody who knew
/// was there to ask before.
async fn refuse_old_copy(node: &Node) {
    let StartCount { before, now } = node.groups().context.start;
    let known = node.groups().directory_state.read().node(node.id()).map(|known| known.start);
    if let Some(known) = known.filter(|known| *known != now && before.is_before(*known)) {
        end_as_old_copy(node, known).await;
    }
}

async fn end_as_old_copy(node: &Node, known: Start) {
    let before = node.groups().context.start.before;
    let Some(first) = node.groups().volumes.list().first().cloned() else { return };
    tracing::error!(reason = old_copy(&first.shown(), before, known), "process ends");
    if let Some(volume) = first.volume() {
        // This start must not make them newer: the next one is refused, too. A disk that hangs is not waited for.
        let restoring = tokio::task::spawn_blocking(move || volume.set_starts(before.starts, before.run));
        drop(tokio::time::timeout(RESTORE_MAX, restoring).await);
    }
    std::process::exit(EXIT_REFUSED);
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
    match node.groups().directory().raft.initialize(voters).await {
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

/// As it says itself, taking its share at once.
pub fn new_node(request: &RegisterNodeRequest, voter: bool) -> directory::NewNode {
    directory::NewNode {
        id: NodeId(request.id),
        name: request.name.clone(),
        address: request.address.clone(),
        zone: request.zone.clone(),
        weight: request.weight,
        voter,
        format: request.format,
        waits: false,
    }
}

/// Proposes a command to the directory; its own refusal is an error too.
pub async fn propose(node: &Node, command: &directory::Command) -> MailResult<()> {
    let head = command.encode().map_err(|e| crate::admin::directory_error(&e))?;
    match node.groups().directory().propose(head, None).await?.0 {
        Reply::Directory(Ok(_)) => Ok(()),
        Reply::Directory(Err(error)) => Err(crate::admin::directory_error(&error)),
        Reply::None | Reply::Shard(_) => Err(MailError::Internal("another group's reply".to_owned())),
    }
}

/// The same for a request that may come again under its id; 0 is no id.
pub async fn propose_once(node: &Node, request: u128, command: directory::Command) -> MailResult<()> {
    let command = node.groups().directory_state.once(request, command);
    propose(node, &command).await
}

fn own_registration(node: &Node) -> RegisterNodeRequest {
    let (settings, start) = (node.settings(), node.groups().context.start);
    let wire =
        |start: Start| NodeStart { node: node.id().0, starts: start.starts, run: start.run, ..Default::default() };
    RegisterNodeRequest {
        id: node.id().0,
        name: settings.name.clone(),
        address: settings.advertise().to_owned(),
        zone: settings.zone.clone(),
        weight: settings.weight,
        cluster_id: settings.cluster.id.clone(),
        start_before: Some(wire(start.before)),
        start: Some(wire(start.now)),
        format: format::known(),
        forwarded: false,
    }
}

/// Asks whoever answers, until one is the directory's leader or knows it.
async fn register(node: &Node) -> MailResult<()> {
    let request = own_registration(node);
    if node.groups().directory().leads() {
        return node.register_node(request).await;
    }
    let mut last = MailError::Unavailable;
    for address in others(node) {
        match client(node, &address)?.register_node(request.clone()).await {
            Ok(()) => return Ok(()),
            // What the leader says tells more.
            Err(MailError::NotLeader { .. }) if !matches!(last, MailError::Unavailable) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}
