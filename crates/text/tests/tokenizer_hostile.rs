//! Tokenizer files that lie, end too early or make no sense: each is an error that says what is wrong, or a tokenizer
//! that works; never a panic, and never memory that the file does not pay for.

mod tokenizer_support;

use files::gguf::{Metadata, Strings};
use proptest::prelude::*;
use serde_json::{Value, json};
use text::{Error, Special, Tokenizer};
use tokenizer_support::*;

/// Whatever a file has become, the tokenizer in it must not panic, nor give ids outside its vocabulary.
fn use_it(tokenizer: &Tokenizer) {
    let size = tokenizer.len() as u32;
    for special in [Special::Text, Special::Parse] {
        if let Ok(ids) = tokenizer.encode_prompt("<s>Hello  wörld</s>\n123", special) {
            assert!(ids.iter().all(|&id| id < size), "{ids:?} of {size}");
            tokenizer.decode(&ids, true);
        }
    }
    let all: Vec<u32> = (0..size.min(2000)).collect();
    tokenizer.decode(&all, false);
    stream(tokenizer, &all);
}

fn try_model(bytes: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_model(bytes) {
        use_it(&tokenizer);
    }
}

fn refused(result: Result<Tokenizer, Error>, because: &str) {
    match result {
        Ok(_) => panic!("taken, but should be refused: {because}"),
        Err(error) => {
            let message = error.to_string();
            assert!(
                message.contains(because),
                "{message:?} does not say {because:?}"
            );
        }
    }
}

fn tiny_spm() -> Vec<u8> {
    std::fs::read(fixture("reference/models/llama2_gqa/tokenizer.model")).unwrap()
}

fn tiny_json() -> Vec<u8> {
    std::fs::read(fixture("reference/models/llama3/tokenizer.json")).unwrap()
}

const TIKTOKEN: &[u8] = b"YQ== 0\nYg== 1\nIA== 2\nYWI= 3\nIGFi 4\n";

#[test]
fn every_beginning_of_a_file() {
    let spm = tiny_spm();
    (0..spm.len())
        .step_by(7)
        .chain(0..200)
        .for_each(|end| try_model(&spm[..end]));
    (0..TIKTOKEN.len()).for_each(|end| try_model(&TIKTOKEN[..end]));
    let json = tiny_json();
    for end in (0..json.len()).step_by(199) {
        assert!(Tokenizer::from_json(&json[..end]).is_err(), "{end}");
    }
}

proptest! {
    #[test]
    fn damaged_files(which in 0..3usize, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = match which {
            0 => tiny_spm(),
            1 => TIKTOKEN.to_vec(),
            _ => tiny_json(),
        };
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if which < 2 {
            try_model(&bytes);
        } else if let Ok(tokenizer) = Tokenizer::from_json(&bytes) {
            use_it(&tokenizer);
        }
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        try_model(&bytes);
        prop_assert!(Tokenizer::from_json(&bytes).is_err());
    }
}

/// A SentencePiece model of three pieces; the two messages are the trainer's and the normalizer's settings.
fn model(pieces: &[(&[u8], f32, u8)], trainer: &[u8], normalizer: &[u8]) -> Vec<u8> {
    let mut model = Vec::new();
    for (text, score, kind) in pieces {
        sentencepiece_piece(text, *score, *kind, &mut model);
    }
    protobuf_field(2, trainer, &mut model);
    protobuf_field(3, normalizer, &mut model);
    model
}

#[test]
fn sentencepiece_models_that_are_refused() {
    const BPE: &[u8] = &[3 << 3, 2];
    let sound: &[(&[u8], f32, u8)] = &[(b"<unk>", 0., 2), (b"a", 0., 1), (b"b", -1., 1)];
    let read = |bytes: Vec<u8>| Tokenizer::from_model(&bytes);
    use_it(&read(model(sound, BPE, &[])).unwrap());

    refused(read(model(sound, &[], &[])), "unigram");
    refused(read(model(sound, &[3 << 3, 4], &[])), "model type 4");
    refused(
        read(model(sound, &[3 << 3, 2, 0xc0, 1, 1], &[])),
        "treat_whitespace_as_suffix",
    );
    refused(
        read(model(
            sound,
            BPE,
            &[1 << 3 | 2, 4, b'n', b'f', b'k', b'c', 2 << 3 | 2, 1, 0],
        )),
        "nfkc",
    );
    refused(
        read(model(&[(b"a", 0., 1), (b"a", -1., 1)], BPE, &[])),
        "piece 1 stands twice",
    );
    refused(read(model(&[(b"a", f32::NAN, 1)], BPE, &[])), "no number");
    refused(
        read(model(&[(b"a", 0., 1), (b"\xff\xfe", 0., 1)], BPE, &[])),
        "not UTF-8",
    );
    refused(read(model(sound, &[3 << 3], &[])), "trainer's settings");
    // A varint of more than ten bytes, a length past the end, a group (wire type 3), field number 0.
    let bad: [&[u8]; 4] = [
        &[0x18, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
        &[0x12, 200, 1],
        &[0x1b],
        &[0x02, 0],
    ];
    for tail in bad {
        let mut bytes = model(sound, BPE, &[]);
        bytes.extend_from_slice(tail);
        refused(read(bytes), "runs past its end");
    }
    for neither in [
        &b""[..],
        b"\n",
        b"hello world",
        b"GGUF",
        &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
    ] {
        refused(Tokenizer::from_model(neither), "neither");
    }
}

#[test]
fn tiktoken_files_that_are_refused() {
    let read = |text: &str| Tokenizer::from_model(text.as_bytes());
    refused(read("YQ== 0\nYQ== 1\n"), "token 1 stands twice");
    refused(read("YQ== 0\nYg== 0\n"), "rank 0 stands where 1 belongs");
    refused(read("YQ== 0\nYg== 7\n"), "rank 7 stands where 1 belongs");
    refused(read("YQ== 0\nYg== \n"), "line 2");
    refused(read("YQ== 0\n*** 1\n"), "line 2");
    let tokenizer = Tokenizer::from_model(TIKTOKEN).unwrap();
    assert_eq!(
        (tokenizer.bos(), tokenizer.adds_bos(), tokenizer.eog()),
        (None, false, &[][..])
    );
    assert_eq!(
        tokenizer.encode("ab abcab", Special::Parse).unwrap(),
        [3, 4, 3]
    );
}

/// Tokens and scores as llama2.c writes them; `longest` may lie.
fn llama2c(longest: i32, tokens: &[(&str, f32)]) -> Vec<u8> {
    let mut file = longest.to_le_bytes().to_vec();
    for (token, score) in tokens {
        file.extend(score.to_le_bytes());
        file.extend((token.len() as i32).to_le_bytes());
        file.extend(token.bytes());
    }
    file
}

#[test]
fn llama2c_files_that_are_refused() {
    let markers = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0)];
    let with = |more: &[(&str, f32)]| llama2c(6, &[&markers[..], more].concat());
    let read = |file: &[u8]| Tokenizer::from_model(file);
    let sound = with(&[(" ", -1.0), ("a", -2.0), (" a", -3.0), ("<0x0A>", 0.0)]);
    let tokenizer = read(&sound).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    assert_eq!((tokenizer.eog(), tokenizer.adds_bos()), (&[1, 2][..], true));
    assert_eq!(tokenizer.encode("a a\n", Special::Text).unwrap(), [5, 5, 6]);
    assert_eq!(tokenizer.decode(&[1, 5, 5, 6], false), b"a a\n");

    refused(read(&with(&[("a", f32::NAN)])), "its score is no number");
    refused(
        read(&with(&[("a", 0.0), ("a", 0.0)])),
        "token 4 stands twice",
    );
    refused(
        read(&llama2c(5, &markers[..2])),
        "no tokens beside its markers",
    );
    for neither in [
        &sound[..sound.len() - 1],
        &llama2c(5, &markers),
        &llama2c(7, &markers),
        &llama2c(-1, &markers),
        &llama2c(1 << 20, &markers),
    ] {
        refused(read(neither), "neither");
    }
    (0..sound.len()).for_each(|end| try_model(&sound[..end]));
}

#[test]
fn a_llama2c_model_has_its_tokenizer_beside_it() {
    let model = fixture("formats/llama2c-v0/model.bin");
    let tokenizer = Tokenizer::open(&model).unwrap();
    assert_eq!(tokenizer.len(), 48);
    assert_eq!(
        tokenizer.encode_prompt("ab ab", Special::Text).unwrap(),
        [1, 31, 31]
    );
    let alone = Tokenizer::open(fixture("formats/llama2c-v1/model.bin"));
    refused(alone, "none of tok48.bin, tok48.model, tokenizer.bin");
}

fn gguf(model: &str, tokens: &[&str]) -> Metadata {
    let mut metadata = Metadata::new();
    let strings = |list: &[&str]| {
        files::gguf::Value::Array(files::gguf::Array::String(list.iter().collect::<Strings>()))
    };
    metadata.set(
        "tokenizer.ggml.model",
        files::gguf::Value::String(model.into()),
    );
    metadata.set("tokenizer.ggml.tokens", strings(tokens));
    metadata.set("tokenizer.ggml.merges", strings(&["a b", "Ġ ab"]));
    metadata
}

fn set(mut metadata: Metadata, key: &str, value: files::gguf::Value) -> Metadata {
    metadata.set(format!("tokenizer.ggml.{key}"), value);
    metadata
}

const TOKENS: &[&str] = &["<|end|>", "a", "b", "ab", "Ġ", "Ġab"];

#[test]
fn gguf_vocabularies_that_are_refused() {
    use files::gguf::{Array, Value::*};
    let read = |metadata: Metadata| Tokenizer::from_gguf(&metadata);
    let bpe = || gguf("gpt2", TOKENS);
    refused(read(Metadata::new()), "tokenizer.ggml.model");
    refused(read(gguf("bert", TOKENS)), "\"bert\"");
    refused(read(gguf("gpt2", &[])), "tokenizer.ggml.tokens");
    refused(
        read(set(bpe(), "pre", String("tekken".into()))),
        "\"tekken\"",
    );
    refused(
        read(set(bpe(), "token_type", Array(Array::I32(vec![1; 5])))),
        "5 entries for 6 tokens",
    );
    refused(read(set(bpe(), "token_type", U32(3))), "token_type");
    refused(
        read(set(
            gguf("llama", TOKENS),
            "scores",
            Array(Array::F32(vec![0.0; 2])),
        )),
        "2 entries for 6 tokens",
    );
    refused(
        read(set(
            gguf("llama", TOKENS),
            "scores",
            Array(Array::F32(vec![f32::NAN; 6])),
        )),
        "no number",
    );
    refused(
        read(set(
            gguf("llama", TOKENS),
            "scores",
            Array(Array::Bool(vec![true; 6])),
        )),
        "scores",
    );
    refused(
        read(gguf("gpt2", &["a", "b", "a"])),
        "token 2 (\"a\") stands twice",
    );
    refused(
        read(set(
            bpe(),
            "merges",
            Array(Array::String(["ab"].iter().collect())),
        )),
        "merges[0]",
    );
    refused(read(set(bpe(), "merges", U32(0))), "merges is missing");
}

#[test]
fn gguf_vocabularies_with_odd_keys_still_work() {
    use files::gguf::Value::*;
    let encode = |t: &Tokenizer| t.encode("ab ab<|end|>", Special::Parse).unwrap();
    let plain = Tokenizer::from_gguf(&gguf("gpt2", TOKENS)).unwrap();
    assert_eq!(&encode(&plain)[..2], [3, 5]);
    assert_eq!(
        (plain.bos(), plain.eos(), plain.adds_bos()),
        (None, None, false)
    );
    // Ids outside the vocabulary are as if the key were missing.
    let odd = set(gguf("gpt2", TOKENS), "bos_token_id", U32(6));
    let odd = set(odd, "eos_token_id", U32(u32::MAX));
    let odd = set(odd, "eot_token_id", U32(0));
    let odd = set(odd, "add_bos_token", Bool(true));
    let odd = Tokenizer::from_gguf(&odd).unwrap();
    assert_eq!(
        (odd.bos(), odd.eos(), odd.adds_bos(), odd.eog()),
        (None, None, false, &[0][..])
    );
    assert_eq!(odd.encode_prompt("ab", Special::Text).unwrap(), [3]);
    // The defaults of a SentencePiece vocabulary hold only where it has these ids.
    let small = Tokenizer::from_gguf(&gguf("llama", &["<unk>", "a"])).unwrap();
    assert_eq!((small.bos(), small.eos()), (Some(1), None));
    assert_eq!(small.encode("ab", Special::Text).unwrap(), [0, 1, 0]);
    // Merges into something that is no token do nothing.
    let gap = Tokenizer::from_gguf(&gguf("gpt2", &["a", "b"])).unwrap();
    assert_eq!(gap.encode("abxab", Special::Text).unwrap(), [0, 1, 0, 1]);
    // Empty tokens, and characters that spell no byte.
    let empty =
        Tokenizer::from_gguf(&gguf("gpt2", &["", "a", "", "b", "ab", "a b", "日"])).unwrap();
    assert_eq!(empty.encode("ab日a b", Special::Text).unwrap(), [4, 1, 3]);
    assert_eq!(empty.decode(&[0, 5, 6], false), "a b日".as_bytes());
}

#[test]
fn json_files_that_are_refused() {
    let sound: Value = serde_json::from_slice(&tiny_json()).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut json = sound.clone();
        change(&mut json);
        Tokenizer::from_json(json.to_string().as_bytes())
    };
    use_it(&with(&|_| {}).unwrap());
    refused(with(&|j| j["model"]["dropout"] = json!(0.1)), "dropout");
    refused(with(&|j| j["decoder"] = Value::Null), "decoder");
    refused(
        with(&|j| j["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
        "WordPiece",
    );
    refused(
        with(&|j| j["model"]["vocab"]["zzz"] = json!(4_000_000_000u32)),
        "4000000001",
    );
    refused(
        with(&|j| j["model"]["vocab"]["zzz"] = json!(-1)),
        "tokenizer.json",
    );
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    refused(
        with(&|j| {
            j["normalizer"] = json!({"type": "Sequence", "normalizers": vec![double.clone(); 60]})
        }),
        "times as long",
    );
    for empty in ["", "{}", "[]", "null", "{\"model\": 3}"] {
        assert!(Tokenizer::from_json(empty.as_bytes()).is_err(), "{empty}");
    }
    let deep = format!(
        "{{\"normalizer\": {}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    refused(Tokenizer::from_json(deep.as_bytes()), "recursion");
}

#[test]
fn paths_that_hold_no_tokenizer() {
    let directory =
        std::env::temp_dir().join(format!("puna-tokenizer-test-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    refused(Tokenizer::open(directory.join("missing")), "missing");
    refused(
        Tokenizer::open(&directory),
        "tokenizer.json, tokenizer.model",
    );
    std::fs::write(directory.join("tokenizer.model"), TIKTOKEN).unwrap();
    assert_eq!(Tokenizer::open(&directory).unwrap().len(), 5);
    std::fs::write(directory.join("tokenizer_config.json"), "{").unwrap();
    refused(Tokenizer::open(&directory), "tokenizer_config.json");
    std::fs::write(directory.join("tokenizer.model"), "").unwrap();
    refused(
        Tokenizer::open(directory.join("tokenizer.model")),
        "neither",
    );
    std::fs::write(directory.join("tokenizer.model"), "GGUF").unwrap();
    assert!(Tokenizer::open(directory.join("tokenizer.model")).is_err());
    std::fs::remove_dir_all(&directory).unwrap();
}
