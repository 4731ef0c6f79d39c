//! A message's bytes on their way into the store: in memory, in an anonymous temporary file, or headers in front of
//! either. Cloning shares; a body can be read again when an operation is tried again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt};

/// Bytes of a body in one gRPC message or one read of a file: large enough to amortise the call, small enough that
/// nothing else waits long behind it.
pub const BODY_PIECE_OCTETS: usize = 256 * 1024;

#[derive(Clone, Debug)]
enum Piece {
    Memory(Bytes),
    File { file: Arc<File>, octets: u64 },
}

impl Piece {
    fn octets(&self) -> u64 {
        match self {
            Piece::Memory(bytes) => bytes.len() as u64,
            Piece::File { octets, .. } => *octets,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Body {
    pieces: Vec<Piece>,
}

impl Body {
    pub fn from_bytes(bytes: Bytes) -> Body {
        Body { pieces: vec![Piece::Memory(bytes)] }
    }

    /// The first `octets` octets of a file that nobody writes to any more.
    pub fn from_file(file: Arc<File>, octets: u64) -> Body {
        Body { pieces: vec![Piece::File { file, octets }] }
    }

    /// The same body with bytes in front, such as trace headers.
    pub fn with_prefix(&self, prefix: Bytes) -> Body {
        let mut pieces = Vec::with_capacity(self.pieces.len() + 1);
        pieces.push(Piece::Memory(prefix));
        pieces.extend(self.pieces.iter().cloned());
        Body { pieces }
    }

    pub fn octets(&self) -> u64 {
        self.pieces.iter().map(Piece::octets).sum()
    }

    /// The bytes in order, at most [`BODY_PIECE_OCTETS`] at a time.
    pub fn stream(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let pieces = self.pieces.clone();
        stream::iter(pieces).flat_map(|piece| {
            let octets = piece.octets();
            let starts: Vec<u64> = (0..octets).step_by(BODY_PIECE_OCTETS).collect();
            stream::iter(starts).then(move |start| {
                let piece = piece.clone();
                let len = (octets - start).min(BODY_PIECE_OCTETS as u64) as usize;
                async move { read_piece(piece, start, len).await }
            })
        })
    }

    /// The whole body in one buffer. Errors with `FileTooLarge` above `octets_max`.
    pub async fn collect(&self, octets_max: u64) -> io::Result<Bytes> {
        if self.octets() > octets_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if let [Piece::Memory(bytes)] = self.pieces.as_slice() {
            return Ok(bytes.clone());
        }
        let mut whole = BytesMut::with_capacity(self.octets() as usize);
        let mut stream = std::pin::pin!(self.stream());
        while let Some(bytes) = stream.next().await {
            whole.extend_from_slice(&bytes?);
        }
        Ok(whole.freeze())
    }
}

async fn read_piece(piece: Piece, start: u64, len: usize) -> io::Result<Bytes> {
    match piece {
        Piece::Memory(bytes) => Ok(bytes.slice(start as usize..start as usize + len)),
        Piece::File { file, .. } => tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; len];
            file.read_exact_at(&mut buffer, start)?;
            Ok(Bytes::from(buffer))
        })
        .await
        .map_err(io::Error::other)?,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::{BODY_PIECE_OCTETS, Body};

    #[tokio::test]
    async fn a_body_of_memory_and_file_reads_as_one_and_again() {
        let content: Vec<u8> = (0..BODY_PIECE_OCTETS * 2 + 17).map(|i| (i % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let body =
            Body::from_file(Arc::new(file), content.len() as u64).with_prefix(Bytes::from_static(b"Received: x\r\n"));
        for _ in 0..2 {
            let whole = body.collect(u64::MAX).await.unwrap();
            assert_eq!(&whole[..13], b"Received: x\r\n");
            assert_eq!(&whole[13..], &content[..]);
        }
        assert!(body.collect(10).await.is_err());
    }
}
