//! Shards whose only replica is on a node that is dead for good: all others go on moving, and everybody is told which are lost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, eventually, noise};
use serde_json::Value;

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(120);
const SHARDS: u32 = 8;
/// A node that is busy may be silent for so long: it is not given up here.
const DEAD_NODE_S: u64 = 5;
const ACCOUNTS: usize = 12;

fn user(number: usize) -> String {
    format!("user{number}@example.test")
}

/// The shards that should be on a node.
fn shards_on(cluster: &Cluster, name: &str) -> Result<Vec<u64>> {
    let listed = cluster.json(&["shard", "list"])?;
    let rows = listed.as_array().context("shards")?.iter();
    let on = rows.filter(|row| row["wanted"].as_array().is_some_and(|wanted| wanted.iter().any(|one| one == name)));
    Ok(on.filter_map(|row| row["shard"].as_u64()).collect())
}

fn numbers(lost: &Value) -> Vec<u64> {
    lost.as_array().into_iter().flatten().filter_map(|one| one["shard"].as_u64()).collect()
}

/// `mailring status`, which fails where not all is well.
fn status(cluster: &Cluster) -> Result<Value> {
    let output = cluster.admin_command(&["status", "--json"])?.output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Whether an account has its one message.
fn check_mail(cluster: &Cluster, number: usize) -> Result<()> {
    let mut imap = cluster.imap_client(&user(number))?;
    imap.select("INBOX")?;
    ensure!(imap.body(1)?.is_some_and(|body| body == noise(number as u64, 10_000)), "{}: other octets", user(number));
    Ok(())
}

/// Nothing is made anew of what only it has: it is not given up, and whoever asks is told what comes back with it.
#[test]
fn a_dead_node_that_has_the_only_replicas_is_waited_for_and_brings_them_back() -> Result<()> {
    let options = ClusterOptions {
        replicas: 1,
        shards: SHARDS,
        dead_node_s: Some(DEAD_NODE_S),
        leaders_look_s: Some(0),
        ..ClusterOptions::DEFAULT
    };
    let mut cluster = Cluster::start(options)?;
    let locals: Vec<String> = (0..ACCOUNTS).map(|number| format!("user{number}")).collect();
    cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
    for number in 0..ACCOUNTS {
        cluster.imap_client(&user(number))?.append("INBOX", &noise(number as u64, 10_000))?;
    }
    let dead = cluster.nodes[2].name.clone();
    let away: Vec<String> = shards_on(&cluster, &dead)?.iter().map(u64::to_string).collect();
    ensure!(!away.is_empty(), "{dead} has none");
    cluster.nodes[2].kill()?;
    eventually("whoever leads the directory waits for it", PATIENCE, || {
        let waits = |node: &cluster_tests::Process| Ok(node.log()?.contains("dead node is waited for"));
        let said: Vec<bool> = cluster.nodes[..2].iter().map(waits).collect::<Result<_>>()?;
        ensure!(said.contains(&true), "nobody says so");
        Ok(())
    })?;
    ensure!(cluster.node(&dead)?["state"] == "active", "it is given up");
    let said = status(&cluster)?;
    let problems = said["problems"].as_array().context("problems")?;
    let is_told = |text: &str| text.contains(&away.join(", ")) && text.contains("back with it");
    ensure!(problems.iter().filter_map(Value::as_str).any(is_told), "{said}");
    let rebalance = cluster.json(&["rebalance", "status"])?;
    let warnings = rebalance["warnings"].as_array().context("warnings")?;
    ensure!(warnings.iter().filter_map(Value::as_str).any(is_told), "{rebalance}");
    cluster.nodes[2].start()?;
    (0..ACCOUNTS).try_for_each(|number| eventually("mail is served", PATIENCE, || check_mail(&cluster, number)))
}

#[test]
fn shards_that_are_lost_with_their_node_keep_no_others_from_moving() -> Result<()> {
    let options = ClusterOptions {
        nodes: 5,
        replicas: 1,
        shards: SHARDS,
        dead_node_s: Some(0),
        leaders_look_s: Some(0),
        ..ClusterOptions::DEFAULT
    };
    let mut cluster = Cluster::start(options)?;
    let locals: Vec<String> = (0..ACCOUNTS).map(|number| format!("user{number}")).collect();
    cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
    for number in 0..ACCOUNTS {
        cluster.imap_client(&user(number))?.append("INBOX", &noise(number as u64, 10_000))?;
    }
    let (dead, leaving) = (cluster.nodes[4].name.clone(), cluster.nodes[3].name.clone());
    let gone = shards_on(&cluster, &dead)?;
    ensure!(!gone.is_empty() && !shards_on(&cluster, &leaving)?.is_empty(), "they have none");
    cluster.nodes[4].kill()?;
    cluster.admin(&["node", "drain", &dead])?;
    cluster.admin(&["node", "drain", &leaving])?;
    eventually("the other node is drained", PATIENCE, || {
        let status = cluster.json(&["rebalance", "status"])?;
        ensure!(status["moves"].as_array().is_some_and(Vec::is_empty) && status["state"] == "finished", "{status}");
        ensure!(numbers(&status["lost"]) == gone, "{status}");
        ensure!(shards_on(&cluster, &leaving)?.is_empty(), "it is not");
        Ok(())
    })?;
    ensure!(shards_on(&cluster, &dead)? == gone, "what is lost was put elsewhere");
    let said = status(&cluster)?;
    let problem = format!("shard {} is lost: node {dead} is drained and does not answer", gone[0]);
    let problems = said["problems"].as_array().context("problems")?;
    ensure!(numbers(&said["lost"]) == gone && problems.iter().any(|one| *one == problem), "{said}");
    // The one that holds nothing is no longer needed; the other is.
    eventually("it is removed", PATIENCE, || cluster.admin(&["node", "remove", &leaving]))?;
    ensure!(cluster.admin(&["node", "remove", &dead]).is_err_and(|error| format!("{error:#}").contains("is lost")));
    let accounts = cluster.json(&["account", "list"])?;
    for number in 0..ACCOUNTS {
        let row = accounts.as_array().context("accounts")?.iter().find(|row| row["account"] == user(number));
        let shard = row.and_then(|row| row["shard"].as_u64()).context("shard")?;
        if !gone.contains(&shard) {
            eventually("what is not lost is served", PATIENCE, || check_mail(&cluster, number))?;
        }
    }
    // It was not dead for good after all.
    cluster.nodes[4].start()?;
    eventually("it is drained", PATIENCE, || {
        let status = cluster.json(&["rebalance", "status"])?;
        let is_over = status["moves"].as_array().is_some_and(Vec::is_empty) && status["state"] == "finished";
        ensure!(is_over && numbers(&status["lost"]).is_empty(), "{status}");
        ensure!(shards_on(&cluster, &dead)?.is_empty(), "it is not");
        Ok(())
    })?;
    (0..ACCOUNTS).try_for_each(|number| eventually("mail is served", PATIENCE, || check_mail(&cluster, number)))?;
    cluster.nodes.remove(3);
    cluster.check_logs(&["node does not answer"])
}
