//! The Raft groups of a cluster as its nodes tell of them: who leads what, and in which term.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use proto::wire::{GroupStatus, NodeStatusReply};
use proto::{ClusterTls, DirectoryStore, GrpcNode};

use crate::cluster::Cluster;
use crate::process::{START_MAX, eventually};

/// The directory's number among groups.
const DIRECTORY: u32 = u32::MAX;
const LEADER: &str = "leader";
/// More than a network that works somehow may cause, and less than half of what elections one after another make.
const TERMS_A_MINUTE_MAX: u64 = 10;

impl Cluster {
    /// What each node says of itself; none of one that does not answer.
    pub fn statuses(&self) -> Result<Vec<Option<NodeStatusReply>>> {
        let files = self.tls_files("admin");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let tls = ClusterTls::load(&files)?.client;
            let mut statuses = Vec::new();
            for node in 0..self.nodes.len() {
                let node = GrpcNode::new(proto::connect(&self.grpc(node).to_string(), tls.clone())?);
                statuses.push(node.node_status().await.ok());
            }
            Ok(statuses)
        })
    }

    /// How many shards each node leads.
    pub fn led(&self) -> Result<Vec<usize>> {
        let shards = self.json(&["shard", "list"])?;
        let leads = |name: &str| {
            shards.as_array().map_or(0, |shards| shards.iter().filter(|shard| shard["leader"] == name).count())
        };
        Ok(self.nodes.iter().map(|node| leads(&node.name)).collect())
    }

    /// The node that leads most shards.
    pub fn first_leader(&self) -> Result<usize> {
        let counts = self.led()?;
        (0..counts.len()).max_by_key(|node| counts[*node]).context("no nodes")
    }

    /// The node that leads the directory's group, once there is one.
    pub fn directory_leader(&self) -> Result<usize> {
        eventually("somebody leads the directory", START_MAX, || {
            let statuses = self.statuses()?;
            let groups = groups(&statuses).filter(|(_, group)| group.group == DIRECTORY && group.role == LEADER);
            // Of two that say so, the one of the later term: the other has not heard yet.
            let leader = groups.max_by_key(|(_, group)| group.term).context("nobody leads the directory")?;
            Ok(leader.0)
        })
    }

    /// Of each group, the latest term that a node knows.
    pub fn terms(&self) -> Result<BTreeMap<u32, u64>> {
        let statuses = self.statuses()?;
        let mut terms = BTreeMap::new();
        for (_, group) in groups(&statuses) {
            let term = terms.entry(group.group).or_insert(0);
            *term = group.term.max(*term);
        }
        Ok(terms)
    }

    /// Of each group, the last entry that a node has in its log.
    pub fn last_entries(&self) -> Result<BTreeMap<u32, u64>> {
        let statuses = self.statuses()?;
        let mut entries = BTreeMap::new();
        for (_, group) in groups(&statuses) {
            let last = entries.entry(group.group).or_insert(0);
            *last = group.last_index.max(*last);
        }
        Ok(entries)
    }

    /// How many of these entries a node's replicas have not applied yet, all groups together.
    pub fn behind(&self, node: usize, entries: &BTreeMap<u32, u64>) -> Result<u64> {
        let statuses = self.statuses()?;
        let status = statuses[node].as_ref().context("the node does not answer")?;
        let missing = |group: &GroupStatus| entries.get(&group.group)?.checked_sub(group.applied_index);
        Ok(status.groups.iter().filter_map(missing).sum())
    }

    /// All accounts by the node that leads their shard: an error while a shard is not led where the directory wants it,
    /// for then leaders are about to move.
    pub fn accounts_by_leader(&self) -> Result<Vec<Vec<String>>> {
        let list = |noun: &str| -> Result<Vec<serde_json::Value>> {
            Ok(self.json(&[noun, "list"])?.as_array().context("a listing")?.clone())
        };
        let mut leaders = BTreeMap::new();
        for shard in list("shard")? {
            let leader = self.nodes.iter().position(|node| shard["leader"] == node.name).context("no leader")?;
            ensure!(shard["wanted"][0] == shard["leader"], "not led where it should be: {shard}");
            leaders.insert(shard["shard"].as_u64().context("a shard's number")?, leader);
        }
        let mut accounts = vec![Vec::new(); self.nodes.len()];
        for account in list("account")? {
            let shard = account["shard"].as_u64().context("an account's shard")?;
            let leader = *leaders.get(&shard).context("an account in no shard")?;
            accounts[leader].push(account["account"].as_str().context("an account's name")?.to_owned());
        }
        Ok(accounts)
    }
}

/// The elections of a while.
pub struct Elections {
    began: Instant,
    terms: BTreeMap<u32, u64>,
}

impl Elections {
    pub fn watch(cluster: &Cluster) -> Result<Elections> {
        Ok(Elections { began: Instant::now(), terms: cluster.terms()? })
    }

    /// So far: how many terms came in the group where most did, and in all groups. An error if there are so many that
    /// groups do nothing else.
    pub fn held(&self, cluster: &Cluster) -> Result<String> {
        let terms = cluster.terms()?;
        let grown = terms.iter().map(|(group, term)| term - self.terms.get(group).copied().unwrap_or(0).min(*term));
        let (most, all) = (grown.clone().max().unwrap_or(0), grown.sum::<u64>());
        let lasted = self.began.elapsed();
        let held = format!("{most} new terms in one group, {all} in {} groups, in {lasted:.0?}", terms.len());
        ensure!(most <= TERMS_A_MINUTE_MAX * (lasted.as_secs() / 60 + 1), "{held}");
        Ok(held)
    }
}

/// All replicas of all groups, with their nodes.
fn groups(statuses: &[Option<NodeStatusReply>]) -> impl Iterator<Item = (usize, &GroupStatus)> {
    let answered = statuses.iter().enumerate().filter_map(|(node, status)| Some((node, status.as_ref()?)));
    answered.flat_map(|(node, status)| status.groups.iter().map(move |group| (node, group)))
}
