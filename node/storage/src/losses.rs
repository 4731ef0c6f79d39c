//! Records that have no good copy on a volume, as scrubs and resilvers found: kept on it, so that they are told until
//! somebody has seen to them. They go when a scrub does not find them lost any more, for they were expunged, and with their
//! group, which is made anew from other nodes.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use crate::error::StorageError;
use crate::group::SpaceRecord;
use crate::keys::{GroupId, META_SPACE, meta_key};
use crate::records::decode;
use crate::store::{Family, Store};

/// Records that are kept by their keys; of others only how many.
const NAMED_MAX: usize = 1_000;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Losses {
    named: BTreeSet<(Option<GroupId>, String)>,
    beyond: BTreeMap<Option<GroupId>, u64>,
    /// Where the groups had their state when the records were looked for.
    spaces: BTreeMap<GroupId, u32>,
}

/// What a group has lost.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lost {
    pub records: u64,
    /// For people; not all where there are many.
    pub keys: Vec<String>,
}

impl Losses {
    /// `group` is `None` for a record of none or of several. False where it is known to be one of these already.
    pub(crate) fn add(&mut self, group: Option<GroupId>, key: String) -> bool {
        let one = (group, key);
        if self.named.len() < NAMED_MAX || self.named.contains(&one) {
            return self.named.insert(one);
        }
        *self.beyond.entry(group).or_default() += 1;
        true
    }

    pub(crate) fn names(&self, group: GroupId, key: &str) -> bool {
        self.named.contains(&(Some(group), key.to_owned()))
    }

    pub(crate) fn found_in(&mut self, group: GroupId, space: u32) {
        self.spaces.insert(group, space);
    }

    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.beyond.is_empty()
    }

    pub fn records(&self) -> u64 {
        self.named.len() as u64 + self.beyond.values().sum::<u64>()
    }

    pub fn by_group(&self) -> BTreeMap<Option<GroupId>, Lost> {
        let mut groups: BTreeMap<Option<GroupId>, Lost> = BTreeMap::new();
        for (group, key) in &self.named {
            let lost = groups.entry(*group).or_default();
            lost.records += 1;
            lost.keys.push(key.clone());
        }
        for (group, records) in &self.beyond {
            groups.entry(*group).or_default().records += records;
        }
        groups
    }

    /// Another finding's, too; those that both have count once.
    pub(crate) fn with(mut self, other: Losses) -> Losses {
        for (group, key) in other.named {
            self.add(group, key);
        }
        for (group, records) in other.beyond {
            *self.beyond.entry(group).or_default() += records;
        }
        self
    }

    /// Those by name that were not known before.
    pub(crate) fn since(mut self, before: &Losses) -> Losses {
        self.named.retain(|one| !before.named.contains(one));
        self.beyond.clear();
        self
    }

    pub(crate) fn without(mut self, group: GroupId) -> Losses {
        self.named.retain(|(own, _)| *own != Some(group));
        self.beyond.remove(&Some(group));
        self
    }

    pub(crate) fn has(&self, group: GroupId) -> bool {
        self.beyond.contains_key(&Some(group)) || self.named.iter().any(|(own, _)| *own == Some(group))
    }

    /// Those of groups that are still what they were when the records were looked for.
    pub(crate) fn current(mut self, store: &Store) -> Result<Losses, StorageError> {
        for (group, space) in std::mem::take(&mut self.spaces) {
            let key = meta_key(META_SPACE, group);
            let record = match store.get(Family::Meta, &key)? {
                Some(value) => decode::<SpaceRecord>(Family::Meta, &key, &value).ok(),
                None => None,
            };
            if record.is_none_or(|record| record.space != space) {
                self = self.without(group);
            }
        }
        Ok(self)
    }
}

/// As they lie on the disk.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LossesRecord {
    #[prost(message, repeated, tag = "1")]
    named: Vec<LossRecord>,
    #[prost(message, repeated, tag = "2")]
    beyond: Vec<BeyondRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct LossRecord {
    #[prost(uint32, optional, tag = "1")]
    group: Option<u32>,
    #[prost(string, tag = "2")]
    key: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct BeyondRecord {
    #[prost(uint32, optional, tag = "1")]
    group: Option<u32>,
    #[prost(uint64, tag = "2")]
    records: u64,
}

impl From<&Losses> for LossesRecord {
    fn from(losses: &Losses) -> LossesRecord {
        let number = |group: &Option<GroupId>| group.map(|group| group.0);
        let named = losses.named.iter().map(|(group, key)| LossRecord { group: number(group), key: key.clone() });
        let beyond =
            losses.beyond.iter().map(|(group, records)| BeyondRecord { group: number(group), records: *records });
        LossesRecord { named: named.collect(), beyond: beyond.collect() }
    }
}

impl From<LossesRecord> for Losses {
    fn from(LossesRecord { named, beyond }: LossesRecord) -> Losses {
        Losses {
            named: named.into_iter().map(|LossRecord { group, key }| (group.map(GroupId), key)).collect(),
            beyond: beyond.into_iter().map(|BeyondRecord { group, records }| (group.map(GroupId), records)).collect(),
            spaces: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Losses, LossesRecord, NAMED_MAX};
    use crate::keys::GroupId;

    #[test]
    fn a_loss_that_is_found_twice_counts_once_and_goes_with_its_group() {
        let mut losses = Losses::default();
        losses.add(Some(GroupId(7)), "blob/7/1".to_owned());
        losses.add(Some(GroupId(7)), "blob/7/1".to_owned());
        losses.add(Some(GroupId(8)), "blob/8/1".to_owned());
        losses.add(None, "meta".to_owned());
        let again = losses.clone().with(losses.clone());
        assert_eq!((again.records(), &again), (3, &losses));
        let lost = &losses.by_group()[&Some(GroupId(7))];
        assert_eq!((lost.records, lost.keys.as_slice()), (1, &["blob/7/1".to_owned()][..]));
        let rest = losses.clone().without(GroupId(7));
        assert!(losses.has(GroupId(7)) && !rest.has(GroupId(7)) && rest.records() == 2);
        assert_eq!(losses.clone().since(&rest).records(), 1);
        assert_eq!(Losses::from(LossesRecord::from(&losses)), losses);
    }

    #[test]
    fn many_losses_are_counted_and_not_all_named() {
        let mut losses = Losses::default();
        for index in 0..NAMED_MAX + 5 {
            losses.add(Some(GroupId(7)), format!("blob/7/{index}"));
        }
        let lost = &losses.by_group()[&Some(GroupId(7))];
        assert_eq!((losses.records(), lost.records, lost.keys.len()), (1_005, 1_005, NAMED_MAX));
        assert_eq!(Losses::from(LossesRecord::from(&losses)), losses);
    }
}
