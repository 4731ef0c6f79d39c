//! Everything at random, one fault after another, under one load: what each fault is survived by itself, they survive together.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; with `MAILRING_MINUTES` it goes on for so long. The
//! output names the faults as they come, and what memory and descriptors the processes have at the end of each round. The
//! first node and the first router are never killed, so that what they take can be followed over all of it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::{ClusterOptions, Link, Random, Scenario, delete_disk, eventually, letter, setting};
use serde_json::Value;

/// A load must have somewhere to go to whatever node is away, and a half must be there to lose.
const OPTIONS: ClusterOptions = ClusterOptions {
    nodes: 4,
    routers: 2,
    mirror: true,
    proxied: true,
    log_entries_kept: Some(200),
    ..ClusterOptions::DEFAULT
};
/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);
/// What a process may have open more than at the end of the first round, when nothing is under way.
const DESCRIPTORS_MORE: usize = 200;
/// Caches fill at first.
const WARM_UP: Duration = Duration::from_secs(15 * 60);
/// Shorter than this tells nothing about an hour.
const FOLLOWED_MIN: Duration = Duration::from_secs(40 * 60);
/// How much more memory a process may take an hour, of what it took when it was warm.
const GROWTH_MAX: f64 = 0.01;

const IMMORTAL: [&str; 2] = ["node1", "router1"];

#[derive(Clone, Copy, Debug)]
enum Fault {
    NodeDies,
    TwoNodesDie,
    NodePauses,
    NodeStops,
    RouterDies,
    NodeCutOff,
    NodeUnheard,
    Delay,
    HalfGoes,
    ShardMoves,
    NodeDrains,
    Scrub,
}

const FAULTS: [Fault; 12] = [
    Fault::NodeDies,
    Fault::TwoNodesDie,
    Fault::NodePauses,
    Fault::NodeStops,
    Fault::RouterDies,
    Fault::NodeCutOff,
    Fault::NodeUnheard,
    Fault::Delay,
    Fault::HalfGoes,
    Fault::ShardMoves,
    Fault::NodeDrains,
    Fault::Scrub,
];

struct Everything {
    scenario: Scenario,
    random: Random,
}

impl Everything {
    fn node(&mut self) -> usize {
        self.random.below(self.scenario.cluster.nodes.len() as u64) as usize
    }

    /// One that may die.
    fn mortal(&mut self) -> usize {
        1 + self.random.below(self.scenario.cluster.nodes.len() as u64 - 1) as usize
    }

    fn name(&self, node: usize) -> String {
        self.scenario.cluster.nodes[node].name.clone()
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        Ok(serde_json::from_str(&self.scenario.cluster.admin(&arguments)?)?)
    }

    /// All processes run and all shards are whole and where they should be.
    fn settle(&mut self) -> Result<()> {
        self.scenario.cluster.start_all()?;
        self.scenario.cluster.wait_ready()?;
        eventually("all is well and nothing moves", PATIENCE, || {
            let status = self.json(&["rebalance", "status"])?;
            ensure!(status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
            self.scenario.cluster.admin(&["status"]).map(drop)
        })
    }

    fn bring(&mut self, fault: Fault) -> Result<()> {
        let (node, mortal) = (self.node(), self.mortal());
        let name = self.name(node);
        match fault {
            Fault::NodeDies => {
                self.scenario.cluster.nodes[mortal].kill()?;
                self.scenario.progress()?;
            }
            Fault::TwoNodesDie => {
                let mortals = self.scenario.cluster.nodes.len() - 1;
                self.scenario.cluster.nodes[mortal].kill()?;
                self.scenario.cluster.nodes[1 + mortal % mortals].kill()?;
            }
            Fault::NodePauses => {
                self.scenario.cluster.nodes[node].signal("STOP")?;
                let went_on = self.scenario.progress();
                self.scenario.cluster.nodes[node].signal("CONT")?;
                went_on?;
            }
            Fault::NodeStops => {
                self.scenario.cluster.nodes[mortal].terminate()?;
                self.scenario.progress()?;
            }
            Fault::RouterDies => {
                // The first is also the one that the checks go over.
                self.scenario.cluster.routers[1].kill()?;
            }
            Fault::NodeCutOff => {
                self.scenario.cluster.proxy.around(&name, Link::Cut);
                let went_on = self.scenario.progress();
                self.scenario.cluster.proxy.heal();
                went_on?;
            }
            Fault::NodeUnheard => {
                self.scenario.cluster.proxy.set(Some(&name), None, Link::Swallow);
                let went_on = self.scenario.progress();
                self.scenario.cluster.proxy.heal();
                went_on?;
            }
            Fault::Delay => {
                self.scenario.cluster.proxy.set(None, None, Link::Delay(Duration::from_millis(200)));
                let went_on = self.scenario.progress();
                self.scenario.cluster.proxy.heal();
                went_on?;
            }
            Fault::HalfGoes => self.half_goes(node, &name)?,
            Fault::ShardMoves => self.shard_moves(mortal)?,
            Fault::NodeDrains => {
                self.scenario.cluster.admin(&["node", "drain", &name, "--wait"])?;
                self.scenario.progress()?;
                self.scenario.cluster.admin(&["node", "join", &name, "--wait"])?;
            }
            Fault::Scrub => self.scenario.cluster.check_scrub()?,
        }
        self.settle()
    }

    fn half_goes(&mut self, node: usize, name: &str) -> Result<()> {
        let half = self.random.below(2) as usize;
        let disk = self.scenario.cluster.disk_directories(node)[half].clone();
        delete_disk(&disk)?;
        self.scenario.cluster.wait_half(name, half, "stale")?;
        self.scenario.progress()?;
        fs::create_dir(&disk)?;
        self.scenario.cluster.admin(&["volume", "replace", name, "1", "--half", letter(half), "--wait"])?;
        self.scenario.cluster.wait_whole(name)
    }

    /// A shard goes to the node that lacks it, and another node dies meanwhile.
    fn shard_moves(&mut self, victim: usize) -> Result<()> {
        let shards = self.json(&["shard", "list"])?;
        let shards = shards.as_array().context("shards")?;
        let shard = &shards[self.random.below(shards.len() as u64) as usize];
        let wanted: Vec<&str> =
            shard["wanted"].as_array().context("wanted")?.iter().filter_map(Value::as_str).collect();
        let names: Vec<String> = self.scenario.cluster.nodes.iter().map(|node| node.name.clone()).collect();
        let free = names.iter().find(|name| !wanted.contains(&name.as_str())).context("no free node")?;
        let from = wanted.first().context("no replica")?.to_string();
        let number = shard["shard"].to_string();
        self.scenario.cluster.admin(&["shard", "move", &number, "--from", &from, "--to", free])?;
        self.scenario.cluster.nodes[victim].kill()?;
        Ok(())
    }

    /// Memory in KiB and open descriptors of each process.
    fn resources(&self) -> Result<Vec<(String, u64, usize)>> {
        let processes = self.scenario.cluster.nodes.iter().chain(&self.scenario.cluster.routers);
        let of = |process: &cluster_tests::Process| {
            Ok((process.name.clone(), process.memory_kib()?, process.descriptors()?.len()))
        };
        processes.map(of).collect()
    }
}

#[test]
fn everything_at_random_loses_nothing() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 42), setting("MAILRING_ROUNDS", 4));
    let until = Duration::from_secs(60 * setting("MAILRING_MINUTES", 0));
    let scenario = Scenario::start(OPTIONS, seed, rounds)?;
    let mut everything = Everything { scenario, random: Random::new(seed, 42) };
    let (began, mut round, mut at_first) = (Instant::now(), 0, Vec::new());
    let mut memory: Vec<(Duration, Vec<(String, u64)>)> = Vec::new();
    let mut deck: Vec<Fault> = Vec::new();
    while round < rounds || began.elapsed() < until {
        if deck.is_empty() {
            // Each once before any comes again.
            deck = FAULTS.to_vec();
        }
        let drawn = everything.random.below(deck.len() as u64) as usize;
        let fault = deck.swap_remove(drawn);
        everything.scenario.progress()?;
        let came = Instant::now();
        everything.bring(fault).with_context(|| format!("{fault:?}"))?;
        let resources = everything.resources()?;
        println!(
            "{:>6.1} s, {fault:?}, well again after {:.1?}: {resources:?}",
            began.elapsed().as_secs_f64(),
            came.elapsed()
        );
        let immortal =
            |(name, kib, _): &(String, u64, usize)| IMMORTAL.contains(&&**name).then(|| (name.clone(), *kib));
        memory.push((began.elapsed(), resources.iter().filter_map(immortal).collect()));
        if round + 1 == FAULTS.len() as u64 {
            at_first = resources;
        }
        round += 1;
    }
    everything.scenario.progress()?;
    for ((name, _, first), (_, _, last)) in at_first.iter().zip(everything.resources()?) {
        ensure!(last <= first + DESCRIPTORS_MORE, "{name} had {first} descriptors open, and has {last}");
    }
    everything.scenario.finish()?;
    IMMORTAL.iter().try_for_each(|name| check_growth(name, &memory))
}

/// That a process does not take ever more memory, if it was followed for long enough to tell.
fn check_growth(name: &str, memory: &[(Duration, Vec<(String, u64)>)]) -> Result<()> {
    let of = |all: &[(String, u64)]| all.iter().find(|(one, _)| one == name).map(|(_, kib)| *kib as f64);
    let warm = memory.iter().filter(|(at, _)| *at >= WARM_UP);
    let warm: Vec<(f64, f64)> = warm.filter_map(|(at, all)| Some((at.as_secs_f64() / 3600.0, of(all)?))).collect();
    let Some(growth) = growth(&warm) else { return Ok(()) };
    println!("{name}: memory grows by {:.1} % an hour, over {} looks", growth * 100.0, warm.len());
    let is_long = memory.last().is_some_and(|(at, _)| *at >= FOLLOWED_MIN);
    ensure!(!is_long || growth <= GROWTH_MAX, "{name} takes ever more memory");
    Ok(())
}

/// The slope of the line through these points that leaves the least squares, as a share of its value at the first of them.
fn growth(points: &[(f64, f64)]) -> Option<f64> {
    let (first, _) = *points.first()?;
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let slope = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
    let at_first = mean_y + slope * (first - mean_x);
    (spread > 0.0 && at_first > 0.0).then_some(slope / at_first)
}

#[test]
fn growth_is_told_from_what_comes_and_goes() {
    let points = |slope: f64| (0..60).map(move |at| (f64::from(at) / 60.0, 100.0 + slope * f64::from(at) / 60.0));
    let level: Vec<(f64, f64)> =
        points(0.0).zip([5.0, -5.0].into_iter().cycle()).map(|((x, y), more)| (x, y + more)).collect();
    assert!(growth(&level).is_some_and(|growth| growth.abs() < 0.01));
    assert!(growth(&points(10.0).collect::<Vec<_>>()).is_some_and(|growth| (growth - 0.1).abs() < 1e-9));
    assert_eq!((growth(&[]), growth(&[(1.0, 1.0)])), (None, None));
}
