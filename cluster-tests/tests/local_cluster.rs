//! The script that new users run first: it brings up a cluster where mail flows, obeys, and leaves nothing behind.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{ImapClient, SmtpClient, binary, eventually};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(180);

struct LocalCluster {
    directory: PathBuf,
    _parent: tempfile::TempDir,
}

impl LocalCluster {
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/local-cluster");
        let output = Command::new(script)
            .args(arguments)
            .arg("--dir")
            .arg(&self.directory)
            .env("MAILRING_BIN", binary()?)
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("{arguments:?}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(said)
    }

    /// `cluster.env` as scripts read it.
    fn env(&self) -> Result<BTreeMap<String, String>> {
        let text = fs::read_to_string(self.directory.join("cluster.env"))?;
        let pairs = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
        Ok(pairs.map(|(key, value)| (key.to_owned(), value.trim_matches(['"', '\'']).to_owned())).collect())
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        if self.directory.exists()
            && let Err(error) = self.run(&["destroy"])
        {
            eprintln!("local-cluster destroy: {error:#}");
        }
    }
}

/// A port base whose ports look free; the script checks each of them again.
fn port_base() -> Result<u16> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let base = (21..60)
        .map(|thousand| thousand * 1000)
        .find(|base| [25, 80, 110, 143, 465, 587, 993, 995].iter().all(|port| free(base + port)));
    base.context("no free port base")
}

/// A zombie does not live: only its parent has not noticed.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z') && !rest.starts_with('X'))
}

fn admin(config: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(binary()?).args(arguments).args(["--config", config]).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// As `status` tells it.
fn state_of<'a>(said: &'a str, name: &str) -> Option<&'a str> {
    let mut rows = said.lines().map(str::split_whitespace);
    rows.find_map(|mut row| if row.next() == Some(name) { row.next() } else { None })
}

#[test]
fn a_new_user_gets_a_cluster_with_one_command_and_gets_rid_of_it_with_another() -> Result<()> {
    let parent = tempfile::tempdir()?;
    let cluster = LocalCluster { directory: parent.path().join("cluster"), _parent: parent };
    let base = port_base()?.to_string();
    let up = ["up", "--nodes", "3", "--replicas", "3", "--shards", "4", "--mirror", "--port-base", &base];
    let said = cluster.run(&up)?;
    ensure!(cluster.directory.join("node2/disk-b/IDENTITY").exists(), "no second disk");
    ensure!(said.contains("Subject: Your first message"), "the first message is not shown:\n{said}");
    let env = cluster.env()?;
    for key in ["SMTP", "SUBMISSION", "SUBMISSIONS", "POP3", "POP3S", "IMAP", "IMAPS", "HTTP", "CA_CERT", "CONFIG"] {
        ensure!(env.contains_key(key), "no {key} in {env:?}");
    }
    let mut smtp = SmtpClient::connect(env["SMTP"].parse()?)?;
    let (code, text) = smtp.deliver("x@elsewhere.test", &["bob@example.test"], b"Subject: hi\r\n\r\nhi\r\n")?;
    ensure!(code == 250, "{code} {text}");
    let imap: std::net::SocketAddr = env["IMAP"].parse()?;
    ensure!(ImapClient::login(imap, "bob@example.test", "mailring-demo")?.select("INBOX")? == 1);

    cluster.run(&["stop", "router1"])?;
    ensure!(cluster.run(&["status"]).is_err(), "all is well without a router");
    cluster.run(&["start", "router1"])?;
    cluster.run(&["kill", "node2"])?;
    ensure!(!lives(&env["NODE2_PID"]), "node2 lives after kill");
    cluster.run(&["start", "node2"])?;
    cluster.run(&["pause", "node3"])?;
    cluster.run(&["resume", "node3"])?;
    cluster.run(&["add-node"])?;
    let env = cluster.env()?;
    ensure!(env.contains_key("NODE4_PID"), "the added node is not in {env:?}");
    // A router that starts when the first three have gone finds the others.
    let router = fs::read_to_string(cluster.directory.join("router1/config.toml"))?;
    let nodes = router.lines().find(|line| line.starts_with("nodes = ")).context("the router's nodes")?;
    ensure!(nodes.matches("127.0.0.1:").count() == 4, "{nodes}");
    // The node that was paused and the one that is new need a moment to catch up.
    eventually("all is well", PATIENCE, || cluster.run(&["status"]))?;

    // Whoever has read and deleted the first message can start the cluster again.
    let mut alice = ImapClient::login(imap, "alice@example.test", "mailring-demo")?;
    alice.select("INBOX")?;
    alice.ok("STORE 1:* +FLAGS.SILENT (\\Deleted)")?;
    alice.ok("EXPUNGE")?;

    // One that has left for good is not missed, nor started again.
    admin(&env["CONFIG"], &["node", "drain", "node4", "--wait"])?;
    eventually("it is removed", PATIENCE, || admin(&env["CONFIG"], &["node", "remove", "node4"]))?;
    cluster.run(&["stop", "node4"])?;
    let said = eventually("all is well", PATIENCE, || cluster.run(&["status"]))?;
    ensure!(state_of(&said, "node4") == Some("removed"), "{said}");
    ensure!(cluster.run(&["start", "node4"]).is_err(), "a node that was removed is started");
    let env: BTreeMap<String, String> = env.into_iter().filter(|(key, _)| key != "NODE4_PID").collect();

    let pids: Vec<String> = env.iter().filter(|(key, _)| key.ends_with("_PID")).map(|(_, pid)| pid.clone()).collect();
    ensure!(pids.len() == 4 && pids.iter().all(|pid| lives(pid)), "{env:?}");
    cluster.run(&["down"])?;
    ensure!(!pids.iter().any(|pid| lives(pid)), "a process lives after down");
    cluster.run(&["up"])?;
    let said = cluster.run(&["status"])?;
    ensure!(state_of(&said, "node4") == Some("removed") && cluster.env()?["NODE4_PID"].is_empty(), "{said}");
    let imap: std::net::SocketAddr = cluster.env()?["IMAP"].parse()?;
    ensure!(ImapClient::login(imap, "bob@example.test", "mailring-demo")?.select("INBOX")? == 1, "mail is lost");
    cluster.run(&["destroy"])?;
    ensure!(!cluster.directory.exists());
    Ok(())
}

#[test]
fn what_cannot_be_done_is_said_before_anything_starts() -> Result<()> {
    let parent = tempfile::tempdir()?;
    let cluster = LocalCluster { directory: parent.path().join("cluster"), _parent: parent };
    for wrong in [
        &["up", "--nodes", "2", "--replicas", "3"][..],
        &["up", "--nodes", "0"],
        &["up", "--what"],
        &["kill", "node1"],
        &["frobnicate"],
    ] {
        ensure!(cluster.run(wrong).is_err(), "{wrong:?} was accepted");
    }
    ensure!(!cluster.directory.join("cluster.env").exists());
    Ok(())
}
