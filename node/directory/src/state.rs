//! The directory in memory, with its indexes, and the questions that it answers.
//!
//! Every alteration goes through [`Directory::put`], whether it comes from a command, from disk or over a stream,
//! so that all ways lead to the same state.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use types::{AccountId, AccountName, DomainName, NodeId, ShardId};

use crate::change::{Change, ChangedRecord};
use crate::error::DirectoryError;
use crate::limits::ACCOUNTS_PAGE_MAX;
use crate::plan::{PlacementNode, Warning, propose, propose_of, warnings};
use crate::record;
use crate::requests::{Answered, RequestId, Requests};
use crate::values::{Account, Alias, Cluster, Domain, Node, NodeState, Placement, Rebalance};

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Directory {
    revision: u64,
    pub(crate) cluster: Option<Cluster>,
    /// By the domain's text, so that a name's domain is looked up without making a `DomainName` of it.
    pub(crate) domains: BTreeMap<String, Domain>,
    pub(crate) accounts: BTreeMap<AccountId, Account>,
    /// Those that move to another shard.
    moving_accounts: BTreeSet<AccountId>,
    pub(crate) alias_count: usize,
    /// What bears a name in each domain. Invariant: no entry is empty.
    members: BTreeMap<String, Members>,
    /// For each target the aliases that lead to it. Invariant: no entry is empty.
    alias_sources: BTreeMap<AccountName, BTreeSet<AccountName>>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) placements: BTreeMap<ShardId, Placement>,
    pub(crate) rebalance: Option<Rebalance>,
    pub(crate) requests: Requests,
}

/// Accounts and aliases of a domain by their local part.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Members {
    accounts: BTreeMap<String, AccountId>,
    ids: BTreeSet<AccountId>,
    aliases: BTreeMap<String, Alias>,
}

/// Some of a domain's accounts, ascending by local part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccountPage<'a> {
    pub accounts: Vec<&'a Account>,
    /// Pass it as `after` for the next page; `None` on the last one.
    pub next: Option<String>,
}

impl Directory {
    /// The state that these records (key and value, in any order) describe, at revision 0: see
    /// [`Directory::at_revision`].
    ///
    /// `Corrupt` for a record that cannot be read or that contradicts the others; it names the key.
    pub fn load(records: impl Iterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<Directory, DirectoryError> {
        let mut directory = Directory::default();
        for (key, value) in records {
            let record = record::decode(&key, Some(&value))?;
            if let ChangedRecord::Account(name, Some(account)) = &record
                && let Some(other) = directory.accounts.get(&account.id)
                && other.name != *name
            {
                return Err(contradiction(&record, format!("{} has the same account id", other.name)));
            }
            directory.put(record);
        }
        directory.check()?;
        Ok(directory)
    }

    /// Sets the revision that the loaded records stand for: the applied log index that was stored with them.
    pub fn at_revision(mut self, revision: u64) -> Directory {
        self.revision = revision;
        self
    }

    /// The log index of the last command or change that went in.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes over record changes made elsewhere, as a replica without a vote does. `None` deletes.
    ///
    /// Nothing is taken over if one of them cannot be read; the error names its key.
    pub fn apply_changes(
        &mut self,
        revision: u64,
        changes: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
    ) -> Result<Vec<Change>, DirectoryError> {
        let changes =
            changes.into_iter().map(|(key, value)| Change::decode(key, value)).collect::<Result<Vec<_>, _>>()?;
        for change in &changes {
            self.put(change.record.clone());
        }
        self.advance(revision);
        Ok(changes)
    }

    /// The whole state as records to put: what a snapshot holds and a new watcher is sent.
    pub fn records(&self) -> impl Iterator<Item = Change> + '_ {
        let cluster = self.cluster.iter().map(|cluster| ChangedRecord::Cluster(Some(cluster.clone())));
        let domains = self.domains.values().map(|it| ChangedRecord::Domain(it.name.clone(), Some(it.clone())));
        let nodes = self.nodes.values().map(|it| ChangedRecord::Node(it.id, Some(it.clone())));
        let placements = self.placements.values().map(|it| ChangedRecord::Placement(it.shard, Some(it.clone())));
        let accounts = self.accounts.values().map(|it| ChangedRecord::Account(it.name.clone(), Some(it.clone())));
        let aliases = self.members.values().flat_map(|members| members.aliases.values());
        let aliases = aliases.map(|it| ChangedRecord::Alias(it.name.clone(), Some(it.clone())));
        let rebalance = self.rebalance.iter().map(|rebalance| ChangedRecord::Rebalance(Some(rebalance.clone())));
        let shards = placements.chain(rebalance);
        let requests = self.requests.iter().map(|(id, it)| ChangedRecord::Request(id, Some(it.clone())));
        let names = accounts.chain(aliases);
        cluster.chain(domains).chain(nodes).chain(shards).chain(names).chain(requests).map(Change::from)
    }

    /// `None` until the cluster is created.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    pub fn domain(&self, name: &DomainName) -> Option<&Domain> {
        self.domains.get(name.as_str())
    }

    /// Ascending by name.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.domains.values()
    }

    pub fn account(&self, name: &AccountName) -> Option<&Account> {
        let id = self.members.get(name.domain())?.accounts.get(name.local())?;
        self.accounts.get(id)
    }

    pub fn account_by_id(&self, id: AccountId) -> Option<&Account> {
        self.accounts.get(&id)
    }

    /// Every account, ascending by id.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// The accounts that move to another shard, ascending by id.
    pub fn moving_accounts(&self) -> impl ExactSizeIterator<Item = AccountId> + '_ {
        self.moving_accounts.iter().copied()
    }

    /// Accounts of a domain whose local part begins with `prefix` (in lower case), from the first one after the local
    /// part `after`; at most `limit`, which is itself held to 1..=[`ACCOUNTS_PAGE_MAX`].
    pub fn accounts_page(
        &self,
        domain: &DomainName,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> AccountPage<'_> {
        let limit = limit.clamp(1, ACCOUNTS_PAGE_MAX);
        let mut page = AccountPage { accounts: Vec::new(), next: None };
        let Some(members) = self.members.get(domain.as_str()) else { return page };
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let matching = members.accounts.range::<str, _>((start, Bound::Unbounded));
        for (_, id) in matching.take_while(|(local, _)| local.starts_with(prefix)) {
            if page.accounts.len() == limit {
                page.next = page.accounts.last().map(|account| account.name.local().to_owned());
                break;
            }
            page.accounts.extend(self.accounts.get(id));
        }
        page
    }

    /// The oldest account of a domain that can log in.
    pub(crate) fn first_account(&self, domain: &str) -> Option<&Account> {
        let ids = &self.members.get(domain)?.ids;
        ids.iter().filter_map(|id| self.accounts.get(id)).find(|account| account.enabled)
    }

    pub fn alias(&self, name: &AccountName) -> Option<&Alias> {
        self.members.get(name.domain())?.aliases.get(name.local())
    }

    pub(crate) fn catch_all(&self, domain: &str) -> Option<&Alias> {
        self.members.get(domain)?.aliases.get(Alias::CATCH_ALL)
    }

    /// A domain's aliases, ascending by local part.
    pub fn aliases(&self, domain: &DomainName) -> impl Iterator<Item = &Alias> {
        self.members.get(domain.as_str()).into_iter().flat_map(|members| members.aliases.values())
    }

    /// The aliases that name this account or alias as a target, ascending.
    pub fn alias_sources(&self, target: &AccountName) -> impl Iterator<Item = &AccountName> {
        self.alias_sources.get(target).into_iter().flatten()
    }

    /// Whether the domain has accounts or aliases.
    pub(crate) fn is_populated(&self, domain: &DomainName) -> bool {
        self.members.contains_key(domain.as_str())
    }

    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// The node of this name that is not removed.
    pub fn node_by_name(&self, name: &str) -> Option<&Node> {
        self.nodes.values().find(|node| node.state != NodeState::Removed && node.name == name)
    }

    /// Ascending by id, removed ones included.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    pub fn placement(&self, shard: ShardId) -> Option<&Placement> {
        self.placements.get(&shard)
    }

    /// Ascending by shard; a shard that was never placed has none.
    pub fn placements(&self) -> impl Iterator<Item = &Placement> {
        self.placements.values()
    }

    /// The shards that are wanted on a node, ascending.
    pub fn placements_on(&self, node: NodeId) -> impl Iterator<Item = &Placement> {
        self.placements.values().filter(move |placement| placement.wanted.contains(&node))
    }

    /// The shards that are, were or will be wanted on a node, ascending. A node that none names has nothing to give
    /// away any more.
    pub fn placements_naming(&self, node: NodeId) -> impl Iterator<Item = &Placement> {
        self.placements.values().filter(move |placement| placement.names(node))
    }

    /// The shards with a move under way, ascending, whichever command began it.
    pub fn moving(&self) -> impl Iterator<Item = &Placement> {
        self.placements.values().filter(|placement| placement.is_moving())
    }

    /// The shards with a move that is yet to begin, ascending. Some may have another one under way.
    pub fn queued(&self) -> impl Iterator<Item = &Placement> {
        self.placements.values().filter(|placement| placement.is_queued())
    }

    /// Whether a move under way is to a node that is not active any more. It may never arrive; what is planned for the shard
    /// does not wait for it.
    pub fn goes_astray(&self, placement: &Placement) -> bool {
        let is_active = |id: &NodeId| self.nodes.get(id).is_some_and(|node| node.state == NodeState::Active);
        placement.is_moving() && placement.targets().any(|target| !is_active(&target))
    }

    /// The node that should lead a shard: its first, or while that one is draining the first of the others that is not, and
    /// that stays where the plan for the shard allows.
    pub fn home(&self, placement: &Placement) -> Option<NodeId> {
        let first = placement.wanted.first()?;
        let is_active = |id: &NodeId| self.nodes.get(id).is_none_or(|node| node.state == NodeState::Active);
        let stays = |id: &NodeId| placement.planned.is_empty() || placement.planned.contains(id);
        let others = || placement.wanted.iter().filter(|id| is_active(id));
        match is_active(first) {
            true => Some(*first),
            false => others().find(|id| stays(id)).or_else(|| others().next()).or(Some(first)).copied(),
        }
    }

    /// The last rebalance, which may be over; `None` if there never was one.
    pub fn rebalance(&self) -> Option<&Rebalance> {
        self.rebalance.as_ref()
    }

    /// What was decided under a request's id, as far as that is remembered.
    pub fn answered(&self, id: RequestId) -> Option<&Answered> {
        self.requests.get(id)
    }

    /// The stamp of the newest request that is remembered, in milliseconds since 1970.
    pub fn newest_request_ms(&self) -> Option<u64> {
        self.requests.newest_ms()
    }

    /// What the plan makes of the nodes as they are; the shards whose placement would stay are left out.
    /// Empty until the cluster is created.
    pub fn propose_placements(&self) -> BTreeMap<ShardId, Vec<NodeId>> {
        self.propose_rebalance(&BTreeMap::new(), &BTreeSet::new())
    }

    /// The same with what a replica of each shard has in octets, a missing one none: the targets of a rebalance.
    ///
    /// Planned from what is wanted, so that moves under way are let go on where they are in place, and what is queued
    /// is planned anew: it belongs to a [`StartRebalance`](crate::Command::StartRebalance) that replaces the queue.
    ///
    /// `aside`: shards that there is nothing to copy from. They count nowhere; should they come back, they go where they would
    /// if none was set aside.
    pub fn propose_rebalance(
        &self,
        octets: &BTreeMap<ShardId, u64>,
        aside: &BTreeSet<ShardId>,
    ) -> BTreeMap<ShardId, Vec<NodeId>> {
        self.propose_for(&self.placement_nodes(), octets, aside)
    }

    /// The same, were this node drained.
    pub fn propose_rebalance_without(
        &self,
        node: NodeId,
        octets: &BTreeMap<ShardId, u64>,
        aside: &BTreeSet<ShardId>,
    ) -> BTreeMap<ShardId, Vec<NodeId>> {
        let mut nodes = self.placement_nodes();
        nodes.iter_mut().filter(|one| one.id == node).for_each(|one| one.eligible = false);
        self.propose_for(&nodes, octets, aside)
    }

    fn propose_for(
        &self,
        nodes: &[PlacementNode],
        octets: &BTreeMap<ShardId, u64>,
        aside: &BTreeSet<ShardId>,
    ) -> BTreeMap<ShardId, Vec<NodeId>> {
        let Some(cluster) = &self.cluster else { return BTreeMap::new() };
        let current = self.wanted();
        let shards = (0..cluster.shards).map(ShardId).filter(|shard| !aside.contains(shard)).collect();
        let mut targets = propose_of(shards, cluster.replicas, nodes, &current, octets);
        if !aside.is_empty() {
            let all = propose(cluster.shards, cluster.replicas, nodes, &current, octets);
            targets.extend(all.into_iter().filter(|(shard, _)| aside.contains(shard)));
        }
        targets.retain(|shard, nodes| current.get(shard) != Some(nodes) && !nodes.is_empty());
        targets
    }

    /// What an operator should know of the placement that a rebalance to these targets leads to, with the replicas'
    /// octets as for [`Directory::propose_rebalance`].
    pub fn rebalance_warnings(
        &self,
        targets: &BTreeMap<ShardId, Vec<NodeId>>,
        octets: &BTreeMap<ShardId, u64>,
    ) -> Vec<Warning> {
        let Some(cluster) = &self.cluster else { return Vec::new() };
        let mut wanted = self.wanted();
        wanted.extend(targets.iter().map(|(shard, nodes)| (*shard, nodes.clone())));
        warnings(cluster.shards, cluster.replicas, &self.placement_nodes(), &wanted, octets)
    }

    fn wanted(&self) -> BTreeMap<ShardId, Vec<NodeId>> {
        self.placements.values().map(|it| (it.shard, it.wanted.clone())).collect()
    }

    /// The nodes that are not removed, as the plan sees them.
    fn placement_nodes(&self) -> Vec<PlacementNode> {
        let present = self.nodes.values().filter(|node| node.state != NodeState::Removed);
        let placement_node = |node: &Node| PlacementNode {
            id: node.id,
            zone: node.zone.clone(),
            weight: node.weight,
            eligible: node.state == NodeState::Active,
        };
        present.map(placement_node).collect()
    }

    pub(crate) fn advance(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Brings one record in, replaces it or takes it away, with all of its index entries.
    pub(crate) fn put(&mut self, record: ChangedRecord) {
        match record {
            ChangedRecord::Cluster(cluster) => self.cluster = cluster,
            ChangedRecord::Domain(name, domain) => set(&mut self.domains, name.as_str().to_owned(), domain),
            ChangedRecord::Account(name, account) => self.put_account(&name, account),
            ChangedRecord::Alias(name, alias) => self.put_alias(&name, alias),
            ChangedRecord::Node(id, node) => set(&mut self.nodes, id, node),
            ChangedRecord::Placement(shard, placement) => set(&mut self.placements, shard, placement),
            ChangedRecord::Rebalance(rebalance) => self.rebalance = rebalance,
            ChangedRecord::Request(id, answered) => self.requests.put(id, answered),
        }
    }

    fn put_account(&mut self, name: &AccountName, account: Option<Account>) {
        let members = self.members.entry(name.domain().to_owned()).or_default();
        if let Some(old) = members.accounts.remove(name.local()) {
            members.ids.remove(&old);
            self.accounts.remove(&old);
            self.moving_accounts.remove(&old);
        }
        if let Some(account) = account {
            members.accounts.insert(name.local().to_owned(), account.id);
            members.ids.insert(account.id);
            if account.moving.is_some() {
                self.moving_accounts.insert(account.id);
            }
            self.accounts.insert(account.id, account);
        }
        self.drop_if_empty(name);
    }

    fn put_alias(&mut self, name: &AccountName, alias: Option<Alias>) {
        let members = self.members.entry(name.domain().to_owned()).or_default();
        if let Some(old) = members.aliases.remove(name.local()) {
            self.alias_count -= 1;
            for target in old.targets {
                if let Entry::Occupied(mut sources) = self.alias_sources.entry(target) {
                    sources.get_mut().remove(name);
                    if sources.get().is_empty() {
                        sources.remove();
                    }
                }
            }
        }
        if let Some(alias) = alias {
            self.alias_count += 1;
            for target in &alias.targets {
                self.alias_sources.entry(target.clone()).or_default().insert(name.clone());
            }
            members.aliases.insert(name.local().to_owned(), alias);
        }
        self.drop_if_empty(name);
    }

    fn drop_if_empty(&mut self, name: &AccountName) {
        let empty = |members: &Members| members.accounts.is_empty() && members.aliases.is_empty();
        if self.members.get(name.domain()).is_some_and(empty) {
            self.members.remove(name.domain());
        }
    }

    /// Records that contradict each other mean a lost or damaged disk: better to stop than to guess.
    fn check(&self) -> Result<(), DirectoryError> {
        let Some(cluster) = &self.cluster else {
            return match self.records().next() {
                Some(change) => Err(contradiction(&change.record, "there is no cluster record".to_owned())),
                None => Ok(()),
            };
        };
        for record in self.records().map(|change| change.record) {
            let fault = match &record {
                ChangedRecord::Cluster(_) => cluster
                    .postmaster
                    .as_ref()
                    .filter(|name| self.account(name).is_none())
                    .map(|name| format!("postmaster {name} does not exist")),
                ChangedRecord::Account(name, Some(account)) => {
                    if !self.domains.contains_key(name.domain()) {
                        Some("its domain does not exist".to_owned())
                    } else if self.alias(name).is_some() {
                        Some("an alias has the same name".to_owned())
                    } else if account.id >= cluster.next_account_id || account.shard.0 >= cluster.shards {
                        Some(format!("account id {} or shard {} cannot be", account.id, account.shard))
                    } else if account.moving.is_some_and(|moving| moving.shard() != account.shard) {
                        Some("it moves from another shard than it is on".to_owned())
                    } else {
                        None
                    }
                }
                ChangedRecord::Alias(name, Some(alias)) => {
                    let missing =
                        |target: &&AccountName| self.account(target).is_none() && self.alias(target).is_none();
                    if !self.domains.contains_key(name.domain()) {
                        Some("its domain does not exist".to_owned())
                    } else {
                        alias.targets.iter().find(missing).map(|target| format!("target {target} does not exist"))
                    }
                }
                ChangedRecord::Placement(shard, Some(placement)) => {
                    let known = |node: &NodeId| self.nodes.contains_key(node);
                    let mut nodes = placement.wanted.iter().chain(&placement.planned).chain(&placement.previous);
                    let open = self.rebalance.as_ref().is_some_and(|rebalance| rebalance.state.is_open());
                    if shard.0 >= cluster.shards || placement.wanted.is_empty() || !nodes.all(known) {
                        Some("shard or node cannot be".to_owned())
                    } else if placement.is_queued() && !open {
                        Some("a move is planned and no rebalance is under way".to_owned())
                    } else {
                        None
                    }
                }
                _ => None,
            };
            if let Some(reason) = fault {
                return Err(contradiction(&record, reason));
            }
        }
        Ok(())
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

fn contradiction(record: &ChangedRecord, reason: String) -> DirectoryError {
    DirectoryError::Corrupt { key: record::key(record).escape_ascii().to_string(), reason }
}
