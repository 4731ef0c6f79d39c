//! What was deleted gives its room back when that is asked for, and only as there is room for that; what is kept is read as
//! before.

mod common;

use std::path::Path;

use bytes::Bytes;
use common::mirror::{assert_equal_halves, mirror_options, open_mirror, random, wait_until};
use common::{Replica, name, open, options, to_inbox};
use storage::{BodyId, Command, Reclaim, Volume, VolumeOptions};
use types::{AccountId, UidSet};

const ALICE: AccountId = AccountId(1);
const MESSAGES: u32 = 400;
const OCTETS: u64 = 64 << 10;
/// One in so many stays.
const KEPT: u32 = 20;

fn small(options: VolumeOptions) -> VolumeOptions {
    VolumeOptions { memtable_bytes: 4 << 20, wal_bytes_max: 8 << 20, ..options }
}

fn used_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries
        .map(
            |entry| {
                if entry.path().is_dir() {
                    used_in(&entry.path())
                } else {
                    entry.metadata().map_or(0, |data| data.len())
                }
            },
        )
        .sum()
}

/// Mail, all of it expunged but for one message in twenty, and the log purged.
fn expunged(volume: &Volume) -> Replica {
    let mut replica = Replica::new(volume);
    for number in 1..=MESSAGES {
        replica.run_with(to_inbox(ALICE), Some(random(u64::from(number), OCTETS))).unwrap();
    }
    let mailbox = replica.group.shard().mailbox(ALICE, &name("INBOX")).unwrap().unwrap().id;
    for first in (1..=MESSAGES).step_by(KEPT as usize) {
        let uids = Some(UidSet::from_range(first, first + KEPT - 2));
        replica.run(Command::Expunge { account: ALICE, mailbox, uids, only_deleted: false }).unwrap();
    }
    replica.group.purge_to(replica.next - 1, Bytes::new()).unwrap();
    replica
}

fn check_kept(replica: &Replica) {
    let shard = replica.group.shard();
    let mailbox = shard.mailbox(ALICE, &name("INBOX")).unwrap().unwrap();
    assert_eq!(mailbox.messages, MESSAGES / KEPT);
    for uid in (KEPT..=MESSAGES).step_by(KEPT as usize) {
        // A message's number is that of its entry.
        let index = u64::from(uid);
        let found = shard.body_range(BodyId(index), 0, OCTETS).unwrap().unwrap();
        assert_eq!(found.concat(), random(index, OCTETS), "message {uid}");
    }
}

fn reclaims(root: &Path, options: VolumeOptions, disks: u64) {
    let volume = Volume::open(small(options)).unwrap();
    let before = volume.removed();
    let replica = expunged(&volume);
    assert!(volume.removed() > before + u64::from(MESSAGES / KEPT * (KEPT - 1)), "{}", volume.removed());
    let full = used_in(root);
    let all = u64::from(MESSAGES) * OCTETS * disks;
    assert!(full > all / 4, "{full} octets are in use without a reclaim");
    // Without room nothing is written, and without need nothing is done.
    volume.collect(&|| true).unwrap();
    volume.reclaim(&Reclaim { room: &|_| 0, goes_on: &|_| true }).unwrap();
    volume.reclaim(&Reclaim { room: &|_| u64::MAX, goes_on: &|_| false }).unwrap();
    assert!(used_in(root) > full / 2);
    volume.reclaim(&Reclaim { room: &|_| 64 << 20, goes_on: &|_| true }).unwrap();
    // What is obsolete goes a moment later.
    wait_until("the room is there", || used_in(root) < all / 8);
    println!("{full} octets before, {} after, {} are kept", used_in(root), all / u64::from(KEPT));
    check_kept(&replica);
    drop((replica, volume));
}

#[test]
fn what_was_expunged_gives_its_room_back() {
    let root = tempfile::tempdir().unwrap();
    reclaims(root.path(), options(root.path()), 1);
    let volume = open(root.path());
    check_kept(&Replica::new(&volume));
}

#[test]
fn what_was_expunged_from_a_mirror_gives_its_room_back_on_both_disks() {
    let root = tempfile::tempdir().unwrap();
    reclaims(root.path(), mirror_options(root.path()), 2);
    let volume = open_mirror(root.path());
    check_kept(&Replica::new(&volume));
    drop(volume);
    assert_equal_halves(root.path());
}
