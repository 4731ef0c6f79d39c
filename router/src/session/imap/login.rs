//! Who the client is and what it can do: STARTTLS, LOGIN, AUTHENTICATE, ID, ENABLE.

use imap::command::Secret;
use imap::encode::{self, Status};
use imap::{Event, Limits, SaslResponse, Tag};
use proto::wire::AccountRequest;
use types::MailError;

use super::reply::{Reply, ReplyCode};
use super::{Conversation, Ended, Owner, Step};

/// What a SASL exchange came to.
enum Exchange {
    Response(Secret),
    Refused(Reply),
}

impl Conversation {
    /// RFC 3501 §6.2.1. What the client sent in clear after the command is never executed (RFC 3207 §4.2 has the
    /// reason).
    pub(super) async fn start_tls(&mut self, tag: &Tag) -> Step {
        self.connection.input().clear();
        encode::tagged(self.connection.output(), tag, Status::Ok, None, "begin TLS now");
        self.connection.flush().await?;
        if let Err(error) = self.session.start_tls(&mut self.connection).await {
            tracing::debug!(%error, "tls handshake failed");
            return Err(Ended);
        }
        self.decoder.reset();
        Ok(())
    }

    /// Wrong password, unknown account and disabled account are answered alike. Octets that are not UTF-8 are in no
    /// password, and are compared all the same, so that the answer takes as long.
    pub(super) async fn log_in(&mut self, user: &[u8], acting_as: Option<&str>, password: &[u8]) -> Step<Reply> {
        let (user, password) = (String::from_utf8_lossy(user), String::from_utf8_lossy(password));
        let login = match self.session.context.auth.login(&user, acting_as, &password).await {
            Ok(login) => login,
            Err(MailError::Denied) => {
                self.failures.failed().await;
                return Ok(Reply::no(ReplyCode::Named("AUTHENTICATIONFAILED"), "wrong name or password"));
            }
            Err(error) => return Ok(self.failed(&error)),
        };
        let owner = Owner { shard: login.shard.0, account: login.account.0 };
        let request = AccountRequest { shard: owner.shard, account: owner.account };
        if let Err(error) = self.shards().open_account(request).await {
            return Ok(self.failed(&error));
        }
        self.owner = Some(owner);
        self.access = Some(self.session.context.cluster.access(login.name, login.account));
        self.decoder.set_limits(Limits {
            append_octets_max: self.session.context.settings.limits.message_octets_max,
            ..Limits::AFTER_LOGIN
        });
        tracing::debug!(account = owner.account, "logged in");
        // Saves the client from asking (RFC 3501 §6.2.3).
        Ok(Reply::ok("logged in").with_code(ReplyCode::Capability(self.capabilities())))
    }

    /// RFC 3501 §6.2.2. Other mechanisms are refused before this.
    pub(super) async fn authenticate(&mut self, mechanism: &str, initial: Option<Secret>) -> Step<Reply> {
        if mechanism == "LOGIN" { self.sasl_login(initial).await } else { self.sasl_plain(initial).await }
    }

    /// `message = [authzid] UTF8NUL authcid UTF8NUL passwd` (RFC 4616 §2)
    async fn sasl_plain(&mut self, initial: Option<Secret>) -> Step<Reply> {
        let message = match self.sasl_response(initial, b"").await? {
            Exchange::Response(message) => message,
            Exchange::Refused(reply) => return Ok(reply),
        };
        let mut fields = message.expose().split(|octet| *octet == 0);
        let (Some(acting_as), Some(user), Some(password), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Ok(Reply::bad("malformed PLAIN message"));
        };
        let acting_as = String::from_utf8_lossy(acting_as);
        self.log_in(user, Some(&*acting_as).filter(|name| !name.is_empty()), password).await
    }

    /// The older mechanism, which Outlook prefers: two challenges, two answers.
    async fn sasl_login(&mut self, initial: Option<Secret>) -> Step<Reply> {
        let user = match self.sasl_response(initial, b"Username:").await? {
            Exchange::Response(user) => user,
            Exchange::Refused(reply) => return Ok(reply),
        };
        match self.sasl_response(None, b"Password:").await? {
            Exchange::Response(password) => self.log_in(user.expose(), None, password.expose()).await,
            Exchange::Refused(reply) => Ok(reply),
        }
    }

    /// The initial response if there was one (RFC 4959 §3), else the answer to a challenge.
    async fn sasl_response(&mut self, initial: Option<Secret>, challenge: &[u8]) -> Step<Exchange> {
        if let Some(initial) = initial {
            return Ok(Exchange::Response(initial));
        }
        self.decoder.expect_sasl_response();
        encode::challenge(self.connection.output(), challenge);
        let event = self.next_event().await?;
        let refused = match event {
            Event::AuthenticateLine(SaslResponse::Data(response)) => return Ok(Exchange::Response(response)),
            Event::AuthenticateLine(SaslResponse::Cancel) => "authentication cancelled",
            Event::AuthenticateLine(SaslResponse::Bad) => "not base64",
            Event::Fatal { text } => return self.bye(None, text),
            _ => "authentication broken off",
        };
        self.count_bad()?;
        Ok(Exchange::Refused(Reply::bad(refused)))
    }

    /// RFC 2971. The version is nobody's business before login.
    pub(super) fn id(&mut self) -> Reply {
        let known: &[(&str, Option<&str>)] = match self.owner {
            None => &[("name", Some("mailring"))],
            Some(_) => &[("name", Some("mailring")), ("version", Some(env!("CARGO_PKG_VERSION")))],
        };
        encode::id(self.connection.output(), known);
        Reply::ok("ID done")
    }

    /// RFC 5161 §3.1: what is not known is left out, without error.
    pub(super) fn enable(&mut self, names: &[String]) -> Reply {
        let condstore = names.iter().any(|name| name == "CONDSTORE");
        encode::enabled(self.connection.output(), condstore.then_some("CONDSTORE"));
        if condstore {
            self.knows_condstore();
        }
        Reply::ok("ENABLE done")
    }
}
