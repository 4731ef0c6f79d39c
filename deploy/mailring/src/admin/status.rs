//! `mailring status`: is all well, and if not, what.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proto::CERTIFICATE_ENDS_SOON;
use proto::wire::node_record::State;
use proto::wire::{GroupStatus, LostRecords, NodeStatusReply, VolumeStatus};
use serde::Serialize;

use crate::admin::client::{AdminClient, DIRECTORY};
use crate::admin::rebalance::{Lost, lost};
use crate::admin::survey::{ShardRow, Survey};
use crate::admin::volume::{self, ScrubRow};
use crate::cli::OutputArgs;
use crate::failure::Failure;
use crate::output::{counted, octets};

/// Problems shown one by one; the rest is a number. A machine room without power should not print a thousand lines.
const PROBLEMS_SHOWN_MAX: usize = 20;

/// Shards that one line names.
const SHARDS_SHOWN_MAX: usize = 8;

#[derive(Debug, Serialize)]
struct StatusReport {
    healthy: bool,
    cluster: String,
    replicas: u32,
    nodes: usize,
    nodes_up: usize,
    /// They hold nothing, or are to: drained, given up after they were away, or not yet joined.
    nodes_draining: Vec<String>,
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
    /// That have no good copy on a volume; other replicas may have one.
    records_lost: u64,
    /// Others that reads have met damage in.
    records_unread: u64,
    scrub: Scrubs,
    /// Shards of which too few replicas are left.
    lost: Vec<Lost>,
    problems: Vec<String>,
}

/// The last scrubs of the volumes that are up.
#[derive(Debug, Default, Serialize)]
struct Scrubs {
    volumes: usize,
    scrubbed: usize,
    /// When that of the volume ended that was scrubbed longest ago.
    oldest: Option<String>,
    findings: u64,
    /// Records that had no good copy on their volume; other replicas may have one.
    lost: u64,
}

impl Scrubs {
    fn of(survey: &Survey) -> Scrubs {
        let statuses = survey.nodes.iter().filter_map(|node| node.status.as_ref().ok());
        let volumes: Vec<_> = statuses.flat_map(|status| &status.volumes).collect();
        let last: Vec<_> = volumes.iter().filter_map(|volume| volume.last_scrub.as_ref()).collect();
        Scrubs {
            volumes: volumes.len(),
            scrubbed: last.len(),
            oldest: last.iter().min_by_key(|last| last.unix_s).map(|last| ScrubRow::new(last).ended),
            findings: last.iter().map(|last| last.findings).sum(),
            lost: last.iter().map(|last| last.lost).sum(),
        }
    }

    fn said(&self) -> String {
        let Scrubs { volumes, scrubbed, oldest, findings, .. } = self;
        match oldest {
            Some(oldest) => format!("{scrubbed} of {volumes} volumes, oldest {oldest}, {findings} findings"),
            None => format!("0 of {volumes} volumes"),
        }
    }
}

pub async fn status(client: &mut AdminClient, output: OutputArgs) -> Result<(), Failure> {
    let survey = Survey::take(client).await?;
    let is_any_unled = survey.shards().iter().any(|shard| shard.leader.is_none());
    let lost = if is_any_unled && survey.directory_leader().is_some() { lost(client).await } else { Vec::new() };
    let report = report(&survey, lost);
    let mut fields = vec![
        ("health", if report.healthy { "ok".to_owned() } else { "degraded".to_owned() }),
        (
            "cluster",
            format!(
                "{}, {} shards, {} of each",
                report.cluster,
                report.shards,
                counted(report.replicas as usize, "replica")
            ),
        ),
        ("nodes", nodes_said(&report)),
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
        ("scrubbed", report.scrub.said()),
    ];
    fields.extend(report.problems.iter().take(PROBLEMS_SHOWN_MAX).map(|problem| ("problem", problem.clone())));
    if report.problems.len() > PROBLEMS_SHOWN_MAX {
        fields.push(("problem", format!("and {} more", report.problems.len() - PROBLEMS_SHOWN_MAX)));
    }
    output.show(&report, &fields)?;
    if report.healthy { Ok(()) } else { Err(Failure::Told) }
}

fn report(survey: &Survey, lost: Vec<Lost>) -> StatusReport {
    let shards = survey.shards();
    let mut problems: Vec<String> = lost.iter().map(Lost::sentence).collect();
    let is_lost = |shard: &ShardRow| lost.iter().any(|lost| lost.shard == shard.shard);
    let now = Timestamp::now();
    for node in &survey.nodes {
        let name = &node.record.name;
        problems.extend(node.status.iter().flat_map(|status| volume::problems(name, &status.volumes)));
        problems.extend(node.status.iter().flat_map(|status| &status.damaged_shards).map(|damaged| {
            format!(
                "the only replica of shard {} is damaged, {name} does not serve it: {}",
                damaged.shard, damaged.reason
            )
        }));
        problems.extend(node.status.iter().filter_map(|status| directory_problem(name, &status.groups)));
        let certificate = |status: &NodeStatusReply| certificate_problem(name, status.certificate_ends_unix_s, now);
        problems.extend(node.status.iter().filter_map(certificate));
        match &node.status {
            Err(reason) => problems.push(format!("{name} is down: {reason}")),
            Ok(status) if status.disk_full => {
                let free = octets(status.disk_free_octets);
                problems.push(format!("{name} refuses new mail: its disk is full ({free} free)"));
            }
            Ok(status) if status.disk_stalled => {
                problems.push(format!("{name} waits for its disk, and leads only what nobody else can lead"));
            }
            Ok(_) => {}
        }
    }
    problems.extend(left_behind(survey, &lost));
    let leader = survey.directory_leader();
    if leader.is_none() {
        problems.push("the directory has no leader: mail flows, administration waits".to_owned());
    }
    let down: Vec<&str> = survey.nodes.iter().filter(|node| !node.is_up()).map(|n| n.record.name.as_str()).collect();
    let (away, others): (Vec<&ShardRow>, Vec<&ShardRow>) =
        shards.iter().filter(|shard| !is_lost(shard)).partition(|shard| is_away(shard, &down));
    problems.extend(away_problems(&away, &down));
    problems.extend(others.into_iter().filter_map(|shard| shard_problem(shard, &down)));
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
        nodes_draining: (survey.nodes.iter().map(|node| &node.record))
            .filter(|record| record.state() == State::Draining)
            .map(|record| record.name.clone())
            .collect(),
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
        records_lost: records(survey, |volume| &volume.lost),
        records_unread: records(survey, |volume| &volume.unread),
        scrub: Scrubs::of(survey),
        lost,
        problems,
    }
}

/// "4 of 4 up, node4 draining".
fn nodes_said(report: &StatusReport) -> String {
    let up = format!("{} of {} up", report.nodes_up, report.nodes);
    match &*report.nodes_draining {
        [] => up,
        draining => format!("{up}, {} draining", draining.join(", ")),
    }
}

/// Where it ends soon: from then on no other process takes it, and what it leads is led by a node that nobody new can reach.
fn certificate_problem(node: &str, ends_unix_s: i64, now: Timestamp) -> Option<String> {
    let soon = now.as_second().saturating_add(CERTIFICATE_ENDS_SOON.as_secs() as i64);
    if ends_unix_s == 0 || ends_unix_s >= soon {
        return None;
    }
    let when = Timestamp::from_second(ends_unix_s).map_or_else(|_| ends_unix_s.to_string(), |time| time.to_string());
    Some(format!(
        "the certificate of {node} ends at {when}, and from then on nobody takes it: put another one in its place \
         (`mailring ca issue`), and start the node again"
    ))
}

/// Over all volumes of the nodes that are up.
fn records(survey: &Survey, which: impl Fn(&VolumeStatus) -> &Vec<LostRecords>) -> u64 {
    let up = survey.nodes.iter().filter_map(|node| node.status.as_ref().ok());
    up.flat_map(|status| &status.volumes).flat_map(which).map(|some| some.records).sum()
}

/// Nodes that are draining and hold replicas which nothing moves: a drain was called off, or nothing was planned for it.
fn left_behind(survey: &Survey, lost: &[Lost]) -> Vec<String> {
    let view = &survey.view;
    let stays = |shard: &u32, wanted: &Vec<u64>, id: &u64| {
        view.planned.get(shard).unwrap_or(wanted).contains(id) && !lost.iter().any(|lost| lost.shard == *shard)
    };
    let draining = survey.nodes.iter().map(|node| &node.record).filter(|record| record.state() == State::Draining);
    let said = draining.filter_map(|record| {
        let (name, left) = (&record.name, view.placements.iter().filter(|(shard, wanted)| stays(shard, wanted, &record.id)));
        let replicas = left.count();
        (replicas > 0).then(|| {
            format!(
                "{name} is draining and holds {}, which nothing moves: `mailring rebalance apply` moves them away, `mailring \
                 node join {name}` keeps them there",
                counted(replicas, "replica")
            )
        })
    });
    said.collect()
}

/// The directory's replica has stopped on a node that runs, whoever else has it.
fn directory_problem(node: &str, groups: &[GroupStatus]) -> Option<String> {
    let has_stopped = groups.iter().any(|group| group.group == DIRECTORY && group.role == "stopped");
    has_stopped.then(|| format!("the directory's replica on {node} has stopped, the log there says why"))
}

/// It has no leader, and cannot have one while these nodes are down.
fn is_away(shard: &ShardRow, down: &[&str]) -> bool {
    let left = shard.wanted.iter().filter(|node| !down.contains(&node.as_str())).count();
    shard.leader.is_none() && !shard.wanted.is_empty() && left <= shard.wanted.len() / 2
}

/// A line for all that is away with the same nodes.
fn away_problems(shards: &[&ShardRow], down: &[&str]) -> Vec<String> {
    let mut by_nodes: BTreeMap<Vec<&str>, Vec<u32>> = BTreeMap::new();
    for shard in shards {
        let mut nodes: Vec<&str> = shard.wanted.iter().map(String::as_str).filter(|node| down.contains(node)).collect();
        nodes.sort_unstable();
        by_nodes.entry(nodes).or_default().push(shard.shard);
    }
    let said = by_nodes.into_iter().map(|(nodes, shards)| {
        let (is, with) = if nodes.len() == 1 { ("is", "it") } else { ("are", "them") };
        let shown: Vec<String> = shards.iter().take(SHARDS_SHOWN_MAX).map(ToString::to_string).collect();
        let beyond = shards.len().saturating_sub(SHARDS_SHOWN_MAX);
        let and_more = if beyond == 0 { String::new() } else { format!(" and {beyond} more") };
        let (noun, come) = if shards.len() == 1 { ("shard", "comes") } else { ("shards", "come") };
        format!(
            "{noun} {}{and_more} {} not served while {} {is} down, and {come} back with {with}: too few other replicas are left",
            shown.join(", "),
            if shards.len() == 1 { "is" } else { "are" },
            nodes.join(", ")
        )
    });
    said.collect()
}

/// None where all is well, or where a node that is down, which has been told already, explains it.
fn shard_problem(shard: &ShardRow, down: &[&str]) -> Option<String> {
    if shard.is_well() {
        return None;
    }
    let mut said = Vec::new();
    if shard.wanted.is_empty() {
        said.push("is not placed".to_owned());
    }
    if shard.leader.is_none() {
        said.push("has no leader".to_owned());
    }
    let missing: Vec<&str> = shard.missing.iter().map(String::as_str).filter(|node| !down.contains(node)).collect();
    if !missing.is_empty() {
        said.push(format!("is missing on {}", missing.join(", ")));
    }
    if !shard.lagging.is_empty() {
        said.push(format!("is behind on {}", shard.lagging.join(", ")));
    }
    if said.is_empty() && shard.missing.is_empty() {
        said.push(format!("should be on {} and is on {}", shard.wanted.join(", "), shard.voters.join(", ")));
    }
    (!said.is_empty()).then(|| format!("shard {} {}", shard.shard, said.join(" and ")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proto::wire::node_record::State;
    use proto::wire::{GroupStatus, NodeRecord, NodeStatusReply};

    use super::{
        Timestamp, away_problems, certificate_problem, directory_problem, is_away, left_behind, shard_problem,
    };
    use crate::admin::client::DIRECTORY;
    use crate::admin::rebalance::Lost;
    use crate::admin::survey::{ShardRow, Survey, SurveyedNode};
    use crate::admin::view::DirectoryView;

    fn shard(leader: Option<&str>, voters: &[&str], missing: &[&str]) -> ShardRow {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        ShardRow {
            shard: 7,
            leader: leader.map(str::to_owned),
            wanted: names(&["a", "b", "c"]),
            voters: names(voters),
            learners: Vec::new(),
            accounts: 0,
            messages: 0,
            octets: 0,
            applied_index: 1,
            missing: names(missing),
            lagging: Vec::new(),
        }
    }

    #[test]
    fn a_certificate_that_ends_within_a_month_is_a_problem_before_it_does() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let said = |days: i64| certificate_problem("n1", now.as_second() + days * 86_400, now);
        assert_eq!((said(30), said(400)), (None, None));
        assert!(
            said(29).unwrap().starts_with("the certificate of n1 ends at 2027-02-13T08:00:00Z, "),
            "{:?}",
            said(29)
        );
        assert!(said(-1).is_some());
        assert_eq!(certificate_problem("n1", 0, now), None, "a node of the version before does not say");
    }

    #[test]
    fn a_node_that_is_down_is_told_once_and_not_for_each_of_its_shards() {
        let all = ["c", "b", "a"];
        assert_eq!(shard_problem(&shard(Some("a"), &all, &[]), &[]), None);
        assert_eq!(shard_problem(&shard(Some("a"), &all, &["b"]), &["b"]), None);
        assert_eq!(shard_problem(&shard(None, &all, &["b"]), &["b"]).unwrap(), "shard 7 has no leader");
        assert_eq!(shard_problem(&shard(Some("a"), &all, &["b"]), &[]).unwrap(), "shard 7 is missing on b");
        let moving = shard_problem(&shard(Some("a"), &["a", "b"], &[]), &[]).unwrap();
        assert_eq!(moving, "shard 7 should be on a, b, c and is on a, b");
    }

    #[test]
    fn shards_that_are_away_with_their_nodes_are_told_together_and_come_back_with_them() {
        let on = |number: u32, leader: Option<&str>, wanted: &[&str]| ShardRow {
            shard: number,
            wanted: wanted.iter().map(|node| (*node).to_owned()).collect(),
            ..shard(leader, &[], &[])
        };
        assert!(!is_away(&on(0, Some("a"), &["a", "b", "c"]), &["b", "c"]), "somebody leads it");
        assert!(!is_away(&on(0, None, &["a", "b", "c"]), &["c"]), "an election is under way");
        assert!(is_away(&on(0, None, &["a", "b", "c"]), &["b", "c"]));
        assert!(is_away(&on(0, None, &["a", "b"]), &["b"]));
        let rows = [on(1, None, &["a"]), on(4, None, &["c", "b", "d"]), on(7, None, &["a"])];
        assert_eq!(
            away_problems(&rows.iter().collect::<Vec<_>>(), &["a", "b", "c"]),
            [
                "shards 1, 7 are not served while a is down, and come back with it: too few other replicas are left",
                "shard 4 is not served while b, c are down, and comes back with them: too few other replicas are left"
            ]
        );
        let many: Vec<ShardRow> = (0..10).map(|number| on(number, None, &["a"])).collect();
        let said = away_problems(&many.iter().collect::<Vec<_>>(), &["a"]);
        assert!(said[0].starts_with("shards 0, 1, 2, 3, 4, 5, 6, 7 and 2 more are not served while a is"), "{said:?}");
    }

    #[test]
    fn a_node_that_is_draining_and_goes_on_holding_replicas_is_a_problem() {
        let node = |id: u64, state: State| {
            let record = NodeRecord { id, name: format!("node{id}"), state: state.into(), ..NodeRecord::default() };
            SurveyedNode { record, status: Ok(NodeStatusReply::default()) }
        };
        let told = |planned: &[(u32, Vec<u64>)], lost: &[Lost]| {
            let view = DirectoryView {
                placements: BTreeMap::from([(0, vec![1, 2]), (1, vec![2, 3]), (2, vec![1, 3])]),
                planned: planned.iter().cloned().collect(),
                ..DirectoryView::default()
            };
            // The last has just come, and waits for a join.
            let states = [State::Active, State::Draining, State::Active, State::Draining];
            let nodes = (1..).zip(states).map(|(id, state)| node(id, state)).collect();
            left_behind(&Survey { view, nodes }, lost)
        };
        let left = |replicas: &str| {
            format!(
                "node2 is draining and holds {replicas}, which nothing moves: `mailring rebalance apply` moves them away, \
                 `mailring node join node2` keeps them there"
            )
        };
        assert_eq!(told(&[], &[]), [left("2 replicas")]);
        assert_eq!(told(&[(0, vec![1, 3])], &[]), [left("1 replica")]);
        assert_eq!(told(&[(0, vec![1, 3]), (1, vec![1, 3])], &[]), Vec::<String>::new());
        let lost = [0, 1].map(|shard| Lost { shard, because: String::new() });
        assert_eq!(told(&[], &lost), Vec::<String>::new(), "that is told already");
    }

    #[test]
    fn a_replica_of_the_directory_that_has_stopped_is_named() {
        let group = |group, role: &str| GroupStatus { group, role: role.to_owned(), ..GroupStatus::default() };
        assert_eq!(directory_problem("a", &[group(DIRECTORY, "follower"), group(7, "stopped")]), None);
        let stopped = directory_problem("a", &[group(DIRECTORY, "stopped")]).unwrap();
        assert!(stopped.starts_with("the directory's replica on a has stopped"), "{stopped}");
    }
}
