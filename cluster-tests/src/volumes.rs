//! The volumes of a cluster's nodes, as an operator sees them.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::process::{START_MAX, binary, eventually};

/// The name of the first or the second half of a mirror.
pub fn letter(half: usize) -> &'static str {
    ["a", "b"][half]
}

impl Cluster {
    /// The volumes of a node as `mailring volume list` has them: a row for each disk.
    pub fn volumes(&self, node: &str) -> Result<Vec<Value>> {
        let rows: Vec<Value> = serde_json::from_str(&self.admin(&["volume", "list", "--json"])?)?;
        Ok(rows.into_iter().filter(|row| row["node"] == node).collect())
    }

    /// Waits until both halves of every volume of a node hold all that was acknowledged.
    pub fn wait_whole(&self, node: &str) -> Result<()> {
        eventually("both halves are whole", START_MAX, || {
            let rows = self.volumes(node)?;
            ensure!(!rows.is_empty() && rows.iter().all(|row| row["state"] == "current"), "{rows:?}");
            Ok(())
        })
    }

    /// Waits until the node says of a half of its first volume what it is in.
    pub fn wait_half(&self, node: &str, half: usize, state: &str) -> Result<()> {
        eventually("the half is known for what it is", START_MAX, || {
            let rows = self.volumes(node)?;
            let row = rows.iter().find(|row| row["volume"] == 1 && row["half"] == letter(half)).context("half")?;
            ensure!(row["state"] == state, "{row}");
            Ok(())
        })
    }

    /// What a scrub says, whatever its exit code.
    pub fn scrub(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(binary()?);
        command.args(["scrub", "--json"]).args(arguments).env("MAILRING_CONFIG", self.path().join("admin.toml"));
        let output = command.output()?;
        let text = String::from_utf8(output.stdout)?;
        let summary: Value = serde_json::from_str(&text)
            .with_context(|| format!("{text} {}", String::from_utf8_lossy(&output.stderr)))?;
        ensure!(output.status.success() == (summary["mended"] == true), "exit code {}: {summary:#}", output.status);
        Ok(summary)
    }

    /// The same, again while all that it finds is that something could not be told: a replica that did not answer in time,
    /// or whose leader has just changed, is known the next time.
    pub fn scrub_known(&self, arguments: &[&str]) -> Result<Value> {
        eventually("everything is compared", START_MAX, || {
            let summary = self.scrub(arguments)?;
            let findings = summary["findings"].as_array().context("findings")?;
            let is_unknown =
                |finding: &Value| finding["verdict"] == "unknown" || finding["reason"] == "the node does not answer";
            ensure!(findings.is_empty() || !findings.iter().all(is_unknown), "{summary:#}");
            Ok(summary)
        })
    }

    /// That a scrub, which compares the halves of every mirror and the replicas of every shard, finds nothing.
    pub fn check_scrub(&self) -> Result<()> {
        let summary = self.scrub_known(&[])?;
        ensure!(summary["clean"] == true, "{summary:#}");
        Ok(())
    }
}

/// Deletes a disk of a node that may be running: until it notices, it makes files there.
pub fn delete_disk(disk: &Path) -> Result<()> {
    eventually("the disk is deleted", START_MAX, || match fs::remove_dir_all(disk) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        Err(_) | Ok(()) => Ok(()),
    })
}
