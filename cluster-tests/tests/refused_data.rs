//! Data directories that are not what their node takes them for: each is refused with a line that says why, and the other
//! nodes go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{Cluster, ClusterOptions, Process, eventually, live_log};

/// Bounds only how long a test waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(120);
const VICTIM: usize = 2;
/// Some of them are in the victim's shards.
const ACCOUNTS: usize = 8;

fn start() -> Result<Cluster> {
    let cluster = Cluster::start(ClusterOptions { shards: 4, ..ClusterOptions::default() })?;
    cluster.add_accounts(&["ann"])?;
    Ok(cluster)
}

/// Accounts in several shards.
fn add_users(cluster: &Cluster) -> Result<Vec<String>> {
    let locals: Vec<String> = (0..ACCOUNTS).map(|number| format!("user{number}")).collect();
    cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(locals.iter().map(|local| format!("{local}@example.test")).collect())
}

/// One message to each, whether others are served or not.
fn deliver_to(cluster: &Cluster, users: &[String]) -> Result<()> {
    users.iter().try_for_each(|user| {
        eventually("mail flows", PATIENCE, || {
            let (code, text) = cluster.smtp_client()?.deliver("s@x.test", &[user], b"Subject: x\r\n\r\nx\r\n")?;
            ensure!(code == 250, "{code} {text}");
            Ok(())
        })
    })
}

fn deliver(cluster: &Cluster) -> Result<()> {
    deliver_to(cluster, &["ann@example.test".to_owned()])
}

/// Starts a process that must end with an error and say why.
fn refuses(process: &mut Process, why: &[&str]) -> Result<()> {
    process.start()?;
    let (code, said) = process.ended()?;
    ensure!(code.is_some_and(|code| code != 0), "exit code {code:?}");
    let told = said.lines().any(|line| why.iter().all(|part| line.contains(part)));
    ensure!(told, "no line has {why:?}:\n{said}");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(status.success(), "cp: {status}");
    Ok(())
}

/// A disk of the victim with an old copy in its place.
struct Replaced {
    disk: PathBuf,
    newest: PathBuf,
}

impl Replaced {
    /// Puts back what the disk was before something happened. The node does not run then.
    fn by_what_it_was_before(
        cluster: &mut Cluster,
        disk: PathBuf,
        happens: impl FnOnce(&Cluster) -> Result<()>,
    ) -> Result<Replaced> {
        let (old, newest) = (disk.with_extension("old"), disk.with_extension("newest"));
        cluster.nodes[VICTIM].kill()?;
        copy(&disk, &old)?;
        cluster.nodes[VICTIM].start()?;
        cluster.wait_ready()?;
        happens(cluster)?;
        cluster.nodes[VICTIM].kill()?;
        fs::rename(&disk, &newest)?;
        copy(&old, &disk)?;
        Ok(Replaced { disk, newest })
    }

    fn by_the_newest(self) -> Result<()> {
        fs::remove_dir_all(&self.disk)?;
        Ok(fs::rename(&self.newest, &self.disk)?)
    }
}

#[test]
fn another_clusters_data_a_newer_format_and_a_copy_are_refused_by_name() -> Result<()> {
    let mut cluster = start()?;
    deliver(&cluster)?;
    cluster.nodes[VICTIM].kill()?;

    let (own, other) = ("00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100");
    cluster.nodes[VICTIM].reconfigure(own, other)?;
    refuses(&mut cluster.nodes[VICTIM], &["belongs to cluster", own, other])?;
    cluster.nodes[VICTIM].reconfigure(other, own)?;

    let disk = cluster.disk(VICTIM);
    let identity = fs::read_to_string(disk.join("IDENTITY"))?;
    fs::write(disk.join("IDENTITY"), identity.replace("format 2", "format 4").replace("format 3", "format 4"))?;
    refuses(&mut cluster.nodes[VICTIM], &["has format 4", "formats up to 3"])?;
    fs::write(disk.join("IDENTITY"), &identity)?;

    // The first node's data at the third node's address, while the first runs.
    let aside = disk.with_extension("aside");
    fs::rename(&disk, &aside)?;
    cluster.nodes[0].kill()?;
    copy(&cluster.disk(0), &disk)?;
    cluster.nodes[0].start()?;
    cluster.nodes[0].wait_ready()?;
    deliver(&cluster)?;
    refuses(&mut cluster.nodes[VICTIM], &["is running at", "copy"])?;

    // With its own data all is well.
    fs::remove_dir_all(&disk)?;
    fs::rename(&aside, &disk)?;
    cluster.nodes[VICTIM].start()?;
    cluster.nodes[VICTIM].wait_ready()?;
    deliver(&cluster)?;
    cluster.wait_caught_up()?;
    cluster.compare_replicas().map(drop)
}

#[test]
fn an_old_copy_of_a_nodes_disks_is_refused_by_name() -> Result<()> {
    let mut cluster = start()?;
    deliver(&cluster)?;
    let disk = cluster.disk(VICTIM);
    let replaced = Replaced::by_what_it_was_before(&mut cluster, disk, |cluster| {
        deliver(cluster)?;
        cluster.wait_caught_up()
    })?;
    refuses(&mut cluster.nodes[VICTIM], &["an old copy of this node's disks", "put the newest disks back"])?;
    // Again: what it had counted before it was refused makes no newer disks of them.
    refuses(&mut cluster.nodes[VICTIM], &["an old copy of this node's disks"])?;
    deliver(&cluster)?;

    // Together with the others, while nobody is there to ask yet.
    cluster.kill_all()?;
    cluster.start_all()?;
    let (code, said) = cluster.nodes[VICTIM].ended()?;
    ensure!(code == Some(1) && said.contains("an old copy of this node's disks"), "exit code {code:?}:\n{said}");
    deliver(&cluster)?;

    replaced.by_the_newest()?;
    cluster.nodes[VICTIM].start()?;
    cluster.wait_ready()?;
    deliver(&cluster)?;
    cluster.wait_caught_up()?;
    cluster.compare_replicas().map(drop)
}

/// How many messages an account has, if it is served.
fn messages(cluster: &Cluster, user: &str) -> Result<usize> {
    let mut imap = cluster.imap_client(user)?;
    imap.select("INBOX")?;
    Ok(imap.uids()?.len())
}

/// With one replica of each shard nobody but the node itself could tell what is missing on the old copy.
#[test]
fn an_old_copy_serves_nothing_though_all_nodes_start_at_once() -> Result<()> {
    let options = ClusterOptions { shards: 4, replicas: 1, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options)?;
    let users = add_users(&cluster)?;
    deliver_to(&cluster, &users)?;
    let disk = cluster.disk(VICTIM);
    let mut before = Vec::new();
    let replaced = Replaced::by_what_it_was_before(&mut cluster, disk, |cluster| {
        deliver_to(cluster, &users)?;
        before = users
            .iter()
            .map(|user| eventually("the account is served", PATIENCE, || messages(cluster, user)))
            .collect::<Result<_>>()?;
        Ok(())
    })?;
    cluster.nodes.iter_mut().try_for_each(Process::kill)?;
    cluster.start_all()?;
    let (mut looked, end) = (0, Instant::now() + PATIENCE);
    while cluster.nodes[VICTIM].is_running() {
        ensure!(Instant::now() < end, "an old copy is not refused");
        for (user, before) in users.iter().zip(&before) {
            if let Ok(found) = messages(&cluster, user) {
                ensure!(found >= *before, "{user} had {before} messages and is told of {found}");
            }
            looked += 1;
        }
    }
    let (code, said) = cluster.nodes[VICTIM].ended()?;
    ensure!(code == Some(1) && said.contains("an old copy of this node's disks"), "exit code {code:?}:\n{said}");
    println!("looked {looked} times meanwhile");

    replaced.by_the_newest()?;
    cluster.nodes[VICTIM].start()?;
    cluster.wait_ready()?;
    for (user, before) in users.iter().zip(&before) {
        eventually("everything is there", PATIENCE, || {
            let found = messages(&cluster, user)?;
            ensure!(found >= *before, "{user} had {before} messages and has {found}");
            Ok(())
        })?;
    }
    deliver_to(&cluster, &users)
}

/// With one replica of each shard, and nobody there to ask, an old copy would elect itself.
#[test]
fn an_old_copy_that_starts_first_and_alone_serves_nothing_either() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { shards: 4, replicas: 1, ..ClusterOptions::default() })?;
    let locals: Vec<String> = (0..ACCOUNTS).map(|number| format!("user{number}")).collect();
    cluster.add_accounts(&locals.iter().map(String::as_str).collect::<Vec<_>>())?;
    let disk = cluster.disk(VICTIM);
    let (old, newest) = (disk.with_extension("old"), disk.with_extension("newest"));
    cluster.nodes[VICTIM].kill()?;
    copy(&disk, &old)?;
    cluster.nodes[VICTIM].start()?;
    cluster.wait_ready()?;
    cluster.nodes.iter_mut().try_for_each(Process::kill)?;
    for (copy_of, is_old) in [(&old, true), (&newest, false)] {
        if is_old {
            fs::rename(&disk, &newest)?;
            copy(copy_of, &disk)?;
        } else {
            fs::remove_dir_all(&disk)?;
            fs::rename(copy_of, &disk)?;
        }
        let waits = "no other node answers";
        let told = cluster.nodes[VICTIM].logged(waits)?;
        cluster.nodes[VICTIM].start()?;
        eventually("it waits for another node", PATIENCE, || {
            ensure!(cluster.nodes[VICTIM].logged(waits)? > told, "it does not say so");
            Ok(())
        })?;
        let served: Vec<&String> = std::thread::scope(|scope| {
            let asking: Vec<_> = locals
                .iter()
                .map(|local| {
                    let cluster = &cluster;
                    (local, scope.spawn(move || messages(cluster, &format!("{local}@example.test"))))
                })
                .collect();
            asking
                .into_iter()
                .filter_map(|(local, asked)| asked.join().is_ok_and(|found| found.is_ok()).then_some(local))
                .collect()
        });
        ensure!(served.is_empty(), "{served:?} are served by a node that nobody has vouched for");
        if is_old {
            cluster.nodes[..VICTIM].iter_mut().try_for_each(Process::start)?;
            let (code, said) = cluster.nodes[VICTIM].ended()?;
            ensure!(
                code == Some(1) && said.contains("an old copy of this node's disks"),
                "exit code {code:?}:\n{said}"
            );
            cluster.nodes.iter_mut().try_for_each(Process::kill)?;
        }
    }
    cluster.start_all()?;
    cluster.wait_ready()?;
    for user in locals.iter().map(|local| format!("{local}@example.test")) {
        eventually("it is served again", PATIENCE, || messages(&cluster, &user))?;
    }
    Ok(())
}

#[test]
fn a_damaged_log_is_refused_by_name_and_the_others_serve() -> Result<()> {
    let mut cluster = start()?;
    for _ in 0..5 {
        deliver(&cluster)?;
    }
    cluster.nodes[VICTIM].kill()?;
    let log = live_log(&cluster.disk(VICTIM))?;
    let whole = fs::read(&log)?;
    let end = whole.iter().rposition(|byte| *byte != 0).context("an empty log")?;
    // The directory's entries stand before those of mail, in the same log.
    for place in [end / 10, end / 2] {
        let mut damaged = whole.clone();
        damaged[place..place + 8].iter_mut().for_each(|byte| *byte ^= 0xff);
        fs::write(&log, &damaged)?;
        refuses(&mut cluster.nodes[VICTIM], &["open the volume", "disk-a"])?;
        deliver(&cluster)?;
    }
    fs::write(&log, &whole)?;
    cluster.nodes[VICTIM].start()?;
    cluster.nodes[VICTIM].wait_ready()?;
    cluster.wait_caught_up()?;
    cluster.compare_replicas().map(drop)
}

#[test]
fn a_log_damaged_in_both_halves_is_refused_by_name_and_the_others_serve() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { shards: 4, mirror: true, ..ClusterOptions::default() })?;
    cluster.add_accounts(&["ann"])?;
    for _ in 0..5 {
        deliver(&cluster)?;
    }
    cluster.nodes[VICTIM].kill()?;
    let disks = cluster.disk_directories(VICTIM);
    let logs: Vec<_> = disks.iter().map(|disk| live_log(disk)).collect::<Result<_>>()?;
    let whole: Vec<_> = logs.iter().map(fs::read).collect::<std::io::Result<_>>()?;
    for (log, whole) in logs.iter().zip(&whole) {
        let end = whole.iter().rposition(|byte| *byte != 0).context("an empty log")?;
        let mut damaged = whole.clone();
        damaged[end / 2..end / 2 + 8].iter_mut().for_each(|byte| *byte ^= 0xff);
        fs::write(log, &damaged)?;
    }
    refuses(&mut cluster.nodes[VICTIM], &["open the volume", "disk-a", "is damaged"])?;
    deliver(&cluster)?;
    // It was not touched: one whole half is enough.
    fs::write(&logs[1], &whole[1])?;
    cluster.nodes[VICTIM].start()?;
    cluster.nodes[VICTIM].wait_ready()?;
    cluster.wait_whole(&cluster.nodes[VICTIM].name)?;
    cluster.wait_caught_up()?;
    cluster.compare_replicas().map(drop)
}

/// That the second volume of a node is closed as an old copy, and the first one has so many replicas.
fn is_told_as_old(cluster: &Cluster, node: &str, replicas: u64) -> Result<()> {
    eventually("the second volume is not taken", PATIENCE, || {
        let rows = cluster.volumes(node)?;
        let [first, second] = &rows[..] else { bail!("{rows:?}") };
        let why = second["reason"].as_str().context("a reason")?;
        ensure!(second["state"] == "down" && why.contains("an old copy of this volume"), "{second}");
        ensure!(first["replicas"] == replicas, "{first}");
        Ok(())
    })
}

#[test]
fn an_old_copy_of_a_second_volume_is_not_taken_and_its_replicas_come_back_from_others() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { shards: 4, volumes: 2, ..ClusterOptions::default() })?;
    cluster.add_accounts(&["ann"])?;
    deliver(&cluster)?;
    let node = cluster.nodes[VICTIM].name.clone();
    let disk = cluster.disk_directories(VICTIM)[1].clone();
    let replaced = Replaced::by_what_it_was_before(&mut cluster, disk, |cluster| {
        deliver(cluster)?;
        cluster.wait_caught_up()
    })?;
    // Twice: the first start has made nothing newer of it.
    for _ in 0..2 {
        cluster.nodes[VICTIM].start()?;
        cluster.nodes[VICTIM].wait_ready()?;
        is_told_as_old(&cluster, &node, 4)?;
        deliver(&cluster)?;
        cluster.wait_caught_up()?;
        cluster.compare_replicas()?;
        cluster.nodes[VICTIM].kill()?;
    }

    // The newest disk is taken, though what it holds has been made anew elsewhere.
    replaced.by_the_newest()?;
    cluster.nodes[VICTIM].start()?;
    cluster.wait_ready()?;
    eventually("all is well", PATIENCE, || cluster.admin(&["status"]).map(drop))?;
    deliver(&cluster)?;
    cluster.wait_caught_up()?;
    cluster.compare_replicas().map(drop)
}

#[test]
fn a_node_by_itself_takes_no_old_copy_of_one_of_its_volumes() -> Result<()> {
    let options = ClusterOptions { nodes: 1, replicas: 1, volumes: 2, shards: 4, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options)?;
    let users = add_users(&cluster)?;
    // All at once: who is not served is told so only after a while.
    let served = |cluster: &Cluster, fits: fn(usize) -> bool| -> Result<()> {
        let found = eventually("so many accounts are served", PATIENCE, || {
            let found: Vec<usize> = std::thread::scope(|scope| {
                let asking: Vec<_> = users.iter().map(|user| scope.spawn(move || messages(cluster, user))).collect();
                asking.into_iter().filter_map(|asked| asked.join().ok()?.ok()).collect()
            });
            let old = found.iter().any(|messages| *messages != 2);
            ensure!(old || fits(found.len()), "{} of {ACCOUNTS} accounts are served", found.len());
            Ok(found)
        })?;
        ensure!(found.iter().all(|messages| *messages == 2), "{found:?} messages");
        Ok(())
    };
    deliver_to(&cluster, &users)?;
    let disks = cluster.disk_directories(0);
    cluster.nodes[0].kill()?;
    for disk in &disks {
        copy(disk, &disk.with_extension("old"))?;
    }
    cluster.nodes[0].start()?;
    cluster.wait_ready()?;
    deliver_to(&cluster, &users)?;
    served(&cluster, |few| few == ACCOUNTS)?;
    cluster.nodes[0].kill()?;

    let [first, second] = &disks[..] else { bail!("{disks:?}") };
    fs::rename(second, second.with_extension("newest"))?;
    copy(&second.with_extension("old"), second)?;
    cluster.nodes[0].start()?;
    is_told_as_old(&cluster, "node1", 2)?;
    served(&cluster, |few| few > 0 && few < ACCOUNTS)?;
    cluster.nodes[0].kill()?;
    fs::remove_dir_all(second)?;
    fs::rename(second.with_extension("newest"), second)?;

    // The first one, on which it would be noted, knows no better: but the second does.
    fs::rename(first, first.with_extension("newest"))?;
    copy(&first.with_extension("old"), first)?;
    for _ in 0..2 {
        refuses(&mut cluster.nodes[0], &["an old copy of this node's first volume", "put the newest disks back"])?;
    }
    fs::remove_dir_all(first)?;
    fs::rename(first.with_extension("newest"), first)?;
    cluster.nodes[0].start()?;
    cluster.wait_ready()?;
    served(&cluster, |few| few == ACCOUNTS)
}
