//! Where a test makes a disk fail without being root: a hook that is asked before each operation on a half of a mirror.

use std::fmt::{self, Debug, Display};
use std::io;
use std::sync::Arc;

use crate::error::StorageError;

/// One of the two directories of a mirror. The name is given when the volume is made, and kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum HalfName {
    A,
    B,
}

impl HalfName {
    pub fn other(self) -> HalfName {
        match self {
            HalfName::A => HalfName::B,
            HalfName::B => HalfName::A,
        }
    }
}

impl Display for HalfName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            HalfName::A => "a",
            HalfName::B => "b",
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// A batch goes to the write-ahead log and the memtables.
    Write,
    Sync,
    /// A record is read, or a scan begins.
    Read,
    /// The half's own record is written.
    Record,
    /// It is looked whether its disk has room for it to be made anew there.
    Room,
}

/// Answers an error for an operation that must fail; may take its time, or not return for as long as it likes.
pub trait Faults: Debug + Send + Sync {
    fn before(&self, half: HalfName, operation: Operation) -> io::Result<()>;
}

pub(crate) fn before(
    faults: Option<&Arc<dyn Faults>>,
    half: HalfName,
    operation: Operation,
) -> Result<(), StorageError> {
    let asked = faults.map_or(Ok(()), |faults| faults.before(half, operation));
    asked.map_err(|error| StorageError::io(format!("{operation:?} on half {half}"), error))
}
