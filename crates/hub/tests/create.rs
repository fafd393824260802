//! Made models: records that share their base's files, and go without harm.

mod common;

use std::path::Path;

use common::*;
use hub::{Error, Hub, PullOptions, Recipe, parse_modelfile};

/// A store with `m:latest` in it.
fn stocked() -> (tempfile::TempDir, Server, Hub) {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|request, _| match request.path() {
        "/m.gguf" => Reply::file(request, &noise(1000, 1), "\"a\""),
        _ => Reply::status(404),
    });
    let hub = hub(home.path(), &server);
    hub.pull(&server.url("/m.gguf"), PullOptions::default(), &mut ())
        .unwrap();
    (home, server, hub)
}

fn recipe(text: &str) -> Recipe {
    parse_modelfile(text).unwrap()
}

fn blobs(home: &Path) -> usize {
    let all = kept(home);
    all.iter().filter(|name| name.starts_with("blobs/")).count()
}

#[test]
fn a_record_shares_its_bases_file() {
    let (home, _server, hub) = stocked();
    let folder = home.path();
    let text = "FROM m\nPARAMETER temperature 0.5\nSYSTEM one\nMESSAGE user hi";
    let made = hub.create("mine", recipe(text), folder, &mut ()).unwrap();
    assert_eq!((made.name.as_str(), made.bytes), ("mine:latest", 1000));
    assert_eq!(made.sha256, Some(sha256(&noise(1000, 1))));
    assert_eq!(blobs(folder), 1);
    let found = hub.resolve("mine", &mut ()).unwrap();
    assert_eq!(found.path, hub.show("m").unwrap().path);
    assert_eq!(found.recipe.as_ref(), Some(&recipe(text)));
    // A model made of a made one has what both say; its own words count.
    let text = "FROM mine\nPARAMETER top_k 3\nPARAMETER temperature 0.1\nSYSTEM two";
    hub.create("yours:v2", recipe(text), folder, &mut ())
        .unwrap();
    let found = hub.resolve("yours:v2", &mut ()).unwrap().recipe.unwrap();
    assert_eq!(found.system.as_deref(), Some("two"));
    assert_eq!(found.messages.len(), 1);
    let of = |name: &str| {
        let hits = found.parameters.iter().filter(|(n, _)| n == name);
        hits.map(|(_, v)| v.as_str()).collect::<Vec<_>>()
    };
    assert_eq!((of("temperature"), of("top-k")), (vec!["0.1"], vec!["3"]));
    assert_eq!(hub.list().unwrap().len(), 3);
    // The file goes with the last name that needs it.
    assert_eq!(hub.rm("m").unwrap().freed, 0);
    assert_eq!(hub.rm("mine").unwrap().freed, 0);
    assert!(hub.resolve("yours:v2", &mut ()).is_ok());
    assert_eq!(hub.rm("yours:v2").unwrap().freed, 1000);
    assert_eq!(blobs(folder), 0);
}

#[test]
fn made_models_are_copied_replaced_and_not_pulled() {
    let (home, server, hub) = stocked();
    let folder = home.path();
    hub.create("mine", recipe("FROM m\nSYSTEM one"), folder, &mut ())
        .unwrap();
    hub.cp("mine", "copy").unwrap();
    let of = |word: &str| hub.resolve(word, &mut ()).unwrap().recipe.unwrap().system;
    assert_eq!(of("copy").as_deref(), Some("one"));
    hub.create("mine", recipe("FROM m\nSYSTEM two"), folder, &mut ())
        .unwrap();
    assert_eq!(of("mine").as_deref(), Some("two"));
    assert_eq!(of("copy").as_deref(), Some("one"));
    // Same files, other words: another model.
    let error = hub.cp("mine", "copy").unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    let error = hub.cp("mine", "m").unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    let error = hub.create("m", recipe("FROM mine"), folder, &mut ());
    assert!(matches!(error, Err(Error::Exists { .. })), "{error:?}");
    let force = PullOptions {
        force: true,
        ..PullOptions::default()
    };
    let error = hub.pull("mine", force, &mut ()).unwrap_err();
    assert!(matches!(error, Error::Made { .. }), "{error}");
    let asked = server.log().len();
    let error = hub.create("../x", recipe("FROM m"), folder, &mut ());
    assert!(matches!(error, Err(Error::Spec { .. })), "{error:?}");
    let error = hub.create("x", recipe("FROM nothing:here"), folder, &mut ());
    assert!(matches!(error, Err(Error::NotFound { .. })), "{error:?}");
    assert_eq!(server.log().len(), asked);
    // A file that is lost is said to be lost, and is not looked for elsewhere.
    let blob = home
        .path()
        .join("blobs")
        .join(format!("sha256-{}", sha256(&noise(1000, 1))));
    std::fs::remove_file(blob).unwrap();
    let error = hub.resolve("mine", &mut ()).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

#[test]
fn files_are_copied_into_the_store() {
    let (home, _server, hub) = stocked();
    let folder = home.path().join("files");
    std::fs::create_dir(&folder).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
    write("a-00001-of-00002.gguf", b"one");
    write("a-00002-of-00002.gguf", b"two!");
    write("b-00001-of-00002.gguf", b"one");
    write("story.bin", b"story");
    write("tokenizer.bin", b"words");
    write("lora.gguf", b"adapter");
    let from = |name: &str, text: &str| {
        let made = hub.create(name, recipe(text), &folder, &mut ());
        made.map(|made| {
            made.files
                .iter()
                .map(|f| f.path.clone())
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(
        from(
            "split",
            "FROM ./a-00001-of-00002.gguf\nADAPTER lora.gguf:0.5"
        )
        .unwrap(),
        [
            "a-00001-of-00002.gguf",
            "a-00002-of-00002.gguf",
            "adapters/0/lora.gguf"
        ]
    );
    assert_eq!(
        from("story", "FROM story.bin").unwrap(),
        ["story.bin", "tokenizer.bin"]
    );
    let error = from("b", "FROM b-00001-of-00002.gguf").unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    let error = from("c", "FROM ./none.gguf").unwrap_err();
    assert!(matches!(error, Error::NoSuchPath { .. }), "{error}");
    let error = from("d", "FROM m\nADAPTER none.gguf").unwrap_err();
    assert!(matches!(error, Error::NoSuchPath { .. }), "{error}");
    // The originals are not needed any more.
    std::fs::remove_dir_all(&folder).unwrap();
    let found = hub.resolve("split", &mut ()).unwrap();
    assert_eq!(std::fs::read(&found.path).unwrap(), b"one");
    assert_eq!(
        std::fs::read(found.path.with_file_name("a-00002-of-00002.gguf")).unwrap(),
        b"two!"
    );
    let adapter = &found.recipe.unwrap().adapters[0];
    assert_eq!(std::fs::read(&adapter.path).unwrap(), b"adapter");
    assert_eq!(adapter.scale.as_deref(), Some("0.5"));
    // Adapters stay with models that are made of this one, in front of their own.
    let other = home.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("lora.gguf"), b"second").unwrap();
    hub.create(
        "two",
        recipe("FROM split\nADAPTER lora.gguf"),
        &other,
        &mut (),
    )
    .unwrap();
    hub.rm("split").unwrap();
    let adapters = hub
        .resolve("two", &mut ())
        .unwrap()
        .recipe
        .unwrap()
        .adapters;
    let contents: Vec<Vec<u8>> = adapters
        .iter()
        .map(|a| std::fs::read(&a.path).unwrap())
        .collect();
    assert_eq!(contents, [b"adapter".to_vec(), b"second".to_vec()]);
    let verified = hub.verify(None, &mut ()).unwrap();
    assert!(verified.iter().all(|v| v.damage.is_empty()), "{verified:?}");
    assert!(
        tree(home.path())
            .iter()
            .all(|name| !name.starts_with("tmp/"))
    );
}

/// Whoever is killed at any step of a removal or a creation leaves a store in which every name
/// has its files, and that the next removal tidies up.
#[test]
fn whatever_is_cut_short_leaves_no_name_without_files() {
    let (home, _server, hub) = stocked();
    let folder = home.path();
    hub.create("mine", recipe("FROM m\nSYSTEM one"), folder, &mut ())
        .unwrap();
    // Cut after the name went, before its files: what a removal does first.
    std::fs::remove_file(folder.join("names/mine/latest.json")).unwrap();
    std::fs::remove_file(folder.join("names/m/latest.json")).unwrap();
    assert_eq!(hub.list().unwrap().len(), 0);
    assert_eq!(blobs(folder), 1);
    // Cut after the files came, before the name: what a creation does first.
    let orphan = noise(50, 9);
    std::fs::write(
        folder.join(format!("blobs/sha256-{}", sha256(&orphan))),
        &orphan,
    )
    .unwrap();
    std::fs::write(folder.join("new.gguf"), noise(70, 4)).unwrap();
    hub.create("new", recipe("FROM new.gguf"), folder, &mut ())
        .unwrap();
    // The next one tidies up what both left.
    assert_eq!(blobs(folder), 1);
    assert_eq!(hub.list().unwrap().len(), 1);
    assert!(hub.list().unwrap()[0].damage.is_none());
    // A record that cannot be read keeps all files where they are.
    std::fs::create_dir_all(folder.join("names/odd")).unwrap();
    std::fs::write(folder.join("names/odd/latest.json"), b"{").unwrap();
    assert_eq!(hub.rm("new").unwrap().freed, 0);
    assert_eq!(blobs(folder), 1);
    hub.rm("odd").unwrap();
    assert_eq!(blobs(folder), 0);
}

proptest::proptest! {
    /// As the fuzz target: any text is an error, or a recipe that prints as itself.
    #[test]
    fn any_text_is_an_error_or_prints_as_itself(
        text in "((FROM a|PARAMETER stop|parameter top_k 1|SYSTEM|MESSAGE user|ADAPTER|LICENSE|#)? ?(\"\"\"|\"|[a-z:.{}]|\r|\u{0}|\u{fe}){0,6} ?\n){0,8}"
    ) {
        if let Ok(recipe) = parse_modelfile(&format!("FROM b\n{text}")).or(parse_modelfile(&text)) {
            let printed = hub::print_modelfile(&recipe);
            let again = parse_modelfile(&printed).expect("what is printed can be read");
            if !printed.contains("no quotation can hold") {
                assert_eq!(again, recipe, "{printed:?}");
            }
        }
    }
}

#[test]
fn a_record_from_outside_is_checked() {
    let (home, _server, hub) = stocked();
    let folder = home.path();
    hub.create(
        "mine",
        recipe("FROM m\nPARAMETER top_k 1\nMESSAGE user x"),
        folder,
        &mut (),
    )
    .unwrap();
    let path = folder.join("names/mine/latest.json");
    let good = std::fs::read_to_string(&path).unwrap();
    for (from, to) in [
        ("\"top-k\"", "\"heat\""),
        ("\"1\"", "\"hot\""),
        ("\"user\"", "\"nobody\""),
        ("\"schema\": 2", "\"schema\": 3"),
        ("\"m.gguf\"", "\"../m.gguf\""),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from}");
        std::fs::write(&path, bad).unwrap();
        let error = hub.resolve("mine", &mut ()).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{from}: {error}");
    }
}
