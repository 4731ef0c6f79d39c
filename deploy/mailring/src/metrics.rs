//! `/metrics`: the router's own figures, and a node's status as figures, in one OpenMetrics text.

use anyhow::{Context, Result};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use proto::DirectoryStore;
use proto::wire::{GroupStatus, LastScrub, NodeStatusReply, VolumeStatus};

use crate::roles::Running;

/// The directory's number among groups.
const DIRECTORY: u32 = u32::MAX;
/// Ends an OpenMetrics text; there is one end, however many parts there are.
const END: &str = "# EOF\n";

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct GroupLabels {
    /// `directory`, or a shard's number.
    group: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct VolumeLabels {
    /// Its place in the node's settings, from 1.
    volume: u32,
}

pub async fn text(running: &Running) -> Result<String> {
    let mut whole = String::new();
    if let Some(router) = running.router_metrics() {
        push(&mut whole, &router);
    }
    if let Some(node) = &running.node {
        push(&mut whole, &node_text(&node.node_status().await.context("node status")?)?);
    }
    whole.push_str(&format!(
        "# HELP mailring_ready 1 once the process serves.\n# TYPE mailring_ready gauge\nmailring_ready {}\n",
        u8::from(running.ready())
    ));
    whole.push_str(END);
    Ok(whole)
}

fn push(whole: &mut String, part: &str) {
    whole.push_str(part.strip_suffix(END).unwrap_or(part));
}

/// One figure of a group.
type Figure = fn(&GroupStatus) -> u64;

type VolumeFigure = fn(&VolumeStatus) -> u64;

/// A node's figures. Built anew for each scrape: the groups come and go, and nothing needs to be kept.
fn node_text(status: &NodeStatusReply) -> Result<String> {
    let mut registry = Registry::with_prefix("mailring_node");
    let single = |value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(clamp(value));
        gauge
    };
    registry.register("uptime_seconds", "Since the process started", single(status.uptime_s));
    registry.register("directory_revision", "Of this node's copy of the directory", single(status.directory_revision));
    registry.register("synced_writes", "Synced writes to the disk since the start", single(status.synced_writes));
    registry.register(
        "synced_write_milliseconds",
        "What a synced write takes on average now, on the slowest volume; 0 where there was none lately",
        single(u64::from(status.recent_round_ms)),
    );
    registry.register("appended_entries", "Log entries appended since the start", single(status.appended_entries));
    let copies = status.copies.unwrap_or_default();
    registry.register("copied_octets", "To new replicas since the start", single(copies.octets));
    registry.register("copy_waits", "How often a copy was told to wait", single(copies.waits));
    registry.register("copies_slowed", "How often their rate fell for slow mail", single(copies.slowed));
    registry.register("copy_octets_per_second", "What copies may use now", single(copies.octets_per_s));
    registry.register(
        "copies_held",
        "Copies that rest while their rebalance is paused or another shard lacks a replica",
        single(u64::from(copies.held)),
    );
    let moves = status.account_moves.unwrap_or_default();
    registry.register("accounts_arrived", "Accounts that came to shards led here", single(moves.arrived));
    let held = single(moves.held_ms_max);
    registry.register("account_held_max_milliseconds", "The longest that one of them was held meanwhile", held);
    let families: [(&str, &str, Figure); 8] = [
        ("group_leads", "1 where this node leads the group", |group| u64::from(group.role == "leader")),
        ("group_stopped", "1 where the group's replica has stopped", |group| u64::from(group.role == "stopped")),
        ("group_term", "Raft term", |group| group.term),
        ("group_last_index", "Last log entry", |group| group.last_index),
        ("group_applied_index", "Last applied log entry", |group| group.applied_index),
        ("shard_accounts", "Accounts with mail in the replica", |group| group.accounts),
        ("shard_messages", "Messages in the replica", |group| group.messages),
        ("shard_octets", "Octets of messages in the replica", |group| group.octets),
    ];
    for (name, help, value) in families {
        let family = Family::<GroupLabels, Gauge>::default();
        registry.register(name, help, family.clone());
        let counted = status.groups.iter().filter(|group| !name.starts_with("shard") || group.group != DIRECTORY);
        for group in counted {
            let label = if group.group == DIRECTORY { "directory".to_owned() } else { group.group.to_string() };
            family.get_or_create(&GroupLabels { group: label }).set(clamp(value(group)));
        }
    }
    let families: [(&str, &str, VolumeFigure); 15] = [
        ("volume_down", "1 where the volume is not open", |volume| u64::from(!volume.down_because.is_empty())),
        ("volume_full", "1 where the volume takes no new mail", |volume| u64::from(volume.full)),
        ("volume_free_octets", "Room on its fullest disk", |volume| volume.free_octets),
        ("volume_replicas", "Replicas of shards", |volume| u64::from(volume.replicas)),
        ("volume_halves_current", "Halves of a mirror that hold all that was acknowledged", |volume| {
            volume.halves.iter().filter(|half| half.state == "current").count() as u64
        }),
        ("volume_halves_dropped", "Halves that were dropped since the start", |volume| volume.halves_dropped),
        ("volume_reads_elsewhere", "Reads that the other half answered", |volume| volume.reads_elsewhere),
        ("volume_resilvers", "Halves that were made anew since the start", |volume| volume.resilvers),
        ("volume_synced_writes", "Synced writes since the start", |volume| volume.synced_writes),
        ("volume_lost_records", "Records with no good copy here, until a scrub does not find them so", |volume| {
            volume.lost.iter().map(|lost| lost.records).sum()
        }),
        ("volume_unread_records", "Others that reads have met damage in, until all was read again without", |volume| {
            volume.unread.iter().map(|unread| unread.records).sum()
        }),
        ("volume_scrubbed_unix_seconds", "When the last scrub of all of it ended; none before the first", |volume| {
            scrubbed(volume, |last| last.unix_s.max(0).unsigned_abs())
        }),
        ("volume_scrub_findings", "Findings of the last scrub", |volume| scrubbed(volume, |last| last.findings)),
        ("volume_scrub_lost", "Of them, records with no good copy here", |volume| scrubbed(volume, |last| last.lost)),
        ("volume_scrub_differing", "Of them, records whose good copy is not known", |volume| {
            scrubbed(volume, |last| last.differing)
        }),
    ];
    for (name, help, value) in families {
        let family = Family::<VolumeLabels, Gauge>::default();
        registry.register(name, help, family.clone());
        let of_scrubs = name.starts_with("volume_scrub");
        for volume in status.volumes.iter().filter(|volume| !of_scrubs || volume.last_scrub.is_some()) {
            family.get_or_create(&VolumeLabels { volume: volume.number }).set(clamp(value(volume)));
        }
    }
    let mut out = String::new();
    text::encode(&mut out, &registry).context("write metrics")?;
    Ok(out)
}

fn scrubbed(volume: &VolumeStatus, figure: fn(&LastScrub) -> u64) -> u64 {
    volume.last_scrub.as_ref().map_or(0, figure)
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proto::wire::{GroupStatus, Identity, LastScrub, NodeStatusReply, VolumeStatus};

    use super::{DIRECTORY, END, node_text, push};

    #[test]
    fn a_nodes_figures_tell_of_groups_and_of_nobody() {
        let group = |group: u32, role: &str| GroupStatus {
            group,
            role: role.to_owned(),
            term: 3,
            messages: 7,
            ..Default::default()
        };
        let scrub = LastScrub { unix_s: 1_764_115_200, findings: 2, ..Default::default() };
        let status = NodeStatusReply {
            identity: Some(Identity { name: "secret-name".to_owned(), ..Default::default() }),
            groups: vec![group(DIRECTORY, "leader"), group(5, "follower")],
            uptime_s: 9,
            volumes: vec![
                VolumeStatus { number: 1, free_octets: 77, last_scrub: Some(scrub), ..Default::default() },
                VolumeStatus { number: 2, ..Default::default() },
            ],
            ..Default::default()
        };
        let text = node_text(&status).unwrap();
        for line in [
            "mailring_node_uptime_seconds 9",
            "mailring_node_group_leads{group=\"directory\"} 1",
            "mailring_node_group_leads{group=\"5\"} 0",
            "mailring_node_shard_messages{group=\"5\"} 7",
            "mailring_node_volume_free_octets{volume=\"1\"} 77",
            "mailring_node_volume_down{volume=\"1\"} 0",
            "mailring_node_volume_scrubbed_unix_seconds{volume=\"1\"} 1764115200",
            "mailring_node_volume_scrub_findings{volume=\"1\"} 2",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
        assert!(!text.contains("scrub_findings{volume=\"2\"}"), "it was never scrubbed");
        assert!(!text.contains("secret-name") && !text.contains("shard_messages{group=\"directory\"}"));
        let mut whole = String::new();
        push(&mut whole, &text);
        assert!(text.ends_with(END) && !whole.contains(END));
    }
}
