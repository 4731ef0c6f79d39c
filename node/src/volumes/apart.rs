//! Whether the node's disks are apart. Two that are one by a link or a mount, or of which one is within the other, would be
//! written by two databases that destroy each other.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use storage::Location;

use super::DATABASE;

/// Refuses the disks of these volumes by name. Halves that are on one file system are named in the log: they may fail together.
pub(super) fn check<'a>(volumes: impl Iterator<Item = &'a [PathBuf]>) -> Result<()> {
    let mut seen: Vec<(&PathBuf, [Option<Location>; 2])> = Vec::new();
    for disks in volumes {
        for disk in disks {
            let locations = [Location::of(disk), Location::of(&disk.join(DATABASE))];
            for (other, others) in &seen {
                let overlap =
                    locations.iter().flatten().any(|one| others.iter().flatten().any(|two| one.overlaps(two)));
                ensure!(
                    !overlap,
                    "{} and {} are one directory, or one is within the other: each disk of a node needs its own",
                    other.display(),
                    disk.display(),
                );
            }
            seen.push((disk, locations));
        }
        warn_of_one_file_system(disks);
    }
    Ok(())
}

fn warn_of_one_file_system(disks: &[PathBuf]) {
    let [first, second] = disks else { return };
    let device = |disk: &PathBuf| Location::of(disk).and_then(|location| location.device());
    if let (Some(one), Some(other)) = (device(first), device(second))
        && one == other
    {
        tracing::warn!(
            first = %first.display(), second = %second.display(),
            "the halves of a mirror are on one file system: what breaks it breaks both",
        );
    }
}

#[cfg(test)]
mod tests {
    use std::fs::create_dir_all;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    #[test]
    fn disks_that_are_one_are_refused_over_all_volumes_by_name() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        ["a", "b/db", "c", "d"].into_iter().for_each(|name| create_dir_all(at(name)).unwrap());
        symlink(at("a"), at("link")).unwrap();
        symlink(at("b/db"), at("c/db")).unwrap();
        symlink(at("a/db"), at("d/db")).unwrap();
        let check = |volumes: &[&[&str]]| {
            let volumes: Vec<Vec<PathBuf>> =
                volumes.iter().map(|disks| disks.iter().map(|disk| at(disk)).collect()).collect();
            super::check(volumes.iter().map(|disks| &disks[..])).map_err(|error| error.to_string())
        };
        check(&[&["a", "b"], &["not-there"]]).unwrap();
        check(&[&["b", "d"], &["not-there"]]).unwrap();
        for (volumes, named) in [
            (&[&["a", "link"][..]][..], ["a and ", "link are"]),
            (&[&["a"], &["b"], &["link"]], ["a and ", "link are"]),
            (&[&["a", "a/below"]], ["a and ", "a/below are"]),
            (&[&["not-there", "not-there/below"]], ["not-there and ", "below are"]),
            (&[&["b"], &["b/db"]], ["b and ", "b/db are"]),
            // Their databases are one.
            (&[&["b", "c"]], ["b and ", "c are"]),
            // They will be.
            (&[&["a", "d"]], ["a and ", "d are"]),
        ] {
            let refused = check(volumes).unwrap_err();
            assert!(named.iter().all(|part| refused.contains(part)), "{refused}");
        }
    }
}
