//! Whether a group stopped since its own records cannot be read: openraft passes errors on as text alone.

use std::fmt::Display;
use std::io;
use std::sync::{Arc, OnceLock};

use storage::StorageError;

/// The first damage that was met: a record that is wrong, or that the disk gives no answer for. Cloning shares it.
#[derive(Clone, Default)]
pub struct Damage(Arc<OnceLock<StorageError>>);

impl Damage {
    /// The error for openraft; damage is remembered.
    pub fn note(&self, error: StorageError) -> io::Error {
        if error.is_unread() {
            self.0.get_or_init(|| error.clone());
        }
        io::Error::other(error)
    }

    /// As [`Damage::note`], of a record that storage knows as bytes alone.
    pub fn undecodable(&self, record: &str, reason: impl Display) -> io::Error {
        self.note(StorageError::Corrupt { key: record.to_owned(), reason: reason.to_string() })
    }

    pub fn found(&self) -> Option<StorageError> {
        self.0.get().cloned()
    }
}

/// The damage that kept a group from starting, if that is what did.
pub fn damage_in(error: &io::Error) -> Option<StorageError> {
    let inner = error.get_ref()?.downcast_ref::<StorageError>()?;
    inner.is_unread().then(|| inner.clone())
}

#[cfg(test)]
mod tests {
    use storage::StorageError;

    use super::{Damage, damage_in};

    #[test]
    fn damage_is_told_from_a_disk_that_fails_and_the_first_is_remembered() {
        let damage = Damage::default();
        assert_eq!(damage_in(&damage.note(StorageError::Closed)), None);
        assert_eq!(damage.found(), None);
        let first = StorageError::Corrupt { key: "vote".to_owned(), reason: "short".to_owned() };
        assert_eq!(damage_in(&damage.undecodable("vote", "short")), Some(first.clone()));
        drop(damage.undecodable("marker", "long"));
        assert_eq!(damage.clone().found(), Some(first));
    }

    #[test]
    fn what_the_disk_gives_no_answer_for_is_damage_and_want_of_descriptors_is_none() {
        let of = |reason: &str| StorageError::Io { doing: "reading log/7/9".to_owned(), reason: reason.to_owned() };
        let damage = Damage::default();
        assert_eq!(damage_in(&damage.note(of("IO error: /a/000009.sst: Too many open files"))), None);
        assert_eq!(damage.found(), None);
        let unread = of("IO error: While pread: /a/000009.sst: Input/output error");
        assert_eq!(damage_in(&damage.note(unread.clone())), Some(unread.clone()));
        assert_eq!(damage.found(), Some(unread));
    }
}
