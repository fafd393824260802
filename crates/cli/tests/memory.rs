//! The memory plan, under a limit set by hand.

mod common;

use common::{Home, Ran, fixture};

fn limited(limit: &str) -> Home {
    Home::new().env("PUNA_MEMORY", limit)
}

/// The commands that a refusal proposes, each between two backquotes.
fn proposed(ran: &Ran) -> Vec<String> {
    let hint = ran
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix("hint: "));
    let quoted = hint.expect("a hint").split('`').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

#[test]
fn a_refusal_has_the_numbers_and_commands_that_work() {
    let home = limited("120M");
    let model = fixture("gguf/llama3.f32.gguf");
    std::fs::copy(&model, home.dir.path().join("m")).expect("copied");
    let ran = home.run(&["run", "m", "--ctx", "2000000000", "-n", "1", "hi"]);
    ran.failed(5, "a context of 2000000000 tokens needs");
    for part in ["for the weights", "for the cache", "to work in"] {
        assert!(ran.stderr.contains(part), "{part}: {ran:?}");
    }
    let commands = proposed(&ran);
    assert!(commands[0].starts_with("puna run m --ctx "), "{commands:?}");
    for command in commands {
        let mut words: Vec<&str> = command.split(' ').skip(1).collect();
        words.extend(["-n", "1", "hi"]);
        home.run(&words).succeeded();
    }
}

#[test]
fn the_context_is_what_fits() {
    let model = fixture("gguf/llama3.f32.gguf");
    let own = Home::new()
        .run(&["show", &model, "--format", "json"])
        .json();
    assert_eq!(own["memory"]["context_that_fits"], own["context"]);
    assert!(
        own["memory"]["work_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 1 << 25)
    );
    let none = limited("30M")
        .run(&["show", &model, "--format", "json"])
        .json();
    assert!(none["memory"]["context_that_fits"].is_null());
    let refusal = &none["memory"]["refusal"];
    let part = |key: &str| refusal[key].as_str().expect("a text").to_owned();
    assert!(
        part("what").contains("a context of 32 tokens needs"),
        "{refusal}"
    );
    assert!(part("hint").contains("choose a smaller model"), "{refusal}");
    let text = limited("30M").run(&["show", &model]).text();
    assert!(
        text.contains("does not fit now") && text.contains(&part("hint")),
        "{text}"
    );
    assert!(own["memory"].get("refusal").is_none());
    assert!(
        none["memory"]["available_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes < 30_000_000)
    );
}

#[test]
fn nothing_is_started_that_does_not_fit() {
    let home = limited("20M");
    let experts = fixture("../experts/experts.gguf");
    let model = fixture("gguf/llama3.f32.gguf");
    for model in [&experts, &model] {
        home.run(&["logits", model, "--ids", "1,2"])
            .failed(5, "to work in");
        home.run(&["bench", model, "-p", "8", "-n", "0"])
            .failed(5, "to work in");
    }
    // A model that must be put together in memory is refused before that.
    for name in [
        "gptq-sym",
        "bnb-nf4",
        "meta-llama1",
        "llama2c-v2-g32/model.bin",
    ] {
        let path = fixture(&format!("../formats/{name}"));
        limited("1K")
            .run(&["logits", &path, "--ids", "1,2"])
            .failed(5, "put together in memory");
    }
    for odd in ["much", "1.5G", "-1"] {
        limited(odd).run(&["list"]).failed(2, "PUNA_MEMORY");
    }
}

/// `bench` proposes measurements in its own options.
#[test]
fn bench_says_which_measurement_fits() {
    let home = limited("120M");
    let model = fixture("gguf/llama3.f32.gguf");
    std::fs::copy(&model, home.dir.path().join("m")).expect("copied");
    for asked in [
        "--depth 2000000 --parallel 1 -p 8 -n 2",
        "--depth 64 --parallel 65536 -p 8 -n 2",
        "--depth 0 --parallel 2 -p 4000000 -n 0",
    ] {
        let words = format!("bench m --cache-type f32 {asked}");
        let words: Vec<&str> = words.split(' ').collect();
        let ran = home.run(&words);
        ran.failed(5, "a cache of");
        for part in ["for the weights", "for the cache", "to work in"] {
            assert!(ran.stderr.contains(part), "{part}: {ran:?}");
        }
        let commands = proposed(&ran);
        assert!(commands[0].starts_with("puna bench m -p "), "{commands:?}");
        assert!(
            commands[1].starts_with("puna bench m --cache-type q8_0 -p "),
            "{commands:?}"
        );
    }
    // A shape that is made up, whose weights are not made before it is known that they fit.
    let shape = [
        "bench",
        "--shape",
        "llama-3-8b",
        "--type",
        "f16",
        "-p",
        "8",
        "-n",
        "0",
    ];
    let ran = limited("7G").run(&shape);
    ran.failed(5, "for the weights");
    assert_eq!(proposed(&ran), ["--type Q6_K"], "{ran:?}");
    let ran = limited("1G").run(&shape);
    ran.failed(5, "for the weights");
    assert!(ran.stderr.contains("choose a smaller model"), "{ran:?}");
}

/// What must be put together in memory is refused before it is, whatever is done with it.
#[test]
fn packed_checkpoints_are_not_put_together_without_room() {
    for name in ["gptq-sym", "awq", "bnb-nf4", "fp8-row"] {
        let path = fixture(&format!("../formats/{name}"));
        let home = limited("1K");
        for words in [
            &["show", &path][..],
            &["convert", &path, "out.gguf"],
            &["quantize", &path, "out.gguf", "Q8_0"],
        ] {
            home.run(words).failed(5, "put together in memory");
        }
        let home = Home::new();
        home.run(&["convert", &path, "out.gguf"]).succeeded();
        let report = home.run(&["show", "out.gguf", "--format", "json"]).json();
        assert_eq!(report["layers"], 1, "{name}");
    }
}
