//! Old copies of single volumes: an image of one disk that is put back beside newer ones. At each start every volume
//! that is open notes its number, and the first one notes that they did.
//!
//! That the first volume is the newest, other nodes tell (`bootstrap.rs`); and volumes that know of a later start.

use anyhow::{Result, bail};
use directory::Start;
use storage::StorageError;

use crate::volumes::Volumes;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Judged {
    Newest,
    OldCopy,
    /// It has seen a start that the first volume knows nothing of.
    FirstIsOld,
}

/// `own`: what a volume has noted; `first`: what the first one has noted of itself, and `of_it` of that volume.
///
/// A crash between the two notes of a start leaves the volume's the later one, never later than the first volume's own.
fn judge(own: Start, first: Start, of_it: Option<Start>) -> Judged {
    let of_it = of_it.unwrap_or_default();
    if own.starts > first.starts {
        Judged::FirstIsOld
    } else if own.is_before(of_it) || own.starts == first.starts && own.run != first.run {
        Judged::OldCopy
    } else {
        Judged::Newest
    }
}

fn start((starts, run): (u64, u64)) -> Start {
    Start { starts, run }
}

/// Closes the volumes that are old copies, before anything of them is read or said: what was on them is lost, and comes
/// back from other nodes. An error if the first volume is one. Writes nothing. Blocks.
pub fn give_up_old_copies(volumes: &Volumes) -> Result<()> {
    let first = volumes.first()?;
    let (of_first, known) = (start(first.starts()?), first.volume_starts()?);
    for volume in volumes.list().iter().skip(1) {
        let (Some(id), Some(opened)) = (volume.id(), volume.volume()) else { continue };
        let of_it = known.get(&id).copied().map(start);
        let own = opened.starts().map(start);
        drop(opened);
        let (number, disks) = (volume.number, volume.shown());
        let reason = match own {
            Ok(own) => match judge(own, of_first, of_it) {
                Judged::Newest => continue,
                Judged::FirstIsOld => bail!(
                    "{}: an old copy of this node's first volume: it knows of start number {}, volume {number} of number \
                     {}, and what was acknowledged since is not on it; put the newest disks back, or remove the node with \
                     `mailring node remove` and let it join again with empty disks",
                    volumes.list().first().map(|first| first.shown()).unwrap_or_default(),
                    of_first.starts,
                    own.starts
                ),
                Judged::OldCopy => format!(
                    "{disks}: an old copy of this volume: it knows of start number {}, the first volume of number {} from \
                     newer disks, and what was acknowledged since is not on it; put the newest disks back, or empty ones \
                     and take them with `mailring volume replace`",
                    own.starts,
                    of_it.unwrap_or(of_first).starts
                ),
            },
            Err(error) => error.to_string(),
        };
        tracing::error!(volume = number, reason, "volume is not open");
        drop(volume.give_up(&reason));
    }
    Ok(())
}

/// Notes a start, that the first volume has counted, in every volume that is open. A volume that cannot is closed. Blocks.
pub fn count(volumes: &Volumes, now: Start) -> Result<(), StorageError> {
    let Ok(first) = volumes.first() else { return Err(StorageError::Closed) };
    let mut known = first.volume_starts()?;
    for volume in volumes.list().iter().skip(1) {
        let (Some(id), Some(opened)) = (volume.id(), volume.volume()) else { continue };
        // Before the first volume says so: a volume that has not noted it would be taken for an old one.
        match opened.set_starts(now.starts, now.run) {
            Ok(()) => {
                known.insert(id, (now.starts, now.run));
            }
            Err(error) => {
                tracing::error!(volume = volume.number, %error, "volume is not open");
                drop(opened);
                drop(volume.give_up(&error.to_string()));
            }
        }
    }
    first.set_volume_starts(&known)
}

#[cfg(test)]
mod tests {
    use directory::Start;

    use super::{Judged, judge};

    fn at(starts: u64, run: u64) -> Start {
        Start { starts, run }
    }

    #[test]
    fn a_volume_is_an_old_copy_if_the_first_one_has_seen_it_open_later() {
        use Judged::{FirstIsOld, Newest, OldCopy};
        let none = at(0, 0);
        assert_eq!(judge(none, none, None), Newest, "all are new");
        assert_eq!(judge(none, at(9, 9), None), Newest, "this one is new, or nothing was counted there yet");
        assert_eq!(judge(at(9, 9), at(9, 9), Some(at(9, 9))), Newest);
        assert_eq!(judge(at(7, 7), at(9, 9), Some(at(7, 7))), Newest, "it was down at the last starts");
        assert_eq!(judge(at(9, 9), at(9, 9), Some(at(8, 8))), Newest, "the process ended between the notes");
        assert_eq!(judge(at(8, 8), at(9, 9), Some(at(7, 7))), Newest, "the same, and it was down at the last start");
        assert_eq!(judge(at(9, 9), at(9, 9), None), Newest, "the same at its first start");
        assert_eq!(judge(at(8, 8), at(9, 9), Some(at(9, 9))), OldCopy);
        assert_eq!(judge(none, at(9, 9), Some(at(1, 1))), OldCopy);
        assert_eq!(judge(at(7, 6), at(9, 9), Some(at(7, 7))), OldCopy, "of disks that went another way");
        assert_eq!(judge(at(9, 6), at(9, 9), Some(at(7, 7))), OldCopy, "the same");
        assert_eq!(judge(at(9, 9), at(8, 8), Some(at(8, 8))), FirstIsOld);
        assert_eq!(judge(at(9, 9), none, None), FirstIsOld);
    }
}
