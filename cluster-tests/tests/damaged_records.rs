//! Records are damaged in both halves of a mirror, under load: one that either half can read is served, byte for byte, and
//! one that neither can is refused by name, never served wrong, and comes back from other replicas where there are any.
//!
//! `MAILRING_SEED` and `MAILRING_ROUNDS` repeat a run, or make it longer; the output names both.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    Cluster, ClusterOptions, ImapClient, LARGE_MESSAGES, Random, Scenario, check_large, check_large_but,
    check_range_but, delete_disk, eventually, fill, flip_large, flip_large_late, flip_tables, rounds, setting,
};
use serde_json::Value;

const MIRROR: ClusterOptions = ClusterOptions { nodes: 1, replicas: 1, mirror: true, ..ClusterOptions::DEFAULT };
/// Fewer would mean that the database keeps most of them in memory.
const FLIPPED_MIN: usize = 5;
/// So many that most of a table of the state is their index, a block of which is some of them.
const MANY_DOUBLED: u32 = 12;
/// Of the large ones, so many are in files for certain, and not only in a log.
const OLD_MESSAGES: usize = 16;
const PATIENCE: Duration = Duration::from_secs(300);

fn no_errors(scenario: &Scenario) -> Result<()> {
    ensure!(scenario.load.errors() == 0, "{} errors seen by clients", scenario.load.errors());
    Ok(())
}

#[test]
fn halves_damaged_in_different_records_serve_every_one_of_them() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 96), setting("MAILRING_ROUNDS", rounds(1, 2)));
    let mut scenario = Scenario::start(MIRROR, seed, rounds)?;
    fill(&scenario.cluster, seed)?;
    for round in 0..rounds {
        scenario.progress()?;
        let disks = scenario.cluster.disk_directories(0);
        let mut flipped = [0, 0];
        for number in 0..LARGE_MESSAGES {
            let half = (number + round as usize) % 2;
            flipped[half] += usize::from(flip_large(&disks[half], number, seed)?);
        }
        ensure!(flipped.iter().all(|half| *half >= FLIPPED_MIN), "messages damaged in each half: {flipped:?}");
        println!("messages damaged in each half: {flipped:?}");
        check_large(&scenario.cluster, seed)?;
        scenario.progress()?;
        no_errors(&scenario)?;
        // Both are made anew, each from what the two have.
        scenario.cluster.wait_whole("node1")?;
        ensure!(scenario.cluster.nodes[0].metric("mailring_node_volume_reads_elsewhere")? > 0, "not counted");
        let resilvers = scenario.cluster.nodes[0].metric("mailring_node_volume_resilvers")?;
        ensure!(resilvers >= 2 * (round + 1), "{resilvers} halves made anew");
        scenario.cluster.check_scrub()?;
    }
    check_large(&scenario.cluster, seed)?;
    no_errors(&scenario)?;
    scenario.finish()
}

/// A client removes messages that cannot be read.
fn expunge(cluster: &Cluster, numbers: &[usize]) -> Result<()> {
    let mut imap = cluster.imap_client("user0@example.test")?;
    imap.select("Large")?;
    let uids = imap.uids()?;
    for number in numbers {
        let uid = uids.get(*number).context("no such message")?;
        imap.ok(&format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)"))?;
    }
    imap.ok("EXPUNGE").map(drop)
}

#[test]
fn a_record_that_is_bad_in_both_halves_is_refused_by_name_and_can_be_expunged() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 97), setting("MAILRING_ROUNDS", 1));
    let mut scenario = Scenario::start(MIRROR, seed, rounds)?;
    fill(&scenario.cluster, seed)?;
    let mut bad = Vec::new();
    for round in 0..rounds.min(OLD_MESSAGES as u64) {
        scenario.progress()?;
        let number = (round as usize * 7 + 3) % OLD_MESSAGES;
        for disk in &scenario.cluster.disk_directories(0) {
            ensure!(flip_large(disk, number, seed)?, "large message {number} is in no file of {}", disk.display());
        }
        bad.push(number);
        check_large_but(&scenario.cluster, seed, &bad)?;
        ensure!(scenario.cluster.nodes[0].logged("record is damaged")? > 0, "the record is not named in the log");
        scenario.progress()?;
        // Both halves are made anew without it, and it is refused as before.
        scenario.cluster.wait_whole("node1")?;
        check_large_but(&scenario.cluster, seed, &bad)?;
        no_errors(&scenario)?;
        let found = scenario.cluster.scrub(&[])?;
        ensure!(found["clean"] == false && found["mended"] == false, "{found:#}");
    }
    expunge(&scenario.cluster, &bad)?;
    scenario.progress()?;
    no_errors(&scenario)?;
    scenario.finish()
}

/// The shard of an account.
fn shard_of(cluster: &Cluster, account: &str) -> Result<String> {
    let account: Value = serde_json::from_str(&cluster.admin(&["account", "show", account, "--json"])?)?;
    Ok(account["shard"].as_u64().with_context(|| format!("{account}"))?.to_string())
}

/// The node that leads the shard of an account.
fn leader_of(cluster: &Cluster, account: &str) -> Result<usize> {
    let shard = shard_of(cluster, account)?;
    let shard: Value = serde_json::from_str(&cluster.admin(&["shard", "show", &shard, "--json"])?)?;
    let leader = cluster.nodes.iter().position(|node| shard["leader"] == node.name.as_str());
    leader.with_context(|| format!("{shard}"))
}

#[test]
fn a_record_that_is_bad_in_both_halves_of_a_leader_is_served_by_another_replica() -> Result<()> {
    let (seed, rounds) = (setting("MAILRING_SEED", 98), setting("MAILRING_ROUNDS", rounds(1, 2)));
    // Who leads stays where it is: it is to meet the damage.
    let options = ClusterOptions { mirror: true, leaders_look_s: Some(0), ..ClusterOptions::DEFAULT };
    let mut scenario = Scenario::start(options, seed, rounds)?;
    fill(&scenario.cluster, seed)?;
    for round in 0..rounds {
        scenario.progress()?;
        // Where it leads again, should another lead for a moment on a busy machine.
        scenario.cluster.wait_led()?;
        let victim = eventually("somebody leads", PATIENCE, || leader_of(&scenario.cluster, "user0@example.test"))?;
        let told = scenario.cluster.nodes[victim].logged("record is damaged")?;
        let bad = (round as usize * 7 + 3) % OLD_MESSAGES;
        for disk in &scenario.cluster.disk_directories(victim)[..2] {
            ensure!(flip_large(disk, bad, seed)?, "large message {bad} is in no file of {}", disk.display());
        }
        eventually("the record is read there", PATIENCE, || {
            let served = check_large(&scenario.cluster, seed);
            let named = scenario.cluster.nodes[victim].logged("record is damaged")?;
            ensure!(served.is_err() || named > told, "the record is not named in the log");
            Ok(served)
        })??;
        scenario.progress()?;
        no_errors(&scenario)?;
        eventually("the replica is made anew", PATIENCE, || scenario.cluster.admin(&["status"]).map(drop))?;
        eventually("nothing is damaged any more", PATIENCE, || scenario.cluster.check_scrub())?;
        check_large(&scenario.cluster, seed)?;
        check_range_but(&scenario.cluster, seed, &[])?;
        scenario.load.forget_errors();
    }
    scenario.finish()
}

/// What `status` says, be all well or not.
fn told(cluster: &Cluster) -> String {
    cluster.admin(&["status"]).unwrap_or_else(|error| format!("{error:#}"))
}

#[test]
fn damage_that_a_read_has_met_is_told_by_status_at_once_and_until_a_scrub_finds_nothing() -> Result<()> {
    let seed = setting("MAILRING_SEED", 103);
    let options = ClusterOptions { nodes: 1, replicas: 1, ..ClusterOptions::DEFAULT };
    let cluster = &Cluster::start(options)?;
    cluster.add_accounts(&["user0"])?;
    fill(cluster, seed)?;
    let shard = shard_of(cluster, "user0@example.test")?;
    let (disk, bad) = (cluster.disk(0), 3);
    ensure!(flip_large(&disk, bad, seed)?, "large message {bad} is in no file of {}", disk.display());
    cluster.admin(&["status"])?;
    check_large_but(cluster, seed, &[bad])?;
    let problem = format!("reads of volume 1 of node1 have met damage in 1 record of shard {shard} (blob/{shard}/");
    let is_told = || -> Result<()> {
        ensure!(cluster.admin(&["status"]).is_err() && told(cluster).contains(&problem), "{}", told(cluster));
        let shown = cluster.json(&["volume", "list"])?;
        ensure!(shown[0]["unread"][0]["records"] == 1 && shown[0]["lost"][0].is_null(), "{shown}");
        Ok(())
    };
    is_told()?;
    // A scrub finds it too, and says that it is lost.
    let found = cluster.scrub(&["--shard", &shard])?;
    check_large_but(cluster, seed, &[bad])?;
    let lost = format!("volume 1 of node1 has no good copy of 1 record of shard {shard}: ");
    ensure!(found["mended"] == false && told(cluster).contains(&lost), "{found:#} {}", told(cluster));
    ensure!(!told(cluster).contains(&problem), "twice: {}", told(cluster));
    // Another one, which is gone before a scrub comes.
    let other = 8;
    ensure!(flip_large(&disk, other, seed)?, "large message {other} is in no file of {}", disk.display());
    check_large_but(cluster, seed, &[bad, other])?;
    ensure!(told(cluster).contains(&problem), "{}", told(cluster));
    expunge(cluster, &[bad, other])?;
    ensure!(told(cluster).contains(&problem), "{}", told(cluster));
    let found = cluster.scrub(&["--shard", &shard])?;
    ensure!(found["mended"] == true, "{found:#}");
    cluster.admin(&["status"]).map(drop)
}

/// Half b of the only node is replaced, and waited for: what the command says, and whether it succeeds.
fn replace_half(cluster: &Cluster) -> Result<(bool, String)> {
    let disk = cluster.disk_directories(0)[1].clone();
    delete_disk(&disk)?;
    cluster.wait_half("node1", 1, "stale")?;
    fs::create_dir_all(&disk)?;
    let output = cluster.admin_command(&["volume", "replace", "node1", "1", "--half", "b", "--wait"])?.output()?;
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    Ok((output.status.success(), said))
}

#[test]
fn a_range_of_messages_comes_but_for_those_that_no_disk_has_and_they_are_told_until_they_are_expunged() -> Result<()> {
    let seed = setting("MAILRING_SEED", 100);
    // Without a load: everything is made anew again and again.
    let cluster = &Cluster::start(MIRROR)?;
    cluster.add_accounts(&["user0"])?;
    fill(cluster, seed)?;
    let account = "user0@example.test";
    let shard = shard_of(cluster, account)?;
    cluster.admin(&["status"])?;
    let (early, late) = ([3, 8], 12);
    for disk in &cluster.disk_directories(0) {
        for number in early {
            ensure!(flip_large(disk, number, seed)?, "large message {number} is in no file of {}", disk.display());
        }
    }
    check_range_but(cluster, seed, &early)?;
    cluster.wait_whole("node1")?;
    check_range_but(cluster, seed, &early)?;
    // One whose beginning is sent before its damage is met: that ends the connection, once.
    for disk in &cluster.disk_directories(0) {
        ensure!(flip_large_late(disk, late, seed)?, "large message {late} is in no file of {}", disk.display());
    }
    let bad = [early[0], early[1], late];
    ensure!(check_range_but(cluster, seed, &bad).is_err(), "the damage was not met late");
    check_range_but(cluster, seed, &bad)?;
    cluster.wait_whole("node1")?;
    check_range_but(cluster, seed, &bad)?;

    let problem =
        format!("volume 1 of node1 has no good copy of 3 records of shard {shard}: mailring scrub --shard {shard} ");
    ensure!(told(cluster).contains(&problem), "{}", told(cluster));
    ensure!(cluster.admin(&["status"]).is_err());
    let (success, said) = replace_half(cluster)?;
    let but = format!("whole again but for what has no good copy on it, 3 records of shard {shard}");
    ensure!(!success && said.contains(&but), "{said}");
    let lost = cluster.volumes("node1")?.swap_remove(0)["lost"].take();
    ensure!(lost[0]["records"] == 3 && lost[0]["keys"].as_array().is_some_and(|keys| keys.len() == 3), "{lost}");
    let found = cluster.scrub(&["--shard", &shard])?;
    ensure!(found["clean"] == false && told(cluster).contains(&problem), "{found:#} {}", told(cluster));
    let found = cluster.scrub(&[])?;
    let lost = found["findings"].as_array().into_iter().flatten().filter(|one| one["verdict"] == "lost");
    ensure!(lost.count() == 3, "each once: {found:#}");
    let shown = cluster.json(&["volume", "list"])?;
    ensure!(shown[0]["lost"][0]["shard"].as_u64() == shard.parse().ok(), "{shown}");
    ensure!(shown[0]["lost"][0]["records"] == 3 && shown[0]["last_scrub"]["lost"] == 3, "{shown}");

    expunge(cluster, &bad)?;
    // Their entries are in the log as before.
    let found = cluster.scrub(&["--shard", &shard])?;
    ensure!(found["clean"] == true, "{found:#}");
    cluster.admin(&["status"])?;
    let (success, said) = replace_half(cluster)?;
    ensure!(success && said.contains("volume 1 of node1 is whole again\n"), "{said}");
    cluster.admin(&["status"]).map(drop)
}

#[test]
fn a_range_comes_but_for_what_no_replica_can_read_each_of_them_being_asked() -> Result<()> {
    let seed = setting("MAILRING_SEED", 101);
    let options = ClusterOptions { leaders_look_s: Some(0), ..ClusterOptions::DEFAULT };
    let mut scenario = Scenario::start(options, seed, 1)?;
    fill(&scenario.cluster, seed)?;
    scenario.progress()?;
    scenario.cluster.wait_led()?;
    let (nowhere, somewhere) = (5, [2, 9]);
    for node in 0..3 {
        let disk = scenario.cluster.disk(node);
        let bad = somewhere.iter().take(node).chain([&nowhere]);
        for number in bad {
            ensure!(flip_large(&disk, *number, seed)?, "large message {number} is in no file of {}", disk.display());
        }
    }
    check_range_but(&scenario.cluster, seed, &[nowhere])?;
    for node in &scenario.cluster.nodes {
        ensure!(node.logged("record is damaged")? > 0, "{} was not asked", node.name);
    }
    scenario.load.forget_errors();
    // While it is there no replica of it can be compared.
    expunge(&scenario.cluster, &[somewhere[0], nowhere, somewhere[1]])?;
    scenario.progress()?;
    scenario.finish()
}

/// The UIDs of the FETCH responses; and those that the answer says were left out.
fn came_and_left_out(imap: &mut ImapClient, items: &str) -> Result<(BTreeSet<u32>, BTreeSet<u32>)> {
    let (untagged, tagged) = imap.command(&format!("UID FETCH 1:* ({items})"))?;
    let mut came = BTreeSet::new();
    for response in untagged {
        let text = String::from_utf8_lossy(&response);
        let uid = text.split("UID ").nth(1).and_then(|rest| rest.split([' ', ')']).next()?.parse().ok());
        ensure!(came.insert(uid.with_context(|| text.clone().into_owned())?), "twice: {text}");
    }
    let (_, uids) = tagged.split_once(" messages were left out, UIDs ").with_context(|| tagged.clone())?;
    ensure!(tagged.starts_with("NO [CORRUPTION] "), "{tagged}");
    Ok((came, numbers(uids)?))
}

/// `2,4:6`.
fn numbers(set: &str) -> Result<BTreeSet<u32>> {
    let mut all = BTreeSet::new();
    for range in set.trim().split(',') {
        let (first, last) = range.split_once(':').unwrap_or((range, range));
        all.extend(first.parse::<u32>()?..=last.parse::<u32>()?);
    }
    Ok(all)
}

/// The UIDs that a search finds.
fn found(imap: &mut ImapClient, key: &str) -> Result<BTreeSet<u32>> {
    let responses = imap.ok(&format!("UID SEARCH {key}"))?;
    let line = String::from_utf8_lossy(responses.first().context("no answer")?).into_owned();
    Ok(line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}

/// As a client would write it.
fn set(uids: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for uid in uids {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *uid => *last = *uid,
            _ => ranges.push((*uid, *uid)),
        }
    }
    let written = ranges.iter().map(|(first, last)| format!("{first}:{last}"));
    written.collect::<Vec<_>>().join(",")
}

#[test]
fn messages_whose_index_no_disk_has_are_left_out_stay_unseen_and_cost_no_other_mail() -> Result<()> {
    let seed = setting("MAILRING_SEED", 102);
    let options = ClusterOptions { nodes: 1, replicas: 1, shards: 1, ..ClusterOptions::DEFAULT };
    let mut cluster = Cluster::start(options)?;
    cluster.add_accounts(&["user0", "user1"])?;
    let account = "user0@example.test";
    let mut imap = cluster.imap_client(account)?;
    imap.create("Many")?;
    imap.append("Many", b"Subject: one of many\r\n\r\nx")?;
    imap.select("Many")?;
    for _ in 0..MANY_DOUBLED {
        imap.ok("COPY 1:* Many")?;
        imap.ok("NOOP")?;
    }
    // What the log holds is put into tables at a start; and no block of them is in memory behind the next one.
    let restart = |cluster: &mut Cluster, damage: bool| -> Result<usize> {
        cluster.nodes[0].kill()?;
        let random = &mut Random::new(seed, 0);
        let flipped = if damage { flip_tables(&cluster.disk(0), "state", random)? } else { 0 };
        cluster.start_all()?;
        cluster.wait_ready()?;
        Ok(flipped)
    };
    restart(&mut cluster, false)?;
    ensure!(restart(&mut cluster, true)? == 1, "not one table of the state");

    let mut imap = cluster.imap_client(account)?;
    imap.select("Many")?;
    let all: BTreeSet<u32> = (1..=1 << MANY_DOUBLED).collect();
    let (came, left_out) = came_and_left_out(&mut imap, "FLAGS")?;
    println!("{} messages left out of {}", left_out.len(), all.len());
    ensure!(!came.is_empty() && !left_out.is_empty() && came.is_disjoint(&left_out), "{left_out:?}");
    ensure!(came.union(&left_out).eq(&all), "{} and {} of {}", came.len(), left_out.len(), all.len());
    // Without PEEK: \Seen is set, and on nothing else than on those that come.
    for items in ["RFC822.SIZE BODY.PEEK[]", "BODY[]"] {
        ensure!(came_and_left_out(&mut imap, items)? == (came.clone(), left_out.clone()), "{items}");
    }
    let seen = found(&mut imap, "SEEN")?;
    ensure!(seen == came, "{} are seen, {} came", seen.len(), came.len());
    // What the pages of the mailbox tell needs no message's record.
    ensure!(found(&mut imap, "UNSEEN")? == left_out && found(&mut imap, "ALL")? == all);
    let (_, tagged) = imap.command("UID SEARCH SUBJECT many")?;
    ensure!(tagged.starts_with("NO [CORRUPTION] "), "{tagged}");
    ensure!(cluster.nodes[0].logged("record is damaged")? > 0, "the record is not named in the log");
    // What would change one of them is refused by name, whole. The shard is served as before, by whoever starts next, too.
    let (bad, good) = (set(&left_out), set(&came));
    for start in [false, true] {
        if start {
            restart(&mut cluster, false)?;
        }
        let mut imap = cluster.imap_client(account)?;
        imap.select("Many")?;
        for uids in ["1:*", &bad] {
            for change in ["STORE # +FLAGS (\\Flagged)", "COPY # INBOX", "MOVE # Archive"] {
                let (_, tagged) = imap.command(&format!("UID {}", change.replace('#', uids)))?;
                ensure!(tagged.starts_with("NO [CORRUPTION] "), "{change} {uids}: {tagged}");
            }
        }
        imap.ok(&format!("UID STORE {good} +FLAGS.SILENT (\\Flagged)"))?;
        imap.ok(&format!("UID COPY {good} Archive"))?;
        for account in [account, "user1@example.test"] {
            let mut imap = cluster.imap_client(account)?;
            imap.append("INBOX", b"Subject: another\r\n\r\nx")?;
        }
    }
    // Their mailbox can be deleted; what cannot be cleared away is left.
    let mut imap = cluster.imap_client(account)?;
    imap.ok("DELETE Many")?;
    eventually("what was left is met", PATIENCE, || {
        let named = cluster.nodes[0].logged("remains are damaged")?;
        ensure!(named > 0, "nobody met it");
        Ok(())
    })?;
    imap.append("INBOX", b"Subject: one more\r\n\r\nx")?;
    cluster.scrub(&[]).map(drop)
}
