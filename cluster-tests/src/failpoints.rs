//! The steps of a move at which a process stops, as `node/storage/src/failpoint.rs` has them: told by files in a directory
//! that all processes of a cluster share.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result};

use crate::cluster::Cluster;

const HELD: &str = "held-";

/// The binary that was built with the feature `failpoints`; none: there is none here.
pub(crate) fn failpoints_binary() -> Option<PathBuf> {
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

    /// Nobody who comes by a point stops there.
    pub fn ask_no_more(&self) -> Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name() != "reached" {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The process that has stopped.
    pub fn held(&self) -> Result<u32> {
        let names = fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.file_name()));
        let names: Vec<_> = names.collect::<Result<_>>()?;
        let held = names.iter().find_map(|name| OsStr::to_str(name)?.strip_prefix(HELD)?.parse().ok());
        held.context("nobody has stopped")
    }

    /// The node whose process has stopped.
    pub fn held_node(&self, cluster: &Cluster) -> Result<usize> {
        let process = self.held()?;
        cluster.nodes.iter().position(|node| node.pid() == Some(process)).context("no node's process")
    }

    /// It may go on from there once it gets SIGCONT, or it is dead.
    fn let_go(&self, process: u32) -> Result<()> {
        Ok(fs::remove_file(self.directory.join(format!("{HELD}{process}")))?)
    }

    /// The node that has stopped goes on.
    pub fn go_on(&self, cluster: &Cluster, node: usize) -> Result<()> {
        let node = &cluster.nodes[node];
        self.let_go(node.pid().context("not running")?)?;
        node.signal("CONT")
    }

    /// Kills a node's process, stopped or not, and starts it again. `cut`: its disk loses its power too.
    pub fn kill(&self, cluster: &mut Cluster, node: usize, cut: bool) -> Result<()> {
        let process = cluster.nodes[node].pid();
        if cut {
            cluster.disks[node].cut()?;
        }
        cluster.nodes[node].kill()?;
        if cut {
            cluster.disks[node].restore()?;
        }
        if process.is_some() && self.held().ok() == process {
            self.let_go(process.context("no process")?)?;
        }
        cluster.nodes[node].start()
    }

    /// Everybody who came by a point, in that order.
    pub fn reached(&self) -> Result<Vec<Reached>> {
        let lines = fs::read_to_string(self.directory.join("reached"))?;
        lines.lines().map(|line| reached(line).with_context(|| line.to_owned())).collect()
    }
}

/// An administrator's command that may not get an answer.
pub struct Asked(pub Child);

impl Drop for Asked {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn reached(line: &str) -> Result<Reached> {
    let mut words = line.split(' ');
    let mut word = || words.next().context("too short");
    Ok(Reached { point: word()?.to_owned(), shard: word()?.parse()?, process: word()?.parse()? })
}
