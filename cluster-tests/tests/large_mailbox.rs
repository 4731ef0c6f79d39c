//! A mailbox of very many messages: what changes all of them is done in parts and told in order, a copy that is too large is
//! refused, and a mailbox that is deleted goes at once, whoever leads when its messages are cleared.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, ImapClient, eventually};
use types::Usage;

const ANN: &str = "ann@example.test";
const MESSAGE: &[u8] = b"Subject: one of many\r\n\r\nx\r\n";
/// A power of two, by which a mailbox doubles until then; more than are copied at once, less than half of which are.
const MESSAGES: usize = 1 << 16;
/// In one change, as `proto` has it.
const PART: usize = 10_000;
/// Of state for each message, and more.
const RECORD_OCTETS: u64 = 30;
const PATIENCE: Duration = Duration::from_secs(120);
/// What is logged when a node dies, and calls for nobody here.
const ALLOWED: [&str; 2] =
    ["directory is not reachable, going on with what is known", "node does not answer, others are asked"];

fn text(response: &[u8]) -> String {
    String::from_utf8_lossy(response).into_owned()
}

fn uid_validity(imap: &mut ImapClient, mailbox: &str) -> Result<u32> {
    let status = text(&imap.ok(&format!("STATUS {mailbox} (UIDVALIDITY)"))?.concat());
    let number = status.split("UIDVALIDITY ").nth(1).and_then(|rest| rest.split(')').next()).context("UIDVALIDITY")?;
    Ok(number.parse()?)
}

fn refused_for_its_size(imap: &mut ImapClient, command: &str) -> Result<()> {
    let (untagged, tagged) = imap.command(command)?;
    ensure!(untagged.is_empty() && tagged.starts_with("NO [LIMIT] "), "{command} was answered {tagged}");
    Ok(())
}

#[test]
fn a_mailbox_of_many_thousand_messages_is_changed_in_parts_and_goes_at_once() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { shards: 1, ..ClusterOptions::DEFAULT })?;
    cluster.add_accounts(&["ann"])?;
    eventually("nodes write what all of them know", PATIENCE, || {
        let formats = cluster.formats()?;
        ensure!(formats.len() == 3 && formats.iter().all(|(known, written)| known == written), "{formats:?}");
        Ok(())
    })?;
    let mut ann = cluster.imap_client(ANN)?;
    ann.append("INBOX", MESSAGE)?;
    ensure!(ann.select("INBOX")? == 1);
    let empty = cluster.compare_replicas()?;
    let mut messages = 1;
    while messages < MESSAGES {
        ann.ok("COPY 1:* INBOX")?;
        messages *= 2;
    }
    refused_for_its_size(&mut ann, "COPY 1:* Archive")?;
    refused_for_its_size(&mut ann, "RENAME INBOX old")?;
    ensure!(!ann.command("STATUS old (MESSAGES)")?.1.starts_with("OK"));

    let told = ann.ok("UID STORE 1:* FLAGS (\\Flagged)")?;
    let flagged = told.iter().map(|line| text(line)).filter(|line| line.contains("FLAGS (\\Flagged"));
    let seqs: Vec<String> = flagged.filter_map(|line| Some(line.split(' ').nth(1)?.to_owned())).collect();
    ensure!(seqs.iter().map(String::as_str).eq((1..=MESSAGES).map(|seq| seq.to_string())), "{} told", seqs.len());
    ann.ok("CREATE large")?;
    let told = ann.ok("MOVE 1:* large")?;
    let count = |part: &str| told.iter().filter(|line| text(line).contains(part)).count();
    ensure!(count("[COPYUID ") == MESSAGES.div_ceil(PART) && count(" EXPUNGE") == MESSAGES, "{} told", told.len());
    let full = cluster.compare_replicas()?;
    ensure!(full > empty + MESSAGES as u64 * RECORD_OCTETS, "{full} octets, {empty} before");

    let before = uid_validity(&mut ann, "large")?;
    ann.ok("DELETE large")?;
    ensure!(cluster.usage(ANN)? == Usage::default());
    ann.ok("CREATE large")?;
    ensure!(uid_validity(&mut ann, "large")? > before);
    // Whoever leads next goes on.
    let leader = cluster.first_leader()?;
    cluster.nodes[leader].kill()?;
    eventually("mail is taken", PATIENCE, || cluster.imap_client(ANN)?.append("large", MESSAGE).map(drop))?;
    cluster.nodes[leader].start()?;
    cluster.nodes[leader].wait_ready()?;
    eventually("what the mailbox has left is cleared", PATIENCE, || {
        let left = cluster.compare_replicas()?;
        ensure!(left < empty + MESSAGES as u64, "{left} octets, {empty} before");
        Ok(())
    })?;
    let mut ann = cluster.imap_client(ANN)?;
    ensure!(ann.select("large")? == 1);
    ensure!(ann.body(1)?.as_deref() == Some(MESSAGE));
    cluster.check_logs(&ALLOWED)
}
