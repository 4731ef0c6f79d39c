//! A complete message to all of its recipients: one Deliver a shard, in parallel, each with fingerprints that keep a
//! retry from storing a second copy; and the settling of those fingerprints once the sender knows.
//!
//! The outcome is one reply for all recipients (RFC 5321 §4.2.5):
//! - all stored: 250;
//! - any shard failed for now, or any recipient is over quota: temporary, and the sender's retry finds what was
//!   stored by its fingerprints;
//! - an account that vanished between RCPT and here, among others that did not: temporary too, so that the retry's
//!   RCPT tells which;
//! - else the permanent refusal, which is of the message and so the same for all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use proto::Body;
use proto::wire::{DeliverReply, DeliverRequest, Recipient, SettleRequest};
use tokio::sync::Notify;
use tracing::debug;
use types::{AccountId, InternalDate, MailError, MailResult, ShardId};

use crate::cluster::{LocalRecipient, ShardClient};
use crate::metrics::Metrics;

/// Shards that one transaction asks at once.
const SHARDS_AT_ONCE: usize = 16;
/// Fingerprints to settle; more are left to the nodes, which forget them in time. Some 20 MiB.
const SETTLES_MAX: usize = 200_000;
/// Fingerprints in one Settle.
const SETTLE_BATCH: usize = 1_000;
const SETTLE_TRIES: u32 = 5;
/// The same mail sent again waits so long for the one before it.
const CLAIM_WAIT: Duration = Duration::from_secs(10);

pub type Fingerprint = [u8; 32];

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

/// Every recipient has it. To be settled when the sender knows; dropped unsettled where that is doubtful, so that a
/// retry finds it.
pub struct Stored {
    claim: Claim,
}

impl Delivery {
    pub async fn deliver(self, shards: &ShardClient, settler: &Settler) -> MailResult<Stored> {
        let mut by_shard: BTreeMap<ShardId, BTreeMap<AccountId, Fingerprint>> = BTreeMap::new();
        for recipient in &self.recipients {
            let fingerprint = fingerprint(&self.reverse_path, recipient.account, &self.digest);
            by_shard.entry(recipient.shard).or_default().insert(recipient.account, fingerprint);
        }
        let fingerprints: BTreeMap<ShardId, Vec<Fingerprint>> =
            by_shard.iter().map(|(shard, accounts)| (*shard, accounts.values().copied().collect())).collect();
        let claim = settler.claim(fingerprints).await;

        let body = self.content.with_prefix(self.trace);
        let date = Some(self.date.into());
        let requests: Vec<DeliverRequest> = by_shard
            .into_iter()
            .map(|(shard, accounts)| DeliverRequest {
                shard: shard.0,
                recipients: accounts
                    .into_iter()
                    .map(|(account, fingerprint)| Recipient {
                        account: account.0,
                        fingerprint: Bytes::copy_from_slice(&fingerprint),
                    })
                    .collect(),
                date,
                body_octets: body.octets(),
            })
            .collect();
        let mut outcome = Outcome::default();
        let mut replies = stream::iter(requests)
            .map(|request| {
                let (recipients, body) = (request.recipients.len(), body.clone());
                async move { (recipients, shards.deliver(request, body).await) }
            })
            .buffer_unordered(SHARDS_AT_ONCE);
        while let Some((recipients, reply)) = replies.next().await {
            outcome.add(recipients, reply);
        }
        outcome.result().map(|()| Stored { claim })
    }
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
    fn add(&mut self, recipients: usize, reply: MailResult<DeliverReply>) {
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => return self.failed(error),
        };
        if reply.recipients.len() != recipients {
            return self.failed(MailError::Internal("a reply for other recipients".to_owned()));
        }
        for recipient in &reply.recipients {
            match &recipient.error {
                None => self.stored += 1,
                Some(error) => self.failed(MailError::from(error)),
            }
        }
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

/// Knows which fingerprints are in use here, and tells shards to forget those that are settled, one call a shard at a
/// time with all that came together meanwhile. Settling is best effort: what is not settled only keeps the same mail
/// from being stored twice for a while. Cloning shares.
#[derive(Clone)]
pub struct Settler {
    shared: Arc<Settling>,
}

struct Settling {
    shards: ShardClient,
    metrics: Arc<Metrics>,
    queue: Mutex<Queue>,
    /// Some claims have ended.
    freed: Notify,
}

#[derive(Default)]
struct Queue {
    /// Being delivered, stored but not yet known to the sender, or about to be settled.
    claimed: HashSet<Fingerprint>,
    /// To be settled. A shard that is here has a task.
    waiting: HashMap<ShardId, Vec<Fingerprint>>,
}

/// Fingerprints that no other delivery of this router uses meanwhile.
struct Claim {
    settler: Settler,
    fingerprints: BTreeMap<ShardId, Vec<Fingerprint>>,
    /// Those that are ours to free.
    owned: Vec<Fingerprint>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.settler.shared.free(&self.owned);
    }
}

impl Settler {
    pub fn new(shards: ShardClient, metrics: Arc<Metrics>) -> Settler {
        Settler { shared: Arc::new(Settling { shards, metrics, queue: Mutex::default(), freed: Notify::new() }) }
    }

    /// The sender has its 250.
    pub fn settle(&self, mut stored: Stored) {
        let mut owned: HashSet<Fingerprint> = std::mem::take(&mut stored.claim.owned).into_iter().collect();
        let mut queue = self.shared.queue.lock();
        for (shard, fingerprints) in std::mem::take(&mut stored.claim.fingerprints) {
            if queue.waiting.values().map(Vec::len).sum::<usize>() + fingerprints.len() > SETTLES_MAX {
                self.shared.metrics.settles_lost.inc_by(fingerprints.len() as u64);
                continue;
            }
            for fingerprint in &fingerprints {
                owned.remove(fingerprint);
                queue.claimed.insert(*fingerprint);
            }
            if let Some(waiting) = queue.waiting.get_mut(&shard) {
                waiting.extend(fingerprints);
            } else {
                queue.waiting.insert(shard, fingerprints);
                tokio::spawn(settle_shard(self.shared.clone(), shard));
            }
        }
        drop(queue);
        self.shared.free(&owned.into_iter().collect::<Vec<_>>());
    }

    /// The same mail sent again on purpose, or on two connections at once, is to be stored again: each waits until the
    /// one before it is settled, or its sender is gone. Not for ever: then what is stored already counts for both.
    async fn claim(&self, fingerprints: BTreeMap<ShardId, Vec<Fingerprint>>) -> Claim {
        let all: Vec<Fingerprint> = fingerprints.values().flatten().copied().collect();
        let free = async {
            loop {
                let freed = self.shared.freed.notified();
                tokio::pin!(freed);
                // Enabled before the look, so that nothing falls between.
                freed.as_mut().enable();
                if let Some(owned) = self.shared.take(&all, false) {
                    return owned;
                }
                freed.await;
            }
        };
        let owned = match tokio::time::timeout(CLAIM_WAIT, free).await {
            Ok(owned) => owned,
            Err(_) => {
                debug!("the same mail is still under way elsewhere");
                self.shared.take(&all, true).unwrap_or_default()
            }
        };
        Claim { settler: self.clone(), fingerprints, owned }
    }
}

impl Settling {
    /// Claims all, or none; with `anyway` those that are free. Returns those claimed.
    fn take(&self, all: &[Fingerprint], anyway: bool) -> Option<Vec<Fingerprint>> {
        let mut queue = self.queue.lock();
        if !anyway && all.iter().any(|fingerprint| queue.claimed.contains(fingerprint)) {
            return None;
        }
        Some(all.iter().filter(|fingerprint| queue.claimed.insert(**fingerprint)).copied().collect())
    }

    fn free(&self, fingerprints: &[Fingerprint]) {
        if fingerprints.is_empty() {
            return;
        }
        let mut queue = self.queue.lock();
        for fingerprint in fingerprints {
            queue.claimed.remove(fingerprint);
        }
        drop(queue);
        self.freed.notify_waiters();
    }
}

/// Until nothing waits for the shard.
async fn settle_shard(shared: Arc<Settling>, shard: ShardId) {
    loop {
        let batch = {
            let mut queue = shared.queue.lock();
            let Some(waiting) = queue.waiting.get_mut(&shard) else { return };
            if waiting.is_empty() {
                queue.waiting.remove(&shard);
                return;
            }
            let keep = waiting.len().saturating_sub(SETTLE_BATCH);
            waiting.split_off(keep)
        };
        let request = SettleRequest {
            shard: shard.0,
            fingerprints: batch.iter().map(|fingerprint| Bytes::copy_from_slice(fingerprint)).collect(),
        };
        let mut left = SETTLE_TRIES;
        while let Err(error) = shared.shards.settle(request.clone()).await {
            left -= 1;
            if left == 0 {
                debug!(%shard, %error, "fingerprints not settled");
                shared.metrics.settles_lost.inc_by(batch.len() as u64);
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        shared.free(&batch);
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
                outcome.add(shard.as_ref().map_or(1, Vec::len), reply);
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
        wrong.add(2, Ok(DeliverReply { recipients: vec![RecipientReply::default()] }));
        assert!(wrong.result().is_err());
    }
}
