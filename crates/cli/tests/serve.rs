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
    let server = Server::of(&home, &[&["-m", &base], &more[..]].concat());
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
    let server = Server::of(&home, &["-m", "made"]);
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
    std::fs::create_dir(home.dir.path().join("full")).expect("made");
    std::fs::write(home.dir.path().join("full/letter"), "dear").expect("written");
    serve(&["--cache-dir", "full"]).failed(2, "full");
    serve(&["--speculate", "draft"]).failed(2, "needs a draft model");
    serve(&["--speculate", "maybe"]).failed(2, "ngram");
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

/// A home whose store has these models, made of reference files; each is some 34 MB to run.
fn stocked(names: &[&str]) -> Home {
    let home = Home::new();
    let files = [
        "gguf/llama3_1.f32.gguf",
        "gguf/llama3.f32.gguf",
        "gguf/llama1.f32.gguf",
    ];
    for (name, file) in names.iter().zip(files) {
        let text = format!("FROM {}", fixture(file));
        home.run_with(&["create", name, "-f", "-"], text.as_bytes())
            .succeeded();
    }
    home
}

fn complete(server: &Server, model: &str) -> (u16, String) {
    let asked = json!({ "model": model, "prompt": "Hi", "max_tokens": 2 });
    server.ask("POST", "/v1/completions", "", &asked)
}

/// (id, about it) of all that may be asked for.
fn models(server: &Server) -> Vec<(String, Value)> {
    let (_, list) = server.ask("GET", "/v1/models", "", &Value::Null);
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let each = list["data"].as_array().expect("a list").iter();
    each.map(|m| (m["id"].as_str().expect("a name").to_owned(), m.clone()))
        .collect()
}

fn loaded(server: &Server) -> String {
    let all = models(server).into_iter();
    let ids: Vec<String> = all.filter(|m| m.1["loaded"] == true).map(|m| m.0).collect();
    ids.join(" ")
}

/// Files that the process has mapped.
#[cfg(target_os = "linux")]
fn maps(server: &Server, part: &str) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.child.id()));
    maps.expect("maps")
        .lines()
        .filter(|l| l.contains(part))
        .count()
}

#[test]
fn the_stores_models_come_when_they_are_asked_for() {
    let home = stocked(&["one", "two", "bad"]).env("PUNA_MEMORY", "70M");
    // The same size, and nothing of a model.
    let shown = home.run(&["show", "bad", "--format", "json"]).json();
    let file = shown["path"].as_str().expect("a path").to_owned();
    let bytes = std::fs::read(&file).expect("read").len();
    std::fs::write(&file, vec![7; bytes]).expect("written");
    let server = Server::of(&home, &["-m", "one", "--on-demand", "--keep-alive", "-1"]);
    let ids: Vec<String> = models(&server).into_iter().map(|m| m.0).collect();
    assert_eq!(ids, ["one:latest", "bad:latest", "two:latest"]);
    assert_eq!(loaded(&server), "one:latest");
    let answer = complete(&server, "two:latest");
    assert_eq!(answer.0, 200, "{answer:?}");
    // There is room for one of them only; the other's file is given back.
    assert_eq!(loaded(&server), "two:latest");
    #[cfg(target_os = "linux")]
    assert!(maps(&server, "llama3.f32.gguf") > 0 && maps(&server, "llama3_1.f32.gguf") == 0);
    let (status, said) = complete(&server, "bad:latest");
    assert!(status == 500 && !said.contains(&file), "{said}");
    for id in [
        &fixture("models/llama3")[..],
        "two",
        "smollm2:135m",
        "hf:a/b",
    ] {
        let (status, said) = complete(&server, id);
        assert!(
            status == 404 && said.contains("model_not_found"),
            "{id}: {said}"
        );
    }
    // A model that is made while the server runs is there, at the latest after a second.
    home.run_with(
        &["create", "late", "-f", "-"],
        b"FROM one\nPARAMETER num_ctx 96",
    )
    .succeeded();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(complete(&server, "late:latest").0, 200);
    let late = models(&server).into_iter().find(|m| m.0 == "late:latest");
    assert_eq!(late.expect("listed").1["context"], 96);
    assert_eq!(complete(&server, "one:latest").0, 200);
}

#[test]
fn idle_models_are_unloaded_and_puna_toml_may_say_so() {
    let home = stocked(&["one"]);
    let file = fixture("gguf/llama3.f32.gguf");
    let text =
        format!("[serve]\non-demand = true\nkeep-alive = \"300ms\"\n[models.{file:?}]\nctx = 64\n");
    std::fs::write(home.dir.path().join("puna.toml"), text).expect("written");
    let server = Server::of(&home, &["-m", "one"]);
    let gone = || {
        for _ in 0..500 {
            if loaded(&server).is_empty() {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        false
    };
    assert!(gone());
    #[cfg(target_os = "linux")]
    assert_eq!(maps(&server, "llama3_1.f32.gguf"), 0);
    // A file that puna.toml names is a model too.
    assert_eq!(complete(&server, "llama3.f32").0, 200);
    assert!(gone());
    assert_eq!(complete(&server, "one:latest").0, 200);
}

/// Two models share one plan.
#[test]
fn several_models_do_not_take_the_same_memory_twice() {
    let one = fixture("gguf/llama3_1.f32.gguf");
    let two = fixture("gguf/llama3.f32.gguf");
    let both = ["-m", &one, "-m", &two];
    let home = Home::new().env("PUNA_MEMORY", "70M");
    home.run(&[&["serve", "--port", "0"], &both[..]].concat())
        .failed(5, "2 models need");
    let home = Home::new().env("PUNA_MEMORY", "300M");
    let server = Server::of(&home, &both);
    assert_eq!(loaded(&server), "llama3_1.f32 llama3.f32");
    let home = Home::new().env("PUNA_MEMORY", "70M");
    let server = Server::of(&home, &[&both[..], &["--on-demand"]].concat());
    assert_eq!(loaded(&server), "llama3_1.f32");
    assert_eq!(complete(&server, "llama3.f32").0, 200);
    assert_eq!(loaded(&server), "llama3.f32");
}
