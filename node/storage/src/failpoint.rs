//! The steps of a move of a shard, and of one of an account, at which a test can stop a process, to kill it there, cut its
//! disks' power, or kill another meanwhile (`move_steps.rs` and `account_move_steps.rs` of `cluster-tests/tests`). The feature `failpoints` compiles them in; without it [`reach`] is
//! nothing, and nothing is left of them.
//!
//! The environment variable MAILRING_FAILPOINTS names a directory that the processes of a cluster share. A process that
//! comes by a point notes that in the file `reached`. If there is a file `POINT-GROUP`, or `POINT-GROUP-PID` for it alone,
//! it stops with all its threads (SIGSTOP) before it does anything else, and the file is then called `held-PID`. The
//! process goes on once that is gone and it gets SIGCONT.

#[cfg(not(feature = "failpoints"))]
use crate::keys::GroupId;

macro_rules! failpoints {
    ($(#[$of:meta])* $name:ident, $($(#[$doc:meta])* $point:ident,)*) => {
        $(#[$of])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name { $($(#[$doc])* $point,)* }

        impl $name {
            pub const ALL: &[$name] = &[$($name::$point,)*];
        }
    };
}

failpoints! {
    /// In the order in which the move of a shard comes by them.
    Failpoint,

    // The directory's leader.
    /// The move is in the plan, by hand.
    Planned,
    /// It is the shard's turn; the directory does not say so yet.
    TurnChosen,
    /// The directory wants the shard elsewhere.
    TurnGiven,

    // The shard's leader.
    /// About to tell the target that it may begin.
    BeginAsked,
    BeginAnswered,
    /// About to take the target in as a learner.
    LearnerProposed,
    LearnerAdded,
    SnapshotOpened,
    /// The first block has gone.
    SnapshotSent,
    /// The learner has caught up; it is to vote.
    ChangeProposed,
    Changed,
    /// About to end a change that a leader before this one has left half done.
    SettleProposed,
    Settled,
    /// About to take a learner out that is not wanted any more.
    RemoveProposed,
    Removed,
    /// This leader is to go; another is to lead.
    HandOverAsked,
    HandedOver,

    // The target.
    BeginReceived,
    /// Empty, without its votes, and recorded as being nowhere.
    BeginOpened,
    /// On disk with its votes, and still recorded as being nowhere.
    BegunOnDisk,
    /// Recorded; nothing runs yet.
    BegunRecorded,
    BegunStarted,
    /// A snapshot is announced on disk.
    SnapshotAnnounced,
    /// The first block is in the spool.
    SnapshotSpooled,
    /// All blocks are.
    SnapshotReceived,
    /// Some of it is in the database, beside the old state.
    SnapshotWritten,
    /// All of it is; the old state still counts.
    SnapshotFlipping,
    SnapshotInstalled,

    // Every member of the group.
    /// The membership with the learner is in the log, synced or not.
    LearnerAppended,
    LearnerApplied,
    /// The same of the membership in which the old and the new voters have a say.
    JointAppended,
    JointApplied,
    /// And of the one with neither the old voter nor a learner.
    FinalAppended,
    FinalApplied,

    // The directory's leader.
    /// The group is as wanted; the directory does not say so yet.
    Arrived,
    Ended,

    // The source.
    /// The group's leader says that it is no member.
    DropTold,
    /// The replica is stopped; its leader is to be asked again.
    DropStopped,
    DropConfirmed,
    /// It is recorded as being on no volume; all that it has is still there.
    HomeForgotten,
    Dropped,
}

failpoints! {
    /// In the order in which the move of an account comes by them: those of the leader of the shard that it leaves, and of the
    /// directory's, have the group that it leaves, those of the leader of the shard that it goes to have that.
    AccountFailpoint,

    // The leader of the shard that it goes to.
    /// It may come here; nothing has.
    ComingNoted,
    /// What there was when the first pass began has come.
    PassBrought,
    FreezeAsked,
    // The leader of the shard that it leaves.
    FreezeReceived,
    AccountFrozen,
    // The leader of the shard that it goes to.
    FreezeAnswered,
    LastPassBrought,
    /// All has come, and nobody is served.
    AllBrought,
    // The directory's leader.
    SwitchProposed,
    SwitchCommitted,
    // The leader of the shard that it goes to.
    SwitchAnswered,
    /// It is served here.
    Admitted,
    // The leader of the shard that it leaves.
    LeaveReceived,
    /// Some of it is dropped, or all.
    LeaveTaken,
    // The leader of the shard that it goes to.
    LeaveAnswered,
    // The directory's leader.
    EndProposed,
    EndCommitted,

    // Where the move is undone. The leader of the shard that it does not go to: some of what has come is dropped, or all.
    CopyLeft,
    // The leader of the shard that it stays on.
    ThawReceived,
    AccountThawed,
}

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reach<P>(_: P, _: GroupId) {}

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) const fn check() -> Result<(), crate::error::StorageError> {
    Ok(())
}

#[cfg(feature = "failpoints")]
pub(crate) use stopping::check;
#[cfg(feature = "failpoints")]
pub use stopping::reach;

#[cfg(feature = "failpoints")]
mod stopping {
    use std::fmt::Debug;
    use std::fs::{self, File};
    use std::io::{self, Write};
    use std::path::{Path, PathBuf};
    use std::process;
    use std::sync::LazyLock;
    use std::thread;
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};
    use tracing::{error, warn};

    use crate::error::StorageError;
    use crate::keys::GroupId;

    const VARIABLE: &str = "MAILRING_FAILPOINTS";
    /// Between looks whether it may go on: only the thread that came by the point looks.
    const LOOK: Duration = Duration::from_millis(1);

    static DIRECTORY: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(VARIABLE).map(PathBuf::from));

    /// Notes that this process has come by a point, and stops it there if a test wants that.
    pub fn reach(point: impl Debug, group: GroupId) {
        let Some(directory) = &*DIRECTORY else { return };
        if let Err(failure) = stop_if_asked(directory, &point, group) {
            error!(?point, group = group.0, %failure, "failpoint is of no use");
        }
    }

    fn stop_if_asked(directory: &Path, point: impl Debug, group: GroupId) -> io::Result<()> {
        let own = process::id();
        let line = format!("{point:?} {} {own}\n", group.0);
        File::options().create(true).append(true).open(directory.join("reached"))?.write_all(line.as_bytes())?;
        let held = directory.join(format!("held-{own}"));
        let asked = [format!("{point:?}-{}-{own}", group.0), format!("{point:?}-{}", group.0)];
        // Of several that come by at the same time one is stopped.
        if !asked.iter().any(|name| fs::rename(directory.join(name), &held).is_ok()) {
            return Ok(());
        }
        kill_process(getpid(), Signal::STOP)?;
        while held.exists() {
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Refuses a directory that is none, so that no test passes for want of its points.
    pub(crate) fn check() -> Result<(), StorageError> {
        match &*DIRECTORY {
            Some(directory) if !directory.is_dir() => {
                Err(StorageError::Misuse(format!("{VARIABLE}: {} is no directory", directory.display())))
            }
            Some(directory) => {
                warn!(directory = %directory.display(), "failpoints: a test may stop this program anywhere in a move");
                Ok(())
            }
            None => Ok(()),
        }
    }
}
