//! Exit codes, error lines and hints; the environment; what this release refuses.

mod common;

use std::process::Stdio;

use common::{Home, fixture, puna};

#[test]
fn wrong_usage_is_2_with_one_error_and_one_hint() {
    for (args, what) in [
        (&[][..], "subcommand"),
        (&["rum"], "rum"),
        (&["run", "--temprature", "1"], "temprature"),
        (&["run", "--temperature", "warm"], "warm"),
        (&["run", "--ctx", "0", "hello you"], "at least 1"),
        (&["run", "--cache-type", "q4_0", "hello you"], "q4_0"),
        (&["run", "--logit-bias", "7", "hello you"], "ID:B"),
        (
            &["run", "--logit-bias", "7:nan", "hello you"],
            "not a number",
        ),
        (&["run", "--format", "yaml", "hello you"], "yaml"),
        (&["run", "--raw", "--system", "x", "hello you"], "--system"),
        (&["tokenize"], "<MODEL>"),
        (&["logits", "x"], "--ids"),
        (&["template"], "--messages"),
        (&["completions"], "<SHELL>"),
    ] {
        let ran = puna(args);
        ran.failed(2, what);
        assert!(ran.stderr.contains("\nhint: "), "{ran:?}");
        assert!(ran.stdout.is_empty(), "{ran:?}");
    }
}

#[test]
fn a_near_miss_is_named() {
    assert!(
        puna(&["tokenise"])
            .stderr
            .contains("hint: did you mean `tokenize`?")
    );
    assert!(
        puna(&["run", "--temprature", "1"])
            .stderr
            .contains("`--temperature`")
    );
}

#[test]
fn unknown_models_are_3() {
    let home = Home::new();
    for args in [
        &["run", "smollm3"][..],
        &["run", "-m", "smollm3:135m", "hello you"],
        &["run", "./missing.gguf"],
        &["tokenize", "smollm3", "hello"],
        &["detokenize", "missing/tokenizer.json", "1"],
        &["run", "smollm2:135m", "hello you"],
    ] {
        let ran = home.run(args);
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert!(ran.stderr.contains("hint: "), "{ran:?}");
    }
    let near = home.run(&["run", "smollm3"]);
    assert!(near.stderr.contains("smollm2:135m"), "{near:?}");
}

#[test]
fn broken_model_files_are_4() {
    let home = Home::new();
    let path = home.dir.path().join("broken.gguf");
    for bytes in [
        &b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"[..],
        b"",
        b"hello",
    ] {
        std::fs::write(&path, bytes).unwrap();
        let path = path.to_str().unwrap();
        for args in [
            &["run", path, "hello you"][..],
            &["tokenize", path, "hello"],
        ] {
            let ran = home.run(args);
            assert_eq!(ran.code, Some(4), "{ran:?}");
        }
    }
}

#[test]
fn a_level_this_machine_lacks_is_2() {
    let level =
        match cfg!(target_arch = "x86_64") && std::arch::is_x86_feature_detected!("avx512bf16") {
            // Nothing to force on a machine that has them all, but a name that is none.
            true => "avx1024",
            false => "avx512bf16",
        };
    let home = Home::new().env("PUNA_SIMD", level);
    home.run(&["run", &fixture("models/llama3"), "hello you"])
        .failed(2, level);
}

#[test]
fn empty_variables_count_as_unset_and_options_beat_them() {
    let model = fixture("gguf/llama3.f32.gguf");
    let args = [
        "run", "-m", &model, "--raw", "-n", "1", "--seed", "1", "hello",
    ];
    let empty = ["THREADS", "SIMD", "COMPUTE", "OFFLINE", "MODEL", "HOME"]
        .iter()
        .fold(Home::new(), |home, name| {
            home.env(&format!("PUNA_{name}"), "")
        });
    empty.run(&args).succeeded();
    let odd = Home::new()
        .env("PUNA_THREADS", "many")
        .env("PUNA_PORT", "tcp://10.0.0.1:80");
    odd.run(&args).failed(2, "many");
    odd.run(&[&args[..], &["--threads", "1"]].concat())
        .succeeded();
    let offline = Home::new().env("PUNA_OFFLINE", "perhaps");
    offline.run(&args).failed(2, "perhaps");
}

#[test]
fn threads_beyond_the_processors_are_not_started() {
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    let asked = (most + 6).to_string();
    let model = fixture("gguf/llama3.f32.gguf");
    let args = ["bench", &model, "-p", "8", "-n", "0", "--repeat", "1"];
    let ran = puna(&[&args[..], &["--threads", &asked, "--format", "json"]].concat());
    assert_eq!(ran.json()["results"][0]["threads"], most);
    assert!(
        ran.stderr
            .contains(&format!("{asked} threads asked for, {most} used"))
    );
}

#[test]
fn a_context_beyond_memory_is_5_with_the_nearest_that_fits() {
    let model = fixture("models/llama3");
    let ran = puna(&["run", &model, "--ctx", "999999999999", "hello you"]);
    ran.failed(5, "999999999999");
    assert!(ran.stderr.contains("--ctx 256` fits"), "{ran:?}");
}

#[test]
fn a_closed_stdout_is_a_quiet_end() {
    let model = fixture("models/llama3");
    for args in [
        &["man"][..],
        &["run", "--help"],
        &["run", "-m", &model, "--raw", "-n", "32", "hello"],
        &["tokenize", &model, "hello"],
    ] {
        let mut child = Home::new()
            .command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?} {output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let trouble = ["error", "panicked", "pipe"]
            .iter()
            .any(|w| stderr.contains(w));
        assert!(!trouble, "{args:?} {output:?}");
    }
}

#[test]
fn the_log_goes_to_stderr_and_obeys_rust_log() {
    let model = fixture("models/llama3");
    let args = [
        "run",
        &model,
        "--raw",
        "-n",
        "1",
        "--ctx",
        "512",
        "--format",
        "json",
        "hello you",
    ];
    let loud = Home::new().run(&args);
    assert!(loud.stderr.contains("made for 256 tokens"), "{loud:?}");
    loud.json();
    let quiet = Home::new().env("RUST_LOG", "error").run(&args);
    assert!(quiet.stderr.is_empty(), "{quiet:?}");
}

/// What is wrong with a MODEL is said before an empty prompt is.
#[test]
fn an_unknown_or_broken_model_beats_an_empty_prompt() {
    let home = Home::new().env("PUNA_OFFLINE", "1");
    for model in ["nosuch:1b", "smolm2:135m", "hf:a/b"] {
        home.run(&["run", "-m", model]).failed(3, "");
        home.run(&["run", model]).failed(3, "");
    }
    let garbage = home.dir.path().join("garbage.gguf");
    std::fs::write(&garbage, b"GGUF\x03\0\0\0 and then nothing").unwrap();
    let garbage = garbage.to_str().unwrap();
    home.run(&["run", garbage]).failed(4, garbage);
    home.run(&["tokenize", garbage, "hi"]).failed(4, garbage);
    home.run(&["run", "-m", &fixture("models/llama3")])
        .failed(2, "empty");
    home.run(&["run"]).failed(2, "empty");
}

/// A file as typed needs no store, nor a place for one.
#[test]
fn a_path_needs_no_home() {
    let home = Home::new();
    let model = fixture("gguf/llama3.f32.gguf");
    for args in [
        &["run", &model, "hi there", "--raw", "-n", "1"][..],
        &["logits", &model, "--ids", "1"],
        &["tokenize", &model, "hi"],
    ] {
        let mut command = home.command(args);
        command.env("HOME", "").env_remove("PUNA_HOME");
        let out = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{args:?}: {out:?}");
    }
    let mut command = home.command(&["list"]);
    let out = command.env("HOME", "").env_remove("PUNA_HOME").output();
    assert_eq!(out.unwrap().status.code(), Some(1));
}

/// The directory is a model, but for its tokenizer.
#[test]
fn a_model_without_a_tokenizer_is_invalid() {
    let home = Home::new();
    let from = fixture("models/llama3");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(format!("{from}/{name}"), home.dir.path().join(name)).unwrap();
    }
    let model = home.dir.path().to_str().unwrap();
    home.run(&["run", "-m", model, "hi there", "--raw"])
        .failed(4, "has no tokenizer");
    home.run(&["logits", model, "--ids", "1"]).succeeded();
}
