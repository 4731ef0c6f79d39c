//! Admin commands, as an operator runs them.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::process::{eventually, mailring, said};

/// Bounds only how long a test waits before it gives up.
const LOOK_UP_MAX: Duration = Duration::from_secs(60);
/// The exit code of a command that nobody has answered.
const NOBODY: i32 = 3;
/// What such a command says where it has asked for nothing yet, and where nothing came of it for certain: a busy machine may
/// let seconds go by, and the same command may be given again.
const NOTHING_ASKED: &str = "no node answers";
const NOTHING_DONE: &str = "nothing was changed";

impl Cluster {
    /// An admin command's standard output; its failure is an error with what it said. A look-up is made again while nobody
    /// answers it: nodes may be dead, and the machine busy. So is a change while nobody has made it.
    pub fn admin(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.admin_command(arguments)?;
        let output = eventually("somebody answers", LOOK_UP_MAX, || {
            let output = command.output()?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_undone = text.contains(NOTHING_ASKED) || !waits(arguments) && text.contains(NOTHING_DONE);
            let is_in_vain = output.status.code() == Some(NOBODY) && (is_look_up(arguments) || is_undone);
            ensure!(!is_in_vain, "{text}");
            Ok(output)
        })?;
        said(&command, &output)
    }

    /// The same, not run yet.
    pub fn admin_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = mailring(self.options().planted)?;
        command.args(arguments).env("MAILRING_CONFIG", self.path().join("admin.toml")).stdin(Stdio::null());
        Ok(command)
    }

    /// What an admin command prints with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        Ok(serde_json::from_str(&self.admin(&arguments)?)?)
    }
}

/// Whether a command waits for what comes of a change: then it may have been made all the same.
fn waits(arguments: &[&str]) -> bool {
    arguments.contains(&"--wait")
}

/// Whether a command changes nothing.
fn is_look_up(arguments: &[&str]) -> bool {
    matches!(arguments, ["status", ..] | [_, "list" | "show" | "status" | "plan", ..])
}
