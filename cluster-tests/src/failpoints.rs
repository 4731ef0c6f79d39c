//! The steps of a move at which a process stops, as `node/storage/src/failpoint.rs` has them: told by files in a directory
//! that all processes of a cluster share.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

const HELD: &str = "held-";

/// The binary that was built with the feature `failpoints`; none: there is none here.
pub fn failpoints_binary() -> Option<PathBuf> {
    std::env::var_os("MAILRING_FAILPOINTS_BIN").map(PathBuf::from)
}

#[derive(Clone)]
pub struct Failpoints {
    directory: PathBuf,
}

/// A process came by a point.
pub struct Reached {
    pub point: String,
    pub shard: u32,
    pub process: u32,
}

impl Failpoints {
    /// Those of the cluster in this directory.
    pub fn new(cluster: &Path) -> Result<Failpoints> {
        let directory = cluster.join("failpoints");
        fs::create_dir_all(&directory)?;
        Ok(Failpoints { directory })
    }

    pub(crate) fn mailring(&self) -> Result<Command> {
        let mut command = Command::new(failpoints_binary().context("MAILRING_FAILPOINTS_BIN is not set")?);
        command.env("MAILRING_FAILPOINTS", &self.directory);
        Ok(command)
    }

    fn file(&self, point: impl Debug, shard: u32, process: Option<u32>) -> PathBuf {
        let process = process.map(|id| format!("-{id}")).unwrap_or_default();
        self.directory.join(format!("{point:?}-{shard}{process}"))
    }

    /// The next process that comes by the point in a move of this shard stops there; `process`: no other than this one.
    pub fn stop_at(&self, point: impl Debug, shard: u32, process: Option<u32>) -> Result<()> {
        Ok(fs::write(self.file(point, shard, process), "")?)
    }

    /// The process that has stopped.
    pub fn held(&self) -> Result<u32> {
        let names = fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<_> = names.collect::<Result<_>>()?;
        let held = names.iter().find_map(|name| OsStr::to_str(name)?.strip_prefix(HELD)?.parse().ok());
        held.context("nobody has stopped")
    }

    /// It may go on from there once it gets SIGCONT, or it is dead.
    pub fn let_go(&self, process: u32) -> Result<()> {
        Ok(fs::remove_file(self.directory.join(format!("{HELD}{process}")))?)
    }

    /// Everybody who came by a point, in that order.
    pub fn reached(&self) -> Result<Vec<Reached>> {
        let lines = fs::read_to_string(self.directory.join("reached"))?;
        lines.lines().map(|line| reached(line).with_context(|| line.to_owned())).collect()
    }
}

fn reached(line: &str) -> Result<Reached> {
    let mut words = line.split(' ');
    let mut word = || words.next().context("too short");
    Ok(Reached { point: word()?.to_owned(), shard: word()?.parse()?, process: word()?.parse()? })
}
