//! Programs of the versions before and after this one, for upgrades.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::process::binary;

/// What the format stands behind in the program (`types::format`).
const MARK: &[u8] = b"mailring-format:";
const DIGITS: usize = 8;

impl Cluster {
    /// A copy of the program that knows formats up to this one.
    pub fn program_of_format(&self, format: u32) -> Result<PathBuf> {
        let mut program = fs::read(binary()?)?;
        let is_mark = |at: &usize| {
            let rest = &program[*at..];
            rest.starts_with(MARK) && rest[MARK.len()..].iter().take(DIGITS).all(u8::is_ascii_digit)
        };
        let first = MARK.first().copied().context("an empty mark")?;
        let places: Vec<usize> = (0..program.len()).filter(|at| program[*at] == first).filter(is_mark).collect();
        ensure!(places.len() == 1, "the mark is {} times in the program", places.len());
        let digits = format!("{format:0DIGITS$}");
        let at = places[0] + MARK.len();
        program[at..at + DIGITS].copy_from_slice(digits.as_bytes());
        let path = self.path().join(format!("mailring-of-format-{format}"));
        fs::write(&path, program)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Of each node that answers: the newest format that its program knows, and the one in force.
    pub fn formats(&self) -> Result<Vec<(u64, u64)>> {
        let nodes = self.json(&["node", "list"])?;
        let up = nodes.as_array().context("nodes")?.iter().filter(|node| node["up"] == true);
        let formats = up.map(|node| Some((node["format"].as_u64()?, node["format_in_force"].as_u64()?)));
        formats.collect::<Option<_>>().with_context(|| format!("a node without a format: {nodes}"))
    }
}
