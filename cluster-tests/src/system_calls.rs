//! System calls of a running process that fail or take long: strace stands between the process and the kernel.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// As long as it lives, system calls of a process are not what they were. Dropping it lets go of the process.
pub struct Injection(Child);

impl Injection {
    /// `what` as strace has it: `error=EIO`, `delay_enter=200000`; `files`: on these alone, if there are any. None, with
    /// a line that says why, where the machine does not allow it.
    pub fn begin(process: u32, calls: &str, what: &str, files: &[PathBuf]) -> Result<Option<Injection>> {
        let mut command = Command::new("strace");
        command.args(["-f", "--seccomp-bpf", "-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{what}")]);
        for file in files {
            command.arg("-P").arg(file);
        }
        command.args(["-o", "/dev/null", "-p", &process.to_string()]);
        let mut strace = match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn() {
            Ok(strace) => strace,
            Err(error) => {
                println!("skipped: {what} of {calls}: strace: {error}");
                return Ok(None);
            }
        };
        let mut said = BufReader::new(strace.stderr.take().context("what strace says")?);
        let mut line = String::new();
        while said.read_line(&mut line)? > 0 {
            if line.contains(" attached") {
                // Its pipe must not fill up.
                std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
                return Ok(Some(Injection(strace)));
            }
        }
        strace.wait()?;
        if line.contains("Operation not permitted") || line.contains("not supported") {
            println!("skipped: {what} of {calls}: {}", line.trim());
            return Ok(None);
        }
        bail!("strace ended: {line}")
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // TERM, so that it lets go of the process.
        let told = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        if let Err(error) = told.and_then(|_| self.0.wait()) {
            eprintln!("strace does not end: {error}");
        }
    }
}
