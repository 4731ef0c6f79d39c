//! Groups of a node that is alone, without its network.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use directory::{NewNode, Start};
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use openraft::{BasicNode, EntryPayload};
use proto::ClusterTlsFiles;
use storage::{Command, GroupId, Volume, VolumeOptions};
use types::{AccountId, DomainName, MailError, ShardId};

use super::Groups;
use crate::group::{Group, GroupContext, StartCount};
use crate::raft::{Entry, LogId, Membership, Peers, Raft, Reply, Vote};
use crate::settings::{ClusterSettings, NodeSettings, VolumeSettings};
use crate::shard::Shard;
use crate::step_aside::Stall;
use crate::vetting::Vetting;
use crate::volumes::Volumes;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);
const CLUSTER: &str = "0123456789abcdef0123456789abcdef";
/// As [`super::ended`] has it, at least.
const LATER: Duration = Duration::from_secs(3600);

pub(crate) fn settings(directory: &Path, volumes: usize) -> NodeSettings {
    let disk = |number| VolumeSettings { disks: vec![directory.join(format!("disk-{number}"))] };
    NodeSettings {
        name: "node1".to_owned(),
        listen: "127.0.0.1:1".to_owned(),
        advertise: None,
        zone: "default".to_owned(),
        weight: 1,
        volumes: (1..=volumes).map(disk).collect(),
        resilver_octets_per_s: 1 << 20,
        dead_node_s: 0,
        leaders_look_s: 0,
        move_octets_per_s: 1 << 20,
        scrub_interval_s: 0,
        scrub_octets_per_s: 1 << 20,
        log_entries_kept: 100,
        disk_reserve_octets: 0,
        tls: ClusterTlsFiles { ca: "".into(), certificate: "".into(), key: "".into() },
        cluster: ClusterSettings { id: CLUSTER.to_owned(), nodes: Vec::new(), shards: 2, replicas: 1 },
    }
}

/// With the directory's group founded.
pub(crate) async fn groups(directory: &Path, volumes: usize) -> Arc<Groups> {
    let groups = opened(directory, volumes).await;
    found(&groups, &groups.directory()).await;
    groups
}

/// With what is on the disks.
pub(crate) async fn opened(directory: &Path, volumes: usize) -> Arc<Groups> {
    let settings = settings(directory, volumes);
    settings.volumes.iter().flat_map(|volume| &volume.disks).for_each(|disk| std::fs::create_dir_all(disk).unwrap());
    let volumes = Arc::new(Volumes::open(&settings).unwrap());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let (before, now) = (Start { starts: 0, run: 0 }, Start { starts: 1, run: 1 });
    let context = GroupContext {
        own: volumes.node,
        peers: Peers::new(volumes.node.0, Arc::new(tls), 1 << 20),
        stall: Stall::default(),
        start: StartCount { before, now },
        vetting: Arc::new(Vetting::new(true, true)),
    };
    Groups::start(volumes, context).await.unwrap()
}

async fn found(groups: &Groups, group: &Group) {
    let members = BTreeMap::from([(groups.own.0, BasicNode::new("127.0.0.1:1"))]);
    group.raft.initialize(members).await.unwrap();
    eventually("it leads", async || group.leads()).await;
}

pub(crate) async fn start(groups: &Groups, id: u32) -> Arc<Shard> {
    let shard = groups.start_shard(ShardId(id), true).await.unwrap().unwrap();
    found(groups, &shard.group).await;
    shard
}

pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

pub(crate) async fn create_account(shard: &Shard, account: u64) -> Result<(), MailError> {
    shard.propose(&Command::CreateAccount { account: AccountId(account) }, None).await.map(drop)
}

/// Whatever disk and memory hold, the core meets a panic of its own.
async fn panic_in(raft: &Raft) {
    let panicked: Result<(), _> = raft.with_raft_state(|_| panic!("on purpose")).await;
    assert!(panicked.is_err());
}

fn is_ended(group: &Group) -> bool {
    group.status().role == "stopped" && !group.leads() && group.ended().is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_storage_has_failed_once_begins_anew_and_has_all_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let groups = groups(directory.path(), 1).await;
    let (ended, other) = (start(&groups, 0).await, start(&groups, 1).await);
    create_account(&ended, 1).await.unwrap();
    let lock = ended.hold_maildrop(AccountId(1)).unwrap();
    let watched = ended.group.clone();
    let watching = tokio::spawn(async move { watched.leads_no_more().await });
    // What it asks its storage for from now on is an error, and would be none for another one.
    groups.volumes.first().unwrap().let_go(GroupId(0)).unwrap();
    assert_eq!(create_account(&ended, 2).await, Err(MailError::Deadline));
    eventually("its core ends", async || is_ended(&ended.group)).await;
    tokio::time::timeout(PATIENCE, watching).await.expect("whoever watches is told").unwrap();

    let now = Instant::now();
    groups.begin_ended(now).await;
    groups.begin_ended(now).await;
    let waiting = groups.shard(ShardId(0)).unwrap();
    assert!(Arc::ptr_eq(&waiting, &ended) && is_ended(&waiting.group), "not at once");
    groups.begin_ended(now + LATER).await;
    let begun = groups.shard(ShardId(0)).unwrap();
    eventually("it leads again", async || begun.group.leads()).await;
    assert!(begun.state().account_exists(AccountId(1)).unwrap());
    create_account(&begun, 3).await.unwrap();
    drop(begun.hold_maildrop(AccountId(1)).expect("the lock is another one"));
    drop(lock);
    assert!(ended.state().account_exists(AccountId(1)).is_err(), "nothing more is read or written by the old one");
    let untouched = groups.shard(ShardId(1)).unwrap();
    assert!(Arc::ptr_eq(&untouched, &other), "others go on");
    // Once more, and it waits longer.
    panic_in(&begun.group.raft).await;
    eventually("its core ends", async || is_ended(&begun.group)).await;
    groups.begin_ended(now + LATER).await;
    groups.begin_ended(now + LATER + Duration::from_millis(1500)).await;
    assert!(is_ended(&groups.shard(ShardId(0)).unwrap().group));
    groups.begin_ended(now + LATER * 2).await;
    let begun = groups.shard(ShardId(0)).unwrap();
    eventually("it leads again", async || begun.group.leads()).await;
    assert!(begun.state().account_exists(AccountId(3)).unwrap());
    groups.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_begins_anew_after_a_panic_and_after_an_error_of_its_storage() {
    let directory = tempfile::tempdir().unwrap();
    let groups = groups(directory.path(), 1).await;
    create_cluster(&groups, directory.path()).await;
    let add = |name: &str| directory::Command::CreateDomain { name: DomainName::parse(name).unwrap() };
    propose(&groups, add("one.test")).await;
    panic_in(&groups.directory().raft).await;
    begins_again(&groups, Instant::now() + LATER).await;
    propose(&groups, add("two.test")).await;

    groups.volumes.first().unwrap().let_go(GroupId::DIRECTORY).unwrap();
    let head = add("three.test").encode().unwrap();
    assert_eq!(groups.directory().propose(head, None).await.map(drop), Err(MailError::Deadline));
    begins_again(&groups, Instant::now() + LATER * 2).await;
    propose(&groups, add("four.test")).await;
    let names: Vec<String> = groups.directory_state.read().domains().map(|domain| domain.name.to_string()).collect();
    assert_eq!(names, ["four.test", "one.test", "two.test"]);
    groups.stop().await;
}

async fn begins_again(groups: &Groups, now: Instant) {
    let ended = groups.directory();
    eventually("its core ends", async || is_ended(&ended)).await;
    groups.begin_ended(now).await;
    assert!(is_ended(&groups.directory()), "not at once");
    groups.begin_ended(now + LATER).await;
    eventually("it leads again", async || groups.directory().leads()).await;
}

async fn create_cluster(groups: &Groups, directory: &Path) {
    let node = NewNode {
        id: groups.own,
        name: "node1".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        zone: "default".to_owned(),
        weight: 1,
        voter: true,
        format: types::format::known(),
        waits: false,
    };
    let id = settings(directory, 1).cluster_id().unwrap();
    propose(groups, directory::Command::CreateCluster { id, shards: 2, replicas: 1, nodes: vec![node] }).await;
}

async fn propose(groups: &Groups, command: directory::Command) {
    let answer = groups.directory().propose(command.encode().unwrap(), None).await;
    assert!(matches!(answer, Ok((Reply::Directory(Ok(_)), _))), "{:?}", answer.map(drop));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_when_the_node_stops_stays_ended() {
    let directory = tempfile::tempdir().unwrap();
    let groups = groups(directory.path(), 1).await;
    start(&groups, 0).await;
    groups.stop().await;
    for later in 0..3 {
        groups.begin_ended(Instant::now() + LATER * later).await;
    }
    assert!(groups.all().iter().all(is_ended));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replicas_of_a_volume_that_is_given_up_end_and_let_go_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let groups = groups(directory.path(), 2).await;
    let shards = [start(&groups, 0).await, start(&groups, 1).await];
    let [kept, lost] = [1, 2].map(|number| shards.iter().find(|shard| shard.volume.number == number).unwrap().clone());
    drop(shards);
    let (id, raft, volume) = (lost.id, lost.group.raft.clone(), lost.volume.clone());
    drop(lost);
    groups.give_up_volume(&volume, "on purpose");
    assert_eq!(groups.shard(id).map(drop), Err(MailError::NotLeader { hint: None }));
    eventually("its core ends", async || raft.metrics().borrow_watched().running_state.is_err()).await;
    drop(raft);
    let database = || VolumeOptions::new(directory.path().join("disk-2/db"));
    eventually("its database is let go of", async || Volume::open(database()).is_ok()).await;
    // Nothing begins it anew on a volume that is gone.
    groups.begin_ended(Instant::now()).await;
    groups.begin_ended(Instant::now() + LATER).await;
    assert!(groups.shard(id).is_err());
    create_account(&kept, 1).await.unwrap();
    groups.stop().await;
}

/// As a leader of this term: an entry, and a membership without this node.
async fn lead_from_afar(shard: &Shard, term: u64) {
    let leader = 9;
    let id = |index| LogId::new_term_index(term, index);
    let members = BTreeMap::from([(leader, BasicNode::new("127.0.0.1:9"))]);
    let others = Membership::new(vec![BTreeSet::from([leader])], members).unwrap();
    let payloads = [EntryPayload::Membership(others), EntryPayload::Blank];
    let entries = (0..).zip(payloads).map(|(index, payload)| Entry { log_id: id(index), payload }).collect();
    let request = AppendEntriesRequest {
        vote: Vote::new_committed(term, leader),
        prev_log_id: None,
        entries,
        leader_commit: None,
    };
    let answer = shard.group.raft.append_entries(request).await.unwrap();
    assert!(matches!(answer, AppendEntriesResponse::Success), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_begun_anew_by_the_leader_that_it_follows_and_by_none_before() {
    let directory = tempfile::tempdir().unwrap();
    let groups = groups(directory.path(), 1).await;
    create_cluster(&groups, directory.path()).await;
    propose(&groups, directory::Command::set_placement(ShardId(0), vec![groups.own])).await;
    let shard = groups.start_shard(ShardId(0), true).await.unwrap().unwrap();
    lead_from_afar(&shard, 2).await;
    let begin = async |term, membership| {
        groups.begin_replica(ShardId(0), Some(membership), Vote::new_committed(term, 9), 1).await.unwrap()
    };
    // A call that comes late: another leads by now.
    assert_eq!(begin(1, 5).await, None);
    assert!(Arc::ptr_eq(&groups.shard(ShardId(0)).unwrap(), &shard));
    assert_eq!(begin(2, 5).await, Some(1));
    let begun = groups.shard(ShardId(0)).unwrap();
    assert_eq!(begun.group.status().last_index, 0);
    assert!(!begun.group.takes_part(), "it knows nothing of what was there before it");
    groups.stop().await;
}
