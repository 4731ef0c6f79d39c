//! The SMTP conversation: performs what the protocol machine decides. Content is spooled as it comes; the 250 after it
//! is given when every recipient's shard has stored it, and not before (RFC 5321 §6.1).

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use smtp::{AuthOffer, Credentials, Event, Farewell, ForwardPath, Mailbox, Session, Settings, Tls, Trace};
use tokio::time::{Instant, sleep};
use tracing::{debug, info};
use types::{InternalDate, MailError, SmtpReply};

use super::SessionContext;
use crate::auth::Failures;
use crate::cluster::{LocalRecipient, Refused};
use crate::connection::{Connection, Incoming};
use crate::context::unix_s;
use crate::delivery::Delivery;
use crate::settings::{ListenerTls, Protocol, Role};
use crate::settle::Claim;
use crate::spool::Spool;

/// Accounts that one transaction may come to once aliases are expanded.
const ACCOUNTS_MAX: usize = 10_000;

/// A client that is still connected so long after its 250 has it, also where it says nothing, if its TCP has.
const SETTLE_AFTER: Duration = Duration::from_secs(1);
/// A client that is silent, and whose TCP has not acknowledged its 250 for so long, has lost its link. Shorter than what the
/// same mail on another connection waits for this one.
const UNHEARD_MAX: Duration = Duration::from_secs(5);
/// Between looks for the acknowledgement of an answer that the next one waits for.
const ACKNOWLEDGEMENT_LOOK: Duration = Duration::from_millis(10);

/// Serves one connection until it ends.
pub async fn run(connection: Connection, session: SessionContext) {
    let machine = Session::new(machine_settings(&session));
    let mut conversation = Conversation {
        machine,
        connection,
        session,
        transaction: None,
        unsettled: Vec::new(),
        failures: Failures::default(),
    };
    match conversation.converse().await {
        Ok(()) => part(conversation.connection, conversation.session, conversation.unsettled).await,
        // Whether the client has its 250 is not known: nothing is settled.
        Err(error) => debug!(%error, "connection lost"),
    }
}

/// Closes the connection. A client that had its 250 just before may have gone without it: where it has not, its
/// fingerprints are settled. A router that is killed meanwhile leaves them to its retry.
async fn part(mut connection: Connection, session: SessionContext, unsettled: Vec<Claim>) {
    if unsettled.is_empty() {
        return connection.close().await;
    }
    let context = session.context;
    let mut stop = connection.stop().clone();
    let turn = context.partings.clone().try_acquire_owned();
    let parting = async move {
        if connection.was_heard().await {
            unsettled.into_iter().for_each(|claim| context.settler.settle(claim));
        } else {
            debug!(claims = unsettled.len(), "the client has gone without its answer");
        }
        connection.close().await;
    };
    match turn {
        // Apart from the session, whose memory and whose place among the connections are then free.
        Ok(turn) => drop(tokio::spawn(async move {
            tokio::select! {
                () = parting => {}
                () = stop.killed() => {}
            }
            drop((turn, stop));
        })),
        Err(_) => parting.await,
    }
}

fn machine_settings(session: &SessionContext) -> Settings {
    let (listener, settings) = (&session.listener, &session.context.settings);
    let submission = listener.role == Role::Submission;
    Settings {
        size_max: settings.limits.message_octets_max,
        recipients_max: settings.limits.recipients_max,
        tls: match listener.tls {
            ListenerTls::Implicit => Tls::Active,
            ListenerTls::StartTls if session.tls_available() => Tls::Available,
            ListenerTls::StartTls | ListenerTls::None => Tls::Unavailable,
        },
        auth: match (submission, listener.allow_plaintext_login) {
            (false, _) => AuthOffer::Never,
            (true, false) => AuthOffer::OverTls,
            (true, true) => AuthOffer::Always,
        },
        auth_required: submission,
        ..Settings::mx(&settings.hostname)
    }
}

struct Conversation {
    machine: Session,
    connection: Connection,
    session: SessionContext,
    transaction: Option<Box<Transaction>>,
    /// Stored and answered with 250. The client's next word shows that it has the answer (RFC 1047).
    unsettled: Vec<Claim>,
    failures: Failures,
}

/// From MAIL to the end of the content.
struct Transaction {
    reverse_path: Option<Mailbox>,
    recipients: BTreeSet<LocalRecipient>,
    /// RCPT commands that were accepted, and the only one's path.
    accepted: usize,
    path: String,
    spool: Option<Spool>,
    /// The content could not be kept.
    broken: bool,
}

/// Whether the conversation goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Step,
    End,
}

impl Conversation {
    /// Returns when the connection is to be closed in peace.
    async fn converse(&mut self) -> io::Result<()> {
        let limits = self.session.context.settings.limits.clone();
        let early = Duration::from_millis(limits.smtp_greeting_delay_ms);
        let early = self.connection.is_early_talker(early).await;
        let greeting = self.machine.greeting(early);
        let mut next = self.perform(greeting).await?;
        while next == Next::Step {
            next = self.step().await?;
            if next == Next::End {
                break;
            }
            self.connection.flush().await?;
            match self.read(limits.idle(Protocol::Smtp)).await {
                Incoming::Data => self.settle_if_heard(),
                Incoming::Closed => return Ok(()),
                Incoming::Idle => {
                    self.farewell(Farewell::Idle);
                    return Ok(());
                }
                Incoming::Stopping => {
                    self.farewell(Farewell::ShuttingDown);
                    return Ok(());
                }
            }
        }
        // A QUIT that came in one packet with the content does not show that the client has the 250 between.
        self.connection.flush().await
    }

    async fn read(&mut self, idle: Duration) -> Incoming {
        // A message that is on its way may still come, until the router cuts everybody off.
        if self.machine.is_receiving() {
            return self.connection.read_on(idle).await;
        }
        let mut left = idle;
        // A client that is silent has the 250 once its TCP has: a link that is dead leaves it silent too.
        while !self.unsettled.is_empty() && left > SETTLE_AFTER {
            match self.connection.read(SETTLE_AFTER).await {
                Incoming::Idle => self.settle_if_heard(),
                other => return other,
            }
            left -= SETTLE_AFTER;
            if idle - left >= UNHEARD_MAX {
                // Not settled: the sender's retry on another connection finds what is stored.
                self.unsettled.clear();
            }
        }
        self.connection.read(left).await
    }

    /// All that the input holds.
    async fn step(&mut self) -> io::Result<Next> {
        while let Some(event) = self.machine.step(self.connection.input()) {
            if self.perform(event).await? == Next::End {
                return Ok(Next::End);
            }
            self.connection.flush_if_full().await?;
            if self.connection.stop().is_stopping() && self.transaction.is_none() && !self.machine.is_closed() {
                self.farewell(Farewell::ShuttingDown);
                return Ok(Next::End);
            }
        }
        Ok(Next::Step)
    }

    fn farewell(&mut self, why: Farewell) {
        let bytes = self.machine.farewell(why);
        self.connection.queue(&bytes);
    }

    /// A round trip: the same content again is another message only once the client has the answer for the one before it.
    async fn wait_until_heard(&mut self) {
        let until = Instant::now() + UNHEARD_MAX;
        loop {
            self.settle_if_heard();
            if self.unsettled.is_empty() {
                return;
            }
            if Instant::now() >= until {
                return self.unsettled.clear();
            }
            sleep(ACKNOWLEDGEMENT_LOOK).await;
        }
    }

    /// What the client sends shows that it has its 250 only if it was not on its way before, as where one group of commands
    /// comes in two packets (RFC 2920 §3.1).
    fn settle_if_heard(&mut self) {
        if self.unsettled.is_empty() || !self.connection.is_acknowledged() {
            return;
        }
        for claim in std::mem::take(&mut self.unsettled) {
            self.session.context.settler.settle(claim);
        }
    }

    async fn perform(&mut self, event: Event) -> io::Result<Next> {
        let answer = match event {
            Event::Reply(_) | Event::Quit(_) | Event::Close(_) | Event::Reset(_) | Event::StartTls(_) => {
                return self.write(event).await;
            }
            Event::Mail(mail) => match self.session.listener.role {
                Role::Mx => {
                    self.transaction = Some(Box::new(Transaction::new(mail.reverse_path)));
                    self.machine.accept()
                }
                Role::Submission => self.machine.answer(&submission_unavailable()),
            },
            Event::Recipient(path) => match self.recipient(&path) {
                Ok(()) => self.machine.accept(),
                Err(reply) => self.machine.answer(&reply),
            },
            Event::Data => self.machine.accept(),
            Event::Content(piece) => {
                self.content(&piece).await;
                return Ok(Next::Step);
            }
            Event::ContentAborted(_) => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.spool = None;
                }
                return Ok(Next::Step);
            }
            Event::ContentEnd { .. } => {
                // Two messages in one packet: the first one's answer goes out first.
                self.connection.flush().await?;
                self.wait_until_heard().await;
                let reply = Box::pin(self.content_end()).await;
                self.machine.answer(&reply)
            }
            Event::Auth(credentials) => self.auth(credentials).await,
        };
        self.write(answer).await
    }

    /// Performs the events that only write.
    async fn write(&mut self, event: Event) -> io::Result<Next> {
        self.session.count_command();
        match event {
            Event::Reply(bytes) => self.connection.queue(&bytes),
            Event::Reset(bytes) => {
                self.connection.queue(&bytes);
                self.transaction = None;
            }
            Event::StartTls(bytes) => {
                self.connection.queue(&bytes);
                self.connection.flush().await?;
                self.transaction = None;
                self.session.start_tls(&mut self.connection).await?;
                self.machine.tls_started();
            }
            Event::Quit(bytes) | Event::Close(bytes) => {
                self.connection.queue(&bytes);
                self.transaction = None;
                return Ok(Next::End);
            }
            // Questions are answered by events that write.
            Event::Mail(_)
            | Event::Recipient(_)
            | Event::Data
            | Event::Content(_)
            | Event::ContentAborted(_)
            | Event::ContentEnd { .. }
            | Event::Auth(_) => {}
        }
        Ok(Next::Step)
    }

    fn recipient(&mut self, path: &ForwardPath) -> Result<(), SmtpReply> {
        let context = &self.session.context;
        let found = match path {
            ForwardPath::Postmaster => context.cluster.resolve_postmaster(),
            ForwardPath::Mailbox(mailbox) => match mailbox.account_name() {
                Some(name) => context.cluster.resolve(&name),
                // No account can have such a name; whether to say so, or that we do not relay, depends on the domain.
                None => Err(match mailbox.domain() {
                    smtp::Domain::Name(domain) => context.cluster.refusal(domain.as_str()),
                    _ => Refused::Foreign,
                }),
            },
        };
        context.metrics.recipient(match &found {
            Ok(_) => "accepted",
            Err(Refused::Unknown) => "unknown",
            Err(Refused::Foreign) => "foreign",
            Err(Refused::TooMany | Refused::NoDomains | Refused::Unknowable) => "deferred",
        });
        let found = found.map_err(Refused::smtp_reply)?;
        if found.iter().any(|recipient| context.cluster.has_no_leader(recipient.shard)) {
            // Before the sender goes to the length of a message (451 4.3.0).
            return Err(MailError::Unavailable.smtp_reply());
        }
        let Some(transaction) = &mut self.transaction else { return Err(MailError::Unavailable.smtp_reply()) };
        if transaction.recipients.len() + found.len() > ACCOUNTS_MAX {
            let text = "too many recipients in one transaction".to_owned();
            return Err(SmtpReply { code: 452, enhanced: "4.5.3", text });
        }
        transaction.recipients.extend(found);
        transaction.accepted += 1;
        transaction.path = if transaction.accepted == 1 { path.to_string() } else { String::new() };
        Ok(())
    }

    async fn content(&mut self, piece: &bytes::Bytes) {
        let Some(transaction) = &mut self.transaction else { return };
        if transaction.broken {
            return;
        }
        let spool = transaction.spool.get_or_insert_with(|| Spool::new(self.session.context.spools.clone()));
        if let Err(error) = spool.push(piece).await {
            tracing::error!(%error, "cannot spool a message");
            transaction.broken = true;
            transaction.spool = None;
        }
    }

    /// The message is complete: stored for everybody, or not accepted.
    async fn content_end(&mut self) -> SmtpReply {
        let context = self.session.context.clone();
        let id = context.transaction_id();
        let Some(transaction) = self.transaction.take() else { return MailError::Unavailable.smtp_reply() };
        let recipients = transaction.recipients.len();
        let result = self.deliver(*transaction, &id).await;
        let reply = match result {
            Ok(claim) => {
                self.unsettled.push(claim);
                context.metrics.delivery("stored");
                SmtpReply { code: 250, enhanced: "2.0.0", text: format!("stored as {id}") }
            }
            Err(reply) => {
                context.metrics.delivery(if reply.code < 500 { "deferred" } else { "refused" });
                reply
            }
        };
        info!(transaction = id, recipients, code = reply.code, "mail transaction ended");
        reply
    }

    async fn deliver(&mut self, transaction: Transaction, id: &str) -> Result<Claim, SmtpReply> {
        let context = &self.session.context;
        let full = || SmtpReply { code: 452, enhanced: "4.3.1", text: "insufficient system storage".to_owned() };
        if transaction.broken {
            return Err(full());
        }
        let spool = transaction.spool.unwrap_or_else(|| Spool::new(context.spools.clone()));
        let spooled = spool.finish().await.map_err(|error| {
            tracing::error!(%error, "cannot spool a message");
            full()
        })?;
        let now = unix_s();
        let received = smtp::received_header(&Trace {
            helo: self.machine.helo().unwrap_or_default(),
            client_ip: self.connection.peer().ip(),
            client_name: None,
            by: &context.settings.hostname,
            with: self.machine.protocol(),
            id,
            for_recipient: Some(transaction.path.as_str()).filter(|path| !path.is_empty()),
            date_unix_s: now,
        });
        let trace = smtp::return_path_header(transaction.reverse_path.as_ref()) + &received;
        let delivery = Delivery {
            reverse_path: transaction.reverse_path.map(|mailbox| mailbox.to_string()).unwrap_or_default(),
            recipients: transaction.recipients.into_iter().collect(),
            content: spooled.body.clone(),
            digest: spooled.digest,
            trace: trace.into(),
            date: InternalDate::utc(now),
        };
        delivery.deliver(context.cluster.shards(), &context.settler).await.map_err(|error| error.smtp_reply())
    }

    async fn auth(&mut self, credentials: Credentials) -> Event {
        let auth = &self.session.context.auth;
        let authorization = credentials.authorization.as_deref();
        match auth.login(&credentials.user, authorization, credentials.password.expose()).await {
            Ok(_) => self.machine.accept(),
            Err(MailError::Denied) => {
                self.failures.failed().await;
                let text = "authentication credentials invalid".to_owned();
                self.machine.answer(&SmtpReply { code: 535, enhanced: "5.7.8", text })
            }
            Err(error) => {
                debug!(%error, "login not possible");
                let text = "temporary authentication failure".to_owned();
                self.machine.answer(&SmtpReply { code: 454, enhanced: "4.7.0", text })
            }
        }
    }
}

impl Transaction {
    fn new(reverse_path: Option<Mailbox>) -> Transaction {
        Transaction {
            reverse_path,
            recipients: BTreeSet::new(),
            accepted: 0,
            path: String::new(),
            spool: None,
            broken: false,
        }
    }
}

/// The queue that relays is not built yet.
fn submission_unavailable() -> SmtpReply {
    let text = "submission is not available on this server yet".to_owned();
    SmtpReply { code: 451, enhanced: "4.3.2", text }
}
