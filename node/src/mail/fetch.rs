//! FETCH: messages from the index in ascending UID order, sections from their bodies. Read in batches, so that a slow
//! client holds no thread and no snapshot. A message that can be read nowhere is left out and told; those behind it come.

mod doubted;
mod expunged;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use message::{Digest, Section as Place, SectionText};
use proto::wire::fetch_item::Item;
use proto::wire::{
    FetchItem, FetchRequest, FetchedMessage, FetchedSection, Section, SectionData, UnreadMessage, section,
};
use proto::{BODY_PIECE_OCTETS, ItemStream, uid_set_from_wire};
use storage::{BodyId, MessageMeta, PinnedBody, ShardState};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use types::{AccountId, MailError, MailResult, MailboxId, ModSeq, NodeId, ShardId, UidSet};

pub use self::doubted::Doubted;
use super::{blocking, if_here, storage_error};
use crate::Node;

/// Messages read in one visit to the blocking threads.
const BATCH_MESSAGES: u32 = 256;
/// Messages looked at in one visit, wanted or not: few may have changed since the MODSEQ that is asked for.
const BATCH_VISITED: u32 = 16 * 1024;
/// Sections' bytes read in one visit; a batch ends early above it.
const BATCH_OCTETS: u64 = 1024 * 1024;
/// Sections' bytes that come within their message's item; the rest follows piece by piece.
const INLINE_OCTETS: u64 = 1024 * 1024;
/// Items that wait for a slow client; each is at most a piece of a body.
const ITEMS_QUEUED: usize = 8;
/// Sections in one FETCH; a client that wants more asks twice.
const SECTIONS_MAX: usize = 128;
/// A router that takes nothing for so long, since its client does not, is let go: no body is held for ever.
const STALL_MAX: Duration = Duration::from_secs(600);

impl Node {
    pub(super) async fn fetch_stream(&self, request: FetchRequest) -> MailResult<ItemStream<FetchItem>> {
        if request.sections.len() > SECTIONS_MAX {
            return Err(MailError::Limit("too many sections in one FETCH".to_owned()));
        }
        let state = self.read(request.shard).await?;
        let uids = uid_set_from_wire(request.uids.as_ref())?;
        let (account, mailbox) = (AccountId(request.account), MailboxId(request.mailbox));
        let here = state.clone();
        blocking(move || here.check_here(account)).await?;
        let fetch = Fetch { node: self.clone(), state, account, mailbox, request };
        let (node, shard) = (self.clone(), fetch.request.shard);
        let feed = |sender| async move { feed(fetch, uids, &sender).await };
        Ok(fed(feed, move |fed| async move { node.or_elsewhere(shard, fed).await }))
    }
}

type Sender = mpsc::Sender<MailResult<FetchItem>>;

/// What `feed` sends, and at the end the error that `told` makes of what it came to. A stream that ends without an error
/// has brought all: a fault of ours must not look like that.
fn fed<Feeding, Telling>(
    feed: impl FnOnce(Sender) -> Feeding,
    told: impl FnOnce(MailResult<()>) -> Telling + Send + 'static,
) -> ItemStream<FetchItem>
where
    Feeding: Future<Output = MailResult<()>> + Send + 'static,
    Telling: Future<Output = MailResult<()>> + Send,
{
    let (sender, receiver) = mpsc::channel(ITEMS_QUEUED);
    let feeding = tokio::spawn(feed(sender.clone()));
    tokio::spawn(async move {
        let fed = feeding.await.unwrap_or_else(|e| Err(MailError::Internal(e.to_string())));
        if let Err(error) = told(fed).await {
            drop(sender.send(Err(error)).await);
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

#[derive(Clone)]
struct Fetch {
    node: Node,
    state: ShardState,
    account: AccountId,
    mailbox: MailboxId,
    request: FetchRequest,
}

/// What one visit to the disk brings.
#[derive(Default)]
struct Batch {
    fetched: Vec<Fetched>,
    /// The one behind them, which cannot be read.
    unread: Option<Unread>,
    /// The UID to go on with.
    next: Option<u32>,
}

struct Unread {
    uid: u32,
    /// What is damaged, for the log.
    key: String,
}

/// A message to send, and what of its sections did not fit into it.
struct Fetched {
    message: FetchedMessage,
    body: BodyId,
    rest: Vec<Rest>,
}

struct Rest {
    section: u32,
    source: Source,
}

#[derive(Clone)]
enum Source {
    /// Held: what was announced comes, though another session expunges the message meanwhile (RFC 2180 §4.1).
    Body(Arc<PinnedBody>, Range<u64>),
    Fields(Bytes),
}

impl Source {
    /// The next piece, and what is left after it. Reads the disk.
    fn piece(self) -> MailResult<(Bytes, Option<Source>)> {
        match self {
            Source::Body(body, range) => {
                let octets = (range.end - range.start).min(BODY_PIECE_OCTETS as u64);
                let data = read_pinned(&body, range.start..range.start + octets)?;
                let rest = range.start + octets..range.end;
                Ok((data, (!rest.is_empty()).then_some(Source::Body(body, rest))))
            }
            Source::Fields(mut fields) => {
                let data = fields.split_to(fields.len().min(BODY_PIECE_OCTETS));
                Ok((data, (!fields.is_empty()).then_some(Source::Fields(fields))))
            }
        }
    }

    /// Whether all of it can be read. Reads the disk.
    fn check(&self) -> MailResult<()> {
        let mut source = Some(self.clone());
        while let Some(left) = source {
            source = left.piece()?.1;
        }
        Ok(())
    }
}

async fn feed(fetch: Fetch, uids: UidSet, sender: &Sender) -> MailResult<()> {
    let mut from = uids.first();
    let mut is_found = false;
    while let Some(first) = from {
        let (fetch_batch, uids_batch) = (fetch.clone(), uids.clone());
        let read = move || {
            let (state, account) = (&fetch_batch.state, fetch_batch.account);
            if_here(state, account, |_| fetch_batch.batch(&uids_batch, first))
        };
        let batch = match blocking(read).await {
            // With all its messages.
            Err(MailError::MailboxGone) if fetch.request.rest.is_some() => break,
            other => other?,
        };
        is_found |= !batch.fetched.is_empty() || batch.unread.is_some();
        for fetched in batch.fetched {
            if !fetch.send(fetched, sender).await? {
                return Ok(());
            }
        }
        if let Some(unread) = batch.unread
            && !fetch.tell_unread(unread, sender).await?
        {
            return Ok(());
        }
        from = batch.next;
    }
    match &fetch.request.rest {
        Some(rest) if !is_found => fetch.send_expunged(rest.clone(), sender).await,
        _ => Ok(()),
    }
}

/// Streams what a message's first item left out. False: the caller has gone.
async fn send_rest(rest: Rest, sender: &Sender) -> MailResult<bool> {
    let mut source = Some(rest.source);
    while let Some(left) = source {
        let (data, after) = blocking(move || left.piece()).await?;
        if !send(sender, Item::Data(SectionData { section: rest.section, data })).await {
            return Ok(false);
        }
        source = after;
    }
    Ok(true)
}

/// False: the caller has gone, or takes nothing.
async fn send(sender: &Sender, item: Item) -> bool {
    let sent = tokio::time::timeout(STALL_MAX, sender.send(Ok(FetchItem { item: Some(item) })));
    matches!(sent.await, Ok(Ok(())))
}

impl Fetch {
    /// A message, and all that follows it. False: the caller has gone, or knows that this is the end.
    async fn send(&self, Fetched { message, body, rest }: Fetched, sender: &Sender) -> MailResult<bool> {
        let uid = message.uid;
        if !send(sender, Item::Message(message)).await {
            return Ok(false);
        }
        for rest in rest {
            match send_rest(rest, sender).await {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                // Announced already: it comes from another replica, or whoever waits for it gives the message up.
                Err(MailError::Corrupt { key }) => {
                    self.node.doubted().add(self.request.shard, body);
                    return self.tell_unread(Unread { uid, key }, sender).await.map(|_| false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Tells of a message that cannot be read here. False: the caller has gone. An error where another replica is to be
    /// asked for it, which leads then, or where the caller does not know of messages that are left out.
    async fn tell_unread(&self, Unread { uid, key }: Unread, sender: &Sender) -> MailResult<bool> {
        let request = &self.request;
        if !request.tells_unread {
            return Err(MailError::Corrupt { key });
        }
        self.node.met_damage(request.shard, &key);
        let tried = if request.unread_uid == uid { request.unread_at.as_slice() } else { &[] };
        let tried: Vec<NodeId> = tried.iter().copied().map(NodeId).collect();
        let elsewhere = crate::scrub::leave(&self.node, ShardId(request.shard), &tried).await;
        let unread = UnreadMessage { uid, node: self.node.id().0, elsewhere };
        match (send(sender, Item::Unread(unread)).await, elsewhere) {
            (true, true) => Err(MailError::NotLeader { hint: None }),
            (sent, _) => Ok(sent),
        }
    }

    /// Some messages from `first` on.
    fn batch(&self, uids: &UidSet, first: u32) -> MailResult<Batch> {
        let window = uids.intersection(&UidSet::from_range(first, u32::MAX));
        let mut metas: Vec<MessageMeta> = Vec::new();
        let (mut more, mut visited, mut last) = (None, 0, None);
        let listed = self.state.messages(self.account, self.mailbox, &window, |meta| {
            visited += 1;
            if metas.len() as u32 >= BATCH_MESSAGES || visited > BATCH_VISITED {
                more = Some(meta.uid.0);
                return false;
            }
            last = Some(meta.uid.0);
            if self.is_wanted(&meta) {
                metas.push(meta);
            }
            true
        });
        match (listed, last) {
            (Ok(()), _) => self.read(metas, more),
            // Those before it are sent, and the next batch begins with it.
            (Err(MailError::Corrupt { .. }), Some(last)) => self.read(metas, last.checked_add(1)),
            (Err(MailError::Corrupt { key }), None) => self.first_alone(&window, key),
            (Err(error), _) => Err(error),
        }
    }

    /// The first message of a window whose index cannot be read: that one by itself, to get past it. Which UIDs there
    /// are the mailbox's pages tell.
    fn first_alone(&self, window: &UidSet, key: String) -> MailResult<Batch> {
        // What is damaged may be the mailbox itself.
        self.state.messages(self.account, self.mailbox, &UidSet::new(), |_| true)?;
        let there = self.state.select(self.account, self.mailbox)?.uids;
        let Some(uid) = there.intersection(window).first() else { return Err(MailError::Corrupt { key }) };
        let next = uid.checked_add(1);
        let mut metas = Vec::new();
        let listed = self.state.messages(self.account, self.mailbox, &UidSet::from_range(uid, uid), |meta| {
            metas.extend(Some(meta).filter(|meta| self.is_wanted(meta)));
            true
        });
        match listed {
            Ok(()) => self.read(metas, next),
            Err(MailError::Corrupt { key }) => {
                Ok(Batch { unread: Some(Unread { uid, key }), next, ..Batch::default() })
            }
            Err(error) => Err(error),
        }
    }

    fn is_wanted(&self, meta: &MessageMeta) -> bool {
        let since = ModSeq(self.request.changed_since);
        meta.mod_seq > since || since.0 == 0
    }

    /// Messages up to the first that cannot be read, or as many as a batch holds. `more`: the UID behind them all.
    fn read(&self, metas: Vec<MessageMeta>, more: Option<u32>) -> MailResult<Batch> {
        let mut fetched = Vec::with_capacity(metas.len());
        let mut octets = 0;
        for meta in metas {
            let uid = meta.uid.0;
            if octets > BATCH_OCTETS {
                return Ok(Batch { fetched, unread: None, next: Some(uid) });
            }
            let one = match self.fetch_one(meta) {
                // Expunged since the index was read: no reply for it (RFC 2180 §4.1.2).
                Err(MailError::MailboxGone) => continue,
                Err(MailError::Corrupt { key }) => {
                    return Ok(Batch { fetched, unread: Some(Unread { uid, key }), next: uid.checked_add(1) });
                }
                other => other?,
            };
            octets += one.message.sections.iter().map(|section| section.data.len() as u64).sum::<u64>();
            fetched.push(one);
        }
        Ok(Batch { fetched, unread: None, next: more })
    }

    fn fetch_one(&self, meta: MessageMeta) -> MailResult<Fetched> {
        let request = &self.request;
        let mut message = FetchedMessage {
            uid: meta.uid.0,
            flags: Some((&meta.flags).into()),
            mod_seq: meta.mod_seq.0,
            date: Some(meta.internal_date.into()),
            octets: meta.size,
            ..FetchedMessage::default()
        };
        let mut rest = Vec::new();
        let whole_only =
            request.sections.iter().all(|section| section.part.is_empty() && section.text() == section::Text::Full);
        let wants_digest = request.envelope || request.body || request.body_structure || !whole_only;
        let digest = if wants_digest { Some(digest(&self.state, meta.body)?) } else { None };
        if let Some(digest) = &digest {
            if request.envelope {
                message.envelope = digest.envelope.clone();
            }
            if request.body {
                message.body = digest.body();
            }
            if request.body_structure {
                message.body_structure = digest.body_structure.clone();
            }
        }
        if request.sections.is_empty() {
            return Ok(Fetched { message, body: meta.body, rest });
        }
        let body = self.state.pin_body(meta.body).map_err(storage_error)?.ok_or(MailError::MailboxGone)?;
        let body = Arc::new(body);
        let mut inline = INLINE_OCTETS;
        for (i, section) in request.sections.iter().enumerate() {
            let (fetched, more) = self.section(&meta, digest.as_ref(), section, &body, inline)?;
            inline -= fetched.data.len() as u64;
            message.sections.push(fetched);
            rest.extend(more.map(|source| Rest { section: i as u32, source }));
        }
        if !rest.is_empty() && self.node.doubted().contains(request.shard, meta.body) {
            rest.iter().try_for_each(|rest| rest.source.check())?;
            self.node.doubted().remove(request.shard, meta.body);
        }
        if !rest.is_empty() {
            message.place = Some(expunged::place(request.shard, meta.body, &body));
        }
        Ok(Fetched { message, body: meta.body, rest })
    }

    /// A section with at most `inline` of its octets, and where the others come from.
    fn section(
        &self,
        meta: &MessageMeta,
        digest: Option<&Digest>,
        section: &Section,
        body: &Arc<PinnedBody>,
        inline: u64,
    ) -> MailResult<(FetchedSection, Option<Source>)> {
        let text = match section.text() {
            section::Text::Full => SectionText::Full,
            section::Text::Header => SectionText::Header,
            section::Text::HeaderFields => SectionText::HeaderFields { names: section.fields.clone(), not: false },
            section::Text::HeaderFieldsNot => SectionText::HeaderFields { names: section.fields.clone(), not: true },
            section::Text::Text => SectionText::Text,
            section::Text::Mime => SectionText::Mime,
        };
        let place = match digest {
            Some(digest) => digest.section(&section.part, &text),
            None => Some(Place::Octets(0..meta.size)),
        };
        match place {
            None => Ok((FetchedSection { nil: true, ..FetchedSection::default() }, None)),
            Some(Place::Octets(range)) => {
                let range = match section.has_partial {
                    true => message::partial(range, section.offset, section.octets_max),
                    false => range,
                };
                octets_in(body, range, inline)
            }
            Some(Place::Fields(header)) => {
                let header = read_pinned(body, header)?;
                let not = section.text() == section::Text::HeaderFieldsNot;
                let mut fields = Bytes::from(message::header_fields(&header, &section.fields, not));
                if section.has_partial {
                    let range = message::partial(0..fields.len() as u64, section.offset, section.octets_max);
                    fields = fields.slice(range.start as usize..range.end as usize);
                }
                let octets = fields.len() as u64;
                let data = fields.split_to(octets.min(inline).min(BODY_PIECE_OCTETS as u64) as usize);
                let rest = (!fields.is_empty()).then_some(Source::Fields(fields));
                Ok((FetchedSection { octets, data, ..FetchedSection::default() }, rest))
            }
        }
    }
}

/// A section that stands in the body so, with at most `inline` of its octets.
fn octets_in(body: &Arc<PinnedBody>, range: Range<u64>, inline: u64) -> MailResult<(FetchedSection, Option<Source>)> {
    let octets = range.end - range.start;
    let now = range.start..range.start + octets.min(inline).min(BODY_PIECE_OCTETS as u64);
    let rest = (now.end < range.end).then(|| Source::Body(body.clone(), now.end..range.end));
    let data = read_pinned(body, now)?;
    Ok((FetchedSection { nil: false, octets, data, has_offset: true, offset: range.start }, rest))
}

pub(super) fn digest(state: &ShardState, body: BodyId) -> MailResult<Digest> {
    let bytes = state.digest(body).map_err(storage_error)?.ok_or(MailError::MailboxGone)?;
    Digest::decode(&bytes).map_err(|error| {
        tracing::error!(body = body.0, %error, "message digest cannot be read");
        MailError::Corrupt { key: format!("digest of body {}", body.0) }
    })
}

/// The octets of a body in a range, without a copy where they lie in one chunk. `MailboxGone`: no message refers to
/// the body any more.
pub(super) fn read_range(state: &ShardState, body: BodyId, range: Range<u64>) -> MailResult<Bytes> {
    let pieces = state.body_range(body, range.start, range.end - range.start).map_err(storage_error)?;
    Ok(joined(pieces.ok_or(MailError::MailboxGone)?))
}

fn read_pinned(body: &PinnedBody, range: Range<u64>) -> MailResult<Bytes> {
    Ok(joined(body.read(range.start, range.end - range.start).map_err(storage_error)?))
}

fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 { pieces.remove(0) } else { pieces.concat().into() }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use proto::wire::fetch_item::Item;
    use proto::wire::{FetchItem, FetchedMessage};
    use types::{MailError, MailResult};

    use super::{Sender, blocking, fed, send};

    fn message() -> Item {
        Item::Message(FetchedMessage { uid: 1, ..FetchedMessage::default() })
    }

    /// What comes when a message has been sent and this is the end of it.
    async fn items<F>(end: impl FnOnce() -> F + Send + 'static) -> Vec<MailResult<FetchItem>>
    where
        F: Future<Output = MailResult<()>> + Send,
    {
        let feed = |sender: Sender| async move {
            assert!(send(&sender, message()).await);
            end().await
        };
        fed(feed, |fed| async { fed }).collect().await
    }

    #[tokio::test]
    async fn a_reader_that_fails_ends_the_stream_with_an_error_be_it_a_panic() {
        let broken = || MailError::Internal("of the test".to_owned());
        let ends = [
            items(move || blocking(move || Err(broken()))).await,
            items(|| blocking(|| panic!("in the reader, of the test"))).await,
            items(async || panic!("in the feeder, of the test")).await,
        ];
        for mut end in ends {
            let last = end.pop();
            assert!(matches!(last, Some(Err(MailError::Internal(_)))), "{last:?}");
            assert_eq!(end, [Ok(FetchItem { item: Some(message()) })]);
        }
        assert_eq!(items(async || Ok(())).await.len(), 1, "one that brings all ends without");
    }
}
