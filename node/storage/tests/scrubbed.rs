//! What the last scrub found outlives the process, and the disk that it was written on.

mod common;

use common::mirror::{assert_equal_halves, open_mirror, wait_whole, write_entries};
use common::{SHARD, open};
use storage::{ScrubHistory, ScrubOptions, ScrubProgress, ScrubReport, Scrubbed};

#[test]
fn when_a_volume_was_scrubbed_is_known_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let volume = open(root.path());
    write_entries(&volume.group(SHARD).unwrap(), 100);
    assert_eq!(volume.scrub_history(), ScrubHistory::default());
    volume.note_unscrubbed(1_700_000_000).unwrap();
    drop(volume);
    let volume = open(root.path());
    assert_eq!(volume.scrub_history(), ScrubHistory { since_unix_s: Some(1_700_000_000), ..Default::default() });
    let report = volume.scrub(&ScrubOptions::default(), &ScrubProgress::default()).unwrap();
    let scrubbed = Scrubbed::new(&report, 1_700_000_500);
    assert!(scrubbed.records >= 100 && scrubbed.bytes > 0 && scrubbed.findings == 0, "{scrubbed:?}");
    volume.note_scrubbed(None, &report, 1_700_000_500).unwrap();
    drop(volume);
    let volume = open(root.path());
    let known = ScrubHistory { since_unix_s: Some(1_700_000_500), last: Some(scrubbed), ..Default::default() };
    assert_eq!(volume.scrub_history(), known);
    // The record itself is one that a scrub can read.
    assert!(volume.scrub(&ScrubOptions::default(), &ScrubProgress::default()).unwrap().is_clean());
}

#[test]
fn a_half_that_is_made_anew_knows_of_the_scrub_too() {
    let root = tempfile::tempdir().unwrap();
    let volume = open_mirror(root.path());
    write_entries(&volume.group(SHARD).unwrap(), 20);
    let scrubbed = Scrubbed { unix_s: 7, records: 1, bytes: 2, findings: 3, lost: 0, differing: 1, rewritten: 2 };
    let report =
        ScrubReport { records: 1, bytes: 2, findings_beyond: 3, differing: 1, rewritten: 2, ..ScrubReport::default() };
    volume.note_scrubbed(None, &report, 7).unwrap();
    drop(volume);
    std::fs::remove_dir_all(root.path().join("a")).unwrap();
    let volume = open_mirror(root.path());
    wait_whole(&volume);
    drop(volume);
    assert_equal_halves(root.path());
    std::fs::remove_dir_all(root.path().join("b")).unwrap();
    let volume = open_mirror(root.path());
    assert_eq!(volume.scrub_history().last, Some(scrubbed));
}
