//! Trials of what happens while a process is held at a step of something: in an order drawn by a seed, in parts with a
//! cluster each. Knows nothing of the steps.

use anyhow::{Result, ensure};

use crate::failpoints::failpoints_binary;
use crate::random::Random;
use crate::scenario::{is_long, setting};

/// What happens while a process is held at a point; `R`: the parts that processes have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StepFault<R> {
    /// It dies there and is started again.
    Dies,
    /// Its disk loses its power too.
    PowerCut,
    /// Another dies and is started again; the one that was held goes on.
    OtherDies(R),
    /// It goes on when another leads in its place.
    GoesOnLate,
}

impl<R: Copy + PartialEq> StepFault<R> {
    /// Each of the others dies while one is held.
    pub fn others_die(all: &[R], held: R) -> impl Iterator<Item = StepFault<R>> {
        all.iter().copied().filter(move |other| *other != held).map(StepFault::OtherDies)
    }
}

/// In the order of the seed; a short run has as many as it has rounds, of what is `picked`.
pub fn chosen<T>(mut trials: Vec<T>, seed: u64, rounds: u64, picked: impl FnOnce(Vec<T>) -> Vec<T>) -> Vec<T> {
    let mut random = Random::new(seed, 1);
    for last in (1..trials.len()).rev() {
        trials.swap(last, random.below(last as u64 + 1) as usize);
    }
    if is_long() {
        return trials;
    }
    let mut trials = picked(trials);
    trials.truncate(rounds as usize);
    trials
}

/// Every part, whatever has become of those before it; or the one that `MAILRING_PART` names. `trials_max`: of a part.
pub fn in_parts<T>(
    trials: &[T],
    trials_max: usize,
    what: &str,
    mut run_part: impl FnMut(&[T]) -> Result<()>,
) -> Result<()> {
    let only = setting("MAILRING_PART", 0);
    let mut failed = Vec::new();
    for (part, some) in (1..).zip(trials.chunks(trials_max)).filter(|(part, _)| only == 0 || *part == only) {
        println!("part {part}{what}");
        if let Err(error) = run_part(some) {
            println!("part {part}: {error:#}");
            failed.push(format!("part {part}: {error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Whether there is a binary that can be stopped at steps; says so if not.
pub fn failpoints_possible() -> bool {
    let possible = failpoints_binary().is_some();
    if !possible {
        println!("skipped: MAILRING_FAILPOINTS_BIN is not set");
    }
    possible
}
