//! Adapters that lie, or ask for what is not computed, are refused by name.

mod common;

use common::*;
use files::gguf::{Array, Gguf, Metadata, Value};
use files::peft::PeftDir;
use files::{Blob, Dtype, Tensor, Tensors};
use kernels::Compute;
use model::{Adapter, Lora, Weights};
use serde_json::{Value as Json, json};

fn trained(name: &str) -> PeftDir {
    PeftDir::open(fixture(&format!("training/{name}/final"))).unwrap()
}

fn base() -> Weights {
    open("training/model", Compute::F32)
}

fn refused(dir: &PeftDir, w: &Weights, says: &str) {
    let adapter = Lora::from_peft(dir, &w.config).and_then(|lora| Adapter::of(lora, w, 1.0));
    match adapter {
        Ok(_) => panic!("opened; wanted {says}"),
        Err(error) => assert!(error.to_string().contains(says), "{error}: no {says}"),
    }
}

#[test]
fn settings_that_are_not_computed() {
    let w = base();
    for (key, value) in [
        ("peft_type", json!("LOHA")),
        ("peft_type", Json::Null),
        ("task_type", json!("SEQ_CLS")),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("olora")),
        ("modules_to_save", json!(["lm_head"])),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 1]])),
        ("trainable_token_indices", json!([5])),
        ("target_parameters", json!(["mlp.experts"])),
        ("alora_invocation_tokens", json!([5, 6])),
        ("use_qalora", json!(true)),
        ("use_rslora", json!("yes")),
        ("use_dora", json!(1)),
        ("r", json!(0)),
        ("r", json!(-4)),
        ("r", json!(4.5)),
        ("r", Json::Null),
        ("r", json!(5)),
        ("lora_alpha", json!("8")),
        ("lora_alpha", Json::Null),
        ("rank_pattern", json!({"q_proj": 8})),
        ("rank_pattern", json!({"q_proj": "4"})),
        ("rank_pattern", json!({"(q_proj": 4})),
        ("rank_pattern", json!({"q_proj{100000}": 4})),
        ("rank_pattern", json!([4])),
        (
            "alpha_pattern",
            json!({"q_proj": 1, "layers.0.self_attn.q_proj": 2}),
        ),
        ("alpha_pattern", json!({"k_proj": null})),
        ("a_setting_of_tomorrow", json!(0.5)),
    ] {
        let mut dir = trained("lora");
        dir.config[key] = value.clone();
        let says = match (key, &value) {
            ("r", Json::Number(n)) if n.as_u64() == Some(5) => "rank 4",
            ("rank_pattern", v) if *v == json!({"q_proj": 8}) => "rank 4",
            _ => key,
        };
        refused(&dir, &w, says);
    }
    for (key, value) in [
        ("target_modules", json!(["k_proj"])),
        ("exclude_modules", json!(["q_proj"])),
        ("layers_to_transform", json!([1])),
        ("layers_to_transform", json!(7)),
    ] {
        let mut dir = trained("lora");
        dir.config[key] = value;
        refused(&dir, &w, "leave out");
    }
    for (key, value) in [
        ("a_setting_of_tomorrow", json!(null)),
        ("runtime_config", json!({"ephemeral_gpu_offload": false})),
        ("lora_dropout", json!(0.1)),
        ("target_modules", json!("all-linear")),
        ("layers_to_transform", json!([0, 1])),
        ("init_lora_weights", json!("gaussian")),
    ] {
        let mut dir = trained("lora");
        dir.config[key] = value;
        assert!(Lora::from_peft(&dir, &w.config).is_ok(), "{key}");
    }
}

/// The adapter with every tensor as `change` has it (`None`: taken away).
fn changed(name: &str, change: impl Fn(&Tensor) -> Option<Tensor>) -> PeftDir {
    let mut dir = trained(name);
    let list = dir.tensors.iter().filter_map(change).collect();
    dir.tensors = Tensors::new(list).unwrap();
    dir
}

fn shaped(t: &Tensor, shape: &[usize]) -> Tensor {
    let bytes = vec![0; t.dtype.bytes(shape).unwrap()];
    Tensor::new(&t.name, t.dtype, shape.to_vec(), Blob::from_vec(bytes)).unwrap()
}

#[test]
fn tensors_that_do_not_fit() {
    let w = base();
    let renamed = |from: &str, to: &str| {
        changed("lora", |t| {
            let name = t.name.replace(from, to);
            Some(Tensor { name, ..t.clone() })
        })
    };
    refused(
        &renamed("base_model.model.", ""),
        &w,
        "tensor `model.layers.0",
    );
    refused(&renamed("q_proj", "query"), &w, "query");
    refused(&renamed("layers.1.", "layers.2."), &w, "no such matrix");
    refused(&renamed("layers.1.", "layers.01."), &w, "layers.01.");
    refused(
        &renamed("layers.1.", "layers.99999999999999999999."),
        &w,
        "9999.",
    );
    refused(&renamed("lora_B", "lora_C"), &w, "lora_C");
    refused(
        &renamed("down_proj.lora_A.weight", "down_proj.lora_magnitude_vector"),
        &w,
        "use_dora",
    );
    for (end, shape) in [
        ("1.self_attn.q_proj.lora_A.weight", &[4, 65][..]),
        ("1.self_attn.q_proj.lora_A.weight", &[3, 64]),
        ("1.self_attn.q_proj.lora_A.weight", &[256]),
        ("1.self_attn.k_proj.lora_B.weight", &[33, 4]),
        ("1.self_attn.k_proj.lora_B.weight", &[4, 32]),
        ("1.mlp.up_proj.lora_B.weight", &[128, 4, 1]),
    ] {
        let dir = changed("lora", |t| match t.name.ends_with(end) {
            true => Some(shaped(t, shape)),
            false => Some(t.clone()),
        });
        refused(&dir, &w, "are not [rank");
    }
    let without = |name, end: &str| changed(name, |t| (!t.name.ends_with(end)).then(|| t.clone()));
    refused(
        &without("lora", "0.self_attn.q_proj.lora_A.weight"),
        &w,
        "counterpart A",
    );
    refused(
        &without("lora", "0.self_attn.q_proj.lora_B.weight"),
        &w,
        "counterpart B",
    );
    refused(
        &without("dora", "1.mlp.up_proj.lora_magnitude_vector"),
        &w,
        "lora_magnitude_vector",
    );
    let mut dir = trained("dora");
    dir.config["use_dora"] = json!(false);
    refused(&dir, &w, "use_dora");
    refused(
        &changed("dora", |t| {
            let short = t.name.ends_with("0.mlp.up_proj.lora_magnitude_vector");
            Some(if short { shaped(t, &[127]) } else { t.clone() })
        }),
        &w,
        "lengths of 128 rows",
    );
    let filled = |name, end: &str, bytes: [u8; 4]| {
        changed(name, |t| {
            let mut t = t.clone();
            if t.name.ends_with(end) {
                let mut data = t.data.to_vec();
                data[..4].copy_from_slice(&bytes);
                t.data = Blob::from_vec(data);
            }
            Some(t)
        })
    };
    let nan = f32::NAN.to_le_bytes();
    refused(
        &filled("lora", "0.mlp.up_proj.lora_A.weight", nan),
        &w,
        "NaN",
    );
    refused(
        &filled("dora", "0.mlp.up_proj.lora_magnitude_vector", nan),
        &w,
        "NaN",
    );
    refused(
        &changed("lora", |t| {
            Some(Tensor {
                dtype: Dtype::I32,
                ..t.clone()
            })
        }),
        &w,
        "I32",
    );
    // A trained table, or one of another vocabulary.
    let with = |shape: [usize; 2]| {
        let mut dir = trained("lora");
        let name = "base_model.model.model.embed_tokens.weight";
        let bytes = vec![0; shape[0] * shape[1] * 4];
        let t = Tensor::new(name, Dtype::F32, shape.to_vec(), Blob::from_vec(bytes)).unwrap();
        let list = dir.tensors.iter().cloned().chain([t]).collect();
        dir.tensors = Tensors::new(list).unwrap();
        dir
    };
    refused(
        &with([320, 64]),
        &w,
        "trained table `base_model.model.model.embed_tokens.weight`",
    );
    refused(&with([321, 64]), &w, "another vocabulary");
    // Of another model.
    let other = open("models/llama1", Compute::F32);
    refused(&trained("lora"), &other, "are not [rank");
    let experts = open("../experts/experts.gguf", Compute::F32);
    refused(&trained("lora"), &experts, "are not [rank");
    let lora = Lora::from_peft(&trained("lora"), &w.config).unwrap();
    assert!(Adapter::of(lora, &w, f32::INFINITY).is_err());
}

#[test]
fn a_gguf_that_is_no_adapter_of_this_model() {
    let w = open("models/llama1", Compute::F32);
    let folder = tempfile::tempdir().unwrap();
    let good = Gguf::open(fixture("../adapters/tables/adapter.gguf")).unwrap();
    let refused = |change: &dyn Fn(&mut Metadata), rename: (&str, &str), says: &str| {
        let mut metadata = good.metadata.clone();
        change(&mut metadata);
        let list = good.tensors.iter().map(|t| Tensor {
            name: t.name.replace(rename.0, rename.1),
            ..t.clone()
        });
        let tensors = Tensors::new(list.collect()).unwrap();
        let path = folder.path().join("a.gguf");
        files::gguf::write(&path, &metadata, &tensors).unwrap();
        match Lora::open(&path, &w.config) {
            Ok(_) => panic!("opened; wanted {says}"),
            Err(error) => assert!(error.to_string().contains(says), "{error}: no {says}"),
        }
    };
    let set = |key: &'static str, value: Value| move |m: &mut Metadata| m.set(key, value.clone());
    let text = |s: &str| Value::String(s.into());
    let same = ("", "");
    refused(&set("general.type", text("model")), same, "`general.type`");
    refused(
        &set("general.architecture", text("llama4")),
        same,
        "`general.architecture`",
    );
    refused(
        &set("adapter.type", text("control")),
        same,
        "`adapter.type`",
    );
    refused(
        &|m| m.retain(|k| k != "adapter.type"),
        same,
        "`adapter.type`",
    );
    refused(
        &set("adapter.lora.alpha", text("1")),
        same,
        "`adapter.lora.alpha`",
    );
    refused(
        &set("adapter.lora.alpha", Value::F32(f32::NAN)),
        same,
        "`adapter.lora.alpha`",
    );
    refused(
        &set("adapter.lora.new", Value::U32(1)),
        same,
        "`adapter.lora.new`",
    );
    let tokens = Value::Array(Array::U32(vec![5]));
    let key = "adapter.alora.invocation_tokens";
    refused(&set(key, tokens), same, key);
    let keep = |_: &mut Metadata| ();
    refused(
        &keep,
        ("ffn_up.weight.lora_a", "ffn_norm.weight"),
        "ffn_norm.weight",
    );
    refused(&keep, ("blk.1", "blk.7"), "no such matrix");
    refused(
        &keep,
        ("blk.1.ffn_up.weight.lora_b", "blk.1.ffn_down.weight.lora_b"),
        "counterpart",
    );
    refused(&keep, ("ffn_up", "ffn_up_exps"), "ffn_up_exps");
    refused(&keep, ("ffn_up", "ffn_down"), "are not [rank");
    for (path, says) in [
        ("gguf/llama1.f32.gguf", "`general.type`"),
        ("models/llama1", "an adapter is a GGUF file"),
        ("models/llama1/model.safetensors", "a safetensors file"),
    ] {
        let error = Lora::open(&fixture(path), &w.config).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(Lora::open(&folder.path().join("none"), &w.config).is_err());
    // An adapter is no model.
    let path = fixture("training/lora/final");
    let error = model::open(&path, kernels(Compute::F32, 1)).unwrap_err();
    assert!(error.to_string().contains("adapter of PEFT"), "{error}");
}
