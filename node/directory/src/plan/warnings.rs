//! What a plan cannot mend, for the operator to know before it is carried out.

use std::collections::{BTreeMap, BTreeSet};

use types::{NodeId, ShardId};

use super::octets::heavy_nodes;
use super::{PlacementNode, candidates};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Warning {
    /// All are draining or gone: everything stays where it is.
    NoNode,
    FewNodes {
        nodes: u32,
        replicas: u32,
    },
    /// Where a zone is lost, shards may lose more than one replica.
    FewZones {
        zones: u32,
        replicas: u32,
    },
    /// Has more than its share of octets and 20 % (and not only little in all), and no exchange of shards that the plan allows itself helps.
    HeavyNode {
        node: NodeId,
        percent_of_share: u64,
        /// The node's heaviest shard, if that alone is more than its share. Only moving accounts to other shards
        /// helps then.
        shard: Option<ShardId>,
    },
}

impl Warning {
    /// For whoever knows nodes by their names.
    pub fn said(&self, name_of: impl Fn(NodeId) -> String) -> String {
        match *self {
            Warning::NoNode => "no node can take replicas, so that nothing moves".to_owned(),
            Warning::FewNodes { nodes, replicas } => format!(
                "{nodes} nodes can take replicas, fewer than the {replicas} replicas that each shard should have"
            ),
            Warning::FewZones { zones, replicas } => {
                let zones = if zones == 1 { "is 1 zone".to_owned() } else { format!("are {zones} zones") };
                format!("replicas of a shard share a zone: there {zones} for {replicas} replicas")
            }
            Warning::HeavyNode { node, percent_of_share, shard } => {
                let why =
                    shard.map(|shard| format!("; shard {shard} alone is more than the share")).unwrap_or_default();
                format!("node {} comes to {percent_of_share} % of its share of octets{why}", name_of(node))
            }
        }
    }
}

/// What is to be said of the placement `wanted`, which [`propose`](super::propose) made of the same nodes and octets.
pub fn warnings(
    shards: u32,
    replicas: u32,
    nodes: &[PlacementNode],
    wanted: &BTreeMap<ShardId, Vec<NodeId>>,
    octets: &BTreeMap<ShardId, u64>,
) -> Vec<Warning> {
    let candidates = candidates(nodes);
    if candidates.is_empty() {
        return vec![Warning::NoNode];
    }
    let mut warnings = Vec::new();
    let count = u32::try_from(candidates.len()).unwrap_or(u32::MAX);
    if count < replicas {
        warnings.push(Warning::FewNodes { nodes: count, replicas });
    }
    let held = replicas.min(count);
    let zones = candidates.iter().map(|node| node.zone).collect::<BTreeSet<_>>().len() as u32;
    if zones < held {
        warnings.push(Warning::FewZones { zones, replicas: held });
    }
    let heavy = heavy_nodes(shards, held as usize, &candidates, wanted, octets).into_iter();
    warnings.extend(heavy.map(|heavy| Warning::HeavyNode {
        node: heavy.node,
        percent_of_share: heavy.percent_of_share,
        shard: heavy.shard,
    }));
    warnings
}
