//! Where the replicas of a cluster are, against where they should be.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::process::eventually;

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(180);

impl Cluster {
    /// The node of that name as `mailring node list` has it.
    pub fn node(&self, name: &str) -> Result<Value> {
        let nodes = self.json(&["node", "list"])?;
        let found = nodes.as_array().context("nodes")?.iter().find(|node| node["name"] == name);
        found.cloned().with_context(|| format!("no {name} in {nodes}"))
    }

    /// The names of the nodes that vote in the directory.
    pub fn directory_voters(&self) -> Result<Vec<String>> {
        let nodes = self.json(&["node", "list"])?;
        let voters = nodes.as_array().context("nodes")?.iter().filter(|node| node["directory_voter"] == true);
        Ok(voters.filter_map(|node| Some(node["name"].as_str()?.to_owned())).collect())
    }

    /// How many replicas each active node has.
    fn shares(&self) -> Result<Vec<u64>> {
        let status = self.json(&["rebalance", "status"])?;
        let nodes = status["nodes"].as_array().context("nodes")?;
        let active = nodes.iter().filter(|node| node["eligible"] == true);
        active.map(|node| node["replicas"].as_u64().context("replicas")).collect()
    }

    /// That every shard's voters are those that are wanted, nothing moves or is to move, nobody holds a replica that he
    /// should not, and the shares of the active nodes differ by one at most.
    pub fn check_placed(&self) -> Result<()> {
        let status = self.json(&["rebalance", "status"])?;
        ensure!(status["moves"].as_array().is_some_and(Vec::is_empty), "{status}");
        let shards = self.json(&["shard", "list"])?;
        for shard in shards.as_array().context("shards")? {
            let (voters, learners) = (shard["voters"].as_array(), shard["learners"].as_array());
            let wanted = shard["wanted"].as_array().map(Vec::len);
            ensure!(wanted == Some(self.options().replicas as usize), "{shard}");
            ensure!(voters.map(Vec::len) == wanted && learners.is_some_and(Vec::is_empty), "{shard}");
        }
        let nodes = self.json(&["node", "list"])?;
        let held: u64 = nodes.as_array().context("nodes")?.iter().filter_map(|node| node["replicas"].as_u64()).sum();
        let shares = self.shares()?;
        ensure!(held == shares.iter().sum::<u64>(), "{held} replicas are held: {nodes}");
        let (least, most) = (shares.iter().min(), shares.iter().max());
        ensure!(least.zip(most).is_some_and(|(least, most)| most - least <= 1), "{shares:?}");
        Ok(())
    }

    /// Waits until every shard is led by the node that should lead it.
    pub fn wait_led(&self) -> Result<()> {
        eventually("all shards are led where they should be", PATIENCE, || {
            let shards = self.json(&["shard", "list"])?;
            let astray = |shard: &&Value| shard["leader"] != shard["wanted"][0];
            ensure!(!shards.as_array().context("shards")?.iter().any(|shard| astray(&shard)), "{shards}");
            Ok(())
        })
    }

    /// Waits until all is placed as it should be, and nothing is degraded.
    pub fn wait_settled(&self) -> Result<()> {
        eventually("all shards are where they should be", PATIENCE, || {
            self.check_placed()?;
            self.admin(&["status"]).map(drop)
        })
    }
}
