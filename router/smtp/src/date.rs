//! Dates of trace headers (RFC 5322 §3.3), from seconds and civil arithmetic alone: the time is the caller's.

const DAY_S: i64 = 86_400;
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `Mon, 23 Nov 2026 23:21:45 +0000` for seconds since 1970-01-01T00:00:00Z. Years outside 1900 to 9999, which the
/// grammar cannot say, are shown as the nearest that it can.
pub fn rfc5322_date(unix_s: i64) -> String {
    // 1900-01-01T00:00:00Z and 9999-12-31T23:59:59Z.
    let unix_s = unix_s.clamp(-2_208_988_800, 253_402_300_799);
    let (days, second) = (unix_s.div_euclid(DAY_S), unix_s.rem_euclid(DAY_S));
    let (year, month, day) = civil(days);
    let name = |names: &[&'static str], index: i64| {
        usize::try_from(index).ok().and_then(|index| names.get(index).copied()).unwrap_or_default()
    };
    format!(
        "{}, {day} {} {year} {:02}:{:02}:{:02} +0000",
        name(&WEEKDAYS, days.rem_euclid(7)),
        name(&MONTHS, month - 1),
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month and day of the month from days since 1970-01-01, in the proleptic Gregorian calendar. Years are
/// counted from 1 March, so that the leap day comes last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::rfc5322_date;

    #[test]
    fn dates_are_written_as_headers_want_them() {
        for (unix_s, text) in [
            (0, "Thu, 1 Jan 1970 00:00:00 +0000"),
            (-1, "Wed, 31 Dec 1969 23:59:59 +0000"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 +0000"),
            (1_795_476_105, "Mon, 23 Nov 2026 23:21:45 +0000"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 +0000"),
            (4_107_542_400, "Mon, 1 Mar 2100 00:00:00 +0000"),
            (i64::MAX, "Fri, 31 Dec 9999 23:59:59 +0000"),
            (i64::MIN, "Mon, 1 Jan 1900 00:00:00 +0000"),
        ] {
            assert_eq!(rfc5322_date(unix_s), text);
        }
    }
}
