//! Rules of mailboxes that a random walk does not reach: limits, age, names, and where bodies end.

mod common;

use bytes::Bytes;
use common::{Replica, append, entry, marker, name, open, stamp};
use storage::{
    BodyId, BodySource, Command, Delivered, Outcome, Recipient, ShardEvent, ShardEventKind, StorageError, StoreAction,
};
use types::{
    AccountId, Flags, InternalDate, Keyword, MailError, MailboxId, ModSeq, Quota, SpecialUse, SystemFlags, Uid, UidSet,
};

const ALICE: AccountId = AccountId(1);
const DAY_S: i64 = 24 * 3600;

fn deliver(fingerprint: u8) -> Command {
    Command::Deliver {
        recipients: vec![Recipient { account: ALICE, fingerprint: [fingerprint; 32], quota: Quota::NONE }],
        body: BodySource::Inline,
        digest: Bytes::from_static(b"digest"),
        date: InternalDate { unix_s: 77, offset_min: -120 },
        settle: Vec::new(),
    }
}

fn delivered(answer: Result<Outcome, MailError>) -> Delivered {
    match answer {
        Ok(Outcome::Delivered(list)) => list.into_iter().next().unwrap().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn some_body() -> Option<Bytes> {
    Some(Bytes::from(vec![b'm'; 3000]))
}

fn inbox(replica: &Replica) -> MailboxId {
    replica.group.shard().mailbox(ALICE, &name("INBOX")).unwrap().unwrap().id
}

fn expunge_all(replica: &mut Replica) {
    let mailbox = inbox(replica);
    replica.run(Command::Expunge { account: ALICE, mailbox, uids: None, only_deleted: false }).unwrap();
}

#[test]
fn an_account_begins_with_the_mailboxes_that_clients_expect() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    let shard = replica.group.shard();
    assert!(!shard.account_exists(ALICE).unwrap());
    replica.run(Command::CreateAccount { account: ALICE }).unwrap();
    replica.run(Command::CreateAccount { account: ALICE }).unwrap();
    let listed: Vec<_> =
        shard.mailboxes(ALICE).unwrap().into_iter().map(|info| (info.name.to_string(), info.special_use)).collect();
    let expected = [
        ("Archive", Some(SpecialUse::Archive)),
        ("Drafts", Some(SpecialUse::Drafts)),
        ("INBOX", None),
        ("Junk", Some(SpecialUse::Junk)),
        ("Sent", Some(SpecialUse::Sent)),
        ("Trash", Some(SpecialUse::Trash)),
    ];
    assert_eq!(listed, expected.map(|(name, special)| (name.to_owned(), special)));
    assert_eq!(shard.subscriptions(ALICE).unwrap().len(), 6);
}

#[test]
fn a_retried_delivery_is_known_until_it_is_settled() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    let first = delivered(replica.run_with(deliver(5), some_body()));
    let again = delivered(replica.run_with(deliver(5), some_body()));
    assert_eq!(again, Delivered { duplicate: true, ..first });
    replica.run(Command::Settle { fingerprints: vec![[5; 32], [6; 32]] }).unwrap();
    let third = delivered(replica.run_with(deliver(5), some_body()));
    assert_eq!((third.uid, third.duplicate), (Uid(2), false));
    // The body of the retry belongs to nobody.
    assert_eq!(replica.group.shard().body_chunks(BodyId(2)).unwrap(), None);
}

#[test]
fn a_delivery_settles_earlier_ones_in_its_own_entry() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    replica.run_with(deliver(5), some_body()).unwrap();
    let mut other = deliver(6);
    if let Command::Deliver { settle, .. } = &mut other {
        *settle = vec![[5; 32], [7; 32]];
    }
    assert_eq!(delivered(replica.run_with(other.clone(), some_body())).uid, Uid(2));
    // Tried again it settles again, and is known itself.
    assert!(delivered(replica.run_with(other, some_body())).duplicate);
    let again = delivered(replica.run_with(deliver(5), some_body()));
    assert_eq!((again.uid, again.duplicate), (Uid(3), false));
}

#[test]
fn unsettled_fingerprints_are_forgotten_after_a_week() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    replica.run_with(deliver(1), some_body()).unwrap();
    replica.now_s += 6 * DAY_S;
    replica.run_with(deliver(2), some_body()).unwrap();
    assert!(delivered(replica.run_with(deliver(1), some_body())).duplicate);
    replica.now_s += 2 * DAY_S;
    // Sweeps what it does not meet itself.
    replica.run_with(deliver(3), some_body()).unwrap();
    assert!(!delivered(replica.run_with(deliver(1), some_body())).duplicate);
    assert!(delivered(replica.run_with(deliver(2), some_body())).duplicate);
    // A clock that was set back does not hide anything from a later sweep.
    replica.now_s -= 30 * DAY_S;
    replica.run_with(deliver(9), some_body()).unwrap();
    replica.now_s += 30 * DAY_S;
    replica.run_with(deliver(4), some_body()).unwrap();
    assert!(!delivered(replica.run_with(deliver(9), some_body())).duplicate);
}

#[test]
fn the_newest_memory_is_known_whatever_has_been_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    let newest = |replica: &Replica| replica.group.shard().newest_remembered().unwrap();
    assert_eq!(newest(&replica), None);
    replica.run_with(deliver(1), some_body()).unwrap();
    assert_eq!(newest(&replica), Some(replica.now_s * 1000));
    // Set back, and back again: the newest stays.
    let first = replica.now_s;
    replica.now_s -= DAY_S;
    replica.run_with(deliver(2), some_body()).unwrap();
    assert_eq!(newest(&replica), Some(first * 1000));
    replica.now_s = first + 3600;
    replica.run(Command::CreateMailbox { account: ALICE, name: name("Later"), special_use: None }).unwrap();
    assert_eq!(newest(&replica), Some(replica.now_s * 1000));
    replica.run(Command::Settle { fingerprints: vec![[1; 32], [2; 32]] }).unwrap();
    assert_eq!(newest(&replica), Some(replica.now_s * 1000));
}

#[test]
fn an_upload_becomes_one_body_and_an_abandoned_one_is_swept() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    for (upload, text) in [(1, "abc"), (2, "lost"), (1, "defg")] {
        replica.run_with(Command::Chunk { upload }, Some(Bytes::from(text))).unwrap();
    }
    let from_upload = |upload| {
        let Command::Deliver { recipients, digest, date, settle, .. } = deliver(upload as u8) else { unreachable!() };
        Command::Deliver { recipients, body: BodySource::Upload(upload), digest, date, settle }
    };
    let one = delivered(replica.run(from_upload(1)));
    assert_eq!(one.uid, Uid(1));
    let shard = replica.group.shard();
    let body = BodyId(replica.next - 1);
    assert_eq!(shard.body_chunks(body).unwrap().unwrap(), [(1, 3), (3, 4)]);
    assert_eq!(shard.body_range(body, 2, 3).unwrap().unwrap().concat(), b"cde");
    assert_eq!(shard.body_range(body, 3, 2).unwrap().unwrap(), [Bytes::from("de")]);
    assert_eq!(shard.body_range(body, 7, 2).unwrap().unwrap().concat(), b"");
    assert_eq!(shard.body_range(body, u64::MAX, u64::MAX).unwrap().unwrap().concat(), b"");
    replica.now_s += 3601;
    replica.run_with(deliver(7), some_body()).unwrap();
    assert_eq!(replica.run(from_upload(2)), Err(MailError::Busy));
    // Without a body there is no message.
    assert!(matches!(replica.run(deliver(8)), Err(MailError::Invalid(_))));
}

#[test]
fn a_body_ends_when_no_message_refers_to_it_and_the_log_is_purged() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    replica.run_with(deliver(1), some_body()).unwrap();
    let copy = Command::Copy {
        account: ALICE,
        from: inbox(&replica),
        uids: UidSet::from_range(1, 1),
        to: name("Archive"),
        remove_source: false,
        messages_min: 0,
        quota: Quota::NONE,
    };
    replica.run(copy).unwrap();
    expunge_all(&mut replica);
    replica.group.purge_to(2, marker(2)).unwrap();
    let shard = replica.group.shard();
    assert_eq!(shard.body_range(BodyId(1), 0, 3).unwrap().unwrap().concat(), b"mmm");
    let archive = shard.mailbox(ALICE, &name("Archive")).unwrap().unwrap();
    assert_eq!((archive.messages, archive.bytes), (1, 3000));
    let gone = Command::Expunge { account: ALICE, mailbox: archive.id, uids: None, only_deleted: false };
    replica.run_with(deliver(2), some_body()).unwrap();
    replica.run(gone).unwrap();
    expunge_all(&mut replica);
    assert_eq!(shard.body_range(BodyId(1), 0, 3).unwrap(), None);
    // A follower may still need the second one: its entry is in the log.
    replica.group.purge_to(3, marker(3)).unwrap();
    assert!(replica.group.read(4, 5, 1).unwrap()[0].body.is_some());
    assert_eq!(replica.group.blob_count().unwrap(), 1);
    assert_eq!(shard.account_totals(ALICE).unwrap().bytes, 0);
    // The log index of a purged body can be read no more by any way; the group goes on.
    replica.group.purge_to(replica.next - 1, marker(0)).unwrap();
    assert!(matches!(replica.group.read(4, 5, 1), Err(StorageError::Purged { .. })));
    assert_eq!(replica.group.blob_count().unwrap(), 0);
    replica.run_with(deliver(3), some_body()).unwrap();
}

/// RFC 2180 §4.1: a session that was told a literal's length gets its octets, though another expunges the message.
#[test]
fn a_body_that_is_being_read_outlives_its_last_message_and_the_purge() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    replica.run_with(Command::Chunk { upload: 1 }, Some(Bytes::from(vec![b'a'; 700]))).unwrap();
    let last = Command::Deliver {
        recipients: vec![Recipient { account: ALICE, fingerprint: [1; 32], quota: Quota::NONE }],
        body: BodySource::Upload(1),
        digest: Bytes::from_static(b"digest"),
        date: InternalDate::utc(1),
        settle: Vec::new(),
    };
    replica.run_with(last, Some(Bytes::from(vec![b'b'; 300]))).unwrap();
    let shard = replica.group.shard();
    let pins = [1, 2].map(|_| shard.pin_body(BodyId(2)).unwrap().unwrap());
    expunge_all(&mut replica);
    assert!(shard.pin_body(BodyId(2)).unwrap().is_none());
    let mut whole = vec![b'a'; 700];
    whole.resize(1000, b'b');
    for pin in pins {
        replica.group.purge_to(replica.next - 1, marker(0)).unwrap();
        assert_eq!(pin.read(0, u64::MAX).unwrap().concat(), whole);
        assert_eq!(pin.read(650, 100).unwrap().concat(), whole[650..750]);
        assert_eq!(replica.group.blob_count().unwrap(), 2);
    }
    // Let go, it goes with the next purge.
    replica.run_with(deliver(3), some_body()).unwrap();
    expunge_all(&mut replica);
    replica.group.purge_to(replica.next - 1, marker(0)).unwrap();
    assert_eq!(replica.group.blob_count().unwrap(), 0);
}

#[test]
fn a_deleted_and_recreated_mailbox_has_a_greater_uid_validity_even_in_the_same_second() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    let shard = replica.group.shard();
    let create = || Command::CreateMailbox { account: ALICE, name: name("a/b/c"), special_use: None };
    let mut last = (MailboxId(0), types::UidValidity(0));
    for clock in [0, 0, -1000, 5] {
        replica.now_s += clock;
        replica.run(create()).unwrap();
        let info = shard.mailbox(ALICE, &name("a/b/c")).unwrap().unwrap();
        assert!(info.id > last.0 && info.uid_validity > last.1);
        last = (info.id, info.uid_validity);
        replica.run(Command::DeleteMailbox { account: ALICE, name: name("a/b/c") }).unwrap();
        assert_eq!(shard.select(ALICE, info.id), Err(MailError::MailboxGone));
    }
    // Its superior names came with it, and stay.
    assert!(shard.mailbox(ALICE, &name("a/b")).unwrap().is_some());
}

#[test]
fn renaming_inbox_moves_its_messages_and_leaves_it_empty() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    for number in 1..=3 {
        replica.run_with(deliver(number), some_body()).unwrap();
    }
    let shard = replica.group.shard();
    let before = shard.mailbox(ALICE, &name("INBOX")).unwrap().unwrap();
    let rename = |from, to| Command::RenameMailbox { account: ALICE, from: name(from), to: name(to) };
    replica.run(rename("INBOX", "old/2026")).unwrap();
    let after = shard.mailbox(ALICE, &name("INBOX")).unwrap().unwrap();
    assert_eq!((after.id, after.uid_validity, after.uid_next), (before.id, before.uid_validity, Some(Uid(4))));
    assert_eq!(after.messages, 0);
    let moved = shard.mailbox(ALICE, &name("old/2026")).unwrap().unwrap();
    assert_eq!((moved.messages, moved.uid_next), (3, Some(Uid(4))));
    assert!(moved.uid_validity > before.uid_validity);
    assert_eq!(shard.changes(ALICE, before.id, before.highest_mod_seq).unwrap().vanished.to_string(), "1:3");
    for (from, to) in [("old", "old/x"), ("INBOX", "INBOX/x/y")] {
        let answer = replica.run(rename(from, to));
        assert_eq!(answer.is_ok(), from == "INBOX", "{from} to {to}");
    }
    assert_eq!(replica.run(rename("old", "Sent")), Err(MailError::MailboxExists));
    assert_eq!(replica.run(rename("gone", "Sent")), Err(MailError::NoSuchMailbox));
    assert_eq!(replica.run(rename("old", "INBOX")), Err(MailError::MailboxExists));
}

#[test]
fn inbox_cannot_be_deleted_and_a_special_use_is_given_once() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    let delete = |text| Command::DeleteMailbox { account: ALICE, name: name(text) };
    assert!(matches!(replica.run(delete("INBOX")), Err(MailError::CannotDo(_))));
    let create = |text, special_use| Command::CreateMailbox { account: ALICE, name: name(text), special_use };
    assert!(matches!(replica.run(create("Outbox", Some(SpecialUse::Sent))), Err(MailError::CannotDo(_))));
    replica.run(delete("Sent")).unwrap();
    replica.run(create("Outbox", Some(SpecialUse::Sent))).unwrap();
    assert!(matches!(replica.run(create("Out", Some(SpecialUse::Sent))), Err(MailError::CannotDo(_))));
}

#[test]
fn the_keyword_table_has_a_limit_and_copies_keep_keywords_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    replica.run_with(deliver(1), some_body()).unwrap();
    let mailbox = inbox(&replica);
    let store = |from: usize, to: usize| {
        let mut flags = Flags::default();
        (from..to).for_each(|n| flags.insert_keyword(Keyword::parse(&format!("k{n}")).unwrap()));
        let (action, unchanged_since) = (StoreAction::Add, None);
        Command::Store { account: ALICE, mailbox, uids: UidSet::from_range(1, 1), action, flags, unchanged_since }
    };
    replica.run(store(0, 128)).unwrap();
    assert!(matches!(replica.run(store(127, 129)), Err(MailError::Limit(_))));
    let to = name("Archive");
    replica
        .run(Command::Store {
            account: ALICE,
            mailbox,
            uids: UidSet::from_range(1, 1),
            action: StoreAction::Replace,
            flags: Flags { system: SystemFlags::FLAGGED, keywords: vec![Keyword::parse("K127").unwrap()] },
            unchanged_since: None,
        })
        .unwrap();
    let uids = UidSet::from_range(1, 1);
    let (remove_source, messages_min, quota) = (true, 0, Quota::NONE);
    let to_archive = to.clone();
    let moved =
        Command::Copy { account: ALICE, from: mailbox, uids, to: to_archive, remove_source, messages_min, quota };
    replica.run(moved).unwrap();
    let shard = replica.group.shard();
    let archive = shard.mailbox(ALICE, &to).unwrap().unwrap();
    let mut flags = None;
    shard
        .messages(ALICE, archive.id, &UidSet::from_range(1, 9), |meta| {
            flags = Some((meta.flags, meta.internal_date));
            true
        })
        .unwrap();
    let (flags, date) = flags.unwrap();
    assert_eq!(flags.names().collect::<Vec<_>>(), ["\\Flagged", "k127"]);
    assert_eq!(date, InternalDate { unix_s: 77, offset_min: -120 });
    assert_eq!(archive.keywords.len(), 1);
}

/// RFC 3501 §6.3.4, §6.3.5.
#[test]
fn a_name_without_a_mailbox_is_renamed_with_what_is_below_it() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    let create = |text| Command::CreateMailbox { account: ALICE, name: name(text), special_use: None };
    let rename = |from, to| Command::RenameMailbox { account: ALICE, from: name(from), to: name(to) };
    let delete = |text| Command::DeleteMailbox { account: ALICE, name: name(text) };
    replica.run(create("a/kid/deep")).unwrap();
    replica.run(create("taken/kid")).unwrap();
    replica.run(delete("a")).unwrap();
    let shard = replica.group.shard();
    let kid = shard.mailbox(ALICE, &name("a/kid")).unwrap().unwrap();
    assert!(matches!(replica.run(delete("a")), Err(MailError::CannotDo(_))));
    assert!(matches!(replica.run(rename("a", "a/b")), Err(MailError::CannotDo(_))));
    assert_eq!(replica.run(rename("a", "a")), Err(MailError::MailboxExists));
    assert_eq!(replica.run(rename("a", "taken")), Err(MailError::MailboxExists));
    replica.run(rename("a", "new/b")).unwrap();
    assert_eq!(shard.mailbox(ALICE, &name("new/b/kid")).unwrap().map(|info| info.id), Some(kid.id));
    for (text, is_there) in [("new/b/kid/deep", true), ("new", true), ("new/b", false), ("a/kid", false)] {
        assert_eq!(shard.mailbox(ALICE, &name(text)).unwrap().is_some(), is_there, "{text}");
    }
    assert_eq!(replica.run(rename("a", "c")), Err(MailError::NoSuchMailbox));
    assert_eq!(replica.run(delete("a")), Err(MailError::NoSuchMailbox));
}

/// RFC 3501 §6.4.7: COPY is all or nothing.
#[test]
fn a_copy_that_needs_a_message_that_is_gone_does_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    for number in 1..=3 {
        replica.run_with(deliver(number), some_body()).unwrap();
    }
    let from = inbox(&replica);
    let uids = UidSet::from_range(2, 2);
    replica.run(Command::Expunge { account: ALICE, mailbox: from, uids: Some(uids), only_deleted: false }).unwrap();
    let copy = |remove_source, messages_min| {
        let (uids, to, quota) = (UidSet::from_range(1, 3), name("Archive"), Quota::NONE);
        Command::Copy { account: ALICE, from, uids, to, remove_source, messages_min, quota }
    };
    for remove_source in [false, true] {
        assert_eq!(replica.run(copy(remove_source, 3)), Err(MailError::MessagesGone));
    }
    let shard = replica.group.shard();
    assert_eq!(shard.mailbox(ALICE, &name("Archive")).unwrap().unwrap().messages, 0);
    let Ok(Outcome::Copied { from: copied, .. }) = replica.run(copy(true, 2)) else { panic!("not copied") };
    assert_eq!(copied, [1, 3].into_iter().collect());
    assert_eq!(shard.mailbox(ALICE, &name("INBOX")).unwrap().unwrap().messages, 0);
}

#[test]
fn unchanged_since_leaves_newer_messages_alone() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    replica.run_with(deliver(1), some_body()).unwrap();
    replica.run_with(deliver(2), some_body()).unwrap();
    let store = Command::Store {
        account: ALICE,
        mailbox: inbox(&replica),
        uids: UidSet::from_range(1, 9),
        action: StoreAction::Add,
        flags: Flags::system(SystemFlags::SEEN),
        unchanged_since: Some(ModSeq(1)),
    };
    let seen = Flags::system(SystemFlags::SEEN);
    let expected = Outcome::Stored {
        changed: vec![(Uid(1), seen, ModSeq(3))],
        modified: UidSet::from_range(2, 2),
        mod_seq: ModSeq(3),
    };
    assert_eq!(replica.run(store), Ok(expected));
}

#[test]
fn changes_beyond_the_limit_are_trimmed_and_whoever_was_away_too_long_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    replica.run_with(deliver(1), some_body()).unwrap();
    let (shard, mailbox) = (replica.group.shard(), inbox(&replica));
    // Straight to apply: ten thousand synced appends would say nothing more.
    for index in 2..10_000u64 {
        let command = Command::Store {
            account: ALICE,
            mailbox,
            uids: UidSet::from_range(1, 1),
            action: if index % 2 == 0 { StoreAction::Add } else { StoreAction::Remove },
            flags: Flags::system(SystemFlags::SEEN),
            unchanged_since: None,
        };
        let (answer, events) = shard.apply(index, stamp(1_700_000_000), command, None, marker(index)).unwrap();
        assert!(answer.is_ok());
        let kind = ShardEventKind::Mailbox { id: mailbox, mod_seq: ModSeq(index) };
        assert_eq!(events, [ShardEvent { account: ALICE, kind }]);
    }
    assert!(!shard.changes(ALICE, mailbox, ModSeq(1)).unwrap().complete);
    let recent = shard.changes(ALICE, mailbox, ModSeq(9_999 - 8_192)).unwrap();
    assert!(recent.complete && recent.changed.to_string() == "1");
    assert!(!shard.changes(ALICE, mailbox, ModSeq(9_999 - 8_192 - 256)).unwrap().complete);
}

#[test]
fn selecting_thirty_thousand_messages_reads_thirty_pages() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    let mut command = deliver(0);
    let shard = replica.group.shard();
    let body = some_body();
    append(&replica.group, vec![entry(0, "", None)]);
    replica.next = 1;
    for index in 1..=30_000u64 {
        if let Command::Deliver { recipients, .. } = &mut command {
            recipients[0].fingerprint[..8].copy_from_slice(&index.to_be_bytes());
        }
        let len = body.as_ref().map(|body| body.len() as u64);
        shard.apply(index, stamp(1_700_000_000), command.clone(), len, marker(index)).unwrap().0.unwrap();
    }
    let mailbox = inbox(&replica);
    assert_eq!(shard.page_count(ALICE, mailbox).unwrap(), 30);
    let selection = shard.select(ALICE, mailbox).unwrap();
    assert_eq!((selection.uids.to_string().as_str(), selection.first_unseen), ("1:30000", Some(Uid(1))));
}

#[test]
fn a_command_that_was_refused_still_moves_the_marker() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    let delete = Command::DeleteMailbox { account: ALICE, name: name("nope") };
    assert_eq!(replica.run(delete), Err(MailError::NoSuchMailbox));
    assert_eq!(replica.group.applied().unwrap().unwrap(), marker(1));
    assert!(!replica.group.shard().account_exists(ALICE).unwrap());
}

#[test]
fn commands_are_read_back_from_their_bytes_and_damage_is_refused() {
    let command = deliver(3);
    let bytes = command.encode(stamp(-5), u128::MAX);
    assert_eq!(Command::decode(&bytes).unwrap(), (stamp(-5), u128::MAX, command));
    assert!(Command::decode(&[]).is_err());
    assert!(Command::decode(&[9]).is_err());
    assert!(Command::decode(&[1]).is_err());
    for cut in 0..bytes.len() {
        let _ = Command::decode(&bytes[..cut]);
    }
}

#[test]
fn a_request_is_known_for_ten_minutes_and_only_to_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    let create =
        |account: u64| Command::CreateMailbox { account: AccountId(account), name: name("Work"), special_use: None };
    let first = replica.run_as(7, create(1), None);
    assert!(matches!(first, Ok(Outcome::MailboxCreated(_))), "{first:?}");
    assert_eq!(replica.run_as(7, create(1), None), first);
    // A new request is judged by what is there.
    assert_eq!(replica.run_as(8, create(1), None), Err(MailError::MailboxExists));
    // Somebody else's, or another kind of command: no answer leaks.
    assert!(matches!(replica.run_as(7, create(2), None), Err(MailError::Invalid(_))));
    let delete = Command::DeleteMailbox { account: AccountId(1), name: name("Work") };
    assert!(matches!(replica.run_as(7, delete, None), Err(MailError::Invalid(_))));
    replica.now_s += 11 * 60;
    replica.run_as(9, create(3), None).unwrap();
    assert_eq!(replica.run_as(7, create(1), None), Err(MailError::MailboxExists));
}
