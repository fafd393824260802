//! `puna perplexity`: its protocol against logits, its comparison, and the published figure.

mod common;

use common::{Home, fixture, puna, real_model};
use safetensors::SafeTensors;
use serde_json::Value;

const TEXT: &str = "In the beginning God created the heaven and the earth. And the earth was without form, \
    and void; and darkness was upon the face of the deep. And the Spirit of God moved upon the face of the waters.";

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

fn ids(value: &Value) -> Vec<u64> {
    value
        .as_array()
        .expect("a list")
        .iter()
        .map(|id| id.as_u64().expect("an id"))
        .collect()
}

/// Mean negative log-likelihood of the second half of each chunk, from the logits that `puna logits` writes.
fn by_hand(home: &Home, model: &str, tokens: &[u64], ctx: usize, bos: Option<u64>) -> (f64, usize) {
    let (mut sum, mut count) = (0.0, 0);
    for chunk in tokens.chunks_exact(ctx) {
        let mut chunk = chunk.to_vec();
        if let Some(bos) = bos {
            chunk[0] = bos;
        }
        let words: Vec<String> = chunk.iter().map(u64::to_string).collect();
        let out = home.dir.path().join("x.safetensors");
        let out = out.to_str().expect("UTF-8");
        let args = [
            "logits",
            model,
            "--ids",
            &words.join(","),
            "--compute",
            "f32",
            "--out",
            out,
        ];
        home.run(&args).succeeded();
        let bytes = std::fs::read(out).expect("written");
        let file = SafeTensors::deserialize(&bytes).expect("well-formed");
        let logits = file.tensor("logits").expect("there");
        let vocab = logits.shape()[1];
        let of = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let values: Vec<f64> = logits.data().chunks_exact(4).map(of).collect();
        for at in ctx / 2..ctx - 1 {
            let row = &values[at * vocab..(at + 1) * vocab];
            let mass: f64 = row.iter().map(|x| x.exp()).sum();
            sum += mass.ln() - row[chunk[at + 1] as usize];
            count += 1;
        }
    }
    (sum / count as f64, count)
}

#[test]
fn the_protocol_by_hand() {
    // One tokenizer that puts a token in front, and one that does not.
    for (model, bos) in [
        ("gguf/llama2_gqa.f32.gguf", true),
        ("gguf/llama3.f32.gguf", true),
    ] {
        let (home, model) = (Home::new(), fixture(model));
        let text = home.dir.path().join("text.txt");
        std::fs::write(&text, TEXT).expect("written");
        let text = text.to_str().expect("UTF-8");
        let tokens = ids(&home
            .run(&["tokenize", &model, TEXT, "--format", "json"])
            .json()["ids"]);
        let plain = ids(&home
            .run(&["tokenize", &model, TEXT, "--no-bos", "--format", "json"])
            .json()["ids"]);
        assert_eq!(tokens.len() > plain.len(), bos);
        let (nll, count) = by_hand(&home, &model, &tokens, 16, bos.then(|| tokens[0]));
        let args = [
            "perplexity",
            &model,
            text,
            "--ctx",
            "16",
            "--compute",
            "f32",
            "--format",
            "json",
        ];
        let answer = home.run(&args).json();
        assert!(
            (number(&answer["nll"]) - nll).abs() < 1e-5,
            "{answer} but {nll}"
        );
        assert!((number(&answer["perplexity"]) - nll.exp()).abs() < 1e-4 * nll.exp());
        assert_eq!(answer["tokens_scored"], count);
        assert_eq!(answer["chunks"], tokens.len() / 16);
        assert!(number(&answer["stderr"]) > 0.0);
        assert!(answer.get("kl").is_none());
    }
}

#[test]
fn a_model_is_near_itself_and_nearer_to_its_better_copy() {
    let home = Home::new();
    let at = |name: &str| {
        home.dir
            .path()
            .join(name)
            .to_str()
            .expect("UTF-8")
            .to_owned()
    };
    let (text, base) = (at("text.txt"), at("base"));
    std::fs::write(&text, TEXT.repeat(3)).expect("written");
    let model = |ty: &str| fixture(&format!("gguf/q256.{ty}.gguf"));
    let run = |ty: &str, flag: &str| {
        let model = model(ty);
        let args = [
            "perplexity",
            &model,
            &text,
            "--ctx",
            "32",
            "--compute",
            "f32",
            flag,
            &base,
        ];
        home.run(&[&args[..], &["--format", "json"]].concat())
            .json()
    };
    let saved = run("F32", "--save-logits");
    assert!(saved.get("kl").is_none());
    let kl = |ty: &str| run(ty, "--kl")["kl"].clone();
    let (own, q8, q2) = (kl("F32"), kl("Q8_0"), kl("Q2_K"));
    assert!(
        number(&own["mean"]) < 1e-5 && number(&own["p99"]) < 1e-4,
        "{own}"
    );
    assert_eq!(number(&own["same_top"]), 1.0);
    assert!(number(&own["mean"]) < number(&q8["mean"]), "{own} {q8}");
    assert!(number(&q8["mean"]) < number(&q2["mean"]), "{q8} {q2}");
    assert!(number(&q2["median"]) <= number(&q2["p99"]));
    assert!(number(&q2["same_top"]) < 1.0);
    let leftovers: Vec<_> = std::fs::read_dir(home.dir.path())
        .expect("there")
        .flatten()
        .collect();
    assert_eq!(leftovers.len(), 2, "{leftovers:?}");

    // Another ctx, another text, a file that is none of ours.
    let (f32, q8) = (model("F32"), model("Q8_0"));
    home.run(&["perplexity", &f32, &text, "--ctx", "16", "--kl", &base])
        .failed(1, "ctx");
    home.run(&["perplexity", &q8, &text, "--ctx", "32", "--kl", &text])
        .failed(1, "saved log-probabilities");
    home.run(&["perplexity", &q8, &text, "--ctx", "32", "--kl", &at("none")])
        .failed(1, "none");
}

#[test]
fn refusals() {
    let (home, model) = (Home::new(), fixture("gguf/llama3.f32.gguf"));
    let text = home.dir.path().join("text.txt");
    std::fs::write(&text, "short").expect("written");
    let text = text.to_str().expect("UTF-8");
    home.run(&["perplexity", &model, text]).failed(1, "512");
    home.run(&["perplexity", &model, text, "--ctx", "2"])
        .failed(2, "--ctx 2");
    home.run(&["perplexity", &model, "nowhere.txt"])
        .failed(1, "nowhere.txt");
    std::fs::write(text, [0xff, 0xfe, 0x00]).expect("written");
    home.run(&["perplexity", &model, text]).failed(1, "UTF-8");
    puna(&["perplexity", &model]).failed(2, "required");
}

/// The first chunks of the text for which transformers and llama.cpp published their running figures.
#[test]
fn the_default_model_reaches_the_published_perplexity() {
    let Some(model) = real_model() else {
        return;
    };
    const CHUNKS: usize = 2;
    let want: Value =
        serde_json::from_slice(&std::fs::read(fixture("smollm2/perplexity.json")).expect("there"))
            .expect("JSON");
    let want = number(&want["transformers_f32"]["running"][CHUNKS - 1]);
    // A prefix of the text has the same first tokens: it ends between two words.
    let text = std::fs::read_to_string(fixture("smollm2/ppl.txt")).expect("there");
    let end = text
        .char_indices()
        .nth(8000)
        .map_or(text.len(), |(at, _)| at);
    let end = text[..end].rfind(' ').expect("words");
    let home = Home::new();
    let file = home.dir.path().join("text.txt");
    let model = model.to_str().expect("UTF-8");
    let mut cut = end;
    // As many words as make CHUNKS whole chunks and not one more.
    let tokens = |text: &str| {
        let ran = home.run_with(
            &["tokenize", model, "-", "--format", "json"],
            text.as_bytes(),
        );
        ids(&ran.json()["ids"]).len()
    };
    while tokens(&text[..cut]) >= 512 * (CHUNKS + 1) {
        cut = text[..cut - 200].rfind(' ').expect("words");
    }
    std::fs::write(&file, &text[..cut]).expect("written");
    let file = file.to_str().expect("UTF-8");
    // Eight-bit activations cost half a percent over the whole text, and more or less over few chunks.
    for (compute, within) in [("f32", 5e-4), ("fast", 2e-2)] {
        let args = [
            "perplexity",
            model,
            file,
            "--compute",
            compute,
            "--format",
            "json",
        ];
        let answer = home.run(&args).json();
        assert_eq!(answer["chunks"], CHUNKS);
        assert_eq!(answer["tokens_scored"], CHUNKS * 255);
        let got = number(&answer["perplexity"]);
        assert!(
            (got / want - 1.0).abs() < within,
            "{compute}: {got}, want {want}"
        );
    }
}
