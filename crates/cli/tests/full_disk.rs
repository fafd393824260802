//! A disk that is really full: a small file system of the server's own, mounted where only it sees it.
#![cfg(target_os = "linux")]

mod common;

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use common::Home;
use common::fixture;
use common::server::{Server, completion, wait_for};
use serde_json::Value;

const TEXT: &str = "/v1/completions";
const BOSS: &str = "boss-key-0123456789abcdef";

/// Runs `puna serve` with a file system of so many bytes at `small`, in its home. `None`, with the reason printed: this
/// system lets nobody mount one.
fn on_a_small_disk(home: &Home, bytes: usize, more: &[&str]) -> Option<Server> {
    let small = home.dir.path().join("small");
    std::fs::create_dir(&small).expect("a new folder");
    let mount = "mount -t tmpfs -o size=\"$0\" none small";
    let tried = Command::new("unshare")
        .args(["-rm", "sh", "-c", mount])
        .arg(bytes.to_string())
        .current_dir(home.dir.path())
        .output();
    let reason = match tried {
        Ok(tried) if tried.status.success() => None,
        Ok(tried) => Some(String::from_utf8_lossy(&tried.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    };
    if let Some(reason) = reason {
        common::skip(&format!("no file system can be mounted here: {reason}"));
        return None;
    }
    let model = fixture("models/llama3");
    let serve = home.command(&[&["serve", "-m", &model, "--port", "0"], more].concat());
    let mut command = Command::new("unshare");
    command
        .args(["-rm", "sh", "-c"])
        .arg(format!("{mount} && exec \"$@\""))
        .arg(bytes.to_string())
        .arg(serve.get_program())
        .args(serve.get_args());
    command.env_clear();
    let set = serve.get_envs().filter_map(|(k, v)| Some((k, v?)));
    command.envs(set);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.current_dir(home.dir.path());
    Some(Server::run(command))
}

/// Where that file system can be seen from here.
fn seen(home: &Home, server: &Server) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{}/root", server.child.id()));
    let small = home.dir.path().join("small");
    root.join(small.strip_prefix("/").expect("an absolute path"))
}

/// Writes until nothing goes any more. Says how much went.
fn fill(file: &std::path::Path) -> usize {
    let mut file = std::fs::File::create(file).expect("room for a name");
    let mut written = 0;
    // The last pages go in small pieces.
    for piece in [64 << 10, 4096, 512] {
        let zeros = vec![0; piece];
        loop {
            match file.write(&zeros) {
                Ok(n) if n > 0 => written += n,
                Ok(_) => break,
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
                    break;
                }
            }
        }
    }
    written
}

/// Keys, usage and audit on a disk that is full: new work is refused, nothing that was answered is lost.
#[test]
fn a_full_disk_for_the_state() {
    let home = Home::new();
    std::fs::write(
        home.dir.path().join("keys"),
        format!("{BOSS} boss admin,inference,metrics\n"),
    )
    .expect("written");
    let more = ["--state", "small/server.sqlite", "--api-key-file", "keys"];
    let Some(server) = on_a_small_disk(&home, 1 << 20, &more) else {
        return;
    };
    let ask = || {
        server
            .ask("POST", TEXT, BOSS, &completion("Once upon", 4))
            .0
    };
    assert_eq!(ask(), 200);
    let filler = seen(&home, &server).join("filler");
    let mut answered = 1;
    for _ in 0..2 {
        assert!(fill(&filler) > 0);
        wait_for("new work is refused", || match ask() {
            200 => {
                answered += 1;
                false
            }
            status => status == 503,
        });
        let (status, said) = server.ask("GET", "/ready", "", &Value::Null);
        assert!(
            status == 503 && said.contains("state_unavailable"),
            "{status} {said}"
        );
        assert_eq!(server.ask("GET", "/health", "", &Value::Null).0, 200);
        std::fs::remove_file(&filler).expect("it is ours");
        wait_for("there is room again", || {
            server.ask("GET", "/ready", "", &Value::Null).0 == 200
        });
        assert_eq!(ask(), 200);
        answered += 1;
    }
    wait_for("all answers are on the bill", || {
        let (status, usage) = server.ask("GET", "/admin/usage", BOSS, &Value::Null);
        assert_eq!(status, 200, "{usage}");
        let usage: Value = serde_json::from_str(&usage).expect("JSON");
        let rows = usage["usage"].as_array().expect("rows").iter();
        let requests = rows.map(|row| row["requests"].as_u64().expect("a number"));
        requests.sum::<u64>() == answered
    });
    let (status, sound) = server.ask("GET", "/admin/audit/verify", BOSS, &Value::Null);
    let sound: Value = serde_json::from_str(&sound).expect("JSON");
    assert!(status == 200 && sound["ok"] == true, "{sound}");
}

/// Kept beginnings on a disk that is full: counted errors, the same answers, and a server that ends well.
#[test]
fn a_full_disk_for_the_cache() {
    let home = Home::new();
    let Some(mut server) = on_a_small_disk(
        &home,
        64 << 10,
        &["--cache-dir", "small/cache", "--ctx", "128"],
    ) else {
        return;
    };
    let small = seen(&home, &server);
    assert!(fill(&small.join("filler")) > 0);
    let errors = |server: &Server| server.metric("puna_cache_dir_errors_total");
    assert_eq!(errors(&server), 0);
    let ask = |n: usize| {
        server.post(
            TEXT,
            &completion(&format!("{n} {}", "and a cat ".repeat(18)), 8),
        )
    };
    let first = ask(0);
    // The oldest beginnings give way to newer ones, and have nowhere to go.
    let mut n = 0;
    wait_for("a write fails", || {
        n += 1;
        ask(n);
        errors(&server) > 0
    });
    assert!(server.metric("puna_prefix_cache_evictions_total") > 0);
    assert_eq!(ask(0)["choices"], first["choices"]);
    let files = std::fs::read_dir(small.join("cache")).expect("it is there");
    let left: Vec<_> = files
        .map(|file| file.expect("a file").file_name())
        .collect();
    assert_eq!(left, ["puna-cache.key"], "no part of a file is left");
    // With room again what gives way is written.
    std::fs::remove_file(small.join("filler")).expect("it is ours");
    wait_for("a write succeeds", || {
        n += 1;
        ask(n);
        let files = std::fs::read_dir(small.join("cache")).expect("it is there");
        files
            .flatten()
            .any(|file| file.path().extension().is_some_and(|e| e == "kv"))
    });
    // And on a disk that is full again it ends as it should.
    fill(&small.join("filler"));
    let pid = server.child.id().to_string();
    let told = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(told.expect("kill runs").success());
    assert_eq!(server.child.wait().expect("it ends").code(), Some(0));
}
