//! One process of a cluster: started, watched, signalled, limited, ended; and the binary that it runs.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::clock::Clock;
use crate::failpoints::Failpoints;
use crate::line::LineClient;
use crate::proxy::Proxy;

/// The whole cluster comes up within this even on a busy machine.
pub(crate) const START_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_millis(500);

/// A process of the cluster: its configuration stays, the child comes and goes.
pub struct Process {
    pub name: String,
    pub(crate) role: &'static str,
    pub(crate) config: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) http: SocketAddr,
    pub(crate) child: Option<Child>,
    pub(crate) proxy: Arc<Proxy>,
    /// Its own, if it has one.
    pub(crate) clock: Option<Clock>,
    /// That it runs as, if not as the test's.
    pub(crate) group: Option<u32>,
    pub(crate) planted: Option<&'static str>,
    /// What it runs from its next start on, if not [`binary`].
    pub program: Option<PathBuf>,
    /// Of a cluster whose processes can be stopped at the steps of a move.
    pub(crate) failpoints: Option<Failpoints>,
}

/// Waits for a condition; the error says what never came true. Looks take half of the time at most: many are commands that
/// need the processors of what is waited for.
pub fn eventually<T>(what: &str, max: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + max;
    loop {
        let began = Instant::now();
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error.context(format!("not in {max:?}: {what}"))),
            Err(_) => std::thread::sleep(began.elapsed().clamp(POLL, POLL_MAX)),
        }
    }
}

impl Process {
    pub fn start(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = match (&self.program, &self.failpoints) {
            (Some(program), _) => Command::new(program),
            (None, Some(failpoints)) => failpoints.mailring()?,
            (None, None) => mailring(self.planted)?,
        };
        if let Some(group) = self.group {
            command.gid(group);
        }
        let child = command
            .args([self.role, "--config"])
            .arg(&self.config)
            .envs(self.clock.iter().flat_map(Clock::environment))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.proxy.knows(&self.name, child.id());
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the process says that it is ready; its log is part of the error.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = eventually("the process is ready", START_MAX, || {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended: {status}", self.name);
            }
            http_ok(self.http, "/readyz")
        });
        ready.map_err(|error| anyhow!("{error:#}\n{}:\n{}", self.name, self.log_tail()))
    }

    /// SIGKILL: nothing is flushed, nobody is told.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        run(Command::new("kill").args(["-TERM", &child.id().to_string()]))?;
        let ended = eventually("the process ends", START_MAX, || match child.try_wait()? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(anyhow!("{} ended with {status}", self.name)),
            None => Err(anyhow!("{} still runs", self.name)),
        });
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended
    }

    /// Waits until a process that was started ends by itself; its exit code and what it logged since.
    pub fn ended(&mut self) -> Result<(Option<i32>, String)> {
        let mut child = self.child.take().context("not running")?;
        let ended = eventually("the process ends", START_MAX, || child.try_wait()?.context("it runs"));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        Ok((ended?.code(), self.log_tail()))
    }

    /// Replaces a text in its settings file.
    pub fn reconfigure(&self, before: &str, after: &str) -> Result<()> {
        let settings = fs::read_to_string(&self.config)?;
        if !settings.contains(before) {
            bail!("{before:?} is not in {settings}");
        }
        Ok(fs::write(&self.config, settings.replace(before, after))?)
    }

    /// The numbers of its open file descriptors.
    pub fn descriptors(&self) -> Result<Vec<usize>> {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid().context("not running")?))?;
        open.map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?)).collect()
    }

    /// Allows it numbers below this.
    pub fn limit_descriptors(&self, most: usize) -> Result<()> {
        let id = self.pid().context("not running")?.to_string();
        run(Command::new("prlimit").args(["--pid", &id, &format!("--nofile={most}:{most}")])).map(|_| ())
    }

    /// Sends a signal such as STOP or CONT.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let id = self.pid().context("not running")?;
        run(Command::new("kill").args([format!("-{signal}"), id.to_string()])).map(|_| ())
    }

    /// The clock of a process of a cluster with `own_clocks`.
    pub fn clock(&self) -> Result<&Clock> {
        self.clock.as_ref().with_context(|| format!("{} goes by the machine's clock", self.name))
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Resident memory in KiB.
    pub fn memory_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().context("not running")?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Everything that it has logged.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// How many lines of the log hold a text.
    pub fn logged(&self, text: &str) -> Result<usize> {
        Ok(fs::read_to_string(&self.log)?.lines().filter(|line| line.contains(text)).count())
    }

    /// The lines of the log at WARN and ERROR, those of every start. Not those of a node that was silent and has answered
    /// since: on a machine that stood still for seconds that is no more than true.
    pub fn alarms(&self) -> Result<Vec<String>> {
        Ok(alarms(&fs::read_to_string(&self.log)?))
    }

    /// A figure of its metrics, summed up over all labels.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let text = http(self.http, "/metrics")?.rest()?;
        let figures = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
            rest.rsplit(' ').next()?.parse().ok()
        });
        let figures: Vec<u64> = figures.collect();
        ensure!(!figures.is_empty(), "no figure {name}");
        Ok(figures.iter().sum())
    }

    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, self.log_tail());
        }
        if let Err(error) = self.kill() {
            eprintln!("{} cannot be killed: {error:#}", self.name);
        }
    }
}

/// The binary that stands beside the tests, or the one that MAILRING_BIN names.
pub fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("MAILRING_BIN") {
        return Ok(named.into());
    }
    let test = std::env::current_exe()?;
    let found = test.ancestors().skip(1).map(|folder| folder.join("mailring")).find(|path| path.is_file());
    found.with_context(|| format!("no mailring beside {}: cargo build --release -p mailring", test.display()))
}

/// The binary that was built with the feature `planted-bugs`; None: there is none here.
pub fn planted_binary() -> Option<PathBuf> {
    std::env::var_os("MAILRING_PLANTED_BIN").map(PathBuf::from)
}

/// The binary, or the one with bugs on purpose and the one that it is to have.
pub(crate) fn mailring(planted: Option<&str>) -> Result<Command> {
    let Some(bug) = planted else { return Ok(Command::new(binary()?)) };
    let mut command = Command::new(planted_binary().context("MAILRING_PLANTED_BIN is not set")?);
    command.env("MAILRING_PLANTED", bug);
    Ok(command)
}

pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    said(command, &output)
}

/// What a command that has ended printed; an error if it failed.
pub(crate) fn said(command: &Command, output: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}

/// What is logged of nodes that say nothing, and when they say something again.
const SILENCES: [(&str, &str); 2] = [
    ("node does not answer, others are asked", "node answers again"),
    ("directory is not reachable, going on with what is known", "directory is reachable again"),
];

fn alarms(log: &str) -> Vec<String> {
    // The level is the second word: "2026-01-01T00:00:00.000000Z  WARN router: text".
    let is_alarm = |line: &&str| matches!(line.split_whitespace().nth(1), Some("WARN" | "ERROR"));
    let node = |line: &str| line.split_whitespace().find(|word| word.starts_with("node=")).map(str::to_owned);
    let mut alarms: Vec<String> = Vec::new();
    for line in log.lines() {
        if is_alarm(&line) {
            alarms.push(line.to_owned());
        }
        let Some((silence, _)) = SILENCES.iter().find(|(_, end)| line.contains(end)) else { continue };
        if let Some(at) = alarms.iter().rposition(|alarm| alarm.contains(silence) && node(alarm) == node(line)) {
            alarms.remove(at);
        }
    }
    alarms
}

fn http_ok(address: SocketAddr, path: &str) -> Result<()> {
    http(address, path).map(drop)
}

/// An answer of 200, with its headers and its content still to be read.
fn http(address: SocketAddr, path: &str) -> Result<LineClient> {
    let mut client = LineClient::connect(address)?;
    client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())?;
    let status = client.line()?;
    ensure!(status.contains(" 200 "), "{path}: {status}");
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::alarms;

    #[test]
    fn a_node_that_was_silent_is_an_alarm_until_it_answers_again() {
        let line = |level: &str, text: &str| format!("2026-01-01T00:00:00.000000Z {level} router::cluster: {text}\n");
        let silent = |node: u32| line(" WARN", &format!("node does not answer, others are asked node={node}"));
        let again = |node: u32| line(" INFO", &format!("node answers again node={node} silent_for=2.6s"));
        let other = line("ERROR", "volume failed");
        assert_eq!(alarms(&[silent(1), other.clone(), again(1)].concat()), [other.trim_end()]);
        assert_eq!(alarms(&[silent(1), again(2)].concat()).len(), 1);
        // Once each time.
        assert_eq!(alarms(&[silent(1), silent(1), again(1)].concat()).len(), 1);
        assert_eq!(alarms(&[silent(1), again(1), silent(1)].concat()).len(), 1);
        let lost = line(" WARN", "directory is not reachable, going on with what is known");
        let found = line(" INFO", "directory is reachable again");
        assert_eq!(alarms(&lost).len(), 1);
        assert_eq!(alarms(&[lost, found].concat()).len(), 0);
    }
}
