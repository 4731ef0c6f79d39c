//! `mailring quota`.

use std::str::FromStr;

use clap::{ArgGroup, Subcommand};

use super::OutputArgs;

#[derive(Subcommand, Debug)]
pub enum QuotaVerb {
    /// Change what an account may hold; a limit that is not given stays as it is
    ///
    /// Mail that is there stays. What would come above a limit is refused: 452 4.2.2 over SMTP, NO with OVERQUOTA over IMAP.
    #[command(group = ArgGroup::new("limit").required(true).multiple(true))]
    Set {
        account: String,
        /// Octets of all its messages together; a copy counts as another message
        #[arg(long, group = "limit", value_name = "N|none")]
        octets: Option<Limit>,
        /// Messages in all its mailboxes together
        #[arg(long, group = "limit", value_name = "N|none")]
        messages: Option<Limit>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// What an account holds, and what it may hold
    Show {
        account: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// `None` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit(pub Option<u64>);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Limit, String> {
        match text {
            "none" => Ok(Limit(None)),
            number => {
                let number = number.parse().map_err(|_| "neither a number nor `none`".to_owned())?;
                Ok(Limit(Some(number)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Limit, QuotaVerb};
    use crate::cli::{Cli, Command};

    #[test]
    fn a_limit_is_a_number_or_none_and_one_must_be_given() {
        let set = |arguments: &[&str]| {
            let parsed = Cli::try_parse_from(["mailring", "quota", "set", "a@b.test"].iter().chain(arguments));
            match parsed.ok()?.command {
                Command::Quota { verb: QuotaVerb::Set { octets, messages, .. } } => Some((octets, messages)),
                _ => None,
            }
        };
        assert_eq!(set(&["--octets", "5000"]), Some((Some(Limit(Some(5000))), None)));
        let both = (Some(Limit(None)), Some(Limit(Some(0))));
        assert_eq!(set(&["--messages", "0", "--octets", "none"]), Some(both));
        for bad in [&[][..], &["--octets"], &["--octets", "-1"], &["--octets", "1k"], &["--messages", ""]] {
            assert_eq!(set(bad), None, "{bad:?}");
        }
    }
}
