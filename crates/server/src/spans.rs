//! Traces for OpenTelemetry: one span a request, in OTLP's JSON form, sent by a thread of its own.
//!
//! Knows OTLP and the names of its conventions for HTTP and for generative AI. Must not know how
//! bytes reach a collector: that is the [`Exporter`]'s. Nothing that a client said or was told is in
//! a span. No request waits for it: spans that find no room, or that nobody takes, are counted and
//! forgotten.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use serde_json::{Value, json};

use crate::error::Error;
use crate::metrics::{Metric, Metrics};

/// Takes a batch of spans, the JSON of an `ExportTraceServiceRequest`, or says why not.
pub type Exporter = Arc<dyn Fn(Vec<u8>) -> Result<(), String> + Send + Sync>;

/// Spans that may wait.
const QUEUE: usize = 4096;
/// Spans of one batch, and how long the first of them waits for others.
const TOGETHER: usize = 512;
const WAIT: Duration = Duration::from_secs(1);
/// How long the end waits for what is left to be sent.
const LAST: Duration = Duration::from_secs(5);

/// (route, what it does in the words of the convention).
const OPERATIONS: [(&str, &str); 6] = [
    ("/v1/chat/completions", "chat"),
    ("/v1/completions", "text_completion"),
    ("/infill", "text_completion"),
    ("/v1/embeddings", "embeddings"),
    ("/v1/rerank", "rerank"),
    ("/rerank", "rerank"),
];

/// The span of the client, from the header `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    trace: String,
    span: String,
}

/// The client decided that its trace is not recorded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unrecorded;

/// Who asked, as the W3C's Trace Context writes it. `Err`: its trace is not recorded.
pub(crate) fn parent(headers: &HeaderMap) -> Result<Option<Parent>, Unrecorded> {
    let said = headers.get("traceparent").and_then(|v| v.to_str().ok());
    let parts: Vec<&str> = said.unwrap_or_default().split('-').collect();
    let hex = |text: &str, n: usize| {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        text.len() == n && text.bytes().all(digit)
    };
    let [version, trace, span, flags, more @ ..] = &parts[..] else {
        return Ok(None);
    };
    let later = *version != "00" && *version != "ff";
    let sound = hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    let zero = |id: &str| id.bytes().all(|b| b == b'0');
    if !sound || !(later || *version == "00" && more.is_empty()) || zero(trace) || zero(span) {
        return Ok(None);
    }
    match u8::from_str_radix(flags, 16) {
        Ok(flags) if flags & 1 == 0 => Err(Unrecorded),
        _ => Ok(Some(Parent {
            trace: (*trace).to_owned(),
            span: (*span).to_owned(),
        })),
    }
}

/// What is said of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Span {
    pub(crate) parent: Option<Parent>,
    /// The request's id.
    pub(crate) id: String,
    pub(crate) method: String,
    pub(crate) route: String,
    pub(crate) status: u16,
    /// The code of the error that it ended in.
    pub(crate) code: Option<&'static str>,
    /// When it came, in milliseconds since 1970 (UTC), and how long it took.
    pub(crate) at: u64,
    pub(crate) took: Duration,
    pub(crate) model: String,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
}

impl Span {
    /// As OTLP writes it: ids in hexadecimal, 64-bit numbers as strings.
    fn json(&self) -> Value {
        let operation = OPERATIONS.iter().find(|(route, _)| *route == self.route);
        let operation = operation
            .map(|(_, name)| *name)
            .filter(|_| !self.model.is_empty());
        let name = match operation {
            Some(operation) => format!("{operation} {}", self.model),
            None => format!("{} {}", self.method, self.route),
        };
        let mut attributes = vec![
            text("http.request.method", &self.method),
            text("http.route", &self.route),
            number("http.response.status_code", self.status.into()),
            text("puna.request.id", &self.id),
        ];
        if let Some(operation) = operation {
            attributes.extend([
                text("gen_ai.operation.name", operation),
                text("gen_ai.provider.name", "puna"),
                text("gen_ai.request.model", &self.model),
                text("gen_ai.response.model", &self.model),
                number("gen_ai.usage.input_tokens", self.prompt_tokens),
                number("gen_ai.usage.output_tokens", self.completion_tokens),
            ]);
        }
        attributes.extend(self.code.map(|code| text("error.type", code)));
        let begin = u128::from(self.at) * 1_000_000;
        let mut span = json!({
            "spanId": crate::random_hex::<8>(),
            "name": name,
            "kind": 2,
            "startTimeUnixNano": begin.to_string(),
            "endTimeUnixNano": (begin + self.took.as_nanos()).to_string(),
            "attributes": attributes,
            // What a client did wrong is no error of ours.
            "status": if self.status >= 500 { json!({ "code": 2 }) } else { json!({}) },
        });
        match &self.parent {
            Some(parent) => {
                span["traceId"] = json!(parent.trace);
                span["parentSpanId"] = json!(parent.span);
            }
            None => span["traceId"] = json!(crate::random_hex::<16>()),
        }
        span
    }
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn number(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

/// A batch as a request to a collector.
fn batch(spans: &[Span]) -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION");
    let spans: Vec<Value> = spans.iter().map(Span::json).collect();
    let scope = json!({ "scope": { "name": "puna", "version": version }, "spans": spans });
    let resource = [
        text("service.name", "puna"),
        text("service.version", version),
    ];
    let all = json!({ "resourceSpans": [{
        "resource": { "attributes": resource }, "scopeSpans": [scope],
    }] });
    all.to_string().into_bytes()
}

/// The thread that sends, and the way to it.
pub(crate) struct Spans {
    queue: Mutex<Option<SyncSender<Span>>>,
    metrics: Arc<Metrics>,
    done: Mutex<Receiver<()>>,
}

impl Spans {
    pub(crate) fn start(exporter: Exporter, metrics: Arc<Metrics>) -> Result<Spans, Error> {
        let (queue, spans) = sync_channel(QUEUE);
        let (done, when_done) = channel();
        let shared = metrics.clone();
        std::thread::Builder::new()
            .name("puna-spans".into())
            .spawn(move || {
                send_all(&spans, &exporter, &shared);
                drop::<Sender<()>>(done);
            })
            .map_err(Error::io("start the thread that sends traces"))?;
        Ok(Spans {
            queue: Mutex::new(Some(queue)),
            metrics,
            done: Mutex::new(when_done),
        })
    }

    /// Puts a span in line, if there is room.
    pub(crate) fn put(&self, span: Span) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.as_ref().is_none_or(|q| q.try_send(span).is_err()) {
            self.metrics.add(Metric::SpansDropped, &[], 1);
        }
    }

    /// Takes nothing new, and waits a little for what is left.
    pub(crate) fn close(&self) {
        drop(
            self.queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if done.recv_timeout(LAST) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the traces of the last requests were not sent in time");
        }
    }
}

/// The thread: until the sender is gone.
fn send_all(queue: &Receiver<Span>, exporter: &Exporter, metrics: &Metrics) {
    let mut works = true;
    while let Ok(first) = queue.recv() {
        let (mut spans, until) = (vec![first], Instant::now() + WAIT);
        while spans.len() < TOGETHER {
            let left = until.saturating_duration_since(Instant::now());
            match queue.recv_timeout(left) {
                Ok(span) => spans.push(span),
                Err(_) => break,
            }
        }
        let sent = exporter(batch(&spans));
        let metric = match &sent {
            Ok(()) => Metric::SpansSent,
            Err(_) => Metric::SpansDropped,
        };
        metrics.add(metric, &[], spans.len() as u64);
        if let Err(why) = &sent
            && works
        {
            tracing::warn!("traces cannot be sent, and are dropped until they can: {why}");
        }
        works = sent.is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(header: &str) -> Result<Option<Parent>, Unrecorded> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", header.parse().unwrap());
        parent(&headers)
    }

    #[test]
    fn parents_are_read_as_they_are_written() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let known = Parent {
            trace: trace.into(),
            span: span.into(),
        };
        assert_eq!(
            of(&format!("00-{trace}-{span}-01")),
            Ok(Some(known.clone()))
        );
        assert_eq!(of(&format!("01-{trace}-{span}-03-more")), Ok(Some(known)));
        assert_eq!(of(&format!("00-{trace}-{span}-00")), Err(Unrecorded));
        let zero = "0".repeat(32);
        for bad in [
            "",
            "00",
            &format!("00-{trace}-{span}"),
            &format!("00-{trace}-{span}-01-more"),
            &format!("ff-{trace}-{span}-01"),
            &format!("00-{}-{span}-01", trace.to_uppercase()),
            &format!("00-{zero}-{span}-01"),
            &format!("00-{span}-{trace}-01"),
        ] {
            assert_eq!(of(bad), Ok(None), "{bad}");
        }
        assert_eq!(parent(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn a_span_says_what_the_conventions_ask_for() {
        let span = Span {
            method: "POST".into(),
            route: "/v1/chat/completions".into(),
            status: 200,
            at: 1_700_000_000_000,
            took: Duration::from_millis(1500),
            model: "m".into(),
            prompt_tokens: 7,
            completion_tokens: 9,
            ..Span::default()
        };
        let sent: Value = serde_json::from_slice(&batch(std::slice::from_ref(&span))).unwrap();
        let one = &sent["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!(one["name"], "chat m");
        assert_eq!(one["kind"], 2);
        assert_eq!(one["startTimeUnixNano"], "1700000000000000000");
        assert_eq!(one["endTimeUnixNano"], "1700000001500000000");
        assert_eq!(one["traceId"].as_str().unwrap().len(), 32);
        assert_eq!(one["spanId"].as_str().unwrap().len(), 16);
        let said = one["attributes"].to_string();
        for part in [
            r#"{"key":"gen_ai.operation.name","value":{"stringValue":"chat"}}"#,
            r#"{"key":"gen_ai.usage.input_tokens","value":{"intValue":"7"}}"#,
            r#"{"key":"gen_ai.usage.output_tokens","value":{"intValue":"9"}}"#,
            r#"{"key":"http.response.status_code","value":{"intValue":"200"}}"#,
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
        let failed = Span {
            status: 500,
            code: Some("internal_error"),
            model: String::new(),
            ..span
        };
        let one = failed.json();
        assert_eq!(
            (&one["status"]["code"], &one["name"]),
            (&json!(2), &json!("POST /v1/chat/completions"))
        );
        assert!(one["attributes"].to_string().contains("error.type"));
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let metrics = Arc::new(Metrics::default());
        let (open, gate) = channel::<()>();
        let gate = Mutex::new(gate);
        let exporter = move |_| {
            // Closed until the other end is gone.
            let _ = gate.lock().unwrap().recv();
            Ok(())
        };
        let spans = Spans::start(Arc::new(exporter), metrics.clone()).unwrap();
        let all = QUEUE + TOGETHER + 100;
        for _ in 0..all {
            spans.put(Span::default());
        }
        drop(open);
        spans.close();
        let text = metrics.text();
        let value = |name: &str| -> usize {
            let line = text.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.trim().parse().ok()).unwrap()
        };
        let dropped = value("puna_spans_dropped_total{} ");
        assert!(dropped >= 100, "{dropped}");
        assert_eq!(value("puna_spans_sent_total{} ") + dropped, all);
    }
}
