//! What the source remembers of an account's requests and deliveries, so that what is tried again at the target is known
//! there. It comes while the account is served; the hold has to wait only for what is new.

use bytes::Bytes;
use proto::wire::Fingerprints;
use proto::wire::export_account_request::What;
use proto::wire::exported_part::Part;
use storage::{Command, MovedFingerprint, MovedPart, RememberedFrom};
use types::{MailError, MailResult};

use super::{Bringing, PARTS_OCTETS, next, part, unexpected};
use crate::mail::blocking;
use crate::mail::deliver::fingerprint;

/// A request may be in the log this much later than it is stamped.
const STAMP_SLACK_MS: u64 = 15_000;
/// Deliveries to one account that may be tried again: each was cut off, or its router died. 32 octets of memory each.
const FINGERPRINTS_MAX: usize = 100_000;
/// Of them, those that are asked after at a time, and settled by one command.
const FINGERPRINTS_ASKED: usize = 4_000;

impl Bringing<'_> {
    /// What is remembered of requests, so that one whose answer was lost is not done again.
    pub(super) async fn requests(&mut self) -> MailResult<()> {
        let newest = self.remembered(What::RequestsSinceMs(self.requests_since_ms)).await?;
        self.requests_since_ms = self.requests_since_ms.max(newest.saturating_sub(STAMP_SLACK_MS));
        Ok(())
    }

    /// What is remembered of deliveries, so that those that are tried again bring nothing twice.
    pub(super) async fn fingerprints(&mut self) -> MailResult<()> {
        let newest = self.remembered(What::FingerprintsSinceMs(self.fingerprints_since_ms)).await?;
        self.fingerprints_since_ms = self.fingerprints_since_ms.max(newest.saturating_sub(STAMP_SLACK_MS));
        Ok(())
    }

    /// Those that an earlier bringer has brought.
    pub(super) async fn fingerprints_before(&mut self) -> MailResult<()> {
        let mut from = Some(RememberedFrom::time(0));
        while let Some(at) = from {
            let (state, account, id) = (self.target.state(), self.account, self.id);
            let part = blocking(move || Ok(state.brought_fingerprints(account, id, &at)?)).await?;
            part.found.iter().try_for_each(|one| self.note_fingerprint(one))?;
            from = part.next;
        }
        Ok(())
    }

    fn note_fingerprint(&mut self, one: &MovedFingerprint) -> MailResult<()> {
        self.fingerprints.insert(fingerprint(&one.fingerprint)?);
        match self.fingerprints.len() > FINGERPRINTS_MAX {
            true => Err(MailError::Limit(format!("more than {FINGERPRINTS_MAX} deliveries may be tried again"))),
            false => Ok(()),
        }
    }

    /// Imports parts as they come. Answers the newest stamp in the source when it began to look.
    async fn remembered(&mut self, what: What) -> MailResult<u64> {
        let mut stream = self.export(what).await?;
        let (mut parts, mut octets, mut newest) = (Vec::new(), 0, 0);
        while let Some(part_of) = next(&mut stream).await? {
            let moved = match part_of {
                Part::Moved(moved) => moved,
                Part::NewestMs(ms) => {
                    newest = ms;
                    continue;
                }
                _ => return Err(unexpected()),
            };
            let part = part(&moved)?;
            match &part {
                // Of a change of many thousand messages, which done again changes nothing.
                MovedPart::Request(request) if request.record.len() > PARTS_OCTETS => continue,
                MovedPart::Fingerprint(one) => self.note_fingerprint(one)?,
                _ => {}
            }
            if octets + moved.len() > PARTS_OCTETS {
                octets = 0;
                self.import(std::mem::take(&mut parts)).await?;
            }
            octets += moved.len();
            parts.push(part);
        }
        self.import(parts).await?;
        Ok(newest)
    }

    /// Of what has come, that which was settled in the source since.
    pub(super) async fn settle_forgotten(&mut self) -> MailResult<()> {
        let fingerprints = Vec::from_iter(std::mem::take(&mut self.fingerprints));
        for some in fingerprints.chunks(FINGERPRINTS_ASKED) {
            let asked = some.iter().map(|one| Bytes::copy_from_slice(one)).collect();
            let mut stream = self.export(What::Forgotten(Fingerprints { fingerprints: asked })).await?;
            while let Some(part_of) = next(&mut stream).await? {
                let Part::Forgotten(forgotten) = part_of else { return Err(unexpected()) };
                let fingerprints: Vec<_> =
                    forgotten.fingerprints.iter().map(|one| fingerprint(one)).collect::<MailResult<_>>()?;
                if !fingerprints.is_empty() {
                    self.target.propose(&Command::Settle { fingerprints }, None).await?;
                }
            }
        }
        Ok(())
    }
}
