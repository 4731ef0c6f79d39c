//! APPEND (RFC 3501 §6.3.11): the message is spooled as it comes, and handed to the shard when it is whole. A
//! connection that ends before has stored nothing.

use imap::encode;
use imap::{AppendStart, Event, append_allowed};
use proto::wire::{AppendReply, AppendRequest};
use types::{InternalDate, MailError, MailboxName, UidSet, UidValidity};

use super::mailboxes::name_request;
use super::reply::{Reply, ReplyCode, write_refusal};
use super::updates::Timing;
use super::{Conversation, Owner, Step};
use crate::context::unix_s;
use crate::spool::{Spool, Spooled};

/// A client that waits for `+` with more than this is told of a missing mailbox before it sends: the question costs
/// less than the transfer.
const WORTH_ASKING_OCTETS: u64 = 64 * 1024;

impl Conversation {
    pub(super) async fn append(&mut self, start: AppendStart) -> Step {
        self.session.count_command();
        if let Err(refusal) = append_allowed(self.state()) {
            self.decoder.refuse_literal();
            write_refusal(self.connection.output(), &start.tag, refusal);
            return self.count_bad();
        }
        self.bad_commands = 0;
        let (owner, name) = match self.append_to(&start).await {
            Ok(whither) => whither,
            Err(reply) => {
                self.decoder.refuse_literal();
                reply.write(self.connection.output(), &start.tag);
                return Ok(());
            }
        };
        self.decoder.accept_literal();
        self.appending = true;
        let received = self.receive().await;
        self.appending = false;
        let reply = match received? {
            Received::Message(spooled) => self.append_message(owner, &start, &name, &spooled).await,
            Received::Bad(text) => return self.refuse(Some(&start.tag), text),
            Received::Lost => Reply::failed(&MailError::Unavailable),
        };
        if self.selected.is_some() {
            Box::pin(self.update(Timing::APPEND)).await?;
        }
        reply.write(self.connection.output(), &start.tag);
        Ok(())
    }

    /// What can be refused before the message comes.
    async fn append_to(&mut self, start: &AppendStart) -> Result<(Owner, MailboxName), Reply> {
        let owner = self.owner.ok_or(Reply::bad("log in first"))?;
        let name = start.mailbox.name().map_err(Reply::invalid_name)?;
        if start.synchronising && start.size > WORTH_ASKING_OCTETS {
            let status = self.shards().status(name_request(owner, &name)).await;
            status.map_err(|error| self.failed(&error).or_try_create(&error))?;
        }
        Ok((owner, name))
    }

    /// All of the message, also when there is no room for it: the client cannot be stopped.
    async fn receive(&mut self) -> Step<Received> {
        let mut spool = Ok(Spool::new(self.session.context.spools.clone()));
        loop {
            match self.next_event().await? {
                Event::Continue => encode::continuation(self.connection.output(), "send the message"),
                Event::AppendData(piece) => {
                    if let Ok(open) = &mut spool
                        && let Err(error) = open.push(&piece).await
                    {
                        spool = Err(error);
                    }
                }
                Event::AppendEnd => break,
                Event::AppendBad { text } => return Ok(Received::Bad(text)),
                Event::Fatal { text } => return self.bye(None, text),
                _ => return Ok(Received::Bad("APPEND broken off")),
            }
        }
        let finished = match spool {
            Ok(spool) => spool.finish().await,
            Err(error) => Err(error),
        };
        Ok(match finished {
            Ok(spooled) => Received::Message(Box::new(spooled)),
            Err(error) => {
                tracing::error!(%error, "cannot spool a message");
                Received::Lost
            }
        })
    }

    async fn append_message(
        &mut self,
        owner: Owner,
        start: &AppendStart,
        name: &MailboxName,
        spooled: &Spooled,
    ) -> Reply {
        let request = AppendRequest {
            shard: owner.shard,
            account: owner.account,
            mailbox: name.as_str().to_owned(),
            flags: Some((&start.flags).into()),
            date: Some(start.date.unwrap_or_else(|| InternalDate::utc(unix_s())).into()),
            body_octets: spooled.body.octets(),
            ..AppendRequest::default()
        };
        match self.shards().append(request, spooled.body.clone()).await {
            Ok(AppendReply { mailbox, uid, uid_validity, .. }) => {
                // RFC 3501 §6.3.11: the new message is to be told of at once.
                if let Some(selected) = self.selected.as_mut().filter(|selected| selected.mailbox == mailbox) {
                    selected.news = true;
                }
                let code =
                    ReplyCode::AppendUid { validity: UidValidity(uid_validity), uids: UidSet::from_range(uid, uid) };
                Reply::ok("APPEND done").with_code(code)
            }
            Err(error) => self.failed(&error).or_try_create(&error),
        }
    }
}

enum Received {
    Message(Box<Spooled>),
    Bad(&'static str),
    /// It could not be kept.
    Lost,
}
