//! Mailboxes against a plain in-memory model: random commands, every answer and the whole state compared, over
//! reopens, on two replicas, and through a snapshot.

#[path = "../common/mod.rs"]
mod common;
mod plain;

use std::collections::BTreeSet;

use bytes::Bytes;
use common::{Replica, SHARD, append, blocks, entry, marker, marker_index, name, open, stamp};
use plain::{Account, Answer, Mailbox, Model, keywords};
use proptest::prelude::{any, prop, prop_assert_eq, proptest};
use storage::{
    BodyId, BodySource, Command, Outcome, Recipient, ScrubOptions, ScrubProgress, ShardState, ShardTotals, StoreAction,
    Volume,
};
use types::{
    AccountId, Flags, InternalDate, Keyword, MailError, MailboxId, MailboxName, ModSeq, Quota, SystemFlags, Uid,
    UidSet, format,
};

/// Errors are compared by kind, flags of STORE by the listing that follows.
fn comparable(answer: Answer) -> Answer {
    match answer {
        Err(MailError::CannotDo(_)) => Err(MailError::CannotDo(String::new())),
        Err(MailError::Invalid(_)) => Err(MailError::Invalid(String::new())),
        Ok(Outcome::Stored { changed, modified, mod_seq }) => {
            let changed = changed.into_iter().map(|(uid, _, mod_seq)| (uid, Flags::default(), mod_seq)).collect();
            Ok(Outcome::Stored { changed, modified, mod_seq })
        }
        other => other,
    }
}

fn compare(shard: &ShardState, model: &Model) {
    for id in 1..=2 {
        let id = AccountId(id);
        let nothing = Account::default();
        let account = model.accounts.get(&id.0).unwrap_or(&nothing);
        assert_eq!(shard.account_exists(id).unwrap(), model.accounts.contains_key(&id.0));
        let listed = shard.mailboxes(id).unwrap();
        assert_eq!(
            listed.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(),
            account.mailboxes.keys().map(String::as_str).collect::<Vec<_>>()
        );
        let subscriptions = shard.subscriptions(id).unwrap();
        assert!(subscriptions.iter().map(MailboxName::as_str).eq(account.subscriptions.iter().map(String::as_str)));
        let totals = shard.account_totals(id).unwrap();
        let all = || account.mailboxes.values().flat_map(|one| one.messages.values());
        assert_eq!(totals.mailboxes as usize, account.mailboxes.len());
        assert_eq!(totals.messages as usize, all().count());
        assert_eq!(totals.bytes as usize, all().map(|message| model.bodies[&message.body].len()).sum::<usize>());
        for info in listed {
            let mailbox = &account.mailboxes[info.name.as_str()];
            assert_eq!(shard.mailbox(id, &info.name).unwrap().as_ref(), Some(&info));
            assert_eq!(shard.mailbox_by_id(id, info.id).unwrap().as_ref(), Some(&info));
            compare_mailbox(shard, id, info.id, mailbox, model);
        }
    }
    let existing: Vec<AccountId> = model.accounts.keys().copied().map(AccountId).collect();
    assert_eq!(shard.accounts_from(AccountId(0), 10).unwrap(), existing);
    assert_eq!(
        shard.accounts_from(AccountId(2), 1).unwrap(),
        existing.into_iter().filter(|id| id.0 == 2).collect::<Vec<_>>()
    );
    // Counted by the first call, kept up by each command from then on.
    let each = model.accounts.keys().map(|id| shard.account_totals(AccountId(*id)).unwrap());
    let expected = each.fold(ShardTotals::default(), |sum, one| ShardTotals {
        accounts: sum.accounts + 1,
        messages: sum.messages + one.messages,
        bytes: sum.bytes + one.bytes,
    });
    assert_eq!(shard.totals().unwrap(), expected);
    assert_eq!(shard.has_remains().unwrap(), !model.remains.is_empty());
}

fn compare_mailbox(shard: &ShardState, account: AccountId, id: MailboxId, mailbox: &Mailbox, model: &Model) {
    let selection = shard.select(account, id).unwrap();
    let info = &selection.info;
    let having = |flag: SystemFlags, on: bool| -> UidSet {
        mailbox.messages.iter().filter(|(_, one)| one.system.contains(flag) == on).map(|(uid, _)| *uid).collect()
    };
    assert_eq!(info.id.0, mailbox.id);
    assert_eq!(info.uid_validity.0, mailbox.uid_validity);
    assert_eq!(info.uid_next, Some(Uid(mailbox.uid_next)));
    assert_eq!(info.highest_mod_seq.0, mailbox.mod_seq);
    assert_eq!(info.messages as usize, mailbox.messages.len());
    assert_eq!(u64::from(info.unseen), having(SystemFlags::SEEN, false).len());
    assert_eq!(u64::from(info.deleted), having(SystemFlags::DELETED, true).len());
    assert_eq!(selection.uids, mailbox.messages.keys().copied().collect());
    assert_eq!(selection.first_unseen, having(SystemFlags::SEEN, false).first().map(Uid));
    for flag in
        [SystemFlags::SEEN, SystemFlags::DELETED, SystemFlags::FLAGGED, SystemFlags::ANSWERED, SystemFlags::DRAFT]
    {
        assert_eq!(shard.flagged(account, id, flag, SystemFlags::NONE).unwrap(), having(flag, true));
        assert_eq!(shard.flagged(account, id, SystemFlags::NONE, flag).unwrap(), having(flag, false));
    }
    let mut metas = Vec::new();
    shard
        .messages(account, id, &UidSet::from_range(1, u32::MAX), |meta| {
            metas.push(meta);
            true
        })
        .unwrap();
    assert_eq!(metas.len(), mailbox.messages.len());
    let mut bytes = 0;
    for (meta, (uid, message)) in metas.iter().zip(&mailbox.messages) {
        assert_eq!((meta.uid.0, meta.flags.system, meta.mod_seq.0), (*uid, message.system, message.mod_seq));
        assert_eq!(keywords(&meta.flags), message.keywords);
        assert_eq!(meta.body, BodyId(message.body));
        let body = &model.bodies[&message.body];
        assert_eq!(meta.size as usize, body.len());
        bytes += meta.size;
        assert_eq!(shard.body_range(meta.body, 0, u64::MAX).unwrap().unwrap().concat(), *body);
        let (from, to) = (body.len() / 3, body.len() / 3 * 2);
        assert_eq!(
            shard.body_range(meta.body, from as u64, (to - from) as u64).unwrap().unwrap().concat(),
            body[from..to]
        );
        assert_eq!(shard.digest(meta.body).unwrap().unwrap(), message.body.to_string());
    }
    assert_eq!(info.bytes, bytes);
    // Every other message: seeks and steps.
    let sparse: UidSet = mailbox.messages.keys().copied().step_by(2).collect();
    let mut found = UidSet::new();
    shard
        .messages(account, id, &sparse, |meta| {
            found.insert(meta.uid.0);
            true
        })
        .unwrap();
    assert_eq!(found, sparse);
    let points = mailbox.history.iter().map(|(mod_seq, _, _)| *mod_seq).chain([0, mailbox.mod_seq]);
    for since in points.collect::<BTreeSet<_>>() {
        let changes = shard.changes(account, id, ModSeq(since)).unwrap();
        let later = || mailbox.history.iter().filter(|(mod_seq, _, _)| *mod_seq > since);
        let vanished: UidSet = later().filter(|(_, _, gone)| *gone).map(|(_, uid, _)| *uid).collect();
        let changed: UidSet = later().map(|(_, uid, _)| *uid).filter(|uid| !vanished.contains(*uid)).collect();
        assert!(changes.complete);
        assert_eq!((changes.changed, changes.vanished, changes.highest.0), (changed, vanished, mailbox.mod_seq));
    }
}

const NAMES: [&str; 8] = ["INBOX", "Sent", "a", "a/b", "a/b/c", "b", "INBOX/x", "b/c/d"];
const KEYWORDS: [&str; 4] = ["$Junk", "$Forwarded", "work", "later"];

/// A command from a few numbers, likely to mean something in the state that the model is in.
fn command(numbers: [u16; 6], index: u64, model: &Model) -> (Command, Option<Bytes>) {
    let [kind, a, b, c, d, e] = numbers;
    let account = AccountId(1 + u64::from(a % 2));
    let any_name = |n: u16| name(NAMES[usize::from(n) % NAMES.len()]);
    let mailbox = |n: u16| {
        let ids: Vec<u64> = model.accounts.get(&account.0).map_or(Vec::new(), |account| {
            account.mailboxes.values().filter(|one| !one.messages.is_empty()).map(|one| one.id).collect()
        });
        // Now and then one that is no more.
        MailboxId(ids.get(usize::from(n) % (ids.len() + 1)).copied().unwrap_or(u64::from(n % 12)))
    };
    let uids = |n: u16| UidSet::from_range(u32::from(n % 7), u32::from(n / 7 % 12));
    let flags = |n: u16| {
        let mut flags = Flags::system(SystemFlags::from_bits((n & 31) as u8));
        for (bit, keyword) in KEYWORDS.into_iter().enumerate() {
            if n >> (5 + bit) & 1 == 1 {
                flags.insert_keyword(Keyword::parse(keyword).unwrap());
            }
        }
        flags
    };
    let body = || Some(Bytes::from(vec![index as u8; usize::from(e % 3000)]));
    let upload = u128::from(c % 3);
    let source = if d % 4 == 0 { BodySource::Upload(upload) } else { BodySource::Inline };
    let own = if d % 8 == 0 { None } else { body() };
    let digest = Bytes::from(index.to_string());
    let date = InternalDate::utc(i64::from(e));
    // As if it were set anew all the time: often met, now and then below what is there.
    let quota = match (b ^ d) % 4 {
        0 => Quota { octets: Some(u64::from(c % 30_000)), messages: None },
        1 => Quota { octets: None, messages: Some(u64::from(c % 20)) },
        2 => Quota { octets: Some(u64::from(e % 30_000)), messages: Some(u64::from(c % 20)) },
        _ => Quota::NONE,
    };
    match kind % 20 {
        0..=3 => {
            let recipients = (0..1 + b % 3)
                .map(|n| {
                    let account = AccountId(1 + u64::from((a + n) % 2));
                    Recipient { account, fingerprint: [(c % 5) as u8; 32], quota }
                })
                .collect();
            let settle = if d % 3 == 0 { vec![[(e % 5) as u8; 32], [9; 32]] } else { Vec::new() };
            (Command::Deliver { recipients, body: source, digest, date, settle }, own)
        }
        4 => (Command::Settle { fingerprints: vec![[(c % 5) as u8; 32], [9; 32]] }, None),
        5 | 6 => {
            let (mailbox, flags) = (any_name(b), flags(c));
            (Command::Append { account, mailbox, flags, date, body: source, digest, quota }, own)
        }
        7 => (Command::Chunk { upload }, body()),
        8 => (Command::CreateMailbox { account, name: any_name(b), special_use: None }, None),
        9 if b % 3 == 0 => (Command::DeleteMailbox { account, name: any_name(c) }, None),
        9 => (Command::ClearRemains { messages_max: u32::from(c % 4) }, None),
        10 => (Command::RenameMailbox { account, from: any_name(b), to: any_name(c) }, None),
        11 => (Command::Subscribe { account, name: any_name(b), on: c % 2 == 0 }, None),
        12..=14 => {
            let action = [StoreAction::Add, StoreAction::Remove, StoreAction::Replace][usize::from(d % 3)];
            let unchanged_since = (d % 5 == 0).then(|| ModSeq(index.saturating_sub(u64::from(d % 20))));
            (
                Command::Store {
                    account,
                    mailbox: mailbox(b),
                    uids: uids(c),
                    action,
                    flags: flags(e),
                    unchanged_since,
                },
                None,
            )
        }
        15 | 16 => {
            let uids = (d % 2 == 0).then(|| uids(c));
            (Command::Expunge { account, mailbox: mailbox(b), uids, only_deleted: d % 3 != 0 }, None)
        }
        17 | 18 => (
            Command::Copy {
                account,
                from: mailbox(b),
                uids: uids(c),
                to: any_name(d),
                remove_source: e % 2 == 0,
                messages_min: if e % 3 == 0 { uids(c).len() } else { 0 },
                quota,
            },
            None,
        ),
        19 if b % 8 == 0 => (Command::DropAccount { account }, None),
        19 if b % 2 == 0 => (Command::DropUpload { upload }, None),
        _ => (Command::CreateAccount { account }, None),
    }
}

/// Applies what the log holds behind the marker, as a node does when it starts.
fn replay(volume: &Volume) -> u64 {
    let group = volume.group(SHARD).unwrap();
    let from = group.applied().unwrap().map_or(1, |marker| marker_index(&marker) + 1);
    let entries = group.read(from, u64::MAX, usize::MAX).unwrap();
    for entry in &entries {
        let (stamp, request, command) = Command::decode(&entry.head).unwrap();
        let len = entry.body.as_ref().map(|body| body.len() as u64);
        let marker = marker(entry.index);
        group.shard().apply_request(entry.index, (stamp, request), command, len, marker).unwrap().0.ok();
    }
    from + entries.len() as u64
}

/// Whether a command is known again by its request id: those that callers repeat, deliveries left out. Uploads are
/// left out here because this walk, unlike routers, uses their ids again.
fn is_recognised(command: &Command) -> bool {
    matches!(
        command,
        Command::Append { body: BodySource::Inline, .. }
            | Command::CreateMailbox { .. }
            | Command::DeleteMailbox { .. }
            | Command::RenameMailbox { .. }
            | Command::Subscribe { .. }
            | Command::Store { .. }
            | Command::Expunge { .. }
            | Command::Copy { .. }
    )
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 40, ..Default::default() })]

    #[test]
    fn mailboxes_agree_with_a_plain_model(
        commands in prop::collection::vec(any::<[u16; 6]>(), 1..120),
        reopen_every in 10usize..60,
        behind in 0usize..4,
        format_rises_at in 0usize..60,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut volume = open(directory.path());
        let mut replica = Replica::new(&volume);
        let mut model = Model::default();
        let mut log = Vec::new();
        let mut done: Vec<(u128, Command, Option<Bytes>, String)> = Vec::new();
        for (step, numbers) in commands.into_iter().enumerate() {
            let index = replica.next;
            let format = if step < format_rises_at { 1 } else { format::known() };
            (replica.format, model.format) = (format, format);
            replica.now_s += i64::from(numbers[0] % 3) - 1;
            let now = replica.now_s as u32;
            let (command, body) = command(numbers, index, &model);
            let request = u128::from(index);
            log.push((now, format, request, command.clone(), body.clone()));
            let expected = model.apply(index, now, &command, body.as_ref());
            let answer = comparable(replica.run_as(request, command.clone(), body.clone()));
            assert_eq!(answer, comparable(expected), "{command:?}");
            if is_recognised(&command) && answer != Err(MailError::Busy) {
                done.push((request, command, body, format!("{answer:?}")));
            }
            // A caller that lost the answer asks again: nothing changes, and it is told the same.
            if numbers[5] % 4 == 0 && !done.is_empty() {
                let (request, command, body, before) = done[usize::from(numbers[4]) % done.len()].clone();
                log.push((now, format, request, command.clone(), body.clone()));
                let again = replica.run_as(request, command.clone(), body);
                // Flags are read again, and may be others by now.
                if !matches!(again, Ok(Outcome::Stored { .. })) {
                    assert_eq!(format!("{:?}", comparable(again)), before, "{command:?}");
                }
                compare(&replica.group.shard(), &model);
            }
            if step % 8 == 0 {
                compare(&replica.group.shard(), &model);
            }
            if step % reopen_every == reopen_every - 1 {
                // Some entries are on the disk and not yet applied when the process ends.
                let (next, now_s) = (replica.next, replica.now_s);
                for n in 0..behind as u64 {
                    let create = Command::CreateAccount { account: AccountId(1 + n % 2) };
                    append(&replica.group, vec![entry(next + n, create.encode(stamp(now_s), 0), None)]);
                    model.apply(next + n, now_s as u32, &create, None).unwrap();
                    log.push((now_s as u32, format, 0, create, None));
                }
                drop(replica);
                drop(volume);
                volume = open(directory.path());
                let next = replay(&volume);
                replica = Replica { next, now_s, ..Replica::new(&volume) };
                compare(&replica.group.shard(), &model);
            }
        }
        compare(&replica.group.shard(), &model);

        // Another replica that is given the same log has the same bytes, whatever it has purged.
        let other_directory = tempfile::tempdir().unwrap();
        let other_volume = open(other_directory.path());
        let mut other = Replica::new(&other_volume);
        for (now, format, request, command, body) in log {
            (other.now_s, other.format) = (i64::from(now), format);
            other.run_as(request, command, body).ok();
            if other.next.is_multiple_of(16) {
                other.group.purge_to(other.next - 1, Bytes::new()).unwrap();
            }
        }
        let exported = blocks(&replica.group);
        assert_eq!(exported, blocks(&other.group));
        compare(&other.group.shard(), &model);

        // And so has a third one that is given the snapshot only.
        let third_directory = tempfile::tempdir().unwrap();
        let third_volume = open(third_directory.path());
        let third = third_volume.group(SHARD).unwrap();
        let mut installer = third.installer(replica.next - 1).unwrap();
        for block in &exported.1 {
            installer.push(block).unwrap();
        }
        installer.finish(exported.0.clone()).unwrap();
        compare(&third.shard(), &model);
        assert_eq!(exported, blocks(&third));
        third.purge_to(replica.next - 1, Bytes::new()).unwrap();
        compare(&third.shard(), &model);

        // Nor do they hold anything that a scrub does not know.
        for volume in [&volume, &other_volume, &third_volume] {
            let report = volume.scrub(&ScrubOptions::default(), &ScrubProgress::default()).unwrap();
            assert!(report.is_clean() && report.complete && report.records > 2, "{:?}", report);
        }

        // When everything is taken away, nothing is left behind, on any of them.
        for group in [replica.group, other.group, third] {
            let mut end = Replica { group, next: replica.next, now_s: replica.now_s, format: format::known() };
            for upload in 0..3 {
                end.run_as(0, Command::DropUpload { upload }, None).unwrap();
            }
            for account in [1, 2].map(AccountId) {
                end.run_as(0, Command::DropAccount { account }, None).unwrap();
            }
            while end.group.shard().has_remains().unwrap() {
                end.run_as(0, Command::ClearRemains { messages_max: 5 }, None).unwrap();
            }
            end.now_s += 11 * 60;
            // Old requests end a few with each command.
            for _ in 0..end.next / 4 + 1 {
                end.run_as(0, Command::Settle { fingerprints: (0..5).map(|n| [n; 32]).collect() }, None).unwrap();
            }
            end.group.purge_to(end.next - 1, Bytes::new()).unwrap();
            prop_assert_eq!(end.group.blob_count().unwrap(), 0);
            prop_assert_eq!(blocks(&end.group).1.len(), 1, "more than the totals");
        }
    }
}
