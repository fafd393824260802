//! The store's verbs, names and nearest names, and what damage does.

mod common;

use std::ffi::OsString;
use std::path::Path;

use common::*;
use hub::{Error, Hub, PullOptions, Settings};

/// A store with `m:latest` in it, pulled from a server that goes on serving.
fn stocked() -> (tempfile::TempDir, Server, Hub) {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|request, _| match request.path() {
        "/m.gguf" => Reply::file(request, &noise(1000, 1), "\"a\""),
        "/n.gguf" => Reply::file(request, &noise(2000, 2), "\"b\""),
        _ => Reply::status(404),
    });
    let hub = hub(home.path(), &server);
    hub.pull(&server.url("/m.gguf"), PullOptions::default(), &mut ())
        .unwrap();
    (home, server, hub)
}

fn blob(home: &Path, bytes: &[u8]) -> std::path::PathBuf {
    home.join("blobs").join(format!("sha256-{}", sha256(bytes)))
}

#[test]
fn list_show_and_resolve() {
    let (home, server, hub) = stocked();
    let entries = hub.list().unwrap();
    assert_eq!(entries.len(), 1);
    let entry = &entries[0];
    assert_eq!((entry.name.as_str(), entry.bytes), ("m:latest", 1000));
    assert_eq!(entry.sha256, Some(sha256(&noise(1000, 1))));
    assert_eq!(entry.source, server.url("/m.gguf"));
    assert_eq!(entry.damage, None);
    for word in ["m", "m:latest", "M:Latest", &server.url("/m.gguf")] {
        assert_eq!(&hub.show(word).unwrap(), entry, "{word}");
        let found = hub.resolve(word, &mut ()).unwrap();
        assert_eq!((&found.name, &found.path), (&entry.name, &entry.path));
    }
    // One file, two names for it: no second copy.
    use std::os::unix::fs::MetadataExt as _;
    let blob = std::fs::metadata(blob(home.path(), &noise(1000, 1))).unwrap();
    assert_eq!(blob.ino(), std::fs::metadata(&entry.path).unwrap().ino());
}

#[test]
fn unknown_names_come_with_near_ones() {
    let (_home, _server, hub) = stocked();
    hub.cp("m", "llama-3.2:1b").unwrap();
    let near = |word: &str| match hub.resolve(word, &mut ()) {
        Err(Error::NotFound { nearest, .. }) => nearest,
        other => panic!("{word}: {other:?}"),
    };
    assert_eq!(near("llama-3.1:1b"), ["llama-3.2:1b"]);
    assert_eq!(near("smolm2"), ["smollm2:135m"]);
    assert!(near("nothing-like-it:x").is_empty());
    let error = hub.show("llama-3.2:3b").unwrap_err();
    assert!(error.is_not_found());
    assert!(
        error.to_string().contains("did you mean llama-3.2:1b"),
        "{error}"
    );
    // In the catalogue, not here.
    let error = hub.show("smollm2:135m").unwrap_err();
    assert!(matches!(error, Error::NotPulled { .. }), "{error}");
    assert!(error.hint().unwrap().contains("puna pull smollm2:135m"));
}

#[test]
fn the_model_words_of_run() {
    let (home, _server, hub) = stocked();
    hub.cp("m", "alias").unwrap();
    let dir = home.path().join("some dir");
    std::fs::create_dir(&dir).unwrap();
    for word in [
        "m",
        "alias",
        "smollm2:135m",
        "no:such",
        "org/repo:tag",
        "hf:x",
        "hf:o/r",
        "pip:x==1",
        "https://x/y",
        "http://x",
        "ftp://x",
        dir.to_str().unwrap(),
        "/",
        ".",
    ] {
        assert!(hub.is_model_word(word), "{word}");
    }
    for word in [
        "",
        "hello",
        "What",
        "What is: this",
        "hf: is a site",
        "see https://x.org now",
        "smollm2",
        "no/such",
        "./missing.gguf",
        "a:b:c",
        "why:?",
        "\0",
    ] {
        assert!(!hub.is_model_word(word), "{word}");
    }
}

#[test]
fn paths_are_taken_as_they_are() {
    let (home, _server, hub) = stocked();
    let file = home.path().join("My Model.gguf");
    std::fs::write(&file, b"12345").unwrap();
    let found = hub.resolve(file.to_str().unwrap(), &mut ()).unwrap();
    assert_eq!((found.name.as_str(), found.bytes), ("My Model", 5));
    assert_eq!(found.path, file);
    let dir = home.path().join("model-dir.v1");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("config.json"), b"{}").unwrap();
    std::fs::write(dir.join("model.safetensors"), b"123").unwrap();
    let found = hub.resolve(dir.to_str().unwrap(), &mut ()).unwrap();
    assert_eq!((found.name.as_str(), found.bytes), ("model-dir.v1", 5));
    let missing = home.path().join("missing.gguf");
    let error = hub.resolve(missing.to_str().unwrap(), &mut ()).unwrap_err();
    assert!(matches!(error, Error::NoSuchPath { .. }), "{error}");
    assert!(error.is_not_found());
}

#[test]
fn cp_shares_and_rm_frees_what_nobody_uses() {
    let (home, server, hub) = stocked();
    let bytes = noise(1000, 1);
    let copy = hub.cp("m", "org/other:v1").unwrap();
    assert_eq!(copy.name, "org/other:v1");
    assert_eq!(hub.list().unwrap().len(), 2);
    // Again is no error; over another model is one.
    hub.cp("m", "org/other:v1").unwrap();
    hub.pull(&server.url("/n.gguf"), PullOptions::default(), &mut ())
        .unwrap();
    assert!(matches!(
        hub.cp("n", "org/other:v1"),
        Err(Error::Exists { .. })
    ));
    assert!(matches!(hub.cp("m", "../x"), Err(Error::Spec { .. })));
    assert!(matches!(hub.cp("absent", "x"), Err(Error::NotFound { .. })));
    assert_eq!(hub.rm("m").unwrap().freed, 0);
    assert!(blob(home.path(), &bytes).exists());
    assert!(hub.resolve("org/other:v1", &mut ()).unwrap().path.exists());
    let removed = hub.rm("org/other:v1").unwrap();
    assert_eq!(
        (removed.name.as_str(), removed.freed),
        ("org/other:v1", 1000)
    );
    assert!(!blob(home.path(), &bytes).exists());
    assert!(matches!(hub.rm("m"), Err(Error::NotFound { .. })));
    hub.rm("n").unwrap();
    assert_eq!(kept(home.path()), Vec::<String>::new());
    assert_eq!(
        std::fs::read_dir(home.path().join("names"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        std::fs::read_dir(home.path().join("views"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn foreign_files_in_the_store_are_left_alone() {
    let (home, _server, hub) = stocked();
    std::fs::write(home.path().join("blobs/mine.txt"), b"x").unwrap();
    std::fs::write(home.path().join("names/readme"), b"x").unwrap();
    std::fs::create_dir(home.path().join("names/UPPER")).unwrap();
    std::fs::write(home.path().join("names/UPPER/x.json"), b"x").unwrap();
    assert_eq!(hub.list().unwrap().len(), 1);
    hub.rm("m").unwrap();
    assert!(home.path().join("blobs/mine.txt").exists());
}

#[test]
fn verify_finds_damage_and_force_mends_it() {
    let (home, server, hub) = stocked();
    hub.cp("m", "alias").unwrap();
    hub.pull(&server.url("/n.gguf"), PullOptions::default(), &mut ())
        .unwrap();
    let all = hub.verify(None, &mut ()).unwrap();
    assert!(all.iter().all(|model| model.damage.is_empty()));
    // Shared files are read once.
    assert_eq!(all.iter().map(|model| model.bytes).sum::<u64>(), 3000);
    // One flipped bit, the length unchanged.
    let path = blob(home.path(), &noise(1000, 1));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[500] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let all = hub.verify(None, &mut ()).unwrap();
    let damaged: Vec<_> = all
        .iter()
        .filter(|m| !m.damage.is_empty())
        .map(|m| m.name.as_str())
        .collect();
    assert_eq!(damaged, ["alias:latest", "m:latest"]);
    assert!(all[0].damage[0].contains("SHA-256"), "{:?}", all[0].damage);
    assert!(hub.verify(Some("n"), &mut ()).unwrap()[0].damage.is_empty());
    // Fetched anew, it is mended under both names.
    let force = PullOptions {
        force: true,
        ..Default::default()
    };
    assert!(!hub.pull("m", force, &mut ()).unwrap().already);
    assert!(
        hub.verify(None, &mut ())
            .unwrap()
            .iter()
            .all(|model| model.damage.is_empty())
    );
    for name in ["m", "alias"] {
        let path = hub.resolve(name, &mut ()).unwrap().path;
        assert_eq!(std::fs::read(path).unwrap(), noise(1000, 1), "{name}");
    }
}

#[test]
fn a_missing_blob_is_fetched_again_by_its_source() {
    let (home, server, hub) = stocked();
    std::fs::remove_file(blob(home.path(), &noise(1000, 1))).unwrap();
    assert!(hub.list().unwrap()[0].damage.is_some());
    assert!(!hub.verify(None, &mut ()).unwrap()[0].damage.is_empty());
    let found = hub.resolve("m", &mut ()).unwrap();
    assert_eq!(std::fs::read(found.path).unwrap(), noise(1000, 1));
    assert_eq!(server.log().len(), 2);
    // Missing links are made again without a fetch.
    std::fs::remove_dir_all(home.path().join("views")).unwrap();
    assert!(hub.resolve("m", &mut ()).unwrap().path.exists());
    assert_eq!(server.log().len(), 2);
}

#[test]
fn hostile_manifests_lead_nowhere() {
    let (home, _server, hub) = stocked();
    let path = home.path().join("names/m/latest.json");
    let good = std::fs::read_to_string(&path).unwrap();
    let hash = sha256(&noise(1000, 1));
    for (from, to) in [
        ("\"m.gguf\"", "\"../../../m.gguf\""),
        ("\"m.gguf\"", "\"/tmp/m.gguf\""),
        ("\"m.gguf\"", "\"a\\u0000b\""),
        (hash.as_str(), "../../etc/passwd"),
        (hash.as_str(), "ABCDEF"),
        ("\"schema\": 1", "\"schema\": 99"),
        ("\"files\": [", "\"files\": [], \"x\": ["),
        ("{", ""),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(good, bad);
        std::fs::write(&path, bad).unwrap();
        assert!(
            matches!(hub.resolve("m", &mut ()), Err(Error::Damaged { .. })),
            "{to}"
        );
        assert!(hub.list().unwrap()[0].damage.is_some());
    }
    // What cannot be read can be removed, and frees nothing that others may need.
    assert_eq!(hub.rm("m").unwrap().freed, 1000);
    assert!(hub.list().unwrap().is_empty());
}

#[test]
fn offline_finds_what_is_here_and_fetches_nothing() {
    let (home, server, _hub) = stocked();
    let mut settings = settings(home.path(), &server.url(""));
    settings.offline = true;
    let hub = Hub::new(settings).unwrap();
    assert!(hub.resolve("m", &mut ()).is_ok());
    let before = server.log().len();
    for word in [
        "smollm2:135m",
        "hf:org/repo",
        "pip:x==1",
        &server.url("/n.gguf"),
    ] {
        let error = hub.resolve(word, &mut ()).unwrap_err();
        assert!(matches!(error, Error::Offline { .. }), "{word}: {error}");
        assert!(error.is_not_found());
    }
    assert_eq!(server.log().len(), before);
    assert!(hub.sources_reachable(&mut ()).iter().all(|reach| !reach.ok));
}

#[test]
fn sources_are_asked_for_doctor() {
    let (_home, server, hub) = stocked();
    let reach = hub.sources_reachable(&mut ());
    assert_eq!(reach[0].source, server.url(""));
    assert!(reach[0].ok, "{reach:?}");
    assert!(!reach[1].ok, "no pip is configured here");
    let silent = Hub::new(settings(Path::new("x"), "http://127.0.0.1:1")).unwrap();
    assert!(!silent.sources_reachable(&mut ())[0].ok);
}

#[test]
fn one_name_for_two_things_never_happens() {
    let home = tempfile::tempdir().unwrap();
    let server =
        Server::start(|request, _| Reply::file(request, request.path().as_bytes(), "\"a\""));
    let hub = hub(home.path(), &server);
    let (a, b) = (server.url("/a/m.gguf"), server.url("/b/m.gguf"));
    let first = hub.pull(&a, PullOptions::default(), &mut ()).unwrap();
    let second = hub.pull(&b, PullOptions::default(), &mut ()).unwrap();
    assert_eq!(first.name, "m:latest");
    assert!(second.name.starts_with("m:latest-"), "{}", second.name);
    for (word, content) in [
        (&a, "/a/m.gguf"),
        (&b, "/b/m.gguf"),
        (&second.name, "/b/m.gguf"),
    ] {
        let path = hub.resolve(word, &mut ()).unwrap().path;
        assert_eq!(std::fs::read_to_string(path).unwrap(), content);
    }
    assert_eq!(server.log().len(), 2);
}

fn vars<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
    |name| {
        pairs
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.into())
    }
}

#[test]
fn the_environment() {
    let read = |pairs: &[(&str, &str)]| Settings::from_vars(&vars(pairs), false);
    let home = |pairs: &[(&str, &str)]| read(pairs).unwrap().home;
    assert_eq!(home(&[("HOME", "/h")]), Path::new("/h/.local/share/puna"));
    assert_eq!(
        home(&[("HOME", "/h"), ("XDG_DATA_HOME", "/d")]),
        Path::new("/d/puna")
    );
    assert_eq!(
        home(&[("HOME", "/h"), ("XDG_DATA_HOME", "d")]),
        Path::new("/h/.local/share/puna")
    );
    assert_eq!(home(&[("PUNA_HOME", "/p"), ("HOME", "")]), Path::new("/p"));
    assert_eq!(
        home(&[("PUNA_HOME", ""), ("HOME", "/h")]),
        Path::new("/h/.local/share/puna")
    );
    for nowhere in [
        &[][..],
        &[("HOME", "")],
        &[("HOME", ""), ("XDG_DATA_HOME", "")],
    ] {
        let error = read(nowhere).unwrap_err();
        assert!(matches!(error, Error::NoHome), "{error}");
        assert!(error.hint().unwrap().contains("PUNA_HOME"));
    }
    let cache = |pairs: &[(&str, &str)]| read(pairs).unwrap().hf_cache;
    assert_eq!(
        cache(&[("HOME", "/h")]),
        [Path::new("/h/.cache/huggingface/hub")]
    );
    assert_eq!(
        cache(&[("HOME", "/h"), ("HF_HOME", "/f")]),
        [Path::new("/f/hub")]
    );
    assert_eq!(
        cache(&[("HOME", "/h"), ("HF_HUB_CACHE", "/c")]),
        [Path::new("/c")]
    );
    for (name, value, offline) in [
        ("HF_HUB_OFFLINE", "1", true),
        ("HF_HUB_OFFLINE", "0", false),
        ("HF_HUB_OFFLINE", "", false),
        ("PUNA_OFFLINE", "true", true),
        ("PUNA_OFFLINE", "no", false),
    ] {
        assert_eq!(
            read(&[("HOME", "/h"), (name, value)]).unwrap().offline,
            offline,
            "{name}={value}"
        );
    }
    let endpoint = |value: &str| read(&[("HOME", "/h"), ("HF_ENDPOINT", value)]);
    assert_eq!(
        endpoint("https://mirror/hf/").unwrap().hf_endpoint,
        "https://mirror/hf"
    );
    assert_eq!(
        endpoint("").unwrap().hf_endpoint,
        Settings::new("x").hf_endpoint
    );
    for bad in ["mirror", "ftp://mirror", "https://u:p@mirror"] {
        assert!(matches!(endpoint(bad), Err(Error::Spec { .. })), "{bad}");
    }
}

#[test]
fn the_token_comes_from_the_environment_or_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let read = |pairs: &[(&str, &str)]| {
        let token = Settings::from_vars(&vars(pairs), false).unwrap().hf_token;
        assert!(!format!("{token:?}").contains("from"));
        token.map(|token| token.reveal().to_owned())
    };
    let base = [("HOME", "/h"), ("HF_HOME", dir)];
    assert_eq!(read(&base), None);
    std::fs::write(format!("{dir}/token"), "  from_file\n").unwrap();
    assert_eq!(read(&base).as_deref(), Some("from_file"));
    let path = format!("{dir}/other");
    std::fs::write(&path, "from_path").unwrap();
    assert_eq!(
        read(&[base[0], base[1], ("HF_TOKEN_PATH", &path)]).as_deref(),
        Some("from_path")
    );
    assert_eq!(
        read(&[base[0], base[1], ("HF_TOKEN", "from_env")]).as_deref(),
        Some("from_env")
    );
}

#[test]
fn the_licence_comes_from_the_file() {
    use files::gguf::{Metadata, Writer};
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("general.license", "other");
    metadata.set("general.license.name", "my\nlicence");
    let gguf = Writer::new(Vec::new(), &metadata, Vec::new())
        .unwrap()
        .finish()
        .unwrap();
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(move |request, _| Reply::file(request, &gguf, "\"a\""));
    let hub = hub(home.path(), &server);
    let report = hub
        .pull(&server.url("/m.gguf"), PullOptions::default(), &mut ())
        .unwrap();
    assert_eq!(report.licence.as_deref(), Some("mylicence"));
    assert_eq!(hub.show("m").unwrap().licence.as_deref(), Some("mylicence"));
}
