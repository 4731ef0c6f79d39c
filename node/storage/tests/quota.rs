//! Quotas: met exactly, decided by the command's own, counted by what is there.

mod common;

use bytes::Bytes;
use common::{Replica, marker, name, open, stamp};
use storage::{BodySource, Command, Outcome, Recipient, Stamp};
use types::{AccountId, Flags, InternalDate, MailError, MailboxId, Quota, UidSet};

const ALICE: AccountId = AccountId(1);
const BOB: AccountId = AccountId(2);

fn octets(max: u64) -> Quota {
    Quota { octets: Some(max), messages: None }
}

fn append(to: &str, quota: Quota) -> Command {
    Command::Append {
        account: ALICE,
        mailbox: name(to),
        flags: Flags::default(),
        date: InternalDate::default(),
        body: BodySource::Inline,
        digest: Bytes::from_static(b"digest"),
        quota,
    }
}

fn body(octets: usize) -> Option<Bytes> {
    Some(Bytes::from(vec![b'm'; octets]))
}

fn deliver(fingerprint: u8, recipients: &[(AccountId, Quota)]) -> Command {
    let recipient =
        |&(account, quota): &(AccountId, Quota)| Recipient { account, fingerprint: [fingerprint; 32], quota };
    Command::Deliver {
        recipients: recipients.iter().map(recipient).collect(),
        body: BodySource::Inline,
        digest: Bytes::from_static(b"digest"),
        date: InternalDate::default(),
        settle: Vec::new(),
    }
}

/// Of each recipient: whether it is a duplicate, or why it was refused.
fn delivered(answer: Result<Outcome, MailError>) -> Vec<Result<bool, MailError>> {
    let Ok(Outcome::Delivered(all)) = answer else { panic!("{answer:?}") };
    all.into_iter().map(|one| one.map(|delivered| delivered.duplicate)).collect()
}

fn used(replica: &Replica, account: AccountId) -> (u64, u64) {
    let totals = replica.group.shard().account_totals(account).unwrap();
    (totals.bytes, totals.messages)
}

fn mailbox(replica: &Replica, of: &str) -> MailboxId {
    replica.group.shard().mailbox(ALICE, &name(of)).unwrap().unwrap().id
}

fn new_alice() -> (tempfile::TempDir, storage::Volume, Replica) {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    replica.run(Command::CreateAccount { account: ALICE }).unwrap();
    (directory, volume, replica)
}

#[test]
fn the_last_octet_is_given_and_what_is_refused_leaves_nothing() {
    let (_directory, _volume, mut replica) = new_alice();
    replica.run_with(append("INBOX", octets(1000)), body(600)).unwrap();
    let blobs = replica.group.blob_count().unwrap();
    assert_eq!(replica.run_with(append("Sent", octets(1000)), body(401)), Err(MailError::OverQuota));
    assert_eq!(used(&replica, ALICE), (600, 1));
    replica.run_with(append("Sent", octets(1000)), body(400)).unwrap();
    assert_eq!(used(&replica, ALICE), (1000, 2));
    assert_eq!(replica.run_with(append("INBOX", octets(1000)), body(1)), Err(MailError::OverQuota));
    let messages = Quota { octets: None, messages: Some(2) };
    assert_eq!(replica.run_with(append("INBOX", messages), body(0)), Err(MailError::OverQuota));
    // Its body, and the chunks of one that came in pieces, go with the log.
    replica.run_with(Command::Chunk { upload: 7 }, body(300)).unwrap();
    let mut large = append("INBOX", octets(1000));
    if let Command::Append { body, .. } = &mut large {
        *body = BodySource::Upload(7);
    }
    assert_eq!(replica.run(large.clone()), Err(MailError::OverQuota));
    assert_eq!(replica.run(large), Err(MailError::Busy), "the upload is gone");
    assert_eq!(delivered(replica.run_with(deliver(1, &[(ALICE, octets(1000))]), body(1))), [Err(MailError::OverQuota)]);
    replica.group.purge_to(replica.next - 1, marker(0)).unwrap();
    assert_eq!(replica.group.blob_count().unwrap(), blobs + 1);
}

#[test]
fn a_retry_is_told_what_it_was_told_however_much_room_there_is_by_then() {
    let (_directory, _volume, mut replica) = new_alice();
    let stored = replica.run_as(50, append("INBOX", octets(1000)), body(1000));
    assert!(stored.is_ok());
    let refused = replica.run_as(51, append("INBOX", octets(1000)), body(1));
    assert_eq!(refused, Err(MailError::OverQuota));
    assert_eq!(replica.run_as(50, append("INBOX", octets(1000)), body(1000)), stored);
    assert_eq!(replica.run_as(51, append("INBOX", Quota::NONE), body(1)), refused);
    assert_eq!(used(&replica, ALICE), (1000, 1));
    replica.run_as(52, append("INBOX", Quota::NONE), body(1)).unwrap();
}

#[test]
fn a_recipient_over_quota_is_refused_and_the_others_have_it_once() {
    let (_directory, _volume, mut replica) = new_alice();
    replica.run_with(append("INBOX", Quota::NONE), body(900)).unwrap();
    let both = |max| deliver(5, &[(ALICE, octets(max)), (BOB, octets(1000))]);
    assert_eq!(delivered(replica.run_with(both(1000), body(200))), [Err(MailError::OverQuota), Ok(false)]);
    // The sender's retry, as long as there is no room.
    assert_eq!(delivered(replica.run_with(both(1000), body(200))), [Err(MailError::OverQuota), Ok(true)]);
    assert_eq!((used(&replica, ALICE), used(&replica, BOB)), ((900, 1), (200, 1)));
    assert_eq!(delivered(replica.run_with(both(1100), body(200))), [Ok(false), Ok(true)]);
    // What was stored is known also where nothing more would fit.
    assert_eq!(delivered(replica.run_with(both(0), body(200))), [Ok(true), Ok(true)]);
    assert_eq!((used(&replica, ALICE), used(&replica, BOB)), ((1100, 2), (200, 1)));
}

#[test]
fn a_copy_is_all_or_nothing_and_what_moves_adds_nothing() {
    let (_directory, _volume, mut replica) = new_alice();
    for octets in [100, 200, 300] {
        replica.run_with(append("INBOX", Quota::NONE), body(octets)).unwrap();
    }
    let inbox = mailbox(&replica, "INBOX");
    let copy = |uids: (u32, u32), remove_source, quota| Command::Copy {
        account: ALICE,
        from: inbox,
        uids: UidSet::from_range(uids.0, uids.1),
        to: name("Archive"),
        remove_source,
        messages_min: 0,
        quota,
    };
    assert_eq!(replica.run(copy((1, 3), false, octets(1199))), Err(MailError::OverQuota));
    assert_eq!(used(&replica, ALICE), (600, 3));
    replica.run(copy((1, 2), false, octets(900))).unwrap();
    assert_eq!(used(&replica, ALICE), (900, 5), "a shared body counts twice");
    let five = Quota { octets: None, messages: Some(5) };
    assert_eq!(replica.run(copy((3, 3), false, five)), Err(MailError::OverQuota));
    // Above what is allowed by now: a copy of nothing, moves and renames go on.
    replica.run(copy((9, 9), false, octets(0))).unwrap();
    replica.run(copy((1, 1), true, octets(0))).unwrap();
    replica.run(Command::RenameMailbox { account: ALICE, from: name("INBOX"), to: name("Old") }).unwrap();
    replica.run(Command::RenameMailbox { account: ALICE, from: name("Archive"), to: name("Older") }).unwrap();
    assert_eq!(used(&replica, ALICE), (900, 5));
}

#[test]
fn what_is_removed_makes_room_at_once() {
    let (_directory, _volume, mut replica) = new_alice();
    let full = octets(1000);
    replica.run_with(append("INBOX", full), body(400)).unwrap();
    replica.run_with(append("Trash", full), body(600)).unwrap();
    let expunge = |replica: &Replica| Command::Expunge {
        account: ALICE,
        mailbox: mailbox(replica, "INBOX"),
        uids: None,
        only_deleted: false,
    };
    let command = expunge(&replica);
    replica.run(command).unwrap();
    assert_eq!(used(&replica, ALICE), (600, 1));
    replica.run_with(append("INBOX", full), body(400)).unwrap();
    replica.run(Command::DeleteMailbox { account: ALICE, name: name("Trash") }).unwrap();
    assert_eq!(used(&replica, ALICE), (400, 1));
    replica.run_with(append("INBOX", full), body(600)).unwrap();
    assert_eq!(used(&replica, ALICE), (1000, 2));
    replica.run(Command::DropAccount { account: ALICE }).unwrap();
    assert_eq!(used(&replica, ALICE), (0, 0));
    replica.run_with(append("INBOX", full), body(1000)).unwrap();
}

/// Written before there were quotas, or without one: read as it was written.
#[test]
fn a_command_without_a_quota_is_read_for_ever() {
    let before =
        b"\x01\x08\xd0\x0f\x1a\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01R\x15\x08\x01\x12\x05INBOX\x1a\0\"\x002\x06digest";
    let now = append("INBOX", Quota::NONE).encode(Stamp { format: 1, ..stamp(1) }, 1);
    assert_eq!(now.escape_ascii().to_string(), before.escape_ascii().to_string());
    assert_eq!(Command::decode(before).unwrap().2, append("INBOX", Quota::NONE));
}
