//! Scrub: reads what nobody reads, on every volume and of every replica, before the last good copy goes too. What is wrong
//! within a mirror is mended there ([`storage::Volume::scrub`]); a replica that differs from most, or that cannot be read,
//! is made anew from the others (`membership.rs`). So is one in which somebody's read meets damage ([`leave`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use openraft::ChangeMembers;
use proto::wire::scrub_event::Event;
use proto::wire::{
    CompareShardReply, CompareShardRequest, ComparedReplica, DigestShardReply, DigestShardRequest, ScrubEvent,
    ScrubFinding, ScrubProgress, ScrubReport, ScrubRequest, UnmadeHalf,
};
use proto::{DirectoryStore, ItemStream};
use storage::{Command, Finding, GroupId, ScrubOptions, StorageError, Verdict, Volume};
use tokio::sync::{OwnedMutexGuard, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use types::{MailError, MailResult, NodeId, ShardId};

use crate::Node;
use crate::membership;
use crate::shard::{Shard, unix_ms};
use crate::volumes::NodeVolume;

/// Between two tellings of how far a scrub is.
const TELL: Duration = Duration::from_millis(500);
/// A node that is late with its scrub lets its shards find their leaders first, and other nodes begin.
const START_MAX: Duration = Duration::from_secs(600);
/// How long the replica that is to lead is asked whether it does.
const HEIR_MAX: Duration = Duration::from_secs(15);
/// From the proposal of a membership to its being applied.
const REMOVE_MAX: Duration = Duration::from_secs(15);
/// From asking a node to begin its replica anew to its answer.
const BEGIN_MAX: Duration = Duration::from_secs(30);
/// How long a leader is waited for that gives its place to another one.
const LEAVE_MAX: Duration = Duration::from_secs(8);
/// What is told of a body that no message has: nobody must act.
const UNNEEDED: &str = "unneeded";
/// A caller that does not read this many events stops the scrub until it does.
const EVENTS_QUEUED_MAX: usize = 16;

/// Reads the volumes one after the other. Dropping the stream ends it.
pub fn volumes(node: &Node, request: ScrubRequest) -> MailResult<ItemStream<ScrubEvent>> {
    let alone = node.scrubbing().try_lock_owned().map_err(|_| busy())?;
    let options = ScrubOptions {
        group: request.shard.map(GroupId),
        bytes_per_s: node.settings().scrub_octets_per_s,
        applied: node.groups().all().iter().map(|group| (group.id, group.log_extent().applied)).collect(),
        ..ScrubOptions::default()
    };
    let (sender, receiver) = mpsc::channel(EVENTS_QUEUED_MAX);
    tokio::spawn(read_volumes(node.groups().volumes.list().to_vec(), options, sender, alone));
    Ok(ReceiverStream::new(receiver).map(Ok).boxed())
}

fn busy() -> MailError {
    MailError::CannotDo("a scrub of this node is under way already".to_owned())
}

async fn read_volumes(
    volumes: Vec<Arc<NodeVolume>>,
    options: ScrubOptions,
    events: mpsc::Sender<ScrubEvent>,
    _alone: OwnedMutexGuard<()>,
) {
    for volume in volumes {
        let report = read_volume(&volume, options.clone(), &events).await;
        let event = ScrubEvent { event: Some(Event::Report(report)) };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

async fn read_volume(volume: &NodeVolume, options: ScrubOptions, events: &mpsc::Sender<ScrubEvent>) -> ScrubReport {
    let number = volume.number;
    let failed = |error: String| ScrubReport { volume: number, error, ..Default::default() };
    let Some(opened) = volume.volume() else { return failed("the volume is down".to_owned()) };
    let progress = Arc::new(storage::ScrubProgress::default());
    let told = progress.clone();
    let mut reading = tokio::task::spawn_blocking(move || {
        let report = opened.scrub(&options, &told)?;
        if report.complete {
            opened.note_scrubbed(options.group, &report, unix_s())?;
        }
        Ok::<_, StorageError>(report)
    });
    let result = loop {
        tokio::select! {
            result = &mut reading => break result,
            () = tokio::time::sleep(TELL) => {
                let event = Event::Progress(ScrubProgress {
                    volume: number,
                    records: progress.records(),
                    records_estimated: progress.records_estimated(),
                    octets: progress.bytes(),
                    findings: progress.findings(),
                });
                if events.send(ScrubEvent { event: Some(event) }).await.is_err() {
                    progress.cancel();
                }
            }
        }
    };
    let report = match result {
        Ok(Ok(report)) => report,
        Ok(Err(error)) => return failed(error.to_string()),
        Err(error) => return failed(error.to_string()),
    };
    ScrubReport {
        volume: number,
        complete: report.complete,
        records: report.records,
        octets: report.bytes,
        lost: report.lost,
        differing: report.differing,
        rewritten: report.rewritten,
        resilvers: report.resilvers.iter().map(ToString::to_string).collect(),
        unmade: report.unmade.into_iter().map(|(half, reason)| UnmadeHalf { half: half.to_string(), reason }).collect(),
        findings: report.findings.into_iter().map(finding).collect(),
        findings_beyond: report.findings_beyond,
        error: String::new(),
    }
}

fn finding(found: Finding) -> ScrubFinding {
    ScrubFinding {
        verdict: match found.verdict {
            Verdict::Damaged => "damaged",
            Verdict::Missing => "missing",
            Verdict::Differs => "differs",
            Verdict::Lost => "lost",
            Verdict::Unneeded => UNNEEDED,
        }
        .to_owned(),
        key: match found.to {
            Some(to) => format!("{} up to {to}", found.key),
            None => found.key,
        },
        half: found.half.map(|half| half.to_string()).unwrap_or_default(),
        shard: found.group.map(|group| group.0),
        reason: found.reason,
        rewritten: found.rewritten,
    }
}

/// On the shard's leader: what each replica holds when it has applied one entry, and repair of those that are wrong.
pub async fn compare(node: &Node, id: ShardId) -> MailResult<CompareShardReply> {
    let shard = node.groups().shard(id)?;
    let _stays = Stays::new(&shard)?;
    let (mut voters, mut digests) = digests(node, &shard).await?;
    if digests.iter().any(|digest| matches!(digest, Err(MailError::Corrupt { .. }))) {
        // By now a mirror reads from its other half, which may be whole.
        (voters, digests) = self::digests(node, &shard).await?;
    }
    let verdicts = judge(&digests);
    let mut replicas = Vec::new();
    for ((voter, digest), verdict) in voters.iter().zip(digests).zip(&verdicts) {
        let mut replica = ComparedReplica { node: *voter, verdict: verdict.name().to_owned(), ..Default::default() };
        match digest {
            Ok(digest) => (replica.digest, replica.octets) = (digest.digest, digest.octets),
            Err(error) => replica.error = error.to_string(),
        }
        if *verdict == Judged::Bad {
            replica.repair = repair(node, &shard, NodeId(*voter), (&voters, &verdicts)).await;
            tracing::error!(
                shard = id.0,
                node = voter,
                repair = replica.repair,
                error = replica.error,
                "replica is wrong"
            );
        }
        replicas.push(replica);
    }
    Ok(CompareShardReply { replicas })
}

/// While it lives, leadership of the shard is not moved to where it is preferred.
struct Stays(Arc<Shard>);

impl Stays {
    /// One comparison at a time: a second one would let go of the state that the first has marked, and might have another
    /// replica made anew before the first one's is back.
    fn new(shard: &Arc<Shard>) -> MailResult<Stays> {
        match shard.is_compared.swap(true, Ordering::Relaxed) {
            false => Ok(Stays(shard.clone())),
            true => Err(MailError::CannotDo(format!("shard {} is being compared already", shard.id))),
        }
    }
}

impl Drop for Stays {
    fn drop(&mut self) {
        self.0.is_compared.store(false, Ordering::Relaxed);
    }
}

/// Of each voter, at one entry.
async fn digests(node: &Node, shard: &Shard) -> MailResult<(Vec<u64>, Vec<MailResult<DigestShardReply>>)> {
    let id = shard.id;
    let mark = random_mark()?;
    shard.propose(&Command::Mark { mark }, None).await?;
    let voters: Vec<u64> = shard.group.metrics().membership_config.membership().voter_ids().collect();
    let request = DigestShardRequest { shard: id.0, mark: Bytes::copy_from_slice(&mark.to_be_bytes()) };
    let digests = join_all(voters.iter().map(async |voter| {
        if *voter == node.id().0 {
            return node.digest_shard(request.clone()).await;
        }
        let peer = membership::at(node, NodeId(*voter)).ok_or(MailError::Unavailable)?;
        peer.digest_shard(request.clone()).await
    }))
    .await;
    Ok((voters, digests))
}

/// This node's own replica is wrong, and leads: another one leads first, and sees to it.
async fn leave_to(node: &Node, shard: &Arc<Shard>, heir: NodeId) -> String {
    if let Err(error) = shard.group.raft.trigger().transfer_leader(heir.0).await {
        return format!("nothing: {error}");
    }
    seen_to_by(node, shard.id, heir).await
}

/// What the one that is to lead a shard does about this node's replica of it.
async fn seen_to_by(node: &Node, shard: ShardId, heir: NodeId) -> String {
    let Some(peer) = membership::at(node, heir) else { return "nothing: its heir has no address".to_owned() };
    let deadline = Instant::now() + HEIR_MAX;
    loop {
        match peer.compare_shard(CompareShardRequest { shard: shard.0 }).await {
            Ok(reply) => {
                let own = reply.replicas.into_iter().find(|replica| replica.node == node.id().0);
                return own.map_or_else(|| "nothing: it is no voter any more".to_owned(), |own| own.repair);
            }
            Err(error) if Instant::now() >= deadline => return format!("nothing: {error}"),
            Err(_) => tokio::time::sleep(TELL).await,
        }
    }
}

/// A read has met damage in this node's replica, with no good copy on its disks: another replica leads when this returns
/// true, and sees to this one. False where there is none that could, but for those that are known to have no good copy
/// either.
pub async fn leave(node: &Node, id: ShardId, tried: &[NodeId]) -> bool {
    let Ok(shard) = node.groups().shard(id) else { return true };
    // A second reader waits for what the first one does.
    let mut seeing_to = shard.seen_to.lock().await;
    if !shard.group.leads() {
        return true;
    }
    let is_fit = |other| !tried.contains(&other) && shard.group.has_caught_up(other);
    let Some(heir) = shard.group.heir(is_fit) else { return false };
    shard.group.hand_over(heir).await;
    if !shard.group.ends_to_lead(LEAVE_MAX).await {
        return false;
    }
    if seeing_to.as_ref().is_none_or(JoinHandle::is_finished) {
        let node = node.clone();
        *seeing_to = Some(tokio::spawn(async move {
            let repair = seen_to_by(&node, id, heir).await;
            tracing::error!(shard = id.0, leader = heir.0, repair, "replica is damaged");
        }));
    }
    true
}

fn random_mark() -> MailResult<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| MailError::Internal(e.to_string()))?;
    Ok(u128::from_be_bytes(bytes))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Judged {
    Good,
    Bad,
    /// It did not answer: it may be down, or behind.
    Unknown,
    /// There is no content that two replicas have and more than any other.
    Undecided,
}

impl Judged {
    fn name(self) -> &'static str {
        match self {
            Judged::Good => "good",
            Judged::Bad => "bad",
            Judged::Unknown => "unknown",
            Judged::Undecided => "undecided",
        }
    }
}

/// Good is what at least two replicas have, and more than have anything else. A replica that cannot be read is bad; one
/// alone that can be is good: nothing speaks against it.
fn judge(digests: &[MailResult<DigestShardReply>]) -> Vec<Judged> {
    let mut counts: HashMap<&Bytes, usize> = HashMap::new();
    for digest in digests.iter().flatten() {
        *counts.entry(&digest.digest).or_default() += 1;
    }
    let mut sorted: Vec<(usize, &Bytes)> = counts.iter().map(|(digest, count)| (*count, *digest)).collect();
    sorted.sort_by(|a, b| b.cmp(a));
    let good = match sorted[..] {
        [(_, only)] => Some(only),
        [(most, digest), (next, _), ..] if most >= 2 && most > next => Some(digest),
        _ => None,
    };
    let verdict = |digest: &MailResult<DigestShardReply>| match (digest, good) {
        (Ok(digest), Some(good)) if digest.digest == *good => Judged::Good,
        (Ok(_), Some(_)) | (Err(MailError::Corrupt { .. }), _) => Judged::Bad,
        (Ok(_), None) => Judged::Undecided,
        (Err(_), _) => Judged::Unknown,
    };
    digests.iter().map(verdict).collect()
}

/// Takes a wrong replica out of the group, and has it begun anew. Says what was done.
async fn repair(node: &Node, shard: &Arc<Shard>, wrong: NodeId, known: (&[u64], &[Judged])) -> String {
    let good: Vec<u64> =
        known.0.iter().zip(known.1).filter(|(_, verdict)| **verdict == Judged::Good).map(|(node, _)| *node).collect();
    if good.len() < 2 {
        return "nothing: fewer than two good replicas would be left".to_owned();
    }
    let raft = &shard.group.raft;
    if wrong == node.id() {
        return match good.first() {
            Some(heir) => leave_to(node, shard, NodeId(*heir)).await,
            None => "nothing: no good replica".to_owned(),
        };
    }
    // Until it has begun anew nobody is to bring it in again as it is.
    let _alone = shard.membership.lock().await;
    // What is committed without it is on a majority of the others before its copy goes.
    let removed = raft.change_membership(ChangeMembers::RemoveVoters([wrong.0].into()), false);
    match tokio::time::timeout(REMOVE_MAX, removed).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return format!("nothing: {error}"),
        Err(_) => return "nothing: no majority answers".to_owned(),
    }
    match tokio::time::timeout(BEGIN_MAX, membership::begin_at(node, shard, wrong, true)).await {
        Ok(Ok(())) => "made anew from the others".to_owned(),
        Ok(Err(error)) => format!("nothing: {error}"),
        Err(_) => "nothing: its node does not answer".to_owned(),
    }
}

/// Scrubs everything now and then: this node's volumes, then the shards that it leads.
pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    let interval = Duration::from_secs(node.settings().scrub_interval_s);
    if interval.is_zero() {
        return;
    }
    // Nodes that were all started at once, and are all late, do not begin at once.
    let mut least = (interval / 16).min(START_MAX).mul_f64(share());
    loop {
        let wait = until_due(&node, interval).await.max(least);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        // Somebody may have asked for a scrub meanwhile.
        if !until_due(&node, interval).await.is_zero() {
            continue;
        }
        tokio::select! {
            () = once(&node) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        // What could not be read, or only in part, is not tried again at once.
        least = interval / 8;
    }
}

/// How long until a volume of this node is due.
async fn until_due(node: &Node, interval: Duration) -> Duration {
    let volumes: Vec<Volume> = node.groups().volumes.list().iter().filter_map(|volume| volume.volume()).collect();
    let looked = tokio::task::spawn_blocking(move || {
        let now = unix_s();
        volumes.iter().map(|volume| left(interval, unscrubbed_since(volume, interval, now), now)).min()
    });
    // Without a volume there is nothing to scrub.
    looked.await.ok().flatten().unwrap_or(interval)
}

/// Not all volumes and nodes become due on one day, though they are all made on one.
fn unscrubbed_since(volume: &Volume, interval: Duration, now_unix_s: i64) -> i64 {
    if let Some(since) = volume.scrub_history().since_unix_s {
        return since;
    }
    let since = now_unix_s.saturating_sub_unsigned(interval.mul_f64(share()).as_secs());
    if let Err(error) = volume.note_unscrubbed(since) {
        tracing::warn!(%error, "from when on a volume is unscrubbed cannot be written");
    }
    since
}

/// Of an interval that began then. All of it where the clock says that it has not begun.
fn left(interval: Duration, since_unix_s: i64, now_unix_s: i64) -> Duration {
    let passed = Duration::from_secs(now_unix_s.saturating_sub(since_unix_s).max(0).unsigned_abs());
    interval.saturating_sub(passed)
}

fn unix_s() -> i64 {
    unix_ms().div_euclid(1000)
}

/// From 0 to 1.
fn share() -> f64 {
    getrandom::u64().map_or(0.5, |random| random as f64 / u64::MAX as f64)
}

async fn once(node: &Node) {
    let mut events = match volumes(node, ScrubRequest { shard: None }) {
        Ok(events) => events,
        // Somebody has asked for one.
        Err(_) => return,
    };
    while let Some(event) = events.next().await {
        let Ok(ScrubEvent { event: Some(Event::Report(report)) }) = event else { continue };
        let ScrubReport { volume, records, octets, lost, differing, rewritten, findings, error, .. } = report;
        if !error.is_empty() {
            tracing::error!(volume, error, "volume could not be scrubbed");
        }
        for found in &findings {
            let ScrubFinding { verdict, key, half, shard, reason, rewritten } = found;
            match verdict.as_str() {
                UNNEEDED => tracing::info!(volume, key, shard, reason, "scrub found damage that costs no message"),
                _ => tracing::error!(volume, verdict, key, half, shard, reason, rewritten, "scrub found damage"),
            }
        }
        tracing::info!(volume, records, octets, lost, differing, rewritten, "volume scrubbed");
    }
    for shard in node.groups().shards() {
        if shard.group.leads()
            && let Err(error) = compare(node, shard.id).await
        {
            tracing::warn!(shard = shard.id.0, %error, "replicas could not be compared");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use proto::wire::DigestShardReply;
    use types::{MailError, MailResult};

    use super::{Judged, judge, left};

    fn holds(what: &'static str) -> MailResult<DigestShardReply> {
        Ok(DigestShardReply { digest: Bytes::from_static(what.as_bytes()), ..Default::default() })
    }

    #[test]
    fn the_time_to_a_scrub_counts_from_the_last_one_and_not_from_the_start() {
        let interval = Duration::from_secs(100);
        let left = |since: i64, now: i64| left(interval, since, now).as_secs();
        assert_eq!([left(1000, 1000), left(1000, 1040), left(1000, 1100), left(1000, 9000)], [100, 60, 0, 0]);
        assert_eq!(left(1000, 500), 100, "a clock that was set back makes nobody wait for longer than an interval");
        assert_eq!(left(i64::MIN, i64::MAX), 0);
    }

    #[test]
    fn what_most_have_is_good_and_nothing_is_good_without_a_second_opinion() {
        use Judged::{Bad, Good, Undecided, Unknown};
        let corrupt = || Err(MailError::Corrupt { key: "k".to_owned() });
        assert_eq!(judge(&[holds("a"), holds("a"), holds("a")]), [Good, Good, Good]);
        assert_eq!(judge(&[holds("a"), holds("b"), holds("a")]), [Good, Bad, Good]);
        assert_eq!(judge(&[holds("a"), holds("b"), holds("c")]), [Undecided, Undecided, Undecided]);
        assert_eq!(judge(&[holds("a"), holds("b")]), [Undecided, Undecided]);
        assert_eq!(judge(&[corrupt(), holds("a"), holds("a")]), [Bad, Good, Good]);
        assert_eq!(judge(&[holds("a"), Err(MailError::Unavailable), holds("a")]), [Good, Unknown, Good]);
        assert_eq!(judge(&[holds("a")]), [Good]);
        assert_eq!(judge(&[corrupt()]), [Bad]);
        assert_eq!(judge(&[holds("a"), holds("a"), holds("b"), holds("b")]), [Undecided; 4]);
    }
}
