//! Who gets mail: domains, accounts and aliases.

use std::path::PathBuf;

use clap::Subcommand;

use super::OutputArgs;

#[derive(Subcommand, Debug)]
pub enum DomainVerb {
    /// Accept mail for a domain
    Add {
        /// Unicode names are stored in their ASCII form
        domain: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Every domain
    List(OutputArgs),
    /// One domain with its accounts and aliases counted
    Show {
        domain: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Refused while the domain has accounts or aliases
    Remove {
        domain: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Subcommand, Debug)]
pub enum AccountVerb {
    /// Add an account; asks for the password twice unless --password-stdin is given
    Add {
        /// local@domain
        account: String,
        /// Read the password from the first line of standard input
        #[arg(long)]
        password_stdin: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Every account
    List {
        /// Only those of this domain
        #[arg(long)]
        domain: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// One account and the aliases that lead to it
    Show {
        account: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Change the password, whether the account may log in, or who is postmaster
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        account: String,
        /// Let it log in again
        #[arg(long, group = "change", conflicts_with = "disable")]
        enable: bool,
        /// No log-in; mail for it is still accepted
        #[arg(long, group = "change")]
        disable: bool,
        /// Give it the mail for postmaster of every domain that has none of its own
        #[arg(long, group = "change")]
        postmaster: bool,
        /// Ask for a new password, twice
        #[arg(long, group = "change")]
        password: bool,
        /// Read a new password from the first line of standard input
        #[arg(long, group = "change", conflicts_with = "password")]
        password_stdin: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove an account and all of its mail
    Remove {
        account: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Move an account to another shard while it is served: UIDs, flags and all that clients remember stay as they are
    ///
    /// The account is copied first; then it is held for some hundred milliseconds while it changes over. `account show`
    /// tells how far it is.
    Move {
        account: String,
        /// The shard that it is to be on, from 0
        #[arg(required_unless_present = "abort")]
        shard: Option<u32>,
        /// Return when it is there and its old copy is dropped
        #[arg(long)]
        wait: bool,
        /// Undo a move that has not changed over yet
        #[arg(long, conflicts_with = "shard")]
        abort: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Add many accounts from a CSV file with a header line: account,password or account,password_hash
    ///
    /// `password_hash` is an Argon2id hash as a PHC string ($argon2id$...). A line that fails is reported by its number
    /// and does not hinder the others; the exit code is then 1.
    Import {
        /// `-` reads standard input
        file: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Subcommand, Debug)]
pub enum AliasVerb {
    /// Add a name that stands for accounts or other aliases; *@domain catches what the domain has no other name for
    Add {
        alias: String,
        #[arg(required = true)]
        targets: Vec<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Every alias
    List {
        /// Only those of this domain
        #[arg(long)]
        domain: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Refused while another alias leads to it
    Remove {
        alias: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}
