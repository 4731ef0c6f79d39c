//! Nodes die without a word: service goes on, and nothing that was acknowledged is lost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, PASSWORD, SmtpClient, eventually};

/// The issue allows 10 s for service to return; the machine that runs the tests may be much slower, so this bounds
/// only how long a test waits before it gives up. `cluster-tests/benches` measures the time itself.
const SERVICE_BACK_MAX: Duration = Duration::from_secs(60);

/// What is logged when processes die, and calls for nobody in these tests.
const ALLOWED: [&str; 2] =
    ["directory is not reachable, going on with what is known", "node does not answer, others are asked"];

const LOCALS: [&str; 6] = ["ann", "ben", "cat", "dan", "eve", "fay"];

/// What was acknowledged: account, and the marker in the message.
type Ledger = Vec<(String, String)>;

fn message(marker: &str) -> Vec<u8> {
    format!("From: s@example.test\r\nSubject: {marker}\r\n\r\nbody of {marker}\r\n").into_bytes()
}

/// Delivers until it is acknowledged, as a sending server would: a 4xx or a lost connection is tried again.
fn deliver(cluster: &Cluster, local: &str, marker: &str, ledger: &mut Ledger) -> Result<()> {
    eventually("the delivery is acknowledged", SERVICE_BACK_MAX, || {
        let mut client = SmtpClient::connect(cluster.smtp(0))?;
        let to = format!("{local}@example.test");
        let (code, text) = client.deliver("s@example.test", &[&to], &message(marker))?;
        ensure!(code == 250, "{code} {text}");
        Ok(())
    })?;
    ledger.push((local.to_owned(), marker.to_owned()));
    Ok(())
}

/// Subject and UID of every message of an account.
fn subjects(cluster: &Cluster, local: &str) -> Result<Vec<(String, u32)>> {
    eventually("the mailbox is readable", SERVICE_BACK_MAX, || {
        let mut imap = cluster.imap_client(&format!("{local}@example.test"))?;
        imap.select("INBOX")?;
        let mut found = Vec::new();
        for uid in imap.uids()? {
            let body = imap.body(uid)?.with_context(|| format!("no body for UID {uid}"))?;
            let body = String::from_utf8_lossy(&body).into_owned();
            let subject = body.lines().find_map(|line| line.strip_prefix("Subject: ")).context("no subject")?;
            found.push((subject.to_owned(), uid));
        }
        Ok(found)
    })
}

/// Every acknowledged message is there exactly once, and UIDs ascend in the order of acknowledgement.
fn check(cluster: &Cluster, ledger: &Ledger) -> Result<BTreeMap<String, Vec<(String, u32)>>> {
    let mut all = BTreeMap::new();
    for local in LOCALS {
        let found = subjects(cluster, local)?;
        let expected: Vec<&String> = ledger.iter().filter(|(to, _)| to == local).map(|(_, marker)| marker).collect();
        let got: Vec<&String> = found.iter().map(|(subject, _)| subject).collect();
        ensure!(got == expected, "{local}: got {got:?}, acknowledged {expected:?}");
        all.insert(local.to_owned(), found);
    }
    Ok(all)
}

#[test]
fn any_one_of_three_nodes_may_die_and_comes_back_with_the_same_mail() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    cluster.add_accounts(&LOCALS)?;
    let mut ledger = Ledger::new();
    for local in LOCALS {
        deliver(&cluster, local, &format!("{local}-before"), &mut ledger)?;
    }
    for node in 0..3 {
        cluster.nodes[node].kill()?;
        for local in LOCALS {
            deliver(&cluster, local, &format!("{local}-without-{node}"), &mut ledger)?;
        }
        check(&cluster, &ledger)?;
        cluster.nodes[node].start()?;
        cluster.nodes[node].wait_ready()?;
        cluster.wait_caught_up()?;
    }
    check(&cluster, &ledger)?;
    cluster.check_logs(&ALLOWED)
}

#[test]
fn everything_acknowledged_survives_the_death_of_all_processes() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    cluster.add_accounts(&LOCALS)?;
    let mut ledger = Ledger::new();
    for round in 0..3 {
        for local in LOCALS {
            deliver(&cluster, local, &format!("{local}-{round}"), &mut ledger)?;
        }
    }
    let before = check(&cluster, &ledger)?;
    let validity = |cluster: &Cluster| -> Result<String> {
        let mut imap = cluster.imap_client("ann@example.test")?;
        let status = imap.ok("STATUS INBOX (UIDVALIDITY UIDNEXT MESSAGES)")?;
        Ok(String::from_utf8_lossy(&status.concat()).into_owned())
    };
    let validity_before = validity(&cluster)?;
    cluster.kill_all()?;
    cluster.start_all()?;
    cluster.wait_ready()?;
    assert_eq!(check(&cluster, &ledger)?, before);
    assert_eq!(eventually("status", SERVICE_BACK_MAX, || validity(&cluster))?, validity_before);
    deliver(&cluster, "ann", "afterwards", &mut ledger)?;
    check(&cluster, &ledger)?;
    cluster.check_logs(&ALLOWED)
}

#[test]
fn known_accounts_are_served_while_the_directory_has_no_quorum() -> Result<()> {
    // R = 1, so that some shards live on the node that stays; two of the three voters die.
    let options = ClusterOptions { replicas: 1, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options)?;
    let locals: Vec<String> = (0..30).map(|i| format!("user{i}")).collect();
    cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
    let list = |noun: &str| -> Result<Vec<serde_json::Value>> {
        let listing: serde_json::Value = serde_json::from_str(&cluster.admin(&[noun, "list", "--json"])?)?;
        Ok(listing.as_array().context("a listing")?.clone())
    };
    let (shards, accounts) = (list("shard")?, list("account")?);
    let living: Vec<u64> =
        shards.iter().filter(|shard| shard["leader"] == "node1").filter_map(|shard| shard["shard"].as_u64()).collect();
    let served: Vec<String> = accounts
        .iter()
        .filter(|account| account["shard"].as_u64().is_some_and(|shard| living.contains(&shard)))
        .filter_map(|account| account["account"].as_str().map(str::to_owned))
        .collect();
    ensure!(!served.is_empty(), "no account lives on node1: {accounts:?} {shards:?}");
    cluster.nodes[1].kill()?;
    cluster.nodes[2].kill()?;
    for name in &served {
        eventually("the account is served", SERVICE_BACK_MAX, || {
            let mut client = cluster.smtp_client()?;
            let (code, text) = client.deliver("s@example.test", &[name], &message("without a directory"))?;
            ensure!(code == 250, "{name}: {code} {text}");
            Ok(())
        })?;
        let mut imap = cluster_tests::ImapClient::login(cluster.imap(0), name, PASSWORD)?;
        ensure!(imap.select("INBOX")? == 1, "{name}");
    }
    check_refused(&cluster, "dead")?;
    cluster.check_logs(&ALLOWED)?;

    // Once more with a voter that is there and says nothing.
    cluster.nodes[1].start()?;
    eventually("a change is made by two of three", SERVICE_BACK_MAX, || cluster.admin(&["domain", "add", "two.test"]))?;
    cluster.nodes[1].signal("STOP")?;
    check_refused(&cluster, "paused")
}

/// A change is refused for what the reason is, with the names of the voters that do not answer: not for want of a leader, which
/// is waited for.
fn check_refused(cluster: &Cluster, how: &str) -> Result<()> {
    let asked = Instant::now();
    // Once: as `Cluster::admin` would ask again where nothing was changed.
    let refused = cluster.admin_command(&["domain", "add", "late.test"])?.output()?;
    println!("a change is refused after {:?} where two of three voters are {how}", asked.elapsed());
    ensure!(!refused.status.success(), "a change was made without a majority");
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(said.contains("2 of the directory's 3 voters do not answer (node2, node3)"), "{said}");
    ensure!(said.contains("nothing was changed"), "{said}");
    Ok(())
}
