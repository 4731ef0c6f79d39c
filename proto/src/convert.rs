//! Wire messages to the domain's nouns and back. What does not fit is [`MailError::Invalid`], never a panic.

use types::{Flags, InternalDate, Keyword, MailError, SystemFlags, UidSet};

use crate::wire;

/// Pairs of bounds to a set. An odd number of bounds, a 0, or ranges out of order are refused.
pub fn uid_set_from_wire(set: Option<&wire::UidSet>) -> Result<UidSet, MailError> {
    let Some(set) = set else { return Ok(UidSet::new()) };
    let (pairs, rest) = set.bounds.as_chunks::<2>();
    let ascending = pairs.iter().all(|[first, last]| *first != 0 && first <= last)
        && pairs.windows(2).all(|two| two[0][1] < two[1][0]);
    if !rest.is_empty() || !ascending {
        return Err(MailError::Invalid("malformed UID set".into()));
    }
    Ok(pairs.iter().map(|[first, last]| (*first, *last)).collect())
}

pub fn uid_set_to_wire(set: &UidSet) -> wire::UidSet {
    wire::UidSet { bounds: set.ranges().iter().flat_map(|&(first, last)| [first, last]).collect() }
}

impl From<InternalDate> for wire::InternalDate {
    fn from(date: InternalDate) -> wire::InternalDate {
        wire::InternalDate { unix_s: date.unix_s, offset_min: i32::from(date.offset_min) }
    }
}

impl From<wire::InternalDate> for InternalDate {
    fn from(date: wire::InternalDate) -> InternalDate {
        let offset_min = i16::try_from(date.offset_min.clamp(-1439, 1439)).unwrap_or(0);
        InternalDate { unix_s: date.unix_s, offset_min }
    }
}

impl From<&Flags> for wire::Flags {
    fn from(flags: &Flags) -> wire::Flags {
        wire::Flags {
            system: u32::from(flags.system.bits()),
            keywords: flags.keywords.iter().map(|keyword| keyword.as_str().to_owned()).collect(),
        }
    }
}

impl TryFrom<&wire::Flags> for Flags {
    type Error = MailError;

    fn try_from(flags: &wire::Flags) -> Result<Flags, MailError> {
        let mut result = Flags::system(SystemFlags::from_bits((flags.system & 0xff) as u8));
        for keyword in &flags.keywords {
            result.insert_keyword(Keyword::parse(keyword).map_err(|e| MailError::Invalid(e.to_string()))?);
        }
        Ok(result)
    }
}

/// A stored message's flags; keywords that do not parse are left out, as the node has checked them.
pub fn fetched_flags(flags: Option<&wire::Flags>) -> Flags {
    flags.map(|flags| Flags::try_from(flags).unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use types::UidSet;

    use super::{uid_set_from_wire, uid_set_to_wire};
    use crate::wire;

    #[test]
    fn uid_sets_survive_and_malformed_ones_are_refused() {
        let set: UidSet = [(1, 3), (7, 7)].into_iter().collect();
        assert_eq!(uid_set_from_wire(Some(&uid_set_to_wire(&set))).unwrap(), set);
        for bad in [vec![1], vec![0, 2], vec![3, 1], vec![1, 5, 5, 6], vec![4, 5, 1, 2]] {
            assert!(uid_set_from_wire(Some(&wire::UidSet { bounds: bad })).is_err());
        }
    }
}
