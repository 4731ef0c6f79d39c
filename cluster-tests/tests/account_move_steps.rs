//! Processes die, and disks lose their power, at every step of the move of an account, under load: the move ends or is undone,
//! and nothing that was acknowledged is lost, or there twice.
//!
//! MAILRING_FAILPOINTS_BIN names the binary that was built with the feature `failpoints`; without it these tests are
//! skipped. `MAILRING_SEED` and `MAILRING_ROUNDS` (how many trials) choose the run; with MAILRING_LONG=1 it has all of them, in
//! parts with a cluster each, of which `MAILRING_PART` repeats one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{
    ClusterOptions, Failpoints, Quantiles, Random, Scenario, StepFault, chosen, disks_possible, eventually,
    failpoints_possible, in_parts, setting,
};
use storage::AccountFailpoint;

/// Bounds only how long a test waits before it gives up; what it took is printed.
const PATIENCE: Duration = Duration::from_secs(180);
/// So long after its end nobody comes by a point of a move any more.
const OVER: Duration = Duration::from_secs(5);
/// Moves in which nobody is held; then there is no such step.
const DRAWS_MAX: usize = 4;
/// So slowly that a move can be undone before it is over.
const COPY_OCTETS_PER_S: u64 = 2_000_000;
/// Over one cluster: accounts grow all the time, and their copies take longer.
const PART_TRIALS: usize = 8;
/// Those of [`Scenario`]'s load.
const ACCOUNTS: u64 = 8;

/// A process's part in a move, when it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// Leads the directory.
    Directory,
    /// Leads the shard that the account goes to.
    Target,
    /// Leads the shard that it leaves.
    Source,
}

const ROLES: [Role; 3] = [Role::Directory, Role::Target, Role::Source];

type Fault = StepFault<Role>;

#[derive(Clone, Copy, Debug)]
struct Trial {
    point: AccountFailpoint,
    fault: Fault,
}

/// Who comes by a point.
fn comer(point: AccountFailpoint) -> Role {
    use AccountFailpoint as P;
    match point {
        P::ComingNoted | P::PassBrought | P::FreezeAsked | P::FreezeAnswered | P::LastPassBrought => Role::Target,
        P::AllBrought | P::SwitchAnswered | P::Admitted | P::LeaveAnswered | P::CopyLeft => Role::Target,
        P::FreezeReceived | P::AccountFrozen | P::LeaveReceived | P::LeaveTaken => Role::Source,
        P::ThawReceived | P::AccountThawed => Role::Source,
        P::SwitchProposed | P::SwitchCommitted | P::EndProposed | P::EndCommitted => Role::Directory,
    }
}

/// Only a move that is undone comes by it.
fn is_of_undoing(point: AccountFailpoint) -> bool {
    use AccountFailpoint as P;
    matches!(point, P::CopyLeft | P::ThawReceived | P::AccountThawed)
}

fn trials(faults: impl Fn(Role) -> Vec<Fault>) -> Vec<Trial> {
    let of = |point: &AccountFailpoint| {
        let point = *point;
        faults(comer(point)).into_iter().map(move |fault| Trial { point, fault })
    };
    AccountFailpoint::ALL.iter().flat_map(of).collect()
}

struct Steps {
    scenario: Scenario,
    points: Failpoints,
    random: Random,
    took: Vec<Duration>,
}

struct Move {
    account: String,
    from: u32,
    to: u32,
}

impl Steps {
    fn shard_of(&self, account: &str) -> Result<u32> {
        let shown = self.scenario.cluster.json(&["account", "show", account])?;
        Ok(u32::try_from(shown["shard"].as_u64().context("shard")?)?)
    }

    fn leader(&self, shard: u32) -> Result<usize> {
        let shown = self.scenario.cluster.json(&["shard", "show", &shard.to_string()])?;
        let leader = shown["leader"].as_str().context("no leader")?;
        self.scenario.cluster.nodes.iter().position(|node| node.name == leader).context("no such node")
    }

    fn node(&self, role: Role, one: &Move) -> Result<usize> {
        match role {
            Role::Directory => self.scenario.cluster.directory_leader(),
            Role::Target => self.leader(one.to),
            Role::Source => self.leader(one.from),
        }
    }

    /// An account, and another shard, that another node leads.
    fn choose(&mut self) -> Result<Move> {
        let account = format!("user{}@example.test", self.random.below(ACCOUNTS));
        let draw = self.random.draw();
        eventually("a shard elsewhere", PATIENCE, || {
            let from = self.shard_of(&account)?;
            let source = self.leader(from)?;
            let mut others = Vec::new();
            for shard in 0..ClusterOptions::DEFAULT.shards {
                if self.leader(shard)? != source {
                    others.push(shard);
                }
            }
            ensure!(!others.is_empty(), "{} leads all", self.scenario.cluster.nodes[source].name);
            Ok(Move { account: account.clone(), from, to: others[(draw % others.len() as u64) as usize] })
        })
    }

    /// The node that is held. None if the move ended and nobody was: another has conducted it meanwhile, say.
    fn held(&self, one: &Move) -> Result<Option<usize>> {
        let mut over: Option<Instant> = None;
        eventually("somebody comes by the point", PATIENCE, || {
            if self.points.held().is_ok() {
                return self.points.held_node(&self.scenario.cluster).map(Some);
            }
            let shown = self.scenario.cluster.json(&["account", "show", &one.account])?;
            if !shown["moving"].is_null() {
                over = None;
            } else if over.get_or_insert_with(Instant::now).elapsed() > OVER {
                return Ok(None);
            }
            bail!("nobody yet: {shown}")
        })
    }

    /// Brings the move to the point; the node that is held there. None as for [`Steps::held`].
    fn approach(&self, point: AccountFailpoint, one: &Move) -> Result<Option<usize>> {
        let cluster = &self.scenario.cluster;
        let group = if comer(point) == Role::Target { one.to } else { one.from };
        self.points.stop_at(point, group, None)?;
        cluster.admin(&["account", "move", &one.account, &one.to.to_string()])?;
        if is_of_undoing(point) {
            // It may be over before.
            drop(cluster.admin(&["account", "move", &one.account, "--abort"]));
        }
        self.held(one)
    }

    fn strike(&mut self, trial: Trial, one: &Move, held: usize) -> Result<()> {
        let other = match trial.fault {
            // Found before it is gone; one that has no leader now is found later.
            Fault::OtherDies(role) => {
                Some(eventually("there is a leader", PATIENCE, || self.node(role, one))?).filter(|other| *other != held)
            }
            _ => None,
        };
        let cluster = &mut self.scenario.cluster;
        match (trial.fault, other) {
            (Fault::OtherDies(_), Some(other)) => {
                self.points.kill(cluster, other, false)?;
                self.points.go_on(cluster, held)
            }
            // One process may have two parts: then it dies.
            (Fault::Dies | Fault::OtherDies(_), _) => self.points.kill(cluster, held, false),
            (Fault::PowerCut, _) => self.points.kill(cluster, held, true),
            (Fault::GoesOnLate, _) => {
                eventually("another leads", PATIENCE, || {
                    ensure!(self.node(comer(trial.point), one)? != held, "it leads still");
                    Ok(())
                })?;
                self.points.go_on(&self.scenario.cluster, held)
            }
        }
    }

    /// A move, and the node that is held where the trial wants it.
    fn brought(&mut self, point: AccountFailpoint) -> Result<(Move, usize)> {
        for _ in 0..DRAWS_MAX {
            self.scenario.progress()?;
            eventually("all is well", PATIENCE, || self.scenario.cluster.admin(&["status"]))?;
            self.points.ask_no_more()?;
            let one = self.choose()?;
            if let Some(held) = self.approach(point, &one)? {
                return Ok((one, held));
            }
        }
        bail!("nobody came by in {DRAWS_MAX} moves")
    }

    fn trial(&mut self, number: usize, trial: Trial) -> Result<()> {
        let (one, held) = self.brought(trial.point)?;
        self.strike(trial, &one, held)?;
        let since = Instant::now();
        eventually("the move is over", PATIENCE, || {
            let shown = self.scenario.cluster.json(&["account", "show", &one.account])?;
            ensure!(shown["moving"].is_null(), "{shown}");
            Ok(())
        })?;
        self.took.push(since.elapsed());
        let now = self.shard_of(&one.account)?;
        let end = match now {
            now if now == one.to => "ended",
            now if now == one.from => "undone",
            now => bail!("it is in shard {now}"),
        };
        println!(
            "{number}: {trial:?}, {} from {} to {}: {end} after {:.1?}",
            one.account,
            one.from,
            one.to,
            since.elapsed()
        );
        self.scenario.cluster.wait_ready()
    }
}

fn run(options: ClusterOptions, seed: u64, trials: &[Trial]) -> Result<()> {
    let mut took = Vec::new();
    let ran = in_parts(trials, PART_TRIALS, "", |some| run_part(options, seed, some).map(|times| took.extend(times)));
    println!("{} moves ended or were undone, {}", took.len(), Quantiles::of(took));
    ran
}

/// How long each move took to end or to be undone.
fn run_part(options: ClusterOptions, seed: u64, trials: &[Trial]) -> Result<Vec<Duration>> {
    let options = ClusterOptions { failpoints: true, move_octets_per_s: Some(COPY_OCTETS_PER_S), ..options };
    let scenario = Scenario::start(options, seed, trials.len() as u64)?;
    let points = Failpoints::new(scenario.cluster.path())?;
    let mut steps = Steps { scenario, points, random: Random::new(seed, 2), took: Vec::new() };
    for (number, trial) in trials.iter().enumerate() {
        steps.trial(number, *trial).with_context(|| format!("trial {number}: {trial:?}"))?;
    }
    steps.scenario.progress()?;
    // Among others, that no shard holds anything of an account that is on another.
    steps.scenario.finish()?;
    Ok(steps.took)
}

#[test]
fn processes_killed_at_every_step_of_the_move_of_an_account_lose_nothing() -> Result<()> {
    if !failpoints_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 111), setting("MAILRING_ROUNDS", 8));
    let faults = |role| [Fault::Dies, Fault::GoesOnLate].into_iter().chain(Fault::others_die(&ROLES, role)).collect();
    run(ClusterOptions::DEFAULT, seed, &chosen(trials(faults), seed, rounds, |all| all))
}

#[test]
fn power_cut_at_every_step_of_the_move_of_an_account_loses_nothing() -> Result<()> {
    if !failpoints_possible() || !disks_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 112), setting("MAILRING_ROUNDS", 4));
    let trials = chosen(trials(|_| vec![Fault::PowerCut]), seed, rounds, |all| all);
    run(ClusterOptions { own_disks: true, ..ClusterOptions::DEFAULT }, seed, &trials)
}
