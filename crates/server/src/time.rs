//! Times as people write them.

use chrono::{DateTime, Datelike, NaiveDate};

use crate::error::Error;

/// Milliseconds since 1970 as `2026-11-23T14:45:20.123Z`.
#[must_use]
pub fn text(ms: u64) -> String {
    let at = i64::try_from(ms)
        .ok()
        .and_then(DateTime::from_timestamp_millis);
    at.map_or_else(
        || ms.to_string(),
        |at| at.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
    )
}

/// Milliseconds since 1970 of `2026-11-23` (its beginning in UTC) or of an RFC 3339 time.
///
/// # Errors
/// [`Error::Value`] for anything else, and for times before 1970.
pub fn parse(what: &'static str, value: &str) -> Result<u64, Error> {
    let day = || {
        value
            .parse::<NaiveDate>()
            .ok()?
            .and_hms_opt(0, 0, 0)
            .map(|t| t.and_utc())
    };
    let time = || DateTime::parse_from_rfc3339(value).ok().map(|t| t.to_utc());
    let at = day().or_else(time).map(|t| t.timestamp_millis());
    at.and_then(|ms| u64::try_from(ms).ok())
        .ok_or_else(|| Error::Value {
            what,
            value: value.to_owned(),
            why: "want YYYY-MM-DD or a time like 2026-01-31T12:00:00Z".to_owned(),
        })
}

/// When the calendar month of this time began, in milliseconds since 1970 (UTC).
#[must_use]
pub fn month_began(ms: u64) -> u64 {
    let at = i64::try_from(ms)
        .ok()
        .and_then(DateTime::from_timestamp_millis);
    let first =
        at.and_then(|at| NaiveDate::from_ymd_opt(at.year(), at.month(), 1)?.and_hms_opt(0, 0, 0));
    first.map_or(0, |t| {
        u64::try_from(t.and_utc().timestamp_millis()).unwrap_or(0)
    })
}

/// When the next calendar month begins.
#[must_use]
pub fn next_month(ms: u64) -> u64 {
    // No month has more than 31 days, and two of them are longer than any.
    month_began(month_began(ms).saturating_add(32 * 24 * 3_600_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let at = parse("from", "2026-02-03T04:05:06.789Z").unwrap();
        assert_eq!(text(at), "2026-02-03T04:05:06.789Z");
        assert_eq!(
            text(parse("from", "2026-02-03").unwrap()),
            "2026-02-03T00:00:00.000Z"
        );
        assert_eq!(
            parse("to", "2026-02-03T01:00:00+01:00").unwrap(),
            parse("to", "2026-02-03").unwrap()
        );
        for bad in ["", "now", "2026-13-01", "1969-12-31", "2026-02-03 04:05"] {
            assert!(parse("from", bad).is_err(), "{bad}");
        }
        assert_eq!(text(u64::MAX), u64::MAX.to_string());
    }

    #[test]
    fn months() {
        for (at, began, next) in [
            ("2026-01-31T23:59:59.999Z", "2026-01-01", "2026-02-01"),
            ("2024-02-29", "2024-02-01", "2024-03-01"),
            ("2026-12-01", "2026-12-01", "2027-01-01"),
        ] {
            let at = parse("at", at).unwrap();
            assert_eq!(month_began(at), parse("at", began).unwrap());
            assert_eq!(next_month(at), parse("at", next).unwrap());
        }
    }
}
