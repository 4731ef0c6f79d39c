//! Accounts move while links are slow or cut, or records cannot be read: a slow move takes longer, one that is held in vain
//! is undone, and what cannot be read stops it only where there is no other copy, and is named.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    Cluster, ClusterOptions, Fault, Link, check_large, check_large_but, eventually, fill, flip_large, in_own_network,
    message, noise,
};
use proto::wire::{DeliverRequest, Recipient, SettleRequest};
use proto::{Body, ClusterTls, GrpcNode, MailStore};
use serde_json::Value;

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(120);
const USER: &str = "user0@example.test";
/// Every shard is on one node alone.
const ALONE: ClusterOptions = ClusterOptions { replicas: 1, proxied: true, ..ClusterOptions::DEFAULT };
/// Logged by the leader of the shard that an account comes to.
const HELD: &str = "account is held for its last pass";
/// By the same, when a move was broken off and is to go on.
const NOT_YET: &str = "account not moved yet";
/// What the window of a copy may hold takes half a minute.
const MEGABIT: Fault = Fault::Narrow(1_000_000);
/// Of each call between the two shards, there and back: what happens after the account is held takes seconds, and pings are
/// still answered in time.
const DELAY: Link = Link::Delay(Duration::from_millis(700));
const SEED: u64 = 5;

fn show(cluster: &Cluster) -> Result<Value> {
    cluster.json(&["account", "show", USER])
}

/// The nodes that lead the account's shard and another one, and that one.
fn apart(cluster: &Cluster) -> Result<(usize, usize, String)> {
    let shards = cluster.json(&["shard", "list"])?;
    let rows = shards.as_array().context("shards")?;
    let leader = |row: &Value| cluster.nodes.iter().position(|node| row["leader"] == node.name.as_str());
    let own = &show(cluster)?["shard"];
    let source = rows.iter().find(|row| row["shard"] == *own).and_then(leader).context("no leader")?;
    let elsewhere = |row: &&Value| leader(row).is_some_and(|node| node != source);
    let target = rows.iter().find(elsewhere).context("all shards are on one node")?;
    Ok((source, leader(target).context("no leader")?, target["shard"].to_string()))
}

fn check_moved(cluster: &Cluster, to: &str) -> Result<()> {
    let shown = show(cluster)?;
    ensure!(shown["moving"].is_null() && shown["shard"].as_u64() == to.parse().ok(), "{shown}");
    Ok(())
}

/// What the account holds, octet for octet.
fn bodies(cluster: &Cluster) -> Result<Vec<Option<Vec<u8>>>> {
    let mut imap = cluster.imap_client(USER)?;
    imap.select("INBOX")?;
    let uids = imap.uids()?;
    uids.into_iter().map(|uid| imap.body(uid)).collect()
}

/// A shard that the node leads which leads the account's own one, and that node.
fn together(cluster: &Cluster) -> Result<(usize, String)> {
    let shards = cluster.json(&["shard", "list"])?;
    let rows = shards.as_array().context("shards")?;
    let own = &show(cluster)?["shard"];
    let leader = &rows.iter().find(|row| row["shard"] == *own).context("no such shard")?["leader"];
    let other =
        rows.iter().find(|row| row["leader"] == *leader && row["shard"] != *own).context("it leads no other")?;
    let node = cluster.nodes.iter().position(|node| *leader == node.name.as_str()).context("no leader")?;
    Ok((node, other["shard"].to_string()))
}

#[test]
fn a_copy_whose_replicas_are_behind_links_of_a_megabit_takes_longer_and_no_more() -> Result<()> {
    let name = "a_copy_whose_replicas_are_behind_links_of_a_megabit_takes_longer_and_no_more";
    in_own_network(name, |mut network| {
        let cluster = Cluster::start(ClusterOptions { own_groups: true, ..ClusterOptions::default() })?;
        cluster.add_accounts(&["user0"])?;
        let mut imap = cluster.imap_client(USER)?;
        for seed in 0..9 {
            imap.append("INBOX", &noise(seed, 400_000))?;
        }
        let before = bodies(&cluster)?;
        let (leader, to) = together(&cluster)?;
        for (one, other) in [(0, 1), (1, 2), (2, 0)] {
            network.between(&cluster, &cluster.nodes[one].name, &cluster.nodes[other].name, MEGABIT)?;
        }
        cluster.admin(&["account", "move", USER, &to])?;
        eventually("the account has moved", PATIENCE, || check_moved(&cluster, &to))?;
        network.heal()?;
        ensure!(bodies(&cluster)? == before, "other messages");
        ensure!(cluster.nodes[leader].logged(NOT_YET)? == 0, "the copy was broken off");
        cluster.check_logs(&[])
    })
}

/// The account has a few messages, and is held for its move to a shard whose leader then reaches nobody: the two nodes, and
/// the shard.
fn cut_when_held(cluster: &Cluster) -> Result<(usize, usize, String)> {
    let (source, target, to) = apart(cluster)?;
    let [from, at] = [source, target].map(|node| cluster.nodes[node].name.as_str());
    cluster.proxy.between(from, at, DELAY);
    cluster.admin(&["account", "move", USER, &to])?;
    eventually("the account is held", PATIENCE, || {
        ensure!(cluster.nodes[target].logged(HELD)? > 0);
        Ok(())
    })?;
    cluster.proxy.between(from, at, Link::Cut);
    cluster.proxy.around(at, Link::Cut);
    let shown = show(cluster)?;
    ensure!(shown["moving"]["stage"] == "copying", "the links were cut too late: {shown}");
    Ok((source, target, to))
}

#[test]
fn an_account_that_is_held_in_vain_is_served_again_where_it_was() -> Result<()> {
    let cluster = Cluster::start(ALONE)?;
    cluster.add_accounts(&["user0"])?;
    let mut imap = cluster.imap_client(USER)?;
    imap.append("INBOX", &message("before"))?;
    let own = show(&cluster)?["shard"].clone();
    cut_when_held(&cluster)?;
    eventually("the account is served", PATIENCE, || {
        cluster.imap_client(USER)?.append("INBOX", &message("meanwhile")).map(drop)
    })?;
    let shown = show(&cluster)?;
    ensure!(shown["shard"] == own && shown["moving"]["stage"] == "undone", "{shown}");
    cluster.proxy.heal();
    eventually("the move is over", PATIENCE, || check_moved(&cluster, &own.to_string()))?;
    ensure!(bodies(&cluster)?.contains(&Some(message("before"))), "a message is gone");
    cluster.check_logs(&["account was held for too long", "node does not answer"])
}

/// A node, as a router asks it, over no proxy.
fn at(cluster: &Cluster, node: usize) -> Result<GrpcNode> {
    let tls = ClusterTls::load(&cluster.tls_files("router1"))?;
    Ok(GrpcNode::new(proto::connect(&cluster.grpc(node).to_string(), tls.client)?))
}

/// Whether the delivery was known already.
async fn deliver(node: &GrpcNode, shard: u32, account: u64, fingerprint: u8) -> Result<bool> {
    let body = Body::from_bytes(message(&format!("delivery-{fingerprint}")).into());
    let recipients = vec![Recipient { account, fingerprint: vec![fingerprint; 32].into() }];
    let request = DeliverRequest { shard, recipients, body_octets: body.octets(), ..DeliverRequest::default() };
    let reply = node.deliver(request, body).await?;
    let reply = reply.recipients.first().context("no reply")?;
    ensure!(reply.error.is_none(), "{reply:?}");
    Ok(reply.duplicate)
}

#[test]
fn a_delivery_that_was_settled_after_it_was_brought_is_settled_where_it_came_to() -> Result<()> {
    let cluster = Cluster::start(ALONE)?;
    cluster.add_accounts(&["user0"])?;
    let shown = show(&cluster)?;
    let account = shown["id"].as_u64().context("id")?;
    let shard = |shown: &Value| shown["shard"].as_u64().map(|shard| shard as u32).context("shard");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (source, ..) = apart(&cluster)?;
    let from = shard(&shown)?;
    runtime.block_on(async {
        let node = at(&cluster, source)?;
        for fingerprint in [1, 2] {
            ensure!(!deliver(&node, from, account, fingerprint).await?, "known before it came");
        }
        anyhow::Ok(())
    })?;
    let (source, target, to) = cut_when_held(&cluster)?;
    runtime.block_on(async {
        let fingerprints = vec![vec![1; 32].into()];
        at(&cluster, source)?.settle(SettleRequest { shard: from, fingerprints }).await.context("settle")
    })?;
    cluster.proxy.heal();
    eventually("the account has moved", PATIENCE, || check_moved(&cluster, &to))?;
    let to = shard(&show(&cluster)?)?;
    runtime.block_on(async {
        let node = at(&cluster, target)?;
        ensure!(deliver(&node, to, account, 2).await?, "a delivery that was not settled came twice");
        ensure!(!deliver(&node, to, account, 1).await?, "a delivery that was settled is taken for a retry");
        anyhow::Ok(())
    })?;
    ensure!(bodies(&cluster)?.len() == 3, "other messages");
    cluster.check_logs(&[])
}

#[test]
fn damage_at_the_leader_that_an_account_leaves_stops_no_move_that_another_replica_can_serve() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default())?;
    cluster.add_accounts(&["user0"])?;
    fill(&cluster, SEED)?;
    let (source, _, to) = apart(&cluster)?;
    ensure!(flip_large(&cluster.disk(source), 3, SEED)?, "the message is in no file");
    cluster.admin(&["account", "move", USER, &to])?;
    eventually("the account has moved", PATIENCE, || check_moved(&cluster, &to))?;
    ensure!(cluster.nodes[source].logged("record is damaged")? > 0, "nobody met the damage");
    check_large(&cluster, SEED)
}

#[test]
fn damage_that_no_other_replica_makes_good_stops_a_move_and_is_named_until_it_is_removed() -> Result<()> {
    let cluster = Cluster::start(ALONE)?;
    cluster.add_accounts(&["user0"])?;
    fill(&cluster, SEED)?;
    let (source, _, to) = apart(&cluster)?;
    ensure!(flip_large(&cluster.disk(source), 3, SEED)?, "the message is in no file");
    cluster.admin(&["account", "move", USER, &to])?;
    eventually("the record is named", PATIENCE, || {
        let shown = show(&cluster)?;
        let because = shown["moving"]["waits_because"].as_str().with_context(|| shown.to_string())?;
        ensure!(because.contains("record blob") && because.contains("cannot be read"), "{because}");
        let status = cluster.json(&["rebalance", "status"])?;
        let warnings = status["warnings"].as_array().context("no warnings")?;
        ensure!(warnings.iter().filter_map(Value::as_str).any(|text| text.contains(because)), "{status}");
        let text = cluster.admin(&["account", "show", USER])?;
        ensure!(text.contains(because), "{text}");
        Ok(())
    })?;
    check_large_but(&cluster, SEED, &[3])?;
    let mut imap = cluster.imap_client(USER)?;
    imap.select("Large")?;
    let uid = *imap.uids()?.get(3).context("no such message")?;
    imap.ok(&format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)"))?;
    imap.ok("EXPUNGE")?;
    eventually("the account has moved", PATIENCE, || check_moved(&cluster, &to))
}
