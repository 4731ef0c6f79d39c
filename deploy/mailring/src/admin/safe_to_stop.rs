//! `mailring node safe-to-stop`: whether the cluster goes on without a node.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::admin::client::{AdminClient, DIRECTORY};
use crate::admin::survey::Survey;
use crate::cli::OutputArgs;
use crate::failure::Failure;

/// Reasons shown one by one.
const REASONS_SHOWN_MAX: usize = 10;

#[derive(Debug, Serialize)]
struct Answer {
    node: String,
    safe: bool,
    reasons: Vec<String>,
}

/// Exits with 1 if it is not.
pub async fn run(client: &mut AdminClient, node: String, output: OutputArgs) -> Result<(), Failure> {
    let survey = Survey::take(client).await?;
    let known = survey.nodes.iter().find(|known| known.record.name == node);
    let id = known.map(|known| known.record.id).ok_or_else(|| Failure::Refused(format!("no node {node}")))?;
    let reasons = reasons(&survey, id);
    let safe = reasons.is_empty();
    let mut sentence = match safe {
        true => format!("yes: everything goes on without {node}"),
        false => {
            let mut lines: Vec<&str> = reasons.iter().take(REASONS_SHOWN_MAX).map(String::as_str).collect();
            lines.insert(0, "no:");
            lines.join("\n  ")
        }
    };
    if reasons.len() > REASONS_SHOWN_MAX {
        sentence.push_str(&format!("\n  and {} more", reasons.len() - REASONS_SHOWN_MAX));
    }
    output.done(&Answer { node, safe, reasons }, &sentence)?;
    if safe { Ok(()) } else { Err(Failure::Told) }
}

/// Why not: the groups that would have no majority of replicas that know everything.
fn reasons(survey: &Survey, node: u64) -> Vec<String> {
    let replicas = survey.replicas();
    let groups = (0..survey.view.cluster.shards).map(|shard| (shard, format!("shard {shard}")));
    let groups = groups.chain([(DIRECTORY, "the directory".to_owned())]);
    let reason = |(group, name): (u32, String)| {
        let held = replicas.get(&group).map(Vec::as_slice).unwrap_or_default();
        let leaders = held.iter().filter(|(_, status)| status.role == "leader");
        let Some((_, led)) = leaders.max_by_key(|(_, status)| status.term) else {
            return Some(format!("{name} has no leader"));
        };
        if !led.voters.contains(&node) {
            return None;
        }
        if led.joint {
            return Some(format!("{name} is just changing its replicas"));
        }
        let others: BTreeSet<u64> = led.voters.iter().copied().filter(|voter| *voter != node).collect();
        let current = others.iter().filter(|voter| led.current.contains(voter)).count();
        match (others.len(), current) {
            (0, _) => Some(format!("{name} has no other replica")),
            (_, current) if current > led.voters.len() / 2 => None,
            (_, current) => Some(format!("{name} would have {current} of {} replicas up to date", led.voters.len())),
        }
    };
    groups.filter_map(reason).collect()
}

#[cfg(test)]
mod tests {
    use proto::wire::{ClusterRecord, GroupStatus, NodeRecord, NodeStatusReply};

    use super::{DIRECTORY, reasons};
    use crate::admin::survey::{Survey, SurveyedNode};
    use crate::admin::view::DirectoryView;

    fn survey(led: Vec<GroupStatus>) -> Survey {
        let cluster = ClusterRecord { shards: 1, replicas: 3, ..Default::default() };
        let view = DirectoryView { cluster, ..Default::default() };
        let status = NodeStatusReply { groups: led, ..Default::default() };
        let record = NodeRecord { id: 1, name: "n1".to_owned(), ..Default::default() };
        Survey { view, nodes: vec![SurveyedNode { record, status: Ok(status) }] }
    }

    fn group(group: u32, voters: &[u64], current: &[u64]) -> GroupStatus {
        let (voters, current) = (voters.to_vec(), current.to_vec());
        GroupStatus { group, role: "leader".to_owned(), voters, current, ..Default::default() }
    }

    #[test]
    fn a_node_may_stop_while_a_majority_of_others_knows_everything() {
        let directory = group(DIRECTORY, &[1, 2, 3], &[1, 2, 3]);
        let with = |shard: GroupStatus, node| reasons(&survey(vec![shard, directory.clone()]), node);
        assert!(with(group(0, &[1, 2, 3], &[1, 2, 3]), 1).is_empty());
        assert_eq!(with(group(0, &[1, 2, 3], &[1, 2]), 2), ["shard 0 would have 1 of 3 replicas up to date"]);
        assert_eq!(with(group(0, &[1], &[1]), 1), ["shard 0 has no other replica"]);
        assert_eq!(with(group(0, &[1, 2], &[1, 2]), 2), ["shard 0 would have 1 of 2 replicas up to date"]);
        assert!(with(group(0, &[1, 3, 4], &[1, 3, 4]), 2).is_empty());
        let joint = GroupStatus { joint: true, ..group(0, &[1, 2, 3, 4], &[1, 2, 3, 4]) };
        assert_eq!(with(joint, 2), ["shard 0 is just changing its replicas"]);
        assert_eq!(reasons(&survey(vec![directory]), 1), ["shard 0 has no leader"]);
    }
}
