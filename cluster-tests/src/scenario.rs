//! A cluster under a seeded load, through which a test sends its faults; then everything is checked.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::checker::check;
use crate::cluster::{Cluster, ClusterOptions, PASSWORD};
use crate::imap::ImapClient;
use crate::load::{Load, LoadOptions};
use crate::process::eventually;

const ACCOUNTS: usize = 8;
const WRITERS: usize = 6;
const READERS: usize = 2;
/// Bounds only how long a test waits before it gives up; what the service took is printed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Changes that are acknowledged between two faults.
const PROGRESS: u64 = 40;

/// Dropping it ends the load first, then the cluster.
pub struct Scenario {
    pub load: Load,
    pub cluster: Cluster,
    again: String,
}

/// A number from the environment, by which a run is repeated or made longer.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

impl Scenario {
    pub fn start(options: ClusterOptions, seed: u64, rounds: u64) -> Result<Scenario> {
        let cluster = Cluster::start(options)?;
        let locals: Vec<String> = (0..ACCOUNTS).map(|i| format!("user{i}")).collect();
        cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
        let load = Load::start(LoadOptions {
            seed,
            accounts: locals.iter().map(|local| format!("{local}@example.test")).collect(),
            smtp: (0..options.routers).map(|router| cluster.smtp(router)).collect(),
            imap: (0..options.routers).map(|router| cluster.imap(router)).collect(),
            writers: WRITERS,
            readers: READERS,
        })?;
        Ok(Scenario { load, cluster, again: format!("MAILRING_SEED={seed} MAILRING_ROUNDS={rounds}") })
    }

    /// Waits until the load has got more changes acknowledged.
    pub fn progress(&self) -> Result<()> {
        let goal = self.load.acknowledged() + PROGRESS;
        let progress = eventually("changes are acknowledged", PATIENCE, || {
            let acknowledged = self.load.acknowledged();
            ensure!(acknowledged >= goal, "{acknowledged} of {goal}");
            Ok(())
        });
        progress.with_context(|| self.again.clone())
    }

    /// Lets the load go on for so long; an error if it stands still meanwhile.
    pub fn go_on(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.progress()?;
        }
        Ok(())
    }

    /// How long until every account can be read and changed over router 1.
    pub fn service_back(&self) -> Result<Duration> {
        let since = Instant::now();
        for account in 0..ACCOUNTS {
            let user = format!("user{account}@example.test");
            let served = eventually("the account is served", PATIENCE, || {
                let mut imap = ImapClient::login(self.cluster.imap(0), &user, PASSWORD)?;
                imap.select("INBOX")?;
                // It may be there from an attempt whose answer was lost.
                imap.ok("CREATE probe").map(drop).or_else(|_| imap.ok("STATUS probe (MESSAGES)").map(drop))?;
                imap.ok("DELETE probe").map(drop)
            });
            served.with_context(|| self.again.clone())?;
        }
        Ok(since.elapsed())
    }

    /// Stops the load and checks everything.
    pub fn finish(&mut self) -> Result<()> {
        let checked = self.stop_and_check();
        let octets = checked.with_context(|| self.again.clone())?;
        let acknowledged = self.load.acknowledged();
        println!("{}: {acknowledged} changes acknowledged, replicas of {octets} octets are the same", self.again);
        Ok(())
    }

    fn stop_and_check(&mut self) -> Result<u64> {
        self.load.stop()?;
        eventually("every mailbox is readable", PATIENCE, || self.load.read_all())?;
        let faults = check(&self.load.history.entries());
        ensure!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
        eventually("all replicas are the same", PATIENCE, || self.cluster.compare_replicas())
    }
}
