//! `mailring single`: node and router in one process give what a cluster gives on one machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, ImapClient, LineClient, PASSWORD, SmtpClient, eventually};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const SHARDS: u32 = 4;
const ANN: &str = "ann@example.test";

fn message(subject: &str) -> Vec<u8> {
    format!("From: s@example.test\r\nSubject: {subject}\r\n\r\nbody of {subject}\r\n").into_bytes()
}

fn deliver(smtp: SocketAddr, to: &str, subject: &str) -> Result<()> {
    let (code, text) = SmtpClient::connect(smtp)?.deliver("s@example.test", &[to], &message(subject))?;
    ensure!(code == 250, "{code} {text}");
    Ok(())
}

/// UID and subject of every message in INBOX.
fn inbox(cluster: &Cluster, user: &str) -> Result<BTreeMap<u32, String>> {
    let mut imap = cluster.imap_client(user)?;
    imap.select("INBOX")?;
    let mut found = BTreeMap::new();
    for uid in imap.uids()? {
        let body = imap.body(uid)?.with_context(|| format!("no body for UID {uid}"))?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let subject = body.lines().find_map(|line| line.strip_prefix("Subject: ")).context("no subject")?;
        ensure!(body.ends_with(&format!("\r\n\r\nbody of {subject}\r\n")), "UID {uid} has another's body: {body}");
        found.insert(uid, subject.to_owned());
    }
    Ok(found)
}

fn uid_status(cluster: &Cluster, user: &str) -> Result<String> {
    let status = cluster.imap_client(user)?.ok("STATUS INBOX (MESSAGES UIDNEXT UIDVALIDITY)")?;
    Ok(String::from_utf8_lossy(&status.concat()).into_owned())
}

#[test]
fn one_process_takes_mail_by_smtp_and_gives_it_by_imap_and_pop3() -> Result<()> {
    let cluster = Cluster::single(SHARDS)?;
    cluster.add_accounts(&["ann", "ben"])?;
    deliver(cluster.smtp(0), ANN, "hello")?;
    ensure!(inbox(&cluster, ANN)?.into_values().eq(["hello".to_owned()]));
    let ca = cluster.ca()?;
    let mut tls = ImapClient::greeted(LineClient::connect_tls(cluster.imaps(0), &ca)?)?;
    tls.ok(&format!("LOGIN {ANN} {PASSWORD}"))?;
    ensure!(tls.select("INBOX")? == 1);
    let mut pop3 = cluster.pop3_client(ANN)?;
    ensure!(pop3.command("STAT")?.starts_with("1 "));
    ensure!(pop3.retrieve(1)?.ends_with(&message("hello")));
    pop3.command("DELE 1")?;
    pop3.command("QUIT")?;
    ensure!(inbox(&cluster, ANN)?.is_empty(), "POP3 has deleted the message");
    Ok(())
}

#[test]
fn idle_is_pushed_within_one_process() -> Result<()> {
    let cluster = Cluster::single(SHARDS)?;
    cluster.add_accounts(&["ann"])?;
    let mut idle = cluster.imap_client(ANN)?;
    idle.select("INBOX")?;
    let tag = idle.send("IDLE")?;
    ensure!(idle.response()?.starts_with(b"+"));
    deliver(cluster.smtp(0), ANN, "news")?;
    while idle.response()? != b"* 1 EXISTS" {}
    idle.line.send(b"DONE\r\n")?;
    ensure!(idle.finish(&tag)?.1.starts_with("OK"));
    Ok(())
}

#[test]
fn the_router_calls_the_node_without_a_connection() -> Result<()> {
    let single = Cluster::single(SHARDS)?;
    let pid = single.nodes[0].pid().context("not running")?;
    ensure!(!speaks_grpc(&single, pid)?, "the process is connected to its own port");
    // Two processes are: what is looked for can be found.
    let two = Cluster::start(ClusterOptions { nodes: 1, replicas: 1, shards: SHARDS, ..ClusterOptions::default() })?;
    let pid = two.routers[0].pid().context("not running")?;
    ensure!(speaks_grpc(&two, pid)?, "the router is not connected to its node");
    Ok(())
}

/// Whether a process is connected to the node's gRPC port while mail is delivered and a session waits in IDLE.
fn speaks_grpc(cluster: &Cluster, pid: u32) -> Result<bool> {
    cluster.add_accounts(&["ann"])?;
    let mut idle = cluster.imap_client(ANN)?;
    idle.select("INBOX")?;
    idle.send("IDLE")?;
    ensure!(idle.response()?.starts_with(b"+"));
    deliver(cluster.smtp(0), ANN, "x")?;
    let node: Value = serde_json::from_str(&cluster.admin(&["node", "list", "--json"])?)?;
    let grpc: SocketAddr = node[0]["address"].as_str().context("address")?.parse()?;
    Ok(established_remotes(pid)?.contains(&grpc.port()))
}

/// The remote ports of a process's established connections.
fn established_remotes(pid: u32) -> Result<BTreeSet<u16>> {
    const ESTABLISHED: &str = "01";
    let links = fs::read_dir(format!("/proc/{pid}/fd"))?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let sockets: BTreeSet<String> =
        links.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
    let mut remotes = BTreeSet::new();
    for line in fs::read_to_string(format!("/proc/{pid}/net/tcp"))?.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(remote), Some(&state), Some(&inode)) = (fields.get(2), fields.get(3), fields.get(9)) else {
            continue;
        };
        if state == ESTABLISHED && sockets.contains(inode) {
            let port = remote.rsplit_once(':').context("address")?.1;
            remotes.insert(u16::from_str_radix(port, 16)?);
        }
    }
    Ok(remotes)
}

#[test]
fn what_was_acknowledged_survives_kill_9_with_its_uids() -> Result<()> {
    const SENDERS: usize = 4;
    const BEFORE_THE_KILL: usize = 60;
    let mut cluster = Cluster::single(SHARDS)?;
    cluster.add_accounts(&["ann"])?;
    let before = {
        for subject in ["first", "second", "third"] {
            deliver(cluster.smtp(0), ANN, subject)?;
        }
        // A hole: the next UID is told by what was there, not by what is.
        let mut imap = cluster.imap_client(ANN)?;
        imap.select("INBOX")?;
        imap.ok("STORE 3 +FLAGS.SILENT (\\Deleted)")?;
        imap.ok("EXPUNGE")?;
        inbox(&cluster, ANN)?
    };
    ensure!(before.len() == 2);
    let validity = |cluster: &Cluster| -> Result<String> {
        let status = uid_status(cluster, ANN)?;
        Ok(status.rsplit_once("UIDVALIDITY ").context("UIDVALIDITY")?.1.to_owned())
    };
    let validity_before = validity(&cluster)?;
    let smtp = cluster.smtp(0);
    let acknowledged = Mutex::new(BTreeSet::new());
    let count = || acknowledged.lock().map(|all| all.len()).unwrap_or_default();
    std::thread::scope(|scope| -> Result<()> {
        for sender in 0..SENDERS {
            let acknowledged = &acknowledged;
            // Each ends when the process does.
            scope.spawn(move || {
                let mut client = SmtpClient::connect(smtp)?;
                for number in 0.. {
                    let subject = format!("{sender}-{number}");
                    let (code, text) = client.deliver("s@example.test", &[ANN], &message(&subject))?;
                    ensure!(code == 250, "{code} {text}");
                    acknowledged.lock().map(|mut all| all.insert(subject)).unwrap_or_default();
                }
                anyhow::Ok(())
            });
        }
        let sent = eventually("mail flows", PATIENCE, || {
            ensure!(count() >= BEFORE_THE_KILL, "{} acknowledged", count());
            Ok(())
        });
        cluster.nodes[0].kill()?;
        sent
    })?;
    cluster.start_all()?;
    cluster.wait_ready()?;
    let after = eventually("INBOX is readable", PATIENCE, || inbox(&cluster, ANN))?;
    ensure!(validity(&cluster)? == validity_before);
    for (uid, subject) in &before {
        ensure!(after.get(uid) == Some(subject), "UID {uid} was {subject}: {after:?}");
    }
    let kept: Vec<&String> = after.values().collect();
    let acknowledged = acknowledged.into_inner().context("ledger")?;
    for subject in &acknowledged {
        ensure!(kept.iter().filter(|other| **other == subject).count() == 1, "{subject} not once: {kept:?}");
    }
    // Each sender had at most one message under way that it was not told about.
    ensure!(kept.len() <= before.len() + acknowledged.len() + SENDERS, "more than was sent: {kept:?}");
    ensure!(!after.contains_key(&3), "the UID of an expunged message was given again: {after:?}");
    let last = after.keys().next_back().copied().unwrap_or_default();
    deliver(cluster.smtp(0), ANN, "afterwards")?;
    let with_one_more = inbox(&cluster, ANN)?;
    let newest = with_one_more.iter().next_back().context("nothing")?;
    ensure!(*newest.0 > last && newest.1 == "afterwards", "{newest:?} after {last}");
    Ok(())
}

#[test]
fn sigterm_says_bye_and_ends_with_success_and_the_mail_stays() -> Result<()> {
    let mut cluster = Cluster::single(SHARDS)?;
    cluster.add_accounts(&["ann"])?;
    deliver(cluster.smtp(0), ANN, "kept")?;
    let mut idle = cluster.imap_client(ANN)?;
    idle.select("INBOX")?;
    idle.send("IDLE")?;
    ensure!(idle.response()?.starts_with(b"+"));
    let (before, status) = (inbox(&cluster, ANN)?, uid_status(&cluster, ANN)?);
    // An error unless it ends with exit code 0.
    cluster.nodes[0].terminate()?;
    let last = String::from_utf8_lossy(&idle.response()?).into_owned();
    ensure!(last.starts_with("* BYE"), "{last}");
    ensure!(SmtpClient::connect(cluster.smtp(0)).is_err(), "something listens yet");
    cluster.start_all()?;
    cluster.wait_ready()?;
    ensure!(eventually("INBOX is readable", PATIENCE, || inbox(&cluster, ANN))? == before);
    ensure!(uid_status(&cluster, ANN)? == status);
    Ok(())
}

#[test]
fn admin_commands_work_against_one_process() -> Result<()> {
    let cluster = Cluster::single(SHARDS)?;
    cluster.add_accounts(&["ann", "ben"])?;
    let json = |arguments: &[&str]| -> Result<Value> {
        let said = cluster.admin(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&said).with_context(|| format!("{arguments:?}: {said}"))
    };
    let status = json(&["status"])?;
    ensure!(status["healthy"] == true && status["accounts"] == 2 && status["nodes"] == 1, "{status}");
    let nodes = json(&["node", "list"])?;
    ensure!(nodes[0]["name"] == "single1" && nodes[0]["leads"] == SHARDS, "{nodes}");
    ensure!(json(&["shard", "list"])?.as_array().is_some_and(|shards| shards.len() == SHARDS as usize));
    json(&["domain", "add", "other.test"])?;
    json(&["alias", "add", "all@example.test", ANN, "ben@example.test"])?;
    eventually("the alias leads to both", PATIENCE, || {
        deliver(cluster.smtp(0), "all@example.test", "to all")?;
        Ok(())
    })?;
    for user in [ANN, "ben@example.test"] {
        ensure!(inbox(&cluster, user)?.into_values().eq(["to all".to_owned()]), "{user}");
    }
    json(&["account", "set", "ben@example.test", "--disable"])?;
    eventually("a disabled account is refused", PATIENCE, || {
        ensure!(cluster.imap_client("ben@example.test").is_err());
        Ok(())
    })?;
    json(&["alias", "remove", "all@example.test"])?;
    json(&["account", "remove", "ben@example.test", "--yes"])?;
    json(&["domain", "remove", "other.test"])?;
    ensure!(json(&["status"])?["accounts"] == 1);
    Ok(())
}
