//! DATA (RFC 5321 §4.1.1.4) and BDAT (RFC 3030): from the command to the complete message.

use bytes::{Bytes, BytesMut};

use super::{AbortReason, Chunk, Event, Question, Session, State};
use crate::{command::bdat, data::Decoded, reply};

impl Session {
    pub(super) fn on_data_command(&mut self, input: &BytesMut) -> Event {
        // DATA is a synchronisation point (RFC 2920 §3.1). What was sent before the answer is somebody's message text,
        // and nobody's commands; it cannot be told where it ends.
        if !input.is_empty() {
            let bytes = reply::line(554, "5.5.0", "content was sent before the go-ahead");
            return self.close_after(&bytes, "4.7.0", "protocol error");
        }
        if let Some((code, enhanced, text)) = self.content_out_of_order() {
            return self.refuse(code, enhanced, text);
        }
        if self.transaction.as_ref().is_some_and(|transaction| transaction.chunked) {
            return self.refuse(503, "5.5.1", "DATA after BDAT");
        }
        self.state = State::Ask(Question::Data);
        Event::Data
    }

    fn content_out_of_order(&self) -> Option<(u16, &'static str, &'static str)> {
        match &self.transaction {
            None => Some((503, "5.5.1", "send MAIL and RCPT first")),
            Some(transaction) if transaction.recipients == 0 => Some((554, "5.5.1", "no valid recipients")),
            Some(_) => None,
        }
    }

    /// The outer `None` asks for more input.
    pub(super) fn on_data(&mut self, input: &mut BytesMut) -> Option<Option<Event>> {
        let State::Data(decoder) = &mut self.state else { return Some(None) };
        let decoded = decoder.next(input)?;
        let refused = decoder.refused();
        let aborted = refused.then(|| self.abort(AbortReason::BareNewline)).flatten();
        Some(match decoded {
            Decoded::Piece(piece) => match aborted {
                Some(event) => Some(event),
                None => self.on_piece(piece),
            },
            Decoded::End => {
                self.state = State::Command;
                Some(self.on_complete())
            }
        })
    }

    pub(super) fn on_bdat(&mut self, argument: &str) -> Option<Event> {
        let Some((size, last)) = bdat(argument) else {
            // How many octets of content follow is not known, so nothing after this line can be read as a command.
            return Some(self.close(501, "5.5.4", "syntax: BDAT chunk-size [LAST]; closing"));
        };
        if size > self.settings.drain_max() {
            return Some(self.close(552, "5.3.4", "chunk is larger than the limit, closing"));
        }
        let mut refused = self.content_out_of_order();
        let mut aborted = None;
        if refused.is_none()
            && let Some(transaction) = &mut self.transaction
        {
            transaction.chunked = true;
            if transaction.aborted.is_some() {
                refused = Some((503, "5.5.1", "an earlier chunk was refused"));
            } else if transaction.octets.saturating_add(size) > self.settings.size_max {
                aborted = self.abort(AbortReason::TooLarge);
            }
        }
        self.state = State::Chunk(Chunk { size, left: size, last, refused });
        aborted
    }

    /// The outer `None` asks for more input.
    pub(super) fn on_chunk(&mut self, input: &mut BytesMut) -> Option<Option<Event>> {
        let State::Chunk(chunk) = &mut self.state else { return Some(None) };
        if chunk.left == 0 {
            let chunk = *chunk;
            self.state = State::Command;
            return Some(Some(self.on_chunk_complete(chunk)));
        }
        if input.is_empty() {
            return None;
        }
        // At most the input's length, so it fits.
        let take = usize::try_from(chunk.left).unwrap_or(usize::MAX).min(input.len());
        let piece = input.split_to(take).freeze();
        chunk.left = chunk.left.saturating_sub(take as u64);
        if chunk.refused.is_some() {
            return Some(None);
        }
        Some(self.on_piece(piece))
    }

    fn on_chunk_complete(&mut self, chunk: Chunk) -> Event {
        if let Some((code, enhanced, text)) = chunk.refused {
            if chunk.last {
                self.transaction = None;
            }
            return self.refuse(code, enhanced, text);
        }
        if chunk.last {
            return self.on_complete();
        }
        match self.transaction.as_ref().and_then(|transaction| transaction.aborted) {
            Some(reason) => self.refuse_content(reason),
            None => Event::Reply(reply::line(250, "2.0.0", &format!("{} octets received", chunk.size))),
        }
    }

    /// Content that was not asked for, or no longer, is dropped.
    fn on_piece(&mut self, piece: Bytes) -> Option<Event> {
        let (size_max, received_max, drain_max) =
            (self.settings.size_max, self.settings.received_max, self.settings.drain_max());
        let octets = piece.len() as u64;
        let transaction = self.transaction.as_mut()?;
        if transaction.aborted.is_some() {
            transaction.drained = transaction.drained.saturating_add(octets);
            if transaction.drained > drain_max {
                return Some(self.close(552, "5.3.4", "message is far larger than the limit, closing"));
            }
            return None;
        }
        transaction.octets = transaction.octets.saturating_add(octets);
        if transaction.octets > size_max {
            return self.abort(AbortReason::TooLarge);
        }
        transaction.received.push(&piece);
        if transaction.received.count() > received_max {
            return self.abort(AbortReason::MailLoop);
        }
        Some(Event::Content(piece))
    }

    fn on_complete(&mut self) -> Event {
        match self.transaction.as_ref().map(|transaction| (transaction.aborted, transaction.octets)) {
            Some((None, octets)) => {
                self.state = State::Ask(Question::Content);
                Event::ContentEnd { octets }
            }
            Some((Some(reason), _)) => {
                self.transaction = None;
                self.refuse_content(reason)
            }
            None => self.refuse(503, "5.5.1", "send MAIL and RCPT first"),
        }
    }

    fn refuse_content(&mut self, reason: AbortReason) -> Event {
        let (code, enhanced, text) = reason.reply();
        self.refuse(code, enhanced, text)
    }

    /// The first reason stands.
    fn abort(&mut self, reason: AbortReason) -> Option<Event> {
        let transaction = self.transaction.as_mut()?;
        if transaction.aborted.is_some() {
            return None;
        }
        transaction.aborted = Some(reason);
        Some(Event::ContentAborted(reason))
    }
}
