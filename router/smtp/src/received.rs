//! Counts Received fields while a message streams by, to find mail loops (RFC 5321 §6.3).

const NAME: &[u8] = b"received";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// So many octets of the line equal the field's name.
    Name(usize),
    /// The name, then white space before the colon (RFC 5322 §4.5.3).
    Gap,
    /// Some other line, or the rest of this one.
    Skip,
    /// After a CR at a line's start.
    EmptyCr,
    /// The header is over.
    Body,
}

/// Fed with the content in pieces of any length. A LF ends a line, with or without CR, as in whatever may be relayed.
#[derive(Clone, Debug)]
pub struct ReceivedCounter {
    state: State,
    count: u32,
}

impl Default for ReceivedCounter {
    fn default() -> Self {
        ReceivedCounter { state: State::Name(0), count: 0 }
    }
}

impl ReceivedCounter {
    /// Received fields so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn push(&mut self, piece: &[u8]) {
        let mut rest = piece;
        while self.state != State::Body {
            if self.state == State::Skip {
                let Some(lf) = rest.iter().position(|&b| b == b'\n') else { return };
                rest = rest.get(lf..).unwrap_or_default();
            }
            let Some((&byte, after)) = rest.split_first() else { return };
            rest = after;
            self.state = self.after(byte);
        }
    }

    fn after(&mut self, byte: u8) -> State {
        match (self.state, byte) {
            (State::Name(0) | State::EmptyCr, b'\n') => State::Body,
            (State::Name(0), b'\r') => State::EmptyCr,
            (_, b'\n') => State::Name(0),
            (State::Name(at), b':' | b' ' | b'\t') if at == NAME.len() => self.colon_or_gap(byte),
            (State::Name(at), _) if NAME.get(at).is_some_and(|b| b.eq_ignore_ascii_case(&byte)) => State::Name(at + 1),
            (State::Gap, b':' | b' ' | b'\t') => self.colon_or_gap(byte),
            (State::Body, _) => State::Body,
            (State::Name(_) | State::Gap | State::Skip | State::EmptyCr, _) => State::Skip,
        }
    }

    fn colon_or_gap(&mut self, byte: u8) -> State {
        if byte != b':' {
            return State::Gap;
        }
        self.count = self.count.saturating_add(1);
        State::Skip
    }
}

#[cfg(test)]
mod tests {
    use super::ReceivedCounter;

    fn count(message: &[u8]) -> u32 {
        let mut whole = ReceivedCounter::default();
        whole.push(message);
        let mut single = ReceivedCounter::default();
        message.chunks(1).for_each(|piece| single.push(piece));
        assert_eq!(whole.count(), single.count());
        whole.count()
    }

    #[test]
    fn received_fields_of_the_header_are_counted_and_nothing_else() {
        assert_eq!(
            count(b"Received: a\r\n b\r\nrECEIVED : c\r\nX-Received: d\r\nReceivedX: e\r\n\r\nReceived: f\r\n"),
            2
        );
        assert_eq!(count(b"Subject: x\r\n Received: folded\r\nReceived:y"), 1);
        assert_eq!(count(b"Received: a\nReceived: b\n\nReceived: c\n"), 2);
        assert_eq!(count(b"\r\nReceived: a\r\n"), 0);
        assert_eq!(count(b""), 0);
    }
}
