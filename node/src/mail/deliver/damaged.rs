//! Mail to several accounts of which one has damaged records, on a node that has the only replica.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use proto::Body;
use proto::wire::{DeliverRequest, Recipient, RecipientReply};
use rocksdb::{DB, IteratorMode, Options};
use tokio::sync::watch;
use types::{AccountId, MailError, MailboxName, ShardId};

use super::{CHUNK_OCTETS, PROPOSAL_OCTETS_MAX};
use crate::groups::Groups;
use crate::groups::tests::{create_account, eventually, groups, opened, settings, start};
use crate::{Inner, Node};

const ACCOUNTS: [u64; 3] = [1, 2, 3];
const DAMAGED: u64 = 2;
const FAMILIES: [&str; 4] = ["log", "blob", "state", "meta"];
/// Kinds of records of the state, behind the four octets of a group's space.
const MAILBOX: u8 = 4;
const UPLOAD: u8 = 11;

/// The database of a volume that is closed; an error while it is not.
fn database(directory: &Path) -> Result<DB, rocksdb::Error> {
    let mut options = Options::default();
    options.set_track_and_verify_wals_in_manifest(true);
    DB::open_cf(&options, directory.join("disk-1/db/db"), FAMILIES)
}

/// The keys of a kind.
fn keys(db: &DB, kind: u8) -> Vec<Vec<u8>> {
    let all = db.iterator_cf(&db.cf_handle("state").unwrap(), IteratorMode::Start);
    all.map(|item| item.unwrap().0.into_vec()).filter(|key| key.get(4) == Some(&kind)).collect()
}

async fn close(groups: Arc<Groups>, directory: &Path) -> DB {
    groups.stop().await;
    groups.volumes.close();
    drop(groups);
    eventually("its database is let go of", async || database(directory).is_ok()).await;
    database(directory).unwrap()
}

/// Nobody can read the record of the INBOX of one account.
async fn with_damage(directory: &Path) -> Node {
    let groups = groups(directory, 1).await;
    let shard = start(&groups, 0).await;
    for account in ACCOUNTS {
        create_account(&shard, account).await.unwrap();
    }
    drop(shard);
    let db = close(groups, directory).await;
    let inbox = keys(&db, MAILBOX).into_iter().find(|key| key[5..13] == DAMAGED.to_be_bytes()).unwrap();
    db.put_cf(&db.cf_handle("state").unwrap(), inbox, [9]).unwrap();
    db.flush_wal(true).unwrap();
    drop(db);
    let groups = opened(directory, 1).await;
    eventually("it leads", async || groups.shard(ShardId(0)).is_ok_and(|shard| shard.group.leads())).await;
    let inner = Inner {
        settings: settings(directory, 1),
        groups,
        bounds: Default::default(),
        doubted: Default::default(),
        account_moves: Default::default(),
        short_shards: Default::default(),
        scrubbing: Arc::default(),
        certificate_ends_unix_s: 0,
        started: Instant::now(),
        stop: watch::Sender::new(false),
        tasks: Default::default(),
    };
    Node { inner: Arc::new(inner) }
}

async fn deliver(node: &Node, octets: usize) -> Vec<RecipientReply> {
    let recipient = |account: u64| Recipient { account, fingerprint: Bytes::from(vec![account as u8; 32]) };
    let request = DeliverRequest { recipients: ACCOUNTS.map(recipient).to_vec(), ..DeliverRequest::default() };
    let mail = [b"Subject: x\r\n\r\n".to_vec(), vec![b'x'; octets]].concat();
    node.deliver_body(request, Body::from_bytes(mail.into())).await.unwrap().recipients
}

fn messages(node: &Node, account: u64) -> u32 {
    let state = node.groups().shard(ShardId(0)).unwrap().state();
    let inbox = state.mailbox(AccountId(account), &MailboxName::parse("INBOX").unwrap());
    inbox.unwrap().unwrap().messages
}

async fn is_brought_to_the_sound_ones_once(octets: usize) {
    let directory = tempfile::tempdir().unwrap();
    let node = with_damage(directory.path()).await;
    for is_retry in [false, true] {
        for (reply, account) in deliver(&node, octets).await.iter().zip(ACCOUNTS) {
            let refused = reply.error.as_ref().map(MailError::from);
            match account {
                DAMAGED => assert!(matches!(refused, Some(MailError::Corrupt { .. })), "{refused:?}"),
                _ => assert_eq!((refused, reply.uid, reply.duplicate), (None, 1, is_retry), "account {account}"),
            }
        }
    }
    assert_eq!([1, 3].map(|account| messages(&node, account)), [1, 1]);
    let groups = node.groups().clone();
    drop(node);
    let db = close(groups, directory.path()).await;
    assert_eq!(keys(&db, UPLOAD), Vec::<Vec<u8>>::new(), "pieces of what was refused are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_recipients_the_sound_ones_get_the_mail_once_and_the_damaged_one_is_refused() {
    is_brought_to_the_sound_ones_once(10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pieces_of_a_large_mail_are_dropped_where_its_last_command_is_refused() {
    const { assert!(2 * CHUNK_OCTETS > PROPOSAL_OCTETS_MAX) };
    is_brought_to_the_sound_ones_once(2 * CHUNK_OCTETS).await;
}
