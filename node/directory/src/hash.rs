//! The one stable hash: SipHash-2-4 with a zero key, fed with explicit little-endian bytes only, so that it stays the
//! same over compilers, machines and versions of this program. Its golden vectors are in the tests below.

use std::hash::{BuildHasher, Hasher};

use siphasher::sip::SipHasher24;
use types::{AccountId, ShardId};

/// For `HashRing::with_hasher`. What is hashed must write its bytes itself, in one `Hasher::write`: the standard
/// library's `Hash` of integers, strings and tuples is not promised to stay as it is.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct StableHash;

impl BuildHasher for StableHash {
    type Hasher = SipHasher24;

    fn build_hasher(&self) -> SipHasher24 {
        SipHasher24::new()
    }
}

/// The shard that an account gets when it is created. By its id and not by its name, so that the answer would stay
/// the same if the account were renamed. Recorded with the account: this is never asked again for an account that
/// exists.
///
/// `shards` is at least 1.
pub fn shard_of(account: AccountId, shards: u32) -> ShardId {
    let mut hasher = StableHash.build_hasher();
    let mut bytes = *b"account\0\0\0\0\0\0\0\0";
    bytes[7..].copy_from_slice(&account.0.to_le_bytes());
    hasher.write(&bytes);
    let slot = hasher.finish() % u64::from(shards.max(1));
    ShardId(u32::try_from(slot).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, Hasher};

    use types::{AccountId, ShardId};

    use super::{StableHash, shard_of};

    /// The reference implementation's SipHash-2-4 of nothing under a zero key.
    #[test]
    fn the_hash_is_siphash_2_4_with_a_zero_key() {
        assert_eq!(StableHash.build_hasher().finish(), 0x1e92_4b9d_7377_00d7);
    }

    /// Changing any of these loses no data, because shards are recorded, but new accounts would go elsewhere.
    #[test]
    fn accounts_go_to_the_shards_they_always_went_to() {
        let shards: Vec<u32> = (1..=8).map(|id| shard_of(AccountId(id), 16).0).collect();
        assert_eq!(shards, GOLDEN);
        assert_eq!(shard_of(AccountId(u64::MAX), 4096), ShardId(GOLDEN_LAST));
        assert_eq!(shard_of(AccountId(1), 1), ShardId(0));
    }

    #[test]
    fn accounts_spread_evenly_over_the_shards() {
        let mut counts = [0u32; 16];
        for id in 1..=16_000 {
            counts[shard_of(AccountId(id), 16).0 as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    // Computed by a second implementation of SipHash-2-4.
    const GOLDEN: [u32; 8] = [8, 6, 13, 13, 0, 0, 2, 10];
    const GOLDEN_LAST: u32 = 341;
}
