//! The directory's leader dies under load, one after the other: another is known within seconds, and mail goes on for
//! the accounts that are known. What the dead node led is served again after an election; nobody else meets an error.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use cluster_tests::{Cluster, ClusterOptions, Quantiles, Scenario, eventually, setting};

/// Bounds only how long a test waits before it gives up; what it took is printed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Leaders that are stopped until the one leads that is to.
const LEADERS_MAX: usize = 20;

#[test]
fn the_leader_of_the_directory_is_replaced_and_known_accounts_do_not_notice() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 71), setting("MAILRING_ROUNDS", 3));
    let mut scenario = Scenario::start(
        ClusterOptions { routers: 2, leaders_look_s: Some(0), ..ClusterOptions::default() },
        seed,
        rounds,
    )?;
    let [mut known, mut changed, mut served] = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..rounds {
        scenario.progress()?;
        let cluster = &mut scenario.cluster;
        let mut accounts = eventually("leaders are where they should be", PATIENCE, || cluster.accounts_by_leader())?;
        let victim = cluster.directory_leader()?;
        accounts.remove(victim);
        let elsewhere = accounts.concat();
        scenario.load.forget_errors();

        cluster.nodes[victim].kill()?;
        let died = Instant::now();
        let leader = eventually("the directory has a leader", PATIENCE, || cluster.directory_leader())?;
        known.push(died.elapsed());
        ensure!(leader != victim, "a dead node leads");
        let domain = format!("round{round}.test");
        eventually("the directory is changed", PATIENCE, || cluster.admin(&["domain", "add", &domain]))?;
        changed.push(died.elapsed());
        scenario.service_back()?;
        served.push(died.elapsed());
        scenario.progress()?;
        let errors = scenario.load.service.errors_of(&elsewhere);
        ensure!(errors == 0, "{errors} errors of accounts that the dead node did not lead, {elsewhere:?}");

        scenario.cluster.nodes[victim].start()?;
        scenario.cluster.nodes[victim].wait_ready()?;
    }
    println!("the directory has another leader after: {}", Quantiles::of(known));
    println!("it takes a change after: {}", Quantiles::of(changed));
    println!("every account is served after: {}", Quantiles::of(served));
    scenario.finish()
}

/// Until the directory is led by this node: whoever does is stopped, and started again.
fn have_led_by(cluster: &mut Cluster, wanted: usize) -> Result<()> {
    for _ in 0..LEADERS_MAX {
        let leader = eventually("the directory has a leader", PATIENCE, || cluster.directory_leader())?;
        if leader == wanted {
            return Ok(());
        }
        cluster.nodes[leader].terminate()?;
        eventually("another one leads", PATIENCE, || {
            ensure!(cluster.directory_leader()? != leader);
            Ok(())
        })?;
        cluster.nodes[leader].start()?;
        cluster.nodes[leader].wait_ready()?;
    }
    bail!("others lead the directory")
}

/// It asks those that founded the cluster, which is all that its settings name.
#[test]
fn a_node_comes_while_one_that_came_later_leads_the_directory() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { shards: 4, ..ClusterOptions::default() })?;
    let later = cluster.add_node()?;
    let name = cluster.nodes[later].name.clone();
    cluster.admin(&["node", "join", &name, "--wait"])?;
    cluster.admin(&["node", "drain", "node1", "--wait"])?;
    have_led_by(&mut cluster, later)?;
    let last = cluster.add_node()?;
    // On a machine that stands still for a moment another one may.
    println!("it came while the directory was led by node{}", cluster.directory_leader()? + 1);
    let name = cluster.nodes[last].name.clone();
    // Nobody has it join yet.
    let state = cluster.node(&name)?["state"].clone();
    let plan = cluster.json(&["rebalance", "plan"])?.to_string();
    ensure!(state == "draining" && !plan.contains(&format!("[\"{name}\"]")), "{state}: {plan}");
    cluster.admin(&["node", "join", &name, "--wait"]).map(drop)
}
