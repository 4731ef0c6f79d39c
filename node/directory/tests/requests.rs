//! Requests whose answer was lost and that come again.

mod common;

use common::{Story, domain, name, new_account, once};
use directory::limits::{REQUEST_AGE_MS, REQUEST_ANSWERS_MAX};
use directory::{Command, DirectoryError, RebalanceState, Reply, RequestId};

const START_MS: u64 = 1_800_000_000_000;

fn add(local: &str) -> Command {
    Command::CreateAccounts { accounts: vec![new_account(&format!("{local}@example.test"))], unix_s: 1 }
}

fn places(reply: &Result<Reply, DirectoryError>) -> Vec<Option<u64>> {
    let Ok(Reply::Accounts(results)) = reply else { panic!("{reply:?}") };
    results.iter().map(|result| result.as_ref().ok().map(|place| place.id.0)).collect()
}

#[test]
fn a_request_that_comes_again_is_answered_as_it_was_and_changes_nothing() {
    let mut story = Story::begin();
    let first = story.apply(once(7, START_MS, add("alice")));
    assert_eq!(places(&first), [Some(1)]);
    // Each attempt has a time of its own.
    let later = Command::CreateAccounts { accounts: vec![new_account("alice@example.test")], unix_s: 9 };
    assert_eq!(story.apply(once(7, START_MS + 15_000, later)), first);
    assert!(story.last.is_empty());
    assert_eq!(places(&story.apply(once(8, START_MS, add("alice")))), [None], "somebody else asks for the same");
    assert_eq!(story.directory.accounts().count(), 1);

    let removal = Command::RemoveAccount { name: name("alice@example.test") };
    let removed = story.apply(once(9, START_MS, removal.clone()));
    assert!(matches!(removed, Ok(Reply::Account(place)) if place.id.0 == 1), "{removed:?}");
    story.account("alice@example.test");
    assert_eq!(story.apply(once(9, START_MS, removal)), removed);
    assert!(story.directory.account(&name("alice@example.test")).is_some(), "the new one stays");
}

#[test]
fn what_was_refused_is_refused_again_though_it_could_be_done_by_now() {
    let mut story = Story::begin();
    story.account("alice@example.test");
    let removal = once(1, START_MS, Command::RemoveDomain { name: domain("example.test") });
    let refused = story.apply(removal.clone());
    assert!(matches!(refused, Err(DirectoryError::InUse(_))), "{refused:?}");
    story.must(Command::RemoveAccount { name: name("alice@example.test") });
    assert_eq!(story.apply(removal), refused);
    assert!(story.directory.domain(&domain("example.test")).is_some());
    let aborted = once(2, START_MS, Command::SetRebalanceState { state: RebalanceState::Aborted });
    let refused = story.apply(aborted.clone());
    assert!(refused.is_err());
    assert_eq!(story.apply(aborted), refused);
}

#[test]
fn an_id_is_of_one_request() {
    let mut story = Story::begin();
    story.must(once(1, START_MS, add("alice")));
    for other in [add("bob"), Command::RemoveAccount { name: name("alice@example.test") }] {
        let answer = story.apply(once(1, START_MS, other));
        assert_eq!(answer, Err(DirectoryError::Invalid("the request id belongs to another request".to_owned())));
    }
    assert_eq!(story.directory.accounts().count(), 1);
}

#[test]
fn replicas_disks_and_snapshots_remember_the_same() {
    let mut story = Story::begin();
    let batch = ["bob", "alice", "bob"].map(|local| new_account(&format!("{local}@example.test"))).to_vec();
    let requests = [
        once(1, START_MS, add("alice")),
        once(2, START_MS + 1, Command::CreateAccounts { accounts: batch, unix_s: 1 }),
        once(3, START_MS + 2, Command::RemoveAccount { name: name("alice@example.test") }),
        once(4, START_MS + 3, Command::SetEnabled { name: name("nobody@example.test"), enabled: true }),
        once(5, START_MS + 4, Command::SetPostmaster { account: Some(name("bob@example.test")) }),
    ];
    let answers = requests.clone().map(|request| story.apply(request));
    let snapshot = story.directory.records().map(|change| (change.key, change.value.unwrap()));
    let installed = directory::Directory::load(snapshot).unwrap().at_revision(story.directory.revision());
    for mut directory in [story.reload().unwrap(), installed] {
        assert_eq!(directory, story.directory);
        for (request, answer) in requests.iter().zip(&answers) {
            let applied = directory.apply(directory.revision() + 1, request);
            assert_eq!((&applied.reply, applied.changes.len()), (answer, 0));
        }
    }
    assert_eq!(story.directory.newest_request_ms(), Some(START_MS + 4));
}

#[test]
fn after_ten_minutes_a_request_is_forgotten() {
    let mut story = Story::begin();
    story.must(once(1, START_MS, add("alice")));
    // Just before: still known.
    assert_eq!(places(&story.apply(once(1, START_MS + REQUEST_AGE_MS - 1, add("alice")))), [Some(1)]);
    assert_eq!(story.directory.newest_request_ms(), Some(START_MS), "what is asked again makes nothing younger");
    story.must(once(2, START_MS + REQUEST_AGE_MS, add("bob")));
    assert!(story.directory.answered(RequestId(1)).is_none());
    assert_eq!(places(&story.apply(once(1, START_MS + REQUEST_AGE_MS, add("alice")))), [None], "as if it were new");
    // It takes the place of what was remembered under its id.
    let (newest, much_later) = (RequestId(1), START_MS + 3 * REQUEST_AGE_MS);
    assert_eq!(places(&story.apply(once(1, much_later, add("carol")))), [Some(3)]);
    assert_eq!(story.directory.answered(newest).map(|answered| answered.unix_ms), Some(much_later));
    assert!(story.directory.answered(RequestId(2)).is_none());
    assert_eq!(story.reload().unwrap(), story.directory);
}

#[test]
fn a_proposer_whose_clock_is_behind_makes_nothing_older() {
    let mut story = Story::begin();
    story.must(once(1, START_MS, add("alice")));
    story.must(once(2, 5, add("bob")));
    assert_eq!(story.directory.answered(RequestId(2)).map(|answered| answered.unix_ms), Some(START_MS));
    story.must(once(3, START_MS + REQUEST_AGE_MS - 1, add("carol")));
    assert_eq!(places(&story.apply(once(2, 0, add("bob")))), [Some(2)]);
}

#[test]
fn the_oldest_are_forgotten_beyond_the_limit_a_batch_counting_for_all_of_its_accounts() {
    let mut story = Story::begin();
    let request = |id: usize| once(id as u128, START_MS + id as u64, Command::SetPostmaster { account: None });
    for id in 1..=REQUEST_ANSWERS_MAX {
        story.directory.apply(story.directory.revision() + 1, &request(id)).reply.unwrap();
    }
    let is_known = |story: &Story, id: u128| story.directory.answered(RequestId(id)).is_some();
    assert!(is_known(&story, 1));
    story.must(request(REQUEST_ANSWERS_MAX + 1));
    assert_eq!(story.last.len(), 2, "one comes, one goes");
    assert!(!is_known(&story, 1) && is_known(&story, 2));
    let accounts = (0..100).map(|n| new_account(&format!("n{n}@example.test"))).collect();
    let batch = Command::CreateAccounts { accounts, unix_s: 1 };
    story.must(once(u128::MAX, START_MS + 2 * REQUEST_ANSWERS_MAX as u64, batch));
    assert!(!is_known(&story, 101) && is_known(&story, 102) && is_known(&story, u128::MAX));
}

#[test]
fn a_request_is_remembered_by_a_cluster_and_never_within_another_one() {
    let mut story = Story::empty();
    assert_eq!(story.apply(once(1, START_MS, add("alice"))), Err(DirectoryError::NotReady));
    assert!(story.last.is_empty());
    let within = once(1, START_MS, once(2, START_MS, add("alice")));
    assert!(matches!(within.encode(), Err(DirectoryError::Invalid(_))));
}
