//! Processes die, and disks lose their power, at every step of a move, under load: the move ends or is undone, nothing
//! that was acknowledged is lost, and no replica or part of one is left where it should not be.
//!
//! MAILRING_FAILPOINTS_BIN names the binary that was built with the feature `failpoints`; without it these tests are
//! skipped. `MAILRING_SEED` and `MAILRING_ROUNDS` (how many trials) choose the run; with MAILRING_LONG=1 it has all of them, in parts
//! with a cluster each, of which `MAILRING_PART` repeats one.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{
    Asked, ClusterOptions, Failpoints, Quantiles, Random, Scenario, StepFault, chosen, disks_possible, eventually,
    failpoints_possible, in_parts, setting,
};
use serde_json::Value;
use storage::{Failpoint, GroupId, Volume, VolumeOptions};

/// Bounds only how long a test waits before it gives up; what it took is printed.
const PATIENCE: Duration = Duration::from_secs(180);
/// Few, so that whoever begins to follow a group needs a snapshot.
const LOG_ENTRIES_KEPT: u64 = 20;
/// A shard with so many entries has let the first ones go.
const LOADED_ENTRIES: u64 = 4 * LOG_ENTRIES_KEPT;
const SHARDS: u32 = 4;
/// So long after its end nobody comes by a point of a move any more.
const OVER: Duration = Duration::from_secs(15);
/// Over one cluster: a part that fails does not keep the others from being run.
const PART_TRIALS: usize = 12;
/// Moves in which nobody is held; then there is no such step.
const DRAWS_MAX: usize = 4;

/// A process's part in a move, when it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// Leads the directory.
    Directory,
    /// Leads the shard.
    Leader,
    Target,
    Source,
}

const ROLES: [Role; 4] = [Role::Directory, Role::Leader, Role::Target, Role::Source];

type Fault = StepFault<Role>;

#[derive(Clone, Copy, Debug)]
struct Trial {
    point: Failpoint,
    role: Role,
    fault: Fault,
}

/// Who comes by a point. A move in which nobody does is found at the end of each test.
fn comers(point: Failpoint) -> &'static [Role] {
    use Failpoint as P;
    match point {
        P::Planned | P::TurnChosen | P::TurnGiven | P::Arrived | P::Ended => &[Role::Directory],
        P::BeginAsked | P::BeginAnswered | P::LearnerProposed | P::LearnerAdded => &[Role::Leader],
        P::SnapshotOpened | P::SnapshotSent | P::ChangeProposed | P::Changed => &[Role::Leader],
        P::SettleProposed | P::Settled | P::RemoveProposed | P::Removed => &[Role::Leader],
        P::HandOverAsked | P::HandedOver => &[Role::Leader],
        P::BeginReceived | P::BeginOpened | P::BegunOnDisk | P::BegunRecorded | P::BegunStarted => &[Role::Target],
        P::SnapshotAnnounced | P::SnapshotSpooled | P::SnapshotReceived => &[Role::Target],
        P::SnapshotWritten | P::SnapshotFlipping | P::SnapshotInstalled => &[Role::Target],
        // The target has it from the snapshot.
        P::LearnerAppended | P::LearnerApplied => &[Role::Leader, Role::Source],
        P::JointAppended | P::JointApplied => &[Role::Leader, Role::Target, Role::Source],
        // The source is told nothing any more.
        P::FinalAppended | P::FinalApplied => &[Role::Leader, Role::Target],
        P::DropTold | P::DropStopped | P::DropConfirmed | P::HomeForgotten | P::Dropped => &[Role::Source],
    }
}

/// Several processes come by it, each in its turn.
fn is_of_every_member(point: Failpoint) -> bool {
    comers(point).len() > 1
}

fn trials(faults: impl Fn(Role) -> Vec<Fault>) -> Vec<Trial> {
    let all = Failpoint::ALL.iter().flat_map(|point| comers(*point).iter().map(|role| (*point, *role)));
    all.flat_map(|(point, role)| faults(role).into_iter().map(move |fault| Trial { point, role, fault })).collect()
}

/// Those first that pass by what no other does.
fn alone_first(trials: Vec<Trial>) -> Vec<Trial> {
    let is_alone =
        |trial: &&Trial| matches!(trial.point, Failpoint::Settled | Failpoint::Removed | Failpoint::HandedOver);
    let mut points = BTreeSet::new();
    let alone: Vec<Trial> = trials.iter().filter(is_alone).filter(|one| points.insert(one.point)).copied().collect();
    let others = trials.into_iter().filter(|trial| !is_alone(&trial));
    alone.into_iter().chain(others).collect()
}

/// A move, and who takes part in it.
struct Move {
    shard: u32,
    before: BTreeSet<String>,
    after: BTreeSet<String>,
    directory: usize,
    leader: usize,
    target: usize,
    source: usize,
}

impl Move {
    fn node(&self, role: Role) -> usize {
        match role {
            Role::Directory => self.directory,
            Role::Leader => self.leader,
            Role::Target => self.target,
            Role::Source => self.source,
        }
    }
}

/// From the fault's end to the end of the move, or of its undoing.
type Took = BTreeMap<&'static str, Vec<Duration>>;

struct Steps {
    scenario: Scenario,
    points: Failpoints,
    random: Random,
    took: Took,
    /// Replicas that have come by a move, and stayed so far.
    came: BTreeSet<(u32, usize)>,
}

impl Steps {
    fn start(options: ClusterOptions, seed: u64, rounds: u64) -> Result<Steps> {
        let options = ClusterOptions {
            nodes: 4,
            shards: SHARDS,
            log_entries_kept: Some(LOG_ENTRIES_KEPT),
            failpoints: true,
            ..options
        };
        let scenario = Scenario::start(options, seed, rounds)?;
        let points = Failpoints::new(scenario.cluster.path())?;
        let (random, took, came) = (Random::new(seed, 2), BTreeMap::new(), BTreeSet::new());
        Ok(Steps { scenario, points, random, took, came })
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        Ok(serde_json::from_str(&self.scenario.cluster.admin(&arguments)?)?)
    }

    fn node(&self, name: &str) -> Result<usize> {
        self.scenario.cluster.nodes.iter().position(|node| node.name == name).context("no such node")
    }

    fn name(&self, node: usize) -> &str {
        &self.scenario.cluster.nodes[node].name
    }

    /// Draws a shard, and where it goes, so that a trial can be made.
    fn choose(&mut self, trial: Trial) -> Result<Move> {
        let directory = eventually("the directory is led", PATIENCE, || self.scenario.cluster.directory_leader())?;
        let leader_goes = match trial.point {
            Failpoint::HandOverAsked | Failpoint::HandedOver => true,
            point if is_of_every_member(point) => false,
            _ => self.random.below(2) == 0,
        };
        let draw = self.random.draw();
        // An abort must be answered while the target is held.
        let spares_directory = matches!(trial.point, Failpoint::RemoveProposed | Failpoint::Removed);
        eventually("a shard that has let its first entries go can move", PATIENCE, || {
            let mut moves = Vec::new();
            for row in self.json(&["shard", "list"])?.as_array().context("shards")? {
                if row["applied_index"].as_u64().is_none_or(|index| index < LOADED_ENTRIES) {
                    continue;
                }
                let shard = u32::try_from(row["shard"].as_u64().context("shard")?)?;
                let leader = self.node(row["leader"].as_str().context("no leader")?)?;
                let before = names(&row["wanted"]);
                let held: Vec<usize> = before.iter().map(|name| self.node(name)).collect::<Result<_>>()?;
                for source in held.iter().copied().filter(|node| leader_goes == (*node == leader) || held.len() == 1) {
                    for target in (0..self.scenario.cluster.nodes.len()).filter(|node| !held.contains(node)) {
                        let mut after = before.clone();
                        after.remove(self.name(source));
                        after.insert(self.name(target).to_owned());
                        if !(spares_directory && target == directory) {
                            let before = before.clone();
                            moves.push(Move { shard, before, after, directory, leader, target, source });
                        }
                    }
                }
            }
            ensure!(!moves.is_empty(), "no shard is loaded");
            let place = (draw % moves.len() as u64) as usize;
            Ok(moves.swap_remove(place))
        })
    }

    /// Starts the move, and waits until a process is held; its node. None if the move ended and nobody was: a leader that has
    /// changed since this was drawn, say.
    fn held(&self, one: &Move, asked: &mut Option<Asked>) -> Result<Option<usize>> {
        let shard = one.shard.to_string();
        let (source, target) = (self.name(one.source).to_owned(), self.name(one.target).to_owned());
        let mut over: Option<Instant> = None;
        eventually("somebody comes by the point", PATIENCE, || {
            if self.points.held().is_ok() {
                return self.points.held_node(&self.scenario.cluster).map(Some);
            }
            if asked.is_some() && self.ended(one).unwrap_or(false) {
                if over.get_or_insert_with(Instant::now).elapsed() > OVER {
                    return Ok(None);
                }
                bail!("the move has ended, and nobody yet");
            }
            let refused = match asked.as_mut() {
                Some(asked) => asked.0.try_wait()?.is_some_and(|status| !status.success()),
                None => true,
            };
            if refused {
                let arguments = ["shard", "move", &shard, "--from", &source, "--to", &target];
                let mut command = self.scenario.cluster.admin_command(&arguments)?;
                *asked = Some(Asked(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?));
            }
            bail!("nobody yet: {}", self.scenario.cluster.admin(&["shard", "show", &shard])?)
        })
    }

    /// Brings the move to the point; None as for [`Steps::held`].
    fn approach(&mut self, trial: Trial, one: &Move, asked: &mut Option<Asked>) -> Result<Option<usize>> {
        let process = |node: usize| self.scenario.cluster.nodes[node].pid();
        let only = if is_of_every_member(trial.point) { process(one.node(trial.role)) } else { None };
        match trial.point {
            Failpoint::SettleProposed | Failpoint::Settled => {
                // The leader leaves a change half done, and another ends it.
                self.points.stop_at(Failpoint::JointApplied, one.shard, process(one.leader))?;
                let Some(leader) = self.held(one, asked)? else { return Ok(None) };
                self.points.stop_at(trial.point, one.shard, None)?;
                self.points.kill(&mut self.scenario.cluster, leader, false)?;
                self.held(one, asked)
            }
            Failpoint::RemoveProposed | Failpoint::Removed => {
                self.points.stop_at(Failpoint::SnapshotReceived, one.shard, process(one.target))?;
                let Some(target) = self.held(one, asked)? else { return Ok(None) };
                self.points.stop_at(trial.point, one.shard, None)?;
                self.scenario.cluster.admin(&["rebalance", "abort"])?;
                self.points.go_on(&self.scenario.cluster, target)?;
                self.held(one, asked)
            }
            _ => {
                self.points.stop_at(trial.point, one.shard, only)?;
                self.held(one, asked)
            }
        }
    }

    /// What a process that is held, and perhaps others, meet there.
    fn strike(&mut self, trial: Trial, one: &Move, held: usize) -> Result<()> {
        match trial.fault {
            Fault::Dies => self.points.kill(&mut self.scenario.cluster, held, false),
            Fault::PowerCut => self.points.kill(&mut self.scenario.cluster, held, true),
            // One process may have two parts: then it dies.
            Fault::OtherDies(role) if one.node(role) == held => {
                self.points.kill(&mut self.scenario.cluster, held, false)
            }
            Fault::OtherDies(role) => {
                self.points.kill(&mut self.scenario.cluster, one.node(role), false)?;
                self.points.go_on(&self.scenario.cluster, held)
            }
            Fault::GoesOnLate => {
                let name = self.name(held).to_owned();
                eventually("another leads", PATIENCE, || match trial.role {
                    Role::Directory => self.json(&["rebalance", "status"]).map(drop),
                    Role::Leader | Role::Target | Role::Source => {
                        let shown = self.json(&["shard", "show", &one.shard.to_string()])?;
                        ensure!(shown["leader"].as_str().is_some_and(|leader| leader != name), "{shown}");
                        Ok(())
                    }
                })?;
                self.points.go_on(&self.scenario.cluster, held)
            }
        }
    }

    /// The shard is where it was or where it should go, nowhere else, and no change is under way.
    fn ended(&self, one: &Move) -> Result<bool> {
        let status = self.json(&["rebalance", "status"])?;
        ensure!(status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
        let shown = self.json(&["shard", "show", &one.shard.to_string()])?;
        let wanted = names(&shown["wanted"]);
        ensure!(wanted == one.before || wanted == one.after, "{shown}");
        let replicas = shown["replicas"].as_array().context("replicas")?;
        let held: BTreeSet<String> = replicas.iter().filter_map(|one| Some(one["node"].as_str()?.to_owned())).collect();
        let plays = |replica: &Value| replica["role"] == "leader" || replica["role"] == "follower";
        ensure!(held == wanted && replicas.iter().all(plays), "{shown}");
        ensure!(names(&shown["voters"]) == wanted && names(&shown["learners"]).is_empty(), "{shown}");
        Ok(wanted == one.after)
    }

    /// A move whose process is held where the trial wants it.
    fn brought(&mut self, trial: Trial) -> Result<(Move, Option<Asked>, usize)> {
        for _ in 0..DRAWS_MAX {
            self.scenario.progress()?;
            eventually("all is well", PATIENCE, || self.scenario.cluster.admin(&["status"]))?;
            // Whoever was to be held in a move before, and was not.
            self.points.ask_no_more()?;
            let one = self.choose(trial)?;
            let mut asked = None;
            if let Some(held) = self.approach(trial, &one, &mut asked)? {
                return Ok((one, asked, held));
            }
        }
        bail!("nobody came by in {DRAWS_MAX} moves")
    }

    fn trial(&mut self, number: usize, trial: Trial) -> Result<()> {
        let (one, asked, held) = self.brought(trial)?;
        self.strike(trial, &one, held)?;
        let since = Instant::now();
        let moved = eventually("the move ends or is undone", PATIENCE, || self.ended(&one))?;
        let took = since.elapsed();
        let name = match trial.fault {
            Fault::Dies | Fault::PowerCut => "who came by the point died",
            Fault::OtherDies(_) => "another died meanwhile",
            Fault::GoesOnLate => "who came by the point went on late",
        };
        self.took.entry(name).or_default().push(took);
        let end = if moved { "ended" } else { "undone" };
        println!(
            "{number}: {trial:?}, shard {} from {} to {}, led by {}, directory by {}: {end} after {took:.1?}",
            one.shard,
            self.name(one.source),
            self.name(one.target),
            self.name(one.leader),
            self.name(one.directory)
        );
        if moved {
            self.came.remove(&(one.shard, one.source));
            self.came.insert((one.shard, one.target));
        }
        drop(asked);
        self.scenario.cluster.wait_ready()
    }

    fn run(&mut self, trials: &[Trial]) -> Result<()> {
        for (number, trial) in trials.iter().enumerate() {
            self.trial(number, *trial).with_context(|| format!("trial {number}: {trial:?}"))?;
        }
        self.scenario.progress()?;
        self.scenario.finish()?;
        let reached = self.points.reached()?;
        let is_of_shard = |shard: u32| GroupId(shard) != GroupId::DIRECTORY;
        let reached: BTreeSet<String> =
            reached.into_iter().filter(|one| is_of_shard(one.shard)).map(|one| one.point).collect();
        let points = trials.iter().map(|trial| trial.point);
        let missed: Vec<_> = points.filter(|point| !reached.contains(&format!("{point:?}"))).collect();
        ensure!(missed.is_empty(), "nobody came by {missed:?}");
        self.check_disks()
    }

    /// That the nodes' disks hold the replicas that are wanted there, and nothing else.
    fn check_disks(&mut self) -> Result<()> {
        let mut wanted: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
        for row in self.json(&["shard", "list"])?.as_array().context("shards")? {
            for name in names(&row["wanted"]) {
                let shard = u32::try_from(row["shard"].as_u64().context("shard")?)?;
                wanted.entry(self.node(&name)?).or_default().insert(shard);
            }
        }
        for node in 0..self.scenario.cluster.nodes.len() {
            self.scenario.cluster.nodes[node].terminate()?;
            let name = self.name(node);
            let directory = self.scenario.cluster.disk(node).join("db");
            let volume = Volume::open(VolumeOptions { create: false, ..VolumeOptions::new(directory) })?;
            let shards = |groups: Vec<GroupId>| -> BTreeSet<u32> {
                groups.into_iter().filter(|group| *group != GroupId::DIRECTORY).map(|group| group.0).collect()
            };
            let (here, homes) = (shards(volume.groups()?), shards(volume.homes()?.into_keys().collect()));
            let wanted = wanted.remove(&node).unwrap_or_default();
            ensure!(here == wanted && homes == wanted, "{name} has {here:?}, recorded {homes:?}, wanted {wanted:?}");
            let strays = volume.strays()?;
            ensure!(strays.is_empty(), "{name} has {} records that nothing owns: {strays:?}", strays.len());
            for shard in here.into_iter().filter(|shard| self.came.contains(&(*shard, node))) {
                let begun = volume.group(GroupId(shard))?.votes_from()?;
                ensure!(begun.is_some(), "shard {shard} on {name} came by itself");
            }
        }
        Ok(())
    }
}

fn run(options: ClusterOptions, seed: u64, trials: &[Trial]) -> Result<()> {
    let mut took = Took::new();
    let what = format!(", R = {}", options.replicas);
    let ran = in_parts(trials, PART_TRIALS, &what, |some| run_part(options, seed, some, &mut took));
    for (name, times) in took {
        println!("ended or undone where {name}: {} trials, {}", times.len(), Quantiles::of(times));
    }
    ran
}

fn run_part(options: ClusterOptions, seed: u64, trials: &[Trial], took: &mut Took) -> Result<()> {
    let mut steps = Steps::start(options, seed, trials.len() as u64)?;
    let ran = steps.run(trials);
    steps.took.into_iter().for_each(|(name, times)| took.entry(name).or_default().extend(times));
    ran
}

fn names(list: &Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
}

/// Who comes by a point dies; or another; or it goes on when another leads, if there can be another.
fn kills(replicas: u32) -> Vec<Trial> {
    trials(|role| {
        let others = Fault::others_die(&ROLES, role);
        let has_heir = role == Role::Directory || role == Role::Leader && replicas > 1;
        let late = has_heir.then_some(Fault::GoesOnLate);
        std::iter::once(Fault::Dies).chain(others).chain(late).collect()
    })
}

#[test]
fn processes_killed_at_every_step_of_a_move_lose_nothing_and_leave_nothing_behind() -> Result<()> {
    if !failpoints_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 96), setting("MAILRING_ROUNDS", 10));
    let trials = chosen(kills(3), seed, rounds, alone_first);
    run(ClusterOptions::default(), seed, &trials)
}

#[test]
fn processes_killed_at_every_step_of_the_move_of_an_only_replica_lose_nothing() -> Result<()> {
    if !failpoints_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 98), setting("MAILRING_ROUNDS", 6));
    let trials = chosen(kills(1), seed, rounds, alone_first);
    run(ClusterOptions { replicas: 1, ..ClusterOptions::default() }, seed, &trials)
}

/// With three replicas and with one in turn.
#[test]
fn power_cut_at_every_step_of_a_move_loses_nothing_and_leaves_nothing_behind() -> Result<()> {
    if !failpoints_possible() || !disks_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 97), setting("MAILRING_ROUNDS", 6));
    for (replicas, rounds) in [(3, rounds), (1, rounds.div_ceil(2))] {
        let trials = chosen(trials(|_| vec![Fault::PowerCut]), seed, rounds, alone_first);
        let options = ClusterOptions { own_disks: true, replicas, ..ClusterOptions::default() };
        run(options, seed, &trials)?;
    }
    Ok(())
}
