//! `--adapter` and `--control-vector` of every verb that loads a model, and `convert --adapter`.

mod common;

use common::{Home, fixture};
use serde_json::Value;

const IDS: &str = "5,9,200,31,7,250";

fn at(home: &Home, name: &str) -> String {
    let path = home.dir.path().join(name);
    path.to_str().expect("UTF-8").to_owned()
}

/// Log-probabilities of the likeliest tokens at each position.
fn top(home: &Home, model: &str, more: &[&str]) -> Value {
    let args = [
        "logits",
        model,
        "--ids",
        IDS,
        "--compute",
        "f32",
        "--format",
        "json",
    ];
    home.run(&[&args, more].concat()).json()["top"].clone()
}

fn near(a: &Value, b: &Value) -> bool {
    let flat = |v: &Value| -> Vec<f64> {
        let rows = v.as_array().expect("rows").iter();
        let pairs = rows.flat_map(|r| r.as_array().expect("pairs"));
        pairs.map(|p| p[1].as_f64().expect("a number")).collect()
    };
    let (a, b) = (flat(a), flat(b));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 2e-4)
}

#[test]
fn beside_the_weights_and_merged_they_are_the_same() {
    let home = Home::new();
    let base = fixture("training/model");
    let lora = fixture("training/lora/final");
    let dora = fixture("training/dora/final");
    let bare = top(&home, &base, &[]);
    for (i, adapters) in [
        vec![lora.clone()],
        vec![format!("{lora}:-0.5")],
        vec![format!("{dora}:0.5"), format!("{lora}:2")],
    ]
    .iter()
    .enumerate()
    {
        let flags: Vec<&str> = adapters.iter().flat_map(|a| ["--adapter", a]).collect();
        let beside = top(&home, &base, &flags);
        assert!(!near(&beside, &bare), "{adapters:?}");
        let (dir, gguf) = (
            at(&home, &format!("d{i}")),
            at(&home, &format!("g{i}.gguf")),
        );
        for out in [&dir, &gguf] {
            let args = [&["convert", &base, out][..], &flags].concat();
            home.run(&args).succeeded();
            assert!(near(&top(&home, out, &[]), &beside), "{out} {adapters:?}");
        }
        // On top of a GGUF of the base: its rows lie in another order.
        let plain = at(&home, &format!("p{i}.gguf"));
        home.run(&["convert", &base, &plain]).succeeded();
        assert!(near(&top(&home, &plain, &flags), &beside));
        home.run(
            &[
                &["convert", &plain, &at(&home, &format!("b{i}"))][..],
                &flags,
            ]
            .concat(),
        )
        .succeeded();
        assert!(near(
            &top(&home, &at(&home, &format!("b{i}")), &[]),
            &beside
        ));
    }
    assert!(near(
        &top(&home, &base, &["--adapter", &format!("{lora}:0")]),
        &bare
    ));
}

#[test]
fn every_verb_that_loads_a_model_takes_them() {
    let home = Home::new();
    let base = fixture("models/llama2_gqa");
    let adapter = fixture("../adapters/patterns/adapter.gguf");
    let (all, last) = (
        fixture("../adapters/steer-all.gguf"),
        fixture("../adapters/steer-last.gguf"),
    );
    let flags = [
        "--adapter",
        &adapter,
        "--control-vector",
        &format!("{all}:0.5"),
    ];
    let bare = top(&home, &base, &[]);
    let both = top(&home, &base, &flags);
    assert!(!near(&both, &bare));
    assert!(!near(&both, &top(&home, &base, &flags[..2])));
    assert!(!near(&both, &top(&home, &base, &flags[2..])));
    let last_layer = top(
        &home,
        &base,
        &["--control-vector", &all, "--control-vector-layers", "2:2"],
    );
    assert!(near(
        &last_layer,
        &top(&home, &base, &["--control-vector", &last])
    ));
    let twice = [
        "--control-vector",
        &last,
        "--control-vector",
        &format!("{last}:-1"),
    ];
    assert!(near(&top(&home, &base, &twice), &bare));

    let text = at(&home, "text.txt");
    std::fs::write(
        &text,
        "It was a dark and stormy night; the rain fell. ".repeat(9),
    )
    .expect("written");
    let perplexity = |more: &[&str]| {
        let args = [
            "perplexity",
            &base,
            &text,
            "--ctx",
            "32",
            "--format",
            "json",
        ];
        home.run(&[&args, more].concat()).json()["nll"]
            .as_f64()
            .expect("a number")
    };
    assert!((perplexity(&[]) - perplexity(&flags)).abs() > 1e-3);
    let said = |more: &[&str]| {
        let args = [
            "run",
            "-m",
            &base,
            "--raw",
            "-n",
            "12",
            "--temperature",
            "0",
            "Once upon",
        ];
        let args = [&args, &["--format", "json"][..], more].concat();
        home.run(&args).json()["ids"].clone()
    };
    let strong = ["--adapter", &adapter, "--adapter", &format!("{adapter}:3")];
    assert_ne!(said(&[]), said(&strong));
    let bench = ["bench", &base, "-p", "8", "-n", "2", "--repeat", "1"];
    home.run(&[&bench[..], &flags].concat()).succeeded();
    let matrix = |out: &str, more: &[&str]| {
        let args = ["imatrix", &base, &text, &at(&home, out), "--ctx", "32"];
        home.run(&[&args, more].concat()).succeeded();
        std::fs::read(at(&home, out)).expect("written")
    };
    assert_ne!(matrix("a.dat", &[]), matrix("b.dat", &flags));
}

#[test]
fn what_is_wrong_is_said_by_name() {
    let home = Home::new();
    let base = fixture("training/model");
    let lora = fixture("training/lora/final");
    let steer = fixture("../adapters/steer-all.gguf");
    let run = |more: &[&str]| home.run(&[&["logits", &base, "--ids", "1"], more].concat());
    run(&["--adapter", "none"]).failed(3, "none");
    run(&["--adapter", "none:0.5"]).failed(3, "none");
    run(&["--adapter", &format!("{lora}:much")]).failed(2, "is not a scale");
    run(&["--adapter", &format!("{lora}:inf")]).failed(2, "not finite");
    run(&["--adapter", &base]).failed(4, "an adapter is a GGUF file");
    run(&["--adapter", &fixture("../adapters/tied")]).failed(4, "k_proj");
    run(&["--control-vector", &steer]).failed(4, "direction.");
    run(&["--control-vector", &lora]).failed(4, "a control vector is a GGUF file");
    run(&["--control-vector", &steer, "--control-vector-layers", "5"]).failed(2, "A:B");
    run(&["--control-vector-layers", "1:2"]).failed(2, "--control-vector");
    let dora = fixture("training/dora/final");
    run(&["--adapter", &lora, "--adapter", &dora]).failed(4, "must be the first");
    home.run(&["bench", "--shape", "smollm2-135m", "--adapter", &lora])
        .failed(2, "--shape");
    let out = at(&home, "out");
    let merge = |more: &[&str]| home.run(&[&["convert", &base, &out], more].concat());
    merge(&["--adapter", "none"]).failed(3, "none");
    merge(&["--adapter", &format!("{lora}:x")]).failed(2, "is not a scale");
    merge(&["--adapter", &lora, "--adapter", &dora]).failed(4, "must be the first");
    assert!(!std::path::Path::new(&out).exists());
    home.run(&["logits", &lora, "--ids", "1"])
        .failed(4, "adapter of PEFT");
}
