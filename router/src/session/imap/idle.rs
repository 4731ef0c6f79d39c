//! IDLE (RFC 2177): changes are told as the watch brings them. Between them the session sleeps and holds no buffers.

use std::time::Duration;

use imap::encode::{self, Status};
use imap::{Event, Tag};
use tokio::time::Instant;

use super::updates::Timing;
use super::{Conversation, Step};
use crate::connection::Incoming;

/// The watch has said that there is news, and the shard could not be reached: when to ask again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

impl Conversation {
    pub(super) async fn idle(&mut self, tag: &Tag) -> Step {
        self.decoder.expect_done();
        encode::continuation(self.connection.output(), "idling");
        let deadline = Instant::now() + self.idle_max();
        let mut timing = Timing { ask: true, ..Timing::IDLE };
        loop {
            match self.decoder.decode(self.connection.input()) {
                Some(Event::IdleDone) => break,
                Some(Event::IdleBad { text }) => return self.refuse(Some(tag), text),
                Some(Event::Fatal { text }) => return self.bye(None, text),
                Some(_) => return self.refuse(Some(tag), "expected DONE"),
                None => {}
            }
            if self.selected.is_some() {
                Box::pin(self.update(timing)).await?;
                timing = Timing::IDLE;
            }
            self.connection.flush().await?;
            self.wait_for_either(deadline).await?;
        }
        encode::tagged(self.connection.output(), tag, Status::Ok, None, "IDLE done");
        Ok(())
    }

    /// Returns when the client has sent something, or when there is news.
    async fn wait_for_either(&mut self, deadline: Instant) -> Step {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(selected) = self.selected.as_mut().filter(|selected| !selected.gone) else {
                return self.incoming(left).await;
            };
            // Only those who have logged in idle.
            let Some(access) = &mut self.access else { return self.incoming(left).await };
            let wait = if selected.news { left.min(ASK_AGAIN) } else { left };
            let notice = tokio::select! {
                biased;
                () = access.over() => return self.account_over(),
                incoming = self.connection.read(wait) => return match incoming {
                    Incoming::Idle if wait < left => Ok(()),
                    incoming => self.came(incoming),
                },
                notice = selected.next_notice(), if !selected.news => notice,
            };
            selected.hear(notice);
            if selected.news {
                return Ok(());
            }
        }
    }
}
