//! How long a model stays loaded when nobody uses it, as ollama's clients write that.

use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use crate::error::Error;

/// A time from the end of a model's last request to its unloading. 0: at once; below 0: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive(Option<Duration>);

/// (unit, its seconds), as Go writes spans of time.
const UNITS: [(&str, f64); 7] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// The longest text that is looked at.
const LONGEST: usize = 64;

impl KeepAlive {
    /// It stays.
    pub const FOREVER: KeepAlive = KeepAlive(None);

    /// So long.
    #[must_use]
    pub fn of(span: Duration) -> KeepAlive {
        KeepAlive(Some(span))
    }

    /// `None`: for ever.
    #[must_use]
    pub fn span(self) -> Option<Duration> {
        self.0
    }

    /// What a request says: a number of seconds, or a text like `5m`; `None`: neither.
    #[must_use]
    pub fn of_json(value: &Value) -> Option<KeepAlive> {
        match value {
            Value::Number(n) => Some(of_seconds(n.as_f64()?)),
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }
}

impl FromStr for KeepAlive {
    type Err = Error;

    fn from_str(text: &str) -> Result<KeepAlive, Error> {
        let (sign, rest) = match text.strip_prefix('-') {
            Some(rest) => (-1.0, rest),
            None => (1.0, text),
        };
        let found = (text.len() <= LONGEST).then(|| seconds(rest)).flatten();
        let found = found.map(|seconds| of_seconds(sign * seconds));
        found.ok_or_else(|| Error::Value {
            what: "keep_alive",
            value: text.chars().take(LONGEST).collect(),
            why: "want seconds or a time like 5m or 1h30m; 0: at once, -1: for ever".to_owned(),
        })
    }
}

/// More than any span can be is for ever.
fn of_seconds(seconds: f64) -> KeepAlive {
    match seconds < 0.0 {
        true => KeepAlive::FOREVER,
        false => KeepAlive(Duration::try_from_secs_f64(seconds).ok()),
    }
}

/// A whole number of seconds, or numbers with their units.
fn seconds(text: &str) -> Option<f64> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok();
    }
    let in_number = |c: char| c.is_ascii_digit() || c == '.';
    let (mut rest, mut sum) = (text, None);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c| !in_number(c))?);
        let (unit, next) = after.split_at(after.find(in_number).unwrap_or(after.len()));
        let scale = UNITS.iter().find(|row| row.0 == unit)?.1;
        sum = Some(sum.unwrap_or(0.0) + number.parse::<f64>().ok()? * scale);
        rest = next;
    }
    sum
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spans_are_read() {
        let millis = |ms| Some(KeepAlive::of(Duration::from_millis(ms)));
        for (text, wanted) in [
            ("5m", millis(300_000)),
            ("1h30m", millis(5_400_000)),
            ("1.5s", millis(1500)),
            ("250ms", millis(250)),
            ("90", millis(90_000)),
            ("0", millis(0)),
            ("0s", millis(0)),
            ("-1", Some(KeepAlive::FOREVER)),
            ("-5m", Some(KeepAlive::FOREVER)),
            ("999999999999999999999999h", Some(KeepAlive::FOREVER)),
            ("", None),
            ("-", None),
            ("m", None),
            ("5", millis(5000)),
            ("5 m", None),
            ("5d", None),
            ("1.5", None),
            ("1..5s", None),
            ("--5m", None),
            ("5mm", None),
            ("NaN", None),
        ] {
            assert_eq!(text.parse().ok(), wanted, "{text}");
        }
        assert!("1".repeat(65).parse::<KeepAlive>().is_err());
    }

    #[test]
    fn requests_say_numbers_too() {
        let of = |value: Value| KeepAlive::of_json(&value);
        assert_eq!(
            of(json!(0.5)),
            Some(KeepAlive::of(Duration::from_millis(500)))
        );
        assert_eq!(of(json!(-1)), Some(KeepAlive::FOREVER));
        assert_eq!(of(json!(1e300)), Some(KeepAlive::FOREVER));
        assert_eq!(
            of(json!("10m")),
            Some(KeepAlive::of(Duration::from_secs(600)))
        );
        assert_eq!((of(json!(true)), of(json!("soon"))), (None, None));
    }
}
