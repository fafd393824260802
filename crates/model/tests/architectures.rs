//! What is read from the configurations and tensors of Llama 4 and OPT, and what is refused by name.

mod common;

use common::*;
use files::{Dtype, safetensors};
use kernels::{Compute, Gate};
use model::{Arch, Config, Experts, Temperature};
use serde_json::{Value, json};

fn config(name: &str) -> Value {
    let path = fixture(&format!("models/{name}/config.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The configuration of a fixture with some keys changed; "absent" takes one away.
fn with(name: &str, changes: Value) -> Result<Config, String> {
    let mut config = config(name);
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::String(s) if s == "absent" => drop(config.as_object_mut().unwrap().remove(key)),
            _ => config[key] = value.clone(),
        }
    }
    Config::from_hf(&config).map_err(|e| e.to_string())
}

fn llama4(changes: Value) -> Result<Config, String> {
    with("llama4_text", changes)
}

#[test]
fn llama4_has_the_defaults_of_transformers() {
    let bare = json!({
        "no_rope_layers": null, "moe_layers": null, "layer_types": "absent",
        "attention_chunk_size": "absent", "floor_scale": "absent", "attn_scale": "absent",
        "attn_temperature_tuning": "absent", "use_qk_norm": "absent",
        "interleave_moe_layer_step": "absent", "num_experts_per_tok": "absent",
        "num_hidden_layers": 8,
    });
    let c = llama4(bare).unwrap();
    let l = c.llama4.clone().unwrap();
    let three_of_four = [true, true, true, false].repeat(2);
    assert_eq!((&l.rotates, &l.chunked), (&three_of_four, &three_of_four));
    assert_eq!((l.chunk, l.qk_norm), (8192, true));
    let (floor, scale) = (8192.0, 0.1);
    assert_eq!(l.temperature, Some(Temperature { floor, scale }));
    let experts = Experts {
        count: 4,
        used: 1,
        ffn: 96,
        shared: true,
        gate: Gate::Sigmoid,
        layers: vec![true; 8],
    };
    assert_eq!((c.arch, c.ffn), (Arch::Llama4, 160));
    assert_eq!(c.experts, Some(experts));
    assert_eq!(c.experts_of(8), None);
}

#[test]
fn llama4_keys_are_read_in_their_other_forms() {
    let attention = |changes| llama4(changes).unwrap().llama4.unwrap();
    assert!(
        attention(json!({"attn_temperature_tuning": 4}))
            .temperature
            .is_some()
    );
    assert_eq!(
        attention(json!({"attn_temperature_tuning": false})).temperature,
        None
    );
    assert_eq!(
        attention(json!({"attn_temperature_tuning": 0})).temperature,
        None
    );
    assert!(!attention(json!({"use_qk_norm": false})).qk_norm);
    let interval = json!({"no_rope_layers": [], "no_rope_layer_interval": 2});
    assert_eq!(attention(interval).rotates, [true, false, true, false]);
    let full = json!({"layer_types": vec!["full_attention"; 4], "attention_chunk_size": null});
    assert_eq!(attention(full).chunked, [false; 4]);
    // A model without experts, as Llama Guard 4 is.
    let dense = llama4(json!({"moe_layers": []})).unwrap();
    assert_eq!((dense.experts, dense.ffn), (None, 160));
}

/// Weights of the released models, by their dimensions: as their cards say, without what sees images.
#[test]
fn released_models_have_their_published_sizes() {
    let llama4 = |experts: usize, every: usize| {
        let config = json!({
            "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4",
            "text_config": {
                "hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40,
                "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192,
                "intermediate_size_mlp": 16384, "num_local_experts": experts,
                "interleave_moe_layer_step": every, "vocab_size": 202_048, "no_rope_layers": [],
                "max_position_embeddings": 10_485_760, "rope_theta": 5e5, "rope_scaling": null,
            },
        });
        Config::from_hf(&config).unwrap()
    };
    let billions = |n: u64| n as f64 / 1e9;
    for (config, all, used) in [(llama4(16, 1), 107.8, 17.2), (llama4(128, 2), 400.7, 17.2)] {
        assert!((billions(config.parameters()) - all).abs() < 0.1);
        assert!((billions(config.parameters_used()) - used).abs() < 0.1);
        let l = config.llama4.unwrap();
        assert_eq!(l.rotates.iter().filter(|r| !**r).count(), 12);
    }
    for (hidden, layers, heads, size) in [(768, 12, 12, 0.125), (10_240, 96, 80, 121.3)] {
        let config = json!({
            "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": hidden,
            "num_hidden_layers": layers, "num_attention_heads": heads, "ffn_dim": 4 * hidden,
            "vocab_size": 50_000, "max_position_embeddings": 2048, "activation_function": "gelu",
            "do_layer_norm_before": true, "scale_embeddings": false, "learned_embeddings": true,
        });
        let config = Config::from_hf(&config).unwrap();
        assert!(
            (billions(config.parameters()) / size - 1.0).abs() < 0.01,
            "{size}"
        );
    }
}

#[test]
fn what_would_change_llama4_is_refused_by_name() {
    for (key, value, named) in [
        ("sliding_window", json!(4096), "sliding_window"),
        ("model_type", json!("llama4_other"), "llama4_other"),
        ("hidden_act", json!("tanh"), "hidden_act"),
        ("layer_types", json!(["mamba"]), "mamba"),
        (
            "layer_types",
            json!(["full_attention"]),
            "chunked layers has 1 entries",
        ),
        ("layer_types", json!(7), "layer_types"),
        (
            "no_rope_layers",
            json!([1, 1]),
            "rotated layers has 2 entries",
        ),
        ("no_rope_layers", json!(["x"]), "no_rope_layers"),
        ("moe_layers", json!([4]), "moe_layers"),
        ("moe_layers", json!([-1]), "moe_layers"),
        ("attention_chunk_size", json!(null), "attention_chunk_size"),
        ("attention_chunk_size", json!(0), "attention chunk"),
        ("floor_scale", json!(0), "temperature"),
        (
            "attn_temperature_tuning",
            json!("yes"),
            "attn_temperature_tuning",
        ),
        ("num_local_experts", json!(0), "number of experts"),
        ("num_experts_per_tok", json!(5), "experts used"),
        ("num_hidden_layers", json!(u64::MAX), "layers"),
        (
            "intermediate_size_mlp",
            json!("absent"),
            "intermediate_size_mlp",
        ),
    ] {
        let error = llama4(json!({ key: value })).unwrap_err();
        assert!(error.contains(named), "{key}: {error}");
    }
}

/// A directory with the fixture's tensors, renamed or dropped, and this configuration.
fn directory(
    name: &str,
    config: &Value,
    rename: impl Fn(&str) -> Option<String>,
) -> tempfile::TempDir {
    stored(name, config, rename, |bytes| (Dtype::F32, bytes.to_vec()))
}

/// The same, in another storage type.
fn stored(
    name: &str,
    config: &Value,
    rename: impl Fn(&str) -> Option<String>,
    convert: impl Fn(&[u8]) -> (Dtype, Vec<u8>),
) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tensors = safetensors::open(fixture(&format!("models/{name}/model.safetensors"))).unwrap();
    let mut list: Vec<(String, Dtype, &[usize], Vec<u8>)> = Vec::new();
    for t in tensors.iter() {
        if let Some(name) = rename(&t.name) {
            let (dtype, bytes) = convert(&t.data);
            list.push((name, dtype, &t.shape, bytes));
        }
    }
    if config.get("vision_config").is_some() {
        list.push((
            "vision_model.class_embedding".into(),
            Dtype::F32,
            &[2],
            vec![0; 8],
        ));
    }
    let list: Vec<_> = list
        .iter()
        .map(|(n, d, s, b)| (n.as_str(), *d, *s, b.as_slice()))
        .collect();
    safetensors::write(dir.path().join("model.safetensors"), &list).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// The text model inside a model that sees images.
#[test]
fn the_text_part_of_llama4_is_the_text_model() {
    let whole = json!({
        "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4",
        "text_config": config("llama4_text"), "vision_config": {"hidden_size": 8},
        "eos_token_id": [7, 8],
    });
    let inside = |name: &str| Some(format!("language_model.{name}"));
    let dir = directory("llama4_text", &whole, inside);
    let w = model::open(dir.path(), kernels(Compute::F32, 2)).unwrap();
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 384).collect();
    let alone = open("models/llama4_text", Compute::F32);
    assert_eq!(
        logits(&w, &ids, 99, &mut ()),
        logits(&alone, &ids, 99, &mut ())
    );
    // Without the text model's own prefix there is nothing beside it.
    let dir = directory("llama4_text", &whole, |name| Some(name.into()));
    let error = model::open(dir.path(), kernels(Compute::F32, 1)).unwrap_err();
    assert!(error.to_string().contains("vision_model"), "{error}");
}

/// Experts are turned round in any type of floats.
#[test]
fn experts_of_bfloat16_are_those_of_their_floats() {
    let all = |name: &str| Some(name.to_owned());
    let halves = |bytes: &[u8]| {
        let halves = bytes.chunks(4).flat_map(|b| [b[2], b[3]]);
        (Dtype::BF16, halves.collect())
    };
    let widened = |bytes: &[u8]| {
        let floats = bytes.chunks(4).flat_map(|b| [0, 0, b[2], b[3]]);
        (Dtype::F32, floats.collect())
    };
    let config = config("llama4_text");
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 384).collect();
    let run = |dir: tempfile::TempDir| {
        let w = model::open(dir.path(), kernels(Compute::F32, 2)).unwrap();
        logits(&w, &ids, 99, &mut ())
    };
    let got = run(stored("llama4_text", &config, all, halves));
    assert_eq!(got, run(stored("llama4_text", &config, all, widened)));
    // Blocks cannot be turned round.
    let bytes = |bytes: &[u8]| (Dtype::I8, bytes[..bytes.len() / 4].to_vec());
    let dir = stored("llama4_text", &config, all, bytes);
    let error = model::open(dir.path(), kernels(Compute::F32, 1)).unwrap_err();
    assert!(error.to_string().contains("I8"), "{error}");
}

#[test]
fn what_would_change_opt_is_refused_by_name() {
    for (key, value, named) in [
        ("do_layer_norm_before", json!(3), "do_layer_norm_before"),
        ("word_embed_proj_dim", json!(0), "embedding table"),
        ("scale_embeddings", json!(true), "scale_embeddings"),
        (
            "activation_function",
            json!("gelu_new"),
            "activation_function",
        ),
        ("num_attention_heads", json!(5), "5 heads"),
        ("enable_bias", json!("no"), "enable_bias"),
        ("max_position_embeddings", json!(0), "context"),
    ] {
        let error = with("opt", json!({ key: value })).unwrap_err();
        assert!(error.contains(named), "{key}: {error}");
    }
    let c = with(
        "opt",
        json!({"activation_function": "absent", "tie_word_embeddings": "absent"}),
    );
    let c = c.unwrap();
    assert_eq!(
        (c.activation, c.tied, c.rope.dim),
        (kernels::Activation::Relu, true, 0)
    );
}

/// Of Galactica, paper, configurations and files do not say the same about biases and norms: the
/// tensors tell of the one, the configuration of the other.
#[test]
fn opt_takes_the_biases_that_are_there() {
    let ids: Vec<u32> = (0..9).map(|i| (i * 37 + 11) % 384).collect();
    let run = |config: &Value, rename: &dyn Fn(&str) -> Option<String>| {
        let dir = directory("opt", config, rename);
        model::open(dir.path(), kernels(Compute::F32, 1))
            .map(|w| logits(&w, &ids, 99, &mut ()))
            .map_err(|e| e.to_string())
    };
    let all = |name: &str| Some(name.to_owned());
    let plain = logits(&open("models/opt", Compute::F32), &ids, 99, &mut ());
    let mut config = config("opt");
    config["enable_bias"] = json!(false);
    assert_eq!(run(&config, &all).unwrap(), plain);
    // Early files have no prefix; a second copy of a tied head changes nothing.
    let early = |name: &str| name.strip_prefix("model.").map(str::to_owned);
    assert_eq!(run(&config, &early).unwrap(), plain);
    let unbiased = |name: &str| (!name.contains("fc1.bias")).then(|| name.to_owned());
    assert!(max_difference(&run(&config, &unbiased).unwrap(), &plain) > 1e-3);
    let no_norms = |name: &str| (!name.contains("layer_norm")).then(|| name.to_owned());
    let error = run(&config, &no_norms).unwrap_err();
    assert!(error.contains("layer_norm.weight"), "{error}");
    config["layer_norm_elementwise_affine"] = json!(false);
    assert!(
        run(&config, &no_norms)
            .unwrap()
            .iter()
            .all(|x| x.is_finite())
    );
    let error = run(&config, &all).unwrap_err();
    assert!(error.contains("layer_norm"), "{error}");
    let renamed = |name: &str| Some(name.replace("layers.1.fc1", "layers.1.fc3"));
    let error = run(&config, &renamed).unwrap_err();
    assert!(error.contains("layers.1.fc1.weight"), "{error}");
}

mod gguf {
    use super::*;
    use files::gguf::{Gguf, Value};

    fn with(key: &str, value: impl Into<Value>) -> Result<Config, String> {
        let mut g = Gguf::open(fixture("gguf/llama4_text.f32.gguf")).unwrap();
        g.metadata.set(key, value);
        Config::from_gguf(&g).map_err(|e| e.to_string())
    }

    #[test]
    fn llama4_is_what_llama_cpp_takes_it_for() {
        let c = with("general.name", "x").unwrap();
        let l = c.llama4.unwrap();
        assert_eq!((l.chunk, l.qk_norm), (8192, true));
        assert_eq!(l.rotates, [true, true, true, false]);
        assert_eq!(c.experts.unwrap().layers, [false, true, false, true]);
        // Maverick is known by its number of experts.
        let many = with("llama4.expert_count", 128u32).unwrap();
        assert!(!many.llama4.unwrap().qk_norm);
        let plain = with("llama4.attention.sliding_window", 0u32).unwrap();
        let plain = plain.llama4.unwrap();
        assert_eq!(
            (plain.rotates, plain.chunked),
            (vec![true; 4], vec![false; 4])
        );
        assert_eq!(plain.temperature, None);
    }

    #[test]
    fn what_would_change_llama4_is_refused_by_name() {
        for (key, value, named) in [
            ("llama4.attention.sliding_window", 4096u32, "sliding_window"),
            ("llama4.expert_used_count", 0, "experts used"),
            ("llama4.expert_used_count", 9, "experts used"),
            ("llama4.expert_shared_count", 2, "expert_shared_count"),
            ("llama4.attention.key_length", 7, "key length"),
            ("llama4.block_count", u32::MAX, "layers"),
        ] {
            let error = with(key, value).unwrap_err();
            assert!(error.contains(named), "{key}: {error}");
        }
        // Keys of another architecture are none of this one's.
        with("llama.something", 1u32).unwrap();
    }
}
