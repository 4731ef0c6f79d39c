//! Raft's nouns to bytes and back: the disk's records (prost, a version byte first) and the wire's messages. The two
//! are kept apart, so that either can change alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use openraft::{BasicNode, EntryPayload};
use prost::Message as _;
use proto::wire;

use super::{Entry, LogId, Membership, Proposal, StoredMembership, Vote};

/// The first byte of every record here.
const FORMAT: u8 = 1;

/// An entry's head on disk: everything but the body.
#[derive(Clone, PartialEq, prost::Message)]
struct EntryRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(enumeration = "Kind", tag = "2")]
    kind: i32,
    #[prost(bytes = "bytes", tag = "3")]
    command: Bytes,
    #[prost(message, optional, tag = "4")]
    membership: Option<MembershipRecord>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
enum Kind {
    Unknown = 0,
    Blank = 1,
    Command = 2,
    Membership = 3,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MembershipRecord {
    #[prost(message, repeated, tag = "1")]
    configs: Vec<ConfigRecord>,
    #[prost(btree_map = "uint64, string", tag = "2")]
    members: BTreeMap<u64, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ConfigRecord {
    #[prost(uint64, repeated, tag = "1")]
    voters: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LogIdRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct VoteRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    leader: u64,
    #[prost(bool, tag = "3")]
    committed: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MarkerRecord {
    #[prost(message, optional, tag = "1")]
    applied: Option<LogIdRecord>,
    #[prost(message, optional, tag = "2")]
    membership_id: Option<LogIdRecord>,
    #[prost(message, optional, tag = "3")]
    membership: Option<MembershipRecord>,
}

fn encode(record: &impl prost::Message) -> Bytes {
    let mut bytes = Vec::with_capacity(record.encoded_len() + 1);
    bytes.push(FORMAT);
    // A Vec grows as needed, so encoding into it cannot fail.
    record.encode_raw(&mut bytes);
    bytes.into()
}

fn decode<R: prost::Message + Default>(what: &str, bytes: &[u8]) -> io::Result<R> {
    match bytes.split_first() {
        Some((&FORMAT, record)) => R::decode(record).map_err(|e| invalid(format!("{what}: {e}"))),
        Some((format, _)) => Err(invalid(format!("{what}: unknown format {format}"))),
        None => Err(invalid(format!("{what}: empty record"))),
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// What a group's state says of itself: the last entry applied and the last membership among the applied.
#[derive(Clone, Default, Debug, PartialEq)]
pub struct Marker {
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
}

impl Marker {
    /// Whether the group has no other member.
    pub fn is_alone(&self) -> bool {
        self.membership.membership().nodes().count() == 1
    }

    pub fn encode(&self) -> Bytes {
        encode(&MarkerRecord {
            applied: self.applied.map(Into::into),
            membership_id: (*self.membership.log_id()).map(Into::into),
            membership: Some(self.membership.membership().into()),
        })
    }

    pub fn decode(bytes: &[u8]) -> io::Result<Marker> {
        let record: MarkerRecord = decode("applied marker", bytes)?;
        let membership = membership_from_record(record.membership.unwrap_or_default())?;
        Ok(Marker {
            applied: record.applied.map(Into::into),
            membership: StoredMembership::new(record.membership_id.map(Into::into), membership),
        })
    }
}

impl From<LogId> for LogIdRecord {
    fn from(id: LogId) -> LogIdRecord {
        LogIdRecord { term: **id.committed_leader_id(), index: id.index }
    }
}

impl From<LogIdRecord> for LogId {
    fn from(record: LogIdRecord) -> LogId {
        LogId::new_term_index(record.term, record.index)
    }
}

impl From<&Membership> for MembershipRecord {
    fn from(membership: &Membership) -> MembershipRecord {
        MembershipRecord {
            configs: membership
                .get_joint_config()
                .iter()
                .map(|voters| ConfigRecord { voters: voters.iter().copied().collect() })
                .collect(),
            members: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
        }
    }
}

fn membership_from_record(record: MembershipRecord) -> io::Result<Membership> {
    membership(
        record.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect(),
        record.members.into_iter().map(|(id, address)| (id, BasicNode::new(address))).collect(),
    )
}

/// The empty membership of a group that was never initialised is legal here, and only here.
fn membership(configs: Vec<BTreeSet<u64>>, members: BTreeMap<u64, BasicNode>) -> io::Result<Membership> {
    if configs.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, members).map_err(|error| invalid(format!("membership: {error}")))
}

pub fn encode_log_id(id: LogId) -> Bytes {
    encode(&LogIdRecord::from(id))
}

pub fn decode_log_id(bytes: &[u8]) -> io::Result<LogId> {
    decode::<LogIdRecord>("log id", bytes).map(Into::into)
}

pub fn encode_vote(vote: &Vote) -> Bytes {
    let record = VoteRecord { term: vote.leader_id.term, leader: vote.leader_id.voted_for, committed: vote.committed };
    encode(&record)
}

pub fn decode_vote(bytes: &[u8]) -> io::Result<Vote> {
    let record: VoteRecord = decode("vote", bytes)?;
    Ok(vote(record.term, record.leader, record.committed))
}

fn vote(term: u64, leader: u64, committed: bool) -> Vote {
    if committed { Vote::new_committed(term, leader) } else { Vote::new(term, leader) }
}

/// An entry as the log store takes it.
pub fn entry_to_disk(entry: Entry) -> storage::LogEntry {
    let (kind, command, body, membership) = match entry.payload {
        EntryPayload::Blank => (Kind::Blank, Bytes::new(), None, None),
        EntryPayload::Normal(proposal) => (Kind::Command, proposal.head, proposal.body, None),
        EntryPayload::Membership(membership) => (Kind::Membership, Bytes::new(), None, Some((&membership).into())),
    };
    let term = **entry.log_id.committed_leader_id();
    let head = encode(&EntryRecord { term, kind: kind.into(), command, membership });
    storage::LogEntry { index: entry.log_id.index, head, body }
}

pub fn entry_from_disk(entry: storage::LogEntry) -> io::Result<Entry> {
    let record = decode_head(&entry.head)?;
    let payload = match record.kind() {
        Kind::Blank => EntryPayload::Blank,
        Kind::Command => EntryPayload::Normal(Proposal { head: record.command, body: entry.body }),
        Kind::Membership => EntryPayload::Membership(membership_from_record(record.membership.unwrap_or_default())?),
        Kind::Unknown => return Err(invalid(format!("log entry {}: unknown kind", entry.index))),
    };
    Ok(Entry { log_id: LogId::new_term_index(record.term, entry.index), payload })
}

/// Only the id of a stored entry.
pub fn entry_id(entry: &storage::LogEntry) -> io::Result<LogId> {
    let record = decode_head(&entry.head)?;
    Ok(LogId::new_term_index(record.term, entry.index))
}

/// Decodes without copying the command out of the head.
fn decode_head(head: &Bytes) -> io::Result<EntryRecord> {
    match head.first() {
        Some(&FORMAT) => EntryRecord::decode(head.slice(1..)).map_err(|e| invalid(format!("log entry: {e}"))),
        other => Err(invalid(format!("log entry: unknown format {other:?}"))),
    }
}

// The wire.

pub fn log_id_to_wire(id: LogId) -> wire::LogId {
    wire::LogId { term: **id.committed_leader_id(), index: id.index }
}

pub fn log_id_from_wire(id: wire::LogId) -> LogId {
    LogId::new_term_index(id.term, id.index)
}

pub fn vote_to_wire(vote: &Vote) -> wire::Vote {
    wire::Vote { term: vote.leader_id.term, leader: vote.leader_id.voted_for, committed: vote.committed }
}

pub fn vote_from_wire(wire: Option<wire::Vote>) -> io::Result<Vote> {
    let wire = wire.ok_or_else(|| invalid("a call without a vote".to_owned()))?;
    Ok(vote(wire.term, wire.leader, wire.committed))
}

pub fn membership_to_wire(membership: &Membership) -> wire::Membership {
    wire::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| wire::membership::Config { voters: voters.iter().copied().collect() })
            .collect(),
        members: membership
            .nodes()
            .map(|(id, node)| wire::membership::Member { id: *id, address: node.addr.clone() })
            .collect(),
    }
}

pub fn membership_from_wire(wire: wire::Membership) -> io::Result<Membership> {
    membership(
        wire.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect(),
        wire.members.into_iter().map(|member| (member.id, BasicNode::new(member.address))).collect(),
    )
}

pub fn entry_to_wire(entry: Entry) -> wire::Entry {
    use wire::entry::Payload;
    let payload = match entry.payload {
        EntryPayload::Blank => Payload::Blank(wire::Done {}),
        EntryPayload::Normal(proposal) => Payload::Command(wire::Command {
            head: proposal.head,
            has_body: proposal.body.is_some(),
            body: proposal.body.unwrap_or_default(),
        }),
        EntryPayload::Membership(membership) => Payload::Membership(membership_to_wire(&membership)),
    };
    wire::Entry { id: Some(log_id_to_wire(entry.log_id)), payload: Some(payload) }
}

pub fn entry_from_wire(entry: wire::Entry) -> io::Result<Entry> {
    use wire::entry::Payload;
    let id = entry.id.ok_or_else(|| invalid("an entry without an id".to_owned()))?;
    let payload = match entry.payload {
        Some(Payload::Blank(wire::Done {})) => EntryPayload::Blank,
        Some(Payload::Command(command)) => {
            EntryPayload::Normal(Proposal { head: command.head, body: Some(command.body).filter(|_| command.has_body) })
        }
        Some(Payload::Membership(membership)) => EntryPayload::Membership(membership_from_wire(membership)?),
        None => return Err(invalid(format!("entry {} without a payload", id.index))),
    };
    Ok(Entry { log_id: log_id_from_wire(id), payload })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use bytes::Bytes;
    use openraft::{BasicNode, EntryPayload};

    use super::{
        Marker, decode_vote, encode_vote, entry_from_disk, entry_from_wire, entry_id, entry_to_disk, entry_to_wire,
        membership_from_wire, wire,
    };
    use crate::raft::{Entry, LogId, Membership, Proposal, StoredMembership, Vote};

    fn entries() -> Vec<Entry> {
        let members = BTreeMap::from([(1, BasicNode::new("a:1")), (2, BasicNode::new("b:2"))]);
        let membership = Membership::new(vec![BTreeSet::from([1, 2])], members).unwrap();
        let command = |body| EntryPayload::Normal(Proposal { head: Bytes::from_static(b"head"), body });
        [
            EntryPayload::Blank,
            command(None),
            command(Some(Bytes::from_static(b"body"))),
            command(Some(Bytes::new())),
            EntryPayload::Membership(membership),
        ]
        .into_iter()
        .enumerate()
        .map(|(i, payload)| Entry { log_id: LogId::new_term_index(3, i as u64), payload })
        .collect()
    }

    #[test]
    fn entries_survive_disk_and_wire() {
        for entry in entries() {
            let disk = entry_to_disk(entry.clone());
            assert_eq!(entry_id(&disk).unwrap(), entry.log_id);
            assert_eq!(entry_from_disk(disk).unwrap(), entry);
            assert_eq!(entry_from_wire(entry_to_wire(entry.clone())).unwrap(), entry);
        }
    }

    #[test]
    fn a_membership_that_contradicts_itself_is_none_that_is_empty() {
        let voters = vec![wire::membership::Config { voters: vec![1, 2] }];
        let members = vec![wire::membership::Member { id: 1, address: "a:1".to_owned() }];
        let stranger = wire::Membership { configs: voters, members };
        assert!(membership_from_wire(stranger).unwrap_err().to_string().contains("membership"));
        assert_eq!(membership_from_wire(wire::Membership::default()).unwrap(), Membership::default());
    }

    #[test]
    fn markers_and_votes_survive_the_disk_and_unknown_formats_are_named() {
        let members = BTreeMap::from([(1, BasicNode::new("a:1"))]);
        let membership = Membership::new(vec![BTreeSet::from([1])], members).unwrap();
        let marker = Marker {
            applied: Some(LogId::new_term_index(2, 9)),
            membership: StoredMembership::new(Some(LogId::new_term_index(1, 4)), membership),
        };
        assert_eq!(Marker::decode(&marker.encode()).unwrap(), marker);
        assert_eq!(Marker::decode(&Marker::default().encode()).unwrap(), Marker::default());
        for vote in [Vote::new(3, 7), Vote::new_committed(4, 8)] {
            assert_eq!(decode_vote(&encode_vote(&vote)).unwrap(), vote);
        }
        assert!(decode_vote(&[9, 1, 2]).unwrap_err().to_string().contains("unknown format 9"));
    }
}
