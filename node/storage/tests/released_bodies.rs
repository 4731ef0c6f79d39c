//! The body of a message that was expunged while a session was reading it: had by its chunks, on any replica, until a purge
//! has it.

mod common;

use std::sync::Barrier;

use bytes::Bytes;
use common::{Replica, marker, name, open};
use storage::{BodyChunk, BodyId, BodySource, Command, Recipient};
use types::{AccountId, InternalDate, Quota};

const ALICE: AccountId = AccountId(1);
const OCTETS: u64 = 3000;

fn deliver(replica: &mut Replica, number: u8) {
    let command = Command::Deliver {
        recipients: vec![Recipient { account: ALICE, fingerprint: [number; 32], quota: Quota::NONE }],
        body: BodySource::Inline,
        digest: Bytes::from_static(b"digest"),
        date: InternalDate::default(),
        settle: Vec::new(),
    };
    replica.run_with(command, Some(Bytes::from(vec![number; OCTETS as usize]))).unwrap();
}

fn expunge_all(replica: &mut Replica) {
    let mailbox = replica.group.shard().mailbox(ALICE, &name("INBOX")).unwrap().unwrap().id;
    replica.run(Command::Expunge { account: ALICE, mailbox, uids: None, only_deleted: false }).unwrap();
}

#[test]
fn a_body_that_no_message_has_any_more_is_had_by_its_chunks_until_a_purge() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    let shard = replica.group.shard();
    deliver(&mut replica, 1);
    let chunks: Vec<_> = shard.pin_body(BodyId(1)).unwrap().unwrap().chunks().collect();
    assert_eq!(chunks, [BodyChunk { index: 1, octets: OCTETS }]);
    assert!(shard.pin_released(&chunks).unwrap().is_none(), "a message has it");
    expunge_all(&mut replica);
    let pinned = shard.pin_released(&chunks).unwrap().unwrap();
    assert_eq!(pinned.size(), OCTETS);
    let unknown = BodyChunk { index: replica.next, octets: 1 };
    assert!(shard.pin_released(&[chunks[0], unknown]).unwrap().is_none(), "not all of it is there");
    // What is held stays, what nobody holds goes.
    replica.group.purge_to(replica.next - 1, marker(0)).unwrap();
    assert_eq!(pinned.read(1000, OCTETS).unwrap().concat(), vec![1; 2000]);
    drop(pinned);
    deliver(&mut replica, 2);
    replica.group.purge_to(replica.next - 1, marker(0)).unwrap();
    assert!(shard.pin_released(&chunks).unwrap().is_none());
    assert_eq!(replica.group.blob_count().unwrap(), 1);
}

#[test]
fn what_is_had_of_a_body_beside_a_purge_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let volume = open(directory.path());
    let mut replica = Replica::new(&volume);
    let shard = replica.group.shard();
    let (group, both) = (replica.group.clone(), Barrier::new(2));
    for number in 0..50 {
        let index = replica.next;
        deliver(&mut replica, number);
        expunge_all(&mut replica);
        let last = replica.next - 1;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                both.wait();
                group.purge_to(last, marker(0)).unwrap();
            });
            both.wait();
            if let Some(pinned) = shard.pin_released(&[BodyChunk { index, octets: OCTETS }]).unwrap() {
                assert_eq!(pinned.read(0, OCTETS).unwrap().concat(), vec![number; OCTETS as usize]);
            }
        });
    }
}
