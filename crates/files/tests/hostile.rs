//! Hostile files are refused at once, with an error that says where and why.
//!
//! The files, and the words that each error must contain, are in `tests/fixtures/hostile`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use files::gguf::Gguf;
use files::hf::HfDir;
use files::meta::MetaDir;
use files::peft::PeftDir;
use files::{Error, llama2c, safetensors, torch};

fn folder() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/hostile"
    ))
}

/// The table of the README: path, what is wrong, what the error says.
fn table() -> Vec<(String, String)> {
    let readme = fs::read_to_string(folder().join("README.md")).expect("README.md");
    let lines = readme.lines().skip_while(|line| !line.starts_with("| ---"));
    let cells = |line: &str| -> Vec<String> { line.split(" | ").map(str::to_string).collect() };
    let rows = lines.skip(1).map(|line| {
        let row = line.strip_prefix("| ").and_then(|l| l.strip_suffix(" |"));
        let row = cells(row.expect("a row of a table"));
        assert_eq!(row.len(), 3, "{line}");
        (row[0].clone(), row[2].clone())
    });
    rows.collect()
}

/// Opens a file, or a folder as one model, by the door that its kind has.
fn open(path: &Path) -> Result<(), Error> {
    if path.is_file() {
        return match path.extension().and_then(|e| e.to_str()) {
            Some("gguf") => Gguf::open(path).map(drop),
            Some("safetensors") => safetensors::open(path).map(drop),
            Some("pth") => torch::open(path).map(drop),
            Some("bin") => llama2c::open(path).map(drop),
            other => panic!("{}: no way to open {other:?}", path.display()),
        };
    }
    if path.parent().is_some_and(|kind| kind.ends_with("meta")) {
        return MetaDir::open(path).map(drop);
    }
    if path.parent().is_some_and(|kind| kind.ends_with("peft")) {
        return PeftDir::open(path).map(drop);
    }
    let entries = fs::read_dir(path).expect("a folder");
    let files = entries.map(|entry| entry.expect("an entry").path());
    let gguf = files
        .filter(|file| file.extension().is_some_and(|e| e == "gguf"))
        .min();
    match gguf {
        Some(first) => Gguf::open(first).map(drop),
        None => HfDir::open(path).map(drop),
    }
}

#[test]
fn each_is_refused_with_the_words_of_the_table() {
    let rows = table();
    assert!(rows.len() > 200, "only {} rows", rows.len());
    let mut wrong = Vec::new();
    for (name, says) in rows {
        let start = Instant::now();
        match open(&folder().join(&name)) {
            Ok(()) => wrong.push(format!("{name}: opened")),
            Err(error) => {
                let error = error.to_string();
                if !error.contains(&says) {
                    wrong.push(format!("{name}:\n  wanted {says}\n  found  {error}"));
                }
            }
        }
        let took = start.elapsed();
        assert!(took < Duration::from_secs(2), "{name} took {took:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_file_is_in_the_table() {
    let named: BTreeSet<String> = table().into_iter().map(|(name, _)| name).collect();
    let mut found = BTreeSet::new();
    for kind in [
        "gguf",
        "safetensors",
        "split",
        "hf",
        "peft",
        "torch",
        "meta",
        "llama2c",
    ] {
        for entry in fs::read_dir(folder().join(kind)).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            found.insert(format!("{kind}/{}", name.to_string_lossy()));
        }
    }
    assert_eq!(named, found);
}

#[test]
fn errors_about_bytes_have_an_offset() {
    for (name, _) in table() {
        let path = folder().join(&name);
        if path.is_dir() || name == "gguf/quantization-version-1.gguf" || name.starts_with("torch/")
        {
            // Wrong as a whole: no byte is to blame. (What a pickle says is said by many bytes.)
            continue;
        }
        let length = fs::metadata(&path).expect("metadata").len();
        match open(&path) {
            Err(Error::Malformed {
                offset,
                path: named,
                ..
            }) => {
                assert_eq!(named, path);
                // A tensor may be promised at an offset that the file does not have.
                let beyond = name == "safetensors/offset-max.safetensors";
                assert!(offset <= length || beyond, "{name}: {offset} of {length}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// A sparse file as large as a real model that promises as much as its size allows: an error at
/// once, without the memory that was promised.
#[test]
fn a_huge_file_of_promises_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("promises.gguf");
    let size: u64 = 60 << 30;
    let array = |kind: u32, count: u64| {
        let mut head = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
        head.extend(1u64.to_le_bytes());
        head.extend(b"k\x09\0\0\0");
        head.extend(kind.to_le_bytes());
        head.extend(count.to_le_bytes());
        head
    };
    let mut keys = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    keys.extend((size / 14 - 2).to_le_bytes());
    for head in [
        keys,
        array(0, size - 100),
        array(8, (size - 100) / 8),
        array(9, (size - 100) / 12),
    ] {
        std::fs::write(&path, &head).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(size).unwrap();
        let begun = std::time::Instant::now();
        let error = files::gguf::Gguf::open(&path).unwrap_err().to_string();
        assert!(error.contains("promised"), "{error}");
        assert!(begun.elapsed().as_secs() < 5, "{error}");
    }
}
