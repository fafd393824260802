//! Ollama's store, used in place: sound ones, and ones that lie.

mod common;

use std::path::{Path, PathBuf};

use common::*;
use hub::{Error, Hub, parse_modelfile};
use serde_json::{Value, json};

/// A store of ollama's, and a hub that looks into it.
struct Place {
    dir: tempfile::TempDir,
    hub: Hub,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(&dir.path().join("puna"), "http://127.0.0.1:1");
        settings.offline = true;
        settings.ollama = vec![dir.path().join("none"), dir.path().join("ollama")];
        let hub = Hub::new(settings).unwrap();
        std::fs::create_dir_all(dir.path().join("ollama/blobs")).unwrap();
        Place { dir, hub }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("ollama")
    }

    fn blob(&self, bytes: &[u8]) -> PathBuf {
        self.root()
            .join("blobs")
            .join(format!("sha256-{}", sha256(bytes)))
    }

    /// A layer, with its blob.
    fn layer(&self, kind: &str, bytes: &[u8]) -> Value {
        std::fs::write(self.blob(bytes), bytes).unwrap();
        json!({
            "mediaType": format!("application/vnd.ollama.image.{kind}"),
            "digest": format!("sha256:{}", sha256(bytes)),
            "size": bytes.len(),
        })
    }

    fn manifest(&self, name: &str, layers: &[Value]) {
        let text = json!({"schemaVersion": 2, "config": {}, "layers": layers}).to_string();
        self.write(name, text.as_bytes());
    }

    fn write(&self, name: &str, text: &[u8]) {
        let path = self.root().join("manifests").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// What is said of a model with these layers.
    fn refused(&self, layers: &[Value]) -> String {
        self.manifest("host.example/library/bad/latest", layers);
        match self.hub.resolve("ollama:bad", &mut ()) {
            Err(error @ Error::Ollama { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_model_is_found_and_its_layers_obeyed() {
    let place = Place::new();
    let weights = noise(500, 3);
    let layers = [
        place.layer("model", &weights),
        place.layer("template", b"{{ .Prompt }}"),
        place.layer("system", b"Be brief."),
        place.layer(
            "params",
            br#"{"stop": ["<a>", "<b>"], "temperature": 0.6, "num_ctx": 2048, "num_keep": 24}"#,
        ),
        place.layer("license", b"LLAMA"),
        place.layer("messages", br#"[{"role": "user", "content": "hi"}]"#),
    ];
    place.manifest("host.example/library/llama3/8B", &layers);
    place.manifest(
        "other.example/Org/tiny/latest",
        &[place.layer("model", &noise(40, 2))],
    );
    for word in [
        "ollama:llama3:8b",
        "ollama:library/llama3:8B",
        "ollama:host.example/library/llama3:8b",
        "llama3:8b",
        "library/llama3:8b",
    ] {
        let found = place.hub.resolve(word, &mut ()).unwrap();
        assert_eq!(found.path, place.blob(&weights).canonicalize().unwrap());
        assert_eq!(
            (found.name.as_str(), found.bytes),
            ("ollama:llama3:8B", 500)
        );
        assert_eq!(found.sha256, Some(sha256(&weights)));
        assert!(place.hub.is_model_word(word), "{word}");
        let recipe = found.recipe.unwrap();
        let text = "FROM ollama:llama3:8B\nPARAMETER num_ctx 2048\nPARAMETER stop <a>\n\
                    PARAMETER stop <b>\nPARAMETER temperature 0.6\nTEMPLATE {{ .Prompt }}\n\
                    SYSTEM Be brief.\nLICENSE LLAMA\nMESSAGE user hi";
        assert_eq!(recipe, parse_modelfile(text).unwrap(), "{word}");
    }
    for word in ["ollama:org/tiny", "org/tiny"] {
        assert_eq!(
            place.hub.resolve(word, &mut ()).unwrap().bytes,
            40,
            "{word}"
        );
    }
    for word in [
        "ollama:llama3",
        "ollama:no.example/library/llama3:8b",
        "llama3:7b",
    ] {
        let error = place.hub.resolve(word, &mut ()).unwrap_err();
        assert!(error.is_not_found(), "{word}: {error}");
    }
    let listed = place.hub.list().unwrap();
    let told: Vec<(&str, &str, u64)> = listed
        .iter()
        .map(|entry| (entry.name.as_str(), entry.place, entry.bytes))
        .collect();
    assert_eq!(
        told,
        [
            ("ollama:Org/tiny:latest", "ollama", 40),
            ("ollama:llama3:8B", "ollama", 500)
        ]
    );
    // Nothing was written there.
    assert!(!place.dir.path().join("puna").exists());
}

#[test]
fn a_model_made_of_one_uses_it_in_place() {
    let place = Place::new();
    let weights = noise(500, 3);
    let layers = [
        place.layer("model", &weights),
        place.layer("params", br#"{"temperature": 0.6, "top_k": 5}"#),
        place.layer("adapter", b"lora"),
    ];
    place.manifest("host.example/library/base/latest", &layers);
    let recipe = parse_modelfile("FROM base\nPARAMETER top_k 1").unwrap();
    let made = place
        .hub
        .create("mine", recipe, Path::new("/"), &mut ())
        .unwrap();
    assert_eq!((made.files.len(), made.bytes, made.damage), (0, 500, None));
    let found = place.hub.resolve("mine", &mut ()).unwrap();
    assert_eq!(found.path, place.blob(&weights).canonicalize().unwrap());
    let recipe = found.recipe.unwrap();
    let pairs = [("temperature", "0.6"), ("top-k", "1")].map(|(n, v)| (n.into(), v.into()));
    assert_eq!(recipe.parameters, pairs);
    assert_eq!(std::fs::read(&recipe.adapters[0].path).unwrap(), b"lora");
    let copy = place.hub.cp("mine", "copy").unwrap();
    assert_eq!(copy.bytes, 500);
    // Ollama takes it away: the record says so, and can still be removed.
    std::fs::remove_dir_all(place.root()).unwrap();
    let error = place.hub.resolve("mine", &mut ()).unwrap_err();
    assert!(error.to_string().contains("ollama:base:latest"), "{error}");
    assert!(place.hub.list().unwrap()[0].damage.is_some());
    assert!(
        !place.hub.verify(Some("mine"), &mut ()).unwrap()[0]
            .damage
            .is_empty()
    );
    assert_eq!(place.hub.rm("mine").unwrap().freed, 0);
}

#[test]
fn hostile_manifests_are_refused() {
    let place = Place::new();
    let model = place.layer("model", b"weights");
    let with = |field: &str, value: Value| {
        let mut layer = model.clone();
        layer[field] = value;
        layer
    };
    let hash = sha256(b"weights");
    for digest in [
        "",
        "sha256:",
        "sha256:../../../../etc/passwd",
        &format!("sha256:{}", hash.to_uppercase()),
        &format!("sha256:{}", &hash[1..]),
        &format!("sha256-{hash}"),
        &format!("md5:{hash}"),
        &format!("sha256:{hash}/.."),
    ] {
        let said = place.refused(&[with("digest", json!(digest))]);
        assert!(said.contains("is no SHA-256"), "{digest}: {said}");
    }
    let absent = place.refused(&[with("digest", json!(format!("sha256:{}", "0".repeat(64))))]);
    assert!(absent.contains("the layer sha256:000"), "{absent}");
    for size in [json!(6), json!(8), json!(u64::MAX)] {
        assert!(place.refused(&[with("size", size)]).contains("bytes"));
    }
    for size in [json!(-1), json!("7"), json!(1e30)] {
        assert!(
            place
                .refused(&[with("size", size)])
                .contains("its manifest")
        );
    }
    assert!(place.refused(&[]).contains("no layer of weights"));
    assert!(
        place
            .refused(&[model.clone(), model.clone()])
            .contains("several")
    );
    assert!(
        place
            .refused(&vec![model.clone(); 65])
            .contains("more than 64")
    );
    let odd = json!("application/vnd.ollama.image.tensor");
    assert!(
        place
            .refused(&[model.clone(), with("mediaType", odd)])
            .contains("unknown kind")
    );
    for (kind, text, why) in [
        ("params", "[]", "its layer params"),
        ("params", r#"{"heat": 1}"#, "no parameter \"heat\""),
        ("params", r#"{"temperature": "hot"}"#, "takes a number"),
        ("params", r#"{"temperature": [1, 2]}"#, "set twice"),
        ("params", r#"{"stop": {"a": 1}}"#, "a value of no kind"),
        (
            "messages",
            r#"[{"role": "root", "content": "x"}]"#,
            "no role",
        ),
        ("messages", &"[".repeat(100_000), "its layer messages"),
    ] {
        let said = place.refused(&[model.clone(), place.layer(kind, text.as_bytes())]);
        assert!(said.contains(why), "{text:.40}: {said}");
    }
    // A small layer that is not what its digest says.
    let system = place.layer("system", b"as it was");
    std::fs::write(place.blob(b"as it was"), b"as it is!").unwrap();
    assert!(
        place
            .refused(&[model.clone(), system])
            .contains("another content")
    );
    let text = place.layer("system", b"\xff\xfe");
    assert!(place.refused(&[model, text]).contains("no text"));
    for text in [&b""[..], b"{", b"[]", b"\xff", br#"{"layers": 3}"#] {
        place.write("host.example/library/bad/latest", text);
        let error = place.hub.resolve("ollama:bad", &mut ()).unwrap_err();
        assert!(matches!(error, Error::Ollama { .. }), "{error}");
        assert!(place.hub.list().unwrap()[0].damage.is_some());
    }
}

#[cfg(unix)]
#[test]
fn links_do_not_lead_out() {
    let place = Place::new();
    let secret = place.dir.path().join("secret");
    std::fs::write(&secret, b"weights").unwrap();
    let layer = place.layer("model", b"weights");
    let blob = place.blob(b"weights");
    std::fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink(&secret, &blob).unwrap();
    assert!(place.refused(&[layer]).contains("outside"));
    // A link among the manifests is passed over, and so is a name that is none.
    let manifests = place.root().join("manifests");
    std::fs::remove_dir_all(&manifests).unwrap();
    std::fs::create_dir_all(manifests.join("h/library/linked")).unwrap();
    std::os::unix::fs::symlink(&secret, manifests.join("h/library/linked/latest")).unwrap();
    std::os::unix::fs::symlink(place.dir.path(), manifests.join("round")).unwrap();
    place.write("h/library/.hidden/latest", b"{}");
    place.write("h/library/too/deep/latest", b"{}");
    assert!(place.hub.list().unwrap().is_empty());
}
