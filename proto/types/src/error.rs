//! Everything that a mail operation can answer instead of success, and the one table that says how each protocol
//! puts it. Variants differ by what the caller can do.

use crate::NodeId;

pub type MailResult<T> = Result<T, MailError>;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MailError {
    /// This replica does not lead the shard; ask the one named, if any.
    #[error("not the shard's leader")]
    NotLeader { hint: Option<NodeId> },
    /// The account is between two shards, or has gone to another: look again where it is.
    #[error("mailbox temporarily unavailable")]
    NotHere,
    /// No leader, no majority, or no answer yet: try again later.
    #[error("mailbox temporarily unavailable")]
    Unavailable,
    /// The time given to the operation is over. Its outcome is unknown.
    #[error("timed out")]
    Deadline,
    /// Too much is under way already: try again later.
    #[error("too busy, try again later")]
    Busy,
    #[error("no such account")]
    NoSuchAccount,
    #[error("no such mailbox")]
    NoSuchMailbox,
    #[error("mailbox already exists")]
    MailboxExists,
    /// The mailbox is not what it was when the session selected it: deleted, or deleted and made anew.
    #[error("mailbox was deleted")]
    MailboxGone,
    /// Messages that the request needs are there no more, so nothing was done.
    #[error("some of the messages have been expunged")]
    MessagesGone,
    #[error("over quota")]
    OverQuota,
    /// The shard's disk has no room for more mail; what makes room is still done.
    #[error("insufficient storage")]
    DiskFull,
    /// A named limit was met; the text says which.
    #[error("{0}")]
    Limit(String),
    /// The request makes no sense; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// Allowed by grammar, refused by rule: DELETE INBOX and its kin.
    #[error("{0}")]
    CannotDo(String),
    /// The maildrop is locked by another session (RFC 1939 §3).
    #[error("maildrop already locked")]
    InUse,
    /// A record cannot be read. The key is for the log, not for the client.
    #[error("stored data is damaged")]
    Corrupt { key: String },
    /// The caller's certificate does not allow this.
    #[error("permission denied")]
    Denied,
    /// A fault of ours; the text is for the log.
    #[error("internal error")]
    Internal(String),
}

/// A reply code with its enhanced status code (RFC 3463) and text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SmtpReply {
    pub code: u16,
    /// Such as `4.3.0`.
    pub enhanced: &'static str,
    pub text: String,
}

impl MailError {
    /// Worth asking another replica, or the same one a little later, within the caller's deadline.
    pub fn is_retryable(&self) -> bool {
        matches!(self, MailError::NotLeader { .. } | MailError::NotHere | MailError::Unavailable)
    }

    /// The gRPC status code (google.rpc.Code) that carries this error.
    pub fn grpc_code(&self) -> i32 {
        match self {
            MailError::Invalid(_) => 3,
            MailError::Deadline => 4,
            MailError::NoSuchAccount | MailError::NoSuchMailbox | MailError::MailboxGone | MailError::MessagesGone => 5,
            MailError::MailboxExists => 6,
            MailError::Denied => 7,
            MailError::Busy | MailError::OverQuota | MailError::DiskFull | MailError::Limit(_) => 8,
            MailError::NotLeader { .. } | MailError::NotHere | MailError::CannotDo(_) | MailError::InUse => 9,
            MailError::Internal(_) => 13,
            MailError::Unavailable => 14,
            MailError::Corrupt { .. } => 15,
        }
    }

    /// RFC 5321 §4.2 and RFC 3463.
    pub fn smtp_reply(&self) -> SmtpReply {
        let (code, enhanced) = match self {
            MailError::NotLeader { .. } | MailError::NotHere | MailError::Unavailable | MailError::Deadline => {
                (451, "4.3.0")
            }
            MailError::Busy => (451, "4.3.2"),
            MailError::InUse => (451, "4.2.0"),
            MailError::NoSuchAccount => (550, "5.1.1"),
            MailError::NoSuchMailbox | MailError::MailboxGone | MailError::MailboxExists | MailError::MessagesGone => {
                (451, "4.2.0")
            }
            MailError::OverQuota => (452, "4.2.2"),
            MailError::DiskFull => (452, "4.3.1"),
            MailError::Limit(_) => (552, "5.3.4"),
            MailError::Invalid(_) | MailError::CannotDo(_) => (554, "5.6.0"),
            MailError::Denied => (550, "5.7.1"),
            MailError::Corrupt { .. } | MailError::Internal(_) => (451, "4.3.0"),
        };
        SmtpReply { code, enhanced, text: self.to_string() }
    }

    /// The response code for a tagged NO (RFC 5530, RFC 9051 §7.1), without brackets.
    pub fn imap_code(&self) -> Option<&'static str> {
        match self {
            MailError::NotLeader { .. }
            | MailError::NotHere
            | MailError::Unavailable
            | MailError::Deadline
            | MailError::Busy => Some("UNAVAILABLE"),
            MailError::NoSuchMailbox | MailError::MailboxGone => Some("NONEXISTENT"),
            MailError::MailboxExists => Some("ALREADYEXISTS"),
            MailError::MessagesGone => Some("EXPUNGEISSUED"),
            MailError::OverQuota => Some("OVERQUOTA"),
            MailError::DiskFull | MailError::Limit(_) => Some("LIMIT"),
            MailError::CannotDo(_) => Some("CANNOT"),
            MailError::InUse => Some("INUSE"),
            MailError::NoSuchAccount | MailError::Denied => Some("NOPERM"),
            MailError::Corrupt { .. } => Some("CORRUPTION"),
            MailError::Internal(_) => Some("SERVERBUG"),
            MailError::Invalid(_) => None,
        }
    }

    /// The response code for -ERR (RFC 2449 §8, RFC 3206), without brackets.
    pub fn pop3_code(&self) -> Option<&'static str> {
        match self {
            MailError::InUse => Some("IN-USE"),
            MailError::NotLeader { .. }
            | MailError::NotHere
            | MailError::Unavailable
            | MailError::Deadline
            | MailError::Busy => Some("SYS/TEMP"),
            MailError::Corrupt { .. } | MailError::Internal(_) => Some("SYS/PERM"),
            _ => None,
        }
    }
}
