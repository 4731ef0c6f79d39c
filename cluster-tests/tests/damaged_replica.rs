//! A replica with a record that cannot be read does not keep its node from starting: it is made anew from the others, and
//! where there are none it stays as it is and is told.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_tests::{Cluster, ClusterOptions, Scenario, eventually, setting};
use storage::{GroupId, Volume, VolumeOptions};

const PATIENCE: Duration = Duration::from_secs(120);
const DAMAGED: u32 = 2;

/// Puts what no replica writes in the place of a group's marker; answers what was there. Its node does not run.
fn damage(disk: &Path, group: GroupId, marker: Option<Vec<u8>>) -> Result<Vec<u8>> {
    let volume = Volume::open(VolumeOptions::new(disk.join("db")))?;
    let opened = volume.group(group)?;
    let before = opened.applied()?.unwrap_or_default().to_vec();
    opened.set_applied(marker.unwrap_or_else(|| b"no marker".to_vec()).into())?;
    volume.close();
    Ok(before)
}

#[test]
fn a_damaged_replica_is_made_anew_and_its_node_starts() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 91), setting("MAILRING_ROUNDS", 2));
    let mut scenario = Scenario::start(ClusterOptions::DEFAULT, seed, rounds)?;
    for round in 0..rounds {
        scenario.progress()?;
        let victim = (round % 3) as usize;
        scenario.cluster.nodes[victim].kill()?;
        damage(&scenario.cluster.disk(victim), GroupId(DAMAGED), None)?;
        scenario.cluster.start_all()?;
        scenario.cluster.wait_ready()?;
        ensure!(scenario.cluster.nodes[victim].logged("replica is damaged")? > 0, "the damage is not told");
        eventually("all is well", PATIENCE, || scenario.cluster.admin(&["status"]).map(drop))?;
    }
    scenario.progress()?;
    scenario.finish()
}

#[test]
fn the_only_replica_stays_as_it_is_while_the_rest_of_the_node_serves() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { nodes: 1, replicas: 1, shards: 4, ..ClusterOptions::default() })?;
    let names: Vec<String> = (0..16).map(|number| format!("user{number}")).collect();
    cluster.add_accounts(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let served = |cluster: &Cluster| -> Result<usize> {
        let mut served = 0;
        for name in &names {
            let Ok(mut client) = cluster.imap_client(&format!("{name}@example.test")) else { continue };
            served += usize::from(client.select("INBOX").is_ok());
        }
        Ok(served)
    };
    ensure!(served(&cluster)? == names.len());
    cluster.nodes[0].kill()?;
    let marker = damage(&cluster.disk(0), GroupId(DAMAGED), None)?;
    cluster.start_all()?;
    cluster.nodes[0].wait_ready()?;
    eventually("the damage is told", PATIENCE, || {
        let told = match cluster.admin(&["status"]) {
            Ok(said) => said,
            Err(error) => format!("{error:#}"),
        };
        ensure!(told.contains(&format!("the only replica of shard {DAMAGED} is damaged")), "{told}");
        Ok(())
    })?;
    let few = served(&cluster)?;
    ensure!(few > 0 && few < names.len(), "{few} of {} accounts are served", names.len());
    // Nothing of it was touched.
    cluster.nodes[0].kill()?;
    damage(&cluster.disk(0), GroupId(DAMAGED), Some(marker))?;
    cluster.start_all()?;
    cluster.wait_ready()?;
    eventually("all is served again", PATIENCE, || {
        ensure!(served(&cluster)? == names.len());
        Ok(())
    })
}

#[test]
fn a_damaged_directory_is_refused_by_name() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { shards: 4, ..ClusterOptions::default() })?;
    cluster.nodes[2].kill()?;
    damage(&cluster.disk(2), GroupId::DIRECTORY, None)?;
    cluster.nodes[2].start()?;
    let (code, said) = cluster.nodes[2].ended()?;
    ensure!(code == Some(1), "{code:?}");
    ensure!(said.contains("the directory's replica on") && said.contains("mailring node remove"), "{said}");
    Ok(())
}
