//! What reads have met damage in, with no good copy on the volume: told until all of it was read again without, or its group
//! has gone. In memory alone: after a restart whoever reads it meets it again.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::keys::GroupId;
use crate::losses::Lost;

/// Records that are kept by their keys; of others only how often one was met.
const NAMED_MAX: usize = 1_000;
/// Of a key; no record's own is as long.
const KEY_CHARS_MAX: usize = 1_024;

#[derive(Default)]
pub(crate) struct Unread(Mutex<Met>);

/// Numbers tell what was met before whatever, and not again since.
#[derive(Default)]
struct Met {
    number: u64,
    /// With the number of the last time.
    named: BTreeMap<(GroupId, String), u64>,
    beyond: BTreeMap<GroupId, Beyond>,
}

#[derive(Clone, Copy, Default)]
struct Beyond {
    times: u64,
    number: u64,
}

impl Unread {
    /// `is_there`: asked while nobody can remove the group from these.
    pub(crate) fn add(&self, group: GroupId, key: &str, is_there: impl FnOnce() -> bool) {
        let mut met = self.0.lock();
        if !is_there() {
            return;
        }
        met.number += 1;
        let number = met.number;
        let one = (group, key.chars().take(KEY_CHARS_MAX).collect());
        if met.named.len() < NAMED_MAX || met.named.contains_key(&one) {
            met.named.insert(one, number);
            return;
        }
        let beyond = met.beyond.entry(group).or_default();
        *beyond = Beyond { times: beyond.times + 1, number };
    }

    /// Whoever begins to read everything asks for it before.
    pub(crate) fn so_far(&self) -> u64 {
        self.0.lock().number
    }

    /// All of a group, or of the volume, was read since then. Forgets what was not met again, but of groups that are `kept`.
    pub(crate) fn was_read(&self, group: Option<GroupId>, so_far: u64, kept: impl Fn(GroupId) -> bool) {
        let mut met = self.0.lock();
        let stays = |own: GroupId, number: u64| number > so_far || group.is_some_and(|group| group != own) || kept(own);
        met.named.retain(|(own, _), number| stays(*own, *number));
        met.beyond.retain(|own, beyond| stays(*own, beyond.number));
    }

    pub(crate) fn forget(&self, group: GroupId) {
        self.was_read(Some(group), u64::MAX, |_| false);
    }

    pub(crate) fn by_group(&self) -> BTreeMap<GroupId, Lost> {
        let met = self.0.lock();
        let mut groups: BTreeMap<GroupId, Lost> = BTreeMap::new();
        for (group, key) in met.named.keys() {
            let own = groups.entry(*group).or_default();
            own.records += 1;
            own.keys.push(key.clone());
        }
        for (group, beyond) in &met.beyond {
            groups.entry(*group).or_default().records += beyond.times;
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::{KEY_CHARS_MAX, NAMED_MAX, Unread};
    use crate::keys::GroupId;

    const GROUP: GroupId = GroupId(7);
    const OTHER: GroupId = GroupId(8);

    fn records(unread: &Unread) -> Vec<(u32, u64)> {
        unread.by_group().iter().map(|(group, lost)| (group.0, lost.records)).collect()
    }

    #[test]
    fn what_is_met_twice_counts_once_and_goes_when_all_was_read_since() {
        let unread = Unread::default();
        for (group, key) in [(GROUP, "blob/7/1"), (GROUP, "blob/7/1"), (GROUP, "blob/7/2"), (OTHER, "blob/8/1")] {
            unread.add(group, key, || true);
        }
        unread.add(GROUP, "blob/7/3", || false);
        assert_eq!(records(&unread), [(7, 2), (8, 1)]);
        let so_far = unread.so_far();
        unread.add(GROUP, "blob/7/2", || true);
        unread.was_read(None, so_far, |group| group == OTHER);
        assert_eq!(records(&unread), [(7, 1), (8, 1)]);
        assert_eq!(unread.by_group()[&GROUP].keys, ["blob/7/2"]);
        unread.was_read(Some(OTHER), unread.so_far(), |_| false);
        assert_eq!(records(&unread), [(7, 1)]);
        unread.forget(GROUP);
        assert!(records(&unread).is_empty());
    }

    #[test]
    fn of_many_records_some_are_named_and_the_rest_counted() {
        let unread = Unread::default();
        for index in 0..NAMED_MAX + 5 {
            unread.add(GROUP, &format!("blob/7/{index}"), || true);
        }
        unread.add(OTHER, &"x".repeat(KEY_CHARS_MAX * 2), || true);
        assert_eq!(records(&unread), [(7, 1_005), (8, 1)]);
        assert_eq!(unread.by_group()[&GROUP].keys.len(), NAMED_MAX);
        assert!(unread.by_group()[&OTHER].keys.is_empty());
        unread.was_read(None, unread.so_far(), |_| false);
        unread.add(OTHER, &"x".repeat(KEY_CHARS_MAX * 2), || true);
        assert_eq!(unread.by_group()[&OTHER].keys[0].len(), KEY_CHARS_MAX);
        assert_eq!(records(&unread), [(8, 1)]);
    }
}
