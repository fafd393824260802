//! What else may be asked of a model: texts ranked, gaps filled, prompts repeated; and what a made
//! model says where a request does not.

mod common;

use common::models::{chunks, events, filler, ok, post, serve, serve_models, tiny};
use common::{Server, logged};
use serde_json::{Value, json};

const DOCUMENTS: [&str; 3] = [
    "The harbour was full of small boats.",
    "Bread needs flour, water, salt and time.",
    "Nobody knew why the clock had stopped.",
];

fn rerank(server: &Server, more: Value) -> Value {
    let mut body = json!({ "query": "How is bread made?", "documents": DOCUMENTS });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    ok(server, "/v1/rerank", &body)
}

/// Scores by document, after checking that the answer is sorted by them.
fn scores(answer: &Value) -> Vec<f64> {
    let results = answer["results"].as_array().unwrap();
    let score = |r: &Value| r["relevance_score"].as_f64().unwrap();
    assert!(
        results.is_sorted_by(|a, b| score(a) >= score(b)),
        "{answer}"
    );
    let mut all = vec![f64::NAN; results.len()];
    for r in results {
        all[r["index"].as_u64().unwrap() as usize] = score(r);
    }
    all
}

#[test]
fn texts_are_ranked_by_their_vectors() {
    let server = serve(512, true);
    let answer = rerank(&server, json!({}));
    let vector = |text: &str| -> Vec<f64> {
        let answer = ok(&server, "/v1/embeddings", &json!({ "input": text }));
        let list = answer["data"][0]["embedding"].as_array().unwrap().clone();
        list.iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let query = vector("How is bread made?");
    for (score, text) in scores(&answer).iter().zip(DOCUMENTS) {
        let due: f64 = vector(text).iter().zip(&query).map(|(a, b)| a * b).sum();
        assert!((score - due).abs() < 1e-5, "{text}: {score}, {due}");
    }
    let used = &answer["usage"];
    assert!(used["total_tokens"].as_u64().unwrap() > 20, "{used}");
    let two = rerank(&server, json!({ "top_n": 2, "return_documents": true }));
    let results = two["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for (short, whole) in results.iter().zip(answer["results"].as_array().unwrap()) {
        assert_eq!(short["relevance_score"], whole["relevance_score"]);
        let i = short["index"].as_u64().unwrap() as usize;
        assert_eq!(short["document"]["text"], DOCUMENTS[i]);
        assert!(whole.get("document").is_none());
    }
    let objects: Vec<Value> = DOCUMENTS.iter().map(|t| json!({ "text": t })).collect();
    let same = rerank(&server, json!({ "documents": objects, "top_n": 99 }));
    assert_eq!(same["results"], answer["results"]);
    let short = json!({ "query": "x", "documents": ["y"] });
    ok(&server, "/rerank", &short);
}

/// The likelihoods are those that /v1/completions has for the same tokens.
#[test]
fn texts_are_ranked_by_what_follows_them() {
    let server = serve(512, true);
    let answer = rerank(&server, json!({ "method": "likelihood" }));
    for (score, text) in scores(&answer).iter().zip(DOCUMENTS) {
        let prompt =
            format!("{text}\n\nWhat somebody asked who found this text: How is bread made?");
        let body = json!({ "prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 0 });
        let echo = ok(&server, "/v1/completions", &body);
        let list = &echo["choices"][0]["logprobs"];
        let offsets = list["text_offset"].as_array().unwrap();
        let begin = prompt.find(" How is").unwrap() as u64;
        let logprobs = list["token_logprobs"].as_array().unwrap().iter();
        let asked = logprobs
            .zip(offsets)
            .filter(|(_, o)| o.as_u64().unwrap() >= begin);
        let asked: Vec<f64> = asked.map(|(l, _)| l.as_f64().unwrap()).collect();
        assert!(asked.len() > 3);
        let due = asked.iter().sum::<f64>() / asked.len() as f64;
        assert!((score - due).abs() < 1e-9, "{text}: {score}, {due}");
    }
    // More than stand in line at once, each for itself.
    let many: Vec<String> = (0..100).map(|i| format!("Text {i}.")).collect();
    let all = rerank(
        &server,
        json!({ "method": "likelihood", "documents": many }),
    );
    let some = rerank(
        &server,
        json!({ "method": "likelihood", "documents": many[..3] }),
    );
    assert_eq!(scores(&all)[..3], scores(&some));
}

#[test]
fn what_cannot_be_ranked_is_refused_before_it_runs() {
    let server = serve(64, false);
    for (more, param) in [
        (json!({ "query": "" }), "query"),
        (json!({ "query": 5 }), "query"),
        (json!({ "documents": [] }), "documents"),
        (json!({ "documents": "x" }), "documents"),
        (json!({ "documents": ["x", 5] }), "documents[1]"),
        (json!({ "documents": ["x", ""] }), "documents[1]"),
        (json!({ "documents": vec!["x"; 1001] }), "documents"),
        (json!({ "top_n": 0 }), "top_n"),
        (json!({ "method": "magic" }), "method"),
        (json!({ "max_tokens_per_doc": 5 }), "max_tokens_per_doc"),
        (json!({ "return_documents": 1 }), "return_documents"),
    ] {
        let mut body = json!({ "query": "x", "documents": ["y"] });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let answer = post(&server, "/v1/rerank", &body);
        answer.refused(400, "invalid_request");
        assert_eq!(answer.json()["error"]["param"], param, "{more}");
    }
    let long = json!({ "query": "x", "documents": ["y", "word ".repeat(100)] });
    let answer = post(&server, "/v1/rerank", &long);
    answer.refused(400, "context_length_exceeded");
    assert_eq!(answer.json()["error"]["param"], "documents");
}

#[test]
fn a_gap_is_filled() {
    let server = filler(logged().0);
    let ids = |text: &str| -> Vec<u64> {
        let answer = ok(
            &server,
            "/tokenize",
            &json!({ "content": text, "parse_special": true }),
        );
        let list = answer["tokens"].as_array().unwrap();
        list.iter().map(|id| id.as_u64().unwrap()).collect()
    };
    // The same as ids.
    let begin = ok(
        &server,
        "/tokenize",
        &json!({ "content": "", "add_special": true }),
    );
    let mut prompt: Vec<u64> = begin["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i.as_u64().unwrap())
        .collect();
    for part in [
        "<|fim_prefix|>",
        "fn main() { let",
        "<|fim_suffix|>",
        "}",
        "<|fim_middle|>",
    ] {
        prompt.extend(ids(part));
    }
    let due = json!({ "prompt": prompt, "temperature": 0, "max_tokens": 9, "ignore_eos": true });
    let due = ok(&server, "/v1/completions", &due);
    let due_text = due["choices"][0]["text"].as_str().unwrap();

    let mut body = json!({
        "input_prefix": "fn main() {", "prompt": " let", "input_suffix": "}", "n_predict": 9,
        "temperature": 0, "ignore_eos": true,
    });
    let answer = ok(&server, "/infill", &body);
    assert_eq!(answer["content"], due_text);
    assert_eq!(
        (&answer["stop"], &answer["stop_type"]),
        (&json!(true), &json!("limit"))
    );
    assert_eq!(answer["tokens_predicted"], 9);
    assert_eq!(answer["tokens_evaluated"], due["usage"]["prompt_tokens"]);
    assert_eq!(answer["timings"]["predicted_n"], 9);
    // OpenAI's words for it.
    let suffix = json!({
        "prompt": "fn main() { let", "suffix": "}", "max_tokens": 9, "temperature": 0,
        "ignore_eos": true,
    });
    let suffix = ok(&server, "/v1/completions", &suffix);
    assert_eq!(suffix["choices"][0]["text"], due_text);
    // As it is made.
    body["stream"] = json!(true);
    let events = events(&post(&server, "/infill", &body));
    let parts: Vec<Value> = events
        .iter()
        .map(|e| serde_json::from_str(e).unwrap())
        .collect();
    let joined: String = parts
        .iter()
        .map(|p| p["content"].as_str().unwrap())
        .collect();
    assert_eq!(joined, due_text);
    let (last, before) = parts.split_last().unwrap();
    assert!(before.iter().all(|p| p["stop"] == false));
    assert_eq!(
        (&last["stop"], &last["tokens_predicted"]),
        (&json!(true), &json!(9))
    );
    // Other files change it.
    body["stream"] = json!(false);
    body["input_extra"] = json!([{ "filename": "a.rs", "text": "fn other() {}" }]);
    let with = ok(&server, "/infill", &body);
    assert!(with["tokens_evaluated"].as_u64() > answer["tokens_evaluated"].as_u64());
    // Marks in a text are text.
    body["input_prefix"] = json!("<|fim_middle|>");
    let marked = ok(&server, "/infill", &body);
    assert!(marked["tokens_evaluated"].as_u64().unwrap() > 10);
    for (name, value) in [
        ("input_extra", json!("x")),
        ("input_extra", json!([{ "text": 5 }])),
        ("input_suffix", json!(5)),
        ("temperature", json!("hot")),
    ] {
        let mut bad = body.clone();
        bad[name] = value;
        let answer = post(&server, "/infill", &bad);
        answer.refused(400, "invalid_request");
        assert_eq!(answer.json()["error"]["param"], name);
    }
    post(&server, "/infill", &json!({ "prompt": "x" })).refused(400, "invalid_request");
}

#[test]
fn a_model_without_marks_fills_nothing() {
    let server = serve(64, false);
    let around = json!({ "input_prefix": "a", "input_suffix": "b" });
    let answer = post(&server, "/infill", &around);
    answer.refused(400, "invalid_request");
    assert!(answer.body.contains("not made for infill"), "{answer:?}");
    let suffix = json!({ "prompt": "a", "suffix": "b" });
    post(&server, "/v1/completions", &suffix).refused(400, "invalid_request");
    ok(
        &server,
        "/v1/completions",
        &json!({ "prompt": "a", "suffix": "" }),
    );
}

#[test]
fn prompts_are_repeated_with_their_likelihoods() {
    let server = serve(512, false);
    let ids = ok(
        &server,
        "/tokenize",
        &json!({ "content": "One two three four" }),
    );
    let ids = &ids["tokens"];
    let n = ids.as_array().unwrap().len();
    let ask = |more: Value| {
        let mut body = json!({ "temperature": 0, "ignore_eos": true, "max_tokens": 3 });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let plain = ok(
        &server,
        "/v1/completions",
        &ask(json!({ "prompt": ids, "logprobs": 2 })),
    );
    let body = ask(json!({ "prompt": [ids, [5, 6]], "echo": true, "logprobs": 2, "n": 2 }));
    let echo = ok(&server, "/v1/completions", &body);
    assert_eq!(echo["choices"].as_array().unwrap().len(), 4);
    let said = plain["choices"][0]["text"].as_str().unwrap();
    for choice in &echo["choices"].as_array().unwrap()[..2] {
        assert_eq!(choice["text"], format!("One two three four{said}"));
        let list = &choice["logprobs"];
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(list[name].as_array().unwrap().len(), n + 3, "{name}");
        }
        assert!(list["token_logprobs"][0].is_null() && list["top_logprobs"][0].is_null());
        assert!((1..n + 3).all(|i| list["token_logprobs"][i].as_f64().unwrap() <= 0.0));
        assert_eq!(list["top_logprobs"][1].as_object().unwrap().len(), 2);
        assert_eq!(
            list["token_logprobs"][n],
            plain["choices"][0]["logprobs"]["token_logprobs"][0]
        );
        let tokens = list["tokens"].as_array().unwrap();
        let tokens: String = tokens.iter().map(|t| t.as_str().unwrap()).collect();
        assert_eq!(choice["text"], tokens);
    }
    let streamed = ask(json!({ "prompt": ids, "echo": true, "logprobs": 2, "stream": true }));
    let parts = chunks(&post(&server, "/v1/completions", &streamed));
    assert_eq!(parts[0]["choices"][0]["text"], "One two three four");
    let offsets = parts
        .iter()
        .filter_map(|p| p["choices"][0]["logprobs"]["text_offset"].as_array());
    let offsets: Vec<&Value> = offsets.flatten().collect();
    let due = echo["choices"][0]["logprobs"]["text_offset"]
        .as_array()
        .unwrap();
    assert_eq!(offsets, due.iter().collect::<Vec<_>>());
    // A text, of which nothing is told but what it says; and nothing more than the prompt.
    let text = ask(json!({ "prompt": "One two", "echo": true, "max_tokens": 0, "logprobs": 0 }));
    let text = ok(&server, "/v1/completions", &text);
    assert_eq!(text["choices"][0]["text"], "One two");
    let tokens = text["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    let tokens: String = tokens.iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(tokens, "One two");
    assert_eq!(text["usage"]["completion_tokens"], 0);
}

/// A prompt that is repeated with its likelihoods is read twice and billed once, whatever it is
/// asked for.
#[test]
fn a_repeated_prompt_is_billed_once() {
    let server = serve(512, false);
    let prompt: Vec<u32> = (300..340).collect();
    let mut due = (0, 0, 0);
    for (prompts, n, most, logprobs) in [
        (1, 1, 4, json!(2)),
        (3, 2, 5, json!(0)),
        (1, 1, 0, json!(1)),
        (2, 1, 3, Value::Null),
    ] {
        let body = json!({
            "prompt": vec![prompt.clone(); prompts], "n": n, "max_tokens": most, "echo": true,
            "logprobs": logprobs, "temperature": 0, "ignore_eos": true,
        });
        let usage = ok(&server, "/v1/completions", &body)["usage"].clone();
        let (read, made) = (40 * prompts, prompts * n * most);
        assert_eq!(
            (&usage["prompt_tokens"], &usage["completion_tokens"]),
            (&json!(read), &json!(made)),
            "{body}"
        );
        due = (due.0 + 1, due.1 + read as u64, due.2 + made as u64);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let rows = server.store().usage(0, 1 << 50).unwrap();
            let sum = |of: fn(&server::Usage) -> u64| rows.iter().map(of).sum::<u64>();
            let is = (
                sum(|r| r.requests),
                sum(|r| r.prompt_tokens),
                sum(|r| r.completion_tokens),
            );
            if is == due {
                break;
            }
            assert!(std::time::Instant::now() < end, "{is:?}, not {due:?}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn a_made_model_says_what_a_request_does_not() {
    let mut model = tiny(512);
    (model.seed, model.max_tokens) = (Some(7), Some(5));
    let server = serve_models(vec![model], false, logged().0);
    let ask = |more: Value| {
        let mut body = json!({ "prompt": "One two", "temperature": 1.5, "ignore_eos": true });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        ok(&server, "/v1/completions", &body)
    };
    let one = ask(json!({}));
    assert_eq!(one["usage"]["completion_tokens"], 5);
    assert_eq!(one["choices"], ask(json!({}))["choices"]);
    assert_eq!(one["choices"], ask(json!({ "seed": 7 }))["choices"]);
    assert_ne!(one["choices"], ask(json!({ "seed": 8 }))["choices"]);
    let long = ask(json!({ "max_tokens": 9 }));
    assert_eq!(long["usage"]["completion_tokens"], 9);
    let chat = json!({ "messages": [{ "role": "user", "content": "Hi" }], "ignore_eos": true });
    let chat = ok(&server, "/v1/chat/completions", &chat);
    assert_eq!(chat["usage"]["completion_tokens"], 5);
}

/// What official clients and frameworks send where nobody told them to.
#[test]
fn clients_defaults_pass() {
    let server = serve(512, true);
    let chat = json!({
        "model": "tiny", "messages": [{ "role": "user", "content": "Hi", "name": "me" }],
        "temperature": 0.7, "top_p": 1, "n": 1, "presence_penalty": 0, "frequency_penalty": 0,
        "max_completion_tokens": 4, "max_tokens": null, "stop": null, "logprobs": false,
        "top_logprobs": null, "logit_bias": {}, "user": "u", "safety_identifier": "s",
        "metadata": {}, "store": true, "service_tier": "auto", "parallel_tool_calls": true,
        "tool_choice": "auto", "tools": [], "response_format": { "type": "text" }, "seed": 1,
        "modalities": ["text"], "audio": null, "prediction": null, "verbosity": "medium",
        "reasoning_effort": null, "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "stream": true,
        "stream_options": { "include_usage": true, "include_obfuscation": false },
    });
    let parts = chunks(&post(&server, "/v1/chat/completions", &chat));
    let used = &parts.last().unwrap()["usage"];
    assert_eq!(used["completion_tokens"], 4);
    assert!(used["prompt_tokens_details"]["cached_tokens"].is_u64());
    let ended = &parts[parts.len() - 2];
    assert_eq!(ended["choices"][0]["finish_reason"], "length");
    assert_eq!(ended["timings"]["predicted_n"], 4);
    let text = json!({
        "model": "tiny", "prompt": ["Hi"], "max_tokens": 4, "n": 1, "best_of": 1, "echo": false,
        "suffix": null, "logprobs": null, "temperature": 0.7, "top_p": 1, "stream": false,
        "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "user": "u",
    });
    let text = ok(&server, "/v1/completions", &text);
    assert_eq!(text["timings"]["predicted_n"], 4);
    for bad in [
        json!({ "guided_json": {} }),
        json!({ "best_of": 3 }),
        json!({ "min_tokens": 3 }),
        json!({ "truncate_prompt_tokens": 3 }),
    ] {
        let mut body = bad;
        body["prompt"] = json!("Hi");
        post(&server, "/v1/completions", &body).refused(400, "invalid_request");
    }
}

/// Whatever stands in a body, the answer is a status and never a bug.
#[test]
fn no_body_is_a_bug() {
    let server = filler(logged().0);
    let document = server::document();
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("x"),
        json!([]),
        json!([[]]),
        json!([null, -1, "x"]),
        json!([4_000_000_000_u64]),
        json!({}),
        json!({ "id": "x", "text": "y", "type": "z" }),
    ];
    let mut asked = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let body = &operations["post"]["requestBody"]["content"]["application/json"];
        let Some(fields) = body["schema"]["properties"].as_object() else {
            continue;
        };
        for name in fields.keys() {
            for value in &values {
                let mut body = json!({
                    "messages": [{ "role": "user", "content": "Hi" }], "prompt": "Hi",
                    "input": "Hi", "query": "Hi", "documents": ["Hi"], "content": "Hi",
                    "tokens": [5], "input_prefix": "Hi", "max_tokens": 1, "n_predict": 1,
                });
                body[name] = value.clone();
                let answer = post(&server, path, &body);
                let known = [200, 400, 401, 404, 503];
                assert!(known.contains(&answer.status), "{path} {body}: {answer:?}");
                asked += 1;
            }
        }
    }
    assert!(asked > 1000, "{asked}");
}
