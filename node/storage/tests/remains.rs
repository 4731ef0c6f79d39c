//! A mailbox goes at once, however large it is; what it leaves behind is cleared a step at a time, on every replica alike.

mod common;

use bytes::Bytes;
use common::{Replica, SHARD, blocks, name, open};
use storage::{BodySource, Command, MailboxInfo, MoveStep, MovedMailbox, MovedPart, Outcome, Volume};
use types::{AccountId, Flags, InternalDate, MailError, Quota, UidSet};

const ALICE: AccountId = AccountId(1);
const MESSAGES: u32 = 250;
const STEP: Command = Command::ClearRemains { messages_max: 100 };

fn append(to: &str) -> Command {
    Command::Append {
        account: ALICE,
        mailbox: name(to),
        flags: Flags::default(),
        date: InternalDate::default(),
        body: BodySource::Inline,
        digest: Bytes::from_static(b"digest"),
        quota: Quota::NONE,
    }
}

fn create(text: &str) -> Command {
    Command::CreateMailbox { account: ALICE, name: name(text), special_use: None }
}

fn delete(text: &str) -> Command {
    Command::DeleteMailbox { account: ALICE, name: name(text) }
}

fn mailbox(replica: &Replica, text: &str) -> MailboxInfo {
    replica.group.shard().mailbox(ALICE, &name(text)).unwrap().unwrap()
}

fn has_remains(replica: &Replica) -> bool {
    replica.group.shard().has_remains().unwrap()
}

/// Bodies that are left once the log is purged.
fn bodies(replica: &Replica) -> usize {
    replica.group.purge_to(replica.next - 1, Bytes::new()).unwrap();
    replica.group.blob_count().unwrap()
}

/// A mailbox of many messages, of which the first ten are copied to INBOX.
fn filled(volume: &Volume) -> Replica {
    let mut replica = Replica::new(volume);
    replica.run(create("large")).unwrap();
    for _ in 0..MESSAGES {
        replica.run_with(append("large"), Some(Bytes::from_static(b"body"))).unwrap();
    }
    let copy = Command::Copy {
        account: ALICE,
        from: mailbox(&replica, "large").id,
        uids: UidSet::from_range(1, 10),
        to: name("INBOX"),
        remove_source: false,
        messages_min: 10,
        quota: Quota::NONE,
    };
    replica.run(copy).unwrap();
    replica
}

fn commands_to_the_end() -> Vec<(Command, Option<Bytes>)> {
    let body = Some(Bytes::from_static(b"another"));
    vec![(create("large"), None), (append("large"), body), (STEP, None), (STEP, None)]
}

#[test]
fn a_large_mailbox_goes_at_once_and_its_messages_a_step_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut volume = open(directory.path());
    let mut replica = filled(&volume);
    let before = mailbox(&replica, "large");
    replica.run(delete("large")).unwrap();
    // It counts for nothing, and its bodies are there.
    let shard = replica.group.shard();
    let totals = shard.account_totals(ALICE).unwrap();
    assert_eq!((totals.mailboxes, totals.messages, totals.bytes), (6, 10, 40));
    assert_eq!((shard.totals().unwrap().messages, shard.totals().unwrap().bytes), (10, 40));
    assert_eq!(shard.mailbox(ALICE, &name("large")).unwrap(), None);
    assert_eq!(shard.mailbox_by_id(ALICE, before.id).unwrap(), None);
    assert!(matches!(shard.changes(ALICE, before.id, types::ModSeq(0)), Err(MailError::MailboxGone)));
    assert_eq!(shard.page_count(ALICE, before.id).unwrap(), 0);
    assert_eq!(bodies(&replica), 250);

    replica.run(STEP).unwrap();
    assert_eq!(bodies(&replica), 160, "ten are another mailbox's too");
    // A replica that comes now, and one that starts again, go on where it was.
    let (marker, exported) = blocks(&replica.group);
    let other_directory = tempfile::tempdir().unwrap();
    let other_volume = open(other_directory.path());
    let other = other_volume.group(SHARD).unwrap();
    let mut installer = other.installer(replica.next - 1).unwrap();
    exported.iter().for_each(|block| installer.push(block).unwrap());
    installer.finish(marker).unwrap();
    let (next, now_s) = (replica.next, replica.now_s);
    let mut other = Replica { group: other, next, now_s, format: replica.format };
    drop((shard, replica));
    drop(volume);
    volume = open(directory.path());
    let mut replica = Replica { next, now_s, ..Replica::new(&volume) };
    for (command, body) in commands_to_the_end() {
        assert!(has_remains(&replica));
        let answer = replica.run_with(command.clone(), body.clone());
        assert_eq!(other.run_with(command, body), answer);
        assert_eq!(blocks(&other.group), blocks(&replica.group));
        if let Ok(Outcome::MailboxCreated(id)) = answer {
            assert!(id > before.id);
            assert!(mailbox(&replica, "large").uid_validity > before.uid_validity);
        }
    }
    for replica in [&replica, &other] {
        assert!(!has_remains(replica));
        assert_eq!(bodies(replica), 11);
        assert_eq!(mailbox(replica, "large").messages, 1);
        assert_eq!(replica.group.shard().uids(ALICE, before.id).unwrap(), UidSet::new());
    }
}

#[test]
fn an_account_is_dropped_at_once_and_gives_no_id_out_again_that_has_remains() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = filled(&volume);
    let large = mailbox(&replica, "large");
    replica.run(Command::DropAccount { account: ALICE }).unwrap();
    let shard = replica.group.shard();
    assert!(!shard.account_exists(ALICE).unwrap());
    assert_eq!(shard.totals().unwrap(), storage::ShardTotals::default());
    assert_eq!(shard.subscriptions(ALICE).unwrap(), []);
    replica.run(Command::CreateAccount { account: ALICE }).unwrap();
    for info in shard.mailboxes(ALICE).unwrap() {
        assert!(info.id > large.id && info.uid_validity > large.uid_validity && info.messages == 0, "{info:?}");
    }
    replica.run_with(append("INBOX"), Some(Bytes::from_static(b"body"))).unwrap();
    let mut steps = 0;
    while has_remains(&replica) {
        replica.run(STEP).unwrap();
        steps += 1;
    }
    assert_eq!(steps, 3, "of 260 messages");
    assert_eq!(bodies(&replica), 1);
    let totals = shard.account_totals(ALICE).unwrap();
    assert_eq!((totals.mailboxes, totals.messages, totals.bytes), (6, 1, 4));
}

/// Replicas of the program before do so, and all must come to the same.
#[test]
fn a_command_of_the_first_format_takes_the_messages_with_their_mailbox() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica { format: 1, ..filled(&volume) };
    replica.run(delete("large")).unwrap();
    assert!(!has_remains(&replica));
    assert_eq!(bodies(&replica), 10);
    replica.run(Command::DropAccount { account: ALICE }).unwrap();
    assert!(!has_remains(&replica));
    assert_eq!(bodies(&replica), 0);
}

#[test]
fn a_mailbox_that_comes_with_an_account_waits_until_what_it_left_here_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = filled(&volume);
    let large = mailbox(&replica, "large");
    replica.run(Command::DropAccount { account: ALICE }).unwrap();
    replica.run(Command::MoveAccount { account: ALICE, id: 5, step: MoveStep::Begin { bringer: 9 } }).unwrap();
    let moved =
        MovedMailbox { id: large.id.0, name: "large".to_owned(), uid_validity: 7, uid_next: 8, ..Default::default() };
    let parts = vec![MovedPart::Mailbox(moved)];
    let digest = Bytes::new();
    let import = Command::Import { account: ALICE, id: 5, bringer: 9, parts, body: None, digest };
    assert_eq!(replica.run(import.clone()), Err(MailError::Busy));
    while has_remains(&replica) {
        replica.run(STEP).unwrap();
    }
    replica.run(import).unwrap();
    assert_eq!(mailbox(&replica, "large").messages, 0);
}
