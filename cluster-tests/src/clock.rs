//! A clock of a process's own: a small library put before the C library's shows it another time of day, while its
//! monotonic clock stays the machine's, as when somebody sets a machine's clock.
//!
//! Not libfaketime: an allocator that asks for the time while it starts waits there for itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

const SOURCE: &str = include_str!("clock.c");

pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

/// Why processes cannot have clocks of their own here; None: they can.
pub fn no_clocks_because() -> Option<String> {
    let attempt = || -> Result<()> {
        let directory = tempfile::tempdir()?;
        Clock::new(directory.path(), "attempt").map(drop)
    };
    attempt().err().map(|error| format!("{error:#}"))
}

impl Clock {
    /// Shows the machine's time at first. Its files are in `directory`.
    pub fn new(directory: &Path, name: &str) -> Result<Clock> {
        let library = directory.join("clock.so");
        if !library.exists() {
            let source = directory.join("clock.c");
            fs::write(&source, SOURCE)?;
            let compiled = Command::new("cc")
                .args(["-O1", "-shared", "-fPIC", "-pthread", "-o"])
                .args([&library, &source])
                .output()
                .context("cc")?;
            ensure!(compiled.status.success(), "cc: {}", String::from_utf8_lossy(&compiled.stderr));
        }
        let clock = Clock { library, file: directory.join(format!("{name}.clock")) };
        clock.set(0)?;
        Ok(clock)
    }

    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let variable = |name: &str, value: &Path| (name.to_owned(), value.to_string_lossy().into_owned());
        vec![variable("LD_PRELOAD", &self.library), variable("MAILRING_TEST_CLOCK", &self.file)]
    }

    /// Jumps to so many seconds before or after the machine's time.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // In place, for processes have it in their memory.
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&self.file)?;
        Ok(std::os::unix::fs::FileExt::write_all_at(&file, &seconds.to_ne_bytes(), 0)?)
    }

    /// Jumps to a time in seconds since 1970.
    pub fn set_to(&self, unix_s: i64) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        self.set(unix_s - i64::try_from(now)?)
    }
}
