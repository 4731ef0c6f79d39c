//! Leadership follows the load: shards that are asked for much are led by nodes that have little to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use cluster_tests::{Cluster, ClusterOptions, ImapClient, PASSWORD, eventually, message};
use serde_json::Value;

const OPTIONS: ClusterOptions = ClusterOptions { shards: 12, ..ClusterOptions::DEFAULT };
const ACCOUNTS: usize = 64;
/// Shards of one node that everybody asks for.
const BUSY: usize = 3;
/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);

fn shards(cluster: &Cluster) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&cluster.admin(&["shard", "list", "--json"])?)?)
}

/// One connection that stores flags until it is told to stop; any error ends it.
fn busy(cluster: &Cluster, account: String, stop: Arc<AtomicBool>) -> JoinHandle<Result<()>> {
    let address = cluster.imap(0);
    std::thread::spawn(move || {
        let mut imap = ImapClient::login(address, &account, PASSWORD)?;
        imap.append("INBOX", &message("busy"))?;
        imap.select("INBOX")?;
        while !stop.load(Ordering::SeqCst) {
            imap.ok("STORE 1 +FLAGS.SILENT (\\Flagged)")?;
            imap.ok("STORE 1 -FLAGS.SILENT (\\Flagged)")?;
        }
        Ok(())
    })
}

#[test]
fn busy_shards_of_one_node_come_to_be_led_by_three() -> Result<()> {
    let mut cluster = Cluster::start(OPTIONS)?;
    for node in 0..cluster.nodes.len() {
        cluster.nodes[node].reconfigure("[node]\n", "[node]\nleaders_look_s = 1\n")?;
    }
    cluster.kill_all()?;
    cluster.start_all()?;
    cluster.wait_ready()?;
    let locals: Vec<String> = (0..ACCOUNTS).map(|i| format!("user{i}")).collect();
    cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;

    let mut hot = Vec::new();
    eventually("every node leads its share", PATIENCE, || {
        ensure!(cluster.led()?.iter().all(|led| *led == OPTIONS.shards as usize / 3), "{:?}", cluster.led()?);
        let mine = shards(&cluster)?.into_iter().filter(|shard| shard["leader"] == "node1");
        hot = mine.take(BUSY).map(|shard| shard["shard"].as_u64().context("shard")).collect::<Result<_>>()?;
        Ok(())
    })?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for shard in &hot {
        let account = locals.iter().map(|local| format!("{local}@example.test")).find_map(|account| {
            let shown = cluster.admin(&["account", "show", &account, "--json"]).ok()?;
            let shown: Value = serde_json::from_str(&shown).ok()?;
            (shown["shard"].as_u64() == Some(*shard)).then_some(account)
        });
        clients.push(busy(&cluster, account.with_context(|| format!("no account in shard {shard}"))?, stop.clone()));
    }
    eventually("each node leads one busy shard, and as many shards as before", PATIENCE, || {
        if clients.iter().any(JoinHandle::is_finished) {
            // It tells below what it has met.
            return Ok(());
        }
        let now = shards(&cluster)?;
        let mut leaders: Vec<&str> = now
            .iter()
            .filter(|shard| shard["shard"].as_u64().is_some_and(|number| hot.contains(&number)))
            .filter_map(|shard| shard["leader"].as_str())
            .collect();
        leaders.sort_unstable();
        ensure!(leaders == ["node1", "node2", "node3"], "{leaders:?}");
        ensure!(cluster.led()?.iter().all(|led| *led == OPTIONS.shards as usize / 3), "{:?}", cluster.led()?);
        Ok(())
    })?;
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().map_err(|_| anyhow!("a client panicked"))?.context("a client saw an error")?;
    }
    Ok(())
}
