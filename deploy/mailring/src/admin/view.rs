//! The directory as one node has it, read whole from its watch.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use proto::wire::directory_change::Change;
use proto::wire::{AccountRecord, ClusterRecord, DirectoryEvent, NodeRecord};
use proto::{DirectoryStore, GrpcNode};
use types::{MailError, MailResult};

#[derive(Clone, Debug, Default)]
pub struct DirectoryView {
    pub revision: u64,
    pub cluster: ClusterRecord,
    pub domains: BTreeSet<String>,
    pub accounts: BTreeMap<String, AccountRecord>,
    pub aliases: BTreeMap<String, Vec<String>>,
    pub nodes: BTreeMap<u64, NodeRecord>,
    /// Shard to the nodes that should hold it, the preferred leader first.
    pub placements: BTreeMap<u32, Vec<u64>>,
    /// Where those will be wanted that wait for their turn to move.
    pub planned: BTreeMap<u32, Vec<u64>>,
}

impl DirectoryView {
    /// `Unavailable` if the stream ends before it is complete: half a directory is no directory.
    pub async fn read(node: &GrpcNode) -> MailResult<DirectoryView> {
        let request = proto::wire::DirectoryWatchRequest { since: 0, follow: false };
        let mut events = node.watch_directory(request).await?;
        let mut view = DirectoryView::default();
        let mut complete = false;
        while let Some(event) = events.next().await {
            complete |= view.apply(event?);
        }
        if complete { Ok(view) } else { Err(MailError::Unavailable) }
    }

    /// True once the view is complete up to the event's revision.
    fn apply(&mut self, event: DirectoryEvent) -> bool {
        if event.reset {
            *self = DirectoryView::default();
        }
        self.revision = event.revision;
        for change in event.changes.into_iter().filter_map(|change| change.change) {
            match change {
                Change::Cluster(cluster) => self.cluster = cluster,
                Change::Domain(domain) => drop(self.domains.insert(domain.name)),
                Change::Account(account) => drop(self.accounts.insert(account.name.clone(), account)),
                Change::Alias(alias) => drop(self.aliases.insert(alias.name, alias.targets)),
                Change::Node(node) => drop(self.nodes.insert(node.id, node)),
                Change::Placement(placement) => {
                    self.placements.insert(placement.shard, placement.wanted);
                    match placement.planned.is_empty() {
                        true => drop(self.planned.remove(&placement.shard)),
                        false => drop(self.planned.insert(placement.shard, placement.planned)),
                    }
                }
                Change::DomainRemoved(name) => drop(self.domains.remove(&name)),
                Change::AccountRemoved(name) => drop(self.accounts.remove(&name)),
                Change::AliasRemoved(name) => drop(self.aliases.remove(&name)),
                Change::NodeRemoved(id) => drop(self.nodes.remove(&id)),
            }
        }
        event.complete
    }

    /// A node's name for people; its id in hexadecimal where the directory does not know it.
    pub fn node_name(&self, id: u64) -> String {
        self.nodes.get(&id).map_or_else(|| format!("{id:x}"), |node| node.name.clone())
    }

    pub fn accounts_of<'a>(&'a self, domain: &'a str) -> impl Iterator<Item = &'a AccountRecord> {
        self.accounts.values().filter(move |account| is_of(&account.name, domain))
    }

    pub fn aliases_of<'a>(&'a self, domain: &'a str) -> impl Iterator<Item = (&'a String, &'a Vec<String>)> {
        self.aliases.iter().filter(move |(name, _)| is_of(name, domain))
    }
}

fn is_of(name: &str, domain: &str) -> bool {
    name.rsplit_once('@').is_some_and(|(_, of)| of == domain)
}

#[cfg(test)]
mod tests {
    use proto::wire::directory_change::Change;
    use proto::wire::{AccountRecord, DirectoryChange, DirectoryEvent, DomainRecord};

    use super::DirectoryView;

    fn event(revision: u64, reset: bool, complete: bool, changes: Vec<Change>) -> DirectoryEvent {
        let changes = changes.into_iter().map(|change| DirectoryChange { change: Some(change) }).collect();
        DirectoryEvent { revision, reset, changes, complete }
    }

    #[test]
    fn a_view_is_what_its_events_say_and_a_reset_forgets() {
        let mut view = DirectoryView::default();
        let account = |name: &str| Change::Account(AccountRecord { name: name.to_owned(), ..Default::default() });
        let domain = |name: &str| Change::Domain(DomainRecord { name: name.to_owned() });
        assert!(!view.apply(event(7, true, false, vec![domain("b.test"), account("a@b.test")])));
        assert!(view.apply(event(7, false, true, vec![account("c@b.test"), account("a@sub.b.test")])));
        assert_eq!(view.accounts_of("b.test").count(), 2);
        assert!(view.apply(event(8, false, true, vec![Change::AccountRemoved("a@b.test".to_owned())])));
        assert_eq!((view.revision, view.accounts.len()), (8, 2));
        assert!(view.apply(event(9, true, true, vec![])));
        assert!(view.accounts.is_empty() && view.domains.is_empty());
    }
}
