//! The commands about where shards are wanted, and about the rebalance that gets them there.
//!
//! A shard's way through a rebalance, with the lists of its placement:
//!
//! ```text
//!              StartRebalance            BeginMoves               EndMoves
//! wanted A ───────────────────► wanted A ──────────► wanted B ──────────► wanted B
//!                               planned B            previous A
//!    ▲                             │                    │
//!    └────── Aborted: planned ─────┘                    │ Aborted
//!    └────────── EndMoves ────────── wanted A ◄─────────┘
//!                                    previous B
//! ```
//!
//! Where B has a node that is not active any more, BeginMoves lets a planned C take its place: wanted C, previous A; or where
//! C is A the same as Aborted.

use std::collections::{BTreeMap, BTreeSet};

use types::{NodeId, ShardId};

use super::{Decision, done};
use crate::change::ChangedRecord;
use crate::command::Command;
use crate::error::DirectoryError;
use crate::limits::REPLICAS_MAX;
use crate::state::Directory;
use crate::values::{Cluster, NodeState, Placement, Rebalance, RebalanceState};

impl Directory {
    pub(super) fn set_placements(
        &self,
        cluster: &Cluster,
        revision: u64,
        wanted: &BTreeMap<ShardId, Vec<NodeId>>,
    ) -> Decision {
        let mut draft = Draft::of(self);
        for (&shard, nodes) in wanted {
            self.check_list(cluster, shard, nodes)?;
            let Some(old) = self.placement(shard) else {
                draft.put(new_placement(shard, nodes));
                continue;
            };
            let mut placement = Placement { wanted: nodes.clone(), ..old.clone() };
            if !same_nodes(&old.wanted, nodes) {
                placement.planned = Vec::new();
                if old.initialised && !old.is_moving() {
                    placement.previous = old.wanted.clone();
                }
            }
            draft.put(placement);
        }
        let rebalance = self.rebalance.clone().map(|rebalance| match rebalance.state.is_open() {
            true => Rebalance { moves: draft.moves(&rebalance), ..rebalance },
            false => rebalance,
        });
        draft.decide(revision, rebalance)
    }

    pub(super) fn mark_shard_initialised(&self, revision: u64, shard: ShardId) -> Decision {
        let mut draft = Draft::of(self);
        draft.put(Placement { initialised: true, ..self.existing_placement(shard)?.clone() });
        draft.decide(revision, self.rebalance.clone())
    }

    pub(super) fn start_rebalance(
        &self,
        cluster: &Cluster,
        revision: u64,
        targets: &BTreeMap<ShardId, Vec<NodeId>>,
        replace: bool,
        (unix_s, octets): (u64, u64),
    ) -> Decision {
        let mut draft = Draft::of(self);
        if replace {
            for placement in self.queued().filter(|placement| !targets.contains_key(&placement.shard)) {
                draft.put(Placement { planned: Vec::new(), ..placement.clone() });
            }
        }
        for (&shard, nodes) in targets {
            self.check_list(cluster, shard, nodes)?;
            let old = self.existing_placement(shard)?.clone();
            draft.put(match same_nodes(&old.wanted, nodes) {
                true => Placement { wanted: nodes.clone(), planned: Vec::new(), ..old },
                false => Placement { planned: nodes.clone(), ..old },
            });
        }
        let nothing_new = draft.changed.is_empty();
        let rebalance = match &self.rebalance {
            Some(last) if last.state == RebalanceState::Running && nothing_new => Some(last.clone()),
            Some(last) if last.state.is_open() && !replace => {
                let octets = last.octets.saturating_add(octets);
                Some(Rebalance { moves: draft.moves(last), octets, ..last.clone() })
            }
            last if draft.queued() > 0 || last.as_ref().is_some_and(|last| last.state.is_open()) => Some(Rebalance {
                id: revision,
                state: RebalanceState::Running,
                started_unix_s: unix_s,
                moves: draft.pending(),
                octets,
            }),
            last => last.clone(),
        };
        draft.decide(revision, rebalance)
    }

    /// `start` plans anew what it holds.
    pub(super) fn give_up_node(&self, revision: u64, id: NodeId, start: &Command) -> Decision {
        if self.rebalance.as_ref().is_some_and(|last| last.state == RebalanceState::Paused) {
            return Err(DirectoryError::InUse("the rebalance is paused".to_owned()));
        }
        let (_, mut records) = self.set_node_state(id, NodeState::Draining)?;
        records.extend(self.decide(revision, start)?.1);
        done(records)
    }

    pub(super) fn set_rebalance_state(&self, revision: u64, state: RebalanceState) -> Decision {
        let invalid = |text: &str| Err(DirectoryError::Invalid(text.to_owned()));
        let last = match &self.rebalance {
            None => return invalid("there is no rebalance"),
            Some(last) => last,
        };
        match (last.state, state) {
            (_, RebalanceState::Finished) => return invalid("a rebalance is finished once all has moved, not before"),
            (RebalanceState::Finished, _) => return invalid("no rebalance is under way: the last one is finished"),
            (RebalanceState::Aborted, _) => return invalid("no rebalance is under way: the last one was aborted"),
            (
                RebalanceState::Running | RebalanceState::Paused,
                RebalanceState::Running | RebalanceState::Paused | RebalanceState::Aborted,
            ) => {}
        }
        let mut draft = Draft::of(self);
        if state == RebalanceState::Aborted {
            for old in self.placements() {
                let mut placement = Placement { planned: Vec::new(), ..old.clone() };
                if old.is_moving() {
                    (placement.wanted, placement.previous) = (old.previous.clone(), old.wanted.clone());
                }
                draft.put(placement);
            }
        }
        draft.decide(revision, Some(Rebalance { state, ..last.clone() }))
    }

    pub(super) fn begin_moves(&self, revision: u64, shards: &[ShardId]) -> Decision {
        let mut draft = Draft::of(self);
        let running = self.rebalance.as_ref().is_some_and(|it| it.state == RebalanceState::Running);
        for &shard in shards {
            let old = self.existing_placement(shard)?;
            if !running || !old.is_queued() || !old.initialised || old.is_moving() && !self.goes_astray(old) {
                continue;
            }
            let is_way_back = old.is_moving() && same_nodes(&old.planned, &old.previous);
            let previous = if old.is_moving() && !is_way_back { &old.previous } else { &old.wanted };
            let (wanted, previous) = (old.planned.clone(), previous.clone());
            draft.put(Placement { wanted, previous, planned: Vec::new(), ..old.clone() });
        }
        // A move that took the place of another counts once.
        let counted = |last: Rebalance| Rebalance { moves: draft.moves(&last), ..last };
        let rebalance = self.rebalance.clone().map(|last| if running { counted(last) } else { last });
        draft.decide(revision, rebalance)
    }

    pub(super) fn end_moves(&self, revision: u64, shards: &[ShardId], seen: Option<u64>) -> Decision {
        let mut draft = Draft::of(self);
        for &shard in shards {
            let old = self.existing_placement(shard)?;
            if seen.is_none_or(|seen| old.revision <= seen) {
                draft.put(Placement { previous: Vec::new(), ..old.clone() });
            }
        }
        draft.decide(revision, self.rebalance.clone())
    }

    pub(super) fn prefer_leaders(&self, revision: u64, leaders: &BTreeMap<ShardId, NodeId>) -> Decision {
        let mut draft = Draft::of(self);
        for (&shard, leader) in leaders {
            let old = self.existing_placement(shard)?;
            if old.is_queued() || old.is_moving() || !old.wanted.contains(leader) {
                continue;
            }
            let mut wanted = old.wanted.clone();
            // Stable: the others keep their order.
            wanted.sort_by_key(|node| node != leader);
            draft.put(Placement { wanted, ..old.clone() });
        }
        draft.decide(revision, self.rebalance.clone())
    }

    fn existing_placement(&self, shard: ShardId) -> Result<&Placement, DirectoryError> {
        self.placement(shard).ok_or_else(|| DirectoryError::NotFound(format!("placement of shard {shard}")))
    }

    /// Whether the shard can be wanted on these nodes.
    fn check_list(&self, cluster: &Cluster, shard: ShardId, nodes: &[NodeId]) -> Result<(), DirectoryError> {
        if shard.0 >= cluster.shards {
            return Err(DirectoryError::NotFound(format!("shard {shard}")));
        }
        if nodes.is_empty() || nodes.len() > REPLICAS_MAX as usize {
            return Err(DirectoryError::Invalid(format!("shard {shard} must be on 1 to {REPLICAS_MAX} nodes")));
        }
        if nodes.iter().collect::<BTreeSet<_>>().len() < nodes.len() {
            return Err(DirectoryError::Invalid(format!("shard {shard} is to be on a node twice")));
        }
        nodes.iter().try_for_each(|node| self.existing_node(*node).map(drop))
    }
}

/// The placements as a command will leave them.
struct Draft<'a> {
    directory: &'a Directory,
    /// Those that differ from what is.
    changed: BTreeMap<ShardId, Placement>,
}

impl<'a> Draft<'a> {
    fn of(directory: &'a Directory) -> Draft<'a> {
        Draft { directory, changed: BTreeMap::new() }
    }

    fn put(&mut self, placement: Placement) {
        if self.directory.placement(placement.shard) == Some(&placement) {
            self.changed.remove(&placement.shard);
        } else {
            self.changed.insert(placement.shard, placement);
        }
    }

    fn placements(&self) -> impl Iterator<Item = &Placement> {
        let old = self.directory.placements().filter(|placement| !self.changed.contains_key(&placement.shard));
        old.chain(self.changed.values())
    }

    fn queued(&self) -> u32 {
        count(self.placements(), Placement::is_queued)
    }

    /// Moves under way and moves that are yet to begin.
    fn pending(&self) -> u32 {
        self.queued() + count(self.placements(), Placement::is_moving)
    }

    /// The moves of a rebalance that goes on with the placements as they are now: those done so far, and those left.
    fn moves(&self, rebalance: &Rebalance) -> u32 {
        let before = Draft::of(self.directory).pending();
        rebalance.moves.saturating_sub(before).saturating_add(self.pending())
    }

    /// The records that change, if this is what becomes of the rebalance. One that runs with nothing left to move
    /// is finished.
    fn decide(self, revision: u64, rebalance: Option<Rebalance>) -> Decision {
        let finished = self.pending() == 0;
        let rebalance = rebalance.map(|rebalance| match rebalance.state {
            RebalanceState::Running if finished => Rebalance { state: RebalanceState::Finished, ..rebalance },
            _ => rebalance,
        });
        let rebalance = (rebalance != self.directory.rebalance).then_some(ChangedRecord::Rebalance(rebalance));
        let placements = self
            .changed
            .into_values()
            .map(|placement| ChangedRecord::Placement(placement.shard, Some(Placement { revision, ..placement })));
        done(placements.chain(rebalance).collect())
    }
}

fn count<'a>(placements: impl Iterator<Item = &'a Placement>, wanted: impl Fn(&Placement) -> bool) -> u32 {
    // At most SHARDS_MAX.
    placements.filter(|placement| wanted(placement)).map(|_| 1).sum()
}

fn new_placement(shard: ShardId, nodes: &[NodeId]) -> Placement {
    let wanted = nodes.to_vec();
    Placement { shard, wanted, planned: Vec::new(), previous: Vec::new(), initialised: false, revision: 0 }
}

/// Whether the two lists differ in their order at most. Each names a node once.
fn same_nodes(one: &[NodeId], other: &[NodeId]) -> bool {
    one.len() == other.len() && one.iter().all(|node| other.contains(node))
}
