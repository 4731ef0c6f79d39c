//! Applying a committed command: decide in a pure function what it answers and which records it changes, then
//! change them. A command that fails changes nothing.

mod moves;
mod nodes;
mod once;
mod placements;

use std::collections::BTreeSet;

use types::{AccountId, AccountName, DomainName, Quota, ShardId};

use crate::change::{Change, ChangedRecord};
use crate::command::{Command, NewAccount};
use crate::error::{DirectoryError, RecipientError};
use crate::hash::shard_of;
use crate::limits::{
    ACCOUNTS_BATCH_MAX, ACCOUNTS_MAX, ALIAS_TARGETS_MAX, ALIASES_MAX, DOMAINS_MAX, EXPANSION_ACCOUNTS_MAX,
};
use crate::record;
use crate::state::Directory;
use crate::values::{Account, Alias, Cluster, Domain};

/// The outcome of a command, the same on every replica.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "the changes must be persisted with the applied index"]
pub struct Applied {
    pub reply: Result<Reply, DirectoryError>,
    /// Empty if the command failed or left all as it was, but for what is remembered of a request. At most one per key.
    pub changes: Vec<Change>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    Done,
    /// Of CreateAccount and RemoveAccount.
    Account(AccountPlace),
    /// Of CreateAccounts: one for each account, in the order of the command.
    Accounts(Vec<Result<AccountPlace, DirectoryError>>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccountPlace {
    pub id: AccountId,
    pub shard: ShardId,
}

type Decision = Result<(Reply, Vec<ChangedRecord>), DirectoryError>;

impl Directory {
    /// Applies the command that was committed at log index `revision`. Revisions ascend.
    pub fn apply(&mut self, revision: u64, command: &Command) -> Applied {
        let (reply, records) = match command {
            Command::Once { request, command } => self.decide_once(revision, *request, command),
            command => outcome(self.decide(revision, command)),
        };
        records.iter().for_each(|record| self.put(record.clone()));
        self.advance(revision);
        Applied { reply, changes: records.into_iter().map(Change::from).collect() }
    }

    fn decide(&self, revision: u64, command: &Command) -> Decision {
        if let Command::CreateCluster { id, shards, replicas, nodes } = command {
            return self.create_cluster(*id, *shards, *replicas, nodes);
        }
        let cluster = self.cluster.as_ref().ok_or(DirectoryError::NotReady)?;
        match command {
            Command::CreateCluster { .. } => Err(DirectoryError::AlreadyExists("the cluster".to_owned())),
            Command::RegisterNode(node) => self.register_node(cluster, node),
            Command::UpdateNodeAddress { id, address } => self.update_node_address(*id, address),
            Command::NoteNodeStart { id, before, now, format } => {
                self.note_node_start(cluster, *id, (*before, *now), *format)
            }
            Command::SetFormat { format } => self.set_format(cluster, *format),
            Command::SetNodeState { id, state } => self.set_node_state(*id, *state),
            Command::SetNodeVoter { id, voter } => self.set_node_voter(*id, *voter),
            Command::UpdateNode { id, zone, weight } => self.update_node(*id, zone, *weight),
            Command::CreateDomain { name } => self.create_domain(name),
            Command::RemoveDomain { name } => self.remove_domain(name),
            Command::CreateAccount { account, unix_s } => self.create_account(cluster, account, *unix_s),
            Command::CreateAccounts { accounts, unix_s } => self.create_accounts(cluster, accounts, *unix_s),
            Command::RemoveAccount { name } => self.remove_account(cluster, name),
            Command::SetPassword { name, password_hash } => {
                self.alter_account(name, |account| account.password_hash = password_hash.clone())
            }
            Command::SetEnabled { name, enabled } => self.alter_account(name, |account| account.enabled = *enabled),
            Command::SetQuota { name, change } => {
                self.alter_account(name, |account| account.quota = change.of(account.quota))
            }
            Command::StartAccountMove { name, to } => self.start_account_move(cluster, revision, name, *to),
            Command::AbortAccountMove { name } => self.abort_account_move(name),
            Command::StepAccountMove { account, id, stage } => self.step_account_move(*account, *id, *stage),
            Command::CreateAlias { name, targets } => self.create_alias(name, targets),
            Command::RemoveAlias { name } => self.remove_alias(name),
            Command::SetPostmaster { account } => self.set_postmaster(cluster, account.as_ref()),
            Command::SetPlacements { wanted } => self.set_placements(cluster, revision, wanted),
            Command::MarkShardInitialised { shard } => self.mark_shard_initialised(revision, *shard),
            Command::StartRebalance { targets, replace, unix_s, octets } => {
                self.start_rebalance(cluster, revision, targets, *replace, (*unix_s, *octets))
            }
            Command::GiveUpNode { id, targets, unix_s, octets } => {
                let start = Command::StartRebalance {
                    targets: targets.clone(),
                    replace: true,
                    unix_s: *unix_s,
                    octets: *octets,
                };
                self.give_up_node(revision, *id, &start)
            }
            Command::SetRebalanceState { state } => self.set_rebalance_state(revision, *state),
            Command::BeginMoves { shards } => self.begin_moves(revision, shards),
            Command::PreferLeaders { leaders } => self.prefer_leaders(revision, leaders),
            Command::EndMoves { shards, seen } => self.end_moves(revision, shards, *seen),
            Command::Once { .. } => Err(DirectoryError::Invalid("a request within a request".to_owned())),
        }
    }

    fn create_domain(&self, name: &DomainName) -> Decision {
        record::domain_name(name.as_str()).map_err(DirectoryError::Invalid)?;
        if self.domain(name).is_some() {
            return Err(DirectoryError::AlreadyExists(format!("domain {name}")));
        }
        room_for(self.domains.len(), 1, DOMAINS_MAX, "domains")?;
        done(vec![ChangedRecord::Domain(name.clone(), Some(Domain { name: name.clone() }))])
    }

    fn remove_domain(&self, name: &DomainName) -> Decision {
        if self.domain(name).is_none() {
            return Err(DirectoryError::NotFound(format!("domain {name}")));
        }
        if self.is_populated(name) {
            return Err(DirectoryError::InUse(format!("domain {name} still has accounts or aliases")));
        }
        done(vec![ChangedRecord::Domain(name.clone(), None)])
    }

    fn create_account(&self, cluster: &Cluster, new: &NewAccount, unix_s: u64) -> Decision {
        let mut cluster = cluster.clone();
        let account = self.new_account(&mut cluster, new, unix_s, 0)?;
        let reply = Reply::Account(AccountPlace { id: account.id, shard: account.shard });
        let account = ChangedRecord::Account(account.name.clone(), Some(account));
        Ok((reply, vec![ChangedRecord::Cluster(Some(cluster)), account]))
    }

    fn create_accounts(&self, cluster: &Cluster, batch: &[NewAccount], unix_s: u64) -> Decision {
        if batch.len() > ACCOUNTS_BATCH_MAX {
            return Err(DirectoryError::Limit(format!("more than {ACCOUNTS_BATCH_MAX} accounts at once")));
        }
        let mut cluster = cluster.clone();
        let (mut results, mut records, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
        for new in batch {
            if names.contains(&new.name) {
                results.push(Err(DirectoryError::AlreadyExists(format!("account {}", new.name))));
                continue;
            }
            match self.new_account(&mut cluster, new, unix_s, records.len()) {
                Ok(account) => {
                    results.push(Ok(AccountPlace { id: account.id, shard: account.shard }));
                    names.insert(&new.name);
                    records.push(ChangedRecord::Account(account.name.clone(), Some(account)));
                }
                Err(error) => results.push(Err(error)),
            }
        }
        if !records.is_empty() {
            records.push(ChangedRecord::Cluster(Some(cluster)));
        }
        Ok((Reply::Accounts(results), records))
    }

    /// Takes an id from the counter if all is well. `pending` accounts were made by the same command before.
    fn new_account(
        &self,
        cluster: &mut Cluster,
        new: &NewAccount,
        unix_s: u64,
        pending: usize,
    ) -> Result<Account, DirectoryError> {
        let name = &new.name;
        if name.local() == Alias::CATCH_ALL {
            return Err(DirectoryError::Invalid(format!("{name} can only be an alias: it catches all")));
        }
        self.check_new_name(name)?;
        room_for(self.accounts.len(), 1 + pending, ACCOUNTS_MAX, "accounts")?;
        let id = cluster.next_account_id;
        let next = id.0.checked_add(1).ok_or_else(|| DirectoryError::Limit("account ids are used up".to_owned()))?;
        cluster.next_account_id = AccountId(next);
        Ok(Account {
            id,
            name: name.clone(),
            password_hash: new.password_hash.clone(),
            shard: shard_of(id, cluster.shards),
            enabled: true,
            created_unix_s: unix_s,
            quota: Quota::NONE,
            moving: None,
        })
    }

    /// The name must be free, in a hosted domain, and the same once it was written and read.
    fn check_new_name(&self, name: &AccountName) -> Result<(), DirectoryError> {
        record::account_name(name.as_str()).map_err(DirectoryError::Invalid)?;
        if !self.domains.contains_key(name.domain()) {
            return Err(DirectoryError::NotFound(format!("domain {}", name.domain())));
        }
        if self.account(name).is_some() {
            return Err(DirectoryError::AlreadyExists(format!("account {name}")));
        }
        if self.alias(name).is_some() {
            return Err(DirectoryError::AlreadyExists(format!("alias {name}")));
        }
        Ok(())
    }

    fn remove_account(&self, cluster: &Cluster, name: &AccountName) -> Decision {
        let account = self.existing_account(name)?;
        self.check_no_alias_to(name)?;
        if cluster.postmaster.as_ref() == Some(name) {
            return Err(DirectoryError::InUse(format!("{name} is the cluster's postmaster")));
        }
        let reply = Reply::Account(AccountPlace { id: account.id, shard: account.shard });
        Ok((reply, vec![ChangedRecord::Account(name.clone(), None)]))
    }

    fn alter_account(&self, name: &AccountName, alter: impl FnOnce(&mut Account)) -> Decision {
        let old = self.existing_account(name)?;
        let mut account = old.clone();
        alter(&mut account);
        if account == *old {
            return done(Vec::new());
        }
        done(vec![ChangedRecord::Account(name.clone(), Some(account))])
    }

    fn existing_account(&self, name: &AccountName) -> Result<&Account, DirectoryError> {
        self.account(name).ok_or_else(|| DirectoryError::NotFound(format!("account {name}")))
    }

    fn create_alias(&self, name: &AccountName, targets: &[AccountName]) -> Decision {
        self.check_new_name(name)?;
        room_for(self.alias_count, 1, ALIASES_MAX, "aliases")?;
        if targets.len() > ALIAS_TARGETS_MAX {
            return Err(DirectoryError::Limit(format!("an alias cannot have more than {ALIAS_TARGETS_MAX} targets")));
        }
        if targets.is_empty() {
            return Err(DirectoryError::Invalid(format!("alias {name} has no target")));
        }
        let mut distinct = Vec::with_capacity(targets.len());
        let mut seen = BTreeSet::new();
        for target in targets {
            self.check_target(name, target)?;
            if seen.insert(target) {
                distinct.push(target.clone());
            }
        }
        self.expand(&distinct).map_err(|error| match error {
            RecipientError::TooMany => {
                DirectoryError::Limit(format!("alias {name} would lead to more than {EXPANSION_ACCOUNTS_MAX} accounts"))
            }
            RecipientError::Loop | RecipientError::UnknownUser | RecipientError::UnknownDomain => {
                DirectoryError::Invalid(format!("alias {name} would lead to no account"))
            }
        })?;
        done(vec![ChangedRecord::Alias(name.clone(), Some(Alias { name: name.clone(), targets: distinct }))])
    }

    /// Invariant: a target exists as long as an alias leads to it. So aliases never form a loop, nor lead nowhere.
    fn check_target(&self, name: &AccountName, target: &AccountName) -> Result<(), DirectoryError> {
        if target == name {
            return Err(DirectoryError::Invalid(format!("alias {name} leads to itself")));
        }
        if !self.domains.contains_key(target.domain()) {
            return Err(DirectoryError::Invalid(format!(
                "target {target} is in a domain that is not hosted here, and mail is not forwarded to other systems yet"
            )));
        }
        if self.account(target).is_none() && self.alias(target).is_none() {
            return Err(DirectoryError::NotFound(format!("target {target}")));
        }
        Ok(())
    }

    fn remove_alias(&self, name: &AccountName) -> Decision {
        if self.alias(name).is_none() {
            return Err(DirectoryError::NotFound(format!("alias {name}")));
        }
        self.check_no_alias_to(name)?;
        done(vec![ChangedRecord::Alias(name.clone(), None)])
    }

    fn check_no_alias_to(&self, name: &AccountName) -> Result<(), DirectoryError> {
        match self.alias_sources(name).next() {
            Some(alias) => Err(DirectoryError::InUse(format!("alias {alias} leads to {name}"))),
            None => Ok(()),
        }
    }

    fn set_postmaster(&self, cluster: &Cluster, account: Option<&AccountName>) -> Decision {
        if let Some(name) = account {
            self.existing_account(name)?;
        }
        if cluster.postmaster.as_ref() == account {
            return done(Vec::new());
        }
        done(vec![ChangedRecord::Cluster(Some(Cluster { postmaster: account.cloned(), ..cluster.clone() }))])
    }
}

/// What is answered, and what changes.
fn outcome(decision: Decision) -> (Result<Reply, DirectoryError>, Vec<ChangedRecord>) {
    match decision {
        Ok((reply, records)) => (Ok(reply), records),
        Err(error) => (Err(error), Vec::new()),
    }
}

fn done(records: Vec<ChangedRecord>) -> Decision {
    Ok((Reply::Done, records))
}

fn room_for(present: usize, more: usize, max: usize, what: &str) -> Result<(), DirectoryError> {
    match present.checked_add(more) {
        Some(count) if count <= max => Ok(()),
        _ => Err(DirectoryError::Limit(format!("a cluster cannot have more than {max} {what}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::room_for;

    #[test]
    fn the_last_place_is_given_and_no_more() {
        assert!(room_for(9, 1, 10, "accounts").is_ok());
        let error = room_for(10, 1, 10, "accounts").unwrap_err();
        assert_eq!(error.to_string(), "a cluster cannot have more than 10 accounts");
        assert!(room_for(8, 3, 10, "accounts").is_err());
        assert!(room_for(usize::MAX, 1, 10, "accounts").is_err());
    }
}
