//! The router's view of a cluster whose leaders change and whose nodes go away.

use std::time::Duration;

use proto::wire::directory_change::Change;
use proto::wire::{AccountRequest, CreateMailboxRequest, DomainRecord, MailboxNameRequest, WatchEvent};
use router::Cluster;
use router::cluster::{Notice, Patience, Subscription};
use tokio::time::{Instant, timeout};
use types::{AccountId, AccountName, MailError, MailboxId, ModSeq, ShardId};

use crate::support::cluster::{Fault, TestCluster, shard_of};
use crate::support::router::PATIENCE;

pub const ALICE: &str = "alice@example.test";

pub async fn followed(test: &TestCluster) -> Cluster {
    followed_for(test, Duration::from_millis(800)).await
}

pub async fn followed_for(test: &TestCluster, operation_max: Duration) -> Cluster {
    // As the settings have it by themselves.
    followed_with(test, Patience::new(operation_max, Duration::from_millis(1_500))).await
}

async fn followed_with(test: &TestCluster, patience: Patience) -> Cluster {
    let cluster = test.cluster().with_patience(patience);
    cluster.follow();
    timeout(PATIENCE, cluster.wait_ready()).await.unwrap();
    cluster
}

fn status_of(test: &TestCluster, name: &str) -> MailboxNameRequest {
    let account = test.id(name);
    MailboxNameRequest { shard: shard_of(account), account, name: "INBOX".to_owned(), ..MailboxNameRequest::default() }
}

fn create_for(test: &TestCluster, name: &str) -> CreateMailboxRequest {
    let account = test.id(name);
    CreateMailboxRequest { shard: shard_of(account), account, name: "x".to_owned(), ..CreateMailboxRequest::default() }
}

#[tokio::test]
async fn the_leader_is_found_by_hints_and_remembered() {
    let test = TestCluster::new();
    let cluster = followed(&test).await;
    let request = status_of(&test, ALICE);
    test.lead(request.shard, 1);
    cluster.shards().status(request.clone()).await.unwrap();
    let first = test.calls("status");
    assert!((1..=2).contains(&first));
    cluster.shards().status(request).await.unwrap();
    assert_eq!(test.calls("status"), first + 1);
}

#[tokio::test(start_paused = true)]
async fn a_shard_without_a_leader_is_unavailable_and_comes_back() {
    let test = TestCluster::new();
    let cluster = followed(&test).await;
    let request = status_of(&test, ALICE);
    test.state.lock().leaders.remove(&request.shard);
    assert_eq!(cluster.shards().status(request.clone()).await, Err(MailError::Unavailable));
    let waiting = tokio::spawn({
        let (cluster, request) = (cluster.clone(), request.clone());
        async move { cluster.shards().status(request).await }
    });
    test.lead(request.shard, 2);
    assert!(timeout(PATIENCE, waiting).await.unwrap().unwrap().is_ok());
    test.state.lock().down.insert(2);
    test.lead(request.shard, 3);
    assert!(cluster.shards().status(request).await.is_ok());
}

#[tokio::test]
async fn an_operation_of_unknown_outcome_is_asked_for_again() {
    let test = TestCluster::new();
    let cluster = followed_for(&test, Duration::from_secs(10)).await;
    test.plan("status", ALICE, Fault::After(MailError::Deadline));
    assert!(cluster.shards().status(status_of(&test, ALICE)).await.is_ok());
    test.plan("create_mailbox", ALICE, Fault::After(MailError::Deadline));
    assert!(cluster.shards().create_mailbox(create_for(&test, ALICE)).await.is_ok());
    let calls = test.calls("create_mailbox");
    test.plan("create_mailbox", ALICE, Fault::Before(MailError::Unavailable));
    assert!(cluster.shards().create_mailbox(create_for(&test, ALICE)).await.is_ok());
    assert!(test.calls("create_mailbox") >= calls + 2);
    test.plan("status", ALICE, Fault::Before(MailError::Busy));
    assert_eq!(cluster.shards().status(status_of(&test, ALICE)).await, Err(MailError::Busy));
}

#[tokio::test]
async fn an_account_that_moves_is_waited_for_and_found_on_its_other_shard() {
    let test = TestCluster::new();
    let cluster = followed_for(&test, Duration::from_secs(10)).await;
    let id = test.id(ALICE);
    let from = shard_of(id);
    let mut subscription = cluster.hub().subscribe(ShardId(from), AccountId(id));
    assert_eq!(notice(&mut subscription).await, Notice::Resync);
    test.hold(ALICE);
    let waiting = tokio::spawn({
        let (cluster, create) = (cluster.clone(), create_for(&test, ALICE));
        async move { cluster.shards().create_mailbox(create).await }
    });
    let asked = async {
        while test.calls("create_mailbox") < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, asked).await.unwrap();
    test.move_to(ALICE, 3);
    assert!(timeout(PATIENCE, waiting).await.unwrap().unwrap().is_ok());
    // Requests that name the old shard go to the new one at once, and its events are heard.
    let calls = test.calls("status");
    assert!(cluster.shards().status(status_of(&test, ALICE)).await.is_ok());
    assert_eq!(test.calls("status"), calls + 1);
    assert_eq!(notice(&mut subscription).await, Notice::Resync);
    drop(test.events.send((3, WatchEvent { account: id, mailbox: 7, mod_seq: 3 })));
    let heard = async {
        // The watch of the new shard may have to come on first.
        while notice(&mut subscription).await == Notice::Resync {
            drop(test.events.send((3, WatchEvent { account: id, mailbox: 7, mod_seq: 3 })));
        }
    };
    timeout(PATIENCE, heard).await.unwrap();
    drop(subscription);
    assert_eq!(cluster.hub().shards_watched(), 0);
    // Nobody waits for ever.
    test.hold(ALICE);
    let cluster = followed(&test).await;
    assert_eq!(cluster.shards().status(status_of(&test, ALICE)).await, Err(MailError::Unavailable));
}

#[tokio::test]
async fn a_refusal_after_an_attempt_of_unknown_outcome_is_told_only_if_it_is_of_both() {
    let test = TestCluster::new();
    let cluster = followed_for(&test, Duration::from_secs(10)).await;
    let create = async |refusal: MailError| {
        test.plan("create_mailbox", ALICE, Fault::After(MailError::Deadline));
        test.plan("create_mailbox", ALICE, Fault::Before(refusal));
        cluster.shards().create_mailbox(create_for(&test, ALICE)).await
    };
    let of_the_moment = [
        MailError::DiskFull,
        MailError::NoSuchMailbox,
        MailError::MailboxGone,
        MailError::NoSuchAccount,
        MailError::Busy,
        MailError::Limit("so many runs".to_owned()),
        MailError::Internal("x".to_owned()),
    ];
    for refusal in of_the_moment {
        assert_eq!(create(refusal.clone()).await, Err(MailError::Deadline), "{refusal}");
    }
    for refusal in [MailError::MailboxExists, MailError::OverQuota, MailError::CannotDo("no".to_owned())] {
        assert_eq!(create(refusal.clone()).await, Err(refusal));
    }
    // What reads nothing but the moment is told as it is; so is a refusal of the only attempt.
    test.plan("status", ALICE, Fault::After(MailError::Deadline));
    test.plan("status", ALICE, Fault::Before(MailError::NoSuchMailbox));
    assert_eq!(cluster.shards().status(status_of(&test, ALICE)).await, Err(MailError::NoSuchMailbox));
    test.plan("create_mailbox", ALICE, Fault::Before(MailError::DiskFull));
    let refused = cluster.shards().create_mailbox(create_for(&test, ALICE)).await;
    assert_eq!(refused, Err(MailError::DiskFull));
}

/// Its outcome is open: the leader may commit it when the others are back.
#[tokio::test(start_paused = true)]
async fn the_first_change_of_a_leader_in_the_minority_is_given_up_within_two_seconds() {
    let test = TestCluster::new();
    let cluster = followed_for(&test, Duration::from_secs(10)).await;
    let request = create_for(&test, ALICE);
    test.lead(request.shard, 1);
    cluster.shards().create_mailbox(request.clone()).await.unwrap();
    test.pause(2);
    test.pause(3);
    test.plan("create_mailbox", ALICE, Fault::Hangs);
    let start = Instant::now();
    assert_eq!(cluster.shards().create_mailbox(request.clone()).await, Err(MailError::Deadline));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());

    // One that has stepped down sends us to those that are silent.
    test.state.lock().leaders.remove(&request.shard);
    let start = Instant::now();
    assert!(cluster.shards().create_mailbox(request.clone()).await.is_err());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_minority_is_given_the_time_that_the_settings_say_and_no_more_than_an_operation_has() {
    let second = Duration::from_secs(1);
    for (operation, minority, given) in [(9, 2, 2), (9, 5, 5), (9, 9, 9), (4, 9, 4)] {
        let test = TestCluster::new();
        let cluster = followed_with(&test, Patience::new(second * operation, second * minority)).await;
        let request = create_for(&test, ALICE);
        test.lead(request.shard, 1);
        cluster.shards().create_mailbox(request.clone()).await.unwrap();
        test.pause(2);
        test.pause(3);
        test.plan("create_mailbox", ALICE, Fault::Hangs);
        // At a leader that waits for the others; and once it has stepped down.
        for leads in [true, false] {
            if !leads {
                test.state.lock().leaders.remove(&request.shard);
            }
            let start = Instant::now();
            assert!(cluster.shards().create_mailbox(request.clone()).await.is_err());
            let (waited, given) = (start.elapsed(), second * given);
            let least = if leads { given } else { given - Duration::from_millis(500) };
            assert!((least..given + second / 2).contains(&waited), "{operation} {minority} {leads}: {waited:?}");
        }
    }
}

/// Only a node that answers is awaited beyond an operation's time.
#[tokio::test(start_paused = true)]
async fn an_operation_at_a_node_that_answers_nothing_ends_with_its_time() {
    let operation = Duration::from_secs(3);
    for paused in [vec![1, 2, 3], vec![1, 2], vec![1], vec![]] {
        let test = TestCluster::new();
        let cluster = followed_for(&test, operation).await;
        let request = create_for(&test, ALICE);
        test.lead(request.shard, 1);
        cluster.shards().create_mailbox(request.clone()).await.unwrap();
        test.plan("create_mailbox", ALICE, Fault::Hangs);
        let start = Instant::now();
        let change = tokio::spawn({
            let (cluster, request) = (cluster.clone(), request.clone());
            async move { cluster.shards().create_mailbox(request).await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        paused.iter().for_each(|node| test.pause(*node));
        assert_eq!(change.await.unwrap(), Err(MailError::Deadline), "{paused:?}");
        let is_in_time = start.elapsed() < operation + Duration::from_millis(500);
        assert_eq!(is_in_time, !paused.is_empty(), "{paused:?}: {:?}", start.elapsed());
    }
}

/// With a majority an attempt is awaited: a large message over a slow link takes its time, and its leader may be late for it.
#[tokio::test(start_paused = true)]
async fn a_slow_change_is_awaited_where_most_replicas_answer_or_the_leader_alone_is_late() {
    for paused in [vec![], vec![2], vec![1], vec![1, 2]] {
        let test = TestCluster::new();
        let cluster = followed_for(&test, Duration::from_secs(10)).await;
        let request = create_for(&test, ALICE);
        test.lead(request.shard, 1);
        cluster.shards().create_mailbox(request.clone()).await.unwrap();
        test.plan("create_mailbox", ALICE, Fault::Hangs);
        let change = tokio::spawn({
            let (cluster, request) = (cluster.clone(), request.clone());
            async move { cluster.shards().create_mailbox(request).await }
        });
        // The request has reached the leader.
        tokio::time::sleep(Duration::from_millis(10)).await;
        paused.iter().for_each(|node| test.pause(*node));
        let start = Instant::now();
        drop(change.await.unwrap());
        assert!(start.elapsed() > Duration::from_secs(9), "{paused:?}: {:?}", start.elapsed());
    }
}

/// A paused node's clients find out after 4 s; an election takes up to 3 s meanwhile.
#[tokio::test(start_paused = true)]
async fn operations_leave_a_paused_leader_within_five_seconds_and_do_not_wait_for_it_again() {
    let test = TestCluster::new();
    let cluster = followed_for(&test, Duration::from_secs(10)).await;
    let request = status_of(&test, ALICE);
    let shard = request.shard;
    let asked = |node: u64| test.state.lock().asked.get(&node).copied().unwrap_or(0);
    test.lead(shard, 1);
    cluster.shards().status(request.clone()).await.unwrap();

    let start = Instant::now();
    test.pause(1);
    // Under way when it was paused, and begun afterwards; what may have been done is asked for again elsewhere.
    let unknown = tokio::spawn({
        let (cluster, request) = (cluster.clone(), create_for(&test, ALICE));
        async move { cluster.shards().create_mailbox(request).await }
    });
    let mut waiting = tokio::task::JoinSet::new();
    for after in [0, 100, 1_000, 2_500, 3_900, 4_100] {
        let (cluster, request) = (cluster.clone(), request.clone());
        waiting.spawn(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            cluster.shards().status(request).await
        });
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Until now the others name the paused one as their leader.
    test.lead(shard, 2);
    while let Some(done) = waiting.join_next().await {
        done.unwrap().unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(unknown.await.unwrap().is_ok());

    let before = asked(1);
    for name in [ALICE, "bob@example.test", "carol@example.test", "dave@example.org"] {
        let request = create_for(&test, name);
        test.lead(request.shard, 3);
        let start = Instant::now();
        cluster.shards().create_mailbox(request).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(1), "{name}: {:?}", start.elapsed());
    }
    assert_eq!(asked(1), before);

    test.state.lock().paused.remove(&1);
    test.lead(shard, 1);
    let start = Instant::now();
    cluster.shards().status(request.clone()).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(6) && asked(1) > before);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_breaks_at_a_paused_leader_goes_on_at_the_next() {
    let test = TestCluster::new();
    let cluster = followed_for(&test, Duration::from_secs(10)).await;
    test.lead(1, 1);
    let mut subscription = cluster.hub().subscribe(ShardId(1), AccountId(1));
    assert_eq!(notice(&mut subscription).await, Notice::Resync);
    test.pause(1);
    test.lead(1, 2);
    assert_eq!(notice(&mut subscription).await, Notice::Resync);
    drop(test.events.send((1, WatchEvent { account: 1, mailbox: 7, mod_seq: 3 })));
    assert_eq!(notice(&mut subscription).await, Notice::Mailbox { mailbox: MailboxId(7), mod_seq: ModSeq(3) });
}

#[tokio::test]
async fn the_directory_is_followed_from_node_to_node_and_kept_while_none_answers() {
    let test = TestCluster::new();
    let cluster = followed(&test).await;
    let hosts = |domain: &str| cluster.is_hosted(domain);
    for (i, down) in [vec![1], vec![1, 2], vec![2, 3], vec![1, 3]].into_iter().enumerate() {
        test.state.lock().down = down.into_iter().collect();
        let domain = format!("new{i}.test");
        let revision = test.change(Change::Domain(DomainRecord { name: domain.clone() }));
        let mut revisions = cluster.revisions();
        let heard = revisions.wait_for(|known| *known >= Some(revision));
        timeout(PATIENCE, heard).await.unwrap().unwrap();
        assert!(hosts(&domain));
    }
    test.state.lock().down.extend([1, 2, 3]);
    assert!(cluster.is_ready() && hosts("example.test"));
    assert!(cluster.account(&AccountName::parse(ALICE).unwrap()).is_some());
}

async fn notice(subscription: &mut Subscription) -> Notice {
    timeout(PATIENCE, subscription.next()).await.unwrap()
}

#[tokio::test]
async fn sessions_of_a_shard_share_one_watch_and_hear_of_their_account_alone() {
    let test = TestCluster::new();
    let cluster = followed(&test).await;
    let hub = cluster.hub();
    // Accounts 1 and 5 lie in shard 1.
    let mut first = hub.subscribe(ShardId(1), AccountId(1));
    assert_eq!(notice(&mut first).await, Notice::Resync);
    let mut again = hub.subscribe(ShardId(1), AccountId(1));
    let mut other = hub.subscribe(ShardId(1), AccountId(5));
    assert_eq!((hub.shards_watched(), test.calls("watching")), (1, 1));

    let send = |account, mailbox, mod_seq| drop(test.events.send((1, WatchEvent { account, mailbox, mod_seq })));
    send(1, 7, 3);
    send(1, 7, 4);
    send(1, 0, 5);
    send(5, 9, 6);
    let mailbox = |id, mod_seq| Notice::Mailbox { mailbox: MailboxId(id), mod_seq: ModSeq(mod_seq) };
    assert_eq!(notice(&mut other).await, mailbox(9, 6));
    for subscription in [&mut first, &mut again] {
        // Events come in order, so by now all are in.
        let two = [notice(subscription).await, notice(subscription).await];
        assert!(two.contains(&mailbox(7, 4)) && two.contains(&Notice::List { mod_seq: ModSeq(5) }), "{two:?}");
        assert_eq!(subscription.try_next(), None);
    }
    // More mailboxes than are kept: look at everything.
    (100..200).for_each(|id| send(1, id, 7));
    send(5, 9, 8);
    notice(&mut other).await;
    assert_eq!(notice(&mut first).await, Notice::Resync);
    assert_eq!(first.try_next(), None);

    test.break_streams(1);
    assert_eq!(notice(&mut other).await, Notice::Resync);
    drop((first, other));
    assert_eq!(hub.shards_watched(), 1);
    drop(again);
    assert_eq!(hub.shards_watched(), 0);
    let until = tokio::time::Instant::now() + PATIENCE;
    while test.calls("watching") > 0 {
        assert!(tokio::time::Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_cluster_in_one_process_is_followed_alike() {
    let test = TestCluster::new();
    for shard in 0..4 {
        test.lead(shard, 1);
    }
    let cluster = Cluster::in_process(test.node(1));
    cluster.follow();
    timeout(PATIENCE, cluster.wait_ready()).await.unwrap();
    let account = test.id(ALICE);
    cluster.shards().open_account(AccountRequest { shard: shard_of(account), account }).await.unwrap();
}
