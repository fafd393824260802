//! The help texts are part of the contract: plain files, renewed with `PUNA_BLESS=1`.

mod common;

use std::path::Path;

use common::{Home, VERBS, puna};

fn golden(name: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/help/{name}.txt"));
    if std::env::var_os("PUNA_BLESS").is_some() {
        std::fs::write(&file, text).expect("the golden file can be written");
    }
    let wanted = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        text == wanted,
        "help of {name} has changed (PUNA_BLESS=1 renews {}):\n{text}",
        file.display()
    );
}

#[test]
fn every_verb_has_its_help() {
    golden("puna", &puna(&["--help"]).succeeded().text());
    for verb in VERBS {
        golden(verb, &puna(&[verb, "--help"]).succeeded().text());
    }
}

#[test]
fn help_is_the_same_whatever_the_environment() {
    let plain = puna(&["run", "--help"]).text();
    for (threads, simd) in [("", ""), ("3", "scalar")] {
        let home = Home::new()
            .env("PUNA_THREADS", threads)
            .env("PUNA_SIMD", simd);
        assert_eq!(home.run(&["run", "--help"]).text(), plain);
    }
}

#[test]
fn verbs_that_print_data_take_format() {
    let data = |verb: &&&str| !["completions", "man", "serve"].contains(*verb);
    for verb in VERBS.iter().filter(data) {
        assert!(
            puna(&[verb, "--help"]).text().contains("--format <FORM>"),
            "{verb}"
        );
    }
}

#[test]
fn the_environment_is_named() {
    for verb in ["run", "logits", "perplexity", "bench"] {
        let help = puna(&[verb, "--help"]).text();
        for name in [
            "PUNA_HOME",
            "PUNA_MODEL",
            "PUNA_THREADS",
            "PUNA_SIMD",
            "PUNA_COMPUTE",
            "PUNA_OFFLINE",
        ] {
            assert!(help.contains(name), "{name} in the help of {verb}");
        }
        assert!(!help.contains("PUNA_PORT"));
    }
}

#[test]
fn version() {
    let said = puna(&["--version"]).succeeded().text();
    assert_eq!(said, format!("puna {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_of_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = puna(&["completions", shell]).succeeded().text();
        assert!(
            script.contains("tokenize") && script.contains("cache-type"),
            "{shell}"
        );
    }
    puna(&["completions", "tcsh"]).failed(2, "tcsh");
}

#[test]
fn the_manual_names_every_verb_and_option() {
    let page = puna(&["man"]).succeeded().text();
    assert!(page.contains(".TH puna 1"));
    for verb in VERBS {
        assert!(
            page.contains(&format!("PUNA {}", verb.to_uppercase())),
            "{verb}"
        );
    }
    for option in ["top\\-n\\-sigma", "cache\\-type", "dry\\-run"] {
        assert!(page.contains(option), "{option}");
    }
}
