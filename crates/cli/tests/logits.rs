//! `puna logits` against transformers' values, and its file against its JSON.

mod common;

use std::collections::HashMap;

use common::{Home, fixture, puna};
use safetensors::{Dtype, SafeTensors};

/// Folders of the reference models, with the sequence for which attention was recorded.
const MODELS: [&str; 8] = [
    "llama1",
    "llama2_gqa",
    "llama3_1",
    "llama_bias",
    "llama_head_dim",
    "llama4_text",
    "opt",
    "galactica",
];

struct File(HashMap<String, (Vec<usize>, Vec<f32>)>);

impl File {
    fn open(path: &str) -> File {
        let bytes = std::fs::read(path).expect("the file is there");
        let file = SafeTensors::deserialize(&bytes).expect("well-formed safetensors");
        let of = |name: &str| {
            let view = file.tensor(name).expect("listed");
            let values = match view.dtype() {
                Dtype::F32 => chunks(view.data(), |b: [u8; 4]| f32::from_le_bytes(b)),
                Dtype::I32 => chunks(view.data(), |b: [u8; 4]| i32::from_le_bytes(b) as f32),
                Dtype::I64 => chunks(view.data(), |b: [u8; 8]| i64::from_le_bytes(b) as f32),
                other => panic!("{name} is {other:?}"),
            };
            (view.shape().to_vec(), values)
        };
        let names = file.names();
        File(
            names
                .into_iter()
                .map(|name| (name.to_string(), of(name)))
                .collect(),
        )
    }

    fn get(&self, name: &str) -> &(Vec<usize>, Vec<f32>) {
        let names: Vec<&String> = self.0.keys().collect();
        self.0
            .get(name)
            .unwrap_or_else(|| panic!("no {name} among {names:?}"))
    }
}

fn chunks<const N: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let exact = bytes.chunks_exact(N);
    exact
        .map(|b| of(b.try_into().expect("exact chunks")))
        .collect()
}

fn ids(file: &File, name: &str) -> String {
    let words: Vec<String> = file.get(name).1.iter().map(|id| id.to_string()).collect();
    words.join(",")
}

#[track_caller]
fn near(
    what: &str,
    got: &(Vec<usize>, Vec<f32>),
    want: &(Vec<usize>, Vec<f32>),
    atol: f32,
    rtol: f32,
) {
    assert_eq!(got.0, want.0, "{what}: shape");
    for (i, (g, w)) in got.1.iter().zip(&want.1).enumerate() {
        assert!(
            (g - w).abs() <= atol + rtol * w.abs(),
            "{what}[{i}]: {g}, want {w}"
        );
    }
}

#[test]
fn everything_that_transformers_saw() {
    for name in MODELS {
        let want = File::open(&fixture(&format!("models/{name}/expected.safetensors")));
        let home = Home::new();
        let out = home.dir.path().join("out.safetensors");
        let out = out.to_str().expect("UTF-8");
        let model = fixture(&format!("models/{name}"));
        let ids = ids(&want, "seq2.input_ids");
        let args = [
            "logits",
            &model,
            "--ids",
            &ids,
            "--compute",
            "f32",
            "--format",
            "json",
        ];
        let args = [&args[..], &["--out", out, "--hidden", "--attention"]].concat();
        let answer = home.run(&args).json();
        let got = File::open(out);

        assert_eq!(got.get("ids").1, want.get("seq2.input_ids").1);
        near(name, got.get("logits"), want.get("seq2.logits"), 2e-4, 1e-4);
        let layers = (0..)
            .take_while(|l| want.0.contains_key(&format!("seq2.attn.{l}")))
            .count();
        for l in 0..layers {
            let hidden = (
                got.get(&format!("hidden.{l}")),
                want.get(&format!("seq2.hidden.{l}")),
            );
            near(
                &format!("{name} hidden.{l}"),
                hidden.0,
                hidden.1,
                2e-4,
                1e-4,
            );
            let pattern = (
                got.get(&format!("attention.{l}")),
                want.get(&format!("seq2.attn.{l}")),
            );
            near(
                &format!("{name} attention.{l}"),
                pattern.0,
                pattern.1,
                1e-5,
                0.0,
            );
        }
        // Before the final norm, unlike transformers' own last one.
        let last = (
            got.get(&format!("hidden.{layers}")),
            want.get("seq2.last_layer_out"),
        );
        near(
            &format!("{name} hidden.{layers}"),
            last.0,
            last.1,
            2e-4,
            1e-4,
        );

        let top = answer["top"].as_array().expect("a list");
        let (shape, logits) = got.get("logits");
        assert_eq!(top.len(), shape[0]);
        for (row, top) in logits.chunks_exact(shape[1]).zip(top) {
            check_top(row, top);
        }
    }
}

/// Ten pairs, the largest first, and their log-probabilities are the row's.
#[track_caller]
fn check_top(row: &[f32], top: &serde_json::Value) {
    let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
    let mut sorted: Vec<f32> = row.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let top = top.as_array().expect("a list");
    assert_eq!(top.len(), 10);
    for (rank, pair) in top.iter().enumerate() {
        let id = pair[0].as_u64().expect("an id") as usize;
        assert_eq!(row[id], sorted[rank], "rank {rank}");
        let want = f64::from(row[id]) - sum.ln();
        assert!((pair[1].as_f64().expect("a number") - want).abs() < 1e-4);
    }
}

#[test]
fn the_chunk_changes_no_bit() {
    let model = fixture("gguf/q256.Q4_K_M.gguf");
    let want = File::open(&fixture("gguf/q256.Q4_K_M.expected.safetensors"));
    let ids = ids(&want, "seq2.input_ids");
    for compute in ["fast", "f32"] {
        let mut first = None;
        for chunk in ["1", "3", "7", "64"] {
            let home = Home::new();
            let out = home.dir.path().join("out.safetensors");
            let out = out.to_str().expect("UTF-8");
            let args = [
                "logits", &model, "--ids", &ids, "--out", out, "--chunk", chunk,
            ];
            let args = [
                &args[..],
                &["--hidden", "--attention", "--compute", compute],
            ]
            .concat();
            home.run(&args).succeeded();
            let bytes = std::fs::read(out).expect("written");
            assert!(
                *first.get_or_insert_with(|| bytes.clone()) == bytes,
                "{compute}, chunk {chunk}"
            );
        }
    }
    // Looking changes no bit either, and the quantised weights are those that transformers had.
    let home = Home::new();
    let out = home.dir.path().join("out.safetensors");
    let out = out.to_str().expect("UTF-8");
    home.run(&[
        "logits",
        &model,
        "--ids",
        &ids,
        "--out",
        out,
        "--compute",
        "f32",
    ])
    .succeeded();
    near(
        "logits",
        File::open(out).get("logits"),
        want.get("seq2.transformers.logits"),
        1e-3,
        1e-4,
    );
}

#[test]
fn text_gets_the_token_that_the_model_puts_in_front() {
    let model = fixture("gguf/llama2_gqa.f32.gguf");
    let tokens =
        puna(&["tokenize", &model, "hello there", "--format", "json"]).json()["ids"].clone();
    let answer = puna(&[
        "logits",
        &model,
        "--text",
        "hello there",
        "--format",
        "json",
    ])
    .json();
    assert_eq!(answer["ids"], tokens);
    assert_eq!(
        answer["top"].as_array().map(Vec::len),
        tokens.as_array().map(Vec::len)
    );
    let said = puna(&["logits", &model, "--text", "hello there"])
        .succeeded()
        .text();
    assert_eq!(
        said.lines().count(),
        tokens.as_array().map_or(0, Vec::len) + 1
    );
}

#[test]
fn refusals() {
    let model = fixture("gguf/llama3.f32.gguf");
    puna(&["logits", &model]).failed(2, "required");
    puna(&["logits", &model, "--ids", "1", "--text", "a"]).failed(2, "cannot be used with");
    puna(&["logits", &model, "--ids", "99999"]).failed(2, "99999");
    puna(&["logits", &model, "--ids", "1,x"]).failed(2, "x");
    puna(&["logits", &model, "--ids", "1,2,3", "--ctx", "2"]).failed(2, "--ctx 2");
    puna(&["logits", &model, "--ids", "1", "--chunk", "0"]).failed(2, "at least 1");
    puna(&["logits", &model, "--ids", "1", "--hidden"]).failed(2, "--out");
    puna(&["logits", "no-such-thing", "--ids", "1"]).failed(3, "no-such-thing");
    let missing = puna(&[
        "logits",
        &model,
        "--ids",
        "1",
        "--out",
        "no/such/folder/x.safetensors",
    ]);
    missing.failed(1, "no/such/folder");
}
