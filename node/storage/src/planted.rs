//! Bugs on purpose, to show that the checker of the cluster tests finds them. The feature `planted-bugs` compiles them in,
//! and the environment variable MAILRING_PLANTED chooses one; without the feature each of them is the constant `false`,
//! and nothing is left of them.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bug {
    /// The writer reports a round done when it is written; the next round syncs it.
    AcknowledgeBeforeSync,
    /// Deliveries and requests that were done already are done again.
    SkipDuplicateCheck,
    /// The mailbox's next UID goes back when its last message is expunged.
    ReuseUid,
}

#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub(crate) const fn check() -> Result<(), crate::error::StorageError> {
    Ok(())
}

#[cfg(feature = "planted-bugs")]
pub(crate) use chosen::{check, planted};

#[cfg(feature = "planted-bugs")]
mod chosen {
    use std::sync::LazyLock;

    use tracing::warn;

    use super::Bug;
    use crate::error::StorageError;

    const VARIABLE: &str = "MAILRING_PLANTED";

    /// Read once: a process has its bug from its start to its end.
    static CHOSEN: LazyLock<Result<Option<Bug>, String>> = LazyLock::new(|| match std::env::var(VARIABLE).as_deref() {
        Err(_) => Ok(None),
        Ok("acknowledge-before-sync") => Ok(Some(Bug::AcknowledgeBeforeSync)),
        Ok("skip-duplicate-check") => Ok(Some(Bug::SkipDuplicateCheck)),
        Ok("reuse-uid") => Ok(Some(Bug::ReuseUid)),
        Ok(unknown) => Err(format!("{VARIABLE}: no bug is called {unknown:?}")),
    });

    pub(crate) fn planted(bug: Bug) -> bool {
        *CHOSEN == Ok(Some(bug))
    }

    /// Refuses a name that is none, so that no test passes for want of its bug.
    pub(crate) fn check() -> Result<(), StorageError> {
        if let Some(bug) = CHOSEN.clone().map_err(StorageError::Misuse)? {
            warn!(?bug, "planted bug: this program loses mail on purpose");
        }
        Ok(())
    }
}
