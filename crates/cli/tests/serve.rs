//! `puna serve` and `puna key`, the binary itself, over a real socket.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use common::{Home, fixture};
use serde_json::{Value, json};

/// A running server, ended with its test.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(home: &Home, more: &[&str]) -> Server {
        let model = fixture("models/llama3");
        let args = [&["serve", "-m", &model, "--port", "0"], more].concat();
        let mut child = home
            .command(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let mut said = Vec::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                panic!("no address: {said:?}");
            };
            if let Some((_, rest)) = line.split_once("listening at http://") {
                let end = rest.find(' ').expect("a word after the address");
                break rest[..end].to_owned();
            }
            said.push(line);
        };
        // The log goes on; nobody may be held up by a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, address }
    }

    /// Status and body of one request.
    fn ask(&self, method: &str, path: &str, key: &str, body: &Value) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let auth = match key {
            "" => String::new(),
            key => format!("Authorization: Bearer {key}\r\n"),
        };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{auth}Content-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        (status.expect("a status"), body.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn it_answers_as_run_does() {
    let home = Home::new();
    let server = Server::start(&home, &[]);
    assert_eq!(server.ask("GET", "/health", "", &Value::Null).0, 200);
    let (status, models) = server.ask("GET", "/v1/models", "", &Value::Null);
    let models: Value = serde_json::from_str(&models).expect("JSON");
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("llama3")));
    let asked = json!({ "prompt": "Once upon", "max_tokens": 12, "temperature": 0 });
    let (status, answer) = server.ask("POST", "/v1/completions", "", &asked);
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let model = fixture("models/llama3");
    let args = [
        "run",
        "-m",
        &model,
        "--raw",
        "--temperature",
        "0",
        "-n",
        "12",
    ];
    let alone = home.run(&[&args[..], &["--format", "json", "Once upon"]].concat());
    assert_eq!(answer["choices"][0]["text"], alone.json()["text"]);
    let wrong = json!({ "prompt": "x", "temperature": "hot" });
    let (status, answer) = server.ask("POST", "/v1/completions", "", &wrong);
    assert!(status == 400 && answer.contains("temperature"), "{answer}");
    assert_eq!(server.ask("GET", "/admin/usage", "", &Value::Null).0, 401);
}

#[test]
fn keys_open_it_and_revoked_ones_do_not() {
    let home = Home::new();
    let made = home.run(&["key", "create", "--name", "me", "--format", "json"]);
    let made = made.json();
    let key = made["key"].as_str().expect("a key");
    assert!(key.starts_with("puna-"), "{made}");
    let server = Server::start(&home, &[]);
    let status = |key: &str| server.ask("GET", "/v1/models", key, &Value::Null).0;
    assert_eq!((status(""), status("puna-0"), status(key)), (401, 401, 200));
    assert_eq!(server.ask("GET", "/health", "", &Value::Null).0, 200);
    let listed = home.run(&["key", "list", "--format", "json"]);
    assert!(!listed.text().contains(key));
    home.run(&["key", "revoke", "me"]).succeeded();
    assert_eq!(status(key), 401);
    home.run(&["key", "audit", "--verify"]).succeeded();
}

/// A key that is made while a server runs without keys closes it; words that are no method of HTTP's
/// leave no label behind.
#[test]
fn what_changes_while_it_runs() {
    let home = Home::new();
    let server = Server::start(&home, &[]);
    let status = |key: &str| server.ask("GET", "/v1/models", key, &Value::Null).0;
    assert_eq!(status(""), 200);
    server.ask("BREW", "/health", "", &Value::Null);
    let (_, metrics) = server.ask("GET", "/metrics", "", &Value::Null);
    assert!(
        !metrics.contains("BREW") && metrics.contains("other"),
        "{metrics}"
    );
    let made = home.run(&["key", "create", "--name", "me", "--format", "json"]);
    let made = made.json();
    assert_eq!(
        (status(""), status(made["key"].as_str().unwrap())),
        (401, 200)
    );
}

#[test]
fn what_cannot_be_is_refused_at_the_start() {
    let home = Home::new();
    let model = fixture("models/llama3");
    let serve = |more: &[&str]| home.run(&[&["serve", "-m", &model, "--port", "0"], more].concat());
    serve(&["--host", "0.0.0.0"]).failed(2, "key");
    std::fs::create_dir(home.dir.path().join("full")).expect("made");
    std::fs::write(home.dir.path().join("full/letter"), "dear").expect("written");
    serve(&["--cache-dir", "full"]).failed(2, "full");
    serve(&["--speculate", "draft"]).failed(2, "--draft");
    serve(&["--speculate", "maybe"]).failed(2, "ngram");
    serve(&["-m", &model]).failed(2, "two models");
    home.run(&["serve", "-m", "no-such-model", "--port", "0"])
        .failed(3, "no-such-model");
    let file = home.dir.path().join("bad.sqlite");
    std::fs::write(&file, "not a database").expect("written");
    serve(&["--state", "bad.sqlite"]).failed(1, "bad.sqlite");
    assert_eq!(std::fs::read(&file).expect("there"), b"not a database");
}

/// What was cached outlives a server that ends; it is the same answer.
#[cfg(unix)]
#[test]
fn the_cache_outlives_it() {
    let home = Home::new();
    let dir = home.dir.path().join("cache").display().to_string();
    let prompt = "Once upon a time there was a house, and in the house there was a cat. ".repeat(3);
    let asked = json!({ "prompt": prompt, "max_tokens": 8, "temperature": 0 });
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut server = Server::start(&home, &["--cache-dir", &dir]);
        let (status, answer) = server.ask("POST", "/v1/completions", "", &asked);
        assert_eq!(status, 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answers.push(answer);
        let pid = server.child.id().to_string();
        let asked = std::process::Command::new("kill")
            .args(["-TERM", &pid])
            .status();
        assert!(asked.expect("kill runs").success());
        assert_eq!(server.child.wait().expect("it ends").code(), Some(0));
    }
    let cached = |i: usize| &answers[i]["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert_eq!(*cached(0), 0);
    assert!(cached(1).as_u64() >= Some(32), "{}", answers[1]);
    assert_eq!(answers[0]["choices"], answers[1]["choices"]);
}

/// The answers of a server that guesses are those of one that does not, and it says what it guessed.
#[test]
fn guesses_change_no_answer() {
    let home = Home::new();
    let model = fixture("models/llama3");
    let server = Server::start(&home, &["--draft", &model]);
    let ask = |speculative: &str| {
        let asked = json!({
            "prompt": "one two three one two three one", "max_tokens": 40, "temperature": 0,
            "ignore_eos": true, "speculative": speculative, "logit_bias": { "40": 100 },
        });
        let (status, answer) = server.ask("POST", "/v1/completions", "", &asked);
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let plain = ask("off");
    let details = &plain["usage"]["completion_tokens_details"];
    assert_eq!(details["accepted_prediction_tokens"], 0);
    for speculative in ["auto", "ngram", "draft"] {
        let answer = ask(speculative);
        assert_eq!(answer["choices"], plain["choices"], "{speculative}");
    }
    let helped = ask("ngram");
    let accepted = &helped["usage"]["completion_tokens_details"]["accepted_prediction_tokens"];
    assert!(accepted.as_u64() > Some(5), "{helped}");
    let wrong = json!({ "prompt": "x", "speculative": "always" });
    let (status, answer) = server.ask("POST", "/v1/completions", "", &wrong);
    assert!(status == 400 && answer.contains("ngram"), "{answer}");
    let (_, metrics) = server.ask("GET", "/metrics", "", &Value::Null);
    let accepted = metrics.lines().find_map(|line| {
        line.strip_prefix("puna_speculative_accepted_tokens_total{model=\"llama3\"} ")
    });
    let accepted: u64 = accepted.expect("the metric").parse().expect("a number");
    assert!(accepted > 5);
}

/// Asked to end, it ends well.
#[cfg(unix)]
#[test]
fn it_ends_when_asked() {
    let home = Home::new();
    let mut server = Server::start(&home, &[]);
    let pid = server.child.id().to_string();
    let asked = std::process::Command::new("kill")
        .args(["-TERM", &pid])
        .status();
    assert!(asked.expect("kill runs").success());
    assert_eq!(server.child.wait().expect("it ends").code(), Some(0));
}
