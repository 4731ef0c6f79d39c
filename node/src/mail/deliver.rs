//! Bodies on their way in: read, digested once, and put into the log, large ones in chunks.

use bytes::Bytes;
use message::Digest;
use proto::Body;
use proto::wire::{AppendReply, AppendRequest, DeliverReply, DeliverRequest, RecipientReply};
use storage::{BodySource, Command, Outcome, Recipient};
use types::{AccountId, InternalDate, MailError, MailResult, ModSeq};

use super::{WRONG_OUTCOME, flags_from_wire, mailbox_name};
use crate::Node;
use crate::shard::{Shard, unix_ms};

/// No log entry is larger, so that heartbeats and small mail never wait long behind a large one.
const CHUNK_OCTETS: usize = 512 * 1024;
/// The largest message that a node takes; the routers' own limits are lower.
const MESSAGE_OCTETS_MAX: u64 = 128 * 1024 * 1024;
/// Bodies up to this are parsed where they arrive: some tens of microseconds.
const PARSE_INLINE_OCTETS: usize = 64 * 1024;
const RECIPIENTS_MAX: usize = 10_000;
/// Fingerprints that a delivery settles beside: so many that they hardly count in its entry.
const SETTLE_ALONG_MAX: usize = 1_000;

impl Node {
    pub(super) async fn deliver_body(&self, request: DeliverRequest, body: Body) -> MailResult<DeliverReply> {
        if request.recipients.is_empty() || request.recipients.len() > RECIPIENTS_MAX {
            return Err(MailError::Invalid("no recipients, or too many".to_owned()));
        }
        if request.settle.len() > SETTLE_ALONG_MAX {
            return Err(MailError::Invalid("too many fingerprints to settle along with a delivery".to_owned()));
        }
        let shard = self.shard(request.shard)?;
        let mut recipients = Vec::with_capacity(request.recipients.len());
        let mut known = Vec::with_capacity(request.recipients.len());
        for recipient in &request.recipients {
            let account = AccountId(recipient.account);
            let checked = self.check_account(account);
            if checked.is_ok() {
                recipients.push(Recipient { account, fingerprint: fingerprint(&recipient.fingerprint)? });
            }
            known.push(checked);
        }
        let settle: Vec<[u8; 32]> = request.settle.iter().map(|bytes| fingerprint(bytes)).collect::<MailResult<_>>()?;
        let mut stored = Vec::new();
        if recipients.is_empty() {
            // Nothing to store, yet the caller takes these for settled.
            if !settle.is_empty() {
                shard.propose(&Command::Settle { fingerprints: settle }, None).await?;
            }
        } else {
            let bytes = whole(&body).await?;
            let digest = self.digest(&bytes).await?;
            let date = date(request.date);
            let (outcome, _) =
                put_body(&shard, bytes, |body| Command::Deliver { recipients, body, digest, date, settle }).await?;
            let Outcome::Delivered(outcomes) = outcome else {
                return Err(MailError::Internal(WRONG_OUTCOME.to_owned()));
            };
            stored = outcomes;
        }
        let mut stored = stored.into_iter();
        let replies = known.into_iter().map(|checked| {
            let outcome = match checked {
                Ok(()) => stored.next().unwrap_or_else(|| Err(MailError::Internal(WRONG_OUTCOME.to_owned()))),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(delivered) => RecipientReply {
                    error: None,
                    mailbox: delivered.mailbox.0,
                    uid: delivered.uid.0,
                    uid_validity: delivered.uid_validity.0,
                    duplicate: delivered.duplicate,
                },
                Err(error) => RecipientReply { error: Some((&error).into()), ..RecipientReply::default() },
            }
        });
        Ok(DeliverReply { recipients: replies.collect() })
    }

    pub(super) async fn append_body(&self, request: AppendRequest, body: Body) -> MailResult<AppendReply> {
        let shard = self.shard(request.shard)?;
        let account = AccountId(request.account);
        self.check_account(account)?;
        let mailbox = mailbox_name(&request.mailbox)?;
        // Asked before the body goes through the log; apply decides again.
        if shard.read().await?.mailbox(account, &mailbox).map_err(super::storage_error)?.is_none() {
            return Err(MailError::NoSuchMailbox);
        }
        let flags = flags_from_wire(request.flags.as_ref())?;
        let bytes = whole(&body).await?;
        let digest = self.digest(&bytes).await?;
        let date = date(request.date);
        let command = |body| Command::Append { account, mailbox, flags, date, body, digest };
        match put_body(&shard, bytes, command).await? {
            (Outcome::Appended { mailbox, uid, uid_validity }, mod_seq) => {
                Ok(AppendReply { mailbox: mailbox.0, uid: uid.0, uid_validity: uid_validity.0, mod_seq: mod_seq.0 })
            }
            _ => Err(MailError::Internal(WRONG_OUTCOME.to_owned())),
        }
    }

    /// Computed once, here on the leader, and carried in the command: replicas and later versions agree on it.
    async fn digest(&self, bytes: &Bytes) -> MailResult<Bytes> {
        if bytes.len() <= PARSE_INLINE_OCTETS {
            return Ok(Digest::of(bytes).encode().into());
        }
        let _turn = self.bounds().parses.acquire().await.map_err(|_| MailError::Unavailable)?;
        let bytes = bytes.clone();
        super::blocking(move || Ok(Digest::of(&bytes).encode().into())).await
    }
}

pub(super) fn fingerprint(bytes: &[u8]) -> MailResult<[u8; 32]> {
    bytes.try_into().map_err(|_| MailError::Invalid("a fingerprint has 32 octets".to_owned()))
}

fn date(date: Option<proto::wire::InternalDate>) -> InternalDate {
    date.map(InternalDate::from).unwrap_or_else(|| InternalDate::utc(unix_ms().div_euclid(1000)))
}

async fn whole(body: &Body) -> MailResult<Bytes> {
    if body.octets() > MESSAGE_OCTETS_MAX {
        return Err(MailError::Limit("message too large".to_owned()));
    }
    body.collect(MESSAGE_OCTETS_MAX).await.map_err(|e| MailError::Internal(e.to_string()))
}

/// Proposes a command with its body: within the command's own entry where it fits, else in chunks before it. Chunks
/// of an upload that fails are dropped at once if possible, and otherwise when they are an hour old.
async fn put_body(
    shard: &Shard,
    bytes: Bytes,
    command: impl FnOnce(BodySource) -> Command,
) -> MailResult<(Outcome, ModSeq)> {
    if bytes.len() <= CHUNK_OCTETS {
        return shard.propose_at(&command(BodySource::Inline), Some(bytes)).await;
    }
    let upload = upload_id()?;
    for start in (0..bytes.len()).step_by(CHUNK_OCTETS) {
        let chunk = bytes.slice(start..bytes.len().min(start + CHUNK_OCTETS));
        if let Err(error) = shard.propose(&Command::Chunk { upload }, Some(chunk)).await {
            drop(shard.propose(&Command::DropUpload { upload }, None).await);
            return Err(error);
        }
    }
    shard.propose_at(&command(BodySource::Upload(upload)), None).await
}

fn upload_id() -> MailResult<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| MailError::Internal(e.to_string()))?;
    Ok(u128::from_le_bytes(bytes))
}
