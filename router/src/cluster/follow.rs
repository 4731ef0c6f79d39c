//! Follows the directory: from any node that answers, from the next one when that one stops. What is known stays
//! known while no node answers.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use proto::NodeApi;
use proto::wire::directory_change::Change;
use proto::wire::{DirectoryChange, DirectoryEvent, DirectoryWatchRequest};
use tracing::{debug, info, warn};
use types::{MailError, MailResult};

use super::Shared;
use super::patience::{Backoff, pause};
use super::view::View;

const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// A directory that comes back is heard within about this.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Until the cluster is dropped.
pub(super) async fn follow(shared: Weak<Shared>) {
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    let mut turn = 0usize;
    let mut lost = false;
    loop {
        let candidate = {
            let Some(shared) = shared.upgrade() else { return };
            let candidates = candidates(&shared);
            let address = candidates.get(turn.checked_rem(candidates.len()).unwrap_or(0)).cloned();
            address.and_then(|address| Some((shared.pool.at(&address)?, address)))
        };
        if let Some((node, address)) = candidate {
            let mut heard = false;
            match follow_one(&shared, node, &mut heard).await {
                Ok(()) => debug!("directory watch ended"),
                Err(error) => {
                    debug!(%error, "directory watch failed");
                    doubt(&shared, &address, &error);
                }
            }
            if heard {
                backoff.reset();
                if std::mem::take(&mut lost) {
                    info!("directory is reachable again");
                }
            }
        }
        turn = turn.wrapping_add(1);
        if backoff.is_long() && !lost {
            lost = true;
            warn!("directory is not reachable, going on with what is known");
        }
        pause(backoff.next()).await;
    }
}

/// Addresses of the seeds and of every node that the directory names; those that do not answer only if no other is left.
fn candidates(shared: &Shared) -> Vec<String> {
    let mut all = shared.pool.seeds().to_vec();
    let view = shared.view.read();
    let mut suspected = Vec::new();
    for (id, address) in view.nodes().filter_map(|id| Some((id, view.node_address(id)?))) {
        if shared.is_suspected(id) {
            suspected.push(address);
        } else if !all.iter().any(|known| **known == *address) {
            all.push(address.into());
        }
    }
    let (others, suspected): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|one| !suspected.iter().any(|address| **address == **one));
    if others.is_empty() { suspected } else { others }
}

/// Operations need not find out for themselves.
fn doubt(shared: &Weak<Shared>, address: &str, error: &MailError) {
    let Some(shared) = shared.upgrade() else { return };
    if matches!(error, MailError::Unavailable | MailError::Deadline) {
        let at_address = |view: &View| view.nodes().find(|id| view.node_address(*id).as_deref() == Some(address));
        let id = at_address(&shared.view.read());
        if let Some(id) = id {
            shared.doubt(id);
        }
    }
}

/// Applies what one node tells, until it stops. `heard` is set once the view is whole.
async fn follow_one(shared: &Weak<Shared>, node: Arc<dyn NodeApi>, heard: &mut bool) -> MailResult<()> {
    let since = match shared.upgrade() {
        Some(shared) => shared.revision.borrow().unwrap_or(0),
        None => return Ok(()),
    };
    let mut events = node.watch_directory(DirectoryWatchRequest { since, follow: true }).await?;
    let mut next: Option<View> = None;
    while let Some(event) = events.next().await {
        let Some(shared) = shared.upgrade() else { return Ok(()) };
        let event = event?;
        // A replica that lags would take back what is known: ask another.
        if event.complete && event.revision < since {
            return Err(MailError::Unavailable);
        }
        *heard |= event.complete;
        apply(&shared, &mut next, event);
    }
    Ok(())
}

/// After `reset` the view is built aside until it is whole: half a directory would refuse mail for good.
fn apply(shared: &Shared, next: &mut Option<View>, event: DirectoryEvent) {
    let first = shared.revision.borrow().is_none();
    if event.reset || (first && next.is_none()) {
        *next = Some(View::default());
    }
    let ends = event.changes.iter().any(ends_account);
    let moves = event.changes.iter().any(moves_account);
    match next {
        Some(view) => event.changes.into_iter().for_each(|change| view.apply(change)),
        None => {
            let mut view = shared.view.write();
            event.changes.into_iter().for_each(|change| view.apply(change));
            drop(view);
            if ends {
                shared.endings.send_replace(());
            }
            if moves {
                shared.moves.send_replace(());
            }
        }
    }
    if !event.complete {
        return;
    }
    if let Some(view) = next.take() {
        info!(revision = event.revision, accounts = view.accounts_len(), "directory loaded");
        // The old view is dropped after the lock.
        let old = std::mem::replace(&mut *shared.view.write(), view);
        drop(old);
        shared.endings.send_replace(());
        shared.moves.send_replace(());
    }
    shared.revision.send_replace(Some(event.revision));
}

fn moves_account(change: &DirectoryChange) -> bool {
    matches!(&change.change, Some(Change::Account(account)) if account.moving.is_some())
}

/// Whether sessions of an account may have to end.
fn ends_account(change: &DirectoryChange) -> bool {
    match &change.change {
        Some(Change::AccountRemoved(_)) => true,
        Some(Change::Account(account)) => !account.enabled,
        _ => false,
    }
}
