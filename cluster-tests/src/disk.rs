//! A disk whose power can be cut: a file system in an image, mounted over a loop device. Killing a process proves nothing
//! about fsync, for the page cache outlives it; this file system forgets what was not synced. Needs root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::eventually;

const OCTETS: u64 = 1024 * 1024 * 1024;
/// What nodes on such disks keep free.
pub const DISK_RESERVE_OCTETS: u64 = 128 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(120);
/// EXT4_IOC_SHUTDOWN (linux/fs/ext4/ext4.h) without a flush of the log: what is not on the disk yet is lost.
const CUT: &str = "import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(fd, 0x8004587d, struct.pack('I', 2))";
/// FIFREEZE and FITHAW (linux/fs.h): in between every write and sync waits.
const FREEZE: &str = "import fcntl, os, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0xc0045877, 0)";
const THAW: &str = "import fcntl, os, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0xc0045878, 0)";

/// Dropping it unmounts it.
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
    mounted: bool,
}

/// Whether disks of this kind can be had here; says so, for a skipped test to be counted, where they cannot.
pub fn disks_possible() -> bool {
    let attempt = || -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mount = directory.path().join("disk");
        fs::create_dir(&mount)?;
        Disk::create(directory.path().join("image"), mount)?.cut()
    };
    let refused = attempt().err();
    if let Some(error) = &refused {
        println!("skipped: no disk of its own: {error:#}");
    }
    refused.is_none()
}

impl Disk {
    /// A fresh file system, mounted at an existing directory.
    pub fn create(image: PathBuf, mount: PathBuf) -> Result<Disk> {
        File::create(&image)?.set_len(OCTETS)?;
        // Nothing is kept back for root, which tests run as.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let mut disk = Disk { image, mount, mounted: false };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&mut self) -> Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mount))?;
        self.mounted = true;
        Ok(())
    }

    /// From now on nothing reaches the disk; every write and sync fails.
    pub fn cut(&self) -> Result<()> {
        run(Command::new("python3").args(["-c", CUT]).arg(&self.mount))
    }

    /// The disk answers no write and no sync until the [`Stall`] ends. Meanwhile nobody who writes there can be killed.
    pub fn stall(&self) -> Result<Stall> {
        run(Command::new("python3").args(["-c", FREEZE]).arg(&self.mount))?;
        Ok(Stall { mount: self.mount.clone(), began: Instant::now() })
    }

    /// The power comes back: what was synced is there. Nobody may have files open.
    pub fn restore(&mut self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }

    fn unmount(&mut self) -> Result<()> {
        if self.mounted {
            // A process that was killed a moment ago may still be on its way out.
            eventually("the disk is free", PATIENCE, || run(Command::new("umount").arg(&self.mount)))?;
            self.mounted = false;
        }
        Ok(())
    }

    /// Leaves so many octets of room; whatever filled it before is gone.
    pub fn fill(&self, left_octets: u64) -> Result<()> {
        self.empty()?;
        let octets = self.free_octets()?.saturating_sub(left_octets);
        run(Command::new("fallocate").args(["-l", &octets.to_string()]).arg(self.filler()))
    }

    pub fn free_octets(&self) -> Result<u64> {
        let found = rustix::fs::statvfs(&self.mount)?;
        Ok(found.f_bavail * found.f_frsize)
    }

    pub fn empty(&self) -> Result<()> {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("{} cannot be unmounted: {error:#}", self.mount.display());
        }
    }
}

/// A disk that does not answer; it does again when this is dropped.
pub struct Stall {
    mount: PathBuf,
    began: Instant,
}

impl Stall {
    /// Until it has lasted so long.
    pub fn last(self, time: Duration) {
        std::thread::sleep(time.saturating_sub(self.began.elapsed()));
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("python3").args(["-c", THAW]).arg(&self.mount)) {
            eprintln!("{} cannot be thawed: {error:#}", self.mount.display());
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {} {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
