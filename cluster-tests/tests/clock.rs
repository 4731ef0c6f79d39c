//! Clocks jump under load, by an hour, a day, to 2038 and back, on one machine or on all: order, UIDs and the memory of
//! what was done once do not depend on them, and service goes on.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    Cluster, ClusterOptions, ImapClient, PASSWORD, Process, Random, Scenario, eventually, no_clocks_because, setting,
};

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(120);
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// 2038-01-20: beyond what fits into 31 bits of seconds.
const BEYOND_31_BITS: i64 = 2_147_558_400;

#[derive(Clone, Copy, Debug)]
enum Jump {
    /// Seconds before or after the machine's time.
    By(i64),
    To(i64),
}

const JUMPS: [Jump; 6] =
    [Jump::By(HOUR), Jump::By(-HOUR), Jump::By(DAY), Jump::By(-DAY), Jump::To(BEYOND_31_BITS), Jump::By(0)];

fn jump(process: &Process, jump: Jump) -> Result<()> {
    match jump {
        Jump::By(seconds) => process.clock()?.set(seconds),
        Jump::To(unix_s) => process.clock()?.set_to(unix_s),
    }
}

fn possible() -> bool {
    let reason = no_clocks_because();
    if let Some(reason) = &reason {
        println!("skipped: no clocks to set: {reason}");
    }
    reason.is_none()
}

fn start(seed: u64, rounds: u64) -> Result<Scenario> {
    Scenario::start(ClusterOptions { routers: 2, own_clocks: true, ..ClusterOptions::default() }, seed, rounds)
}

/// The UIDVALIDITY of a mailbox that is made now, and gone again.
fn fresh_uid_validity(cluster: &Cluster) -> Result<u32> {
    eventually("a mailbox is made", PATIENCE, || fresh_uid_validity_now(cluster))
}

fn fresh_uid_validity_now(cluster: &Cluster) -> Result<u32> {
    let mut imap = ImapClient::login(cluster.imap(0), "user0@example.test", PASSWORD)?;
    // It may be there from an attempt whose answer was lost.
    imap.command("DELETE fresh")?;
    imap.ok("CREATE fresh")?;
    let said = imap.ok("STATUS fresh (UIDVALIDITY)")?;
    imap.ok("DELETE fresh")?;
    let said = String::from_utf8_lossy(&said.join(&b'\n')).into_owned();
    let number = said.split("UIDVALIDITY ").nth(1).and_then(|rest| rest.split([')', ' ']).next());
    Ok(number.with_context(|| said.clone())?.parse()?)
}

#[test]
fn clocks_that_jump_on_all_machines_change_no_order_and_no_uid() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 51), setting("MAILRING_ROUNDS", 1));
    let mut scenario = start(seed, rounds)?;
    let mut newest = fresh_uid_validity(&scenario.cluster)?;
    for _ in 0..rounds {
        for to in JUMPS {
            let cluster = &scenario.cluster;
            for process in cluster.nodes.iter().chain(&cluster.routers) {
                jump(process, to)?;
            }
            scenario.progress()?;
            let validity = fresh_uid_validity(&scenario.cluster)?;
            ensure!(validity > newest, "UIDVALIDITY {validity} after {newest}, clocks {to:?}");
            newest = validity;
            println!("served {:?} after all clocks jumped: {to:?}", scenario.service_back()?);
        }
    }
    scenario.finish()
}

#[test]
fn a_clock_that_jumps_on_one_machine_does_nothing_twice_when_another_takes_over() -> Result<()> {
    if !possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 52), setting("MAILRING_ROUNDS", 5));
    let mut random = Random::new(seed, u64::MAX);
    let mut scenario = start(seed, rounds)?;
    for _ in 0..rounds {
        // Everybody else has another time of day when a node dies with answers under way: they are asked for again.
        let victim = random.below(3) as usize;
        for other in (0..3).filter(|other| *other != victim) {
            jump(&scenario.cluster.nodes[other], JUMPS[random.below(JUMPS.len() as u64) as usize])?;
        }
        let router = random.below(2) as usize;
        jump(&scenario.cluster.routers[router], JUMPS[random.below(JUMPS.len() as u64) as usize])?;
        scenario.cluster.nodes[victim].kill()?;
        println!("served {:?} after a node died and clocks jumped", scenario.service_back()?);
        scenario.progress()?;
        // It comes back to peers with other clocks, and with one of its own.
        jump(&scenario.cluster.nodes[victim], JUMPS[random.below(JUMPS.len() as u64) as usize])?;
        scenario.cluster.nodes[victim].start()?;
        scenario.cluster.nodes[victim].wait_ready()?;
        scenario.progress()?;
    }
    scenario.finish()
}
