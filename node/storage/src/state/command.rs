//! The commands of a shard, and how they are written into log entries: the format, then protobuf. Time and
//! randomness travel in the command, so that applying it gives the same everywhere.

use bytes::Bytes;
use prost::Message;
use types::{AccountId, Flags, InternalDate, MailboxId, MailboxName, ModSeq, Quota, SpecialUse, UidSet, format};

use super::moved::{MoveStep, MovedPart};
use super::wire::{CommandRecord, from_wire, to_wire, u128_of};
use crate::error::StorageError;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp {
    /// When the command was proposed.
    pub unix_ms: i64,
    pub seed: u64,
    /// That the command is written in ([`mod@format`]): what it does may depend on that, but not on what the program knows
    /// that applies it.
    pub format: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BodySource {
    /// The body of this very entry.
    Inline,
    /// The chunks sent before under this id, in order, and this entry's own body as the last chunk if it has one.
    Upload(u128),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipient {
    pub account: AccountId,
    /// Of reverse-path, recipient and bytes: by it a retry is known.
    pub fingerprint: [u8; 32],
    /// The account's, as the proposer knew it: all replicas decide by the same one.
    pub quota: Quota,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreAction {
    Add,
    Remove,
    Replace,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// The entry's body is the next piece of an upload.
    Chunk {
        upload: u128,
    },
    DropUpload {
        upload: u128,
    },
    /// Changes nothing: all replicas have the same when they have applied it, and can be compared.
    Mark {
        mark: u128,
    },
    /// A step of an account's move from one shard to another. Changes nothing where it makes no sense any more; answered
    /// by [`Outcome::Placed`](super::Outcome::Placed) in any case.
    MoveAccount {
        account: AccountId,
        /// Of the move: greater than that of every earlier move of the account.
        id: u64,
        step: MoveStep,
    },
    /// Some of an account that comes from another shard, by who brings it. `CannotDo` if somebody else does by now.
    Import {
        account: AccountId,
        id: u64,
        bringer: u64,
        parts: Vec<MovedPart>,
        /// Of the message among the parts that has one with it.
        body: Option<BodySource>,
        digest: Bytes,
    },
    CreateAccount {
        account: AccountId,
    },
    DropAccount {
        account: AccountId,
    },
    /// Some of what deleted mailboxes and dropped accounts have left behind. A mailbox that is left without any messages
    /// costs as much as one message.
    ClearRemains {
        messages_max: u32,
    },
    /// Into the INBOX of each recipient.
    Deliver {
        recipients: Vec<Recipient>,
        body: BodySource,
        digest: Bytes,
        date: InternalDate,
        /// Of earlier deliveries, as by [`Command::Settle`].
        settle: Vec<[u8; 32]>,
    },
    /// The sender knows that these arrived: the same mail sent again is new mail.
    Settle {
        fingerprints: Vec<[u8; 32]>,
    },
    Append {
        account: AccountId,
        mailbox: MailboxName,
        flags: Flags,
        date: InternalDate,
        body: BodySource,
        digest: Bytes,
        /// As [`Recipient::quota`].
        quota: Quota,
    },
    CreateMailbox {
        account: AccountId,
        name: MailboxName,
        special_use: Option<SpecialUse>,
    },
    DeleteMailbox {
        account: AccountId,
        name: MailboxName,
    },
    RenameMailbox {
        account: AccountId,
        from: MailboxName,
        to: MailboxName,
    },
    Subscribe {
        account: AccountId,
        name: MailboxName,
        on: bool,
    },
    Store {
        account: AccountId,
        mailbox: MailboxId,
        uids: UidSet,
        action: StoreAction,
        flags: Flags,
        unchanged_since: Option<ModSeq>,
    },
    Expunge {
        account: AccountId,
        mailbox: MailboxId,
        uids: Option<UidSet>,
        only_deleted: bool,
    },
    Copy {
        account: AccountId,
        from: MailboxId,
        uids: UidSet,
        to: MailboxName,
        /// MOVE (RFC 6851).
        remove_source: bool,
        /// Unless so many of `uids` are there, nothing is done.
        messages_min: u64,
        /// As [`Recipient::quota`]. A MOVE adds nothing, and is not measured by it.
        quota: Quota,
    },
}

impl Command {
    /// The account that the command is about, if it is about one.
    pub fn account(&self) -> Option<AccountId> {
        match self {
            Command::Chunk { .. }
            | Command::DropUpload { .. }
            | Command::Mark { .. }
            | Command::Deliver { .. }
            | Command::Settle { .. }
            | Command::ClearRemains { .. } => None,
            Command::MoveAccount { account, .. }
            | Command::Import { account, .. }
            | Command::CreateAccount { account }
            | Command::DropAccount { account }
            | Command::Append { account, .. }
            | Command::CreateMailbox { account, .. }
            | Command::DeleteMailbox { account, .. }
            | Command::RenameMailbox { account, .. }
            | Command::Subscribe { account, .. }
            | Command::Store { account, .. }
            | Command::Expunge { account, .. }
            | Command::Copy { account, .. } => Some(*account),
        }
    }

    /// The account that must be here, and not between two shards, if the command is about one.
    pub(super) fn needs_here(&self) -> Option<AccountId> {
        match self {
            Command::MoveAccount { .. } | Command::Import { .. } | Command::DropAccount { .. } => None,
            _ => self.account(),
        }
    }

    /// `request` tells a repeated request from a new one, 0 where nobody asks.
    pub fn encode(&self, stamp: Stamp, request: u128) -> Vec<u8> {
        let record = CommandRecord {
            unix_ms: stamp.unix_ms,
            seed: stamp.seed,
            request: request.to_be_bytes().to_vec(),
            body: Some(to_wire(self)),
        };
        let mut bytes = Vec::with_capacity(record.encoded_len() + 1);
        bytes.push(u8::try_from(stamp.format).unwrap_or(u8::MAX));
        record.encode_raw(&mut bytes);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<(Stamp, u128, Command), StorageError> {
        let damaged = |reason: &str| StorageError::corrupt("command", reason);
        let Some((&written, rest)) = bytes.split_first() else { return Err(damaged("it is empty")) };
        if !format::reads(u32::from(written)) {
            let known = format::known();
            return Err(damaged(&format!("it has format {written}; this program knows formats up to {known}")));
        }
        let record = CommandRecord::decode(rest).map_err(|error| StorageError::corrupt("command", error))?;
        let stamp = Stamp { unix_ms: record.unix_ms, seed: record.seed, format: u32::from(written) };
        let request = u128_of(&record.request).ok_or_else(|| damaged("request id"))?;
        let command = record.body.and_then(from_wire).ok_or_else(|| damaged("a field is missing or invalid"))?;
        Ok((stamp, request, command))
    }
}
