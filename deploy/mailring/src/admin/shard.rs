//! `mailring shard`.

use proto::wire::MoveShard;
use serde::Serialize;

use crate::admin::client::AdminClient;
use crate::admin::rebalance;
use crate::admin::survey::{ShardRow, Survey};
use crate::cli::ShardVerb;
use crate::failure::Failure;
use crate::output::octets;

#[derive(Debug, Serialize)]
struct ReplicaRow {
    node: String,
    /// leader, follower, candidate, learner or stopped; `missing` where the node should hold it and does not say so.
    role: String,
    wanted: bool,
    term: u64,
    last_index: u64,
    applied_index: u64,
    messages: u64,
    octets: u64,
}

#[derive(Debug, Serialize)]
struct ShardDetails {
    #[serde(flatten)]
    shard: ShardRow,
    replicas: Vec<ReplicaRow>,
}

pub async fn run(client: &mut AdminClient, verb: ShardVerb) -> Result<(), Failure> {
    if let ShardVerb::Move { shard, from, to, watch } = verb {
        return rebalance::move_shard(client, MoveShard { shard, from, to }, watch).await;
    }
    let survey = Survey::take(client).await?;
    match verb {
        ShardVerb::Move { .. } => {}
        ShardVerb::List(output) => {
            let header = ["shard", "leader", "replicas", "wanted", "accounts", "messages", "size", "applied"];
            output.list(&header, &survey.shards(), |shard| {
                vec![
                    shard.shard.to_string(),
                    shard.leader.clone().unwrap_or_else(|| "none".to_owned()),
                    shard.voters.join(","),
                    shard.wanted.join(","),
                    shard.accounts.to_string(),
                    shard.messages.to_string(),
                    octets(shard.octets),
                    shard.applied_index.to_string(),
                ]
            })?;
        }
        ShardVerb::Show { shard, output } => {
            let known = survey.shards().into_iter().find(|row| row.shard == shard);
            let row = known.ok_or_else(|| {
                Failure::Refused(format!("no shard {shard}: the cluster has {}, from 0", survey.view.cluster.shards))
            })?;
            let details = ShardDetails { replicas: replicas(&survey, shard, &row), shard: row };
            if output.json {
                output.show(&details, &[])?;
                return Ok(());
            }
            let header = ["node", "role", "wanted", "term", "last", "applied", "messages", "size"];
            output.list(&header, &details.replicas, |replica| {
                vec![
                    replica.node.clone(),
                    replica.role.clone(),
                    if replica.wanted { "yes" } else { "no" }.to_owned(),
                    replica.term.to_string(),
                    replica.last_index.to_string(),
                    replica.applied_index.to_string(),
                    replica.messages.to_string(),
                    octets(replica.octets),
                ]
            })?;
        }
    }
    Ok(())
}

fn replicas(survey: &Survey, shard: u32, row: &ShardRow) -> Vec<ReplicaRow> {
    let held = survey.replicas().remove(&shard).unwrap_or_default();
    let mut rows: Vec<ReplicaRow> = held
        .into_iter()
        .map(|(node, group)| ReplicaRow {
            node: node.record.name.clone(),
            role: group.role.clone(),
            wanted: row.wanted.contains(&node.record.name),
            term: group.term,
            last_index: group.last_index,
            applied_index: group.applied_index,
            messages: group.messages,
            octets: group.octets,
        })
        .collect();
    let told: Vec<String> = rows.iter().map(|replica| replica.node.clone()).collect();
    for node in row.missing.iter().filter(|node| !told.contains(node)) {
        rows.push(ReplicaRow {
            node: node.clone(),
            role: "missing".to_owned(),
            wanted: true,
            term: 0,
            last_index: 0,
            applied_index: 0,
            messages: 0,
            octets: 0,
        });
    }
    rows.sort_by(|a, b| a.node.cmp(&b.node));
    rows
}
