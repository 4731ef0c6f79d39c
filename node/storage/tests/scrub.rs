//! A scrub finds what nobody reads, puts right what a good copy can, and tells the rest by key and group.

mod common;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use common::flips::{Random, files_of, flip_body, flip_some, seeds};
use common::mirror::{
    EIO, Failure, Script, Stop, assert_entries, assert_equal_halves, body, copy_mirror, head, mirror_options,
    wait_until, wait_whole, write_entries,
};
use common::{SHARD, append, copy_volume, entry, marker, name, options, stamp};
use rocksdb::{DB, Options};
use storage::{
    BodySource, Command, GroupId, HalfName, HalfState, Operation, Recipient, ScrubOptions, ScrubProgress, ScrubReport,
    Verdict, Volume, VolumeOptions,
};
use types::{AccountId, InternalDate, Quota, UidSet};

const ENTRIES: u64 = 2400;
const OTHER: GroupId = GroupId(9);
/// Records of two groups: entries, bodies, marker and space.
const WHOLE: u64 = 2 * (ENTRIES + ENTRIES * 2 / 3 + 2);

/// Small memtables, so that there are tables and blob files.
fn small(options: VolumeOptions) -> VolumeOptions {
    VolumeOptions { memtable_bytes: 4 << 20, wal_bytes_max: 2 << 20, ..options }
}

fn open_mirror(root: &Path) -> Volume {
    Volume::open(small(mirror_options(root))).unwrap()
}

fn open_one(directory: &Path) -> Volume {
    Volume::open(small(options(directory))).unwrap()
}

fn fill(volume: &Volume) {
    for id in [SHARD, OTHER] {
        write_entries(&volume.group(id).unwrap(), ENTRIES);
    }
}

/// With its own slices, so that each scrub has many.
fn scrub(volume: &Volume) -> ScrubReport {
    let fast = ScrubOptions { bytes_per_s: 1 << 40, slice_bytes: 1 << 20, ..ScrubOptions::default() };
    let report = volume.scrub(&fast, &ScrubProgress::default()).unwrap();
    assert!(report.complete);
    report
}

#[test]
fn a_volume_without_damage_is_clean_and_all_of_it_is_read() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_one(root.path());
    fill(&volume);
    let report = scrub(&volume);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.records, report.halves.len(), report.halves[0].name), (WHOLE, 1, None));
    let root = tempfile::tempdir().unwrap();
    let volume = open_mirror(root.path());
    fill(&volume);
    let report = scrub(&volume);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.halves.iter().map(|half| half.records).collect::<Vec<_>>(), [WHOLE, WHOLE]);
}

#[test]
fn flipped_bits_in_one_half_are_found_and_the_half_is_made_anew() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_mirror(root.path());
    fill(&volume);
    drop(volume);
    let mut found = 0;
    for seed in seeds() {
        for (half, extension) in [("a", "sst"), ("a", "blob"), ("b", "sst"), ("b", "blob")] {
            let copy = tempfile::tempdir().unwrap();
            copy_mirror(root.path(), copy.path());
            flip_some(&files_of(&copy.path().join(half), extension), 4, &mut Random(seed * 0x9e37_79b9));
            let what = format!("seed {seed}: 4 flips in {extension} files of {half}");
            println!("{what}");
            let volume = open_mirror(copy.path());
            let report = scrub(&volume);
            assert_eq!((report.lost, report.differing), (0, 0), "{what}: {report:?}");
            let damaged: u64 = report.halves.iter().map(|half| half.damaged).sum();
            assert_eq!(report.is_clean(), damaged == 0, "{what}");
            let name = if half == "a" { HalfName::A } else { HalfName::B };
            assert!(report.findings.iter().all(|one| one.half == Some(name)), "{what}: {report:?}");
            if !report.is_clean() {
                found += 1;
                assert!(report.resilvers.contains(&name), "{what}: {report:?}");
                wait_until(&what, || volume.statistics().resilvers > 0);
            }
            wait_whole(&volume);
            assert!(scrub(&volume).is_clean(), "{what}");
            drop(volume);
            assert_equal_halves(copy.path());
        }
    }
    // A flip may lie in what was replaced.
    assert!(found > 2 * seeds().count(), "{found}");
}

#[test]
fn each_damaged_body_is_told_by_its_key() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_one(root.path());
    fill(&volume);
    drop(volume);
    for index in [100, 101, 103, 1499] {
        flip_body(root.path(), index);
    }
    let volume = open_one(root.path());
    let report = scrub(&volume);
    let keys: BTreeSet<&str> = report.findings.iter().map(|one| one.key.as_str()).collect();
    let expected =
        [100, 101, 103, 1499].iter().flat_map(|index| [format!("blob/7/{index}"), format!("blob/9/{index}")]);
    let expected: BTreeSet<String> = expected.collect();
    assert_eq!(keys, expected.iter().map(String::as_str).collect(), "{report:?}");
    assert!(report.findings.iter().all(|one| one.verdict == Verdict::Lost), "{report:?}");
    assert_eq!((report.lost, report.groups_lost.clone()), (8, BTreeSet::from([SHARD, OTHER])));
    // All else was read, and is served.
    assert_eq!(report.records, WHOLE - 8);
    let group = volume.group(SHARD).unwrap();
    for index in [99, 102, 104, 1498, 1500] {
        assert_eq!(group.read(index, index + 1, 1).unwrap()[0].head, head(index));
    }
}

#[test]
fn damaged_blocks_of_one_disk_are_told_and_the_rest_is_read() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_one(root.path());
    fill(&volume);
    drop(volume);
    let mut compared = 0;
    // How many open depends on which tables the writes have made.
    for seed in 1..100 {
        if compared == seeds().count() {
            return;
        }
        let copy = tempfile::tempdir().unwrap();
        copy_volume(root.path(), copy.path());
        flip_some(&files_of(copy.path(), "sst"), 3, &mut Random(seed * 0x9e37_79b9));
        println!("seed {seed}");
        // Damaged properties of a table are refused at the start.
        let Ok(volume) = Volume::open(small(options(copy.path()))) else { continue };
        // With their logs' bounds known each entry is told by itself, where those can be read.
        let groups = [SHARD, OTHER].map(|id| volume.group(id).is_ok());
        let report = scrub(&volume);
        println!("groups opened: {groups:?}, lost: {}", report.lost);
        // What was not read was told.
        assert!(report.records == WHOLE || !report.is_clean(), "{report:?}");
        assert!(report.records > WHOLE / 2, "{report:?}");
        assert_eq!(report.lost > 0, !report.groups_lost.is_empty(), "{report:?}");
        drop(volume);
        compared += usize::from(is_told_exactly(copy.path(), &report));
    }
    panic!("only {compared} were compared");
}

/// What is told as lost cannot be read by its key, and what cannot be read is told, or lies in a place that is. False
/// where the database does not open again.
fn is_told_exactly(directory: &Path, report: &ScrubReport) -> bool {
    let lost = || report.findings.iter().filter(|one| one.verdict == Verdict::Lost);
    let told: BTreeSet<&str> = lost().filter(|one| one.to.is_none()).map(|one| one.key.as_str()).collect();
    let number = |text: &str| -> Option<(u32, u64)> {
        let mut parts = text.split('/').skip(1).map(str::parse::<u64>);
        Some((u32::try_from(parts.next()?.ok()?).ok()?, parts.next()?.ok()?))
    };
    let places = report.findings.iter().filter_map(|one| {
        let end = number(one.to.as_ref()?).unwrap_or((u32::MAX, 0));
        Some((one.family, number(&one.key).unwrap_or_default()..=end))
    });
    let places: Vec<_> = places.collect();
    let mut options = Options::default();
    options.set_track_and_verify_wals_in_manifest(true);
    let Ok(db) = DB::open_cf_for_read_only(&options, directory.join("db"), FAMILIES, false) else { return false };
    for family in ["log", "blob"] {
        for group in [SHARD, OTHER] {
            for index in (1..=ENTRIES).filter(|index| family == "log" || !index.is_multiple_of(3)) {
                let value = db.get_cf(&db.cf_handle(family).unwrap(), log_key(group, index));
                let key = format!("{family}/{}/{index}", group.0);
                let told = told.contains(key.as_str());
                // A body is told by its key where its entry can be read, which refers to it; else by a place.
                let is_in = |(of, place): &(&str, RangeInclusive<(u32, u64)>)| {
                    (*of == family || *of == "log") && place.contains(&(group.0, index))
                };
                let placed = places.iter().any(is_in);
                let expected = if value.is_ok() { !told } else { told || placed || report.findings_beyond > 0 };
                assert!(expected, "{key} told {told} placed {placed} {:?}", value.err());
            }
        }
    }
    true
}

#[test]
fn with_both_halves_damaged_in_different_places_all_is_healed() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_mirror(root.path());
    fill(&volume);
    drop(volume);
    for seed in seeds() {
        let copy = tempfile::tempdir().unwrap();
        copy_mirror(root.path(), copy.path());
        println!("seed {seed}");
        let mut random = Random(seed * 0x9e37_79b9);
        for (half, from) in [("a", 1), ("b", ENTRIES / 2)] {
            for _ in 0..3 {
                let index = from + random.below(ENTRIES / 2 - 3);
                flip_body(&copy.path().join(half), index + u64::from(index.is_multiple_of(3)));
            }
        }
        let volume = open_mirror(copy.path());
        let report = scrub(&volume);
        assert_eq!((report.lost, report.resilvers.len()), (0, 2), "{report:?}");
        wait_until("both are made anew", || volume.statistics().resilvers == 2);
        assert!(scrub(&volume).is_clean());
        for id in [SHARD, OTHER] {
            assert_entries(&volume.group(id).unwrap(), ENTRIES);
        }
        drop(volume);
        assert_equal_halves(copy.path());
    }
}

#[test]
fn a_record_that_is_bad_on_both_halves_is_told_with_its_group() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_mirror(root.path());
    fill(&volume);
    drop(volume);
    for half in ["a", "b"] {
        flip_body(&root.path().join(half), 100);
    }
    let volume = open_mirror(root.path());
    let report = scrub(&volume);
    let lost: Vec<_> = report.findings.iter().map(|one| (one.verdict, one.key.as_str(), one.group)).collect();
    assert_eq!(lost, [(Verdict::Lost, "blob/7/100", Some(SHARD)), (Verdict::Lost, "blob/9/100", Some(OTHER)),]);
    assert_eq!(report.groups_lost, BTreeSet::from([SHARD, OTHER]));
}

const FAMILIES: [&str; 4] = ["log", "blob", "state", "meta"];

/// Changes a closed half behind the volume's back: its numbers are then as the other one's.
fn meddle(half: &Path, change: impl FnOnce(&DB)) {
    let mut options = Options::default();
    options.set_track_and_verify_wals_in_manifest(true);
    let path = std::fs::read_dir(half).unwrap().map(|entry| entry.unwrap().path());
    let path = path.into_iter().find(|path| path.join("CURRENT").exists()).unwrap();
    let db = DB::open_cf(&options, path, FAMILIES).unwrap();
    change(&db);
    db.flush_wal(true).unwrap();
}

fn log_key(group: GroupId, index: u64) -> Vec<u8> {
    [&group.0.to_be_bytes()[..], &index.to_be_bytes()].concat()
}

/// What is done to half a, and, to have as many writes, something without effect to half b.
fn with_meddled_half(change: impl Fn(&DB), none: impl Fn(&DB)) -> (tempfile::TempDir, Volume) {
    let root = tempfile::tempdir().unwrap();
    let volume = open_mirror(root.path());
    fill(&volume);
    drop(volume);
    meddle(&root.path().join("a"), |db| change(db));
    meddle(&root.path().join("b"), |db| none(db));
    let volume = open_mirror(root.path());
    (root, volume)
}

fn rewrite_same(db: &DB, family: &str, key: &[u8]) {
    let handle = db.cf_handle(family).unwrap();
    let value = db.get_cf(&handle, key).unwrap().unwrap();
    db.put_cf(&handle, key, value).unwrap();
}

#[test]
fn a_record_that_one_half_lacks_is_found_and_written_again() {
    let key = log_key(SHARD, 500);
    let (root, volume) = with_meddled_half(
        |db| db.delete_cf(&db.cf_handle("log").unwrap(), &key).unwrap(),
        |db| rewrite_same(db, "log", &key),
    );
    assert_eq!(volume.halves().iter().filter(|half| half.state == HalfState::Current).count(), 2);
    let report = scrub(&volume);
    let found: Vec<_> =
        report.findings.iter().map(|one| (one.verdict, one.key.as_str(), one.half, one.rewritten)).collect();
    assert_eq!(found, [(Verdict::Missing, "log/7/500", Some(HalfName::A), true)]);
    assert_eq!((report.rewritten, report.resilvers.len(), report.lost), (1, 0, 0));
    assert!(scrub(&volume).is_clean());
    drop(volume);
    assert_equal_halves(root.path());
}

#[test]
fn a_record_that_does_not_hold_by_its_own_checksum_or_format_is_replaced() {
    let key = log_key(SHARD, 500);
    let applied = [0, 0, 0, 1, 1];
    let (root, volume) = with_meddled_half(
        |db| {
            db.put_cf(&db.cf_handle("blob").unwrap(), &key, vec![0; 4000]).unwrap();
            db.put_cf(&db.cf_handle("state").unwrap(), applied, [9]).unwrap();
        },
        |db| {
            rewrite_same(db, "blob", &key);
            rewrite_same(db, "state", &applied);
        },
    );
    let report = scrub(&volume);
    let found: Vec<_> =
        report.findings.iter().map(|one| (one.verdict, one.key.as_str(), one.half, one.group)).collect();
    assert_eq!(
        found,
        [
            (Verdict::Damaged, "blob/7/500", Some(HalfName::A), Some(SHARD)),
            (Verdict::Damaged, "state/1/applied/", Some(HalfName::A), Some(SHARD)),
        ]
    );
    assert_eq!((report.rewritten, report.lost), (2, 0));
    assert!(scrub(&volume).is_clean());
    assert_entries(&volume.group(SHARD).unwrap(), ENTRIES);
    drop(volume);
    assert_equal_halves(root.path());
}

#[test]
fn where_both_halves_hold_by_themselves_none_is_chosen() {
    let key = log_key(SHARD, 501);
    let other = |db: &DB, from: u64| {
        let handle = db.cf_handle("log").unwrap();
        let value = db.get_cf(&handle, log_key(SHARD, from)).unwrap().unwrap();
        db.put_cf(&handle, &key, value).unwrap();
    };
    // Entries without bodies, each good in itself.
    let (_root, volume) = with_meddled_half(|db| other(db, 504), |db| other(db, 501));
    for _ in 0..2 {
        let report = scrub(&volume);
        let found: Vec<_> = report.findings.iter().map(|one| (one.verdict, one.key.as_str())).collect();
        assert_eq!(found, [(Verdict::Differs, "log/7/501")]);
        assert_eq!(report.groups_undecided, BTreeSet::from([SHARD]));
        assert!(report.rewritten == 0 && report.resilvers.is_empty(), "{report:?}");
    }
}

#[test]
fn a_missing_body_that_an_entry_refers_to_is_lost_not_absent() {
    let root = tempfile::tempdir().unwrap();
    fill(&open_one(root.path()));
    meddle(root.path(), |db| {
        db.delete_cf(&db.cf_handle("blob").unwrap(), log_key(SHARD, 700)).unwrap();
        db.put_cf(&db.cf_handle("log").unwrap(), log_key(OTHER, 30), [1, 0xff]).unwrap();
    });
    let volume = open_one(root.path());
    let report = scrub(&volume);
    let found: BTreeSet<_> = report.findings.iter().map(|one| (one.key.as_str(), one.group)).collect();
    assert_eq!(found, BTreeSet::from([("blob/7/700", Some(SHARD)), ("log/9/30", Some(OTHER))]), "{report:?}");
    assert_eq!(report.lost, 2);
    // Of one group only.
    let of = |group| ScrubOptions { group: Some(group), bytes_per_s: 1 << 40, ..ScrubOptions::default() };
    for (group, key) in [(SHARD, "blob/7/700"), (OTHER, "log/9/30")] {
        let progress = ScrubProgress::default();
        let report = volume.scrub(&of(group), &progress).unwrap();
        assert_eq!(report.findings.iter().map(|one| one.key.as_str()).collect::<Vec<_>>(), [key]);
        assert_eq!(report.groups_lost, BTreeSet::from([group]));
        assert!((ENTRIES..=ENTRIES * 2).contains(&report.records), "{}", report.records);
        assert_eq!(progress.records(), report.records);
    }
}

/// Applies each delivery at once, be its entry written by then or not, as a replica does when others have committed it.
fn deliver_and_expunge(volume: &Volume, done: &AtomicBool) {
    let group = volume.group(SHARD).unwrap();
    let shard = group.shard();
    let account = AccountId(1);
    let mut index = 0;
    let mut run = |command: Command, body: Option<Bytes>| {
        index += 1;
        let len = body.as_ref().map(|body| body.len() as u64);
        let (done, durable) = common::done();
        group.append(vec![entry(index, command.encode(stamp(1), 0), body)], done).unwrap();
        let applied = shard.apply(index, stamp(1), command, len, marker(index)).unwrap();
        applied.0.unwrap();
        (index, durable)
    };
    let mut round = 0u64;
    while !done.load(Ordering::Relaxed) {
        round += 1;
        let recipient = Recipient { account, fingerprint: [round as u8; 32], quota: Quota::NONE };
        let deliver = Command::Deliver {
            recipients: vec![recipient],
            body: BodySource::Inline,
            digest: Bytes::from_static(b"digest"),
            date: InternalDate::default(),
            settle: vec![[round.wrapping_sub(1) as u8; 32]],
        };
        let (index, durable) = run(deliver, Some(body(round)));
        if round.is_multiple_of(5) {
            durable.recv().unwrap().unwrap();
            let mailbox = shard.mailbox(account, &name("INBOX")).unwrap().unwrap().id;
            let uids = Some(UidSet::from_range(1, round as u32 - 3));
            run(Command::Expunge { account, mailbox, uids, only_deleted: false }, None);
            group.purge_to(index, marker(index)).unwrap();
        }
    }
}

#[test]
fn a_scrub_beside_writes_gives_no_alarm() {
    for mirrored in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let volume = if mirrored { open_mirror(root.path()) } else { open_one(root.path()) };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = Stop(&done);
            for id in 0..3 {
                let (volume, done) = (&volume, &done);
                scope.spawn(move || {
                    let group = volume.group(GroupId(id)).unwrap();
                    let (mut next, mut round) = (1, 0u64);
                    while !done.load(Ordering::Relaxed) {
                        round += 1;
                        let end = next + 20;
                        let entries = (next..end)
                            .map(|index| entry(index, head(index), (index % 3 != 0).then(|| body(index + round))));
                        append(&group, entries.collect());
                        group.set_applied(marker(end)).unwrap();
                        next = end;
                        match round % 7 {
                            3 => {
                                group.truncate_after(Some(end - 6)).unwrap();
                                next = end - 5;
                            }
                            5 => group.purge_to(end.saturating_sub(60), marker(1)).unwrap(),
                            _ => {}
                        }
                    }
                });
            }
            scope.spawn(|| deliver_and_expunge(&volume, &done));
            for _ in 0..25 {
                let report = scrub(&volume);
                assert!(report.is_clean(), "{report:?}");
            }
        });
    }
}

#[test]
fn a_cancelled_scrub_says_so() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_mirror(root.path());
    fill(&volume);
    let progress = ScrubProgress::default();
    // So slow that it would take hours.
    let slow = ScrubOptions { bytes_per_s: 1000, ..ScrubOptions::default() };
    let report = std::thread::scope(|scope| {
        let running = scope.spawn(|| volume.scrub(&slow, &progress).unwrap());
        wait_until("it reads", || progress.bytes() > 0);
        assert!(progress.records_estimated() > ENTRIES && progress.family() == "blob");
        progress.cancel();
        running.join().unwrap()
    });
    assert!(!report.complete && report.is_clean() && report.records < ENTRIES, "{report:?}");
}

#[test]
fn a_half_whose_disk_does_not_answer_is_dropped_and_the_other_is_read() {
    let root = tempfile::tempdir().unwrap();
    let script = Script::new();
    let volume =
        Volume::open(VolumeOptions { faults: Some(script.clone()), ..small(mirror_options(root.path())) }).unwrap();
    fill(&volume);
    script.set(HalfName::B, Operation::Read, Failure::Error(EIO));
    let report = scrub(&volume);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.records, WHOLE);
    let stale = |half: &storage::HalfStatus| matches!(half.state, HalfState::Stale { .. });
    assert!(volume.halves().iter().any(|half| half.name == HalfName::B && stale(half)), "{:?}", volume.halves());
}
