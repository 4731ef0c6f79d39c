//! `mailring node list`.

use proto::wire::node_record::State;
use serde::Serialize;

use crate::admin::client::{AdminClient, DIRECTORY};
use crate::admin::survey::{Survey, SurveyedNode};
use crate::cli::OutputArgs;
use crate::failure::Failure;

#[derive(Debug, Serialize)]
struct NodeRow {
    name: String,
    /// In hexadecimal, as logs have it: 64 bits do not fit every JSON reader's numbers.
    id: String,
    address: String,
    zone: String,
    weight: u32,
    state: &'static str,
    directory_voter: bool,
    up: bool,
    /// Why it counts as down.
    error: Option<String>,
    version: Option<String>,
    /// The newest format that its program knows, and the one that it writes in.
    format: Option<u32>,
    format_in_force: Option<u32>,
    uptime_s: Option<u64>,
    replicas: usize,
    leads: usize,
    /// Since the node started: log entries, and the synced writes that they took.
    appended_entries: Option<u64>,
    synced_writes: Option<u64>,
    synced_write_ms: Option<u32>,
}

impl NodeRow {
    fn new(node: &SurveyedNode) -> NodeRow {
        let record = &node.record;
        let status = node.status.as_ref().ok();
        let identity = status.and_then(|status| status.identity.as_ref());
        let shards = || status.iter().flat_map(|s| &s.groups).filter(|group| group.group != DIRECTORY);
        NodeRow {
            name: record.name.clone(),
            id: format!("{:016x}", record.id),
            address: record.address.clone(),
            zone: record.zone.clone(),
            weight: record.weight,
            state: match record.state() {
                State::Active => "active",
                State::Draining => "draining",
                State::Removed => "removed",
            },
            directory_voter: record.directory_voter,
            up: node.is_up(),
            error: node.status.as_ref().err().cloned(),
            version: identity.map(|identity| identity.version.clone()),
            format: identity.map(|identity| identity.format),
            format_in_force: identity.map(|identity| identity.format_in_force),
            uptime_s: status.map(|s| s.uptime_s),
            replicas: shards().count(),
            leads: shards().filter(|group| group.role == "leader").count(),
            appended_entries: status.map(|s| s.appended_entries),
            synced_writes: status.map(|s| s.synced_writes),
            synced_write_ms: status.map(|s| s.recent_round_ms),
        }
    }
}

pub async fn list(client: &mut AdminClient, output: OutputArgs) -> Result<(), Failure> {
    let survey = Survey::take(client).await?;
    let mut rows: Vec<NodeRow> = survey.nodes.iter().map(NodeRow::new).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let header = ["name", "address", "zone", "weight", "state", "directory", "replicas", "leads", "health", "version"];
    output.list(&header, &rows, |row| {
        vec![
            row.name.clone(),
            row.address.clone(),
            row.zone.clone(),
            row.weight.to_string(),
            row.state.to_owned(),
            if row.directory_voter { "voter" } else { "learner" }.to_owned(),
            row.replicas.to_string(),
            row.leads.to_string(),
            row.error.as_ref().map_or_else(|| "up".to_owned(), |error| format!("down: {error}")),
            row.version.clone().unwrap_or_default(),
        ]
    })?;
    Ok(())
}
