//! A message's internal date (RFC 9051 §2.3.3).

/// An instant with the zone offset that the client gave, so that it is shown as it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct InternalDate {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub unix_s: i64,
    /// Minutes east of UTC, -1439 to 1439.
    pub offset_min: i16,
}

impl InternalDate {
    pub fn utc(unix_s: i64) -> InternalDate {
        InternalDate { unix_s, offset_min: 0 }
    }

    /// Days since 1970-01-01 of the date as written, the zone disregarded: what SEARCH SINCE, BEFORE and ON
    /// compare (RFC 9051 §6.4.4).
    pub fn day(self) -> i64 {
        self.unix_s.saturating_add(i64::from(self.offset_min) * 60).div_euclid(86_400)
    }
}
