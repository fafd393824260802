//! How much each key may still use: requests and tokens a minute, tokens a month.
//!
//! A minute's quota is a bucket that holds a minute's worth and fills steadily. The month is the
//! calendar's (UTC), and what it has used is read from the database when the server starts.
//!
//! A request takes one request when it is let in. The most tokens that it can use are held for it
//! when they are known, before any work, so that requests which run together cannot use more than
//! there is; what it did not use is there again when it has ended. Tokens that are counted without
//! having been held may overdraw: then the next request waits until the bucket has filled again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::error::{ApiError, Kind};
use crate::principal::Quotas;
use crate::time::{month_began, next_month};

/// One unit is what a quota of one a minute gives in a millisecond.
const UNITS: i64 = 60_000;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    units: i64,
    at: u64,
}

impl Bucket {
    fn full(quota: u32, at: u64) -> Bucket {
        let units = i64::from(quota) * UNITS;
        Bucket { units, at }
    }

    /// Fills it up to `now`.
    fn fill(&mut self, quota: u32, now: u64) {
        let passed = i64::try_from(now.saturating_sub(self.at)).unwrap_or(i64::MAX);
        let filled = self
            .units
            .saturating_add(i64::from(quota).saturating_mul(passed));
        self.units = filled.min(i64::from(quota) * UNITS);
        self.at = now;
    }

    fn take(&mut self, n: u64) {
        let units = i64::try_from(n).unwrap_or(i64::MAX).saturating_mul(UNITS);
        self.units = self.units.saturating_sub(units);
    }

    /// Puts back what was taken; more than a minute's worth it never holds.
    fn give(&mut self, n: u64, quota: u32) {
        let units = i64::try_from(n).unwrap_or(i64::MAX).saturating_mul(UNITS);
        let full = i64::from(quota) * UNITS;
        self.units = self.units.saturating_add(units).min(full);
    }

    fn left(self) -> u64 {
        u64::try_from(self.units / UNITS).unwrap_or(0)
    }

    /// Until it holds `n`.
    fn wait(self, quota: u32, n: u64) -> Duration {
        let wanted = i64::try_from(n).unwrap_or(i64::MAX).saturating_mul(UNITS);
        let lacking = u64::try_from(wanted.saturating_sub(self.units)).unwrap_or(0);
        Duration::from_millis(lacking.div_ceil(u64::from(quota).max(1)))
    }
}

#[derive(Debug)]
struct Used {
    requests: Bucket,
    tokens: Bucket,
    /// Held for requests under way, and taken from `tokens` already.
    held: u64,
    month: u64,
    /// Without those that are held.
    month_tokens: u64,
}

impl Used {
    /// Buckets start fuller than any quota: filling cuts them down to the key's own.
    fn new(now: u64) -> Used {
        Used {
            requests: Bucket::full(u32::MAX, now),
            tokens: Bucket::full(u32::MAX, now),
            held: 0,
            month: month_began(now),
            month_tokens: 0,
        }
    }
}

/// What all keys have used.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<HashMap<Arc<str>, Used>>);

/// What is left of one quota, for the headers.
#[derive(Debug, Clone)]
pub(crate) struct Left {
    names: [HeaderName; 3],
    limit: u32,
    left: u64,
    reset: Duration,
}

const REQUESTS: [&str; 3] = [
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
];
const TOKENS: [&str; 3] = [
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
];

impl Left {
    fn of(names: [&'static str; 3], quota: u32, bucket: Bucket) -> Left {
        Left {
            names: names.map(HeaderName::from_static),
            limit: quota,
            left: bucket.left(),
            reset: bucket.wait(quota, u64::from(quota)),
        }
    }

    /// Says it in OpenAI's headers.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let values = [
            self.limit.to_string(),
            self.left.to_string(),
            span(self.reset),
        ];
        for (name, value) in self.names.iter().zip(values) {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
    }
}

/// A time as OpenAI writes it: `120ms`, `1s`, `6m0s`.
fn span(time: Duration) -> String {
    let ms = time.as_millis();
    match (ms / 60_000, ms % 60_000) {
        (0, ms) if ms < 1000 => format!("{ms}ms"),
        (0, ms) => format!("{}s", ms.div_ceil(1000)),
        (minutes, ms) => format!("{minutes}m{}s", ms / 1000),
    }
}

impl Meter {
    /// Starts with what keys have used this month.
    pub(crate) fn new(month: Vec<(String, u64)>, now: u64) -> Meter {
        let meter = Meter::default();
        for (key, tokens) in month {
            let used = Used {
                month_tokens: tokens,
                ..Used::new(now)
            };
            meter.all().insert(Arc::from(key), used);
        }
        meter
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Arc<str>, Used>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request through and counts it, or says when to come again.
    pub(crate) fn admit(
        &self,
        key: &Arc<str>,
        quotas: &Quotas,
        now: u64,
    ) -> (Result<(), ApiError>, Vec<Left>) {
        let mut all = self.all();
        let used = used(&mut all, key, quotas, now);
        let mut result = afford(used, quotas, 1, now);
        if let (Ok(()), Some(rpm)) = (&result, quotas.rpm) {
            if used.requests.left() >= 1 {
                used.requests.take(1);
            } else {
                let what = format!("the key may send {rpm} requests a minute");
                let wait = used.requests.wait(rpm, 1);
                result = Err(ApiError::new(Kind::Requests, what).retry_after(wait));
            }
        }
        (result, left(used, quotas))
    }

    /// Holds tokens for a request: `most`, or what is left of the quotas if that is less, but
    /// `least` at least. Returns how many.
    pub(crate) fn hold(
        &self,
        key: &Arc<str>,
        quotas: &Quotas,
        (least, most): (u64, u64),
        now: u64,
    ) -> Result<u64, ApiError> {
        let mut all = self.all();
        let used = used(&mut all, key, quotas, now);
        afford(used, quotas, least, now)?;
        let minute = quotas.tpm.map_or(u64::MAX, |_| used.tokens.left());
        let month = quotas.monthly_tokens.map_or(u64::MAX, |monthly| {
            monthly.saturating_sub(used.month_tokens.saturating_add(used.held))
        });
        let held = most.max(least).min(minute).min(month);
        used.tokens.take(held);
        used.held = used.held.saturating_add(held);
        Ok(held)
    }

    /// What was held is free again: what of it was used has been spent.
    pub(crate) fn release(&self, key: &Arc<str>, quotas: &Quotas, tokens: u64, now: u64) {
        let mut all = self.all();
        let used = used(&mut all, key, quotas, now);
        used.tokens.give(tokens, quotas.tpm.unwrap_or(0));
        used.held = used.held.saturating_sub(tokens);
    }

    /// What is left of the minute, for the headers.
    pub(crate) fn left(&self, key: &Arc<str>, quotas: &Quotas, now: u64) -> Vec<Left> {
        let mut all = self.all();
        left(used(&mut all, key, quotas, now), quotas)
    }

    pub(crate) fn month_tokens(&self, key: &str, now: u64) -> u64 {
        let all = self.all();
        let used = all.get(key).filter(|used| used.month == month_began(now));
        used.map_or(0, |used| used.month_tokens)
    }

    /// Counts tokens that were used.
    pub(crate) fn spend(&self, key: &Arc<str>, quotas: &Quotas, tokens: u64, now: u64) {
        let mut all = self.all();
        let used = used(&mut all, key, quotas, now);
        used.tokens.take(tokens);
        used.month_tokens = used.month_tokens.saturating_add(tokens);
    }
}

/// The key's account, brought up to now.
fn used<'a>(
    all: &'a mut HashMap<Arc<str>, Used>,
    key: &Arc<str>,
    quotas: &Quotas,
    now: u64,
) -> &'a mut Used {
    let (rpm, tpm) = (quotas.rpm.unwrap_or(0), quotas.tpm.unwrap_or(0));
    let used = all.entry(key.clone()).or_insert_with(|| Used::new(now));
    used.requests.fill(rpm, now);
    used.tokens.fill(tpm, now);
    let month = month_began(now);
    if used.month != month {
        (used.month, used.month_tokens) = (month, 0);
    }
    used
}

/// What is left of each quota that a key has.
fn left(used: &Used, quotas: &Quotas) -> Vec<Left> {
    let requests = quotas.rpm.map(|rpm| Left::of(REQUESTS, rpm, used.requests));
    let tokens = quotas.tpm.map(|tpm| Left::of(TOKENS, tpm, used.tokens));
    requests.into_iter().chain(tokens).collect()
}

fn afford(used: &Used, quotas: &Quotas, tokens: u64, now: u64) -> Result<(), ApiError> {
    if let Some(monthly) = quotas.monthly_tokens {
        let then = used.month_tokens.saturating_add(tokens);
        if then > monthly {
            let what = format!(
                "the key may use {monthly} tokens a month, and has used {}",
                used.month_tokens
            );
            let wait = Duration::from_millis(next_month(now).saturating_sub(now));
            return Err(ApiError::new(Kind::Month, what).retry_after(wait));
        }
        if then.saturating_add(used.held) > monthly {
            let what = format!(
                "the key may use {monthly} tokens a month, and what is left is held for its requests under way"
            );
            let wait = Duration::from_secs(1);
            return Err(ApiError::new(Kind::Tokens, what).retry_after(wait));
        }
    }
    if let Some(tpm) = quotas.tpm
        && used.tokens.left() < tokens
    {
        if u64::from(tpm) < tokens {
            let what =
                format!("{tokens} tokens are more than the {tpm} a minute that the key may use");
            // No use in coming again.
            return Err(ApiError::new(Kind::Tokens, what));
        }
        let what = format!("the key may use {tpm} tokens a minute");
        let wait = used.tokens.wait(tpm, tokens);
        return Err(ApiError::new(Kind::Tokens, what).retry_after(wait));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(rpm: u32, tpm: u32, monthly_tokens: u64) -> Quotas {
        let some = |n| (n > 0).then_some(n);
        Quotas {
            rpm: some(rpm),
            tpm: some(tpm),
            monthly_tokens: (monthly_tokens > 0).then_some(monthly_tokens),
        }
    }

    fn wait(result: Result<(), ApiError>, kind: Kind) -> u64 {
        let error = result.unwrap_err();
        assert_eq!(error.kind, kind);
        u64::try_from(error.retry_after.unwrap().as_millis()).unwrap()
    }

    #[test]
    fn requests_a_minute() {
        let (meter, key, q) = (Meter::default(), Arc::from("k"), quotas(3, 0, 0));
        for left in [2, 1, 0] {
            let (result, said) = meter.admit(&key, &q, 1000);
            assert!(result.is_ok());
            assert_eq!((said.len(), said[0].left), (1, left));
        }
        assert_eq!(wait(meter.admit(&key, &q, 1000).0, Kind::Requests), 20_000);
        assert_eq!(
            wait(meter.admit(&key, &q, 11_000).0, Kind::Requests),
            10_000
        );
        assert!(meter.admit(&key, &q, 21_000).0.is_ok());
        assert!(meter.admit(&key, &q, 21_000).0.is_err());
        // Another key has its own, and a clock that goes back gives nothing.
        assert!(meter.admit(&Arc::from("other"), &q, 21_000).0.is_ok());
        assert!(meter.admit(&key, &q, 500).0.is_err());
        // A minute's worth is all that is saved up.
        let later = 21_000 + 86_400_000;
        let passed = (0..10)
            .filter(|_| meter.admit(&key, &q, later).0.is_ok())
            .count();
        assert_eq!(passed, 3);
    }

    #[test]
    fn tokens_a_minute() {
        let (meter, key, q) = (Meter::default(), Arc::from("k"), quotas(0, 600, 0));
        let held = meter.hold(&key, &q, (600, 600), 0);
        meter.release(&key, &q, held.unwrap(), 0);
        let never = meter.hold(&key, &q, (700, 700), 0).unwrap_err();
        assert_eq!((never.kind, never.retry_after), (Kind::Tokens, None));
        assert!(meter.admit(&key, &q, 0).0.is_ok());
        // An answer may overdraw: then the next one waits.
        meter.spend(&key, &q, 900, 0);
        assert_eq!(wait(meter.admit(&key, &q, 0).0, Kind::Tokens), 30_100);
        assert!(meter.admit(&key, &q, 30_100).0.is_ok());
        let (_, said) = meter.admit(&key, &q, 45_000);
        assert_eq!((said[0].limit, said[0].left), (600, 150));
    }

    #[test]
    fn tokens_a_month() {
        let december = crate::time::parse("at", "2026-12-31T23:00:00Z").unwrap();
        let meter = Meter::new(vec![("k".into(), 90)], december);
        let (key, q) = (Arc::from("k"), quotas(0, 0, 100));
        assert!(meter.admit(&key, &q, december).0.is_ok());
        meter.spend(&key, &q, 10, december);
        assert_eq!(
            wait(meter.admit(&key, &q, december).0, Kind::Month),
            3_600_000
        );
        assert!(meter.admit(&key, &q, december + 3_600_000).0.is_ok());
    }

    #[test]
    fn what_is_held_is_nobody_elses() {
        let (meter, key, q) = (Meter::default(), Arc::from("k"), quotas(0, 100, 1000));
        assert_eq!(meter.hold(&key, &q, (60, 60), 0).unwrap(), 60);
        assert_eq!(
            wait(meter.hold(&key, &q, (41, 41), 0).map(drop), Kind::Tokens),
            600
        );
        assert_eq!(
            meter.hold(&key, &q, (1, 90), 0).unwrap(),
            40,
            "what is left"
        );
        assert!(meter.admit(&key, &q, 0).0.is_err());
        // 10 of the first were used, none of the second.
        meter.spend(&key, &q, 10, 0);
        meter.release(&key, &q, 60, 0);
        meter.release(&key, &q, 40, 0);
        let (result, said) = meter.admit(&key, &q, 0);
        assert!(result.is_ok() && said[0].left == 90);
        assert_eq!(meter.month_tokens("k", 0), 10);
        // Given back late, it makes no more than a minute's worth.
        assert_eq!(meter.hold(&key, &q, (90, 90), 0).unwrap(), 90);
        meter.release(&key, &q, 90, 120_000);
        assert_eq!(meter.left(&key, &q, 120_000)[0].left, 100);
    }

    #[test]
    fn the_month_holds_too() {
        let (meter, key, q) = (Meter::default(), Arc::from("k"), quotas(0, 0, 100));
        meter.spend(&key, &q, 30, 0);
        assert_eq!(meter.hold(&key, &q, (50, 50), 0).unwrap(), 50);
        // What others hold may come back soon; what is used does not.
        assert_eq!(
            wait(meter.hold(&key, &q, (21, 21), 0).map(drop), Kind::Tokens),
            1000
        );
        let month = meter.hold(&key, &q, (71, 71), 0).map(drop);
        assert!(wait(month, Kind::Month) > 1000);
        assert_eq!(meter.hold(&key, &q, (1, 90), 0).unwrap(), 20);
        meter.spend(&key, &q, 50, 0);
        meter.release(&key, &q, 50, 0);
        meter.release(&key, &q, 20, 0);
        assert_eq!(meter.month_tokens("k", 0), 80);
        assert_eq!(meter.hold(&key, &q, (1, 90), 0).unwrap(), 20);
    }

    #[test]
    fn many_at_once_hold_no_more_than_there_is() {
        let (meter, key, q) = (Meter::default(), Arc::<str>::from("k"), quotas(0, 100, 70));
        let held: Vec<u64> = std::thread::scope(|scope| {
            let hold = || meter.hold(&key, &q, (9, 9), 0).unwrap_or(0);
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(hold)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(held.iter().sum::<u64>(), 63, "{held:?}");
    }

    #[test]
    fn huge_numbers_do_not_wrap() {
        let (meter, key, q) = (
            Meter::default(),
            Arc::from("k"),
            quotas(u32::MAX, u32::MAX, u64::MAX),
        );
        meter.spend(&key, &q, u64::MAX, 0);
        meter.spend(&key, &q, u64::MAX, u64::MAX);
        assert!(meter.admit(&key, &q, u64::MAX).0.is_err());
        let most = (u64::MAX, u64::MAX);
        assert!(meter.hold(&key, &q, most, 0).is_err());
    }

    #[test]
    fn spans() {
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1001, "2s"),
            (360_000, "6m0s"),
            (61_500, "1m1s"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn a_restart_does_not_empty_the_minute() {
        let key: Arc<str> = "k".into();
        let meter = Meter::new(vec![("k".into(), 5)], 1_000);
        assert!(meter.admit(&key, &quotas(1, 10, 100), 1_000).0.is_ok());
        assert_eq!(meter.month_tokens("k", 1_000), 5);
    }
}
