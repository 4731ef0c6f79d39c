//! `mailring rebalance`, and what of `node` and `shard` makes shards move.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proto::wire::rebalance_request::Action;
use proto::wire::{Done, JoinNode, MoveShard, RebalanceReply, RebalanceRequest};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::admin::client::AdminClient;
use crate::cli::{JoinArgs, OutputArgs, PlaceArgs, RebalanceVerb, WatchArgs};
use crate::failure::Failure;
use crate::output::{counted, line, octets};

/// Between looks at a rebalance that is watched.
const LOOK: Duration = Duration::from_millis(500);
/// Of the bars on a terminal.
const BAR_TEMPLATE: &str = "{prefix:<22} [{bar:30}] {percent:>3} %  {msg}";
/// Bars shown at once besides the one for all.
const BARS_MAX: usize = 12;

#[derive(Debug, Serialize)]
struct Report {
    /// planned, none, running, paused, finished or aborted.
    state: String,
    started_unix_s: u64,
    shards_total: u32,
    shards_done: u32,
    octets_left: u64,
    /// While it is watched: what was copied lately, and how long the rest takes at that rate.
    octets_per_s: Option<u64>,
    seconds_left: Option<u64>,
    waits_because: Option<String>,
    moves: Vec<Move>,
    nodes: Vec<Share>,
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
    copied_octets: u64,
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

impl Report {
    async fn of(client: &mut AdminClient, reply: RebalanceReply) -> Result<Report, Failure> {
        let view = client.view().await?;
        let names = |ids: &[u64]| ids.iter().map(|id| view.node_name(*id)).collect::<Vec<_>>();
        let moves: Vec<Move> = reply
            .moves
            .iter()
            .map(|one| Move {
                shard: one.shard,
                from: names(&one.from),
                to: names(&one.to),
                accounts: one.accounts,
                messages: one.messages,
                octets: one.octets,
                phase: one.phase.clone(),
                copied_octets: one.copied_octets,
            })
            .collect();
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
        Ok(Report {
            shards_done: reply.shards_total.saturating_sub(moves.len() as u32),
            octets_left: moves.iter().map(Move::octets_left).sum(),
            octets_per_s: None,
            seconds_left: None,
            waits_because: Some(reply.waits_because).filter(|text| !text.is_empty()),
            state: reply.state,
            started_unix_s: reply.started_unix_s,
            shards_total: reply.shards_total,
            moves,
            nodes,
            warnings: reply.warnings,
        })
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

    /// The sentence, and a line for each warning.
    fn text(&self) -> String {
        let warnings = self.warnings.iter().map(|warning| format!("\nwarning: {warning}"));
        self.sentence() + &warnings.collect::<String>()
    }

    fn sentence(&self) -> String {
        let moved = format!("{} of {} moved", self.shards_done, counted(self.shards_total as usize, "shard"));
        let under_way = !self.is_over();
        let rate = self.octets_per_s.filter(|_| under_way).map(|rate| format!(", {}/s", octets(rate)));
        let left = self.seconds_left.filter(|_| under_way).map(|seconds| format!(", {seconds} s left"));
        let (rate, left) = (rate.unwrap_or_default(), left.unwrap_or_default());
        let why = self.waits_because.as_ref().map(|why| format!("; waits: {why}")).unwrap_or_default();
        match &*self.state {
            "none" => "nothing was ever moved".to_owned(),
            state => format!("{state}: {moved}{rate}{left}{why}"),
        }
    }
}

impl Move {
    fn octets_wanted(&self) -> u64 {
        self.octets * self.to.len() as u64
    }

    fn octets_left(&self) -> u64 {
        self.octets_wanted().saturating_sub(self.copied_octets)
    }

    fn share_copied(&self) -> f64 {
        match (&*self.phase, self.octets_wanted()) {
            ("switching", _) => 1.0,
            (_, 0) => 0.0,
            (_, wanted) => (self.copied_octets as f64 / wanted as f64).min(1.0),
        }
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

pub async fn join(client: &mut AdminClient, join: JoinArgs) -> Result<(), Failure> {
    let JoinArgs { place: PlaceArgs { node, no_rebalance, watch }, zone, weight } = join;
    let action = JoinNode { name: node, zone: zone.unwrap_or_default(), weight: weight.unwrap_or(0) };
    begin(client, RebalanceRequest { action: Some(Action::Join(action)), no_rebalance }, None, watch).await
}

pub async fn drain(client: &mut AdminClient, place: PlaceArgs) -> Result<(), Failure> {
    let PlaceArgs { node, no_rebalance, watch } = place;
    let request = RebalanceRequest { action: Some(Action::Drain(node.clone())), no_rebalance };
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
    RebalanceRequest { action: Some(action), no_rebalance: false }
}

/// `leaving`: a node that is done only once it does not vote in the directory any more either.
async fn begin(
    client: &mut AdminClient,
    request: RebalanceRequest,
    leaving: Option<&str>,
    watch: WatchArgs,
) -> Result<(), Failure> {
    let reply = client.rebalance(request).await?;
    let begun = Report::of(client, reply).await?;
    if !watch.wait {
        watch.output.done(&begun, &begun.text())?;
        return Ok(());
    }
    if !watch.output.json {
        begun.warnings.iter().try_for_each(|warning| line(&format!("warning: {warning}")))?;
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
    output.done(&report, &report.text())?;
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
        let copies: u64 = report.moves.iter().map(Move::octets_wanted).sum();
        line(&format!("{} would change replicas, {} to copy", counted(report.moves.len(), "shard"), octets(copies)))?;
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
                format!("{:.0} %", one.share_copied() * 100.0),
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
    for warning in &report.warnings {
        line(&format!("warning: {warning}"))?;
    }
    Ok(())
}

/// Until everything that was to move has moved, and the node that is `leaving` votes no more: bars on a terminal, a JSON line
/// a look, else a sentence a change.
async fn follow(client: &mut AdminClient, leaving: Option<&str>, output: OutputArgs) -> Result<Report, Failure> {
    let mut bars = (!output.json && stderr().is_terminal()).then(Bars::new);
    let mut rate = Rate::default();
    let mut said = String::new();
    loop {
        let reply = client.rebalance(request(Action::Status(Done {}))).await?;
        let mut report = Report::of(client, reply).await?;
        rate.note(&mut report);
        let votes = match leaving.filter(|_| report.is_over()) {
            Some(node) => client.view().await?.nodes.values().any(|known| known.name == *node && known.directory_voter),
            None => false,
        };
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
                bars.all.finish();
                line(&report.sentence())?;
            }
            return Ok(report);
        }
        sleep(LOOK).await;
    }
}

/// What is copied a second, evened out over some looks.
#[derive(Default)]
struct Rate {
    last: Option<(Instant, u64)>,
    octets_per_s: f64,
}

impl Rate {
    fn note(&mut self, report: &mut Report) {
        let now = Instant::now();
        if let Some((at, left)) = self.last {
            let copied = left.saturating_sub(report.octets_left) as f64;
            let now_rate = copied / now.duration_since(at).as_secs_f64().max(0.001);
            self.octets_per_s = self.octets_per_s * 0.8 + now_rate * 0.2;
            report.octets_per_s = Some(self.octets_per_s as u64);
            report.seconds_left =
                (self.octets_per_s >= 1.0).then(|| (report.octets_left as f64 / self.octets_per_s) as u64);
        }
        self.last = Some((now, report.octets_left));
    }
}

/// A bar for all, and one for each shard that is on its way.
struct Bars {
    screen: MultiProgress,
    all: ProgressBar,
    shards: BTreeMap<u32, ProgressBar>,
}

impl Bars {
    fn new() -> Bars {
        let screen = MultiProgress::new();
        let all = screen.add(bar("all".to_owned()));
        Bars { screen, all, shards: BTreeMap::new() }
    }

    fn draw(&mut self, report: &Report) {
        let moving: BTreeMap<u32, &Move> = report
            .moves
            .iter()
            .filter(|one| one.phase != "queued")
            .take(BARS_MAX)
            .map(|one| (one.shard, one))
            .collect();
        self.shards.retain(|shard, bar| {
            let stays = moving.contains_key(shard);
            if !stays {
                bar.finish_and_clear();
            }
            stays
        });
        for (shard, one) in moving {
            let prefix = format!("shard {shard} to {}", one.to.join(","));
            let bar = self.shards.entry(shard).or_insert_with(|| self.screen.add(bar(prefix)));
            bar.set_position((one.share_copied() * 1000.0) as u64);
            bar.set_message(format!("{}, {}", one.phase, octets(one.octets)));
        }
        self.all.set_position((report.share_done() * 1000.0) as u64);
        self.all.set_message(report.sentence());
    }
}

fn bar(prefix: String) -> ProgressBar {
    let style = ProgressStyle::with_template(BAR_TEMPLATE).map(|style| style.progress_chars("=> "));
    let bar = ProgressBar::new(1000).with_prefix(prefix);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::{Move, Report};

    fn one(phase: &str, octets: u64, copied_octets: u64) -> Move {
        Move {
            shard: 1,
            from: vec!["a".to_owned()],
            to: vec!["b".to_owned()],
            accounts: 1,
            messages: 1,
            octets,
            phase: phase.to_owned(),
            copied_octets,
        }
    }

    #[test]
    fn progress_counts_shards_that_have_arrived_and_parts_of_those_under_way() {
        let mut report = Report {
            state: "running".to_owned(),
            started_unix_s: 0,
            shards_total: 4,
            shards_done: 2,
            octets_left: 150,
            octets_per_s: Some(2048),
            seconds_left: Some(7),
            waits_because: None,
            moves: vec![one("copying", 100, 50), one("queued", 100, 0)],
            nodes: Vec::new(),
            warnings: Vec::new(),
        };
        assert!((report.share_done() - 0.6125).abs() < 1e-9);
        assert_eq!(report.sentence(), "running: 2 of 4 shards moved, 2.0 KiB/s, 7 s left");
        report.waits_because = Some("shard 3 lacks a replica or a leader".to_owned());
        assert!(report.sentence().ends_with("; waits: shard 3 lacks a replica or a leader"));
        report.warnings.push("each shard has 2 replicas".to_owned());
        assert!(report.text().ends_with("or a leader\nwarning: each shard has 2 replicas"), "{}", report.text());
        report.moves.clear();
        assert!(report.is_over());
        // A shard without mail has nothing to copy, and is not there before it is.
        assert!(one("copying", 0, 0).share_copied() < 0.1 && one("switching", 0, 0).share_copied() > 0.9);
    }
}
