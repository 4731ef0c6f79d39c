//! `mailring status`: is all well, and if not, what.

use proto::wire::node_record::State;
use serde::Serialize;

use crate::admin::client::AdminClient;
use crate::admin::survey::{ShardRow, Survey};
use crate::cli::OutputArgs;
use crate::failure::Failure;
use crate::output::octets;

/// Problems shown one by one; the rest is a number. A machine room without power should not print a thousand lines.
const PROBLEMS_SHOWN_MAX: usize = 20;

#[derive(Debug, Serialize)]
struct StatusReport {
    healthy: bool,
    cluster: String,
    replicas: u32,
    nodes: usize,
    nodes_up: usize,
    directory_leader: Option<String>,
    directory_revision: u64,
    shards: usize,
    shards_without_leader: usize,
    replicas_missing: usize,
    replicas_lagging: usize,
    domains: usize,
    accounts: usize,
    messages: u64,
    octets: u64,
    problems: Vec<String>,
}

pub async fn status(client: &mut AdminClient, output: OutputArgs) -> Result<(), Failure> {
    let report = report(&Survey::take(client).await?);
    let mut fields = vec![
        ("health", if report.healthy { "ok".to_owned() } else { "degraded".to_owned() }),
        ("cluster", format!("{}, {} shards, {} replicas of each", report.cluster, report.shards, report.replicas)),
        ("nodes", format!("{} of {} up", report.nodes_up, report.nodes)),
        (
            "directory",
            match &report.directory_leader {
                Some(leader) => format!("led by {leader}, revision {}", report.directory_revision),
                None => format!("no leader, revision {}", report.directory_revision),
            },
        ),
        ("shards", format!("{} of {} have a leader", report.shards - report.shards_without_leader, report.shards)),
        ("replicas", format!("{} missing, {} lagging", report.replicas_missing, report.replicas_lagging)),
        ("domains", report.domains.to_string()),
        ("accounts", report.accounts.to_string()),
        ("messages", format!("{} ({})", report.messages, octets(report.octets))),
    ];
    fields.extend(report.problems.iter().take(PROBLEMS_SHOWN_MAX).map(|problem| ("problem", problem.clone())));
    if report.problems.len() > PROBLEMS_SHOWN_MAX {
        fields.push(("problem", format!("and {} more", report.problems.len() - PROBLEMS_SHOWN_MAX)));
    }
    output.show(&report, &fields)?;
    if report.healthy { Ok(()) } else { Err(Failure::Told) }
}

fn report(survey: &Survey) -> StatusReport {
    let shards = survey.shards();
    let mut problems = Vec::new();
    for node in &survey.nodes {
        let name = &node.record.name;
        if let Err(reason) = &node.status {
            problems.push(format!("{name} is down: {reason}"));
        }
    }
    let leader = survey.directory_leader();
    if leader.is_none() {
        problems.push("the directory has no leader: mail flows, administration waits".to_owned());
    }
    problems.extend(shards.iter().filter(|shard| !shard.is_well()).map(shard_problem));
    if shards.is_empty() {
        problems.push("the cluster has no shards yet".to_owned());
    }
    let active = survey.nodes.iter().filter(|node| node.record.state() == State::Active).count();
    if active < survey.view.cluster.replicas as usize {
        problems.push(format!("{active} nodes cannot hold {} replicas of each shard", survey.view.cluster.replicas));
    }
    StatusReport {
        healthy: problems.is_empty(),
        cluster: survey.view.cluster.cluster_id.clone(),
        replicas: survey.view.cluster.replicas,
        nodes: survey.nodes.len(),
        nodes_up: survey.nodes.iter().filter(|node| node.is_up()).count(),
        directory_leader: leader.map(|node| node.record.name.clone()),
        directory_revision: survey.view.revision,
        shards: shards.len(),
        shards_without_leader: shards.iter().filter(|shard| shard.leader.is_none()).count(),
        replicas_missing: shards.iter().map(|shard| shard.missing.len()).sum(),
        replicas_lagging: shards.iter().map(|shard| shard.lagging.len()).sum(),
        domains: survey.view.domains.len(),
        accounts: survey.view.accounts.len(),
        messages: shards.iter().map(|shard| shard.messages).sum(),
        octets: shards.iter().map(|shard| shard.octets).sum(),
        problems,
    }
}

fn shard_problem(shard: &ShardRow) -> String {
    let mut said = Vec::new();
    if shard.wanted.is_empty() {
        said.push("is not placed".to_owned());
    }
    if shard.leader.is_none() {
        said.push("has no leader".to_owned());
    }
    if !shard.missing.is_empty() {
        said.push(format!("is missing on {}", shard.missing.join(", ")));
    }
    if !shard.lagging.is_empty() {
        said.push(format!("is behind on {}", shard.lagging.join(", ")));
    }
    if said.is_empty() {
        said.push(format!("should be on {} and is on {}", shard.wanted.join(", "), shard.voters.join(", ")));
    }
    format!("shard {} {}", shard.shard, said.join(" and "))
}
