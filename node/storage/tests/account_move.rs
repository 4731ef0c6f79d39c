//! An account goes from one shard to another with all that clients and senders remember of it; at each moment at most one of
//! the two serves it, and what comes late of a move that is over does nothing.

mod common;

use std::collections::HashMap;

use bytes::Bytes;
use common::{Replica, blocks, name, open};
use storage::{
    BodyOf, BodySource, Command, GroupId, MailboxInfo, MessageMeta, MoveStep, MovedPart, MovedPass, MovedSubscription,
    Outcome, Place, Recipient, Remembered, RememberedFrom, ShardState, StoreAction, Whereabouts,
};
use types::{
    AccountId, Flags, InternalDate, Keyword, MailError, MailboxId, MailboxName, ModSeq, Quota, SpecialUse, SystemFlags,
    Uid, UidSet,
};

const ALICE: AccountId = AccountId(1);
const BOB: AccountId = AccountId(2);
const TARGET: GroupId = GroupId(8);
const MOVE: u64 = 100;
const BRINGER: u64 = 77;

fn deliver(number: u8, to: &[AccountId]) -> Command {
    let recipient =
        |account: &AccountId| Recipient { account: *account, fingerprint: [number; 32], quota: Quota::NONE };
    Command::Deliver {
        recipients: to.iter().map(recipient).collect(),
        body: BodySource::Inline,
        digest: Bytes::from(vec![number; 10]),
        date: InternalDate { unix_s: i64::from(number), offset_min: 60 },
        settle: Vec::new(),
    }
}

fn body(number: u8) -> Option<Bytes> {
    Some(Bytes::from(vec![number; 1000 + usize::from(number)]))
}

/// Whether it was there already; refused as told.
fn delivered(answer: Result<Outcome, MailError>) -> Result<bool, MailError> {
    let Ok(Outcome::Delivered(mut all)) = answer else { panic!("{answer:?}") };
    all.remove(0).map(|one| one.duplicate)
}

fn inbox(state: &ShardState) -> MailboxInfo {
    state.mailbox(ALICE, &MailboxName::inbox()).unwrap().unwrap()
}

fn take(replica: &mut Replica, id: u64, step: MoveStep) -> Whereabouts {
    match replica.run(Command::MoveAccount { account: ALICE, id, step }).unwrap() {
        Outcome::Placed(now) => now,
        other => panic!("{other:?}"),
    }
}

fn import(replica: &mut Replica, parts: Vec<MovedPart>, with: Option<(Bytes, Bytes)>) -> Result<Outcome, MailError> {
    let (source, digest, body) = match with {
        Some((body, digest)) => (Some(BodySource::Inline), digest, Some(body)),
        None => (None, Bytes::new(), None),
    };
    replica.run_with(Command::Import { account: ALICE, id: MOVE, bringer: BRINGER, parts, body: source, digest }, body)
}

/// As the node brings it. Answers how many messages came or changed.
fn pass(source: &ShardState, target: &mut Replica, bodies: &mut HashMap<u64, BodyOf>) -> u64 {
    let (there, here) = (source.outline(ALICE).unwrap(), target.group.shard().outline(ALICE).unwrap());
    let mut parts = vec![MovedPart::Account(there.account)];
    parts.extend(there.mailboxes.iter().map(|(mailbox, _)| MovedPart::Mailbox(mailbox.clone())));
    let gone = here.mailboxes.iter().filter(|(mailbox, _)| there.mailboxes.iter().all(|(one, _)| one.id != mailbox.id));
    parts.extend(gone.map(|(mailbox, _)| MovedPart::Gone(mailbox.id)));
    for (names, on) in [(&here.subscriptions, false), (&there.subscriptions, true)] {
        let change = |name: &String| MovedPart::Subscription(MovedSubscription { name: name.clone(), on });
        parts.extend(names.iter().map(change));
    }
    import(target, parts, None).unwrap();
    let mut messages = 0;
    for (mailbox, _) in there.mailboxes {
        let id = MailboxId(mailbox.id);
        let since = here.mailboxes.iter().find(|(one, _)| one.id == mailbox.id).map_or(0, |(_, mod_seq)| *mod_seq);
        let known = target.group.shard().uids(ALICE, id).unwrap();
        let listing = source.moved_listing(ALICE, id, since).unwrap();
        let mut found = Vec::new();
        source
            .moved_messages(ALICE, id, &listing.changed, |message, body| {
                found.push((message, body));
                true
            })
            .unwrap();
        messages += found.len() as u64;
        for (mut message, body) in found {
            let pinned = source.pin_body(body).unwrap().unwrap();
            if known.contains(message.uid) {
                import(target, vec![MovedPart::Message(message)], None).unwrap();
            } else if let Some(of) = bodies.get(&body.0) {
                message.body = Some(*of);
                import(target, vec![MovedPart::Message(message)], None).unwrap();
            } else {
                bodies.insert(body.0, BodyOf { mailbox: message.mailbox, uid: message.uid });
                message.body = Some(BodyOf::default());
                let bytes = pinned.read(0, u64::MAX).unwrap().concat().into();
                let digest = source.digest(body).unwrap().unwrap();
                import(target, vec![MovedPart::Message(message)], Some((bytes, digest))).unwrap();
            }
        }
        let vanished = listing.vanished.clone().unwrap_or_else(|| known.difference(&listing.uids));
        let follows = listing.vanished.is_some();
        let pass = MovedPass::new(mailbox.id, listing.mod_seq, follows, &listing.changed, &vanished);
        import(target, vec![MovedPart::Pass(pass)], None).unwrap();
    }
    messages
}

/// Part by part.
fn all<T>(mut look: impl FnMut(&RememberedFrom) -> Remembered<T>) -> impl Iterator<Item = T> {
    let (mut all, mut from) = (Vec::new(), Some(RememberedFrom::time(0)));
    while let Some(at) = from {
        let part = look(&at);
        all.extend(part.found);
        from = part.next;
    }
    all.into_iter()
}

fn fingerprints(state: &ShardState) -> impl Iterator<Item = MovedPart> {
    all(|from| state.moved_fingerprints(ALICE, from).unwrap()).map(MovedPart::Fingerprint)
}

fn remembered(source: &ShardState, target: &mut Replica) {
    let requests = all(|from| source.moved_requests(ALICE, from).unwrap()).map(MovedPart::Request);
    let fingerprints = fingerprints(source);
    import(target, requests.chain(fingerprints).collect(), None).unwrap();
}

/// All that a client can see, bodies and digests included, but for the bodies' numbers.
#[derive(PartialEq, Debug)]
struct Seen {
    mailboxes: Vec<MailboxInfo>,
    messages: Vec<(MailboxId, MessageMeta, Vec<u8>, Bytes)>,
    subscriptions: Vec<MailboxName>,
    selections: Vec<storage::Selection>,
    totals: storage::AccountTotals,
}

fn seen(state: &ShardState) -> Seen {
    let mailboxes = state.mailboxes(ALICE).unwrap();
    let mut messages = Vec::new();
    for mailbox in &mailboxes {
        let all = UidSet::from_range(1, u32::MAX);
        let mut metas = Vec::new();
        state
            .messages(ALICE, mailbox.id, &all, |meta| {
                metas.push(meta);
                true
            })
            .unwrap();
        for mut meta in metas {
            let body = state.body_range(meta.body, 0, u64::MAX).unwrap().unwrap().concat();
            let digest = state.digest(meta.body).unwrap().unwrap();
            meta.body = storage::BodyId(0);
            messages.push((mailbox.id, meta, body, digest));
        }
    }
    Seen {
        selections: mailboxes.iter().map(|mailbox| state.select(ALICE, mailbox.id).unwrap()).collect(),
        mailboxes,
        messages,
        subscriptions: state.subscriptions(ALICE).unwrap(),
        totals: state.account_totals(ALICE).unwrap(),
    }
}

struct Two {
    _directory: tempfile::TempDir,
    volume: storage::Volume,
    source: Replica,
    target: Replica,
}

impl Two {
    /// The source's log is longer than the target's will be when the account has come.
    fn new() -> Two {
        let directory = tempfile::tempdir().unwrap();
        let volume = open(directory.path());
        let mut source = Replica::new(&volume);
        source.next = 5_000;
        let target =
            Replica { group: volume.group(TARGET).unwrap(), next: 1, now_s: source.now_s, format: source.format };
        for number in 1..=6 {
            source.run_with(deliver(number, &[ALICE, BOB]), body(number)).unwrap();
        }
        let mut two = Two { _directory: directory, volume, source, target };
        two.change_much();
        two
    }

    fn change_much(&mut self) {
        let (inbox, source) = (inbox(&self.source.group.shard()).id, &mut self.source);
        let uids = UidSet::from_range;
        let copy = |uids, to: &str, remove_source| Command::Copy {
            account: ALICE,
            from: inbox,
            uids,
            to: name(to),
            remove_source,
            messages_min: 0,
            quota: Quota::NONE,
        };
        source.run(Command::CreateMailbox { account: ALICE, name: name("Work/2026"), special_use: None }).unwrap();
        source.run(copy(uids(1, 2), "Archive", false)).unwrap();
        source.run(copy(uids(3, 3), "Work/2026", true)).unwrap();
        let mut flags = Flags::system(SystemFlags::SEEN);
        flags.insert_keyword(Keyword::parse("$Work").unwrap());
        let (action, unchanged_since) = (StoreAction::Add, None);
        let store = Command::Store { account: ALICE, mailbox: inbox, uids: uids(1, 4), action, flags, unchanged_since };
        source.run(store).unwrap();
        let expunge = Command::Expunge { account: ALICE, mailbox: inbox, uids: Some(uids(2, 2)), only_deleted: false };
        source.run(expunge).unwrap();
        source.run(Command::Subscribe { account: ALICE, name: name("Work/2026"), on: true }).unwrap();
        source.run(Command::Subscribe { account: ALICE, name: name("Junk"), on: false }).unwrap();
        source.run(Command::RenameMailbox { account: ALICE, from: name("Trash"), to: name("Bin") }).unwrap();
    }

    /// Names change places, mailboxes and messages go, flags change.
    fn change_more(&mut self) {
        let source = &mut self.source;
        let rename = |from: &str, to: &str| Command::RenameMailbox { account: ALICE, from: name(from), to: name(to) };
        for (from, to) in [("Archive", "x"), ("Sent", "Archive"), ("x", "Sent")] {
            source.run(rename(from, to)).unwrap();
        }
        source.run(Command::DeleteMailbox { account: ALICE, name: name("Work/2026") }).unwrap();
        source.run(Command::DeleteMailbox { account: ALICE, name: name("Work") }).unwrap();
        source.run(Command::CreateMailbox { account: ALICE, name: name("Work"), special_use: None }).unwrap();
        let inbox = inbox(&source.group.shard()).id;
        let (action, flags) = (StoreAction::Replace, Flags::system(SystemFlags::FLAGGED));
        let uids = UidSet::from_range(1, 1);
        let store = Command::Store { account: ALICE, mailbox: inbox, uids, action, flags, unchanged_since: None };
        source.run(store).unwrap();
        let uids = Some(UidSet::from_range(5, 5));
        source.run(Command::Expunge { account: ALICE, mailbox: inbox, uids, only_deleted: false }).unwrap();
        source.run_with(deliver(7, &[ALICE]), body(7)).unwrap();
    }

    fn begin(&mut self) {
        assert_eq!(take(&mut self.target, MOVE, MoveStep::Begin { bringer: BRINGER }).place, Place::Coming);
    }

    fn bring_all(&mut self) -> Whereabouts {
        let (source, mut bodies) = (self.source.group.shard(), HashMap::new());
        pass(&source, &mut self.target, &mut bodies);
        self.change_more();
        assert!(pass(&source, &mut self.target, &mut bodies) < 5);
        let frozen = take(&mut self.source, MOVE, MoveStep::Freeze);
        assert_eq!(frozen.place, Place::Frozen);
        pass(&source, &mut self.target, &mut bodies);
        remembered(&source, &mut self.target);
        let complete = MoveStep::Complete { bringer: BRINGER, mod_seq_last: frozen.mod_seq_last };
        take(&mut self.target, MOVE, complete)
    }

    fn switch(&mut self) {
        assert_eq!(take(&mut self.target, MOVE, MoveStep::Admit).place, Place::Here);
        while take(&mut self.source, MOVE, MoveStep::Leave).place != Place::Gone {}
    }
}

#[test]
fn an_account_comes_as_it_went_and_goes_on_from_there() {
    let mut two = Two::new();
    two.begin();
    let between = inbox(&two.source.group.shard()).highest_mod_seq;
    assert_eq!(two.bring_all().place, Place::Whole);
    let (source, target) = (two.source.group.shard(), two.target.group.shard());
    let before = seen(&source);
    assert_eq!(before.mailboxes.len(), 7);
    assert_eq!(seen(&target), before);
    two.switch();
    assert_eq!(seen(&target), before);
    // Who has seen what there was during the move is told what came after it.
    let inbox = inbox(&target);
    let changes = target.changes(ALICE, inbox.id, between).unwrap();
    assert!(changes.complete);
    assert_eq!((changes.changed.to_string(), changes.vanished.to_string()), ("1,7".to_owned(), "5".to_owned()));
    assert!(!target.changes(ALICE, inbox.id, ModSeq(1)).unwrap().complete);
    // What was delivered, or asked for, is known.
    assert_eq!(delivered(two.target.run_with(deliver(7, &[ALICE]), body(7))), Ok(true));
    // UIDs, modseqs and mailboxes go on; the target's log is much shorter.
    let highest = before.mailboxes.iter().map(|mailbox| mailbox.highest_mod_seq).max().unwrap();
    assert!(two.target.next < 1_000);
    assert_eq!(delivered(two.target.run_with(deliver(8, &[ALICE]), body(8))), Ok(false));
    let after = target.mailbox_by_id(ALICE, inbox.id).unwrap().unwrap();
    assert_eq!((after.uid_next, inbox.uid_next), (Some(Uid(9)), Some(Uid(8))));
    assert!(after.highest_mod_seq > highest);
    let new = Command::CreateMailbox { account: ALICE, name: name("New"), special_use: Some(SpecialUse::Flagged) };
    let Outcome::MailboxCreated(id) = two.target.run(new).unwrap() else { panic!("no mailbox") };
    assert!(before.mailboxes.iter().all(|mailbox| mailbox.id < id));
    let new = target.mailbox_by_id(ALICE, id).unwrap().unwrap();
    assert!(before.mailboxes.iter().all(|mailbox| mailbox.uid_validity < new.uid_validity));
    assert!(new.highest_mod_seq > after.highest_mod_seq);
    // The other account is as it was.
    let of_bob = source.account_totals(BOB).unwrap();
    assert_eq!((of_bob.messages, source.totals().unwrap().accounts), (6, 1));
    assert_eq!((source.totals().unwrap().bytes, target.totals().unwrap().accounts), (of_bob.bytes, 1));
}

#[test]
fn a_request_that_was_done_before_the_move_is_answered_as_it_was() {
    let mut two = Two::new();
    let create = || Command::CreateMailbox { account: ALICE, name: name("Once"), special_use: None };
    let done = two.source.run_as(42, create(), None);
    assert!(done.is_ok());
    two.begin();
    two.bring_all();
    two.switch();
    assert_eq!(two.target.run_as(42, create(), None), done);
    assert_eq!(two.target.run_as(43, create(), None), Err(MailError::MailboxExists));
}

#[test]
fn at_each_moment_one_shard_serves_the_account_at_most() {
    let mut two = Two::new();
    let new = || Command::CreateMailbox { account: ALICE, name: name("New"), special_use: None };
    let serves = |replica: &mut Replica, number: u8| {
        let state = replica.group.shard();
        let (read, changed) = (state.check_here(ALICE), replica.run(new()).map(drop));
        let delivered = delivered(replica.run_with(deliver(number, &[ALICE]), body(number))).map(drop);
        let settled = |result: Result<(), MailError>| !matches!(result, Err(MailError::NotHere));
        assert_eq!((settled(read), settled(delivered.clone())), (settled(changed.clone()), settled(changed.clone())));
        settled(changed)
    };
    assert!(serves(&mut two.source, 20));
    two.begin();
    assert!(serves(&mut two.source, 21) && !serves(&mut two.target, 21));
    two.bring_all();
    assert!(!serves(&mut two.source, 22) && !serves(&mut two.target, 22));
    take(&mut two.target, MOVE, MoveStep::Admit);
    assert!(!serves(&mut two.source, 23) && serves(&mut two.target, 23));
    two.switch();
    assert!(!serves(&mut two.source, 24) && serves(&mut two.target, 24));
}

#[test]
fn what_comes_late_does_nothing() {
    let mut two = Two::new();
    two.begin();
    // Another brings it from now on.
    take(&mut two.target, MOVE, MoveStep::Begin { bringer: BRINGER + 1 });
    assert!(matches!(import(&mut two.target, Vec::new(), None), Err(MailError::CannotDo(_))));
    assert_eq!(
        take(&mut two.target, MOVE, MoveStep::Complete { bringer: BRINGER, mod_seq_last: 1 }).place,
        Place::Coming
    );
    assert_eq!(take(&mut two.target, MOVE, MoveStep::Admit).place, Place::Coming);
    // Undone: the source is told before it has heard of the move at all.
    assert_eq!(take(&mut two.target, MOVE, MoveStep::Leave).place, Place::Gone);
    assert_eq!(take(&mut two.source, MOVE, MoveStep::Thaw).place, Place::Here);
    assert_eq!(take(&mut two.source, MOVE, MoveStep::Freeze).place, Place::Here);
    assert_eq!(take(&mut two.source, MOVE, MoveStep::Leave).place, Place::Here);
    assert_eq!(take(&mut two.target, MOVE, MoveStep::Begin { bringer: 5 }).place, Place::Gone);
    // And once more, until it is frozen.
    let next = MOVE + 1;
    assert_eq!(take(&mut two.target, next, MoveStep::Begin { bringer: 5 }).place, Place::Coming);
    assert_eq!(take(&mut two.source, next, MoveStep::Freeze).place, Place::Frozen);
    assert_eq!(take(&mut two.source, MOVE, MoveStep::Thaw).place, Place::Frozen);
    assert_eq!(take(&mut two.source, next, MoveStep::Thaw).place, Place::Here);
    assert_eq!(take(&mut two.target, next, MoveStep::Leave).place, Place::Gone);
    // An account that is removed leaves nothing, and an id is never given out again.
    two.target.run(Command::DropAccount { account: ALICE }).unwrap();
    assert_eq!(two.target.group.shard().accounts_from(AccountId(0), 9).unwrap(), []);
}

#[test]
fn a_large_account_is_dropped_bit_by_bit_and_leaves_no_body() {
    let mut two = Two::new();
    for number in 0..1_200_u32 {
        let append = Command::Append {
            account: ALICE,
            mailbox: name("INBOX"),
            flags: Flags::default(),
            date: InternalDate::default(),
            body: BodySource::Inline,
            digest: Bytes::new(),
            quota: Quota::NONE,
        };
        two.source.run_with(append, Some(Bytes::from(number.to_string()))).unwrap();
    }
    take(&mut two.source, MOVE, MoveStep::Freeze);
    assert_eq!(take(&mut two.source, MOVE, MoveStep::Leave).place, Place::Leaving);
    let left = two.source.group.shard().account_totals(ALICE).unwrap().messages;
    assert!(left > 0 && left < 1_200, "{left}");
    assert_eq!(take(&mut two.source, MOVE, MoveStep::Leave).place, Place::Gone);
    two.source.group.purge_to(two.source.next - 1, Bytes::from_static(b"p")).unwrap();
    // Bob has the other six.
    assert_eq!(two.source.group.blob_count().unwrap(), 6);
    assert_eq!(two.volume.strays().unwrap(), Vec::<String>::new());
}

#[test]
fn replicas_agree_and_a_snapshot_holds_what_is_under_way() {
    let run = || {
        let mut two = Two::new();
        two.begin();
        two.bring_all();
        two
    };
    let (mut two, other) = (run(), run());
    let (exported, of_target) = blocks(&two.target.group);
    assert_eq!((&exported, &of_target), (&blocks(&other.target.group).0, &blocks(&other.target.group).1));
    assert_eq!(blocks(&two.source.group), blocks(&other.source.group));
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let group = volume.group(TARGET).unwrap();
    let mut installer = group.installer(two.target.next - 1).unwrap();
    of_target.iter().for_each(|block| installer.push(block).unwrap());
    installer.finish(exported).unwrap();
    group.purge_to(two.target.next - 1, Bytes::from_static(b"p")).unwrap();
    let mut installed = Replica { group, next: two.target.next, now_s: two.target.now_s, format: two.target.format };
    assert_eq!(take(&mut installed, MOVE, MoveStep::Admit).place, Place::Here);
    two.switch();
    assert_eq!(seen(&installed.group.shard()), seen(&two.target.group.shard()));
}

#[test]
fn an_account_comes_back_and_mail_that_was_settled_meanwhile_is_new_mail() {
    let mut two = Two::new();
    two.begin();
    two.bring_all();
    two.switch();
    two.target.run(Command::Settle { fingerprints: vec![[7; 32]] }).unwrap();
    let back = MOVE + 5;
    let begun = MoveStep::Begin { bringer: 1 };
    assert_eq!(take(&mut two.source, back, begun).place, Place::Coming);
    let frozen = take(&mut two.target, back, MoveStep::Freeze);
    let Two { source, target, .. } = &mut two;
    let state = target.group.shard();
    let outline = state.outline(ALICE).unwrap();
    let parts = std::iter::once(MovedPart::Account(outline.account));
    let parts = parts.chain(outline.mailboxes.into_iter().map(|(mailbox, _)| MovedPart::Mailbox(mailbox)));
    let fingerprints = fingerprints(&state);
    let (id, bringer, body, digest) = (back, 1, None, Bytes::new());
    let parts = parts.chain(fingerprints).collect();
    source.run(Command::Import { account: ALICE, id, bringer, parts, body, digest }).unwrap();
    let complete = MoveStep::Complete { bringer: 1, mod_seq_last: frozen.mod_seq_last };
    assert_eq!(take(source, back, complete).place, Place::Whole);
    assert_eq!(take(source, back, MoveStep::Admit).place, Place::Here);
    assert_eq!(delivered(source.run_with(deliver(6, &[ALICE]), self::body(6))), Ok(true));
    assert_eq!(delivered(source.run_with(deliver(7, &[ALICE]), self::body(7))), Ok(false));
}

#[test]
fn what_is_remembered_is_told_in_parts_and_only_what_is_new() {
    let mut two = Two::new();
    let fingerprint = |number: u32| {
        let mut fingerprint = [0; 32];
        fingerprint[..4].copy_from_slice(&number.to_be_bytes());
        fingerprint
    };
    let deliver = |number: u32, account| Command::Deliver {
        recipients: vec![Recipient { account, fingerprint: fingerprint(number), quota: Quota::NONE }],
        body: BodySource::Inline,
        digest: Bytes::new(),
        date: InternalDate::default(),
        settle: Vec::new(),
    };
    let before = fingerprints(&two.source.group.shard()).count();
    for number in 0..5_000 {
        let account = if number % 100 == 0 { ALICE } else { BOB };
        two.source.run_with(deliver(number, account), Some(Bytes::from_static(b"x"))).unwrap();
    }
    let state = two.source.group.shard();
    let mut parts = Vec::new();
    let mut from = Some(RememberedFrom::time(0));
    while let Some(at) = from {
        let part = state.moved_fingerprints(ALICE, &at).unwrap();
        parts.push(part.found.len());
        from = part.next;
    }
    assert_eq!(parts.iter().sum::<usize>(), before + 50);
    assert!(parts.len() > 1 && parts.iter().all(|found| *found < before + 50), "{parts:?}");
    // Only what has come since then.
    two.source.now_s += 1;
    two.source.run_with(deliver(5_001, BOB), Some(Bytes::from_static(b"x"))).unwrap();
    let newest = u64::try_from(state.newest_remembered().unwrap().unwrap()).unwrap();
    let since = RememberedFrom::time(newest);
    assert_eq!(state.moved_fingerprints(ALICE, &since).unwrap(), Remembered { found: Vec::new(), next: None });
    two.source.run_with(deliver(5_002, ALICE), Some(Bytes::from_static(b"x"))).unwrap();
    assert_eq!(state.moved_fingerprints(ALICE, &since).unwrap().found.len(), 1);
    two.source.run(Command::Settle { fingerprints: vec![fingerprint(100)] }).unwrap();
    let asked = [fingerprint(0), fingerprint(100), fingerprint(1)];
    assert_eq!(state.forgotten(ALICE, &asked).unwrap(), asked[1..]);
}
