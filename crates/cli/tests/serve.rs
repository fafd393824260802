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
        Server::of(home, &fixture("models/llama3"), more)
    }

    fn of(home: &Home, model: &str, more: &[&str]) -> Server {
        let args = [&["serve", "-m", model, "--port", "0"], more].concat();
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

/// Adapters of the store, at paths, and those that a request may choose; they say what `run` says
/// with the same.
#[test]
fn adapters_are_lent() {
    let home = Home::new();
    let base = fixture("models/llama2_gqa");
    let adapter = fixture("../adapters/patterns/adapter.gguf");
    let recipe = home.dir.path().join("Modelfile");
    std::fs::write(&recipe, format!("FROM {base}\nADAPTER {adapter}\n")).expect("written");
    home.run(&["create", "poet", "-f", "Modelfile"]).succeeded();
    let keys = home.dir.path().join("keys");
    std::fs::write(&keys, "0123456789abcdef boss admin,inference\n").expect("written");
    let strong = format!("strong={adapter}:4");
    let more = [
        "--named-adapter",
        &strong,
        "--named-adapter",
        "plain=poet",
        "--api-key-file",
        "keys",
    ];
    let server = Server::of(&home, &base, &more);
    let key = "0123456789abcdef";
    let ask = |method: &str, path: &str, body: &Value| {
        let (status, answer) = server.ask(method, path, key, body);
        (
            status,
            serde_json::from_str::<Value>(&answer).expect("JSON"),
        )
    };
    let (_, list) = ask("GET", "/v1/adapters", &Value::Null);
    let scales: Vec<&Value> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|a| &a["scale"])
        .collect();
    assert_eq!(scales, [&json!(4.0), &json!(1.0)], "{list}");
    let load = json!({ "name": "file", "adapter": fixture("../adapters/patterns") });
    assert_eq!(ask("POST", "/v1/adapters", &load).0, 200);
    let said = |adapters: Value| {
        let body = json!({
            "prompt": "Once upon", "max_tokens": 12, "temperature": 0, "adapters": adapters,
        });
        ask("POST", "/v1/completions", &body).1["choices"][0]["text"].clone()
    };
    let alone = |more: &[&str]| {
        let args = [
            "run",
            "-m",
            &base,
            "--raw",
            "-n",
            "12",
            "--temperature",
            "0",
        ];
        let args = [&args[..], &["--format", "json", "Once upon"], more].concat();
        home.run(&args).json()["text"].clone()
    };
    let due = alone(&["--adapter", &format!("{adapter}:4")]);
    assert_ne!(due, alone(&[]));
    assert_eq!(said(json!([{ "id": "strong" }])), due);
    assert_eq!(said(json!([{ "id": "plain", "scale": 4 }])), due);
    assert_eq!(said(json!([{ "id": "file", "scale": 4 }])), due);
    assert_eq!(said(json!([])), alone(&[]));
    for (adapter, status, what) in [
        ("nobody", 404, "nobody"),
        (&*base, 400, "an adapter is"),
        (&fixture("../adapters/tied"), 400, "down_proj"),
        ("hf:nobody/nothing", 404, "nobody"),
    ] {
        let load = json!({ "name": "x", "adapter": adapter });
        let (got, answer) = ask("POST", "/v1/adapters", &load);
        assert_eq!(got, status, "{answer}");
        assert!(answer.to_string().contains(what), "{answer}");
    }
}

/// What a made model says holds where a request says nothing.
#[test]
fn a_made_model_is_served_as_it_is_made() {
    let home = Home::new();
    let base = fixture("models/llama3");
    let recipe = home.dir.path().join("Modelfile");
    let text = format!(
        "FROM {base}\nPARAMETER num_predict 5\nPARAMETER seed 7\nPARAMETER temperature 1.5\n"
    );
    std::fs::write(&recipe, text).expect("written");
    home.run(&["create", "made", "-f", "Modelfile"]).succeeded();
    let server = Server::of(&home, "made", &[]);
    let said = || {
        let body = json!({ "prompt": "Once upon", "ignore_eos": true });
        let (status, answer) = server.ask("POST", "/v1/completions", "", &body);
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str::<Value>(&answer).expect("JSON")
    };
    let one = said();
    assert_eq!(one["usage"]["completion_tokens"], 5);
    assert_eq!(one["choices"], said()["choices"]);
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
    serve(&["--named-adapter", "x"]).failed(2, "no name");
    serve(&["--named-adapter", "x=nobody"]).failed(3, "nobody");
    serve(&["--named-adapter", &format!("x={model}")]).failed(4, "an adapter is");
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
