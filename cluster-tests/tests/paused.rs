//! A node that stops without a word (SIGSTOP) while it leads: others take its shards over, and whatever was under way
//! there goes on elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cluster_tests::{Cluster, ClusterOptions, ImapClient, SmtpClient, eventually};

/// An election takes up to 3 s, and a dead connection is found within 4 s; what it took is printed. This and the next bound only
/// how long a test waits before it gives up.
const SERVICE_BACK_MAX: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(60);

const ACCOUNTS: usize = 16;

fn user(account: usize) -> String {
    format!("user{account}@example.test")
}

fn message(marker: &str) -> Vec<u8> {
    format!("From: s@example.test\r\nSubject: {marker}\r\n\r\nbody of {marker}\r\n").into_bytes()
}

/// Delivers as a sending server would: what is deferred is sent again.
fn deliver(cluster: &Cluster, account: usize, marker: &str, until: Instant) -> Result<()> {
    eventually(marker, until.saturating_duration_since(Instant::now()), || {
        let mut client = SmtpClient::connect(cluster.smtp(0))?;
        let (code, text) = client.deliver("s@example.test", &[&user(account)], &message(marker))?;
        ensure!(code == 250, "{code} {text}");
        Ok(())
    })
}

/// The subjects in an account's INBOX. What is refused for now is asked again.
fn subjects(cluster: &Cluster, account: usize, until: Instant) -> Result<Vec<String>> {
    eventually(&user(account), until.saturating_duration_since(Instant::now()), || {
        let mut imap = cluster.imap_client(&user(account))?;
        imap.select("INBOX")?;
        let mut found = Vec::new();
        for uid in imap.uids()? {
            let body = String::from_utf8_lossy(&imap.body(uid)?.context("no body")?).into_owned();
            found.push(body.lines().find_map(|line| line.strip_prefix("Subject: ")).context("no subject")?.to_owned());
        }
        Ok(found)
    })
}

/// The index of the node that leads most shards, and accounts whose shards it leads.
fn most_leading(cluster: &Cluster) -> Result<(usize, Vec<usize>)> {
    let list = |noun: &str| -> Result<Vec<serde_json::Value>> {
        let listing: serde_json::Value = serde_json::from_str(&cluster.admin(&[noun, "list", "--json"])?)?;
        Ok(listing.as_array().context("a listing")?.clone())
    };
    let mut leads: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for shard in list("shard")? {
        let leader = shard["leader"].as_str().context("a leader")?.to_owned();
        leads.entry(leader).or_default().push(shard["shard"].as_u64().context("a shard")?);
    }
    let accounts = list("account")?;
    let led = |shards: &[u64]| -> Vec<usize> {
        let in_shards = |account: &serde_json::Value| account["shard"].as_u64().is_some_and(|at| shards.contains(&at));
        let number = |account: &serde_json::Value| {
            account["account"].as_str()?.strip_prefix("user")?.split('@').next()?.parse().ok()
        };
        accounts.iter().filter(|account| in_shards(account)).filter_map(number).collect()
    };
    let (leader, shards) =
        leads.iter().max_by_key(|(_, shards)| (shards.len(), led(shards).len())).context("leaders")?;
    let node = cluster.nodes.iter().position(|node| node.name == *leader).context("the leader's process")?;
    Ok((node, led(shards)))
}

#[test]
fn a_paused_leader_is_replaced_within_ten_seconds_and_nothing_is_lost_or_doubled() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default())?;
    let locals: Vec<String> = (0..ACCOUNTS).map(|account| format!("user{account}")).collect();
    cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
    for account in 0..ACCOUNTS {
        deliver(&cluster, account, "before", Instant::now() + PATIENCE)?;
    }
    let (node, led) = most_leading(&cluster)?;
    let &idler = led.first().with_context(|| format!("no account on {}", cluster.nodes[node].name))?;
    let mut idle = cluster.imap_client(&user(idler))?;
    idle.select("INBOX")?;
    let tag = idle.send("IDLE")?;
    ensure!(idle.response()?.starts_with(b"+"));

    // Under way when the node is paused: the content is there but for its end.
    let mut under_way = Vec::new();
    for &account in &led {
        let mut client = SmtpClient::connect(cluster.smtp(0))?;
        client.command("MAIL FROM:<s@example.test>", 250)?;
        client.command(&format!("RCPT TO:<{}>", user(account)), 250)?;
        client.command("DATA", 354)?;
        client.line.send(&message("under way"))?;
        under_way.push(client);
    }
    cluster.nodes[node].signal("STOP")?;
    let paused = Instant::now();
    let until = paused + SERVICE_BACK_MAX;
    for client in &mut under_way {
        client.line.send(b".\r\n")?;
    }
    let mut slowest = BTreeMap::new();
    thread::scope(|scope| -> Result<()> {
        let cluster = &cluster;
        let (done, all) = mpsc::channel::<(&str, Result<Duration>)>();
        for account in 0..ACCOUNTS {
            let (delivered, read) = (done.clone(), done.clone());
            scope.spawn(move || {
                let outcome = deliver(cluster, account, "during", until);
                drop(delivered.send(("deliver", outcome.map(|()| paused.elapsed()))));
            });
            scope.spawn(move || {
                let outcome = subjects(cluster, account, until);
                drop(read.send(("read", outcome.map(|_| paused.elapsed()))));
            });
        }
        for (mut client, &account) in under_way.into_iter().zip(&led) {
            let done = done.clone();
            scope.spawn(move || {
                let outcome = client.reply().and_then(|(code, text)| match code {
                    250 => Ok(()),
                    400..500 => deliver(cluster, account, "under way", until),
                    _ => Err(anyhow!("{code} {text}")),
                });
                drop(done.send(("under way", outcome.map(|()| paused.elapsed()))));
            });
        }
        drop(done);
        for (what, took) in all {
            let took = took.with_context(|| what.to_owned())?;
            slowest.entry(what).and_modify(|known: &mut Duration| *known = took.max(*known)).or_insert(took);
        }
        Ok(())
    })?;
    println!("slowest after the pause: {slowest:?}");
    // From here on nobody waits for the paused node, so that all of this is quick.
    let again = Instant::now();
    for &account in &led {
        deliver(&cluster, account, "still paused", again + PATIENCE)?;
    }
    println!("{} deliveries beside the paused node took {:?}", led.len(), again.elapsed());
    // The IDLE session has learnt of what came during the pause.
    exists(&mut idle, 4)?;
    // One word to the operator of the node that is paused.
    let known = cluster.node(&cluster.nodes[node].name)?;
    let paused = format!("node={}", known["id"].as_str().context("id")?);
    let told =
        || Ok::<_, anyhow::Error>(cluster.routers[0].alarms()?.iter().filter(|line| line.contains(&paused)).count());
    ensure!(told()? <= 1, "{} warnings:\n{}", told()?, cluster.routers[0].log()?);

    cluster.nodes[node].signal("CONT")?;
    for &account in &led {
        deliver(&cluster, account, "after", Instant::now() + PATIENCE)?;
    }
    exists(&mut idle, 5)?;
    idle.line.send(b"DONE\r\n")?;
    let (_, tagged) = idle.finish(&tag)?;
    ensure!(tagged.starts_with("OK"), "{tagged}");
    for account in 0..ACCOUNTS {
        let mut expected = vec!["before", "during"];
        if led.contains(&account) {
            expected.extend(["under way", "still paused", "after"]);
        }
        expected.sort_unstable();
        // Each once, and so it stays.
        eventually("all that was acknowledged is there once", PATIENCE, || {
            let mut found = subjects(&cluster, account, Instant::now() + PATIENCE)?;
            found.sort_unstable();
            ensure!(found == expected, "{}: {found:?}, acknowledged {expected:?}", user(account));
            Ok(())
        })?;
    }
    // It is told as often that the node answers again.
    eventually("the node is heard", PATIENCE, || {
        ensure!(told()? == 0, "{} warnings:\n{}", told()?, cluster.routers[0].log()?);
        Ok(())
    })
}

/// Reads until the mailbox is told to have so many messages.
fn exists(client: &mut ImapClient, messages: u32) -> Result<()> {
    let wanted = format!("* {messages} EXISTS");
    loop {
        let line = String::from_utf8_lossy(&client.response()?).into_owned();
        ensure!(line.starts_with("* "), "{line}");
        if line == wanted {
            return Ok(());
        }
    }
}

#[test]
fn a_router_that_starts_before_its_nodes_or_loses_one_says_so_once() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    cluster.add_accounts(&["user0"])?;
    for process in cluster.nodes.iter_mut().chain(&mut cluster.routers) {
        process.kill()?;
    }
    // Those of the start before, whose nodes were killed first, may be taken back by this one.
    fs::write(cluster.path().join("router1.log"), "")?;
    let said = |cluster: &Cluster, fits: fn(usize) -> bool| {
        // A node that is silent for a moment, on a busy machine, has its time to answer again.
        eventually("so many warnings", PATIENCE, || {
            let said = cluster.routers[0].alarms()?;
            ensure!(fits(said.len()), "{said:?}");
            Ok(())
        })
    };
    cluster.routers[0].start()?;
    // It misses its directory.
    said(&cluster, |warnings| warnings > 0)?;
    // Mail that cannot be taken yet, several rounds of it, is nothing to warn of.
    for _ in 0..5 {
        let mut client = SmtpClient::connect(cluster.smtp(0))?;
        client.command("MAIL FROM:<>", 250)?;
        client.command(&format!("RCPT TO:<{}>", user(0)), 451)?;
    }
    cluster.start_all()?;
    cluster.wait_ready()?;
    deliver(&cluster, 0, "one", Instant::now() + PATIENCE)?;
    said(&cluster, |warnings| warnings == 1)?;

    let (node, _) = most_leading(&cluster)?;
    cluster.nodes[node].kill()?;
    for _ in 0..10 {
        deliver(&cluster, 0, "two", Instant::now() + PATIENCE)?;
        subjects(&cluster, 0, Instant::now() + PATIENCE)?;
    }
    said(&cluster, |warnings| warnings <= 2)?;
    cluster.nodes[node].start()?;
    cluster.nodes[node].wait_ready()?;
    deliver(&cluster, 0, "three", Instant::now() + PATIENCE)?;
    said(&cluster, |warnings| warnings <= 2)
}
