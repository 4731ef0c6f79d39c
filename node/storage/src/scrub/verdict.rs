//! What is to be said of one record by what each copy holds of it. Knows no disk.

use std::borrow::Cow;

use crate::error::StorageError;

/// What a copy answered for a key: its value, that it has none, or that it cannot be read there.
pub(crate) type Reading<'a> = Result<Option<Cow<'a, [u8]>>, StorageError>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Judgement {
    Good,
    /// This copy cannot be read or is not what it should be; the other one is good.
    Damaged {
        at: usize,
        reason: String,
    },
    /// Only the other copy has the record, and it is good.
    Missing {
        at: usize,
    },
    /// Both can be read and hold by their own checks, and are not the same: nobody here knows which is right.
    Differs,
    /// There is no good copy here.
    Lost {
        reason: String,
    },
}

/// `holds` tells whether a value is what its own format and checksum say.
pub(crate) fn judge(readings: &[Reading<'_>], holds: impl Fn(&[u8]) -> Result<(), StorageError>) -> Judgement {
    match readings {
        [Ok(Some(value))] => match holds(value) {
            Ok(()) => Judgement::Good,
            Err(error) => lost(&error),
        },
        [Ok(None)] | [] => Judgement::Good,
        [Err(error)] => lost(error),
        [first, second, ..] => judge_both(first, second, holds),
    }
}

fn judge_both(
    first: &Reading<'_>,
    second: &Reading<'_>,
    holds: impl Fn(&[u8]) -> Result<(), StorageError>,
) -> Judgement {
    match (first, second) {
        (Ok(Some(a)), Ok(Some(b))) if a == b => match holds(a) {
            Ok(()) => Judgement::Good,
            Err(error) => lost(&error),
        },
        (Ok(Some(a)), Ok(Some(b))) => match (holds(a), holds(b)) {
            (Ok(()), Ok(())) => Judgement::Differs,
            (Ok(()), Err(error)) => Judgement::Damaged { at: 1, reason: error.to_string() },
            (Err(error), Ok(())) => Judgement::Damaged { at: 0, reason: error.to_string() },
            (Err(error), Err(_)) => lost(&error),
        },
        (Ok(Some(value)), other) => judge_one(value, other, 1, holds),
        (other, Ok(Some(value))) => judge_one(value, other, 0, holds),
        // One of them knows that there is no such record; that the other cannot be read is told of the place.
        (Ok(None), _) | (_, Ok(None)) => Judgement::Good,
        (Err(error), Err(_)) => lost(error),
    }
}

/// One copy has a value; the other one, which is `at`, has none or cannot be read.
fn judge_one(
    value: &[u8],
    other: &Reading<'_>,
    at: usize,
    holds: impl Fn(&[u8]) -> Result<(), StorageError>,
) -> Judgement {
    match (holds(value), other) {
        (Err(error), _) => lost(&error),
        (Ok(()), Err(error)) => Judgement::Damaged { at, reason: error.to_string() },
        (Ok(()), Ok(_)) => Judgement::Missing { at },
    }
}

fn lost(error: &StorageError) -> Judgement {
    Judgement::Lost { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::{Judgement, Reading, judge};
    use crate::error::StorageError;

    fn bad() -> StorageError {
        StorageError::corrupt("k", "bad")
    }

    fn of(readings: &[Reading<'_>]) -> Judgement {
        judge(readings, |value| if value.starts_with(b"x") { Err(bad()) } else { Ok(()) })
    }

    fn value(bytes: &[u8]) -> Reading<'_> {
        Ok(Some(bytes.into()))
    }

    #[test]
    fn the_copy_that_holds_is_the_good_one_and_nothing_is_chosen_where_both_do() {
        let reason = || bad().to_string();
        let lost = || Judgement::Lost { reason: reason() };
        assert_eq!(of(&[value(b"a"), value(b"a")]), Judgement::Good);
        assert_eq!(of(&[value(b"a"), value(b"b")]), Judgement::Differs);
        assert_eq!(of(&[value(b"a"), value(b"xb")]), Judgement::Damaged { at: 1, reason: reason() });
        assert_eq!(of(&[value(b"xa"), value(b"b")]), Judgement::Damaged { at: 0, reason: reason() });
        assert_eq!(of(&[Err(bad()), value(b"b")]), Judgement::Damaged { at: 0, reason: reason() });
        assert_eq!(of(&[value(b"a"), Ok(None)]), Judgement::Missing { at: 1 });
        for none in [[value(b"xa"), value(b"xa")], [value(b"xa"), value(b"xb")], [Err(bad()), Err(bad())]] {
            assert_eq!(of(&none), lost());
        }
        assert_eq!(of(&[value(b"xa"), Ok(None)]), lost());
        assert_eq!(of(&[Err(bad()), value(b"xb")]), lost());
        assert_eq!(of(&[Err(bad())]), lost());
        assert_eq!(of(&[Ok(None), Err(bad())]), Judgement::Good);
    }
}
