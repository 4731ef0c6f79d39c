//! A replica that is begun empty knows from its first moment on disk what it must not do yet.

mod common;

use bytes::Bytes;
use common::{SHARD, append, entry, open};
use storage::StorageError;

#[test]
fn a_group_is_begun_with_all_that_binds_it_in_one_write() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let before = volume.statistics();
    volume.begin(SHARD, &Bytes::from_static(b"vote"), 42).unwrap();
    let after = volume.statistics();
    // Between two, a crash would leave a group that votes at once.
    assert_eq!((after.batches - before.batches, after.synced_writes - before.synced_writes), (1, 1));
    let group = volume.group(SHARD).unwrap();
    assert_eq!((group.vote().unwrap().as_deref(), group.votes_from().unwrap()), (Some(&b"vote"[..]), Some(42)));
    append(&group, vec![entry(7, "head", None)]);
    drop((group, volume));
    let volume = open(directory.path());
    let group = volume.group(SHARD).unwrap();
    assert_eq!((group.vote().unwrap().as_deref(), group.votes_from().unwrap()), (Some(&b"vote"[..]), Some(42)));
    assert!(matches!(volume.begin(SHARD, &Bytes::new(), 1), Err(StorageError::Misuse(_))));
    volume.drop_group(SHARD).unwrap();
    assert_eq!(volume.strays().unwrap(), Vec::<String>::new());
    volume.begin(SHARD, &Bytes::new(), 1).unwrap();
    assert_eq!(volume.group(SHARD).unwrap().votes_from().unwrap(), Some(1));
}
