//! A cluster under a seeded load, through which a test sends its faults; then everything is checked.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::checker::check;
use crate::cluster::{Cluster, ClusterOptions, PASSWORD};
use crate::history::Tally;
use crate::imap::ImapClient;
use crate::load::{Load, LoadOptions};
use crate::process::eventually;
use crate::quantiles::Quantiles;

const ACCOUNTS: usize = 8;
const WRITERS: usize = 6;
const READERS: usize = 2;
/// Bounds only how long a test waits before it gives up; what the service took is printed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Changes that are acknowledged between two faults.
const PROGRESS: u64 = 40;
/// The same where a hundred faults are to prove something: 20,000 deliveries and 5,000 IMAP operations, in two halves of
/// each round.
pub const PROVEN: Tally = Tally { deliveries: 100, appends: 25, stores: 0, copies: 0, moves: 0, expunges: 0 };

/// Dropping it ends the load first, then the cluster.
pub struct Scenario {
    pub load: Load,
    pub cluster: Cluster,
    again: String,
    /// How long the service was away, by what was done to the cluster.
    away: Mutex<BTreeMap<&'static str, Vec<Duration>>>,
}

/// With MAILRING_LONG=1 a run has so many times as many rounds as else.
const LONG_TIMES: u64 = 10;

/// A number from the environment, by which a run is repeated or made longer.
pub fn setting(name: &str, default: u64) -> u64 {
    let times = if name == "MAILRING_ROUNDS" && is_long() { LONG_TIMES } else { 1 };
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default * times)
}

/// How many rounds a run has: as many as a person waits for, or with MAILRING_LONG=1 those that are multiplied there.
pub fn rounds(short: u64, long: u64) -> u64 {
    if is_long() { long } else { short }
}

/// Faults last as long as docs/reliability.md says, and runs have more rounds: hours in all.
pub fn is_long() -> bool {
    std::env::var_os("MAILRING_LONG").is_some_and(|value| value == "1")
}

/// The command that repeats the test that calls this.
pub fn command_again(seed: u64, rounds: u64) -> String {
    let binary = std::env::current_exe().unwrap_or_default();
    let stem = binary.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    // Cargo adds a hash: `kill-0123456789abcdef`.
    let file = stem.rsplit_once('-').map_or(stem.as_str(), |(file, _)| file);
    let thread = std::thread::current();
    let name = thread.name().unwrap_or_default();
    let long = if is_long() { "MAILRING_LONG=1 " } else { "" };
    format!(
        "{long}MAILRING_SEED={seed} MAILRING_ROUNDS={rounds} cargo test --release -p cluster-tests --test {file} -- --exact \
         --nocapture {name}"
    )
}

impl Scenario {
    /// With the seed and the rounds of MAILRING_SEED and MAILRING_ROUNDS, or else these: the scenario, and what they are.
    pub fn seeded(options: ClusterOptions, seed: u64, rounds: u64) -> Result<(Scenario, u64, u64)> {
        let (seed, rounds) = (setting("MAILRING_SEED", seed), setting("MAILRING_ROUNDS", rounds));
        Ok((Scenario::start(options, seed, rounds)?, seed, rounds))
    }

    pub fn start(options: ClusterOptions, seed: u64, rounds: u64) -> Result<Scenario> {
        let again = command_again(seed, rounds);
        // Shown with a failure of whatever kind.
        println!("{again}");
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
        Ok(Scenario { load, cluster, again, away: Mutex::default() })
    }

    /// Waits until the load has got more changes acknowledged.
    pub fn progress(&self) -> Result<()> {
        let goal = self.load.acknowledged() + PROGRESS;
        self.acknowledged(|tally| tally.all() >= goal)
    }

    /// Waits until it has got so many more deliveries and so many more IMAP operations acknowledged.
    pub fn progress_by(&self, more: Tally) -> Result<()> {
        let before = self.load.tally();
        let (deliveries, imap) = (before.deliveries + more.deliveries, before.imap() + more.imap());
        self.acknowledged(|tally| tally.deliveries >= deliveries && tally.imap() >= imap)
    }

    fn acknowledged(&self, enough: impl Fn(Tally) -> bool) -> Result<()> {
        let progress = self.load.hurry(|| {
            eventually("changes are acknowledged", PATIENCE, || {
                let tally = self.load.tally();
                ensure!(enough(tally), "{tally}");
                Ok(())
            })
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
        self.service_back_after("what was done", Instant::now())
    }

    /// The same from a moment on; what was done then is part of the summary.
    pub fn service_back_after(&self, done: &'static str, since: Instant) -> Result<Duration> {
        for account in 0..ACCOUNTS {
            let user = format!("user{account}@example.test");
            let served = eventually("the account is served", PATIENCE, || {
                let mut imap = ImapClient::login(self.cluster.imap(0), &user, PASSWORD)?;
                imap.select("INBOX")?;
                imap.create("probe")?;
                imap.ok("DELETE probe").map(drop)
            });
            served.with_context(|| self.again.clone())?;
        }
        let away = since.elapsed();
        self.away.lock().unwrap_or_else(PoisonError::into_inner).entry(done).or_default().push(away);
        Ok(away)
    }

    /// Stops the load and checks everything.
    pub fn finish(&mut self) -> Result<()> {
        let checked = self.stop_and_check();
        let octets = checked.with_context(|| self.again.clone())?;
        println!("{} acknowledged, replicas of {octets} octets are the same", self.load.tally());
        for (done, times) in std::mem::take(self.away.get_mut().unwrap_or_else(PoisonError::into_inner)) {
            println!("every account served after {done}: {}", Quantiles::of(times));
        }
        Ok(())
    }

    fn stop_and_check(&mut self) -> Result<u64> {
        self.load.stop()?;
        eventually("every mailbox is readable", PATIENCE, || self.load.read_all())?;
        let faults = check(&self.load.history.entries());
        ensure!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
        eventually("every shard counts right", PATIENCE, || self.cluster.check_totals())?;
        eventually("POP3 shows what IMAP does", PATIENCE, || self.cluster.compare_maildrops())?;
        self.cluster.compare_replicas()
    }
}
