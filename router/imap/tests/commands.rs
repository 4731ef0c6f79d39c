//! Each command as octets and as the value that it becomes.

mod common;

use common::{body, one};
use imap::command::{
    BodySection, Fetch, FetchItem, List, ListReturn, ListSelection, Partial, Search, SearchCharset, SearchKey,
    SectionName, SectionText, StatusItem, Store, StoreAction, UnknownUse,
};
use imap::{CommandBody, Event, Limits, MailboxArg, Secret, SequenceSet};
use types::{Flags, Keyword, ModSeq, SpecialUse, SystemFlags};

fn set(text: &str) -> SequenceSet {
    SequenceSet::parse(text.as_bytes()).unwrap()
}

fn mailbox(name: &str) -> MailboxArg {
    MailboxArg::decode(imap::utf7::encode(name).as_bytes()).unwrap()
}

#[test]
fn commands_without_arguments_are_known_in_any_case() {
    for (text, expected) in [
        ("CAPABILITY", CommandBody::Capability),
        ("noop", CommandBody::Noop),
        ("LogOut", CommandBody::Logout),
        ("STARTTLS", CommandBody::StartTls),
        ("NAMESPACE", CommandBody::Namespace),
        ("IDLE", CommandBody::Idle),
        ("CHECK", CommandBody::Check),
        ("CLOSE", CommandBody::Close),
        ("UNSELECT", CommandBody::Unselect),
        ("EXPUNGE", CommandBody::Expunge),
        ("NOOP ", CommandBody::Noop),
    ] {
        assert_eq!(body(text), expected);
    }
}

#[test]
fn login_takes_atoms_quoted_strings_and_literals() {
    let login = |user: &str, password: &str| CommandBody::Login {
        user: user.as_bytes().to_vec(),
        password: Secret::new(password.as_bytes().to_vec()),
    };
    assert_eq!(body("LOGIN alice secret]"), login("alice", "secret]"));
    assert_eq!(body(r#"LOGIN "a b" "c\"\\d""#), login("a b", r#"c"\d"#));
    assert_eq!(body("LOGIN {5+}\r\nalice {6+}\r\na\r\n {}"), login("alice", "a\r\n {}"));
    assert_eq!(body("LOGIN alice pässwort".replace("pässwort", "\"pässwort\"").as_str()), login("alice", "pässwort"));
    assert!(!format!("{:?}", body("LOGIN alice secret")).contains("secret"));
}

#[test]
fn authenticate_takes_an_initial_response() {
    let authenticate = |initial: Option<&str>| CommandBody::Authenticate {
        mechanism: "PLAIN".to_owned(),
        initial: initial.map(|text| Secret::new(text.as_bytes().to_vec())),
    };
    assert_eq!(body("AUTHENTICATE plain"), authenticate(None));
    assert_eq!(body("AUTHENTICATE PLAIN ="), authenticate(Some("")));
    assert_eq!(body("AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA=="), authenticate(Some("\0alice\0secret")));
    assert!(matches!(one("a AUTHENTICATE PLAIN !!!"), Event::Bad { tag: Some(_), .. }));
}

#[test]
fn id_and_enable_carry_their_lists() {
    assert_eq!(body("ID NIL"), CommandBody::Id(Vec::new()));
    assert_eq!(body("ID ()"), CommandBody::Id(Vec::new()));
    assert_eq!(
        body(r#"ID ("name" "mutt" "os" NIL)"#),
        CommandBody::Id(vec![("name".to_owned(), Some("mutt".to_owned())), ("os".to_owned(), None)])
    );
    assert_eq!(body("ENABLE condstore FOO"), CommandBody::Enable(vec!["CONDSTORE".to_owned(), "FOO".to_owned()]));
}

#[test]
fn select_and_examine_take_condstore() {
    assert_eq!(body("SELECT inbox"), CommandBody::Select { mailbox: mailbox("inbox"), condstore: false });
    assert_eq!(body("SELECT a (CONDSTORE)"), CommandBody::Select { mailbox: mailbox("a"), condstore: true });
    assert_eq!(body("EXAMINE \"a b\""), CommandBody::Examine { mailbox: mailbox("a b"), condstore: false });
    assert!(mailbox("inBox").is_inbox());
}

#[test]
fn mailbox_names_are_decoded_and_left_for_the_session_to_judge() {
    assert_eq!(body("DELETE Entw&APw-rfe"), CommandBody::Delete(mailbox("Entwürfe")));
    assert_eq!(body("SUBSCRIBE a&-b"), CommandBody::Subscribe(mailbox("a&b")));
    assert_eq!(body("UNSUBSCRIBE \"\""), CommandBody::Unsubscribe(mailbox("")));
    assert_eq!(body("RENAME a b"), CommandBody::Rename { from: mailbox("a"), to: mailbox("b") });
    for refused in ["../../x", "/etc/x", "", "a\r\nb", "a\0b"] {
        assert!(mailbox(refused).name().is_err(), "{refused:?}");
    }
    let CommandBody::Delete(long) = body(&format!("DELETE {}", "x".repeat(10_000))) else { panic!() };
    assert!(long.name().is_err());
}

#[test]
fn create_takes_special_uses_and_a_trailing_separator() {
    let create = |name: &str, special_uses| CommandBody::Create { mailbox: mailbox(name), special_uses };
    assert_eq!(body("CREATE a"), create("a", Ok(Vec::new())));
    assert_eq!(
        body(r"CREATE a (USE (\Sent \drafts \Sent))"),
        create("a", Ok(vec![SpecialUse::Sent, SpecialUse::Drafts]))
    );
    assert_eq!(body(r"CREATE a (USE ())"), create("a", Ok(Vec::new())));
    assert_eq!(body(r"CREATE a (USE (\Sent \Foo \Junk))"), create("a", Err(UnknownUse)));
    assert_eq!(mailbox("a/b/").name_to_create().unwrap().as_str(), "a/b");
    assert!(mailbox("/").name_to_create().is_err());
}

#[test]
fn list_takes_the_options_of_special_use() {
    let list = |reference: &str, pattern: &str| List {
        selection: Vec::new(),
        reference: reference.to_owned(),
        patterns: vec![pattern.to_owned()],
        returns: Vec::new(),
    };
    assert_eq!(body(r#"LIST "" """#), CommandBody::List(list("", "")));
    assert_eq!(body(r#"LIST "" *"#), CommandBody::List(list("", "*")));
    assert_eq!(body(r#"LIST a/ Entw&APw-%/[x]"#), CommandBody::List(list("a/", "Entwü%/[x]")));
    assert_eq!(
        body(r#"LIST (SPECIAL-USE) "" "%" RETURN (SPECIAL-USE CHILDREN SUBSCRIBED)"#),
        CommandBody::List(List {
            selection: vec![ListSelection::SpecialUse],
            returns: vec![ListReturn::SpecialUse, ListReturn::Children, ListReturn::Subscribed],
            ..list("", "%")
        })
    );
    assert_eq!(body(r#"LIST () "" % RETURN ()"#), CommandBody::List(list("", "%")));
    assert_eq!(body(r#"LSUB "" "a*""#), CommandBody::Lsub { reference: String::new(), pattern: "a*".to_owned() });
}

#[test]
fn status_items_come_once_each() {
    assert_eq!(
        body("STATUS a (MESSAGES RECENT UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ messages)"),
        CommandBody::Status {
            mailbox: mailbox("a"),
            items: vec![
                StatusItem::Messages,
                StatusItem::Recent,
                StatusItem::UidNext,
                StatusItem::UidValidity,
                StatusItem::Unseen,
                StatusItem::HighestModSeq,
            ],
        }
    );
}

#[test]
fn commands_on_messages_name_them_by_number_or_uid() {
    assert_eq!(body("COPY 1:* a"), CommandBody::Copy { uid: false, set: set("1:*"), mailbox: mailbox("a") });
    assert_eq!(body("uid move 3,*:7 a"), CommandBody::Move { uid: true, set: set("3,*:7"), mailbox: mailbox("a") });
    assert_eq!(body("UID EXPUNGE 1:3"), CommandBody::UidExpunge(set("1:3")));
}

fn fetch_items(text: &str) -> Vec<FetchItem> {
    match body(&format!("FETCH 1 {text}")) {
        CommandBody::Fetch(fetch) => fetch.items,
        other => panic!("{other:?}"),
    }
}

fn section(text: &str) -> BodySection {
    match fetch_items(text).as_slice() {
        [FetchItem::Section(section)] => section.clone(),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn fetch_macros_are_written_out() {
    let fast = vec![FetchItem::Flags, FetchItem::InternalDate, FetchItem::Rfc822Size];
    assert_eq!(fetch_items("FAST"), fast);
    assert_eq!(fetch_items("all"), [&fast[..], &[FetchItem::Envelope]].concat());
    assert_eq!(fetch_items("FULL"), [&fast[..], &[FetchItem::Envelope, FetchItem::Body]].concat());
}

#[test]
fn fetch_items_come_once_each() {
    assert_eq!(
        fetch_items("(UID FLAGS flags ENVELOPE BODY BODYSTRUCTURE MODSEQ INTERNALDATE RFC822.SIZE)"),
        [
            FetchItem::Uid,
            FetchItem::Flags,
            FetchItem::Envelope,
            FetchItem::Body,
            FetchItem::BodyStructure,
            FetchItem::ModSeq,
            FetchItem::InternalDate,
            FetchItem::Rfc822Size,
        ]
    );
    assert_eq!(
        body("UID FETCH 2:* FLAGS (CHANGEDSINCE 12)"),
        CommandBody::Fetch(Fetch {
            uid: true,
            set: set("2:*"),
            items: vec![FetchItem::Flags],
            changed_since: Some(ModSeq(12)),
        })
    );
}

#[test]
fn sections_are_read_with_part_text_and_partial() {
    let whole =
        BodySection { name: SectionName::Body, part: Vec::new(), text: SectionText::All, partial: None, peek: false };
    assert_eq!(section("BODY[]"), whole);
    assert_eq!(section("body.peek[text]"), BodySection { text: SectionText::Text, peek: true, ..whole.clone() });
    assert_eq!(section("BODY[99.99]"), BodySection { part: vec![99, 99], ..whole.clone() });
    assert_eq!(
        section("BODY[1.2.MIME]<0.1024>"),
        BodySection {
            part: vec![1, 2],
            text: SectionText::Mime,
            partial: Some(Partial { offset: 0, octets_max: 1024 }),
            ..whole.clone()
        }
    );
    let fields = vec!["Subject".to_owned(), "X-Y".to_owned()];
    assert_eq!(
        section("BODY[HEADER.FIELDS (Subject \"X-Y\")]"),
        BodySection { text: SectionText::HeaderFields(fields.clone()), ..whole.clone() }
    );
    assert_eq!(
        section("BODY[3.header.fields.not (Subject X-Y)]"),
        BodySection { part: vec![3], text: SectionText::HeaderFieldsNot(fields), ..whole.clone() }
    );
    assert_eq!(section("RFC822"), BodySection { name: SectionName::Rfc822, ..whole.clone() });
    assert_eq!(
        section("RFC822.HEADER"),
        BodySection { name: SectionName::Rfc822Header, text: SectionText::Header, peek: true, ..whole.clone() }
    );
    assert_eq!(section("RFC822.TEXT"), BodySection { name: SectionName::Rfc822Text, text: SectionText::Text, ..whole });
}

#[test]
fn store_adds_removes_and_replaces_flags() {
    let mut flags = Flags::system(SystemFlags::SEEN);
    flags.insert_keyword(Keyword::parse("$Junk").unwrap());
    let store = Store {
        uid: false,
        set: set("1"),
        unchanged_since: None,
        action: StoreAction::Add,
        silent: false,
        flags: flags.clone(),
    };
    assert_eq!(body(r"STORE 1 +FLAGS (\Seen $Junk)"), CommandBody::Store(store.clone()));
    assert_eq!(body(r"STORE 1 +flags \seen $junk"), CommandBody::Store(store.clone()));
    assert_eq!(
        body(r"UID STORE 1 (UNCHANGEDSINCE 0) -FLAGS.SILENT (\Seen $Junk)"),
        CommandBody::Store(Store {
            uid: true,
            unchanged_since: Some(ModSeq(0)),
            action: StoreAction::Remove,
            silent: true,
            ..store.clone()
        })
    );
    assert_eq!(
        body("STORE 1 FLAGS ()"),
        CommandBody::Store(Store { action: StoreAction::Replace, flags: Flags::default(), ..store })
    );
}

fn search(text: &str) -> SearchKey {
    match body(&format!("SEARCH {text}")) {
        CommandBody::Search(search) => search.key,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_search_key_is_known() {
    let text = |s: &str| s.to_owned();
    for (wire, key) in [
        ("ALL", SearchKey::All),
        ("ANSWERED", SearchKey::Has(SystemFlags::ANSWERED)),
        ("DELETED", SearchKey::Has(SystemFlags::DELETED)),
        ("DRAFT", SearchKey::Has(SystemFlags::DRAFT)),
        ("FLAGGED", SearchKey::Has(SystemFlags::FLAGGED)),
        ("SEEN", SearchKey::Has(SystemFlags::SEEN)),
        ("UNANSWERED", SearchKey::Lacks(SystemFlags::ANSWERED)),
        ("UNDELETED", SearchKey::Lacks(SystemFlags::DELETED)),
        ("UNDRAFT", SearchKey::Lacks(SystemFlags::DRAFT)),
        ("UNFLAGGED", SearchKey::Lacks(SystemFlags::FLAGGED)),
        ("unseen", SearchKey::Lacks(SystemFlags::SEEN)),
        ("RECENT", SearchKey::Recent),
        ("NEW", SearchKey::New),
        ("OLD", SearchKey::Old),
        ("KEYWORD $Junk", SearchKey::Keyword(Keyword::parse("$Junk").unwrap())),
        ("UNKEYWORD $Junk", SearchKey::Unkeyword(Keyword::parse("$Junk").unwrap())),
        ("BCC x", SearchKey::Bcc(text("x"))),
        ("BODY \"x y\"", SearchKey::Body(text("x y"))),
        ("CC {1+}\r\nx", SearchKey::Cc(text("x"))),
        ("FROM x", SearchKey::From(text("x"))),
        ("SUBJECT x", SearchKey::Subject(text("x"))),
        ("TEXT x", SearchKey::Text(text("x"))),
        ("TO x", SearchKey::To(text("x"))),
        ("HEADER X-Y \"\"", SearchKey::Header { field: text("X-Y"), value: String::new() }),
        ("BEFORE 2-Jan-1970", SearchKey::Before(1)),
        ("ON \"02-Jan-1970\"", SearchKey::On(1)),
        ("SINCE 31-dec-1969", SearchKey::Since(-1)),
        ("SENTBEFORE 1-Jan-1970", SearchKey::SentBefore(0)),
        ("SENTON 1-Jan-1970", SearchKey::SentOn(0)),
        ("SENTSINCE 1-Jan-1970", SearchKey::SentSince(0)),
        ("LARGER 100", SearchKey::Larger(100)),
        ("SMALLER 4294967296", SearchKey::Smaller(1 << 32)),
        ("1:5,*", SearchKey::SequenceSet(set("1:5,*"))),
        ("*", SearchKey::SequenceSet(set("*"))),
        ("UID 7", SearchKey::Uid(set("7"))),
        ("MODSEQ 620", SearchKey::ModSeq { entry: None, at_least: ModSeq(620) }),
        (
            r#"MODSEQ "/flags/\\draft" all 620"#,
            SearchKey::ModSeq { entry: Some(text(r"/flags/\draft")), at_least: ModSeq(620) },
        ),
    ] {
        assert_eq!(search(wire), key, "{wire}");
    }
}

#[test]
fn search_keys_nest() {
    let (seen, new) = (SearchKey::Has(SystemFlags::SEEN), SearchKey::New);
    assert_eq!(search("SEEN NEW"), SearchKey::And(vec![seen.clone(), new.clone()]));
    assert_eq!(search("(SEEN NEW)"), SearchKey::And(vec![seen.clone(), new.clone()]));
    assert_eq!(search("NOT (SEEN)"), SearchKey::Not(Box::new(seen.clone())));
    assert_eq!(
        search("OR NOT SEEN (NEW MODSEQ 1)"),
        SearchKey::Or(
            Box::new(SearchKey::Not(Box::new(seen))),
            Box::new(SearchKey::And(vec![new, SearchKey::ModSeq { entry: None, at_least: ModSeq(1) }]))
        )
    );
    assert!(search("OR ALL NOT (NEW MODSEQ 1)").names_modseq());
    assert!(!search("OR ALL NEW").names_modseq());
}

#[test]
fn search_strings_are_utf_8_unless_the_charset_is_unknown() {
    let searched = |text: &str| match body(text) {
        CommandBody::Search(search) => search,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        searched("UID SEARCH CHARSET utf-8 SUBJECT {3+}\r\n€"),
        Search { uid: true, charset: SearchCharset::Utf8, key: SearchKey::Subject("€".to_owned()) }
    );
    assert_eq!(searched("SEARCH CHARSET \"US-ASCII\" ALL").charset, SearchCharset::UsAscii);
    assert_eq!(searched("SEARCH CHARSET KOI8-R ALL").charset, SearchCharset::Unsupported);
    let latin = |charset: &str| {
        let wire = [charset.as_bytes(), b" TEXT {1+}\r\n\xfc\r\n"].concat();
        common::answers(Limits::AFTER_LOGIN, &wire)
    };
    assert_eq!(latin("a SEARCH CHARSET ISO-8859-1"), ["a command"]);
    assert_eq!(latin("a SEARCH CHARSET UTF-8"), ["a BAD"]);
    assert_eq!(latin("a SEARCH"), ["a BAD"]);
}
