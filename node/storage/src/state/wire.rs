//! Commands as protobuf, and back. A field that is missing or makes no sense makes the whole command unreadable.

use bytes::Bytes;
use prost::Message;
use types::{
    AccountId, Flags, InternalDate, Keyword, MailboxId, MailboxName, ModSeq, Quota, SpecialUse, SystemFlags, UidSet,
};

use super::command::{BodySource, Command, Recipient, StoreAction};
use super::moved::{ImportRecord, MoveRecord, Moved};

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CommandRecord {
    #[prost(sint64, tag = "1")]
    pub unix_ms: i64,
    #[prost(fixed64, tag = "2")]
    pub seed: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub request: Vec<u8>,
    #[prost(oneof = "Wire", tags = "4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21")]
    pub body: Option<Wire>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Wire {
    #[prost(bytes = "vec", tag = "4")]
    Chunk(Vec<u8>),
    #[prost(bytes = "vec", tag = "5")]
    DropUpload(Vec<u8>),
    #[prost(uint64, tag = "6")]
    CreateAccount(u64),
    #[prost(uint64, tag = "7")]
    DropAccount(u64),
    #[prost(message, tag = "8")]
    Deliver(DeliverRecord),
    #[prost(message, tag = "9")]
    Settle(SettleRecord),
    #[prost(message, tag = "10")]
    Append(AppendRecord),
    #[prost(message, tag = "11")]
    CreateMailbox(NameRecord),
    #[prost(message, tag = "12")]
    DeleteMailbox(NameRecord),
    #[prost(message, tag = "13")]
    RenameMailbox(NameRecord),
    #[prost(message, tag = "14")]
    Subscribe(NameRecord),
    #[prost(message, tag = "15")]
    Store(StoreRecord),
    #[prost(message, tag = "16")]
    Expunge(ExpungeRecord),
    #[prost(message, tag = "17")]
    Copy(CopyRecord),
    #[prost(bytes = "vec", tag = "18")]
    Mark(Vec<u8>),
    #[prost(message, tag = "19")]
    MoveAccount(MoveRecord),
    #[prost(message, tag = "20")]
    Import(ImportRecord),
    /// From format 2 on.
    #[prost(uint32, tag = "21")]
    ClearRemains(u32),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeliverRecord {
    #[prost(message, repeated, tag = "1")]
    recipients: Vec<RecipientRecord>,
    /// Empty: inline.
    #[prost(bytes = "vec", tag = "2")]
    upload: Vec<u8>,
    #[prost(bytes = "bytes", tag = "3")]
    digest: Bytes,
    #[prost(message, required, tag = "4")]
    date: DateRecord,
    #[prost(bytes = "vec", repeated, tag = "5")]
    settle: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RecipientRecord {
    #[prost(uint64, tag = "1")]
    account: u64,
    #[prost(bytes = "vec", tag = "2")]
    fingerprint: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    quota: Option<QuotaRecord>,
}

/// Absent where there is no limit at all.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct QuotaRecord {
    #[prost(uint64, optional, tag = "1")]
    octets: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    messages: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct DateRecord {
    #[prost(sint64, tag = "1")]
    unix_s: i64,
    #[prost(sint32, tag = "2")]
    offset_min: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SettleRecord {
    #[prost(bytes = "vec", repeated, tag = "1")]
    fingerprints: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct FlagsRecord {
    #[prost(uint32, tag = "1")]
    system: u32,
    #[prost(string, repeated, tag = "2")]
    keywords: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppendRecord {
    #[prost(uint64, tag = "1")]
    account: u64,
    #[prost(string, tag = "2")]
    mailbox: String,
    #[prost(message, required, tag = "3")]
    flags: FlagsRecord,
    #[prost(message, required, tag = "4")]
    date: DateRecord,
    /// Empty: inline.
    #[prost(bytes = "vec", tag = "5")]
    upload: Vec<u8>,
    #[prost(bytes = "bytes", tag = "6")]
    digest: Bytes,
    #[prost(message, optional, tag = "7")]
    quota: Option<QuotaRecord>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct NameRecord {
    #[prost(uint64, tag = "1")]
    account: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    to: String,
    #[prost(uint32, tag = "4")]
    special_use: u32,
    #[prost(bool, tag = "5")]
    on: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SetRecord {
    /// Pairs of first and last.
    #[prost(uint32, repeated, tag = "1")]
    ends: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StoreRecord {
    #[prost(uint64, tag = "1")]
    account: u64,
    #[prost(uint64, tag = "2")]
    mailbox: u64,
    #[prost(message, required, tag = "3")]
    uids: SetRecord,
    #[prost(uint32, tag = "4")]
    action: u32,
    #[prost(message, required, tag = "5")]
    flags: FlagsRecord,
    #[prost(uint64, optional, tag = "6")]
    unchanged_since: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ExpungeRecord {
    #[prost(uint64, tag = "1")]
    account: u64,
    #[prost(uint64, tag = "2")]
    mailbox: u64,
    #[prost(message, optional, tag = "3")]
    uids: Option<SetRecord>,
    #[prost(bool, tag = "4")]
    only_deleted: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CopyRecord {
    #[prost(uint64, tag = "1")]
    account: u64,
    #[prost(uint64, tag = "2")]
    from: u64,
    #[prost(message, required, tag = "3")]
    uids: SetRecord,
    #[prost(string, tag = "4")]
    to: String,
    #[prost(bool, tag = "5")]
    remove_source: bool,
    #[prost(uint64, tag = "6")]
    messages_min: u64,
    #[prost(message, optional, tag = "7")]
    quota: Option<QuotaRecord>,
}

/// The number of a special use on the disk; 0 for none.
pub(crate) fn special_use_number(special_use: Option<SpecialUse>) -> u32 {
    match special_use {
        None => 0,
        Some(SpecialUse::Archive) => 1,
        Some(SpecialUse::Drafts) => 2,
        Some(SpecialUse::Flagged) => 3,
        Some(SpecialUse::Junk) => 4,
        Some(SpecialUse::Sent) => 5,
        Some(SpecialUse::Trash) => 6,
    }
}

/// `None` for a number that means nothing.
pub(crate) fn special_use_of(number: u32) -> Option<Option<SpecialUse>> {
    if number == 0 {
        return Some(None);
    }
    SpecialUse::EVERY.into_iter().find(|special| special_use_number(Some(*special)) == number).map(Some)
}

/// A set as flat pairs of first and last.
pub(crate) fn flat(set: &UidSet) -> Vec<u32> {
    set.ranges().iter().flat_map(|&(first, last)| [first, last]).collect()
}

/// `None` for an odd number of ends, or for UID 0.
pub(crate) fn ranges(ends: &[u32]) -> Option<impl Iterator<Item = (u32, u32)> + '_> {
    let pairs = ends.chunks_exact(2);
    if !pairs.remainder().is_empty() || ends.contains(&0) {
        return None;
    }
    Some(pairs.filter_map(|pair| Some((*pair.first()?, *pair.last()?))))
}

fn fingerprints_to_wire(fingerprints: &[[u8; 32]]) -> Vec<Vec<u8>> {
    fingerprints.iter().map(|one| one.to_vec()).collect()
}

fn fingerprints_from_wire(fingerprints: Vec<Vec<u8>>) -> Option<Vec<[u8; 32]>> {
    fingerprints.into_iter().map(|one| one.try_into().ok()).collect()
}

pub(crate) fn to_wire(command: &Command) -> Wire {
    let name = |account: &AccountId, name: &MailboxName| NameRecord {
        account: account.0,
        name: name.as_str().to_owned(),
        ..Default::default()
    };
    let set = |set: &UidSet| SetRecord { ends: flat(set) };
    match command {
        Command::Chunk { upload } => Wire::Chunk(upload.to_be_bytes().to_vec()),
        Command::DropUpload { upload } => Wire::DropUpload(upload.to_be_bytes().to_vec()),
        Command::Mark { mark } => Wire::Mark(mark.to_be_bytes().to_vec()),
        Command::MoveAccount { account, id, step } => Wire::MoveAccount(MoveRecord::new(*account, *id, *step)),
        Command::Import { account, id, bringer, parts, body, digest } => Wire::Import(ImportRecord {
            account: account.0,
            id: *id,
            bringer: *bringer,
            parts: parts.iter().map(|part| Moved { part: Some(part.clone()) }).collect(),
            body: body.as_ref().map(source_to_wire),
            digest: digest.clone(),
        }),
        Command::CreateAccount { account } => Wire::CreateAccount(account.0),
        Command::DropAccount { account } => Wire::DropAccount(account.0),
        Command::ClearRemains { messages_max } => Wire::ClearRemains(*messages_max),
        Command::Deliver { recipients, body, digest, date, settle } => Wire::Deliver(DeliverRecord {
            recipients: recipients
                .iter()
                .map(|one| RecipientRecord {
                    account: one.account.0,
                    fingerprint: one.fingerprint.to_vec(),
                    quota: quota_to_wire(one.quota),
                })
                .collect(),
            upload: source_to_wire(body),
            digest: digest.clone(),
            date: date_to_wire(date),
            settle: fingerprints_to_wire(settle),
        }),
        Command::Settle { fingerprints } => {
            Wire::Settle(SettleRecord { fingerprints: fingerprints_to_wire(fingerprints) })
        }
        Command::Append { account, mailbox, flags, date, body, digest, quota } => Wire::Append(AppendRecord {
            account: account.0,
            mailbox: mailbox.as_str().to_owned(),
            flags: flags_to_wire(flags),
            date: date_to_wire(date),
            upload: source_to_wire(body),
            digest: digest.clone(),
            quota: quota_to_wire(*quota),
        }),
        Command::CreateMailbox { account, name: mailbox, special_use } => {
            Wire::CreateMailbox(NameRecord { special_use: special_use_number(*special_use), ..name(account, mailbox) })
        }
        Command::DeleteMailbox { account, name: mailbox } => Wire::DeleteMailbox(name(account, mailbox)),
        Command::RenameMailbox { account, from, to } => {
            Wire::RenameMailbox(NameRecord { to: to.as_str().to_owned(), ..name(account, from) })
        }
        Command::Subscribe { account, name: mailbox, on } => {
            Wire::Subscribe(NameRecord { on: *on, ..name(account, mailbox) })
        }
        Command::Store { account, mailbox, uids, action, flags, unchanged_since } => Wire::Store(StoreRecord {
            account: account.0,
            mailbox: mailbox.0,
            uids: set(uids),
            action: match action {
                StoreAction::Add => 1,
                StoreAction::Remove => 2,
                StoreAction::Replace => 3,
            },
            flags: flags_to_wire(flags),
            unchanged_since: unchanged_since.map(|mod_seq| mod_seq.0),
        }),
        Command::Expunge { account, mailbox, uids, only_deleted } => Wire::Expunge(ExpungeRecord {
            account: account.0,
            mailbox: mailbox.0,
            uids: uids.as_ref().map(set),
            only_deleted: *only_deleted,
        }),
        Command::Copy { account, from, uids, to, remove_source, messages_min, quota } => Wire::Copy(CopyRecord {
            account: account.0,
            from: from.0,
            uids: set(uids),
            to: to.as_str().to_owned(),
            remove_source: *remove_source,
            messages_min: *messages_min,
            quota: quota_to_wire(*quota),
        }),
    }
}

pub(crate) fn from_wire(wire: Wire) -> Option<Command> {
    let name = |text: &str| MailboxName::parse(text).ok();
    Some(match wire {
        Wire::Chunk(upload) => Command::Chunk { upload: u128_of(&upload)? },
        Wire::DropUpload(upload) => Command::DropUpload { upload: u128_of(&upload)? },
        Wire::Mark(mark) => Command::Mark { mark: u128_of(&mark)? },
        Wire::MoveAccount(record) => {
            let (account, id, step) = record.read()?;
            Command::MoveAccount { account, id, step }
        }
        Wire::Import(record) => Command::Import {
            account: AccountId(record.account),
            id: record.id,
            bringer: record.bringer,
            parts: record.parts.into_iter().map(|moved| moved.part).collect::<Option<_>>()?,
            body: match record.body {
                Some(source) => Some(source_from_wire(&source)?),
                None => None,
            },
            digest: record.digest,
        },
        Wire::CreateAccount(account) => Command::CreateAccount { account: AccountId(account) },
        Wire::DropAccount(account) => Command::DropAccount { account: AccountId(account) },
        Wire::ClearRemains(messages_max) => Command::ClearRemains { messages_max },
        Wire::Deliver(record) => Command::Deliver {
            recipients: record
                .recipients
                .into_iter()
                .map(|one| {
                    let fingerprint = one.fingerprint.try_into().ok()?;
                    let quota = quota_from_wire(one.quota);
                    Some(Recipient { account: AccountId(one.account), fingerprint, quota })
                })
                .collect::<Option<_>>()?,
            body: source_from_wire(&record.upload)?,
            digest: record.digest,
            date: date_from_wire(record.date)?,
            settle: fingerprints_from_wire(record.settle)?,
        },
        Wire::Settle(record) => Command::Settle { fingerprints: fingerprints_from_wire(record.fingerprints)? },
        Wire::Append(record) => Command::Append {
            account: AccountId(record.account),
            mailbox: name(&record.mailbox)?,
            flags: flags_from_wire(record.flags)?,
            date: date_from_wire(record.date)?,
            body: source_from_wire(&record.upload)?,
            digest: record.digest,
            quota: quota_from_wire(record.quota),
        },
        Wire::CreateMailbox(record) => Command::CreateMailbox {
            account: AccountId(record.account),
            name: name(&record.name)?,
            special_use: special_use_of(record.special_use)?,
        },
        Wire::DeleteMailbox(record) => {
            Command::DeleteMailbox { account: AccountId(record.account), name: name(&record.name)? }
        }
        Wire::RenameMailbox(record) => Command::RenameMailbox {
            account: AccountId(record.account),
            from: name(&record.name)?,
            to: name(&record.to)?,
        },
        Wire::Subscribe(record) => {
            Command::Subscribe { account: AccountId(record.account), name: name(&record.name)?, on: record.on }
        }
        Wire::Store(record) => Command::Store {
            account: AccountId(record.account),
            mailbox: MailboxId(record.mailbox),
            uids: ranges(&record.uids.ends)?.collect(),
            action: match record.action {
                1 => StoreAction::Add,
                2 => StoreAction::Remove,
                3 => StoreAction::Replace,
                _ => return None,
            },
            flags: flags_from_wire(record.flags)?,
            unchanged_since: record.unchanged_since.map(ModSeq),
        },
        Wire::Expunge(record) => Command::Expunge {
            account: AccountId(record.account),
            mailbox: MailboxId(record.mailbox),
            uids: match record.uids {
                Some(set) => Some(ranges(&set.ends)?.collect()),
                None => None,
            },
            only_deleted: record.only_deleted,
        },
        Wire::Copy(record) => Command::Copy {
            account: AccountId(record.account),
            from: MailboxId(record.from),
            uids: ranges(&record.uids.ends)?.collect(),
            to: name(&record.to)?,
            remove_source: record.remove_source,
            messages_min: record.messages_min,
            quota: quota_from_wire(record.quota),
        },
    })
}

pub(crate) fn u128_of(bytes: &[u8]) -> Option<u128> {
    Some(u128::from_be_bytes(bytes.try_into().ok()?))
}

fn source_to_wire(source: &BodySource) -> Vec<u8> {
    match source {
        BodySource::Inline => Vec::new(),
        BodySource::Upload(upload) => upload.to_be_bytes().to_vec(),
    }
}

fn source_from_wire(upload: &[u8]) -> Option<BodySource> {
    if upload.is_empty() { Some(BodySource::Inline) } else { u128_of(upload).map(BodySource::Upload) }
}

fn quota_to_wire(quota: Quota) -> Option<QuotaRecord> {
    (quota != Quota::NONE).then_some(QuotaRecord { octets: quota.octets, messages: quota.messages })
}

fn quota_from_wire(record: Option<QuotaRecord>) -> Quota {
    record.map_or(Quota::NONE, |record| Quota { octets: record.octets, messages: record.messages })
}

fn date_to_wire(date: &InternalDate) -> DateRecord {
    DateRecord { unix_s: date.unix_s, offset_min: i32::from(date.offset_min) }
}

fn date_from_wire(record: DateRecord) -> Option<InternalDate> {
    Some(InternalDate { unix_s: record.unix_s, offset_min: record.offset_min.try_into().ok()? })
}

fn flags_to_wire(flags: &Flags) -> FlagsRecord {
    FlagsRecord {
        system: u32::from(flags.system.bits()),
        keywords: flags.keywords.iter().map(|keyword| keyword.as_str().to_owned()).collect(),
    }
}

fn flags_from_wire(record: FlagsRecord) -> Option<Flags> {
    let mut flags = Flags::system(SystemFlags::from_bits(record.system.try_into().ok()?));
    for keyword in &record.keywords {
        flags.insert_keyword(Keyword::parse(keyword).ok()?);
    }
    Some(flags)
}
