//! What is read from config.json, and what is refused by name.

mod common;

use common::fixture;
use model::{Config, Scaling};
use serde_json::{Value, json};

fn base() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("models/llama3_1/config.json")).unwrap()).unwrap()
}

fn with(changes: Value) -> Result<Config, String> {
    let mut config = base();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::String(s) if s == "absent" => drop(config.as_object_mut().unwrap().remove(key)),
            _ => config[key] = value.clone(),
        }
    }
    Config::from_hf(&config).map_err(|e| e.to_string())
}

#[test]
fn defaults_are_those_of_transformers() {
    let c = with(json!({
        "num_key_value_heads": "absent", "head_dim": "absent", "rope_theta": "absent",
        "rope_scaling": null, "attention_bias": "absent", "tie_word_embeddings": "absent",
        "rms_norm_eps": "absent", "hidden_act": "absent",
    }))
    .unwrap();
    assert_eq!((c.kv_heads, c.head_dim, c.rope.theta), (4, 32, 1e4));
    assert_eq!(
        (c.rope.scaling, c.attention_bias, c.tied),
        (Scaling::None, false, false)
    );
    assert_eq!(c.norm_eps, 1e-6);
}

#[test]
fn end_tokens_may_be_a_number_a_list_or_absent() {
    let eos = |v: Value| with(json!({ "eos_token_id": v })).unwrap().eos;
    assert_eq!(eos(json!(7)), [7]);
    assert_eq!(
        eos(json!([128_001, 128_008, 128_009])),
        [128_001, 128_008, 128_009]
    );
    assert_eq!(eos(json!(null)), [0; 0]);
    assert_eq!(eos(json!(-1)), [0; 0]);
    assert!(with(json!({ "eos_token_id": "x" })).is_err());
}

#[test]
fn every_kind_of_rope_scaling_is_read() {
    let kind = |v: Value| with(json!({ "rope_scaling": v })).map(|c| c.rope.scaling);
    assert_eq!(
        kind(json!({"rope_type": "default"})).unwrap(),
        Scaling::None
    );
    assert_eq!(
        kind(json!({"type": "linear", "factor": 2})).unwrap(),
        Scaling::Linear { factor: 2.0 }
    );
    assert_eq!(
        kind(json!({"rope_type": "dynamic", "factor": 2.0})).unwrap(),
        Scaling::Dynamic { original: 256 }
    );
    let Scaling::Yarn(y) =
        kind(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}))
            .unwrap()
    else {
        panic!("not yarn")
    };
    assert_eq!(
        (y.factor, y.original, y.beta_fast, y.beta_slow),
        (4.0, 64.0, 32.0, 1.0)
    );
    assert!((y.attention_factor - 1.138_629_436).abs() < 1e-8);
    let factors: Vec<f64> = vec![1.5; 16];
    let long = kind(
        json!({"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "original_max_position_embeddings": 64}),
    );
    assert!(matches!(
        long.unwrap(),
        Scaling::LongRope { original: 64, .. }
    ));
    for bad in [
        json!({"rope_type": "swirl", "factor": 2.0}),
        json!({"rope_type": "linear"}),
        json!({"rope_type": "linear", "factor": 0.0}),
        json!({"rope_type": "linear", "factor": "2"}),
        json!({"factor": 2.0}),
        json!({"rope_type": "llama3", "factor": 8.0}),
        json!({"rope_type": "longrope", "short_factor": [1.0]}),
        json!(7),
    ] {
        let error = kind(bad.clone()).unwrap_err();
        assert!(
            error.contains("rope") || error.contains("factor"),
            "{bad}: {error}"
        );
    }
}

#[test]
fn what_would_change_the_result_is_refused_by_name() {
    let cases = [
        (
            "architectures",
            json!(["MistralForCausalLM"]),
            "MistralForCausalLM",
        ),
        (
            "architectures",
            json!(["MllamaForConditionalGeneration"]),
            "MllamaForConditionalGeneration",
        ),
        ("model_type", json!("mllama"), "mllama"),
        ("sliding_window", json!(4096), "sliding_window"),
        ("hidden_act", json!("tanh"), "hidden_act"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        (
            "final_logit_softcapping",
            json!(30.0),
            "final_logit_softcapping",
        ),
        ("num_local_experts", json!(8), "num_local_experts"),
    ];
    for (key, value, named) in cases {
        let error = with(json!({ key: value })).unwrap_err();
        assert!(error.contains(named), "{key}: {error}");
    }
    // Neutral values pass.
    with(json!({"sliding_window": null, "num_local_experts": 0, "partial_rotary_factor": 1.0}))
        .unwrap();
}

#[test]
fn two_accounts_of_the_scaling_must_agree() {
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    let both = |other: Value| with(json!({"rope_parameters": linear, "rope_scaling": other}));
    assert_eq!(
        both(linear.clone()).unwrap().rope.scaling,
        Scaling::Linear { factor: 2.0 }
    );
    assert!(both(json!({"rope_type": "linear", "factor": 4.0})).is_err());
}

#[test]
fn impossible_numbers_are_errors() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(u64::MAX)),
        ("hidden_size", json!("absent")),
        ("hidden_size", json!(-1)),
        ("num_hidden_layers", json!(1_000_000)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(7)),
        ("vocab_size", json!(1.5)),
        ("rms_norm_eps", json!(0.0)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rope_theta", json!(0)),
        ("attention_bias", json!("yes")),
        ("max_position_embeddings", json!(0)),
    ] {
        assert!(with(json!({ key: value })).is_err(), "{key} = {value}");
    }
    assert!(Config::from_hf(&json!([])).is_err());
    assert!(Config::from_hf(&json!({})).is_err());
}

mod gguf {
    use super::common::{fixture, kernels};
    use files::gguf::{Gguf, Value};
    use files::{Blob, Dtype, Tensor, Tensors};
    use kernels::Compute;
    use model::{Config, Scaling, Weights};

    fn open() -> Gguf {
        Gguf::open(fixture("gguf/llama3_1.f32.gguf")).unwrap()
    }

    fn with(key: &str, value: impl Into<Value>) -> Result<Config, String> {
        let mut g = open();
        g.metadata.set(key, value);
        Config::from_gguf(&g).map_err(|e| e.to_string())
    }

    /// The file with its tensors changed one by one; `None` drops a tensor.
    fn load(
        change: impl Fn(Tensor) -> Option<Tensor>,
        add: Vec<Tensor>,
    ) -> Result<Weights, String> {
        let mut g = open();
        let kept: Vec<Tensor> = g
            .tensors
            .iter()
            .cloned()
            .filter_map(change)
            .chain(add)
            .collect();
        g.tensors = Tensors::new(kept).unwrap();
        Weights::from_gguf(&g, kernels(Compute::F32, 1)).map_err(|e| e.to_string())
    }

    fn tensor(name: &str, shape: &[usize]) -> Tensor {
        let data = Blob::from_vec(vec![0; shape.iter().product::<usize>() * 4]);
        Tensor::new(name, Dtype::F32, shape.to_vec(), data).unwrap()
    }

    #[test]
    fn keys_that_would_change_the_result_are_refused_by_name() {
        for (key, value, named) in [
            ("general.architecture", Value::from("qwen2"), "qwen2"),
            ("general.type", Value::from("adapter"), "adapter"),
            (
                "llama.expert_count",
                Value::from(8u32),
                "llama.expert_used_count",
            ),
            (
                "llama.expert_used_count",
                Value::from(2u32),
                "2 of 0 experts",
            ),
            (
                "llama.expert_gating_func",
                Value::from(2u32),
                "llama.expert_gating_func",
            ),
            (
                "llama.attention.sliding_window",
                Value::from(4096u32),
                "sliding_window",
            ),
            (
                "llama.something.new",
                Value::from(1u32),
                "llama.something.new",
            ),
            ("llama.rope.scaling.type", Value::from("swirl"), "swirl"),
            (
                "llama.rope.scaling.type",
                Value::from("yarn"),
                "rope_freqs.weight",
            ),
            (
                "llama.rope.scaling.factor",
                Value::from(4.0f32),
                "rope_freqs.weight",
            ),
            (
                "llama.attention.value_length",
                Value::from(8u32),
                "value length 8",
            ),
            ("llama.vocab_size", Value::from(7u32), "vocab_size"),
            (
                "llama.block_count",
                Value::from("many"),
                "llama.block_count",
            ),
            ("llama.block_count", Value::from(0u32), "layers"),
            ("llama.embedding_length", Value::from(u64::MAX), "hidden"),
        ] {
            let error = with(key, value).unwrap_err();
            assert!(error.contains(named), "{key}: {error}");
        }
        with("llama.expert_count", 0u32).unwrap();
    }

    #[test]
    fn listed_divisors_are_read_from_their_tensor() {
        let c = Config::from_gguf(&open()).unwrap();
        let Scaling::Divisors(d) = c.rope.scaling else {
            panic!("{:?}", c.rope.scaling)
        };
        assert_eq!((d.len(), d[0]), (16, 1.0));
        assert_eq!(d[15], 8.0);
    }

    #[test]
    fn tensors_are_checked_against_the_configuration() {
        let drop =
            |name: &'static str| load(move |t| (t.name != name).then_some(t), vec![]).unwrap_err();
        assert!(drop("blk.1.ffn_up.weight").contains("blk.1.ffn_up.weight"));
        assert!(drop("output_norm.weight").contains("output_norm.weight"));
        let error = load(Some, vec![tensor("blk.0.attn_q_norm.weight", &[32])]).unwrap_err();
        assert!(error.contains("attn_q_norm"), "{error}");
        let error = load(Some, vec![tensor("blk.9.attn_norm.weight", &[128])]).unwrap_err();
        assert!(error.contains("blk.9"), "{error}");
        let error = load(
            |t| {
                Some(if t.name == "blk.0.attn_q.weight" {
                    tensor("blk.0.attn_q.weight", &[64, 128])
                } else {
                    t
                })
            },
            vec![],
        )
        .unwrap_err();
        assert!(
            error.contains("[64, 128]") && error.contains("[128, 128]"),
            "{error}"
        );
        let error = load(
            |t| {
                let shape = t.shape.clone();
                let wide = |t: Tensor| {
                    Tensor::new(
                        t.name,
                        Dtype::I8,
                        shape.clone(),
                        Blob::from_vec(vec![0; shape.iter().product()]),
                    )
                    .unwrap()
                };
                Some(if t.name == "blk.0.attn_q.weight" {
                    wide(t)
                } else {
                    t
                })
            },
            vec![],
        )
        .unwrap_err();
        assert!(error.contains("I8"), "{error}");
    }

    /// A tensor that only another kind of scaling reads.
    #[test]
    fn long_factors_without_longrope_are_refused() {
        let long = vec![tensor("rope_factors_long.weight", &[16])];
        let error = load(Some, long).unwrap_err();
        assert!(error.contains("rope_factors_long.weight"), "{error}");
    }

    /// Without `output.weight` the head is the embedding table.
    #[test]
    fn a_missing_head_is_tied() {
        let w = load(|t| (t.name != "output.weight").then_some(t), vec![]).unwrap();
        assert!(w.config.tied);
    }
}
