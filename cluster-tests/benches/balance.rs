//! How well the plan balances: a simulation of the pure planner for 16 to 4,096 shards and 3 to 100 nodes.
//! `cargo bench -p cluster-tests --bench balance` prints a Markdown table; with `MAILRING_PLOT=FILE.svg` it draws a plot
//! of it, too. Everything but the times is the same on every machine.
//!
//! Each cluster is placed anew, then one node joins, or one is drained, or all have unlike weights and one joins. The
//! joins are planned twice: with shards that all have the same octets, and with octets that differ as users do (Pareto).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use directory::{PlacementNode, moves, propose};
use plotters::coord::Shift;
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::{
    ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, IntoFont, LineSeries, PathElement, RGBColor, SVGBackend,
    SeriesLabelPosition, WHITE,
};
use plotters::style::{BLACK, BLUE, RED};
use types::{NodeId, ShardId};

const SHARDS: [u32; 5] = [16, 64, 256, 1024, 4096];
const NODES: [u64; 5] = [3, 5, 10, 30, 100];
const REPLICAS: [u32; 2] = [1, 3];
/// Of the Pareto distribution: a fifth of the shards have four fifths of the octets at 1.16.
const PARETO_SHAPE: f64 = 1.16;
const MEAN_OCTETS: f64 = (1u64 << 30) as f64;
/// The weights of unlike nodes, in turn.
const WEIGHTS: [u32; 3] = [1, 2, 4];

type Wanted = BTreeMap<ShardId, Vec<NodeId>>;
type Octets = BTreeMap<ShardId, u64>;

/// One change of the nodes, planned.
struct Change {
    moved: usize,
    /// No plan that gives every node its share can move fewer.
    least: u32,
    /// The largest ratio of a node's replicas to its share.
    largest: f64,
    took: Duration,
    after: Wanted,
}

struct Row {
    shards: u32,
    nodes: u64,
    replicas: u32,
    join: Change,
    drain: Change,
    weighted: Change,
    uneven: Change,
    /// The largest ratio of a node's octets to its share, before and after the join.
    octets_before: f64,
    octets_after: f64,
    /// What the heaviest shard alone is of a node's share: no plan can have less on the heaviest node.
    heaviest_shard: f64,
}

fn main() -> Result<()> {
    println!(
        "| shards | nodes | R | join: moved / least | drain: moved / least | weights: moved / least | largest share | \
         uneven: moved / least | most octets before | after | heaviest shard | slowest plan |"
    );
    println!("| --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |");
    let mut rows = Vec::new();
    for shards in SHARDS {
        for nodes in NODES {
            for replicas in REPLICAS {
                let row = simulate(shards, nodes, replicas)?;
                print(&row);
                rows.push(row);
            }
        }
    }
    if let Some(path) = std::env::var_os("MAILRING_PLOT") {
        plot(&rows, Path::new(&path))?;
    }
    Ok(())
}

fn simulate(shards: u32, count: u64, replicas: u32) -> Result<Row> {
    let (even, octets) = (Octets::new(), pareto(shards));
    let before = propose(shards, replicas, &nodes(count), &Wanted::new(), &even);
    let joined = nodes(count + 1);
    let join = change(shards, replicas, &joined, &before, &even);
    let uneven = change(shards, replicas, &joined, &before, &octets);

    let mut draining = nodes(count);
    draining[1].eligible = false;
    let drain = change(shards, replicas, &draining, &before, &even);

    let unlike = |count: u64| -> Vec<PlacementNode> {
        let weights = WEIGHTS.iter().cycle();
        nodes(count).into_iter().zip(weights).map(|(node, weight)| PlacementNode { weight: *weight, ..node }).collect()
    };
    let before_unlike = propose(shards, replicas, &unlike(count), &Wanted::new(), &even);
    let weighted = change(shards, replicas, &unlike(count + 1), &before_unlike, &even);

    let share = |nodes: u64| {
        let total: u64 = octets.values().sum();
        total as f64 * f64::from(replicas) / nodes as f64
    };
    let most = |wanted: &Wanted| sums(wanted, |shard| octets[&shard] as f64).into_values().fold(0.0, f64::max);
    Ok(Row {
        octets_before: most(&before) / share(count),
        octets_after: most(&uneven.after) / share(count + 1),
        heaviest_shard: octets.values().copied().max().unwrap_or_default() as f64 / share(count + 1),
        shards,
        nodes: count,
        replicas,
        join,
        drain,
        weighted,
        uneven,
    })
}

/// Equal nodes, each a zone of its own.
fn nodes(count: u64) -> Vec<PlacementNode> {
    let node = |number: u64| PlacementNode {
        id: NodeId(scatter(number)),
        zone: format!("zone-{number}"),
        weight: 1,
        eligible: true,
    };
    (1..=count).map(node).collect()
}

/// Ids and other numbers as scattered as real ones (SplitMix64).
fn scatter(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn pareto(shards: u32) -> Octets {
    let octets = |shard: u32| {
        let uniform = (scatter(1_000_000 + u64::from(shard)) >> 11) as f64 / (1u64 << 53) as f64;
        (MEAN_OCTETS * (1.0 - 1.0 / PARETO_SHAPE) * (1.0 - uniform).powf(-1.0 / PARETO_SHAPE)) as u64
    };
    (0..shards).map(|shard| (ShardId(shard), octets(shard))).collect()
}

fn change(shards: u32, replicas: u32, nodes: &[PlacementNode], before: &Wanted, octets: &Octets) -> Change {
    let begun = Instant::now();
    let after = propose(shards, replicas, nodes, before, octets);
    let took = begun.elapsed();
    let (had, has) = (sums(before, |_| 1.0), sums(&after, |_| 1.0));
    let of = |sums: &BTreeMap<NodeId, f64>, node: NodeId| sums.get(&node).copied().unwrap_or_default();
    let (mut lacking, mut largest) = (0.0, 0.0f64);
    for (node, share) in shares(shards, replicas, nodes) {
        lacking += ((share + 1e-9).floor() - of(&had, node)).max(0.0);
        largest = largest.max(of(&has, node) / share);
    }
    let leaving: f64 = nodes.iter().filter(|node| !node.eligible).map(|node| of(&had, node.id)).sum();
    Change { moved: moves(before, &after).len(), least: f64::max(lacking, leaving) as u32, largest, took, after }
}

fn sums(wanted: &Wanted, of: impl Fn(ShardId) -> f64) -> BTreeMap<NodeId, f64> {
    let mut sums = BTreeMap::new();
    for (shard, nodes) in wanted {
        nodes.iter().for_each(|node| *sums.entry(*node).or_default() += of(*shard));
    }
    sums
}

/// Replicas by weight; a node that would get more than one of each shard gets one of each, and the others share the
/// rest.
fn shares(shards: u32, replicas: u32, nodes: &[PlacementNode]) -> BTreeMap<NodeId, f64> {
    let mut open: Vec<&PlacementNode> = nodes.iter().filter(|node| node.eligible).collect();
    let mut left = f64::from(shards) * f64::from(replicas.min(open.len() as u32));
    let mut shares = BTreeMap::new();
    loop {
        let weight: f64 = open.iter().map(|node| f64::from(node.weight)).sum();
        let share = |node: &PlacementNode| left * f64::from(node.weight) / weight;
        let (full, rest): (Vec<&PlacementNode>, Vec<&PlacementNode>) =
            open.iter().partition(|node| share(node) > f64::from(shards));
        if full.is_empty() {
            shares.extend(open.iter().map(|node| (node.id, share(node))));
            return shares;
        }
        left -= f64::from(shards) * full.len() as f64;
        shares.extend(full.iter().map(|node| (node.id, f64::from(shards))));
        open = rest;
    }
}

fn print(row: &Row) {
    let Row { shards, nodes, replicas, join, drain, weighted, uneven, .. } = row;
    let moved = |change: &Change| format!("{} / {}", change.moved, change.least);
    let largest = [join, drain, weighted].map(|change| change.largest).into_iter().fold(0.0, f64::max);
    let slowest = [join, drain, weighted, uneven].map(|change| change.took).into_iter().max().unwrap_or_default();
    println!(
        "| {shards} | {nodes} | {replicas} | {} | {} | {} | {largest:.2} | {} | {:.2} | {:.2} | {:.2} | {:.0} ms |",
        moved(join),
        moved(drain),
        moved(weighted),
        moved(uneven),
        row.octets_before,
        row.octets_after,
        row.heaviest_shard,
        slowest.as_secs_f64() * 1000.0,
    );
}

/// Left: how many replicas a join moves; right: the most octets of a node against its share.
fn plot(rows: &[Row], path: &Path) -> Result<()> {
    let drawing = SVGBackend::new(path, (1000, 440)).into_drawing_area();
    drawing.fill(&WHITE)?;
    let (left, right) = drawing.split_horizontally(500);
    let of = |shards: u32, figure: fn(&Row) -> f64| -> Vec<(f64, f64)> {
        let rows = rows.iter().filter(|row| row.shards == shards && row.replicas == 3);
        rows.map(|row| (row.nodes as f64, figure(row))).collect()
    };
    panel(
        &left,
        "replicas moved by a join, in % of all (R = 3)",
        30.0,
        &[
            ("1,024 shards, even octets", BLUE, of(1024, |row| percent(&row.join, row))),
            ("1,024 shards, uneven octets", RED, of(1024, |row| percent(&row.uneven, row))),
            ("the newcomer's share", BLACK, of(1024, |row| 100.0 / (row.nodes as f64 + 1.0))),
        ],
    )?;
    panel(
        &right,
        "most octets on a node, against its share (R = 3)",
        8.0,
        &[
            ("1,024 shards, before the join", BLUE, of(1024, |row| row.octets_before)),
            ("1,024 shards, after", RED, of(1024, |row| row.octets_after)),
            ("heaviest shard alone", BLACK, of(1024, |row| row.heaviest_shard)),
        ],
    )?;
    drawing.present()?;
    Ok(())
}

fn percent(change: &Change, row: &Row) -> f64 {
    100.0 * change.moved as f64 / (f64::from(row.shards) * f64::from(row.replicas))
}

/// A name, a colour, and the points.
type Line = (&'static str, RGBColor, Vec<(f64, f64)>);

fn panel(area: &DrawingArea<SVGBackend<'_>, Shift>, title: &str, most: f64, lines: &[Line]) -> Result<()> {
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16).into_font())
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(44)
        .build_cartesian_2d((3.0..100.0).log_scale(), 0.0..most)?;
    chart.configure_mesh().x_desc("nodes before").x_label_formatter(&|nodes| format!("{nodes:.0}")).draw()?;
    for (name, colour, points) in lines {
        let colour = *colour;
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    Ok(())
}
