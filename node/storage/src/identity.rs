//! Who a data directory belongs to: the node, the cluster and the disk format. One small text file, written whole.

use std::io;
use std::path::{Path, PathBuf};

use types::{NodeId, format};

use crate::error::StorageError;
use crate::files;
use crate::half_record::HalfRecord;
use crate::mark;

const NAME: &str = "IDENTITY";
/// The file has five short lines; more is not ours.
const FILE_BYTES_MAX: u64 = 4096;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The node's Raft id: made with the directory and lost with it, for a voter without its votes must not come back.
    pub node_id: NodeId,
    /// Unknown until the node has made or joined a cluster.
    pub cluster_id: Option<String>,
    /// Which of the node's volumes the disk belongs to: common to the halves of a mirror, and to nothing else.
    pub volume: u64,
    /// The newest that may be on the disk.
    pub format: u32,
}

impl Identity {
    pub fn new(node_id: NodeId, volume: u64) -> Identity {
        Identity { node_id, cluster_id: None, volume, format: format::in_force() }
    }

    /// What a disk says; `None` where it says nothing, or is not there. Refuses a disk that holds a volume but does not
    /// say whose, unless that is half of a mirror, which the other half knows.
    pub fn read(disk: &Path) -> Result<Option<Identity>, StorageError> {
        let path = disk.join(NAME);
        if let Some(text) = read(&path)? {
            return Identity::parse(&text, &path).map(Some);
        }
        match volume_below(disk)? {
            Some(volume) if !HalfRecord::exists(&volume) => Err(StorageError::Refused(format!(
                "{} holds mail but {} has no {NAME} file: whose is it?",
                volume.display(),
                disk.display()
            ))),
            Some(_) | None => Ok(None),
        }
    }

    /// Durable on return.
    pub fn write(&self, disk: &Path) -> Result<(), StorageError> {
        mark::create_directory(disk)?;
        files::create_whole(&disk.join(NAME), self.text().as_bytes())
    }

    /// Of a disk whose volume could not be made.
    pub fn remove(disk: &Path) -> io::Result<()> {
        std::fs::remove_file(disk.join(NAME))
    }

    /// The same in a cluster. Refuses another cluster than the recorded one, by name.
    pub fn bound(&self, disk: &Path, cluster_id: &str) -> Result<Identity, StorageError> {
        match &self.cluster_id {
            Some(own) if own == cluster_id => Ok(self.clone()),
            Some(own) => Err(StorageError::Refused(format!(
                "{} belongs to cluster {own}, not to {}",
                disk.display(),
                cluster_id.escape_debug()
            ))),
            None => {
                if cluster_id.is_empty() || cluster_id.len() > 200 || cluster_id.chars().any(char::is_control) {
                    return Err(StorageError::Misuse("cluster id is empty, too long or has control characters".into()));
                }
                Ok(Identity { cluster_id: Some(cluster_id.to_owned()), ..self.clone() })
            }
        }
    }

    fn text(&self) -> String {
        let mut text = format!("format {}\nnode {}\n", self.format, self.node_id);
        if self.volume != 0 {
            text.push_str(&format!("volume {:016x}\n", self.volume));
        }
        if let Some(cluster) = &self.cluster_id {
            text.push_str(&format!("cluster {cluster}\n"));
        }
        let crc = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("crc {crc:08x}\n"));
        text
    }

    fn parse(text: &str, path: &Path) -> Result<Identity, StorageError> {
        let damaged = |reason: &str| StorageError::corrupt(path.display().to_string(), reason);
        let value =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')));
        // The format first: a newer one may have changed all the rest.
        let written: u32 = value("format").and_then(|v| v.parse().ok()).ok_or_else(|| damaged("no format"))?;
        if !format::reads(written) {
            return Err(StorageError::Refused(format!(
                "{} has format {written}; this program knows formats up to {}",
                path.display(),
                format::known()
            )));
        }
        let node_id = value("node").and_then(|v| v.parse().ok()).ok_or_else(|| damaged("no node id"))?;
        let volume = match value("volume") {
            Some(digits) => u64::from_str_radix(digits, 16).map_err(|_| damaged("no volume"))?,
            None => 0,
        };
        let cluster_id = value("cluster").map(str::to_owned);
        let identity = Identity { node_id: NodeId(node_id), cluster_id, volume, format: written };
        if identity.text() != text {
            return Err(damaged("wrong checksum"));
        }
        Ok(identity)
    }
}

fn read(path: &Path) -> Result<Option<String>, StorageError> {
    let doing = |error: io::Error| StorageError::io(format!("reading {}", path.display()), error);
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(doing(error)),
        Ok(data) if data.len() > FILE_BYTES_MAX => {
            return Err(StorageError::corrupt(path.display().to_string(), "too long"));
        }
        Ok(_) => {}
    }
    match std::fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => Ok(Some(text)),
        Ok(Err(_)) => Err(StorageError::corrupt(path.display().to_string(), "not text")),
        Err(error) => Err(doing(error)),
    }
}

/// A volume in the directory or just below it.
fn volume_below(directory: &Path) -> Result<Option<PathBuf>, StorageError> {
    let doing = |error: io::Error| StorageError::io(format!("listing {}", directory.display()), error);
    if mark::is_volume(directory) {
        return Ok(Some(directory.to_owned()));
    }
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(doing)?,
    };
    for entry in entries {
        let path = entry.map_err(doing)?.path();
        if mark::is_volume(&path) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use types::NodeId;

    use super::Identity;
    use crate::error::StorageError;

    #[test]
    fn an_identity_is_kept_and_bound_to_one_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        assert_eq!(Identity::read(&disk).unwrap(), None);
        let identity = Identity::new(NodeId(42), 7).bound(&disk, "blue").unwrap();
        identity.write(&disk).unwrap();
        assert_eq!(Identity::read(&disk).unwrap(), Some(identity.clone()));
        assert_eq!(identity.bound(&disk, "blue").unwrap(), identity);
        let refused = identity.bound(&disk, "green").unwrap_err().to_string();
        assert!(refused.contains("blue") && refused.contains("green"), "{refused}");
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("IDENTITY"), "format 9\nmore\n").unwrap();
        let refused = Identity::read(directory.path()).unwrap_err();
        assert!(matches!(&refused, StorageError::Refused(text) if text.contains("format 9")), "{refused}");
    }

    #[test]
    fn damage_is_not_taken_for_a_fresh_directory() {
        let directory = tempfile::tempdir().unwrap();
        Identity::new(NodeId(42), 7).write(directory.path()).unwrap();
        let path = directory.path().join("IDENTITY");
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 2;
            std::fs::write(&path, &bad).unwrap();
            assert!(Identity::read(directory.path()).is_err(), "byte {at}");
        }
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(Identity::read(directory.path()).is_err());
    }

    #[test]
    fn mail_without_an_identity_is_not_adopted() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("disk")).unwrap();
        std::fs::write(directory.path().join("disk/MARK"), "").unwrap();
        let refused = Identity::read(directory.path()).unwrap_err();
        assert!(matches!(refused, StorageError::Refused(_)));
    }
}
