use std::collections::BTreeMap;

use super::check;
use crate::history::{Change, Entries, Operation, Outcome, Reading, Seen, Status};

fn create(at: u64, marker: &str, uid: Option<u32>, outcome: Outcome) -> Operation {
    let change = Change::Create { to: "a/INBOX".to_owned(), marker: marker.to_owned(), uid };
    Operation { began: at, ended: at + 1, change, outcome }
}

fn reading(at: u64, messages: &[(u32, &str)]) -> Reading {
    let seen = |marker: &str| Seen {
        marker: marker.to_owned(),
        intact: true,
        seen: false,
        value: 0,
        mod_seq: 1,
        octets: 5,
        size: 5,
    };
    Reading {
        place: "a/INBOX".to_owned(),
        began: at,
        ended: at + 1,
        uid_validity: 7,
        uid_next: 100,
        highest_mod_seq: 9,
        exists: messages.len() as u32,
        status: None,
        messages: messages.iter().map(|(uid, marker)| (*uid, seen(marker))).collect::<BTreeMap<_, _>>(),
    }
}

fn faults(operations: Vec<Operation>, readings: Vec<Reading>) -> String {
    check(&Entries { operations, readings }).join("; ")
}

#[test]
fn a_clean_history_has_no_faults() {
    let operations = vec![
        create(0, "one", Some(1), Outcome::Ok),
        create(2, "two", None, Outcome::Ok),
        create(4, "maybe", None, Outcome::Unknown),
        create(6, "no", None, Outcome::Refused),
    ];
    let with = reading(10, &[(1, "one"), (2, "two"), (3, "maybe")]);
    let without = reading(10, &[(1, "one"), (2, "two")]);
    assert_eq!(faults(operations.clone(), vec![with]), "");
    assert_eq!(faults(operations, vec![without]), "");
}

#[test]
fn loss_duplicates_phantoms_and_refused_messages_are_found() {
    let one = || vec![create(0, "one", None, Outcome::Ok)];
    assert!(faults(one(), vec![reading(5, &[])]).contains("lost: one"));
    assert!(faults(one(), vec![reading(5, &[(1, "one"), (2, "one")])]).contains("too often: one"));
    assert!(faults(one(), vec![reading(5, &[(1, "one"), (2, "two")])]).contains("never sent: two"));
    let refused = vec![create(0, "no", None, Outcome::Refused)];
    assert!(faults(refused, vec![reading(5, &[(1, "no")])]).contains("too often: no"));
    let unknown = vec![create(0, "maybe", None, Outcome::Unknown)];
    assert!(faults(unknown, vec![reading(5, &[(1, "maybe"), (2, "maybe")])]).contains("too often: maybe"));
}

#[test]
fn a_reading_amid_an_operation_may_show_it_or_not() {
    let late = Operation { ended: 20, ..create(4, "one", None, Outcome::Ok) };
    assert_eq!(faults(vec![late.clone()], vec![reading(10, &[])]), "");
    assert_eq!(faults(vec![late], vec![reading(10, &[(1, "one")])]), "");
}

#[test]
fn uids_that_are_reused_or_out_of_order_are_found() {
    let two = vec![create(0, "one", Some(1), Outcome::Ok), create(5, "two", Some(1), Outcome::Ok)];
    assert!(faults(two, vec![]).contains("UID reused: 1"));
    let swapped = vec![create(0, "one", Some(2), Outcome::Ok), create(5, "two", Some(1), Outcome::Ok)];
    assert!(faults(swapped, vec![]).contains("order: one"));
    let by_reading = vec![create(0, "one", None, Outcome::Ok), create(5, "two", None, Outcome::Ok)];
    assert!(faults(by_reading, vec![reading(9, &[(4, "one"), (3, "two")])]).contains("order: one"));
    let told = vec![create(0, "one", Some(1), Outcome::Ok)];
    assert!(faults(told, vec![reading(9, &[(2, "one"), (1, "x")])]).contains("UID reused: 1"));
}

#[test]
fn what_was_expunged_stays_away_and_what_was_moved_is_in_one_place() {
    let place = |mailbox: &str| format!("a/{mailbox}");
    let expunge = |outcome| Operation {
        began: 3,
        ended: 4,
        change: Change::Expunge { from: place("INBOX"), uid: 1, marker: "one".to_owned() },
        outcome,
    };
    let one = create(0, "one", Some(1), Outcome::Ok);
    let gone = vec![one.clone(), expunge(Outcome::Ok)];
    assert_eq!(faults(gone.clone(), vec![reading(9, &[])]), "");
    assert!(faults(gone, vec![reading(9, &[(1, "one")])]).contains("came back: one"));
    let open = vec![one.clone(), expunge(Outcome::Unknown)];
    assert_eq!(faults(open.clone(), vec![reading(9, &[])]), "");
    assert_eq!(faults(open, vec![reading(9, &[(1, "one")])]), "");
    let moved = Operation {
        began: 3,
        ended: 4,
        change: Change::Move {
            from: place("INBOX"),
            from_uid: 1,
            to: place("Other"),
            marker: "one".to_owned(),
            uid: None,
            value: Some(0),
        },
        outcome: Outcome::Unknown,
    };
    let other = |messages: &[(u32, &str)]| Reading { place: place("Other"), ..reading(10, messages) };
    let both = faults(vec![one.clone(), moved.clone()], vec![reading(9, &[(1, "one")]), other(&[(1, "one")])]);
    assert!(both.contains("over all mailboxes one is there 2 times"), "{both}");
    let neither = faults(vec![one.clone(), moved.clone()], vec![reading(9, &[]), other(&[])]);
    assert!(neither.contains("over all mailboxes one is there 0 times"), "{neither}");
    assert_eq!(faults(vec![one, moved], vec![reading(9, &[]), other(&[(1, "one")])]), "");
}

#[test]
fn flags_are_those_of_the_last_acknowledged_write_or_of_an_open_one() {
    let flag = |at: u64, value: u32, outcome| Operation {
        began: at,
        ended: at + 1,
        change: Change::Flag { at: "a/INBOX".to_owned(), uid: 1, marker: "one".to_owned(), value },
        outcome,
    };
    let seen = |value: u32| {
        let mut reading = reading(20, &[(1, "one")]);
        reading.messages.values_mut().for_each(|seen| seen.value = value);
        reading
    };
    let writes = vec![
        create(0, "one", Some(1), Outcome::Ok),
        flag(2, 1, Outcome::Ok),
        flag(4, 2, Outcome::Ok),
        flag(6, 3, Outcome::Unknown),
    ];
    assert_eq!(faults(writes.clone(), vec![seen(2)]), "");
    assert_eq!(faults(writes.clone(), vec![seen(3)]), "");
    assert!(faults(writes.clone(), vec![seen(1)]).contains("flags: one"));
    assert!(faults(writes, vec![seen(0)]).contains("flags: one"));
    let copied = |value| Operation {
        began: 0,
        ended: 1,
        change: Change::Copy { to: "a/INBOX".to_owned(), marker: "one".to_owned(), uid: Some(1), value },
        outcome: Outcome::Ok,
    };
    assert_eq!(faults(vec![copied(Some(4))], vec![seen(4)]), "");
    assert_eq!(faults(vec![copied(None)], vec![seen(4)]), "");
    assert!(faults(vec![copied(Some(4))], vec![seen(0)]).contains("flags: one"));
}

#[test]
fn counters_that_go_back_and_bytes_that_change_are_found() {
    let one = || vec![create(0, "one", Some(1), Outcome::Ok)];
    let later = |change: &dyn Fn(&mut Reading)| {
        let mut second = reading(9, &[(1, "one")]);
        change(&mut second);
        faults(one(), vec![reading(5, &[(1, "one")]), second])
    };
    assert_eq!(later(&|_| {}), "");
    assert!(later(&|reading| reading.uid_validity = 8).contains("UIDVALIDITY"));
    assert!(later(&|reading| reading.uid_next = 50).contains("UIDNEXT"));
    assert!(later(&|reading| reading.highest_mod_seq = 3).contains("HIGHESTMODSEQ"));
    assert!(later(&|reading| reading.exists = 2).contains("counters"));
    let change = |reading: &mut Reading| reading.messages.values_mut().for_each(|seen| seen.intact = false);
    assert!(later(&change).contains("changed bytes"));
    let back = |reading: &mut Reading| reading.messages.values_mut().for_each(|seen| seen.mod_seq = 0);
    assert!(later(&back).contains("MODSEQ of UID 1"));
}

#[test]
fn counters_and_sizes_that_are_not_what_is_there_are_found() {
    let right = Status { messages: 2, unseen: 1, uid_next: 100, uid_validity: 7, highest_mod_seq: 9 };
    let operations = || vec![create(0, "one", Some(1), Outcome::Ok), create(2, "two", Some(2), Outcome::Ok)];
    let said = |change: &dyn Fn(&mut Status), of_message: &dyn Fn(&mut Seen)| {
        let mut reading = reading(9, &[(1, "one"), (2, "two")]);
        let mut status = right;
        change(&mut status);
        reading.status = Some(status);
        reading.messages.get_mut(&1).unwrap().seen = true;
        of_message(reading.messages.get_mut(&2).unwrap());
        faults(operations(), vec![reading])
    };
    assert_eq!(said(&|_| {}, &|_| {}), "");
    assert!(said(&|_| {}, &|two| two.seen = true).contains("STATUS of a/INBOX"));
    assert!(said(&|_| {}, &|two| two.size = 6).contains("size: two"));
    let changes: [fn(&mut Status); 5] = [
        |status| status.messages += 1,
        |status| status.unseen -= 1,
        |status| status.uid_next += 1,
        |status| status.uid_validity += 1,
        |status| status.highest_mod_seq += 1,
    ];
    for change in changes {
        assert!(said(&change, &|_| {}).contains("STATUS of a/INBOX"));
    }
}
