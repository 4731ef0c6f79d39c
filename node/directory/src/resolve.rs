//! From a recipient to the accounts that get its mail.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use types::{AccountId, AccountName};

use crate::error::RecipientError;
use crate::limits::{EXPANSION_ACCOUNTS_MAX, EXPANSION_VISITS_MAX};
use crate::state::Directory;
use crate::values::Account;

impl Directory {
    /// The accounts that mail for `name` goes to, each once, ascending by id; never empty.
    ///
    /// In this order: the account or alias of that name; for `postmaster` of a hosted domain, which must be accepted
    /// (RFC 5321 §4.5.1), the cluster's postmaster; the domain's catch-all; for `postmaster` the domain's oldest
    /// enabled account. Disabled accounts are among them: they cannot log in, but their mail is kept.
    pub fn resolve_recipient(&self, name: &AccountName) -> Result<Vec<&Account>, RecipientError> {
        if !self.domains.contains_key(name.domain()) {
            return Err(RecipientError::UnknownDomain);
        }
        if let Some(account) = self.account(name) {
            return Ok(vec![account]);
        }
        if let Some(alias) = self.alias(name) {
            return self.expand(&alias.targets);
        }
        let is_postmaster = name.local() == "postmaster";
        if is_postmaster && let Some(account) = self.cluster_postmaster() {
            return Ok(vec![account]);
        }
        if let Some(alias) = self.catch_all(name.domain()) {
            return self.expand(&alias.targets);
        }
        match self.first_account(name.domain()) {
            Some(account) if is_postmaster => Ok(vec![account]),
            _ => Err(RecipientError::UnknownUser),
        }
    }

    fn cluster_postmaster(&self) -> Option<&Account> {
        self.account(self.cluster.as_ref()?.postmaster.as_ref()?)
    }

    /// Commands cannot make a loop, since a target must exist before its alias and cannot go away under it. Records
    /// that came some other way could: every name is visited once.
    pub(crate) fn expand(&self, targets: &[AccountName]) -> Result<Vec<&Account>, RecipientError> {
        let mut accounts: BTreeMap<AccountId, &Account> = BTreeMap::new();
        let mut visited: BTreeSet<&AccountName> = BTreeSet::new();
        let mut looped = false;
        let mut waiting: VecDeque<&AccountName> = targets.iter().collect();
        while let Some(name) = waiting.pop_front() {
            if !visited.insert(name) {
                looped = true; // or only met twice: matters when no account is found at all
                continue;
            }
            if let Some(account) = self.account(name) {
                accounts.insert(account.id, account);
            } else if let Some(alias) = self.alias(name) {
                waiting.extend(&alias.targets);
            }
            if accounts.len() > EXPANSION_ACCOUNTS_MAX || visited.len() + waiting.len() > EXPANSION_VISITS_MAX {
                return Err(RecipientError::TooMany);
            }
        }
        match (accounts.is_empty(), looped) {
            (false, _) => Ok(accounts.into_values().collect()),
            (true, true) => Err(RecipientError::Loop),
            (true, false) => Err(RecipientError::UnknownUser),
        }
    }
}
