//! `strftime_now`: a date in Python's directives.

use std::fmt::Write;

use chrono::DateTime;
use chrono::format::{Fixed, Item, StrftimeItems};
use minijinja::ErrorKind;

/// The time in UTC (transformers takes local time; no template that is in use prints more than a date). It has no zone: as
/// in Python, the directives that name one print nothing.
pub(super) fn strftime(format: &str, now: std::time::SystemTime) -> Result<String, minijinja::Error> {
    let seconds = now.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let now = DateTime::from_timestamp(seconds as i64, 0).unwrap_or_default().naive_utc();
    let is_zone = |item: &Item| matches!(item, Item::Fixed(Fixed::TimezoneName | Fixed::TimezoneOffset));
    let items: Vec<Item> = StrftimeItems::new(format).filter(|item| !is_zone(item)).collect();
    let mut out = String::new();
    write!(out, "{}", now.format_with_items(items.iter())).map_err(|_| {
        let what = format!("strftime_now does not know a directive in `{format}`");
        minijinja::Error::new(ErrorKind::InvalidOperation, what)
    })?;
    Ok(out)
}
