//! The whole cluster at one glance: what the directory wants against what each node says of its replicas. The figures
//! of different nodes are milliseconds apart, so small differences between replicas mean nothing.

use std::collections::BTreeMap;

use proto::wire::node_record::State;
use proto::wire::{GroupStatus, NodeRecord, NodeStatusReply};
use serde::Serialize;
use types::MailResult;

use crate::admin::client::{AdminClient, directory_group, reason};
use crate::admin::view::DirectoryView;
use crate::failure::Failure;

/// Log entries that a replica may be behind its leader before it is called lagging: more than a busy shard writes
/// between two nodes' answers.
const LAG_ENTRIES_MAX: u64 = 1_000;

pub struct Survey {
    pub view: DirectoryView,
    pub nodes: Vec<SurveyedNode>,
}

pub struct SurveyedNode {
    pub record: NodeRecord,
    /// Or why there is none.
    pub status: Result<NodeStatusReply, String>,
}

/// A shard as its replicas tell of it, nodes by name.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ShardRow {
    pub shard: u32,
    /// The node that says of itself that it leads; none while an election is under way or has no majority.
    pub leader: Option<String>,
    /// The nodes that should hold it, the preferred leader first.
    pub wanted: Vec<String>,
    /// The nodes that vote in its group.
    pub voters: Vec<String>,
    pub learners: Vec<String>,
    pub accounts: u64,
    pub messages: u64,
    pub octets: u64,
    pub applied_index: u64,
    /// Nodes that should hold a replica and do not say that they do.
    pub missing: Vec<String>,
    /// Nodes whose replica is far behind the leader's.
    pub lagging: Vec<String>,
}

impl ShardRow {
    pub fn is_well(&self) -> bool {
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort();
            names
        };
        let settled = sorted(&self.wanted) == sorted(&self.voters);
        self.leader.is_some() && settled && self.missing.is_empty() && self.lagging.is_empty()
    }
}

impl Survey {
    pub async fn take(client: &mut AdminClient) -> Result<Survey, Failure> {
        let view = client.view().await?;
        let present = view.nodes.values().filter(|node| node.state() != State::Removed);
        let mut statuses = client.statuses(present.clone().map(|node| node.address.as_str())).await;
        let nodes = present.map(|record| SurveyedNode::new(record, statuses.remove(&record.address))).collect();
        Ok(Survey { view, nodes })
    }

    pub fn directory_leader(&self) -> Option<&SurveyedNode> {
        let groups = self.nodes.iter().filter_map(|node| Some((node, directory_group(node.status.as_ref().ok()?)?)));
        groups.filter(|(_, group)| group.role == "leader").max_by_key(|(_, group)| group.term).map(|(node, _)| node)
    }

    pub fn shards(&self) -> Vec<ShardRow> {
        let replicas = self.replicas();
        let count = self.view.cluster.shards;
        (0..count).map(|shard| self.shard(shard, replicas.get(&shard).map(Vec::as_slice).unwrap_or_default())).collect()
    }

    /// Each shard's replicas, with the nodes that told of them.
    pub fn replicas(&self) -> BTreeMap<u32, Vec<(&SurveyedNode, &GroupStatus)>> {
        let mut replicas: BTreeMap<u32, Vec<(&SurveyedNode, &GroupStatus)>> = BTreeMap::new();
        for node in &self.nodes {
            for group in node.status.iter().flat_map(|status| &status.groups) {
                replicas.entry(group.group).or_default().push((node, group));
            }
        }
        replicas
    }

    fn shard(&self, shard: u32, replicas: &[(&SurveyedNode, &GroupStatus)]) -> ShardRow {
        let names = |ids: &[u64]| ids.iter().map(|id| self.view.node_name(*id)).collect::<Vec<_>>();
        let leader = leading(replicas);
        // Without a leader, the replica that knows most speaks.
        let speaker =
            leader.or_else(|| replicas.iter().copied().max_by_key(|(_, group)| (group.term, group.applied_index)));
        let group = speaker.map(|(_, group)| group.clone()).unwrap_or_default();
        let wanted = self.view.placements.get(&shard).map(Vec::as_slice).unwrap_or_default();
        let holds = |id: &u64| replicas.iter().any(|(node, group)| node.record.id == *id && group.role != "stopped");
        let missing: Vec<u64> = wanted.iter().copied().filter(|id| !holds(id)).collect();
        let behind = |(_, replica): &&(&SurveyedNode, &GroupStatus)| {
            replica.applied_index + LAG_ENTRIES_MAX < group.applied_index
        };
        let lagging: Vec<u64> = replicas.iter().filter(behind).map(|(node, _)| node.record.id).collect();
        ShardRow {
            shard,
            leader: leader.map(|(node, _)| node.record.name.clone()),
            wanted: names(wanted),
            voters: names(&group.voters),
            learners: names(&group.learners),
            accounts: group.accounts,
            messages: group.messages,
            octets: group.octets,
            applied_index: group.applied_index,
            missing: names(&missing),
            lagging: names(&lagging),
        }
    }
}

/// Of two that say that they lead, the one of the later term: the other has not heard yet.
fn leading<'a>(replicas: &[(&'a SurveyedNode, &'a GroupStatus)]) -> Option<(&'a SurveyedNode, &'a GroupStatus)> {
    replicas.iter().copied().filter(|(_, group)| group.role == "leader").max_by_key(|(_, group)| group.term)
}

impl SurveyedNode {
    fn new(record: &NodeRecord, status: Option<MailResult<NodeStatusReply>>) -> SurveyedNode {
        let status = match status {
            Some(Ok(status)) => match status.identity.as_ref().is_some_and(|identity| identity.node_id == record.id) {
                true => Ok(status),
                false => Err("another node answers at its address".to_owned()),
            },
            Some(Err(error)) => Err(reason(&error)),
            None => Err("not asked".to_owned()),
        };
        SurveyedNode { record: record.clone(), status }
    }

    pub fn is_up(&self) -> bool {
        self.status.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proto::wire::{ClusterRecord, GroupStatus, Identity, NodeRecord, NodeStatusReply};
    use types::MailError;

    use super::{LAG_ENTRIES_MAX, Survey, SurveyedNode};
    use crate::admin::client::DIRECTORY;
    use crate::admin::view::DirectoryView;

    fn group(group: u32, role: &str, term: u64, applied_index: u64) -> GroupStatus {
        GroupStatus { group, role: role.to_owned(), term, applied_index, voters: vec![1, 2, 3], ..Default::default() }
    }

    /// Three nodes that should all hold shard 0 of one; `None` for a node that is down.
    fn survey(told: [Option<Vec<GroupStatus>>; 3]) -> Survey {
        let record =
            |id: u64| NodeRecord { id, name: format!("node{id}"), address: format!("h:{id}"), ..Default::default() };
        let nodes = (1..).zip(told).map(|(id, groups)| {
            let identity = Some(Identity { node_id: id, ..Default::default() });
            let status = groups.map(|groups| NodeStatusReply { identity, groups, ..Default::default() });
            SurveyedNode::new(&record(id), Some(status.ok_or(MailError::Unavailable)))
        });
        let view = DirectoryView {
            cluster: ClusterRecord { shards: 1, replicas: 3, ..Default::default() },
            nodes: (1..=3).map(|id| (id, record(id))).collect(),
            placements: BTreeMap::from([(0, vec![2, 1, 3])]),
            ..Default::default()
        };
        Survey { view, nodes: nodes.collect() }
    }

    #[test]
    fn a_shard_with_a_leader_and_all_its_replicas_is_well() {
        let survey = survey([
            Some(vec![group(DIRECTORY, "leader", 1, 5), group(0, "follower", 2, 90)]),
            Some(vec![group(DIRECTORY, "follower", 1, 5), group(0, "leader", 2, 100)]),
            Some(vec![group(0, "follower", 2, 100)]),
        ]);
        let [shard] = survey.shards().try_into().unwrap();
        assert!(shard.is_well(), "{shard:?}");
        assert_eq!((shard.leader.as_deref(), shard.applied_index), (Some("node2"), 100));
        assert_eq!(shard.wanted, ["node2", "node1", "node3"]);
        assert_eq!(survey.directory_leader().unwrap().record.name, "node1");
    }

    #[test]
    fn a_leader_that_was_deposed_and_has_not_heard_is_not_believed() {
        let survey = survey([Some(vec![group(0, "leader", 2, 70)]), Some(vec![group(0, "leader", 3, 71)]), None]);
        let [shard] = survey.shards().try_into().unwrap();
        assert_eq!(shard.leader.as_deref(), Some("node2"));
        assert_eq!(shard.missing, ["node3"]);
        assert!(!shard.is_well());
        assert!(survey.directory_leader().is_none());
    }

    #[test]
    fn a_shard_without_a_leader_and_a_replica_far_behind_are_noticed() {
        let far = LAG_ENTRIES_MAX + 100;
        let follower = |applied: u64| Some(vec![group(0, "follower", 2, applied)]);
        let [shard] = survey([follower(far), follower(1), follower(far)]).shards().try_into().unwrap();
        assert_eq!((shard.leader.as_deref(), &shard.lagging[..]), (None, &["node2".to_owned()][..]));
        let [shard] = survey([None, None, None]).shards().try_into().unwrap();
        assert_eq!(shard.missing.len(), 3);
    }
}
