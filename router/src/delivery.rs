//! A complete message to all of its recipients: one Deliver a shard, in parallel, each with fingerprints that keep a
//! retry from storing a second copy. Fingerprints that wait to be settled travel along.
//!
//! The outcome is one reply for all recipients (RFC 5321 §4.2.5):
//! - all stored: 250;
//! - any shard failed for now, or any recipient is over quota: temporary, and the sender's retry finds what was
//!   stored by its fingerprints;
//! - an account that vanished between RCPT and here, among others that did not: temporary too, so that the retry's
//!   RCPT tells which;
//! - else the permanent refusal, which is of the message and so the same for all.
//!
//! Recipients who are on their way to another shard are waited for, and asked there.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use proto::Body;
use proto::wire::{DeliverReply, DeliverRequest, Recipient};
use tokio::time::Instant;
use tracing::debug;
use types::{AccountId, InternalDate, MailError, MailResult, ShardId};

use crate::cluster::{LocalRecipient, ShardClient};
use crate::settle::{Claim, Fingerprint, Fingerprints, Settler};

/// Shards that one transaction asks at once.
const SHARDS_AT_ONCE: usize = 16;
/// With a larger body nothing travels along: it takes its time, and somebody may wait to use a fingerprint again.
const ALONG_OCTETS_MAX: u64 = 64 * 1024;

/// What identifies a delivery to one recipient over all retries: nothing that we add, and no time.
pub fn fingerprint(reverse_path: &str, recipient: AccountId, content: &[u8; 32]) -> Fingerprint {
    let mut hasher = blake3::Hasher::new_derive_key("mailring delivery fingerprint v1");
    hasher.update(&(reverse_path.len() as u64).to_le_bytes());
    hasher.update(reverse_path.as_bytes());
    hasher.update(&recipient.0.to_le_bytes());
    hasher.update(content);
    *hasher.finalize().as_bytes()
}

/// A message for all of its recipients.
pub struct Delivery {
    /// As its path is written; empty for the null reverse-path.
    pub reverse_path: String,
    pub recipients: Vec<LocalRecipient>,
    /// As the client sent it.
    pub content: Body,
    pub digest: [u8; 32],
    /// Goes in front.
    pub trace: Bytes,
    pub date: InternalDate,
}

impl Delivery {
    /// Returns when every recipient has it. The claim is to be settled when the sender knows, and dropped where that is
    /// doubtful, so that a retry finds what is stored.
    pub async fn deliver(self, shards: &ShardClient, settler: &Settler) -> MailResult<Claim> {
        let mut by_shard: ByShard = BTreeMap::new();
        for recipient in &self.recipients {
            let fingerprint = fingerprint(&self.reverse_path, recipient.account, &self.digest);
            by_shard.entry(recipient.shard).or_default().insert(recipient.account, fingerprint);
        }
        let fingerprints: Fingerprints =
            by_shard.iter().map(|(shard, accounts)| (*shard, accounts.values().copied().collect())).collect();
        let mut claim = settler.claim(fingerprints).await?;

        let body = self.content.with_prefix(self.trace);
        let until = Instant::now() + shards.patience().operation_max();
        let mut outcome = Outcome::default();
        loop {
            let requests: Vec<(ShardId, BTreeMap<AccountId, Fingerprint>)> = by_shard.into_iter().collect();
            let mut replies = stream::iter(requests)
                .map(|(shard, accounts)| {
                    let (request, body) = (request(shard, &accounts, self.date, &body), body.clone());
                    async move { (accounts, deliver_to_shard(request, body, shards, settler).await) }
                })
                .buffer_unordered(SHARDS_AT_ONCE);
            let mut moving = BTreeMap::new();
            while let Some((accounts, reply)) = replies.next().await {
                moving.extend(outcome.add(accounts, reply));
            }
            drop(replies);
            if moving.is_empty() {
                return outcome.result().map(|()| claim);
            }
            if Instant::now() >= until {
                return Err(MailError::Unavailable);
            }
            shards.await_move().await;
            by_shard = BTreeMap::new();
            for (account, fingerprint) in moving {
                let shard = shards.shard_of(account).ok_or(MailError::Unavailable)?;
                claim.follow(&fingerprint, shard);
                by_shard.entry(shard).or_default().insert(account, fingerprint);
            }
        }
    }
}

type ByShard = BTreeMap<ShardId, BTreeMap<AccountId, Fingerprint>>;

fn request(
    shard: ShardId,
    accounts: &BTreeMap<AccountId, Fingerprint>,
    date: InternalDate,
    body: &Body,
) -> DeliverRequest {
    let recipient = |(account, fingerprint): (&AccountId, &Fingerprint)| Recipient {
        account: account.0,
        fingerprint: Bytes::copy_from_slice(fingerprint),
    };
    DeliverRequest {
        shard: shard.0,
        recipients: accounts.iter().map(recipient).collect(),
        date: Some(date.into()),
        body_octets: body.octets(),
        settle: Vec::new(),
    }
}

async fn deliver_to_shard(
    mut request: DeliverRequest,
    body: Body,
    shards: &ShardClient,
    settler: &Settler,
) -> MailResult<DeliverReply> {
    if request.body_octets > ALONG_OCTETS_MAX {
        return shards.deliver(request, body).await;
    }
    let along = settler.hand_along(ShardId(request.shard));
    request.settle = along.to_wire();
    let reply = shards.deliver(request, body).await?;
    along.settled();
    Ok(reply)
}

/// Gathers the answers of all shards.
#[derive(Default)]
struct Outcome {
    stored: usize,
    vanished: usize,
    temporary: Option<MailError>,
    permanent: Option<MailError>,
}

impl Outcome {
    /// Answers those who have gone to another shard, or are on their way.
    fn add<R>(
        &mut self,
        recipients: impl IntoIterator<Item = R, IntoIter: ExactSizeIterator>,
        reply: MailResult<DeliverReply>,
    ) -> Vec<R> {
        let recipients = recipients.into_iter();
        let mut moving = Vec::new();
        let reply = match reply {
            Ok(reply) if reply.recipients.len() == recipients.len() => reply,
            Ok(_) => {
                self.failed(MailError::Internal("a reply for other recipients".to_owned()));
                return moving;
            }
            Err(error) => {
                self.failed(error);
                return moving;
            }
        };
        for (recipient, reply) in recipients.zip(&reply.recipients) {
            match reply.error.as_ref().map(MailError::from) {
                None => self.stored += 1,
                Some(MailError::NotHere) => moving.push(recipient),
                Some(error) => self.failed(error),
            }
        }
        moving
    }

    fn failed(&mut self, error: MailError) {
        debug!(%error, "delivery failed");
        let code = error.smtp_reply().code;
        match error {
            MailError::NoSuchAccount => self.vanished += 1,
            error if code < 500 => drop(self.temporary.get_or_insert(error)),
            error => drop(self.permanent.get_or_insert(error)),
        }
    }

    fn result(self) -> MailResult<()> {
        if let Some(error) = self.temporary {
            return Err(error);
        }
        if let Some(error) = self.permanent {
            return Err(error);
        }
        match (self.vanished, self.stored) {
            (0, _) => Ok(()),
            (_, 0) => Err(MailError::NoSuchAccount),
            _ => Err(MailError::Unavailable),
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::wire::{DeliverReply, ErrorDetail, RecipientReply};
    use types::{AccountId, MailError};

    use super::{Outcome, fingerprint};

    #[test]
    fn fingerprints_differ_by_each_of_their_parts_and_by_nothing_else() {
        let one = fingerprint("a@x.test", AccountId(1), &[0; 32]);
        assert_eq!(one, fingerprint("a@x.test", AccountId(1), &[0; 32]));
        assert_ne!(one, fingerprint("b@x.test", AccountId(1), &[0; 32]));
        assert_ne!(one, fingerprint("a@x.test", AccountId(2), &[0; 32]));
        assert_ne!(one, fingerprint("a@x.test", AccountId(1), &[1; 32]));
    }

    #[test]
    fn the_reply_promises_no_more_than_was_stored() {
        let outcome = |shards: &[Result<Vec<Option<MailError>>, MailError>]| {
            let mut outcome = Outcome::default();
            for shard in shards {
                let reply = shard.clone().map(|recipients| DeliverReply {
                    recipients: recipients
                        .iter()
                        .map(|error| RecipientReply {
                            error: error.as_ref().map(ErrorDetail::from),
                            ..RecipientReply::default()
                        })
                        .collect(),
                });
                let moving = outcome.add(0..shard.as_ref().map_or(1, Vec::len), reply);
                assert!(moving.is_empty());
            }
            outcome.result()
        };
        use MailError::{Invalid, NoSuchAccount, OverQuota, Unavailable};
        assert_eq!(outcome(&[Ok(vec![None, None]), Ok(vec![None])]), Ok(()));
        assert_eq!(outcome(&[Ok(vec![None]), Err(Unavailable)]), Err(Unavailable));
        assert_eq!(outcome(&[Ok(vec![None, Some(OverQuota)])]), Err(OverQuota));
        assert_eq!(outcome(&[Ok(vec![Some(NoSuchAccount)])]), Err(NoSuchAccount));
        assert_eq!(outcome(&[Ok(vec![None, Some(NoSuchAccount)])]), Err(Unavailable));
        assert_eq!(outcome(&[Err(Invalid("x".into())), Err(Unavailable)]), Err(Unavailable));
        assert_eq!(outcome(&[Err(Invalid("x".into())), Ok(vec![None])]), Err(Invalid("x".into())));
        let mut wrong = Outcome::default();
        wrong.add(0..2, Ok(DeliverReply { recipients: vec![RecipientReply::default()] }));
        assert!(wrong.result().is_err());
        // Whoever is between two shards is asked again, and counts for nothing until then.
        let mut moving = Outcome::default();
        let error = Some(ErrorDetail::from(&MailError::NotHere));
        let replies = vec![RecipientReply::default(), RecipientReply { error, ..RecipientReply::default() }];
        assert_eq!(moving.add([7, 8], Ok(DeliverReply { recipients: replies })), [8]);
        assert_eq!(moving.result(), Ok(()));
    }
}
