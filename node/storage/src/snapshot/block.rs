//! One block of a snapshot, and the totals that end it.

use bytes::Bytes;
use prost::Message;

use crate::error::StorageError;
use crate::keys::{GroupId, u32_at};

/// With its frame, a block fits a message of 1 MiB.
pub(crate) const PAYLOAD_BYTES_MAX: usize = (1 << 20) - 64;
const MAGIC: &[u8; 4] = b"MRSB";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 18;
const CRC_BYTES: usize = 4;

pub(crate) const ITEM_STATE: u8 = 1;
pub(crate) const ITEM_BLOB: u8 = 2;
pub(crate) const ITEM_HEADER_BYTES: usize = 9;

/// What the whole stream must amount to.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Totals {
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
    #[prost(uint64, tag = "2")]
    pub records: u64,
    #[prost(uint64, tag = "3")]
    pub blobs: u64,
    /// crc32c of the stream.
    #[prost(fixed32, tag = "4")]
    pub crc: u32,
    #[prost(bytes = "bytes", tag = "5")]
    pub marker: Bytes,
}

pub(crate) struct Block<'a> {
    pub last: bool,
    pub number: u32,
    pub payload: &'a [u8],
}

pub(crate) fn encode(group: GroupId, number: u32, last: bool, payload: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len() + CRC_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[VERSION, u8::from(last)]);
    bytes.extend_from_slice(&group.0.to_be_bytes());
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_be_bytes());
    bytes.into()
}

pub(crate) fn decode(group: GroupId, bytes: &[u8]) -> Result<Block<'_>, StorageError> {
    let refuse = |reason: &str| StorageError::Block(reason.to_owned());
    let body_len = bytes.len().checked_sub(CRC_BYTES).ok_or_else(|| refuse("block is cut"))?;
    let (body, _) = bytes.split_at(body_len);
    if u32_at(bytes, body_len) != Some(crc32c::crc32c(body)) {
        return Err(refuse("block has a wrong checksum"));
    }
    let (header, payload) = body.split_at_checked(HEADER_BYTES).ok_or_else(|| refuse("block is cut"))?;
    if header.get(..4) != Some(MAGIC) || header.get(4) != Some(&VERSION) {
        return Err(refuse("block is of an unknown format"));
    }
    if u32_at(header, 6) != Some(group.0) {
        return Err(refuse("block is of another group"));
    }
    if u32_at(header, 14) != u32::try_from(payload.len()).ok() {
        return Err(refuse("block has a wrong length"));
    }
    let number = u32_at(header, 10).ok_or_else(|| refuse("block is cut"))?;
    Ok(Block { last: header.get(5) == Some(&1), number, payload })
}

/// The head of an item.
pub(crate) fn item_header(kind: u8, key: &[u8], value: &[u8]) -> [u8; ITEM_HEADER_BYTES] {
    let mut header = [0; ITEM_HEADER_BYTES];
    header[0] = kind;
    header[1..5].copy_from_slice(&(key.len() as u32).to_be_bytes());
    header[5..9].copy_from_slice(&(value.len() as u32).to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};
    use crate::keys::GroupId;

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let group = GroupId(7);
        let block = encode(group, 3, false, b"payload");
        let read = decode(group, &block).unwrap();
        assert_eq!((read.number, read.last, read.payload), (3, false, &b"payload"[..]));
        assert!(decode(GroupId(8), &block).is_err());
        for at in 0..block.len() {
            let mut bad = block.to_vec();
            bad[at] ^= 1;
            assert!(decode(group, &bad).is_err(), "flip at {at}");
            assert!(decode(group, &block[..at]).is_err(), "cut at {at}");
        }
    }
}
