//! What the leader of an account's old shard tells of it: as the state is once a majority has said that this node leads.
//! Read in batches, so that a slow target holds neither a thread nor a snapshot.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::wire::export_account_request::What;
use proto::wire::exported_part::Part;
use proto::wire::{
    Done, ExportAccountRequest, ExportMailbox, ExportedListing, ExportedMailbox, ExportedMessage, ExportedOutline,
    ExportedPart, Fingerprints,
};
use proto::{BODY_PIECE_OCTETS, ItemStream, uid_set_from_wire, uid_set_to_wire};
use storage::{
    BodyId, Moved, MovedMessage, MovedPart, MovedSubscription, PinnedBody, Place, Remembered, RememberedFrom,
    ShardState, StorageError,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use types::{AccountId, MailError, MailResult, MailboxId, ShardId, UidSet};

use super::damaged_or;
use crate::Node;
use crate::mail::blocking;
use crate::mail::deliver::fingerprint;

/// Messages read in one visit to the blocking threads, and octets of bodies after which such a visit ends.
const BATCH_MESSAGES: usize = 256;
const BATCH_OCTETS: u64 = 1024 * 1024;
/// Parts that wait for the target.
const PARTS_QUEUED: usize = 8;

pub async fn export(node: &Node, request: ExportAccountRequest) -> MailResult<ItemStream<ExportedPart>> {
    let shard = node.groups().shard(ShardId(request.shard))?;
    let what = request.what.ok_or_else(|| MailError::Invalid("nothing asked for".to_owned()))?;
    let export = Export { state: shard.read().await?, account: AccountId(request.account) };
    let (sender, receiver) = mpsc::channel(PARTS_QUEUED);
    let (node, shard) = (node.clone(), shard.id);
    tokio::spawn(async move {
        let end = match export.send(what, &sender).await {
            Ok(()) => Ok(ExportedPart { part: Some(Part::End(Done {})) }),
            Err(error) => Err(damaged_or(&node, shard, error).await),
        };
        // Nobody may be there to hear.
        drop(sender.send(end).await);
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

type Sender = mpsc::Sender<MailResult<ExportedPart>>;

#[derive(Clone)]
struct Export {
    state: ShardState,
    account: AccountId,
}

/// A message, and what of its body did not fit into the first piece.
struct Batched {
    parts: Vec<Part>,
    rest: Option<(Arc<PinnedBody>, Range<u64>)>,
}

impl Export {
    async fn send(self, what: What, sender: &Sender) -> MailResult<()> {
        let Export { state, account } = self.clone();
        let parts = match what {
            What::Mailbox(mailbox) => return self.mailbox(mailbox, sender).await,
            What::RequestsSinceMs(since) => return self.remembered(since, requests, sender).await,
            What::FingerprintsSinceMs(since) => return self.remembered(since, deliveries, sender).await,
            What::Outline(_) => blocking(move || outline(&state, account)).await?,
            What::Forgotten(asked) => {
                let asked: Vec<_> =
                    asked.fingerprints.iter().map(|bytes| fingerprint(bytes)).collect::<MailResult<_>>()?;
                let forgotten = blocking(move || Ok(state.forgotten(account, &asked)?)).await?;
                let fingerprints = forgotten.iter().map(|one| Bytes::copy_from_slice(one)).collect();
                vec![Part::Forgotten(Fingerprints { fingerprints })]
            }
        };
        send_all(parts, sender).await.map(|_| ())
    }

    /// A part at a time. What is applied meanwhile may be missing: its stamp is hardly older than what is told first.
    async fn remembered(self, since_ms: u64, look: Look, sender: &Sender) -> MailResult<()> {
        let state = self.state.clone();
        let newest = blocking(move || Ok(state.newest_remembered()?)).await?;
        let newest = newest.and_then(|newest| u64::try_from(newest).ok()).unwrap_or(0);
        send_all(vec![Part::NewestMs(newest)], sender).await?;
        let mut from = Some(RememberedFrom::time(since_ms));
        while let Some(at) = from {
            let (state, account) = (self.state.clone(), self.account);
            let part = blocking(move || Ok(look(&state, account, &at)?)).await?;
            let parts = part.found.into_iter().map(|one| Part::Moved(moved(one))).collect();
            if !send_all(parts, sender).await? {
                return Ok(());
            }
            from = part.next;
        }
        Ok(())
    }

    /// The messages that came or changed, ascending. Nothing at all of a mailbox that was deleted.
    async fn mailbox(self, request: ExportMailbox, sender: &Sender) -> MailResult<()> {
        let (id, since) = (MailboxId(request.mailbox), request.since);
        let known = Arc::new(uid_set_from_wire(request.known.as_ref())?);
        let (state, account) = (self.state.clone(), self.account);
        let listing = match blocking(move || state.moved_listing(account, id, since)).await {
            Err(MailError::MailboxGone) => return Ok(()),
            listing => listing?,
        };
        let part = ExportedListing {
            mod_seq: listing.mod_seq,
            uids: Some(uid_set_to_wire(&listing.uids)),
            changed: Some(uid_set_to_wire(&listing.changed)),
            vanished: listing.vanished.as_ref().map(uid_set_to_wire),
        };
        send_all(vec![Part::Listing(part)], sender).await?;
        let mut left = listing.changed;
        while !left.is_empty() {
            let (export, uids, known) = (self.clone(), left, known.clone());
            let (batch, rest) = blocking(move || export.batch(id, uids, &known)).await?;
            left = rest;
            for Batched { parts, rest } in batch {
                if !send_all(parts, sender).await? || !send_rest(rest, sender).await? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Some of the messages, and those that are left.
    fn batch(&self, id: MailboxId, uids: UidSet, known: &UidSet) -> MailResult<(Vec<Batched>, UidSet)> {
        let mut found: Vec<(MovedMessage, BodyId)> = Vec::new();
        self.state.moved_messages(self.account, id, &uids, |message, body| {
            found.push((message, body));
            found.len() < BATCH_MESSAGES
        })?;
        let mut is_last = found.len() < BATCH_MESSAGES;
        let (mut batch, mut octets, mut uid) = (Vec::new(), 0, 0);
        for (message, body) in found {
            uid = message.uid;
            let batched = match known.contains(uid) {
                true => Some(Batched { parts: vec![alone(message)], rest: None }),
                false => self.with_body(message, body, &mut octets)?,
            };
            batch.extend(batched);
            if octets > BATCH_OCTETS {
                is_last = false;
                break;
            }
        }
        let left = if is_last { UidSet::new() } else { uids.difference(&UidSet::from_range(1, uid)) };
        Ok((batch, left))
    }

    /// `None` for a message that was expunged meanwhile: the next pass knows.
    fn with_body(&self, message: MovedMessage, body: BodyId, octets: &mut u64) -> MailResult<Option<Batched>> {
        let Some(digest) = self.state.digest(body)? else { return Ok(None) };
        let Some(pinned) = self.state.pin_body(body)? else { return Ok(None) };
        let (size, pinned) = (pinned.size(), Arc::new(pinned));
        let first = read(&pinned, 0..size.min(BODY_PIECE_OCTETS as u64))?;
        let next = first.len() as u64;
        *octets += next;
        let shared = pinned.is_shared();
        let moved = moved(MovedPart::Message(message));
        let message = ExportedMessage { moved, body: body.0, shared, octets: size, digest };
        let parts = vec![Part::Message(message), Part::Body(first)];
        Ok(Some(Batched { parts, rest: (next < size).then_some((pinned, next..size)) }))
    }
}

type Look = fn(&ShardState, AccountId, &RememberedFrom) -> Result<Remembered<MovedPart>, StorageError>;

fn requests(
    state: &ShardState,
    account: AccountId,
    from: &RememberedFrom,
) -> Result<Remembered<MovedPart>, StorageError> {
    let Remembered { found, next } = state.moved_requests(account, from)?;
    Ok(Remembered { found: found.into_iter().map(MovedPart::Request).collect(), next })
}

fn deliveries(
    state: &ShardState,
    account: AccountId,
    from: &RememberedFrom,
) -> Result<Remembered<MovedPart>, StorageError> {
    let Remembered { found, next } = state.moved_fingerprints(account, from)?;
    Ok(Remembered { found: found.into_iter().map(MovedPart::Fingerprint).collect(), next })
}

fn moved(part: MovedPart) -> Bytes {
    Moved { part: Some(part) }.encode_to_vec().into()
}

fn alone(message: MovedMessage) -> Part {
    Part::Message(ExportedMessage { moved: moved(MovedPart::Message(message)), ..ExportedMessage::default() })
}

fn outline(state: &ShardState, account: AccountId) -> MailResult<Vec<Part>> {
    let outline = state.outline(account)?;
    let now = outline.whereabouts;
    let frozen = match now.place {
        Place::Here => false,
        Place::Frozen => true,
        Place::Coming | Place::Whole | Place::Leaving | Place::Gone => return Err(MailError::NotHere),
    };
    let mut parts = vec![
        Part::Outline(ExportedOutline { frozen, mod_seq_last: now.mod_seq_last }),
        Part::Moved(moved(MovedPart::Account(outline.account))),
    ];
    parts.extend(outline.mailboxes.into_iter().map(|(mailbox, mod_seq)| {
        Part::Mailbox(ExportedMailbox { moved: moved(MovedPart::Mailbox(mailbox)), mod_seq })
    }));
    parts.extend(outline.subscriptions.into_iter().map(|name| {
        let subscription = MovedSubscription { name, on: true };
        Part::Moved(moved(MovedPart::Subscription(subscription)))
    }));
    Ok(parts)
}

fn read(body: &PinnedBody, range: Range<u64>) -> MailResult<Bytes> {
    let mut pieces = body.read(range.start, range.end - range.start)?;
    Ok(if pieces.len() == 1 { pieces.remove(0) } else { pieces.concat().into() })
}

/// False: the target has gone.
async fn send_all(parts: Vec<Part>, sender: &Sender) -> MailResult<bool> {
    for part in parts {
        if sender.send(Ok(ExportedPart { part: Some(part) })).await.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn send_rest(rest: Option<(Arc<PinnedBody>, Range<u64>)>, sender: &Sender) -> MailResult<bool> {
    let Some((body, mut range)) = rest else { return Ok(true) };
    while !range.is_empty() {
        let next = range.end.min(range.start + BODY_PIECE_OCTETS as u64);
        let (body, piece) = (body.clone(), range.start..next);
        let part = Part::Body(blocking(move || read(&body, piece)).await?);
        if !send_all(vec![part], sender).await? {
            return Ok(false);
        }
        range.start = next;
    }
    Ok(true)
}
