//! The disk form of the directory's records, and nowhere else: keys, format version, protobuf bodies.
//!
//! A key is one letter for the kind and the record's own name, which the value does not repeat:
//!
//! | key | value |
//! | --- | --- |
//! | `c` | cluster settings and the account counter |
//! | `d` domain | domain |
//! | `a` local`@`domain | account |
//! | `l` local`@`domain | alias |
//! | `n` node id, 8 octets big-endian | node |
//! | `p` shard, 4 octets big-endian | placement |
//! | `r` | the last rebalance |
//! | `q` request id, 16 octets | what a request was answered |
//!
//! A value is a format version octet followed by a protobuf message. Fields may be added under new tags; any other
//! change needs a new version. The index from account id to name is rebuilt in memory when records are loaded.

mod answered;

use prost::Message;
use types::{AccountId, AccountName, DomainName, NodeId, Quota, ShardId};

use crate::change::ChangedRecord;
use crate::error::DirectoryError;
use crate::limits::{REPLICAS_MAX, SHARDS_MAX};
use crate::requests::RequestId;
use crate::values::{
    Account, AccountMove, Alias, Cluster, ClusterId, Domain, MoveStage, Node, NodeState, PasswordHash, Placement,
    Rebalance, RebalanceState, Start,
};

use self::answered::RequestRecord;

/// The format that this program writes; the only one so far.
const VERSION: u8 = 1;

#[derive(Clone, PartialEq, Message)]
struct ClusterRecord {
    #[prost(bytes = "vec", tag = "1")]
    cluster_id: Vec<u8>,
    #[prost(uint32, tag = "2")]
    shards: u32,
    #[prost(uint32, tag = "3")]
    replicas: u32,
    #[prost(uint64, tag = "4")]
    next_account_id: u64,
    #[prost(string, optional, tag = "5")]
    postmaster: Option<String>,
    /// Absent: 1.
    #[prost(uint32, optional, tag = "20")]
    format: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct DomainRecord {}

#[derive(Clone, PartialEq, Message)]
struct AccountRecord {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    password_hash: String,
    #[prost(uint32, tag = "3")]
    shard: u32,
    #[prost(bool, tag = "4")]
    enabled: bool,
    #[prost(uint64, tag = "5")]
    created_unix_s: u64,
    #[prost(uint64, optional, tag = "6")]
    quota_octets: Option<u64>,
    #[prost(uint64, optional, tag = "7")]
    quota_messages: Option<u64>,
    #[prost(message, optional, tag = "8")]
    moving: Option<MoveRecord>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct MoveRecord {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint32, tag = "2")]
    from: u32,
    #[prost(uint32, tag = "3")]
    to: u32,
    #[prost(uint32, tag = "4")]
    stage: u32,
}

#[derive(Clone, PartialEq, Message)]
struct AliasRecord {
    #[prost(string, repeated, tag = "1")]
    targets: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    address: String,
    #[prost(string, tag = "3")]
    zone: String,
    #[prost(uint32, tag = "4")]
    weight: u32,
    #[prost(uint32, tag = "5")]
    state: u32,
    #[prost(bool, tag = "6")]
    directory_voter: bool,
    #[prost(uint64, tag = "7")]
    starts: u64,
    #[prost(fixed64, tag = "8")]
    run: u64,
    /// Absent: 1.
    #[prost(uint32, optional, tag = "20")]
    format: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct PlacementRecord {
    #[prost(fixed64, repeated, tag = "1")]
    wanted: Vec<u64>,
    #[prost(bool, tag = "2")]
    initialised: bool,
    #[prost(uint64, tag = "3")]
    revision: u64,
    #[prost(fixed64, repeated, tag = "4")]
    planned: Vec<u64>,
    #[prost(fixed64, repeated, tag = "5")]
    previous: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct RebalanceRecord {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint32, tag = "2")]
    state: u32,
    #[prost(uint64, tag = "3")]
    started_unix_s: u64,
    #[prost(uint32, tag = "4")]
    moves: u32,
    #[prost(uint64, tag = "5")]
    octets: u64,
}

pub(crate) fn key(record: &ChangedRecord) -> Vec<u8> {
    match record {
        ChangedRecord::Cluster(_) => b"c".to_vec(),
        ChangedRecord::Domain(name, _) => keyed(b'd', name.as_str().as_bytes()),
        ChangedRecord::Account(name, _) => keyed(b'a', name.as_str().as_bytes()),
        ChangedRecord::Alias(name, _) => keyed(b'l', name.as_str().as_bytes()),
        ChangedRecord::Node(id, _) => keyed(b'n', &id.0.to_be_bytes()),
        ChangedRecord::Placement(shard, _) => keyed(b'p', &shard.0.to_be_bytes()),
        ChangedRecord::Rebalance(_) => b"r".to_vec(),
        ChangedRecord::Request(id, _) => keyed(b'q', &id.0.to_be_bytes()),
    }
}

fn keyed(kind: u8, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + name.len());
    key.push(kind);
    key.extend_from_slice(name);
    key
}

pub(crate) fn value(record: &ChangedRecord) -> Option<Vec<u8>> {
    match record {
        ChangedRecord::Cluster(cluster) => cluster.as_ref().map(|cluster| {
            versioned(&ClusterRecord {
                cluster_id: cluster.cluster_id.0.to_vec(),
                shards: cluster.shards,
                replicas: cluster.replicas,
                next_account_id: cluster.next_account_id.0,
                postmaster: cluster.postmaster.as_ref().map(ToString::to_string),
                format: above_first(cluster.format),
            })
        }),
        ChangedRecord::Domain(_, domain) => domain.as_ref().map(|_| versioned(&DomainRecord {})),
        ChangedRecord::Account(_, account) => account.as_ref().map(|account| {
            versioned(&AccountRecord {
                id: account.id.0,
                password_hash: account.password_hash.as_str().to_owned(),
                shard: account.shard.0,
                enabled: account.enabled,
                created_unix_s: account.created_unix_s,
                quota_octets: account.quota.octets,
                quota_messages: account.quota.messages,
                moving: account.moving.map(|AccountMove { id, from, to, stage }| MoveRecord {
                    id,
                    from: from.0,
                    to: to.0,
                    stage: move_stage_number(Some(stage)),
                }),
            })
        }),
        ChangedRecord::Alias(_, alias) => alias
            .as_ref()
            .map(|alias| versioned(&AliasRecord { targets: alias.targets.iter().map(ToString::to_string).collect() })),
        ChangedRecord::Node(_, node) => node.as_ref().map(|node| {
            versioned(&NodeRecord {
                name: node.name.clone(),
                address: node.address.clone(),
                zone: node.zone.clone(),
                weight: node.weight,
                state: state_number(node.state),
                directory_voter: node.directory_voter,
                starts: node.start.starts,
                run: node.start.run,
                format: above_first(node.format),
            })
        }),
        ChangedRecord::Placement(_, placement) => placement.as_ref().map(|placement| {
            versioned(&PlacementRecord {
                wanted: numbers(&placement.wanted),
                initialised: placement.initialised,
                revision: placement.revision,
                planned: numbers(&placement.planned),
                previous: numbers(&placement.previous),
            })
        }),
        ChangedRecord::Rebalance(rebalance) => rebalance.as_ref().map(|rebalance| {
            versioned(&RebalanceRecord {
                id: rebalance.id,
                state: rebalance_state_number(rebalance.state),
                started_unix_s: rebalance.started_unix_s,
                moves: rebalance.moves,
                octets: rebalance.octets,
            })
        }),
        ChangedRecord::Request(_, answered) => {
            answered.as_ref().map(|answered| versioned(&RequestRecord::of(answered)))
        }
    }
}

/// The first needs no saying.
fn above_first(format: u32) -> Option<u32> {
    (format > 1).then_some(format)
}

fn numbers(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

fn versioned(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes
}

/// `value` is `None` for a record that was deleted.
pub(crate) fn decode(key: &[u8], value: Option<&[u8]>) -> Result<ChangedRecord, DirectoryError> {
    let damaged = |reason: String| DirectoryError::Corrupt { key: key.escape_ascii().to_string(), reason };
    let (kind, name) = key.split_first().ok_or_else(|| damaged("the key is empty".to_owned()))?;
    match kind {
        b'c' if name.is_empty() => Ok(ChangedRecord::Cluster(value.map(cluster).transpose().map_err(damaged)?)),
        b'd' => {
            let name = domain_name(text(name).map_err(damaged)?).map_err(damaged)?;
            let domain = value.map(|bytes| body::<DomainRecord>(bytes).map(|_| Domain { name: name.clone() }));
            Ok(ChangedRecord::Domain(name, domain.transpose().map_err(damaged)?))
        }
        b'a' => {
            let name = text(name).and_then(account_name).map_err(damaged)?;
            let account = value.map(|bytes| account(&name, bytes)).transpose().map_err(damaged)?;
            Ok(ChangedRecord::Account(name, account))
        }
        b'l' => {
            let name = text(name).and_then(account_name).map_err(damaged)?;
            let alias = value.map(|bytes| alias(&name, bytes)).transpose().map_err(damaged)?;
            Ok(ChangedRecord::Alias(name, alias))
        }
        b'n' => {
            let id = name.try_into().map(|bytes| NodeId(u64::from_be_bytes(bytes)));
            let id = id.map_err(|_| damaged("the key is not 8 octets long".to_owned()))?;
            Ok(ChangedRecord::Node(id, value.map(|bytes| node(id, bytes)).transpose().map_err(damaged)?))
        }
        b'p' => {
            let shard = name.try_into().map(|bytes| ShardId(u32::from_be_bytes(bytes)));
            let shard = shard.map_err(|_| damaged("the key is not 4 octets long".to_owned()))?;
            Ok(ChangedRecord::Placement(
                shard,
                value.map(|bytes| placement(shard, bytes)).transpose().map_err(damaged)?,
            ))
        }
        b'q' => {
            let id = name.try_into().map(|bytes| RequestId(u128::from_be_bytes(bytes)));
            let id = id.map_err(|_| damaged("the key is not 16 octets long".to_owned()))?;
            let answered = value.map(|bytes| body::<RequestRecord>(bytes).and_then(RequestRecord::answered));
            Ok(ChangedRecord::Request(id, answered.transpose().map_err(damaged)?))
        }
        b'r' if name.is_empty() => Ok(ChangedRecord::Rebalance(value.map(rebalance).transpose().map_err(damaged)?)),
        _ => Err(damaged("records of this kind are not known".to_owned())),
    }
}

fn body<M: Message + Default>(bytes: &[u8]) -> Result<M, String> {
    match bytes.split_first() {
        None => Err("the value is empty".to_owned()),
        Some((&VERSION, message)) => M::decode(message).map_err(|error| error.to_string()),
        Some((version, _)) => Err(format!("format {version} is not known, only {VERSION}")),
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| error.to_string())
}

/// A name is written in its normal form; another form would be a second key for the same name.
pub(crate) fn account_name(text: &str) -> Result<AccountName, String> {
    match AccountName::parse(text) {
        Ok(name) if name.as_str() == text => Ok(name),
        Ok(_) => Err("name is not in its normal form".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) fn domain_name(text: &str) -> Result<DomainName, String> {
    match DomainName::parse(text) {
        Ok(name) if name.as_str() == text => Ok(name),
        Ok(_) => Err("domain is not in its normal form".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn cluster(bytes: &[u8]) -> Result<Cluster, String> {
    let record: ClusterRecord = body(bytes)?;
    let cluster_id = record.cluster_id.try_into().map_err(|_| "cluster id is not 16 octets long".to_owned())?;
    if !(1..=SHARDS_MAX).contains(&record.shards) || !(1..=REPLICAS_MAX).contains(&record.replicas) {
        return Err(format!("{} shards of {} replicas cannot be", record.shards, record.replicas));
    }
    Ok(Cluster {
        cluster_id: ClusterId(cluster_id),
        shards: record.shards,
        replicas: record.replicas,
        next_account_id: AccountId(record.next_account_id),
        postmaster: record.postmaster.as_deref().map(account_name).transpose()?,
        format: record.format.unwrap_or(1),
    })
}

fn account(name: &AccountName, bytes: &[u8]) -> Result<Account, String> {
    let record: AccountRecord = body(bytes)?;
    let moving = |record: MoveRecord| {
        let stage = move_stage_of(record.stage)?.ok_or_else(|| "a move without a stage".to_owned())?;
        Ok::<_, String>(AccountMove { id: record.id, from: ShardId(record.from), to: ShardId(record.to), stage })
    };
    Ok(Account {
        id: AccountId(record.id),
        name: name.clone(),
        password_hash: PasswordHash::parse(&record.password_hash).map_err(|error| error.to_string())?,
        shard: ShardId(record.shard),
        enabled: record.enabled,
        created_unix_s: record.created_unix_s,
        quota: Quota { octets: record.quota_octets, messages: record.quota_messages },
        moving: record.moving.map(moving).transpose()?,
    })
}

fn alias(name: &AccountName, bytes: &[u8]) -> Result<Alias, String> {
    let record: AliasRecord = body(bytes)?;
    let targets = record.targets.iter().map(|target| account_name(target)).collect::<Result<_, _>>()?;
    Ok(Alias { name: name.clone(), targets })
}

fn node(id: NodeId, bytes: &[u8]) -> Result<Node, String> {
    let record: NodeRecord = body(bytes)?;
    Ok(Node {
        id,
        name: record.name,
        address: record.address,
        zone: record.zone,
        weight: record.weight,
        state: state_of(record.state)?,
        directory_voter: record.directory_voter,
        start: Start { starts: record.starts, run: record.run },
        format: record.format.unwrap_or(1),
    })
}

fn placement(shard: ShardId, bytes: &[u8]) -> Result<Placement, String> {
    let record: PlacementRecord = body(bytes)?;
    let nodes = |numbers: Vec<u64>| numbers.into_iter().map(NodeId).collect();
    Ok(Placement {
        shard,
        wanted: nodes(record.wanted),
        planned: nodes(record.planned),
        previous: nodes(record.previous),
        initialised: record.initialised,
        revision: record.revision,
    })
}

fn rebalance(bytes: &[u8]) -> Result<Rebalance, String> {
    let record: RebalanceRecord = body(bytes)?;
    Ok(Rebalance {
        id: record.id,
        state: rebalance_state_of(record.state)?,
        started_unix_s: record.started_unix_s,
        moves: record.moves,
        octets: record.octets,
    })
}

pub(crate) fn state_number(state: NodeState) -> u32 {
    match state {
        NodeState::Active => 1,
        NodeState::Draining => 2,
        NodeState::Removed => 3,
    }
}

pub(crate) fn state_of(number: u32) -> Result<NodeState, String> {
    match number {
        1 => Ok(NodeState::Active),
        2 => Ok(NodeState::Draining),
        3 => Ok(NodeState::Removed),
        other => Err(format!("node state {other} is not known")),
    }
}

/// 0 for a move that is over.
pub(crate) fn move_stage_number(stage: Option<MoveStage>) -> u32 {
    match stage {
        None => 0,
        Some(MoveStage::Copying) => 1,
        Some(MoveStage::Switched) => 2,
        Some(MoveStage::Undone) => 3,
    }
}

pub(crate) fn move_stage_of(number: u32) -> Result<Option<MoveStage>, String> {
    match number {
        0 => Ok(None),
        1 => Ok(Some(MoveStage::Copying)),
        2 => Ok(Some(MoveStage::Switched)),
        3 => Ok(Some(MoveStage::Undone)),
        other => Err(format!("stage {other} of a move is not known")),
    }
}

pub(crate) fn rebalance_state_number(state: RebalanceState) -> u32 {
    match state {
        RebalanceState::Running => 1,
        RebalanceState::Paused => 2,
        RebalanceState::Finished => 3,
        RebalanceState::Aborted => 4,
    }
}

pub(crate) fn rebalance_state_of(number: u32) -> Result<RebalanceState, String> {
    match number {
        1 => Ok(RebalanceState::Running),
        2 => Ok(RebalanceState::Paused),
        3 => Ok(RebalanceState::Finished),
        4 => Ok(RebalanceState::Aborted),
        other => Err(format!("rebalance state {other} is not known")),
    }
}
