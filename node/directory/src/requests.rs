//! Requests that were decided already: a caller that lost the answer asks again under the same id, and is told what it was
//! told then, refusals included. Kept for a while by the stamps of the requests themselves, so all replicas agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher, Hasher};

use types::AccountName;

use crate::apply::Reply;
use crate::command::Command;
use crate::error::DirectoryError;
use crate::hash::StableHash;
use crate::limits::{REQUEST_AGE_MS, REQUEST_ANSWERS_MAX};

/// Drawn at random by who asks, and the same in each attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u128);

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({:032x})", self.0)
    }
}

/// One attempt, as its proposer stamps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    pub id: RequestId,
    /// Milliseconds since 1970. Time never goes back by it: an older stamp counts as the newest one that is remembered.
    pub unix_ms: u64,
}

/// What a request was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered {
    /// The log index of the attempt that was decided.
    pub revision: u64,
    /// When that was. Invariant: of two, the one with the greater revision is not the older one.
    pub unix_ms: u64,
    /// What was asked for, and whom it concerns.
    pub subject: u64,
    pub answer: Result<Reply, DirectoryError>,
}

impl Answered {
    /// How many answers it holds: of many accounts one for each.
    fn answers(&self) -> usize {
        match &self.answer {
            Ok(Reply::Accounts(accounts)) => accounts.len().max(1),
            Ok(Reply::Done | Reply::Account(_)) | Err(_) => 1,
        }
    }
}

/// What is remembered. Invariant: `by_age` names each of `answered`, and `answers` is how many those hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Requests {
    answered: BTreeMap<RequestId, Answered>,
    by_age: BTreeSet<(u64, RequestId)>,
    answers: usize,
}

impl Requests {
    pub(crate) fn put(&mut self, id: RequestId, answered: Option<Answered>) {
        if let Some(old) = self.answered.remove(&id) {
            self.by_age.remove(&(old.revision, id));
            self.answers -= old.answers();
        }
        if let Some(new) = answered {
            self.by_age.insert((new.revision, id));
            self.answers += new.answers();
            self.answered.insert(id, new);
        }
    }

    pub(crate) fn get(&self, id: RequestId) -> Option<&Answered> {
        self.answered.get(&id)
    }

    /// Ascending by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (RequestId, &Answered)> {
        self.answered.iter().map(|(id, answered)| (*id, answered))
    }

    fn newest(&self) -> Option<&Answered> {
        self.by_age.last().and_then(|(_, id)| self.answered.get(id))
    }

    /// The stamp of the newest thing that is remembered.
    pub(crate) fn newest_ms(&self) -> Option<u64> {
        self.newest().map(|newest| newest.unix_ms)
    }

    /// What the time is where a request comes with this stamp.
    pub(crate) fn now(&self, unix_ms: u64) -> u64 {
        self.newest_ms().map_or(unix_ms, |newest| newest.max(unix_ms))
    }

    /// What was answered under an id, unless that is too long ago.
    pub(crate) fn known(&self, id: RequestId, now: u64) -> Option<&Answered> {
        self.get(id).filter(|answered| !is_old(answered, now))
    }

    /// What is to be forgotten once this is remembered: all that is too old, and the oldest beyond the limit.
    pub(crate) fn surplus(&self, now: u64, new: &Answered) -> Vec<RequestId> {
        let mut answers = self.answers + new.answers();
        let oldest_first = self.by_age.iter().filter_map(|(_, id)| Some((*id, self.answered.get(id)?)));
        let goes = oldest_first.take_while(|(_, answered)| {
            let goes = is_old(answered, now) || answers > REQUEST_ANSWERS_MAX;
            answers -= if goes { answered.answers() } else { 0 };
            goes
        });
        goes.map(|(id, _)| id).collect()
    }
}

fn is_old(answered: &Answered, now: u64) -> bool {
    answered.unix_ms.saturating_add(REQUEST_AGE_MS) <= now
}

/// What tells a request from another one that came under the same id: which command it is, and whom it names. Times, salted
/// hashes and plans are left out, which another attempt may have anew. Kept on disk: what is hashed must stay as it is.
pub(crate) fn subject(command: &Command) -> u64 {
    let (number, names): (u32, Vec<&str>) = match command {
        Command::CreateDomain { name } => (1, vec![name.as_str()]),
        Command::RemoveDomain { name } => (2, vec![name.as_str()]),
        Command::CreateAccount { account, .. } => (3, vec![account.name.as_str()]),
        Command::CreateAccounts { accounts, .. } => (4, accounts.iter().map(|one| one.name.as_str()).collect()),
        Command::RemoveAccount { name } => (5, vec![name.as_str()]),
        Command::SetPassword { name, .. } => (6, vec![name.as_str()]),
        Command::SetEnabled { name, .. } => (7, vec![name.as_str()]),
        Command::SetQuota { name, .. } => (8, vec![name.as_str()]),
        Command::CreateAlias { name, .. } => (9, vec![name.as_str()]),
        Command::RemoveAlias { name } => (10, vec![name.as_str()]),
        Command::SetPostmaster { account } => (11, account.iter().map(AccountName::as_str).collect()),
        Command::SetNodeState { .. } => (12, Vec::new()),
        Command::StartRebalance { .. } => (13, Vec::new()),
        Command::SetRebalanceState { .. } => (14, Vec::new()),
        Command::StartAccountMove { name, .. } => (15, vec![name.as_str()]),
        Command::AbortAccountMove { name } => (16, vec![name.as_str()]),
        Command::CreateCluster { .. }
        | Command::RegisterNode(_)
        | Command::UpdateNodeAddress { .. }
        | Command::SetNodeVoter { .. }
        | Command::UpdateNode { .. }
        | Command::NoteNodeStart { .. }
        | Command::SetFormat { .. }
        | Command::SetPlacements { .. }
        | Command::MarkShardInitialised { .. }
        | Command::GiveUpNode { .. }
        | Command::BeginMoves { .. }
        | Command::EndMoves { .. }
        | Command::PreferLeaders { .. }
        | Command::StepAccountMove { .. }
        | Command::Once { .. } => (0, Vec::new()),
    };
    // No name has a NUL.
    let mut bytes = number.to_le_bytes().to_vec();
    for name in names {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
    }
    let mut hasher = StableHash.build_hasher();
    hasher.write(&bytes);
    hasher.finish()
}
