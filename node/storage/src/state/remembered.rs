//! What a shard remembers of an account's requests and deliveries, for the shard that the account goes to. It is kept by
//! time and not by account: who looks for an account's goes over everybody's, a bounded part at a time.

use prost::Message;
use types::AccountId;

use super::ShardState;
use super::moved::{MovedFingerprint, MovedRequest};
use super::requests;
use crate::error::StorageError;
use crate::group::{Held, View};
use crate::keys::{Kind, prefix_range, printable, u64_at, u128_at};
use crate::records::{AccountRecord, FingerprintRecord, decode};
use crate::store::Family;

/// Of everybody's, looked at in one part: some tens of milliseconds of work.
const LOOKED_AT: usize = 4_096;
/// Of the account's in one part, whatever a record says.
const FOUND_OCTETS: usize = 256 * 1024;
/// Of a key before its time: space and kind.
const TIME_AT: usize = 5;

/// From where on to look, in the order of time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RememberedFrom(Vec<u8>);

impl RememberedFrom {
    /// In milliseconds since 1970, by the shard's clock.
    pub fn time(unix_ms: u64) -> RememberedFrom {
        RememberedFrom(unix_ms.to_be_bytes().to_vec())
    }

    fn behind(key: &[u8]) -> RememberedFrom {
        let mut next = key.get(TIME_AT..).unwrap_or_default().to_vec();
        next.push(0);
        RememberedFrom(next)
    }
}

/// A part of it, in the order of time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remembered<T> {
    pub found: Vec<T>,
    /// Where there may be more.
    pub next: Option<RememberedFrom>,
}

impl ShardState {
    /// Some of what is remembered of an account's requests.
    pub fn moved_requests(
        &self,
        account: AccountId,
        from: &RememberedFrom,
    ) -> Result<Remembered<MovedRequest>, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        look(&view, Kind::RequestTime, from, |time| {
            let Some((unix_ms, request)) = u64_at(time, TIME_AT).zip(u128_at(time, 13)) else { return Ok(None) };
            // Forgotten between the two.
            let Some(record) = requests::record_of(&view, account, request)? else { return Ok(None) };
            let octets = record.len();
            Ok(Some((MovedRequest { request: request.to_be_bytes().to_vec(), unix_ms, record }, octets)))
        })
    }

    /// Some of what is remembered of deliveries to an account that is here.
    pub fn moved_fingerprints(
        &self,
        account: AccountId,
        from: &RememberedFrom,
    ) -> Result<Remembered<MovedFingerprint>, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let stay = stay(&view, account)?;
        fingerprints(&view, (account, stay), from)
    }

    /// The same of an account that comes here by a move, of what that has brought.
    pub fn brought_fingerprints(
        &self,
        account: AccountId,
        id: u64,
        from: &RememberedFrom,
    ) -> Result<Remembered<MovedFingerprint>, StorageError> {
        fingerprints(&self.view(&Held::default())?, (account, id), from)
    }

    /// Those of them by which no delivery to the account is remembered, or none any more.
    pub fn forgotten(&self, account: AccountId, fingerprints: &[[u8; 32]]) -> Result<Vec<[u8; 32]>, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let stay = stay(&view, account)?;
        let mut forgotten = Vec::new();
        for fingerprint in fingerprints {
            let key = view.key(Kind::Fingerprint).bytes(fingerprint).account(account).done();
            let record: Option<FingerprintRecord> = view.record(&key)?;
            if record.is_none_or(|record| record.stay != stay) {
                forgotten.push(*fingerprint);
            }
        }
        Ok(forgotten)
    }
}

/// What is remembered of an earlier stay of the account does not count.
fn stay(view: &View<'_>, account: AccountId) -> Result<u64, StorageError> {
    let record: Option<AccountRecord> = view.record(&view.key(Kind::Account).account(account).done())?;
    Ok(record.map_or(0, |record| record.arrived_by))
}

fn fingerprints(
    view: &View<'_>,
    (account, stay): (AccountId, u64),
    from: &RememberedFrom,
) -> Result<Remembered<MovedFingerprint>, StorageError> {
    look(view, Kind::FingerprintTime, from, |time| {
        let damaged = || StorageError::corrupt(printable(Family::State, time), "short key");
        if u64_at(time, 45).ok_or_else(damaged)? != account.0 {
            return Ok(None);
        }
        let fingerprint = time.get(13..45).ok_or_else(damaged)?.to_vec();
        let key = view.key(Kind::Fingerprint).bytes(&fingerprint).account(account).done();
        let Some(value) = view.get(&key)? else { return Ok(None) };
        let record: FingerprintRecord = decode(Family::State, &key, &value)?;
        let FingerprintRecord { mailbox, uid, uid_validity, unix_ms, stay: of } = record;
        let found = MovedFingerprint { fingerprint, mailbox, uid, uid_validity, unix_ms };
        let octets = found.encoded_len();
        Ok((of == stay).then_some((found, octets)))
    })
}

/// A part of what is of a kind, of which `find` tells what is wanted, and how many octets it has.
fn look<T>(
    view: &View<'_>,
    kind: Kind,
    from: &RememberedFrom,
    mut find: impl FnMut(&[u8]) -> Result<Option<(T, usize)>, StorageError>,
) -> Result<Remembered<T>, StorageError> {
    let mut part = Remembered { found: Vec::new(), next: None };
    let (mut looked_at, mut octets) = (0, 0);
    let range = (view.key(kind).bytes(&from.0).done(), prefix_range(&view.key(kind).done()).1);
    view.scan_range(range, |time, _| {
        looked_at += 1;
        if let Some((found, found_octets)) = find(time)? {
            octets += found_octets;
            part.found.push(found);
        }
        let is_full = looked_at >= LOOKED_AT || octets >= FOUND_OCTETS;
        part.next = is_full.then(|| RememberedFrom::behind(time));
        Ok(!is_full)
    })?;
    Ok(part)
}
