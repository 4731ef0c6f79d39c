//! Bodies, and uploads that become bodies.

use bytes::Bytes;
use types::MailError;

use super::{Edit, Fault, Step};
use crate::error::StorageError;
use crate::keys::{Kind, printable};
use crate::records::{BodyRecord, ChunkRecord, UploadRecord, encode, encode_bytes};
use crate::state::UPLOAD_CHUNKS_MAX;
use crate::state::command::BodySource;
use crate::store::Family;

impl Edit<'_> {
    /// The chunks of the body that this command brings, which are then nobody's until a message refers to them.
    pub(crate) fn take_body(&mut self, source: &BodySource, body_len: Option<u64>) -> Step<Vec<ChunkRecord>> {
        let own = body_len.map(|len| ChunkRecord { index: self.index, len });
        match source {
            BodySource::Inline => match own {
                Some(chunk) => Ok(vec![chunk]),
                None => Err(MailError::Invalid("the entry has no body".to_owned()).into()),
            },
            BodySource::Upload(upload) => {
                let Some(mut record) = self.take_upload(*upload)? else {
                    // Dropped, or swept as abandoned: the client must send it again.
                    return Err(MailError::Busy.into());
                };
                record.chunks.extend(own);
                Ok(record.chunks)
            }
        }
    }

    fn take_upload(&mut self, upload: u128) -> Step<Option<UploadRecord>> {
        let key = self.key(Kind::Upload).u128(upload).done();
        let Some(record) = self.record::<UploadRecord>(&key)? else { return Ok(None) };
        self.delete(key);
        let key = self.key(Kind::UploadTime).u64(record.unix_ms).u128(upload).done();
        self.delete(key);
        Ok(Some(record))
    }

    pub(crate) fn add_chunk(&mut self, upload: u128, body_len: Option<u64>) -> Step<()> {
        let Some(len) = body_len else { return Err(MailError::Invalid("the entry has no body".to_owned()).into()) };
        let key = self.key(Kind::Upload).u128(upload).done();
        let mut record = match self.record::<UploadRecord>(&key)? {
            Some(record) => record,
            None => {
                let unix_ms = self.unix_ms();
                let time_key = self.key(Kind::UploadTime).u64(unix_ms).u128(upload).done();
                self.put(time_key, encode_bytes(b""));
                UploadRecord { unix_ms, chunks: Vec::new() }
            }
        };
        if record.chunks.len() >= UPLOAD_CHUNKS_MAX {
            return Err(MailError::Limit(format!("message has more than {UPLOAD_CHUNKS_MAX} chunks")).into());
        }
        record.chunks.push(ChunkRecord { index: self.index, len });
        self.put(key, encode(&record));
        Ok(())
    }

    pub(crate) fn drop_upload(&mut self, upload: u128) -> Step<()> {
        if let Some(record) = self.take_upload(upload)? {
            self.discard(&record.chunks);
        }
        Ok(())
    }

    /// Gives blobs to the next purge that reaches them.
    pub(crate) fn discard(&mut self, chunks: &[ChunkRecord]) {
        for chunk in chunks {
            let key = self.key(Kind::Garbage).u64(chunk.index).done();
            self.puts.put(Family::State, key, encode_bytes(b""));
        }
    }

    /// A new body with no references yet.
    pub(crate) fn create_body(&mut self, chunks: Vec<ChunkRecord>, digest: &Bytes) -> u64 {
        let size = chunks.iter().map(|chunk| chunk.len).sum();
        self.bodies.insert(self.index, BodyRecord { references: 0, size, chunks });
        let key = self.key(Kind::Digest).u64(self.index).done();
        self.put(key, encode_bytes(digest));
        self.index
    }

    pub(crate) fn body(&mut self, body: u64) -> Step<&mut BodyRecord> {
        if !self.bodies.contains_key(&body) {
            let key = self.key(Kind::Body).u64(body).done();
            let Some(record) = self.record::<BodyRecord>(&key)? else {
                return Err(StorageError::corrupt(printable(Family::State, &key), "missing").into());
            };
            self.bodies.insert(body, record);
        }
        self.bodies.get_mut(&body).ok_or_else(|| Fault::Mail(MailError::Internal("body".to_owned())))
    }

    pub(crate) fn refer(&mut self, body: u64) -> Step<()> {
        self.body(body)?.references += 1;
        Ok(())
    }

    pub(crate) fn release(&mut self, body: u64) -> Step<()> {
        let key = self.key(Kind::Body).u64(body);
        let record = self.body(body)?;
        record.references = record.references.checked_sub(1).ok_or_else(|| {
            StorageError::corrupt(printable(Family::State, &key.done()), "fewer references than messages")
        })?;
        Ok(())
    }
}
