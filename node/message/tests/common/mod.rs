//! What the integration tests share: a small reader of IMAP values and the whereabouts of the corpus.
#![allow(dead_code, reason = "each test file uses its own share")]

use std::path::PathBuf;

/// A value as ENVELOPE and BODYSTRUCTURE are built of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Nil,
    Number(u64),
    Text(Vec<u8>),
    List(Vec<Value>),
}

impl Value {
    pub fn list(&self) -> &[Value] {
        match self {
            Value::List(values) => values,
            other => panic!("a list is expected, not {other:?}"),
        }
    }

    pub fn text(&self) -> Option<&[u8]> {
        match self {
            Value::Text(text) => Some(text),
            Value::Nil => None,
            other => panic!("an nstring is expected, not {other:?}"),
        }
    }

    pub fn number(&self) -> u64 {
        match self {
            Value::Number(number) => *number,
            other => panic!("a number is expected, not {other:?}"),
        }
    }
}

/// Reads exactly one list, strictly; nesting is followed without recursion.
pub fn read(text: &[u8]) -> Value {
    let mut open: Vec<Vec<Value>> = Vec::new();
    let mut at = 0;
    loop {
        let value = match text[at] {
            b'(' => {
                open.push(Vec::new());
                at += 1;
                continue;
            }
            b')' => {
                at += 1;
                Value::List(open.pop().expect("parentheses are balanced"))
            }
            b'"' => {
                let mut string = Vec::new();
                at += 1;
                while text[at] != b'"' {
                    if text[at] == b'\\' {
                        at += 1;
                        assert!(matches!(text[at], b'"' | b'\\'));
                    }
                    assert!(!matches!(text[at], b'\r' | b'\n' | 0 | 128..), "quoted strings are safe");
                    string.push(text[at]);
                    at += 1;
                }
                at += 1;
                Value::Text(string)
            }
            b'{' => {
                let close = at + text[at..].iter().position(|&byte| byte == b'}').expect("a literal's length ends");
                let length: usize = std::str::from_utf8(&text[at + 1..close]).unwrap().parse().unwrap();
                assert_eq!(&text[close + 1..close + 3], b"\r\n");
                at = close + 3 + length;
                let string = text[close + 3..at].to_vec();
                assert!(!string.contains(&0), "literals hold no NUL");
                Value::Text(string)
            }
            b'N' => {
                assert_eq!(&text[at..at + 3], b"NIL");
                at += 3;
                Value::Nil
            }
            b'0'..=b'9' => {
                let end = at + text[at..].iter().position(|byte| !byte.is_ascii_digit()).unwrap();
                let number = std::str::from_utf8(&text[at..end]).unwrap().parse().unwrap();
                at = end;
                Value::Number(number)
            }
            other => panic!("{:?} begins no value", char::from(other)),
        };
        match open.last_mut() {
            None => {
                assert_eq!(at, text.len(), "nothing follows the value");
                return value;
            }
            Some(list) => {
                list.push(value);
                match text[at] {
                    b' ' => {
                        assert!(!matches!(text[at + 1], b' ' | b')'), "one space, and only between values");
                        at += 1;
                    }
                    // Lists alone may follow each other without a space (RFC 3501 §9, body-type-mpart, env-to).
                    b'(' => assert!(matches!(list.last(), Some(Value::List(_)))),
                    b')' => {}
                    other => panic!("{:?} after a value", char::from(other)),
                }
            }
        }
    }
}

/// Checks that a value is an ENVELOPE (RFC 3501 §9).
pub fn check_envelope(value: &Value) {
    let items = value.list();
    assert_eq!(items.len(), 10);
    for at in [0, 1, 8, 9] {
        items[at].text();
    }
    for addresses in &items[2..8] {
        if *addresses == Value::Nil {
            continue;
        }
        assert!(!addresses.list().is_empty());
        let mut in_group = false;
        for address in addresses.list() {
            let parts: Vec<_> = address.list().iter().map(Value::text).collect();
            assert_eq!(parts.len(), 4);
            match (parts[2], parts[3]) {
                (Some(_), Some(_)) => {}
                (Some(_), None) => assert!(!std::mem::replace(&mut in_group, true), "groups do not nest"),
                (None, None) => assert!(std::mem::replace(&mut in_group, false), "an end follows a start"),
                (None, Some(_)) => panic!("a host without a mailbox"),
            }
        }
        assert!(!in_group, "groups end");
    }
}

/// Checks that a value is a BODYSTRUCTURE or, if not extended, a BODY, and returns how many parts it shows, itself
/// included.
pub fn check_body(value: &Value, extended: bool) -> usize {
    let mut count = 0;
    let mut left = vec![value];
    while let Some(body) = left.pop() {
        count += 1;
        let items = body.list();
        let children = items.iter().take_while(|item| matches!(item, Value::List(_))).count();
        let after = if children > 0 {
            left.extend(&items[..children]);
            assert!(items[children].text().is_some(), "a multipart has a subtype");
            let after = &items[children + 1..];
            if extended {
                check_parameters(&after[0]);
            }
            after
        } else {
            let (media_type, subtype) = (items[0].text().unwrap(), items[1].text().unwrap());
            check_parameters(&items[2]);
            items[3].text();
            items[4].text();
            assert!(items[5].text().is_some(), "a part has an encoding");
            items[6].number();
            let after = match (media_type, subtype) {
                (b"text", _) => {
                    items[7].number();
                    &items[8..]
                }
                (b"message", b"rfc822") => {
                    check_envelope(&items[7]);
                    left.push(&items[8]);
                    items[9].number();
                    &items[10..]
                }
                (b"multipart", _) => panic!("a multipart without parts"),
                _ => &items[7..],
            };
            if extended {
                after[0].text();
            }
            after
        };
        assert_eq!(after.len(), if extended { 4 } else { 0 }, "extension data are whole");
        if extended {
            if after[1] != Value::Nil {
                assert_eq!(after[1].list().len(), 2);
                assert!(after[1].list()[0].text().is_some());
                check_parameters(&after[1].list()[1]);
            }
            match &after[2] {
                Value::List(languages) => assert!(languages.iter().all(|language| language.text().is_some())),
                language => _ = language.text(),
            }
            after[3].text();
        }
    }
    count
}

fn check_parameters(value: &Value) {
    if *value != Value::Nil {
        assert!(!value.list().is_empty() && value.list().len().is_multiple_of(2));
        assert!(value.list().iter().all(|item| item.text().is_some()));
    }
}

/// The corpus's messages, named; none, and a word about it, where there is no corpus.
pub fn corpus() -> Vec<(String, Vec<u8>)> {
    let root = std::env::var_os("MAILRING_CORPUS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"), PathBuf::from);
    let mut found = Vec::new();
    for folder in ["real", "odd"] {
        let Ok(entries) = std::fs::read_dir(root.join(folder)) else { continue };
        for entry in entries.flatten() {
            if let Ok(bytes) = std::fs::read(entry.path()) {
                found.push((entry.file_name().to_string_lossy().into_owned(), bytes));
            }
        }
    }
    if found.is_empty() {
        println!("skipped: no corpus");
    }
    found.sort();
    found
}
