//! The id that all attempts at one change have in common.

use bytes::Bytes;
use types::{MailError, MailResult};

/// 16 random octets; `Internal` where the system has none to give.
pub fn fresh_request_id() -> MailResult<Bytes> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| MailError::Internal(error.to_string()))?;
    Ok(Bytes::copy_from_slice(&id))
}
