//! A cluster in memory: what its nodes have replicated, who leads which shard, and the faults that a test plans.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use argon2::password_hash::PasswordHasher;
use argon2::{Algorithm, Argon2, Params, Version};
use parking_lot::Mutex;
use proto::NodeApi;
use proto::wire::account_move::Stage;
use proto::wire::directory_change::Change;
use proto::wire::fetch_item::Item;
use proto::wire::{
    AccountMove, AccountRecord, AliasRecord, BodyRange, ClusterRecord, DirectoryChange, DirectoryEvent, DomainRecord,
    FetchRequest, FetchedMessage, FetchedSection, NodeRecord, PlacementRecord, SectionData, UnreadMessage, WatchEvent,
};
use router::Cluster;
use tokio::sync::broadcast;
use tokio::time::Instant;
use types::{MailError, MailResult, UidSet};

use super::node::{INLINE_OCTETS, Node};

pub const SHARDS: u32 = 4;
pub const PASSWORD: &str = "mailring-demo";

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub uid: u32,
    pub flags: u32,
    pub mod_seq: u64,
    pub unix_s: i64,
    pub body: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub struct Mailbox {
    pub uid_next: u32,
    pub messages: Vec<Message>,
}

/// What becomes of an operation that a fault was planned for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Fails, not done.
    Before(MailError),
    /// Done, but the answer is lost.
    After(MailError),
    /// The leader waits for others, so long as it may.
    Hangs,
    /// A fetch stream breaks after so many items.
    Break(usize),
}

#[derive(Default)]
pub struct State {
    pub accounts: HashMap<u64, Mailbox>,
    pub fingerprints: HashSet<(u64, Vec<u8>)>,
    /// Fingerprints settled so far, those unknown included.
    pub settled: usize,
    pub leaders: BTreeMap<u32, u64>,
    pub down: BTreeSet<u64>,
    /// They take what they are sent, and do nothing.
    pub paused: BTreeMap<u64, Instant>,
    /// Calls by the node that was sent them.
    pub asked: HashMap<u64, usize>,
    /// By operation.
    pub faults: HashMap<&'static str, VecDeque<(u32, Fault)>>,
    /// Calls that arrived, by operation.
    pub calls: HashMap<&'static str, usize>,
    pub locks: HashMap<u64, u64>,
    /// Nodes whose replicas cannot read a message, by its UID.
    pub unread: HashMap<u32, Vec<u64>>,
    /// They cannot read it beyond what comes with its head.
    pub unread_rest: HashMap<u32, Vec<u64>>,
    /// Bodies of expunged messages that no purge has taken yet, by UID.
    pub expunged: HashMap<u64, Vec<u8>>,
    pub mod_seq: u64,
    pub over_quota: HashSet<u64>,
    /// Accounts that are on another shard than at first; none: between two.
    pub moved: HashMap<u64, Option<u32>>,
    directory: Vec<DirectoryChange>,
    names: HashMap<String, u64>,
}

/// Cloning shares.
#[derive(Clone)]
pub struct TestCluster {
    pub state: Arc<Mutex<State>>,
    pub changes: broadcast::Sender<DirectoryEvent>,
    pub events: broadcast::Sender<(u32, WatchEvent)>,
    /// Ends the streams of watchers and holders of a shard.
    pub breaks: broadcast::Sender<u32>,
}

impl TestCluster {
    /// Three nodes; shard n is led by node n % 3 + 1. Domains example.test and example.org with accounts.
    pub fn new() -> TestCluster {
        let cluster = TestCluster {
            state: Arc::default(),
            changes: broadcast::channel(1_000).0,
            events: broadcast::channel(1_000).0,
            breaks: broadcast::channel(100).0,
        };
        cluster.change(Change::Cluster(ClusterRecord {
            cluster_id: "test".to_owned(),
            shards: SHARDS,
            replicas: 3,
            postmaster: String::new(),
        }));
        for id in 1..=3u64 {
            cluster.change(Change::Node(NodeRecord { id, address: format!("node{id}:1"), ..NodeRecord::default() }));
        }
        for shard in 0..SHARDS {
            let leader = u64::from(shard % 3 + 1);
            cluster.state.lock().leaders.insert(shard, leader);
            let wanted = (0..3).map(|i| (leader - 1 + i) % 3 + 1).collect();
            cluster.change(Change::Placement(PlacementRecord { shard, wanted, ..Default::default() }));
        }
        for domain in ["example.test", "example.org"] {
            cluster.change(Change::Domain(DomainRecord { name: domain.to_owned() }));
        }
        for name in ["alice@example.test", "bob@example.test", "carol@example.test", "dave@example.org"] {
            cluster.add_account(name);
        }
        cluster.change(Change::Alias(AliasRecord {
            name: "team@example.test".to_owned(),
            targets: vec!["alice@example.test".to_owned(), "bob@example.test".to_owned()],
        }));
        cluster
    }

    /// The nth account has id n and lies in shard n % 4.
    pub fn add_account(&self, name: &str) -> u64 {
        let id = {
            let mut state = self.state.lock();
            let id = state.names.len() as u64 + 1;
            state.names.insert(name.to_owned(), id);
            state.accounts.insert(id, Mailbox { uid_next: 1, messages: Vec::new() });
            id
        };
        self.change(Change::Account(AccountRecord {
            id,
            name: name.to_owned(),
            password_hash: hash(PASSWORD),
            shard: (id % u64::from(SHARDS)) as u32,
            enabled: true,
            created_unix_s: 0,
            moving: None,
        }));
        id
    }

    pub fn disable_account(&self, name: &str) {
        let id = self.id(name);
        self.change(Change::Account(AccountRecord {
            id,
            name: name.to_owned(),
            password_hash: hash(PASSWORD),
            shard: shard_of(id),
            enabled: false,
            created_unix_s: 0,
            moving: None,
        }));
    }

    /// Between two shards: nobody serves it.
    pub fn hold(&self, name: &str) {
        let id = self.id(name);
        self.state.lock().moved.insert(id, None);
    }

    /// It is served there from now on.
    pub fn move_to(&self, name: &str, shard: u32) {
        let id = self.id(name);
        self.state.lock().moved.insert(id, Some(shard));
        self.change(Change::Account(AccountRecord {
            id,
            name: name.to_owned(),
            password_hash: hash(PASSWORD),
            shard,
            enabled: true,
            created_unix_s: 0,
            moving: Some(AccountMove { stage: Stage::Switched.into(), to: shard, ..AccountMove::default() }),
        }));
    }

    /// As if administered. Those who follow hear of it.
    pub fn change(&self, change: Change) -> u64 {
        let change = DirectoryChange { change: Some(change) };
        let mut state = self.state.lock();
        state.directory.push(change.clone());
        let revision = state.directory.len() as u64;
        let _ = self.changes.send(DirectoryEvent { revision, reset: false, changes: vec![change], complete: true });
        revision
    }

    pub fn directory(&self) -> DirectoryEvent {
        let state = self.state.lock();
        let changes = state.directory.clone();
        DirectoryEvent { revision: changes.len() as u64, reset: true, changes, complete: true }
    }

    pub fn node(&self, id: u64) -> Arc<Node> {
        Arc::new(Node { id, cluster: self.clone() })
    }

    /// The cluster as a router is given it.
    pub fn cluster(&self) -> Cluster {
        let this = self.clone();
        Cluster::with_connector(
            &["node1:1".to_owned(), "node2:1".to_owned(), "node3:1".to_owned()],
            Box::new(move |address| {
                let id = address.trim_start_matches("node").trim_end_matches(":1").parse().unwrap();
                Ok(this.node(id) as Arc<dyn NodeApi>)
            }),
        )
    }

    pub fn id(&self, name: &str) -> u64 {
        self.state.lock().names[name]
    }

    /// What lies in an account's INBOX.
    pub fn inbox(&self, name: &str) -> Vec<Message> {
        let id = self.id(name);
        self.state.lock().accounts[&id].messages.clone()
    }

    /// Bodies without the trace headers that delivery put in front.
    pub fn contents(&self, name: &str) -> Vec<String> {
        self.inbox(name).into_iter().map(|message| without_trace(&message.body)).collect()
    }

    pub fn put(&self, name: &str, body: &[u8]) {
        let id = self.id(name);
        self.state.lock().store(id, body.to_vec(), 0);
    }

    /// The next call of `operation` on the shard of `name` meets this fault.
    pub fn plan(&self, operation: &'static str, name: &str, fault: Fault) {
        let shard = shard_of(self.id(name));
        self.state.lock().faults.entry(operation).or_default().push_back((shard, fault));
    }

    pub fn calls(&self, operation: &'static str) -> usize {
        self.state.lock().calls.get(operation).copied().unwrap_or(0)
    }

    /// Streams of the shard end, as when its leader dies.
    pub fn break_streams(&self, shard: u32) {
        let _ = self.breaks.send(shard);
    }

    pub fn pause(&self, node: u64) {
        self.state.lock().paused.insert(node, Instant::now());
    }

    pub fn lead(&self, shard: u32, node: u64) {
        self.state.lock().leaders.insert(shard, node);
        self.break_streams(shard);
    }
}

impl State {
    /// Whether an account is served on a shard.
    pub fn check_here(&self, account: u64, shard: u32) -> Result<(), MailError> {
        match self.moved.get(&account) {
            Some(on) if *on != Some(shard) => Err(MailError::NotHere),
            None if shard_of(account) != shard => Err(MailError::NotHere),
            _ => Ok(()),
        }
    }

    pub fn cannot_read(&self, unread: &HashMap<u32, Vec<u64>>, uid: u32, node: u64) -> bool {
        unread.get(&uid).is_some_and(|nodes| nodes.contains(&node))
    }

    /// A message that a node cannot read: another one, which was not asked, leads and is to be asked; or it is left out.
    pub fn unread_item(&mut self, request: &FetchRequest, uid: u32, node: u64) -> (Item, Option<MailError>) {
        assert!(request.tells_unread);
        let tried: &[u64] = if request.unread_uid == uid { &request.unread_at } else { &[] };
        let other = (1..=3).find(|other| *other != node && !tried.contains(other));
        let item = Item::Unread(UnreadMessage { uid, node, elsewhere: other.is_some() });
        match other {
            None => (item, None),
            Some(other) => {
                self.leaders.insert(request.shard, other);
                (item, Some(MailError::NotLeader { hint: None }))
            }
        }
    }

    pub fn expunge(&mut self, account: u64, uids: &UidSet) -> MailResult<()> {
        let mailbox = self.accounts.get_mut(&account).ok_or(MailError::NoSuchAccount)?;
        let (gone, left) = std::mem::take(&mut mailbox.messages).into_iter().partition(|one| uids.contains(one.uid));
        mailbox.messages = left;
        let gone: Vec<Message> = gone;
        self.expunged.extend(gone.into_iter().map(|message| (u64::from(message.uid), message.body)));
        Ok(())
    }

    /// The rest of a section of a message that was expunged, while its body is left.
    pub fn rest_items(&self, uid: u32, rest: &BodyRange) -> Vec<Item> {
        let place = rest.place.as_ref().unwrap();
        let Some(body) = self.expunged.get(&place.body) else { return Vec::new() };
        assert_eq!((place.chunks.len(), place.chunks[0].octets), (1, body.len() as u64));
        let wanted = &body[rest.offset as usize..(rest.offset + rest.octets) as usize];
        let (head, tail) = wanted.split_at(wanted.len().min(INLINE_OCTETS));
        let section = FetchedSection { octets: rest.octets, data: head.to_vec().into(), ..FetchedSection::default() };
        let message = FetchedMessage { uid, sections: vec![section], ..FetchedMessage::default() };
        let pieces = tail.chunks(INLINE_OCTETS).map(|piece| SectionData { section: 0, data: piece.to_vec().into() });
        [Item::Message(message)].into_iter().chain(pieces.map(Item::Data)).collect()
    }

    pub fn settle(&mut self, fingerprints: &[bytes::Bytes]) {
        self.settled += fingerprints.len();
        self.fingerprints.retain(|(_, known)| !fingerprints.iter().any(|settled| settled == known));
    }

    pub fn store(&mut self, account: u64, body: Vec<u8>, unix_s: i64) -> u32 {
        self.mod_seq += 1;
        let mod_seq = self.mod_seq;
        let mailbox = self.accounts.get_mut(&account).unwrap();
        let uid = mailbox.uid_next;
        mailbox.uid_next += 1;
        mailbox.messages.push(Message { uid, flags: 0, mod_seq, unix_s, body });
        uid
    }
}

pub fn shard_of(account: u64) -> u32 {
    (account % u64::from(SHARDS)) as u32
}

pub fn without_trace(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let rest = text.split_once("Return-Path: ").map_or(&*text, |(_, rest)| rest);
    // The Received field is the only one folded here; it ends with the zone.
    rest.split_once("+0000\r\n").map_or(rest, |(_, rest)| rest).to_owned()
}

/// As weak as it may be: tests verify many.
fn hash(password: &str) -> String {
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).unwrap());
    argon2.hash_password_with_salt(password.as_bytes(), b"some salt").unwrap().to_string()
}
