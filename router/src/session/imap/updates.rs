//! Untagged updates of the selected mailbox (RFC 3501 §5.2, §7.4.1): EXPUNGE, EXISTS, RECENT and FETCH FLAGS for what
//! other sessions did.
//!
//! They are written before the tagged answer of each command, when the watch has said that there is something, and at
//! NOOP, CHECK and the begin of IDLE in any case. While FETCH, STORE or SEARCH by sequence number is answered, the
//! vanished keep their numbers; the next command that may tells of them. What this session did itself was told by its
//! own commands.
//!
//! A mailbox that another session deletes is not a reason for BYE (RFC 2180 §3.3 would allow it): the client is told
//! `* NO [NONEXISTENT]`, its messages go by EXPUNGE, and commands on it are answered NO [NONEXISTENT] until it selects
//! another.

use bytes::BytesMut;
use imap::encode::{self, Code, FetchWriter, Status};
use imap::{CommandBody, Expunged, expunges_may_be_sent_during};
use proto::wire::{ChangesReply, ChangesRequest};
use proto::{fetched_flags, uid_set_from_wire};
use types::{MailError, MailResult, ModSeq, Uid, UidSet};

use super::{Conversation, Owner, Selected, Step};

/// Which updates a command lets through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Timing {
    /// False for commands that replace what is selected.
    pub updates: bool,
    pub expunges: bool,
    /// Ask the shard though the watch was silent.
    pub ask: bool,
    /// UID commands have UID in every FETCH response (RFC 3501 §6.4.8).
    pub uid: bool,
}

impl Timing {
    pub(super) const APPEND: Timing = Timing { updates: true, expunges: true, ask: false, uid: false };
    /// In IDLE everything may be told at once.
    pub(super) const IDLE: Timing = Timing { updates: true, expunges: true, ask: false, uid: false };

    pub(super) fn of(body: &CommandBody) -> Timing {
        Timing {
            updates: !matches!(
                body,
                CommandBody::Select { .. } | CommandBody::Examine { .. } | CommandBody::Close | CommandBody::Unselect
            ),
            expunges: expunges_may_be_sent_during(body),
            ask: matches!(body, CommandBody::Noop | CommandBody::Check),
            uid: match body {
                CommandBody::Fetch(fetch) => fetch.uid,
                CommandBody::Store(store) => store.uid,
                CommandBody::Search(search) => search.uid,
                CommandBody::Copy { uid, .. } | CommandBody::Move { uid, .. } => *uid,
                CommandBody::UidExpunge(_) => true,
                _ => false,
            },
        }
    }
}

impl Conversation {
    /// Brings the client up to date as far as `timing` allows. When the shard cannot be reached the news is kept for
    /// later.
    pub(super) async fn update(&mut self, timing: Timing) -> Step {
        let (Some(owner), Some(selected)) = (self.owner, &mut self.selected) else { return Ok(()) };
        selected.listen();
        if (timing.ask || selected.news) && !selected.gone {
            let request = changes_request(owner, selected);
            match self.shards().changes(request).await {
                Ok(reply) => self.tell(reply, timing).await?,
                Err(error) => self.cannot_update(&error),
            }
        }
        let Some(selected) = self.selected.as_mut().filter(|_| timing.expunges) else { return Ok(()) };
        let expunged = selected.view.release();
        self.write_expunged(&expunged).await
    }

    fn cannot_update(&mut self, error: &MailError) {
        tracing::debug!(%error, "no changes of the selected mailbox");
        let Some(selected) = &mut self.selected else { return };
        match error {
            MailError::MailboxGone => {
                selected.lose();
                let code = Code::Named("NONEXISTENT");
                encode::untagged(self.connection.output(), Status::No, Some(code), "the mailbox has been deleted");
            }
            _ => selected.news = true,
        }
    }

    async fn tell(&mut self, reply: ChangesReply, timing: Timing) -> Step {
        let Some(selected) = &mut self.selected else { return Ok(()) };
        let news = match News::read(&reply, selected) {
            Ok(news) => news,
            Err(error) => {
                self.cannot_update(&error);
                return Ok(());
            }
        };
        selected.news = false;
        selected.view.hold_back(&news.vanished);
        if timing.expunges {
            let expunged = selected.view.release();
            self.write_expunged(&expunged).await?;
        }
        for message in &reply.changed {
            self.tell_flags(message.uid, message.flags.as_ref(), message.mod_seq, timing.uid);
            self.connection.flush_if_full().await?;
        }
        let Some(selected) = &mut self.selected else { return Ok(()) };
        let out = self.connection.output();
        if let Some(exists) = selected.arrive(&news.arrived, &news.recent) {
            encode::exists(out, exists);
        }
        tell_recent(out, selected);
        selected.advance(reply.mailbox.map_or(0, |mailbox| mailbox.mod_seq));
        Ok(())
    }

    /// The flags of a message in view, unless the client knows them.
    pub(super) fn tell_flags(&mut self, uid: u32, flags: Option<&proto::wire::Flags>, mod_seq: u64, with_uid: bool) {
        let Some(selected) = &mut self.selected else { return };
        // Not in view: EXISTS will tell of it, and the client will ask.
        let Some(seq) = selected.view.seq(Uid(uid)).filter(|_| !selected.was_told(uid, mod_seq)) else { return };
        let flags = fetched_flags(flags);
        let out = self.connection.output();
        if selected.learn_keywords(&flags) {
            selected.announce_flags(out);
        }
        let mut writer = FetchWriter::new(out, seq);
        if with_uid {
            writer.uid(out, Uid(uid));
        }
        writer.flags(out, &flags, selected.view.is_recent(Uid(uid)));
        if self.condstore {
            writer.modseq(out, ModSeq(mod_seq));
        }
        writer.finish(out);
    }

    /// EXPUNGE for each, from the highest number down, so that none needs adjustment.
    pub(super) async fn write_expunged(&mut self, expunged: &Expunged) -> Step {
        if expunged.is_empty() {
            return Ok(());
        }
        for seq in expunged.in_order_of_writing() {
            encode::expunge(self.connection.output(), seq);
            self.connection.flush_if_full().await?;
        }
        if let Some(selected) = &mut self.selected {
            tell_recent(self.connection.output(), selected);
        }
        Ok(())
    }
}

/// A reply of the shard, checked.
struct News {
    vanished: UidSet,
    arrived: UidSet,
    recent: UidSet,
}

impl News {
    fn read(reply: &ChangesReply, selected: &Selected) -> MailResult<News> {
        let recent = uid_set_from_wire(reply.recent.as_ref())?;
        if reply.complete {
            let vanished = uid_set_from_wire(reply.vanished.as_ref())?;
            return Ok(News { vanished, arrived: reply.changed.iter().map(|message| message.uid).collect(), recent });
        }
        // The history does not reach back: compare what there is with what the client knows.
        let all = uid_set_from_wire(reply.uids.as_ref())?;
        Ok(News { vanished: selected.view.uids().difference(&all), arrived: all, recent })
    }
}

fn changes_request(owner: Owner, selected: &Selected) -> ChangesRequest {
    ChangesRequest {
        shard: owner.shard,
        account: owner.account,
        mailbox: selected.mailbox,
        since: selected.known,
        // EXAMINE leaves \Recent to others (RFC 3501 §6.3.2).
        take_recent: !selected.read_only,
    }
}

fn tell_recent(out: &mut BytesMut, selected: &mut Selected) {
    let recent = selected.view.recent();
    if recent != selected.recent_told {
        selected.recent_told = recent;
        encode::recent(out, recent);
    }
}
