//! Why a command failed, and the exit code that says so to a script.

use std::process::ExitCode;

use types::MailError;

/// A failed command. Exit codes: 1 refused or failed, 2 wrong usage or settings, 3 the cluster could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The cluster, or this machine, said no.
    #[error("{0}")]
    Refused(String),
    /// As [`Failure::Refused`], but the command has already printed all there is to say.
    #[error("failed")]
    Told,
    /// The command line or a settings file is wrong: nothing was tried.
    #[error("{0:#}")]
    Usage(anyhow::Error),
    /// Nobody who could answer did; whether a change was made may be unknown, and then the text says so.
    #[error("{0}")]
    Unreachable(String),
}

impl Failure {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Refused(_) | Failure::Told => ExitCode::from(1),
            Failure::Usage(_) => ExitCode::from(2),
            Failure::Unreachable(_) => ExitCode::from(3),
        }
    }

    pub fn report(&self) {
        match self {
            Failure::Told => {}
            Failure::Refused(_) | Failure::Usage(_) | Failure::Unreachable(_) => eprintln!("mailring: {self}"),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Refused(format!("{error:#}"))
    }
}

impl From<MailError> for Failure {
    fn from(error: MailError) -> Failure {
        match &error {
            MailError::NotLeader { .. } | MailError::Unavailable => {
                Failure::Unreachable("the cluster cannot answer now: its directory has no leader".to_owned())
            }
            MailError::Deadline => {
                Failure::Unreachable("no answer in time; the change may or may not be made".to_owned())
            }
            MailError::Denied => {
                Failure::Refused("permission denied: the certificate in [tls] is not an admin's".to_owned())
            }
            MailError::Busy
            | MailError::NotHere
            | MailError::NoSuchAccount
            | MailError::NoSuchMailbox
            | MailError::MailboxExists
            | MailError::MailboxGone
            | MailError::MessagesGone
            | MailError::OverQuota
            | MailError::DiskFull
            | MailError::Limit(_)
            | MailError::Invalid(_)
            | MailError::CannotDo(_)
            | MailError::InUse
            | MailError::Corrupt { .. }
            | MailError::Internal(_) => Failure::Refused(error.to_string()),
        }
    }
}
