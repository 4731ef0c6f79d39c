//! A section whose message was expunged after it had begun, and whose node went amid it: the rest of it, read where the
//! body was, as long as no purge has taken that. Who asks knows the place from the node that went.

use std::ops::Range;
use std::sync::Arc;

use proto::wire::{BodyChunk as WireChunk, BodyPlace, BodyRange, FetchedMessage};
use storage::{BodyChunk, BodyId, PinnedBody, UPLOAD_CHUNKS_MAX};
use types::{MailError, MailResult};

use super::super::{blocking, if_here, storage_error};
use super::{Fetch, Fetched, INLINE_OCTETS, Rest, Sender, Unread, octets_in};

/// Of a body: its upload's, and the one that came with the command that completed it.
const CHUNKS_MAX: usize = UPLOAD_CHUNKS_MAX + 1;

pub(super) fn place(shard: u32, body: BodyId, pinned: &PinnedBody) -> BodyPlace {
    let chunks = pinned.chunks().map(|BodyChunk { index, octets }| WireChunk { index, octets });
    BodyPlace { shard, body: body.0, chunks: chunks.collect() }
}

/// What a caller asks for, as far as it can be meant.
struct Wanted {
    body: BodyId,
    chunks: Vec<BodyChunk>,
    range: Range<u64>,
}

impl Wanted {
    /// `None`: it was on another shard, and log indexes of that one say nothing here.
    fn of(rest: BodyRange, shard: u32) -> MailResult<Option<Wanted>> {
        let Some(place) = rest.place.filter(|place| place.shard == shard) else { return Ok(None) };
        if place.chunks.len() > CHUNKS_MAX {
            return Err(not_in_body());
        }
        let size = place.chunks.iter().try_fold(0u64, |size, chunk| size.checked_add(chunk.octets));
        let end = rest.offset.checked_add(rest.octets).filter(|end| size.is_some_and(|size| *end <= size));
        let range = rest.offset..end.ok_or_else(not_in_body)?;
        let chunk = |chunk: &WireChunk| BodyChunk { index: chunk.index, octets: chunk.octets };
        Ok(Some(Wanted { body: BodyId(place.body), chunks: place.chunks.iter().map(chunk).collect(), range }))
    }
}

fn not_in_body() -> MailError {
    MailError::Invalid("the rest of a section is not in its body".to_owned())
}

impl Fetch {
    /// Sends nothing where a purge has taken it.
    pub(super) async fn send_expunged(&self, rest: BodyRange, sender: &Sender) -> MailResult<()> {
        let Some(wanted) = Wanted::of(rest, self.request.shard)? else { return Ok(()) };
        let Some(uid) = self.request.uids.as_ref().and_then(|uids| uids.bounds.first()).copied() else { return Ok(()) };
        let fetch = self.clone();
        let read = blocking(move || if_here(&fetch.state, fetch.account, |_| fetch.expunged(uid, wanted))).await;
        match read {
            Ok(None) => Ok(()),
            Ok(Some(fetched)) => {
                tracing::info!(shard = self.request.shard, "the rest of an expunged message is read");
                self.send(fetched, sender).await.map(drop)
            }
            Err(MailError::Corrupt { key }) => self.tell_unread(Unread { uid, key }, sender).await.map(drop),
            Err(error) => Err(error),
        }
    }

    /// Reads the disk.
    fn expunged(&self, uid: u32, wanted: Wanted) -> MailResult<Option<Fetched>> {
        let Wanted { body, chunks, range } = wanted;
        // Other messages may have it: copies, or what it was moved to.
        let pinned = match self.state.pin_body(body).map_err(storage_error)? {
            Some(shared) => shared,
            None => match self.state.pin_released(&chunks).map_err(storage_error)? {
                Some(released) => released,
                None => return Ok(None),
            },
        };
        if range.end > pinned.size() {
            return Err(not_in_body());
        }
        let (section, rest) = octets_in(&Arc::new(pinned), range, INLINE_OCTETS)?;
        let message = FetchedMessage { uid, sections: vec![section], ..FetchedMessage::default() };
        let rest = rest.into_iter().map(|source| Rest { section: 0, source }).collect();
        Ok(Some(Fetched { message, body, rest }))
    }
}

#[cfg(test)]
mod tests {
    use proto::wire::{BodyChunk, BodyPlace, BodyRange};

    use super::{CHUNKS_MAX, Wanted};

    fn rest(offset: u64, octets: u64, chunks: &[u64]) -> BodyRange {
        let chunks = (1..).zip(chunks).map(|(index, octets)| BodyChunk { index, octets: *octets });
        BodyRange { place: Some(BodyPlace { shard: 7, body: 9, chunks: chunks.collect() }), offset, octets }
    }

    #[test]
    fn what_is_not_in_a_body_or_is_of_another_shard_is_not_looked_for() {
        let wanted = Wanted::of(rest(10, 20, &[16, 14]), 7).unwrap().unwrap();
        assert_eq!((wanted.body.0, wanted.chunks.len(), wanted.range), (9, 2, 10..30));
        assert!(Wanted::of(rest(10, 20, &[16, 14]), 8).unwrap().is_none());
        assert!(Wanted::of(BodyRange { place: None, offset: 0, octets: 0 }, 7).unwrap().is_none());
        for wrong in [rest(10, 21, &[16, 14]), rest(u64::MAX, 1, &[16]), rest(0, 1, &[u64::MAX, 1]), rest(0, 1, &[])] {
            assert!(Wanted::of(wrong, 7).is_err());
        }
        assert!(Wanted::of(rest(0, 1, &[1; CHUNKS_MAX]), 7).is_ok());
        assert!(Wanted::of(rest(0, 1, &[1; CHUNKS_MAX + 1]), 7).is_err());
    }
}
