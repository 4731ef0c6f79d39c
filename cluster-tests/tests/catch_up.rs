//! A replica that was away for longer than the log reaches back gets a snapshot, and is as good as the others then.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, ImapClient, PASSWORD, SmtpClient, eventually, noise};

/// How long a test waits before it gives up; not a claim about how long things take.
const PATIENCE: Duration = Duration::from_secs(180);
const SHARDS: u32 = 6;
/// Small, so that a few dozen messages are past it.
const LOG_ENTRIES_KEPT: u64 = 16;
/// Above the 512 KiB of a log entry: such a body comes in chunks.
const LARGE_OCTETS: usize = 1_700_000;
/// What a killed node leaves in the others' logs.
const ALLOWED: [&str; 1] = ["node does not answer, others are asked"];

/// UID to flags and octets.
type Mailbox = BTreeMap<u32, (String, Vec<u8>)>;
/// By account.
type Mail = BTreeMap<String, Mailbox>;

fn locals() -> Vec<String> {
    (0..12).map(|n| format!("user{n}")).collect()
}

fn start() -> Result<Cluster> {
    let options =
        ClusterOptions { shards: SHARDS, log_entries_kept: Some(LOG_ENTRIES_KEPT), ..ClusterOptions::default() };
    let cluster = Cluster::start(options)?;
    let locals = locals();
    cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(cluster)
}

/// One small message to every account, acknowledged.
fn deliver(cluster: &Cluster, marker: &str) -> Result<()> {
    let recipients: Vec<String> = locals().iter().map(|local| format!("{local}@example.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let message = format!("From: s@example.test\r\nSubject: {marker}\r\n\r\nbody of {marker}\r\n");
    eventually("the delivery is acknowledged", PATIENCE, || {
        let mut smtp = SmtpClient::connect(cluster.smtp(0))?;
        let (code, text) = smtp.deliver("s@example.test", &recipients, message.as_bytes())?;
        ensure!(code == 250, "{code} {text}");
        Ok(())
    })
}

/// UID, flags and octets of every message of an account.
fn read(cluster: &Cluster, local: &str) -> Result<Mailbox> {
    eventually("the mailbox is readable", PATIENCE, || {
        let mut imap = cluster.imap_client(&format!("{local}@example.test"))?;
        imap.select("INBOX")?;
        let mut all = Mailbox::new();
        for uid in imap.uids()? {
            let response = imap.ok(&format!("UID FETCH {uid} (FLAGS)"))?.concat();
            let flags = String::from_utf8_lossy(&response).split("FLAGS (").nth(1).context("FLAGS")?.to_owned();
            // \Recent is a session's, and known to the leader alone.
            let flags = flags.replace("\\Recent", "").replace(" )", ")");
            let body = imap.body(uid)?.with_context(|| format!("no body for UID {uid}"))?;
            all.insert(uid, (flags, body));
        }
        Ok(all)
    })
}

fn read_all(cluster: &Cluster) -> Result<Mail> {
    locals().into_iter().map(|local| Ok((local.clone(), read(cluster, &local)?))).collect()
}

fn compare(cluster: &Cluster, expected: &Mail) -> Result<()> {
    for (local, messages) in expected {
        let found = read(cluster, local)?;
        ensure!(found.keys().eq(messages.keys()), "{local}: UIDs {:?}, not {:?}", found.keys(), messages.keys());
        for (uid, (flags, body)) in messages {
            ensure!(found[uid].0 == *flags, "{local} UID {uid}: flags {:?}, not {flags:?}", found[uid].0);
            ensure!(found[uid].1 == *body, "{local} UID {uid}: other octets");
        }
    }
    Ok(())
}

#[test]
fn a_replica_that_was_away_past_the_kept_log_catches_up_and_serves() -> Result<()> {
    let mut cluster = start()?;
    for n in 0..3 {
        deliver(&cluster, &format!("before-{n}"))?;
    }
    let mut ann = cluster.imap_client("user0@example.test")?;
    ann.append("INBOX", &noise(1, LARGE_OCTETS))?;
    cluster.nodes[2].kill()?;

    // Well past the kept log of every shard: mail, large mail, flags, and mail that goes again.
    let large = noise(2, LARGE_OCTETS);
    for n in 0..30 {
        deliver(&cluster, &format!("without-{n}"))?;
    }
    for local in locals() {
        eventually("mail is filed", PATIENCE, || {
            let mut imap = cluster.imap_client(&format!("{local}@example.test"))?;
            let uid = imap.append("INBOX", &large)?;
            imap.select("INBOX")?;
            imap.ok("UID STORE 1:10 +FLAGS (\\Seen $Kept)")?;
            imap.ok("UID STORE 2,5,7,20 +FLAGS.SILENT (\\Deleted)")?;
            imap.ok("EXPUNGE")?;
            ensure!(imap.body(uid)?.as_deref() == Some(large.as_slice()));
            Ok(())
        })?;
    }
    let expected = read_all(&cluster)?;
    ensure!(expected.values().all(|messages| messages.len() >= 29));

    cluster.nodes[2].start()?;
    cluster.nodes[2].wait_ready()?;
    cluster.wait_caught_up()?;
    let installed = cluster.nodes[2].logged("snapshot installed")?;
    ensure!(installed > 0, "no group caught up by snapshot: {}", cluster.admin(&["shard", "list", "--json"])?);
    println!("{installed} groups caught up by snapshot");

    // Now the one that was away must serve, with the third.
    cluster.nodes[0].kill()?;
    eventually("it leads the shards that prefer it", PATIENCE, || {
        ensure!(cluster.led()?[2] > 0);
        Ok(())
    })?;
    compare(&cluster, &expected)?;
    deliver(&cluster, "afterwards")?;
    for (local, messages) in &expected {
        let found = read(&cluster, local)?;
        let next = found.keys().next_back().context("the new message")?;
        ensure!(found.len() == messages.len() + 1 && messages.keys().all(|uid| uid < next), "{local}: UID {next}");
    }
    cluster.check_logs(&ALLOWED)
}

#[test]
fn a_snapshot_cut_midway_begins_anew_while_mail_goes_on() -> Result<()> {
    let mut cluster = start()?;
    cluster.nodes[2].kill()?;
    // One shard with enough in it that its snapshot takes a while.
    let mut imap = cluster.imap_client("user0@example.test")?;
    for seed in 0..12 {
        imap.append("INBOX", &noise(seed, 5_000_000))?;
    }
    drop(imap);
    for n in 0..20 {
        deliver(&cluster, &format!("without-{n}"))?;
    }
    let spool = cluster.disk(2).join("db/spool");
    let spooled = || fs::read_dir(&spool).into_iter().flatten().flatten().filter_map(|file| file.metadata().ok());
    let stop = AtomicBool::new(false);
    let mut node = cluster.nodes.remove(2);
    let sent = std::thread::scope(|scope| -> Result<u32> {
        let load = scope.spawn(|| -> Result<u32> {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                deliver(&cluster, &format!("meanwhile-{sent}"))?;
                sent += 1;
            }
            Ok(sent)
        });
        let cut = (0..2).try_for_each(|_| {
            node.start()?;
            let large = 4 << 20;
            let amid = eventually("a snapshot is coming in", PATIENCE, || {
                ensure!(spooled().any(|file| file.len() >= large));
                Ok(())
            });
            node.kill()?;
            amid
        });
        let again = cut.and_then(|()| {
            node.start()?;
            node.wait_ready()
        });
        stop.store(true, Ordering::Relaxed);
        let sent = load.join().expect("the load does not panic")?;
        again.map(|()| sent)
    })?;
    ensure!(sent > 0);
    cluster.nodes.push(node);
    cluster.wait_caught_up()?;
    ensure!(spooled().next().is_none(), "a spool file was left behind");
    let expected = read_all(&cluster)?;
    for (local, messages) in &expected {
        let filed = if local == "user0" { 12 } else { 0 };
        ensure!(messages.len() as u32 == filed + 20 + sent, "{local} has {}, {sent} were sent", messages.len());
    }
    cluster.nodes[0].kill()?;
    compare(&cluster, &expected)?;
    for (seed, (_, body)) in expected["user0"].values().take(12).enumerate() {
        ensure!(*body == noise(seed as u64, 5_000_000), "message {seed} came back changed");
    }
    cluster.check_logs(&ALLOWED)
}

/// RFC 2180 §4.1, RFC 9051 §7.5.1: who has begun to read a message gets it whole, though another session expunges it
/// and the log that brought it is purged.
#[test]
fn a_message_that_is_expunged_while_it_is_sent_still_comes_whole() -> Result<()> {
    let cluster = start()?;
    let message = noise(7, 32_000_000);
    let mut reader = cluster.imap_client("user0@example.test")?;
    let uid = reader.append("INBOX", &message)?;
    reader.select("INBOX")?;
    // Far more than all buffers on the way hold: most of it is still to be read from the disk.
    let tag = reader.send(&format!("UID FETCH {uid} BODY.PEEK[]"))?;
    let head = reader.line.line()?;
    ensure!(head.ends_with(&format!("BODY[] {{{}}}", message.len())), "{head}");
    let mut other = ImapClient::login(cluster.imap(0), "user0@example.test", PASSWORD)?;
    other.select("INBOX")?;
    other.ok(&format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)"))?;
    other.ok("EXPUNGE")?;
    ensure!(other.body(uid)?.is_none(), "expunged");
    for n in 0..40 {
        deliver(&cluster, &format!("purge-{n}"))?;
    }
    ensure!(reader.line.exact(message.len())? == message, "other octets");
    ensure!(reader.line.line()?.ends_with(')'));
    let (mut told, tagged) = reader.finish(&tag)?;
    ensure!(tagged.starts_with("OK"), "{tagged}");
    told.extend(reader.ok("NOOP")?);
    ensure!(told.iter().any(|line| line == b"* 1 EXPUNGE"), "not told of the EXPUNGE: {told:?}");
    cluster.check_logs(&[])
}
