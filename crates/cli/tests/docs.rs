//! `docs/cli.md` is made of the help texts: a plain file, renewed with `PUNA_BLESS=1`.

mod common;

use std::path::Path;

use common::{VERBS, puna};

const HEAD: &str = "# The command line\n\n\
    Made from `puna --help` and each verb's `--help`; `PUNA_BLESS=1 cargo test -p puna --test docs` renews it.\n";

#[test]
fn the_page_of_the_command_line() {
    let mut page = HEAD.to_owned();
    let mut add = |title: &str, args: &[&str]| {
        let help = puna(args).succeeded().text();
        page.push_str(&format!(
            "\n## {title}\n\n```text\n{}\n```\n",
            help.trim_end()
        ));
    };
    add("puna", &["--help"]);
    for verb in VERBS {
        add(&format!("puna {verb}"), &[verb, "--help"]);
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    if std::env::var_os("PUNA_BLESS").is_some() {
        std::fs::write(&file, &page).expect("the page can be written");
    }
    let there = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        page == there,
        "docs/cli.md differs from the help texts; PUNA_BLESS=1 renews it"
    );
}
