//! What holds for every tokenizer: special tokens, begin-of-text, decoding, configuration, and long texts.

mod tokenizer_support;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use text::{Decoder, Special, Tokenizer};
use tokenizer_support::*;

/// One tokenizer of each kind, with whether every text comes back as it was.
static ALL: LazyLock<Vec<(&str, Tokenizer, bool)>> = LazyLock::new(|| {
    [
        ("reference/models/llama3/tokenizer.json", true),
        ("reference/gguf/llama3.f32.gguf", true),
        ("reference/models/llama2_gqa/tokenizer.model", true),
        ("reference/gguf/llama2_gqa.f32.gguf", true),
        ("reference/smollm2/tokenizer.json", false),
        ("tokenizers/smollm2-vocab.gguf", false),
    ]
    .map(|(name, whole)| (name, Tokenizer::open(fixture(name)).unwrap(), whole))
    .into()
});

fn tokenizer(name: &str) -> &'static Tokenizer {
    &ALL.iter().find(|(n, ..)| *n == name).unwrap().1
}

fn text_of(tokenizer: &Tokenizer, ids: &[u32], keep: bool) -> String {
    String::from_utf8(tokenizer.decode(ids, keep)).unwrap()
}

/// Texts full of special tokens' names, whole and in pieces.
fn text_with_specials() -> impl Strategy<Value = String> {
    let names = vec![
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<s>",
        "</s>",
        "<unk>",
        "<0x0A>",
        "<|",
        "|>",
        "<",
        "s>",
        "▁",
        " ",
        "\n",
        "<|im_",
        "end|>",
        "<repo_name>",
    ];
    let part = prop_oneof![
        prop::sample::select(names).prop_map(String::from),
        "[ a-z]{0,5}",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn plain_text_never_becomes_a_special_token(text in text_with_specials()) {
        for (name, tokenizer, whole) in ALL.iter() {
            let ids = tokenizer.encode(&text, Special::Text).unwrap();
            prop_assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "{}: {:?} -> {:?}", name, text, ids);
            prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.len()));
            if *whole {
                // U+2581 is how SentencePiece spells a space, so it comes back as one.
                let spm = name.contains("llama2");
                let want = if spm { text.replace('▁', " ") } else { text.clone() };
                prop_assert_eq!(text_of(tokenizer, &ids, false), want, "{}", name);
            }
            let streamed = stream(tokenizer, &ids);
            let at_once = tokenizer.decode(&ids, false);
            prop_assert_eq!(streamed, String::from_utf8_lossy(&at_once), "{}", name);
        }
    }

    #[test]
    fn the_same_vocabulary_from_two_files_gives_the_same_ids(text in text_with_specials()) {
        for special in [Special::Text, Special::Parse] {
            let encode = |name| tokenizer(name).encode(&text, special).unwrap();
            prop_assert_eq!(encode("reference/smollm2/tokenizer.json"), encode("tokenizers/smollm2-vocab.gguf"));
            prop_assert_eq!(encode("reference/models/llama3/tokenizer.json"), encode("reference/gguf/llama3.f32.gguf"));
            prop_assert_eq!(encode("reference/models/llama2_gqa/tokenizer.model"), encode("reference/gguf/llama2_gqa.f32.gguf"));
        }
    }
}

#[test]
fn special_strings_are_parsed_only_when_asked() {
    for (name, tokenizer, _) in ALL.iter() {
        let mut count = 0;
        for (string, id) in tokenizer.special_strings() {
            assert!(tokenizer.is_special(id), "{name}: {string}");
            assert_eq!(tokenizer.id_of(string), Some(id), "{name}: {string}");
            assert_eq!(
                tokenizer.encode(string, Special::Parse).unwrap(),
                [id],
                "{name}: {string}"
            );
            let plain = tokenizer.encode(string, Special::Text).unwrap();
            assert!(!plain.contains(&id), "{name}: {string}");
            count += 1;
        }
        assert!(count >= 3, "{name}: {count} special tokens");
    }
}

/// After a special token a SentencePiece text begins anew, with its space.
#[test]
fn sentencepiece_puts_a_space_after_each_special_token() {
    for name in [
        "reference/models/llama2_gqa/tokenizer.model",
        "reference/gguf/llama2_gqa.f32.gguf",
    ] {
        let tokenizer = tokenizer(name);
        let encode = |text| tokenizer.encode(text, Special::Text).unwrap();
        let parsed = tokenizer.encode("ab</s><s>cd", Special::Parse).unwrap();
        assert_eq!(parsed, [encode("ab"), vec![2, 1], encode("cd")].concat());
        assert_eq!(text_of(tokenizer, &parsed, true), "ab</s><s> cd");
    }
}

#[test]
fn one_begin_of_text_where_the_model_wants_it_and_never_two() {
    for (name, bos) in [
        ("reference/models/llama3/tokenizer.json", Some(504)),
        ("reference/gguf/llama3.f32.gguf", Some(504)),
        ("reference/models/llama2_gqa/tokenizer.model", Some(1)),
        ("reference/gguf/llama2_gqa.f32.gguf", Some(1)),
        ("reference/smollm2/tokenizer.json", None),
        ("tokenizers/smollm2-vocab.gguf", None),
    ] {
        let tokenizer = tokenizer(name);
        assert_eq!(tokenizer.adds_bos(), bos.is_some(), "{name}");
        let bare = tokenizer.encode("hi", Special::Parse).unwrap();
        let want: Vec<u32> = bos.into_iter().chain(bare).collect();
        let encode = |text: &str| tokenizer.encode_prompt(text, Special::Parse).unwrap();
        assert_eq!(encode("hi"), want, "{name}");
        if let Some(bos) = bos {
            let written = text_of(tokenizer, &[bos], true) + "hi";
            assert_eq!(encode(&written), want, "{name}");
            assert_eq!(encode(""), [bos], "{name}");
        }
    }
}

#[test]
fn the_first_space_of_a_continuation_is_real() {
    let tokenizer = tokenizer("reference/gguf/llama2_gqa.f32.gguf");
    let ids = tokenizer.encode("the", Special::Text).unwrap();
    let text = |prompt_nonempty| {
        let mut decoder = Decoder::new(tokenizer, prompt_nonempty);
        let text: String = ids.iter().map(|&id| decoder.push(id)).collect();
        text + &decoder.finish()
    };
    assert_eq!(text(false), "the");
    assert_eq!(text(true), " the");
    let after = |prompt: &[u32]| Decoder::after(tokenizer, prompt).push(ids[0]);
    assert_eq!((after(&[]), after(&[1])), (after(&[1, 2]), after(&[])));
    assert!(!after(&[1]).starts_with(' ') && after(&[1, ids[0]]).starts_with(' '));
    // A begin-of-text token gives no text, so what follows it is still the start.
    assert_eq!(text_of(tokenizer, &[&[1], &ids[..]].concat(), false), "the");
}

#[test]
fn a_stream_gives_whole_characters_only() {
    for (name, tokenizer, _) in ALL.iter() {
        let text = "a🦙é中👩‍💻z";
        let ids = tokenizer.encode(text, Special::Text).unwrap();
        let mut decoder = Decoder::new(tokenizer, false);
        let mut so_far = String::new();
        for &id in &ids {
            let new = decoder.push(id);
            assert!(!new.contains('\u{fffd}'), "{name}");
            so_far.push_str(&new);
            assert!(text.starts_with(&so_far), "{name}: {so_far:?}");
        }
        assert_eq!(so_far, text, "{name}");
        assert_eq!(decoder.finish(), "", "{name}");
    }
}

#[test]
fn a_stream_that_stops_inside_a_character_says_so_at_the_end() {
    let tokenizer = tokenizer("reference/gguf/llama3.f32.gguf");
    let ids = tokenizer.encode("🦙", Special::Text).unwrap();
    assert!(ids.len() > 1);
    let mut decoder = Decoder::new(tokenizer, true);
    assert_eq!(decoder.push(ids[0]), "");
    // An ASCII character settles it.
    assert_eq!(decoder.push(tokenizer.id_of("a").unwrap()), "\u{fffd}a");
    assert_eq!(decoder.push(ids[0]), "");
    assert_eq!(decoder.finish(), "\u{fffd}");
}

#[test]
fn special_tokens_show_in_a_stream_when_asked() {
    let tokenizer = tokenizer("tokenizers/smollm2-vocab.gguf");
    let ids = tokenizer
        .encode("<|im_start|>user", Special::Parse)
        .unwrap();
    let text = |keep| {
        let mut decoder = Decoder::new(tokenizer, false).keep_special(keep);
        ids.iter().map(|&id| decoder.push(id)).collect::<String>()
    };
    assert_eq!(
        (text(false).as_str(), text(true).as_str()),
        ("user", "<|im_start|>user")
    );
}

#[test]
fn ids_outside_the_vocabulary_are_no_text() {
    for (name, tokenizer, _) in ALL.iter() {
        let outside = [tokenizer.len() as u32, u32::MAX];
        assert!(tokenizer.decode(&outside, true).is_empty(), "{name}");
        assert!(
            outside
                .iter()
                .all(|&id| tokenizer.piece(id).is_none() && !tokenizer.is_special(id))
        );
        assert_eq!(stream(tokenizer, &outside), "", "{name}");
    }
}

#[test]
fn a_configuration_adds_tokens_and_names_the_ends() {
    let path = fixture("reference/models/llama2_gqa/tokenizer.model");
    let mut tokenizer = Tokenizer::open(path).unwrap();
    let size = tokenizer.len() as u32;
    let config = json!({
        "bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>", "add_bos_token": false, "tokenizer_class": "LlamaTokenizer",
        "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": true},
            (size + 1).to_string(): {"content": "<|im_end|>", "special": true},
            (size + 2).to_string(): {"content": "[TOOL]", "special": false},
        },
    });
    let before = tokenizer.encode("hello there", Special::Text).unwrap();
    tokenizer.set_from_hf(&config, &Value::Null).unwrap();
    assert_eq!(tokenizer.len() as u32, size + 3);
    assert_eq!(tokenizer.eos(), Some(size + 1));
    assert_eq!(tokenizer.eog(), [2, size + 1]);
    assert!(!tokenizer.adds_bos());
    assert_eq!(
        tokenizer.encode("hello there", Special::Text).unwrap(),
        before
    );
    let ids = tokenizer.encode("<|im_end|>[TOOL]", Special::Text).unwrap();
    assert!(!ids.contains(&(size + 1)) && ids.contains(&(size + 2)));
    assert_eq!(text_of(&tokenizer, &ids, false), "<|im_end|>[TOOL]");
    assert_eq!(
        tokenizer.encode("<|im_end|>", Special::Parse).unwrap(),
        [size + 1]
    );
}

#[test]
fn a_token_made_special_is_not_made_by_merging_any_more() {
    for name in [
        "reference/gguf/llama3.f32.gguf",
        "reference/gguf/llama2_gqa.f32.gguf",
    ] {
        let mut tokenizer = Tokenizer::open(fixture(name)).unwrap();
        let the = *tokenizer
            .encode("the the", Special::Text)
            .unwrap()
            .last()
            .unwrap();
        let content = String::from_utf8(tokenizer.piece(the).unwrap().into_owned()).unwrap();
        let spelled = if name.contains("llama2") {
            content.replace(' ', "▁")
        } else {
            content
        };
        let config = json!({"added_tokens_decoder": {the.to_string(): {"content": spelled, "special": true}}});
        tokenizer.set_from_hf(&config, &Value::Null).unwrap();
        let ids = tokenizer.encode("the the", Special::Text).unwrap();
        assert!(!ids.contains(&the), "{name}: {ids:?}");
        assert_eq!(text_of(&tokenizer, &ids, false), "the the", "{name}");
    }
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let path = fixture("reference/models/llama2_gqa/tokenizer.model");
    for added in [
        json!({"4294967295": {"content": "x"}}),
        json!({"-1": {"content": "x"}}),
        json!({"3000000": {"content": "x", "special": true}}),
        json!({"600": {"special": true}}),
    ] {
        let mut tokenizer = Tokenizer::open(&path).unwrap();
        let config = json!({"added_tokens_decoder": added});
        assert!(
            tokenizer.set_from_hf(&config, &Value::Null).is_err(),
            "{config}"
        );
    }
    let mut tokenizer = Tokenizer::open(&path).unwrap();
    let odd = json!({"added_tokens_decoder": [], "bos_token": 3, "eos_token": [], "add_bos_token": "yes"});
    tokenizer.set_from_hf(&odd, &json!("x")).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
}

/// Texts on which a quadratic algorithm takes hours.
#[test]
fn long_texts_take_time_in_proportion() {
    let begin = Instant::now();
    for (name, tokenizer, _) in ALL.iter() {
        // The tokenizers crate is linear too, but far slower: there a smaller text must do.
        let n = if name.ends_with("json") {
            1 << 14
        } else {
            1 << 19
        };
        for text in [
            "a", " ", "\n", "中", "<|", "🦙", "1", "ab ", "'", "\u{301}", "Aa",
        ] {
            let long = text.repeat(n);
            let ids = tokenizer.encode(&long, Special::Parse).unwrap();
            // SmolLM2 lacks some bytes; none of these.
            assert_eq!(
                tokenizer.decode(&ids, true),
                long.as_bytes(),
                "{name}: {text:?}"
            );
        }
    }
    assert!(
        begin.elapsed() < Duration::from_secs(300),
        "took {:?}",
        begin.elapsed()
    );
}

#[test]
fn ten_megabytes_without_a_space() {
    for name in [
        "tokenizers/smollm2-vocab.gguf",
        "reference/gguf/llama3.f32.gguf",
        "reference/gguf/llama2_gqa.f32.gguf",
    ] {
        let begin = Instant::now();
        let text = "a".repeat(10 << 20);
        let ids = tokenizer(name).encode(&text, Special::Text).unwrap();
        assert_eq!(tokenizer(name).decode(&ids, false), text.as_bytes());
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{name}: {:?}",
            begin.elapsed()
        );
    }
}

/// A tokenizer built as Galactica's is: the sequences between two tags go character by character,
/// what else stands in square brackets is one token where tags are parsed.
#[test]
fn galacticas_sequences_go_character_by_character() {
    let tags = [
        "[START_SMILES]",
        "[END_SMILES]",
        "[START_REF]",
        "[END_REF]",
        "<work>",
        "</s>",
    ];
    let added: Vec<_> = (4..)
        .zip(tags)
        .map(|(id, tag)| {
            serde_json::json!({
                "id": id, "content": tag, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let marker = ["SPL", "1T-TH", "1S-Pl3A5E"].concat();
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": added, "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"String": marker}, "behavior": "Removed", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "vocab": {"C": 0, "O": 1, "CC": 2, "Ġ": 3}, "merges": ["C C"],
        },
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    let ids = |text: &str| tokenizer.encode(text, Special::Parse).unwrap();
    assert_eq!(ids("CCO"), [2, 1]);
    let molecule = ids("CC [START_SMILES]CCO[END_SMILES]CC");
    assert_eq!(molecule, [2, 3, 4, 0, 0, 1, 5, 2]);
    // Tags are part of what the model writes; the end of a document is not.
    let text = tokenizer.decode(&[&molecule[..], &[9]].concat(), false);
    assert_eq!(text, b"CC [START_SMILES]CCO[END_SMILES]CC");
    let typed = tokenizer.encode("[START_REF]", Special::Text).unwrap();
    assert!(!typed.contains(&6), "{typed:?}");
    assert_eq!(
        ids("[START_SMILES]CC"),
        [4, 2],
        "as long as it does not end"
    );
    assert_eq!(ids("CC[START_REF]CC[END_REF]<work>"), [2, 6, 2, 7, 8]);
}
