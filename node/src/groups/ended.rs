//! Replicas whose Raft core has ended by itself, for a reason that is not theirs for good: a storage error that has passed,
//! an install that failed, a panic within openraft. Each is begun anew from its disk, after a wait that doubles while that
//! is of no use. Damage and failed volumes are seen to elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use storage::{GroupId, StorageError};

use super::{Groups, blocking, unreadable};
use crate::directory_group::DirectoryApplier;
use crate::group::Group;
use crate::raft::damage_in;
use crate::shard::Shard;

/// From the first end to the next beginning: what was under way has ended by then.
const WAIT_FIRST: Duration = Duration::from_secs(1);
/// Reading a replica's log again this often costs nothing, and an operator who has mended something does not wait longer.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// After so long the next end is a new story.
const WELL: Duration = Duration::from_secs(600);
/// Begun anew in one round of the reconciler: a reason that all groups share has hundreds of them end at once.
const BEGUN_MAX: usize = 16;

/// When each group that has ended begins anew. Knows nothing of groups but their numbers.
#[derive(Default)]
pub(super) struct Ends(BTreeMap<GroupId, End>);

struct End {
    /// From `since` on.
    wait: Duration,
    /// When it ended, or last began.
    since: Instant,
    runs: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// It has just ended.
    Tell(Duration),
    Wait,
    Begin,
}

impl Ends {
    /// What is to be done about a group that does not run.
    fn next(&mut self, group: GroupId, now: Instant) -> Next {
        let Some(end) = self.0.get_mut(&group) else {
            self.0.insert(group, End { wait: WAIT_FIRST, since: now, runs: false });
            return Next::Tell(WAIT_FIRST);
        };
        if end.runs {
            *end = End { wait: end.wait.saturating_mul(2).min(WAIT_MAX), since: now, runs: false };
            return Next::Tell(end.wait);
        }
        if now.duration_since(end.since) < end.wait { Next::Wait } else { Next::Begin }
    }

    /// It has begun anew, or could not.
    fn note(&mut self, group: GroupId, runs: bool, now: Instant) {
        let Some(end) = self.0.get_mut(&group) else { return };
        (end.since, end.runs) = (now, runs);
        if !runs {
            end.wait = end.wait.saturating_mul(2).min(WAIT_MAX);
        }
    }

    /// Forgets those that have run well; and those that are seen to elsewhere, or have gone.
    fn forget(&mut self, is_ended: impl Fn(GroupId) -> bool, now: Instant) {
        let is_well = |end: &End| end.runs && now.duration_since(end.since) >= WELL;
        self.0.retain(|group, end| !is_well(end) && (end.runs || is_ended(*group)));
    }
}

impl Groups {
    /// Begins anew what has ended by itself and is due.
    pub async fn begin_ended(&self, now: Instant) {
        let directory = self.directory();
        let mut ended: Vec<(Option<Arc<Shard>>, GroupId, String)> = Vec::new();
        ended.extend(directory.ended().map(|reason| (None, directory.id, reason)));
        for shard in self.shards() {
            // What a volume that has failed holds is given up.
            let is_up = shard.volume.volume().is_some_and(|volume| volume.check().is_ok());
            let reason = shard.group.ended().filter(|_| is_up);
            ended.extend(reason.map(|reason| (Some(shard.clone()), shard.group.id, reason)));
        }
        self.ends.lock().forget(|group| ended.iter().any(|(_, id, _)| *id == group), now);
        let mut begun = 0;
        for (shard, group, reason) in ended {
            // A disk that stalls would have the reconciler wait, who is to notice that it has failed.
            if self.stopping.load(Ordering::Relaxed) || self.stall.is_on() {
                return;
            }
            let next = self.ends.lock().next(group, now);
            match next {
                Next::Tell(wait) => {
                    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                    tracing::warn!(group = group.0, reason, wait_ms, "group has ended here, begins anew");
                }
                Next::Begin if begun < BEGUN_MAX => {
                    begun += 1;
                    let result = match &shard {
                        Some(shard) => self.begin_anew(shard).await,
                        None => self.begin_directory_anew().await,
                    };
                    self.ends.lock().note(group, result.is_ok(), now);
                    match result {
                        Ok(()) => tracing::info!(group = group.0, "group has begun anew"),
                        Err(error) => tracing::error!(group = group.0, %error, "group does not begin anew"),
                    }
                }
                Next::Begin | Next::Wait => {}
            }
        }
    }

    /// Until the new replica runs, the old one stands in its place and says that it has ended.
    async fn begin_anew(&self, ended: &Arc<Shard>) -> io::Result<()> {
        let _starting = self.starting.lock().await;
        // It may have been dropped, or begun, meanwhile.
        let is_there = self.shards.read().get(&ended.id).is_some_and(|shard| Arc::ptr_eq(shard, ended));
        let Some(opened) = ended.volume.volume().filter(|_| is_there) else { return Ok(()) };
        drop(ended.group.raft.shutdown().await);
        // What it has set going may still write: what begins now must not be a second one to do so.
        let group = ended.group.id;
        blocking(move || opened.let_go(group)).await?;
        if self.start_unless_damaged(ended.id, &ended.volume).await?.is_none() {
            self.shards.write().remove(&ended.id);
        }
        Ok(())
    }

    async fn begin_directory_anew(&self) -> io::Result<()> {
        let _starting = self.starting.lock().await;
        drop(self.directory().raft.shutdown().await);
        let first = self.volumes.first().map_err(io::Error::other)?;
        let state = self.directory_state.clone();
        let reading = blocking(move || {
            first.let_go(GroupId::DIRECTORY)?;
            let storage = first.group(GroupId::DIRECTORY)?;
            // Memory may be ahead of the disk, where a write has failed.
            state.load_from(&storage)?;
            Ok::<_, StorageError>(storage)
        });
        let storage = reading.await?;
        let applier = Arc::new(DirectoryApplier { state: self.directory_state.clone(), storage: storage.clone() });
        let disk = self.volumes.list().first().map(|volume| volume.shown()).unwrap_or_default();
        let group = Group::start(storage, applier, &self.context).await;
        let group = group.map_err(|e| damage_in(&e).map_or(e, |damage| unreadable(&disk, damage)))?;
        *self.directory.write() = group;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use storage::GroupId;

    use super::{Ends, Next, WAIT_FIRST, WAIT_MAX, WELL};

    const GROUP: GroupId = GroupId(7);

    #[test]
    fn waits_double_up_to_a_bound_until_it_has_run_well() {
        let (mut ends, mut now) = (Ends::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..12 {
            let Next::Tell(wait) = ends.next(GROUP, now) else { panic!("told once an end") };
            waits.push(wait);
            assert_eq!(ends.next(GROUP, now + wait - Duration::from_millis(1)), Next::Wait);
            now += wait;
            assert_eq!(ends.next(GROUP, now), Next::Begin);
            ends.note(GROUP, true, now);
            ends.forget(|_| false, now);
        }
        assert_eq!(waits[..3], [WAIT_FIRST, WAIT_FIRST * 2, WAIT_FIRST * 4]);
        assert_eq!(waits[11], WAIT_MAX);
        now += WELL;
        ends.forget(|_| true, now);
        assert_eq!(ends.next(GROUP, now), Next::Tell(WAIT_FIRST));
    }

    #[test]
    fn one_that_cannot_begin_is_told_of_once_and_tried_less_and_less() {
        let (mut ends, mut now) = (Ends::default(), Instant::now());
        assert_eq!(ends.next(GROUP, now), Next::Tell(WAIT_FIRST));
        let mut wait = WAIT_FIRST;
        for _ in 0..20 {
            now += wait;
            assert_eq!(ends.next(GROUP, now), Next::Begin);
            ends.note(GROUP, false, now);
            ends.forget(|_| true, now);
            wait = (wait * 2).min(WAIT_MAX);
            assert_eq!(ends.next(GROUP, now + wait - Duration::from_millis(1)), Next::Wait);
        }
        // It is seen to elsewhere.
        ends.forget(|_| false, now);
        assert!(ends.0.is_empty());
    }
}
