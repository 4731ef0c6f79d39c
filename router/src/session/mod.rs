//! A client's session, from its connection on: which protocol, and TLS from the first octet where the listener says
//! so. Each protocol's conversation has its own module.

pub mod imap;
pub mod pop3;
mod pop3_mail;
pub mod smtp;

use std::sync::Arc;

use tracing::debug;

use crate::connection::Connection;
use crate::context::Context;
use crate::settings::{ListenerSettings, ListenerTls, Protocol};

/// What a session is given beside its connection.
#[derive(Clone)]
pub struct SessionContext {
    pub listener: Arc<ListenerSettings>,
    pub context: Arc<Context>,
}

impl SessionContext {
    /// STARTTLS can be offered.
    pub fn tls_available(&self) -> bool {
        self.listener.tls == ListenerTls::StartTls && self.context.tls.is_some()
    }

    /// The handshake after STARTTLS, or from the first octet.
    pub async fn start_tls(&self, connection: &mut Connection) -> std::io::Result<()> {
        match &self.context.tls {
            Some(tls) => connection.start_tls(&tls.acceptor()).await,
            None => Err(std::io::ErrorKind::Unsupported.into()),
        }
    }

    pub fn count_command(&self) {
        self.context.metrics.command(self.listener.protocol);
    }
}

pub(crate) async fn run(mut connection: Connection, listener: Arc<ListenerSettings>, context: Arc<Context>) {
    let protocol = listener.protocol;
    let session = SessionContext { listener, context };
    if session.listener.tls == ListenerTls::Implicit
        && let Err(error) = session.start_tls(&mut connection).await
    {
        debug!(%error, "tls handshake failed");
        return;
    }
    // Boxed one by one, so that a session takes no more memory than its own protocol needs.
    match protocol {
        Protocol::Smtp => Box::pin(smtp::run(connection, session)).await,
        Protocol::Pop3 => Box::pin(pop3::run(connection, session)).await,
        Protocol::Imap => Box::pin(imap::run(connection, session)).await,
    }
}
