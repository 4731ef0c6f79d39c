//! Where shards are to be, in the log.

use std::collections::BTreeMap;

use prost::Message;
use types::{NodeId, ShardId};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Placements {
    #[prost(message, repeated, tag = "1")]
    pub(super) wanted: Vec<PlacementForm>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PlacementForm {
    #[prost(uint32, tag = "1")]
    pub(super) shard: u32,
    #[prost(fixed64, repeated, tag = "2")]
    pub(super) nodes: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StartRebalance {
    #[prost(message, repeated, tag = "1")]
    pub(super) targets: Vec<PlacementForm>,
    #[prost(bool, tag = "2")]
    pub(super) replace: bool,
    #[prost(uint64, tag = "3")]
    pub(super) unix_s: u64,
    #[prost(uint64, tag = "4")]
    pub(super) octets: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct GiveUp {
    #[prost(fixed64, tag = "1")]
    pub(super) id: u64,
    #[prost(message, repeated, tag = "2")]
    pub(super) targets: Vec<PlacementForm>,
    #[prost(uint64, tag = "3")]
    pub(super) unix_s: u64,
    #[prost(uint64, tag = "4")]
    pub(super) octets: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Shards {
    #[prost(uint32, repeated, tag = "1")]
    pub(super) shards: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Ended {
    #[prost(uint32, repeated, tag = "1")]
    pub(super) shards: Vec<u32>,
    #[prost(uint64, optional, tag = "2")]
    pub(super) seen: Option<u64>,
}

pub(super) fn placement_forms(lists: &BTreeMap<ShardId, Vec<NodeId>>) -> Vec<PlacementForm> {
    let form = |(shard, nodes): (&ShardId, &Vec<NodeId>)| PlacementForm {
        shard: shard.0,
        nodes: nodes.iter().map(|node| node.0).collect(),
    };
    lists.iter().map(form).collect()
}

pub(super) fn numbers(shards: &[ShardId]) -> Vec<u32> {
    shards.iter().map(|shard| shard.0).collect()
}

pub(super) fn lists(forms: Vec<PlacementForm>) -> BTreeMap<ShardId, Vec<NodeId>> {
    let list = |form: PlacementForm| (ShardId(form.shard), form.nodes.into_iter().map(NodeId).collect());
    forms.into_iter().map(list).collect()
}

pub(super) fn shards(numbers: Vec<u32>) -> Vec<ShardId> {
    numbers.into_iter().map(ShardId).collect()
}
