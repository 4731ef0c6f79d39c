//! What the tests of mirrors share.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{DB, IteratorMode, Options};
use storage::{Faults, Group, GroupId, HalfName, HalfState, HalfStatus, Operation, Volume, VolumeOptions};

use super::flips::Random;
use super::{append, copy_files, entry, marker, options};

/// How long a condition may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Small memtables, so that there are tables soon.
pub fn small_mirror(root: &Path) -> VolumeOptions {
    VolumeOptions { memtable_bytes: 4 << 20, wal_bytes_max: 2 << 20, ..mirror_options(root) }
}

/// What nobody asks for.
pub const FILLER: GroupId = GroupId(3);
const FILLER_BYTES: u64 = 64 << 10;

/// Writes what nobody asks for until a condition holds: it has what was written before put into tables.
pub fn fill_until(volume: &Volume, what: &str, holds: impl Fn() -> bool) {
    let group = volume.group(FILLER).unwrap();
    wait_until(what, || {
        let next = group.last_entry().unwrap().map_or(1, |entry| entry.index + 1);
        append(&group, vec![entry(next, "filler", Some(random(next, FILLER_BYTES)))]);
        holds()
    });
}

/// Octets that nothing compresses.
pub fn random(seed: u64, len: u64) -> Bytes {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..len).map(|_| random.below(256) as u8).collect()
}

pub fn mirror_options(root: &Path) -> VolumeOptions {
    VolumeOptions {
        mirror: Some(root.join("b")),
        hang_max: Duration::from_secs(5),
        resilver_bytes_per_s: 1 << 30,
        ..options(&root.join("a"))
    }
}

pub fn open_mirror(root: &Path) -> Volume {
    Volume::open(mirror_options(root)).unwrap()
}

pub fn status(volume: &Volume, name: HalfName) -> HalfStatus {
    volume.halves().into_iter().find(|half| half.name == name).unwrap()
}

pub fn is_current(volume: &Volume, name: HalfName) -> bool {
    status(volume, name).state == HalfState::Current
}

pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn wait_whole(volume: &Volume) {
    let failed =
        |half: &HalfStatus| matches!(&half.state, HalfState::Stale { reason } if reason.starts_with("resilver"));
    wait_until("both halves are current", || {
        let halves = volume.halves();
        assert!(!halves.iter().any(failed), "{halves:?}");
        halves.iter().all(|half| half.state == HalfState::Current)
    });
}

/// Deletes a directory of a volume that may be open: until that notices, it makes files there.
pub fn delete(directory: &Path) {
    wait_until("it is deleted", || match std::fs::remove_dir_all(directory) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(()) => true,
    });
}

/// Ends a load when the test ends, be it by a panic.
pub struct Stop<'a>(pub &'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Every record of a half's database, of each column family, with its name.
pub fn records(half: &Path) -> BTreeMap<(String, Vec<u8>), Vec<u8>> {
    let names = std::fs::read_dir(half).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let databases: Vec<String> = names.filter(|name| name == "db" || name.starts_with("db-")).collect();
    assert_eq!(databases.len(), 1, "{databases:?} in {}", half.display());
    let path = half.join(&databases[0]);
    let families = ["log", "blob", "state", "meta"];
    let mut options = Options::default();
    // RocksDB crashes where a database that was opened with this is opened for reading without it.
    options.set_track_and_verify_wals_in_manifest(true);
    let db: DB = DB::open_cf_for_read_only(&options, path, families, false).unwrap();
    let mut all = BTreeMap::new();
    for family in families {
        for item in db.iterator_cf(&db.cf_handle(family).unwrap(), IteratorMode::Start) {
            let (key, value) = item.unwrap();
            all.insert((family.to_owned(), key.to_vec()), value.to_vec());
        }
    }
    all
}

/// Both halves of a closed volume hold the same records, and more than a few.
pub fn assert_equal_halves(root: &Path) {
    let (a, b) = (records(&root.join("a")), records(&root.join("b")));
    assert!(a.len() > 2, "{} records", a.len());
    let different: Vec<_> = a.keys().chain(b.keys()).filter(|key| a.get(*key) != b.get(*key)).take(3).collect();
    assert!(different.is_empty(), "{} and {} records, different: {different:?}", a.len(), b.len());
}

pub fn head(index: u64) -> Vec<u8> {
    index.to_be_bytes().repeat(40)
}

pub fn body(index: u64) -> Bytes {
    let mut bytes = vec![index as u8; 3000 + (index % 7) as usize * 900];
    let mut seed = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in &mut bytes {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        *byte = seed as u8;
    }
    bytes.into()
}

pub fn put(group: &Group, index: u64) {
    append(group, vec![entry(index, head(index), (!index.is_multiple_of(3)).then(|| body(index)))]);
}

/// That entries from 1 to `last` are there, byte for byte, from the disk.
pub fn assert_entries(group: &Group, last: u64) {
    let mut from = 1;
    while from <= last {
        let found = group.read(from, last + 1, 1 << 20).unwrap();
        assert!(!found.is_empty(), "entry {from} of {last}");
        for one in found {
            assert_eq!(one.index, from);
            assert_eq!(one.head, head(from));
            assert_eq!(one.body, (!from.is_multiple_of(3)).then(|| body(from)), "entry {from}");
            from += 1;
        }
    }
}

/// The files of both halves as they are, as a crash would leave them.
pub fn copy_mirror(from: &Path, to: &Path) {
    for half in ["a", "b"] {
        copy_half(&from.join(half), &to.join(half));
    }
}

pub fn copy_half(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_files(&path, &target),
            false => drop(std::fs::copy(&path, target).unwrap()),
        }
    }
}

/// The newest write-ahead log of a half that has one database.
pub fn newest_wal(half: &Path) -> PathBuf {
    let logs = files(half).into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "log"));
    logs.max().unwrap()
}

/// The files of a half's databases.
pub fn files(half: &Path) -> Vec<PathBuf> {
    let names = |path: &Path| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    names(half).iter().filter(|path| path.is_dir() && !path.ends_with("spool")).flat_map(|path| names(path)).collect()
}

/// Makes operations of one half fail, wait, or hang until it is let go.
#[derive(Debug, Default)]
pub struct Script {
    plan: Mutex<Vec<(HalfName, Operation, Failure)>>,
    hung: std::sync::atomic::AtomicUsize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    Error(i32),
    Delay(Duration),
    Hang,
}

pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;

impl Script {
    pub fn new() -> Arc<Script> {
        Arc::default()
    }

    pub fn set(&self, half: HalfName, operation: Operation, failure: Failure) {
        self.plan.lock().push((half, operation, failure));
    }

    pub fn clear(&self) {
        self.plan.lock().clear();
    }

    /// How many operations have hung so far.
    pub fn hung(&self) -> usize {
        self.hung.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn planned(&self, half: HalfName, operation: Operation) -> Option<Failure> {
        let plan = self.plan.lock();
        plan.iter().find(|(h, o, _)| (*h, *o) == (half, operation)).map(|(_, _, failure)| *failure)
    }
}

impl Faults for Script {
    fn before(&self, half: HalfName, operation: Operation) -> io::Result<()> {
        match self.planned(half, operation) {
            None => Ok(()),
            Some(Failure::Error(code)) => Err(io::Error::from_raw_os_error(code)),
            Some(Failure::Delay(delay)) => {
                std::thread::sleep(delay);
                Ok(())
            }
            Some(Failure::Hang) => {
                self.hung.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                while self.planned(half, operation) == Some(Failure::Hang) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            }
        }
    }
}

/// Entries, of which every third has no body, all of them applied.
pub fn write_entries(group: &Group, entries: u64) {
    for from in (1..=entries).step_by(60) {
        let some = (from..from + 60).map(|index| {
            let body: Option<Bytes> = (!index.is_multiple_of(3)).then(|| body(index));
            entry(index, head(index), body)
        });
        append(group, some.collect());
        group.set_applied(marker(from + 59)).unwrap();
    }
}
