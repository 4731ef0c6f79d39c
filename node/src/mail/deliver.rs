//! Bodies on their way in: read, digested once, and put into the log, large ones in chunks.

#[cfg(test)]
mod damaged;

use bytes::Bytes;
use message::Digest;
use proto::Body;
use proto::wire::{AppendReply, AppendRequest, DeliverReply, DeliverRequest, RecipientReply};
use storage::{BodySource, Command, Delivered, Outcome, Recipient, ShardState};
use types::{
    AccountId, InternalDate, KEYWORD_OCTETS_MAX, KEYWORDS_PER_MAILBOX_MAX, MAILBOX_NAME_OCTETS_MAX, MailError,
    MailResult,
};

use super::{WRONG_OUTCOME, flags_from_wire, mailbox_name, request_id};
use crate::Node;
use crate::group::{PROPOSAL_OCTETS_MAX, Patience};
use crate::shard::{Shard, unix_ms};

/// What a command's head has beside recipients, mailbox name, flags and digest.
const HEAD_OCTETS: usize = 256;
/// A piece of a large body, in an entry of its own.
const CHUNK_OCTETS: usize = PROPOSAL_OCTETS_MAX - HEAD_OCTETS;
/// The largest message that a node takes; the routers' own limits are lower.
const MESSAGE_OCTETS_MAX: u64 = 128 * 1024 * 1024;
/// Bodies up to this are parsed where they arrive: some tens of microseconds.
const PARSE_INLINE_OCTETS: usize = 64 * 1024;
pub(super) const RECIPIENTS_MAX: usize = 10_000;
/// Recipients in one command: more would not leave room for the digest. The others get the body in a command of their
/// own; their fingerprints keep each of them exactly-once, whichever of the commands a retry repeats.
const RECIPIENTS_PER_COMMAND: usize = 2_000;
/// One of them in the command.
const RECIPIENT_OCTETS: usize = 72;
/// Mailbox name and flags of an APPEND; whoever writes more keywords than a mailbox may have has the command refused.
const APPEND_OCTETS: usize = MAILBOX_NAME_OCTETS_MAX + KEYWORDS_PER_MAILBOX_MAX * (KEYWORD_OCTETS_MAX + 3);
/// Fingerprints that a delivery settles beside: so many that they hardly count in its entry.
const SETTLE_ALONG_MAX: usize = 1_000;
/// One of them in the command.
const FINGERPRINT_OCTETS: usize = 34;

/// A message on its way in.
#[derive(Clone)]
struct Mail {
    bytes: Bytes,
    digest: Bytes,
    date: InternalDate,
}

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
            if let Ok(quota) = checked {
                recipients.push(Recipient { account, fingerprint: fingerprint(&recipient.fingerprint)?, quota });
            }
            known.push(checked);
        }
        let mut settle: Vec<[u8; 32]> =
            request.settle.iter().map(|bytes| fingerprint(bytes)).collect::<MailResult<_>>()?;
        let mut stored = Vec::new();
        if recipients.is_empty() {
            // Nothing to store, yet the caller takes these for settled.
            if !settle.is_empty() {
                let settled = shard.propose(&Command::Settle { fingerprints: settle }, None).await;
                self.or_elsewhere(request.shard, settled).await?;
            }
        } else {
            shard.volume.space.admit(body.octets())?;
            let bytes = whole(&body).await?;
            let digest = self.digest(&bytes).await?;
            let date = date(request.date);
            for recipients in recipients.chunks(RECIPIENTS_PER_COMMAND) {
                let mail = Mail { bytes: bytes.clone(), digest: digest.clone(), date };
                let settle = std::mem::take(&mut settle);
                match self.deliver_to(&shard, recipients.to_vec(), &mail, settle.clone()).await {
                    // What is damaged is of one of them, and the others are not to go without.
                    Err(MailError::Corrupt { .. }) if recipients.len() > 1 => {
                        for one in recipients {
                            match self.deliver_to(&shard, vec![one.clone()], &mail, Vec::new()).await {
                                Ok(outcomes) => stored.extend(outcomes),
                                Err(error @ MailError::Corrupt { .. }) => stored.push(Err(error)),
                                Err(error) => return Err(error),
                            }
                        }
                        if !settle.is_empty() {
                            self.change(request.shard, 0, Command::Settle { fingerprints: settle }).await?;
                        }
                    }
                    outcomes => stored.extend(outcomes?),
                }
            }
        }
        let mut stored = stored.into_iter();
        let replies = known.into_iter().map(|checked| {
            let outcome = match checked {
                Ok(_) => stored.next().unwrap_or_else(|| Err(MailError::Internal(WRONG_OUTCOME.to_owned()))),
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

    /// One command, and what became of each recipient.
    async fn deliver_to(
        &self,
        shard: &Shard,
        recipients: Vec<Recipient>,
        mail: &Mail,
        settle: Vec<[u8; 32]>,
    ) -> MailResult<Vec<MailResult<Delivered>>> {
        let Mail { bytes, digest, date } = mail.clone();
        let head_octets = digest.len() + recipients.len() * RECIPIENT_OCTETS + settle.len() * FINGERPRINT_OCTETS;
        let command = |body| Command::Deliver { recipients, body, digest, date, settle };
        let done = put_body(shard, (0, Patience::Asked), bytes, head_octets, command).await;
        match self.or_elsewhere(shard.id.0, done).await? {
            Outcome::Delivered(outcomes) => Ok(outcomes),
            _ => Err(MailError::Internal(WRONG_OUTCOME.to_owned())),
        }
    }

    pub(super) async fn append_body(&self, request: AppendRequest, body: Body) -> MailResult<AppendReply> {
        let shard = self.shard(request.shard)?;
        let account = AccountId(request.account);
        let quota = self.check_account(account)?;
        let (id, mailbox) = (request_id(&request.request_id)?, mailbox_name(&request.mailbox)?);
        // Asked before the body goes through the log; apply decides again.
        let (state, name) = (shard.read().await?, mailbox.clone());
        let find = move |state: &ShardState| state.mailbox(account, &name).map_err(super::storage_error);
        let found = super::blocking(move || super::if_here(&state, account, find)).await;
        if self.or_elsewhere(request.shard, found).await?.is_none() {
            return Err(MailError::NoSuchMailbox);
        }
        let flags = flags_from_wire(request.flags.as_ref())?;
        shard.volume.space.admit(body.octets())?;
        let bytes = whole(&body).await?;
        let digest = self.digest(&bytes).await?;
        let date = date(request.date);
        let head_octets = digest.len() + APPEND_OCTETS;
        let command = |body| Command::Append { account, mailbox, flags, date, body, digest, quota };
        let done = put_body(&shard, (id, Patience::Asked), bytes, head_octets, command).await;
        match self.or_elsewhere(request.shard, done).await? {
            Outcome::Appended { mailbox, uid, uid_validity, mod_seq } => {
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
        let turn = self.bounds().parses.clone().acquire_owned().await.map_err(|_| MailError::Unavailable)?;
        let bytes = bytes.clone();
        super::blocking(move || {
            let _turn = turn;
            Ok(Digest::of(&bytes).encode().into())
        })
        .await
    }
}

pub(crate) fn fingerprint(bytes: &[u8]) -> MailResult<[u8; 32]> {
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

/// Proposes a command with its body: within the command's own entry where both fit, else in chunks before it. Chunks
/// of an upload that fails are dropped at once if possible, and otherwise when they are an hour old.
pub(crate) async fn put_body(
    shard: &Shard,
    (request, patience): (u128, Patience),
    bytes: Bytes,
    head_octets: usize,
    command: impl FnOnce(BodySource) -> Command,
) -> MailResult<Outcome> {
    if bytes.len() + head_octets + HEAD_OCTETS <= PROPOSAL_OCTETS_MAX {
        return shard.propose_with((request, patience), &command(BodySource::Inline), Some(bytes)).await;
    }
    let upload = upload_id()?;
    for start in (0..bytes.len()).step_by(CHUNK_OCTETS) {
        let chunk = bytes.slice(start..bytes.len().min(start + CHUNK_OCTETS));
        if let Err(error) = shard.propose_with((0, patience), &Command::Chunk { upload }, Some(chunk)).await {
            drop(shard.propose(&Command::DropUpload { upload }, None).await);
            return Err(error);
        }
    }
    let done = shard.propose_with((request, patience), &command(BodySource::Upload(upload)), None).await;
    if let Err(MailError::Corrupt { .. }) = done {
        // Not in the log, so that nobody comes for them.
        drop(shard.propose(&Command::DropUpload { upload }, None).await);
    }
    done
}

fn upload_id() -> MailResult<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| MailError::Internal(e.to_string()))?;
    Ok(u128::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use message::Digest;
    use message::limits::DIGEST_OCTETS_MAX;
    use storage::{BodySource, Command, Recipient, Stamp};
    use types::{
        AccountId, Flags, InternalDate, KEYWORD_OCTETS_MAX, KEYWORDS_PER_MAILBOX_MAX, Keyword, MAILBOX_NAME_OCTETS_MAX,
        MailboxName, Quota, SystemFlags,
    };

    use super::{
        APPEND_OCTETS, CHUNK_OCTETS, FINGERPRINT_OCTETS, HEAD_OCTETS, RECIPIENT_OCTETS, RECIPIENTS_MAX,
        RECIPIENTS_PER_COMMAND, SETTLE_ALONG_MAX,
    };
    use crate::group::PROPOSAL_OCTETS_MAX;

    const QUOTA: Quota = Quota { octets: Some(u64::MAX), messages: Some(u64::MAX) };
    const LONG_AGO: InternalDate = InternalDate { unix_s: i64::MIN, offset_min: i16::MIN };

    fn octets(command: &Command) -> usize {
        command.encode(Stamp { unix_ms: i64::MIN, seed: u64::MAX, format: u32::MAX }, u128::MAX).len()
    }

    fn deliver(recipients: usize, digest: Bytes) -> Command {
        let recipient = Recipient { account: AccountId(u64::MAX), fingerprint: [255; 32], quota: QUOTA };
        let body = BodySource::Upload(u128::MAX);
        let settle = vec![[255; 32]; SETTLE_ALONG_MAX];
        Command::Deliver { recipients: vec![recipient; recipients], body, digest, date: LONG_AGO, settle }
    }

    #[test]
    fn the_largest_commands_that_bring_mail_fit_into_a_log_entry() {
        let digest = Bytes::from(vec![b'd'; DIGEST_OCTETS_MAX]);
        let largest = deliver(RECIPIENTS_PER_COMMAND, digest.clone());
        let beside = RECIPIENTS_PER_COMMAND * RECIPIENT_OCTETS + SETTLE_ALONG_MAX * FINGERPRINT_OCTETS + HEAD_OCTETS;
        assert!(octets(&largest) <= DIGEST_OCTETS_MAX + beside, "{}", octets(&largest));
        assert!(octets(&largest) <= PROPOSAL_OCTETS_MAX, "{}", octets(&largest));
        let mut flags = Flags::system(SystemFlags::ALL);
        for n in 0..KEYWORDS_PER_MAILBOX_MAX {
            flags.insert_keyword(Keyword::parse(&format!("{n:k>KEYWORD_OCTETS_MAX$}")).unwrap());
        }
        let append = Command::Append {
            account: AccountId(u64::MAX),
            mailbox: MailboxName::parse(&"m".repeat(MAILBOX_NAME_OCTETS_MAX)).unwrap(),
            flags,
            date: LONG_AGO,
            body: BodySource::Upload(u128::MAX),
            digest,
            quota: QUOTA,
        };
        assert!(octets(&append) <= DIGEST_OCTETS_MAX + APPEND_OCTETS + HEAD_OCTETS, "{}", octets(&append));
        assert!(octets(&append) <= PROPOSAL_OCTETS_MAX);
        let chunk = Command::Chunk { upload: u128::MAX };
        assert!(octets(&chunk) + CHUNK_OCTETS <= PROPOSAL_OCTETS_MAX);
        let settle = Command::Settle { fingerprints: vec![[255; 32]; RECIPIENTS_MAX] };
        assert!(octets(&settle) <= PROPOSAL_OCTETS_MAX, "{}", octets(&settle));
    }

    /// The message that this is for: more MIME parts than an entry has room to describe.
    #[test]
    fn a_hostile_message_to_many_recipients_fits_into_a_log_entry() {
        let part = format!("--b\r\nContent-Type: text/plain; charset={}\r\n\r\nx\r\n", "c".repeat(100));
        let raw = format!("Content-Type: multipart/mixed; boundary=b\r\n\r\n{}", part.repeat(20_000));
        let digest = Digest::of(raw.as_bytes()).encode().into();
        assert!(octets(&deliver(RECIPIENTS_PER_COMMAND, digest)) <= PROPOSAL_OCTETS_MAX);
    }
}
