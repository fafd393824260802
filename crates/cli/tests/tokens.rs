//! `puna tokenize`, `detokenize` and `template`.

mod common;

use std::path::PathBuf;

use common::{Home, fixture, puna};
use serde_json::{Value, json};

fn lines(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture(file)).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

fn answers(stdout: &str) -> Vec<Value> {
    stdout
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn every_kind_of_model_gives_the_same_ids() {
    let wanted = json!([51, 329, 220, 80, 84, 480]);
    for model in [
        "models/llama3",
        "models/llama3/tokenizer.json",
        "gguf/llama3.f32.gguf",
    ] {
        let said = puna(&[
            "tokenize",
            &fixture(model),
            "The qu",
            "--no-bos",
            "--format",
            "json",
        ]);
        let said = said.json();
        assert_eq!(
            said["ids"].as_array().unwrap()[..2],
            wanted.as_array().unwrap()[..2],
            "{model}"
        );
        let pieces: String = said["pieces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p.as_str().unwrap())
            .collect();
        assert_eq!(pieces, "The qu", "{model}");
    }
    let spm = puna(&[
        "tokenize",
        &fixture("models/llama2_gqa/tokenizer.model"),
        "hello",
        "--format",
        "json",
    ]);
    assert!(!spm.json()["ids"].as_array().unwrap().is_empty());
}

#[test]
fn bos_and_special_tokens() {
    let model = fixture("models/llama3");
    let ids = |args: &[&str]| -> Vec<u64> {
        let said = puna(&[&["tokenize", &model], args, &["--format", "json"]].concat()).json();
        said["ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap())
            .collect()
    };
    let bare = ids(&["hi", "--no-bos"]);
    let with_bos = ids(&["hi"]);
    assert!(
        with_bos == bare || with_bos == [&[504], &bare[..]].concat(),
        "{with_bos:?}"
    );
    assert_eq!(ids(&["<|im_start|>", "--no-bos", "--parse-special"]), [507]);
    assert!(ids(&["<|im_start|>", "--no-bos"]).len() > 1);
    assert!(ids(&["-x", "--no-bos"]).len() > 1);
}

#[test]
fn a_reference_file_comes_back_line_by_line() {
    let home = Home::new();
    for (model, file) in [
        ("models/llama3/tokenizer.json", "tokenizers/tiny_bpe.jsonl"),
        (
            "models/llama2_gqa/tokenizer.model",
            "tokenizers/tiny_spm.jsonl",
        ),
    ] {
        let rows = lines(file);
        let ran = home.run(&[
            "tokenize",
            &fixture(model),
            "--no-bos",
            "--jsonl",
            &fixture(file),
        ]);
        let said = ran.succeeded().text();
        assert!(said.is_ascii());
        let said = answers(&said);
        assert_eq!(said.len(), rows.len());
        for (row, said) in rows.iter().zip(&said) {
            assert_eq!(row["ids"], said["ids"], "{}", row["text"]);
            assert_eq!(
                said["pieces"].as_array().unwrap().len(),
                said["ids"].as_array().unwrap().len()
            );
        }
        let back = home.run(&["detokenize", &fixture(model), "--jsonl", &fixture(file)]);
        for (row, said) in rows.iter().zip(answers(&back.succeeded().text())) {
            assert_eq!(row["decoded"], said["text"], "{}", row["text"]);
        }
    }
}

#[test]
fn stdin_is_the_text_or_the_lines() {
    let model = fixture("models/llama3");
    let home = Home::new();
    let typed = home
        .run(&["tokenize", &model, "a b\n", "--format", "json"])
        .json();
    for args in [
        &["tokenize", &model, "-", "--format", "json"][..],
        &["tokenize", &model, "--format", "json"],
    ] {
        assert_eq!(home.run_with(args, b"a b\n").json(), typed);
    }
    let line = home.run_with(
        &["tokenize", &model, "--jsonl", "-"],
        b"{\"text\": \"a b\\n\"}\n\n",
    );
    assert_eq!(line.json(), typed);
    let bad = home.run_with(
        &["tokenize", &model, "--jsonl", "-"],
        b"{\"text\": \"a\"}\n{\"txt\": 1}\n",
    );
    bad.failed(1, "stdin, line 2");
}

#[test]
fn text_form() {
    let model = fixture("models/llama3");
    let said = puna(&["tokenize", &model, "The", "--no-bos"]);
    assert_eq!(said.succeeded().text().lines().next().unwrap(), "51\t\"T\"");
    assert_eq!(
        puna(&["detokenize", &model, "51", "51"]).succeeded().stdout,
        b"TT\n"
    );
}

#[test]
fn bytes_that_are_no_text_are_exact_in_hex() {
    let model = fixture("models/llama3");
    let home = Home::new();
    // The two bytes of e acute, apart.
    let ids = home
        .run(&["tokenize", &model, "é", "--no-bos", "--format", "json"])
        .json();
    let ids: Vec<String> = ids["ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(Value::to_string)
        .collect();
    let whole = home.run(
        &[
            &["detokenize", &model, "--format", "json"],
            &ids.iter().map(String::as_str).collect::<Vec<_>>()[..],
        ]
        .concat(),
    );
    assert_eq!(whole.json(), json!({"text": "é", "bytes_hex": "c3a9"}));
    if ids.len() == 2 {
        let half = home
            .run(&["detokenize", &model, &ids[0], "--format", "json"])
            .json();
        assert_eq!(half, json!({"text": "\u{fffd}", "bytes_hex": "c3"}));
    }
    let piped = home.run_with(&["detokenize", &model, "-"], b"51, 51\n51");
    assert_eq!(piped.succeeded().text(), "TTT\n");
    home.run(&["detokenize", &model, "x"]).failed(2, "\"x\"");
    home.run(&["detokenize", &model, "99999"])
        .failed(1, "99999");
}

fn messages(home: &Home, value: &Value) -> PathBuf {
    let file = home.dir.path().join("messages.json");
    std::fs::write(&file, value.to_string()).unwrap();
    file
}

#[test]
fn a_template_is_rendered() {
    let home = Home::new();
    let model = fixture("models/llama3");
    let talk = json!([{"role": "user", "content": "Hi <|im_end|>"}]);
    let file = messages(&home, &talk);
    let file = file.to_str().unwrap();
    let said = home
        .run(&[
            "template",
            &model,
            "--messages",
            file,
            "--ids",
            "--format",
            "json",
        ])
        .json();
    let text = said["text"].as_str().unwrap();
    assert!(text.contains("<|im_start|>user\nHi <|im_end|>"), "{text}");
    assert!(text.ends_with("<|im_start|>assistant\n"), "{text}");
    // What a user types is no special token: one that closes the turn, none in the content.
    let ids = said["ids"].as_array().unwrap();
    assert_eq!(ids.iter().filter(|id| **id == json!(508)).count(), 1);
    let closed = home.run(&[
        "template",
        &model,
        "--messages",
        file,
        "--no-generation-prompt",
    ]);
    assert!(text.starts_with(&closed.succeeded().text()));
    let object = messages(&home, &json!({"messages": talk}));
    let again = home.run(&["template", &model, "--messages", object.to_str().unwrap()]);
    assert_eq!(again.succeeded().text(), text);
}

#[test]
fn a_format_by_its_name() {
    let home = Home::new();
    let file = messages(&home, &json!([{"role": "user", "content": "Hi"}]));
    let base = [
        "template",
        "--messages",
        file.to_str().unwrap(),
        "--bos-token",
        "<s>",
    ];
    let render = |name: &str| home.run(&[&base[..], &["--template", name]].concat());
    assert_eq!(render("llama2").succeeded().text(), "<s>[INST] Hi [/INST]");
    let text = render("llama-guard-3").succeeded().text();
    assert!(text.contains("\nS14: Code Interpreter Abuse.\n"), "{text}");
    assert!(text.ends_with("assistant<|end_header_id|>\n\n"), "{text}");
    let less = [&base[..], &["--template", "llama-guard-3", "--vars"]].concat();
    let less = [&less[..], &[r#"{"excluded_categories": ["S14"]}"#]].concat();
    assert!(!home.run(&less).succeeded().text().contains("S14"));
    render("llama-guard-9").failed(1, "llama-guard-9");
}

#[test]
fn a_template_of_ones_own() {
    let home = Home::new();
    let file = messages(&home, &json!([{"role": "user", "content": "Hi"}]));
    let file = file.to_str().unwrap();
    let template = home.dir.path().join("t.jinja");
    std::fs::write(
        &template,
        "{{ bos_token }}{% if tools %}{{ tools | length }}{% endif %}{{ x }}{{ strftime_now('%d %b %Y') }}\
         {% for m in messages %}{% if m.content == 'No' %}{{ raise_exception('not No') }}{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}",
    )
    .unwrap();
    let template = template.to_str().unwrap();
    let tools = home.dir.path().join("tools.json");
    std::fs::write(&tools, r#"[{"type": "function"}]"#).unwrap();
    let base = ["template", "--template", template, "--messages", file];
    let said = home.run(
        &[
            &base[..],
            &[
                "--bos-token",
                "<s>",
                "--eos-token",
                "</s>",
                "--vars",
                r#"{"x": 7}"#,
            ],
            &["--date", "2024-07-26", "--tools", tools.to_str().unwrap()],
        ]
        .concat(),
    );
    assert_eq!(said.succeeded().text(), "<s>1726 Jul 2024Hi</s>");
    home.run(&[&base[..], &["--ids"]].concat())
        .failed(2, "--ids needs a MODEL");
    home.run(&["template", "--messages", file])
        .failed(2, "neither MODEL nor --template");
    home.run(&[&base[..], &["--vars", "[]"]].concat())
        .failed(2, "--vars");
    home.run(&[&base[..], &["--date", "26.7.2024"]].concat())
        .failed(2, "--date");
    let no = messages(&home, &json!([{"role": "user", "content": "No"}]));
    home.run(&[
        "template",
        "--template",
        template,
        "--messages",
        no.to_str().unwrap(),
    ])
    .failed(1, "not No");
    let odd = messages(&home, &json!(7));
    home.run(&[
        "template",
        "--template",
        template,
        "--messages",
        odd.to_str().unwrap(),
    ])
    .failed(1, "list of messages");
}
