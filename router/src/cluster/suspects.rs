//! Which nodes are not to be asked for now, as they did not answer. Pure: the clock is passed in, and the probing is
//! the caller's.
//!
//! ```text
//!            doubt: an operation had no answer            probe not answered
//! trusted ─────────────────────────────────► doubted ─────────────────────► silent ─┐
//!    ▲                                          │                            │  ▲   │ probe not answered
//!    └──────────── probe answered ──────────────┴────────────────────────────┘  └───┘
//! ```
//!
//! A node that answered an operation with an error is doubted too, where the error may also mean that it did not: its
//! probe is answered within milliseconds, and meanwhile its replicas are as good.
//!
//! Nodes are also inquired after, without a doubt, where an operation elsewhere takes long: perhaps because they do not
//! answer its leader. They are probed alike, and asked on until a probe was not answered.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use types::NodeId;

/// Between the first probes of a node; doubles.
const PROBE_AGAIN_FIRST: Duration = Duration::from_millis(200);
/// A node that comes back is asked again within about this.
const PROBE_AGAIN_MAX: Duration = Duration::from_secs(1);
/// However many operations take long, a node is inquired after no more often.
pub(super) const INQUIRE_AGAIN: Duration = Duration::from_millis(250);
/// A node that is inquired after has answered within this if it answers at all, be it over a narrow link: as long as a probe
/// waits, and as two of them are apart.
pub(super) const ANSWERED_LATELY: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(super) struct Suspects {
    nodes: HashMap<NodeId, Suspicion>,
    /// When nodes were inquired after last.
    inquired: HashMap<NodeId, Instant>,
    /// When they answered a probe last.
    answered: HashMap<NodeId, Instant>,
}

struct Suspicion {
    since: Instant,
    /// An operation had no answer.
    doubted: bool,
    /// A probe has no answer so far, later than a node that works would give it.
    late: bool,
    /// Set by the first probe that was not answered.
    silent: bool,
    probe_again: Duration,
}

/// What a probe has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// No longer suspected. `silent_for`: since when it was, if a probe before had not been answered.
    Answers { silent_for: Option<Duration> },
    /// To be probed again. `first`: not so before.
    Silent { first: bool, again_after: Duration },
}

impl Suspects {
    /// An operation had no answer. True: the caller is to probe the node until it answers.
    pub(super) fn doubt(&mut self, id: NodeId, now: Instant) -> bool {
        let known = self.nodes.contains_key(&id);
        self.nodes.entry(id).or_insert(Suspicion::since(now)).doubted = true;
        !known
    }

    /// An operation elsewhere takes long. True: the caller is to probe the node until it answers.
    pub(super) fn inquire(&mut self, id: NodeId, now: Instant) -> bool {
        let is_recent = self.inquired.get(&id).is_some_and(|last| now.duration_since(*last) < INQUIRE_AGAIN);
        if is_recent || self.nodes.contains_key(&id) {
            return false;
        }
        self.inquired.insert(id, now);
        self.nodes.insert(id, Suspicion::since(now));
        true
    }

    /// A node that is not to be asked.
    pub(super) fn is_suspected(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|suspicion| suspicion.doubted || suspicion.silent)
    }

    /// A probe that is under way should have been answered by now.
    pub(super) fn late(&mut self, id: NodeId) {
        if let Some(suspicion) = self.nodes.get_mut(&id) {
            suspicion.late = true;
        }
    }

    /// It is not known to be silent yet, but does not answer now either.
    pub(super) fn is_late(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|suspicion| suspicion.late || suspicion.silent)
    }

    /// How long a node has been suspected whose probes were not answered.
    pub(super) fn silent_for(&self, id: NodeId, now: Instant) -> Option<Duration> {
        let suspicion = self.nodes.get(&id).filter(|suspicion| suspicion.silent)?;
        Some(now.duration_since(suspicion.since))
    }

    pub(super) fn probed(&mut self, id: NodeId, answered: bool, now: Instant) -> Verdict {
        if answered {
            self.answered.insert(id, now);
        }
        let Some(suspicion) = self.nodes.get_mut(&id).filter(|_| !answered) else {
            let before = self.nodes.remove(&id).filter(|before| before.silent);
            return Verdict::Answers { silent_for: before.map(|before| now.duration_since(before.since)) };
        };
        let first = !std::mem::replace(&mut suspicion.silent, true);
        let again_after = suspicion.probe_again;
        suspicion.probe_again = (again_after * 2).min(PROBE_AGAIN_MAX);
        Verdict::Silent { first, again_after }
    }

    /// The directory does not know the node any more.
    pub(super) fn forget(&mut self, id: NodeId) {
        self.nodes.remove(&id);
        self.inquired.remove(&id);
        self.answered.remove(&id);
    }

    /// A node that is inquired after has answered lately.
    pub(super) fn answers(&self, id: NodeId, now: Instant) -> bool {
        self.answered.get(&id).is_some_and(|last| now.duration_since(*last) <= ANSWERED_LATELY)
    }
}

impl Suspicion {
    fn since(now: Instant) -> Suspicion {
        Suspicion { since: now, doubted: false, late: false, silent: false, probe_again: PROBE_AGAIN_FIRST }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;
    use types::NodeId;

    use super::{ANSWERED_LATELY, INQUIRE_AGAIN, PROBE_AGAIN_MAX, Suspects, Verdict};

    const NODE: NodeId = NodeId(7);

    #[test]
    fn a_node_that_does_not_answer_is_suspected_until_a_probe_is_answered() {
        let mut suspects = Suspects::default();
        let start = Instant::now();
        assert!(!suspects.is_suspected(NODE));
        // One prober, however many operations had no answer.
        assert!(suspects.doubt(NODE, start) && !suspects.doubt(NODE, start));
        assert!(suspects.is_suspected(NODE) && !suspects.is_suspected(NodeId(8)));
        let mut now = start;
        let mut waits = Vec::new();
        for probe in 0..6 {
            let Verdict::Silent { first, again_after } = suspects.probed(NODE, false, now) else { panic!() };
            // Told to the operator once.
            assert_eq!(first, probe == 0);
            assert!(suspects.is_suspected(NODE) && !suspects.doubt(NODE, now));
            assert_eq!(suspects.silent_for(NODE, now), Some(now.duration_since(start)));
            now += again_after;
            waits.push(again_after);
        }
        assert!(waits.is_sorted() && waits.last() == Some(&PROBE_AGAIN_MAX), "{waits:?}");
        let silent_for = Some(now.duration_since(start));
        assert_eq!(suspects.probed(NODE, true, now), Verdict::Answers { silent_for });
        assert!(!suspects.is_suspected(NODE));
        // The next outage is another.
        assert!(suspects.doubt(NODE, now));
        assert!(matches!(suspects.probed(NODE, false, now), Verdict::Silent { first: true, .. }));
    }

    #[test]
    fn a_doubt_that_the_first_probe_clears_is_nothing_to_tell() {
        let mut suspects = Suspects::default();
        let start = Instant::now();
        suspects.doubt(NODE, start);
        let now = start + Duration::from_millis(3);
        assert_eq!(suspects.probed(NODE, true, now), Verdict::Answers { silent_for: None });
        suspects.doubt(NODE, now);
        suspects.forget(NODE);
        assert!(!suspects.is_suspected(NODE));
    }

    #[test]
    fn a_node_that_is_inquired_after_is_asked_on_until_a_probe_is_not_answered() {
        let mut suspects = Suspects::default();
        let start = Instant::now();
        assert!(suspects.inquire(NODE, start) && !suspects.inquire(NODE, start + INQUIRE_AGAIN));
        assert!(!suspects.is_suspected(NODE) && !suspects.is_late(NODE));
        assert_eq!(suspects.probed(NODE, true, start), Verdict::Answers { silent_for: None });
        // Many operations that take long are one inquiry at a time, and few a second.
        assert!(!suspects.inquire(NODE, start) && suspects.inquire(NODE, start + INQUIRE_AGAIN));
        suspects.late(NODE);
        assert!(suspects.is_late(NODE) && !suspects.is_suspected(NODE));
        assert!(matches!(suspects.probed(NODE, false, start), Verdict::Silent { first: true, .. }));
        assert!(suspects.is_late(NODE) && suspects.is_suspected(NODE));
        suspects.probed(NODE, true, start);
        assert!(!suspects.is_late(NODE) && !suspects.is_suspected(NODE));
        // A doubt meanwhile is one.
        assert!(suspects.inquire(NODE, start + 2 * INQUIRE_AGAIN) && !suspects.doubt(NODE, start));
        assert!(suspects.is_suspected(NODE));
    }
    #[test]
    fn a_node_answers_as_long_as_its_last_answer_is_not_old() {
        let mut suspects = Suspects::default();
        let start = Instant::now();
        assert!(!suspects.answers(NODE, start), "it was not asked");
        suspects.inquire(NODE, start);
        suspects.probed(NODE, true, start);
        suspects.inquire(NODE, start + INQUIRE_AGAIN);
        suspects.probed(NODE, false, start + ANSWERED_LATELY);
        assert!(suspects.answers(NODE, start + ANSWERED_LATELY));
        assert!(!suspects.answers(NODE, start + ANSWERED_LATELY + INQUIRE_AGAIN));
        suspects.forget(NODE);
        assert!(!suspects.answers(NODE, start));
    }
}
