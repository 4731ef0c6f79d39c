//! Snapshots of a shard that are not what they should be: one that is not all there is refused, and one that cannot be
//! installed costs its group nothing but a replica that begins anew.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{Cluster, ClusterOptions, eventually};
use proto::ClusterTls;
use proto::wire::raft_client::RaftClient;
use proto::wire::snapshot_part::Part;
use proto::wire::{GroupStatus, LogId, SnapshotHeader, SnapshotPart, Vote};

const PATIENCE: Duration = Duration::from_secs(120);
const SHARD: u32 = 0;
/// Far above what the shard's log has, so that a snapshot up to there is one that is needed.
const AHEAD: u64 = 1_000_000;
const ANN: &str = "ann@example.test";

fn cluster() -> Result<Cluster> {
    let cluster = Cluster::start(ClusterOptions { shards: 1, leaders_look_s: Some(0), ..ClusterOptions::default() })?;
    cluster.add_accounts(&["ann"])?;
    deliver(&cluster, "one")?;
    Ok(cluster)
}

fn deliver(cluster: &Cluster, text: &str) -> Result<()> {
    let message = format!("Subject: {text}\r\n\r\n{text}\r\n");
    eventually("mail is taken", PATIENCE, || {
        let (code, reply) = cluster.smtp_client()?.deliver("bob@example.org", &[ANN], message.as_bytes())?;
        ensure!(code == 250, "{code} {reply}");
        Ok(())
    })
}

fn messages(cluster: &Cluster) -> Result<u32> {
    eventually("mail is read", PATIENCE, || cluster.imap_client(ANN)?.select("INBOX"))
}

/// What each node says of the shard, once one leads and the others follow it.
fn settled(cluster: &Cluster) -> Result<Vec<GroupStatus>> {
    eventually("all replicas of the shard run", PATIENCE, || {
        let groups: Vec<GroupStatus> = cluster
            .statuses()?
            .into_iter()
            .map(|status| status.and_then(|status| status.groups.into_iter().find(|group| group.group == SHARD)))
            .collect::<Option<_>>()
            .context("a node says nothing of the shard")?;
        let runs = |group: &GroupStatus| group.leader != 0 && ["leader", "follower"].contains(&group.role.as_str());
        ensure!(groups.iter().all(runs), "{groups:?}");
        ensure!(groups.iter().filter(|group| group.role == "leader").count() == 1, "{groups:?}");
        Ok(groups)
    })
}

fn healthy(cluster: &Cluster) -> Result<()> {
    eventually("the cluster is healthy", PATIENCE, || {
        let status = cluster.json(&["status"])?;
        ensure!(status["healthy"] == true, "{status}");
        Ok(())
    })
}

/// The nodes that lead and follow, the first of those.
fn roles(groups: &[GroupStatus]) -> Result<(usize, usize)> {
    let with = |role: &str| groups.iter().position(|group| group.role == role).with_context(|| format!("no {role}"));
    Ok((with("leader")?, with("follower")?))
}

/// As the shard's leader would send it. What the node answers that does not take it.
fn refusal(cluster: &Cluster, to: usize, leader: &GroupStatus, blocks: &[Vec<u8>]) -> Result<String> {
    let statuses = cluster.statuses()?;
    let identity = statuses[to].as_ref().and_then(|status| status.identity.clone()).context("the node's id")?;
    let header = SnapshotHeader {
        group: SHARD,
        to: identity.node_id,
        vote: Some(Vote { term: leader.term, leader: leader.leader, committed: true }),
        last: Some(last(leader)),
        membership_id: None,
        membership: None,
    };
    let blocks = blocks.iter().map(|block| Part::Block(block.clone().into()));
    let parts = std::iter::once(Part::Header(header)).chain(blocks).map(|part| SnapshotPart { part: Some(part) });
    let parts: Vec<SnapshotPart> = parts.collect();
    let files = cluster.tls_files(&cluster.nodes[(to + 1) % cluster.nodes.len()].name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = proto::connect(&cluster.grpc(to).to_string(), ClusterTls::load(&files)?.client)?;
        // It ends as that of a sender does that is done.
        let mut client = RaftClient::new(channel);
        let sending = client.install_snapshot(tokio_stream::iter(parts));
        match tokio::time::timeout(PATIENCE, sending).await.context("no answer")? {
            Ok(reply) => bail!("a snapshot was taken: {reply:?}"),
            Err(status) => Ok(format!("{:?}: {}", status.code(), status.message())),
        }
    })
}

fn last(leader: &GroupStatus) -> LogId {
    LogId { term: leader.term, index: leader.last_index + AHEAD }
}

/// As `node/storage/src/snapshot/block.rs` has it.
fn block(number: u32, is_last: bool, payload: &[u8]) -> Vec<u8> {
    let mut block = b"MRSB\x01".to_vec();
    block.push(u8::from(is_last));
    block.extend(SHARD.to_be_bytes());
    block.extend(number.to_be_bytes());
    block.extend((payload.len() as u32).to_be_bytes());
    block.extend(payload);
    block.extend(crc32c::crc32c(&block).to_be_bytes());
    block
}

/// The totals of these octets and no records, by Protocol Buffers' encoding, with the marker of a group without members.
fn totals(payload: &[u8], last: LogId) -> Vec<u8> {
    let id = [&[0x08][..], &varint(last.term), &[0x10], &varint(last.index)].concat();
    let marker = [&[1, 0x0a][..], &varint(id.len() as u64), &id, &[0x1a, 0]].concat();
    let crc = crc32c::crc32c(payload).to_le_bytes();
    [&[0x08][..], &varint(payload.len() as u64), &[0x25], &crc, &[0x2a], &varint(marker.len() as u64), &marker].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut octets = Vec::new();
    while value >= 0x80 {
        octets.push(value as u8 | 0x80);
        value >>= 7;
    }
    octets.push(value as u8);
    octets
}

/// The replica votes: without it nobody leads once the leader is gone.
fn leader_dies(cluster: &mut Cluster, leader: usize, mails: u32) -> Result<()> {
    cluster.nodes[leader].kill()?;
    deliver(cluster, "without the leader")?;
    let found = messages(cluster)?;
    ensure!(found == mails + 1, "{found} messages of {}", mails + 1);
    cluster.nodes[leader].start()?;
    cluster.nodes[leader].wait_ready()?;
    healthy(cluster)
}

#[test]
fn a_snapshot_whose_stream_ends_early_is_refused_and_ends_no_group() -> Result<()> {
    let mut cluster = cluster()?;
    let groups = settled(&cluster)?;
    let (leader, follower) = roles(&groups)?;
    for blocks in [vec![], vec![block(0, false, b"x")], vec![block(0, false, b"x"), block(1, false, b"y")]] {
        // What came of the one before goes behind its answer.
        eventually("the snapshot is refused", PATIENCE, || {
            let refusal = refusal(&cluster, follower, &groups[leader], &blocks)?;
            // Before openraft has a part in it, which would end its group.
            ensure!(refusal == "DataLoss: snapshot refused: the last block has not come", "{refusal}");
            Ok(())
        })?;
    }
    deliver(&cluster, "two")?;
    ensure!(messages(&cluster)? == 2, "mail is lost");
    settled(&cluster)?;
    healthy(&cluster)?;
    // A group that ends says so.
    cluster.check_logs(&[])?;
    leader_dies(&mut cluster, leader, 2)
}

#[test]
fn a_replica_that_a_snapshot_has_ended_begins_anew_with_all_that_it_had() -> Result<()> {
    let mut cluster = cluster()?;
    let groups = settled(&cluster)?;
    let (leader, follower) = roles(&groups)?;
    // Less than the head of a record.
    let payload = b"x";
    let blocks = [block(0, false, payload), block(1, true, &totals(payload, last(&groups[leader])))];
    let refusal = refusal(&cluster, follower, &groups[leader], &blocks)?;
    let node = &cluster.nodes[follower];
    eventually("the group ends there", PATIENCE, || {
        ensure!(node.logged("group has ended here")? == 1, "{refusal}: {}", node.log_tail());
        Ok(())
    })?;
    eventually("it begins anew", PATIENCE, || {
        ensure!(node.logged("group has begun anew")? == 1, "{}", node.log_tail());
        Ok(())
    })?;
    deliver(&cluster, "two")?;
    ensure!(messages(&cluster)? == 2, "mail is lost");
    settled(&cluster)?;
    healthy(&cluster)?;
    cluster.compare_replicas()?;
    cluster.check_logs(&["group has ended here", "an item is cut"])?;
    leader_dies(&mut cluster, leader, 2)
}
