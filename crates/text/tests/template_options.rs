//! What a template sees, and what the caller hears when it fails.

mod chat_support;

use chat_support::*;
use serde_json::json;
use text::chat::user;
use text::{ChatTemplate, Error, RenderOptions, TemplateSources, find_template};

#[test]
fn what_is_given_and_what_is_not() {
    let source = "{{ bos_token }}|{{ eos_token }}|{{ tools is none }}|{{ documents is none }}|{{ date_string is defined }}|\
                  {{ add_generation_prompt }}|{{ messages | length }}|{{ tools }}";
    let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
    assert_eq!(
        template.render(&[user("x")], &plain()).unwrap(),
        "<s>|</s>|True|True|False|False|1|None"
    );
    let vars = json!({"date_string": "today", "documents": [1], "bos_token": "B", "messages": "no", "add_generation_prompt": 0});
    let options = RenderOptions {
        tools: Some(json!([{"name": "f"}])),
        vars: vars.as_object().unwrap().clone(),
        ..RenderOptions::default()
    };
    assert_eq!(
        template.render(&[user("x")], &options).unwrap(),
        "B|</s>|False|False|True|True|1|[{'name': 'f'}]"
    );
    assert!(RenderOptions::default().add_generation_prompt);
}

#[test]
fn dates() {
    let template = ChatTemplate::new("{{ strftime_now('%d %b %Y %H') }}", "", "").unwrap();
    let options = RenderOptions {
        date: Some("2024-07-26".parse().unwrap()),
        ..plain()
    };
    assert_eq!(template.render(&[], &options).unwrap(), "26 Jul 2024 00");
    let template = ChatTemplate::new("{{ strftime_now('%Y-%m-%d') }}", "", "").unwrap();
    let before = chrono::Local::now().format("%Y-%m-%d").to_string();
    let today = template.render(&[], &plain()).unwrap();
    let after = chrono::Local::now().format("%Y-%m-%d").to_string();
    assert!([before, after].contains(&today), "{today}");
}

#[test]
fn errors_name_the_line() {
    let compile = ChatTemplate::new("a\n{% if x %}\n{{ 1 + }}\n{% endif %}", "", "").unwrap_err();
    assert!(
        matches!(compile, Error::Template { line: Some(3), .. }),
        "{compile}"
    );
    let render = rendered("a\n{% for m in [1] %}\n  {{ m }}\n  {{ missing.name }}\n{% endfor %}")
        .unwrap_err();
    assert!(
        matches!(render, Error::Template { line: Some(4), .. }),
        "{render}"
    );
    assert!(
        render.to_string().contains("line 4") && render.to_string().contains("`missing`"),
        "{render}"
    );
    let within =
        rendered("{% macro f(x) %}\n{{ x.y.z }}\n{% endmacro %}\n\n{{ f({}) }}").unwrap_err();
    assert!(
        matches!(within, Error::Template { line: Some(2), .. }),
        "{within}"
    );
    let sum = rendered("\n{{ 'a' + {} }}").unwrap_err().to_string();
    assert!(
        sum.contains("line 2") && sum.contains("string") && sum.contains("map"),
        "{sum}"
    );
}

#[test]
fn refusals_carry_the_templates_words() {
    for source in [
        "{{ raise_exception('no: ' ~ 1.0) }}",
        "{% macro f() %}{{ raise_exception('no: 1.0') }}{% endmacro %}{{ f() }}",
        "{% for x in [[1]] recursive %}{{ loop(x) if x is iterable else raise_exception('no: 1.0') }}{% endfor %}",
        "{% set a %}{{ raise_exception('no: 1.0') }}{% endset %}",
    ] {
        let error = rendered(source).unwrap_err();
        assert!(
            matches!(&error, Error::Refused { message } if message == "no: 1.0"),
            "{source}: {error:?}"
        );
    }
    assert!(
        matches!(rendered("{{ raise_exception() }}"), Err(Error::Refused { message }) if message.is_empty())
    );
}

/// A template is compiled once; renderings do not see one another.
#[test]
fn renderings_are_independent() {
    let source = "{% set ns = namespace(n=messages | length) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}";
    let template = ChatTemplate::new(source, "", "").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..50 {
                    let messages = vec![user("x"); n];
                    assert_eq!(
                        template.clone().render(&messages, &plain()).unwrap(),
                        (n + 1).to_string()
                    );
                }
            });
        }
    });
}

#[test]
fn numbers_keep_their_kind() {
    let template = ChatTemplate::new("{{ v }} {{ v | tojson }}", "", "").unwrap();
    for (json, printed) in [
        ("1", "1 1"),
        ("-1", "-1 -1"),
        (
            "18446744073709551615",
            "18446744073709551615 18446744073709551615",
        ),
        ("1.0", "1.0 1.0"),
        ("1e2", "100.0 100.0"),
        ("0.1", "0.1 0.1"),
        ("1e-7", "1e-07 1e-07"),
        (
            "1.7976931348623157e308",
            "1.7976931348623157e+308 1.7976931348623157e+308",
        ),
        ("5e-324", "5e-324 5e-324"),
        ("-0.0", "-0.0 -0.0"),
        (
            "9007199254740993.0",
            "9007199254740992.0 9007199254740992.0",
        ),
        (
            "2.2250738585072011e-308",
            "2.225073858507201e-308 2.225073858507201e-308",
        ),
    ] {
        let vars = serde_json::from_str(&format!("{{\"v\": {json}}}")).unwrap();
        assert_eq!(
            template
                .render(&[], &RenderOptions { vars, ..plain() })
                .unwrap(),
            printed
        );
    }
}

#[test]
fn templates_are_found_in_their_order() {
    let mut metadata = files::gguf::Metadata::new();
    let config = json!({"chat_template": [
        {"name": "default", "template": "config"}, {"name": "tool_use", "template": "config tools"},
    ]});
    let find = |sources: TemplateSources, tools| find_template(sources, tools).map(String::from);
    let none = TemplateSources::default();
    let error = find(none, false).unwrap_err();
    assert!(
        matches!(error, Error::NoTemplate) && error.to_string().contains("--raw"),
        "{error}"
    );
    assert!(
        find(
            TemplateSources {
                gguf: Some(&metadata),
                ..none
            },
            true
        )
        .is_err()
    );

    metadata.set(
        "tokenizer.chat_template",
        files::gguf::Value::String("gguf".into()),
    );
    let all = TemplateSources {
        file: Some("file"),
        tokenizer_config: Some(&config),
        gguf: Some(&metadata),
    };
    assert_eq!(find(all, true).unwrap(), "file");
    let without_file = TemplateSources { file: None, ..all };
    assert_eq!(find(without_file, false).unwrap(), "config");
    assert_eq!(find(without_file, true).unwrap(), "config tools");
    let plain_config = json!({"chat_template": "one"});
    assert_eq!(
        find(
            TemplateSources {
                tokenizer_config: Some(&plain_config),
                ..none
            },
            true
        )
        .unwrap(),
        "one"
    );
    let gguf = TemplateSources {
        gguf: Some(&metadata),
        ..none
    };
    assert_eq!(find(gguf, true).unwrap(), "gguf");
    metadata.set(
        "tokenizer.chat_template.tool_use",
        files::gguf::Value::String("gguf tools".into()),
    );
    assert_eq!(find_template(&metadata, true).unwrap(), "gguf tools");
    assert_eq!(find_template(&metadata, false).unwrap(), "gguf");

    // A configuration without a template, or with nonsense, is passed over.
    for config in [
        json!({}),
        json!({"chat_template": 5}),
        json!({"chat_template": []}),
        json!([]),
        json!({"chat_template": [{"name": 1}]}),
    ] {
        assert_eq!(
            find(
                TemplateSources {
                    tokenizer_config: Some(&config),
                    ..gguf_of(&metadata)
                },
                false
            )
            .unwrap(),
            "gguf"
        );
    }
    let directory = files::hf::HfDir::open(fixture("reference/models/llama3")).unwrap();
    assert_eq!(
        find_template(&directory, false).unwrap(),
        read("reference/models/llama3/chat_template.jinja")
    );
}

fn gguf_of(metadata: &files::gguf::Metadata) -> TemplateSources<'_> {
    metadata.into()
}
