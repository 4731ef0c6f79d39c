//! One record put or deleted: what a command did, for the disk (bytes) and for the stream to routers (typed).

use types::{AccountName, DomainName, NodeId, ShardId};

use crate::error::DirectoryError;
use crate::record;
use crate::requests::{Answered, RequestId};
use crate::values::{Account, Alias, Cluster, Domain, Node, Placement, Rebalance};

/// A changed record in both forms, which always agree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub key: Vec<u8>,
    /// `None` deletes the record.
    pub value: Option<Vec<u8>>,
    pub record: ChangedRecord,
}

/// `None` says that the record is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangedRecord {
    Cluster(Option<Cluster>),
    Domain(DomainName, Option<Domain>),
    Account(AccountName, Option<Account>),
    Alias(AccountName, Option<Alias>),
    Node(NodeId, Option<Node>),
    Placement(ShardId, Option<Placement>),
    Rebalance(Option<Rebalance>),
    Request(RequestId, Option<Answered>),
}

impl Change {
    /// The typed form of a record that was read from disk or came over a stream; the error names the key.
    pub fn decode(key: Vec<u8>, value: Option<Vec<u8>>) -> Result<Change, DirectoryError> {
        let record = record::decode(&key, value.as_deref())?;
        Ok(Change { key, value, record })
    }
}

impl From<ChangedRecord> for Change {
    fn from(record: ChangedRecord) -> Change {
        Change { key: record::key(&record), value: record::value(&record), record }
    }
}
