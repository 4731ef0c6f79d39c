//! A FETCH before a cluster whose nodes go away amid it, and whose replicas are damaged.

use std::time::Duration;

use proto::wire::fetch_item::Item;
use proto::wire::{FetchRequest, Section, UidSet};
use router::cluster::FetchStream;
use types::{MailError, MailResult};

use crate::cluster::{ALICE, followed, followed_for};
use crate::support::cluster::{Fault, TestCluster, shard_of};

#[tokio::test]
async fn a_fetch_broken_anywhere_comes_whole_and_each_item_once() {
    let test = TestCluster::new();
    let bodies: Vec<String> = (0..5).map(|i| format!("{i}").repeat(10 + 37 * i)).collect();
    bodies.iter().for_each(|body| test.put(ALICE, body.as_bytes()));
    let cluster = followed_for(&test, Duration::from_secs(10)).await;
    let account = test.id(ALICE);
    let request = FetchRequest {
        shard: shard_of(account),
        account,
        mailbox: 1,
        uids: Some(UidSet { bounds: vec![1, 4] }),
        sections: vec![
            Section::default(),
            Section { has_partial: true, offset: 5, octets_max: 60, ..Section::default() },
        ],
        ..FetchRequest::default()
    };
    for breaks in [vec![], vec![0], vec![1], vec![2, 3], vec![5, 1, 1], vec![4, 0, 2], vec![12, 3], vec![22]] {
        for after in &breaks {
            test.plan("fetch", ALICE, Fault::Break(*after));
        }
        let mut stream = cluster.shards().fetch(request.clone());
        let mut got: Vec<(u32, Vec<u8>, Vec<u8>)> = Vec::new();
        let mut section = 0;
        while let Some(item) = stream.next().await {
            match item.unwrap().item.unwrap() {
                Item::Message(message) => {
                    let mut sections = message.sections.into_iter().map(|section| section.data.to_vec());
                    got.push((message.uid, sections.next().unwrap(), sections.next().unwrap()));
                    section = 0;
                }
                Item::Data(data) => {
                    // A client is sent one section whole before the next begins.
                    assert!(data.section >= section, "{breaks:?}");
                    section = data.section;
                    let (_, first, second) = got.last_mut().unwrap();
                    (if data.section == 0 { first } else { second }).extend_from_slice(&data.data);
                }
                Item::Unread(_) => panic!("everything can be read"),
            }
        }
        let expected: Vec<(u32, Vec<u8>, Vec<u8>)> = (0..4)
            .map(|i| {
                let body = bodies[i].as_bytes();
                (i as u32 + 1, body.to_vec(), body[5..body.len().min(65)].to_vec())
            })
            .collect();
        assert_eq!(got, expected, "{breaks:?}");
        test.state.lock().faults.clear();
    }
}

/// Another session expunges what is being read, and the node goes amid it.
#[tokio::test]
async fn a_message_that_is_expunged_amid_it_comes_whole_while_its_body_is_left() {
    for is_left in [true, false] {
        let test = TestCluster::new();
        let bodies: Vec<Vec<u8>> = (0..3).map(|i| format!("{i}").repeat(90 + i).into_bytes()).collect();
        bodies.iter().for_each(|body| test.put(ALICE, body));
        let cluster = followed_for(&test, Duration::from_secs(10)).await;
        let account = test.id(ALICE);
        let request = FetchRequest {
            shard: shard_of(account),
            account,
            mailbox: 1,
            uids: Some(UidSet { bounds: vec![1, 3] }),
            sections: vec![
                Section::default(),
                Section { has_partial: true, offset: 5, octets_max: 60, ..Section::default() },
            ],
            ..FetchRequest::default()
        };
        // Amid the first section, in its rest, behind it, and in the second one.
        for after in [2, 2, 8, 1] {
            test.plan("fetch", ALICE, Fault::Break(after));
        }
        let mut stream = cluster.shards().fetch(request);
        let (mut got, mut items, mut ended) = (Vec::<(u32, Vec<Vec<u8>>)>::new(), 0, Ok(()));
        while let Some(item) = stream.next().await {
            match item.map(|item| item.item.unwrap()) {
                Ok(Item::Message(message)) => {
                    let sections = message.sections.into_iter().map(|section| section.data.to_vec());
                    got.push((message.uid, sections.collect()));
                }
                Ok(Item::Data(data)) => {
                    got.last_mut().unwrap().1[data.section as usize].extend_from_slice(&data.data);
                }
                Ok(Item::Unread(_)) => panic!("everything can be read"),
                Err(error) => ended = Err(error),
            }
            items += 1;
            if items == 2 {
                let mut state = test.state.lock();
                state.expunge(account, &types::UidSet::from_range(1, 2)).unwrap();
                state.expunged.retain(|_, _| is_left);
            }
        }
        let whole = |uid: u32| {
            let body = &bodies[uid as usize - 1];
            (uid, vec![body.clone(), body[5..65].to_vec()])
        };
        if is_left {
            // What had not begun is left out.
            assert_eq!((got, ended), (vec![whole(1), whole(3)], Ok(())));
        } else {
            assert_eq!(got.len(), 1);
            assert!(got[0].1[0].len() < bodies[0].len() && ended == Err(MailError::Unavailable), "{got:?} {ended:?}");
        }
    }
}

/// Messages, and the nodes that cannot read them.
type Unreadable<'a> = &'a [(u32, &'a [u64])];

/// What came of each message, by UID, and what ended the stream or was left out.
async fn fetched(stream: &mut FetchStream) -> (Vec<(u32, Vec<u8>)>, MailResult<String>) {
    let mut got: Vec<(u32, Vec<u8>)> = Vec::new();
    while let Some(item) = stream.next().await {
        match item.map(|item| item.item.unwrap()) {
            Ok(Item::Message(message)) => {
                got.push((message.uid, message.sections.into_iter().next().unwrap().data.to_vec()));
            }
            Ok(Item::Data(data)) => got.last_mut().unwrap().1.extend_from_slice(&data.data),
            Ok(Item::Unread(_)) => panic!("the stream sees to it"),
            Err(error) => return (got, Err(error)),
        }
    }
    (got, Ok(stream.unread().to_string()))
}

#[tokio::test]
async fn what_a_replica_cannot_read_is_asked_of_each_and_what_none_can_is_left_out() {
    let test = TestCluster::new();
    let bodies: Vec<Vec<u8>> = (0..5).map(|i| format!("{i}").repeat(10 + 37 * i).into_bytes()).collect();
    bodies.iter().for_each(|body| test.put(ALICE, body));
    let cluster = followed_for(&test, Duration::from_secs(10)).await;
    let account = test.id(ALICE);
    let request = FetchRequest {
        shard: shard_of(account),
        account,
        mailbox: 1,
        uids: Some(UidSet { bounds: vec![1, 5] }),
        sections: vec![Section::default()],
        tells_unread: true,
        ..FetchRequest::default()
    };
    let all = [1, 2, 3];
    let cases: [(Unreadable<'_>, &str); 6] = [
        (&[], ""),
        (&[(3, &[2])], ""),
        (&[(1, &[1, 2]), (2, &[1, 3]), (5, &[2, 3])], ""),
        (&[(3, &all)], "3"),
        (&[(1, &all), (2, &[2, 3]), (3, &all), (4, &all)], "1,3:4"),
        (&[(1, &all), (2, &all), (3, &all), (4, &all), (5, &all)], "1:5"),
    ];
    for (unread, left_out) in cases {
        test.state.lock().unread = unread.iter().map(|(uid, nodes)| (*uid, nodes.to_vec())).collect();
        let lost = |uid: u32| unread.iter().any(|(own, nodes)| *own == uid && nodes.len() == 3);
        let readable = (1..=5).filter(|uid| !lost(*uid)).map(|uid| (uid, bodies[uid as usize - 1].clone()));
        let mut stream = cluster.shards().fetch(request.clone());
        let (got, told) = fetched(&mut stream).await;
        assert_eq!((got, told), (readable.collect(), Ok(left_out.to_owned())), "{unread:?}");
    }
}

#[tokio::test]
async fn the_rest_of_a_message_comes_from_a_replica_that_can_read_it_or_the_stream_ends() {
    let test = TestCluster::new();
    let bodies: Vec<Vec<u8>> = (0..3).map(|i| format!("{i}").repeat(90 + i).into_bytes()).collect();
    bodies.iter().for_each(|body| test.put(ALICE, body));
    let cluster = followed_for(&test, Duration::from_secs(10)).await;
    let account = test.id(ALICE);
    let request = FetchRequest {
        shard: shard_of(account),
        account,
        mailbox: 1,
        uids: Some(UidSet { bounds: vec![1, 3] }),
        sections: vec![Section::default()],
        tells_unread: true,
        ..FetchRequest::default()
    };
    let leader = test.state.lock().leaders[&request.shard];
    let whole: Vec<(u32, Vec<u8>)> = (1..).zip(bodies.clone()).collect();
    test.state.lock().unread_rest.insert(2, vec![leader]);
    let mut stream = cluster.shards().fetch(request.clone());
    assert_eq!(fetched(&mut stream).await, (whole.clone(), Ok(String::new())));
    // What was announced cannot be made good: nothing else may come in its place.
    test.state.lock().unread_rest.insert(2, vec![1, 2, 3]);
    let mut stream = cluster.shards().fetch(request);
    let (got, told) = fetched(&mut stream).await;
    assert_eq!(got[0], whole[0]);
    assert_eq!(got.len(), 2);
    assert!(bodies[1].starts_with(&got[1].1) && got[1].1.len() < bodies[1].len(), "{got:?}");
    assert!(matches!(told, Err(MailError::Corrupt { .. })), "{told:?}");
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_fetch_that_breaks_again_and_again_ends_with_an_error() {
    let test = TestCluster::new();
    test.put(ALICE, b"x");
    let cluster = followed(&test).await;
    for _ in 0..20 {
        test.plan("fetch", ALICE, Fault::Break(0));
    }
    let account = test.id(ALICE);
    let uids = Some(UidSet { bounds: vec![1, 1] });
    let request = FetchRequest { shard: shard_of(account), account, mailbox: 1, uids, ..FetchRequest::default() };
    let mut stream = cluster.shards().fetch(request);
    assert_eq!(stream.next().await, Some(Err(MailError::Deadline)));
    assert_eq!(stream.next().await, None);
}
