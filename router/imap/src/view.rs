//! What a session has told its client of the selected mailbox: which UID stands at which sequence number.

use types::{Uid, UidSet};

use crate::SequenceSet;
use crate::sequence::OutOfRange;

/// Invariant: sequence numbers change only by [`View::expunge`], [`View::release`] and [`View::arrive`], whose
/// results the session must write before it resolves another sequence number (RFC 3501 §7.4.1, §5.5).
#[derive(Clone, Debug, Default)]
pub struct View {
    uids: UidSet,
    /// For each range of `uids`, how many members stand before it. The same length as the ranges.
    before: Vec<u32>,
    recent: UidSet,
    /// Vanished, but still counted because the client has not been told.
    held_back: UidSet,
    /// The highest UID ever in view. UIDs ascend, so a lower one that is not here now will never be again.
    highest: u32,
}

/// What went out of view.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Expunged {
    /// Sequence numbers before any of them went. Written from the highest down they need no adjustment; see
    /// [`Expunged::in_order_of_writing`].
    pub seqs: UidSet,
    pub uids: UidSet,
}

impl Expunged {
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// The numbers for `* n EXPUNGE`, each right at the moment when it is written.
    pub fn in_order_of_writing(&self) -> impl Iterator<Item = u32> + '_ {
        self.seqs.iter().rev()
    }
}

impl View {
    /// `recent` are the messages that this session is the first to see.
    pub fn new(uids: UidSet, recent: UidSet) -> View {
        let mut view =
            View { highest: uids.last().unwrap_or(0), recent: recent.intersection(&uids), ..View::default() };
        view.uids = uids;
        view.count_again();
        view
    }

    /// EXISTS.
    pub fn exists(&self) -> u32 {
        match (self.uids.ranges().last(), self.before.last()) {
            (Some(&(first, last)), Some(&before)) => before + (last - first) + 1,
            _ => 0,
        }
    }

    /// RECENT.
    pub fn recent(&self) -> u32 {
        u32::try_from(self.recent.len()).unwrap_or(u32::MAX)
    }

    pub fn is_recent(&self, uid: Uid) -> bool {
        self.recent.contains(uid.0)
    }

    /// The recent ones, for the SEARCH keys RECENT, NEW and OLD.
    pub fn recent_uids(&self) -> &UidSet {
        &self.recent
    }

    pub fn uids(&self) -> &UidSet {
        &self.uids
    }

    /// Logarithmic in the number of ranges.
    pub fn seq(&self, uid: Uid) -> Option<u32> {
        let at = self.uids.ranges().partition_point(|range| range.1 < uid.0);
        let (first, _) = *self.uids.ranges().get(at).filter(|range| range.0 <= uid.0)?;
        Some(self.before.get(at)? + (uid.0 - first) + 1)
    }

    /// Logarithmic in the number of ranges.
    pub fn uid(&self, seq: u32) -> Option<Uid> {
        let index = seq.checked_sub(1)?;
        let at = self.before.partition_point(|before| *before <= index).checked_sub(1)?;
        let &(first, last) = self.uids.ranges().get(at)?;
        let offset = index - self.before.get(at)?;
        first.checked_add(offset).filter(|uid| *uid <= last).map(Uid)
    }

    /// What a command's set names: UIDs, or sequence numbers, which must exist.
    pub fn resolve(&self, set: &SequenceSet, uid: bool) -> Result<UidSet, OutOfRange> {
        if uid { Ok(set.resolve_uids(&self.uids)) } else { set.resolve_seqs(&self.uids) }
    }

    /// The sequence numbers of those of `uids` that are in view.
    pub fn seqs(&self, uids: &UidSet) -> UidSet {
        let mut seqs: Vec<(u32, u32)> = Vec::new();
        for &(first, last) in self.uids.intersection(uids).ranges() {
            // Both ends lie in one range of the view, so the numbers between them are consecutive.
            if let Some(seq) = self.seq(Uid(first)) {
                seqs.push((seq, seq + (last - first)));
            }
        }
        seqs.into_iter().collect()
    }

    /// Takes the vanished out of view at once: for when EXPUNGE may be written.
    pub fn expunge(&mut self, vanished: &UidSet) -> Expunged {
        self.hold_back(vanished);
        self.release()
    }

    /// Remembers the vanished until [`View::release`], keeping their sequence numbers: for when EXPUNGE may not be
    /// written.
    pub fn hold_back(&mut self, vanished: &UidSet) {
        self.held_back = self.held_back.union(&vanished.intersection(&self.uids));
    }

    /// Messages that are gone though the client still counts them.
    pub fn held_back(&self) -> &UidSet {
        &self.held_back
    }

    pub fn release(&mut self) -> Expunged {
        let uids = std::mem::take(&mut self.held_back);
        if uids.is_empty() {
            return Expunged::default();
        }
        let seqs = self.seqs(&uids);
        self.uids = self.uids.difference(&uids);
        self.recent = self.recent.difference(&uids);
        self.count_again();
        Expunged { seqs, uids }
    }

    /// Adds what is new and returns the new EXISTS if there was anything. A UID not above all seen before is left
    /// out: it is a repetition of old news, and its message may be gone.
    pub fn arrive(&mut self, arrived: &UidSet, recent: bool) -> Option<u32> {
        let fresh = match self.highest.checked_add(1) {
            Some(next) => arrived.intersection(&UidSet::from_range(next, u32::MAX)),
            None => return None,
        };
        self.highest = fresh.last()?;
        let old_ranges = self.uids.ranges().len();
        for &(first, last) in fresh.ranges() {
            self.uids.insert_range(first, last);
            if recent {
                self.recent.insert_range(first, last);
            }
        }
        // Only the last of the old ranges can have grown; the counts before it hold.
        self.count_from(old_ranges.saturating_sub(1));
        Some(self.exists())
    }

    fn count_again(&mut self) {
        self.count_from(0);
        self.before.shrink_to_fit();
    }

    fn count_from(&mut self, at: usize) {
        self.before.truncate(at);
        let ranges = self.uids.ranges();
        let mut before = match (at.checked_sub(1).and_then(|i| ranges.get(i)), self.before.last()) {
            (Some(&(first, last)), Some(&before)) => before + (last - first) + 1,
            _ => 0,
        };
        for &(first, last) in ranges.get(at..).unwrap_or_default() {
            self.before.push(before);
            before += (last - first) + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop_oneof, proptest};
    use types::{Uid, UidSet};

    use super::View;

    fn uids(numbers: impl IntoIterator<Item = u32>) -> UidSet {
        numbers.into_iter().collect()
    }

    #[test]
    fn expunges_are_written_from_the_highest_down() {
        let mut view = View::new(uids([2, 3, 5, 8, 9]), UidSet::new());
        let gone = view.expunge(&uids([3, 4, 8, 9, 77]));
        assert_eq!(gone.in_order_of_writing().collect::<Vec<_>>(), [5, 4, 2]);
        assert_eq!(gone.uids, uids([3, 8, 9]));
        assert_eq!((view.exists(), view.seq(Uid(5)), view.uid(2)), (2, Some(2), Some(Uid(5))));
    }

    #[test]
    fn held_back_messages_keep_their_numbers_until_released() {
        let mut view = View::new(uids(1..=3), uids([1, 3]));
        view.hold_back(&uids([1]));
        assert_eq!((view.exists(), view.seq(Uid(3)), view.recent()), (3, Some(3), 2));
        assert_eq!(view.held_back(), &uids([1]));
        assert_eq!(view.release().in_order_of_writing().collect::<Vec<_>>(), [1]);
        assert_eq!((view.exists(), view.seq(Uid(3)), view.recent()), (2, Some(2), 1));
        assert!(view.release().is_empty());
    }

    #[test]
    fn news_told_twice_does_not_bring_a_message_back() {
        let mut view = View::new(uids([1, 2]), UidSet::new());
        assert_eq!(view.arrive(&uids([3]), true), Some(3));
        view.expunge(&uids([3]));
        assert_eq!(view.arrive(&uids([2, 3]), true), None);
        assert_eq!(view.arrive(&uids([3, 4]), false), Some(3));
        assert_eq!((view.recent(), view.uid(3)), (0, Some(Uid(4))));
    }

    #[test]
    fn the_greatest_uid_can_be_in_view() {
        let mut view = View::new(uids([u32::MAX]), UidSet::new());
        assert_eq!((view.seq(Uid::MAX), view.uid(1), view.uid(0), view.uid(2)), (Some(1), Some(Uid::MAX), None, None));
        assert_eq!(view.arrive(&uids([5]), true), None);
    }

    #[derive(Clone, Debug)]
    enum Change {
        Arrive(Vec<u32>, bool),
        Expunge(Vec<u32>),
        HoldBack(Vec<u32>),
        Release,
    }

    fn change() -> impl Strategy<Value = Change> {
        let some = || proptest::collection::vec(1u32..80, 0..8);
        prop_oneof![
            (some(), any::<bool>()).prop_map(|(numbers, recent)| Change::Arrive(numbers, recent)),
            some().prop_map(Change::Expunge),
            some().prop_map(Change::HoldBack),
            proptest::strategy::Just(Change::Release),
        ]
    }

    proptest! {
        /// The model is the client's: a list that EXPUNGE shortens and EXISTS lengthens.
        #[test]
        fn the_view_agrees_with_a_client_that_keeps_a_list(
            start in proptest::collection::btree_set(1u32..40, 0..20),
            changes in proptest::collection::vec(change(), 0..20),
        ) {
            let mut list: Vec<u32> = start.iter().copied().collect();
            let (mut highest, mut held): (u32, Vec<u32>) = (list.last().copied().unwrap_or(0), Vec::new());
            let mut recent: Vec<u32> = list.iter().copied().filter(|uid| uid % 2 == 0).collect();
            let mut view = View::new(uids(start), uids(recent.iter().copied()));
            for change in changes {
                let expunged = match change {
                    Change::Arrive(numbers, is_recent) => {
                        let fresh: Vec<u32> = uids(numbers.iter().copied()).iter().filter(|n| *n > highest).collect();
                        let exists = view.arrive(&uids(numbers), is_recent);
                        list.extend(&fresh);
                        assert_eq!(exists, (!fresh.is_empty()).then_some(list.len() as u32));
                        highest = fresh.last().copied().unwrap_or(highest);
                        recent.extend(fresh.into_iter().filter(|_| is_recent));
                        continue;
                    }
                    Change::HoldBack(numbers) => {
                        held.extend(&numbers);
                        held.retain(|uid| list.contains(uid));
                        view.hold_back(&uids(numbers));
                        assert_eq!(view.held_back(), &uids(held.iter().copied()));
                        continue;
                    }
                    Change::Expunge(numbers) => {
                        held.extend(&numbers);
                        view.expunge(&uids(numbers))
                    }
                    Change::Release => view.release(),
                };
                for seq in expunged.in_order_of_writing() {
                    let gone = list.remove(seq as usize - 1);
                    assert!(held.contains(&gone) && expunged.uids.contains(gone));
                    recent.retain(|uid| *uid != gone);
                }
                assert!(!list.iter().any(|uid| held.contains(uid)));
                held.clear();
            }
            assert_eq!(view.exists() as usize, list.len());
            assert_eq!(view.recent() as usize, recent.len());
            for (i, &uid) in list.iter().enumerate() {
                assert_eq!(view.seq(Uid(uid)), Some(i as u32 + 1));
                assert_eq!(view.uid(i as u32 + 1), Some(Uid(uid)));
                assert_eq!(view.is_recent(Uid(uid)), recent.contains(&uid));
            }
            assert_eq!(view.uid(list.len() as u32 + 1), None);
            let all: UidSet = list.iter().copied().collect();
            assert_eq!(view.seqs(&all).len(), all.len());
        }
    }
}
