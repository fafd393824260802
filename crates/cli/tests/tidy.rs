//! The house's invariants that a test can check, read from the source tree itself.
//!
//! Each test names every offending file and line, and says what to do instead. The rules and their reasons are
//! in `ARCHITECTURE.md`; what stands here is only how they are recognised.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms with their floors: a room may use only rooms on lower floors.
const FLOORS: [(&str, u8); 8] = [
    ("kernels", 1),
    ("files", 1),
    ("text", 2),
    ("hub", 2),
    ("model", 3),
    ("engine", 4),
    ("server", 6),
    ("cli", 7),
];

/// Source files that may be longer than [`LONGEST`] lines, each with its reason.
const LONG_FILES: [(&str, &str); 0] = [];
const LONGEST: usize = 600;

/// Crates that only some rooms may depend on: (crate, rooms, why).
const KEPT_APART: [(&str, &[&str], &str); 5] = [
    ("anyhow", &["cli"], "rooms have one small error enum each"),
    ("clap", &["cli"], "only cli knows flags"),
    ("reqwest", &["hub"], "only hub speaks to the network"),
    (
        "tokio",
        &["hub", "server"],
        "only hub and server wait for sockets",
    ),
    ("memmap2", &["files"], "there is one mmap"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All files of the project as (path from the root with `/`, text), without build output, caches and binary files.
fn sources() -> Vec<(String, String)> {
    const SKIPPED: [&str; 6] = [
        "target",
        ".git",
        ".cache",
        "artifacts",
        "corpus",
        "reference",
    ];
    let (root, mut found, mut open) = (root(), Vec::new(), vec![root()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("the project's folders can be read") {
            let entry = entry.expect("the project's folders can be listed");
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().expect("files have a type");
            if kind.is_dir() && !SKIPPED.iter().any(|skipped| name == *skipped) {
                open.push(path);
            } else if kind.is_file()
                && name != ".git" // a file in a work tree: git's own
                && let Ok(text) = fs::read_to_string(&path)
            {
                let inside = path.strip_prefix(&root).expect("walked from the root");
                found.push((inside.to_string_lossy().replace('\\', "/"), text));
            }
        }
    }
    found.sort();
    assert!(found.len() > 50, "only {} files found", found.len());
    found
}

/// Rust files under `crates/*/src`.
fn library_sources() -> Vec<(String, String)> {
    let is_library = |path: &str| path.starts_with("crates/") && path.contains("/src/");
    let mut sources = sources();
    sources.retain(|(path, _)| is_library(path) && path.ends_with(".rs"));
    sources
}

fn check(rule: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{rule}\n  {}\n", offences.join("\n  "));
}

/// The lines of a Rust source with comments and the insides of strings blanked, so that words in them do not count.
fn code_lines(source: &str) -> Vec<String> {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let (mut out, mut i) = (String::with_capacity(source.len()), 0);
    let blank = |out: &mut String, piece: &[char]| {
        out.extend(piece.iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
    };
    while i < text.len() {
        let start = i;
        let word_before = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        if at(i) == '/' && at(i + 1) == '/' {
            while i < text.len() && at(i) != '\n' {
                i += 1;
            }
        } else if at(i) == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= text.len() {
                    break;
                }
            }
        } else if at(i) == 'r' && !word_before && (at(i + 1) == '"' || at(i + 1) == '#') {
            let hashes = (i + 1..).take_while(|&j| at(j) == '#').count();
            if at(i + 1 + hashes) != '"' {
                out.push('r'); // a raw identifier
                i += 1;
                continue;
            }
            i += hashes + 2;
            while i < text.len() && !(at(i) == '"' && (1..=hashes).all(|k| at(i + k) == '#')) {
                i += 1;
            }
            i += hashes + 1;
        } else if at(i) == '"' {
            i += 1;
            while i < text.len() && at(i) != '"' {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if at(i) == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            i += if at(i + 1) == '\\' { 3 } else { 2 }; // a character, not a lifetime
            while i < text.len() && at(i) != '\'' {
                i += 1;
            }
            i += 1;
        } else {
            out.push(at(i));
            i += 1;
            continue;
        }
        i = i.min(text.len());
        blank(&mut out, &text[start..i]);
    }
    out.lines().map(str::to_owned).collect()
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(i, _)| !line[..i].ends_with(is_part) && !line[i + word.len()..].starts_with(is_part))
}

#[test]
fn the_lexer_sees_code_only() {
    let source = "let a = \"unsafe\"; // unsafe\nlet b = r#\"unsafe \" \"#; /* unsafe /* x */ unsafe */ let c = '\"';\n\
                  let d = '\\''; unsafe {} let e: &'static str = \"\\\"unsafe\";";
    let lines = code_lines(source);
    let seen: Vec<bool> = lines.iter().map(|line| has_word(line, "unsafe")).collect();
    assert_eq!(seen, [false, false, true]);
    assert!(lines[1].contains("let c ="));
    assert!(!has_word("deny(unsafe_code)", "unsafe"));
}

#[test]
fn unsafe_lives_in_kernels_and_the_one_mmap() {
    let mut offences = Vec::new();
    for (path, source) in sources().iter().filter(|(path, _)| path.ends_with(".rs")) {
        let allowed = path.starts_with("crates/kernels/") || path == "crates/files/src/map.rs";
        let raw: Vec<&str> = source.lines().collect();
        for (i, line) in code_lines(source).iter().enumerate() {
            if !has_word(line, "unsafe") {
                continue;
            }
            let explained = raw[i.saturating_sub(8)..=i]
                .iter()
                .any(|line| line.contains("SAFETY") || line.contains("# Safety"));
            if !allowed {
                offences.push(format!("{path}:{}: unsafe outside its rooms", i + 1));
            } else if !explained && !has_word(line, "fn") {
                offences.push(format!("{path}:{}: no SAFETY comment near", i + 1));
            }
        }
    }
    check(
        "unsafe stands only in kernels and files/src/map.rs, and says why it is sound",
        &offences,
    );
}

#[test]
fn nothing_below_cli_prints_or_exits() {
    const BANNED: [&str; 6] = [
        "println!",
        "eprintln!",
        "print!",
        "eprint!",
        "dbg!",
        "process::exit",
    ];
    let mut offences = Vec::new();
    for (path, source) in library_sources() {
        if path.starts_with("crates/cli/") {
            continue;
        }
        for (i, line) in code_lines(&source).iter().enumerate() {
            if line.contains("#[cfg(test)]") {
                break; // unit tests close a file
            }
            offences.extend(
                BANNED
                    .iter()
                    .filter(|banned| line.contains(*banned))
                    .map(|banned| format!("{path}:{}: {banned}", i + 1)),
            );
        }
    }
    check(
        "nothing below cli prints or exits: return it, or use tracing",
        &offences,
    );
}

/// (section, name) of every dependency in a Cargo.toml.
fn dependencies(manifest: &str) -> Vec<(String, String)> {
    let (mut section, mut found) = (String::new(), Vec::new());
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = name.to_owned();
        } else if section.ends_with("dependencies") && !line.is_empty() && !line.starts_with('#') {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            found.push((section.clone(), name.to_owned()));
        }
    }
    found
}

#[test]
fn rooms_use_only_lower_floors() {
    let floor = |room: &str| {
        FLOORS
            .iter()
            .find(|(name, _)| *name == room)
            .map(|(_, floor)| *floor)
    };
    let (mut offences, mut rooms) = (Vec::new(), BTreeSet::new());
    for (path, manifest) in sources() {
        let Some(room) = path
            .strip_prefix("crates/")
            .and_then(|p| p.strip_suffix("/Cargo.toml"))
        else {
            continue;
        };
        if room.contains('/') {
            continue; // fuzz and bench packages beside a room
        }
        rooms.insert(room.to_owned());
        let Some(own) = floor(room) else {
            offences.push(format!(
                "{path}: a new room needs a floor in this test and in ARCHITECTURE.md"
            ));
            continue;
        };
        for (section, name) in dependencies(&manifest) {
            if floor(&name).is_some_and(|other| other >= own) {
                offences.push(format!(
                    "{path}: [{section}] {name} is not on a lower floor"
                ));
            }
            for (kept, allowed, why) in KEPT_APART {
                if name == kept && section == "dependencies" && !allowed.contains(&room) {
                    offences.push(format!("{path}: {kept} belongs to {allowed:?}: {why}"));
                }
            }
        }
        if !manifest.contains("[lints]\nworkspace = true") {
            offences.push(format!("{path}: [lints] workspace = true is missing"));
        }
    }
    assert_eq!(rooms.len(), FLOORS.len(), "rooms found: {rooms:?}");
    check("a room uses only rooms on lower floors", &offences);
}

#[test]
fn source_files_are_short() {
    let mut offences = Vec::new();
    for (path, source) in library_sources() {
        let lines = source.lines().count();
        let excused = LONG_FILES
            .iter()
            .any(|(long, reason)| *long == path && !reason.is_empty());
        if lines > LONGEST && !excused {
            offences.push(format!("{path}: {lines} lines"));
        }
        if lines <= LONGEST && excused {
            offences.push(format!("{path}: is short again, take it from LONG_FILES"));
        }
    }
    check(
        "a source file has 600 lines at most: make two of it",
        &offences,
    );
}

#[test]
fn no_word_of_one_machine() {
    // Split so that this file does not hold them.
    let banned = [
        concat!("crates", ".io"),
        concat!("pypi", ".org"),
        concat!("python", "hosted.org"),
        concat!("npm", "js.org"),
        concat!("npm", "js.com"),
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/tmp/", "puna"),
    ];
    let mut offences = Vec::new();
    for (path, source) in sources() {
        if path.ends_with("Cargo.lock") {
            continue; // written by cargo
        }
        for (i, line) in source.lines().enumerate() {
            for banned in banned {
                let alone = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric());
                if line.match_indices(banned).any(|(at, _)| alone(at)) {
                    offences.push(format!("{path}:{}: {banned}", i + 1));
                }
            }
        }
    }
    check(
        "no registry host and no path of one machine in the repository",
        &offences,
    );
}

#[test]
fn every_fixture_folder_has_a_readme() {
    let fixtures = root().join("tests/fixtures");
    let mut folders = vec![fixtures.clone()];
    folders.push(fixtures.join("reference"));
    let mut offences = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("fixtures are there").flatten() {
            let path = entry.path();
            if path.is_dir() && !path.join("README.md").is_file() {
                offences.push(path.display().to_string());
            }
        }
    }
    check(
        "a fixture folder says in its README what its files are and who made them",
        &offences,
    );
}

#[test]
fn text_files_end_in_a_newline() {
    const TEXT: [&str; 8] = [
        ".rs",
        ".md",
        ".toml",
        ".py",
        ".sh",
        ".txt",
        ".gitignore",
        "justfile",
    ];
    let mut offences = Vec::new();
    for (path, source) in sources() {
        let fixture = path.contains("fixtures/") && !path.ends_with(".md");
        let text = TEXT.iter().any(|end| path.ends_with(end)) || path.starts_with(".ci/");
        if text && !fixture && !(source.is_empty() || source.ends_with('\n')) {
            offences.push(path);
        }
    }
    check("a text file ends in a newline", &offences);
}

#[test]
fn the_readme_and_ci_run_agree() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let ci = fs::read_to_string(root().join(".ci/run")).expect(".ci/run");
    let command = readme
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("cargo test"))
        .expect("the README names its test command on a line of its own");
    assert!(
        ci.lines().any(|line| line.ends_with(command)),
        ".ci/run does not run `{command}`"
    );
    let first = readme
        .lines()
        .map(str::trim)
        .find_map(|line| line.strip_prefix("cargo run --release -- run "))
        .expect("the README names its first command on a line of its own");
    assert!(ci.contains(first), ".ci/run does not ask {first}");
}

/// Targets of `[text](target)` in a Markdown file, outside code fences, without those that have a scheme.
fn links(markdown: &str) -> Vec<(usize, String)> {
    let (mut found, mut fenced) = (Vec::new(), false);
    for (i, line) in markdown.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..]
                .split([')', ' ', '#'])
                .next()
                .unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                found.push((i + 1, target.to_owned()));
            }
        }
    }
    found
}

/// Paths in the README's annotated tree: the first word of each line of the fence that is marked `text`.
fn tree_paths(readme: &str) -> Vec<String> {
    let tree = readme
        .split("```text\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let lines = tree.unwrap_or_default().lines();
    lines
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect()
}

#[test]
fn links_and_paths_in_the_documents_exist() {
    let mut offences = Vec::new();
    for (path, markdown) in sources().iter().filter(|(path, _)| path.ends_with(".md")) {
        let folder = root().join(path);
        let folder = folder.parent().expect("a file lies in a folder");
        for (line, target) in links(markdown) {
            if !folder.join(&target).exists() {
                offences.push(format!("{path}:{line}: {target}"));
            }
        }
        if path == "README.md" {
            let tree = tree_paths(markdown);
            assert!(tree.len() > 10, "the README's tree was not found");
            let gone = tree.iter().filter(|entry| !root().join(entry).exists());
            offences.extend(gone.map(|entry| format!("{path}: {entry}")));
        }
    }
    check("documents point at files that exist", &offences);
}

#[test]
fn allowed_skips_have_reasons() {
    let list = fs::read_to_string(root().join("tests/allowed-skips.txt"))
        .expect("tests/allowed-skips.txt");
    let rust: Vec<String> = sources()
        .into_iter()
        .filter(|(path, _)| path.ends_with(".rs"))
        .map(|(_, source)| source)
        .collect();
    let mut offences = Vec::new();
    for line in list
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
    {
        match line.split_once(": ") {
            Some((name, reason)) if reason.trim().len() >= 15 => {
                let test = name.rsplit("::").next().unwrap_or(name);
                if !rust
                    .iter()
                    .any(|source| source.contains(&format!("fn {test}(")))
                {
                    offences.push(format!("{line}: there is no such test"));
                }
            }
            _ => offences.push(format!("{line}: want `test_name: reason`")),
        }
    }
    check(
        "a skip that is allowed under CI names its test and its reason",
        &offences,
    );
}
