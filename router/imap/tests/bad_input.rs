//! Bad input and its answers: refused in one line, bounded in memory, and the next command is understood.

mod common;

use common::{answer, answers, answers_refusing, events, one};
use imap::{CommandBody, Event, Limits};

const AFTER: Limits = Limits::AFTER_LOGIN;
const BEFORE: Limits = Limits::BEFORE_LOGIN;

#[test]
fn wrong_commands_are_answered_bad_and_the_next_one_is_executed() {
    for bad in [
        "a LOGIN x",
        "a LOGIN \"x y",
        "a LOGIN \"x {3}",
        "a LOGIN x y z",
        "a LOGIN {abc} x",
        "a LOGIN {-1} x",
        "a LOGIN {-1}",
        "a LOGIN {abc}",
        "a LOGIN  x y",
        "a LOGIN \"\\x\" y",
        "a FOO",
        "a FOO {5}",
        "a",
        "a ",
        "a UID",
        "a UID FOO 1",
        "a UID NOOP",
        "a NOOP x",
        "a FETCH 0 FLAGS",
        "a FETCH 4294967296 FLAGS",
        "a FETCH 1:4294967296 FLAGS",
        "a FETCH 1 ()",
        "a FETCH 1 FOO",
        "a FETCH 1 (ALL)",
        "a FETCH 1 ALLX",
        "a FETCH 1 BODY[MIME]",
        "a FETCH 1 BODY[0]",
        "a FETCH 1 BODY[1.]",
        "a FETCH 1 BODY[1",
        "a FETCH 1 BODY[1.FOO]",
        "a FETCH 1 BODY[TEXT.1]",
        "a FETCH 1 BODY[]<0.0>",
        "a FETCH 1 BODY[]<0>",
        "a FETCH 1 BODY[]<-1.5>",
        "a FETCH 1 BODY[HEADER.FIELDS ()]",
        "a FETCH 1 BODY[HEADER.FIELDS (\"a b\")]",
        "a FETCH 1 BODY[HEADER.FIELDS (a:)]",
        "a FETCH 1 FLAGS (CHANGEDSINCE 18446744073709551616)",
        "a FETCH 1 FLAGS (CHANGEDSINCE 9223372036854775808)",
        "a FETCH 1 FLAGS (CHANGEDSINCE 0)",
        "a FETCH 1 FLAGS (CHANGEDSINCE -1)",
        "a FETCH 1 FLAGS (FOO 1)",
        "a STORE 1 FLAGS (\\Recent)",
        "a STORE 1 +FLAGS \\Foo",
        "a STORE 1 +FLAGS (\\*)",
        "a STORE 1 +FOO (\\Seen)",
        "a STORE 1 +FLAGS (a]b)",
        "a STORE 1 +FLAGS",
        "a STORE 1 (UNCHANGEDSINCE 18446744073709551616) FLAGS ()",
        "a SEARCH",
        "a SEARCH FOO",
        "a SEARCH ()",
        "a SEARCH (ALL",
        "a SEARCH ALL)",
        "a SEARCH NOT",
        "a SEARCH OR ALL",
        "a SEARCH ON 30-Feb-2000",
        "a SEARCH ON 1-Foo-2000",
        "a SEARCH SINCE \"1-Jan-20\"",
        "a SEARCH LARGER x",
        "a SEARCH MODSEQ 18446744073709551616",
        "a SEARCH MODSEQ \"x\" all 1",
        "a SEARCH 0",
        "a STATUS x ()",
        "a STATUS x (FOO)",
        "a SELECT x (FOO)",
        "a CREATE x (FOO)",
        "a LIST (FOO) \"\" *",
        "a LIST \"\" * RETURN (FOO)",
        "a CREATE a&b",
        "a CREATE &Jjo!",
        "a CREATE &AGE-",
        "a CREATE \"&AGE-\"",
        "a CREATE Entw\u{fc}rfe",
        "a CREATE \"Entw\u{fc}rfe\"",
        "a CREATE {9+}\r\nEntw\u{fc}rfe",
        "a LIST \"\" \u{fc}*",
        "a COPY 1",
        "a ID foo",
        "a ID (\"a\")",
        "a AUTHENTICATE PLAIN AAA",
        "a ENABLE",
        "a APPEND INBOX",
        "a APPEND INBOX \"text\"",
        "a LOGIN x\ry z",
        "a NOOP\r",
    ] {
        let wire = format!("{bad}\r\nb NOOP\r\n");
        assert_eq!(answers(AFTER, wire.as_bytes()), ["a BAD", "b command"], "{bad}");
    }
}

#[test]
fn a_line_without_usable_tag_is_answered_untagged() {
    for bad in ["", " ", "+ NOOP", "a+b NOOP", "a* NOOP", "(a NOOP", "\"a\" NOOP", "\u{fc} NOOP", &"t".repeat(300)] {
        let wire = format!("{bad}\r\nb NOOP\r\n");
        assert_eq!(answers(AFTER, wire.as_bytes()), ["* BAD", "b command"], "{bad}");
    }
}

#[test]
fn nul_is_refused_wherever_it_stands() {
    assert_eq!(answers(AFTER, b"a LOGIN \"x\0\" y\r\nb NOOP\r\n"), ["a BAD", "b command"]);
    assert_eq!(answers(AFTER, b"a NO\0OP\r\nb NOOP\r\n"), ["a BAD", "b command"]);
    assert_eq!(answers(AFTER, b"a LOGIN {1+}\r\n\0 y\r\nb NOOP\r\n"), ["a BAD", "b command"]);
    assert_eq!(answers(AFTER, b"a CREATE \0 {4+}\r\nx\r\n \r\nb NOOP\r\n"), ["a BAD", "b command"]);
}

#[test]
fn a_line_that_ends_in_a_bare_lf_is_not_executed() {
    assert_eq!(answers(AFTER, b"a NOOP\nb NOOP\r\n"), ["a BAD", "b command"]);
    assert_eq!(answers(AFTER, b"\nb NOOP\r\n"), ["* BAD", "b command"]);
    assert_eq!(answers(AFTER, b"a LOGIN {3+}\nb NOOP\r\n"), ["a BAD", "b command"]);
    assert_eq!(answers(AFTER, b"a LOGIN x {1+}\r\ny\nb NOOP\r\n"), ["a BAD", "b command"]);
}

#[test]
fn a_refused_literal_that_was_not_awaited_is_dropped_and_never_executed() {
    let wire = b"a FOO {10+}\r\nx NOOP\r\n\r\n {8+}\r\nz NOOP\r\n tail\r\nb NOOP\r\n";
    assert_eq!(answers(AFTER, wire), ["a BAD", "b command"]);
    // The client of a synchronising literal waits for "+" and does not get it.
    assert_eq!(answers(AFTER, b"a FOO {10}\r\nb NOOP\r\n"), ["a BAD", "b command"]);
}

#[test]
fn large_literals_before_login_are_refused_without_being_held() {
    for size in ["1048576", "4294967296", "18446744073709551616", "99999999999999999999999"] {
        let line = |tail: &str| format!("a LOGIN {{{size}{tail}}}\r\n");
        assert_eq!(answers(BEFORE, (line("") + "b NOOP\r\n").as_bytes()), ["a NO [TOOBIG]", "b command"]);
        assert_eq!(answers(BEFORE, (line("+") + "b NOOP\r\n").as_bytes()), ["* BYE"]);
        let append = format!("a APPEND INBOX {{{size}+}}\r\nb NOOP\r\n");
        assert_eq!(answers_refusing(BEFORE, append.as_bytes()).last().unwrap(), "* BYE");
    }
    assert_eq!(answers(BEFORE, b"a LOGIN {4}\r\nuser {4000}\r\n"), ["+", "+"]);
    assert_eq!(answers(BEFORE, b"a LOGIN {4000}\r\n"), ["+"]);
    let sum = format!("a LOGIN {{4000+}}\r\n{} {{200}}\r\nb NOOP\r\n", "x".repeat(4_000));
    assert_eq!(answers(BEFORE, sum.as_bytes()), ["a NO [TOOBIG]", "b command"]);
}

#[test]
fn a_small_literal_over_the_limit_is_drained() {
    let wire = format!("a LOGIN {{5000+}}\r\n{} x\r\nb NOOP\r\n", "x".repeat(5_000));
    assert_eq!(answers(BEFORE, wire.as_bytes()), ["a NO [TOOBIG]", "b command"]);
}

#[test]
fn thousands_of_tiny_literals_before_login_end_in_refusal() {
    let wire = format!("a LOGIN {}\r\nb NOOP\r\n", "{1+}\r\nx ".repeat(2_000));
    assert_eq!(answers(BEFORE, wire.as_bytes()), ["a BAD", "b command"]);
    let endless = format!("a LOGIN {}", "{1+}\r\nx ".repeat(20_000));
    assert_eq!(answers(BEFORE, endless.as_bytes()), ["a BAD", "* BYE"]);
    let awaited = format!("a LOGIN {}", "{1}\r\nx ".repeat(8) + "{1}\r\nb NOOP\r\n");
    assert_eq!(answers(BEFORE, awaited.as_bytes()).split_off(8), ["a BAD", "b command"]);
}

#[test]
fn endless_lines_end_the_connection() {
    assert_eq!(answers(BEFORE, &vec![b'x'; 1 << 20]), ["* BYE"]);
    assert_eq!(answers(AFTER, &vec![b'x'; 1 << 20]), ["* BYE"]);
    let at_limit = format!("a LOGIN x {}\r\n", "y".repeat(BEFORE.line_octets_max - 12));
    assert_eq!(answers(BEFORE, at_limit.as_bytes()), ["a command"]);
    let above = at_limit.replace("LOGIN x ", "LOGIN xx ");
    assert_eq!(answers(BEFORE, above.as_bytes()), ["* BYE"]);
    // Nothing is executed after it.
    assert_eq!(answers(BEFORE, (above + "b NOOP\r\n").as_bytes()), ["* BYE"]);
}

#[test]
fn other_protocols_are_turned_away() {
    assert_eq!(answers(BEFORE, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03a NOOP\r\n"), ["* BYE"]);
    assert_eq!(answers(BEFORE, b"GET / HTTP/1.1\r\na NOOP\r\n"), ["* BYE"]);
    assert_eq!(answers(BEFORE, b"POST /x HTTP/1.0\r\na NOOP\r\n"), ["* BYE"]);
}

#[test]
fn deep_searches_are_refused_and_broad_ones_understood() {
    let deep = |n: usize| format!("a SEARCH {}ALL{}", "(".repeat(n), ")".repeat(n));
    assert_eq!(answer(&one(&deep(100))), "a command");
    assert_eq!(answer(&one(&deep(101))), "a BAD");
    assert_eq!(answer(&one(&deep(30_000))), "a BAD");
    assert_eq!(answer(&one(&format!("a SEARCH {}", "(".repeat(50_000)))), "a BAD");
    assert_eq!(answer(&one(&format!("a SEARCH {}ALL", "NOT ".repeat(5_000)))), "a BAD");
    assert_eq!(answer(&one(&format!("a SEARCH {}", "OR ".repeat(5_000)))), "a BAD");
    assert_eq!(answer(&one(&format!("a SEARCH{}", " UNSEEN".repeat(9_000)))), "a command");
    assert_eq!(answers(AFTER, format!("a SEARCH TEXT {}\r\n", "x".repeat(100 << 10)).as_bytes()), ["* BYE"]);
}

#[test]
fn broad_commands_are_answered() {
    let set: Vec<String> = (1..=9_000).map(|n| n.to_string()).collect();
    assert_eq!(answer(&one(&format!("a FETCH {} FLAGS", set.join(",")))), "a command");
    assert_eq!(answer(&one(&format!("a LIST \"\" \"{}\"", "*%".repeat(1_000)))), "a command");
    assert_eq!(answer(&one(&format!("a ID (\"name\" \"{}\")", "x".repeat(5 << 10)))), "a BAD");
    assert_eq!(answer(&one(&format!("a CREATE {}", "x".repeat(10_000)))), "a command");
    assert_eq!(answer(&one(&format!("a STORE 1 FLAGS ({}\\Seen)", "k ".repeat(20_000)))), "a command");
    let keywords: Vec<String> = (0..5_000).map(|n| format!("k{n}")).collect();
    assert_eq!(answer(&one(&format!("a STORE 1 FLAGS ({})", keywords.join(" ")))), "a BAD");
    let sections: Vec<String> = (0..3_000).map(|n| format!("BODY[]<{n}.1>")).collect();
    assert_eq!(answer(&one(&format!("a FETCH 1 ({})", sections.join(" ")))), "a BAD");
    let deep = vec!["1"; 101].join(".");
    assert_eq!(answer(&one(&format!("a FETCH 1 BODY[{deep}]"))), "a BAD");
}

#[test]
fn enable_of_the_unknown_is_understood() {
    let Event::Command(command) = one("a ENABLE FOO") else { panic!() };
    assert_eq!(command.body, CommandBody::Enable(vec!["FOO".to_owned()]));
}

#[test]
fn a_message_of_no_octets_is_refused() {
    assert_eq!(answers(AFTER, b"a APPEND x {0}\r\nb NOOP\r\n"), ["a BAD", "b command"]);
    assert_eq!(answers(AFTER, b"a APPEND x {0+}\r\n\r\nb NOOP\r\n"), ["a BAD", "b command"]);
}

#[test]
fn wrong_append_arguments_are_refused_before_the_message() {
    for bad in [
        "APPEND a&b",
        "APPEND x (\\Recent)",
        "APPEND x (\\Foo)",
        "APPEND x \"1-Jan-2000 00:00:00 +0000\"",
        "APPEND x \"31-Feb-2000 00:00:00 +0000\"",
        "APPEND x y",
        "APPEND x ()()",
    ] {
        let waits = format!("a {bad} {{6}}\r\nb NOOP\r\n");
        assert_eq!(answers(AFTER, waits.as_bytes()), ["a BAD", "b command"], "{bad}");
        let sends = format!("a {bad} {{9+}}\r\nc NOOP\r\n\n\r\nb NOOP\r\n");
        assert_eq!(answers(AFTER, sends.as_bytes()), ["a BAD", "b command"], "{bad}");
    }
    assert_eq!(answers(AFTER, b"a APPEND x ~{6}\r\nb NOOP\r\n"), ["a BAD", "b command"]);
    assert_eq!(answers(AFTER, b"a APPEND x{6}\r\nb NOOP\r\n"), ["a BAD", "b command"]);
}

#[test]
fn nul_in_a_message_ends_the_append_and_the_rest_is_dropped() {
    assert_eq!(
        answers(AFTER, b"a APPEND x {10+}\r\nab\0 NOOP\r\n\r\nb NOOP\r\n"),
        ["a append 10", "data 2", "append bad", "b command"]
    );
}

#[test]
fn text_after_a_message_ends_the_append_without_being_executed() {
    assert_eq!(
        answers(AFTER, b"a APPEND x {2+}\r\nabc NOOP\r\nb NOOP\r\n"),
        ["a append 2", "data 2", "append bad", "b command"]
    );
    assert_eq!(
        answers(AFTER, b"a APPEND x {2+}\r\nab {9+}\r\nc NOOP\r\n\n\r\nb NOOP\r\n"),
        ["a append 2", "data 2", "append bad", "b command"]
    );
    assert_eq!(
        answers(AFTER, b"a APPEND x {2+}\r\nab\nb NOOP\r\n"),
        ["a append 2", "data 2", "append bad", "b command"]
    );
    assert_eq!(
        answers(AFTER, b"a APPEND x {2+}\r\nab\r\r\nb NOOP\r\n"),
        ["a append 2", "data 2", "append bad", "b command"]
    );
}

#[test]
fn a_connection_dropped_amid_a_message_never_completes_it() {
    assert_eq!(answers(AFTER, b"a APPEND x {5+}\r\nabc"), ["a append 5", "data 3"]);
    assert_eq!(answers(AFTER, b"a APPEND x {3+}\r\nabc\r"), ["a append 3", "data 3"]);
}

#[test]
fn a_message_over_the_limit_is_refused_without_plus() {
    let size = AFTER.append_octets_max + 1;
    let waits = format!("a APPEND x {{{size}}}\r\nb NOOP\r\n");
    assert_eq!(answers(AFTER, waits.as_bytes()), ["a NO [TOOBIG]", "b command"]);
    let sends = format!("a APPEND x {{{}+}}\r\n", AFTER.drain_octets_max + 1);
    assert_eq!(answers(AFTER, sends.as_bytes()), ["* BYE"]);
}

#[test]
fn literal_minus_refuses_more_than_4096_octets_unasked() {
    let limits = AFTER.with_literal_minus();
    let message = "x".repeat(4_097);
    let wire = format!("a APPEND x {{4097+}}\r\n{message}\r\nb NOOP\r\n");
    assert_eq!(answers(limits, wire.as_bytes()), ["a NO [TOOBIG]", "b command"]);
    let awaited = format!("a APPEND x {{4097}}\r\n{message}\r\n");
    assert_eq!(answers(limits, awaited.as_bytes()), ["a append 4097", "+", "data 4097", "append end"]);
    let small = format!("a APPEND x {{4096+}}\r\n{}\r\n", "x".repeat(4_096));
    assert_eq!(answers(limits, small.as_bytes()), ["a append 4096", "data 4096", "append end"]);
}

#[test]
fn wrong_authenticate_lines_are_told_apart() {
    let dialogue = |line: &str| answers(BEFORE, format!("a AUTHENTICATE PLAIN\r\n{line}b NOOP\r\n").as_bytes());
    assert_eq!(dialogue("*\r\n"), ["a command", "sasl Cancel", "b command"]);
    assert_eq!(dialogue("!!!\r\n"), ["a command", "sasl Bad", "b command"]);
    assert_eq!(dialogue("=\r\n"), ["a command", "sasl Bad", "b command"]);
    assert_eq!(dialogue("AGE\r\n"), ["a command", "sasl Bad", "b command"]);
    assert_eq!(dialogue("AAAA\n"), ["a command", "sasl Bad", "b command"]);
    assert_eq!(dialogue("\r\n"), ["a command", "sasl Data(Secret(..))", "b command"]);
    assert_eq!(dialogue(&"A".repeat(20 << 10)), ["a command", "* BYE"]);
}

#[test]
fn idle_followed_by_garbage_executes_nothing() {
    assert_eq!(answers(AFTER, b"a IDLE\r\ndone\r\nb NOOP\r\n"), ["a command", "done", "b command"]);
    assert_eq!(answers(AFTER, b"a IDLE\r\nb NOOP\r\nc NOOP\r\n"), ["a command", "idle bad", "c command"]);
    assert_eq!(answers(AFTER, b"a IDLE\r\nDONE\nc NOOP\r\n"), ["a command", "idle bad", "c command"]);
}

#[test]
fn many_bad_lines_give_as_many_answers() {
    assert_eq!(events(BEFORE, &b"x\r\n".repeat(30)).len(), 30);
}
