//! What the tests of this crate share.
#![allow(dead_code)]

pub mod flips;
pub mod mirror;

use std::path::Path;
use std::sync::mpsc;

use bytes::Bytes;
use storage::{
    BodySource, Command, Done, Group, GroupId, LogEntry, Outcome, Stamp, StorageError, Volume, VolumeOptions,
};
use types::{AccountId, Flags, InternalDate, MailError, MailboxName, Quota, format};

pub const SHARD: GroupId = GroupId(7);

pub fn options(directory: &Path) -> VolumeOptions {
    VolumeOptions { memtable_bytes: 16 << 20, block_cache_bytes: 32 << 20, ..VolumeOptions::new(directory) }
}

pub fn open(directory: &Path) -> Volume {
    Volume::open(options(directory)).unwrap()
}

pub fn entry(index: u64, head: impl Into<Bytes>, body: Option<Bytes>) -> LogEntry {
    LogEntry { index, head: head.into(), body }
}

/// A callback, and where its result arrives.
pub fn done() -> (Done, mpsc::Receiver<Result<(), StorageError>>) {
    let (sender, receiver) = mpsc::channel();
    let done: Done = Box::new(move |result| {
        let _ = sender.send(result);
    });
    (done, receiver)
}

pub fn append(group: &Group, entries: Vec<LogEntry>) {
    let (done, receiver) = done();
    group.append(entries, done).unwrap();
    receiver.recv().unwrap().unwrap();
}

pub fn name(text: &str) -> MailboxName {
    MailboxName::parse(text).unwrap()
}

pub fn stamp(unix_s: i64) -> Stamp {
    Stamp { unix_ms: unix_s * 1000, seed: 0, format: format::known() }
}

/// A replica that logs, applies and remembers how far it is, as the Raft adaptor does.
pub struct Replica {
    pub group: Group,
    pub next: u64,
    pub now_s: i64,
    /// In force.
    pub format: u32,
}

impl Replica {
    pub fn new(volume: &Volume) -> Replica {
        Replica { group: volume.group(SHARD).unwrap(), next: 1, now_s: 1_700_000_000, format: format::known() }
    }

    pub fn run(&mut self, command: Command) -> Result<Outcome, MailError> {
        self.run_with(command, None)
    }

    pub fn run_with(&mut self, command: Command, body: Option<Bytes>) -> Result<Outcome, MailError> {
        self.run_as(u128::from(self.next), command, body)
    }

    /// Under a request id of its own choice.
    pub fn run_as(&mut self, request: u128, command: Command, body: Option<Bytes>) -> Result<Outcome, MailError> {
        let index = self.next;
        self.next += 1;
        let stamp = Stamp { format: self.format, ..stamp(self.now_s) };
        let head = command.encode(stamp, request);
        let (stamp, request, command) = Command::decode(&head).unwrap();
        let len = body.as_ref().map(|body| body.len() as u64);
        append(&self.group, vec![entry(index, head, body)]);
        let shard = self.group.shard();
        let (result, _) = shard.apply_request(index, (stamp, request), command, len, marker(index)).unwrap();
        result
    }
}

pub fn marker(index: u64) -> Bytes {
    Bytes::copy_from_slice(&index.to_be_bytes())
}

pub fn marker_index(marker: &Bytes) -> u64 {
    u64::from_be_bytes(marker[..].try_into().unwrap())
}

pub fn blocks(group: &Group) -> (Bytes, Vec<Bytes>) {
    let export = group.export().unwrap();
    (export.marker, export.blocks.map(Result::unwrap).collect())
}

/// The newest write-ahead log of a volume.
pub fn live_wal(directory: &Path) -> std::path::PathBuf {
    let logs = std::fs::read_dir(directory.join("db")).unwrap().map(|entry| entry.unwrap().path());
    logs.filter(|path| path.extension().is_some_and(|ext| ext == "log")).max().unwrap()
}

/// Puts a volume's mark back to nothing: after a power cut it may lag as far as it likes.
pub fn forget_mark(directory: &Path) {
    let fresh = tempfile::tempdir().unwrap();
    drop(open(fresh.path()));
    std::fs::copy(fresh.path().join("MARK"), directory.join("MARK")).unwrap();
}

/// A volume's files as they are, as a crash would leave them.
pub fn copy_volume(from: &Path, to: &Path) {
    std::fs::copy(from.join("MARK"), to.join("MARK")).unwrap();
    copy_files(&from.join("db"), &to.join("db"));
}

pub fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// A message to INBOX, which the caller gives.
pub fn to_inbox(account: AccountId) -> Command {
    Command::Append {
        account,
        mailbox: name("INBOX"),
        flags: Flags::default(),
        date: InternalDate::default(),
        body: BodySource::Inline,
        digest: Bytes::from_static(b"digest"),
        quota: Quota::NONE,
    }
}
