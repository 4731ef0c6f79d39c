//! What storage can answer instead of success. Variants differ by what the caller can do.

use std::fmt::Display;

use types::MailError;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StorageError {
    /// A write or a sync failed once. It is never tried again: what the disk holds after a failed fsync is unknown.
    /// The volume answers nothing but this to writes until it is opened anew.
    #[error("volume has failed: {0}")]
    Failed(String),
    #[error("volume is closed")]
    Closed,
    /// The group was removed while the handle lived on.
    #[error("group was dropped")]
    Dropped,
    /// A record cannot be read, or is missing where another record says that it must be.
    #[error("record {key} is damaged: {reason}")]
    Corrupt { key: String, reason: String },
    /// The log below this index was purged: a snapshot is needed instead.
    #[error("log is purged up to index {index}")]
    Purged { index: u64 },
    /// The database lacks writes that were acknowledged: its write-ahead log, or all of it, was lost or put back.
    #[error("{directory} is behind its mark: it holds sequence {found}, {acknowledged} was acknowledged")]
    Behind { directory: String, found: u64, acknowledged: u64 },
    /// The directory belongs to something else, or is of a format that this program does not know.
    #[error("{0}")]
    Refused(String),
    /// A snapshot block that is cut, damaged, out of order or of another group. The old state is kept.
    #[error("snapshot refused: {0}")]
    Block(String),
    /// The caller broke a rule of the interface: a gap in the log, an export of nothing.
    #[error("{0}")]
    Misuse(String),
    /// Reading failed; or a file beside the database could not be written.
    #[error("{doing}: {reason}")]
    Io { doing: String, reason: String },
}

impl StorageError {
    pub(crate) fn corrupt(key: impl Into<String>, reason: impl Display) -> StorageError {
        StorageError::Corrupt { key: key.into(), reason: reason.to_string() }
    }

    pub(crate) fn io(doing: impl Into<String>, reason: impl Display) -> StorageError {
        StorageError::Io { doing: doing.into(), reason: reason.to_string() }
    }

    /// Whether the process is out of descriptors or threads: no fault of the disk, of which another one is the same.
    pub(crate) fn is_want(&self) -> bool {
        // EMFILE and ENFILE, and EAGAIN, as the operating system says it.
        let wants =
            |reason: &str| ["Too many open files", "Resource temporarily"].iter().any(|text| reason.contains(text));
        matches!(self, StorageError::Io { reason, .. } if wants(reason))
    }

    /// Of a failed read: whether what was to be read cannot be, by damage or for the disk gives no answer to it.
    pub fn is_unread(&self) -> bool {
        matches!(self, StorageError::Corrupt { .. } | StorageError::Io { .. }) && !self.is_want()
    }

    /// Of a failed read: what cannot be read.
    pub(crate) fn unread(&self) -> Option<&str> {
        match self {
            StorageError::Corrupt { key, .. } => Some(key),
            StorageError::Io { doing, .. } if self.is_unread() => Some(doing),
            _ => None,
        }
    }

    /// A failed read: damage and a disk that does not answer are told apart.
    pub(crate) fn read(key: impl FnOnce() -> String, error: &rocksdb::Error) -> StorageError {
        match error.kind() {
            rocksdb::ErrorKind::Corruption => StorageError::corrupt(key(), error),
            _ => StorageError::io(format!("reading {}", key()), error),
        }
    }
}

impl From<StorageError> for MailError {
    fn from(error: StorageError) -> MailError {
        let is_unread = error.is_unread();
        match error {
            // A read's, for what is written errs as `Failed`: for who asks it is the same as damage.
            StorageError::Io { doing, .. } if is_unread => MailError::Corrupt { key: doing },
            StorageError::Failed(_) | StorageError::Closed | StorageError::Dropped | StorageError::Io { .. } => {
                MailError::Unavailable
            }
            StorageError::Corrupt { key, .. } => MailError::Corrupt { key },
            StorageError::Purged { .. }
            | StorageError::Behind { .. }
            | StorageError::Refused(_)
            | StorageError::Block(_)
            | StorageError::Misuse(_) => MailError::Internal(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use types::MailError;

    use super::StorageError;

    #[test]
    fn what_cannot_be_read_is_damaged_for_whoever_asks_but_not_for_want_of_descriptors() {
        let of = |reason: &str| StorageError::io("reading blob/7/9", reason);
        let unread = of("IO error: While pread offset 0: /a/000012.blob: Input/output error");
        assert!(unread.is_unread());
        assert_eq!(MailError::from(unread), MailError::Corrupt { key: "reading blob/7/9".to_owned() });
        assert!(StorageError::corrupt("blob/7/9", "wrong checksum").is_unread());
        for want in [
            "IO error: While open a file for random read: /a/000012.sst: Too many open files",
            "IO error: While open a file for random read: /a/000012.sst: Too many open files in system",
            "Resource temporarily unavailable (os error 11)",
        ] {
            assert!(!of(want).is_unread(), "{want}");
            assert_eq!(MailError::from(of(want)), MailError::Unavailable);
        }
        for other in [StorageError::Failed("write".to_owned()), StorageError::Closed, StorageError::Dropped] {
            assert!(!other.is_unread(), "{other}");
        }
    }
}
