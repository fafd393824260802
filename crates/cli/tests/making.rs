//! `puna quantize`, `convert` and `imatrix`: files made, read again, and refused.

mod common;

use common::{Home, fixture};
use serde_json::Value;

/// A path in the home.
fn at(home: &Home, name: &str) -> String {
    home.dir
        .path()
        .join(name)
        .to_str()
        .expect("UTF-8")
        .to_owned()
}

fn bytes(home: &Home, name: &str) -> Vec<u8> {
    std::fs::read(home.dir.path().join(name)).expect("it was written")
}

/// Likeliest next tokens of a model.
fn top(home: &Home, model: &str) -> Value {
    let args = [
        "logits",
        model,
        "--ids",
        "5,9,200,31",
        "--compute",
        "f32",
        "--format",
        "json",
    ];
    home.run(&args).json()["top"].clone()
}

#[test]
fn quantize_reports_every_tensor() {
    let (home, from) = (Home::new(), fixture("gguf/q256.F32.gguf"));
    let out = at(&home, "q.gguf");
    let json = home
        .run(&["quantize", &from, &out, "q4_k_m", "--format", "json"])
        .json();
    assert_eq!(json["type"], "Q4_K_M");
    let tensors = json["tensors"].as_array().expect("a list");
    assert_eq!(tensors.len(), 21);
    let of = |name: &str| tensors.iter().find(|t| t["name"] == name).expect("there");
    assert_eq!(of("blk.1.attn_v.weight")["to"], "Q6_K");
    assert_eq!(of("blk.0.ffn_up.weight")["from"], "F32");
    let error = of("blk.0.ffn_up.weight")["relative_error"]
        .as_f64()
        .expect("measured");
    assert!((0.05..0.08).contains(&error), "{error}");
    assert_eq!(of("output_norm.weight").get("rmse"), None);
    assert!(
        json["bits_per_weight"]
            .as_f64()
            .is_some_and(|b| (4.5..5.0).contains(&b))
    );
    let size: u64 = tensors.iter().filter_map(|t| t["bytes"].as_u64()).sum();
    assert_eq!(json["bytes"], size);
    assert!(bytes(&home, "q.gguf").len() as u64 > size);
    let text = home.run(&["quantize", &from, &out, "Q8_0"]).text();
    assert!(text.lines().count() == 22 && text.contains("Q8_0") && text.contains("rmse"));
    // Only told, not done.
    let dry = at(&home, "dry.gguf");
    home.run(&["quantize", &from, &dry, "Q2_K", "--dry-run"])
        .succeeded();
    assert!(!std::path::Path::new(&dry).exists());
    // Overrides.
    let args = [
        "quantize",
        &from,
        &out,
        "Q4_K_M",
        "--format",
        "json",
        "--tensor-type",
    ];
    let json = home
        .run(&[&args[..], &["ffn_(up|gate)=q5_1"]].concat())
        .json();
    let count = |ty: &str| {
        let tensors = json["tensors"].as_array().expect("a list");
        tensors.iter().filter(|t| t["to"] == ty).count()
    };
    assert_eq!(count("Q5_1"), 4);
}

#[test]
fn quantize_refuses_what_makes_no_sense() {
    let (home, from) = (Home::new(), fixture("gguf/q256.F32.gguf"));
    let out = at(&home, "q.gguf");
    let run = |args: &[&str]| home.run(&[&["quantize"], args].concat());
    run(&[&from, &out, "Q9_K"]).failed(2, "no type `Q9_K`");
    run(&[&from, &out, "IQ2_XS"]).failed(2, "importance matrix");
    run(&[&fixture("gguf/q256.Q4_0.gguf"), &out, "Q2_K"]).failed(2, "quantised already");
    run(&[&from, &out, "Q4_K_M", "--tensor-type", "ffn_up"]).failed(2, "names no type");
    run(&[&from, &out, "Q4_K_M", "--tensor-type", "(=Q8_0"]).failed(2, "--tensor-type");
    run(&[&from, &out, "Q4_K_M", "--tensor-type", "a=Q99"]).failed(2, "Q99");
    run(&[&from, &out, "Q4_K_M", "--imatrix", "none.dat"]).failed(3, "none.dat");
    run(&[
        &from,
        &out,
        "Q4_K_M",
        "--imatrix",
        &fixture("smollm2/ppl.txt"),
    ])
    .failed(4, "ppl.txt");
    assert!(!std::path::Path::new(&out).exists());
}

#[test]
fn a_directory_becomes_a_gguf_and_a_directory_again() {
    let home = Home::new();
    for name in ["llama1", "llama3_1", "llama_bias"] {
        let dir = fixture(&format!("models/{name}"));
        let (gguf, back) = (at(&home, &format!("{name}.gguf")), at(&home, name));
        let json = home
            .run(&["convert", &dir, &gguf, "--format", "json"])
            .json();
        assert_eq!(json["types"][0][0], "F32");
        home.run(&["convert", &gguf, &format!("{back}/")])
            .succeeded();
        let ids = |model: &str| {
            let args = [
                "tokenize",
                model,
                "Once upon a time, 123.",
                "--format",
                "json",
            ];
            home.run(&args).json()["ids"].clone()
        };
        assert_eq!(ids(&gguf), ids(&dir), "{name}");
        assert_eq!(ids(&back), ids(&dir), "{name}");
        let logits = |model: &str| {
            let args = [
                "logits",
                model,
                "--ids",
                "5,9,200",
                "--compute",
                "f32",
                "--format",
                "json",
            ];
            home.run(&args).json()["top"].clone()
        };
        assert_eq!(logits(&back), logits(&dir), "{name}");
        // A directory that is there is not written into.
        home.run(&["convert", &gguf, &back]).failed(1, "exists");
    }
    let (dir, out) = (fixture("models/llama1"), at(&home, "x"));
    home.run(&["convert", &dir, &out, "--type", "q4_0"])
        .failed(2, "q4_0");
    home.run(&["convert", &dir, &out, "--type", "q8_0"])
        .failed(2, "f32, f16 or bf16");
    assert!(!std::path::Path::new(&out).exists());
    home.run(&["convert", &dir, &out, "--type", "bf16"])
        .succeeded();
    home.run(&["quantize", &dir, &at(&home, "q.gguf"), "Q8_0"])
        .succeeded();
}

#[test]
fn an_importance_matrix_serves_quantize_in_both_forms() {
    let home = Home::new();
    let (model, text) = (fixture("gguf/q256.F32.gguf"), at(&home, "text.txt"));
    std::fs::write(
        &text,
        "It was a dark and stormy night; the rain fell in torrents. ".repeat(30),
    )
    .expect("written");
    for form in ["i.gguf", "i.dat"] {
        let args = [
            "imatrix",
            &model,
            &text,
            &at(&home, form),
            "--ctx",
            "64",
            "--chunks",
            "5",
        ];
        let json = home
            .run(&[&args[..], &["--format", "json"]].concat())
            .json();
        assert_eq!((&json["tensors"], &json["chunks"]), (&14.into(), &5.into()));
    }
    let out = |form: &str| {
        let out = format!("{form}.iq2.gguf");
        let args = [
            "quantize",
            &model,
            &at(&home, &out),
            "IQ2_XS",
            "--imatrix",
            &at(&home, form),
        ];
        let json = home
            .run(&[&args[..], &["--format", "json"]].concat())
            .json();
        let weighted = json["tensors"].as_array().expect("a list").iter();
        assert_eq!(weighted.filter(|t| t["imatrix"] == true).count(), 14);
        top(&home, &at(&home, &out))
    };
    // The two differ by a rounding of sums at most.
    let (a, b) = (out("i.gguf"), out("i.dat"));
    assert_eq!(a.as_array().map(Vec::len), b.as_array().map(Vec::len));
    let missing = ["imatrix", &model, "none.txt", &at(&home, "x.gguf")];
    home.run(&missing).failed(1, "none.txt");
    home.run(&[
        "imatrix",
        &model,
        &text,
        &at(&home, "x.gguf"),
        "--ctx",
        "100000",
    ])
    .failed(1, "one chunk");
}

/// Checkpoints of Meta's and of llama2.c become the same model in both layouts.
#[test]
fn other_layouts_become_a_gguf_and_a_directory() {
    let home = Home::new();
    let flat = |v: &Value| -> Vec<f64> {
        let rows = v.as_array().expect("rows").iter();
        let pairs = rows.flat_map(|r| r.as_array().expect("pairs"));
        pairs.map(|p| p[1].as_f64().expect("a number")).collect()
    };
    for name in [
        "meta-llama1",
        "meta-llama3",
        "llama2c-v0/model.bin",
        "llama2c-v0-head/model.bin",
        "llama2c-v1/model.bin",
        "llama2c-v2-g32/model.bin",
    ] {
        let from = fixture(&format!("../formats/{name}"));
        let logits = |model: &str| {
            let args = ["logits", model, "--ids", "5,9,20,31"];
            let args = [&args[..], &["--compute", "f32", "--format", "json"]].concat();
            flat(&home.run(&args).json()["top"])
        };
        let want = logits(&from);
        let stem = name.replace('/', "-");
        let (gguf, dir) = (at(&home, &format!("{stem}.gguf")), at(&home, &stem));
        for out in [&gguf, &dir] {
            home.run(&["convert", &from, out, "--type", "f32"])
                .succeeded();
            let got = logits(out);
            assert_eq!(got.len(), want.len());
            let off = got.iter().zip(&want).map(|(a, b)| (a - b).abs());
            assert!(off.fold(0.0, f64::max) < 1e-4, "{out}");
        }
        if ["meta-llama1", "llama2c-v0/model.bin"].contains(&name) {
            let tokens = |model: &str| {
                let text = "Once upon a time, 123.";
                let args = ["tokenize", model, text, "--format", "json"];
                home.run(&args).json()["ids"].clone()
            };
            assert_eq!(tokens(&gguf), tokens(&from), "{name}");
            assert_eq!(tokens(&dir), tokens(&from), "{name}");
        }
    }
}

/// What a card says of the licence stays with what is made of a model.
#[test]
fn the_licence_goes_along() {
    let home = Home::new();
    let from = home.dir.path().join("in");
    std::fs::create_dir(&from).expect("made");
    for entry in std::fs::read_dir(fixture("models/llama3"))
        .expect("there")
        .flatten()
    {
        std::fs::copy(entry.path(), from.join(entry.file_name())).expect("copied");
    }
    std::fs::write(from.join("README.md"), "---\nlicense: llama3.2\n---\n").expect("written");
    std::fs::write(from.join("USE_POLICY.md"), "be good").expect("written");
    let shown = home.run(&["show", "./in", "--format", "json"]).json();
    assert_eq!(shown["licence"], "llama3.2");
    assert_eq!(shown["terms"]["display"], "Built with Llama");
    assert!(home.run(&["show", "./in"]).text().contains("700 million"));
    home.run(&["convert", "./in", "a.gguf"]).succeeded();
    home.run(&["quantize", "./a.gguf", "b.gguf", "q8_0"])
        .succeeded();
    home.run(&["convert", "./in", "out"]).succeeded();
    home.run(&["convert", "./b.gguf", "back", "--type", "f32"])
        .succeeded();
    for made in ["./a.gguf", "./b.gguf"] {
        let shown = home.run(&["show", made, "--format", "json"]).json();
        assert_eq!(shown["licence"], "llama3.2", "{made}");
    }
    for made in ["out/NOTICE", "back/NOTICE"] {
        let text = String::from_utf8(bytes(&home, made)).expect("text");
        assert!(
            text.contains("Llama 3.2 is licensed under") && text.ends_with("llama3.2\n"),
            "{text}"
        );
    }
    assert_eq!(bytes(&home, "out/USE_POLICY.md"), b"be good");
}
