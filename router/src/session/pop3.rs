//! The POP3 conversation: performs what the protocol machine decides. The maildrop's lock is held on the shard's
//! leader from login to the end; messages are streamed through, never held.

use std::io;
use std::time::Duration;

use pop3::{Credentials, Event, Farewell, Session, Settings, Tls};
use tokio::time::Instant;
use tracing::debug;
use types::MailError;

use super::SessionContext;
use super::pop3_mail::{OpenMaildrop, Retrieval};
use crate::auth::Failures;
use crate::cluster::Access;
use crate::connection::{Connection, Incoming};
use crate::settings::{ListenerTls, Protocol};

/// Serves one connection until it ends.
pub async fn run(connection: Connection, session: SessionContext) {
    let settings = Settings {
        tls: match session.listener.tls {
            ListenerTls::Implicit => Tls::Active,
            ListenerTls::StartTls if session.tls_available() => Tls::Available,
            ListenerTls::StartTls | ListenerTls::None => Tls::Unavailable,
        },
        cleartext_passwords: session.listener.allow_plaintext_login,
        ..Settings::default()
    };
    let mut conversation = Conversation {
        machine: Session::new(settings),
        connection,
        session,
        maildrop: None,
        access: None,
        failures: Failures::default(),
    };
    match conversation.converse().await {
        Ok(()) => {
            // Free the lock before the client is told that all is over.
            conversation.maildrop = None;
            conversation.connection.close().await;
        }
        Err(error) => debug!(%error, "connection lost"),
    }
}

struct Conversation {
    machine: Session,
    connection: Connection,
    session: SessionContext,
    maildrop: Option<Box<OpenMaildrop>>,
    /// Set with it.
    access: Option<Access>,
    failures: Failures,
}

/// Whether the conversation goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Step,
    End,
}

/// What a session that waits for its client met.
enum Waited {
    For(Incoming),
    AccountOver,
}

impl Conversation {
    /// Returns when the connection is to be closed in peace.
    async fn converse(&mut self) -> io::Result<()> {
        let limits = self.session.context.settings.limits.clone();
        let login_until = Instant::now() + limits.login();
        let greeting = self.machine.greeting();
        self.connection.queue(&greeting);
        loop {
            while let Some(event) = self.machine.step(self.connection.input()) {
                if self.access.as_mut().is_some_and(Access::is_over) {
                    self.farewell(Farewell::AccountDisabled);
                    return Ok(());
                }
                if self.perform(event).await? == Next::End {
                    return Ok(());
                }
                self.connection.flush_if_full().await?;
            }
            self.connection.flush().await?;
            let wait = match self.maildrop {
                Some(_) => limits.idle(Protocol::Pop3),
                None => login_until.saturating_duration_since(Instant::now()),
            };
            let farewell = match self.read(wait).await {
                Waited::For(Incoming::Data) => continue,
                Waited::For(Incoming::Closed) => return Ok(()),
                Waited::For(Incoming::Idle) => Farewell::Idle,
                Waited::For(Incoming::Stopping) => Farewell::ShuttingDown,
                Waited::AccountOver => Farewell::AccountDisabled,
            };
            self.farewell(farewell);
            return Ok(());
        }
    }

    fn farewell(&mut self, why: Farewell) {
        let bytes = self.machine.farewell(why);
        self.connection.queue(&bytes);
    }

    /// Waits for the client, and meanwhile for the lock to be lost or the account to end.
    async fn read(&mut self, wait: Duration) -> Waited {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let (Some(maildrop), Some(access)) = (&mut self.maildrop, &mut self.access) else {
                return Waited::For(self.connection.read(left).await);
            };
            tokio::select! {
                biased;
                () = access.over() => return Waited::AccountOver,
                incoming = self.connection.read(left) => return Waited::For(incoming),
                () = maildrop.lock_lost() => {}
            }
            if let Err(error) = maildrop.lock_again().await {
                debug!(%error, "maildrop lock lost");
                return Waited::For(Incoming::Closed);
            }
        }
    }

    async fn perform(&mut self, event: Event) -> io::Result<Next> {
        self.session.count_command();
        match event {
            Event::Reply(bytes) => self.connection.queue(&bytes),
            Event::StartTls(bytes) => {
                self.connection.queue(&bytes);
                self.connection.flush().await?;
                self.session.start_tls(&mut self.connection).await?;
                self.machine.tls_started();
            }
            Event::Login(credentials) => {
                let answer = Box::pin(self.login(credentials)).await;
                return Ok(self.write(answer));
            }
            Event::Retrieve(retrieve) => {
                let Some(maildrop) = &self.maildrop else { return Ok(self.fail(&MailError::Unavailable)) };
                let items = Retrieval::request(maildrop, retrieve.index);
                match Box::pin(Retrieval::open(items, retrieve.top)).await {
                    Ok(retrieval) => {
                        self.connection.queue(&retrieve.ok);
                        Box::pin(retrieval.run(&mut self.connection)).await?;
                        self.machine.retrieved();
                    }
                    Err(error) => return Ok(self.fail(&error)),
                }
            }
            Event::Update { deleted } => {
                let Some(mut maildrop) = self.maildrop.take() else { return Ok(self.fail(&MailError::Unavailable)) };
                let result = Box::pin(maildrop.update(&deleted)).await;
                drop(maildrop);
                let answer = match result {
                    Ok(()) => self.machine.updated(),
                    Err(error) => self.machine.fail(&error),
                };
                return Ok(self.write(answer));
            }
            Event::Quit(_) | Event::Close(_) => return Ok(self.write(event)),
        }
        Ok(Next::Step)
    }

    fn fail(&mut self, error: &MailError) -> Next {
        let answer = self.machine.fail(error);
        self.write(answer)
    }

    /// Answers write, and may end.
    fn write(&mut self, answer: Event) -> Next {
        match answer {
            Event::Reply(bytes) => {
                self.connection.queue(&bytes);
                Next::Step
            }
            Event::Quit(bytes) | Event::Close(bytes) => {
                self.connection.queue(&bytes);
                Next::End
            }
            // No answer asks.
            Event::StartTls(_) | Event::Login(_) | Event::Retrieve(_) | Event::Update { .. } => Next::End,
        }
    }

    async fn login(&mut self, credentials: Credentials) -> Event {
        let context = self.session.context.clone();
        let authorization = credentials.authorization.as_deref();
        let login = context.auth.login(&credentials.user, authorization, credentials.password.expose()).await;
        let opened = match login {
            Ok(login) => {
                let opened = OpenMaildrop::open(context.cluster.shards(), &login).await;
                self.access = opened.is_ok().then(|| context.cluster.access(login.name, login.account));
                opened
            }
            Err(MailError::Denied) => {
                self.failures.failed().await;
                return self.machine.denied();
            }
            Err(error) => Err(error),
        };
        match opened {
            Ok((maildrop, listing)) => {
                self.maildrop = Some(Box::new(maildrop));
                self.machine.logged_in(listing)
            }
            Err(error) => {
                debug!(%error, "maildrop not opened");
                self.machine.fail(&error)
            }
        }
    }
}
