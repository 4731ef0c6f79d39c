//! Where directories lie: whether two of them are one, by a link or a mount, or one is within the other.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// As many as Linux follows.
const LINKS_MAX: usize = 40;

/// A directory and all that hold it, as they are now. It need not exist.
#[derive(Clone, Debug)]
pub struct Location {
    /// Device and inode of what exists, from the root on.
    holders: Vec<(u64, u64)>,
    /// What does not exist yet, below the last of them.
    rest: Vec<OsString>,
}

impl Location {
    /// `None` where it cannot be told: its disk does not answer.
    pub fn of(directory: &Path) -> Option<Location> {
        let mut absolute = std::path::absolute(directory).ok()?;
        let mut links = 0;
        let (existing, rest) = loop {
            let (existing, rest) = absolute.ancestors().find_map(|above| {
                let existing = fs::canonicalize(above).ok()?;
                Some((existing, absolute.strip_prefix(above).ok()?))
            })?;
            // A link to what does not exist yet: that may be made, by whoever else has it by its own name.
            let mut components = rest.components();
            let target = components.next().and_then(|first| fs::read_link(existing.join(first)).ok());
            let Some(target) = target.filter(|_| links < LINKS_MAX) else { break resolved(existing, rest) };
            links += 1;
            absolute = existing.join(target).join(components.as_path());
        };
        let mut holders = Vec::new();
        for holder in existing.ancestors() {
            let data = fs::metadata(holder).ok()?;
            holders.push((data.dev(), data.ino()));
        }
        holders.reverse();
        Some(Location { holders, rest })
    }

    /// Whether one of them is the other or within it.
    pub fn overlaps(&self, other: &Location) -> bool {
        self.holds(other) || other.holds(self)
    }

    fn holds(&self, other: &Location) -> bool {
        let Some(own) = self.holders.last() else { return false };
        match self.rest[..] {
            [] => other.holders.contains(own),
            _ => other.holders.last() == Some(own) && other.rest.starts_with(&self.rest),
        }
    }

    /// The device that it is on, or would be.
    pub fn device(&self) -> Option<u64> {
        self.holders.last().map(|(device, _)| *device)
    }
}

/// What of a path does not exist, without `..`: it has no links.
fn resolved(mut existing: PathBuf, rest: &Path) -> (PathBuf, Vec<OsString>) {
    let mut names = Vec::new();
    for component in rest.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir if names.pop().is_none() => {
                existing.pop();
            }
            _ => {}
        }
    }
    (existing, names)
}

#[cfg(test)]
mod tests {
    use std::fs::create_dir;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::Location;

    fn overlap(one: &Path, other: &Path) -> bool {
        let [one, other] = [one, other].map(|path| Location::of(path).unwrap());
        assert_eq!(one.overlaps(&other), other.overlaps(&one));
        one.overlaps(&other)
    }

    #[test]
    fn directories_that_are_one_or_nested_are_told_from_those_that_are_apart() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        ["a", "b", "a/within"].into_iter().for_each(|name| create_dir(at(name)).unwrap());
        symlink(at("a"), at("link")).unwrap();
        symlink("link", at("link-of-link")).unwrap();
        symlink(at("gone"), at("dangling")).unwrap();
        symlink("../a/db", at("b/db")).unwrap();
        symlink("loop", at("loop")).unwrap();
        for (one, other) in [
            ("a", "link"),
            ("link", "link-of-link"),
            ("a", "b/../a"),
            ("a", "a/within"),
            ("link", "a/within/not/there"),
            ("not/there", "not/there"),
            ("not/there", "not/./there/below"),
            ("not/there", "link/../not/here/../there"),
            ("dangling", "gone"),
            ("dangling/below", "gone/below/it"),
            ("a/db", "b/db"),
            ("loop", "loop"),
        ] {
            assert!(overlap(&at(one), &at(other)), "{one} and {other}");
        }
        for (one, other) in [
            ("a", "b"),
            ("a", "ab"),
            ("a/within", "b/within"),
            ("a/one", "a/two"),
            ("a/one", "b/one"),
            ("not/there", "not/here"),
            ("not/there", "not/there-either"),
            ("dangling", "a"),
            ("dangling/one", "gone/two"),
            ("loop", "a"),
        ] {
            assert!(!overlap(&at(one), &at(other)), "{one} and {other}");
        }
        assert!(overlap(root.path(), &at("not/there")));
    }
}
