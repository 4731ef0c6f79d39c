//! The link between two of three nodes becomes so narrow that one cannot send the other what is written: a majority
//! goes on without it, heartbeats are not stuck behind mail, so that nobody is taken for dead, and the replicas that fell
//! behind catch up as soon as the link is wide again.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cluster_tests::{ClusterOptions, Elections, Fault, Scenario, eventually, in_own_network, setting};

/// Bounds only how long a test waits before it gives up; what it took is printed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Before the fault, to compare with.
const QUIET: Duration = Duration::from_secs(5);
/// Several times what an election takes.
const LASTS: Duration = Duration::from_secs(20);
/// A mail of 700 KB takes a minute and a half.
const NARROW: Fault = Fault::Narrow(64_000);
/// The same takes six seconds.
const MEGABIT: Fault = Fault::Narrow(1_000_000);
/// Of 34 octets: more than one log entry holds.
const LARGE_LINES: usize = 20_000;

#[test]
fn a_narrow_link_between_two_of_three_nodes_holds_up_nobody() -> Result<()> {
    in_own_network("a_narrow_link_between_two_of_three_nodes_holds_up_nobody", |mut network| {
        let (seed, rounds) = (setting("MAILRING_SEED", 91), setting("MAILRING_ROUNDS", 1));
        let options = ClusterOptions { routers: 2, own_groups: true, ..ClusterOptions::default() };
        let mut scenario = Scenario::start(options, seed, rounds)?;
        for round in 0..rounds {
            let cluster = &scenario.cluster;
            let accounts = eventually("leaders are where they should be", PATIENCE, || cluster.accounts_by_leader())?;
            let accounts = accounts.concat();
            let (one, other) = ((round % 3) as usize, ((round + 1) % 3) as usize);
            scenario.load.forget_errors();
            scenario.go_on(QUIET)?;
            println!("changes before: {}", scenario.load.service.times_of(&accounts));

            let elections = Elections::watch(cluster)?;
            network.between(cluster, &cluster.nodes[one].name, &cluster.nodes[other].name, NARROW)?;
            scenario.load.forget_errors();
            let (mut behind, narrowed) = (0, Instant::now());
            while behind == 0 || narrowed.elapsed() < LASTS {
                scenario.progress()?;
                let entries = cluster.last_entries()?;
                behind = cluster.behind(one, &entries)?.max(cluster.behind(other, &entries)?).max(behind);
            }
            let service = &scenario.load.service;
            println!("changes meanwhile: {}", service.times_of(&accounts));
            println!("{} packets over the narrow link; {}", network.met()?, elections.held(cluster)?);
            let errors = service.errors();
            ensure!(errors == 0, "{errors} errors, and every shard has a majority beside the narrow link");

            let entries = cluster.last_entries()?;
            network.heal()?;
            let healed = Instant::now();
            eventually("replicas catch up", PATIENCE, || {
                let behind = cluster.behind(one, &entries)?.max(cluster.behind(other, &entries)?);
                ensure!(behind == 0, "{behind} entries behind");
                Ok(())
            })?;
            println!("{behind} entries behind at most, caught up {:?} after the link is wide again", healed.elapsed());
        }
        scenario.finish()
    })
}

#[test]
fn links_of_a_megabit_between_all_nodes_carry_large_mail_and_let_replicas_catch_up() -> Result<()> {
    in_own_network("links_of_a_megabit_between_all_nodes_carry_large_mail_and_let_replicas_catch_up", |mut network| {
        let (seed, rounds) = (setting("MAILRING_SEED", 92), setting("MAILRING_ROUNDS", 1));
        let options = ClusterOptions { routers: 2, own_groups: true, ..ClusterOptions::default() };
        let mut scenario = Scenario::start(options, seed, rounds)?;
        scenario.cluster.add_accounts(&["large"])?;
        let content = format!("Subject: large\r\n\r\n{}", "0123456789abcdef0123456789abcdef\r\n".repeat(LARGE_LINES));
        for round in 0..rounds {
            scenario.progress()?;
            let cluster = &scenario.cluster;
            for (one, other) in [(0, 1), (1, 2), (2, 0)] {
                network.between(cluster, &cluster.nodes[one].name, &cluster.nodes[other].name, MEGABIT)?;
            }
            let elections = Elections::watch(cluster)?;
            scenario.go_on(LASTS)?;
            let sent = Instant::now();
            eventually("the large message is taken", PATIENCE, || {
                let (code, text) =
                    cluster.smtp_client()?.deliver("load@example.test", &["large@example.test"], content.as_bytes())?;
                ensure!(code == 250, "{code} {text}");
                Ok(())
            })?;
            println!("{} octets were taken after {:?}", content.len(), sent.elapsed());
            let mut imap = cluster.imap_client("large@example.test")?;
            ensure!(u64::from(imap.select("INBOX")?) == round + 1, "it is there once");
            let (entries, began) = (cluster.last_entries()?, Instant::now());
            for node in 0..cluster.nodes.len() {
                eventually("a replica catches up over narrow links", PATIENCE, || {
                    let behind = cluster.behind(node, &entries)?;
                    ensure!(behind == 0, "{behind} entries behind");
                    Ok(())
                })?;
            }
            println!("every replica has that after {:?}; {}", began.elapsed(), elections.held(cluster)?);
            network.heal()?;
        }
        scenario.finish()
    })
}
