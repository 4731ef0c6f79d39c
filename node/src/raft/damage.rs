//! Whether a group stopped since its own records cannot be read: openraft passes errors on as text alone.

use std::fmt::Display;
use std::io;
use std::sync::{Arc, OnceLock};

use storage::StorageError;

/// The first damage that was met. Cloning shares it.
#[derive(Clone, Default)]
pub struct Damage(Arc<OnceLock<StorageError>>);

impl Damage {
    /// The error for openraft; damage is remembered.
    pub fn note(&self, error: StorageError) -> io::Error {
        if let StorageError::Corrupt { .. } = &error {
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
    matches!(inner, StorageError::Corrupt { .. }).then(|| inner.clone())
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
}
