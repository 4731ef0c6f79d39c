//! Settings files: TOML, read and checked whole before a port is opened. A key that nobody knows is refused with its
//! path, since it is a typing error or a setting that would silently not hold.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use node::NodeSettings;
use proto::ClusterTlsFiles;
use router::RouterSettings;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::log::LogSettings;

/// A settings file has a few kilobytes; anything above this is another file, named by mistake.
const FILE_OCTETS_MAX: u64 = 1024 * 1024;

/// What every role's file may say beside the role's own table.
#[derive(Clone, Debug)]
pub struct ProcessSettings {
    pub log: LogSettings,
    /// Where `/healthz`, `/readyz` and `/metrics` are served over HTTP; nowhere unless given.
    pub http: Option<SocketAddr>,
    /// Holds the process id while the process runs.
    pub pid_file: Option<PathBuf>,
}

/// The three common keys stand in each struct: serde cannot flatten a struct and refuse unknown keys.
macro_rules! role_settings {
    ($(#[$doc:meta])* $name:ident { $($table:ident: $settings:ty),+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            #[serde(default)]
            log: LogSettings,
            http: Option<SocketAddr>,
            pid_file: Option<PathBuf>,
            $(pub $table: $settings,)+
        }

        impl $name {
            pub fn process(&self) -> ProcessSettings {
                ProcessSettings { log: self.log.clone(), http: self.http, pid_file: self.pid_file.clone() }
            }
        }
    };
}

role_settings!(
    /// `mailring node`.
    NodeFile { node: NodeSettings }
);
role_settings!(
    /// `mailring router`.
    RouterFile { router: RouterSettings }
);
role_settings!(
    /// `mailring single`.
    SingleFile { node: NodeSettings, router: RouterSettings }
);

/// The admin's file: how to reach the cluster, and as whom.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminFile {
    /// gRPC addresses of some nodes; the others are learnt from them.
    pub nodes: Vec<String>,
    /// The cluster's CA and an admin's certificate.
    pub tls: ClusterTlsFiles,
}

/// What a file is checked for beyond its form.
pub trait Validate {
    fn validate(&self) -> anyhow::Result<()>;
}

impl Validate for NodeFile {
    fn validate(&self) -> anyhow::Result<()> {
        self.log.validate()?;
        self.node.validate().map_err(|e| anyhow!("node.{e}"))
    }
}

impl Validate for RouterFile {
    fn validate(&self) -> anyhow::Result<()> {
        self.log.validate()?;
        self.router.validate().map_err(|e| anyhow!("router.{e}"))?;
        self.router.validate_cluster().map(drop).map_err(|e| anyhow!("router.{e}"))
    }
}

impl Validate for SingleFile {
    fn validate(&self) -> anyhow::Result<()> {
        self.log.validate()?;
        self.node.validate().map_err(|e| anyhow!("node.{e}"))?;
        if self.node.cluster.replicas != 1 {
            return Err(anyhow!("node.cluster.replicas: a single process holds one replica of each shard: 1"));
        }
        self.router.validate().map_err(|e| anyhow!("router.{e}"))
    }
}

impl Validate for AdminFile {
    fn validate(&self) -> anyhow::Result<()> {
        if self.nodes.is_empty() {
            return Err(anyhow!("nodes: at least one address is needed"));
        }
        Ok(())
    }
}

/// Reads and checks a file; the error names file, key and reason.
pub fn read<T: DeserializeOwned + Validate>(path: &Path) -> Result<T, Failure> {
    let checked = || -> anyhow::Result<T> {
        let octets = fs::metadata(path)?.len();
        if octets > FILE_OCTETS_MAX {
            return Err(anyhow!("{octets} octets: not a settings file"));
        }
        parse(&fs::read_to_string(path)?)
    };
    checked().with_context(|| path.display().to_string()).map_err(Failure::Usage)
}

fn parse<T: DeserializeOwned + Validate>(text: &str) -> anyhow::Result<T> {
    let deserializer = toml::Deserializer::parse(text).map_err(|e| anyhow!("{}", one_line(&e)))?;
    let settings: T = serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let path = error.path().to_string();
        let reason = one_line(error.inner());
        // At the top of the file there is no path to name.
        if path == "." { anyhow!("{reason}") } else { anyhow!("{path}: {reason}") }
    })?;
    settings.validate()?;
    Ok(settings)
}

/// Without the picture of the line: files are small, and the message goes into logs.
fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{AdminFile, NodeFile, RouterFile, SingleFile, parse};

    const TLS: &str = "{ ca = \"ca.pem\", certificate = \"c.pem\", key = \"c.key\" }";

    fn node_file() -> String {
        format!(
            "http = \"127.0.0.1:2701\"\npid_file = \"/run/mailring.pid\"\n[log]\nformat = \"json\"\n\
             [node]\nname = \"node1\"\nlisten = \"127.0.0.1:2601\"\nvolumes = [{{ disks = [\"/d\"] }}]\ntls = {TLS}\n\
             [node.cluster]\nid = \"00112233445566778899aabbccddeeff\"\nnodes = [\"127.0.0.1:2601\"]\nreplicas = 1\n"
        )
    }

    fn router_file() -> String {
        format!(
            "[router]\nname = \"router1\"\nhostname = \"mx.example.test\"\nnodes = [\"127.0.0.1:2601\"]\n\
             cluster_tls = {TLS}\n[[router.listeners]]\nprotocol = \"smtp\"\naddress = \"127.0.0.1:2025\"\n"
        )
    }

    #[test]
    fn good_files_are_read() {
        let node: NodeFile = parse(&node_file()).unwrap();
        assert_eq!(node.process().http.unwrap().port(), 2701);
        assert!(node.process().log.filter.starts_with("info"));
        parse::<RouterFile>(&router_file()).unwrap();
        parse::<SingleFile>(&format!("{}{}", node_file(), router_file())).unwrap();
        parse::<AdminFile>(&format!("nodes = [\"127.0.0.1:2601\"]\ntls = {TLS}\n")).unwrap();
    }

    #[test]
    fn an_error_names_the_key_with_its_path() {
        let error = |from: &str, to: &str| {
            let changed = node_file().replacen(from, to, 1);
            assert_ne!(changed, node_file(), "{from}");
            format!("{:#}", parse::<NodeFile>(&changed).unwrap_err())
        };
        assert!(error("replicas = 1", "replcas = 1").starts_with("node.cluster.replcas: unknown field"));
        assert!(error("replicas = 1", "replicas = \"x\"").starts_with("node.cluster.replicas: "));
        assert!(error("replicas = 1", "replicas = 9").starts_with("node.cluster.replicas: "));
        assert!(error("disks", "disk").starts_with("node.volumes[0].disk: unknown field"));
        assert!(error("127.0.0.1:2701", "nonsense").starts_with("http: "));
        assert!(error("format = \"json\"", "format = \"xml\"").starts_with("log.format: "));
        assert!(error("format = \"json\"", "filter = \"a=b=c\"").contains("log.filter"));
        assert!(error("pid_file", "pidfile").contains("pidfile"));
        assert!(error("name = \"node1\"\n", "").contains("name"));
        assert!(error("[log]", "[log").contains("expected"), "{}", error("[log]", "[log"));
        let three_disks = error("[\"/d\"]", "[\"/d\", \"/e\", \"/f\"]");
        assert!(three_disks.contains("volumes: one disk, or two"), "{three_disks}");
        let same_disk = error("[\"/d\"]", "[\"/d\", \"/d\"]");
        assert!(same_disk.contains("/d is named twice"), "{same_disk}");
    }

    #[test]
    fn a_router_needs_nodes_and_a_single_process_one_replica() {
        let without = router_file().replacen("nodes = [\"127.0.0.1:2601\"]", "nodes = []", 1);
        assert!(format!("{:#}", parse::<RouterFile>(&without).unwrap_err()).starts_with("router.nodes"));
        let three = format!("{}{}", node_file().replacen("replicas = 1", "replicas = 3", 1), router_file());
        assert!(format!("{:#}", parse::<SingleFile>(&three).unwrap_err()).starts_with("node.cluster.replicas"));
        assert!(parse::<AdminFile>(&format!("nodes = []\ntls = {TLS}\n")).is_err());
    }
}
