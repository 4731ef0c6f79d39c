//! Connections to nodes, made when first needed and kept. Does not know who leads what.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use proto::NodeApi;
use tracing::warn;
use types::NodeId;

/// Makes a node of its address (host:port). Must not block: the connection itself is made when first used.
pub type Connector = Box<dyn Fn(&str) -> io::Result<Arc<dyn NodeApi>> + Send + Sync>;

pub struct NodePool {
    seeds: Vec<String>,
    connector: Connector,
    /// By address, so that a node that is also a seed has one connection.
    connected: Mutex<HashMap<Box<str>, Arc<dyn NodeApi>>>,
    addresses: Mutex<HashMap<NodeId, Box<str>>>,
    /// Addresses that cannot be used, which is told once.
    unusable: Mutex<HashSet<Box<str>>>,
}

impl NodePool {
    pub fn new(seeds: &[String], connector: Connector) -> NodePool {
        NodePool {
            seeds: seeds.to_vec(),
            connector,
            connected: Mutex::default(),
            addresses: Mutex::default(),
            unusable: Mutex::default(),
        }
    }

    /// Addresses to ask when nothing else is known.
    pub fn seeds(&self) -> &[String] {
        &self.seeds
    }

    /// A node that has moved is spoken to at its new address from here on.
    pub fn node(&self, id: NodeId, address: &str) -> Option<Arc<dyn NodeApi>> {
        let before = {
            let mut addresses = self.addresses.lock();
            match addresses.get(&id) {
                Some(known) if **known == *address => None,
                _ => addresses.insert(id, address.into()),
            }
        };
        if let Some(before) = before {
            self.connected.lock().remove(&before);
        }
        self.at(address)
    }

    pub fn at(&self, address: &str) -> Option<Arc<dyn NodeApi>> {
        let mut connected = self.connected.lock();
        if let Some(node) = connected.get(address) {
            return Some(node.clone());
        }
        match (self.connector)(address) {
            Ok(node) => {
                connected.insert(address.into(), node.clone());
                Some(node)
            }
            Err(error) => {
                if self.unusable.lock().insert(address.into()) {
                    warn!(%error, address, "node address cannot be used");
                }
                None
            }
        }
    }
}
