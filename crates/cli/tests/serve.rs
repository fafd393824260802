//! `puna serve` and `puna key`, the binary itself, over a real socket.

mod common;

use common::server::Server;
use common::{Home, fixture};
use serde_json::{Value, json};

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
    serve(&["--cache-dir", "x"]).failed(2, "--cache-dir");
    serve(&["-m", &model]).failed(2, "two models");
    home.run(&["serve", "-m", "no-such-model", "--port", "0"])
        .failed(3, "no-such-model");
    let file = home.dir.path().join("bad.sqlite");
    std::fs::write(&file, "not a database").expect("written");
    serve(&["--state", "bad.sqlite"]).failed(1, "bad.sqlite");
    assert_eq!(std::fs::read(&file).expect("there"), b"not a database");
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
