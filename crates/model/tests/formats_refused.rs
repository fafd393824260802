//! Checkpoints of other formats that lie, or ask for what is not computed, are refused by name.

mod common;

use common::*;
use files::hf::HfDir;
use files::meta::MetaDir;
use files::{Blob, Dtype, Tensor, Tensors};
use kernels::Compute;
use model::{Config, Scaling, Weights};
use serde_json::{Value, json};

fn folder(name: &str) -> HfDir {
    HfDir::open(fixture("../formats").join(name)).unwrap()
}

/// The error of a folder, one of whose tensors `change` gives another form (`None`: taken away).
fn changed(name: &str, end: &str, change: impl Fn(&Tensor) -> Option<Tensor>) -> String {
    let mut dir = folder(name);
    let mut found = 0;
    let list = dir
        .tensors
        .iter()
        .filter_map(|t| match t.name.ends_with(end) {
            true => {
                found += 1;
                change(t)
            }
            false => Some(t.clone()),
        });
    let list: Vec<Tensor> = list.collect();
    assert!(found > 0, "{name}: no {end}");
    dir.tensors = Tensors::new(list).unwrap();
    refused(name, &dir)
}

fn refused(name: &str, dir: &HfDir) -> String {
    match Weights::from_hf(dir, kernels(Compute::F32, 1)) {
        Ok(_) => panic!("{name}: opened"),
        Err(error) => error.to_string(),
    }
}

fn shaped(t: &Tensor, shape: &[usize]) -> Option<Tensor> {
    let bytes = t.dtype.bytes(shape).unwrap();
    let data = t.data.iter().copied().chain(std::iter::repeat(0));
    let data = Blob::from_vec(data.take(bytes).collect());
    Some(Tensor::new(&t.name, t.dtype, shape.to_vec(), data).unwrap())
}

/// The same tensor with other bytes at its beginning.
fn begun(t: &Tensor, bytes: &[u8]) -> Option<Tensor> {
    let mut data = t.data.to_vec();
    data[..bytes.len()].copy_from_slice(bytes);
    Some(Tensor::new(&t.name, t.dtype, t.shape.clone(), Blob::from_vec(data)).unwrap())
}

fn retyped(t: &Tensor, dtype: Dtype) -> Option<Tensor> {
    Some(Tensor::new(&t.name, dtype, t.shape.clone(), t.data.clone()).unwrap())
}

const F16_NAN: [u8; 2] = [0, 0x7e];
const F16_INFINITY: [u8; 2] = [0, 0x7c];

#[test]
fn scales_that_are_no_numbers() {
    let f32_nan = f32::NAN.to_le_bytes();
    for (name, end, bytes) in [
        ("gptq-sym", ".scales", &F16_NAN[..]),
        ("gptq-order", ".scales", &F16_INFINITY),
        ("awq", ".scales", &F16_NAN),
        ("fp8-row", ".weight_scale", &f32_nan),
        ("fp8-channel", ".weight_scale", &[0x80, 0x7f]),
        ("fp8-block", ".weight_scale_inv", &f32_nan),
        ("bnb-nf4", ".absmax", &f32_nan),
        ("bnb-nf4-double", ".nested_absmax", &f32_nan),
        ("bnb-nf4", ".quant_map", &f32_nan),
        ("bnb-int8", ".SCB", &f32_nan),
    ] {
        let error = changed(name, end, |t| begun(t, bytes));
        assert!(
            error.contains(end) && error.contains("as its number 0"),
            "{error}"
        );
    }
    let error = changed("fp8-tensor", "q_proj.weight", |t| begun(t, &[0x7f]));
    assert!(error.contains("has NaN in row 0, column 0"), "{error}");
}

#[test]
fn parts_of_a_matrix_that_do_not_fit_it() {
    for (name, end, shape, says) in [
        (
            "gptq-sym",
            ".scales",
            &[1, 64][..],
            "has shape [1, 64]; 128",
        ),
        (
            "gptq-sym",
            ".qzeros",
            &[1, 8],
            "has shape [1, 8]; the configuration says [2, 8]",
        ),
        (
            "gptq-sym",
            ".qweight",
            &[7, 64],
            "has shape [7, 64]; the configuration says [8, 64]",
        ),
        (
            "gptq-sym",
            ".qweight",
            &[8],
            "has shape [8]; the configuration says [8, 64]",
        ),
        (
            "gptq-sym",
            ".qweight",
            &[0, 64],
            "the configuration says [8, 64]",
        ),
        (
            "gptq-3",
            ".qweight",
            &[5, 64],
            "the configuration says [6, 64]",
        ),
        (
            "gptq-zeros",
            ".qweight",
            &[8, 63],
            "the configuration says [8, 64]",
        ),
        (
            "gptq-sym",
            ".g_idx",
            &[63],
            "has shape [63]; the configuration says [64]",
        ),
        ("awq", ".qzeros", &[3, 8], "the configuration says [2, 8]"),
        ("awq", ".qweight", &[64], "the configuration says [64, 8]"),
        ("awq", ".scales", &[2, 1], "has shape [2, 1]; 128"),
        (
            "fp8-row",
            ".weight_scale",
            &[63, 1],
            "fits no rows or blocks",
        ),
        (
            "fp8-row",
            "q_proj.weight",
            &[63, 64],
            "the configuration says [64, 64]",
        ),
        (
            "fp8-tensor",
            "q_proj.weight",
            &[64, 65],
            "the configuration says [64, 64]",
        ),
        (
            "fp8-block",
            ".weight_scale_inv",
            &[1, 1, 2],
            "fits no rows or blocks",
        ),
        (
            "fp8-block",
            ".weight_scale_inv",
            &[9, 9],
            "fits no rows or blocks",
        ),
        (
            "bnb-nf4",
            ".absmax",
            &[3],
            "has shape [3]; 64 numbers are needed",
        ),
        (
            "bnb-nf4",
            "_proj.weight",
            &[5, 1],
            "has shape [5, 1]; 2048 numbers are needed",
        ),
        (
            "bnb-nf4-double",
            ".absmax",
            &[5],
            "has shape [5]; 64 numbers are needed",
        ),
        ("bnb-nf4", ".quant_map", &[15], "16 numbers are needed"),
        (
            "bnb-int8",
            ".SCB",
            &[2],
            "has shape [2]; 64 numbers are needed",
        ),
        (
            "bnb-int8",
            "q_proj.weight",
            &[64, 63],
            "the configuration says [64, 64]",
        ),
    ] {
        let error = changed(name, end, |t| shaped(t, shape));
        assert!(error.contains(says), "{name} {end}: {error}");
    }
    let minus = (-1i32).to_le_bytes();
    let error = changed("gptq-order", ".g_idx", |t| begun(t, &minus));
    assert!(error.contains("names group -1 of"), "{error}");
    let error = changed("gptq-sym", ".qweight", |t| retyped(t, Dtype::U32));
    assert!(error.contains("is U32"), "{error}");
    let error = changed("gptq-sym", "q_proj.bias", |t| begun(t, &[1]));
    assert!(error.contains("q_proj.bias"), "{error}");
    let error = changed("bnb-int8", ".weight_format", |t| begun(t, &[1]));
    assert!(error.contains("not stored by rows"), "{error}");
    for state in [
        &b"{"[..],
        b"[]",
        b"{\"blocksize\":0,\"shape\":[64,64]}",
        b"{\"shape\":[64]}",
    ] {
        let error = changed("bnb-nf4", "nf4", |t| {
            let data = Blob::from_vec(state.to_vec());
            Some(Tensor::new(&t.name, Dtype::U8, vec![state.len()], data).unwrap())
        });
        assert!(error.contains("bitsandbytes__nf4"), "{error}");
    }
}

/// Shapes come first: of a checkpoint whose last matrix is too small nothing is put together, so that
/// a scale of the first that is no number is not even seen.
#[test]
fn shapes_are_checked_before_anything_is_put_together() {
    for (name, scale, bytes, end, shape) in [
        (
            "gptq-sym",
            "q_proj.scales",
            &F16_NAN[..],
            "mlp.down_proj.qweight",
            &[1, 64][..],
        ),
        (
            "awq",
            "q_proj.scales",
            &F16_NAN,
            "mlp.down_proj.qweight",
            &[1, 8],
        ),
        (
            "bnb-nf4",
            "q_proj.weight.absmax",
            &[0, 0, 192, 127],
            "mlp.down_proj.weight",
            &[1, 1],
        ),
        (
            "bnb-int8",
            "q_proj.SCB",
            &[0, 0, 192, 127],
            "mlp.down_proj.weight",
            &[1, 64],
        ),
        (
            "fp8-row",
            "q_proj.weight_scale",
            &[0, 0, 192, 127],
            "mlp.down_proj.weight",
            &[1, 64],
        ),
        (
            "fp8-row",
            "q_proj.weight_scale",
            &[0, 0, 192, 127],
            "lm_head.weight",
            &[48, 63],
        ),
    ] {
        let error = changed_twice(name, (scale, bytes), (end, shape));
        assert!(
            error.contains(end) && error.contains("has shape"),
            "{name}: {error}"
        );
        assert!(error.contains(&format!("{shape:?}")), "{name}: {error}");
    }
}

/// The error of a folder, one tensor of which begins with other bytes, and one has another shape.
fn changed_twice(name: &str, begin: (&str, &[u8]), shape: (&str, &[usize])) -> String {
    let mut dir = folder(name);
    let list = dir.tensors.iter().map(|t| {
        if t.name.ends_with(begin.0) {
            begun(t, begin.1).unwrap()
        } else if t.name.ends_with(shape.0) {
            shaped(t, shape.1).unwrap()
        } else {
            t.clone()
        }
    });
    dir.tensors = Tensors::new(list.collect()).unwrap();
    refused(name, &dir)
}

/// Of the formats whose matrices are plain tensors.
#[test]
fn plain_tensors_of_another_shape() {
    let says = |error: model::Error, name: &str, shape: &[usize]| {
        let error = error.to_string();
        let what = format!("tensor `{name}`: has shape [1, 1]; the configuration says {shape:?}");
        assert!(error.contains(&what), "{error}");
    };
    let altered = |tensors: &Tensors, name: &str| {
        let list = tensors.iter().map(|t| match t.name == name {
            true => shaped(t, &[1, 1]).unwrap(),
            false => t.clone(),
        });
        Tensors::new(list.collect()).unwrap()
    };
    let mut gguf = files::gguf::Gguf::open(fixture("gguf/llama3.f32.gguf")).unwrap();
    let shape = gguf.tensors.get("output.weight").unwrap().shape.clone();
    gguf.tensors = altered(&gguf.tensors, "output.weight");
    let error = Weights::from_gguf(&gguf, kernels(Compute::F32, 1)).unwrap_err();
    says(error, "output.weight", &shape);
    for name in ["torch-shared", "torch-shards"] {
        let mut dir = folder(name);
        let part = "model.layers.0.mlp.up_proj.weight";
        let shape = dir.tensors.get(part).unwrap().shape.clone();
        dir.tensors = altered(&dir.tensors, part);
        says(
            Weights::from_hf(&dir, kernels(Compute::F32, 1)).unwrap_err(),
            part,
            &shape,
        );
        // And when it is converted, in which case nothing is written.
        let error = model::convert::Input::Hf(Box::new(dir))
            .gguf(Vec::new())
            .unwrap_err();
        says(error, part, &shape);
    }
    let mut dir = MetaDir::open(fixture("../formats/meta-llama3")).unwrap();
    let part = "layers.0.attention.wo.weight";
    let shape = dir.tensors.get(part).unwrap().shape.clone();
    dir.tensors = altered(&dir.tensors, part);
    says(
        Weights::from_meta(&dir, kernels(Compute::F32, 1)).unwrap_err(),
        part,
        &shape,
    );
    let path = fixture("../formats/llama2c-v1/model.bin");
    let mut file = files::llama2c::open(&path).unwrap();
    let shape = file.tensors.get(part).unwrap().shape.clone();
    file.tensors = altered(&file.tensors, part);
    says(
        Weights::from_llama2c(&file, kernels(Compute::F32, 1)).unwrap_err(),
        part,
        &shape,
    );
}

#[test]
fn parts_of_a_matrix_that_are_missing() {
    for (name, end) in [
        ("gptq-sym", ".scales"),
        ("gptq-sym", ".qzeros"),
        ("gptq-order", ".g_idx"),
        ("gptq-sym", ".qweight"),
        ("awq", ".qzeros"),
        ("fp8-row", ".weight_scale"),
        ("bnb-nf4", ".quant_map"),
        ("bnb-nf4", ".absmax"),
        ("bnb-nf4", "nf4"),
        ("bnb-nf4-double", ".nested_quant_map"),
        ("bnb-int8", ".SCB"),
    ] {
        let error = changed(name, end, |_| None);
        assert!(
            error.contains("tensor `model.layers.0."),
            "{name} {end}: {error}"
        );
    }
}

#[test]
fn ways_to_quantise_that_are_not_known() {
    let refused_by = |name: &str, change: Value| {
        let mut dir = folder(name);
        let q = dir.config["quantization_config"].as_object_mut();
        q.unwrap().extend(change.as_object().unwrap().clone());
        refused(name, &dir)
    };
    for (name, change, says) in [
        (
            "gptq-sym",
            json!({"quant_method": "aqlm"}),
            "`quant_method` = \"aqlm\"",
        ),
        ("gptq-sym", json!({"bits": 5}), "`bits` = 5"),
        ("gptq-sym", json!({"bits": null}), "`bits` = null"),
        ("gptq-sym", json!({"group_size": 0}), "`group_size` = 0"),
        (
            "gptq-sym",
            json!({"checkpoint_format": "marlin"}),
            "`checkpoint_format`",
        ),
        ("gptq-sym", json!({"pack_dtype": "int8"}), "`pack_dtype`"),
        (
            "gptq-sym",
            json!({"dynamic": {"-:.*up.*": {}}}),
            "`dynamic`",
        ),
        ("awq", json!({"version": "gemv"}), "`version` = \"gemv\""),
        ("awq", json!({"bits": 8}), "`bits` = 8"),
        (
            "bnb-nf4",
            json!({"bnb_4bit_quant_type": "nf3"}),
            "`bnb_4bit_quant_type`",
        ),
        ("bnb-nf4", json!({"load_in_4bit": false}), "`load_in_4bit`"),
        (
            "fp8-block",
            json!({"weight_block_size": [128]}),
            "`weight_block_size`",
        ),
        (
            "fp8-block",
            json!({"weight_block_size": [0, 1]}),
            "`weight_block_size`",
        ),
        (
            "fp8-channel",
            json!({"format": "pack-quantized"}),
            "`format`",
        ),
        (
            "fp8-channel",
            json!({"config_groups": {}}),
            "`config_groups`",
        ),
        (
            "fp8-channel",
            json!({"sparsity_config": {"format": "sparse-24-bitmask"}}),
            "`sparsity_config`",
        ),
    ] {
        let error = refused_by(name, change);
        assert!(
            error.contains(says) && error.contains("quantization_config"),
            "{error}"
        );
    }
}

/// Scales say by their shapes what a config.json leaves open.
#[test]
fn small_floats_need_no_quantization_config() {
    for (name, q) in [
        ("fp8-tensor", Value::Null),
        ("fp8-row", Value::Null),
        ("fp8-powers", Value::Null),
        (
            "fp8-tensor",
            json!({"quant_method": "modelopt", "quant_algo": "FP8"}),
        ),
    ] {
        let mut dir = folder(name);
        dir.config["quantization_config"] = q;
        let w = Weights::from_hf(&dir, kernels(Compute::F32, 1)).unwrap();
        let expected = Expected::open(&format!("../formats/{name}/expected.safetensors"));
        let ids = expected.ids("seq0.input_ids");
        let got = logits(&w, &ids, ids.len(), &mut ());
        assert_close(name, &got, &expected.f32("seq0.logits"), 2e-4, 1e-4);
    }
}

#[test]
fn llama2c_with_a_scale_that_is_no_number() {
    let path = fixture("../formats/llama2c-v2-g64/model.bin");
    let scales = files::llama2c::open(&path).unwrap().tensors;
    let at = scales.get("output.scales").unwrap().data.offset();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let file = files::llama2c::parse(Blob::from_vec(bytes)).unwrap();
    let error = Weights::from_llama2c(&file, kernels(Compute::F32, 2))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`output.scales`: has NaN as its number 0"),
        "{error}"
    );
}

/// Reads params.json with the tensors of a sound checkpoint.
fn meta(change: Value) -> Result<Config, String> {
    let dir = MetaDir::open(fixture("../formats/meta-llama3")).unwrap();
    let mut params = dir.params;
    params
        .as_object_mut()
        .unwrap()
        .extend(change.as_object().unwrap().clone());
    Config::from_meta(&params, &dir.tensors).map_err(|e| e.to_string())
}

#[test]
fn params_json_says_what_the_releases_mean() {
    let factor = |c: Config| match c.rope.scaling {
        Scaling::Llama3 { factor, .. } => factor,
        other => panic!("{other:?}"),
    };
    let c = meta(json!({})).unwrap();
    assert_eq!(
        (c.context, c.vocab, c.ffn, c.tied),
        (131_072, 48, 96, false)
    );
    assert_eq!(factor(c), 8.0);
    assert_eq!(
        factor(meta(json!({"rope_scaling_factor": 16.0})).unwrap()),
        16.0
    );
    for (dim, layers, by) in [
        (2048, 16, 32.0),
        (3072, 28, 32.0),
        (4096, 32, 8.0),
        (8192, 80, 8.0),
    ] {
        let heads = dim / 64;
        let c = meta(json!({"dim": dim, "n_layers": layers, "n_heads": heads, "n_kv_heads": 8}));
        assert_eq!(factor(c.unwrap()), by);
    }
    for (change, context) in [
        (json!({"use_scaled_rope": false}), 8192),
        (json!({"use_scaled_rope": null, "rope_theta": 1e6}), 16_384),
        (json!({"use_scaled_rope": null, "rope_theta": null}), 4096),
        (
            json!({"use_scaled_rope": null, "rope_theta": null, "norm_eps": 1e-6}),
            2048,
        ),
        (json!({"rope_theta": 12345.0}), 2048),
    ] {
        assert_eq!(meta(change.clone()).unwrap().context, context, "{change}");
    }
    let dir = MetaDir::open(fixture("../formats/meta-llama3")).unwrap();
    let nested = Config::from_meta(&json!({"model": dir.params}), &dir.tensors);
    assert_eq!(nested.unwrap(), meta(json!({})).unwrap());
}

#[test]
fn params_json_that_is_refused() {
    for (change, says) in [
        (
            json!({"quantization_args": {"scheme": "int4"}}),
            "`quantization_args`",
        ),
        (json!({"lora_args": {"rank": 16}}), "`lora_args`"),
        (json!({"vision_chunk_size": 560}), "`vision_chunk_size`"),
        (json!({"moe_args": {"num_experts": 16}}), "`moe_args`"),
        (json!({"use_qk_norm": true}), "`use_qk_norm`"),
        (
            json!({"vocab_size": 32000}),
            "`vocab_size` of params.json is 32000",
        ),
        (json!({"norm_eps": null}), "lacks `norm_eps`"),
        (json!({"rope_theta": "x"}), "`rope_theta`"),
        (json!({"dim": 0}), "`dim` of params.json is 0"),
        (json!({"n_heads": -1}), "`n_heads` of params.json is -1"),
        (json!({"n_layers": 1u64 << 40}), "layers"),
    ] {
        let error = meta(change.clone()).unwrap_err();
        assert!(error.contains(says), "{change}: {error}");
    }
    // Neutral values pass.
    meta(json!({"use_qk_norm": false, "moe_args": null, "max_seq_len": 2048})).unwrap();
}
