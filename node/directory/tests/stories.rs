//! What operators and senders meet, told through commands: accounts, aliases, domains, import.

mod common;

use common::{Story, domain, hash, name, new_account};
use directory::limits::{
    ACCOUNTS_BATCH_MAX, ACCOUNTS_PAGE_MAX, ALIAS_TARGETS_MAX, EXPANSION_ACCOUNTS_MAX, PASSWORD_HASH_OCTETS_MAX,
};
use directory::{Command, Directory, DirectoryError, QuotaChange, RecipientError, Reply, shard_of};
use types::{AccountId, AccountName, Quota};

#[test]
fn a_new_account_gets_the_next_id_and_the_shard_of_that_id() {
    let mut story = Story::begin();
    let place = story.must(Command::CreateAccount { account: new_account("Alice@Example.test"), unix_s: 42 });
    let Reply::Account(place) = place else { panic!("{place:?}") };
    assert_eq!((place.id, place.shard), (AccountId(1), shard_of(AccountId(1), 16)));
    let alice = story.directory.account(&name("alice@example.test")).unwrap();
    assert_eq!((alice.id, alice.shard, alice.enabled, alice.created_unix_s), (place.id, place.shard, true, 42));
    assert_eq!(story.directory.account_by_id(place.id), Some(alice));
    let kinds: Vec<u8> = story.last.iter().map(|change| change.key[0]).collect();
    assert_eq!(kinds, *b"ca", "the counter and the account");
}

#[test]
fn an_account_id_is_never_given_out_twice() {
    let mut story = Story::begin();
    story.account("alice@example.test");
    story.must(Command::RemoveAccount { name: name("alice@example.test") });
    story.account("alice@example.test");
    let alice = story.directory.account(&name("alice@example.test")).unwrap();
    assert_eq!(alice.id, AccountId(2));
    assert_eq!(story.directory.account_by_id(AccountId(1)), None);
    assert_eq!(story.reload().unwrap(), story.directory);
}

#[test]
fn a_name_is_given_out_once_whether_to_an_account_or_to_an_alias() {
    let mut story = Story::begin();
    story.account("alice@example.test");
    story.alias("sales@example.test", &["alice@example.test"]).unwrap();
    for taken in ["ALICE@example.test", "sales@example.test"] {
        let again = Command::CreateAccount { account: new_account(taken), unix_s: 1 };
        assert!(matches!(story.apply(again), Err(DirectoryError::AlreadyExists(_))), "{taken}");
        let again = story.alias(taken, &["alice@example.test"]);
        assert!(matches!(again, Err(DirectoryError::AlreadyExists(_))), "{taken}");
    }
}

#[test]
fn accounts_need_a_hosted_domain() {
    let mut story = Story::begin();
    let elsewhere = Command::CreateAccount { account: new_account("alice@elsewhere.test"), unix_s: 1 };
    assert_eq!(story.apply(elsewhere), Err(DirectoryError::NotFound("domain elsewhere.test".to_owned())));
    let star = Command::CreateAccount { account: new_account("*@example.test"), unix_s: 1 };
    assert!(matches!(story.apply(star), Err(DirectoryError::Invalid(_))));
}

#[test]
fn nothing_can_be_done_before_the_cluster_is_created() {
    let mut story = Story::empty();
    let answers = [
        story.apply(Command::CreateDomain { name: domain("example.test") }),
        story.apply(Command::RegisterNode(common::new_node(1))),
        story.apply(Command::SetPostmaster { account: None }),
    ];
    assert!(answers.iter().all(|answer| *answer == Err(DirectoryError::NotReady)), "{answers:?}");
    assert!(story.directory.propose_placements().is_empty());
}

#[test]
fn an_import_answers_for_each_line_and_skips_no_id() {
    let mut story = Story::begin();
    story.account("bob@example.test");
    let lines =
        ["alice@example.test", "bob@example.test", "x@elsewhere.test", "alice@example.test", "carol@example.test"];
    let accounts = lines.map(new_account).to_vec();
    let Reply::Accounts(results) = story.must(Command::CreateAccounts { accounts, unix_s: 9 }) else { panic!() };
    let ids: Vec<Option<u64>> = results.iter().map(|it| it.as_ref().ok().map(|place| place.id.0)).collect();
    assert_eq!(ids, [Some(2), None, None, None, Some(3)]);
    assert!(matches!(results[1], Err(DirectoryError::AlreadyExists(_))));
    assert!(matches!(results[2], Err(DirectoryError::NotFound(_))));
    assert!(matches!(results[3], Err(DirectoryError::AlreadyExists(_))));
    assert_eq!(story.directory.cluster().unwrap().next_account_id, AccountId(4));
    assert_eq!(story.reload().unwrap(), story.directory);

    let accounts = lines[1..3].iter().map(|line| new_account(line)).collect();
    story.must(Command::CreateAccounts { accounts, unix_s: 9 });
    assert!(story.last.is_empty(), "an import of nothing new changes nothing");
}

#[test]
fn the_largest_import_fits_a_log_entry_and_one_more_is_refused() {
    let mut story = Story::begin();
    let long_domain = format!("{}.test", ["a".repeat(60).as_str(); 4].join("."));
    story.must(Command::CreateDomain { name: domain(&long_domain) });
    let longest = |number: usize| {
        let mut account = new_account(&format!("{}{number:04}@{long_domain}", "b".repeat(60)));
        account.password_hash = hash(&"c".repeat(PASSWORD_HASH_OCTETS_MAX - 43));
        assert_eq!(account.password_hash.as_str().len(), PASSWORD_HASH_OCTETS_MAX);
        account
    };
    let accounts: Vec<_> = (0..ACCOUNTS_BATCH_MAX).map(longest).collect();
    let command = Command::CreateAccounts { accounts: accounts.clone(), unix_s: u64::MAX };
    assert!(command.encode().unwrap().len() <= 512 * 1024);
    story.must(command);
    assert_eq!(story.directory.accounts().count(), ACCOUNTS_BATCH_MAX);
    let more = accounts.into_iter().chain([longest(9999)]).collect();
    let refused = story.apply(Command::CreateAccounts { accounts: more, unix_s: 1 });
    assert!(matches!(refused, Err(DirectoryError::Limit(_))), "{refused:?}");
}

#[test]
fn an_account_is_suspended_and_keeps_its_mail() {
    let mut story = Story::begin();
    story.account("alice@example.test");
    story.must(Command::SetPassword { name: name("alice@example.test"), password_hash: hash("bmV3c2FsdA") });
    story.must(Command::SetEnabled { name: name("alice@example.test"), enabled: false });
    let alice = story.directory.account(&name("alice@example.test")).unwrap();
    assert_eq!((alice.enabled, alice.password_hash == hash("bmV3c2FsdA")), (false, true));
    assert_eq!(story.reaches("alice@example.test"), ["alice@example.test"]);
    story.must(Command::SetEnabled { name: name("alice@example.test"), enabled: false });
    assert!(story.last.is_empty(), "nothing changed");
    let stranger = Command::SetEnabled { name: name("bob@example.test"), enabled: true };
    assert!(matches!(story.apply(stranger), Err(DirectoryError::NotFound(_))));
}

#[test]
fn aliases_lead_through_aliases_to_each_account_once() {
    let mut story = Story::begin();
    for account in ["carol@example.test", "alice@example.test", "bob@example.test"] {
        story.account(account);
    }
    story.alias("sales@example.test", &["alice@example.test", "bob@example.test"]).unwrap();
    story.alias("support@example.test", &["bob@example.test", "carol@example.test"]).unwrap();
    story.alias("all@example.test", &["support@example.test", "sales@example.test", "alice@example.test"]).unwrap();
    assert_eq!(story.reaches("all@example.test"), ["carol@example.test", "alice@example.test", "bob@example.test"]);
    let sources: Vec<&AccountName> = story.directory.alias_sources(&name("bob@example.test")).collect();
    assert_eq!(sources, [&name("sales@example.test"), &name("support@example.test")]);
    let aliases: Vec<&str> = story.directory.aliases(&domain("example.test")).map(|it| it.name.local()).collect();
    assert_eq!(aliases, ["all", "sales", "support"]);
}

#[test]
fn a_limit_that_is_not_named_stays_as_it_is() {
    let mut story = Story::begin();
    story.account("alice@example.test");
    let quota = |story: &Story| story.directory.account(&name("alice@example.test")).unwrap().quota;
    assert_eq!(quota(&story), Quota::NONE);
    for (octets, messages, expected) in [
        (Some(Some(5000)), None, Quota { octets: Some(5000), messages: None }),
        (None, Some(Some(0)), Quota { octets: Some(5000), messages: Some(0) }),
        (Some(None), None, Quota { octets: None, messages: Some(0) }),
        (None, Some(None), Quota::NONE),
    ] {
        let change = QuotaChange { octets, messages };
        story.must(Command::SetQuota { name: name("alice@example.test"), change });
        assert_eq!((quota(&story), story.last.len()), (expected, 1));
        story.must(Command::SetQuota { name: name("alice@example.test"), change });
        assert!(story.last.is_empty(), "the same again changes nothing");
    }
    let (name, change) = (name("bob@example.test"), QuotaChange::default());
    let nobody = story.apply(Command::SetQuota { name, change });
    assert_eq!(nobody, Err(DirectoryError::NotFound("account bob@example.test".to_owned())));
}

#[test]
fn what_an_alias_leads_to_cannot_be_taken_away() {
    let mut story = Story::begin();
    story.account("alice@example.test");
    story.alias("sales@example.test", &["alice@example.test", "alice@example.test"]).unwrap();
    story.alias("all@example.test", &["sales@example.test"]).unwrap();
    let alice = Command::RemoveAccount { name: name("alice@example.test") };
    let sales = Command::RemoveAlias { name: name("sales@example.test") };
    let refused = story.apply(alice.clone()).unwrap_err();
    assert_eq!(refused.to_string(), "alias sales@example.test leads to alice@example.test");
    assert!(matches!(story.apply(sales.clone()), Err(DirectoryError::InUse(_))));
    story.must(Command::RemoveAlias { name: name("all@example.test") });
    story.must(sales);
    story.must(alice);
    story.must(Command::RemoveDomain { name: domain("example.test") });
    assert_eq!(story.reload().unwrap(), story.directory);
}

#[test]
fn an_alias_cannot_lead_to_itself_to_nobody_or_to_another_system() {
    let mut story = Story::begin();
    story.account("alice@example.test");
    let itself = story.alias("a@example.test", &["a@example.test"]).unwrap_err();
    assert_eq!(itself.to_string(), "alias a@example.test leads to itself");
    let remote = story.alias("a@example.test", &["alice@example.test", "x@remote.test"]).unwrap_err();
    assert!(matches!(&remote, DirectoryError::Invalid(text) if text.contains("not forwarded")), "{remote}");
    assert!(matches!(story.alias("a@example.test", &["b@example.test"]), Err(DirectoryError::NotFound(_))));
    assert!(matches!(story.alias("a@example.test", &[]), Err(DirectoryError::Invalid(_))));
    assert!(matches!(story.alias("a@remote.test", &["alice@example.test"]), Err(DirectoryError::NotFound(_))));
}

#[test]
fn a_list_may_grow_to_its_limit_and_no_further() {
    let mut story = Story::begin();
    let people: Vec<String> = (0..=EXPANSION_ACCOUNTS_MAX).map(|number| format!("p{number}@example.test")).collect();
    for batch in people.chunks(ACCOUNTS_BATCH_MAX) {
        let accounts = batch.iter().map(|person| new_account(person)).collect();
        story.must(Command::CreateAccounts { accounts, unix_s: 1 });
    }
    let people: Vec<&str> = people.iter().map(String::as_str).collect();
    let too_long = story.alias("x@example.test", &people[..=ALIAS_TARGETS_MAX]);
    assert!(matches!(too_long, Err(DirectoryError::Limit(_))));
    story.alias("first@example.test", &people[..ALIAS_TARGETS_MAX]).unwrap();
    story.alias("second@example.test", &people[ALIAS_TARGETS_MAX..EXPANSION_ACCOUNTS_MAX]).unwrap();
    story.alias("all@example.test", &["first@example.test", "second@example.test"]).unwrap();
    assert_eq!(story.reaches("all@example.test").len(), EXPANSION_ACCOUNTS_MAX);
    let over = story.alias("more@example.test", &["all@example.test", people[EXPANSION_ACCOUNTS_MAX]]);
    assert!(matches!(over, Err(DirectoryError::Limit(_))), "{over:?}");
}

#[test]
fn unknown_users_and_unknown_domains_are_told_apart() {
    let mut story = Story::begin();
    story.account("alice@example.test");
    let resolve = |recipient| story.directory.resolve_recipient(&name(recipient)).unwrap_err();
    assert_eq!(resolve("bob@example.test"), RecipientError::UnknownUser);
    assert_eq!(resolve("alice@elsewhere.test"), RecipientError::UnknownDomain);
    assert_eq!(resolve("postmaster@elsewhere.test"), RecipientError::UnknownDomain);
}

#[test]
fn a_catch_all_takes_what_no_other_name_does() {
    let mut story = Story::begin();
    story.account("alice@example.test");
    story.account("bob@example.test");
    story.alias("*@example.test", &["bob@example.test"]).unwrap();
    assert_eq!(story.reaches("alice@example.test"), ["alice@example.test"]);
    assert_eq!(story.reaches("anybody@example.test"), ["bob@example.test"]);
    assert_eq!(story.reaches("postmaster@example.test"), ["bob@example.test"]);
}

#[test]
fn postmaster_is_always_reached_in_a_domain_with_accounts() {
    let mut story = Story::begin();
    story.must(Command::CreateDomain { name: domain("second.test") });
    let nobody = story.directory.resolve_recipient(&name("postmaster@second.test"));
    assert_eq!(nobody, Err(RecipientError::UnknownUser));

    story.account("suspended@second.test");
    story.account("oldest@second.test");
    story.account("another@second.test");
    story.must(Command::SetEnabled { name: name("suspended@second.test"), enabled: false });
    assert_eq!(story.reaches("Postmaster@second.test"), ["oldest@second.test"]);

    story.account("alice@example.test");
    let nobody = Command::SetPostmaster { account: Some(name("nobody@example.test")) };
    assert!(matches!(story.apply(nobody), Err(DirectoryError::NotFound(_))));
    story.must(Command::SetPostmaster { account: Some(name("alice@example.test")) });
    assert_eq!(story.reaches("postmaster@second.test"), ["alice@example.test"]);
    let remove = Command::RemoveAccount { name: name("alice@example.test") };
    assert!(matches!(story.apply(remove.clone()), Err(DirectoryError::InUse(_))));

    story.alias("postmaster@second.test", &["another@second.test"]).unwrap();
    assert_eq!(story.reaches("postmaster@second.test"), ["another@second.test"]);
    story.account("postmaster@example.test");
    assert_eq!(story.reaches("postmaster@example.test"), ["postmaster@example.test"]);
    assert_eq!(story.reload().unwrap(), story.directory);

    story.must(Command::SetPostmaster { account: None });
    story.must(remove);
}

#[test]
fn a_domain_goes_only_when_it_is_empty() {
    let mut story = Story::begin();
    story.account("alice@example.test");
    let remove = Command::RemoveDomain { name: domain("example.test") };
    assert!(matches!(story.apply(remove.clone()), Err(DirectoryError::InUse(_))));
    story.must(Command::RemoveAccount { name: name("alice@example.test") });
    story.must(remove.clone());
    assert_eq!(story.directory.domains().count(), 0);
    assert!(matches!(story.apply(remove), Err(DirectoryError::NotFound(_))));
    story.must(Command::CreateDomain { name: domain("example.test") });
    let again = Command::CreateDomain { name: domain("EXAMPLE.test") };
    assert!(matches!(story.apply(again), Err(DirectoryError::AlreadyExists(_))));
}

#[test]
fn a_listing_turns_pages_and_follows_a_prefix() {
    let mut story = Story::begin();
    story.must(Command::CreateDomain { name: domain("second.test") });
    for local in ["bea", "adam", "anna", "ann", "zoe", "anton"] {
        story.account(&format!("{local}@example.test"));
    }
    story.account("ann@second.test");
    let list = |directory: &Directory, prefix: &str, limit| {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let page = directory.accounts_page(&domain("example.test"), prefix, after.as_deref(), limit);
            pages.push(page.accounts.iter().map(|it| it.name.local()).collect::<Vec<_>>().join(" "));
            after = page.next;
            if after.is_none() {
                return pages;
            }
        }
    };
    assert_eq!(list(&story.directory, "", 4), ["adam ann anna anton", "bea zoe"]);
    assert_eq!(list(&story.directory, "an", 2), ["ann anna", "anton"]);
    assert_eq!(list(&story.directory, "ann", 2), ["ann anna"]);
    assert_eq!(list(&story.directory, "x", 2), [""]);
    assert_eq!(list(&story.directory, "", 0).len(), 6, "a page has one account at least");
    assert_eq!(list(&story.directory, "", ACCOUNTS_PAGE_MAX + 1).len(), 1);
    let other = story.directory.accounts_page(&domain("second.test"), "a", Some("ann"), 9);
    assert!(other.accounts.is_empty() && other.next.is_none());
}

#[test]
fn no_password_hash_is_ever_shown() {
    let mut story = Story::begin();
    let command = Command::CreateAccount { account: new_account("alice@example.test"), unix_s: 1 };
    assert!(!format!("{command:?}").contains("argon2id"));
    let reply = story.apply(command);
    let shown = format!("{reply:?} {:?} {:?}", story.directory, story.directory.account(&name("alice@example.test")));
    assert!(!shown.contains("argon2id"));
}
