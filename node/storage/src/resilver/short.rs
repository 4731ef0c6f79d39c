//! A half that is to be made anew, and whose disk has no room for it: looked at again now and then, and made anew once there is.
//! Not where another disk has come in its place: nobody has said yet that it may be taken.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::info;

use super::told;
use crate::error::StorageError;
use crate::faults::HalfName;
use crate::identity::Identity;
use crate::mirror::{Mirror, Side, side};
use crate::options::VolumeOptions;
use crate::room::room_for_copy;

/// Between looks. Each asks for the size of every file of the other half.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Of a copy that was broken off, since its disk has no room any more.
pub(super) const FILLED: &str = "has filled up";

/// There was room for a copy when it began, and others, or mail, have taken it.
pub(super) fn is_filled(error: &StorageError) -> bool {
    // As the system says it, through the database.
    [FILLED, "No space left"].iter().any(|text| error.to_string().contains(text))
}

/// Refuses a disk that what the other half holds does not fit on, beside what is there. Otherwise it would be filled, and mail may
/// be on it too, to no end. What it held stays until the new half is whole.
pub(super) fn check(
    mirror: &Mirror,
    options: &VolumeOptions,
    name: HalfName,
    (directory, other): (&Path, &Path),
) -> Result<(), StorageError> {
    let room = room_for_copy(options.faults.as_ref(), name, (directory, other));
    side(&mut mirror.sides.lock(), name).0.short = matches!(room, Err(StorageError::Refused(_)));
    room
}

/// Asks for those that there is room for by now to be made anew; of the others it is told how they are today.
pub(super) fn look_again(mirror: &Mirror, options: &VolumeOptions) {
    let short: Vec<(HalfName, PathBuf, PathBuf)> = {
        let sides = mirror.sides.lock();
        let [first, second] = &*sides;
        let both = [(first, second), (second, first)].into_iter().filter(|(own, _)| own.short);
        both.map(|(own, other)| (own.record.name, own.directory.clone(), other.directory.clone())).collect()
    };
    for (name, directory, other) in short {
        let found = in_place(&directory, &other)
            .and_then(|()| room_for_copy(options.faults.as_ref(), name, (&directory, &other)));
        let mut sides = mirror.sides.lock();
        let own = side(&mut sides, name).0;
        // It may have been dropped meanwhile, or be asked for.
        if !own.short || own.rebuild {
            continue;
        }
        match found {
            Ok(()) => {
                info!(half = %name, directory = %directory.display(), "there is room for a half, it is made anew");
                own.rebuild = true;
            }
            Err(error) => tell(own, &error),
        }
    }
}

/// Why it is not made anew.
pub(super) fn tell(own: &mut Side, error: &StorageError) {
    match own {
        Side { lost: Some(lost), .. } => *lost = told(error),
        own => own.unmade = Some(told(error)),
    }
}

/// Whether the disk says of itself what the other half's disk says: then it was one of the two when the volume was opened, or
/// has been taken since.
fn in_place(directory: &Path, other: &Path) -> Result<(), StorageError> {
    let whose = |directory: &Path| {
        let identity = Identity::read(directory.parent()?).ok().flatten()?;
        Some((identity.node_id, identity.volume))
    };
    if whose(directory) == whose(other) {
        return Ok(());
    }
    let disk = directory.parent().unwrap_or(directory).display();
    Err(StorageError::Refused(format!(
        "{disk} was too small, and is not there now, or is another disk that is not taken yet"
    )))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{FILLED, is_filled};
    use crate::error::StorageError;

    #[test]
    fn a_copy_that_has_met_a_full_disk_is_known_by_what_it_says() {
        assert!(is_filled(&StorageError::io("Write on half b", io::Error::from_raw_os_error(28))));
        assert!(is_filled(&StorageError::io("write", "IO error: No space left on device: While appending to file")));
        assert!(is_filled(&StorageError::Refused(format!("the disk of /b/db {FILLED}"))));
        assert!(!is_filled(&StorageError::io("resilver", "the other half does not answer")));
    }
}
