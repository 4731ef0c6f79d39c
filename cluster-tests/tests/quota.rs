//! Many clients fill an account at once, over IMAP and SMTP, while the node that leads its shard dies: it never holds more
//! than its quota, exactly what was acknowledged is there, and what is counted is what is there.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use cluster_tests::{
    Cluster, ClusterOptions, ImapClient, Outcome, PASSWORD, Random, SmtpClient, command_again, eventually, setting,
};
use serde_json::Value;

const ACCOUNT: &str = "ann@example.test";
const OTHER: &str = "bob@example.test";
const MAILBOXES: [&str; 2] = ["INBOX", "Archive"];
const APPENDERS: u64 = 16;
const SENDERS: u64 = 4;
/// Of each client; then it has seen the edge.
const REFUSALS: usize = 3;
/// What there is room for in a round: some thirty messages.
const ROOM_OCTETS: u64 = 100_000;
const MESSAGE_OCTETS: std::ops::Range<u64> = 200..6_000;
/// Acknowledged before the leader dies, at most.
const BEFORE_KILL_MAX: u64 = 20;
/// More than Return-Path and Received add to a message.
const TRACE_OCTETS_MAX: u64 = 1_024;
const PATIENCE: Duration = Duration::from_secs(120);
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A message that somebody tried to store.
struct Attempt {
    marker: String,
    octets: u64,
    outcome: Outcome,
    is_smtp: bool,
}

/// Exactly so long, in lines, with the marker as its subject.
fn message(marker: &str, octets: u64) -> Vec<u8> {
    let head = format!("Subject: {marker}\r\n\r\n");
    let mut message = vec![b'x'; octets as usize];
    message[..head.len()].copy_from_slice(head.as_bytes());
    for at in (head.len() + 72..message.len().saturating_sub(4)).step_by(74) {
        message[at..at + 2].copy_from_slice(b"\r\n");
    }
    let end = message.len() - 2;
    message[end..].copy_from_slice(b"\r\n");
    message
}

/// The tagged reply.
fn append(client: &mut ImapClient, mailbox: &str, message: &[u8]) -> Result<String> {
    let tag = client.send(&format!("APPEND {mailbox} {{{}+}}", message.len()))?;
    client.line.send(message)?;
    client.line.send(b"\r\n")?;
    Ok(client.finish(&tag)?.1)
}

/// One client among many.
struct Client<'a> {
    random: Random,
    name: String,
    attempts: Vec<Attempt>,
    acknowledged: &'a AtomicU64,
    deadline: Instant,
}

impl Client<'_> {
    fn new_message(&mut self) -> (String, Vec<u8>) {
        let marker = format!("{}.{}", self.name, self.attempts.len());
        let octets = MESSAGE_OCTETS.start + self.random.below(MESSAGE_OCTETS.end - MESSAGE_OCTETS.start);
        let message = message(&marker, octets);
        (marker, message)
    }

    fn note(&mut self, marker: String, octets: usize, outcome: Outcome, is_smtp: bool) {
        if outcome == Outcome::Ok {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        self.attempts.push(Attempt { marker, octets: octets as u64, outcome, is_smtp });
    }

    fn goes_on(&self) -> Result<bool> {
        ensure!(Instant::now() < self.deadline, "{} has not met the edge in {PATIENCE:?}", self.name);
        Ok(self.attempts.iter().filter(|attempt| attempt.outcome == Outcome::Refused).count() < REFUSALS)
    }

    /// A new message each time: a client that lost its connection does not know what came of the last one.
    fn append(mut self, address: SocketAddr) -> Result<Vec<Attempt>> {
        let mut session = None;
        while self.goes_on()? {
            let client = match &mut session {
                Some(client) => client,
                none => match ImapClient::login(address, ACCOUNT, PASSWORD) {
                    Ok(client) => none.insert(client),
                    Err(_) => {
                        std::thread::sleep(AGAIN_AFTER);
                        continue;
                    }
                },
            };
            let (marker, message) = self.new_message();
            let mailbox = MAILBOXES[self.random.below(2) as usize];
            let outcome = match append(client, mailbox, &message) {
                Ok(tagged) if tagged.starts_with("OK") => Outcome::Ok,
                Ok(tagged) if tagged.starts_with("NO [OVERQUOTA]") => Outcome::Refused,
                Ok(tagged) if tagged.starts_with("NO [UNAVAILABLE]") => Outcome::Unknown,
                Ok(tagged) => bail!("{marker} was answered {tagged}"),
                Err(_) => {
                    session = None;
                    Outcome::Unknown
                }
            };
            self.note(marker, message.len(), outcome, false);
        }
        Ok(self.attempts)
    }

    /// The same message until it is taken, or refused for want of room.
    fn send(mut self, address: SocketAddr) -> Result<Vec<Attempt>> {
        let mut session = None;
        while self.goes_on()? {
            let (marker, message) = self.new_message();
            let outcome = loop {
                ensure!(Instant::now() < self.deadline, "{marker} was not taken in {PATIENCE:?}");
                let answer = match &mut session {
                    Some(client) => SmtpClient::deliver(client, "s@x.test", &[ACCOUNT], &message),
                    none => match SmtpClient::connect(address) {
                        Ok(client) => none.insert(client).deliver("s@x.test", &[ACCOUNT], &message),
                        Err(error) => Err(error),
                    },
                };
                match answer {
                    Ok((250, _)) => break Outcome::Ok,
                    Ok((452, text)) if text.starts_with("4.2.2") => break Outcome::Refused,
                    Ok((451, _)) => {}
                    Ok((code, text)) => bail!("{marker} was answered {code} {text}"),
                    // A recipient that is refused for now is also one of these.
                    Err(_) => session = None,
                }
                std::thread::sleep(AGAIN_AFTER);
            };
            self.note(marker, message.len(), outcome, true);
        }
        Ok(self.attempts)
    }
}

/// The markers in the mailboxes, each with the sizes of the messages that have it.
fn read(client: &mut ImapClient) -> Result<BTreeMap<String, Vec<u64>>> {
    let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for mailbox in MAILBOXES {
        client.ok(&format!("EXAMINE {mailbox}"))?;
        for response in client.ok("UID FETCH 1:* (RFC822.SIZE BODY.PEEK[HEADER.FIELDS (SUBJECT)])")? {
            let response = String::from_utf8_lossy(&response).into_owned();
            let word_after =
                |text: &str| response.split(text).nth(1)?.split([' ', '\r', ')']).next().map(str::to_owned);
            let Some(size) = word_after("RFC822.SIZE ") else { continue };
            let marker = word_after("Subject: ").with_context(|| response.clone())?;
            found.entry(marker).or_default().push(size.parse().with_context(|| response.clone())?);
        }
    }
    Ok(found)
}

/// While messages only come, whatever is read is at most what is there at the end of the reading.
fn watch(address: SocketAddr, quota: u64, done: &AtomicBool) -> Result<u64> {
    let (mut readings, mut session) = (0, None);
    while !done.load(Ordering::Relaxed) {
        let read = match &mut session {
            Some(client) => read(client),
            none => match ImapClient::login(address, ACCOUNT, PASSWORD) {
                Ok(client) => read(none.insert(client)),
                Err(error) => Err(error),
            },
        };
        match read {
            Ok(found) => {
                let held: u64 = found.values().flatten().sum();
                ensure!(held <= quota, "{held} octets are there, {quota} are allowed");
                readings += 1;
            }
            Err(_) => session = None,
        }
        std::thread::sleep(AGAIN_AFTER);
    }
    Ok(readings)
}

fn show(cluster: &Cluster) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.admin(&["quota", "show", ACCOUNT, "--json"])?)?)
}

/// Sets limits, and waits until every node knows them.
fn set(cluster: &Cluster, limits: &[&str]) -> Result<()> {
    cluster.admin(&[&["quota", "set", ACCOUNT][..], limits].concat())?;
    eventually("every node knows the quota", PATIENCE, || {
        let statuses = cluster.statuses()?;
        let revisions: Vec<_> =
            statuses.iter().map(|status| status.as_ref().map(|one| one.directory_revision)).collect();
        ensure!(revisions.iter().all(|revision| revision.is_some() && *revision == revisions[0]), "{revisions:?}");
        Ok(())
    })
}

/// The node that leads the account's shard.
fn leader(cluster: &Cluster) -> Result<usize> {
    let account: Value = serde_json::from_str(&cluster.admin(&["account", "show", ACCOUNT, "--json"])?)?;
    let shard: Value =
        serde_json::from_str(&cluster.admin(&["shard", "show", &account["shard"].to_string(), "--json"])?)?;
    cluster.nodes.iter().position(|node| shard["leader"] == node.name).with_context(|| format!("no leader: {shard}"))
}

/// All clients at once until each has met the edge; amid it the leader dies.
fn fill(cluster: &mut Cluster, seed: u64, round: u64, quota: u64) -> Result<Vec<Attempt>> {
    let (imap, smtp) = (cluster.imap(0), cluster.smtp(0));
    let mut random = Random::new(seed, u64::MAX - round);
    let before_kill = 1 + random.below(BEFORE_KILL_MAX);
    let (acknowledged, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let client = |number: u64| Client {
        random: Random::new(seed, round * (APPENDERS + SENDERS) + number),
        name: format!("m{seed}.{round}.{number}"),
        attempts: Vec::new(),
        acknowledged: &acknowledged,
        deadline: Instant::now() + PATIENCE,
    };
    let victim = eventually("the shard has a leader", PATIENCE, || leader(cluster))?;
    let attempts = std::thread::scope(|scope| -> Result<Vec<Attempt>> {
        let watching = scope.spawn(|| watch(imap, quota, &done));
        let appending = (0..APPENDERS).map(client).map(|one| scope.spawn(move || one.append(imap)));
        let sending = (APPENDERS..APPENDERS + SENDERS).map(client).map(|one| scope.spawn(move || one.send(smtp)));
        let clients: Vec<_> = appending.chain(sending).collect();
        let killed = eventually("mail is acknowledged", PATIENCE, || {
            ensure!(acknowledged.load(Ordering::Relaxed) >= before_kill);
            Ok(())
        })
        .and_then(|()| cluster.nodes[victim].kill());
        let attempts: Result<Vec<Vec<Attempt>>> =
            clients.into_iter().map(|one| one.join().map_err(|_| anyhow!("a client panicked"))?).collect();
        done.store(true, Ordering::Relaxed);
        let readings = watching.join().map_err(|_| anyhow!("the watcher panicked"))??;
        killed?;
        ensure!(readings > 0, "nobody watched");
        Ok(attempts?.into_iter().flatten().collect())
    })?;
    cluster.nodes[victim].start()?;
    cluster.nodes[victim].wait_ready()?;
    Ok(attempts)
}

/// Exactly what was acknowledged is there, of what is unknown each at most once, and nobody was refused who had room.
fn check(cluster: &Cluster, attempts: &[Attempt], quota: u64) -> Result<u64> {
    let found = read(&mut cluster.imap_client(ACCOUNT)?)?;
    let used = cluster.usage(ACCOUNT)?.octets;
    ensure!(used <= quota, "{used} octets are there, {quota} are allowed");
    for Attempt { marker, octets, outcome, is_smtp } in attempts {
        let sizes = found.get(marker).map(Vec::as_slice).unwrap_or_default();
        let right = match outcome {
            Outcome::Ok => sizes.len() == 1,
            Outcome::Refused => sizes.is_empty(),
            Outcome::Unknown => sizes.len() <= 1,
        };
        ensure!(right, "{marker}, {outcome:?}, is there {} times", sizes.len());
        let added = if *is_smtp { TRACE_OCTETS_MAX } else { 0 };
        ensure!(
            sizes.iter().all(|size| (*octets..=octets + added).contains(size)),
            "{marker} of {octets} has {sizes:?}"
        );
        // Nothing is removed meanwhile: what fits at the end fitted before.
        let fits = used + octets + added <= quota;
        ensure!(*outcome != Outcome::Refused || !fits, "{marker} of {octets} was refused at {used} of {quota}");
    }
    Ok(used)
}

fn count(attempts: &[Attempt], outcome: Outcome, is_smtp: bool) -> usize {
    attempts.iter().filter(|attempt| (attempt.outcome, attempt.is_smtp) == (outcome, is_smtp)).count()
}

#[test]
fn parallel_appends_and_deliveries_at_the_quotas_edge_never_go_over_it() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 71), setting("MAILRING_ROUNDS", 2));
    let again = command_again(seed, rounds);
    println!("{again}");
    let run = || -> Result<()> {
        let mut cluster = Cluster::start(ClusterOptions::default())?;
        cluster.add_accounts(&["ann", "bob"])?;
        let mut attempts = Vec::new();
        let (mut used, mut stored_by) = (0, [0, 0]);
        for round in 0..rounds {
            let quota = used + ROOM_OCTETS;
            set(&cluster, &["--octets", &quota.to_string()])?;
            let made = fill(&mut cluster, seed, round, quota)?;
            for is_smtp in [false, true] {
                let [stored, refused, unknown] =
                    [Outcome::Ok, Outcome::Refused, Outcome::Unknown].map(|outcome| count(&made, outcome, is_smtp));
                println!("{stored} stored, {refused} refused, {unknown} unknown, over SMTP: {is_smtp}");
                ensure!(refused > 0, "nobody met the edge");
                stored_by[usize::from(is_smtp)] += stored;
            }
            used = eventually("the account is read", PATIENCE, || check(&cluster, &made, quota))?;
            println!("{used} of {quota} octets used");
            attempts.extend(made);
        }
        // The one way may leave no room for the other in one round.
        ensure!(stored_by.iter().all(|stored| *stored > 0), "nothing was stored one of the two ways: {stored_by:?}");
        // Of all rounds: those that were refused have not come later.
        let found = read(&mut cluster.imap_client(ACCOUNT)?)?;
        let known = |marker: &String| attempts.iter().any(|attempt| attempt.marker == *marker);
        ensure!(found.keys().all(known), "messages of nobody");
        let mut refused = attempts.iter().filter(|attempt| attempt.outcome == Outcome::Refused);
        ensure!(refused.all(|attempt| !found.contains_key(&attempt.marker)), "refused and there");
        cluster.wait_caught_up()?;
        cluster.compare_replicas()?;
        counts_are_right_whatever_is_done(&cluster)
    };
    run().context(again)
}

/// Copied, moved, renamed, expunged, deleted: what is used is what is there, and what is free can be filled to the octet.
fn counts_are_right_whatever_is_done(cluster: &Cluster) -> Result<()> {
    let held = || cluster.usage(ACCOUNT).map(|usage| (usage.octets, usage.messages));
    let (octets, messages) = held()?;
    set(cluster, &["--octets", &(octets + 1_000).to_string()])?;
    let mut imap = cluster.imap_client(ACCOUNT)?;
    ensure!(imap.select("INBOX")? > 2, "hardly anything in INBOX");
    let refused = |tagged: String| if tagged.starts_with("NO [OVERQUOTA]") { Ok(()) } else { Err(anyhow!(tagged)) };
    refused(imap.command("COPY 1:* Archive")?.1)?;
    imap.ok("MOVE 1:2 Archive")?;
    imap.ok("RENAME INBOX Old")?;
    imap.ok("RENAME Old Older")?;
    ensure!(held()? == (octets, messages), "moved and renamed: {:?}, before {octets}, {messages}", held()?);

    // Below what is there by now: it stays, moves, and can be thrown away.
    set(cluster, &["--octets", "0"])?;
    refused(append(&mut imap, "INBOX", &message("late", 200))?)?;
    imap.select("Archive")?;
    imap.ok("MOVE 1 Older")?;
    imap.ok("STORE 1:3 +FLAGS (\\Deleted)")?;
    imap.ok("EXPUNGE")?;
    let expunged = held()?;
    ensure!(expunged.0 < octets && expunged.1 == messages - 3, "expunged: {expunged:?}");

    // What was freed is free at once, to the last octet.
    set(cluster, &["--octets", &octets.to_string()])?;
    let freed = octets - expunged.0;
    refused(append(&mut imap, "INBOX", &message("long", freed + 1))?)?;
    let tagged = append(&mut imap, "INBOX", &message("fits", freed))?;
    ensure!(tagged.starts_with("OK"), "{tagged}");
    ensure!(held()? == (octets, messages - 2), "filled: {:?}", held()?);
    refused(append(&mut imap, "INBOX", b"x")?)?;

    // A sender with two recipients, one of them full, comes again when there is room.
    let late = message("late", 400);
    let mut smtp = cluster.smtp_client()?;
    for _ in 0..2 {
        let (code, text) = smtp.deliver("s@x.test", &[ACCOUNT, OTHER], &late)?;
        ensure!(code == 452 && text.starts_with("4.2.2"), "{code} {text}");
    }
    imap.ok("DELETE Older")?;
    let deleted = held()?;
    ensure!(deleted.0 < octets, "deleted: {deleted:?}");
    let (code, text) = smtp.deliver("s@x.test", &[ACCOUNT, OTHER], &late)?;
    ensure!(code == 250, "{code} {text}");
    ensure!(held()?.1 == deleted.1 + 1 && cluster.usage(OTHER)?.messages == 1, "not there once each");

    // A limit of messages beside that of octets, which stays.
    let (_, messages) = held()?;
    set(cluster, &["--messages", &(messages + 1).to_string()])?;
    let shown = show(cluster)?;
    ensure!(shown["octets_max"] == octets && shown["messages_max"] == messages + 1, "{shown}");
    imap.ok("SELECT Archive")?;
    refused(imap.command("COPY 1:2 INBOX")?.1)?;
    imap.ok("COPY 1 INBOX")?;
    refused(append(&mut imap, "INBOX", b"x")?)?;
    set(cluster, &["--octets", "none", "--messages", "none"])?;
    let tagged = append(&mut imap, "INBOX", b"x")?;
    ensure!(tagged.starts_with("OK"), "{tagged}");
    ensure!(held()?.1 == messages + 2, "{:?}", held()?);
    cluster.wait_caught_up()?;
    cluster.compare_replicas().map(drop)
}
