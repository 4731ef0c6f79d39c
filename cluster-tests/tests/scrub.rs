//! A scrub finds what is damaged, has it made anew from a good copy, and raises no alarm where all is well, under load.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    Cluster, ClusterOptions, Injection, Random, Scenario, TABLES, check_large, eventually, fill, flip, rounds,
};
use proto::wire::{CompareShardReply, CompareShardRequest};
use proto::{ClusterTls, DirectoryStore, GrpcNode};
use serde_json::Value;
use types::{MailError, MailResult};

const BIT_FLIPS: usize = 50;
const BODY_FLIPS: usize = 3;
/// Of each sync, in microseconds.
const SLOW: &str = "delay_enter=120000";
const PATIENCE: Duration = Duration::from_secs(300);
const ONE_MIRROR: ClusterOptions = ClusterOptions { nodes: 1, replicas: 1, mirror: true, ..ClusterOptions::DEFAULT };

/// With mail that lies in tables; and what chooses where damage goes, the seed and the rounds.
fn filled(options: ClusterOptions, seed: u64, rounds: u64) -> Result<(Scenario, Random, u64, u64)> {
    let (scenario, seed, rounds) = Scenario::seeded(options, seed, rounds)?;
    fill(&scenario.cluster, seed)?;
    Ok((scenario, Random::new(seed, u64::MAX), seed, rounds))
}

/// Starts the only node again, so that what lies on the disk is what is read.
fn with_empty_caches(scenario: &mut Scenario) -> Result<()> {
    scenario.cluster.nodes[0].kill()?;
    scenario.cluster.start_all()?;
    scenario.cluster.wait_ready()?;
    scenario.cluster.wait_whole("node1")?;
    scenario.load.forget_errors();
    Ok(())
}

#[test]
fn a_scrub_of_healthy_mirrors_and_replicas_under_load_finds_nothing() -> Result<()> {
    let (mut scenario, _, rounds) =
        Scenario::seeded(ClusterOptions { mirror: true, ..ClusterOptions::DEFAULT }, 81, rounds(1, 3))?;
    for _ in 0..rounds {
        scenario.progress()?;
        let summary = scenario.cluster.scrub_known(&[])?;
        ensure!(summary["clean"] == true && summary["replicas"] == 24, "{summary:#}");
        ensure!(summary["records"].as_u64() > Some(0), "{summary:#}");
    }
    let one = scenario.cluster.scrub_known(&["--shard", "3"])?;
    ensure!(one["clean"] == true && one["replicas"] == 3, "{one:#}");
    ensure!(scenario.cluster.scrub(&["--shard", "8"]).is_err(), "there is no shard 8");
    ensure!(scenario.load.errors() == 0, "{} errors seen by clients", scenario.load.errors());
    scenario.finish()
}

/// When the last scrub of node 1's volume ended.
fn scrubbed(cluster: &Cluster) -> Result<Option<String>> {
    let rows = cluster.volumes("node1")?;
    let ended = rows.first().map(|row| &row["last_scrub"]["ended"]).context("no volume")?;
    Ok(ended.as_str().map(str::to_owned))
}

#[test]
fn what_a_scrub_found_is_known_after_a_restart_and_the_next_one_comes_by_itself() -> Result<()> {
    let mut cluster = Cluster::start(ONE_MIRROR)?;
    cluster.add_accounts(&["user0"])?;
    ensure!(scrubbed(&cluster)?.is_none(), "it was never scrubbed");
    cluster.scrub(&["--shard", "3"])?;
    ensure!(scrubbed(&cluster)?.is_none(), "a shard is not the whole volume");
    cluster.scrub(&[])?;
    let first = scrubbed(&cluster)?.context("it was scrubbed")?;
    cluster.nodes[0].reconfigure("[node]\n", "[node]\nscrub_interval_s = 86400\n")?;
    cluster.nodes[0].kill()?;
    cluster.start_all()?;
    cluster.wait_ready()?;
    eventually("all is well, and what was found is known", PATIENCE, || {
        let known = scrubbed(&cluster)?;
        ensure!(known.as_ref() == Some(&first), "scrubbed {first}, and after a restart {known:?}");
        let status = cluster.admin(&["status"])?;
        ensure!(status.contains(&format!("1 of 1 volumes, oldest {first}, 0 findings")), "{status}");
        Ok(())
    })?;
    cluster.nodes[0].reconfigure("scrub_interval_s = 86400", "scrub_interval_s = 1")?;
    cluster.nodes[0].kill()?;
    cluster.start_all()?;
    eventually("the next scrub has come", PATIENCE, || {
        let next = scrubbed(&cluster)?;
        ensure!(next.as_ref() > Some(&first), "{next:?}");
        Ok(())
    })
}

#[test]
fn damage_that_nobody_reads_is_found_and_mended_by_the_scrub_that_comes_by_itself() -> Result<()> {
    let (mut scenario, mut random, seed, rounds) = filled(ONE_MIRROR, 84, 1)?;
    scenario.cluster.nodes[0].reconfigure("[node]\n", "[node]\nscrub_interval_s = 1\n")?;
    for round in 0..rounds {
        with_empty_caches(&mut scenario)?;
        let disk = scenario.cluster.disk_directories(0)[(round % 2) as usize].clone();
        // By the scrub, unless a compaction comes by it first.
        let found = |scenario: &Scenario| -> Result<usize> {
            let node = &scenario.cluster.nodes[0];
            Ok(node.logged("scrub found damage")? + node.logged("mirror half is damaged")?)
        };
        let before = found(&scenario)?;
        ensure!(flip(&disk, TABLES, &mut random, BIT_FLIPS)? == BIT_FLIPS, "no tables yet");
        eventually("the damage is found", PATIENCE, || {
            ensure!(found(&scenario)? > before, "nothing is logged");
            Ok(())
        })?;
        eventually("the half is made anew, and a later scrub finds nothing", PATIENCE, || {
            let rows = scenario.cluster.volumes("node1")?;
            let is_well = |row: &Value| row["state"] == "current" && row["last_scrub"]["findings"] == 0;
            ensure!(rows.len() == 2 && rows.iter().all(is_well), "{rows:?}");
            Ok(())
        })?;
        ensure!(scenario.load.errors() == 0, "{} errors seen by clients", scenario.load.errors());
    }
    check_large(&scenario.cluster, seed)?;
    scenario.finish()
}

#[test]
fn a_damaged_half_that_nobody_reads_is_found_and_made_anew() -> Result<()> {
    let (mut scenario, mut random, seed, rounds) = filled(ONE_MIRROR, 82, rounds(1, 2))?;
    for round in 0..rounds {
        with_empty_caches(&mut scenario)?;
        // The scrub that comes by itself has begun with the other one.
        let half = ((round + 1) % 2) as usize;
        let disk = scenario.cluster.disk_directories(0)[half].clone();
        ensure!(flip(&disk, TABLES, &mut random, BIT_FLIPS)? == BIT_FLIPS, "no tables yet");
        let found = scenario.cluster.scrub(&[])?;
        ensure!(found["clean"] == false && found["mended"] == true, "{found:#}");
        println!("{} findings", found["findings"].as_array().map_or(0, Vec::len));
        scenario.cluster.wait_whole("node1")?;
        let again = scenario.cluster.scrub_known(&[])?;
        ensure!(again["clean"] == true, "{again:#}");
        scenario.progress()?;
        ensure!(scenario.load.errors() == 0, "{} errors seen by clients", scenario.load.errors());
    }
    check_large(&scenario.cluster, seed)?;
    scenario.finish()
}

/// Flips bits of a node whose disk has no mirror.
fn damage(scenario: &mut Scenario, random: &mut Random, victim: usize) -> Result<()> {
    scenario.progress()?;
    scenario.cluster.nodes[victim].kill()?;
    scenario.cluster.start_all()?;
    scenario.cluster.wait_ready()?;
    // Bodies alone: a compaction that meets a damaged table ends the node, whose disk has no mirror.
    let flipped = flip(&scenario.cluster.disk(victim), &["blob"], random, BODY_FLIPS)?;
    ensure!(flipped == BODY_FLIPS, "no bodies in files yet");
    Ok(())
}

fn is_mended(cluster: &Cluster) -> Result<()> {
    // A replica that leads is handed over first, and made anew by the next scrub.
    eventually("all is mended", PATIENCE, || {
        let again = cluster.scrub(&[])?;
        ensure!(again["clean"] == true, "{again:#}");
        Ok(())
    })
}

#[test]
fn a_damaged_replica_without_a_mirror_is_made_anew_from_the_others() -> Result<()> {
    let (mut scenario, mut random, seed, rounds) = filled(ClusterOptions::DEFAULT, 83, 1)?;
    for round in 0..rounds {
        damage(&mut scenario, &mut random, (round % 3) as usize)?;
        let found = scenario.cluster.scrub_known(&[])?;
        ensure!(found["clean"] == false, "{found:#}");
        is_mended(&scenario.cluster)?;
        eventually("all replicas vote", PATIENCE, || scenario.cluster.admin(&["status"]).map(drop))?;
    }
    check_large(&scenario.cluster, seed)?;
    scenario.finish()
}

/// It is out of its group for a while before it begins anew. As it is, nobody is to bring it in again.
#[test]
fn a_damaged_replica_whose_disk_is_slow_is_brought_in_once_it_has_begun_anew() -> Result<()> {
    let (mut scenario, mut random, seed, rounds) = filled(ClusterOptions::DEFAULT, 86, 1)?;
    for round in 0..rounds {
        let victim = (round % 3) as usize;
        damage(&mut scenario, &mut random, victim)?;
        let process = scenario.cluster.nodes[victim].pid().context("not running")?;
        let Some(syncs) = Injection::begin(process, "fdatasync,fsync", SLOW, &[])? else { return Ok(()) };
        eventually("others lead", PATIENCE, || {
            let led = scenario.cluster.led()?;
            ensure!(led[victim] == 0, "{led:?}");
            Ok(())
        })?;
        let found = scenario.cluster.scrub_known(&[])?;
        ensure!(found["clean"] == false, "{found:#}");
        drop(syncs);
        is_mended(&scenario.cluster)?;
        eventually("all replicas vote", PATIENCE, || scenario.cluster.admin(&["status"]).map(drop))?;
    }
    check_large(&scenario.cluster, seed)?;
    scenario.finish()
}

/// Asks the node that leads a shard to compare its replicas, twice at once.
fn compare_twice(cluster: &Cluster, shard: u32) -> Result<[MailResult<CompareShardReply>; 2]> {
    let shown: Value = serde_json::from_str(&cluster.admin(&["shard", "show", &shard.to_string(), "--json"])?)?;
    let leader = cluster.nodes.iter().position(|node| shown["leader"] == node.name.as_str()).context("a leader")?;
    let tls = ClusterTls::load(&cluster.tls_files("admin"))?.client;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let node = GrpcNode::new(proto::connect(&cluster.grpc(leader).to_string(), tls)?);
        let request = || CompareShardRequest { shard };
        let (one, other) = tokio::join!(node.compare_shard(request()), node.compare_shard(request()));
        Ok([one, other])
    })
}

/// The second would let go of the state that the first has marked, and replicas would be taken for damaged, or wait.
#[test]
fn a_shard_is_compared_once_at_a_time() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions { shards: 4, ..ClusterOptions::DEFAULT })?;
    cluster.add_accounts(&["user0"])?;
    fill(&cluster, 85)?;
    let account: Value = serde_json::from_str(&cluster.admin(&["account", "show", "user0@example.test", "--json"])?)?;
    let shard = u32::try_from(account["shard"].as_u64().with_context(|| format!("{account}"))?)?;
    cluster.wait_led()?;
    let answers = eventually("its leader compares what all have", PATIENCE, || {
        let answers = compare_twice(&cluster, shard)?;
        // On a busy machine another may lead for a moment, or a replica give no answer.
        let is_known = |answer: &MailResult<CompareShardReply>| match answer {
            Ok(reply) => reply.replicas.iter().all(|replica| replica.verdict != "unknown"),
            Err(error) => matches!(error, MailError::CannotDo(_)),
        };
        ensure!(answers.iter().all(is_known) && answers.iter().any(Result::is_ok), "{answers:?}");
        Ok(answers)
    })?;
    let compared: Vec<_> = answers.iter().flatten().collect();
    let all_good = |reply: &CompareShardReply| reply.replicas.iter().all(|replica| replica.verdict == "good");
    ensure!(compared.len() == 1 && compared.iter().all(|reply| all_good(reply)), "{answers:?}");
    let refused = |answer: &MailResult<CompareShardReply>| matches!(answer, Err(MailError::CannotDo(reason)) if reason.contains("is being compared already"));
    ensure!(answers.iter().filter(|answer| refused(answer)).count() == 1, "{answers:?}");
    // And again when that has ended.
    cluster.check_scrub()
}
