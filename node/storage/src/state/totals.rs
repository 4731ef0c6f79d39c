//! All accounts of a shard at once. What they hold together is counted when it is first asked for and kept in memory
//! from then on, a difference at each command: nothing of it is on the disk.

use types::AccountId;

use super::ShardState;
use super::moving::has_gone;
use super::outcome::ShardTotals;
use crate::error::StorageError;
use crate::group::Held;
use crate::keys::{Kind, printable, u64_at};
use crate::records::{AccountRecord, decode};
use crate::store::Family;

/// How much of the totals is known.
#[derive(Default)]
pub(crate) enum Totals {
    #[default]
    Unknown,
    /// The state of some moment is being counted; this came since.
    Counting(Grown),
    Known(ShardTotals),
}

/// What commands have added, less what they have taken away.
#[derive(Clone, Copy, Default)]
pub(crate) struct Grown {
    accounts: i64,
    messages: i64,
    bytes: i64,
}

impl Grown {
    pub(crate) fn came(&mut self, record: &AccountRecord) {
        self.accounts += i64::from(!has_gone(record));
        self.messages += record.messages as i64;
        self.bytes += record.bytes as i64;
    }

    pub(crate) fn went(&mut self, record: &AccountRecord) {
        self.accounts -= i64::from(!has_gone(record));
        self.messages -= record.messages as i64;
        self.bytes -= record.bytes as i64;
    }

    fn add(&mut self, more: Grown) {
        self.accounts += more.accounts;
        self.messages += more.messages;
        self.bytes += more.bytes;
    }
}

impl ShardTotals {
    fn grown(self, by: Grown) -> ShardTotals {
        ShardTotals {
            accounts: self.accounts.saturating_add_signed(by.accounts),
            messages: self.messages.saturating_add_signed(by.messages),
            bytes: self.bytes.saturating_add_signed(by.bytes),
        }
    }
}

impl Totals {
    pub(crate) fn add(&mut self, more: Grown) {
        match self {
            Totals::Unknown => {}
            Totals::Counting(grown) => grown.add(more),
            Totals::Known(totals) => *totals = totals.grown(more),
        }
    }
}

impl ShardState {
    /// Reads one small record an account the first time, and nothing from then on until a snapshot is installed.
    pub fn totals(&self) -> Result<ShardTotals, StorageError> {
        self.group.check()?;
        if let Totals::Known(totals) = *self.group.totals.lock() {
            return Ok(totals);
        }
        let _counting = self.group.counting.lock();
        let held = Held::default();
        let view = {
            // No command between the view and the first difference.
            let _apply = self.group.apply.lock();
            let mut totals = self.group.totals.lock();
            if let Totals::Known(totals) = *totals {
                return Ok(totals);
            }
            *totals = Totals::Counting(Grown::default());
            drop(totals);
            self.view(&held)?
        };
        let mut counted = Grown::default();
        view.scan(view.key(Kind::Account), |key, value| {
            counted.came(&decode(Family::State, key, value)?);
            Ok(true)
        })?;
        let counted = ShardTotals::default().grown(counted);
        let mut totals = self.group.totals.lock();
        let Totals::Counting(grown) = *totals else {
            // Another state has taken the place of the one that was counted.
            return Ok(counted);
        };
        let known = counted.grown(grown);
        *totals = Totals::Known(known);
        Ok(known)
    }

    /// Accounts that have state here, ascending, from `from` on, at most `max` of them.
    pub fn accounts_from(&self, from: AccountId, max: usize) -> Result<Vec<AccountId>, StorageError> {
        let held = Held::default();
        let view = self.view(&held)?;
        let (_, to) = crate::keys::prefix_range(&view.key(Kind::Account).done());
        let mut found = Vec::new();
        view.scan_range((view.key(Kind::Account).account(from).done(), to), |key, _| {
            let id =
                u64_at(key, 5).ok_or_else(|| StorageError::corrupt(printable(Family::State, key), "a short key"))?;
            found.push(AccountId(id));
            Ok(found.len() < max)
        })?;
        Ok(found)
    }
}
