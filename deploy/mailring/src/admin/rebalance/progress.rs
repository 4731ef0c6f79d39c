//! Progress of a rebalance that is watched: rates from what changes between looks, and bars on a terminal.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::{Move, Report};

/// Of the bars on a terminal.
const BAR_TEMPLATE: &str = "{prefix:<22} [{bar:30}] {percent:>3} %  {msg}";
/// Steps of a bar.
const BAR_STEPS: u64 = 1_000;
/// Bars shown at once besides the one for all.
const BARS_MAX: usize = 12;
/// Of a rate, how much the last look counts.
const LAST_LOOK: f64 = 0.2;

/// What is copied a second, in all and of each shard, evened out over some looks.
#[derive(Default)]
pub struct Rates {
    all: Rate,
    shards: BTreeMap<u32, Rate>,
}

#[derive(Default)]
struct Rate {
    /// When it was looked at, and what was left then.
    last: Option<(Instant, u64)>,
    octets_per_s: f64,
}

impl Rates {
    /// Adds to a report what follows from it and the ones before.
    pub fn note(&mut self, report: &mut Report, now: Instant) {
        (report.octets_per_s, report.seconds_left) = self.all.note(report.octets_left, now);
        // Until then nobody knows.
        report.seconds_left = report.seconds_left.filter(|_| report.waits_because.is_none());
        self.shards.retain(|shard, _| report.moves.iter().any(|one| one.shard == *shard));
        for one in report.moves.iter_mut().filter(|one| one.phase != "queued") {
            let rate = self.shards.entry(one.shard).or_default();
            (one.octets_per_s, one.seconds_left) = rate.note(one.octets_left, now);
        }
    }
}

impl Rate {
    /// The rate, none at the first look; and how long the rest takes, none where nothing is copied.
    fn note(&mut self, left: u64, now: Instant) -> (Option<u64>, Option<u64>) {
        let Some((at, left_before)) = self.last.replace((now, left)) else { return (None, None) };
        let copied = left_before.saturating_sub(left) as f64;
        let last = copied / now.duration_since(at).as_secs_f64().max(0.001);
        // Before anything was copied there is nothing to go by.
        let before = if self.octets_per_s > 0.0 { self.octets_per_s } else { last };
        self.octets_per_s = before * (1.0 - LAST_LOOK) + last * LAST_LOOK;
        let seconds = (self.octets_per_s >= 1.0).then(|| (left as f64 / self.octets_per_s).ceil() as u64);
        (Some(self.octets_per_s as u64), seconds)
    }
}

/// A bar for all, and one for each shard that is on its way.
pub struct Bars {
    screen: MultiProgress,
    all: ProgressBar,
    shards: BTreeMap<u32, ProgressBar>,
}

impl Bars {
    pub fn new() -> Bars {
        Bars::on(ProgressDrawTarget::stderr())
    }

    fn on(target: ProgressDrawTarget) -> Bars {
        let screen = MultiProgress::with_draw_target(target);
        let all = screen.add(bar("all".to_owned()));
        Bars { screen, all, shards: BTreeMap::new() }
    }

    pub fn draw(&mut self, report: &Report) {
        let under_way = report.moves.iter().filter(|one| one.phase != "queued").take(BARS_MAX);
        let moving: BTreeMap<u32, &Move> = under_way.map(|one| (one.shard, one)).collect();
        self.shards.retain(|shard, bar| {
            let stays = moving.contains_key(shard);
            if !stays {
                bar.finish_and_clear();
                self.screen.remove(bar);
            }
            stays
        });
        for (shard, one) in moving {
            let prefix = format!("shard {shard} to {}", one.to.join(","));
            let bar = self.shards.entry(shard).or_insert_with(|| self.screen.add(bar(prefix)));
            bar.set_position((one.share_copied() * BAR_STEPS as f64) as u64);
            bar.set_message(one.sentence());
        }
        self.all.set_position((report.share_done() * BAR_STEPS as f64) as u64);
        self.all.set_message(report.sentence());
    }

    /// All has moved, or was undone: the bar for all stays on the terminal as it is.
    pub fn end(self, report: &Report) {
        let Bars { all, .. } = self;
        match &*report.state {
            "aborted" => all.abandon(),
            _ => all.finish(),
        }
    }
}

fn bar(prefix: String) -> ProgressBar {
    let style = ProgressStyle::with_template(BAR_TEMPLATE).map(|style| style.progress_chars("=> "));
    let bar = ProgressBar::new(BAR_STEPS).with_prefix(prefix);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use indicatif::ProgressDrawTarget;
    use tokio::time::Instant;

    use super::super::tests::{one, report};
    use super::{BAR_STEPS, Bars, Rates};

    const MIB: u64 = 1 << 20;

    #[test]
    fn rates_and_time_left_come_from_what_changes_between_looks() {
        let (mut rates, mut now) = (Rates::default(), Instant::now());
        for second in 0..30 {
            let moves = vec![one(1, "copying", 100 * MIB, second * MIB), one(2, "queued", 100 * MIB, 0)];
            let mut report = report(2, 200 * MIB, moves);
            rates.note(&mut report, now);
            let first = &report.moves[0];
            assert_eq!((report.octets_per_s.is_some(), first.octets_per_s.is_some()), (second > 0, second > 0));
            assert_eq!((report.moves[1].octets_per_s, report.moves[1].seconds_left), (None, None));
            if second == 1 {
                assert_eq!((report.seconds_left, first.seconds_left), (Some(199), Some(99)), "as the first look says");
            }
            if second == 29 {
                let (rate, left) = (report.octets_per_s.unwrap(), report.seconds_left.unwrap());
                assert!(rate.abs_diff(MIB) < MIB / 100 && left.abs_diff(171) < 3, "{rate} {left}");
                let (rate, left) = (first.octets_per_s.unwrap(), first.seconds_left.unwrap());
                assert!(rate.abs_diff(MIB) < MIB / 100 && left.abs_diff(71) < 2, "{rate} {left}");
            }
            now += Duration::from_secs(1);
        }
        let mut waiting = report(2, 200 * MIB, vec![one(1, "copying", 100 * MIB, 29 * MIB)]);
        waiting.waits_because = Some("shard 3 lacks a replica or a leader".to_owned());
        rates.note(&mut waiting, now);
        assert!(waiting.octets_per_s.is_some() && waiting.seconds_left.is_none());
        // Nothing goes on: there is no telling how long it takes.
        for _ in 0..200 {
            let mut still = report(2, 200 * MIB, vec![one(1, "copying", 100 * MIB, 29 * MIB)]);
            rates.note(&mut still, now);
            now += Duration::from_secs(1);
            if still.octets_per_s == Some(0) {
                assert_eq!(still.seconds_left, None);
                return;
            }
        }
        panic!("the rate stays");
    }

    #[test]
    fn bars_come_and_go_with_shards_and_the_one_for_all_ends_at_its_end() {
        let mut bars = Bars::on(ProgressDrawTarget::hidden());
        bars.draw(&report(3, 3 * MIB, vec![one(1, "copying", MIB, MIB / 2), one(2, "queued", MIB, 0)]));
        assert_eq!(bars.shards.keys().copied().collect::<Vec<_>>(), [1]);
        assert_eq!(bars.shards[&1].position(), BAR_STEPS / 2);
        assert_eq!(bars.shards[&1].message(), "copying, 512.0 KiB of 1.0 MiB");
        bars.draw(&report(3, 3 * MIB, vec![one(2, "switching", MIB, MIB)]));
        assert_eq!(bars.shards.keys().copied().collect::<Vec<_>>(), [2]);
        assert!(bars.all.position() < BAR_STEPS);
        let (last, all) = (report(3, 3 * MIB, Vec::new()), bars.all.clone());
        bars.draw(&last);
        assert!(bars.shards.is_empty());
        bars.end(&last);
        assert_eq!((all.position(), all.is_finished()), (BAR_STEPS, true));
    }
}
