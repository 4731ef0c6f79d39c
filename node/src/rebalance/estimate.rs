//! About how long a plan takes: of what is to be copied, of how fast its senders may or lately did copy, and of how many moves
//! run at once. Mail that comes meanwhile, and copies that yield to it, make it longer. Pure.

use std::collections::BTreeMap;

use proto::wire::{CopyFigures, MoveEstimate, ShardMove};
use types::{NodeId, ShardId};

use super::Observed;
use super::report::copies;
use super::turns::MOVES_PER_NODE_MAX;
use crate::throttle::RATE_FIRST;

/// What a move takes beside its copy: rounds of whoever conducts it, two changes of its group.
const STEPS_S: f64 = 2.0;

/// None where nothing moves.
pub fn of(observed: &Observed, moves: &[ShardMove]) -> Option<MoveEstimate> {
    let sent: Vec<Sent> = moves.iter().map(|one| Sent::of(observed, one)).collect();
    let slowest = sent.iter().min_by_key(|one| one.rate)?;
    Some(MoveEstimate {
        seconds: seconds(&sent, |one| one.rate),
        octets_per_s: slowest.rate,
        seen: sent.iter().all(|one| one.seen),
        seconds_min: seconds(&sent, |one| one.rate_max),
        octets_per_s_max: sent.iter().map(|one| one.rate_max).min().unwrap_or(0),
    })
}

/// A move, and how fast the node copies that sends it: all its copies together.
struct Sent {
    sender: NodeId,
    nodes: Vec<NodeId>,
    octets: u64,
    rate: u64,
    rate_max: u64,
    seen: bool,
}

impl Sent {
    fn of(observed: &Observed, one: &ShardMove) -> Sent {
        // A shard without a leader is sent by whoever will be.
        let leader = observed.led(ShardId(one.shard)).map(|group| group.leader);
        let sender = NodeId(leader.or(one.from.first().copied()).unwrap_or(0));
        let figures = observed.statuses.get(&sender).and_then(|status| status.copies).unwrap_or_default();
        let CopyFigures { octets_per_s_seen, octets_per_s_max, .. } = figures;
        // A node of the version before does not tell.
        let rate_max = if octets_per_s_max == 0 { RATE_FIRST } else { octets_per_s_max };
        let rate = if octets_per_s_seen == 0 { RATE_FIRST } else { octets_per_s_seen };
        let answers = |node: &NodeId| observed.statuses.contains_key(node);
        let gives = one.from.iter().copied().map(NodeId).filter(answers);
        Sent {
            sender,
            nodes: gives.chain(one.to.iter().copied().map(NodeId)).collect(),
            octets: copies(one).saturating_sub(one.copied_octets),
            rate: rate.min(rate_max),
            rate_max,
            seen: octets_per_s_seen > 0,
        }
    }
}

/// Until the node is done that takes longest: with what it sends, or with the moves that it takes part in, so many at once.
fn seconds(sent: &[Sent], rate: impl Fn(&Sent) -> u64) -> u64 {
    let mut sending: BTreeMap<NodeId, f64> = BTreeMap::new();
    let mut taking_part: BTreeMap<NodeId, f64> = BTreeMap::new();
    for one in sent {
        let copy_s = one.octets as f64 / rate(one).max(1) as f64;
        *sending.entry(one.sender).or_default() += copy_s;
        for node in &one.nodes {
            *taking_part.entry(*node).or_default() += (copy_s + STEPS_S) / MOVES_PER_NODE_MAX as f64;
        }
    }
    let longest = sending.values().chain(taking_part.values()).fold(0.0, |most: f64, seconds| most.max(*seconds));
    (longest + STEPS_S).ceil() as u64
}

#[cfg(test)]
mod tests {
    use proto::wire::{CopyFigures, GroupStatus, NodeStatusReply, ShardMove};
    use types::NodeId;

    use super::super::Observed;
    use super::of;
    use crate::throttle::RATE_FIRST;

    const MIB: u64 = 1 << 20;

    fn copied(seen: u64, max: u64) -> Option<CopyFigures> {
        Some(CopyFigures { octets_per_s_seen: seen, octets_per_s_max: max, ..CopyFigures::default() })
    }

    /// Nodes 1 to 4; shard n is led by node n % 3 + 1.
    fn observed(copies: [Option<CopyFigures>; 4]) -> Observed {
        let led = |node: u64| (0..24u32).filter(move |shard| u64::from(*shard % 3) + 1 == node);
        let group =
            |shard, leader| GroupStatus { group: shard, role: "leader".to_owned(), leader, ..Default::default() };
        let status = |node: u64, copies| {
            let groups = led(node).map(|shard| group(shard, node)).collect();
            NodeStatusReply { groups, copies, ..NodeStatusReply::default() }
        };
        Observed { statuses: (1..).zip(copies).map(|(id, copies)| (NodeId(id), status(id, copies))).collect() }
    }

    /// To node 4, each from the node that leads it.
    fn to_the_fourth(shards: &[u32], octets: u64) -> Vec<ShardMove> {
        let one = |shard: &u32| ShardMove {
            shard: *shard,
            from: vec![u64::from(shard % 3) + 1],
            to: vec![4],
            octets,
            ..ShardMove::default()
        };
        shards.iter().map(one).collect()
    }

    #[test]
    fn a_plan_without_moves_takes_no_time_that_could_be_told() {
        assert_eq!(of(&observed([None; 4]), &[]), None);
    }

    #[test]
    fn before_the_first_copy_it_rests_on_the_rate_that_copies_begin_with_and_on_the_bound() {
        let idle = observed([copied(0, 128 * MIB); 4]);
        let estimate = of(&idle, &to_the_fourth(&[0, 3], 800 * MIB)).unwrap();
        assert_eq!((estimate.seen, estimate.octets_per_s, estimate.octets_per_s_max), (false, RATE_FIRST, 128 * MIB));
        // One node sends 1,600 MiB at 8 MiB/s: that it is two copies at once helps nothing.
        assert_eq!((estimate.seconds, estimate.seconds_min), (202, 15));
        let slow = observed([copied(0, MIB); 4]);
        assert_eq!(of(&slow, &to_the_fourth(&[0, 3], 800 * MIB)).unwrap().seconds, 1602);
    }

    #[test]
    fn senders_go_at_once_as_far_as_the_node_takes_part_in_several_moves() {
        let idle = observed([copied(0, 128 * MIB); 4]);
        let seconds = |shards: &[u32]| of(&idle, &to_the_fourth(shards, 800 * MIB)).unwrap().seconds;
        let (one, three) = (seconds(&[0]), seconds(&[0, 1, 2]));
        assert_eq!((one, seconds(&[0, 1])), (102, 104), "two at once");
        assert!(three > one && three < 2 * one, "{three}: a third of the moves waits");
    }

    #[test]
    fn the_rate_seen_of_late_counts_and_never_more_than_the_bound() {
        let seen = observed([copied(40 * MIB, 128 * MIB), copied(20 * MIB, 128 * MIB), None, None]);
        let both = of(&seen, &to_the_fourth(&[0, 1], 800 * MIB)).unwrap();
        assert_eq!((both.seen, both.octets_per_s), (true, 20 * MIB));
        assert_eq!(both.seconds, 42);
        // The third node tells nothing.
        assert!(!of(&seen, &to_the_fourth(&[0, 2], 800 * MIB)).unwrap().seen);
        let bounded = observed([copied(40 * MIB, 10 * MIB), None, None, None]);
        assert_eq!(of(&bounded, &to_the_fourth(&[0], 100 * MIB)).unwrap().octets_per_s, 10 * MIB);
    }

    #[test]
    fn shards_without_mail_take_their_steps() {
        let estimate = of(&observed([copied(0, 128 * MIB); 4]), &to_the_fourth(&[0, 1, 2, 3, 4, 5], 0)).unwrap();
        assert_eq!((estimate.seconds, estimate.seconds_min), (8, 8));
    }
}
