//! Dates as IMAP writes them (RFC 3501 §9, date and date-time), over plain civil-date arithmetic.

use types::InternalDate;

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAY_S: i64 = 86_400;

/// Days since 1970-01-01 in the proleptic Gregorian calendar; None unless the day exists.
/// After Howard Hinnant, "chrono-compatible low-level date algorithms".
pub fn days_from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(0..=9999).contains(&year) || !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return None;
    }
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

/// Year, month and day of a count of days since 1970-01-01.
pub fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// `date-text = date-day "-" date-month "-" date-year`, one or two digits of day; as days since 1970-01-01.
pub fn parse_date(text: &[u8]) -> Option<i64> {
    let (day, rest) = match text {
        [d, b'-', rest @ ..] => (digits(&[*d])?, rest),
        [d, e, b'-', rest @ ..] => (digits(&[*d, *e])?, rest),
        _ => return None,
    };
    month_and_year(day, rest)
}

/// What stands between the quotes of `date-time`: `dd-Mmm-yyyy hh:mm:ss +zzzz`, the day filled with a space.
/// A leap second (`:60`) is the first second of the next minute.
pub fn parse_date_time(text: &[u8]) -> Option<InternalDate> {
    let (date, time) = (text.get(..11)?, text.get(11..)?);
    let day = match date {
        [b' ', d, b'-', ..] => digits(&[*d])?,
        [d, e, b'-', ..] => digits(&[*d, *e])?,
        _ => return None,
    };
    let days = month_and_year(day, date.get(3..)?)?;
    let &[b' ', h1, h2, b':', m1, m2, b':', s1, s2, b' ', sign, z1, z2, z3, z4] = time else { return None };
    let (hour, minute, second) = (digits(&[h1, h2])?, digits(&[m1, m2])?, digits(&[s1, s2])?);
    let (zone_hour, zone_minute) = (digits(&[z1, z2])?, digits(&[z3, z4])?);
    if hour > 23 || minute > 59 || second > 60 || zone_hour > 23 || zone_minute > 59 {
        return None;
    }
    let zone = zone_hour * 60 + zone_minute;
    let offset_min = match sign {
        b'+' => zone,
        b'-' => -zone,
        _ => return None,
    };
    let unix_s = days * DAY_S + hour * 3600 + minute * 60 + second - offset_min * 60;
    Some(InternalDate { unix_s, offset_min: i16::try_from(offset_min).ok()? })
}

/// `date-time` with its quotes. An instant outside the years 0 to 9999 is shown as the nearest one inside.
pub fn format_date_time(date: InternalDate) -> String {
    let offset_min = i64::from(date.offset_min).clamp(-1439, 1439);
    let local_s = date.unix_s.saturating_add(offset_min * 60).clamp(-719_528 * DAY_S, 2_932_897 * DAY_S - 1);
    let (year, month, day) = civil_from_days(local_s.div_euclid(DAY_S));
    let month = usize::try_from(month - 1).ok().and_then(|at| MONTHS.get(at)).unwrap_or(&"Jan");
    let second = local_s.rem_euclid(DAY_S);
    let sign = if offset_min < 0 { '-' } else { '+' };
    let zone = offset_min.abs();
    format!(
        "\"{day:2}-{month}-{year:04} {:02}:{:02}:{:02} {sign}{:02}{:02}\"",
        second / 3600,
        second / 60 % 60,
        second % 60,
        zone / 60,
        zone % 60
    )
}

/// `Mmm-yyyy`, the month in any case.
fn month_and_year(day: i64, text: &[u8]) -> Option<i64> {
    let &[m1, m2, m3, b'-', y1, y2, y3, y4] = text else { return None };
    let month = MONTHS.iter().position(|name| name.as_bytes().eq_ignore_ascii_case(&[m1, m2, m3]))?;
    days_from_civil(digits(&[y1, y2, y3, y4])?, i64::try_from(month).ok()? + 1, day)
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0i64, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;
    use types::InternalDate;

    use super::{civil_from_days, days_from_civil, format_date_time, parse_date, parse_date_time};

    #[test]
    fn every_day_of_ten_thousand_years_follows_the_day_before() {
        let mut expected = days_from_civil(0, 1, 1).unwrap();
        assert_eq!(expected, -719_528);
        for year in 0..=9999 {
            for month in 1..=12 {
                for day in 1..=31 {
                    let Some(days) = days_from_civil(year, month, day) else { continue };
                    assert_eq!(days, expected);
                    assert_eq!(civil_from_days(days), (year, month, day));
                    expected += 1;
                }
            }
        }
        assert_eq!(expected, 2_932_897);
    }

    #[test]
    fn the_example_of_rfc_3501_is_read_and_written() {
        let date = parse_date_time(b"17-Jul-1996 02:44:25 -0700").unwrap();
        assert_eq!(date, InternalDate { unix_s: 837_596_665, offset_min: -420 });
        assert_eq!(format_date_time(date), "\"17-Jul-1996 02:44:25 -0700\"");
        assert_eq!(parse_date_time(b" 1-jan-1970 00:00:00 +0000"), Some(InternalDate::utc(0)));
        assert_eq!(format_date_time(InternalDate::utc(0)), "\" 1-Jan-1970 00:00:00 +0000\"");
        assert_eq!(parse_date(b"1-Feb-1994"), days_from_civil(1994, 2, 1));
        assert_eq!(parse_date(b"29-FEB-2000"), days_from_civil(2000, 2, 29));
    }

    #[test]
    fn days_and_times_that_do_not_exist_are_refused() {
        for bad in [
            "30-Feb-2000",
            "29-Feb-1900",
            "0-Jan-2000",
            "32-Jan-2000",
            "1-Foo-2000",
            "1-Jan-20",
            "1-Jan-20000",
            "001-Jan-2000",
            "1-Jan-2000 ",
            " 1-Jan-2000",
            "1 Jan 2000",
            "",
            "-",
            "1-Jan-+200",
            "31-Apr-2024",
        ] {
            assert_eq!(parse_date(bad.as_bytes()), None, "{bad}");
        }
        for bad in [
            "1-Jan-2000 00:00:00 +0000",
            "01-Jan-2000 24:00:00 +0000",
            "01-Jan-2000 00:60:00 +0000",
            "01-Jan-2000 00:00:61 +0000",
            "01-Jan-2000 00:00:00 0000",
            "01-Jan-2000 00:00:00 +2400",
            "01-Jan-2000 00:00:00 +0060",
            "01-Jan-2000 00:00:00 UTC",
            "01-Jan-2000",
            "31-Feb-2000 00:00:00 +0000",
            "",
        ] {
            assert_eq!(parse_date_time(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn absurd_instants_are_still_written_as_dates() {
        for unix_s in [i64::MIN, i64::MAX] {
            let text = format_date_time(InternalDate { unix_s, offset_min: i16::MAX });
            assert!(parse_date_time(text.trim_matches('"').as_bytes()).is_some(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn date_times_survive_the_round_trip(unix_s in -62_000_000_000i64..250_000_000_000, offset_min in -1439i16..=1439) {
            let date = InternalDate { unix_s, offset_min };
            assert_eq!(parse_date_time(format_date_time(date).trim_matches('"').as_bytes()), Some(date));
        }
    }
}
