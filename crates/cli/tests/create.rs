//! `puna create` and what lies under the options, end to end.

mod common;

use std::path::Path;

use common::{Home, Ran, fixture};
use serde_json::{Value, json};

/// A home with a model in the store, made from a file.
fn home() -> Home {
    let home = Home::new();
    std::fs::copy(
        fixture("gguf/llama3_1.f32.gguf"),
        home.dir.path().join("tiny.gguf"),
    )
    .expect("copied");
    create(&home, "base", "FROM ./tiny.gguf").succeeded();
    home
}

fn create(home: &Home, name: &str, text: &str) -> Ran {
    home.run_with(
        &["create", name, "-f", "-", "--format", "json"],
        text.as_bytes(),
    )
}

fn answer(home: &Home, args: &[&str]) -> Value {
    home.run(&[&["run", "--format", "json"], args].concat())
        .json()
}

#[test]
fn a_made_models_settings_lie_under_the_options() {
    let home = home();
    let text = "FROM base\nPARAMETER temperature 0\nPARAMETER num_predict 3\nPARAMETER num_ctx 96\n\
                PARAMETER seed 7\nSYSTEM Be kind.\nMESSAGE user one\nMESSAGE assistant two";
    create(&home, "mine", text).succeeded();
    let plain = answer(
        &home,
        &["-m", "base", "-n", "3", "--temperature", "0", "hi"],
    );
    let own = answer(&home, &["-m", "mine", "hi"]);
    assert_eq!(own["usage"]["completion_tokens"], 3);
    assert_eq!((&own["context"], &own["seed"]), (&json!(96), &json!(7)));
    assert_ne!(own["prompt_ids"], plain["prompt_ids"]);
    // What is typed counts.
    let typed = answer(
        &home,
        &[
            "-m", "mine", "-n", "2", "--ctx", "128", "--seed", "1", "--system", "x", "hi",
        ],
    );
    assert_eq!(typed["usage"]["completion_tokens"], 2);
    assert_eq!(
        (&typed["context"], &typed["seed"]),
        (&json!(128), &json!(1))
    );
    // The prompt is what the base makes of the same turns.
    let turns = json!([
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "hi"},
    ]);
    let messages = turns.to_string();
    let args = [
        "template",
        "base",
        "--messages",
        "-",
        "--ids",
        "--format",
        "json",
    ];
    let rendered = home.run_with(&args, messages.as_bytes()).json();
    assert_eq!(rendered["ids"], own["prompt_ids"]);
}

#[test]
fn templates_by_name_and_as_ollama_writes_them() {
    let home = home();
    let go = "FROM base\nTEMPLATE \"\"\"{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n\"\"\"";
    for (name, text) in [("named", "FROM base\nTEMPLATE chatml"), ("go", go)] {
        create(&home, name, text).succeeded();
        let own = answer(&home, &["-m", name, "-n", "1", "hi"]);
        let by_option = answer(
            &home,
            &["-m", "base", "--template", "chatml", "-n", "1", "hi"],
        );
        assert_eq!(own["prompt_ids"], by_option["prompt_ids"], "{name}");
    }
    create(
        &home,
        "jinja",
        "FROM base\nTEMPLATE {{ messages[0].content }}!",
    )
    .succeeded();
    let args = ["template", "jinja", "--messages", "-"];
    let messages = br#"[{"role": "user", "content": "hello"}]"#;
    assert_eq!(home.run_with(&args, messages).succeeded().text(), "hello!");
    let shown = home.run(&["show", "jinja", "--format", "json"]).json();
    assert_eq!(shown["template"], "{{ messages[0].content }}!");
    assert_eq!(shown["recipe"]["from"], "base");
}

#[test]
fn it_is_printed_as_it_was_made() {
    let home = home();
    let text = "FROM base\nPARAMETER top_k 3\nPARAMETER stop <|x|>\nSYSTEM \"\"\"two\nlines\"\"\"\n\
                MESSAGE user hi\nLICENSE MIT\n";
    std::fs::write(home.dir.path().join("Modelfile"), text).expect("written");
    home.run(&["create", "mine"]).succeeded();
    let printed = home
        .run(&["show", "mine", "--modelfile"])
        .succeeded()
        .text();
    assert_eq!(printed, text);
    let again = create(&home, "again", &printed).json();
    let first = home.run(&["show", "mine", "--format", "json"]).json();
    assert_eq!(again["recipe"], first["recipe"]);
    assert_eq!(
        first["recipe"]["parameters"],
        json!([["top-k", "3"], ["stop", "<|x|>"]])
    );
    let listed = home.run(&["list"]).succeeded().text();
    assert!(
        listed.contains("again:latest") && listed.contains("made from base"),
        "{listed}"
    );
    // No second copy of the file.
    let blobs = std::fs::read_dir(home.dir.path().join(".local/share/puna/blobs"));
    assert_eq!(blobs.expect("there").count(), 1);
    let plain = home.run(&[
        "show",
        fixture("gguf/llama3.f32.gguf").as_str(),
        "--modelfile",
    ]);
    assert_eq!(plain.succeeded().text(), "FROM llama3.f32\n");
}

#[test]
fn what_cannot_be_obeyed_is_refused_before_anything_is_made() {
    let home = home();
    for (text, code, why) in [
        (
            "FROM base\nPARAMETER heat 1",
            1,
            "line 2: there is no parameter \"heat\"",
        ),
        ("FROM base\nPARAMETER num_gpu 1", 1, "num_gpu"),
        ("FROM base\nPARAMETER top_p 7", 1, "top_p"),
        ("FROM base\nPARAMETER num_ctx 0", 1, "--ctx"),
        ("FROM base\nPARAMETER cache_type q9", 1, "q9"),
        ("FROM base\nTEMPLATE Arr! {{ .Prompt }}", 1, "Go template"),
        ("FROM base\nTEMPLATE {{ messages", 1, "template"),
        ("SYSTEM x", 1, "FROM"),
        ("FROM nothing:here", 3, "nothing:here"),
        ("FROM base\nADAPTER ./none.gguf", 3, "none.gguf"),
    ] {
        create(&home, "bad", text).failed(code, why);
    }
    create(&home, "no good name", "FROM base").failed(2, "no good name");
    home.run(&["create", "bad", "-f", "missing"])
        .failed(1, "missing");
    home.run(&["show", "bad"]).failed(3, "bad");
    // What is no adapter is refused when the model is opened, not left out.
    let adapter = home.dir.path().join("lora.gguf");
    std::fs::write(&adapter, b"GGUF").expect("written");
    create(&home, "adapted", "FROM base\nADAPTER lora.gguf:0.5").succeeded();
    home.run(&["run", "-m", "adapted", "hi"])
        .failed(4, "lora.gguf");
    let shown = home.run(&["show", "adapted", "--format", "json"]).json();
    let kept = shown["recipe"]["adapters"][0].clone();
    assert_eq!(kept["scale"], "0.5");
    assert!(Path::new(kept["path"].as_str().expect("a path")).is_file());
}

/// Adapters of a made model, here PEFT's directories, are those beside its base.
#[test]
fn adapters_come_along() {
    let home = Home::new();
    home.run(&["convert", &fixture("training/model"), "base.gguf"])
        .succeeded();
    let logits = |args: &[&str]| {
        let args = [&["logits"], args, &["--ids", "5,9,20", "--format", "json"]].concat();
        home.run(&args).json()["top"].clone()
    };
    let bare = logits(&["./base.gguf"]);
    let lora = fixture("training/lora/final");
    let dora = fixture("training/dora/final");
    for (name, adapters) in [
        ("one", vec![format!("{lora}:0.5")]),
        ("two", vec![dora, format!("{lora}:2")]),
    ] {
        let lines = adapters.iter().map(|a| format!("ADAPTER {a}\n"));
        let text = format!("FROM ./base.gguf\n{}", lines.collect::<String>());
        create(&home, name, &text).succeeded();
        let flags = adapters.iter().flat_map(|a| ["--adapter", a]);
        let beside = logits(&[&["./base.gguf"], &flags.collect::<Vec<_>>()[..]].concat());
        assert_eq!(logits(&[name]), beside, "{name}");
        assert_ne!(beside, bare, "{name}");
    }
    // In shards, as PEFT writes large ones.
    let sharded = home.dir.path().join("sharded");
    std::fs::create_dir(&sharded).expect("made");
    let tensors = "adapter_model-00001-of-00001.safetensors";
    for (from, to) in [
        ("adapter_config.json", "adapter_config.json"),
        ("adapter_model.safetensors", tensors),
    ] {
        std::fs::copy(Path::new(&lora).join(from), sharded.join(to)).expect("copied");
    }
    let file = files::safetensors::open(sharded.join(tensors)).expect("tensors");
    let names = file.iter().map(|t| (t.name.clone(), json!(tensors)));
    let index = json!({ "weight_map": names.collect::<serde_json::Map<_, _>>() });
    let index_file = sharded.join("adapter_model.safetensors.index.json");
    std::fs::write(index_file, index.to_string()).expect("written");
    create(&home, "shards", "FROM ./base.gguf\nADAPTER ./sharded:0.5").succeeded();
    assert_eq!(logits(&["shards"]), logits(&["one"]));
    std::fs::remove_file(sharded.join("adapter_config.json")).expect("removed");
    create(&home, "none", "FROM ./base.gguf\nADAPTER ./sharded").failed(2, "adapter_config.json");
    // Made again from its own print, and of a made model: each adapter acts once.
    create(&home, "over", "FROM one\nSYSTEM x").succeeded();
    let printed = home.run(&["show", "over", "--modelfile"]).text();
    assert!(!printed.contains("ADAPTER"), "{printed}");
    create(&home, "again", &printed).succeeded();
    assert_eq!(logits(&["again"]), logits(&["one"]));
    // A file made of it has them too.
    home.run(&["convert", "one", "merged.gguf", "--type", "f32"])
        .succeeded();
    assert_ne!(logits(&["./merged.gguf"]), bare);
}

#[test]
fn ollamas_models_run_in_place() {
    let home = Home::new();
    let root = home.dir.path().join("ollama");
    let home = home.env("OLLAMA_MODELS", root.to_str().expect("UTF-8"));
    let layer = |kind: &str, bytes: &[u8]| {
        let name = std::process::Command::new("sha256sum");
        let hash = hash(name, bytes);
        std::fs::create_dir_all(root.join("blobs")).expect("made");
        std::fs::write(root.join(format!("blobs/sha256-{hash}")), bytes).expect("written");
        json!({
            "mediaType": format!("application/vnd.ollama.image.{kind}"),
            "digest": format!("sha256:{hash}"),
            "size": bytes.len(),
        })
    };
    let weights = std::fs::read(fixture("gguf/llama3_1.f32.gguf")).expect("there");
    let layers = [
        layer("model", &weights),
        layer(
            "params",
            br#"{"num_predict": 2, "temperature": 0, "num_gpu": 9}"#,
        ),
        // Of no format that Puna has: the file's own template is used.
        layer("template", b"Arr! {{ .Prompt }}"),
    ];
    let folder = root.join("manifests/host.example/library/tiny");
    std::fs::create_dir_all(&folder).expect("made");
    std::fs::write(
        folder.join("latest"),
        json!({ "layers": layers }).to_string(),
    )
    .expect("written");
    let own = answer(&home, &["-m", "tiny", "hi"]);
    assert_eq!(own["usage"]["completion_tokens"], 2);
    let file = fixture("gguf/llama3_1.f32.gguf");
    let plain = answer(&home, &["-m", file.as_str(), "-n", "1", "hi"]);
    assert_eq!(own["prompt_ids"], plain["prompt_ids"]);
    let listed = home.run(&["list", "--format", "json"]).json();
    assert_eq!(listed["models"][0]["name"], "ollama:tiny:latest");
    assert_eq!(listed["models"][0]["place"], "ollama");
    home.run(&["rm", "ollama:tiny"]).failed(3, "tiny");
}

/// The SHA-256 of some bytes, by the system's own program.
fn hash(mut program: std::process::Command, bytes: &[u8]) -> String {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum is there");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(bytes)
        .expect("written");
    let said = child.wait_with_output().expect("it ends").stdout;
    String::from_utf8(said).expect("text")[..64].to_owned()
}
