//! The format: one number for the forms of all that is written into logs and onto disks and sent between processes. A
//! program knows every format up to its own, and processes speak with those of one before and one after.
//!
//! What is written has the form of the format in force, which is the least that all nodes of the cluster know, so that any
//! of them can read it (docs/decisions/0011).

use std::hint::black_box;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

const DIGITS: usize = 8;
/// What each brought: 1 is the first; by commands of format 2 a mailbox that goes leaves remains; by those of format 3 a node
/// is registered as one that waits for its join.
///
/// As text, once in the program: tests of upgrades write a greater number over it in a copy, which is then the next
/// version's program.
#[used]
static NUMBER: [u8; 16 + DIGITS] = *b"mailring-format:00000003";

static KNOWN: LazyLock<u32> = LazyLock::new(|| {
    let digits = black_box(&NUMBER).last_chunk::<DIGITS>().copied().unwrap_or_default();
    digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit.wrapping_sub(b'0') % 10))
});

/// Of the cluster that this process belongs to; 0 while that is not known.
static IN_FORCE: AtomicU32 = AtomicU32::new(0);

/// The newest format that this program knows.
pub fn known() -> u32 {
    *KNOWN
}

/// Whether this program can read what was written in a format.
pub fn reads(format: u32) -> bool {
    (1..=known()).contains(&format)
}

/// Whether this program can speak with one that knows formats up to `other`.
pub fn speaks_with(other: u32) -> bool {
    other.abs_diff(known()) <= 1
}

/// What this process writes in: until it knows its cluster's, the one before its own, which every node can read that it
/// may meet.
pub fn in_force() -> u32 {
    match IN_FORCE.load(Ordering::Relaxed) {
        0 => known().saturating_sub(1).max(1),
        format => format,
    }
}

/// [`in_force`] as the first octet of a form.
pub fn octet() -> u8 {
    u8::try_from(in_force()).unwrap_or(u8::MAX)
}

/// The cluster's format, as its directory says; it never falls.
pub fn put_in_force(format: u32) {
    IN_FORCE.fetch_max(format.min(known()), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::{NUMBER, in_force, known, octet, put_in_force, reads, speaks_with};

    #[test]
    fn the_number_in_the_program_is_the_format() {
        assert!(NUMBER.starts_with(b"mailring-format:"));
        assert_eq!(known(), 3);
        assert!(reads(1) && reads(3) && !reads(0) && !reads(4));
        assert!(speaks_with(2) && speaks_with(4) && !speaks_with(1) && !speaks_with(5));
    }

    #[test]
    fn nothing_is_written_that_this_program_could_not_read() {
        put_in_force(7);
        assert_eq!((in_force(), u32::from(octet())), (known(), known()));
    }
}
