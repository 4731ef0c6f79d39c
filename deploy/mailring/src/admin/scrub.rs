//! `mailring scrub`: every volume of every node, then the replicas of every shard against each other.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::future::join_all;
use proto::wire::scrub_event::Event;
use proto::wire::{CompareShardRequest, ScrubFinding, ScrubReport, ScrubRequest};
use proto::{DirectoryStore, GrpcNode};
use serde::Serialize;
use tokio::time::{Duration, Instant, sleep};
use types::{MailError, MailResult};

use crate::admin::client::AdminClient;
use crate::admin::survey::Survey;
use crate::cli::OutputArgs;
use crate::failure::Failure;
use crate::output::octets;

/// How long a shard may be without a leader before it is left out.
const LEADER_MAX: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_millis(300);
/// Shards compared at once: each reads all replicas of a shard.
const COMPARED_AT_ONCE: usize = 2;

#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Nothing was wrong.
    clean: bool,
    /// Nothing is wrong any more, or it is being mended.
    mended: bool,
    records: u64,
    octets: u64,
    replicas: usize,
    findings: Vec<FindingRow>,
    findings_beyond: u64,
    /// Among them.
    #[serde(skip)]
    some_beyond_unmended: bool,
}

#[derive(Debug, Serialize)]
struct FindingRow {
    node: String,
    volume: Option<u32>,
    half: Option<String>,
    shard: Option<u32>,
    /// damaged, missing, differs, lost or unneeded for a record; bad, undecided or unknown for a replica; unread for a volume.
    verdict: String,
    key: String,
    reason: String,
    repair: String,
    mended: bool,
}

pub async fn run(client: &mut AdminClient, shard: Option<u32>, output: OutputArgs) -> Result<(), Failure> {
    let survey = Survey::take(client).await?;
    let count = survey.view.cluster.shards;
    if let Some(shard) = shard.filter(|shard| *shard >= count) {
        return Err(Failure::Refused(format!("no shard {shard}: the cluster has {count}, from 0")));
    }
    let mut nodes: BTreeMap<String, GrpcNode> = BTreeMap::new();
    for node in &survey.nodes {
        nodes.insert(node.record.name.clone(), client.at(&node.record.address)?);
    }
    let mut summary = Summary::default();
    let volumes = join_all(nodes.iter().map(|(name, node)| volumes(name, node, shard, output))).await;
    for (name, reports) in nodes.keys().zip(volumes) {
        match reports {
            Ok(reports) => reports.into_iter().for_each(|report| summary.take(name, report)),
            Err(error) => summary.findings.push(unread(name, None, &why(&error))),
        }
    }
    let wanted: Vec<u32> = (0..count).filter(|one| shard.is_none_or(|shard| shard == *one)).collect();
    for some in wanted.chunks(COMPARED_AT_ONCE) {
        for (rows, replicas) in join_all(some.iter().map(|shard| compared(&survey, &nodes, *shard))).await {
            summary.findings.extend(rows);
            summary.replicas += replicas;
        }
    }
    summary.clean = summary.findings.is_empty() && summary.findings_beyond == 0;
    summary.mended = summary.findings.iter().all(|finding| finding.mended) && !summary.some_beyond_unmended;
    print(&summary, output)?;
    if summary.mended { Ok(()) } else { Err(Failure::Told) }
}

fn print(summary: &Summary, output: OutputArgs) -> Result<(), Failure> {
    if !output.json && !summary.findings.is_empty() {
        let header = ["node", "volume", "half", "shard", "verdict", "key", "reason", "repair"];
        output.list(&header, &summary.findings, |row| {
            vec![
                row.node.clone(),
                row.volume.map(|volume| volume.to_string()).unwrap_or_default(),
                row.half.clone().unwrap_or_default(),
                row.shard.map(|shard| shard.to_string()).unwrap_or_default(),
                row.verdict.clone(),
                row.key.clone(),
                row.reason.clone(),
                row.repair.clone(),
            ]
        })?;
    }
    let verdict = match (summary.clean, summary.mended) {
        (true, _) => "nothing wrong".to_owned(),
        (false, true) => {
            "all that was wrong is mended, being so, or needed no more: see mailring volume list and shard list"
                .to_owned()
        }
        (false, false) => {
            let findings = summary.findings.len() as u64 + summary.findings_beyond;
            format!("{findings} findings, not all of them mended")
        }
    };
    let fields = [
        ("read", format!("{} records, {}", summary.records, octets(summary.octets))),
        ("compared", format!("{} replicas", summary.replicas)),
        ("result", verdict),
    ];
    output.show(summary, &fields)?;
    Ok(())
}

/// The reports of a node's volumes. How far each is goes to standard error, for people.
async fn volumes(name: &str, node: &GrpcNode, shard: Option<u32>, output: OutputArgs) -> MailResult<Vec<ScrubReport>> {
    let mut events = node.scrub(ScrubRequest { shard }).await?;
    let mut reports = Vec::new();
    while let Some(event) = events.next().await {
        match event?.event {
            Some(Event::Progress(progress)) if !output.json => {
                let percent = (progress.records * 100).checked_div(progress.records_estimated).unwrap_or(0).min(99);
                eprintln!(
                    "{name} volume {}: {percent} %, {} records, {}",
                    progress.volume,
                    progress.records,
                    octets(progress.octets)
                );
            }
            Some(Event::Report(report)) => reports.push(report),
            Some(Event::Progress(_)) | None => {}
        }
    }
    Ok(reports)
}

/// Of a node that was asked; the errors' own words are for users of mail.
fn why(error: &MailError) -> String {
    match error {
        MailError::Unavailable | MailError::Deadline => "the node does not answer".to_owned(),
        other => other.to_string(),
    }
}

/// Of a shard whose leader was looked for.
fn no_leader(error: &MailError) -> String {
    match error {
        MailError::Unavailable | MailError::NotLeader { .. } => {
            "no node leads it, or its leader does not answer".to_owned()
        }
        other => why(other),
    }
}

fn unread(node: &str, volume: Option<u32>, reason: &str) -> FindingRow {
    FindingRow {
        node: node.to_owned(),
        volume,
        half: None,
        shard: None,
        verdict: "unread".to_owned(),
        key: String::new(),
        reason: reason.to_owned(),
        repair: String::new(),
        mended: false,
    }
}

/// Whether findings that are not listed are mended too: all are of a half that is made anew from a good one.
fn is_made_anew(report: &ScrubReport) -> bool {
    report.lost == 0 && report.differing == 0 && !report.resilvers.is_empty() && report.unmade.is_empty()
}

impl Summary {
    fn take(&mut self, node: &str, report: ScrubReport) {
        self.records += report.records;
        self.octets += report.octets;
        self.findings_beyond += report.findings_beyond;
        self.some_beyond_unmended |= report.findings_beyond > 0 && !is_made_anew(&report);
        let volume = report.volume;
        if !report.error.is_empty() || !report.complete {
            let reason = if report.error.is_empty() { "broken off" } else { &report.error };
            self.findings.push(unread(node, Some(volume), reason));
        }
        let (resilvers, unmade, lost) = (report.resilvers, report.unmade, report.lost);
        self.findings.extend(report.findings.into_iter().map(|found| {
            let ScrubFinding { verdict, key, half, shard, reason, rewritten } = found;
            let resilvered = resilvers.contains(&half);
            let why_not = unmade.iter().find(|one| one.half == half).map(|one| &one.reason);
            let (repair, mended) = match (rewritten, resilvered, why_not) {
                (true, _, _) => ("written anew".to_owned(), true),
                _ if verdict == "unneeded" => ("none needed: no message has it".to_owned(), true),
                (false, _, Some(reason)) => (format!("none: half {half} is not made anew: {reason}"), false),
                // What is made anew is copied from the other half, which lacks records, too.
                (false, true, None) if lost > 0 => {
                    (format!("none: half {half} cannot be made anew while records are lost"), false)
                }
                (false, true, None) => (format!("half {half} is made anew"), true),
                (false, false, None) => (String::new(), false),
            };
            let half = (!half.is_empty()).then_some(half);
            FindingRow {
                node: node.to_owned(),
                volume: Some(volume),
                half,
                shard,
                verdict,
                key,
                reason,
                repair,
                mended,
            }
        }));
    }
}

/// What is wrong with the replicas of a shard, and how many were compared.
async fn compared(survey: &Survey, nodes: &BTreeMap<String, GrpcNode>, shard: u32) -> (Vec<FindingRow>, usize) {
    let row = |node: String, verdict: &str, reason: String, repair: String| FindingRow {
        node,
        volume: None,
        half: None,
        shard: Some(shard),
        verdict: verdict.to_owned(),
        key: "replica".to_owned(),
        reason,
        mended: repair.starts_with("made anew"),
        repair,
    };
    let reply = match compare(nodes, shard).await {
        Ok(reply) => reply,
        Err(error) => return (vec![row(String::new(), "unknown", no_leader(&error), String::new())], 0),
    };
    let count = reply.replicas.iter().filter(|replica| !replica.digest.is_empty()).count();
    let wrong = reply.replicas.into_iter().filter(|replica| replica.verdict != "good");
    let rows = wrong.map(|replica| {
        let reason = match replica.error.is_empty() {
            true => "not what the others hold".to_owned(),
            false if replica.verdict == "unknown" && replica.error == MailError::Unavailable.to_string() => {
                "its node does not answer".to_owned()
            }
            false => replica.error,
        };
        row(survey.view.node_name(replica.node), &replica.verdict, reason, replica.repair)
    });
    (rows.collect(), count)
}

/// Asks every node until the shard's leader is among them.
async fn compare(nodes: &BTreeMap<String, GrpcNode>, shard: u32) -> MailResult<proto::wire::CompareShardReply> {
    let deadline = Instant::now() + LEADER_MAX;
    loop {
        let mut last = MailError::Unavailable;
        for node in nodes.values() {
            match node.compare_shard(CompareShardRequest { shard }).await {
                Err(error @ (MailError::NotLeader { .. } | MailError::Unavailable)) => last = error,
                other => return other,
            }
        }
        if Instant::now() >= deadline {
            return Err(last);
        }
        sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use proto::wire::{ScrubFinding, ScrubReport, UnmadeHalf};

    use super::Summary;

    #[test]
    fn a_half_is_not_said_to_be_made_anew_where_it_cannot_be() {
        let finding = |half: &str| ScrubFinding { half: half.to_owned(), ..Default::default() };
        let resilvers = vec!["a".to_owned(), "b".to_owned()];
        let report =
            ScrubReport { complete: true, resilvers, findings: vec![finding("a"), finding("b")], ..Default::default() };
        let mut mended = Summary::default();
        mended.take("n1", report.clone());
        assert!(mended.findings.iter().all(|row| row.mended && row.repair.ends_with("is made anew")));
        let mut lost = Summary::default();
        lost.take("n1", ScrubReport { lost: 1, ..report.clone() });
        assert!(lost.findings.iter().all(|row| !row.mended && row.repair.starts_with("none")));
        let unmade = vec![UnmadeHalf { half: "b".to_owned(), reason: "/disk-b is too small".to_owned() }];
        let mut small = Summary::default();
        small.take("n1", ScrubReport { resilvers: vec!["a".to_owned()], unmade, findings_beyond: 1, ..report });
        let rows: Vec<_> = small.findings.iter().map(|row| (row.repair.as_str(), row.mended)).collect();
        let why = "none: half b is not made anew: /disk-b is too small";
        assert_eq!((rows, small.some_beyond_unmended), (vec![("half a is made anew", true), (why, false)], true));
    }

    #[test]
    fn a_body_that_no_message_has_is_told_and_leaves_nothing_to_be_done() {
        let finding = |verdict: &str| ScrubFinding { verdict: verdict.to_owned(), ..Default::default() };
        let report = ScrubReport {
            complete: true,
            lost: 1,
            findings: vec![finding("unneeded"), finding("lost")],
            ..Default::default()
        };
        let mut summary = Summary::default();
        summary.take("n1", report);
        let rows: Vec<_> = summary.findings.iter().map(|row| (row.repair.as_str(), row.mended)).collect();
        assert_eq!(rows, [("none needed: no message has it", true), ("", false)]);
    }
}
