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

/// Llama 4's experts in 8-bit floats: as two tensors for all of them with a scale for each output, and
/// as tensors of each expert. They compute what the same numbers in f32 do, and so do the files that
/// are made of them.
#[test]
fn llama4_experts_in_small_floats() {
    use files::{Blob, Dtype, Tensor, Tensors, hf::HfDir};
    let dir = HfDir::open(fixture("models/llama4_text")).unwrap();
    let table = kernels::repack::e4m3();
    let bytes = |f: &[f32]| f.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (mut wide, mut fused, mut each) = (Vec::new(), Vec::new(), Vec::new());
    let add = |list: &mut Vec<Tensor>, name: &str, dtype, shape: &[usize], data: Vec<u8>| {
        let t = Tensor::new(name, dtype, shape.to_vec(), Blob::from_vec(data));
        list.push(t.unwrap());
    };
    for t in &dir.tensors {
        let [e, inputs, outputs] = t.shape[..] else {
            for list in [&mut wide, &mut fused, &mut each] {
                list.push(t.clone());
            }
            continue;
        };
        // Bytes without the two that are no numbers, and scales of any size.
        let small = |i: usize| ((i * 89 + i / 7) % 127) as u8 | ((i / 3 % 2) as u8) << 7;
        let scale = |expert: usize, o: usize| 1e-3 * (1.0 + (expert * 5 + o) as f32 / 97.0);
        let value = |x: usize, i: usize, o: usize| {
            table[usize::from(small((x * inputs + i) * outputs + o))] * scale(x, o)
        };
        let all = (0..e * inputs * outputs).map(small).collect::<Vec<u8>>();
        let floats: Vec<f32> = (0..all.len())
            .map(|at| value(at / outputs / inputs, at / outputs % inputs, at % outputs))
            .collect();
        add(&mut wide, &t.name, Dtype::F32, &t.shape, bytes(&floats));
        let scales: Vec<f32> = (0..e * outputs)
            .map(|at| scale(at / outputs, at % outputs))
            .collect();
        let end = match t.name.ends_with("down_proj") {
            true => [e, outputs, 1],
            false => [e, 1, outputs],
        };
        add(&mut fused, &t.name, Dtype::F8_E4M3, &t.shape, all.clone());
        let name = format!("{}_scale", t.name);
        add(&mut fused, &name, Dtype::F32, &end, bytes(&scales));
        let (before, both) = match t.name.strip_suffix("gate_up_proj") {
            Some(before) => (before, &["gate_proj", "up_proj"][..]),
            None => (
                t.name.strip_suffix("down_proj").unwrap(),
                &["down_proj"][..],
            ),
        };
        let rows = outputs / both.len();
        for ((part, own), x) in both
            .iter()
            .enumerate()
            .flat_map(|p| (0..e).map(move |x| (p, x)))
        {
            let first = part * rows;
            let turned = (0..rows * inputs).map(|at| {
                let (o, i) = (first + at / inputs, at % inputs);
                all[(x * inputs + i) * outputs + o]
            });
            let name = format!("{before}{x}.{own}.weight");
            add(
                &mut each,
                &name,
                Dtype::F8_E4M3,
                &[rows, inputs],
                turned.collect(),
            );
            let scales: Vec<f32> = (first..first + rows).map(|o| scale(x, o)).collect();
            let name = format!("{name}_scale");
            add(&mut each, &name, Dtype::F32, &[rows, 1], bytes(&scales));
        }
    }
    let with = |list: &Vec<Tensor>, quantised: serde_json::Value| {
        let mut dir = dir.clone();
        dir.tensors = Tensors::new(list.clone()).unwrap();
        dir.config["quantization_config"] = quantised;
        dir
    };
    let of = |dir: &HfDir| {
        let w = Weights::from_hf(dir, kernels(Compute::F32, 2)).unwrap();
        logits(&w, &[1, 7, 30, 2, 11, 40], 6, &mut ())
    };
    let want = of(&with(&wide, serde_json::Value::Null));
    let fbgemm = serde_json::json!({
        "quant_method": "fbgemm_fp8",
        "activation_scale_ub": 1200.0,
        "modules_to_not_convert": ["lm_head"],
    });
    let compressed = serde_json::json!({
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8}}},
    });
    for (what, list, how) in [
        ("fused", &fused, &fbgemm),
        ("fused", &fused, &compressed),
        ("each", &each, &compressed),
    ] {
        assert_close(what, &of(&with(list, how.clone())), &want, 1e-5, 1e-5);
    }
    // A scale of another shape.
    let odd = fused
        .iter()
        .map(|t| match t.name.ends_with("gate_up_proj_scale") {
            true => Tensor {
                shape: t.shape.iter().rev().copied().collect(),
                ..t.clone()
            },
            false => t.clone(),
        });
    let odd = with(&odd.collect(), fbgemm);
    let error = Weights::from_hf(&odd, kernels(Compute::F32, 1)).unwrap_err();
    assert!(error.to_string().contains("fits no experts"), "{error}");
}
