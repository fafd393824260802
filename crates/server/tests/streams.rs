//! Streams while there is nothing to say, when the server ends, and when their client leaves.

mod common;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use common::models::{chunks, post, serve_models, tiny};
use common::{Server, logged};
use engine::{Scheduler, SchedulerParams};
use serde_json::{Value, json};
use server::{Model, Settings};

/// One sequence at a time.
fn narrow() -> Model {
    let mut model = tiny(512);
    let (weights, tokenizer) = (
        model.scheduler.weights().clone(),
        model.scheduler.tokenizer().clone(),
    );
    let params = SchedulerParams {
        parallel: 1,
        ..SchedulerParams::new(kernels::KvType::F32, 1 << 16, 1)
    };
    model.scheduler = Scheduler::start(weights, tokenizer, params).unwrap();
    model
}

fn text(tokens: usize, stream: bool) -> Value {
    json!({
        "prompt": "One two three", "max_tokens": tokens, "ignore_eos": true, "temperature": 0,
        "stream": stream,
    })
}

/// Sends a request and leaves its answer to be read.
fn begin(server: &Server, body: &Value) -> std::net::TcpStream {
    let mut stream = server.connect();
    let body = body.to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        server.address,
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).unwrap();
    stream
}

fn heard(stream: &mut std::net::TcpStream) {
    assert!(stream.read(&mut [0; 64]).unwrap() > 0);
}

#[test]
fn a_stream_that_waits_in_line_says_that_it_lives() {
    let settings = Settings {
        ping: Duration::from_millis(100),
        ..logged().0
    };
    let server = serve_models(vec![narrow()], false, settings);
    let mut first = begin(&server, &text(1 << 15, true));
    heard(&mut first);
    let mut waits = begin(&server, &text(2, true));
    let mut all = Vec::new();
    let end = Instant::now() + Duration::from_secs(20);
    while all.windows(6).filter(|w| w == b": ping").count() < 2 {
        let mut some = [0; 1024];
        let n = waits.read(&mut some).unwrap();
        assert!(n > 0 && Instant::now() < end, "{all:?}");
        all.extend_from_slice(&some[..n]);
    }
    assert!(all.starts_with(b"HTTP/1.1 200 OK"), "{all:?}");
    // What fails in line now is said in the stream.
    let late = json!({ "timeout_ms": 400 });
    let mut late_body = text(2, true);
    late_body
        .as_object_mut()
        .unwrap()
        .extend(late.as_object().unwrap().clone());
    let late = post(&server, "/v1/completions", &late_body);
    assert_eq!(late.status, 200, "{late:?}");
    assert!(
        late.body.contains("deadline") && !late.body.contains("[DONE]"),
        "{late:?}"
    );
    drop(first);
    waits.read_to_end(&mut all).unwrap();
    let all = String::from_utf8(all).unwrap();
    assert!(all.contains("data: [DONE]"), "{all}");
    chunks(&post(&server, "/v1/completions", &text(2, true)));
}

#[test]
fn what_the_end_cuts_off_says_so() {
    let settings = Settings {
        grace: Duration::from_millis(200),
        ..logged().0
    };
    let mut server = serve_models(vec![narrow()], false, settings);
    let mut stream = begin(&server, &text(1 << 15, true));
    heard(&mut stream);
    let mut whole = begin(&server, &text(1 << 14, false));
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    server.end();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().rfind(|line| line.starts_with("data: "));
    let last: Value = serde_json::from_str(&last.unwrap()["data: ".len()..]).unwrap();
    assert_eq!(last["error"]["code"], "not_ready", "{last}");
    let mut said = Vec::new();
    whole.read_to_end(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said);
    assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    assert!(said.contains("not_ready"), "{said}");
    server.ended().unwrap();
    assert!(began.elapsed() < Duration::from_secs(4));
}

/// The audit log keeps what was said, also to a client that did not hear all of it.
#[test]
fn what_was_said_is_kept() {
    let settings = Settings {
        audit_content: true,
        ..logged().0
    };
    let server = serve_models(vec![narrow()], false, settings);
    let whole = post(&server, "/v1/completions", &text(12, false)).json();
    let mut stream = begin(&server, &text(1 << 14, true));
    let mut some = Vec::new();
    while some.windows(6).filter(|w| w == b"data: ").count() < 14 {
        let mut piece = [0; 1024];
        let n = stream.read(&mut piece).unwrap();
        some.extend_from_slice(&piece[..n]);
    }
    drop(stream);
    post(&server, "/v1/embeddings", &json!({ "input": "Kept one" }));
    post(&server, "/tokenize", &json!({ "content": "Kept two" }));
    post(&server, "/detokenize", &json!({ "tokens": [5, 6] }));
    let messages = json!([{ "role": "user", "content": "Kept three" }]);
    post(&server, "/apply-template", &json!({ "messages": messages }));
    let end = Instant::now() + Duration::from_secs(20);
    let rows = loop {
        let rows = server.store().audit(0, 100).unwrap();
        if rows.len() == 6 {
            break rows;
        }
        assert!(Instant::now() < end, "{rows:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let kept = |route: &str, status: u16| {
        let row = rows.iter().find(|r| r.route == route && r.status == status);
        row.and_then(|r| r.content.clone()).unwrap_or_default()
    };
    let answer = whole["choices"][0]["text"].as_str().unwrap();
    let full = kept("/v1/completions", 200);
    assert!(
        full.contains("One two three") && full.ends_with(answer),
        "{full}"
    );
    let left: Vec<&String> = { rows.iter() }
        .filter(|r| r.route == "/v1/completions" && r.completion_tokens > 12)
        .filter_map(|r| r.content.as_ref())
        .collect();
    assert!(left.len() == 1 && left[0].contains(answer), "{left:?}");
    assert!(kept("/v1/embeddings", 200).contains("Kept one"));
    assert!(kept("/tokenize", 200).contains("Kept two"));
    assert_eq!(kept("/detokenize", 200), "{\"tokens\":[5,6]}");
    assert!(kept("/apply-template", 200).contains("Kept three"));
}
