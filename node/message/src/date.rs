//! The Date field as an instant (RFC 5322 §3.3 and its obsolete forms), for SENTBEFORE, SENTON and SENTSINCE.

use mail_parser::DateTime;
use types::InternalDate;

use crate::header::unfold;

/// No date is longer, comments included.
const DATE_OCTETS_MAX: usize = 256;

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// The instant that a Date field's value names. None if there is no such day.
pub(crate) fn sent(value: &[u8]) -> Option<InternalDate> {
    let value = unfold(value, DATE_OCTETS_MAX);
    let text = String::from_utf8_lossy(&value);
    // Without a zone the time counts as UTC; the day, which is all that SEARCH compares, is as written.
    let mut date = DateTime::parse_rfc822(&text).or_else(|| DateTime::parse_rfc822(&format!("{text} +0000")))?;
    // RFC 5322 §4.3: three digits count from 1900.
    if (100..1_000).contains(&date.year) {
        date.year += 1_900;
    }
    // RFC 5322 §3.3: 60 is a leap second.
    date.second = date.second.min(59);
    let offset_min = i16::from(date.tz_hour) * 60 + i16::from(date.tz_minute);
    let offset_min = if date.tz_before_gmt { -offset_min } else { offset_min };
    // mail-parser tells months by a hash that other words meet too, and lets 31 February pass.
    let month = MONTHS.get(usize::from(date.month).checked_sub(1)?)?;
    let is_named = text.to_ascii_lowercase().contains(month);
    let exists = date.is_valid() && DateTime::from_timestamp(date.to_timestamp_local()).day == date.day;
    (is_named && exists).then(|| InternalDate { unix_s: date.to_timestamp(), offset_min })
}

#[cfg(test)]
mod tests {
    use types::InternalDate;

    use super::sent;

    fn read(date: &str) -> Option<InternalDate> {
        sent(format!(" {date}").as_bytes())
    }

    #[test]
    fn dates_are_read_in_current_and_obsolete_forms() {
        let expected = Some(InternalDate { unix_s: 837_595_405, offset_min: -420 });
        for date in [
            "Wed, 17 Jul 1996 02:23:25 -0700 (PDT)",
            "17 Jul 1996 02:23:25 -0700",
            "Wed, 17 Jul 96 02:23:25 PDT",
            "Wed,\r\n 17 Jul 1996\r\n 02:23:25 -0700",
        ] {
            assert_eq!(read(date), expected, "{date}");
        }
        assert_eq!(read("Mon, 1 Jan 2001 00:00:60 +0000"), Some(InternalDate::utc(978_307_259)));
        assert_eq!(read("Mon, 1 Jan 2001 00:00").map(InternalDate::day), Some(11_323));
        assert_eq!(read("1 Jan 101 00:00:00 GMT").map(InternalDate::day), Some(11_323));
    }

    #[test]
    fn absurd_dates_are_none() {
        let long = "9".repeat(1 << 20);
        for date in [
            "",
            "x",
            "99 Jan 2001 00:00:00 +0000",
            "1 Foo 2001 00:00:00 +0000",
            "31 Feb 2001 00:00:00 +0000",
            "1 Jan 2001 25:61 +0000",
            &long,
        ] {
            assert_eq!(read(date), None, "{date:.40}");
        }
        assert!(read(&"(".repeat(1 << 20)).is_none());
    }
}
