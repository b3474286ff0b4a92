//! A date and time as somebody writes it, in the forms of ISO 8601 that the reference reads (spec e.2, rule 3).

use jiff::civil;
use jiff::fmt::temporal::Pieces;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// Whether it begins as `YYYY-MM-DD` does.
pub(super) fn begins_with_date(text: &str) -> bool {
    let mut bytes = text.bytes();
    "dddd-dd-dd".bytes().all(|wanted| {
        bytes.next().is_some_and(|byte| if wanted == b'd' { byte.is_ascii_digit() } else { byte == wanted })
    })
}

/// The instant of a time that has an offset, or is one of `zone`'s wall clock, and the time as it is shown there.
pub(super) fn instant(text: &str, zone: &TimeZone) -> Result<(Timestamp, Zoned), String> {
    let bad = || {
        format!("\"{text}\" is no date and time; write it as 2027-01-31, 2027-01-31T09:00 or 2027-01-31T09:00+02:00")
    };
    let pieces = Pieces::parse(text).map_err(|_| bad())?;
    if text.contains(['[', 'z']) {
        return Err(bad());
    }
    let time = civil::DateTime::from_parts(pieces.date(), pieces.time().unwrap_or_default());
    let (at, shown) = match pieces.to_numeric_offset() {
        Some(offset) => {
            let at = offset.to_timestamp(time).map_err(|_| bad())?;
            (at, offset.to_time_zone())
        }
        None => (super::first_instant(time, zone).ok_or_else(bad)?, zone.clone()),
    };
    // Shown as it was written, also where no clock shows that.
    let display = match pieces.to_numeric_offset() {
        Some(_) => at.to_zoned(shown),
        None => time.to_zoned(TimeZone::UTC).map_err(|_| bad())?,
    };
    Ok((at, display))
}
