//! Models in formats other than GGUF and safetensors, through the binary.

mod common;

use common::{fixture, puna};

fn format(name: &str) -> String {
    fixture(&format!("../formats/{name}"))
}

fn show(model: &str) -> serde_json::Value {
    puna(&["show", model, "--format", "json"]).json()
}

#[test]
fn show_says_what_a_checkpoint_is_and_what_is_copied() {
    for (name, says, copied) in [
        ("meta-llama1", "Meta's checkpoint in 2 parts", true),
        ("llama2c-v0/model.bin", "llama2.c version 0", false),
        ("llama2c-v2-g32/model.bin", "llama2.c version 2", true),
        ("torch-shards", "Hugging Face directory", false),
        ("gptq-sym", "Hugging Face directory", true),
    ] {
        let report = show(&format(name));
        assert_eq!(report["format"], says, "{name}");
        let bytes = report["memory"]["weights_copied_bytes"]
            .as_u64()
            .expect("a count");
        assert_eq!(bytes > 0, copied, "{name}");
    }
    let report = show(&format("gptq-sym"));
    assert_eq!(report["types"][0]["type"], "Q4_0");
    // Embedding, head, norms and the seven matrices of the one block.
    let (d, f, v) = (64, 96, 48);
    let all = 2 * v * d + 3 * d + 2 * d * d + 2 * d * d / 2 + 3 * d * f;
    assert_eq!(report["parameters"], all);
}

#[test]
fn a_llama2c_model_answers_with_the_tokenizer_beside_it() {
    let model = format("llama2c-v0/model.bin");
    let args = [
        "run",
        "-m",
        &model,
        "--raw",
        "--temperature",
        "0",
        "-n",
        "4",
        "--format",
        "json",
        "ab",
    ];
    let answer = puna(&args).json();
    assert_eq!(answer["prompt_ids"], serde_json::json!([1, 31]));
    let alone = puna(&["tokenize", &format("llama2c-v1/model.bin"), "ab"]);
    alone.failed(4, "has no tokenizer");
}

#[test]
fn what_is_not_a_model_is_refused_with_its_reason() {
    for (name, says) in [
        ("../hostile/meta/hostile-part", "os.system"),
        (
            "../hostile/meta/gap",
            "consolidated.01.pth: a part of the weights is missing",
        ),
        (
            "../hostile/llama2c/version-3.bin",
            "version 3 of llama2.c's format",
        ),
        (
            "../hostile/torch/legacy.pth",
            "is a pickle, probably an old PyTorch checkpoint; this version opens",
        ),
    ] {
        puna(&["logits", &fixture(name), "--ids", "1"]).failed(4, says);
    }
}
