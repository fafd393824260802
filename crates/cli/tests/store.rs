//! The store's verbs, end to end, with a wheel that pip finds in a folder: no network.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Home, fixture, puna};

/// Makes a wheel with one model in it, as a zip written by Python.
fn wheel(folder: &Path, model: &str) {
    let script = r#"
import sys, zipfile
folder, model = sys.argv[1:]
with zipfile.ZipFile(f"{folder}/tiny_llama-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
    wheel.write(model, "tiny_llama/tiny.gguf")
    info = "tiny_llama-1.0.dist-info"
    wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-llama\nVersion: 1.0\n")
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(f"{info}/RECORD", "")
"#;
    let made = Command::new("python3")
        .args(["-c", script])
        .arg(folder)
        .arg(model)
        .status();
    assert!(made.expect("Python is there: pip needs it").success());
}

/// A home in which pip looks at one folder only, and Puna may ask pip.
fn home(wheels: &Path) -> Home {
    Home::new()
        .env("PUNA_OFFLINE", "")
        .env("PIP_NO_INDEX", "1")
        .env("PIP_FIND_LINKS", wheels.to_str().expect("UTF-8"))
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
}

const MODEL: &str = "pip:tiny-llama==1.0:tiny_llama/tiny.gguf";

#[test]
fn from_pull_to_rm() {
    let wheels = tempfile::tempdir().expect("a folder");
    let file = fixture("gguf/llama3.f32.gguf");
    wheel(wheels.path(), &file);
    let home = home(wheels.path());
    assert_eq!(
        home.run(&["list", "--format", "json"]).json()["models"],
        serde_json::json!([])
    );

    let plan = home
        .run(&["pull", MODEL, "--dry-run", "--format", "json"])
        .json();
    assert_eq!(
        (&plan["dry_run"], &plan["already"]),
        (&true.into(), &false.into())
    );
    assert_eq!(
        home.run(&["list", "--format", "json"]).json()["models"],
        serde_json::json!([])
    );

    let pulled = home.run(&["pull", MODEL, "--format", "json"]).json();
    let name = pulled["name"].as_str().expect("a name");
    let path = pulled["path"].as_str().expect("a path");
    let bytes = std::fs::metadata(&file).expect("there").len();
    assert_eq!(pulled["bytes"], bytes);
    assert_eq!(
        std::fs::read(path).expect("there"),
        std::fs::read(&file).expect("there")
    );
    assert_eq!(
        home.run(&["pull", MODEL, "--format", "json"]).json()["already"],
        true
    );

    let listed = home.run(&["list", "--format", "json"]).json()["models"].clone();
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&listed[0]["name"], &listed[0]["bytes"]),
        (&name.into(), &bytes.into())
    );
    assert!(home.run(&["list"]).succeeded().text().contains(name));

    let shown = home.run(&["show", name, "--format", "json"]).json();
    assert_eq!(
        (&shown["path"], &shown["source"]),
        (&path.into(), &listed[0]["source"])
    );
    assert_eq!(shown["sha256"].as_str().map(str::len), Some(64));
    assert_eq!(shown["sha256"], listed[0]["sha256"]);
    assert_eq!(
        shown["memory"]["weights_bytes"]
            .as_u64()
            .map(|b| b > 0 && b <= bytes),
        Some(true)
    );

    let second = home
        .run(&["cp", name, "mine:best", "--format", "json"])
        .json();
    assert_eq!(
        (&second["name"], &second["sha256"]),
        (&"mine:best".into(), &shown["sha256"])
    );
    let verified = home.run(&["verify", "--format", "json"]).json();
    assert_eq!(
        (&verified["ok"], verified["models"].as_array().map(Vec::len)),
        (&true.into(), Some(2))
    );

    let gone = home.run(&["rm", name, "--format", "json"]).json();
    assert_eq!(
        (&gone["removed"][0]["name"], &gone["removed"][0]["freed"]),
        (&name.into(), &0.into())
    );
    assert_eq!(
        home.run(&["show", "mine:best", "--format", "json"]).json()["sha256"],
        shown["sha256"]
    );
    let gone = home.run(&["rm", "mine:best", "--format", "json"]).json();
    assert_eq!(gone["removed"][0]["freed"], bytes);
    assert_eq!(
        home.run(&["list", "--format", "json"]).json()["models"],
        serde_json::json!([])
    );
}

#[test]
fn damage_is_found() {
    let wheels = tempfile::tempdir().expect("a folder");
    wheel(wheels.path(), &fixture("gguf/llama1.f32.gguf"));
    let home = home(wheels.path());
    let pulled = home.run(&["pull", MODEL, "--format", "json"]).json();
    let path = pulled["path"].as_str().expect("a path");
    let mut bytes = std::fs::read(path).expect("there");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    let mut rights = std::fs::metadata(path).expect("there").permissions();
    #[allow(
        clippy::permissions_set_readonly_false,
        reason = "a file of this test's own"
    )]
    rights.set_readonly(false);
    std::fs::set_permissions(path, rights).expect("set");
    std::fs::write(path, bytes).expect("written");
    let ran = home.run(&["verify", "--format", "json"]);
    ran.failed(4, "damaged");
    let answer: serde_json::Value = serde_json::from_slice(&ran.stdout).expect("JSON all the same");
    assert_eq!(answer["ok"], false);
}

#[test]
fn show_knows_files_and_directories() {
    let cases = [
        ("gguf/llama3_1.f32.gguf", "GGUF version 3", "F32", true),
        ("gguf/q256.Q4_K_M.gguf", "GGUF version 3", "Q4_K", true),
        (
            "models/llama_bf16_sharded",
            "Hugging Face directory",
            "BF16",
            true,
        ),
        ("models/llama1", "Hugging Face directory", "F32", false),
    ];
    for (path, format, ty, template) in cases {
        let answer = puna(&["show", &fixture(path), "--format", "json"]).json();
        assert_eq!(answer["architecture"], "llama", "{path}");
        assert_eq!(
            (&answer["format"], &answer["types"][0]["type"]),
            (&format.into(), &ty.into()),
            "{path}"
        );
        assert_eq!(answer["template"].is_string(), template, "{path}");
        assert!(answer["parameters"].as_u64().expect("a number") > 10_000);
        assert!(
            answer["memory"]["context_that_fits"]
                .as_u64()
                .expect("a number")
                > 0
        );
        let said = puna(&["show", &fixture(path)]).succeeded().text();
        assert!(said.contains(format) && said.contains(ty), "{said}");
    }
}

#[test]
fn refusals() {
    puna(&["show", "nothing:here"]).failed(3, "nothing:here");
    puna(&["rm", "nothing:here"]).failed(3, "nothing:here");
    puna(&["cp", "nothing:here", "a:b"]).failed(3, "nothing:here");
    puna(&["verify", "nothing:here"]).failed(3, "nothing:here");
    puna(&["pull", "smolm2:135m"]).failed(3, "smollm2:135m");
    puna(&["pull", "smollm2:135m"]).failed(3, "offline");
    puna(&["pull", "pip:x==1;rm"]).failed(2, "pip");
    let home = Home::new();
    let file = home.dir.path().join("broken.gguf");
    std::fs::write(&file, b"GGUF\x03\0\0\0\xff\xff\xff\xff").expect("written");
    home.run(&["show", file.to_str().expect("UTF-8")])
        .failed(4, "broken.gguf");
}
