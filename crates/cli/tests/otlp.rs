//! Traces of `puna serve`, taken by a collector on this machine.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::Home;
use common::server::{Server, completion, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// A collector: its address, and what it is sent (request line, body).
fn collector(status: &'static str) -> (String, Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.expect("a connection"));
            // A connection carries many batches.
            loop {
                let (mut line, mut head, mut length) = (String::new(), String::new(), 0);
                if reader.read_line(&mut line).is_err() || line.is_empty() {
                    break;
                }
                while head != "\r\n" {
                    head.clear();
                    if reader.read_line(&mut head).expect("a header") == 0 {
                        return;
                    }
                    let lower = head.to_ascii_lowercase();
                    if let Some(value) = lower.strip_prefix("content-length:") {
                        length = value.trim().parse().expect("a length");
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).expect("the body");
                let body = serde_json::from_slice(&body).expect("JSON");
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}");
                reader
                    .get_mut()
                    .write_all(answer.as_bytes())
                    .expect("written");
                if sender.send((line.trim().to_owned(), body)).is_err() {
                    return;
                }
            }
        }
    });
    (address, receiver)
}

fn attribute(span: &Value, key: &str) -> Value {
    let list = span["attributes"].as_array().expect("attributes");
    let found = list.iter().find(|a| a["key"] == key);
    found.map_or(Value::Null, |a| {
        let value = a["value"].as_object().expect("a value");
        value.values().next().expect("one").clone()
    })
}

#[test]
fn one_span_a_request_and_no_words_in_it() {
    let (address, received) = collector("200 OK");
    let home = Home::new();
    let server = Server::start(&home, &["--otlp", &address]);
    let answer = server.post("/v1/completions", &completion("A secret word", 5));
    assert_eq!(
        server.ask("GET", "/nothing/secret", "", &Value::Null).0,
        404
    );
    let mut spans = Vec::new();
    while spans.len() < 2 {
        let (line, body) = received.recv_timeout(PATIENCE).expect("a batch");
        assert_eq!(line, "POST /v1/traces HTTP/1.1");
        assert!(!body.to_string().contains("secret"), "{body}");
        let scopes = &body["resourceSpans"][0]["scopeSpans"][0];
        spans.extend(scopes["spans"].as_array().expect("spans").clone());
    }
    let named = |name: &str| {
        spans
            .iter()
            .find(|span| span["name"] == name)
            .expect("it is there")
    };
    let done = named("text_completion llama3");
    assert_eq!(attribute(done, "gen_ai.operation.name"), "text_completion");
    assert_eq!(attribute(done, "gen_ai.usage.output_tokens"), "5");
    let prompt = answer["usage"]["prompt_tokens"].to_string();
    assert_eq!(attribute(done, "gen_ai.usage.input_tokens"), json!(prompt));
    let lost = named("GET other");
    assert_eq!(attribute(lost, "http.response.status_code"), "404");
    assert_eq!(attribute(lost, "error.type"), "unknown_url");
    assert_eq!(lost["status"], json!({}), "it was the client's mistake");
    wait_for("both are counted", || {
        server.metric("puna_spans_sent_total") >= 2
    });
}

/// Collectors that refuse, or are not there, cost answers nothing.
#[test]
fn without_a_collector_answers_come_and_spans_are_counted() {
    let (refusing, _received) = collector("503 Service Unavailable");
    for address in [refusing.as_str(), "http://127.0.0.1:9"] {
        let home = Home::new();
        let server = Server::start(&home, &["--otlp", address]);
        server.post("/v1/completions", &completion("Once upon", 5));
        wait_for("the loss is counted", || {
            server.metric("puna_spans_dropped_total") > 0
        });
        assert_eq!(server.metric("puna_spans_sent_total"), 0);
    }
    let home = Home::new();
    for bad in ["collector:4318", "ftp://127.0.0.1", "not a URL"] {
        home.run(&["serve", "--port", "0", "--otlp", bad])
            .failed(2, "--otlp");
    }
}
