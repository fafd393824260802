//! Checkpoints of every format compute what their numbers stand for: `tests/fixtures/formats`.

mod common;

use std::path::PathBuf;

use common::*;
use kernels::{Compute, Type};
use model::Weights;

fn folder(name: &str) -> PathBuf {
    fixture("../formats").join(name)
}

fn open_format(name: &str, compute: Compute) -> Weights {
    let path = folder(name);
    let bin = path.join("model.bin");
    let path = if bin.exists() { bin } else { path };
    model::open(&path, kernels(compute, 2)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Where the expected logits of a folder lie: beside it, or with the model that it converts.
fn expected(name: &str) -> Expected {
    match name {
        "meta-llama1" => Expected::open("models/llama1/expected.safetensors"),
        "torch-shards" => Expected::open("models/llama_bf16_sharded/expected.safetensors"),
        _ => Expected::open(&format!("../formats/{name}/expected.safetensors")),
    }
}

/// Each folder, with the type that its projections come to.
const FOLDERS: &[(&str, Type)] = &[
    ("meta-llama1", Type::F32),
    ("meta-llama3", Type::BF16),
    ("torch-shared", Type::F32),
    ("torch-shards", Type::BF16),
    ("llama2c-v0", Type::F32),
    ("llama2c-v0-head", Type::F32),
    ("llama2c-v1", Type::F32),
    ("llama2c-v2-g32", Type::Q8_0),
    ("llama2c-v2-g64", Type::F32),
    ("fp8-tensor", Type::F32),
    ("fp8-row", Type::F32),
    ("fp8-channel", Type::F32),
    ("fp8-block", Type::F32),
    ("fp8-e5m2", Type::BF16),
    ("fp8-powers", Type::BF16),
    ("gptq-sym", Type::Q4_0),
    ("gptq-zeros", Type::Q5_0),
    ("gptq-v2", Type::Q5_0),
    ("gptq-order", Type::F32),
    ("gptq-3", Type::Q4_0),
    ("gptq-8", Type::Q8_0),
    ("gptq-2", Type::F16),
    ("awq", Type::Q5_0),
    ("bnb-nf4", Type::F32),
    ("bnb-nf4-double", Type::F32),
    ("bnb-fp4", Type::F32),
    ("bnb-int8", Type::F32),
];

#[test]
fn every_format_computes_what_is_expected() {
    for (name, ty) in FOLDERS {
        let w = open_format(name, Compute::F32);
        let types: Vec<Type> = w.types().into_iter().map(|(ty, _)| ty).collect();
        assert!(types.contains(ty), "{name}: {types:?}");
        let expected = expected(name);
        for s in expected.sequences() {
            let ids = expected.ids(&format!("{s}.input_ids"));
            let got = logits(&w, &ids, ids.len(), &mut ());
            let want = expected.f32(&format!("{s}.logits"));
            assert_close(&format!("{name} {s}"), &got, &want, 2e-4, 1e-4);
        }
    }
}

#[test]
fn every_folder_is_tested() {
    let found = std::fs::read_dir(folder("")).unwrap().flatten();
    let folders = found.filter(|entry| entry.path().is_dir());
    let names: Vec<String> = folders
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| !n.starts_with('_'))
        .collect();
    for name in &names {
        assert!(FOLDERS.iter().any(|(n, _)| n == name), "{name}");
    }
    assert_eq!(names.len(), FOLDERS.len());
}

/// The fast mode runs the same weights: no further from them than its rounding of activations.
#[test]
fn every_format_runs_in_fast_mode() {
    for (name, _) in FOLDERS {
        let (fast, exact) = (
            open_format(name, Compute::Fast),
            open_format(name, Compute::F32),
        );
        let ids = [1, 7, 30, 2];
        let got = logits(&fast, &ids, ids.len(), &mut ());
        let want = logits(&exact, &ids, ids.len(), &mut ());
        let worst = max_difference(&got, &want);
        assert!(worst < 0.3, "{name}: {worst}");
    }
}
