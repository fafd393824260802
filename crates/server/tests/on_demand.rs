//! Models that come and go, over real sockets: a loader that counts, and tiny models.

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Answer, Server, logged};
use engine::{Adaptation, SamplerParams, Scheduler, SchedulerParams};
use kernels::{Compute, Kernels, KvType, Level};
use serde_json::{Value, json};
use server::{KeepAlive, Key, Loaded, Loader, Model, Offer, OnDemand, Served};
use text::Tokenizer;

fn fixture(name: &str) -> PathBuf {
    let models = "../../tests/fixtures/reference/models";
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(models)
        .join(name)
}

fn tiny(id: &str, context: usize) -> Model {
    let path = fixture("llama3");
    let kernels = Arc::new(Kernels::new(Level::best(), Compute::F32, 1).unwrap());
    let weights = Arc::new(model::open(&path, kernels).unwrap());
    let tokenizer = Arc::new(Tokenizer::open(&path).unwrap());
    let params = SchedulerParams::new(KvType::F32, context, 2);
    Model {
        id: id.into(),
        created: 1,
        scheduler: Scheduler::start(weights, tokenizer, params).unwrap(),
        template: None,
        sampler: SamplerParams::default(),
        speculation: engine::Speculation::default(),
        eog: Vec::new(),
        stop: Vec::new(),
        system: None,
        turns: Vec::new(),
        seed: None,
        max_tokens: None,
        adaptation: Adaptation::default(),
        adapters: server::Adapters::new(Arc::new(common::models::made)),
    }
}

/// Four models of one size; the fifth is broken, the sixth panics.
const IDS: [&str; 6] = ["a", "b:latest", "org/c:1", "d", "broken", "bug"];
const EACH: u64 = 100;
/// Longer than any stream here goes on.
const CONTEXT: usize = 1 << 17;

#[derive(Default)]
struct Shelf {
    /// How many of them fit at once.
    fit: Option<u64>,
    /// How long a load takes.
    slow: Duration,
    loads: Mutex<HashMap<String, usize>>,
    /// Rooms that were given.
    rooms: Mutex<Vec<Option<u64>>>,
    at_once: AtomicUsize,
    /// Models that were removed, though the list that the server has may still name them.
    removed: Mutex<Vec<&'static str>>,
}

impl Shelf {
    fn loads(&self, id: &str) -> usize {
        self.loads.lock().unwrap().get(id).copied().unwrap_or(0)
    }
}

impl Loader for Shelf {
    fn offers(&self) -> Vec<Offer> {
        let offer = |id: &&str| Offer {
            id: (*id).to_owned(),
            created: 7,
            bytes: 11,
            context: Some(8192),
        };
        let removed = self.removed.lock().unwrap();
        let there = IDS.iter().filter(|id| !removed.contains(id));
        there.map(offer).collect()
    }

    fn memory(&self) -> Option<u64> {
        self.fit.map(|n| n * EACH)
    }

    fn need(&self, id: &str) -> Result<u64, String> {
        if self.removed.lock().unwrap().contains(&id) {
            return Err(format!("/secret/path: there is no {id}"));
        }
        Ok(if id == "d" { EACH * 3 } else { EACH })
    }

    fn load(&self, id: &str, room: Option<u64>) -> Result<Loaded, String> {
        assert_eq!(
            self.at_once.fetch_add(1, Ordering::SeqCst),
            0,
            "one at a time"
        );
        *self.loads.lock().unwrap().entry(id.to_owned()).or_default() += 1;
        self.rooms.lock().unwrap().push(room);
        std::thread::sleep(self.slow);
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        match id {
            _ if self.removed.lock().unwrap().contains(&id) => Err("/secret/path: gone".to_owned()),
            "broken" => Err("/secret/path: no model".to_owned()),
            "bug" => panic!("a bug in a loader"),
            _ => Ok(Loaded {
                model: tiny(id, CONTEXT),
                bytes: EACH,
            }),
        }
    }
}

const ADMIN: &str = "admin-key-0123456789abcdef";

fn keys() -> Vec<Key> {
    let line = format!("{ADMIN} admin inference,admin,metrics");
    server::parse_file(&line, 0).unwrap()
}

fn serve(shelf: Shelf, keep_alive: &str, patience: Duration) -> (Server, Arc<Shelf>) {
    let shelf = Arc::new(shelf);
    let on = OnDemand {
        loader: shelf.clone(),
        keep_alive: keep_alive.parse::<KeepAlive>().unwrap(),
        patience,
    };
    let mut settings = logged().0;
    settings.api_keys = keys();
    settings.no_auth = true;
    let server = Server::start_with(settings, |state| {
        let first = Loaded {
            model: tiny("a", CONTEXT),
            bytes: EACH,
        };
        let served = Served::on_demand(state, vec![first], on, false).unwrap();
        let mut routes = server::routes();
        routes.extend(server::api(&served));
        routes
    });
    (server, shelf)
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn post(server: &Server, path: &str, body: &Value) -> Answer {
    let headers = [
        "Content-Type: application/json".to_owned(),
        format!("Authorization: Bearer {ADMIN}"),
    ];
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    server.ask(&format!("POST {path}"), &headers, &body.to_string())
}

fn complete(server: &Server, model: &str) -> Answer {
    let body = json!({ "model": model, "prompt": "Hi", "max_tokens": 2, "temperature": 0 });
    post(server, "/v1/completions", &body)
}

fn listed(server: &Server) -> HashMap<String, Value> {
    let list = server.get("/v1/models", ADMIN).json();
    let each = list["data"].as_array().unwrap().iter();
    each.map(|m| (m["id"].as_str().unwrap().to_owned(), m.clone()))
        .collect()
}

fn is_loaded(server: &Server, id: &str) -> bool {
    listed(server)[id]["loaded"] == true
}

fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A stream that goes on until it is dropped.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn of(server: &Server, model: &str) -> Stream {
        let body = json!({
            "model": model, "prompt": "Hi", "max_tokens": 100_000, "stream": true, "ignore_eos": true,
        });
        let body = body.to_string();
        let mut stream = server.connect();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {ADMIN}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            server.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut stream = Stream(BufReader::new(stream));
        stream.token();
        stream
    }

    /// Waits for the next token.
    fn token(&mut self) {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream ended");
            assert!(!line.contains("\"error\""), "{line}");
            if line.contains("\"text\":") {
                return;
            }
        }
    }
}

#[test]
fn a_model_is_loaded_once_for_all_who_ask() {
    let shelf = Shelf {
        slow: Duration::from_millis(300),
        ..Shelf::default()
    };
    let (server, shelf) = serve(shelf, "5m", LONG);
    assert!(is_loaded(&server, "a") && !is_loaded(&server, "b:latest"));
    assert_eq!(shelf.loads("b:latest"), 0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let answer = complete(&server, "b:latest");
                assert_eq!(answer.status, 200, "{answer:?}");
                assert_eq!(answer.json()["model"], "b:latest");
            });
        }
    });
    assert_eq!(shelf.loads("b:latest"), 1);
    // Nobody knows the memory: nothing is unloaded for another.
    assert!(is_loaded(&server, "a") && is_loaded(&server, "b:latest"));
    let list = listed(&server);
    assert_eq!(list.len(), IDS.len());
    assert_eq!(list["b:latest"]["context"], CONTEXT);
    assert_eq!(
        (&list["d"]["size"], &list["d"]["created"]),
        (&json!(11), &json!(7))
    );
    // A name with a slash, in the body and in a path; no name is the first one's.
    assert_eq!(complete(&server, "org/c:1").status, 200);
    let one = server.get("/v1/models/org%2Fc:1", ADMIN).json();
    assert_eq!(
        (&one["loaded"], &one["requests"]),
        (&json!(true), &json!(0))
    );
    let body = json!({ "prompt": "Hi", "max_tokens": 1 });
    assert_eq!(post(&server, "/v1/completions", &body).json()["model"], "a");
    let metrics = server.get("/metrics", ADMIN).body;
    assert!(metrics.contains("puna_models_loaded{} 3"), "{metrics}");
    let loads = "puna_model_load_seconds_count{model=\"b:latest\"} 1";
    assert!(metrics.contains(loads), "{metrics}");
    // What was used is on each model's account.
    for id in ["a", "b:latest", "org/c:1"] {
        until("the usage is written", || {
            let usage = server.store().usage(0, 1 << 50).unwrap();
            usage.iter().any(|row| row.model == id)
        });
    }
}

#[test]
fn idle_models_give_way_and_busy_ones_do_not() {
    let shelf = Shelf {
        fit: Some(2),
        ..Shelf::default()
    };
    let (server, shelf) = serve(shelf, "-1", SHORT);
    let loaded = || {
        let mut ids: Vec<String> = listed(&server)
            .into_iter()
            .filter_map(|(id, m)| (m["loaded"] == true).then_some(id))
            .collect();
        ids.sort();
        ids.join(" ")
    };
    assert_eq!(complete(&server, "b:latest").status, 200);
    assert_eq!(loaded(), "a b:latest");
    // The one that was used longest ago goes.
    assert_eq!(complete(&server, "a").status, 200);
    assert_eq!(complete(&server, "org/c:1").status, 200);
    assert_eq!(loaded(), "a org/c:1");
    // A stream holds its model, and goes on while another is loaded beside it.
    let mut stream = Stream::of(&server, "a");
    assert_eq!(complete(&server, "b:latest").status, 200);
    assert_eq!(loaded(), "a b:latest");
    stream.token();
    let other = Stream::of(&server, "b:latest");
    let refused = complete(&server, "org/c:1");
    refused.refused(503, "not_ready");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert!(refused.body.contains("0.0 MB"), "{refused:?}");
    // It never fits: no use in coming again.
    let never = complete(&server, "d");
    assert!(
        never
            .refused(503, "not_ready")
            .header("retry-after")
            .is_none()
    );
    stream.token();
    drop(other);
    until("the stream ends", || {
        listed(&server)["b:latest"]["requests"] == 0
    });
    assert_eq!(complete(&server, "org/c:1").status, 200);
    assert_eq!(loaded(), "a org/c:1");
    drop(stream);
    // Half of what a model can do without is left for the next.
    let rooms = shelf.rooms.lock().unwrap().clone();
    assert!(rooms.iter().all(|room| *room == Some(EACH)), "{rooms:?}");
    let metrics = server.get("/metrics", ADMIN).body;
    let gone = "puna_model_unloads_total{model=\"b:latest\",why=\"memory\"} 2";
    assert!(metrics.contains(gone), "{metrics}");
}

#[test]
fn who_waits_for_memory_gets_it_when_a_request_ends() {
    let shelf = Shelf {
        fit: Some(1),
        ..Shelf::default()
    };
    let (server, _shelf) = serve(shelf, "5m", LONG);
    let stream = Stream::of(&server, "a");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| complete(&server, "b:latest"));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!waits.is_finished());
        drop(stream);
        assert_eq!(waits.join().unwrap().status, 200);
    });
    assert!(!is_loaded(&server, "a"));
}

#[test]
fn what_nobody_uses_is_unloaded_in_time() {
    let (server, shelf) = serve(Shelf::default(), "200ms", LONG);
    until("a is idle", || !is_loaded(&server, "a"));
    // A stream keeps its model.
    let mut stream = Stream::of(&server, "a");
    std::thread::sleep(Duration::from_millis(400));
    stream.token();
    assert!(is_loaded(&server, "a"));
    drop(stream);
    until("a is idle again", || !is_loaded(&server, "a"));
    assert_eq!(shelf.loads("a"), 1);
    // What a request says counts for its model.
    let ask = |keep: Value| {
        let body = json!({ "model": "a", "prompt": "Hi", "max_tokens": 1, "keep_alive": keep });
        post(&server, "/v1/completions", &body)
    };
    assert_eq!(ask(json!("1h")).status, 200);
    std::thread::sleep(Duration::from_millis(500));
    assert!(is_loaded(&server, "a"));
    let left = listed(&server)["a"]["unloads_in"].as_u64().unwrap();
    assert!((3500..=3600).contains(&left), "{left}");
    assert_eq!(ask(json!(0)).status, 200);
    until("a goes at once", || !is_loaded(&server, "a"));
    ask(json!("soon")).refused(400, "invalid_request");
    // Counted just after the list says so.
    until("all three are counted", || {
        let metrics = server.get("/metrics", ADMIN).body;
        let idle = "puna_model_unloads_total{model=\"a\",why=\"idle\"} 3";
        metrics.contains("puna_models_loaded{} 0") && metrics.contains(idle)
    });
}

#[test]
fn loading_and_unloading_by_hand() {
    let (server, shelf) = serve(Shelf::default(), "5m", LONG);
    let by_hand =
        |id: &str, what: &str| post(&server, &format!("/v1/models/{id}/{what}"), &json!({}));
    let loaded = by_hand("org%2Fc:1", "load");
    assert_eq!(
        (loaded.status, &loaded.json()["loaded"]),
        (200, &json!(true))
    );
    assert_eq!(by_hand("org%2Fc:1", "load").status, 200);
    assert_eq!(shelf.loads("org/c:1"), 1);
    let gone = by_hand("org%2Fc:1", "unload");
    assert_eq!((gone.status, &gone.json()["loaded"]), (200, &json!(false)));
    assert_eq!(by_hand("b:latest", "unload").status, 200);
    by_hand("none", "unload").refused(404, "model_not_found");
    by_hand("none", "load").refused(404, "model_not_found");
    // It waits for those who use the model; who comes meanwhile waits too, and gets it anew.
    let mut stream = Stream::of(&server, "a");
    std::thread::scope(|scope| {
        let unloads = scope.spawn(|| by_hand("a", "unload"));
        std::thread::sleep(Duration::from_millis(200));
        let waits = scope.spawn(|| complete(&server, "a"));
        std::thread::sleep(Duration::from_millis(200));
        stream.token();
        assert!(!unloads.is_finished() && !waits.is_finished());
        drop(stream);
        assert_eq!(unloads.join().unwrap().status, 200);
        assert_eq!(waits.join().unwrap().status, 200);
    });
    assert_eq!(shelf.loads("a"), 1);
    // Only those may who have the scope.
    let json = ["Content-Type: application/json"];
    server
        .ask("POST /v1/models/a/unload", &json, "{}")
        .refused(401, "invalid_api_key");
    let rows = server.store().audit(0, 1000).unwrap();
    assert!(rows.iter().any(|row| row.model == "org/c:1"), "{rows:?}");
}

#[test]
fn unloading_gives_up_when_a_model_stays_in_use() {
    let (server, _shelf) = serve(Shelf::default(), "5m", SHORT);
    let mut stream = Stream::of(&server, "a");
    let refused = post(&server, "/v1/models/a/unload", &json!({}));
    assert!(
        refused
            .refused(503, "not_ready")
            .body
            .contains("in use by 1"),
        "{refused:?}"
    );
    stream.token();
    // It takes requests again.
    assert_eq!(complete(&server, "a").status, 200);
}

/// Adapters that a request loaded are nowhere else: their model stays.
#[test]
fn adapters_of_requests_keep_their_model() {
    let shelf = Shelf {
        fit: Some(1),
        ..Shelf::default()
    };
    let (server, _shelf) = serve(shelf, "1s", SHORT);
    let poet = json!({ "model": "a", "name": "poet", "adapter": "made-1" });
    assert_eq!(post(&server, "/v1/adapters", &poet).status, 200);
    let numbered = |path| server.get(path, ADMIN).json().as_array().unwrap().len();
    assert_eq!(numbered("/lora-adapters"), 1);
    assert_eq!(numbered("/lora-adapters?model=b:latest"), 0);
    assert!(!is_loaded(&server, "b:latest"), "a list loads nothing");
    std::thread::sleep(Duration::from_millis(1300));
    complete(&server, "b:latest").refused(503, "not_ready");
    let a = listed(&server)["a"].clone();
    assert!(a["loaded"] == true && a["unloads_in"].is_null(), "{a}");
    assert!(a["memory"].as_u64().unwrap() > EACH, "{a}");
    assert_eq!(complete(&server, "a:poet").status, 200);
    let unloaded = post(&server, "/v1/models/a/unload", &json!({}));
    assert_eq!(unloaded.status, 200, "{unloaded:?}");
    assert_eq!(complete(&server, "b:latest").status, 200);
}

#[test]
fn a_broken_model_fails_its_own_requests() {
    let (server, shelf) = serve(Shelf::default(), "5m", LONG);
    let mut stream = Stream::of(&server, "a");
    for id in ["broken", "bug"] {
        let failed = complete(&server, id);
        failed.refused(500, "internal_error");
        assert!(
            failed.body.contains(id) && !failed.body.contains("secret"),
            "{failed:?}"
        );
        assert!(!is_loaded(&server, id));
    }
    stream.token();
    assert_eq!(complete(&server, "b:latest").status, 200);
    assert_eq!(server.get("/ready", "").status, 200);
    // It is not tried again at once.
    complete(&server, "broken").refused(500, "internal_error");
    assert_eq!(shelf.loads("broken"), 1);
}

#[test]
fn only_names_on_the_list_are_models() {
    let (server, shelf) = serve(Shelf::default(), "5m", LONG);
    let long = "x".repeat(100_000);
    for id in [
        "",
        "b",
        "..",
        "../a",
        "/etc/passwd",
        "./tiny.gguf",
        "hf:org/repo",
        "pip:name==1",
        "ollama:x",
        "https://example.org/m.gguf",
        "a\0",
        "A",
        &long,
    ] {
        let refused = complete(&server, id);
        refused.refused(404, "model_not_found");
        assert!(refused.body.len() < 2000, "{}", refused.body.len());
    }
    for id in ["..", "%2e%2e%2fa", "%2Fetc%2Fpasswd"] {
        server
            .get(&format!("/v1/models/{id}"), ADMIN)
            .refused(404, "model_not_found");
    }
    assert!(shelf.loads.lock().unwrap().is_empty());
}

/// Removed after the list was read: it is no model any more, and is one again when it is back.
#[test]
fn a_model_that_was_removed_is_not_there() {
    let (server, shelf) = serve(Shelf::default(), "5m", LONG);
    assert!(listed(&server).contains_key("b:latest"));
    *shelf.removed.lock().unwrap() = vec!["b:latest"];
    let gone = complete(&server, "b:latest");
    gone.refused(404, "model_not_found");
    assert!(
        gone.body.contains("org/c:1") && !gone.body.contains("secret"),
        "{gone:?}"
    );
    shelf.removed.lock().unwrap().clear();
    assert_eq!(complete(&server, "b:latest").status, 200);
}

/// How long a model stays is for those who may unload it, where keys are demanded.
#[test]
fn keep_alive_is_for_admins_where_keys_are_demanded() {
    let on = OnDemand {
        loader: Arc::new(Shelf::default()),
        keep_alive: "1h".parse::<KeepAlive>().unwrap(),
        patience: LONG,
    };
    let user = "user-key-0123456789abcdef";
    let lines = format!("{ADMIN} admin inference,admin,metrics\n{user} user inference");
    let mut settings = logged().0;
    settings.api_keys = server::parse_file(&lines, 0).unwrap();
    let server = Server::start_with(settings, |state| {
        let model = tiny("a", CONTEXT);
        let first = Loaded { model, bytes: EACH };
        let served = Served::on_demand(state, vec![first], on, false).unwrap();
        served.watch(state);
        let mut routes = server::routes();
        routes.extend(server::api(&served));
        routes
    });
    let ask = |key: &str, path: &str, keep: Value| {
        let body = json!({
            "model": "a", "prompt": "Hi", "content": "Hi", "input": "Hi", "max_tokens": 1,
            "keep_alive": keep,
        });
        let mut headers = common::bearer(key);
        headers.push("Content-Type: application/json");
        server.ask(&format!("POST {path}"), &headers, &body.to_string())
    };
    let left = || listed(&server)["a"]["unloads_in"].as_u64();
    for path in ["/v1/completions", "/tokenize", "/v1/embeddings"] {
        assert_eq!(ask(user, path, json!(0)).status, 200);
        assert_eq!(ask(user, path, json!("-1")).status, 200);
        assert!(left().unwrap() > 3500, "{path}");
    }
    // What cannot be is refused whoever says it.
    ask(user, "/v1/completions", json!("soon")).refused(400, "invalid_request");
    assert_eq!(ask(ADMIN, "/tokenize", json!("2h")).status, 200);
    until("the last request has ended", || left().is_some());
    assert!((3600..=7200).contains(&left().unwrap()));
    let gauge = |name: &str| -> Option<f64> {
        let text = server.get("/metrics", ADMIN).body;
        let line = format!("{name}{{model=\"a\"}} ");
        text.lines()
            .find_map(|l| l.strip_prefix(&line)?.parse().ok())
    };
    assert!(gauge("puna_cache_pages") > Some(0.0));
    assert!(gauge("puna_prefix_cache_pages").is_some());
    assert_eq!(ask(ADMIN, "/tokenize", json!(0)).status, 200);
    until("it is unloaded", || !is_loaded(&server, "a"));
    // What it had now it has no more.
    for name in [
        "puna_cache_pages",
        "puna_cache_pages_used",
        "puna_prefix_cache_pages",
        "puna_sequences_running",
        "puna_queue_depth",
    ] {
        until(name, || gauge(name) == Some(0.0));
    }
}

/// Without a loader models stay, and say so.
#[test]
fn models_that_stay() {
    let mut settings = logged().0;
    settings.api_keys = keys();
    let served = Served::new(vec![tiny("a", 64), tiny("b", 64)], false);
    let mut routes = server::routes();
    routes.extend(server::api(&served));
    let server = Server::start(settings, routes);
    assert!(is_loaded(&server, "a") && is_loaded(&server, "b"));
    assert_eq!(post(&server, "/v1/models/a/load", &json!({})).status, 200);
    post(&server, "/v1/models/a/unload", &json!({})).refused(400, "invalid_request");
    complete(&server, "c").refused(404, "model_not_found");
    let body = json!({ "prompt": "Hi", "max_tokens": 1 });
    post(&server, "/v1/completions", &body).refused(400, "invalid_request");
}
