//! What is free on each disk, for whoever lists them: also on one that is in use no more. A disk that gives no answer holds up
//! nobody, and is asked by one thread at most.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use storage::free_on;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{NodeVolume, Volumes};

/// Whoever lists disks waits for them no longer.
const ANSWER_MAX: Duration = Duration::from_millis(250);

#[derive(Default)]
pub(super) struct DiskRoom {
    is_asked: AtomicBool,
    /// As it answered last; `None` where it does not.
    free_octets: Mutex<Option<u64>>,
}

impl Volumes {
    pub async fn look_at_disks(&self) {
        let disks = self.list.iter().flat_map(|volume| volume.disks.iter().zip(&volume.rooms));
        let asked: Vec<JoinHandle<()>> = disks.filter_map(|(disk, room)| room.ask(disk)).collect();
        if tokio::time::timeout(ANSWER_MAX, join_all(asked)).await.is_err() {
            let rooms = self.list.iter().flat_map(|volume| &volume.rooms);
            let silent = rooms.filter(|room| room.is_asked.load(Ordering::Relaxed));
            silent.for_each(|room| *room.free_octets.lock() = None);
        }
    }
}

impl NodeVolume {
    /// As the last look found it.
    pub(super) fn free_on(&self, disk: &Path) -> Option<u64> {
        let (_, room) = self.disks.iter().zip(&self.rooms).find(|(own, _)| *own == disk)?;
        *room.free_octets.lock()
    }
}

impl DiskRoom {
    fn ask(self: &Arc<DiskRoom>, disk: &Path) -> Option<JoinHandle<()>> {
        if self.is_asked.swap(true, Ordering::Relaxed) {
            return None;
        }
        let (room, disk) = (self.clone(), disk.to_owned());
        Some(spawn_blocking(move || {
            let free = free_on(&disk).ok();
            *room.free_octets.lock() = free;
            room.is_asked.store(false, Ordering::Relaxed);
        }))
    }
}

#[cfg(test)]
mod tests {
    use crate::groups::tests::{eventually, settings};
    use crate::settings::{NodeSettings, VolumeSettings};
    use crate::volumes::Volumes;

    #[tokio::test]
    async fn each_half_tells_the_room_of_its_own_disk() {
        let root = tempfile::tempdir().unwrap();
        let disks = ["a", "b"].map(|name| root.path().join(name));
        disks.iter().for_each(|disk| std::fs::create_dir(disk).unwrap());
        let mirror = vec![VolumeSettings { disks: disks.to_vec() }];
        let volumes = Volumes::open(&NodeSettings { volumes: mirror, ..settings(root.path(), 1) }).unwrap();
        let volume = volumes.list()[0].clone();
        let is_told = async || {
            volumes.look_at_disks().await;
            volume.status(0).halves.iter().map(|half| half.free_octets.is_some()).collect::<Vec<_>>()
        };
        eventually("both tell", async || is_told().await == [true, true]).await;
        std::fs::rename(&disks[1], root.path().join("elsewhere")).unwrap();
        eventually("one is not there", async || is_told().await == [true, false]).await;
        volumes.close();
    }
}
