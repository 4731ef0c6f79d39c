//! Accounts move from shard to shard while mail flows: clients keep their sessions, and whatever they remember of messages
//! stays true; and whoever dies meanwhile, nothing is lost, and nothing is there twice.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, Idlers, Random, Scenario, eventually, message, rounds};
use serde_json::Value;

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(120);
const HEAVY: &str = "heavy@example.test";
const LIGHT: &str = "light@example.test";
/// Of the heavy account; some are large.
const MESSAGES: usize = 150;
/// Logged by the leader of the shard that an account comes to, when it is held.
const HELD: &str = "account is held for its last pass";

fn shard_of(cluster: &Cluster, account: &str) -> Result<u64> {
    cluster.json(&["account", "show", account])?["shard"].as_u64().context("shard")
}

/// Another shard than the one that the account is on.
fn another(cluster: &Cluster, account: &str, random: &mut Random) -> Result<String> {
    let shards = u64::from(ClusterOptions::default().shards);
    Ok(((shard_of(cluster, account)? + 1 + random.below(shards - 1)) % shards).to_string())
}

fn fill(cluster: &Cluster) -> Result<()> {
    cluster.add_accounts(&["heavy", "light"])?;
    let mut light = cluster.imap_client(LIGHT)?;
    for number in 0..5 {
        light.append("INBOX", &message(&format!("light-{number}")))?;
    }
    let mut imap = cluster.imap_client(HEAVY)?;
    for command in ["CREATE Work/2026", "SUBSCRIBE Work/2026", "UNSUBSCRIBE Junk", "RENAME Trash Bin"] {
        imap.ok(command)?;
    }
    for number in 0..MESSAGES {
        let marker = format!("heavy-{number}");
        let to = if number % 3 == 0 { "Work/2026" } else { "INBOX" };
        let flags = ["()", "(\\Seen)", "(\\Flagged $Later)"][number % 3];
        let date = format!("{:02}-Mar-2021 12:34:56 +0{}00", 1 + number % 28, number % 10);
        imap.append(&format!("{to} {flags} \"{date}\""), &message(&marker))?;
    }
    let mut large = message("heavy-large");
    large.resize(3 << 20, b'x');
    imap.append("INBOX", &large)?;
    imap.select("INBOX")?;
    imap.ok("COPY 1:20 Archive")?;
    imap.ok("UID STORE 5:9 +FLAGS (\\Deleted)")?;
    imap.ok("EXPUNGE").map(drop)
}

/// All that clients remember of an account, and what it holds.
fn picture(cluster: &Cluster, account: &str) -> Result<Vec<String>> {
    let mut imap = cluster.imap_client(account)?;
    let mut lines = Vec::new();
    let mut add = |responses: Vec<Vec<u8>>| {
        let lossy = responses.iter().map(|line| String::from_utf8_lossy(line).into_owned());
        // Which session is told of a message as new is not kept (RFC 3501 §2.3.2).
        lines.extend(lossy.map(|line| line.replace(" \\Recent", "").replace("\\Recent", "")));
    };
    add(imap.ok("LIST \"\" \"*\" RETURN (SPECIAL-USE)").or_else(|_| imap.ok("LIST \"\" \"*\""))?);
    add(imap.ok("LSUB \"\" \"*\"")?);
    for mailbox in ["INBOX", "Work/2026", "Archive", "Bin", "Sent"] {
        add(imap.ok(&format!("STATUS {mailbox} (MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)"))?);
        imap.ok(&format!("EXAMINE {mailbox}"))?;
        add(imap.ok("UID FETCH 1:* (FLAGS INTERNALDATE RFC822.SIZE MODSEQ)")?);
    }
    let mut pop3 = cluster.pop3_client(account)?;
    lines.extend(pop3.lines("UIDL")?.iter().map(|line| String::from_utf8_lossy(line).into_owned()));
    pop3.command("QUIT")?;
    lines.push(cluster.admin(&["quota", "show", account, "--json"])?);
    Ok(lines)
}

fn check_same(before: &[String], after: &[String]) -> Result<()> {
    let differing = before.iter().zip(after).find(|(before, after)| before != after);
    ensure!(
        differing.is_none() && before.len() == after.len(),
        "{differing:?}, {} and {} lines",
        before.len(),
        after.len()
    );
    Ok(())
}

#[test]
fn a_heavy_account_moves_back_and_forth_and_no_client_notices() -> Result<()> {
    let (mut scenario, seed, rounds) = Scenario::seeded(ClusterOptions::default(), 301, rounds(1, 2))?;
    let mut random = Random::new(seed, 3);
    fill(&scenario.cluster)?;
    let idlers = Idlers::start(scenario.cluster.imap(0), &[HEAVY.to_owned()], 3)?;
    // Its lock goes along.
    let mut pop3 = scenario.cluster.pop3_client(LIGHT)?;
    let unique_ids = pop3.lines("UIDL")?;
    let mut expected = picture(&scenario.cluster, HEAVY)?;
    for round in 0..rounds {
        scenario.progress()?;
        let target = another(&scenario.cluster, HEAVY, &mut random)?;
        let began = Instant::now();
        scenario.cluster.admin(&["account", "move", HEAVY, &target])?;
        // Some of those under load go at the same time.
        for account in [LIGHT, "user1@example.test"] {
            let to = another(&scenario.cluster, account, &mut random)?;
            scenario.cluster.admin(&["account", "move", account, &to, "--wait"])?;
        }
        eventually("the account has moved", PATIENCE, || {
            let shown = scenario.cluster.json(&["account", "show", HEAVY])?;
            ensure!(shown["moving"].is_null() && is(&shown["shard"], &target), "{shown}");
            Ok(())
        })?;
        println!("moved to shard {target} in {:?}", began.elapsed());
        check_same(&expected, &picture(&scenario.cluster, HEAVY)?)?;
        scenario.progress()?;
        // What is new goes on from what there was.
        let mut smtp = scenario.cluster.smtp_client()?;
        let (code, text) = smtp.deliver("sender@example.org", &[HEAVY], &message(&format!("news-{round}")))?;
        ensure!(code == 250, "{code} {text}");
        let news = picture(&scenario.cluster, HEAVY)?;
        let messages = u64::from(scenario.cluster.imap_client(HEAVY)?.select("INBOX")?);
        eventually("sessions in IDLE are told", PATIENCE, || idlers.check(&[messages]))?;
        ensure!(highest(&news)? > highest(&expected)?, "the modseq did not rise");
        expected = news;
        ensure!(pop3.lines("UIDL")? == unique_ids && pop3.retrieve(2)? == message("light-1"));
    }
    pop3.command("DELE 2")?;
    pop3.command("QUIT")?;
    ensure!(scenario.cluster.imap_client(LIGHT)?.select("INBOX")? == 4);
    idlers.stop();
    let held = scenario.cluster.nodes.iter().map(|node| node.metric("mailring_node_account_held_max_milliseconds"));
    println!("held for {} ms at most", held.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0));
    ensure!(scenario.load.errors() == 0, "{} operations failed", scenario.load.errors());
    scenario.finish()
}

/// HIGHESTMODSEQ of INBOX.
fn highest(picture: &[String]) -> Result<u64> {
    let is_status = |line: &&String| line.starts_with("* STATUS") && line.contains("INBOX");
    let status = picture.iter().find(is_status).context("no status")?;
    let number = status.split("HIGHESTMODSEQ ").nth(1).and_then(|rest| rest.split([' ', ')']).next());
    number.context("no modseq")?.parse().context("modseq")
}

#[test]
fn what_cannot_be_is_refused_and_a_move_can_be_undone() -> Result<()> {
    // Slowly, so that the move is under way for a while.
    let cluster = Cluster::start(ClusterOptions { move_octets_per_s: Some(200_000), ..ClusterOptions::default() })?;
    let mut random = Random::new(302, 3);
    fill(&cluster)?;
    let (before, shard) = (picture(&cluster, HEAVY)?, shard_of(&cluster, HEAVY)?);
    let refused = |arguments: &[&str], text: &str| {
        let said = cluster.admin(arguments).err().map(|error| format!("{error:#}"));
        ensure!(said.as_deref().is_some_and(|said| said.contains(text)), "{arguments:?}: {said:?}");
        Ok(())
    };
    let target = another(&cluster, HEAVY, &mut random)?;
    refused(&["account", "move", HEAVY, "8"], "shard 8 does not exist")?;
    refused(&["account", "move", HEAVY, &shard.to_string()], &format!("is on shard {shard} already"))?;
    refused(&["account", "move", "nobody@example.test", &target], "does not exist")?;
    cluster.admin(&["account", "move", HEAVY, &target])?;
    refused(&["account", "move", HEAVY, &target], &format!("is moving to shard {target} already"))?;
    let shown = cluster.json(&["account", "show", HEAVY])?;
    ensure!(shown["moving"]["stage"] == "copying" && is(&shown["moving"]["to"], &target), "{shown}");
    cluster.admin(&["account", "move", HEAVY, "--abort", "--wait"])?;
    ensure!(shard_of(&cluster, HEAVY)? == shard);
    check_same(&before, &picture(&cluster, HEAVY)?)?;
    // One that is removed while it moves is gone from both shards.
    cluster.admin(&["account", "move", HEAVY, &target])?;
    let of_target = || messages(&cluster, &target);
    let held_before = of_target()?;
    eventually("some of it has come", PATIENCE, || {
        ensure!(of_target()? > held_before);
        Ok(())
    })?;
    cluster.admin(&["account", "remove", HEAVY, "--yes"])?;
    let light = shard_of(&cluster, LIGHT)?.to_string();
    eventually("only the other account is left", PATIENCE, || {
        // What changes in the directory makes nodes look.
        cluster.admin(&["account", "set", LIGHT, "--enable"])?;
        for at in [&target, &shard.to_string()] {
            let left = messages(&cluster, at)?;
            ensure!(left == if *at == light { 5 } else { 0 }, "{left} messages in shard {at}");
        }
        Ok(())
    })?;
    cluster.compare_replicas().map(drop)
}

fn is(value: &Value, number: &str) -> bool {
    value.as_u64() == number.parse().ok()
}

/// What a shard says that it holds.
fn messages(cluster: &Cluster, shard: &str) -> Result<u64> {
    let shards = cluster.json(&["shard", "list"])?;
    let row = shards.as_array().context("shards")?.iter().find(|row| is(&row["shard"], shard));
    row.context("no such shard")?["messages"].as_u64().context("messages")
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Target,
    Source,
    Directory,
}

impl Victim {
    fn node(self, cluster: &Cluster, source: u64, target: u64) -> Result<usize> {
        let shard = match self {
            Victim::Target => target,
            Victim::Source => source,
            Victim::Directory => return cluster.directory_leader(),
        };
        let shards = cluster.json(&["shard", "list"])?;
        let rows = shards.as_array().context("shards")?;
        let row = rows.iter().find(|row| row["shard"] == shard).context("no such shard")?;
        let leader = row["leader"].as_str().context("no leader")?;
        cluster.nodes.iter().position(|node| node.name == leader).context("no such node")
    }
}

fn held(cluster: &Cluster) -> Result<usize> {
    cluster.nodes.iter().map(|node| node.logged(HELD)).sum()
}

#[test]
fn processes_die_while_accounts_move() -> Result<()> {
    let options = ClusterOptions { move_octets_per_s: Some(4_000_000), ..ClusterOptions::default() };
    let (mut scenario, seed, rounds) = Scenario::seeded(options, 303, rounds(2, 3))?;
    let mut random = Random::new(seed, 3);
    fill(&scenario.cluster)?;
    let mut before = picture(&scenario.cluster, HEAVY)?;
    for round in 0..rounds {
        scenario.progress()?;
        // The heavy one while it is copied, one under load when it is held.
        let heavy = round % 3 == 0;
        let account = if heavy { HEAVY.to_owned() } else { format!("user{}@example.test", random.below(8)) };
        let source = shard_of(&scenario.cluster, &account)?;
        let target = another(&scenario.cluster, &account, &mut random)?;
        let victim = [Victim::Target, Victim::Source, Victim::Directory][random.below(3) as usize];
        let node =
            eventually("there is a leader", PATIENCE, || victim.node(&scenario.cluster, source, target.parse()?))?;
        let held_before = held(&scenario.cluster)?;
        scenario.cluster.admin(&["account", "move", &account, &target])?;
        let moment = if heavy { "copied" } else { "held" };
        if !heavy {
            eventually("the account is held", PATIENCE, || {
                ensure!(held(&scenario.cluster)? > held_before);
                Ok(())
            })?;
        }
        scenario.cluster.nodes[node].kill()?;
        println!("{account} from {source} to {target}: {victim:?} killed while it is {moment}");
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
        if heavy && random.below(2) == 0 {
            scenario.cluster.admin(&["account", "move", &account, "--abort"]).ok();
        }
        eventually("the move is over", PATIENCE, || {
            let shown: Value = scenario.cluster.json(&["account", "show", &account])?;
            ensure!(shown["moving"].is_null(), "{shown}");
            Ok(())
        })?;
        println!("served after {:?}", scenario.service_back()?);
        if heavy {
            let after = picture(&scenario.cluster, HEAVY)?;
            check_same(&before, &after)?;
            before = after;
        }
    }
    scenario.progress()?;
    scenario.finish()
}
