//! Quotas of keys, when many requests come at once.

mod common;

use std::io::{Read, Write};

use common::Home;
use common::server::{Server, completion, wait_for};
use serde_json::{Value, json};

/// A key with these quotas.
fn key(home: &Home, more: &[&str]) -> String {
    let args = [&["key", "create", "--name", "me", "--format", "json"], more].concat();
    let made = home.run(&args).json();
    made["key"].as_str().expect("a key").to_owned()
}

/// Sends the request so many times at once; statuses and bodies.
fn at_once(server: &Server, key: &str, body: &Value, times: usize) -> Vec<(u16, Value)> {
    std::thread::scope(|scope| {
        let ask = || {
            let (status, answer) = server.ask("POST", "/v1/completions", key, body);
            (status, serde_json::from_str(&answer).expect("JSON"))
        };
        let threads: Vec<_> = (0..times).map(|_| scope.spawn(ask)).collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("an answer"))
            .collect()
    })
}

fn used(answers: &[(u16, Value)]) -> u64 {
    let good = answers.iter().filter(|(status, _)| *status == 200);
    good.map(|(_, answer)| answer["usage"]["total_tokens"].as_u64().expect("a number"))
        .sum()
}

#[test]
fn a_month_is_not_overshot_by_sixteen_at_once() {
    let home = Home::new();
    let key = key(&home, &["--monthly-tokens", "100"]);
    let server = Server::start(&home, &[]);
    let body = completion("One", 20);
    let answers = at_once(&server, &key, &body, 16);
    let each = used(&answers[..]) / answers.iter().filter(|(s, _)| *s == 200).count() as u64;
    assert!(each > 20, "{answers:?}");
    assert!(used(&answers) <= 100, "{answers:?}");
    for (status, answer) in answers.iter().filter(|(status, _)| *status != 200) {
        // Held by others for the moment, or used up.
        let code = answer["error"]["code"].as_str().expect("a code");
        assert!(*status == 429 && ["rate_limit_exceeded", "insufficient_quota"].contains(&code));
    }
    // What was only held comes back: in the end as many fit as the month has room for.
    let mut all = used(&answers);
    loop {
        let (status, answer) = server.ask("POST", "/v1/completions", &key, &body);
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        if status != 200 {
            assert_eq!(answer["error"]["code"], "insufficient_quota", "{answer}");
            break;
        }
        all += used(&[(status, answer)]);
    }
    assert_eq!(all, 100 / each * each);
    // Without a limit of its own an answer takes what is left, and ends there.
    let mut open = body.clone();
    open["n_predict"] = json!(-1);
    open["max_tokens"] = Value::Null;
    let left = 100 - all;
    let (status, answer) = server.ask("POST", "/v1/completions", &key, &open);
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let room = left > each - 20;
    assert_eq!(status, if room { 200 } else { 429 }, "{answer}");
    if room {
        all += left;
        assert_eq!(answer["usage"]["total_tokens"], left, "{answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
    wait_for("the bill says the same", || {
        let bill = home.run(&["key", "usage", "--format", "json"]).json();
        let rows = bill["usage"].as_array().expect("rows");
        let tokens = |row: &Value, kind: &str| row[kind].as_u64().expect("a number");
        let both = |row| tokens(row, "prompt_tokens") + tokens(row, "completion_tokens");
        rows.iter().map(both).sum::<u64>() == all
    });
}

#[test]
fn a_minute_is_not_overshot_and_headers_say_what_is_left() {
    let home = Home::new();
    // Fills by one token a second.
    let key = key(&home, &["--tpm", "60"]);
    let server = Server::start(&home, &[]);
    let begun = std::time::Instant::now();
    let answers = at_once(&server, &key, &completion("One", 20), 16);
    let filled = begun.elapsed().as_secs() + 1;
    assert!((21..=60 + filled).contains(&used(&answers)), "{answers:?}");
    let request = server.request("POST", "/v1/completions", &key, &completion("One", 1));
    let mut stream = server.connect();
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let header = |name: &str| -> u64 {
        let found = answer.lines().find_map(|line| line.strip_prefix(name));
        found.expect("the header").trim().parse().expect("a number")
    };
    assert_eq!(header("x-ratelimit-limit-tokens:"), 60);
    assert!(header("x-ratelimit-remaining-tokens:") <= 60 - used(&answers).min(60) + filled + 10);
    // More than a minute holds is refused as such.
    let (status, said) = server.ask("POST", "/v1/completions", &key, &completion("One", 200));
    assert!(
        status == 429 && said.contains("more than the 60 a minute"),
        "{said}"
    );
}
