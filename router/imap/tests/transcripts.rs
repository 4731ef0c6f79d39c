//! Conversations in octets: what the client sends, what the decoder says, what the session then writes.

mod common;

use bytes::{Bytes, BytesMut};
use imap::command::{FetchItem, StatusItem};
use imap::encode::{self, Code, FetchWriter, MailboxAttribute, Status};
use imap::{CommandBody, Decoder, Event, Limits, SaslResponse, Tag, View};
use types::{Flags, InternalDate, ModSeq, SpecialUse, SystemFlags, Uid, UidSet, UidValidity};

fn written(put: impl FnOnce(&mut BytesMut)) -> String {
    let mut out = BytesMut::new();
    put(&mut out);
    String::from_utf8(out.to_vec()).unwrap()
}

fn tag() -> Tag {
    Tag::parse(b"A7").unwrap()
}

#[test]
fn pipelined_commands_come_one_at_a_time_and_leave_the_rest_alone() {
    let mut decoder = Decoder::new(Limits::BEFORE_LOGIN);
    let mut input = BytesMut::from(&b"a STARTTLS\r\nb LOGIN x y\r\n"[..]);
    let Some(Event::Command(command)) = decoder.decode(&mut input) else { panic!() };
    assert_eq!(command.body, CommandBody::StartTls);
    // What came in plain text must not be executed under TLS: it is still the session's to throw away.
    assert_eq!(&input[..], b"b LOGIN x y\r\n");
    input.clear();
    decoder.reset();
    assert_eq!(decoder.decode(&mut input), None);
    assert!(!decoder.is_amid_command());
}

#[test]
fn reset_forgets_half_a_command() {
    let mut decoder = Decoder::new(Limits::BEFORE_LOGIN);
    let mut input = BytesMut::from(&b"a LOGIN x "[..]);
    assert_eq!(decoder.decode(&mut input), None);
    assert!(decoder.is_amid_command());
    decoder.reset();
    input.extend_from_slice(b"b NOOP\r\n");
    assert!(matches!(decoder.decode(&mut input), Some(Event::Command(command)) if command.tag.as_str() == "b"));
}

#[test]
fn a_message_is_streamed_after_the_session_has_agreed() {
    let mut decoder = Decoder::new(Limits::AFTER_LOGIN);
    let mut input = BytesMut::from(&b"a APPEND Sent (\\Seen $X) \"17-Jul-1996 02:44:25 -0700\" {6}\r\n"[..]);
    let Some(Event::AppendStart(start)) = decoder.decode(&mut input) else { panic!() };
    assert_eq!((start.mailbox.as_str(), start.size, start.synchronising), ("Sent", 6, true));
    assert_eq!(start.flags.names().collect::<Vec<_>>(), ["\\Seen", "$X"]);
    assert_eq!(start.date, Some(InternalDate { unix_s: 837_596_665, offset_min: -420 }));
    input.extend_from_slice(b"ab");
    assert_eq!(decoder.decode(&mut input), None, "nothing goes on before the session decides");
    decoder.accept_literal();
    assert_eq!(decoder.decode(&mut input), Some(Event::Continue));
    assert_eq!(decoder.decode(&mut input), Some(Event::AppendData(Bytes::from_static(b"ab"))));
    assert_eq!(decoder.decode(&mut input), None);
    input.extend_from_slice(b"c\r\nd\r\nb NOOP\r\n");
    assert_eq!(decoder.decode(&mut input), Some(Event::AppendData(Bytes::from_static(b"c\r\nd"))));
    assert_eq!(decoder.decode(&mut input), Some(Event::AppendEnd));
    assert!(matches!(decoder.decode(&mut input), Some(Event::Command(_))));
}

#[test]
fn the_mailbox_of_append_may_be_a_literal_too() {
    let wire = b"a APPEND {9+}\r\n\"Drafts\" x {2+}\r\nhi\r\n";
    assert_eq!(common::answers(Limits::AFTER_LOGIN, wire), ["a BAD"], "an extra word");
    let wire = b"a APPEND {6+}\r\nDrafts {2+}\r\nhi\r\n";
    assert_eq!(common::answers(Limits::AFTER_LOGIN, wire), ["a append 2", "data 2", "append end"]);
    let wire = b"a append {6}\r\nDrafts () {2}\r\nhi\r\n";
    assert_eq!(common::answers(Limits::AFTER_LOGIN, wire), ["+", "a append 2", "+", "data 2", "append end"]);
}

#[test]
fn a_refused_message_is_skipped_or_never_sent() {
    let sends = b"a APPEND No {9+}\r\nx NOOP\r\n\n\r\nb NOOP\r\n";
    assert_eq!(common::answers_refusing(Limits::AFTER_LOGIN, sends), ["a append 9", "b command"]);
    let waits = b"a APPEND No {9}\r\nb NOOP\r\n";
    assert_eq!(common::answers_refusing(Limits::AFTER_LOGIN, waits), ["a append 9", "b command"]);
    assert_eq!(
        written(|out| encode::tagged(out, &tag(), Status::No, Some(Code::TryCreate), "no such mailbox")),
        "A7 NO [TRYCREATE] no such mailbox\r\n"
    );
}

#[test]
fn authenticate_goes_back_and_forth() {
    let mut decoder = Decoder::new(Limits::BEFORE_LOGIN);
    let mut input = BytesMut::from(&b"a AUTHENTICATE LOGIN\r\n"[..]);
    assert!(matches!(decoder.decode(&mut input), Some(Event::Command(_))));
    assert_eq!(written(|out| encode::challenge(out, b"User Name")), "+ VXNlciBOYW1l\r\n");
    assert_eq!(written(|out| encode::challenge(out, b"")), "+ \r\n");
    for (line, octets) in [("YWxpY2U=\r\n", "alice"), ("c2VjcmV0\r\n", "secret")] {
        decoder.expect_sasl_response();
        input.extend_from_slice(line.as_bytes());
        let Some(Event::AuthenticateLine(SaslResponse::Data(secret))) = decoder.decode(&mut input) else { panic!() };
        assert_eq!(secret.expose(), octets.as_bytes());
    }
    input.extend_from_slice(b"b NOOP\r\n");
    assert!(matches!(decoder.decode(&mut input), Some(Event::Command(_))));
}

#[test]
fn a_greeting_and_a_farewell() {
    assert_eq!(
        written(|out| encode::greeting(out, "IMAP4rev1 IDLE", "mailring ready")),
        "* OK [CAPABILITY IMAP4rev1 IDLE] mailring ready\r\n"
    );
    assert_eq!(written(|out| encode::bye(out, None, "logging out")), "* BYE logging out\r\n");
    assert_eq!(written(|out| encode::capability(out, "IMAP4rev1 ID")), "* CAPABILITY IMAP4rev1 ID\r\n");
    assert_eq!(written(|out| encode::bye(out, Some(Code::Alert), "a\r\n* OK b")), "* BYE [ALERT] a??* OK b\r\n");
    assert_eq!(written(|out| encode::continuation(out, "go on")), "+ go on\r\n");
}

#[test]
fn selecting_a_mailbox() {
    let flags = Flags::system(SystemFlags::ALL);
    let told = written(|out| {
        encode::flags(out, &flags);
        encode::exists(out, 172);
        encode::recent(out, 1);
        let unseen = Some(Code::Unseen(12));
        encode::untagged(out, Status::Ok, unseen, "first unseen");
        let validity = Some(Code::UidValidity(UidValidity(3_857_529_045)));
        encode::untagged(out, Status::Ok, validity, "valid");
        encode::untagged(out, Status::Ok, Some(Code::UidNext(Uid(4_392))), "next");
        let permanent = Code::PermanentFlags { flags: &Flags::system(SystemFlags::SEEN), new_keywords: true };
        encode::untagged(out, Status::Ok, Some(permanent), "limited");
        encode::untagged(out, Status::Ok, Some(Code::HighestModSeq(ModSeq(715_194_045_007))), "highest");
        encode::tagged(out, &tag(), Status::Ok, Some(Code::ReadWrite), "SELECT completed");
    });
    assert_eq!(
        told,
        "* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)\r\n* 172 EXISTS\r\n* 1 RECENT\r\n\
         * OK [UNSEEN 12] first unseen\r\n* OK [UIDVALIDITY 3857529045] valid\r\n* OK [UIDNEXT 4392] next\r\n\
         * OK [PERMANENTFLAGS (\\Seen \\*)] limited\r\n* OK [HIGHESTMODSEQ 715194045007] highest\r\n\
         A7 OK [READ-WRITE] SELECT completed\r\n"
    );
}

#[test]
fn listing_mailboxes_and_their_sizes() {
    let attributes = [MailboxAttribute::HasNoChildren, MailboxAttribute::SpecialUse(SpecialUse::Drafts)];
    assert_eq!(
        written(|out| encode::list(out, &attributes, "Entwürfe")),
        "* LIST (\\HasNoChildren \\Drafts) \"/\" \"Entw&APw-rfe\"\r\n"
    );
    assert_eq!(
        written(|out| encode::list(out, &[MailboxAttribute::NoSelect], "")),
        "* LIST (\\Noselect) \"/\" \"\"\r\n"
    );
    assert_eq!(written(|out| encode::lsub(out, &[], "a\r\n* BYE")), "* LSUB () \"/\" \"a&AA0ACg-* BYE\"\r\n");
    assert_eq!(
        written(|out| encode::status_of_mailbox(
            out,
            "a",
            &[(StatusItem::Messages, 231), (StatusItem::UidNext, 44_292), (StatusItem::HighestModSeq, 7)]
        )),
        "* STATUS \"a\" (MESSAGES 231 UIDNEXT 44292 HIGHESTMODSEQ 7)\r\n"
    );
    assert_eq!(written(encode::namespace), "* NAMESPACE ((\"\" \"/\")) NIL NIL\r\n");
    assert_eq!(
        written(|out| encode::id(out, &[("name", Some("mailring")), ("vendor", None)])),
        "* ID (\"name\" \"mailring\" \"vendor\" NIL)\r\n"
    );
    assert_eq!(written(|out| encode::id(out, &[])), "* ID NIL\r\n");
    assert_eq!(written(|out| encode::enabled(out, ["CONDSTORE"])), "* ENABLED CONDSTORE\r\n");
    assert_eq!(written(|out| encode::enabled(out, [])), "* ENABLED\r\n");
}

#[test]
fn a_fetch_response_leaves_room_for_a_streamed_body() {
    let CommandBody::Fetch(fetch) =
        common::body("FETCH 2 (BODY.PEEK[1.HEADER.FIELDS (Subject \"a(b\")]<3.10> RFC822.TEXT BODY[9])")
    else {
        panic!()
    };
    let sections: Vec<_> = fetch
        .items
        .iter()
        .filter_map(|item| if let FetchItem::Section(section) = item { Some(section) } else { None })
        .collect();
    let told = written(|out| {
        let mut writer = FetchWriter::new(out, 2);
        writer.uid(out, Uid(7));
        writer.flags(out, &Flags::system(SystemFlags::SEEN), true);
        writer.internal_date(out, InternalDate::utc(0));
        writer.rfc822_size(out, 44_827);
        writer.modseq(out, ModSeq(12));
        writer.envelope(out, b"(NIL)");
        writer.body(out, b"(\"TEXT\")");
        writer.body_structure(out, b"(\"TEXT\")");
        writer.section_literal(out, sections[0], 4);
        out.extend_from_slice(b"abcd");
        writer.section_literal(out, sections[1], 0);
        writer.section_nil(out, sections[2]);
        writer.finish(out);
    });
    assert_eq!(
        told,
        "* 2 FETCH (UID 7 FLAGS (\\Seen \\Recent) INTERNALDATE \" 1-Jan-1970 00:00:00 +0000\" RFC822.SIZE 44827 \
         MODSEQ (12) ENVELOPE (NIL) BODY (\"TEXT\") BODYSTRUCTURE (\"TEXT\") \
         BODY[1.HEADER.FIELDS (Subject \"a(b\")]<3> {4}\r\nabcd RFC822.TEXT {0}\r\n BODY[9] NIL)\r\n"
    );
}

#[test]
fn expunges_searches_and_the_codes_of_uidplus() {
    let mut view = View::new(UidSet::from_range(1, 8), UidSet::new());
    let gone = view.expunge(&[3u32, 4, 8].into_iter().collect());
    assert_eq!(
        written(|out| gone.in_order_of_writing().for_each(|seq| encode::expunge(out, seq))),
        "* 8 EXPUNGE\r\n* 4 EXPUNGE\r\n* 3 EXPUNGE\r\n"
    );
    assert_eq!(written(|out| encode::search(out, [2, 84], None)), "* SEARCH 2 84\r\n");
    assert_eq!(written(|out| encode::search(out, [], None)), "* SEARCH\r\n");
    assert_eq!(written(|out| encode::search(out, [2], Some(ModSeq(9)))), "* SEARCH 2 (MODSEQ 9)\r\n");
    let (from, to) = (UidSet::from_range(304, 319), UidSet::from_range(3_956, 3_971));
    let copied = Code::CopyUid { validity: UidValidity(38), from: &from, to: &to };
    assert_eq!(
        written(|out| encode::tagged(out, &tag(), Status::Ok, Some(copied), "done")),
        "A7 OK [COPYUID 38 304:319 3956:3971] done\r\n"
    );
    let appended = Code::AppendUid { validity: UidValidity(38), uids: &UidSet::from_range(3_955, 3_955) };
    assert_eq!(
        written(|out| encode::tagged(out, &tag(), Status::Ok, Some(appended), "done")),
        "A7 OK [APPENDUID 38 3955] done\r\n"
    );
    let modified = [7u32, 9].into_iter().collect();
    assert_eq!(
        written(|out| encode::tagged(out, &tag(), Status::Ok, Some(Code::Modified(&modified)), "partly")),
        "A7 OK [MODIFIED 7,9] partly\r\n"
    );
}
