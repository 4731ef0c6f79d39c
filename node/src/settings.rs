//! A node's settings, as its TOML file has them.

use std::path::PathBuf;

use proto::ClusterTlsFiles;
use serde::Deserialize;

/// Replicas of a shard at most (design: replication factor 1 to 5).
const REPLICAS_MAX: u32 = 5;
use directory::limits::NODE_WEIGHT_MAX as WEIGHT_MAX;
const SHARDS_MAX: u32 = 4_096;
/// Each has a cache and threads of its own.
const VOLUMES_MAX: usize = 16;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSettings {
    /// Unique in the cluster: `[a-z0-9-]{1,63}`.
    pub name: String,
    /// Where gRPC is served: `address:port`.
    pub listen: String,
    /// Where others reach this node, if not at `listen`.
    pub advertise: Option<String>,
    #[serde(default = "default_zone")]
    pub zone: String,
    /// Share of the cluster's load relative to other nodes' weights: 1 to 64.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// The first also holds the node's replica of the directory.
    pub volumes: Vec<VolumeSettings>,
    /// What a resilver copies at most.
    #[serde(default = "default_resilver_octets_per_s")]
    pub resilver_octets_per_s: u64,
    /// A node that is away for longer has its replicas made anew on others, if there are enough; 0: never by itself.
    #[serde(default = "default_dead_node_s")]
    pub dead_node_s: u64,
    /// Between looks whether leadership should follow the load, on the directory's leader; 0: never.
    #[serde(default = "default_leaders_look_s")]
    pub leaders_look_s: u64,
    /// What goes to new replicas of shards at most, from this node.
    #[serde(default = "default_move_octets_per_s")]
    pub move_octets_per_s: u64,
    /// How often everything on the volumes is read and compared; 0: only when `mailring scrub` asks for it.
    #[serde(default = "default_scrub_interval_s")]
    pub scrub_interval_s: u64,
    /// What a scrub reads of each disk at most.
    #[serde(default = "default_scrub_octets_per_s")]
    pub scrub_octets_per_s: u64,
    /// Log entries of a shard that are kept for replicas that were away; a replica away for longer gets a snapshot.
    #[serde(default = "default_log_entries_kept")]
    pub log_entries_kept: u64,
    /// When a disk has less room than this, new mail is refused and what is there stays readable.
    #[serde(default = "default_disk_reserve_octets")]
    pub disk_reserve_octets: u64,
    pub tls: ClusterTlsFiles,
    pub cluster: ClusterSettings,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSettings {
    /// One directory; or two on separate disks, that hold the same.
    pub disks: Vec<PathBuf>,
}

/// How the cluster is first made, and how a node finds it later.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSettings {
    /// 32 hexadecimal digits, the same in every process of the cluster.
    pub id: String,
    /// gRPC addresses of the nodes that found the cluster, the same list in the same order on each; a node that
    /// joins later lists them to find the cluster.
    pub nodes: Vec<String>,
    /// Fixed when the cluster is made.
    #[serde(default = "default_shards")]
    pub shards: u32,
    #[serde(default = "default_replicas")]
    pub replicas: u32,
}

fn default_zone() -> String {
    "default".to_owned()
}

fn default_weight() -> u32 {
    1
}

/// Room for memtables, compactions and a snapshot under way.
fn default_disk_reserve_octets() -> u64 {
    1024 * 1024 * 1024
}

/// Half of what one spinning disk writes in sequence.
fn default_resilver_octets_per_s() -> u64 {
    64 * 1024 * 1024
}

/// Longer than a restart or a short repair, in which no data should move.
fn default_dead_node_s() -> u64 {
    1800
}

/// Much longer than a handover takes, and than a burst of mail.
fn default_leaders_look_s() -> u64 {
    30
}

/// What a network of 1 Gbit/s carries.
fn default_move_octets_per_s() -> u64 {
    128 * 1024 * 1024
}

/// A week: what ZFS' and Ceph's operators are used to.
fn default_scrub_interval_s() -> u64 {
    7 * 24 * 3600
}

/// A quarter of what one spinning disk reads in sequence.
fn default_scrub_octets_per_s() -> u64 {
    32 * 1024 * 1024
}

fn default_log_entries_kept() -> u64 {
    20_000
}

fn default_shards() -> u32 {
    64
}

fn default_replicas() -> u32 {
    3
}

impl NodeSettings {
    pub fn advertise(&self) -> &str {
        self.advertise.as_deref().unwrap_or(&self.listen)
    }

    /// Each disk has one.
    pub fn databases(&self) -> usize {
        self.volumes.iter().map(|volume| volume.disks.len()).sum()
    }

    /// What is wrong with the settings, before a port or a file is opened.
    pub fn validate(&self) -> Result<(), String> {
        let name_ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || self.name.len() > 63 || !self.name.chars().all(name_ok) {
            return Err(format!("name {:?}: 1 to 63 of a-z, 0-9 and - are allowed", self.name));
        }
        self.validate_volumes()?;
        self.cluster_id()?;
        if self.cluster.nodes.is_empty() {
            return Err("cluster.nodes: at least one address is needed".to_owned());
        }
        if !(1..=SHARDS_MAX).contains(&self.cluster.shards) {
            return Err(format!("cluster.shards: 1 to {SHARDS_MAX}"));
        }
        if !(1..=REPLICAS_MAX).contains(&self.cluster.replicas) {
            return Err(format!("cluster.replicas: 1 to {REPLICAS_MAX}"));
        }
        if !(1..=WEIGHT_MAX).contains(&self.weight) {
            return Err(format!("weight: 1 to {WEIGHT_MAX}"));
        }
        Ok(())
    }

    /// An error where this node would speak to others under another one's certificate. `of`: the name in it.
    pub fn check_certificate(&self, of: Option<&str>) -> Result<(), String> {
        let name = self.name.as_str();
        if of == Some(name) {
            return Ok(());
        }
        Err(format!(
            "tls.certificate: {} is of {}, and this is node {name}; `mailring ca issue --role node --name {name}` makes \
             its own",
            self.tls.certificate.display(),
            of.unwrap_or("nobody"),
        ))
    }

    fn validate_volumes(&self) -> Result<(), String> {
        if !(1..=VOLUMES_MAX).contains(&self.volumes.len()) {
            return Err(format!("volumes: 1 to {VOLUMES_MAX}"));
        }
        if let Some(volume) = self.volumes.iter().find(|volume| !(1..=2).contains(&volume.disks.len())) {
            return Err(format!("volumes: one disk, or two for a mirror, not {}", volume.disks.len()));
        }
        let mut disks: Vec<_> = self.volumes.iter().flat_map(|volume| &volume.disks).collect();
        disks.sort();
        if let Some(pair) = disks.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("volumes: {} is named twice", pair[0].display()));
        }
        if self.resilver_octets_per_s == 0 || self.scrub_octets_per_s == 0 || self.move_octets_per_s == 0 {
            return Err("resilver_octets_per_s, scrub_octets_per_s, move_octets_per_s: at least 1".to_owned());
        }
        Ok(())
    }

    pub fn cluster_id(&self) -> Result<directory::ClusterId, String> {
        let digits = self.cluster.id.as_bytes();
        let mut id = [0u8; 16];
        let wrong = || "cluster.id: 32 hexadecimal digits".to_owned();
        if digits.len() != 32 || !digits.is_ascii() {
            return Err(wrong());
        }
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            let text = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(text, 16).map_err(|_| wrong())?;
        }
        Ok(directory::ClusterId(id))
    }
}
