//! What can be measured, in Prometheus' text form. [`METRICS`] is the one table: a metric is
//! registered, named and documented there, and nowhere else.
//!
//! Requests count with [`Metrics::add`], [`Metrics::set`] and [`Metrics::observe`]; none of them
//! blocks for longer than a short lock. What the engines count themselves is read when somebody
//! looks ([`Metrics::watch`]): it is right also while no request ends.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

/// A line of [`METRICS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "METRICS says what each is")]
pub enum Metric {
    TimeToFirstToken,
    InterTokenLatency,
    QueueTime,
    QueueDepth,
    Running,
    BatchSize,
    CachePagesUsed,
    CachePages,
    PrefixTokensLooked,
    PrefixTokensHit,
    PrefixPages,
    PrefixEvictions,
    Preemptions,
    FolderWritten,
    FolderRead,
    FolderErrors,
    PromptTokens,
    CompletionTokens,
    SpeculativeDrafted,
    SpeculativeAccepted,
    HttpRequests,
    HttpDuration,
    HttpInFlight,
    HttpConnections,
    HttpErrors,
    RefusedKeys,
    StateWriteErrors,
    ModelsLoaded,
    ModelLoad,
    ModelUnloads,
    SpansSent,
    SpansDropped,
}

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// Only up; its name ends in `_total`.
    Counter,
    /// Up and down.
    Gauge,
    /// Counts of seconds up to each bound.
    Histogram,
    /// A histogram that is counted elsewhere.
    Counted(&'static [f64]),
}

const SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];
/// Powers of two, as [`engine::Stats`] counts them.
const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

use Form::{Counted as E, Counter as C, Gauge as G, Histogram as H};
use Metric as M;

/// (metric, name as it is scraped, form, labels, what it says).
pub const METRICS: [(Metric, &str, Form, &[&str], &str); 32] = [
    (
        M::TimeToFirstToken,
        "puna_time_to_first_token_seconds",
        H,
        &["model"],
        "From the arrival of a request to its first token",
    ),
    (
        M::InterTokenLatency,
        "puna_inter_token_latency_seconds",
        E(&engine::GAPS),
        &["model"],
        "From one token of an answer to the next; tokens that were guessed come with the one before",
    ),
    (
        M::QueueTime,
        "puna_queue_time_seconds",
        H,
        &["model"],
        "How long a request waited for the engine",
    ),
    (
        M::QueueDepth,
        "puna_queue_depth",
        G,
        &["model"],
        "Requests that wait for the engine",
    ),
    (
        M::Running,
        "puna_sequences_running",
        G,
        &["model"],
        "Requests that the engine works at",
    ),
    (
        M::BatchSize,
        "puna_batch_size",
        E(SIZES),
        &["model"],
        "Sequences in one forward pass",
    ),
    (
        M::CachePagesUsed,
        "puna_cache_pages_used",
        G,
        &["model"],
        "Pages of keys and values in use",
    ),
    (
        M::CachePages,
        "puna_cache_pages",
        G,
        &["model"],
        "Pages of keys and values that there may be",
    ),
    (
        M::PrefixTokensLooked,
        "puna_prefix_cache_lookup_tokens_total",
        C,
        &["model"],
        "Prompt tokens that were looked up in the cache of prefixes",
    ),
    (
        M::PrefixTokensHit,
        "puna_prefix_cache_hit_tokens_total",
        C,
        &["model"],
        "Prompt tokens that were found there, and not computed again",
    ),
    (
        M::PrefixPages,
        "puna_prefix_cache_pages",
        G,
        &["model"],
        "Pages that hold beginnings for later requests",
    ),
    (
        M::PrefixEvictions,
        "puna_prefix_cache_evictions_total",
        C,
        &["model"],
        "Pages of beginnings that gave way when pages ran out",
    ),
    (
        M::Preemptions,
        "puna_preemptions_total",
        C,
        &["model"],
        "Requests that gave way when pages ran out, and began anew later",
    ),
    (
        M::FolderWritten,
        "puna_cache_dir_written_pages_total",
        C,
        &["model"],
        "Pages of beginnings that were handed to the cache's folder",
    ),
    (
        M::FolderRead,
        "puna_cache_dir_read_pages_total",
        C,
        &["model"],
        "Pages of beginnings that were read back from it",
    ),
    (
        M::FolderErrors,
        "puna_cache_dir_errors_total",
        C,
        &["model"],
        "Its failed reads and writes, of all models that share it",
    ),
    (
        M::PromptTokens,
        "puna_prompt_tokens_total",
        C,
        &["model", "key"],
        "Tokens of prompts",
    ),
    (
        M::CompletionTokens,
        "puna_completion_tokens_total",
        C,
        &["model", "key"],
        "Tokens of answers",
    ),
    (
        M::SpeculativeDrafted,
        "puna_speculative_drafted_tokens_total",
        C,
        &["model"],
        "Tokens that were guessed ahead",
    ),
    (
        M::SpeculativeAccepted,
        "puna_speculative_accepted_tokens_total",
        C,
        &["model"],
        "Guessed tokens that were right",
    ),
    (
        M::HttpRequests,
        "puna_http_requests_total",
        C,
        &["route", "method", "status"],
        "Requests, when their answer has ended",
    ),
    (
        M::HttpDuration,
        "puna_http_request_duration_seconds",
        H,
        &["route"],
        "From the arrival of a request to the end of its answer",
    ),
    (
        M::HttpInFlight,
        "puna_http_requests_in_flight",
        G,
        &[],
        "Requests whose answer has not ended",
    ),
    (
        M::HttpConnections,
        "puna_http_connections",
        G,
        &[],
        "Open connections",
    ),
    (
        M::HttpErrors,
        "puna_http_errors_total",
        C,
        &["code"],
        "Requests that ended in an error, by its code",
    ),
    (
        M::RefusedKeys,
        "puna_refused_keys_total",
        C,
        &[],
        "Requests with a key that is unknown, revoked or past its time",
    ),
    (
        M::StateWriteErrors,
        "puna_state_write_errors_total",
        C,
        &[],
        "Failed writes of usage and audit; they are tried again",
    ),
    (
        M::ModelsLoaded,
        "puna_models_loaded",
        G,
        &[],
        "Models that are loaded, with --on-demand",
    ),
    (
        M::ModelLoad,
        "puna_model_load_seconds",
        H,
        &["model"],
        "How long it took to load a model for a request",
    ),
    (
        M::ModelUnloads,
        "puna_model_unloads_total",
        C,
        &["model", "why"],
        "Models that were unloaded: memory (for another), idle, asked, stopped (its engine)",
    ),
    (
        M::SpansSent,
        "puna_spans_sent_total",
        C,
        &[],
        "Spans that a collector has taken (`--otlp`)",
    ),
    (
        M::SpansDropped,
        "puna_spans_dropped_total",
        C,
        &[],
        "Spans that found no room, or that no collector took",
    ),
];

/// The form of what [`Metrics::text`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

enum Series {
    Counter(Family<Labels, Counter<u64, AtomicU64>>),
    Gauge(Family<Labels, Gauge<i64, AtomicI64>>),
    Histogram(Histograms),
    Counted(Family<Labels, Totals>, &'static [f64]),
}

/// Each bound, how often there was a value up to it that is beyond the one before, and the sum of
/// all.
#[derive(Clone, Debug, Default)]
struct Totals(Arc<Mutex<Total>>);

type Total = (Vec<(f64, u64)>, f64);

impl Totals {
    fn get(&self) -> MutexGuard<'_, Total> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TypedMetric for Totals {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Totals {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        let (buckets, sum) = self.get().clone();
        let count = buckets.iter().map(|b| b.1).sum();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// Brings up to date what is counted elsewhere.
type Source = Box<dyn Fn(&Metrics) + Send + Sync>;

/// All metrics of one server.
pub struct Metrics {
    registry: Registry,
    series: Vec<Series>,
    sources: Mutex<Vec<Source>>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::default();
        let series = METRICS.iter().map(|&(_, name, form, labels, help)| {
            let series = match form {
                C => {
                    let family = Family::default();
                    registry.register(name.trim_end_matches("_total"), help, family.clone());
                    Series::Counter(family)
                }
                G => {
                    let family = Family::default();
                    registry.register(name, help, family.clone());
                    Series::Gauge(family)
                }
                H => {
                    let of_seconds = || Histogram::new(SECONDS.iter().copied());
                    let family = Histograms::new_with_constructor(of_seconds);
                    registry.register(name, help, family.clone());
                    Series::Histogram(family)
                }
                E(bounds) => {
                    let family = Family::default();
                    registry.register(name, help, family.clone());
                    Series::Counted(family, bounds)
                }
            };
            // What has no labels is there from the beginning, at zero.
            if labels.is_empty() {
                series.touch();
            }
            series
        });
        let series = series.collect();
        let sources = Mutex::default();
        Metrics {
            registry,
            series,
            sources,
        }
    }
}

impl Series {
    fn touch(&self) {
        match self {
            Series::Counter(family) => drop(family.get_or_create(&Labels::new())),
            Series::Gauge(family) => drop(family.get_or_create(&Labels::new())),
            Series::Histogram(family) => drop(family.get_or_create(&Labels::new())),
            Series::Counted(family, _) => drop(family.get_or_create(&Labels::new())),
        }
    }
}

impl Metrics {
    /// Counts `n` more. The values are those of the metric's labels, in the table's order.
    pub fn add(&self, metric: Metric, values: &[&str], n: u64) {
        if let (Series::Counter(family), labels) = self.find(metric, values) {
            family.get_or_create(&labels).inc_by(n);
        }
    }

    /// The counter, which is counted elsewhere, is `total` now.
    pub fn total(&self, metric: Metric, values: &[&str], total: u64) {
        if let (Series::Counter(family), labels) = self.find(metric, values) {
            let counter = family.get_or_create(&labels);
            counter.inner().store(total, Ordering::Relaxed);
        }
    }

    /// The histogram, which is counted elsewhere: how many values up to each bound and beyond, and
    /// their sum.
    pub fn counted(&self, metric: Metric, values: &[&str], counts: &[u64], sum: f64) {
        if let (Series::Counted(family, bounds), labels) = self.find(metric, values) {
            let bounds = bounds.iter().copied().chain([f64::INFINITY]);
            let counts = counts.iter().copied().chain(std::iter::repeat(0));
            *family.get_or_create(&labels).get() = (bounds.zip(counts).collect(), sum);
        }
    }

    /// Calls `source` whenever somebody looks, to bring up to date what is counted elsewhere.
    pub fn watch(&self, source: impl Fn(&Metrics) + Send + Sync + 'static) {
        let sources = self.sources.lock();
        let mut sources = sources.unwrap_or_else(PoisonError::into_inner);
        sources.push(Box::new(source));
    }

    /// The gauge is `value` now.
    pub fn set(&self, metric: Metric, values: &[&str], value: i64) {
        if let (Series::Gauge(family), labels) = self.find(metric, values) {
            family.get_or_create(&labels).set(value);
        }
    }

    /// Moves the gauge by `n`.
    pub fn shift(&self, metric: Metric, values: &[&str], n: i64) {
        if let (Series::Gauge(family), labels) = self.find(metric, values) {
            family.get_or_create(&labels).inc_by(n);
        }
    }

    /// Puts a value (seconds, or a size) into the histogram.
    pub fn observe(&self, metric: Metric, values: &[&str], value: f64) {
        if let (Series::Histogram(family), labels) = self.find(metric, values) {
            family.get_or_create(&labels).observe(value);
        }
    }

    fn find(&self, metric: Metric, values: &[&str]) -> (&Series, Labels) {
        let (_, name, _, labels, _) = METRICS[metric as usize];
        debug_assert_eq!(labels.len(), values.len(), "labels of {name}");
        let pairs = labels.iter().zip(values);
        let pairs = pairs.map(|(label, value)| (*label, (*value).to_owned()));
        (&self.series[metric as usize], pairs.collect())
    }

    /// Everything, as [`CONTENT_TYPE`].
    #[must_use]
    pub fn text(&self) -> String {
        let sources = self.sources.lock();
        let sources = sources.unwrap_or_else(PoisonError::into_inner);
        sources.iter().for_each(|source| source(self));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum_and_its_names_are_alike() {
        for (i, (metric, name, form, _, help)) in METRICS.into_iter().enumerate() {
            assert_eq!(metric as usize, i, "{name}");
            assert!(name.starts_with("puna_") && !help.is_empty(), "{name}");
            assert_eq!(form == C, name.ends_with("_total"), "{name}");
            let seconds = form != E(SIZES) && matches!(form, H | E(_));
            assert_eq!(seconds, name.ends_with("_seconds"), "{name}");
        }
    }

    #[test]
    fn every_metric_appears_once_it_has_moved() {
        let metrics = Metrics::default();
        for (metric, _, form, labels, _) in METRICS {
            let values: Vec<&str> = labels.iter().map(|_| "x").collect();
            match form {
                C => metrics.add(metric, &values, 3),
                G => metrics.set(metric, &values, 4),
                H => metrics.observe(metric, &values, 0.5),
                E(_) => metrics.counted(metric, &values, &[0, 1], 2.0),
            }
        }
        let text = metrics.text();
        for (_, name, form, labels, help) in METRICS {
            let labels: Vec<String> = labels.iter().map(|l| format!("{l}=\"x\"")).collect();
            let labels = format!("{{{}}}", labels.join(","));
            let line = match form {
                C => format!("\n{name}{labels} 3\n"),
                G => format!("\n{name}{labels} 4\n"),
                H | E(_) => format!("\n{name}_count{labels} 1\n"),
            };
            assert!(text.contains(&line), "{line} in {text}");
            assert!(text.contains(help), "{help}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_is_counted_elsewhere_is_read_when_somebody_looks() {
        let metrics = Metrics::default();
        let seen = Arc::new(AtomicU64::new(7));
        let source = seen.clone();
        metrics.watch(move |m| {
            let n = source.load(Ordering::Relaxed);
            m.total(Metric::Preemptions, &["m"], n);
            m.counted(Metric::BatchSize, &["m"], &[n, 0, 1], (n + 4) as f64);
        });
        assert!(
            metrics
                .text()
                .contains("puna_preemptions_total{model=\"m\"} 7\n")
        );
        seen.store(9, Ordering::Relaxed);
        let text = metrics.text();
        for line in [
            "puna_preemptions_total{model=\"m\"} 9",
            "puna_batch_size_sum{model=\"m\"} 13.0",
            "puna_batch_size_count{model=\"m\"} 10",
            "puna_batch_size_bucket{le=\"2.0\",model=\"m\"} 9",
            "puna_batch_size_bucket{le=\"4.0\",model=\"m\"} 10",
            "puna_batch_size_bucket{le=\"+Inf\",model=\"m\"} 10",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
        }
    }

    #[test]
    fn a_metric_of_another_form_is_left_alone() {
        let metrics = Metrics::default();
        metrics.set(Metric::PromptTokens, &["m", "k"], 5);
        metrics.add(Metric::QueueDepth, &["m"], 5);
        assert!(!metrics.text().contains(" 5\n"));
    }
}
