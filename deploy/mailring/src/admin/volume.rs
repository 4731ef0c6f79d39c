//! `mailring volume`.

use std::time::Duration;

use jiff::Timestamp;
use proto::wire::change_volume_request::Change;
use proto::wire::{ChangeVolumeRequest, HalfStatus, LastScrub, LostRecords, VolumeStatus};
use proto::{DirectoryStore, GrpcNode};
use serde::Serialize;
use tokio::time::sleep;
use types::MailError;

use crate::admin::client::{AdminClient, DIRECTORY};
use crate::admin::survey::{Survey, SurveyedNode};
use crate::cli::{HalfArgs, OutputArgs, VolumeVerb};
use crate::failure::Failure;
use crate::output::{counted, octets};

/// Between two looks at a resilver that is waited for.
const LOOK: Duration = Duration::from_millis(500);
/// One after the other: a node that is busy may miss one.
const SILENT_LOOKS_MAX: u32 = 10;

/// With fewer a node's lost replicas are not made anew: too few would be left to go on without them.
const REPLICAS_TO_COPY_FROM: u32 = 3;

/// A disk: a volume of one, or a half of a mirror.
#[derive(Debug, Serialize)]
struct DiskRow {
    node: String,
    volume: u32,
    /// a or b in a mirror.
    half: Option<String>,
    directory: String,
    /// current, damaged, stale, resilvering, or down for a volume that is not open.
    state: String,
    /// Why it is stale or down.
    reason: String,
    replicas: u32,
    /// On this disk alone; null where that does not tell.
    free_octets: Option<u64>,
    full: bool,
    copied_records: u64,
    /// About how many there are to copy.
    records: u64,
    /// Reads that met damage here, since the node started.
    damage_found: u64,
    /// Of all of the volume.
    last_scrub: Option<ScrubRow>,
    /// Of all of the volume: what has no good copy on it.
    lost: Vec<LostRow>,
    /// Of all of the volume: what else reads have met damage in.
    unread: Vec<LostRow>,
}

/// Records of a shard that a volume has no good copy of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LostRow {
    /// `shard 7`, `the directory`, or `no shard alone`.
    pub of: String,
    pub shard: Option<u32>,
    pub records: u64,
    /// Some of them.
    pub keys: Vec<String>,
}

impl LostRow {
    fn new(lost: &LostRecords) -> LostRow {
        let (of, shard) = match lost.group {
            Some(DIRECTORY) => ("the directory".to_owned(), None),
            Some(shard) => (format!("shard {shard}"), Some(shard)),
            None => ("no shard alone".to_owned(), None),
        };
        LostRow { of, shard, records: lost.records, keys: lost.keys.clone() }
    }

    /// `2 records of shard 7`.
    fn said(&self) -> String {
        format!("{} of {}", counted(self.records as usize, "record"), self.of)
    }

    /// One of them, and whether there are others.
    fn example(&self) -> Option<String> {
        let more = if self.records > 1 { " and others" } else { "" };
        self.keys.first().map(|key| format!("({key}{more})"))
    }

    /// The command that names them all, and after which they are told no more once they are mended or expunged.
    fn scrub(&self) -> String {
        match self.shard {
            Some(shard) => format!("mailring scrub --shard {shard}"),
            None => "mailring scrub".to_owned(),
        }
    }
}

fn lost_of(volume: &VolumeStatus) -> Vec<LostRow> {
    volume.lost.iter().map(LostRow::new).collect()
}

fn unread_of(volume: &VolumeStatus) -> Vec<LostRow> {
    volume.unread.iter().map(LostRow::new).collect()
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScrubRow {
    /// When it ended, as in RFC 3339.
    pub ended: String,
    pub records: u64,
    pub octets: u64,
    pub findings: u64,
    /// Records with no good copy on the volume then; findings of halves that differ, and nothing tells which is right.
    pub lost: u64,
    pub differing: u64,
    pub rewritten: u64,
}

impl ScrubRow {
    pub fn new(last: &LastScrub) -> ScrubRow {
        let LastScrub { unix_s, records, octets, findings, lost, differing, rewritten } = *last;
        let ended = Timestamp::from_second(unix_s).map(|time| time.to_string());
        ScrubRow {
            ended: ended.unwrap_or_else(|_| unix_s.to_string()),
            records,
            octets,
            findings,
            lost,
            differing,
            rewritten,
        }
    }

    fn said(&self) -> String {
        let ended = &self.ended;
        match (self.findings, self.lost, self.differing) {
            (0, _, _) => format!("{ended}: nothing wrong"),
            (findings, 0, 0) => format!("{ended}: {}", counted(findings as usize, "finding")),
            (findings, lost, differing) => {
                let (findings, lost) = (counted(findings as usize, "finding"), counted(lost as usize, "record"));
                format!("{ended}: {findings}, {lost} lost, {differing} undecided")
            }
        }
    }
}

#[derive(Serialize)]
struct Begun<'a> {
    node: &'a str,
    volume: u32,
    waited: bool,
    /// What the volume has no good copy of when all is made anew; nothing unless that was waited for.
    lost: Vec<LostRow>,
}

pub async fn run(client: &mut AdminClient, verb: VolumeVerb) -> Result<(), Failure> {
    match verb {
        VolumeVerb::List(output) => list(client, output).await,
        VolumeVerb::Replace(half) => change(client, half, Change::Replace, "replaced").await,
        VolumeVerb::Resilver(half) => change(client, half, Change::Resilver, "to be resilvered").await,
    }
}

async fn list(client: &mut AdminClient, output: OutputArgs) -> Result<(), Failure> {
    let survey = Survey::take(client).await?;
    let mut rows: Vec<DiskRow> = survey.nodes.iter().flat_map(rows).collect();
    rows.sort_by(|a, b| (&a.node, a.volume, &a.half).cmp(&(&b.node, b.volume, &b.half)));
    let header = ["node", "volume", "half", "directory", "state", "replicas", "free", "scrubbed"];
    output.list(&header, &rows, |row| {
        vec![
            row.node.clone(),
            row.volume.to_string(),
            row.half.clone().unwrap_or_else(|| "-".to_owned()),
            row.directory.clone(),
            state(row),
            row.replicas.to_string(),
            free(row),
            row.last_scrub.as_ref().map_or_else(|| "never".to_owned(), ScrubRow::said),
        ]
    })?;
    Ok(())
}

fn free(row: &DiskRow) -> String {
    row.free_octets.map_or_else(|| "-".to_owned(), octets)
}

fn state(row: &DiskRow) -> String {
    let mut said = row.state.clone();
    if row.state == "resilvering" {
        said.push_str(&format!(" {}", progress(row.copied_records, row.records)));
    }
    if !row.reason.is_empty() {
        said.push_str(&format!(": {}", row.reason));
    }
    if row.full {
        said.push_str(", full");
    }
    let lost = row.lost.iter().map(|lost| (lost, "lost"));
    for (some, what) in lost.chain(row.unread.iter().map(|unread| (unread, "met damaged"))) {
        let example = some.example().map(|example| format!(" {example}")).unwrap_or_default();
        said.push_str(&format!(", {} {what}{example}", some.said()));
    }
    said
}

/// Never 100 % before the end: how many records there are is an estimate.
fn progress(copied: u64, records: u64) -> String {
    match copied.saturating_mul(100).checked_div(records) {
        Some(percent) => format!("{} %", percent.min(99)),
        None => format!("{copied} records"),
    }
}

fn rows(node: &SurveyedNode) -> Vec<DiskRow> {
    let volumes = node.status.iter().flat_map(|status| &status.volumes);
    volumes.flat_map(|volume| rows_of(&node.record.name, volume)).collect()
}

fn rows_of(node: &str, volume: &VolumeStatus) -> Vec<DiskRow> {
    let row = |half: Option<&HalfStatus>, directory: &str| DiskRow {
        node: node.to_owned(),
        volume: volume.number,
        half: half.map(|half| half.name.clone()),
        directory: directory.to_owned(),
        state: match half {
            _ if !volume.down_because.is_empty() => "down".to_owned(),
            Some(half) => half.state.clone(),
            None => "current".to_owned(),
        },
        reason: half.map_or(&volume.down_because, |half| &half.reason).clone(),
        replicas: volume.replicas,
        free_octets: match half {
            // Nobody looks at the disks of a volume that is not open.
            _ if !volume.down_because.is_empty() => None,
            Some(half) => half.free_octets,
            None => Some(volume.free_octets),
        },
        full: volume.full,
        copied_records: half.map_or(0, |half| half.copied_records),
        records: half.map_or(0, |half| half.records),
        damage_found: half.map_or(0, |half| half.damage_found),
        last_scrub: volume.last_scrub.as_ref().map(ScrubRow::new),
        lost: lost_of(volume),
        unread: unread_of(volume),
    };
    match volume.halves.is_empty() {
        true => volume.disks.iter().map(|disk| row(None, disk)).collect(),
        false => volume.halves.iter().map(|half| row(Some(half), &half.directory)).collect(),
    }
}

/// What an operator should know of a node's volumes, as `status` tells it.
pub fn problems(name: &str, volumes: &[VolumeStatus]) -> Vec<String> {
    let mut problems = Vec::new();
    for volume in volumes {
        let number = volume.number;
        if !volume.down_because.is_empty() {
            problems.push(format!("volume {number} of {name} is down: {}", volume.down_because));
        }
        for half in &volume.halves {
            let said = match half.state.as_str() {
                "current" => continue,
                "resilvering" => format!("is being resilvered, {}", progress(half.copied_records, half.records)),
                "stale" => format!("is not in use: {}", half.reason),
                other if half.reason.is_empty() => format!("is {other}"),
                other => format!("is {other}: {}", half.reason),
            };
            problems.push(format!("half {} of volume {number} of {name} {said}", half.name));
        }
        problems.extend(lost_of(volume).iter().map(|lost| {
            let (said, scrub) = (lost.said(), lost.scrub());
            format!(
                "volume {number} of {name} has no good copy of {said}: {scrub} names them, and clears this once they are \
                 mended or expunged"
            )
        }));
        problems.extend(unread_of(volume).iter().map(|unread| {
            let (said, scrub) = (unread.said(), unread.scrub());
            let example = unread.example().map(|example| format!(" {example}")).unwrap_or_default();
            format!(
                "reads of volume {number} of {name} have met damage in {said}{example}: {scrub} names what is lost, and clears \
                 this once all that is there can be read"
            )
        }));
    }
    problems
}

async fn change(client: &mut AdminClient, half: HalfArgs, change: Change, done: &str) -> Result<(), Failure> {
    let HalfArgs { node, volume, half, wait, output } = half;
    let survey = Survey::take(client).await?;
    let known = survey.nodes.iter().find(|known| known.record.name == node);
    let known = known.ok_or_else(|| Failure::Refused(format!("no node {node}")))?;
    let api = client.at(&known.record.address)?;
    let half = half.map(|half| half.to_string()).unwrap_or_default();
    match api.change_volume(ChangeVolumeRequest { volume, half, change: change.into() }).await {
        Ok(()) => {}
        Err(MailError::Unavailable | MailError::Deadline) => {
            return Err(Failure::Unreachable(format!("{node} does not answer")));
        }
        Err(error) => return Err(error.into()),
    }
    let mut lost = Vec::new();
    if wait {
        lost = until_whole(&api, (&node, volume), survey.view.cluster.replicas, output).await?;
    }
    let sentence = match wait {
        true => whole_again(&node, volume, &lost),
        false => format!("volume {volume} of {node}: {done}, see mailring volume list"),
    };
    let begun = Begun { node: &node, volume, waited: wait, lost };
    output.done(&begun, &sentence)?;
    if begun.lost.is_empty() { Ok(()) } else { Err(Failure::Told) }
}

fn whole_again(node: &str, volume: u32, lost: &[LostRow]) -> String {
    let but: Vec<String> = lost.iter().map(|lost| format!("{}: {} names them", lost.said(), lost.scrub())).collect();
    match but.is_empty() {
        true => format!("volume {volume} of {node} is whole again"),
        false => {
            let but = but.join("; ");
            format!("volume {volume} of {node} is whole again but for what has no good copy on it, {but}")
        }
    }
}

fn lost_for_good(shards: usize, node: &str) -> String {
    format!(
        "the volume is taken, but the replicas of {shards} shards on {node} are lost, and are not made anew from others: \
         put the old disks back, or restore from a backup"
    )
}

/// Waits until no half of a volume is made anew any more, nor any replica of its node, and tells how far it is. What the
/// volume has no good copy of then.
async fn until_whole(
    api: &GrpcNode,
    (node, volume): (&str, u32),
    replicas: u32,
    output: OutputArgs,
) -> Result<Vec<LostRow>, Failure> {
    let mut silent_looks = 0;
    loop {
        let Ok(status) = api.node_status().await else {
            silent_looks += 1;
            if silent_looks == SILENT_LOOKS_MAX {
                return Err(Failure::Unreachable(format!("{node} does not answer; the resilver may go on")));
            }
            sleep(LOOK).await;
            continue;
        };
        silent_looks = 0;
        let Some(volume) = status.volumes.iter().find(|found| found.number == volume) else {
            return Err(Failure::Refused(format!("{node} has no volume {volume}")));
        };
        if volume.halves.is_empty() && !status.lost_shards.is_empty() {
            let lost = status.lost_shards.len();
            if replicas < REPLICAS_TO_COPY_FROM {
                return Err(Failure::Refused(lost_for_good(lost, node)));
            }
            if !output.json {
                eprintln!("{lost} replicas are to be made anew from other nodes");
            }
            sleep(LOOK).await;
            continue;
        }
        if let Some(half) = volume.halves.iter().find(|half| half.state == "stale") {
            return Err(Failure::Refused(format!("half {} is not in use: {}", half.name, half.reason)));
        }
        let Some(half) = volume.halves.iter().find(|half| half.state != "current") else {
            return Ok(lost_of(volume));
        };
        if !output.json {
            eprintln!("half {}: {}", half.name, progress(half.copied_records, half.records));
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use proto::wire::{HalfStatus, LastScrub, LostRecords, VolumeStatus};

    use super::{DIRECTORY, ScrubRow, free, lost_of, problems, progress, rows_of, state, whole_again};

    fn half(name: &str, state: &str, reason: &str) -> HalfStatus {
        HalfStatus { name: name.to_owned(), state: state.to_owned(), reason: reason.to_owned(), ..Default::default() }
    }

    #[test]
    fn a_lost_half_is_told_with_its_reason_and_a_whole_mirror_is_not() {
        let mut volume = VolumeStatus { number: 1, ..Default::default() };
        volume.halves = vec![half("a", "current", ""), half("b", "stale", "its disk is missing")];
        assert_eq!(problems("n1", &[volume.clone()]), ["half b of volume 1 of n1 is not in use: its disk is missing"]);
        let rows = rows_of("n1", &volume);
        assert_eq!(rows.iter().map(state).collect::<Vec<_>>(), ["current", "stale: its disk is missing"]);
        volume.halves[1] = HalfStatus { copied_records: 50, records: 200, ..half("b", "resilvering", "") };
        assert_eq!(problems("n1", &[volume.clone()]), ["half b of volume 1 of n1 is being resilvered, 25 %"]);
        volume.halves[1] = half("b", "current", "");
        assert!(problems("n1", &[volume]).is_empty());
    }

    #[test]
    fn each_half_has_the_room_of_its_own_disk_and_one_that_cannot_be_asked_none() {
        let mut volume = VolumeStatus { number: 1, free_octets: 77, ..Default::default() };
        let free_octets = Some(5);
        volume.halves = vec![HalfStatus { free_octets, ..half("a", "current", "") }, half("b", "stale", "gone")];
        assert_eq!(rows_of("n1", &volume).iter().map(free).collect::<Vec<_>>(), ["5 B", "-"]);
    }

    #[test]
    fn a_volume_of_one_disk_has_a_row_and_says_why_it_is_down() {
        let volume = VolumeStatus { number: 2, disks: vec!["/d".to_owned()], ..Default::default() };
        assert_eq!(rows_of("n1", &volume).iter().map(state).collect::<Vec<_>>(), ["current"]);
        assert_eq!(rows_of("n1", &volume).iter().map(free).collect::<Vec<_>>(), ["0 B"]);
        let down = VolumeStatus { down_because: "gone".to_owned(), ..volume };
        assert_eq!(rows_of("n1", &down).iter().map(state).collect::<Vec<_>>(), ["down: gone"]);
        assert_eq!(rows_of("n1", &down).iter().map(free).collect::<Vec<_>>(), ["-"]);
    }

    #[test]
    fn the_last_scrub_is_told_with_when_it_ended() {
        let last = LastScrub { unix_s: 1_764_115_200, records: 5, ..Default::default() };
        assert_eq!(ScrubRow::new(&last).said(), "2025-11-26T00:00:00Z: nothing wrong");
        let some = LastScrub { findings: 3, ..last };
        assert_eq!(ScrubRow::new(&some).said(), "2025-11-26T00:00:00Z: 3 findings");
        let lost = LastScrub { findings: 3, lost: 1, ..last };
        assert_eq!(ScrubRow::new(&lost).said(), "2025-11-26T00:00:00Z: 3 findings, 1 record lost, 0 undecided");
    }

    #[test]
    fn progress_is_an_estimate_that_never_says_done() {
        assert_eq!((progress(300, 200), progress(7, 0)), ("99 %".to_owned(), "7 records".to_owned()));
    }

    #[test]
    fn lost_records_are_a_problem_and_a_volume_without_them_is_not_said_to_be_whole() {
        let mut volume = VolumeStatus { number: 1, disks: vec!["/d".to_owned()], ..Default::default() };
        assert_eq!(whole_again("n1", 1, &lost_of(&volume)), "volume 1 of n1 is whole again");
        let lost = |group, records, key: &str| LostRecords { group, records, keys: vec![key.to_owned()] };
        volume.lost =
            vec![lost(None, 1, "meta"), lost(Some(7), 2, "blob/7/9"), lost(Some(DIRECTORY), 1, "log/4294967295/3")];
        let told = problems("n1", &[volume.clone()]);
        assert_eq!(told.len(), 3);
        let of_shard = "volume 1 of n1 has no good copy of 2 records of shard 7: ";
        assert!(told[1].starts_with(of_shard) && told[1].contains("mailring scrub --shard 7 "), "{told:?}");
        assert!(told[0].contains("1 record of no shard alone") && told[2].contains("1 record of the directory"));
        let rows = rows_of("n1", &volume);
        let said = state(&rows[0]);
        assert!(said.contains(", 2 records of shard 7 lost (blob/7/9 and others), "), "{said}");
        let unread = VolumeStatus { unread: volume.lost.split_off(1), ..volume.clone() };
        let told = problems("n1", std::slice::from_ref(&unread));
        let of_shard = "reads of volume 1 of n1 have met damage in 2 records of shard 7 (blob/7/9 and others): mailring scrub \
                        --shard 7 ";
        assert!(told.len() == 3 && told[1].starts_with(of_shard), "{told:?}");
        assert!(told[0].contains("no good copy of 1 record of no shard alone") && told[2].contains("the directory"));
        let said = state(&rows_of("n1", &unread)[0]);
        assert!(
            said.contains(", 1 record of no shard alone lost (meta), 2 records of shard 7 met damaged (blob"),
            "{said}"
        );
        let said = whole_again("n1", 1, &rows[0].lost);
        assert!(said.contains("whole again but") && said.contains("mailring scrub --shard 7 names them"), "{said}");
    }
}
