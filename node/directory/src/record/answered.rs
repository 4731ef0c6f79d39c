//! The disk form of what a request was answered.

use prost::Message;
use types::{AccountId, ShardId};

use crate::apply::{AccountPlace, Reply};
use crate::error::DirectoryError;
use crate::requests::Answered;

const DONE: u32 = 1;
const ACCOUNT: u32 = 2;
const ACCOUNTS: u32 = 3;
const REFUSED: u32 = 4;

#[derive(Clone, PartialEq, Message)]
pub(super) struct RequestRecord {
    #[prost(uint64, tag = "1")]
    revision: u64,
    #[prost(uint64, tag = "2")]
    unix_ms: u64,
    #[prost(fixed64, tag = "3")]
    subject: u64,
    /// Done, one account, accounts, or refused.
    #[prost(uint32, tag = "4")]
    kind: u32,
    /// Of an account and of a refusal one, of accounts one for each.
    #[prost(message, repeated, tag = "5")]
    answers: Vec<AnswerRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct AnswerRecord {
    #[prost(uint64, tag = "1")]
    account: u64,
    #[prost(uint32, tag = "2")]
    shard: u32,
    #[prost(message, optional, tag = "3")]
    refused: Option<RefusedRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct RefusedRecord {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    text: String,
    #[prost(string, tag = "3")]
    key: String,
}

impl RequestRecord {
    pub(super) fn of(answered: &Answered) -> RequestRecord {
        let Answered { revision, unix_ms, subject, answer } = answered;
        let (kind, answers) = match answer {
            Ok(Reply::Done) => (DONE, Vec::new()),
            Ok(Reply::Account(place)) => (ACCOUNT, vec![AnswerRecord::of(&Ok(*place))]),
            Ok(Reply::Accounts(accounts)) => (ACCOUNTS, accounts.iter().map(AnswerRecord::of).collect()),
            Err(error) => (REFUSED, vec![AnswerRecord::of(&Err(error.clone()))]),
        };
        RequestRecord { revision: *revision, unix_ms: *unix_ms, subject: *subject, kind, answers }
    }

    pub(super) fn answered(self) -> Result<Answered, String> {
        let RequestRecord { revision, unix_ms, subject, kind, answers } = self;
        let mut answers: Vec<_> = answers.into_iter().map(AnswerRecord::answer).collect::<Result<_, _>>()?;
        let answer = match kind {
            DONE if answers.is_empty() => Ok(Reply::Done),
            ACCOUNTS => Ok(Reply::Accounts(answers)),
            ACCOUNT | REFUSED => match (kind, answers.pop(), answers.is_empty()) {
                (ACCOUNT, Some(Ok(place)), true) => Ok(Reply::Account(place)),
                (REFUSED, Some(Err(error)), true) => Err(error),
                _ => return Err(format!("it is not one answer of kind {kind}")),
            },
            _ => return Err(format!("answers of kind {kind} are not known")),
        };
        Ok(Answered { revision, unix_ms, subject, answer })
    }
}

impl AnswerRecord {
    fn of(answer: &Result<AccountPlace, DirectoryError>) -> AnswerRecord {
        match answer {
            Ok(AccountPlace { id, shard }) => AnswerRecord { account: id.0, shard: shard.0, refused: None },
            Err(error) => AnswerRecord { account: 0, shard: 0, refused: Some(RefusedRecord::of(error)) },
        }
    }

    fn answer(self) -> Result<Result<AccountPlace, DirectoryError>, String> {
        match self.refused {
            Some(refused) => refused.error().map(Err),
            None => Ok(Ok(AccountPlace { id: AccountId(self.account), shard: ShardId(self.shard) })),
        }
    }
}

impl RefusedRecord {
    fn of(error: &DirectoryError) -> RefusedRecord {
        let (kind, text, key) = match error {
            DirectoryError::AlreadyExists(text) => (1, text.as_str(), ""),
            DirectoryError::NotFound(text) => (2, text.as_str(), ""),
            DirectoryError::Invalid(text) => (3, text.as_str(), ""),
            DirectoryError::InUse(text) => (4, text.as_str(), ""),
            DirectoryError::NotReady => (5, "", ""),
            DirectoryError::Limit(text) => (6, text.as_str(), ""),
            DirectoryError::Corrupt { key, reason } => (7, reason.as_str(), key.as_str()),
        };
        RefusedRecord { kind, text: text.to_owned(), key: key.to_owned() }
    }

    fn error(self) -> Result<DirectoryError, String> {
        let RefusedRecord { kind, text, key } = self;
        Ok(match kind {
            1 => DirectoryError::AlreadyExists(text),
            2 => DirectoryError::NotFound(text),
            3 => DirectoryError::Invalid(text),
            4 => DirectoryError::InUse(text),
            5 => DirectoryError::NotReady,
            6 => DirectoryError::Limit(text),
            7 => DirectoryError::Corrupt { key, reason: text },
            other => return Err(format!("refusals of kind {other} are not known")),
        })
    }
}
