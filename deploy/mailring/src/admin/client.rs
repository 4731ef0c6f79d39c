//! Finding who can answer: asks the nodes that the settings name (and those that they name) for the directory's
//! leader, and brings changes to it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
use proto::wire::admin_request::Request;
use proto::wire::node_record::State;
use proto::wire::{
    AccountRecord, AccountRequest, AdminReply, AdminRequest, GroupStatus, NodeRecord, NodeStatusReply, RebalanceReply,
    RebalanceRequest, UsageReply,
};
use proto::{ClusterTls, DirectoryStore, GrpcNode, MailStore, connect, fresh_request_id};
use rustls::ClientConfig;
use tokio::time::{Instant, sleep, timeout};
use types::{MailError, MailResult};

use crate::admin::quorum::Voters;
use crate::admin::view::DirectoryView;
use crate::failure::Failure;
use crate::settings::AdminFile;

/// The directory's group among a node's groups.
pub const DIRECTORY: u32 = u32::MAX;
/// A node that does not answer within this is down as far as an operator is concerned.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// For a change's first look: together with [`SILENT`] less than two seconds, within which it is refused where the directory
/// has no majority.
const FIRST_PROBE_MAX: Duration = Duration::from_millis(600);
/// A voter that says nothing for so long, asked again and again for no more than its name, does not answer.
const SILENT: Duration = Duration::from_secs(1);
/// Longer than an election: a change waits for a new leader, then gives up.
const COMMAND_MAX: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_millis(200);
/// Where this machine, or theirs, stands still for a moment, all nodes are silent at once: that is no cluster that is down.
const SURVEYS_MAX: u32 = 3;

pub struct AdminClient {
    tls: Arc<ClientConfig>,
    /// Every address worth asking; grows by what nodes tell of others.
    nodes: BTreeMap<String, GrpcNode>,
    leader: Option<GrpcNode>,
    /// As the directory had them when it was last read.
    records: BTreeMap<u64, NodeRecord>,
}

impl AdminClient {
    pub fn new(settings: &AdminFile) -> Result<AdminClient, Failure> {
        let tls = ClusterTls::load(&settings.tls).context("tls").map_err(Failure::Usage)?;
        let mut client =
            AdminClient { tls: tls.client, nodes: BTreeMap::new(), leader: None, records: BTreeMap::new() };
        for address in &settings.nodes {
            client.learn(address).with_context(|| format!("nodes: {address:?}")).map_err(Failure::Usage)?;
        }
        Ok(client)
    }

    fn learn(&mut self, address: &str) -> std::io::Result<GrpcNode> {
        match self.nodes.entry(address.to_owned()) {
            Entry::Occupied(known) => Ok(known.get().clone()),
            Entry::Vacant(new) => Ok(new.insert(GrpcNode::new(connect(address, self.tls.clone())?)).clone()),
        }
    }

    /// The node at an address.
    pub fn at(&mut self, address: &str) -> Result<GrpcNode, Failure> {
        self.learn(address).with_context(|| format!("address {address:?}")).map_err(Failure::from)
    }

    /// The status of the node at each address, asked in parallel; an error where none came within two seconds.
    pub async fn statuses<'a>(
        &mut self,
        addresses: impl Iterator<Item = &'a str>,
    ) -> BTreeMap<String, MailResult<NodeStatusReply>> {
        self.statuses_within(PROBE_MAX, addresses).await
    }

    async fn statuses_within<'a>(
        &mut self,
        probe_max: Duration,
        addresses: impl Iterator<Item = &'a str>,
    ) -> BTreeMap<String, MailResult<NodeStatusReply>> {
        let asked: Vec<_> = addresses
            .map(|address| (address.to_owned(), self.learn(address)))
            .map(async |(address, node)| {
                let status = match node {
                    Ok(node) => timeout(probe_max, node.node_status()).await.unwrap_or(Err(MailError::Deadline)),
                    Err(error) => Err(MailError::Invalid(error.to_string())),
                };
                (address, status)
            })
            .collect();
        join_all(asked).await.into_iter().collect()
    }

    /// The directory, from its leader or else from the node that knows most of it.
    pub async fn view(&mut self) -> Result<DirectoryView, Failure> {
        let deadline = Instant::now() + COMMAND_MAX;
        loop {
            let found = self.survey(PROBE_MAX).await?;
            let mut last = MailError::Unavailable;
            for node in found.leader.into_iter().chain(found.others) {
                match DirectoryView::read(&node).await {
                    Ok(view) => return Ok(view),
                    Err(error @ (MailError::Unavailable | MailError::NotLeader { .. } | MailError::Deadline)) => {
                        last = error;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if Instant::now() >= deadline {
                return Err(match last {
                    MailError::Unavailable => Failure::Unreachable("the cluster has no directory yet".to_owned()),
                    other => other.into(),
                });
            }
            sleep(RETRY).await;
        }
    }

    /// Makes a change, waiting for a leader if there is none. Each attempt has the same id, so it is made once whatever
    /// becomes of the answers.
    pub async fn administer(&mut self, request: Request) -> Result<AdminReply, Failure> {
        let request = AdminRequest { request: Some(request), request_id: fresh_request_id()? };
        self.ask_leader(async |leader: &GrpcNode| leader.administer(request.clone()).await).await
    }

    /// Asks for a rebalance, or changes one, in the same way.
    pub async fn rebalance(&mut self, request: RebalanceRequest) -> Result<RebalanceReply, Failure> {
        let request = RebalanceRequest { request_id: fresh_request_id()?, ..request };
        self.ask_leader(async |leader: &GrpcNode| leader.rebalance(request.clone()).await).await
    }

    /// The answer of the directory's leader, once there is one. Asked again, whoever leads by then, where an answer is lost:
    /// for what may be done twice, or has an id. Refused within two seconds where no majority of the directory's voters
    /// answers, as long as nothing that was asked for can have been done.
    async fn ask_leader<T>(&mut self, ask: impl AsyncFn(&GrpcNode) -> MailResult<T>) -> Result<T, Failure> {
        let deadline = Instant::now() + COMMAND_MAX;
        let (mut lost, mut probe_max) = (false, FIRST_PROBE_MAX);
        loop {
            let leader = match &self.leader {
                Some(leader) => Some(leader.clone()),
                None => match self.survey(probe_max).await {
                    Ok(found) => {
                        if !lost && let Some(refusal) = self.without_majority(&found).await {
                            return Err(Failure::Unreachable(refusal));
                        }
                        found.leader
                    }
                    // It may be done: somebody may still tell.
                    Err(Failure::Unreachable(_)) if lost => None,
                    Err(failure) => return Err(failure),
                },
            };
            if let Some(leader) = leader {
                match ask(&leader).await {
                    Ok(reply) => {
                        self.leader = Some(leader);
                        return Ok(reply);
                    }
                    Err(MailError::NotLeader { .. } | MailError::Unavailable) => {}
                    Err(MailError::Deadline) => lost = true,
                    Err(error) => return Err(error.into()),
                }
            }
            (self.leader, probe_max) = (None, PROBE_MAX);
            if Instant::now() >= deadline {
                return Err(match lost {
                    true => MailError::Deadline.into(),
                    false => Failure::Unreachable("the directory has no leader: nothing was changed".to_owned()),
                });
            }
            sleep(RETRY).await;
        }
    }

    /// Why nothing can be changed, where too many of the directory's voters do not answer. None where enough do, one of which
    /// leads soon, and where not all of them could be asked.
    async fn without_majority(&mut self, found: &Found) -> Option<String> {
        let mut voters = found.voters.clone().filter(Voters::lack_majority)?;
        if voters.silent.iter().any(|voter| !self.records.contains_key(voter)) {
            self.learn_others(found.others.first()?.clone()).await;
        }
        let mut asked = Vec::new();
        for voter in &voters.silent {
            let address = self.records.get(voter)?.address.clone();
            asked.push((*voter, self.learn(&address).ok()?));
        }
        let answered =
            join_all(asked.into_iter().map(async |(voter, node)| (voter, answers(&node, voter).await))).await;
        voters.silent = answered.into_iter().filter(|(_, answers)| !answers).map(|(voter, _)| voter).collect();
        let mut names: Vec<String> =
            voters.silent.iter().filter_map(|voter| Some(self.records.get(voter)?.name.clone())).collect();
        names.sort();
        voters.lack_majority().then(|| voters.refusal(&names))
    }

    /// What an account holds, as the leader of its shard says; asked until there is one.
    pub async fn usage(&mut self, view: &DirectoryView, of: &AccountRecord) -> Result<UsageReply, Failure> {
        let deadline = Instant::now() + COMMAND_MAX;
        let mut shard = of.shard;
        loop {
            for node in holders(view, shard) {
                let request = AccountRequest { shard, account: of.id };
                let asked = self.at(&node.address)?;
                match timeout(PROBE_MAX, asked.usage(request)).await.unwrap_or(Err(MailError::Deadline)) {
                    Ok(usage) => return Ok(usage),
                    Err(MailError::NotLeader { .. } | MailError::Unavailable | MailError::Deadline) => {}
                    Err(MailError::NotHere) => {
                        // It is on its way to another shard, or has just got there.
                        let now = self.view().await?;
                        shard = now.accounts.get(&of.name).map_or(shard, |now| now.shard);
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if Instant::now() >= deadline {
                return Err(Failure::Unreachable(format!("shard {shard} has no leader that answers")));
            }
            sleep(RETRY).await;
        }
    }

    /// Who answers within `probe_max`, and who leads the directory. An error if nobody answers: at once if all refuse, else
    /// after three tries, the last two of two seconds.
    async fn survey(&mut self, probe_max: Duration) -> Result<Found, Failure> {
        let addresses: Vec<String> = self.nodes.keys().cloned().collect();
        let mut answers = Vec::new();
        let mut silent = Vec::new();
        for attempt in 0..SURVEYS_MAX {
            silent.clear();
            let mut some_are_late = false;
            let probe_max = if attempt == 0 { probe_max } else { PROBE_MAX };
            for (address, status) in self.statuses_within(probe_max, addresses.iter().map(String::as_str)).await {
                match status {
                    Ok(status) => answers.push((address, status)),
                    Err(MailError::Denied) => return Err(MailError::Denied.into()),
                    Err(error) => {
                        some_are_late |= matches!(error, MailError::Deadline);
                        silent.push(format!("  {address}: {}", reason(&error)));
                    }
                }
            }
            if !answers.is_empty() || !some_are_late {
                break;
            }
        }
        if answers.is_empty() {
            return Err(Failure::Unreachable(format!("no node answers:\n{}", silent.join("\n"))));
        }
        answers.sort_by_key(|(_, status)| std::cmp::Reverse(status.directory_revision));
        let groups: Vec<_> = answers.iter().filter_map(|(_, status)| told_of_directory(status)).collect();
        let voters = Voters::of(&groups);
        let leader = answers.iter().filter_map(|(address, status)| Some((address, directory_group(status)?)));
        let leader = leader.filter(|(_, group)| group.role == "leader").max_by_key(|(_, group)| group.term);
        let leader = leader.map(|(address, _)| address.clone());
        let speaker = answers.first().and_then(|(address, _)| self.nodes.get(address)).cloned();
        if leader.is_none()
            && let Some(speaker) = speaker
        {
            self.learn_others(speaker).await;
        }
        let node_at = |address: &String| self.nodes.get(address).cloned();
        Ok(Found {
            leader: leader.as_ref().and_then(node_at),
            // Whoever leads while nobody that was asked is silent need not be doubted.
            voters: voters.filter(|_| leader.is_none() || !silent.is_empty()),
            others: answers.iter().filter_map(|(address, _)| node_at(address)).collect(),
        })
    }

    /// The leader may be a node that the settings do not name: the directory knows its address.
    async fn learn_others(&mut self, speaker: GrpcNode) {
        if let Ok(view) = DirectoryView::read(&speaker).await {
            for record in view.nodes.values() {
                // An address that cannot be one is of no use here; `node list` shows it.
                drop(self.learn(&record.address));
            }
            self.records = view.nodes;
        }
    }
}

struct Found {
    leader: Option<GrpcNode>,
    voters: Option<Voters>,
    /// Those that answered, the one that knows most first.
    others: Vec<GrpcNode>,
}

/// The nodes that should hold a shard, then the others: it may be on its way.
fn holders(view: &DirectoryView, shard: u32) -> Vec<&NodeRecord> {
    let wanted = view.placements.get(&shard).map(Vec::as_slice).unwrap_or_default();
    let others = view.nodes.keys().filter(|node| !wanted.contains(node));
    let nodes = wanted.iter().chain(others).filter_map(|node| view.nodes.get(node));
    nodes.filter(|node| node.state() != State::Removed).collect()
}

/// Whether the node of this id answers within [`SILENT`]: another one may have its address by now.
async fn answers(node: &GrpcNode, id: u64) -> bool {
    let asked = async {
        loop {
            if node.identify().await.is_ok_and(|identity| identity.node_id == id) {
                return;
            }
            sleep(RETRY).await;
        }
    };
    timeout(SILENT, asked).await.is_ok()
}

/// What a node says of the directory's group, with its id.
fn told_of_directory(status: &NodeStatusReply) -> Option<(u64, &GroupStatus)> {
    Some((status.identity.as_ref()?.node_id, directory_group(status)?))
}

pub fn directory_group(status: &NodeStatusReply) -> Option<&GroupStatus> {
    status.groups.iter().find(|group| group.group == DIRECTORY)
}

/// What an operator can do something about.
pub fn reason(error: &MailError) -> String {
    match error {
        MailError::Unavailable => "nothing listens there, or it hangs, or the certificates do not match".to_owned(),
        MailError::Deadline => "no answer".to_owned(),
        other => other.to_string(),
    }
}
