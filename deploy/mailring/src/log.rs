//! Log output: to standard error, where systemd, a container or a redirection collects it.

use anyhow::{Context, Result};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// openraft tells its whole state at `info`, of each of hundreds of groups; at `warn`, each heartbeat, vote and append
/// that does not reach a peer, which is normal while a node is away and which `mailring status` shows; and in
/// `openraft::raft` as an error that a call came to a group that has stopped, as any may when the process ends. Why a
/// group stops other than by our wish it says in `openraft::core`, and we say it ourselves.
const FILTER: &str = "info,openraft=error,openraft::raft=off";

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    pub format: LogFormat,
    /// What to log, such as `warn` or `info,router=debug` (tracing-subscriber's directives).
    pub filter: String,
}

impl Default for LogSettings {
    fn default() -> LogSettings {
        LogSettings { format: LogFormat::Text, filter: FILTER.to_owned() }
    }
}

impl LogSettings {
    pub fn validate(&self) -> Result<EnvFilter> {
        EnvFilter::try_new(&self.filter).with_context(|| format!("log.filter: {:?}", self.filter))
    }

    /// Once in a process's life.
    pub fn start(&self) -> Result<()> {
        let builder =
            tracing_subscriber::fmt().with_env_filter(self.validate()?).with_writer(std::io::stderr).with_ansi(false);
        match self.format {
            LogFormat::Text => builder.init(),
            LogFormat::Json => builder.json().init(),
        }
        // A panic goes to the log like everything else, and ends the task or thread that it happened in.
        std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panic")));
        Ok(())
    }
}
