//! Templates that ask for too much: each ends with an error that says so, soon, with little memory and stack.

mod chat_support;

use chat_support::*;
use std::time::{Duration, Instant};

/// The rows of the table: a file, and what its error says.
fn table() -> Vec<(String, String)> {
    let readme = read("hostile/templates/README.md");
    let rows = readme.lines().filter(|l| l.contains(".jinja |"));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        (cells[0].to_string(), cells[2].to_string())
    })
    .collect()
}

#[test]
fn every_hostile_template_is_refused_in_time() {
    let rows = table();
    let files = std::fs::read_dir(fixture("hostile/templates")).unwrap();
    let templates = files.filter(|f| {
        f.as_ref()
            .unwrap()
            .path()
            .extension()
            .is_some_and(|e| e == "jinja")
    });
    assert_eq!(
        templates.count(),
        rows.len(),
        "a file without a line, or a line without a file"
    );
    // A caller's thread may be small.
    let small = std::thread::Builder::new().stack_size(256 << 10);
    let run = move || {
        for (file, says) in rows {
            let source = read(&format!("hostile/templates/{file}"));
            let start = Instant::now();
            let error = rendered(&source).expect_err(&file).to_string();
            let took = start.elapsed();
            assert!(error.contains(&says), "{file}: {error}");
            // Generous, for a busy machine: most take a few milliseconds, the deadline is 10 s.
            assert!(took < Duration::from_secs(5), "{file}: {took:?}");
        }
    };
    small.spawn(run).unwrap().join().unwrap();
}

#[test]
fn input_without_measure_is_refused() {
    use serde_json::{Value, json};
    let template = text::ChatTemplate::new("{{ messages }}", "", "").unwrap();
    let mut deep = json!([]);
    for _ in 0..500 {
        deep = Value::Array(vec![deep]);
    }
    let error = template.render(&[deep], &plain()).unwrap_err().to_string();
    assert!(error.contains("nested deeper than 128"), "{error}");
    let large = json!({"role": "user", "content": "x".repeat(33 << 20)});
    let error = template.render(&[large], &plain()).unwrap_err().to_string();
    assert!(error.contains("hold more than"), "{error}");
    let many: Vec<Value> = (0..5 << 20).map(|_| json!("")).collect();
    let error = template.render(&many, &plain()).unwrap_err().to_string();
    assert!(error.contains("hold more than"), "{error}");
    let source = "x".repeat((1 << 20) + 1);
    let error = text::ChatTemplate::new(&source, "", "")
        .unwrap_err()
        .to_string();
    assert!(error.contains("longer than 1048576"), "{error}");
}

/// What a long conversation needs, it gets: fuel grows with the input.
#[test]
fn long_conversations_render() {
    use serde_json::{Value, json};
    let template = text::ChatTemplate::new(&read("chat/smollm2.jinja"), "", "").unwrap();
    let turns: Vec<Value> = (0..4000)
        .map(|i| json!({"role": if i % 2 == 0 { "user" } else { "assistant" }, "content": "word ".repeat(200)}))
        .collect();
    assert!(template.render(&turns, &plain()).unwrap().len() > 4_000_000);
    let one = [json!({"role": "user", "content": "word ".repeat(4 << 20)})];
    assert!(template.render(&one, &plain()).unwrap().len() > 20 << 20);
}

/// What a user says cannot make a template give up, which it would do for everybody.
#[test]
fn markup_in_a_message_is_stripped_in_time() {
    use serde_json::json;
    let template = "{{ messages[0].content|striptags|length }}";
    let template = text::ChatTemplate::new(template, "", "").unwrap();
    for part in ["&", "&a ", "&amp", "<", "&#x"] {
        let content = part.repeat((1 << 20) / part.len());
        let start = Instant::now();
        // An answer, or an error that counts the work.
        let _ = template.render(&[json!({"role": "user", "content": content})], &plain());
        let took = start.elapsed();
        assert!(took < Duration::from_secs(3), "{part}: {took:?}");
        let short = [json!({"role": "user", "content": "a <b>c</b> &amp;"})];
        assert_eq!(template.render(&short, &plain()).unwrap(), "5", "{part}");
    }
}
