//! Learners that do not catch up. What is written while a copy is under way is copied behind it, in rounds, each shorter than
//! the one before: but not where more is written than the throttle lets go. Pure.
//!
//! ```text
//! round: all goes that was in the log when it began ──► the next, with what was written meanwhile ──► ... ──► caught up
//! in vain: there is no less than before ──► let by the throttle ──► waited for no longer than for any voter
//! ```

use std::collections::{BTreeMap, BTreeSet};

use storage::GroupId;

/// Rounds that left no less to do than they found.
const IN_VAIN_MAX: u32 = 2;
/// However much less each leaves.
const ROUNDS_MAX: u32 = 16;
/// Rounds of one that is let by: after them it is as near as it ever will be.
const LET_BY_ROUNDS_MAX: u32 = 2;

/// A learner that is copied to, in the indexes of its leader's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behind {
    /// The last entry that it has.
    pub matched: u64,
    pub last: u64,
    /// It might have its vote now.
    pub is_near: bool,
}

/// What has come of the learners that do not catch up.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Late {
    /// The throttle holds them up no longer: as voters they would have to keep pace as well.
    pub let_by: BTreeSet<(GroupId, u64)>,
    /// Some of them. They get their votes as soon as few entries are missing, however large these are.
    pub by_entries: BTreeSet<(GroupId, u64)>,
}

#[derive(Default)]
pub struct CatchUps(BTreeMap<(GroupId, u64), Round>);

/// The round under way, and what those before it came to.
struct Round {
    upto: u64,
    entries: u64,
    rounds: u32,
    in_vain: u32,
    rounds_let_by: u32,
}

impl CatchUps {
    /// To be called at a steady pace. `behind`: the learners whose copies get on; others begin anew.
    pub fn note(&mut self, behind: &BTreeMap<(GroupId, u64), Behind>) -> Late {
        self.0.retain(|learner, _| behind.contains_key(learner));
        for (learner, now) in behind {
            self.0.entry(*learner).or_insert_with(|| Round::begin(now)).note(now);
        }
        let those = |is: fn(&Round) -> bool| self.0.iter().filter(move |(_, round)| is(round)).map(|(id, _)| *id);
        Late {
            let_by: those(Round::is_let_by).collect(),
            by_entries: those(|round| round.rounds_let_by >= LET_BY_ROUNDS_MAX).collect(),
        }
    }
}

impl Round {
    fn begin(now: &Behind) -> Round {
        let entries = now.last.saturating_sub(now.matched);
        Round { upto: now.last, entries, rounds: 0, in_vain: 0, rounds_let_by: 0 }
    }

    fn note(&mut self, now: &Behind) {
        if now.matched < self.upto || now.is_near {
            return;
        }
        let left = now.last.saturating_sub(now.matched);
        self.rounds_let_by += u32::from(self.is_let_by());
        self.in_vain += u32::from(left >= self.entries);
        self.rounds += 1;
        (self.upto, self.entries) = (now.last, left);
    }

    fn is_let_by(&self) -> bool {
        self.in_vain >= IN_VAIN_MAX || self.rounds >= ROUNDS_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use storage::GroupId;

    use super::{Behind, CatchUps, LET_BY_ROUNDS_MAX, Late, ROUNDS_MAX};

    const LEARNER: (GroupId, u64) = (GroupId(3), 4);

    fn note(catch_ups: &mut CatchUps, matched: u64, last: u64) -> Late {
        let behind = Behind { matched, last, is_near: false };
        catch_ups.note(&BTreeMap::from([(LEARNER, behind)]))
    }

    fn only(late: BTreeSet<(GroupId, u64)>) -> bool {
        late == BTreeSet::from([LEARNER])
    }

    #[test]
    fn a_learner_that_comes_nearer_each_round_is_throttled_to_the_end() {
        let mut catch_ups = CatchUps::default();
        let (mut matched, mut left) = (0, 1 << 16);
        while left > 0 {
            for part in 0..4 {
                let late = note(&mut catch_ups, matched + left * part / 4, matched + left + left / 2 * part / 4);
                assert_eq!(late, Late::default(), "{left}");
            }
            (matched, left) = (matched + left, left / 2 - left / 8);
        }
    }

    #[test]
    fn a_learner_that_does_not_come_nearer_is_let_by_and_in_the_end_gets_its_vote() {
        let mut catch_ups = CatchUps::default();
        // In each round as much is written as is sent.
        let mut rounds = 0;
        let late = loop {
            let late = note(&mut catch_ups, 1_000 * rounds, 1_000 * (rounds + 1));
            if late != Late::default() {
                break late;
            }
            rounds += 1;
            assert!(rounds < 10);
        };
        assert!(only(late.let_by) && late.by_entries.is_empty());
        // Amid a round nothing changes.
        for sent in 0..999 {
            let late = note(&mut catch_ups, 1_000 * rounds + sent, 1_000 * (rounds + 2));
            assert!(only(late.let_by) && late.by_entries.is_empty());
        }
        let after = (1..=u64::from(LET_BY_ROUNDS_MAX)).map(|more| {
            let late = note(&mut catch_ups, 1_000 * (rounds + more), 1_000 * (rounds + more + 1));
            only(late.let_by) && only(late.by_entries)
        });
        assert_eq!(after.collect::<Vec<_>>(), [false, true]);
        // Its copy rests, or is over: the next begins anew.
        assert_eq!(catch_ups.note(&BTreeMap::new()), Late::default());
        assert_eq!(note(&mut catch_ups, 1_000, 2_000), Late::default());
    }

    #[test]
    fn rounds_that_gain_little_are_bounded_too_and_one_that_is_near_waits_for_its_vote_alone() {
        let mut catch_ups = CatchUps::default();
        let (mut matched, mut left) = (0, 1_000);
        for round in 0..=ROUNDS_MAX {
            let late = note(&mut catch_ups, matched, matched + left);
            assert_eq!(only(late.let_by), round == ROUNDS_MAX, "{round}");
            (matched, left) = (matched + left, left - 1);
        }
        let mut catch_ups = CatchUps::default();
        for index in 0..100 {
            let near = Behind { matched: index, last: index + 1, is_near: true };
            assert_eq!(catch_ups.note(&BTreeMap::from([(LEARNER, near)])), Late::default());
        }
    }
}
