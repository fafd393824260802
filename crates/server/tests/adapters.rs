//! Adapters that requests choose: in one batch, by name, and gone when they are unloaded.

mod common;

use std::io::{BufRead, BufReader, Write};

use common::models::{ok, post, send, serve_models, tiny};
use common::{Answer, Server};
use serde_json::{Value, json};
use server::Settings;

const BOSS: &str = "0123456789abcdef";
const USER: &str = "fedcba9876543210";

/// A server with the adapters `a0` to `a7`, and keys of both kinds.
fn start() -> Server {
    let keys = format!("{BOSS} boss admin,inference\n{USER} user inference");
    let settings = Settings {
        api_keys: server::parse_file(&keys, 0).unwrap(),
        ..common::logged().0
    };
    let server = serve_models(vec![tiny(1024)], false, settings);
    for i in 0..8 {
        let body = json!({ "name": format!("a{i}"), "adapter": format!("made-{i}") });
        assert_eq!(boss(&server, "POST /v1/adapters", &body).status, 200);
    }
    server
}

fn boss(server: &Server, line: &str, body: &Value) -> Answer {
    send(server, line, BOSS, body)
}

fn complete(server: &Server, more: &Value) -> Answer {
    let mut body = json!({
        "prompt": "word ".repeat(40), "temperature": 0, "ignore_eos": true, "max_tokens": 16,
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    send(server, "POST /v1/completions", USER, &body)
}

fn text(server: &Server, more: &Value) -> String {
    let answer = complete(server, more);
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

fn with(i: usize, scale: f64) -> Value {
    json!({ "adapters": [{ "id": format!("a{i}"), "scale": scale }] })
}

#[test]
fn eight_at_once_get_what_each_gets_alone() {
    let server = start();
    let bare = text(&server, &json!({}));
    let alone: Vec<String> = (0..8).map(|i| text(&server, &with(i, 9.0))).collect();
    for (i, one) in alone.iter().enumerate() {
        let others = alone[..i].iter().chain([&bare]);
        assert!(!others.clone().any(|o| o == one), "{i}: {alone:?}");
    }
    for round in 0..2 {
        let server = &server;
        let answers: Vec<String> = std::thread::scope(|scope| {
            let ask = |i: usize| {
                let mut body = with(i, 9.0);
                // Nothing is there from before.
                body["cache_salt"] = json!(format!("{round}"));
                scope.spawn(move || text(server, &body))
            };
            let all: Vec<_> = (0..8).map(ask).collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(answers, alone);
    }
    // Other words for the same.
    assert_eq!(
        text(&server, &json!({ "lora": [{ "id": 3, "scale": 9 }] })),
        alone[3]
    );
    let once = text(&server, &json!({ "adapters": [{ "id": "a3" }] }));
    assert_eq!(text(&server, &json!({ "model": "tiny:a3" })), once);
    assert_eq!(text(&server, &with(3, 0.0)), bare);
    let two = json!({ "adapters": [{ "id": "a1", "scale": 9 }, { "id": "a2", "scale": 9 }] });
    let two = text(&server, &two);
    assert!(two != alone[1] && two != alone[2]);
}

#[test]
fn beginnings_are_shared_within_an_adapter_only() {
    let server = start();
    let cached = |body: &Value| {
        let answer = complete(&server, body).json();
        let details = &answer["usage"]["prompt_tokens_details"];
        details["cached_tokens"].as_u64().unwrap()
    };
    for body in [json!({}), with(0, 1.0), with(0, 2.0), with(1, 1.0)] {
        assert_eq!(cached(&body), 0, "{body}");
        assert!(cached(&body) >= 32, "{body}");
    }
}

#[test]
fn unloading_lets_running_requests_end_with_it() {
    let server = start();
    let long = json!({ "max_tokens": 400, "adapters": [{ "id": "a5", "scale": 9 }] });
    let due = text(&server, &long);
    let mut body = json!({
        "prompt": "word ".repeat(40), "temperature": 0, "ignore_eos": true, "stream": true,
        "cache_salt": "other",
    });
    for (name, value) in long.as_object().unwrap() {
        body[name] = value.clone();
    }
    let body = body.to_string();
    let mut stream = server.connect();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {USER}\r\n\
         Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        server.address,
        body.len()
    )
    .unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let mut said = String::new();
    let mut unloaded = false;
    for line in &mut lines {
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        if data == "[DONE]" {
            break;
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        said += chunk["choices"][0]["text"].as_str().unwrap();
        if !unloaded {
            unloaded = true;
            let gone = boss(&server, "DELETE /v1/adapters/a5", &Value::Null);
            assert_eq!((gone.status, &gone.json()["deleted"]), (200, &json!(true)));
        }
    }
    assert_eq!(said, due);
    complete(&server, &with(5, 9.0)).refused(404, "adapter_not_found");
    boss(&server, "DELETE /v1/adapters/a5", &Value::Null).refused(404, "adapter_not_found");
    // Its name is free again, for another.
    let body = json!({ "name": "a5", "adapter": "made-77", "scale": 9 });
    assert_eq!(boss(&server, "POST /v1/adapters", &body).status, 200);
    let other = text(
        &server,
        &json!({ "adapters": [{ "id": "a5" }], "max_tokens": 400 }),
    );
    assert_ne!(other, due);
}

#[test]
fn names_are_looked_up_and_never_opened() {
    let server = start();
    for id in [
        "nobody",
        "../a1",
        "/etc/passwd",
        "made-1",
        "",
        "https://x.example/a",
    ] {
        let answer = complete(&server, &json!({ "adapters": [{ "id": id }] }));
        answer.refused(404, "adapter_not_found");
    }
    complete(&server, &json!({ "model": "tiny:nobody" })).refused(404, "adapter_not_found");
    for (bad, param) in [
        (json!({ "adapters": "a1" }), "adapters"),
        (json!({ "adapters": ["a1"] }), "adapters"),
        (json!({ "adapters": [{ "scale": 1 }] }), "adapters"),
        (
            json!({ "adapters": [{ "id": "a1", "scale": "1" }] }),
            "adapters",
        ),
        (
            json!({ "adapters": [{ "id": "a1", "scale": 1e9 }] }),
            "adapters",
        ),
        (
            json!({ "adapters": [{ "id": "a1", "path": "x" }] }),
            "adapters",
        ),
        (
            json!({ "adapters": [{ "id": "a1" }, { "id": 1 }] }),
            "adapters",
        ),
        (
            json!({ "adapters": vec![json!({ "id": "a1" }); 9] }),
            "adapters",
        ),
        (json!({ "adapters": [], "lora": [] }), "lora"),
        (json!({ "model": "tiny:a1", "lora": [] }), "model"),
    ] {
        let answer = complete(&server, &bad);
        answer.refused(400, "invalid_request");
        assert_eq!(answer.json()["error"]["param"], param, "{bad}");
    }
    let chat = json!({
        "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 1,
        "adapters": [{ "id": "nobody" }],
    });
    for path in ["/v1/chat/completions", "/v1/embeddings", "/v1/rerank"] {
        let mut body = chat.clone();
        if path != "/v1/chat/completions" {
            body = json!({ "input": "x", "query": "x", "documents": ["x"], "adapters": [{ "id": "nobody" }] });
        }
        let line = format!("POST {path}");
        send(&server, &line, USER, &body).refused(404, "adapter_not_found");
    }
}

#[test]
fn loading_is_for_admins() {
    let server = start();
    let path = json!({ "name": "x", "adapter": "/etc" });
    let vllm = json!({ "lora_name": "x", "lora_path": "/etc" });
    for (line, body) in [
        ("POST /v1/adapters", &path),
        ("DELETE /v1/adapters/a1", &Value::Null),
        ("POST /lora-adapters", &json!([])),
        ("POST /v1/load_lora_adapter", &vllm),
        ("POST /v1/unload_lora_adapter", &vllm),
    ] {
        send(&server, line, USER, body).refused(403, "insufficient_scope");
        send(&server, line, "", body).refused(401, "invalid_api_key");
    }
    let load = |name: &str, adapter: &str| {
        boss(
            &server,
            "POST /v1/adapters",
            &json!({ "name": name, "adapter": adapter }),
        )
    };
    load("x", "nothing").refused(404, "adapter_not_found");
    for bad in ["", "a/b", "..", "a b", &"a".repeat(65), "\u{e9}"] {
        load(bad, "made-1").refused(400, "invalid_request");
    }
    load("a1", "made-1").refused(400, "invalid_request");
    let more = json!({ "name": "x", "adapter": "made-1", "device": "gpu" });
    boss(&server, "POST /v1/adapters", &more).refused(400, "invalid_request");
    for i in 8..64 {
        assert_eq!(load(&format!("a{i}"), "made-1").status, 200);
    }
    load("x", "made-1").refused(400, "invalid_request");
}

#[test]
fn lists_usage_and_other_servers_words() {
    let server = start();
    let list = send(&server, "GET /v1/adapters", USER, &Value::Null).json();
    let first = &list["data"][0];
    assert_eq!(list["data"].as_array().unwrap().len(), 8);
    assert_eq!(
        (
            &first["id"],
            &first["model"],
            &first["kind"],
            &first["rank"]
        ),
        (&json!("a0"), &json!("tiny"), &json!("lora"), &json!(2))
    );
    assert!(first["bytes"].as_u64().unwrap() > 0 && first["scale"] == 1.0);

    // Among the models they stand behind their own, by the word that requests name both with.
    let models = send(&server, "GET /v1/models", USER, &Value::Null).json();
    let models = models["data"].as_array().unwrap();
    assert_eq!(models.len(), 9);
    assert!(models[0]["id"] == "tiny" && models[0].get("parent").is_none());
    let one = send(&server, "GET /v1/models/tiny:a3", USER, &Value::Null).json();
    assert_eq!(one, models[4]);
    assert_eq!(
        (&one["id"], &one["parent"], &one["object"], &one["adapter"]),
        (
            &json!("tiny:a3"),
            &json!("tiny"),
            &json!("model"),
            &json!("a3")
        )
    );
    assert!(!one.to_string().contains("made-"), "no paths: {one}");
    send(&server, "GET /v1/models/tiny:a9", USER, &Value::Null).refused(404, "model_not_found");

    // What llama.cpp sets holds for those who choose nothing.
    let bare = text(&server, &json!({}));
    let due = text(&server, &with(2, 9.0));
    let scales = json!([{ "id": 2, "scale": 9 }]);
    assert_eq!(boss(&server, "POST /lora-adapters", &scales).status, 200);
    assert_eq!(text(&server, &json!({})), due);
    assert_eq!(text(&server, &json!({ "adapters": [] })), bare);
    let list = send(&server, "GET /lora-adapters", USER, &Value::Null).json();
    assert_eq!(list[2], json!({ "id": 2, "path": "a2", "scale": 9.0 }));
    assert_eq!(list[3]["scale"], 0.0);
    assert_eq!(boss(&server, "POST /lora-adapters", &json!([])).status, 200);
    assert_eq!(text(&server, &json!({})), bare);

    let load = json!({ "lora_name": "v", "lora_path": "made-30" });
    assert_eq!(
        boss(&server, "POST /v1/load_lora_adapter", &load).status,
        200
    );
    text(&server, &json!({ "model": "tiny:v" }));
    let unload = json!({ "lora_name": "v" });
    assert_eq!(
        boss(&server, "POST /v1/unload_lora_adapter", &unload).status,
        200
    );
    complete(&server, &json!({ "model": "tiny:v" })).refused(404, "adapter_not_found");

    // Each request is written when its answer has ended.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let usage = send(&server, "GET /admin/usage", BOSS, &Value::Null).json();
        let rows = usage["usage"].as_array().unwrap();
        let of = |adapter: &str| rows.iter().find(|r| r["adapter"] == adapter);
        if let (Some(two), Some(_), Some(none)) = (of("a2"), of("v"), of("")) {
            assert_eq!(two["model"], "tiny");
            assert!(two["completion_tokens"].as_u64().unwrap() >= 16);
            assert!(none["completion_tokens"].as_u64().unwrap() >= 48);
            break;
        }
        assert!(std::time::Instant::now() < end, "{usage}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let audit = send(&server, "GET /admin/audit", BOSS, &Value::Null).json();
    let rows = audit["rows"].as_array().unwrap();
    let loads = |r: &&Value| r["route"] == "/v1/adapters" && r["adapter"] == "a0";
    assert_eq!(rows.iter().filter(loads).count(), 1, "{audit}");
}

/// `MODEL:ADAPTER` is for those who ask for answers: others name a model.
#[test]
fn a_word_of_two_names_is_unfolded_for_answers_only() {
    let server = start();
    // A model's own name wins, and an empty half is no name.
    for word in ["tiny:", ":a1", "a1", "tiny:a1:a2", "TINY:a1"] {
        let answer = complete(&server, &json!({ "model": word }));
        assert_eq!(answer.status, 404, "{word}: {answer:?}");
    }
    for (path, body) in [
        ("/v1/embeddings", json!({ "input": "x" })),
        ("/tokenize", json!({ "content": "x" })),
        (
            "/v1/rerank",
            json!({ "query": "x", "documents": ["x", "y"] }),
        ),
    ] {
        let mut body = body;
        body["model"] = json!("tiny:a1");
        let line = format!("POST {path}");
        let answer = send(&server, &line, USER, &body);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
    // Who loads an adapter names the model that it is for.
    let load = json!({ "model": "tiny:a1", "name": "x", "adapter": "made-1" });
    boss(&server, "POST /v1/adapters", &load).refused(404, "model_not_found");
    let load = json!({ "model": "tiny:a1", "lora_name": "x", "lora_path": "made-1" });
    boss(&server, "POST /v1/load_lora_adapter", &load).refused(404, "model_not_found");
}

/// Without keys nobody is an admin, and what was loaded at the start can be chosen.
#[test]
fn without_keys_what_is_there_can_be_chosen() {
    let model = tiny(256);
    let (adapters, scheduler) = (&model.adapters, &model.scheduler);
    adapters
        .load(scheduler, "poet", "made-3", Some(9.0), 1)
        .unwrap();
    let server = serve_models(vec![model], true, common::logged().0);
    let body = json!({ "prompt": "One two", "temperature": 0, "max_tokens": 8 });
    let bare = ok(&server, "/v1/completions", &body)["choices"][0]["text"].clone();
    let mut named = body.clone();
    named["adapters"] = json!([{ "id": "poet" }]);
    let named = ok(&server, "/v1/completions", &named)["choices"][0]["text"].clone();
    assert_ne!(bare, named);
    let load = json!({ "name": "x", "adapter": "made-1" });
    post(&server, "/v1/adapters", &load).refused(401, "invalid_api_key");
}
