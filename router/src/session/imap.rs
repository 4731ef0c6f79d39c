//! The IMAP conversation (RFC 3501): events of the decoder become calls to the account's shard, and their replies
//! responses. The session owns what the client has been told (sequence numbers, \Recent, which changes), so that a
//! shard may change its leader under it: the client sees a pause, or at worst NO `[UNAVAILABLE]`, never a BYE.
//!
//! Commands are carried out strictly one after another, in the order in which they came; replies to pipelined ones
//! are gathered and written together. While a command is carried out nothing is read (back-pressure).

mod append;
mod fetch;
mod idle;
mod list;
mod login;
mod mailboxes;
mod reply;
mod search;
mod select;
mod store;
#[cfg(test)]
mod tests;
mod updates;

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use imap::encode::{self, Code, Status};
use imap::{
    Command, CommandBody, Context as Rules, Decoder, Event, Limits, LiteralMode, SessionState, Tag, allowed,
    capabilities,
};
use tokio::time::Instant;
use types::MailError;

use self::reply::{Reply, ReplyCode, write_refusal};
use self::select::Selected;
use self::updates::Timing;
use super::SessionContext;
use crate::auth::Failures;
use crate::cluster::{Access, ShardClient};
use crate::connection::{Connection, Incoming};
use crate::settings::Protocol;

/// Refused commands one after another before the connection ends: what sends them is not a mail client.
const BAD_COMMANDS_MAX: u32 = 30;

/// Greets the client and serves it until one of both ends the connection.
pub async fn run(connection: Connection, session: SessionContext) {
    let mut conversation = Conversation::new(connection, session);
    // That it ended is all there is to know: what there was to say has been said to the client.
    let Err(Ended) = conversation.converse().await;
    conversation.connection.close().await;
}

/// The connection is over: nothing more is read or executed. What is gathered is still written if it can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ended;

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Ended {
        Ended
    }
}

type Step<T = ()> = Result<T, Ended>;

/// Whose mailboxes the session works on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Owner {
    shard: u32,
    account: u64,
}

struct Conversation {
    connection: Connection,
    session: SessionContext,
    decoder: Decoder,
    /// Set by login.
    owner: Option<Owner>,
    /// Set with it.
    access: Option<Access>,
    selected: Option<Selected>,
    /// The client has shown that it knows CONDSTORE (RFC 7162 §3.1).
    condstore: bool,
    /// A message is coming in.
    appending: bool,
    bad_commands: u32,
    failures: Failures,
    login_deadline: Instant,
}

impl Conversation {
    fn new(connection: Connection, session: SessionContext) -> Conversation {
        let login_deadline = Instant::now() + session.context.settings.limits.login();
        Conversation {
            connection,
            session,
            decoder: Decoder::new(Limits::BEFORE_LOGIN),
            owner: None,
            access: None,
            selected: None,
            condstore: false,
            appending: false,
            bad_commands: 0,
            failures: Failures::default(),
            login_deadline,
        }
    }

    async fn converse(&mut self) -> Result<Infallible, Ended> {
        let names = self.capabilities();
        encode::greeting(self.connection.output(), &names, "mailring ready");
        loop {
            let event = self.next_event().await?;
            self.event(event).await?;
        }
    }

    /// The next event. What is gathered is written before the client is waited for, and only then, so that pipelined
    /// commands share their writes.
    async fn next_event(&mut self) -> Step<Event> {
        let deadline = match self.owner {
            Some(_) => Instant::now() + self.idle_max(),
            None => self.login_deadline,
        };
        loop {
            if let Some(event) = self.decoder.decode(self.connection.input()) {
                return Ok(event);
            }
            self.connection.flush().await?;
            let wait = deadline.saturating_duration_since(Instant::now());
            self.incoming(wait).await?;
        }
    }

    /// Waits for octets. A message that is coming in is waited for though the router stops or the account ends.
    async fn incoming(&mut self, wait: Duration) -> Step {
        let incoming = match &mut self.access {
            _ if self.appending => self.connection.read_on(wait).await,
            None => self.connection.read(wait).await,
            Some(access) => tokio::select! {
                biased;
                () = access.over() => return self.account_over(),
                incoming = self.connection.read(wait) => incoming,
            },
        };
        self.came(incoming)
    }

    fn came(&mut self, incoming: Incoming) -> Step {
        match incoming {
            Incoming::Data => Ok(()),
            Incoming::Closed => Err(Ended),
            // RFC 3501 §5.4.
            Incoming::Idle => self.bye(None, "logged out for inactivity"),
            Incoming::Stopping => self.stopping(),
        }
    }

    async fn event(&mut self, event: Event) -> Step {
        if self.access.as_mut().is_some_and(Access::is_over) {
            return self.account_over();
        }
        match event {
            Event::Command(command) => self.command(command).await?,
            Event::Continue => encode::continuation(self.connection.output(), "OK"),
            Event::AppendStart(start) => Box::pin(self.append(start)).await?,
            Event::Bad { tag, text } => self.refuse(tag.as_ref(), text)?,
            Event::TooBig { tag, text } => self.too_big(&tag, text)?,
            Event::Fatal { text } => return self.bye(None, text),
            // Those that wait for these take them themselves.
            Event::AppendData(_)
            | Event::AppendEnd
            | Event::AppendBad { .. }
            | Event::AuthenticateLine(_)
            | Event::IdleDone
            | Event::IdleBad { .. } => {}
        }
        if self.connection.stop().is_stopping() {
            return self.stopping();
        }
        self.connection.flush_if_full().await?;
        Ok(())
    }

    async fn command(&mut self, Command { tag, body }: Command) -> Step {
        self.session.count_command();
        if let Err(refusal) = allowed(self.state(), &body, self.rules()) {
            write_refusal(self.connection.output(), &tag, refusal);
            return if refusal.status == Status::Bad { self.count_bad() } else { Ok(()) };
        }
        self.bad_commands = 0;
        match body {
            CommandBody::Logout => self.log_out(&tag),
            CommandBody::StartTls => Box::pin(self.start_tls(&tag)).await,
            CommandBody::Idle => self.idle(&tag).await,
            body => {
                let timing = Timing::of(&body);
                // In boxes: a session that waits for its client should not hold room for what it might do.
                let reply = Box::pin(self.perform(body)).await?;
                if timing.updates && self.selected.is_some() {
                    Box::pin(self.update(timing)).await?;
                }
                reply.write(self.connection.output(), &tag);
                Ok(())
            }
        }
    }

    async fn perform(&mut self, body: CommandBody) -> Step<Reply> {
        let reply = match body {
            CommandBody::Capability => {
                let names = self.capabilities();
                encode::capability(self.connection.output(), &names);
                Reply::ok("capabilities listed")
            }
            CommandBody::Noop => Reply::ok("NOOP done"),
            CommandBody::Id(_) => self.id(),
            CommandBody::Login { user, password } => return self.log_in(&user, None, password.expose()).await,
            CommandBody::Authenticate { mechanism, initial } => return self.authenticate(&mechanism, initial).await,
            body => match self.owner {
                Some(owner) => return self.perform_for(owner, body).await,
                None => Reply::bad("log in first"),
            },
        };
        Ok(reply)
    }

    async fn perform_for(&mut self, owner: Owner, body: CommandBody) -> Step<Reply> {
        let reply = match body {
            CommandBody::Enable(names) => self.enable(&names),
            CommandBody::Select { mailbox, condstore } => self.select(owner, &mailbox, condstore, false).await,
            CommandBody::Examine { mailbox, condstore } => self.select(owner, &mailbox, condstore, true).await,
            CommandBody::Create { mailbox, special_uses } => self.create(owner, &mailbox, special_uses).await,
            CommandBody::Delete(mailbox) => self.delete(owner, &mailbox).await,
            CommandBody::Rename { from, to } => self.rename(owner, &from, &to).await,
            CommandBody::Subscribe(mailbox) => self.subscribe(owner, &mailbox, true).await,
            CommandBody::Unsubscribe(mailbox) => self.subscribe(owner, &mailbox, false).await,
            CommandBody::List(list) => return self.list(owner, &list).await,
            CommandBody::Lsub { reference, pattern } => return self.lsub(owner, &reference, &pattern).await,
            CommandBody::Namespace => {
                encode::namespace(self.connection.output());
                Reply::ok("namespace listed")
            }
            CommandBody::Status { mailbox, items } => self.status(owner, &mailbox, &items).await,
            CommandBody::Check => Reply::ok("CHECK done"),
            CommandBody::Close => self.close(owner).await,
            CommandBody::Unselect => {
                self.selected = None;
                Reply::ok("mailbox unselected")
            }
            CommandBody::Expunge => return self.expunge(owner, None).await,
            CommandBody::UidExpunge(set) => return self.expunge(owner, Some(&set)).await,
            CommandBody::Search(search) => return self.search(owner, search).await,
            CommandBody::Fetch(fetch) => return self.fetch(owner, fetch).await,
            CommandBody::Store(store) => return self.store(owner, store).await,
            CommandBody::Copy { uid, set, mailbox } => self.copy(owner, uid, &set, &mailbox).await,
            CommandBody::Move { uid, set, mailbox } => return self.move_messages(owner, uid, &set, &mailbox).await,
            // Carried out before.
            CommandBody::Capability
            | CommandBody::Noop
            | CommandBody::Logout
            | CommandBody::Id(_)
            | CommandBody::StartTls
            | CommandBody::Login { .. }
            | CommandBody::Authenticate { .. }
            | CommandBody::Idle => Reply::bad("not allowed now"),
        };
        Ok(reply)
    }

    /// RFC 3501 §6.1.3.
    fn log_out(&mut self, tag: &Tag) -> Step {
        let out = self.connection.output();
        encode::bye(out, None, "logging out");
        encode::tagged(out, tag, Status::Ok, None, "LOGOUT done");
        Err(Ended)
    }

    fn state(&self) -> SessionState {
        match (self.owner, &self.selected) {
            (None, _) => SessionState::NotAuthenticated,
            (Some(_), None) => SessionState::Authenticated,
            (Some(_), Some(selected)) => SessionState::Selected { read_only: selected.read_only },
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            tls: self.connection.is_tls(),
            starttls_available: self.session.tls_available(),
            plaintext_login_allowed: self.session.listener.allow_plaintext_login,
            literal_mode: LiteralMode::Plus,
        }
    }

    /// After login with the size that APPEND takes (RFC 7889 §4).
    fn capabilities(&self) -> String {
        let names = capabilities(self.state(), self.rules());
        match self.owner {
            Some(_) => format!("{names} APPENDLIMIT={}", self.session.context.settings.limits.message_octets_max),
            None => names,
        }
    }

    fn shards(&self) -> &ShardClient {
        self.session.context.cluster.shards()
    }

    fn idle_max(&self) -> Duration {
        self.session.context.settings.limits.idle(Protocol::Imap)
    }

    /// NO with the error's code. What is wrong with the shard is in the node's log already.
    fn failed(&self, error: &MailError) -> Reply {
        match error {
            MailError::Corrupt { .. } | MailError::Internal(_) => tracing::warn!(%error, "imap command failed"),
            _ => tracing::debug!(%error, "imap command refused"),
        }
        Reply::failed(error)
    }

    /// The same for commands on the selected mailbox, which may turn out to be gone.
    fn failed_on_selected(&mut self, error: &MailError) -> Reply {
        match (error, &mut self.selected) {
            (MailError::MailboxGone, Some(selected)) => selected.lose(),
            // It may have been done all the same; or the client is to learn which messages are gone.
            (MailError::Deadline | MailError::MessagesGone, Some(selected)) => selected.news = true,
            _ => {}
        }
        self.failed(error)
    }

    /// BAD, which counts.
    fn refuse(&mut self, tag: Option<&Tag>, text: &'static str) -> Step {
        let out = self.connection.output();
        match tag {
            Some(tag) => encode::tagged(out, tag, Status::Bad, None, text),
            None => encode::untagged(out, Status::Bad, None, text),
        }
        self.count_bad()
    }

    fn too_big(&mut self, tag: &Tag, text: &'static str) -> Step {
        Reply::no(ReplyCode::TooBig, text).write(self.connection.output(), tag);
        self.count_bad()
    }

    fn count_bad(&mut self) -> Step {
        self.bad_commands += 1;
        if self.bad_commands < BAD_COMMANDS_MAX { Ok(()) } else { self.bye(None, "too many bad commands") }
    }

    fn bye<T>(&mut self, code: Option<Code<'_>>, text: &str) -> Step<T> {
        encode::bye(self.connection.output(), code, text);
        Err(Ended)
    }

    fn account_over<T>(&mut self) -> Step<T> {
        self.bye(None, "account is disabled")
    }

    fn stopping<T>(&mut self) -> Step<T> {
        self.bye(Some(Code::Named("UNAVAILABLE")), "server is shutting down, connect again")
    }
}
