//! However octets arrive, the events are the same; and no octets make the decoder fall over or hold much.

mod common;

use bytes::{Bytes, BytesMut};
use common::{events, events_in_pieces};
use imap::{Decoder, Event, Limits};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof, proptest};
use proptest::sample::{Index, select};

/// Small enough for random input to meet each of them.
const SMALL: Limits = Limits {
    line_octets_max: 80,
    literals_max: 2,
    literal_octets_max: 12,
    non_synchronising_octets_max: 30,
    append_octets_max: 40,
    drain_octets_max: 60,
};

/// Neighbouring pieces of a message joined: where they are cut is the network's doing.
fn joined(events: Vec<Event>) -> Vec<Event> {
    let mut all: Vec<Event> = Vec::new();
    for event in events {
        match (all.last_mut(), event) {
            (Some(Event::AppendData(before)), Event::AppendData(data)) => {
                *before = Bytes::from([&before[..], &data[..]].concat());
            }
            (_, event) => all.push(event),
        }
    }
    all
}

fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let words = select(vec![
        "a ",
        "b ",
        "NOOP",
        "\r\n",
        "\n",
        "\r",
        "LOGIN ",
        "x ",
        "\"",
        "\"x\" ",
        "{3}",
        "{3+}",
        "{0+}\r\n",
        "{1+}\r\nx",
        "{20+}\r\n",
        "{41}",
        "{99999999999999999999+}",
        "APPEND ",
        "APPEND INBOX ",
        "(\\Seen) ",
        "{5+}\r\nhello\r\n",
        "{5}\r\nhello\r\n",
        "{5}\r\nhe\0lo\r\n",
        "IDLE\r\n",
        "DONE\r\n",
        "AUTHENTICATE PLAIN\r\n",
        "AAAA\r\n",
        "*\r\n",
        "\0",
        "\u{16}",
        "GET / HTTP/1.1\r\n",
        "UID FETCH 1:* (FLAGS BODY[1.TEXT]<0.5>)\r\n",
        "SEARCH OR NOT ALL (1 NEW)\r\n",
        "STORE 1 +FLAGS (\\Seen)\r\n",
        "SELECT &AOQ-\r\n",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "~{3+}\r\nabc\r\n",
    ])
    .prop_map(|word| word.as_bytes().to_vec());
    prop_oneof![8 => words, 1 => vec(any::<u8>(), 1..4)]
}

fn input() -> impl Strategy<Value = Vec<u8>> {
    vec(fragment(), 0..24).prop_map(|fragments| fragments.concat())
}

proptest! {
    #[test]
    fn chunking_does_not_change_the_events(octets in input(), cuts in vec(any::<Index>(), 0..12), accept in any::<bool>()) {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(octets.len() + 1)).collect();
        at.extend([0, octets.len()]);
        at.sort_unstable();
        let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &octets[pair[0]..pair[1]]).collect();
        let single: Vec<&[u8]> = octets.chunks(1).collect();
        let whole = joined(events_in_pieces(SMALL, &[&octets], accept));
        assert_eq!(joined(events_in_pieces(SMALL, &pieces, accept)), whole);
        assert_eq!(joined(events_in_pieces(SMALL, &single, accept)), whole);
    }

    #[test]
    fn arbitrary_octets_never_panic(octets in vec(any::<u8>(), 0..400)) {
        events(Limits::BEFORE_LOGIN, &octets);
        events(SMALL, &octets);
    }

    #[test]
    fn damaged_commands_never_panic(index in any::<Index>(), at in any::<Index>(), octet in any::<u8>()) {
        const COMMANDS: [&str; 8] = [
            "a FETCH 1:*,7 (UID BODY.PEEK[1.2.HEADER.FIELDS (From {2+}\r\nTo)]<0.9> MODSEQ) (CHANGEDSINCE 7)",
            "a SEARCH CHARSET UTF-8 OR NOT (FROM \"a\\\"b\" 1:3) SINCE \"1-Jan-2000\" MODSEQ \"/flags/x\" all 5",
            "a STORE 1 (UNCHANGEDSINCE 7) +FLAGS.SILENT (\\Seen $Junk)",
            "a LIST (SPECIAL-USE) \"\" &AOQ-*% RETURN (CHILDREN)",
            "a CREATE x (USE (\\Sent))",
            "a APPEND {1+}\r\nx (\\Seen) \" 1-Jan-2000 00:00:00 +0000\" {3+}\r\nabc",
            "a ID (\"name\" NIL)",
            "a AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==",
        ];
        let mut octets = format!("{}\r\n", COMMANDS[index.index(COMMANDS.len())]).into_bytes();
        let place = at.index(octets.len());
        octets[place] = octet;
        events(Limits::AFTER_LOGIN, &octets);
        octets.remove(place);
        events(Limits::AFTER_LOGIN, &octets);
    }

    #[test]
    fn what_is_not_decoded_stays_bounded(octets in input()) {
        let mut decoder = Decoder::new(SMALL);
        let mut input = BytesMut::new();
        for chunk in octets.chunks(7) {
            input.extend_from_slice(chunk);
            while let Some(event) = decoder.decode(&mut input) {
                if matches!(event, Event::AppendStart(_)) {
                    decoder.accept_literal();
                }
            }
            // The decoder takes what it can: only its own bounded memory grows, not the caller's buffer.
            assert!(input.is_empty());
        }
    }
}
