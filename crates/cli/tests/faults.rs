//! What can go wrong around a running server: clients that vanish, stall or send nonsense, a full disk, a damaged
//! database, `kill -9`. Whoever behaves is answered all the time, and nothing that was acknowledged is lost.
//!
//! With `PUNA_TEST_ALL` the long ones are as long as they should be; without it they are a look.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::server::{Server, completion, rounds, wait_for};
use common::{Home, fixture};
use serde_json::{Value, json};

const TEXT: &str = "/v1/completions";

fn streamed(prompt: &str, tokens: usize) -> Value {
    let mut body = completion(prompt, tokens);
    body["stream"] = json!(true);
    body
}

/// The text of a stream's events, up to its end.
fn joined(events: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for event in events {
        if event == "[DONE]" {
            return text;
        }
        let event: Value = serde_json::from_str(&event).expect("JSON");
        text += event["choices"][0]["text"].as_str().expect("a text");
    }
    panic!("the stream broke off after {text:?}");
}

#[test]
fn who_vanishes_leaves_nothing_behind() {
    let home = Home::new();
    let server = Server::start(&home, &["--parallel", "2", "--ctx", "65536"]);
    let stream = |i| server.stream("", &streamed(&format!("{i} is a number"), 60_000));
    let mut events: Vec<_> = (0..2).map(stream).collect();
    for one in &mut events {
        one.next().expect("it runs");
    }
    // These wait in line, and vanish there.
    events.extend((2..6).map(stream));
    drop(events);
    server.settle();
    let made = server.metric("puna_completion_tokens_total");
    assert!((2..60_000).contains(&made), "{made} tokens for nobody");
    server.post(TEXT, &completion("Once upon", 4));
}

#[test]
fn what_does_not_fit_disturbs_nobody() {
    let home = Home::new();
    let server = Server::start(&home, &["--ctx", "2048", "--max-body", "100000"]);
    let alone = server.post(TEXT, &completion("Once upon a time", 1500));
    let mut events = server.stream("", &streamed("Once upon a time", 1500));
    let first = events.next().expect("it begins");
    // How long it still runs is the machine's affair: what counts is that it comes whole.
    let (status, said) = server.ask("POST", TEXT, "", &completion(&"word ".repeat(4000), 1));
    assert!(
        status == 400 && said.contains("context_length_exceeded"),
        "{said}"
    );
    let (status, said) = server.ask("POST", TEXT, "", &completion(&"x".repeat(200_000), 1));
    assert!(
        status == 413 && said.contains("request_too_large"),
        "{said}"
    );
    let text = joined(std::iter::once(first).chain(events));
    assert_eq!(alone["choices"][0]["text"], text);
}

/// The tiny model in a folder of its own, with this chat template.
fn with_template(home: &Home, template: &str) -> PathBuf {
    let folder = home.dir.path().join("model");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).expect("a new folder");
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ] {
        let from = Path::new(&fixture("models/llama3")).join(file);
        std::fs::copy(from, folder.join(file)).expect("copied");
    }
    std::fs::write(folder.join("chat_template.jinja"), template).expect("written");
    folder
}

#[cfg(target_os = "linux")]
#[test]
fn a_template_that_never_ends_is_ended() {
    let double = "{% set s = namespace(x='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}";
    let deep = "{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m(1) }}";
    let wide = "{% for i in range(100000) %}{% for j in range(100000) %}{{ i * j }}{% endfor %}{% endfor %}";
    for bomb in [double, deep, wide] {
        let home = Home::new();
        let model = with_template(&home, bomb);
        let model = model.to_str().expect("UTF-8");
        let server = Server::run(home.command(&["serve", "-m", model, "--port", "0"]));
        server.post(TEXT, &completion("Once upon", 4));
        let before = server.resident();
        let begun = Instant::now();
        let chat = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 1 });
        let (status, said) = std::thread::scope(|scope| {
            let bombs = scope.spawn(|| server.ask("POST", "/v1/chat/completions", "", &chat));
            // Others are answered while it burns.
            server.post(TEXT, &completion("Once upon", 4));
            bombs.join().expect("an answer")
        });
        assert!(
            status == 400 && said.contains("invalid_request"),
            "{bomb}: {status} {said}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{bomb}: {:?}",
            begun.elapsed()
        );
        let grown = server.resident().saturating_sub(before);
        assert!(grown < 128 << 20, "{bomb}: {grown} bytes more");
    }
}

/// Many who send a byte now and then, and one who behaves.
#[test]
fn slow_clients_hold_nobody_up() {
    let home = Home::new();
    let server = Server::start(&home, &[]);
    let mut slow: Vec<TcpStream> = Vec::new();
    for i in 0..200 {
        let mut stream = server.connect();
        let head = server.request("POST", TEXT, "", &completion("Once upon", 4));
        // Half of them stop in the headers, half in the body.
        let part = if i % 2 == 0 { 40 } else { head.len() - 10 };
        stream.write_all(&head.as_bytes()[..part]).expect("written");
        slow.push(stream);
    }
    for _ in 0..10 {
        for stream in &mut slow {
            let _ = stream.write_all(b" ");
        }
        let begun = Instant::now();
        server.post(TEXT, &completion("Once upon", 4));
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{:?}",
            begun.elapsed()
        );
    }
}

/// Runs a command in which a write beyond the limit fails instead of ending the process.
#[cfg(target_os = "linux")]
fn limited(command: Command, first: &str) -> Command {
    let program = command.get_program().to_owned();
    let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("trap '' XFSZ; {first}; exec \"$0\" \"$@\"")])
        .arg(program)
        .args(args);
    shell.env_clear();
    let set: Vec<_> = command
        .get_envs()
        .map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned)))
        .collect();
    shell.envs(set.into_iter().filter_map(|(k, v)| Some((k, v?))));
    shell.current_dir(command.get_current_dir().expect("a home"));
    shell
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_503_until_there_is_room() {
    let home = Home::new();
    let model = fixture("models/llama3");
    let serve = home.command(&["serve", "-m", &model, "--port", "0"]);
    let server = Server::run(limited(serve, ":"));
    let ask = || server.ask("POST", TEXT, "", &completion("Once upon", 4)).0;
    assert_eq!(ask(), 200);
    let limit = |bytes: &str| {
        let (pid, limit) = (server.child.id().to_string(), format!("--fsize={bytes}:"));
        let ran = Command::new("prlimit")
            .args(["--pid", &pid, &limit])
            .status();
        assert!(ran.expect("prlimit of util-linux").success());
    };
    let mut answered = 1;
    // No file may grow any more: what is to be written waits, and new work is refused.
    limit("1");
    wait_for("new work is refused", || match ask() {
        200 => {
            answered += 1;
            false
        }
        status => status == 503,
    });
    let (status, said) = server.ask("GET", "/ready", "", &Value::Null);
    assert!(
        status == 503 && said.contains("state_unavailable"),
        "{status} {said}"
    );
    assert_eq!(server.ask("GET", "/health", "", &Value::Null).0, 200);
    let create = ["key", "create", "--name", "me"];
    let refused = limited(home.command(&create), "ulimit -f 0")
        .output()
        .expect("it ran");
    assert!(
        refused.status.code() == Some(1) && refused.stdout.is_empty(),
        "{refused:?}"
    );
    limit("unlimited");
    wait_for("there is room again", || {
        server.ask("GET", "/ready", "", &Value::Null).0 == 200
    });
    assert_eq!(ask(), 200);
    answered += 1;
    let billed = || -> u64 {
        let usage = home.run(&["key", "usage", "--format", "json"]).json();
        let rows = usage["usage"].as_array().expect("rows");
        rows.iter()
            .map(|row| row["requests"].as_u64().expect("a number"))
            .sum()
    };
    wait_for("all answers are on the bill", || billed() == answered);
    home.run(&["key", "audit", "--verify"]).succeeded();
    let list = home.run(&["key", "list", "--format", "json"]).json();
    assert_eq!(list["keys"], json!([]));
}

#[test]
fn a_damaged_database_is_refused_and_left_alone() {
    let home = Home::new();
    let create = ["key", "create", "--name", "me", "--state", "keys.sqlite"];
    home.run(&create).succeeded();
    let file = home.dir.path().join("keys.sqlite");
    let sound = std::fs::read(&file).expect("it was made");
    let model = fixture("models/llama3");
    let serve = [
        "serve",
        "-m",
        &model,
        "--port",
        "0",
        "--state",
        "keys.sqlite",
    ];
    let mut scribbled = sound.clone();
    let middle = scribbled.len() / 2;
    scribbled[middle..].fill(0x5a);
    for bad in [
        &sound[..sound.len() / 3],
        &scribbled,
        b"SQLite format 3\0 and no more",
    ] {
        std::fs::write(&file, bad).expect("written");
        for args in [
            &serve[..],
            &create,
            &["key", "list", "--state", "keys.sqlite"],
        ] {
            home.run(args).failed(1, "keys.sqlite");
            assert!(
                std::fs::read(&file).expect("there") == bad,
                "{args:?} changed it"
            );
        }
    }
    std::fs::write(&file, &sound).expect("written");
    home.run(&["key", "list", "--state", "keys.sqlite"])
        .succeeded();
}

/// What was acknowledged is there after `kill -9` of the server, whoever was writing.
#[test]
fn a_killed_server_loses_nothing_that_it_acknowledged() {
    let home = Home::new();
    home.run(&[
        "key",
        "create",
        "--name",
        "boss",
        "--scopes",
        "admin,inference",
    ])
    .succeeded();
    let lines = |what: &str| home.run(&["key", what]).text().lines().count();
    let (mut made, mut revoked) = (vec!["boss".to_owned()], Vec::new());
    for round in 0..rounds(6, 50) {
        let mut server = Server::start(&home, &[]);
        let name = format!("k{round}");
        let key = home
            .run(&["key", "create", "--name", &name, "--format", "json"])
            .json();
        let secret = key["key"].as_str().expect("a key").to_owned();
        made.push(name.clone());
        let seen = std::thread::scope(|scope| {
            let asks = scope.spawn(|| {
                for _ in 0..200 {
                    // It is killed at some point: what comes after that is no answer.
                    let mut stream = TcpStream::connect(&server.address).ok()?;
                    let request = server.request("POST", TEXT, &secret, &completion("Hi", 2));
                    stream.write_all(request.as_bytes()).ok()?;
                    stream.read_to_end(&mut Vec::new()).ok()?;
                }
                Some(())
            });
            std::thread::sleep(Duration::from_millis(20 + 7 * round as u64));
            if round % 2 == 0 {
                home.run(&["key", "revoke", &name]).succeeded();
                revoked.push(name.clone());
            }
            let seen = lines("audit");
            let pid = server.child.id().to_string();
            let killed = Command::new("kill").args(["-9", &pid]).status();
            assert!(killed.expect("kill runs").success());
            let _ = asks.join();
            seen
        });
        server.child.wait().expect("it is gone");
        home.run(&["key", "audit", "--verify"]).succeeded();
        assert!(lines("audit") >= seen, "round {round}: rows are lost");
        let list = home.run(&["key", "list", "--format", "json"]).json();
        let keys = list["keys"].as_array().expect("keys");
        let is = |name: &String, revoked: bool| {
            let mut found = keys.iter().filter(|key| key["name"] == name.as_str());
            found.any(|key| key["revoked"].is_null() != revoked)
        };
        assert!(
            made.iter().all(|name| is(name, revoked.contains(name))),
            "round {round}: {list}"
        );
    }
}

/// A stream of numbers that is the same every time (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }
}

/// Values that fields do not expect.
fn oddities() -> Vec<Value> {
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    let many: Vec<u32> = (0..500).collect();
    vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1),
        json!(2),
        json!(1e308),
        json!(-1e-308),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(4294967295u32),
        json!(""),
        json!("\u{0}"),
        json!("\u{fffd}\u{202e}"),
        json!("<|eot_id|>"),
        json!("x".repeat(5000)),
        json!([]),
        json!([null]),
        json!({}),
        json!([[]]),
        json!({ "": 1 }),
        json!(["a", 1]),
        json!([4294967295u32]),
        json!(many),
        json!({ "type": "text" }),
        json!({ "role": "user" }),
        json!([{ "role": "user", "content": 7 }]),
        json!([{ "role": "user", "content": [{ "type": "text" }] }]),
        deep,
    ]
}

/// A request to one of the routes of which mostly something is wrong, and whether it is whole.
fn nonsense(
    dice: &mut Dice,
    routes: &[(String, String, Vec<String>)],
    odd: &[Value],
) -> (Vec<u8>, bool) {
    let (method, path, fields) = dice.one(routes);
    let mut body = json!({
        "prompt": "Hi", "input": "Hi", "content": "Hi", "tokens": [1, 2], "max_tokens": 2,
        "messages": [{ "role": "user", "content": "Hi" }],
    });
    for _ in 0..dice.roll(3) {
        let name = if fields.is_empty() {
            "x"
        } else {
            dice.one(fields).as_str()
        };
        body[name] = dice.one(odd).clone();
    }
    let mut body = body.to_string().into_bytes();
    let said = match dice.roll(8) {
        0 => dice.roll(2 * body.len()),
        _ => body.len(),
    };
    for _ in 0..dice.roll(5).saturating_sub(3) {
        let at = dice.roll(body.len());
        body[at] = dice.roll(256) as u8;
    }
    let name: &&str = dice.one(&["llama3", "%00", "..", "x"]);
    let path = path.replace("{model}", name);
    let query = dice.one(&[
        "",
        "",
        "?from=x",
        "?after=-1",
        "?limit=99999999999999999999",
        "?head=%ff",
        "?a",
    ]);
    let kind = dice.one(&[
        "application/json",
        "application/json",
        "application/json",
        "text/plain",
        "",
    ]);
    let mut request = format!(
        "{method} {path}{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {said}\r\n\r\n"
    )
    .into_bytes();
    let mut whole = said == body.len();
    request.extend(body);
    if dice.roll(12) == 0 {
        whole = false;
        let at = dice.roll(request.len());
        match dice.roll(3) {
            0 => request[at] = dice.roll(256) as u8,
            1 => request.truncate(at),
            _ => request.insert(at, dice.roll(256) as u8),
        }
    }
    (request, whole)
}

/// (method, path, fields of the body) of every route that the server says it has.
fn routes(server: &Server) -> Vec<(String, String, Vec<String>)> {
    let (_, document) = server.ask("GET", "/openapi.json", "", &Value::Null);
    let document: Value = serde_json::from_str(&document).expect("JSON");
    let mut found = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let fields = schema["properties"].as_object();
            let fields = fields
                .map(|f| f.keys().cloned().collect())
                .unwrap_or_default();
            found.push((method.to_ascii_uppercase(), path.clone(), fields));
        }
    }
    assert!(found.len() > 10, "{found:?}");
    found
}

#[cfg(target_os = "linux")]
#[test]
fn senseless_requests_on_all_routes_break_nothing() {
    let home = Home::new();
    let server = Server::start(&home, &["--ctx", "64", "--no-access-log"]);
    let (routes, odd, mut dice) = (routes(&server), oddities(), Dice(0x5eed));
    let count = rounds(4_000, 100_000);
    let (mut kinds, mut before) = (std::collections::BTreeMap::new(), 0);
    for n in 0..count {
        let (bytes, whole) = nonsense(&mut dice, &routes, &odd);
        if let Some(status) = server.raw(&bytes, whole) {
            let told = || String::from_utf8_lossy(&bytes).into_owned();
            assert!(
                status < 500 || status == 503,
                "request {n}: {status} to {:?}",
                told()
            );
            *kinds.entry(status).or_insert(0_usize) += 1;
        }
        if n == count / 4 {
            server.settle();
            before = server.resident();
        }
    }
    server.settle();
    let grown = server.resident().saturating_sub(before);
    assert!(
        grown < 32 << 20,
        "{grown} bytes more after {count} requests"
    );
    assert!(
        kinds.values().sum::<usize>() > count / 2 && kinds.len() >= 5,
        "{kinds:?}"
    );
    assert!(
        kinds.contains_key(&200) && !kinds.contains_key(&503),
        "{kinds:?}"
    );
    server.post(TEXT, &completion("Once upon", 4));
    home.run(&["key", "audit", "--verify"]).succeeded();
}
