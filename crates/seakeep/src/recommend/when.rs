//! Times of interactions: numbers, or dates as ISO 8601 writes them.

use chrono::{DateTime, NaiveDate, NaiveDateTime};

/// Billionths in one.
const UNIT: i128 = 1_000_000_000;
/// Of this size on, a number is no time.
const LARGEST: f64 = 1e27;

/// When something happened. Only times of one kind can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// In billionths of whatever the numbers count; exact where they are whole.
    Number(i128),
    /// Nanoseconds from 1970; what names no zone is UTC.
    Date(i128),
}

impl When {
    /// The time that a text says.
    pub fn parse(text: &str) -> Option<When> {
        if let Ok(whole) = text.parse::<i64>() {
            return Some(When::Number(i128::from(whole) * UNIT));
        }
        if let Ok(number) = text.parse::<f64>() {
            let whole = number.trunc();
            let rest = ((number - whole) * UNIT as f64).round() as i128;
            return (whole.abs() < LARGEST).then(|| When::Number(whole as i128 * UNIT + rest));
        }
        let text = text.replace('/', "-");
        let text = text.trim_end_matches(" UTC");
        // A year of two digits may be a month.
        let year = text.bytes().take_while(u8::is_ascii_digit).count();
        if year != 4 && year != 8 {
            return None;
        }
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d")
            .ok()
            .map(|date| date.into())
            .or_else(|| moment(text))?;
        let date = date.and_utc();
        Some(When::Date(i128::from(date.timestamp()) * UNIT + i128::from(date.timestamp_subsec_nanos())))
    }

    /// The number by which times of one kind are ordered.
    pub fn order(self) -> i128 {
        match self {
            When::Number(at) | When::Date(at) => at,
        }
    }

    /// Whether two times can be compared.
    pub fn is_like(self, other: When) -> bool {
        matches!((self, other), (When::Number(_), When::Number(_)) | (When::Date(_), When::Date(_)))
    }
}

/// A date with a time of day, and perhaps a zone, in UTC.
fn moment(text: &str) -> Option<NaiveDateTime> {
    for (day, times) in [
        ("%Y-%m-%dT", ["%H:%M:%S%.f", "%H:%M"]),
        ("%Y-%m-%d ", ["%H:%M:%S%.f", "%H:%M"]),
        ("%Y%m%dT", ["%H%M%S%.f", "%H%M"]),
    ] {
        for time in times {
            let plain = format!("{day}{time}");
            let found = NaiveDateTime::parse_from_str(text, &plain).ok();
            let zoned =
                || DateTime::parse_from_str(text, &format!("{plain}%#z")).ok().map(|at| at.naive_utc());
            if let Some(at) = found.or_else(zoned) {
                return Some(at);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(texts: &[&str]) {
        let times: Vec<When> = texts.iter().map(|text| When::parse(text).expect(text)).collect();
        for (pair, named) in times.windows(2).zip(texts.windows(2)) {
            assert!(pair[0].is_like(pair[1]) && pair[0].order() < pair[1].order(), "{named:?} {pair:?}");
        }
    }

    #[test]
    fn times_are_ordered_as_they_are() {
        order(&[
            "-3",
            "0",
            "0.5",
            "1.25e0",
            "2",
            "1700000000",
            "1700000000.5",
            "1700000000000000001",
            "1700000000000000002",
        ]);
        order(&["2024-5-1", "2024-05-02", "2024/10/1"]);
        order(&[
            "2024-10-01",
            "2024-10-01T00:01",
            "2024-10-01 00:01:02Z",
            "2024-10-01T00:01:02.5Z",
            "2024-10-01 00:01:03 UTC",
        ]);
        order(&[
            "2024-05-01T10:30:00+02:00",
            "2024-05-01T09:00:00+00:00",
            "2024-05-01T09:00:01",
            "2024-05-01 08:00:02-0130",
        ]);
        assert_eq!(When::parse("2024-05-01"), When::parse("2024-05-01T02:00:00+02:00"));
        assert_eq!(When::parse("20240501T103000Z"), When::parse("2024-05-01 10:30"));
        for wrong in
            ["", "May 2024", "2024-13-01", "24-05-01x", "nan", "inf", "1e40", "2024-05-01T25:00", "11/1/23"]
        {
            assert_eq!(When::parse(wrong), None, "{wrong}");
        }
        assert!(!When::parse("1").unwrap().is_like(When::parse("2024-05-01").unwrap()));
    }
}
