//! The directory as last heard: pure state, changed by the watch's changes, looked up by name. Names are in normal
//! form (lower case), as the directory gives them.

use std::collections::{BTreeMap, HashMap};

use proto::wire::directory_change::Change;
use proto::wire::{AccountRecord, ClusterRecord, DirectoryChange, NodeRecord, node_record};
use types::{AccountId, AccountName, NodeId, ShardId};

use super::replicas::Replicas;

static NO_REPLICAS: Replicas = Replicas::NONE;

/// What a session needs of an account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    pub id: AccountId,
    pub shard: ShardId,
    pub enabled: bool,
    /// PHC string.
    pub password_hash: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    address: Box<str>,
    removed: bool,
}

/// Some 220 octets an account.
#[derive(Clone, Debug, Default)]
pub struct View {
    cluster: ClusterRecord,
    /// Each domain with its accounts by id, for the postmaster rule.
    domains: HashMap<Box<str>, BTreeMap<AccountId, ShardId>>,
    accounts: HashMap<Box<str>, Account>,
    shards: HashMap<AccountId, ShardId>,
    aliases: HashMap<Box<str>, Box<[Box<str>]>>,
    nodes: BTreeMap<NodeId, Node>,
    placements: HashMap<ShardId, Replicas>,
}

impl View {
    pub fn account(&self, name: &AccountName) -> Option<&Account> {
        self.account_named(name.as_str())
    }

    pub fn is_hosted(&self, domain: &str) -> bool {
        self.domain(domain).is_some()
    }

    pub(super) fn has_domains(&self) -> bool {
        !self.domains.is_empty()
    }

    /// Domains hosted here, unordered.
    pub fn domains(&self) -> impl Iterator<Item = &str> {
        self.domains.keys().map(|name| &**name)
    }

    pub fn accounts_len(&self) -> usize {
        self.accounts.len()
    }

    pub fn shards(&self) -> u32 {
        self.cluster.shards
    }

    /// Empty where none is set.
    pub fn postmaster(&self) -> &str {
        &self.cluster.postmaster
    }

    pub fn replicas(&self, shard: ShardId) -> &Replicas {
        self.placements.get(&shard).unwrap_or(&NO_REPLICAS)
    }

    /// Nodes that are not removed, by id.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().filter(|(_, node)| !node.removed).map(|(id, _)| *id)
    }

    pub fn node_address(&self, id: NodeId) -> Option<Box<str>> {
        self.nodes.get(&id).filter(|node| !node.removed).map(|node| node.address.clone())
    }

    /// Some account's hash, for work that takes as long as a true verification.
    pub fn sample_hash(&self) -> Option<Box<str>> {
        self.accounts.values().next().map(|account| account.password_hash.clone())
    }

    /// The shard that an account is on.
    pub fn shard_of(&self, account: AccountId) -> Option<ShardId> {
        self.shards.get(&account).copied()
    }

    pub(super) fn account_named(&self, name: &str) -> Option<&Account> {
        self.accounts.get(name)
    }

    /// The alias's name, borrowed from here, and its targets.
    pub(super) fn alias_entry(&self, name: &str) -> Option<(&str, &[Box<str>])> {
        self.aliases.get_key_value(name).map(|(name, targets)| (&**name, &**targets))
    }

    /// The domain's name as the directory has it: given in A-labels it is found by U-labels too, and the other way.
    pub(super) fn domain<'a>(&'a self, name: &str) -> Option<&'a str> {
        if let Some((known, _)) = self.domains.get_key_value(name) {
            return Some(known);
        }
        let other = match name.is_ascii() {
            true if name.contains("xn--") => idna::domain_to_unicode(name).0,
            true => return None,
            false => idna::domain_to_ascii(name).ok()?,
        };
        self.domains.get_key_value(other.as_str()).map(|(known, _)| &**known)
    }

    pub(super) fn first_account(&self, domain: &str) -> Option<(AccountId, ShardId)> {
        self.domains.get(domain)?.first_key_value().map(|(id, shard)| (*id, *shard))
    }

    /// The domain of the account with the lowest id of all.
    pub(super) fn oldest_domain(&self) -> Option<&str> {
        let firsts = self.domains.iter().filter_map(|(name, accounts)| Some((accounts.first_key_value()?.0, name)));
        firsts.min().map(|(_, name)| &**name)
    }

    /// Applies a change; one that was applied before changes nothing.
    pub fn apply(&mut self, change: DirectoryChange) {
        match change.change {
            None => {}
            Some(Change::Cluster(cluster)) => self.cluster = cluster,
            Some(Change::Domain(domain)) => {
                self.domains.entry(domain.name.into()).or_default();
            }
            Some(Change::Account(account)) => self.put_account(account),
            Some(Change::Alias(alias)) => {
                let targets = alias.targets.into_iter().map(Box::from).collect();
                self.aliases.insert(alias.name.into(), targets);
            }
            Some(Change::Node(node)) => self.put_node(node),
            Some(Change::Placement(placement)) => {
                let replicas = Replicas::new(placement.wanted, placement.previous);
                self.placements.insert(ShardId(placement.shard), replicas);
            }
            Some(Change::DomainRemoved(name)) => {
                self.domains.remove(name.as_str());
            }
            Some(Change::AccountRemoved(name)) => self.remove_account(&name),
            Some(Change::AliasRemoved(name)) => {
                self.aliases.remove(name.as_str());
            }
            Some(Change::NodeRemoved(id)) => {
                self.nodes.remove(&NodeId(id));
            }
        }
    }

    fn put_account(&mut self, record: AccountRecord) {
        self.remove_account(&record.name);
        let account = Account {
            id: AccountId(record.id),
            shard: ShardId(record.shard),
            enabled: record.enabled,
            password_hash: record.password_hash.into(),
        };
        if let Some(domain) = domain_of(&record.name) {
            // The directory adds domains before their accounts; in a dump they may come in any order.
            self.domains.entry(domain.into()).or_default().insert(account.id, account.shard);
        }
        self.shards.insert(account.id, account.shard);
        self.accounts.insert(record.name.into(), account);
    }

    fn remove_account(&mut self, name: &str) {
        let Some(account) = self.accounts.remove(name) else { return };
        self.shards.remove(&account.id);
        if let Some(accounts) = domain_of(name).and_then(|domain| self.domains.get_mut(domain)) {
            accounts.remove(&account.id);
        }
    }

    fn put_node(&mut self, record: NodeRecord) {
        let removed = record.state() == node_record::State::Removed;
        self.nodes.insert(NodeId(record.id), Node { address: record.address.into(), removed });
    }
}

fn domain_of(name: &str) -> Option<&str> {
    name.rsplit_once('@').map(|(_, domain)| domain)
}

#[cfg(test)]
pub(super) mod tests {
    use proto::wire::directory_change::Change;
    use proto::wire::{
        AccountRecord, AliasRecord, ClusterRecord, DirectoryChange, DomainRecord, NodeRecord, PlacementRecord,
    };
    use types::{AccountName, NodeId, ShardId};

    use super::View;

    pub fn change(change: Change) -> DirectoryChange {
        DirectoryChange { change: Some(change) }
    }

    pub fn account(id: u64, name: &str) -> Change {
        let password_hash = format!("hash {id}");
        Change::Account(AccountRecord {
            id,
            name: name.to_owned(),
            password_hash,
            shard: (id % 4) as u32,
            enabled: true,
            created_unix_s: 0,
            moving: None,
        })
    }

    pub fn alias(name: &str, targets: &[&str]) -> Change {
        let targets = targets.iter().map(|target| (*target).to_owned()).collect();
        Change::Alias(AliasRecord { name: name.to_owned(), targets })
    }

    pub fn view(changes: Vec<Change>) -> View {
        let mut view = View::default();
        changes.into_iter().for_each(|one| view.apply(change(one)));
        view
    }

    pub fn domain(name: &str) -> Change {
        Change::Domain(DomainRecord { name: name.to_owned() })
    }

    pub fn postmaster(name: &str) -> Change {
        Change::Cluster(ClusterRecord { postmaster: name.to_owned(), shards: 4, ..ClusterRecord::default() })
    }

    #[test]
    fn changes_are_applied_and_undone() {
        let name = AccountName::parse("a@x.test").unwrap();
        let mut view = view(vec![domain("x.test"), account(7, "a@x.test"), account(3, "b@x.test")]);
        assert_eq!(view.account(&name).map(|account| account.id.0), Some(7));
        assert_eq!(view.first_account("x.test").map(|first| first.0.0), Some(3));
        view.apply(change(Change::AccountRemoved("b@x.test".to_owned())));
        assert_eq!(view.first_account("x.test").map(|first| first.0.0), Some(7));
        // The same name again, as another account.
        view.apply(change(account(9, "a@x.test")));
        assert_eq!(view.first_account("x.test").map(|first| first.0.0), Some(9));
        assert_eq!(view.accounts_len(), 1);
        view.apply(change(Change::AccountRemoved("a@x.test".to_owned())));
        view.apply(change(Change::DomainRemoved("x.test".to_owned())));
        assert!(view.account(&name).is_none() && !view.is_hosted("x.test"));
    }

    #[test]
    fn nodes_and_placements_are_looked_up() {
        let node =
            |id, state| Change::Node(NodeRecord { id, address: format!("n{id}:1"), state, ..NodeRecord::default() });
        let placement = Change::Placement(PlacementRecord { shard: 2, wanted: vec![2, 1], ..Default::default() });
        let view = view(vec![node(1, 0), node(2, 1), node(3, 2), placement]);
        assert_eq!(view.replicas(ShardId(2)).all(), [NodeId(2), NodeId(1)]);
        assert!(view.replicas(ShardId(3)).all().is_empty());
        assert_eq!(view.node_address(NodeId(2)).as_deref(), Some("n2:1"));
        assert_eq!(view.node_address(NodeId(3)), None);
        assert_eq!(view.nodes().collect::<Vec<_>>(), [NodeId(1), NodeId(2)]);
    }

    #[test]
    fn a_domain_is_found_by_either_of_its_forms() {
        let view = view(vec![domain("xn--exmple-cua.test"), domain("bücher.test")]);
        for name in ["xn--exmple-cua.test", "exämple.test", "bücher.test", "xn--bcher-kva.test"] {
            assert!(view.is_hosted(name), "{name}");
        }
        assert!(!view.is_hosted("exaemple.test") && !view.is_hosted("xn--.test"));
    }
}
