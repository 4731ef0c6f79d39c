//! `mailring rebalance`, and what of `node` and `shard` makes shards move.

mod estimate;
mod progress;

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use proto::wire::rebalance_request::Action;
use proto::wire::{Done, JoinNode, MoveShard, RebalanceReply, RebalanceRequest, ShardMove};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use self::estimate::Estimate;
use self::progress::{Bars, Rates};
use crate::admin::client::AdminClient;
use crate::cli::{JoinArgs, OutputArgs, PlaceArgs, RebalanceVerb, WatchArgs};
use crate::failure::Failure;
use crate::output::{counted, line, octets};

/// Between looks at a rebalance that is watched.
const LOOK: Duration = Duration::from_millis(500);
/// A rebalance that is watched goes on by itself: as long as this nobody need answer, as amid an election on a busy machine.
const UNHEARD_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
struct Report {
    /// planned, none, running, paused, finished or aborted.
    state: String,
    started_unix_s: u64,
    shards_total: u32,
    shards_done: u32,
    /// Of all copies, those of shards that have arrived included.
    octets_total: u64,
    octets_copied: u64,
    octets_left: u64,
    /// Of shards that have arrived and of what is copied of the others; 100 once all have arrived.
    percent: u32,
    /// While it is watched: what was copied lately, and how long the rest takes at that rate.
    octets_per_s: Option<u64>,
    seconds_left: Option<u64>,
    waits_because: Option<String>,
    /// Of a plan that has moves.
    estimate: Option<Estimate>,
    moves: Vec<Move>,
    nodes: Vec<Share>,
    /// Shards that are left aside: too few of their replicas are left.
    lost: Vec<Lost>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Move {
    shard: u32,
    from: Vec<String>,
    to: Vec<String>,
    accounts: u64,
    messages: u64,
    /// Of one copy.
    octets: u64,
    /// planned, queued, copying, switching or undoing.
    phase: String,
    /// Of all its copies.
    octets_total: u64,
    octets_copied: u64,
    octets_left: u64,
    percent: u32,
    /// As of all.
    octets_per_s: Option<u64>,
    seconds_left: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Share {
    node: String,
    weight: u32,
    eligible: bool,
    replicas: u32,
    replicas_after: u32,
    octets: u64,
    octets_after: u64,
}

/// A shard that is left aside.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    pub shard: u32,
    pub because: String,
}

impl Lost {
    fn all(reply: &RebalanceReply) -> Vec<Lost> {
        reply.lost.iter().map(|lost| Lost { shard: lost.shard, because: lost.because.clone() }).collect()
    }

    /// "shard 6 is lost: node node4 is drained and does not answer".
    pub fn sentence(&self) -> String {
        format!("shard {} is lost: {}", self.shard, self.because)
    }
}

impl Report {
    async fn of(client: &mut AdminClient, reply: RebalanceReply) -> Result<Report, Failure> {
        let view = client.view().await?;
        let names = |ids: &[u64]| ids.iter().map(|id| view.node_name(*id)).collect::<Vec<_>>();
        let moves: Vec<Move> = reply.moves.iter().map(|one| Move::of(one, names(&one.from), names(&one.to))).collect();
        let mut nodes: Vec<Share> = reply
            .shares
            .iter()
            .map(|share| Share {
                node: view.node_name(share.node),
                weight: share.weight,
                eligible: share.eligible,
                replicas: share.replicas,
                replicas_after: share.replicas_after,
                octets: share.octets,
                octets_after: share.octets_after,
            })
            .collect();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        let octets_left: u64 = moves.iter().map(|one| one.octets_left).sum();
        let octets_total = reply.octets_total.max(octets_left);
        let report = Report {
            shards_done: reply.shards_total.saturating_sub(moves.len() as u32),
            octets_total,
            octets_copied: octets_total - octets_left,
            octets_left,
            percent: 0,
            octets_per_s: None,
            seconds_left: None,
            waits_because: Some(reply.waits_because.clone()).filter(|text| !text.is_empty()),
            estimate: reply.estimate.map(Estimate::of),
            state: reply.state.clone(),
            started_unix_s: reply.started_unix_s,
            shards_total: reply.shards_total,
            lost: Lost::all(&reply),
            moves,
            nodes,
            warnings: reply.warnings,
        };
        Ok(Report { percent: (report.share_done() * 100.0) as u32, ..report })
    }

    fn is_over(&self) -> bool {
        self.moves.is_empty()
    }

    /// Shards that have arrived, and of those that are on their way what was copied of them.
    fn share_done(&self) -> f64 {
        let all = f64::from(self.shards_total.max(self.moves.len() as u32));
        if all == 0.0 {
            return 1.0;
        }
        // What is copied still has to change places.
        let copied: f64 = self.moves.iter().map(|one| one.share_copied() * 0.9).sum();
        ((f64::from(self.shards_done) + copied) / all).min(1.0)
    }

    /// The sentence, and a line for each warning. `moves_nothing`: of what was asked for without a rebalance, with which the last one
    /// has nothing to do.
    fn text(&self, moves_nothing: bool) -> String {
        let sentence = match moves_nothing && self.is_over() {
            true => "done; nothing is moved for it, `mailring rebalance plan` shows what could be".to_owned(),
            false => self.sentence(),
        };
        sentence + &self.warnings().map(|warning| format!("\nwarning: {warning}")).collect::<String>()
    }

    fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        self.lost.iter().map(Lost::sentence).chain(self.warnings.iter().cloned())
    }

    /// "12.0 MiB of 40.0 MiB, 3.0 MiB/s, 9 s left".
    fn copied(&self) -> String {
        copied(self.octets_copied, self.octets_total, self.octets_per_s, self.seconds_left)
    }

    fn sentence(&self) -> String {
        let moved = format!("{} of {} moved", self.shards_done, counted(self.shards_total as usize, "shard"));
        let copied = if self.is_over() { String::new() } else { format!(", {}", self.copied()) };
        let why = self.waits_because.as_ref().map(|why| format!("; waits: {why}")).unwrap_or_default();
        match &*self.state {
            "none" => "nothing was ever moved".to_owned(),
            "aborted" => format!("aborted: what had moved stays, what had not stays or goes back{why}"),
            state => format!("{state}: {moved}{copied}{why}"),
        }
    }
}

fn copied(octets_copied: u64, octets_total: u64, octets_per_s: Option<u64>, seconds_left: Option<u64>) -> String {
    let rate = octets_per_s.map(|rate| format!(", {}/s", octets(rate))).unwrap_or_default();
    let left = seconds_left.map(|seconds| format!(", {seconds} s left")).unwrap_or_default();
    format!("{} of {}{rate}{left}", octets(octets_copied), octets(octets_total))
}

impl Move {
    fn of(one: &ShardMove, from: Vec<String>, to: Vec<String>) -> Move {
        let octets_total = one.octets.saturating_mul(to.len() as u64);
        let octets_copied = one.copied_octets.min(octets_total);
        let moving = Move {
            shard: one.shard,
            from,
            to,
            accounts: one.accounts,
            messages: one.messages,
            octets: one.octets,
            phase: one.phase.clone(),
            octets_total,
            octets_copied,
            octets_left: octets_total - octets_copied,
            percent: 0,
            octets_per_s: None,
            seconds_left: None,
        };
        Move { percent: (moving.share_copied() * 100.0) as u32, ..moving }
    }

    fn share_copied(&self) -> f64 {
        match (&*self.phase, self.octets_total) {
            ("switching", _) => 1.0,
            (_, 0) => 0.0,
            (_, total) => self.octets_copied as f64 / total as f64,
        }
    }

    /// "copying, 1.0 MiB of 4.0 MiB, 1.5 MiB/s, 2 s left".
    fn sentence(&self) -> String {
        let copied = copied(self.octets_copied, self.octets_total, self.octets_per_s, self.seconds_left);
        format!("{}, {copied}", self.phase)
    }
}

pub async fn run(client: &mut AdminClient, verb: RebalanceVerb) -> Result<(), Failure> {
    match verb {
        RebalanceVerb::Plan(output) => show(client, Action::Plan(Done {}), output).await,
        RebalanceVerb::Apply(watch) => begin(client, request(Action::Apply(Done {})), None, watch).await,
        RebalanceVerb::Status { watch, output } => match watch {
            true => follow(client, None, output).await.map(drop),
            false => show(client, Action::Status(Done {}), output).await,
        },
        RebalanceVerb::Pause(output) => tell(client, Action::Pause(Done {}), output).await,
        RebalanceVerb::Resume(output) => tell(client, Action::Resume(Done {}), output).await,
        RebalanceVerb::Abort(output) => tell(client, Action::Abort(Done {}), output).await,
    }
}

/// The shards that are lost; none where no leader of the directory says so.
pub async fn lost(client: &mut AdminClient) -> Vec<Lost> {
    let asked = client.rebalance(request(Action::Status(Done {}))).await;
    asked.map(|reply| Lost::all(&reply)).unwrap_or_default()
}

pub async fn join(client: &mut AdminClient, join: JoinArgs) -> Result<(), Failure> {
    let JoinArgs { place: PlaceArgs { node, no_rebalance, watch }, zone, weight } = join;
    let action = JoinNode { name: node, zone: zone.unwrap_or_default(), weight: weight.unwrap_or(0) };
    begin(client, RebalanceRequest { no_rebalance, ..request(Action::Join(action)) }, None, watch).await
}

pub async fn drain(client: &mut AdminClient, place: PlaceArgs) -> Result<(), Failure> {
    let PlaceArgs { node, no_rebalance, watch } = place;
    let request = RebalanceRequest { no_rebalance, ..request(Action::Drain(node.clone())) };
    begin(client, request, Some(&node), watch).await
}

#[derive(Serialize)]
struct Removed<'a> {
    removed: &'a str,
}

pub async fn remove(client: &mut AdminClient, node: String, output: OutputArgs) -> Result<(), Failure> {
    client.rebalance(request(Action::Remove(node.clone()))).await?;
    output.done(&Removed { removed: &node }, &format!("node {node} is removed"))?;
    Ok(())
}

pub async fn move_shard(client: &mut AdminClient, one: MoveShard, watch: WatchArgs) -> Result<(), Failure> {
    begin(client, request(Action::MoveShard(one)), None, watch).await
}

fn request(action: Action) -> RebalanceRequest {
    RebalanceRequest { action: Some(action), ..RebalanceRequest::default() }
}

/// `leaving`: a node that is done only once it does not vote in the directory any more either.
async fn begin(
    client: &mut AdminClient,
    request: RebalanceRequest,
    leaving: Option<&str>,
    watch: WatchArgs,
) -> Result<(), Failure> {
    let moves_nothing = request.no_rebalance;
    let reply = client.rebalance(request).await?;
    let begun = Report::of(client, reply).await?;
    if !watch.wait {
        watch.output.done(&begun, &begun.text(moves_nothing))?;
        return Ok(());
    }
    if !watch.output.json {
        begun.warnings().try_for_each(|warning| line(&format!("warning: {warning}")))?;
    }
    let ended = follow(client, leaving, watch.output).await?;
    match begun.state != "aborted" && ended.state == "aborted" {
        true => Err(Failure::Refused("the rebalance was aborted".to_owned())),
        false => Ok(()),
    }
}

async fn tell(client: &mut AdminClient, action: Action, output: OutputArgs) -> Result<(), Failure> {
    let reply = client.rebalance(request(action)).await?;
    let report = Report::of(client, reply).await?;
    output.done(&report, &report.text(false))?;
    Ok(())
}

async fn show(client: &mut AdminClient, action: Action, output: OutputArgs) -> Result<(), Failure> {
    let reply = client.rebalance(request(action)).await?;
    let report = Report::of(client, reply).await?;
    if output.json {
        output.show(&report, &[])?;
        return Ok(());
    }
    if report.state == "planned" {
        let shards = counted(report.moves.len(), "shard");
        line(&format!("{shards} would change replicas, {} to copy", octets(report.octets_total)))?;
        report.estimate.as_ref().map_or(Ok(()), |estimate| line(&estimate.sentence()))?;
    } else {
        line(&report.sentence())?;
    }
    if !report.moves.is_empty() {
        line("")?;
        let header = ["shard", "from", "to", "accounts", "messages", "size", "phase", "copied"];
        output.list(&header, &report.moves, |one| {
            vec![
                one.shard.to_string(),
                one.from.join(","),
                one.to.join(","),
                one.accounts.to_string(),
                one.messages.to_string(),
                octets(one.octets),
                one.phase.clone(),
                format!("{} %", one.percent),
            ]
        })?;
    }
    line("")?;
    let header = ["node", "weight", "state", "replicas", "then", "size", "then"];
    output.list(&header, &report.nodes, |share| {
        vec![
            share.node.clone(),
            share.weight.to_string(),
            if share.eligible { "active" } else { "draining" }.to_owned(),
            share.replicas.to_string(),
            share.replicas_after.to_string(),
            octets(share.octets),
            octets(share.octets_after),
        ]
    })?;
    for warning in report.warnings() {
        line(&format!("warning: {warning}"))?;
    }
    Ok(())
}

/// Until everything that was to move has moved, and the node that is `leaving` votes no more: bars on a terminal, a JSON line
/// a look, else a sentence a change.
async fn follow(client: &mut AdminClient, leaving: Option<&str>, output: OutputArgs) -> Result<Report, Failure> {
    let mut bars = (!output.json && stderr().is_terminal()).then(Bars::new);
    let mut rates = Rates::default();
    let (mut said, mut heard) = (String::new(), Instant::now());
    loop {
        let (mut report, votes) = match look(client, leaving).await {
            Ok(found) => found,
            Err(Failure::Unreachable(_)) if heard.elapsed() < UNHEARD_MAX => {
                sleep(LOOK).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        heard = Instant::now();
        rates.note(&mut report, heard);
        if votes && report.waits_because.is_none() {
            report.waits_because = Some("the node still votes in the directory".to_owned());
        }
        if output.json {
            line(&serde_json::to_string(&report).map_err(anyhow::Error::from)?)?;
        } else if let Some(bars) = &mut bars {
            bars.draw(&report);
        } else {
            let sentence = report.sentence();
            if sentence != said {
                line(&sentence)?;
                said = sentence;
            }
        }
        if report.is_over() && !votes {
            if let Some(bars) = bars {
                bars.end(&report);
                line(&report.sentence())?;
            }
            return Ok(report);
        }
        sleep(LOOK).await;
    }
}

/// How far it is, and whether the node that is `leaving` votes although all else is over.
async fn look(client: &mut AdminClient, leaving: Option<&str>) -> Result<(Report, bool), Failure> {
    let reply = client.rebalance(request(Action::Status(Done {}))).await?;
    let report = Report::of(client, reply).await?;
    let votes = match leaving.filter(|_| report.is_over()) {
        Some(node) => client.view().await?.nodes.values().any(|known| known.name == *node && known.directory_voter),
        None => false,
    };
    Ok((report, votes))
}

#[cfg(test)]
mod tests {
    use proto::wire::ShardMove;

    use super::{Move, Report};

    pub(super) fn one(shard: u32, phase: &str, octets: u64, copied_octets: u64) -> Move {
        let wire = ShardMove { shard, octets, phase: phase.to_owned(), copied_octets, ..Default::default() };
        Move::of(&wire, vec!["a".to_owned()], vec!["b".to_owned()])
    }

    pub(super) fn report(shards_total: u32, octets_total: u64, moves: Vec<Move>) -> Report {
        let octets_left: u64 = moves.iter().map(|one| one.octets_left).sum();
        Report {
            state: if moves.is_empty() { "finished" } else { "running" }.to_owned(),
            started_unix_s: 0,
            shards_total,
            shards_done: shards_total - moves.len() as u32,
            octets_total,
            octets_copied: octets_total - octets_left,
            octets_left,
            percent: 0,
            octets_per_s: None,
            seconds_left: None,
            waits_because: None,
            estimate: None,
            moves,
            nodes: Vec::new(),
            lost: Vec::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn progress_counts_shards_that_have_arrived_and_parts_of_those_under_way() {
        let moves = vec![one(1, "copying", 1 << 20, 1 << 19), one(2, "queued", 1 << 20, 0)];
        let mut report = report(4, 4 << 20, moves);
        assert!((report.share_done() - 0.6125).abs() < 1e-9);
        assert_eq!(report.sentence(), "running: 2 of 4 shards moved, 2.5 MiB of 4.0 MiB");
        (report.octets_per_s, report.seconds_left) = (Some(2048), Some(7));
        assert_eq!(report.sentence(), "running: 2 of 4 shards moved, 2.5 MiB of 4.0 MiB, 2.0 KiB/s, 7 s left");
        report.waits_because = Some("shard 3 lacks a replica or a leader".to_owned());
        assert!(report.sentence().ends_with("; waits: shard 3 lacks a replica or a leader"));
        report.warnings.push("each shard has 2 replicas".to_owned());
        let text = report.text(true);
        assert!(text.ends_with("or a leader\nwarning: each shard has 2 replicas"), "{text}");
        report.moves.clear();
        assert!(report.is_over() && report.text(true).starts_with("done; nothing is moved for it, "));
        // A shard without mail has nothing to copy, and is not there before it is.
        assert_eq!((one(1, "copying", 0, 0).percent, one(1, "switching", 0, 0).percent), (0, 100));
        assert_eq!(one(1, "copying", 4 << 20, 1 << 20).sentence(), "copying, 1.0 MiB of 4.0 MiB");
    }
}
