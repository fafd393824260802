//! Every row of the reference for chat templates, byte for byte; and small templates against Jinja2.

mod chat_support;

use chat_support::*;
use serde_json::Value;
use std::collections::BTreeMap;
use text::{ChatTemplate, RenderOptions};

const ROWS: &str = "reference/chat/rendered.jsonl";

fn options(row: &Value) -> RenderOptions {
    RenderOptions {
        tools: Some(row["tools"].clone()).filter(|t| !t.is_null()),
        vars: row["kwargs"].as_object().cloned().unwrap_or_default(),
        add_generation_prompt: row["add_generation_prompt"] == true,
        date: None,
    }
}

/// Holds a template to its rows; returns how many there were and how many of them it must refuse.
fn holds(template: &str, source: &str) -> (usize, usize) {
    let rows = rows(ROWS)
        .into_iter()
        .filter(|row| row["template"] == template);
    let mut compiled: BTreeMap<String, ChatTemplate> = BTreeMap::new();
    let (mut count, mut refused) = (0, 0);
    for row in rows {
        let (bos, eos) = (
            row["bos_token"].as_str().unwrap(),
            row["eos_token"].as_str().unwrap(),
        );
        let template = compiled
            .entry(format!("{bos} {eos}"))
            .or_insert_with(|| ChatTemplate::new(source, bos, eos).unwrap());
        let got = template.render(row["messages"].as_array().unwrap(), &options(&row));
        count += 1;
        if row["error"].is_string() {
            refused += 1;
            got.expect_err("must be refused");
        } else {
            assert_eq!(
                got.unwrap(),
                row["rendered"].as_str().unwrap(),
                "{} {}",
                row["template"],
                row["case"]
            );
        }
    }
    (count, refused)
}

#[test]
fn smollm2() {
    assert_eq!(holds("smollm2", &read("chat/smollm2.jinja")), (38, 2));
}

#[test]
fn smollm2_is_the_template_of_the_default_model() {
    let test = "smollm2_is_the_template_of_the_default_model";
    let Some(path) = from_environment(test, "PUNA_TEST_MODEL") else {
        return;
    };
    let gguf = files::gguf::Gguf::open(&path).unwrap();
    assert_eq!(
        text::find_template(&gguf.metadata, false).unwrap(),
        read("chat/smollm2.jinja")
    );
}

#[test]
fn tiny_chatml() {
    let source = read("reference/models/llama3/chat_template.jinja");
    assert_eq!(holds("tiny_chatml", &source), (38, 2));
}

#[test]
fn chatml() {
    assert_eq!(holds("chatml", &read("chat/chatml.jinja")), (38, 2));
}

/// The templates that come with llama.cpp and llama-cpp-python, some of them under Meta's licences.
#[test]
fn templates_of_llama_cpp() {
    let Some(directory) = from_environment("templates_of_llama_cpp", "PUNA_CHAT_TEMPLATES") else {
        return;
    };
    for (name, count, refused) in [
        ("chatml", 38, 2),
        ("deepseek_r1_llama", 38, 2),
        ("functionary_3_1", 38, 2),
        ("hermes2pro", 10, 0),
        ("hermes3", 10, 0),
        ("llama3", 38, 0),
        ("llama3_1", 48, 0),
        ("llama3_2", 48, 0),
        ("llama3_3", 48, 0),
    ] {
        let path = directory.join(name).with_extension("jinja");
        let source = std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}; see .ci/fetch-chat-templates", path.display()));
        assert_eq!(holds(name, &source), (count, refused), "{name}");
    }
}

/// The two formats that no template file exists for: the reference wrote them after the documented formats.
#[test]
fn formats_without_a_file() {
    let format = |name| text::format(name).unwrap();
    assert_eq!(holds("llama2", format("llama2")), (13, 0));
    assert_eq!(holds("llama_guard_3", format("llama-guard-3")), (18, 0));
}

/// Each version of Llama Guard has its own categories, wrapping and wording.
#[test]
fn llama_guards_of_all_versions() {
    let render = |name: &str, messages: &str| {
        let template = ChatTemplate::new(text::format(name).unwrap(), "<s>", "</s>").unwrap();
        let messages: Value = serde_json::from_str(messages).unwrap();
        template.render(messages.as_array().unwrap(), &plain())
    };
    let asked = r#"[{"role": "user", "content": "Hi"}]"#;
    let answered = r#"[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]"#;
    for (name, begin, first, end) in [
        (
            "llama-guard-1",
            "<s>[INST] Task: Check if there is unsafe content in 'User' messages",
            "\nO1: Violence and Hate.\nO2: Sexual Content.\n",
            "for User in the above conversation:\n- First line must read 'safe' or 'unsafe'.\n- If unsafe, a second line \
             must include a comma-separated list of violated categories. [/INST]",
        ),
        (
            "llama-guard-2",
            "<s>[INST] Task: Check",
            "\nS4: Child Exploitation.\nS5: Specialized Advice.\n",
            "for ONLY THE LAST User message in the above conversation:\n - First line must read 'safe' or 'unsafe'.\n \
             - If unsafe, a second line must include a comma-separated list of violated categories. [/INST]",
        ),
    ] {
        let text = render(name, asked).unwrap();
        assert!(
            text.starts_with(begin) && text.contains(first) && text.ends_with(end),
            "{text}"
        );
        let text = render(name, answered).unwrap();
        assert!(
            text.contains("unsafe content in 'Agent' messages"),
            "{text}"
        );
        assert!(
            text.contains("User: Hi\n\nAgent: Ho\n\n<END CONVERSATION>"),
            "{text}"
        );
    }
    for name in ["llama-guard-1", "llama-guard-2", "llama-guard-3", "llama2"] {
        assert!(text::formats().any(|n| n == name));
        for wrong in [
            r#"[{"role": "assistant", "content": "Ho"}]"#,
            r#"[{"role": "user", "content": "Hi"}, {"role": "user", "content": "Ho"}]"#,
            r#"[{"role": "user", "content": "Hi"}, {"role": "tool", "content": "Ho"}]"#,
        ] {
            render(name, wrong).unwrap_err();
        }
    }
    render("llama-guard-3", "[]").unwrap_err();
}

/// No row is left out.
#[test]
fn every_row_has_its_test() {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows(ROWS) {
        *counts
            .entry(row["template"].as_str().unwrap().to_string())
            .or_default() += 1;
    }
    let tested = [
        ("chatml", 38),
        ("deepseek_r1_llama", 38),
        ("functionary_3_1", 38),
        ("hermes2pro", 10),
        ("hermes3", 10),
        ("llama2", 13),
        ("llama3", 38),
        ("llama3_1", 48),
        ("llama3_2", 48),
        ("llama3_3", 48),
        ("llama_guard_3", 18),
        ("smollm2", 38),
        ("tiny_chatml", 38),
    ];
    assert_eq!(
        counts,
        tested.map(|(name, count)| (name.to_string(), count)).into()
    );
}

/// Small templates, each for one thing that Jinja2 and Python do.
#[test]
fn snippets_render_as_in_jinja2() {
    let mut rows = rows("chat/snippets.jsonl").into_iter();
    let given = rows.next().unwrap();
    let (bos, eos) = (
        given["bos_token"].as_str().unwrap(),
        given["eos_token"].as_str().unwrap(),
    );
    let options = RenderOptions {
        vars: given["vars"].as_object().unwrap().clone(),
        date: Some(given["date"].as_str().unwrap().parse().unwrap()),
        ..plain()
    };
    let (mut count, mut wrong) = (0, Vec::new());
    for row in rows {
        count += 1;
        let source = row["source"].as_str().unwrap();
        let got = ChatTemplate::new(source, bos, eos)
            .and_then(|t| t.render(given["messages"].as_array().unwrap(), &options));
        match (row["rendered"].as_str(), got) {
            (Some(want), Ok(got)) if got == want => {}
            (None, Err(_)) => {}
            (Some(want), Ok(got)) => {
                wrong.push(format!("{source}\n  got  {got:?}\n  want {want:?}"))
            }
            (Some(_), Err(error)) => wrong.push(format!("{source}\n  {error}")),
            (None, Ok(got)) => wrong.push(format!(
                "{source}\n  got {got:?}, Jinja2 fails: {}",
                row["error"]
            )),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 225, "{count}");
}
