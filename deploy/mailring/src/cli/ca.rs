//! Certificates.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use super::OutputArgs;

#[derive(Subcommand, Debug)]
pub enum CaVerb {
    /// Make a certificate authority: DIR/ca.pem and DIR/ca.key
    Create {
        #[arg(long)]
        dir: PathBuf,
        /// Days until it ends
        #[arg(long, default_value_t = 3652, value_parser = clap::value_parser!(u32).range(1..=36525))]
        days: u32,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Give a process its place in the cluster: NAME.pem and NAME.key
    Issue {
        /// Where the authority is
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        role: Role,
        #[arg(long)]
        name: String,
        /// Where to write; the authority's directory unless given
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Days until it ends
        #[arg(long, default_value_t = 731, value_parser = clap::value_parser!(u32).range(1..=36525))]
        days: u32,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a router's certificate for mail clients: server.pem and server.key
    IssueServer {
        /// Where the authority is
        #[arg(long)]
        dir: PathBuf,
        /// Host names and addresses that clients connect to, parted by commas
        #[arg(long, required = true, value_delimiter = ',')]
        hostname: Vec<String>,
        /// File name without its ending
        #[arg(long, default_value = "server")]
        name: String,
        /// Where to write; the authority's directory unless given
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Days until it ends
        #[arg(long, default_value_t = 731, value_parser = clap::value_parser!(u32).range(1..=36525))]
        days: u32,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// What a process may ask of others; the cluster's CA writes it into the certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Role {
    Node,
    Router,
    Admin,
}
