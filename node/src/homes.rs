//! How a replica begins and ends on its node's disks: its own records, and where the first volume says that it is. Each
//! step is durable before the next, and after a crash between any two a replica that has nothing never speaks: it may
//! have promised a vote before.

use bytes::Bytes;
use storage::{Failpoint, GroupId, StorageError, Volume, reach};

/// No volume has this id. A replica whose home it is waits for its group's leader, and what is on a disk of it is dropped.
pub const NOWHERE: u64 = 0;

/// Begins an empty replica on a volume, in the place of whatever is there of it. `vote` and `votes_from`: see
/// [`storage::Group::begin`].
pub fn begin(
    first: &Volume,
    (home, opened): (u64, &Volume),
    group: GroupId,
    (vote, votes_from): (Bytes, u64),
) -> Result<(), StorageError> {
    first.set_home(group, NOWHERE)?;
    if opened.groups()?.contains(&group) {
        opened.drop_group(group)?;
    }
    let empty = opened.group(group)?;
    reach(Failpoint::BeginOpened, group);
    empty.begin(vote, votes_from)?;
    reach(Failpoint::BegunOnDisk, group);
    first.set_home(group, home)?;
    reach(Failpoint::BegunRecorded, group);
    Ok(())
}

/// Drops a replica that has left its group for good.
pub fn end(first: &Volume, opened: &Volume, group: GroupId) -> Result<(), StorageError> {
    // Without a home it is what it was, with all its promises.
    first.forget_home(group)?;
    reach(Failpoint::HomeForgotten, group);
    opened.drop_group(group)?;
    reach(Failpoint::Dropped, group);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::{fs, io};

    use bytes::Bytes;
    use parking_lot::Mutex;
    use storage::{Faults, GroupId, HalfName, Operation, Volume, VolumeOptions};

    use super::{NOWHERE, begin, end};

    const HOME: u64 = 7;
    const GROUP: GroupId = GroupId(3);

    /// Before each write keeps the files as a process that ended there would leave them.
    #[derive(Debug)]
    struct Crashes {
        volume: PathBuf,
        copies: PathBuf,
        count: Mutex<usize>,
    }

    impl Faults for Crashes {
        fn before(&self, _: HalfName, operation: Operation) -> io::Result<()> {
            if operation == Operation::Write {
                let mut count = self.count.lock();
                copy(&self.volume, &self.copies.join(count.to_string()))?;
                *count += 1;
            }
            Ok(())
        }
    }

    fn copy(from: &Path, to: &Path) -> io::Result<()> {
        fs::create_dir_all(to.join("db"))?;
        fs::copy(from.join("MARK"), to.join("MARK"))?;
        for file in fs::read_dir(from.join("db"))? {
            let file = file?;
            fs::copy(file.path(), to.join("db").join(file.file_name()))?;
        }
        Ok(())
    }

    fn open(directory: &Path) -> Volume {
        let small =
            VolumeOptions { memtable_bytes: 4 << 20, block_cache_bytes: 4 << 20, ..VolumeOptions::new(directory) };
        Volume::open(small).unwrap()
    }

    /// As a node that starts takes it: `None` where it waits for its group's leader, else whether it has its votes.
    fn speaks_with_votes(directory: &Path) -> Option<bool> {
        let volume = open(directory);
        let is_there = volume.groups().unwrap().contains(&GROUP);
        match volume.homes().unwrap().get(&GROUP) {
            Some(home) if *home != HOME => None,
            None if !is_there => None,
            Some(_) if !is_there => Some(false),
            Some(_) | None => Some(volume.group(GROUP).unwrap().vote().unwrap().is_some()),
        }
    }

    /// After a crash before each write of `work`, and at its end.
    fn crashes(prepare: impl Fn(&Volume), work: impl Fn(&Volume)) -> Vec<Option<bool>> {
        let directory = tempfile::tempdir().unwrap();
        let (volume, copies) = (directory.path().join("volume"), directory.path().join("copies"));
        prepare(&open(&volume));
        let crashes = Arc::new(Crashes { volume: volume.clone(), copies: copies.clone(), count: Mutex::default() });
        let faults: Option<Arc<dyn Faults>> = Some(crashes.clone());
        let options = VolumeOptions {
            memtable_bytes: 4 << 20,
            block_cache_bytes: 4 << 20,
            faults,
            ..VolumeOptions::new(&volume)
        };
        let opened = Volume::open(options).unwrap();
        work(&opened);
        drop(opened);
        let count = *crashes.count.lock();
        let mut seen: Vec<_> = (0..count).map(|crash| speaks_with_votes(&copies.join(crash.to_string()))).collect();
        seen.push(speaks_with_votes(&volume));
        seen
    }

    fn begin_here(volume: &Volume) {
        begin(volume, (HOME, volume), GROUP, (Bytes::from_static(b"vote"), 9)).unwrap();
    }

    #[test]
    fn a_replica_that_begins_never_speaks_without_votes_wherever_its_node_ends() {
        // In the place of none, and of one whose disks were lost.
        for before in [None, Some(99), Some(NOWHERE)] {
            let prepare = |volume: &Volume| before.iter().for_each(|home| volume.set_home(GROUP, *home).unwrap());
            let seen = crashes(prepare, begin_here);
            assert!(seen.len() > 4 && seen.last() == Some(&Some(true)), "{before:?}: {seen:?}");
            assert!(!seen.contains(&Some(false)), "{before:?}: {seen:?}");
        }
        // In the place of a damaged one, which is there and may speak for as long as it is.
        let seen = crashes(begin_here, begin_here);
        assert!(seen.len() > 5 && seen.last() == Some(&Some(true)) && !seen.contains(&Some(false)), "{seen:?}");
    }

    #[test]
    fn a_replica_that_ends_keeps_its_votes_until_it_is_gone() {
        let seen = crashes(begin_here, |volume| end(volume, volume, GROUP).unwrap());
        assert!(seen.len() > 2 && seen.first() == Some(&Some(true)) && seen.last() == Some(&None), "{seen:?}");
        assert!(!seen.contains(&Some(false)), "{seen:?}");
    }
}
