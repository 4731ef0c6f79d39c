//! The tagged answer to a command, kept until the updates that go before it are written.

use std::borrow::Cow;

use bytes::BytesMut;
use imap::encode::{self, Code, Status};
use imap::{Refusal, Tag};
use types::{InvalidName, MailError, UidSet, UidValidity};

#[derive(Debug)]
pub(super) struct Reply {
    pub status: Status,
    code: ReplyCode,
    text: Cow<'static, str>,
}

#[derive(Debug)]
pub(super) enum ReplyCode {
    None,
    Named(&'static str),
    BadCharset,
    ReadOnly,
    ReadWrite,
    TooBig,
    TryCreate,
    UseAttr,
    Capability(String),
    AppendUid { validity: UidValidity, uids: UidSet },
    CopyUid { validity: UidValidity, from: UidSet, to: UidSet },
    Modified(UidSet),
}

impl ReplyCode {
    pub(super) fn as_code(&self) -> Option<Code<'_>> {
        Some(match self {
            ReplyCode::None => return None,
            ReplyCode::Named(name) => Code::Named(name),
            ReplyCode::BadCharset => Code::BadCharset,
            ReplyCode::ReadOnly => Code::ReadOnly,
            ReplyCode::ReadWrite => Code::ReadWrite,
            ReplyCode::TooBig => Code::TooBig,
            ReplyCode::TryCreate => Code::TryCreate,
            ReplyCode::UseAttr => Code::UseAttr,
            ReplyCode::Capability(names) => Code::Capability(names),
            ReplyCode::AppendUid { validity, uids } => Code::AppendUid { validity: *validity, uids },
            ReplyCode::CopyUid { validity, from, to } => Code::CopyUid { validity: *validity, from, to },
            ReplyCode::Modified(numbers) => Code::Modified(numbers),
        })
    }
}

impl Reply {
    pub(super) fn ok(text: &'static str) -> Reply {
        Reply { status: Status::Ok, code: ReplyCode::None, text: text.into() }
    }

    pub(super) fn bad(text: &'static str) -> Reply {
        Reply { status: Status::Bad, code: ReplyCode::None, text: text.into() }
    }

    pub(super) fn no(code: ReplyCode, text: &'static str) -> Reply {
        Reply { status: Status::No, code, text: text.into() }
    }

    pub(super) fn with_code(self, code: ReplyCode) -> Reply {
        Reply { code, ..self }
    }

    pub(super) fn with_text(self, text: String) -> Reply {
        Reply { text: text.into(), ..self }
    }

    /// NO with the code that `error` has in IMAP.
    pub(super) fn failed(error: &MailError) -> Reply {
        let code = error.imap_code().map_or(ReplyCode::None, ReplyCode::Named);
        Reply { status: Status::No, code, text: error.to_string().into() }
    }

    /// For APPEND, COPY and MOVE, whose mailbox the client may make and try again (RFC 3501 §6.3.11, §6.4.7).
    pub(super) fn or_try_create(self, error: &MailError) -> Reply {
        match error {
            MailError::NoSuchMailbox => self.with_code(ReplyCode::TryCreate),
            _ => self,
        }
    }

    /// The selected mailbox was deleted.
    pub(super) fn gone() -> Reply {
        Reply::failed(&MailError::MailboxGone)
    }

    pub(super) fn invalid_name(error: InvalidName) -> Reply {
        Reply::no(ReplyCode::Named("CANNOT"), error.0)
    }

    pub(super) fn write(&self, out: &mut BytesMut, tag: &Tag) {
        encode::tagged(out, tag, self.status, self.code.as_code(), &self.text);
    }
}

/// The code of a refusal is one of the named ones, which need nothing borrowed.
pub(super) fn write_refusal(out: &mut BytesMut, tag: &Tag, refusal: Refusal) {
    encode::tagged(out, tag, refusal.status, refusal.code, refusal.text);
}
