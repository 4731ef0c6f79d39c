//! A message while it is being received: in memory while it is small, then in an anonymous temporary file, with its
//! digest computed on the way.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use proto::Body;

/// A message of this size or less stays in memory: nearly all do.
pub const SPOOL_MEMORY_OCTETS: usize = 1024 * 1024;
/// Gathered before a write to the file.
const WRITE_OCTETS: usize = 256 * 1024;

/// Memory that all spools may take together.
pub struct SpoolMemory {
    taken: AtomicU64,
    max: u64,
}

impl SpoolMemory {
    pub fn new(max: u64) -> Arc<SpoolMemory> {
        Arc::new(SpoolMemory { taken: AtomicU64::new(0), max })
    }

    fn take(&self, octets: u64) -> bool {
        let add = |taken: u64| taken.checked_add(octets).filter(|taken| *taken <= self.max);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    fn give(&self, octets: u64) {
        self.taken.fetch_sub(octets, Ordering::Relaxed);
    }
}

/// Dropping it forgets the message.
pub struct Spool {
    memory: Arc<SpoolMemory>,
    /// Of `memory`.
    held: u64,
    buffer: BytesMut,
    file: Option<File>,
    file_octets: u64,
    digest: blake3::Hasher,
}

/// A message that is complete. Its share of the memory is held with it.
pub struct Spooled {
    pub body: Body,
    pub digest: [u8; 32],
    _spool: Spool,
}

impl Spool {
    pub fn new(memory: Arc<SpoolMemory>) -> Spool {
        Spool { memory, held: 0, buffer: BytesMut::new(), file: None, file_octets: 0, digest: blake3::Hasher::new() }
    }

    pub async fn push(&mut self, piece: &Bytes) -> io::Result<()> {
        self.digest.update(piece);
        let octets = piece.len() as u64;
        if self.file.is_none() {
            if self.buffer.len() + piece.len() <= SPOOL_MEMORY_OCTETS && self.memory.take(octets) {
                self.held += octets;
                self.buffer.extend_from_slice(piece);
                return Ok(());
            }
            self.file = Some(tokio::task::spawn_blocking(tempfile::tempfile).await.map_err(io::Error::other)??);
        }
        self.buffer.extend_from_slice(piece);
        if self.buffer.len() >= WRITE_OCTETS { self.write().await } else { Ok(()) }
    }

    pub async fn finish(mut self) -> io::Result<Spooled> {
        let digest = *self.digest.finalize().as_bytes();
        if self.file.is_some() {
            self.write().await?;
        }
        let body = match self.file.take() {
            Some(file) => Body::from_file(Arc::new(file), self.file_octets),
            None => Body::from_bytes(std::mem::take(&mut self.buffer).freeze()),
        };
        Ok(Spooled { body, digest, _spool: self })
    }

    async fn write(&mut self) -> io::Result<()> {
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let buffer = std::mem::take(&mut self.buffer);
        let octets = buffer.len() as u64;
        let written = tokio::task::spawn_blocking(move || file.write_all(&buffer).map(|()| file)).await;
        self.file = Some(written.map_err(io::Error::other)??);
        self.file_octets += octets;
        self.memory.give(std::mem::take(&mut self.held));
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.memory.give(self.held);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use bytes::Bytes;

    use super::{SPOOL_MEMORY_OCTETS, Spool, SpoolMemory};

    #[tokio::test]
    async fn a_message_reads_back_whether_it_stayed_in_memory_or_not() {
        let memory = SpoolMemory::new(10 * SPOOL_MEMORY_OCTETS as u64);
        for octets in [0, 1, SPOOL_MEMORY_OCTETS, SPOOL_MEMORY_OCTETS + 1, 3 * SPOOL_MEMORY_OCTETS + 7] {
            let message: Vec<u8> = (0..octets).map(|i| (i % 251) as u8).collect();
            let mut spool = Spool::new(memory.clone());
            for piece in message.chunks(16 * 1024) {
                spool.push(&Bytes::copy_from_slice(piece)).await.unwrap();
            }
            let spooled = spool.finish().await.unwrap();
            assert_eq!(spooled.digest, *blake3::hash(&message).as_bytes());
            assert_eq!(spooled.body.collect(u64::MAX).await.unwrap(), message);
        }
        assert_eq!(memory.taken.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn without_memory_a_small_message_goes_to_a_file() {
        let memory = SpoolMemory::new(100);
        let mut spool = Spool::new(memory.clone());
        for _ in 0..20 {
            spool.push(&Bytes::from_static(b"0123456789")).await.unwrap();
        }
        assert!(spool.file.is_some());
        let spooled = spool.finish().await.unwrap();
        assert_eq!(spooled.body.octets(), 200);
        drop(spooled);
        assert_eq!(memory.taken.load(Ordering::Relaxed), 0);
    }
}
