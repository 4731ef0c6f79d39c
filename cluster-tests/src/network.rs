//! A network of a test's own, in which the kernel loses, refuses or slows the packets between two processes: what the
//! [`crate::Proxy`] cannot do, for it carries bytes. Needs root, nft and tc.
//!
//! The network is a namespace in which the test runs once more, so that neither the machine's rules nor other tests are
//! touched; it is gone with its last process. Everybody has the same address there. Who calls is told by the group (gid)
//! that a process runs as, which connection tracking remembers as a connection's mark; who is called, by its port. The
//! test itself and the clients' ports stay as they are.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::Cluster;

/// A process with number n runs as this group and n more.
const GROUP_FIRST: u32 = 60_000;
/// Processes of a cluster, numbered from 1.
const NUMBER_MAX: u32 = 15;
/// What waits before a narrow link, in octets: a second's worth at 64 kbit/s.
const QUEUE_OCTETS: u32 = 8_000;
const TABLE: &str = "inet links";
/// Set where a test runs in its own network.
const INSIDE: &str = "MAILRING_TEST_NETWORK";
/// Packets as large as on a real network, and none that stands for several.
const LINK_UP: &str = "ip link set lo mtu 1500 gso_max_segs 1 up";
const QUEUES: &str = "tc qdisc add dev lo root handle 1: htb";

/// What happens to packets from one process to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// So many of a hundred are lost, at random.
    Loss(u32),
    /// Each is answered by a reset.
    Reset,
    /// Only so many bits a second pass.
    Narrow(u32),
}

/// One that a test runs in.
pub struct Network {
    /// Each narrow direction.
    classes: BTreeSet<u32>,
}

/// Runs the test of this name in a network of its own; says why, for a skipped test to be counted, where that cannot be
/// had.
pub fn in_own_network(name: &str, test: impl FnOnce(Network) -> Result<()>) -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return test(Network::set_up()?);
    }
    let attempt = format!("{LINK_UP} && nft add table {TABLE} && {QUEUES}");
    if let Err(error) = run("unshare", &["--net", "sh", "-c", &attempt], "") {
        println!("skipped: no network of its own: {error:#}");
        return Ok(());
    }
    let mut inside = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe()?)
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, "yes")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut passed = false;
    for line in BufReader::new(inside.stdout.take().context("stdout")?).lines() {
        let line = line?;
        passed |= line.starts_with("test result: ok. 1 passed");
        println!("{line}");
    }
    let ended = inside.wait()?;
    ensure!(ended.success() && passed, "{name} in a network of its own: {ended}");
    Ok(())
}

/// The group of a cluster's process, nodes first.
pub(crate) fn group(number: usize) -> u32 {
    GROUP_FIRST + number as u32
}

impl Network {
    fn set_up() -> Result<Network> {
        run("sh", &["-c", &format!("{LINK_UP} && {QUEUES}")], "")?;
        let groups: Vec<String> =
            (1..=NUMBER_MAX).map(|number| format!("{} : {number}", GROUP_FIRST + number)).collect();
        // Lost at the receiver: a sender is told of what is dropped on its own side.
        nft(&format!(
            "table {TABLE} {{
                chain leaving {{ }}
                chain arriving {{ }}
                chain output {{
                    type filter hook output priority filter;
                    ct state new ct mark set meta skgid map {{ {} }}
                    jump leaving
                }}
                chain input {{
                    type filter hook input priority filter;
                    jump arriving
                }}
            }}",
            groups.join(", ")
        ))?;
        Ok(Network { classes: BTreeSet::new() })
    }

    /// Both directions between two processes.
    pub fn between(&mut self, cluster: &Cluster, one: &str, other: &str, fault: Fault) -> Result<()> {
        self.set(cluster, one, other, fault)?;
        self.set(cluster, other, one, fault)
    }

    /// All that a process says to others and hears from them.
    pub fn around(&mut self, cluster: &Cluster, name: &str, fault: Fault) -> Result<()> {
        let others = names(cluster).into_iter().filter(|other| other != name);
        others.collect::<Vec<_>>().iter().try_for_each(|other| self.between(cluster, name, other, fault))
    }

    /// All that any process says to any other.
    pub fn everywhere(&mut self, cluster: &Cluster, fault: Fault) -> Result<()> {
        let names = names(cluster);
        for from in &names {
            for to in names.iter().filter(|to| *to != from) {
                self.set(cluster, from, to, fault)?;
            }
        }
        Ok(())
    }

    /// Nothing arrives any more at this port of a client; what it says goes out.
    pub fn deafen(&mut self, port: u16) -> Result<()> {
        nft(&format!("add rule {TABLE} arriving tcp dport {port} counter drop"))
    }

    /// How many packets have met a fault since the last healing.
    pub fn met(&self) -> Result<u64> {
        let listing = run("nft", &["list", "ruleset"], "")?;
        let counters = listing.split("counter packets ").skip(1);
        Ok(counters.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum())
    }

    /// Everything flows again; what waited before narrow links is lost.
    pub fn heal(&mut self) -> Result<()> {
        nft(&format!("flush chain {TABLE} leaving\nflush chain {TABLE} arriving"))?;
        for class in std::mem::take(&mut self.classes) {
            tc(&["class", "del", "dev", "lo", "classid", &format!("1:{class:x}")])?;
        }
        Ok(())
    }

    /// One direction.
    fn set(&mut self, cluster: &Cluster, from: &str, to: &str, fault: Fault) -> Result<()> {
        let names = names(cluster);
        let number = |name: &str| names.iter().position(|known| known == name).map(|at| at as u32 + 1);
        let numbers = number(from).zip(number(to)).with_context(|| format!("{from} or {to} is no process"))?;
        ensure!(numbers.0.max(numbers.1) <= NUMBER_MAX, "more processes than numbers");
        let (chain, verdict) = match fault {
            Fault::Loss(of_hundred) => ("arriving", format!("numgen random mod 100 < {of_hundred} counter drop")),
            Fault::Reset => ("arriving", "counter reject with tcp reset".to_owned()),
            Fault::Narrow(bits) => {
                let class = numbers.0 * 16 + numbers.1;
                self.narrow(class, bits)?;
                ("leaving", format!("counter meta priority set 1:{class:x}"))
            }
        };
        // Nodes come first, and are the ones that are called: what a caller says, and what is answered to it.
        let port =
            |number: u32| (number as usize <= cluster.nodes.len()).then(|| cluster.grpc(number as usize - 1).port());
        let says = port(numbers.1).map(|port| (numbers.0, "original", port));
        let answers = port(numbers.0).map(|port| (numbers.1, "reply", port));
        for (caller, direction, port) in says.into_iter().chain(answers) {
            nft(&format!(
                "add rule {TABLE} {chain} ct mark {caller} ct direction {direction} meta l4proto tcp \
                 ct original proto-dst {port} {verdict}"
            ))?;
        }
        Ok(())
    }

    fn narrow(&mut self, class: u32, bits: u32) -> Result<()> {
        let (id, rate) = (format!("1:{class:x}"), format!("{bits}bit"));
        // One packet at once.
        let class_rate = ["htb", "rate", &rate, "burst", "1600", "cburst", "1600"];
        tc(&[&["class", "add", "dev", "lo", "parent", "1:", "classid", &id], &class_rate[..]].concat())?;
        tc(&["qdisc", "add", "dev", "lo", "parent", &id, "bfifo", "limit", &QUEUE_OCTETS.to_string()])?;
        self.classes.insert(class);
        Ok(())
    }
}

/// Of all processes, by number.
fn names(cluster: &Cluster) -> Vec<String> {
    cluster.nodes.iter().chain(&cluster.routers).map(|process| process.name.clone()).collect()
}

fn nft(rules: &str) -> Result<()> {
    // Its grammar wants the end of the line.
    run("nft", &["-f", "-"], &format!("{rules}\n")).map(drop)
}

fn tc(arguments: &[&str]) -> Result<()> {
    run("tc", arguments, "").map(drop)
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| program.to_owned())?;
    let written = child.stdin.take().context("stdin")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program} {arguments:?} {input}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    written.with_context(|| format!("{program} {arguments:?}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
