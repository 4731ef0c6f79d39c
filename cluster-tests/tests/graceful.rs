//! SIGTERM under load: a node hands its leaders over before it ends, a router lets its sessions finish the command under
//! way. Nobody notices but by one BYE or 421 from that router, and both end with exit code 0.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cluster_tests::{ClusterOptions, ImapClient, Outcome, PASSWORD, Scenario, SmtpClient, setting};

const ACCOUNT: &str = "user0@example.test";
/// Hand-over, the calls under way, and the volume's close: seconds, which are printed. A busy machine and its disk get
/// more.
const STOP_MAX: Duration = Duration::from_secs(60);

/// Changes whose outcome clients do not know.
fn unknown(scenario: &Scenario) -> usize {
    scenario.load.history.entries().operations.iter().filter(|one| one.outcome == Outcome::Unknown).count()
}

#[test]
fn a_node_told_to_stop_hands_its_leaders_over_and_no_client_notices() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 71), setting("MAILRING_ROUNDS", 3));
    let mut scenario = Scenario::start(ClusterOptions::default(), seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        let leader = scenario.cluster.first_leader()?;
        let told = Instant::now();
        // An error unless it ends with exit code 0.
        scenario.cluster.nodes[leader].terminate()?;
        let stopped = told.elapsed();
        ensure!(stopped < STOP_MAX, "stopped after {stopped:?}");
        println!("stopped after {stopped:?}, served {:?} later", scenario.service_back()?);
        scenario.progress()?;
        scenario.cluster.nodes[leader].start()?;
        scenario.cluster.nodes[leader].wait_ready()?;
    }
    let unknown = unknown(&scenario);
    scenario.finish()?;
    ensure!(unknown == 0, "{unknown} changes were left open");
    Ok(())
}

#[test]
fn a_router_told_to_stop_finishes_what_is_under_way_and_says_goodbye_once() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 72), setting("MAILRING_ROUNDS", 2));
    let options = ClusterOptions { nodes: 1, replicas: 1, routers: 2, ..ClusterOptions::default() };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    for round in 0..rounds {
        scenario.progress()?;
        let router = (round % 2) as usize;
        let mut idle = ImapClient::login(scenario.cluster.imap(router), ACCOUNT, PASSWORD)?;
        idle.select("INBOX")?;
        idle.send("IDLE")?;
        let mut quiet = ImapClient::login(scenario.cluster.imap(router), ACCOUNT, PASSWORD)?;
        let mut sender = SmtpClient::connect(scenario.cluster.smtp(router))?;
        let told = Instant::now();
        scenario.cluster.routers[router].terminate()?;
        println!("stopped after {:?}", told.elapsed());
        for session in [&mut idle, &mut quiet] {
            let mut goodbyes = 0;
            while let Ok(line) = session.response() {
                goodbyes += usize::from(line.starts_with(b"* BYE"));
            }
            ensure!(goodbyes == 1, "{goodbyes} BYE");
        }
        let (code, text) = sender.reply()?;
        ensure!(code == 421 && sender.line.closes(), "{code} {text}");
        scenario.progress()?;
        scenario.cluster.routers[router].start()?;
        scenario.cluster.routers[router].wait_ready()?;
    }
    scenario.finish()
}
