//! Repositories: what is chosen, who gets the token, what the cache gives, and hostile listings.

mod common;

use std::path::Path;

use common::*;
use hub::{Error, Hub, PullOptions};

const DRY: PullOptions = PullOptions {
    dry_run: true,
    force: false,
};

/// Pulls `word` from a served repository; gives back the names of the files, or the error.
fn chosen(repo: &Repo, word: &str) -> Result<Vec<String>, Error> {
    let home = tempfile::tempdir().unwrap();
    let server = repo.clone().serve();
    let report = hub(home.path(), &server).pull(word, DRY, &mut ())?;
    Ok(report.files.into_iter().map(|file| file.path).collect())
}

fn quants() -> Repo {
    [
        "m-Q4_K_M.gguf",
        "m-Q4_K_S.gguf",
        "m-IQ4_XS.gguf",
        "m.f16.gguf",
        "mmproj-m-Q8_0.gguf",
        "big/m-Q8_0-00001-of-00002.gguf",
        "big/m-Q8_0-00002-of-00002.gguf",
        "broken/m-Q6_K-00001-of-00002.gguf",
    ]
    .into_iter()
    .fold(Repo::default(), |repo, name| {
        repo.with(name, name.as_bytes(), true)
    })
}

#[test]
fn quantisations_are_chosen_by_name() {
    let repo = quants();
    let split = [
        "big/m-Q8_0-00001-of-00002.gguf",
        "big/m-Q8_0-00002-of-00002.gguf",
    ];
    for (word, files) in [
        ("hf:org/repo", &["m-Q4_K_M.gguf"][..]),
        ("hf:org/repo:Q4_K_M", &["m-Q4_K_M.gguf"]),
        ("hf:org/repo:q4_k_s", &["m-Q4_K_S.gguf"]),
        ("hf:org/repo:iq4_xs", &["m-IQ4_XS.gguf"]),
        ("hf:org/repo:F16", &["m.f16.gguf"]),
        ("hf:org/repo:Q8_0", &split),
        ("hf:org/repo:big/m-Q8_0-00001-of-00002.gguf", &split),
        ("hf:org/repo:m-Q4_K_S.gguf", &["m-Q4_K_S.gguf"]),
        ("hf:org/repo:mmproj-m-Q8_0.gguf", &["mmproj-m-Q8_0.gguf"]),
    ] {
        assert_eq!(chosen(&repo, word).unwrap(), files, "{word}");
    }
    for word in [
        "hf:org/repo:Q4_K",
        "hf:org/repo:Q2_K",
        "hf:org/repo:4_XS",
        "hf:org/repo:Q6_K",
    ] {
        let error = chosen(&repo, word).unwrap_err();
        let Error::Choose { choices, .. } = &error else {
            panic!("{word}: {error}")
        };
        assert!(!choices.is_empty(), "{word}");
        assert!(error.hint().is_some());
    }
}

#[test]
fn without_a_preferred_one_the_choices_are_listed() {
    let repo = Repo::default()
        .with("a-Q8_0.gguf", b"1", true)
        .with("a-F16.gguf", b"2", true);
    let Err(Error::Choose { choices, .. }) = chosen(&repo, "hf:org/repo") else {
        panic!()
    };
    assert_eq!(choices, ["a-F16.gguf", "a-Q8_0.gguf"]);
    let single = Repo::default().with("a-Q8_0.gguf", b"1", true);
    assert_eq!(chosen(&single, "hf:org/repo").unwrap(), ["a-Q8_0.gguf"]);
    let two = quants().with("n-Q4_K_M.gguf", b"x", true);
    assert!(matches!(
        chosen(&two, "hf:org/repo:Q4_K_M"),
        Err(Error::Choose { .. })
    ));
}

fn transformers() -> Repo {
    Repo::default()
        .with("config.json", b"{}", false)
        .with("tokenizer.json", b"{}", false)
        .with("tokenizer_config.json", b"{}", false)
        .with("chat_template.jinja", b"x", false)
        .with("modeling_evil.py", b"import os", false)
        .with("README.md", b"", false)
        .with("model.safetensors.index.json", b"{}", false)
        .with("model-00001-of-00002.safetensors", &noise(500, 1), true)
        .with("model-00002-of-00002.safetensors", &noise(500, 2), true)
        .with("consolidated.safetensors", &noise(500, 3), true)
        .with("pytorch_model.bin", &noise(500, 4), true)
        .with("onnx/model.onnx", &noise(500, 5), true)
}

const TRANSFORMERS: [&str; 7] = [
    "chat_template.jinja",
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

#[test]
fn a_transformers_repository_is_pulled_as_a_directory() {
    let home = tempfile::tempdir().unwrap();
    let mut repo = transformers();
    repo.licence = Some("apache-2.0".into());
    let server = repo.serve();
    let hub = hub(home.path(), &server);
    let report = hub
        .pull("hf:org/repo", PullOptions::default(), &mut ())
        .unwrap();
    let names: Vec<_> = report.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, TRANSFORMERS);
    assert_eq!(report.licence.as_deref(), Some("apache-2.0"));
    assert_eq!(report.name, "org/repo:latest");
    let dir = report.path.unwrap();
    assert_eq!(tree(&dir), TRANSFORMERS);
    assert_eq!(
        std::fs::read(dir.join("model-00002-of-00002.safetensors")).unwrap(),
        noise(500, 2)
    );
    // Files came from the commit, not from the branch.
    assert!(
        server
            .downloads()
            .iter()
            .all(|request| request.target.contains(COMMIT))
    );
    let shown = hub.show("hf:org/repo").unwrap();
    assert_eq!(shown.revision.as_deref(), Some(COMMIT));
    assert_eq!(shown.sha256, None);
    assert_eq!(shown.files.len(), 7);
}

#[test]
fn code_is_never_fetched_and_pickles_only_as_a_last_resort() {
    let repo = transformers();
    assert!(matches!(
        chosen(&repo, "hf:org/repo:modeling_evil.py"),
        Err(Error::Choose { .. })
    ));
    let pickled =
        Repo::default()
            .with("config.json", b"{}", false)
            .with("pytorch_model.bin", b"x", true);
    assert_eq!(
        chosen(&pickled, "hf:org/repo").unwrap(),
        ["config.json", "pytorch_model.bin"]
    );
    let nothing = Repo::default().with("README.md", b"", false);
    assert!(matches!(
        chosen(&nothing, "hf:org/repo"),
        Err(Error::Choose { .. })
    ));
}

#[test]
fn a_listing_without_sizes_is_completed() {
    let mut repo = quants();
    repo.bare = true;
    let home = tempfile::tempdir().unwrap();
    let server = repo.serve();
    let report = hub(home.path(), &server)
        .pull("hf:org/repo:Q8_0", DRY, &mut ())
        .unwrap();
    assert_eq!(report.bytes, Some(60));
    assert!(report.files.iter().all(|file| file.sha256.is_some()));
}

#[test]
fn hostile_names_are_never_taken() {
    let hostile = [
        "../../evil-Q4_K_M.gguf",
        "/etc/evil-Q4_K_M.gguf",
        "a/../../evil-Q4_K_M.gguf",
        "C:\\evil-Q4_K_M.gguf",
        "C:evil-Q4_K_M.gguf",
        "a\\..\\evil-Q4_K_M.gguf",
        "evil\0-Q4_K_M.gguf",
        "./evil-Q4_K_M.gguf",
        "a//evil-Q4_K_M.gguf",
        "",
    ];
    for name in hostile {
        let repo = Repo::default().with(name, b"evil", true);
        let result = chosen(&repo, "hf:org/repo:Q4_K_M");
        assert!(
            matches!(result, Err(Error::Choose { .. })),
            "{name:?}: {result:?}"
        );
    }
    // Beside a good one they are passed over.
    let outside = tempfile::tempdir().unwrap();
    let home = outside.path().join("deep/home");
    let repo = hostile.into_iter().fold(Repo::gguf(b"good"), |repo, name| {
        repo.with(name, b"evil", true)
    });
    let server = repo.serve();
    let mut heard = Heard::default();
    let hub = hub(&home, &server);
    let report = hub
        .pull("hf:org/repo", PullOptions::default(), &mut heard)
        .unwrap();
    assert_eq!(std::fs::read(report.path.unwrap()).unwrap(), b"good");
    assert!(
        heard.notes.iter().any(|note| note.contains("unsafe names")),
        "{:?}",
        heard.notes
    );
    assert!(
        tree(outside.path())
            .iter()
            .all(|name| name.starts_with("deep/home/"))
    );
}

#[test]
fn the_token_goes_to_the_endpoint_and_nowhere_else() {
    let bytes = noise(1000, 1);
    let cdn_bytes = bytes.clone();
    let cdn = Server::start(move |request, _| Reply::file(request, &cdn_bytes, "\"cdn\""));
    let mut repo = Repo::gguf(&bytes);
    repo.token = Some("hf_secret".into());
    repo.cdn = Some(cdn.url(""));
    let server = repo.serve();
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(home.path(), &server.url(""));
    settings.hf_token = Some("hf_secret".into());
    let hub = Hub::new(settings).unwrap();
    let report = hub
        .pull("hf:org/repo", PullOptions::default(), &mut ())
        .unwrap();
    assert_eq!(std::fs::read(report.path.unwrap()).unwrap(), bytes);
    assert!(
        server
            .log()
            .iter()
            .all(|request| request.header("authorization").is_some())
    );
    assert_eq!(cdn.log().len(), 1);
    assert_eq!(cdn.log()[0].header("authorization"), None);
    assert_eq!(cdn.log()[0].header("referer"), None);
    // What is kept says nothing of tokens or signatures.
    for name in kept(home.path()) {
        let text = std::fs::read(home.path().join(&name)).unwrap();
        let text = String::from_utf8_lossy(&text);
        assert!(!text.contains("secret"), "{name}");
    }
}

#[test]
fn the_token_does_not_come_back_after_a_detour() {
    // endpoint -> elsewhere -> endpoint: whoever stands elsewhere must not aim the token.
    let target = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let back = target.clone();
    let cdn = Server::start(move |_, _| {
        Reply::status(302).header("Location", &format!("{}/private", back.get().unwrap()))
    });
    let mut repo = Repo::gguf(b"x");
    repo.cdn = Some(cdn.url(""));
    let server = Server::start(move |request, _| match request.path() {
        "/private" => Reply::status(403),
        _ => repo.answer("org/repo", request),
    });
    target.set(server.url("")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(home.path(), &server.url(""));
    settings.hf_token = Some("hf_secret".into());
    let error = Hub::new(settings)
        .unwrap()
        .pull("hf:org/repo", PullOptions::default(), &mut ())
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Denied {
                status: 403,
                with_token: false,
                ..
            }
        ),
        "{error}"
    );
    let log = server.log();
    let private: Vec<_> = log
        .iter()
        .filter(|request| request.target == "/private")
        .collect();
    assert!(!private.is_empty());
    assert!(
        private
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
}

#[test]
fn other_origins_on_the_same_machine_get_no_token() {
    let server = Server::start(|request, _| Reply::file(request, b"x", "\"a\""));
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(home.path(), &server.url(""));
    settings.hf_token = Some("hf_secret".into());
    let hub = Hub::new(settings).unwrap();
    hub.pull(
        &server.other_url("/m.gguf"),
        PullOptions::default(),
        &mut (),
    )
    .unwrap();
    assert_eq!(server.log()[0].header("authorization"), None);
    assert!(
        server.log()[0]
            .header("host")
            .unwrap()
            .starts_with("localhost:")
    );
}

#[test]
fn linked_headers_are_held_to_when_the_listing_says_nothing() {
    let bytes = noise(1000, 1);
    let wrong = noise(1000, 2);
    let cdn = Server::start(move |request, _| Reply::file(request, &wrong, "\"cdn\""));
    let mut repo = Repo::gguf(&bytes);
    repo.cdn = Some(cdn.url(""));
    let server = Server::start(move |request, _| {
        if request.path().starts_with("/api/") {
            let listing = serde_json::json!({
                "sha": COMMIT, "siblings": [{"rfilename": "m-Q4_K_M.gguf", "size": 1000}],
            });
            return Reply::json(&listing);
        }
        repo.answer("org/repo", request)
    });
    let home = tempfile::tempdir().unwrap();
    let error = hub(home.path(), &server)
        .pull("hf:org/repo", PullOptions::default(), &mut ())
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Mismatch {
                which: "SHA-256",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(kept(home.path()), Vec::<String>::new());
}

#[test]
fn refusals_say_what_to_do() {
    let mut repo = Repo::gguf(b"x");
    repo.token = Some("right".into());
    let server = repo.serve();
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(home.path(), &server.url(""));
    let pull = |settings: &hub::Settings| {
        Hub::new(settings.clone())
            .unwrap()
            .pull("hf:org/repo", DRY, &mut ())
            .unwrap_err()
    };
    let error = pull(&settings);
    assert!(
        matches!(
            error,
            Error::Gated {
                status: 401,
                with_token: false,
                ..
            }
        ),
        "{error}"
    );
    let hint = error.hint().unwrap();
    let page = server.url("/org/repo");
    assert!(
        hint.contains("HF_TOKEN") && hint.contains(&format!("{page},")),
        "{hint}"
    );
    settings.hf_token = Some("wrong".into());
    let error = pull(&settings);
    assert!(
        matches!(
            error,
            Error::Gated {
                with_token: true,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("licence"));
    settings.hf_token = Some("bad\ntoken".into());
    assert!(matches!(pull(&settings), Error::Remote { .. }));
    assert!(!pull(&settings).to_string().contains("bad"));
}

#[test]
fn absent_repositories_and_broken_descriptions() {
    let absent = Repo::default().serve();
    let home = tempfile::tempdir().unwrap();
    let error = hub(home.path(), &absent)
        .pull("hf:org/other", DRY, &mut ())
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
    // Hugging Face answers 401 for what does not exist.
    let hidden = Server::start(|_, _| Reply::status(401).header("X-Error-Code", "RepoNotFound"));
    let error = hub(home.path(), &hidden)
        .pull("hf:org/repo", DRY, &mut ())
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
    for body in [
        "",
        "[",
        "[]",
        "{}",
        "null",
        "{\"sha\":5}",
        "{\"sha\":\"../x\",\"siblings\":[]}",
        "{\"sha\":\"abc\",\"siblings\":{}}",
        "<html>",
    ] {
        let server = Server::start(move |_, _| Reply::status(200).body(Body::Bytes(body.into())));
        let error = hub(home.path(), &server)
            .pull("hf:org/repo", DRY, &mut ())
            .unwrap_err();
        assert!(matches!(error, Error::Remote { .. }), "{body}: {error}");
    }
    let endless = Server::start(|_, _| Reply::status(200).body(Body::Endless));
    let error = hub(home.path(), &endless)
        .pull("hf:org/repo", DRY, &mut ())
        .unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
}

/// Writes a cache as Hugging Face's own library does, without links.
fn cache(dir: &Path, files: &[(&str, &[u8])]) {
    let repo = dir.join("models--org--repo");
    let snapshot = repo.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for (name, bytes) in files {
        let path = snapshot.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn cached_hub(home: &Path, cache: &Path) -> Hub {
    let mut settings = settings(home, "http://127.0.0.1:1");
    settings.hf_cache = vec![cache.join("absent"), cache.to_owned()];
    settings.offline = true;
    Hub::new(settings).unwrap()
}

#[test]
fn the_cache_of_hugging_face_is_used_in_place() {
    let (home, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = cached_hub(home.path(), dir.path());
    assert!(matches!(
        hub.resolve("hf:org/repo", &mut ()),
        Err(Error::Offline { .. })
    ));
    cache(
        dir.path(),
        &[("m-Q4_K_M.gguf", b"12345"), ("m-Q8_0.gguf", b"123456")],
    );
    let snapshot = dir.path().join("models--org--repo/snapshots").join(COMMIT);
    for (word, file, bytes) in [
        ("hf:org/repo", "m-Q4_K_M.gguf", 5),
        ("hf:org/repo:q8_0", "m-Q8_0.gguf", 6),
        ("hf:org/repo@main:Q8_0", "m-Q8_0.gguf", 6),
        (&format!("hf:org/repo@{COMMIT}:Q8_0"), "m-Q8_0.gguf", 6),
    ] {
        let found = hub.resolve(word, &mut ()).unwrap();
        assert_eq!(
            (found.path, found.bytes),
            (snapshot.join(file), bytes),
            "{word}"
        );
    }
    assert_eq!(
        hub.resolve("hf:org/repo:q8_0", &mut ()).unwrap().name,
        "org/repo:q8_0"
    );
    assert!(
        hub.pull("hf:org/repo", PullOptions::default(), &mut ())
            .unwrap()
            .already
    );
    for word in ["hf:org/repo:Q2_K", "hf:org/repo@other", "hf:org/other"] {
        assert!(
            matches!(hub.resolve(word, &mut ()), Err(Error::Offline { .. })),
            "{word}"
        );
    }
    assert_eq!(tree(home.path()), Vec::<String>::new());
}

#[test]
fn a_partial_snapshot_does_not_count() {
    let index = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let whole: [(&str, &[u8]); 5] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-00001-of-00002.safetensors", b"x"),
        ("model-00002-of-00002.safetensors", b"x"),
    ];
    for missing in 0..=whole.len() {
        let (home, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut files = whole.to_vec();
        if missing < files.len() {
            files.remove(missing);
        }
        cache(dir.path(), &files);
        let found = cached_hub(home.path(), dir.path()).resolve("hf:org/repo", &mut ());
        assert_eq!(
            found.is_ok(),
            missing == whole.len(),
            "without {missing}: {found:?}"
        );
    }
}
