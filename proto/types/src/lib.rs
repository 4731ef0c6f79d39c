//! The domain's nouns, shared by every crate: ids, counters, flags, names, sets of UIDs, and the
//! one table of errors. Pure values; knows no protocol, no disk format and no I/O.

mod error;
mod flags;
pub mod format;
mod ids;
mod internal_date;
mod names;
mod quota;
mod uid_set;

pub use error::{MailError, MailResult, SmtpReply};
pub use flags::{Flags, InvalidKeyword, KEYWORD_OCTETS_MAX, KEYWORDS_PER_MAILBOX_MAX, Keyword, SystemFlags};
pub use ids::{AccountId, MailboxId, ModSeq, NodeId, ShardId, Uid, UidValidity};
pub use internal_date::InternalDate;
pub use names::{
    AccountName, DOMAIN_OCTETS_MAX, DomainName, InvalidName, LOCAL_PART_OCTETS_MAX, MAILBOX_DEPTH_MAX,
    MAILBOX_NAME_OCTETS_MAX, MailboxName, SpecialUse,
};
pub use quota::{Quota, Usage};
pub use uid_set::UidSet;
