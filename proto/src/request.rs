//! Changes: the id that all attempts at one have in common, and how much one may be about.

use bytes::Bytes;
use types::{MailError, MailResult};

/// Messages that one change is about. What a client means to change at once may be a mailbox of half a million: made in
/// parts of so many, each takes a shard some ten milliseconds and some MiB, and other mail is served in between.
pub const MESSAGES_PER_CHANGE_MAX: u32 = 10_000;

/// 16 random octets; `Internal` where the system has none to give.
pub fn fresh_request_id() -> MailResult<Bytes> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| MailError::Internal(error.to_string()))?;
    Ok(Bytes::copy_from_slice(&id))
}
