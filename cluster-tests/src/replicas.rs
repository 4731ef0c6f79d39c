//! Whether all replicas of every shard are there and hold the same.

use anyhow::{Context, Result, bail, ensure};
use proto::wire::{DigestShardReply, DigestShardRequest};
use proto::{ClusterTls, DirectoryStore, GrpcNode};
use serde_json::Value;
use types::MailError;

use crate::cluster::Cluster;
use crate::process::{START_MAX, eventually};

impl Cluster {
    /// Waits until every shard has exactly the replicas that the directory wants, at the same index and holding the same; the
    /// octets of all. No client may write meanwhile, though settlements may still come.
    pub fn compare_replicas(&self) -> Result<u64> {
        eventually("all replicas are the same", START_MAX, || self.compare_replicas_now())
    }

    fn compare_replicas_now(&self) -> Result<u64> {
        let shards = self.json(&["shard", "list"])?.as_array().context("shards")?.clone();
        ensure!(shards.len() == self.options().shards as usize, "{} shards are listed", shards.len());
        let files = self.tls_files("admin");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let tls = ClusterTls::load(&files)?.client;
            let running = (0..self.nodes.len()).filter(|node| self.nodes[*node].pid().is_some());
            let nodes: Vec<(&str, GrpcNode)> = running
                .map(|node| {
                    let channel = proto::connect(&self.grpc(node).to_string(), tls.clone())?;
                    Ok((self.nodes[node].name.as_str(), GrpcNode::new(channel)))
                })
                .collect::<Result<_>>()?;
            let mut octets = 0;
            for listed in &shards {
                octets += compare(&nodes, listed).await?;
            }
            Ok(octets)
        })
    }

    /// Waits until every replica has applied what the others have. Nobody may write meanwhile.
    pub fn wait_caught_up(&self) -> Result<()> {
        eventually("all replicas have applied the same", START_MAX, || {
            for shard in 0..self.options().shards {
                let shard = self.json(&["shard", "show", &shard.to_string()])?;
                let replicas = shard["replicas"].as_array().context("replicas")?;
                let applied: Vec<_> = replicas.iter().map(|replica| replica["applied_index"].as_u64()).collect();
                let same = applied.first().is_some_and(|first| first.is_some() && applied.iter().all(|a| a == first));
                if applied.len() != self.options().replicas as usize || !same {
                    bail!("{shard}");
                }
            }
            Ok(())
        })
    }
}

/// The octets of one shard.
async fn compare(nodes: &[(&str, GrpcNode)], listed: &Value) -> Result<u64> {
    let shard = u32::try_from(listed["shard"].as_u64().context("shard")?)?;
    let mut wanted: Vec<&str> =
        listed["wanted"].as_array().context("wanted")?.iter().filter_map(Value::as_str).collect();
    let mut held = Vec::new();
    let mut known: Option<DigestShardReply> = None;
    for (name, node) in nodes {
        let digest = match node.digest_shard(DigestShardRequest { shard, ..Default::default() }).await {
            Ok(digest) => digest,
            // It holds no replica of this shard.
            Err(MailError::NotLeader { .. }) => continue,
            Err(error) => bail!("shard {shard} on {name}: {error}"),
        };
        held.push(*name);
        let other = known.get_or_insert_with(|| digest.clone());
        ensure!(*other == digest, "shard {shard} on {name} differs: {digest:?}, elsewhere {other:?}");
    }
    wanted.sort_unstable();
    held.sort_unstable();
    ensure!(held == wanted, "shard {shard} is on {held:?}, wanted on {wanted:?}");
    Ok(known.with_context(|| format!("shard {shard} is nowhere"))?.octets)
}
