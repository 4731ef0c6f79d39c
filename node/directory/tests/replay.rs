//! The state is the same whichever way it came: by commands, from disk, over the stream of changes.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Story, domain, hash, name, new_account, new_node, once};
use directory::{
    Change, Command, Directory, DirectoryError, MoveStage, NewNode, NodeState, QuotaChange, RebalanceState,
    RecipientError, Start,
};
use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};
use proptest::{collection, option, sample, test_runner::Config};
use types::{AccountId, AccountName, DomainName, NodeId, ShardId};

/// So few names that commands often meet what earlier ones made.
fn names() -> impl Strategy<Value = AccountName> {
    let local = sample::select(vec!["alice", "bob", "carol", "sales", "all", "postmaster", "*"]);
    (local, domains()).prop_map(|(local, domain)| AccountName::new(local, &domain).unwrap())
}

fn domains() -> impl Strategy<Value = DomainName> {
    sample::select(vec!["a.test", "b.test", "ä.test"]).prop_map(domain)
}

fn node_ids() -> impl Strategy<Value = NodeId> + Clone {
    (1u64..7).prop_map(NodeId)
}

/// As it is, none, or one of few, so that what is set is now and then what was.
fn limits() -> impl Strategy<Value = Option<Option<u64>>> {
    option::of(option::of(sample::select(vec![0, 1, u64::MAX])))
}

/// A third of them as requests, under so few ids and over so long a time that some come again and some are forgotten.
fn commands() -> impl Strategy<Value = Command> {
    prop_oneof![
        2 => plain_commands(),
        1 => (1u128..30, 0u64..3_000_000, plain_commands()).prop_map(|(id, unix_ms, command)| once(id, unix_ms, command)),
    ]
}

fn plain_commands() -> impl Strategy<Value = Command> {
    let unix_s = any::<u64>();
    let states = sample::select(vec![NodeState::Active, NodeState::Draining, NodeState::Removed]);
    let node = (1u64..7, 1u64..7, 0u32..4)
        .prop_map(|(id, number, weight)| Command::RegisterNode(NewNode { id: NodeId(id), weight, ..new_node(number) }));
    let stages = sample::select(vec![MoveStage::Copying, MoveStage::Switched, MoveStage::Undone]);
    let wanted = collection::vec(node_ids(), 0..4);
    let lists = collection::btree_map((0u32..18).prop_map(ShardId), wanted, 0..3);
    let shards = collection::vec((0u32..17).prop_map(ShardId), 0..4);
    let rebalance_states = sample::select(vec![
        RebalanceState::Running,
        RebalanceState::Paused,
        RebalanceState::Finished,
        RebalanceState::Aborted,
    ]);
    prop_oneof![
        4 => domains().prop_map(|name| Command::CreateDomain { name }),
        1 => domains().prop_map(|name| Command::RemoveDomain { name }),
        6 => (names(), unix_s).prop_map(|(name, unix_s)| Command::CreateAccount {
            account: new_account(name.as_str()),
            unix_s,
        }),
        2 => (collection::vec(names(), 0..6), unix_s).prop_map(|(names, unix_s)| Command::CreateAccounts {
            accounts: names.iter().map(|name| new_account(name.as_str())).collect(),
            unix_s,
        }),
        2 => names().prop_map(|name| Command::RemoveAccount { name }),
        1 => (names(), 0u8..3).prop_map(|(name, salt)| Command::SetPassword {
            name,
            password_hash: hash(&salt.to_string()),
        }),
        1 => (names(), any::<bool>()).prop_map(|(name, enabled)| Command::SetEnabled { name, enabled }),
        1 => (names(), limits(), limits()).prop_map(|(name, octets, messages)| Command::SetQuota {
            name,
            change: QuotaChange { octets, messages },
        }),
        3 => (names(), 0u32..18).prop_map(|(name, shard)| Command::StartAccountMove { name, to: ShardId(shard) }),
        1 => names().prop_map(|name| Command::AbortAccountMove { name }),
        3 => (0u64..8, 0u64..120, option::of(stages)).prop_map(|(account, id, stage)| Command::StepAccountMove {
            account: AccountId(account),
            id,
            stage,
        }),
        5 => (names(), collection::vec(names(), 0..4)).prop_map(|(name, targets)| Command::CreateAlias { name, targets }),
        2 => names().prop_map(|name| Command::RemoveAlias { name }),
        1 => option::of(names()).prop_map(|account| Command::SetPostmaster { account }),
        2 => node,
        1 => (node_ids(), 0u16..9).prop_map(|(id, port)| Command::UpdateNodeAddress { id, address: format!("h:{port}") }),
        2 => (node_ids(), states).prop_map(|(id, state)| Command::SetNodeState { id, state }),
        1 => (node_ids(), any::<bool>()).prop_map(|(id, voter)| Command::SetNodeVoter { id, voter }),
        1 => (node_ids(), 1u8..4, 0u32..4)
            .prop_map(|(id, zone, weight)| Command::UpdateNode { id, zone: format!("zone-{zone}"), weight }),
        1 => (node_ids(), 0u32..4).prop_map(|(id, format)| Command::NoteNodeStart {
            id,
            before: Start::default(),
            now: Start::default(),
            format,
        }),
        1 => (0u32..4).prop_map(|format| Command::SetFormat { format }),
        3 => lists.clone().prop_map(|wanted| Command::SetPlacements { wanted }),
        3 => (lists.clone(), any::<bool>(), any::<(u64, u64)>()).prop_map(|(targets, replace, (unix_s, octets))| {
            Command::StartRebalance { targets, replace, unix_s, octets }
        }),
        1 => (node_ids(), lists, any::<(u64, u64)>())
            .prop_map(|(id, targets, (unix_s, octets))| Command::GiveUpNode { id, targets, unix_s, octets }),
        1 => rebalance_states.prop_map(|state| Command::SetRebalanceState { state }),
        2 => shards.clone().prop_map(|shards| Command::BeginMoves { shards }),
        1 => collection::btree_map((0u32..18).prop_map(ShardId), node_ids(), 0..4)
            .prop_map(|leaders| Command::PreferLeaders { leaders }),
        2 => (shards, option::of(0u64..120)).prop_map(|(shards, seen)| Command::EndMoves { shards, seen }),
        2 => (0u32..18).prop_map(|shard| Command::MarkShardInitialised { shard: ShardId(shard) }),
    ]
}

proptest! {
    #![proptest_config(Config { cases: 300, failure_persistence: None, ..Config::default() })]

    #[test]
    fn disk_stream_and_commands_lead_to_the_same_state(commands in collection::vec(commands(), 1..120)) {
        let mut story = Story::begin();
        let mut replica = story.directory.clone();
        let mut mirror = story.directory.clone();
        for command in commands {
            prop_assert_eq!(&Command::decode(&command.encode().unwrap()).unwrap(), &command);
            let reply = story.apply(command.clone());
            let revision = story.directory.revision();

            let applied = replica.apply(revision, &command);
            prop_assert_eq!((&applied.reply, &applied.changes), (&reply, &story.last), "replicas differ");

            let keys: BTreeSet<&[u8]> = story.last.iter().map(|change| change.key.as_slice()).collect();
            prop_assert_eq!(keys.len(), story.last.len(), "a record changed twice");
            for change in &story.last {
                let read = Change::decode(change.key.clone(), change.value.clone()).unwrap();
                prop_assert_eq!(&read, change, "the typed form is not what the bytes say");
            }
            let streamed = story.last.iter().map(|change| (change.key.clone(), change.value.clone()));
            mirror.apply_changes(revision, streamed).unwrap();
            prop_assert_eq!(&mirror, &story.directory, "the mirror differs");
        }
        prop_assert_eq!(&story.reload().unwrap(), &story.directory, "the disk differs");
        let records: BTreeMap<Vec<u8>, Vec<u8>> =
            story.directory.records().map(|change| (change.key, change.value.unwrap())).collect();
        prop_assert_eq!(&records, &story.disk, "a snapshot differs from the disk");
        agrees_with_a_plain_search(&story.directory);
    }

    #[test]
    fn no_bytes_make_a_record_panic(
        key in collection::vec(any::<u8>(), 0..20), value in collection::vec(any::<u8>(), 0..40),
    ) {
        for kind in b"cdalnpqr" {
            let key: Vec<u8> = [&[*kind], key.as_slice()].concat();
            let _ = Change::decode(key.clone(), Some([&[1], value.as_slice()].concat()));
            let _ = Change::decode(key, None);
        }
        let _ = Change::decode(key, Some(value));
    }
}

/// The indexes against a look at every account and alias.
fn agrees_with_a_plain_search(directory: &Directory) {
    for account in directory.accounts() {
        assert_eq!(directory.account(&account.name), Some(account));
        assert_eq!(directory.resolve_recipient(&account.name), Ok(vec![account]));
    }
    for hosted in directory.domains() {
        let paged = directory.accounts_page(&hosted.name, "", None, 100).accounts;
        let mut plain: Vec<_> =
            directory.accounts().filter(|account| account.name.domain() == hosted.name.as_str()).collect();
        plain.sort_by_key(|account| account.name.local());
        assert_eq!(paged, plain);
        for alias in directory.aliases(&hosted.name) {
            assert!(!directory.resolve_recipient(&alias.name).unwrap().is_empty());
            for target in &alias.targets {
                assert!(directory.alias_sources(target).any(|source| *source == alias.name));
            }
        }
        let postmaster = AccountName::new("postmaster", &hosted.name).unwrap();
        let served = directory.resolve_recipient(&postmaster).is_ok();
        assert!(served || !plain.iter().any(|account| account.enabled), "{postmaster}");
    }
}

fn rich() -> Story {
    let mut story = Story::begin();
    story.account("alice@example.test");
    story.alias("sales@example.test", &["alice@example.test"]).unwrap();
    story.must(Command::SetPostmaster { account: Some(name("alice@example.test")) });
    story.must(Command::SetPlacements { wanted: story.directory.propose_placements() });
    story
}

fn rebalancing() -> Story {
    let mut story = rich();
    story.must(once(1, 1, Command::SetPostmaster { account: Some(name("alice@example.test")) }));
    let targets = BTreeMap::from([(ShardId(5), vec![NodeId(2)])]);
    story.must(Command::StartRebalance { targets, replace: true, unix_s: 1_800_000_000, octets: 0 });
    story
}

#[test]
fn a_damaged_record_is_an_error_that_names_its_key_and_never_absent() {
    let story = rebalancing();
    for key in story.disk.keys() {
        let shown = key.escape_ascii().to_string();
        let whole = &story.disk[key];
        let newer = [&[2], &whole[1..]].concat();
        let garbage = [&[1, 255], whole.as_slice()].concat();
        for bad in [vec![], newer, garbage] {
            let mut disk = story.disk.clone();
            disk.insert(key.clone(), bad);
            match Directory::load(disk.into_iter()) {
                Err(DirectoryError::Corrupt { key, .. }) => assert_eq!(key, shown),
                other => panic!("{shown}: {other:?}"),
            }
        }
    }
    for strange in
        [&b""[..], b"x", b"n123", b"p12", b"cx", b"rx", b"q1234", b"aALICE@example.test", b"a\xff@x", b"d.", b"anobody"]
    {
        let mut disk = story.disk.clone();
        disk.insert(strange.to_vec(), vec![1]);
        match Directory::load(disk.into_iter()) {
            Err(DirectoryError::Corrupt { key, .. }) => assert_eq!(key, strange.escape_ascii().to_string()),
            other => panic!("{strange:?}: {other:?}"),
        }
    }
}

#[test]
fn a_lost_record_that_others_lean_on_is_noticed() {
    let story = rebalancing();
    for lost in [&b"c"[..], b"dexample.test", b"aalice@example.test", b"n\0\0\0\0\0\0\0\x02", b"r"] {
        let mut disk = story.disk.clone();
        assert!(disk.remove(lost).is_some());
        let loaded = Directory::load(disk.into_iter());
        assert!(matches!(loaded, Err(DirectoryError::Corrupt { .. })), "{loaded:?}");
    }
    // Two accounts with one id.
    let mut disk = story.disk.clone();
    disk.insert(b"abob@example.test".to_vec(), disk[&b"aalice@example.test"[..]].clone());
    assert!(matches!(Directory::load(disk.into_iter()), Err(DirectoryError::Corrupt { .. })));
    assert_eq!(Directory::load(std::iter::empty()).unwrap(), Directory::default());
}

#[test]
fn a_stream_with_one_bad_record_changes_nothing() {
    let story = rich();
    let mut mirror = story.directory.clone();
    let changes = vec![(b"dnew.test".to_vec(), Some(vec![1])), (b"dother.test".to_vec(), Some(vec![9]))];
    let error = mirror.apply_changes(99, changes).unwrap_err();
    assert!(matches!(&error, DirectoryError::Corrupt { key, .. } if key == "dother.test"), "{error}");
    assert_eq!(mirror, story.directory);
}

/// Commands cannot make one, but a mirror is not to hang on what it is sent.
#[test]
fn aliases_that_form_a_loop_end_in_an_error() {
    let mut story = rich();
    story.alias("other@example.test", &["sales@example.test"]).unwrap();
    let other = story.disk[&b"lother@example.test"[..]].clone();
    let mut mirror = story.directory.clone();
    mirror.apply_changes(99, [(b"lsales@example.test".to_vec(), Some(other.clone()))]).unwrap();
    assert_eq!(mirror.resolve_recipient(&name("sales@example.test")), Err(RecipientError::Loop));
    mirror
        .apply_changes(100, [(b"aalice@example.test".to_vec(), None), (b"lsales@example.test".to_vec(), None)])
        .unwrap();
    assert_eq!(mirror.resolve_recipient(&name("other@example.test")), Err(RecipientError::UnknownUser));
}

/// The first version's records, byte for byte: a later program must read them.
#[test]
fn records_written_by_the_first_version_are_read_for_ever() {
    let mut story = rich();
    story.must(Command::set_placement(ShardId(3), vec![NodeId(2), NodeId(1)]));
    story.must(Command::MarkShardInitialised { shard: ShardId(3) });
    let first: [(&[u8], &[u8]); 6] = [
        (b"c", b"\x01\n\x10\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x10\x10\x18\x03 \x02*\x12alice@example.test"),
        (b"dexample.test", b"\x01"),
        (b"lsales@example.test", b"\x01\n\x12alice@example.test"),
        (b"n\0\0\0\0\0\0\0\x01", b"\x01\n\x05node1\x12\x0e127.0.0.1:7001\x1a\x06zone-1 \x01(\x010\x01"),
        (
            b"aalice@example.test",
            b"\x01\x08\x01\x126$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g\x18\x08 \x01(\x80\xa4\xa7\xda\x06",
        ),
        (b"p\0\0\0\x03", b"\x01\n\x10\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x10\x01\x18\x08"),
    ];
    for (key, value) in first {
        let now = story.disk.get(key).map(|now| now.escape_ascii().to_string());
        assert_eq!(now, Some(value.escape_ascii().to_string()), "{}", key.escape_ascii());
    }
}

/// And those that came with the rebalance.
#[test]
fn records_of_a_rebalance_are_read_for_ever() {
    let mut story = rich();
    let shard = ShardId(5);
    let list = |nodes: [u64; 2]| BTreeMap::from([(shard, nodes.map(NodeId).to_vec())]);
    story.must(Command::SetPlacements { wanted: list([2, 1]) });
    story.must(Command::MarkShardInitialised { shard });
    story.must(Command::StartRebalance { targets: list([2, 3]), replace: true, unix_s: 1_800_000_000, octets: 0 });
    story.must(Command::BeginMoves { shards: vec![shard] });
    story.must(Command::StartRebalance { targets: list([1, 3]), replace: false, unix_s: 1_800_000_001, octets: 0 });
    let first: [(&[u8], &[u8]); 2] = [
        (
            b"p\0\0\0\x05",
            b"\x01\n\x10\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x10\x01\x18\x0b\
              \"\x10\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0*\x10\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0",
        ),
        (b"r", b"\x01\x08\x09\x10\x01\x18\x80\xa4\xa7\xda\x06 \x02"),
    ];
    for (key, value) in first {
        let now = story.disk.get(key).map(|now| now.escape_ascii().to_string());
        assert_eq!(now, Some(value.escape_ascii().to_string()), "{}", key.escape_ascii());
    }
    assert_eq!(story.reload().unwrap(), story.directory);
}

/// As the first version wrote it, but for its first octet, which is the format in force.
fn is_as_ever(command: &Command, first: &[u8]) {
    let now = command.encode().unwrap();
    assert_eq!(now[1..].escape_ascii().to_string(), first[1..].escape_ascii().to_string());
    assert_eq!(Command::decode(first).unwrap(), *command);
}

/// And those that came with quotas: an account without one is written as before.
#[test]
fn quotas_are_read_for_ever() {
    let mut story = rich();
    let set = Command::SetQuota {
        name: name("alice@example.test"),
        change: QuotaChange { octets: Some(Some(300)), messages: Some(None) },
    };
    let written = b"\x01\xc2\x01\x1b\n\x12alice@example.test\x12\x03\x08\xac\x02\x1a\0";
    is_as_ever(&set, written);
    story.must(set);
    let change = QuotaChange { octets: None, messages: Some(Some(0)) };
    story.must(Command::SetQuota { name: name("alice@example.test"), change });
    let record = b"\x01\x08\x01\x126$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g\x18\x08 \x01(\x80\xa4\xa7\xda\x060\xac\x028\0";
    let now = &story.disk[&b"aalice@example.test"[..]];
    assert_eq!(now.escape_ascii().to_string(), record.escape_ascii().to_string());
    assert_eq!(story.reload().unwrap(), story.directory);
}

/// And what requests were answered.
#[test]
fn requests_are_read_for_ever() {
    let mut story = rich();
    let names = ["bob@example.test", "alice@example.test"];
    let accounts = names.map(new_account).to_vec();
    let add = once(0x0102, 300, Command::CreateAccounts { accounts, unix_s: 300 });
    let remove = once(0x0103, 301, Command::RemoveDomain { name: domain("b.test") });
    let written = b"\x01\x92\x03\x1f\n\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x03\x10\xad\x02\x1a\x08:\x06b.test";
    is_as_ever(&remove, written);
    story.must(add);
    assert!(story.apply(remove).is_err());
    let key = |last: u8| [&b"q\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01"[..], &[last]].concat();
    let added = b"\x01\x08\x07\x10\xac\x02\x19S\xef\xd3\xe1\x85\xa0\x18} \x03*\x04\x08\x02\x10\x06\
        * \x1a\x1e\x08\x01\x12\x1aaccount alice@example.test";
    let refused = b"\x01\x08\x08\x10\xad\x02\x19\\\x84\xd1%J\xd4\x13K \x04*\x13\x1a\x11\x08\x02\x12\rdomain b.test";
    for (last, written) in [(2, &added[..]), (3, &refused[..])] {
        let now = &story.disk[&key(last)];
        assert_eq!(now.escape_ascii().to_string(), written.escape_ascii().to_string());
    }
    assert_eq!(story.reload().unwrap(), story.directory);
}

/// So are entries of the log.
#[test]
fn commands_written_by_the_first_version_are_read_for_ever() {
    let account = Command::CreateAccount { account: new_account("alice@example.test"), unix_s: 300 };
    let targets = BTreeMap::from([(ShardId(3), vec![NodeId(1)])]);
    let shards = vec![ShardId(3), ShardId(300)];
    let first: [(Command, &[u8]); 8] = [
        (
            Command::StartRebalance { targets, replace: true, unix_s: 300, octets: 0 },
            b"\x01\x92\x01\x13\n\x0c\x08\x03\x12\x08\x01\0\0\0\0\0\0\0\x10\x01\x18\xac\x02",
        ),
        (Command::SetRebalanceState { state: RebalanceState::Paused }, b"\x01\x98\x01\x02"),
        (Command::BeginMoves { shards: shards.clone() }, b"\x01\xa2\x01\x05\n\x03\x03\xac\x02"),
        (Command::EndMoves { shards, seen: None }, b"\x01\xaa\x01\x05\n\x03\x03\xac\x02"),
        (
            Command::UpdateNode { id: NodeId(1), zone: "here".to_owned(), weight: 2 },
            b"\x01\xb2\x01\x11\t\x01\0\0\0\0\0\0\0\x12\x04here\x18\x02",
        ),
        (Command::CreateDomain { name: domain("example.test") }, b"\x012\x0cexample.test"),
        (
            account,
            b"\x01BQ\nL\n\x12alice@example.test\x126$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g\x10\xac\x02",
        ),
        (
            Command::set_placement(ShardId(3), vec![NodeId(1)]),
            b"\x01\x82\x01\x0e\n\x0c\x08\x03\x12\x08\x01\0\0\0\0\0\0\0",
        ),
    ];
    for (command, bytes) in first {
        is_as_ever(&command, bytes);
    }
}
