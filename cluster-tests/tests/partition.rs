//! The network between processes fails under load: a leader cut off, bytes that vanish one way, delays, links that flap.
//! Nothing acknowledged is lost, nothing stale is acknowledged or read, and service goes on where there is a majority.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cluster_tests::{
    Cluster, ClusterOptions, Idlers, ImapClient, Link, PASSWORD, Random, Scenario, SmtpClient, dot_stuffed, eventually,
    is_long, setting,
};
use serde_json::Value;

/// Accounts beside the load's: of 8 shards the node that leads most is all but certain to lead one of theirs.
const BESIDE: usize = 16;
/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a leader is in the minority, in the long form.
const MINORITY: Duration = Duration::from_secs(30);
/// How long a leader is paused, in turn.
const PAUSES: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];

/// A cluster under load with a proxy before every node.
fn start(seed: u64, rounds: u64) -> Result<Scenario> {
    let options = ClusterOptions { routers: 2, proxied: true, ..ClusterOptions::default() };
    Scenario::start(options, seed, rounds)
}

/// The sender is told to try again: at RCPT, once it is known that nobody leads, or at the end of the message.
fn deferred(smtp: SocketAddr, account: &str, message: &[u8]) -> Result<()> {
    let mut client = SmtpClient::connect(smtp)?;
    client.command("MAIL FROM:<probe@example.test>", 250)?;
    client.line.send(format!("RCPT TO:<{account}>\r\n").as_bytes())?;
    let (mut code, mut text) = client.reply()?;
    if code == 250 {
        client.command("DATA", 354)?;
        client.line.send(&dot_stuffed(message))?;
        (code, text) = client.reply()?;
    }
    ensure!((400..500).contains(&code), "the minority answered {code} {text}");
    Ok(())
}

#[test]
fn a_leader_in_the_minority_acknowledges_nothing_and_the_majority_goes_on() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 21), setting("MAILRING_ROUNDS", 1));
    let mut scenario = start(seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        let cluster = &scenario.cluster;
        let minority = cluster.first_leader()?;
        let name = |node: usize| cluster.nodes[node].name.clone();
        // Router 2 is on the minority's side of the cut, with clients that may believe it.
        for other in (0..3).filter(|other| *other != minority) {
            cluster.proxy.between(&name(minority), &name(other), Link::Cut);
            cluster.proxy.between("router2", &name(other), Link::Cut);
        }
        let cut = Instant::now();
        let account = "user0@example.test";
        let message = format!("Subject: minority {seed}\r\n\r\nnot to be acknowledged\r\n");
        std::thread::scope(|scope| -> Result<()> {
            let majority = scope.spawn(|| scenario.service_back_after("the leader was cut off", cut));
            minority_defers(cluster, account, message.as_bytes())?;
            println!("the majority serves after {:?}", majority.join().map_err(|_| anyhow!("panicked"))??);
            Ok(())
        })?;
        while is_long() && cut.elapsed() < MINORITY {
            scenario.progress()?;
            deferred(scenario.cluster.smtp(1), account, message.as_bytes())?;
        }
        scenario.cluster.proxy.heal();
        scenario.service_back_after("the cut was healed", Instant::now())?;
    }
    scenario.finish()
}

/// Router 2, on the minority's side, acknowledges nothing and shows nothing: what the majority has by now, it cannot know.
fn minority_defers(cluster: &Cluster, account: &str, message: &[u8]) -> Result<()> {
    let cut = Instant::now();
    deferred(cluster.smtp(1), account, message)?;
    println!("the minority refused after {:?}", cut.elapsed());
    let mut imap = ImapClient::connect(cluster.imap(1))?;
    let (_, tagged) = imap.command(&format!("LOGIN {account} {PASSWORD}"))?;
    if tagged.starts_with("OK") {
        let (_, tagged) = imap.command("SELECT INBOX")?;
        ensure!(tagged.starts_with("NO"), "the minority showed a mailbox: {tagged}");
    }
    let again = Instant::now();
    deferred(cluster.smtp(1), account, message)?;
    println!("and once it knew, after {:?}", again.elapsed());
    Ok(())
}

#[test]
fn bytes_that_vanish_one_way_lose_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 22), setting("MAILRING_ROUNDS", 1));
    let mut scenario = start(seed, rounds)?;
    for _ in 0..rounds {
        for outward in [true, false] {
            scenario.progress()?;
            let leader = scenario.cluster.first_leader()?;
            let name = scenario.cluster.nodes[leader].name.clone();
            let (from, to) = if outward { (Some(name.as_str()), None) } else { (None, Some(name.as_str())) };
            scenario.cluster.proxy.set(from, to, Link::Swallow);
            println!("served {:?} after {name}'s bytes vanish, outward: {outward}", scenario.service_back()?);
            scenario.progress()?;
            scenario.cluster.proxy.heal();
        }
    }
    scenario.finish()
}

#[test]
fn two_hundred_milliseconds_on_every_link_lose_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 23), setting("MAILRING_ROUNDS", 1));
    let mut scenario = start(seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        scenario.cluster.proxy.set(None, None, Link::Delay(Duration::from_millis(200)));
        scenario.progress()?;
        scenario.cluster.proxy.heal();
    }
    scenario.finish()
}

#[test]
fn links_that_flap_in_random_order_lose_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 24), setting("MAILRING_ROUNDS", 8));
    let mut random = Random::new(seed, u64::MAX);
    let mut scenario = start(seed, rounds)?;
    let names = ["node1", "node2", "node3", "router1", "router2"];
    for _ in 0..rounds {
        scenario.progress()?;
        // Two links at a time, of those between nodes at most one: a majority stays connected somewhere.
        let node = random.below(3) as usize;
        let links = [(names[node], names[(node + 1) % 3]), (names[3 + random.below(2) as usize], names[node])];
        for (one, other) in links {
            let link = match random.below(3) {
                0 => Link::Cut,
                1 => Link::Swallow,
                _ => Link::Delay(Duration::from_millis(50 + random.below(300))),
            };
            scenario.cluster.proxy.between(one, other, link);
        }
        scenario.progress()?;
        scenario.cluster.proxy.heal();
    }
    scenario.finish()
}

#[test]
fn a_leader_that_was_paused_under_load_has_nothing_stale_to_say() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 25), setting("MAILRING_ROUNDS", 2));
    let mut scenario = start(seed, rounds)?;
    for round in 0..rounds {
        pause_the_leader(&scenario, if is_long() { pause(round) } else { Duration::ZERO })?;
    }
    scenario.finish()
}

#[test]
fn a_paused_leader_with_a_mirror_has_both_halves_when_it_goes_on() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 26), setting("MAILRING_ROUNDS", 1));
    let options = ClusterOptions { routers: 2, mirror: true, ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    for round in 0..rounds {
        let paused = pause_the_leader(&scenario, pause(round))?;
        scenario.progress()?;
        let rows = eventually("the node tells of its volumes", PATIENCE, || {
            let rows = scenario.cluster.volumes(&scenario.cluster.nodes[paused].name)?;
            ensure!(!rows.is_empty(), "it does not answer");
            Ok(rows)
        })?;
        ensure!(rows.len() == 2 && rows.iter().all(|row| row["state"] == "current"), "{rows:?}");
    }
    scenario.finish()
}

/// One of the accounts beside the load's whose shard a node leads.
fn led_account(scenario: &Scenario, leader: usize) -> Result<String> {
    let list = |noun: &str| -> Result<Vec<Value>> {
        Ok(serde_json::from_str(&scenario.cluster.admin(&[noun, "list", "--json"])?)?)
    };
    let mut shards = list("shard")?;
    shards.retain(|shard| shard["leader"] == *scenario.cluster.nodes[leader].name);
    let mut accounts = list("account")?;
    accounts.retain(|account| account["account"].as_str().is_some_and(|name| name.starts_with("beside")));
    let led = accounts.iter().find(|account| shards.iter().any(|shard| shard["shard"] == account["shard"]));
    Ok(led.and_then(|account| account["account"].as_str()).context("an account that it leads")?.to_owned())
}

#[test]
fn a_leader_whose_followers_are_paused_acknowledges_nothing_until_they_go_on() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 27), setting("MAILRING_ROUNDS", 1));
    let mut scenario = Scenario::start(ClusterOptions::default(), seed, rounds)?;
    let beside: Vec<String> = (0..BESIDE).map(|number| format!("beside{number}")).collect();
    scenario.cluster.add_accounts(&beside.iter().map(String::as_str).collect::<Vec<_>>())?;
    for round in 0..rounds {
        scenario.progress()?;
        let leader = scenario.cluster.first_leader()?;
        let account = led_account(&scenario, leader)?;
        let before = scenario.cluster.imap_client(&account)?.select("INBOX")?;
        let message = format!("Subject: alone {round}\r\n\r\nhello\r\n");
        let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
        others.iter().try_for_each(|node| scenario.cluster.nodes[*node].signal("STOP"))?;
        for attempt in ["the first", "the second"] {
            let began = Instant::now();
            deferred(scenario.cluster.smtp(0), &account, message.as_bytes())?;
            println!("{attempt} was deferred after {:?}", began.elapsed());
        }
        let resumed = Instant::now();
        others.iter().try_for_each(|node| scenario.cluster.nodes[*node].signal("CONT"))?;
        scenario.service_back_after("the followers went on", resumed)?;
        // The sender's next attempt finds what may have been stored meanwhile.
        eventually("the message is taken", PATIENCE, || {
            let (code, text) =
                scenario.cluster.smtp_client()?.deliver("probe@example.test", &[&account], message.as_bytes())?;
            ensure!(code == 250, "{code} {text}");
            Ok(())
        })?;
        let after = scenario.cluster.imap_client(&account)?.select("INBOX")?;
        ensure!(after == before + 1, "{after} messages after {before} and one that was sent");
    }
    scenario.finish()
}

/// Of two routers that see the same minority, each gives it the time that its settings say.
#[test]
fn a_router_that_is_told_to_wait_for_a_majority_refuses_nothing_that_another_does() -> Result<()> {
    const ACCOUNT: &str = "user0@example.test";
    let mut cluster = Cluster::start(ClusterOptions { routers: 2, ..ClusterOptions::DEFAULT })?;
    cluster.add_accounts(&["user0"])?;
    cluster.routers[0].terminate()?;
    let patient = "[router]\nlimits = { operation_ms = 60000, minority_ms = 60000 }\n";
    cluster.routers[0].reconfigure("[router]\n", patient)?;
    cluster.routers[0].start()?;
    cluster.routers[0].wait_ready()?;
    let leader = eventually("leaders are where they should be", PATIENCE, || {
        let led = cluster.accounts_by_leader()?;
        led.iter().position(|accounts| accounts.iter().any(|account| account == ACCOUNT)).context("no leader")
    })?;
    let message = b"Subject: patience\r\n\r\nhello\r\n";
    let mut waits = cluster.smtp_client()?;
    waits.command("MAIL FROM:<probe@example.test>", 250)?;
    waits.command(&format!("RCPT TO:<{ACCOUNT}>"), 250)?;
    waits.command("DATA", 354)?;
    let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    others.iter().try_for_each(|node| cluster.nodes[*node].signal("STOP"))?;
    waits.line.send(&dot_stuffed(message))?;
    let refused = deferred(cluster.smtp(1), ACCOUNT, b"Subject: impatience\r\n\r\nhello\r\n");
    others.iter().try_for_each(|node| cluster.nodes[*node].signal("CONT"))?;
    refused?;
    let (code, text) = waits.reply()?;
    ensure!(code == 250, "the one that waits was answered {code} {text}");
    Ok(())
}

fn pause(round: u64) -> Duration {
    PAUSES[(round % 2) as usize]
}

/// Pauses the node that leads most until others serve, and for so long; which one it was.
fn pause_the_leader(scenario: &Scenario, last: Duration) -> Result<usize> {
    scenario.progress()?;
    let leader = scenario.cluster.first_leader()?;
    let paused = Instant::now();
    scenario.cluster.nodes[leader].signal("STOP")?;
    scenario.service_back_after("the leader was paused", paused)?;
    loop {
        scenario.progress()?;
        if paused.elapsed() >= last {
            break;
        }
    }
    scenario.cluster.nodes[leader].signal("CONT")?;
    println!("it goes on after {:?}", paused.elapsed());
    Ok(leader)
}

/// The router hears both sides of the cut, and its stream from the old leader does not break.
#[test]
fn a_session_in_idle_hears_of_mail_that_another_leader_took_while_the_old_one_is_cut_off() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions { proxied: true, ..ClusterOptions::default() })?;
    cluster.add_accounts(&["user0", "user1", "user2", "user3"])?;
    let by_leader = eventually("leaders are where they should be", PATIENCE, || cluster.accounts_by_leader())?;
    let led = (0..3).find(|node| !by_leader[*node].is_empty()).context("nobody leads an account's shard")?;
    let accounts = &by_leader[led][..1];
    let idlers = Idlers::start(cluster.imap(0), accounts, 2)?;
    for other in (0..3).filter(|other| *other != led) {
        cluster.proxy.between(&cluster.nodes[led].name, &cluster.nodes[other].name, Link::Cut);
    }
    for number in 1..=3 {
        eventually("the majority takes mail", PATIENCE, || {
            let (code, text) = cluster.smtp_client()?.deliver(
                "probe@example.test",
                &[&accounts[0]],
                format!("Subject: cut {number}\r\n\r\nhello\r\n").as_bytes(),
            )?;
            ensure!(code == 250, "{code} {text}");
            Ok(())
        })?;
        eventually("the sessions are told", PATIENCE, || idlers.check(&[number]))?;
    }
    cluster.proxy.heal();
    idlers.stop();
    Ok(())
}
