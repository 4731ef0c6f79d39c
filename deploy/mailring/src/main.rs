//! `mailring`: the one binary. It runs the roles, administers a running cluster, and makes the cluster's certificates.
//! What it does itself is only what an operator sees: command line, settings files, logs, health pages.

mod admin;
mod ca;
mod cli;
mod failure;
mod http;
mod log;
mod metrics;
mod names;
mod output;
mod password;
mod roles;
mod settings;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Parser;
use serde::Serialize;

use crate::cli::{CaVerb, Cli, Command, NodeCommand, RoleCommand};
use crate::failure::Failure;

/// Shared with RocksDB; gives memory back after a burst of large messages.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            failure.exit_code()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("a TLS provider is installed already"))?;
    let config = || {
        cli.config
            .clone()
            .ok_or_else(|| Failure::Usage(anyhow!("no settings: give --config FILE or set MAILRING_CONFIG")))
    };
    match cli.command {
        Command::Node(NodeCommand { verb: None }) => roles::node(settings::read(&config()?)?),
        Command::Router(RoleCommand {}) => roles::router(settings::read(&config()?)?),
        Command::Single(RoleCommand {}) => roles::single(settings::read(&config()?)?),
        Command::Ca { verb } => certificates(verb).map_err(Failure::from),
        Command::Node(NodeCommand { verb: Some(verb) }) => administer(config()?, admin::Action::Node(verb)),
        Command::Status(output) => administer(config()?, admin::Action::Status(output)),
        Command::Domain { verb } => administer(config()?, admin::Action::Domain(verb)),
        Command::Account { verb } => administer(config()?, admin::Action::Account(verb)),
        Command::Alias { verb } => administer(config()?, admin::Action::Alias(verb)),
        Command::Quota { verb } => administer(config()?, admin::Action::Quota(verb)),
        Command::Rebalance { verb } => administer(config()?, admin::Action::Rebalance(verb)),
        Command::Shard { verb } => administer(config()?, admin::Action::Shard(verb)),
        Command::Scrub { shard, output } => administer(config()?, admin::Action::Scrub { shard, output }),
        Command::Volume { verb } => administer(config()?, admin::Action::Volume(verb)),
    }
}

fn administer(config: PathBuf, action: admin::Action) -> Result<(), Failure> {
    let settings = settings::read(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(admin::run(settings, action))
}

fn certificates(verb: CaVerb) -> anyhow::Result<()> {
    let (written, output) = match verb {
        CaVerb::Create { dir, days, output } => (ca::create(&dir, days)?, output),
        CaVerb::Issue { dir, role, name, out, days, output } => {
            (ca::issue(&dir, role, &name, out.as_deref(), days)?, output)
        }
        CaVerb::IssueServer { dir, hostname, name, out, days, output } => {
            (ca::issue_server(&dir, &hostname, &name, out.as_deref(), days)?, output)
        }
    };
    let files: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
    output.done(&Written { files: &files }, &files.join("\n"))
}

#[derive(Serialize)]
struct Written<'a> {
    files: &'a [String],
}
