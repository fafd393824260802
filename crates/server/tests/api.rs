//! OpenAI's routes over real sockets, with a tiny model.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use common::models::{chunks, ok, post, send, serve, serve_models, tiny};
use serde_json::{Value, json};
use server::Settings;

fn conversation(more: Value) -> Value {
    let mut body = json!({
        "model": "tiny", "messages": [{ "role": "user", "content": "Hello there, who are you?" }],
        "temperature": 0, "max_completion_tokens": 12, "ignore_eos": true,
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn a_conversation_whole_and_in_chunks() {
    let server = serve(512, false);
    let whole = ok(&server, "/v1/chat/completions", &conversation(json!({})));
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], "tiny");
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["role"], "assistant");
    let text = choice["message"]["content"].as_str().unwrap();
    assert_eq!(whole["usage"]["completion_tokens"], 12);

    let with = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let answer = post(&server, "/v1/chat/completions", &conversation(with));
    let chunks = chunks(&answer);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let (used, said) = chunks.split_last().unwrap();
    assert_eq!(used["choices"], json!([]));
    assert_eq!(used["usage"]["completion_tokens"], 12);
    assert_eq!(
        used["usage"]["prompt_tokens"],
        whole["usage"]["prompt_tokens"]
    );
    let mut joined = String::new();
    for chunk in said {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert!(chunk["usage"].is_null() && chunk.get("usage").is_some());
        joined += chunk["choices"][0]["delta"]["content"]
            .as_str()
            .unwrap_or("");
    }
    assert_eq!(joined, text);
    let last = &said.last().unwrap()["choices"][0];
    assert_eq!(last["delta"], json!({}));
    assert_eq!(last["finish_reason"], "length");
}

#[test]
fn seeds_choices_stops_and_logprobs() {
    let server = serve(512, false);
    let ask = |more: Value| ok(&server, "/v1/chat/completions", &conversation(more));
    let drawn = json!({ "temperature": 1.5, "seed": 7, "n": 3 });
    let (one, two) = (ask(drawn.clone()), ask(drawn));
    assert_eq!(one["choices"], two["choices"], "the same seed");
    let texts: Vec<&Value> = one["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["message"])
        .collect();
    assert!(texts.len() == 3 && texts[0] != texts[1], "{texts:?}");
    assert_eq!(one["usage"]["completion_tokens"], 36);

    let full = ask(json!({ "logprobs": true, "top_logprobs": 3 }));
    let content = full["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(content.len(), 12);
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(top[0]["token"], token["token"], "greedy takes the best");
        assert!(token["logprob"].as_f64().unwrap() <= 0.0 && token["bytes"].is_array());
    }
    let text = full["choices"][0]["message"]["content"].as_str().unwrap();
    let stop: String = text.chars().skip(3).take(2).collect();
    let cut = ask(json!({ "stop": [stop] }));
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    let cut = cut["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(cut, text.split(&stop).next().unwrap());
}

#[test]
fn texts_and_their_shapes() {
    let server = serve(512, false);
    let body = json!({
        "prompt": ["One two three", "Four five"], "temperature": 0, "logprobs": 2, "ignore_eos": true,
        "max_tokens": 4,
    });
    let answer = ok(&server, "/v1/completions", &body);
    assert_eq!(answer["object"], "text_completion");
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    let list = &choices[1]["logprobs"];
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list[name].as_array().unwrap().len(), 4, "{name}");
    }
    // The same prompt as ids.
    let ids = ok(
        &server,
        "/tokenize",
        &json!({ "content": "One two three", "add_special": true }),
    );
    let by_ids =
        json!({ "prompt": ids["tokens"], "temperature": 0, "ignore_eos": true, "max_tokens": 4 });
    let again = ok(&server, "/v1/completions", &by_ids);
    assert_eq!(again["choices"][0]["text"], choices[0]["text"]);
    let streamed = json!({ "prompt": "One two three", "temperature": 0, "ignore_eos": true, "max_tokens": 4, "stream": true });
    let parts = chunks(&post(&server, "/v1/completions", &streamed));
    let joined: String = parts
        .iter()
        .map(|c| c["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(joined, choices[0]["text"].as_str().unwrap());
    assert!(
        parts.iter().all(|c| c.get("usage").is_none()),
        "nobody asked for it"
    );
}

#[test]
fn a_beginning_in_common_is_counted() {
    let server = serve(512, false);
    let long = "word ".repeat(60);
    let body = json!({ "prompt": long, "max_tokens": 1 });
    let first = ok(&server, "/v1/completions", &body)["usage"]["prompt_tokens_details"].clone();
    assert_eq!(first["cached_tokens"], 0);
    assert_eq!(first["cache_miss"]["why"], "new");
    let second = ok(&server, "/v1/completions", &body)["usage"]["prompt_tokens_details"].clone();
    assert!(second["cached_tokens"].as_u64().unwrap() >= 32, "{second}");
    let mut salted = body.clone();
    salted["cache_salt"] = json!("mine");
    let salted = ok(&server, "/v1/completions", &salted);
    assert_eq!(salted["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

/// The system's words are shared by keys that say so; what users say never is.
#[test]
fn a_system_prompt_is_shared_on_request() {
    let keys = "0123456789abcdef a inference\nfedcba9876543210 b inference";
    let settings = Settings {
        api_keys: server::parse_file(keys, 0).unwrap(),
        ..common::logged().0
    };
    let server = serve_models(vec![tiny(1024)], false, settings);
    let ask = |key: &str, system: &str, user: &str, scope: &str| {
        let messages = json!([
            { "role": "system", "content": system }, { "role": "user", "content": user },
            { "role": "assistant", "content": "Well." }, { "role": "user", "content": "And?" },
        ]);
        let body =
            json!({ "messages": messages, "max_completion_tokens": 1, "cache_scope": scope });
        let answer = send(&server, "POST /v1/chat/completions", key, &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        let details = answer.json()["usage"]["prompt_tokens_details"].clone();
        details["cached_tokens"].as_u64().unwrap()
    };
    let tokens = |text: &str| {
        let body = json!({ "content": text });
        let answer = send(&server, "POST /tokenize", "0123456789abcdef", &body);
        answer.json()["tokens"].as_array().unwrap().len() as u64
    };
    let (a, b) = ("0123456789abcdef", "fedcba9876543210");
    let (system, user) = (
        "You help with maps. ".repeat(9),
        "0 where is it? ".repeat(9),
    );
    let blocks = tokens(&format!("[system] {system}\n[user] ")) / 32 * 32;
    assert!(blocks >= 64);
    assert_eq!(ask(a, &system, &user, "shared"), 0);
    assert!(ask(a, &system, &user, "shared") > blocks, "its own as well");
    assert_eq!(ask(b, &system, &user, "shared"), blocks);
    assert_eq!(ask(b, &system, &user, "key"), 0);
    assert!(ask(b, &system, &user, "shared") > blocks);
    assert_eq!(ask(b, &system.replace("maps", "moon"), &user, "shared"), 0);
    let wrong = json!({ "messages": [{ "role": "user", "content": "Hi" }], "cache_scope": "all" });
    let wrong = send(&server, "POST /v1/chat/completions", a, &wrong);
    wrong.refused(400, "invalid_request");
    assert_eq!(wrong.json()["error"]["param"], "cache_scope");
}

/// A request says how urgent it is, and when it is of no use any more.
#[test]
fn priorities_and_time() {
    let server = serve(512, false);
    let chat = "/v1/chat/completions";
    let embed = |more: Value| {
        let mut body = json!({ "input": "One two" });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    for fine in [
        json!({ "priority": -100, "timeout_ms": 60_000 }),
        json!({ "priority": 100 }),
    ] {
        ok(&server, chat, &conversation(fine.clone()));
        ok(&server, "/v1/embeddings", &embed(fine));
    }
    for (name, value) in [
        ("priority", json!(101)),
        ("priority", json!("high")),
        ("timeout_ms", json!(0)),
    ] {
        for (path, body) in [
            (chat, conversation(json!({ name: value }))),
            ("/v1/embeddings", embed(json!({ name: value }))),
        ] {
            let answer = post(&server, path, &body);
            answer.refused(400, "invalid_request");
            assert_eq!(answer.json()["error"]["param"], name, "{answer:?}");
        }
    }
    // 64 answers of 480 tokens take longer than a millisecond.
    let long = json!({
        "prompt": vec!["One two three"; 64], "max_tokens": 480, "ignore_eos": true, "timeout_ms": 1,
    });
    let late = post(&server, "/v1/completions", &long);
    assert_eq!(late.status, 408, "{late:?}");
    assert!(late.body.contains("deadline"), "{late:?}");
    ok(&server, chat, &conversation(json!({})));
}

/// The words of other servers for seeds and biases.
#[test]
fn seeds_and_biases_of_others() {
    let server = serve(512, false);
    let ask = |more: Value| {
        let answer = ok(&server, "/v1/chat/completions", &conversation(more));
        answer["choices"][0]["message"]["content"].clone()
    };
    let drawn = || ask(json!({ "temperature": 2, "seed": -1, "max_completion_tokens": 40 }));
    assert!(drawn() != drawn(), "-1 is drawn");
    let forced = ask(json!({ "logit_bias": { "65": 10_000 } }));
    assert_eq!(forced, ask(json!({ "logit_bias": [[65, 10_000]] })));
    let other = ask(json!({ "logit_bias": [[65, false], [66, 9000]] }));
    assert!(forced != other);
    let body = conversation(
        json!({ "logit_bias": [[65, 10_000]], "stop_token_ids": [65], "ignore_eos": false }),
    );
    let ended = ok(&server, "/v1/chat/completions", &body);
    assert_eq!(ended["choices"][0]["finish_reason"], "stop", "{ended}");
    let wrong = post(
        &server,
        "/v1/chat/completions",
        &conversation(json!({ "logit_bias": [[65]] })),
    );
    wrong.refused(400, "invalid_request");
    assert!(wrong.body.contains("list of pairs"), "{wrong:?}");
}

/// What nobody knows is refused by strict servers on every route, but for null.
#[test]
fn strict_routes() {
    let server = serve(512, true);
    for (path, body) in [
        ("/tokenize", json!({ "content": "One" })),
        ("/detokenize", json!({ "tokens": [5] })),
        (
            "/apply-template",
            json!({ "messages": [{ "role": "user", "content": "Hi" }] }),
        ),
        ("/v1/embeddings", json!({ "input": "One" })),
        (
            "/v1/rerank",
            json!({ "query": "One", "documents": ["Two"] }),
        ),
        ("/v1/completions", json!({ "prompt": "One" })),
    ] {
        let mut with = body.clone();
        with["unheard_of"] = Value::Null;
        ok(&server, path, &with);
        let long = "x".repeat(5000);
        for name in ["unheard_of", &long] {
            let mut with = body.clone();
            with[name] = json!(1);
            let answer = post(&server, path, &with);
            answer.refused(400, "invalid_request");
            assert!(
                answer.body.contains("unknown") && answer.body.len() < 1000,
                "{answer:?}"
            );
        }
    }
}

#[test]
fn templates_get_what_is_sent_along() {
    let mut model = tiny(128);
    let source = "{{ messages[0].content }}|{{ tools[0].name if tools else 'none' }}|{{ mood }}\
        |{{ add_generation_prompt }}";
    model.template = Some(text::ChatTemplate::new(source, "", "").unwrap());
    let server = serve_models(vec![model], false, common::logged().0);
    let ask = |more: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        post(&server, "/apply-template", &body)
    };
    let prompt = |more| ask(more).json()["prompt"].as_str().unwrap().to_lowercase();
    assert_eq!(prompt(json!({})), "hi|none||true");
    let all = json!({
        "tools": [{ "name": "look" }], "chat_template_kwargs": { "mood": "fine" },
        "add_generation_prompt": false,
    });
    assert_eq!(prompt(all), "hi|look|fine|false");
    for name in [
        "tools",
        "chat_template_kwargs",
        "add_generation_prompt",
        "chat_template",
    ] {
        let answer = ask(json!({ name: 5 }));
        answer.refused(400, "invalid_request");
        assert_eq!(answer.json()["error"]["param"], name);
    }
}

#[test]
fn what_is_refused_names_itself() {
    let server = serve(128, false);
    let chat = "/v1/chat/completions";
    let refuse = |more: Value, param: &str| {
        let answer = post(&server, chat, &conversation(more));
        answer.refused(400, "invalid_request");
        assert_eq!(answer.json()["error"]["param"], param, "{answer:?}");
    };
    refuse(json!({ "tools": [{ "type": "function" }] }), "tools");
    refuse(
        json!({ "response_format": { "type": "json_object" } }),
        "response_format",
    );
    refuse(json!({ "temperature": "hot" }), "temperature");
    refuse(json!({ "top_p": 3 }), "top_p");
    refuse(json!({ "n": 0 }), "n");
    refuse(json!({ "n": 1000 }), "n");
    refuse(json!({ "stop": [""] }), "stop");
    refuse(json!({ "top_logprobs": 2 }), "top_logprobs");
    refuse(json!({ "messages": [] }), "messages");
    refuse(
        json!({ "messages": [{ "role": "tool", "content": "x" }] }),
        "messages[0].role",
    );
    refuse(
        json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
        "messages[0].content",
    );
    refuse(json!({ "logit_bias": { "9999999": 1 } }), "logit_bias");
    // Values that change nothing pass, and so do names that nobody knows.
    let neutral = json!({ "tools": [], "response_format": { "type": "text" }, "user": "u", "seed": null, "unheard_of": 1 });
    ok(&server, chat, &conversation(neutral));
    post(&server, chat, &conversation(json!({ "model": "other" }))).refused(404, "model_not_found");
    let long =
        conversation(json!({ "messages": [{ "role": "user", "content": "word ".repeat(200) }] }));
    for stream in [false, true] {
        let mut long = long.clone();
        long["stream"] = json!(stream);
        post(&server, chat, &long).refused(400, "context_length_exceeded");
    }
    let strict = serve(128, true);
    let answer = post(&strict, chat, &conversation(json!({ "unheard_of": 1 })));
    assert_eq!(
        answer.refused(400, "invalid_request").json()["error"]["param"],
        "unheard_of"
    );
}

#[test]
fn models_tokens_templates_and_vectors() {
    let server = serve(128, false);
    let list = server.get("/v1/models", "").json();
    assert_eq!(list["data"][0]["id"], "tiny");
    assert_eq!(server.get("/v1/models/tiny", "").json()["context"], 128);
    server
        .get("/v1/models/none", "")
        .refused(404, "model_not_found");

    let text = "Hello <|im_end|> there";
    let ids = ok(&server, "/tokenize", &json!({ "content": text }))["tokens"].clone();
    let parsed = ok(
        &server,
        "/tokenize",
        &json!({ "content": text, "parse_special": true }),
    );
    assert!(ids.as_array().unwrap().len() > parsed["tokens"].as_array().unwrap().len());
    let back = ok(&server, "/detokenize", &json!({ "tokens": ids }));
    assert_eq!(back["content"], text);
    let messages = json!({ "messages": [{ "role": "developer", "content": [{ "type": "text", "text": "Hi" }] }] });
    let prompt = ok(&server, "/apply-template", &messages);
    assert_eq!(prompt["prompt"], "[system] Hi\n[assistant] ");

    let texts = ["Hello there", "Something else"];
    for pooling in ["mean", "last", "cls"] {
        let body = json!({ "input": texts, "pooling": pooling });
        let answer = ok(&server, "/v1/embeddings", &body);
        let mut packed = body.clone();
        packed["encoding_format"] = json!("base64");
        let packed = ok(&server, "/v1/embeddings", &packed);
        assert!(packed["data"][0]["embedding"].as_str().unwrap().len() > 20);
        let vector = |i: usize| -> Vec<f64> {
            let list = answer["data"][i]["embedding"].as_array().unwrap();
            list.iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let length = vector(0).iter().map(|x| x * x).sum::<f64>();
        assert!((length - 1.0).abs() < 1e-5, "{pooling}: {length}");
        let other = ok(
            &server,
            "/v1/embeddings",
            &json!({ "input": texts[1], "pooling": pooling }),
        );
        assert_eq!(
            other["data"][0]["embedding"],
            answer["data"][1]["embedding"]
        );
    }
    post(&server, "/v1/embeddings", &json!({ "input": [] })).refused(400, "invalid_request");
}

/// A client that leaves takes its request with it.
#[test]
fn leaving_cancels() {
    let server = serve(8192, false);
    let mut body = conversation(json!({ "stream": true, "n": 2 }));
    body["max_completion_tokens"] = json!(8000);
    let body = body.to_string();
    let mut stream = server.connect();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        server.address,
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines();
    lines
        .find(|line| line.as_ref().unwrap().contains("finish_reason"))
        .unwrap()
        .unwrap();
    drop(lines);
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        // The gauges are set when a choice ends.
        let text = server.get("/metrics", "").body;
        let value = |name: &str| -> Option<u64> {
            let line = text.lines().find(|l| l.starts_with(name))?;
            line.rsplit(' ').next()?.parse().ok()
        };
        if let Some(tokens) = value("puna_completion_tokens_total{") {
            assert!(tokens < 8000, "{tokens} tokens for nobody");
            break;
        }
        assert!(Instant::now() < end, "it never ended:\n{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The engine is free for others.
    ok(&server, "/v1/chat/completions", &conversation(json!({})));
}

/// Whatever a stranger sends, a line of the log is short, and one line.
#[test]
fn lines_of_the_log_are_short() {
    let (settings, log) = common::logged();
    let server = serve_models(vec![tiny(256)], false, settings);
    let long = "x".repeat(20_000);
    let body = |more: Value| {
        let mut body = json!({ "prompt": "Hi", "max_tokens": 1 });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        post(&server, "/v1/completions", &body)
    };
    body(json!({ "model": long })).refused(404, "model_not_found");
    body(json!({ "model": format!("tiny:{long}") })).refused(404, "adapter_not_found");
    body(json!({ "adapters": [{ "id": long }] })).refused(404, "adapter_not_found");
    body(json!({ long.as_str(): 1, "model": "a\nb" })).refused(404, "model_not_found");
    let header = format!("X-Request-Id: {long}");
    assert_eq!(server.ask("GET /health", &[&header], "").status, 200);
    let path = format!("GET /{}", &long[..9000]);
    assert_eq!(server.ask(&path, &[], "").status, 404);
    let method = format!("{} /health", &long[..9000]);
    assert_eq!(server.ask(&method, &[], "").status, 405);
    let lines = log.lock().unwrap().clone();
    assert_eq!(lines.len(), 7);
    for line in &lines {
        assert!(line.len() < 400 && !line.contains('\n'), "{line}");
        serde_json::from_str::<Value>(line).unwrap();
    }
}

/// docs/api.md has the tables of the code.
#[test]
fn the_page_of_the_api() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- tables -->\n", "<!-- end of tables -->");
    let (head, rest) = page.split_once(begin).unwrap();
    let (_, tail) = rest.split_once(end).unwrap();
    let due = format!("{head}{begin}\n{}{end}{tail}", server::api::table::tables());
    if std::env::var_os("PUNA_BLESS").is_some() {
        std::fs::write(&path, &due).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap();
    assert!(
        there == due,
        "docs/api.md is not what the code says; PUNA_BLESS=1 renews it"
    );
}

/// What no answer needs and what would stop the engine is refused, and the server answers on.
#[test]
fn extreme_samplers_harm_nobody() {
    let server = serve(64, false);
    let biases: serde_json::Map<String, Value> =
        (0..2000).map(|id| (id.to_string(), json!(1))).collect();
    let breakers: Vec<String> = (0..100).map(|i| i.to_string()).collect();
    for refused in [
        json!({ "logit_bias": { "5": 3.4e38 } }),
        json!({ "logit_bias": { "5": 1, "05": 1 } }),
        json!({ "logit_bias": biases }),
        json!({ "dry_sequence_breakers": breakers }),
        json!({ "dry_sequence_breakers": ["x".repeat(100)] }),
        json!({ "stop": "x".repeat(300) }),
    ] {
        let mut body = refused;
        body["prompt"] = json!("Hi");
        post(&server, "/v1/completions", &body).refused(400, "invalid_request");
    }
    let everything: serde_json::Map<String, Value> =
        (0..512).map(|id| (id.to_string(), json!(-10000))).collect();
    for mirostat in [0, 1, 2] {
        let body = json!({
            "prompt": "Hi", "max_tokens": 3, "mirostat": mirostat, "temperature": 1e-30,
            "logit_bias": everything, "repeat_penalty": 1000,
        });
        ok(&server, "/v1/completions", &body);
    }
    let unknown: serde_json::Map<String, Value> =
        (0..1000).map(|i| (format!("x{i}"), json!(i))).collect();
    let mut body = Value::Object(unknown);
    body["prompt"] = json!("Hi");
    ok(&server, "/v1/completions", &body);
}

/// What the engine does is seen while it does it, before any request has ended.
#[test]
fn metrics_say_what_the_engine_does_now() {
    let server = serve(4096, false);
    let value = |name: &str| -> f64 {
        let text = server.get("/metrics", "").body;
        let line = format!("{name}{{model=\"tiny\"}} ");
        let found = text.lines().find_map(|l| l.strip_prefix(&line));
        found.map_or(-1.0, |v| v.parse().unwrap())
    };
    assert_eq!(value("puna_batch_size_count"), 0.0);
    assert!(value("puna_cache_pages") > 0.0);
    let body = json!({ "prompt": "a b c", "max_tokens": 3000, "ignore_eos": true, "stream": true });
    let text = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        server.address,
        body.to_string().len()
    );
    let mut stream = server.connect();
    stream.write_all(text.as_bytes()).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while value("puna_batch_size_sum") < 20.0 || value("puna_sequences_running") != 1.0 {
        assert!(Instant::now() < end, "{}", server.get("/metrics", "").body);
    }
    assert!(value("puna_cache_pages_used") >= 1.0);
    assert!(value("puna_inter_token_latency_seconds_count") > 10.0);
    drop(stream);
    while value("puna_sequences_running") != 0.0 {
        assert!(Instant::now() < end);
    }
    // Between 40 tokens there are 39 times; a lone token has none.
    let before = value("puna_inter_token_latency_seconds_count");
    for tokens in [40, 1] {
        let body = json!({ "prompt": "a b c", "max_tokens": tokens, "ignore_eos": true });
        ok(&server, "/v1/completions", &body);
    }
    let after = value("puna_inter_token_latency_seconds_count");
    assert_eq!(after - before, 39.0);
    assert!(value("puna_inter_token_latency_seconds_sum") > 0.0);
}

#[test]
fn guesses_are_asked_for_and_counted() {
    let server = serve(512, false);
    let ask = |more: Value| {
        let mut body = json!({
            "prompt": "to be or not to be or not to be or not to be or not", "max_tokens": 40,
            "temperature": 0, "ignore_eos": true, "logit_bias": { "40": 100 },
        });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        ok(&server, "/v1/completions", &body)
    };
    let counts = |answer: &Value| {
        let details = &answer["usage"]["completion_tokens_details"];
        let count = |name: &str| details[name].as_u64().unwrap();
        (
            count("accepted_prediction_tokens"),
            count("rejected_prediction_tokens"),
        )
    };
    // This server does not guess where it is not asked to.
    let plain = ask(json!({}));
    assert_eq!(counts(&plain), (0, 0));
    for more in [
        json!({ "speculative": "auto" }),
        json!({ "speculative": "ngram" }),
        json!({ "speculative.n_max": 4 }),
    ] {
        let helped = ask(more.clone());
        assert_eq!(helped["choices"], plain["choices"], "{more}");
        assert!(counts(&helped).0 > 10, "{more}: {helped}");
    }
    let off = json!({ "speculative": "off", "speculative.n_max": 4 });
    assert_eq!(counts(&ask(off)), (0, 0));
    for wrong in [
        json!({ "prompt": "x", "speculative": "draft" }),
        json!({ "prompt": "x", "speculative": 3 }),
        json!({ "prompt": "x", "speculative.n_max": 65 }),
    ] {
        let refused = post(&server, "/v1/completions", &wrong);
        let error = refused.refused(400, "invalid_request").json();
        let param = error["error"]["param"].as_str().unwrap().to_owned();
        assert!(wrong.get(&param).is_some(), "{error}");
    }
}
