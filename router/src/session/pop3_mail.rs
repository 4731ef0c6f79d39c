//! A maildrop as POP3 uses it: the account's INBOX under an exclusive lock (RFC 1939 §3), its messages by position.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use pop3::{DotStuffer, Maildrop, TopLimiter};
use proto::wire::fetch_item::Item;
use proto::wire::{
    AccountRequest, Done, ExpungeRequest, FetchRequest, FetchedMessage, Section, SelectRequest, UidSet as WireUidSet,
    section,
};
use proto::{ItemStream, MESSAGES_PER_CHANGE_MAX, uid_set_to_wire};
use tokio::time::Instant;
use types::{MailError, MailResult, MailboxId, UidSet};

use crate::auth::Login;
use crate::cluster::{FetchStream, ShardClient};
use crate::connection::Connection;

/// A session that has just ended frees its lock over the network: the next one need not be told of it.
const LOCK_GRACE: Duration = Duration::from_millis(500);
/// A lock that was lost may still be held, in our own name, by a leader that has not noticed: longer than that takes.
const LOCK_AGAIN_GRACE: Duration = Duration::from_secs(6);
const LOCK_POLL: Duration = Duration::from_millis(100);

/// 4 octets a message beside the protocol's listing.
pub(super) struct OpenMaildrop {
    shards: ShardClient,
    account: AccountRequest,
    mailbox: MailboxId,
    uids: Vec<u32>,
    lock: Option<ItemStream<Done>>,
}

impl OpenMaildrop {
    /// `InUse` where another session has it.
    pub(super) async fn open(shards: &ShardClient, login: &Login) -> MailResult<(OpenMaildrop, Maildrop)> {
        let account = AccountRequest { shard: login.shard.0, account: login.account.0 };
        let lock = lock(shards, account, LOCK_GRACE).await?;
        shards.open_account(account).await?;
        let name = "INBOX".to_owned();
        let request = SelectRequest { shard: account.shard, account: account.account, name, examine: true };
        let selected = shards.select(request).await?;
        let mailbox = selected.mailbox.ok_or_else(|| MailError::Internal("select without a mailbox".to_owned()))?;
        let mut open = OpenMaildrop {
            shards: shards.clone(),
            account,
            mailbox: MailboxId(mailbox.id),
            uids: Vec::new(),
            lock: Some(lock),
        };
        let listing = open.list(selected.uids.unwrap_or_default(), mailbox.uid_validity).await?;
        Ok((open, listing))
    }

    /// A message's unique-id is its UIDVALIDITY and UID: the same for as long as there is the message, wherever its
    /// shard is (RFC 1939 §7).
    async fn list(&mut self, uids: WireUidSet, uid_validity: u32) -> MailResult<Maildrop> {
        let mut listing = Maildrop::new();
        let mut messages = self.shards.fetch(FetchRequest { uids: Some(uids), ..self.fetch_request() });
        while let Some(item) = messages.next().await {
            let Some(Item::Message(message)) = item?.item else { continue };
            listing
                .push(message.octets, &format!("{uid_validity}.{}", message.uid))
                .map_err(|error| MailError::Internal(error.to_string()))?;
            self.uids.push(message.uid);
        }
        self.uids.shrink_to_fit();
        Ok(listing)
    }

    fn fetch_request(&self) -> FetchRequest {
        FetchRequest {
            shard: self.account.shard,
            account: self.account.account,
            mailbox: self.mailbox.0,
            ..FetchRequest::default()
        }
    }

    /// Returns when the lock's stream has ended: the leader has changed, or is gone.
    pub(super) async fn lock_lost(&mut self) {
        if let Some(lock) = &mut self.lock {
            while let Some(Ok(Done {})) = lock.next().await {}
        }
        self.lock = None;
    }

    /// Locks at the leader of now. `InUse` where somebody was faster.
    pub(super) async fn lock_again(&mut self) -> MailResult<()> {
        self.lock = None;
        self.lock = Some(lock(&self.shards, self.account, LOCK_AGAIN_GRACE).await?);
        Ok(())
    }

    /// Deletes messages by position; nothing else. After an error some of many are gone, and the client is told so
    /// (RFC 1939 §6).
    pub(super) async fn update(&mut self, deleted: &[usize]) -> MailResult<()> {
        if deleted.is_empty() {
            return Ok(());
        }
        if self.lock_lost().now_or_never().is_some() {
            self.lock_again().await?;
        }
        let uids: UidSet = deleted.iter().filter_map(|index| self.uids.get(*index).copied()).collect();
        for part in uids.parts(MESSAGES_PER_CHANGE_MAX) {
            let request = ExpungeRequest {
                shard: self.account.shard,
                account: self.account.account,
                mailbox: self.mailbox.0,
                has_uids: true,
                uids: Some(uid_set_to_wire(&part)),
                only_deleted: false,
                ..ExpungeRequest::default()
            };
            self.shards.expunge(request).await?;
        }
        Ok(())
    }
}

/// Locks a maildrop; asks again for up to `grace` while it is in use.
async fn lock(shards: &ShardClient, account: AccountRequest, grace: Duration) -> MailResult<ItemStream<Done>> {
    let until = Instant::now() + grace;
    loop {
        match shards.hold_maildrop(account).await {
            Err(MailError::InUse) if Instant::now() < until => tokio::time::sleep(LOCK_POLL).await,
            other => return other,
        }
    }
}

/// One message on its way to the client.
pub(super) struct Retrieval {
    items: FetchStream,
    first: Bytes,
    octets: u64,
    top: Option<TopLimiter>,
}

impl Retrieval {
    /// Asks for the message at a position in the listing.
    pub(super) fn request(maildrop: &OpenMaildrop, index: usize) -> Option<FetchStream> {
        let uid = *maildrop.uids.get(index)?;
        let whole = Section { text: section::Text::Full.into(), ..Section::default() };
        Some(maildrop.shards.fetch(FetchRequest {
            uids: Some(WireUidSet { bounds: vec![uid, uid] }),
            sections: vec![whole],
            ..maildrop.fetch_request()
        }))
    }

    /// Errors before anything is written can still be told to the client.
    pub(super) async fn open(items: Option<FetchStream>, top: Option<u64>) -> MailResult<Retrieval> {
        let gone = || MailError::CannotDo("the message is gone".to_owned());
        let mut items = items.ok_or_else(gone)?;
        let Some(Item::Message(FetchedMessage { mut sections, .. })) = items.next().await.ok_or_else(gone)??.item
        else {
            return Err(MailError::Internal("a fetch without its message".to_owned()));
        };
        let section = sections.pop().filter(|section| !section.nil).ok_or_else(gone)?;
        Ok(Retrieval { items, first: section.data, octets: section.octets, top: top.map(TopLimiter::new) })
    }

    /// Writes the message and its terminator. After an error the response cannot be ended, only the connection.
    pub(super) async fn run(mut self, connection: &mut Connection) -> io::Result<()> {
        let mut stuffer = DotStuffer::new();
        let mut came = 0u64;
        let mut piece = std::mem::take(&mut self.first);
        loop {
            came += piece.len() as u64;
            let shown = match &mut self.top {
                Some(top) => top.take(&piece),
                None => &piece,
            };
            stuffer.push(shown, connection.output());
            connection.flush_if_full().await?;
            if came >= self.octets || self.top.as_ref().is_some_and(TopLimiter::is_done) {
                break;
            }
            piece = match self.items.next().await.transpose().map_err(io::Error::other)?.and_then(|item| item.item) {
                Some(Item::Data(data)) => data.data,
                Some(Item::Message(_) | Item::Unread(_)) | None => return Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        stuffer.finish(connection.output());
        if came >= self.octets {
            // To its end, so that the stream is closed in peace and not reset.
            while let Some(Ok(_)) = self.items.next().await {}
        }
        Ok(())
    }
}
