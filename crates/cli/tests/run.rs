//! `puna run`, one prompt at a time.

mod common;

use common::{Home, fixture, puna, real_model};
use serde_json::{Value, json};

const JSON: [&str; 4] = ["--format", "json", "--temperature", "0"];

fn tiny() -> String {
    fixture("gguf/llama3.f32.gguf")
}

fn with<'a>(front: &[&'a str], back: &[&'a str]) -> Vec<&'a str> {
    [front, back].concat()
}

#[test]
fn the_json_form_is_the_contracts() {
    let model = tiny();
    let args = with(
        &["run", "-m", &model, "--raw", "-n", "5", "--logprobs", "3"],
        &JSON,
    );
    let said = puna(&with(&args, &["The quick brown fox"])).json();
    assert_eq!(said["model"], "llama3.f32");
    assert!(said["text"].is_string());
    let ids = said["ids"].as_array().unwrap();
    assert!(!ids.is_empty() && ids.len() <= 5 && ids.iter().all(Value::is_u64));
    assert!(said["prompt_ids"].as_array().unwrap().len() > 3);
    let reason = said["finish_reason"].as_str().unwrap();
    assert!(["stop", "length"].contains(&reason));
    let usage = &said["usage"];
    assert_eq!(
        usage["prompt_tokens"],
        said["prompt_ids"].as_array().unwrap().len()
    );
    assert_eq!(usage["completion_tokens"], ids.len());
    assert_eq!(usage["cached_tokens"], 0);
    for field in [
        "load_ms",
        "prompt_ms",
        "first_token_ms",
        "decode_ms",
        "prompt_per_second",
        "decode_per_second",
        "drafted_tokens",
        "accepted_tokens",
    ] {
        assert!(said["timings"][field].is_number(), "{field} in {said}");
    }
    assert_eq!(said["context"], 256);
    let logprobs = said["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), ids.len());
    for (one, id) in logprobs.iter().zip(ids) {
        assert_eq!(one["id"], *id);
        let top = one["top"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: the chosen one is the likeliest.
        assert_eq!(top[0], json!([id, one["logprob"]]));
        assert!(one["logprob"].as_f64().unwrap() <= 0.0);
    }
}

#[test]
fn logprobs_are_there_only_if_asked_for() {
    let model = tiny();
    let said = puna(&with(
        &["run", "-m", &model, "--raw", "-n", "1", "hello"],
        &JSON,
    ))
    .json();
    assert!(said.get("logprobs").is_none());
    assert_eq!(said["usage"]["completion_tokens"], 1);
    assert_eq!(said["finish_reason"], "length");
}

#[test]
fn text_and_json_say_the_same_and_seeds_repeat() {
    let model = tiny();
    let args = [
        "run",
        "-m",
        &model,
        "--raw",
        "-n",
        "12",
        "--seed",
        "42",
        "Once upon",
    ];
    let text = puna(&args);
    text.succeeded();
    let said = puna(&with(&args, &["--format", "json"])).json();
    assert_eq!(said["seed"], 42);
    assert_eq!(
        text.text().trim_end_matches('\n'),
        said["text"].as_str().unwrap().trim_end_matches('\n')
    );
    assert_eq!(text.stdout, puna(&args).stdout);
    assert!(text.stderr.contains("context 256 tokens"), "{text:?}");
}

#[test]
fn a_drawn_seed_is_reported_and_repeats_the_answer() {
    let model = tiny();
    let args = [
        "run",
        "-m",
        &model,
        "--raw",
        "-n",
        "12",
        "--format",
        "json",
        "Once upon",
    ];
    let first = puna(&args).json();
    let seed = first["seed"].as_u64().unwrap().to_string();
    let again = puna(&with(&args, &["--seed", &seed])).json();
    assert_eq!(first["ids"], again["ids"]);
}

#[test]
fn guessing_ahead_changes_no_word() {
    let model = tiny();
    let ask = |more: &[&str]| {
        let args = ["run", "-m", &model, "--raw", "-n", "30", "--seed", "3"];
        let prompt = ["one two three one two three one two"];
        let said = puna(&[&args, more, &["--format", "json"], &prompt].concat()).json();
        (
            said["ids"].clone(),
            said["timings"]["drafted_tokens"].clone(),
        )
    };
    for temperature in ["0", "1.5"] {
        let (due, drafted) = ask(&["--temperature", temperature, "--speculate", "0"]);
        assert_eq!(drafted, 0);
        let (ids, _) = ask(&["--temperature", temperature]);
        assert_eq!(ids, due);
        let (ids, drafted) = ask(&["--temperature", temperature, "--draft", &model]);
        assert_eq!(ids, due);
        assert!(drafted.as_u64().unwrap() > 0);
    }
    let other = fixture("models/llama3_1");
    puna(&["run", "-m", &model, "--raw", "--draft", &other, "x"]).failed(2, "vocabulary");
}

#[test]
fn where_the_prompt_comes_from() {
    let model = tiny();
    let base = with(&["run", "--raw", "-n", "1", "--format", "json"], &[]);
    let home = Home::new();
    let prompt = |words: &[&str], stdin: &[u8]| -> Value {
        home.run_with(&with(&base, words), stdin).json()["prompt_ids"].clone()
    };
    let wanted = prompt(&["-m", &model, "Hello you"], b"");
    assert_eq!(prompt(&[&model, "Hello", "you"], b"not read"), wanted);
    assert_eq!(prompt(&[&model], b"Hello you"), wanted);
    assert_eq!(prompt(&[&model], b"Hello you\n"), wanted);
    assert_eq!(prompt(&["-m", &model, "-"], b"Hello you\r\n"), wanted);
    assert_eq!(prompt(&["-m", &model, "--", "Hello you"], b""), wanted);
    let both = prompt(&["-m", &model, "Hello", "-"], b"you");
    assert_eq!(both, prompt(&["-m", &model, "Hello\nyou"], b""));
    let with_env = Home::new().env("PUNA_MODEL", &model);
    assert_eq!(
        with_env.run(&with(&base, &["Hello you"])).json()["prompt_ids"],
        wanted
    );
    // What is typed beats the environment.
    let elsewhere = Home::new().env("PUNA_MODEL", "/nowhere/at/all.gguf");
    assert_eq!(
        elsewhere.run(&with(&base, &[&model, "Hello you"])).json()["prompt_ids"],
        wanted
    );
}

#[test]
fn an_empty_prompt_is_refused() {
    let model = tiny();
    let home = Home::new();
    for args in [
        &["run", "-m", &model, ""][..],
        &["run", &model],
        &["run", &model, "-"],
    ] {
        home.run_with(args, b"\n").failed(2, "the prompt is empty");
    }
    home.run_with(&["run", &model], b"\xff\xfe")
        .failed(1, "not UTF-8");
}

#[test]
fn stop_strings_end_before_themselves() {
    let model = tiny();
    let args = with(&["run", "-m", &model, "--raw", "-n", "24"], &JSON);
    let whole = puna(&with(&args, &["Once upon a time"])).json();
    let text = whole["text"].as_str().unwrap();
    let chars: Vec<char> = text.chars().collect();
    let stop: String = chars[chars.len() / 2..chars.len() / 2 + 2].iter().collect();
    let said = puna(&with(
        &args,
        &["--stop", "never in it", "--stop", &stop, "Once upon a time"],
    ))
    .json();
    assert_eq!(said["finish_reason"], "stop");
    assert_eq!(said["text"], text[..text.find(&stop).unwrap()]);
}

#[test]
fn a_bias_decides() {
    let model = tiny();
    let args = with(&["run", "-m", &model, "--raw", "-n", "2", "Once"], &JSON);
    let forced = puna(&with(&args, &["--logit-bias", "77:100"])).json();
    assert_eq!(forced["ids"], json!([77, 77]));
    let free = puna(&args).json()["ids"][0].as_u64().unwrap();
    let banned = puna(&with(&args, &["--logit-bias", &format!("{free}:-inf")])).json();
    assert_ne!(banned["ids"][0], free);
}

#[test]
fn samplers_out_of_range_are_usage() {
    let model = tiny();
    for (option, value) in [
        ("--top-p", "2"),
        ("--mirostat", "3"),
        ("--temperature", "nan"),
    ] {
        puna(&["run", "-m", &model, option, value, "hello"]).failed(2, "");
    }
}

#[test]
fn the_system_message_and_the_template_come_in() {
    let model = fixture("models/llama3");
    let args = with(&["run", "-m", &model, "-n", "1", "Hello"], &JSON);
    let plain = puna(&args).json();
    let with_system = puna(&with(&args, &["--system", "Be brief."])).json();
    let raw = puna(&with(&args, &["--raw"])).json();
    let len = |v: &Value| v["prompt_ids"].as_array().unwrap().len();
    assert!(len(&raw) < len(&plain) && len(&plain) < len(&with_system));
    // The ids that `template --ids` shows are those that were fed.
    let home = Home::new();
    let file = home.dir.path().join("m.json");
    std::fs::write(&file, r#"[{"role":"user","content":"Hello"}]"#).unwrap();
    let file = file.to_str().unwrap();
    let shown = home.run(&[
        "template",
        &model,
        "--messages",
        file,
        "--ids",
        "--format",
        "json",
    ]);
    assert_eq!(shown.json()["ids"], plain["prompt_ids"]);
}

#[test]
fn a_template_takes_the_place_of_the_models_own() {
    let model = fixture("models/llama3");
    let args = with(&["run", "-m", &model, "-n", "1", "Hello"], &JSON);
    let guard = puna(&with(&args, &["--template", "llama2"])).json();
    let home = Home::new();
    let file = home.dir.path().join("m.json");
    std::fs::write(&file, r#"[{"role":"user","content":"Hello"}]"#).unwrap();
    let file = file.to_str().unwrap();
    let shown = [
        "template",
        &model,
        "--messages",
        file,
        "--template",
        "llama2",
    ];
    let shown = home
        .run(&with(&shown, &["--ids", "--format", "json"]))
        .json();
    assert_eq!(shown["ids"], guard["prompt_ids"]);
    assert!(
        shown["text"]
            .as_str()
            .unwrap()
            .contains("[INST] Hello [/INST]")
    );
    puna(&with(&args, &["--template", "llama2", "--raw"])).failed(2, "--raw");
}

/// Learned positions end with the table.
#[test]
fn a_context_beyond_learned_positions_is_refused() {
    let model = fixture("models/opt");
    let args = ["run", "-m", &model, "--raw", "-n", "1"];
    puna(&with(&args, &["--ctx", "128", "Hello"])).succeeded();
    puna(&with(&args, &["--ctx", "129", "Hello"])).failed(2, "no positions from 128 on");
}

#[test]
fn without_a_template_raw_is_named() {
    let home = Home::new();
    let dir = home.dir.path().join("bare");
    std::fs::create_dir(&dir).unwrap();
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ] {
        std::fs::copy(fixture(&format!("models/llama3/{file}")), dir.join(file)).unwrap();
    }
    let dir = dir.to_str().unwrap();
    let refused = home.run(&["run", dir, "Hello"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("--raw"), "{refused:?}");
    home.run(&["run", dir, "--raw", "-n", "1", "Hello"])
        .succeeded();
}

#[test]
fn infill_needs_a_model_made_for_it() {
    puna(&["run", "-m", &tiny(), "--suffix", "}", "fn main() {"]).failed(1, "not made for infill");
}

#[test]
fn a_prompt_beyond_the_context_is_an_error_and_a_full_context_is_said() {
    let model = tiny();
    let long = "word ".repeat(300);
    puna(&["run", "-m", &model, "--raw", "--ctx", "64", &long]).failed(1, "64");
    let args = [
        "run",
        "-m",
        &model,
        "--raw",
        "--ctx",
        "32",
        "--seed",
        "3",
        "--logit-bias",
        "505:-inf",
        "Hello",
    ];
    let full = puna(&args);
    full.succeeded();
    assert!(full.stderr.contains("is full"), "{full:?}");
    let said = puna(&with(&args, &["--format", "json"])).json();
    assert_eq!(said["finish_reason"], "length");
    assert_eq!(said["context"], 32);
    let usage = &said["usage"];
    let used =
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(used, 32);
}

#[test]
fn modes_and_caches_all_answer() {
    let model = tiny();
    let base = with(&["run", "-m", &model, "--raw", "-n", "4", "Hello"], &JSON);
    let reference = puna(&with(&base, &["--compute", "f32"])).json();
    let same = puna(&with(
        &base,
        &["--compute", "f32", "--cache-type", "f32", "--threads", "2"],
    ));
    assert_eq!(same.json()["ids"], reference["ids"]);
    for cache in ["f16", "bf16", "q8_0"] {
        puna(&with(&base, &["--cache-type", cache])).json();
    }
    let scalar = Home::new()
        .env("PUNA_SIMD", "scalar")
        .env("PUNA_COMPUTE", "f32");
    assert_eq!(scalar.run(&base).json()["ids"], reference["ids"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_was_said_and_is_130() {
    use std::io::Read;
    use std::process::{Command, Stdio};
    let Some(model) = real_model() else {
        return;
    };
    let model = model.to_str().unwrap();
    for json in [false, true] {
        let prompt = "Count from one to ten thousand in words.";
        let mut args = vec!["run", "-m", model, "--raw", "--temperature", "0", prompt];
        // It would go on for a long time.
        args.extend(["--logit-bias", "2:-inf", "--logit-bias", "0:-inf"]);
        args.extend(json.then_some(["--format", "json"]).into_iter().flatten());
        let mut child = Home::new()
            .command(&args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut first = [0u8; 1];
        match json {
            true => std::thread::sleep(std::time::Duration::from_secs(3)),
            false => stdout.read_exact(&mut first).unwrap(),
        }
        let kill = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{output:?}");
        assert!(
            !String::from_utf8_lossy(&output.stderr).contains("error"),
            "{output:?}"
        );
        if json {
            let said: Value = serde_json::from_slice(&rest).unwrap();
            assert_eq!(said["finish_reason"], "cancelled");
            assert!(!said["text"].as_str().unwrap().is_empty());
        }
    }
}

/// The weights stay in the file's map: memory of the process's own is the cache and little more.
#[test]
fn loading_is_quick_and_copies_no_weights() {
    use std::process::Stdio;
    let Some(model) = real_model() else {
        return;
    };
    let model = model.to_str().unwrap();
    let args = [
        "run", "-m", model, "--raw", "Once", "-n", "40", "--format", "json",
    ];
    let home = Home::new();
    let mut command = home.command(&args);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut own = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        own = own.max(kib.unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let out = child.wait_with_output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let load_ms = report["timings"]["load_ms"].as_f64().unwrap();
    assert!(load_ms < 1000.0, "loaded in {load_ms} ms");
    // Of the 98 MB file nothing; two pages of cache are 1.5 MB.
    assert!(own > 0 && own < 64 << 10, "{own} KiB of its own");
}

#[test]
fn the_real_model_knows_the_capital_of_france() {
    let Some(model) = real_model() else {
        return;
    };
    let model = model.to_str().unwrap();
    for compute in ["fast", "f32"] {
        let said = puna(&with(
            &[
                "run",
                "-m",
                model,
                "--compute",
                compute,
                // With temperature 0 what the catalogue recommends for this file.
                "--repeat-penalty",
                "1.1",
                "What is the capital of France?",
            ],
            &JSON,
        ))
        .json();
        assert!(said["text"].as_str().unwrap().contains("Paris"), "{said}");
        assert_eq!(said["finish_reason"], "stop");
    }
}
