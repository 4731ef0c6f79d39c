//! [`MailError`] to gRPC status and back: the kind travels in the status details, so nothing is lost on the way.

use prost::Message as _;
use tonic::{Code, Status};
use types::{MailError, NodeId};

use crate::wire::ErrorDetail;
use crate::wire::error_detail::Kind;

/// The status that carries an error. Texts meant for the log alone ([`MailError::Internal`], [`MailError::Corrupt`])
/// stay on the node.
pub fn status(error: &MailError) -> Status {
    let detail = ErrorDetail::from(error);
    Status::with_details(Code::from(error.grpc_code()), error.to_string(), detail.encode_to_vec().into())
}

/// What a status says. Without details it came from the transport: `Unavailable` where the request certainly never
/// reached a node, `Deadline` (outcome unknown) otherwise.
pub fn mail_error(status: &Status) -> MailError {
    if !status.details().is_empty()
        && let Ok(detail) = ErrorDetail::decode(status.details())
    {
        return MailError::from(&detail);
    }
    match status.code() {
        Code::Unavailable if never_sent(status) => MailError::Unavailable,
        // Made here and not received: the connection broke, by whatever name.
        _ if std::error::Error::source(status).is_some() => MailError::Deadline,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => MailError::Deadline,
        Code::PermissionDenied | Code::Unauthenticated => MailError::Denied,
        Code::ResourceExhausted => MailError::Busy,
        Code::InvalidArgument => MailError::Invalid(status.message().to_owned()),
        code => MailError::Internal(format!("{code:?}: {}", status.message())),
    }
}

fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

impl From<&MailError> for ErrorDetail {
    fn from(error: &MailError) -> ErrorDetail {
        let (kind, text, leader_hint) = match error {
            MailError::NotLeader { hint } => (Kind::NotLeader, "", hint.map_or(0, |node| node.0)),
            MailError::NotHere => (Kind::NotHere, "", 0),
            MailError::Unavailable => (Kind::Unavailable, "", 0),
            MailError::Deadline => (Kind::Deadline, "", 0),
            MailError::Busy => (Kind::Busy, "", 0),
            MailError::NoSuchAccount => (Kind::NoSuchAccount, "", 0),
            MailError::NoSuchMailbox => (Kind::NoSuchMailbox, "", 0),
            MailError::MailboxExists => (Kind::MailboxExists, "", 0),
            MailError::MailboxGone => (Kind::MailboxGone, "", 0),
            MailError::MessagesGone => (Kind::MessagesGone, "", 0),
            MailError::OverQuota => (Kind::OverQuota, "", 0),
            MailError::DiskFull => (Kind::DiskFull, "", 0),
            MailError::Limit(text) => (Kind::Limit, text.as_str(), 0),
            MailError::Invalid(text) => (Kind::Invalid, text.as_str(), 0),
            MailError::CannotDo(text) => (Kind::CannotDo, text.as_str(), 0),
            MailError::InUse => (Kind::InUse, "", 0),
            MailError::Corrupt { .. } => (Kind::Corrupt, "", 0),
            MailError::Denied => (Kind::Denied, "", 0),
            MailError::Internal(_) => (Kind::Internal, "", 0),
        };
        ErrorDetail { kind: kind.into(), text: text.to_owned(), leader_hint }
    }
}

impl From<&ErrorDetail> for MailError {
    fn from(detail: &ErrorDetail) -> MailError {
        let text = || detail.text.clone();
        match detail.kind() {
            Kind::NotLeader => {
                MailError::NotLeader { hint: Some(NodeId(detail.leader_hint)).filter(|node| node.0 != 0) }
            }
            Kind::NotHere => MailError::NotHere,
            Kind::Unavailable => MailError::Unavailable,
            Kind::Deadline => MailError::Deadline,
            Kind::Busy => MailError::Busy,
            Kind::NoSuchAccount => MailError::NoSuchAccount,
            Kind::NoSuchMailbox => MailError::NoSuchMailbox,
            Kind::MailboxExists => MailError::MailboxExists,
            Kind::MailboxGone => MailError::MailboxGone,
            Kind::MessagesGone => MailError::MessagesGone,
            Kind::OverQuota => MailError::OverQuota,
            Kind::DiskFull => MailError::DiskFull,
            Kind::Limit => MailError::Limit(text()),
            Kind::Invalid => MailError::Invalid(text()),
            Kind::CannotDo => MailError::CannotDo(text()),
            Kind::InUse => MailError::InUse,
            Kind::Corrupt => MailError::Corrupt { key: text() },
            Kind::Denied => MailError::Denied,
            Kind::Internal | Kind::Unspecified => MailError::Internal(text()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tonic::{Code, Status};
    use types::{MailError, NodeId};

    use super::{mail_error, status};

    #[test]
    fn errors_survive_the_wire() {
        for error in [
            MailError::NotLeader { hint: Some(NodeId(7)) },
            MailError::NotLeader { hint: None },
            MailError::NotHere,
            MailError::Unavailable,
            MailError::Deadline,
            MailError::Busy,
            MailError::NoSuchAccount,
            MailError::NoSuchMailbox,
            MailError::MailboxExists,
            MailError::MailboxGone,
            MailError::MessagesGone,
            MailError::OverQuota,
            MailError::DiskFull,
            MailError::Limit("too many mailboxes".into()),
            MailError::Invalid("bad name".into()),
            MailError::CannotDo("INBOX stays".into()),
            MailError::InUse,
            MailError::Denied,
        ] {
            assert_eq!(mail_error(&status(&error)), error);
        }
    }

    #[test]
    fn what_the_transport_says_leaves_the_outcome_open() {
        for code in [Code::Internal, Code::Unknown, Code::Unavailable, Code::Cancelled, Code::ResourceExhausted] {
            let mut broken = Status::new(code, "h2 protocol error: not a result of an error");
            broken.set_source(Arc::new(std::io::Error::other("connection broke")));
            assert_eq!(mail_error(&broken), MailError::Deadline, "{code:?}");
        }
        // A node said this one.
        assert!(matches!(mail_error(&Status::new(Code::Internal, "x")), MailError::Internal(_)));
    }

    #[test]
    fn what_is_for_the_log_stays_on_the_node() {
        let corrupt = MailError::Corrupt { key: "secret".into() };
        assert_eq!(mail_error(&status(&corrupt)), MailError::Corrupt { key: String::new() });
        assert!(!status(&MailError::Internal("secret".into())).message().contains("secret"));
    }
}
