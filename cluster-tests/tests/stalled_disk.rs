//! A disk that answers late, or not for a while: its node steps aside, the others serve, and nothing acknowledged is
//! lost. When it answers again, the node is back by itself.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{ClusterOptions, Scenario, disks_possible, setting};

/// A stall is taken for one after 3 s, and an election without a lease takes 1.5 s.
const SERVICE_BACK_MAX: Duration = Duration::from_secs(10);

#[test]
fn a_leader_whose_disk_stalls_steps_aside_and_comes_back_by_itself() -> Result<()> {
    if !disks_possible() {
        return Ok(());
    }
    let (seed, rounds) = (setting("MAILRING_SEED", 61), setting("MAILRING_ROUNDS", 2));
    let mut scenario = Scenario::start(ClusterOptions { own_disks: true, ..ClusterOptions::default() }, seed, rounds)?;
    for round in 0..rounds {
        // One that is over before the node steps aside, one that is not, one of half a minute.
        let lasts = Duration::from_secs([2, 10, 30][(round % 3) as usize]);
        scenario.progress()?;
        let leader = scenario.cluster.first_leader()?;
        let stall = scenario.cluster.disks[leader].stall()?;
        let ending = std::thread::spawn(move || stall.last(lasts));
        let back = scenario.service_back()?;
        ensure!(back < SERVICE_BACK_MAX, "served {back:?} after the disk of a leader stalled");
        println!("served {back:?} after the disk of a leader stalled for {lasts:?}");
        while !ending.is_finished() {
            scenario.progress()?;
        }
        scenario.progress()?;
        ensure!(scenario.cluster.nodes[leader].is_running(), "the node has ended");
    }
    scenario.finish()
}

/// Delays every fsync of a process by 200 ms; dropping it ends that.
struct SlowSyncs(Child);

/// None, with a line that says why, where the machine does not allow it.
fn slow_syncs(process: u32) -> Result<Option<SlowSyncs>> {
    let mut command = Command::new("strace");
    command.args(["-f", "--seccomp-bpf", "-e", "trace=fdatasync,fsync"]);
    command.args(["-e", "inject=fdatasync,fsync:delay_enter=200000", "-o", "/dev/null", "-p", &process.to_string()]);
    let mut strace = match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn() {
        Ok(strace) => strace,
        Err(error) => {
            println!("skipped: no slow syncs: strace: {error}");
            return Ok(None);
        }
    };
    let mut said = BufReader::new(strace.stderr.take().context("what strace says")?);
    let mut line = String::new();
    while said.read_line(&mut line)? > 0 {
        if line.contains(" attached") {
            // Its pipe must not fill up.
            std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
            return Ok(Some(SlowSyncs(strace)));
        }
    }
    strace.wait()?;
    if line.contains("Operation not permitted") || line.contains("not supported") {
        println!("skipped: no slow syncs: {}", line.trim());
        return Ok(None);
    }
    bail!("strace ended: {line}")
}

impl Drop for SlowSyncs {
    fn drop(&mut self) {
        // TERM, so that it lets go of the process.
        let told = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        if let Err(error) = told.and_then(|_| self.0.wait()) {
            eprintln!("strace does not end: {error}");
        }
    }
}

#[test]
fn a_disk_whose_syncs_take_200_milliseconds_is_slow_and_nothing_else() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 62), setting("MAILRING_ROUNDS", 2));
    let mut scenario = Scenario::start(ClusterOptions::default(), seed, rounds)?;
    for _ in 0..rounds {
        scenario.progress()?;
        let leader = scenario.cluster.first_leader()?;
        let process = scenario.cluster.nodes[leader].pid().context("not running")?;
        let Some(slow) = slow_syncs(process)? else { return Ok(()) };
        println!("served {:?} while a leader's syncs take 200 ms", scenario.service_back()?);
        scenario.progress()?;
        scenario.progress()?;
        drop(slow);
        scenario.progress()?;
    }
    scenario.finish()
}
