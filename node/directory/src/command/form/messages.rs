//! The messages in commands.

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub struct CreateCluster {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub shards: u32,
    #[prost(uint32, tag = "3")]
    pub replicas: u32,
    #[prost(message, repeated, tag = "4")]
    pub nodes: Vec<NodeForm>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeForm {
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub address: String,
    #[prost(string, tag = "4")]
    pub zone: String,
    #[prost(uint32, tag = "5")]
    pub weight: u32,
    #[prost(bool, tag = "6")]
    pub voter: bool,
    #[prost(uint32, tag = "7")]
    pub format: u32,
    #[prost(bool, tag = "8")]
    pub waits: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeAddress {
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub address: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeStart {
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub starts_before: u64,
    #[prost(fixed64, tag = "3")]
    pub run_before: u64,
    #[prost(uint64, tag = "4")]
    pub starts: u64,
    #[prost(fixed64, tag = "5")]
    pub run: u64,
    #[prost(uint32, tag = "6")]
    pub format: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeStateForm {
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    #[prost(uint32, tag = "2")]
    pub state: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeVoter {
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    #[prost(bool, tag = "2")]
    pub voter: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeShare {
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub zone: String,
    #[prost(uint32, tag = "3")]
    pub weight: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct AccountForm {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub password_hash: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Accounts {
    #[prost(message, repeated, tag = "1")]
    pub accounts: Vec<AccountForm>,
    #[prost(uint64, tag = "2")]
    pub unix_s: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Enabled {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bool, tag = "2")]
    pub enabled: bool,
}

/// An absent limit stays as it is.
#[derive(Clone, PartialEq, Message)]
pub struct QuotaForm {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub octets: Option<LimitForm>,
    #[prost(message, optional, tag = "3")]
    pub messages: Option<LimitForm>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct LimitForm {
    /// Absent: no limit.
    #[prost(uint64, optional, tag = "1")]
    pub max: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AliasForm {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "2")]
    pub targets: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Postmaster {
    #[prost(string, optional, tag = "1")]
    pub account: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NamedShard {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    pub shard: u32,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct MoveStepForm {
    #[prost(uint64, tag = "1")]
    pub account: u64,
    #[prost(uint64, tag = "2")]
    pub id: u64,
    /// 0: the move is over.
    #[prost(uint32, tag = "3")]
    pub stage: u32,
}
