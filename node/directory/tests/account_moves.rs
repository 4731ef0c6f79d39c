//! Accounts move from one shard to another, one stage after the other, and one move at a time.

mod common;

use common::{Story, name};
use directory::{AccountMove, Command, DirectoryError, MoveStage};
use types::{AccountId, ShardId};

const ALICE: &str = "alice@example.test";

fn story() -> (Story, AccountId, ShardId, ShardId) {
    let mut story = Story::begin();
    story.account(ALICE);
    let account = story.directory.account(&name(ALICE)).unwrap();
    let (id, from) = (account.id, account.shard);
    (story, id, from, ShardId((from.0 + 1) % 16))
}

fn start(to: ShardId) -> Command {
    Command::StartAccountMove { name: name(ALICE), to }
}

fn abort() -> Command {
    Command::AbortAccountMove { name: name(ALICE) }
}

fn stands(story: &Story) -> (ShardId, Option<AccountMove>) {
    let account = story.directory.account(&name(ALICE)).unwrap();
    let moving: Vec<AccountId> = story.directory.moving_accounts().collect();
    assert_eq!(moving, account.moving.map(|_| account.id).into_iter().collect::<Vec<_>>());
    assert_eq!(story.reload().unwrap(), story.directory);
    (account.shard, account.moving)
}

#[test]
fn a_move_goes_from_stage_to_stage_and_the_shard_changes_with_the_switch() {
    let (mut story, account, from, to) = story();
    story.must(start(to));
    let id = story.directory.revision();
    let at = |stage| Some(AccountMove { id, from, to, stage });
    assert_eq!(stands(&story), (from, at(MoveStage::Copying)));
    let step = |id, stage| Command::StepAccountMove { account, id, stage };
    // Not over before it is switched or undone; and of no other move.
    assert!(matches!(story.apply(step(id, None)), Err(DirectoryError::Invalid(_))));
    assert!(matches!(story.apply(step(id + 1, Some(MoveStage::Undone))), Err(DirectoryError::NotFound(_))));
    assert!(matches!(story.apply(step(id + 1, Some(MoveStage::Switched))), Err(DirectoryError::NotFound(_))));
    story.must(step(id, Some(MoveStage::Switched)));
    assert_eq!(stands(&story), (to, at(MoveStage::Switched)));
    for late in [MoveStage::Switched, MoveStage::Undone] {
        assert!(matches!(story.apply(step(id, Some(late))), Err(DirectoryError::Invalid(_))));
    }
    assert!(matches!(story.apply(abort()), Err(DirectoryError::InUse(_))));
    story.must(step(id, None));
    assert_eq!(stands(&story), (to, None));
    assert!(matches!(story.apply(step(id, None)), Err(DirectoryError::NotFound(_))));
    // And back, under another number, until the source gives it up.
    story.must(start(from));
    let back = stands(&story).1.unwrap().id;
    assert!(back > id);
    story.must(step(back, Some(MoveStage::Undone)));
    assert_eq!(stands(&story), (to, Some(AccountMove { id: back, from: to, to: from, stage: MoveStage::Undone })));
    assert!(matches!(story.apply(step(back, Some(MoveStage::Switched))), Err(DirectoryError::Invalid(_))));
}

#[test]
fn a_move_that_is_undone_leaves_the_account_where_it_was() {
    let (mut story, account, from, to) = story();
    story.must(start(to));
    let id = story.directory.revision();
    story.must(abort());
    story.must(abort());
    assert_eq!(stands(&story), (from, Some(AccountMove { id, from, to, stage: MoveStage::Undone })));
    let switch = Command::StepAccountMove { account, id, stage: Some(MoveStage::Switched) };
    assert!(matches!(story.apply(switch), Err(DirectoryError::Invalid(_))));
    story.must(Command::StepAccountMove { account, id, stage: None });
    assert_eq!(stands(&story), (from, None));
    assert!(matches!(story.apply(abort()), Err(DirectoryError::NotFound(_))));
}

#[test]
fn what_cannot_move_is_refused_by_name() {
    let (mut story, _, from, to) = story();
    let mut refused = |command: Command| story.apply(command).unwrap_err().to_string();
    assert_eq!(refused(start(ShardId(16))), "shard 16 does not exist");
    assert_eq!(refused(start(from)), format!("account {ALICE} is on shard {from} already"));
    let bob = Command::StartAccountMove { name: name("bob@example.test"), to };
    assert_eq!(refused(bob), "account bob@example.test does not exist");
    story.must(start(to));
    let again = story.apply(start(from)).unwrap_err().to_string();
    assert_eq!(again, format!("account {ALICE} is moving to shard {to} already"));
}

#[test]
fn an_account_can_be_changed_and_removed_while_it_moves() {
    let (mut story, account, from, to) = story();
    story.must(start(to));
    let id = story.directory.revision();
    story.must(Command::SetEnabled { name: name(ALICE), enabled: false });
    assert_eq!(stands(&story), (from, Some(AccountMove { id, from, to, stage: MoveStage::Copying })));
    story.must(Command::RemoveAccount { name: name(ALICE) });
    assert_eq!(story.directory.moving_accounts().len(), 0);
    let switch = Command::StepAccountMove { account, id, stage: Some(MoveStage::Switched) };
    assert!(matches!(story.apply(switch), Err(DirectoryError::NotFound(_))));
    // Of the same name, and another account.
    story.account(ALICE);
    assert_eq!(stands(&story).1, None);
}
