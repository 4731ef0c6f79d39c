//! A cluster to tell stories about.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;

use directory::{
    Applied, Change, ClusterId, Command, Directory, DirectoryError, NewAccount, NewNode, PasswordHash, Reply, Request,
    RequestId,
};
use types::{AccountName, DomainName, NodeId};

/// A directory and the disk beneath it.
pub struct Story {
    pub directory: Directory,
    pub disk: BTreeMap<Vec<u8>, Vec<u8>>,
    pub last: Vec<Change>,
}

impl Story {
    pub fn empty() -> Story {
        Story { directory: Directory::default(), disk: BTreeMap::new(), last: Vec::new() }
    }

    /// Three nodes in three zones, 16 shards of 3 replicas, the domain example.test.
    pub fn begin() -> Story {
        let mut story = Story::empty();
        let nodes = (1..=3).map(new_node).collect();
        story.must(Command::CreateCluster { id: ClusterId([7; 16]), shards: 16, replicas: 3, nodes });
        story.must(Command::CreateDomain { name: domain("example.test") });
        story
    }

    /// Sends the command through its log form, applies it and writes what it changed.
    pub fn apply(&mut self, command: Command) -> Result<Reply, DirectoryError> {
        let command = Command::decode(&command.encode().unwrap()).unwrap();
        let before = self.directory.clone();
        let revision = self.directory.revision() + 1;
        let Applied { reply, changes } = self.directory.apply(revision, &command);
        let is_request = matches!(command, Command::Once { .. });
        if is_request && reply.is_err() {
            assert!(changes.iter().all(|change| change.key[0] == b'q'), "a refused request changed something");
        } else if reply.is_err() {
            assert!(changes.is_empty());
            assert_eq!(self.directory, before.at_revision(revision), "a failed command changed something");
        }
        for change in &changes {
            match &change.value {
                Some(value) => self.disk.insert(change.key.clone(), value.clone()),
                None => self.disk.remove(&change.key),
            };
        }
        self.last = changes;
        reply
    }

    pub fn must(&mut self, command: Command) -> Reply {
        self.apply(command).unwrap()
    }

    pub fn account(&mut self, name: &str) {
        self.must(Command::CreateAccount { account: new_account(name), unix_s: 1_800_000_000 });
    }

    pub fn alias(&mut self, alias: &str, targets: &[&str]) -> Result<Reply, DirectoryError> {
        let targets = targets.iter().map(|target| name(target)).collect();
        self.apply(Command::CreateAlias { name: name(alias), targets })
    }

    /// Whom mail for this recipient reaches.
    pub fn reaches(&self, recipient: &str) -> Vec<&str> {
        match self.directory.resolve_recipient(&name(recipient)) {
            Ok(accounts) => accounts.into_iter().map(|account| account.name.as_str()).collect(),
            Err(error) => panic!("{recipient}: {error}"),
        }
    }

    pub fn reload(&self) -> Result<Directory, DirectoryError> {
        let records = self.disk.iter().map(|(key, value)| (key.clone(), value.clone()));
        Ok(Directory::load(records)?.at_revision(self.directory.revision()))
    }
}

pub fn name(text: &str) -> AccountName {
    AccountName::parse(text).unwrap()
}

pub fn domain(text: &str) -> DomainName {
    DomainName::parse(text).unwrap()
}

pub fn hash(salt: &str) -> PasswordHash {
    PasswordHash::parse(&format!("$argon2id$v=19$m=19456,t=2,p=1${salt}$aGFzaGhhc2g")).unwrap()
}

pub fn new_account(text: &str) -> NewAccount {
    NewAccount { name: name(text), password_hash: hash("c2FsdHNhbHQ") }
}

/// What is asked for under an id, at a time.
pub fn once(id: u128, unix_ms: u64, command: Command) -> Command {
    Command::Once { request: Request { id: RequestId(id), unix_ms }, command: Box::new(command) }
}

pub fn new_node(number: u64) -> NewNode {
    NewNode {
        id: NodeId(number),
        name: format!("node{number}"),
        address: format!("127.0.0.1:{}", 7000 + number),
        zone: format!("zone-{}", number % 3),
        weight: 1,
        format: 0,
        voter: number <= 3,
        waits: false,
    }
}
