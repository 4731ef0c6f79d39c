//! What the directory can answer instead of success; variants differ by what the caller can do.

/// The text names the thing concerned, in words fit for an operator; never a password hash.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Choose another name, or be content with what is there.
    #[error("{0} already exists")]
    AlreadyExists(String),
    #[error("{0} does not exist")]
    NotFound(String),
    /// The request can never succeed as written.
    #[error("{0}")]
    Invalid(String),
    /// Remove what the text names first.
    #[error("{0}")]
    InUse(String),
    /// The cluster has not been created.
    #[error("the cluster has not been created yet")]
    NotReady,
    /// A bound of [`limits`](crate::limits) was met; the text says which.
    #[error("{0}")]
    Limit(String),
    /// Bytes from disk, log or stream that cannot be read. Never to be taken for "absent".
    #[error("record {key} is damaged: {reason}")]
    Corrupt { key: String, reason: String },
}

/// Why a recipient has no account to deliver to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecipientError {
    /// The domain is not hosted here.
    #[error("domain is not hosted here")]
    UnknownDomain,
    #[error("no such account or alias")]
    UnknownUser,
    /// Aliases that lead to each other and to no account.
    #[error("aliases form a loop")]
    Loop,
    /// More than [`EXPANSION_ACCOUNTS_MAX`](crate::limits::EXPANSION_ACCOUNTS_MAX) accounts.
    #[error("alias leads to too many accounts")]
    TooMany,
}
