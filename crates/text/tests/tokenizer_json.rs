//! A tokenizer.json of byte-level BPE is read by this room's own encoder; here its ids are held to those of the
//! `tokenizers` crate on random text of many scripts.

mod tokenizer_support;

use proptest::prelude::*;
use text::{Special, Tokenizer};
use tokenizer_support::fixture;

/// A file in both readings; the crate's twice, as it leaves special tokens alone by a setting.
struct Both {
    name: String,
    ours: Tokenizer,
    text: tokenizers::Tokenizer,
    parse: tokenizers::Tokenizer,
}

fn both(name: &str, bytes: &[u8]) -> Both {
    let theirs = |text: bool| {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).unwrap();
        tokenizer.set_encode_special_tokens(text);
        tokenizer
    };
    Both {
        name: name.to_owned(),
        ours: Tokenizer::from_json(bytes).unwrap(),
        text: theirs(true),
        parse: theirs(false),
    }
}

/// SmolLM2's splitting, Llama 3's, and with the same vocabularies Llama 4's and GPT-2's.
fn files() -> Vec<Both> {
    let read = |name: &str| std::fs::read(fixture(name)).unwrap();
    let smollm2 = read("reference/smollm2/tokenizer.json");
    let llama3 = read("reference/models/llama3/tokenizer.json");
    let llama4 = read("reference/models/llama4_text/tokenizer.json");
    let mut gpt2: serde_json::Value = serde_json::from_slice(&llama3).unwrap();
    gpt2["pre_tokenizer"] = gpt2["decoder"].clone();
    gpt2["pre_tokenizer"]["add_prefix_space"] = false.into();
    gpt2["model"]["ignore_merges"] = false.into();
    vec![
        both("smollm2", &smollm2),
        both("llama3", &llama3),
        both("llama4", &llama4),
        both("gpt2", gpt2.to_string().as_bytes()),
    ]
}

fn check(text: &str) -> Result<(), TestCaseError> {
    thread_local!(static FILES: Vec<Both> = files());
    FILES.with(|files| {
        for file in files {
            for (special, theirs) in [(Special::Text, &file.text), (Special::Parse, &file.parse)] {
                let got = file.ours.encode(text, special).unwrap();
                let want = theirs.encode_fast(text, false).unwrap();
                prop_assert_eq!(
                    &got[..],
                    want.get_ids(),
                    "{}, {:?}: {:?}",
                    file.name,
                    special,
                    text
                );
            }
        }
        Ok(())
    })
}

fn fragment() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z]{1,9}",
        4 => " [a-zA-Z]{1,12}",
        2 => prop::sample::select(vec![
            " the", " of", "'s", "'LL", "  ", "\n", "\r\n", "\n\n ", "\t", " \u{a0}", "1234", " 7", "٣٤", "...", " (", "!\n", "//", "日本語", "中文字",
            "한국어", "Привет", " мир", "नमस्ते", "مرحبا", "é", "e\u{301}", "🦙", "👩\u{200d}💻", "ß", "ΑΒΓ", "<|im_start|>", "<|end_of_text|>",
            "<|endoftext|>", "<|im_", "|>", "<|eot_id|><|eot_id|>",
        ]).prop_map(String::from),
        1 => any::<char>().prop_map(String::from),
        1 => "[ -~]{0,30}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
    #[test]
    fn random_text(parts in prop::collection::vec(fragment(), 0..30)) {
        check(&parts.concat())?;
    }
}

/// English, so long that words come again and push others out of the table of known words.
#[test]
fn a_long_text() {
    check(&std::fs::read_to_string(fixture("reference/smollm2/ppl.txt")).unwrap()).unwrap();
}

/// The rails of Meta's tokenizers are not in Hugging Face's library.
#[test]
fn a_run_without_a_break() {
    for one in ["a", " ", "é", "\n"] {
        check(&one.repeat(30_000)).unwrap();
    }
}
