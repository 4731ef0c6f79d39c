//! Whether an account that logged in may still be served. Sessions need not ask the directory: the view tells them when
//! an account may have ended, which is rare, and each looks for its own.

use std::sync::Arc;

use tokio::sync::watch;
use types::{AccountId, AccountName};

use super::Shared;

/// What one session holds of its account.
pub struct Access {
    shared: Arc<Shared>,
    name: AccountName,
    account: AccountId,
    /// Changes when accounts were removed or disabled, or the view was loaded anew.
    endings: watch::Receiver<()>,
    over: bool,
}

impl Access {
    pub(super) fn new(shared: Arc<Shared>, name: AccountName, account: AccountId) -> Access {
        let mut endings = shared.endings.subscribe();
        // What changed since the password was verified counts, too.
        endings.mark_changed();
        Access { shared, name, account, endings, over: false }
    }

    /// The account was removed or disabled, or its name is another account's now.
    pub fn is_over(&mut self) -> bool {
        if self.endings.has_changed().unwrap_or(false) {
            self.endings.mark_unchanged();
            let view = self.shared.view.read();
            self.over = !view.account(&self.name).is_some_and(|known| known.id == self.account && known.enabled);
        }
        self.over
    }

    /// Returns once [`Access::is_over`]. Cancel safe.
    pub async fn over(&mut self) {
        while !self.is_over() {
            // The sender lives as long as `shared`.
            let _ = self.endings.changed().await;
            self.endings.mark_changed();
        }
    }
}
