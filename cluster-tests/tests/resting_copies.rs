//! The copy of a young shard, which goes by its log: it shows how far it is, rests while a shard that another node leads lacks a
//! replica, goes on when that is back, and ends with nearly all of it throttled, however few and large the entries are.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, eventually, noise};
use serde_json::Value;

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);
/// Half a minute for all of it, and more than a second for what goes at once.
const COPY_OCTETS_PER_S: u64 = 400_000;
/// Fewer entries than a voter may be behind.
const MESSAGES: u64 = 24;
const MESSAGE_OCTETS: usize = 500_000;
/// What may be left when the new replica gets its vote, and as much again that went before it was known as a copy.
const UNTHROTTLED_OCTETS_MAX: u64 = 2 << 20;
/// Looks at a copy that rests, each a command of its own: meanwhile some of it would go.
const LOOKS: usize = 60;
const COPIED: &str = "mailring_node_copied_octets";
const HELD: &str = "mailring_node_copies_held";
const USER: &str = "user0@example.test";

/// A figure of all running nodes together: another may lead the shard for a while.
fn total(cluster: &Cluster, figure: &str) -> Result<u64> {
    cluster.nodes.iter().filter(|node| node.pid().is_some()).map(|node| node.metric(figure)).sum()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

fn place(cluster: &Cluster, name: &str) -> Result<usize> {
    cluster.nodes.iter().position(|node| node.name == name).context("no such node")
}

/// Who takes part in what follows.
struct Parts {
    /// The number of the large shard, who follows its leader, and where that one's replica is to go.
    shard: String,
    from: String,
    to: String,
    /// It follows in the other shard, whose leader does not lead the large one, and has no replica of that.
    dies: String,
}

/// Five nodes have three replicas each of two shards.
fn parts(cluster: &Cluster) -> Result<Parts> {
    cluster.wait_led()?;
    let accounts = cluster.json(&["account", "list"])?;
    let user = accounts.as_array().context("accounts")?.iter().find(|one| one["account"] == USER);
    let large = user.context("user0")?["shard"].as_u64().context("shard")?;
    let shards = cluster.json(&["shard", "list"])?;
    let numbered = |wanted: bool| {
        let found = shards.as_array().into_iter().flatten().find(|one| (one["shard"] == large) == wanted);
        found.with_context(|| format!("two shards: {shards}"))
    };
    let (moves, other) = (numbered(true)?, numbered(false)?);
    ensure!(moves["leader"] != other["leader"], "one node leads both: {shards}");
    let (members, others) = (names(&moves["wanted"]), names(&other["wanted"]));
    let follows = |name: &&str| members.contains(name) && moves["leader"] != **name;
    let from = members.iter().find(|name| follows(name)).context("nobody follows")?;
    let all = cluster.nodes.iter().map(|node| node.name.as_str());
    let free: Vec<&str> = all.filter(|name| !members.contains(name)).collect();
    let dies = free.iter().find(|name| others.contains(name) && other["leader"] != ***name);
    let dies = dies.with_context(|| format!("no follower of the other shard alone: {shards}"))?;
    let to = free.iter().find(|name| *name != dies).context("no free node")?;
    let [shard, from, to, dies] = [large.to_string().as_str(), *from, *to, *dies].map(str::to_owned);
    Ok(Parts { shard, from, to, dies })
}

#[test]
fn a_copy_by_the_log_shows_how_far_it_is_rests_while_another_shard_is_short_and_is_throttled_to_the_end() -> Result<()>
{
    let options = ClusterOptions {
        nodes: 5,
        shards: 2,
        move_octets_per_s: Some(COPY_OCTETS_PER_S),
        leaders_look_s: Some(0),
        ..ClusterOptions::DEFAULT
    };
    let mut cluster = Cluster::start(options)?;
    cluster.add_accounts(&["user0"])?;
    let mut imap = cluster.imap_client(USER)?;
    for seed in 1..=MESSAGES {
        imap.append("INBOX", &noise(seed, MESSAGE_OCTETS))?;
    }
    imap.select("INBOX")?;
    let Parts { shard, from, to, dies } = parts(&cluster)?;
    let (target, dies) = (place(&cluster, &to)?, place(&cluster, &dies)?);
    cluster.admin(&["shard", "move", &shard, "--from", &from, "--to", &to])?;
    eventually("some of it has been copied", PATIENCE, || {
        let status = cluster.json(&["rebalance", "status"])?;
        let one = &status["moves"][0];
        let (copied, all) = (one["octets_copied"].as_u64(), one["octets_total"].as_u64());
        ensure!(copied > Some(0) && copied < all && one["phase"] == "copying", "{status}");
        Ok(())
    })?;

    cluster.nodes[dies].kill()?;
    eventually("the copy rests", PATIENCE, || {
        let status = cluster.json(&["rebalance", "status"])?;
        ensure!(total(&cluster, HELD)? == 1, "nothing rests: {status}");
        let because = status["waits_because"].as_str().unwrap_or_default();
        ensure!(because.contains("lacks a replica"), "{status}");
        Ok(())
    })?;
    let copied = total(&cluster, COPIED)?;
    for _ in 0..LOOKS {
        let status = cluster.json(&["rebalance", "status"])?;
        ensure!(status["moves"].as_array().map(Vec::len) == Some(1), "{status}");
    }
    ensure!(
        total(&cluster, COPIED)? == copied && total(&cluster, HELD)? == 1,
        "it goes on, with {copied} copied before"
    );

    cluster.start_all()?;
    cluster.wait_ready()?;
    eventually("the shard has moved", PATIENCE, || {
        let status = cluster.json(&["rebalance", "status"])?;
        ensure!(status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
        ensure!(status["percent"] == 100 && status["octets_left"] == 0, "{status}");
        let shown = cluster.json(&["shard", "show", &shard])?;
        let voters = names(&shown["voters"]);
        ensure!(voters.len() == 3 && voters.contains(&to.as_str()), "{shown}");
        Ok(())
    })?;
    let (copied, all) = (total(&cluster, COPIED)?, MESSAGES * MESSAGE_OCTETS as u64);
    ensure!(copied + UNTHROTTLED_OCTETS_MAX >= all, "of {all} octets only {copied} were throttled");
    let (log, group) = (cluster.nodes[target].log()?, format!("group={shard} "));
    let installed = log.lines().filter(|line| line.contains("snapshot installed") && line.contains(&group)).count();
    ensure!(installed == 0, "it needed {installed} snapshots, and was to go by its log");
    println!("{copied} octets were throttled");
    ensure!(imap.body(1)?.is_some_and(|body| body == noise(1, MESSAGE_OCTETS)), "other octets");
    cluster.compare_replicas()?;
    cluster.check_logs(&["node does not answer"])
}
