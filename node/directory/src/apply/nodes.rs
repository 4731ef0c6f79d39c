//! The commands about the cluster and its nodes.

use std::collections::BTreeMap;

use types::{AccountId, NodeId};

use super::{Decision, done, room_for};
use crate::change::ChangedRecord;
use crate::command::NewNode;
use crate::error::DirectoryError;
use crate::limits::{
    ADDRESS_OCTETS_MAX, LABEL_OCTETS_MAX, NODE_RECORDS_MAX, NODE_WEIGHT_MAX, NODES_MAX, REPLICAS_MAX, SHARDS_MAX,
};
use crate::state::Directory;
use crate::values::{Cluster, ClusterId, Node, NodeState, Start};

impl Directory {
    pub(super) fn create_cluster(
        &self,
        cluster_id: ClusterId,
        shards: u32,
        replicas: u32,
        new_nodes: &[NewNode],
    ) -> Decision {
        if self.cluster.is_some() {
            return Err(DirectoryError::AlreadyExists("the cluster".to_owned()));
        }
        if !(1..=SHARDS_MAX).contains(&shards) {
            return Err(DirectoryError::Invalid(format!("a cluster has 1 to {SHARDS_MAX} shards, not {shards}")));
        }
        if !(1..=REPLICAS_MAX).contains(&replicas) {
            return Err(DirectoryError::Invalid(format!("a shard has 1 to {REPLICAS_MAX} replicas, not {replicas}")));
        }
        if !new_nodes.iter().any(|node| node.voter) {
            return Err(DirectoryError::Invalid("a cluster needs a node that votes in the directory".to_owned()));
        }
        let next_account_id = AccountId(1);
        // As its founders write before they know: nodes that come with the same program know one format more.
        let format = new_nodes.iter().map(|node| node.format).min().unwrap_or(1).saturating_sub(1).max(1);
        let cluster = Cluster { cluster_id, shards, replicas, next_account_id, postmaster: None, format };
        let mut nodes: BTreeMap<NodeId, Node> = BTreeMap::new();
        for new in new_nodes {
            let node = new_node(&nodes, new)?;
            nodes.insert(node.id, node);
        }
        let nodes = nodes.into_values().map(|node| ChangedRecord::Node(node.id, Some(node)));
        done([ChangedRecord::Cluster(Some(cluster))].into_iter().chain(nodes).collect())
    }

    pub(super) fn register_node(&self, cluster: &Cluster, new: &NewNode) -> Decision {
        check_format(cluster, &new.name, new.format)?;
        if let Some(node) = self.node(new.id) {
            return match node.state {
                NodeState::Removed => Err(removed(node)),
                // Whether it votes may have been changed since.
                NodeState::Active | NodeState::Draining if describes(new, node) => done(Vec::new()),
                NodeState::Active | NodeState::Draining => {
                    Err(DirectoryError::AlreadyExists(format!("node {} under id {}", node.name, node.id)))
                }
            };
        }
        let node = new_node(&self.nodes, new)?;
        done(vec![ChangedRecord::Node(node.id, Some(node))])
    }

    pub(super) fn update_node_address(&self, id: NodeId, address: &str) -> Decision {
        check_address(address)?;
        self.alter_node(id, |node| node.address = address.to_owned())
    }

    pub(super) fn update_node(&self, id: NodeId, zone: &str, weight: u32) -> Decision {
        check_label(zone, "zone")?;
        check_weight(weight)?;
        self.alter_node(id, |node| {
            node.zone = zone.to_owned();
            node.weight = weight;
        })
    }

    pub(super) fn set_node_state(&self, id: NodeId, state: NodeState) -> Decision {
        let node = self.existing_node(id)?;
        if node.state == state {
            return done(Vec::new());
        }
        let another = |wanted: fn(&Node) -> bool| self.nodes.values().any(|other| other.id != id && wanted(other));
        if state != NodeState::Active && !another(|other| other.state == NodeState::Active) {
            return Err(DirectoryError::InUse(format!("no other node is active to take the shards of {}", node.name)));
        }
        if state == NodeState::Removed {
            let shards = self.placements_naming(id).count();
            if shards > 0 {
                return Err(DirectoryError::InUse(format!(
                    "{shards} shards are still wanted on node {}, or on their way to it or from it",
                    node.name
                )));
            }
            self.check_another_voter(node)?;
        }
        self.alter_node(id, |node| {
            node.state = state;
            node.directory_voter &= state != NodeState::Removed;
        })
    }

    pub(super) fn set_node_voter(&self, id: NodeId, voter: bool) -> Decision {
        if !voter {
            self.check_another_voter(self.existing_node(id)?)?;
        }
        self.alter_node(id, |node| node.directory_voter = voter)
    }

    pub(super) fn note_node_start(
        &self,
        cluster: &Cluster,
        id: NodeId,
        (before, now): (Start, Start),
        format: u32,
    ) -> Decision {
        let node = self.existing_node(id)?;
        check_format(cluster, &node.name, format)?;
        if before.is_before(node.start) && node.start != now {
            let starts = node.start.starts;
            return Err(DirectoryError::Invalid(format!("node {} has started {starts} times before", node.name)));
        }
        self.alter_node(id, |node| (node.start, node.format) = (now, format.max(1)))
    }

    pub(super) fn set_format(&self, cluster: &Cluster, format: u32) -> Decision {
        let present = || self.nodes.values().filter(|node| node.state != NodeState::Removed);
        if let Some(behind) = present().find(|node| node.format < format) {
            let (name, known) = (&behind.name, behind.format);
            return Err(DirectoryError::InUse(format!("node {name} knows formats up to {known}, not {format}")));
        }
        if format <= cluster.format {
            return done(Vec::new());
        }
        done(vec![ChangedRecord::Cluster(Some(Cluster { format, ..cluster.clone() }))])
    }

    fn check_another_voter(&self, node: &Node) -> Result<(), DirectoryError> {
        let votes = |other: &Node| other.id != node.id && other.directory_voter;
        if !node.directory_voter || self.nodes.values().any(votes) {
            return Ok(());
        }
        Err(DirectoryError::InUse(format!("node {} is the directory's only voter", node.name)))
    }

    fn alter_node(&self, id: NodeId, alter: impl FnOnce(&mut Node)) -> Decision {
        let old = self.existing_node(id)?;
        let mut node = old.clone();
        alter(&mut node);
        if node == *old {
            return done(Vec::new());
        }
        done(vec![ChangedRecord::Node(id, Some(node))])
    }

    /// A node that is not removed.
    pub(super) fn existing_node(&self, id: NodeId) -> Result<&Node, DirectoryError> {
        match self.node(id) {
            None => Err(DirectoryError::NotFound(format!("node {id}"))),
            Some(node) if node.state == NodeState::Removed => Err(removed(node)),
            Some(node) => Ok(node),
        }
    }
}

/// Whether a node whose program knows formats up to `known` can take part.
fn check_format(cluster: &Cluster, name: &str, known: u32) -> Result<(), DirectoryError> {
    let (known, in_force) = (known.max(1), cluster.format);
    if known < in_force {
        return Err(DirectoryError::Invalid(format!(
            "the program of node {name} knows formats up to {known}, and the cluster writes format {in_force}: it needs a \
             newer one"
        )));
    }
    if known > in_force + 1 {
        let next = in_force + 1;
        return Err(DirectoryError::Invalid(format!(
            "the program of node {name} is of format {known}, and the cluster writes format {in_force}: all nodes need one \
             of format {next} first"
        )));
    }
    Ok(())
}

fn removed(node: &Node) -> DirectoryError {
    DirectoryError::Invalid(format!(
        "node {} with id {} was removed; it can only join under a fresh id",
        node.name, node.id
    ))
}

fn describes(new: &NewNode, node: &Node) -> bool {
    new.name == node.name && new.address == node.address && new.zone == node.zone && new.weight == node.weight
}

/// `others` are the nodes that are there already, removed ones included.
fn new_node(others: &BTreeMap<NodeId, Node>, new: &NewNode) -> Result<Node, DirectoryError> {
    check_label(&new.name, "node name")?;
    check_label(&new.zone, "zone")?;
    check_address(&new.address)?;
    check_weight(new.weight)?;
    if others.contains_key(&new.id) {
        return Err(DirectoryError::AlreadyExists(format!("node id {}", new.id)));
    }
    let present = || others.values().filter(|node| node.state != NodeState::Removed);
    if present().any(|node| node.name == new.name) {
        return Err(DirectoryError::AlreadyExists(format!("node {}", new.name)));
    }
    room_for(present().count(), 1, NODES_MAX, "nodes")?;
    room_for(others.len(), 1, NODE_RECORDS_MAX, "nodes, removed ones included")?;
    Ok(Node {
        id: new.id,
        name: new.name.clone(),
        address: new.address.clone(),
        zone: new.zone.clone(),
        weight: new.weight,
        state: if new.waits { NodeState::Draining } else { NodeState::Active },
        directory_voter: new.voter,
        start: Start::default(),
        format: new.format.max(1),
    })
}

fn check_label(text: &str, what: &str) -> Result<(), DirectoryError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=LABEL_OCTETS_MAX).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(());
    }
    Err(DirectoryError::Invalid(format!("a {what} is 1 to {LABEL_OCTETS_MAX} of a-z, 0-9 and -")))
}

fn check_weight(weight: u32) -> Result<(), DirectoryError> {
    if (1..=NODE_WEIGHT_MAX).contains(&weight) {
        return Ok(());
    }
    Err(DirectoryError::Invalid(format!("a node's weight is 1 to {NODE_WEIGHT_MAX}, not {weight}")))
}

/// `host:port`, an IPv6 address in brackets.
fn check_address(text: &str) -> Result<(), DirectoryError> {
    let plain = |host: &str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let bracketed = |host: &str| {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
    };
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        !host.is_empty() && (plain(host) || bracketed(host)) && digits && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if good && text.len() <= ADDRESS_OCTETS_MAX {
        return Ok(());
    }
    Err(DirectoryError::Invalid("a node's address is host:port".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{check_address, check_label};

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["127.0.0.1:7000", "node1.example.test:1", "[::1]:65535", "node_1:80"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        let long = format!("{}:80", "a".repeat(300));
        for bad in
            ["", ":1", "a", "a:", "a:0", "a:65536", "a:+1", "a b:1", "::1:80", "[x]:80", "a\0:1", "http://a:1", &long]
        {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn node_names_are_labels() {
        assert!(check_label("node-1", "node name").is_ok());
        assert!(check_label(&"a".repeat(63), "node name").is_ok());
        for bad in ["", "Node", "a.b", "a b", "../x", "é", &"a".repeat(64)] {
            assert!(check_label(bad, "node name").is_err(), "{bad}");
        }
    }
}
