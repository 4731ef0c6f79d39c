//! Moves accounts from one shard to another. The directory says which account moves where and how far it is; the leader of
//! the shard that it goes to conducts the move ([`conduct`]), brings what there is ([`bring`]), and has the source's leader
//! do its part ([`step`], [`export`]). Every step can be repeated, and names its move: whoever leads next goes on from what
//! the directory and the two shards say (docs/decisions/0010-account-move.md).

mod ask;
mod bring;
mod export;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use directory::{AccountMove, Command as DirectoryCommand, MoveStage};
use parking_lot::Mutex;
use proto::wire::move_account_request::Step;
use proto::wire::{AccountMoveFigures, AccountMoveWait, MoveAccountReply, MoveAccountRequest};
use storage::{AccountFailpoint, Command, GroupId, MoveStep, Outcome, Place, Whereabouts, reach};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use types::{AccountId, MailError, MailResult, ShardId};

use crate::Node;
use crate::bootstrap::propose;
use crate::shard::Shard;

pub use self::export::export;

/// Between rounds, and before a move that was broken off goes on.
const ROUND: Duration = Duration::from_millis(500);
/// The longest pause before one that is still copied goes on: what keeps it from going on may last.
const ROUND_MAX: Duration = Duration::from_secs(10);
/// Accounts that are copied to the shards of one node at a time; others wait.
const MOVES_MAX: usize = 4;
/// With those whose copy is admitted or dropped.
const TASKS_MAX: usize = 64;
/// An account that is held for longer is served again where it is, and its move is undone: the target may lack room, or a
/// majority. Longer than an election.
const HOLD_MAX: Duration = Duration::from_secs(20);
/// What the directory's leader says comes to every node within milliseconds.
const HEARS_MAX: Duration = Duration::from_secs(1);
/// Between two steps by which a copy is dropped, so that mail comes first.
const LEAVE_PAUSE: Duration = Duration::from_millis(20);

/// Since the start.
#[derive(Default)]
pub struct Figures {
    arrived: AtomicU64,
    held_ms_max: AtomicU64,
    /// Why moves that are conducted from here do not get on.
    waits: Mutex<BTreeMap<AccountId, String>>,
}

impl Figures {
    pub fn to_wire(&self) -> AccountMoveFigures {
        AccountMoveFigures {
            arrived: self.arrived.load(Ordering::Relaxed),
            held_ms_max: self.held_ms_max.load(Ordering::Relaxed),
        }
    }

    pub fn waits(&self) -> Vec<AccountMoveWait> {
        let waits = self.waits.lock();
        waits
            .iter()
            .map(|(account, because)| AccountMoveWait { account: account.0, because: because.clone() })
            .collect()
    }

    /// What it waited for is over.
    fn gets_on(&self, account: AccountId) {
        self.waits.lock().remove(&account);
    }
}

/// What is told of a move, for as long as it is conducted from here.
struct Told<'a> {
    figures: &'a Figures,
    account: AccountId,
}

impl Told<'_> {
    /// True if that is news.
    fn waits(&self, because: String) -> bool {
        let mut waits = self.figures.waits.lock();
        waits.insert(self.account, because.clone()).is_none_or(|before| before != because)
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.figures.gets_on(self.account);
    }
}

pub async fn run(node: Node, mut stopped: watch::Receiver<bool>) {
    let mut revisions = node.groups().directory_state.revisions();
    let (mut moves, mut holds) = (Moves::default(), Holds::default());
    loop {
        moves.end(&node);
        let under_way = under_way(&node);
        holds.0.retain(|account, _| under_way.iter().any(|(moving, _)| moving == account));
        for (account, moving) in under_way {
            match moving.stage {
                MoveStage::Undone => thaw(&node, account, moving).await,
                MoveStage::Copying if holds.is_too_long(&node, account, moving).await => undo(&node, account, moving),
                MoveStage::Copying | MoveStage::Switched => {}
            }
            let leads = |shard: &Arc<Shard>| shard.group.leads_majority();
            if let Some(target) = node.groups().shard(moving.to).ok().filter(leads) {
                moves.begin(&node, target, account, moving);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            changed = revisions.changed() => if changed.is_err() { return },
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

fn under_way(node: &Node) -> Vec<(AccountId, AccountMove)> {
    let directory = node.groups().directory_state.read();
    let moving = |id| Some((id, directory.account_by_id(id)?.moving?));
    directory.moving_accounts().filter_map(moving).collect()
}

/// Accounts that are frozen in shards that this node leads: by which move, and since when.
#[derive(Default)]
struct Holds(BTreeMap<AccountId, (u64, Instant)>);

impl Holds {
    /// Notes how it stands; true once in [`HOLD_MAX`].
    async fn is_too_long(&mut self, node: &Node, account: AccountId, moving: AccountMove) -> bool {
        let source = node.groups().shard(moving.from).ok().filter(|source| source.group.leads_majority());
        let is_frozen = match source {
            Some(source) => is_frozen(&source, account, moving.id).await,
            None => false,
        };
        if !is_frozen {
            self.0.remove(&account);
            return false;
        }
        let now = Instant::now();
        let (id, since) = self.0.entry(account).or_insert((moving.id, now));
        if *id != moving.id {
            (*id, *since) = (moving.id, now);
        }
        let is_too_long = since.elapsed() > HOLD_MAX;
        if is_too_long {
            *since = now;
        }
        is_too_long
    }
}

/// Not waited for: the directory may have no leader.
fn undo(node: &Node, account: AccountId, moving: AccountMove) {
    let node = node.clone();
    tokio::spawn(async move {
        let (id, shard) = (moving.id, moving.from.0);
        let request = MoveAccountRequest { shard, account: account.0, id, step: Step::Undo.into() };
        match ask::directory(&node, request).await {
            Ok(_) => tracing::warn!(account = account.0, "account was held for too long, its move is undone"),
            Err(error) => tracing::info!(account = account.0, %error, "account is held for too long"),
        }
    });
}

/// Those that are conducted from here.
#[derive(Default)]
struct Moves {
    tasks: JoinSet<()>,
    /// From which stage on.
    accounts: BTreeMap<AccountId, (AccountMove, AbortHandle)>,
}

impl Moves {
    /// Lets those go that have ended, and ends those that are to be undone, or whose account was removed.
    fn end(&mut self, node: &Node) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended
                && !error.is_cancelled()
            {
                tracing::error!(%error, "move of an account broken off");
            }
        }
        self.accounts.retain(|_, (_, task)| !task.is_finished());
        for (account, (begun, task)) in &self.accounts {
            let directory = node.groups().directory_state.read();
            let now = directory.account_by_id(*account).map(|account| account.moving);
            let is_to_end = |now: Option<AccountMove>| now.is_some_and(|now| is_undone(&now) && !is_undone(begun));
            if now.is_none_or(is_to_end) {
                task.abort();
            }
        }
    }

    fn begin(&mut self, node: &Node, target: Arc<Shard>, account: AccountId, moving: AccountMove) {
        let is_copied = |moving: &AccountMove| moving.stage == MoveStage::Copying;
        let copied = self.accounts.values().filter(|(begun, _)| is_copied(begun)).count();
        // One that has switched is served nowhere until it is admitted, and waits for no copy of another.
        let is_full = is_copied(&moving) && copied >= MOVES_MAX || self.tasks.len() >= TASKS_MAX;
        if is_full || self.accounts.contains_key(&account) {
            return;
        }
        let task = self.tasks.spawn(conduct_on(node.clone(), target, account, moving));
        self.accounts.insert(account, (moving, task));
    }
}

/// Until the move is over, or another node leads the target.
async fn conduct_on(node: Node, target: Arc<Shard>, account: AccountId, mut moving: AccountMove) {
    let (told, mut pause) = (Told { figures: node.account_moves(), account }, ROUND);
    while let Err(error) = conduct(&node, &target, account, moving).await {
        let error = damaged_or(&node, target.id, error).await;
        if told.waits(error.to_string()) {
            tracing::info!(account = account.0, stage = ?moving.stage, %error, "account not moved yet");
        }
        tokio::time::sleep(pause).await;
        match stands(&node, account) {
            Some(now) if now.id == moving.id && target.group.leads_majority() => moving = now,
            _ => return,
        }
        pause = if moving.stage == MoveStage::Copying { (pause * 2).min(ROUND_MAX) } else { ROUND };
    }
}

/// A record that cannot be read is the affair of another replica, which leads then. Where there is none it is named: whoever
/// is told has no log of this node's.
async fn damaged_or(node: &Node, shard: ShardId, error: MailError) -> MailError {
    match node.or_elsewhere::<()>(shard.0, Err(error)).await {
        Err(MailError::Corrupt { key }) => {
            MailError::CannotDo(format!("record {key} of shard {shard} cannot be read, and no other replica has it"))
        }
        Err(error) => error,
        Ok(()) => MailError::Unavailable,
    }
}

fn stands(node: &Node, account: AccountId) -> Option<AccountMove> {
    node.groups().directory_state.read().account_by_id(account)?.moving
}

/// Whether this node comes to know within a moment that the move is where it is to be.
async fn hears(node: &Node, account: AccountId, is_it: impl Fn(Option<AccountMove>) -> bool) -> bool {
    let mut revisions = node.groups().directory_state.revisions();
    let heard = async {
        while !is_it(stands(node, account)) {
            if revisions.changed().await.is_err() {
                return;
            }
        }
    };
    drop(tokio::time::timeout(HEARS_MAX, heard).await);
    is_it(stands(node, account))
}

fn is_undone(moving: &AccountMove) -> bool {
    moving.stage == MoveStage::Undone
}

/// From the stage that a move is at to its end.
async fn conduct(node: &Node, target: &Arc<Shard>, account: AccountId, moving: AccountMove) -> MailResult<()> {
    let AccountMove { id, from, to, stage } = moving;
    let of_source = |step| MoveAccountRequest { shard: from.0, account: account.0, id, step: Step::into(step) };
    match stage {
        MoveStage::Copying => {
            let held_since = bring::bring(node, target, account, moving).await?;
            ask::directory(node, of_source(Step::Switch)).await?;
            reach(AccountFailpoint::SwitchAnswered, target.group.id);
            admit(target, account, id).await?;
            let held_ms = held_since.map_or(0, |since: Instant| since.elapsed().as_millis() as u64);
            let figures = node.account_moves();
            figures.arrived.fetch_add(1, Ordering::Relaxed);
            figures.held_ms_max.fetch_max(held_ms, Ordering::Relaxed);
            tracing::info!(account = account.0, from = from.0, to = to.0, held_ms, "account moved");
        }
        MoveStage::Switched => admit(target, account, id).await?,
        MoveStage::Undone => {
            let leave = || async {
                let now = take(target, account, id, MoveStep::Leave).await?;
                reach(AccountFailpoint::CopyLeft, target.group.id);
                MailResult::Ok(now.place)
            };
            while leave().await? == Place::Leaving {
                tokio::time::sleep(LEAVE_PAUSE).await;
            }
        }
    }
    let last = if is_undone(&moving) { Step::Thaw } else { Step::Leave };
    while !ask::source(node, of_source(last)).await?.done {
        tokio::time::sleep(LEAVE_PAUSE).await;
    }
    reach(AccountFailpoint::LeaveAnswered, target.group.id);
    ask::directory(node, of_source(Step::End)).await?;
    hears(node, account, |now| now.is_none_or(|now| now.id != id)).await;
    tracing::info!(account = account.0, from = from.0, to = to.0, undone = is_undone(&moving), "move is over");
    Ok(())
}

/// The directory has the account here: it is served from now on.
async fn admit(target: &Shard, account: AccountId, id: u64) -> MailResult<()> {
    let now = take(target, account, id, MoveStep::Admit).await?;
    match now.place {
        Place::Here if now.move_id >= id => {
            reach(AccountFailpoint::Admitted, target.group.id);
            Ok(())
        }
        place => Err(MailError::CannotDo(format!("the account is {place:?} by move {}", now.move_id))),
    }
}

/// Nobody is to wait for the target's leader, which may be gone.
async fn thaw(node: &Node, account: AccountId, moving: AccountMove) {
    let Ok(source) = node.groups().shard(moving.from) else { return };
    if is_frozen(&source, account, moving.id).await
        && source.group.leads_majority()
        && let Err(error) = take(&source, account, moving.id, MoveStep::Thaw).await
    {
        tracing::debug!(account = account.0, %error, "account stays frozen for now");
    }
}

/// Whether an account is held by this move.
async fn is_frozen(source: &Shard, account: AccountId, id: u64) -> bool {
    let state = source.state();
    let looked = crate::mail::blocking(move || Ok(state.whereabouts(account)?)).await;
    looked.is_ok_and(|now| now.place == Place::Frozen && now.move_id == id)
}

/// As a shard's leader.
async fn take(shard: &Shard, account: AccountId, id: u64, step: MoveStep) -> MailResult<Whereabouts> {
    match shard.propose(&Command::MoveAccount { account, id, step }, None).await? {
        Outcome::Placed(now) => Ok(now),
        _ => Err(MailError::Internal("another command's outcome".to_owned())),
    }
}

/// As the leader of the shard that an account leaves, or of the directory.
pub async fn step(node: &Node, request: MoveAccountRequest) -> MailResult<MoveAccountReply> {
    let (account, id) = (AccountId(request.account), request.id);
    use AccountFailpoint as At;
    let group = GroupId(request.shard);
    let (step, stage, received, taken) = match request.step() {
        Step::Freeze => (MoveStep::Freeze, MoveStage::Copying, At::FreezeReceived, At::AccountFrozen),
        Step::Thaw => (MoveStep::Thaw, MoveStage::Undone, At::ThawReceived, At::AccountThawed),
        Step::Leave => (MoveStep::Leave, MoveStage::Switched, At::LeaveReceived, At::LeaveTaken),
        Step::Switch => {
            reach_leading(node, At::SwitchProposed, group);
            let switched = change_stage(node, account, id, Some(MoveStage::Switched)).await;
            return switched.inspect(|_| reach(At::SwitchCommitted, group));
        }
        Step::End => {
            reach_leading(node, At::EndProposed, group);
            return change_stage(node, account, id, None).await.inspect(|_| reach(At::EndCommitted, group));
        }
        Step::Undo => return change_stage(node, account, id, Some(MoveStage::Undone)).await,
    };
    let shard = node.groups().shard(ShardId(request.shard))?;
    let is_it =
        |now: Option<AccountMove>| now.is_some_and(|now| (now.id, now.stage, now.from) == (id, stage, shard.id));
    if !hears(node, account, is_it).await {
        return Err(MailError::CannotDo("the move is at another stage".to_owned()));
    }
    if shard.group.leads_majority() {
        reach(received, group);
    }
    let now = match take(&shard, account, id, step).await {
        Err(error) => return Err(damaged_or(node, shard.id, error).await),
        Ok(now) => now,
    };
    reach(taken, group);
    let done = now.move_id == id
        && match step {
            MoveStep::Freeze => now.place == Place::Frozen,
            MoveStep::Thaw => now.place == Place::Here,
            _ => now.place == Place::Gone,
        };
    Ok(MoveAccountReply { done, mod_seq_last: now.mod_seq_last })
}

/// Others are asked too, and say who leads.
fn reach_leading(node: &Node, point: AccountFailpoint, group: GroupId) {
    if node.groups().directory().leads_majority() {
        reach(point, group);
    }
}

async fn change_stage(
    node: &Node,
    account: AccountId,
    id: u64,
    stage: Option<MoveStage>,
) -> MailResult<MoveAccountReply> {
    propose(node, &DirectoryCommand::StepAccountMove { account, id, stage }).await?;
    Ok(MoveAccountReply { done: true, mod_seq_last: 0 })
}
