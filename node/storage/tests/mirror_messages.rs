//! Messages of one mailbox in tables that are damaged in both halves, in different places: each is served by itself where
//! no walk comes to it.

mod common;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use common::Replica;
use common::flips::{files_of, flip, lies_in};
use common::mirror::{assert_equal_halves, fill_until, random, small_mirror, wait_until, wait_whole};
use storage::{
    BodySource, Command, MessageMeta, Recipient, ScrubOptions, ScrubProgress, ShardState, StoreAction, Volume,
};
use types::{AccountId, Flags, InternalDate, MailboxId, Quota, SystemFlags, Uid, UidSet};

const ALICE: AccountId = AccountId(1);
const MESSAGES: u32 = 600;

fn deliver(number: u32, digest: Bytes) -> Command {
    let mut fingerprint = [0; 32];
    fingerprint[..4].copy_from_slice(&number.to_be_bytes());
    Command::Deliver {
        recipients: vec![Recipient { quota: Quota::NONE, account: ALICE, fingerprint }],
        body: BodySource::Inline,
        digest,
        date: InternalDate { unix_s: 77, offset_min: 0 },
        settle: Vec::new(),
    }
}

/// One more message, until what is computed of it lies in tables of both halves.
fn flush(root: &Path, volume: &Volume, replica: &mut Replica, number: u32) {
    let digest = random(u64::from(number), 9000);
    let needle = digest.slice(4000..4100);
    replica.run_with(deliver(number, digest), Some(Bytes::from_static(b"body"))).unwrap();
    let halves = [root.join("a"), root.join("b")];
    fill_until(volume, "tables are written", || halves.iter().all(|half| lies_in(half, "sst", &needle)));
}

/// Those of state records, the oldest first.
fn state_tables(half: &Path) -> Vec<PathBuf> {
    let mut tables = files_of(half, "sst");
    // Its name is among a table's properties.
    tables.retain(|path| std::fs::read(path).unwrap().windows(9).any(|window| window == b"namestate"));
    tables
}

fn inbox(state: &ShardState) -> MailboxId {
    state.mailboxes(ALICE).unwrap().into_iter().find(|info| info.name.to_string() == "INBOX").unwrap().id
}

fn all(state: &ShardState) -> Vec<MessageMeta> {
    let mut found = Vec::new();
    let uids = UidSet::from_range(1, u32::MAX);
    let visited = state.messages(ALICE, inbox(state), &uids, |meta| {
        found.push(meta);
        true
    });
    visited.unwrap();
    found
}

fn seen(state: &ShardState) -> UidSet {
    state.flagged(ALICE, inbox(state), SystemFlags::SEEN, SystemFlags::NONE).unwrap()
}

#[test]
fn messages_that_no_walk_comes_to_are_served_by_themselves() {
    let root = tempfile::tempdir().unwrap();
    let volume = Volume::open(small_mirror(root.path())).unwrap();
    let mut replica = Replica::new(&volume);
    replica.run(Command::CreateAccount { account: ALICE }).unwrap();
    for number in 1..MESSAGES {
        replica.run_with(deliver(number, Bytes::from_static(b"digest")), Some(Bytes::from_static(b"body"))).unwrap();
    }
    flush(root.path(), &volume, &mut replica, MESSAGES);
    let mailbox = inbox(&replica.group.shard());
    // A block of the newer table spans all messages, and has few of them.
    for uid in [1, 300, MESSAGES] {
        let (uids, flags) = (UidSet::from_range(uid, uid), Flags { system: SystemFlags::SEEN, keywords: Vec::new() });
        let action = StoreAction::Add;
        replica.run(Command::Store { account: ALICE, mailbox, uids, action, flags, unchanged_since: None }).unwrap();
    }
    flush(root.path(), &volume, &mut replica, MESSAGES + 1);
    let expected = all(&replica.group.shard());
    assert_eq!(expected.len() as u32, MESSAGES + 1);
    drop((replica, volume));

    let (newer, older) = (state_tables(&root.path().join("a")), state_tables(&root.path().join("b")));
    assert!(newer.len() > 1 && older.len() > 1, "{} and {} tables", newer.len(), older.len());
    // The block of the one that has all but what was computed of bodies, and two of the other, in which messages are.
    flip(newer.last().unwrap(), 60);
    let bytes = std::fs::metadata(&older[0]).unwrap().len();
    [4, 9].into_iter().for_each(|percent| flip(&older[0], bytes * percent / 100));

    let volume = Volume::open(small_mirror(root.path())).unwrap();
    let state = Replica::new(&volume).group.shard();
    let asked = |state: &ShardState| {
        assert_eq!(all(state), expected);
        assert_eq!(seen(state), [1, 300, MESSAGES].into_iter().collect());
        let selected = state.select(ALICE, mailbox).unwrap();
        assert_eq!((selected.uids.len(), selected.first_unseen), (u64::from(MESSAGES) + 1, Some(Uid(2))));
    };
    asked(&state);
    let fast = ScrubOptions { group: None, bytes_per_s: 1 << 40, slice_bytes: 1 << 20 };
    let report = volume.scrub(&fast, &ScrubProgress::default()).unwrap();
    assert_eq!((report.lost, report.differing), (0, 0), "{report:?}");
    wait_until("both are made anew", || volume.statistics().resilvers >= 2);
    wait_whole(&volume);
    asked(&state);
    drop((state, volume));
    asked(&Replica::new(&Volume::open(small_mirror(root.path())).unwrap()).group.shard());
    assert_equal_halves(root.path());
}
